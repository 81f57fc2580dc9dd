# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest of scripts/lab/guest with other people's test programs in it.

make_initrd() gives the path of an initramfs that has, besides what the guest
has anyway, the programs of PACKAGES in /usr/bin and /usr/sbin, the kernel's
modules EXTRA_MODULES in /modules (their order of loading in /modules/extra), and
the beginning of dbench's load file in /usr/share/dbench.

The packages are Debian's, of the same release as the guest's, fetched by apt
with lists and cache of its own; they are kept in build/guest-tools and used
again without network.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile

from program import load
from watch import RunError, say

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.abspath(f"{HERE}/../..")
GUEST = f"{TOP}/build/guest"
TOOLS = f"{TOP}/build/guest-tools"
# package: its programs, or the beginnings of their names
PACKAGES = {"libiscsi-bin": ("iscsi-test-cu",),
            "sg3-utils": ("sg_",),
            "e2fsprogs": ("mke2fs", "e2fsck"),
            "xfsprogs": ("mkfs.xfs", "xfs_repair"),
            "dbench": ("dbench",)}
EXTRA_MODULES = ["sg", "sr_mod", "xfs"]
LOAD = "usr/share/dbench/client.txt"
LOAD_BYTES = 3 << 20            # of 25 MB; clients seldom get further


GUEST_LIB = load("guest")


# ---------------------------------------------------------------- packages

def list_debs():
    """Paths of the packages that were fetched; none if one is missing."""
    debs = f"{TOOLS}/debs"
    if not os.path.isdir(debs):
        return []
    names = sorted(n for n in os.listdir(debs) if n.endswith(".deb"))
    have = {n.split("_")[0] for n in names}
    return [f"{debs}/{n}" for n in names] if have >= set(PACKAGES) else []


def fetch():
    """Download the packages; their paths."""
    apt = GUEST_LIB.Apt(f"{TOOLS}/apt")
    say(f"Tools:   fetching {', '.join(PACKAGES)} of Debian "
        f"{GUEST_LIB.SUITE}")
    apt.update()
    names = list(PACKAGES)
    for package in PACKAGES:
        names += [n for n in apt.libraries_of(package) if n not in names]
    new = f"{TOOLS}/debs.new"
    shutil.rmtree(new, ignore_errors=True)
    os.makedirs(new)
    here = os.getcwd()
    os.chdir(new)               # apt-get download has no other way to say where
    try:
        apt.get("download", *names, what="download")
    finally:
        os.chdir(here)
    shutil.rmtree(f"{TOOLS}/debs", ignore_errors=True)
    os.rename(new, f"{TOOLS}/debs")
    return list_debs()


# ---------------------------------------------------------------- contents

def programs(root):
    """Paths of the packages' programs, without scripts and links."""
    wanted = sum(PACKAGES.values(), ())
    for folder in ("usr/bin", "usr/sbin"):
        for name in sorted(os.listdir(f"{root}/{folder}")):
            path = f"{root}/{folder}/{name}"
            if name.startswith(wanted) and not os.path.islink(path):
                with open(path, "rb") as f:
                    if f.read(4) == b"\x7fELF":
                        yield path


def kernel_deb():
    """The package whose kernel the guest boots: modules must fit it."""
    with open(f"{GUEST}/current/packages", encoding="ascii") as f:
        for name in f.read().split():
            path = f"{GUEST}/debs/{name}"
            if name.startswith("linux-image-") and os.path.exists(path):
                return path
    raise RunError("the guest's kernel package is gone from build/guest/debs; "
                   "scripts/lab/guest --refresh fetches it")


def modules(tmp):
    """[(file name, bytes)] of EXTRA_MODULES, without what the guest has."""
    GUEST_LIB.output(["dpkg", "-x", kernel_deb(), f"{tmp}/kernel"],
                     "unpacking the kernel")
    usual = GUEST_LIB.MODULES
    try:
        there = {name for name, _ in GUEST_LIB.module_order(f"{tmp}/kernel")}
        GUEST_LIB.MODULES = EXTRA_MODULES
        return [(name, data) for name, data
                in GUEST_LIB.module_order(f"{tmp}/kernel")
                if name not in there]
    finally:
        GUEST_LIB.MODULES = usual


def write_tools(tmp, path):
    """An initramfs that adds to the guest's what is unpacked in tmp/root."""
    root, files = f"{tmp}/root", {}
    cpio = GUEST_LIB.Cpio(path)
    for program in programs(root):
        files.update(GUEST_LIB.libraries(root, program))
        cpio.add(os.path.relpath(program, root), GUEST_LIB.read(program))
    for inside, outside in sorted(files.items()):
        cpio.add(inside[1:], GUEST_LIB.read(outside))
    found = modules(tmp)
    for name, data in found:
        cpio.add(f"modules/{name}", data, 0o644)
    order = "".join(f"{name}\n" for name, _ in found)
    cpio.add("modules/extra", order.encode(), 0o644)
    with open(f"{root}/{LOAD}", "rb") as f:
        cpio.add(LOAD, b"".join(f.readlines(LOAD_BYTES)), 0o644)
    cpio.close()


def pack(debs, path):
    """The guest's initramfs and, behind it, one with the programs."""
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=TOOLS) as tmp:
        for deb in debs:
            GUEST_LIB.output(["dpkg", "-x", deb, f"{tmp}/root"],
                             f"unpacking {os.path.basename(deb)}")
        write_tools(tmp, f"{tmp}/tools")
        with open(f"{tmp}/initrd", "wb") as f:
            f.write(GUEST_LIB.read(f"{GUEST}/current/initrd"))
            f.write(GUEST_LIB.read(f"{tmp}/tools"))
        os.replace(f"{tmp}/initrd", path)


# ------------------------------------------------------------------- cache

def tidy(keep):
    """Delete what older recipes and killed runs left."""
    for name in os.listdir(TOOLS):
        path = f"{TOOLS}/{name}"
        if name.startswith("tmp-"):
            shutil.rmtree(path, ignore_errors=True)
        elif name.startswith("initrd-") and path != keep:
            os.unlink(path)


def packed(refresh):
    debs = fetch() if refresh else list_debs() or fetch()
    recipe = hashlib.sha256(GUEST_LIB.read(os.path.abspath(__file__)))
    recipe.update(os.path.realpath(f"{GUEST}/current").encode())
    recipe.update("\n".join(debs).encode())
    path = f"{TOOLS}/initrd-{recipe.hexdigest()[:12]}"
    if not os.path.exists(path):
        tidy(path)
        pack(debs, path)
    return debs, path


def make_initrd(refresh=False):
    """Path of an initramfs with the programs in it."""
    if subprocess.run([f"{HERE}/guest"], check=False).returncode:
        raise RunError("no guest to run, see the line above")
    os.makedirs(TOOLS, exist_ok=True)
    try:
        with open(f"{TOOLS}/lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)    # two users may start at once
            debs, path = packed(refresh)
    except GUEST_LIB.GuestError as error:
        raise RunError(f"test programs for the guest: {error}") from None
    names = [os.path.basename(deb) for deb in debs]
    versions = [" ".join(n.split("_")[:2]) for n in names
                if n.split("_")[0] in PACKAGES]
    say(f"Tools:   {', '.join(versions)}")
    return path
