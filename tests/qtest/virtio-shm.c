/*
 * A virtio driver that shares guest memory with QEMU
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/cutils.h"
#include "qemu/host-utils.h"
#include <sys/mman.h>
#include "libqos/pci-pc.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_ids.h"
#include "standard-headers/linux/virtio_pci.h"
#include "standard-headers/linux/virtio_scsi.h"
#include "virtio-shm.h"

#define FEATURE(bit) (1ull << (bit))
#define COMMON(field) offsetof(struct virtio_pci_common_cfg, field)

/* The BIOS and its data have the first MiB. */
#define FIRST_FREE  (1024 * 1024)

/* What no two parties shall share */
#define CACHE_LINE  64

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

uint64_t shm_alloc(ShmMem *mem, size_t size)
{
    uint64_t addr = ROUND_UP(mem->used, 4096);

    mem->used = addr + size;
    g_assert_cmpuint(mem->used, <=, mem->size);
    return addr;
}

/*
 * The device
 */

ShmDev *shm_dev_new(QTestState *qts, ShmMem *mem, unsigned pci_slot,
                    const ShmGeometry *geo)
{
    ShmDev *d = g_new0(ShmDev, 1);

    d->qts = qts;
    d->mem = mem;
    d->pci_slot = pci_slot;
    d->geo = *geo;
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

void shm_probe(ShmDev *d)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(d->pci_slot, 0) };

    close_pci(d);
    d->bus = qpci_new_pc(d->qts, NULL);
    d->pci = virtio_pci_new(d->bus, &addr);
    g_assert_nonnull(d->pci);
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

uint32_t shm_config_readl(ShmDev *d, unsigned offset)
{
    return qpci_io_readl(d->pci->pdev, d->pci->bar,
                         d->pci->device_cfg_offset + offset);
}

static bool is_scsi(const ShmDev *d)
{
    return d->pci->vdev.device_type == VIRTIO_ID_SCSI;
}

static uint64_t wanted_features(const ShmDev *d)
{
    uint64_t wanted = FEATURE(VIRTIO_F_VERSION_1);

    if (is_scsi(d)) {
        wanted |= FEATURE(VIRTIO_SCSI_F_HOTPLUG) |
                  FEATURE(VIRTIO_SCSI_F_CHANGE);
    } else {
        /* Without FLUSH each write would go to the medium at once. */
        wanted |= FEATURE(VIRTIO_BLK_F_MQ) | FEATURE(VIRTIO_BLK_F_FLUSH);
    }
    if (d->flags & SHM_EVENT_IDX) {
        wanted |= FEATURE(VIRTIO_RING_F_EVENT_IDX);
    }
    if (d->flags & SHM_INDIRECT) {
        wanted |= FEATURE(VIRTIO_RING_F_INDIRECT_DESC);
    }
    if (d->flags & SHM_PACKED) {
        wanted |= FEATURE(VIRTIO_F_RING_PACKED);
    }
    return wanted;
}

static void negotiate(ShmDev *d)
{
    QVirtioDevice *vdev = &d->pci->vdev;
    uint64_t offered;
    uint64_t wanted;

    qvirtio_reset(vdev);
    qvirtio_set_acknowledge(vdev);
    qvirtio_set_driver(vdev);
    offered = qvirtio_get_features(vdev);
    wanted = wanted_features(d);
    if (!(offered & FEATURE(VIRTIO_BLK_F_MQ)) && !is_scsi(d)) {
        /* A disk with a single queue doesn't mention it. */
        wanted &= ~FEATURE(VIRTIO_BLK_F_MQ);
    }
    g_assert_cmphex(wanted & ~offered, ==, 0);
    qvirtio_set_features(vdev, wanted);
}

