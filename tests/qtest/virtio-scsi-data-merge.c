/*
 * virtio-scsi data: neighbours in a ring that QEMU makes one I/O of
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/timer.h"
#include "virtio-scsi-data.h"

/* Commands of one kick, each for so many blocks */
#define CROWD_MAX   16
#define EACH        4

typedef struct Crowd {
    MqDev *d;
    MqQueue *q;
    Arena *arena;
    unsigned num;
    Request r[CROWD_MAX];
    uint32_t lba[CROWD_MAX];
    uint8_t data[CROWD_MAX][EACH * BLOCK];  /* that WRITEs write */
} Crowd;

static Crowd *crowd_new(MqDev *d)
{
    Crowd *c = g_new0(Crowd, 1);

    c->d = d;
    c->q = data_queue(d);
    c->arena = arena_new(d);
    return c;
}

static void crowd_free(Crowd *c)
{
    guest_free(c->d->alloc, c->arena->base);
    g_free(c->arena);
    g_free(c);
}

/* Begin another one, in the same memory */
static void crowd_clear(Crowd *c)
{
    arena_clear(c->arena);
    c->num = 0;
}

static void crowd_add(Crowd *c, uint16_t lun, uint32_t lba, bool write,
                      bool fua, const Cuts *cuts)
{
    unsigned i = c->num++;
    MqCmd cmd = mq_read10(lun, lba, EACH);

    g_assert_cmpuint(i, <, CROWD_MAX);
    c->lba[i] = lba;
    if (write) {
        data_fill(c->data[i], lba, EACH);
        cmd = mq_write10(lun, lba, EACH, c->data[i]);
    }
    cmd.cdb[1] = fua << 3;
    data_prepare(&c->r[i], c->arena, &cmd, cuts);
    data_post(c->q, &c->r[i]);
}

/* The @i'th has been done, and what it wrote is in the image. */
static void crowd_expect_good(Crowd *c, unsigned i)
{
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);
    const MqCmd *cmd = &c->r[i].cmd;

    data_finish(&c->r[i], ans);
    if (cmd->out_len) {
        mq_expect_moved(cmd, ans, EACH * BLOCK);
        memcpy(data_image[cmd->lun] + c->lba[i] * BLOCK, c->data[i],
               EACH * BLOCK);
    } else {
        data_expect_read(cmd, ans, c->lba[i], EACH);
    }
}

static void crowd_run_good(Crowd *c)
{
    mq_flush(c->q);
    for (unsigned i = 0; i < c->num; i++) {
        crowd_expect_good(c, i);
    }
    arena_check(c->arena);
    data_check_image(LUN_FILE);
    data_check_image(LUN_STOP);
}

static const char *merged_stat(bool write)
{
    return write ? "wr_merged" : "rd_merged";
}

/* All end well, and so many were added to the I/O of another one. */
static void crowd_expect_merged(Crowd *c, uint16_t lun, bool write,
                                unsigned merged)
{
    const char *ops = write ? "wr_operations" : "rd_operations";
    const char *bytes = write ? "wr_bytes" : "rd_bytes";
    QTestState *qts = c->d->qts;
    int64_t merged_before = data_stat(qts, lun, merged_stat(write));
    int64_t ops_before = data_stat(qts, lun, ops);
    int64_t bytes_before = data_stat(qts, lun, bytes);
    unsigned num = 0;

    for (unsigned i = 0; i < c->num; i++) {
        num += c->r[i].cmd.lun == lun && !!c->r[i].cmd.out_len == write;
    }
    crowd_run_good(c);
    g_assert_cmpint(data_stat(qts, lun, merged_stat(write)), ==,
                    merged_before + merged);
    g_assert_cmpint(data_stat(qts, lun, ops), ==, ops_before + num);
    g_assert_cmpint(data_stat(qts, lun, bytes), ==,
                    bytes_before + num * EACH * BLOCK);
}

/*
 * In any order, and with buffers of any shape: each gets its own data.
 */

static void merge_in_order(Crowd *c, const uint8_t *order, bool write,
                           const Cuts *cuts)
{
    crowd_clear(c);
    for (unsigned i = 0; i < 8; i++) {
        crowd_add(c, LUN_FILE, 1000 + order[i] * EACH, write, false, cuts);
    }
    crowd_expect_merged(c, LUN_FILE, write, 7);
}

