/*
 * virtio SCSI host bus adapter: which AioContext serves which virtqueue
 *
 * The control and the event queue always stay in the main loop: resets need
 * the BQL, and the event queue must not keep an IOThread from polling.  Request
 * queues go where iothread or iothread-vq-mapping says.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "block/aio-wait.h"
#include "block/graph-lock.h"
#include "exec/memory.h"
#include "hw/virtio/iothread-vq-mapping.h"
#include "hw/virtio/virtio-bus.h"
#include "virtio-scsi-internal.h"

static void queue_sync(void *opaque);
static void queue_refresh_ram(void *opaque);

/*
 * Set-up
 */

static bool dataplane_check(VirtIOSCSI *s, Error **errp)
{
    const VirtIOSCSIConf *conf = &s->parent_obj.conf;
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    VirtioBusClass *k =
        VIRTIO_BUS_GET_CLASS(qdev_get_parent_bus(DEVICE(vdev)));
    const char *prop = conf->iothread ? "iothread" : "iothread-vq-mapping";
    g_autofree char *id = NULL;

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

/* List each AioContext once, in the order of the first queue it serves. */
static void dataplane_list_contexts(VirtIOSCSI *s, AioContext **by_queue)
{
    unsigned n = s->parent_obj.conf.num_queues;
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);

    s->contexts = g_new(AioContext *, n);
    for (unsigned i = 0; i < n; i++) {
        if (g_hash_table_add(seen, by_queue[i])) {
            s->contexts[s->num_contexts++] = by_queue[i];
        }
    }
}

static void dataplane_create_queues(VirtIOSCSI *s, AioContext **by_queue)
{
    unsigned n = s->parent_obj.conf.num_queues;

    s->queues = qemu_memalign(__alignof__(*s->queues), n * sizeof(*s->queues));
    for (unsigned i = 0; i < n; i++) {
        VirtIOSCSIQueue *q = &s->queues[i];

        *q = (VirtIOSCSIQueue) {
            .dev = s,
            .index = i,
            .ctx = by_queue ? by_queue[i] : qemu_get_aio_context(),
            .leader = s->queues,
        };
        while (q->leader->ctx != q->ctx) {
            q->leader++;
        }
        if (by_queue) {
            /*
             * No reentrancy guard: there is one for the whole device, it is
             * not made for several threads, and this does no DMA.
             */
            q->sync_bh = aio_bh_new_full(q->ctx, queue_sync, q,
                                         "virtio-scsi queue", NULL);
            q->ram_bh = aio_bh_new_full(q->ctx, queue_refresh_ram, q,
                                        "virtio-scsi memory", NULL);
        }
    }
}

bool virtio_scsi_dataplane_setup(VirtIOSCSI *s, Error **errp)
{
    const VirtIOSCSIConf *conf = &s->parent_obj.conf;
    g_autofree AioContext **by_queue = NULL;

    if (!dataplane_check(s, errp)) {
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
        dataplane_list_contexts(s, by_queue);
    }
    dataplane_create_queues(s, by_queue);
    return true;
}

static void dataplane_visit_bh(void *opaque)
{
}

static void dataplane_delete_queues(VirtIOSCSI *s)
{
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        g_clear_pointer(&s->queues[i].sync_bh, qemu_bh_delete);
        g_clear_pointer(&s->queues[i].ram_bh, qemu_bh_delete);
    }
    /* One of them may be running, but not any more when a visit is over. */
    for (unsigned i = 0; i < s->num_contexts; i++) {
        aio_wait_bh_oneshot(s->contexts[i], dataplane_visit_bh, NULL);
    }
    g_clear_pointer(&s->queues, qemu_vfree);
}

void virtio_scsi_dataplane_cleanup(VirtIOSCSI *s)
{
    const VirtIOSCSIConf *conf = &s->parent_obj.conf;

    assert(virtio_scsi_queues_in_main_loop(s));
    dataplane_delete_queues(s);

    if (conf->iothread_vq_mapping_list) {
        iothread_vq_mapping_cleanup(conf->iothread_vq_mapping_list);
    } else if (conf->iothread) {
        iothread_detach_user(conf->iothread);
    }
    g_clear_pointer(&s->contexts, g_free);
    s->num_contexts = 0;
}

