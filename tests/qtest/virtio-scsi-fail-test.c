/*
 * virtio-scsi: disks that fail on all queues at once
 *
 * What guest and QMP see of an error of each kind, by each policy; that what
 * waited for the repair is done then, once; and images that are cut, resized,
 * exchanged or copied while queues of several IOThreads are at work.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "scsi/constants.h"
#include "virtio-scsi-lun.h"

#define NUM_QUEUES  4
#define FLUSH_ERRORS 16     /* more than commands and a stop of the VM need */
#define SEED_OLD    0       /* as lun_make_image() does */
#define SEED_NEW    7

#define QMP(d, ...) qtest_qmp_assert_success((d)->qts, __VA_ARGS__)

/*
 * The VM: LUN_HD is a node above "base", or above one that fails, "bad"
 */

#define FAIL_RAW    "\"driver\":\"raw\""
#define FAIL_QCOW2  "\"driver\":\"qcow2\""

static MqDev *fail_begin(const char *path, const char *format,
                         const char *hd_props)
{
    return lun_begin_with(NULL, g_strdup_printf("-machine pc -m 1G"
        " -object '{\"qom-type\":\"iothread\",\"id\":\"iot0\"}'"
        " -object '{\"qom-type\":\"iothread\",\"id\":\"iot1\"}'"
        " -object '{\"qom-type\":\"iothread\",\"id\":\"iot2\"}'"
        " -blockdev '{\"driver\":\"file\",\"node-name\":\"base\","
        "\"locking\":\"off\",\"discard\":\"unmap\",\"filename\":\"%s\"}'"
        " -blockdev '{%s,\"node-name\":\"disk\",\"discard\":\"unmap\","
        "\"file\":\"base\"}'"
        " -blockdev '{\"driver\":\"null-co\",\"node-name\":\"dvd\","
        "\"read-only\":true,\"read-zeroes\":true,\"size\":%u}'"
        " -device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"vs\","
        "\"addr\":\"9\",\"num_queues\":%u,\"virtqueue_size\":64,"
        "\"iothread-vq-mapping\":[{\"iothread\":\"iot0\"},"
        "{\"iothread\":\"iot1\"},{\"iothread\":\"iot2\"}]}'"
        " -device '{\"driver\":\"scsi-hd\",\"id\":\"hd\",\"drive\":\"disk\","
        "\"bus\":\"vs.0\",\"channel\":0,\"scsi-id\":0,\"lun\":%u%s}'"
        " -device '{\"driver\":\"scsi-cd\",\"id\":\"cd\",\"drive\":\"dvd\","
        "\"bus\":\"vs.0\",\"channel\":0,\"scsi-id\":0,\"lun\":%u}'",
        path, format, LUN_BYTES, NUM_QUEUES, LUN_HD, hd_props, LUN_CD));
}

static void add_node(MqDev *d, const char *command)
{
    g_autoptr(QDict) resp = NULL;

    qtest_qmp_send_raw(d->qts, "%s", command);
    resp = qtest_qmp_receive(d->qts);
    g_assert_true(qdict_haskey(resp, "return"));
}

/*
 * All requests of the node end, and QMP has been told of their errors.  It is
 * flushed; a flush that is to fail may not have done so yet.
 */
static void put_below(MqDev *d, const char *node)
{
    for (unsigned i = 0; i <= FLUSH_ERRORS; i++) {
        g_autoptr(QDict) resp = qtest_qmp(d->qts,
            "{'execute': 'blockdev-reopen', 'arguments': {'options': [{"
            "'driver': 'raw', 'node-name': 'disk', 'discard': 'unmap',"
            " 'file': %s}]}}", node);

        if (qdict_haskey(resp, "return")) {
            return;
        }
    }
    g_assert_not_reached();
}

static void repair(MqDev *d)
{
    put_below(d, "base");
    QMP(d, "{'execute': 'blockdev-del', 'arguments': {"
        "'node-name': 'bad'}}");
}

static void cont(MqDev *d)
{
    QMP(d, "{'execute': 'cont'}");
    qtest_qmp_eventwait(d->qts, "RESUME");
}

static void expect_vm(MqDev *d, const char *status)
{
    g_autoptr(QDict) resp = qtest_qmp(d->qts, "{'execute': 'query-status'}");

    g_assert_cmpstr(qdict_get_str(qdict_get_qdict(resp, "return"), "status"),
                    ==, status);
}

/*
 * Commands
 */

typedef enum Kind { READ, WRITE, FLUSH, DISCARD, ZERO, NUM_KINDS } Kind;

static const char *const iotypes[NUM_KINDS] = {
    "read", "write", "flush", "discard", "write-zeroes",
};

/* Of a command in flight; the driver copies what it writes. */
typedef struct Op {
    Kind kind;
    uint32_t lba;
    unsigned blocks;
    uint64_t tag;
    MqSlot *slot;
} Op;

