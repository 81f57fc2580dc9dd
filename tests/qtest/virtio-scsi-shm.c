/*
 * A virtio-scsi driver that shares guest memory with QEMU
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include <sys/mman.h>
#include "libqos/pci-pc.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_ids.h"
#include "standard-headers/linux/virtio_pci.h"
#include "standard-headers/linux/virtio_ring.h"
#include "virtio-scsi-shm.h"

#define FEATURE(bit) (1ull << (bit))

/* The BIOS and its data have the first MiB. */
#define FIRST_FREE  (1024 * 1024)

/* Memory of a slot: header, response (up to the data), data */
#define SLOT_HEAD   0
#define SLOT_DATA   1024
#define SLOT_SIZE   (SLOT_DATA + SHM_DATA_MAX)
#define HEAD_MAX    512
QEMU_BUILD_BUG_ON(HEAD_MAX + SHM_RESP_FIXED + SHM_SENSE_MAX > SLOT_DATA);

/* Descriptors of a slot: header, response, data */
#define SLOT_DESCS  3

/*
 * Memory
 */

/* A memfd: QEMU inherits it, and nothing is left behind if we crash. */
void shm_mem_init(ShmMem *mem, size_t size)
{
    mem->size = size;
    mem->used = FIRST_FREE;
    mem->fd = memfd_create("guest-ram", 0);
    g_assert_cmpint(mem->fd, >=, 0);
    g_assert_cmpint(ftruncate(mem->fd, size), ==, 0);
    mem->host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, mem->fd,
                     0);
    g_assert_true(mem->host != MAP_FAILED);
}

char *shm_mem_args(const ShmMem *mem)
{
    return g_strdup_printf("-m %zuM -object memory-backend-file,id=ram,"
                           "size=%zuM,share=on,mem-path=/dev/fd/%d",
                           mem->size >> 20, mem->size >> 20, mem->fd);
}

void shm_mem_destroy(ShmMem *mem)
{
    munmap(mem->host, mem->size);
    close(mem->fd);
}

static uint64_t mem_alloc(ShmMem *mem, size_t size)
{
    uint64_t addr = ROUND_UP(mem->used, 4096);

    mem->used = addr + size;
    g_assert_cmpuint(mem->used, <=, mem->size);
    return addr;
}

static uint64_t guest_addr(const ShmMem *mem, const void *host)
{
    return (const uint8_t *)host - mem->host;
}

/*
 * Set-up
 */

ShmDev *shm_new(QTestState *qts, ShmMem *mem, unsigned pci_slot,
                unsigned depth)
{
    ShmDev *d = g_new0(ShmDev, 1);

    d->qts = qts;
    d->mem = mem;
    d->pci_slot = pci_slot;
    d->depth = depth;
    shm_probe(d);
    return d;
}

static void close_pci(ShmDev *d)
{
    if (d->pci) {
        g_free(d->pci->pdev);
        g_free(d->pci);
        qpci_free_pc(d->bus);
    }
    d->pci = NULL;
}

/* Give the device its place in PCI address space. */
void shm_probe(ShmDev *d)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(d->pci_slot, 0) };

    close_pci(d);
    d->bus = qpci_new_pc(d->qts, NULL);
    d->pci = virtio_pci_new(d->bus, &addr);
    g_assert_nonnull(d->pci);
    g_assert_cmpuint(d->pci->vdev.device_type, ==, VIRTIO_ID_SCSI);
    g_assert_cmpuint(d->pci->notify_cfg_offset, !=, 0);
    qvirtio_pci_device_enable(d->pci);
}

static void common_writew(ShmDev *d, unsigned offset, uint16_t value)
{
    qpci_io_writew(d->pci->pdev, d->pci->bar,
                   d->pci->common_cfg_offset + offset, value);
}

static uint16_t common_readw(ShmDev *d, unsigned offset)
{
    return qpci_io_readw(d->pci->pdev, d->pci->bar,
                         d->pci->common_cfg_offset + offset);
}

void shm_config_writel(ShmDev *d, unsigned offset, uint32_t value)
{
    qpci_io_writel(d->pci->pdev, d->pci->bar,
                   d->pci->device_cfg_offset + offset, value);
}

