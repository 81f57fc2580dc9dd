/*
 * Guest memory for virtqueues: from guest to host address without a count
 *
 * To map a buffer, the memory API looks it up in the flat view and takes a
 * reference to its memory region.  That region is the same for almost all
 * buffers of a guest, so all threads that do I/O write one cache line, several
 * times for each request.
 *
 * Here a device has a list of the ranges of RAM that it sees.  A list never
 * changes; when the guest's memory does, there is a new one, and readers go
 * over to it by RCU.  Each virtqueue has a view with a pin for each range that
 * it has ever used: a reference to the range, and a plain count of the buffers
 * mapped there, which only the owner of the virtqueue changes.
 *
 * A range that isn't in the list any more is dead.  Its pin goes with the last
 * buffer that is mapped there, or, if none is, when all have gone over to the
 * new list.  So memory that is unplugged stays until the last request that uses
 * it has ended, as it does with DMA mappings, and no longer.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VIRTIO_RAM_H
#define HW_VIRTIO_VIRTIO_RAM_H

#include "exec/memory.h"
#include "qemu/rcu.h"

typedef struct VirtIORam VirtIORam;
typedef struct VirtIORamPin VirtIORamPin;

/* The two are for virtio-ram.c, and what stands in line here. */
typedef struct VirtIORamRange {
    hwaddr start;
    hwaddr size;
    uint8_t *host;
    MemoryRegion *mr;
    hwaddr offset;          /* of start in mr */
    unsigned refs;          /* atomic: lists, pins */
    bool dead;              /* atomic: not in the current list any more */
} VirtIORamRange;

struct VirtIORamPin {
    struct rcu_head rcu;
    unsigned users;         /* owner; read by others when the range is dead */
    VirtIORamRange *range;
    VirtIORamPin *next;     /* RCU, changed with the lock */
} QEMU_ALIGNED(64);

/** VirtIORamView: what one virtqueue uses of its device's RAM */
typedef struct VirtIORamView {
    VirtIORam *ram;         /* set and cleared under the BQL; NULL: no RAM */

    /* Owner of the virtqueue; a pin that is removed is no hint any more */
    VirtIORamPin *last;     /* where the last buffer was found, or NULL */
    unsigned hint;          /* the same in the list */

    /* Read by the owner, changed with the device's lock; RCU */
    VirtIORamPin *pins;
    QLIST_ENTRY(VirtIORamView) next;
    bool listed;
} VirtIORamView;

static inline bool virtio_ram_range_has(const VirtIORamRange *range,
                                        hwaddr addr)
{
    return addr - range->start < range->size;
}

/*
 * The pin that was used last, if @addr is in its range; otherwise NULL.
 *
 * Whoever sees that the range isn't dead may use it: dead ranges are marked
 * before the list that had them goes by RCU, and pins are removed after that.
 */
static inline VirtIORamPin *virtio_ram_last_at(VirtIORamView *view,
                                               hwaddr addr)
{
    VirtIORamPin *pin = qatomic_rcu_read(&view->last);

    if (likely(pin && virtio_ram_range_has(pin->range, addr) &&
               !qatomic_read(&pin->range->dead))) {
        return pin;
    }
    return NULL;
}

/**
 * virtio_ram_new:
 * @as: address space of the device's DMA
 *
 * Context: BQL held, outside of memory transactions.
 * Returns: the RAM in it, now and later.
 */
VirtIORam *virtio_ram_new(AddressSpace *as);

/**
 * virtio_ram_delete:
 * @ram: what virtio_ram_new() has returned
 *
 * All views forget it; nobody uses any of them.
 *
 * Context: BQL held, outside of memory transactions.
 */
void virtio_ram_delete(VirtIORam *ram);

/**
 * virtio_ram_peek:
 * @view: a view
 * @addr: guest physical address, as the device sees it
 * @len: bytes; updated if fewer of them are together in our memory
 *
 * Context: owner of @view, within rcu_read_lock().
 * Returns: where in our memory this writable RAM is, until rcu_read_unlock();
 * or NULL.
 */
void *virtio_ram_peek(VirtIORamView *view, hwaddr addr, hwaddr *len);

/** virtio_ram_map: as virtio_ram_peek(), but until virtio_ram_unmap() */
void *virtio_ram_map(VirtIORamView *view, hwaddr addr, hwaddr *len);

/**
 * virtio_ram_map_near:
 * @view: a view
 * @addr: guest physical address, as the device sees it
 * @len: bytes
 * @iov: where to store the buffer
 *
 * A quick virtio_ram_map() for a buffer that lies where the last one did.
 *
 * Context: owner of @view, within rcu_read_lock().
 * Returns: false if it doesn't, not all of it; nothing is mapped then.
 */
static inline bool virtio_ram_map_near(VirtIORamView *view, hwaddr addr,
                                       hwaddr len, struct iovec *iov)
{
    VirtIORamPin *pin = virtio_ram_last_at(view, addr);
    hwaddr offset;

    if (unlikely(!pin)) {
        return false;
    }
    offset = addr - pin->range->start;
    if (unlikely(len > pin->range->size - offset)) {
        return false;
    }
    qatomic_set(&pin->users, pin->users + 1);
    fuzz_dma_read_cb(addr, len, pin->range->mr);
    iov->iov_base = pin->range->host + offset;
    iov->iov_len = len;
    return true;
}

/**
 * virtio_ram_unmap:
 * @view: a view
 * @host: what virtio_ram_map() has returned
 * @written: bytes that were changed there
 *
 * Context: owner of @view, within rcu_read_lock().
 */
void virtio_ram_unmap(VirtIORamView *view, void *host, size_t written);

/**
 * virtio_ram_unmap_element:
 * @view: a view
 * @elem: all its buffers are from virtio_ram_map()
 * @written: bytes that were changed, from the first one of in_sg on
 *
 * Context: owner of @view, within rcu_read_lock().
 */
void virtio_ram_unmap_element(VirtIORamView *view,
                              const struct VirtQueueElement *elem,
                              size_t written);

/**
 * virtio_ram_hand_over:
 * @view: a view
 * @host: what virtio_ram_map() has returned
 *
 * From now on it is as if dma_memory_map() had mapped it.
 *
 * Context: owner of @view, within rcu_read_lock().
 */
void virtio_ram_hand_over(VirtIORamView *view, void *host);

/**
 * virtio_ram_written:
 * @view: a view
 * @host: what virtio_ram_map() has returned
 * @len: bytes that were changed there
 *
 * Tell those who want to know of changes: migration, TCG.
 *
 * Context: owner of @view.
 */
void virtio_ram_written(VirtIORamView *view, void *host, size_t len);

#endif /* HW_VIRTIO_VIRTIO_RAM_H */
