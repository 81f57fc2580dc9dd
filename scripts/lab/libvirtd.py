# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirtd of its own for a test, and virsh to talk to it.

Libvirtd runs the daemon in mount and PID namespaces of its own: it has its
own /etc/libvirt, /var/*/libvirt and /run and sees no /dev/kvm; the system's
libvirt, if there is one, notices nothing. All domains die with the namespace,
however the test ends.

The programs are the system's, if new enough, or those that `scripts/build/deps
libvirt` unpacked into build/libvirt/root.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True      # leaves no scripts/__pycache__ behind
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, f"{HERE}/..")
from watch import RunError

TOP = os.path.abspath(f"{HERE}/../..")
ROOT = f"{TOP}/build/libvirt/root"
MINIMUM = (11, 2)               # the first that maps a controller's queues
VIRSH_LIMIT = 180               # seconds, generous
# Where libvirt has a directory in the system.
PLACES = ("etc", "var/lib", "var/cache", "var/log")

CONFIG = {
    "libvirtd.conf": """\
unix_sock_dir = "{sockets}"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:{work}/libvirtd.log"
""",
    # No systemd, no virtlogd, no cgroups, no change of owners or labels.
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
# there, hence the overlays. The checkout may lie below one of them: it is
# mounted once more on top. Nobody sees these mounts from outside.
NAMESPACE = r"""
set -eu
mount -t tmpfs tmpfs /run
own=/run/check-libvirt
mkdir -p $own/top $own/dev/pts $own/dev/shm
mount --rbind "$TOP" $own/top
if [ -n "$ROOT" ]; then
    cd "$ROOT/usr"
    for d in lib share; do
        mount -t overlay -o lowerdir=$d:/usr/$d overlay /usr/$d
    done
fi
for d in $PLACES; do
    mkdir -p $own/up/$d $own/work/$d
    mount -t overlay overlay /$d \
        -o lowerdir=/$d,upperdir=$own/up/$d,workdir=$own/work/$d
    mkdir -p /$d/libvirt
    mount --bind "$own/top/$INSIDE/$d" /$d/libvirt
done
for node in null zero full random urandom tty; do
    : > $own/dev/$node
    mount --bind /dev/$node $own/dev/$node
done
mount --rbind /dev/pts $own/dev/pts
mount --rbind /dev/shm $own/dev/shm
ln -s pts/ptmx $own/dev/ptmx
ln -s /proc/self/fd $own/dev/fd
mount --rbind $own/dev /dev
mount --rbind $own/top "$TOP"
# libvirtd does not start without this user, though it uses root.
for file in passwd group; do
    grep -q '^libvirt-qemu:' /etc/$file ||
        echo 'libvirt-qemu:x:0:0::/:/bin/false' >> /etc/$file
done
cd /
# The first process of the namespace has to collect the domains that ended.
"$LIBVIRTD" -f "$TOP/$INSIDE/libvirtd.conf" &
wait $!
"""


def version_of(program, env=None):
    """(major, minor) that a program of libvirt tells, or None."""
    try:
        done = subprocess.run([program, "--version"], env=env, text=True,
                              capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"(\d+)\.(\d+)\.\d+", done.stdout)
    return (int(found.group(1)), int(found.group(2))) if found else None


def private_env():
    """For programs of build/libvirt/root."""
    where = ":".join(glob.glob(f"{ROOT}/usr/lib/*-linux-gnu"))
    return dict(os.environ, LD_LIBRARY_PATH=where)


def find():
    """(root, version): where libvirt's programs are, "" for the system's."""
    driver = "usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so"
    seen = []
    for root, env in (("", None), (ROOT, private_env())):
        found = [version_of(f"{root}/usr/{name}", env)
                 for name in ("sbin/libvirtd", "bin/virsh")]
        if None in found or not glob.glob(f"{root}/{driver}"):
            continue
        if min(found) >= MINIMUM:
            return root, min(found)
        seen.append("%d.%d" % min(found))
    older = f", only {', '.join(seen)}" if seen else ""
    raise RunError("no libvirt >= %d.%d with its QEMU driver here" % MINIMUM
                   + older + ": run `scripts/build/deps libvirt`")


def need_libvirt():
    """Ends a program early that could not start one."""
    if os.geteuid():
        raise RunError("libvirtd needs namespaces of its own: run as root")
    find()


class Libvirtd:
    """The daemon, and virsh."""

    def __init__(self, folder):
        """folder: below TOP; gets the daemon's files and the logs."""
        self.root, self.version = find()
        os.makedirs(folder, exist_ok=True)
        self.work = tempfile.mkdtemp(prefix="run-", dir=folder)
        # A Unix socket's path must be short.
        self.sockets = tempfile.mkdtemp(prefix="libvirt-")
        self.images = f"{self.work}/var/lib/images"
        self.logs = folder
        self.proc = None

    def start(self):
        for place in PLACES:
            os.makedirs(f"{self.work}/{place}")
        os.mkdir(self.images)
        for name, text in CONFIG.items():
            with open(f"{self.work}/{name}", "w", encoding="utf-8") as f:
                f.write(text.format(work=self.work, sockets=self.sockets))
        env = dict(os.environ, TOP=TOP, ROOT=self.root,
                   PLACES=" ".join(PLACES),
                   INSIDE=os.path.relpath(self.work, TOP),
                   LIBVIRTD=f"{self.root}/usr/sbin/libvirtd")
        with open(f"{self.work}/stderr", "wb") as log:
            self.proc = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount",
                 "--pid", "--fork", "--kill-child", "--mount-proc",
                 "sh", "-c", NAMESPACE], env=env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True)
        return self

    def said(self):
        """Why it ended, in one line."""
        lines = []
        for name in ("stderr", "libvirtd.log"):
            try:
                with open(f"{self.work}/{name}", encoding="utf-8",
                          errors="replace") as f:
                    lines += [s.strip() for s in f if s.strip()]
            except OSError:
                pass
        return lines[-1] if lines else "no message"

    def ready(self):
        """Does it answer yet?"""
        if self.proc.poll() is not None:
            raise RunError(f"libvirtd ended: {self.said()}")
        return self.call("uri")[0] == 0

    def call(self, *words, limit=VIRSH_LIMIT):
        """virsh: (exit status, standard output, what it complains of)"""
        env = dict(private_env() if self.root else os.environ, LC_ALL="C",
                   VIRSH_DEFAULT_CONNECT_URI="qemu+unix:///system?socket="
                   f"{self.sockets}/libvirt-sock")
        try:
            done = subprocess.run(
                [f"{self.root}/usr/bin/virsh", "-q", *words], env=env,
                stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            raise RunError(f"virsh {words[0]}: not done after {limit} s"
                           ) from None
        said = " ".join(s.removeprefix("error: ").strip()
                        for s in done.stderr.splitlines() if s.strip())
        return done.returncode, done.stdout.strip(), said

    def virsh(self, *words, limit=VIRSH_LIMIT):
        """Output of a virsh command that must succeed."""
        status, output, said = self.call(*words, limit=limit)
        if status:
            raise RunError(f"virsh {' '.join(words)}: {said or output}")
        return output

    def refused(self, *words):
        """The message of a virsh command that must fail."""
        status, output, said = self.call(*words)
        if not status:
            raise RunError(f"virsh {' '.join(words)} was not refused: "
                           f"{output}")
        return said

    def processes(self, domain):
        """PIDs, as seen here, of a domain's QEMU."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read().split(b"\0")
                mine = os.readlink(f"/proc/{pid}/ns/pid") == self.inside()
            except OSError:
                continue
            if mine and any(w.startswith(f"guest={domain},".encode())
                            for w in words):
                found.append(int(pid))
        return found

    def inside(self):
        """Name of the PID namespace."""
        return os.readlink(f"/proc/{self.proc.pid}/ns/pid_for_children")

    def keep_log(self, inside, name):
        """Copy a log out of the working directory."""
        try:
            shutil.copyfile(f"{self.work}/{inside}", f"{self.logs}/{name}")
        except OSError:
            pass

    def end(self):
        """End it with all that runs in it, delete its files."""
        if self.proc:
            self.proc.kill()
            self.proc.wait()
        self.keep_log("libvirtd.log", "libvirtd.log")
        for folder in (self.work, self.sockets):
            shutil.rmtree(folder, ignore_errors=True)


def main():
    """Tells which libvirt a test would use; scripts/build/deps asks for that."""
    try:
        root, version = find()
    except RunError as error:
        print(f"libvirtd.py: {error}", file=sys.stderr)
        return 1
    print("libvirt %d.%d" % version, "in", root or "the system")
    return 0


if __name__ == "__main__":
    sys.exit(main())
