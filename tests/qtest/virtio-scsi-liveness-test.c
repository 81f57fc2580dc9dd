/*
 * What a virtio-scsi driver could do to stop QEMU, or a job and a migration to
 * a driver, one test for each
 *
 * A test that finds QEMU standing still fails by its time limit.  No test looks
 * at a clock: where something must not wait for a job, the job is still there
 * afterwards.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "scsi/constants.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "virtio-scsi-shm-case.h"

#define FLUSH_NS    2000000000  /* of a job's target */
#define FLOOD_ERRORS 50000      /* commands that fail, at least */

/* Memory that QEMU may need for them.  What it kept was 1 kB of each. */
#define FLOOD_KB    (24 * 1024)

/* Reset and stop while commands come, more than a ring can have */
static void test_fed(const void *opaque)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };

    for (unsigned i = 0; i < 4; i++) {
        CaseFeed feed;
        Case c;

        case_open(&c, opaque, 256, CASE_DEPTH);
        case_expect_works(&c, 0);
        if (i % 2) {
            shm_post_tmf(shm_take(shm_ctrl(c.dev)),
                         VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 0, 1);
        } else {
            case_add(shm_queue(c.dev, 0), ready, 0, 0);
        }
        case_feed_start(&feed, i % 2 ? shm_ctrl(c.dev)
                                     : shm_queue(c.dev, 0), 32000);
        shm_kick(feed.q);
        case_status_returns(&c);
        if (i / 2) {
            qtest_qmp_assert_success(c.qts, "{'execute': 'stop'}");
            qtest_qmp_assert_success(c.qts, "{'execute': 'cont'}");
        }
        case_status_returns(&c);
        shm_reset(c.dev);
        case_feed_stop(&feed);
        case_expect_works(&c, 0);
        case_close(&c);
    }
}

/*
 * A reset that waits for a disk takes no commands meanwhile
 */

/* The last one is the first one to be reset. */
enum { LUN_SLOW = 2, LUN_LATER };

#define LATE(node, ns, lun) \
    " -blockdev null-co,size=1048576,node-name=" node ",latency-ns=" ns \
    " -device '{\"driver\":\"scsi-hd\",\"bus\":\"scsi0.0\"," \
    "\"drive\":\"" node "\",\"lun\":" lun "}'"
#define LATE_DISKS LATE("slow", "50000000", "2") LATE("later", "1000000", "3")

static int64_t in_flight(Case *c)
{
    QDict *resp = qtest_qmp(c->qts, "{'execute': 'x-query-virtio-scsi-queues',"
                            " 'arguments': {'path': 'scsi0'}}");
    const QListEntry *entry = qlist_first(qdict_get_qlist(resp, "return"));
    QDict *device = qobject_to(QDict, qlist_entry_obj(entry));
    int64_t sum = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(device, "queues"), entry) {
        sum += qdict_get_int(qobject_to(QDict, qlist_entry_obj(entry)),
                             "in-flight");
    }
    qobject_unref(resp);
    return sum;
}

/*
 * One of the queues never ends, so the main loop always wants to look at it
 * again.  Most of its commands end at once, some do a little later.  The other
 * queue has those that the reset waits for.
 */
static void test_reset_waits(const void *opaque)
{
    static const uint8_t read[16] = { READ_10, [8] = 1 };
    CaseFeed feed;
    Case c;

    case_open_with(&c, opaque, 256, CASE_DEPTH, LATE_DISKS);
    for (unsigned i = 0; i < 10; i++) {
        ShmQueue *fed, *slow;

        case_expect_works(&c, 0);
        fed = shm_queue(c.dev, 0);
        slow = shm_queue(c.dev, 1);
        for (unsigned lun = LUN_SLOW; lun <= LUN_LATER; lun++) {
            case_add(slow, read, 512, lun);     /* unit attention */
            shm_flush(slow);
            case_reap(&c, slow);
        }
        for (unsigned j = 0; j < 4; j++) {
            case_add(slow, read, 512, LUN_SLOW);
        }
        shm_flush(slow);
        case_add(fed, read, 512, 0);
        case_add(fed, read, 512, LUN_LATER);
        case_feed_start(&feed, fed, 32000);
        for (unsigned j = 0; j < fed->pci.vq.size; j += 32) {
            fed->avail->ring[j] = cpu_to_le16(fed->stride);
        }
        shm_kick(fed);
        case_status_returns(&c);
        shm_reset(c.dev);
        case_feed_stop(&feed);
        g_assert_cmpint(in_flight(&c), ==, 0);
    }
    case_expect_works(&c, 0);
    case_close(&c);
}