/*
 * Kicks and interrupts
 */

bool virtio_scsi_queues_in_main_loop(VirtIOSCSI *s)
{
    return s->mode == VIRTIO_SCSI_STOPPED || s->mode == VIRTIO_SCSI_FALLBACK;
}

bool virtio_scsi_kick_is_ours(VirtIOSCSI *s)
{
    if (virtio_device_disabled((VirtIODevice *)s)) {
        return false; /* see virtio_scsi_notify() */
    }
    switch (qatomic_read(&s->mode)) {
    case VIRTIO_SCSI_FALLBACK:
        return true;
    case VIRTIO_SCSI_STARTED:
        /* Otherwise the ring is looked at when notifiers are attached again */
        return !qatomic_read(&s->drained);
    case VIRTIO_SCSI_STARTING:
    case VIRTIO_SCSI_STOPPING:
        return false;
    case VIRTIO_SCSI_STOPPED:
        if (s->num_contexts) {
            virtio_device_start_ioeventfd(VIRTIO_DEVICE(s));
        }
        return virtio_scsi_queues_in_main_loop(s);
    }
    g_assert_not_reached();
}

/* Have the handler called; the guest had no part in it, so don't count that. */
static void queue_kick(VirtIOSCSIQueue *q)
{
    q->own_kick = true;
    event_notifier_set(virtio_queue_get_host_notifier(q->vq));
}

bool virtio_scsi_put_off(VirtIOSCSIQueue *q)
{
    if (qatomic_read(&q->dev->mode) != VIRTIO_SCSI_STARTED) {
        return false; /* nobody would call us again */
    }
    queue_kick(q);
    return true;
}

void virtio_scsi_notify(VirtIOSCSI *s, VirtQueue *vq)
{
    VirtIODevice *vdev = (VirtIODevice *)s; /* no cast at run time: hot path */

    if (virtio_device_disabled(vdev)) {
        /*
         * Without bus mastering the virtqueue may be out of reach.  To read it
         * would take the BQL, and its owner may be waiting for us.
         */
        return;
    }
    switch (qatomic_read(&s->mode)) {
    case VIRTIO_SCSI_STARTED:
    case VIRTIO_SCSI_STOPPING:
        virtio_notify_irqfd(vdev, vq);
        break;
    default:
        virtio_notify(vdev, vq);
        break;
    }
}

/*
 * Attach and detach host notifiers
 *
 * Both touch the virtqueue, so each is done in the AioContext that owns it.
 * There a bottom half looks what is wanted at that time.  However many times
 * it was scheduled meanwhile, and in whatever order, the last word counts.
 */

bool virtio_scsi_wants_kicks(VirtIOSCSI *s)
{
    return qatomic_read(&s->mode) == VIRTIO_SCSI_STARTED &&
           !qatomic_read(&s->drained);
}

/* Does a drain have to wait for @q?  Context: the queue's AioContext */
static void queue_set_counted(VirtIOSCSIQueue *q, bool counted)
{
    if (q->counted == counted) {
        return;
    }
    q->counted = counted;
    /* Read by virtio_scsi_drained_poll() */
    if (counted) {
        qatomic_inc(&q->dev->num_active);
    } else {
        qatomic_dec(&q->dev->num_active);
        aio_wait_kick();
    }
}

/*
 * A queue that has nothing to do must not keep unplugged memory.  If kicks
 * aren't wanted, the queue may have another owner by now; it is synced later.
 *
 * Context: the queue's AioContext
 */
static void queue_refresh_ram(void *opaque)
{
    VirtIOSCSIQueue *q = opaque;

    if (virtio_scsi_wants_kicks(q->dev)) {
        virtio_ram_refresh(&q->ram);
    }
}

