/*
 * virtio-scsi data: buffers of any shape, in any memory, and what becomes of
 * them when memory, medium or disk fail
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_config.h"
#include "virtio-scsi-data.h"

/*
 * No medium
 */

#define CD_BLOCK 2048

static MqCmd cd_read(uint32_t lba, unsigned blocks, size_t room)
{
    MqCmd cmd = mq_read10(LUN_CD, lba, blocks);

    cmd.in_len = room;
    return cmd;
}

static void expect_no_medium(MqDev *d, Arena *a, const Cuts *cuts)
{
    int64_t failed = data_stat(d->qts, LUN_CD, "failed_rd_operations");
    int64_t good = data_stat(d->qts, LUN_CD, "rd_operations");
    const MqCmd cmds[] = {
        cd_read(0, 1, CD_BLOCK), cd_read(0, 3, 3 * CD_BLOCK),
        cd_read(0, 1, CD_BLOCK + 77), cd_read(0, 0, 0),
        cd_read(0xffffff00, 1, CD_BLOCK), cd_read(0xffffff00, 0, 0),
        mq_cmd(LUN_CD, TEST_UNIT_READY),
    };
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    for (unsigned i = 0; i < ARRAY_SIZE(cmds); i++) {
        data_run(data_queue(d), a, &cmds[i], cuts, ans);
        mq_expect_sense(&cmds[i], ans, NOT_READY, 0x3a00);
        g_assert_cmpuint(le32_to_cpu(ans->resp.resid), ==, cmds[i].in_len);
        g_assert_true(mq_all_bytes(ans->in, cmds[i].in_len, MQ_FILLER));
    }
    g_assert_cmpint(data_stat(d->qts, LUN_CD, "failed_rd_operations"), ==,
                    failed);
    g_assert_cmpint(data_stat(d->qts, LUN_CD, "rd_operations"), ==, good);
}

static void expect_cd(MqDev *d, Arena *a, const Cuts *cuts)
{
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    for (unsigned lba = 0; lba < 100; lba += 25) {
        MqCmd cmd = cd_read(lba, 3, 3 * CD_BLOCK + lba);

        data_run(data_queue(d), a, &cmd, cuts, ans);
        mq_expect_moved(&cmd, ans, 3 * CD_BLOCK);
        g_assert_cmpmem(ans->in, 3 * CD_BLOCK,
                        data_image[LUN_FILE] + lba * CD_BLOCK, 3 * CD_BLOCK);
    }
}

/* Only with this a LUN gets to know how big a new medium is. */
static void read_capacity(MqDev *d, Arena *a)
{
    MqCmd cmd = mq_cmd(LUN_CD, READ_CAPACITY_10);
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    cmd.in_len = 8;
    data_run(data_queue(d), a, &cmd, &data_one_piece, ans);
    mq_expect_moved(&cmd, ans, 8);
    g_assert_cmpuint(ldl_be_p(ans->in), ==, LUN_BYTES / CD_BLOCK - 1);
    g_assert_cmpuint(ldl_be_p(ans->in + 4), ==, CD_BLOCK);
}

static void tray(QTestState *qts, const char *command)
{
    qtest_qmp_assert_success(qts,
        "{'execute': %s, 'arguments': {'id': 'hd2'}}", command);
}

static void insert_cd(QTestState *qts)
{
    qtest_qmp_assert_success(qts,
        "{'execute': 'blockdev-add', 'arguments': {'driver': 'file',"
        " 'node-name': 'cd', 'filename': %s, 'locking': 'off',"
        " 'read-only': true}}", data_path[LUN_FILE]);
    tray(qts, "blockdev-open-tray");
    qtest_qmp_assert_success(qts,
        "{'execute': 'blockdev-insert-medium',"
        " 'arguments': {'id': 'hd2', 'node-name': 'cd'}}");
}

static void remove_cd(QTestState *qts)
{
    tray(qts, "blockdev-remove-medium");
    qtest_qmp_assert_success(qts,
        "{'execute': 'blockdev-del', 'arguments': {'node-name': 'cd'}}");
}

