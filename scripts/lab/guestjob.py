# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a job of tests/guest in a guest, part by part, and watch it.

The job is a shell script that guest-init starts, with the functions of
tests/guest/lib.sh.  It says "@begin NAME", prints what the part's commands
print, and says "@end STATUS".  "@unplug ID" asks for a device_del on the host.
"""

import collections
import ctypes
import json
import os
import socket
import tempfile
import time
import types

from watch import EmulatorFault, RunError, Watch, read_threads, say

TOP = os.path.abspath(f"{__file__}/../../..")
JOBS = f"{TOP}/tests/guest"
WORK = f"{TOP}/build/check-guest"
GUEST = f"{TOP}/build/guest/current"
DISK_SIZE = 1 << 30             # sparse; some tests want space
CD_SIZE = 1 << 20
SILENCE = 60                    # seconds; the guest tells that it is alive
STILL = 300                     # seconds; lib.sh ends a command sooner
LIMIT = 900                     # seconds for a guest
ATTEMPTS = 3

# What a guest looks like: iothreads is the mapping, one queue for each entry;
# disks are {id: (target, LUN)}, cd is (target, LUN).
Machine = collections.namedtuple(
    "Machine", "vcpus iothreads disks removable hotplug cd",
    defaults=(False, True, None))

# before and after: {"threads": ..., "blocks": ...} at "@begin" and "@end"
Part = collections.namedtuple("Part", "name status lines before after")


class Qmp:
    """QEMU's monitor, for a command now and then."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw", encoding="utf-8")
        self.command("qmp_capabilities", {})

    def command(self, name, arguments):
        json.dump({"execute": name, "arguments": arguments}, self.file)
        self.file.write("\n")
        self.file.flush()
        for line in self.file:
            reply = json.loads(line)
            if "error" in reply:
                raise RunError(f"QMP {name}: {reply['error']['desc']}")
            if "return" in reply:
                return
        raise RunError(f"QMP {name}: QEMU closed the monitor")

    def close(self):
        self.file.close()
        self.socket.close()


class Job(Watch):
    """A QEMU whose guest runs a job."""

    def __init__(self, argv, accel, machine, log, folder, qmp):
        super().__init__([argv], types.SimpleNamespace(
            vcpus=machine.vcpus, runtime=0, accel=accel))
        self.log, self.folder, self.qmp = log, folder, qmp
        self.parts = []
        self.output, self.name, self.before = [], None, None

    def sample(self):
        """What the host sees: CPU time of threads, space of the images."""
        blocks = {}
        for name in os.listdir(self.folder):
            if name.endswith(".raw"):
                blocks[name[:-len(".raw")]] = 512 * os.stat(
                    f"{self.folder}/{name}").st_blocks
        return {"threads": read_threads(self.proc.pid), "blocks": blocks}

    def line(self, text, is_console):
        self.log.write(f"{time.monotonic() - self.start:7.2f} "
                       f"{'console' if is_console else 'out'}: {text}\n")
        if text != "@alive":
            self.moved = time.monotonic()
        if not is_console and not text.startswith("@"):
            self.heard = time.monotonic()
            self.output.append(text)
            if "qemu" in text:
                self.stderr.append(text)    # perhaps its last words
            return
        super().line(text, is_console)
        if not is_console:
            word, _, rest = text[1:].partition(" ")
            self.fact(word, rest)

    def fact(self, word, rest):
        if word == "begin":
            self.name, self.output = rest, []
            self.before = self.sample()
            self.progress()
        elif word == "end":
            self.parts.append(Part(self.name, int(rest), self.output,
                                   self.before, self.sample()))
        elif word == "unplug":
            monitor = Qmp(self.qmp)
            try:
                monitor.command("device_del", {"id": rest})
            finally:
                monitor.close()

    def tick(self, reads, is_end):
        pass                        # "end" has another meaning here

    def show_guest(self):
        pass

    def progress(self):
        now = time.monotonic()
        if now - self.shown > 10:
            self.shown = now
            total = (self.facts["total"] or ["?"])[0]
            say(f"  {now - self.start:4.0f} s  {len(self.parts)} of {total}: "
                f"{self.name}")

    def check_time(self):
        now = time.monotonic()
        if not self.facts["total"] and now - self.start > self.limit:
            raise self.fault(f"the guest did not boot in {self.limit} s"
                             + self.tail())
        if self.facts["total"] and now - self.heard > SILENCE:
            raise self.fault(f"no sign of life for {SILENCE} s in {self.name}"
                             + self.tail())
        # The guest's clock ticks, so it waits for the device.
        if now - self.moved > STILL:
            raise RunError(f"{self.name} stands still though the guest runs"
                           + self.tail())
        if now - self.start > LIMIT:
            raise RunError(f"not done after {LIMIT} s, in {self.name}")

    def judge_exit(self, status):
        if status == 0 and not self.facts["hello"]:
            # It hasn't loaded the device's driver yet.
            raise self.fault("the guest's kernel died before it ran init"
                             + self.tail())
        if status or self.facts["done"] != ["0"]:
            self.stderr = [s for s in self.output if "qemu" in s]
            super().judge_exit(status)
        if [len(self.parts)] != [int(n) for n in self.facts["total"]]:
            raise RunError(f"{len(self.parts)} of {self.facts['total']} parts "
                           "came to an end")


