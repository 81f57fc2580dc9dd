/*
 * Split and packed virtqueues in memory that is shared with QEMU
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "virtio-shm.h"

/* Flags of a packed descriptor that make it available, or used, in a lap */
#define AVAIL_BIT (1u << VRING_PACKED_DESC_F_AVAIL)
#define USED_BIT  (1u << VRING_PACKED_DESC_F_USED)

/* Position of an event that won't come soon, relative to the next answer */
#define FAR_AHEAD 0x8000

static bool is_packed(const ShmQueue *q)
{
    return q->dev->flags & SHM_PACKED;
}

static unsigned ring_size(const ShmQueue *q)
{
    return q->pci.vq.size;
}

static unsigned ring_index(const ShmQueue *q, uint32_t pos)
{
    return pos & (ring_size(q) - 1);
}

/* Virtio 1.2, 2.8.1: the wrap counter is 1 in the first lap, then 0, 1, ... */
static bool lap_bit(const ShmQueue *q, uint32_t pos)
{
    return !(pos & ring_size(q));
}

static void bad_used(ShmQueue *q, uint32_t id, const char *what)
{
    g_printerr("virtqueue %u, used entry %u, descriptor %u: %s\n",
               q->pci.vq.index, ring_index(q, q->used_idx), id, what);
    g_assert_not_reached();
}

/*
 * Memory.  QEMU's set_queue_address() calls the packed ring's driver and
 * device area avail and used.
 */

static size_t driver_area_size(const ShmQueue *q)
{
    return is_packed(q) ? sizeof(struct vring_packed_desc_event)
                        : 2 * (ring_size(q) + 3);
}

static size_t device_area_size(const ShmQueue *q)
{
    return is_packed(q) ? sizeof(struct vring_packed_desc_event)
                        : 8 * ring_size(q) + 6;
}

void shm_ring_alloc(ShmQueue *q)
{
    QVirtQueue *vq = &q->pci.vq;
    ShmMem *mem = q->dev->mem;

    vq->desc = shm_alloc(mem, sizeof(struct vring_desc) * vq->size);
    vq->avail = shm_alloc(mem, driver_area_size(q));
    vq->used = shm_alloc(mem, device_area_size(q));
    q->desc = (void *)(mem->host + vq->desc);
    q->avail = (void *)(mem->host + vq->avail);
    q->used = (void *)(mem->host + vq->used);
}

void shm_ring_clear(ShmQueue *q)
{
    if (is_packed(q)) {
        memset(q->packed, 0, sizeof(*q->packed) * ring_size(q));
    }
    memset(q->avail, 0, driver_area_size(q));
    memset(q->used, 0, device_area_size(q));
}

/*
 * Events: at which answer the device shall interrupt, and at which request it
 * wants a kick
 */

static uint16_t *avail_used_event(ShmQueue *q)
{
    return &q->avail->ring[ring_size(q)];
}

static uint16_t *used_avail_event(ShmQueue *q)
{
    return (uint16_t *)&q->used->ring[ring_size(q)];
}

static void set_used_event(ShmQueue *q, uint32_t pos)
{
    qatomic_set(avail_used_event(q), cpu_to_le16(pos));
}

static void arm_packed(ShmQueue *q)
{
    uint16_t where = ring_index(q, q->used_idx) |
                     lap_bit(q, q->used_idx) << VRING_PACKED_EVENT_F_WRAP_CTR;
    uint16_t flags = VRING_PACKED_EVENT_FLAG_ENABLE;

    if (q->dev->flags & SHM_EVENT_IDX) {
        qatomic_set(&q->driver_event->off_wrap, cpu_to_le16(where));
        flags = VRING_PACKED_EVENT_FLAG_DESC;
    }
    /* The device must not combine the new flags with the old position. */
    qatomic_store_release(&q->driver_event->flags, cpu_to_le16(flags));
}

static void arm(ShmQueue *q)
{
    if (is_packed(q)) {
        arm_packed(q);
    } else if (q->dev->flags & SHM_EVENT_IDX) {
        set_used_event(q, q->used_idx);
    } else {
        qatomic_set(&q->avail->flags, 0);
    }
}

void shm_irq_disarm(ShmQueue *q)
{
    if (is_packed(q)) {
        qatomic_set(&q->driver_event->flags,
                    cpu_to_le16(VRING_PACKED_EVENT_FLAG_DISABLE));
    } else if (q->dev->flags & SHM_EVENT_IDX) {
        set_used_event(q, q->used_idx + FAR_AHEAD);
    } else {
        qatomic_set(&q->avail->flags, cpu_to_le16(VRING_AVAIL_F_NO_INTERRUPT));
    }
}

/* Nobody waits for these interrupts; the device has the work with them. */
static bool always_armed(const ShmQueue *q)
{
    return q->dev->flags & SHM_INTERRUPTS && q->pci.vq.index % 2;
}

void shm_ring_init_events(ShmQueue *q)
{
    if (always_armed(q) || q->msi) {
        arm(q);
    } else {
        shm_irq_disarm(q);
    }
}

