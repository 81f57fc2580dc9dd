/*
 * virtio-scsi: what a disk does with commands that transfer no blocks
 *
 * VERIFY, WRITE SAME, SYNCHRONIZE CACHE, UNMAP, GET LBA STATUS, and MODE SELECT
 * of the block size, in the default setting, which is QEMU 10.0's, and with
 * standard-answers=on.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "qemu/timer.h"
#include "qobject/qdict.h"
#include "scsi/constants.h"
#include "virtio-scsi-lun.h"

/* One read that begins before READ_ERROR_LBA and comes to it fails. */
#define READ_ERROR_LBA  1000
#define READ_ERROR  "\"driver\":\"blkdebug\",\"inject-error\":[{" \
                    "\"event\":\"none\",\"iotype\":\"read\"," \
                    "\"sector\":" stringify(READ_ERROR_LBA) "," \
                    "\"once\":true}],\"image\":"

/* A command with @len bytes for the LUN, by its CDB's ALLOCATION LENGTH */
static MqCmd list_cmd(uint8_t opcode, const uint8_t *list, size_t len)
{
    MqCmd cmd = mq_cmd(LUN_HD, opcode);

    lun_set_field(cmd.cdb + (opcode == MODE_SELECT ? 4 : 7),
                  opcode == MODE_SELECT ? 1 : 2, len);
    cmd.out = list;
    cmd.out_len = len;
    return cmd;
}

static MqCmd range_cmd(uint8_t opcode, unsigned byte1, uint32_t lba,
                       uint32_t blocks)
{
    MqCmd cmd = mq_cmd(LUN_HD, opcode);
    bool is_16 = opcode >> 5 == 4, is_12 = opcode >> 5 == 5;

    cmd.cdb[1] = byte1;
    lun_set_field(cmd.cdb + (is_16 ? 6 : 2), 4, lba);
    lun_set_field(cmd.cdb + (is_16 ? 10 : is_12 ? 6 : 7),
                  is_16 || is_12 ? 4 : 2, blocks);
    return cmd;
}

/*
 * VERIFY and WRITE SAME
 */

/* @data of @len bytes against @blocks from @lba on; @asc: 0 if it is good */
static void verify(MqDev *d, uint8_t opcode, unsigned bytchk, uint32_t lba,
                   uint32_t blocks, const uint8_t *data, size_t len,
                   uint16_t asc)
{
    static MqAnswer a;
    MqCmd cmd = range_cmd(opcode, bytchk << 1, lba, blocks);

    cmd.out = data;
    cmd.out_len = len;
    lun_run(d, &cmd, &a);
    if (!asc) {
        mq_expect_moved(&cmd, &a, len);
    } else {
        mq_expect_sense(&cmd, &a, asc == ASC_DIFFERS ? MISCOMPARE
                                                     : ILLEGAL_REQUEST, asc);
    }
}

static void check_verify(MqDev *d, uint8_t opcode, bool standard)
{
    enum { SAME_LBA = 3000, SAME_BLOCKS = 400 };
    static const uint16_t counts[] = { 1, 8, 128, 300 };
    static uint8_t data[LUN_DATA_MAX];

    verify(d, opcode, 0, 5, 0, NULL, 0, 0);
    verify(d, opcode, 0, 5, 7, NULL, 0, 0);
    verify(d, opcode, 0, LUN_BLOCKS, 0, NULL, 0, 0);
    verify(d, opcode, 0, LUN_BLOCKS - 1, 2, NULL, 0,
           standard ? ASC_RANGE : 0);
    verify(d, opcode, 2, 5, 1, NULL, 0, ASC_FIELD);
    verify(d, opcode, 0x11, 5, 1, data, LUN_BLOCK, ASC_FIELD);
    verify(d, opcode, 1, LUN_BLOCKS, 1, data, LUN_BLOCK, ASC_RANGE);
    verify(d, opcode, 3, LUN_BLOCKS - 1, 2, data, LUN_BLOCK, ASC_RANGE);

    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
        size_t len = counts[i] * LUN_BLOCK;

        mq_fill_pattern(data, 100, counts[i], 0);
        verify(d, opcode, 1, 100, counts[i], data, len, 0);
        verify(d, opcode, 1, 101, counts[i], data, len, ASC_DIFFERS);
        data[len - 1] ^= 1;
        verify(d, opcode, 1, 100, counts[i], data, len, ASC_DIFFERS);
    }

    /* The same block from SAME_LBA on, and another one behind it */
    mq_fill_pattern(data, 0, 1, 1234);
    for (unsigned i = 0; i < SAME_BLOCKS; i++) {
        g_assert_cmpint(pwrite(lun_hd_fd, data, LUN_BLOCK,
                               (SAME_LBA + i) * LUN_BLOCK), ==, LUN_BLOCK);
    }
    verify(d, opcode, 3, SAME_LBA, SAME_BLOCKS, data, LUN_BLOCK, 0);
    verify(d, opcode, 3, SAME_LBA, SAME_BLOCKS + 1, data, LUN_BLOCK,
           ASC_DIFFERS);
    verify(d, opcode, 3, SAME_LBA - 1, 2, data, LUN_BLOCK, ASC_DIFFERS);
}

