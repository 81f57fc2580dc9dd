/*
 * virtio-load: options
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/host-utils.h"
#include "qemu/units.h"
#include <getopt.h>
#include "virtio-load.h"

#define POLL_NS_DEFAULT 32768

static const char help_text[] =
"usage: virtio-load [OPTION]...\n"
"\n"
"Starts QEMU without a guest, fills the rings of a virtio-scsi or virtio-blk\n"
"device from outside over shared memory, checks every response and tells what\n"
"the IOThreads needed for it. Numbers of bytes take the suffixes K, M and G.\n"
"\n"
"  --qemu PATH          QEMU's binary (default: $QTEST_QEMU_BINARY)\n"
"  --device scsi|blk    virtio-scsi-pci with scsi-hd, or virtio-blk-pci (scsi)\n"
"  --disk DRIVER        scsi-hd, scsi-block or scsi-generic (scsi-hd)\n"
"  --ring split|packed  kind of virtqueue (split)\n"
"  --indirect           indirect descriptors; else three for each request\n"
"  --event-idx on|off   VIRTIO_RING_F_EVENT_IDX (on)\n"
"  --interrupts on|off  an MSI-X vector for each queue; the generator looks at a\n"
"                       ring only when its interrupt came (off: it polls)\n"
"  --kick eventfd|qtest how a queue is kicked: through QEMU's ioeventfd, as KVM\n"
"                       does, or by a register write over qtest (eventfd)\n"
"  --queues N           request queues (1)\n"
"  --iothreads N        IOThreads; 0: the main loop serves all (1)\n"
"  --mapping MAP        rr: queues go round the IOThreads; none: iothread=, for\n"
"                       one IOThread; or THREAD:QUEUE,QUEUE;THREAD:QUEUE... (rr)\n"
"  --luns N             disks of the SCSI host (1)\n"
"  --own-lun            queue Q sends to LUN Q modulo N only; else each to all\n"
"  --depth N            requests in flight in each queue (64)\n"
"  --ring-size N        descriptors of a ring (256, or more if --depth needs it)\n"
"  --bs BYTES           size of a request, 512 to 1M (4K)\n"
"  --rw KIND            read, write, or mix:PERCENT-OF-READS (read)\n"
"  --pattern seq|rand   (rand)\n"
"  --region BYTES       of each disk (all; 64M with --verify)\n"
"  --rate IOPS          open loop: requests are due at fixed times, whatever the\n"
"                       device does, and latency counts from there (closed loop)\n"
"  --seconds S          length of the measurement (1)\n"
"  --warmup S           before it (0.3)\n"
"  --backend WHAT       null-co[:latency-ns=N]\n"
"                       file:PATH[:aio=threads|native|io_uring][:direct]\n"
"                                [:size=BYTES, to create it]\n"
"                       or -blockdev's JSON without node-name (null-co).\n"
"                       %d in it is the LUN's number.\n"
"  --poll-ns N          poll-max-ns of the IOThreads, 0: no polling (32768)\n"
"  --verify             write data that tell their block and generation, and\n"
"                       compare what is read\n"
"  --flood Q            all queues but Q are full, Q has one request in flight\n"
"  --hot SETS           only these queues have load: QUEUE,QUEUE;QUEUE,QUEUE...,\n"
"                       one set after the other (all)\n"
"  --shift S            seconds until it is the next set's turn\n"
"  --balance on|off     iothread-vq-balance of the device, whose clock goes on\n"
"                       with ours then\n"
"  --remap N            change the mapping N times a second: each queue goes to\n"
"                       the IOThread after its own\n"
"  --drains N           drain another disk of the controller N times a second\n"
"  --pin                a CPU for each IOThread, another for the generator\n"
"  --rss                print the memory QEMU takes\n"
"  --hmp CMD            monitor command at the end of the measurement\n"
"  --hmp-before CMD     and at its beginning\n"
"  --exec CMD           shell command to run meanwhile; $QEMU_PID is QEMU's\n"
"  --json               one line of JSON\n"
"  --histogram          only read latencies in ns from stdin, and print what\n"
"                       this program makes of them\n"
"  --help\n"
"\n"
"Exit status: 0 done, 1 QEMU or the device failed, 2 wrong options.\n";

void bad_opt(const char *name, const char *value, const char *fmt, ...)
{
    g_autofree char *what = NULL;
    va_list ap;

    va_start(ap, fmt);
    what = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    fprintf(stderr, "virtio-load: --%s %s: %s\n", name, value, what);
    exit(2);
}

/*
 * Values
 */

