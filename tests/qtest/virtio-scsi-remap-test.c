/*
 * Another iothread-vq-mapping while the device works
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/timer.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "standard-headers/linux/virtio_ring.h"
#include "libqmp.h"
#include "virtio-scsi-data.h"

#define BACKEND "/machine/peripheral/vs/virtio-backend"
#define MODERN  ",\"disable-legacy\":\"on\",\"packed\":true"

/* Two forms; what they say of queues 0 to 3 */
#define DEALT   "[{'iothread': 'iot0'}, {'iothread': 'iot1'}]"
#define TURNED  "[{'iothread': 'new0', 'vqs': [3, 0]}," \
                " {'iothread': 'iot1', 'vqs': [2, 1]}]"

static const char *const in_dealt[] = { "iot0", "iot1", "iot0", "iot1" };
static const char *const in_turned[] = { "new0", "iot1", "iot1", "new0" };

enum { LUN_EXTRA = 9, LUN_TWIN };

/*
 * QMP
 */

static QDict *set_mapping(MqDev *d, const char *value)
{
    return qtest_qmp(d->qts, "{'execute': 'qom-set', 'arguments': {"
                     "'path': '" BACKEND "',"
                     " 'property': 'iothread-vq-mapping', 'value': %p}}",
                     qobject_from_json(value, &error_abort));
}

static void remap(MqDev *d, const char *value)
{
    QDict *resp = set_mapping(d, value);

    g_assert_true(qdict_haskey(resp, "return"));
    qobject_unref(resp);
}

static void expect_error(MqDev *d, const char *value, const char *message)
{
    QDict *resp = set_mapping(d, value);
    QDict *error = qdict_get_qdict(resp, "error");

    g_assert_nonnull(error);
    if (!strstr(qdict_get_str(error, "desc"), message)) {
        g_printerr("\"%s\" doesn't say \"%s\"\n", qdict_get_str(error, "desc"),
                   message);
        g_assert_not_reached();
    }
    qobject_unref(resp);
}

static void expect_mapping(MqDev *d, const char *value)
{
    QDict *resp = qtest_qmp(d->qts, "{'execute': 'qom-get', 'arguments': {"
                            "'path': '" BACKEND "',"
                            " 'property': 'iothread-vq-mapping'}}");
    QObject *want = qobject_from_json(value, &error_abort);

    g_assert_true(qobject_is_equal(qdict_get(resp, "return"), want));
    qobject_unref(want);
    qobject_unref(resp);
}

/* Which IOThread says the device that queue i has?  NULL: the main loop */
static void expect_threads(MqDev *d, const char *const *want)
{
    QDict *resp = qtest_qmp(d->qts, "{'execute': 'x-query-virtio-scsi-queues',"
                            " 'arguments': {'path': 'vs'}}");
    QList *devices = qdict_get_qlist(resp, "return");
    QDict *device = qobject_to(QDict, qlist_peek(devices));
    const QListEntry *entry;
    unsigned n = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(device, "queues"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));

        g_assert_cmpstr(qdict_get_try_str(info, "iothread"), ==,
                        want ? want[n] : NULL);
        n++;
    }
    g_assert_cmpuint(n, ==, NUM_QUEUES);
    qobject_unref(resp);
}

static bool try_delete(MqDev *d, const char *id)
{
    QDict *resp = qtest_qmp(d->qts, "{'execute': 'object-del',"
                            " 'arguments': {'id': %s}}", id);
    bool done = qdict_haskey(resp, "return");

    qobject_unref(resp);
    return done;
}

static void add_iothread(MqDev *d, const char *id)
{
    qtest_qmp_assert_success(d->qts, "{'execute': 'object-add', 'arguments': {"
                             "'qom-type': 'iothread', 'id': %s}}", id);
}

static void qmp_and_wait(MqDev *d, const char *command, const char *event)
{
    qtest_qmp_assert_success(d->qts, "{'execute': %s}", command);
    qtest_qmp_eventwait(d->qts, event);
}

/*
 * I/O
 */

static MqSlot *post(MqDev *d, unsigned queue, const MqCmd *cmd)
{
    MqSlot *slot = mq_post_cmd(mq_queue(d, queue), cmd);

    mq_flush(mq_queue(d, queue));
    return slot;
}

