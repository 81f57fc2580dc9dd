/*
 * virtio-scsi: media that come and go, and block sizes that change
 *
 * What scsi-disk keeps of its medium must be right after each step that guest
 * or host take, on each queue; and a command that is restarted must do what it
 * was to do at first.  The driver is in virtio-scsi-mq-common.c.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "scsi/constants.h"
#include "libqos/qgraph.h"
#include "virtio-scsi-mq-answer.h"

#define CTRL_SLOT   9
#define NUM_QUEUES  2
#define DATA_MAX    (32 * KiB)

#define SECTOR      512
#define HD_SECTORS  8192u
#define CD_BLOCK    2048
#define BIG_BLOCKS  1024u   /* of CD_BLOCK: the medium "big" */
#define SMALL_BLOCKS 16u    /* and the medium "small" */

enum { LUN_CD, LUN_HD, LUN_SLOW };

/* The hard disk's file, which has no name */
static int hd_fd;

/*
 * Virtual machine
 */

static void add_vm(GString *cmd, const char *hd_path)
{
    g_string_append_printf(cmd,
        " -object '{\"qom-type\":\"iothread\",\"id\":\"iot0\"}'"
        " -object '{\"qom-type\":\"iothread\",\"id\":\"iot1\"}'"
        " -blockdev '{\"driver\":\"null-co\",\"node-name\":\"big\","
        "\"read-only\":true,\"read-zeroes\":true,\"size\":%u}'"
        " -blockdev '{\"driver\":\"null-co\",\"node-name\":\"small\","
        "\"read-only\":true,\"read-zeroes\":true,\"size\":%u}'",
        BIG_BLOCKS * CD_BLOCK, SMALL_BLOCKS * CD_BLOCK);
    /* The first flush fails, and no other one. */
    g_string_append_printf(cmd,
        " -blockdev '{\"driver\":\"blkdebug\",\"node-name\":\"disk\","
        "\"image\":{\"driver\":\"file\",\"locking\":\"off\","
        "\"filename\":\"%s\"},\"inject-error\":[{\"event\":\"none\","
        "\"iotype\":\"flush\",\"once\":true}]}'", hd_path);
    /* All JSON: plain -device options would be created before JSON ones. */
    g_string_append_printf(cmd,
        " -device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"vs\","
        "\"addr\":\"%u\",\"num_queues\":%u,\"iothread-vq-mapping\":"
        "[{\"iothread\":\"iot0\"},{\"iothread\":\"iot1\"}]}'"
        " -device '{\"driver\":\"scsi-cd\",\"id\":\"cd\",\"drive\":\"big\","
        "\"bus\":\"vs.0\",\"channel\":0,\"scsi-id\":0,\"lun\":%u}'"
        " -device '{\"driver\":\"scsi-hd\",\"id\":\"hd\",\"drive\":\"disk\","
        "\"werror\":\"stop\","
        "\"bus\":\"vs.0\",\"channel\":0,\"scsi-id\":0,\"lun\":%u}'",
        CTRL_SLOT, NUM_QUEUES, LUN_CD, LUN_HD);
}

static void *medium_before(GString *cmd, void *arg)
{
    g_autofree uint8_t *image = g_malloc(HD_SECTORS * SECTOR);
    g_autofree char *path = mq_open_unnamed(&hd_fd);

    /* The tests leave the VM in a state of their own: never use it twice. */
    qos_invalidate_command_line();
    mq_fill_pattern(image, 0, HD_SECTORS, 0);
    g_assert_cmpint(pwrite(hd_fd, image, HD_SECTORS * SECTOR, 0), ==,
                    HD_SECTORS * SECTOR);
    add_vm(cmd, path);
    return arg;
}

static MqDev *begin(QPCIBus *bus, QGuestAllocator *alloc)
{
    MqDev *d = mq_open(bus, alloc, CTRL_SLOT);

    mq_start(d, MQ_SPLIT, DATA_MAX);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_CD);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_HD);
    return d;
}

static void end(MqDev *d)
{
    mq_reset(d);
    mq_close(d);
    close(hd_fd);
}

/*
 * Commands
 */

static void run(MqQueue *q, const MqCmd *cmd, MqAnswer *a)
{
    mq_run(q, cmd, &a->resp, a->in);
}

