/*
 * A small multiqueue virtio-scsi driver for qtest
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "scsi/constants.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_ids.h"
#include "standard-headers/linux/virtio_pci.h"
#include "standard-headers/linux/virtio_ring.h"
#include "virtio-scsi-mq-common.h"

/*
 * Guest memory of a slot.  With MQ_ONE_BUF a header that has data is moved so
 * that it ends where the data begins.
 */
#define MAX_PIECES  6
#define DESC_SIZE   16
#define SLOT_TABLE  0
#define SLOT_HEAD   128
#define SLOT_RESP   192
#define SLOT_DATA   512
QEMU_BUILD_BUG_ON(SLOT_TABLE + MAX_PIECES * DESC_SIZE > SLOT_HEAD);
QEMU_BUILD_BUG_ON(SLOT_HEAD + sizeof(struct virtio_scsi_cmd_req) > SLOT_RESP);
QEMU_BUILD_BUG_ON(SLOT_RESP + sizeof(struct virtio_scsi_cmd_resp) > SLOT_DATA);

#define FEATURE(bit) (1ull << (bit))

typedef struct Piece {
    uint64_t addr;
    uint32_t len;
    bool device_writes;
} Piece;

void mq_pause(gint64 *start, const char *what)
{
    gint64 now = g_get_monotonic_time();

    if (!*start) {
        *start = now;
    }
    if (now - *start > MQ_HANG_US) {
        g_printerr("hang: waited too long for %s\n", what);
        g_assert_not_reached();
    }
    /* Each look goes through QEMU's main loop; leave it time to work. */
    g_usleep(50);
}

static QTestState *qts_of(const MqQueue *q)
{
    return q->dev->qts;
}

static bool is_packed(const MqQueue *q)
{
    return q->dev->form & MQ_PACKED;
}

static uint32_t ring_size(const MqQueue *q)
{
    return q->pci.vq.size;
}

static uint64_t desc_addr(const MqQueue *q, unsigned pos)
{
    return q->pci.vq.desc + sizeof(struct vring_desc) * pos;
}

/* The driver's area of the ring: split avail ring, packed event structure */
static uint64_t driver_area(const MqQueue *q, unsigned offset)
{
    return q->pci.vq.avail + offset;
}

/* The device's area: split used ring, packed event structure */
static uint64_t device_area(const MqQueue *q, unsigned offset)
{
    return q->pci.vq.used + offset;
}

static uint64_t slot_base(const MqSlot *slot)
{
    return slot->table - SLOT_TABLE;
}

/* Ring descriptors that one request takes at most */
static unsigned descs_per_slot(unsigned form)
{
    if (form & MQ_INDIRECT) {
        return 1;
    }
    return (form & MQ_ONE_BUF ? 2 : 3) + (form & MQ_CUT_DATA ? 2 : 0);
}

/*
 * Both rings are laid out as legacy devices need it, in one block with the
 * used ring on a page of its own; modern devices don't mind.
 */
static void queue_alloc_ring(MqQueue *q)
{
    MqDev *d = q->dev;
    QVirtQueue *vq = &q->pci.vq;
    size_t avail_off = sizeof(struct vring_desc) * vq->size;
    size_t used_off = ROUND_UP(avail_off + 2 * (vq->size + 3), 4096);
    size_t total = used_off + 8 * vq->size + 6;

    vq->desc = guest_alloc(d->alloc, total);
    vq->avail = vq->desc + avail_off;
    vq->used = vq->desc + used_off;
    qtest_memset(d->qts, vq->desc, 0, total);
    d->vdev->bus->set_queue_address(d->vdev, vq);
}

static void queue_alloc_slots(MqQueue *q, size_t data_max)
{
    size_t stride = SLOT_DATA + data_max;

    q->num_slots = ring_size(q) / descs_per_slot(q->dev->form);
    q->slots = g_new0(MqSlot, q->num_slots);
    q->avail_ring = g_new0(uint16_t, ring_size(q));
    q->stride = stride;
    q->mem = guest_alloc(q->dev->alloc, stride * q->num_slots);

    for (unsigned i = 0; i < q->num_slots; i++) {
        q->slots[i].q = q;
        q->slots[i].table = q->mem + stride * i + SLOT_TABLE;
    }
}

