# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of scripts/bench/bench: Markdown tables, which are the text on the terminal
as well, the same tables for the manual, and a chart. All figures come from the
dictionary in results.json."""

import re
import subprocess

from benchstat import GOALS, cost, figure, judge, ratio, summary

LABELS = {"ours": "ours", "stock": "stock scsi", "blk": "stock blk"}
ALL_LABELS = dict(LABELS, limit="fio")
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

# Cases whose bars the chart shows, and what it calls them.
CHART = [("null-1", "null-co 4K\\n1 IOThread"),
         ("null-2", "null-co 4K\\n2 IOThreads"),
         ("io_uring-4k-read-deep", "io_uring 4K"),
         ("seq-64k", "io_uring 64K\\nsequential"),
         ("ram-native", "RAM, native 4K"),
         ("ram-io_uring", "RAM, io_uring 4K"),
         ("16q-4t", "16 queues\\n4 IOThreads"),
         ("64q-4t", "64 queues\\n4 IOThreads")]

# (key in a run's figures, column title, factor from the stored unit)
CPU = ("cpu", "µs CPU per I/O", 1e-3)
IOPS = ("iops", "1000 IOPS", 1e-3)
P50 = ("p50", "p50 µs", 1)
P99 = ("p99", "p99 µs", 1)


def table(header, rows):
    """A Markdown table whose columns are aligned for readers of plain text."""
    if not rows:
        return ""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row):
        padded = [row[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([line(header), line(rule), *map(line, rows)]) + "\n"


def rst_table(header, rows):
    """A simple table of reStructuredText; a lone dash would begin a list."""
    if not rows:
        return ""
    cells = [[cell.replace("-", "\\-") if cell == "-" else cell for cell in row]
             for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths))
             .rstrip() for row in cells]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule]) + "\n"


def number(value):
    """Three digits that mean something."""
    if value >= 100:
        return "%.0f" % value
    return "%.*f" % (1 if value >= 10 else 2, value)


def spread(found, factor=1):
    """Median (lowest-highest), as text."""
    if not found:
        return "-"
    return "%s (%s-%s)" % tuple(number(v * factor) for v in found[:3])


def middle(found, factor=1):
    return number(found.median * factor) if found else "-"


def titles(results, wanted):
    """(name, title) of the cases that ran and that `wanted` says yes to."""
    ran = {run["case"] for run in results["runs"]}
    return [(c["name"], c["title"]) for c in results["cases"]
            if c["name"] in ran and wanted(c)]


def is_deep(case):
    return case["options"]["depth"] > 1 and not is_special(case)


def is_single(case):
    return case["options"]["depth"] == 1 and not is_special(case)


def is_special(case):
    return case["name"] in ("rss", "fair")


# --------------------------------------------------------------------- tables

def heading(results):
    machine, settings = results["machine"], results["settings"]
    return ("%s, %d cores, Linux %s, %s. Ours: %s (commit %s). Stock: %s. Medians"
            " of %d rounds of %s s; in brackets the lowest and the highest."
            " Ratios are medians of each round's ratio. Meanwhile other processes"
            " used %s of the CPU time.\n" % (
                machine["cpu"], machine["cores"], machine["kernel"],
                machine["date"], results["qemu"]["ours"], machine["commit"],
                results["qemu"]["stock"], settings["rounds"],
                seconds(results), others(results)))


def seconds(results):
    """How long a run was, as text; some cases say so themselves."""
    found = sorted({one["options"].get("seconds", results["settings"]["seconds"])
                    for one in results["cases"]})
    return " to ".join("%g" % s for s in sorted({found[0], found[-1]}))


def others(results):
    found = summary(run["others"] / results["machine"]["cores"]
                    for run in results["runs"])
    if not found:
        return "0 %"
    return "%.0f %% (up to %.0f %%)" % (100 * found.median, 100 * found.high)


def goals(results, form=table):
    rows = []
    for one in GOALS:
        found, reached = judge(results, one)
        verdict = "not measured" if found is None else (
            "reached" if reached else "missed")
        against = "itself" if one.against == "ours" else ALL_LABELS[one.against]
        rows.append([one.title, against, "%s %.2f" % (one.sense, one.limit),
                     spread(found), verdict])
    return form(["goal", "against", "limit", "ratio", ""], rows)


def compare(results, wanted, columns, cell, others=("stock", "blk"),
            form=table):
    """One row per case: each column for each subject, then the ratios of ours
    to the others in the first column."""
    header = ["case" if len(columns) > 1 else columns[0][1]]
    for _, title, _ in columns:
        prefix = title + ": " if len(columns) > 1 else ""
        header += [prefix + label for label in LABELS.values()]
    key_of_ratio, title, _ = columns[0]
    prefix = title + ": " if len(columns) > 1 else ""
    header += ["%sours / %s" % (prefix, LABELS[other]) for other in others]
    rows = []
    for name, title in titles(results, wanted):
        row = [title]
        row += [cell(figure(results, name, subject, key), factor)
                for key, _, factor in columns for subject in LABELS]
        row += [cell(ratio(results, name, key_of_ratio, "ours", other), 1)
                for other in others]
        rows.append(row)
    return form(header, rows)


def limit(results, wanted, form=table):
    """How far each case with a file is from what fio does there."""
    rows = []
    for name, title in titles(results, wanted):
        if not figure(results, name, "limit", "cpu"):
            continue
        row = [title]
        for key, _, factor in (CPU, IOPS):
            row += [middle(figure(results, name, subject, key), factor)
                    for subject in ("ours", "limit")]
            row.append(spread(ratio(results, name, key, "ours", "limit")))
        rows.append(row)
    return form(["against the limit", "µs CPU per I/O: ours", "fio",
                 "x of the limit", "1000 IOPS: ours", "fio",
                 "x of the limit"], rows)


def fairness(results, form=table):
    rows = []
    for subject in ("ours", "stock"):
        found = [figure(results, "fair", subject, key)
                 for key in ("single_p50", "single_p99", "iops")]
        if found[0]:
            rows.append([LABELS[subject], spread(found[0]), spread(found[1]),
                         spread(found[2], 1e-3)])
    return form(["one queue full, the other reads one by one", "its p50 µs",
                 "its p99 µs", "1000 IOPS of both"], rows)


def memory(results, form=table):
    rows = []
    for key, title in (("rss_idle", "RSS, idle"), ("rss_loaded", "RSS, loaded"),
                       ("own_idle", "without guest memory and files, idle"),
                       ("own_loaded", "..., loaded")):
        found = [figure(results, "rss", s, key) for s in ("ours", "stock")]
        if all(found):
            rows.append([title] + [spread(f, 1 / 1024) for f in found]
                        + [spread(ratio(results, "rss", key, "ours", "stock"))])
    return form(["MiB, 16 queues x 1024", LABELS["ours"],
                 LABELS["stock"], "ratio"], rows)


def fit_counts(results):
    """Numbers of IOThreads that have a core each beside the generator's; two
    always, as a machine with two cores has nothing better to say."""
    ran = {run["case"] for run in results["runs"]}
    return [n for n in (1, 2, 4, 8, 16) if "null-%d" % n in ran
            and (n <= 2 or n < results["machine"]["cores"])]


def cost_model(results, predict=16):
    """Fitted a and b for each subject, and what they say about 16 IOThreads:
    header and rows of a table."""
    counts = fit_counts(results)
    rows = []
    if len(counts) < 2:
        return [], rows
    for subject, label in LABELS.items():
        fitted = cost(results, subject, counts)
        if not fitted:
            continue
        a, b = fitted
        four = figure(results, "null-4", subject, "cpu")
        each = a.median + b.median * predict
        model = ["-"] * 3           # where noise hides the slope, say nothing
        if b.median > 0:
            model = [number((a.median + 4 * b.median) / 1e3),
                     number(each / 1e3), number(predict * 1e6 / each)]
        rows.append([label, spread(a, 1e-3), spread(b, 1e-3), model[0],
                     middle(four, 1e-3), *model[1:]])
    return ["CPU per I/O = a + b x IOThreads", "a µs", "b µs",
            "4 IOThreads: model µs", "measured µs",
            "%d: model µs" % predict, "1000 IOPS"], rows


def remarks(results):
    """What was not measured, or less often, and why."""
    lines = []
    for one in results["cases"]:
        if one["skipped"]:
            lines.append("- skipped: %s: %s" % (one["title"], one["skipped"]))
        elif one["rounds_dropped"]:
            lines.append("- %d rounds dropped for time: %s"
                         % (one["rounds_dropped"], one["title"]))
    for failure in results["failures"]:
        lines.append("- FAILED: %(case)s, %(subject)s: %(message)s" % failure)
    return "\n".join(lines) + "\n" if lines else ""


def sections(results):
    return [
        ("Goals", goals(results)),
        ("Deep queues: CPU", compare(results, is_deep, [CPU], spread)),
        ("Deep queues: IOPS", compare(results, is_deep, [IOPS], spread)),
        ("The limit: fio, same file and engine", limit(results, is_deep)),
        ("Depth 1: p50", compare(results, is_single, [P50], spread)),
        ("Depth 1: p99", compare(results, is_single, [P99], spread)),
        ("Fairness", fairness(results)),
        ("Memory", memory(results)),
        ("Cost model", table(*cost_model(results))),
        ("Not measured", remarks(results))]


def markdown(results, parts):
    return "\n".join(["# make bench\n", heading(results)] + [
        "## %s\n\n%s" % (title, body) for title, body in parts if body])


# --------------------------------------------------------------------- README

def short_heading(results):
    machine, settings = results["machine"], results["settings"]
    return ("%s, %d cores, %s; ours: commit %s; stock: %s; medians of %d rounds of"
            " %g s. Other processes used %s of the CPU time.\n" % (
                machine["cpu"], machine["cores"], machine["date"],
                machine["commit"], results["qemu"]["stock"],
                settings["rounds"], settings["seconds"], others(results)))


def short(results):
    """The cases of the chart: each subject's cost and speed, the limit's too."""
    names = dict(CHART)
    header = ["case"]
    for index, (_, title, _) in enumerate((CPU, IOPS)):
        header += ["%s%s" % ("" if column else title + ": ", label) for
                   column, label in enumerate(ALL_LABELS.values())]
    rows = [[title] + [middle(figure(results, name, subject, key), factor)
                       for key, _, factor in (CPU, IOPS)
                       for subject in ALL_LABELS]
            for name, title in titles(results, lambda c: c["name"] in names)]
    return table(header, rows)


def reached(results):
    """How many goals are reached, and which are not, as a sentence."""
    missed, measured, last = [], 0, ""
    for one in GOALS:
        found, good = judge(results, one)
        title = one.title
        if not title.startswith("the same"):
            last = title
        elif title == "the same":
            title = "%s, against %s" % (last, ALL_LABELS[one.against])
        else:           # in place of the last part: another interface
            title = last.rpartition(",")[0] + title[len("the same"):]
        measured += found is not None
        if found and not good:
            missed.append("%s (%s, wanted %s %.2f)" % (
                title, number(found.median), one.sense, one.limit))
    return "Goals reached: %d of %d.%s\n" % (
        measured - len(missed), measured,
        " Missed: %s." % "; ".join(missed) if missed else "")


def readme_section(results):
    """What stands in README.md between the markers."""
    parts = ["![CPU per I/O and IOPS](docs/bench.svg)\n", short_heading(results),
             short(results), reached(results)]
    return "\n".join(part for part in parts if part)


def between_markers(text_, section, begin=BEGIN, end=END):
    """The text with what is between the markers replaced."""
    if text_.count(begin) != 1 or text_.count(end) != 1:
        raise ValueError("wants one line %s and one %s" % (begin, end))
    start, stop = text_.index(begin) + len(begin), text_.index(end)
    if stop < start:
        raise ValueError("%s stands behind %s" % (begin, end))
    return "%s\n%s\n%s" % (text_[:start], section.strip("\n"), text_[stop:])


# ------------------------------------------------------------------- docs page

# A table ends with an empty line.
RST_BEGIN, RST_END = ".. bench:begin\n", "\n.. bench:end\n"


def lines_table(found):
    """What scripts/bench/profile --lines has counted, {subject: counts}."""
    return rst_table(
        ["per 4K read, null-co, 2 IOThreads", "shared lines that are written",
         "writes to them", "locked instructions", "instructions"],
        [[LABELS[s], "%d" % found[s]["lines"], "%.1f" % found[s]["writes"],
          "%.1f" % found[s]["locked"], "%.0f" % found[s]["instructions"]]
         for s in LABELS if s in found])


def docs_section(results, lines):
    """What stands in docs/devel/virtio-scsi-cost.rst between the markers."""
    core = {c["name"] for c in results["cases"] if c["core"]}
    core |= {name for name, _ in CHART}

    def deep(case):
        return case["name"] in core and is_deep(case)

    def single(case):
        return case["name"] in core and is_single(case)

    parts = [heading(results), goals(results, rst_table),
             compare(results, deep, [CPU], middle, form=rst_table),
             compare(results, deep, [IOPS], middle, form=rst_table),
             limit(results, deep, rst_table),
             compare(results, single, [P50], middle, form=rst_table),
             compare(results, single, [P99], middle, form=rst_table),
             fairness(results, rst_table), memory(results, rst_table),
             rst_table(*cost_model(results))]
    if lines:
        parts.append(lines_table(lines))
    return "\n" + "\n".join(part for part in parts if part) + "\n"


# ---------------------------------------------------------------------- chart

CHART_HEAD = """\
set terminal svg size 900,660 noenhanced font "sans-serif,13" \\
    background "white"
