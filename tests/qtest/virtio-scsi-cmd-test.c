/*
 * virtio-scsi commands: how much data they move, and what they are answered
 *
 * Buffers longer and shorter than the CDB says, opcodes that nobody knows,
 * sense data and unit attentions asked for through several queues at once.
 * The driver is in virtio-scsi-mq-common.c.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "scsi/constants.h"
#include "libqos/qgraph.h"
#include "virtio-scsi-mq-answer.h"

#define CTRL_SLOT   9
#define NUM_QUEUES  4
#define BLOCK       512
#define LUN_BLOCKS  8192u
#define LUN_BYTES   (LUN_BLOCKS * BLOCK)

#define DATA_MAX    8192
#define GUARD       64      /* behind buffers stand so many bytes */
#define GUARD_BYTE  0xdd    /* of this */

/* What the LUNs are; there is none with a higher number. */
enum { LUN_FILE, LUN_NULL, LUN_CD, NUM_LUNS, NO_LUN };

/* LUN_FILE's file, which has no name, and what should be in it */
static int file_fd;
static uint8_t *image;

/*
 * Virtual machine
 */

static char *make_image(void)
{
    char *path = mq_open_unnamed(&file_fd);

    image = g_malloc(2 * LUN_BYTES);
    mq_fill_pattern(image, 0, LUN_BLOCKS, 0);
    g_assert_cmpint(pwrite(file_fd, image, LUN_BYTES, 0), ==, LUN_BYTES);
    return path;
}

/* All JSON: plain -device options would be created before JSON ones. */
static void *cmd_before(GString *cmd, void *arg)
{
    static const char *const drivers[NUM_LUNS] = {
        [LUN_FILE] = "scsi-hd", [LUN_NULL] = "scsi-hd", [LUN_CD] = "scsi-cd",
    };
    g_autofree char *path = make_image();

    /* The tests leave the VM in a state of their own: never use it twice. */
    qos_invalidate_command_line();

    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        g_string_append_printf(cmd, " -object '{\"qom-type\":\"iothread\","
                               "\"id\":\"iot%u\",\"poll-max-ns\":0}'", i);
    }
    g_string_append_printf(cmd,
        " -blockdev '{\"driver\":\"raw\",\"node-name\":\"disk%u\",\"file\":"
        "{\"driver\":\"file\",\"locking\":\"off\",\"filename\":\"%s\"}}'",
        LUN_FILE, path);
    for (unsigned i = LUN_NULL; i < NUM_LUNS; i++) {
        g_string_append_printf(cmd,
            " -blockdev '{\"driver\":\"null-co\",\"node-name\":\"disk%u\","
            "\"read-only\":%s,\"size\":%u,\"read-zeroes\":true}'",
            i, i == LUN_CD ? "true" : "false", LUN_BYTES);
    }
    g_string_append_printf(cmd, " -device '{\"driver\":\"virtio-scsi-pci\","
        "\"id\":\"vs\",\"addr\":\"%u\",\"num_queues\":%u,"
        "\"virtqueue_size\":64,\"packed\":true,\"disable-legacy\":\"on\","
        "\"iothread-vq-mapping\":[{\"iothread\":\"iot0\"},"
        "{\"iothread\":\"iot1\"},{\"iothread\":\"iot2\"},"
        "{\"iothread\":\"iot3\"}]}'", CTRL_SLOT, NUM_QUEUES);
    for (unsigned i = 0; i < NUM_LUNS; i++) {
        g_string_append_printf(cmd, " -device '{\"driver\":\"%s\","
            "\"id\":\"hd%u\",\"drive\":\"disk%u\",\"bus\":\"vs.0\","
            "\"channel\":0,\"scsi-id\":0,\"lun\":%u}'", drivers[i], i, i, i);
    }
    return arg;
}

static void start(MqDev *d, unsigned form)
{
    mq_start(d, form, DATA_MAX + GUARD);
    g_assert_cmpuint(d->num_queues, ==, NUM_QUEUES);
    for (unsigned lun = 0; lun < NUM_LUNS; lun++) {
        mq_clear_ua(mq_queue(d, 0), 0, lun);
    }
}

static MqDev *begin(QPCIBus *bus, QGuestAllocator *alloc)
{
    MqDev *d = mq_open(bus, alloc, CTRL_SLOT);

    start(d, MQ_SPLIT);
    return d;
}

static void end(MqDev *d)
{
    mq_reset(d);
    mq_close(d);
    close(file_fd);
    g_clear_pointer(&image, g_free);
}

/*
 * Commands
 */

/* One command, start to end; nothing may be written behind its buffer. */
static void run(MqQueue *q, const MqCmd *cmd, MqAnswer *a)
{
    size_t len = MAX(cmd->in_len, cmd->out_len);
    MqSlot *slot = mq_post_cmd(q, cmd);

    g_assert_nonnull(slot);
    g_assert_cmpuint(len, <=, DATA_MAX);
    qtest_memset(q->dev->qts, slot->data + len, GUARD_BYTE, GUARD);
    mq_flush(q);
    mq_wait(slot);
    mq_read_resp(slot, &a->resp, sizeof(a->resp));
    a->used_len = slot->used_len;
    mq_read_mem(q->dev, slot->data, a->in, len + GUARD);
    g_assert_true(mq_all_bytes(a->in + len, GUARD, GUARD_BYTE));
    mq_release(slot);
}

static void expect_sense(const MqCmd *cmd, const MqAnswer *a, uint8_t key,
                         uint16_t asc)
{
    mq_expect_sense(cmd, a, key, asc);
    if (cmd->in_len) {
        g_assert_true(mq_all_bytes(a->in, cmd->in_len, MQ_FILLER));
    }
}

static void expect_overrun(const MqCmd *cmd, const MqAnswer *a)
{
    if (a->resp.response != VIRTIO_SCSI_S_OVERRUN) {
        mq_describe(cmd, a);
    }
    g_assert_cmpuint(a->resp.response, ==, VIRTIO_SCSI_S_OVERRUN);
    if (cmd->in_len) {
        g_assert_true(mq_all_bytes(a->in, cmd->in_len, MQ_FILLER));
    }
}

static void set_lba(uint8_t *cdb, uint32_t lba)
{
    switch (cdb[0] >> 5) {
    case 0:
        g_assert_cmpuint(lba, <, 1 << 21);
        cdb[1] = lba >> 16;
        stw_be_p(&cdb[2], lba);
        break;
    case 4:
        stq_be_p(&cdb[2], lba);
        break;
    default:
        stl_be_p(&cdb[2], lba);
        break;
    }
}