/* A position in a split ring is ahead for half of what 16 bits count. */
static void move_event(ShmQueue *q)
{
    if (!(q->dev->flags & SHM_EVENT_IDX)) {
        return;
    }
    if (always_armed(q)) {
        arm(q);
    } else if (!q->msi && !is_packed(q) && !(q->used_idx % (FAR_AHEAD / 2))) {
        shm_irq_disarm(q);
    }
}

bool shm_irq_came(ShmQueue *q)
{
    if (!qatomic_load_acquire(q->msi)) {
        return false;
    }
    qatomic_set(q->msi, 0);
    return true;
}

/* Virtio 1.2, 2.7.10 */
static bool split_wants_kick(ShmQueue *q, uint16_t before, uint16_t now)
{
    uint16_t event;

    if (q->dev->flags & SHM_EVENT_IDX) {
        event = le16_to_cpu(qatomic_read(used_avail_event(q)));
        return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
    }
    return !(le16_to_cpu(qatomic_read(&q->used->flags)) &
             VRING_USED_F_NO_NOTIFY);
}

/* Virtio 1.2, 2.8.14: is the event among what was added? */
static bool packed_wants_kick(ShmQueue *q, uint32_t before, uint32_t now)
{
    unsigned laps = 2 * ring_size(q);
    uint16_t flags = le16_to_cpu(qatomic_load_acquire(&q->device_event->flags));
    uint16_t where;
    uint32_t event;

    if (flags != VRING_PACKED_EVENT_FLAG_DESC) {
        return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
    }
    where = le16_to_cpu(qatomic_read(&q->device_event->off_wrap));
    event = where & ~(1u << VRING_PACKED_EVENT_F_WRAP_CTR);
    if (!(where >> VRING_PACKED_EVENT_F_WRAP_CTR)) {
        event += ring_size(q);
    }
    return ((event - before) & (laps - 1)) < now - before;
}

/*
 * Requests
 */

typedef struct Part {
    const uint8_t *host;
    uint32_t len;
    uint16_t flags;
} Part;

static unsigned list_parts(const ShmSlot *slot, const ShmShape *shape,
                           Part parts[SHM_PARTS])
{
    Part resp = { slot->resp_end - shape->resp, shape->resp,
                  VRING_DESC_F_WRITE };
    unsigned n = 0;

    if (shape->head) {
        parts[n++] = (Part) { slot->head, shape->head, 0 };
    }
    if (shape->out) {
        parts[n++] = (Part) { slot->data, shape->out, 0 };
    }
    if (shape->resp && !shape->resp_last) {
        parts[n++] = resp;
    }
    if (shape->in) {
        parts[n++] = (Part) { slot->data, shape->in, VRING_DESC_F_WRITE };
    }
    if (shape->resp && shape->resp_last) {
        parts[n++] = resp;
    }
    return n;
}

/* A chain that starts with the descriptor @first of a table or split ring */
static void put_chain(const ShmMem *mem, struct vring_desc *desc,
                      unsigned first, const Part *parts, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        bool more = i + 1 < n;

        desc[first + i] = (struct vring_desc) {
            .addr = cpu_to_le64(shm_guest_addr(mem, parts[i].host)),
            .len = cpu_to_le32(parts[i].len),
            .flags = cpu_to_le16(parts[i].flags |
                                 (more ? VRING_DESC_F_NEXT : 0)),
            .next = cpu_to_le16(more ? first + i + 1 : 0),
        };
    }
}

/* Descriptors of packed form; the flags for the lap are still missing */
static void put_packed(const ShmMem *mem, struct vring_packed_desc *desc,
                       uint16_t id, uint16_t next_flag, const Part *parts,
                       unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        desc[i] = (struct vring_packed_desc) {
            .addr = cpu_to_le64(shm_guest_addr(mem, parts[i].host)),
            .len = cpu_to_le32(parts[i].len),
            .id = cpu_to_le16(id),
            .flags = cpu_to_le16(parts[i].flags |
                                 (i + 1 < n ? next_flag : 0)),
        };
    }
}

void shm_build(ShmSlot *slot, const ShmShape *shape)
{
    ShmQueue *q = slot->q;
    ShmMem *mem = q->dev->mem;
    unsigned id = slot - q->slots;
    Part parts[SHM_PARTS];
    unsigned n = list_parts(slot, shape, parts);

    g_assert_cmpuint(n, >, 0);
    g_assert_cmpuint(shape->head, <=, q->dev->geo.head);
    g_assert_cmpuint(shape->resp, <=, q->dev->geo.resp);
    g_assert_cmpuint(MAX(shape->in, shape->out), <=, q->dev->geo.data);
    g_assert_false(shape->in && shape->out);

    if (q->dev->flags & SHM_INDIRECT) {
        if (is_packed(q)) {
            put_packed(mem, (void *)slot->table, id, 0, parts, n);
        } else {
            put_chain(mem, slot->table, 0, parts, n);
        }
        parts[0] = (Part) {
            (void *)slot->table, n * sizeof(*slot->table),
            VRING_DESC_F_INDIRECT,
        };
        n = 1;
    }
    if (is_packed(q)) {
        put_packed(mem, slot->ring, id, VRING_DESC_F_NEXT, parts, n);
    } else {
        put_chain(mem, q->desc, id * q->stride, parts, n);
    }
    slot->num_descs = n;
}