/* Context: the queue's AioContext */
static void queue_sync(void *opaque)
{
    VirtIOSCSIQueue *q = opaque;
    bool wanted = virtio_scsi_wants_kicks(q->dev);

    queue_refresh_ram(q);

    if (q->sync_bh && q->leader->busy) {
        /*
         * In the middle of a handler, because a LUN runs the event loop.  If it
         * waits for the graph lock, whoever has that must not wait for it.  A
         * drain before that must, as the handler looks at the graph again.
         */
        if (!wanted && q->counted && bdrv_graph_readers_wait()) {
            queue_set_counted(q, false);
        }
        qemu_bh_schedule(q->sync_bh);
        return;
    }
    if (wanted && q->attached) {
        /* Not counted if it waited for the graph in a drain that is over */
        queue_set_counted(q, true);
        /* A handler may have turned a kick down in between; look again. */
        queue_kick(q);
    } else if (wanted) {
        q->attached = true;
        queue_set_counted(q, true);
        q->own_kick = true; /* that comes with it */
        virtio_queue_aio_attach_host_notifier(q->vq, q->ctx);
    } else if (q->attached) {
        q->attached = false;
        virtio_queue_aio_detach_host_notifier(q->vq, q->ctx);
        queue_set_counted(q, false);
    }
}

static void dataplane_sync_fixed_queues(VirtIOSCSI *s)
{
    VirtIOSCSICommon *vs = &s->parent_obj;
    AioContext *ctx = qemu_get_aio_context();
    bool wanted = virtio_scsi_wants_kicks(s);

    if (s->main_attached == wanted) {
        return;
    }
    s->main_attached = wanted;
    if (wanted) {
        virtio_queue_aio_attach_host_notifier(vs->ctrl_vq, ctx);
        /* It has buffers waiting most of the time; polling it is no use. */
        virtio_queue_aio_attach_host_notifier_no_poll(vs->event_vq, ctx);
    } else {
        virtio_queue_aio_detach_host_notifier(vs->ctrl_vq, ctx);
        virtio_queue_aio_detach_host_notifier(vs->event_vq, ctx);
    }
}

/* Let all queues follow a change of mode or drained, now or soon. */
static void dataplane_sync(VirtIOSCSI *s)
{
    dataplane_sync_fixed_queues(s);
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        VirtIOSCSIQueue *q = &s->queues[i];

        if (q->sync_bh) {
            qemu_bh_schedule(q->sync_bh);
        } else {
            queue_sync(q);
        }
    }
}

/*
 * The guest's memory has changed.  It may be the virtqueues' own that is gone,
 * so nobody is to look at them.
 */
static void dataplane_ram_changed(VirtIORam *ram)
{
    VirtIOSCSI *s = container_of(ram, VirtIOSCSI, ram);

    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        VirtIOSCSIQueue *q = &s->queues[i];

        if (q->ram_bh) {
            qemu_bh_schedule(q->ram_bh);
        } else {
            queue_refresh_ram(q);
        }
    }
}

/* A visit from dataplane_visit_queue() */
typedef struct QueueVisit {
    VirtIOSCSIQueue *q;
    QEMUBHFunc *fn;
} QueueVisit;

static void queue_visit(void *opaque)
{
    QueueVisit *visit = opaque;
    VirtIOSCSIQueue *q = visit->q;

    q->turned_away = q->leader->busy;
    if (!q->turned_away) {
        visit->fn(q);
    }
}

/*
 * Call @fn in the AioContext of @q and wait for it.  It isn't called in the
 * middle of a handler, so none is running at that time.
 */
static void dataplane_visit_queue(VirtIOSCSIQueue *q, QEMUBHFunc *fn)
{
    QueueVisit visit = { .q = q, .fn = fn };

    do {
        aio_wait_bh_oneshot(q->ctx, queue_visit, &visit);
    } while (q->turned_away);
}

/* The same, but wait for it; no handler is running any more afterwards. */
static void dataplane_sync_wait(VirtIOSCSI *s)
{
    /*
     * All at once first: while we wait for one queue, a block job may begin a
     * drain, and wait for the others.
     */
    dataplane_sync(s);
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        dataplane_visit_queue(&s->queues[i], queue_sync);
    }
}

