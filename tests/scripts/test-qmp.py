#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapped controllers and their LUNs by QMP and HMP, in a running guest (TAP).

What a management layer asks first (properties, help, the QMP schema) must be
the stock QEMU's, but for request-merging of disks, x-query-virtio-scsi-queues
and its types. Then controllers with either form of the mapping come and go
while a Linux guest uses them, LUNs come and go under load, and a mapping that
is refused must not disturb either.

Environment: QEMU=, STOCK= (default: those of build/)
"""

import argparse
import json
import os
import subprocess
import sys

sys.dont_write_bytecode = True
TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
sys.path.insert(0, f"{TOP}/scripts/lab")
import vm as lib
from vm import OURS, STOCK, Checks, RunError, Vm, expect, fio_verified, wait_for

TYPES = ("virtio-scsi-pci", "virtio-scsi-device", "virtio-blk-pci",
         "vhost-scsi-pci", "scsi-hd", "scsi-cd", "scsi-block", "scsi-generic")
NEW_PROPERTIES = {
    ("scsi-hd", "request-merging"), ("scsi-cd", "request-merging"),
    ("virtio-scsi-pci", "iothread-vq-balance"),
    ("virtio-scsi-device", "iothread-vq-balance"),
}
DISK_BYTES = 256 << 20
WORKED = 0.02                   # seconds of CPU; an idle thread has far less
FORMS = {
    "round-robin": [{"iothread": "t0"}, {"iothread": "t1"}],
    "vqs": [{"iothread": "t1", "vqs": [0, 3]},
            {"iothread": "t0", "vqs": [2, 1]}],
}
SERVED = {"round-robin": ["t0", "t1", "t0", "t1"],  # by queue
          "vqs": ["t1", "t0", "t0", "t1"]}


# ------------------------------------------------- what stock says of itself

def ask(qemu, *commands):
    """Return values of QMP commands, of a QEMU without a machine."""
    text = "".join(json.dumps(c) + "\n" for c in
                   ({"execute": "qmp_capabilities"},) + commands
                   + ({"execute": "quit"},))
    done = subprocess.run([qemu, "-M", "none", "-nodefaults", "-display",
                           "none", "-qmp", "stdio"], input=text, text=True,
                          capture_output=True, timeout=60, check=True)
    replies = [json.loads(s) for s in done.stdout.splitlines()]
    replies = [r for r in replies if "return" in r or "error" in r]
    for reply in replies:
        expect("return" in reply, f"{qemu}: {reply}")
    return [r["return"] for r in replies][1:-1]


def properties(qemu):
    lists = ask(qemu, *({"execute": "device-list-properties",
                         "arguments": {"typename": t}} for t in TYPES))
    return {(t, p["name"]): p for t, ps in zip(TYPES, lists) for p in ps}


def test_properties():
    ours, stock = properties(OURS), properties(STOCK)
    expect(("virtio-scsi-pci", "iothread-vq-mapping") in ours,
           "virtio-scsi-pci has no iothread-vq-mapping; libvirt looks for it")
    expect(NEW_PROPERTIES <= set(ours),
           f"missing: {sorted(NEW_PROPERTIES - set(ours))}")
    for key in sorted((set(ours) | set(stock)) - NEW_PROPERTIES):
        expect(ours.get(key) == stock.get(key),
               f"{key}: {ours.get(key)}, stock: {stock.get(key)}")


def test_help():
    def text(qemu, device):
        done = subprocess.run([qemu, "-device", f"{device},help"], text=True,
                              capture_output=True, timeout=60, check=True)
        return done.stdout + done.stderr
    for device in TYPES:
        ours, stock = text(OURS, device), text(STOCK, device)
        ours = "".join(line for line in ours.splitlines(keepends=True)
                       if (device, line.split("=")[0].strip())
                       not in NEW_PROPERTIES)
        expect(ours == stock, f"-device {device},help differs from stock's")


QUEUES_COMMAND = "x-query-virtio-scsi-queues"
QUEUES_TYPES = {                # member: type; "*" if it may be missing
    "arguments": {"path": "*str"},
    "VirtioScsiQueues": {"path": "str", "id": "*str",
                         "queues": "list"},
    "VirtioScsiQueueInfo": {
        "queue": "int", "iothread": "*str", "thread-id": "int",
        "polling": "bool", "submitted": "int", "completed": "int",
        "in-flight": "int", "aborted": "int", "failed": "int",
        "bytes-read": "int", "bytes-written": "int", "kicks": "int",
        "interrupts": "int", "moves": "int", "stay-ns": "int",
        "handler-ns": "int", "share": "*number", "iothread-busy": "*number"},
}


class Schema:
    """query-qmp-schema's answer, with whole types instead of numbers.

    Introspection numbers its types, so that a new one changes the numbers of
    those that follow. Compared are commands and events with all that hangs on
    them.
    """

    def __init__(self, entries):
        self.types = {e["name"]: e for e in entries}
        self.entries = entries

    def names(self):
        return {e["name"] for e in self.entries
                if e["meta-type"] in ("command", "event")}

    def whole(self, name):
        """All that can be reached from @name, in the order of its finding."""
        found, todo = {}, [name]
        while todo:
            this = todo.pop(0)
            if this not in found:
                found[this] = len(found)
                todo += self.references(self.types[this])
        return [self.renamed(self.types[n], found) for n in found]

    def references(self, entry):
        names = [entry[k] for k in ("arg-type", "ret-type", "element-type")
                 if k in entry]
        for key in ("members", "variants"):
            names += [m["type"] for m in entry.get(key, ())
                      if isinstance(m, dict) and "type" in m]
        return names

    def renamed(self, entry, found):
        def walk(value):
            if isinstance(value, dict):
                return {k: found.get(v, v) if k in ("name", "type", "arg-type",
                                                    "ret-type", "element-type")
                        and isinstance(v, str) else walk(v)
                        for k, v in value.items()}
            return [walk(v) for v in value] if isinstance(value, list) else value
        return walk(entry)

    def members(self, name):
        """{member: type} of an object type."""
        def called(member):
            kind = self.types[member["type"]]
            text = {"builtin": kind["name"], "array": "list"}
            return (("*" if "default" in member else "")
                    + text.get(kind["meta-type"], kind["meta-type"]))
        return {m["name"]: called(m) for m in self.types[name]["members"]}


def schemas():
    ours, stock = (Schema(ask(q, {"execute": "query-qmp-schema"})[0])
                   for q in (OURS, STOCK))
    expect(len(stock.names()) > 100, "query-qmp-schema says next to nothing")
    return ours, stock


def test_schema():
    """Ours has one command more, and nothing of stock's differs."""
    ours, stock = schemas()
    more = ours.names() ^ stock.names()
    expect(more == {QUEUES_COMMAND},
           f"query-qmp-schema: only one side has {sorted(more)}")
    for name in sorted(stock.names()):
        expect(ours.whole(name) == stock.whole(name),
               f"query-qmp-schema: {name} differs from stock's")