/* No medium at all; one in an open tray; one that can be read */
static void test_medium(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);

    for (unsigned round = 0; round < 3; round++) {
        data_take_ua(d, a, LUN_CD);
        expect_no_medium(d, a, round ? &data_small_cuts : &data_one_piece);
        insert_cd(d->qts);
        data_take_ua(d, a, LUN_CD);
        expect_no_medium(d, a, &data_small_cuts);
        tray(d->qts, "blockdev-close-tray");
        data_take_ua(d, a, LUN_CD);
        read_capacity(d, a);
        expect_cd(d, a, &data_one_piece);
        expect_cd(d, a, &data_small_cuts);
        tray(d->qts, "blockdev-open-tray");
        data_take_ua(d, a, LUN_CD);
        expect_no_medium(d, a, &data_small_cuts);
        remove_cd(d->qts);
        tray(d->qts, "blockdev-close-tray");
    }
    data_end(d);
}

/*
 * Ejected while each queue reads two neighbours: they end with all data, or
 * with none.
 */
static void test_eject_in_flight(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);
    const unsigned num = 2 * NUM_QUEUES;
    g_autofree Request *r = g_new(Request, num);
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    for (unsigned round = 0; round < 4; round++) {
        MqCmd cmd = cd_read(0, 1, CD_BLOCK);

        insert_cd(d->qts);
        tray(d->qts, "blockdev-close-tray");
        data_take_ua(d, a, LUN_CD);
        read_capacity(d, a);
        data_throttle(d, LUN_CD, true);
        data_run(mq_queue(d, 0), a, &cmd, &data_one_piece, ans);
        mq_expect_moved(&cmd, ans, CD_BLOCK);

        arena_clear(a);
        for (unsigned i = 0; i < num; i++) {
            cmd = cd_read(i, 1, CD_BLOCK);
            data_prepare(&r[i], a, &cmd, &data_small_cuts);
            data_post(mq_queue(d, i / 2), &r[i]);
        }
        for (unsigned i = 0; i < num; i++) {
            mq_flush(mq_queue(d, i / 2));
            data_wait_taken(d, &r[i]);
        }
        g_assert_cmpint(data_stat(d->qts, LUN_CD, "rd_merged"), ==,
                        (round + 1) * NUM_QUEUES);
        tray(d->qts, "blockdev-open-tray");
        remove_cd(d->qts);
        for (unsigned i = 0; i < num; i++) {
            data_finish(&r[i], ans);
            if (ans->resp.status == GOOD) {
                mq_expect_moved(&r[i].cmd, ans, CD_BLOCK);
                g_assert_cmpmem(ans->in, CD_BLOCK,
                                data_image[LUN_FILE] + i * CD_BLOCK, CD_BLOCK);
            } else {
                mq_expect_sense(&r[i].cmd, ans, NOT_READY, 0x3a00);
            }
        }
        arena_check(a);
    }
    data_end(d);
}

/*
 * Errors
 */

/* A READ or WRITE of three blocks, the one in the middle at @lba */
static MqCmd around(uint16_t lun, uint32_t lba, bool write, uint8_t *data)
{
    if (write) {
        data_fill(data, lba - 1, 3);
        return mq_write10(lun, lba - 1, 3, data);
    }
    return mq_read10(lun, lba - 1, 3);
}

static void expect_io_error(MqDev *d, Arena *a, uint16_t lun, bool write,
                            const Cuts *cuts)
{
    const char *stat = write ? "failed_wr_operations"
                             : "failed_rd_operations";
    int64_t failed = data_stat(d->qts, lun, stat);
    uint8_t data[3 * BLOCK] = { 0 };
    MqCmd cmd = around(lun, BAD_LBA, write, data);
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    data_run(data_queue(d), a, &cmd, cuts, ans);
    mq_expect_sense(&cmd, ans, ABORTED_COMMAND, 0x0006);
    g_assert_cmpint(data_stat(d->qts, lun, stat), ==, failed + 1);
    data_check_image(lun);
}

