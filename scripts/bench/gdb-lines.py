# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside gdb, for scripts/bench/profile --lines: steps two IOThreads of a QEMU
under load through a few I/Os each, instruction by instruction, notes which
cache lines they read and write, and names those that both touch and at least
one writes. Those are what travels between cores, for each I/O.

Environment: LINES_OUT (JSON goes there), LINES_IOS (I/Os for each thread).

Stacks and thread-local memory are the thread's own: what goes through %fs,
push and call isn't looked at.
"""

import collections
import json
import os
import re

import gdb

LINE = 64
MARK = "null_co_preadv"         # entered once for each I/O
MAX_STEPS = 250000              # of one thread; an I/O takes 2 to 6 thousand

OPERAND = re.compile(r"(%\ws:)?(-?0x[0-9a-f]+)?"
                     r"\((%\w+)?(?:,(%\w+)(?:,(\d))?)?\)")
RIP = re.compile(r"#\s+0x([0-9a-f]+)")
# what has a memory operand in the last place and doesn't write to it
READERS = re.compile(r"(cmp|test|bt[lqw]?$|nop|prefetch|push|call|jmp|mul|imul|"
                     r"div|idiv|v?u?comis|v?ptest|v?pcmp|fld|ldmxcsr|notrack)")
# what has one operand and writes to it
WRITERS = re.compile(r"(inc|dec|neg|not|set|pop|shl|shr|sar|fst|stmxcsr|xsave|"
                     r"fnst)")
NO_ACCESS = re.compile(r"(lea|nop|prefetch|endbr)")

Access = collections.namedtuple("Access", "disp base index scale write locked")
Seen = collections.namedtuple("Seen", "ios executed reads writes locked")


def split_operands(text):
    """Operands of an AT&T instruction; commas in brackets don't part them."""
    return re.split(r",\s*(?![^(]*\))", text) if text else []


def decode(text):
    """The Access of an instruction, or None."""
    text = text.partition("<")[0].strip()
    words = text.split(None, 1)
    locked = words[0] == "lock"
    while words[0] in ("lock", "rep", "repz", "repnz", "notrack", "bnd", "data16"):
        words = words[1].split(None, 1)
    name = words[0]
    target = RIP.search(words[1]) if len(words) > 1 else None
    operands = split_operands(words[1].partition("#")[0].strip()
                              if len(words) > 1 else "")
    if NO_ACCESS.match(name) or name.startswith(("call", "jmp", "push")):
        return None
    for place, operand in enumerate(operands):
        match = OPERAND.search(operand)
        if not match or match.group(1) == "%fs:":
            continue
        last = place == len(operands) - 1
        write = last and (bool(WRITERS.match(name)) if len(operands) == 1
                          else not READERS.match(name))
        write = write or name.startswith("xchg")
        locked = locked or name.startswith("xchg")
        _, disp, base, index, scale = match.groups()
        if base == "%rip":
            if not target:
                return None
            return Access(int(target.group(1), 16), None, None, 1, write, locked)
        return Access(int(disp, 16) if disp else 0, base and base[1:],
                      index and index[1:], int(scale or 1), write, locked)
    return None


def vdso(pid):
    """Addresses of the code that the kernel lends to processes."""
    with open("/proc/%d/maps" % pid, encoding="utf-8") as file:
        for entry in file:
            if entry.rstrip().endswith("[vdso]"):
                return range(*(int(n, 16) for n in entry.split()[0].split("-")))
    return range(0)