static unsigned number(const char *name, const char *value, unsigned min,
                       unsigned max)
{
    unsigned long n;

    if (qemu_strtoul(value, NULL, 10, &n) || strchr(value, '-') ||
        n < min || n > max) {
        bad_opt(name, value, "must be a number from %u to %u", min, max);
    }
    return n;
}

static double positive(const char *name, const char *value, double min)
{
    double d;

    if (qemu_strtod_finite(value, NULL, &d) || d < min || d > 1e9) {
        bad_opt(name, value, "must be a number, at least %g", min);
    }
    return d;
}

uint64_t opt_bytes(const char *name, const char *value, uint64_t min,
                   uint64_t max)
{
    uint64_t n;

    if (qemu_strtosz(value, NULL, &n) || n < min || n > max ||
        n % LOAD_SECTOR) {
        bad_opt(name, value, "must be a multiple of 512, from %" PRIu64
                " to %" PRIu64, min, max);
    }
    return n;
}

/* Which of the words it is */
unsigned opt_word(const char *name, const char *value, const char *words)
{
    g_auto(GStrv) list = g_strsplit(words, "|", 0);

    for (unsigned i = 0; list[i]; i++) {
        if (g_str_equal(list[i], value)) {
            return i;
        }
    }
    bad_opt(name, value, "must be %s", words);
}

static unsigned rw(const char *value)
{
    if (g_str_has_prefix(value, "mix:")) {
        return 100 - number("rw", value + strlen("mix:"), 0, 100);
    }
    if (!g_str_equal(value, "read") && !g_str_equal(value, "write")) {
        bad_opt("rw", value, "must be read, write or mix:PERCENT-OF-READS");
    }
    return g_str_equal(value, "write") ? 100 : 0;
}

/*
 * What must fit together
 */

unsigned load_stride(const LoadOptions *o)
{
    return o->indirect ? 1 : SHM_PARTS;
}

static void map_queue(LoadOptions *o, const char *queue, unsigned thread)
{
    unsigned q;

    if (qemu_strtoui(queue, NULL, 10, &q) || q >= o->queues) {
        bad_opt("mapping", o->mapping, "\"%s\" is no queue from 0 to %u", queue,
                o->queues - 1);
    }
    if (o->thread_of[q] >= 0) {
        bad_opt("mapping", o->mapping, "queue %u is named twice", q);
    }
    o->thread_of[q] = thread;
}

static void parse_mapping(LoadOptions *o)
{
    g_auto(GStrv) entries = g_strsplit(o->mapping, ";", 0);

    for (unsigned i = 0; i < o->queues; i++) {
        o->thread_of[i] = -1;
    }
    for (unsigned i = 0; entries[i]; i++) {
        g_auto(GStrv) halves = g_strsplit(entries[i], ":", 2);
        g_auto(GStrv) queues = NULL;
        unsigned thread;

        if (!halves[0] || !halves[1] ||
            qemu_strtoui(halves[0], NULL, 10, &thread)) {
            bad_opt("mapping", o->mapping,
                    "must be rr, none or THREAD:QUEUE,QUEUE;THREAD:QUEUE...");
        }
        if (thread >= o->iothreads) {
            bad_opt("mapping", o->mapping, "thread %u is not among "
                    "--iothreads %u", thread, o->iothreads);
        }
        queues = g_strsplit(halves[1], ",", 0);
        for (unsigned j = 0; queues[j]; j++) {
            map_queue(o, queues[j], thread);
        }
    }
    for (unsigned i = 0; i < o->queues; i++) {
        if (o->thread_of[i] < 0) {
            bad_opt("mapping", o->mapping, "queue %u has no thread", i);
        }
    }
}

static void check_mapping(LoadOptions *o)
{
    if (g_str_equal(o->mapping, "rr")) {
        return;
    }
    if (g_str_equal(o->mapping, "none")) {
        if (o->iothreads > 1) {
            bad_opt("mapping", "none", "is for --iothreads 0 or 1, not %u",
                    o->iothreads);
        }
        return;
    }
    parse_mapping(o);
}

static void parse_set(LoadOptions *o, const char *text)
{
    g_auto(GStrv) queues = g_strsplit(text, ",", 0);
    bool *set = g_new0(bool, o->queues);

    if (!queues[0]) {
        bad_opt("hot", o->hot, "one of the sets is empty");
    }
    if (o->num_sets == LOAD_MAX_SETS) {
        bad_opt("hot", o->hot, "must be at most %u sets", LOAD_MAX_SETS);
    }
    for (unsigned i = 0; queues[i]; i++) {
        unsigned q;

        if (qemu_strtoui(queues[i], NULL, 10, &q) || q >= o->queues) {
            bad_opt("hot", o->hot, "\"%s\" is no queue from 0 to %u", queues[i],
                    o->queues - 1);
        }
        set[q] = true;
    }
    o->sets[o->num_sets++] = set;
}