static void expect_good(MqSlot *slot)
{
    struct virtio_scsi_cmd_resp resp;

    mq_wait(slot);
    mq_read_resp(slot, &resp, sizeof(resp));
    mq_assert_good(&resp);
    mq_release(slot);
}

/* Write and read on each queue; an interrupt that is missing is a hang. */
static void run_io(MqDev *d)
{
    for (unsigned q = 0; q < NUM_QUEUES; q++) {
        uint8_t out[BLOCK], in[BLOCK];
        MqCmd write, read;

        data_fill(out, 100 + q, 1);
        memcpy(data_image[LUN_FILE] + (100 + q) * BLOCK, out, BLOCK);
        write = mq_write10(LUN_FILE, 100 + q, 1, out);
        read = mq_read10(LUN_FILE, 100 + q, 1);
        mq_run_good(mq_queue(d, q), &write, NULL);
        mq_run_good(mq_queue(d, NUM_QUEUES - 1 - q), &read, in);
        g_assert_cmpmem(in, BLOCK, out, BLOCK);
    }
}

/*
 * A job works in the AioContext that its node has for home.  No IOThread that
 * is gone can be that.  It ends with an error, as the node has a bad block.
 */
static void run_job(MqDev *d)
{
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-add', 'arguments':"
                             " {'driver': 'null-co', 'node-name': 'copy',"
                             " 'size': %u}}", LUN_BYTES);
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-backup',"
                             " 'arguments': {'job-id': 'job', 'target': 'copy',"
                             " 'device': 'disk0', 'sync': 'full'}}");
    qtest_qmp_eventwait(d->qts, "BLOCK_JOB_COMPLETED");
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-del',"
                             " 'arguments': {'node-name': 'copy'}}");
}

static void end(MqDev *d)
{
    run_io(d);
    data_check_image(LUN_FILE);
    data_end(d);
}

/*
 * Tests
 */

/* Whatever there was before */
static void test_change(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    bool legacy = strstr(cfg->props, "\"iothread\":") != NULL;

    add_iothread(d, "new0");
    if (!cfg->iothreads) {
        add_iothread(d, "iot0");
        add_iothread(d, "iot1");
        expect_mapping(d, "[]");
    }
    run_io(d);
    remap(d, TURNED);
    expect_mapping(d, TURNED);
    expect_threads(d, in_turned);
    run_io(d);

    g_assert_false(try_delete(d, "new0"));
    g_assert_false(try_delete(d, "iot1"));
    g_assert_true(try_delete(d, "iot0"));
    g_assert_true(!legacy || try_delete(d, "legacy"));
    run_io(d);
    run_job(d);

    add_iothread(d, "iot0");
    remap(d, DEALT);
    expect_mapping(d, DEALT);
    expect_threads(d, in_dealt);
    g_assert_true(try_delete(d, "new0"));
    run_io(d);

    /* The same once more, and in the device's other lives */
    remap(d, DEALT);
    mq_reset(d);
    remap(d, "[{'iothread': 'iot1'}]");
    remap(d, DEALT);
    data_start(d, cfg->form);
    expect_threads(d, in_dealt);
    end(d);
}

static void test_errors(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    add_iothread(d, "new0");
    remap(d, TURNED);
    expect_error(d, "[]", "[] names no IOThread");
    expect_error(d, "[{'iothread': 'nobody'}]", "no IOThread 'nobody'");
    expect_error(d, "[{'iothread': 'iot0'}, {'iothread': 'iot0'}]",
                 "'iot0' is listed twice");
    expect_error(d, "[{'iothread': 'iot0', 'vqs': [0, 1, 2]}]",
                 "queue 3 is in no IOThread's vqs");
    expect_error(d, "[{'iothread': 'iot0', 'vqs': [0, 1, 2, 3, 4]}]",
                 "has 4, but the device's 4 queues");
    expect_error(d, "[{'iothread': 'iot0'}, {'iothread': 'iot1', 'vqs': [0]}]",
                 "give vqs to every entry or to none");
    expect_error(d, "7", "Invalid parameter type");
    expect_mapping(d, TURNED);
    expect_threads(d, in_turned);
    g_assert_false(try_delete(d, "new0"));
    g_assert_true(try_delete(d, "iot0"));
    end(d);
}

static void test_no_ioeventfd(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    add_iothread(d, "iot0");
    expect_error(d, "[{'iothread': 'iot0'}]", "ioeventfd is off");
    expect_mapping(d, "[]");
    expect_threads(d, NULL);
    g_assert_true(try_delete(d, "iot0"));
    end(d);
}

