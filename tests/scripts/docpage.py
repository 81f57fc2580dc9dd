# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user page of virtio-scsi says, tried out.

- Each command with qemu-system-x86_64 starts, and its queues are served as its
  mapping says.
- The QMP exchanges and HMP commands go in the page's order to one QEMU, which
  was started by the page's command with a pcie-root-port, and get the answers
  that the page shows.
- Each message of the page's tables is one that QEMU has (docmessages.py), and
  each that our files have is there.
- libvirt's XML parses, and QEMU takes the mapping in it.
- The manual lists our pages, and explains the QMP command with all its members.

The VMs don't run, so guests are not needed; ADAPT is what is changed before a
command is tried. Guest, host and virsh commands are not tried here.
"""

import asyncio
import glob
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import traceback
import xml.etree.ElementTree as ET

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.abspath(f"{HERE}/../..")
sys.path.insert(1, f"{TOP}/build/base/python")
from qemu.machine import QEMUMachine
from qemu.qmp import QMPError
from docmessages import Wrong, check_messages, expect

QEMU = os.environ.get("QEMU") or f"{TOP}/build/qemu-system-x86_64"
PAGE = f"{TOP}/docs/system/devices/virtio-scsi.rst"
EVENT_LIMIT = 30.0              # seconds
VIEW = "x-query-virtio-scsi-queues"
# No KVM, no such disks, and no guest that would let a device go: then the port
# must unplug by itself.
ADAPT = [("-accel kvm", "-accel tcg"), ("-cpu host", "-cpu qemu64"),
         ("-m 4G", "-m 128M"), (r"-qmp \S+", ""), ("host_device", "file"),
         (r',\s*"aio":"io_uring",\s*"cache":\{"direct":true\}', ""),
         ("-machine q35", "-machine q35 -global "
          "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"),
         (r"/dev/nvme\dn1", "DISK"), (r"/images/system\.qcow2", "SYSTEM")]
# Where the page lists them in the manual.
PARENTS = {"system/devices": "system/device-emulation",
           "devel": "devel/index-internals"}
# What differs from one run to the next
VARIES = {"thread-id", "polling", "seconds", "microseconds", "submitted",
          "completed", "in-flight", "aborted", "failed", "bytes-read",
          "bytes-written", "kicks", "interrupts",
          "stay-ns", "handler-ns"}


# ------------------------------------------------------------ reading the page

def blocks(text):
    """[(language, content)] of the page's code blocks."""
    found = re.finditer(r"^\.\. code-block:: (\w+)\n\n((?:(?: {3}.*)?\n)+)",
                        text, re.M)
    return [(m[1], textwrap.dedent(m[2])) for m in found]


def commands(text):
    """The page's command lines of QEMU."""
    return [content for language, content in blocks(text)
            if language == "shell" and content.startswith("qemu-system")]


def exchanges(content):
    """[(sent, [received])] of a QMP block."""
    found = []
    for part in re.split(r"^(?=-> |<- )", content, flags=re.M)[1:]:
        try:
            # A list that goes on; strings of the page have no such dots
            message = json.loads(part[3:].replace(" ...", ' "..."'))
        except ValueError as error:
            raise Wrong(f"not JSON: {part}: {error}") from None
        if part.startswith("-> "):
            found.append((message, []))
        else:
            found[-1][1].append(message)
    return found


def hmp_commands(content):
    """[(command, answer)] of a block with HMP's prompt."""
    parts = re.split(r"^\(qemu\) ", content, flags=re.M)[1:]
    return [(command, answer.rstrip("\n")) for command, _, answer in
            (part.partition("\n") for part in parts)]


def messages(text):
    """The messages in the tables of the last section."""
    rows = re.findall(r"^   \* - (``.*?)^     - ",
                      text.partition("\nTroubleshooting\n")[2], re.M | re.S)
    found = [" ".join(m.split()) for row in rows
             for m in re.findall(r"``(.*?)``", row, re.S)]
    expect(found, "no table of messages in the page")
    return found


# ------------------------------------------------------------------- QEMU

