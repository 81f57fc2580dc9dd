/*
 * virtio-scsi: disks that are passed through, on a host that fails
 *
 * What a guest is told of each way in which SG_IO ends, and by what policy; the
 * CDBs that a device gets; and commands that are cancelled or restarted.  The
 * devices are those of fake-sg-io.c; virtio_scsi_nested has real ones.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib-unix.h>
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "scsi/constants.h"
#include "scsi/utils.h"
#include "fake-sg-io.h"
#include "virtio-scsi-lun.h"

#define ASC_IO          0x0006
#define ASC_PROTECTED   0x2700
#define SEED            5
#define STOPS           ",\"rerror\":\"stop\",\"werror\":\"stop\""

static int hold[2];     /* pipe: what FAKE_SG_HELD waits for */

/* LUN_HD passes the disk through, LUN_CD the rom drive. */
static char *vm_args(const char *node_props, const char *props)
{
    return g_strdup_printf("-machine pc -m 256M -nodefaults"
        " -object iothread,id=iot0 -object iothread,id=iot1"
        " -blockdev '{\"driver\":\"host_device\",\"node-name\":\"disk\","
        "\"locking\":\"off\",\"filename\":\"" FAKE_SG_DISK "\"%s}'"
        " -blockdev '{\"driver\":\"host_device\",\"node-name\":\"rom\","
        "\"locking\":\"off\",\"read-only\":true,"
        "\"filename\":\"" FAKE_SG_ROM "\"}'"
        " -device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"vs\","
        "\"addr\":\"9\",\"num_queues\":2,\"virtqueue_size\":16,"
        "\"iothread-vq-mapping\":[{\"iothread\":\"iot0\"},"
        "{\"iothread\":\"iot1\"}]}'"
        " -device '{\"driver\":\"scsi-block\",\"id\":\"hd\",\"bus\":\"vs.0\","
        "\"scsi-id\":0,\"lun\":%u,\"drive\":\"disk\"%s}'"
        " -device '{\"driver\":\"scsi-block\",\"id\":\"cd\",\"bus\":\"vs.0\","
        "\"scsi-id\":0,\"lun\":%u,\"drive\":\"rom\"}'",
        node_props, LUN_HD, props, LUN_CD);
}

/* QEMU learns the size of the disk from what the guest is answered. */
static MqDev *begin(const char *node_props, const char *props)
{
    MqDev *d;

    lun_hd_fd = -1;     /* which lun_end() closes */
    d = lun_begin_with(NULL, vm_args(node_props, props));
    lun_expect_huge(d, FAKE_SG_BLOCKS);
    return d;
}

static MqCmd rw_cmd(uint16_t lun, uint8_t opcode, uint64_t lba,
                    uint32_t blocks, const void *out)
{
    size_t len = blocks * FAKE_SG_BLOCK;
    MqCmd cmd = mq_cmd(lun, opcode);

    switch (opcode >> 5) {
    case 0:
        lun_set_field(cmd.cdb + 1, 3, lba);
        cmd.cdb[4] = blocks;
        break;
    case 1:
        lun_set_field(cmd.cdb + 2, 4, lba);
        lun_set_field(cmd.cdb + 7, 2, blocks);
        break;
    case 5:
        lun_set_field(cmd.cdb + 2, 4, lba);
        lun_set_field(cmd.cdb + 6, 4, blocks);
        break;
    default:
        stq_be_p(cmd.cdb + 2, lba);
        lun_set_field(cmd.cdb + 10, 4, blocks);
    }
    cmd.out = out;
    *(out ? &cmd.out_len : &cmd.in_len) = len;
    return cmd;
}

static void run_good(MqDev *d, const MqCmd *cmd)
{
    static MqAnswer a;

    lun_run(d, cmd, &a);
    mq_expect_moved(cmd, &a, MAX(cmd->in_len, cmd->out_len));
}

/*
 * Data and CDBs
 */

