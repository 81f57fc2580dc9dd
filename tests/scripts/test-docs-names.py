#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/devel/virtio-scsi-*.rst names exists (TAP): functions, files, tests,
make targets and identifiers in ``...``, looked up in our files, in what our
patches add, and in the base (build/base, by make base)."""

import argparse
import collections
import glob
import os
import re
import sys

sys.dont_write_bytecode = True
from tap import Tap

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BASE = os.path.join(TOP, "build", "base")
PAGES = "docs/devel/virtio-scsi-*.rst"
FOLDERS = ("docs", "hw", "include", "patches", "scripts", "tests", "util")
BASE_FOLDERS = ("block", "docs", "hw", "include", "migration", "monitor",
                "qapi", "scsi", "system", "tests", "util")

# Programs whose tests are named by a path: what stands before the names that
# the program itself has, and its files. The longest that fits counts.
TESTS = {
    "virtio-scsi-mq/cmd/": "tests/qtest/virtio-scsi-cmd-test.c",
    "virtio-scsi-mq/data/": "tests/qtest/virtio-scsi-data-test.c",
    "virtio-scsi-mq/disk/": "tests/qtest/virtio-scsi-disk-test.c",
    "virtio-scsi-mq/fail/": "tests/qtest/virtio-scsi-fail-test.c",
    "virtio-scsi-mq/pages/": "tests/qtest/virtio-scsi-pages-test.c",
    "virtio-scsi-mq/refuse/": "tests/qtest/virtio-scsi-refuse-test.c",
    "virtio-scsi-mq/remap/": "tests/qtest/virtio-scsi-remap-test.c",
    "virtio-scsi-mq/": "tests/qtest/virtio-scsi-mq-test.c",
    "virtio-scsi-stress/": "tests/qtest/virtio-scsi-stress.c",
    "virtio-scsi-": "tests/qtest/virtio-scsi-[fhl]*-test.c",
    "scsi-hba/": "tests/qtest/scsi-hba-test.c",
    "/": "tests/unit/test-*.c",
}
TEST = re.compile(r"/?(?:virtio-scsi-(?:mq|stress|liveness)|scsi-\w+|"
                  r"block-shards|iothread-vq-mapping)/[\w/-]*$")
SOURCE = re.compile(r"\.(c|h|inc|py|sh|json|build|patch)$"
                    r"|(^|/)scripts/(\w+/)?[\w-]+$")
FILE = re.compile(r"[\w.*-]+\.(?:c|h|py|sh|rst|rules|patch|json|job|build)$")
NAME = r"[A-Za-z_]\w*"
TARGET = re.compile(r"make ([a-z-]+)(?: [A-Z_]+=\S+)*$")


class Tree:
    """All that may be named."""

    def __init__(self, top, base):
        if not os.path.isdir(base):
            sys.exit("test-docs-names: no %s (make base fetches it)" % base)
        self.top, self.base = top, base
        self.ours = self.read(top, FOLDERS)
        self.theirs = self.read(base, BASE_FOLDERS)
        self.theirs.update(self.read_files(base, os.listdir(base)))
        self.files = {os.path.basename(path)
                      for path in list(self.ours) + list(self.theirs)}
        with open(os.path.join(top, "Makefile")) as file:
            self.makefile = file.read()

    @classmethod
    def read(cls, top, folders):
        """{path: text} of all files below."""
        found = {}
        for folder in folders:
            for where, _, files in os.walk(os.path.join(top, folder)):
                found.update(cls.read_files(top, (
                    os.path.relpath(os.path.join(where, f), top)
                    for f in files)))
        return found

    @staticmethod
    def read_files(top, paths):
        """{path: text}: of a patch what it adds, of the pages nothing, and not
        what stands here to be missed."""
        found = {}
        for path in paths:
            text = ""
            if SOURCE.search(path) and not path.endswith(os.path.basename(
                    __file__)):
                with open(os.path.join(top, path), errors="replace") as file:
                    text = file.read()
            if path.endswith(".patch"):
                text = "\n".join(re.findall(r"^\+(?!\+\+ )(.*)", text, re.M))
            found[path] = text
        return found

    def search(self, name, pattern):
        """Does it occur? Our own files first, as they are few."""
        regex = re.compile(pattern % {"name": name}, re.M)
        return any(name in text and regex.search(text)
                   for texts in (self.ours, self.theirs)
                   for text in texts.values())

    def has_function(self, name):
        """Defined or declared: calls don't stand in the first column."""
        return self.search(
            name, r"^(?:[A-Za-z_][\w\s*(),]*?[\s*])?%(name)s\("
            r"|^\s*#\s*define %(name)s\(|\(\*%(name)s\)\("
            r"|^\s*def %(name)s\(")

    def has_identifier(self, name):
        return self.search(name, r"\b%(name)s\b")

    def has_path(self, path):
        return any(glob.glob(os.path.join(top, path))
                   for top in (self.top, self.base)) or any(
            re.match(re.escape(path.rstrip("/")) + "(/|$)", ours)
            for ours in self.ours)

    def has_file(self, name):
        return name in self.files

    def has_test(self, path):
        """A test, or with a slash at the end at least one of a group."""
        prefix = max((p for p in TESTS if path.startswith(p)), key=len)
        name = path[len(prefix):] if prefix != "/" else path
        for file in glob.glob(os.path.join(self.top, TESTS[prefix])):
            with open(file) as text:
                if re.search('"%s' % re.escape(name)
                             + ("" if path.endswith("/") else '"'),
                             text.read()):
                    return True
        return False

    def has_target(self, name):
        return re.search("^%s:" % re.escape(name), self.makefile, re.M)