def test_schema_queues():
    """The command that is ours, and its types, member by member."""
    ours, _ = schemas()
    command = ours.types[QUEUES_COMMAND]
    expect(command.get("features") == ["unstable"],
           f"{QUEUES_COMMAND}: features {command.get('features')}")
    device = ours.types[command["ret-type"]]["element-type"]
    queues, = [m["type"] for m in ours.types[device]["members"]
               if m["name"] == "queues"]
    for what, name in (("arguments", command["arg-type"]),
                       ("VirtioScsiQueues", device),
                       ("VirtioScsiQueueInfo",
                        ours.types[queues]["element-type"])):
        expect(ours.members(name) == QUEUES_TYPES[what],
               f"{what}: {ours.members(name)}, not {QUEUES_TYPES[what]}")


# --------------------------------------------------------------- the guest

class Hotplug:
    """A guest without a disk, and what is plugged into it."""

    def __init__(self):
        self.vm = Vm("qmp", ["-machine", "pc"])
        self.images = []

    def __enter__(self):
        self.vm.boot()
        for name in ("t0", "t1", "spare"):
            self.vm.command("object-add", qom_type="iothread", id=name)
        return self

    def __exit__(self, *_):
        self.vm.discard()

    def node(self, name):
        """A block node on a new file."""
        path = f"{self.vm.folder}/{name}.raw"
        with open(path, "wb") as f:
            f.truncate(DISK_BYTES)
        self.vm.command("blockdev-add", driver="file", node_name=name,
                        filename=path)

    def controller(self, name, mapping):
        self.vm.cmd("device_add", {"driver": "virtio-scsi-pci", "id": name,
                                   "num_queues": 4,
                                   "iothread-vq-mapping": mapping})

    def disk(self, name, bus, lun):
        """A LUN; the name of the disk that the guest sees."""
        self.node(name)
        before = self.disks()
        self.vm.cmd("device_add", {"driver": "scsi-hd", "id": f"dev-{name}",
                                   "drive": name, "bus": f"{bus}.0",
                                   "scsi-id": 0, "lun": lun})
        wait_for(f"new disk in the guest for {name}",
                 lambda: self.disks() - before)
        (new,) = self.disks() - before
        return new

    def disks(self):
        return set(self.vm.shell.run("ls /sys/block"))

    def unplug(self, name):
        self.vm.command("device_del", id=name)
        event = self.vm.event_wait("DEVICE_DELETED", timeout=60.0,
                                   match={"data": {"device": name}})
        expect(event, f"no DEVICE_DELETED for {name} in 60 s")

    def remove_disk(self, name, seen):
        """By the book: the guest lets go of it first."""
        self.vm.shell.run(f"echo 1 > /sys/block/{seen}/device/delete")
        self.unplug(f"dev-{name}")
        self.vm.command("blockdev-del", node_name=name)

    def worked(self, before):
        now = self.vm.iothread_seconds()
        return {n for n in now if now[n] - before.get(n, 0) > WORKED}

    def view(self, name="vs"):
        """QEMU's own view of a controller's queues."""
        (device,) = self.vm.cmd(QUEUES_COMMAND, {"path": name})
        expect(device.get("id") == name, f"{QUEUES_COMMAND}: {device}")
        return device["queues"]

    def queues(self, seen):
        return self.vm.shell.run(f"ls /sys/block/{seen}/mq | sort -n")

    def load(self, seen, seconds):
        """Verified load by all queues; it must be t0 and t1 that work."""
        before = self.vm.iothread_seconds()
        old = self.view()
        self.vm.shell.start("load", fio_verified(seen, 4, seconds, "32M"))
        self.vm.shell.finish("load")
        for then, now in zip(old, self.view()):
            for what in ("submitted", "bytes-read", "bytes-written", "kicks",
                         "interrupts"):
                expect(now[what] > then[what],
                       f"queue {now['queue']} had load, but {what} says no")
            expect(not now["in-flight"] and
                   now["submitted"] == now["completed"],
                   f"still in flight after the load: {now}")
        expect(self.worked(before) >= {"t0", "t1"} and
               "spare" not in self.worked(before),
               f"work was done by {sorted(self.worked(before))}, "
               "not by t0 and t1")


