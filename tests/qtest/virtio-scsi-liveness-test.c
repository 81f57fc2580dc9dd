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
#include "qemu/cutils.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "scsi/constants.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "virtio-scsi-shm.h"

#define PCI_SLOT    4
#define RAM_SIZE    (32 * 1024 * 1024)
#define DEPTH       8
#define FLUSH_NS    2000000000  /* of a job's target */
#define FLOOD_ERRORS 50000      /* commands that fail, at least */

/* Memory that QEMU may need for them.  What it kept was 1 kB of each. */
#define FLOOD_KB    (24 * 1024)

#define COMMON(field) offsetof(struct virtio_pci_common_cfg, field)

static const char *const controllers[] = {
    "\"iothread-vq-mapping\":[{\"iothread\":\"t0\"},{\"iothread\":\"t1\"}]",
    "\"ioeventfd\":false", "\"cmd_per_lun\":8",
};
static const char *const controller_names[] = {
    "mapped", "no-ioeventfd", "main-loop",
};

typedef struct Case {
    QTestState *qts;
    ShmMem mem;
    ShmDev *dev;
    bool stop;          /* the feeder shall end */
    ShmQueue *fed;
    uint16_t gap;
} Case;

/*
 * The VM
 */

static void add_shape(ShmQueue *q, const uint8_t *cdb, unsigned lun,
                      ShmShape shape)
{
    ShmSlot *slot = shm_take(q);
    struct virtio_scsi_cmd_req *req = (void *)slot->head;

    shape.resp = SHM_RESP_FIXED + VIRTIO_SCSI_SENSE_DEFAULT_SIZE;
    memset(req, 0, shape.head);
    shm_put_lun(req->lun, 0, lun);
    memcpy(req->cdb, cdb, 16);
    shm_post(slot, &shape);
}

static void add_command(ShmQueue *q, const uint8_t *cdb, unsigned in,
                        unsigned lun)
{
    add_shape(q, cdb, lun, (ShmShape) {
        .head = sizeof(struct virtio_scsi_cmd_req), .in = in,
    });
}

static ShmSlot *reap(Case *c, ShmQueue *q)
{
    ShmWait w = { 0 };
    ShmSlot *slot;

    while (!(slot = shm_reap(q))) {
        shm_wait(&w, c->qts, "an answer");
    }
    return slot;
}

static const struct virtio_scsi_cmd_resp *resp_of(ShmSlot *slot)
{
    return (const void *)shm_resp(slot, SHM_RESP_FIXED +
                                        VIRTIO_SCSI_SENSE_DEFAULT_SIZE);
}

static void expect_answer(Case *c, ShmQueue *q, uint8_t response,
                          uint8_t status)
{
    const struct virtio_scsi_cmd_resp *resp = resp_of(reap(c, q));

    g_assert_cmpuint(resp->response, ==, response);
    g_assert_cmpuint(resp->status, ==, status);
}

static void expect_good(Case *c, ShmQueue *q, const uint8_t *cdb, unsigned in)
{
    const struct virtio_scsi_cmd_resp *resp = NULL;

    for (unsigned i = 0; i < 8; i++) {      /* unit attentions first */
        add_command(q, cdb, in, 0);
        shm_flush(q);
        resp = resp_of(reap(c, q));
        if (resp->response == VIRTIO_SCSI_S_OK && resp->status == GOOD) {
            return;
        }
    }
    g_assert_cmpuint(resp->response, ==, VIRTIO_SCSI_S_OK);
    g_assert_cmpuint(resp->status, ==, GOOD);
}

/* All queues work after a reset. */
static void expect_works(Case *c, unsigned flags)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };
    static const uint8_t read[16] = { READ_10, [8] = 1 };

    shm_start(c->dev, flags);
    for (unsigned i = 0; i < c->dev->num_queues; i++) {
        expect_good(c, shm_queue(c->dev, i), ready, 0);
        expect_good(c, shm_queue(c->dev, i), read, 512);
    }
}

