# SPDX-License-Identifier: GPL-2.0-or-later
"""What `scripts/bench/bench --nbd` measures: IOThreads and the connections to an NBD
server. The servers hold no data (null-co, null), so that what is measured is
the way there and back. All cases have FLIGHT requests in flight."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time

from benchcase import DEFAULTS, Case, Problem
from benchreport import (CPU, IOPS, LABELS, compare, heading, middle, remarks,
                         rst_table, spread, table, titles)
from benchstat import figure, ratio

FLIGHT = 32
TICK = os.sysconf("SC_CLK_TCK")
CPU_OF_SERVER = ("server_cpu", "server: µs CPU per I/O", 1e-3)

# name: (title, IOThreads, connections, does an IOThread keep to its own?)
SHAPES = {
    "1": ("1 IOThread, 1 connection", 1, 1, False),
    "2": ("2 IOThreads, 1 connection", 2, 1, False),
    "4": ("4 IOThreads, 1 connection", 4, 1, False),
    "1-2c": ("1 IOThread, 2 connections", 1, 2, False),
    "2-2c": ("2 IOThreads, both on both of 2 connections", 2, 2, False),
    "2-own": ("2 IOThreads, each with a connection", 2, 2, True),
}


def shape_options(threads, connections, own):
    queues = max(threads, connections)
    options = dict(DEFAULTS, queues=queues, iothreads=threads,
                   depth=FLIGHT // queues)
    if connections > 1:
        options["luns"] = connections
    if own:
        options["own_lun"] = True
    return options


def nbd_cases():
    """virtio-blk is one disk, so it has one connection."""
    for server in ("qemu-nbd", "nbdkit"):
        for rw in ("read", "write"):
            for name, (title, threads, connections, own) in SHAPES.items():
                options = shape_options(threads, connections, own)
                options.update(rw=rw, backend=server)
                yield Case("%s-%s-%s" % (server, rw, name),
                           "%s, 4K %s, %s" % (server, rw, title), options,
                           ("ours", "stock", "blk") if connections == 1
                           else ("ours", "stock"), True, None, False)


# ----------------------------------------------------------------- servers

class Servers:
    """qemu-nbd and nbdkit on Unix sockets, as long as the `with` block."""

    def __init__(self, qemu_nbd):
        self.qemu_nbd = qemu_nbd
        self.folder = tempfile.mkdtemp(prefix="bench-nbd-")
        self.processes = {}
        self.missing = {}           # server: why

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self, name, *words):
        if not shutil.which(words[0]):
            self.missing[name] = "no program " + words[0]
            return
        with open(self.path("log"), "w+", encoding="utf-8") as log:
            self.processes[name] = subprocess.Popen(
                # ends even if this program is killed
                ["setpriv", "--pdeathsig", "KILL", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            for _ in range(300):
                with socket.socket(socket.AF_UNIX) as one:
                    if one.connect_ex(self.path(name)) == 0:
                        return
                if self.processes[name].poll() is not None:
                    break
                time.sleep(0.1)
            log.seek(0)
            raise Problem("%s does not start: %s" % (name, log.read().strip()))

    def start_all(self):
        self.start("qemu-nbd", self.qemu_nbd, "--persistent", "--shared=64",
                   "-k", self.path("qemu-nbd"), "--image-opts",
                   "driver=null-co,size=8G,read-zeroes=off")
        self.start("nbdkit", "nbdkit", "-f", "-U", self.path("nbdkit"), "null",
                   "8G")

    def give(self, cases):
        """Tell the cases their server; [(case, why there is none)]."""
        self.start_all()
        skipped = []
        for one in cases:
            name = one.options["backend"]
            if name in self.missing:
                skipped.append((one, self.missing[name]))
            one.options["backend"] = json.dumps(
                {"driver": "nbd", "server": {"type": "unix",
                                             "path": self.path(name)}})
        return skipped

    def cpu(self):
        """Seconds of CPU time that all of them took."""
        total = 0
        for process in self.processes.values():
            with open("/proc/%d/stat" % process.pid, encoding="utf-8") as file:
                words = file.read().rpartition(")")[2].split()
            total += int(words[11]) + int(words[12])
        return total / TICK


# ------------------------------------------------------------------- report

def shape_of(name):
    return next(s for s in sorted(SHAPES, key=len, reverse=True)
                if name.endswith("-" + s))


def against_one(results, key):
    """Each case's figure divided by that of one IOThread on one connection."""
    rows = []
    for name, title in titles(results, lambda case: True):
        base = name[:-len(shape_of(name))] + "1"
        if name != base:
            rows.append([title] + [
                spread(ratio(results, name, key, subject, subject, base))
                for subject in LABELS])
    return rows


def ratio_tables(results):
    """(title, header, rows)"""
    labels = ["against 1 IOThread, 1 connection", *LABELS.values()]
    return [("IOPS, ratio", labels, against_one(results, "iops")),
            ("CPU of the IOThreads per I/O, ratio", labels,
             against_one(results, "cpu"))]


def sections(results):
    """For benchreport: (title, text)"""
    def all_of(column, others=("stock", "blk")):
        return compare(results, lambda case: True, [column], spread, others)
    return [(title, table(header, rows))
            for title, header, rows in ratio_tables(results)] + [
        ("CPU of the IOThreads per I/O", all_of(CPU)),
        ("IOPS", all_of(IOPS)),
        ("CPU of the server per I/O", all_of(CPU_OF_SERVER)),
        ("Not measured", remarks(results))]


def docs_section(results):
    """What stands in docs/devel/virtio-scsi-backends.rst."""
    return "\n" + "\n".join([heading(results)] + [
        "%s:\n\n%s" % (title, rst_table(header, rows))
        for title, header, rows in ratio_tables(results)]
        + [absolute(results)])


def absolute(results):
    """CPU and IOPS of the first subject, to know what the ratios are of."""
    rows = []
    for name, title in titles(results, lambda case: True):
        rows.append([title] + [
            middle(figure(results, name, "ours", key), factor)
            for key, _, factor in (CPU, CPU_OF_SERVER, IOPS)])
    return rst_table(["ours", "IOThreads: µs CPU per I/O", CPU_OF_SERVER[1],
                      IOPS[1]], rows)
