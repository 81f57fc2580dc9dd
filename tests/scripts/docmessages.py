# SPDX-License-Identifier: GPL-2.0-or-later
"""Are the messages in a page those of QEMU?

A message may be one of our C files' (its words are those of a format string),
or one that a wrong command of PROVOKE got. Each of our files' must be in the
page, and each of PROVOKE's commands must get one that is.
"""

import glob
import json
import os
import re
import subprocess

TOP = os.path.abspath(f"{__file__}/../../..")
SOURCES = ["hw/virtio/iothread-vq-mapping.c", "hw/scsi/virtio-scsi*.c",
           "hw/scsi/scsi-bus.c", "hw/scsi/scsi-vmstate.c"]
# Patches whose messages are about the mapping, the view of its queues, the log
PATCHES = ["patches/*vq-mapping*.patch", "patches/*queues*.patch",
           "patches/*log-limit*.patch"]
# Got by the page's own QMP exchanges, which docpage.py tries
SHOWN = {"object 'iothread2' is in use, can not be deleted"}


class Wrong(Exception):
    """A check failed; says why."""


def expect(condition, text):
    if not condition:
        raise Wrong(text)


# ------------------------------------------------------- what our files can say

CALL = re.compile(r"\b(?:error_setg|error_setg_errno|error_report|warn_report|"
                  r"virtio_error)\s*\(")
TEXT = re.compile(r'(?:PROP\s*)?"(?:[^"\\]|\\.)*"'
                  r'(?:\s*(?:"(?:[^"\\]|\\.)*"|PRI\w+))*')


def formats(source):
    """Format strings of the errors and warnings in C code."""
    prop = re.search(r'#define PROP "(.*)"', source)
    for call in CALL.finditer(source):
        literal = TEXT.search(source, call.end())
        text = literal[0].replace("PROP", f'"{prop[1]}"') if prop \
            else literal[0]
        text = re.sub(r"PRI\w+", '"u"', text)
        yield "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', text)) \
            .replace("\\n", "").replace('\\"', '"')


def our_formats():
    found = set()
    for pattern in SOURCES:
        for path in glob.glob(f"{TOP}/{pattern}"):
            with open(path, encoding="utf-8") as f:
                found |= set(formats(f.read()))
    for pattern in PATCHES:
        for path in glob.glob(f"{TOP}/{pattern}"):
            with open(path, encoding="utf-8") as f:
                added = re.findall(r"^\+(?!\+\+)(.*)", f.read(), re.M)
            found |= set(formats("\n".join(added)))
    return found


def as_pattern(text):
    parts = re.split(r"%[-+ #0-9.*]*(?:hh|h|ll|l|z|j)?[a-zA-Z]", text)
    return re.compile(".+?".join(map(re.escape, parts)), re.S)


# ------------------------------------------------------------ wrong commands

ONE = ["-object", "iothread,id=iothread0"]
TWO = ONE + ["-object", "iothread,id=iothread1"]


def mapped(*entries, driver="virtio-scsi-pci", queues=4, **more):
    """Arguments for a controller with this mapping, and five IOThreads."""
    device = {"driver": driver, "num_queues": queues,
              "iothread-vq-mapping": list(entries), **more}
    return TWO + ["-object", "iothread,id=iothread2", "-object",
                  "iothread,id=iothread3", "-object", "iothread,id=iothread4",
                  "-device", json.dumps(device)]


def entry(number, *vqs):
    named = {"iothread": f"iothread{number}"}
    return {**named, "vqs": list(vqs)} if vqs else named


PROVOKE = [
    mapped(entry(9)),
    ONE + ["-device", "virtio-scsi-pci,iothread=iothread9"],
    mapped(entry(0), entry(0)),
    mapped(entry(0, 0, 1, 2, 3, 4)),
    mapped(entry(0, 0, 1), entry(1, 0)),
    mapped({"iothread": "iothread0", "vqs": []}),
    mapped(entry(0, 0, 1), entry(1, 3)),
    mapped(entry(0, 0), entry(1)),
    mapped(),
    mapped(*map(entry, range(5))),
    mapped(entry(0), iothread="iothread0"),
    mapped(entry(0), ioeventfd=False),
    mapped(entry(0), queues=0),
    ONE + ["-device", "virtio-scsi-pci,virtqueue_size=2048"],
    ONE + ["-device", "virtio-scsi-pci,iothread-vq-mapping=iothread0"],
    mapped("iothread0"),
    mapped({"iothread": "iothread0", "vqs": 0}),
    mapped({"vqs": [0]}),
    mapped({"iothread": "iothread0", "vq": 0}),
    mapped(entry(0), driver="vhost-scsi-pci"),
    mapped(entry(0), id="scsi0") + ["-device", "scsi-hd,bus=scsi0.0"],
]


def complaint(qemu, args):
    """What QEMU says about a command."""
    done = subprocess.run(
        [qemu, "-S", "-accel", "tcg", "-nodefaults", "-display", "none",
         "-qmp", "stdio"] + args, text=True, capture_output=True, timeout=60,
        input='{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n',
        check=False)
    return done.stderr.strip()


def check_messages(page, qemu):
    known = {text: as_pattern(text) for text in our_formats()}
    expect(len(known) > 20, f"only {len(known)} messages found in our files")
    confirmed = set(SHOWN)
    wrong = []
    for args in PROVOKE:
        said = complaint(qemu, args)
        got = [m for m in page if said.endswith(": " + m)]
        confirmed.update(got)
        if not got:
            wrong.append(f"not in the page: {said or 'no complaint'}: "
                         f"{args[-1]}")
    for message in page:
        if message not in confirmed and \
                not any(p.fullmatch(message) for p in known.values()):
            wrong.append(f"QEMU doesn't say: {message}")
    for text, pattern in sorted(known.items()):
        if not any(map(pattern.fullmatch, page)):
            wrong.append(f"our files say, the page doesn't: {text}")
    expect(not wrong, "\n".join(wrong))
