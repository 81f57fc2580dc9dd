#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a mapped virtio-scsi controller with images of a Ceph cluster.

The cluster is private to each class: a monitor and one OSD (VirtioScsiCeph), or
three OSDs and two copies of everything (VirtioScsiCephCopies).  The controller
has 4 queues.  Daemons are killed under load that is verified, and come back;
images are resized and cloned, snapshots are taken.  Nothing asserts how long a
guest waits meanwhile; the tests print it.

QEMU_TEST_QEMU_BINARY must have the rbd driver; see virtio_scsi_storage.py for
the guest.
"""

import shutil
import unittest

from ceph_cluster import PROGRAMS, Cluster
from guest_shell import expect, wait_for
from qemu_test import QemuSystemTest
from virtio_scsi_guest import GuestTest
from virtio_scsi_storage import QUEUES, StorageGuest, generator, scsi

SIZE = 128                      # MiB of each image
SECONDS = 4
OUTAGE = 6                      # seconds of each turn of load then


class CephTest(GuestTest):
    """A cluster with two images, a guest that has both on one controller."""

    OSDS = 1
    cluster = None
    iothreads = QUEUES

    @classmethod
    def setUpClass(cls):
        missing = [name for name in PROGRAMS if not shutil.which(name)]
        if missing:
            raise unittest.SkipTest(f"not installed: {', '.join(missing)}")
        super().setUpClass()
        cls.cluster = Cluster(f"{cls.scratch}/cluster", cls.OSDS)
        cls.cluster.start()
        for name in ("one", "two", "plain"):
            cls.cluster.rbd("create", "--size", str(SIZE), name)

    @classmethod
    def tearDownClass(cls):
        cls.drop()
        if cls.cluster:
            cls.cluster.end()
        super().tearDownClass()

    @classmethod
    def vm(cls, iothreads=QUEUES):
        if cls.guest and cls.iothreads != iothreads:
            cls.guest.end()
            cls.drop()
        if not cls.guest:
            names = ("one", "two")
            cls.iothreads = iothreads
            cls.guest = StorageGuest(
                "guest", {n: cls.cluster.node(n) for n in names},
                [scsi("scsi-hd", lun, n) for lun, n in enumerate(names)],
                cls.folder, iothreads)
            cls.guest.prepare()
        return cls.guest

    def run_guarded(self, function, iothreads=QUEUES):
        self.guarded(lambda _: function(self.vm(iothreads)))

    def end_guest(self):
        def end(vm):
            vm.end()
            self.drop()
        self.run_guarded(end)


def load_both(vm, seconds=SECONDS):
    """Two images on one controller, by all queues."""
    vm.get_qmp_events()
    before = vm.work()
    for lun in (0, 1):
        vm.start_load(lun, seconds)
    for lun in (0, 1):
        vm.finish_load(lun)
    seconds, irqs = vm.work()
    for i, (old, new) in enumerate(zip(before[1], irqs)):
        expect(new > old, f"queue {i} never interrupted the guest")
    for name, used in seconds.items():
        expect(used > before[0][name], f"{name} did no work")
    vm.no_errors()


def killed(vm, cluster, name, away):
    """A daemon dies under load, is away so many seconds, and comes back."""
    vm.get_qmp_events()
    for lun in (0, 1):
        vm.start_load(lun, OUTAGE)
    for lun in (0, 1):
        vm.goes_on(lun)
    cluster.kill(name)
    vm.shell.run(f"sleep {away}")
    expect(vm.status() == "running", f"the VM is {vm.status()}")
    cluster.spawn(name)
    for lun in (0, 1):
        vm.goes_on(lun)
    for lun in (0, 1):
        vm.finish_load(lun)
        print(f"# {name} away for {away} s: the longest I/O of LUN {lun} took "
              f"{vm.longest_wait(lun) / 1000:.1f} s")
    vm.no_errors()
    wait_for("OSDs", cluster.up, 120)


def checksum(vm, lun, mib=SIZE):
    return vm.shell.run(f"dd if={vm.disk(lun)} bs=1M count={mib} iflag=direct "
                        "2> /dev/null | md5sum")[0].split()[0]


def snapshots(vm, cluster):
    """What a snapshot holds stays, while the image is written."""
    vm.shell.run(f"dd if=/dev/urandom of={vm.disk(0)} bs=1M count=32 seek=64 "
                 "oflag=direct")
    vm.start_load(0, 4)
    vm.goes_on(0)
    cluster.rbd("snap", "create", "one@then")
    cluster.rbd("snap", "protect", "one@then")
    cluster.rbd("clone", "one@then", "copy")
    vm.command("blockdev-add", node_name="copy", **cluster.node("copy"))
    vm.command("device_add", **scsi("scsi-hd", 2, "copy"))
    # What the load doesn't touch is the same in both.
    halves = [vm.shell.run(f"dd if={vm.disk(lun)} bs=1M skip=64 count=32 "
                           "iflag=direct 2> /dev/null | md5sum")
              for lun in (0, 2)]
    expect(halves[0] == halves[1], "the clone holds other data than the image")
    before = checksum(vm, 2)
    vm.goes_on(0)
    expect(checksum(vm, 2) == before, "a write to the image changed the clone")
    vm.start_load(2, 4)         # the clone copies what it writes
    vm.finish_load(2)
    cluster.rbd("flatten", "copy")
    vm.start_load(2, 4)
    vm.finish_load(2)
    vm.finish_load(0)
    vm.command("device_del", id="lun2")
    wait_for("DEVICE_DELETED", lambda: vm.event_wait(
        "DEVICE_DELETED", 0.2, {"data": {"device": "lun2"}}), 60, 0)
    vm.command("blockdev-del", node_name="copy")
    vm.no_errors()


def resize(vm):
    """The guest sees the new size, and uses what is new, while it works."""
    vm.start_load(0, 4)
    vm.goes_on(0)
    vm.command("block_resize", node_name="one", size=2 * SIZE << 20)
    disk = vm.node_of(0)
    wait_for("new size in the guest", lambda: vm.shell.run(
        f"cat /sys/block/{disk}/size")[0] == str(2 * SIZE << 11), 60)
    vm.shell.run(f"dd if=/dev/urandom of=/dev/{disk} bs=1M count=16 "
                 f"seek={2 * SIZE - 16} oflag=direct")
    vm.finish_load(0)
    vm.no_errors()


class VirtioScsiCeph(CephTest, QemuSystemTest):
    """One OSD: without it everything waits."""

    def test_1_generator(self):
        for iothreads in (1, 2, 4):
            told = generator(self.cluster.node("plain"), iothreads=iothreads)
            print(f"# {iothreads} IOThreads: {told['iops']:.0f} IOPS, "
                  f"{told['cpu_ns_per_io'] / 1000:.1f} us of the IOThreads, "
                  f"{told['qemu_cpu_ns_per_io'] / 1000:.1f} us of QEMU each")

    def test_2_load_1_iothread(self):
        self.run_guarded(load_both, 1)

    def test_2_load_2_iothreads(self):
        self.run_guarded(load_both, 2)

    def test_2_load_4_iothreads(self):
        self.run_guarded(load_both)

    def test_3_snapshots(self):
        self.run_guarded(lambda vm: snapshots(vm, self.cluster))

    def test_4_resize(self):
        self.run_guarded(resize)

    def test_5_osd_killed(self):
        self.run_guarded(lambda vm: killed(vm, self.cluster, "osd.0", 3))

    def test_6_monitor_killed(self):
        self.run_guarded(lambda vm: killed(vm, self.cluster, "mon.a", 3))

    def test_7_end(self):
        self.end_guest()


class VirtioScsiCephCopies(CephTest, QemuSystemTest):
    """Three OSDs: one may be away for longer."""

    OSDS = 3

    def test_1_osd_killed(self):
        self.run_guarded(lambda vm: killed(vm, self.cluster, "osd.0", 10))

    def test_2_another_killed(self):
        self.run_guarded(lambda vm: killed(vm, self.cluster, "osd.1", 3))

    def test_3_end(self):
        self.end_guest()


if __name__ == '__main__':
    QemuSystemTest.main()
