/*
 * virtio SCSI host bus adapter: the request queues and their AioContexts, from
 * the properties
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "block/aio-wait.h"
#include "hw/virtio/iothread-vq-mapping.h"
#include "hw/virtio/virtio-bus.h"
#include "virtio-scsi-internal.h"

#define PROP "iothread-vq-mapping"

/* Can IOThreads serve the device, as @prop asks for? */
static bool setup_check_transport(VirtIOSCSI *s, const char *prop,
                                  Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    VirtioBusClass *k =
        VIRTIO_BUS_GET_CLASS(qdev_get_parent_bus(DEVICE(vdev)));

    if (!k->ioeventfd_assign || !k->set_guest_notifiers) {
        error_setg(errp, "%s is set, but the transport %s has no ioeventfd; "
                   "use another, such as virtio-scsi-pci, or leave %s out",
                   prop,
                   object_get_typename(OBJECT(qdev_get_parent_bus(DEVICE(s)))),
                   prop);
        return false;
    }
    if (!virtio_device_ioeventfd_enabled(vdev)) {
        error_setg(errp, "%s is set, but ioeventfd is off; set ioeventfd=on, "
                   "or leave %s out", prop, prop);
        return false;
    }
    return true;
}

static bool setup_check_balance(VirtIOSCSI *s, Error **errp)
{
    if (!s->parent_obj.conf.iothread_vq_mapping_list) {
        error_setg(errp, "iothread-vq-balance is on, but there is no "
                   "iothread-vq-mapping; set one, with the IOThreads that "
                   "queues may be moved to, or iothread-vq-balance=off");
        return false;
    }
    return true;
}

static bool setup_check(VirtIOSCSI *s, Error **errp)
{
    const VirtIOSCSIConf *conf = &s->parent_obj.conf;
    const char *prop = conf->iothread ? "iothread" : PROP;
    g_autofree char *id = NULL;

    if (s->balance && !setup_check_balance(s, errp)) {
        return false;
    }

    if (conf->iothread && conf->iothread_vq_mapping_list) {
        id = iothread_get_id(conf->iothread);
        error_setg(errp, "iothread-vq-mapping and iothread=%s are both set; "
                   "set only one of them, a mapping may have a single IOThread",
                   id);
        return false;
    }
    if (!conf->iothread && !conf->iothread_vq_mapping_list) {
        return true;
    }
    return setup_check_transport(s, prop, errp);
}

/*
 * List each AioContext once, in the order of the first queue it serves; then
 * those of @list that have no queue yet.
 */
static void setup_contexts(VirtIOSCSI *s, AioContext **by_queue,
                           const IOThreadVirtQueueMappingList *list)
{
    unsigned n = s->parent_obj.conf.num_queues;
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);

    s->contexts = g_new(AioContext *, n + QAPI_LIST_LENGTH(list));
    for (unsigned i = 0; i < n; i++) {
        if (g_hash_table_add(seen, by_queue[i])) {
            s->contexts[s->num_contexts++] = by_queue[i];
        }
    }
    for (; list; list = list->next) {
        AioContext *ctx =
            iothread_get_aio_context(iothread_by_id(list->value->iothread));

        if (g_hash_table_add(seen, ctx)) {
            s->contexts[s->num_contexts++] = ctx;
        }
    }
}

static void setup_queue_context(VirtIOSCSIQueue *q, AioContext *ctx)
{
    q->ctx = ctx;
    q->since_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    /*
     * No reentrancy guard: there is one for the whole device, and it is
     * not made for several threads.
     */
    q->more_bh = aio_bh_new_full(ctx, virtio_scsi_queue_more, q,
                                 "virtio-scsi queue", NULL);
}

static void setup_queues(VirtIOSCSI *s, AioContext **by_queue)
{
    unsigned n = s->parent_obj.conf.num_queues;

    s->queues = qemu_memalign(__alignof__(*s->queues), n * sizeof(*s->queues));
    for (unsigned i = 0; i < n; i++) {
        VirtIOSCSIQueue *q = &s->queues[i];

        *q = (VirtIOSCSIQueue) {
            .dev = s,
            .index = i,
        };
        setup_queue_context(q, by_queue ? by_queue[i]
                                        : qemu_get_aio_context());
    }
}

bool virtio_scsi_setup(VirtIOSCSI *s, Error **errp)
{
    const VirtIOSCSIConf *conf = &s->parent_obj.conf;
    g_autofree AioContext **by_queue = NULL;

    if (!setup_check(s, errp)) {
        return false;
    }

    if (conf->iothread_vq_mapping_list) {
        by_queue = g_new(AioContext *, conf->num_queues);
        if (!iothread_vq_mapping_apply(conf->iothread_vq_mapping_list,
                                       by_queue, conf->num_queues, errp)) {
            return false;
        }
    } else if (conf->iothread) {
        by_queue = g_new(AioContext *, conf->num_queues);
        for (unsigned i = 0; i < conf->num_queues; i++) {
            by_queue[i] = iothread_get_aio_context(conf->iothread);
        }
        iothread_attach_user(conf->iothread);
    }

    if (by_queue) {
        setup_contexts(s, by_queue, conf->iothread_vq_mapping_list);
    }
    setup_queues(s, by_queue);
    QSIMPLEQ_INIT(&s->late);
    s->main_bh = qemu_bh_new_guarded(virtio_scsi_main_bh, s,
                                     &DEVICE(s)->mem_reentrancy_guard);
    virtio_scsi_move_init(s);
    virtio_scsi_watch_init(s);
    qatomic_set(&s->accepts_kicks, true);
    return true;
}