static void test_verify(void)
{
    static const uint8_t opcodes[] = { VERIFY_10, VERIFY_12, VERIFY_16 };

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(opcodes); i++) {
        MqDev *d = lun_begin(i % 2 ? STANDARD : "", "");

        check_verify(d, opcodes[i / 2], i % 2);
        lun_end(d);
    }
}

/* A QEMU that a VM may move to, with the image that lun_hd_fd is */
static QTestState *destination(const char *props)
{
    g_autofree char *disk = g_strdup_printf("/proc/%d/fd/%d", (int)getpid(),
                                            lun_hd_fd);
    g_autofree char *args = lun_vm_args(disk, RAW, props, "");
    g_autofree char *to_args = g_strdup_printf("%s -incoming defer", args);

    return qtest_init(to_args);
}

/*
 * A read fails, the VM stops, moves on twice, and the rest is done there; the
 * data come from guest memory again.
 */
static void test_verify_migrate(void)
{
    enum { LBA = READ_ERROR_LBA - 2, BLOCKS = 8 };
    static const char props[] = ",\"rerror\":\"stop\"";
    g_autofree char *disk = lun_make_image();
    uint8_t data[BLOCKS * LUN_BLOCK];
    struct virtio_scsi_cmd_resp resp;
    MqCmd cmd = range_cmd(VERIFY_10, 1 << 1, LBA, BLOCKS);
    MqDev *d = lun_begin_with(NULL, lun_vm_args(disk, READ_ERROR, props, ""));
    QTestState *from = d->qts, *via = destination(props);
    QTestState *to = destination(props);
    MqSlot *slot;

    mq_fill_pattern(data, LBA, BLOCKS, 0);
    cmd.out = data;
    cmd.out_len = sizeof(data);
    slot = mq_post_cmd(mq_queue(d, 1), &cmd);
    mq_flush(mq_queue(d, 1));
    qtest_qmp_eventwait(d->qts, "STOP");

    mq_migrate(from, via);
    mq_migrate(via, to);
    mq_migrated(d, to);
    qtest_quit(from);
    qtest_quit(via);
    qtest_qmp_assert_success(to, "{'execute': 'cont'}");

    mq_wait(slot);
    mq_read_resp(slot, &resp, sizeof(resp));
    mq_release(slot);
    mq_assert_good(&resp);
    lun_end(d);
}

/* NDOB: zeroes, without data that say so */
static void test_ndob(void)
{
    enum { LBA = 400, BLOCKS = 9 };
    static const uint8_t zeroes[LUN_BLOCK];
    static MqAnswer a;
    MqDev *d = lun_begin("", "");
    MqCmd cmd = range_cmd(WRITE_SAME_16, 1, LBA, BLOCKS);

    verify(d, VERIFY_10, 3, LBA, 1, zeroes, LUN_BLOCK, ASC_DIFFERS);
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 0);
    verify(d, VERIFY_10, 3, LBA, BLOCKS, zeroes, LUN_BLOCK, 0);
    verify(d, VERIFY_10, 3, LBA, BLOCKS + 1, zeroes, LUN_BLOCK, ASC_DIFFERS);
    lun_end(d);
}

/* No more blocks than VPD page B0h says */
static void test_write_same(void)
{
    static const uint8_t opcodes[] = { WRITE_SAME_10, WRITE_SAME_16 };
    static const uint8_t block[LUN_BLOCK];
    static MqAnswer a;

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(opcodes); i++) {
        bool standard = i % 2;
        MqDev *d = lun_begin(standard ? ",\"max_io_size\":65536" STANDARD
                                      : ",\"max_io_size\":65536", "");
        MqCmd cmd = mq_cmd(LUN_HD, INQUIRY);

        cmd.cdb[1] = 1;
        cmd.cdb[2] = 0xb0;
        cmd.cdb[4] = 64;
        cmd.in_len = 64;
        lun_run(d, &cmd, &a);
        g_assert_cmpuint(ldl_be_p(a.in + 40), ==, 128);

        cmd = range_cmd(opcodes[i / 2], 0, 7, 128);
        cmd.out = block;
        cmd.out_len = LUN_BLOCK;
        lun_run(d, &cmd, &a);
        mq_expect_moved(&cmd, &a, LUN_BLOCK);
        cmd = range_cmd(opcodes[i / 2], 0, 7, 129);
        cmd.out = block;
        cmd.out_len = LUN_BLOCK;
        lun_run(d, &cmd, &a);
        if (standard) {
            mq_expect_sense(&cmd, &a, ILLEGAL_REQUEST, ASC_FIELD);
        } else {
            mq_expect_moved(&cmd, &a, LUN_BLOCK);
        }
        lun_end(d);
    }
}

/* Of longer data one block is used, and the rest is residual. */
static void test_write_same_longer(void)
{
    enum { LBA = 400, BLOCKS = 9 };
    static uint8_t data[2 * LUN_BLOCK];
    static MqAnswer a;

    for (unsigned standard = 0; standard < 2; standard++) {
        MqDev *d = lun_begin(standard ? STANDARD : "", "");
        MqCmd cmd = range_cmd(WRITE_SAME_10, 0, LBA, BLOCKS);

        mq_fill_pattern(data, 0, 2, 1234);
        cmd.out = data;
        cmd.out_len = sizeof(data);
        lun_run(d, &cmd, &a);
        mq_expect_moved(&cmd, &a, LUN_BLOCK);
        verify(d, VERIFY_10, 3, LBA, BLOCKS, data, LUN_BLOCK, 0);
        verify(d, VERIFY_10, 3, LBA, BLOCKS + 1, data, LUN_BLOCK, ASC_DIFFERS);
        lun_end(d);
    }
}