static void check_hot(LoadOptions *o)
{
    g_auto(GStrv) sets = g_strsplit(o->hot ?: "", ";", 0);
    g_autofree char *shift = g_strdup_printf("%g", o->shift);

    for (unsigned i = 0; sets[i]; i++) {
        parse_set(o, sets[i]);
    }
    if (o->num_sets && (o->rate || o->flood >= 0)) {
        bad_opt("hot", o->hot, "cannot be had with --rate or --flood");
    }
    if (o->num_sets > 1 && !o->shift) {
        bad_opt("hot", o->hot, "several sets need --shift");
    }
    if (o->shift && o->num_sets < 2) {
        bad_opt("shift", shift, "needs several sets in --hot");
    }
}

/* What only virtio-scsi with IOThreads has */
static void check_moves(LoadOptions *o)
{
    bool mapped = o->scsi && o->iothreads && !g_str_equal(o->mapping, "none");
    g_autofree char *remaps = g_strdup_printf("%u", o->remaps);

    if (o->balance >= 0 && (!mapped || o->rate)) {
        bad_opt("balance", o->balance ? "on" : "off", "needs --device scsi and "
                "a mapping to IOThreads, and no --rate");
    }
    if (o->remaps && (!mapped || o->rate || o->drains)) {
        bad_opt("remap", remaps, "needs --device scsi and a mapping to "
                "IOThreads, and neither --rate nor --drains");
    }
}

static void check_ring(LoadOptions *o)
{
    unsigned need = o->depth * load_stride(o);
    g_autofree char *depth = g_strdup_printf("%u", o->depth);

    if (!o->ring_size) {
        o->ring_size = MAX(256, pow2ceil(need));
    }
    if (o->ring_size & (o->ring_size - 1)) {
        g_autofree char *size = g_strdup_printf("%u", o->ring_size);

        bad_opt("ring-size", size, "must be a power of two");
    }
    if (o->ring_size > 1024 || need > o->ring_size) {
        unsigned max = MIN(o->ring_size, 1024) / load_stride(o);

        bad_opt("depth", depth, "must be at most %u in a ring of %u%s", max,
                MIN(o->ring_size, 1024),
                o->indirect ? "" : " (three descriptors each; or use "
                "--indirect)");
    }
}

static void check_binary(LoadOptions *o)
{
    if (!o->qemu) {
        o->qemu = getenv("QTEST_QEMU_BINARY");
    }
    if (!o->qemu) {
        bad_opt("qemu", "", "is missing: the path of QEMU's binary "
                "(or set QTEST_QEMU_BINARY)");
    }
    if (strpbrk(o->qemu, " \t\n'\"\\$`&|;<>()*?[]#~")) {
        bad_opt("qemu", o->qemu, "must be a path without blanks and characters "
                "that a shell knows");
    }
    if (access(o->qemu, X_OK)) {
        bad_opt("qemu", o->qemu, "is no program: %s", g_strerror(errno));
    }
}

static void check_together(LoadOptions *o)
{
    g_autofree char *luns = g_strdup_printf("%u", o->luns);
    g_autofree char *flood = g_strdup_printf("%d", o->flood);

    if (o->luns > 1 && !o->scsi) {
        bad_opt("luns", luns, "virtio-blk is one disk");
    }
    if (o->luns > o->queues * o->depth) {
        bad_opt("luns", luns, "must be at most as many as requests in "
                "flight, %u", o->queues * o->depth);
    }
    if (o->own_lun && o->queues % o->luns) {
        bad_opt("luns", luns, "with --own-lun, --queues (%u) must be a "
                "multiple of it", o->queues);
    }
    if (o->flood >= 0 && o->queues < 2) {
        bad_opt("flood", flood, "needs at least --queues 2");
    }
    if (o->flood >= (int)o->queues) {
        bad_opt("flood", flood, "must be a queue from 0 to %u", o->queues - 1);
    }
    if (o->drains && !o->scsi) {
        g_autofree char *drains = g_strdup_printf("%u", o->drains);

        bad_opt("drains", drains, "needs --device scsi");
    }
    if (o->flood >= 0 && o->rate) {
        bad_opt("flood", flood, "cannot be had with --rate");
    }
    if (o->verify && o->backend[0] != '{' &&
        g_str_has_prefix(o->backend, "null-co")) {
        bad_opt("backend", o->backend, "keeps no data; --verify needs a file");
    }
    if (o->verify && !o->region) {
        o->region = 64 * MiB;
    }
    for (unsigned i = 0; i < o->luns; i++) {
        g_free(load_blockdev(o, i));
    }
}

