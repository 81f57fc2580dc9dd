# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of scripts/bench/bench: statistics, tables and a chart, computed from
the dictionary that results.json holds, so that none says what was not measured.

Figures of two configurations are compared within a round, where they ran one
after the other: what else the machine does changes slowly, so most of it
cancels out. The median of these ratios is what counts.
"""

import collections
import re
import statistics
import subprocess

from benchcases import CHART, SETS, SUBJECTS
from common import Problem, need

LABELS = {"ours": "ours", "stock": "stock scsi", "blk": "stock blk",
          "limit": "fio"}
# key in a run's figures: (column title, factor from the stored unit)
METRICS = {
    "cpu": ("µs CPU per I/O", 1e-3), "iops": ("1000 IOPS", 1e-3),
    "p50": ("p50 µs", 1), "p99": ("p99 µs", 1),
    "server_cpu": ("server: µs CPU per I/O", 1e-3),
    "single_p50": ("its p50 µs", 1), "single_p99": ("its p99 µs", 1),
    "rss_idle": ("RSS, idle", 1 / 1024),
    "rss_loaded": ("RSS, loaded", 1 / 1024),
    "own_idle": ("without guest memory and files, idle", 1 / 1024),
    "own_loaded": ("..., loaded", 1 / 1024), "moves": ("moves", 1),
    "pause_p50": ("pause ms: median", 1e-3), "pause_max": ("longest", 1e-3),
}
SUBJECT_TITLES = {"fair": "one queue full, the other reads one by one",
                  "rss": "MiB, 16 queues x 1024"}
MINOR_ROUNDS = 3                # of cases that are not core

Summary = collections.namedtuple("Summary", "median low high")


# ------------------------------------------------------------------ statistics

def summary(values):
    """Median, lowest and highest; None of no values."""
    values = list(values)
    if not values:
        return None
    return Summary(statistics.median(values), min(values), max(values))


def by_round(results, case, subject, metric):
    """{round: figure} of one subject in one case."""
    return {run["round"]: run["figures"][metric] for run in results["runs"]
            if run["case"] == case and run["subject"] == subject
            and run["figures"].get(metric) is not None}


def figure(results, case, subject, metric):
    return summary(by_round(results, case, subject, metric).values())


def ratio(results, case, metric, one, two, base=None):
    """Of each round that has both: one's figure divided by two's."""
    ones = by_round(results, case, one, metric)
    twos = by_round(results, base or case, two, metric)
    return summary(ones[i] / twos[i] for i in ones if twos.get(i))


def judge(results, goal):
    """(Summary, reached) of a goal; (None, None) if it wasn't measured."""
    if goal.against:
        found = ratio(results, goal.case, goal.metric, "ours", goal.against,
                      goal.base)
    else:
        found = figure(results, goal.case, "ours", goal.metric)
    if not found:
        return None, None
    # what is the worst of all isn't made better by other rounds
    value = found.high if goal.metric.endswith("_max") else found.median
    return found, value <= goal.limit if goal.sense == "<=" else \
        value >= goal.limit


# ------------------------------------------------------------------------ text