static void expect_stored(MqDev *d, uint64_t lba, unsigned blocks,
                          uint32_t seed)
{
    g_autofree uint8_t *want = g_malloc(blocks * FAKE_SG_BLOCK);
    MqCmd cmd = rw_cmd(LUN_HD, READ_16, lba, blocks, NULL);
    static MqAnswer a;

    mq_fill_pattern(want, lba, blocks, seed);
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, cmd.in_len);
    g_assert_cmpmem(a.in, cmd.in_len, want, cmd.in_len);
}

/* Written and compared by commands of each length */
static void test_data(void)
{
    static const uint8_t writes[] = {
        WRITE_6, WRITE_10, WRITE_12, WRITE_16, WRITE_VERIFY_10,
        WRITE_VERIFY_12, WRITE_VERIFY_16,
    };
    static const uint8_t verifies[] = { VERIFY_10, VERIFY_12, VERIFY_16 };
    enum { BLOCKS = 20, LBA = 30 };
    uint8_t data[BLOCKS * FAKE_SG_BLOCK];
    MqDev *d = begin("", "");

    for (unsigned i = 0; i < ARRAY_SIZE(writes); i++) {
        MqCmd cmd = rw_cmd(LUN_HD, writes[i], LBA, BLOCKS, data);

        mq_fill_pattern(data, LBA, BLOCKS, SEED + i);
        run_good(d, &cmd);
        expect_stored(d, LBA, BLOCKS, SEED + i);
        for (unsigned j = 0; j < ARRAY_SIZE(verifies); j++) {
            static MqAnswer a;

            cmd = rw_cmd(LUN_HD, verifies[j], LBA, BLOCKS, data);
            cmd.cdb[1] = 2;
            run_good(d, &cmd);
            cmd = rw_cmd(LUN_HD, verifies[j], LBA + 1, BLOCKS, data);
            cmd.cdb[1] = 2;
            lun_run(d, &cmd, &a);
            mq_expect_sense(&cmd, &a, MISCOMPARE, ASC_DIFFERS);
        }
    }
    lun_end(d);
}

static void expect_echo(MqDev *d, const MqCmd *cmd, const uint8_t *cdb,
                        unsigned len)
{
    static MqAnswer a;
    const FakeSgEcho *echo = (const FakeSgEcho *)a.in;

    lun_run(d, cmd, &a);
    mq_expect_moved(cmd, &a, cmd->in_len);
    g_assert_cmpmem(echo->cdb, echo->len, cdb, len);
}

/* The device gets what the guest sends, and never a shorter CDB. */
static void test_cdbs(void)
{
    static const uint8_t longer[10] = { READ_10, 0, 0, 3, 0, 5, 0, 0, 1 };
    static const struct {
        uint8_t opcode, len, group_at;
        uint64_t lba;
    } cdbs[] = {
        { READ_6, 6, 0, 0x1ffff }, { READ_10, 10, 6, 0x30000 },
        { READ_12, 12, 10, 0x30000 }, { READ_16, 16, 14, 0x30000 },
        { READ_16, 16, 14, FAKE_SG_BLOCKS - 1 },
    };
    static MqAnswer a;
    MqDev *d = begin("", "");
    MqCmd cmd;

    for (unsigned i = 0; i < ARRAY_SIZE(cdbs); i++) {
        cmd = rw_cmd(LUN_HD, cdbs[i].opcode, cdbs[i].lba, 1, NULL);
        if (cdbs[i].group_at) {
            cmd.cdb[1] |= 0x18;     /* DPO, FUA */
            cmd.cdb[cdbs[i].group_at] = 0x0b;
        }
        expect_echo(d, &cmd, cmd.cdb, cdbs[i].len);
    }
    cmd = rw_cmd(LUN_HD, READ_6, 0x30005, 1, NULL);
    expect_echo(d, &cmd, longer, sizeof(longer));

    /* No LBA is right behind the last one. */
    cmd = rw_cmd(LUN_HD, READ_16, FAKE_SG_BLOCKS, 1, NULL);
    lun_expect_refusal(d, &cmd, ASC_RANGE);
    cmd = rw_cmd(LUN_HD, WRITE_16, FAKE_SG_BLOCKS - 1, 2, a.in);
    lun_expect_refusal(d, &cmd, ASC_RANGE);

    /* Up to SCSI-2, byte 1 has the LUN there; INQUIRY tells the version. */
    cmd = rw_cmd(LUN_HD, READ_10, 0x30000, 1, NULL);
    cmd.cdb[1] = 0x20;
    expect_echo(d, &cmd, cmd.cdb, 10);
    cmd = mq_cmd(LUN_HD, INQUIRY);
    cmd.cdb[4] = cmd.in_len = 36;
    run_good(d, &cmd);
    cmd = rw_cmd(LUN_HD, READ_10, 0x30000, 1, NULL);
    cmd.cdb[1] = 0x20;
    lun_expect_refusal(d, &cmd, ASC_FIELD);
    lun_end(d);
}