/* Modern devices: the queue's doorbell, and its switch, thrown last */
static void queue_enable_modern(MqQueue *q)
{
    QVirtioPCIDevice *pci = q->dev->pci;
    uint64_t cfg = pci->common_cfg_offset;
    uint16_t bell;

    bell = qpci_io_readw(pci->pdev, pci->bar,
        cfg + offsetof(struct virtio_pci_common_cfg, queue_notify_off));
    q->pci.notify_offset = pci->notify_cfg_offset +
                           (uint64_t)bell * pci->notify_off_multiplier;
    qpci_io_writew(pci->pdev, pci->bar,
        cfg + offsetof(struct virtio_pci_common_cfg, queue_enable), 1);
}

static MqQueue *queue_new(MqDev *d, unsigned index, size_t data_max)
{
    MqQueue *q = g_new0(MqQueue, 1);
    QVirtQueue *vq = &q->pci.vq;

    q->dev = d;
    q->avail_wrap = true;
    q->used_wrap = true;
    q->pci.msix_entry = -1;
    q->pci.msix_data = 0x12345678;
    vq->vdev = d->vdev;
    vq->index = index;

    d->vdev->bus->queue_select(d->vdev, index);
    vq->size = d->vdev->bus->get_queue_size(d->vdev);
    g_assert_cmpuint(vq->size, >, 3);

    queue_alloc_ring(q);
    queue_alloc_slots(q, data_max);
    if (d->form & MQ_MSIX) {
        qvirtqueue_pci_msix_setup(d->pci, &q->pci, d->alloc, index);
        qtest_writel(d->qts, q->pci.msix_addr, 0);
        d->vdev->bus->queue_select(d->vdev, index);
    }
    if (mq_is_modern(d)) {
        queue_enable_modern(q);
    }
    return q;
}

static void queue_free(MqQueue *q)
{
    if (q->dev->form & MQ_MSIX) {
        guest_free(q->dev->alloc, q->pci.msix_addr);
    }
    guest_free(q->dev->alloc, q->mem);
    guest_free(q->dev->alloc, q->pci.vq.desc);
    g_free(q->avail_ring);
    g_free(q->slots);
    g_free(q);
}

MqDev *mq_open(QPCIBus *bus, QGuestAllocator *alloc, unsigned pci_slot)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(pci_slot, 0) };
    MqDev *d = g_new0(MqDev, 1);

    d->qts = bus->qts;
    d->alloc = alloc;
    d->pci = virtio_pci_new(bus, &addr);
    g_assert_nonnull(d->pci);
    d->vdev = &d->pci->vdev;
    g_assert_cmpuint(d->vdev->device_type, ==, VIRTIO_ID_SCSI);
    qvirtio_pci_device_enable(d->pci);
    return d;
}

static void forget_queues(MqDev *d)
{
    for (unsigned i = 0; d->vqs && i < d->num_vqs; i++) {
        queue_free(d->vqs[i]);
    }
    g_free(d->vqs);
    d->vqs = NULL;
}

/* Leaves the device alone: it may have been unplugged. */
void mq_close(MqDev *d)
{
    forget_queues(d);
    qvirtio_pci_device_disable(d->pci);
    g_free(d->pci->pdev);
    g_free(d->pci);
    g_free(d);
}

static uint64_t wanted_features(unsigned form)
{
    uint64_t f = FEATURE(VIRTIO_SCSI_F_HOTPLUG) |
                 FEATURE(VIRTIO_SCSI_F_CHANGE);

    if (form & MQ_INDIRECT) {
        f |= FEATURE(VIRTIO_RING_F_INDIRECT_DESC);
    }
    if (form & MQ_EVENT_IDX) {
        f |= FEATURE(VIRTIO_RING_F_EVENT_IDX);
    }
    if (form & MQ_PACKED) {
        f |= FEATURE(VIRTIO_F_RING_PACKED);
    }
    return f;
}

/* Everything up to, but without, DRIVER_OK */
void mq_setup(MqDev *d, unsigned form, size_t data_max)
{
    uint64_t wanted = wanted_features(form);
    uint64_t offered;

    /* A modern device takes any layout without being asked. */
    wanted |= mq_is_modern(d) ? FEATURE(VIRTIO_F_VERSION_1)
                              : FEATURE(VIRTIO_F_ANY_LAYOUT);

    g_assert_null(d->vqs);
    d->form = form;

    qvirtio_reset(d->vdev);
    qvirtio_set_acknowledge(d->vdev);
    qvirtio_set_driver(d->vdev);

    offered = qvirtio_get_features(d->vdev);
    g_assert_cmphex(wanted & ~offered, ==, 0);
    qvirtio_set_features(d->vdev, wanted);

    d->num_queues = qvirtio_config_readl(d->vdev,
        offsetof(struct virtio_scsi_config, num_queues));
    d->num_vqs = d->num_queues + 2;
    if (form & MQ_MSIX) {
        qpci_msix_enable(d->pci->pdev);
    }
    d->vqs = g_new0(MqQueue *, d->num_vqs);
    for (unsigned i = 0; i < d->num_vqs; i++) {
        d->vqs[i] = queue_new(d, i, i < 2 ? 0 : data_max);
    }
}