static void op_post(MqDev *d, unsigned queue, Op *op)
{
    g_autofree uint8_t *out = g_malloc0(op->blocks * LUN_BLOCK + 24);
    MqCmd cmd = mq_cmd(LUN_HD, SYNCHRONIZE_CACHE);

    switch (op->kind) {
    case READ:
        cmd = mq_read10(LUN_HD, op->lba, op->blocks);
        break;
    case WRITE:
        mq_fill_pattern(out, op->lba, op->blocks, SEED_NEW);
        cmd = mq_write10(LUN_HD, op->lba, op->blocks, out);
        break;
    case DISCARD:
        cmd = mq_cmd(LUN_HD, UNMAP);
        lun_set_field(out, 2, 22);
        lun_set_field(out + 2, 2, 16);
        lun_set_field(out + 12, 4, op->lba);
        lun_set_field(out + 16, 4, op->blocks);
        cmd.cdb[8] = cmd.out_len = 24;
        cmd.out = out;
        break;
    case ZERO:
        cmd = mq_cmd(LUN_HD, WRITE_SAME_16);
        lun_set_field(cmd.cdb + 6, 4, op->lba);
        lun_set_field(cmd.cdb + 10, 4, op->blocks);
        cmd.out_len = LUN_BLOCK;
        cmd.out = out;
        break;
    default:
        break;
    }
    op->tag = cmd.tag;
    op->slot = mq_post_cmd(mq_queue(d, queue), &cmd);
    g_assert_nonnull(op->slot);
}

/* An answer in @resp, and none is to come any more */
static void op_wait(Op *op, struct virtio_scsi_cmd_resp *resp)
{
    mq_wait(op->slot);
    mq_read_resp(op->slot, resp, sizeof(*resp));
}

static bool is_pattern(const uint8_t *data, uint32_t lba, unsigned blocks,
                       uint32_t seed)
{
    g_autofree uint8_t *want = g_malloc(blocks * LUN_BLOCK);

    mq_fill_pattern(want, lba, blocks, seed);
    return !memcmp(data, want, blocks * LUN_BLOCK);
}

static void op_wait_good(Op *op)
{
    struct virtio_scsi_cmd_resp resp;

    op_wait(op, &resp);
    mq_assert_good(&resp);
    if (op->kind == READ) {
        size_t len = op->blocks * LUN_BLOCK;
        g_autofree uint8_t *in = g_malloc(len);

        mq_read_mem(op->slot->q->dev, op->slot->data, in, len);
        g_assert_true(is_pattern(in, op->lba, op->blocks, SEED_OLD));
    }
    mq_release(op->slot);
}

/* What the file has after a good Op */
static void expect_done(const Op *op, int fd)
{
    size_t len = op->blocks * LUN_BLOCK;
    g_autofree uint8_t *data = g_malloc(len);

    g_assert_cmpint(pread(fd, data, len, (off_t)op->lba * LUN_BLOCK), ==, len);
    switch (op->kind) {
    case WRITE:
        g_assert_true(is_pattern(data, op->lba, op->blocks, SEED_NEW));
        break;
    case DISCARD:
    case ZERO:
        g_assert_true(mq_all_bytes(data, len, 0));
        break;
    default:
        g_assert_true(is_pattern(data, op->lba, op->blocks, SEED_OLD));
    }
}

/* One of each queue */
static void expect_all_done(Op *ops)
{
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        op_wait_good(&ops[i]);
        expect_done(&ops[i], lun_hd_fd);
    }
}

static unsigned in_flight(MqDev *d)
{
    unsigned n = 0;

    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        mq_reap(mq_queue(d, i));
        n += mq_queue(d, i)->in_flight;
    }
    return n;
}

static void flush_all(MqDev *d)
{
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        mq_flush(mq_queue(d, i));
    }
}

/*
 * Errors of each kind, policies of each kind
 */

typedef struct Errno {
    int number;
    uint8_t status;
    uint8_t key;
    uint16_t asc;
} Errno;

static const Errno errnos[] = {
    { EIO, CHECK_CONDITION, ABORTED_COMMAND, 0x0006 },
    { ENOSPC, CHECK_CONDITION, DATA_PROTECT, 0x2707 },
    { ENOMEDIUM, CHECK_CONDITION, NOT_READY, ASC_NO_MEDIUM },
    { EBUSY, CHECK_CONDITION, ABORTED_COMMAND, 0x0006 },
    { ETIMEDOUT, CHECK_CONDITION, ABORTED_COMMAND, 0x0006 },
    { ENOTCONN, CHECK_CONDITION, ABORTED_COMMAND, 0x0006 },
    { ENOMEM, CHECK_CONDITION, HARDWARE_ERROR, 0x4400 },
    { EBADE, RESERVATION_CONFLICT, 0, 0 },
};

typedef struct Policy {
    const char *props;
    const char *on_read;
    const char *on_write;
    const char *on_enospc;      /* of a write */
} Policy;

