#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""vhost-scsi and vhost-user-scsi still realize with our virtio-scsi-common.c.

Starts QEMU without a guest and plays the vhost-user backend itself. What
needs the kernel's /dev/vhost-scsi is skipped where that can't be opened.
QEMU=binary overrides build/qemu-system-x86_64. Prints TAP.
"""

import argparse
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
QEMU = os.environ.get("QEMU") or os.path.join(TOP, "build/qemu-system-x86_64")
TIMEOUT = 60    # hang guard for each single wait, in seconds

USER = "vhost-user-scsi-pci"
KERNEL = "vhost-scsi-pci"
KERNEL_DEV = "/dev/vhost-scsi"
WWPN = "naa.5001405000000001"   # nobody looks for it before a guest starts

BAD_VALUES = [
    ("num_queues", 0, "num_queues is 0, but must be 1 to 1022"),
    ("num_queues", 2000, "num_queues is 2000, but must be 1 to 1022"),
    ("virtqueue_size", 2, "virtqueue_size is 2, but must be 3 to 1024"),
]


class Failure(Exception):
    """The test failed; the text says how."""


class Skip(Exception):
    """The test can't run here; the text says why."""


class Gone(Exception):
    """QEMU closed its QMP connection."""


def equal(what, got, wanted):
    if got != wanted:
        raise Failure("%s: got %r, wanted %r" % (what, got, wanted))


class Backend(threading.Thread):
    """Just enough of a vhost-user backend for a device that no guest uses."""

    GET_FEATURES, SET_FEATURES, SET_OWNER = 1, 2, 3
    SET_VRING_CALL, SET_VRING_ERR = 13, 14
    GET_PROTOCOL, SET_PROTOCOL, GET_QUEUE_NUM = 15, 16, 17
    HEADER = struct.Struct("=III")      # request, flags, size of payload
    NEED_REPLY = 1 << 3
    REPLY = 1 << 2 | 1                  # and the protocol's version, 1

    def __init__(self, max_queues=64):
        super().__init__(daemon=True)
        self.answers = {
            self.GET_FEATURES: 1 << 30 | 1 << 32,   # protocol, VERSION_1
            self.GET_PROTOCOL: 1 << 0 | 1 << 3,     # MQ, REPLY_ACK
            self.GET_QUEUE_NUM: max_queues,
        }
        self.quiet = {self.SET_FEATURES, self.SET_OWNER, self.SET_PROTOCOL,
                      self.SET_VRING_CALL, self.SET_VRING_ERR}
        self.queues = []        # those that got a call eventfd, in that order
        self.error = None
        self.stopping = False
        # An address of the kernel's choice that leaves no file behind
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")
        self.listener.listen()
        self.listener.settimeout(0.1)
        path = self.listener.getsockname()[1:].decode()
        self.chardev = "socket,id=chr,abstract=on,path=" + path

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.finish()

    def finish(self):
        """Call it after QEMU's end: then all messages have been seen."""
        self.stopping = True
        self.join(TIMEOUT)
        self.listener.close()

    def run(self):
        while not self.stopping:
            try:
                connection = self.listener.accept()[0]
            except socket.timeout:
                continue
            with connection:
                connection.settimeout(TIMEOUT)
                try:
                    while self.serve(connection):
                        pass
                except (OSError, ValueError, struct.error) as error:
                    self.error = "vhost-user backend: %s" % error

    @staticmethod
    def receive(connection, size):
        data = b""
        while len(data) < size:
            more, fds = socket.recv_fds(connection, size - len(data), 8)[:2]
            for fd in fds:
                os.close(fd)
            if not more:
                return None
            data += more
        return data

    def serve(self, connection):
        """Take one message; False at the connection's end."""
        header = self.receive(connection, self.HEADER.size)
        if header is None:
            return False
        request, flags, size = self.HEADER.unpack(header)
        payload = self.receive(connection, size)
        if payload is None:
            return False
        if request in self.answers:
            answer = self.answers[request]
        elif request in self.quiet:
            if request == self.SET_VRING_CALL:
                self.queues.append(struct.unpack("=Q", payload)[0] & 0xff)
            if not flags & self.NEED_REPLY:
                return True
            answer = 0
        else:
            raise ValueError("request %d wasn't expected" % request)
        connection.sendall(self.HEADER.pack(request, self.REPLY, 8)
                           + struct.pack("=Q", answer))
        return True


