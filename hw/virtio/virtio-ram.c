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
#include "qemu/rcu.h"
#include "hw/virtio/virtio.h"
#include "hw/virtio/virtio-ram.h"
#include "system/xen.h"

typedef VirtIORamRange RamRange;

typedef struct RamList {
    struct rcu_head rcu;
    VirtIORam *ram;
    unsigned num;
    RamRange *ranges[];     /* the biggest first */
} RamList;

struct VirtIORam {
    MemoryListener listener;
    unsigned refs;          /* BQL: the device, lists */
    GArray *found;          /* BQL: ranges of the list being made */
    RamList *list;          /* RCU, changed under the BQL */

    QemuMutex lock;         /* the views that have pins, and these; see there */
    QLIST_HEAD(, VirtIORamView) views;
};

/*
 * Ranges and pins
 */

/* In the main loop: memory regions are finalized with the BQL held. */
static void range_free(void *opaque)
{
    RamRange *range = opaque;

    memory_region_unref(range->mr);
    g_free(range);
}

static void range_unref(RamRange *range)
{
    if (qatomic_fetch_dec(&range->refs) == 1) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(), range_free, range);
    }
}

static void pin_free(VirtIORamPin *pin)
{
    range_unref(pin->range);
    qemu_vfree(pin);
}

/*
 * The owner may be looking at the pin, so it goes by RCU, and its range after
 * it, so that the address of the range isn't that of another one before.
 *
 * Called with the lock.
 */
static void view_remove_pin(VirtIORamView *view, VirtIORamPin **at)
{
    VirtIORamPin *pin = *at;

    qatomic_rcu_set(at, pin->next);
    if (qatomic_read(&view->last) == pin) {
        qatomic_set(&view->last, NULL);
    }
    call_rcu(pin, pin_free, rcu);
}

/*
 * Pins of dead ranges that no buffer is mapped by.  The owner takes care of the
 * others: it has seen that they are dead when it unmaps the last buffer.  Who
 * comes first is settled by the lock.
 */
static void view_remove_dead(VirtIORamView *view)
{
    VirtIORamPin **at = &view->pins;

    while (*at) {
        if (qatomic_read(&(*at)->range->dead) &&
            !qatomic_read(&(*at)->users)) {
            view_remove_pin(view, at);
        } else {
            at = &(*at)->next;
        }
    }
}

static void ram_unref(VirtIORam *ram)
{
    if (--ram->refs == 0) {
        qemu_mutex_destroy(&ram->lock);
        g_free(ram);
    }
}

/*
 * Nobody uses the list any more.  Whoever maps a buffer from now on finds it in
 * a newer one, and whoever unmaps one sees what is dead.
 *
 * Context: BQL held
 */