static const Policy policies[] = {
    { "", "report", "report", "stop" },
    { ",\"rerror\":\"auto\",\"werror\":\"auto\"",
      "report", "report", "stop" },
    { ",\"rerror\":\"stop\",\"werror\":\"enospc\"",
      "stop", "report", "stop" },
    { ",\"rerror\":\"report\",\"werror\":\"report\"",
      "report", "report", "report" },
    { ",\"rerror\":\"ignore\",\"werror\":\"ignore\"",
      "ignore", "ignore", "ignore" },
    { ",\"rerror\":\"stop\",\"werror\":\"stop\"", "stop", "stop", "stop" },
    { ",\"rerror\":\"stop\",\"werror\":\"report\"",
      "stop", "report", "report" },
};

static const char *action_of(const Policy *p, Kind kind, int error)
{
    return kind == READ ? p->on_read
                        : error == ENOSPC ? p->on_enospc : p->on_write;
}

/*
 * @immediately: not by another round through the event loop.  Whoever stops the
 * VM or changes nodes flushes, so only so many flushes fail.
 */
static void add_bad(MqDev *d, Kind kind, int error, bool immediately)
{
    g_autoptr(GString) text = g_string_new("{\"execute\":\"blockdev-add\","
        "\"arguments\":{\"driver\":\"blkdebug\",\"node-name\":\"bad\","
        "\"image\":\"base\",\"discard\":\"unmap\",\"inject-error\":[");
    unsigned rules = kind == FLUSH ? FLUSH_ERRORS : 1;

    for (unsigned i = 0; i < rules; i++) {
        g_string_append_printf(text, "%s{\"event\":\"none\","
                               "\"iotype\":\"%s\",\"errno\":%d,"
                               "\"once\":%s,\"immediately\":%s}",
                               i ? "," : "", iotypes[kind], error,
                               rules > 1 ? "true" : "false",
                               immediately ? "true" : "false");
    }
    g_string_append(text, "]}}");
    add_node(d, text->str);
}

static void expect_event(QDict *event, Kind kind, int error,
                         const char *action)
{
    const QDict *data = qdict_get_qdict(event, "data");

    g_assert_cmpstr(qdict_get_str(data, "action"), ==, action);
    g_assert_cmpstr(qdict_get_str(data, "operation"), ==,
                    kind == READ ? "read" : "write");
    g_assert_cmpstr(qdict_get_str(data, "reason"), ==, strerror(error));
    /* It isn't told where nothing can stop the VM. */
    g_assert_cmpint(qdict_get_try_bool(data, "nospace", error == ENOSPC), ==,
                    error == ENOSPC);
    qobject_unref(event);
}

/*
 * All that QMP has to tell, with the node's requests ended: at least one event
 * and at most one for each error.  Those that don't stop the VM have to wait
 * for their second of the clock, which is ours.
 */
static void expect_events(MqDev *d, Kind kind, int error, const char *action)
{
    unsigned n = 0;
    QDict *event;

    qtest_clock_step(d->qts, 2 * 1000 * 1000 * 1000LL);
    qobject_unref(qtest_qmp(d->qts, "{'execute': 'query-status'}"));
    while ((event = qtest_qmp_event_ref(d->qts, "BLOCK_IO_ERROR"))) {
        expect_event(event, kind, error, action);
        n++;
    }
    g_assert_cmpuint(n, <=, NUM_QUEUES);
    g_assert_true(n || g_str_equal(action, "stop"));
}

static void post_each(MqDev *d, Kind kind, uint32_t lba, Op *ops)
{
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        ops[i] = (Op) { .kind = kind, .lba = lba + 16 * i, .blocks = 8 };
        op_post(d, i, &ops[i]);
    }
    flush_all(d);
}

static void run_error(MqDev *d, const Policy *p, const Errno *e, Kind kind,
                      uint32_t lba)
{
    const char *action = action_of(p, kind, e->number);
    bool stops = !g_strcmp0(action, "stop");
    Op ops[NUM_QUEUES];
    int64_t failed = mq_disk_stat(d, "hd", "failed_wr_operations");

    add_bad(d, kind, e->number, lba & 64);
    put_below(d, "bad");
    if (kind == FLUSH) {
        /* Without a write there is nothing to flush. */
        Op first = { .kind = WRITE, .lba = LUN_BLOCKS - 1, .blocks = 1 };

        op_post(d, 0, &first);
        mq_flush(mq_queue(d, 0));
        op_wait_good(&first);
    }
    post_each(d, kind, lba, ops);

    if (stops) {
        expect_event(qtest_qmp_eventwait_ref(d->qts, "BLOCK_IO_ERROR"), kind,
                     e->number, action);
        qtest_qmp_eventwait(d->qts, "STOP");
        expect_vm(d, "io-error");
        g_assert_cmpuint(in_flight(d), ==, NUM_QUEUES);
        repair(d);
        cont(d);
    } else {
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            struct virtio_scsi_cmd_resp resp;

            op_wait(&ops[i], &resp);
            if (!g_strcmp0(action, "ignore")) {
                mq_assert_good(&resp);
            } else {
                g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_OK);
                g_assert_cmpuint(resp.status, ==, e->status);
            }
            if (resp.status == CHECK_CONDITION) {
                g_assert_cmphex(resp.sense[2] & 0xf, ==, e->key);
                g_assert_cmphex(mq_asc(&resp), ==, e->asc);
            }
            mq_release(ops[i].slot);
        }
        repair(d);
        expect_vm(d, "running");
        if (kind == WRITE && !g_strcmp0(action, "report")) {
            g_assert_cmpint(mq_disk_stat(d, "hd", "failed_wr_operations"), ==,
                            failed + NUM_QUEUES);
        }
        /* Nothing has been done. */
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            expect_done(&(Op) { READ, ops[i].lba, ops[i].blocks }, lun_hd_fd);
        }
        expect_events(d, kind, e->number, action);
        post_each(d, kind, lba, ops);
    }
    expect_all_done(ops);
    if (stops) {
        expect_events(d, kind, e->number, action);
    }
    g_assert_cmpuint(in_flight(d), ==, 0);
}