/*
 * The command line
 */

enum {
    OPT_QEMU = 256, OPT_DEVICE, OPT_DISK, OPT_RING, OPT_INDIRECT, OPT_EVENT_IDX,
    OPT_INTERRUPTS, OPT_KICK, OPT_QUEUES, OPT_IOTHREADS, OPT_MAPPING, OPT_LUNS,
    OPT_OWN_LUN, OPT_DEPTH, OPT_RING_SIZE, OPT_BS, OPT_RW, OPT_PATTERN,
    OPT_REGION, OPT_RATE, OPT_SECONDS, OPT_WARMUP, OPT_BACKEND, OPT_POLL_NS,
    OPT_VERIFY, OPT_FLOOD, OPT_HOT, OPT_SHIFT, OPT_BALANCE, OPT_REMAP,
    OPT_DRAINS, OPT_PIN, OPT_RSS, OPT_HMP,
    OPT_HMP_BEFORE, OPT_EXEC, OPT_JSON, OPT_HISTOGRAM, OPT_HELP,
};

static const struct option long_options[] = {
    { "qemu", required_argument, NULL, OPT_QEMU },
    { "device", required_argument, NULL, OPT_DEVICE },
    { "disk", required_argument, NULL, OPT_DISK },
    { "ring", required_argument, NULL, OPT_RING },
    { "indirect", no_argument, NULL, OPT_INDIRECT },
    { "event-idx", required_argument, NULL, OPT_EVENT_IDX },
    { "interrupts", required_argument, NULL, OPT_INTERRUPTS },
    { "kick", required_argument, NULL, OPT_KICK },
    { "queues", required_argument, NULL, OPT_QUEUES },
    { "iothreads", required_argument, NULL, OPT_IOTHREADS },
    { "mapping", required_argument, NULL, OPT_MAPPING },
    { "luns", required_argument, NULL, OPT_LUNS },
    { "own-lun", no_argument, NULL, OPT_OWN_LUN },
    { "depth", required_argument, NULL, OPT_DEPTH },
    { "ring-size", required_argument, NULL, OPT_RING_SIZE },
    { "bs", required_argument, NULL, OPT_BS },
    { "rw", required_argument, NULL, OPT_RW },
    { "pattern", required_argument, NULL, OPT_PATTERN },
    { "region", required_argument, NULL, OPT_REGION },
    { "rate", required_argument, NULL, OPT_RATE },
    { "seconds", required_argument, NULL, OPT_SECONDS },
    { "warmup", required_argument, NULL, OPT_WARMUP },
    { "backend", required_argument, NULL, OPT_BACKEND },
    { "poll-ns", required_argument, NULL, OPT_POLL_NS },
    { "verify", no_argument, NULL, OPT_VERIFY },
    { "flood", required_argument, NULL, OPT_FLOOD },
    { "hot", required_argument, NULL, OPT_HOT },
    { "shift", required_argument, NULL, OPT_SHIFT },
    { "balance", required_argument, NULL, OPT_BALANCE },
    { "remap", required_argument, NULL, OPT_REMAP },
    { "drains", required_argument, NULL, OPT_DRAINS },
    { "pin", no_argument, NULL, OPT_PIN },
    { "rss", no_argument, NULL, OPT_RSS },
    { "hmp", required_argument, NULL, OPT_HMP },
    { "hmp-before", required_argument, NULL, OPT_HMP_BEFORE },
    { "exec", required_argument, NULL, OPT_EXEC },
    { "json", no_argument, NULL, OPT_JSON },
    { "histogram", no_argument, NULL, OPT_HISTOGRAM },
    { "help", no_argument, NULL, OPT_HELP },
    { }
};