void test_merge(const DataConfig *cfg)
{
    static const uint8_t orders[][8] = {
        { 0, 1, 2, 3, 4, 5, 6, 7 },
        { 7, 6, 5, 4, 3, 2, 1, 0 },
        { 0, 4, 1, 5, 2, 6, 3, 7 },
        { 6, 2, 7, 0, 3, 1, 5, 4 },
    };
    MqDev *d = data_begin(cfg);
    Crowd *c = crowd_new(d);

    for (unsigned i = 0; i < ARRAY_SIZE(orders); i++) {
        for (unsigned write = 0; write < 2; write++) {
            merge_in_order(c, orders[i], write, &data_one_piece);
            merge_in_order(c, orders[i], write, &data_small_cuts);
        }
    }

    /* READs and WRITEs of two LUNs in turn: four I/Os */
    crowd_clear(c);
    for (unsigned i = 0; i < CROWD_MAX; i++) {
        crowd_add(c, i % 2 ? LUN_FILE : LUN_STOP,
                  i % 4 / 2 * 2000 + 500 + i / 4 * EACH, i % 4 / 2, false,
                  &data_one_piece);
    }
    crowd_expect_merged(c, LUN_FILE, true, 3);

    crowd_free(c);
    data_end(d);
}

/*
 * What is not merged
 */

void test_merge_not(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    Crowd *c = crowd_new(d);

    for (unsigned write = 0; write < 2; write++) {
        /* Gaps of a block */
        crowd_clear(c);
        for (unsigned i = 0; i < 8; i++) {
            crowd_add(c, LUN_FILE, 100 + i * (EACH + 1), write, false,
                      &data_one_piece);
        }
        crowd_expect_merged(c, LUN_FILE, write, 0);

        /* READ, WRITE, READ, ... */
        crowd_clear(c);
        for (unsigned i = 0; i < 8; i++) {
            crowd_add(c, LUN_FILE, 200 + i * EACH, i % 2, false,
                      &data_one_piece);
        }
        crowd_expect_merged(c, LUN_FILE, write, 0);

        /* Two LUNs in turn */
        crowd_clear(c);
        for (unsigned i = 0; i < 8; i++) {
            crowd_add(c, i % 2 ? LUN_FILE : LUN_STOP, 300 + i * EACH, write,
                      false, &data_one_piece);
        }
        crowd_expect_merged(c, LUN_FILE, write, 0);

        /* One after the other */
        for (unsigned i = 0; i < 4; i++) {
            crowd_clear(c);
            crowd_add(c, LUN_FILE, 400 + i * EACH, write, false,
                      &data_one_piece);
            crowd_expect_merged(c, LUN_FILE, write, 0);
        }
    }
    crowd_free(c);
    data_end(d);
}

static void merge_eight(const DataConfig *cfg, unsigned merged)
{
    MqDev *d = data_begin(cfg);
    Crowd *c = crowd_new(d);

    for (unsigned write = 0; write < 2; write++) {
        crowd_clear(c);
        for (unsigned i = 0; i < 8; i++) {
            crowd_add(c, LUN_FILE, 600 + i * EACH, write, false,
                      &data_one_piece);
        }
        crowd_expect_merged(c, LUN_FILE, write, merged);
    }
    crowd_free(c);
    data_end(d);
}

/* With request-merging=off */
void test_merge_off(const DataConfig *cfg)
{
    merge_eight(cfg, 0);
}

/* The node takes three commands at once: 3 + 3 + 2. */
void test_merge_limit(const DataConfig *cfg)
{
    merge_eight(cfg, 5);
}

/*
 * It is one I/O indeed: a throttled LUN lets one through each second, while
 * qtest's clock stands still.
 */
void test_merge_throttle(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    Crowd *c = crowd_new(d);
    gint64 begun = 0;

    data_hold(d, LUN_FILE);
    arena_clear(c->arena);
    for (unsigned i = 0; i < 8; i++) {
        crowd_add(c, LUN_FILE, 700 + i * EACH, true, false, &data_one_piece);
    }
    /* No neighbours: each for itself */
    for (unsigned i = 0; i < 3; i++) {
        crowd_add(c, LUN_FILE, 800 + i * 2 * EACH, true, false,
                  &data_one_piece);
    }
    mq_flush(c->q);
    for (unsigned i = 0; i < c->num; i++) {
        data_wait_taken(d, &c->r[i]);
    }
    /* The eight came first, and none of them waits for another second. */
    qtest_clock_step(d->qts, NANOSECONDS_PER_SECOND);
    while (mq_reap(c->q), c->q->in_flight > 3) {
        mq_pause(&begun, "eight throttled commands");
    }
    for (unsigned i = 0; i < 8; i++) {
        crowd_expect_good(c, i);
    }
    mq_reap(c->q);
    g_assert_cmpuint(c->q->in_flight, ==, 3);

    data_throttle(d, LUN_FILE, false);
    for (unsigned i = 8; i < c->num; i++) {
        crowd_expect_good(c, i);
    }
    arena_check(c->arena);
    data_check_image(LUN_FILE);
    crowd_free(c);
    data_end(d);
}

