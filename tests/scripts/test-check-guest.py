#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/lab/check-guest makes of results, and its errors (TAP).

No guest boots here: the results are made up.
"""

import os
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
PROGRAM = f"{TOP}/scripts/lab/check-guest"
sys.path.insert(0, f"{TOP}/scripts")
from program import load                                        # noqa: E402

CHECK = load("check-guest")
from guestjob import Part                                       # noqa: E402
from watch import RunError, Thread                              # noqa: E402

CUNIT = """
     CUnit - A unit testing framework for C - Version 2.1-3
Suite: Read10
  Test: Simple ...passed
  Test: BeyondEol ...    [FAILED] READ10 successful but should have failed
FAILED
    1. test_read10_beyondeol.c:40  - CU_ASSERT_EQUAL(_r,0)
  Test: Async ...    [SKIPPED] Can't be done.
passed
  Test: Crash ...
Run Summary:    Type  Total
Elapsed time =    1.357 seconds
""".splitlines()


def command(name, status, *lines):
    return Part(name, status, list(lines), {}, {})


def verdicts(stock, ours, *known):
    """{name: verdict} of two lists of parts, each a command"""
    known = [CHECK.Known("sg3-utils", *k) for k in known]
    found = CHECK.compare("sg3-utils", CHECK.command_results(stock),
                          CHECK.command_results(ours), known)
    return {v.name: v.verdict for v in found}


def test_same():
    both = [command("inq", 0, "QEMU"), command("logs", 9, "no")]
    assert verdicts(both, both) == {"inq": "same", "logs": "same"}


def test_other_output():
    assert verdicts([command("inq", 0, "QEMU")],
                    [command("inq", 0, "QEMV")]) == {"inq": "failed"}


def test_other_status():
    assert verdicts([command("inq", 9, "x")],
                    [command("inq", 5, "x")]) == {"inq": "failed"}


def test_other_order():
    assert verdicts([command("luns", 0, "a", "b")],
                    [command("luns", 0, "b", "a")]) == {"luns": "failed"}


def test_listed():
    entry = ("in.", "^good$", "because")
    assert verdicts([command("inq", 1, "bad")], [command("inq", 0, "good")],
                    entry) == {"inq": "better"}


def test_listed_with_another_answer():
    entry = ("inq", "^good$", "because")
    found = verdicts([command("inq", 1, "bad")], [command("inq", 1, "worse")],
                     entry)
    assert found.pop("inq") == "failed"
    assert list(found.values()) == ["failed"]       # the entry


def test_listed_answer_that_stock_gives():
    """What stock prints as well doesn't explain a difference."""
    entry = ("inq", "^good$", "because")
    found = verdicts([command("inq", 0, "good", "x")],
                     [command("inq", 0, "good")], entry)
    assert found["inq"] == "failed"


def test_listed_but_worse():
    entry = ("inq", "bad", "because")
    found = verdicts([command("inq", 0, "good")], [command("inq", 1, "bad")],
                     entry)
    assert found["inq"] == "failed"


def test_entry_without_difference():
    both = [command("inq", 0, "good")]
    found = verdicts(both, both, ("inq", "good", "because"))
    assert sorted(found.values()) == ["failed", "same"]


def test_missing_on_ours():
    assert verdicts([command("a", 0), command("b", 0)],
                    [command("a", 0)])["b"] == "failed"


def test_missing_on_stock():
    assert verdicts([command("a", 0)],
                    [command("a", 0), command("b", 0)])["b"] == "failed"


def test_cunit():
    found = CHECK.cunit_results([command("Read10", 0, *CUNIT)])
    assert {n: r.verdict for n, r in found.items()} == {
        "Read10.Simple": "passed", "Read10.BeyondEol": "failed",
        "Read10.Async": "skipped", "Read10.Crash": "failed"}, found
    assert "successful" in found["Read10.BeyondEol"].why