class Stepper:
    """Steps threads; knows decoded instructions by their address."""

    def __init__(self):
        self.decoded = {}
        self.syscalls = set()
        self.vdso = vdso(gdb.selected_inferior().pid)
        self.arch = gdb.selected_inferior().threads()[0]
        self.arch.switch()
        self.arch = gdb.newest_frame().architecture()
        self.mark = int(gdb.parse_and_eval("(unsigned long) &%s" % MARK))

    def access_at(self, pc):
        if pc not in self.decoded:
            text = self.arch.disassemble(pc)[0]["asm"]
            self.decoded[pc] = decode(text)
            if text.startswith("syscall"):
                self.syscalls.add(pc)
        return self.decoded[pc]

    def stepi(self, pc):
        """The others stand still; but what one waits for, they must do. The
        kernel's clock is run at once: it tries again after each tick."""
        if pc in self.vdso:
            stack = int(gdb.newest_frame().read_register("rsp"))
            memory = gdb.selected_inferior().read_memory(stack, 8)
            self.run_to(int.from_bytes(memory.tobytes(), "little"))
            return
        if pc in self.syscalls:
            gdb.execute("set scheduler-locking off")
        gdb.execute("stepi", to_string=True)
        if pc in self.syscalls:
            gdb.execute("set scheduler-locking on")

    def run_to_mark(self, thread):
        gdb.execute("set scheduler-locking off")
        self.run_to(self.mark)
        gdb.execute("set scheduler-locking on")
        thread.switch()

    def run_to(self, pc):
        gdb.execute("tbreak *%d thread %d" % (pc, gdb.selected_thread().num),
                    to_string=True)
        gdb.execute("continue", to_string=True)

    def address(self, frame, access):
        address = access.disp
        if access.base:
            address += int(frame.read_register(access.base))
        if access.index:
            address += int(frame.read_register(access.index)) * access.scale
        return address & (1 << 64) - 1

    def step(self, thread, ios):
        """Seen of the whole I/Os between one mark and another."""
        thread.switch()
        self.run_to_mark(thread)
        executed, *counts = [collections.Counter() for _ in range(4)]
        done, last = -1, None
        for _ in range(MAX_STEPS):
            frame = gdb.newest_frame()
            pc = frame.pc()
            if pc == self.mark:
                done += 1
                if done == ios:
                    return Seen(done, executed, *counts)
            access = self.access_at(pc)
            executed[pc] += pc != last      # each turn of a rep is a step
            last = pc
            if access:
                line = self.address(frame, access) // LINE
                counts[access.write][line, pc] += 1
                if access.locked:
                    counts[2][line, pc] += 1
            self.stepi(pc)
        raise gdb.GdbError("no %d I/Os in %d instructions" % (ios, MAX_STEPS))


def lines_of(counter):
    return {line for line, _ in counter}


def place(pc):
    """function file:line of an address."""
    where = gdb.find_pc_line(pc)
    block = gdb.block_for_pc(pc)
    while block and not block.function:
        block = block.superblock
    if not block:
        return gdb.execute("info symbol %d" % pc, to_string=True).split()[0]
    file = os.path.basename(where.symtab.filename) if where.symtab else "?"
    return "%s %s:%d" % (block.function, file, where.line)


def shared(seen):
    """What threads do to lines that one writes and another touches."""
    written = [lines_of(s.writes) for s in seen]
    touched = [lines_of(s.reads) | w for s, w in zip(seen, written)]
    common = set()
    for i, lines in enumerate(written):
        for j, others in enumerate(touched):
            if i != j:
                common |= lines & others
    ios = sum(s.ios for s in seen)
    found = []
    for line in common:
        entry = {"reads": 0, "writes": 0, "locked": 0}
        who = collections.Counter()
        for s in seen:
            for key in ("reads", "writes", "locked"):
                for (at, pc), count in getattr(s, key).items():
                    if at == line:
                        entry[key] += count / ios
                        if key == "writes":
                            who[place(pc)] += count
        entry["writers"] = [name for name, _ in who.most_common()]
        found.append(entry)
    return sorted(found, key=lambda e: -e["writes"])


def main():
    threads = sorted((t for t in gdb.selected_inferior().threads()
                      if (t.name or "").startswith("IO iothread")),
                     key=lambda t: t.ptid[1])[:2]
    if len(threads) < 2:
        raise gdb.GdbError("fewer than two IOThreads")
    for command in ("pagination off", "disassembly-flavor att",
                    "suppress-cli-notifications on"):
        gdb.execute("set " + command)
    gdb.execute("handle all nostop noprint pass", to_string=True)
    stepper = Stepper()
    seen = [stepper.step(t, int(os.environ["LINES_IOS"])) for t in threads]
    ios = sum(s.ios for s in seen)
    result = {"ios": ios,
              "instructions": sum(sum(s.executed.values())
                                  for s in seen) / ios,
              "locked": sum(sum(s.locked.values()) for s in seen) / ios,
              "lines": shared(seen)}
    with open(os.environ["LINES_OUT"], "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
