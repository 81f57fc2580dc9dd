#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapped virtio-scsi controllers in the XML of a real libvirt.

A libvirtd of the test's own defines and starts the domain of
docs/libvirt/domain.xml.  While its guest writes and verifies on all queues,
disks and controllers come and go, the mapping changes, the domain is saved and
restored, migrates to another libvirtd, its disk gets a snapshot and is copied.
Wrong mappings are refused, by libvirt when the domain is defined, or by QEMU
with its own words.
"""

import contextlib
import functools
import json
import os
import re
import xml.etree.ElementTree as ET

from guest_shell import (GuestShell, WORK, expect, fio_verified,
                         iothread_times, read_threads, wait_for)
from private_libvirtd import Libvirtd
from qemu_test import BUILD_DIR, QemuSystemTest
from virtio_scsi_guest import BOOT_LIMIT, GuestLogs, GuestTest, output

XML = os.path.abspath(f"{os.path.dirname(__file__)}/../../docs/libvirt")
NAME = "mapped"                 # of the domain there
IMAGES = "/var/lib/libvirt/images"
REGION = 16                     # MiB, a fio job's part of the disk
QUEUES = 4
QEMU_XML = "http://libvirt.org/schemas/domain/qemu/1.0"
ROBIN = "controller-round-robin.xml"
DISK = "disk-add.xml"
CONTROLLER = "controller-add.xml"
# Where these are in a domain's XML
SECOND_DISK = "devices/disk/serial[.='second']"
SECOND_CONTROLLER = "devices/controller[@type='scsi'][@index='1']"

ET.register_namespace("qemu", QEMU_XML)


def example(name):
    """Root element of one of the files of docs/libvirt."""
    return ET.parse(f"{XML}/{name}").getroot()


def controller_of(domain):
    return domain.find("devices/controller[@type='scsi']")


def mapping_of(controller):
    """What QEMU must get for a controller's XML: the property's value."""
    entries = []
    for thread in controller.findall("driver/iothreads/iothread"):
        vqs = [int(queue.get("id")) for queue in thread.findall("queue")]
        entries.append({"iothread": f"iothread{thread.get('id')}",
                        **({"vqs": vqs} if vqs else {})})
    return entries


def mapping(*queues):
    """The property's value; queues: of IOThreads 1, 2, ..."""
    return [{"iothread": f"iothread{i}", "vqs": vqs}
            for i, vqs in enumerate(queues, 1) if vqs]