class Qemu(QEMUMachine):
    """The page's command, adapted; its VM doesn't run."""

    def __init__(self, command, folder):
        self.folder = folder
        for pattern, new in ADAPT:
            command = re.sub(pattern, new, command)
        words = [w.replace("DISK", f"{folder}/disk")
                 .replace("SYSTEM", f"{folder}/system")
                 for w in shlex.split(command.replace("\\\n", " "))]
        self.words = words[1:]
        super().__init__(QEMU, ["-S"] + self.words, base_temp_dir=folder,
                         wrapper=("setpriv", "--pdeathsig", "KILL"))

    def __enter__(self):
        try:
            self.launch()
        except Exception as error:
            raise Wrong(f"QEMU doesn't start: {self.get_log() or error}") \
                from None
        return self

    def __exit__(self, kind, *_):
        self.shutdown(hard=bool(kind))
        expect(kind or not self.get_log(), f"QEMU says: {self.get_log()}")

    def controller(self):
        """Options of the command's virtio-scsi controller."""
        for word in self.words:
            if word.startswith('{"driver":"virtio-scsi'):
                return json.loads(word)
            if word.startswith("virtio-scsi"):
                return dict(o.split("=") for o in word.split(",")[1:])
        raise Wrong("the command has no virtio-scsi controller")


def served_by(options, queues):
    """Which IOThread serves each queue, as the page explains it."""
    mapping = options.get("iothread-vq-mapping")
    if not mapping:
        return [options.get("iothread")] * queues
    if "vqs" in mapping[0]:
        by_queue = {vq: e["iothread"] for e in mapping for vq in e["vqs"]}
        return [by_queue.get(i) for i in range(queues)]
    return [mapping[i % len(mapping)]["iothread"] for i in range(queues)]


def make_images(folder):
    with open(f"{folder}/disk", "wb") as f:
        f.truncate(1 << 20)
    subprocess.run([f"{os.path.dirname(QEMU)}/qemu-img", "create", "-q", "-f",
                    "qcow2", f"{folder}/system", "1M"], check=True)


def check_command(command, folder):
    with Qemu(command, folder) as qemu:
        options = qemu.controller()
        (seen,) = qemu.cmd(VIEW)
        threads = [q.get("iothread") for q in seen["queues"]]
        expect(threads == served_by(options, 4),
               f"queues are served by {threads}")


# ------------------------------------------------------- QMP and HMP of the page

def same(shown, got, where=""):
    """Is an answer the page's? What varies must only be of its type."""
    key = where.rpartition(".")[2]
    if isinstance(shown, dict) and isinstance(got, dict):
        expect(set(shown) == set(got),
               f"{where}: {sorted(got)}, the page has {sorted(shown)}")
        for name in shown:
            same(shown[name], got[name], f"{where}.{name}")
    elif isinstance(shown, list) and isinstance(got, list):
        if shown[-1:] == ["..."]:
            shown = shown[:-1]
            got = got[:len(shown)]
        expect(len(shown) == len(got), f"{where}: {got}")
        if got and isinstance(got[0], dict) and "id" in got[0]:
            got = sorted(got, key=lambda o: o["id"])
        for i, item in enumerate(shown):
            same(item, got[i], f"{where}[{i}]")
    else:
        equal = type(shown) is type(got) if key in VARIES else shown == got
        expect(equal, f"{where}: {got}, the page has {shown}")


def wait_event(qemu, shown):
    match = {"data": {"device": shown["data"]["device"]}}
    try:                        # with an int it would wait for ever
        return qemu.event_wait(shown["event"], timeout=EVENT_LIMIT, match=match)
    except asyncio.TimeoutError:
        raise Wrong(f"no event {shown['event']} of {match['data']}") from None


def exchange(qemu, sent, answers):
    command = json.loads(json.dumps(sent)
                         .replace("/dev/nvme1n1", f"{qemu.folder}/disk")
                         .replace("host_device", "file"))
    arguments = command.get("arguments", {})
    if arguments.get("aio") == "io_uring":      # not on each host
        del arguments["aio"], arguments["cache"]
    reply = qemu.qmp(command["execute"], arguments)
    for answer in answers:
        if "event" in answer:
            reply = wait_event(qemu, answer)
        same(answer, reply, command["execute"])


