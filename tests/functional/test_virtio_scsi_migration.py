#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""Move a Linux guest at work from QEMU to QEMU.

In the guest fio reads, writes and verifies one disk, with a job for each of
four virtqueues.  After each migration the load must go on, served by exactly
the IOThreads that the destination's mapping names, and end without error; the
QEMU that the guest left must end well.  All sides share a raw file.

A side is BUILD.MAPPING.  BUILD is ours (QEMU_TEST_QEMU_BINARY); stock, another
build of the same version (QEMU_TEST_QEMU_BINARY_OTHER); or newer, a version to
which guests may move later (QEMU_TEST_QEMU_BINARY_NEWER).  Tests that want what
isn't there are skipped.
"""

import ctypes
import json
import os
import time
import unittest

from guest_shell import (EmulatorFault, GuestError, Sample, difference, expect,
                         fio_verified, iothread_times, judge_cpu, wait_for)
from qemu_test import QemuSystemTest
from virtio_scsi_guest import GuestMachine, GuestTest, output

QUEUES = 4
IOTHREADS = 4                   # in every QEMU, whether it uses them or not
DISK_SIZE = 1 << 30
KEPT = "--offset=768M --size=8M"    # written once, the load does not touch it
ENOUGH = 3000                   # requests that show who serves the queues
SOME = 200                      # interrupts of each queue that must come
LIMIT = 240                     # seconds, a hang guard
SLOW = 30                       # seconds after which downtime may be longer
MEGABYTE = 1 << 20
TROUBLE = "(abort|device reset)$|I/O error|blocked for more than"
BACKEND = "/machine/peripheral/scsi0/virtio-backend"
BINARIES = {"ours": "QEMU_TEST_QEMU_BINARY",
            "stock": "QEMU_TEST_QEMU_BINARY_OTHER",
            "newer": "QEMU_TEST_QEMU_BINARY_NEWER"}

# mapping: (form of the property, queues of iothread0, iothread1, ...)
MAPPINGS = {
    "one-vq": ("vqs", [[0], [1], [2], [3]]),
    "crossed": ("vqs", [[3], [0, 2], [1], []]),
    "round-robin": ("list", [[0, 3], [1], [2], []]),
    "iothread": ("iothread", [[0, 1, 2, 3], [], [], []]),
    "main-loop": ("none", [[], [], [], []]),
}


class Side:
    """A QEMU to start."""

    def __init__(self, name):
        self.name = name
        self.build, mapping = name.split(".")
        self.qemu = os.environ[BINARIES[self.build]]
        self.form, self.queues = MAPPINGS[mapping]

    def controller(self, **more):
        """The controller's properties."""
        device = {"driver": "virtio-scsi-pci", "id": "scsi0",
                  "num_queues": QUEUES}
        used = [(f"iothread{i}", vqs) for i, vqs in enumerate(self.queues)
                if vqs]
        if self.form == "iothread":
            device["iothread"] = used[0][0]
        elif self.form == "list":
            device["iothread-vq-mapping"] = [{"iothread": t} for t, _ in used]
        elif self.form == "vqs":
            device["iothread-vq-mapping"] = [{"iothread": t, "vqs": vqs}
                                             for t, vqs in used]
        device.update(more)
        return device


