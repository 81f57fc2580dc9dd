#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors of scripts/lab/run and scripts/lab/guest (TAP).

No guest boots here: a program that speaks QMP and answers for the guest's shell
plays QEMU.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
TOP = os.path.abspath(f"{__file__}/../../..")
sys.path[:0] = [f"{TOP}/tests/scripts", f"{TOP}/scripts"]
from common import load                                        # noqa: E402
from tap import Tap                                             # noqa: E402

RUN = f"{TOP}/scripts/lab/run"

# First what a test wants of it, then it plays a guest of which fio never uses
# queue 3; answers are for the first words of a command.
FAKE = r"""#!/usr/bin/env python3
import json, os, re, socket, sys, threading, time
words = " ".join(sys.argv)
if "-M none" in words:
    sys.exit()
with open("{tmp}/pids", "a") as f:
    print(os.getpid(), file=f)
console = open(re.search(r"file:(\S+)", words)[1], "w", buffering=1)
{early}
monitor = socket.socket(fileno=int(re.search(r"id=mon,fd=(\d+)", words)[1]))
agent = socket.socket(socket.AF_UNIX)
agent.bind(re.search(r"path=([^, ]+)", words)[1])
agent.listen()
samples = 0

def send(link, text):
    link.write(text)
    link.flush()

def guest():
    global samples
    while True:
        link = agent.accept()[0].makefile("rw")
        for line in link:
            if not line.strip():
                continue
            number, _, command = line.rstrip().split(" ", 2)
            {late}
            samples += command.startswith("cat /sys/block")
            ended = command.startswith("test -e") and samples < 5
            said = [text.format(100 * samples, samples) for what, text in (
                ("dmesg", "x: 4/0/0 default/read/poll queues"),
                ("ls", "0\n1\n2\n3"), ("cat /tmp/fio", "0"),
                ("tail", "3;fio;randread;0;0;1;1;100;1"),
                ("cat /sys", "{{0}} 0 0 0 0" + "".join(
                    "\n1: {{1}} 0 virtio0-request"
                    for _ in range(3)) + "\n1: 0 0 virtio0-request"),
                ) if command.startswith(what)]
            said = "\n".join(said).split("\n") if said else []
            send(link, f"@out {{number}}\n" + "".join(
                f"{{number}}|{{s}}\n" for s in said)
                + f"@ran {{number}} {{int(ended)}} {{len(said)}}\n")

threading.Thread(target=guest, daemon=True).start()
monitor.sendall(b'{{"QMP": {{"version": {{}}, "capabilities": []}}}}\n')
asked = b""
while True:
    data = monitor.recv(65536)
    asked += data
    try:
        command = json.loads(asked)
    except ValueError:
        if not data:
            break
        continue
    reply = {{"return": {{}}}}
    if "id" in command:
        reply["id"] = command["id"]
    monitor.sendall(json.dumps(reply).encode() + b"\n")
    if command["execute"] == "quit":
        break
    asked = b""
"""


class Lab:
    """A folder with a fake QEMU and a fake guest."""

    def __init__(self, tmp, tap):
        self.tmp, self.tap = tmp, tap
        self.fake()
        for folder in ("guest", "folder"):
            os.mkdir(f"{tmp}/{folder}")
        for name, size in (("guest/vmlinuz", 0), ("guest/initrd", 0),
                           ("empty", 0), ("closed", 2 << 20)):
            with open(f"{tmp}/{name}", "wb") as f:
                f.truncate(size)
        self.known = {name: value for name, value in os.environ.items()
                      if name not in ("VCPUS", "IOTHREADS", "RUNTIME",
                                      "BACKEND", "QEMU", "GUEST")}

    def fake(self, early="", late=""):
        with open(f"{self.tmp}/qemu", "w", encoding="utf-8") as f:
            f.write(FAKE.format(tmp=self.tmp, early=early, late=late or "pass"))
        os.chmod(f"{self.tmp}/qemu", 0o755)
        if os.path.exists(f"{self.tmp}/pids"):
            os.unlink(f"{self.tmp}/pids")

    def pids(self):
        with open(f"{self.tmp}/pids", encoding="ascii") as f:
            return f.read().split()

    def start(self, *words, **variables):
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={
                **self.known, "QEMU": f"{self.tmp}/qemu",
                "GUEST": f"{self.tmp}/guest", **variables})

    def call(self, *words, **variables):
        """(exit status, output, errors)"""
        process = self.start(*words, **variables)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def refuses(self, name, pattern, *words, **variables):
        """The program must fail with exactly one line of error."""
        status, _, err = self.call(*(words or (RUN,)), **variables)
        self.tap.result(status == 1 and err.count("\n") == 1 and
                        re.search(pattern, err), name, f"{status}: {err}")