void mq_driver_ok(MqDev *d)
{
    qvirtio_set_driver_ok(d->vdev);
}

void mq_start(MqDev *d, unsigned form, size_t data_max)
{
    mq_setup(d, form, data_max);
    mq_driver_ok(d);
}

void mq_reset(MqDev *d)
{
    qvirtio_reset(d->vdev);
    if (d->form & MQ_MSIX) {
        qpci_msix_disable(d->pci->pdev);
    }
    forget_queues(d);
}

int64_t mq_disk_stat(MqDev *d, const char *id, const char *name)
{
    g_autoptr(QDict) resp = qtest_qmp(d->qts,
                                      "{'execute': 'query-blockstats'}");
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), entry) {
        const QDict *device = qobject_to(QDict, qlist_entry_obj(entry));
        const char *qdev = qdict_get_try_str(device, "qdev");

        if (qdev && strstr(qdev, id)) {
            return qdict_get_int(qdict_get_qdict(device, "stats"), name);
        }
    }
    g_assert_not_reached();
}

bool mq_wait_migrated(QTestState *qts)
{
    gint64 start = 0;

    while (true) {
        g_autoptr(QDict) resp = qtest_qmp(qts,
                                          "{'execute': 'query-migrate'}");
        const char *status =
            qdict_get_try_str(qdict_get_qdict(resp, "return"), "status");

        if (!g_strcmp0(status, "completed") || !g_strcmp0(status, "failed")) {
            return g_str_equal(status, "completed");
        }
        mq_pause(&start, "the end of a migration");
    }
}

bool mq_try_migrate(QTestState *from, QTestState *to)
{
    int fd;
    g_autofree char *path = mq_open_unnamed(&fd);
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    bool arrived;

    qtest_qmp_assert_success(from,
        "{'execute': 'migrate', 'arguments': {'uri': %s}}", uri);
    g_assert_true(mq_wait_migrated(from));
    qtest_qmp_assert_success(to,
        "{'execute': 'migrate-incoming', 'arguments': {'uri': %s,"
        " 'exit-on-error': false}}", uri);
    arrived = mq_wait_migrated(to);
    close(fd);
    return arrived;
}

void mq_migrate(QTestState *from, QTestState *to)
{
    g_assert_true(mq_try_migrate(from, to));
}

/*
 * The VM goes on in @to.  Guest memory and registers are there as they were,
 * so that positions and addresses stay valid.
 */
void mq_migrated(MqDev *d, QTestState *to)
{
    d->new_bus = *d->pci->pdev->bus;
    d->new_bus.qts = to;
    d->pci->pdev->bus = &d->new_bus;
    d->qts = to;
}

/*
 * Both kinds of ring have descriptors of the same size.  @third and @fourth
 * are flags and next in a split ring, id and flags in a packed one.
 */
static void put_desc(void *to, uint64_t addr, uint32_t len, uint16_t third,
                     uint16_t fourth)
{
    struct vring_packed_desc raw = {
        .addr = cpu_to_le64(addr),
        .len = cpu_to_le32(len),
        .id = cpu_to_le16(third),
        .flags = cpu_to_le16(fourth),
    };

    QEMU_BUILD_BUG_ON(sizeof(raw) != DESC_SIZE);
    memcpy(to, &raw, sizeof(raw));
}

#define PACKED_AVAIL (1 << VRING_PACKED_DESC_F_AVAIL)
#define PACKED_USED  (1 << VRING_PACKED_DESC_F_USED)

/*
 * The flags of the first new head are held back until mq_publish(): with them
 * the device gets to see it and all that follow.  Until then the descriptor
 * looks as the device left it, used in the round before.
 */
