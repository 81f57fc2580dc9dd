#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of scripts/check/check-sanitizer (TAP): verdicts over canned logs, and whole
runs in which shell scripts play QEMU and the test programs."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
TOOL = os.path.join(TOP, "scripts", "check", "check-sanitizer")

OURS = "queue_run ../src/hw/scsi/virtio-scsi-vq.c:366:14"
OURS_TOO = "scsi_req_new ../src/hw/scsi/scsi-req.c:10:2"
BASE = "object_unref ../src/qom/object.c:1227:5"
BASE_TOO = "object_ref ../src/qom/object.c:1215:11"
LOOP = "aio_poll ../src/util/aio-posix.c:747:17"
COPY = "memcpy <null>"
IOV = "iov_from_buf_full ../src/util/iov.c:33:13"
BITOP = "set_bit ../src/include/qemu/bitops.h:40:5"
QTEST = "qtest_process_command ../src/system/qtest.c:636:9"
GUEST = "flatview_write_continue_step ../src/system/physmem.c:2947:9"
LOST = None

RULES = """# The base's own: a reason
data race: object_ref object_unref

# What a guest may do
guest RAM: qtest_process_command>flatview_*_continue_step *
"""


def tsan_stack(title, frames):
    lines = ["  %s:" % title]
    if frames is LOST:
        lines.append("    [failed to restore the stack]")
    else:
        lines += ["    #%d %s (qemu-system-x86_64+0x%x) (BuildId: 0)" % (i, f, i)
                  for i, f in enumerate(frames)]
    return "\n".join(lines) + "\n\n"


def race(one, two, kind="data race", location=None, creator=(), pid=7):
    """A log with one report."""
    bar = "=" * 18 + "\n"
    return (bar + "WARNING: ThreadSanitizer: %s (pid=%d)\n" % (kind, pid)
            + tsan_stack("Write of size 4 at 0x7b40 by thread T3", one)
            + tsan_stack("Previous read of size 4 at 0x7b40 by main thread"
                         " (mutexes: write M0)", two)
            + tsan_stack("As if synchronized via sleep", ["nanosleep <null>"])
            + (tsan_stack("Location is heap block of size 8 at 0x7b40 allocated"
                          " by main thread", location) if location else "")
            + tsan_stack("Thread T3 (tid=9, running) created by main thread at",
                         ["pthread_create <null>", *creator])
            + "SUMMARY: ThreadSanitizer: data race x.c:1:1 in f\n" + bar)


def asan_frames(*frames):
    return "".join("    #%d 0x55d0%d in %s\n" % (i, i, f)
                   for i, f in enumerate(frames)) + "\n"


MALLOC = "__interceptor_malloc (/b/qemu-system-x86_64+0x1) (BuildId: 0)"
G_MALLOC = "g_malloc (/lib/libglib-2.0.so.0+0x5a) (BuildId: 1)"


def leak(*frames):
    return ("\n" + "=" * 65 + "\n==5==ERROR: LeakSanitizer: detected memory"
            " leaks\n\nDirect leak of 42 byte(s) in 1 object(s) allocated from:"
            "\n" + asan_frames(MALLOC, G_MALLOC, *frames)
            + "SUMMARY: AddressSanitizer: 42 byte(s) leaked in 1 allocation(s)."
            "\n")


def use_after_free(*frames):
    return ("=" * 65 + "\n==5==ERROR: AddressSanitizer: heap-use-after-free on"
            " address 0x60 at pc 0x1 bp 0x2 sp 0x3\nREAD of size 8 at 0x60"
            " thread T0\n" + asan_frames(*frames) + "0x60 is located 0 bytes"
            " inside of 8-byte region\nfreed by thread T0 here:\n"
            + asan_frames(MALLOC) + "SUMMARY: AddressSanitizer: x\n"
            "==5==ABORTING\n")


def undefined(place, *frames):
    return (place + ": runtime error: load of misaligned address\n"
            + asan_frames(*frames) + "SUMMARY: UndefinedBehaviorSanitizer: x\n")


NOISE = ("==5==WARNING: ASan doesn't fully support makecontext/swapcontext"
         " functions and may produce false positives in some cases!\n")
NO_LEAK_CHECK = "==5==LeakSanitizer has encountered a fatal error.\n"
BARE = ("=" * 18 + "\nWARNING: ThreadSanitizer: data race (pid=7)\n"
        "  Write of size 4 at 0x7b40 by thread T3:\n"
        "    #0 <null> <null> (qemu-system-x86_64+0x1)\n\n" + "=" * 18 + "\n")