static void test_io_errors(const DataConfig *cfg)
{
    const Cuts *cuts[] = {
        &data_one_piece, &data_small_cuts, &data_page_cuts,
    };
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);

    for (unsigned i = 0; i < ARRAY_SIZE(cuts); i++) {
        expect_io_error(d, a, LUN_FILE, false, cuts[i]);
        expect_io_error(d, a, LUN_FILE, true, cuts[i]);
        /* It stops the VM only if there is no space left. */
        expect_io_error(d, a, LUN_STOP, true, cuts[i]);
    }
    data_framed_rw(d, a, &data_one_piece);
    data_end(d);
}

static void qmp_and_wait(MqDev *d, const char *command, const char *event)
{
    qtest_qmp_assert_success(d->qts, "{'execute': %s}", command);
    qtest_qmp_eventwait(d->qts, event);
}

/* QEMU tells of an error at LUN_STOP, and only then that the VM stops. */
static void expect_error_event(QTestState *qts, bool write)
{
    g_autofree char *path = g_strdup_printf("/machine/peripheral/hd%u",
                                            LUN_STOP);
    g_autofree char *node = g_strdup_printf("disk%u", LUN_STOP);
    g_autoptr(QDict) event = qtest_qmp_receive_dict(qts);
    QDict *data;

    g_assert_cmpstr(qdict_get_try_str(event, "event"), ==, "BLOCK_IO_ERROR");
    data = qdict_get_qdict(event, "data");
    g_assert_cmpstr(qdict_get_str(data, "qom-path"), ==, path);
    g_assert_cmpstr(qdict_get_str(data, "node-name"), ==, node);
    g_assert_cmpstr(qdict_get_str(data, "operation"), ==,
                    write ? "write" : "read");
    g_assert_cmpstr(qdict_get_str(data, "action"), ==, "stop");
    qtest_qmp_eventwait(qts, "STOP");
}

/* The VM stops, and when it goes on, so does the command. */
static void stop_and_cont(MqDev *d, uint32_t lba, bool write, const Cuts *cuts)
{
    g_autofree Arena *a = arena_new(d);
    g_autofree Request *r = g_new(Request, 1);
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);
    uint8_t data[3 * BLOCK] = { 0 };
    MqCmd cmd = around(LUN_STOP, lba, write, data);
    MqQueue *q = data_queue(d);

    data_prepare(r, a, &cmd, cuts);
    data_post(q, r);
    mq_flush(q);
    expect_error_event(d->qts, write);
    mq_reap(q);
    g_assert_false(r->slot->done);
    data_check_image(LUN_STOP);

    qmp_and_wait(d, "cont", "RESUME");
    data_finish(r, ans);
    arena_check(a);
    if (write) {
        mq_expect_moved(&cmd, ans, sizeof(data));
        memcpy(data_image[LUN_STOP] + (lba - 1) * BLOCK, data, sizeof(data));
    } else {
        data_expect_read(&cmd, ans, lba - 1, 3);
    }
    data_check_image(LUN_STOP);
    guest_free(d->alloc, a->base);
}

static void test_stop_cont(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    stop_and_cont(d, ONCE_READ_LBA, false, &data_small_cuts);
    stop_and_cont(d, ONCE_FULL_LBA, true, &data_small_cuts);
    data_end(d);
}

/* A command that waits for the VM to go on is given up by a reset. */
static void test_stop_reset(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);
    g_autofree Request *r = g_new(Request, NUM_QUEUES);

    for (unsigned round = 0; round < 3; round++) {
        arena_clear(a);
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            MqCmd cmd = mq_read10(LUN_STOP, BAD_LBA, 1);

            data_prepare(&r[i], a, &cmd, &data_small_cuts);
            data_post(mq_queue(d, i), &r[i]);
            mq_publish(mq_queue(d, i));
            mq_kick(mq_queue(d, i));
        }
        qtest_qmp_eventwait(d->qts, "STOP");
        mq_reset(d);
        qmp_and_wait(d, "cont", "RESUME");
        data_start(d, cfg->form);
        data_framed_rw(d, a, &data_one_piece);
    }
    data_end(d);
}