/* After a change: until what there is to tell has been told */
static void take_ua(MqDev *d, uint16_t lun)
{
    MqAnswer a;

    for (unsigned i = 0; i < 8; i++) {
        MqCmd cmd = mq_cmd(lun, TEST_UNIT_READY);

        run(mq_queue(d, 0), &cmd, &a);
        if (a.resp.status == GOOD ||
            (a.resp.sense[2] & 0xf) != UNIT_ATTENTION) {
            return;
        }
    }
    g_assert_not_reached();
}

static MqCmd read_blocks(uint16_t lun, uint32_t lba, uint16_t blocks,
                         unsigned block_size)
{
    MqCmd cmd = mq_read10(lun, lba, blocks);

    cmd.in_len = blocks * block_size;
    return cmd;
}

static MqCmd read_capacity(uint16_t lun, bool is_long)
{
    MqCmd cmd = mq_cmd(lun, is_long ? SERVICE_ACTION_IN_16
                                    : READ_CAPACITY_10);

    cmd.in_len = is_long ? 32 : 8;
    if (is_long) {
        cmd.cdb[1] = SAI_READ_CAPACITY_16;
        cmd.cdb[13] = 32;
    }
    return cmd;
}

/* Both forms of READ CAPACITY, and what READs go by, on each queue */
static void expect_capacity(MqDev *d, uint16_t lun, unsigned blocks,
                            unsigned block_size)
{
    MqAnswer a;

    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        MqQueue *q = mq_queue(d, i);
        MqCmd cmd = read_capacity(lun, false);

        run(q, &cmd, &a);
        mq_assert_good(&a.resp);
        g_assert_cmpuint(ldl_be_p(a.in), ==, blocks - 1);
        g_assert_cmpuint(ldl_be_p(a.in + 4), ==, block_size);

        cmd = read_capacity(lun, true);
        run(q, &cmd, &a);
        mq_assert_good(&a.resp);
        g_assert_cmpuint(ldq_be_p(a.in), ==, blocks - 1);
        g_assert_cmpuint(ldl_be_p(a.in + 8), ==, block_size);

        cmd = read_blocks(lun, blocks - 1, 1, block_size);
        run(q, &cmd, &a);
        mq_assert_good(&a.resp);
        g_assert_cmpuint(le32_to_cpu(a.resp.resid), ==, 0);

        cmd = read_blocks(lun, blocks - 1, 2, block_size);
        run(q, &cmd, &a);
        mq_expect_sense(&cmd, &a, ILLEGAL_REQUEST, 0x2100);
    }
}

/*
 * The medium
 */

/* Returns the event code; the status (MMC-6, 6.6.3) must be @status. */
static uint8_t media_event(MqDev *d, unsigned status)
{
    MqCmd cmd = mq_cmd(LUN_CD, GET_EVENT_STATUS_NOTIFICATION);
    MqAnswer a;

    cmd.cdb[1] = 1;
    cmd.cdb[4] = 1 << 4;
    cmd.cdb[8] = 8;
    cmd.in_len = 8;
    run(mq_queue(d, 1), &cmd, &a);
    mq_assert_good(&a.resp);
    g_assert_cmpuint(a.in[5], ==, status);
    return a.in[4];
}

/* There is one of so many blocks. */
static void expect_medium(MqDev *d, unsigned blocks)
{
    take_ua(d, LUN_CD);
    media_event(d, MS_MEDIA_PRESENT);
    mq_clear_ua(mq_queue(d, 1), 0, LUN_CD);
    expect_capacity(d, LUN_CD, blocks, CD_BLOCK);
}

static void expect_no_medium(MqDev *d, unsigned status)
{
    MqCmd cmds[] = {
        mq_cmd(LUN_CD, TEST_UNIT_READY),
        read_capacity(LUN_CD, false),
        read_capacity(LUN_CD, true),
        read_blocks(LUN_CD, 0, 1, CD_BLOCK),
        read_blocks(LUN_CD, BIG_BLOCKS, 1, CD_BLOCK),
    };
    MqAnswer a;

    take_ua(d, LUN_CD);
    media_event(d, status);
    for (unsigned i = 0; i < NUM_QUEUES * ARRAY_SIZE(cmds); i++) {
        MqCmd *cmd = &cmds[i / NUM_QUEUES];

        cmd->tag = mq_next_tag();
        run(mq_queue(d, i % NUM_QUEUES), cmd, &a);
        mq_expect_sense(cmd, &a, NOT_READY, 0x3a00);
    }
}

static MqCmd start_stop(bool load)
{
    MqCmd cmd = mq_cmd(LUN_CD, START_STOP);

    cmd.cdb[4] = 2 | load;
    return cmd;
}