/* A disk that fails each READ, and a guest that doesn't wait */
static void test_error_flood(const void *opaque)
{
    static const uint8_t read[16] = { READ_10, [8] = 1 };
    ShmWait w = { 0 };
    CaseFeed feed;
    uint64_t before;
    uint16_t last;
    Case c;

    case_open(&c, opaque, 256, CASE_DEPTH);
    case_expect_works(&c, 0);
    /* Attention first; then the slot is one that fails. */
    case_add(shm_queue(c.dev, 0), read, 512, 1);
    shm_flush(shm_queue(c.dev, 0));
    case_reap(&c, shm_queue(c.dev, 0));
    case_add(shm_queue(c.dev, 0), read, 512, 1);
    before = shm_qemu_rss_kb(c.qts);
    case_feed_start(&feed, shm_queue(c.dev, 0), 32000);
    last = le16_to_cpu(qatomic_read(&feed.q->used->idx));
    for (uint64_t done = 0; done < FLOOD_ERRORS; ) {
        uint16_t now = le16_to_cpu(qatomic_read(&feed.q->used->idx));

        if (now == last) {
            shm_kick(feed.q);
            shm_wait(&w, c.qts, "commands that fail");
        } else {
            shm_progress(&w);
        }
        done += (uint16_t)(now - last);
        last = now;
    }
    g_assert_cmpuint(shm_qemu_rss_kb(c.qts), <, before + FLOOD_KB);
    case_status_returns(&c);
    shm_reset(c.dev);
    case_feed_stop(&feed);
    case_expect_works(&c, 0);
    case_close(&c);
}

/*
 * Small rings
 */

/* A full ring that is smaller than a batch, again and again */
static void test_small_ring(const void *opaque)
{
    static const uint8_t read[16] = { READ_10, [8] = 1 };
    Case c;

    case_open(&c, opaque, 16, 16);
    case_expect_works(&c, SHM_INDIRECT);
    for (unsigned i = 0; i < 200; i++) {
        for (unsigned j = 0; j < c.dev->num_queues; j++) {
            while (shm_take(shm_queue(c.dev, j))) {
                case_add(shm_queue(c.dev, j), read, 512, 0);
            }
            shm_flush(shm_queue(c.dev, j));
        }
        for (unsigned j = 0; j < c.dev->num_queues; j++) {
            while (shm_in_flight(shm_queue(c.dev, j))) {
                case_expect_answer(&c, shm_queue(c.dev, j), VIRTIO_SCSI_S_OK,
                                   GOOD);
            }
        }
    }
    case_close(&c);
}

/*
 * Registers
 */

/* Reset of a virtqueue that the device doesn't have */
static void test_no_such_queue(const void *opaque)
{
    static const uint16_t queues[] = { 2, 4, 5, 124, 1023, 1024, 65535 };
    Case c;

    case_open(&c, opaque, 256, CASE_DEPTH);
    for (unsigned i = 0; i < ARRAY_SIZE(queues); i++) {
        case_expect_works(&c, 0);
        case_writew(&c, COMMON(queue_select), queues[i]);
        case_writew(&c, offsetof(struct virtio_pci_modern_common_cfg,
                                 queue_reset), 1);
        case_status_returns(&c);
    }
    case_expect_works(&c, 0);
    case_close(&c);
}

/* The response lands in the device's own registers: device_status = 0. */
static void test_response_resets(const void *opaque)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };
    ShmQueue *q;
    Case c;

    case_open(&c, opaque, 256, CASE_DEPTH);
    case_expect_works(&c, 0);
    q = shm_queue(c.dev, 0);
    case_add(q, ready, 0, 0);
    q->desc[1].addr = cpu_to_le64(c.dev->pci->bar.addr +
                                  c.dev->pci->common_cfg_offset);
    shm_flush(q);
    for (unsigned i = 0; i < 10; i++) {
        case_status_returns(&c);
        g_usleep(1000);
    }
    case_expect_works(&c, 0);
    case_close(&c);
}

/* So does the interrupt. */
static void test_interrupt_resets(const void *opaque)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };
    QPCIDevice *pdev;
    ShmQueue *q;
    Case c;

    case_open(&c, opaque, 256, CASE_DEPTH);
    case_expect_works(&c, SHM_MSIX);
    q = shm_queue(c.dev, 0);
    pdev = c.dev->pci->pdev;
    qpci_io_writel(pdev, pdev->msix_table_bar, pdev->msix_table_off +
                   q->pci.vq.index * PCI_MSIX_ENTRY_SIZE +
                   PCI_MSIX_ENTRY_LOWER_ADDR, c.dev->pci->bar.addr +
                   c.dev->pci->common_cfg_offset + COMMON(device_status));
    qpci_io_writel(pdev, pdev->msix_table_bar, pdev->msix_table_off +
                   q->pci.vq.index * PCI_MSIX_ENTRY_SIZE +
                   PCI_MSIX_ENTRY_DATA, 0);
    shm_irq_arm(q);
    case_add(q, ready, 0, 0);
    shm_flush(q);
    for (unsigned i = 0; i < 10; i++) {
        case_status_returns(&c);
        g_usleep(1000);
    }
    case_expect_works(&c, SHM_MSIX);
    case_close(&c);
}