static void test_errors(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(policies); i++) {
        g_autofree char *path = lun_make_image();
        MqDev *d = fail_begin(path, FAIL_RAW, policies[i].props);
        uint32_t lba = 0;

        g_test_message("policies%s", policies[i].props);
        for (unsigned n = 0; n < ARRAY_SIZE(errnos); n++) {
            for (Kind kind = READ; kind < NUM_KINDS; kind++, lba += 64) {
                run_error(d, &policies[i], &errnos[n], kind, lba);
            }
        }
        lun_end(d);
    }
}

/*
 * Many commands of each queue, some blocks of which are bad once: the VM stops
 * again and again, and in the end everything has been done.
 */
static void test_once(void)
{
    enum { EACH = 32, BAD = 12 };
    g_autofree char *path = lun_make_image();
    MqDev *d = fail_begin(path, FAIL_RAW,
                          ",\"rerror\":\"stop\",\"werror\":\"stop\"");
    g_autoptr(GString) rules = g_string_new(NULL);
    Op ops[NUM_QUEUES][EACH];
    uint64_t ended[NUM_QUEUES];
    int64_t stops = 0;

    for (unsigned i = 0; i < BAD; i++) {
        /* One in each of some Ops, on all queues */
        g_string_append_printf(rules, "%s{\"event\":\"none\",\"once\":true,"
                               "\"errno\":%d,\"sector\":%u}", i ? "," : "",
                               i % 2 ? EIO : ENOSPC, 8 * (11 * i) + 3);
    }
    g_string_prepend(rules, "{\"execute\":\"blockdev-add\",\"arguments\":{"
                     "\"driver\":\"blkdebug\",\"node-name\":\"bad\","
                     "\"image\":\"base\",\"inject-error\":[");
    g_string_append(rules, "]}}");
    add_node(d, rules->str);
    put_below(d, "bad");

    for (unsigned q = 0; q < NUM_QUEUES; q++) {
        ended[q] = mq_queue(d, q)->done_total;
        for (unsigned i = 0; i < EACH; i++) {
            ops[q][i] = (Op) {
                .kind = (q + i) % 2 ? READ : WRITE,
                .lba = 8 * (NUM_QUEUES * i + q), .blocks = 8,
            };
            op_post(d, q, &ops[q][i]);
        }
    }
    flush_all(d);
    for (gint64 start = 0; in_flight(d); ) {
        QDict *event;

        qobject_unref(qtest_qmp(d->qts, "{'execute': 'query-status'}"));
        event = qtest_qmp_event_ref(d->qts, "STOP");
        if (event) {
            qobject_unref(event);
            stops++;
            cont(d);
        } else {
            mq_pause(&start, "the end of all commands");
        }
    }
    g_assert_cmpint(stops, >=, 1);
    g_assert_cmpint(stops, <=, BAD);
    for (unsigned q = 0; q < NUM_QUEUES; q++) {
        for (unsigned i = 0; i < EACH; i++) {
            op_wait_good(&ops[q][i]);
            expect_done(&ops[q][i], lun_hd_fd);
        }
        g_assert_cmpuint(mq_queue(d, q)->done_total, ==, ended[q] + EACH);
    }
    /* A stop may come late, when what it was for has been restarted. */
    QMP(d, "{'execute': 'cont'}");
    repair(d);
    lun_end(d);
}