/*
 * SYNCHRONIZE CACHE
 */

static int64_t hd_flushes(MqDev *d)
{
    g_autoptr(QDict) resp = qtest_qmp(d->qts,
                                      "{'execute': 'query-blockstats'}");
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), entry) {
        const QDict *device = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_strcmp0(qdict_get_try_str(device, "node-name"), "disk") == 0) {
            return qdict_get_int(qdict_get_qdict(device, "stats"),
                                 "flush_operations");
        }
    }
    g_assert_not_reached();
}

/* What is refused flushes nothing; all else is one flush.  @asc: 0 if good */
static void sync_cache(MqDev *d, uint8_t opcode, unsigned byte1, uint32_t lba,
                       uint32_t blocks, uint16_t asc)
{
    static MqAnswer a;
    MqCmd cmd = range_cmd(opcode, byte1, lba, blocks);
    int64_t before = hd_flushes(d);

    if (asc) {
        lun_expect_refusal(d, &cmd, asc);
    } else {
        lun_run(d, &cmd, &a);
        mq_expect_moved(&cmd, &a, 0);
    }
    g_assert_cmpint(hd_flushes(d), ==, before + !asc);
}

/* 16 is there, and anybody looks for the range, by the standard only. */
static void test_sync_cache(void)
{
    static const uint8_t opcodes[] = {
        SYNCHRONIZE_CACHE, SYNCHRONIZE_CACHE_16
    };

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(opcodes); i++) {
        uint8_t opcode = opcodes[i / 2];
        bool standard = i % 2;
        MqDev *d = lun_begin(standard ? STANDARD : "", "");
        uint16_t always = opcode == SYNCHRONIZE_CACHE || standard
                          ? 0 : ASC_OPCODE;

        sync_cache(d, opcode, 0, 0, 0, always);
        sync_cache(d, opcode, 2, 8, 8, always);
        sync_cache(d, opcode, 0, LUN_BLOCKS, 0, always);
        sync_cache(d, opcode, 0, LUN_BLOCKS - 8, 8, always);
        sync_cache(d, opcode, 0, LUN_BLOCKS - 8, 9,
                   standard ? ASC_RANGE : always);
        sync_cache(d, opcode, 0, LUN_BLOCKS + 1, 0,
                   standard ? ASC_RANGE : always);
        sync_cache(d, opcode, 0x10, 0, 0, standard ? ASC_FIELD : always);
        lun_end(d);
    }
}

/*
 * UNMAP
 */

#define QCOW2_UNMAP "\"discard\":\"unmap\"," QCOW2
#define CLUSTER_BLOCKS  (LUN_CLUSTER / LUN_BLOCK)

typedef struct Extent {
    uint64_t lba;
    uint32_t blocks;
} Extent;

/* @asc: 0 if it is good */
static void unmap(MqDev *d, const Extent *extents, unsigned num, uint16_t asc)
{
    size_t len = 8 + 16 * num;
    g_autofree uint8_t *list = g_malloc0(len);
    MqCmd cmd = list_cmd(UNMAP, list, len);
    static MqAnswer a;

    stw_be_p(list, len - 2);
    stw_be_p(list + 2, len - 8);
    for (unsigned i = 0; i < num; i++) {
        stq_be_p(list + 8 + 16 * i, extents[i].lba);
        stl_be_p(list + 16 + 16 * i, extents[i].blocks);
    }
    lun_run(d, &cmd, &a);
    if (asc) {
        mq_expect_sense(&cmd, &a, ILLEGAL_REQUEST, asc);
    } else {
        mq_expect_moved(&cmd, &a, len);
    }
}

/* Bits of the image's first clusters, of those that take space */
static unsigned clusters_used(MqDev *d, unsigned num)
{
    MqCmd sync = mq_cmd(LUN_HD, SYNCHRONIZE_CACHE);
    uint64_t l2, entry;
    unsigned used = 0;
    MqAnswer a;

    lun_run(d, &sync, &a);
    mq_assert_good(&a.resp);
    g_assert_cmpint(pread(lun_hd_fd, &l2, 8, 3 * LUN_CLUSTER), ==, 8);
    l2 = be64_to_cpu(l2) & MAKE_64BIT_MASK(9, 47);
    g_assert_cmpuint(l2, !=, 0);
    for (unsigned i = 0; i < num; i++) {
        g_assert_cmpint(pread(lun_hd_fd, &entry, 8, l2 + 8 * i), ==, 8);
        used |= !!(be64_to_cpu(entry) & MAKE_64BIT_MASK(9, 47)) << i;
    }
    return used;
}