DEADLY = "ThreadSanitizer:DEADLYSIGNAL\n==7==ERROR: ThreadSanitizer: SEGV on x\n"

# name, sanitizer, logs, exit status, text that the output has
VERDICTS = [
    ("no report", "tsan", [""], 0, "0 reports"),
    ("a race in our files", "tsan", [race([OURS, LOOP], [LOOP])], 1, "1 ours"),
    ("... on the other side", "tsan", [race([LOOP], [OURS])], 1, "1 ours"),
    ("memcpy of ours", "tsan", [race([COPY, OURS], [LOOP])], 1, "1 ours"),
    ("an inline helper of ours", "tsan", [race([BITOP, OURS], [LOOP])], 1,
     "1 ours"),
    ("memcpy of the base for us", "tsan", [race([COPY, IOV, OURS], [LOOP])], 1,
     "1 caller"),
    ("a race of the base", "tsan", [race([BASE, LOOP], [BASE_TOO, LOOP])], 0,
     "1 base"),
    ("... called from ours, by a rule", "tsan",
     [race([BASE, OURS], [BASE_TOO, LOOP])], 0, "1 caller"),
    ("... the other way round", "tsan",
     [race([BASE_TOO, LOOP], [BASE, OURS])], 0, "1 caller"),
    ("... of another kind", "tsan",
     [race([BASE, OURS], [BASE_TOO], kind="heap-use-after-free")], 1,
     "heap-use-after-free"),
    ("... called from ours, without a rule", "tsan",
     [race([BASE, OURS], [BASE, LOOP])], 1, "object_unref / object_unref"),
    ("... that frees memory", "tsan",
     [race(["free <null>", BASE, OURS], [BASE_TOO, LOOP])], 1, "1 to be fixed"),
    ("a rule is not for our own access", "tsan",
     [race(["object_ref ../hw/scsi/a.c:1:1"], [BASE])], 1, "1 ours"),
    ("our memory, raced for by the base", "tsan",
     [race([LOOP], [IOV], location=["malloc <null>", OURS])], 1, "1 caller"),
    ("a coroutine that our code needed first", "tsan",
     [race([LOOP], [IOV], creator=[OURS])], 0, "1 base"),
    ("guest RAM against qtest", "tsan",
     [race([COPY, GUEST, QTEST], [COPY, OURS])], 0, "0 to be fixed"),
    ("guest RAM, but not qtest", "tsan",
     [race([COPY, GUEST, LOOP], [COPY, OURS])], 1, "1 ours"),
    ("a lost stack of the base's", "tsan", [race([BASE], LOST)], 0, "1 unknown"),
    ("a lost stack and ours", "tsan", [race([BASE, OURS], LOST)], 1, "1 caller"),
    ("one race in two processes", "tsan",
     [race([OURS, LOOP], [LOOP]), race([OURS, LOOP], [LOOP], pid=8)], 1,
     "1 reports"),
    ("two races", "tsan", [race([OURS], [LOOP]) + race([OURS_TOO], [LOOP])], 1,
     "2 to be fixed"),
    ("no names", "tsan", [BARE], 1, "llvm-symbolizer"),
    ("a crash of TSan", "tsan", [DEADLY], 1, "DEADLYSIGNAL"),
    ("ASan's noise", "asan", [NOISE], 0, "0 reports"),
    ("use after free in the base", "asan", [use_after_free(LOOP)], 1,
     "heap-use-after-free: aio_poll"),
    ("use after free in ours", "asan", [NOISE + use_after_free(OURS)], 1,
     "1 ours"),
    ("a leak of ours", "asan", [leak(OURS)], 1, "Direct leak: queue_run"),
    ("a leak of the base's", "asan", [leak(LOOP)], 1, "1 base"),
    ("no leak check", "asan", [NO_LEAK_CHECK], 1, "has encountered"),
    ("undefined behaviour of ours", "asan",
     [undefined("../src/hw/scsi/scsi-req.c:1:2", OURS_TOO)], 1, "misaligned"),
    ("... of the base's", "asan",
     [undefined("../src/util/aio-posix.c:1:2", LOOP)], 0, "1 base"),
]

BAD_RULES = [
    ("a rule without a reason", "data race: f g\n", "no reason"),
    ("a blank line ends a reason", "# why\n\ndata race: f g\n", "no reason"),
    ("half a rule", "# why\ndata race: f\n", "not KIND"),
]