static void negotiate(ShmDev *d, unsigned flags)
{
    QVirtioDevice *vdev = &d->pci->vdev;
    uint64_t wanted = FEATURE(VIRTIO_F_VERSION_1) |
                      FEATURE(VIRTIO_SCSI_F_HOTPLUG) |
                      FEATURE(VIRTIO_SCSI_F_CHANGE);

    if (flags & SHM_EVENT_IDX) {
        wanted |= FEATURE(VIRTIO_RING_F_EVENT_IDX);
    }
    d->flags = flags;
    qvirtio_reset(vdev);
    qvirtio_set_acknowledge(vdev);
    qvirtio_set_driver(vdev);
    g_assert_cmphex(wanted & ~qvirtio_get_features(vdev), ==, 0);
    qvirtio_set_features(vdev, wanted);
}

static void alloc_slots(ShmQueue *q)
{
    ShmMem *mem = q->dev->mem;
    uint8_t *base;

    q->num_slots = MIN(q->dev->depth, q->pci.vq.size / SLOT_DESCS);
    q->slots = g_new0(ShmSlot, q->num_slots);
    q->free = g_new0(ShmSlot *, q->num_slots);
    base = mem->host + mem_alloc(mem, (size_t)q->num_slots * SLOT_SIZE);
    for (unsigned i = 0; i < q->num_slots; i++) {
        q->slots[i].q = q;
        q->slots[i].head = base + i * SLOT_SIZE + SLOT_HEAD;
        q->slots[i].data = base + i * SLOT_SIZE + SLOT_DATA;
    }
}

static void alloc_queue(ShmDev *d, ShmQueue *q, unsigned index)
{
    QVirtQueue *vq = &q->pci.vq;
    ShmMem *mem = d->mem;

    q->dev = d;
    vq->vdev = &d->pci->vdev;
    vq->index = index;
    vq->size = common_readw(d, offsetof(struct virtio_pci_common_cfg,
                                        queue_size));
    vq->desc = mem_alloc(mem, sizeof(struct vring_desc) * vq->size);
    vq->avail = mem_alloc(mem, 2 * (vq->size + 3));
    vq->used = mem_alloc(mem, 8 * vq->size + 6);
    q->desc = (void *)(mem->host + vq->desc);
    q->avail = (void *)(mem->host + vq->avail);
    q->used = (void *)(mem->host + vq->used);
    alloc_slots(q);
}

static uint16_t *avail_used_event(ShmQueue *q)
{
    return &q->avail->ring[q->pci.vq.size];
}

static uint16_t *used_avail_event(ShmQueue *q)
{
    return (uint16_t *)&q->used->ring[q->pci.vq.size];
}

static bool queue_interrupts(const ShmQueue *q)
{
    return q->dev->flags & SHM_INTERRUPTS && q->pci.vq.index % 2;
}

/* An empty ring; whatever was in it is forgotten. */
static void clear_queue(ShmQueue *q)
{
    unsigned size = q->pci.vq.size;

    memset(q->avail, 0, 2 * (size + 3));
    memset(q->used, 0, 8 * size + 6);
    q->avail_idx = q->published = q->used_idx = 0;
    q->num_free = 0;
    for (unsigned i = q->num_slots; i-- > 0; ) {
        q->slots[i].busy = false;
        q->free[q->num_free++] = &q->slots[i];
    }
}

/* Interrupt at the next answer, or not within half of what an index counts */
static void set_used_event(ShmQueue *q)
{
    uint16_t ahead = queue_interrupts(q) ? 0 : 0x8000;

    qatomic_set(avail_used_event(q), cpu_to_le16(q->used_idx + ahead));
}