static void test_unplugging(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    add_iothread(d, "new0");
    /* Nobody in the guest answers. */
    qtest_qmp_device_del_send(d->qts, "vs");
    expect_error(d, TURNED, "is being unplugged");
    expect_mapping(d, DEALT);
    g_assert_true(try_delete(d, "new0"));
    end(d);
}

/* A request that waits for the VM goes on where its queue is now. */
static void test_parked(const DataConfig *cfg)
{
    MqCmd read = mq_read10(LUN_STOP, ONCE_READ_LBA, 1);
    MqDev *d = data_begin(cfg);
    MqSlot *slot;

    add_iothread(d, "new0");
    qmp_and_wait(d, "stop", "STOP");
    remap(d, TURNED);
    remap(d, DEALT);
    qmp_and_wait(d, "cont", "RESUME");
    run_io(d);

    slot = post(d, 0, &read);
    qtest_qmp_eventwait(d->qts, "STOP");
    remap(d, TURNED);
    g_assert_true(try_delete(d, "iot0"));
    qmp_and_wait(d, "cont", "RESUME");
    expect_good(slot);
    expect_threads(d, in_turned);
    end(d);
}

/* No files, no notifiers: the main loop has all queues until the next reset. */
static void test_fallback(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    pid_t pid = qtest_pid(d->qts);
    struct rlimit old, few;

    add_iothread(d, "new0");
    mq_reset(d);
    mq_setup(d, cfg->form, BLOCK);
    g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, NULL, &old), ==, 0);
    few = (struct rlimit) { data_limit_files(pid, 0), old.rlim_max };
    g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, &few, NULL), ==, 0);
    mq_driver_ok(d);
    g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, &old, NULL), ==, 0);
    expect_threads(d, NULL);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_FILE);
    run_io(d);

    remap(d, TURNED);
    expect_mapping(d, TURNED);
    expect_threads(d, NULL);
    g_assert_true(try_delete(d, "iot0"));
    g_assert_false(try_delete(d, "new0"));
    run_io(d);

    mq_reset(d);
    data_start(d, cfg->form);
    expect_threads(d, in_turned);
    end(d);
}

/* Throttled requests don't hold it up, and none is lost. */
static void test_throttled(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    MqSlot *slots[NUM_QUEUES * 2];
    MqCmd read = mq_read10(LUN_FILE, 0, 1);

    add_iothread(d, "new0");
    data_hold(d, LUN_FILE);
    for (unsigned i = 0; i < ARRAY_SIZE(slots); i++) {
        slots[i] = post(d, i % NUM_QUEUES, &read);
    }
    remap(d, TURNED);
    data_throttle(d, LUN_FILE, false);
    for (unsigned i = 0; i < ARRAY_SIZE(slots); i++) {
        expect_good(slots[i]);
    }
    end(d);
}

/* With a geometry, which QEMU would read a partition table for otherwise */
static void add_lun(MqDev *d)
{
    qtest_qmp_device_add(d->qts, "scsi-hd", "extra", "{'bus': 'vs.0',"
                         " 'scsi-id': 0, 'lun': %d, 'drive': 'extra',"
                         " 'share-rw': true,"
                         " 'cyls': 8, 'heads': 16, 'secs': 63}", LUN_EXTRA);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_EXTRA);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_FILE);
}

/*
 * A LUN whose throttling is not at its top node.  A group that is made now goes
 * by qtest's clock, which stands still.
 */
static void add_throttled(MqDev *d)
{
    qtest_qmp_assert_success(d->qts, "{'execute': 'object-add', 'arguments': {"
        "'qom-type': 'throttle-group', 'id': 'group'}}");
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-add',"
        " 'arguments': {'driver': 'raw', 'node-name': 'extra', 'file': {"
        "'driver': 'throttle', 'throttle-group': 'group', 'file': {"
        "'driver': 'null-co', 'size': 4194304, 'read-zeroes': true}}}}");
    add_lun(d);
}

