# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD servers: programs, and one for a test that says what it replies, right
or not.

This module needs nothing of QEMU's.
"""

import contextlib
import os
import socket
import struct
import subprocess
import threading

from guest_shell import TIED, GuestError, wait_for

HAS_FLAGS, READ_ONLY = 1 << 0, 1 << 1
SEND_FUA, CAN_MULTI_CONN = 1 << 3, 1 << 8
OPT_GO, OPT_STRUCTURED = 7, 8
REP_ACK, REP_INFO, REP_UNSUP = 1, 3, (1 << 31) + 1
CMD_READ, CMD_DISC = 0, 2
DONE = 1                                # flag of a chunk
NONE, OFFSET_DATA = 0, 1                # types of chunks


def simple(cookie, data):
    return struct.pack(">IIQ", 0x67446698, 0, cookie) + data


def chunk(cookie, kind, data=b"", flags=0):
    return struct.pack(">IHHQI", 0x668e33ef, flags, kind, cookie,
                       len(data)) + data


def content(cookie, offset, data, flags=0):
    """A chunk with data of the export"""
    return chunk(cookie, OFFSET_DATA, struct.pack(">Q", offset) + data, flags)


class NbdServer:
    """Listens until close().  read(number, cookie, offset, length) returns what
    the client of that connection, counted from 0, gets; None drops it.  So it
    is told size(number) and flags(number)."""

    def __init__(self, path, read, size, flags=lambda _: CAN_MULTI_CONN,
                 structured=False):
        self.path, self.read, self.size = path, read, size
        self.flags, self.structured = flags, structured
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        number = 0
        with contextlib.suppress(OSError):          # close() ends it
            while True:
                client = self.listener.accept()[0]
                threading.Thread(target=self.serve, daemon=True,
                                 args=(client, number)).start()
                number += 1

    def serve(self, client, number):
        with client, contextlib.suppress(OSError, EOFError):
            self.shake_hands(client, self.size(number),
                             HAS_FLAGS | self.flags(number))
            while True:
                kind, cookie, offset, length = struct.unpack(
                    ">6xHQQI", self.exactly(client, 28))
                data = self.read(number, cookie, offset, length) \
                    if kind == CMD_READ else None
                if data is None:
                    return
                client.sendall(data)

    def shake_hands(self, client, size, flags):
        def reply(kind, data=b""):
            client.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind,
                                       len(data)) + data)

        client.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1))
        self.exactly(client, 4)
        while True:
            option, length = struct.unpack(">8xII", self.exactly(client, 16))
            self.exactly(client, length)
            if option == OPT_GO:
                reply(REP_INFO, struct.pack(">HQH", 0, size, flags))
                reply(REP_ACK)
                return
            reply(REP_ACK if option == OPT_STRUCTURED and self.structured
                  else REP_UNSUP)

    @staticmethod
    def exactly(client, length):
        data = b""
        while len(data) < length:
            more = client.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def nbd_node(server, **more):
    """-blockdev options; arguments with _ for -."""
    more = {name.replace("_", "-"): value for name, value in more.items()}
    return {"driver": "nbd", **more,
            "server": {"type": "unix", "path": server.path}}


class NbdProgram:
    """One that listens on the Unix socket path; words: its command."""

    def __init__(self, path, words):
        self.path = path
        self.words = words
        self.process = None

    def start(self):
        """Until it answers. A killed server leaves its socket behind."""
        if self.process and self.process.poll() is None:
            return self
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.process = subprocess.Popen(
            TIED + self.words, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_for(f"answer of {os.path.basename(self.words[0])}",
                 self.answers, 30)
        return self

    def answers(self):
        if self.process.poll() is not None:
            said = self.process.stderr.read().decode(errors="replace")
            raise GuestError(f"{os.path.basename(self.words[0])} ended: "
                             f"{said.strip() or self.process.returncode}")
        with socket.socket(socket.AF_UNIX) as one:
            try:
                one.connect(self.path)
            except OSError:
                return False
            one.settimeout(30)
            return one.recv(8) == b"NBDMAGIC"

    def kill(self):
        """As if its machine had gone: no good-bye."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process.stderr.close()
            self.process = None

    def stop(self):
        """Orderly, so that all is in the image."""
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill()
                raise GuestError(f"{self.words[0]} does not end") from None
            self.process.stderr.close()
            self.process = None

    def daemons(self):
        return [self.process]

    node, end = nbd_node, kill