def test_cunit_without_a_test():
    found = CHECK.cunit_results([command("Read10", 139, "dead")])
    assert found["Read10"].verdict == "failed"


def test_cunit_compared():
    stock = CHECK.cunit_results([command("Read10", 0, *CUNIT)])
    late = [s.replace("1.357", "9.999") for s in CUNIT]
    ours = CHECK.cunit_results([command("Read10", 0, *late)])
    found = [v.verdict for v in CHECK.compare("iscsi-test-cu", stock, ours, [])]
    assert sorted(found) == ["same", "same", "same", "skipped"], found


def load_part(name, seconds, blocks=(100 << 20, 1 << 20)):
    def threads(factor):
        return {i: Thread(f"IO iothread{i}", 0, 0, factor * s, 0)
                for i, s in enumerate(seconds)}
    return Part(name, 0, [],
                {"threads": threads(0), "blocks": {"disk": blocks[0]}},
                {"threads": threads(1), "blocks": {"disk": blocks[1]}})


def test_iothreads():
    machine = CHECK.MACHINES["fio"]
    assert not CHECK.judge_iothreads(machine, load_part("x", [1, 1, 1, 1]))
    wrong = CHECK.judge_iothreads(machine, load_part("x", [1, 1, 0, 1]))
    assert len(wrong) == 1 and "iothread2" in wrong[0], wrong
    assert CHECK.judge_iothreads(machine, load_part("x", [1, 1, 1]))


def test_loaded_part_missing():
    class Job:
        parts = [load_part("mkfs", [])]
    found = list(CHECK.judge_job("filesystem", CHECK.MACHINES["filesystem"],
                                 Job))
    assert [(v.verdict, v.name) for v in found] == [
        ("passed", "mkfs"), ("failed", "load")], found


def test_trim():
    assert not list(CHECK.judge_trim(load_part("trim", [])))
    full = load_part("trim", [], (100 << 20, 90 << 20))
    assert len(list(CHECK.judge_trim(full))) == 1


def known_file(text):
    jobs = CHECK.JOBS
    with tempfile.TemporaryDirectory() as CHECK.JOBS:
        with open(f"{CHECK.JOBS}/known-better", "w", encoding="utf-8") as f:
            f.write(text)
        try:
            return CHECK.known_better()
        except RunError as error:
            return str(error)
        finally:
            CHECK.JOBS = jobs


def test_known_better():
    assert len(CHECK.known_better()) > 0
    assert known_file("# x\n\nsg3-utils | a | b | c\n") == [
        CHECK.Known("sg3-utils", "a", "b", "c")]
    for text in ("sg3-utils | a | b\n", "sg3-utils | a | b | \n",
                 "nothing | a | b | c\n", "sg3-utils | ( | b | c\n"):
        error = known_file(text)
        assert isinstance(error, str) and "known-better:1" in error, error


def refused(*words, **env):
    done = subprocess.run([PROGRAM, *words], env={**os.environ, **env},
                          capture_output=True, text=True, timeout=120,
                          check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1, done
    return lines[0]


def test_missing_binaries():
    assert "/none is missing: run `make build`" in refused(
        "--on", "ours", QEMU="/none")
    assert "/none is missing: run `make stock`" in refused(
        "--on", "stock", STOCK="/none")


def main():
    if sys.argv[1:]:
        print(f"usage: {sys.argv[0]}    (TAP on standard output; boots no "
              "guest)")
        return 0 if sys.argv[1:] == ["--help"] else 2
    tests = [(n, f) for n, f in globals().items() if n.startswith("test_")]
    CHECK.say = lambda text="": None
    failed = 0
    for number, (name, function) in enumerate(tests, 1):
        try:
            function()
            print(f"ok {number} - {name}")
        except AssertionError as error:
            failed = 1
            print(f"not ok {number} - {name}")
            print(f"# line {error.__traceback__.tb_next.tb_lineno}: {error}"
                  .replace("\n", "\n# "))
    print(f"1..{len(tests)}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