/* Nobody but the device knows how long these are, and where their data go. */
static void test_vendor(void)
{
    static uint8_t data[3 * FAKE_SG_BLOCK];
    MqDev *d = begin("", "");
    MqCmd cmd = mq_cmd(LUN_HD, FAKE_SG_VENDOR_IN);

    for (unsigned i = 1; i < 16; i++) {
        cmd.cdb[i] = 0xa0 + i;
    }
    cmd.in_len = 100;
    expect_echo(d, &cmd, cmd.cdb, 16);

    mq_fill_pattern(data, 0, 3, SEED);
    cmd = mq_cmd(LUN_HD, FAKE_SG_VENDOR_OUT);
    cmd.out = data;
    cmd.out_len = sizeof(data);
    run_good(d, &cmd);
    expect_stored(d, 0, 3, SEED);

    cmd = mq_cmd(LUN_HD, 0xc0);
    lun_expect_refusal(d, &cmd, ASC_OPCODE);
    lun_end(d);
}

static void test_read_only(void)
{
    static const uint8_t data[FAKE_SG_BLOCK] = { 1 };
    MqDev *d = begin(",\"read-only\":true", "");
    MqCmd cmd = rw_cmd(LUN_HD, WRITE_10, 0, 1, data);
    static MqAnswer a;

    lun_run(d, &cmd, &a);
    mq_expect_sense(&cmd, &a, DATA_PROTECT, ASC_PROTECTED);
    cmd = rw_cmd(LUN_HD, READ_10, 0, 1, NULL);
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, cmd.in_len);
    g_assert_true(mq_all_bytes(a.in, cmd.in_len, 0));
    lun_end(d);
}

/*
 * Errors
 */

/* How the device ends a command, and what the guest shall be told */
typedef struct End {
    FakeSgKind kind;
    uint8_t key;
    uint16_t value;
    uint8_t response, status;
    uint8_t sense_key;
    uint16_t asc;
    bool for_guest;     /* it is no error of the host: nothing stops */
} End;

