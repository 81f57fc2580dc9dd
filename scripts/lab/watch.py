# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a guest of scripts/lab/guest in QEMU and watch it from the host: left for
scripts/lab/check-guest, guestjob.py, guesttools.py, libvirtd.py and vm.py, until
they use tests/functional/guest_shell.py.

Watch reads the guest's console (QEMU's standard output) and its "@" lines
(second serial port, QEMU's standard error; see guest-init), samples the CPU
time of QEMU's threads and the counters of virtio-scsi's queues at each of the
guest's ticks, and tells a guest at work from one that does not boot, hangs, or
fell over a fault of the emulator.
"""

import collections
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time

TOP = os.path.abspath(f"{__file__}/../../..")
sys.path.append(f"{TOP}/tests/functional")
from guest_shell import (EmulatorFault, GuestError as RunError, STALL, Thread,
                         accelerator, difference, iothread_times, judge_cpu,
                         read_threads)

SILENCE = 60                    # seconds without a sign of life from a guest
Config = collections.namedtuple("Config", "name title queues device")


def say(text=""):
    print(text, flush=True)


def choose_accelerator():
    """(accelerator options, what to tell)"""
    words, why = accelerator()
    return [" ".join(words[:2]), " ".join(words[2:])], why


def judge_iothreads(config, times):
    return judge_cpu(config.queues, times)


def judge_queues(config, facts):
    """The guest's view: number of queues, and that it used every one."""
    total = sum(len(vqs) for vqs in config.queues)
    line = (facts["queues"] or [""])[0]
    if f" {total}/0/0 default/read/poll queues" not in line:
        yield f"the guest did not report {total}/0/0 queues"
    if facts["mq"][0].split() != [str(i) for i in range(total)]:
        yield f"the guest lists queues {facts['mq'][0]}, not {total}"
    before, after = ([int(n) for n in s.split()] for s in facts["irqs"][:2])
    if len(before) != total or len(after) != total:
        yield f"the guest has {len(after)} queue interrupts, not {total}"
    for i, (old, new) in enumerate(zip(before, after)):
        if new <= old:
            yield f"queue {i} never interrupted the guest"


class Watch:
    """One QEMU process: reads its two serial ports."""

    def __init__(self, lines, setup):
        self.limit = 120 + 15 * setup.vcpus     # seconds to boot
        self.cap = 2 * self.limit + 3 * setup.runtime
        self.tcg = "tcg" in setup.accel[0]
        self.step = max(1, setup.runtime // 10)
        self.console, self.stderr = [], []
        self.facts = collections.defaultdict(list)
        self.samples = []
        self.start = self.heard = self.moved = time.monotonic()
        self.shown = 0
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
        elif text:
            self.stderr.append(text)

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
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()
        self.proc.stdout.close()
        self.proc.stderr.close()