class Qemu:
    """A QEMU and its QMP connection."""

    ARGS = ["-machine", "pc,memory-backend=m", "-m", "64M", "-accel", "qtest",
            "-object", "memory-backend-memfd,id=m,size=64M,share=on",
            "-nodefaults", "-display", "none"]

    def __init__(self, *args, fds=()):
        self.qmp, theirs = socket.socketpair()
        self.qmp.settimeout(TIMEOUT)
        self.lines = self.qmp.makefile("r")
        self.events = []
        self.stderr = tempfile.TemporaryFile()
        with theirs:
            self.process = subprocess.Popen(
                [QEMU, *self.ARGS,
                 "-chardev", "socket,id=qmp,fd=%d" % theirs.fileno(),
                 "-mon", "chardev=qmp,mode=control", *args],
                stdin=subprocess.DEVNULL, stdout=self.stderr,
                stderr=self.stderr, pass_fds=(theirs.fileno(), *fds))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.lines.close()
        self.qmp.close()
        self.stderr.close()

    def message(self):
        try:
            line = self.lines.readline()
        except ConnectionResetError:
            line = ""
        except socket.timeout:
            raise Failure("no QMP answer in %d s" % TIMEOUT) from None
        if not line:
            raise Gone("QEMU ended: %s" % self.said())
        return json.loads(line)

    def execute(self, command, arguments, fds=()):
        """Run a QMP command; returns its whole answer."""
        data = json.dumps({"execute": command, "arguments": arguments})
        try:
            socket.send_fds(self.qmp, [data.encode()], fds)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone("QEMU ended: %s" % self.said()) from None
        while True:
            answer = self.message()
            if "return" in answer or "error" in answer:
                return answer
            self.events.append(answer)

    def command(self, command, fds=(), **arguments):
        """Run a QMP command that must succeed; returns what it returns."""
        answer = self.execute(command, arguments, fds)
        if "error" in answer:
            raise Failure("%s: %s" % (command, answer["error"]["desc"]))
        return answer["return"]

    def start(self):
        """The command loop runs after the devices of the command line."""
        self.command("qmp_capabilities")
        return self

    def refuse(self, wanted, **arguments):
        """A device_add that must fail with this text and hurt nobody."""
        answer = self.execute("device_add", arguments)
        equal("device_add of %r" % arguments,
              answer.get("error", {}).get("desc"), wanted)
        equal("status afterwards", self.command("query-status")["status"],
              "running")
        if arguments["id"] in self.devices():
            raise Failure("%s is there after the error" % arguments["id"])

    def devices(self):
        return [item["name"] for item in
                self.command("qom-list", path="/machine/peripheral")]

    def check_device(self, name, num_queues):
        """The device is there, realized, with two queues more."""
        path = "/machine/peripheral/" + name
        vdev = path + "/virtio-backend"
        for part in path, vdev:
            equal("%s realized" % part, self.command(
                "qom-get", path=part, property="realized"), True)
        status = self.command("x-query-virtio-status", path=vdev)
        equal("num-vqs", status["num-vqs"], num_queues + 2)

    def unplug(self, name):
        """No guest is there to release the device: the reset does it."""
        self.command("device_del", id=name)
        self.command("system_reset")
        deadline = time.monotonic() + TIMEOUT
        while not any(event.get("event") == "DEVICE_DELETED"
                      and event["data"].get("device") == name
                      for event in self.events):
            if time.monotonic() > deadline:
                raise Failure("%s wasn't deleted" % name)
            self.events.append(self.message())
        if name in self.devices():
            raise Failure("%s is there after device_del" % name)

    def said(self):
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")

    def wait(self):
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise Failure("QEMU didn't end in %d s" % TIMEOUT) from None

    def quit(self, said=""):
        self.command("quit")
        equal("exit status", self.wait(), 0)
        equal("QEMU's output", self.said(), said)