static void packed_add_desc(MqQueue *q, MqSlot *slot, const Piece *piece,
                            uint16_t flags, bool head)
{
    uint16_t fresh = flags | (q->avail_wrap ? PACKED_AVAIL : PACKED_USED);
    uint16_t stale = flags | (q->avail_wrap ? 0 : PACKED_AVAIL | PACKED_USED);
    bool hold = head && !q->head_held;
    uint8_t raw[DESC_SIZE];

    if (hold) {
        q->head_held = true;
        q->head_pos = q->next_avail;
        q->head_flags = fresh;
    }
    put_desc(raw, piece->addr, piece->len, slot - q->slots,
             hold ? stale : fresh);
    qtest_memwrite(qts_of(q), desc_addr(q, q->next_avail), raw, sizeof(raw));
    q->added++;
    if (++q->next_avail == ring_size(q)) {
        q->next_avail = 0;
        q->avail_wrap = !q->avail_wrap;
    }
}

static void packed_add(MqQueue *q, MqSlot *slot, const Piece *p, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint16_t flags = (p[i].device_writes ? VRING_DESC_F_WRITE : 0) |
                         (i + 1 < n ? VRING_DESC_F_NEXT : 0);

        packed_add_desc(q, slot, &p[i], flags, i == 0);
    }
}

/* The ring entry itself is written by split_publish(). */
static void split_make_avail(MqQueue *q, uint16_t head)
{
    q->avail_ring[q->avail_idx % ring_size(q)] = cpu_to_le16(head);
    q->avail_idx++;
}

/* A chain as it stands in a split ring from descriptor @first, or a table */
static void split_put_chain(uint8_t *to, const Piece *p, unsigned n,
                            unsigned first)
{
    for (unsigned i = 0; i < n; i++) {
        bool last = i + 1 == n;

        put_desc(to + DESC_SIZE * i, p[i].addr, p[i].len,
                 (p[i].device_writes ? VRING_DESC_F_WRITE : 0) |
                 (last ? 0 : VRING_DESC_F_NEXT),
                 last ? 0 : first + i + 1);
    }
}

static void split_add(MqQueue *q, MqSlot *slot, const Piece *p, unsigned n)
{
    unsigned first = (slot - q->slots) * descs_per_slot(q->dev->form);
    uint8_t chain[DESC_SIZE * MAX_PIECES];

    split_put_chain(chain, p, n, first);
    qtest_memwrite(qts_of(q), desc_addr(q, first), chain, DESC_SIZE * n);
    split_make_avail(q, first);
}

static void put_table(MqQueue *q, uint8_t *to, const Piece *p, unsigned n)
{
    if (!is_packed(q)) {
        split_put_chain(to, p, n, 0);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        put_desc(to + DESC_SIZE * i, p[i].addr, p[i].len, 0,
                 p[i].device_writes ? VRING_DESC_F_WRITE : 0);
    }
}

/* One ring descriptor that stands for the table in the slot */
static void add_indirect(MqQueue *q, MqSlot *slot, unsigned n)
{
    Piece table = { .addr = slot->table, .len = DESC_SIZE * n };
    unsigned pos = slot - q->slots;
    uint8_t raw[DESC_SIZE];

    if (is_packed(q)) {
        packed_add_desc(q, slot, &table, VRING_DESC_F_INDIRECT, true);
        return;
    }
    put_desc(raw, table.addr, table.len, VRING_DESC_F_INDIRECT, 0);
    qtest_memwrite(qts_of(q), desc_addr(q, pos), raw, sizeof(raw));
    split_make_avail(q, pos);
}

static MqSlot *find_free_slot(MqQueue *q)
{
    for (unsigned i = 0; i < q->num_slots; i++) {
        if (!q->slots[i].busy) {
            return &q->slots[i];
        }
    }
    return NULL;
}

/* Append to the chain, merged with the previous piece where they touch */
static unsigned add_piece(Piece *p, unsigned n, uint64_t addr, size_t len,
                          bool device_writes)
{
    if (!len) {
        return n;
    }
    if (n && p[n - 1].device_writes == device_writes &&
        p[n - 1].addr + p[n - 1].len == addr) {
        p[n - 1].len += len;
        return n;
    }
    p[n] = (Piece) { addr, len, device_writes };
    return n + 1;
}

/* The data: pieces cut from one buffer touch, but stay apart. */
static unsigned add_data(Piece *p, unsigned n, const MqQueue *q,
                         uint64_t addr, size_t len, bool device_writes)
{
    size_t cut = q->dev->form & MQ_CUT_DATA ? len / 3 : 0;

    if (!cut) {
        return add_piece(p, n, addr, len, device_writes);
    }
    n = add_piece(p, n, addr, cut, device_writes);
    p[n++] = (Piece) { addr + cut, cut, device_writes };
    p[n++] = (Piece) { addr + 2 * cut, len - 2 * cut, device_writes };
    return n;
}

