#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of scripts/series/series (TAP): what it says about a wrong
patches/SERIES, and the mails that it writes from ours."""

import glob
import os
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "scripts"))
from common import load
from tap import Tap

series = load("series")

HEAD = "== cover\n\n"
WRONG = (
    ("text first", "hello\n== cover\n== a\n", "text before the first"),
    ("no mail", "== cover\n", "no mails in it"),
    ("a file that isn't ours", HEAD + "== a\ntake: hw/scsi/esp.c\n",
     "patches/SERIES:4: hw/scsi/esp.c is no file of ours"),
    ("a file twice", HEAD + "== a\ntake: hw/scsi/scsi-cdb.c\n"
     "== b\ntake: hw/scsi/scsi-cdb.c\n",
     "patches/SERIES:6: hw/scsi/scsi-cdb.c is in line 4, too"),
    ("a patch that isn't there", HEAD + "== a\npatch: 00-none\n",
     "patches/SERIES:4: there is no "),
    ("a mail that is no patch", HEAD + "== 00-none\n", "there is no "),
    ("a pattern without a file", HEAD + "== a\nleave-out: tests/none/*\n",
     "matches nothing"),
    ("a series without needs", HEAD + "=== A fixes\n== cover\n== a\n",
     "patches/SERIES:3: not '=== LETTER NAME: needs LETTER...'"),
    ("a series that needs a later one", HEAD + "=== A fixes: needs B\n",
     "patches/SERIES:3: no series B before this one"),
    ("two series of one letter", HEAD + "=== A fixes: needs nothing\n"
     "== cover\n== a\n=== A more: needs nothing\n",
     "patches/SERIES:6: there is a series A already"),
    ("a series without mails", HEAD + "== x\n=== A fixes: needs nothing\n"
     "== cover\n", "no mails in series A"),
)

PARTS = HEAD + """=== A one: needs nothing
== cover of A
body
== a
test: tests/unit/test-x /x/y
=== B two: needs A
== cover of B
== b
== c
=== C three: needs B
== cover of C
== d
"""


def test_parts(tap):
    """Which mail is in which series, and what that needs."""
    parsed = series.Series(PARTS, [])
    mails, parts = parsed.mails, parsed.parts
    tap.equal("the mails of all series, in order",
              [mail.subject for mail in mails], ["cover", "a", "b", "c", "d"])
    tap.equal("series, cover letters, mails and needs",
              [(p.folder(), p.cover.subject, [m.subject for m in p.mails],
                [n.letter for n in p.needs]) for p in parts],
              [("A-one", "cover of A", ["a"], []),
               ("B-two", "cover of B", ["b", "c"], ["A"]),
               ("C-three", "cover of C", ["d"], ["A", "B"])])
    tap.equal("what fails without a mail", mails[1].tests,
              [["tests/unit/test-x", "/x/y"]])


def test_wrong_lists(tap):
    ours = series.overlay.our_files()
    for name, text, wanted in WRONG:
        try:
            series.Series(text, ours)
            got = "no error"
        except series.Problem as problem:
            got = str(problem)
        tap.result(wanted in got, "refused: " + name, got)

    left = series.Series(
        HEAD + "== a\ntake: hw/scsi/scsi-cdb.c\n", ours).missing()
    tap.result("hw/scsi/scsi-bus.c" in left and "01-iothread-users" in left
               and "hw/scsi/scsi-cdb.c" not in left,
               "files and patches without a place are found", left)


def test_maintainers(tap):
    base = "X\nM: x\n\nSCSI\nM: a\nF: b\n\nY\nM: y\n"
    text = series.maintainers(base, {"hw/scsi/scsi-cdb.c"})
    added = text.replace("X\nM: x\n\nSCSI\nM: a\nF: b\n\n", "")
    tap.result("F: hw/scsi/scsi-cdb.c\n" in added
               and "F: hw/scsi/scsi-bus.c" not in added
               and "IOThread Virtqueue Mapping" not in added
               and added.endswith("\n\nY\nM: y\n"),
               "MAINTAINERS gets the entries of the files that are there", text)


def test_built(tap):
    """What a mail brings it also builds: meson.build names it with that mail,
    if it isn't a file that QEMU has."""
    later = []
    for mail in series.load().mails:
        added = "".join(line for name in mail.all("patch") for line in
                        series.read(series.patch_path(name)).splitlines(True)
                        if line.startswith("+"))
        later += [name for name in mail.all("take") if name.endswith(".c")
                  and not os.path.exists(f"{TOP}/build/base/{name}")
                  and os.path.basename(name)[:-2] not in added]
    tap.equal("no mail brings code that is built only later", later, [])


def test_mails(tap):
    """Ours: all of it, in the form that git am takes."""
    with tempfile.TemporaryDirectory() as where:
        out = os.path.join(where, "mails")
        run = subprocess.run([os.path.join(TOP, "scripts", "series", "series"),
                              "--output", out], universal_newlines=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        mails = sorted(glob.glob(out + "/*.patch"))
        if not tap.result(run.returncode == 0 and len(mails) > 2,
                          "scripts/series/series writes the mails", run.stdout):
            return
        cover = series.read(mails[0])
        tap.result("*** " not in cover and "@BENCH@" not in cover
                   and "@BASE@" not in cover and "| case" in cover,
                   "the cover letter is filled in", cover[:2000])
        bad = [m for m in mails[1:]
               if "\nSigned-off-by: " not in series.read(m)
               or "\nSubject: [PATCH " not in series.read(m)]
        tap.equal("each mail has a subject and is signed off", bad, [])
        for part in series.load().parts:
            alone = sorted(glob.glob("%s/%s/0*.patch" % (out, part.folder())))
            tap.result(len(alone) == len(part.mails) + 1
                       and "*** " not in series.read(alone[0])
                       and "@BASE@" not in series.read(alone[0]),
                       "series %s stands alone" % part.letter, alone)
        bad = [m for m in mails[1:] if "\n\n\n---\n" in series.read(m)
               or not series.read(m).partition("\n\n")[2].strip()]
        tap.equal("each mail has a message", bad, [])


def main():
    if sys.argv[1:] == ["--help"]:
        print("usage: %s    (TAP on standard output)" % sys.argv[0])
        return 0
    tap = Tap()
    test_wrong_lists(tap)
    test_parts(tap)
    test_maintainers(tap)
    test_built(tap)
    test_mails(tap)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
