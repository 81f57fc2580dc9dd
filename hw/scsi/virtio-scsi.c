/*
 * virtio SCSI host bus adapter (virtio 1.2, 5.6): the device as QEMU's object
 * model, the monitor and the SCSI bus see it
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 * In the place of QEMU's file of this name, which is GPL-2.0-or-later.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "hw/qdev-properties.h"
#include "hw/virtio/virtio-access.h"
#include "hw/virtio/virtio-bus.h"
#include "migration/qemu-file-types.h"
#include "migration/vmstate.h"
#include "scsi/constants.h"
#include "system/block-backend.h"
#include "system/runstate.h"
#include "virtio-scsi-internal.h"

SCSIDevice *virtio_scsi_lun_find(VirtIOSCSI *s, const uint8_t lun[8])
{
    unsigned method = lun[2] >> 6;

    /*
     * Byte 0 is always 1 and byte 1 the target.  The LUN has 8 bits in the
     * peripheral device addressing method (0), 14 in the flat one (1).
     */
    if (lun[0] != 1 || method > 1 || (method == 0 && lun[2] != 0)) {
        return NULL;
    }
    return scsi_device_find(&s->bus, 0, lun[1], virtio_scsi_lun_number(lun));
}

/*
 * Configuration space and features
 */

static void virtio_scsi_set_config(VirtIODevice *vdev, const uint8_t *config)
{
    VirtIOSCSICommon *vs = VIRTIO_SCSI_COMMON(vdev);
    const VirtIOSCSIConfig *c = (const VirtIOSCSIConfig *)config;
    uint32_t cdb_size = virtio_ldl_p(vdev, &c->cdb_size);
    uint32_t sense_size = virtio_ldl_p(vdev, &c->sense_size);

    if (cdb_size > VIRTIO_SCSI_MAX_CDB_SIZE ||
        sense_size > VIRTIO_SCSI_MAX_SENSE_SIZE) {
        virtio_error(vdev, "virtio-scsi: driver set cdb_size %" PRIu32
                     " and sense_size %" PRIu32 ", at most %d and %d are "
                     "possible", cdb_size, sense_size,
                     VIRTIO_SCSI_MAX_CDB_SIZE, VIRTIO_SCSI_MAX_SENSE_SIZE);
        return;
    }
    qatomic_set(&vs->cdb_size, cdb_size);
    qatomic_set(&vs->sense_size, sense_size);
}

static uint64_t virtio_scsi_get_features(VirtIODevice *vdev, uint64_t features,
                                         Error **errp)
{
    return features | VIRTIO_SCSI(vdev)->host_features;
}

/*
 * Reset: the transport has called virtio_scsi_dataplane_stop() before, so the
 * main loop owns all that is left.
 */
static void virtio_scsi_reset(VirtIODevice *vdev)
{
    VirtIOSCSI *s = VIRTIO_SCSI(vdev);
    VirtIOSCSICommon *vs = VIRTIO_SCSI_COMMON(vdev);

    assert(!s->in_contexts);

    /*
     * The waits run the event loop, and main_bh may be pending.  It must
     * neither take commands that would outlive the reset nor start IOThreads.
     */
    qatomic_set(&s->accepts_kicks, false);
    bus_cold_reset(BUS(&s->bus));

    /* All commands are gone, so nothing holds up a TMF any longer. */
    virtio_scsi_ctrl_settle(s);
    virtio_scsi_drop_late(s, NULL);
    virtio_scsi_event_reset(s);

    qatomic_set(&vs->cdb_size, VIRTIO_SCSI_CDB_DEFAULT_SIZE);
    qatomic_set(&vs->sense_size, VIRTIO_SCSI_SENSE_DEFAULT_SIZE);

    /* The next driver may have better luck with host notifiers. */
    s->main_only = false;
    s->wants_start = false;
    s->wants_restart = false;
    qatomic_set(&s->wants_main_loop, false);
    /* The transport empties the rings now, so there is nothing to look at. */
    qatomic_set(&s->accepts_kicks, true);
}

/*
 * Reset of one virtqueue (virtio 1.2, 2.6.1).  What it has in flight ends; that
 * of the others goes on when the virtqueue has been reset.
 */
