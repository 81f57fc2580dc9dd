#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A hostile guest, and a QMP client at the same time: QEMU must go on answering.

Each round does random things to a virtio-scsi controller: rings in RAM, MMIO, ROM
and nowhere, avail indices anywhere and moving, loops of descriptors, random
headers, CDBs and TMFs, configuration space, bus mastering, resets; and by QMP
stop, cont, throttling, trays, hotplug, mirror jobs, system_reset.  After each act
a register access and query-status are timed, and at the end of each round a
reset must bring the device back.  A seed replays a run.

Without options: the short form for `make check`, which only fails if QEMU hangs
or dies.  `--seeds 20 --rounds 100 --limit-ms 1000` is the long one.
"""

import argparse
import asyncio
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "build", "base", "python"))

from qemu.machine import QEMUMachine  # noqa: E402
from qemu.machine.qtest import QEMUQtestProtocol  # noqa: E402
from qemu.qmp import QMPError  # noqa: E402

RAM = 64 << 20
BAR = {1: 0xe0000000, 4: 0xe0010000}    # MSI-X table, virtio registers
OTHER_BAR = 0xe0100000                  # of another device: plain MMIO
QUEUES = 4
RING = 64
CTRL, EVENT, FIRST = 0, 1, 2
PATIENCE = 60
# name: options of the controller
CONTROLLERS = {
    "mapped": '"iothread-vq-mapping":[{"iothread":"t0"},{"iothread":"t1"}]',
    "one-thread": '"iothread":"t0"',
    "main-loop": '"cmd_per_lun":128',
    "no-ioeventfd": '"ioeventfd":false',
}
LUNS = 4                                # disk, failing disk, throttled disk, cd


class Stuck(Exception):
    """What a guest must not be able to do."""


class Machine:
    """QEMU with its QMP and qtest sockets, and guest memory that we share."""

    def __init__(self, binary, controller, folder, options=()):
        self.folder = folder
        self.slowest = {"register": 0, "QMP": 0}
        path = os.path.join(folder, "ram")
        with open(path, "wb") as file:
            file.truncate(RAM)
        with open(path, "r+b") as file:
            self.ram = mmap.mmap(file.fileno(), RAM)
        self.qtest = QEMUQtestProtocol(os.path.join(folder, "qtest"), server=True)
        self.vm = QEMUMachine(binary, base_temp_dir=folder, name="hostile")
        self.vm.set_machine("pc,accel=qtest,memory-backend=ram")
        self.vm.add_args(
            "-nodefaults", "-m", str(RAM >> 20), "-object",
            "memory-backend-file,id=ram,share=on,size=%d,mem-path=%s" % (RAM, path),
            "-qtest", "unix:" + os.path.join(folder, "qtest"),
            "-qtest-log", "none", "-object", "iothread,id=t0",
            "-object", "iothread,id=t1", "-device", "pci-testdev,addr=06.0",
            "-blockdev", "null-co,node-name=n0,size=1048576,read-zeroes=on",
            "-blockdev", "null-co,node-name=target,size=1048576,latency-ns=5000000",
            "-blockdev", '{"driver":"blkdebug","node-name":"n1","image":{"driver":'
            '"null-co","size":1048576},"inject-error":[{"event":"none",'
            '"iotype":"read","immediately":true,"once":false}]}',
            "-object", "throttle-group,id=tg,x-iops-total=20",
            "-blockdev", '{"driver":"throttle","node-name":"n2","throttle-group":'
            '"tg","file":{"driver":"null-co","size":1048576}}',
            "-blockdev", "null-co,node-name=cd,size=1048576,read-only=on",
            "-device", '{"driver":"virtio-scsi-pci","id":"vs","addr":"04.0",'
            '"num_queues":%d,"virtqueue_size":%d,%s}' % (
                QUEUES, RING, CONTROLLERS[controller]))
        for lun in range(3):
            self.vm.add_args("-device", self.disk(lun))
        self.vm.add_args("-device", '{"driver":"scsi-cd","id":"d3","bus":"vs.0",'
                         '"drive":"cd","scsi-id":0,"lun":3}')
        self.vm.add_args(*options)
        self.vm.launch()
        self.qtest.accept()
        self.qtest.settimeout(PATIENCE)
        self.vm._qmp.settimeout(PATIENCE)

    @staticmethod
    def disk(lun):
        return ('{"driver":"scsi-hd","id":"d%d","bus":"vs.0","drive":"n%d",'
                '"scsi-id":0,"lun":%d,"share-rw":true}' % (lun, lun, lun))

    def close(self):
        self.vm._popen.kill()           # it may not be able to end by itself
        try:
            self.vm.shutdown(hard=True)
        except Exception:               # noqa: BLE001: that is what we did
            pass
        self.qtest.close()

    def timed(self, what, call, *args):
        begin = time.monotonic()
        try:
            return call(*args)
        except (OSError, asyncio.TimeoutError, EOFError, QMPError) as error:
            raise Stuck("%s: %s" % (what, error or "no answer"))
        finally:
            took = time.monotonic() - begin
            self.slowest[what] = max(self.slowest[what], took)

    def register(self, text):
        answer = self.timed("register", self.qtest.cmd, text)
        if not answer.startswith("OK"):
            raise Stuck("register: %s: %r" % (text, answer))
        return int(answer.split()[1], 16) if " " in answer.strip() else None

    def qmp(self, name, **arguments):
        return self.timed("QMP", lambda: self.vm.qmp(name, arguments or None))


class Guest:
    """The driver, honest when it sets up or checks and hostile otherwise."""

    def __init__(self, machine, rng):
        self.m = machine
        self.rng = rng
        self.cap = {}
        self.find_device()
        self.moving = None

    def config(self, offset, value=None, slot=4):
        self.m.register("outl 0xcf8 0x%x" % (1 << 31 | slot << 11 | offset & ~3))
        if value is None:
            return self.m.register("inl 0xcfc") >> 8 * (offset & 3)
        return self.m.register("outl 0xcfc 0x%x" % value)

    def find_device(self):
        for bar, address in BAR.items():
            self.config(0x10 + 4 * bar, address)
        self.config(0x10, OTHER_BAR, slot=6)
        self.config(4, 6, slot=6)
        self.config(4, 6)
        at = self.config(0x34) & 0xff
        while at:
            word = self.config(at)
            if word & 0xff == 9:
                kind, bar = word >> 24, self.config(at + 4) & 0xff
                offset = self.config(at + 8) & 0xffffffff
                self.cap.setdefault(kind, BAR.get(bar, 0) + offset)
                if kind == 2:
                    self.multiplier = self.config(at + 16) & 0xffffffff
            elif word & 0xff == 0x11:
                self.msix = at
            at = word >> 8 & 0xff

    def write(self, size, offset, value, kind=1):
        self.m.register("write%s 0x%x 0x%x" % (size, self.cap[kind] + offset, value))

    def read(self, size, offset, kind=1):
        return self.m.register("read%s 0x%x" % (size, self.cap[kind] + offset))

    # ---- rings: descriptors, avail and used of queue n, and room for buffers

    @staticmethod
    def ring(queue):
        base = (1 + queue) << 20
        return base, base + 0x1000, base + 0x2000, base + 0x4000

    def queue(self, queue, desc, avail, used, enable=True):
        self.write("w", 22, queue)
        self.write("w", 24, RING)
        for offset, address in ((32, desc), (40, avail), (48, used)):
            self.write("l", offset, address & 0xffffffff)
            self.write("l", offset + 4, address >> 32)
        if enable:
            self.write("w", 28, 1)

    def start(self, place=None):
        """Up to DRIVER_OK; `place` chooses where rings are."""
        self.write("b", 20, 0)
        self.write("b", 20, 3)
        for select, value in ((0, self.rng.choice((0, 1 << 28))), (1, 1)):
            self.write("l", 8, select)
            self.write("l", 12, value)
        self.write("b", 20, 11)
        for queue in range(FIRST + QUEUES):
            desc, avail, used, _ = self.ring(queue)
            self.m.ram[desc:desc + 0x3000] = bytes(0x3000)
            self.queue(queue, *(place(a) if place else a
                                for a in (desc, avail, used)))
        self.write("b", 20, 15)
        self.used = {}

    def descriptor(self, queue, index, address, length, flags=0, following=0):
        at = self.ring(queue)[0] + 16 * (index % RING)
        self.m.ram[at:at + 16] = struct.pack("<QIHH", address % (1 << 64), length,
                                             flags, following)

    def offer(self, queue, heads, index):
        avail = self.ring(queue)[1]
        for i, head in enumerate(heads):
            at = avail + 4 + 2 * ((index + i) % RING)
            self.m.ram[at:at + 2] = struct.pack("<H", head)
        self.m.ram[avail + 2:avail + 4] = struct.pack("<H",
                                                      index + len(heads) & 0xffff)

    def index(self, queue, what):
        at = self.ring(queue)[what] + 2
        return struct.unpack("<H", self.m.ram[at:at + 2])[0]

    def kick(self, queue):
        self.write("w", queue * self.multiplier, queue, kind=2)

    def command(self, queue, lun, cdb, length=0):
        """An honest command; its response and status, or None."""
        data = self.ring(queue)[3]
        header = struct.pack("<4B4xQ3B", 1, 0, 0x40, lun, 1, 0, 0, 0)
        self.m.ram[data:data + 51] = header + bytes(cdb).ljust(32, b"\0")
        self.m.ram[data + 64:data + 172] = b"\xff" * 108
        self.descriptor(queue, 0, data, 51, 1, 1)
        self.descriptor(queue, 1, data + 64, 108, 3 if length else 2, 2)
        self.descriptor(queue, 2, data + 4096, length, 2)
        at = self.index(queue, 1)
        self.offer(queue, [0], at)
        self.kick(queue)
        end = time.monotonic() + PATIENCE
        while self.index(queue, 2) != at + 1 & 0xffff:
            if time.monotonic() > end:
                return None
            time.sleep(0.0005)
        return self.m.ram[data + 64 + 11], self.m.ram[data + 64 + 10]

    def check(self):
        """After a reset, everything works again."""
        self.config(4, 6)
        self.start()
        for queue in range(FIRST, FIRST + QUEUES):
            for cdb, length in (([0], 0), ([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512)):
                for _ in range(8):      # unit attentions first
                    answer = self.command(queue, 0, cdb, length)
                    if answer is None or answer == (0, 0):
                        break
                if answer != (0, 0):
                    raise Stuck("queue %d after a reset: %s for command 0x%x"
                                % (queue, answer, cdb[0]))


class Hostile:
    """One run from one seed."""

    def __init__(self, binary, seed, controller, verbose):
        self.rng = random.Random("%s %s" % (seed, controller))
        self.verbose = verbose
        self.acts = []
        self.folder = tempfile.mkdtemp(prefix="hostile-")
        self.m = Machine(binary, controller, self.folder)
        self.guest = None
        self.stop = threading.Event()

    def anywhere(self, address=0):
        """An address in RAM, mostly; else MMIO, ROM, or nowhere."""
        kind = self.rng.random()
        if kind < 0.6:
            return address or self.rng.randrange(0x100000, RAM - 0x10000)
        return self.rng.choice((OTHER_BAR, 0xfee00000, 0xfffc0000, 0xa0000,
                                BAR[4], BAR[1], RAM - 8, 1 << 40, (1 << 64) - 512))

    def any_queue(self):
        return self.rng.randrange(FIRST + QUEUES)

    # ---- acts of the guest

    def act_rings(self):
        self.guest.start(self.anywhere if self.rng.random() < 0.7 else None)

    def act_commands(self):
        """Chains of descriptors that are half right."""
        g, rng = self.guest, self.rng
        queue = self.any_queue()
        for i in range(0, RING, 4):
            data = g.ring(queue)[3] + 0x2000 * i
            lun = struct.pack("<4B4x", 1, rng.choice((0, 0, 0, 1, 255)),
                              rng.choice((0x40, 0x40, 0, 0x80, 0xc1)),
                              rng.randrange(6))
            cdb = bytes([rng.choice((0, 0x12, 0x28, 0x2a, 0x88, 0x8a, 0x1b, 0x1e,
                                     0x35, 0x41, 0x42, 0x55, 0x5a, 0x93, 0xa0,
                                     rng.randrange(256)))])
            cdb += bytes(rng.randrange(256) if rng.random() < 0.2 else 0
                         for _ in range(31))
            header = lun + struct.pack("<Q3B", i, 0, 0, 0) + cdb
            if queue == CTRL:
                header = struct.pack("<II", rng.choice((0, 0, 1, 9)),
                                     rng.randrange(10)) + lun + bytes(8)
            g.m.ram[data:data + len(header)] = header
            out = rng.choice((len(header), len(header), 51, 3, 0, 1 << 31))
            g.descriptor(queue, i, self.anywhere(data), out, 1, i + 1)
            g.descriptor(queue, i + 1, self.anywhere(data + 0x100),
                         rng.choice((108, 108, 12, 1, 0, 4096)),
                         rng.choice((3, 3, 3, 2, 1, 7)),
                         rng.choice((i + 2, i + 2, i, 60000)))
            g.descriptor(queue, i + 2, self.anywhere(data + 0x1000),
                         rng.choice((512, 4096, 512, 65536, 0)),
                         rng.choice((2, 2, 3, 0, 4)), i)
        heads = [rng.choice((4 * n, 4 * n, rng.randrange(65536))) % (1 << 16)
                 for n in range(rng.choice((1, 8, RING // 4)))]
        g.offer(queue, heads, g.index(queue, 1))
        g.kick(queue)

    def act_index(self):
        queue = self.any_queue()
        avail = self.guest.ring(queue)[1]
        self.m.ram[avail + 2:avail + 4] = struct.pack("<H", self.rng.choice(
            (self.rng.randrange(65536), self.guest.index(queue, 2) + RING & 0xffff)))
        self.guest.kick(queue)

    def act_moving_index(self):
        """Somebody goes on adding commands for a while."""
        queue, gap = self.any_queue(), self.rng.choice((RING, 32000))
        end = time.monotonic() + 0.05

        def move():
            avail = self.guest.ring(queue)[1]
            while time.monotonic() < end and not self.stop.is_set():
                self.m.ram[avail + 2:avail + 4] = struct.pack(
                    "<H", self.guest.index(queue, 2) + gap & 0xffff)

        thread = threading.Thread(target=move)
        thread.start()
        self.guest.kick(queue)
        self.rng.choice((self.act_reset, self.act_stop, self.act_kicks))()
        thread.join()

    def act_kicks(self):
        for _ in range(4):
            self.guest.kick(self.any_queue())

    def act_config_space(self):
        g = self.guest
        offset, value = self.rng.choice((
            (20, self.rng.choice((0, 96, 252, 1 << 20))),      # sense_size
            (24, self.rng.choice((0, 6, 16, 32, 255, 256)))))  # cdb_size
        g.write("l", offset, value, kind=4)

    def act_msix(self):
        g = self.guest
        g.config(g.msix, 0x80000000 | g.msix << 8 & 0 | 0x11)
        for vector in range(2):
            at = BAR[1] + 16 * vector
            address = self.anywhere()
            self.m.register("writel 0x%x 0x%x" % (at, address & 0xfffffffc))
            self.m.register("writel 0x%x 0x%x" % (at + 4, address >> 32))
            self.m.register("writel 0x%x 0" % (at + 12))
        g.write("w", 16, self.rng.choice((0, 1, 0xffff)))

    def act_bus_master(self):
        self.guest.config(4, 2)
        self.guest.kick(self.any_queue())
        self.guest.config(4, 6)

    def act_queue_reset(self):
        self.guest.write("w", 22, self.any_queue())
        self.guest.write("w", 58, 1)
        self.guest.write("w", 28, self.rng.choice((0, 1)))

    def act_status(self):
        self.guest.write("b", 20, self.rng.choice((0, 1, 3, 11, 15, 128, 255)))

    def act_reset(self):
        self.guest.write("b", 20, 0)

    # ---- acts of the host

    def act_stop(self):
        self.m.qmp("stop")
        self.m.qmp("cont")

    def act_throttle(self):
        limit = self.rng.choice((0, 5))
        self.m.qmp("block_set_io_throttle", id="d0", bps=0, bps_rd=0, bps_wr=0,
                   iops=limit, iops_rd=0, iops_wr=0)
        self.m.qmp("block_set_io_throttle", id="d0", bps=0, bps_rd=0, bps_wr=0,
                   iops=0, iops_rd=0, iops_wr=0)

    def act_tray(self):
        self.m.qmp("blockdev-open-tray", id="d3", force=True)
        if self.rng.random() < 0.5:
            self.m.qmp("blockdev-remove-medium", id="d3")
            self.m.qmp("blockdev-insert-medium", id="d3", **{"node-name": "cd"})
        self.m.qmp("blockdev-close-tray", id="d3")

    def act_job(self):
        self.m.qmp("blockdev-mirror", device="n0", target="target", sync="none",
                   **{"job-id": "job"})
        self.act_commands()
        self.m.qmp("block-job-cancel", device="job", force=True)

    def act_hotplug(self):
        self.m.qmp("device_del", id="d1")
        end = time.monotonic() + PATIENCE
        while True:                     # it is gone when its id is free
            answer = self.m.qmp("device_add", driver="scsi-hd", id="d1", bus="vs.0",
                                drive="n1", lun=1, **{"scsi-id": 0})
            if "error" not in answer:
                break
            if time.monotonic() > end:
                raise Stuck("device_del: %s" % answer["error"]["desc"])
            time.sleep(0.001)

    def act_system_reset(self):
        self.m.qmp("system_reset")
        self.m.qmp("query-status")
        self.guest.find_device()

    def round(self):
        acts = [self.act_commands] * 6 + [self.act_moving_index] * 2 + [
            getattr(self, name) for name in sorted(dir(self))
            if name.startswith("act_")]
        self.guest = self.guest or Guest(self.m, self.rng)
        self.act_rings()
        for _ in range(12):
            act = self.rng.choice(acts)
            self.acts.append(act.__name__[4:])
            act()
            self.m.qmp("query-status")
            self.guest.read("b", 20)
        self.m.qmp("cont")
        self.guest.find_device()
        self.guest.check()

    def run(self, rounds):
        try:
            for number in range(rounds):
                self.acts = []
                try:
                    self.round()
                except Stuck as error:
                    return number, "round %d: %s, after %s" % (
                        number, self.why(error), " ".join(self.acts))
            return rounds, None
        finally:
            self.stop.set()
            self.m.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def why(self, error):
        try:
            code = self.m.vm._popen.wait(timeout=3)
        except subprocess.TimeoutExpired:
            return str(error)
        with open(self.m.vm._qemu_log_path, errors="replace") as file:
            log = file.read().strip().splitlines()
        return "QEMU ended with %s: %s" % (code, log[-1] if log else "")


def run_seeds(args):
    """Runs all; yields (what, problem)."""
    for seed in range(args.first, args.first + args.seeds):
        names = [args.controller] if args.controller else sorted(CONTROLLERS)
        # each seed has another kind of controller
        name = names[seed % len(names)]
        hostile = Hostile(args.qemu, seed, name, args.verbose)
        done, problem = hostile.run(args.rounds)
        slowest = hostile.m.slowest
        what = "seed %d, %s: %d rounds, slowest register access %.0f ms, QMP %.0f ms" % (
            seed, name, done, 1000 * slowest["register"], 1000 * slowest["QMP"])
        if not problem and args.limit_ms and 1000 * max(
                slowest.values()) > args.limit_ms:
            problem = "slower than %d ms" % args.limit_ms
        yield what, problem


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--qemu", default=os.path.join(TOP, "build", "qemu-system-x86_64"))
    add("--seeds", type=int, default=4, help="how many (default 4)")
    add("--first", type=int, default=0, help="the first of them (default 0)")
    add("--rounds", type=int, default=6, help="of each seed (default 6)")
    add("--controller", choices=sorted(CONTROLLERS), help="(default: in turn)")
    add("--limit-ms", type=int, help="longest time for an answer (default 60 s)")
    add("--verbose", action="store_true", help="QEMU's output at the end")
    args = parser.parse_args()
    print("1..%d" % args.seeds)
    failed = 0
    for number, (what, problem) in enumerate(run_seeds(args), 1):
        failed += bool(problem)
        print("%sok %d - %s" % ("not " if problem else "", number, what))
        if problem:
            print("# " + problem)
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