class Domain(GuestLogs):
    """The domain of the examples: defined, started, its guest's shell."""

    number = 0                  # of those defined, in the names of logs

    def __init__(self, daemon, qemu, logs, images):
        self.daemon, self.qemu, self.logs = daemon, qemu, logs
        self.images = images
        self.label = NAME
        self.shell = GuestShell(None)
        self.shell.alarm = self.check_alive
        self.controller = None      # the file of what runs now
        self.console = f"{logs}/00.console"

    @property
    def errors(self):
        return f"{self.daemon.work}/var/log/qemu/{NAME}.log"

    def virsh(self, *words):
        return self.daemon.virsh(*words)

    def adapt(self, domain):
        """What the test changes: no KVM, our emulator, our guest."""
        domain.set("type", "qemu")
        domain.find("devices/emulator").text = self.qemu
        guest = os.path.realpath(os.environ["QEMU_TEST_GUEST"])
        for tag, text in (("kernel", f"{guest}/vmlinuz"),
                          ("initrd", f"{guest}/initrd"),
                          ("cmdline", "console=ttyS0 mitigations=off "
                           "panic=-1")):
            ET.SubElement(domain.find("os"), tag).text = text
        ET.SubElement(domain, "on_reboot").text = "destroy"
        for text in (f"<serial type='file'><source path='{self.console}'"
                     " append='on'/></serial>",
                     "<serial type='unix'><source mode='bind' "
                     f"path='{self.daemon.sockets}/agent'/></serial>"):
            domain.find("devices").append(ET.fromstring(text))
        return domain

    def file(self, element):
        """The XML in a file: an element, or the name of an example."""
        if isinstance(element, str):
            return f"{XML}/{element}"
        path = f"{self.daemon.work}/try.xml"
        ET.ElementTree(element).write(path)
        return path

    def define(self, change=lambda domain: None, *words):
        """A new one, with empty images, in place of the last."""
        self.discard()
        Domain.number += 1
        self.console = f"{self.logs}/{Domain.number:02}.console"
        self.shell.path = f"{self.daemon.sockets}/agent"
        for name in os.listdir(self.images):
            os.unlink(f"{self.images}/{name}")
        for name in ("first", "second"):
            with open(f"{self.images}/{name}.raw", "wb") as f:
                f.truncate(QUEUES * REGION << 20)
        domain = self.adapt(example("domain.xml"))
        change(domain)
        self.virsh("define", *words, self.file(domain))

    def need(self, controller="domain.xml"):
        """It runs, with the controller of this file; started only if none or
        another one does."""
        def change(domain):
            devices = domain.find("devices")
            old = controller_of(domain)
            place = list(devices).index(old)
            devices.remove(old)
            devices.insert(place, example(controller))
        if self.controller == controller and self.state() == "running":
            return self
        self.define(change if controller == ROBIN else lambda _: None,
                    "--validate")
        self.virsh("start", NAME)
        self.shell.run("true", BOOT_LIMIT)
        wait_for("disk in the guest", lambda: self.disk("first"))
        self.controller = controller
        return self

    def migrate(self, daemon):
        """To another libvirtd of this machine, live, with its own sockets."""
        domain = self.xml("--migratable")
        domain.find("devices/serial[@type='unix']/source").set(
            "path", f"{daemon.sockets}/agent")
        self.virsh("migrate", NAME, daemon.uri, "tcp://127.0.0.1", "--live",
                   "--unsafe", "--persistent", "--undefinesource",
                   "--xml", self.file(domain))
        left, self.daemon = self.daemon, daemon
        self.shell.path = f"{daemon.sockets}/agent"
        expect(not left.processes(NAME), "QEMU still runs at the source")
        expect(left.call("dominfo", NAME)[0], "the source still has it")
        self.check_alive()

    def state(self):
        status, text, _ = self.daemon.call("domstate", NAME)
        return "undefined" if status else text

    def xml(self, *words):
        return ET.fromstring(self.virsh("dumpxml", NAME, *words))

    def pid(self):
        pids = self.daemon.processes(NAME)
        self.check_fault()
        expect(len(pids) == 1, f"{len(pids)} processes of the domain, not 1")
        return pids[0]

    def qmp(self, command, **arguments):
        """A QMP command's reply, past libvirt."""
        return json.loads(self.virsh("qemu-monitor-command", NAME, json.dumps(
            {"execute": command, "arguments": arguments})))

    def command(self, name, **arguments):
        """A QMP command's return value."""
        reply = self.qmp(name, **arguments)
        expect("return" in reply, f"{name} {arguments}: {reply}")
        return reply["return"]

    def parts(self):
        """What QEMU and libvirt say the domain consists of."""
        names = [p["name"] for place in ("/machine/peripheral", "/objects")
                 for p in self.command("qom-list", path=place)]
        return sorted(names), self.virsh("dumpxml", NAME)

    def iothread_seconds(self):
        """{IOThread's id: seconds of CPU so far}"""
        times = iothread_times(read_threads(self.pid()).values())
        return {name: t.cpu for name, t in times.items()}

    def check_alive(self):
        self.check_fault()
        state = self.state()
        expect(state == "running", f"the domain is {state}; QEMU's last "
               f"words: {self.last_words()}")

    def discard(self):
        """End it in any way and forget it; its logs stay."""
        self.controller = None
        self.shell.close()
        self.daemon.call("destroy", NAME)
        self.daemon.call("undefine", NAME, "--managed-save")
        if os.path.exists(self.errors):
            os.rename(self.errors, f"{self.logs}/{Domain.number:02}.log")

    # ------------------------------------------------------ in the guest

    def disk(self, serial):
        """The guest's name of the disk with this serial number, or None."""
        status, found = self.shell.run(
            f"grep -al {serial} /sys/block/sd*/device/vpd_pg80", check=False)
        return None if status else found[0].split("/")[3]

    def completed(self, disk):
        """Reads and writes that the guest's disk has done."""
        (text,) = self.shell.run(f"cat /sys/block/{disk}/stat")
        return int(text.split()[0]) + int(text.split()[4])

    def interrupts(self, disk):
        """[number of interrupts] of the request queues of a disk."""
        (path,) = self.shell.run(f"readlink -f /sys/block/{disk}/device")
        device = re.search(r"virtio\d+", path).group()
        lines = self.shell.run(f"grep -w {device}-request /proc/interrupts")
        return [sum(map(int, s.split()[1:QUEUES + 1])) for s in lines]

    @contextlib.contextmanager
    def load(self, serial="first"):
        """Verified load on all queues of a disk: it must go on until the end of
        the block, and find no wrong data.  The block's function waits until it
        has done more than it had when asked."""
        disk = self.disk(serial)
        job = f"load-{disk}"

        def moves():
            before = self.completed(disk)
            wait_for(f"progress of the load on {disk}",
                     lambda: self.completed(disk) > before + 100
                     or not self.shell.running(job))

        self.shell.start(job, fio_verified(disk, QUEUES, region=f"{REGION}M"),
                         endless=True)
        moves()
        yield moves
        expect(self.shell.running(job), f"the load on {disk} has ended")
        moves()
        self.shell.finish(job)


