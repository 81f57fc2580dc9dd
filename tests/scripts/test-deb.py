#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What `make deb` accepts, makes and refuses, on a toy source package (TAP).

Needs dpkg-source, no network, no root, no QEMU.
"""

import os
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
sys.path.insert(0, TOP + "/scripts")
from common import load
from tap import Tap

DEB = TOP + "/scripts/series/deb"
OLD = "10.0.13+ds-0+deb13u1"
NEW = OLD + "+vsmq20261103"
deb = load("deb")

CONTROL = """\
Source: qemu
Maintainer: Them <them@invalid>
Standards-Version: 4.7.2

Package: qemu-toy
Architecture: any
Description: a toy
"""
MAIL = """\
From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001
From: A Name <name@invalid>
Date: %s
Subject: [PATCH] %s

---
 a | 2 +-

"""
CHANGE = """\
diff --git a/hw/a.c b/hw/a.c
--- a/hw/a.c
+++ b/hw/a.c
@@ -1,4 +1,4 @@
 1
-2
+two
 3
 4
"""
CREATE = """\
diff --git a/hw/new.c b/hw/new.c
new file mode 100644
--- /dev/null
+++ b/hw/new.c
@@ -0,0 +1 @@
+new
"""


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


class Toy:
    """A build/ with a source package of two files, ours and two mails."""

    def __init__(self, top):
        self.build = top + "/build"
        self.make_package(top + "/package")
        shutil.copytree(top + "/package/qemu-10.0.13+ds", self.build + "/base")
        write(self.build + "/base.stamp", "Debian qemu_%s.dsc\n" % OLD)
        shutil.copytree(self.build + "/base", self.build + "/src")
        write(self.build + "/src/hw/a.c", "1\ntwo\n3\n4\n5\n")
        write(self.build + "/src/hw/new.c", "new\n")
        write(self.build + "/src.manifest", "hw/a.c\nhw/new.c\n")
        self.mail("0000-cover-letter", "", "cover")
        self.mail("0001-change", CHANGE, "change")
        self.mail("0002-create", CREATE, "create",
                  "Mon, 2 Nov 2026 23:30:00 -0200")

    def make_package(self, where):
        tree = where + "/qemu-10.0.13+ds"
        write(tree + "/hw/a.c", "1\n2\n3\n4\n5\n")
        write(tree + "/hw/b.c", "b\n")
        subprocess.run(["tar", "-C", where, "-cJf",
                        where + "/qemu_10.0.13+ds.orig.tar.xz",
                        os.path.basename(tree)], check=True)
        write(tree + "/debian/control", CONTROL)
        write(tree + "/debian/source/format", "3.0 (quilt)\n")
        write(tree + "/debian/patches/series", "")
        write(tree + "/debian/changelog",
              "qemu (1:%s) trixie; urgency=medium\n\n  * toy\n\n"
              " -- Them <them@invalid>  Sun, 01 Nov 2026 00:00:00 +0000\n" % OLD)
        subprocess.run(["dpkg-source", "-b", tree], cwd=where, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.makedirs(self.build + "/dl")
        for name in os.listdir(where):
            if name.startswith("qemu_"):
                os.rename(where + "/" + name, self.build + "/dl/" + name)

    def mail(self, name, change, subject,
             date="Sun, 1 Nov 2026 12:00:00 +0000"):
        write("%s/series/%s.patch" % (self.build, name),
              MAIL % (date, subject) + change + "-- \n2.50\n")

    def deb(self):
        """(exit status, what it says)"""
        done = subprocess.run([DEB, "--build", self.build], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        left = [n for n in os.listdir(self.build + "/deb")
                if n.startswith(".")] if done.returncode and \
            os.path.isdir(self.build + "/deb") else []
        expect(not left, "left behind: %s" % left)
        return done.returncode, done.stdout


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def refused(toy, text):
    status, said = toy.deb()
    expect(status == 1 and text in said and "Traceback" not in said,
           "exit status %d, not refused with '%s': %s" % (status, text, said))


def test_package(toy):
    """the package has the mails, an entry, a version, and unpacks"""
    status, said = toy.deb()
    expect(status == 0, said)
    dsc = read("%s/deb/qemu_%s.dsc" % (toy.build, NEW))
    expect("Version: 1:%s\n" % NEW in dsc, dsc)
    expect("XSBC-Original-Maintainer: Them" not in dsc
           and "Maintainer: %s\n" % deb.maintainer() in dsc, dsc)
    tree = toy.build + "/tree"
    subprocess.run(["dpkg-source", "--no-copy", "-x", "%s/deb/qemu_%s.dsc"
                    % (toy.build, NEW), tree], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    expect(read(tree + "/debian/patches/series").split() ==
           ["virtio-scsi-mq/0001-change.patch",
            "virtio-scsi-mq/0002-create.patch"], "series")
    entry = read(tree + "/debian/changelog")
    expect(entry.startswith("qemu (1:%s) trixie; urgency=medium\n" % NEW)
           and "(1:%s) trixie" % OLD in entry
           and "the 2 patches" in entry, entry)
    expect("XSBC-Original-Maintainer: Them <them@invalid>\n" in
           read(tree + "/debian/control"), "control")
    expect(read(tree + "/hw/a.c") == "1\ntwo\n3\n4\n5\n", "hw/a.c")


def test_again(toy):
    """the same series makes the same package, and replaces another one"""
    expect(toy.deb()[0] == 0, "first time")
    first = read("%s/deb/qemu_%s.dsc" % (toy.build, NEW))
    os.rename(toy.build + "/deb/qemu_%s.dsc" % NEW,
              toy.build + "/deb/qemu_%s.dsc" % OLD)
    expect(toy.deb()[0] == 0, "second time")
    expect(read("%s/deb/qemu_%s.dsc" % (toy.build, NEW)) == first, "another")
    expect(sum(n.endswith(".dsc") for n in os.listdir(toy.build + "/deb")) == 1,
           "an old .dsc stays")


def test_no_apply(toy):
    """a patch that doesn't apply"""
    toy.mail("0001-change", CHANGE.replace("-2", "-7"), "change")
    refused(toy, "0001-change.patch")