static MqDev *begin_qcow2(const char *props)
{
    static uint8_t data[LUN_CLUSTER];
    g_autofree char *path = lun_make_qcow2();
    MqDev *d = lun_begin_with(NULL, lun_vm_args(path, QCOW2_UNMAP, props, ""));
    static MqAnswer a;

    memset(data, 'x', sizeof(data));
    for (unsigned i = 0; i < 4; i++) {
        MqCmd cmd = range_cmd(WRITE_10, 0, i * CLUSTER_BLOCKS, CLUSTER_BLOCKS);

        cmd.out = data;
        cmd.out_len = sizeof(data);
        lun_run(d, &cmd, &a);
        mq_assert_good(&a.resp);
    }
    g_assert_cmphex(clusters_used(d, 4), ==, 0xf);
    return d;
}

/* Parts that only together are a cluster give it back. */
static void test_unmap_neighbours(void)
{
    enum { ONE = CLUSTER_BLOCKS, PART = CLUSTER_BLOCKS / 4 };
    static const Extent parts[] = {
        { ONE + 3 * PART, PART }, { ONE, PART }, { ONE + 2, 0 },
        { ONE + PART, PART + 8 }, { ONE + 2 * PART, PART },
        { 3 * ONE, PART },      /* of another cluster, and alone */
    };
    static const Extent half = { 2 * ONE, 2 * PART };
    static const Extent rest = { 2 * ONE + 2 * PART, 2 * PART };
    MqDev *d = begin_qcow2("");

    unmap(d, parts, ARRAY_SIZE(parts), 0);
    g_assert_cmphex(clusters_used(d, 4), ==, 0xd);
    /* Of what was in an earlier command nobody knows. */
    unmap(d, &half, 1, 0);
    unmap(d, &rest, 1, 0);
    g_assert_cmphex(clusters_used(d, 4), ==, 0xd);
    unmap(d, NULL, 0, 0);
    lun_end(d);
}

/* If one range isn't on the disk, none is unmapped. */
static void test_unmap_range(void)
{
    static const Extent extents[] = {
        { 0, CLUSTER_BLOCKS }, { LUN_BLOCKS, 1 },
    };
    static const Extent wraps = { UINT64_MAX, 2 };
    MqDev *d = begin_qcow2("");

    unmap(d, extents, 2, ASC_RANGE);
    unmap(d, &wraps, 1, ASC_RANGE);
    g_assert_cmphex(clusters_used(d, 4), ==, 0xf);
    unmap(d, extents, 1, 0);
    g_assert_cmphex(clusters_used(d, 4), ==, 0xe);
    lun_end(d);
}

/* No more blocks and descriptors than VPD page B0h says */
static void test_unmap_limits(void)
{
    static const Extent extents[] = { { 0, 100 }, { 200, 28 }, { 300, 1 } };
    static const Extent empty[256];
    static MqAnswer a;

    for (unsigned standard = 0; standard < 2; standard++) {
        MqDev *d = lun_begin(standard ? ",\"max_unmap_size\":65536" STANDARD
                                      : ",\"max_unmap_size\":65536", "");

        lun_vpd_page(d, LUN_HD, 0xb0, &a);
        g_assert_cmpuint(ldl_be_p(a.in + 20), ==, 128);
        g_assert_cmpuint(ldl_be_p(a.in + 24), ==, 255);
        unmap(d, extents, 2, 0);
        unmap(d, extents, 3, standard ? ASC_PARAM : 0);
        unmap(d, empty, 255, 0);
        unmap(d, empty, 256, standard ? ASC_PARAM : 0);
        lun_end(d);
    }
}

/*
 * The block size
 */

static void select_size(MqDev *d, unsigned size, const void *pages,
                        size_t pages_len, uint16_t asc)
{
    uint8_t list[64] = { [3] = 8 };
    MqCmd cmd = list_cmd(MODE_SELECT, list, 12 + pages_len);
    static MqAnswer a;

    lun_set_field(list + 9, 3, size);
    if (pages_len) {
        memcpy(list + 12, pages, pages_len);
    }
    cmd.cdb[1] = 0x10;
    lun_run(d, &cmd, &a);
    if (asc) {
        mq_expect_sense(&cmd, &a, ILLEGAL_REQUEST, asc);
    } else {
        mq_expect_moved(&cmd, &a, cmd.out_len);
    }
}

static void expect_size(MqDev *d, unsigned size)
{
    MqCmd cmd = mq_cmd(LUN_HD, READ_CAPACITY_10);
    static MqAnswer a;

    cmd.in_len = 8;
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 8);
    g_assert_cmpuint(ldl_be_p(a.in + 4), ==, size);
    g_assert_cmpuint(ldl_be_p(a.in), ==, LUN_BYTES / size - 1);
}

static void test_block_size(void)
{
    static const uint8_t no_page[] = { 0x11, 2, 0, 0 };
    static const struct {
        const char *props;
        bool changes, refuses;  /* a size that can be; one that can't */
    } rows[] = {
        { "", true, false },
        { ",\"block-size-change\":\"on\"", true, false },
        { ",\"block-size-change\":\"off\"", false, true },
        { STANDARD, false, true },
        { ",\"block-size-change\":\"on\"" STANDARD, true, true },
    };
    static const unsigned bad[] = { 1, 256, 520, 65536 };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        MqDev *d = lun_begin(rows[i].props, "");

        select_size(d, LUN_BLOCK, NULL, 0, 0);
        select_size(d, 0, NULL, 0, 0);
        for (unsigned j = 0; j < ARRAY_SIZE(bad); j++) {
            select_size(d, bad[j], NULL, 0, rows[i].refuses ? ASC_PARAM : 0);
        }
        /* Nothing is changed by a command that fails. */
        select_size(d, 4096, no_page, sizeof(no_page), ASC_PARAM);
        expect_size(d, LUN_BLOCK);
        select_size(d, 4096, NULL, 0, rows[i].changes ? 0 : ASC_PARAM);
        expect_size(d, rows[i].changes ? 4096 : LUN_BLOCK);
        lun_end(d);
    }
}