/* Nor do those. Stop and reset don't wait for them either. */
static void test_throttled_below(const DataConfig *cfg)
{
    MqSlot *slots[NUM_QUEUES * 2];
    struct virtio_scsi_cmd_resp resp;
    MqDev *d = data_begin(cfg);

    add_iothread(d, "new0");
    add_throttled(d);
    for (unsigned round = 0; round < 3; round++) {
        mq_limit_iops(d, "group", 1);
        for (unsigned i = 0; i < ARRAY_SIZE(slots); i++) {
            MqCmd read = mq_read10(LUN_EXTRA, 0, 1);

            slots[i] = post(d, i % NUM_QUEUES, &read);
            mq_wait_taken(d, slots[i], 0, LUN_EXTRA, read.tag);
        }
        g_assert_false(slots[ARRAY_SIZE(slots) - 1]->done);
        switch (round) {
        case 0:
            remap(d, TURNED);
            break;
        case 1:
            qmp_and_wait(d, "stop", "STOP");
            qmp_and_wait(d, "cont", "RESUME");
            break;
        default:
            g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0,
                                    LUN_EXTRA, 0), ==, VIRTIO_SCSI_S_OK);
        }
        for (unsigned i = 0; i < ARRAY_SIZE(slots); i++) {
            mq_wait(slots[i]);
            mq_read_resp(slots[i], &resp, sizeof(resp));
            if (round < 2 || resp.response != VIRTIO_SCSI_S_RESET) {
                g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_OK);
            }
            mq_release(slots[i]);
        }
    }
    end(d);
}

/* Of a LUN that is throttled */
static void expect_good_in_time(MqDev *d, MqSlot *slot)
{
    gint64 begun = 0;

    while (mq_reap(slot->q), !slot->done) {
        qtest_clock_step(d->qts, NANOSECONDS_PER_SECOND);
        mq_pause(&begun, "a throttled request");
    }
    expect_good(slot);
}

/*
 * Two LUNs of one node.  A reset of the first one lets go what is throttled for
 * it; the second one loses nothing, and is throttled as before.
 */
static void test_throttled_shared(const DataConfig *cfg)
{
    MqSlot *slots[NUM_QUEUES * 2];
    MqDev *d = data_begin(cfg);
    MqCmd read = mq_read10(LUN_TWIN, 0, 1);

    add_throttled(d);
    qtest_qmp_device_add(d->qts, "scsi-hd", "twin", "{'bus': 'vs.0',"
                         " 'scsi-id': 0, 'lun': %d, 'drive': 'extra',"
                         " 'share-rw': true}", LUN_TWIN);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_TWIN);
    mq_limit_iops(d, "group", 1);
    for (unsigned i = 0; i < ARRAY_SIZE(slots); i++) {
        uint16_t lun = i % 2 ? LUN_TWIN : LUN_EXTRA;
        MqCmd cmd = mq_read10(lun, 0, 1);

        slots[i] = post(d, i % NUM_QUEUES, &cmd);
        mq_wait_taken(d, slots[i], 0, lun, cmd.tag);
    }
    g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0,
                            LUN_EXTRA, 0), ==, VIRTIO_SCSI_S_OK);
    for (unsigned i = 0; i < ARRAY_SIZE(slots); i += 2) {
        mq_reap(slots[i]->q);
        g_assert_true(slots[i]->done);
        mq_release(slots[i]);
    }
    for (unsigned i = 1; i < ARRAY_SIZE(slots); i += 2) {
        expect_good_in_time(d, slots[i]);
    }

    slots[0] = post(d, 0, &read);
    read.tag = mq_next_tag();
    slots[1] = post(d, 0, &read);
    g_assert_true(mq_wait_taken(d, slots[1], 0, LUN_TWIN, read.tag));
    expect_good_in_time(d, slots[0]);
    expect_good_in_time(d, slots[1]);
    end(d);
}

/* A LUN whose I/O takes its time, drained or not */
static void add_slow(MqDev *d, int64_t latency_ns)
{
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-add',"
        " 'arguments': {'driver': 'null-co', 'node-name': 'extra',"
        " 'size': 4194304, 'read-zeroes': true, 'latency-ns': %" PRId64 "}}",
        latency_ns);
    add_lun(d);
}