static void enable_queue(ShmDev *d, ShmQueue *q)
{
    if (d->flags & SHM_EVENT_IDX) {
        set_used_event(q);
    } else if (!queue_interrupts(q)) {
        q->avail->flags = cpu_to_le16(VRING_AVAIL_F_NO_INTERRUPT);
    }
    d->pci->vdev.bus->set_queue_address(&d->pci->vdev, &q->pci.vq);
    q->pci.notify_offset = d->pci->notify_cfg_offset +
        d->pci->notify_off_multiplier *
        common_readw(d, offsetof(struct virtio_pci_common_cfg,
                                 queue_notify_off));
    common_writew(d, offsetof(struct virtio_pci_common_cfg, queue_enable), 1);
}

void shm_start(ShmDev *d, unsigned flags)
{
    QVirtioDevice *vdev = &d->pci->vdev;

    negotiate(d, flags);
    if (!d->vqs) {
        d->num_queues = qvirtio_config_readl(vdev,
            offsetof(struct virtio_scsi_config, num_queues));
        d->num_vqs = d->num_queues + 2;
        d->vqs = g_new0(ShmQueue, d->num_vqs);
    }
    for (unsigned i = 0; i < d->num_vqs; i++) {
        vdev->bus->queue_select(vdev, i);
        if (!d->vqs[i].dev) {
            alloc_queue(d, &d->vqs[i], i);
        }
        d->vqs[i].pci.vq.vdev = vdev;
        clear_queue(&d->vqs[i]);
        enable_queue(d, &d->vqs[i]);
    }
    qvirtio_set_driver_ok(vdev);
}

/* Device reset.  The slots stay as they are until shm_start(). */
void shm_reset(ShmDev *d)
{
    qvirtio_reset(&d->pci->vdev);
}

void shm_free(ShmDev *d)
{
    for (unsigned i = 0; d->vqs && i < d->num_vqs; i++) {
        g_free(d->vqs[i].slots);
        g_free(d->vqs[i].free);
    }
    g_free(d->vqs);
    close_pci(d);
    g_free(d);
}

/*
 * Requests
 */

ShmSlot *shm_take(ShmQueue *q)
{
    return q->num_free ? q->free[q->num_free - 1] : NULL;
}

static unsigned put_desc(ShmQueue *q, unsigned pos, const uint8_t *host,
                         unsigned len, uint16_t flags)
{
    q->desc[pos] = (struct vring_desc) {
        .addr = cpu_to_le64(guest_addr(q->dev->mem, host)),
        .len = cpu_to_le32(len),
        .flags = cpu_to_le16(flags | VRING_DESC_F_NEXT),
        .next = cpu_to_le16(pos + 1),
    };
    return pos + 1;
}

void shm_post(ShmSlot *slot, const ShmShape *shape)
{
    ShmQueue *q = slot->q;
    unsigned first = (slot - q->slots) * SLOT_DESCS;
    unsigned pos = first;

    g_assert_true(slot == q->free[q->num_free - 1] && !slot->busy);
    g_assert_cmpuint(shape->head, <=, HEAD_MAX);
    g_assert_false(shape->in && shape->out);
    q->num_free--;
    slot->busy = true;

    if (shape->head) {
        pos = put_desc(q, pos, slot->head, shape->head, 0);
    }
    if (shape->out) {
        pos = put_desc(q, pos, slot->data, shape->out, 0);
    }
    if (shape->resp) {
        pos = put_desc(q, pos, shm_resp(slot, shape->resp), shape->resp,
                       VRING_DESC_F_WRITE);
    }
    if (shape->in) {
        pos = put_desc(q, pos, slot->data, shape->in, VRING_DESC_F_WRITE);
    }
    g_assert_cmpuint(pos, >, first);
    q->desc[pos - 1].flags &= cpu_to_le16(~VRING_DESC_F_NEXT);
    q->avail->ring[q->avail_idx++ % q->pci.vq.size] = cpu_to_le16(first);
}

/* Virtio 1.2, 2.7.7.2 and 2.7.10 */
bool shm_publish(ShmQueue *q)
{
    uint16_t before = q->published;
    uint16_t now = q->avail_idx;
    uint16_t event;

    if (now == before) {
        return false;
    }
    /* The device must see the descriptors before the index... */
    qatomic_store_release(&q->avail->idx, cpu_to_le16(now));
    q->published = now;

    /* ...and we look whether it sleeps only after it can see the index. */
    smp_mb();
    if (q->dev->flags & SHM_EVENT_IDX) {
        event = le16_to_cpu(qatomic_read(used_avail_event(q)));
        return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
    }
    return !(le16_to_cpu(qatomic_read(&q->used->flags)) &
             VRING_USED_F_NO_NOTIFY);
}