/* Reads and writes that are held, when a TMF ends one of them or all */
static void check_tmf(MqDev *d, Arena *a, uint32_t subtype)
{
    bool all = subtype != VIRTIO_SCSI_T_TMF_ABORT_TASK;
    Flight *f = flight_begin(d, a, 0);
    const unsigned victim = 3;

    data_run_tmf(d, subtype, f->r[victim].cmd.tag);
    for (unsigned i = 0; i < FLIGHT_SIZE; i++) {
        g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

        data_finish(&f->r[i], ans);
        if (all || i == victim) {
            g_assert_cmpuint(ans->resp.response, ==,
                             all ? VIRTIO_SCSI_S_RESET
                                 : VIRTIO_SCSI_S_ABORTED);
        } else if (i % 2) {
            mq_expect_moved(&f->r[i].cmd, ans, FLIGHT_BLOCKS * BLOCK);
        } else {
            data_expect_read(&f->r[i].cmd, ans,
                             FLIGHT_LBA + FLIGHT_BLOCKS * i, FLIGHT_BLOCKS);
        }
    }
    arena_check(a);
    g_free(f);
}

/* Aborted writes may have been done, or not; nothing else may have. */
static void settle_flight(void)
{
    size_t at = FLIGHT_LBA * BLOCK;
    size_t len = FLIGHT_SIZE * FLIGHT_BLOCKS * BLOCK;
    uint8_t *buf = data_image[LUN_FILE] + at;

    g_assert_cmpint(pread(data_fd[LUN_FILE], buf, len, at), ==, len);
    data_check_image(LUN_FILE);
}

static void test_tmf(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);

    for (unsigned round = 0; round < 10; round++) {
        check_tmf(d, a, VIRTIO_SCSI_T_TMF_ABORT_TASK);
        settle_flight();
        check_tmf(d, a, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET);
        settle_flight();
        data_take_ua(d, a, LUN_FILE);
        data_framed_rw(d, a, &data_one_piece);
    }
    data_end(d);
}

/*
 * Caches
 */

static void expect_flushes(MqDev *d, Arena *a, MqCmd cmd, unsigned writes,
                           unsigned flushes)
{
    int64_t wr = data_stat(d->qts, LUN_FILE, "wr_operations");
    int64_t flush = data_stat(d->qts, LUN_FILE, "flush_operations");
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    data_run(data_queue(d), a, &cmd, &data_small_cuts, ans);
    mq_expect_moved(&cmd, ans, MAX(cmd.in_len, cmd.out_len));
    g_assert_cmpint(data_stat(d->qts, LUN_FILE, "wr_operations"), ==,
                    wr + writes);
    g_assert_cmpint(data_stat(d->qts, LUN_FILE, "flush_operations"), ==,
                    flush + flushes);
}

static void with_fua(MqDev *d, Arena *a)
{
    enum { LBA = 500 };
    uint8_t *data = data_image[LUN_FILE] + LBA * BLOCK;
    MqCmd cmd;

    for (unsigned fua = 0; fua < 2; fua++) {
        data_fill(data, LBA, 2);
        cmd = mq_write10(LUN_FILE, LBA, 2, data);
        cmd.cdb[1] = fua << 3;
        expect_flushes(d, a, cmd, 1, fua);
        cmd = mq_read10(LUN_FILE, LBA, 2);
        cmd.cdb[1] = fua << 3;
        expect_flushes(d, a, cmd, 0, fua);
    }
    expect_flushes(d, a, mq_cmd(LUN_FILE, SYNCHRONIZE_CACHE), 0, 1);
    data_check_image(LUN_FILE);
}