def test_come_and_go(h, form):
    """A mapped controller is plugged in, used, and unplugged."""
    vm = h.vm
    h.controller("vs", FORMS[form])
    told = vm.command("qom-get", path="/machine/peripheral/vs",
                      property="iothread-vq-mapping")
    expect(told == FORMS[form], f"qom-get says {told}")
    seen = h.disk("d0", "vs", 0)
    expect(h.queues(seen) == list("0123"), f"queues: {h.queues(seen)}")
    served = [q.get("iothread") for q in h.view()]
    expect(served == SERVED[form], f"queues are served by {served}")
    h.load(seen, 4)
    for name in ("t0", "t1"):
        kind, text = vm.refused("object-del", {"id": name})
        expect(kind == "GenericError" and name in text,
               f"object-del {name}: {kind}: {text}")
    h.remove_disk("d0", seen)
    h.unplug("vs")
    expect(vm.command(QUEUES_COMMAND) == [], "a controller is left in the view")
    for name in ("t0", "t1"):
        vm.command("object-del", id=name)
        vm.command("object-add", qom_type="iothread", id=name)


def test_luns_under_load(h):
    """LUNs come and go while another one of the controller has load."""
    vm = h.vm
    h.controller("vs", FORMS["vqs"])
    first = h.disk("d0", "vs", 0)
    before = vm.iothread_seconds()
    vm.shell.start("load", fio_verified(first, 4, 15, "32M"))
    for lun in (1, 2, 1):
        name = f"d{lun}"
        seen = h.disk(name, "vs", lun)
        vm.shell.run(f"dd if=/dev/{seen} of=/dev/null bs=1M count=8 "
                     "iflag=direct")
        expect(vm.shell.running("load"), "the load ended too early")
        h.remove_disk(name, seen)
    expect(vm.shell.running("load"), "the load ended too early")
    kind, text = vm.refused("device_add", {
        "driver": "virtio-scsi-pci", "id": "bad", "num_queues": 2,
        "iothread-vq-mapping": [{"iothread": "t0", "vqs": [0, 1, 2]}]})
    expect(kind == "GenericError" and "iothread-vq-mapping" in text
           and " 2" in text and "t0" in text, f"{kind}: {text}")
    vm.shell.finish("load")
    expect(h.worked(before) >= {"t0", "t1"}, "t0 and t1 did not both work")
    h.remove_disk("d0", first)
    h.unplug("vs")


