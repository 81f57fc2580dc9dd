# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU's qemu_test wants of the Python module pycotap, which Debian's QEMU
source leaves out: unittest's results in TAP, one line when a test has ended."""

import enum
import unittest

LogMode = enum.Enum("LogMode", "LogToError")


class TAPTestResult(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.passed = self.lines = 0

    def line(self, verdict, test, comment=""):
        self.lines += 1
        print(f"{verdict} {self.lines} - {test.id()}{comment}", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1
        self.line("ok", test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.line("ok", test, f" # SKIP {reason}")

    def failed(self, test, error):
        """A failed assertion tells by its message what was wrong."""
        self.line("not ok", test)
        text = str(error[1]) if isinstance(error[1], AssertionError) else \
            self._exc_info_to_string(error, test)
        print("".join(f"#   {s}\n" for s in text.splitlines()), end="",
              flush=True)

    def addError(self, test, err):
        super().addError(test, err)
        self.failed(test, err)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.failed(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.failed(subtest, err)
        else:
            self.passed += 1
            self.line("ok", subtest)


class TAPTestRunner:
    def __init__(self, message_log=None, test_output_log=None):
        del message_log, test_output_log    # all goes where the results go

    @staticmethod
    def run(test):
        result = TAPTestResult()
        test(result)
        print(f"1..{result.lines}", flush=True)
        return result