/* Where the opcode's group has its length; there is none in groups 3, 6, 7. */
static void set_length(uint8_t *cdb, uint32_t length)
{
    switch (cdb[0] >> 5) {
    case 0:
        cdb[4] = length;
        break;
    case 1:
    case 2:
        stw_be_p(&cdb[7], length);
        break;
    case 4:
        stl_be_p(&cdb[10], length);
        break;
    case 5:
        stl_be_p(&cdb[6], length);
        break;
    }
}

static MqCmd make_rw(uint8_t opcode, uint32_t lba, unsigned blocks)
{
    MqCmd cmd = mq_cmd(LUN_FILE, opcode);

    set_lba(cmd.cdb, lba);
    set_length(cmd.cdb, blocks);
    return cmd;
}

/* Is in the file what should be there, from @lba to @count blocks later? */
static void check_image(uint32_t lba, unsigned count)
{
    g_autofree uint8_t *buf = g_malloc(LUN_BYTES);

    count = MIN(count, LUN_BLOCKS - lba);
    g_assert_cmpint(pread(file_fd, buf, count * BLOCK, lba * BLOCK), ==,
                    count * BLOCK);
    g_assert_cmpmem(buf, count * BLOCK, image + lba * BLOCK, count * BLOCK);
}

static void check_whole_image(void)
{
    struct stat st;

    check_image(0, LUN_BLOCKS);
    g_assert_cmpint(fstat(file_fd, &st), ==, 0);
    g_assert_cmpint(st.st_size, ==, LUN_BYTES);
}

/*
 * Buffers longer and shorter than the CDB says
 */

static const uint8_t reads[] = { READ_6, READ_10, READ_12, READ_16 };
static const uint8_t writes[] = {
    WRITE_6, WRITE_10, WRITE_12, WRITE_16,
    WRITE_VERIFY_10, WRITE_VERIFY_12, WRITE_VERIFY_16,
};
/* The block counts and bytes more than those */
static const uint16_t blocks_of[] = { 1, 3 };
static const uint16_t extras[] = { 0, 1, 512, 700, 3584 };

static MqQueue *next_queue(MqDev *d)
{
    static unsigned n;

    return mq_queue(d, n++ % NUM_QUEUES);
}

/* First block of a transfer: the first, some, and so that it ends at the end */
static uint32_t place(unsigned i, unsigned blocks)
{
    const uint32_t lba[] = { 0, 77, LUN_BLOCKS - blocks };

    return lba[i % ARRAY_SIZE(lba)];
}

static void long_read(MqDev *d, uint8_t opcode, uint32_t lba, unsigned blocks,
                      unsigned extra)
{
    MqCmd cmd = make_rw(opcode, lba, blocks);
    MqAnswer a;

    cmd.in_len = blocks * BLOCK + extra;
    run(next_queue(d), &cmd, &a);
    mq_expect_moved(&cmd, &a, blocks * BLOCK);
    g_assert_cmpmem(a.in, blocks * BLOCK,
                    image + lba * BLOCK, blocks * BLOCK);
}

static void long_write(MqDev *d, uint8_t opcode, uint32_t lba, unsigned blocks,
                       unsigned extra)
{
    static uint32_t seed;
    g_autofree uint8_t *data = g_malloc(DATA_MAX);
    MqCmd cmd = make_rw(opcode, lba, blocks);
    MqAnswer a;

    mq_fill_pattern(data, lba, DATA_MAX / BLOCK, ++seed);
    cmd.out = data;
    cmd.out_len = blocks * BLOCK + extra;
    run(next_queue(d), &cmd, &a);
    memcpy(image + lba * BLOCK, data, blocks * BLOCK);
    check_image(lba, DATA_MAX / BLOCK);
    mq_expect_moved(&cmd, &a, blocks * BLOCK);
}

static void all_lengths(MqDev *d, const uint8_t *opcodes, unsigned n,
                        void (*fn)(MqDev *d, uint8_t opcode, uint32_t lba,
                                   unsigned blocks, unsigned extra))
{
    for (unsigned i = 0; i < n * ARRAY_SIZE(blocks_of); i++) {
        uint8_t opcode = opcodes[i % n];
        unsigned blocks = blocks_of[i / n];

        for (unsigned e = 0; e < ARRAY_SIZE(extras); e++) {
            for (unsigned p = 0; p < 3; p++) {
                fn(d, opcode, place(p, blocks), blocks, extras[e]);
            }
        }
    }
}

/* In one descriptor and in three, cut where no block ends */
static const unsigned forms[] = {
    MQ_SPLIT,
    MQ_SPLIT | MQ_CUT_DATA,
    MQ_SPLIT | MQ_INDIRECT | MQ_CUT_DATA,
    MQ_PACKED,
    MQ_PACKED | MQ_INDIRECT | MQ_CUT_DATA,
    /* QEMU 10.0 can't do this one with the modern device */
    MQ_SPLIT | MQ_ONE_BUF | MQ_CUT_DATA,
};

static void in_all_forms(void *obj, QGuestAllocator *alloc,
                         void (*fn)(MqDev *d))
{
    MqDev *d = mq_open(obj, alloc, CTRL_SLOT);

    for (unsigned i = 0; i < ARRAY_SIZE(forms); i++) {
        g_test_message("ring form 0x%x", forms[i]);
        if (i) {
            mq_reset(d);
        }
        start(d, forms[i]);
        fn(d);
        check_whole_image();
    }
    end(d);
}

static void all_long_reads(MqDev *d)
{
    all_lengths(d, reads, ARRAY_SIZE(reads), long_read);
}

static void test_long_reads(void *obj, void *arg, QGuestAllocator *alloc)
{
    in_all_forms(obj, alloc, all_long_reads);
}

static void all_long_writes(MqDev *d)
{
    all_lengths(d, writes, ARRAY_SIZE(writes), long_write);
}

static void test_long_writes(void *obj, void *arg, QGuestAllocator *alloc)
{
    in_all_forms(obj, alloc, all_long_writes);
}

