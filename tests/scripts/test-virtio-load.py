#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of the load generator, tests/bench/virtio-load*.c.

Short runs of each kind of ring on both devices, whose data are compared; what
the report must add up to; options that are wrong; and a QEMU that fails. QEMU=
and VIRTIO_LOAD= override the binaries below build/. Prints TAP.
"""

import argparse
import functools
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
QEMU = os.environ.get("QEMU") or os.path.join(TOP, "build/qemu-system-x86_64")
LOAD = (os.environ.get("VIRTIO_LOAD") or
        os.path.join(TOP, "build/obj/tests/qtest/virtio-load"))
TIMEOUT = 300       # hang guard for a run, in seconds
DISK_SIZE = 16 << 20
SHORT = ["--seconds", "0.2", "--warmup", "0.05"]

# Options that are wrong, and what the message must contain besides them
BAD_OPTIONS = [
    ("--queues 0", "from 1 to"),
    ("--queues some", "from 1 to"),
    ("--depth 342", "at most 341"),
    ("--depth 1024 --indirect --ring-size 256", "at most 256"),
    ("--ring-size 300", "power of two"),
    ("--bs 1000", "multiple of 512"),
    ("--bs 2M", "to 1048576"),
    ("--rw append", "read, write or mix"),
    ("--rw mix:101", "from 0 to 100"),
    ("--pattern zigzag", "seq|rand"),
    ("--device nvme", "scsi|blk"),
    ("--ring torn", "split|packed"),
    ("--event-idx maybe", "off|on"),
    ("--rate -5", "at least 1"),
    ("--seconds 0", "at least 0.01"),
    ("--mapping 0:0;1:1 --queues 2", "thread 1"),
    ("--mapping 0:0 --queues 2", "queue 1 has no thread"),
    ("--mapping 0:0,0", "named twice"),
    ("--mapping none --iothreads 2", "0 or 1"),
    ("--luns 2 --device blk", "one disk"),
    ("--luns 65 --depth 64", "at most as many"),
    ("--luns 3 --own-lun --queues 4", "a multiple of it"),
    ("--flood 0", "--queues 2"),
    ("--flood 2 --queues 2", "from 0 to 1"),
    ("--flood 0 --queues 2 --rate 100", "--rate"),
    ("--hot 0,2 --queues 2", "from 0 to 1"),
    ("--hot 0;", "is empty"),
    ("--hot 0;1 --queues 2", "--shift"),
    ("--hot 0 --rate 100", "--rate"),
    ("--shift 1", "--hot"),
    ("--balance maybe", "off|on"),
    ("--balance on --iothreads 0", "a mapping"),
    ("--balance on --device blk", "--device scsi"),
    ("--remap 0", "from 1 to"),
    ("--remap 1 --mapping none", "a mapping"),
    ("--remap 1 --rate 100", "--rate"),
    ("--remap 1 --drains 1", "--drains"),
    ("--backend tape", "null-co, file:PATH or JSON"),
    ("--backend null-co:slow", "latency-ns=N"),
    ("--backend file:/nonexistent", "No such file"),
    ("--backend null-co --verify", "keeps no data"),
    ("--qemu /nonexistent", "no program"),
    ("surplus", "not an option"),
    ("--no-such-option", "unrecognized option"),
]


class Failure(Exception):
    """The test failed; the text says how."""


def equal(what, got, wanted):
    if got != wanted:
        raise Failure("%s: got %r, wanted %r" % (what, got, wanted))


def check(condition, what, *args):
    if not condition:
        raise Failure(what % args if args else what)


def call(words, text=None):
    """Run the generator; returns exit status, stdout and stderr."""
    done = subprocess.run([LOAD] + words, input=text, timeout=TIMEOUT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)
    return done.returncode, done.stdout, done.stderr


def load(*words):
    """A run that must be good; returns its report."""
    status, out, err = call(["--qemu", QEMU, "--json"] + SHORT + list(words))
    equal("exit status (%s)" % err.strip(), status, 0)
    equal("lines of output", out.count("\n"), 1)
    report = json.loads(out)
    check(report["ios"] > 0, "nothing was done")
    check_sums(report)
    return report


def check_sums(report):
    """What a report says in two places is the same in both."""
    queues = report["queue"]
    equal("queues", len(queues), report["config"]["queues"])
    total = sum(queue["iops"] for queue in queues)
    check(math.isclose(total, report["iops"], rel_tol=0.01),
          "queues did %r IOPS, all %r", total, report["iops"])
    check(math.isclose(report["iops"] * report["seconds"], report["ios"],
                       rel_tol=0.01), "IOPS are not I/Os in this time")
    io = sum(t["cpu_ns_per_io"] for t in report["threads"] if t["io"])
    check(math.isclose(io, report["cpu_ns_per_io"], abs_tol=1),
          "I/O threads took %r ns, cpu_ns_per_io is %r", io,
          report["cpu_ns_per_io"])
    check(io > 0, "no IOThread did anything")
    latency = report["latency_us"]
    check(0 < latency["p50"] <= latency["p99"] <= latency["p999"] <=
          latency["max"], "latencies in disorder: %r", latency)


def disk(directory, number=0):
    path = os.path.join(directory, "disk%d" % number)
    with open(path, "wb") as file:
        file.truncate(DISK_SIZE)
    return path


def ring(device, kind, indirect, event_idx, interrupts):
    with tempfile.TemporaryDirectory() as directory:
        report = load("--device", device, "--ring", kind,
                      *(["--indirect"] if indirect else []),
                      "--event-idx", event_idx, "--interrupts", interrupts,
                      "--queues", "2", "--iothreads", "2", "--depth", "20",
                      "--verify", "--rw", "mix:50",
                      "--backend", "file:" + disk(directory))
    check((report["interrupts_per_io"] > 0) == (interrupts == "on"),
          "%r interrupts for each request", report["interrupts_per_io"])


def sizes(device, bs):
    """Sequential ones, which come round to the beginning."""
    with tempfile.TemporaryDirectory() as directory:
        load("--device", device, "--bs", bs, "--depth", "8", "--verify",
             "--rw", "mix:30", "--pattern", "seq", "--region", "8M",
             "--backend", "file:" + disk(directory))


def deepest():
    """A full ring, more often round than a 16 bit index counts."""
    for indirect, depth in ([], "341"), (["--indirect"], "1024"):
        report = load("--depth", depth, "--ring-size", "1024",
                      "--seconds", "0.5", *indirect)
        equal("depth", report["config"]["depth"], int(depth))


def luns():
    with tempfile.TemporaryDirectory() as directory:
        for number in range(3):
            disk(directory, number)
        load("--luns", "3", "--queues", "2", "--depth", "9", "--verify", "--rw",
             "mix:50", "--backend", "file:" + os.path.join(directory, "disk%d"))


def wrong_data():
    """Of a backend that forgets all, --verify notices."""
    status, _, err = call(["--qemu", QEMU, "--verify", "--backend", json.dumps(
        {"driver": "null-co", "size": 1 << 20, "read-zeroes": True})])
    equal("exit status", status, 1)
    check("wrong data" in err, "said %r", err)


def failing_requests():
    """A disk that can't be read"""
    with tempfile.TemporaryDirectory() as directory:
        backend = {"driver": "blkdebug",
                   "image": {"driver": "file", "filename": disk(directory)},
                   "inject-error": [{"event": "none", "iotype": "read",
                                     "errno": 5, "once": False}]}
        for device in "scsi", "blk":
            status, _, err = call(["--qemu", QEMU, "--device", device,
                                   "--backend", json.dumps(backend)])
            equal("exit status", status, 1)
            check("read of block" in err and "failed" in err, "said %r", err)
            equal("lines", err.count("\n"), 1)


