#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of scripts/check/check-files (TAP): which files it lets into a commit."""

import os
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
from tap import Tap

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
MEGABYTE = 1 << 20

# name, content, what is said of it
FILES = (
    ("text.c", b"int x;\n", None),
    ("empty", b"", None),
    ("just.txt", MEGABYTE * b"x", None),
    ("large.txt", (MEGABYTE + 1) * b"x", "more than 1 MB"),
    ("core", b"\x7fELF\2\1\1" + 9 * b"\0" + b"\4\0", "binary"),
    ("core.big", b"\x7fELF\2\2\1" + 9 * b"\0" + b"\0\4", "binary"),
    ("qemu", b"\x7fELF\2\1\1" + 9 * b"\0" + b"\3\0", "binary"),
    ("white space.img", b"QFI\xfb\0\0\0\3", "binary"),
)


def check(top):
    run = subprocess.run([os.path.join(TOP, "scripts", "check", "check-files"), top],
                         universal_newlines=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
    return run.returncode, run.stdout


def main():
    if sys.argv[1:] == ["--help"]:
        print("usage: %s    (TAP on standard output)" % sys.argv[0])
        return 0
    tap = Tap()
    for name, content, wanted in FILES:
        with tempfile.TemporaryDirectory() as top:
            subprocess.run(["git", "-C", top, "init", "-q"], check=True)
            with open(os.path.join(top, name), "wb") as file:
                file.write(content)
            tap.equal("not in the commit: %r" % name, check(top), (0, ""))
            subprocess.run(["git", "-C", top, "add", "-f", "."], check=True)
            # what counts is the commit, whatever is in the folder now
            os.unlink(os.path.join(top, name))
            status, text = check(top)
            if wanted:
                tap.result(status == 1 and name in text and wanted in text,
                           "refused: %r" % name, text)
            else:
                tap.equal("taken: %r" % name, (status, text), (0, ""))
    with tempfile.TemporaryDirectory() as top:
        tap.equal("no repository", check(top), (
            0, "check-files: no git repository, nothing to commit\n"))
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
