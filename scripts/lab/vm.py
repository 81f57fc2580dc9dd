# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of ours that drive a Linux guest: where QEMU and the guest are, Vm,
and Checks, which counts what passed and repeats what a fault of multi-threaded
TCG spoiled.
"""

import os
import signal
import sys
import tempfile
import traceback
import unittest

sys.dont_write_bytecode = True      # leaves no scripts/__pycache__ behind
HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.abspath(f"{HERE}/../..")
sys.path.insert(0, f"{HERE}/..")
sys.path.insert(1, f"{TOP}/build/base/python")
sys.path.insert(2, f"{TOP}/tests/functional")

from program import load
from watch import (EmulatorFault, RunError, iothread_times, read_threads,
                   say)
from guest_shell import (ATTEMPTS, FAULT, STALL, GuestShell, expect, fio_verified,
                         wait_for)
from virtio_scsi_guest import BOOT_LIMIT, GuestMachine
from qemu.qmp import QMPError

Skip = unittest.SkipTest
OURS = os.environ.get("QEMU") or f"{TOP}/build/qemu-system-x86_64"
STOCK = os.environ.get("STOCK") or f"{TOP}/build/stock/qemu-system-x86_64"
GUEST = os.environ.get("GUEST") or f"{TOP}/build/guest/current"
os.environ["QEMU_TEST_GUEST"] = GUEST


def need_guest():
    """Make the guest if there is none, or check the one that GUEST= names."""
    load("run").get_guest()


def need_binary(path, target):
    if not os.access(path, os.X_OK):
        raise RunError(f"{path} is missing: run `make {target}`")


class Vm(GuestMachine):
    """One whose logs go with it."""

    def __init__(self, name, args, qemu=OURS, vcpus=4):
        self.logs = tempfile.TemporaryDirectory(prefix=f"vm-{name}-")
        super().__init__(qemu, name, args, self.logs.name, vcpus)


# ------------------------------------------------------------------ counting

class Checks:
    """Runs tests one by one and counts them, TAP line by TAP line."""

    def __init__(self, only=None):
        self.only = only
        self.passed = self.failed = self.skipped = 0

    def wanted(self, name):
        return not self.only or self.only in name

    def line(self, verdict, name, comment=""):
        number = self.passed + self.failed + self.skipped
        say(f"{verdict} {number} - {name}{comment}")

    def skip(self, name, why):
        self.skipped += 1
        self.line("ok", name, f" # SKIP {why}")

    def case(self, name, function, *args):
        """Run one test; True if it passed."""
        if not self.wanted(name):
            return True
        for left in range(ATTEMPTS - 1, -1, -1):
            try:
                function(*args)
                self.passed += 1
                self.line("ok", name)
                return True
            except EmulatorFault as fault:
                say(f"# {name}: fault of the emulator, run does not count: "
                    f"{fault}")
                why = f"the emulator failed {ATTEMPTS} times"
                if left:
                    continue
            except Skip as skip:
                self.skip(name, skip)
                return True
            except (RunError, QMPError, OSError) as error:
                why = str(error) or type(error).__name__
            except Exception:
                why = traceback.format_exc()
            self.failed += 1
            self.line("not ok", name)
            for text in why.splitlines():
                say(f"#   {text}")
            return False
        return False

    def finish(self):
        """The last line, and the exit status."""
        if self.passed + self.failed + self.skipped == 0:
            say("# no such test")
            self.failed = 1
        say(f"{self.passed} passed, {self.failed} failed, "
            f"{self.skipped} skipped")
        return 1 if self.failed else 0


def die_orderly():
    """Signals become SystemExit, so that finally clauses run."""
    def stop(number, _):
        raise SystemExit(128 + number)
    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), stop)
