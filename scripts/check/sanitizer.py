# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the logs of ThreadSanitizer, AddressSanitizer, LeakSanitizer and UBSan.

A log becomes Reports; each has stacks of Frames. The question is always the
same: is it about our files? The frame that did it is the innermost one that
is not a mere tool (memcpy, a libc header, an inline helper of include/qemu).
"""

import collections
import fnmatch
import re

OURS = re.compile(r"(^|/)hw/scsi/|(^|/)include/hw/scsi/"
                  r"|(^|/)hw/virtio/(iothread-vq-\w+|virtio-ram)\.c"
                  r"|(^|/)include/hw/virtio/"
                  r"(virtio-scsi|iothread-vq-\w+|virtio-ram)\.h"
                  r"|(^|/)util/thread-shard\.c|(^|/)include/qemu/thread-shard\.h")
# Code that only does what its caller says: the caller is who reads or writes.
TOOLS = re.compile(r"<null>|/usr/|(^|/)include/qemu/|\(")
QEMU = "(qemu-system-"

Frame = collections.namedtuple("Frame", "function place text")
# what: "access" (one of two that race), "cause" (of the other kinds),
# "context" (where the memory comes from), "creation" (of a thread or mutex;
# that of a coroutine tells only who needed one first: they are used again)
Stack = collections.namedtuple("Stack", "what title frames")

FRAME = re.compile(r"\s*#\d+ (?:0x[0-9a-f]+ +)?(?:in )?(\S.*)$")
ACCESS = re.compile(r"(Previous |Atomic |Read |Write )"
                    r"|.* acquired here", re.I)


class BadRules(Exception):
    """A rules file that can't be used."""


def parse_frame(line):
    """A Frame, or None for a line that is none."""
    match = FRAME.match(line)
    if not match:
        return None
    text = match.group(1)
    words = re.sub(r" \(.*", "", text).split()
    if not words or text.startswith("("):
        return Frame("?", text, line)
    place = words[1] if len(words) > 1 else text[len(words[0]) + 1:]
    return Frame(words[0], place, line)


def ours(frame):
    return bool(OURS.search(frame.place))


def tool(frame):
    return bool(TOOLS.match(frame.place) or TOOLS.search(frame.place))


def doer(stack):
    """The frame that did it; None if the stack was lost."""
    for frame in stack.frames:
        if not tool(frame):
            return frame
    return stack.frames[0] if stack.frames else None


class Report:
    def __init__(self, tool_name, kind, lines, stacks):
        self.tool = tool_name
        self.kind = kind
        self.lines = lines
        self.stacks = stacks
        self.log = None

    def causes(self):
        return [s for s in self.stacks if s.what in ("access", "cause")]

    def doers(self):
        return [doer(stack) for stack in self.causes()]

    def key(self):
        """The same for reports of the same lines of code, however called."""
        return (self.tool, self.kind, self.owner(), tuple(sorted(
            (f.function, f.place) if f else ("", "") for f in self.doers())))

    def title(self):
        names = [f.function if f else "(stack lost)" for f in self.doers()]
        return "%s: %s" % (self.kind, " / ".join(names) or "(no stack)")

    def nameless(self):
        """Without names nothing can be said about whose frames these are."""
        frames = [f for s in self.stacks for f in s.frames]
        return any(QEMU in f.text for f in frames) and not any(
            re.search(r"\.[ch]:\d", f.place) for f in frames)

    def owner(self):
        """ours: our code does it. caller: the base's code, and ours is in one
        of the stacks. unknown: the stack that would tell is lost. base."""
        if any(frame and ours(frame) for frame in self.doers()):
            return "ours"
        if any(ours(f) for s in self.stacks if s.what != "creation"
               for f in s.frames):
            return "caller"
        if not self.causes() or None in self.doers():
            return "unknown"
        return "base"


## ThreadSanitizer

TSAN_START = re.compile(r"(WARNING|FATAL): ThreadSanitizer: (.*?)"
                        r"(?: \(pid=\d+\))?$")


def parse_tsan(text):
    reports, lines = [], None
    for line in text.splitlines():
        start = TSAN_START.match(line)
        if start or re.match(r"==\d+==|ThreadSanitizer: CHECK|.*DEADLYSIGNAL", line):
            lines = [line]
            kind = start.group(2) if start else "fatal: " + line
            reports.append((kind, lines))
        elif re.match(r"={18}$", line):
            lines = None
        elif lines is not None:
            lines.append(line)
    return [Report("tsan", kind, lines, tsan_stacks(lines[1:]))
            for kind, lines in reports]