/* I/O that doesn't end for long: an error, and all is as it was. */
static void test_stuck(const DataConfig *cfg)
{
    MqCmd read = mq_read10(LUN_EXTRA, 0, 1);
    MqSlot *slots[NUM_QUEUES];
    MqDev *d = data_begin(cfg);

    add_iothread(d, "new0");
    add_slow(d, 15 * NANOSECONDS_PER_SECOND);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        slots[i] = post(d, i, &read);
    }
    g_assert_true(mq_wait_taken(d, slots[0], 0, LUN_EXTRA, read.tag));

    expect_error(d, TURNED, "I/O of 'extra' has not ended within");
    expect_mapping(d, DEALT);
    expect_threads(d, in_dealt);
    g_assert_true(try_delete(d, "new0"));
    run_io(d);

    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        expect_good(slots[i]);
    }
    add_iothread(d, "new0");
    remap(d, TURNED);
    g_assert_true(try_delete(d, "iot0"));
    end(d);
}

/*
 * A TMF whose answer goes to the device's own status register, and so resets
 * it.  It comes while owners change, as the TMF waits for a throttled command,
 * which is let go by that.
 */

static void post_tmf_to_register(MqDev *d, uint64_t tag)
{
    struct virtio_scsi_ctrl_tmf_req req = {
        .type = cpu_to_le32(VIRTIO_SCSI_T_TMF),
        .subtype = cpu_to_le32(VIRTIO_SCSI_T_TMF_ABORT_TASK),
        .lun = { 1, 0, 0x40, LUN_EXTRA },
        .tag = cpu_to_le64(tag),
    };
    MqSlot *slot = mq_post_raw(mq_ctrl(d), &req, sizeof(req), NULL, 0,
                               sizeof(struct virtio_scsi_ctrl_tmf_resp), 0);
    uint64_t status = d->pci->bar.addr + d->pci->common_cfg_offset +
                      offsetof(struct virtio_pci_common_cfg, device_status);

    /* The second entry of the table is the buffer for the answer. */
    qtest_writeq(d->qts, slot->table + sizeof(struct vring_desc), status);
    mq_flush(mq_ctrl(d));
}

static void test_own_register(const DataConfig *cfg)
{
    MqCmd read = mq_read10(LUN_EXTRA, 0, 1);
    MqDev *d = data_begin(cfg);

    add_iothread(d, "new0");
    add_throttled(d);
    mq_limit_iops(d, "group", 1);
    for (unsigned round = 0; round < 4; round++) {
        MqCmd first = mq_read10(LUN_EXTRA, 0, 1);
        gint64 begun = 0;

        post(d, 0, &first);
        g_assert_true(mq_wait_taken(d, post(d, 0, &read), 0, LUN_EXTRA,
                                    read.tag));
        post_tmf_to_register(d, read.tag);
        if (round % 2) {
            qmp_and_wait(d, "stop", "STOP");
            qmp_and_wait(d, "cont", "RESUME");
        } else {
            expect_error(d, TURNED, "has just used buffers outside of RAM");
        }
        while (d->vdev->bus->get_status(d->vdev)) {
            mq_pause(&begun, "the reset");
        }
        mq_reset(d);
        data_start(d, cfg->form);
        mq_limit_iops(d, "group", 0);
        mq_clear_ua(mq_queue(d, 0), 0, LUN_EXTRA);
        mq_limit_iops(d, "group", 1);
        run_io(d);
    }
    end(d);
}

/* Commands are in flight on all queues, again and again. */
static void test_load(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    unsigned rounds = g_test_slow() ? 1000 : 200;

    add_iothread(d, "new0");
    for (unsigned round = 0; round < rounds; round++) {
        MqSlot *slots[NUM_QUEUES][8];

        for (unsigned i = 0; i < NUM_QUEUES * 8; i++) {
            uint32_t lba = (round * 32 + i) % 3000;
            MqCmd read = mq_read10(LUN_FILE, lba, 1);

            slots[i % NUM_QUEUES][i / NUM_QUEUES] =
                post(d, i % NUM_QUEUES, &read);
        }
        remap(d, round % 2 ? DEALT : TURNED);
        for (unsigned i = 0; i < NUM_QUEUES * 8; i++) {
            uint32_t lba = (round * 32 + i) % 3000;
            MqSlot *slot = slots[i % NUM_QUEUES][i / NUM_QUEUES];
            uint8_t data[BLOCK];

            mq_wait(slot);
            mq_read_mem(d, slot->data, data, BLOCK);
            g_assert_cmpmem(data, BLOCK, data_image[LUN_FILE] + lba * BLOCK,
                            BLOCK);
            expect_good(slot);
        }
    }
    expect_mapping(d, DEALT);
    end(d);
}

/*
 * An IOMMU
 */

