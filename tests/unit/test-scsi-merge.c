/*
 * Which READs and WRITEs of a batch become one I/O
 *
 * Links hw/scsi/scsi-merge.c alone.  What becomes of the I/O is the business of
 * virtio-scsi-data-test.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "block/block.h"
#include "hw/scsi/scsi-merge.h"

#define BLOCK 512

static SCSIDevice dev;
static SCSIMergeLun lun = { .enabled = true }, other_lun = { .enabled = true };

static void set_limits(uint32_t max_transfer, uint32_t max_iov)
{
    scsi_merge_set_limits(&lun, max_transfer, max_iov);
    scsi_merge_set_limits(&other_lun, max_transfer, max_iov);
}

/* In blocks; one buffer */
static SCSIMergeEntry entry(uint64_t lba, uint32_t blocks, bool write)
{
    return (SCSIMergeEntry) {
        .lun = &lun,
        .offset = lba * BLOCK,
        .bytes = blocks * BLOCK,
        .niov = 1,
        .write = write,
    };
}

/*
 * The plan as a string: groups in the order in which they are submitted, each
 * as the numbers of its requests in the order of their data.
 */
static char *plan(const SCSIMergeEntry *entries, unsigned num)
{
    g_autofree SCSIMergeEntry *e = g_memdup2(entries, num * sizeof(*e));
    g_autoptr(GString) text = g_string_new("");
    uint8_t next[SCSI_MERGE_MAX];
    uint64_t firsts;

    if (!scsi_merge_has_neighbours(e, num)) {
        return g_strdup("none");
    }
    firsts = scsi_merge_plan(e, num, next);
    for (unsigned i = 0; i < num; i++) {
        for (unsigned k = firsts >> i & 1 ? i : SCSI_MERGE_END;
             k != SCSI_MERGE_END; k = next[k]) {
            g_assert_cmpuint(k, <, num);
            g_string_append_printf(text, "%s%u", k != i ? "+" :
                                   text->len ? " " : "", k);
        }
    }
    return g_string_free(g_steal_pointer(&text), false);
}

static void expect(const SCSIMergeEntry *e, unsigned num, const char *want)
{
    g_autofree char *got = plan(e, num);

    g_assert_cmpstr(got, ==, want);
}

static void test_neighbours(void)
{
    SCSIMergeEntry e[] = {
        entry(0, 8, false), entry(8, 8, false), entry(16, 1, false),
        entry(17, 100, false),
    };

    expect(e, 0, "none");
    expect(e, 1, "none");
    expect(e, 2, "0+1");
    expect(e, 4, "0+1+2+3");
    for (unsigned i = 0; i < 4; i++) {
        e[i].write = true;
    }
    expect(e, 4, "0+1+2+3");
}

/* Order of arrival doesn't matter for what is merged. */
static void test_order(void)
{
    const SCSIMergeEntry e[] = {
        entry(24, 8, true), entry(16, 8, true), entry(100, 8, true),
        entry(0, 8, true), entry(108, 8, true), entry(8, 8, true),
    };

    expect(e, 6, "2+4 3+5+1+0");
    expect(e, 3, "1+0 2");
    expect(e + 1, 4, "0 1+3 2");
}

static void test_gap(void)
{
    const SCSIMergeEntry e[] = {
        entry(0, 8, false), entry(9, 8, false), entry(18, 8, false),
        entry(26, 8, false),
    };

    expect(e, 3, "none");
    expect(e, 4, "0 1 2+3");
}

static void test_direction(void)
{
    const SCSIMergeEntry e[] = {
        entry(0, 8, false), entry(8, 8, true), entry(16, 8, false),
        entry(24, 8, true), entry(32, 8, true),
    };

    expect(e, 4, "none");
    expect(e, 5, "0 1 2 3+4");
}

static void test_other_lun(void)
{
    SCSIMergeEntry e[] = {
        entry(0, 8, false), entry(8, 8, false), entry(16, 8, false),
        entry(8, 8, false), entry(24, 8, false),
    };

    e[1].lun = &other_lun;
    expect(e, 3, "none");
    expect(e, 4, "0+3+2 1");
    e[4].lun = &other_lun;
    expect(e, 5, "0+3+2 1 4");
    e[2].lun = &other_lun;
    expect(e, 5, "0+3 1+2+4");
}

static void test_max_transfer(void)
{
    SCSIMergeEntry e[] = {
        entry(0, 8, false), entry(8, 8, false), entry(16, 8, false),
        entry(24, 8, false), entry(32, 8, false),
    };

    set_limits(16 * BLOCK, IOV_MAX);
    expect(e, 5, "0+1 2+3 4");
    set_limits(24 * BLOCK, IOV_MAX);
    expect(e, 5, "0+1+2 3+4");
    set_limits(24 * BLOCK - 1, IOV_MAX);
    expect(e, 5, "0+1 2+3 4");
    set_limits(15 * BLOCK, IOV_MAX);
    expect(e, 5, "0 1 2 3 4");

    /* One that is too big by itself, and a sum of more than 32 bits */
    set_limits(16 * BLOCK, IOV_MAX);
    e[1].bytes = 80 * BLOCK;
    e[2].offset = 88 * BLOCK;
    e[3].offset = 96 * BLOCK;
    expect(e, 4, "0 1 2+3");
    set_limits(INT32_MAX, IOV_MAX);
    for (unsigned i = 0; i < 3; i++) {
        e[i] = entry(i * (1ull << 22), 1u << 22, false);
    }
    expect(e, 3, "0 1 2");
}