/*
 * GET LBA STATUS
 */

#define ASC_IO_ERROR    0x0006
#define GET_LBA_STATUS  0x12    /* the service action */
#define STATUS_MAX      255     /* descriptors in one answer */

enum { MAPPED, DEALLOCATED };

typedef struct Status {
    uint64_t lba;
    uint32_t blocks;
    uint8_t is;
} Status;

static MqCmd status_cmd(uint64_t lba, uint32_t alloc)
{
    MqCmd cmd = mq_cmd(LUN_HD, SERVICE_ACTION_IN_16);

    cmd.cdb[1] = GET_LBA_STATUS;
    stq_be_p(cmd.cdb + 2, lba);
    stl_be_p(cmd.cdb + 10, alloc);
    cmd.in_len = alloc;
    return cmd;
}

/* The descriptors of one answer, which are those of neighbours */
static unsigned parse_status(const MqCmd *cmd, const MqAnswer *a, Status *all)
{
    size_t len = ldl_be_p(a->in) + 4;
    unsigned num = (len - 8) / 16;

    mq_expect_moved(cmd, a, len);
    g_assert_cmpuint(len % 16, ==, 8);
    g_assert_cmpuint(num, >, 0);
    g_assert_cmpuint(num, <=, STATUS_MAX);
    for (unsigned i = 0; i < num; i++) {
        const uint8_t *p = a->in + 8 + 16 * i;

        all[i] = (Status) { ldq_be_p(p), ldl_be_p(p + 8), p[12] };
        g_assert_cmpuint(all[i].lba, ==, i ? all[i - 1].lba + all[i - 1].blocks
                                           : ldq_be_p(cmd->cdb + 2));
        g_assert_cmpuint(all[i].blocks, >, 0);
    }
    return num;
}

static unsigned get_status(MqDev *d, uint64_t lba, Status *all)
{
    MqCmd cmd = status_cmd(lba, 4096);
    static MqAnswer a;

    lun_run(d, &cmd, &a);
    return parse_status(&cmd, &a, all);
}

/* To the end of the disk */
static void expect_status(MqDev *d, uint64_t lba, const Status *want,
                          unsigned num)
{
    Status all[STATUS_MAX];

    g_assert_cmpuint(get_status(d, lba, all), ==, num);
    for (unsigned i = 0; i < num; i++) {
        g_assert_cmpuint(all[i].lba, ==, want[i].lba);
        g_assert_cmpuint(all[i].blocks, ==, want[i].blocks);
        g_assert_cmpuint(all[i].is, ==, want[i].is);
    }
}

static void write_block(MqDev *d, uint32_t lba)
{
    static const uint8_t data[LUN_BLOCK] = { 1 };
    MqCmd cmd = range_cmd(WRITE_10, 0, lba, 1);
    static MqAnswer a;

    cmd.out = data;
    cmd.out_len = sizeof(data);
    lun_run(d, &cmd, &a);
    mq_assert_good(&a.resp);
}

static void test_lba_status(void)
{
    enum { ONE = CLUSTER_BLOCKS };
    static const Extent second = { ONE, ONE };
    static const Status all[] = {
        { 0, ONE, MAPPED }, { ONE, ONE, DEALLOCATED },
        { 2 * ONE, 2 * ONE, MAPPED },
        { 4 * ONE, LUN_BLOCKS - 4 * ONE, DEALLOCATED },
    };
    static const Status middle[] = {
        { 4 * ONE - 1, 1, MAPPED },
        { 4 * ONE, LUN_BLOCKS - 4 * ONE, DEALLOCATED },
    };
    static const Status last = { LUN_BLOCKS - 1, 1, DEALLOCATED };
    MqDev *d = begin_qcow2(STANDARD);
    static const uint64_t beyond[] = {
        LUN_BLOCKS, 1ULL << 55, INT64_MAX, UINT64_MAX,
    };
    MqCmd cmd;

    unmap(d, &second, 1, 0);
    expect_status(d, 0, all, ARRAY_SIZE(all));
    expect_status(d, 4 * ONE - 1, middle, ARRAY_SIZE(middle));
    expect_status(d, LUN_BLOCKS - 1, &last, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(beyond); i++) {
        cmd = status_cmd(beyond[i], 24);
        lun_expect_refusal(d, &cmd, ASC_RANGE);
        cmd = status_cmd(beyond[i], 0);
        lun_expect_refusal(d, &cmd, ASC_RANGE);
    }
    lun_end(d);
}

/* What isn't thin has nothing that isn't mapped. */
static void test_lba_status_full(void)
{
    static const Status all = { 0, LUN_BLOCKS, MAPPED };
    MqDev *d = begin_qcow2(",\"discard_granularity\":0" STANDARD);

    expect_status(d, 0, &all, 1);
    lun_end(d);
}

