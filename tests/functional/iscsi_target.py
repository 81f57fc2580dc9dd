# SPDX-License-Identifier: GPL-2.0-or-later
"""A private iSCSI target: Debian's tgtd on a free port of 127.0.0.1, with disks
that are files of one folder.  It ends with this program.

This module needs nothing of QEMU's.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from guest_shell import TIED, expect, wait_for

TGTD = shutil.which("tgtd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
IQN = "iqn.2026-01.test:disks"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Target:
    """tgtd; what each LUN is made of is known here, as it forgets that."""

    def __init__(self, folder):
        self.folder = folder
        # A Unix socket's path must be short.
        self.temporary = tempfile.TemporaryDirectory(prefix="tgt-")
        self.port = free_port()
        self.luns = {}          # {number: {parameter: value}}
        self.process = None

    def adm(self, *words):
        """Output of tgtadm, or None if it fails."""
        done = subprocess.run(
            [TGTD.replace("tgtd", "tgtadm"), "--lld", "iscsi", *words],
            env=self.environment(), stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return None if done.returncode else done.stdout

    def must(self, *words):
        expect(self.adm(*words) is not None, f"tgtadm {' '.join(words)} fails")

    def environment(self):
        return dict(os.environ,
                    TGT_IPC_SOCKET=f"{self.temporary.name}/ipc")

    def start(self):
        """Until it serves all LUNs."""
        with open(f"{self.folder}/tgtd.log", "ab") as log:
            self.process = subprocess.Popen(
                TIED + [TGTD, "-f", "--iscsi",
                        f"portal=127.0.0.1:{self.port}"],
                env=self.environment(), stdin=subprocess.DEVNULL, stdout=log,
                stderr=log)
        wait_for("answer of tgtd", self.answers, 30, 0.05)
        self.must("--op", "new", "--mode", "target", "--tid", "1", "-T", IQN)
        for number in self.luns:
            self.tell(number)
        # From here on initiators get in.
        self.must("--op", "bind", "--mode", "target", "--tid", "1", "-I",
                  "127.0.0.1")
        return self

    def answers(self):
        expect(self.process.poll() is None,
               f"tgtd ended; see {self.folder}/tgtd.log")
        return self.adm("--op", "show", "--mode", "sys") is not None

    def path(self, number):
        return f"{self.folder}/lun{number}"

    def tell(self, number):
        lun = ("--mode", "logicalunit", "--tid", "1", "--lun", str(number))
        self.must("--op", "new", *lun, "-b", self.path(number))
        params = ",".join(f"{k}={v}" for k, v in self.luns[number].items())
        if params:
            self.must("--op", "update", *lun, "--params", params)

    def add(self, number, size, **params):
        """A disk of so many bytes; where the file is there, its data stay."""
        with open(self.path(number), "ab") as f:
            f.truncate(size)
        self.luns[number] = params
        if self.process:
            self.tell(number)

    def remove(self, number):
        """tgtd keeps a LUN as long as it has commands for it."""
        wait_for(f"end of the target's LUN {number}", lambda: self.adm(
            "--op", "delete", "--mode", "logicalunit", "--tid", "1", "--lun",
            str(number)) is not None)
        del self.luns[number]

    def node(self, number, **more):
        """-blockdev options; arguments with _ for -."""
        return {"driver": "iscsi", "transport": "tcp", "target": IQN,
                "portal": f"127.0.0.1:{self.port}", "lun": number,
                **{k.replace("_", "-"): v for k, v in more.items()}}

    def session(self, initiator):
        """Number of the session that an initiator has; each new one has
        another.  None if it has none."""
        found = re.findall(r"I_T nexus: (\d+)\s+Initiator: (\S+)",
                           self.adm("--op", "show", "--mode", "target") or "")
        return {name: number for number, name in found}.get(initiator)

    def url(self, number):
        return f"iscsi://127.0.0.1:{self.port}/{IQN}/{number}"

    def hold(self):
        """Commands that have come, or come now, aren't answered.  Back when
        that is so."""
        self.process.send_signal(signal.SIGSTOP)
        wait_for("stop of tgtd", lambda: self.state() == "T", 10, 0.01)

    def state(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as f:
            return f.read().rpartition(")")[2].split()[0]

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        """No good-bye; what it has written is in the files."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
            time.sleep(0.1)     # its sockets

    def daemons(self):
        return [self.process]

    def end(self):
        self.kill()
        self.temporary.cleanup()