/* Blocks that one queue alone uses are bad: the others don't notice. */
static void test_one_queue(void)
{
    enum { ROUNDS = 64, REGION = LUN_BLOCKS / NUM_QUEUES };
    g_autofree char *path = lun_make_image();
    MqDev *d = fail_begin(path, FAIL_RAW, ",\"rerror\":\"report\"");

    QMP(d, "{'execute': 'blockdev-add', 'arguments': {"
        "'driver': 'blkdebug', 'node-name': 'bad', 'image': 'base',"
        " 'inject-error': [{'event': 'none', 'iotype': 'read',"
        " 'sector': %d}]}}", REGION + 5);
    put_below(d, "bad");
    for (unsigned i = 0; i < ROUNDS; i++) {
        Op ops[NUM_QUEUES];

        for (unsigned q = 0; q < NUM_QUEUES; q++) {
            ops[q] = (Op) { .kind = READ, .lba = q * REGION, .blocks = 8 };
            op_post(d, q, &ops[q]);
        }
        flush_all(d);
        for (unsigned q = 0; q < NUM_QUEUES; q++) {
            struct virtio_scsi_cmd_resp resp;

            if (q != 1) {
                op_wait_good(&ops[q]);
                continue;
            }
            op_wait(&ops[q], &resp);
            mq_assert_sense(&resp, ABORTED_COMMAND, 0x00, 0x06);
            mq_release(ops[q].slot);
        }
    }
    g_assert_cmpint(mq_disk_stat(d, "hd", "failed_rd_operations"), ==, ROUNDS);
    repair(d);
    lun_end(d);
}

/*
 * Images that change behind the guest's back
 */

/* Somebody cuts the file: zeroes behind its new end, which writes move. */
static void test_cut(void)
{
    enum { LEFT = LUN_BLOCKS / 2 + 3 };
    static const uint32_t at[NUM_QUEUES] = {
        0, LEFT - 8, LEFT, LUN_BLOCKS - 8,
    };
    g_autofree char *path = lun_make_image();
    MqDev *d = fail_begin(path, FAIL_RAW, ",\"rerror\":\"report\"");
    Op ops[NUM_QUEUES];
    struct stat st;

    g_assert_cmpint(ftruncate(lun_hd_fd, LEFT * LUN_BLOCK), ==, 0);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        ops[i] = (Op) { .kind = READ, .lba = at[i], .blocks = 8 };
        op_post(d, i, &ops[i]);
    }
    flush_all(d);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        struct virtio_scsi_cmd_resp resp;
        uint8_t in[8 * LUN_BLOCK];

        op_wait(&ops[i], &resp);
        mq_assert_good(&resp);
        mq_read_mem(d, ops[i].slot->data, in, sizeof(in));
        g_assert_true(at[i] < LEFT ? is_pattern(in, at[i], 8, SEED_OLD)
                                   : mq_all_bytes(in, sizeof(in), 0));
        mq_release(ops[i].slot);
    }

    post_each(d, WRITE, LUN_BLOCKS - 16 * NUM_QUEUES, ops);
    expect_all_done(ops);
    g_assert_cmpint(fstat(lun_hd_fd, &st), ==, 0);
    g_assert_cmpint(st.st_size, >, LEFT * LUN_BLOCK);
    lun_end(d);
}

static void throttle(MqDev *d, unsigned iops)
{
    QMP(d, "{'execute': 'block_set_io_throttle', 'arguments': {'id': 'hd',"
        " 'bps': 0, 'bps_rd': 0, 'bps_wr': 0, 'iops': %u, 'iops_rd': 0,"
        " 'iops_wr': 0}}", iops);
}

/*
 * Four writes wait at their error, and QMP changes what they are to go to.
 * They are throttled until the device has taken all of them from the rings.
 */
static MqDev *park_writes(const char *path, const char *props, uint32_t lba,
                          Op *ops)
{
    g_autofree char *both = g_strdup_printf("%s,\"rerror\":\"stop\","
                                            "\"werror\":\"stop\"", props);
    MqDev *d = fail_begin(path, FAIL_RAW, both);
    MqCmd first = mq_read10(LUN_HD, 0, 1);

    add_bad(d, WRITE, EIO, true);
    put_below(d, "bad");
    throttle(d, 1);
    mq_run_good(mq_queue(d, 0), &first, NULL);
    post_each(d, WRITE, lba, ops);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        g_assert_true(mq_wait_taken(d, ops[i].slot, 0, LUN_HD, ops[i].tag));
    }
    throttle(d, 0);
    qtest_qmp_eventwait(d->qts, "STOP");
    repair(d);
    return d;
}

static void resize_node(MqDev *d, const char *node, int64_t size)
{
    QMP(d, "{'execute': 'block_resize', 'arguments': {"
        "'node-name': %s, 'size': %" PRId64 "}}", node, size);
}

static void test_shrunk(void)
{
    g_autofree char *path = lun_make_image();
    Op ops[NUM_QUEUES];
    MqDev *d = park_writes(path, "", LUN_BLOCKS - 16 * NUM_QUEUES, ops);

    for (unsigned round = 0; round < 3; round++) {
        resize_node(d, "disk", LUN_BYTES / 2);
        cont(d);
        qtest_qmp_eventwait(d->qts, "STOP");
        expect_vm(d, "io-error");
        g_assert_cmpuint(in_flight(d), ==, NUM_QUEUES);
    }
    resize_node(d, "disk", LUN_BYTES);
    cont(d);
    expect_all_done(ops);
    lun_end(d);
}