static void virtio_scsi_queue_reset(VirtIODevice *vdev, uint32_t n)
{
    VirtIOSCSI *s = VIRTIO_SCSI(vdev);
    uint32_t num_queues = s->parent_obj.conf.num_queues;

    if (n >= VIRTIO_SCSI_VQ_NUM_FIXED + num_queues) {
        return; /* the driver may select any, and has nothing there */
    }
    if (s->in_contexts) {
        virtio_bus_stop_ioeventfd(VIRTIO_BUS(qdev_get_parent_bus(DEVICE(s))));
        s->wants_start = true;
    } else {
        virtio_scsi_settle(s);
    }
    if (n >= VIRTIO_SCSI_VQ_NUM_FIXED) {
        virtio_scsi_queue_abort(&s->queues[n - VIRTIO_SCSI_VQ_NUM_FIXED]);
    }
    virtio_scsi_drop_late(s, virtio_get_queue(vdev, n));
    qemu_bh_schedule(s->main_bh);
}

/*
 * Hotplug
 */

static bool context_has_queue(VirtIOSCSI *s, AioContext *ctx)
{
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        if (s->queues[i].ctx == ctx) {
            return true;
        }
    }
    return false;
}

/*
 * Choose the home AioContext of a new LUN: that of the IOThread with queues
 * that is home to the fewest LUNs of this HBA, the first such IOThread if there
 * are several.  Requests are submitted from the AioContexts of all queues
 * whatever the home; it is where block jobs and other background work run.
 */
AioContext *virtio_scsi_choose_home(VirtIOSCSI *s)
{
    g_autofree unsigned *load = g_new0(unsigned, s->num_contexts);
    AioContext *best = NULL;
    unsigned best_load = UINT_MAX;
    BusChild *kid;

    QTAILQ_FOREACH(kid, &BUS(&s->bus)->children, sibling) {
        BlockBackend *blk = SCSI_DEVICE(kid->child)->conf.blk;

        for (unsigned i = 0; blk && i < s->num_contexts; i++) {
            load[i] += blk_get_aio_context(blk) == s->contexts[i];
        }
    }
    for (unsigned i = 0; i < s->num_contexts; i++) {
        if (load[i] < best_load && context_has_queue(s, s->contexts[i])) {
            best = s->contexts[i];
            best_load = load[i];
        }
    }
    return best;
}

static void virtio_scsi_report_luns_changed(VirtIOSCSI *s, SCSIDevice *sd,
                                            uint32_t reason)
{
    if (virtio_vdev_has_feature(VIRTIO_DEVICE(s), VIRTIO_SCSI_F_HOTPLUG)) {
        virtio_scsi_event_post(s, VIRTIO_SCSI_T_TRANSPORT_RESET, reason, sd);
    }
}

static void virtio_scsi_lun_pre_plug(HotplugHandler *handler, DeviceState *dev,
                                     Error **errp)
{
    SCSI_DEVICE(dev)->hba_supports_iothread = true;
}

static void virtio_scsi_lun_plug(HotplugHandler *handler, DeviceState *dev,
                                 Error **errp)
{
    VirtIOSCSI *s = VIRTIO_SCSI(handler);
    SCSIDevice *sd = SCSI_DEVICE(dev);

    if (s->num_contexts && !s->main_only) {
        /*
         * Other users of the node may insist on another AioContext.  I/O from
         * ours works all the same, so that is no error.
         */
        blk_set_aio_context(sd->conf.blk, virtio_scsi_choose_home(s), NULL);
    }
    virtio_scsi_report_luns_changed(s, sd, VIRTIO_SCSI_EVT_RESET_RESCAN);
}

static void virtio_scsi_lun_unplug(HotplugHandler *handler, DeviceState *dev,
                                   Error **errp)
{
    VirtIOSCSI *s = VIRTIO_SCSI(handler);
    SCSIDevice *sd = SCSI_DEVICE(dev);

    qdev_simple_device_unplug_cb(handler, dev, errp);

    if (s->num_contexts) {
        /* The IOThread may be deleted after us; don't leave the node there. */
        blk_set_aio_context(sd->conf.blk, qemu_get_aio_context(), NULL);
    }
    virtio_scsi_report_luns_changed(s, sd, VIRTIO_SCSI_EVT_RESET_REMOVED);
}