static void count_queues(ShmDev *d)
{
    QVirtioDevice *vdev = &d->pci->vdev;

    if (is_scsi(d)) {
        d->first_queue = 2;
        d->num_queues = qvirtio_config_readl(vdev,
            offsetof(struct virtio_scsi_config, num_queues));
    } else {
        g_assert_cmpuint(vdev->device_type, ==, VIRTIO_ID_BLOCK);
        d->num_queues = 1;
        if (vdev->features & FEATURE(VIRTIO_BLK_F_MQ)) {
            d->num_queues = qvirtio_config_readw(vdev,
                offsetof(struct virtio_blk_config, num_queues));
        }
    }
    d->num_vqs = d->first_queue + d->num_queues;
}

/*
 * Queues
 */

static unsigned wanted_depth(const ShmQueue *q)
{
    const ShmDev *d = q->dev;

    return q->pci.vq.index < d->first_queue ? d->geo.depth_other
                                            : d->geo.depth;
}

/* Whole pages, or at least aligned to its size */
static size_t data_size(const ShmGeometry *geo)
{
    return geo->data < 4096 ? pow2ceil(MAX(geo->data, 1))
                            : ROUND_UP(geo->data, 4096);
}

/*
 * Headers and responses close together, as what is looked at for each request,
 * and data elsewhere; unless the caller wants it directly behind the response.
 */
static void place_slots(ShmQueue *q)
{
    const ShmGeometry *geo = &q->dev->geo;
    ShmMem *mem = q->dev->mem;
    size_t resp = ROUND_UP(geo->head, CACHE_LINE) +
                  (geo->adjacent ? ROUND_UP(geo->resp, CACHE_LINE) - geo->resp
                                 : 0);
    size_t step = ROUND_UP(resp + geo->resp, CACHE_LINE);
    size_t data_step = data_size(geo);
    uint8_t *base, *data;

    if (geo->adjacent) {
        step = data_step = step + data_step;
    }
    base = mem->host + shm_alloc(mem, q->num_slots * step);
    data = geo->adjacent ? base + resp + geo->resp
                         : mem->host + shm_alloc(mem, q->num_slots * data_step);
    for (unsigned i = 0; i < q->num_slots; i++) {
        q->slots[i].head = base + i * step;
        q->slots[i].resp_end = base + i * step + resp + geo->resp;
        q->slots[i].data = data + i * data_step;
    }
}

static void alloc_slots(ShmQueue *q)
{
    ShmMem *mem = q->dev->mem;
    size_t table_size = ROUND_UP(SHM_PARTS * sizeof(struct vring_desc),
                                 CACHE_LINE);
    uint8_t *tables;

    q->stride = q->dev->flags & SHM_INDIRECT ? 1 : SHM_PARTS;
    q->num_slots = MIN(wanted_depth(q), q->pci.vq.size / q->stride);
    q->slots = g_new0(ShmSlot, q->num_slots);
    q->free = g_new0(ShmSlot *, q->num_slots);
    place_slots(q);
    tables = mem->host + shm_alloc(mem, q->num_slots * table_size);
    for (unsigned i = 0; i < q->num_slots; i++) {
        q->slots[i].q = q;
        q->slots[i].table = (void *)(tables + i * table_size);
    }
}

static void alloc_queue(ShmDev *d, ShmQueue *q, unsigned index)
{
    q->dev = d;
    q->kick_fd = -1;
    q->pci.vq.index = index;
    q->pci.vq.size = common_readw(d, COMMON(queue_size));
    g_assert_cmpuint(ctpop32(q->pci.vq.size), ==, 1);
    shm_ring_alloc(q);
    alloc_slots(q);
    if (d->flags & SHM_MSIX) {
        q->msi = (void *)(d->mem->host + shm_alloc(d->mem, CACHE_LINE));
    }
}

