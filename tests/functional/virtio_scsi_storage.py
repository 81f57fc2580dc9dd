# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with disks of a network, and the load generator on such a disk: for
tests of virtio-scsi with iSCSI and Ceph.

QEMU_TEST_QEMU_BINARY must have the drivers, QEMU_TEST_GUEST an initrd-more as
test_virtio_scsi_suites.py says.
"""

import json
import os
import subprocess

from guest_shell import expect, fio_verified, wait_for
from qemu_test import BUILD_DIR
from virtio_scsi_guest import GuestMachine

QUEUES = 4
REGION = "4M"                   # of one queue's job


def scsi(driver, lun, node, **more):
    """-device options of a LUN; arguments with _ for -."""
    return {"driver": driver, "bus": "scsi.0", "lun": lun, "id": f"lun{lun}",
            "drive": node, **{k.replace("_", "-"): v for k, v in more.items()}}


class StorageGuest(GuestMachine):
    """nodes: {name: -blockdev options}, disks: -device options."""

    initrd = "initrd-more"

    def __init__(self, label, nodes, disks, logs, iothreads=QUEUES, more=()):
        args = []
        for i in range(iothreads):
            args += ["-object", f"iothread,id=io{i}"]
        args += ["-device", json.dumps({
            "driver": "virtio-scsi-pci", "id": "scsi", "num_queues": QUEUES,
            "iothread-vq-mapping": [{"iothread": f"io{i}"}
                                    for i in range(iothreads)]})]
        for name, node in nodes.items():
            args += ["-blockdev", json.dumps({"node-name": name, **node})]
        for disk in disks:
            args += ["-device", json.dumps(disk)]
        super().__init__(os.environ["QEMU_TEST_QEMU_BINARY"], label,
                         args + list(more), logs, QUEUES, "512M")

    def prepare(self):
        self.boot()
        self.load_modules()
        return self

    def node_of(self, lun, kind="block"):
        """Name of a LUN's sdX, or sgN with kind="scsi_generic"."""
        return self.shell.lun_name(lun, kind)

    def disk(self, lun):
        return "/dev/" + self.node_of(lun)

    def sg(self, lun):
        return "/dev/" + self.node_of(lun, "scsi_generic")

    def done(self, lun):
        """Reads and writes that the guest has completed."""
        words = self.shell.run(
            f"cat /sys/block/{self.node_of(lun)}/stat")[0].split()
        return int(words[0]) + int(words[4])

    def goes_on(self, lun, limit=120):
        """Wait for further I/O."""
        before = self.done(lun)
        wait_for(f"further I/O on LUN {lun}", lambda: self.done(lun) > before,
                 limit)

    def start_load(self, lun, seconds, extra=""):
        """It goes on until finish_load(), in turns of so many seconds."""
        self.shell.start(f"load{lun}", fio_verified(
            self.node_of(lun), QUEUES, seconds, REGION, extra), again=True)

    def finish_load(self, lun):
        self.shell.finish(f"load{lun}", 240)

    def longest_wait(self, lun):
        """Milliseconds, of a load that has ended."""
        turns = [line.split(";") for line in self.shell.run(
            f"grep '^3;' /tmp/load{lun}.out")]
        # terse version 3: the greatest total latency of reads, and of writes
        return max(float(one[n]) for one in turns for n in (38, 79)) / 1000

    def io_errors(self):
        """What QEMU told about I/O errors since last asked."""
        return [e["data"] for e in self.get_qmp_events()
                if e["event"] == "BLOCK_IO_ERROR"]

    def no_errors(self):
        found = self.io_errors()
        expect(not found, f"QEMU reported {found}")


def generator(node, *options, disk="scsi-hd", iothreads=4, seconds=2,
              verify=True):
    """I/O without a guest; what virtio-load tells of it.  What it writes if it
    needn't verify is zeroes, but for a few blocks."""
    command = [str(BUILD_DIR / "tests/qtest/virtio-load"), "--json",
               *["--verify"] * verify,
               "--qemu", os.environ["QEMU_TEST_QEMU_BINARY"],
               "--backend", json.dumps(node), "--queues", str(QUEUES),
               "--iothreads", str(iothreads), "--depth", "8", "--rw", "mix:50",
               "--region", "16M", "--seconds", str(seconds), *options]
    if disk != "scsi-hd":
        command += ["--disk", disk]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          check=False, timeout=300)
    said = done.stderr.strip().splitlines() or ["no message"]
    expect(not done.returncode, f"virtio-load: {said[-1]}")
    return json.loads(done.stdout)