static void test_flush(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);

    for (unsigned round = 0; round < 2; round++) {
        with_fua(d, a);
        data_set_write_cache(d, a, &data_one_piece, false);
        with_fua(d, a);
        data_set_write_cache(d, a, &data_one_piece, true);
    }
    data_end(d);
}

#define MODERN  ",\"disable-legacy\":\"on\",\"packed\":true,\"in_order\":true"
#define PLATFORM ",\"disable-legacy\":\"on\",\"iommu_platform\":true"
#define LEGACY  ",\"disable-modern\":true,\"disable-legacy\":\"off\""
static const struct {
    const char *name;
    void (*func)(const DataConfig *cfg);
    DataConfig cfg;
} data_tests[] = {
    {
        "framing/table", test_framing,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "framing/chain", test_framing,
        { .iothreads = 2, .props = MODERN },
    }, {
        "framing/packed", test_framing,
        { .iothreads = 2, .form = MQ_PACKED | MQ_INDIRECT, .props = MODERN },
    }, {
        "framing/main-loop", test_framing,
        { .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "framing/direct", test_framing,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .direct = true },
    }, {
        "framing/in-order", test_framing,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .more_features = 1ull << VIRTIO_F_IN_ORDER },
    }, {
        "memory/hotplug", test_hotplug,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .needs = "pc-dimm", .args = DATA_DIMM_ARGS },
    }, {
        "memory/hotplug-access-platform", test_hotplug,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = PLATFORM,
          .more_features = 1ull << VIRTIO_F_IOMMU_PLATFORM,
          .needs = "pc-dimm", .args = DATA_DIMM_ARGS },
    }, {
        "memory/hotplug-main-loop", test_hotplug,
        { .form = MQ_INDIRECT, .props = MODERN,
          .needs = "pc-dimm", .args = DATA_DIMM_ARGS },
    }, {
        "memory/unplug-idle", test_unplug_idle,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .needs = "pc-dimm", .args = DATA_DIMM_ARGS },
    }, {
        "memory/unplug-idle-main-loop", test_unplug_idle,
        { .form = MQ_INDIRECT, .props = MODERN,
          .needs = "pc-dimm", .args = DATA_DIMM_ARGS },
    }, {
        "memory/across", test_hotplug_across,
        { .iothreads = 2, .form = MQ_PACKED | MQ_INDIRECT, .props = MODERN,
          .needs = "pc-dimm", .args = DATA_DIMM_ARGS },
    }, {
        "memory/unplug-in-flight", test_unplug_in_flight,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .needs = "pc-dimm", .args = DATA_DIMM_ARGS },
    }, {
        "memory/unplug-beside", test_unplug_beside,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .needs = "pc-dimm", .args = DATA_DIMM_ARGS },
    }, {
        "memory/unplug-in-flight-main-loop", test_unplug_in_flight,
        { .form = MQ_INDIRECT, .props = MODERN,
          .needs = "pc-dimm", .args = DATA_DIMM_ARGS },
    }, {
        "memory/unplug-reset", test_unplug_reset,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .needs = "pc-dimm", .args = DATA_DIMM_ARGS },
    }, {
        "memory/bar", test_bar,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .needs = "ivshmem-plain", .args = DATA_BAR_ARGS },
    }, {
        "memory/bar-main-loop", test_bar,
        { .form = MQ_INDIRECT, .props = MODERN,
          .needs = "ivshmem-plain", .args = DATA_BAR_ARGS },
    }, {
        "bus-master/kick", test_bus_master,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "bus-master/kick-access-platform", test_bus_master,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = PLATFORM,
          .more_features = 1ull << VIRTIO_F_IOMMU_PLATFORM },
    }, {
        "bus-master/kick-main-loop", test_bus_master,
        { .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "bus-master/in-flight", test_bus_master_in_flight,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "bus-master/in-flight-access-platform", test_bus_master_in_flight,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = PLATFORM,
          .more_features = 1ull << VIRTIO_F_IOMMU_PLATFORM },
    }, {
        "medium/none", test_medium,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "medium/none-main-loop", test_medium,
        { .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "medium/eject-in-flight", test_eject_in_flight,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "errors/report", test_io_errors,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "errors/stop-cont", test_stop_cont,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "errors/stop-cont-main-loop", test_stop_cont,
        { .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "errors/stop-reset", test_stop_reset,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "errors/tmf", test_tmf,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "flush", test_flush,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/neighbours", test_merge,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/neighbours-packed", test_merge,
        { .iothreads = 2, .form = MQ_PACKED | MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/neighbours-main-loop", test_merge,
        { .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/neighbours-in-order", test_merge,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .more_features = 1ull << VIRTIO_F_IN_ORDER },
    }, {
        "merge/not", test_merge_not,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/off", test_merge_off,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .lun_props = ",\"request-merging\":false" },
    }, {
        "merge/limit", test_merge_limit,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .node_props = ",\"max-transfer\":6144" },
    }, {
        "merge/throttle", test_merge_throttle,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/errors", test_merge_errors,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/errors-main-loop", test_merge_errors,
        { .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/stop-cont", test_merge_stop,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/stop-cont-main-loop", test_merge_stop,
        { .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/fua", test_merge_fua,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/tmf", test_merge_tmf,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/tmf-main-loop", test_merge_tmf,
        { .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "merge/abort", test_merge_abort,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "crowd/split", test_crowd,
        { .iothreads = 2, .form = MQ_INDIRECT | MQ_EVENT_IDX,
          .props = MODERN },
    }, {
        "crowd/direct", test_crowd,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .direct = true },
    }, {
        "crowd/packed", test_crowd,
        { .iothreads = 2, .form = MQ_PACKED | MQ_INDIRECT, .props = MODERN },
    }, {
        "crowd/in-order", test_crowd,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN,
          .more_features = 1ull << VIRTIO_F_IN_ORDER },
    }, {
        "crowd/in-order-packed", test_crowd,
        { .iothreads = 2, .form = MQ_PACKED | MQ_INDIRECT, .props = MODERN,
          .more_features = 1ull << VIRTIO_F_IN_ORDER },
    }, {
        "crowd/main-loop", test_crowd,
        { .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "dirty-log/modern", test_dirty_log,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "dirty-log/packed", test_dirty_log,
        { .iothreads = 2, .form = MQ_PACKED | MQ_INDIRECT, .props = MODERN },
    }, {
        "dirty-log/main-loop", test_dirty_log,
        { .form = MQ_INDIRECT, .props = MODERN },
    }, {
        "dirty-log/legacy-padded", test_dirty_log,
        { .iothreads = 2, .form = MQ_INDIRECT, .props = LEGACY,
          .less_features = 1ull << VIRTIO_F_ANY_LAYOUT },
    },
};

static bool tmp_can_direct(void)
{
    int fd, direct;
    g_autofree char *path = mq_open_unnamed(&fd);

    direct = open(path, O_RDWR | O_DIRECT);
    close(fd);
    if (direct >= 0) {
        close(direct);
    }
    return direct >= 0;
}

static void run_test(const void *arg)
{
    const DataConfig *cfg = arg;

    if (cfg->direct && !tmp_can_direct()) {
        g_test_skip("no O_DIRECT for temporary files");
        return;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(data_tests); i++) {
        if (cfg == &data_tests[i].cfg) {
            data_tests[i].func(cfg);
        }
    }
}

int main(int argc, char **argv)
{
    const char *arch = qtest_get_arch();

    g_test_init(&argc, &argv, NULL);
    if (!g_str_equal(arch, "x86_64") && !g_str_equal(arch, "i386")) {
        /* The driver is little-endian, and so is what it knows of a PC. */
        return 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(data_tests); i++) {
        const DataConfig *cfg = &data_tests[i].cfg;
        g_autofree char *path =
            g_strdup_printf("virtio-scsi-mq/data/%s", data_tests[i].name);

        if (!cfg->needs || qtest_has_device(cfg->needs)) {
            qtest_add_data_func(path, cfg, run_test);
        }
    }
    return g_test_run();
}
