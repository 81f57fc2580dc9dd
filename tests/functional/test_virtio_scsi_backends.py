#!/usr/bin/env python3
#
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a mapped virtio-scsi controller over real backends, in a guest.

The controller has 4 queues, each with an IOThread of its own.  Its disks are
raw files (aio=threads, native, io_uring), qcow2, a loop device, and network
disks of qemu-nbd and nbdkit, some of them twice: two connections to one export
(multi-conn).  fio writes and verifies through all queues; afterwards the images
must hold what the guest has read from its disks (VirtioScsiData).

A second guest has network disks whose servers are killed, and come back: in
time for reconnect-delay, too late for it, with werror=stop; without server the
disk is unplugged, and QEMU ends (VirtioScsiOutage).

A third one has disks with a connection for each IOThread (multi-conn=4), from
servers that offer less than that, or lose one of them (VirtioScsiMultiConn).
A fourth one has such disks of servers that want TLS, if QEMU can do that
(VirtioScsiTls; `make check-tls` builds one that can).

Servers that reply with too little, and those that are refused again and again,
need no guest: qemu-io reads from them (VirtioScsiNbdReplies).

Servers, images and loop devices are private and gone at the end.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest

from guest_shell import TIED, GuestError, expect, fio_verified, wait_for
from nbd_server import (DONE, NONE, READ_ONLY, SEND_FUA, NbdProgram,
                        NbdServer, chunk, content, nbd_node, simple)
from qemu_test import BUILD_DIR, QemuSystemTest
from virtio_scsi_guest import GuestMachine, GuestTest, output

QUEUES = 4
MIB = 1 << 20
SIZE = 48 * MIB                 # of each disk
USED = 32 * MIB                 # fio writes here; what is behind must stay
REGION = "4M"                   # of one queue's job; two disks may share it all
SECONDS = 4                     # of load on each
NBDKIT = shutil.which("nbdkit") or "/usr/sbin/nbdkit"


def tool(name):
    return str(BUILD_DIR / name)


def beside_qemu(name):
    """A tool of the same build as the QEMU that is tested."""
    return os.path.join(os.path.dirname(os.path.realpath(
        os.environ["QEMU_TEST_QEMU_BINARY"])), name)


# ---------------------------------------------------------------- backends

def qemu_nbd(path, image, shared=32):
    return NbdProgram(path, [
        tool("qemu-nbd"), "--persistent", f"--shared={shared}", "-f", "raw",
        "--cache=none", "--aio=native", "-k", path, image])


def storage_daemon(path, image):
    return NbdProgram(path, [
        tool("storage-daemon/qemu-storage-daemon"), "--blockdev", json.dumps(
            {"node-name": "export", **file_node(image)}),
        "--nbd-server", f"addr.type=unix,addr.path={path}",
        "--export", "nbd,id=nbd,node-name=export,writable=on"])


def nbdkit(path, *plugin):
    return NbdProgram(path, [NBDKIT, "-f", "-U", path, *plugin])


class Pieces:
    """Between QEMU and a server: what one of them sends reaches the other in
    pieces of all sizes, which do not care where a message ends."""

    def __init__(self, path, server):
        self.path, self.server = path, server
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.start(self.accept)

    @staticmethod
    def start(function, *args):
        threading.Thread(target=function, args=args, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):          # close() ends it
            while True:
                qemu, other = self.listener.accept()[0], \
                    socket.socket(socket.AF_UNIX)
                other.connect(self.server.path)
                self.start(self.forward, qemu, other)
                self.start(self.forward, other, qemu)

    @staticmethod
    def forward(source, target):
        sizes = itertools.cycle((1, 27, 513, 4, 16, 4096, 3, 600, 65536, 20))
        with contextlib.suppress(OSError):
            while data := source.recv(next(sizes)):
                target.sendall(data)
        for one in source, target:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Backend:
    """One image: its file, the nodes that open it, and how to read it."""

    def __init__(self, name, image, nodes, kind="raw", server=None, lun=0):
        self.name = name
        self.image = image      # file, or None if a server has it
        self.nodes = nodes      # -blockdev options, one for each disk
        self.kind = kind
        self.server = server
        self.lun = lun          # of the first node
        self.tail = None        # hash of what the guest doesn't write
        self.seen = None        # hash of the whole, as the guest read it

    def luns(self):
        return range(self.lun, self.lun + len(self.nodes))

    def contents(self, folder):
        """Hashes (whole, tail) of what is in the image now."""
        source = self.image or "nbd+unix:///?socket=" + self.server.path
        copy = f"{folder}/copy"
        output(tool("qemu-img"), "convert", "-f", self.kind, "-O", "raw",
               source, copy)
        with open(copy, "rb") as f:
            data = f.read()
        os.unlink(copy)
        expect(len(data) == SIZE, f"{self.name} has {len(data)} bytes")
        return hash_of(data), hash_of(data[USED:])


def hash_of(data):
    return hashlib.md5(data).hexdigest()


def file_node(path, aio="native", driver="file"):
    return {"driver": driver, "filename": path, "aio": aio,
            "cache": {"direct": True}}


def attach_loop(path):
    """(loop device, file descriptor of it). It is detached by the kernel when
    the last to have it open closes it or is killed; losetup can't ask that
    for from the start."""
    LOOP_CONFIGURE, LOOP_CTL_GET_FREE, AUTOCLEAR = 0x4c0a, 0x4c82, 4
    with open(path, "r+b") as image, open("/dev/loop-control", "rb") as control:
        # struct loop_config: fd, 56 bytes, info.lo_flags, 240 bytes
        config = struct.pack("I56xI240x", image.fileno(), AUTOCLEAR)
        while True:
            device = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            handle = os.open(device, os.O_RDWR)
            try:
                fcntl.ioctl(handle, LOOP_CONFIGURE, config)
                return device, handle
            except OSError as error:
                os.close(handle)
                if error.errno != errno.EBUSY:      # another took it
                    raise


