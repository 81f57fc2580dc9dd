# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of a test program in TAP, the form that scripts/check/check counts."""


class Tap:
    def __init__(self):
        self.count = 0
        self.failed = 0

    def result(self, ok, name, why=""):
        """One result; @why is shown if it isn't ok."""
        self.count += 1
        self.failed += not ok
        print("%s %d - %s" % ("ok" if ok else "not ok", self.count, name),
              flush=True)
        if not ok:
            print("".join("# %s\n" % line for line in str(why).split("\n")),
                  end="", flush=True)
        return ok

    def equal(self, name, got, wanted):
        return self.result(got == wanted, name,
                           "got:    %r\nwanted: %r" % (got, wanted))

    def skip(self, name, why):
        self.count += 1
        print("ok %d - %s # SKIP %s" % (self.count, name, why), flush=True)

    def end(self):
        """Print the plan; returns the exit status."""
        print("1..%d" % self.count)
        return 1 if self.failed else 0