static void all_short_buffers(MqDev *d)
{
    static const uint16_t lens[] = { 0, 1, 511, 512, 1000, 1023 };
    g_autofree uint8_t *data = g_malloc(DATA_MAX);

    mq_fill_pattern(data, 0, DATA_MAX / BLOCK, 0xbad);
    for (unsigned l = 0; l < ARRAY_SIZE(lens); l++) {
        for (unsigned i = 0; i < ARRAY_SIZE(reads); i++) {
            MqCmd cmd = make_rw(reads[i], place(l, 2), 2);
            MqAnswer a;

            cmd.in_len = lens[l];
            run(next_queue(d), &cmd, &a);
            expect_overrun(&cmd, &a);
        }
        for (unsigned i = 0; i < ARRAY_SIZE(writes); i++) {
            MqCmd cmd = make_rw(writes[i], place(l, 2), 2);
            MqAnswer a;

            cmd.out = data;
            cmd.out_len = lens[l];
            run(next_queue(d), &cmd, &a);
            expect_overrun(&cmd, &a);
        }
    }
}

static void test_short_buffers(void *obj, void *arg, QGuestAllocator *alloc)
{
    in_all_forms(obj, alloc, all_short_buffers);
}

/* Commands that scsi-disk answers from memory, and their allocation length */
static const struct {
    uint8_t cdb[16];
    uint16_t alloc;
} inquiries[] = {
    { { INQUIRY, [4] = 36 }, 36 },
    { { INQUIRY, [4] = 255 }, 255 },
    { { INQUIRY, [3] = 1 }, 256 },
    { { INQUIRY, [4] = 5 }, 5 },
    { { INQUIRY, 1, 0x00, [4] = 100 }, 100 },
    { { INQUIRY, 1, 0x83, [4] = 255 }, 255 },
    { { INQUIRY, 1, 0xb0, [4] = 64 }, 64 },
    { { MODE_SENSE, 0, 0x3f, [4] = 192 }, 192 },
    { { MODE_SENSE, 0, 0x08, [4] = 4 }, 4 },
    { { MODE_SENSE_10, 0, 0x3f, [8] = 252 }, 252 },
    { { READ_CAPACITY_10 }, 8 },
    { { SERVICE_ACTION_IN_16, SAI_READ_CAPACITY_16, [13] = 32 }, 32 },
    { { SERVICE_ACTION_IN_16, SAI_READ_CAPACITY_16, [13] = 12 }, 12 },
    { { REQUEST_SENSE, [4] = 18 }, 18 },
    { { REPORT_LUNS, [9] = 16 }, 16 },
    { { REPORT_LUNS, [8] = 1 }, 256 },
};

static size_t moved_in(const MqCmd *cmd, const MqAnswer *a)
{
    uint32_t resid = le32_to_cpu(a->resp.resid);

    g_assert_cmpuint(resid, <=, cmd->in_len);
    return cmd->in_len - resid;
}

static MqCmd make_inquiry(unsigned i, unsigned extra)
{
    MqCmd cmd = mq_cmd(LUN_FILE, 0);

    memcpy(cmd.cdb, inquiries[i].cdb, sizeof(inquiries[i].cdb));
    cmd.in_len = inquiries[i].alloc + extra;
    return cmd;
}

static void all_long_inquiries(MqDev *d)
{
    for (unsigned i = 0; i < ARRAY_SIZE(inquiries); i++) {
        MqAnswer exact, a;
        MqCmd cmd = make_inquiry(i, 0);
        size_t moved;

        run(next_queue(d), &cmd, &exact);
        moved = moved_in(&cmd, &exact);
        mq_expect_moved(&cmd, &exact, moved);
        g_assert_cmpuint(moved, >, 0);
        if (cmd.cdb[0] == REPORT_LUNS) {
            g_assert_cmpuint(moved, ==, MIN(inquiries[i].alloc,
                                            8 + 8 * NUM_LUNS));
        }
        for (unsigned e = 0; e < ARRAY_SIZE(extras); e++) {
            cmd = make_inquiry(i, extras[e]);
            run(next_queue(d), &cmd, &a);
            mq_expect_moved(&cmd, &a, moved);
            g_assert_cmpmem(a.in, moved, exact.in, moved);
        }
    }
}

static void test_long_inquiries(void *obj, void *arg, QGuestAllocator *alloc)
{
    in_all_forms(obj, alloc, all_long_inquiries);
}

/* A parameter list of @len bytes in a buffer of @len + @extra */
static void long_list(MqDev *d, MqCmd cmd, const void *list, size_t len,
                      unsigned extra)
{
    g_autofree uint8_t *data = g_malloc(len + extra);
    MqAnswer a;

    memcpy(data, list, len);
    memset(data + len, 0x5a, extra);
    cmd.out = data;
    cmd.out_len = len + extra;
    run(next_queue(d), &cmd, &a);
    mq_expect_moved(&cmd, &a, len);
}

static void long_write_same(MqDev *d, uint8_t opcode, uint32_t lba,
                            unsigned blocks, unsigned extra)
{
    static uint32_t seed = 1000000;
    uint8_t block[BLOCK];

    mq_fill_pattern(block, lba, 1, ++seed);
    long_list(d, make_rw(opcode, lba, blocks), block, sizeof(block), extra);
    for (unsigned i = 0; i < blocks; i++) {
        memcpy(image + (lba + i) * BLOCK, block, BLOCK);
    }
    check_image(lba, DATA_MAX / BLOCK);
}

static void all_long_lists(MqDev *d)
{
    static const uint8_t write_sames[] = { WRITE_SAME_10, WRITE_SAME_16 };
    static const uint8_t unmap[24] = { [1] = 22, [3] = 16, [15] = 5, [19] = 1 };
    /* The caching page behind a header without block descriptors */
    static const uint8_t list6[4 + 20] = { [4] = 8, [5] = 18, [6] = 4 };
    static const uint8_t list10[8 + 20] = { [8] = 8, [9] = 18, [10] = 4 };
    MqCmd cmd;

    for (unsigned e = 0; e < ARRAY_SIZE(extras); e++) {
        cmd = mq_cmd(LUN_NULL, UNMAP);
        set_length(cmd.cdb, sizeof(unmap));
        long_list(d, cmd, unmap, sizeof(unmap), extras[e]);

        cmd = mq_cmd(LUN_NULL, MODE_SELECT);
        cmd.cdb[1] = 0x10;
        set_length(cmd.cdb, sizeof(list6));
        long_list(d, cmd, list6, sizeof(list6), extras[e]);

        cmd = mq_cmd(LUN_NULL, MODE_SELECT_10);
        cmd.cdb[1] = 0x10;
        set_length(cmd.cdb, sizeof(list10));
        long_list(d, cmd, list10, sizeof(list10), extras[e]);
    }
    all_lengths(d, write_sames, ARRAY_SIZE(write_sames), long_write_same);
}