MqSlot *mq_post_raw(MqQueue *q, const void *head, size_t head_len,
                    const void *out, size_t out_len,
                    size_t resp_len, size_t in_len)
{
    bool one = q->dev->form & MQ_ONE_BUF;
    size_t image_len = SLOT_DATA + MAX(out_len, in_len);
    g_autofree uint8_t *image = g_malloc0(image_len);
    MqSlot *slot = find_free_slot(q);
    Piece p[MAX_PIECES];
    uint64_t base, head_addr;
    unsigned n = 0;

    if (!slot) {
        return NULL;
    }
    g_assert_false(out_len && in_len);

    base = slot_base(slot);
    slot->data = base + SLOT_DATA;
    head_addr = one && out_len ? slot->data - head_len : base + SLOT_HEAD;
    slot->resp = one && in_len ? slot->data - resp_len : base + SLOT_RESP;

    n = add_piece(p, n, head_addr, head_len, false);
    n = add_data(p, n, q, slot->data, out_len, false);
    n = add_piece(p, n, slot->resp, resp_len, true);
    n = add_data(p, n, q, slot->data, in_len, true);
    g_assert_cmpuint(n, >, 0);

    /* All in one access: the ones to guest memory are what takes time. */
    if (q->dev->form & MQ_INDIRECT) {
        put_table(q, image + SLOT_TABLE, p, n);
    }
    if (head_len) {
        memcpy(image + (head_addr - base), head, head_len);
    }
    if (out_len) {
        memcpy(image + SLOT_DATA, out, out_len);
    }
    /* Not zero: an answer that was never written must not look good. */
    memset(image + SLOT_DATA + out_len, MQ_FILLER, in_len);
    memset(image + (slot->resp - base), 0xff, resp_len);
    qtest_bufwrite(qts_of(q), base, image, image_len);

    slot->busy = true;
    slot->done = false;
    slot->num_descs = q->dev->form & MQ_INDIRECT ? 1 : n;
    g_assert_cmpuint(slot->num_descs, <=, descs_per_slot(q->dev->form));
    q->in_flight++;

    if (q->dev->form & MQ_INDIRECT) {
        add_indirect(q, slot, n);
    } else if (is_packed(q)) {
        packed_add(q, slot, p, n);
    } else {
        split_add(q, slot, p, n);
    }
    return slot;
}

/* Has the driver's position passed the point where the device wants a kick? */
static bool passed(uint16_t point, uint16_t now, uint16_t before)
{
    return (uint16_t)(now - point - 1) < (uint16_t)(now - before);
}

static bool packed_publish(MqQueue *q)
{
    uint16_t added = q->added;
    uint16_t flags, off_wrap;
    uint16_t event;

    if (!q->head_held) {
        return false;
    }
    qtest_writew(qts_of(q), desc_addr(q, q->head_pos) + 14, q->head_flags);
    q->head_held = false;
    q->added = 0;

    flags = qtest_readw(qts_of(q), device_area(q, 2));
    if (flags == VRING_PACKED_EVENT_FLAG_DISABLE) {
        return false;
    }
    if (flags != VRING_PACKED_EVENT_FLAG_DESC) {
        return true;
    }
    off_wrap = qtest_readw(qts_of(q), device_area(q, 0));
    event = off_wrap & 0x7fff;
    if ((off_wrap >> 15) != q->avail_wrap) {
        event -= ring_size(q);
    }
    return passed(event, q->next_avail, q->next_avail - added);
}

static bool split_publish(MqQueue *q)
{
    uint16_t before = q->avail_published;
    uint16_t event;

    if (q->avail_idx == before) {
        return false;
    }
    for (uint16_t i = before; i != q->avail_idx; ) {
        uint16_t pos = i % ring_size(q);
        uint16_t run = MIN((uint16_t)(q->avail_idx - i), ring_size(q) - pos);

        qtest_memwrite(qts_of(q), driver_area(q, 4 + 2 * pos),
                       &q->avail_ring[pos], 2 * run);
        i += run;
    }
    qtest_writew(qts_of(q), driver_area(q, 2), q->avail_idx);
    q->avail_published = q->avail_idx;

    if (q->dev->form & MQ_EVENT_IDX) {
        event = qtest_readw(qts_of(q), device_area(q, 4 + 8 * ring_size(q)));
        return passed(event, q->avail_idx, before);
    }
    return !(qtest_readw(qts_of(q), device_area(q, 0)) &
             VRING_USED_F_NO_NOTIFY);
}

