/*
 * virtio-scsi data in buffers of any shape, and many of them
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "standard-headers/linux/virtio_config.h"
#include "virtio-scsi-data.h"

/*
 * Framing
 */

/* There are up to 1024 descriptors to a table, and 128 to a chain in a ring. */
static const Cuts table_cuts[] = {
    { 0 },
    { .with_header = true },
    { 1, { 511 } },
    { 3, { 1, 511, 3 } },
    { 3, { 1, 511, 3 }, .with_header = true },
    { 3, { 4095, 1, 2 } },
    { 1, { 3 } },
    { 1, { 7 }, .with_header = true },
    { 4, { 64, 4096, 13, 512 }, .with_header = true },
};
static const Cuts chain_cuts[] = {
    { 0 },
    { .with_header = true },
    { 1, { 511 } },
    { 3, { 1, 511, 3 }, .with_header = true },
    { 3, { 4095, 1, 2 } },
    { 1, { 21 } },
    { 1, { 25 }, .with_header = true },
};

static void framed_read(MqDev *d, Arena *a, const Cuts *cuts, uint32_t lba,
                        unsigned blocks, unsigned room)
{
    MqCmd cmd = mq_read10(LUN_FILE, lba, blocks);
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    cmd.in_len = room;
    data_run(data_queue(d), a, &cmd, cuts, ans);
    if (room >= blocks * BLOCK) {
        data_expect_read(&cmd, ans, lba, blocks);
    } else {
        g_assert_cmpuint(ans->resp.response, ==, VIRTIO_SCSI_S_OVERRUN);
        g_assert_true(mq_all_bytes(ans->in, room, MQ_FILLER));
    }
}

static void framed_write(MqDev *d, Arena *a, const Cuts *cuts, uint32_t lba,
                         unsigned blocks, unsigned room)
{
    g_autofree uint8_t *data = g_malloc(DATA_MAX);
    MqCmd cmd = mq_write10(LUN_FILE, lba, blocks, data);
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    data_fill(data, lba, DATA_MAX / BLOCK);
    cmd.out_len = room;
    data_run(data_queue(d), a, &cmd, cuts, ans);
    if (room >= blocks * BLOCK) {
        mq_expect_moved(&cmd, ans, blocks * BLOCK);
        memcpy(data_image[LUN_FILE] + lba * BLOCK, data, blocks * BLOCK);
    } else {
        g_assert_cmpuint(ans->resp.response, ==, VIRTIO_SCSI_S_OVERRUN);
    }
}

void data_framed_rw(MqDev *d, Arena *a, const Cuts *cuts)
{
    static const int16_t extras[] = { 0, 1, 700, -1, -513 };

    for (unsigned i = 0; i < ARRAY_SIZE(extras); i++) {
        unsigned blocks = cuts->n == 1 && cuts->size[0] < 100 ? 3 : 17;
        unsigned room = blocks * BLOCK + extras[i];
        uint32_t lba = i % 2 ? LUN_BLOCKS - blocks : 100 * i;

        framed_read(d, a, cuts, lba, blocks, room);
        framed_write(d, a, cuts, lba, blocks, room);
        framed_read(d, a, cuts, lba, blocks, room);
    }
    data_check_image(LUN_FILE);
}

/* What the emulation answers must be the same, however it is cut. */
void data_framed_lists(MqDev *d, Arena *a, const Cuts *cuts)
{
    MqCmd cmds[] = {
        { .cdb = { INQUIRY, [4] = 96 }, .in_len = 96 },
        { .cdb = { INQUIRY, 1, 0xb0, [4] = 64 }, .in_len = 200 },
        { .cdb = { MODE_SENSE, [2] = 0x3f, [4] = 255 }, .in_len = 255 },
        { .cdb = { MODE_SENSE_10, [2] = 0x08, [8] = 64 }, .in_len = 64 },
        { .cdb = { REPORT_LUNS, [9] = 32 }, .in_len = 32 },
        { .cdb = { SERVICE_ACTION_IN_16, SAI_READ_CAPACITY_16, [13] = 32 },
          .in_len = 32 },
    };
    g_autofree MqAnswer *plain = g_new(MqAnswer, 1);
    g_autofree MqAnswer *cut = g_new(MqAnswer, 1);

    for (unsigned i = 0; i < ARRAY_SIZE(cmds); i++) {
        cmds[i].tag = mq_next_tag();
        data_run(data_queue(d), a, &cmds[i], &data_one_piece, plain);
        data_run(data_queue(d), a, &cmds[i], cuts, cut);
        g_assert_cmpuint(cut->resp.status, ==, GOOD);
        g_assert_cmpmem(cut->in, cmds[i].in_len, plain->in, cmds[i].in_len);
        g_assert_cmpmem(&cut->resp, sizeof(cut->resp),
                        &plain->resp, sizeof(plain->resp));
        g_assert_cmpuint(cut->used_len, ==, plain->used_len);
        g_assert_false(mq_all_bytes(cut->in, 8, MQ_FILLER));
    }
}

/* One block in, many out */
static void framed_write_same(MqDev *d, Arena *a, const Cuts *cuts)
{
    enum { LBA = 3000, COUNT = 40 };
    uint8_t data[BLOCK] = { 0 };
    MqCmd cmd = mq_write10(LUN_FILE, LBA, COUNT, data);
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    data_fill(data, LBA, 1);
    cmd.cdb[0] = WRITE_SAME_10;
    cmd.out_len = BLOCK;
    data_run(data_queue(d), a, &cmd, cuts, ans);
    mq_expect_moved(&cmd, ans, BLOCK);
    for (unsigned i = 0; i < COUNT; i++) {
        memcpy(data_image[LUN_FILE] + (LBA + i) * BLOCK, data, BLOCK);
    }
    data_check_image(LUN_FILE);
}