def test_fuzz(toy):
    """a patch that only applies with fuzz"""
    toy.mail("0001-change", CHANGE.replace(" 4\n", " four\n"), "change")
    refused(toy, "0001-change.patch")


def test_content(toy):
    """another content than build/src has"""
    toy.mail("0001-change", CHANGE.replace("two", "zwei"), "change")
    refused(toy, "hw/a.c")


def test_mode(toy):
    """another mode than build/src has"""
    os.chmod(toy.build + "/src/hw/new.c", 0o755)
    refused(toy, "hw/new.c")


def test_base(toy):
    """a file of the base's that the package has differently"""
    write(toy.build + "/src/hw/b.c", "c\n")
    refused(toy, "hw/b.c")


def test_forgotten(toy):
    """a file of ours that no mail brings"""
    write(toy.build + "/src/hw/c.c", "c\n")
    refused(toy, "hw/c.c")


def test_too_much(toy):
    """a file that a mail makes and scripts/build/overlay doesn't"""
    os.unlink(toy.build + "/src/hw/new.c")
    refused(toy, "hw/new.c")


def test_mails(toy):
    """mails that are missing, or none of git format-patch"""
    write(toy.build + "/series/0002-create.patch", CREATE)
    refused(toy, "0002-create.patch has no line 'Date:'")
    shutil.rmtree(toy.build + "/series")
    refused(toy, "make series")


def test_other_base(toy):
    """a base that is not Debian's"""
    write(toy.build + "/base.stamp", "copy of /some/tree, 1-2\n")
    refused(toy, "build/base is copy of /some/tree, 1-2: run")
    os.unlink(toy.build + "/base.stamp")
    refused(toy, "make base")


def test_damaged(toy):
    """a download that isn't what the .dsc says"""
    with open(toy.build + "/dl/qemu_10.0.13+ds.orig.tar.xz", "ab") as file:
        file.write(b"x")
    refused(toy, "dpkg-source")


def test_version(toy):
    """the version sorts between Debian's and Debian's next"""
    package = deb.Package(toy.build)
    for one, two in ((package.old, package.version),
                     (package.version, "1:10.0.13+ds-0+deb13u2")):
        subprocess.run(["dpkg", "--compare-versions", one, "lt", two],
                       check=True)


def main():
    tests = [f for n, f in globals().items() if n.startswith("test_")]
    tap = Tap()
    for test in tests:
        with tempfile.TemporaryDirectory(prefix="test-deb-") as top:
            try:
                test(Toy(top))
                tap.result(True, test.__doc__)
            except (AssertionError, deb.Problem, OSError,
                    subprocess.SubprocessError) as error:
                tap.result(False, test.__doc__, error)
    sys.exit(tap.end())


if __name__ == "__main__":
    main()