/* A block that is in several clusters is mapped if one of them is. */
static void test_lba_status_blocks(void)
{
    enum { SIZE = 4096, BLOCKS = LUN_BYTES / SIZE };
    static const Status all[] = {
        { 0, 2, DEALLOCATED }, { 2, 1, MAPPED },
        { 3, BLOCKS - 3, DEALLOCATED },
    };
    g_autofree char *path = lun_make_qcow2_with(LUN_BLOCK, LUN_BYTES);
    MqDev *d = lun_begin_with(NULL, lun_vm_args(path, QCOW2,
                        ",\"block-size-change\":\"on\"" STANDARD, ""));

    write_block(d, 2 * SIZE / LUN_BLOCK + 3);
    select_size(d, SIZE, NULL, 0, 0);
    expect_status(d, 0, all, ARRAY_SIZE(all));
    lun_end(d);
}

/* More than one answer can tell, and more than one command looks for */
static void test_lba_status_many(void)
{
    enum { RUNS = STATUS_MAX + 20 };
    static const uint64_t bytes = 16 * MiB;
    g_autofree char *path = lun_make_qcow2_with(LUN_BLOCK, bytes);
    MqDev *d = lun_begin_with(NULL, lun_vm_args(path, QCOW2, STANDARD, ""));
    Status all[STATUS_MAX];
    uint64_t next = 2 * RUNS;

    for (unsigned i = 0; i < RUNS; i++) {
        write_block(d, 2 * i);
    }
    g_assert_cmpuint(get_status(d, 0, all), ==, STATUS_MAX);
    for (unsigned i = 0; i < STATUS_MAX; i++) {
        g_assert_cmpuint(all[i].blocks, ==, 1);
        g_assert_cmpuint(all[i].is, ==, i % 2 ? DEALLOCATED : MAPPED);
    }

    /* qcow2 tells of one table at a time, and a table of 64 clusters. */
    g_assert_cmpuint(get_status(d, next, all), ==, 1);
    g_assert_cmpuint(all[0].blocks, <, bytes / LUN_BLOCK - next);
    while (next < bytes / LUN_BLOCK) {
        g_assert_cmpuint(get_status(d, next, all), ==, 1);
        g_assert_cmpuint(all[0].is, ==, DEALLOCATED);
        next += all[0].blocks;
    }
    g_assert_cmpuint(next, ==, bytes / LUN_BLOCK);
    lun_end(d);
}

/* An error is one of reading: the VM stops, and the command is repeated. */
static void test_lba_status_error(void)
{
    static const char fails[] =
        "\"driver\":\"blkdebug\",\"inject-error\":[{\"event\":\"none\","
        "\"iotype\":\"block-status\",\"once\":true}],\"image\":";
    static const char stops[] = ",\"rerror\":\"stop\"" STANDARD;
    static const char *const props[] = {
        stops, ",\"rerror\":\"ignore\"" STANDARD,
        ",\"rerror\":\"report\"" STANDARD,
    };

    for (unsigned i = 0; i < 4; i++) {
        g_autofree char *path = lun_make_image();
        MqDev *d = lun_begin_with(NULL, lun_vm_args(path, fails,
                                                    props[i % 3], ""));
        QTestState *from = d->qts, *to;
        MqCmd cmd = status_cmd(7, 256);
        MqSlot *slot = mq_post_cmd(mq_queue(d, 1), &cmd);
        Status all[STATUS_MAX];
        static MqAnswer a;

        mq_flush(mq_queue(d, 1));
        if (i % 3 == 0) {
            qtest_qmp_eventwait(from, "STOP");
            if (i == 3) {
                to = destination(stops);
                mq_migrate(from, to);
                mq_migrated(d, to);
                qtest_quit(from);
            }
            qtest_qmp_assert_success(d->qts, "{'execute': 'cont'}");
        }
        mq_wait(slot);
        mq_read_resp(slot, &a.resp, sizeof(a.resp));
        qtest_memread(d->qts, slot->data, a.in, cmd.in_len);
        mq_release(slot);
        if (i == 2) {
            mq_expect_sense(&cmd, &a, ABORTED_COMMAND, ASC_IO_ERROR);
        } else {
            g_assert_cmpuint(parse_status(&cmd, &a, all), ==, 1);
            g_assert_cmpuint(all[0].is, ==, MAPPED);
            g_assert_cmpuint(all[0].blocks, ==, i == 1 ? 1 : LUN_BLOCKS - 7);
        }
        lun_end(d);
    }
}

/* Clusters of a block each: what a table of the image tells of, and tables */
enum {
    STATUS_TABLE = LUN_BLOCK / 8, STATUS_TABLES = LUN_BLOCKS / STATUS_TABLE,
};

/* How a command is kept from going on between two of its steps */
typedef enum Ended { BY_ABORT, BY_RESET, BY_STOP } Ended;

/*
 * A read of the image gets through once in a second.  A throttle group that is
 * made now goes by the VM's clock, which stands still until it is told to step.
 */
