# SPDX-License-Identifier: GPL-2.0-or-later
"""Change the mapping of a guest that Watch watches, and compare before and after.

Two queues are hot, and one IOThread has both. Each phase of the guest's load
has another way to get them apart: none, by hand (qom-set of another
iothread-vq-mapping), and by themselves (iothread-vq-balance).
"""

import collections
import json

from watch import RunError, Watch, difference, iothread_times, say

HOT = (0, 1)                    # the queues of the guest's two jobs
SETTLE = 4                      # seconds in which queues must have moved
BUSY = 0.6                      # an IOThread with less need not lose a queue
DEVICE = "/machine/peripheral/scsi0/virtio-backend"

Phase = collections.namedtuple("Phase", "title start samples")


def mapping_of(queues):
    return [{"iothread": f"iothread{i}", "vqs": vqs}
            for i, vqs in enumerate(queues) if vqs]


def served_by(queues):
    """IOThreads of the hot queues"""
    return [queues[n].get("iothread") for n in HOT]


class MoveWatch(Watch):
    """A Watch that goes from phase to phase.

    @queues: of each IOThread, at first
    @span: seconds of a phase
    """

    def __init__(self, lines, setup, qmp, queues, span):
        super().__init__(lines, setup, qmp)
        self.queues, self.span = queues, span
        self.phases = []
        self.todo = [("as mapped", self.wait),
                     ("by hand", self.by_hand),
                     ("by themselves", self.by_themselves)]
        self.refusal = None

    def set(self, name, value):
        """Set one of the controller's properties; what QEMU says if it won't."""
        reply = self.view.ask("qom-set", path=DEVICE, property=name,
                              value=value)
        if "error" in reply:
            self.refusal = reply["error"]["desc"]
        return self.refusal

    def wait(self):
        pass

    def by_hand(self):
        first, second, *rest = self.queues
        apart = [first[:1], first[1:] + second, *rest]
        say("  qom-set iothread-vq-mapping: " + json.dumps(mapping_of(apart)))
        self.set("iothread-vq-mapping", mapping_of(apart))

    def by_themselves(self):
        say("  qom-set iothread-vq-mapping: as it was; iothread-vq-balance: "
            "true")
        if not self.set("iothread-vq-mapping", mapping_of(self.queues)):
            self.set("iothread-vq-balance", True)

    def settled(self, phase, now):
        """Queues that move by themselves need some time for it."""
        return phase.title != "by themselves" or \
            now.time - phase.start > SETTLE or \
            len(set(served_by(now.queues))) > 1

    def tick(self, reads, is_end):
        known = len(self.samples)
        super().tick(reads, is_end)
        if len(self.samples) == known or self.refusal:
            return
        now = self.samples[-1]
        if not now.queues:
            self.refusal = "it has no x-query-virtio-scsi-queues"
            return
        phase = self.phases[-1] if self.phases else None
        if phase and (phase.samples or self.settled(phase, now)):
            phase.samples.append(now)
        full = phase and phase.samples and \
            now.time - phase.samples[0].time >= self.span
        if self.todo and (not phase or full):
            title, begin = self.todo.pop(0)
            begin()
            if not self.refusal:
                self.phases.append(Phase(title, now.time, []))


def show(phases, names):
    """The table: what each phase was like."""
    say(f"\n  {'hot queues':14} {'served by':22} {'IOPS':>7}  "
        "% CPU of " + " ".join(names))
    for title, start, samples in phases:
        first, last = samples[0], samples[-1]
        span = last.time - first.time
        times = iothread_times(difference(first.threads, last.threads))
        each = " ".join(f"{100 * times[n].cpu / span:{max(len(n), 4)}.1f}"
                        for n in names)
        after = f", after {first.time - start:.1f} s" \
            if title == "by themselves" else ""
        say(f"  {title:14} {', '.join(served_by(last.queues)):22} "
            f"{(last.reads - first.reads) / span:7.0f}           {each}{after}")


def judge(phases):
    """What is wrong with the phases"""
    for title, _, samples in phases:
        hot = served_by(samples[-1].queues)
        apart = len(set(hot)) > 1
        busy = max(q.get("iothread-busy", 0) for s in samples
                   for q in s.queues)
        if title == "by themselves" and not apart and busy < BUSY:
            say(f"  (no IOThread is busy for more than {100 * busy:.0f} % of "
                "the time: a move is not worth it)")
        elif apart != (title != "as mapped"):
            yield f"{title}: the hot queues are served by {' and '.join(hot)}"


def report(watch, names):
    """Show and judge; a QEMU that can't move queues is no failure."""
    phases = [p for p in watch.phases if len(p.samples) > 1]
    if watch.refusal:
        say(f"  this QEMU can't do it: {watch.refusal}")
    elif watch.todo or len(phases) < len(watch.phases):
        raise RunError("fio was too short to measure: raise RUNTIME")
    if phases:
        show(phases, names)
    return list(judge(phases))
