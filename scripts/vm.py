# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest that a test drives: QMP on one side, a shell on the other.

Vm is QEMU's own qemu.machine with the guest of scripts/guest in it; its shell
(GuestShell) runs commands through the agent of guest-init. Checks counts what
passed and repeats what a fault of multi-threaded TCG spoiled.
"""

import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

sys.dont_write_bytecode = True      # leaves no scripts/__pycache__ behind
HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
sys.path.insert(0, HERE)
sys.path.insert(1, f"{TOP}/build/base/python")

from program import load
from watch import (EmulatorFault, RunError, STALL, iothread_times,
                   read_threads, say)
from qemu.machine import QEMUMachine
from qemu.qmp import QMPError

OURS = os.environ.get("QEMU") or f"{TOP}/build/qemu-system-x86_64"
STOCK = os.environ.get("STOCK") or f"{TOP}/build/stock/qemu-system-x86_64"
GUEST = os.environ.get("GUEST") or f"{TOP}/build/guest/current"
ATTEMPTS = 3
RESEND = 10                     # seconds; an answer may get lost in migration
BOOT_LIMIT = 180                # seconds, generous
REPLY_LIMIT = 120               # seconds for a command, if none is given
FAULT = re.compile(r"iotlb_to_section")


class Skip(Exception):
    """Ends a test that can't be run here; says why."""


def accelerator():
    """Options for the best accelerator, as words."""
    options, _ = load("run").choose_accelerator()
    return " ".join(options).split()


def need_guest():
    """Make the guest if there is none, or check the one that GUEST= names."""
    load("run").get_guest()


def need_binary(path, target):
    if not os.access(path, os.X_OK):
        raise RunError(f"{path} is missing: run `make {target}`")


def expect(condition, text):
    if not condition:
        raise RunError(text)


def wait_for(what, function, limit=60, step=0.2):
    """The first true result of function(); an error that names what."""
    end = time.monotonic() + limit
    while True:
        result = function()
        if result:
            return result
        if time.monotonic() > end:
            raise RunError(f"no {what} in {limit} s")
        time.sleep(step)


# ------------------------------------------------------------ guest's shell

class GuestShell:
    """The agent of guest-init at the other end of a Unix socket.

    A command goes out with a number and its length, the answer comes back
    with the number and the count of its lines. Whatever a migration or a
    reconnect cuts is sent again; the agent does no number twice.
    """

    number = 0                  # of all shells, as the guest outlives one

    def __init__(self, path):
        self.path = path
        self.socket = None
        self.rest = b""
        self.alarm = lambda: None   # raises if the guest can't answer

    def close(self):
        if self.socket:
            self.socket.close()
        self.socket = None

    def connect(self):
        self.close()
        self.rest = b""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(self.path)
        except OSError:
            self.close()

    def lines(self, seconds):
        """Whole lines that come within this time; none if nothing does."""
        if not self.socket:
            self.connect()
        if not self.socket:
            time.sleep(min(0.2, seconds))
            return []
        if not select.select([self.socket], [], [], seconds)[0]:
            return []
        try:
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.close()
            return []
        *whole, self.rest = (self.rest + data).split(b"\n")
        return [s.decode(errors="replace").strip("\r") for s in whole]

    def send(self, text):
        if not self.socket:
            self.connect()
        try:
            if self.socket:
                self.socket.sendall(text.encode())
        except OSError:
            self.close()

    def run(self, command, limit=REPLY_LIMIT, check=True):
        """Output lines of a shell command in the guest.

        With check=False: (exit status, output lines).
        """
        if "\n" in command or command != command.strip() or \
                len(command) > 2000:
            raise ValueError(f"not one short line: {command!r}")
        GuestShell.number += 1
        status, output = self.answer(GuestShell.number, command, limit)
        if not check:
            return status, output
        if status:
            tail = " / ".join(output[-4:]) or "no output"
            raise RunError(f"in the guest: {command}: exit status {status}: "
                           f"{tail}")
        return output

    def answer(self, number, command, limit):
        start, sent = time.monotonic(), 0
        output = []
        while True:
            now = time.monotonic()
            if now - start > limit:
                self.alarm()
                raise RunError(f"no answer from the guest in {limit} s to: "
                               f"{command}")
            if now - sent > RESEND:
                self.alarm()
                # The line break ends what a lost connection left half said.
                self.send(f"\n{number} {len(command)} {command}\n")
                sent = now
            for text in self.lines(0.5):
                if text == f"@out {number}":
                    output = []
                elif text.startswith(f"{number}|"):
                    output.append(text[len(f"{number}|"):])
                found = re.fullmatch(r"@ran (\d+) (\d+) (\d+)", text)
                if found and int(found.group(1)) == number:
                    if int(found.group(3)) == len(output):
                        return int(found.group(2)), output
                    sent = 0
                elif text == f"@again {number}":
                    sent = 0

    def start(self, name, command):
        """Run a command in the background; finish() asks for its end."""
        quoted = shlex.quote(f"{{ {command}; }} > /tmp/{name}.out 2>&1; "
                             f"echo $? > /tmp/{name}.status")
        self.run(f"rm -f /tmp/{name}.status; setsid sh -c {quoted} "
                 "> /dev/null 2>&1 < /dev/null &")

    def running(self, name):
        return self.run(f"test -e /tmp/{name}.status", check=False)[0] != 0

    def finish(self, name, limit=REPLY_LIMIT):
        """Output lines of what start() started; an error if it failed."""
        wait_for(f"end of {name} in the guest",
                 lambda: not self.running(name), limit, 1)
        (status,) = self.run(f"cat /tmp/{name}.status")
        output = self.run(f"tail -n 40 /tmp/{name}.out")
        if status != "0":
            raise RunError(f"{name} in the guest: exit status {status}: "
                           + " / ".join(output[-4:]))
        return output


