#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapped virtio-scsi controllers and their LUNs by QMP and HMP.

What a management layer asks first (properties, help, the QMP schema) must be
what another build without this work says (QEMU_TEST_QEMU_BINARY_OTHER; skipped
without), but for a few additions.  Then controllers with either form of the
mapping come and go while a Linux guest uses them, LUNs come and go under load,
and a mapping that is refused must not disturb either.
"""

import json
import os
import re
import subprocess

from guest_shell import expect, fio_verified, wait_for
from qemu.machine import QEMUMachine
from qemu_test import QemuSystemTest
from virtio_scsi_guest import GuestMachine, GuestTest

TYPES = ("virtio-scsi-pci", "virtio-scsi-device", "virtio-blk-pci",
         "vhost-scsi-pci", "scsi-hd", "scsi-cd", "scsi-block", "scsi-generic")
NEW_PROPERTIES = {
    ("scsi-hd", "request-merging"), ("scsi-cd", "request-merging"),
    ("scsi-hd", "standard-answers"), ("scsi-cd", "standard-answers"),
    ("scsi-hd", "block-size-change"), ("scsi-cd", "block-size-change"),
    ("virtio-scsi-pci", "iothread-vq-balance"),
    ("virtio-scsi-device", "iothread-vq-balance"),
}
NEW_OPTION = "multi-conn"       # of -blockdev driver=nbd
QUEUES_COMMAND = "x-query-virtio-scsi-queues"
QUEUES_TYPES = {                # member: type; "*" if it may be missing
    "arguments": {"path": "*str"},
    "device": {"path": "str", "id": "*str", "queues": "list"},
    "queue": {
        "queue": "int", "iothread": "*str", "thread-id": "int",
        "polling": "bool", "submitted": "int", "completed": "int",
        "in-flight": "int", "aborted": "int", "failed": "int",
        "bytes-read": "int", "bytes-written": "int", "kicks": "int",
        "interrupts": "int", "moves": "int", "stay-ns": "int",
        "handler-ns": "int", "share": "*number", "iothread-busy": "*number"},
}
COUNTERS = ("submitted", "bytes-read", "bytes-written", "kicks", "interrupts")
QUEUES = 4
DISK_BYTES = 256 << 20
WORKED = 0.02                   # seconds of CPU; an idle thread has far less
FORMS = {                       # (mapping, IOThread of each queue)
    "round_robin": ([{"iothread": "t0"}, {"iothread": "t1"}],
                    ["t0", "t1", "t0", "t1"]),
    "vqs": ([{"iothread": "t1", "vqs": [0, 3]},
             {"iothread": "t0", "vqs": [2, 1]}], ["t1", "t0", "t0", "t1"]),
}


# ----------------------------------------------------------- the QMP schema

def reachable(types, name):
    """All that hangs on @name.

    Introspection numbers its types, so that a new one changes the numbers of
    those that follow; here they are numbered in the order of finding.
    """
    names, found = [name], []
    for this in names:                      # which grows meanwhile
        def local(match):
            if match[2] not in names:
                names.append(match[2])
            return f'{match[1]}"#{names.index(match[2])}"'

        found.append(re.sub(r'("(?:name|(?:(?:arg|ret|element)-)?type)": )'
                            r'"(\[?\d+\]?)"', local, json.dumps(types[this])))
    return found


def members(types, name):
    """{member: type} of an object type."""
    def told(member):
        kind = types[member["type"]]
        text = {"builtin": kind["name"], "array": "list"}
        return ("*" if "default" in member else "") + text.get(
            kind["meta-type"], kind["meta-type"])
    return {m["name"]: told(m) for m in types[name]["members"]}


class VirtioScsiSchema(QemuSystemTest):
    """What QEMU says without a guest."""

    def both(self, function):
        """function() of this build and of the other."""
        other = os.getenv("QEMU_TEST_QEMU_BINARY_OTHER")
        if not other:
            self.skipTest("QEMU_TEST_QEMU_BINARY_OTHER is not set")
        return function(self.qemu_bin), function(other)

    def ask(self, binary, command, *arguments):
        """Return values of a QMP command, once for each of the arguments."""
        with QEMUMachine(binary, ["-nodefaults"], log_dir=self.outputdir,
                         base_temp_dir=self.workdir) as vm:
            vm.set_machine("none")
            vm.launch()
            return [vm.cmd(command, values) for values in arguments]

    def properties(self, binary):
        lists = self.ask(binary, "device-list-properties",
                         *({"typename": name} for name in TYPES))
        return {(name, p["name"]): p for name, properties in zip(TYPES, lists)
                for p in properties}

    def schema(self, binary):
        """{name: entry of query-qmp-schema}"""
        (entries,) = self.ask(binary, "query-qmp-schema", {})
        return {e["name"]: e for e in entries}

    def test_properties(self):
        ours, stock = self.both(self.properties)
        expect(("virtio-scsi-pci", "iothread-vq-mapping") in ours,
               "virtio-scsi-pci has no iothread-vq-mapping; libvirt wants it")
        expect(NEW_PROPERTIES <= set(ours),
               f"missing: {sorted(NEW_PROPERTIES - set(ours))}")
        for key in sorted((set(ours) | set(stock)) - NEW_PROPERTIES):
            expect(ours.get(key) == stock.get(key),
                   f"{key}: {ours.get(key)}, stock: {stock.get(key)}")

    def test_help(self):
        def text(binary):
            done = subprocess.run([binary, "-device", f"{device},help"],
                                  text=True, capture_output=True, check=True)
            return [s for s in (done.stdout + done.stderr).splitlines()
                    if (device, s.split("=")[0].strip()) not in NEW_PROPERTIES]

        for device in TYPES:
            ours, stock = self.both(text)
            expect(ours == stock, f"-device {device},help differs from stock's")

    def test_schema(self):
        """One command and one option more, and nothing else differs."""
        ours, stock = self.both(self.schema)
        nbd = [t["members"] for t in ours.values() for m in t.get("members", ())
               if isinstance(m, dict) and m.get("name") == NEW_OPTION]
        expect(len(nbd) == 1 and
               "reconnect-delay" in [m["name"] for m in nbd[0]],
               f"query-qmp-schema: {len(nbd)} types have {NEW_OPTION}")
        nbd[0][:] = [m for m in nbd[0] if m["name"] != NEW_OPTION]
        names, known = ({e["name"] for e in types.values()
                         if e["meta-type"] in ("command", "event")}
                        for types in (ours, stock))
        expect(len(known) > 100, "query-qmp-schema says next to nothing")
        expect(names ^ known == {QUEUES_COMMAND}, "query-qmp-schema: only one "
               f"side has {sorted(names ^ known)}")
        for name in sorted(known):
            expect(reachable(ours, name) == reachable(stock, name),
                   f"query-qmp-schema: {name} differs from stock's")

    def test_schema_of_queues(self):
        """The new command and its types, member by member."""
        types = self.schema(self.qemu_bin)
        command = types[QUEUES_COMMAND]
        expect(command.get("features") == ["unstable"],
               f"{QUEUES_COMMAND}: features {command.get('features')}")
        device = types[command["ret-type"]]["element-type"]
        (queues,) = [m["type"] for m in types[device]["members"]
                     if m["name"] == "queues"]
        for what, name in (("arguments", command["arg-type"]),
                           ("device", device),
                           ("queue", types[queues]["element-type"])):
            expect(members(types, name) == QUEUES_TYPES[what],
                   f"{what}: {members(types, name)}, not {QUEUES_TYPES[what]}")


# ----------------------------------------------------------------- the guest

class Hotplug(GuestMachine):
    """A guest without a disk, and what is plugged into it."""

    def __init__(self, logs):
        super().__init__(os.environ["QEMU_TEST_QEMU_BINARY"], "hotplug",
                         ["-machine", "pc"], logs, QUEUES)

    def boot(self):
        super().boot()
        for name in ("t0", "t1", "spare"):
            self.command("object-add", qom_type="iothread", id=name)
        return self

    def node(self, name):
        """A block node on a new file."""
        path = f"{self.folder}/{name}.raw"
        with open(path, "wb") as f:
            f.truncate(DISK_BYTES)
        self.command("blockdev-add", driver="file", node_name=name,
                     filename=path)

    def controller(self, mapping):
        self.cmd("device_add", {"driver": "virtio-scsi-pci", "id": "vs",
                                "num_queues": QUEUES,
                                "iothread-vq-mapping": mapping})

    def refuses(self, mapping, *words, **controller):
        """device_add must fail with an error that has these words."""
        kind, text = self.refused("device_add", {
            "driver": "virtio-scsi-pci", "id": "bad", "num_queues": QUEUES,
            "iothread-vq-mapping": mapping, **controller})
        expect(kind == "GenericError" and
               all(w in text for w in ("iothread-vq-mapping", *words)),
               f"{kind}: {text}")

    def disk(self, name, lun, add=None):
        """A LUN on a node of its own; the disk that the guest sees."""
        self.node(name)
        before = self.disks()
        if add:
            add()
        else:
            self.cmd("device_add", {
                "driver": "scsi-hd", "id": f"dev-{name}", "drive": name,
                "bus": "vs.0", "scsi-id": 0, "lun": lun})
        return wait_for(f"new disk in the guest for {name}",
                        lambda: self.disks() - before).pop()

    def disks(self):
        return set(self.shell.run("ls /sys/block"))

    def unplug(self, name, how=None):
        if how:
            how(f"device_del {name}")
        else:
            self.command("device_del", id=name)
        expect(self.event_wait("DEVICE_DELETED", timeout=60.0,
                               match={"data": {"device": name}}),
               f"no DEVICE_DELETED for {name} in 60 s")

    def remove_disk(self, name, seen, how=None):
        """By the book: the guest lets go of it first."""
        self.shell.run(f"echo 1 > /sys/block/{seen}/device/delete")
        self.unplug(f"dev-{name}", how)
        self.command("blockdev-del", node_name=name)

    def read(self, seen, blocks):
        self.shell.run(f"dd if=/dev/{seen} of=/dev/null bs=4k count={blocks} "
                       "iflag=direct")

    def worked(self, before):
        now = self.iothread_seconds()
        return {n for n in now if now[n] - before.get(n, 0) > WORKED}

    def view(self):
        """QEMU's own view of the controller's queues."""
        (device,) = self.cmd(QUEUES_COMMAND, {"path": "vs"})
        expect(device.get("id") == "vs", f"{QUEUES_COMMAND}: {device}")
        return device["queues"]

    def load(self, seen):
        """Verified load on all queues; it must be t0 and t1 that work."""
        before, old = self.iothread_seconds(), self.view()
        self.shell.start("load", fio_verified(seen, QUEUES, 4, "32M"))
        self.shell.finish("load")
        for then, now in zip(old, self.view()):
            for what in COUNTERS:
                expect(now[what] > then[what],
                       f"queue {now['queue']} had load, but {what} says no")
            expect(not now["in-flight"] and
                   now["submitted"] == now["completed"],
                   f"still in flight after the load: {now}")
        worked = self.worked(before)
        expect(worked >= {"t0", "t1"} and "spare" not in worked,
               f"work was done by {sorted(worked)}, not by t0 and t1")

    def renew(self, *names):
        """Nobody may still hold these IOThreads."""
        for name in names:
            self.command("object-del", id=name)
            self.command("object-add", qom_type="iothread", id=name)


class VirtioScsiHotplug(GuestTest, QemuSystemTest):
    """One guest for all: each test leaves it as it was."""

    @classmethod
    def tearDownClass(cls):
        try:
            for vm in cls.machines():
                vm.end()
        finally:
            cls.drop()
            super().tearDownClass()

    def booted(self):
        cls = type(self)
        if not cls.guest:
            cls.guest = Hotplug(self.folder)
            cls.guest.boot()
        return cls.guest

    def come_and_go(self, form):
        """A mapped controller is plugged in, used, and unplugged."""
        vm, (mapping, served) = self.booted(), FORMS[form]
        vm.controller(mapping)
        told = vm.command("qom-get", path="/machine/peripheral/vs",
                          property="iothread-vq-mapping")
        expect(told == mapping, f"qom-get says {told}")
        seen = vm.disk("d0", 0)
        queues = vm.shell.run(f"ls /sys/block/{seen}/mq | sort -n")
        expect(queues == list("0123"), f"queues: {queues}")
        told = [q.get("iothread") for q in vm.view()]
        expect(told == served, f"queues are served by {told}")
        vm.load(seen)
        for name in ("t0", "t1"):
            kind, text = vm.refused("object-del", {"id": name})
            expect(kind == "GenericError" and name in text,
                   f"object-del {name}: {kind}: {text}")
        vm.remove_disk("d0", seen)
        vm.unplug("vs")
        expect(vm.command(QUEUES_COMMAND) == [],
               "a controller is left in the view")
        vm.renew("t0", "t1")

    def luns_under_load(self):
        """LUNs come and go while another one of the controller has load."""
        vm = self.booted()
        vm.controller(FORMS["vqs"][0])
        first = vm.disk("d0", 0)
        before = vm.iothread_seconds()
        vm.shell.start("load", fio_verified(first, QUEUES, region="32M"),
                       endless=True)
        for lun in (1, 2, 1):
            seen = vm.disk(f"d{lun}", lun)
            vm.read(seen, 2048)
            expect(vm.shell.running("load"), "the load ended too early")
            vm.remove_disk(f"d{lun}", seen)
        expect(vm.shell.running("load"), "the load ended too early")
        vm.refuses([{"iothread": "t0", "vqs": [0, 1, 2]}], " 2", "t0",
                   num_queues=2)
        vm.shell.finish("load")
        expect(vm.worked(before) >= {"t0", "t1"}, "t0 and t1 did not both work")
        vm.remove_disk("d0", first)
        vm.unplug("vs")

    def deleted_iothread(self):
        """A mapping that names an IOThread just deleted."""
        vm = self.booted()
        vm.command("object-del", id="spare")
        vm.refuses([{"iothread": "t0"}, {"iothread": "spare"}], "spare")
        vm.refuses([{"iothread": "spare", "vqs": [0, 1, 2, 3]}], "spare")
        left = vm.command("qom-list", path="/machine/peripheral")
        expect("'bad'" not in str(left), f"a refused controller stays: {left}")
        vm.command("object-add", qom_type="iothread", id="spare")
        vm.renew("t0", "spare")

    def hmp(self):
        """HMP has no lists: all queues on one IOThread, else as with QMP."""
        vm = self.booted()

        def accepts(line):
            said = vm.hmp(line).strip()
            expect(not said, f"HMP refuses {line}: {said}")

        said = vm.hmp("device_add virtio-scsi-pci,id=vs,iothread-vq-mapping=t0")
        expect("iothread-vq-mapping" in said and "array" in said,
               f"HMP says: {said!r}")
        accepts(f"device_add virtio-scsi-pci,id=vs,num_queues={QUEUES},"
                "iothread=t0")
        seen = vm.disk("d0", 0, lambda: accepts(
            "device_add scsi-hd,id=dev-d0,drive=d0,bus=vs.0"))
        before = vm.iothread_seconds()
        vm.read(seen, 2000)
        worked = vm.worked(before)
        expect(worked == {"t0"},
               f"work was done by {sorted(worked)}, not by t0 alone")
        expect("iothread" in vm.hmp("info qtree"), "info qtree: no iothread")
        lines = vm.hmp("info virtio-scsi-queues vs").splitlines()[1:]
        want = [f"  queue {q['queue']}: iothread=t0 thread-id={q['thread-id']} "
                for q in vm.view()]
        expect(len(lines) == 2 * QUEUES and
               all(map(str.startswith, lines[::2], want)) and
               all("    moves=0 stay=" in line for line in lines[1::2]),
               f"info virtio-scsi-queues: {lines}")
        vm.remove_disk("d0", seen, accepts)
        vm.unplug("vs", accepts)

    def test_come_and_go_round_robin(self):
        self.guarded(VirtioScsiHotplug.come_and_go, "round_robin")

    def test_come_and_go_vqs(self):
        self.guarded(VirtioScsiHotplug.come_and_go, "vqs")

    def test_luns_under_load(self):
        self.guarded(VirtioScsiHotplug.luns_under_load)

    def test_deleted_iothread(self):
        self.guarded(VirtioScsiHotplug.deleted_iothread)

    def test_hmp(self):
        self.guarded(VirtioScsiHotplug.hmp)


if __name__ == '__main__':
    QemuSystemTest.main()
