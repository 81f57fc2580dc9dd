/*
 * virtio-load: load for virtio-scsi and virtio-blk without a guest
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_VIRTIO_LOAD_H
#define TESTS_BENCH_VIRTIO_LOAD_H

#include "../qtest/virtio-shm.h"

#define LOAD_MAX_QUEUES   1024
#define LOAD_MAX_THREADS  64
#define LOAD_MAX_LUNS     1024
#define LOAD_MAX_SETS     16

#define LOAD_SECTOR 512

/*
 * Options
 */

typedef struct LoadOptions {
    const char *qemu;
    bool scsi;              /* or virtio-blk */
    bool packed;
    bool indirect;
    bool event_idx;
    bool interrupts;
    bool kick_eventfd;
    unsigned queues;
    unsigned iothreads;
    const char *mapping;
    int thread_of[LOAD_MAX_QUEUES];     /* from an explicit mapping */
    unsigned luns;
    bool own_lun;           /* each queue sends to one LUN, not to all */
    unsigned depth;
    unsigned ring_size;     /* 0: what depth needs */
    unsigned bs;
    unsigned write_percent;
    bool random;
    double rate;            /* 0: closed loop */
    double seconds;
    double warmup;
    const char *backend;
    const char *disk;       /* driver of a SCSI disk */
    uint64_t region;        /* bytes of each disk; 0: all */
    int64_t poll_ns;        /* -1: QEMU's default */
    bool verify;
    int flood;              /* the queue that isn't flooded, or -1 */
    unsigned drains;        /* of a disk beside, per second */
    int balance;            /* -1: the device isn't told */
    const char *hot;        /* --hot, and what it means */
    unsigned num_sets;      /* 0: all queues are always hot */
    bool *sets[LOAD_MAX_SETS];      /* for each queue: is it hot? */
    double shift;           /* seconds until the next set */
    unsigned remaps;        /* per second */
    bool pin;
    bool rss;
    bool json;
    bool histogram;         /* only convert numbers from stdin */
    const char *hmp_before;
    const char *hmp_after;
    const char *exec;
} LoadOptions;

/* Never returns if they are wrong, or ask for help. */
void load_parse_options(LoadOptions *o, int argc, char **argv);

/* One line for the user; the process ends with status 1. */
G_NORETURN G_GNUC_PRINTF(1, 2)
void load_die(const char *fmt, ...);

/* An option is wrong: say why, in one line, and exit with status 2. */
G_NORETURN G_GNUC_PRINTF(3, 4)
void bad_opt(const char *name, const char *value, const char *fmt, ...);

/* An option's value: bytes, or which of @words (with | in between) it is */
uint64_t opt_bytes(const char *name, const char *value, uint64_t min,
                   uint64_t max);
unsigned opt_word(const char *name, const char *value, const char *words);

/* -blockdev of a LUN; load_parse_options() has checked that it can be made. */
char *load_blockdev(const LoadOptions *o, unsigned lun);

/* The JSON list of iothread-vq-mapping, each queue @turn IOThreads further */
char *load_mapping(const LoadOptions *o, unsigned turn);

/* Descriptors that a request takes in the ring */
unsigned load_stride(const LoadOptions *o);

/*
 * Latencies: log-linear buckets, each at most 1/64 wide of its value
 */

#define HIST_SUB_BITS 6
#define HIST_BUCKETS  ((40 - HIST_SUB_BITS) << HIST_SUB_BITS)

typedef struct Hist {
    uint64_t count;
    uint64_t sum;
    uint64_t max;
    uint64_t bucket[HIST_BUCKETS];
} Hist;

void hist_add(Hist *h, uint64_t ns);
void hist_merge(Hist *h, const Hist *other);
double hist_mean(const Hist *h);

/**
 * hist_percentile:
 * @h: latencies
 * @fraction: 0.99 for p99
 *
 * Returns: the value that @fraction of all don't exceed, right but for at most
 * 1/64 of it, and never more than the largest.
 */
uint64_t hist_percentile(const Hist *h, double fraction);

/*
 * What /proc knows
 */

typedef struct ThreadStat {
    pid_t tid;
    char name[32];
    unsigned count;         /* threads of this name */
    uint64_t cpu_ns;
    uint64_t voluntary;     /* context switches */
    uint64_t involuntary;
} ThreadStat;

typedef struct ProcStat {
    uint64_t wall_ns;
    uint64_t own_cpu_ns;
    unsigned num_threads;
    ThreadStat *threads;
} ProcStat;

typedef struct RssStat {
    unsigned long rss;      /* all in KiB */
    unsigned long anon;
    unsigned long shmem;
} RssStat;

uint64_t load_now_ns(void);

/* Look at all threads of a process, and at our own CPU time. */
void proc_read(ProcStat *s, pid_t pid);
void proc_free(ProcStat *s);

/* What each thread did in between; threads of the same name are one. */
void proc_difference(ProcStat *d, const ProcStat *before,
                     const ProcStat *after);
bool proc_is_iothread(const ThreadStat *t);
void proc_read_rss(RssStat *s, pid_t pid);

/*
 * A run
 */