static QTestState *start_qemu(const ShmMem *shm, const char *controller,
                              unsigned size, const char *more)
{
    g_autofree char *mem = shm_mem_args(shm);

    return qtest_initf(
        "-machine pc,memory-backend=ram %s -nodefaults "
        "-object iothread,id=t0 -object iothread,id=t1 "
        "-device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"scsi0\","
        "\"addr\":\"%02x.0\",\"num_queues\":2,\"virtqueue_size\":%u,%s}' "
        "-blockdev null-co,node-name=disk,size=1048576,read-zeroes=on "
        "-blockdev '{\"driver\":\"blkdebug\",\"node-name\":\"bad\",\"image\":"
        "{\"driver\":\"null-co\",\"size\":1048576},\"inject-error\":["
        "{\"event\":\"none\",\"iotype\":\"read\",\"errno\":5,"
        "\"immediately\":true,\"once\":false}]}' "
        "-device '{\"driver\":\"scsi-hd\",\"id\":\"disk\",\"drive\":\"disk\","
        "\"bus\":\"scsi0.0\",\"lun\":0,\"share-rw\":true}' "
        "-device '{\"driver\":\"scsi-hd\",\"drive\":\"bad\","
        "\"bus\":\"scsi0.0\",\"lun\":1,\"rerror\":\"report\"}' %s",
        mem, PCI_SLOT, size, controller, more);
}

static void open_case(Case *c, const char *controller, unsigned size,
                      unsigned depth)
{
    *c = (Case) { };
    shm_mem_init(&c->mem, RAM_SIZE);
    c->qts = start_qemu(&c->mem, controller, size, "");
    c->dev = shm_new(c->qts, &c->mem, PCI_SLOT, depth);
}

static void close_case(Case *c)
{
    qtest_quit(c->qts);
    shm_free(c->dev);
    shm_mem_destroy(&c->mem);
}

static void status_returns(Case *c)
{
    qobject_unref(qtest_qmp(c->qts, "{'execute': 'query-status'}"));
}

static void writew(Case *c, unsigned offset, uint16_t value)
{
    qpci_io_writew(c->dev->pci->pdev, c->dev->pci->bar,
                   c->dev->pci->common_cfg_offset + offset, value);
}

/*
 * A ring that another vCPU keeps filling
 */

static void *feed(void *opaque)
{
    Case *c = opaque;
    ShmQueue *q = c->fed;

    while (!qatomic_read(&c->stop)) {
        uint16_t used = le16_to_cpu(qatomic_read(&q->used->idx));

        qatomic_set(&q->avail->idx, cpu_to_le16(used + c->gap));
    }
    return NULL;
}

/* All entries of the ring name the first slot, which stays as it is. */
static GThread *start_feed(Case *c, ShmQueue *q, uint16_t gap)
{
    for (unsigned i = 0; i < q->pci.vq.size; i++) {
        q->avail->ring[i] = 0;
    }
    c->fed = q;
    c->gap = gap;
    c->stop = false;
    return g_thread_new("feed", feed, c);
}

static void stop_feed(Case *c, GThread *thread)
{
    qatomic_set(&c->stop, true);
    g_thread_join(thread);
}

/* Reset and stop while commands come, more than a ring can have */
static void test_fed(const void *opaque)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };

    for (unsigned i = 0; i < 4; i++) {
        Case c;
        GThread *thread;

        open_case(&c, opaque, 256, DEPTH);
        expect_works(&c, 0);
        if (i % 2) {
            shm_post_tmf(shm_take(shm_ctrl(c.dev)),
                         VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 0, 1);
        } else {
            add_command(shm_queue(c.dev, 0), ready, 0, 0);
        }
        thread = start_feed(&c, i % 2 ? shm_ctrl(c.dev)
                                      : shm_queue(c.dev, 0), 32000);
        shm_kick(c.fed);
        status_returns(&c);
        if (i / 2) {
            qtest_qmp_assert_success(c.qts, "{'execute': 'stop'}");
            qtest_qmp_assert_success(c.qts, "{'execute': 'cont'}");
        }
        status_returns(&c);
        shm_reset(c.dev);
        stop_feed(&c, thread);
        expect_works(&c, 0);
        close_case(&c);
    }
}

static uint64_t rss_kb(Case *c)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status",
                                            (int)qtest_pid(c->qts));
    g_autofree char *text = NULL;
    uint64_t kb = 0;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_nonnull(strstr(text, "VmRSS:"));
    qemu_strtou64(strstr(text, "VmRSS:") + 6, NULL, 10, &kb);
    return kb;
}

