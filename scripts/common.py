# SPDX-License-Identifier: GPL-2.0-or-later
"""What our programs share: files, commands, one way to end, and one another.

Who imports this finds the modules in the folders beside it, too.
"""

import argparse
import functools
import glob
import importlib.machinery
import importlib.util
import os
import shutil
import signal
import subprocess
import sys

SCRIPTS = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(SCRIPTS)
BUILD = os.path.join(TOP, "build")
sys.path += glob.glob(f"{SCRIPTS}/*/")


class Problem(Exception):
    """Something to tell the user in one message, without a traceback."""


def read(path):
    """The text of a file; none if there is no file."""
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def write(path, text):
    with open(path + ".new", "w", errors="surrogateescape") as file:
        file.write(text)
    os.replace(path + ".new", path)


def call(*command, cwd=None, env=None):
    """Returns (has it succeeded, what it said); env: more of it."""
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL,
                          env=dict(os.environ, **(env or {})),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, errors="replace")
    return done.returncode == 0, done.stdout


def run(*command, **where):
    """What a program says; a Problem if it fails."""
    ok, output = call(*command, **where)
    if not ok:
        raise Problem("%s failed:\n%s" % (" ".join(command[:4]),
                                          output[-2000:].rstrip()))
    return output


def synchronize(sources, target, *excluded, only_tell=False):
    """Make the folder @target what the sources are together; what several have
    is the first one's. Only what differs is written, and is as new as it is
    here: an object of what was there before is older, however old the source.
    Returns the names of what was written or deleted."""
    said = run("rsync", "-rlE" + "n" * only_tell, "--checksum", "--delete",
               "--out-format=%i %n", "--exclude=__pycache__",
               *("--exclude=" + pattern for pattern in excluded),
               *(source + "/" for source in sources), target)
    return [line.split(None, 1)[1] for line in said.splitlines()
            if not line.endswith("/")]


def arguments(text):
    """Of a program's arguments; --help says what stands at its head."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawTextHelpFormatter)


def need(group, *tools):
    """Programs that must be there, and what installs them."""
    for tool in tools:
        if not shutil.which(tool):
            raise Problem("no %s (scripts/build/deps %s installs it)"
                          % (tool, group))


def start(main, problems=(Problem, OSError)):
    """A program's main(): a Problem ends it with a line; so do signals, with
    clean-up, as an interrupt (unittest lets nothing else through)."""
    def stop(number, _frame):
        raise KeyboardInterrupt(number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        sys.exit(main())
    except problems as problem:
        sys.exit("%s: %s" % (os.path.basename(sys.argv[0]), problem))
    except KeyboardInterrupt as end:
        sys.exit(128 + (end.args or [signal.SIGINT])[0])


@functools.lru_cache(maxsize=None)
def load(name):
    """A program, whose name has no .py, as a module; the same one each time, so
    that the exceptions of one are those that another one catches."""
    path = next(path for folder in ("", "*/")
                for path in glob.glob(f"{SCRIPTS}/{folder}{name}")
                if os.path.isfile(path))
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module