/* The vector of a queue has its index; configuration changes have none. */
static void set_vector(ShmDev *d, ShmQueue *q)
{
    QPCIDevice *pdev = d->pci->pdev;
    uint16_t index = q->pci.vq.index;
    uint64_t entry = pdev->msix_table_off + index * PCI_MSIX_ENTRY_SIZE;
    uint64_t addr = shm_guest_addr(d->mem, q->msi);
    QPCIBar bar = pdev->msix_table_bar;

    g_assert_cmpuint(index, <, qpci_msix_table_size(pdev));
    qpci_io_writel(pdev, bar, entry + PCI_MSIX_ENTRY_LOWER_ADDR, addr);
    qpci_io_writel(pdev, bar, entry + PCI_MSIX_ENTRY_UPPER_ADDR, addr >> 32);
    qpci_io_writel(pdev, bar, entry + PCI_MSIX_ENTRY_DATA, 1);
    qpci_io_writel(pdev, bar, entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 0);
    common_writew(d, COMMON(queue_msix_vector), index);
    g_assert_cmpuint(common_readw(d, COMMON(queue_msix_vector)), ==, index);
}

/* An empty ring; whatever was in it is forgotten. */
static void clear_queue(ShmQueue *q)
{
    shm_ring_clear(q);
    q->avail_idx = q->published = q->used_idx = q->used_seen = 0;
    q->num_free = 0;
    for (unsigned i = q->num_slots; i-- > 0; ) {
        q->slots[i].busy = false;
        q->free[q->num_free++] = &q->slots[i];
    }
    if (q->msi) {
        *q->msi = 0;
    }
}

void shm_enable_queue(ShmQueue *q)
{
    ShmDev *d = q->dev;
    QVirtioDevice *vdev = &d->pci->vdev;

    q->pci.vq.vdev = vdev;
    vdev->bus->queue_select(vdev, q->pci.vq.index);
    clear_queue(q);
    shm_ring_init_events(q);
    if (q->msi) {
        set_vector(d, q);
    }
    vdev->bus->set_queue_address(vdev, &q->pci.vq);
    q->pci.notify_offset = d->pci->notify_cfg_offset +
        d->pci->notify_off_multiplier * common_readw(d,
                                                     COMMON(queue_notify_off));
    common_writew(d, COMMON(queue_enable), 1);
}

void shm_dev_start(ShmDev *d, unsigned flags)
{
    QVirtioDevice *vdev = &d->pci->vdev;

    g_assert(!d->vqs || !((d->flags ^ flags) & (SHM_PACKED | SHM_INDIRECT |
                                                SHM_MSIX)));
    d->flags = flags;
    negotiate(d);
    if (!d->vqs) {
        count_queues(d);
        d->vqs = g_new0(ShmQueue, d->num_vqs);
    }
    if (flags & SHM_MSIX && !d->pci->pdev->msix_enabled) {
        qpci_msix_enable(d->pci->pdev);
    }
    for (unsigned i = 0; i < d->num_vqs; i++) {
        vdev->bus->queue_select(vdev, i);
        if (!d->vqs[i].dev) {
            alloc_queue(d, &d->vqs[i], i);
        }
        shm_enable_queue(&d->vqs[i]);
    }
    qvirtio_set_driver_ok(vdev);
}

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

/* An ioeventfd is what KVM would signal when the guest writes the register. */
void shm_kick(ShmQueue *q)
{
    const uint64_t one = 1;

    q->kicks++;
    if (q->kick_fd < 0) {
        q->pci.vq.vdev->bus->virtqueue_kick(q->pci.vq.vdev, &q->pci.vq);
    } else if (write(q->kick_fd, &one, sizeof(one)) != sizeof(one)) {
        g_error("virtqueue %u: cannot kick: %s", q->pci.vq.index,
                g_strerror(errno));
    }
}

uint64_t shm_qemu_rss_kb(QTestState *qts)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status",
                                            (int)qtest_pid(qts));
    g_autofree char *text = NULL;
    uint64_t kb = 0;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_nonnull(strstr(text, "VmRSS:"));
    qemu_strtou64(strstr(text, "VmRSS:") + 6, NULL, 10, &kb);
    return kb;
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