#define END_HOST(value, response) \
    { FAKE_SG_HOST, 0, value, VIRTIO_SCSI_S_##response }
#define END_STATUS(status) { FAKE_SG_STATUS, 0, status, 0, status }
#define END_SENSE(key, asc, for_guest) \
    { FAKE_SG_SENSE, key, asc, 0, CHECK_CONDITION, key, asc, for_guest }

static const End ends[] = {
    END_HOST(SCSI_HOST_NO_LUN, INCORRECT_LUN),
    END_HOST(SCSI_HOST_BUSY, BUSY),
    END_HOST(SCSI_HOST_TIME_OUT, ABORTED),
    END_HOST(SCSI_HOST_BAD_RESPONSE, BAD_TARGET),
    END_HOST(SCSI_HOST_ABORTED, ABORTED),
    END_HOST(6, FAILURE),
    END_HOST(SCSI_HOST_ERROR, FAILURE),
    END_HOST(SCSI_HOST_RESET, RESET),
    END_HOST(SCSI_HOST_TRANSPORT_DISRUPTED, TRANSPORT_FAILURE),
    END_HOST(SCSI_HOST_TARGET_FAILURE, TARGET_FAILURE),
    END_HOST(SCSI_HOST_RESERVATION_ERROR, NEXUS_FAILURE),
    END_HOST(SCSI_HOST_ALLOCATION_FAILURE, FAILURE),
    END_HOST(0xff, FAILURE),
    END_STATUS(BUSY),
    END_STATUS(TASK_SET_FULL),
    { FAKE_SG_STATUS, 0, RESERVATION_CONFLICT, 0, RESERVATION_CONFLICT,
      .for_guest = true },
    END_SENSE(MEDIUM_ERROR, 0x1100, false),
    END_SENSE(HARDWARE_ERROR, 0x4400, false),
    END_SENSE(ILLEGAL_REQUEST, 0x2100, false),
    END_SENSE(NOT_READY, 0x0401, true),
    END_SENSE(UNIT_ATTENTION, 0x2900, true),
    END_SENSE(ABORTED_COMMAND, 0x4700, true),
    END_SENSE(MISCOMPARE, 0x1d00, true),
    { FAKE_SG_DRIVER, 0, SG_ERR_DRIVER_TIMEOUT, 0, BUSY },
    { FAKE_SG_ERRNO, 0, EIO, 0, CHECK_CONDITION, ABORTED_COMMAND, ASC_IO },
    { FAKE_SG_ERRNO, 0, ENOMEM, 0, CHECK_CONDITION, HARDWARE_ERROR, 0x4400 },
};

static void expect_end(const MqCmd *cmd, const MqAnswer *a, const End *end)
{
    if (a->resp.response != end->response || a->resp.status != end->status) {
        mq_describe(cmd, a);
    }
    g_assert_cmpuint(a->resp.response, ==, end->response);
    g_assert_cmpuint(a->resp.status, ==, end->status);
    if (end->status == CHECK_CONDITION) {
        mq_expect_sense(cmd, a, end->sense_key, end->asc);
    } else {
        g_assert_cmpuint(le32_to_cpu(a->resp.sense_len), ==, 0);
    }
}

static MqCmd end_cmd(const End *end, uint16_t lun, bool write, uint32_t bits)
{
    static const uint8_t data[FAKE_SG_BLOCK] = { 0x5a };

    return rw_cmd(lun, write ? WRITE_10 : READ_10,
                  FAKE_SG_LBA(end->kind, end->key, end->value) | bits, 1,
                  write ? data : NULL);
}

static int64_t failed(MqDev *d, bool write)
{
    return mq_disk_stat(d, "hd", write ? "failed_wr_operations"
                                       : "failed_rd_operations");
}

/* On the way of a disk's data, and on that of other commands, a rom's READ */
static void test_errors(void)
{
    MqDev *d = begin("", ",\"werror\":\"report\"");
    static MqAnswer a;

    for (unsigned i = 0; i < ARRAY_SIZE(ends); i++) {
        g_test_message("kind %u, key %x, value %x", ends[i].kind, ends[i].key,
                       ends[i].value);
        for (unsigned write = 0; write < 2; write++) {
            MqCmd cmd = end_cmd(&ends[i], LUN_HD, write, 0);
            int64_t before = failed(d, write);

            lun_run(d, &cmd, &a);
            expect_end(&cmd, &a, &ends[i]);
            g_assert_cmpint(failed(d, write), ==,
                            before + !ends[i].for_guest);
        }
        if (ends[i].kind != FAKE_SG_SENSE) {
            MqCmd cmd = end_cmd(&ends[i], LUN_CD, false, 0);

            lun_run(d, &cmd, &a);
            expect_end(&cmd, &a, &ends[i]);
        }
    }
    lun_end(d);
}

/* What isn't for the guest stops the VM, and is tried once more. */
static void test_stop(void)
{
    MqDev *d = begin("", STOPS);

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(ends); i++) {
        const End *end = &ends[i / 2];
        MqCmd cmd = end_cmd(end, LUN_HD, i % 2, FAKE_SG_ONCE);
        MqSlot *slot = mq_post_cmd(mq_queue(d, 1), &cmd);
        static MqAnswer a;

        mq_flush(mq_queue(d, 1));
        if (!end->for_guest) {
            qtest_qmp_eventwait(d->qts, "STOP");
            mq_reap(mq_queue(d, 1));
            g_assert_false(slot->done);
            qtest_qmp_assert_success(d->qts, "{'execute': 'cont'}");
        }
        mq_wait(slot);
        mq_read_resp(slot, &a.resp, sizeof(a.resp));
        mq_release(slot);
        if (end->for_guest) {
            expect_end(&cmd, &a, end);
            run_good(d, &cmd);
        } else {
            mq_assert_good(&a.resp);
        }
    }
    lun_end(d);
}