/* Requests that somebody works on.  Context: the owner of @q */
static void queue_count_active(void *opaque)
{
    VirtIOSCSIQueue *q = opaque;
    VirtIOSCSIReq *req;

    q->active = 0;
    QTAILQ_FOREACH(req, &q->in_flight, next) {
        q->active += !req->sreq->retry;
    }
}

/*
 * Wait until all requests are done, or wait for the VM to be resumed, and no
 * handler or interrupt of any is under way.  No queue takes new ones.
 *
 * A drain alone isn't enough.  It doesn't wait for a request that the block
 * layer holds back until the drain ends; and when it ends, the completion of
 * the last request may still be running.  So look in each queue's AioContext.
 */
static void dataplane_quiesce(VirtIOSCSI *s, bool in_main_loop)
{
    unsigned active;

    do {
        virtio_scsi_drain_luns(s);
        active = 0;
        for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
            VirtIOSCSIQueue *q = &s->queues[i];

            if (in_main_loop) {
                queue_count_active(q);
            } else {
                dataplane_visit_queue(q, queue_count_active);
            }
            active += q->active;
        }
    } while (active);
}

/*
 * The caller may not be able to wait.  So a handler that is running goes on,
 * and whoever can waits until virtio_scsi_drained_poll() says that it has
 * ended; no other one begins, because virtio_scsi_kick_is_ours() says no from
 * now on.
 */
static void dataplane_set_drained(VirtIOSCSI *s, bool drained)
{
    qatomic_set(&s->drained, drained);
    if (s->mode == VIRTIO_SCSI_STARTED) {
        dataplane_sync(s);
    }
}

void virtio_scsi_drained_begin(SCSIBus *bus)
{
    dataplane_set_drained(container_of(bus, VirtIOSCSI, bus), true);
}

void virtio_scsi_drained_end(SCSIBus *bus)
{
    dataplane_set_drained(container_of(bus, VirtIOSCSI, bus), false);
}

bool virtio_scsi_drained_poll(SCSIBus *bus)
{
    VirtIOSCSI *s = container_of(bus, VirtIOSCSI, bus);

    return s->drained && qatomic_load_acquire(&s->num_active) > 0;
}

/*
 * Start and stop
 */

static unsigned dataplane_total_queues(VirtIOSCSI *s)
{
    return VIRTIO_SCSI_VQ_NUM_FIXED + s->parent_obj.conf.num_queues;
}

static int dataplane_set_guest_notifiers(VirtIOSCSI *s, bool assign)
{
    BusState *qbus = qdev_get_parent_bus(DEVICE(s));
    VirtioBusClass *k = VIRTIO_BUS_GET_CLASS(qbus);

    return k->set_guest_notifiers(qbus->parent, dataplane_total_queues(s),
                                  assign);
}

/*
 * Set up the ioeventfds of as many virtqueues as possible.
 *
 * All changes are made in one transaction of the memory map, or each of them
 * would walk all of them.  The file descriptors must stay open until it ends.
 */
static int dataplane_set_host_notifiers(VirtIOSCSI *s, unsigned *done)
{
    VirtioBusState *vbus = VIRTIO_BUS(qdev_get_parent_bus(DEVICE(s)));
    unsigned total = dataplane_total_queues(s);
    int ret = 0;

    /* A host notifier begins its life as if there had been a kick. */
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        s->queues[i].own_kick = true;
    }
    memory_region_transaction_begin();
    for (*done = 0; *done < total; (*done)++) {
        ret = virtio_bus_set_host_notifier(vbus, *done, true);
        if (ret < 0) {
            break;
        }
    }
    memory_region_transaction_commit();
    return ret;
}