/* A LUN's parameters have changed; comes from any thread. */
static void virtio_scsi_lun_changed(SCSIBus *bus, SCSIDevice *sd,
                                    SCSISense sense)
{
    VirtIOSCSI *s = container_of(bus, VirtIOSCSI, bus);

    /* CD-ROM drives announce a change of medium by a unit attention only. */
    if (virtio_vdev_has_feature(VIRTIO_DEVICE(s), VIRTIO_SCSI_F_CHANGE) &&
        sd->type != TYPE_ROM) {
        virtio_scsi_event_post(s, VIRTIO_SCSI_T_PARAM_CHANGE,
                               sense.asc | sense.ascq << 8, sd);
    }
}

static const SCSIBusInfo virtio_scsi_bus_info = {
    .max_channel    = VIRTIO_SCSI_MAX_CHANNEL,
    .max_target     = VIRTIO_SCSI_MAX_TARGET,
    .max_lun        = VIRTIO_SCSI_MAX_LUN,
    .tcq            = true,

    .parse_cdb      = virtio_scsi_cmd_parse_cdb,
    .get_iov        = virtio_scsi_cmd_iov,
    .complete       = virtio_scsi_cmd_complete,
    .fail           = virtio_scsi_cmd_failed,
    .cancel         = virtio_scsi_cmd_cancelled,
    .save_request   = virtio_scsi_cmd_save,
    .load_request   = virtio_scsi_cmd_load,

    .change         = virtio_scsi_lun_changed,
    .supported_tmfs = virtio_scsi_supported_tmfs,
};

/*
 * Without host notifiers nobody stops us, or starts us again, when the VM is
 * stopped and resumed.
 */
static void virtio_scsi_vm_changed(void *opaque, bool running, RunState state)
{
    VirtIOSCSI *s = opaque;

    if (s->in_contexts) {
        return;
    }
    if (running) {
        qemu_bh_schedule(s->main_bh);
    } else {
        virtio_scsi_settle(s);
        virtio_scsi_push_late(s);
    }
}

/*
 * Life of the device.  All that can fail comes first and leaves nothing.
 */

static void virtio_scsi_device_realize(DeviceState *dev, Error **errp)
{
    VirtIOSCSI *s = VIRTIO_SCSI(dev);
    VirtIOSCSICommon *vs = VIRTIO_SCSI_COMMON(dev);

    if (!virtio_scsi_common_check(&vs->conf, errp) ||
        !virtio_scsi_setup(s, errp)) {
        return;
    }

    virtio_scsi_common_realize(dev, virtio_scsi_handle_ctrl,
                               virtio_scsi_handle_event,
                               virtio_scsi_handle_cmd, &error_abort);
    for (unsigned i = 0; i < vs->conf.num_queues; i++) {
        s->queues[i].vq = vs->cmd_vqs[i];
        virtio_scsi_queue_init(&s->queues[i]);
    }
    virtio_scsi_event_init(s);

    scsi_bus_init_named(&s->bus, sizeof(s->bus), dev, &virtio_scsi_bus_info,
                        VIRTIO_DEVICE(dev)->bus_name);
    scsi_bus_set_contexts(&s->bus, s->contexts, s->num_contexts);
    /* The HBA itself wants to see LUNs come and go, see above. */
    qbus_set_hotplug_handler(BUS(&s->bus), OBJECT(dev));
    s->vmstate = qdev_add_vm_change_state_handler(dev, virtio_scsi_vm_changed,
                                                  s);
}

static void virtio_scsi_device_unrealize(DeviceState *dev)
{
    VirtIOSCSI *s = VIRTIO_SCSI(dev);

    qbus_set_hotplug_handler(BUS(&s->bus), NULL);
    g_clear_pointer(&s->vmstate, qemu_del_vm_change_state_handler);
    virtio_scsi_ctrl_settle(s);
    virtio_scsi_drop_late(s, NULL);
    virtio_scsi_event_cleanup(s);
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        virtio_scsi_queue_cleanup(&s->queues[i]);
    }
    virtio_scsi_common_unrealize(dev);
    virtio_scsi_setup_cleanup(s);
}

/*
 * Migration: the guest goes on with the queues that it found on the source.
 */