def test_deleted_iothread(h):
    """A mapping that names an IOThread just deleted."""
    vm = h.vm
    vm.command("object-del", id="spare")
    for mapping in ([{"iothread": "t0"}, {"iothread": "spare"}],
                    [{"iothread": "spare", "vqs": [0, 1, 2, 3]}]):
        kind, text = vm.refused("device_add", {
            "driver": "virtio-scsi-pci", "id": "vs", "num_queues": 4,
            "iothread-vq-mapping": mapping})
        expect(kind == "GenericError" and "iothread-vq-mapping" in text
               and "spare" in text, f"{kind}: {text}")
    expect("vs" not in str(vm.command("qom-list", path="/machine/peripheral")),
           "a refused controller is left behind")
    vm.command("object-del", id="t0")      # nobody may still hold it
    for name in ("t0", "spare"):
        vm.command("object-add", qom_type="iothread", id=name)


def test_hmp(h):
    """HMP has no lists: all queues on one IOThread, the rest as with QMP."""
    vm = h.vm
    refusal = vm.hmp("device_add virtio-scsi-pci,id=vs,iothread-vq-mapping=t0")
    expect("iothread-vq-mapping" in refusal and "array" in refusal,
           f"HMP says: {refusal!r}")
    expect(not vm.hmp("device_add virtio-scsi-pci,id=vs,num_queues=4,"
                      "iothread=t0").strip(), "HMP refuses a controller")
    h.node("d0")
    before = h.disks()
    expect(not vm.hmp("device_add scsi-hd,id=dev-d0,drive=d0,bus=vs.0")
           .strip(), "HMP refuses a disk")
    wait_for("new disk in the guest", lambda: h.disks() - before)
    (seen,) = h.disks() - before
    before = vm.iothread_seconds()
    vm.shell.run(f"dd if=/dev/{seen} of=/dev/null bs=4k count=2000 "
                 "iflag=direct")
    expect(h.worked(before) == {"t0"},
           f"work was done by {sorted(h.worked(before))}, not by t0 alone")
    expect("iothread" in vm.hmp("info qtree"), "info qtree: no iothread")
    lines = vm.hmp("info virtio-scsi-queues vs").splitlines()[1:]
    want = [f"  queue {q['queue']}: iothread=t0 thread-id={q['thread-id']} "
            for q in h.view()]
    expect(len(lines) == 8 and all(map(str.startswith, lines[::2], want)) and
           all("    moves=0 stay=" in line for line in lines[1::2]),
           f"info virtio-scsi-queues: {lines}")
    vm.shell.run(f"echo 1 > /sys/block/{seen}/device/delete")
    for name in ("dev-d0", "vs"):
        expect(not vm.hmp(f"device_del {name}").strip(),
               f"HMP refuses device_del {name}")
        expect(vm.event_wait("DEVICE_DELETED", timeout=60.0,
                             match={"data": {"device": name}}),
               f"no DEVICE_DELETED for {name}")
    vm.command("blockdev-del", node_name="d0")


def in_new_guest(test, *args):
    def run():
        with Hotplug() as h:
            test(h, *args)
            h.vm.end()
    return run


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", metavar="TEXT",
                        help="only tests with this in their name")
    args = parser.parse_args()
    lib.die_orderly()
    checks = Checks(args.only)
    checks.case("device-list-properties as stock", test_properties)
    checks.case("-device ...,help as stock", test_help)
    checks.case("query-qmp-schema as stock, and one command", test_schema)
    checks.case("schema of x-query-virtio-scsi-queues", test_schema_queues)
    lib.need_guest()
    for form in FORMS:
        checks.case(f"mapped controller comes and goes, {form}",
                    in_new_guest(test_come_and_go, form))
    checks.case("LUNs come and go under load",
                in_new_guest(test_luns_under_load))
    checks.case("mapping to an IOThread just deleted",
                in_new_guest(test_deleted_iothread))
    checks.case("HMP", in_new_guest(test_hmp))
    return checks.finish()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RunError, OSError) as problem:
        print(f"test-qmp: error: {problem}", file=sys.stderr)
        sys.exit(1)