def kicks_and_main_loop():
    for kick in "eventfd", "qtest":
        report = load("--kick", kick, "--poll-ns", "0", "--depth", "1")
        equal("kick", report["config"]["kick"], kick)
        check(report["kicks_per_io"] > 0.5, "only %r kicks for each request",
              report["kicks_per_io"])
    report = load("--iothreads", "0", "--queues", "2")
    check(any(t["io"] and not t["name"].startswith("IO ")
              for t in report["threads"]), "the main loop did nothing")


def mapping():
    report = load("--queues", "3", "--iothreads", "2", "--mapping", "1:0,2;0:1")
    names = {t["name"] for t in report["threads"] if t["io"]}
    equal("IOThreads", names, {"IO iothread0", "IO iothread1"})
    load("--mapping", "none", "--queues", "2")


def rate():
    """An open loop doesn't do more than its rate."""
    report = load("--rate", "2000", "--queues", "2")
    check(report["iops"] < 2000 * 1.5, "%r IOPS", report["iops"])


def flood():
    report = load("--queues", "2", "--flood", "1", "--depth", "32")
    equal("depths", [q["depth"] for q in report["queue"]], [32, 1])
    check(all(q["iops"] > 0 for q in report["queue"]), "a queue did nothing")


def iops(report):
    return [queue["iops"] > 0 for queue in report["queue"]]


def hot():
    """Only hot queues have load, and all sets have their turn."""
    words = ["--queues", "4", "--iothreads", "2", "--depth", "16"]
    report = load("--hot", "0,2", *words)
    equal("queues with load", iops(report), [True, False, True, False])
    report = load("--hot", "0;2;1", "--shift", "0.05", *words)
    equal("queues with load", iops(report), [True, True, True, False])


def hot_verified():
    """No request is lost when a queue cools down or heats up."""
    with tempfile.TemporaryDirectory() as directory:
        for kind, interrupts in itertools.product(("split", "packed"),
                                                  ("on", "off")):
            load("--hot", "0,1;1,2;2,0", "--shift", "0.02", "--queues", "3",
                 "--verify", "--rw", "mix:50", "--ring", kind, "--interrupts",
                 interrupts, "--depth", "9", "--backend",
                 "file:" + disk(directory))


def remap():
    """A change of the mapping begins each pause that is told."""
    report = load("--queues", "4", "--iothreads", "2", "--remap", "20",
                  "--mapping", "0:0,1;1:2,3")
    check(1 <= report["pauses"] <= 4, "%r pauses", report["pauses"])
    for key in "pause_us", "calm_us":
        check(0 < report[key]["p50"] <= report[key]["max"], "%s of %r", key,
              report[key])


