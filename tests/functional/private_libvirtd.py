# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirtd of a test's own, and virsh to talk to it.

It runs in namespaces, with its own /etc/libvirt, /var/*/libvirt, /run and host
name, and sees no /dev/kvm; the system's libvirt, if there is one, notices
nothing.  All domains die with the namespace, however the test ends.

The programs are the system's, or those below QEMU_TEST_LIBVIRT, where the
packages of a libvirt were unpacked.
"""

import glob
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from guest_shell import GuestError, expect, wait_for

MINIMUM = (11, 2)               # the first that maps a controller's queues
VIRSH_LIMIT = 180               # seconds, generous
# Where libvirt has a directory in the system
PLACES = ("etc", "var/lib", "var/cache", "var/log")
UNSHARE = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child",
           "--mount-proc"]

CONFIG = {
    "libvirtd.conf": """\
unix_sock_dir = "{sockets}"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "00000000-0000-4000-8000-{number:012}"
log_outputs = "3:file:{log}"
""",
    # No systemd, no virtlogd, no cgroups, no change of owners or labels
    "etc/qemu.conf": """\
namespaces = []
stdio_handler = "file"
cgroup_controllers = []
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
max_core = 0
"""}

# A directory "libvirt" may be missing in the system and must not be made
# there, hence the overlays.  What the test uses ("$@", its own folder first)
# may lie below one of them: it is mounted once more on top.  libvirtd does not
# start without the user libvirt-qemu, though it uses root.  As first process of
# the namespace the shell has to collect the domains that ended.
NAMESPACE = r"""
set -eu
echo "$HOST" > /proc/sys/kernel/hostname
mount -t tmpfs tmpfs /run
own=/run/libvirt-test
n=0
for path; do
    n=$((n + 1))
    mkdir -p $own/$n
    mount --rbind "$path" $own/$n
done
if [ -n "$ROOT" ]; then
    for d in lib share; do
        mount -t overlay -o "lowerdir=$ROOT/usr/$d:/usr/$d" overlay /usr/$d
    done
fi
for d in $PLACES; do
    mkdir -p $own/up/$d $own/work/$d
    mount -t overlay overlay /$d \
        -o lowerdir=/$d,upperdir=$own/up/$d,workdir=$own/work/$d
    mkdir -p /$d/libvirt
    mount --bind $own/1/$d /$d/libvirt
done
mount --bind "$IMAGES" /var/lib/libvirt/images
mkdir -p $own/dev/pts $own/dev/shm
for node in null zero full random urandom tty; do
    : > $own/dev/$node
    mount --bind /dev/$node $own/dev/$node
done
mount --rbind /dev/pts $own/dev/pts
mount --rbind /dev/shm $own/dev/shm
ln -s pts/ptmx $own/dev/ptmx
ln -s /proc/self/fd $own/dev/fd
mount --rbind $own/dev /dev
n=0
for path; do
    n=$((n + 1))
    mount --rbind $own/$n "$path"
done
for file in passwd group; do
    grep -q '^libvirt-qemu:' /etc/$file ||
        echo 'libvirt-qemu:x:0:0::/:/bin/false' >> /etc/$file
done
cd /
"$ROOT/usr/sbin/libvirtd" -f "$1/libvirtd.conf" &
wait $!
"""


def find():
    """(root, version) of the libvirt to use; skips if there is none."""
    root = os.getenv("QEMU_TEST_LIBVIRT", "")
    where = root or "the system"
    if not glob.glob(f"{root}/usr/lib/*/libvirt/connection-driver/"
                     "libvirt_driver_qemu.so"):
        raise unittest.SkipTest(f"no libvirt with its QEMU driver in {where}")
    try:
        said = [subprocess.run([f"{root}/usr/{name}", "--version"], text=True,
                               capture_output=True, check=False).stdout
                for name in ("sbin/libvirtd", "bin/virsh")]
    except OSError as error:
        raise unittest.SkipTest(f"no libvirt in {where}: {error}")
    found = [re.search(r"\d+\.\d+\.\d+", text) for text in said]
    expect(all(found), f"libvirt in {where} doesn't run")
    version = min(found, key=lambda f: [int(n) for n in f[0].split(".")])[0]
    if tuple(int(n) for n in version.split(".")[:2]) < MINIMUM:
        raise unittest.SkipTest(f"libvirt {version} in {where} is older than "
                                "%d.%d" % MINIMUM)
    return root, version


