/*
 * virtio-load: what came out
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "virtio-load.h"

typedef struct Figures {
    double seconds;
    uint64_t ios;
    double per_io;          /* 1 / ios, or 0 */
    double iops;
    double mb_per_s;
    uint64_t iothread_ns;
    uint64_t qemu_ns;
    uint64_t generator_ns;
    uint64_t switches;
    ProcStat proc;
    Hist latency;
} Figures;

/* Without IOThreads the main loop does their work. */
static bool does_io(const Load *l, const ThreadStat *t)
{
    return l->o->iothreads ? proc_is_iothread(t) : t->tid == l->pid;
}

static void compute(const Load *l, Figures *f)
{
    *f = (Figures) { };
    proc_difference(&f->proc, &l->before, &l->after);
    f->seconds = f->proc.wall_ns / 1e9;
    f->generator_ns = f->proc.own_cpu_ns;
    for (unsigned i = 0; i < l->o->queues; i++) {
        hist_merge(&f->latency, &l->queues[i].hist);
    }
    f->ios = f->latency.count;
    f->per_io = f->ios ? 1.0 / f->ios : 0;
    f->iops = f->ios / f->seconds;
    f->mb_per_s = f->iops * l->o->bs / 1e6;
    for (unsigned i = 0; i < f->proc.num_threads; i++) {
        const ThreadStat *t = &f->proc.threads[i];

        f->qemu_ns += t->cpu_ns;
        f->switches += t->voluntary + t->involuntary;
        if (does_io(l, t)) {
            f->iothread_ns += t->cpu_ns;
        }
    }
}

/*
 * JSON
 */

static void put_string(GString *s, const char *name, const char *value)
{
    g_string_append_printf(s, "\"%s\": \"", name);
    for (const char *c = value; *c; c++) {
        if (*c == '"' || *c == '\\') {
            g_string_append_printf(s, "\\%c", *c);
        } else if ((unsigned char)*c < ' ') {
            g_string_append_printf(s, "\\u%04x", *c);
        } else {
            g_string_append_c(s, *c);
        }
    }
    g_string_append_c(s, '"');
}

static const char *json_bool(bool b)
{
    return b ? "true" : "false";
}

static void put_config(GString *s, const Load *l)
{
    const LoadOptions *o = l->o;

    g_string_append(s, "\"config\": {");
    put_string(s, "qemu", o->qemu);
    g_string_append(s, ", ");
    put_string(s, "backend", o->backend);
    g_string_append(s, ", ");
    put_string(s, "mapping", o->mapping);
    g_string_append_printf(s, ", \"device\": \"%s\", \"ring\": \"%s\", "
        "\"indirect\": %s, \"event_idx\": %s, \"interrupts\": %s, "
        "\"kick\": \"%s\", \"queues\": %u, \"iothreads\": %u, \"luns\": %u, "
        "\"depth\": %u, \"ring_size\": %u, \"bs\": %u, \"write_percent\": %u, "
        "\"pattern\": \"%s\", \"rate\": %.0f, \"seconds\": %g, "
        "\"warmup\": %g, \"poll_ns\": %" PRId64 ", \"verify\": %s, "
        "\"flood\": %d, \"drains\": %u, \"pin\": %s, "
        "\"balance\": %d, \"shift\": %g, \"remap\": %u}",
        o->scsi ? "scsi" : "blk", o->packed ? "packed" : "split",
        json_bool(o->indirect), json_bool(o->event_idx),
        json_bool(o->interrupts), l->kicks_by_eventfd ? "eventfd" : "qtest",
        o->queues, o->iothreads, o->luns, o->depth, o->ring_size, o->bs,
        o->write_percent, o->random ? "rand" : "seq", o->rate, o->seconds,
        o->warmup, o->poll_ns, json_bool(o->verify), o->flood, o->drains,
        json_bool(o->pin), o->balance, o->shift, o->remaps);
}

static void put_latency(GString *s, const Hist *h)
{
    g_string_append_printf(s, "{\"mean\": %.3f, \"p50\": %.3f, \"p99\": %.3f, "
                           "\"p999\": %.3f, \"max\": %.3f}",
                           hist_mean(h) / 1e3, hist_percentile(h, 0.5) / 1e3,
                           hist_percentile(h, 0.99) / 1e3,
                           hist_percentile(h, 0.999) / 1e3, h->max / 1e3);
}

static void put_threads(GString *s, const Load *l, const Figures *f)
{
    const char *separator = "";

    g_string_append(s, "\"threads\": [");
    for (unsigned i = 0; i < f->proc.num_threads; i++) {
        const ThreadStat *t = &f->proc.threads[i];

        g_string_append_printf(s, "%s{", separator);
        put_string(s, "name", t->name);
        g_string_append_printf(s, ", \"count\": %u, \"io\": %s, "
            "\"cpu_ns_per_io\": %.1f, \"share\": %.4f, "
            "\"voluntary\": %" PRIu64 ", \"involuntary\": %" PRIu64 "}",
            t->count, json_bool(does_io(l, t)), t->cpu_ns * f->per_io,
            t->cpu_ns / (f->seconds * 1e9), t->voluntary, t->involuntary);
        separator = ", ";
    }
    g_string_append(s, "]");
}

static void put_queues(GString *s, const Load *l, const Figures *f)
{
    g_string_append(s, "\"queue\": [");
    for (unsigned i = 0; i < l->o->queues; i++) {
        const LoadQueue *lq = &l->queues[i];

        g_string_append_printf(s, "%s{\"iops\": %.1f, \"depth\": %u, "
                               "\"latency_us\": ", i ? ", " : "",
                               lq->hist.count / f->seconds, lq->depth);
        put_latency(s, &lq->hist);
        g_string_append(s, "}");
    }
    g_string_append(s, "]");
}