def check_backend(backend, queues):
    """QEMU set up these queues, in this order, and asked nothing strange."""
    backend.finish()
    if backend.error:
        raise Failure(backend.error)
    equal("queues set up in the backend", backend.queues, queues)


def user_cmdline(num_queues):
    device = "%s,id=dev,chardev=chr,num_queues=%d" % (USER, num_queues)
    with Backend() as backend:
        with Qemu("-chardev", backend.chardev, "-device", device) as qemu:
            qemu.start().check_device("dev", num_queues)
            qemu.quit()
        check_backend(backend, list(range(num_queues + 2)))


def user_hotplug():
    """Twice, with different queues: nothing of the first is left."""
    with Backend() as backend:
        with Qemu("-chardev", backend.chardev) as qemu:
            qemu.start()
            for num_queues in 4, 1:
                qemu.command("device_add", driver=USER, id="dev",
                             chardev="chr", num_queues=num_queues)
                qemu.check_device("dev", num_queues)
                qemu.unplug("dev")
                qemu.events.clear()
            qemu.quit()
        check_backend(backend, [*range(6), *range(3)])


def user_small_backend():
    """Realize that fails after the common part takes it back."""
    error = "The maximum number of queues supported by the backend is 2"
    with Backend(max_queues=2) as backend:
        with Qemu("-chardev", backend.chardev) as qemu:
            qemu.start()
            qemu.refuse(error, driver=USER, id="dev", chardev="chr",
                        num_queues=4)
            qemu.command("device_add", driver=USER, id="dev", chardev="chr",
                         num_queues=2)
            qemu.check_device("dev", 2)
            # It tried more than once: the last error goes to QMP, and each
            # of the others here
            said = qemu.said()
            equal("QEMU's output", set(said.splitlines()),
                  {"Reconnecting after error: " + error})
            qemu.quit(said)
        check_backend(backend, list(range(4)))


def bad_cmdline(driver, name, value, error):
    """One line of error, exit status 1."""
    with Backend() as backend, open(os.devnull, "r+b") as null:
        # Our check comes before the first use of this file descriptor.
        rest = ("chardev=chr" if driver == USER else
                "wwpn=%s,vhostfd=%d" % (WWPN, null.fileno()))
        device = "%s,id=dev,%s,%s=%d" % (driver, rest, name, value)
        with Qemu("-chardev", backend.chardev, "-device", device,
                  fds=[null.fileno()]) as qemu:
            try:
                qemu.start()
            except Gone:
                pass
            else:
                raise Failure("QEMU runs with " + device)
            equal("exit status", qemu.wait(), 1)
            equal("QEMU's output", qemu.said(), "%s: -device %s: %s\n"
                  % (os.path.basename(QEMU), device, error))
        check_backend(backend, [])


def add_null_fd(qemu):
    """A file descriptor for vhostfd that vhost can't use."""
    with open(os.devnull, "r+b") as null:
        qemu.command("getfd", fds=[null.fileno()], fdname="null")
    return {"driver": KERNEL, "id": "dev", "wwpn": WWPN, "vhostfd": "null"}


def bad_hotplug(driver):
    """QEMU survives, and the id (and chardev) can be used again."""
    with Backend() as backend:
        with Qemu("-chardev", backend.chardev) as qemu:
            qemu.start()
            good = {"driver": USER, "id": "dev", "chardev": "chr"}
            for name, value, error in BAD_VALUES:
                args = good if driver == USER else add_null_fd(qemu)
                qemu.refuse(error, **args, **{name: value})
            qemu.command("device_add", num_queues=4, **good)
            qemu.check_device("dev", 4)
            qemu.quit()
        check_backend(backend, list(range(6)))


