/*
 * Guest memory for virtqueues: from guest to host address without a count
 *
 * To map a buffer, the memory API looks it up in the flat view and takes a
 * reference to its memory region.  That region is the same for almost all
 * buffers of a guest, so all threads that do I/O write one cache line, several
 * times for each request.
 *
 * Here a device has a list of the RAM that it sees.  A list never changes; when
 * the guest's memory does, there is a new one.  Each virtqueue pins the list
 * that it uses, and each request the one that its buffers were found in, which
 * is a plain counter of the virtqueue's owner.  So memory that is unplugged
 * stays until the last request that uses it has ended, as it does with DMA
 * mappings.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_VIRTIO_RAM_H
#define HW_VIRTIO_VIRTIO_RAM_H

#include "exec/memory.h"
#include "qemu/thread.h"

typedef struct VirtIORam VirtIORam;
typedef struct VirtIORamList VirtIORamList;

/** VirtIORamPin: keeps a list.  Only the owner of the view uses it. */
typedef struct VirtIORamPin {
    VirtIORamList *list;
    unsigned users;         /* changes with every request: a line of its own */
} QEMU_ALIGNED(64) VirtIORamPin;

/** VirtIORamView: what one virtqueue knows.  Only its owner uses it. */
typedef struct VirtIORamView {
    VirtIORam *ram;
    VirtIORamPin *pin;      /* NULL: nothing */
    unsigned hint;          /* where the last buffer was found */
} VirtIORamView;

/** VirtIORam: what a device knows */
struct VirtIORam {
    MemoryListener listener;
    GArray *found;          /* ranges of the list being made; BQL */
    void (*changed)(VirtIORam *ram);

    QemuMutex lock;         /* to replace list, or to take a reference to it */
    VirtIORamList *list;    /* atomic */
};

/**
 * virtio_ram_start:
 * @ram: to be initialized
 * @as: address space of the device's DMA
 * @changed: called with the BQL held when there is a new list; may be called
 *           before this returns.  virtio_ram_refresh() is due for all views.
 *
 * Context: BQL held, outside of memory transactions.
 */
void virtio_ram_start(VirtIORam *ram, AddressSpace *as,
                      void (*changed)(VirtIORam *ram));

/**
 * virtio_ram_stop:
 * @ram: started before
 *
 * Views must have been dropped; pins of requests may still be there.
 * Context: BQL held, outside of memory transactions.
 */
void virtio_ram_stop(VirtIORam *ram);

/** virtio_ram_renew: see virtio_ram_refresh(). */
void virtio_ram_renew(VirtIORamView *view);

/** virtio_ram_drop: the view knows nothing. Context: owner of @view. */
void virtio_ram_drop(VirtIORamView *view);

/** virtio_ram_unpin: after virtio_ram_pin(). Context: owner of the view. */
void virtio_ram_unpin(VirtIORamPin *pin);

/**
 * virtio_ram_refresh:
 * @view: of a device that was started
 *
 * Go over to the current list.  To be called before buffers are looked up, and
 * soon after changed().
 *
 * Context: owner of @view.
 */
static inline void virtio_ram_refresh(VirtIORamView *view)
{
    /* A list that we have pinned can't come back as another one. */
    VirtIORamList *mine = view->pin ? view->pin->list : NULL;

    if (unlikely(mine != qatomic_read(&view->ram->list))) {
        virtio_ram_renew(view);
    }
}

/**
 * virtio_ram_pin:
 * @view: a view
 *
 * Context: owner of @view.
 * Returns: what keeps the memory that virtio_ram_find() has returned since the
 * last virtio_ram_refresh(), until virtio_ram_unpin(); NULL if that is none.
 */
static inline VirtIORamPin *virtio_ram_pin(VirtIORamView *view)
{
    if (view->pin) {
        view->pin->users++;
    }
    return view->pin;
}

/**
 * virtio_ram_find:
 * @view: a view
 * @addr: guest physical address, as the device sees it
 * @len: bytes; updated if fewer of them are together in our memory
 *
 * Context: owner of @view.
 * Returns: where in our memory this writable RAM is, or NULL.
 */
void *virtio_ram_find(VirtIORamView *view, hwaddr addr, hwaddr *len);

/**
 * virtio_ram_release:
 * @view: a view
 * @pin: taken when @addr was looked up
 * @addr: address of a buffer
 * @written: bytes of it that we have changed
 *
 * Tell those who want to know of changes: migration, TCG.
 *
 * Context: owner of @view.
 * Returns: false if virtio_ram_find() didn't know @addr then.
 */
bool virtio_ram_release(VirtIORamView *view, const VirtIORamPin *pin,
                        hwaddr addr, size_t written);

#endif /* HW_VIRTIO_VIRTIO_RAM_H */