class Tests:
    def __init__(self):
        self.count = 0
        self.failed = False

    def result(self, good, name, output=""):
        self.count += 1
        print("%sok %d - %s" % ("" if good else "not ", self.count, name))
        if not good:
            self.failed = True
            for line in output.splitlines():
                print("# " + line)

    def expect(self, name, command, status, text, last=None):
        run = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=300,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             universal_newlines=True)
        lines = run.stdout.splitlines()
        good = run.returncode == status and text in run.stdout and (
            last is None or (lines and lines[-1] == last))
        self.result(good, name, "status %d\n%s" % (run.returncode, run.stdout))


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)


def test_verdicts(tests, tmp):
    rules = os.path.join(tmp, "rules")
    write(rules, RULES)
    for name, sanitizer, logs, status, text in VERDICTS:
        paths = []
        for number, log in enumerate(logs):
            paths.append(os.path.join(tmp, "log.%d" % number))
            write(paths[-1], log)
        tests.expect(name, [TOOL, sanitizer, "--rules", rules, "--parse"] + paths,
                     status, text)
    for name, bad, text in BAD_RULES:
        write(rules, bad)
        tests.expect(name, [TOOL, "tsan", "--rules", rules, "--parse",
                            os.devnull], 1, text)


# A test program: two scenarios; QEMU is asked to leave the report that stands
# beside its binary. $STRESS_OPS is what it says to have done.
STRESS = """#!/bin/sh
all="$*"
case $all in
*-l*) printf '/x/virtio-scsi-stress/one\\n/x/virtio-scsi-stress/two\\n'; exit ;;
esac
"$QTEST_QEMU_BINARY"
echo 1..1
echo "# ops one seed=$STRESS_SEED commands=${FAKE_OPS-$STRESS_OPS} kicks=5"
echo "${FAKE_RESULT-ok 1 the test}"
"""
QOS = """#!/bin/sh
case $* in
*-l*) echo ${FAKE_PATH-/x/virtio-scsi-mq/tmf/reset}; exit ;;
esac
echo 1..1
echo 'ok 1 reset'
"""
DATA = """#!/bin/sh
echo 1..1
echo 'ok 1 data'
"""
QEMU = """#!/bin/sh
[ "$1" != --version ] || exit 0
log=$(echo "$TSAN_OPTIONS" | sed "s/.*log_path='\\([^']*\\)'.*/\\1/")
cat "$0.report" > "$log.$$"
"""


# With a real ASan and UBSan: their logs, and that the canaries are heard
FAULTY = """
#include <limits.h>
#include <stdlib.h>
#include <string.h>
int main(int argc, char **argv)
{
    const char *fault = getenv("FAKE_FAULT") ? getenv("FAKE_FAULT") : "";
    volatile int big = INT_MAX;
    char *volatile lost = malloc(42);

    if (!strcmp(fault, "undefined")) {
        big = big + 1;
    }
    free(lost);
    if (!strcmp(fault, "use")) {
        big = lost[1];
    }
    for (int i = 0; i < 10 && !strcmp(fault, "leak"); i++) {
        lost = malloc(43);
        lost = NULL;
    }
    return 0;
}
"""


def make_tree(top):
    """The scripts, with programs that only play a part."""
    for name in ("scripts", "tests/sanitizers"):
        shutil.copytree(os.path.join(TOP, name), os.path.join(top, name))
    write(os.path.join(top, "tests/sanitizers/tsan-base.rules"), RULES)
    build = os.path.join(top, "build")
    obj = os.path.join(build, "obj")
    programs = {"virtio-scsi-stress": STRESS, "qos-test": QOS,
                "virtio-scsi-data-test": DATA}
    tests = []
    for name, text in programs.items():
        path = os.path.join(obj, "tests/qtest", name)
        write(path, text, 0o755)
        tests.append({"name": "qtest-x86_64/" + name, "cmd": [path, "--tap"],
                      "workdir": obj, "env": {}, "timeout": 10})
    write(os.path.join(obj, "meson-info/intro-tests.json"), json.dumps(tests))
    write(os.path.join(obj, "qemu-system-x86_64"), "")
    os.symlink("obj/qemu-system-x86_64", os.path.join(build, "qemu-system-x86_64"))
    os.makedirs(os.path.join(obj, "pyvenv/bin"))
    os.symlink(shutil.which("meson"), os.path.join(obj, "pyvenv/bin/meson"))
    for name in ("tsan", "stock-tsan"):
        write(os.path.join(build, name, "qemu-system-x86_64"), QEMU, 0o755)


