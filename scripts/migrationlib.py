# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/check-migration needs to move a guest at work between QEMUs.

A Side is a QEMU binary and how it maps the queues; a Rig has the disk that all
of them share and the guest that goes from one to the next, with fio in it; the
functions at the end are the ways a guest can be moved.
"""

import ctypes
import json
import os
import re
import shutil
import tempfile
import time

from program import load
from vm import (OURS, STOCK, TOP, EmulatorFault, RunError, Skip, Vm, expect,
                fio_verified, wait_for)
from watch import difference, iothread_times, read_threads

QUEUES = 4
IOTHREADS = 4                   # in every QEMU, whether it uses them or not
DISK_SIZE = 1 << 30
KEPT = "--offset=768M --size=8M"    # written once, the load does not touch it
ENOUGH = 3000                   # requests that show who serves the queues
SOME = 50                       # interrupts of each queue that must come
WORK = load("run").WORK
LIMIT = 60                      # seconds, generous
SLOW = 30                       # seconds after which downtime may be longer
MEGABYTE = 1 << 20
TROUBLE = "(abort|device reset)$|I/O error|blocked for more than"

# mapping: (form of the property, queues of iothread0, iothread1, ...)
MAPPINGS = {
    "one-vq": ("vqs", [[0], [1], [2], [3]]),
    "crossed": ("vqs", [[3], [0, 2], [1], []]),
    "round-robin": ("list", [[0, 3], [1], [2], []]),
    "iothread": ("iothread", [[0, 1, 2, 3], [], [], []]),
    "main-loop": ("none", [[], [], [], []]),
}


class Side:
    """A QEMU to start: "ours" or "stock", and the name of a mapping."""

    def __init__(self, text):
        self.name = text
        build, mapping = text.split(".")
        self.qemu = {"ours": OURS, "stock": STOCK}[build]
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


class MovingVm(Vm):
    """A Vm with the disk, on the sending or on the receiving side."""

    def __init__(self, side, disk, incoming=False, **controller):
        args = []
        for i in range(IOTHREADS):
            args += ["-object", f"iothread,id=iothread{i}"]
        node = {"driver": "file", "node-name": "disk0", "filename": disk,
                "aio": "native", "cache": {"direct": True}}
        # A disk that fails stops the VM: some tests want just that.
        lun = {"driver": "scsi-hd", "id": "hd0", "bus": "scsi0.0",
               "drive": "disk0", "werror": "stop", "rerror": "stop"}
        for option, value in (("-blockdev", node),
                              ("-device", side.controller(**controller)),
                              ("-device", lun)):
            args += [option, json.dumps(value)]
        if incoming:
            args += ["-incoming", "defer"]
        self.side, self.disk = side, disk
        super().__init__(side.name.replace(".", "-"), args, qemu=side.qemu)

    def status(self):
        return self.command("query-status")["status"]

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

    def listen(self, kind):
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

    def migration_states(self):
        """Names of the states that the migration went through so far."""
        return [event["data"]["status"] for event in self.get_qmp_events()
                if event["event"] == "MIGRATION"]

    def pending(self):
        """Requests of each queue that the device has and the guest waits
        for."""
        return [self.command("x-query-virtio-queue-status", queue=2 + i,
                             path="/machine/peripheral/scsi0/virtio-backend"
                             )["inuse"] for i in range(QUEUES)]


# ------------------------------------------------------------- load and rig

class Sample:
    """What the load has done so far: threads' CPU time and the guest's view."""

    def __init__(self, vm):
        self.threads = read_threads(vm.get_pid())
        stat, *lines = vm.shell.run("cat /sys/block/sda/stat; "
                                    "grep 'virtio.*-request' /proc/interrupts")
        fields = stat.split()
        self.done = int(fields[0]) + int(fields[4])
        self.interrupts = [sum(int(n) for n in line.split()[1:1 + QUEUES])
                           for line in lines]

    def since(self, first):
        """Interrupts of each queue since then."""
        return [b - a for a, b in zip(first.interrupts, self.interrupts)]


class Rig:
    """The disk, and the guest as it goes from QEMU to QEMU."""

    def __init__(self):
        os.makedirs(f"{TOP}/build", exist_ok=True)
        # Not in /tmp, which may be a tmpfs without O_DIRECT.
        self.folder = tempfile.mkdtemp(prefix="check-migration-",
                                       dir=f"{TOP}/build")
        self.disk = f"{self.folder}/disk"
        self.new_disk()
        self.vm = None
        self.others = []

    def close(self):
        self.drop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_disk(self):
        with open(self.disk, "wb") as f:
            f.truncate(DISK_SIZE)

    def drop(self):
        """Forget guest and destinations."""
        for vm in self.others + ([self.vm] if self.vm else []):
            vm.discard()
        self.vm, self.others = None, []

    def have(self, side):
        """The guest at this side, booted if it is elsewhere."""
        if self.vm and self.vm.side.name == side.name:
            return self.vm
        if self.vm:
            self.vm.end()
        self.drop()
        self.new_disk()
        self.vm = MovingVm(side, self.disk)
        self.vm.boot()
        wait_for("disk in the guest", lambda: self.vm.shell.run(
            "test -b /dev/sda", check=False)[0] == 0)
        self.vm.shell.run("cd /tmp; " + kept("write --do_verify=0"))
        return self.vm

    def destination(self, side, **controller):
        vm = MovingVm(side, self.disk, True, **controller)
        self.others.append(vm)
        vm.start()
        return vm

    def arrived(self, vm):
        """The guest is at vm: the QEMU that it left must end well."""
        left, self.vm = self.vm, vm
        self.others.remove(vm)
        self.others.append(left)
        left.end()
        self.lose(left)

    def lose(self, vm):
        """Done with this destination."""
        self.others.remove(vm)
        vm.discard()

    def guarded(self, function, *args):
        """Run a test; after a failure the next one begins with a boot."""
        try:
            function(self, *args)
        except Skip:
            raise
        except BaseException:
            try:
                for vm in self.others + ([self.vm] if self.vm else []):
                    vm.check_fault()
            finally:
                self.drop()
            raise


def kept(what):
    return ("fio --name=kept --filename=/dev/sda --direct=1 --bs=64k "
            f"--ioengine=libaio --verify=crc32c {KEPT} --rw={what}")


def start_load(vm):
    """Verified load on all queues, until end_load(); returns at work."""
    vm.shell.run("cd /tmp; rm -f load.end")
    vm.shell.start("load", "cd /tmp; " + fio_verified(
        "sda", QUEUES, 3600, extra="--trigger-file=/tmp/load.end"))
    watch_load(vm, ENOUGH // 3)


def end_load(vm):
    """fio must end well, and the guest's kernel must not have complained."""
    vm.shell.run("touch /tmp/load.end")
    vm.shell.finish("load")
    vm.shell.run("cd /tmp; " + kept("read"))
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
    judge_iothreads(vm, first, last)


