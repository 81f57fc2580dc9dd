# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program that checks something counts, tells, and ends with."""

import re

SHOWN_LINES = 40


class Results:
    def __init__(self):
        self.passed = 0
        self.failed = []
        self.skipped = []

    def add(self, ok, what, why="", seconds=None):
        """One result, and @why it isn't ok."""
        if ok:
            self.passed += 1
        else:
            self.failed.append(what)
        print("%s - %s%s" % ("ok" if ok else "not ok", what,
                             "" if seconds is None else " (%.0f s)" % seconds),
              flush=True)
        if not ok:
            lines = str(why).rstrip("\n").split("\n")[-SHOWN_LINES:]
            print("".join("# %s\n" % line for line in lines), end="", flush=True)
        return ok

    def add_line(self, what, text):
        """The last line of another program of ours; without one it failed."""
        found = re.search(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", text,
                          re.M)
        if not found:
            return self.add(False, what, text)
        passed, failed, skipped = map(int, found.groups())
        self.passed += passed
        self.failed += [what] * failed
        self.skipped += [what] * skipped
        return not failed

    def end(self):
        """Names what failed; the line that all our programs end with."""
        for title, names in (("skipped", self.skipped), ("failed", self.failed)):
            if names:
                print("\n%s:\n  %s" % (title, "\n  ".join(dict.fromkeys(names))))
        print("\n%d passed, %d failed, %d skipped"
              % (self.passed, len(self.failed), len(self.skipped)), flush=True)
        return 1 if self.failed else 0
