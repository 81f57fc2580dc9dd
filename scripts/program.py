# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds what is in the folders beside this file: modules by `import`, and the
programs, whose names have no .py, by load()."""

import functools
import glob
import importlib.machinery
import importlib.util
import os
import sys

SCRIPTS = os.path.dirname(os.path.abspath(__file__))
sys.path += glob.glob(f"{SCRIPTS}/*/")


@functools.lru_cache(maxsize=None)
def load(name):
    """A program as a module; the same one each time, so that the exceptions of
    one are those that another one catches."""
    path = next(path for folder in ("", "*/")
                for path in glob.glob(f"{SCRIPTS}/{folder}{name}")
                if os.path.isfile(path))
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module
