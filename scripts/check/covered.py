# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of our lines and branches the tests run, file by file: build/coverage is
a copy of the build in which our files are compiled again, to count. A file over
a point below tests/coverage.txt fails, as does one that isn't in it."""

import glob
import json
import os
import re

from common import BUILD, TOP, read, run, write
from mesontest import Build

COPY = os.path.join(BUILD, "coverage")
GROUPS = ["unit", "qtest", "qos", "base"]
FLAGS = "-O0 --coverage -fprofile-update=atomic"
# These have branches of their own, most for when QEMU itself is wrong.
NO_BRANCHES = (r"^\s*((g_)?assert(_\w+)?|GLOBAL_STATE_CODE|AIO_WAIT_WHILE"
               r"\w*|g_clear_pointer)\(")


def our_files():
    found = [os.path.relpath(path, TOP) for folder in ("hw", "util", "include")
             for path in glob.glob(f"{TOP}/{folder}/**/*.[ch]", recursive=True)]
    return found + ["hw/scsi/scsi-disk.c"]      # patched in many places


def copy():
    """A Build in which our files are still to be compiled anew."""
    for words in ["rm", "-rf"], ["cp", "-a", "--reflink=auto", Build().obj]:
        run(*words, COPY)
    write(f"{COPY}/build.ninja", re.sub(
        r"^build \S+: c_COMPILER \S*/src/(?:%s) .*\n(?: .*\n)*? ARGS = .*"
        % "|".join(map(re.escape, our_files())), rf"\g<0> {FLAGS}",
        read(f"{COPY}/build.ninja"), flags=re.M).replace(
            "$in $LINK_ARGS", "$in $LINK_ARGS --coverage"))
    return Build(COPY)


def compile_for(tests):
    """QEMU, and those of these tests' programs that are in the copy"""
    programs = {os.path.relpath(test.command[0], COPY) for test in tests}
    run("ninja", "-C", COPY, "qemu-system-x86_64",
        *(p for p in programs if p[0] != "."))


def figures():
    """{file: [(per cent, how many points one of them is) of lines, branches]}"""
    ours = "|".join(map(re.escape, our_files()))
    run("gcovr", "--root", f"{BUILD}/src", "--object-directory", COPY, COPY,
        "--filter", f"{re.escape(BUILD)}/src/({ours})$",
        "--exclude-branches-by-pattern", NO_BRANCHES, "--txt",
        f"{BUILD}/coverage.lines", "--json-summary", f"{BUILD}/coverage.json")
    return {f["filename"]: [(f[f"{what}_percent"], 100 / (f[f"{what}_total"] or 100))
                            for what in ("line", "branch")]
            for f in json.loads(read(f"{BUILD}/coverage.json"))["files"]}


def judge(before, now, results):
    """A result for each file; a race may decide about one line or branch."""
    was = dict(re.findall(r"^(\w\S+) +(\S.*)", before, re.M))
    for name in sorted(set(was) | set(now)):
        old = [float(n) for n in was.get(name, "").replace("-", "0").split()]
        new = [(n or 0.0, one) for n, one in now.get(name, [(0.0, 0.0)] * 2)]
        fallen = [a > b + max(1, one + .1) for a, (b, one) in zip(old, new)]
        results.add(fallen == [False, False],
                    f"{name}: {new[0][0]} % of lines, {new[1][0]} % of branches",
                    f"tests/coverage.txt: {was.get(name, 'not there')}")


def count(results):
    """What the tests have run: build/coverage.txt, and a result for each file"""
    now = figures()
    write(f"{BUILD}/coverage.txt", "".join(
        f"{name:40} {line:5.1f} {branch or '-':>5}\n"
        for name, ((line, _), (branch, _)) in sorted(now.items())))
    judge(read(f"{TOP}/tests/coverage.txt"), now, results)
