#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What once stood still, or lost something, in a virtio-scsi that a guest, a job
or a migration treats badly: one test for each fault. No test looks at a clock:
where something must not wait for a job, the job is still there afterwards."""

import importlib.util
import os
import shutil
import struct
import sys
import tempfile
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from tap import Tap  # noqa: E402

spec = importlib.util.spec_from_file_location(
    "hostile", os.path.join(HERE, "test-hostile.py"))
hostile = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hostile)

QEMU = os.environ.get("QEMU") or os.path.join(hostile.TOP, "build",
                                              "qemu-system-x86_64")
LUN_RESET = 5
READ = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]
GOOD = (0, 0)


class Case:
    """A machine and its driver; everything is gone at the end."""

    def __init__(self, controller="mapped", *options):
        self.folder = tempfile.mkdtemp(prefix="liveness-")
        self.m = hostile.Machine(QEMU, controller, self.folder, options)
        self.g = hostile.Guest(self.m, hostile.random.Random(1))

    def __enter__(self):
        return self.m, self.g

    def __exit__(self, *args):
        self.m.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def start(g):
    """With no unit attention left"""
    g.check()


def post(g, queue, cdb, length, header=51, lun=0, write=False):
    """A command that isn't waited for."""
    data = g.ring(queue)[3]
    g.m.ram[data:data + header] = (struct.pack("<4B4xQ3B", 1, 0, 0x40, lun, 7, 0, 0,
                                               0) + bytes(cdb)).ljust(header, b"\0")
    g.m.ram[data + 64 + header:data + 172 + header] = b"\xff" * 108
    g.descriptor(queue, 0, data, header, 1, 1)
    if write:
        g.descriptor(queue, 1, data + 4096, length, 1, 2)
        g.descriptor(queue, 2, data + 64 + header, 108, 2)
    else:
        g.descriptor(queue, 1, data + 64 + header, 108, 3, 2)
        g.descriptor(queue, 2, data + 4096, length, 2)
    g.offer(queue, [0], g.index(queue, 1))
    g.kick(queue)
    return data + 64 + header


def answered(g, queue):
    """Wait until all that was offered has been answered."""
    end = time.monotonic() + hostile.PATIENCE
    while g.index(queue, 2) != g.index(queue, 1):
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def tmf(g, subtype):
    data = g.ring(0)[3]
    g.m.ram[data:data + 24] = struct.pack("<II4B4xQ", 0, subtype, 1, 0, 0x40, 0, 7)
    g.m.ram[data + 64] = 0xff
    g.descriptor(0, 0, data, 24, 1, 1)
    g.descriptor(0, 1, data + 64, 1, 2)
    g.offer(0, [0], g.index(0, 1))
    g.kick(0)
    return answered(g, 0) and g.m.ram[data + 64] == 0


def held_read(m, g):
    """A READ that the job's drain holds back, or None if the job is over."""
    while m.qmp("query-block-jobs")["return"]:
        response = post(g, 2, READ, 512)
        time.sleep(0.2)                 # enough for one that isn't held back
        if g.index(2, 2) != g.index(2, 1):
            return response
    return None


def flushing_job(m, g):
    """A mirror that has drained its source and flushes its target, for 5 s."""
    m.qmp("blockdev-add", driver="null-co", size=1 << 20,
          **{"node-name": "slow", "latency-ns": 5 * 10 ** 9})
    m.qmp("blockdev-mirror", device="n0", target="slow", sync="none",
          **{"job-id": "job"})
    post(g, 2, [0x2a] + READ[1:], 512, write=True)  # or it has nothing to flush
    end = time.monotonic() + hostile.PATIENCE
    while True:
        job = m.qmp("query-block-jobs")["return"][0]
        if job["status"] == "ready" and job["offset"] and (
                job["offset"] == job["len"] and answered(g, 2)):
            break
        if time.monotonic() > end:
            raise hostile.Stuck("the mirror isn't ready: %s" % job)
        time.sleep(0.01)
    m.qmp("job-complete", id="job")


def job_goes_on(m):
    return bool(m.qmp("query-block-jobs")["return"])


def test_flush(tap, controller):
    """All of it happens while the job flushes, or it proves nothing."""
    with Case(controller) as (m, g):
        start(g)
        flushing_job(m, g)
        response = held_read(m, g)
        tap.result(tmf(g, LUN_RESET) and job_goes_on(m),
                   "%s: LUN reset while a job flushes" % controller)
        tap.result(response and answered(g, 2) and m.ram[response + 11] == 4,
                   "%s: the READ ended by the reset" % controller)
        response = held_read(m, g)
        m.qmp("stop")                   # waits for the job, in every QEMU
        m.qmp("cont")
        tap.result(response and answered(g, 2) and m.ram[response + 11] == 0,
                   "%s: a READ that was held back outlives a stop" % controller)
    with Case(controller) as (m, g):
        start(g)
        flushing_job(m, g)
        response = held_read(m, g)
        m.qmp("system_reset")
        m.qmp("query-status")
        tap.result(response and job_goes_on(m),
                   "%s: system_reset while a job flushes" % controller)
        g.find_device()
        g.check()


