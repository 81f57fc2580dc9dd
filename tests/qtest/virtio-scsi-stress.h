/*
 * Stress of a virtio-scsi device with many queues: what its files share
 *
 * virtio-scsi-stress.c       the VM, its LUNs, the scenarios
 * virtio-scsi-stress-op.c    what LUNs hold, and the kinds of commands
 * virtio-scsi-stress-load.c  commands, their answers, TMFs and events
 * virtio-scsi-stress-act.c   what happens to the device meanwhile
 * virtio-scsi-stress-job.c   mirrors, backups and snapshots
 * virtio-scsi-stress-oper.c  what operators in a hurry do
 * virtio-scsi-stress-stat.c  what QMP says of the queues
 *
 * One thread drives all queues; it is QEMU that has many.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_SCSI_STRESS_H
#define TESTS_QTEST_VIRTIO_SCSI_STRESS_H

#include "qobject/qdict.h"
#include "virtio-scsi-shm.h"

#define BLOCK_SIZE      512
#define MAX_BLOCKS      8       /* of one command */

/* Commands between two acts, in the mean */
#define PACE            50

/* Of each disk; random commands keep to the first DISK_BLOCKS. */
#define DISK_BLOCKS     1024
#define SPECIAL_BLOCKS  32      /* behind them: injected errors */
#define TOTAL_BLOCKS    (DISK_BLOCKS + SPECIAL_BLOCKS)

#define NUM_TARGETS     4

/* What a LUN is for */
enum {
    LUN_DATA    = 1 << 0,       /* keeps what is written to it */
    LUN_ZERO    = 1 << 1,       /* null-co: reads zeroes */
    LUN_SLOW    = 1 << 2,       /* null-co that takes its time, for acts */
    LUN_ERRORS  = 1 << 3,       /* reading a special block fails */
    LUN_STOPS   = 1 << 4,       /* touching a special block stops the VM once */
    LUN_HOT     = 1 << 5,       /* comes and goes */
    LUN_RESIZE  = 1 << 6,       /* its capacity changes */
};

/* Classes of commands */
enum {
    CLASS_READ  = 1 << 0,
    CLASS_WRITE = 1 << 1,
    CLASS_ZERO  = 1 << 2,       /* UNMAP, WRITE SAME */
    CLASS_INFO  = 1 << 3,       /* about the LUN, not its data */
    CLASS_ERROR = 1 << 4,       /* that end with sense data */
    CLASS_RW    = CLASS_READ | CLASS_WRITE,
    CLASS_ALL   = CLASS_RW | CLASS_ZERO | CLASS_INFO | CLASS_ERROR,
};

/*
 * What a block holds: 0 for zeroes, else a pattern that is made of this number.
 * If a write may or may not have been done, it is unsettled until it is read.
 * After UNMAP it is loose until it is written: it may read as before or as
 * zero, and a block job that moves the disk may turn one into the other.
 */
#define CONTENT_UNKNOWN UINT64_MAX

typedef struct Block {
    uint64_t is;
    uint64_t maybe;
    bool unsettled;
    bool loose;
    bool writing;
    uint8_t readers;
} Block;

typedef enum JobState {
    JOB_NONE,
    JOB_RUNNING,
    JOB_READY,
    JOB_COMPLETING,
    JOB_DONE,
} JobState;

typedef enum JobKind {
    JOB_MIRROR,
    JOB_BACKUP,
    JOB_COMMIT,
    JOB_STREAM,
    NUM_JOB_KINDS,
} JobKind;

typedef struct Job {
    JobState state;
    JobKind kind;
    unsigned serial;
    char *id;
    char *node;         /* of the target, or of the overlay */
    char *file;
    uint64_t *copy;     /* what the blocks held when a backup began */
} Job;

typedef struct LunSpec {
    const char *name;
    unsigned target;
    unsigned lun;
    unsigned kind;
} LunSpec;

typedef struct Lun {
    const LunSpec *spec;
    unsigned index;
    char *node;         /* block node that is the LUN's drive */
    bool node_goes;     /* by itself, when nobody uses it any more */
    char *file;         /* of LUN_DATA */
    Block *blocks;
    uint64_t capacity;  /* in blocks */
    bool present;
    bool going;         /* device_del is under way */
    unsigned epoch;     /* how often it has come or gone */
    unsigned tmfs;      /* under way, that may abort commands */
    unsigned in_flight;
    unsigned specials;  /* used up, of LUN_STOPS */
    Job job;
} Lun;

/* Unit attention conditions that we expect */
typedef enum UaKind {
    UA_RESET,
    UA_CAPACITY,
    UA_LUNS,
    NUM_UA_KINDS,
} UaKind;

