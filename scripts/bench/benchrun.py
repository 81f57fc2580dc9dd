# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of the load generator (tests/bench/virtio-load.c) or of fio, and the
back ends that the cases use."""

import functools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from benchcases import SUBJECTS
from common import BUILD, Problem, read

WARM_UP = 0.15                  # seconds before each measurement
PATIENCE = 60                   # seconds on top: a run that takes longer hangs


class Unavailable(Problem):
    """Why this machine can't do something; what needs it is skipped."""


# -------------------------------------------------------------------- programs

def add_program_options(parser):
    """Options to say which programs; without, those of the last make."""
    add = parser.add_argument
    add("--binary", metavar="PATH", help="our QEMU; tools beside it are used")
    add("--stock-binary", metavar="PATH", help="the stock QEMU")
    add("--load", metavar="PATH", help="the load generator")
    add("--out", default=os.path.join(BUILD, "bench"), metavar="DIR",
        help="for results and the disk image (default build/bench)")


def find_programs(args):
    """Fill in the options of add_program_options and check them."""
    ours = os.path.join(BUILD, "qemu-system-x86_64")
    obj = os.path.dirname(os.path.realpath(ours))
    full = "-full" if os.path.basename(obj) == "full" else ""
    args.binary = program(args.binary or ours, "run make first")
    args.stock_binary = program(
        args.stock_binary or f"{BUILD}/stock{full}/qemu-system-x86_64",
        "run make stock first")
    args.load = program(args.load or f"{obj}/tests/qtest/virtio-load",
                        "run make bench first")
    args.out = os.path.abspath(args.out)
    os.makedirs(args.out, exist_ok=True)


def program(path, how):
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        raise Problem(f"no program {path}: {how}")
    return os.path.abspath(path)