static void test_max_iov(void)
{
    SCSIMergeEntry e[] = {
        entry(0, 8, true), entry(8, 8, true), entry(16, 8, true),
        entry(24, 8, true),
    };

    set_limits(INT32_MAX, 4);
    expect(e, 4, "0+1+2+3");
    e[1].niov = 2;
    expect(e, 4, "0+1+2 3");
    e[2].niov = 4;
    expect(e, 4, "0+1 2 3");
    e[2].niov = 5;
    expect(e, 4, "0+1 2 3");

    /* More than the host takes, whatever the node says */
    set_limits(INT32_MAX, INT32_MAX);
    e[0].niov = IOV_MAX - 1;
    e[1].niov = 1;
    expect(e, 3, "0+1 2");
    e[1].niov = 2;
    e[2].niov = 1;
    expect(e, 3, "0 1+2");

    /* No medium, no limits: nothing is merged. */
    set_limits(0, 0);
    expect(e, 4, "0 1 2 3");
}

static void test_equal_offsets(void)
{
    const SCSIMergeEntry e[] = {
        entry(8, 8, true), entry(0, 8, true), entry(8, 8, true),
        entry(16, 8, true), entry(24, 8, true),
    };

    /* 0 and 2 stay in this order, and each of them alone. */
    expect(e, 3, "0 1 2");
    expect(e, 5, "0 1 2 3+4");
}

/* Those that overlap are submitted as they came. */
static void test_overlap(void)
{
    const SCSIMergeEntry tail[] = {
        entry(12, 8, true), entry(0, 8, true), entry(8, 8, true),
    };
    const SCSIMergeEntry within[] = {
        entry(0, 8, true), entry(2, 2, true), entry(8, 8, true),
        entry(16, 8, true),
    };
    const SCSIMergeEntry across[] = {
        entry(24, 8, true), entry(0, 32, true), entry(32, 8, true),
        entry(40, 8, true), entry(8, 8, true), entry(16, 8, true),
    };
    const SCSIMergeEntry read[] = {
        entry(0, 8, true), entry(4, 8, false), entry(8, 8, true),
    };

    expect(tail, 3, "0 1 2");
    expect(within, 3, "0 1 2");
    expect(within, 4, "0 1 2+3");
    expect(across, 6, "0 1 2+3 4 5");
    expect(read, 3, "0 1 2");
}

/* The furthest end so far is that of the same LUN. */
static void test_overlap_other_lun(void)
{
    SCSIMergeEntry e[] = {
        entry(0, 100, true), entry(8, 8, true), entry(16, 8, true),
    };

    for (unsigned i = 0; i < 2; i++) {
        e[0].lun = i ? &lun : &other_lun;
        e[1].lun = e[2].lun = i ? &other_lun : &lun;
        expect(e, 3, "0 1+2");
    }
}

/* Is it a plan that may be?  Checked against all pairs. */
static void check_plan(SCSIMergeEntry *e, unsigned num)
{
    uint8_t next[SCSI_MERGE_MAX];
    unsigned seen[SCSI_MERGE_MAX] = { 0 };
    bool neighbours = false;
    uint64_t firsts;

    for (unsigned i = 0; i < num; i++) {
        for (unsigned k = 0; k < num; k++) {
            neighbours |= e[i].lun == e[k].lun && e[i].write == e[k].write &&
                          e[i].offset + e[i].bytes == e[k].offset;
        }
    }
    g_assert_cmpint(scsi_merge_has_neighbours(e, num), ==, neighbours);
    if (!num) {
        return;
    }
    firsts = scsi_merge_plan(e, num, next);
    for (unsigned i = 0; i < num; i++) {
        unsigned k = next[i];

        seen[i] += firsts >> i & 1;
        if (k == SCSI_MERGE_END) {
            continue;
        }
        g_assert_true(e[i].lun == e[k].lun && e[i].write == e[k].write);
        g_assert_cmpuint(e[i].offset + e[i].bytes, ==, e[k].offset);
        seen[k]++;
        for (unsigned j = 0; j < num; j++) {
            g_assert_true(j == i || e[j].lun != e[i].lun ||
                          e[j].offset >= e[i].offset + e[i].bytes ||
                          e[i].offset >= e[j].offset + e[j].bytes);
        }
    }
    for (unsigned i = 0; i < num; i++) {
        g_assert_cmpuint(seen[i], ==, 1);
    }
}