# ------------------------------------------------------------------ the tests

def thread(number, *queues):
    return (f"<iothread id='{number}'>"
            + "".join(f"<queue id='{q}'/>" for q in queues) + "</iothread>")


# Changes of domain.xml's <driver>, and what libvirt must say
WRONG = {
    "queue_twice": (
        "queues='4'", thread(1, 0, 1, 2) + thread(2, 2, 3),
        "queue '2' is already assigned"),
    "queue_beyond": (
        "queues='4'", thread(1, 0, 1) + thread(2, 2, 3, 4),
        "queue '4' mapping out of range"),
    "queue_left_out": (
        "queues='4'", thread(1, 0, 1) + thread(2, 2),
        "missing iothread mapping for queue '3'"),
    "negative_queue": (
        "queues='4'", thread(1, -1, 0, 1) + thread(2, 2, 3),
        "Expected non-negative integer"),
    "unknown_iothread": (
        "queues='4'", thread(1, 0, 1) + thread(9, 2, 3),
        "iothread '9' not defined"),
    "unknown_iothread_without_queues": (
        "queues='4'", thread(1) + thread(9), "iothread '9' not defined"),
    "iothread_twice": (
        "queues='4'", thread(1) + thread(2) + thread(1),
        "duplicate mapping for iothread '1'"),
    "one_with_queues_one_without": (
        "queues='4'", thread(1, 0, 1, 2, 3) + thread(2),
        "for all iothreads or for none"),
    "no_number_of_queues": (
        "", thread(1, 0, 1) + thread(2, 2, 3), "'queue' count must be"),
    "iothread_and_mapping": (
        "queues='4' iothread='3'", thread(1) + thread(2),
        "can't be used together with"),
}


def guarded(test):
    """Decorates a test: see GuestTest.guarded()."""
    @functools.wraps(test)
    def run(self):
        self.guarded(test)
    return run


