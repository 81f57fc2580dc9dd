# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux guests for tests of virtio-scsi: a QEMUMachine with a GuestShell, and a
test class that repeats what a fault of the emulator spoiled.

The guest comes from the folder QEMU_TEST_GUEST: vmlinuz, and an initrd with
busybox, fio and drivers of virtio-scsi, whose init does what guest_shell.py
says on ttyS1.  What else test_virtio_scsi_suites.py wants of it is said there.
"""

import functools
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from guest_shell import (EmulatorFault, FAULT, GuestError, GuestShell, STALL,
                         WORK, expect, guest_options, interrupts,
                         iothread_times, read_threads, repeated)
from qemu.machine import QEMUMachine

BOOT_LIMIT = 180                # seconds, generous
QUEUES_SHOWN = 4


class GuestLogs:
    """What a QEMU called label, and its guest, have written so far to the files
    errors and console."""

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
        return (self.messages() or ["no message"])[-1]

    def tail(self):
        """The end of the guest's console, to follow an error."""
        return "; the console says last:" + "".join(
            f"\n    | {s}" for s in self.lines_of(self.console)[-15:])

    def standing(self):
        """Where it stands, in lines, to tell who waits for whom."""
        return self.lines_of(self.console)[-10:]

    def check_fault(self):
        """Known faults of multi-threaded TCG are no verdict on the device."""
        for text in self.messages():
            if FAULT.search(text):
                raise EmulatorFault(f"{self.label}: QEMU aborted: {text}")
        for text in self.lines_of(self.console):
            if STALL.search(text):
                raise EmulatorFault(f"{self.label}: a vCPU stalled: {text}")