def test_runs(tests, tmp):
    top = os.path.join(tmp, "tree")
    make_tree(top)
    tool = [os.path.join(top, "scripts/check/check-sanitizer"), "tsan"]
    binary = os.path.join(top, "build/%s/qemu-system-x86_64")

    def reports(ours, stock):
        write(binary % "tsan" + ".report", ours)
        write(binary % "stock-tsan" + ".report", stock)

    reports("", race([OURS], [LOOP]))
    tests.expect("a run without reports of ours", tool, 0, "ok - canary",
                 "4 passed, 0 failed, 0 skipped")
    tests.expect("two scenarios of 77 operations", tool + ["--ops", "77"], 0,
                 " 77 operations", "4 passed, 0 failed, 0 skipped")
    tests.expect("the list", tool + ["--list"], 0, "one\ntwo\nqos-test")
    reports(race([BASE, LOOP], [BASE_TOO, OURS]), race([OURS], [LOOP]))
    tests.expect("a rule is used", tool, 0, "1 reports: 1 caller",
                 "4 passed, 0 failed, 0 skipped")
    reports(race([OURS], [LOOP]), race([OURS], [LOOP]))
    tests.expect("a race of ours in both scenarios", tool, 1, "(as above)",
                 "2 passed, 2 failed, 0 skipped")
    tests.expect("one scenario", tool + ["--only", "two"], 1, "tsan two",
                 "0 passed, 1 failed, 0 skipped")
    reports("", "")
    tests.expect("stock without its race", tool, 1, "NOT SEEN",
                 "3 passed, 1 failed, 0 skipped")
    tests.expect("without stock", tool + ["--no-stock"], 0, "",
                 "3 passed, 0 failed, 0 skipped")
    for name, setting, text, last in (
            ("no operation was done", "FAKE_OPS=0", "no operations",
             "1 passed, 2 failed, 0 skipped"),
            ("a test fails", "FAKE_RESULT=not ok 1 it", "not ok: one it",
             "1 passed, 2 failed, 0 skipped"),
            ("a test skips", "FAKE_RESULT=ok 1 it # SKIP why", "skipped:",
             "1 passed, 0 failed, 2 skipped")):
        status = 0 if "skips" in name else 1
        tests.expect(name, ["env", setting] + tool + ["--no-stock"], status,
                     text, last)
    tests.expect("no path for qos-test", ["env", "FAKE_PATH="] + tool +
                 ["--no-stock"], 1, "has no such path",
                 "2 passed, 1 failed, 0 skipped")
    tests.expect("no such scenario", tool + ["--only", "three"], 1,
                 "check-sanitizer: no scenario")
    os.unlink(binary % "tsan")
    tests.expect("no build", tool, 1, "check-sanitizer: no build/tsan/")


def test_asan(tests, tmp):
    top = os.path.join(tmp, "tree")
    write(os.path.join(top, "hw/scsi/faulty.c"), FAULTY)
    os.makedirs(os.path.join(top, "build/asan"))
    subprocess.run(["clang", "-g", "-fsanitize=address,undefined", "-o",
                    "build/asan/qemu-system-x86_64", "hw/scsi/faulty.c"],
                   cwd=top, check=True)
    tool = [os.path.join(top, "scripts/check/check-sanitizer"), "asan"]
    tests.expect("ASan finds nothing, but the canaries", tool, 0,
                 "undefined behaviour in QEMU", "6 passed, 0 failed, 0 skipped")
    for fault, text, last in (
            ("leak", "Direct leak: main", "4 passed, 2 failed, 0 skipped"),
            # that QEMU doesn't live to tell of its leaks
            ("use", "heap-use-after-free: main", "3 passed, 3 failed, 0 skipped"),
            ("undefined", "signed integer", "4 passed, 2 failed, 0 skipped")):
        tests.expect("ASan: " + fault, ["env", "FAKE_FAULT=" + fault, *tool], 1,
                     text, last)


def main():
    if sys.argv[1:] == ["--help"]:
        print("usage: %s    (TAP on standard output)" % sys.argv[0])
        return 0
    tests = Tests()
    with tempfile.TemporaryDirectory() as tmp:
        test_verdicts(tests, tmp)
        test_runs(tests, tmp)
        if shutil.which("clang"):
            test_asan(tests, tmp)
        else:
            tests.result(True, "ASan # SKIP no clang")
        tests.expect("a log that is not there", [
            TOOL, "asan", "--parse", os.path.join(tmp, "none")], 1,
            "check-sanitizer: ")
    tests.expect("--help", [TOOL, "--help"], 0, "usage:")
    tests.expect("no argument", [TOOL], 2, "usage:")
    print("1..%d" % tests.count)
    return 1 if tests.failed else 0


if __name__ == "__main__":
    sys.exit(main())