def classify(literal):
    """(kind, name) of each name in the literal."""
    literal = " ".join(literal.split())
    target = TARGET.match(literal)
    if target:
        return [("make target", target.group(1))]
    if re.match(NAME + r"\(\)$", literal):
        return [("function", literal[:-2])]
    if TEST.match(literal):
        return [("test", literal)]
    member = re.match(r"(%s)(?:->|\.)(%s)$" % (NAME, NAME), literal)
    if FILE.match(literal):
        return [("file", literal)]
    if member:
        return [("identifier", part) for part in member.groups()]
    if re.match(r"(?:build/|\.\.?/)|.*[\s=<>{},:]", literal):
        return []           # made by a build; or a command, JSON, an option
    if re.match(r"[\w.-]+/[\w./*-]*$", literal):
        return [("path", literal)]
    if re.match(NAME + "$", literal) and re.search(r"_|[a-z][A-Z]|[A-Z]{2}[a-z]",
                                                   literal):
        return [("identifier", literal)]
    return []


def split(text):
    """(text without literal blocks, the blocks), of the same number of lines.
    A block ends where a line is indented no more."""
    prose, blocks, inside = [], [], False
    for line in text.split("\n"):
        inside = inside and (not line.strip() or line[0] in " \t")
        prose.append("" if inside else line)
        blocks.append(line if inside else "")
        inside = inside or line.rstrip().endswith("::")
    return "\n".join(prose), "\n".join(blocks)


def names(text):
    """{kind: {name: line}} of a page. What an example makes up is told by a
    comment, ".. made up: NAME ..."."""
    found = collections.defaultdict(dict)
    made_up = " ".join(re.findall(r"^\.\. made up: (.*)", text, re.M)).split()

    def add(kind, name, where, match):
        line = where.count("\n", 0, match.start()) + 1
        if name not in made_up:
            found[kind].setdefault(name, line)

    prose, blocks = split(text)
    for match in re.finditer(r"``(.+?)``", prose, re.S):
        for kind, name in classify(match.group(1)):
            add(kind, name, prose, match)
    for match in re.finditer(r"(?<![\w/-])%s(?![\w/-])" % NAME, blocks):
        if re.search(r"[a-z]_[a-z]", match.group()):
            add("identifier", match.group(), blocks, match)
    return found


def lookup(tree, kind, name):
    return {"function": tree.has_function, "path": tree.has_path,
            "file": tree.has_file, "test": tree.has_test,
            "make target": tree.has_target,
            "identifier": tree.has_identifier}[kind](name)


def missing(tree, kind, found):
    return ["line %d: no %s '%s'" % (line, kind, name)
            for name, line in sorted(found.items(), key=lambda item: item[1])
            if not lookup(tree, kind, name)]


# Names that don't exist, and how each must be understood
WRONG = {
    "function": "virtio_scsi_frobnicate()", "path": "hw/scsi/scsi-nothing.c",
    "file": "scsi-nowhere.c", "test": "virtio-scsi-mq/tmf/no-such-test",
    "make target": "make check-nothing", "identifier": "VirtIOSCSINothing",
}


def check_wrong(tree):
    """The check can fail: every made-up name is found, and is missed."""
    for kind, literal in WRONG.items():
        found = names("Text ``%s`` and more.\n" % literal)
        if list(found) != [kind] or not missing(tree, kind, found[kind]):
            yield kind, ["'%s' was accepted" % literal]
        else:
            yield kind, []


def results(tree, pages):
    """(name of a test, what is wrong)"""
    for kind, wrong in check_wrong(tree):
        yield "no such %s: noticed" % kind, wrong
    for page in pages:
        with open(page) as file:
            found = names(file.read())
        for kind in WRONG:
            if found[kind]:
                yield ("%s: %d x %s" % (os.path.basename(page),
                                        len(found[kind]), kind),
                       missing(tree, kind, found[kind]))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE",
                        help="other pages than " + PAGES)
    args = parser.parse_args()
    pages = args.pages or sorted(glob.glob(os.path.join(TOP, PAGES)))
    if not pages:
        sys.exit("test-docs-names: no page %s" % PAGES)
    tree = Tree(TOP, BASE)
    tap = Tap()
    for name, wrong in results(tree, pages):
        tap.result(not wrong, name, "\n".join(wrong))
    return tap.end()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit("test-docs-names: %s" % error)