/* A disk that fails each READ, and a guest that doesn't wait */
static void test_error_flood(const void *opaque)
{
    static const uint8_t read[16] = { READ_10, [8] = 1 };
    GThread *thread;
    ShmWait w = { 0 };
    uint64_t before;
    uint16_t last;
    Case c;

    open_case(&c, opaque, 256, DEPTH);
    expect_works(&c, 0);
    /* Attention first; then the slot is one that fails. */
    add_command(shm_queue(c.dev, 0), read, 512, 1);
    shm_flush(shm_queue(c.dev, 0));
    reap(&c, shm_queue(c.dev, 0));
    add_command(shm_queue(c.dev, 0), read, 512, 1);
    before = rss_kb(&c);
    thread = start_feed(&c, shm_queue(c.dev, 0), 32000);
    last = le16_to_cpu(qatomic_read(&c.fed->used->idx));
    for (uint64_t done = 0; done < FLOOD_ERRORS; ) {
        uint16_t now = le16_to_cpu(qatomic_read(&c.fed->used->idx));

        if (now == last) {
            shm_kick(c.fed);
            shm_wait(&w, c.qts, "commands that fail");
        } else {
            shm_progress(&w);
        }
        done += (uint16_t)(now - last);
        last = now;
    }
    g_assert_cmpuint(rss_kb(&c), <, before + FLOOD_KB);
    status_returns(&c);
    shm_reset(c.dev);
    stop_feed(&c, thread);
    expect_works(&c, 0);
    close_case(&c);
}

/*
 * Small rings
 */

/* A full ring that is smaller than a batch, again and again */
static void test_small_ring(const void *opaque)
{
    static const uint8_t read[16] = { READ_10, [8] = 1 };
    Case c;

    open_case(&c, opaque, 16, 16);
    expect_works(&c, SHM_INDIRECT);
    for (unsigned i = 0; i < 200; i++) {
        for (unsigned j = 0; j < c.dev->num_queues; j++) {
            while (shm_take(shm_queue(c.dev, j))) {
                add_command(shm_queue(c.dev, j), read, 512, 0);
            }
            shm_flush(shm_queue(c.dev, j));
        }
        for (unsigned j = 0; j < c.dev->num_queues; j++) {
            while (shm_in_flight(shm_queue(c.dev, j))) {
                expect_answer(&c, shm_queue(c.dev, j), VIRTIO_SCSI_S_OK, GOOD);
            }
        }
    }
    close_case(&c);
}

/*
 * Registers
 */

/* Reset of a virtqueue that the device doesn't have */
static void test_no_such_queue(const void *opaque)
{
    static const uint16_t queues[] = { 2, 4, 5, 124, 1023, 1024, 65535 };
    Case c;

    open_case(&c, opaque, 256, DEPTH);
    for (unsigned i = 0; i < ARRAY_SIZE(queues); i++) {
        expect_works(&c, 0);
        writew(&c, COMMON(queue_select), queues[i]);
        writew(&c, offsetof(struct virtio_pci_modern_common_cfg, queue_reset),
               1);
        status_returns(&c);
    }
    expect_works(&c, 0);
    close_case(&c);
}

/* The response lands in the device's own registers: device_status = 0. */
static void test_response_resets(const void *opaque)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };
    ShmQueue *q;
    Case c;

    open_case(&c, opaque, 256, DEPTH);
    expect_works(&c, 0);
    q = shm_queue(c.dev, 0);
    add_command(q, ready, 0, 0);
    q->desc[1].addr = cpu_to_le64(c.dev->pci->bar.addr +
                                  c.dev->pci->common_cfg_offset);
    shm_flush(q);
    for (unsigned i = 0; i < 10; i++) {
        status_returns(&c);
        g_usleep(1000);
    }
    expect_works(&c, 0);
    close_case(&c);
}

/* So does the interrupt. */
static void test_interrupt_resets(const void *opaque)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };
    QPCIDevice *pdev;
    ShmQueue *q;
    Case c;

    open_case(&c, opaque, 256, DEPTH);
    expect_works(&c, SHM_MSIX);
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
    add_command(q, ready, 0, 0);
    shm_flush(q);
    for (unsigned i = 0; i < 10; i++) {
        status_returns(&c);
        g_usleep(1000);
    }
    expect_works(&c, SHM_MSIX);
    close_case(&c);
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
    add_shape(q, write, 0, (ShmShape) {
        .head = sizeof(struct virtio_scsi_cmd_req), .out = 512,
    });
    shm_flush(q);
    expect_answer(c, q, VIRTIO_SCSI_S_OK, GOOD);
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
        add_command(q, read, 512, 0);
        shm_flush(q);
        g_usleep(100 * 1000);       /* enough for one that isn't */
    } while (shm_reap(q));
}

