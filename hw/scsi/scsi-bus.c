/*
 * SCSI bus core: bus and device as QEMU's object model sees them
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 * In the place of QEMU's file of this name; without notice: GPL-2.0-or-later.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "qemu/memalign.h"
#include "qemu/module.h"
#include "qemu/rcu.h"
#include "hw/qdev-properties.h"
#include "scsi/constants.h"
#include "system/block-backend.h"
#include "system/blockdev.h"
#include "system/runstate.h"
#include "system/system.h"
#include "trace.h"
#include "scsi-internal.h"

/* The value of an address property that is not set */
#define ANY UINT32_MAX

/* Room for the requests of all kinds of device */
#define REQ_BLOCK_SIZE 704

/*
 * Unit attention conditions
 */

/**
 * scsi_device_set_ua:
 * @d: a LUN
 * @sense: unit attention condition to establish; anything else is ignored
 *
 * Context: any thread.
 */
void scsi_device_set_ua(SCSIDevice *d, SCSISense sense)
{
    if (sense.key != UNIT_ATTENTION) {
        return;
    }
    trace_scsi_device_set_ua(d->id, d->lun, sense.key, sense.asc, sense.ascq);
    scsi_attention_raise(&d->attention, sense);
}

void scsi_device_clear_ua(SCSIDevice *d)
{
    scsi_attention_clear(&d->attention);
    scsi_device_unit_attention_reported(d);
}

/**
 * scsi_device_unit_attention_reported:
 * @d: a LUN
 *
 * The initiator knows; @d may have something more to say.
 * Context: one of the bus's AioContexts.
 */
void scsi_device_unit_attention_reported(SCSIDevice *d)
{
    SCSIDeviceClass *sc = scsi_device_class(d);

    if (sc->unit_attention_reported) {
        sc->unit_attention_reported(d);
    }
}

/**
 * scsi_bus_set_ua:
 * @bus: a bus
 * @sense: unit attention condition to establish; anything else is ignored
 *
 * Whichever LUN gets a command first reports it.  Context: any thread.
 */
void scsi_bus_set_ua(SCSIBus *bus, SCSISense sense)
{
    scsi_attention_raise(&bus->attention, sense);
}

/**
 * scsi_device_report_change:
 * @d: a LUN whose parameters have changed
 * @sense: the unit attention condition that says so
 *
 * Context: any thread.
 */
void scsi_device_report_change(SCSIDevice *d, SCSISense sense)
{
    SCSIBus *bus = scsi_bus_from_device(d);

    scsi_device_set_ua(d, sense);
    if (bus->info->change) {
        bus->info->change(bus, d, sense);
    }
}

/** scsi_device_get_sense: see scsi_held_sense_get(). */
int scsi_device_get_sense(SCSIDevice *d, uint8_t *buf, int len, bool fixed)
{
    return scsi_held_sense_get(&d->held_sense, buf, len, fixed);
}

static unsigned bus_count_parked(const GPtrArray *luns)
{
    unsigned count = 0;

    for (unsigned i = 0; i < luns->len; i++) {
        const SCSIInflight *f =
            &((SCSIDevice *)g_ptr_array_index(luns, i))->inflight;

        for (unsigned n = 0; n < f->num; n++) {
            count += qatomic_read(&f->lanes[n].parked);
        }
    }
    return count;
}

/*
 * If @others is set, also count jobs and other users of its node.  A job may
 * have ended meanwhile, and put in another node, which isn't drained.
 */
static bool lun_is_busy(SCSIDevice *d, bool others)
{
    BlockBackend *blk = d->conf.blk;

    if (!scsi_inflight_is_idle(&d->inflight)) {
        return true;
    }
    if (!others || !blk || !blk_bs(blk) || !blk_in_drain(blk)) {
        return false;
    }
    GRAPH_RDLOCK_GUARD_MAINLOOP();
    return bdrv_drain_poll(blk_bs(blk), NULL, false);
}

static SCSIDevice *bus_find_busy(const GPtrArray *luns, bool others)
{
    for (unsigned i = 0; i < luns->len; i++) {
        SCSIDevice *d = g_ptr_array_index(luns, i);

        if (lun_is_busy(d, others)) {
            return d;
        }
    }
    return NULL;
}