static void guest_tray(MqDev *d, bool load)
{
    MqCmd cmd = start_stop(load);

    take_ua(d, LUN_CD);
    mq_run_good(mq_queue(d, load), &cmd, NULL);
    qtest_qmp_eventwait(d->qts, "DEVICE_TRAY_MOVED");
}

static void guest_lock(MqDev *d, bool lock)
{
    MqCmd cmd = mq_cmd(LUN_CD, ALLOW_MEDIUM_REMOVAL);

    cmd.cdb[4] = lock;
    mq_run_good(mq_queue(d, lock), &cmd, NULL);
}

static void host_tray(MqDev *d, const char *command)
{
    qtest_qmp_assert_success(d->qts,
        "{'execute': %s, 'arguments': {'id': 'cd'}}", command);
}

static void host_insert(MqDev *d, const char *node)
{
    qtest_qmp_assert_success(d->qts,
        "{'execute': 'blockdev-insert-medium',"
        " 'arguments': {'id': 'cd', 'node-name': %s}}", node);
}

static void lun_reset(MqDev *d, uint16_t lun)
{
    g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, lun,
                            0), ==, VIRTIO_SCSI_S_OK);
}

/* The host changes the medium in a tray that the guest moves. */
static void test_guest_tray(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    expect_medium(d, BIG_BLOCKS);
    for (unsigned round = 0; round < 3; round++) {
        guest_tray(d, false);
        expect_no_medium(d, MS_TRAY_OPEN);
        host_tray(d, "blockdev-remove-medium");
        expect_no_medium(d, MS_TRAY_OPEN);
        guest_tray(d, true);
        expect_no_medium(d, 0);
        guest_tray(d, false);
        host_insert(d, round % 2 ? "big" : "small");
        expect_no_medium(d, MS_TRAY_OPEN);
        guest_tray(d, true);
        expect_medium(d, round % 2 ? BIG_BLOCKS : SMALL_BLOCKS);
    }
    end(d);
}

/* The guest ejects, the host closes; and the other way round. */
static void test_both_trays(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    for (unsigned round = 0; round < 3; round++) {
        guest_tray(d, false);
        host_tray(d, "blockdev-remove-medium");
        host_insert(d, round % 2 ? "big" : "small");
        host_tray(d, "blockdev-close-tray");
        expect_medium(d, round % 2 ? BIG_BLOCKS : SMALL_BLOCKS);
        host_tray(d, "blockdev-open-tray");
        expect_no_medium(d, MS_TRAY_OPEN);
        qtest_qmp_eventwait(d->qts, "DEVICE_TRAY_MOVED"); /* host's close */
        qtest_qmp_eventwait(d->qts, "DEVICE_TRAY_MOVED"); /* host's open */
        guest_tray(d, true);
        expect_medium(d, round % 2 ? BIG_BLOCKS : SMALL_BLOCKS);
    }
    end(d);
}

static void test_locked_tray(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);
    MqCmd cmd = start_stop(false);
    MqAnswer a;

    guest_lock(d, true);
    run(mq_queue(d, 0), &cmd, &a);
    mq_expect_sense(&cmd, &a, ILLEGAL_REQUEST, 0x5302);
    expect_medium(d, BIG_BLOCKS);

    /* The host may only ask for it. */
    host_tray(d, "blockdev-open-tray");
    g_assert_cmpuint(media_event(d, MS_MEDIA_PRESENT), ==,
                     MEC_EJECT_REQUESTED);
    g_assert_cmpuint(media_event(d, MS_MEDIA_PRESENT), ==, MEC_NO_CHANGE);
    expect_medium(d, BIG_BLOCKS);

    guest_lock(d, false);
    guest_tray(d, false);
    expect_no_medium(d, MS_TRAY_OPEN);
    end(d);
}

/* A reset closes the tray, whatever is in it now. */
static void test_reset_tray(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    guest_tray(d, false);
    host_tray(d, "blockdev-remove-medium");
    host_insert(d, "small");
    lun_reset(d, LUN_CD);
    expect_medium(d, SMALL_BLOCKS);

    guest_tray(d, false);
    host_tray(d, "blockdev-remove-medium");
    lun_reset(d, LUN_CD);
    expect_no_medium(d, 0);
    end(d);
}

/*
 * Guest and host move the tray, and a LUN reset ends what the queues read: each
 * command is answered once.
 */