/* A reset doesn't wait for the job's end. */
static void test_job_lun_reset(const void *opaque)
{
    ShmSlot *slot;
    Case c;

    open_case(&c, opaque, 256, DEPTH);
    expect_works(&c, 0);
    start_flushing_job(&c);
    hold_read(&c);
    slot = shm_take(shm_ctrl(c.dev));
    shm_post_tmf(slot, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, 0, 0);
    shm_flush(shm_ctrl(c.dev));
    reap(&c, shm_ctrl(c.dev));
    g_assert_cmpuint(shm_tmf_response(slot), ==, VIRTIO_SCSI_S_OK);
    g_assert_true(job_goes_on(&c));
    g_assert_cmpuint(resp_of(reap(&c, shm_queue(c.dev, 0)))->response, ==,
                     VIRTIO_SCSI_S_RESET);
    /* Stop waits for the job, in every QEMU; the READ outlives it. */
    hold_read(&c);
    qtest_qmp_assert_success(c.qts, "{'execute': 'stop'}");
    qtest_qmp_assert_success(c.qts, "{'execute': 'cont'}");
    expect_answer(&c, shm_queue(c.dev, 0), VIRTIO_SCSI_S_OK, GOOD);
    close_case(&c);
}

static void test_job_system_reset(const void *opaque)
{
    Case c;

    open_case(&c, opaque, 256, DEPTH);
    expect_works(&c, 0);
    start_flushing_job(&c);
    hold_read(&c);
    qtest_system_reset(c.qts);
    g_assert_true(job_goes_on(&c));
    shm_probe(c.dev);
    expect_works(&c, 0);
    close_case(&c);
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

    open_case(&c, opaque, 256, DEPTH);
    expect_works(&c, 0);
    throttle(&c, 1);
    for (unsigned i = 0; i < 3; i++) {
        add_command(shm_queue(c.dev, i / 2), read, 512, 0);
        shm_flush(shm_queue(c.dev, i / 2));
        g_usleep(100 * 1000);
    }
    writew(&c, COMMON(queue_select), shm_queue(c.dev, 0)->pci.vq.index);
    writew(&c, offsetof(struct virtio_pci_modern_common_cfg, queue_reset), 1);
    reap(&c, shm_queue(c.dev, 0));
    reap(&c, shm_queue(c.dev, 0));
    expect_answer(&c, shm_queue(c.dev, 1), VIRTIO_SCSI_S_OK, GOOD);
    throttle(&c, 0);
    shm_enable_queue(shm_queue(c.dev, 0));
    expect_good(&c, shm_queue(c.dev, 0), read, 512);
    close_case(&c);
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
    open_case(&c, opaque, 256, DEPTH);
    expect_works(&c, 0);
    shm_config_writel(c.dev, offsetof(struct virtio_scsi_config, cdb_size),
                      SIZE);
    to = start_qemu(&c.mem, opaque, 256, "-incoming defer");
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
    add_shape(q, read, 0, (ShmShape) {
        .head = offsetof(struct virtio_scsi_cmd_req, cdb) + SIZE, .in = 512,
    });
    shm_flush(q);
    expect_answer(&c, q, VIRTIO_SCSI_S_OK, GOOD);
    close_case(&c);
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

    open_case(&c, opaque, 256, DEPTH);
    error = qtest_qmp_assert_failure_ref(c.qts,
        "{'execute': 'device_add', 'arguments': {'driver': 'scsi-cd',"
        " 'bus': 'scsi0.0', 'channel': 4294967295}}");
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), "out of range"));
    qobject_unref(error);
    close_case(&c);
}

static void add(const char *name, void (*test)(const void *))
{
    for (unsigned i = 0; i < ARRAY_SIZE(controllers); i++) {
        g_autofree char *path = g_strdup_printf("/virtio-scsi-liveness/%s/%s",
                                                name, controller_names[i]);

        qtest_add_data_func(path, controllers[i], test);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add("fed", test_fed);
    add("error-flood", test_error_flood);
    add("small-ring", test_small_ring);
    add("no-such-queue", test_no_such_queue);
    add("response-resets", test_response_resets);
    add("interrupt-resets", test_interrupt_resets);
    add("job-lun-reset", test_job_lun_reset);
    add("job-system-reset", test_job_system_reset);
    add("queue-reset", test_queue_reset);
    add("cdb-size", test_cdb_size);
    add("channel", test_channel);
    return g_test_run();
}