/* Backwards: the first descriptor's flags give the device all of them. */
static void add_packed(ShmQueue *q, const ShmSlot *slot)
{
    for (unsigned i = slot->num_descs; i-- > 0; ) {
        uint32_t pos = q->avail_idx + i;
        struct vring_packed_desc *desc = &q->packed[ring_index(q, pos)];
        uint16_t flags = le16_to_cpu(slot->ring[i].flags) |
                         (lap_bit(q, pos) ? AVAIL_BIT : USED_BIT);

        desc->addr = slot->ring[i].addr;
        desc->len = slot->ring[i].len;
        desc->id = slot->ring[i].id;
        qatomic_store_release(&desc->flags, cpu_to_le16(flags));
    }
    q->avail_idx += slot->num_descs;
}

void shm_add(ShmSlot *slot)
{
    ShmQueue *q = slot->q;

    g_assert(slot == q->free[q->num_free - 1] && !slot->busy);
    q->num_free--;
    slot->busy = true;
    if (is_packed(q)) {
        add_packed(q, slot);
    } else {
        q->avail->ring[ring_index(q, q->avail_idx++)] =
            cpu_to_le16((slot - q->slots) * q->stride);
    }
}

ShmSlot *shm_take(ShmQueue *q)
{
    return q->num_free ? q->free[q->num_free - 1] : NULL;
}

void shm_post(ShmSlot *slot, const ShmShape *shape)
{
    shm_build(slot, shape);
    shm_add(slot);
}

bool shm_publish(ShmQueue *q)
{
    uint32_t before = q->published;
    uint32_t now = q->avail_idx;

    if (now == before) {
        return false;
    }
    if (!is_packed(q)) {
        /* The device must see the descriptors before the index... */
        qatomic_store_release(&q->avail->idx, cpu_to_le16(now));
    }
    q->published = now;

    /* ...and we look whether it sleeps only after it can see the index. */
    smp_mb();
    return is_packed(q) ? packed_wants_kick(q, before, now)
                        : split_wants_kick(q, before, now);
}

void shm_flush(ShmQueue *q)
{
    if (shm_publish(q)) {
        shm_kick(q);
    }
}

/*
 * Answers
 */

static bool split_answered(ShmQueue *q)
{
    uint16_t idx;

    if (q->used_seen == q->used_idx) {
        idx = le16_to_cpu(qatomic_load_acquire(&q->used->idx));
        q->used_seen += (uint16_t)(idx - q->used_seen);
        if (q->used_seen - q->used_idx > shm_in_flight(q)) {
            bad_used(q, idx, "more answers than requests");
        }
    }
    return q->used_seen != q->used_idx;
}

static bool packed_answered(ShmQueue *q)
{
    struct vring_packed_desc *desc = &q->packed[ring_index(q, q->used_idx)];
    uint16_t flags = le16_to_cpu(qatomic_load_acquire(&desc->flags));
    bool lap = lap_bit(q, q->used_idx);

    return !(flags & AVAIL_BIT) == !lap && !(flags & USED_BIT) == !lap;
}

static bool answered(ShmQueue *q)
{
    return is_packed(q) ? packed_answered(q) : split_answered(q);
}

static void read_answer(ShmQueue *q, uint32_t *id, uint32_t *len)
{
    unsigned index = ring_index(q, q->used_idx);

    if (is_packed(q)) {
        *id = le16_to_cpu(q->packed[index].id);
        *len = le32_to_cpu(q->packed[index].len);
        return;
    }
    *id = le32_to_cpu(q->used->ring[index].id);
    *len = le32_to_cpu(q->used->ring[index].len);
    if (*id % q->stride) {
        bad_used(q, *id, "not the first descriptor of a request");
    }
    *id /= q->stride;
}

ShmSlot *shm_reap(ShmQueue *q)
{
    ShmSlot *slot;
    uint32_t id;
    uint32_t len;

    if (!answered(q)) {
        return NULL;
    }
    read_answer(q, &id, &len);
    if (id >= q->num_slots) {
        bad_used(q, id, "no such request");
    }
    slot = &q->slots[id];
    if (!slot->busy) {
        bad_used(q, id, "request was not in flight (answered twice?)");
    }

    slot->busy = false;
    slot->used_len = len;
    q->free[q->num_free++] = slot;
    q->used_idx += is_packed(q) ? slot->num_descs : 1;
    q->answered++;
    move_event(q);
    return slot;
}

bool shm_irq_arm(ShmQueue *q)
{
    arm(q);
    /* The device looks at the event after it has answered, we vice versa. */
    smp_mb();
    return answered(q);
}