static void test_long_lists(void *obj, void *arg, QGuestAllocator *alloc)
{
    in_all_forms(obj, alloc, all_long_lists);
}

/* Data that the command has no use for are all left over. */
static void all_useless_buffers(MqDev *d)
{
    const MqCmd cmds[] = {
        mq_cmd(LUN_FILE, TEST_UNIT_READY),
        mq_cmd(LUN_FILE, SYNCHRONIZE_CACHE),
        mq_cmd(LUN_FILE, INQUIRY),
        make_rw(READ_10, 5, 0),
        make_rw(WRITE_10, 5, 0),
    };
    uint8_t data[BLOCK];

    memset(data, 0x5a, sizeof(data));
    for (unsigned i = 0; i < ARRAY_SIZE(cmds); i++) {
        MqCmd cmd = cmds[i];
        MqAnswer a;

        run(next_queue(d), &cmd, &a);
        mq_expect_moved(&cmd, &a, 0);
        cmd.in_len = sizeof(data);
        run(next_queue(d), &cmd, &a);
        mq_expect_moved(&cmd, &a, 0);
        cmd.in_len = 0;
        cmd.out = data;
        cmd.out_len = sizeof(data);
        run(next_queue(d), &cmd, &a);
        mq_expect_moved(&cmd, &a, 0);
    }
}

static void test_useless_buffers(void *obj, void *arg, QGuestAllocator *alloc)
{
    in_all_forms(obj, alloc, all_useless_buffers);
}

/* Virtio 1.2, 2.7.8.2: no more than what the device has written */
static void all_used_lengths(MqDev *d)
{
    const uint32_t resp = sizeof(struct virtio_scsi_cmd_resp);
    uint8_t data[3 * BLOCK];
    MqCmd cmd;
    MqAnswer a;

    for (unsigned i = 0; i < ARRAY_SIZE(inquiries); i++) {
        cmd = make_inquiry(i, 100);
        run(next_queue(d), &cmd, &a);
        g_assert_cmpuint(a.used_len, ==, resp + moved_in(&cmd, &a));
    }
    for (unsigned i = 0; i < ARRAY_SIZE(reads); i++) {
        cmd = make_rw(reads[i], 7, 2);
        cmd.in_len = 3 * BLOCK;
        run(next_queue(d), &cmd, &a);
        g_assert_cmpuint(a.used_len, ==, resp + 2 * BLOCK);
    }

    /* Nothing is read: an address out of range, buffer too short, no LUN. */
    cmd = make_rw(READ_10, LUN_BLOCKS, 1);
    cmd.in_len = BLOCK;
    run(next_queue(d), &cmd, &a);
    g_assert_cmpuint(a.used_len, ==, resp);
    cmd = make_rw(READ_10, 0, 2);
    cmd.in_len = BLOCK;
    run(next_queue(d), &cmd, &a);
    g_assert_cmpuint(a.used_len, ==, resp);
    cmd.target = 7;
    run(next_queue(d), &cmd, &a);
    g_assert_cmpuint(a.resp.response, ==, VIRTIO_SCSI_S_BAD_TARGET);
    g_assert_cmpuint(a.used_len, ==, resp);

    memcpy(data, image, sizeof(data));
    cmd = make_rw(WRITE_10, 0, 2);
    cmd.out = data;
    cmd.out_len = sizeof(data);
    run(next_queue(d), &cmd, &a);
    g_assert_cmpuint(a.used_len, ==, resp);
}

static void test_used_lengths(void *obj, void *arg, QGuestAllocator *alloc)
{
    in_all_forms(obj, alloc, all_used_lengths);
}

/*
 * Opcodes
 */

/* What scsi-disk or the bus has an answer for */
static bool is_known(uint8_t opcode)
{
    static const uint8_t known[] = {
        TEST_UNIT_READY, REQUEST_SENSE, FORMAT_UNIT, READ_6, WRITE_6, INQUIRY,
        MODE_SELECT, RESERVE, RELEASE, MODE_SENSE, START_STOP,
        ALLOW_MEDIUM_REMOVAL, READ_CAPACITY_10, READ_10, WRITE_10, SEEK_10,
        WRITE_VERIFY_10, VERIFY_10, SYNCHRONIZE_CACHE, WRITE_SAME_10, UNMAP,
        READ_TOC, GET_CONFIGURATION, GET_EVENT_STATUS_NOTIFICATION,
        READ_DISC_INFORMATION, MODE_SELECT_10, RESERVE_10, RELEASE_10,
        MODE_SENSE_10, READ_16, WRITE_16, WRITE_VERIFY_16, VERIFY_16,
        WRITE_SAME_16, SERVICE_ACTION_IN_16, REPORT_LUNS, READ_12, WRITE_12,
        READ_DVD_STRUCTURE, WRITE_VERIFY_12, VERIFY_12, MECHANISM_STATUS,
    };

    return memchr(known, opcode, sizeof(known));
}

static void unknown_opcode(MqDev *d, uint16_t lun, uint8_t opcode,
                           uint32_t length, size_t out_len, size_t in_len)
{
    static const uint8_t data[BLOCK];
    MqCmd cmd = mq_cmd(lun, opcode);
    MqAnswer a;

    set_length(cmd.cdb, length);
    cmd.out = data;
    cmd.out_len = out_len;
    cmd.in_len = in_len;
    run(next_queue(d), &cmd, &a);
    if (lun == NO_LUN) {
        /* LOGICAL UNIT NOT SUPPORTED */
        expect_sense(&cmd, &a, ILLEGAL_REQUEST, 0x2500);
    } else if (length > INT32_MAX && a.resp.sense[12] == 0x24) {
        /* INVALID FIELD IN CDB: the bus can't handle it, nor ask the disk */
        expect_sense(&cmd, &a, ILLEGAL_REQUEST, 0x2400);
    } else {
        /* INVALID COMMAND OPERATION CODE */
        expect_sense(&cmd, &a, ILLEGAL_REQUEST, 0x2000);
    }
}

