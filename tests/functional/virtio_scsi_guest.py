# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux guests for tests of virtio-scsi: a QEMUMachine with a GuestShell, and a
test class that repeats what a fault of the emulator spoiled.

The guest comes from the folder QEMU_TEST_GUEST: vmlinuz, and an initrd with
busybox, fio and drivers of virtio-scsi, whose init does what guest_shell.py
says on ttyS1 if the kernel's command line has job=agent.
"""

import functools
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from guest_shell import (EmulatorFault, FAULT, GuestError, GuestShell, STALL,
                         expect, iothread_times, read_threads)
from qemu.machine import QEMUMachine
from qemu.utils import kvm_available

ATTEMPTS = 3
BOOT_LIMIT = 180                # seconds, generous


def accelerator(binary):
    """KVM where it works: /dev/kvm may open on a CPU that can't."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
        able = re.search(r"^flags\s*:.*\b(vmx|svm)\b", f.read(), re.M)
    if able and kvm_available("x86_64", binary):
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-cpu", "qemu64"]


class GuestMachine(QEMUMachine):
    """QEMU with the guest's kernel, its console in a log, and its shell.

    args: what follows the common options.  A guest that comes by migration has
    -incoming in them.
    """

    number = 0                  # in the names of logs

    def __init__(self, binary, label, args, logs, vcpus=4, memory="256M"):
        # The path of a Unix socket must be short.
        self.folder = tempfile.mkdtemp(prefix="guest-")
        self.label = label
        GuestMachine.number += 1
        name = f"{GuestMachine.number:02}-{label}"
        self.console = f"{logs}/{name}.console"
        self.errors = f"{logs}/{name}.log"
        self.shell = GuestShell(f"{self.folder}/agent")
        self.shell.alarm = self.check_alive
        self.excused = None         # pattern of what QEMU may complain of
        guest = os.environ["QEMU_TEST_GUEST"]
        common = accelerator(binary) + [
            "-smp", str(vcpus), "-m", memory, "-nodefaults", "-no-reboot",
            "-name", "debug-threads=on",
            "-kernel", f"{guest}/vmlinuz", "-initrd", f"{guest}/initrd",
            "-append", "console=ttyS0 mitigations=off panic=-1 job=agent",
            "-serial", f"file:{self.console}", "-chardev",
            f"socket,id=agent,path={self.shell.path},server=on,wait=off",
            "-serial", "chardev:agent"]
        # Whatever ends this program ends QEMU.
        super().__init__(binary, common + list(args),
                         wrapper=("setpriv", "--pdeathsig", "KILL"),
                         name=name, base_temp_dir=self.folder, log_dir=logs)

    def boot(self):
        """Launch, and wait until the guest answers."""
        self.start()
        self.shell.run("true", BOOT_LIMIT)
        return self

    def start(self):
        """Launch; a refusal is told with QEMU's own words."""
        try:
            self.launch()
        except Exception as error:
            self.check_fault()
            raise GuestError(f"{self.label}: QEMU did not start: "
                             f"{self.last_words() or error}") from None

    @staticmethod
    def lines_of(path):
        try:
            with open(path, errors="replace", encoding="utf-8") as f:
                return [s for s in f.read().splitlines() if s.strip()]
        except OSError:
            return []

    def messages(self):
        """Lines that QEMU has written to its standard error so far."""
        return self.lines_of(self.errors)

    def last_words(self):
        return (self.messages() or [""])[-1]

    def check_fault(self):
        """Known faults of multi-threaded TCG are no verdict on the device."""
        for text in self.messages():
            if FAULT.search(text):
                raise EmulatorFault(f"{self.label}: QEMU aborted: {text}")
        for text in self.lines_of(self.console):
            if STALL.search(text):
                raise EmulatorFault(f"{self.label}: a vCPU stalled: {text}")

    def check_alive(self):
        self.check_fault()
        expect(self.is_running(), f"{self.label}: QEMU ended, status "
               f"{self.exitcode()}: {self.last_words()}")

    def command(self, name, **arguments):
        """A QMP command's return value; arguments with _ for -."""
        return self.cmd(name, {k.replace("_", "-"): v
                               for k, v in arguments.items()})

    def refused(self, name, arguments):
        """(class, message) of a QMP command that must be refused."""
        reply = self.qmp(name, arguments)
        expect("error" in reply, f"{name} {arguments} was not refused")
        return reply["error"]["class"], reply["error"]["desc"]

    def hmp(self, line):
        return self.cmd("human-monitor-command", {"command-line": line})

    def status(self):
        return self.command("query-status")["status"]

    def iothread_seconds(self):
        """{iothread's id: seconds of CPU so far}"""
        threads = list(read_threads(self.get_pid()).values())
        return {name: t.cpu for name, t in iothread_times(threads).items()}

    def end(self):
        """Orderly end: QEMU must end with status 0 and without complaint."""
        try:
            self.shutdown(hard=False, timeout=60)
        except Exception as error:
            self.check_fault()
            raise GuestError(f"{self.label}: no orderly end: "
                             f"{self.last_words() or error}") from None
        expect(self.exitcode() == 0, f"{self.label}: QEMU ended with status "
               f"{self.exitcode()}: {self.last_words()}")
        said = [s for s in self.messages()
                if not (self.excused and re.search(self.excused, s))]
        expect(not said, f"{self.label}: QEMU says: {' / '.join(said)}")

    def discard(self):
        """End it in any way; its logs stay."""
        self.shell.close()
        try:
            self.shutdown(hard=True)
        except Exception:       # what it died of is known or of no interest
            pass
        shutil.rmtree(self.folder, ignore_errors=True)


