# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a guest of scripts/lab/guest in QEMU and watch it from the host.

Watch reads the guest's console (QEMU's standard output) and its "@" lines
(second serial port, QEMU's standard error; see guest-init), samples the CPU
time of QEMU's threads and the counters of virtio-scsi's queues at each of the
guest's ticks, and tells a guest at work from one that does not boot, hangs, or
fell over a fault of the emulator.
"""

import collections
import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time

TOP = os.path.abspath(f"{__file__}/../../..")
sys.path.append(f"{TOP}/tests/functional")
from guest_shell import (EmulatorFault, GuestError as RunError, STALL, Thread,
                         difference, is_iothread, iothread_times, read_threads)

SILENCE = 60                    # seconds without a sign of life from a guest
Sample = collections.namedtuple("Sample", "time reads threads queues")


def say(text=""):
    print(text, flush=True)


class QueueView:
    """What QEMU tells of virtio-scsi's queues, by its QMP socket.

    Stock QEMU has no such command, and a QEMU that has just died tells
    nothing; then there is no view, and nobody has to wait for it.
    """

    def __init__(self, path):
        self.path = path
        self.socket = self.stream = None

    def connect(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(self.path)
        self.stream = self.socket.makefile("rw", encoding="utf-8")
        self.stream.readline()          # the greeting
        self.execute("qmp_capabilities")

    def ask(self, command, **arguments):
        """The reply to a command."""
        self.stream.write(json.dumps({"execute": command,
                                      "arguments": arguments}) + "\n")
        self.stream.flush()
        while True:
            line = self.stream.readline()
            if not line:
                raise OSError("QEMU has closed its QMP socket")
            reply = json.loads(line)
            if "return" in reply or "error" in reply:
                return reply

    def execute(self, command):
        """The value that it returns; None if there is no such command."""
        return self.ask(command).get("return")

    def read(self):
        """[queue of the first device], or None."""
        if not self.path:
            return None
        try:
            if not self.stream:
                self.connect()
            devices = self.execute("x-query-virtio-scsi-queues")
        except (OSError, ValueError):
            devices = None
        if not devices:
            self.close()
            self.path = None
            return None
        return devices[0]["queues"]

    def close(self):
        if self.stream:
            self.stream.close()
        if self.socket:
            self.socket.close()
        self.socket = self.stream = None


def queue_difference(first, last):
    """[queue], with counters of the time between two samples, or None."""
    if not first or not last:
        return None
    counters = ("submitted", "bytes-read", "bytes-written", "kicks",
                "interrupts")
    return [dict(new, **{c: new[c] - old[c] for c in counters})
            for old, new in zip(first, last)]


class Watch:
    """One QEMU process: reads its two serial ports and takes samples.

    @qmp is the path of its QMP socket, if it has one.
    """

    def __init__(self, lines, setup, qmp=None):
        self.limit = 120 + 15 * setup.vcpus     # seconds to boot
        self.cap = 2 * self.limit + 3 * setup.runtime
        self.tcg = "tcg" in setup.accel[0]
        self.step = max(1, setup.runtime // 10)
        self.console, self.stderr = [], []
        self.facts = collections.defaultdict(list)
        self.samples = []
        self.start = self.heard = self.moved = time.monotonic()
        self.shown = 0
        self.view = QueueView(qmp)
        libc = ctypes.CDLL(None)
        # Dies with this program even where nobody can catch the signal.
        self.proc = subprocess.Popen(
            sum(lines, []), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: libc.prctl(1, signal.SIGKILL))

    def fault(self, text):
        if self.tcg:
            return EmulatorFault(text)
        return RunError(text)

    def tail(self):
        text = "\n".join("    | " + s for s in self.console[-15:])
        return f"; end of its console:\n{text}" if text else \
            "; its console is empty"

    def line(self, text, is_console):
        self.heard = time.monotonic()
        if is_console:
            self.console.append(text)
            if STALL.search(text) and self.tcg:
                raise EmulatorFault(f"a vCPU stalled: {text}")
        elif text.startswith("@"):
            word, _, rest = text[1:].partition(" ")
            self.facts[word].append(rest)
            if word == "error:":
                raise RunError(f"guest: {rest}")
            if word in ("tick", "end"):
                self.tick(int(rest), word == "end")
        elif text:
            self.stderr.append(text)

    def tick(self, reads, is_end):
        """A sample belongs to the measurement while fio's reads go on."""
        now = time.monotonic()
        idle = int(self.facts["tick"][0]) if self.facts["tick"] else reads
        last = self.samples[-1].reads if self.samples else idle
        if reads > last:
            self.moved = now
        if reads <= idle or (is_end and len(self.samples) > 1):
            return
        self.samples.append(Sample(now, reads, read_threads(self.proc.pid),
                                   self.view.read()))
        if not is_end and len(self.samples) > 1:
            self.progress()

    def progress(self):
        first, old, new = self.samples[0], self.samples[-2], self.samples[-1]
        if new.time - self.shown < self.step - 0.5:
            return
        self.shown = new.time
        span = new.time - old.time
        threads = difference(old.threads, new.threads)
        busy = [100 * t.cpu / span for t in iothread_times(threads).values()]
        vcpus = sum(t.cpu for t in threads if t.name.startswith("CPU "))
        say(f"  fio {new.time - first.time:5.1f} s "
            f"{(new.reads - old.reads) / span:9.0f} IOPS   IOThreads "
            f"{min(busy, default=0):.0f} to {max(busy, default=0):.0f} % CPU,"
            f" vCPUs together {100 * vcpus / span:.0f} %")

    def check_time(self):
        now = time.monotonic()
        if not self.facts["mq"]:
            if now - self.start > self.limit:
                raise RunError(f"the guest did not boot in {self.limit} s"
                               + self.tail())
            self.moved = now
        if self.console and now - self.heard > SILENCE:
            raise self.fault(f"no sign of life from the guest for {SILENCE} s"
                             + self.tail())
        # Its clock ticks, so vCPUs run: that is the device's fault.
        if now - self.moved > SILENCE and not self.facts["end"]:
            raise RunError(f"fio's reads stand still for {SILENCE} s though "
                           "the guest runs")
        if now - self.start > self.cap:
            raise RunError(f"not done after {self.cap} s" + self.tail())

    def follow(self):
        """Until QEMU ends; says when the guest is up."""
        pipes = selectors.DefaultSelector()
        rest = {}
        for pipe in (self.proc.stdout, self.proc.stderr):
            pipes.register(pipe, selectors.EVENT_READ)
            rest[pipe] = b""
        up = False
        while pipes.get_map():
            for key, _ in pipes.select(1):
                data = os.read(key.fd, 65536)
                if not data:
                    pipes.unregister(key.fileobj)
                *whole, rest[key.fileobj] = (rest[key.fileobj]
                                             + data).split(b"\n")
                for raw in whole + ([rest[key.fileobj]] if not data else []):
                    self.line(raw.decode(errors="replace").strip("\r"),
                              key.fileobj is self.proc.stdout)
            if self.facts["irqs"] and not up:
                up = True
                say(f"  guest up after {time.monotonic() - self.start:.0f} s")
                self.show_guest()
            self.check_time()
        try:
            self.judge_exit(self.proc.wait(timeout=30))
        except subprocess.TimeoutExpired:
            raise RunError("QEMU does not end after the guest did") from None

    def show_guest(self):
        say(f"  guest$ dmesg | grep queues\n  "
            f"{(self.facts['queues'] or ['(no such line)'])[0]}")
        say(f"  guest$ ls /sys/block/sda/mq\n  {self.facts['mq'][0]}")
        say(f"  guest$ {(self.facts['cmd'] or ['fio'])[0]}")

    def judge_exit(self, status):
        errors = "\n".join(self.stderr)
        if status == -signal.SIGABRT and "iotlb_to_section" in errors:
            raise self.fault("QEMU aborted in iotlb_to_section")
        if status != 0:
            last = self.stderr[-1] if self.stderr else "no message"
            raise RunError(f"QEMU ended with status {status}: {last}")
        if self.facts["done"] != ["0"]:
            raise RunError("the guest ended without finishing fio"
                           + self.tail())
        for text in self.stderr:
            say(f"  QEMU says: {text}")

    def close(self):
        self.view.close()
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()
        self.proc.stdout.close()
        self.proc.stderr.close()
