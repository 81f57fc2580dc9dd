# SPDX-License-Identifier: GPL-2.0-or-later
"""The limit of scripts/bench/bench: fio, which does the same I/O on the same file with
the same interface of the kernel, and nothing in between."""

import functools
import json
import resource
import shutil

from benchcase import PATIENCE, Problem, output

ENGINES = {"io_uring": "io_uring", "native": "libaio"}
BATCH = 16                      # requests submitted and reaped at a time


def why_not():
    """Why fio can't be run here, or None."""
    return None if shutil.which("fio") else \
        "no fio: scripts/build/deps bench installs it"


def command(path, aio, options, seconds):
    """fio's words for a case of the load generator's `options`."""
    pattern = {"seq": "", "rand": "rand"}[options["pattern"]]
    words = ["fio", "--name=limit", "--filename=" + path.replace(":", "\\:"),
             "--direct=1", "--thread", "--ioengine=" + ENGINES[aio],
             "--rw=%s%s" % (pattern, options["rw"]), "--bs=%d" % options["bs"],
             "--iodepth=%d" % options["depth"],
             "--numjobs=%d" % options["iothreads"], "--group_reporting",
             "--norandommap", "--randrepeat=0", "--time_based",
             "--runtime=%dms" % (seconds * 1000), "--output-format=json"]
    if options["depth"] > 1:
        words += ["--iodepth_batch_submit=%d" % BATCH,
                  "--iodepth_batch_complete_min=1",
                  "--iodepth_batch_complete_max=%d" % BATCH, "--gtod_reduce=1"]
    return words


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(words, timeout):
    """(fio's report of the job, CPU seconds of all its threads)."""
    before = cpu_seconds()
    text = output(words, timeout)
    used = cpu_seconds() - before
    try:
        return json.loads(text[text.index("{"):])["jobs"][0], used
    except (ValueError, KeyError, IndexError):
        raise Problem("fio made no report")


@functools.lru_cache(maxsize=None)
def overhead():
    """CPU seconds that fio needs for itself, whatever it measures."""
    return measured(["fio", "--name=none", "--ioengine=null", "--size=4k",
                     "--bs=4k", "--rw=read", "--thread",
                     "--output-format=json"], PATIENCE)[1]


def run(words, timeout):
    """One run: (figures to compare, fio's report)."""
    own = overhead()
    job, used = measured(words, timeout)
    done = [job[way] for way in ("read", "write") if job[way]["total_ios"]]
    if len(done) != 1 or job["error"]:
        raise Problem("fio: error %d" % job["error"])
    done = done[0]
    found = {"iops": done["iops"],
             # what the kernel's workers do as well, which are fio's threads
             "cpu": max(0, used - own) * 1e9 / done["total_ios"]}
    times = done["clat_ns"].get("percentile")
    if times:
        found.update(p50=times["50.000000"] / 1e3, p99=times["99.000000"] / 1e3)
    return found, {"job": job, "cpu_seconds": used, "overhead": own}