/* Returns true if the device wants to be kicked. */
bool mq_publish(MqQueue *q)
{
    return is_packed(q) ? packed_publish(q) : split_publish(q);
}

void mq_kick(MqQueue *q)
{
    q->dev->vdev->bus->virtqueue_kick(q->dev->vdev, &q->pci.vq);
}

void mq_flush(MqQueue *q)
{
    if (mq_publish(q)) {
        mq_kick(q);
    }
}

static void slot_done(MqQueue *q, unsigned i, uint32_t len)
{
    g_assert_cmpuint(i, <, q->num_slots);
    g_assert_true(q->slots[i].busy);
    g_assert_false(q->slots[i].done);
    q->slots[i].done = true;
    q->slots[i].used_len = len;
    q->in_flight--;
    q->done_total++;
}

static bool packed_is_used(const struct vring_packed_desc *desc, bool wrap)
{
    uint16_t flags = le16_to_cpu(desc->flags);

    return !!(flags & PACKED_AVAIL) == wrap && !!(flags & PACKED_USED) == wrap;
}

static void packed_reap(MqQueue *q)
{
    size_t size = DESC_SIZE * ring_size(q);
    g_autofree struct vring_packed_desc *flags = g_malloc(size);
    g_autofree struct vring_packed_desc *ring = g_malloc(size);

    /* What the first look shows as used, the second one shows in full. */
    qtest_bufread(qts_of(q), desc_addr(q, 0), flags, size);
    if (!packed_is_used(&flags[q->next_used], q->used_wrap)) {
        return;
    }
    qtest_bufread(qts_of(q), desc_addr(q, 0), ring, size);

    while (packed_is_used(&flags[q->next_used], q->used_wrap)) {
        uint16_t id = le16_to_cpu(ring[q->next_used].id);

        slot_done(q, id, le32_to_cpu(ring[q->next_used].len));
        q->next_used += q->slots[id].num_descs;
        if (q->next_used >= ring_size(q)) {
            q->next_used -= ring_size(q);
            q->used_wrap = !q->used_wrap;
        }
    }
}

static void split_reap(MqQueue *q)
{
    uint16_t now = qtest_readw(qts_of(q), device_area(q, 2));
    g_autofree struct vring_used_elem *ring = NULL;

    g_assert_cmpuint((uint16_t)(now - q->used_idx), <=, q->in_flight);
    if (q->used_idx == now) {
        return;
    }
    ring = g_new(struct vring_used_elem, ring_size(q));
    qtest_bufread(qts_of(q), device_area(q, 4), ring, 8 * ring_size(q));
    while (q->used_idx != now) {
        struct vring_used_elem *elem = &ring[q->used_idx % ring_size(q)];

        slot_done(q, le32_to_cpu(elem->id) / descs_per_slot(q->dev->form),
                  le32_to_cpu(elem->len));
        q->used_idx++;
    }
}

/* Take note of what has completed.  The slots stay taken. */
void mq_reap(MqQueue *q)
{
    if (is_packed(q)) {
        packed_reap(q);
    } else {
        split_reap(q);
    }
}

/* With EVENT_IDX, "on" is for the next completion only. */
void mq_want_interrupt(MqQueue *q, bool on)
{
    if (is_packed(q)) {
        qtest_writew(qts_of(q), driver_area(q, 2),
                     on ? VRING_PACKED_EVENT_FLAG_ENABLE
                        : VRING_PACKED_EVENT_FLAG_DISABLE);
    } else if (q->dev->form & MQ_EVENT_IDX) {
        qtest_writew(qts_of(q), driver_area(q, 4 + 2 * ring_size(q)),
                     on ? q->used_idx : q->used_idx - 1);
    } else {
        qtest_writew(qts_of(q), driver_area(q, 0),
                     on ? 0 : VRING_AVAIL_F_NO_INTERRUPT);
    }
}

/* Has the queue's interrupt come?  Clears it.  INTx is shared by all. */
bool mq_interrupted(MqQueue *q)
{
    return q->dev->vdev->bus->get_queue_isr_status(q->dev->vdev, &q->pci.vq);
}

void mq_wait(MqSlot *slot)
{
    gint64 start = 0;

    g_assert_true(slot->busy);
    while (mq_reap(slot->q), !slot->done) {
        mq_pause(&start, "a request");
    }
}

void mq_wait_idle(MqQueue *q)
{
    gint64 start = 0;

    while (mq_reap(q), q->in_flight) {
        mq_pause(&start, "all requests of a queue");
    }
}