def need_namespaces():
    """The right to make them: root's, and a container may lack even that."""
    done = subprocess.run(UNSHARE + ["mount", "-t", "tmpfs", "tmpfs", "/run"],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise unittest.SkipTest("libvirtd needs namespaces of its own (root): "
                                + done.stderr.strip())


class Libvirtd:
    """The daemon, and virsh."""

    number = 0

    def __init__(self, name, logs, scratch, images, shown):
        """images: becomes /var/lib/libvirt/images; shown: other folders that
        the domains use."""
        need_namespaces()
        self.root, self.version = find()
        Libvirtd.number += 1
        name = f"{name}-{Libvirtd.number}"
        self.log = f"{logs}/{name}.log"
        self.work = f"{scratch}/{name}"
        self.sockets = tempfile.mkdtemp(prefix="libvirt-")  # a short path
        self.uri = f"qemu+unix:///system?socket={self.sockets}/libvirt-sock"
        for place in PLACES:
            os.makedirs(f"{self.work}/{place}")
        os.mkdir(f"{self.work}/var/lib/images")
        for file, text in CONFIG.items():
            with open(f"{self.work}/{file}", "w", encoding="utf-8") as f:
                f.write(text.format(sockets=self.sockets, log=self.log,
                                    number=Libvirtd.number))
        env = dict(os.environ, ROOT=self.root, IMAGES=images, HOST=name,
                   PLACES=" ".join(PLACES))
        with open(self.log, "ab") as log:
            self.proc = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *UNSHARE,
                 "sh", "-c", NAMESPACE, "sh", self.work, logs, *shown],
                env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)
        try:
            wait_for("answer of libvirtd", self.ready)
        except BaseException:
            self.end()
            raise

    def ready(self):
        """Does it answer yet?"""
        if self.proc.poll() is not None:
            with open(self.log, encoding="utf-8", errors="replace") as f:
                lines = f.read().split("\n")
            raise GuestError(f"libvirtd ended: {' / '.join(lines[-4:])}")
        return self.call("uri")[0] == 0

    def call(self, *words):
        """virsh: (exit status, standard output, what it complains of)"""
        try:
            done = subprocess.run(
                [f"{self.root}/usr/bin/virsh", "-q", "-c", self.uri, *words],
                env=dict(os.environ, LC_ALL="C"), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=VIRSH_LIMIT,
                check=False)
        except subprocess.TimeoutExpired:
            raise GuestError(f"virsh {words[0]}: not done after {VIRSH_LIMIT} "
                             "s") from None
        said = " ".join(s.removeprefix("error: ").strip()
                        for s in done.stderr.splitlines() if s.strip())
        return done.returncode, done.stdout.strip(), said

    def virsh(self, *words):
        """Output of a virsh command that must succeed."""
        status, output, said = self.call(*words)
        expect(not status, f"virsh {' '.join(words)}: {said or output}")
        return output

    def refuses(self, message, *words):
        """A virsh command that must fail, with this in what it says."""
        status, _, said = self.call(*words)
        expect(status, f"virsh {' '.join(words)} was not refused")
        expect(message in said, f"expected '{message}', virsh said: {said}")

    def processes(self, domain):
        """PIDs, as seen here, of a domain's QEMU."""
        inside = os.readlink(f"/proc/{self.proc.pid}/ns/pid_for_children")
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    mine = f"\0guest={domain},".encode() in f.read()
                if mine and os.readlink(f"/proc/{pid}/ns/pid") == inside:
                    found.append(int(pid))
            except OSError:
                continue
        return found

    def end(self):
        """End it with all that runs in it."""
        self.proc.kill()
        self.proc.wait()
        shutil.rmtree(self.sockets, ignore_errors=True)
