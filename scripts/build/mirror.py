# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages of Debian, by apt with lists, cache and sources of our own.

The system's apt sources, lists and packages stay as they are; only the mirrors'
addresses are taken from them.  All is kept below build/dl.
"""

import email.utils
import glob
import os
import re
import time

from common import BUILD, Problem, call, read, write

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = ("stable", "oldstable", "oldoldstable", "bookworm", "trixie")

# Hooks of the system are for its lists, and its sandbox user usually can't read
# below a home directory; signatures are checked anyway.  Without a status file
# it is a machine that has nothing yet.
CONF = """\
Dir::Etc::sourcelist "{top}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{top}/lists";
Dir::State::status "/dev/null";
Dir::Cache "{top}/cache";
APT::Sandbox::User "root";
APT::Default-Release "{release}";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


def release():
    """Codename of the running Debian; empty elsewhere."""
    text = read("/etc/os-release")
    found = re.search(r"^VERSION_CODENAME=(\w+)$", text, re.M)
    return found.group(1) if found and re.search("^ID=debian$", text, re.M) \
        else ""


def mirrors(security=False):
    """This machine's mirrors of Debian, best first.

    What apt would fetch tells them, even where no list was ever fetched.  Others
    may use Debian's suite names, too; theirs aren't signed with Debian's key.
    """
    plan = call("apt-get", "--print-uris", "update")[1]
    ends = ("-security", "/updates") if security else ("",)
    suites = {suite + end for suite in (release(), *SUITES) for end in ends}
    found = re.findall(r"^'(.*)/dists/(.+)/InRelease'", plan, re.M)
    uris = list(dict.fromkeys(uri for uri, suite in found if suite in suites))
    if not uris:
        raise Problem("this machine's apt sources have no Debian archive")
    return uris


class Apt:
    """apt with the lists of one mirror."""

    def __init__(self, name, uri, suites, kind):
        self.top = os.path.join(BUILD, "dl", "apt-" + name)
        for folder in ("lists/partial", "cache/archives/partial"):
            os.makedirs(os.path.join(self.top, folder), exist_ok=True)
        write(self.top + "/sources.list", "".join(
            "%s [signed-by=%s] %s %s main\n" % (kind, KEYRING, uri, suite)
            for suite in suites))
        write(self.top + "/apt.conf", CONF.format(
            top=self.top, release=suites[-1] if len(suites) > 1 else ""))
        self.update()

    def __call__(self, *words, cwd=None):
        """What apt-get or apt-cache prints; its first complaint if it fails."""
        env = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        ok, text = call(words[0], "-c", self.top + "/apt.conf", "-q", *words[1:],
                        cwd=cwd, env=env)
        if not ok:
            said = re.findall(r"^[EW]: .*", text, re.M) or [text.strip()]
            raise Problem("%s %s: %s" % (words[0], words[1], said[0]))
        return text

    def update(self):
        """Nothing may be wrong with an old archive but its date."""
        self("apt-get", "update")
        for path in glob.glob(self.top + "/lists/*_InRelease"):
            until = re.search(r"^Valid-Until: (.*)", read(path), re.M)
            if until and email.utils.mktime_tz(email.utils.parsedate_tz(
                    until.group(1))) < time.time():
                print("apt: WARNING: %s was valid until %s; taken nevertheless, "
                      "its signature is good"
                      % (path.partition("_dists_")[2], until.group(1)),
                      flush=True)

    def download(self, names, folder):
        """Packages, and the libraries and the kernel that they depend on."""
        plan = self("apt-get", "-s", "install", *names)
        more = [name for name in re.findall(r"^Inst (\S+)", plan, re.M)
                if re.match(r"(lib|zlib|linux-image-\d)", name)]
        self("apt-get", "download", *dict.fromkeys([*names, *more]), cwd=folder)
        return sorted(glob.glob(folder + "/*.deb"))


def from_mirrors(function, name, suites, kind="deb", security=False):
    """function(Apt) of the first mirror with which it works."""
    if not os.path.exists(KEYRING):
        raise Problem("no %s (package debian-archive-keyring)" % KEYRING)
    problem = None
    for uri in mirrors(security):
        try:
            return function(Apt(name, uri, suites, kind))
        except Problem as one:
            problem = problem or one
    raise problem