/* What the device is and how it is driven */
static bool device_option(LoadOptions *o, int opt, const char *name,
                          const char *value)
{
    switch (opt) {
    case OPT_DEVICE:
        o->scsi = opt_word(name, value, "scsi|blk") == 0;
        return true;
    case OPT_DISK:
        opt_word(name, value, "scsi-hd|scsi-block|scsi-generic");
        o->disk = value;
        return true;
    case OPT_RING:
        o->packed = opt_word(name, value, "split|packed");
        return true;
    case OPT_INDIRECT:
        o->indirect = true;
        return true;
    case OPT_EVENT_IDX:
        o->event_idx = opt_word(name, value, "off|on");
        return true;
    case OPT_INTERRUPTS:
        o->interrupts = opt_word(name, value, "off|on");
        return true;
    case OPT_KICK:
        o->kick_eventfd = opt_word(name, value, "qtest|eventfd");
        return true;
    case OPT_QUEUES:
        o->queues = number(name, value, 1, LOAD_MAX_QUEUES);
        return true;
    case OPT_IOTHREADS:
        o->iothreads = number(name, value, 0, LOAD_MAX_THREADS);
        return true;
    case OPT_MAPPING:
        o->mapping = value;
        return true;
    case OPT_LUNS:
        o->luns = number(name, value, 1, LOAD_MAX_LUNS);
        return true;
    case OPT_BALANCE:
        o->balance = opt_word(name, value, "off|on");
        return true;
    case OPT_OWN_LUN:
        o->own_lun = true;
        return true;
    case OPT_RING_SIZE:
        o->ring_size = number(name, value, 4, 1024);
        return true;
    case OPT_BACKEND:
        o->backend = value;
        return true;
    case OPT_POLL_NS:
        o->poll_ns = number(name, value, 0, 1000000000);
        return true;
    default:
        return false;
    }
}

/* What the requests are, and when */
static bool load_option(LoadOptions *o, int opt, const char *name,
                        const char *value)
{
    switch (opt) {
    case OPT_DEPTH:
        o->depth = number(name, value, 1, 1024);
        return true;
    case OPT_BS:
        o->bs = opt_bytes(name, value, LOAD_SECTOR, MiB);
        return true;
    case OPT_RW:
        o->write_percent = rw(value);
        return true;
    case OPT_PATTERN:
        o->random = opt_word(name, value, "seq|rand");
        return true;
    case OPT_REGION:
        o->region = opt_bytes(name, value, LOAD_SECTOR, 1024 * TiB);
        return true;
    case OPT_RATE:
        o->rate = positive(name, value, 1);
        return true;
    case OPT_SECONDS:
        o->seconds = positive(name, value, 0.01);
        return true;
    case OPT_WARMUP:
        o->warmup = positive(name, value, 0);
        return true;
    case OPT_VERIFY:
        o->verify = true;
        return true;
    case OPT_FLOOD:
        o->flood = number(name, value, 0, LOAD_MAX_QUEUES);
        return true;
    case OPT_HOT:
        o->hot = value;
        return true;
    case OPT_SHIFT:
        o->shift = positive(name, value, 0.01);
        return true;
    case OPT_REMAP:
        o->remaps = number(name, value, 1, 100);
        return true;
    case OPT_DRAINS:
        o->drains = number(name, value, 1, 1000);
        return true;
    default:
        return false;
    }
}

static void other_option(LoadOptions *o, int opt, const char *value)
{
    switch (opt) {
    case OPT_QEMU:
        o->qemu = value;
        break;
    case OPT_PIN:
        o->pin = true;
        break;
    case OPT_RSS:
        o->rss = true;
        break;
    case OPT_HMP:
        o->hmp_after = value;
        break;
    case OPT_HMP_BEFORE:
        o->hmp_before = value;
        break;
    case OPT_EXEC:
        o->exec = value;
        break;
    case OPT_JSON:
        o->json = true;
        break;
    case OPT_HISTOGRAM:
        o->histogram = true;
        break;
    case OPT_HELP:
        fputs(help_text, stdout);
        exit(0);
    default:
        /* getopt has said what is wrong */
        exit(2);
    }
}

void load_parse_options(LoadOptions *o, int argc, char **argv)
{
    int index;
    int opt;

    *o = (LoadOptions) {
        .scsi = true, .event_idx = true, .kick_eventfd = true, .queues = 1,
        .iothreads = 1, .mapping = "rr", .luns = 1, .depth = 64, .bs = 4096,
        .random = true, .seconds = 1, .warmup = 0.3, .backend = "null-co",
        .disk = "scsi-hd",
        .poll_ns = POLL_NS_DEFAULT, .flood = -1, .balance = -1,
    };
    /* for getopt's messages */
    argv[0] = (char *)"virtio-load";
    while ((opt = getopt_long(argc, argv, "", long_options, &index)) != -1) {
        const char *name = opt == '?' ? "" : long_options[index].name;

        if (!device_option(o, opt, name, optarg) &&
            !load_option(o, opt, name, optarg)) {
            other_option(o, opt, optarg);
        }
    }
    if (optind < argc) {
        fprintf(stderr, "virtio-load: %s: not an option (--help lists all)\n",
                argv[optind]);
        exit(2);
    }
    if (!o->histogram) {
        check_binary(o);
        check_mapping(o);
        check_ring(o);
        check_hot(o);
        check_moves(o);
        check_together(o);
    }
}