def table(header, rows, rst=False):
    """A table of Markdown or reStructuredText, aligned as text, too."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    if rst:
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip()
                 for row in cells]
        rule = "  ".join("=" * width for width in widths)
        return "\n".join([rule, lines[0], rule, *lines[1:], rule]) + "\n"
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells[1:1] = [rule]
    return "".join("| " + " | ".join([row[0].ljust(widths[0]),
                                      *map(str.rjust, row[1:], widths[1:])])
                   + " |\n" for row in cells)


def number(value):
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.{1 if value >= 10 else 2}f}"


def spread(found, factor=1):
    """Median (lowest-highest); a dash that begins no list in a table."""
    if not found:
        return "–"
    return "%s (%s-%s)" % tuple(number(value * factor) for value in found)


def middle(found, factor=1):
    return number(found.median * factor) if found else "–"


def heading(results):
    machine, settings = results["machine"], results["settings"]
    busy = summary(run["others"] / machine["cores"] for run in results["runs"])
    lengths = sorted({one["options"].get("seconds", settings["seconds"])
                      for one in results["cases"]})
    return (f"{machine['cpu']}, {machine['cores']} cores, Linux "
            f"{machine['kernel']}, {machine['date']}; ours: commit "
            f"{machine['commit']}; stock: {results['qemu']['stock']}; medians "
            f"of {settings['rounds']} rounds of "
            + " to ".join(f"{s:g}" for s in sorted({lengths[0], lengths[-1]}))
            + " s (lowest-highest). Ratios are medians of each round's."
            " Other processes used " + ("0 %" if not busy else
                                        f"{100 * busy.median:.0f} % (up to "
                                        f"{100 * busy.high:.0f} %)")
            + " of the CPU time.\n")


# ---------------------------------------------------------------------- tables

def goals(results, goals_of):
    """How far each goal is reached, as header and rows."""
    rows = []
    for one in goals_of:
        found, reached = judge(results, one)
        against = "itself" if one.against == "ours" else LABELS.get(one.against,
                                                                    "")
        rows.append([one.title, against, f"{one.sense} {one.limit:g}",
                     spread(found), "not measured" if not found else
                     "reached" if reached else "missed"])
    return ["goal", "against", "limit", "found", ""], rows


def titles(results, brief):
    """(name, title, case) of cases that ran; `brief`: not the minor ones."""
    ran = {run["case"] for run in results["runs"]}
    return [(one["name"], one["title"], one) for one in results["cases"]
            if one["name"] in ran
            and (not brief or one["core"] or one["name"] in CHART)]


def ran(results):
    """The subjects that were measured."""
    found = {run["subject"] for run in results["runs"]}
    return [subject for subject in SUBJECTS if subject in found]


def compare(results, brief, metric, depth=None):
    """A figure of each subject in each case, and ours divided by others'."""
    subjects, cell = ran(results), middle if brief else spread
    title, factor = METRICS[metric]
    rows = []
    for name, text, one in titles(results, brief):
        found = [figure(results, name, subject, metric) for subject in subjects]
        if any(found) and (not depth or (one["options"]["depth"] == 1)
                           == (depth == "depth 1")):
            rows.append(
                [text, *(cell(f, factor) for f in found),
                 *(spread(ratio(results, name, metric, "ours", subject))
                   for subject in subjects[1:])])
    return [title, *(LABELS[s] for s in subjects),
            *(f"ours / {LABELS[s]}" for s in subjects[1:])], rows


def to_base(results, brief, metric):
    """Each subject's figure divided by its own in the case's base."""
    rows = [[text] + [spread(ratio(results, name, metric, subject, subject,
                                   one["base"])) for subject in ran(results)]
            for name, text, one in titles(results, brief) if one.get("base")]
    return [f"{METRICS[metric][0]}, to the first case's",
            *(LABELS[s] for s in ran(results))], rows


def by_case(results, brief, *metrics):
    """Several figures of ours in each case."""
    return ["case", *(METRICS[m][0] for m in metrics)], [
        [text, *(spread(figure(results, name, "ours", m), METRICS[m][1])
                 for m in metrics)] for name, text, _ in titles(results, brief)]


def by_subject(results, _, name, *metrics):
    """Several figures of one case for each subject."""
    found = {s: [figure(results, name, s, m) for m in metrics]
             for s in ran(results)}
    return [SUBJECT_TITLES[name], *(METRICS[m][0] for m in metrics)], [
        [LABELS[s], *(spread(f, METRICS[m][1]) for f, m in zip(row, metrics))]
        for s, row in found.items() if any(row)]


FORMS = {form.__name__: form
         for form in (compare, to_base, by_case, by_subject)}