/* How a command ended, for whoever waits for it */
typedef struct Outcome {
    bool done;
    uint8_t response;
    uint8_t status;
    uint8_t key, asc, ascq;
} Outcome;

typedef struct Stress Stress;
typedef struct Op Op;

typedef struct OpKind {
    const char *name;
    unsigned cls;
    unsigned weight;
    /* Fills in CDB, data and lengths.  False: there is nothing to do it with */
    bool (*build)(Stress *s, Op *op);
    /* After GOOD */
    void (*check)(Stress *s, Op *op);
    /* With sense data, if key is not 0 */
    uint8_t key, asc, ascq;
    bool any_lun;       /* the target answers for LUNs that are not there */
} OpKind;

/* A command in flight; each slot has one */
struct Op {
    const OpKind *kind;
    Lun *lun;
    ShmSlot *slot;
    Outcome *outcome;   /* or NULL */
    uint64_t tag;
    uint8_t *cdb;
    uint32_t lba;
    uint16_t blocks;    /* 0: it touches none */
    bool writes;
    uint64_t content[MAX_BLOCKS];   /* of the blocks if it writes */
    uint32_t out_len, in_len;
    uint32_t sense_size;    /* the driver's idea when it was posted */
    unsigned sense_live;    /* which of sense_sizes[] the device may have met */
    unsigned cdb_live;
    unsigned epoch;         /* of the LUN */
};

/* A task management function in flight */
typedef struct Tmf {
    Stress *s;
    uint32_t subtype;
    unsigned target;
    Lun *lun;
    unsigned covers;        /* LUNs, as bits */
    bool *done;
    uint8_t *response;
} Tmf;

typedef enum Counter {
    COUNT_COMMANDS,         /* answered */
    COUNT_BLOCKS_READ,      /* and verified */
    COUNT_BLOCKS_WRITTEN,
    COUNT_SENSE,            /* answers with sense data, without those below */
    COUNT_UNIT_ATTENTIONS,
    COUNT_TMFS,
    COUNT_ABORTED,          /* answers ABORTED or RESET */
    COUNT_PINNED,           /* commands known to be in the device at a TMF */
    COUNT_NO_TARGET,        /* answers BAD_TARGET */
    COUNT_RESETS,           /* of the device or the machine */
    COUNT_LOST_TO_RESETS,   /* commands that were never answered */
    COUNT_CONFIG_WRITES,
    COUNT_PLUGS,
    COUNT_STOPS,
    COUNT_RETRIES,          /* commands that stopped the VM, then succeeded */
    COUNT_JOBS,
    COUNT_EVENTS,           /* from the event queue */
    COUNT_STATS,            /* looks at the device's own counters */
    COUNT_REMAPS,           /* other mappings */
    COUNT_MOVES,            /* queues that moved by themselves */
    COUNT_THROTTLES,
    COUNT_IOTHREADS,        /* that came and went */
    COUNT_CONTROLLERS,      /* so did these */
    COUNT_MIGRATIONS,       /* cancelled */
    COUNT_OPERATIONS,       /* QMP commands of others */
    NUM_COUNTERS,
} Counter;

/* The device's counters of a queue, of x-query-virtio-scsi-queues */
typedef enum Stat {
    STAT_SUBMITTED,
    STAT_COMPLETED,
    STAT_IN_FLIGHT,
    STAT_ABORTED,
    STAT_FAILED,
    STAT_BYTES_READ,
    STAT_BYTES_WRITTEN,
    STAT_KICKS,
    STAT_INTERRUPTS,
    NUM_STATS,
} Stat;

#define MAX_QUEUES 8

typedef struct StressQueue {
    uint64_t seen[NUM_STATS];   /* when the device was last asked */
    uint64_t done[NUM_STATS];   /* that we know of, by the answers */
    uint64_t known;             /* answers when the device was last asked */
    uint64_t lost;              /* commands that were never answered */
} StressQueue;

typedef void ActFunc(Stress *s);

/* Somebody else with a monitor; all but stop belongs to its thread */
typedef struct Operator {
    GThread *thread;
    bool stop;
    unsigned index;
    int fd;
    GRand *rand;
    uint64_t commands;
} Operator;

#define MAX_OPERATORS 3

typedef struct Scenario {
    const char *name;
    const char *mapping;    /* iothread-vq-mapping, JSON */
    unsigned num_iothreads;
    unsigned num_queues;
    unsigned luns;          /* bits of LUN_* kinds; 0: the first LUN alone */
    unsigned classes;
    unsigned flags;         /* SHM_* */
    ActFunc *const *acts;   /* NULL terminated */
    uint64_t must;          /* counters that must not be 0 in the end, bits */
    unsigned operators;     /* besides us, and a second controller for them */
} Scenario;

