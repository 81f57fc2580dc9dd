#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of scripts/bench/bench and scripts/bench/profile (TAP): statistics of
known data, and whole runs in which scripts play load generator, QEMU and perf.
No build is needed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
SCRIPTS = os.path.join(TOP, "scripts", "bench")
sys.path[:0] = [SCRIPTS, os.path.dirname(SCRIPTS)]
from common import load        # it finds the others
import benchcases
import benchreport

# Plays virtio-load: notes its arguments, reports figures that depend on what
# was asked for. $FAKE_FAIL: the binary and device for which it fails.
FAKE_LOAD = r'''#!/usr/bin/python3
import json, os, sys
words = dict(zip(sys.argv[1::1], sys.argv[2::1]))
here = os.path.dirname(os.path.abspath(__file__))
who = os.path.basename(words["--qemu"]) + "-" + words["--device"]
with open(os.path.join(here, "calls"), "a") as log:
    log.write("%s %s\n" % (who, " ".join(sys.argv[1:])))
if os.environ.get("FAKE_BUILD"):
    os.utime(os.path.join(here, "ours"), (1, 1))
if os.environ.get("FAKE_FAIL") == who:
    sys.exit("virtio-load: QEMU died of a cold")
if os.environ.get("FAKE_SILENT") == who:
    sys.exit(0)
cpu = {"ours-scsi": 2000, "stock-scsi": 4000, "stock-blk": 2500}[who]
cpu += 100 * int(words["--iothreads"])
latency = {"mean": 9, "p50": 8, "p99": 20, "p999": 30, "max": 40}
print("some text for people")
if "--exec" in words:
    os.environ["QEMU_PID"] = "%d" % os.getpid()
    with open("/proc/self/comm", "w") as file:
        file.write("IO iothread0")
    os.system(words["--exec"])
print(json.dumps({
    "iops": 1e9 / cpu, "cpu_ns_per_io": cpu, "latency_us": latency,
    "threads": [{"name": "IO io0", "cpu_ns_per_io": cpu}],
    "queue": [{"iops": 1, "latency_us": latency}] * int(words["--queues"]),
    "rss_kib": {"idle": {"rss": 2048, "anon": 1024},
                "loaded": {"rss": 4096, "anon": 2048}},
    "ios": 100, "moves": 3 if words.get("--balance") == "on" else 0,
    "pause_us": dict(latency, max=60000), "calm_us": dict(latency, p50=6)}))
'''

# Plays perf, which the generator starts: what it records is its report.
FAKE_PERF = r'''#!/bin/sh
[ -z "$FAKE_PERF_FAIL" ] || { echo not permitted; exit 1; }
case $1 in
record) while [ "$1" != -o ]; do shift; done
        echo ' 40.00%|qemu-system-x86_64|[.] some_function' > "$2" ;;
report) cat "$3" ;;
esac
'''

# Plays fio. $FAKE_FIO_FAIL: what its job's error is.
FAKE_FIO = r'''#!/usr/bin/python3
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "calls"), "a") as log:
    log.write("fio %s\n" % " ".join(sys.argv[1:]))
read = {"total_ios": 1000, "iops": 500000, "clat_ns": {}}
if "--iodepth=1" in sys.argv:
    read["clat_ns"]["percentile"] = {"50.000000": 4000, "99.000000": 8000}
print("fio: some warning")
print(json.dumps({"jobs": [{
    "error": int(os.environ.get("FAKE_FIO_FAIL", 0)), "read": read,
    "write": {"total_ios": 0}}]}, indent=1))
'''

FAKE_QEMU = '''#!/bin/sh
case $1 in
-drive) echo Supported formats: iscsi nbd rbd ;;
*) echo "QEMU emulator version 10.0.99 (fake)" ;;
esac
'''
FAKE_QEMU_IO = '#!/bin/sh\n[ ! -e "${0%/*}/broken" ] || { echo no such aio; exit 1; }\n'

# Plays qemu-nbd: takes connections, and notes that it runs.
FAKE_NBD = r'''#!/usr/bin/python3
import os, socket, sys
with open(os.path.join(os.path.dirname(__file__), "servers"), "a") as file:
    file.write("%d\n" % os.getpid())
if os.environ.get("FAKE_NBD_FAIL"):
    sys.exit("qemu-nbd: no room on the harbour")
one = socket.socket(socket.AF_UNIX)
one.bind(sys.argv[sys.argv.index("-k") + 1])
one.listen()
while True:
    one.accept()[0].sendall(b"NBDMAGIC")
'''