static void add_other(MqDev *d, const char *path)
{
    QMP(d, "{'execute': 'blockdev-add', 'arguments': {'driver': 'file',"
        " 'node-name': 'other', 'locking': 'off', 'filename': %s}}", path);
}

/* What waited was written to the other file, and not to the old one. */
static void expect_moved(Op *ops, int old_fd)
{
    expect_all_done(ops);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        expect_done(&(Op) { READ, ops[i].lba, ops[i].blocks }, old_fd);
    }
    close(old_fd);
}

/* Another node in its place */
static void test_other_drive(void)
{
    g_autofree char *path = lun_make_image();
    int old_fd = lun_hd_fd;
    g_autofree char *other = lun_make_image();
    Op ops[NUM_QUEUES];
    MqDev *d = park_writes(path, "", 100, ops);

    add_other(d, other);
    QMP(d, "{'execute': 'x-blockdev-set-iothread', 'arguments': {"
        "'node-name': 'other', 'iothread': 'iot0'}}");
    QMP(d, "{'execute': 'qom-set', 'arguments': {'path': 'hd',"
        " 'property': 'drive', 'value': 'other'}}");
    cont(d);
    expect_moved(ops, old_fd);
    lun_end(d);
}

/* Another medium in its tray; if @late, when the VM has gone on without. */
static void run_other_medium(bool late)
{
    g_autofree char *path = lun_make_image();
    int old_fd = lun_hd_fd;
    g_autofree char *other = lun_make_image();
    Op ops[NUM_QUEUES];
    MqDev *d = park_writes(path, ",\"removable\":true", 100, ops);

    add_other(d, other);
    QMP(d, "{'execute': 'blockdev-open-tray', 'arguments': {"
        "'id': 'hd', 'force': true}}");
    QMP(d, "{'execute': 'blockdev-remove-medium', 'arguments': {"
        "'id': 'hd'}}");
    for (unsigned i = 0; late && i < NUM_QUEUES; i++) {
        struct virtio_scsi_cmd_resp resp;

        if (i == 0) {
            cont(d);
        }
        op_wait(&ops[i], &resp);
        mq_assert_sense(&resp, NOT_READY, 0x3a, 0x00);
        mq_release(ops[i].slot);
    }
    QMP(d, "{'execute': 'blockdev-insert-medium', 'arguments': {"
        "'id': 'hd', 'node-name': 'other'}}");
    QMP(d, "{'execute': 'blockdev-close-tray', 'arguments': {"
        "'id': 'hd'}}");
    if (late) {
        mq_clear_ua(mq_queue(d, 0), 0, LUN_HD);
        post_each(d, WRITE, 100, ops);
    } else {
        cont(d);
    }
    expect_moved(ops, old_fd);
    lun_end(d);
}

static void test_other_medium(void)
{
    run_other_medium(false);
    run_other_medium(true);
}

/*
 * Jobs, sizes and media while all queues are at work
 */

#define CHUNK       8       /* blocks of a command */
#define CHUNKS      (LUN_BLOCKS / CHUNK)

typedef struct Load {
    MqDev *d;
    uint32_t seeds[CHUNKS]; /* of what is in each chunk */
    uint32_t last_seed;
    unsigned next;          /* command, and so chunk */
    unsigned tray;          /* steps done */
} Load;

typedef struct LoadCmd {
    MqSlot *slot;
    unsigned chunk;
    bool write;
} LoadCmd;

static void expect_chunk(const Load *l, const uint8_t *data, unsigned chunk)
{
    g_assert_true(is_pattern(data, chunk * CHUNK, CHUNK, l->seeds[chunk]));
}

static void load_post(Load *l, MqQueue *q, LoadCmd *c)
{
    uint8_t out[CHUNK * LUN_BLOCK];
    MqCmd cmd;

    *c = (LoadCmd) {
        .chunk = l->next * 37 % CHUNKS, .write = l->next % 3 == 0,
    };
    l->next++;
    cmd = mq_read10(LUN_HD, c->chunk * CHUNK, CHUNK);
    if (c->write) {
        l->seeds[c->chunk] = ++l->last_seed;
        mq_fill_pattern(out, c->chunk * CHUNK, CHUNK, l->last_seed);
        cmd = mq_write10(LUN_HD, c->chunk * CHUNK, CHUNK, out);
    }
    c->slot = mq_post_cmd(q, &cmd);
    g_assert_nonnull(c->slot);
}

static void load_write(const Load *l, MqQueue *q, unsigned chunk)
{
    uint8_t out[CHUNK * LUN_BLOCK];
    MqCmd cmd;

    mq_fill_pattern(out, chunk * CHUNK, CHUNK, l->seeds[chunk]);
    cmd = mq_write10(LUN_HD, chunk * CHUNK, CHUNK, out);
    mq_run_good(q, &cmd, NULL);
}

