# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs beside this file have no .py; this makes modules of them."""

import functools
import importlib.machinery
import importlib.util
import os


@functools.lru_cache(maxsize=None)
def load(name):
    """A program of scripts/ as a module; the same one each time, so that the
    exceptions of one are those that another one catches."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module