def repeated_after_fault(test):
    """Decorates a test: a fault of the emulator is told, and the test repeated.

    It passes only if it gets through without such a fault.
    """
    @functools.wraps(test)
    def run(self, *args):
        for left in range(ATTEMPTS - 1, -1, -1):
            try:
                return test(self, *args)
            except EmulatorFault as fault:
                self.log.warning("fault of the emulator: %s", fault)
                print(f"# {self.id()}: fault of the emulator, run does not "
                      f"count: {fault}", flush=True)
                if not left:
                    raise
    return run


class GuestTest:
    """Mixed into a QemuSystemTest: folders of the class, for what outlives one
    test.  A guest may: it stands then where the next test wants it."""

    @classmethod
    def machines(cls):
        """The GuestMachines that there are."""
        raise NotImplementedError

    @classmethod
    def drop(cls):
        """Discard them all."""
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not os.getenv("QEMU_TEST_GUEST"):
            raise unittest.SkipTest("QEMU_TEST_GUEST names no folder with "
                                    "vmlinuz and initrd")
        from qemu_test import BUILD_DIR
        cls.folder = str(BUILD_DIR / "tests" / "functional" / "x86_64"
                         / cls.__qualname__)
        cls.scratch = f"{cls.folder}/scratch"
        shutil.rmtree(cls.folder, ignore_errors=True)
        os.makedirs(cls.scratch)

    @classmethod
    def tearDownClass(cls):
        if "QEMU_TEST_KEEP_SCRATCH" not in os.environ:
            shutil.rmtree(cls.scratch, ignore_errors=True)
        super().tearDownClass()

    @repeated_after_fault
    def guarded(self, function, *args):
        """Run a test; after a failure the next one begins with a boot."""
        try:
            function(self, *args)
        except unittest.SkipTest:
            raise
        except BaseException:
            try:
                for vm in self.machines():
                    vm.check_fault()
            finally:
                self.drop()
            raise


def output(*words):
    """Output of a program; its last line of complaint if it fails."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)
    said = done.stdout.strip().splitlines() or ["no message"]
    expect(not done.returncode, f"{os.path.basename(words[0])}: {said[-1]}")
    return done.stdout.strip()