def tsan_stacks(lines):
    stacks = []
    for line in lines:
        frame = parse_frame(line)
        if frame and stacks:
            stacks[-1].frames.append(frame)
        elif re.match(r"  \S", line):
            what = ("access" if ACCESS.match(line.strip()) else
                    "creation" if re.search(r" created .*at:$", line) and
                    "Location" not in line else "context")
            stacks.append(Stack(what, line.strip(), []))
    # A global has a location, a main thread no creator: titles without stack
    return [s for s in stacks if s.frames or s.what == "access"]


## AddressSanitizer, LeakSanitizer, UBSan

ASAN_START = re.compile(r"==\d+==\s*ERROR: (?:Address|Leak)Sanitizer: (.*)")
LEAK = re.compile(r"(Direct|Indirect) leak of (\d+) byte")
UBSAN = re.compile(r"(\S+):(\d+):(\d+): runtime error: (.*)")
BROKEN = re.compile(r"==\d+==\s*(?:LeakSanitizer has encountered|"
                    r".*Sanitizer.*CHECK failed|HINT: LeakSanitizer)")


def parse_asan(text):
    """An error ends where the next one starts; a leak report has one Report
    per place, so that each can be judged alone."""
    reports = []
    for line in text.splitlines():
        start = ASAN_START.match(line)
        leak = LEAK.match(line)
        undefined = UBSAN.match(line)
        if start and "detected memory leaks" in line:
            reports.append(None)        # the leaks follow
        elif start:
            kind = re.sub(r" on (unknown )?address.*| 0x[0-9a-f]+.*", "",
                          start.group(1))
            reports.append(Report("asan", kind, [line], []))
        elif leak:
            kind = leak.group(1).lower() + " leak"
            reports.append(Report("lsan", kind, [line], []))
        elif undefined:
            reports.append(Report("ubsan", undefined.group(4), [line], []))
            place = "%s:%s:%s" % undefined.groups()[:3]
            reports[-1].stacks.append(Stack("cause", "", [
                Frame("(%s)" % place, place, line)]))
        elif BROKEN.match(line):
            reports.append(Report("asan", "broken: " + line, [line], []))
        elif line.startswith("SUMMARY:"):
            reports.append(None)
        elif reports and reports[-1]:
            reports[-1].lines.append(line)
            asan_line(reports[-1], line)
    return [report for report in reports if report]


def asan_line(report, line):
    frame = parse_frame(line)
    if not frame:
        if line and not line.startswith(" ") and report.stacks and \
           report.tool == "asan":
            report.stacks.append(Stack("context", line, []))
        return
    if not report.stacks:
        report.stacks.append(Stack("cause", "", []))
    if line.lstrip().startswith("#0 ") and report.tool == "ubsan" and \
       len(report.stacks[-1].frames) == 1:
        report.stacks[-1].frames.clear()
    report.stacks[-1].frames.append(frame)


def parse(text, sanitizer):
    return parse_tsan(text) if sanitizer == "tsan" else parse_asan(text)


## Rules: what is the base's own although our code is in the stack

# No reason makes it right to free what another thread uses.
FREES = {"free", "realloc", "munmap", "close"}


class Side:
    """One side of a rule: FUNCTION, or CALLER>FUNCTION; both are patterns."""

    def __init__(self, text):
        self.caller, _, self.function = text.rpartition(">")

    def matches(self, stack):
        frame = doer(stack)
        if not frame or not fnmatch.fnmatchcase(frame.function, self.function):
            return False
        if stack.frames[0].function in FREES:
            return False
        return not self.caller or any(
            fnmatch.fnmatchcase(f.function, self.caller) for f in stack.frames)


class Rule:
    """The base's own. It doesn't apply where the access is ours, unless the
    rule is about guest RAM, which guest and device may write when they want."""

    def __init__(self, kind, first, second, reason):
        self.guest = kind == "guest RAM"
        self.kind = "data race" if self.guest else kind
        self.names = first, second
        self.sides = Side(first), Side(second)
        self.reason = reason

    def matches(self, report, owner):
        stacks = report.causes()
        if report.kind != self.kind or len(stacks) != 2 or \
           owner == "ours" and not self.guest:
            return False
        one, two = self.sides
        return any(one.matches(a) and two.matches(b)
                   for a, b in (stacks, reversed(stacks)))


RULE = re.compile(r"(\w[\w -]*): (\S+) (\S+)$")


def read_rules(path):
    """Lines "KIND: SIDE SIDE", below a comment that says why."""
    rules, reason, in_comment = [], "", False
    with open(path) as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if line.startswith("#"):
                text = line.lstrip("# ")
                reason = reason + " " + text if in_comment else text
            elif not line:
                reason = ""
            else:
                match = RULE.match(line)
                if not match or not reason:
                    raise BadRules("%s:%d: %s" % (
                        path, number, "no reason above it" if match
                        else "not KIND: FUNCTION FUNCTION"))
                rules.append(Rule(*match.groups(), reason=reason))
            in_comment = line.startswith("#")
    return rules