# Plays the daemons of Ceph and iSCSI, and ceph itself, which says that all is
# well.
FAKE_DAEMON = r'''#!/bin/sh
case " $* " in
*" -f "*) echo $$ >> "${0%/*}/servers"; exec sleep 600 ;;
esac
echo "1 osds: 1 up,"
'''

PAGE = "docs/devel/virtio-scsi-cost.rst"
tests = []


def test(function):
    tests.append(function)
    return function


def same(found, wanted):
    assert found == wanted, "%r instead of %r" % (found, wanted)


def results_of(figures):
    """Results with runs from {(case, subject): {round: {metric: value}}}."""
    return {"runs": [
        {"case": case, "subject": subject, "round": i, "figures": values}
        for (case, subject), rounds in figures.items()
        for i, values in rounds.items()]}


class Room:
    """A folder with a fake of everything that scripts/bench/bench starts."""

    def __init__(self, folder):
        self.folder = folder
        self.out = os.path.join(folder, "out")
        os.makedirs(os.path.dirname(self.path(PAGE)))
        for name, text in (("virtio-load", FAKE_LOAD), ("ours", FAKE_QEMU),
                           ("stock", FAKE_QEMU), ("qemu-io", FAKE_QEMU_IO),
                           ("perf", FAKE_PERF), ("fio", FAKE_FIO)):
            self.program(name, text)

    def program(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        os.chmod(self.path(name), 0o755)

    def path(self, name):
        return os.path.join(self.folder, name)

    def bench(self, *words, **env):
        return self.script("bench", "--docs", self.folder, *words, **env)

    def profile(self, *words, **env):
        return self.script("profile", *words, **env)

    def script(self, name, *words, **env):
        return subprocess.run(
            [sys.executable, os.path.join(SCRIPTS, name), "--out", self.out,
             "--binary", self.path("ours"),
             "--stock-binary", self.path("stock"),
             "--load", self.path("virtio-load"), *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, universal_newlines=True,
            env=dict(os.environ, **{
                "PATH": self.folder + ":" + os.environ["PATH"], **env}),
            timeout=300)

    def results(self):
        with open(os.path.join(self.out, "results.json")) as file:
            return json.load(file)

    def calls(self):
        with open(self.path("calls")) as file:
            return file.read().splitlines()


## Statistics

@test
def medians(room):
    same(benchreport.summary([4, 1, 3, 2]), (2.5, 1, 4))
    same(benchreport.summary([]), None)


@test
def ratios_pair_what_ran_in_one_round(room):
    # the machine is twice as slow in round 1: the pairs don't notice
    results = results_of({
        ("c", "ours"): {0: {"cpu": 10}, 1: {"cpu": 20}, 2: {"cpu": 12}},
        ("c", "stock"): {0: {"cpu": 20}, 1: {"cpu": 40}, 3: {"cpu": 1}}})
    same(benchreport.ratio(results, "c", "cpu", "ours", "stock"), (0.5,) * 3)
    same(benchreport.ratio(results, "c", "cpu", "ours", "blk"), None)


@test
def ratio_of_two_cases(room):
    results = results_of({("one", "ours"): {0: {"cpu": 10}},
                          ("two", "ours"): {0: {"cpu": 11}}})
    same(benchreport.ratio(results, "two", "cpu", "ours", "ours", "one"),
         (1.1,) * 3)


@test
def goals_are_judged_by_the_median(room):
    wanted = benchcases.goal("t", "c", "cpu", "<=", 0.5, "stock")
    results = results_of({
        ("c", "ours"): {i: {"cpu": v, "more_max": v}
                        for i, v in enumerate((40, 50, 90))},
        ("c", "stock"): {i: {"cpu": 100} for i in range(3)}})
    found, reached = benchreport.judge(results, wanted)
    same((found.median, reached), (0.5, True))
    same(benchreport.judge(results, wanted._replace(limit=0.49))[1], False)
    same(benchreport.judge(results, wanted._replace(sense=">="))[1], True)
    same(benchreport.judge(results, wanted._replace(case="d")), (None, None))
    # what is the worst of all isn't made better by other rounds
    worst = benchcases.goal("t", "c", "more_max", "<=", 60)
    same(benchreport.judge(results, worst)[1], False)


@test
def every_goal_has_a_case_in_each_round(room):
    for name, this in benchcases.SETS.items():
        core = {c.name: c for c in benchcases.SETS[name].cases() if c.core}
        for one in this.goals:
            for case in (one.case, one.base):
                assert case in core, "no core case %s" % case
                assert (one.against or "ours") in core[case].subjects, one
        for one in core.values():
            assert one.base is None or one.base in core, one


## Runs

def heads(calls):
    return [call.split()[0] for call in calls]


@test
def rounds_are_interleaved(room):
    done = room.bench("--only", "null-1", "--only", "fair", "--rounds", "2")
    same((done.returncode, done.stdout != ""), (0, True))
    same(heads(room.calls()), [
        "ours-scsi", "stock-scsi", "stock-blk", "ours-scsi", "stock-scsi",
        "stock-scsi", "stock-blk", "ours-scsi", "stock-scsi", "ours-scsi"])
    results = room.results()
    same([(r["case"], r["subject"], r["round"]) for r in results["runs"]][:5],
         [("null-1", "ours", 0), ("null-1", "stock", 0), ("null-1", "blk", 0),
          ("fair", "ours", 0), ("fair", "stock", 0)])


@test
def results_hold_raw_runs_and_the_machine(room):
    room.bench("--only", "null-", "--rounds", "1")
    results = room.results()
    same(sorted(results), ["cases", "failures", "machine", "qemu", "runs",
                           "settings"])
    same(results["qemu"]["ours"], "QEMU emulator version 10.0.99 (fake)")
    for key in ("cpu", "cores", "kernel", "date"):
        assert results["machine"][key], key
    run = results["runs"][0]
    same(run["report"]["cpu_ns_per_io"], 2100)
    same(run["figures"]["cpu"], 2100)


@test
def options_reach_the_generator(room):
    room.bench("--only", "64q", "--only", "rss", "--rounds", "1",
               "--seconds", "0.25")
    rss, many = [next(c for c in room.calls() if t in c)
                 for t in ("--rss", "--queues 64")]
    for words in ("--json", "--seconds 0.25", "--iothreads 4", "--poll-ns 0"):
        assert words in many, "%s is missing in: %s" % (words, many)
    # a value that is only a switch has no word behind it
    assert "--rss True" not in rss, rss


@test
def tables_say_what_results_say(room):
    done = room.bench("--only", "null-1", "--only", "null-2", "--rounds", "3")
    # 2100 / 4100 ns, 2200 / 2100 ns
    for text in ("0.51 (0.51-0.51)", "reached", "1.05 (1.05-1.05)", "2.10",
                 "not measured", "| ours "):
        assert text in done.stdout, "no %s in:\n%s" % (text, done.stdout)
    with open(os.path.join(room.out, "results.md")) as file:
        markdown = file.read()
    assert "10.0.99 (fake)" in markdown and "0.51 (0.51-0.51)" in markdown
    for block in markdown.split("\n\n"):
        lines = [l for l in block.splitlines() if l.startswith("|")]
        assert len({l.count("|") for l in lines}) <= 1, block
        assert len({len(l) for l in lines}) <= 1, block


@test
def a_failing_run_is_named_and_fails(room):
    done = room.bench("--only", "null-1", "--rounds", "3",
                      FAKE_FAIL="stock-scsi")
    same(done.returncode, 1)
    assert "null-1, stock: status 1: virtio-load: QEMU died of a cold" \
        in done.stderr, done.stderr
    # the others are measured all the same, the failed one isn't tried again
    same(heads(room.calls()).count("stock-scsi"), 1)
    same(heads(room.calls()).count("ours-scsi"), 3)
    same(len(room.results()["failures"]), 1)


@test
def a_run_without_report_fails(room):
    done = room.bench("--only", "null-1", "--rounds", "1",
                      FAKE_SILENT="ours-scsi")
    same(done.returncode, 1)
    assert "null-1, ours: no JSON" in done.stderr, done.stderr


@test
def a_build_meanwhile_ends_the_run(room):
    done = room.bench("--only", "null-1", "--rounds", "2", FAKE_BUILD="1")
    same(done.returncode, 1)
    assert "QEMU was built anew meanwhile" in done.stderr, done.stderr
    assert not os.path.exists(os.path.join(room.out, "results.json"))


@test
def balance_cases_run_as_long_as_they_need(room):
    done = room.bench("--balance", "--rounds", "2", "--seconds", "0.3")
    same((done.returncode, done.stderr.count("FAILED")), (0, 0))
    calls = room.calls()
    same(len(calls), 2 * len(list(benchcases.SETS["balance"].cases())))
    same({head.split()[0] for head in calls}, {"ours-scsi"})
    for call in calls:
        words = call.split()
        # the last one counts
        last = len(words) - 1 - words[::-1].index("--seconds")
        assert words[last + 1] in ("1", "2", "6", "20", "60"), call
    assert "2 rounds of 1 to 60 s" in done.stdout, done.stdout
    on = next(c for c in calls if "--balance on" in c and "--shift 5" in c)
    assert "--hot 0,4;1,5;2,6;3,7" in on and "--iothreads 4" in on, on
    assert any("--remap 5" in c for c in calls)
    with open(os.path.join(room.out, "balance", "results.json")) as file:
        runs = json.load(file)["runs"]
    same({r["figures"]["moves"] for r in runs if r["case"] == "even-on"}, {3})


@test
def balance_goals_say_what_results_say(room):
    done = room.bench("--balance", "--rounds", "1")
    rows = {row.split("|")[1].strip(): row for row in done.stdout.splitlines()
            if row.startswith("| ")}
    for title, found, verdict in (
            ("even load: moves in 60 s", "3.00 (3.00-3.00)", "missed"),
            ("even load: IOPS", "1.00 (1.00-1.00)", "reached"),
            ("change of mapping: pause beyond that without, µs", "2.00",
             "reached"),
            ("the same, the longest", "59960", "missed")):
        row = rows[title]
        assert found in row and verdict in row, row
    done = room.bench("--balance", "--report")
    assert "even load: moves" in done.stdout, done.stdout + done.stderr


@test
def balance_has_a_place_in_the_cost_page(room):
    done = room.bench("--balance", "--net")
    same((done.returncode, "not allowed with" in done.stderr), (2, True))
    room.bench("--balance", "--rounds", "5")
    with open(room.path(PAGE), "w", encoding="utf-8") as file:
        file.write("before\n.. balance:begin\nold\n.. balance:end\nbehind\n")
    done = room.bench("--balance", "--update-readme")
    same((done.returncode, done.stderr), (0, ""))
    with open(room.path(PAGE), encoding="utf-8") as file:
        text = file.read()
    assert "old" not in text and "behind" in text, text
    assert "even load: moves in 60 s" in text, text


@test
def network_ratios_are_to_one_iothread(room):
    results = results_of({
        ("nbdkit-read-1", "ours"): {0: {"iops": 100, "cpu": 10}},
        ("nbdkit-read-2", "ours"): {0: {"iops": 50, "cpu": 30}},
        ("nbdkit-multi-read-1", "ours"): {0: {"iops": 100, "cpu": 10}},
        ("nbdkit-multi-read-2", "ours"): {0: {"iops": 200, "cpu": 10}}})
    results["cases"] = [one._asdict() for one in benchcases.SETS["net"].cases()]
    for metric, wanted in (("iops", ["0.50 (0.50-0.50)", "2.00 (2.00-2.00)"]),
                           ("cpu", ["3.00 (3.00-3.00)", "1.00 (1.00-1.00)"])):
        same([row[1] for row in benchreport.to_base(results, False, metric)[1]],
             wanted)


def no_server_is_left(room):
    with open(room.path("servers")) as file:
        for pid in file.read().split():
            assert not os.path.exists("/proc/" + pid), "a server is left"


def net(room, *only, **env):
    """Run these cases of the set; (what it says, {case: its first call})."""
    room.program("qemu-nbd", FAKE_NBD)
    words = [word for text in only for word in ("--only", text)]
    done = room.bench("--net", "--rounds", "1", *words, **env)
    same((done.returncode, done.stderr.count("FAILED")), (0, 0))
    with open(os.path.join(room.out, "net", "results.json")) as file:
        results = json.load(file)
    calls = {run["case"]: call for run, call in
             reversed(list(zip(results["runs"], room.calls())))}
    for run in results["runs"]:
        assert run["figures"]["server_cpu"] >= 0, run
    no_server_is_left(room)
    return done.stdout, calls


@test
def nbd_cases_have_a_server(room):
    said, calls = net(room, "qemu-nbd-read-2", "qemu-nbd-multi-read-2")
    assert "multi-conn" not in calls["qemu-nbd-read-2"], calls
    assert '"multi-conn": 4' in calls["qemu-nbd-multi-read-2"], calls
    assert '/qemu-nbd"}' in calls["qemu-nbd-read-2"], calls
    # stock has no such option
    same(heads(room.calls()), ["ours-scsi", "stock-scsi", "stock-blk",
                               "ours-scsi"])
    assert "qemu-nbd, multi-conn=4, 4K read, 2 IOThreads" in said, said
    done = room.bench("--net", "--only", "qemu-nbd-", FAKE_NBD_FAIL="1")
    same((done.returncode, done.stderr),
         (1, "bench: qemu-nbd ended: qemu-nbd: no room on the harbour\n"))


@test
def iscsi_cases_have_a_target(room):
    room.program("tgtd", FAKE_DAEMON)
    room.program("tgtadm", "#!/bin/sh\n")
    _, calls = net(room, "iscsi-read-4", "scsi-block-write-2")
    for case, words in (("iscsi-read-4", "--iothreads 4"),
                        ("scsi-block-write-2", "--disk scsi-block")):
        assert words in calls[case], calls
        assert '"driver": "iscsi"' in calls[case] and '"lun": 1' in calls[case]
    assert "--disk" not in calls["iscsi-read-4"], calls
    # what is passed through is no disk of virtio-blk
    same(heads(room.calls()), ["ours-scsi", "stock-scsi", "stock-blk",
                               "ours-scsi", "stock-scsi"])


@test
def rbd_cases_have_a_cluster(room):
    for name in ("ceph", "rbd", "monmaptool", "ceph-mon", "ceph-osd"):
        room.program(name, FAKE_DAEMON)
    _, calls = net(room, "rbd-read-1")
    assert '"driver": "rbd"' in calls["rbd-read-1"], calls
    same(heads(room.calls()), ["ours-scsi", "stock-scsi", "stock-blk"])
    assert not os.path.exists(os.path.join(room.out, "net", "ceph"))


def skipped(room, only, **env):
    done = room.bench("--net", "--only", only, "--rounds", "1", **env)
    same((done.returncode, done.stderr), (0, ""))
    assert not os.path.exists(room.path("calls"))
    return done.stdout


@test
def network_disks_that_cant_be_are_skipped_with_the_reason(room):
    said = skipped(room, "qemu-nbd-read-1")
    assert "- skipped: qemu-nbd, 4K read, 1 IOThread: no program " in said, said
    os.symlink(sys.executable, room.path("python3"))
    said = skipped(room, "rbd-write-4", PATH=room.folder)
    assert "no program ceph, rbd, ceph-mon" in said, said
    room.program("qemu-nbd", FAKE_NBD)
    room.program("stock", FAKE_QEMU.replace("nbd", ""))
    said = skipped(room, "qemu-nbd-read-1")
    assert "/stock has no driver nbd" in said, said


@test
def bad_input_is_one_line(room):
    for words, text in ((["--only", "nonsense"], "no case has nonsense"),
                        (["--load", "/nowhere"], "no program /nowhere"),
                        (["--report"], "run make bench first")):
        done = room.bench(*words)
        same((done.returncode != 0, len(done.stderr.splitlines())), (True, 1))
        assert text in done.stderr, done.stderr


@test
def damaged_results_are_named(room):
    room.bench("--only", "null-1", "--rounds", "1")
    path = os.path.join(room.out, "results.json")
    with open(path) as file:
        whole = file.read()
    for text in (whole[:-20], "\udc80", "[]", "{}", "7"):
        with open(path, "w", errors="surrogateescape") as file:
            file.write(text)
        for option in ("--report", "--update-readme"):
            done = room.bench(option)
            same((done.returncode, done.stdout, done.stderr), (
                1, "", f"bench: {path} is damaged: run make bench again\n"))


@test
def minor_cases_have_fewer_rounds(room):
    room.bench("--only", "null-1", "--only", "packed", "--rounds", "5")
    calls = room.calls()
    packed = [c for c in calls if "packed" in c]
    same((len(calls) - len(packed), len(packed)), (15, 9))


@test
def what_the_machine_cant_do_is_skipped_with_the_reason(room):
    with open(room.path("broken"), "w"):
        pass
    done = room.bench("--only", "native-4k-read", "--only", "null-d1",
                      "--rounds", "1")
    same(done.returncode, 0)
    assert not [c for c in room.calls() if "aio=native" in c or "fio" in c]
    same(len(room.calls()), 3)
    assert "no such aio" in done.stdout, done.stdout


@test
def a_file_is_written_and_used_with_o_direct(room):
    done = room.bench("--only", "io_uring-4k-read-d1", "--rounds", "1")
    calls = [c for c in room.calls() if not c.startswith("fio ")]
    same(len(calls), 3)
    assert all("file:%s/disk.img" % room.out in c and "direct" in c
               for c in calls), calls
    same(os.path.getsize(os.path.join(room.out, "disk.img")), 512 << 20)
    fio = [c for c in room.calls() if "--filename" in c]
    same(len(fio), 1)
    for word in ("--filename=%s/disk.img" % room.out, "--ioengine=io_uring",
                 "--direct=1", "--iodepth=1 ", "--bs=4096", "--rw=randread"):
        assert word in fio[0], (word, fio)
    run = next(r for r in room.results()["runs"] if r["subject"] == "limit")
    same((run["figures"]["iops"], run["figures"]["p50"], run["figures"]["p99"]),
         (500000, 4, 8))


def files_in_ram():
    return [f for f in os.listdir("/dev/shm") if f.startswith("virtio-scsi-b")]


@test
def the_limit_stands_beside_the_case(room):
    before = files_in_ram()
    done = room.bench("--only", "ram-native-nopoll", "--rounds", "1")
    same(done.returncode, 0)
    same(heads(room.calls()), ["ours-scsi", "stock-scsi", "stock-blk", "fio",
                               "fio"])      # what fio needs for itself, as well
    assert "poll-ns 0" in room.calls()[0], room.calls()
    row = [l for l in done.stdout.splitlines() if "RAM, native" in l][-1]
    assert "| 500 (500-500) |" in row, row
    assert " ours / fio " in done.stdout, done.stdout
    same(files_in_ram(), before)


@test
def an_error_of_fio_is_a_failed_run(room):
    done = room.bench("--only", "io_uring-4k-read-d1", "--rounds", "1",
                      FAKE_FIO_FAIL="5")
    same(done.returncode, 1)
    assert "limit: fio: error 5" in done.stdout + done.stderr, done.stderr


@test
def without_fio_the_limit_isnt_measured(room):
    os.unlink(room.path("fio"))
    os.symlink(sys.executable, room.path("python3"))
    done = room.bench("--only", "io_uring-4k-read-d1", "--rounds", "1",
                      PATH=room.folder)
    same(done.returncode, 0)
    assert "the limit isn't measured: no fio" in done.stderr, done.stderr
    assert "limit" not in [r["subject"] for r in room.results()["runs"]]


## README

README = ("# A\n\nbefore\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n"
          "after\n")


@test
def markers_bound_what_is_replaced(room):
    update, path = load("bench").update, room.path("text")
    for text in (README, "none", README + "[end]", "[end][begin]"):
        text = text.replace("<!-- bench:begin -->", "[begin]") \
            .replace("<!-- bench:end -->", "[end]")
        with open(path, "w") as file:
            file.write(text)
        try:
            update(path, "new\n\n", "[begin]", "[end]")
        except load("bench").Problem:
            assert "old" not in text or text.count("[end]") > 1
            continue
        with open(path) as file:
            same(file.read(), text.replace("old", "new"))
        assert text.count("[end]") == 1 and "old" in text, "took %r" % text


@test
def readme_gets_tables_and_chart(room):
    if not shutil.which("gnuplot"):
        return "no gnuplot"
    with open(room.path("README.md"), "w") as file:
        file.write(README)
    with open(room.path(PAGE), "w") as file:
        file.write("page\n.. bench:begin\nold\n.. bench:end\nend\n")
    room.bench("--only", "null-", "--rounds", "5")
    called = len(room.calls())
    done = room.bench("--update-readme")
    same((done.returncode, done.stderr), (0, ""))
    same(len(room.calls()), called)             # nothing is run
    with open(room.path("README.md")) as file:
        text = file.read()
    assert "| null-co, 4K read, 1 IOThread " in text and "old" not in text, text
    # 2200 ns of 2100 are reached, 0.51 of stock and 0.85 of blk, too
    assert "Goals reached: " in text and " 2.10 |" in text, text
    assert text.startswith("# A\n\nbefore\n") and text.endswith("\nafter\n")
    with open(room.path(PAGE)) as file:
        page = file.read()
    assert page.startswith("page\n.. bench:begin\n\n"), page
    assert page.endswith("\n.. bench:end\nend\n"), page
    assert "  0.51" in page and "reached" in page, page
    assert "=\n\n.. bench:end\n" in page, page
    with open(room.path("docs/bench.svg")) as file:
        chart = file.read()
    assert chart.rstrip().endswith("</svg>") and "stock scsi" in chart
    assert not any(l != l.rstrip() for l in chart.splitlines())


@test
def readme_names_the_goals_that_are_missed(room):
    if not shutil.which("gnuplot"):
        return "no gnuplot"
    done = room.bench("--only", "null-1", "--only", "null-2", "--rounds", "1")
    text = benchreport.readme_section(room.results())
    # 2200 ns of 2100, twice as many I/Os as stock wanted
    assert "Goals reached: 4 of 5. Missed: IOPS, 2 IOThreads on one LUN, against" \
        " stock scsi (1.91, wanted >= 2)" in text, text + done.stderr


@test
def tables_of_the_manual(room):
    same(benchreport.table(["a", "bc"], [["longer", "–"], ["x", "1 (1-2)"]], True),
         "======  =======\na       bc\n======  =======\nlonger  –\n"
         "x       1 (1-2)\n======  =======\n")


@test
def readme_takes_no_failed_or_short_results(room):
    with open(room.path("README.md"), "w") as file:
        file.write(README)
    for rounds, env, text in (("5", {"FAKE_FAIL": "stock-blk"}, "failed"),
                              ("4", {}, "5 or more")):
        room.bench("--only", "null-1", "--rounds", rounds, **env)
        done = room.bench("--update-readme")
        same(done.returncode, 1)
        assert text in done.stderr, done.stderr
    with open(room.path("README.md")) as file:
        same(file.read(), README)


## scripts/bench/profile

@test
def profile_prints_a_table(room):
    done = room.profile("null-2", "--subject", "ours")
    same((done.returncode, done.stderr), (0, ""))
    for text in ("ours: 2200 ns", "880 ns", "some_function"):
        assert text in done.stdout, "no %s in:\n%s" % (text, done.stdout)
    with open(os.path.join(room.out, "profile-null-2.txt")) as file:
        same(file.read(), done.stdout)


@test
def profile_says_why_perf_failed(room):
    done = room.profile("null-2", FAKE_PERF_FAIL="1")
    same((done.returncode, done.stderr),
         (1, "profile: perf record: not permitted\n"))
    done = room.profile("null-x")
    same((done.returncode, done.stderr),
         (1, "profile: no case null-x (scripts/bench/bench --list)\n"))


def main():
    failed = 0
    print("1..%d" % len(tests))
    for number, function in enumerate(tests, 1):
        name = "%d - %s" % (number, function.__name__.replace("_", " "))
        with tempfile.TemporaryDirectory() as folder:
            try:
                skipped = function(Room(folder))
            except Exception as error:          # whatever: the test failed
                failed += 1
                print("# %s: %s" % (type(error).__name__,
                                    str(error).replace("\n", "\n# ")))
                print("not ok " + name)
                continue
        print("ok %s%s" % (name, " # SKIP " + skipped if skipped else ""),
              flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