/* Remove the ioeventfds of the first @num virtqueues. */
static void dataplane_clear_host_notifiers(VirtIOSCSI *s, unsigned num)
{
    VirtioBusState *vbus = VIRTIO_BUS(qdev_get_parent_bus(DEVICE(s)));

    memory_region_transaction_begin();
    for (unsigned i = 0; i < num; i++) {
        virtio_bus_set_host_notifier(vbus, i, false);
    }
    memory_region_transaction_commit();

    for (unsigned i = 0; i < num; i++) {
        /* Calls the virtqueue's handler if there was a kick meanwhile. */
        virtio_bus_cleanup_host_notifier(vbus, i);
    }
}

static void dataplane_rehome_queues(VirtIOSCSI *s, bool to_main_loop)
{
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        VirtIOSCSIQueue *q = &s->queues[i];

        virtio_scsi_queue_rehome(q, to_main_loop ? qemu_get_aio_context()
                                                 : q->ctx);
    }
}

/*
 * The main loop takes over.  Polling may have left kicks switched off, and a
 * kick may have come while nobody was there.
 */
static void dataplane_serve_all(VirtIOSCSI *s)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    for (unsigned i = 0; i < VIRTIO_SCSI_VQ_NUM_FIXED; i++) {
        virtio_queue_set_notification(virtio_get_queue(vdev, i), 1);
        virtio_queue_notify(vdev, i);
    }
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        VirtIOSCSIQueue *q = &s->queues[i];

        virtio_queue_set_notification(q->vq, 1);
        q->own_kick = true;
        virtio_queue_notify(vdev, VIRTIO_SCSI_VQ_NUM_FIXED + i);
        q->own_kick = false; /* should the virtqueue not be set up */
    }
}

int virtio_scsi_dataplane_start(VirtIODevice *vdev)
{
    VirtIOSCSI *s = VIRTIO_SCSI(vdev);
    unsigned num_notifiers;
    int ret;

    GLOBAL_STATE_CODE();

    if (!virtio_scsi_queues_in_main_loop(s)) {
        return 0;
    }
    qatomic_set(&s->mode, VIRTIO_SCSI_STARTING);

    ret = dataplane_set_guest_notifiers(s, true);
    if (ret < 0) {
        error_report("virtio-scsi: can't set up guest notifiers: %s",
                     strerror(-ret));
        goto fallback;
    }
    ret = dataplane_set_host_notifiers(s, &num_notifiers);
    if (ret < 0) {
        error_report("virtio-scsi: can't set up the host notifier of "
                     "virtqueue %u: %s", num_notifiers, strerror(-ret));
        dataplane_clear_host_notifiers(s, num_notifiers);
        dataplane_set_guest_notifiers(s, false);
        goto fallback;
    }

    /*
     * Whatever the main loop has begun while notifiers were missing, it must
     * finish before another thread may own the virtqueues.
     */
    dataplane_quiesce(s, true);
    virtio_scsi_ctrl_settle(s);
    dataplane_rehome_queues(s, false);
    virtio_ram_start(&s->ram, vdev->dma_as, dataplane_ram_changed);

    qatomic_set(&s->mode, VIRTIO_SCSI_STARTED);
    dataplane_sync(s);
    return 0;

fallback:
    qatomic_set(&s->mode, VIRTIO_SCSI_FALLBACK);
    dataplane_serve_all(s);
    return ret;
}

void virtio_scsi_dataplane_stop(VirtIODevice *vdev)
{
    VirtIOSCSI *s = VIRTIO_SCSI(vdev);

    GLOBAL_STATE_CODE();

    if (s->mode != VIRTIO_SCSI_STARTED) {
        return;
    }
    qatomic_set(&s->mode, VIRTIO_SCSI_STOPPING);

    dataplane_sync_wait(s);
    dataplane_quiesce(s, false);
    virtio_scsi_ctrl_settle(s);
    virtio_scsi_event_flush(s);

    /* No other thread has anything to do with our virtqueues from here on. */
    dataplane_rehome_queues(s, true);
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        virtio_ram_drop(&s->queues[i].ram);
    }
    virtio_ram_stop(&s->ram);
    dataplane_clear_host_notifiers(s, dataplane_total_queues(s));
    dataplane_set_guest_notifiers(s, false);
    qatomic_set(&s->mode, VIRTIO_SCSI_STOPPED);
}