def test_input(lab, tmp):
    def refuses(name, pattern, *words, **variables):
        lab.refuses(name, "^run: " + pattern, *words, **variables)

    refuses("VCPUS is no number", "VCPUS=abc: .*2 to 64", VCPUS="abc")
    refuses("VCPUS too small", "VCPUS=1: ", VCPUS="1")
    refuses("too many IOThreads", "IOTHREADS=999: .*1 to 64", IOTHREADS="999")
    refuses("RUNTIME is 0", "RUNTIME=0: .*3 to 3600", RUNTIME="0")
    refuses("QEMU missing", ".*/none is missing: run .make build. or set QEMU=",
            QEMU=f"{tmp}/none")
    refuses("BACKEND missing", "BACKEND=.*/none: No such file",
            BACKEND=f"{tmp}/none")
    refuses("BACKEND is a folder", "BACKEND=.*neither a file nor a block",
            BACKEND=f"{tmp}/folder")
    refuses("BACKEND is empty", "BACKEND=.*/empty: 0 bytes, needs at least",
            BACKEND=f"{tmp}/empty")
    os.chmod(f"{tmp}/closed", 0)
    if os.access(f"{tmp}/closed", os.R_OK):
        lab.tap.skip("BACKEND without permission",
                     "this user may read every file")
    else:
        refuses("BACKEND without permission", "BACKEND=.*Permission denied",
                BACKEND=f"{tmp}/closed")
    refuses("GUEST without a kernel", "GUEST=.*: no vmlinuz",
            GUEST=f"{tmp}/folder")
    refuses("moved with one IOThread", "moved needs 3 vCPUs and 2 IOThreads",
            RUN, "--config", "moved", IOTHREADS="1")
    for vcpus, count in (("4", 5), ("2", 4)):
        status, out, err = lab.call(RUN, "--dry-run", VCPUS=vcpus)
        lab.tap.result(status == 0 and not err and
                       len(re.findall(r"^\$ ", out, re.M)) == count,
                       f"--dry-run shows {count} commands for {vcpus} vCPUs",
                       out + err)
    status, _, err = lab.call(RUN, "--config", "nonsense")
    lab.tap.result(status != 0 and "nonsense" in err,
                   "unknown --config is refused", err)


def test_faults(lab, tap):
    """A QEMU that goes wrong."""
    single = (RUN, "--config", "single")
    lab.fake("sys.exit('qemu: -device virtio-scsi-pci: made up refusal')")
    lab.refuses("QEMU's own error is passed on",
                "single: .*status 1: .*made up refusal")
    tap.equal("and it is not repeated", len(lab.pids()), 1)
    lab.fake("print('qemu: iotlb_to_section: Assertion failed', flush=True)\n"
             "os.abort()")
    lab.refuses("the known abort of TCG is never counted as passed",
                "the emulator failed 3 times", *single)
    tap.equal("and is tried three times", len(lab.pids()), 3)
    lab.fake("print('rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:',"
             " file=console)\nsys.exit(1)")
    lab.refuses("so is a stalled vCPU", "the emulator failed 3 times", *single)
    lab.fake(late="print('some panic', file=console); os._exit(0)")
    status, _, err = lab.call(*single)
    tap.result(status == 1 and re.search("QEMU ended with status 0(.*\n)+"
                                         r" +\| some panic", err),
               "a guest that ends early: error with its console", err)
    lab.fake()
    status, out, err = lab.call(*single)
    tap.result(status == 1 and "FAILED: single: QEMU has no thread" in err,
               "without its IOThread the run fails", out + err)
    tap.result("FAILED: single: queue 3 never interrupted" in err and
               "queue 2" not in err, "a queue that was not used fails it, too",
               err)
    lab.fake(late="samples = min(samples, 3)")      # fio goes on for ever
    process = lab.start(*single)
    while "guest$ fio" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    tap.result(process.returncode == 143 and
               not os.path.exists(f"/proc/{lab.pids()[0]}"),
               "stopped by a signal: QEMU is stopped too", process.returncode)


