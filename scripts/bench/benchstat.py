# SPDX-License-Identifier: GPL-2.0-or-later
"""Statistics of scripts/bench/bench: everything is computed from the dictionary that
results.json holds, so that a report can't say what was not measured.

Figures of two configurations are compared within a round, where they ran one
after the other: what else the machine does changes slowly, so most of it
cancels out. The median of these ratios is what counts.
"""

import collections
import statistics

Summary = collections.namedtuple("Summary", "median low high count")
Goal = collections.namedtuple(
    "Goal", "title case metric against sense limit base")


def goal(title, case, metric, against, sense, limit, base=None):
    """`against`: whose figure ours is divided by. `base`: its case, if another."""
    return Goal(title, case, metric, against, sense, limit, base or case)


# Issues "Cheaper per I/O than virtio-blk" and "Real disks at the machine's
# limit", tables "Reach".
GOALS = [
    goal("CPU per 4K read, null-co, 1 IOThread", "null-1", "cpu",
         "stock", "<=", 0.55),
    goal("the same", "null-1", "cpu", "blk", "<=", 1.0),
    goal("CPU per 4K read, 2 IOThreads on one LUN against 1", "null-2", "cpu",
         "ours", "<=", 1.10, base="null-1"),
    goal("IOPS, 2 IOThreads on one LUN", "null-2", "iops", "stock", ">=", 2.0),
    goal("the same", "null-2", "iops", "blk", ">=", 1.0),
    goal("depth 1, null-co: p50", "null-d1", "p50", "blk", "<=", 1.05),
    goal("depth 1, null-co: p99", "null-d1", "p99", "blk", "<=", 1.05),
    goal("depth 1, file io_uring 4K read: p50", "io_uring-4k-read-d1", "p50",
         "blk", "<=", 1.05),
    goal("depth 1, file io_uring 4K read: p99", "io_uring-4k-read-d1", "p99",
         "blk", "<=", 1.05),
    goal("CPU per 4K read, file io_uring, deep", "io_uring-4k-read-deep", "cpu",
         "stock", "<=", 0.75),
    goal("CPU per 4K read, file in RAM, native", "ram-native", "cpu", "limit",
         "<=", 1.0),
    goal("the same, io_uring", "ram-io_uring", "cpu", "limit", "<=", 1.3),
    goal("the same, io_uring, no polling", "ram-io_uring-nopoll", "cpu", "limit",
         "<=", 1.3),
    goal("IOPS, file in RAM, native", "ram-native", "iops", "limit", ">=", 0.8),
    goal("the same, io_uring", "ram-io_uring", "iops", "limit", ">=", 0.8),
    goal("IOPS, 64K sequential reads, file io_uring", "seq-64k", "iops",
         "blk", ">=", 1.0),
    goal("IOPS, 64K sequential reads, null-co", "null-seq-64k", "iops",
         "blk", ">=", 1.0),
    goal("p99 while another disk is drained 50 times a second against without",
         "drain-50", "p99", "ours", "<=", 1.1, base="drain-0"),
    goal("RSS, 16 queues x 1024, idle", "rss", "rss_idle", "stock", "<=", 1.05),
    goal("RSS, 16 queues x 1024, loaded", "rss", "rss_loaded",
         "stock", "<=", 1.05),
]


def summary(values):
    """Median, lowest and highest; None of no values."""
    values = list(values)
    if not values:
        return None
    return Summary(statistics.median(values), min(values), max(values), len(values))


def by_round(results, case, subject, metric):
    """{round: figure} of one subject in one case."""
    return {run["round"]: run["figures"][metric] for run in results["runs"]
            if run["case"] == case and run["subject"] == subject
            and run["figures"].get(metric) is not None}


def figure(results, case, subject, metric):
    return summary(by_round(results, case, subject, metric).values())


def ratios(results, case, metric, one, two, base=None):
    """Of each round that has both: one's figure divided by two's."""
    ones = by_round(results, case, one, metric)
    twos = by_round(results, base or case, two, metric)
    return [ones[i] / twos[i] for i in sorted(ones) if twos.get(i)]


def ratio(results, case, metric, one, two, base=None):
    return summary(ratios(results, case, metric, one, two, base))


def judge(results, wanted):
    """(Summary, reached) of a goal; (None, None) if it wasn't measured."""
    found = ratio(results, wanted.case, wanted.metric, "ours", wanted.against,
                  wanted.base)
    if not found:
        return None, None
    return found, (found.median <= wanted.limit if wanted.sense == "<="
                   else found.median >= wanted.limit)


def cost(results, subject, counts, case="null-%d", metric="cpu"):
    """Summaries of a and b in: CPU per I/O = a + b x IOThreads.

    One line per round through the case of each number of IOThreads in
    `counts`, as the rounds are what repeats. None if there is no such round.
    """
    figures = {n: by_round(results, case % n, subject, metric) for n in counts}
    rounds = set.intersection(*(set(f) for f in figures.values()))
    lines = [statistics.linear_regression(counts, [figures[n][i] for n in counts])
             for i in sorted(rounds)]
    if not lines:
        return None
    return (summary(line.intercept for line in lines),
            summary(line.slope for line in lines))