SCSIDevice *scsi_bus_begin_idle(SCSIBus *bus, const GPtrArray *luns,
                                const bool *give_up)
{
    SCSIDevice *busy;

    /* Handlers that are running end, and later ones know that we wait. */
    qatomic_inc(&bus->idle_waiters);
    aio_wait_bh_oneshot_all(bus->contexts, bus->num_contexts, NULL, NULL);

    for (unsigned i = 0; i < luns->len; i++) {
        SCSIDevice *d = g_ptr_array_index(luns, i);

        if (d->conf.blk) {
            blk_cancel_begin(d->conf.blk);
        }
    }
    AIO_WAIT_WHILE_UNLOCKED(NULL, bus_find_busy(luns, give_up) &&
                                  !(give_up && *give_up));

    /*
     * The callback of the last one may not have returned yet.  One that ends
     * from here on is busy: nobody waits for the end of its callback.
     */
    busy = bus_find_busy(luns, give_up);
    aio_wait_bh_oneshot_all(bus->contexts, bus->num_contexts, NULL, NULL);
    return busy;
}

void scsi_bus_end_idle(SCSIBus *bus, const GPtrArray *luns)
{
    for (unsigned i = 0; i < luns->len; i++) {
        SCSIDevice *d = g_ptr_array_index(luns, i);

        if (d->conf.blk) {
            blk_cancel_end(d->conf.blk);
        }
    }
    qatomic_dec(&bus->idle_waiters);
}

/**
 * scsi_bus_wait_idle:
 * @bus: a bus whose HBA submits no new requests
 *
 * Wait as scsi_bus_begin_idle() does.  All that this waits for is I/O that is
 * under way.
 *
 * Context: main loop, BQL held.
 * Returns: true if more requests wait for the VM than before.
 */
bool scsi_bus_wait_idle(SCSIBus *bus)
{
    g_autoptr(GPtrArray) luns = scsi_bus_list(bus);
    unsigned before = bus_count_parked(luns);

    scsi_bus_begin_idle(bus, luns, NULL);
    scsi_bus_end_idle(bus, luns);
    return bus_count_parked(luns) > before;
}

GPtrArray *scsi_bus_list(SCSIBus *bus)
{
    GPtrArray *luns = g_ptr_array_new_with_free_func(object_unref);
    BusChild *kid;

    GLOBAL_STATE_CODE();

    QTAILQ_FOREACH(kid, &bus->qbus.children, sibling) {
        g_ptr_array_add(luns, object_ref(OBJECT(kid->child)));
    }
    return luns;
}

/*
 * Addresses
 */

static bool address_in_range(const char *prop, uint32_t value, uint32_t max,
                             Error **errp)
{
    if (value > max) {
        error_setg(errp, "%s=%" PRIu32 " is out of range, this bus has 0 to "
                   "%" PRIu32, prop, value, max);
        return false;
    }
    return true;
}

static bool bus_check_address(BusState *qbus, DeviceState *qdev, Error **errp)
{
    const SCSIBusInfo *info = SCSI_BUS(qbus)->info;
    SCSIDevice *d = SCSI_DEVICE(qdev);
    SCSIDevice *other;

    if (!address_in_range("channel", d->channel, info->max_channel, errp) ||
        (d->id != ANY &&
         !address_in_range("scsi-id", d->id, info->max_target, errp)) ||
        (d->lun != ANY &&
         !address_in_range("lun", d->lun, info->max_lun, errp))) {
        return false;
    }
    if (d->id == ANY || d->lun == ANY) {
        return true; /* it will get a free one */
    }
    other = scsi_topology_occupant(SCSI_BUS(qbus), d->channel, d->id, d->lun,
                                   d);
    if (other) {
        g_autofree char *path = object_get_canonical_path(OBJECT(other));

        error_setg(errp, "lun=%" PRIu32 " of scsi-id=%" PRIu32 " is already "
                   "used by '%s'; choose another, or leave it out to get a "
                   "free one", d->lun, d->id, other->qdev.id ?: path);
        return false;
    }
    return true;
}

