# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/bench/bench and scripts/bench/profile measure, and one run of the load
generator (tests/bench/virtio-load.c)."""

import collections
import json
import mmap
import os
import signal
import subprocess

TOP = os.path.abspath(f"{__file__}/../../..")
BUILD = os.path.join(TOP, "build")

# ------------------------------------------------------------ what is measured

SUBJECTS = {                        # name: (binary, device), in running order
    "ours": ("ours", "scsi"),
    "stock": ("stock", "scsi"),
    "blk": ("stock", "blk"),
    "limit": ("fio", None),         # what the kernel can do: files only
}
QEMUS = tuple(name for name in SUBJECTS if name != "limit")

# Options of virtio-load. A deep queue has DEEP requests in flight all the time.
# No interrupts: without KVM the main loop would have to deliver each, and take
# CPU time from the threads that are measured.
DEEP = 128
DEFAULTS = {"backend": "null-co", "queues": 1, "iothreads": 1, "depth": DEEP,
            "bs": 4096, "rw": "read", "pattern": "rand", "interrupts": "off"}

# A file with O_DIRECT; which one and how, FileBackend says.
IMAGE_SIZE = 512 << 20
RAM = "/dev/shm"                # of cases in which no device hides the cost

Case = collections.namedtuple("Case",
                              "name title options subjects core aio ram")


def case(name, title, core=False, aio=None, ram=False, subjects=None, **options):
    """`core`: a goal or the cost model needs it, so it runs in every round.
    `aio`: it uses a file, and fio shows the limit. `ram`: the file is in RAM."""
    if not subjects:
        subjects = tuple(SUBJECTS) if aio else QEMUS
    return Case(name, title, dict(DEFAULTS, **options), subjects, core, aio, ram)


def file_cases():
    for aio in ("io_uring", "native"):
        for size, name in ((4096, "4k"), (65536, "64k")):
            for rw in ("read", "write"):
                for depth, depth_name in ((1, "d1"), (DEEP, "deep")):
                    # goals: reads of 4K with io_uring
                    core = aio == "io_uring" and name == "4k" and rw == "read"
                    yield case("%s-%s-%s-%s" % (aio, name, rw, depth_name),
                               "file %s, %s %s, %s" % (
                                   aio, name.upper(), rw,
                                   "depth 1" if depth == 1 else "deep"),
                               core, aio, bs=size, rw=rw, depth=depth)


def ram_cases():
    """4K in a file in RAM: all that is left is the way there."""
    for aio in ("native", "io_uring"):
        title = "file in RAM, %s, 4K " % aio
        yield case("ram-%s" % aio, title + "read", True, aio, True)
        yield case("ram-%s-nopoll" % aio, title + "read, no polling", True, aio,
                   True, poll_ns=0)
        yield case("ram-%s-write" % aio, title + "write", False, aio, True,
                   rw="write")
        yield case("ram-%s-2" % aio, title + "read, 2 IOThreads, one LUN", False,
                   aio, True, queues=2, iothreads=2)


def all_cases(count_of_cores):
    """The cases in running order. More IOThreads than two need their cores."""
    cases = [
        case("null-1", "null-co, 4K read, 1 IOThread", core=True),
        case("null-2", "null-co, 4K read, 2 IOThreads, one LUN", core=True,
             queues=2, iothreads=2),
        case("null-d1", "null-co, 4K read, depth 1", core=True, depth=1),
        case("seq-64k", "file io_uring, 64K sequential read", core=True,
             aio="io_uring", bs=65536, pattern="seq"),
        case("null-seq-64k", "null-co, 64K sequential read", core=True,
             bs=65536, pattern="seq"),
        case("rss", "memory, 16 queues x 1024", core=True,
             # a pool of threads takes whatever it gets: all is in flight
             subjects=("ours", "stock"), queues=16, depth=1024, ring_size=1024,
             indirect=True, aio="threads", rss=True),
        *ram_cases(),
        *file_cases(),
        case("io_uring-2", "file io_uring, 4K read, 2 IOThreads, one LUN",
             aio="io_uring", queues=2, iothreads=2),
        case("fair", "one queue full, p99 of the other's single reads",
             subjects=("ours", "stock"), queues=2, flood=1),
        case("drain-0", "null-co, 4K read, depth 4, beside an idle disk",
             core=True, subjects=("ours", "stock"), depth=4),
        case("drain-50", "the same, that disk is drained 50 times a second",
             core=True, subjects=("ours", "stock"), depth=4, drains=50),
        case("16q-4t", "null-co, 16 queues on 4 IOThreads, no polling",
             queues=16, iothreads=4, depth=32, poll_ns=0),
        case("64q-4t", "null-co, 64 queues on 4 IOThreads, no polling",
             queues=64, iothreads=4, depth=8, poll_ns=0),
        case("packed", "null-co, 4K read, packed ring", ring="packed"),
        case("indirect", "null-co, 4K read, indirect descriptors (as Linux)",
             indirect=True),
        case("indirect-2", "null-co, 4K read, indirect, 2 IOThreads",
             indirect=True, queues=2, iothreads=2),
        case("irq", "null-co, 4K read, with interrupts", interrupts="on"),
    ]
    for count in (4, 8, 16):
        if count == 4 or count < count_of_cores:
            cases.append(case("null-%d" % count, "null-co, 4K read, %d IOThreads,"
                              " one LUN" % count, core=count < count_of_cores,
                              queues=count, iothreads=count))
    return cases


WARM_UP = 0.15                  # seconds before each measurement
PATIENCE = 60                   # seconds on top: a run that takes longer hangs


class Problem(Exception):
    """Something to tell the user in one line."""


# ------------------------------------------------------------------ one run

def command(load, binary, device, options, seconds):
    words = [load, "--qemu", binary, "--device", device, "--json",
             "--seconds", "%g" % seconds, "--warmup", "%g" % WARM_UP]
    for name, value in options.items():
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words


def output(words, timeout):
    """Run a program; what it prints, or a Problem."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Problem("hung for %d s" % timeout)
    finally:
        kill_session(process)
    lines = out.decode(errors="replace").strip().splitlines()
    said = err.decode(errors="replace").strip().splitlines()
    if process.returncode:
        ended = ("signal %d" % -process.returncode if process.returncode < 0
                 else "status %d" % process.returncode)
        raise Problem("%s: %s" % (ended, (said or lines or ["no message"])[-1]))
    return "\n".join(lines)