def tls_keys(folder):
    """A key that client and server share, where both look for it."""
    os.mkdir(folder)
    with open(f"{folder}/keys.psk", "w", encoding="ascii") as f:
        f.write(f"qemu:{os.urandom(32).hex()}\n")
    return folder


def tls_creds(endpoint, keys, name=None):
    """Value of --object"""
    return f"tls-creds-psk,id={name or endpoint},endpoint={endpoint}," + \
        "dir=" + keys.replace(",", ",,")


class Store:
    """Makes the backends in a folder, and takes all away again."""

    def __init__(self, folder):
        # O_DIRECT wants a disk, a Unix socket a short path.
        self.folder = folder
        self.temporary = tempfile.TemporaryDirectory(prefix="backends-")
        self.sockets = self.temporary.name
        self.loops = []
        self.servers = []
        self.found = []
        self.luns = 0

    def image(self, name):
        path = f"{self.folder}/{name}"
        with open(path, "wb") as f:
            f.write(os.urandom(MIB) * (SIZE // MIB))
        return path

    def add(self, name, image, nodes, **more):
        one = Backend(name, image, nodes, lun=self.luns, **more)
        if one.server:
            self.servers.append(one.server)
        if one.server and not image:
            one.server.start()
        one.tail = one.contents(self.folder)[1]
        if one.server:
            one.server.start()      # which locks the image
        self.luns += len(nodes)
        self.found.append(one)
        return one

    def file(self, aio):
        path = self.image(f"{aio}.raw")
        try:
            output(tool("qemu-io"), "-c", "read -q 0 4k", "--image-opts",
                   f"driver=file,filename={path.replace(',', ',,')},"
                   f"aio={aio},cache.direct=on")
        except GuestError as error:
            raise unittest.SkipTest("this machine has no O_DIRECT with "
                                    f"aio={aio}: {error}") from None
        return self.add(f"raw file, aio={aio}", path, [file_node(path, aio)])

    def qcow2(self):
        raw, path = self.image("to-qcow2"), f"{self.folder}/disk.qcow2"
        output(tool("qemu-img"), "convert", "-O", "qcow2", raw, path)
        os.unlink(raw)
        return self.add("qcow2", path, [
            {"driver": "qcow2", "file": file_node(path, "threads")}],
            kind="qcow2")

    def loop(self):
        path = self.image("loop.raw")
        try:
            device, handle = attach_loop(path)
        except OSError as error:
            raise unittest.SkipTest("this machine has no loop devices: "
                                    f"{error}") from None
        self.loops.append((device, handle))
        return self.add("loop device", path,
                        [file_node(device, driver="host_device")])

    def nbd(self, kind, connections=2, **options):
        """A disk for each connection, all of them to one export."""
        name = f"nbd{len(self.servers)}"
        path, image = f"{self.sockets}/{name}", None
        if kind == "qemu-nbd":
            image = self.image(f"{name}.raw")
            server = qemu_nbd(path, image)
        elif kind == "qemu-storage-daemon":
            image = self.image(f"{name}.raw")
            server = storage_daemon(path, image)
            options["export"] = "export"
        elif not os.access(NBDKIT, os.X_OK):
            raise unittest.SkipTest("nbdkit is not installed")
        elif kind == "nbdkit memory":
            server = nbdkit(path, "memory", str(SIZE))
        else:
            image = self.image(f"{name}.raw")
            server = nbdkit(path, "file", image)
        return self.add(kind, image, [nbd_node(server, **options)] *
                        connections, server=server)

    def tls(self, kind, keys, **options):
        """A disk of a server that wants TLS, with the keys in this folder."""
        path = f"{self.sockets}/nbd{len(self.servers)}"
        image = self.image(f"{os.path.basename(path)}.raw")
        if kind == "qemu-nbd":
            server = qemu_nbd(path, image)
            server.words = [beside_qemu("qemu-nbd"), *server.words[1:],
                            "--object", tls_creds("server", keys),
                            "--tls-creds", "server"]
        elif not os.access(NBDKIT, os.X_OK):
            raise unittest.SkipTest("nbdkit is not installed")
        else:
            server = nbdkit(path, "--tls=require",
                            f"--tls-psk={keys}/keys.psk", "file", image)
        return self.add(f"{kind} with TLS", image, [nbd_node(
            server, tls_creds="client", **options)], server=server)

    def detach_loops(self):
        while self.loops:
            device, handle = self.loops.pop()
            os.close(handle)
            folder = f"/sys/block/{os.path.basename(device)}/loop"
            wait_for(f"end of {device}", lambda: not os.path.exists(folder))

    def remove(self):
        for server in self.servers:
            server.kill()
        try:
            self.detach_loops()
        finally:
            self.temporary.cleanup()


# ------------------------------------------------------------------- guest

def disk_options(backend, **scsi):
    """-blockdev and -device of each of the backend's disks."""
    words = []
    for lun, node in zip(backend.luns(), backend.nodes):
        words += ["-blockdev", json.dumps({"node-name": f"node{lun}", **node}),
                  "-device", json.dumps(disk(lun, **scsi))]
    return words


def disk(lun, **scsi):
    return {"driver": "scsi-hd", "bus": "scsi.0", "lun": lun, "id":
            f"disk{lun}", "drive": f"node{lun}", **scsi}


class Guest:
    """A VM with the controller, booted when a test needs it, with all servers
    at work.  What follows a test that failed gets another VM."""

    def __init__(self, store, logs, words):
        self.store, self.logs = store, logs
        self.words = ["-device", json.dumps({
            "driver": "virtio-scsi-pci", "id": "scsi", "num_queues": QUEUES,
            "iothread-vq-mapping": [{"iothread": f"io{i}", "vqs": [i]}
                                    for i in range(QUEUES)]})] + words
        self.vm = None

    def get(self):
        if not self.vm:
            for server in self.store.servers:
                server.start()
            objects = sum((["-object", f"iothread,id=io{i}"]
                           for i in range(QUEUES)), [])
            # A load on each of a dozen disks is 60 processes of 1.4 MB each.
            self.vm = GuestMachine(os.environ["QEMU_TEST_QEMU_BINARY"], "guest",
                                   objects + self.words, self.logs,
                                   memory="512M")
            self.vm.boot()
        return self.vm

    def end(self):
        self.get().end()
        self.discard()

    def device(self, lun):
        """The guest's name of a LUN, sda or so."""
        return self.get().shell.lun_name(lun)

    def done(self, lun):
        """Reads and writes that the guest has completed."""
        words = self.get().shell.run(
            f"cat /sys/block/{self.device(lun)}/stat")[0].split()
        return int(words[0]) + int(words[4])

    def see(self, backend):
        """Hash of the disk, read past the guest's cache through each of its
        LUNs."""
        found = set()
        for lun in backend.luns():
            found.add(self.get().shell.run(
                f"dd if=/dev/{self.device(lun)} bs=1M iflag=direct 2> /tmp/dd"
                f" | md5sum && grep -q '^{SIZE // MIB}+0 records in' /tmp/dd"
            )[0].split()[0])
        expect(len(found) == 1, f"{backend.name}: the guest reads different "
               "data through its two connections")
        backend.seen = found.pop()

    def start_load(self, lun, offset=0, seconds=4):
        """It goes on until it is finished, in turns of so many seconds."""
        self.get().shell.start(f"load{lun}", fio_verified(
            self.device(lun), QUEUES, seconds, REGION, f"--offset={offset}"),
            again=True)

    def discard(self):
        if self.vm:
            self.vm.discard()
            self.vm = None


@contextlib.contextmanager
def all_work(guest):
    """What runs inside must use each queue and each IOThread."""
    before = guest.get().work()
    yield
    idle = list(guest.get().idle_since(before, QUEUES))
    expect(not idle, "; ".join(idle))


def run_load(guest, backends, seconds):
    """Verified load on all disks of these backends at the same time."""
    with all_work(guest):
        for one in backends:
            for i, lun in enumerate(one.luns()):
                guest.start_load(lun, i * USED // 2, seconds)
        for one in backends:
            for lun in one.luns():
                guest.get().shell.finish(f"load{lun}")
    for one in backends:
        guest.see(one)


def connections(guest, server):
    """QEMU's sockets to this server: this process has them open as well."""
    pid, found, GETFD = guest.get().get_pid(), [], 438
    call = ctypes.CDLL(None, use_errno=True).syscall
    process = os.pidfd_open(pid)
    for path in glob.glob(f"/proc/{pid}/fd/*"):
        try:
            if not os.readlink(path).startswith("socket:"):
                continue
        except FileNotFoundError:               # closed meanwhile
            continue
        handle = call(GETFD, process, int(os.path.basename(path)), 0)
        error = ctypes.get_errno()
        if handle < 0:
            expect(error == errno.EBADF,
                   f"can't look at QEMU's files: {os.strerror(error)}")
            continue
        one = socket.socket(fileno=handle)
        try:
            peer = one.getpeername()
        except OSError:                         # it listens
            peer = None
        if peer == server.path:
            found.append(one)
        else:
            one.close()
    os.close(process)
    return found


def connection_count(guest, server):
    found = connections(guest, server)
    for one in found:
        one.close()
    return len(found)


def has_connections(guest, server, count):
    there = connection_count(guest, server)
    expect(there == count, f"{there} connections, not {count}")


# -------------------------------------------------------------------- checks

def multi_conn(backend):
    """Does the server promise that connections see each other's writes?"""
    told = output(tool("qemu-nbd"), "--list", "-k", backend.server.path)
    expect("multi" in told.split("flags:")[1].split("\n")[0],
           f"{backend.name} offers no multi-conn: {told}")


def compare(store, backend):
    """The image against what the guest has read, and what nobody wrote."""
    expect(backend.seen, f"{backend.name}: the guest has not read it")
    whole, tail = backend.contents(store.folder)
    expect(whole == backend.seen, f"{backend.name} holds other data than the "
           f"guest has read: md5 {whole}, not {backend.seen}")
    expect(tail == backend.tail, f"{backend.name} has changed where nobody "
           "wrote")
    if backend.kind == "qcow2":
        output(tool("qemu-img"), "check", "-f", "qcow2", backend.image)


# ------------------------------------------------ servers that go and return

def work_goes_on(guest, lun):
    before = guest.done(lun)
    wait_for(f"further I/O on LUN {lun}",
             lambda: guest.done(lun) > before, 90)


def work_waits(guest, lun, other):
    """I/O of a disk whose server is gone stands still, nothing else does."""
    time.sleep(1)               # for what was on its way
    before = guest.done(lun)
    guest.get().shell.run(f"dd if=/dev/{guest.device(other)} of=/dev/null "
                          "bs=1M count=4 iflag=direct")
    expect(guest.done(lun) == before, f"I/O of LUN {lun} went on without "
           "server")
    status = guest.get().status()
    expect(status == "running", f"the VM is {status}")


def io_errors(guest, lun):
    """What QEMU told about I/O errors of this disk since last asked."""
    found = [e["data"] for e in guest.get().get_qmp_events()
             if e["event"] == "BLOCK_IO_ERROR"]
    for data in found:
        expect(data["node-name"] == f"node{lun}",
               f"an I/O error of a disk whose server is there: {data}")
    return found


def sockets(guest):
    """Open sockets of QEMU, and threads that connect."""
    pid = guest.get().get_pid()
    count = 0
    for path in glob.glob(f"/proc/{pid}/fd/*"):
        with contextlib.suppress(OSError):
            count += os.readlink(path).startswith("socket:")
    for path in glob.glob(f"/proc/{pid}/task/*/comm"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as f:
            count += f.read().startswith("nbd-")
    return count


@contextlib.contextmanager
def nothing_leaked(guest):
    guest.get().shell.run("true")
    before = sockets(guest)
    yield
    # A thread that tries to connect sleeps up to 16 s before it sees its end.
    wait_for(f"end of sockets and threads above {before}",
             lambda: sockets(guest) <= before, 40)


def fresh(guest, one):
    """Server and VM as a test wants them; no old events."""
    one.server.start()
    guest.get().get_qmp_events()


def waits(guest, one, other):
    """With reconnect-delay the guest sees a pause, no error."""
    fresh(guest, one)
    with nothing_leaked(guest), all_work(guest):
        guest.start_load(one.lun)
        for _ in range(2):
            work_goes_on(guest, one.lun)
            one.server.kill()
            work_waits(guest, one.lun, other.lun)
            one.server.start()
        work_goes_on(guest, one.lun)
        guest.get().shell.finish(f"load{one.lun}")
    errors = io_errors(guest, one.lun)
    expect(not errors, f"QEMU reported {errors}")
    guest.see(one)


def loses_each(guest, one, count=QUEUES):
    """Each of its connections once, under load."""
    fresh(guest, one)
    with all_work(guest):
        guest.start_load(one.lun)
        work_goes_on(guest, one.lun)
        for number in range(count):
            wait_for("all connections", lambda:
                     connection_count(guest, one.server) == count)
            found = connections(guest, one.server)
            found[number].shutdown(socket.SHUT_RDWR)
            for each in found:
                each.close()
            work_goes_on(guest, one.lun)
        guest.get().shell.finish(f"load{one.lun}")
    has_connections(guest, one.server, count)
    errors = io_errors(guest, one.lun)
    expect(not errors, f"QEMU reported {errors}")
    guest.see(one)


def stops(guest, one):
    """werror=stop: the VM stops, and goes on where it was after `cont`."""
    fresh(guest, one)
    vm = guest.get()
    with nothing_leaked(guest):
        guest.start_load(one.lun)
        work_goes_on(guest, one.lun)
        one.server.kill()
        wait_for("stop of the VM", lambda: guest.get().status() == "io-error")
        vm.command("cont")      # too early: stops again, loses nothing
        wait_for("stop of the VM", lambda: guest.get().status() == "io-error")
        errors = io_errors(guest, one.lun)
        expect(errors and all(e["action"] == "stop" for e in errors),
               f"QEMU reported {errors}")
        one.server.start()
        tries = go_on(guest)
        print(f"# the VM went on after {tries} x cont")
        vm.shell.finish(f"load{one.lun}")
    guest.see(one)


def go_on(guest):
    """`cont` until the VM keeps running; how often that was needed. Without
    reconnect-delay QEMU connects in the background, from the next request."""
    for tries in range(1, 30):
        guest.get().command("cont")
        time.sleep(1)
        if guest.get().status() == "running":
            return tries
    raise GuestError("the VM stops again and again though the server is back")


def fails(guest, one, other):
    """Away longer than reconnect-delay: errors for the guest, no more."""
    fresh(guest, one)
    shell = guest.get().shell
    with nothing_leaked(guest):
        guest.start_load(one.lun)
        work_goes_on(guest, one.lun)
        one.server.kill()
        wait_for("end of the load", lambda: not shell.running(
            f"load{one.lun}"), 60)
        text = " ".join(shell.run(f"cat /tmp/load{one.lun}.out"))
        expect("Input/output error" in text, f"fio does not tell of an I/O "
               f"error: {text[-200:]}")
        errors = io_errors(guest, one.lun)
        expect(errors and all(e["action"] == "report" for e in errors),
               f"QEMU reported {errors}")
        work_waits(guest, one.lun, other.lun)
        one.server.start()
        device = guest.device(one.lun)
        wait_for("readable disk", lambda: shell.run(
            f"dd if=/dev/{device} of=/dev/null bs=4k count=1 iflag=direct",
            check=False)[0] == 0)
        guest.start_load(one.lun)
        shell.finish(f"load{one.lun}")
    guest.see(one)


def plug(guest, one):
    vm = guest.get()
    vm.command("blockdev-add", node_name=f"node{one.lun}", **one.nodes[0])
    vm.command("device_add", **disk(one.lun))
    guest.device(one.lun)


def unplug(guest, one):
    """Takes at most the reconnect-delay, as all that waits for requests."""
    vm = guest.get()
    start = time.monotonic()
    vm.command("device_del", id=f"disk{one.lun}")
    wait_for("DEVICE_DELETED", lambda: vm.event_wait(
        "DEVICE_DELETED", 0.2, {"data": {"device": f"disk{one.lun}"}}), 60, 0)
    vm.command("blockdev-del", node_name=f"node{one.lun}")
    seconds = time.monotonic() - start
    print(f"# device_del and blockdev-del took {seconds:.1f} s")
    wait_for(f"end of LUN {one.lun} in the guest", lambda: vm.shell.run(
        f"ls -d /sys/bus/scsi/devices/*:0:0:{one.lun}", check=False)[0])


def unplugs(guest, one, busy):
    """A disk whose server is gone can be taken away and brought back."""
    one.server.start()
    vm = guest.get()
    with nothing_leaked(guest):
        plug(guest, one)
        if busy:
            guest.start_load(one.lun)
            work_goes_on(guest, one.lun)
        one.server.kill()
        unplug(guest, one)
        if busy:
            wait_for("end of the load", lambda: not vm.shell.running(
                f"load{one.lun}"), 60)
    kind, text = vm.refused("blockdev-add", {"node-name": f"node{one.lun}",
                                             **one.nodes[0]})
    expect(kind == "GenericError" and one.server.path in text,
           f"blockdev-add without server says: {text}")
    one.server.start()
    with nothing_leaked(guest):
        plug(guest, one)
        guest.see(one)
        unplug(guest, one)


def quits(guest, one):
    """The end of QEMU while requests wait for a server."""
    one.server.start()
    plug(guest, one)
    guest.start_load(one.lun)
    work_goes_on(guest, one.lun)
    one.server.kill()
    time.sleep(0.5)
    one.seen = None             # what was on its way is anybody's guess
    start = time.monotonic()
    guest.end()
    print(f"# quit took {time.monotonic() - start:.1f} s")


# --------------------------------------------------------------------- tests

class BackendTest(GuestTest):
    """Backends by name, or why there is none, and a guest that has them."""

    store = guest = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.store, cls.backends, cls.missing = Store(cls.scratch), {}, {}
        words = cls.make()
        cls.guest = Guest(cls.store, cls.folder, words)

    @classmethod
    def tearDownClass(cls):
        cls.drop()
        if cls.store:
            cls.store.remove()
        super().tearDownClass()

    @classmethod
    def machines(cls):
        return [cls.guest.vm] if cls.guest and cls.guest.vm else []

    @classmethod
    def drop(cls):
        if cls.guest:
            cls.guest.discard()

    @classmethod
    def add(cls, name, make):
        """A backend, or None if this machine can't have it."""
        try:
            cls.backends[name] = make()
        except unittest.SkipTest as skip:
            cls.missing[name] = skip
        return cls.backends.get(name)

    def backend(self, name):
        if name in self.missing:
            raise self.missing[name]
        return self.backends[name]

    def image(self, name):
        """It must hold what the guest saw, who needs it no more."""
        one = self.backend(name)
        if self.machines():
            self.guest.end()
        self.store.detach_loops()
        if one.server and one.image:
            one.server.stop()
        compare(self.store, one)


def for_each(names, prefix):
    """Decorates a method that is a test of each of these backends."""
    class Tests:
        def __init__(self, function):
            self.function = function

        def __set_name__(self, owner, _):
            for i, name in enumerate(names):
                def test(this, name=name):
                    this.guarded(self.function, name)
                setattr(owner, f"{prefix}_{i}_{name}", test)
    return Tests


class VirtioScsiData(BackendTest, QemuSystemTest):
    """Verified load, and what is in the images then."""

    # A server that lets nobody in shall be an error, not a hang.
    KINDS = {"file_threads": lambda store: store.file("threads"),
             "file_native": lambda store: store.file("native"),
             "file_io_uring": lambda store: store.file("io_uring"),
             "qcow2": Store.qcow2,
             "loop_device": Store.loop,
             **{kind.replace("-", "_").replace(" ", "_"):
                lambda store, kind=kind: store.nbd(kind, open_timeout=30)
                for kind in ("qemu-nbd", "nbdkit file", "nbdkit memory")},
             **{"multi_" + kind.replace("-", "_").replace(" ", "_"):
                lambda store, kind=kind: store.nbd(
                    kind, 1, open_timeout=30, multi_conn=QUEUES)
                for kind in ("qemu-nbd", "nbdkit file",
                             "qemu-storage-daemon")}}
    MULTI = [name for name in KINDS if "multi" in name]
    NBD = [name for name in KINDS if "nbd" in name or "multi" in name]

    @classmethod
    def make(cls):
        for name, make in cls.KINDS.items():
            cls.add(name, lambda make=make: make(cls.store))
        return sum(map(disk_options, cls.backends.values()), [])

    @for_each(NBD, "test_1_multi_conn")
    def multi_conn(self, name):
        multi_conn(self.backend(name))

    @for_each(KINDS, "test_2_load")
    def load(self, name):
        run_load(self.guest, [self.backend(name)], SECONDS)

    @for_each(MULTI, "test_2_connections")
    def connections(self, name):
        has_connections(self.guest, self.backend(name).server, QUEUES)

    def test_3_load_on_all_at_once(self):
        self.guarded(lambda _: run_load(
            self.guest, list(self.backends.values()), 2 * SECONDS))

    def test_4_end(self):
        self.guarded(lambda _: self.guest.end())

    @for_each(KINDS, "test_5_image")
    def images(self, name):
        self.image(name)


class VirtioScsiOutage(BackendTest, QemuSystemTest):
    """Servers that go and return."""

    @classmethod
    def make(cls):
        words = []
        for name, kind, options, scsi in (
                ("wait", "qemu-nbd", {"reconnect_delay": 60}, {}),
                ("stop", "qemu-nbd", {}, {"rerror": "stop", "werror": "stop"}),
                ("short", "qemu-nbd", {"reconnect_delay": 1}, {}),
                ("nbdkit", "nbdkit file", {"reconnect_delay": 60}, {}),
                ("multi", "qemu-nbd", {"reconnect_delay": 60,
                                       "multi_conn": QUEUES}, {}),
                ("multi_nbdkit", "nbdkit file", {"reconnect_delay": 60,
                                                 "multi_conn": QUEUES}, {}),
                ("multi_qsd", "qemu-storage-daemon",
                 {"reconnect_delay": 60, "multi_conn": QUEUES}, {}),
                ("multi_stop", "qemu-nbd", {"multi_conn": QUEUES},
                 {"rerror": "stop", "werror": "stop"})):
            one = cls.add(name, lambda kind=kind, options=options:
                          cls.store.nbd(kind, 1, **options))
            words += disk_options(one, **scsi) if one else []
        cls.add("plugged", lambda: cls.store.nbd("qemu-nbd", 1,
                                                 reconnect_delay=5))
        return words

    def outage(self, function, *names):
        self.guarded(lambda _: function(self.guest,
                                        *map(self.backend, names)))

    def test_1_reconnect(self):
        self.outage(waits, "wait", "stop")

    def test_2_reconnect_to_nbdkit(self):
        self.outage(waits, "nbdkit", "stop")

    @for_each(["multi", "multi_nbdkit", "multi_qsd"], "test_2_reconnect_all")
    def reconnect_all(self, name):
        waits(self.guest, self.backend(name), self.backend("stop"))
        has_connections(self.guest, self.backend(name).server, QUEUES)

    def test_3_werror_stop(self):
        self.outage(stops, "stop")

    def test_3_werror_stop_multi_conn(self):
        self.outage(stops, "multi_stop")

    def test_4_too_late(self):
        self.outage(fails, "short", "stop")

    def test_5_unplug_idle(self):
        self.outage(lambda guest, one: unplugs(guest, one, False), "plugged")

    def test_6_unplug_busy(self):
        self.outage(lambda guest, one: unplugs(guest, one, True), "plugged")

    def test_7_quit(self):
        self.outage(quits, "plugged")

    @for_each(["wait", "nbdkit", "stop", "short", "multi", "multi_nbdkit",
               "multi_qsd", "multi_stop"], "test_8_image")
    def images(self, name):
        self.image(name)


def warned(guest, text, before):
    """QEMU must have said one thing since then."""
    said = guest.get().messages()[before:]
    expect(len(said) == 1 and text in said[0], f"QEMU says {said}, not: {text}")


class VirtioScsiMultiConn(BackendTest, QemuSystemTest):
    """A connection for each IOThread, and what a server may do about it."""

    @classmethod
    def make(cls):
        cls.add("whole", lambda: cls.store.nbd(
            "qemu-nbd", 1, reconnect_delay=60, multi_conn=QUEUES))
        cls.add("two", lambda: cls.store.nbd("qemu-nbd", 1, multi_conn=QUEUES))
        return disk_options(cls.backends["whole"])

    def boot(self):
        self.guest.get().excused = "multi-conn=|cannot reconnect"
        return self.guest.get()

    def server(self, *words):
        """nbdkit's, which ends with the test"""
        if not os.access(NBDKIT, os.X_OK):
            raise unittest.SkipTest("nbdkit is not installed")
        one = nbdkit(f"{self.store.sockets}/kit", *words)
        one.start()
        self.addCleanup(one.kill)
        return one

    def one_only(self, server, complaint):
        """Several connections are asked for; it works, with one."""
        vm = self.boot()
        before = len(vm.messages())
        few = Backend("few", None, [nbd_node(server, multi_conn=QUEUES)],
                      server=server, lun=7)
        plug(self.guest, few)
        has_connections(self.guest, server, 1)
        warned(self.guest, complaint, before)
        vm.shell.run(f"dd if=/dev/{self.guest.device(7)} of=/dev/null bs=4k "
                     "count=64 iflag=direct")
        unplug(self.guest, few)
        has_connections(self.guest, server, 0)

    def test_1_values(self):
        def refused(_):
            node = nbd_node(self.backend("whole").server)
            for value in (0, 17, 1 << 31):
                said = self.boot().refused("blockdev-add", {
                    "node-name": "bad", "multi-conn": value, **node})[1]
                expect(f"multi-conn={value} " in said and "1 to 16" in said,
                       f"multi-conn={value} is refused so: {said}")
        self.guarded(refused)

    def test_2_server_that_allows_one(self):
        self.guarded(lambda _: self.one_only(
            self.server("--filter=multi-conn", "memory", "1M",
                        "multi-conn-mode=disable"),
            "does not allow several connections"))

    def test_3_sizes_that_differ(self):
        grows = "echo >> $tmpdir/n; echo $(($(wc -l < $tmpdir/n) * 1048576))"
        self.guarded(lambda _: self.one_only(
            self.server("eval", f"get_size={grows}", "can_multi_conn=true",
                        "pread=head -c $3 /dev/zero",
                        "pwrite=cat > /dev/null"),
            "has 2097152 bytes on this connection, not 1048576"))

    def test_4_server_that_allows_two(self):
        def two(_):
            one = self.backend("two")
            one.server.kill()
            one.server.words = qemu_nbd(one.server.path, one.image, 2).words
            one.server.start()
            before = len(self.boot().messages())
            plug(self.guest, one)
            has_connections(self.guest, one.server, 2)
            warned(self.guest, "only 2 of the connections", before)
            run_load(self.guest, [one], SECONDS)
            has_connections(self.guest, one.server, 2)
            unplug(self.guest, one)
        self.guarded(two)

    def test_5_one_connection_is_lost(self):
        self.boot()
        self.guarded(lambda _: loses_each(self.guest, self.backend("whole")))

    def test_6_server_with_another_size(self):
        def resized(_):
            vm, one = self.boot(), self.backend("whole")
            fresh(self.guest, one)
            words, before = one.server.words, len(vm.messages())
            read = f"dd if=/dev/{self.guest.device(one.lun)} of=/dev/null " \
                "bs=4k count=1 iflag=direct"
            other = self.store.image("other.raw")
            os.truncate(other, SIZE + MIB)
            one.server.kill()
            one.server.words = qemu_nbd(one.server.path, other).words
            one.server.start()
            expect(vm.shell.run(read, check=False)[0] != 0,
                   "the disk has another size, but can be read")
            warned(self.guest, f"has {SIZE + MIB} bytes", before)
            one.server.kill()
            one.server.words = words
            one.server.start()
            wait_for("readable disk",
                     lambda: vm.shell.run(read, check=False)[0] == 0)
            self.guest.get().get_qmp_events()
            run_load(self.guest, [one], SECONDS)
        self.guarded(resized)

    @for_each(["1", str(QUEUES)], "test_6_pieces_for_connections")
    def pieces(self, count):
        """Requests and replies that arrive bit by bit, or several at once, on
        one connection of all IOThreads and on one for each."""
        self.boot()
        one = self.backend("two")
        one.server.kill()
        one.server.words = qemu_nbd(one.server.path, one.image).words
        fresh(self.guest, one)
        between = Pieces(f"{self.store.sockets}/pieces{count}", one.server)
        self.addCleanup(between.close)
        other = Backend("pieces", one.image, [
            nbd_node(between, multi_conn=int(count))], server=one.server,
            lun=one.lun)
        plug(self.guest, other)
        has_connections(self.guest, between, int(count))
        run_load(self.guest, [other], SECONDS)
        unplug(self.guest, other)
        one.seen = other.seen

    @for_each(["whole", "two"], "test_7_image")
    def images(self, name):
        self.image(name)


class VirtioScsiTls(BackendTest, QemuSystemTest):
    """Encrypted connections, one for each IOThread or for all of them."""

    KINDS = {"tls_qemu_nbd": ("qemu-nbd", QUEUES),
             "tls_nbdkit": ("nbdkit file", QUEUES),
             "tls_shared": ("qemu-nbd", 1)}

    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory() as folder:
            try:
                output(beside_qemu("qemu-img"), "info", "--object",
                       tls_creds("client", tls_keys(f"{folder}/keys")),
                       "null-co://")
            except GuestError as error:
                if "GNUTLS" not in str(error):
                    raise
                raise unittest.SkipTest("this QEMU has no TLS: use `make "
                                        "check-tls`") from None
        super().setUpClass()

    @classmethod
    def make(cls):
        keys = tls_keys(f"{cls.store.sockets}/keys")
        other = tls_keys(f"{cls.store.sockets}/other")
        words = ["-object", tls_creds("client", keys),
                 "-object", tls_creds("client", other, "stranger")]
        for name, (kind, count) in cls.KINDS.items():
            one = cls.add(name, lambda kind=kind, count=count: cls.store.tls(
                kind, keys, multi_conn=count, reconnect_delay=60))
            words += disk_options(one) if one else []
        return words

    def other(self, name):
        """A disk that is not to notice what happens to this one."""
        return next(one for key, one in self.backends.items() if key != name)

    def has_all(self, name):
        has_connections(self.guest, self.backend(name).server,
                        self.KINDS[name][1])

    @for_each(KINDS, "test_1_load")
    def load(self, name):
        run_load(self.guest, [self.backend(name)], SECONDS)
        self.has_all(name)

    @for_each(KINDS, "test_2_refused")
    def refused(self, name):
        """Who has another key gets an error, and so does who has none."""
        one, vm = self.backend(name), self.guest.get()
        for creds, reason in (({}, "TLS"),
                              ({"tls-creds": "stranger"}, "handshake")):
            node = {**nbd_node(one.server, multi_conn=QUEUES), **creds}
            kind, text = vm.refused("blockdev-add", {"node-name": "bad",
                                                     **node})
            expect(kind == "GenericError" and reason in text,
                   f"blockdev-add with {creds} says: {text}")
        self.has_all(name)

    @for_each(KINDS, "test_3_reconnect")
    def reconnect(self, name):
        one = self.backend(name)
        waits(self.guest, one, self.other(name))
        self.has_all(name)

    @for_each(KINDS, "test_4_one_connection_is_lost")
    def one_connection_is_lost(self, name):
        loses_each(self.guest, self.backend(name), self.KINDS[name][1])

    @for_each(KINDS, "test_5_image")
    def images(self, name):
        self.image(name)


class VirtioScsiNbdReplies(unittest.TestCase):
    """Servers that do what their test says, and what qemu-io makes of it."""

    DATA = bytes(i % 251 + 1 for i in range(1000))

    def serve(self, read, size=lambda _: 1000, **more):
        folder = tempfile.TemporaryDirectory(prefix="nbd-")
        self.addCleanup(folder.cleanup)
        server = NbdServer(f"{folder.name}/socket", read, size, **more)
        self.addCleanup(server.close)
        return server

    @staticmethod
    def start(server, *options):
        return subprocess.Popen(
            TIED + [tool("qemu-io"), "--image-opts", ",".join([
                "driver=nbd,server.type=unix,server.path=" + server.path,
                *options]), *([] if options else ["-r"])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    def says(self, server, command):
        """What the command prints; it ends, or the test is stopped."""
        with self.start(server) as io:
            return io.communicate(command + "\nquit\n")[0]

    def reads(self, server, fill, length):
        """The first sector has this at its start."""
        said = self.says(server, f"read -P {fill} -l {length} 0 512")
        expect("read 512/512" in said and "verification failed" not in said,
               f"qemu-io says: {said}")

    def test_1_size_is_no_multiple_of_sectors(self):
        """Whoever waits for all of the last sector waits for ever."""
        server = self.serve(lambda _, cookie, offset, length: simple(
            cookie, self.DATA[offset:offset + length]))
        said = self.says(server, "read -v 992 32")
        expect(self.DATA[992:].hex(" ") in said and "read 32/32" in said,
               f"qemu-io says: {said}")

    def test_2_success_without_data(self):
        said = self.says(self.serve(
            lambda _, cookie, *__: chunk(cookie, NONE, flags=DONE),
            structured=True), "read 0 512")
        expect("read failed: Input/output error" in said,
               f"nothing was received, and qemu-io says: {said}")

    def test_3_success_with_less_data(self):
        said = self.says(self.serve(
            lambda _, cookie, offset, length: content(
                cookie, offset, bytes(length - 1), DONE),
            structured=True), "read 0 512")
        expect("read failed: Input/output error" in said,
               f"a byte is missing, and qemu-io says: {said}")

    def test_4_some_data_twice(self):
        """As many bytes as were asked for, but nothing of the second half"""
        server = self.serve(
            lambda _, cookie, offset, length: content(
                cookie, offset, b"1" * (length // 2)) + content(
                    cookie, offset, b"1" * (length // 2), DONE),
            structured=True)
        said = self.says(server, "read -P 49 -l 256 0 512\n"
                                 "read -P 0 -s 256 -l 256 0 512")
        expect(said.count("read 512/512") == 2 and
               "verification failed" not in said, f"qemu-io says: {said}")

    def test_5_refused_again_and_again(self):
        """Every other connection has another size, and each good one breaks:
        a line in the log for each would be the server's to write."""
        refused = []

        def size(number):
            if number < 2 or number % 2:
                return 1000
            refused.append(number)
            return 2000

        server = self.serve(lambda *_: None, size)
        with self.start(server, "multi-conn=2", "reconnect-delay=60") as io:
            while len(refused) < 4 and io.poll() is None:
                io.stdin.write("read 0 512\n")
                io.stdin.flush()
                io.stdout.readline()
            said = io.communicate("quit\n")[1]
        expect(len(refused) >= 4, f"qemu-io has ended: {said}")
        expect(said.count("cannot reconnect") == 1, f"qemu-io says: {said}")

    def comes_back(self, size, flags, command):
        """The only connection breaks, and the next one shows this; what the
        command prints, and what there is to complain about."""
        server = self.serve(
            lambda number, cookie, _, length:
            simple(cookie, bytes(length)) if number else None,
            lambda number: size if number else MIB,
            flags=lambda number: flags if number else SEND_FUA)
        with self.start(server, "reconnect-delay=60") as io:
            said, complaints = io.communicate(
                f"read 0 512\n{command}\nquit\n")
        expect(io.returncode in (0, 1), f"qemu-io has ended: {complaints}")
        return said, complaints

    def comes_back_with_less(self, size, flags, command, complaint):
        said, complaints = self.comes_back(size, flags, command)
        expect(said.count("failed: Input/output error") == 2 and
               "cannot reconnect: " in complaints and complaint in complaints,
               f"qemu-io says: {said} {complaints}")

    def test_6_comes_back_smaller(self):
        self.comes_back_with_less(4096, SEND_FUA, "read 8192 512",
                                  "has 4096 bytes now")

    def test_6_comes_back_read_only(self):
        self.comes_back_with_less(MIB, SEND_FUA | READ_ONLY, "write 0 512",
                                  "read-only now")

    def test_6_comes_back_without_fua(self):
        self.comes_back_with_less(MIB, 0, "write -f 0 512",
                                  f"no longer has the flags 0x{SEND_FUA:x}")

    def test_6_comes_back_larger(self):
        said, complaints = self.comes_back(2 * MIB, SEND_FUA, "read 8192 512")
        expect(said.count("read 512/512") == 2 and not complaints,
               f"qemu-io says: {said} {complaints}")

    def test_6_never_answers(self):
        server = self.serve(lambda *_: None, lambda _: MIB)
        with self.start(server, "reconnect-delay=1") as io:
            timer = threading.Timer(60, io.kill)
            timer.start()
            said, _ = io.communicate("read 0 512\n" * 2 + "quit\n")
            timer.cancel()
        expect(said.count("failed: Input/output error") == 2,
               f"qemu-io says: {said}")

    def test_7_read_only(self):
        server = self.serve(None, flags=lambda _: READ_ONLY)
        with self.start(server, "read-only=off") as io:
            said = io.communicate("quit\n")[1]
        expect("NBD export is read-only" in said, f"qemu-io says: {said}")


if __name__ == '__main__':
    QemuSystemTest.main()