static void load_wait(Load *l, LoadCmd *c)
{
    struct virtio_scsi_cmd_resp resp;
    uint8_t in[CHUNK * LUN_BLOCK];

    mq_wait(c->slot);
    mq_read_resp(c->slot, &resp, sizeof(resp));
    if (resp.status == CHECK_CONDITION) {
        /* The size has changed, and nothing was done. */
        g_assert_cmphex(resp.sense[2] & 0xf, ==, UNIT_ATTENTION);
        if (c->write) {
            load_write(l, c->slot->q, c->chunk);
        }
    } else {
        mq_assert_good(&resp);
        if (!c->write) {
            mq_read_mem(l->d, c->slot->data, in, sizeof(in));
            expect_chunk(l, in, c->chunk);
        }
    }
    mq_release(c->slot);
}

/* The cd is there, or it has just come or gone. */
static void wait_cd(Load *l, MqSlot *slot)
{
    struct virtio_scsi_cmd_resp resp;

    mq_wait(slot);
    mq_read_resp(slot, &resp, sizeof(resp));
    if (resp.status == CHECK_CONDITION) {
        g_assert_true((resp.sense[2] & 0xf) == NOT_READY ||
                      (resp.sense[2] & 0xf) == UNIT_ATTENTION);
    } else {
        mq_assert_good(&resp);
    }
    mq_release(slot);
}

static void move_tray(Load *l)
{
    switch (l->tray++ % 4) {
    case 0:
        QMP(l->d, "{'execute': 'blockdev-open-tray', 'arguments': {"
            "'id': 'cd', 'force': true}}");
        break;
    case 1:
        QMP(l->d, "{'execute': 'blockdev-remove-medium', 'arguments': {"
            "'id': 'cd'}}");
        break;
    case 2:
        QMP(l->d, "{'execute': 'blockdev-insert-medium', 'arguments': {"
            "'id': 'cd', 'node-name': 'dvd'}}");
        break;
    default:
        QMP(l->d, "{'execute': 'blockdev-close-tray', 'arguments': {"
            "'id': 'cd'}}");
    }
}

/* Some commands on each queue; @during is what the host does meanwhile. */
static void load_round(Load *l, void (*during)(Load *l))
{
    enum { EACH = 8 };
    LoadCmd cmds[NUM_QUEUES][EACH];
    MqSlot *cd[NUM_QUEUES];

    for (unsigned q = 0; q < NUM_QUEUES; q++) {
        MqCmd cmd = mq_read10(LUN_CD, 4 * q, 1);

        cmd.in_len = 2048;
        for (unsigned i = 0; i < EACH; i++) {
            load_post(l, mq_queue(l->d, q), &cmds[q][i]);
        }
        cd[q] = mq_post_cmd(mq_queue(l->d, q), &cmd);
        g_assert_nonnull(cd[q]);
    }
    flush_all(l->d);
    if (during) {
        during(l);
    }
    for (unsigned q = 0; q < NUM_QUEUES; q++) {
        for (unsigned i = 0; i < EACH; i++) {
            load_wait(l, &cmds[q][i]);
        }
        wait_cd(l, cd[q]);
    }
}

static void load_rounds(Load *l, unsigned rounds)
{
    while (rounds--) {
        load_round(l, move_tray);
    }
}

/* Load until the only job is over, which is completed when it is ready */
static void load_until_done(Load *l)
{
    g_autoptr(QDict) event = NULL;
    bool completed = false;

    for (gint64 start = 0; ; mq_pause(&start, "the end of a job")) {
        g_autoptr(QDict) resp = NULL;
        QList *jobs;
        QDict *job;

        load_round(l, move_tray);
        resp = qtest_qmp(l->d->qts, "{'execute': 'query-jobs'}");
        jobs = qdict_get_qlist(resp, "return");
        if (qlist_empty(jobs)) {
            break;
        }
        job = qobject_to(QDict, qlist_peek(jobs));
        if (!completed && g_str_equal(qdict_get_str(job, "status"), "ready")) {
            QMP(l->d, "{'execute': 'job-complete', 'arguments': {"
                "'id': 'job'}}");
            completed = true;
        }
    }
    event = qtest_qmp_eventwait_ref(l->d->qts, "BLOCK_JOB_COMPLETED");
    g_assert_false(qdict_haskey(qdict_get_qdict(event, "data"), "error"));
}

/* @fd: a raw file that has what was written up to when @seeds were so */
static void expect_file(int fd, const Load *l)
{
    uint8_t data[CHUNK * LUN_BLOCK];

    for (unsigned i = 0; i < CHUNKS; i++) {
        g_assert_cmpint(pread(fd, data, sizeof(data), i * sizeof(data)), ==,
                        sizeof(data));
        expect_chunk(l, data, i);
    }
}