/* The lowest free target with @d's LUN, or the lowest free LUN of its target */
static bool device_choose_address(SCSIBus *bus, SCSIDevice *d, Error **errp)
{
    const bool any_target = d->id == ANY;
    uint32_t *choice = any_target ? &d->id : &d->lun;
    uint32_t max = any_target ? bus->info->max_target : bus->info->max_lun;

    if (any_target && d->lun == ANY) {
        d->lun = 0;
    }
    if (*choice != ANY) {
        return true;
    }
    for (uint32_t i = 0; i <= max; i++) {
        uint32_t target = any_target ? i : d->id;
        uint32_t lun = any_target ? d->lun : i;

        if (!scsi_topology_occupant(bus, d->channel, target, lun, d)) {
            *choice = i;
            return true;
        }
    }
    if (any_target) {
        error_setg(errp, "no free target: all of scsi-id=0 to %d have "
                   "lun=%" PRIu32 " in use", bus->info->max_target, d->lun);
    } else {
        error_setg(errp, "no free lun: all of 0 to %d of scsi-id=%" PRIu32
                   " are in use", bus->info->max_lun, d->id);
    }
    return false;
}

static char *bus_get_dev_path(DeviceState *dev)
{
    SCSIDevice *d = SCSI_DEVICE(dev);
    g_autofree char *hba = qdev_get_dev_path(dev->parent_bus->parent);

    return g_strdup_printf("%s%s%d:%d:%d", hba ?: "", hba ? "/" : "",
                           d->channel, d->id, d->lun);
}

static char *bus_get_fw_dev_path(DeviceState *dev)
{
    SCSIDevice *d = SCSI_DEVICE(dev);

    return g_strdup_printf("channel@%x/%s@%x,%x", d->channel,
                           qdev_fw_name(dev), d->id, d->lun);
}

/*
 * Devices
 */

static void device_vm_state_changed(void *opaque, bool running, RunState state)
{
    if (running) {
        SCSIDevice *d = opaque;

        scsi_inflight_restart(&d->inflight, false);
    }
}

static void scsi_device_realize(DeviceState *qdev, Error **errp)
{
    ERRP_GUARD();
    SCSIDevice *d = SCSI_DEVICE(qdev);
    SCSIBus *bus = scsi_bus_from_device(d);
    SCSIDeviceClass *sc = SCSI_DEVICE_GET_CLASS(d);

    if (!device_choose_address(bus, d, errp)) {
        return;
    }
    scsi_inflight_destroy(&d->inflight); /* of an earlier life, if any */
    scsi_inflight_init(&d->inflight, bus->contexts, bus->num_contexts);
    if (sc->realize) {
        sc->realize(d, errp);
        if (*errp) {
            return;
        }
    }
    d->vmsentry = qdev_add_vm_change_state_handler(qdev,
                                                   device_vm_state_changed, d);
    scsi_topology_publish(bus, d);
}

static void scsi_device_unrealize(DeviceState *qdev)
{
    SCSIDevice *d = SCSI_DEVICE(qdev);
    SCSIDeviceClass *sc = SCSI_DEVICE_GET_CLASS(d);

    g_clear_pointer(&d->vmsentry, qemu_del_vm_change_state_handler);

    /* Nobody finds it; then nobody is about to use it; then it is idle. */
    scsi_topology_unpublish(scsi_bus_from_device(d), d);
    scsi_device_purge_requests(d, SENSE_CODE(NO_SENSE));
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&d->inflight.restarts));
    scsi_device_pin(d);

    if (sc->unrealize) {
        sc->unrealize(d);
    }
    blockdev_mark_auto_del(d->conf.blk);
}

static void scsi_device_init(Object *obj)
{
    SCSIDevice *d = SCSI_DEVICE(obj);

    scsi_attention_init(&d->attention);
    scsi_held_sense_init(&d->held_sense);
    device_add_bootindex_property(obj, &d->conf.bootindex, "bootindex", NULL,
                                  &d->qdev);
}

static void scsi_device_finalize(Object *obj)
{
    SCSIDevice *d = SCSI_DEVICE(obj);

    scsi_inflight_destroy(&d->inflight);
    scsi_held_sense_destroy(&d->held_sense);
    scsi_attention_destroy(&d->attention);
}

static const Property scsi_device_properties[] = {
    DEFINE_PROP_UINT32("channel", SCSIDevice, channel, 0),
    DEFINE_PROP_UINT32("scsi-id", SCSIDevice, id, ANY),
    DEFINE_PROP_UINT32("lun", SCSIDevice, lun, ANY),
};