/* Registers of intel-iommu, and its tables, below what is allocated */
#define IOMMU_ARGS      " -machine q35 -device '{\"driver\":\"intel-iommu\"}'"
#define VTD_BASE        0xfed90000
#define VTD_ROOT        0x1000
#define VTD_CONTEXTS    0x2000
#define VTD_LEVEL3      0x3000
#define VTD_LEVEL2      0x4000
enum { VTD_GCMD = 0x18, VTD_RTADDR = 0x20 };
#define VTD_GCMD_TE     (1u << 31)
#define VTD_GCMD_SRTP   (1u << 30)

/* Each address of the first GiB becomes itself, for all devices of bus 0. */
static void make_tables(MqDev *d)
{
    qtest_memset(d->qts, VTD_ROOT, 0, VTD_LEVEL2 - VTD_ROOT);
    qtest_writeq(d->qts, VTD_ROOT, VTD_CONTEXTS | 1);
    for (unsigned i = 0; i < 256; i++) {
        /* Present, domain 1, three levels */
        qtest_writeq(d->qts, VTD_CONTEXTS + i * 16, VTD_LEVEL3 | 1);
        qtest_writeq(d->qts, VTD_CONTEXTS + i * 16 + 8, 1 << 8 | 1);
    }
    qtest_writeq(d->qts, VTD_LEVEL3, VTD_LEVEL2 | 3);
    for (uint64_t i = 0; i < 512; i++) {
        /* 2 MiB, read and write */
        qtest_writeq(d->qts, VTD_LEVEL2 + i * 8, i * 2 * MiB | 1 << 7 | 3);
    }
}

static void set_translation(MqDev *d, bool on)
{
    qtest_writeq(d->qts, VTD_BASE + VTD_RTADDR, VTD_ROOT);
    qtest_writel(d->qts, VTD_BASE + VTD_GCMD, VTD_GCMD_SRTP);
    qtest_writel(d->qts, VTD_BASE + VTD_GCMD, on ? VTD_GCMD_TE : 0);
}

/*
 * The main loop has the queues while addresses are translated, also if that
 * has begun under IOThreads that then change.  The mapping is for later.
 */
static void test_iommu(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    add_iothread(d, "new0");
    if (!cfg->iothreads) {
        add_iothread(d, "iot0");
        add_iothread(d, "iot1");
    }
    make_tables(d);
    mq_reset(d);
    set_translation(d, true);
    data_start(d, cfg->form);
    expect_threads(d, NULL);
    run_io(d);
    remap(d, TURNED);
    expect_mapping(d, TURNED);
    expect_threads(d, NULL);
    run_io(d);

    mq_reset(d);
    set_translation(d, false);
    data_start(d, cfg->form);
    expect_threads(d, in_turned);
    run_io(d);
    set_translation(d, true);
    remap(d, DEALT);
    expect_mapping(d, DEALT);
    expect_threads(d, NULL);
    g_assert_true(try_delete(d, "new0"));
    run_io(d);

    mq_reset(d);
    set_translation(d, false);
    data_start(d, cfg->form);
    expect_threads(d, in_dealt);
    end(d);
}

/*
 * Another monitor
 */

/*
 * Two monitors want something else while I/O is slow.  One of them waits for
 * the other, whichever it is.
 */
