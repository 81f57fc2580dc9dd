#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run other people's tests in a Linux guest with mapped IOThreads.

On another build or version of QEMU (QEMU_TEST_QEMU_BINARY_OTHER) and on ours,
and compared as suite_results.py says:

  iscsi-test-cu  the conformance tests of libiscsi, through a disk's sg node
  sg3-utils      commands of sg3_utils, each on a disk, on another LUN of the
                 same target, on a cd and on a LUN that has gone

On ours only, with each queue and each IOThread at work:

  fio            verified I/O of four queues on two LUNs, with resets
  filesystem     ext4 and xfs under dbench, fio and resets; fsck, mount again,
                 compare, trim

On ours with standard-answers=on:

  iscsi-test-cu  what fails is what virtio_scsi_suites/standard says
  sg3-utils      what is answered otherwise than by default is what is there
  trim           qcow2 images give back what is discarded

The folder virtio_scsi_suites has what they need.  QEMU_TEST_GUEST must have an
initrd-more: that of the guest and, besides, iscsi-test-cu, all of sg3_utils,
mke2fs, e2fsck, mkfs.xfs, xfs_repair, and dbench with its client.txt; and in
/modules what /modules/extra lists: sg, sr_mod, xfs and what they depend on, in
their order of loading.
"""

import json
import os
import tempfile
import unittest

from guest_shell import GuestError, expect, wait_for
from qemu_test import QemuSystemTest
from qemu_test.cmd import get_qemu_img
from suite_results import (Part, command_results, compare, cunit_results,
                           failures, known_better)
from virtio_scsi_guest import GuestMachine, GuestTest, output

FILES = f"{os.path.dirname(os.path.abspath(__file__))}/virtio_scsi_suites"
DISK_SIZE = 1 << 30             # sparse; some tests want space
CD_SECTORS = 512
FREED = 24 << 20                # of 36 MB of files that filesystem deletes
TRIMMED = 0.95                  # of what takes space in a qcow2 image
TWO_LUNS = {"lun0": (0, 0), "lun1": (0, 1)}
FOUR_LUNS = {**TWO_LUNS, "gone": (0, 7), "cd": (1, 0)}


class SuiteGuest(GuestMachine):
    """A guest with as many vCPUs as queues and IOThreads, and these LUNs."""

    initrd = "initrd-more"

    def __init__(self, binary, label, folder, logs, queues, luns,
                 removable=True, hotplug=True, standard=False, qemu_img=None):
        self.images, self.queues, self.luns = folder, queues, luns
        args = ["-fw_cfg", f"name=opt/lib,file={FILES}/guest.sh"]
        for i in range(queues):
            args += ["-object", f"iothread,id=io{i}"]
        args += ["-device", json.dumps({
            "driver": "virtio-scsi-pci", "id": "scsi", "num_queues": queues,
            "hotplug": hotplug, "iothread-vq-mapping": [
                {"iothread": f"io{i}"} for i in range(queues)]})]
        for name, (target, lun) in luns.items():
            is_cd, path = name == "cd", f"{folder}/{name}"
            with open(path, "wb") as f:
                if is_cd:               # no sector is like another
                    for i in range(CD_SECTORS):
                        f.write(f"sector {i:8d}\n".encode() * 128)
                else:
                    f.truncate(DISK_SIZE)
            if qemu_img:
                output(qemu_img, "create", "-f", "qcow2", path, str(DISK_SIZE))
            node = {"driver": "file", "filename": path, "read-only": is_cd,
                    "discard": "unmap"}
            # Without a name, sg_sanitize shows memory that nobody wrote.
            device = {"driver": "scsi-cd" if is_cd else "scsi-hd", "id": name,
                      "bus": "scsi.0", "drive": f"node-{name}",
                      "scsi-id": target, "lun": lun, "serial": f"check-{name}",
                      "wwn": 0x5000c50000000000 | target << 16 | lun}
            if standard:
                device["standard-answers"] = True
            if not is_cd:
                device.update(removable=removable, physical_block_size=4096)
            args += ["-blockdev", json.dumps({
                "driver": "qcow2" if qemu_img else "raw",
                "node-name": f"node-{name}", "file": node,
                "read-only": is_cd, "discard": "unmap"}),
                "-device", json.dumps(device)]
        super().__init__(binary, label, args, logs, queues, "1G")

    def prepare(self):
        run = self.boot().shell.run
        run("cat /sys/firmware/qemu_fw_cfg/by_name/opt/lib/raw > /tmp/lib")
        self.load_modules()
        run(f"dmesg | grep ' {self.queues}/0/0 default/read/poll queues'")
        for name, (target, lun) in self.luns.items():
            wait_for(f"{name} in the guest", lambda: run(
                f". /tmp/lib; links {name} {target} {lun}",
                check=False)[0] == 0)

    def part(self, name, command, seconds=60, loaded=False):
        """One command, with functions of guest.sh.  The suite ends here if it
        takes longer."""
        before = self.work() if loaded else None
        status, lines = self.shell.run(f". /tmp/lib; {command}", seconds, False)
        idle = list(self.idle_since(before, self.queues)) if loaded else []
        return Part(name, status or len(idle), lines + idle)

    def allocated(self):
        """{disk: bytes that its image takes on the host}"""
        return {name: 512 * os.stat(f"{self.images}/{name}").st_blocks
                for name in self.luns}


# -------------------------------------------------------------------- suites

def iscsi_test_cu(vm):
    """Each of its suites in a process of its own, as some crash or hang; on a
    terminal, so that nothing stays in a buffer when one does."""
    lines = []
    vm.shell.other = lines.append
    for suite in vm.shell.run("iscsi-test-cu --list | "
                              "grep '^SCSI\\.[A-Za-z0-9]*$'"):
        lines.clear()
        status, _ = vm.shell.run(
            "timeout -s KILL 120 iscsi-test-cu --dataloss --allow-sanitize "
            f"--test={suite} /dev/lun0 > /dev/ttyS1 2>&1 < /dev/null; s=$?; "
            "echo > /dev/ttyS1; exit $s", 180, False)
        yield Part(suite.removeprefix("SCSI."), status, list(lines))


def sg3_utils(vm):
    with open(f"{FILES}/sg3-utils", encoding="utf-8") as f:
        tests = [text.rstrip("\n").split(None, 2) for text in f
                 if text.strip() and not text.startswith("#")]
    for lun in ("lun0", "lun1", "cd", "gone"):
        if lun == "gone":
            # The guest isn't told and keeps its node.
            vm.command("device_del", id=lun)
            wait_for("end of the LUN", lambda: vm.shell.run(
                "sg_turs --low /dev/gone", check=False)[0])
            yield vm.part("unplugged", "sg_luns /dev/lun0")
        vm.shell.run("cd /tmp && rm -f is now one two should")
        for name, where, command in tests:
            if where == "any" or lun in where.split(","):
                yield vm.part(f"{name}@{lun}", f"dev=/dev/{lun} bs="
                              f"{2048 if lun == 'cd' else 512}; {command}")


def fio(vm):
    for name, command in (
            ("fill", "fio_both $verify --rw=randwrite --do_verify=0 $own"),
            ("verified-load", "fio_both $own $mixed --runtime=8"),
            ("verified-load-with-resets",
             "with_resets fio_both $own $mixed --runtime=8"),
            # What one queue wrote is read by all of them.
            ("read-by-every-queue",
             "fio_both $verify --rw=randread --size=16M"),
            ("unmap-by-every-queue", "fio_both --rw=randtrim $own && "
             "all_zero lun0 && all_zero lun1")):
        yield vm.part(name, command, 240, loaded=True)


def filesystem(vm):
    for name, command in (
            ("mkfs-ext4", "/usr/sbin/mke2fs -q -F -t ext4 -E nodiscard "
             "/dev/lun0.blk"),
            ("mkfs-xfs", "mkfs.xfs -q -f -K /dev/lun1.blk"),
            ("mount", "mount_both"),
            ("files", "make_files && sums /tmp/sums"),
            ("load", "with_resets load"),
            ("files-are-same-after-load",
             "md5sum -c /tmp/sums > /tmp/out || { cat /tmp/out; false; }"),
            ("sums-of-all", "sync && sums /tmp/sums"),
            ("umount", "umount_both"),
            ("fsck-ext4", "/usr/sbin/e2fsck -f -n /dev/lun0.blk"),
            ("fsck-xfs", "xfs_repair -n /dev/lun1.blk"),
            ("files-are-same-after-mount", "mount_both && same_sums")):
        yield vm.part(name, command, 180, name == "load")
    before = vm.allocated()
    yield vm.part("trim", "remove_files && fstrim -v /mnt/ext4 && "
                  "fstrim -v /mnt/xfs && umount_both", 120)
    freed = {name: before[name] - now for name, now in vm.allocated().items()}
    missed = min(freed.values()) < FREED
    yield Part("trim reaches the images",
               None if missed and not punches_holes(vm.images) else missed,
               [f"bytes that trim freed: {freed}"])


def trim(vm):
    """What is trimmed by the granularity told, and of a file system"""
    for lun, fill, discard in (
            ("lun0", "trim_fill", "trim_disk"),
            ("lun1", "mount_ext4 && trim_files",
             "rm /mnt/ext4/file* && sync && fstrim -v /mnt/ext4")):
        if lun == "lun1":
            yield vm.part("mkfs", "/usr/sbin/mke2fs -q -F -t ext4 -E nodiscard,"
                          "lazy_itable_init=0,lazy_journal_init=0 "
                          "/dev/lun1.blk && mount_ext4 && umount /mnt/ext4",
                          180)
        empty = vm.allocated()[lun]
        yield vm.part(f"fill-{lun}", fill, 180)
        full = vm.allocated()[lun]
        yield vm.part(f"discard-{lun}", discard, 180)
        left = vm.allocated()[lun]
        text = f"{lun}: {empty} bytes, then {full}, trimmed {left}"
        print(f"# {text}")
        yield Part(f"{lun} gives space back",
                   None if not punches_holes(vm.images) else
                   full == empty or (full - left) / (full - empty) < TRIMMED,
                   [text])


def punches_holes(folder):
    """Can images here give space back?"""
    with tempfile.NamedTemporaryFile(dir=folder) as f:
        f.write(bytes(1 << 20))
        f.flush()
        try:
            output("fallocate", "-p", "-l", "1MiB", f.name)
        except GuestError:
            return False
    return True


# --------------------------------------------------------------------- tests

class VirtioScsiSuites(GuestTest, QemuSystemTest):
    """Each test of a suite is a subtest; a suite fails, too, if it doesn't come
    to its end."""

    def parts(self, suite, build, *machine, **more):
        """[Part] of a suite in a guest of its own."""
        label = suite.__name__ + build.lower()
        vm = type(self).guest = SuiteGuest(
            os.environ["QEMU_TEST_QEMU_BINARY" + build],
            label + "_standard" * more.get("standard", False), self.scratch,
            self.folder, *machine, **more)
        vm.prepare()
        found = list(suite(vm))
        vm.end()
        vm.check_fault()
        self.drop()
        expect(found, "no test was run")
        return found

    def run_alone(self, suite, *machine, **more):
        for part in self.guarded(lambda _: self.parts(suite, "", *machine,
                                                      **more)):
            with self.subTest(part.name):
                if part.status is None:
                    self.skipTest("this file system punches no holes")
                expect(not part.status, "\n".join(
                    part.lines[-16:] + [f"status {part.status}"]))

    @unittest.skipUnless(os.getenv("QEMU_TEST_QEMU_BINARY_OTHER"),
                         "QEMU_TEST_QEMU_BINARY_OTHER is not set")
    def run_compared(self, name, results, suite, *machine, **more):
        known = self.known("known-better")
        stock, ours = (results(self.guarded(
            lambda _, build=build: self.parts(suite, build, *machine, **more)))
            for build in ("_OTHER", ""))
        for verdict, test, lines in compare(name, stock, ours, known):
            self.tell(verdict, test, lines)

    @staticmethod
    def known(name):
        return known_better(f"{FILES}/{name}", ("iscsi-test-cu", "sg3-utils"))

    def tell(self, verdict, test, lines):
        with self.subTest(test):
            if verdict in ("better", "known"):
                print(f"# {verdict}: {test}: {': '.join(lines)}")
            if verdict == "skipped":
                self.skipTest(lines[0])
            expect(verdict != "failed", "\n".join(lines))

    def test_1_iscsi_test_cu(self):
        # Removable, as some tests eject the medium.
        self.run_compared("iscsi-test-cu", cunit_results, iscsi_test_cu, 2,
                          {"lun0": (0, 0)})

    def test_2_sg3_utils(self):
        # With hotplug the guest would learn that a LUN has gone.
        self.run_compared("sg3-utils", command_results, sg3_utils, 2,
                          FOUR_LUNS, hotplug=False)

    def test_3_fio(self):
        # Not removable: for the guest, a reset would mean another medium.
        self.run_alone(fio, 4, TWO_LUNS, removable=False)

    def test_4_filesystem(self):
        self.run_alone(filesystem, 4, TWO_LUNS, removable=False)

    def test_5_iscsi_test_cu_standard(self):
        results = cunit_results(self.guarded(lambda _: self.parts(
            iscsi_test_cu, "", 2, {"lun0": (0, 0)}, standard=True)))
        for found in failures("iscsi-test-cu", results, self.known("standard")):
            self.tell(*found)

    def test_6_sg3_utils_standard(self):
        default, standard = (command_results(self.guarded(
            lambda _, on=on: self.parts(sg3_utils, "", 2, FOUR_LUNS,
                                        hotplug=False, standard=on)))
            for on in (False, True))
        # More is refused.
        for found in compare("sg3-utils", default, standard,
                             self.known("standard"), may_be_worse=True):
            self.tell(*found)

    def test_7_trim(self):
        self.run_alone(trim, 4, TWO_LUNS, standard=True, removable=False,
                       qemu_img=get_qemu_img(self))


if __name__ == '__main__':
    QemuSystemTest.main()