def complaints(tap, name, function, cases):
    """Each case: arguments, and what the complaints about them must have."""
    wrong = []
    for arguments, want in cases:
        got = list(function(*arguments))
        if len(got) != len(want) or any(w not in g for w, g in zip(want, got)):
            wrong.append(f"{arguments}: want {want}, got {got}")
    tap.result(not wrong, name, "\n".join(wrong))


def test_judges(tap):
    run = load("run")
    alone, both = [[0], [1]], [[0, 1], []]

    def cpu(queues, *seconds):
        return run.judge_cpu(queues, {f"iothread{i}": run.Thread("", 0, 0, c, 5)
                                      for i, c in enumerate(seconds)})

    complaints(tap, "idle and busy IOThreads are told apart", cpu, (
        ((alone, 0.5, 0.4), []),
        ((alone, 0.5, 0.0002), ["iothread1 has queues"]),
        ((alone, 0.9, 0.01), ["iothread1 has queues"]),
        ((alone, 0, 0), ["iothread0 has", "iothread1 has"]),
        ((both, 0.5, 0.0001), []),
        ((both, 0.5, 0.3), ["iothread1 has no queue"]),
        ((alone, 0.5), ["QEMU has no thread"])))

    def view(queues, *told, irqs=(1, 1)):
        """told: (IOThread, requests) of each queue"""
        return run.judge_view(
            run.Layout("", queues, {}), " 2/0/0 default/read/poll queues",
            ["0", "1"], irqs,
            [{"iothread": name, "submitted": n} if name else {"submitted": n}
             for name, n in told])

    one, two = ("iothread0", 5), ("iothread1", 5)
    complaints(tap, "queues elsewhere and without work are told", view, (
        ((both, one, one), []),
        ((alone, one, two), []),
        ((alone, two, one), ["queue 0 is served by iothread1",
                             "queue 1 is served by iothread0"]),
        ((alone, one, (None, 5)), ["by the main loop"]),
        ((alone, one, ("iothread1", 0)), ["queue 1 had no request"]),
        ((alone,), [])))                # stock tells nothing
    tap.equal("so is an interrupt that never came", list(
        view(both, one, one, irqs=(1, 0))),
        ["queue 1 never interrupted the guest"])

    def moved(title, busy, names):
        """names: of the hot queues' IOThreads"""
        sample = argparse.Namespace(queues=[
            {"iothread": n, "iothread-busy": busy} for n in names])
        return run.judge_phases([run.Phase(title, [sample])])

    hot = ["hot queues are served by"]
    complaints(tap, "queues that moved and that didn't are told apart", moved, (
        (("as mapped", 0.9, "aa"), []), (("as mapped", 0.9, "ab"), hot),
        (("by hand", 0.9, "ab"), []), (("by hand", 0.1, "aa"), hot),
        (("by themselves", 0.9, "ba"), []),
        (("by themselves", 0.9, "aa"), hot),
        (("by themselves", 0.1, "aa"), [])))


def test_guest(lab, tmp):
    """scripts/lab/guest: no network, no space"""
    shutil.copytree(f"{TOP}/scripts", f"{tmp}/top/scripts")
    guest = f"{tmp}/top/scripts/lab/guest"
    proxy = "http://127.0.0.1:9"
    lab.refuses("no network", "^guest: apt-get update: [EW]: ", guest,
                http_proxy=proxy, https_proxy=proxy)
    os.makedirs(f"{tmp}/top/build", exist_ok=True)
    mount = f"mount -t tmpfs -o size=1M none {tmp}/top/build"
    if lab.call("unshare", "-m", "sh", "-c", mount)[0]:
        lab.tap.skip("no space", "needs the right to mount a small tmpfs")
    else:
        lab.refuses("no space", "^guest: .*([Ss]pace|[Ww]rite)", "unshare", "-m",
                    "sh", "-c", f"{mount} && {guest}")


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    tap = Tap()
    with tempfile.TemporaryDirectory() as tmp:
        lab = Lab(tmp, tap)
        test_input(lab, tmp)
        test_faults(lab, tap)
        test_judges(tap)
        test_guest(lab, tmp)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
