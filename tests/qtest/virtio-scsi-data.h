/*
 * virtio-scsi commands whose buffers are pieces of any memory
 *
 * What the parts of virtio-scsi-data-test share: a VM, guest memory in which
 * nothing but the device's answer may change, commands cut into pieces, and
 * ways to have them in flight.  The driver is in virtio-scsi-mq-common.c.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_SCSI_DATA_H
#define TESTS_QTEST_VIRTIO_SCSI_DATA_H

#include "qemu/units.h"
#include "scsi/constants.h"
#include "virtio-scsi-mq-answer.h"

#define NUM_QUEUES  4
#define BLOCK       512
#define LUN_BLOCKS  8192u
#define LUN_BYTES   (LUN_BLOCKS * BLOCK)

#define DATA_MAX    MQ_ANSWER_MAX
#define MAX_PIECES  900
#define ARENA_SIZE  (512 * 1024)

#define HEAD_LEN    sizeof(struct virtio_scsi_cmd_req)
#define RESP_LEN    sizeof(struct virtio_scsi_cmd_resp)

/*
 * LUN_STOP stops the VM at an error; ONCE blocks are bad for the first time
 * only, TWICE blocks for the first two times.  LUN_CD is empty at first; the
 * others have a file each.
 */
enum { LUN_FILE, LUN_STOP, LUN_CD, NUM_LUNS };
enum {
    BAD_LBA = 4000, ONCE_READ_LBA = 4010, ONCE_FULL_LBA = 4020,
    TWICE_READ_LBA = 4100, TWICE_FULL_LBA = 4200,
};

typedef struct DataConfig {
    unsigned iothreads;     /* 0: the main loop does it */
    unsigned form;          /* for mq_start() */
    const char *needs;      /* a device; no test without it */
    const char *args;       /* more of the command line */
    const char *props;      /* of the controller, in JSON */
    const char *lun_props;  /* of the disks, in JSON */
    const char *node_props; /* of their nodes */
    bool direct;            /* O_DIRECT, which wants aligned memory */
    uint64_t more_features; /* for the driver to accept */
    uint64_t less_features;
} DataConfig;

/* Files without a name, what should be in them, and how QEMU finds them */
extern int data_fd[LUN_CD];
extern uint8_t *data_image[LUN_CD];
extern char *data_path[LUN_CD];

/* A VM with the controller "vs" on "pci.0", and a driver for it */
MqDev *data_begin(const DataConfig *cfg);
void data_start(MqDev *d, unsigned form);
void data_end(MqDev *d);
QPCIBus *data_bus(void);

/* The same VM, that waits for a migration; and the test goes on with it */
QTestState *data_begin_incoming(const DataConfig *cfg);
void data_migrated(MqDev *d, QTestState *to);

MqQueue *data_queue(MqDev *d);
void data_check_image(unsigned lun);
void data_fill(uint8_t *buf, uint32_t lba, unsigned blocks);

/*
 * Memory for the pieces of one or more commands, with gaps between them, and
 * what should be in it
 */
typedef struct Arena {
    MqDev *d;
    uint64_t base;
    size_t used;
    uint8_t shadow[ARENA_SIZE];
} Arena;

Arena *arena_new(MqDev *d);
Arena *arena_at(MqDev *d, uint64_t base);
void arena_clear(Arena *a);
uint64_t arena_take(Arena *a, size_t len);
void arena_check(const Arena *a);

/* The bytes that one side writes and the other one reads */
typedef struct Piece {
    uint64_t addr;
    uint32_t len;
} Piece;

typedef struct Stream {
    unsigned n;
    size_t len;
    Piece p[MAX_PIECES];
} Stream;

/* How to cut: sizes of the pieces, in turn; none: one piece */
typedef struct Cuts {
    unsigned n;
    uint16_t size[4];
    bool with_header;   /* header and data together, in any piece */
} Cuts;

extern const Cuts data_one_piece;
extern const Cuts data_small_cuts;  /* less than a block, with header */
extern const Cuts data_page_cuts;   /* of about a page */

typedef struct Request {
    MqCmd cmd;
    Arena *arena;
    Stream out, in;
    MqSlot *slot;
} Request;

