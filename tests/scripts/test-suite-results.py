#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What test_virtio_scsi_suites.py makes of what others' tests print (TAP).

No guest boots here: the results are made up.
"""

import os
import sys
import tempfile
import types
import unittest

sys.dont_write_bytecode = True
TOP = os.path.abspath(f"{__file__}/../../..")
sys.path[:0] = [f"{TOP}/tests/functional", f"{TOP}/build/base/python"]
import pycotap                                              # noqa: E402
from suite_results import (Known, Part, command_results,    # noqa: E402
                           compare, cunit_results, failures, known_better)
from virtio_scsi_guest import GuestMachine                  # noqa: E402

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
SUITES = ("sg3-utils", "iscsi-test-cu")


class Commands(unittest.TestCase):
    def expect(self, stock, ours, verdicts, *known):
        """Verdicts in order, where parts are {name: (status, line...)}."""
        both = [command_results([Part(name, status, lines) for name,
                                 (status, *lines) in parts.items()])
                for parts in (stock, ours)]
        found = compare("sg3-utils", *both,
                        [Known("sg3-utils", *k, "because") for k in known])
        self.assertEqual(" ".join(f[0] for f in found), verdicts)

    def test_same(self):
        both = {"inq": (0, "QEMU"), "logs": (9, "no")}
        self.expect(both, both, "same same")

    def test_other_output(self):
        self.expect({"a": (0, "x")}, {"a": (0, "y")}, "failed")

    def test_other_status(self):
        self.expect({"a": (9, "x")}, {"a": (5, "x")}, "failed")

    def test_other_order(self):
        self.expect({"a": (0, "x", "y")}, {"a": (0, "y", "x")}, "failed")

    def test_missing(self):
        both = {"a": (0,), "b": (0,)}
        self.expect(both, {"a": (0,)}, "same failed")
        self.expect({"a": (0,)}, both, "same failed")

    def test_listed(self):
        self.expect({"inq": (1, "bad")}, {"inq": (0, "good")}, "better",
                    ("in.", "^good$"))

    def test_listed_for_another_test(self):
        self.expect({"inq": (1, "bad")}, {"inq": (0, "good")}, "failed failed",
                    ("in", "^good$"))

    def test_listed_with_another_answer(self):
        self.expect({"inq": (1, "bad")}, {"inq": (1, "worse")},
                    "failed failed", ("inq", "^good$"))

    def test_listed_answer_that_stock_gives(self):
        """What stock prints as well doesn't explain a difference."""
        self.expect({"inq": (0, "good", "x")}, {"inq": (0, "good")},
                    "failed failed", ("inq", "^good$"))

    def test_listed_but_worse(self):
        self.expect({"inq": (0, "good")}, {"inq": (1, "bad")}, "failed failed",
                    ("inq", "bad"))

    def test_entry_without_difference(self):
        both = {"inq": (0, "good")}
        self.expect(both, both, "same failed", ("inq", "good"))


class Cunit(unittest.TestCase):
    def test_verdicts(self):
        found = cunit_results([Part("Read10", 0, CUNIT)])
        self.assertEqual({n: r.verdict for n, r in found.items()}, {
            "Read10.Simple": "passed", "Read10.BeyondEol": "failed",
            "Read10.Async": "skipped", "Read10.Crash": "failed"})
        self.assertIn("successful", found["Read10.BeyondEol"].why)

    def test_no_test(self):
        found = cunit_results([Part("Read10", 139, ["dead"])])
        self.assertEqual(found["Read10"].verdict, "failed")

    def test_compared(self):
        late = [s.replace("1.357", "9.999") for s in CUNIT]
        stock, ours = (cunit_results([Part("Read10", 0, lines)])
                       for lines in (CUNIT, late))
        found = [f[0] for f in compare("iscsi-test-cu", stock, ours, [])]
        self.assertEqual(found, ["same", "same", "skipped", "same"])


class Idle(unittest.TestCase):
    def expect(self, seconds, interrupts, *idle):
        """What is said after two threads and queues did that."""
        later = types.SimpleNamespace(work=lambda: (
            {f"io{i}": s for i, s in enumerate(seconds)}, interrupts))
        found = list(GuestMachine.idle_since(
            later, ({"io0": 0, "io1": 0}, [0, 0]), 2))
        self.assertEqual([s[:len(i)] for s, i in zip(found, idle)], [*idle])
        self.assertEqual(len(found), len(idle))

    def test_all_work(self):
        self.expect([1, 1], [7, 1])

    def test_thread(self):
        self.expect([1, 0], [7, 7], "io1 did no work")
        self.expect([1, 0.04], [7, 7], "io1 did no work")

    def test_queue(self):
        self.expect([1, 1], [0, 7], "queue 0 never")

    def test_fewer(self):
        self.expect([1], [7, 7], "1 IOThreads")
        self.expect([1, 1], [7], "2 IOThreads, 1 queue")


class Failures(unittest.TestCase):
    def expect(self, verdicts, *known):
        found = failures("iscsi-test-cu", cunit_results([Part("Read10", 0,
                         CUNIT)]),
                         [Known("iscsi-test-cu", *k, "because") for k in known])
        self.assertEqual(" ".join(f[0] for f in found), verdicts)

    def test_unknown(self):
        self.expect("same failed skipped failed")

    def test_known(self):
        self.expect("same known skipped known", (r".*\.BeyondEol", "but should"),
                    (r"Read10\.Crash", ""))

    def test_other_reason(self):
        self.expect("same failed skipped known failed",
                    (r"Read10\.BeyondEol", "^nothing"),
                    (r"Read10\.Crash", ""))

    def test_fails_no_more(self):
        self.expect("same failed skipped failed failed",
                    (r"Read10\.Simple", ""))


class KnownBetter(unittest.TestCase):
    def known(self, text):
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            return known_better(f.name, SUITES)

    def test_ours(self):
        for name in ("known-better", "standard"):
            self.assertTrue(known_better(
                f"{TOP}/tests/functional/virtio_scsi_suites/{name}", SUITES))

    def test_entry(self):
        self.assertEqual(self.known("# x\n\nsg3-utils | a | b | c\n"),
                         [Known("sg3-utils", "a", "b", "c")])

    def test_errors(self):
        for text in ("sg3-utils | a | b\n", "sg3-utils | a | b | \n",
                     "nothing | a | b | c\n", "sg3-utils | ( | b | c\n"):
            with self.assertRaisesRegex(ValueError, ":1: "):
                self.known(text)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(f"usage: {sys.argv[0]}    (TAP; boots no guest)")
        sys.exit(sys.argv[1:] != ["--help"])
    result = pycotap.TAPTestRunner.run(
        unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"]))
    sys.exit(not result.wasSuccessful())