def run(words, timeout):
    """Run the generator; its report as a dictionary, or a Problem."""
    lines = output(words, timeout).splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        raise Problem("no JSON in the last line of its output")


def kill_session(process):
    """No QEMU shall stay behind, whatever happened."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.stdout.close()
    process.stderr.close()
    process.wait()


def figures(report, options):
    """What is compared, out of one report of the generator."""
    try:
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
        if options.get("rss"):
            found = {name + when: report["rss_kib"][when][key]
                     for when in ("idle", "loaded")
                     for name, key in (("rss_", "rss"), ("own_", "anon"))}
    except (KeyError, IndexError, TypeError) as error:
        raise Problem("its report has no %s" % error)
    return found


# ------------------------------------------------------- programs and files

def cores():
    return len(os.sched_getaffinity(0))


def add_program_options(parser):
    """Options to say which programs; without, those of the last make."""
    add = parser.add_argument
    add("--binary", metavar="PATH", help="our QEMU; qemu-io beside it is used")
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
        args.stock_binary
        or os.path.join(BUILD, "stock" + full, "qemu-system-x86_64"),
        "run make stock first")
    args.load = program(
        args.load or os.path.join(obj, "tests", "qtest", "virtio-load"),
        "run scripts/build/build-qemu bench first")
    os.makedirs(args.out, exist_ok=True)
    args.out = os.path.abspath(args.out)


def program(path, how):
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        raise Problem("no program %s: %s" % (path, how))
    return os.path.abspath(path)


class FileBackend:
    """The file that cases with `aio` use. It is written, not only allocated:
    reads of blocks that were never written don't reach the disk."""

    def __init__(self, folder, qemu_io, name="disk.img"):
        self.path = os.path.join(folder, name)
        self.qemu_io = qemu_io

    def remove(self):
        if os.path.exists(self.path):
            os.unlink(self.path)

    def option(self, aio):
        return "file:%s:aio=%s:direct" % (self.path, aio)

    def make(self):
        if (os.path.exists(self.path)
                and os.path.getsize(self.path) == IMAGE_SIZE):
            return
        chunk = os.urandom(1 << 20)
        with open(self.path + ".new", "wb") as file:
            for _ in range(IMAGE_SIZE // len(chunk)):
                file.write(chunk)
            os.fsync(file.fileno())
        os.replace(self.path + ".new", self.path)

    def why_not(self, aio):
        """Why this machine can't do that, or None."""
        try:
            self.make()
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
            with mmap.mmap(-1, 4096) as page:
                os.preadv(handle, [page], 0)
            os.close(handle)
        except OSError as error:
            return "O_DIRECT in %s: %s" % (os.path.dirname(self.path),
                                           error.strerror)
        result = subprocess.run(
            [self.qemu_io, "-c", "read -q 0 4k", "--image-opts",
             "driver=file,filename=%s,aio=%s,cache.direct=on"
             % (self.path.replace(",", ",,"), aio)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, universal_newlines=True)
        if result.returncode:
            return "aio=%s: %s" % (aio, result.stdout.strip()[-200:])
        return None


class Files:
    """The files of all cases; that in RAM goes when it isn't needed any more."""

    def __init__(self, args):
        qemu_io = os.path.join(os.path.dirname(os.path.realpath(args.binary)),
                               "qemu-io")
        self.disk = FileBackend(args.out, qemu_io)
        self.ram = FileBackend(RAM, qemu_io,
                               "virtio-scsi-bench-%d.img" % os.getpid())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ram.remove()

    def of(self, one):
        return self.ram if one.ram else self.disk

    def give(self, cases):
        """Tell cases with `aio` their file; [(case, why it can't be)]."""
        reasons = {}
        skipped = []
        for one in (c for c in cases if c.aio):
            key = one.aio, one.ram
            if key not in reasons:
                reasons[key] = self.of(one).why_not(one.aio)
            if reasons[key]:
                skipped.append((one, reasons[key]))
            else:
                one.options["backend"] = self.of(one).option(one.aio)
        return skipped