void data_prepare(Request *r, Arena *a, const MqCmd *cmd, const Cuts *cuts);
void data_post(MqQueue *q, Request *r);
void data_finish(Request *r, MqAnswer *ans);
void data_run(MqQueue *q, Arena *a, const MqCmd *cmd, const Cuts *cuts,
              MqAnswer *ans);

/* The same with header and response in @a and the data, uncut, elsewhere */
void data_prepare_far(Request *r, Arena *a, const MqCmd *cmd, uint64_t data);
void data_finish_far(Request *r, struct virtio_scsi_cmd_resp *resp);

void data_expect_read(const MqCmd *cmd, const MqAnswer *a, uint32_t lba,
                      unsigned blocks);

/* Take the unit attentions of a LUN, whatever TEST UNIT READY says then */
void data_take_ua(MqDev *d, Arena *a, uint16_t lun);

/*
 * Have the device hold what it gets for @lun, until data_throttle(, , false);
 * wait until it has a request
 */
void data_hold(MqDev *d, uint16_t lun);
void data_throttle(MqDev *d, uint16_t lun, bool on);
void data_wait_taken(MqDev *d, const Request *r);

/* A counter of query-blockstats */
int64_t data_stat(QTestState *qts, uint16_t lun, const char *what);

/*
 * A TMF that ends commands that LUN_FILE holds: a reset ends all of them; they
 * go on after one of them was aborted.
 */
void data_run_tmf(MqDev *d, uint32_t subtype, uint64_t tag);

/* On each queue a READ and a WRITE that LUN_FILE holds */
enum {
    FLIGHT_LBA = 200, FLIGHT_BLOCKS = 4, FLIGHT_SIZE = 2 * NUM_QUEUES,
};

typedef struct Flight {
    Request r[FLIGHT_SIZE];
    uint64_t place;     /* of the data; 0: in the arena */
} Flight;

Flight *flight_begin(MqDev *d, Arena *a, uint64_t place);
void flight_end(MqDev *d, Flight *f, uint64_t place);

/* virtio-scsi-data-frame.c */
void data_framed_rw(MqDev *d, Arena *a, const Cuts *cuts);
void data_framed_lists(MqDev *d, Arena *a, const Cuts *cuts);
void data_set_write_cache(MqDev *d, Arena *a, const Cuts *cuts, bool on);
void test_framing(const DataConfig *cfg);
void test_crowd(const DataConfig *cfg);

/* virtio-scsi-data-merge.c */
void test_merge(const DataConfig *cfg);
void test_merge_not(const DataConfig *cfg);
void test_merge_off(const DataConfig *cfg);
void test_merge_limit(const DataConfig *cfg);
void test_merge_throttle(const DataConfig *cfg);
void test_merge_errors(const DataConfig *cfg);
void test_merge_stop(const DataConfig *cfg);
void test_merge_fua(const DataConfig *cfg);
void test_merge_tmf(const DataConfig *cfg);
void test_merge_abort(const DataConfig *cfg);

/* virtio-scsi-data-memory.c */
#define DATA_DIMM_ARGS " -m 128M,slots=4,maxmem=4G"
#define DATA_BAR_ARGS   " -object '{\"qom-type\":\"memory-backend-memfd\"," \
                        "\"id\":\"barmem\",\"size\":1048576}'" \
                        " -device '{\"driver\":\"ivshmem-plain\"," \
                        "\"id\":\"bar\",\"memdev\":\"barmem\"," \
                        "\"addr\":\"8\"}'"
void test_hotplug(const DataConfig *cfg);
void test_unplug_idle(const DataConfig *cfg);
void test_hotplug_across(const DataConfig *cfg);
void test_unplug_in_flight(const DataConfig *cfg);
void test_unplug_beside(const DataConfig *cfg);
void test_unplug_reset(const DataConfig *cfg);
void test_bar(const DataConfig *cfg);
void test_bus_master(const DataConfig *cfg);
void test_bus_master_in_flight(const DataConfig *cfg);
void test_dirty_log(const DataConfig *cfg);

/* How many files a process may have open, if it is to open @spare more */
unsigned data_limit_files(pid_t pid, unsigned spare);

#endif