static void unknown_opcodes(MqDev *d, uint16_t lun, uint32_t length)
{
    for (unsigned opcode = 0; opcode < 256; opcode++) {
        if (is_known(opcode) ||
            /* 0 means 256 blocks: see test_opcodes_huge() */
            (opcode == READ_REVERSE && !length)) {
            continue;
        }
        unknown_opcode(d, lun, opcode, length, 0, 0);
        unknown_opcode(d, lun, opcode, length, 4, 0);
        unknown_opcode(d, lun, opcode, length, BLOCK, 0);
        unknown_opcode(d, lun, opcode, length, 0, 4);
        unknown_opcode(d, lun, opcode, length, 0, BLOCK);
    }
}

static void check_alive(MqDev *d)
{
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        long_read(d, READ_10, i, 1, 0);
    }
}

static void test_opcodes(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    for (unsigned lun = 0; lun < NUM_LUNS; lun++) {
        unknown_opcodes(d, lun, 0);
        unknown_opcodes(d, lun, 8);
    }
    check_alive(d);
    check_whole_image();
    end(d);
}

/* Lengths that scsi-disk and the bus refuse for other commands */
static void test_opcodes_huge(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    unknown_opcode(d, LUN_FILE, READ_REVERSE, 0, 0, 0);
    unknown_opcodes(d, LUN_FILE, 65537);
    unknown_opcodes(d, LUN_FILE, 0x80000000);
    check_alive(d);
    end(d);
}

static void test_opcodes_no_lun(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    unknown_opcodes(d, NO_LUN, 0);
    unknown_opcodes(d, NO_LUN, 8);
    check_alive(d);
    end(d);
}

static void test_wrong_direction(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint8_t to_disk[] = {
        WRITE_6, WRITE_10, WRITE_12, WRITE_16, WRITE_VERIFY_10,
        WRITE_VERIFY_12, WRITE_VERIFY_16, MODE_SELECT, MODE_SELECT_10, UNMAP,
        WRITE_SAME_10, WRITE_SAME_16,
    };
    static const uint8_t data[DATA_MAX];
    MqDev *d = begin(obj, alloc);
    MqAnswer a;

    for (unsigned i = 0; i < ARRAY_SIZE(reads) + ARRAY_SIZE(inquiries); i++) {
        MqCmd cmd = i < ARRAY_SIZE(reads)
                    ? make_rw(reads[i], 0, 8)
                    : make_inquiry(i - ARRAY_SIZE(reads), 0);

        cmd.in_len = 0;
        cmd.out = data;
        cmd.out_len = sizeof(data);
        run(next_queue(d), &cmd, &a);
        expect_overrun(&cmd, &a);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(to_disk); i++) {
        MqCmd cmd = mq_cmd(LUN_FILE, to_disk[i]);

        set_length(cmd.cdb, 8);
        cmd.in_len = DATA_MAX;
        run(next_queue(d), &cmd, &a);
        expect_overrun(&cmd, &a);
    }
    check_alive(d);
    check_whole_image();
    end(d);
}

/*
 * Held sense data: REQUEST SENSE after a command has failed
 */

/* GOOD, with fixed format sense data that say @key and @asc */
static void expect_held(MqDev *d, uint16_t lun, uint8_t key, uint16_t asc)
{
    MqCmd cmd = mq_cmd(lun, REQUEST_SENSE);
    MqAnswer a;

    set_length(cmd.cdb, 18);
    cmd.in_len = 18;
    run(next_queue(d), &cmd, &a);
    mq_expect_moved(&cmd, &a, 18);
    g_assert_cmphex(a.in[0], ==, 0x70);
    g_assert_cmphex(a.in[2], ==, key);
    g_assert_cmphex(a.in[12] << 8 | a.in[13], ==, asc);
}

static void read_beyond_end(MqDev *d, uint16_t lun)
{
    MqCmd cmd = make_rw(READ_10, LUN_BLOCKS, 1);
    MqAnswer a;

    cmd.lun = lun;
    cmd.in_len = 4 * BLOCK; /* a CD's block */
    run(next_queue(d), &cmd, &a);
    expect_sense(&cmd, &a, ILLEGAL_REQUEST, 0x2100);
}

static void test_request_sense(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);
    MqCmd cmd;
    MqAnswer a;

    /* Through another queue than the command's; told once */
    for (unsigned i = 0; i < NUM_QUEUES + 1; i++) {
        read_beyond_end(d, LUN_FILE);
        expect_held(d, LUN_NULL, NO_SENSE, 0);
        expect_held(d, LUN_FILE, ILLEGAL_REQUEST, 0x2100);
        expect_held(d, LUN_FILE, NO_SENSE, 0);
    }

    /* Any good command ends it. */
    read_beyond_end(d, LUN_FILE);
    long_read(d, READ_10, 0, 1, 0);
    expect_held(d, LUN_FILE, NO_SENSE, 0);

    /* Descriptor format */
    read_beyond_end(d, LUN_FILE);
    cmd = mq_cmd(LUN_FILE, REQUEST_SENSE);
    cmd.cdb[1] = 1;
    set_length(cmd.cdb, 18);
    cmd.in_len = 18;
    run(next_queue(d), &cmd, &a);
    mq_expect_moved(&cmd, &a, 8);
    g_assert_cmphex(ldl_be_p(a.in), ==, 0x72052100);
    end(d);
}

/* A LUN that isn't there says so, whatever happens to those that are. */
static void test_sense_no_lun(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    for (unsigned lun = 0; lun < NUM_LUNS; lun++) {
        read_beyond_end(d, lun);
        expect_held(d, NO_LUN, ILLEGAL_REQUEST, 0x2500);
        expect_held(d, lun, ILLEGAL_REQUEST, 0x2100);
        expect_held(d, NO_LUN, ILLEGAL_REQUEST, 0x2500);
        expect_held(d, lun, NO_SENSE, 0);
    }
    end(d);
}

/*
 * Unit attentions
 */

enum {
    UA_RESET = 0x2900,
    UA_CAPACITY = 0x2a09,
    UA_LUNS = 0x3f0e,
};

static void lun_reset(MqDev *d, uint16_t lun)
{
    g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, lun,
                            0), ==, VIRTIO_SCSI_S_OK);
}

static void resize(MqDev *d)
{
    static bool larger;

    larger = !larger;
    qtest_qmp_assert_success(d->qts,
        "{'execute': 'block_resize', 'arguments': {"
        "'node-name': 'disk0', 'size': %u}}", LUN_BYTES << larger);
}

