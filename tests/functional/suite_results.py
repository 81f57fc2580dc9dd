# SPDX-License-Identifier: GPL-2.0-or-later
"""Results of other people's test suites, and how those of two QEMUs differ.

A result is "passed", "failed" or "skipped", and all that the test printed.  It
is as good as stock's if both are the same.  Where ours is better, a line of the
file known-better says so, with the reason.  Any other difference is a failure.

This module needs nothing of QEMU's.
"""

import collections
import difflib
import re

RANK = {"failed": 0, "skipped": 1, "passed": 2}
VARYING = "Elapsed time = "     # differs from run to run of the same QEMU

Part = collections.namedtuple("Part", "name status lines")
Result = collections.namedtuple("Result", "verdict lines why")
Known = collections.namedtuple("Known", "suite test answer reason")


def result(verdict, lines, why=""):
    return Result(verdict, [s.rstrip() for s in lines
                            if not s.startswith(VARYING)], why.strip()[:60])


def cunit_result(lines):
    """Of one test of iscsi-test-cu: its lines, without those of the next."""
    text = "\n".join(lines)
    ends = re.findall(r"(?:^|\.\.\.|\s)(passed|FAILED)$", text, re.M)
    if not ends:
        return result("failed", lines, "iscsi-test-cu did not survive it")
    if ends[-1] == "passed" and "[SKIPPED]" not in text:
        return result("passed", lines)
    kind = "failed" if ends[-1] == "FAILED" else "skipped"
    why = re.search(rf"\[{kind.upper()}\](.*)|^\s+\d+\. (.*)", text, re.M)
    return result(kind, lines, (why.group(1) or why.group(2)) if why else "")


def cunit_results(parts):
    """{name: Result} of iscsi-test-cu, one of its suites to a part."""
    results = {}
    for part in parts:
        tests, name = {}, None
        for text in part.lines:
            found = re.match(r"  Test: (\S+) \.\.\.", text)
            if found:
                name = f"{part.name}.{found.group(1)}"
                tests[name] = []
            elif re.match(r"Run Summary:|\*+$|CUnit ", text):
                name = None
            if name:
                tests[name].append(text)
        if not tests:
            results[part.name] = result("failed", part.lines, f"status "
                                        f"{part.status}, no test")
        for name, lines in tests.items():
            results[name] = cunit_result(lines)
    return results


def command_results(parts):
    """{name: Result} of commands, one to a part."""
    return {part.name: result("failed" if part.status else "passed",
                              part.lines + [f"status {part.status}"],
                              "".join(part.lines[-1:])) for part in parts}


def known_better(path, suites):
    """[Known] of a file"""
    known = []
    with open(path, encoding="utf-8") as f:
        for number, text in enumerate(f, 1):
            if text.startswith("#") or not text.strip():
                continue
            fields = [s.strip() for s in text.split(" | ")]
            try:
                if len(fields) != 4 or not all(fields):
                    raise ValueError('not "suite | test | answer | reason"')
                if fields[0] not in suites:
                    raise ValueError(f"{fields[0]} is none of {suites}")
                re.compile(fields[1]), re.compile(fields[2])
            except (ValueError, re.error) as error:
                raise ValueError(f"{path}:{number}: {error}") from None
            known.append(Known(*fields))
    return known


def compare(suite, stock, ours, known, may_be_worse=False):
    """(verdict, test, [line]): same, better, skipped or failed, for each test
    and for each entry of known that explains none."""
    left = [k for k in known if k.suite == suite]
    entries = list(left)
    for name in {**stock, **ours}:
        if name not in ours or name not in stock:
            side = "ours" if name in stock else "stock"
            yield "failed", name, [f"did not run on {side}"]
            continue
        old, new = stock[name], ours[name]
        if old[:2] == new[:2]:
            # Nothing was tried where iscsi-test-cu skips.
            yield "skipped" if old.verdict == "skipped" else "same", name, \
                [f"{old.verdict}: {old.why}"]
            continue
        changes = [s for s in difflib.unified_diff(
                       old.lines, new.lines, n=0, lineterm="")
                   if not s.startswith(("---", "+++", "@@"))]
        added = "\n".join(s[1:] for s in changes if s.startswith("+"))
        told = f"{old.verdict} ({old.why}) -> {new.verdict} ({new.why})"
        why = next((k for k in entries if re.fullmatch(k.test, name)
                    and re.search(k.answer, added, re.M)), None)
        if why and (may_be_worse or
                    RANK[new.verdict] >= RANK[old.verdict]):
            left = [k for k in left if k is not why]
            yield "better", name, [told, why.reason]
        else:
            yield "failed", name, [told, *changes[:16]]
    for entry in left:
        yield "failed", f"known: {entry.test}", \
            ["no such difference any more: delete the entry"]


def failures(suite, results, known):
    """(verdict, test, [line]) of one QEMU: same, known, skipped or failed.
    What fails is known, and all that is known fails."""
    left = [k for k in known if k.suite == suite]
    for name, found in results.items():
        why = next((k for k in left if re.fullmatch(k.test, name)
                    and re.search(k.answer, "\n".join(found.lines), re.M)),
                   None)
        if found.verdict != "failed":
            yield "same" if found.verdict == "passed" else "skipped", name, \
                [f"{found.verdict}: {found.why}"]
        elif why:
            left.remove(why)
            yield "known", name, [f"fails ({found.why})", why.reason]
        else:
            yield "failed", name, found.lines
    for entry in left:
        yield ("failed", f"known: {entry.test}",
               ["does not fail: delete the entry"])