static void test_eject_reset_race(void *obj, void *arg, QGuestAllocator *alloc)
{
    enum { ROUNDS = 40, READS = 24 };
    MqDev *d = begin(obj, alloc);
    MqSlot *slot[NUM_QUEUES][READS], *tmf;
    struct virtio_scsi_cmd_resp resp;
    uint8_t response;

    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            for (unsigned j = 0; j < READS; j++) {
                MqCmd cmd = read_blocks(LUN_CD, j, 1, CD_BLOCK);

                if (i == 1 && j % 8 == 7) {
                    cmd = start_stop(j % 16 == 7);
                }
                slot[i][j] = mq_post_cmd(mq_queue(d, i), &cmd);
                g_assert_nonnull(slot[i][j]);
            }
            mq_flush(mq_queue(d, i));
        }
        if (round % 2) {
            host_tray(d, "blockdev-open-tray");
        }
        tmf = mq_post_tmf(d, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, LUN_CD,
                          0);
        if (round % 4 == 1) {
            host_tray(d, "blockdev-close-tray");
        }
        mq_wait(tmf);
        mq_read_resp(tmf, &response, sizeof(response));
        g_assert_cmpuint(response, ==, VIRTIO_SCSI_S_OK);
        mq_release(tmf);
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            for (unsigned j = 0; j < READS; j++) {
                mq_wait(slot[i][j]);
                mq_read_resp(slot[i][j], &resp, sizeof(resp));
                g_assert_true(resp.response == VIRTIO_SCSI_S_OK ||
                              resp.response == VIRTIO_SCSI_S_RESET);
                mq_release(slot[i][j]);
            }
        }
        lun_reset(d, LUN_CD);
        expect_medium(d, BIG_BLOCKS);
    }
    end(d);
}

/*
 * The block size
 */

static void set_block_size(MqDev *d, unsigned queue, unsigned size)
{
    uint8_t list[12] = { [3] = 8, [10] = size >> 8 };
    MqCmd cmd = mq_cmd(LUN_HD, MODE_SELECT);

    cmd.cdb[1] = 0x10;
    cmd.cdb[4] = sizeof(list);
    cmd.out = list;
    cmd.out_len = sizeof(list);
    mq_run_good(mq_queue(d, queue), &cmd, NULL);
}

static void expect_block_size(MqDev *d, unsigned size)
{
    expect_capacity(d, LUN_HD, HD_SECTORS * SECTOR / size, size);
}

/* What the file should be, from @sector on */
static void check_file(uint32_t sector, const uint8_t *want, unsigned sectors)
{
    g_autofree uint8_t *buf = g_malloc(sectors * SECTOR);

    g_assert_cmpint(pread(hd_fd, buf, sectors * SECTOR, sector * SECTOR), ==,
                    sectors * SECTOR);
    g_assert_cmpmem(buf, sectors * SECTOR, want, sectors * SECTOR);
}

static void check_untouched(uint32_t sector, unsigned sectors)
{
    g_autofree uint8_t *want = g_malloc(sectors * SECTOR);

    mq_fill_pattern(want, sector, sectors, 0);
    check_file(sector, want, sectors);
}

static void read_back(MqDev *d, uint32_t lba, unsigned size)
{
    MqCmd cmd = read_blocks(LUN_HD, lba, 2, size);
    uint8_t want[2 * 4096];
    MqAnswer a;

    g_assert_cmpuint(size, <=, 4096);
    run(mq_queue(d, lba % NUM_QUEUES), &cmd, &a);
    mq_assert_good(&a.resp);
    mq_fill_pattern(want, lba * size / SECTOR, 2 * size / SECTOR, 0);
    g_assert_cmpmem(a.in, 2 * size, want, 2 * size);
}

/* @blocks copies of a block, and nothing before or after them */
static void write_same(MqDev *d, uint32_t lba, unsigned blocks, unsigned size)
{
    MqCmd cmd = mq_cmd(LUN_HD, WRITE_SAME_10);
    g_autofree uint8_t *block = g_malloc(size);
    unsigned sectors = size / SECTOR;

    mq_fill_pattern(block, 0, sectors, 1000 + lba);
    stl_be_p(cmd.cdb + 2, lba);
    stw_be_p(cmd.cdb + 7, blocks);
    cmd.out = block;
    cmd.out_len = size;
    mq_run_good(mq_queue(d, lba % NUM_QUEUES), &cmd, NULL);
    check_untouched((lba - 1) * sectors, sectors);
    for (unsigned i = 0; i < blocks; i++) {
        check_file((lba + i) * sectors, block, sectors);
    }
    check_untouched((lba + blocks) * sectors, sectors);
}