def fio_verified(disk, queues, seconds, region="64M", extra=""):
    """Shell command: random reads and verified writes, a job per queue.

    Each job stays on a vCPU of its own, so that each queue is fed.
    """
    return (f"fio --name=verified --filename=/dev/{disk} --rw=randrw --bs=4k "
            "--ioengine=libaio --direct=1 --iodepth=8 --verify=crc32c "
            "--verify_backlog=64 --verify_fatal=1 --randrepeat=0 "
            f"--numjobs={queues} --cpus_allowed=0-{queues - 1} "
            f"--cpus_allowed_policy=split --size={region} "
            f"--offset_increment={region} --time_based --runtime={seconds} "
            f"--group_reporting --output-format=terse {extra}").strip()


# ---------------------------------------------------------------------- VM

class Vm(QEMUMachine):
    """QEMU with the guest's kernel, its console in a log, and its shell.

    args: what follows the common options. A guest that comes by migration
    has -incoming in them.
    """

    def __init__(self, name, args, qemu=OURS, vcpus=4, memory="256M"):
        self.folder = tempfile.mkdtemp(prefix=f"vm-{name}-")
        self.label = name
        self.console = f"{self.folder}/console"
        self.shell = GuestShell(f"{self.folder}/agent")
        self.shell.alarm = self.check_alive
        self.excused = None         # pattern of what QEMU may complain of
        common = accelerator() + [
            "-smp", str(vcpus), "-m", memory, "-nodefaults", "-no-reboot",
            "-name", "debug-threads=on",
            "-kernel", f"{GUEST}/vmlinuz", "-initrd", f"{GUEST}/initrd",
            "-append", "console=ttyS0 mitigations=off panic=-1 job=agent",
            "-serial", f"file:{self.console}", "-chardev",
            f"socket,id=agent,path={self.shell.path},server=on,wait=off",
            "-serial", "chardev:agent"]
        # Whatever ends this program ends QEMU.
        super().__init__(qemu, common + list(args),
                         wrapper=("setpriv", "--pdeathsig", "KILL"),
                         name=name, base_temp_dir=self.folder,
                         log_dir=self.folder)

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
            raise RunError(f"{self.label}: QEMU did not start: "
                           f"{self.last_words() or error}") from None

    def messages(self):
        """What QEMU said on its standard error so far."""
        try:
            with open(f"{self.folder}/{self._name}.log", errors="replace",
                      encoding="utf-8") as f:
                return f.read()
        except OSError:
            return self.get_log() or ""

    def last_words(self):
        said = [s for s in self.messages().splitlines() if s.strip()]
        return said[-1] if said else ""

    def console_lines(self):
        try:
            with open(self.console, errors="replace", encoding="utf-8") as f:
                return f.read().splitlines()
        except OSError:
            return []

    def check_fault(self):
        """Known faults of multi-threaded TCG are no verdict on the device."""
        if FAULT.search(self.messages()):
            raise EmulatorFault(f"{self.label}: QEMU aborted in "
                                "iotlb_to_section")
        for text in self.console_lines():
            if STALL.search(text):
                raise EmulatorFault(f"{self.label}: a vCPU stalled: {text}")

    def check_alive(self):
        self.check_fault()
        if not self.is_running():
            raise RunError(f"{self.label}: QEMU ended, status "
                           f"{self.exitcode()}: {self.last_words()}")

    def command(self, name, **arguments):
        """A QMP command's return value; arguments with _ for -."""
        return self.cmd(name, {k.replace("_", "-"): v
                               for k, v in arguments.items()})

    def refused(self, name, arguments):
        """(class, message) of a QMP command that must be refused."""
        reply = self.qmp(name, arguments)
        if "error" not in reply:
            raise RunError(f"{name} {arguments} was not refused")
        return reply["error"]["class"], reply["error"]["desc"]

    def hmp(self, line):
        return self.cmd("human-monitor-command", {"command-line": line})

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
            raise RunError(f"{self.label}: no orderly end: "
                           f"{self.last_words() or error}") from None
        expect(self.exitcode() == 0, f"{self.label}: QEMU ended with status "
               f"{self.exitcode()}: {self.last_words()}")
        said = [s for s in self.messages().splitlines()
                if s.strip() and not (self.excused
                                      and re.search(self.excused, s))]
        expect(not said, f"{self.label}: QEMU says: {' / '.join(said)}")

    def discard(self):
        """End it in any way and delete its files."""
        self.shell.close()
        try:
            self.shutdown(hard=True)
        except Exception:       # what it died of is known or of no interest
            pass
        subprocess.run(["rm", "-rf", self.folder], check=False)


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
