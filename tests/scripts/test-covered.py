#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of scripts/check/covered.py (TAP): when a file has fallen, and that the
list in tests/coverage.txt names our files and no others."""

import contextlib
import glob
import io
import os
import re
import sys

sys.dont_write_bytecode = True
TOP = os.path.abspath(f"{__file__}/../../..")
sys.path += [f"{TOP}/scripts", f"{TOP}/scripts/check"]
import covered
from results import Results
from tap import Tap

# lines and branches in the list, and now, of how many branches; is that good?
CASES = (
    ("as it was", "98.0 90.0", (98.0, 90.0), True),
    ("better", "98.0 90.0", (100.0, 91.0), True),
    ("a point of lines", "98.0 90.0", (97.0, 90.0), True),
    ("more than a point of lines", "98.0 90.0", (96.9, 90.0), False),
    ("more than a point of branches", "98.0 90.0", (98.0, 88.9), False),
    ("one branch of few", "98.0 90.0", (98.0, 88.0, 50), True),
    ("more than one branch of few", "98.0 90.0", (98.0, 86.0, 50), False),
    ("no branches", "98.0 -", (98.0, None), True),
    ("not in the list", "", (100.0, 100.0), False),
    ("a file that no program has", "98.0 90.0", None, False),
)


def figures(lines, branches, of=1000):
    return {"hw/a.c": [(lines, 0.1), (branches, 100 / of)]}


def main():
    if sys.argv[1:] == ["--help"]:
        print(f"usage: {sys.argv[0]}    (TAP on standard output)")
        return 0
    tap = Tap()
    for what, was, now, good in CASES:
        results = Results()
        with contextlib.redirect_stdout(io.StringIO()):
            covered.judge("# file  lines branches\n"
                           + (f"hw/a.c  {was}\n" if was else ""),
                           figures(*now) if now else {}, results)
        tap.equal(what, (results.passed, len(results.failed)),
                  (int(good), int(not good)))
    with open(f"{TOP}/tests/coverage.txt", encoding="utf-8") as file:
        listed = set(re.findall(r"^(\w\S+\.c) ", file.read(), re.M))
    ours = {os.path.relpath(path, TOP) for folder in ("hw", "util")
            for path in glob.glob(f"{TOP}/{folder}/**/*.c", recursive=True)}
    # the stub is for programs without the device
    tap.equal("the list names each file", listed,
              (ours | {"hw/scsi/scsi-disk.c"})
              - {"hw/scsi/virtio-scsi-stub.c"})
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
