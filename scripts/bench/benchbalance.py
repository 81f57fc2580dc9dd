# SPDX-License-Identifier: GPL-2.0-or-later
"""What `scripts/bench/bench --balance` measures: queues that move between IOThreads,
by iothread-vq-balance or by a new mapping."""

import multiprocessing
import time

from benchcase import DEEP, DEFAULTS, Case
from benchreport import (heading, remarks, rst_table, spread, table,
                         titles)
from benchstat import figure, ratio

# Deep, so that the generator takes as little as it can of the CPUs.
DEEPER = 340
SHIFT = 5                       # seconds until another hot set
EVEN = 60                       # seconds of even load
RST_BEGIN, RST_END = ".. balance:begin\n", "\n.. balance:end\n"

# (case, its base or None, figure, sense, limit, title): issue "A mapping that
# follows the load", table "Reach"
GOALS = [
    ("split-on", "split-off", "iops", ">=", 1.6,
     "IOPS, 2 hot queues on one of 2 IOThreads, a second later"),
    ("split-on", "split-best", "iops", ">=", 0.95,
     "the same, against the best mapping"),
    ("shift-on", "shift-best", "iops", ">=", 0.9,
     "IOPS, hot set that changes every %d s, against the best mapping" % SHIFT),
    ("even-long", None, "moves", "<=", 2, "even load: moves in %d s" % EVEN),
    ("even-on", "even-off", "iops", ">=", 0.98, "even load: IOPS"),
    ("even-on", "even-off", "cpu", "<=", 1.01, "even load: CPU per I/O"),
    ("remap", None, "more_p50", "<=", 5000,
     "change of mapping: pause beyond that without, µs"),
    ("remap", None, "more_max", "<=", 50000, "the same, the longest"),
]


def case(name, title, seconds, **options):
    options = {**DEFAULTS, "balance": "off", "seconds": seconds, **options}
    return Case(name, title, options, ("ours",), True, None, False)


def balance_cases(quick):
    """`quick`: short ones that only show that all of it runs."""
    def length(seconds):
        return 0.2 if quick else seconds

    split = {"queues": 4, "iothreads": 2, "hot": "0,2", "depth": DEEPER,
             "ring_size": 1024, "warmup": length(1)}
    # Each set is on one IOThread, but for the mapping that is best for all.
    shift = {"queues": 8, "iothreads": 4, "hot": "0,4;1,5;2,6;3,7",
             "shift": length(SHIFT) / (8 if quick else 1), "depth": DEEPER,
             "ring_size": 1024, "warmup": 0}
    even = {"queues": 4, "iothreads": 2, "depth": DEEP}
    yield case("split-off", "2 hot queues on one of 2 IOThreads, balance off",
               length(1), **split)
    yield case("split-on", "the same, balance on", length(1),
               **dict(split, balance="on"))
    yield case("split-best", "the same, best mapping", length(1),
               mapping="0:0,1;1:2,3", **split)
    yield case("shift-off", "hot set changes every %d s, 8 queues, 4 IOThreads"
               % SHIFT, length(4 * SHIFT), **shift)
    yield case("shift-best", "the same, best mapping", length(4 * SHIFT),
               mapping="0:0,1;1:4,5;2:2,3;3:6,7", **shift)
    yield case("shift-on", "the same, balance on", length(4 * SHIFT),
               **dict(shift, balance="on"))
    yield case("even-off", "even load, balance off", length(2), **even)
    yield case("even-on", "the same, balance on", length(2),
               **dict(even, balance="on"))
    yield case("even-long", "the same for %d s" % EVEN, length(EVEN),
               **dict(even, balance="on"))
    yield case("remap", "full load, mapping changes 5 times a second",
               length(6), remap=5, **even)


def spin(seconds):
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        count += 1
    return count


def two_busy():
    """How much more two busy processes do than one: a virtual machine's CPUs
    may be halves of one, or somebody else's just now."""
    found = []
    with multiprocessing.Pool(2) as pool:
        for _ in range(5):
            found.append(sum(pool.map(spin, [0.2, 0.2])) / spin(0.2))
    return sorted(found)


def figures(report):
    """What a report has besides the usual figures"""
    pause, calm = report["pause_us"], report["calm_us"]
    return {"moves": report["moves"], "pause_p50": pause["p50"],
            "pause_max": pause["max"],
            "more_p50": max(0, pause["p50"] - calm["p50"]),
            "more_max": max(0, pause["max"] - calm["max"])}


# ------------------------------------------------------------------- report

def found_for(results, name, base, key):
    """A figure, or its ratio to that of the base."""
    if base:
        return ratio(results, name, key, "ours", "ours", base)
    return figure(results, name, "ours", key)


def goals(results):
    rows = []
    for name, base, key, sense, limit, title in GOALS:
        found = found_for(results, name, base, key)
        verdict = "not measured"
        if found:
            # what is the worst of all isn't made better by other rounds
            value = found.high if key == "more_max" else found.median
            reached = value <= limit if sense == "<=" else value >= limit
            verdict = "reached" if reached else "missed"
        rows.append([title, "%s %g" % (sense, limit), spread(found), verdict])
    return rows


def all_figures(results):
    rows = []
    for name, title in titles(results, lambda _: True):
        rows.append([title] + [
            spread(figure(results, name, "ours", key), factor)
            for key, factor in (("iops", 1e-3), ("cpu", 1e-3), ("moves", 1),
                                ("pause_p50", 1e-3), ("pause_max", 1e-3))])
    return rows


GOAL_HEAD = ["goal", "limit", "found", ""]
FIGURE_HEAD = ["case", "1000 IOPS", "µs CPU per I/O", "moves",
               "pause ms: median", "longest"]


def limit(results):
    busy = results["settings"]["two_busy"]
    return ("Two busy processes did %.2f (%.2f-%.2f) times the work of one on "
            "this machine before the first run; here the load generator is a "
            "third.\n" % (busy[len(busy) // 2], busy[0], busy[-1]))


def sections(results):
    """For benchreport: (title, text)"""
    return [("Limit", limit(results)),
            ("Goals", table(GOAL_HEAD, goals(results))),
            ("Figures", table(FIGURE_HEAD, all_figures(results))),
            ("Not measured", remarks(results))]


def docs_section(results):
    """What stands in docs/devel/virtio-scsi-cost.rst."""
    return "\n" + "\n".join([heading(results), limit(results),
                             rst_table(GOAL_HEAD, goals(results)),
                             rst_table(FIGURE_HEAD, all_figures(results))])