class MovingGuest(GuestMachine):
    """A guest with the disk, on the sending or on the receiving side."""

    def __init__(self, side, disk, logs, machine, lun_props, incoming=False,
                 **controller):
        args = ["-machine", machine]
        for i in range(IOTHREADS):
            args += ["-object", f"iothread,id=iothread{i}"]
        node = {"driver": "file", "node-name": "disk0", "filename": disk,
                "aio": "native", "cache": {"direct": True}}
        # A disk that fails stops the VM: some tests want just that.
        lun = {"driver": "scsi-hd", "id": "hd0", "bus": "scsi0.0",
               "drive": "disk0", "werror": "stop", "rerror": "stop"}
        if side.build == "ours":
            lun.update(lun_props)
        for option, value in (("-blockdev", node),
                              ("-device", side.controller(**controller)),
                              ("-device", lun)):
            args += [option, json.dumps(value)]
        if incoming:
            args += ["-incoming", "defer"]
        self.side, self.disk = side, disk
        super().__init__(side.qemu, side.name.replace(".", "-"), args, logs)
        if side.build == "newer":   # options of QEMUMachine's are no news
            self.excused = "warning: .* is deprecated"

    def remap(self, mapping):
        """Another mapping for the controller, which says so."""
        self.side = Side(f"ours.{mapping}")
        value = self.side.controller()["iothread-vq-mapping"]
        self.command("qom-set", path="/machine/peripheral/scsi0",
                     property="iothread-vq-mapping", value=value)

    def migration(self):
        return self.command("query-migrate")

    def allow(self, *capabilities, **parameters):
        """Set capabilities, all others are off, and parameters."""
        states = [{"capability": entry["capability"],
                   "state": entry["capability"] in capabilities
                   + ("events",)}
                  for entry in self.command("query-migrate-capabilities")]
        self.command("migrate-set-capabilities", capabilities=states)
        self.command("migrate-set-parameters", downtime_limit=1000,
                     **{"max_bandwidth": 0, **parameters})

    def listen(self, kind="unix"):
        """Wait for a migration; the address for the source."""
        uri = "tcp:127.0.0.1:0" if kind == "tcp" else \
            f"unix:{self.folder}/incoming"
        self.command("migrate-incoming", uri=uri)
        if kind == "tcp":
            address = self.migration()["socket-address"][0]
            uri = f"tcp:{address['host']}:{address['port']}"
        return uri

    def wait_migration(self, *wanted):
        """Until the migration has one of these states; what QEMU tells."""
        start, patient = time.monotonic(), False

        def reached():
            nonlocal patient
            info = self.migration()
            status = info.get("status", "none")
            if status in wanted:
                return info
            expect(status not in ("failed", "cancelled", "completed"),
                   f"{self.label}: the migration is {status}, not "
                   f"{' or '.join(wanted)}: {info.get('error-desc', '')}")
            if time.monotonic() - start > SLOW and not patient:
                patient = True
                self.command("migrate-set-parameters", downtime_limit=20000)
            return None

        return wait_for(f"{' or '.join(wanted)} migration", reached, LIMIT,
                        0.05)

    def wait_memory(self):
        wait_for("memory on its way", lambda: self.migration().get(
            "ram", {}).get("transferred", 0) > MEGABYTE, LIMIT)

    def wait_running(self):
        wait_for(f"guest that runs in {self.label}", lambda:
                 self.check_alive() or self.status() == "running", LIMIT)

    def migration_states(self):
        """Names of the states that the migration went through so far."""
        return [event["data"]["status"] for event in self.get_qmp_events()
                if event["event"] == "MIGRATION"]

    def pending(self):
        """Requests of each queue that the device has and the guest waits
        for."""
        return [self.command("x-query-virtio-queue-status", queue=2 + i,
                             path=BACKEND)["inuse"] for i in range(QUEUES)]


# --------------------------------------------------------------------- load

def kept(what):
    return ("fio --name=kept --filename=/dev/sda --direct=1 --bs=64k "
            f"--ioengine=libaio --verify=crc32c --verify_state_save=0 {KEPT} "
            f"--rw={what}")