/*
 * Jobs
 */

static bool job_goes_on(Case *c)
{
    QDict *resp = qtest_qmp(c->qts, "{'execute': 'query-block-jobs'}");
    bool yes = !qlist_empty(qdict_get_qlist(resp, "return"));

    qobject_unref(resp);
    return yes;
}

/* A mirror that has drained its source and flushes its target */
static void start_flushing_job(Case *c)
{
    static const uint8_t write[16] = { WRITE_10, [8] = 1 };
    ShmQueue *q = shm_queue(c->dev, 0);

    qtest_qmp_assert_success(c->qts,
        "{'execute': 'blockdev-add', 'arguments': {'driver': 'null-co',"
        " 'node-name': 'target', 'size': 1048576, 'latency-ns': %u}}",
        FLUSH_NS);
    qtest_qmp_assert_success(c->qts,
        "{'execute': 'blockdev-mirror', 'arguments': {'device': 'disk',"
        " 'job-id': 'job', 'target': 'target', 'sync': 'none'}}");
    /* Or it has nothing to flush */
    case_add_shape(q, write, 0, (ShmShape) {
        .head = sizeof(struct virtio_scsi_cmd_req), .out = 512,
    });
    shm_flush(q);
    case_expect_answer(c, q, VIRTIO_SCSI_S_OK, GOOD);
    qtest_qmp_eventwait(c->qts, "BLOCK_JOB_READY");
    qtest_qmp_assert_success(c->qts,
        "{'execute': 'job-complete', 'arguments': {'id': 'job'}}");
}

/* Post READs until one is held back by the job's drain. */
static void hold_read(Case *c)
{
    static const uint8_t read[16] = { READ_10, [8] = 1 };
    ShmQueue *q = shm_queue(c->dev, 0);

    do {
        g_assert_true(job_goes_on(c));
        case_add(q, read, 512, 0);
        shm_flush(q);
        g_usleep(100 * 1000);       /* enough for one that isn't */
    } while (shm_reap(q));
}

/* A reset doesn't wait for the job's end. */
static void test_job_lun_reset(const void *opaque)
{
    ShmSlot *slot;
    Case c;

    case_open(&c, opaque, 256, CASE_DEPTH);
    case_expect_works(&c, 0);
    start_flushing_job(&c);
    hold_read(&c);
    slot = shm_take(shm_ctrl(c.dev));
    shm_post_tmf(slot, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, 0, 0);
    shm_flush(shm_ctrl(c.dev));
    case_reap(&c, shm_ctrl(c.dev));
    g_assert_cmpuint(shm_tmf_response(slot), ==, VIRTIO_SCSI_S_OK);
    g_assert_true(job_goes_on(&c));
    slot = case_reap(&c, shm_queue(c.dev, 0));
    g_assert_cmpuint(case_resp(slot)->response, ==, VIRTIO_SCSI_S_RESET);
    /* Stop waits for the job, in every QEMU; the READ outlives it. */
    hold_read(&c);
    qtest_qmp_assert_success(c.qts, "{'execute': 'stop'}");
    qtest_qmp_assert_success(c.qts, "{'execute': 'cont'}");
    case_expect_answer(&c, shm_queue(c.dev, 0), VIRTIO_SCSI_S_OK, GOOD);
    case_close(&c);
}

static void test_job_system_reset(const void *opaque)
{
    Case c;

    case_open(&c, opaque, 256, CASE_DEPTH);
    case_expect_works(&c, 0);
    start_flushing_job(&c);
    hold_read(&c);
    qtest_system_reset(c.qts);
    g_assert_true(job_goes_on(&c));
    shm_probe(c.dev);
    case_expect_works(&c, 0);
    case_close(&c);
}

/*
 * A virtqueue is reset, the others go on
 */

/* qtest's clock stands still: one request is let through, and no other. */
static void throttle(Case *c, unsigned iops)
{
    qtest_qmp_assert_success(c->qts,
        "{'execute': 'block_set_io_throttle', 'arguments': {'id': 'disk',"
        " 'bps': 0, 'bps_rd': 0, 'bps_wr': 0, 'iops': %u, 'iops_rd': 0,"
        " 'iops_wr': 0}}", iops);
}