class VirtioScsiLibvirt(GuestTest, QemuSystemTest):
    """The domain stays from test to test."""

    domain = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.images = f"{cls.scratch}/images"
        os.mkdir(cls.images)
        cls.qemu = os.path.realpath(os.environ["QEMU_TEST_QEMU_BINARY"])
        cls.daemon = cls.libvirtd("here")
        print(f"# libvirt {cls.daemon.version} in "
              f"{cls.daemon.root or 'the system'}", flush=True)
        cls.domain = Domain(cls.daemon, cls.qemu, cls.folder, cls.images)

    @classmethod
    def libvirtd(cls, name):
        """It ends with the class."""
        shown = [cls.images, str(BUILD_DIR), os.path.dirname(cls.qemu),
                 os.path.realpath(os.environ["QEMU_TEST_GUEST"])]
        daemon = Libvirtd(name, cls.folder, cls.scratch, cls.images, shown)
        cls.addClassCleanup(daemon.end)
        return daemon

    @classmethod
    def tearDownClass(cls):
        cls.drop()
        super().tearDownClass()

    @classmethod
    def machines(cls):
        return [cls.domain]

    @classmethod
    def drop(cls):
        cls.domain.discard()
        if cls.domain.daemon is not cls.daemon:
            cls.domain.daemon = cls.daemon
            cls.domain.discard()

    def virsh(self, *words):
        return self.domain.virsh(*words)

    def refuses(self, message, *words):
        self.domain.daemon.refuses(message, *words)

    # ------------------------------------------------------- wrong mappings

    def wrong(self, attributes, threads, message):
        """libvirt refuses a domain with this mapping and forgets it."""
        domain = self.domain.adapt(example("domain.xml"))
        domain.find("name").text = "wrong"
        controller = controller_of(domain)
        controller.remove(controller.find("driver"))
        controller.append(ET.fromstring(
            f"<driver {attributes}><iothreads>{threads}</iothreads>"
            "</driver>"))
        self.refuses(message, "define", self.domain.file(domain))
        expect("wrong" not in self.virsh("list", "--all", "--name").split(),
               "the refused domain is defined")

    def start_refused(self, change, message):
        """Defined by libvirt, but QEMU refuses it."""
        self.domain.define(change)
        self.refuses(message, "start", NAME)
        expect(self.domain.state() == "shut off" and
               not self.domain.daemon.processes(NAME), "some of it still runs")

    @guarded
    def test_02_too_many_queues(self):
        def change(domain):
            driver = controller_of(domain).find("driver")
            driver.set("queues", "2000")
            for element in driver.findall("iothreads/iothread"):
                for queue in element.findall("queue"):
                    element.remove(queue)
        self.start_refused(change, "num_queues is 2000, but must be 1 to")

    @guarded
    def test_03_fewer_queues_than_mapped(self):
        """libvirt's override of a property goes past libvirt's checks."""
        def change(domain):
            domain.append(ET.fromstring(
                f"<o:override xmlns:o='{QEMU_XML}'><o:device alias='scsi0'>"
                "<o:frontend><o:property name='num_queues' type='unsigned' "
                "value='3'/></o:frontend></o:device></o:override>"))
        self.start_refused(change, ": iothread-vq-mapping: vqs of IOThread "
                           "'iothread2' has 3, but the device's 3 queues")

    # ------------------------------------------------------------ the mapping

    def command_line(self, controller="domain.xml"):
        """QEMU got the XML's queues and mapping, to the letter."""
        asked = example(controller)
        if controller != ROBIN:
            asked = controller_of(asked)
        with open(f"/proc/{self.domain.pid()}/cmdline", "rb") as f:
            words = f.read().decode().split("\0")
        found = [json.loads(w) for w in words if w.startswith("{")
                 and '"virtio-scsi-pci"' in w]
        expect([(d.get("num_queues"), d.get("iothread-vq-mapping"))
                for d in found] == [(QUEUES, mapping_of(asked))],
               f"QEMU got {found}")

    def judge_load(self, serial="first", mapped=(1, 2), idle=(3,)):
        """Which IOThreads do a disk's verified load, and by which queues."""
        disk = self.domain.disk(serial)
        irqs = self.domain.interrupts(disk)
        expect(len(irqs) == QUEUES, f"the guest has {len(irqs)} queues")
        first = self.domain.iothread_seconds()
        with self.domain.load(serial) as moves:
            for _ in range(3):
                moves()
        used = {int(name.removeprefix("iothread")): cpu - first[name]
                for name, cpu in self.domain.iothread_seconds().items()}
        fair = sum(used[i] for i in mapped) / len(mapped)
        for i in mapped:
            expect(used[i] > max(WORK, fair / 10),
                   f"IOThread {i} is mapped but did no work: {used}")
        for i in idle:
            expect(used[i] < max(WORK, fair / 50),
                   f"IOThread {i} has no queue but worked: {used}")
        for i, new in enumerate(self.domain.interrupts(disk)):
            expect(new > irqs[i], f"queue {i} never interrupted the guest")
        self.log.info("seconds of CPU by IOThread: %s", used)

    @guarded
    def test_04_round_robin_command_line(self):
        self.domain.need(ROBIN)
        self.command_line(ROBIN)

    @guarded
    def test_05_round_robin_load(self):
        self.domain.need(ROBIN)
        self.judge_load()

    @guarded
    def test_06_queues_command_line(self):
        self.domain.need()
        self.command_line()

    @guarded
    def test_07_queues_load(self):
        self.domain.need()
        self.judge_load()

    # ---------------------------------------------------------------- hotplug

    def attach_disk(self, element):
        """Attach the second disk; the guest's name of it."""
        self.virsh("attach-device", NAME, self.domain.file(element))
        return wait_for("second disk in the guest",
                        lambda: self.domain.disk("second"))

    def detach(self, element, part):
        """Detach, and wait until libvirt knows that it is gone."""
        expect(self.domain.xml().find(part) is not None,
               f"the domain has no {part}")
        self.virsh("detach-device", NAME, self.domain.file(element))
        wait_for(f"end of detaching {part}",
                 lambda: self.domain.xml().find(part) is None)

    @guarded
    def test_08_disks_come_and_go(self):
        """Attached, used, detached, and again, while the first disk works."""
        domain = self.domain.need()
        before = domain.parts()
        with domain.load() as moves:
            for _ in range(2):
                name = self.attach_disk(DISK)
                domain.shell.run(fio_verified(name, QUEUES, 2, f"{REGION}M"))
                self.detach(DISK, SECOND_DISK)
                wait_for("end of the disk in the guest",
                         lambda: not domain.disk("second"))
                moves()
        expect(domain.parts() == before, "something of it is left")

    @guarded
    def test_09_busy_disk_detached(self):
        """Its own load ends with errors, that of its neighbour does not."""
        domain = self.domain.need()
        with domain.load():
            name = self.attach_disk(DISK)
            domain.shell.start("doomed", fio_verified(name, QUEUES, 600,
                                                      f"{REGION}M"))
            wait_for("load on the second disk",
                     lambda: domain.completed(name) > 500)
            self.detach(DISK, SECOND_DISK)
            wait_for("end of the load on the detached disk",
                     lambda: not domain.shell.running("doomed"))
        (status,) = domain.shell.run("cat /tmp/doomed.status")
        expect(status != "0", "the load did not notice that its disk is gone")

    @guarded
    def test_10_controller_comes_and_goes(self):
        """With a new IOThread, which can't be deleted until it has gone."""
        domain = self.domain.need()
        before = domain.parts()
        with domain.load() as moves:
            self.virsh("iothreadadd", NAME, "4", "--live")
            self.virsh("attach-device", NAME, domain.file(CONTROLLER))
            disk = example(DISK)
            disk.find("address").set("controller", "1")
            self.attach_disk(disk)
            moves()
            self.refuses("IOThread '4' since it is being used by controller",
                         "iothreaddel", NAME, "4", "--live")
            reply = domain.qmp("object-del", id="iothread4")
            expect("'iothread4' is in use" in str(reply), f"QEMU: {reply}")
            self.judge_load("second", (3, 4), ())
            self.detach(disk, SECOND_DISK)
            self.detach(CONTROLLER, SECOND_CONTROLLER)
            self.virsh("iothreaddel", NAME, "4", "--live")
        expect(domain.parts() == before, "something of it is left")

    @guarded
    def test_11_controller_without_iothread(self):
        """Its IOThread was just deleted, by libvirt or behind its back."""
        domain = self.domain.need()

        def refused(message):
            before = domain.parts()
            self.refuses(message, "attach-device", NAME,
                         domain.file(CONTROLLER))
            expect(domain.parts() == before, "something is left")

        with domain.load():
            self.virsh("iothreadadd", NAME, "4", "--live")
            self.virsh("iothreaddel", NAME, "4", "--live")
            refused("iothread '4' not defined")
            self.virsh("iothreadadd", NAME, "4", "--live")
            domain.command("object-del", id="iothread4")
            refused("iothread-vq-mapping: there is no IOThread 'iothread4'")
            domain.command("object-add", id="iothread4",
                           **{"qom-type": "iothread"})
            self.virsh("iothreaddel", NAME, "4", "--live")

    # --------------------------------------------- a mapping past libvirt

    def remap(self, *queues):
        """Set the mapping; queues: of IOThreads 1, 2, ..."""
        self.domain.command("qom-set", path="/machine/peripheral/scsi0",
                            property="iothread-vq-mapping",
                            value=mapping(*queues))
        self.served(*queues)

    def served(self, *queues):
        """QEMU must say that these IOThreads have the queues."""
        (device,) = self.domain.command("x-query-virtio-scsi-queues")
        told = [queue.get("iothread") for queue in device["queues"]]
        want = {n: entry["iothread"] for entry in mapping(*queues)
                for n in entry["vqs"]}
        expect(told == [want[n] for n in range(QUEUES)],
               f"queues are served by {told}")

    def libvirt_says(self, *threads):
        """IOThreads of the controller in libvirt's XML."""
        found = [t.get("id") for t in controller_of(self.domain.xml()).findall(
            "driver/iothreads/iothread")]
        expect(found == list(threads), f"libvirt's mapping has {found}")

    @guarded
    def test_12_another_mapping(self):
        """IOThread 4 takes over from 2, and gives back, under load."""
        domain = self.domain.need()
        with domain.load() as moves:
            self.virsh("iothreadadd", NAME, "4", "--live")
            self.remap([0, 1], [], [], [2, 3])
            moves()
            self.refuses("'iothread4' is in use",
                         "iothreaddel", NAME, "4", "--live")
            self.refuses("IOThread '2' since it is being used by controller",
                         "iothreaddel", NAME, "2", "--live")
        self.judge_load("first", (1, 4), (2, 3))
        self.libvirt_says("1", "2")     # it doesn't know
        # Past libvirt, which makes it again when it starts the domain
        domain.command("object-del", id="iothread2")
        info = self.virsh("iothreadinfo", NAME, "--live").splitlines()
        expect(sorted(s.split()[0] for s in info) == ["1", "3", "4"],
               f"libvirt lists {info}")
        domain.command("object-add", id="iothread2",
                       **{"qom-type": "iothread"})
        with domain.load() as moves:
            self.remap([0, 1], [2, 3])
            self.virsh("iothreaddel", NAME, "4", "--live")
            moves()
        self.judge_load()

    @guarded
    def test_13_another_mapping_saved(self):
        """Lost by save and restore, but for who changes the saved XML."""
        domain = self.domain.need()
        with domain.load() as moves:
            self.virsh("iothreadadd", NAME, "4", "--live")
            self.remap([0, 1], [], [], [2, 3])
            moves()
            self.virsh("managedsave", NAME)
            self.virsh("start", NAME)
            moves()
            self.served([0, 1], [2, 3])
            self.virsh("managedsave", NAME)
            saved = ET.fromstring(self.virsh("managedsave-dumpxml", NAME))
            controller_of(saved).find(
                "driver/iothreads/iothread[@id='2']").set("id", "4")
            self.virsh("managedsave-define", NAME, domain.file(saved))
            self.virsh("start", NAME)
            moves()
            self.served([0, 1], [], [], [2, 3])
            self.virsh("iothreaddel", NAME, "2", "--live")
        self.libvirt_says("1", "4")
        self.judge_load("first", (1, 4), (3,))
        domain.discard()

    # --------------------------------------------------- save and migrate

    @guarded
    def test_14_managed_save(self):
        """Saved and restored in the middle of the load."""
        domain = self.domain.need()
        with domain.load() as moves:
            self.virsh("managedsave", NAME)
            expect(not domain.daemon.processes(NAME), "QEMU still runs")
            state = self.virsh("domstate", "--reason", NAME)
            expect(state == "shut off (saved)", f"the domain is {state}")
            self.virsh("start", NAME)
            moves()
        self.command_line()
        self.judge_load()

    @guarded
    def test_15_migrate(self):
        """There and back under load, each time after a change of the mapping,
        which stays behind."""
        domain = self.domain.need()
        there = self.libvirtd("there")
        try:
            with domain.load() as moves:
                self.virsh("iothreadadd", NAME, "4", "--live")
                for daemon, queues in ((there, ([0, 1], [], [], [2, 3])),
                                       (self.daemon, ([3], [0], [1, 2]))):
                    self.remap(*queues)
                    moves()
                    domain.migrate(daemon)
                    moves()
                    self.served([0, 1], [2, 3])
        finally:
            there.end()
        self.command_line()
        self.judge_load("first", (1, 2), (3, 4))
        self.virsh("iothreaddel", NAME, "4", "--live")

    # ---------------------------------------------------------------- storage

    def source(self):
        """(file, its format) below the disk."""
        disk = self.domain.xml().find("devices/disk[serial='first']")
        return disk.find("source").get("file"), disk.find("driver").get("type")

    def uses(self, path, kind):
        expect(self.source() == (path, kind), f"it uses {self.source()}")

    def qemu_img(self, *words):
        """Reads images that QEMU has open; names below IMAGES."""
        output(f"{BUILD_DIR}/qemu-img",
               *(w.replace(IMAGES, self.images) for w in words))

    @guarded
    def test_16_snapshot(self):
        """External, of the disk only, under load: it writes to an overlay."""
        overlay = f"{IMAGES}/overlay.qcow2"
        with self.domain.need().load() as moves:
            self.virsh("snapshot-create-as", NAME, "one", "--disk-only",
                       "--no-metadata", "--diskspec",
                       f"sda,snapshot=external,file={overlay}")
            self.uses(overlay, "qcow2")
            moves()
        self.judge_load()

    @guarded
    def test_17_copy_and_pivot(self):
        """The disk moves to a new file under load."""
        target = f"{IMAGES}/moved.raw"
        with self.domain.need().load() as moves:
            self.virsh("blockcopy", NAME, "sda", target, "--format", "raw",
                       "--transient-job", "--wait", "--pivot")
            self.uses(target, "raw")
            moves()
        self.judge_load()

    @guarded
    def test_18_copy_compared(self):
        """A copy made under load equals the disk when both rest."""
        domain = self.domain.need()
        target = f"{IMAGES}/copy.qcow2"
        with domain.load() as moves:
            self.virsh("blockcopy", NAME, "sda", target, "--format", "qcow2",
                       "--transient-job")
            wait_for("end of copying", lambda: domain.command(
                "query-block-jobs")[0]["status"] == "ready")
            moves()
        path, kind = self.source()
        self.virsh("blockjob", NAME, "sda", "--abort")
        self.uses(path, kind)
        self.qemu_img("check", "-q", target)
        self.qemu_img("compare", "-U", "-f", kind, "-F", "qcow2", path, target)

    @guarded
    def test_19_shut_down(self):
        """The guest powers off; nothing remains."""
        domain = self.domain.need()
        domain.shell.run("(sleep 1; poweroff -f) > /dev/null 2>&1 &")
        wait_for("end of the domain", lambda: domain.state() == "shut off")
        expect(not domain.daemon.processes(NAME), "QEMU still runs")


for case, change_and_message in WRONG.items():
    setattr(VirtioScsiLibvirt, f"test_01_define_{case}",
            lambda self, what=change_and_message: self.guarded(
                VirtioScsiLibvirt.wrong, *what))

if __name__ == '__main__':
    QemuSystemTest.main()