static void test_random(void)
{
    for (unsigned round = 0; round < 20000; round++) {
        unsigned num = g_test_rand_int_range(0, SCSI_MERGE_MAX + 1);
        unsigned room = g_test_rand_int_range(8, 2000);
        SCSIMergeEntry e[SCSI_MERGE_MAX];

        for (unsigned i = 0; i < num; i++) {
            e[i] = entry(g_test_rand_int_range(0, room),
                         g_test_rand_int_range(1, 5), g_test_rand_bit());
            e[i].lun = g_test_rand_bit() ? &lun : &other_lun;
        }
        check_plan(e, num);
    }
}

/*
 * Batches
 */

static unsigned num_alone;

/* blk_inc_in_flight() was called for it. */
static void coroutine_fn count_alone(void *opaque)
{
    SCSIRequest *req = opaque;

    num_alone++;
    blk_dec_in_flight(req->dev->conf.blk);
}

static const SCSIMergeOps ops = {
    .alone = count_alone,
};

/* Submit one block at @lba; no two are neighbours in these tests. */
static void submit(uint64_t lba)
{
    static uint8_t buf[BLOCK];
    static struct iovec piece = { .iov_base = buf, .iov_len = sizeof(buf) };
    static QEMUIOVector iov;
    static SCSIRequest req;

    qemu_iovec_init_external(&iov, &piece, 1);
    req = (SCSIRequest) { .dev = &dev, .iov = &iov };
    scsi_merge_submit(&lun, &req, lba * BLOCK);
}

static void with_blk(void (*test)(void))
{
    dev.conf.blk = blk_new(qemu_get_aio_context(), 0, BLK_PERM_ALL);
    lun.ops = &ops;
    num_alone = 0;
    test();
    blk_unref(dev.conf.blk);
}

static void do_batch(void)
{
    SCSIMergeBatch outer, inner;

    /* No batch: at once */
    submit(0);
    g_assert_cmpuint(num_alone, ==, 1);

    /* Not before the end of each batch */
    scsi_merge_begin(&outer);
    submit(0);
    g_assert_cmpuint(num_alone, ==, 1);
    scsi_merge_begin(&inner);
    submit(8);
    submit(16);
    g_assert_cmpuint(num_alone, ==, 1);
    scsi_merge_end(&inner);
    g_assert_cmpuint(num_alone, ==, 3);
    submit(24);
    g_assert_cmpuint(num_alone, ==, 3);
    scsi_merge_end(&outer);
    g_assert_cmpuint(num_alone, ==, 5);
    submit(0);
    g_assert_cmpuint(num_alone, ==, 6);

    /* An empty one */
    scsi_merge_begin(&outer);
    scsi_merge_end(&outer);
    g_assert_cmpuint(num_alone, ==, 6);
}

static void test_batch(void)
{
    with_blk(do_batch);
}

static void do_full_batch(void)
{
    SCSIMergeBatch batch;

    scsi_merge_begin(&batch);
    for (unsigned i = 0; i < SCSI_MERGE_MAX; i++) {
        submit(i * 8);
    }
    g_assert_cmpuint(num_alone, ==, 0);
    submit(1000);
    g_assert_cmpuint(num_alone, ==, 1);
    scsi_merge_end(&batch);
    g_assert_cmpuint(num_alone, ==, SCSI_MERGE_MAX + 1);
}

static void test_full_batch(void)
{
    with_blk(do_full_batch);
}

static void do_off(void)
{
    SCSIMergeBatch batch;

    lun.enabled = false;
    scsi_merge_begin(&batch);
    submit(0);
    g_assert_cmpuint(num_alone, ==, 1);
    scsi_merge_end(&batch);
    g_assert_cmpuint(num_alone, ==, 1);
    lun.enabled = true;
}

static void test_off(void)
{
    with_blk(do_off);
}

static void run(gconstpointer test)
{
    set_limits(INT32_MAX, IOV_MAX);
    ((void (*)(void))test)();
}

int main(int argc, char **argv)
{
    static const struct {
        const char *path;
        void (*test)(void);
    } tests[] = {
        { "/scsi-merge/neighbours", test_neighbours },
        { "/scsi-merge/order", test_order },
        { "/scsi-merge/gap", test_gap },
        { "/scsi-merge/direction", test_direction },
        { "/scsi-merge/other-lun", test_other_lun },
        { "/scsi-merge/max-transfer", test_max_transfer },
        { "/scsi-merge/max-iov", test_max_iov },
        { "/scsi-merge/equal-offsets", test_equal_offsets },
        { "/scsi-merge/overlap", test_overlap },
        { "/scsi-merge/overlap-other-lun", test_overlap_other_lun },
        { "/scsi-merge/random", test_random },
        { "/scsi-merge/batch", test_batch },
        { "/scsi-merge/full-batch", test_full_batch },
        { "/scsi-merge/off", test_off },
    };

    g_test_init(&argc, &argv, NULL);
    qemu_init_main_loop(&error_abort);
    bdrv_init();
    for (unsigned i = 0; i < ARRAY_SIZE(tests); i++) {
        g_test_add_data_func(tests[i].path, tests[i].test, run);
    }
    return g_test_run();
}