/* A raw file of the disk's size, as a node */
static int add_target(MqDev *d, const char *node)
{
    int fd;
    g_autofree char *path = mq_open_unnamed(&fd);

    g_assert_cmpint(ftruncate(fd, LUN_BYTES), ==, 0);
    QMP(d, "{'execute': 'blockdev-add', 'arguments': {'driver': 'file',"
        " 'node-name': %s, 'locking': 'off', 'filename': %s}}", node, path);
    return fd;
}

/* An empty qcow2 image above the node that the disk has, some load later */
static int take_snapshot(Load *l, const char *below, const char *above)
{
    int hd_fd = lun_hd_fd;
    g_autofree char *path = lun_make_qcow2();
    int fd = lun_hd_fd;

    lun_hd_fd = hd_fd;
    QMP(l->d, "{'execute': 'blockdev-add', 'arguments': {"
        "'driver': 'qcow2', 'node-name': %s, 'backing': null,"
        " 'file': {'driver': 'file', 'locking': 'off', 'filename': %s}}}",
        above, path);
    QMP(l->d, "{'execute': 'blockdev-snapshot', 'arguments': {"
        "'node': %s, 'overlay': %s}}", below, above);
    load_rounds(l, 8);
    return fd;
}

static void grow(Load *l)
{
    resize_node(l->d, "above2", 2 * LUN_BYTES);
}

static void run_jobs(char *path, const char *format)
{
    g_autofree Load *l = g_new0(Load, 1), *then = NULL;
    MqDev *d = fail_begin(path, format, "");
    uint8_t data[CHUNK * LUN_BLOCK];
    int mirror, backup, above[2];

    l->d = d;
    for (unsigned i = 0; i < CHUNKS; i++) {
        load_write(l, mq_queue(d, i % NUM_QUEUES), i);
    }
    load_rounds(l, 4);

    backup = add_target(d, "backup");
    then = g_memdup2(l, sizeof(*l));
    QMP(d, "{'execute': 'blockdev-backup', 'arguments': {"
        "'job-id': 'job', 'device': 'disk', 'target': 'backup',"
        " 'sync': 'full'}}");
    load_until_done(l);
    expect_file(backup, then);

    mirror = add_target(d, "mirror");
    QMP(d, "{'execute': 'blockdev-mirror', 'arguments': {"
        "'job-id': 'job', 'device': 'disk', 'target': 'mirror',"
        " 'sync': 'full'}}");
    load_until_done(l);
    expect_file(mirror, l);
    load_rounds(l, 4);
    expect_file(mirror, l);

    above[0] = take_snapshot(l, "mirror", "above1");
    QMP(d, "{'execute': 'block-commit', 'arguments': {"
        "'job-id': 'job', 'device': 'above1'}}");
    load_until_done(l);
    expect_file(mirror, l);
    QMP(d, "{'execute': 'blockdev-del', 'arguments': {"
        "'node-name': 'above1'}}");

    then->d = NULL;
    memcpy(then->seeds, l->seeds, sizeof(l->seeds));
    above[1] = take_snapshot(l, "mirror", "above2");
    QMP(d, "{'execute': 'block-stream', 'arguments': {"
        "'job-id': 'job', 'device': 'above2'}}");
    load_until_done(l);
    expect_file(mirror, then);
    QMP(d, "{'execute': 'blockdev-del', 'arguments': {"
        "'node-name': 'mirror'}}");

    load_round(l, grow);
    load_rounds(l, 4);
    while (l->tray % 4) {
        move_tray(l);
    }
    mq_clear_ua(mq_queue(d, 0), 0, LUN_HD);
    for (unsigned i = 0; i < CHUNKS; i++) {
        MqCmd cmd = mq_read10(LUN_HD, i * CHUNK, CHUNK);

        mq_run_good(mq_queue(d, i % NUM_QUEUES), &cmd, data);
        expect_chunk(l, data, i);
    }
    lun_end(d);
    close(backup);
    close(mirror);
    close(above[0]);
    close(above[1]);
}

static void test_jobs_raw(void)
{
    g_autofree char *path = lun_make_image();

    run_jobs(path, FAIL_RAW);
}

static void test_jobs_qcow2(void)
{
    g_autofree char *path = lun_make_qcow2();

    run_jobs(path, FAIL_QCOW2);
}

static const LunTest fail_tests[] = {
    { "fail/errors", test_errors },
    { "fail/once", test_once },
    { "fail/one-queue", test_one_queue },
    { "fail/cut", test_cut },
    { "fail/shrunk", test_shrunk },
    { "fail/other-drive", test_other_drive },
    { "fail/other-medium", test_other_medium },
    { "fail/jobs/raw", test_jobs_raw },
    { "fail/jobs/qcow2", test_jobs_qcow2 },
};

int main(int argc, char **argv)
{
    return lun_test_main(argc, argv, fail_tests, ARRAY_SIZE(fail_tests));
}