struct Stress {
    const Scenario *sc;
    QTestState *qts;
    int qmp;
    ShmMem mem;
    ShmDev *dev;
    GRand *rand;
    char *dir;

    Lun *luns;
    unsigned num_luns;
    Op *ops;
    StressQueue queues[MAX_QUEUES];
    Tmf *tmfs;
    unsigned tmfs_in_flight;

    uint64_t next_tag;
    uint32_t next_content;
    unsigned classes;       /* of random commands, now */
    bool hold;              /* post nothing: the VM is not running */
    unsigned quiet;         /* so many queues, the last ones, get nothing */
    ShmWait wait;
    unsigned rounds;
    uint64_t rss_first, rss_last;   /* kB, see watch_memory() */

    /* Indices into the tables of sizes that the act "config" writes */
    unsigned sense_size, cdb_size;
    bool sizes_vary;

    Operator operators[MAX_OPERATORS];

    const char *deleting;   /* deleted_seen is about this one */
    bool qmp_busy, vm_stopped, reset_seen, deleted_seen;
    uint64_t ua[NUM_TARGETS][NUM_UA_KINDS];
    uint64_t ua_due[NUM_UA_KINDS];  /* conditions that were established */
    uint64_t count[NUM_COUNTERS];
};

#define NUM_SIZES 3
extern const uint32_t sense_sizes[NUM_SIZES];
extern const uint32_t cdb_sizes[NUM_SIZES];

/* True if the binary is known to be QEMU as it was before this series. */
bool stress_on_stock(void);

/* Kinds of commands */
#define NUM_OP_KINDS 16
extern const OpKind *const op_kinds[NUM_OP_KINDS];
extern const OpKind op_read, op_write, op_unmap, op_test_unit_ready,
                    op_report_luns;

/* What has become of a write */
typedef enum Fate {
    FATE_DONE,
    FATE_UNDONE,
    FATE_UNKNOWN,
} Fate;

void blocks_take(Op *op);
void blocks_release(Op *op, Fate fate);
void load_check_image(Lun *lun, const char *file, const uint64_t *content);
bool lun_was_there(const Op *op);
bool lun_was_away(const Op *op);
G_NORETURN void load_fail(const Op *op, const char *fmt, ...)
    G_GNUC_PRINTF(2, 3);

/* Load */

void load_pump(Stress *s, bool post);
void load_run(Stress *s, uint64_t commands);
void load_drain(Stress *s);
uint64_t load_post(Stress *s, unsigned queue, Lun *lun, const OpKind *kind,
                   uint32_t lba, uint16_t blocks, Outcome *outcome);
Outcome load_command(Stress *s, unsigned queue, Lun *lun, const OpKind *kind,
                     uint32_t lba, uint16_t blocks);
void load_settle(Stress *s, Lun *lun);
void load_occupy(Stress *s, Lun *lun);
void load_post_events(Stress *s);
void load_forget(Stress *s);
void load_verify(Stress *s);
void load_sizes_change(Stress *s, unsigned sense, unsigned cdb);

/* TMFs; @response and @done may be NULL */
bool tmf_post(Stress *s, uint32_t subtype, Lun *lun, uint64_t tag,
              bool *done, uint8_t *response);
uint8_t tmf_run(Stress *s, uint32_t subtype, Lun *lun, uint64_t tag);
void tmf_drain(Stress *s);

/* QMP on a monitor of our own, with the load going on meanwhile */
QDict *stress_qmp(Stress *s, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
void stress_poll_qmp(Stress *s);
void stress_delete(Stress *s, const char *id);
#define QMP(s, ...) qobject_unref(stress_qmp(s, __VA_ARGS__))

/* Acts */
ActFunc act_tmf, act_tmf_pinned, act_lun_reset, act_resize, act_device_reset,
        act_config, act_hotplug, act_stop, act_error_stop, act_system_reset,
        act_job, act_remap, act_balance, act_throttle, act_iothread,
        act_controller, act_migrate;
void act_finish_jobs(Stress *s);

/* Operators; what they need of the command line */
void oper_add_args(Stress *s, GString *args);
void oper_start(Stress *s);
void oper_stop(Stress *s);

/* End QEMU in the middle of everything. */
void oper_quit(Stress *s);

/* The device's counters: what we know of them, and what it says */
void stat_answered(Stress *s, const Op *op, const Outcome *o);
void stat_lost(Stress *s, const Op *op);
void stat_check(Stress *s);
void stat_check_sums(Stress *s);

/* A number below @n */
static inline unsigned stress_below(Stress *s, unsigned n)
{
    return g_rand_int_range(s->rand, 0, n);
}

#define STRESS_WHILE(s, cond) do {      \
        while (cond) {                  \
            load_pump(s, true);         \
        }                               \
    } while (0)

#endif
