/*
 * Tests of what a bad virtio-scsi driver may do: a VM, some commands, a ring
 * that never ends
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "scsi/constants.h"
#include "standard-headers/linux/virtio_config.h"
#include "virtio-scsi-shm-case.h"

#define PCI_SLOT    4
#define RAM_SIZE    (32 * 1024 * 1024)

static const char *const controllers[] = {
    "\"iothread-vq-mapping\":[{\"iothread\":\"t0\"},{\"iothread\":\"t1\"}]",
    "\"ioeventfd\":false", "\"cmd_per_lun\":8",
};
static const char *const controller_names[] = {
    "mapped", "no-ioeventfd", "main-loop",
};

/*
 * The VM
 */

void case_add_shape(ShmQueue *q, const uint8_t *cdb, unsigned lun,
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

void case_add(ShmQueue *q, const uint8_t *cdb, unsigned in, unsigned lun)
{
    case_add_shape(q, cdb, lun, (ShmShape) {
        .head = sizeof(struct virtio_scsi_cmd_req), .in = in,
    });
}

ShmSlot *case_reap(Case *c, ShmQueue *q)
{
    ShmWait w = { 0 };
    ShmSlot *slot;

    while (!(slot = shm_reap(q))) {
        shm_wait(&w, c->qts, "an answer");
    }
    return slot;
}

const struct virtio_scsi_cmd_resp *case_resp(ShmSlot *slot)
{
    return (const void *)shm_resp(slot, SHM_RESP_FIXED +
                                        VIRTIO_SCSI_SENSE_DEFAULT_SIZE);
}

void case_expect_answer(Case *c, ShmQueue *q, uint8_t response,
                        uint8_t status)
{
    const struct virtio_scsi_cmd_resp *resp = case_resp(case_reap(c, q));

    g_assert_cmpuint(resp->response, ==, response);
    g_assert_cmpuint(resp->status, ==, status);
}

void case_expect_good(Case *c, ShmQueue *q, const uint8_t *cdb, unsigned in)
{
    const struct virtio_scsi_cmd_resp *resp = NULL;

    for (unsigned i = 0; i < 8; i++) {      /* unit attentions first */
        case_add(q, cdb, in, 0);
        shm_flush(q);
        resp = case_resp(case_reap(c, q));
        if (resp->response == VIRTIO_SCSI_S_OK && resp->status == GOOD) {
            return;
        }
    }
    g_assert_cmpuint(resp->response, ==, VIRTIO_SCSI_S_OK);
    g_assert_cmpuint(resp->status, ==, GOOD);
}

/* All queues work after a reset. */
void case_expect_works(Case *c, unsigned flags)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };
    static const uint8_t read[16] = { READ_10, [8] = 1 };

    shm_start(c->dev, flags);
    for (unsigned i = 0; i < c->dev->num_queues; i++) {
        case_expect_good(c, shm_queue(c->dev, i), ready, 0);
        case_expect_good(c, shm_queue(c->dev, i), read, 512);
    }
}

QTestState *case_start_qemu(const ShmMem *shm, const char *controller,
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

void case_open_with(Case *c, const char *controller, unsigned size,
                    unsigned depth, const char *more)
{
    *c = (Case) { };
    shm_mem_init(&c->mem, RAM_SIZE);
    c->qts = case_start_qemu(&c->mem, controller, size, more);
    c->dev = shm_new(c->qts, &c->mem, PCI_SLOT, depth);
}

void case_open(Case *c, const char *controller, unsigned size, unsigned depth)
{
    case_open_with(c, controller, size, depth, "");
}

void case_close(Case *c)
{
    qtest_quit(c->qts);
    shm_free(c->dev);
    shm_mem_destroy(&c->mem);
}

void case_status_returns(Case *c)
{
    qobject_unref(qtest_qmp(c->qts, "{'execute': 'query-status'}"));
}

void case_writew(Case *c, unsigned offset, uint16_t value)
{
    qpci_io_writew(c->dev->pci->pdev, c->dev->pci->bar,
                   c->dev->pci->common_cfg_offset + offset, value);
}

bool case_needs_reset(Case *c)
{
    QVirtioDevice *vdev = &c->dev->pci->vdev;

    return vdev->bus->get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

/*
 * A ring that another vCPU keeps filling
 */

static void *feed(void *opaque)
{
    CaseFeed *f = opaque;

    while (!qatomic_read(&f->stop)) {
        uint16_t used = le16_to_cpu(qatomic_read(&f->q->used->idx));

        qatomic_set(&f->q->avail->idx, cpu_to_le16(used + f->gap));
    }
    return NULL;
}

void case_feed_start(CaseFeed *f, ShmQueue *q, uint16_t gap)
{
    for (unsigned i = 0; i < q->pci.vq.size; i++) {
        q->avail->ring[i] = 0;
    }
    *f = (CaseFeed) { .q = q, .gap = gap };
    f->thread = g_thread_new("feed", feed, f);
}

void case_feed_stop(CaseFeed *f)
{
    qatomic_set(&f->stop, true);
    g_thread_join(f->thread);
}

void case_test(const char *name, void (*test)(const void *))
{
    for (unsigned i = 0; i < ARRAY_SIZE(controllers); i++) {
        g_autofree char *path = g_strdup_printf("/virtio-scsi-%s/%s", name,
                                                controller_names[i]);

        qtest_add_data_func(path, controllers[i], test);
    }
}
