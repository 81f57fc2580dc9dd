#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run scsi-block and scsi-generic on SG_IO of a Linux kernel; zoned drives.

A guest has a disk of the kernel's scsi_debug, and a QEMU without a guest of its
own in which virtio-load has a mapped controller with that disk.  The outer QEMU
is only there for the kernel.

Persistent reservations go to qemu-pr-helper, and from there to a disk of the
kernel's SCSI target (scsi_debug has none) that two tcm_loop hosts show.

QEMU_TEST_GUEST must have an initrd-more with modules/scsi_debug.ko and
tcm_loop.ko, and for both modules/NAME.order with its name behind those that it
needs, for tcm_loop without those of scsi_debug.
"""

import json
import os
import re
import shlex
import subprocess
import tarfile

from guest_shell import expect, wait_for
from qemu_test import BUILD_DIR, QemuSystemTest
from virtio_scsi_guest import GuestMachine, GuestTest, output

TREE = "/tree"                  # in the guest: where the inner QEMU sees /
FIRMWARE = ("seabios/bios-256k.bin", "qemu/kvmvapic.bin")
NOISE, MEDIUM_ERROR = 1, 2      # of its opts
# /dev/sgN takes 16 requests of one file, QEMU's; TASK SET FULL for more
DEPTHS = {"scsi-block": "8", "scsi-generic": "4"}
# scsi_debug: 4 hardware queues, answers after 50 us
MODULE = "dev_size_mb=32 submit_queues=4 max_queue=64 ndelay=50000"
# A disk that the host must manage
ZONES = "dev_size_mb=32 zone_size_mb=4"
# One that writes up to 128 blocks at once, in units that are no power of two
ATOMIC = "dev_size_mb=32 atomic_wr=1 atomic_wr_max_length=128 atomic_wr_gran=12"
# A RAM disk of 8 MiB at two ports, each with an initiator port of its own
CORE = "/sys/kernel/config/target/core/rd_mcp_0/disk"
PORT = "/sys/kernel/config/target/loopback/naa.500140500000000%d/tpgt_1"
NEXUS = "naa.600140500000000%d"
PORTS = (1, 2)


def libraries(program):
    """What the loader finds for it, and the loader."""
    return re.findall(r"(/\S+) \(0x", output("ldd", program))


class NestedGuest(GuestMachine):
    """Its disk is a tar file with what the inner QEMU needs."""

    initrd = "initrd-more"

    def __init__(self, image, logs):
        super().__init__(
            os.environ["QEMU_TEST_QEMU_BINARY"], "outer",
            ["-blockdev", json.dumps({
                "driver": "file", "node-name": "tar", "filename": image,
                "read-only": True}),
             "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=tar"],
            logs, 4, "1G")
        self.inner = os.path.realpath(os.environ["QEMU_TEST_QEMU_BINARY"])
        self.generator = str(BUILD_DIR / "tests/qtest/virtio-load")
        self.reserve = str(BUILD_DIR / "tests/qtest/virtio-scsi-reserve")
        self.passed = str(BUILD_DIR / "tests/qtest/virtio-scsi-passed")
        self.helper = str(BUILD_DIR / "qemu-pr-helper")

    def pack(self, image, scratch):
        """Everything at its own path, without what debuggers want."""
        with tarfile.open(image, "w") as tar:
            programs = (self.inner, self.generator, self.reserve, self.passed,
                        self.helper)
            for path in programs:
                small = f"{scratch}/small"
                subprocess.run(["strip", "-o", small, path], check=True)
                tar.add(small, path)
            for path in set(sum(map(libraries, programs), [])):
                tar.add(os.path.realpath(path), path)
            for name in FIRMWARE:
                path = f"{os.path.dirname(self.inner)}/qemu-bundle/usr/share/" \
                    + name
                tar.add(os.path.realpath(path), path)

    def prepare(self):
        self.boot()
        wait_for("disk in the guest", lambda: self.shell.run(
            "test -b /dev/sda", check=False)[0] == 0)
        self.load_modules()
        for line in (self.loading("scsi_debug"), "ln -s /proc/self/fd /dev/fd",
                     f"mkdir -p {TREE}/bin {TREE}/tmp {TREE}/proc {TREE}/sys "
                     f"{TREE}/dev",
                     f"tar xf /dev/sda -C {TREE}",
                     f"cp /usr/bin/busybox {TREE}/bin/sh",
                     f"for i in proc sys dev; do mount --bind /$i {TREE}/$i"
                     " || exit 1; done",
                     f"insmod /modules/scsi_debug.ko {MODULE}"):
            self.shell.run(line)
        wait_for("disk of scsi_debug", self.disk)
        return self

    @staticmethod
    def loading(name):
        """Shell command that loads what this module needs."""
        return (f"for i in $(grep -v {name} /modules/{name}.order); do "
                "insmod /modules/$i || exit 1; done")

    def disk(self):
        """Its sdX and sgN, in any order, or None."""
        status, lines = self.shell.run(
            "cd /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*:*/ "
            "&& ls block scsi_generic", check=False)
        names = re.findall(r"\b(?:sd[a-z]+|sg\d+)\b", " ".join(lines))
        return sorted(names) if status == 0 and len(names) == 2 else None

    def make_target(self):
        """Two paths to a LUN of the kernel's target."""
        for line in (self.loading("tcm_loop"), "insmod /modules/tcm_loop.ko",
                     "mount -t configfs none /sys/kernel/config",
                     # else it can't register anybody
                     "mkdir -p /var/target/pr",
                     f"mkdir -p {CORE} && echo rd_pages=2048 > {CORE}/control"
                     f" && echo 1 > {CORE}/enable"):
            self.shell.run(line)
        for number in PORTS:
            port = PORT % number
            self.shell.run(f"mkdir -p {port}/lun/lun_0 && "
                           f"echo {NEXUS % number} > {port}/nexus && "
                           f"ln -s {CORE} {port}/lun/lun_0/disk")
        wait_for("paths to the target", self.paths)

    def paths(self):
        """The sdX of both, or None."""
        _, lines = self.shell.run(
            "ls -d /sys/devices/tcm_loop_0/*/host*/target*/*/block/*",
            check=False)
        names = [os.path.basename(s) for s in lines if re.search("/sd.+$", s)]
        return sorted(names) if len(names) == len(PORTS) else None

    def qtest(self, program, path, seconds, **env):
        """What a test program on real disks tells: (exit status, its lines)."""
        settings = " ".join(f"QTEST_{name}='{value}'" for name, value in
                            {"QEMU_BINARY": self.inner, **env}.items())
        return self.shell.run(f"{settings} timeout {seconds} chroot {TREE} "
                              f"{program} -p {path} 2>&1", seconds + 20, False)

    def reservations(self, test):
        disks = " ".join(f"/dev/{name}" for name in self.paths())
        return self.qtest(self.reserve, f"/reserve/{test}", 380,
                          PR_HELPER=self.helper, PR_DISKS=disks)

    def passed_through(self, test):
        block, generic = self.disk()
        return self.qtest(self.passed, f"/passed/{test}", 100,
                          PASSED_BLOCK=f"/dev/{block}",
                          PASSED_GENERIC=f"/dev/{generic}")

    def option(self, name, value):
        self.shell.run(
            f"echo {value} > /sys/bus/pseudo/drivers/scsi_debug/{name}")

    def another(self, options):
        """A disk of scsi_debug instead of the one there is."""
        self.shell.run("rmmod scsi_debug")
        self.shell.run(f"insmod /modules/scsi_debug.ko {options}")
        wait_for(f"disk of scsi_debug with {options}", self.disk)

    def zones(self, model):
        """Make it a zoned disk, another one."""
        self.another(f"{ZONES} zbc={model}")
        expect(self.shell.run(f"cat /sys/block/{self.disk()[0]}/queue/zoned")
               == [f"host-{model}"], f"the disk isn't host-{model}")

    def inner_qemu(self, commands, read_only, *more):
        """(exit status, lines) of an inner QEMU that has the disk's node, and
        gets these QMP commands."""
        words = [self.inner, "-nodefaults", "-S", "-display", "none",
                 "-qmp", "stdio", "-device", "virtio-scsi-pci",
                 "-blockdev", json.dumps({
                     "driver": "host_device", "node-name": "zones",
                     "filename": f"/dev/{self.disk()[0]}",
                     "read-only": read_only, "cache": {"direct": True}}), *more]
        qmp = "".join(json.dumps({"execute": name, "arguments": arguments})
                      for name, arguments in
                      [("qmp_capabilities", {}), *commands, ("quit", {})])
        return self.shell.run(f"echo '{qmp}' | chroot {TREE} "
                              f"{shlex.join(words)} 2>&1", 100, False)

    def try_disk(self, driver, read_only):
        return self.inner_qemu([], read_only, "-device",
                               f"{driver},drive=zones")

    def try_medium(self, read_only):
        """The same of a scsi-hd whose medium it becomes."""
        commands = [("blockdev-open-tray", {"id": "hd"}),
                    ("blockdev-remove-medium", {"id": "hd"}),
                    ("blockdev-insert-medium", {"id": "hd",
                                                "node-name": "zones"}),
                    ("blockdev-close-tray", {"id": "hd"})]
        return self.inner_qemu(
            commands, read_only, "-blockdev", "null-co,node-name=first"
            + ",read-only=on" * read_only,
            "-device", "scsi-hd,id=hd,drive=first,removable=on")

    def load(self, driver, iothreads, *options):
        """What virtio-load tells: (exit status, its last lines)."""
        block, generic = self.disk()
        node = {"driver": "host_device", "filename":
                f"/dev/{generic if driver == 'scsi-generic' else block}"}
        if driver == "scsi-block":
            node["cache"] = {"direct": True}
        words = [self.generator, "--json", "--qemu", self.inner, "--disk",
                 driver, "--queues", "4", "--iothreads", str(iothreads),
                 "--depth", DEPTHS[driver],
                 "--backend", f"'{json.dumps(node)}'", *options]
        return self.shell.run(f"chroot {TREE} {' '.join(words)} 2>&1", 400,
                              False)


