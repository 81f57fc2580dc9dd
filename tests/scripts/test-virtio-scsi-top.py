#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of scripts/virtio-scsi-top (TAP): what it says of a QEMU under load, what
it would do better, and how it refuses. The load is that of virtio-load. QEMU=,
STOCK= and VIRTIO_LOAD= override the binaries below build/.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, f"{TOP}/scripts")
from common import load
from tap import Tap

PROGRAM = f"{TOP}/scripts/virtio-scsi-top"
QEMU = os.environ.get("QEMU") or f"{TOP}/build/qemu-system-x86_64"
STOCK = os.environ.get("STOCK") or f"{TOP}/build/stock/qemu-system-x86_64"
LOAD = (os.environ.get("VIRTIO_LOAD")
        or f"{TOP}/build/obj/tests/qtest/virtio-load")
LIMIT = 120                     # hang guard, in seconds
THREADS = ["-object", "iothread,id=a", "-object", "iothread,id=b"]
MAPPED = THREADS + ["-device", json.dumps({
    "driver": "virtio-scsi-pci", "id": "scsi0", "num_queues": 3,
    "iothread-vq-mapping": [{"iothread": "a", "vqs": [0, 2]},
                            {"iothread": "b", "vqs": [1]}]})]
tap = Tap()
top = load("virtio-scsi-top")


def call(*words, **env):
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True,
                          timeout=LIMIT, env=dict(os.environ, **env),
                          check=False)


@contextlib.contextmanager
def qemu(folder, binary, address, *args):
    """A QEMU without a guest."""
    argv = [binary, "-M", "pc", "-nodefaults", "-display", "none", "-accel",
            "qtest", *args, "-qmp", f"{address},server=on,wait=off"]
    with subprocess.Popen(argv, cwd=folder) as process:
        path = address.partition(":")[2]
        while address.startswith("unix") and not os.path.exists(path) and \
                process.poll() is None:
            time.sleep(0.01)
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def service(path, answer):
    """Something that is no QMP, or one that doesn't come to us."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()

        def serve():
            with sock.accept()[0] as peer:
                peer.sendall(answer)
                peer.recv(1)
        threading.Thread(target=serve, daemon=True).start()
        yield


def refuses(name, text, *words, **env):
    """One line, and it says what."""
    done = call(*words, **env)
    tap.result(done.returncode == 1 and not done.stdout
               and len(done.stderr.splitlines()) == 1
               and done.stderr.startswith("virtio-scsi-top: error: ")
               and text in done.stderr, name,
               f"status {done.returncode}: {done.stdout}{done.stderr}")


# ------------------------------------------------------------- what is better

def queue(n, iothread, share, iops=0):
    return {"queue": n, "iothread": iothread, "share": share, "iops": iops}


def advice(queues, busy=None, usable="ab"):
    threads = [{"id": n, "busy": b} for n, b in (busy or {}).items()]
    found = top.better({"queues": queues}, threads, list(usable))
    return found and {e["iothread"]: e["vqs"] for e in found}


def test_better():
    hot = [queue(0, "a", 0.45), queue(1, "b", 0), queue(2, "a", 0.45)]
    tap.equal("two hot queues on one IOThread part", advice(hot),
              {"a": [2], "b": [0, 1]})
    tap.equal("the other IOThread has other work", advice(
        hot, {"a": 0.9, "b": 0.85}), None)
    tap.equal("an IOThread without queues", advice(
        [queue(0, "a", 0.4), queue(1, "a", 0.3)]), {"a": [0], "b": [1]})
    tap.equal("even load stays", advice(
        [queue(0, "a", 0.4), queue(1, "b", 0.38), queue(2, "a", 0.02)]), None)
    tap.equal("one hot queue has nowhere to go", advice(
        [queue(0, "a", 0.9), queue(1, "b", 0.01)]), None)
    tap.equal("hardly any load stays", advice(
        [queue(0, "a", 0.02), queue(1, "a", 0.02)]), None)
    tap.equal("without shares by IOPS", advice(
        [queue(0, "a", None, 5000), queue(1, "a", None, 5000)]),
        {"a": [1], "b": [0]})
    tap.equal("the main loop's queues", advice([queue(0, None, None, 9)]), None)


# ------------------------------------------------------------------- a live one

def under_load(folder, *options):
    """What it prints while queues 0 and 2, both of iothread0, have load"""
    path, out = f"{folder}/load.sock", f"{folder}/out"
    wrapper = f"{folder}/qemu"
    with open(wrapper, "w", encoding="utf-8") as f:
        f.write(f'#!/bin/sh\nexec {QEMU} "$@" -qmp '
                f"unix:{path},server=on,wait=off\n")
    os.chmod(wrapper, 0o755)
    done = subprocess.run(
        [LOAD, "--qemu", wrapper, "--queues", "2", "--iothreads", "2",
         "--mapping", "0:0;1:1", "--seconds", "2", "--warmup", "0.1",
         "--exec", f"{PROGRAM} --once -i 1 {' '.join(options)} {path} > {out}"],
        capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        return done.stderr
    with open(out, encoding="utf-8") as f:
        return f.read()


def test_load(folder):
    text = under_load(folder, "--json")
    try:
        view = json.loads(text)
        (device,) = view["devices"]
        queues = device["queues"]
    except ValueError:
        tap.result(False, "JSON under load", text)
        return
    tap.result(all(q["iops"] > 1000 and q["mib-per-s"] > 1 for q in queues),
               "both queues have IOPS and MiB/s", queues)
    tap.equal("who serves them", [q["iothread"] for q in queues],
              ["iothread0", "iothread1"])
    used = {t["id"]: t["cpu"] for t in view["iothreads"]}
    tap.result(min(used.values()) > 0.01, "IOThreads used CPU", used)
    # The clock of qtest stands still, so QEMU measures no period for shares.
    tap.result(all(q["share"] is None for q in queues), "no shares", queues)
    text = under_load(folder)
    tap.result(len(text.splitlines()) >= 4 and "iothread1" in text
               and "IOPS" in text, "a table under load", text)


def test_idle(folder):
    path = f"{folder}/idle.sock"
    with qemu(folder, QEMU, f"unix:{path}", *MAPPED):
        view = json.loads(call("--once", "--json", "-i", "0.5", path).stdout)
        (device,) = view["devices"]
        tap.equal("an idle controller", [
            (q["queue"], q["iothread"], q["iops"]) for q in device["queues"]],
            [(0, "a", 0), (1, "b", 0), (2, "a", 0)])
        tap.equal("nothing is better", device["better-mapping"], None)
        # Somebody else can use the socket between two looks.
        argv = [PROGRAM, "-i", "1", path]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as live:
            live.stdout.readline()
            done = call("--once", "-i", "0.5", path)
            tap.result(done.returncode == 0 and live.poll() is None,
                       "two of them share a socket", done.stderr)
            live.kill()
        with socket.socket(socket.AF_UNIX) as holder:
            holder.connect(path)
            holder.recv(1)
            refuses("another program holds the socket", "no answer in", path)


def test_tcp(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = "127.0.0.1:%d" % free.getsockname()[1]
    with qemu(folder, QEMU, f"tcp:{target}", *MAPPED):
        for _ in range(100):
            done = call("--once", "--json", "-i", "0.5", target)
            if "refused" not in done.stderr:
                break
        (device,) = json.loads(done.stdout or '{"devices": [{}]}')["devices"]
        tap.equal("HOST:PORT", device.get("id"), "scsi0")


def test_virsh(folder):
    """A virsh that hands on what QEMU says"""
    path = f"{folder}/virsh.sock"
    with open(f"{folder}/virsh", "w", encoding="utf-8") as f:
        f.write(f"""#!{sys.executable}