typedef struct LoadQueue {
    ShmQueue *q;
    unsigned index;
    unsigned depth;         /* requests that are kept in flight */
    bool hot;               /* answered requests are replaced */
    bool polling;           /* with interrupts: look without one */
    uint64_t last_ns;       /* when something was answered */
    uint64_t irqs;
    uint64_t scheduled;     /* open loop: requests so far */
    uint64_t rand;
    uint64_t *cursor;       /* sequential: next block, for each LUN */
    Hist hist;
} LoadQueue;

typedef struct LoadLun {
    uint64_t sectors;
    uint64_t blocks;        /* of the region, in units of bs */
    uint32_t *generation;   /* --verify: of each block */
} LoadLun;

/* A request; the slot's owner */
typedef struct LoadIo {
    unsigned lun;
    unsigned rank;          /* among those of its LUN */
    uint64_t next;          /* --verify, sequential: of its own blocks */
    uint64_t block;
    uint64_t start_ns;
    uint32_t generation;
    bool write;
    bool built;             /* for this direction */
} LoadIo;

typedef enum LoadPhase {
    PHASE_FILL,             /* write all blocks once */
    PHASE_RUN,
    PHASE_DRAIN,
} LoadPhase;

typedef struct Load {
    const LoadOptions *o;
    QTestState *qts;
    pid_t pid;
    ShmMem mem;
    ShmDev *dev;
    LoadQueue *queues;
    LoadLun *luns;
    LoadIo *ios;
    LoadPhase phase;
    bool measuring;
    bool spin;
    bool cdb16;
    bool kicks_by_eventfd;
    double interval_ns;     /* open loop */
    uint64_t schedule_ns;   /* its start */
    unsigned quarter;       /* of all requests in flight */
    uint64_t recent_ns;     /* lately: how long it took... */
    uint64_t recent_ios;    /* ...to answer so many */
    uint64_t last_ns;       /* when something was answered */
    uint64_t idle_rounds;
    uint64_t rand;
    /* virtio-load-vary.c */
    uint64_t vary_ns;       /* when something may be due */
    uint64_t clock_ns;      /* how far the VM's clock is */
    uint64_t window_ns;     /* the end of what is one pause */
    uint64_t pause_ns;      /* the longest until now */
    bool calm_window;       /* no change of the mapping began it */
    unsigned set;           /* of the hot ones */
    unsigned remapped;
    /* results */
    Hist pauses;
    Hist calm;              /* with --remap: those that no change began */
    uint64_t moves;         /* of queues, by the device itself */
    ProcStat before;
    ProcStat after;
    uint64_t kicks;
    uint64_t irqs;
    RssStat rss_idle;
    RssStat rss_loaded;
    char *hmp;
} Load;

/*
 * virtio-load-dev.c: QEMU and the device
 */

/**
 * load_open:
 * @l: what is filled in
 * @o: options that load_parse_options() has checked
 *
 * Start QEMU and the device, its queues empty, its IOThreads not polling.
 */
void load_open(Load *l, const LoadOptions *o);
void load_close(Load *l);

/* Wait until the disks are ready, and ask how large they are. */
void load_probe_luns(Load *l);

/* Fill in a request that does no harm; returns what to post it with. */
ShmShape load_fill_probe(const Load *l, ShmSlot *slot);

/* Let the IOThreads poll, as --poll-ns says. */
void load_start_polling(Load *l);

/* virtio-load-kick.c: find QEMU's ioeventfds; else kicks go over qtest. */
void load_find_kicks(Load *l);

/*
 * virtio-load-io.c: requests
 */

void load_io_init(Load *l);
void load_io_free(Load *l);
ShmShape load_shape(const Load *l, bool write);

/* A closed loop: fill the hot queues; load_pump() keeps them full. */
void load_post_all(Load *l);

/**
 * load_pump:
 * @l: with l->phase, which tells whether answered requests are replaced
 *
 * Look at each queue once: check what was answered, post what is due, kick if
 * the device wants it.  If there was little to do, sleep a little; not when
 * latency is what matters.
 *
 * Returns: the number of requests that were answered
 */
uint64_t load_pump(Load *l);
bool load_in_flight(const Load *l);

/*
 * virtio-load-verify.c: data that know where they belong
 */

void load_verify_init(Load *l);
/* Which block @io is for; false when PHASE_FILL has no more for it */
bool load_verify_next(const Load *l, LoadIo *io);
void load_verify_fill(const Load *l, const LoadIo *io, uint8_t *data);
void load_verify_check(const Load *l, const LoadIo *io, const uint8_t *data);
void load_verify_done(Load *l, const LoadIo *io);

/*
 * virtio-load-vary.c: load and mapping that change, and pauses
 */

/* The first hot set, before the first request of PHASE_RUN */
void load_vary_begin(Load *l);

/* When @now is l->vary_ns: do what is due. */
void load_vary(Load *l, uint64_t now);

/* What is measured begins now; it has ended: ask the device what it did. */
void load_vary_measure(Load *l);
void load_vary_end(Load *l);

/* virtio-load-report.c */
void load_report(const Load *l);

#endif
