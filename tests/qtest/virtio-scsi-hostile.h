/*
 * A hostile guest for virtio-scsi: what its files share
 *
 * virtio-scsi-hostile.c       the VM, rounds, the watchdog, options
 * virtio-scsi-hostile-ring.c  addresses, rings, requests, the writer thread
 * virtio-scsi-hostile-act.c   what is done to the device by guest and host
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_SCSI_HOSTILE_H
#define TESTS_QTEST_VIRTIO_SCSI_HOSTILE_H

#include "virtio-scsi-shm.h"

#define PCI_SLOT        4
#define OTHER_SLOT      5       /* a controller that nobody uses: MMIO */
#define NUM_REQUEST_VQS 4
#define NUM_VQS         (2 + NUM_REQUEST_VQS)
#define ARENA_SIZE      (1024 * 1024)   /* where most buffers are */
#define RING_MAX        1024    /* descriptors that there is room for */
#define LOG_ENTRIES     48

/* What is timed */
typedef enum OpKind {
    OP_REGISTER,        /* one register access */
    OP_QMP,             /* one command */
    OP_OTHER,           /* more than one, or a wait for an answer */
    NUM_OP_KINDS,
} OpKind;

/* A virtqueue as the device was told of it; addresses are the guest's */
typedef struct HostileQueue {
    uint64_t home;      /* room for a ring in RAM */
    uint64_t desc, avail, used;
    unsigned size;
    uint64_t notify;    /* the register to kick it by */
} HostileQueue;

typedef enum WriterMode {
    WRITER_AHEAD,       /* the avail index is ahead of the used index */
    WRITER_STEP,        /* it counts up */
    WRITER_JUMP,        /* it is anything */
    WRITER_SCRIBBLE,    /* descriptors change */
    NUM_WRITER_MODES,
} WriterMode;

/* A thread that goes on changing rings, as another vCPU of the guest would */
typedef struct Writer {
    GThread *thread;
    bool stop;
    WriterMode mode;
    uint16_t gap;
    bool packed;
    ShmMem *mem;
    GRand *rand;
    unsigned num;
    HostileQueue queues[NUM_VQS];
} Writer;

/* The operation that goes on, for the watchdog; lock protects all */
typedef struct Watch {
    GThread *thread;
    GMutex lock;
    GCond cond;
    bool stop;
    OpKind kind;
    gint64 since;       /* 0: none */
    char what[64];
    gint64 max_us[NUM_OP_KINDS];
    char slowest[NUM_OP_KINDS][64];
} Watch;

typedef struct Hostile {
    uint32_t seed;
    unsigned round;
    const char *controller;
    QTestState *qts;
    ShmMem mem;
    ShmDev *dev;
    GRand *rand;
    unsigned flags;     /* SHM_* of the honest driver */
    unsigned odds;      /* percent of what is wrong, in this round */
    bool packed;        /* negotiated by the hostile driver */
    bool quick;         /* this round's commands are such that take no time */
    uint64_t arena;
    uint64_t other_bar; /* of OTHER_SLOT */
    HostileQueue queues[NUM_VQS];
    Writer writer;
    Watch watch;
    unsigned logged;
    char log[LOG_ENTRIES][96];
} Hostile;

/* Random choices; a round's depend on the seed and its number only */
static inline unsigned below(Hostile *h, unsigned n)
{
    return g_rand_int_range(h->rand, 0, n);
}

static inline bool chance(Hostile *h, unsigned percent)
{
    return below(h, 100) < percent;
}

/* Shall the next thing be wrong? */
static inline bool wrong(Hostile *h)
{
    return chance(h, h->odds);
}

#define PICK(h, array) ((array)[below(h, ARRAY_SIZE(array))])

/* The log of acts, and times */
void hostile_log(Hostile *h, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
void hostile_report(Hostile *h, const char *why);
void op_begin(Hostile *h, OpKind kind, const char *fmt, ...)
    G_GNUC_PRINTF(3, 4);
void op_end(Hostile *h);

/* Register accesses; @addr is guest physical */
void reg_write(Hostile *h, unsigned size, uint64_t addr, uint64_t value);
uint64_t reg_read(Hostile *h, unsigned size, uint64_t addr);
uint64_t common_reg(const Hostile *h, unsigned offset);
void hostile_find_device(Hostile *h);

/* A QMP command, and whether it succeeded */
QDict *hostile_qmp(Hostile *h, const char *name, const char *args);
bool hostile_qmp_ok(Hostile *h, const char *name, const char *args);

/* Rings */
uint64_t any_address(Hostile *h, uint64_t right);
void ring_homes(Hostile *h);
void ring_place(Hostile *h, HostileQueue *q);
void ring_fill(Hostile *h, unsigned index);
void ring_publish(Hostile *h, unsigned index);
void writer_start(Hostile *h);
void writer_stop(Hostile *h);

/* Acts */
void hostile_set_up(Hostile *h);
void hostile_act(Hostile *h);
void hostile_recover(Hostile *h);

#endif