def output(words, timeout=PATIENCE):
    """Run a program; what it prints, or a Problem."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          errors="replace", start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Problem(f"hung for {timeout:g} s") from None
        finally:                # no QEMU shall stay behind, whatever happened
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    if process.returncode:
        said = err.strip() or out.strip() or "no message"
        raise Problem(f"status {process.returncode}: {said.splitlines()[-1]}")
    return out


# --------------------------------------------------------------- the generator

def command(args, subject, options):
    which, device = SUBJECTS[subject]
    binary = {"ours": args.binary, "stock": args.stock_binary}[which]
    words = [args.load, "--qemu", binary, "--device", device, "--json",
             "--seconds", f"{args.seconds:g}", "--warmup", f"{WARM_UP:g}"]
    for name, value in options.items():
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words


def run(words, timeout):
    """Run the generator; its report as a dictionary, or a Problem."""
    try:
        return json.loads(output(words, timeout).splitlines()[-1])
    except (IndexError, ValueError):
        raise Problem("no JSON in the last line of its output") from None


def figures(report, options):
    """What is compared, out of one report of the generator."""
    try:
        if options.get("rss"):
            return {name + when: report["rss_kib"][when][key]
                    for when in ("idle", "loaded")
                    for name, key in (("rss_", "rss"), ("own_", "anon"))}
        # io_uring's workers do what an IOThread would have done, had it waited
        workers = sum(t["cpu_ns_per_io"] for t in report["threads"]
                      if t["name"].startswith("iou-"))
        found = {"iops": report["iops"],
                 "cpu": report["cpu_ns_per_io"] + workers,
                 "p50": report["latency_us"]["p50"],
                 "p99": report["latency_us"]["p99"]}
        if "flood" in options:
            single = report["queue"][options["flood"]]["latency_us"]
            found.update(single_p50=single["p50"], single_p99=single["p99"])
        if "balance" in options:
            pause, calm = report["pause_us"], report["calm_us"]
            found.update(moves=report["moves"],
                         pause_p50=pause["p50"], pause_max=pause["max"],
                         more_p50=max(0, pause["p50"] - calm["p50"]),
                         more_max=max(0, pause["max"] - calm["max"]))
        return found
    except (KeyError, IndexError, TypeError) as error:
        raise Problem(f"its report has no {error}") from None


# ------------------------------------------------------------------------- fio

BATCH = 16                      # requests submitted and reaped at a time


def fio_command(path, aio, options, seconds):
    """fio's words for a case of the load generator's `options`: the same I/O by
    the same interface of the kernel, and nothing in between."""
    pattern = {"seq": "", "rand": "rand"}[options["pattern"]]
    engine = {"io_uring": "io_uring", "native": "libaio"}[aio]
    words = ["fio", "--name=limit", "--filename=" + path.replace(":", "\\:"),
             "--direct=1", "--thread", f"--ioengine={engine}",
             f"--rw={pattern}{options['rw']}", f"--bs={options['bs']}",
             f"--iodepth={options['depth']}",
             f"--numjobs={options['iothreads']}", "--group_reporting",
             "--norandommap", "--randrepeat=0", "--time_based",
             f"--runtime={seconds * 1000:.0f}ms",
             "--output-format=json"]
    if options["depth"] > 1:
        words += [f"--iodepth_batch_submit={BATCH}",
                  "--iodepth_batch_complete_min=1",
                  f"--iodepth_batch_complete_max={BATCH}", "--gtod_reduce=1"]
    return words


def fio_job(words, timeout=PATIENCE):
    """(fio's report of the job, CPU seconds of all its threads)."""
    def used():
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before = used()
    text = output(words, timeout)
    try:
        return json.loads(text[text.index("{"):])["jobs"][0], used() - before
    except (ValueError, KeyError, IndexError):
        raise Problem("fio made no report") from None


@functools.lru_cache(maxsize=None)
def fio_overhead():
    """CPU seconds that fio needs for itself, whatever it measures."""
    return fio_job(["fio", "--name=none", "--ioengine=null", "--size=4k",
                    "--bs=4k", "--rw=read", "--thread",
                    "--output-format=json"])[1]


def run_fio(words, timeout):
    """One run: (figures to compare, fio's report)."""
    own = fio_overhead()
    job, used = fio_job(words, timeout)
    done = [job[way] for way in ("read", "write") if job[way]["total_ios"]]
    if len(done) != 1 or job["error"]:
        raise Problem(f"fio: error {job['error']}")
    # what the kernel's workers do as well, which are fio's threads
    found = {"iops": done[0]["iops"],
             "cpu": max(0, used - own) * 1e9 / done[0]["total_ios"]}
    times = done[0]["clat_ns"].get("percentile")
    if times:
        found.update(p50=times["50.000000"] / 1e3, p99=times["99.000000"] / 1e3)
    return found, {"job": job, "cpu_seconds": used, "overhead": own}


# ------------------------------------------------------------------- back ends

IMAGE_SIZE = 512 << 20
RAM = "/dev/shm"                # of cases in which no device hides the cost
# {beside}: the folder of our QEMU, {socket}: where the server shall be
SERVERS = {
    "qemu-nbd": ["{beside}/qemu-nbd", "--persistent", "--shared=64", "-k",
                 "{socket}", "--image-opts",
                 "driver=null-co,size=8G,read-zeroes=off"],
    "nbdkit": ["nbdkit", "-f", "-U", "{socket}", "null", "8G"],
}


class Null:
    """Nothing below QEMU."""
    path = None

    def option(self, aio):
        """What the generator's --backend is told; the back end is ready."""
        return "null-co"

    def cpu(self):
        """Seconds of CPU time that its server has taken; None without one."""
        return None

    def close(self):
        """It isn't needed any more."""


class File(Null):
    """A file with O_DIRECT. It is written, not only allocated: reads of blocks
    that were never written don't reach the disk."""

    def __init__(self, path, qemu_io, keep):
        self.path, self.qemu_io, self.keep = path, qemu_io, keep

    def make(self):
        if os.path.exists(self.path) and \
                os.path.getsize(self.path) == IMAGE_SIZE:
            return
        chunk = os.urandom(1 << 20)
        with open(self.path + ".new", "wb") as file:
            for _ in range(IMAGE_SIZE // len(chunk)):
                file.write(chunk)
            os.fsync(file.fileno())
        os.replace(self.path + ".new", self.path)

    def option(self, aio):
        self.make()
        done = subprocess.run(
            [self.qemu_io, "-c", "read -q 0 4k", "--image-opts",
             f"driver=file,filename={self.path.replace(',', ',,')},aio={aio},"
             "cache.direct=on"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"aio={aio}: {done.stdout.strip()[-200:]}")
        return f"file:{self.path}:aio={aio}:direct"

    def close(self):
        if not self.keep and os.path.exists(self.path):
            os.unlink(self.path)


class Server(Null):
    """An NBD server on a Unix socket."""

    def __init__(self, name, folder, beside):
        self.name = name
        self.socket = os.path.join(folder, name)
        self.words = [word.format(beside=beside, socket=self.socket)
                      for word in SERVERS[name]]
        self.process = None

    def start(self):
        if self.process:
            return
        if not shutil.which(self.words[0]):
            raise Unavailable(f"no program {self.words[0]}")
        with open(self.socket + ".log", "w+", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                # ends even if this program is killed
                ["setpriv", "--pdeathsig", "KILL", *self.words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            for _ in range(300):
                with socket.socket(socket.AF_UNIX) as one:
                    if one.connect_ex(self.socket) == 0:
                        return
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
            log.seek(0)
            raise Problem(f"{self.name} does not start: {log.read().strip()}")

    def option(self, connections):
        self.start()
        more = {"multi-conn": int(connections)} if connections else {}
        return json.dumps({"driver": "nbd", **more,
                           "server": {"type": "unix", "path": self.socket}})

    def cpu(self):
        stat = read(f"/proc/{self.process.pid}/stat")
        words = stat.rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()


class Backends:
    """Those of all cases, as long as the `with` block. A case names one; behind
    a colon a file has the interface of the kernel, a server the connections of
    one disk if they are several."""

    def __init__(self, args):
        self.folder = tempfile.mkdtemp(prefix="bench-")
        beside = os.path.dirname(os.path.realpath(args.binary))
        qemu_io = os.path.join(beside, "qemu-io")
        self.all = {
            "null-co": Null(),
            "file": File(os.path.join(args.out, "disk.img"), qemu_io, True),
            "ram": File(f"{RAM}/virtio-scsi-bench-{os.getpid()}.img", qemu_io,
                        False),
            **{name: Server(name, self.folder, beside) for name in SERVERS}}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for backend in self.all.values():
            backend.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def of(self, one):
        return self.all[one.backend.partition(":")[0]]

    @functools.lru_cache(maxsize=None)
    def option(self, name):
        kind, _, aio = name.partition(":")
        return self.all[kind].option(aio)

    def give(self, cases):
        """Tell the cases their back end; {name of a case: why it can't be}."""
        skipped, reasons = {}, {}
        for one in cases:
            try:
                if one.backend not in reasons:
                    one.options["backend"] = self.option(one.backend)
            except Unavailable as reason:
                reasons[one.backend] = str(reason)
            if one.backend in reasons:
                skipped[one.name] = reasons[one.backend]
        return skipped