static void setup_delete_queues(VirtIOSCSI *s)
{
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        g_clear_pointer(&s->queues[i].more_bh, qemu_bh_delete);
    }
    /* One of them may be running, but not any more when a visit is over. */
    aio_wait_bh_oneshot_all(s->contexts, s->num_contexts, NULL, NULL);
    g_clear_pointer(&s->queues, qemu_vfree);
}

static void setup_release_iothreads(const VirtIOSCSIConf *conf)
{
    if (conf->iothread_vq_mapping_list) {
        iothread_vq_mapping_cleanup(conf->iothread_vq_mapping_list);
    } else if (conf->iothread) {
        iothread_detach_user(conf->iothread);
    }
}

void virtio_scsi_setup_cleanup(VirtIOSCSI *s)
{
    assert(!s->in_contexts);
    virtio_scsi_watch_cleanup(s);
    virtio_scsi_move_cleanup(s);
    g_clear_pointer(&s->main_bh, qemu_bh_delete);
    setup_delete_queues(s);

    setup_release_iothreads(&s->parent_obj.conf);
    g_clear_pointer(&s->contexts, g_free);
    s->num_contexts = 0;
}

/*
 * Another mapping, see docs/devel/virtio-scsi-threads.rst
 */

void virtio_scsi_setup_queue(VirtIOSCSIQueue *q, AioContext *ctx)
{
    qemu_bh_delete(q->more_bh);
    setup_queue_context(q, ctx);
    q->moves++;
}

void virtio_scsi_setup_move(VirtIOSCSI *s, AioContext **by_queue,
                            const IOThreadVirtQueueMappingList *list)
{
    g_autoptr(GPtrArray) luns = scsi_bus_list(&s->bus);

    GLOBAL_STATE_CODE();

    for (unsigned i = 0; i < luns->len; i++) {
        virtio_scsi_rehome_lun(g_ptr_array_index(luns, i), false);
    }

    g_clear_pointer(&s->contexts, g_free);
    s->num_contexts = 0;
    setup_contexts(s, by_queue, list);
    scsi_bus_set_contexts(&s->bus, s->contexts, s->num_contexts);
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        VirtIOSCSIQueue *q = &s->queues[i];

        if (q->ctx != by_queue[i]) {
            virtio_scsi_setup_queue(q, by_queue[i]);
        }
    }

    for (unsigned i = 0; i < luns->len; i++) {
        virtio_scsi_rehome_lun(g_ptr_array_index(luns, i), s->in_contexts);
    }
}

bool virtio_scsi_set_mapping(VirtIOSCSI *s, IOThreadVirtQueueMappingList *list,
                             Error **errp)
{
    VirtIOSCSIConf *conf = &s->parent_obj.conf;
    DeviceState *proxy = qdev_get_parent_bus(DEVICE(s))->parent;
    g_autofree AioContext **by_queue = g_new(AioContext *, conf->num_queues);

    GLOBAL_STATE_CODE();

    if (proxy->pending_deleted_event) {
        error_setg(errp, PROP ": the device is being unplugged; wait for "
                   "DEVICE_DELETED, or for DEVICE_UNPLUG_GUEST_ERROR");
        return false;
    }
    if (!setup_check_transport(s, PROP, errp) ||
        !iothread_vq_mapping_apply(list, by_queue, conf->num_queues, errp)) {
        return false;
    }
    if (!virtio_scsi_dataplane_move(s, by_queue, list, errp)) {
        iothread_vq_mapping_cleanup(list);
        return false;
    }

    /* Nobody runs anything of ours in the old ones any more. */
    setup_release_iothreads(conf);
    qapi_free_IOThreadVirtQueueMappingList(conf->iothread_vq_mapping_list);
    conf->iothread_vq_mapping_list = list;
    object_unref(OBJECT(g_steal_pointer(&conf->iothread)));
    return true;
}

bool virtio_scsi_set_balance(VirtIOSCSI *s, bool on, Error **errp)
{
    GLOBAL_STATE_CODE();

    if (on && !setup_check_balance(s, errp)) {
        return false;
    }
    s->balance = on;
    if (!on) {
        virtio_scsi_move_cancel(s);
    }
    virtio_scsi_watch_update(s);
    return true;
}

IOThread *virtio_scsi_mapped_iothread(VirtIOSCSI *s, AioContext *ctx)
{
    const VirtIOSCSIConf *conf = &s->parent_obj.conf;
    const IOThreadVirtQueueMappingList *node;

    if (conf->iothread) {
        return iothread_get_aio_context(conf->iothread) == ctx ? conf->iothread
                                                               : NULL;
    }
    for (node = conf->iothread_vq_mapping_list; node; node = node->next) {
        /* It exists as long as it is mapped. */
        IOThread *iothread = iothread_by_id(node->value->iothread);

        if (iothread_get_aio_context(iothread) == ctx) {
            return iothread;
        }
    }
    return NULL;
}