void mq_read_resp(MqSlot *slot, void *buf, size_t len)
{
    g_assert_true(slot->done);
    qtest_memread(qts_of(slot->q), slot->resp, buf, len);
}

void mq_release(MqSlot *slot)
{
    g_assert_true(slot->busy && slot->done);
    slot->busy = false;
}

uint64_t mq_next_tag(void)
{
    /* Both halves differ from request to request. */
    static uint64_t tag = 0x0badcafe00000000ull;

    tag += 0x100000001ull;
    return tag;
}

static void set_lun(uint8_t *field, uint8_t target, uint16_t lun)
{
    memset(field, 0, 8);
    field[0] = 1;
    field[1] = target;
    field[2] = 0x40 | lun >> 8;
    field[3] = lun & 0xff;
}

MqSlot *mq_post_cmd(MqQueue *q, const MqCmd *cmd)
{
    struct virtio_scsi_cmd_req req = { .tag = cpu_to_le64(cmd->tag) };

    set_lun(req.lun, cmd->target, cmd->lun);
    memcpy(req.cdb, cmd->cdb, sizeof(req.cdb));
    return mq_post_raw(q, &req, sizeof(req), cmd->out, cmd->out_len,
                       sizeof(struct virtio_scsi_cmd_resp), cmd->in_len);
}

static MqCmd rw10(uint8_t opcode, uint16_t lun, uint32_t lba, uint16_t blocks)
{
    MqCmd cmd = { .lun = lun, .tag = mq_next_tag(), .cdb = { opcode } };

    stl_be_p(&cmd.cdb[2], lba);
    stw_be_p(&cmd.cdb[7], blocks);
    return cmd;
}

MqCmd mq_read10(uint16_t lun, uint32_t lba, uint16_t blocks)
{
    MqCmd cmd = rw10(READ_10, lun, lba, blocks);

    cmd.in_len = blocks * 512;
    return cmd;
}

MqCmd mq_write10(uint16_t lun, uint32_t lba, uint16_t blocks,
                 const void *data)
{
    MqCmd cmd = rw10(WRITE_10, lun, lba, blocks);

    cmd.out = data;
    cmd.out_len = blocks * 512;
    return cmd;
}

/* One command, start to end */
void mq_run(MqQueue *q, const MqCmd *cmd, struct virtio_scsi_cmd_resp *resp,
            void *in)
{
    MqSlot *slot = mq_post_cmd(q, cmd);

    g_assert_nonnull(slot);
    mq_flush(q);
    mq_wait(slot);
    mq_read_resp(slot, resp, sizeof(*resp));
    if (in) {
        qtest_memread(qts_of(q), slot->data, in, cmd->in_len);
    }
    mq_release(slot);
}

void mq_run_good(MqQueue *q, const MqCmd *cmd, void *in)
{
    struct virtio_scsi_cmd_resp resp;

    mq_run(q, cmd, &resp, in);
    mq_assert_good(&resp);
}

void mq_assert_good(const struct virtio_scsi_cmd_resp *resp)
{
    if (resp->response != VIRTIO_SCSI_S_OK || resp->status != GOOD) {
        g_printerr("response %u, status %u, sense %u bytes %02x/%02x/%02x\n",
                   resp->response, resp->status, le32_to_cpu(resp->sense_len),
                   resp->sense[2], resp->sense[12], resp->sense[13]);
    }
    g_assert_cmpuint(resp->response, ==, VIRTIO_SCSI_S_OK);
    g_assert_cmpuint(resp->status, ==, GOOD);
}

/* libqtest takes quadratic time to receive a long line. */
void mq_read_mem(MqDev *d, uint64_t addr, void *buf, size_t len)
{
    const size_t most = 8192;

    for (size_t at = 0; at < len; at += most) {
        qtest_bufread(d->qts, addr + at, (uint8_t *)buf + at,
                      MIN(len - at, most));
    }
}

/* All slots at once: q->stride bytes for each, and in them resp and data */
uint8_t *mq_read_slots(MqQueue *q)
{
    uint8_t *all = g_malloc(q->stride * q->num_slots);

    mq_read_mem(q->dev, q->mem, all, q->stride * q->num_slots);
    return all;
}