static int virtio_scsi_pre_load_queues(VirtIODevice *vdev, uint32_t n)
{
    unsigned num_queues = VIRTIO_SCSI_COMMON(vdev)->conf.num_queues;

    /* A queue without a handler would never answer the guest. */
    return n > VIRTIO_SCSI_VQ_NUM_FIXED + num_queues ? -EINVAL : 0;
}

/*
 * Configuration space comes as the driver has seen it last, all zero if it has
 * never looked; then the sizes are the default ones still.
 */
static void virtio_scsi_load_sizes(VirtIODevice *vdev)
{
    VirtIOSCSICommon *vs = VIRTIO_SCSI_COMMON(vdev);
    const VirtIOSCSIConfig *c = (const VirtIOSCSIConfig *)vdev->config;
    uint32_t cdb_size = virtio_ldl_p(vdev, &c->cdb_size);
    uint32_t sense_size = virtio_ldl_p(vdev, &c->sense_size);

    if (virtio_ldl_p(vdev, &c->num_queues) || cdb_size || sense_size) {
        qatomic_set(&vs->cdb_size, MIN(cdb_size, VIRTIO_SCSI_MAX_CDB_SIZE));
        qatomic_set(&vs->sense_size,
                    MIN(sense_size, VIRTIO_SCSI_MAX_SENSE_SIZE));
    }
}

static int virtio_scsi_load(QEMUFile *f, void *opaque, size_t size,
                            const VMStateField *field)
{
    int ret = virtio_vmstate_info.get(f, opaque, size, field);

    /* The bus says which of its bytes differ, if anything. */
    if (ret) {
        error_report("virtio-scsi: can't take over the source's state: "
                     "num_queues is %" PRIu32 " here; num_queues and vectors "
                     "must be as on the source",
                     VIRTIO_SCSI_COMMON(opaque)->conf.num_queues);
        return ret;
    }
    virtio_scsi_load_sizes(opaque);
    VIRTIO_SCSI(opaque)->arrived = true;
    return 0;
}

static int virtio_scsi_save(QEMUFile *f, void *opaque, size_t size,
                            const VMStateField *field, JSONWriter *vmdesc)
{
    return virtio_vmstate_info.put(f, opaque, size, field, vmdesc);
}

static const VMStateInfo virtio_scsi_state = {
    .name = "virtio",
    .get  = virtio_scsi_load,
    .put  = virtio_scsi_save,
};

static const VMStateDescription vmstate_virtio_scsi = {
    .name               = "virtio-scsi",
    .version_id         = 1,
    .minimum_version_id = 1,
    .fields             = (const VMStateField[]) {
        {
            .name  = "virtio",
            .info  = &virtio_scsi_state,
            .flags = VMS_SINGLE,
        },
        VMSTATE_END_OF_LIST()
    },
};

/*
 * iothread-vq-mapping is set as everywhere before the device is realized.
 * Later it changes the mapping of a device that may be at work.
 */

static void virtio_scsi_set_prop_mapping(Object *obj, Visitor *v,
                                         const char *name, void *opaque,
                                         Error **errp)
{
    VirtIOSCSI *s = VIRTIO_SCSI(obj);
    IOThreadVirtQueueMappingList **present =
        &s->parent_obj.conf.iothread_vq_mapping_list;
    IOThreadVirtQueueMappingList *old = *present;
    IOThreadVirtQueueMappingList *list;

    if (!qdev_is_realized(DEVICE(s))) {
        qdev_prop_iothread_vq_mapping_list.set(obj, v, name, opaque, errp);
        return;
    }
    /* It knows what a value looks like; it writes where @present points to. */
    *present = NULL;
    qdev_prop_iothread_vq_mapping_list.set(obj, v, name, opaque, errp);
    list = *present;
    *present = old;
    if (list && !virtio_scsi_set_mapping(s, list, errp)) {
        qapi_free_IOThreadVirtQueueMappingList(list);
    }
}

/* iothread-vq-balance may be changed at any time. */
static void virtio_scsi_set_prop_balance(Object *obj, Visitor *v,
                                         const char *name, void *opaque,
                                         Error **errp)
{
    VirtIOSCSI *s = VIRTIO_SCSI(obj);
    bool on;

    if (!visit_type_bool(v, name, &on, errp)) {
        return;
    }
    if (qdev_is_realized(DEVICE(s))) {
        virtio_scsi_set_balance(s, on, errp);
    } else {
        s->balance = on; /* checked by virtio_scsi_setup() */
    }
}