def extras():
    with tempfile.TemporaryDirectory() as directory:
        file = os.path.join(directory, "pid")
        report = load("--pin", "--hmp-before", "sync-profile on",
                      "--hmp", "info sync-profile",
                      "--exec", "readlink /proc/$QEMU_PID/exe > " + file)
        with open(file) as exe:
            equal("--exec's QEMU", exe.read().strip(), os.path.realpath(QEMU))
    check("Wait Time" in report["hmp"], "HMP said %r", report["hmp"])
    for when in "idle", "loaded":
        check(report["rss_kib"][when]["rss"] > 1000, "no RSS %s", when)


def text_report():
    status, out, err = call(["--qemu", QEMU, "--rss"] + SHORT)
    equal("exit status (%s)" % err.strip(), status, 0)
    for word in "IOPS", "CPU per I/O", "p99.9", "kicks", "loaded":
        check(word in out, "no %s in %r", word, out)


def bad_options(words, reason):
    status, out, err = call(["--qemu", QEMU] + words.split())
    equal("exit status", status, 2)
    equal("stdout", out, "")
    equal("lines of %r" % err, err.count("\n"), 1)
    check(err.startswith("virtio-load: "), "said %r", err)
    check(reason in err, "%r doesn't say %r", err, reason)


def qemu_fails():
    status, _, err = call(["--qemu", QEMU, "--backend", '{"driver":"no-such"}'])
    equal("exit status", status, 1)
    check("QEMU says" in err and "no-such" in err, "said %r", err)
    equal("lines of %r" % err, err.count("\n"), 1)


def qemu_dies():
    status, out, err = call(["--qemu", QEMU, "--json", "--seconds", "60",
                             "--exec", "kill -9 $QEMU_PID"])
    equal("exit status", status, 1)
    equal("stdout", out, "")
    check("QEMU ended" in err, "said %r", err)


def exact(values, fraction):
    return sorted(values)[math.ceil(fraction * len(values)) - 1]


def histogram(values):
    status, out, _ = call(["--histogram"], "\n".join(map(str, values)))
    equal("exit status", status, 0)
    found = json.loads(out)
    equal("count", found["count"], len(values))
    equal("max", found["max"], max(values))
    check(math.isclose(found["mean"], sum(values) / len(values), rel_tol=1e-5,
                       abs_tol=0.001), "mean %r", found["mean"])
    for name, fraction in ("p50", 0.5), ("p99", 0.99), ("p999", 0.999):
        wanted = exact(values, fraction)
        check(abs(found[name] - wanted) <= wanted / 64,
              "%s is %r, not %r", name, found[name], wanted)


def histograms():
    generator = random.Random(1)
    histogram([5])
    histogram(list(range(64)))
    histogram(list(range(1, 1001)))
    histogram([100] * 990 + [1000000] * 10)
    histogram([2 ** bit for bit in range(39)])
    histogram([2 ** bit - 1 for bit in range(1, 39)])
    histogram([int(generator.expovariate(1 / 50000)) for _ in range(20000)])


def all_tests():
    bind = functools.partial
    yield "histogram", histograms
    for words, reason in BAD_OPTIONS:
        yield "bad: " + words, bind(bad_options, words, reason)
    for kind in itertools.product(("scsi", "blk"), ("split", "packed"),
                                  (False, True), ("on", "off"), ("off", "on")):
        device, ring_kind, indirect, event_idx, interrupts = kind
        yield ("%s %s %s event-idx %s interrupts %s"
               % (device, ring_kind, "indirect" if indirect else "direct",
                  event_idx, interrupts), bind(ring, *kind))
    for device, bs in itertools.product(("scsi", "blk"), ("512", "64K", "1M")):
        yield "%s bs %s" % (device, bs), bind(sizes, device, bs)
    yield "deepest rings", deepest
    yield "LUNs", luns
    yield "wrong data", wrong_data
    yield "failing requests", failing_requests
    yield "kicks, main loop", kicks_and_main_loop
    yield "mapping", mapping
    yield "rate", rate
    yield "flood", flood
    yield "hot sets", hot
    yield "hot sets, verified", hot_verified
    yield "changes of the mapping", remap
    yield "monitor, command, RSS", extras
    yield "text report", text_report
    yield "QEMU fails", qemu_fails
    yield "QEMU dies", qemu_dies


def main():
    argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path in QEMU, LOAD:
        if not os.access(path, os.X_OK):
            sys.exit("test-virtio-load: can't run %s: run make and "
                     "scripts/build/build-qemu tests first" % path)
    tests = list(all_tests())
    print("1..%d" % len(tests))
    failed = False
    for number, (name, test) in enumerate(tests, 1):
        try:
            test()
            print("ok %d - %s" % (number, name), flush=True)
        except (Failure, OSError, LookupError, ValueError,
                subprocess.TimeoutExpired) as error:
            failed = True
            print("not ok %d - %s" % (number, name))
            print("# " + str(error).rstrip().replace("\n", "\n# "), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