static void test_block_size(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    expect_block_size(d, 512);
    write_same(d, 20, 3, 512);
    set_block_size(d, 0, 4096);
    expect_block_size(d, 4096);
    read_back(d, 9, 4096);
    write_same(d, 100, 3, 4096);
    set_block_size(d, 1, 1024);
    expect_block_size(d, 1024);
    read_back(d, 1000, 1024);
    write_same(d, 3001, 5, 1024);
    end(d);
}

static void test_block_size_reset(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    set_block_size(d, 0, 4096);
    lun_reset(d, LUN_HD);
    mq_clear_ua(mq_queue(d, 1), 0, LUN_HD);
    expect_block_size(d, 512);

    set_block_size(d, 1, 4096);
    expect_block_size(d, 4096);
    qtest_system_reset(d->qts);
    mq_close(d);
    d = begin(obj, alloc);
    expect_block_size(d, 512);
    read_back(d, 9, 512);
    end(d);
}

/* Each READ has one size, be it the old or the new one. */
static void test_block_size_race(void *obj, void *arg, QGuestAllocator *alloc)
{
    enum { ROUNDS = 100, READS = 16 };
    MqDev *d = begin(obj, alloc);
    MqSlot *slot[READS];
    MqAnswer a;

    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned size = round % 2 ? 512 : 4096;

        for (unsigned i = 0; i < READS; i++) {
            MqCmd cmd = read_blocks(LUN_HD, i + 1, 1, 4096);

            slot[i] = mq_post_cmd(mq_queue(d, 0), &cmd);
            g_assert_nonnull(slot[i]);
        }
        mq_flush(mq_queue(d, 0));
        set_block_size(d, 1, size);
        for (unsigned i = 0; i < READS; i++) {
            uint8_t want[4096];
            unsigned got;

            mq_wait(slot[i]);
            mq_read_resp(slot[i], &a.resp, sizeof(a.resp));
            mq_assert_good(&a.resp);
            got = 4096 - le32_to_cpu(a.resp.resid);
            g_assert_true(got == 512 || got == 4096);
            mq_read_mem(d, slot[i]->data, a.in, 4096);
            mq_fill_pattern(want, (i + 1) * got / SECTOR, got / SECTOR, 0);
            g_assert_cmpmem(a.in, got, want, got);
            mq_release(slot[i]);
        }
    }
    end(d);
}

static void test_block_size_migrate(void *obj, void *arg,
                                    QGuestAllocator *alloc)
{
    g_autofree char *disk =
        g_strdup_printf("/proc/%d/fd/%d", (int)getpid(), hd_fd);
    g_autoptr(GString) args = g_string_new(qos_get_current_command_line());
    MqDev *d = begin(obj, alloc);
    QTestState *to;

    add_vm(args, disk);
    g_string_append(args, " -incoming defer");
    to = qtest_init(args->str);

    set_block_size(d, 0, 4096);
    qtest_qmp_assert_success(d->qts, "{'execute': 'stop'}");
    mq_migrate(d->qts, to);
    mq_migrated(d, to);
    qtest_qmp_assert_success(to, "{'execute': 'cont'}");

    expect_block_size(d, 4096);
    read_back(d, 9, 4096);
    /* And the destination knows the size that it should be by default. */
    lun_reset(d, LUN_HD);
    mq_clear_ua(mq_queue(d, 1), 0, LUN_HD);
    expect_block_size(d, 512);
    end(d);
    qtest_quit(to);
}

/*
 * Errors
 */

/* Written, but the flush fails: then the same is done again, and no more. */
static void test_fua_restart(void *obj, void *arg, QGuestAllocator *alloc)
{
    enum { LBA = 200, BLOCKS = 8 };
    MqDev *d = begin(obj, alloc);
    uint8_t data[BLOCKS * SECTOR];
    struct virtio_scsi_cmd_resp resp;
    MqSlot *slot;
    MqCmd cmd;

    mq_fill_pattern(data, LBA, BLOCKS, 7);
    cmd = mq_write10(LUN_HD, LBA, BLOCKS, data);
    cmd.cdb[1] |= 1 << 3;
    slot = mq_post_cmd(mq_queue(d, 1), &cmd);
    mq_flush(mq_queue(d, 1));
    qtest_qmp_eventwait(d->qts, "STOP");
    mq_reap(mq_queue(d, 1));
    g_assert_false(slot->done);

    qtest_qmp_assert_success(d->qts, "{'execute': 'cont'}");
    mq_wait(slot);
    mq_read_resp(slot, &resp, sizeof(resp));
    mq_release(slot);
    mq_assert_good(&resp);
    g_assert_cmpuint(le32_to_cpu(resp.resid), ==, 0);
    check_untouched(LBA - BLOCKS, BLOCKS);
    check_file(LBA, data, BLOCKS);
    check_untouched(LBA + BLOCKS, BLOCKS);
    end(d);
}