/* Another LUN comes; the driver of the mouse need not know of it. */
static void plug(MqDev *d)
{
    qtest_qmp_assert_success(d->qts,
        "{'execute': 'blockdev-add', 'arguments': {'driver': 'null-co',"
        " 'node-name': 'extra', 'read-zeroes': true, 'size': %u}}",
        LUN_BYTES);
    qtest_qmp_assert_success(d->qts,
        "{'execute': 'device_add', 'arguments': {'driver': 'scsi-hd',"
        " 'id': 'hot', 'drive': 'extra', 'bus': 'vs.0', 'channel': 0,"
        " 'scsi-id': 3, 'lun': 0}}");
}

static void unplug(MqDev *d)
{
    qtest_qmp_device_del(d->qts, "hot");
    qtest_qmp_assert_success(d->qts,
        "{'execute': 'blockdev-del', 'arguments': {'node-name': 'extra'}}");
}

/* The next command gets this one. */
static void expect_ua(MqDev *d, uint16_t lun, uint16_t ua)
{
    MqCmd cmd = mq_cmd(lun, TEST_UNIT_READY);
    MqAnswer a;

    run(next_queue(d), &cmd, &a);
    expect_sense(&cmd, &a, UNIT_ATTENTION, ua);
}

static void expect_no_ua(MqDev *d, uint16_t lun)
{
    MqCmd cmd = mq_cmd(lun, TEST_UNIT_READY);
    MqAnswer a;

    run(next_queue(d), &cmd, &a);
    mq_expect_moved(&cmd, &a, 0);
}

#define RACERS 6    /* commands on each queue */

typedef struct Race {
    MqSlot *slot[NUM_QUEUES * RACERS];
    uint16_t ua[NUM_QUEUES * RACERS];   /* 0: GOOD */
} Race;

static void race_post(MqDev *d, Race *race)
{
    for (unsigned i = 0; i < NUM_QUEUES * RACERS; i++) {
        MqCmd cmd = i % 3 ? mq_cmd(LUN_FILE, TEST_UNIT_READY)
                          : mq_read10(LUN_FILE, i, 1);

        race->slot[i] = mq_post_cmd(mq_queue(d, i % NUM_QUEUES), &cmd);
        g_assert_nonnull(race->slot[i]);
    }
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        mq_publish(mq_queue(d, i));
    }
}

static void race_finish(MqDev *d, Race *race)
{
    for (unsigned i = 0; i < NUM_QUEUES * RACERS; i++) {
        struct virtio_scsi_cmd_resp resp;

        mq_wait(race->slot[i]);
        mq_read_resp(race->slot[i], &resp, sizeof(resp));
        mq_release(race->slot[i]);
        race->ua[i] = 0;
        if (resp.status != GOOD) {
            race->ua[i] = mq_asc(&resp);
            mq_assert_sense(&resp, UNIT_ATTENTION, race->ua[i] >> 8,
                            race->ua[i] & 0xff);
        }
    }
}

/*
 * Commands on all queues: the VM is stopped until they all are in the rings,
 * and all IOThreads start together when it goes on.
 */
static void race_run(MqDev *d, Race *race)
{
    qtest_qmp_assert_success(d->qts, "{'execute': 'stop'}");
    qtest_qmp_eventwait(d->qts, "STOP");
    race_post(d, race);
    qtest_qmp_assert_success(d->qts, "{'execute': 'cont'}");
    qtest_qmp_eventwait(d->qts, "RESUME");
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        mq_kick(mq_queue(d, i));
    }
    race_finish(d, race);
}

/* Exactly these were told, each to one command. */
static void expect_told(const Race *race, const uint16_t *want, unsigned n)
{
    for (unsigned i = 0; i < ARRAY_SIZE(race->ua); i++) {
        g_test_message("queue %u: %04x", (unsigned)(i % NUM_QUEUES),
                       race->ua[i]);
    }
    for (unsigned w = 0; w < n; w++) {
        unsigned told = 0;

        for (unsigned i = 0; i < ARRAY_SIZE(race->ua); i++) {
            told += race->ua[i] == want[w];
        }
        g_test_message("unit attention %04x told %u times", want[w], told);
        g_assert_cmpuint(told, ==, 1);
    }
    for (unsigned i = 0, told = 0; i < ARRAY_SIZE(race->ua); i++) {
        told += race->ua[i] != 0;
        g_assert_cmpuint(told, <=, n);
    }
}

static void test_ua_once(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint16_t reset[] = { UA_RESET }, capacity[] = { UA_CAPACITY },
                          luns[] = { UA_LUNS };
    MqDev *d = begin(obj, alloc);
    Race race;

    for (unsigned round = 0; round < 30; round++) {
        lun_reset(d, LUN_FILE);
        race_run(d, &race);
        expect_told(&race, reset, 1);
        resize(d);
        race_run(d, &race);
        expect_told(&race, capacity, 1);
        /* Plugging and unplugging both change the list of LUNs. */
        plug(d);
        race_run(d, &race);
        expect_told(&race, luns, 1);
        unplug(d);
        race_run(d, &race);
        expect_told(&race, luns, 1);
        race_run(d, &race);
        expect_told(&race, NULL, 0);
    }
    end(d);
}

static void raise_three(MqDev *d)
{
    lun_reset(d, LUN_FILE);
    resize(d);
    plug(d);
}

static void test_ua_three_at_once(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint16_t all[] = { UA_RESET, UA_CAPACITY, UA_LUNS };
    MqDev *d = begin(obj, alloc);
    Race race;

    for (unsigned round = 0; round < 10; round++) {
        raise_three(d);
        race_run(d, &race);
        expect_told(&race, all, ARRAY_SIZE(all));
        unplug(d);
        mq_clear_ua(mq_queue(d, 0), 0, LUN_FILE);
    }
    end(d);
}

/* SAM-5, 5.14: resets come first, other conditions in any order after them. */
static void test_ua_order(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);
    uint16_t seen[2];

    for (unsigned round = 0; round < 4; round++) {
        raise_three(d);
        expect_ua(d, LUN_FILE, UA_RESET);
        for (unsigned i = 0; i < ARRAY_SIZE(seen); i++) {
            MqCmd cmd = mq_cmd(LUN_FILE, TEST_UNIT_READY);
            MqAnswer a;

            run(next_queue(d), &cmd, &a);
            seen[i] = mq_asc(&a.resp);
            expect_sense(&cmd, &a, UNIT_ATTENTION, seen[i]);
        }
        g_assert_cmphex(MIN(seen[0], seen[1]), ==, UA_CAPACITY);
        g_assert_cmphex(MAX(seen[0], seen[1]), ==, UA_LUNS);
        expect_no_ua(d, LUN_FILE);
        unplug(d);
        mq_clear_ua(mq_queue(d, 0), 0, LUN_FILE);
    }
    end(d);
}