/* As above; but then the guest hears of no error. */
static void test_ignore(void)
{
    MqDev *d = begin("", ",\"rerror\":\"ignore\",\"werror\":\"ignore\"");
    static MqAnswer a;

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(ends); i++) {
        const End *end = &ends[i / 2];
        MqCmd cmd = end_cmd(end, LUN_HD, i % 2, 0);

        lun_run(d, &cmd, &a);
        if (end->for_guest) {
            expect_end(&cmd, &a, end);
        } else {
            mq_assert_good(&a.resp);
        }
    }
    lun_end(d);
}

/*
 * Cancelled and restarted
 */

/* The host has the command, and gives it back when it is told to. */
static void test_cancel(void)
{
    MqDev *d = begin("", "");

    for (unsigned lun = LUN_HD; lun <= LUN_CD; lun++) {
        MqCmd cmd = rw_cmd(lun, READ_10, FAKE_SG_LBA(FAKE_SG_HELD, 0, 0), 1,
                           NULL);
        MqSlot *slot = mq_post_cmd(mq_queue(d, 1), &cmd), *tmf;
        struct virtio_scsi_cmd_resp resp;

        mq_flush(mq_queue(d, 1));
        g_assert_true(mq_wait_taken(d, slot, 0, lun, cmd.tag));
        tmf = mq_abort_held(d, slot, lun, cmd.tag);
        g_assert_cmpint(write(hold[1], "", 1), ==, 1);

        g_assert_cmpuint(mq_end_tmf(tmf), ==, VIRTIO_SCSI_S_OK);
        mq_reap(mq_queue(d, 1));
        g_assert_true(slot->done);
        mq_read_resp(slot, &resp, sizeof(resp));
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_ABORTED);
        mq_release(slot);
    }
    lun_end(d);
}

/* The destination sends the CDB that the source would have sent. */
static void test_migrate(void)
{
    static const End error = { FAKE_SG_HOST, 0, SCSI_HOST_BUSY };
    static const uint8_t opcodes[] = { READ_10, READ_12, READ_16, WRITE_16 };
    static const uint8_t group_at[] = { 6, 10, 14, 14 };

    for (unsigned i = 0; i < ARRAY_SIZE(opcodes); i++) {
        bool write = opcodes[i] == WRITE_16;
        MqDev *d = begin("", STOPS);
        g_autofree char *args = vm_args("", STOPS);
        g_autofree char *to_args = g_strdup_printf("%s -incoming defer", args);
        QTestState *from = d->qts, *to = qtest_init(to_args);
        MqCmd cmd = end_cmd(&error, LUN_HD, write, FAKE_SG_ONCE);
        uint8_t data[FAKE_SG_BLOCK];
        static MqAnswer a;
        MqSlot *slot;

        mq_fill_pattern(data, 0, 1, SEED);
        cmd = rw_cmd(LUN_HD, opcodes[i],
                     FAKE_SG_LBA(error.kind, 0, error.value) | FAKE_SG_ONCE, 1,
                     write ? data : NULL);
        cmd.cdb[group_at[i]] = 0x0b;
        slot = mq_post_cmd(mq_queue(d, 1), &cmd);
        mq_flush(mq_queue(d, 1));
        qtest_qmp_eventwait(from, "STOP");
        mq_migrate(from, to);
        mq_migrated(d, to);
        qtest_quit(from);

        /* Its first time there, as for each of them */
        qtest_qmp_assert_success(to, "{'execute': 'cont'}");
        qtest_qmp_eventwait(to, "STOP");
        qtest_qmp_assert_success(to, "{'execute': 'cont'}");
        mq_wait(slot);
        mq_read_resp(slot, &a.resp, sizeof(a.resp));
        mq_assert_good(&a.resp);
        if (write) {
            mq_release(slot);
            expect_stored(d, 0, 1, SEED);
        } else {
            const FakeSgEcho *echo = (const FakeSgEcho *)a.in;

            qtest_memread(to, slot->data, a.in, cmd.in_len);
            g_assert_cmpmem(echo->cdb, echo->len, cmd.cdb,
                            group_at[i] + (i ? 2 : 4));
            mq_release(slot);
        }
        lun_end(d);
    }
}