def stands_still(vm, done, interrupts):
    """Stock's IOThreads sometimes sleep while requests wait, on a quiet host
    and without any migration: that says nothing about ours."""
    text = (f"{vm.label}: the load stands still after {done} requests and "
            f"{interrupts} interrupts of its queues\n" + queues_state(vm))
    if vm.side.qemu == STOCK and vm.shell.running("load"):
        return EmulatorFault(text)
    return RunError(text)


def queues_state(vm):
    """Where the rings and the vCPUs stand, to tell who waits for whom.

    Not by "info virtio-queue-element": that may call a device broken.
    """
    path = "/machine/peripheral/scsi0/virtio-backend"
    words = []
    for queue in range(2, 2 + QUEUES):
        state = vm.cmd("x-query-virtio-queue-status",
                       {"path": path, "queue": queue})
        words.append(f"queue {queue - 2}: " + ", ".join(
            f"{key} {state[key]}" for key in
            ("inuse", "last-avail-idx", "shadow-avail-idx", "used-idx",
             "signalled-used", "signalled-used-valid") if key in state))
    words += [s for s in vm.hmp("info registers -a").splitlines()
              if "CPU#" in s or "HLT=" in s]
    words += [s.strip() for s in vm.shell.run("cat /proc/interrupts")
              if "request" in s or "LOC" in s]
    return "\n".join(words)


def judge_iothreads(vm, first, last):
    """Those with queues worked, in proportion, those without did not."""
    times = {name: t.cpu for name, t in iothread_times(
        difference(first.threads, last.threads)).items()}
    gains, total = last.since(first), sum(times.values())
    for i, vqs in enumerate(vm.side.queues):
        used = times[f"iothread{i}"]
        fair = total * sum(gains[q] for q in vqs) / sum(gains)
        text = f"{vm.label}: iothread{i}, with queues {vqs}, used " \
               f"{1000 * used:.1f} of {1000 * total:.1f} ms"
        expect(not vqs or used > max(0.1 * fair, WORK), f"{text}: no work")
        expect(vqs or used < max(WORK, 0.02 * total), f"{text}: it worked")


# ------------------------------------------------------------- ways to move

def wait_running(vm):
    wait_for(f"guest that runs in {vm.label}",
             lambda: vm.check_alive() or vm.status() == "running", LIMIT)


def live(source, dest, kind="unix", capabilities=(), **parameters):
    """Precopy: memory first, while the guest goes on."""
    source.allow(*capabilities, **parameters)
    dest.allow(*capabilities, **parameters)
    source.command("migrate", uri=dest.listen(kind))
    source.wait_migration("completed")
    wait_running(dest)


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
        raise Skip("postcopy needs userfaultfd: "
                   + os.strerror(ctypes.get_errno()))
    os.close(fd)


def postcopy(source, dest, *capabilities):
    """The guest goes first, most of its memory follows as it is used."""
    wanted = ("postcopy-ram", "return-path") + capabilities
    source.allow(*wanted, max_bandwidth=4 * MEGABYTE)
    dest.allow(*wanted)
    source.command("migrate", uri=dest.listen("unix"))
    source.wait_migration("active")
    wait_for("memory on its way", lambda: source.migration().get(
        "ram", {}).get("transferred", 0) > MEGABYTE, LIMIT)
    source.command("migrate-start-postcopy")
    source.wait_migration("completed")
    wait_running(dest)
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
    wait_running(dest)


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
    source.command("migrate", uri=dest.listen("unix"))
    source.wait_migration("completed")
    wait_for(f"arrival in {dest.label}",
             lambda: dest.check_alive() or dest.status() == "io-error", LIMIT)
    expect(dest.pending() == waiting, f"{waiting} requests waited on the "
           f"source, {dest.pending()} on the destination")
    dest.command("cont")
    wait_running(dest)
