# SPDX-License-Identifier: GPL-2.0-or-later
"""A private Ceph cluster in one folder and on 127.0.0.1: a monitor and OSDs
from Debian's packages, without cephx, manager and systemd.  It ends with this
program.

This module needs nothing of QEMU's.
"""

import os
import shutil
import subprocess
import tempfile
import time
import uuid

from guest_shell import TIED, GuestError, expect, wait_for
from iscsi_target import free_port

PROGRAMS = ("ceph", "rbd", "ceph-mon", "ceph-osd", "monmaptool")
POOL = "rbd"
CONF = """\
[global]
fsid = {fsid}
monmap = {folder}/monmap
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
keyring = /dev/null
run_dir = {sockets}
admin_socket = {sockets}/$name.asok
pid_file =
crash_dir = {folder}
log_file = {folder}/$name.log
mon_cluster_log_file = {folder}/cluster.log
mon_data = {folder}/mon.$id
osd_data = {folder}/osd.$id
osd_objectstore = bluestore
bluestore_block_size = 4294967296
osd_memory_target = 939524096
# All on one machine, however full that is
osd_crush_chooseleaf_type = 0
mon_data_avail_crit = 1
mon_data_avail_warn = 1
# We tell the map where an OSD is. One that does so itself may do it before it
# has the monitor's map, and then ends.
osd_crush_update_on_start = false
osd_class_update_on_start = false
osd_pool_default_size = {copies}
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
# An OSD that is dead is missed soon.
mon_osd_adjust_heartbeat_grace = false
mon_osd_min_down_reporters = 1
osd_heartbeat_interval = 1
osd_heartbeat_grace = 5
# layering, exclusive-lock is not among them: no lock to break after a kill
rbd_default_features = 1

[client]
log_file =
admin_socket =
"""


class Cluster:
    """Up when start() returns; images are in the pool "rbd"."""

    def __init__(self, folder, osds):
        self.folder, self.osds = folder, osds
        self.temporary = tempfile.TemporaryDirectory(prefix="ceph-")
        self.port = free_port()
        self.conf = f"{folder}/ceph.conf"
        self.processes = {}     # {"mon.a" or "osd.N": Popen}

    def run(self, *words, limit=120):
        """Output of one of Ceph's programs."""
        try:
            done = subprocess.run(
                [words[0], "-c", self.conf, *words[1:]], check=False, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, timeout=limit)
        except subprocess.TimeoutExpired:
            raise GuestError(f"{' '.join(words)}: no end in {limit} s"
                             ) from None
        said = done.stderr.strip().splitlines() or ["no message"]
        expect(not done.returncode, f"{' '.join(words)}: {said[-1]}")
        return done.stdout

    def ceph(self, *words):
        """A command to the monitor.  A busy one may fail to tell which commands
        there are, with EPERM; nothing has been done by then."""
        def answer():
            try:
                return [self.run("ceph", "--connect-timeout", "60", *words)]
            except GuestError as reason:
                if "getting command descriptions" in str(reason):
                    return None
                raise
        return wait_for(f"the commands for ceph {words[0]}", answer, 60)[0]

    def rbd(self, *words):
        return self.run("rbd", *words)

    def spawn(self, name):
        """One of the daemons, again or for the first time."""
        kind, number = name.split(".")
        with open(f"{self.folder}/{name}.out", "ab") as log:
            self.processes[name] = subprocess.Popen(
                TIED + [f"ceph-{kind}", "-c", self.conf, "-i", number, "-f"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start(self):
        # what is left of one that was killed
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        fsid = str(uuid.uuid4())
        with open(self.conf, "w", encoding="ascii") as f:
            f.write(CONF.format(fsid=fsid, folder=self.folder,
                                sockets=self.temporary.name,
                                copies=min(self.osds, 2)))
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a",
                 f"v1:127.0.0.1:{self.port}", f"{self.folder}/monmap")
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap",
                 f"{self.folder}/monmap")
        self.spawn("mon.a")
        for i in range(self.osds):
            self.make_osd(i)
        self.ceph("osd", "pool", "create", POOL, "32")
        wait_for("OSDs", self.up, 120)
        return self

    def make_osd(self, number):
        name, key = f"osd.{number}", str(uuid.uuid4())
        self.ceph("osd", "new", key, str(number))
        self.ceph("osd", "crush", "add", name, "1", "root=default",
                  f"host=host{number}")
        os.mkdir(f"{self.folder}/{name}")
        self.run("ceph-osd", "-i", str(number), "--mkfs", "--osd-uuid", key)
        self.spawn(name)

    def up(self):
        """Are all OSDs up?  (What becomes of the data, only a manager knows.)
        """
        for name, process in self.processes.items():
            expect(process.poll() is None,
                   f"{name} ended; see {self.folder}/{name}.out")
        return f" {self.osds} up" in self.ceph("osd", "stat")

    def kill(self, name):
        """As if its machine had gone."""
        self.processes[name].kill()
        self.processes[name].wait()

    def node(self, image, **more):
        """-blockdev options"""
        return {"driver": "rbd", "pool": POOL, "image": image,
                "conf": self.conf, **more}

    def daemons(self):
        return self.processes.values()

    def end(self):
        for name in self.processes:
            self.kill(name)
        time.sleep(0.1)
        self.temporary.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)