/* One that takes its time, so that a LUN reset has to wait for it */
static void add_slow_lun(QTestState *qts)
{
    qtest_qmp_assert_success(qts,
        "{'execute': 'blockdev-add', 'arguments': {'driver': 'null-co',"
        " 'node-name': 'slow', 'size': %u, 'latency-ns': 300000000}}",
        HD_SECTORS * SECTOR);
    /* With a geometry it isn't read for its partition table. */
    qtest_qmp_assert_success(qts,
        "{'execute': 'device_add', 'arguments': {'driver': 'scsi-hd',"
        " 'id': 'hd2', 'drive': 'slow', 'bus': 'vs.0', 'channel': 0,"
        " 'scsi-id': 0, 'lun': %u, 'cyls': 32, 'heads': 16, 'secs': 16}}",
        LUN_SLOW);
}

/* Commands that come while a LUN is being reset are done after that. */
static void test_during_reset(void *obj, void *arg, QGuestAllocator *alloc)
{
    enum { ROUNDS = 4, READS = 8 };
    MqDev *d = begin(obj, alloc);
    MqSlot *old, *tmf, *slot[READS];
    struct virtio_scsi_cmd_resp resp;
    uint8_t response;

    add_slow_lun(d->qts);
    take_ua(d, LUN_CD);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_SLOW);
    for (unsigned round = 0; round < ROUNDS; round++) {
        MqCmd cmd = read_blocks(LUN_SLOW, 1, 1, SECTOR);

        old = mq_post_cmd(mq_queue(d, 1), &cmd);
        mq_flush(mq_queue(d, 1));
        g_assert_true(mq_wait_taken(d, old, 0, LUN_SLOW, cmd.tag));
        tmf = mq_post_tmf(d, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, LUN_SLOW,
                          0);
        for (unsigned i = 0; i < READS; i++) {
            g_usleep(5000);
            cmd = read_blocks(LUN_SLOW, 2 + i, 1, SECTOR);
            slot[i] = mq_post_cmd(mq_queue(d, 0), &cmd);
            mq_flush(mq_queue(d, 0));
        }
        mq_wait(tmf);
        mq_read_resp(tmf, &response, sizeof(response));
        g_assert_cmpuint(response, ==, VIRTIO_SCSI_S_OK);
        mq_release(tmf);
        mq_wait(old);
        mq_release(old);
        for (unsigned i = 0; i < READS; i++) {
            mq_wait(slot[i]);
            mq_read_resp(slot[i], &resp, sizeof(resp));
            g_assert_true(resp.response == VIRTIO_SCSI_S_OK ||
                          resp.response == VIRTIO_SCSI_S_RESET);
            mq_release(slot[i]);
        }
        mq_clear_ua(mq_queue(d, 0), 0, LUN_SLOW);
    }
    end(d);
}

static const struct {
    const char *name;
    QOSTestFunc func;
} medium_tests[] = {
    { "medium/guest-tray", test_guest_tray },
    { "medium/both-trays", test_both_trays },
    { "medium/locked-tray", test_locked_tray },
    { "medium/reset-tray", test_reset_tray },
    { "medium/eject-reset-race", test_eject_reset_race },
    { "block-size/commands", test_block_size },
    { "block-size/reset", test_block_size_reset },
    { "block-size/race", test_block_size_race },
    { "block-size/migrate", test_block_size_migrate },
    { "restart/fua", test_fua_restart },
    { "restart/during-reset", test_during_reset },
};

static void register_virtio_scsi_medium_tests(void)
{
    const char *arch = qtest_get_arch();

    /* The driver is little-endian, and its slot is a PC's. */
    if (!g_str_equal(arch, "x86_64") && !g_str_equal(arch, "i386")) {
        return;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(medium_tests); i++) {
        g_autofree char *name =
            g_strdup_printf("virtio-scsi-mq/%s", medium_tests[i].name);
        QOSGraphTestOptions opts = { .before = medium_before };

        qos_add_test(name, "pci-bus", medium_tests[i].func, &opts);
    }
}

libqos_init(register_virtio_scsi_medium_tests);