/* Give the caching page back, with the write cache switched on or off. */
void data_set_write_cache(MqDev *d, Arena *a, const Cuts *cuts, bool on)
{
    MqCmd sense = {
        .tag = mq_next_tag(), .cdb = { MODE_SENSE_10, 8, 8, [8] = 28 },
        .in_len = 28,
    };
    MqCmd select = {
        .tag = mq_next_tag(), .cdb = { MODE_SELECT_10, 0x10, [8] = 28 },
        .out_len = 28,
    };
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);
    uint8_t page[28];

    data_run(data_queue(d), a, &sense, cuts, ans);
    mq_expect_moved(&sense, ans, sizeof(page));
    memcpy(page, ans->in, sizeof(page));
    g_assert_cmphex(page[8] & 0x3f, ==, 8);
    memset(page, 0, 8);
    page[8] &= 0x3f;
    page[10] = on ? 4 : 0;
    select.out = page;
    data_run(data_queue(d), a, &select, cuts, ans);
    mq_expect_moved(&select, ans, sizeof(page));

    data_run(data_queue(d), a, &sense, cuts, ans);
    g_assert_cmphex(ans->in[10], ==, on ? 4 : 0);
}

static void check_framing(MqDev *d, const Cuts *cuts, unsigned n)
{
    g_autofree Arena *a = arena_new(d);

    for (unsigned i = 0; i < n; i++) {
        g_test_message("form 0x%x, cuts %u", d->form, i);
        data_framed_rw(d, a, &cuts[i]);
        data_framed_lists(d, a, &cuts[i]);
        framed_write_same(d, a, &cuts[i]);
        data_set_write_cache(d, a, &cuts[i], i % 2);
    }
    data_set_write_cache(d, a, &data_one_piece, true);
    guest_free(d->alloc, a->base);
}

void test_framing(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    if (cfg->form & MQ_INDIRECT) {
        check_framing(d, table_cuts, ARRAY_SIZE(table_cuts));
    } else {
        check_framing(d, chain_cuts, ARRAY_SIZE(chain_cuts));
    }
    data_end(d);
}

/*
 * Many at once, some of which take longer than others
 */

enum { CROWD = 100 };

static MqCmd crowd_cmd(unsigned i)
{
    switch (i % 5) {
    case 0:
        return mq_read10(LUN_FILE, 7 * i, 1);
    case 1:
        return mq_cmd(LUN_FILE, TEST_UNIT_READY);
    case 2:
        return mq_read10(LUN_STOP, 11 * i, 1);
    case 3:
        return mq_cmd(LUN_CD, TEST_UNIT_READY);
    default:
        return mq_read10(LUN_FILE, LUN_BLOCKS, 1);
    }
}

static void crowd_check(unsigned i, MqSlot *slot)
{
    MqCmd cmd = crowd_cmd(i);
    struct virtio_scsi_cmd_resp resp;
    uint8_t in[BLOCK];
    unsigned lba;

    mq_read_resp(slot, &resp, sizeof(resp));
    switch (i % 5) {
    case 0:
    case 2:
        mq_assert_good(&resp);
        lba = ldl_be_p(&cmd.cdb[2]);
        qtest_bufread(slot->q->dev->qts, slot->data, in, BLOCK);
        g_assert_cmpmem(in, BLOCK, data_image[cmd.lun] + lba * BLOCK, BLOCK);
        g_assert_cmpuint(slot->used_len, ==, RESP_LEN + BLOCK);
        break;
    case 1:
        mq_assert_good(&resp);
        break;
    case 3:
        mq_assert_sense(&resp, NOT_READY, 0x3a, 0);
        break;
    default:
        mq_assert_sense(&resp, ILLEGAL_REQUEST, 0x21, 0);
        break;
    }
    mq_release(slot);
}

static void crowd_wait(MqQueue *q, MqSlot **slot, bool in_order)
{
    gint64 begun = 0;

    while (mq_reap(q), q->in_flight) {
        bool open = false;

        for (unsigned i = 0; in_order && i < CROWD; i++) {
            g_assert_false(open && slot[i]->done);
            open = !slot[i]->done;
        }
        mq_pause(&begun, "a crowd");
    }
}

/* With VIRTIO_F_IN_ORDER they come back in the order in which they went. */
void test_crowd(const DataConfig *cfg)
{
    bool in_order = cfg->more_features & (1ull << VIRTIO_F_IN_ORDER);
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);
    MqSlot *slot[NUM_QUEUES][CROWD];

    data_take_ua(d, a, LUN_CD);
    for (unsigned round = 0; round < 12; round++) {
        for (unsigned n = 0; n < NUM_QUEUES; n++) {
            for (unsigned i = 0; i < CROWD; i++) {
                MqCmd cmd = crowd_cmd(i);

                slot[n][i] = mq_post_cmd(mq_queue(d, n), &cmd);
                g_assert_nonnull(slot[n][i]);
            }
        }
        for (unsigned n = 0; n < NUM_QUEUES; n++) {
            mq_flush(mq_queue(d, n));
        }
        for (unsigned n = 0; n < NUM_QUEUES; n++) {
            crowd_wait(mq_queue(d, n), slot[n], in_order);
            for (unsigned i = 0; i < CROWD; i++) {
                crowd_check(i, slot[n][i]);
            }
        }
    }
    data_end(d);
}