void shm_kick(ShmQueue *q)
{
    q->kicks++;
    q->pci.vq.vdev->bus->virtqueue_kick(q->pci.vq.vdev, &q->pci.vq);
}

void shm_flush(ShmQueue *q)
{
    if (shm_publish(q)) {
        shm_kick(q);
    }
}

static void bad_used(ShmQueue *q, uint32_t id, const char *what)
{
    g_printerr("virtqueue %u, used entry %u, descriptor %u: %s\n",
               q->pci.vq.index, q->used_idx, id, what);
    g_assert_not_reached();
}

ShmSlot *shm_reap(ShmQueue *q)
{
    uint16_t idx = le16_to_cpu(qatomic_load_acquire(&q->used->idx));
    struct vring_used_elem *elem;
    ShmSlot *slot;
    uint32_t id;

    if (idx == q->used_idx) {
        return NULL;
    }
    elem = &q->used->ring[q->used_idx % q->pci.vq.size];
    id = le32_to_cpu(elem->id);
    if ((uint16_t)(idx - q->used_idx) > shm_in_flight(q)) {
        bad_used(q, id, "more answers than requests");
    }
    if (id % SLOT_DESCS || id / SLOT_DESCS >= q->num_slots) {
        bad_used(q, id, "no such request");
    }
    slot = &q->slots[id / SLOT_DESCS];
    if (!slot->busy) {
        bad_used(q, id, "request was not in flight (answered twice?)");
    }

    slot->busy = false;
    slot->used_len = le32_to_cpu(elem->len);
    q->free[q->num_free++] = slot;
    q->used_idx++;
    q->answered++;
    if (q->dev->flags & SHM_EVENT_IDX) {
        set_used_event(q);
    }
    return slot;
}

/*
 * The control queue
 */

/* Virtio 1.2, 5.6.6.1: single level addressing, flat space for the LUN */
void shm_put_lun(uint8_t *field, unsigned target, unsigned lun)
{
    memset(field, 0, 8);
    field[0] = 1;
    field[1] = target;
    field[2] = 0x40 | lun >> 8;
    field[3] = lun & 0xff;
}

void shm_post_tmf(ShmSlot *slot, uint32_t subtype, unsigned target,
                  unsigned lun, uint64_t tag)
{
    struct virtio_scsi_ctrl_tmf_req *req = (void *)slot->head;
    ShmShape shape = {
        .head = sizeof(*req),
        .resp = sizeof(struct virtio_scsi_ctrl_tmf_resp),
    };

    *req = (struct virtio_scsi_ctrl_tmf_req) {
        .type = cpu_to_le32(VIRTIO_SCSI_T_TMF),
        .subtype = cpu_to_le32(subtype),
        .tag = cpu_to_le64(tag),
    };
    shm_put_lun(req->lun, target, lun);
    *shm_resp(slot, shape.resp) = 0xff;
    shm_post(slot, &shape);
}

uint8_t shm_tmf_response(const ShmSlot *slot)
{
    return *shm_resp(slot, sizeof(struct virtio_scsi_ctrl_tmf_resp));
}

/*
 * Waiting
 */

void shm_wait(ShmWait *w, QTestState *qts, const char *what)
{
    gint64 now;

    if (++w->rounds < 20) {
        sched_yield();
        return;
    }
    now = g_get_monotonic_time();
    if (w->rounds == 20) {
        w->since = now;
    }
    if (w->rounds % 1024 == 0 && !qtest_probe_child(qts)) {
        g_printerr("QEMU is gone; we were waiting for %s\n", what);
        g_assert_not_reached();
    }
    if (now - w->since > SHM_HANG_US) {
        g_printerr("hang: waited too long for %s\n", what);
        g_assert_not_reached();
    }
    g_usleep(30);
}
