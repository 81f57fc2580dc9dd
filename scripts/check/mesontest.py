# SPDX-License-Identifier: GPL-2.0-or-later
"""Test programs that print TAP, run and counted by `meson test`.

How to run those of QEMU is in the build's own list. The chosen ones become
tests of a meson project that consists of nothing else, as some are run in other
ways, too, and some aren't QEMU's.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess

from common import BUILD, TOP, Problem, read, run, write

LOGS = os.path.join(BUILD, "check")
SHOWN_LINES = 60
LEFT_OUT = "by request (-s option)"     # what GLib says of it

# Hang guard, generous for slow machines and sanitizers: this many times the
# limit that QEMU has set, and never less than MIN_TIMEOUT seconds.
TIMEOUT_FACTOR = 10
MIN_TIMEOUT = 600


@dataclasses.dataclass
class Test:
    """A program that prints TAP."""
    name: str
    command: list
    env: dict = dataclasses.field(default_factory=dict)
    cwd: str = TOP
    timeout: float = MIN_TIMEOUT        # a hang guard
    alone: bool = False                 # while no other runs
    suite: str = "all"

    def declaration(self):
        """In meson's language."""
        def quote(text):
            return "'%s'" % re.sub(r"(['\\])", r"\\\1", text)

        words = [f"{key}={value}" for key, value in self.env.items()]
        return (f"test({quote(self.name)}, find_program('env'), args: ["
                + ", ".join(map(quote, words + self.command))
                + f"], workdir: {quote(self.cwd)}, protocol: 'tap', suite: "
                f"'{self.suite}', timeout: {self.timeout:.0f}, is_parallel: "
                f"{str(not self.alone).lower()})\n")


RESULT = re.compile(r"^(not )?ok\b *\d* *(?:- )?(.*?)"
                    r"(?: *# *(SKIP)\S* *(.*))?$", re.I | re.M)

# What ends a test program, which may say much more after it
WHY = re.compile(r"ERROR:|[Aa]ssertion|Bail out|^not ok|Sanitizer:")


class Outcome:
    """What one program has said and done; a program that says nothing, ends
    early, crashes or hangs has failed."""

    def __init__(self, log):
        self.name = log["name"].rpartition(" / ")[2]    # "SUITE / NAME"
        self.passed = 0
        self.failed = []
        self.skipped = []               # "which: why"
        self.output = (log["stdout"] or "") + log.get("stderr", "")
        for bad, name, skip, why in RESULT.findall(log["stdout"] or ""):
            if bad:
                self.failed.append(name)
            elif not skip:
                self.passed += 1
            elif why != LEFT_OUT:
                self.skipped.append(f"{name}: {why or 'no reason given'}")
        self.judge(log)

    def judge(self, log):
        """What the single results don't tell."""
        status = log["returncode"]
        why = re.search(r"^1\.\.0\s*#\s*skip\S*\s*(.*)", self.output,
                        re.I | re.M)
        if log["result"] == "TIMEOUT":
            self.failed.append(f"(hung: stopped after {log['duration']:.0f} s)")
        elif not (self.passed or self.failed or self.skipped):
            if why and status in (0, 77):
                self.skipped.append(f"all: {why[1] or 'no reason given'}")
            else:
                self.failed.append(f"(no test result, exit status {status})")
        elif log["result"] not in ("OK", "SKIP") and not self.failed:
            self.failed.append(f"(incomplete, exit status {status})")

    def add_to(self, results):
        results.passed += self.passed
        results.failed += [f"{self.name} {test}" for test in self.failed]
        results.skipped += [f"{self.name} {skip}" for skip in self.skipped]
        self.show_failures()

    def show_failures(self):
        for test in self.failed:
            print(f"      not ok: {self.name} {test}")
        if not self.failed:
            return
        lines = self.output.splitlines()
        why = [s for s in lines[:-SHOWN_LINES] if WHY.search(s)][-10:]
        for line in why + lines[-SHOWN_LINES:]:
            print(f"      | {line}")


class Build:
    """The build that build/qemu-system-x86_64 points to: obj, or full; or a
    copy of it."""

    def __init__(self, copy=None):
        binary = os.path.join(BUILD, "qemu-system-x86_64")
        if not os.path.exists(binary):
            raise Problem("no build/qemu-system-x86_64: run make first")
        real = os.path.dirname(os.path.realpath(binary))
        self.obj = copy or real
        path = os.path.join(self.obj, "meson-info", "intro-tests.json")
        text = read(path).replace(real + "/", self.obj + "/")
        if not text:
            raise Problem(f"{path} is missing: run make first")
        self.tests = {test["name"]: test for test in json.loads(text)}

    def test(self, name, label=None, args=(), env=(), timeout=MIN_TIMEOUT):
        """One of the build's list, as it is or in another way."""
        test = self.tests.get(name)
        if not test:
            raise Problem(f"the build has no test {name}")
        if not os.path.exists(test["cmd"][0]):
            raise Problem(f"{test['cmd'][0]} was not built")
        return Test(label or name.rpartition("/")[2], test["cmd"] + list(args),
                    {**test["env"], **dict(env)}, test["workdir"] or self.obj,
                    max(timeout, TIMEOUT_FACTOR * test["timeout"]))

    def qtest(self, name, *args, **how):
        return self.test("qtest-x86_64/" + name, *args, **how)

    def paths(self, name):
        """The test paths of a qtest, as the program itself lists them."""
        test = self.qtest(name)
        said = run(test.command[0], "-l", cwd=test.cwd, env=test.env)
        return [p for p in said.splitlines() if p.startswith("/")]

    def qos(self, label, wanted, **how):
        """qos-test with those paths that wanted() accepts."""
        paths = self.paths("qos-test")
        others = [p for p in paths if not wanted(p)]
        if len(others) == len(paths):
            raise Problem("qos-test has no such path")
        # with several -p GLib prints a plan for each
        return self.qtest("qos-test", label,
                          [a for p in others for a in ("-s", p)], **how)

    def run(self, tests, where, *args):
        """Run Tests, of which a project is made at @where."""
        meson = os.path.join(self.obj, "pyvenv", "bin", "meson")
        shutil.rmtree(where, ignore_errors=True)
        os.makedirs(where)
        write(os.path.join(where, "meson.build"), "project('check')\n"
              + "".join(test.declaration() for test in tests))
        obj = os.path.join(where, "obj")
        run(meson, "setup", obj, where)
        with subprocess.Popen(
                [meson, "test", "-C", obj, "--no-rebuild", *args], text=True,
                errors="replace", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            # without its complaints about lines that are no TAP
            for line in process.stdout:
                if re.match(r" *\d+/\d+ ", line):
                    print("  " + line.rstrip(), flush=True)
        try:
            with open(f"{obj}/meson-logs/testlog.json",
                      encoding="utf-8") as file:
                return [Outcome(json.loads(line)) for line in file]
        except (OSError, ValueError) as error:
            raise Problem(f"meson test gave no results: {error}") from None