import asyncio, json, sys
sys.path.insert(0, "{TOP}/build/base/python")
from qemu.qmp import QMPClient, ExecuteError
async def main(line):
    client = QMPClient()
    await client.connect("{path}")
    try:
        print(json.dumps({{"return": await client.execute_msg(line)}}))
    except ExecuteError as error:
        print(json.dumps({{"error": error.error._asdict()}}))
    await client.disconnect()
if sys.argv[-3:-1] != ["qemu-monitor-command", "vm1"]:
    sys.exit("error: failed to get domain '" + sys.argv[-2] + "'")
asyncio.run(main(json.loads(sys.argv[-1])))
""")
    os.chmod(f"{folder}/virsh", 0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    with qemu(folder, QEMU, f"unix:{path}", *MAPPED, "-name", "guest=vm1,"
              "debug-threads=on"):
        done = call("--once", "--json", "-i", "0.5", "-d", "vm1", **env)
        view = json.loads(done.stdout or '{"devices": [{}], "iothreads": []}')
        tap.equal("a domain of libvirt", view["devices"][0].get("id"), "scsi0")
        tap.result(view["iothreads"] and all(
            t["cpu"] is not None for t in view["iothreads"]),
            "its CPU times", done.stdout + done.stderr)
    refuses("a domain that isn't there", "failed to get domain 'other'",
            "-d", "other", **env)
    refuses("no virsh", "there is no virsh", "-d", "vm1",
            PATH=f"{folder}/none:{os.path.dirname(sys.executable)}")


def test_refusals(folder):
    refuses("no such socket", "none: No such file", f"{folder}/none")
    refuses("not a socket", "Connection refused", PROGRAM)
    with service(f"{folder}/smtp", b"220 mail\r\n"):
        refuses("not QMP", "no QMP", f"{folder}/smtp")
    path = f"{folder}/empty.sock"
    with qemu(folder, QEMU, f"unix:{path}"):
        refuses("no controller", "no virtio-scsi controller", path)
    if os.path.exists(STOCK):
        path = f"{folder}/stock.sock"
        with qemu(folder, STOCK, f"unix:{path}"):
            refuses("another QEMU", "has no x-query-virtio-scsi-queues", path)
    else:
        tap.skip("another QEMU", "no " + STOCK)
    for words in ((), ("a", "-d", "b"), ("-i", "0", "a"), ("a", "b")):
        done = call(*words)
        tap.result(done.returncode == 2 and "usage" in done.stderr,
                   f"wrong arguments: {' '.join(words) or 'none'}", done.stderr)


def main():
    if "--help" in sys.argv:
        print(__doc__)
        return 0
    with tempfile.TemporaryDirectory(prefix="top-") as folder:
        test_better()
        test_load(folder)
        test_idle(folder)
        test_tcp(folder)
        test_virsh(folder)
        test_refusals(folder)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