def kernel_no_vhost():
    """Past the common part, realize fails in vhost, and takes it back."""
    with Qemu() as qemu:
        qemu.start()
        for num_queues in 4, 1:
            qemu.refuse("vhost_set_owner failed: Inappropriate ioctl for "
                        "device", num_queues=num_queues, **add_null_fd(qemu))
        qemu.quit()


def kernel_no_wwpn():
    with Qemu() as qemu:
        qemu.start().refuse("vhost-scsi: missing wwpn", driver=KERNEL,
                            id="dev")
        qemu.quit()


def why_no_kernel():
    """Why /dev/vhost-scsi can't be opened; None if it can."""
    try:
        os.close(os.open(KERNEL_DEV, os.O_RDWR))
    except OSError as error:
        return error.strerror
    return None


def kernel_no_dev():
    why = why_no_kernel()
    if not why:
        raise Skip("%s can be opened" % KERNEL_DEV)
    with Qemu() as qemu:
        qemu.start().refuse(
            "vhost-scsi: open vhost char device failed: " + why,
            driver=KERNEL, id="dev", wwpn=WWPN)
        qemu.quit()


def kernel_hotplug(num_queues):
    """After an error, the same id is good for the real thing."""
    why = why_no_kernel()
    if why:
        raise Skip("%s: %s" % (KERNEL_DEV, why))
    with Qemu() as qemu:
        qemu.start()
        good = {"driver": KERNEL, "id": "dev", "wwpn": WWPN}
        for name, value, error in BAD_VALUES:
            qemu.refuse(error, **good, **{name: value})
        qemu.command("device_add", num_queues=num_queues, **good)
        qemu.check_device("dev", num_queues)
        qemu.unplug("dev")
        qemu.quit()


def all_tests():
    bind = functools.partial
    for num_queues in 1, 4:
        yield ("%s num_queues=%d realizes, quit" % (USER, num_queues),
               bind(user_cmdline, num_queues))
    yield USER + " device_add, device_del, twice", user_hotplug
    yield USER + " backend with too few queues", user_small_backend
    for driver in USER, KERNEL:
        for name, value, error in BAD_VALUES:
            yield ("%s %s=%d is one error" % (driver, name, value),
                   bind(bad_cmdline, driver, name, value, error))
        yield (driver + " bad device_add, then a good one of " + USER,
               bind(bad_hotplug, driver))
    yield KERNEL + " vhostfd is no vhost", kernel_no_vhost
    yield KERNEL + " without wwpn", kernel_no_wwpn
    yield KERNEL + " without " + KERNEL_DEV, kernel_no_dev
    for num_queues in 1, 4:
        yield ("%s num_queues=%d realizes, device_del" % (KERNEL, num_queues),
               bind(kernel_hotplug, num_queues))


def main():
    argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not os.access(QEMU, os.X_OK):
        sys.exit("test-vhost-scsi: can't run %s: run make first" % QEMU)
    # so that QEMU is ended, too
    for number in signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, lambda *_: sys.exit(1))

    tests = list(all_tests())
    print("1..%d" % len(tests))
    failed = False
    for number, (name, test) in enumerate(tests, 1):
        try:
            test()
            print("ok %d - %s" % (number, name), flush=True)
        except Skip as why:
            print("ok %d - %s # SKIP %s" % (number, name, why), flush=True)
        except (Failure, Gone, OSError, LookupError, ValueError) as error:
            failed = True
            text = "%s: %s" % (type(error).__name__, error)
            print("not ok %d - %s" % (number, name))
            print("# " + text.rstrip().replace("\n", "\n# "), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