static void slow_down(MqDev *d)
{
    qtest_qmp_assert_success(d->qts, "{'execute': 'object-add',"
        " 'arguments': {'qom-type': 'throttle-group', 'id': 'tg'}}");
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-add',"
        " 'arguments': {'driver': 'throttle', 'node-name': 'slow',"
        " 'throttle-group': 'tg', 'file': 'plain'}}");
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-reopen',"
        " 'arguments': {'options': [{'driver': 'qcow2', 'node-name': 'disk',"
        " 'file': 'slow'}]}}");
    mq_limit_iops(d, "tg", 1);
}

/* The TMF's answer and that of its command come after one more read. */
static uint8_t abort_held(MqDev *d, uint64_t tag, MqSlot *slot)
{
    MqSlot *tmf = mq_abort_held(d, slot, LUN_HD, tag);

    qtest_clock_step(d->qts, NANOSECONDS_PER_SECOND);
    return mq_end_tmf(tmf);
}

/*
 * Each table of the image that is looked into is read first: to begin with,
 * the one of reference counts, which gets through.  The next one is held; a
 * reset or a stop lets it go.  Whoever ends the command needn't wait for those
 * behind it.
 */
static void run_lba_status_ended(MqDev *d, Ended how)
{
    MqCmd cmd = status_cmd(0, 4096);
    MqSlot *slot = mq_post_cmd(mq_queue(d, 1), &cmd);
    static MqAnswer a;

    mq_flush(mq_queue(d, 1));
    g_assert_true(mq_wait_taken(d, slot, 0, LUN_HD, cmd.tag));
    if (how == BY_STOP) {
        qtest_qmp_assert_success(d->qts, "{'execute': 'stop'}");
        mq_limit_iops(d, "tg", 0);
        qtest_qmp_assert_success(d->qts, "{'execute': 'cont'}");
    } else {
        uint8_t answer = how == BY_ABORT
            ? abort_held(d, cmd.tag, slot)
            : mq_tmf(d, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, LUN_HD, 0);

        g_assert_cmpuint(answer, ==, VIRTIO_SCSI_S_OK);
        mq_reap(mq_queue(d, 1));
        g_assert_true(slot->done);
    }
    mq_wait(slot);
    mq_read_resp(slot, &a.resp, sizeof(a.resp));
    qtest_memread(d->qts, slot->data, a.in, cmd.in_len);
    mq_release(slot);
    if (how == BY_STOP) {
        Status all[STATUS_MAX];

        g_assert_cmpuint(parse_status(&cmd, &a, all), ==,
                         2 * STATUS_TABLES);
    } else {
        g_assert_cmpuint(a.resp.response, ==, how == BY_ABORT
                         ? VIRTIO_SCSI_S_ABORTED : VIRTIO_SCSI_S_RESET);
    }
}

static void test_lba_status_ended(void)
{
    g_autofree char *path = lun_make_qcow2_with(LUN_BLOCK, LUN_BYTES);
    MqDev *d = lun_begin_with(NULL, lun_vm_args(path, QCOW2, STANDARD, ""));
    Status all[STATUS_MAX];
    int fd = dup(lun_hd_fd);

    for (unsigned i = 0; i < STATUS_TABLES; i++) {
        write_block(d, i * STATUS_TABLE);
    }
    lun_end(d);

    for (Ended how = BY_ABORT; how <= BY_STOP; how++) {
        g_autofree char *nodes = g_strdup_printf(
            "-blockdev '{\"driver\":\"qcow2\",\"node-name\":\"disk\","
            "\"file\":{\"driver\":\"file\",\"node-name\":\"plain\","
            "\"locking\":\"off\",\"filename\":\"/proc/%d/fd/%d\"}}'",
            (int)getpid(), fd);

        lun_hd_fd = dup(fd);
        d = lun_begin_with(NULL, lun_vm_args_of(nodes, STANDARD, ""));
        slow_down(d);
        run_lba_status_ended(d, how);
        mq_limit_iops(d, "tg", 0);
        mq_clear_ua(mq_queue(d, 0), 0, LUN_HD);
        g_assert_cmpuint(get_status(d, 0, all), ==, 2 * STATUS_TABLES);
        for (unsigned i = 0; i < 2 * STATUS_TABLES; i++) {
            g_assert_cmpuint(all[i].is, ==, i % 2 ? DEALLOCATED : MAPPED);
            g_assert_cmpuint(all[i].blocks, ==, i % 2 ? STATUS_TABLE - 1 : 1);
        }
        lun_end(d);
    }
    close(fd);
}

/*
 * Sizes and FUA
 */

/* What has no room for so many blocks says that they are more. */
static void test_huge(void)
{
    static const uint64_t blocks = 8ULL * GiB;
    g_autofree char *path = lun_make_qcow2_with(LUN_CLUSTER,
                                                blocks * LUN_BLOCK);
    MqDev *d = lun_begin_with(NULL, lun_vm_args(path, QCOW2, "", ""));
    MqCmd cmd;
    static MqAnswer a;

    lun_expect_huge(d, blocks);

    /* The block descriptor of the mode data */
    cmd = mq_cmd(LUN_HD, MODE_SENSE);
    cmd.cdb[2] = 0x08;
    cmd.cdb[4] = cmd.in_len = 12;
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 12);
    g_assert_cmpuint(a.in[3], ==, 8);
    g_assert_cmpuint(lun_field(a.in + 5, 3), ==, 0);

    /* And the last block is there. */
    cmd = mq_cmd(LUN_HD, READ_16);
    stq_be_p(cmd.cdb + 2, blocks - 1);
    cmd.cdb[13] = 1;
    cmd.in_len = LUN_BLOCK;
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, LUN_BLOCK);
    g_assert_true(mq_all_bytes(a.in, LUN_BLOCK, 0));
    lun_end(d);
}