/* Filled in by virtio_scsi_class_init() */
static PropertyInfo virtio_scsi_prop_mapping;
static PropertyInfo virtio_scsi_prop_balance;

#define CONF(field) parent_obj.conf.field

static const Property virtio_scsi_properties[] = {
    DEFINE_PROP_LINK("iothread", VirtIOSCSI, CONF(iothread), TYPE_IOTHREAD,
                     IOThread *),
    DEFINE_PROP("iothread-vq-mapping", VirtIOSCSI,
                CONF(iothread_vq_mapping_list), virtio_scsi_prop_mapping,
                IOThreadVirtQueueMappingList *),
    DEFINE_PROP("iothread-vq-balance", VirtIOSCSI, balance,
                virtio_scsi_prop_balance, bool),
    DEFINE_PROP_UINT32("num_queues", VirtIOSCSI, CONF(num_queues),
                       VIRTIO_SCSI_AUTO_NUM_QUEUES),
    DEFINE_PROP_UINT32("virtqueue_size", VirtIOSCSI, CONF(virtqueue_size),
                       256),
    DEFINE_PROP_BOOL("seg_max_adjust", VirtIOSCSI, CONF(seg_max_adjust), true),
    DEFINE_PROP_UINT32("max_sectors", VirtIOSCSI, CONF(max_sectors), 0xffff),
    DEFINE_PROP_UINT32("cmd_per_lun", VirtIOSCSI, CONF(cmd_per_lun), 128),
    DEFINE_PROP_BIT("hotplug", VirtIOSCSI, host_features,
                    VIRTIO_SCSI_F_HOTPLUG, true),
    DEFINE_PROP_BIT("param_change", VirtIOSCSI, host_features,
                    VIRTIO_SCSI_F_CHANGE, true),
};

static void virtio_scsi_class_init(ObjectClass *klass, void *data)
{
    HotplugHandlerClass *hhc = HOTPLUG_HANDLER_CLASS(klass);
    VirtioDeviceClass *vdc = VIRTIO_DEVICE_CLASS(klass);
    DeviceClass *dc = DEVICE_CLASS(klass);

    hhc->pre_plug = virtio_scsi_lun_pre_plug;
    hhc->plug = virtio_scsi_lun_plug;
    hhc->unplug = virtio_scsi_lun_unplug;

    vdc->realize = virtio_scsi_device_realize;
    vdc->unrealize = virtio_scsi_device_unrealize;
    vdc->reset = virtio_scsi_reset;
    vdc->queue_reset = virtio_scsi_queue_reset;
    vdc->get_features = virtio_scsi_get_features;
    vdc->set_config = virtio_scsi_set_config;
    vdc->pre_load_queues = virtio_scsi_pre_load_queues;
    vdc->needs_main_loop = virtio_scsi_needs_main_loop;
    vdc->start_ioeventfd = virtio_scsi_dataplane_start;
    vdc->stop_ioeventfd = virtio_scsi_dataplane_stop;

    dc->vmsd = &vmstate_virtio_scsi;
    virtio_scsi_prop_mapping = qdev_prop_iothread_vq_mapping_list;
    virtio_scsi_prop_mapping.set = virtio_scsi_set_prop_mapping;
    virtio_scsi_prop_mapping.realized_set_allowed = true;
    virtio_scsi_prop_balance = qdev_prop_bool;
    virtio_scsi_prop_balance.set = virtio_scsi_set_prop_balance;
    virtio_scsi_prop_balance.realized_set_allowed = true;
    device_class_set_props(dc, virtio_scsi_properties);
}

static const TypeInfo virtio_scsi_types[] = {
    {
        .name           = TYPE_VIRTIO_SCSI,
        .parent         = TYPE_VIRTIO_SCSI_COMMON,
        .interfaces     = (InterfaceInfo[]) { { TYPE_HOTPLUG_HANDLER }, { } },
        .instance_size  = sizeof(VirtIOSCSI),
        .class_init     = virtio_scsi_class_init,
    },
};

DEFINE_TYPES(virtio_scsi_types)