/* Take the unit attentions of a LUN: after power on there may be several. */
void mq_clear_ua(MqQueue *q, uint8_t target, uint16_t lun)
{
    struct virtio_scsi_cmd_resp resp;

    for (unsigned i = 0; i < 8; i++) {
        MqCmd cmd = { .target = target, .lun = lun, .tag = mq_next_tag() };

        mq_run(q, &cmd, &resp, NULL);
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_OK);
        if (resp.status == GOOD) {
            return;
        }
        g_assert_cmpuint(resp.status, ==, CHECK_CONDITION);
        g_assert_cmphex(resp.sense[2] & 0xf, ==, UNIT_ATTENTION);
    }
    g_assert_not_reached();
}

void mq_assert_sense(const struct virtio_scsi_cmd_resp *resp,
                     uint8_t key, uint8_t asc, uint8_t ascq)
{
    g_assert_cmpuint(resp->response, ==, VIRTIO_SCSI_S_OK);
    g_assert_cmpuint(resp->status, ==, CHECK_CONDITION);
    g_assert_cmpuint(le32_to_cpu(resp->sense_len), >=, 14);
    g_assert_cmphex(resp->sense[0], ==, 0x70);
    g_assert_cmphex(resp->sense[2] & 0xf, ==, key);
    g_assert_cmphex(resp->sense[12], ==, asc);
    g_assert_cmphex(resp->sense[13], ==, ascq);
}

MqSlot *mq_post_tmf(MqDev *d, uint32_t subtype, uint8_t target, uint16_t lun,
                    uint64_t tag)
{
    struct virtio_scsi_ctrl_tmf_req req = {
        .type = cpu_to_le32(VIRTIO_SCSI_T_TMF),
        .subtype = cpu_to_le32(subtype),
        .tag = cpu_to_le64(tag),
    };
    MqSlot *slot;

    set_lun(req.lun, target, lun);
    slot = mq_post_raw(mq_ctrl(d), &req, sizeof(req), NULL, 0,
                       sizeof(struct virtio_scsi_ctrl_tmf_resp), 0);
    g_assert_nonnull(slot);
    mq_flush(mq_ctrl(d));
    return slot;
}

uint8_t mq_end_tmf(MqSlot *slot)
{
    uint8_t response;

    mq_wait(slot);
    mq_read_resp(slot, &response, sizeof(response));
    mq_release(slot);
    return response;
}

uint8_t mq_tmf(MqDev *d, uint32_t subtype, uint8_t target, uint16_t lun,
               uint64_t tag)
{
    return mq_end_tmf(mq_post_tmf(d, subtype, target, lun, tag));
}

bool mq_wait_taken(MqDev *d, MqSlot *slot, uint8_t target, uint16_t lun,
                   uint64_t tag)
{
    gint64 start = 0;

    while (mq_reap(slot->q),
           !slot->done &&
           mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK, target, lun,
                  tag) != VIRTIO_SCSI_S_FUNCTION_SUCCEEDED) {
        mq_pause(&start, "QUERY TASK to see a request");
    }
    return !slot->done;
}

MqSlot *mq_abort_held(MqDev *d, MqSlot *slot, uint16_t lun, uint64_t tag)
{
    MqSlot *tmf = mq_post_tmf(d, VIRTIO_SCSI_T_TMF_ABORT_TASK, 0, lun, tag);

    /* The IOThread has been asked twice since it was told to abort. */
    for (unsigned i = 0; i < 2; i++) {
        mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, lun, tag);
    }
    mq_reap(slot->q);
    g_assert_false(slot->done);
    return tmf;
}

void mq_limit_iops(MqDev *d, const char *id, uint64_t iops)
{
    qtest_qmp_assert_success(d->qts, "{'execute': 'qom-set', 'arguments': {"
        "'path': %s, 'property': 'limits',"
        " 'value': {'iops-total': %" PRIu64 "}}}", id, iops);
}

/*
 * Data
 */

char *mq_open_unnamed(int *fd)
{
    g_autofree char *path = NULL;

    *fd = g_file_open_tmp("mq-test.XXXXXX", &path, NULL);
    g_assert_cmpint(*fd, >=, 0);
    g_assert_cmpint(unlink(path), ==, 0);
    return g_strdup_printf("/proc/%d/fd/%d", (int)getpid(), *fd);
}

void mq_fill_pattern(void *buf, uint32_t lba, unsigned blocks, uint32_t seed)
{
    for (unsigned i = 0; i < blocks * 512 / 8; i++) {
        uint32_t block = lba + i / 64;

        stq_le_p((uint8_t *)buf + i * 8,
                 (uint64_t)block << 32 | (seed * 0x9e3779b1u + i % 64));
    }
}