static void test_queue_reset(const void *opaque)
{
    static const uint8_t read[16] = { READ_10, [8] = 1 };
    Case c;

    case_open(&c, opaque, 256, CASE_DEPTH);
    case_expect_works(&c, 0);
    throttle(&c, 1);
    for (unsigned i = 0; i < 3; i++) {
        case_add(shm_queue(c.dev, i / 2), read, 512, 0);
        shm_flush(shm_queue(c.dev, i / 2));
        g_usleep(100 * 1000);
    }
    case_writew(&c, COMMON(queue_select), shm_queue(c.dev, 0)->pci.vq.index);
    case_writew(&c, offsetof(struct virtio_pci_modern_common_cfg,
                             queue_reset), 1);
    case_reap(&c, shm_queue(c.dev, 0));
    case_reap(&c, shm_queue(c.dev, 0));
    case_expect_answer(&c, shm_queue(c.dev, 1), VIRTIO_SCSI_S_OK, GOOD);
    throttle(&c, 0);
    shm_enable_queue(shm_queue(c.dev, 0));
    case_expect_good(&c, shm_queue(c.dev, 0), read, 512);
    case_close(&c);
}

/*
 * Migration
 */

static void wait_migrated(QTestState *qts)
{
    ShmWait w = { 0 };

    while (true) {
        QDict *resp = qtest_qmp(qts, "{'execute': 'query-migrate'}");
        const char *status = qdict_get_try_str(
            qdict_get_qdict(resp, "return"), "status");
        bool done = !g_strcmp0(status, "completed");

        g_assert_cmpstr(status, !=, "failed");
        qobject_unref(resp);
        if (done) {
            return;
        }
        shm_wait(&w, qts, "the end of a migration");
    }
}

/* A CDB's size that isn't the default one; both QEMUs have the same memory. */
static void test_cdb_size(const void *opaque)
{
    enum { SIZE = 64 };
    static const uint8_t read[16] = { READ_10, [8] = 1 };
    g_autofree char *file = NULL;
    g_autofree char *uri = NULL;
    int fd = g_file_open_tmp("liveness-XXXXXX", &file, NULL);
    QTestState *to;
    ShmQueue *q;
    Case c;

    g_assert_cmpint(fd, >=, 0);
    uri = g_strdup_printf("file:%s", file);
    case_open(&c, opaque, 256, CASE_DEPTH);
    case_expect_works(&c, 0);
    shm_config_writel(c.dev, offsetof(struct virtio_scsi_config, cdb_size),
                      SIZE);
    to = case_start_qemu(&c.mem, opaque, 256, "-incoming defer");
    qtest_qmp_assert_success(c.qts,
        "{'execute': 'migrate', 'arguments': {'uri': %s}}", uri);
    wait_migrated(c.qts);
    qtest_qmp_assert_success(to,
        "{'execute': 'migrate-incoming', 'arguments': {'uri': %s}}", uri);
    wait_migrated(to);
    qtest_qmp_eventwait(to, "RESUME");
    qtest_quit(c.qts);
    c.qts = c.dev->qts = to;
    shm_probe(c.dev);

    q = shm_queue(c.dev, 0);
    q->pci.vq.vdev = &c.dev->pci->vdev;
    case_add_shape(q, read, 0, (ShmShape) {
        .head = offsetof(struct virtio_scsi_cmd_req, cdb) + SIZE, .in = 512,
    });
    shm_flush(q);
    case_expect_answer(&c, q, VIRTIO_SCSI_S_OK, GOOD);
    case_close(&c);
    close(fd);
    unlink(file);
}

/*
 * Addresses
 */

static void test_channel(const void *opaque)
{
    QDict *error;
    Case c;

    case_open(&c, opaque, 256, CASE_DEPTH);
    error = qtest_qmp_assert_failure_ref(c.qts,
        "{'execute': 'device_add', 'arguments': {'driver': 'scsi-cd',"
        " 'bus': 'scsi0.0', 'channel': 4294967295}}");
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), "out of range"));
    qobject_unref(error);
    case_close(&c);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    case_test("liveness/fed", test_fed);
    case_test("liveness/error-flood", test_error_flood);
    case_test("liveness/reset-waits", test_reset_waits);
    case_test("liveness/small-ring", test_small_ring);
    case_test("liveness/no-such-queue", test_no_such_queue);
    case_test("liveness/response-resets", test_response_resets);
    case_test("liveness/interrupt-resets", test_interrupt_resets);
    case_test("liveness/job-lun-reset", test_job_lun_reset);
    case_test("liveness/job-system-reset", test_job_system_reset);
    case_test("liveness/queue-reset", test_queue_reset);
    case_test("liveness/cdb-size", test_cdb_size);
    case_test("liveness/channel", test_channel);
    return g_test_run();
}