/*
 * Errors
 */

/* The @bad'th of eight is for the block @lba. */
static void crowd_around(Crowd *c, uint16_t lun, uint32_t lba, unsigned bad,
                         bool write)
{
    crowd_clear(c);
    for (unsigned i = 0; i < 8; i++) {
        crowd_add(c, lun, lba - bad * EACH + i * EACH, write, false,
                  &data_small_cuts);
    }
}

static void one_error(Crowd *c, unsigned bad, bool write)
{
    const char *stat = write ? "failed_wr_operations"
                             : "failed_rd_operations";
    QTestState *qts = c->d->qts;
    int64_t failed = data_stat(qts, LUN_FILE, stat);
    int64_t merged = data_stat(qts, LUN_FILE, merged_stat(write));
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    crowd_around(c, LUN_FILE, BAD_LBA, bad, write);
    mq_flush(c->q);
    for (unsigned i = 0; i < c->num; i++) {
        if (i == bad) {
            data_finish(&c->r[i], ans);
            mq_expect_sense(&c->r[i].cmd, ans, ABORTED_COMMAND, 0x0006);
        } else {
            crowd_expect_good(c, i);
        }
    }
    arena_check(c->arena);
    data_check_image(LUN_FILE);
    g_assert_cmpint(data_stat(qts, LUN_FILE, stat), ==, failed + 1);
    g_assert_cmpint(data_stat(qts, LUN_FILE, merged_stat(write)), ==,
                    merged + 7);
}

/* Only the command that is for the bad block fails. */
void test_merge_errors(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    Crowd *c = crowd_new(d);

    for (unsigned bad = 0; bad < 8; bad++) {
        one_error(c, bad, bad % 2);
        one_error(c, bad, bad % 2 == 0);
    }
    crowd_free(c);
    data_end(d);
}

/*
 * The VM stops because of one of them, which alone waits for it to go on.  The
 * first error is that of the I/O for all, the second its own.
 */
static void stop_for_one(Crowd *c, uint32_t lba, bool write)
{
    const unsigned bad = 5;
    QTestState *qts = c->d->qts;
    int64_t merged;

    crowd_around(c, LUN_STOP, lba, bad, write);
    mq_flush(c->q);
    qtest_qmp_eventwait(qts, "STOP");
    for (unsigned i = 0; i < c->num; i++) {
        if (i != bad) {
            crowd_expect_good(c, i);
        }
    }
    mq_reap(c->q);
    g_assert_false(c->r[bad].slot->done);
    data_check_image(LUN_STOP);

    merged = data_stat(qts, LUN_STOP, merged_stat(write));
    qtest_qmp_assert_success(qts, "{'execute': 'cont'}");
    qtest_qmp_eventwait(qts, "RESUME");
    crowd_expect_good(c, bad);
    g_assert_cmpint(data_stat(qts, LUN_STOP, merged_stat(write)), ==, merged);
    arena_check(c->arena);
    data_check_image(LUN_STOP);
}

void test_merge_stop(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    Crowd *c = crowd_new(d);

    stop_for_one(c, TWICE_READ_LBA, false);
    stop_for_one(c, TWICE_FULL_LBA, true);
    crowd_free(c);
    data_end(d);
}

/* Those with FUA flush, each of them; the others don't. */
void test_merge_fua(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    Crowd *c = crowd_new(d);
    int64_t flushes;

    for (unsigned fua = 0; fua <= 8; fua += 4) {
        crowd_clear(c);
        for (unsigned i = 0; i < 8; i++) {
            crowd_add(c, LUN_FILE, 900 + i * EACH, true, i < fua,
                      &data_one_piece);
        }
        flushes = data_stat(d->qts, LUN_FILE, "flush_operations");
        crowd_expect_merged(c, LUN_FILE, true, 7);
        g_assert_cmpint(data_stat(d->qts, LUN_FILE, "flush_operations"), ==,
                        flushes + fua);
    }

    /* A READ with FUA comes after its flush, when the batch is over. */
    crowd_clear(c);
    for (unsigned i = 0; i < 8; i++) {
        crowd_add(c, LUN_FILE, 900 + i * EACH, false, i < 4, &data_one_piece);
    }
    flushes = data_stat(d->qts, LUN_FILE, "flush_operations");
    crowd_expect_merged(c, LUN_FILE, false, 3);
    g_assert_cmpint(data_stat(d->qts, LUN_FILE, "flush_operations"), ==,
                    flushes + 4);
    crowd_free(c);
    data_end(d);
}