/* A device reset and what comes after it, before the driver asks */
static void test_ua_device_reset(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    for (unsigned round = 0; round < 3; round++) {
        mq_reset(d);
        mq_start(d, MQ_SPLIT, DATA_MAX + GUARD);
        resize(d);
        expect_ua(d, LUN_FILE, UA_RESET);
        expect_ua(d, LUN_FILE, UA_CAPACITY);
        expect_no_ua(d, LUN_FILE);
        expect_ua(d, LUN_NULL, UA_RESET);
        expect_no_ua(d, LUN_NULL);
    }
    end(d);
}

/* INQUIRY and REPORT LUNS neither tell a unit attention nor end it. */
static void test_ua_kept(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);
    const MqCmd polite[] = {
        { .lun = LUN_FILE, .cdb = { INQUIRY, [4] = 36 }, .in_len = 36 },
        { .lun = LUN_FILE, .cdb = { REPORT_LUNS, [9] = 32 }, .in_len = 32 },
    };

    lun_reset(d, LUN_FILE);
    resize(d);
    for (unsigned i = 0; i < 4 * NUM_QUEUES; i++) {
        MqCmd cmd = polite[i % ARRAY_SIZE(polite)];
        MqAnswer a;

        cmd.tag = mq_next_tag();
        run(next_queue(d), &cmd, &a);
        mq_expect_moved(&cmd, &a, cmd.in_len);
    }
    expect_ua(d, LUN_FILE, UA_RESET);
    expect_no_ua(d, LUN_NULL);
    end(d);
}

/* SPC-4, 6.33: REPORT LUNS ends REPORTED LUNS DATA HAS CHANGED, no other. */
static void test_ua_report_luns(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    for (unsigned with_reset = 0; with_reset < 2; with_reset++) {
        MqCmd cmd = mq_cmd(LUN_FILE, REPORT_LUNS);
        MqAnswer a;

        plug(d);
        if (with_reset) {
            lun_reset(d, LUN_FILE);
        }
        set_length(cmd.cdb, 8 + 8 * NUM_LUNS);
        cmd.in_len = 8 + 8 * NUM_LUNS;
        run(next_queue(d), &cmd, &a);
        mq_expect_moved(&cmd, &a, cmd.in_len);
        if (with_reset) {
            expect_ua(d, LUN_FILE, UA_RESET);
        }
        expect_no_ua(d, LUN_FILE);
        unplug(d);
        mq_clear_ua(mq_queue(d, 0), 0, LUN_FILE);
    }
    end(d);
}

/* A unit attention goes before any other error, and is told by it only. */
static void test_ua_before_errors(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint8_t opcodes[] = {
        COMPARE_AND_WRITE, EXTENDED_COPY, WRITE_BUFFER, 0x60, 0xc0, 0xff,
    };
    static const uint8_t data[BLOCK];
    MqDev *d = begin(obj, alloc);
    MqAnswer a;

    for (unsigned i = 0; i < ARRAY_SIZE(opcodes); i++) {
        for (unsigned out = 0; out < 2; out++) {
            MqCmd cmd = mq_cmd(LUN_FILE, opcodes[i]);

            set_length(cmd.cdb, 8 * out);
            cmd.out = data;
            cmd.out_len = out * BLOCK;
            lun_reset(d, LUN_FILE);
            run(next_queue(d), &cmd, &a);
            expect_sense(&cmd, &a, UNIT_ATTENTION, UA_RESET);
            run(next_queue(d), &cmd, &a);
            expect_sense(&cmd, &a, ILLEGAL_REQUEST, 0x2000);
            expect_no_ua(d, LUN_FILE);
        }
    }
    end(d);
}

/* Whatever a misfit buffer is answered, the unit attention is told once. */
static void test_ua_overrun(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint8_t data[BLOCK];
    MqDev *d = begin(obj, alloc);
    MqAnswer a;

    for (unsigned i = 0; i < 3; i++) {
        MqCmd cmd = make_rw(i == 2 ? WRITE_10 : READ_10, 0, 2);

        if (i) {
            cmd.out = data;
            cmd.out_len = sizeof(data);
        } else {
            cmd.in_len = BLOCK;
        }
        lun_reset(d, LUN_FILE);
        run(next_queue(d), &cmd, &a);
        if (a.resp.response == VIRTIO_SCSI_S_OVERRUN) {
            expect_ua(d, LUN_FILE, UA_RESET);
        } else {
            expect_sense(&cmd, &a, UNIT_ATTENTION, UA_RESET);
        }
        expect_no_ua(d, LUN_FILE);
    }
    check_whole_image();
    end(d);
}

/* A command for a LUN that isn't there can't take that of one that is. */
static void test_ua_no_lun(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);

    for (unsigned lun = 0; lun < NUM_LUNS; lun++) {
        MqCmd cmd = mq_cmd(NO_LUN, TEST_UNIT_READY);
        MqAnswer a;

        lun_reset(d, lun);
        run(next_queue(d), &cmd, &a);
        expect_sense(&cmd, &a, ILLEGAL_REQUEST, 0x2500);
        expect_ua(d, lun, UA_RESET);
        expect_no_ua(d, lun);
    }
    end(d);
}

/* As in QEMU 10.0: REQUEST SENSE fails with it, like any other command. */
static void test_ua_request_sense(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqDev *d = begin(obj, alloc);
    MqCmd cmd = mq_cmd(LUN_FILE, REQUEST_SENSE);
    MqAnswer a;

    lun_reset(d, LUN_FILE);
    set_length(cmd.cdb, 18);
    cmd.in_len = 18;
    run(next_queue(d), &cmd, &a);
    expect_sense(&cmd, &a, UNIT_ATTENTION, UA_RESET);
    expect_held(d, LUN_FILE, NO_SENSE, 0);
    expect_no_ua(d, LUN_FILE);
    end(d);
}

/*
 * A reset and the commands that were there before it
 */

