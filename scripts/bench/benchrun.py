# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of the load generator (tests/bench/virtio-load.c) or of fio, and the
back ends that the cases use."""

from functools import lru_cache, partial
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

from benchcases import SUBJECTS
from common import BUILD, TOP, Problem, read

sys.path.append(f"{TOP}/tests/functional")
import ceph_cluster
import iscsi_target
import nbd_server

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


def find_programs(args, net=False):
    """Fill in the options of add_program_options and check them; `net`: QEMUs
    with the drivers of iSCSI and RBD."""
    obj = os.path.dirname(os.path.realpath(f"{BUILD}/qemu-system-x86_64"))
    kind = "-storage" * net or "-full" * obj.endswith("/full")
    how = f"run make bench{'-net' * net} first"
    args.binary = program(args.binary or os.path.join(
        BUILD, "storage" * net, "qemu-system-x86_64"), how)
    args.stock_binary = program(
        args.stock_binary or f"{BUILD}/stock{kind}/qemu-system-x86_64", how)
    args.load = program(args.load or f"{obj}/tests/qtest/virtio-load", how)
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


@lru_cache(maxsize=None)
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

IMAGE_SIZE, NETWORK_SIZE = 512 << 20, 64 << 20
RAM = "/dev/shm"                # of cases in which no device hides the cost


def fill(path, size):
    """A file of random data, all or nothing."""
    chunk = os.urandom(1 << 20)
    with open(path + ".new", "wb") as file:
        for _ in range(size // len(chunk)):
            file.write(chunk)
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


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

    def option(self, aio):
        if not os.path.exists(self.path) or \
                os.path.getsize(self.path) != IMAGE_SIZE:
            fill(self.path, IMAGE_SIZE)
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
    """Of network disks, up from the first case on that has one."""

    def __init__(self, args, driver, programs, begin, *disk):
        self.binaries = args.binary, args.stock_binary
        self.driver, self.programs = driver, programs
        self.begin, self.disk, self.up = begin, disk, None

    def option(self, connections):
        missing = [name for name in self.programs if not shutil.which(name)]
        if missing:
            raise Unavailable(f"no program {', '.join(missing)}")
        for path in self.binaries:
            if self.driver not in output([path, "-drive",
                                          "format=help"]).split():
                raise Unavailable(f"{path} has no driver {self.driver}")
        self.up = self.up or self.begin()
        more = {"multi_conn": int(connections)} if connections else {}
        return json.dumps(self.up.node(*self.disk, **more))

    def cpu(self):
        found = [read(f"/proc/{process.pid}/stat").rpartition(")")[2].split()
                 for process in self.up.daemons()]
        return sum(int(words[11]) + int(words[12])
                   for words in found) / os.sysconf("SC_CLK_TCK")

    def close(self):
        if self.up:
            self.up.end()


def begin_iscsi(folder):
    target = iscsi_target.Target(folder)
    fill(target.path(1), NETWORK_SIZE)
    target.add(1, NETWORK_SIZE)
    return target.start()


def begin_rbd(folder):
    cluster = ceph_cluster.Cluster(folder, 1).start()
    fill(f"{folder}/data", NETWORK_SIZE)
    cluster.rbd("import", f"{folder}/data", "disk")
    return cluster


def servers(args, folder):
    """Those of NBD hold no data, so that the way there is measured."""
    beside = os.path.dirname(os.path.realpath(args.binary))
    nbd = {"qemu-nbd": [f"{beside}/qemu-nbd", "--persistent", "--shared=64",
                        "--image-opts", "driver=null-co,size=8G,read-zeroes="
                        "off", "-k", f"{folder}/qemu-nbd"],
           "nbdkit": ["nbdkit", "-f", "-U", f"{folder}/nbdkit", "null", "8G"]}
    return {**{name: Server(args, "nbd", words[:1], nbd_server.NbdProgram(
                   f"{folder}/{name}", words).start)
               for name, words in nbd.items()},
            "iscsi": Server(args, "iscsi", [iscsi_target.TGTD or "tgtd"],
                            partial(begin_iscsi, args.out), 1),
            "rbd": Server(args, "rbd", ceph_cluster.PROGRAMS, partial(
                begin_rbd, f"{args.out}/ceph"), "disk")}


class Backends:
    """Those of all cases, as long as the `with` block. A case names one; behind
    a colon a file has the interface of the kernel, a server the connections of
    one disk if they are several."""

    def __init__(self, args):
        self.folder = tempfile.mkdtemp(prefix="bench-")
        qemu_io = os.path.join(os.path.dirname(os.path.realpath(args.binary)),
                               "qemu-io")
        self.all = {
            "null-co": Null(),
            "file": File(os.path.join(args.out, "disk.img"), qemu_io, True),
            "ram": File(f"{RAM}/virtio-scsi-bench-{os.getpid()}.img", qemu_io,
                        False),
            **servers(args, self.folder)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for backend in self.all.values():
            backend.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def of(self, one):
        return self.all[one.backend.partition(":")[0]]

    @lru_cache(maxsize=None)
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