def read_capacity(g):
    g.command(2, 0, [0x25] + [0] * 9, 8)
    data = g.ring(2)[3] + 4096
    return struct.unpack(">II", g.m.ram[data:data + 8])


def select_block_size(g, size):
    """MODE SELECT(6) with a block descriptor"""
    data = g.ring(2)[3]
    g.m.ram[data + 4096:data + 4108] = struct.pack(">4B4xI", 0, 0, 0, 8, size)
    g.m.ram[data:data + 51] = struct.pack("<4B4xQ3B", 1, 0, 0x40, 0, 7, 0, 0, 0) + (
        bytes([0x15, 0x10, 0, 0, 12, 0]).ljust(32, b"\0"))
    g.descriptor(2, 0, data, 51, 1, 1)
    g.descriptor(2, 1, data + 4096, 12, 1, 2)
    g.descriptor(2, 2, data + 64, 108, 2)
    g.offer(2, [0], g.index(2, 1))
    g.kick(2)
    return answered(g, 2) and g.m.ram[data + 64 + 10] == 0


def test_block_size(tap):
    with Case() as (m, g):
        start(g)
        before = read_capacity(g)
        tap.result(select_block_size(g, 2048), "MODE SELECT of the block size")
        tap.equal("block size: capacity follows", read_capacity(g),
                  ((1 << 20) // 2048 - 1, 2048))
        tap.equal("block size: READ has one size",
                  g.command(2, 0, READ, 2048), GOOD)
        tap.equal("block size: an LBA too high is refused",
                  g.command(2, 0, [0x28, 0, 0, 0, 2, 0, 0, 0, 1, 0], 2048), (0, 2))
        m.qmp("system_reset")
        m.qmp("query-status")
        g.find_device()
        g.check()
        tap.equal("block size: reset restores it", read_capacity(g), before)


def throttle(m, iops):
    """qtest's clock stands still, so one I/O is let through and no other."""
    m.qmp("block_set_io_throttle", id="d0", bps=0, bps_rd=0, bps_wr=0,
          iops=iops, iops_rd=0, iops_wr=0)


def test_queue_reset(tap):
    with Case() as (m, g):
        start(g)
        throttle(m, 1)
        for queue in (2, 2, 3):
            post(g, queue, READ, 512)
            time.sleep(0.1)
        g.write("w", 22, 2)
        g.write("w", 58, 1)
        tap.result(answered(g, 2), "queue reset: it has nothing in flight")
        tap.result(answered(g, 3), "queue reset: other queues go on")
        throttle(m, 0)
        desc, avail, used, _ = g.ring(2)
        m.ram[desc:desc + 0x3000] = bytes(0x3000)
        g.queue(2, desc, avail, used)
        tap.equal("queue reset: it works again", g.command(2, 0, READ, 512), GOOD)


def test_channel(tap):
    with Case() as (m, _):
        m.qmp("device_del", id="d1")
        answer = m.qmp("device_add", driver="scsi-hd", id="dx", bus="vs.0",
                       drive="target", channel=0xffffffff)
        tap.result("channel=4294967295 is out of range" in
                   answer.get("error", {}).get("desc", ""),
                   "channel=4294967295 is refused", answer)


def test_cdb_size(tap):
    with Case() as (m, g):
        start(g)
        g.write("l", 24, 64, kind=4)
        path = os.path.join(m.folder, "stream")
        m.qmp("migrate", uri="file:" + path)
        end = time.monotonic() + hostile.PATIENCE
        while m.qmp("query-migrate")["return"].get("status") != "completed":
            if time.monotonic() > end:
                raise hostile.Stuck("migration isn't completed")
            time.sleep(0.01)
        with Case("mapped", "-incoming", "file:" + path) as (there, _):
            while there.qmp("query-status")["return"]["status"] != "running":
                time.sleep(0.01)
            g.m = there
            response = post(g, 2, READ, 512, header=19 + 64)
            tap.result(answered(g, 2) and
                       (there.ram[response + 11], there.ram[response + 10]) == GOOD,
                       "cdb_size is taken over by a migration",
                       there.ram[response:response + 12])


def main():
    tap = Tap()
    for name, test in (("channel", test_channel), ("block size", test_block_size),
                       ("cdb_size", test_cdb_size),
                       ("queue reset", test_queue_reset),
                       ("flush", lambda t: test_flush(t, "mapped")),
                       ("flush", lambda t: test_flush(t, "no-ioeventfd"))):
        try:
            test(tap)
        except hostile.Stuck as error:
            tap.result(False, name, error)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