static void put_rss(GString *s, const char *name, const RssStat *r)
{
    g_string_append_printf(s, "\"%s\": {\"rss\": %lu, \"anon\": %lu, "
                           "\"shmem\": %lu}", name, r->rss, r->anon, r->shmem);
}

static void print_json(const Load *l, const Figures *f)
{
    g_autoptr(GString) s = g_string_new("{");

    put_config(s, l);
    g_string_append_printf(s, ", \"seconds\": %.4f, \"ios\": %" PRIu64
        ", \"iops\": %.1f, \"mb_per_s\": %.2f, \"cpu_ns_per_io\": %.1f, "
        "\"qemu_cpu_ns_per_io\": %.1f, \"generator_cpu_ns_per_io\": %.1f, "
        "\"kicks_per_io\": %.6f, \"interrupts_per_io\": %.6f, "
        "\"switches_per_io\": %.6f, \"latency_us\": ",
        f->seconds, f->ios, f->iops, f->mb_per_s, f->iothread_ns * f->per_io,
        f->qemu_ns * f->per_io, f->generator_ns * f->per_io,
        l->kicks * f->per_io, l->irqs * f->per_io, f->switches * f->per_io);
    put_latency(s, &f->latency);
    g_string_append(s, ", ");
    put_threads(s, l, f);
    g_string_append_printf(s, ", \"moves\": %" PRIu64 ", \"pauses\": %" PRIu64
                           ", \"pause_us\": ", l->moves, l->pauses.count);
    put_latency(s, &l->pauses);
    g_string_append(s, ", \"calm_us\": ");
    put_latency(s, &l->calm);
    g_string_append(s, ", ");
    put_queues(s, l, f);
    g_string_append(s, ", \"rss_kib\": {");
    put_rss(s, "idle", &l->rss_idle);
    g_string_append(s, ", ");
    put_rss(s, "loaded", &l->rss_loaded);
    g_string_append(s, "}");
    if (l->hmp) {
        g_string_append(s, ", ");
        put_string(s, "hmp", l->hmp);
    }
    puts(g_string_append_c(s, '}')->str);
}

/*
 * For people
 */

static void print_latency(const char *what, const Hist *h)
{
    printf("%-12s mean %.1f  p50 %.1f  p99 %.1f  p99.9 %.1f  max %.1f us\n",
           what, hist_mean(h) / 1e3, hist_percentile(h, 0.5) / 1e3,
           hist_percentile(h, 0.99) / 1e3, hist_percentile(h, 0.999) / 1e3,
           h->max / 1e3);
}

static void print_threads(const Figures *f)
{
    for (unsigned i = 0; i < f->proc.num_threads; i++) {
        const ThreadStat *t = &f->proc.threads[i];

        if (t->cpu_ns) {
            printf("  %-16s x%-3u %6.0f ns/IO  %5.1f %% of a CPU  context "
                   "switches %" PRIu64 " + %" PRIu64 "\n", t->name, t->count,
                   t->cpu_ns * f->per_io, t->cpu_ns / (f->seconds * 1e7),
                   t->voluntary, t->involuntary);
        }
    }
}

static void print_queues(const Load *l, const Figures *f)
{
    for (unsigned i = 0; i < l->o->queues && l->o->queues > 1; i++) {
        g_autofree char *name =
            g_strdup_printf("  queue %-3u", i);

        printf("%s %.0f IOPS, ", name, l->queues[i].hist.count / f->seconds);
        print_latency("latency", &l->queues[i].hist);
    }
}

static void print_rss(const char *what, const RssStat *r)
{
    printf("%-12s %lu KiB: %lu of its own, %lu of guest memory\n", what,
           r->rss, r->anon, r->shmem);
}

static void print_text(const Load *l, const Figures *f)
{
    if (l->hmp) {
        printf("%s\n", l->hmp);
    }
    printf("%.0f IOPS, %.1f MB/s (%" PRIu64 " in %.2f s)\n", f->iops,
           f->mb_per_s, f->ios, f->seconds);
    printf("CPU per I/O  %s %.0f ns, QEMU in all %.0f ns, "
           "this program %.0f ns\n",
           l->o->iothreads ? "IOThreads" : "main loop",
           f->iothread_ns * f->per_io, f->qemu_ns * f->per_io,
           f->generator_ns * f->per_io);
    print_threads(f);
    print_latency("latency", &f->latency);
    print_queues(l, f);
    print_latency("pauses", &l->pauses);
    if (l->calm.count) {
        print_latency("  unchanged", &l->calm);
    }
    if (l->o->balance > 0) {
        printf("moves        %" PRIu64 "\n", l->moves);
    }
    printf("per I/O      %.4f kicks, %.4f context switches", l->kicks *
           f->per_io, f->switches * f->per_io);
    if (l->o->interrupts) {
        printf(", %.4f MSI-X messages seen", l->irqs * f->per_io);
    }
    printf("\n");
    if (l->o->rss) {
        print_rss("idle", &l->rss_idle);
        print_rss("loaded", &l->rss_loaded);
    }
}

void load_report(const Load *l)
{
    g_autofree Figures *f = g_new(Figures, 1);

    compute(l, f);
    if (l->o->json) {
        print_json(l, f);
    } else {
        print_text(l, f);
    }
    fflush(stdout);
    proc_free(&f->proc);
}