static void scsi_device_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);

    dc->bus_type = TYPE_SCSI_BUS;
    dc->realize = scsi_device_realize;
    dc->unrealize = scsi_device_unrealize;
    set_bit(DEVICE_CATEGORY_STORAGE, dc->categories);
    device_class_set_props(dc, scsi_device_properties);
}

/*
 * Buses
 */

static void pools_free(SCSIPool *pools, unsigned num)
{
    for (unsigned i = 0; i < num; i++) {
        scsi_pool_clear(&pools[i]);
    }
    qemu_vfree(pools);
}

static SCSIPool *pools_new(unsigned num)
{
    SCSIPool *pools = qemu_memalign(__alignof__(SCSIPool),
                                    num * sizeof(SCSIPool));

    for (unsigned i = 0; i < num; i++) {
        scsi_pool_init(&pools[i], REQ_BLOCK_SIZE);
    }
    return pools;
}

void scsi_bus_set_contexts(SCSIBus *bus, AioContext *const *contexts,
                           unsigned num)
{
    AioContext **old_contexts = bus->contexts;
    SCSIPool *old_pools = bus->pools;
    unsigned old_num = bus->num_contexts;
    BusChild *kid;

    GLOBAL_STATE_CODE();

    bus->num_contexts = num + 1;
    bus->contexts = g_new(AioContext *, bus->num_contexts);
    bus->contexts[0] = qemu_get_aio_context();
    for (unsigned i = 0; i < num; i++) {
        bus->contexts[i + 1] = contexts[i];
    }
    bus->pools = pools_new(bus->num_contexts);

    QTAILQ_FOREACH(kid, &bus->qbus.children, sibling) {
        scsi_inflight_set_contexts(&SCSI_DEVICE(kid->child)->inflight,
                                   bus->contexts, bus->num_contexts);
    }
    pools_free(old_pools, old_num);
    g_free(old_contexts);
}

void scsi_bus_init_named(SCSIBus *bus, size_t bus_size, DeviceState *host,
                         const SCSIBusInfo *info, const char *bus_name)
{
    static int next_busnr;

    qbus_init(bus, bus_size, TYPE_SCSI_BUS, host, bus_name);
    bus->busnr = next_busnr++;
    bus->info = info;
    scsi_bus_set_contexts(bus, NULL, 0);
    qbus_set_bus_hotplug_handler(BUS(bus));
}

static void scsi_bus_instance_init(Object *obj)
{
    scsi_attention_init(&SCSI_BUS(obj)->attention);
}

static void scsi_bus_finalize(Object *obj)
{
    SCSIBus *bus = SCSI_BUS(obj);

    if (bus->luns) {
        assert(bus->luns->num == 0);
        g_free_rcu(bus->luns, rcu);
    }
    pools_free(bus->pools, bus->num_contexts);
    g_free(bus->contexts);
    scsi_attention_destroy(&bus->attention);
}

static void scsi_bus_class_init(ObjectClass *klass, void *data)
{
    HotplugHandlerClass *hhc = HOTPLUG_HANDLER_CLASS(klass);
    BusClass *bc = BUS_CLASS(klass);

    hhc->unplug = qdev_simple_device_unplug_cb;
    bc->check_address = bus_check_address;
    bc->get_dev_path = bus_get_dev_path;
    bc->get_fw_dev_path = bus_get_fw_dev_path;
}

static const TypeInfo scsi_types[] = {
    {
        .name               = TYPE_SCSI_BUS,
        .parent             = TYPE_BUS,
        .interfaces         = (InterfaceInfo[]) {
            { TYPE_HOTPLUG_HANDLER }, { }
        },
        .instance_size      = sizeof(SCSIBus),
        .instance_init      = scsi_bus_instance_init,
        .instance_finalize  = scsi_bus_finalize,
        .class_init         = scsi_bus_class_init,
    },
    {
        .name               = TYPE_SCSI_DEVICE,
        .parent             = TYPE_DEVICE,
        .abstract           = true,
        .instance_size      = sizeof(SCSIDevice),
        .instance_init      = scsi_device_init,
        .instance_finalize  = scsi_device_finalize,
        .class_size         = sizeof(SCSIDeviceClass),
        .class_init         = scsi_device_class_init,
    },
};

DEFINE_TYPES(scsi_types)