class GuestMachine(GuestLogs, QEMUMachine):
    """QEMU with the guest's kernel, its console in a log, and its shell.

    args: what follows the common options.  A guest that comes by migration has
    -incoming in them.
    """

    number = 0                  # in the names of logs
    initrd = "initrd"

    def __init__(self, binary, label, args, logs=None, vcpus=4, memory="256M"):
        # The path of a Unix socket must be short.
        self.folder = tempfile.mkdtemp(prefix="guest-")
        self.label = label
        GuestMachine.number += 1
        name = f"{GuestMachine.number:02}-{label}"
        logs = logs or self.folder
        self.console = f"{logs}/{name}.console"
        self.errors = f"{logs}/{name}.log"
        self.shell = GuestShell(f"{self.folder}/agent")
        self.shell.alarm = self.check_alive
        self.excused = None         # pattern of what QEMU may complain of
        self.options = guest_options(os.environ["QEMU_TEST_GUEST"], self.initrd,
                                     self.console, self.shell.path, vcpus,
                                     memory) + list(args)
        # Whatever ends this program ends QEMU.
        super().__init__(binary, self.options,
                         wrapper=("setpriv", "--pdeathsig", "KILL"),
                         name=name, base_temp_dir=self.folder, log_dir=logs)

    def boot(self, limit=BOOT_LIMIT):
        """Launch, and wait until the guest answers."""
        self.start()
        try:
            self.shell.run("true", limit)
        except GuestError as error:
            # A panic ends QEMU; before init there is no driver of the device.
            text = "\n".join(self.lines_of(self.console))
            if "Kernel panic" in text and "Run /init" not in text:
                raise EmulatorFault(f"{self.label}: the guest's kernel died "
                                    "before it ran init") from None
            self.check_alive()
            raise GuestError(f"{self.label}: no boot: {error}"
                             + self.tail()) from None
        return self

    def load_modules(self):
        """Those of initrd-more that init leaves out."""
        self.shell.run("for i in $(cat /modules/extra); do insmod /modules/$i "
                       "|| exit 1; done")

    def start(self):
        """Launch; a refusal is told with QEMU's own words."""
        try:
            self.launch()
        except Exception as error:
            self.check_fault()
            said = (self.messages() or [error])[-1]
            raise GuestError(f"{self.label}: QEMU ended with status "
                             f"{self.exitcode()}: {said}") from None

    def check_alive(self):
        self.check_fault()
        expect(self.is_running(), f"{self.label}: QEMU ended with status "
               f"{self.exitcode()}: {self.last_words()}{self.tail()}")

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

    def interrupts(self):
        """How often each queue has interrupted."""
        return interrupts(self.shell.run("cat /proc/interrupts"))

    def iothread_seconds(self):
        """{iothread's id: seconds of CPU so far}"""
        threads = list(read_threads(self.get_pid()).values())
        return {name: t.cpu for name, t in iothread_times(threads).items()}

    def work(self):
        """What each IOThread and each request queue has done so far: seconds of
        CPU, interrupts."""
        return self.iothread_seconds(), self.interrupts()

    def idle_since(self, work, queues):
        """Complaints, where so many queues with an IOThread each were to have
        as much to do since then."""
        (before, irqs), (after, later) = work, self.work()
        if not len(after) == len(later) == queues:
            yield f"{len(after)} IOThreads, {len(later)} queues in the guest"
        for i, (old, new) in enumerate(zip(irqs, later)):
            if new <= old:
                yield f"queue {i} never interrupted the guest"
        used = {name: after[name] - before[name] for name in after}
        for name, seconds in used.items():
            if seconds <= max(WORK, 0.1 * sum(used.values()) / queues):
                yield f"{name} did no work: CPU seconds {used}"

    def standing(self):
        """The VM, its rings and its vCPUs, too.

        Not by "info virtio-queue-element": that may call a device broken.
        """
        if not self.is_running():
            return super().standing()
        words = [f"{self.label}: the VM is {self.status()}"]
        for device in self.command("x-query-virtio"):
            if device["name"] != "virtio-scsi":
                continue
            for queue in range(2, 2 + QUEUES_SHOWN):
                state = self.qmp("x-query-virtio-queue-status", {
                    "path": device["path"], "queue": queue}).get("return", {})
                words.append(f"queue {queue - 2}: " + ", ".join(
                    f"{key} {state[key]}" for key in
                    ("inuse", "last-avail-idx", "shadow-avail-idx", "used-idx",
                     "signalled-used") if key in state))
        words += [s for s in self.hmp("info registers -a").splitlines()
                  if "CPU#" in s or "HLT=" in s]
        return words + super().standing()

    def end(self):
        """Orderly end: QEMU must end with status 0 and without complaint."""
        try:
            self.shutdown(hard=False, timeout=60)
        except Exception as error:
            self.check_fault()
            said = (self.messages() or [error])[-1]
            raise GuestError(f"{self.label}: no orderly end: {said}") from None
        expect(self.exitcode() == 0, f"{self.label}: QEMU ended with status "
               f"{self.exitcode()}: {self.last_words()}")
        said = [s for s in self.messages()
                if not (self.excused and re.search(self.excused, s))]
        expect(not said, f"{self.label}: QEMU says: {' / '.join(said)}")

    def __exit__(self, kind, *_):
        """Before an error: was it a fault of the emulator?"""
        try:
            if kind and issubclass(kind, Exception):
                self.check_fault()
        finally:
            self.discard()

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
    """
    @functools.wraps(test)
    def run(self, *args):
        def tell(text):
            self.log.warning(text)
            print(f"# {self.id()}: {text}", flush=True)
        return repeated(lambda: test(self, *args), tell)
    return run


class GuestTest:
    """Mixed into a QemuSystemTest: folders of the class, for what outlives one
    test.  A guest may: it stands then where the next test wants it."""

    guest = None

    @classmethod
    def machines(cls):
        """The GuestMachines that there are."""
        return [cls.guest] if cls.guest else []

    @classmethod
    def drop(cls):
        """Discard them all."""
        for vm in cls.machines():
            vm.discard()
        cls.guest = None

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
            return function(self, *args)
        except unittest.SkipTest:
            raise
        except BaseException:
            try:
                for vm in self.machines():
                    vm.check_fault()
                    show_standing(vm)
            finally:
                self.drop()
            raise


def show_standing(vm):
    """Whatever state it is in; what the test has found comes first."""
    try:
        lines = vm.standing()
    except Exception as error:
        lines = [f"{vm.label}: doesn't tell where it stands: {error}"]
    print(*(f"#   | {s}" for s in lines), sep="\n", flush=True)


def output(*words):
    """Output of a program; its last line of complaint if it fails."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)
    said = done.stdout.strip().splitlines() or ["no message"]
    expect(not done.returncode, f"{os.path.basename(words[0])}: {said[-1]}")
    return done.stdout.strip()
