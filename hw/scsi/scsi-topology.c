/*
 * SCSI bus core: which LUN is where
 *
 * Every command looks its LUN up, from any AioContext, while LUNs come and go.
 * So the look-up is a binary search in a sorted array that never changes; who
 * adds or removes a LUN publishes another array (RCU).
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "scsi-internal.h"

static int compare_address(const SCSIDevice *d, uint32_t channel,
                           uint32_t target, uint32_t lun)
{
    if (d->channel != channel) {
        return d->channel < channel ? -1 : 1;
    }
    if (d->id != target) {
        return d->id < target ? -1 : 1;
    }
    if (d->lun != lun) {
        return d->lun < lun ? -1 : 1;
    }
    return 0;
}

/* The index of the first LUN that doesn't stand before that address */
static unsigned map_search(const SCSILunMap *map, uint32_t channel,
                           uint32_t target, uint32_t lun)
{
    unsigned low = 0;
    unsigned high = map ? map->num : 0;

    while (low < high) {
        unsigned mid = (low + high) / 2;

        if (compare_address(map->luns[mid], channel, target, lun) < 0) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

/* Is there another LUN of that target at index @i? */
static bool map_has(const SCSILunMap *map, unsigned i, uint32_t channel,
                    uint32_t target)
{
    return map && i < map->num && map->luns[i]->channel == channel &&
           map->luns[i]->id == target;
}

/*
 * Look-up
 */

/**
 * scsi_device_find:
 * @bus: a bus
 * @channel: an address on it
 * @target: an address on it
 * @lun: an address on it
 *
 * The result stays as long as its caller doesn't return to the event loop, nor
 * runs it: before a LUN dies, the bus visits each of its AioContexts.
 *
 * Context: one of the bus's AioContexts.
 * Returns: the LUN with that address, or else any of the same target, or NULL
 * if there is no such target.
 */
SCSIDevice *scsi_device_find(SCSIBus *bus, int channel, int target, int lun)
{
    RCU_READ_LOCK_GUARD();
    const SCSILunMap *map = qatomic_rcu_read(&bus->luns);
    unsigned i = map_search(map, channel, target, lun);

    if (map_has(map, i, channel, target) && map->luns[i]->lun == lun &&
        qdev_is_realized(&map->luns[i]->qdev)) {
        return map->luns[i];
    }

    /* Any other LUN can answer for the target. */
    i = map_search(map, channel, target, 0);
    for (; map_has(map, i, channel, target); i++) {
        if (qdev_is_realized(&map->luns[i]->qdev)) {
            return map->luns[i];
        }
    }
    return NULL;
}

/**
 * scsi_device_get:
 * @bus: a bus
 * @channel: an address on it
 * @target: an address on it
 * @lun: an address on it
 *
 * Context: one of the bus's AioContexts.
 * Returns: what scsi_device_find() does, with a reference for the caller.
 */
SCSIDevice *scsi_device_get(SCSIBus *bus, int channel, int target, int lun)
{
    SCSIDevice *d = scsi_device_find(bus, channel, target, lun);

    return d ? SCSI_DEVICE(object_ref(OBJECT(d))) : NULL;
}

GArray *scsi_topology_list(SCSIBus *bus, uint32_t channel, uint32_t target)
{
    GArray *list = g_array_new(false, false, sizeof(uint32_t));

    RCU_READ_LOCK_GUARD();
    const SCSILunMap *map = qatomic_rcu_read(&bus->luns);
    unsigned i = map_search(map, channel, target, 0);

    for (; map_has(map, i, channel, target); i++) {
        if (qdev_is_realized(&map->luns[i]->qdev)) {
            g_array_append_val(list, map->luns[i]->lun);
        }
    }
    return list;
}

SCSIDevice *scsi_topology_occupant(SCSIBus *bus, uint32_t channel,
                                   uint32_t target, uint32_t lun,
                                   const SCSIDevice *except)
{
    BusChild *kid;

    GLOBAL_STATE_CODE();

    QTAILQ_FOREACH(kid, &bus->qbus.children, sibling) {
        SCSIDevice *d = SCSI_DEVICE(kid->child);

        if (d != except && !compare_address(d, channel, target, lun)) {
            return d;
        }
    }
    return NULL;
}

/*
 * Change
 */

static void map_replace(SCSIBus *bus, SCSILunMap *map)
{
    SCSILunMap *old = bus->luns;

    qatomic_rcu_set(&bus->luns, map);
    if (old) {
        g_free_rcu(old, rcu);
    }
}

void scsi_topology_publish(SCSIBus *bus, SCSIDevice *d)
{
    const SCSILunMap *old = bus->luns;
    unsigned num = old ? old->num : 0;
    unsigned at = map_search(old, d->channel, d->id, d->lun);
    SCSILunMap *map;

    GLOBAL_STATE_CODE();

    map = g_malloc(sizeof(*map) + (num + 1) * sizeof(map->luns[0]));
    map->num = num + 1;
    for (unsigned i = 0; i < num; i++) {
        map->luns[i < at ? i : i + 1] = old->luns[i];
    }
    map->luns[at] = d;
    map_replace(bus, map);
}

void scsi_topology_unpublish(SCSIBus *bus, SCSIDevice *d)
{
    const SCSILunMap *old = bus->luns;
    SCSILunMap *map;

    GLOBAL_STATE_CODE();

    if (!old) {
        return;
    }
    map = g_malloc(sizeof(*map) + old->num * sizeof(map->luns[0]));
    map->num = 0;
    for (unsigned i = 0; i < old->num; i++) {
        if (old->luns[i] != d) {
            map->luns[map->num++] = old->luns[i];
        }
    }
    map_replace(bus, map);
}
