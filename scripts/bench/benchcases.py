# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/bench/bench and scripts/bench/profile measure: tables of cases,
of goals, and of what a report shows.

A set of cases is chosen by an option of scripts/bench/bench of its name. For
another one: cases here, a line in SETS, and its back ends in benchrun.py.
"""

import collections
import os

SUBJECTS = {                        # name: (binary, device), in running order
    "ours": ("ours", "scsi"),
    "stock": ("stock", "scsi"),
    "blk": ("stock", "blk"),
    "limit": ("fio", None),         # what the kernel can do: files only
}
QEMUS = ("ours", "stock", "blk")
SCSI = ("ours", "stock")

# Options of virtio-load. A deep queue has DEEP requests in flight all the time.
# No interrupts: without KVM the main loop would have to deliver each, and take
# CPU time from the threads that are measured.
DEEP = 128
DEFAULTS = {"queues": 1, "iothreads": 1, "depth": DEEP, "bs": 4096,
            "rw": "read", "pattern": "rand", "interrupts": "off"}

Case = collections.namedtuple("Case",
                              "name title options backend subjects core base")
Goal = collections.namedtuple("Goal",
                              "title case metric sense limit against base")
Set = collections.namedtuple("Set", "help cases goals tables page marker")


def case(name, title, core=False, backend="null-co", subjects=None, base=None,
         **options):
    """`core`: it runs in every round. `backend`: one of benchrun.Backends; fio
    shows the limit of a file. `base`: the case that ratios are to."""
    if not subjects:
        subjects = tuple(SUBJECTS) if ":" in backend else QEMUS
    return Case(name, title, {**DEFAULTS, **options}, backend, subjects, core,
                base)


def goal(title, where, metric, sense, limit, against=None, base=None):
    """`against`: the subject whose figure ours is divided by, without one the
    figure counts. `base`: its case, if another one."""
    return Goal(title, where, metric, sense, limit, against, base or where)


def cores():
    return len(os.sched_getaffinity(0))


# ------------------------------------------------------ null-co and local files

def disk_cases():
    yield case("null-1", "null-co, 4K read, 1 IOThread", core=True)
    yield case("null-2", "null-co, 4K read, 2 IOThreads, one LUN", core=True,
               queues=2, iothreads=2)
    yield case("null-d1", "null-co, 4K read, depth 1", core=True, depth=1)
    yield case("seq-64k", "file io_uring, 64K sequential read", core=True,
               backend="file:io_uring", bs=65536, pattern="seq")
    yield case("null-seq-64k", "null-co, 64K sequential read", core=True,
               bs=65536, pattern="seq")
    # a pool of threads takes whatever it gets: all is in flight
    yield case("rss", "memory, 16 queues x 1024", core=True, subjects=SCSI,
               backend="file:threads", queues=16, depth=1024, ring_size=1024,
               indirect=True, rss=True)
    # in RAM all that is left is the way there
    for aio in ("native", "io_uring"):
        name, title, ram = f"ram-{aio}", f"file in RAM, {aio}, 4K", f"ram:{aio}"
        yield case(name, f"{title} read", core=True, backend=ram)
        yield case(f"{name}-nopoll", f"{title} read, no polling", core=True,
                   backend=ram, poll_ns=0)
        yield case(f"{name}-write", f"{title} write", backend=ram, rw="write")
        yield case(f"{name}-2", f"{title} read, 2 IOThreads, one LUN",
                   backend=ram, queues=2, iothreads=2)
    for aio in ("io_uring", "native"):
        for size, bs in (("4k", 4096), ("64k", 65536)):
            for rw in ("read", "write"):
                for name, title, depth in (("d1", "depth 1", 1),
                                           ("deep", "deep", DEEP)):
                    yield case(f"{aio}-{size}-{rw}-{name}", f"file {aio}, "
                               f"{size.upper()} {rw}, {title}",
                               core=(aio, bs, rw) == ("io_uring", 4096, "read"),
                               backend=f"file:{aio}", bs=bs, rw=rw, depth=depth)
    yield case("io_uring-2", "file io_uring, 4K read, 2 IOThreads, one LUN",
               backend="file:io_uring", queues=2, iothreads=2)
    yield case("fair", "one queue full, the other reads one by one",
               subjects=SCSI, queues=2, flood=1)
    yield case("drain-0", "null-co, 4K read, depth 4, beside an idle disk",
               core=True, subjects=SCSI, depth=4)
    yield case("drain-50", "the same, that disk is drained 50 times a second",
               core=True, subjects=SCSI, depth=4, drains=50)
    yield case("16q-4t", "null-co, 16 queues on 4 IOThreads, no polling",
               queues=16, iothreads=4, depth=32, poll_ns=0)
    yield case("64q-4t", "null-co, 64 queues on 4 IOThreads, no polling",
               queues=64, iothreads=4, depth=8, poll_ns=0)
    yield case("packed", "null-co, 4K read, packed ring", ring="packed")
    yield case("indirect", "null-co, 4K read, indirect descriptors (as Linux)",
               indirect=True)
    yield case("indirect-2", "null-co, 4K read, indirect, 2 IOThreads",
               indirect=True, queues=2, iothreads=2)
    yield case("irq", "null-co, 4K read, with interrupts", interrupts="on")
    for count in (4, 8, 16):        # more than these need their cores
        if count == 4 or count < cores():
            yield case(f"null-{count}", f"null-co, 4K read, {count} IOThreads, "
                       "one LUN", core=count < cores(), queues=count,
                       iothreads=count)


# Issues "Cheaper per I/O than virtio-blk" and "Real disks at the machine's
# limit", tables "Reach".
DISK_GOALS = [
    goal("CPU per 4K read, null-co, 1 IOThread", "null-1", "cpu", "<=", 0.55,
         "stock"),
    goal("CPU per 4K read, null-co, 1 IOThread", "null-1", "cpu", "<=", 1,
         "blk"),
    goal("CPU per 4K read, 2 IOThreads on one LUN, to 1", "null-2", "cpu", "<=",
         1.10, "ours", base="null-1"),
    goal("IOPS, 2 IOThreads on one LUN", "null-2", "iops", ">=", 2, "stock"),
    goal("IOPS, 2 IOThreads on one LUN", "null-2", "iops", ">=", 1, "blk"),
    goal("depth 1, null-co: p50", "null-d1", "p50", "<=", 1.05, "blk"),
    goal("depth 1, null-co: p99", "null-d1", "p99", "<=", 1.05, "blk"),
    goal("depth 1, file io_uring 4K read: p50", "io_uring-4k-read-d1", "p50",
         "<=", 1.05, "blk"),
    goal("depth 1, file io_uring 4K read: p99", "io_uring-4k-read-d1", "p99",
         "<=", 1.05, "blk"),
    goal("CPU per 4K read, file io_uring, deep", "io_uring-4k-read-deep", "cpu",
         "<=", 0.75, "stock"),
    goal("CPU per 4K read, file in RAM, native", "ram-native", "cpu", "<=", 1,
         "limit"),
    goal("CPU per 4K read, file in RAM, io_uring", "ram-io_uring", "cpu", "<=",
         1.3, "limit"),
    goal("CPU per 4K read, file in RAM, io_uring, no polling",
         "ram-io_uring-nopoll", "cpu", "<=", 1.3, "limit"),
    goal("IOPS, file in RAM, native", "ram-native", "iops", ">=", 0.8, "limit"),
    goal("IOPS, file in RAM, io_uring", "ram-io_uring", "iops", ">=", 0.8,
         "limit"),
    goal("IOPS, 64K sequential reads, file io_uring", "seq-64k", "iops", ">=",
         1, "blk"),
    goal("IOPS, 64K sequential reads, null-co", "null-seq-64k", "iops", ">=", 1,
         "blk"),
    goal("p99 while another disk is drained 50 times a second, to without",
         "drain-50", "p99", "<=", 1.1, "ours", base="drain-0"),
    goal("RSS, 16 queues x 1024, idle", "rss", "rss_idle", "<=", 1.05, "stock"),
    goal("RSS, 16 queues x 1024, loaded", "rss", "rss_loaded", "<=", 1.05,
         "stock"),
]

# Cases whose bars the chart shows, and what it calls them.
CHART = {"null-1": "null-co 4K\\n1 IOThread",
         "null-2": "null-co 4K\\n2 IOThreads",
         "io_uring-4k-read-deep": "io_uring 4K",
         "seq-64k": "io_uring 64K\\nsequential",
         "ram-native": "RAM, native 4K",
         "ram-io_uring": "RAM, io_uring 4K",
         "16q-4t": "16 queues\\n4 IOThreads",
         "64q-4t": "64 queues\\n4 IOThreads"}


# ----------------------------------------------- several IOThreads on a network

FLIGHT = 32                     # requests in flight in each of these cases
# (name, title, what else its cases have); virtio-blk is no SCSI device, and
# stock has one connection
NETWORK = [(name, name, {"backend": name}) for name in
           ("qemu-nbd", "nbdkit", "iscsi", "rbd")] + [
    (f"{name}-multi", f"{name}, multi-conn=4",
     {"backend": f"{name}:4", "subjects": ("ours",)})
    for name in ("qemu-nbd", "nbdkit")] + [
    ("scsi-block", "iscsi, scsi-block",
     {"backend": "iscsi", "disk": "scsi-block", "subjects": SCSI})]


def network_cases():
    for name, title, more in NETWORK:
        for rw in ("read", "write"):
            for count in (1, 2, 4):
                yield case(f"{name}-{rw}-{count}", f"{title}, 4K {rw}, {count} "
                           f"IOThread{'s' * (count > 1)}", core=True, rw=rw,
                           base=f"{name}-{rw}-1" if count > 1 else None,
                           queues=count, iothreads=count, depth=FLIGHT // count,
                           **more)


# ------------------------------------------------------------- queues that move

# Deep, so that the generator takes as little as it can of the CPUs.
DEEPER = {"depth": 340, "ring_size": 1024, "subjects": ("ours",), "core": True}
SHIFT = 5                       # seconds until another hot set
EVEN = 60                       # seconds of even load


def balance_cases():
    # Each hot set is on one IOThread, but for the mapping that is best for all.
    split = {"queues": 4, "iothreads": 2, "hot": "0,2", "warmup": 1,
             "seconds": 1, **DEEPER}
    shift = {"queues": 8, "iothreads": 4, "hot": "0,4;1,5;2,6;3,7",
             "shift": SHIFT, "warmup": 0, "seconds": 4 * SHIFT, **DEEPER}
    even = {"queues": 4, "iothreads": 2, "subjects": ("ours",), "core": True}
    yield case("split-off", "2 hot queues on one of 2 IOThreads, balance off",
               balance="off", **split)
    yield case("split-on", "the same, balance on", balance="on", **split)
    yield case("split-best", "the same, best mapping", balance="off",
               mapping="0:0,1;1:2,3", **split)
    yield case("shift-off", f"hot set changes every {SHIFT} s, 8 queues, 4 "
               "IOThreads", balance="off", **shift)
    yield case("shift-best", "the same, best mapping", balance="off",
               mapping="0:0,1;1:4,5;2:2,3;3:6,7", **shift)
    yield case("shift-on", "the same, balance on", balance="on", **shift)
    yield case("even-off", "even load, balance off", balance="off", seconds=2,
               **even)
    yield case("even-on", "the same, balance on", balance="on", seconds=2,
               **even)
    yield case("even-long", f"the same for {EVEN} s", balance="on",
               seconds=EVEN, **even)
    yield case("remap", "full load, mapping changes 5 times a second",
               balance="off", seconds=6, remap=5, **even)


# Issue "A mapping that follows the load", table "Reach"
BALANCE_GOALS = [
    goal("IOPS, 2 hot queues on one of 2 IOThreads, a second later", "split-on",
         "iops", ">=", 1.6, "ours", "split-off"),
    goal("the same, to the best mapping", "split-on", "iops", ">=", 0.95,
         "ours", "split-best"),
    goal(f"IOPS, hot set that changes every {SHIFT} s, to the best mapping",
         "shift-on", "iops", ">=", 0.9, "ours", "shift-best"),
    goal(f"even load: moves in {EVEN} s", "even-long", "moves", "<=", 2),
    goal("even load: IOPS", "even-on", "iops", ">=", 0.98, "ours", "even-off"),
    goal("even load: CPU per I/O", "even-on", "cpu", "<=", 1.01, "ours",
         "even-off"),
    goal("change of mapping: pause beyond that without, µs", "remap",
         "more_p50", "<=", 5000),
    goal("the same, the longest", "remap", "more_max", "<=", 50000),
]


# ------------------------------------------------------------------------ sets

PAGES = "docs/devel/virtio-scsi-"
# `tables`: functions of benchreport with their arguments
SETS = {
    "disk": Set(
        "null-co and local files (the default)", disk_cases, DISK_GOALS,
        [("compare", "cpu", "deep"), ("compare", "iops", "deep"),
         ("compare", "p50", "depth 1"), ("compare", "p99", "depth 1"),
         ("by_subject", "fair", "single_p50", "single_p99", "iops"),
         ("by_subject", "rss", "rss_idle", "rss_loaded", "own_idle",
          "own_loaded")],
        PAGES + "cost.rst", "bench"),
    "net": Set(
        "IOThreads on disks of NBD, iSCSI and RBD", network_cases, [],
        [("to_base", "iops"), ("to_base", "cpu"), ("compare", "cpu"),
         ("compare", "server_cpu"), ("compare", "iops"), ("compare", "p99")],
        PAGES + "backends.rst", "bench"),
    "balance": Set(
        "queues that move between IOThreads, each as long as it needs",
        balance_cases, BALANCE_GOALS,
        [("by_case", "iops", "cpu", "moves", "pause_p50", "pause_max")],
        PAGES + "cost.rst", "balance"),
}
