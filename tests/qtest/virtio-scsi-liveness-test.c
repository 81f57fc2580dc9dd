/*
 * What a virtio-scsi driver could do to stop QEMU, one test for each
 *
 * A test that finds QEMU standing still fails by its time limit.
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
#include "scsi/constants.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "virtio-scsi-shm.h"

#define PCI_SLOT    4
#define RAM_SIZE    (32 * 1024 * 1024)
#define DEPTH       8
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

static void add_command(ShmQueue *q, const uint8_t *cdb, unsigned in,
                        unsigned lun)
{
    ShmSlot *slot = shm_take(q);
    struct virtio_scsi_cmd_req *req = (void *)slot->head;
    ShmShape shape = {
        .head = sizeof(*req), .in = in,
        .resp = SHM_RESP_FIXED + VIRTIO_SCSI_SENSE_DEFAULT_SIZE,
    };

    memset(req, 0, sizeof(*req));
    shm_put_lun(req->lun, 0, lun);
    memcpy(req->cdb, cdb, 16);
    shm_post(slot, &shape);
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

static const uint8_t *resp_of(ShmSlot *slot)
{
    return shm_resp(slot, SHM_RESP_FIXED + VIRTIO_SCSI_SENSE_DEFAULT_SIZE);
}

static void expect_good(Case *c, ShmQueue *q, const uint8_t *cdb, unsigned in)
{
    const struct virtio_scsi_cmd_resp *resp = NULL;

    for (unsigned i = 0; i < 8; i++) {      /* unit attentions first */
        add_command(q, cdb, in, 0);
        shm_flush(q);
        resp = (const void *)resp_of(reap(c, q));
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

static void open_case(Case *c, const char *controller, unsigned size,
                      unsigned depth)
{
    g_autofree char *mem = NULL;

    *c = (Case) { };
    shm_mem_init(&c->mem, RAM_SIZE);
    mem = shm_mem_args(&c->mem);
    c->qts = qtest_initf(
        "-machine pc,memory-backend=ram %s -nodefaults "
        "-object iothread,id=t0 -object iothread,id=t1 "
        "-device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"scsi0\","
        "\"addr\":\"%02x.0\",\"num_queues\":2,\"virtqueue_size\":%u,%s}' "
        "-blockdev null-co,node-name=disk,size=1048576,read-zeroes=on "
        "-blockdev '{\"driver\":\"blkdebug\",\"node-name\":\"bad\",\"image\":"
        "{\"driver\":\"null-co\",\"size\":1048576},\"inject-error\":["
        "{\"event\":\"none\",\"iotype\":\"read\",\"errno\":5,"
        "\"immediately\":true,\"once\":false}]}' "
        "-device '{\"driver\":\"scsi-hd\",\"drive\":\"disk\","
        "\"bus\":\"scsi0.0\",\"lun\":0}' "
        "-device '{\"driver\":\"scsi-hd\",\"drive\":\"bad\","
        "\"bus\":\"scsi0.0\",\"lun\":1,\"rerror\":\"report\"}'",
        mem, PCI_SLOT, size, controller);
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
                g_assert_cmpuint(resp_of(reap(&c, shm_queue(c.dev, j)))[11],
                                 ==, VIRTIO_SCSI_S_OK);
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
    return g_test_run();
}
