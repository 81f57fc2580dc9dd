# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs beside this file have no .py; this makes modules of them."""

import importlib.machinery
import importlib.util
import os


def load(name):
    """A program of scripts/ as a module."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module
