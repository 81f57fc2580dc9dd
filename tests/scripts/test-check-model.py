#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of scripts/check/check-model and of its model (TAP): the C functions that
the model says it stands for exist, in our files or in the base; each rule names
one; and the program doesn't take a verifier that gave up for one that is done.
It runs no Spin.
"""

import os
import re
import sys

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, f"{TOP}/scripts"]
from common import load
from tap import Tap

RULE = re.compile(r"^(?:inline|proctype|init)\b\s*(\w*)|"
                  r"^#define (\w+)(?:\(.*?\))? *\\$", re.M)
# The guest and the check at the end stand for nothing in C.
NO_FUNCTION = {"Guest", "Rest", ""}


def comments(text):
    """(where it ends, what is in it) of each comment"""
    return [(m.end(), m[0]) for m in re.finditer(r"/\*.*?\*/", text, re.S)]


def functions(comment):
    return re.findall(r"\b([A-Za-z]\w+)\(\)", comment)


def unnamed(text):
    """Rules without a function in the comment right before them"""
    found = comments(text)
    wrong = []
    for rule in RULE.finditer(text):
        name = rule[1] or rule[2] or ""
        above = [c for end, c in found
                 if end <= rule.start() and not text[end:rule.start()].strip()]
        if name not in NO_FUNCTION and not (above and functions(above[-1])):
            wrong.append(name)
    return wrong


def missing(tree, text):
    named = {f for _, comment in comments(text) for f in functions(comment)}
    return len(named), sorted(f for f in named if not tree.has_function(f))


def test_names(tap, text):
    names = load(os.path.relpath(f"{HERE}/test-docs-names.py",
                                         f"{TOP}/scripts"))
    tree = names.Tree(TOP, names.BASE)
    count, wrong = missing(tree, text)
    tap.result(count > 50 and not wrong,
               f"the model's {count} C functions exist", " ".join(wrong))
    tap.equal("a function that doesn't exist is missed",
              missing(tree, text + "/* virtio_scsi_frobnicate() */")[1][-1:],
              ["virtio_scsi_frobnicate"])
    tap.equal("each rule names a function", unnamed(text), [])
    tap.equal("a rule that names none is missed",
              unnamed(text + "\n/* more */\ninline nameless() { skip }\n"),
              ["nameless"])


def test_verdict(tap, model):
    good = "State-vector 9 byte, errors: 0\n     1234 states, stored\n"
    tap.equal("holds", model.verdict(good), (0, 1234))
    tap.equal("an error", model.verdict(
        good.replace("errors: 0", "errors: 1")
        + "Warning: Search not completed\n"), (1, 1234))
    for text in ("error: max search depth too small\n",
                 "Warning: Search not completed\n",
                 "pan: reached -DMEMLIM bound\n\tmemory limit\n"):
        tap.equal(f"gave up: {text.split(':')[0].strip()}",
                  model.verdict(good + text), None)
    tap.equal("no result", model.verdict("Segmentation fault\n"), None)


def main():
    if "--help" in sys.argv:
        print(__doc__)
        return 0
    tap = Tap()
    model = load("check/check-model")
    with open(model.MODEL, encoding="utf-8") as file:
        text = file.read()
    test_names(tap, text)
    test_verdict(tap, model)
    mutants = model.mutants_of(text)
    tap.equal("the mutants are those of the program", mutants,
              sorted(model.MUTANTS))
    tap.result(len(mutants) >= 8 and set(model.MUTANTS.values())
               <= set(model.RUNS), "each has a run", model.MUTANTS)
    with open(f"{TOP}/docs/devel/virtio-scsi-threads.rst",
              encoding="utf-8") as file:
        table = file.read().partition("\nrun  ")[2].partition("\n\n")[0]
    tap.equal("the page's runs are those of the program",
              re.findall(r"^([a-z].*?)  +\S", table, re.M),
              list(model.RUNS))
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
