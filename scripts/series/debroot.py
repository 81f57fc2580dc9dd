# SPDX-License-Identifier: GPL-2.0-or-later
"""A small Debian to build packages in, apart from this machine's own.

Root is a directory with a package's build dependencies, which mmdebstrap puts
together from this machine's own mirror. Programs run in it by chroot, in
namespaces of their own: all their mounts and processes end with them, and they
have no network. That needs root.
"""

import glob
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

import program

overlay = program.load("overlay")
Problem = overlay.Problem
TOP = overlay.TOP

SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# No tests of Debian's; and qemu-user, with the vdso it needs, has no device.
PROFILES = "nocheck pkg.qemu.omit-user pkg.qemu.use-upstream-vdso"
EVERY = 30                      # seconds from one line of progress to the next

# All that is started here ends with its parent, whatever ends that.
NAMESPACE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid",
             "--fork", "--kill-child", "--mount-proc"]
INSIDE = r"""
set -eu
root=$1 work=$2
shift 2
mkdir -p "$root/build"
mount --bind "$work" "$root/build"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
mkdir "$root/dev/shm"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"
    mount --bind /dev/$node "$root/dev/$node"
done
ln -s /proc/self/fd "$root/dev/fd"
exec chroot "$root" "$@"
"""

# What the maintainer scripts of packages would have set up, as far as QEMU's
# configure wants it. Link: what it leads to.
LINKS = {"usr/bin/cc": "gcc", "usr/bin/c++": "g++", "usr/bin/awk": "mawk",
         "etc/dpkg/origins/default": "debian"}
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


def need_root():
    """Ends a program early that could not make a root directory or enter it."""
    if os.geteuid():
        raise Problem("this builds in a root directory of its own (chroot, "
                      "namespaces): run it as root")
    for tool in ("mmdebstrap", "unshare", "setpriv", "dpkg-checkbuilddeps"):
        if not shutil.which(tool):
            raise Problem("no %s (scripts/build/deps deb installs it)" % tool)


def end_by_signal():
    """Have SIGTERM and SIGHUP end the program like Ctrl-C, with clean-up."""
    def stop(number, _frame):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def mirrors():
    """This machine's mirrors of Debian, best first."""
    script = '. "$top/scripts/build/lib-apt.sh"; debian_uris main'
    found = subprocess.run(["sh", "-c", script], env=dict(os.environ, top=TOP),
                           stdout=subprocess.PIPE, universal_newlines=True)
    if not found.stdout.split():
        raise Problem("this machine's apt sources have no Debian archive")
    return found.stdout.split()


def dependencies(control):
    """Names of the packages that building a package's -any part needs here."""
    with tempfile.TemporaryDirectory() as nothing:
        open(os.path.join(nothing, "status"), "w").close()
        told = subprocess.run(
            ["dpkg-checkbuilddeps", "--admindir=" + nothing, "-B",
             "-P", PROFILES.replace(" ", ","), control],
            env=dict(os.environ, LC_ALL="C"), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, universal_newlines=True).stdout
    found = re.search(r"Unmet build dependencies: (.*)", told)
    if not found:
        raise Problem("dpkg-checkbuilddeps %s: %s" % (control, told.strip()))
    # versions, all but the first of alternatives, architectures
    names = re.sub(r" \([^)]*\)| \| \S+|:\w+", "", found.group(1))
    return sorted(set(names.split()))


class Root:
    """A root directory; unpacked: no maintainer script has run in it, which
    takes a third of the time and is enough to compile."""

    def __init__(self, path, unpacked):
        self.path = path
        self.unpacked = unpacked
        self.stamp = path + ".stamp"

    def make(self, control):
        """Make it, unless it is there."""
        packages = dependencies(control)
        wanted = "%s %s\n" % (SUITE, " ".join(packages))
        if os.path.isdir(self.path) and overlay.read(self.stamp) == wanted:
            return
        self.remove()
        print("debroot: fetching %s's build dependencies (%d packages and what "
              "they need, 0.4 GB)" % (SUITE, len(packages)), flush=True)
        begin = time.monotonic()
        try:
            self.fetch(packages)
            if self.unpacked:
                self.settle()
        except BaseException:
            self.remove()
            raise
        overlay.write(self.stamp, wanted)
        print("debroot: took %d s" % (time.monotonic() - begin), flush=True)

    def remove(self):
        """Delete it."""
        for name in (self.stamp, self.path + ".log"):
            if os.path.exists(name):
                os.unlink(name)
        shutil.rmtree(self.path, ignore_errors=True)

    def fetch(self, packages):
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        log = self.path + ".log"
        for uri in mirrors():
            shutil.rmtree(self.path, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix="debroot-") as temp:
                status = follow(NAMESPACE + self.command(packages, uri), log,
                                dict(os.environ, TMPDIR=temp))
            if status == 0:
                os.unlink(log)
                return
        raise Problem("mmdebstrap failed:\n%s" % tail(log, r"^E:|[Ee]rror"))

    def command(self, packages, uri):
        options = {"APT::Sandbox::User": "root", "Acquire::Retries": "3",
                   "Acquire::Languages": "none",
                   "APT::Install-Recommends": "false"}
        return (["mmdebstrap", "--mode=root", "--format=directory",
                 "--variant=" + ("extract" if self.unpacked else "apt"),
                 "--keyring=" + KEYRING, "--components=main",
                 "--dpkgopt=force-unsafe-io"]
                + ['--aptopt=%s "%s"' % item for item in options.items()]
                # a pattern isn't understood together with names
                + ["--include=?essential", "--include=" + ",".join(packages),
                   SUITE, self.path, uri])

    def settle(self):
        for name, target in LINKS.items():
            link = os.path.join(self.path, name)
            if not os.path.lexists(link):
                os.symlink(target, link)
        pattern = self.path + "/usr/share/ca-certificates/mozilla/*.crt"
        with open(os.path.join(self.path, CERTIFICATES), "wb") as out:
            for name in sorted(glob.glob(pattern)):
                with open(name, "rb") as one:
                    shutil.copyfileobj(one, out)

    def run(self, script, work, log, env=None, progress=None):
        """A shell script in @work, which is /build inside; its exit status."""
        inside = dict({"PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                       "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
                      **(env or {}))
        command = NAMESPACE + [
            "--net", "sh", "-c", INSIDE, "sh", self.path, work,
            "sh", "-ec", "cd /build; " + script]
        return follow(command, log, inside, progress)


def follow(command, log, env, progress=None):
    """Run a command with its output in @log; tells now and then how far it is.

    @progress(line) returns what to tell of a line, or None.
    """
    with open(log, "wb", buffering=0) as out:
        child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT,
                                 start_new_session=True)
        told = time.monotonic()
        try:
            for line in child.stdout:
                out.write(line)
                if not progress or time.monotonic() < told + EVERY:
                    continue
                text = progress(line.decode(errors="replace"))
                if text:
                    print("  " + text, flush=True)
                    told = time.monotonic()
            return child.wait()
        finally:
            child.kill()
            child.wait()


def ninja_progress(line):
    """What to tell of ninja's output: how many of its steps are done."""
    found = re.match(r"\[(\d+/\d+)\]", line)
    return found and "%s steps" % found.group(1)


def tail(log, pattern, limit=8):
    """The last lines of a log that matter, or just the last."""
    with open(log, errors="replace") as file:
        lines = [s.rstrip() for s in file if s.strip()]
    return "\n".join([s for s in lines if re.search(pattern, s)][-limit:]
                     or lines[-limit:])