static void test_two_monitors(const DataConfig *cfg)
{
    g_autofree char *dir = g_dir_make_tmp("remap-XXXXXX", NULL);
    g_autofree char *path = g_strdup_printf("%s/qmp", dir);
    g_autofree char *args = g_strdup_printf(" -qmp unix:%s,server=on,wait=off",
                                            path);
    DataConfig with_monitor = *cfg;
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    MqCmd read = mq_read10(LUN_EXTRA, 0, 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    MqDev *d;

    with_monitor.args = args;
    d = data_begin(&with_monitor);
    g_strlcpy(addr.sun_path, path, sizeof(addr.sun_path));
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    qobject_unref(qmp_fd_receive(fd));
    qobject_unref(qmp_fd(fd, "{'execute': 'qmp_capabilities'}"));

    add_iothread(d, "new0");
    add_slow(d, 300 * 1000 * 1000);
    for (unsigned round = 0; round < 4; round++) {
        MqSlot *slot = post(d, round, &read);
        QDict *ours, *theirs, *status;

        qtest_qmp_send(d->qts, "{'execute': 'qom-set', 'arguments': {"
                       "'path': '" BACKEND "',"
                       " 'property': 'iothread-vq-mapping',"
                       " 'value': [{'iothread': 'new0'}]}}");
        qmp_fd_send(fd, "{'execute': 'qom-set', 'arguments': {"
                    "'path': '" BACKEND "',"
                    " 'property': 'iothread-vq-mapping',"
                    " 'value': [{'iothread': 'iot0'}]}}");
        qmp_fd_send(fd, "{'execute': 'query-status'}");
        theirs = qmp_fd_receive(fd);
        status = qmp_fd_receive(fd);
        ours = qtest_qmp_receive(d->qts);
        g_assert_true(qdict_haskey(ours, "return"));
        g_assert_true(qdict_haskey(theirs, "return"));
        g_assert_true(qdict_haskey(status, "return"));
        qobject_unref(ours);
        qobject_unref(theirs);
        qobject_unref(status);
        expect_good(slot);
        run_io(d);
        g_assert_true(try_delete(d, "iot0") != try_delete(d, "new0"));
        remap(d, "[{'iothread': 'iot1'}]");
        try_delete(d, "iot0");
        try_delete(d, "new0");
        add_iothread(d, "iot0");
        add_iothread(d, "new0");
    }
    close(fd);
    end(d);
    unlink(path);
    rmdir(dir);
}

/*
 * Memory
 */

static long resident_pages(MqDev *d)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/statm",
                                            (int)qtest_pid(d->qts));
    g_autofree char *text = NULL;
    long pages;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpint(sscanf(text, "%*d %ld", &pages), ==, 1);
    return pages;
}

/*
 * Many changes leave nothing behind: not even 64 bytes of each.  What they left
 * would be there in each part of the test; the host's allocator takes pages, or
 * gives them back, at one time or another, but not all the time.
 */
static void test_many(const DataConfig *cfg)
{
    enum { PARTS = 10 };
    long each = g_test_slow() ? 1000 : 200;
    MqCmd read = mq_read10(LUN_FILE, 0, 1);
    MqDev *d = data_begin(cfg);
    long before = resident_pages(d), now;
    unsigned grown = 0;

    add_iothread(d, "new0");
    for (unsigned part = 0; part < PARTS; part++) {
        for (long round = 0; round < each; round++) {
            MqSlot *slot = post(d, round % NUM_QUEUES, &read);

            remap(d, round % 2 ? DEALT : TURNED);
            expect_good(slot);
        }
        now = resident_pages(d);
        g_test_message("%ld pages more", now - before);
        grown += (now - before) * (long)qemu_real_host_page_size() >=
                 each * 64;
        before = now;
    }
    g_assert_cmpuint(grown, <=, PARTS / 2);
    end(d);
}

/* Waiting for a migration, and when it has come */
static void test_incoming(const DataConfig *cfg)
{
    g_autofree char *uri = NULL;
    MqCmd read = mq_read10(LUN_STOP, ONCE_READ_LBA, 1);
    MqDev *d = data_begin(cfg);
    QTestState *to = data_begin_incoming(cfg);
    MqDev there = { .qts = to };
    g_autofree char *dir = g_dir_make_tmp("remap-XXXXXX", NULL);
    MqSlot *slot;

    uri = g_strdup_printf("unix:%s/s", dir);
    add_iothread(&there, "new0");
    remap(&there, TURNED);
    qtest_qmp_assert_success(to, "{'execute': 'migrate-incoming',"
                             " 'arguments': {'uri': %s}}", uri);
    remap(&there, DEALT);

    slot = post(d, 0, &read);
    qtest_qmp_eventwait(d->qts, "STOP");
    qtest_qmp_assert_success(d->qts, "{'execute': 'migrate',"
                             " 'arguments': {'uri': %s}}", uri);
    g_assert_true(mq_wait_migrated(d->qts));
    data_migrated(d, to);
    remap(d, TURNED);
    g_assert_true(try_delete(d, "iot0"));

    /* The error is injected once by each of the two. */
    qmp_and_wait(d, "cont", "STOP");
    expect_threads(d, in_turned);
    add_iothread(d, "iot0");
    remap(d, DEALT);
    qmp_and_wait(d, "cont", "RESUME");
    expect_good(slot);
    expect_threads(d, in_dealt);
    end(d);
    unlink(uri + strlen("unix:"));
    rmdir(dir);
}