# ------------------------------------------------------------ command line

def wwn(target, lun):
    """
    A name for each LUN: sg_sanitize shows memory that it has not initialised if
    there is none.
    """
    return 0x5000c50000000000 | target << 16 | lun


def device_options(machine, folder):
    """[(option, JSON)] of the controller and what is on it."""
    mapping = [{"iothread": f"iothread{i}"} for i in range(machine.iothreads)]
    yield "-device", {"driver": "virtio-scsi-pci", "id": "scsi0",
                      "num_queues": machine.iothreads,
                      "hotplug": machine.hotplug,
                      "iothread-vq-mapping": mapping}
    for name, (target, lun) in machine.disks.items():
        yield "-blockdev", {"driver": "raw", "node-name": f"node-{name}",
                            "discard": "unmap", "file": {
                                "driver": "file", "discard": "unmap",
                                "filename": f"{folder}/{name}.raw"}}
        yield "-device", {"driver": "scsi-hd", "id": name, "bus": "scsi0.0",
                          "drive": f"node-{name}", "scsi-id": target,
                          "lun": lun, "physical_block_size": 4096,
                          "removable": machine.removable,
                          "serial": f"check-{name}",
                          "wwn": wwn(target, lun)}
    if machine.cd:
        yield "-blockdev", {"driver": "raw", "node-name": "node-cd",
                            "read-only": True, "file": {
                                "driver": "file", "read-only": True,
                                "filename": f"{folder}/cd.raw"}}
        yield "-device", {"driver": "scsi-cd", "id": "cd", "bus": "scsi0.0",
                          "drive": "node-cd", "scsi-id": machine.cd[0],
                          "lun": machine.cd[1], "serial": "check-cd",
                          "wwn": wwn(*machine.cd)}


def command_line(qemu, accel, initrd, suite, machine, folder, qmp):
    argv = [qemu] + " ".join(accel).split()
    argv += ["-smp", str(machine.vcpus), "-m", "1G", "-nodefaults",
             "-name", "debug-threads=on", "-display", "none", "-no-reboot",
             "-kernel", f"{GUEST}/vmlinuz", "-initrd", initrd, "-append",
             "console=ttyS0 mitigations=off panic=-1 job=script",
             "-serial", "stdio", "-serial", "file:/dev/stderr",
             "-qmp", f"unix:{qmp},server=on,wait=off",
             "-fw_cfg", f"name=opt/job,file={JOBS}/{suite}.job",
             "-fw_cfg", f"name=opt/lib,file={JOBS}/lib.sh"]
    for i in range(machine.iothreads):
        argv += ["-object", f"iothread,id=iothread{i}"]
    for option, value in device_options(machine, folder):
        argv += [option, json.dumps(value)]
    return argv


def punches_holes():
    """Can images here give space back?"""
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64,
                          ctypes.c_int64]
    with tempfile.TemporaryFile(dir=WORK) as f:
        f.write(b"x" * (1 << 20))
        f.flush()
        return fallocate(f.fileno(), 3, 0, 1 << 20) == 0    # keep size, punch


def make_images(machine, folder):
    for name in machine.disks:
        with open(f"{folder}/{name}.raw", "wb") as f:
            f.truncate(DISK_SIZE)
    with open(f"{folder}/cd.raw", "wb") as f:
        for i in range(CD_SIZE // 2048):    # no sector is like another
            f.write(f"sector {i:8d}\n".encode() * 128)


def attempt(suite, qemu, accel, initrd, machine, log):
    """One run, in a folder of its own; the Job after its end."""
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=WORK) as folder, \
            tempfile.TemporaryDirectory(prefix="check-guest-") as sockets:
        # A socket's path must be short, the images need space.
        qmp = f"{sockets}/qmp"
        make_images(machine, folder)
        argv = command_line(qemu, accel, initrd, suite, machine, folder, qmp)
        log.write(f"# {' '.join(argv)}\n")
        job = Job(argv, accel, machine, log, folder, qmp)
        try:
            job.follow()
            return job
        finally:
            job.close()


def run_job(suite, which, qemu, accel, initrd, machine):
    """The Job after its end; its parts are in the job's order."""
    log_path = f"{WORK}/{suite}-{which}.log"
    for left in range(ATTEMPTS - 1, -1, -1):
        with open(log_path, "w", encoding="utf-8") as log:
            try:
                return attempt(suite, qemu, accel, initrd, machine, log)
            except EmulatorFault as fault:
                say(f"  fault of the emulator, run does not count: {fault}")
                if not left:
                    raise RunError(f"the emulator failed {ATTEMPTS} times"
                                   ) from None
            except RunError as error:
                raise RunError(f"{which}: {error}\nlog: {log_path}") from None
    return None
