/*
 * virtio-load: histograms, and what /proc tells about QEMU's threads
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/host-utils.h"
#include <math.h>
#include "virtio-load.h"

/*
 * Values below 64 have a bucket each; above, every power of two is split in 64.
 */
static unsigned hist_index(uint64_t ns)
{
    unsigned shift;

    if (ns < (1u << HIST_SUB_BITS)) {
        return ns;
    }
    shift = 63 - clz64(ns) - HIST_SUB_BITS;
    return MIN(((shift + 1) << HIST_SUB_BITS) +
               (ns >> shift) - (1u << HIST_SUB_BITS), HIST_BUCKETS - 1);
}

/* The middle of a bucket */
static uint64_t hist_value(unsigned index)
{
    unsigned shift = index >> HIST_SUB_BITS;
    uint64_t low = index & ((1u << HIST_SUB_BITS) - 1);

    if (!shift) {
        return low;
    }
    shift--;
    return ((low + (1u << HIST_SUB_BITS)) << shift) + (1ull << shift) / 2;
}

void hist_add(Hist *h, uint64_t ns)
{
    h->count++;
    h->sum += ns;
    h->max = MAX(h->max, ns);
    h->bucket[hist_index(ns)]++;
}

void hist_merge(Hist *h, const Hist *other)
{
    h->count += other->count;
    h->sum += other->sum;
    h->max = MAX(h->max, other->max);
    for (unsigned i = 0; i < HIST_BUCKETS; i++) {
        h->bucket[i] += other->bucket[i];
    }
}

double hist_mean(const Hist *h)
{
    return h->count ? (double)h->sum / h->count : 0;
}

uint64_t hist_percentile(const Hist *h, double fraction)
{
    uint64_t rank = ceil(fraction * h->count);
    uint64_t seen = 0;

    for (unsigned i = 0; i < HIST_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen && seen >= rank) {
            return MIN(hist_value(i), h->max);
        }
    }
    return h->max;
}

/*
 * /proc
 */

uint64_t load_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static char *read_file(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
static char *read_file(const char *fmt, ...)
{
    g_autofree char *path = NULL;
    char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    path = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_file_get_contents(path, &text, NULL, NULL);
    return text;
}

/* The number at the beginning of @text; /proc has nothing else there. */
static uint64_t number(const char *text)
{
    uint64_t n = 0;

    qemu_strtou64(text, &text, 10, &n);
    return n;
}

/* The number in the line of @text that starts with @name */
static uint64_t field(const char *text, const char *name)
{
    const char *at = strstr(text, name);

    return at ? number(at + strlen(name)) : 0;
}

/* A thread may end while we look. */
static bool read_thread(ThreadStat *t, pid_t pid, pid_t tid)
{
    g_autofree char *comm = read_file("/proc/%d/task/%d/comm", pid, tid);
    g_autofree char *sched = read_file("/proc/%d/task/%d/schedstat", pid, tid);
    g_autofree char *status = read_file("/proc/%d/task/%d/status", pid, tid);

    if (!comm || !sched || !status) {
        return false;
    }
    *t = (ThreadStat) {
        .tid = tid,
        .cpu_ns = number(sched),
        .voluntary = field(status, "\nvoluntary_ctxt_switches:"),
        .involuntary = field(status, "\nnonvoluntary_ctxt_switches:"),
    };
    g_strlcpy(t->name, g_strchomp(comm), sizeof(t->name));
    return true;
}

void proc_read(ProcStat *s, pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/task", pid);
    GDir *dir = g_dir_open(path, 0, NULL);
    GArray *threads = g_array_new(false, true, sizeof(ThreadStat));
    struct timespec own;
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        ThreadStat t;

        if (read_thread(&t, pid, atoi(name))) {
            g_array_append_val(threads, t);
        }
    }
    g_clear_pointer(&dir, g_dir_close);
    s->num_threads = threads->len;
    s->threads = (ThreadStat *)g_array_free(threads, false);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
    s->own_cpu_ns = own.tv_sec * 1000000000ull + own.tv_nsec;
    s->wall_ns = load_now_ns();
}

void proc_free(ProcStat *s)
{
    g_free(s->threads);
    s->threads = NULL;
}

static const ThreadStat *find_tid(const ProcStat *s, pid_t tid)
{
    for (unsigned i = 0; i < s->num_threads; i++) {
        if (s->threads[i].tid == tid) {
            return &s->threads[i];
        }
    }
    return NULL;
}

static ThreadStat *find_name(ProcStat *s, const char *name)
{
    for (unsigned i = 0; i < s->num_threads; i++) {
        if (g_str_equal(s->threads[i].name, name)) {
            return &s->threads[i];
        }
    }
    return NULL;
}

void proc_difference(ProcStat *d, const ProcStat *before, const ProcStat *after)
{
    *d = (ProcStat) {
        .wall_ns = after->wall_ns - before->wall_ns,
        .own_cpu_ns = after->own_cpu_ns - before->own_cpu_ns,
        .threads = g_new0(ThreadStat, after->num_threads),
    };
    for (unsigned i = 0; i < after->num_threads; i++) {
        const ThreadStat *t = &after->threads[i];
        const ThreadStat *old = find_tid(before, t->tid);
        ThreadStat *sum = find_name(d, t->name);

        if (!sum) {
            sum = &d->threads[d->num_threads++];
            g_strlcpy(sum->name, t->name, sizeof(sum->name));
            sum->tid = t->tid;
        }
        sum->count++;
        sum->cpu_ns += t->cpu_ns - (old ? old->cpu_ns : 0);
        sum->voluntary += t->voluntary - (old ? old->voluntary : 0);
        sum->involuntary += t->involuntary - (old ? old->involuntary : 0);
    }
}

/* The kernel cuts "IO iothread0" after 15 characters. */
bool proc_is_iothread(const ThreadStat *t)
{
    return g_str_has_prefix(t->name, "IO iothread");
}

void proc_read_rss(RssStat *s, pid_t pid)
{
    g_autofree char *status = read_file("/proc/%d/status", pid);

    if (!status) {
        return;
    }
    s->rss = field(status, "\nVmRSS:");
    s->anon = field(status, "\nRssAnon:");
    s->shmem = field(status, "\nRssShmem:");
}