/*
 * Devices that can't be passed through
 */

static void test_refused(void)
{
    static const struct {
        const char *path, *props, *error;
    } rows[] = {
        { FAKE_SG_OLD, "", "scsi generic interface too old" },
        { FAKE_SG_MUTE, "", "INQUIRY failed" },
        { FAKE_SG_DISK, ",\"scsi-id\":300", "scsi-id" },
        { FAKE_SG_DISK, ",\"rotation_rate\":1", NULL },
    };
    QTestState *qts = qtest_init("-machine pc -nodefaults"
                                 " -device virtio-scsi-pci,id=vs");

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        g_autofree char *node = g_strdup_printf("node%u", i);
        g_autofree char *text = g_strdup_printf("{\"execute\":\"device_add\","
            "\"arguments\":{\"driver\":\"scsi-block\",\"id\":\"new\","
            "\"bus\":\"vs.0\",\"drive\":\"%s\"%s}}", node, rows[i].props);
        g_autoptr(QDict) resp = NULL;

        qtest_qmp_assert_success(qts, "{'execute': 'blockdev-add',"
            " 'arguments': {'driver': 'host_device', 'node-name': %s,"
            " 'locking': 'off', 'filename': %s}}", node, rows[i].path);
        qtest_qmp_send_raw(qts, "%s", text);
        resp = qtest_qmp_receive(qts);
        if (rows[i].error) {
            g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(resp,
                                    "error"), "desc"), rows[i].error));
            qtest_qmp_assert_success(qts, "{'execute': 'blockdev-del',"
                " 'arguments': {'node-name': %s}}", node);
        } else {
            g_assert_true(qdict_haskey(resp, "return"));
        }
    }
    qtest_quit(qts);
}

static const LunTest block_tests[] = {
    { "block/data", test_data },
    { "block/cdbs", test_cdbs },
    { "block/vendor", test_vendor },
    { "block/read-only", test_read_only },
    { "block/errors", test_errors },
    { "block/stop", test_stop },
    { "block/ignore", test_ignore },
    { "block/cancel", test_cancel },
    { "block/migrate", test_migrate },
    { "block/refused", test_refused },
};

int main(int argc, char **argv)
{
    g_autofree char *dir = g_path_get_dirname(argv[0]);
    g_autofree char *library = g_build_filename(dir, FAKE_SG_LIBRARY, NULL);
    g_autofree char *fd = NULL;

    g_assert_true(g_file_test(library, G_FILE_TEST_EXISTS));
    g_assert_true(g_unix_open_pipe(hold, 0, NULL));
    fd = g_strdup_printf("%d", hold[0]);
    g_setenv(FAKE_SG_FD, fd, true);
    /* Every QEMU that is started inherits both. */
    g_setenv("LD_PRELOAD", library, true);
    return lun_test_main(argc, argv, block_tests, ARRAY_SIZE(block_tests));
}