def hmp(qemu, command, answer):
    got = qemu.cmd("human-monitor-command",
                   {"command-line": command}).replace("\r", "").rstrip()
    plain = [re.sub(r"=(\d+s?|yes|no)\b", "=", " ".join(t.split()))
             for t in (answer, got)]
    expect(plain[0] == plain[1], f"(qemu) {command}\n{got}")


def check_monitor(text, folder):
    (command,) = [c for c in commands(text) if "pcie-root-port" in c]
    done = 0
    with Qemu(command, folder) as qemu:
        for language, content in blocks(text):
            if language == "QMP":
                for sent, answers in exchanges(content):
                    exchange(qemu, sent, answers)
                    done += 1
            for line, answer in hmp_commands(content):
                hmp(qemu, line, answer)
                done += 1
    expect(done >= 15, f"only {done} exchanges found in the page")


# ----------------------------------------------------------- XML and manual

def xml_files():
    """libvirt's XML that the page shows or names."""
    found = sorted(glob.glob(f"{os.path.dirname(PAGE)}/../../libvirt/*.xml"))
    expect(found, "no XML in docs/libvirt")
    return found


def check_xml(folder):
    """What libvirt makes of a controller; make check-libvirt asks libvirt."""
    for path in xml_files():
        root = ET.parse(path).getroot()
        for driver in root.iterfind(".//iothreads/.."):
            entries = []
            for thread in driver.iterfind("iothreads/iothread"):
                queues = [int(q.get("id")) for q in thread.iter("queue")]
                entries.append({"iothread": f"iothread{thread.get('id')}",
                                **({"vqs": queues} if queues else {})})
            if not entries:
                continue        # how many IOThreads the domain has
            device = json.dumps({"driver": "virtio-scsi-pci",
                                 "num_queues": int(driver.get("queues")),
                                 "iothread-vq-mapping": entries},
                                separators=(",", ":"))
            objects = " ".join(f"-object iothread,id={e['iothread']}"
                               for e in entries)
            check_command(f"qemu-system-x86_64 {objects} -device '{device}'",
                          folder)


def check_listed(manual, page):
    parent = PARENTS.get(os.path.dirname(page))
    expect(parent, f"no table of contents known for pages in "
           f"{os.path.dirname(page)}")
    with open(f"{manual}/{parent}.html", encoding="utf-8") as f:
        body = f.read().partition('itemprop="articleBody"')[2]
    link = os.path.relpath(page, os.path.dirname(parent))
    expect(f'href="{link}.html"' in body, f"{parent} does not list it")
    expect(os.path.isfile(f"{manual}/{page}.html"), "it was not built")


def check_reference(manual):
    """The command and its types are in the QMP reference, each member."""
    with open(f"{manual}/interop/qemu-qmp-ref.html", encoding="utf-8") as f:
        html = f.read()
    for name in (VIEW, "VirtioScsiQueues", "VirtioScsiQueueInfo",
                 "IOThreadVirtQueueMapping"):
        found = re.search(rf'id="\w+-QMP-\w+\.{name}"(.*?)(?=<dt class="sig |\Z)',
                          html, re.S)
        expect(found, f"{name} is not in the QMP reference")
        expect("Not documented" not in found[1],
               f"{name} has a member without a word about it")


# ------------------------------------------------------------------- the checks

def list_checks(manual, pages, folder):
    """[(name, function, arguments)]"""
    with open(PAGE, encoding="utf-8") as f:
        text = f.read()
    found = [(f"listed in the manual: {page}", check_listed, (manual, page))
             for page in pages]
    found.append(("in the QMP reference", check_reference, (manual,)))
    found += [(f"command {i}", check_command, (command, folder))
              for i, command in enumerate(commands(text), 1)]
    return found + [
        ("QMP and HMP", check_monitor, (text, folder)),
        ("XML", check_xml, (folder,)),
        ("messages", check_messages, (messages(text), QEMU)),
    ]


def run_checks(results, manual, pages):
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        make_images(folder)
        for name, function, args in list_checks(manual, pages, folder):
            try:
                function(*args)
                why = ""
            except (Wrong, QMPError, OSError, ET.ParseError) as error:
                why = str(error)
            except Exception:
                why = traceback.format_exc()
            results.add(not why, name, why)