static void list_reclaim(RamList *list)
{
    VirtIORam *ram = list->ram;
    VirtIORamView *view;

    WITH_QEMU_LOCK_GUARD(&ram->lock) {
        QLIST_FOREACH(view, &ram->views, next) {
            view_remove_dead(view);
        }
    }
    for (unsigned i = 0; i < list->num; i++) {
        range_unref(list->ranges[i]);
    }
    g_free(list);
    ram_unref(ram);
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

static bool range_equals(const RamRange *a, const RamRange *b)
{
    return a->start == b->start && a->size == b->size && a->host == b->host &&
           a->mr == b->mr && a->offset == b->offset;
}

/* The range of @list that is like @found, or a new one, with a reference */
static RamRange *range_get(const RamList *list, const RamRange *found)
{
    RamRange *range;

    for (unsigned i = 0; list && i < list->num; i++) {
        range = list->ranges[i];
        if (range_equals(range, found)) {
            qatomic_inc(&range->refs);
            return range;
        }
    }
    range = g_memdup2(found, sizeof(*found));
    range->refs = 1;
    memory_region_ref(range->mr);
    return range;
}

static RamList *list_new(VirtIORam *ram)
{
    GArray *found = ram->found;
    RamList *list = g_malloc(offsetof(RamList, ranges) +
                             found->len * sizeof(RamRange *));

    ram->refs++;
    list->ram = ram;
    list->num = found->len;
    for (unsigned i = 0; i < list->num; i++) {
        list->ranges[i] = range_get(ram->list,
                                    &g_array_index(found, RamRange, i));
    }
    return list;
}

static bool list_has(const RamList *list, const RamRange *range)
{
    for (unsigned i = 0; i < list->num; i++) {
        if (list->ranges[i] == range) {
            return true;
        }
    }
    return false;
}

static bool ram_is_as_found(const VirtIORam *ram)
{
    if (!ram->list || ram->list->num != ram->found->len) {
        return false;
    }
    for (unsigned i = 0; i < ram->list->num; i++) {
        if (!range_equals(ram->list->ranges[i],
                          &g_array_index(ram->found, RamRange, i))) {
            return false;
        }
    }
    return true;
}

static void ram_commit(MemoryListener *listener)
{
    VirtIORam *ram = container_of(listener, VirtIORam, listener);
    RamList *old = ram->list;
    RamList *list;

    g_array_sort(ram->found, by_size);
    if (ram_is_as_found(ram)) {
        return;
    }
    list = list_new(ram);
    qatomic_rcu_set(&ram->list, list);
    if (!old) {
        return;
    }
    for (unsigned i = 0; i < old->num; i++) {
        if (!list_has(list, old->ranges[i])) {
            qatomic_set(&old->ranges[i]->dead, true);
        }
    }
    call_rcu(old, list_reclaim, rcu);
}

VirtIORam *virtio_ram_new(AddressSpace *as)
{
    VirtIORam *ram = g_new(VirtIORam, 1);

    GLOBAL_STATE_CODE();

    *ram = (VirtIORam) {
        .listener = {
            .name = "virtio-ram",
            .begin = ram_begin,
            .region_add = ram_add,
            .region_nop = ram_add,
            .commit = ram_commit,
        },
        .refs = 1,
        .found = g_array_new(false, false, sizeof(RamRange)),
    };
    qemu_mutex_init(&ram->lock);
    memory_listener_register(&ram->listener, as);
    return ram;
}

void virtio_ram_delete(VirtIORam *ram)
{
    RamList *list;
    VirtIORamView *view;

    GLOBAL_STATE_CODE();

    memory_listener_unregister(&ram->listener);
    g_array_free(ram->found, true);

    WITH_QEMU_LOCK_GUARD(&ram->lock) {
        while ((view = QLIST_FIRST(&ram->views))) {
            while (view->pins) {
                view_remove_pin(view, &view->pins);
            }
            QLIST_REMOVE(view, next);
            *view = (VirtIORamView) { 0 };
        }
    }
    list = ram->list;
    qatomic_rcu_set(&ram->list, NULL);
    if (list) {
        call_rcu(list, list_reclaim, rcu);
    }
    ram_unref(ram);
}

/*
 * Views
 */

/* How many of the @len bytes at @addr are in @range */
static inline hwaddr range_limit(const RamRange *range, hwaddr addr, hwaddr len)
{
    return MIN(len, range->size - (addr - range->start));
}

static inline void *range_at(const RamRange *range, hwaddr addr)
{
    return range->host + (addr - range->start);
}

/* The range that @addr is in, beginning with the one where the last was */
static RamRange *view_search(VirtIORamView *view, hwaddr addr)
{
    const RamList *list = view->ram ? qatomic_rcu_read(&view->ram->list) : NULL;
    /* The hint may come from another list. */
    unsigned i = list && view->hint < list->num ? view->hint : 0;

    for (unsigned tries = 0; list && tries < list->num; tries++) {
        RamRange *range = list->ranges[i];

        if (virtio_ram_range_has(range, addr)) {
            view->hint = i;
            return range;
        }
        i = i + 1 < list->num ? i + 1 : 0;
    }
    return NULL;
}

/* Off the hot path: once for each range */
static VirtIORamPin *view_add_pin(VirtIORamView *view, RamRange *range)
{
    VirtIORamPin *pin = qemu_memalign(__alignof__(*pin), sizeof(*pin));

    qatomic_inc(&range->refs);
    WITH_QEMU_LOCK_GUARD(&view->ram->lock) {
        if (!view->listed) {
            view->listed = true;
            QLIST_INSERT_HEAD(&view->ram->views, view, next);
        }
        *pin = (VirtIORamPin) { .range = range, .next = view->pins };
        qatomic_rcu_set(&view->pins, pin);
    }
    return pin;
}

static VirtIORamPin *view_pin_of_range(VirtIORamView *view, RamRange *range)
{
    VirtIORamPin *pin;

    for (pin = qatomic_rcu_read(&view->pins); pin;
         pin = qatomic_rcu_read(&pin->next)) {
        if (pin->range == range) {
            break;
        }
    }
    if (!pin) {
        pin = view_add_pin(view, range);
    }
    qatomic_set(&view->last, pin);
    return pin;
}

/* A pin for the range that @addr is in, or NULL if there is no RAM */
static VirtIORamPin *view_find_pin(VirtIORamView *view, hwaddr addr)
{
    RamRange *range = view_search(view, addr);

    return range ? view_pin_of_range(view, range) : NULL;
}

static inline bool pin_has_host(const VirtIORamPin *pin, uint8_t *host)
{
    return (uintptr_t)host - (uintptr_t)pin->range->host < pin->range->size &&
           pin->users;
}

/* Ranges may come back with another host address, but not have the same. */
static VirtIORamPin *view_search_host(VirtIORamView *view, void *host)
{
    VirtIORamPin *pin;

    for (pin = qatomic_rcu_read(&view->pins); pin;
         pin = qatomic_rcu_read(&pin->next)) {
        if (pin_has_host(pin, host)) {
            return pin;
        }
    }
    return NULL; /* the device is gone */
}

static inline VirtIORamPin *view_pin_of_host(VirtIORamView *view, void *host)
{
    VirtIORamPin *pin = qatomic_rcu_read(&view->last);

    if (likely(pin && pin_has_host(pin, host))) {
        return pin;
    }
    return view_search_host(view, host);
}

void *virtio_ram_peek(VirtIORamView *view, hwaddr addr, hwaddr *len)
{
    VirtIORamPin *pin = virtio_ram_last_at(view, addr);
    RamRange *range = likely(pin) ? pin->range : view_search(view, addr);

    if (!range) {
        return NULL;
    }
    *len = range_limit(range, addr, *len);
    fuzz_dma_read_cb(addr, *len, range->mr);
    return range_at(range, addr);
}

void *virtio_ram_map(VirtIORamView *view, hwaddr addr, hwaddr *len)
{
    VirtIORamPin *pin = virtio_ram_last_at(view, addr);

    if (unlikely(!pin)) {
        pin = view_find_pin(view, addr);
        if (!pin) {
            return NULL;
        }
    }
    qatomic_set(&pin->users, pin->users + 1);
    *len = range_limit(pin->range, addr, *len);
    fuzz_dma_read_cb(addr, *len, pin->range->mr);
    return range_at(pin->range, addr);
}

static void view_lock_and_remove_dead(VirtIORamView *view)
{
    QEMU_LOCK_GUARD(&view->ram->lock);
    view_remove_dead(view);
}

static inline void view_unpin(VirtIORamView *view, VirtIORamPin *pin)
{
    qatomic_set(&pin->users, pin->users - 1);
    if (unlikely(qatomic_read(&pin->range->dead)) && !pin->users) {
        view_lock_and_remove_dead(view);
    }
}

/*
 * For invalidation only.  With a FlatView, as address_space_cache_init() makes
 * it, it would keep every device alive that was ever mapped beside.
 */
static void range_set_dirty(const RamRange *range, uint8_t *host, size_t len)
{
    MemoryRegionCache cache = {
        .ptr = range->host,
        .xlat = range->offset,
        .len = range->size,
        .mrs.mr = range->mr,
        .is_write = true,
    };

    address_space_cache_invalidate(&cache, host - range->host, len);
}

/*
 * Usually nobody wants to know: neither does migration go on, nor is there
 * translated code.  Without Xen (see ram_add()) the memory API does nothing
 * then, after the same look at the same flags; we look as late as it does, that
 * is, behind the write.  Migration sets its flag before it reads any page.
 */
static inline void range_changed(const RamRange *range, uint8_t *host,
                                 size_t len)
{
    if (unlikely(memory_region_get_dirty_log_mask(range->mr))) {
        range_set_dirty(range, host, len);
    }
}

static inline void view_unmap(VirtIORamView *view, void *host, size_t written)
{
    VirtIORamPin *pin = view_pin_of_host(view, host);

    if (likely(pin)) {
        if (written) {
            range_changed(pin->range, host, written);
        }
        view_unpin(view, pin);
    }
}

void virtio_ram_unmap(VirtIORamView *view, void *host, size_t written)
{
    view_unmap(view, host, written);
}

void virtio_ram_unmap_element(VirtIORamView *view, const VirtQueueElement *elem,
                              size_t written)
{
    for (unsigned i = 0; i < elem->in_num; i++) {
        size_t here = MIN(written, elem->in_sg[i].iov_len);

        view_unmap(view, elem->in_sg[i].iov_base, here);
        written -= here;
    }
    for (unsigned i = 0; i < elem->out_num; i++) {
        view_unmap(view, elem->out_sg[i].iov_base, 0);
    }
}

void virtio_ram_hand_over(VirtIORamView *view, void *host)
{
    VirtIORamPin *pin = view_pin_of_host(view, host);

    if (pin) {
        memory_region_ref(pin->range->mr);
        view_unpin(view, pin);
    }
}

void virtio_ram_written(VirtIORamView *view, void *host, size_t len)
{
    VirtIORamPin *pin = view_pin_of_host(view, host);

    if (pin) {
        range_changed(pin->range, host, len);
    }
}
