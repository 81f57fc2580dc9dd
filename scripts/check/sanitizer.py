# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the logs of ThreadSanitizer, AddressSanitizer, LeakSanitizer and UBSan.

A log becomes Reports. The question is always the same: is it about our files?
The frame that did it is the innermost one that is not a mere tool
(memcpy, a libc header, an inline helper of include/qemu).
"""

import collections
import fnmatch
import re

from common import Problem

OURS = re.compile(r"(^|/)hw/scsi/|(^|/)include/hw/scsi/"
                  r"|(^|/)hw/virtio/(iothread-vq-\w+|virtio-ram)\.c"
                  r"|(^|/)include/hw/virtio/"
                  r"(virtio-scsi|iothread-vq-\w+|virtio-ram)\.h"
                  r"|(^|/)util/thread-shard\.c"
                  r"|(^|/)include/qemu/thread-shard\.h")
# Code that only does what its caller says: the caller is who reads or writes.
TOOLS = re.compile(r"^<null>|^/usr/|(^|/)include/qemu/|\(")

Frame = collections.namedtuple("Frame", "function place")
# what: "access" (one of two that race), "context" (where the memory comes
# from), "creation" (of a thread or mutex; that of a coroutine tells only who
# needed one first: they are used again)
Stack = collections.namedtuple("Stack", "what frames")

START = re.compile(
    r"WARNING: ThreadSanitizer: (.*?)(?: \(pid=\d+\))?$"
    r"|==\d+==\s*ERROR: (?:Address|Leak)Sanitizer: (.*)"
    r"|((?:Direct|Indirect) leak) of \d+ byte|\S+:\d+:\d+: runtime error: (.*)"
    r"|(?P<fatal>FATAL: \w+Sanitizer: .*|.*Sanitizer.*CHECK failed.*|==\d+==\s*"
    r"(?:ERROR: ThreadSanitizer|HINT: LeakSanitizer|LeakSanitizer has enc).*"
    r"|.*DEADLYSIGNAL.*)")
END = re.compile(r"={18}$|SUMMARY:")
FRAME = re.compile(r"\s*#\d+ (?:0x[0-9a-f]+ +)?(?:in )?(\S+)(?: (.*?))?"
                   r"(?: \(.*)?$")
ACCESS = re.compile(r"  (Previous |Atomic |Read |Write )|  .* acquired here",
                    re.I)


def ours(frame):
    return bool(OURS.search(frame.place))


def doer(stack):
    """The frame that did it; None if the stack was lost."""
    return next((f for f in stack.frames if not TOOLS.search(f.place)),
                stack.frames[0] if stack.frames else None)


class Report:
    """`kind`: what the sanitizer calls it. `fatal`: it went wrong itself."""

    def __init__(self, kind, lines, fatal, tsan):
        self.kind = kind
        self.lines = lines
        self.fatal = fatal
        self.log = None
        # TSan has a title above each stack; of the others the first one counts
        self.stacks = [] if tsan else [Stack("access", [])]
        for line in lines[1:]:
            frame = FRAME.match(line)
            if frame and self.stacks:
                self.stacks[-1].frames.append(Frame(frame[1], frame[2] or "("))
            elif tsan and re.match(r"  \S", line):
                self.stacks.append(Stack(
                    "access" if ACCESS.match(line) else
                    "creation" if re.search(r" created .*at:$", line)
                    and "Location" not in line else "context", []))
        if self.undefined() and not self.stacks[0].frames:
            place = lines[0].partition(": runtime")[0]
            self.stacks[0].frames.append(Frame(place, place))

    def undefined(self):
        """Is it about undefined behaviour, by UBSan?"""
        return ": runtime error: " in self.lines[0]

    def accesses(self):
        return [s for s in self.stacks if s.what == "access"]

    def doers(self):
        return [doer(stack) for stack in self.accesses()]

    def nameless(self):
        """Without names nothing can be said about whose frames these are."""
        text = "\n".join(self.lines)
        return "(qemu-system-" in text and not re.search(r"\.[ch]:\d", text)

    def owner(self):
        """ours: our code does it. caller: the base's code, and ours is in one
        of the stacks. unknown: the stack that would tell is lost. base."""
        if any(frame and ours(frame) for frame in self.doers()):
            return "ours"
        if any(ours(f) for s in self.stacks if s.what != "creation"
               for f in s.frames):
            return "caller"
        if not self.doers() or None in self.doers():
            return "unknown"
        return "base"

    def title(self):
        return f"{self.kind}: " + " / ".join(
            f.function if f else "(stack lost)" for f in self.doers())

    def key(self):
        """The same for reports of the same lines of code, however called."""
        return self.kind, self.owner(), tuple(sorted(
            f or Frame("", "") for f in self.doers()))


def parse(text, tsan):
    """The Reports of a log. One ends where the next one starts; a leak report
    has one for each place, so that each can be judged alone."""
    found, lines = [], None
    for line in text.splitlines():
        start = START.match(line)
        if start and "detected memory leaks" not in line:
            kind = re.sub(r" on (unknown )?address.*| 0x[0-9a-f]+.*", "",
                          next(filter(None, start.groups())))
            lines = [line]
            found.append((kind, lines, bool(start["fatal"])))
        elif END.match(line):
            lines = None
        elif lines:
            lines.append(line)
    return [Report(*words, tsan) for words in found]


# Rules: what is the base's own although our code is in the stack

# No reason makes it right to free what another thread uses.
FREES = {"free", "realloc", "munmap", "close"}
RULE = re.compile(r"(\w[\w -]*): (\S+) (\S+)$")


def side_matches(text, stack):
    """FUNCTION, or CALLER>FUNCTION; both are patterns."""
    caller, _, function = text.rpartition(">")
    frame = doer(stack)
    return bool(frame and stack.frames[0].function not in FREES
                and fnmatch.fnmatchcase(frame.function, function)
                and (not caller or any(fnmatch.fnmatchcase(f.function, caller)
                                       for f in stack.frames)))


class Rule(collections.namedtuple("Rule", "kind one two")):
    """The base's own. It doesn't apply where the access is ours, unless the
    rule is about guest RAM, which guest and device may write when they want."""

    def matches(self, report):
        stacks, guest = report.accesses(), self.kind == "guest RAM"
        if len(stacks) != 2 or report.owner() == "ours" and not guest or \
           report.kind != ("data race" if guest else self.kind):
            return False
        return any(side_matches(self.one, a) and side_matches(self.two, b)
                   for a, b in (stacks, reversed(stacks)))


def read_rules(path):
    """Lines "KIND: SIDE SIDE", below a comment that says why."""
    rules, reason = [], False
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(map(str.strip, file), 1):
            if not line or line.startswith("#"):
                reason = bool(line)
                continue
            match = RULE.match(line)
            if not match or not reason:
                raise Problem(f"{path}:{number}: " + (
                    "no reason above it" if match
                    else "not KIND: FUNCTION FUNCTION"))
            rules.append(Rule(*match.groups()))
    return rules