/*
 * A source may have lost an interrupt, and nothing in the stream says that it
 * has.  So each queue interrupts once where the guest goes on.
 */
static void test_interrupts(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    QTestState *to = data_begin_incoming(cfg);

    run_io(d);
    /* Not one comes after that. */
    qmp_and_wait(d, "stop", "STOP");
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        mq_interrupted(mq_queue(d, i));
        g_assert_false(mq_interrupted(mq_queue(d, i)));
    }
    mq_migrate(d->qts, to);
    data_migrated(d, to);
    qmp_and_wait(d, "cont", "RESUME");
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        gint64 start = 0;

        while (!mq_interrupted(mq_queue(d, i))) {
            mq_pause(&start, "an interrupt after the migration");
        }
    }
    end(d);
}

static const struct {
    const char *name;
    void (*func)(const DataConfig *cfg);
    DataConfig cfg;
} remap_tests[] = {
    { "change/mapping", test_change,
      { .iothreads = 2, .form = MQ_INDIRECT | MQ_MSIX, .props = MODERN } },
    { "change/iothread", test_change,
      { .form = MQ_INDIRECT, .args = " -object '{\"qom-type\":\"iothread\","
        "\"id\":\"legacy\"}'",
        .props = MODERN ",\"iothread\":\"legacy\"" } },
    { "change/main-loop", test_change,
      { .form = MQ_PACKED | MQ_INDIRECT, .props = MODERN } },
    { "errors/value", test_errors,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "errors/no-ioeventfd", test_no_ioeventfd,
      { .form = MQ_INDIRECT, .props = MODERN ",\"ioeventfd\":false" } },
    { "errors/unplugging", test_unplugging,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "errors/stuck", test_stuck,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "parked", test_parked,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "fallback", test_fallback,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "own-register", test_own_register,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "throttled", test_throttled,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "throttled-shared", test_throttled_shared,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "throttled-below", test_throttled_below,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "load", test_load,
      { .iothreads = 2, .form = MQ_INDIRECT | MQ_EVENT_IDX | MQ_MSIX,
        .props = MODERN } },
    { "two-monitors", test_two_monitors,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "many", test_many,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "iommu/mapping", test_iommu,
      { .iothreads = 2, .form = MQ_INDIRECT, .needs = "intel-iommu",
        .args = IOMMU_ARGS, .props = MODERN ",\"iommu_platform\":true",
        .more_features = 1ull << VIRTIO_F_ACCESS_PLATFORM } },
    { "iommu/main-loop", test_iommu,
      { .form = MQ_INDIRECT, .needs = "intel-iommu",
        .args = IOMMU_ARGS, .props = MODERN ",\"iommu_platform\":true",
        .more_features = 1ull << VIRTIO_F_ACCESS_PLATFORM } },
    { "interrupts/mapping", test_interrupts,
      { .iothreads = 2, .form = MQ_INDIRECT | MQ_MSIX | MQ_EVENT_IDX,
        .props = "" } },
    { "interrupts/packed", test_interrupts,
      { .iothreads = 2, .form = MQ_PACKED | MQ_INDIRECT | MQ_MSIX,
        .props = MODERN } },
    { "interrupts/main-loop", test_interrupts,
      { .form = MQ_INDIRECT | MQ_MSIX, .props = "" } },
    { "interrupts/no-ioeventfd", test_interrupts,
      { .form = MQ_INDIRECT | MQ_MSIX, .props = ",\"ioeventfd\":false" } },
    { "incoming/split", test_incoming,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = "" } },
    { "incoming/packed", test_incoming,
      { .iothreads = 2, .form = MQ_PACKED | MQ_INDIRECT, .props = MODERN } },
};

static void run_test(const void *arg)
{
    for (unsigned i = 0; i < ARRAY_SIZE(remap_tests); i++) {
        if (arg == &remap_tests[i]) {
            remap_tests[i].func(&remap_tests[i].cfg);
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
    for (unsigned i = 0; i < ARRAY_SIZE(remap_tests); i++) {
        const char *needs = remap_tests[i].cfg.needs;
        g_autofree char *path =
            g_strdup_printf("virtio-scsi-mq/remap/%s", remap_tests[i].name);

        if (!needs || qtest_has_device(needs)) {
            qtest_add_data_func(path, &remap_tests[i], run_test);
        }
    }
    return g_test_run();
}