/*
 * TMFs
 */

/* Aborted WRITEs may have been done, or not; nothing else may have. */
static void settle_crowd(Crowd *c)
{
    for (unsigned i = 0; i < c->num; i++) {
        size_t at = c->lba[i] * BLOCK;
        uint8_t buf[EACH * BLOCK];

        g_assert_cmpint(pread(data_fd[LUN_FILE], buf, sizeof(buf), at), ==,
                        sizeof(buf));
        if (!memcmp(buf, c->data[i], sizeof(buf))) {
            memcpy(data_image[LUN_FILE] + at, buf, sizeof(buf));
        }
    }
    data_check_image(LUN_FILE);
}

static void tmf_in_flight(Crowd *c, uint32_t subtype, bool write)
{
    bool all = subtype != VIRTIO_SCSI_T_TMF_ABORT_TASK;
    int64_t merged = data_stat(c->d->qts, LUN_FILE, merged_stat(write));
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);
    const unsigned victim = 2;

    arena_clear(c->arena);
    c->num = 0;
    data_hold(c->d, LUN_FILE);
    for (unsigned i = 0; i < 6; i++) {
        crowd_add(c, LUN_FILE, 1200 + i * EACH, write, false,
                  &data_small_cuts);
    }
    mq_flush(c->q);
    for (unsigned i = 0; i < c->num; i++) {
        data_wait_taken(c->d, &c->r[i]);
    }
    g_assert_cmpint(data_stat(c->d->qts, LUN_FILE, merged_stat(write)), ==,
                    merged + 5);

    data_run_tmf(c->d, subtype, c->r[victim].cmd.tag);
    for (unsigned i = 0; i < c->num; i++) {
        if (!all && i != victim) {
            crowd_expect_good(c, i);
            continue;
        }
        data_finish(&c->r[i], ans);
        g_assert_cmpuint(ans->resp.response, ==,
                         all ? VIRTIO_SCSI_S_RESET : VIRTIO_SCSI_S_ABORTED);
    }
    settle_crowd(c);
}

void test_merge_tmf(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);
    Crowd *c = crowd_new(d);

    for (unsigned round = 0; round < 6; round++) {
        tmf_in_flight(c, VIRTIO_SCSI_T_TMF_ABORT_TASK, round % 2);
        tmf_in_flight(c, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, round % 2);
        data_take_ua(d, a, LUN_FILE);
    }
    crowd_free(c);
    data_end(d);
}

/*
 * If the I/O for all fails, what was aborted meanwhile isn't tried again: the
 * second error waits for the next one who reads there.
 */
void test_merge_abort(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    Crowd *c = crowd_new(d);
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);
    const unsigned victim = 2;

    data_hold(d, LUN_FILE);
    crowd_around(c, LUN_FILE, TWICE_READ_LBA, victim, false);
    mq_flush(c->q);
    for (unsigned i = 0; i < c->num; i++) {
        data_wait_taken(d, &c->r[i]);
    }
    data_run_tmf(d, VIRTIO_SCSI_T_TMF_ABORT_TASK, c->r[victim].cmd.tag);
    for (unsigned i = 0; i < c->num; i++) {
        if (i != victim) {
            crowd_expect_good(c, i);
        }
    }
    data_finish(&c->r[victim], ans);
    g_assert_cmpuint(ans->resp.response, ==, VIRTIO_SCSI_S_ABORTED);

    for (unsigned i = 0; i < 2; i++) {
        crowd_clear(c);
        crowd_add(c, LUN_FILE, TWICE_READ_LBA, false, false,
                  &data_one_piece);
        mq_flush(c->q);
        if (i) {
            crowd_expect_good(c, 0);
        } else {
            data_finish(&c->r[0], ans);
            mq_expect_sense(&c->r[0].cmd, ans, ABORTED_COMMAND, 0x0006);
        }
    }
    crowd_free(c);
    data_end(d);
}