def tables(results, rst=False):
    """All tables of a report; in the manual (`rst`) without the minor cases."""
    this = SETS[results["settings"].get("set", "disk")]
    found = [goals(results, this.goals)] + [
        FORMS[form](results, rst, *words) for form, *words in this.tables]
    return [table(header, rows, rst) for header, rows in found if rows]


def remarks(results):
    """What was not measured, and why."""
    lines = [f"- skipped: {one['title']}: {one['skipped']}\n"
             for one in results["cases"] if one["skipped"]]
    lines += ["- FAILED: %(case)s, %(subject)s: %(message)s\n" % failure
              for failure in results["failures"]]
    return "".join(lines)


def markdown(results):
    """The whole report; what stands on the terminal as well."""
    return "\n".join(["# make bench\n", heading(results), *tables(results),
                      remarks(results)])


def docs_section(results):
    """What stands between the markers of the set's page."""
    return "\n" + "\n".join([heading(results), *tables(results, rst=True)])


def readme_section(results):
    """The cases of the chart, and the goals that are missed."""
    pairs = [(key, subject) for key in ("cpu", "iops") for subject in LABELS]
    rows = [[title, *(middle(figure(results, name, subject, key),
                             METRICS[key][1]) for key, subject in pairs)]
            for name, title, _ in titles(results, True) if name in CHART]
    header = ["case", *((METRICS[key][0] + ": " if subject == "ours" else "")
                        + LABELS[subject] for key, subject in pairs)]
    judged = [(one, *judge(results, one)) for one in SETS["disk"].goals]
    judged = [one for one in judged if one[1]]
    missed = [f"{one.title}, against {LABELS[one.against]} "
              f"({number(found.median)}, wanted {one.sense} {one.limit:g})"
              for one, found, reached in judged if not reached]
    return "\n".join([
        "![CPU per I/O and IOPS](docs/bench.svg)\n", heading(results),
        table(header, rows), f"Goals reached: {len(judged) - len(missed)} of "
        f"{len(judged)}." + bool(missed) * f" Missed: {'; '.join(missed)}."])


# ----------------------------------------------------------------------- chart

CHART_HEAD = """\
set terminal svg size 900,660 noenhanced font "sans-serif,13" \\
    background "white"
set style data histograms
set style histogram errorbars gap 1 lw 1
set style fill solid 0.9 noborder
set grid ytics
set yrange [0:*]
set xtics scale 0
set key outside top center horizontal
set bmargin 3
set errorbars linecolor rgb "black"
set multiplot layout 2,1
"""
COLORS = ["#2b7a4b", "#c8643c", "#7d8fb3", "#444444"]


def gnuplot_script(results):
    """Two charts of bars with what they spread; "?" is no bar."""
    parts = [CHART_HEAD]
    for metric in ("cpu", "iops"):
        title, factor = METRICS[metric]
        parts.append(f"${metric} << EOD")
        for name, label in CHART.items():
            found = [figure(results, name, s, metric) for s in LABELS]
            if any(found):
                parts.append(f'"{label}" ' + " ".join(
                    f"{value * factor:.4g}" if f else "?"
                    for f in found for value in f or (0, 0, 0)))
        bars = [f'${metric} using {n}:{n + 1}:{n + 2}:xtic(1) title "{label}" '
                f'lc rgb "{color}"' for n, label, color in
                zip(range(2, 14, 3), LABELS.values(), COLORS)]
        parts += ["EOD", f'set title "{title}"', "plot " + ", ".join(bars),
                  "unset key"]
    return "\n".join(parts) + "\n"


def svg(results):
    """The chart as text."""
    need("bench", "gnuplot")
    done = subprocess.run(["gnuplot"], input=gnuplot_script(results), text=True,
                          capture_output=True, check=False)
    if done.returncode or "</svg>" not in done.stdout:
        raise Problem(f"no chart: gnuplot: {done.stderr.strip()}")
    # half of what gnuplot writes are empty groups
    text = re.sub(r"<g [^>]*>\s*</g>\n", "", done.stdout)
    return re.sub(r"[ \t]+$", "", text, flags=re.M)
