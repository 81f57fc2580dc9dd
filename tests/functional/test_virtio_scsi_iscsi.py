#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a mapped virtio-scsi controller with disks of an iSCSI target.

The target is tgtd on 127.0.0.1, private to each class.  The controller has 4
queues; its disks are scsi-hd, scsi-block and scsi-generic on QEMU's libiscsi
driver, two scsi-block of which are two initiators of one LUN.

  VirtioScsiIscsi           I/O, what is passed through, reservations, resets
  VirtioScsiIscsiOutage     a target that goes and returns, and LUNs that do
  VirtioScsiIscsiErrors     one that doesn't answer: rerror, werror, migration

QEMU_TEST_QEMU_BINARY must have the iscsi driver; see virtio_scsi_storage.py for
the guest.
"""

import contextlib
import os
import re
import unittest

from guest_shell import GuestError, expect, wait_for
from iscsi_target import TGTD, Target
from qemu_test import QemuSystemTest
from virtio_scsi_guest import GuestTest
from virtio_scsi_storage import QUEUES, StorageGuest, generator, scsi

MIB = 1 << 20
SECONDS = 4
DRIVERS = ("scsi-hd", "scsi-block", "scsi-generic")
UNIT_ATTENTION, CONFLICT = 6, 24    # exit statuses of sg3_utils
# Guest's LUNs
HD, ONE, TWO, GENERIC = range(4)
NAMES = {"vendor_id": "PASSED", "product_id": "THROUGH", "product_rev": "7.25",
         "scsi_sn": "serial-of-it", "scsi_id": "IDENTITY-OF-IT"}
KEYS = {ONE: "a1", TWO: "b2"}
# Types of reservations (SPC-4, 5.13.5)
EXCLUSIVE_ACCESS = (3, 6, 8)        # who isn't registered can't even read
REGISTRANTS = (5, 6, 7, 8)          # others who are registered may write
# A target that doesn't answer makes QEMU say so.
COMPLAINTS = (r"iSCSI|no answer|^qemu-system-x86_64: (NOP timeout|reconnect|"
              r"connect)")


class IscsiTest(GuestTest):
    """A target, and one guest for the class."""

    target = None

    @classmethod
    def setUpClass(cls):
        if not TGTD:
            raise unittest.SkipTest("tgtd is not installed")
        super().setUpClass()
        cls.target = Target(cls.scratch)
        cls.make_luns(cls.target)
        cls.target.start()

    @classmethod
    def tearDownClass(cls):
        cls.drop()
        if cls.target:
            cls.target.end()
        super().tearDownClass()

    @classmethod
    def vm(cls):
        if not cls.guest:
            nodes, disks = cls.configuration(cls.target)
            cls.guest = StorageGuest("guest", nodes, disks, cls.folder)
            cls.guest.excused = COMPLAINTS
            cls.guest.prepare()
        return cls.guest

    def run_guarded(self, function):
        self.guarded(lambda _: function(self.vm()))

    def end_guest(self):
        def end(vm):
            vm.end()
            self.drop()
        self.run_guarded(end)


def load_all(vm, luns, seconds=SECONDS, extra=""):
    """Verified load on these LUNs at the same time, by all queues."""
    before = vm.work()
    for lun in luns:
        vm.start_load(lun, seconds, extra)
    for lun in luns:
        vm.finish_load(lun)
    idle = list(vm.idle_since(before, QUEUES))
    expect(not idle, "; ".join(idle))


def raw(vm, lun, cdb, options="", limit=60):
    """(exit status, output) of a command that sg_raw sends."""
    status, lines = vm.shell.run(f"sg_raw {options} {vm.sg(lun)} {cdb}", limit,
                                 False)
    return status, "\n".join(lines)


def read(vm, lun):
    return raw(vm, lun, "28 00 00 00 00 00 00 00 01 00", "-r 512")


def write(vm, lun):
    return raw(vm, lun, "2a 00 00 00 00 00 00 00 01 00",
               "-s 512 -i /dev/zero")


def settled(command, vm, lun):
    """Exit status of a command, and whether a unit attention came before."""
    status, _ = command(vm, lun)
    if status != UNIT_ATTENTION:
        return status, False
    status, text = command(vm, lun)
    expect(status != UNIT_ATTENTION, f"LUN {lun} tells of a unit attention "
           f"twice: {text}")
    return status, True


# --------------------------------------------------------- what passes through

def names(vm):
    """What the target says of the LUN, not QEMU."""
    for lun in (ONE, GENERIC):
        text = "\n".join(vm.shell.run(f"sg_inq {vm.sg(lun)}"))
        for name in ("vendor_id", "product_id", "product_rev"):
            expect(NAMES[name] in text, f"LUN {lun}: INQUIRY without "
                   f"{NAMES[name]}: {text}")
        text = "\n".join(vm.shell.run(f"sg_vpd -p sn {vm.sg(lun)}"))
        expect(NAMES["scsi_sn"] in text, f"LUN {lun}: page 80h says {text}")
        text = "\n".join(vm.shell.run(f"sg_vpd -p di {vm.sg(lun)}"))
        # A T10 vendor ID: 8 characters of the vendor's, then of its own
        expect(NAMES["scsi_id"][8:] in text, f"LUN {lun}: page 83h: {text}")
    text = "\n".join(vm.shell.run(f"sg_inq {vm.sg(HD)}"))
    expect("QEMU" in text, f"scsi-hd says it is something else: {text}")


def residuals(vm):
    """A command that asks for more than there is gets that, and the truth."""
    for lun in (ONE, GENERIC):
        _, text = raw(vm, lun, "12 00 00 00 ff 00", "-r 255")
        told = int(re.search(r"Received (\d+) bytes", text).group(1))
        data = re.findall(r"^ *[0-9a-f]+ +((?:[0-9a-f]{2} +){5})", text, re.M)
        length = int(data[0].split()[4], 16) + 5
        expect(told == length < 255, f"LUN {lun}: INQUIRY has {length} bytes, "
               f"the guest was told of {told}")


def limits(vm):
    """Page B0h has the limits of the node, whatever else the guest asked."""
    def limit(lun):
        text = "\n".join(vm.shell.run(f"sg_vpd -p bl {vm.sg(lun)}"))
        found = int(re.search(r"Maximum transfer length: (\w+)",
                              text).group(1), 0)
        expect(found > 0, f"LUN {lun} has no limit for the guest: {text}")
        return found

    for lun in (ONE, GENERIC):
        before = limit(lun)
        # Answers that are cut: what isn't there mustn't be looked at.
        for cdb, size in (("25 00 00 00 00 00 00 00 00 00", 1),
                          ("25 00 00 00 00 00 00 00 00 00", 7),
                          ("9e 10" + 11 * " 00" + " 04 00 00", 4),
                          ("12 00 00 00 01 00", 1), ("1a 00 3f 00 01 00", 1)):
            raw(vm, lun, cdb, f"-r {size}")
            after = limit(lun)
            expect(after == before, f"LUN {lun}: after {size} bytes of the "
                   f"answer to {cdb} the limit is {after}, not {before}")
        disk = vm.node_of(lun)
        most = int(vm.shell.run(f"cat /sys/block/{disk}/queue/"
                                "max_sectors_kb")[0])
        expect(most * 2 <= before, f"the guest may send {most} KiB to LUN "
               f"{lun}, which has a limit of {before} blocks")


def zeroes(target, lun):
    """Writes of zeroes, which the target makes, are the first ones that the
    node gets from any IOThread."""
    with open(target.path(lun), "r+b") as f:
        f.write(b"\xee" * MIB)
    generator(target.node(lun, detect_zeroes="on"), "--rw", "write",
              "--region", "1M", seconds=1, verify=False)
    with open(target.path(lun), "rb") as f:
        found = {f.read(512) for _ in range(MIB // 512)}
    expect(bytes(512) in found, "no block became zero")


def copies(vm, target):
    """A backup that asks the target to copy."""
    for number in (8, 9):
        target.add(number, MIB)
        vm.command("blockdev-add", node_name=f"copy{number}",
                   **target.node(number))
    with open(target.path(8), "r+b") as f:
        f.write(os.urandom(MIB))
    vm.command("blockdev-backup", job_id="copy", device="copy8", target="copy9",
               sync="full", x_perf={"use-copy-range": True})
    wait_for("end of the backup",
             lambda: not vm.command("query-block-jobs"))
    with open(target.path(8), "rb") as one, open(target.path(9), "rb") as two:
        expect(one.read() == two.read(), "the copy isn't like the disk")
    for number in (8, 9):
        vm.command("blockdev-del", node_name=f"copy{number}")
        target.remove(number)


# ---------------------------------------------------------------- reservations

def persist(vm, lun, words, kind=0):
    """sg_persist --out; its exit status, past a unit attention."""
    def command(vm, lun):
        kind_word = f"--prout-type={kind} " if kind else ""
        return vm.shell.run(f"sg_persist --out {words} {kind_word}"
                            f"{vm.sg(lun)}", check=False)
    return settled(command, vm, lun)[0]


def register(vm, lun):
    status = persist(vm, lun, f"--register-ignore --param-sark={KEYS[lun]}")
    expect(status == 0, f"LUN {lun} can't register: status {status}")


def keys(vm, lun):
    settled(lambda *_: vm.shell.run(f"sg_persist -k {vm.sg(lun)}", check=False),
            vm, lun)
    lines = vm.shell.run(f"sg_persist -k {vm.sg(lun)}")
    return sorted(s.strip() for s in lines if re.match(r"\s+0x", s))


def may(vm, lun, kind, reads, writes):
    for command, good in ((read, reads), (write, writes)):
        status, _ = settled(command, vm, lun)
        expect(status == (0 if good else CONFLICT), f"type {kind}, LUN {lun}: "
               f"a {command.__name__} ends with status {status}, not "
               f"{'GOOD' if good else 'RESERVATION CONFLICT'}")


def reservation(vm, kind):
    """One type, from register to clear."""
    register(vm, ONE)
    status = persist(vm, ONE, f"--reserve --param-rk={KEYS[ONE]}", kind)
    expect(status == 0, f"type {kind} can't be reserved: status {status}")
    may(vm, ONE, kind, True, True)
    may(vm, TWO, kind, kind not in EXCLUSIVE_ACCESS, False)
    register(vm, TWO)
    may(vm, TWO, kind, kind != 3, kind in REGISTRANTS)
    status = persist(vm, TWO, f"--preempt --param-rk={KEYS[TWO]} "
                     f"--param-sark={KEYS[ONE]}", kind)
    expect(status == 0, f"type {kind} can't be preempted: status {status}")
    expect(keys(vm, TWO) == ["0x" + KEYS[TWO]], f"after preempt: "
           f"{keys(vm, TWO)}")
    may(vm, ONE, kind, kind not in EXCLUSIVE_ACCESS, False)
    may(vm, TWO, kind, True, True)
    status = persist(vm, TWO, f"--clear --param-rk={KEYS[TWO]}")
    expect(status == 0, f"type {kind} can't be cleared: status {status}")
    may(vm, ONE, kind, True, True)
    expect(not keys(vm, ONE), f"after clear: {keys(vm, ONE)}")


def attentions(vm):
    """The one who is preempted is told once, the other never."""
    register(vm, ONE)
    register(vm, TWO)
    for lun in (ONE, TWO):
        settled(read, vm, lun)
    persist(vm, TWO, f"--preempt --param-rk={KEYS[TWO]} --param-sark="
            f"{KEYS[ONE]}", 5)
    status, text = read(vm, ONE)
    expect(status == UNIT_ATTENTION and "preempted" in text.lower(),
           f"who was preempted gets status {status}: {text}")
    for lun in (ONE, TWO):
        status, text = read(vm, lun)
        expect(status == 0, f"LUN {lun} then gets status {status}: {text}")
    persist(vm, TWO, f"--clear --param-rk={KEYS[TWO]}")
    settled(read, vm, ONE)


# -------------------------------------------------------- resets, and outages

def reset_while_held(vm, target, lun):
    """A reset of a LUN whose target has its commands: both end when the target
    goes on, and the guest sends them again."""
    disk = vm.disk(lun)
    target.hold()
    try:
        vm.shell.start("read", f"dd if={disk} of=/dev/null bs=4k count=8 "
                       "iflag=direct")
        vm.shell.start("reset", f"sleep 1; sg_reset --device {disk}")
        vm.shell.run("sleep 3")
        expect(vm.shell.running("read"), "a read ends without target")
        status = vm.status()
        expect(status == "running", f"the VM is {status}")
    finally:
        target.go_on()
    vm.shell.finish("read")
    vm.shell.finish("reset")
    load_all(vm, [lun], 2)


def restarts(vm, target, luns):
    """tgtd killed and started again, twice, under load."""
    vm.get_qmp_events()
    for lun in luns:
        vm.start_load(lun, 4)
    for _ in range(2):
        for lun in luns:
            vm.goes_on(lun)
        target.kill()
        vm.shell.run("sleep 1")
        target.start()
    for lun in luns:
        vm.goes_on(lun)
    for lun in luns:
        vm.finish_load(lun)
        print(f"# LUN {lun}: the longest I/O took "
              f"{vm.longest_wait(lun) / 1000:.1f} s")
    vm.no_errors()


def comes_and_goes(vm, target, luns):
    """A LUN is added and removed, at the target too, while others work."""
    for lun in luns:
        vm.start_load(lun, 4)
    for turn in range(6):
        driver = DRIVERS[turn % 3]
        target.add(9, 16 * MIB)
        vm.command("blockdev-add", node_name="new", **target.node(9))
        vm.command("device_add", **scsi(driver, 9, "new"))
        vm.shell.run(f"dd if={vm.disk(9)} of=/dev/null bs=1M count=4 "
                     "iflag=direct")
        unplug(vm, 9)
        target.remove(9)
    for lun in luns:
        vm.finish_load(lun)
    vm.no_errors()


def unplug(vm, lun):
    vm.command("device_del", id=f"lun{lun}")
    wait_for("DEVICE_DELETED", lambda: vm.event_wait(
        "DEVICE_DELETED", 0.2, {"data": {"device": f"lun{lun}"}}), 60, 0)
    vm.command("blockdev-del", node_name="new")
    wait_for(f"end of LUN {lun} in the guest", lambda: vm.shell.run(
        f"ls -d /sys/bus/scsi/devices/*:0:0:{lun}", check=False)[0])


def other_size(vm, target):
    """A LUN that is gone at the target, and returns larger."""
    target.add(9, 16 * MIB)
    vm.command("blockdev-add", node_name="new", **target.node(9))
    vm.command("device_add", **scsi("scsi-block", 9, "new"))
    vm.disk(9)
    target.kill()
    target.luns.pop(9)
    target.start()
    status, text = settled_text(read, vm, 9)
    expect(status == 5 and "unit not supported" in text.lower(),
           f"a LUN that is gone: status {status}: {text}")
    target.add(9, 24 * MIB)
    status, text = settled_text(read, vm, 9)
    expect(status == 0, f"a LUN that is back: status {status}: {text}")
    lines = "\n".join(vm.shell.run(f"sg_readcap -b {vm.sg(9)}"))
    expect(int(lines.split()[0], 16) == 24 * MIB // 512,
           f"the guest reads a capacity of {lines}")
    # What is behind the old end is there for the guest, too.
    last = 24 * MIB // 512 - 1
    status, text = raw(vm, 9, f"28 00 {last >> 24:02x} {last >> 16 & 255:02x} "
                       f"{last >> 8 & 255:02x} {last & 255:02x} 00 00 01 00",
                       "-r 512")
    expect(status == 0, f"its last block: status {status}: {text}")
    unplug(vm, 9)
    target.remove(9)


def settled_text(command, vm, lun):
    status, text = command(vm, lun)
    return command(vm, lun) if status == UNIT_ATTENTION else (status, text)


# ------------------------------------------------------------------ no answer

@contextlib.contextmanager
def held(vm, target, *luns):
    """A target that doesn't answer commands for these LUNs, of which each gets
    one.  As that lasts longer than QEMU waits, it begins new sessions, at once
    or some seconds later, and libiscsi before 1.20 knows no limit of time for
    commands that come before one is there.  So back when all are."""
    vm.get_qmp_events()
    before = {lun: target.session(initiator(lun)) for lun in luns}
    target.hold()
    try:
        yield
    finally:
        target.go_on()
    for lun, session in before.items():
        wait_for(f"a new session for LUN {lun}",
                 lambda n=lun, s=session:
                 target.session(initiator(n)) not in (None, s), 120)
        ready(vm, lun)


def initiator(lun):
    return f"iqn.test:{lun}"


def no_answer(vm, target, luns):
    """A command that the target doesn't answer in time ends with a status of
    the host, and not as if the target had said something."""
    with held(vm, target, *luns):
        for lun in luns:
            _, text = raw(vm, lun, "00 00 00 00 00 00", "-vv")
            expect("host_status=0x05" in text.lower().replace(" ", ""),
                   f"TEST UNIT READY of LUN {lun} ends with: {text}")
            expect("check condition" not in text.lower(),
                   f"LUN {lun}: the target has said nothing, but: {text}")
    told = [s for s in vm.messages() if "no answer to command 0x00" in s]
    expect(len(told) == len(luns), f"QEMU says: {told}")


def ready(vm, lun):
    """Wait until the node has a session again."""
    wait_for(f"LUN {lun} to be ready", lambda: raw(
        vm, lun, "00 00 00 00 00 00")[0] == 0)


def policies(vm, target, kinds):
    """{lun: (rerror, werror)}; what the guest and QMP see of an error."""
    for lun, policy in kinds.items():
        for name, command in (("read", "if={} of=/dev/null iflag=direct"),
                              ("write", "if=/dev/zero of={} oflag=direct")):
            action = policy[name == "write"]
            with held(vm, target, lun):
                vm.shell.start(name, f"dd bs=4k count=1 "
                               + command.format(vm.disk(lun)))
                if action == "stop":
                    stops_and_goes_on(vm, target)
                else:
                    wait_for(f"end of the {name}",
                             lambda n=name: not vm.shell.running(n), 200)
            status = vm.status()
            expect(status == "running", f"{action}: the VM is {status}")
            check_policy(vm, lun, name, action)


def stops_and_goes_on(vm, target):
    """`cont` may be needed again, until there is a session."""
    wait_for("stop of the VM", lambda: vm.status() == "io-error", 90)
    target.go_on()
    for _ in range(20):
        vm.command("cont")
        try:
            wait_for("stop of the VM", lambda: vm.status() == "io-error", 3)
        except GuestError:
            return
    raise GuestError("the VM stops again and again though the target is back")


def check_policy(vm, lun, name, action):
    wait_for(f"end of the {name}", lambda: not vm.shell.running(name), 90)
    good = vm.shell.run(f"cat /tmp/{name}.status") == ["0"]
    expect(good == (action in ("ignore", "stop")), f"LUN {lun}, {action}: the "
           f"{name} ends {'well' if good else 'badly'}")
    told = {e["action"] for e in vm.io_errors()}
    expect(told == {{"auto": "report", "enospc": "report"}.get(action, action)},
           f"LUN {lun}, {action}: QEMU reported {told}")


def migrates(cls, target, image):
    """A VM that stopped by an error has a request that waits; it goes on where
    the VM does."""
    nodes, disks = cls.configuration(target)
    lun = cls.STOP
    source = StorageGuest("source", nodes, disks, cls.folder)
    dest = StorageGuest("dest", nodes, disks, cls.folder,
                        more=["-incoming", "defer"])
    source.excused = dest.excused = COMPLAINTS
    with source, dest:
        source.prepare()
        expected = source.shell.run(f"dd if={source.disk(lun)} bs=64k count=1 "
                                    "iflag=direct 2> /dev/null | md5sum")
        target.hold()
        try:
            source.shell.start("read", f"dd if={source.disk(lun)} bs=64k "
                               "count=1 iflag=direct 2> /dev/null | md5sum")
            wait_for("stop of the VM", lambda: source.status() == "io-error",
                     90)
        finally:
            target.go_on()
        dest.start()
        source.command("migrate", uri=f"file:{image}")
        wait_for("end of migration", lambda: source.command(
            "query-migrate").get("status") in ("completed", "failed"), 120)
        source.end()
        dest.command("migrate-incoming", uri=f"file:{image}")
        wait_for("end of migration", lambda: dest.command(
            "query-migrate").get("status") in ("completed", "failed"), 120)
        dest.command("cont")
        found = dest.shell.finish("read")
        expect(found == expected, f"the read that waited has {found}, not "
               f"{expected}")
        load_all(dest, [lun, cls.GENERIC], 2)
        dest.end()


# --------------------------------------------------------------------- tests

class VirtioScsiIscsi(IscsiTest, QemuSystemTest):
    """A target that works."""

    @classmethod
    def make_luns(cls, target):
        for number in (1, 2, 3):
            target.add(number, 64 * MIB, **NAMES)

    @classmethod
    def configuration(cls, target):
        nodes = {"hd": target.node(1), "generic": target.node(3),
                 **{f"block{i}": target.node(2, initiator_name=initiator(i))
                    for i in (ONE, TWO)}}
        return nodes, [scsi("scsi-hd", HD, "hd"),
                       scsi("scsi-block", ONE, f"block{ONE}", share_rw=True),
                       scsi("scsi-block", TWO, f"block{TWO}", share_rw=True),
                       scsi("scsi-generic", GENERIC, "generic")]

    def test_01_generator(self):
        for number, disk in enumerate(DRIVERS, 1):
            for iothreads in (1, 2, 4):
                told = generator(self.target.node(number), disk=disk,
                                 iothreads=iothreads, seconds=1)
                print(f"# {disk}, {iothreads} IOThreads: "
                      f"{told['iops']:.0f} IOPS, "
                      f"{told['cpu_ns_per_io'] / 1000:.1f} us each")

    def test_01_zeroes(self):
        zeroes(self.target, 1)

    def test_02_load(self):
        self.run_guarded(lambda vm: load_all(vm, (HD, ONE, GENERIC)))

    def test_03_unaligned(self):
        """Buffers begin in the middle of a page."""
        self.run_guarded(lambda vm: load_all(vm, (HD, ONE, GENERIC),
                                             extra="--bs=4608"))

    def test_04_names(self):
        self.run_guarded(names)

    def test_05_residuals(self):
        self.run_guarded(residuals)

    def test_06_limits(self):
        self.run_guarded(limits)

    def test_07_attentions(self):
        self.run_guarded(attentions)

    def test_08_reset(self):
        def resets(vm):
            for lun in (HD, ONE, GENERIC):
                reset_while_held(vm, self.target, lun)
        self.run_guarded(resets)

    def test_10_copies(self):
        self.run_guarded(lambda vm: copies(vm, self.target))

    def test_11_end(self):
        self.end_guest()


def add_reservations():
    for kind in (1, 3, 5, 6, 7, 8):
        def test(self, kind=kind):
            self.run_guarded(lambda vm: reservation(vm, kind))
        setattr(VirtioScsiIscsi, f"test_09_reservation_{kind}", test)


add_reservations()


class VirtioScsiIscsiOutage(IscsiTest, QemuSystemTest):
    """A target that goes away, and LUNs that do."""

    make_luns = VirtioScsiIscsi.make_luns
    configuration = VirtioScsiIscsi.configuration

    def test_1_restart(self):
        self.run_guarded(lambda vm: restarts(vm, self.target,
                                             (HD, ONE, GENERIC)))

    def test_2_luns_come_and_go(self):
        self.run_guarded(lambda vm: comes_and_goes(vm, self.target,
                                                   (HD, ONE)))

    def test_3_other_size(self):
        self.run_guarded(lambda vm: other_size(vm, self.target))

    def test_4_end(self):
        self.end_guest()


class VirtioScsiIscsiErrors(IscsiTest, QemuSystemTest):
    """A target that doesn't answer, with a limit of time."""

    KINDS = {0: ("report", "report"), 1: ("stop", "stop"),
             2: ("ignore", "ignore"), 3: ("auto", "enospc")}
    STOP, GENERIC = 1, 4

    @classmethod
    def make_luns(cls, target):
        for number in range(1, 6):
            target.add(number, 32 * MIB)
            with open(target.path(number), "r+b") as f:
                f.write(os.urandom(MIB))

    @classmethod
    def configuration(cls, target):
        nodes = {f"node{i}": target.node(i + 1, timeout=2,
                                         initiator_name=initiator(i))
                 for i in range(5)}
        return nodes, [scsi("scsi-block", lun, f"node{lun}", rerror=r, werror=w)
                       for lun, (r, w) in cls.KINDS.items()] + [
                           scsi("scsi-generic", cls.GENERIC, "node4")]

    def test_1_no_answer(self):
        self.run_guarded(lambda vm: no_answer(vm, self.target,
                                              (0, self.GENERIC)))

    def test_2_policies(self):
        self.run_guarded(lambda vm: policies(vm, self.target, self.KINDS))

    def test_3_end(self):
        self.end_guest()

    def test_4_migration(self):
        migrates(type(self), self.target, f"{self.scratch}/stream")


if __name__ == '__main__':
    QemuSystemTest.main()
