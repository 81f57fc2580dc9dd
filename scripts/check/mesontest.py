# SPDX-License-Identifier: GPL-2.0-or-later
"""Test programs that print TAP, run and counted by `meson test`.

How to run those of QEMU is in the build's own list. The chosen ones become tests
of a meson project that consists of nothing else, as some are run in other ways,
too, and some aren't QEMU's.
"""

import collections
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

TOP = os.path.abspath(f"{__file__}/../../..")
BUILD = os.path.join(TOP, "build")
LOGS = os.path.join(BUILD, "check")
SHOWN_LINES = 60
LEFT_OUT = "by request (-s option)"     # what GLib says of it

# Hang guard, generous for slow machines and sanitizers: this many times the
# limit that QEMU has set, and never less than MIN_TIMEOUT seconds.
TIMEOUT_FACTOR = 10
MIN_TIMEOUT = 600


class Problem(Exception):
    """Something to tell the user in one line."""


class Test:
    """A program that prints TAP."""

    def __init__(self, name, command, env=(), cwd=TOP, timeout=MIN_TIMEOUT,
                 alone=False):
        self.name = name
        self.command = command
        self.env = dict(env)
        self.cwd = cwd
        self.timeout = timeout          # a hang guard
        self.alone = alone              # while no other runs
        self.suite = "all"

    def declaration(self):
        """In meson's language."""
        def quote(text):
            return "'%s'" % re.sub(r"(['\\])", r"\\\1", text)

        words = ["%s=%s" % item for item in self.env.items()] + self.command
        return ("test(%s, find_program('env'), args: [%s], workdir: %s, "
                "protocol: 'tap', suite: '%s', timeout: %d, is_parallel: %s)\n"
                % (quote(self.name), ", ".join(map(quote, words)),
                   quote(self.cwd), self.suite, self.timeout,
                   str(not self.alone).lower()))


class Outcome:
    """What one program has said and done; a program that says nothing, ends
    early, crashes or hangs has failed."""

    def __init__(self, name, log, cases):
        self.name = name
        self.passed = 0
        self.failed = []
        self.skipped = []               # (which, why)
        self.output = (log["stdout"] or "") + log.get("stderr", "")
        for case in cases:
            self.count(case)
        self.judge(log)

    def count(self, case):
        name = case.get("name").partition(" ")[2] or case.get("name")
        why = case.findtext("system-out") or "no reason given"
        if case.find("skipped") is not None:
            if why != LEFT_OUT:
                self.skipped.append((name, why))
        elif len(case.findall("failure") + case.findall("error")):
            self.failed.append(name)
        else:
            self.passed += 1

    def judge(self, log):
        """What the single results don't tell."""
        status = log["returncode"]
        ended = ("killed by signal %d" % -status if status < 0
                 else "exit status %d" % status)
        nothing = not (self.passed or self.failed or self.skipped)
        why = re.search(r"^1\.\.0\s*#\s*skip\S*\s*(.*)", self.output, re.I | re.M)
        if log["result"] == "TIMEOUT":
            self.failed.append("(hung: stopped after %d s)" % log["duration"])
        elif nothing and why and status in (0, 77):
            self.skipped.append(("all", why.group(1) or "no reason given"))
        elif nothing:
            self.failed.append("(no test result, %s)" % ended)
        elif log["result"] not in ("OK", "SKIP") and not self.failed:
            self.failed.append("(incomplete, %s)" % ended)

    def add_to(self, results):
        results.passed += self.passed
        results.failed += ["%s %s" % (self.name, test) for test in self.failed]
        results.skipped += ["%s %s: %s" % (self.name, *skip)
                            for skip in self.skipped]
        self.show_failures()

    def show_failures(self):
        for test in self.failed:
            print("      not ok: %s %s" % (self.name, test))
        if self.failed:
            for line in self.output.splitlines()[-SHOWN_LINES:]:
                print("      | " + line)


class Build:
    """The build that build/qemu-system-x86_64 points to: obj, or full."""

    def __init__(self):
        binary = os.path.join(BUILD, "qemu-system-x86_64")
        if not os.path.exists(binary):
            raise Problem("no build/qemu-system-x86_64: run make first")
        self.obj = os.path.dirname(os.path.realpath(binary))
        path = os.path.join(self.obj, "meson-info", "intro-tests.json")
        try:
            with open(path) as file:
                self.tests = {test["name"]: test for test in json.load(file)}
        except FileNotFoundError:
            raise Problem("%s is missing: run make first" % path) from None

    def test(self, name, label=None, args=(), env=(), timeout=MIN_TIMEOUT):
        """One of the build's list, as it is or in another way."""
        test = self.tests.get(name)
        if not test:
            raise Problem("the build has no test %s" % name)
        if not os.path.exists(test["cmd"][0]):
            raise Problem("%s was not built" % test["cmd"][0])
        return Test(label or name.rpartition("/")[2], test["cmd"] + list(args),
                    {**test["env"], **dict(env)}, test["workdir"] or self.obj,
                    max(timeout, TIMEOUT_FACTOR * test["timeout"]))

    def qtest(self, name, *args, **how):
        return self.test("qtest-x86_64/" + name, *args, **how)

    def paths(self, name):
        """The test paths of a qtest, as the program itself lists them."""
        test = self.qtest(name)
        done = subprocess.run(
            test.command[:1] + ["-l"], cwd=test.cwd, text=True,
            env=dict(os.environ, **test.env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            raise Problem("%s -l failed: %s" % (name, done.stderr.strip()[-200:]))
        return [p for p in done.stdout.splitlines() if p.startswith("/")]

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
        with open(os.path.join(where, "meson.build"), "w") as file:
            file.write("project('check')\n" + "".join(
                test.declaration() for test in tests))
        obj = os.path.join(where, "obj")
        done = subprocess.run([meson, "setup", obj, where], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise Problem("meson setup failed:\n" + done.stdout[-2000:])
        with subprocess.Popen(
                [meson, "test", "-C", obj, "--no-rebuild", *args], text=True,
                errors="replace", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            # without its complaints about lines that are no TAP
            for line in process.stdout:
                if re.match(r" *\d+/\d+ ", line):
                    print("  " + line.rstrip(), flush=True)
        return outcomes(os.path.join(obj, "meson-logs", "testlog"))


def outcomes(log):
    """What meson has written down."""
    cases = collections.defaultdict(list)
    try:
        for case in ET.parse(log + ".junit.xml").iter("testcase"):
            cases[case.get("classname").partition(".")[2]].append(case)
        with open(log + ".json") as file:
            tests = [json.loads(line) for line in file]
    except (OSError, ET.ParseError) as error:
        raise Problem("meson test gave no results: %s" % error) from None
    return [Outcome(test["name"].rpartition(" / ")[2], test, cases[test["name"]])
            for test in tests]          # "SUITE / NAME", or just the name