def start_load(vm):
    """Verified load on all queues, until end_load(); returns at work."""
    vm.shell.start("load", fio_verified("sda", QUEUES), endless=True)
    watch_load(vm, ENOUGH // 3)


def end_load(vm):
    """fio must end well, and the guest's kernel must not have complained."""
    vm.shell.finish("load")
    vm.shell.run(kept("read"))
    _, said = vm.shell.run(f"dmesg | grep -E '{TROUBLE}'", check=False)
    expect(not said, f"the guest's kernel says: {said[0] if said else ''}")


def watch_load(vm, amount=ENOUGH):
    """Until that many requests were served, on all queues and by those who
    should."""
    first = last = Sample(vm)
    expect(len(first.interrupts) == QUEUES, f"{vm.label}: the guest uses "
           f"{len(first.interrupts)} queues, not {QUEUES}")
    end = time.monotonic() + LIMIT
    # A vCPU may get little of a busy host, so each queue has its time.
    while last.done - first.done < amount or min(last.since(first)) < SOME:
        vm.check_alive()
        expect(vm.status() == "running", f"{vm.label}: the VM is "
               f"{vm.status()}, the load can't go on")
        if time.monotonic() > end or not vm.shell.running("load"):
            raise stands_still(vm, last.done - first.done, last.since(first))
        time.sleep(0.3)
        last = Sample(vm)
    gains = last.since(first)
    for text in judge_cpu(
            vm.side.queues,
            iothread_times(difference(first.threads, last.threads)),
            lambda vqs: sum(gains[q] for q in vqs)):
        raise GuestError(f"{vm.label}: {text}")


def stands_still(vm, done, interrupts):
    """IOThreads of QEMU sometimes sleep while requests wait, on a quiet
    host and without any migration: that says nothing about ours."""
    text = (f"{vm.label}: the load stands still after {done} requests and "
            f"{interrupts} interrupts of its queues")
    if vm.side.build != "ours" and vm.shell.running("load"):
        return EmulatorFault(text)
    return GuestError(text)


# ------------------------------------------------------------- ways to move

def live(source, dest, kind="unix", capabilities=(), **parameters):
    """Precopy: memory first, while the guest goes on."""
    source.allow(*capabilities, **parameters)
    dest.allow(*capabilities, **parameters)
    source.command("migrate", uri=dest.listen(kind))
    source.wait_migration("completed")
    dest.wait_running()


def tcp(source, dest):
    live(source, dest, "tcp")


def multifd(source, dest):
    live(source, dest, "tcp", ("multifd",), multifd_channels=4)


def need_userfaultfd():
    """A host may keep it from QEMU, which asks in the same two ways."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        fd = libc.syscall(323, flags)           # x86-64's number
    else:
        fd = libc.ioctl(device, 0xAA00, flags)  # USERFAULTFD_IOC_NEW
        os.close(device)
    if fd < 0:
        raise unittest.SkipTest("postcopy needs userfaultfd: "
                                + os.strerror(ctypes.get_errno()))
    os.close(fd)


def postcopy(source, dest, *capabilities):
    """The guest goes first, most of its memory follows as it is used."""
    wanted = ("postcopy-ram", "return-path") + capabilities
    source.allow(*wanted, max_bandwidth=4 * MEGABYTE)
    dest.allow(*wanted)
    source.command("migrate", uri=dest.listen())
    source.wait_migration("active")
    source.wait_memory()
    source.command("migrate-start-postcopy")
    source.wait_migration("completed")
    dest.wait_running()
    dest.wait_migration("completed")
    expect("postcopy-active" in source.migration_states(),
           "the migration never went into postcopy")
    expect(source.migration()["ram"]["postcopy-requests"] > 0,
           "no page was asked for")


def preempt(source, dest):
    postcopy(source, dest, "postcopy-preempt")


def save(source, dest, capabilities=(), **parameters):
    """What libvirt's save and restore do: stop, to a file, from the file."""
    path = f"{source.disk}.state"
    source.command("stop")
    source.allow(*capabilities, **parameters)
    source.command("migrate", uri=f"file:{path}")
    source.wait_migration("completed")
    dest.allow(*capabilities, **parameters)
    dest.command("migrate-incoming", uri=f"file:{path}")
    dest.wait_migration("completed")
    os.unlink(path)
    expect(dest.status() == "paused", f"{dest.label}: the guest was saved "
           f"stopped and is {dest.status()}")
    dest.command("cont")
    dest.wait_running()


def save_mapped(source, dest):
    save(source, dest, ("mapped-ram", "multifd"), multifd_channels=2)


def throttle(vm, rate):
    """So many bytes a second; 0: no limit. command() would spell it -."""
    limits = ("iops", "bps_rd", "bps_wr", "iops_rd", "iops_wr")
    vm.cmd("block_set_io_throttle",
           {"id": "hd0", "bps": rate, **dict.fromkeys(limits, 0)})


def wait_pending(vm):
    def reached():
        vm.check_alive()
        waiting, status = vm.pending(), vm.status()
        expect(status == "running", f"{vm.label}: the VM is {status} before "
               f"each queue has a request: {waiting}")
        return all(waiting)

    wait_for("request in each queue", reached, LIMIT)


def break_disk(vm):
    """All requests fail from now on, and so the VM stops."""
    vm.command("blockdev-add", driver="blkdebug", node_name="bad",
               image="disk0", inject_error=[{"event": "none", "iotype": kind}
                                            for kind in ("read", "write")])
    # The first to fail stops the VM, so hold all back until each queue has
    # some. Throttling lets one more through before it does.
    throttle(vm, 1)
    wait_pending(vm)
    vm.command("qom-set", path="/machine/peripheral/hd0", property="drive",
               value="bad")
    wait_pending(vm)
    throttle(vm, 0)
    wait_for("stop by an error", lambda: vm.status() == "io-error", LIMIT)


def pending(source, dest):
    """While requests of all queues wait for the disk to recover."""
    break_disk(source)
    waiting = source.pending()
    expect(all(waiting), f"requests wait in some queues only: {waiting}")
    source.allow()
    dest.allow()
    source.command("migrate", uri=dest.listen())
    source.wait_migration("completed")
    wait_for(f"arrival in {dest.label}",
             lambda: dest.check_alive() or dest.status() == "io-error", LIMIT)
    expect(dest.pending() == waiting, f"{waiting} requests waited on the "
           f"source, {dest.pending()} on the destination")
    dest.command("cont")
    dest.wait_running()


# --------------------------------------------------------------------- tests

class MigrationTest(GuestTest):
    """The guest stays from test to test: most begin where the one before ends,
    which spares a boot.  The end of this file lists all of them."""

    MACHINE = "pc"
    CONTROLLER = {}             # properties on all sides
    LUN = {}                    # of the disk, on our sides
    guest = None                # where it is now
    others = []                 # QEMUs that it may go to, or has left

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.disk = f"{cls.scratch}/disk"

    @classmethod
    def tearDownClass(cls):
        try:
            if cls.guest:
                cls.guest.end()
        finally:
            cls.drop()
            super().tearDownClass()

    @classmethod
    def machines(cls):
        return cls.others + ([cls.guest] if cls.guest else [])

    @classmethod
    def drop(cls):
        for vm in cls.machines():
            vm.discard()
        cls.guest, cls.others = None, []

    def at_work(self, name):
        """The guest on this side, under load, booted if it is elsewhere."""
        cls = type(self)
        if not cls.guest or cls.guest.side.name != name:
            if cls.guest:
                cls.guest.end()
            self.drop()
            with open(self.disk, "wb") as f:
                f.truncate(DISK_SIZE)
            cls.guest = MovingGuest(Side(name), self.disk, self.folder,
                                    self.MACHINE, self.LUN, **self.CONTROLLER)
            shell = cls.guest.boot().shell
            wait_for("disk in the guest", lambda: shell.run(
                "test -b /dev/sda", check=False)[0] == 0)
            shell.run(kept("write --do_verify=0"))
        start_load(cls.guest)
        return cls.guest

    def destination(self, name, lun=None, **controller):
        vm = MovingGuest(Side(name), self.disk, self.folder, self.MACHINE,
                         self.LUN if lun is None else lun, True,
                         **self.CONTROLLER, **controller)
        self.others.append(vm)
        vm.start()
        return vm

    def arrived(self, vm, goes_on=False):
        """The guest is at vm: the QEMU that it left must end well, and the load
        here, unless it goes on."""
        cls = type(self)
        left, cls.guest = cls.guest, vm
        self.others.remove(vm)
        self.others.append(left)
        left.end()
        self.lose(left)
        watch_load(vm)
        if not goes_on:
            end_load(vm)

    def lose(self, vm):
        self.others.remove(vm)
        vm.discard()

    def still_here(self, old, new):
        """The guest and its load go on where they are, and can go later."""
        self.lose(new)
        watch_load(old)

    def move(self, way, source, dest):
        """One hop under load."""
        if way in (postcopy, preempt):
            need_userfaultfd()
        old = self.at_work(source)
        new = self.destination(dest)
        way(old, new)
        self.arrived(new)

    def remapped(self, _, source, dest):
        """Both sides get other mappings while the guest is on its way."""
        old = self.at_work(source)
        new = self.destination(dest)
        new.remap("crossed")
        # Minutes for memory, on any host
        old.allow("pause-before-switchover", max_bandwidth=MEGABYTE // 4)
        old.command("migrate", uri=new.listen())
        old.wait_memory()
        old.remap("crossed")
        new.remap("round-robin")
        watch_load(old)
        status = old.migration()["status"]
        expect(status == "active", "the migration did not wait for the change, "
               f"but is {status}")
        old.command("migrate-set-parameters", max_bandwidth=0)
        old.wait_migration("pre-switchover")
        old.remap("one-vq")
        old.command("migrate-continue", state="pre-switchover")
        old.wait_migration("completed")
        new.wait_running()
        self.arrived(new, True)
        new.remap("crossed")
        watch_load(new)
        end_load(new)

    def cancel(self, _, source, dest):
        """Cancelled while memory goes over, and when all but state is over."""
        old = self.at_work(source)
        new = self.destination(dest)
        old.allow(max_bandwidth=2 * MEGABYTE)
        old.command("migrate", uri=new.listen())
        old.wait_memory()
        old.command("migrate_cancel")
        old.wait_migration("cancelled")
        # What the base says to that depends on where it was just then.
        old.excused = "Channel error: |Unable to write to socket: Broken " \
                      "pipe|failed to save SaveStateEntry with id"
        self.still_here(old, new)

        new = self.destination(dest)
        old.allow("pause-before-switchover")
        old.command("migrate", uri=new.listen())
        old.wait_migration("pre-switchover")
        expect(old.status() != "running", "the guest runs in pre-switchover")
        old.command("migrate_cancel")
        old.wait_migration("cancelled")
        old.wait_running()
        self.still_here(old, new)

        new = self.destination(dest)
        live(old, new)
        self.arrived(new)

    def refused(self, argument, source, dest):
        """The destination refuses; the source goes on, one way or the other."""
        said, lun, controller = argument
        old = self.at_work(source)
        old.excused = "Sibling indicated error|Channel error: |" \
                      "Unable to write to socket"
        # The source waits for the destination's word and goes on by itself.
        new = self.destination(dest, lun, **controller)
        old.allow("return-path")
        new.allow("return-path")
        old.command("migrate", uri=new.listen())
        old.wait_migration("failed")
        old.wait_running()
        self.must_refuse(new, said)
        self.still_here(old, new)
        # It does not wait: whoever manages it takes the guest back.
        new = self.destination(dest, lun, **controller)
        old.allow()
        old.command("migrate", uri=new.listen())
        old.wait_migration("completed", "failed")
        self.must_refuse(new, said)
        old.command("cont")
        old.wait_running()
        self.still_here(old, new)
        end_load(old)

    def must_refuse(self, new, text):
        """The destination ends, with one error that has the text."""
        wait_for(f"end of {new.label}", lambda: not new.is_running(), LIMIT)
        expect(new.exitcode() == 1, f"{new.label}: QEMU ended with status "
               f"{new.exitcode()}")
        said = [s for s in new.messages() if text in s]
        expect(len(said) == 1, f"{new.label}: no error says {text!r}, but: "
               f"{new.messages()}")

    def unknown_iothread(self, _, __, dest):
        mapping = [{"iothread": "iothread0"}, {"iothread": "gone"}]
        with self.assertRaisesRegex(GuestError, "there is no IOThread 'gone'"):
            self.destination(dest, **{"iothread-vq-mapping": mapping})
        self.lose(self.others[-1])


class VirtioScsiMigration(MigrationTest, QemuSystemTest):
    """Between builds of this version."""


class VirtioScsiMigrationStandard(MigrationTest, QemuSystemTest):
    """Of a disk that QEMU 10.0 doesn't have."""

    LUN = {"standard-answers": True}


class VirtioScsiMigrationNewer(MigrationTest, QemuSystemTest):
    """To the version that guests may move to later, and back: with a machine
    that both have, and the one virtqueue_size with which its virtio-scsi takes
    what QEMU 10.0 sends."""

    MACHINE = "pc-i440fx-10.0"
    CONTROLLER = {"virtqueue_size": 1024}

    @classmethod
    def setUpClass(cls):
        if not os.getenv(BINARIES["newer"]):
            raise unittest.SkipTest(f"{BINARIES['newer']} is not set")
        super().setUpClass()
        print("# newer: " + output(os.environ[BINARIES["newer"]],
                                   "--version").splitlines()[0], flush=True)


def chain(way, *sides):
    return [(way.__name__, MigrationTest.move, way, a, b)
            for a, b in zip(sides, sides[1:])]


# (name, function, its argument, source, destination)
SAME = [
    *chain(live, "ours.one-vq", "ours.round-robin", "stock.crossed",
           "ours.iothread", "ours.main-loop", "ours.crossed", "stock.one-vq",
           "ours.round-robin"),
    *chain(tcp, "ours.round-robin", "stock.main-loop", "ours.one-vq",
           "stock.iothread", "ours.crossed"),
    *chain(multifd, "ours.crossed", "ours.one-vq", "stock.round-robin",
           "ours.crossed"),
    *chain(postcopy, "ours.crossed", "ours.round-robin", "stock.one-vq",
           "ours.one-vq"),
    *chain(preempt, "ours.one-vq", "ours.crossed"),
    *chain(save, "ours.crossed", "ours.one-vq", "stock.iothread",
           "ours.round-robin"),
    *chain(save_mapped, "ours.round-robin", "ours.one-vq"),
    *chain(pending, "ours.one-vq", "ours.crossed", "ours.main-loop",
           "ours.round-robin", "stock.crossed", "ours.one-vq"),
    ("remapped", MigrationTest.remapped, None, "ours.one-vq",
     "ours.one-vq"),
    ("cancel", MigrationTest.cancel, None, "ours.one-vq",
     "ours.crossed"),
    ("cancel", MigrationTest.cancel, None, "ours.crossed",
     "stock.one-vq"),
    ("cancel", MigrationTest.cancel, None, "stock.one-vq",
     "ours.one-vq"),
    ("fewer_queues", MigrationTest.refused,
     ("num_queues is 2", None, {"num_queues": 2}),
     "ours.one-vq", "ours.round-robin"),
    ("fewer_queues_same_vectors", MigrationTest.refused,
     ("num_queues is 2", None, {"num_queues": 2, "vectors": 7}),
     "ours.one-vq", "ours.round-robin"),
    ("unknown_iothread", MigrationTest.unknown_iothread, None,
     "ours.one-vq", "ours.round-robin"),
]

STANDARD = [
    *chain(live, "ours.one-vq", "ours.crossed"),
    ("to_default", MigrationTest.refused,
     ("standard-answers of hd0 is off", {}, {}), "ours.crossed", "ours.one-vq"),
    ("to_stock", MigrationTest.refused, ("/scsi-disk'", {}, {}),
     "ours.crossed", "stock.one-vq"),
]

NEWER = [
    *chain(live, "ours.one-vq", "newer.crossed", "ours.iothread",
           "newer.round-robin", "ours.crossed"),
    *chain(pending, "ours.crossed", "newer.one-vq", "ours.round-robin"),
    *chain(save, "ours.round-robin", "newer.main-loop", "ours.one-vq"),
]


def add_tests(cls, tests):
    """Methods of the class; their names keep them in order."""
    for i, (name, function, argument, source, dest) in enumerate(tests, 1):
        def test(self, call=(function, argument, source, dest)):
            self.guarded(*call)
        for build, binary in BINARIES.items():
            if build in source + dest:
                test = unittest.skipUnless(os.getenv(binary),
                                           f"{binary} is not set")(test)
        path = f"{name}_{source}_to_{dest}"
        path = path.replace(".", "_").replace("-", "_")
        setattr(cls, f"test_{i:02}_{path}", test)


add_tests(VirtioScsiMigration, SAME)
add_tests(VirtioScsiMigrationStandard, STANDARD)
add_tests(VirtioScsiMigrationNewer, NEWER)

if __name__ == '__main__':
    QemuSystemTest.main()