/* A READ with FUA is one of what is on the medium: it flushes first. */
static void test_read_fua(void)
{
    static const char fails[] =
        "\"driver\":\"blkdebug\",\"inject-error\":[{\"event\":\"none\","
        "\"iotype\":\"flush\",\"once\":true}],\"image\":";
    g_autofree char *path = lun_make_image();
    MqDev *d = lun_begin_with(NULL, lun_vm_args(path, fails, "", ""));
    MqCmd cmd = range_cmd(READ_10, 8, 50, 4);
    uint8_t want[4 * LUN_BLOCK];
    static MqAnswer a;

    mq_fill_pattern(want, 50, 4, 0);
    cmd.in_len = sizeof(want);
    write_block(d, 10);
    lun_run(d, &cmd, &a);
    mq_expect_sense(&cmd, &a, ABORTED_COMMAND, ASC_IO_ERROR);
    cmd.tag = mq_next_tag();
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, sizeof(want));
    g_assert_cmpmem(a.in, sizeof(want), want, sizeof(want));
    lun_end(d);
}

/*
 * Migration
 */

/* What the guest knows of its disk, the disk stays. */
static void test_migrate(void)
{
    for (unsigned i = 0; i < 4; i++) {
        bool before = i & 1, after = i & 2;
        MqDev *d = lun_begin(before ? STANDARD : "", "");
        QTestState *from = d->qts, *to = destination(after ? STANDARD : "");

        g_assert_cmpint(mq_try_migrate(from, to), ==, before == after);
        if (before == after) {
            mq_migrated(d, to);
            qtest_quit(from);
        } else {
            qtest_quit(to);
            qtest_qmp_assert_success(from, "{'execute': 'cont'}");
        }
        lun_end(d);
    }
}

/*
 * No medium
 */

static void expect_no_medium(MqDev *d, uint16_t lun, uint8_t opcode,
                             bool is_there)
{
    MqCmd cmd = mq_cmd(lun, opcode);
    static MqAnswer a;

    lun_run(d, &cmd, &a);
    mq_expect_sense(&cmd, &a, is_there ? NOT_READY : ILLEGAL_REQUEST,
                    is_there ? ASC_NO_MEDIUM : ASC_OPCODE);
}

/* First that a command isn't there, then that the medium isn't */
static void test_no_medium(void)
{
    static const uint8_t for_disks[] = {
        UNMAP, WRITE_SAME_10, WRITE_SAME_16, WRITE_VERIFY_10,
    };
    static const uint8_t for_both[] = {
        TEST_UNIT_READY, READ_CAPACITY_10, READ_10, VERIFY_10, MODE_SELECT,
        SYNCHRONIZE_CACHE,
    };
    static MqAnswer a;

    for (unsigned standard = 0; standard < 2; standard++) {
        MqDev *d = lun_begin(standard ? ",\"removable\":true" STANDARD
                                      : ",\"removable\":true",
                             standard ? STANDARD : "");

        for (unsigned lun = LUN_HD; lun <= LUN_CD; lun++) {
            MqCmd cmd = mq_cmd(lun, START_STOP);

            cmd.cdb[4] = 2;         /* eject */
            lun_run(d, &cmd, &a);
            mq_assert_good(&a.resp);
            for (unsigned i = 0; i < ARRAY_SIZE(for_disks); i++) {
                expect_no_medium(d, lun, for_disks[i],
                                 lun == LUN_HD || !standard);
            }
            for (unsigned i = 0; i < ARRAY_SIZE(for_both); i++) {
                expect_no_medium(d, lun, for_both[i], true);
            }
        }
        lun_end(d);
    }
}

static const LunTest disk_tests[] = {
    { "disk/verify/data", test_verify },
    { "disk/verify/migrate", test_verify_migrate },
    { "disk/write-same/ndob", test_ndob },
    { "disk/write-same/limit", test_write_same },
    { "disk/write-same/longer", test_write_same_longer },
    { "disk/sync-cache", test_sync_cache },
    { "disk/unmap/neighbours", test_unmap_neighbours },
    { "disk/unmap/range", test_unmap_range },
    { "disk/unmap/limits", test_unmap_limits },
    { "disk/lba-status/clusters", test_lba_status },
    { "disk/lba-status/full", test_lba_status_full },
    { "disk/lba-status/blocks", test_lba_status_blocks },
    { "disk/lba-status/many", test_lba_status_many },
    { "disk/lba-status/error", test_lba_status_error },
    { "disk/lba-status/ended", test_lba_status_ended },
    { "disk/huge", test_huge },
    { "disk/read-fua", test_read_fua },
    { "disk/block-size", test_block_size },
    { "disk/migrate", test_migrate },
    { "disk/no-medium", test_no_medium },
};

int main(int argc, char **argv)
{
    return lun_test_main(argc, argv, disk_tests, ARRAY_SIZE(disk_tests));
}