class VirtioScsiNested(GuestTest, QemuSystemTest):
    """The guest stays from test to test."""

    def vm(self):
        cls = type(self)
        if not cls.guest:
            image = f"{cls.scratch}/tar"
            vm = NestedGuest(image, self.folder)
            vm.pack(image, cls.scratch)
            cls.guest = vm
            vm.prepare()
        return cls.guest

    @classmethod
    def tearDownClass(cls):
        cls.drop()
        super().tearDownClass()

    def verified(self, driver, iothreads):
        def test(vm):
            status, lines = vm.load(
                driver, iothreads, "--verify", "--rw", "mix:50", "--region",
                "16M", "--seconds", "3")
            expect(status == 0, f"virtio-load: {lines[-3:]}")
            expect(json.loads(lines[-1])["iops"] > 0, "there was no I/O")
        self.guarded(lambda _: test(self.vm()))

    def test_1_scsi_block_1(self):
        self.verified("scsi-block", 1)

    def test_1_scsi_block_4(self):
        self.verified("scsi-block", 4)

    def test_2_scsi_generic_4(self):
        self.verified("scsi-generic", 4)

    def test_3_medium_error(self):
        """CHECK CONDITION of the disk arrives as such."""
        def test(vm):
            vm.option("opts", MEDIUM_ERROR)
            try:
                for driver in ("scsi-block", "scsi-generic"):
                    status, lines = vm.load(
                        driver, 2, "--rw", "read", "--pattern", "seq",
                        "--region", "4M", "--seconds", "3")
                    expect(status == 1 and "status 0x02" in lines[-1],
                           f"{driver}: virtio-load ends with status {status}: "
                           f"{lines[-3:]}")
            finally:
                vm.option("opts", 0)
        self.guarded(lambda _: test(self.vm()))

    def test_4_zones(self):
        """What a guest can't manage isn't given to it; all else is."""
        def test(vm):
            vm.zones("managed")
            status, lines = vm.try_disk("scsi-hd", False)
            text = " ".join(lines)
            expect(status and "has zones that a guest must manage" in text,
                   f"scsi-hd on host-managed zones: {status}, {lines}")
            for driver, read_only in ("scsi-hd", True), ("scsi-block", False):
                status, lines = vm.try_disk(driver, read_only)
                expect(status == 0, f"{driver}: {status}, {lines}")
            for read_only in False, True:
                status, lines = vm.try_medium(read_only)
                errors = [s for s in lines if '"error"' in s]
                expect(status == 0 and len(errors) == (not read_only) and
                       all("has zones that a guest must manage" in s
                           for s in errors),
                       f"as a medium, read-only={read_only}: {status}, {lines}")
        self.guarded(lambda _: test(self.vm()))

    def passed_through(self, vm, test):
        status, lines = vm.passed_through(test)
        expect(status == 0 and any(s.startswith("ok ") for s in lines),
               f"virtio-scsi-passed ends with {status}: {lines[-5:]}")

    def test_4_group_number(self):
        """The disk hears of it."""
        def test(vm):
            vm.option("opts", NOISE)
            try:
                self.passed_through(vm, "group")
            finally:
                vm.option("opts", 0)
            text = "\n".join(vm.shell.run("dmesg | grep -E 'cmd (a8|88)'"))
            for cdb in ("a8" + 8 * " 00" + " 01 0b 00",
                        "88" + 12 * " 00" + " 01 15 00"):
                expect(text.count(f"cmd {cdb}") == 2,
                       f"the disk hasn't heard {cdb} from both LUNs: {text}")
        self.guarded(lambda _: test(self.vm()))

    def test_4_limits(self):
        """No more is atomic than the kernel sends at once."""
        def test(vm):
            vm.another(ATOMIC)
            vm.shell.run("echo 16 > /sys/block/"
                         f"{vm.disk()[0]}/queue/max_sectors_kb")
            self.passed_through(vm, "atomic")
        self.guarded(lambda _: test(self.vm()))

    def reservations(self, test):
        def run(vm):
            if not vm.paths():
                vm.make_target()
            status, lines = vm.reservations(test)
            print(*(f"#   {s}" for s in lines if "changes" in s), sep="\n")
            expect(status == 0 and any(s.startswith("ok ") for s in lines),
                   f"virtio-scsi-reserve ends with {status}: {lines[-5:]}")
        self.guarded(lambda _: run(self.vm()))

    def test_4_reserve_meaning(self):
        self.reservations("meaning")

    def test_4_reserve_load(self):
        self.reservations("load")

    def test_4_reserve_killed(self):
        self.reservations("killed")

    def test_4_reserve_away(self):
        self.reservations("away")

    def test_4_reserve_stopped(self):
        self.reservations("stopped")

    def test_5_end(self):
        def test(vm):
            _, lines = vm.shell.run("dmesg", check=False)
            bad = [s for s in lines if re.search("BUG:|WARNING:|Oops", s)]
            expect(not bad, f"the guest's kernel says: {bad}")
            vm.end()
            self.drop()
        self.guarded(lambda _: test(self.vm()))


if __name__ == '__main__':
    QemuSystemTest.main()