set style data histograms
set style histogram errorbars gap 1 lw 1
set style fill solid 0.9 noborder
set grid ytics
set ytics autofreq
set yrange [0:*]
set xtics scale 0
set key outside top center horizontal
set bmargin 3
set errorbars linecolor rgb "black"
set multiplot layout 2,1
"""

COLORS = {"ours": "#2b7a4b", "stock": "#c8643c", "blk": "#7d8fb3",
          "limit": "#444444"}


def chart_rows(results, key, factor):
    """Lines of gnuplot data: a label, then median, lowest and highest of each
    subject ("?" if there is none)."""
    for name, label in CHART:
        found = [figure(results, name, subject, key) for subject in ALL_LABELS]
        if any(found):
            yield '"%s" %s' % (label, " ".join(
                "%.4g" % (value * factor) if f else "?"
                for f in found for value in (f or (0, 0, 0))[:3]))


def gnuplot_script(results):
    parts = [CHART_HEAD]
    for number_, (key, title, factor) in enumerate((CPU, IOPS)):
        rows = list(chart_rows(results, key, factor))
        if number_:
            parts.append("unset key")
        if not rows:
            return None
        parts.append("$data%d << EOD\n%s\nEOD" % (number_, "\n".join(rows)))
        parts.append('set title "%s"' % title)
        parts.append("plot " + ", ".join(
            '$data%d using %d:%d:%d:xtic(1) title "%s" lc rgb "%s"'
            % (number_, *range(3 * column + 2, 3 * column + 5), label,
               COLORS[subject])
            for column, (subject, label) in enumerate(ALL_LABELS.items())))
    return "\n".join(parts) + "\n"


def svg(results):
    """(SVG text, None), or (None, why there is none)."""
    script = gnuplot_script(results)
    if not script:
        return None, "no chart: none of its cases ran"
    try:
        run = subprocess.run(["gnuplot"], input=script.encode(),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        return None, "no chart: gnuplot: %s (scripts/build/deps bench installs it)" \
            % error.strerror
    out = run.stdout.decode(errors="replace")
    if run.returncode or "</svg>" not in out:
        return None, "no chart: gnuplot: %s" \
            % run.stderr.decode(errors="replace").strip()
    # half of what gnuplot writes are empty groups
    out = re.sub(r"<g [^>]*>\s*</g>\n", "", out)
    return re.sub(r"[ \t]+$", "", out, flags=re.M), None
