/*
 * Guest memory for virtqueues: from guest to host address without a count
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "hw/virtio/virtio-ram.h"
#include "system/xen.h"

typedef struct RamRange {
    hwaddr start;
    hwaddr size;
    uint8_t *host;
    MemoryRegion *mr;
    hwaddr offset;          /* of start in mr */
} RamRange;

struct VirtIORamList {
    unsigned refs;          /* atomic: the device, each pin */
    unsigned num;
    RamRange ranges[];      /* the biggest first */
};

/*
 * Lists
 */

/* In the main loop: memory regions are finalized with the BQL held. */
static void list_free(void *opaque)
{
    VirtIORamList *list = opaque;

    for (unsigned i = 0; i < list->num; i++) {
        memory_region_unref(list->ranges[i].mr);
    }
    g_free(list);
}

static void list_unref(VirtIORamList *list)
{
    if (list && qatomic_fetch_dec(&list->refs) == 1) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(), list_free, list);
    }
}

static VirtIORamList *list_new(const GArray *found)
{
    VirtIORamList *list = g_malloc(offsetof(VirtIORamList, ranges) +
                                   found->len * sizeof(RamRange));

    list->refs = 1;
    list->num = found->len;
    for (unsigned i = 0; i < list->num; i++) {
        list->ranges[i] = g_array_index(found, RamRange, i);
        memory_region_ref(list->ranges[i].mr);
    }
    return list;
}

static bool list_equals(const VirtIORamList *list, const GArray *found)
{
    return list && list->num == found->len &&
           !memcmp(list->ranges, found->data, found->len * sizeof(RamRange));
}

static void ram_publish(VirtIORam *ram, VirtIORamList *list)
{
    VirtIORamList *old;

    WITH_QEMU_LOCK_GUARD(&ram->lock) {
        old = ram->list;
        qatomic_set(&ram->list, list);
    }
    list_unref(old);
}

/*
 * Follow the guest's memory
 */

static void ram_begin(MemoryListener *listener)
{
    g_array_set_size(container_of(listener, VirtIORam, listener)->found, 0);
}

static void ram_add(MemoryListener *listener, MemoryRegionSection *section)
{
    VirtIORam *ram = container_of(listener, VirtIORam, listener);
    MemoryRegion *mr = section->mr;
    RamRange range = { 0 };

    /* Xen maps guest memory piece by piece, for as long as it is used. */
    if (section->readonly || xen_enabled() ||
        !memory_access_is_direct(mr, true, MEMTXATTRS_UNSPECIFIED)) {
        return;
    }
    range.start = section->offset_within_address_space;
    range.size = int128_get64(section->size);
    range.offset = section->offset_within_region;
    range.host = (uint8_t *)memory_region_get_ram_ptr(mr) + range.offset;
    range.mr = mr;
    g_array_append_val(ram->found, range);
}

static gint by_size(gconstpointer a, gconstpointer b)
{
    const RamRange *x = a;
    const RamRange *y = b;

    return x->size < y->size ? 1 : x->size > y->size ? -1 : 0;
}

static void ram_commit(MemoryListener *listener)
{
    VirtIORam *ram = container_of(listener, VirtIORam, listener);

    g_array_sort(ram->found, by_size);
    if (!list_equals(ram->list, ram->found)) {
        ram_publish(ram, list_new(ram->found));
        ram->changed(ram);
    }
}

void virtio_ram_start(VirtIORam *ram, AddressSpace *as,
                      void (*changed)(VirtIORam *ram))
{
    GLOBAL_STATE_CODE();

    *ram = (VirtIORam) {
        .listener = {
            .name = "virtio-ram",
            .begin = ram_begin,
            .region_add = ram_add,
            .region_nop = ram_add,
            .commit = ram_commit,
        },
        .found = g_array_new(false, false, sizeof(RamRange)),
        .changed = changed,
    };
    qemu_mutex_init(&ram->lock);
    memory_listener_register(&ram->listener, as);
}

void virtio_ram_stop(VirtIORam *ram)
{
    GLOBAL_STATE_CODE();

    memory_listener_unregister(&ram->listener);
    ram_publish(ram, NULL);
    g_array_free(ram->found, true);
    qemu_mutex_destroy(&ram->lock);
}

/*
 * Views
 */

void virtio_ram_unpin(VirtIORamPin *pin)
{
    if (pin && --pin->users == 0) {
        list_unref(pin->list);
        qemu_vfree(pin);
    }
}

void virtio_ram_drop(VirtIORamView *view)
{
    virtio_ram_unpin(view->pin);
    view->pin = NULL;
}

void virtio_ram_renew(VirtIORamView *view)
{
    VirtIORam *ram = view->ram;
    VirtIORamList *list;

    virtio_ram_drop(view);
    WITH_QEMU_LOCK_GUARD(&ram->lock) {
        list = ram->list;
        if (list) {
            qatomic_inc(&list->refs);
        }
    }
    view->hint = 0;
    if (list) {
        view->pin = qemu_memalign(__alignof__(VirtIORamPin),
                                  sizeof(VirtIORamPin));
        *view->pin = (VirtIORamPin) { .list = list, .users = 1 };
    }
}

/* The range that @addr is in, beginning with the one where the last was */
static const RamRange *view_search(VirtIORamView *view,
                                   const VirtIORamPin *pin, hwaddr addr)
{
    const VirtIORamList *list = pin ? pin->list : NULL;
    /* The hint may come from another list. */
    unsigned i = list && view->hint < list->num ? view->hint : 0;

    for (unsigned tries = 0; list && tries < list->num; tries++) {
        const RamRange *range = &list->ranges[i];

        if (addr - range->start < range->size) {
            view->hint = i;
            return range;
        }
        i = (i + 1) % list->num;
    }
    return NULL;
}

void *virtio_ram_find(VirtIORamView *view, hwaddr addr, hwaddr *len)
{
    const RamRange *range = view_search(view, view->pin, addr);

    if (!range) {
        return NULL;
    }
    *len = MIN(*len, range->size - (addr - range->start));
    return range->host + (addr - range->start);
}

/*
 * For invalidation only.  With a FlatView, as address_space_cache_init() makes
 * it, it would keep every device alive that was ever mapped beside.
 */
static void range_changed(const RamRange *range, size_t offset, size_t len)
{
    MemoryRegionCache cache = {
        .ptr = range->host,
        .xlat = range->offset,
        .len = range->size,
        .mrs.mr = range->mr,
        .is_write = true,
    };

    address_space_cache_invalidate(&cache, offset, len);
}

bool virtio_ram_release(VirtIORamView *view, const VirtIORamPin *pin,
                        hwaddr addr, size_t written)
{
    const RamRange *range = view_search(view, pin, addr);

    if (range && written) {
        range_changed(range, addr - range->start, written);
    }
    return range;
}