/*
 * qtest's clock stands still: throttling lets one request through and holds
 * those after it, until it is ended by hand or by the drain in a reset.
 */
static void throttle(MqDev *d, uint16_t lun, bool on)
{
    g_autofree char *id = g_strdup_printf("hd%u", lun);

    qtest_qmp_assert_success(d->qts,
        "{'execute': 'block_set_io_throttle', 'arguments': {'id': %s,"
        " 'bps': 0, 'bps_rd': 0, 'bps_wr': 0,"
        " 'iops': %d, 'iops_rd': 0, 'iops_wr': 0}}", id, on);
}

#define HELD 3      /* commands on each queue */

/* Returns when the device has them all, and holds them. */
static void hold(MqDev *d, uint16_t lun, MqSlot **slot)
{
    uint64_t tag[NUM_QUEUES * HELD];

    throttle(d, lun, true);
    for (unsigned i = 0; i < ARRAY_SIZE(tag); i++) {
        MqCmd cmd = mq_read10(lun, i, 1);

        if (i == 0) {
            mq_run_good(mq_queue(d, 0), &cmd, NULL);
            cmd.tag = mq_next_tag();
        }
        tag[i] = cmd.tag;
        slot[i] = mq_post_cmd(mq_queue(d, i % NUM_QUEUES), &cmd);
        mq_flush(mq_queue(d, i % NUM_QUEUES));
    }
    for (unsigned i = 0; i < ARRAY_SIZE(tag); i++) {
        g_assert_true(mq_wait_taken(d, slot[i], 0, lun, tag[i]));
        mq_reap(slot[i]->q);
        g_assert_false(slot[i]->done);
    }
}

/* All were answered before @tmf was, and none as if it had been done. */
static void check_ended(MqDev *d, MqSlot *tmf, MqSlot **slot, unsigned n,
                        uint8_t how)
{
    unsigned done = 0;
    uint8_t response;

    mq_wait(tmf);
    for (unsigned i = 0; i < n; i++) {
        struct virtio_scsi_cmd_resp resp;

        mq_reap(slot[i]->q);
        g_assert_true(slot[i]->done);
        mq_read_resp(slot[i], &resp, sizeof(resp));
        if (resp.response == VIRTIO_SCSI_S_OK) {
            done++;
        } else {
            g_assert_cmpuint(resp.response, ==, how);
        }
        mq_release(slot[i]);
    }
    mq_read_resp(tmf, &response, sizeof(response));
    g_assert_cmpuint(response, ==, VIRTIO_SCSI_S_OK);
    mq_release(tmf);
    g_test_message("%u of %u commands were done", done, n);
    g_assert_cmpuint(done, ==, 0);
}

static void test_reset_in_flight(void *obj, void *arg, QGuestAllocator *alloc)
{
    MqSlot *slot[NUM_QUEUES * HELD];
    MqDev *d = begin(obj, alloc);

    for (unsigned round = 0; round < 72; round++) {
        uint16_t lun = round % 2 ? LUN_NULL : LUN_FILE;
        uint32_t subtype = round % 3
                           ? VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET
                           : VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET;

        hold(d, lun, slot);
        check_ended(d, mq_post_tmf(d, subtype, 0, lun, 0), slot,
                    ARRAY_SIZE(slot), VIRTIO_SCSI_S_RESET);
        throttle(d, lun, false);
        expect_ua(d, lun, UA_RESET);
        for (lun = 0; lun < NUM_LUNS; lun++) {
            mq_clear_ua(mq_queue(d, 0), 0, lun);
        }
    }
    check_alive(d);
    end(d);
}

/* The commands that throttling holds end, and nobody waits for their turn. */
static void test_abort_throttled(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint32_t subtypes[] = {
        VIRTIO_SCSI_T_TMF_ABORT_TASK_SET, VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET,
    };
    MqSlot *slot[NUM_QUEUES * HELD];
    MqDev *d = begin(obj, alloc);

    for (unsigned round = 0; round < 24; round++) {
        uint16_t lun = round % 2 ? LUN_NULL : LUN_FILE;

        hold(d, lun, slot);
        check_ended(d, mq_post_tmf(d, subtypes[round / 2 % 2], 0, lun, 0),
                    slot, ARRAY_SIZE(slot), VIRTIO_SCSI_S_ABORTED);
        throttle(d, lun, false);
    }
    check_alive(d);
    end(d);
}

static const struct {
    const char *name;
    QOSTestFunc func;
} cmd_tests[] = {
    { "length/long-reads", test_long_reads },
    { "length/long-writes", test_long_writes },
    { "length/short-buffers", test_short_buffers },
    { "length/long-inquiries", test_long_inquiries },
    { "length/long-lists", test_long_lists },
    { "length/useless-buffers", test_useless_buffers },
    { "length/used", test_used_lengths },
    { "opcodes/unknown", test_opcodes },
    { "opcodes/unknown-huge", test_opcodes_huge },
    { "opcodes/no-lun", test_opcodes_no_lun },
    { "opcodes/wrong-direction", test_wrong_direction },
    { "sense/request-sense", test_request_sense },
    { "sense/no-lun", test_sense_no_lun },
    { "ua/once", test_ua_once },
    { "ua/three-at-once", test_ua_three_at_once },
    { "ua/order", test_ua_order },
    { "ua/device-reset", test_ua_device_reset },
    { "ua/kept", test_ua_kept },
    { "ua/report-luns", test_ua_report_luns },
    { "ua/before-errors", test_ua_before_errors },
    { "ua/overrun", test_ua_overrun },
    { "ua/no-lun", test_ua_no_lun },
    { "ua/request-sense", test_ua_request_sense },
    { "reset-in-flight", test_reset_in_flight },
    { "abort-throttled", test_abort_throttled },
};

static void register_virtio_scsi_cmd_tests(void)
{
    const char *arch = qtest_get_arch();

    /* The driver is little-endian, and its slot is a PC's. */
    if (!g_str_equal(arch, "x86_64") && !g_str_equal(arch, "i386")) {
        return;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(cmd_tests); i++) {
        g_autofree char *name =
            g_strdup_printf("virtio-scsi-mq/cmd/%s", cmd_tests[i].name);
        QOSGraphTestOptions opts = { .before = cmd_before };

        qos_add_test(name, "pci-bus", cmd_tests[i].func, &opts);
    }
}

libqos_init(register_virtio_scsi_cmd_tests);
