/*
 * virtio SCSI host bus adapter: which AioContext serves which virtqueue
 *
 * The control and the event queue always stay in the main loop: resets need
 * the BQL, and the event queue must not keep an IOThread from polling.  Request
 * queues go where iothread or iothread-vq-mapping says.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 * In the place of QEMU's file of this name, which is GPL-2.0-or-later.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "block/aio-wait.h"
#include "exec/memory.h"
#include "hw/virtio/virtio-bus.h"
#include "qapi/error.h"
#include "system/block-backend.h"
#include "system/runstate.h"
#include "virtio-scsi-internal.h"

/*
 * Kicks and interrupts
 */

bool virtio_scsi_kick_is_ours(VirtIOSCSI *s)
{
    VirtIODevice *vdev = (VirtIODevice *)s; /* no cast at run time: hot path */

    if (virtio_device_disabled(vdev)) {
        return false; /* see virtio_scsi_notify() */
    }
    if (!qatomic_read(&s->accepts_kicks)) {
        return false; /* whoever changes that back looks at the rings */
    }
    if (qatomic_read(&s->in_contexts) || !s->num_contexts || s->main_only) {
        return true;
    }
    /* As after the handler; no other thread is to do it then. */
    if (vdev->start_on_kick) {
        virtio_set_started(vdev, true);
    }
    virtio_device_start_ioeventfd(vdev);
    return !s->in_contexts;
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
    if (qatomic_read(&s->in_contexts)) {
        virtio_notify_irqfd(vdev, vq);
    } else {
        virtio_notify(vdev, vq);
    }
}

/*
 * The source may have lost a queue's last interrupt: IOThreads of QEMU 10.0 put
 * it off to the end of a batch, and who stops the device doesn't wait for that.
 * The guest would wait for it for ever.  So each queue interrupts once where
 * the guest goes on; a driver that finds nothing new is as it was.
 *
 * Context: the queue's owner.
 */
static void notify_arrived(VirtIOSCSI *s, VirtQueue *vq)
{
    unsigned index = virtio_get_queue_index(vq);

    if (s->arrived && virtio_queue_get_desc_addr(VIRTIO_DEVICE(s), index)) {
        virtio_scsi_notify(s, vq);
    }
}

/*
 * Attach and detach host notifiers
 *
 * Both touch the virtqueue, so each is done in the AioContext that owns it.  A
 * handler never runs the event loop, so none is running then.
 */

void virtio_scsi_queue_attach(VirtIOSCSIQueue *q)
{
    q->own_kick = true; /* that comes with it */
    virtio_queue_aio_attach_host_notifier(q->vq, q->ctx);
}

static void dataplane_attach(void *opaque)
{
    VirtIOSCSI *s = opaque;

    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        VirtIOSCSIQueue *q = &s->queues[i];

        if (q->ctx == qemu_get_current_aio_context()) {
            notify_arrived(s, q->vq);
            virtio_scsi_queue_attach(q);
        }
    }
}

static void dataplane_detach(void *opaque)
{
    VirtIOSCSI *s = opaque;

    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        VirtIOSCSIQueue *q = &s->queues[i];

        if (q->ctx == qemu_get_current_aio_context()) {
            assert(q->place == QUEUE_HERE);
            virtio_queue_aio_detach_host_notifier(q->vq, q->ctx);
            qemu_bh_cancel(q->more_bh);
        }
    }
}

/* Call @fn in each AioContext that has request queues, and wait. */
static void dataplane_in_contexts(VirtIOSCSI *s, QEMUBHFunc *fn)
{
    AioContext *main_ctx = qemu_get_aio_context();

    if (s->num_contexts) {
        aio_wait_bh_oneshot_all(s->contexts, s->num_contexts, fn, s);
    } else {
        aio_wait_bh_oneshot_all(&main_ctx, 1, fn, s);
    }
}

static void dataplane_attach_all(VirtIOSCSI *s)
{
    VirtIOSCSICommon *vs = &s->parent_obj;
    AioContext *ctx = qemu_get_aio_context();

    virtio_queue_aio_attach_host_notifier(vs->ctrl_vq, ctx);
    /* It has buffers waiting most of the time; polling it is no use. */
    virtio_queue_aio_attach_host_notifier_no_poll(vs->event_vq, ctx);
    notify_arrived(s, vs->ctrl_vq);
    notify_arrived(s, vs->event_vq);
    dataplane_in_contexts(s, dataplane_attach);
    s->arrived = false;
}

/* Kicks aren't accepted any more; no queue is on its way afterwards, either. */
static void dataplane_detach_all(VirtIOSCSI *s)
{
    VirtIOSCSICommon *vs = &s->parent_obj;
    AioContext *ctx = qemu_get_aio_context();

    virtio_scsi_move_cancel(s);
    virtio_scsi_watch_update(s);
    virtio_queue_aio_detach_host_notifier(vs->ctrl_vq, ctx);
    virtio_queue_aio_detach_host_notifier(vs->event_vq, ctx);
    dataplane_in_contexts(s, dataplane_detach);
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

static int dataplane_set_notifiers(VirtIOSCSI *s)
{
    unsigned num_notifiers;
    int ret = dataplane_set_guest_notifiers(s, true);

    if (ret < 0) {
        if (virtio_may_log(VIRTIO_DEVICE(s))) {
            error_report("virtio-scsi: can't set up guest notifiers: %s",
                         strerror(-ret));
        }
        return ret;
    }
    ret = dataplane_set_host_notifiers(s, &num_notifiers);
    if (ret < 0) {
        if (virtio_may_log(VIRTIO_DEVICE(s))) {
            error_report("virtio-scsi: can't set up the host notifier of "
                         "virtqueue %u: %s", num_notifiers, strerror(-ret));
        }
        dataplane_clear_host_notifiers(s, num_notifiers);
        dataplane_set_guest_notifiers(s, false);
    }
    return ret;
}

/*
 * All that has been begun ends, or waits for the VM to be resumed; nobody works
 * on any request or virtqueue then.  New kicks aren't ours meanwhile, nor is
 * what a pending main_bh would find.  The caller sees to it that somebody looks
 * at the rings later.  Who ends these waits: the host's I/O, and the event loop
 * of the main loop, which runs meanwhile.
 */
void virtio_scsi_settle(VirtIOSCSI *s)
{
    bool accepted = s->accepts_kicks;

    qatomic_set(&s->accepts_kicks, false);
    /* If the VM is stopped, the LUNs restart them when it goes on. */
    if (scsi_bus_wait_idle(&s->bus) && runstate_is_running()) {
        s->wants_restart = true;
    }
    virtio_scsi_ctrl_settle(s);
    qatomic_set(&s->accepts_kicks, accepted);
}

static void dataplane_rehome(VirtIOSCSI *s, bool in_contexts)
{
    g_autoptr(GPtrArray) luns = scsi_bus_list(&s->bus);

    for (unsigned i = 0; i < luns->len; i++) {
        virtio_scsi_rehome_lun(g_ptr_array_index(luns, i), in_contexts);
    }
    qatomic_set(&s->in_contexts, in_contexts);
}

/* Go on with requests that wait for the VM although it was running. */
static void dataplane_restart(VirtIOSCSI *s)
{
    g_autoptr(GPtrArray) luns = scsi_bus_list(&s->bus);
    bool wanted = s->wants_restart && runstate_is_running();

    s->wants_restart = false;
    for (unsigned i = 0; wanted && i < luns->len; i++) {
        SCSIDevice *d = g_ptr_array_index(luns, i);

        scsi_inflight_restart(&d->inflight, false);
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

static void dataplane_look_at_rings(VirtIOSCSI *s)
{
    qemu_bh_schedule(s->main_bh);
    for (unsigned i = 0; s->in_contexts &&
                         i < s->parent_obj.conf.num_queues; i++) {
        qemu_bh_schedule(s->queues[i].more_bh);
    }
}

int virtio_scsi_dataplane_start(VirtIODevice *vdev)
{
    VirtIOSCSI *s = VIRTIO_SCSI(vdev);
    int ret = 0;

    GLOBAL_STATE_CODE();

    if (s->in_contexts || !s->accepts_kicks) {
        return 0; /* it is, or it is about to be */
    }
    qatomic_set(&s->accepts_kicks, false);

    if (!s->main_only) {
        /*
         * Whatever the main loop has begun while notifiers were missing, it
         * must finish before another thread may own the virtqueues.
         */
        virtio_scsi_settle(s);
        /* Only the main loop can give these back, and there will be more. */
        s->main_only = !QSIMPLEQ_EMPTY(&s->late);
    }
    if (s->num_contexts && !s->main_only &&
        virtio_device_dma_is_translated(vdev)) {
        if (virtio_may_log(vdev)) {
            warn_report("virtio-scsi: an IOMMU translates the addresses of "
                        "the device, so its virtqueues are served by the main "
                        "loop and not by IOThreads");
        }
        s->main_only = true;
    }
    if (!s->main_only) {
        ret = dataplane_set_notifiers(s);
        s->main_only = ret < 0;
    }
    if (s->main_only) {
        qatomic_set(&s->accepts_kicks, true);
        qemu_bh_schedule(s->main_bh);
        dataplane_restart(s);
        dataplane_serve_all(s);
        return ret;
    }

    dataplane_rehome(s, true);

    /*
     * This waits, and nobody may want to stop us meanwhile.  So handlers that
     * are called now do nothing, and are called again.
     */
    dataplane_attach_all(s);
    qatomic_set(&s->accepts_kicks, true);
    dataplane_look_at_rings(s);
    dataplane_restart(s);
    virtio_scsi_watch_update(s);
    return 0;
}

void virtio_scsi_dataplane_stop(VirtIODevice *vdev)
{
    VirtIOSCSI *s = VIRTIO_SCSI(vdev);

    GLOBAL_STATE_CODE();

    if (!s->in_contexts || !s->accepts_kicks) {
        return;
    }
    qatomic_set(&s->accepts_kicks, false);

    dataplane_detach_all(s);
    virtio_scsi_settle(s);

    /* No other thread has anything to do with our virtqueues from here on. */
    dataplane_clear_host_notifiers(s, dataplane_total_queues(s));
    dataplane_rehome(s, false);
    dataplane_set_guest_notifiers(s, false);
    qatomic_set(&s->accepts_kicks, true);

    /* Last, as they may be what resets the device. */
    virtio_scsi_push_late(s);
    virtio_scsi_event_flush(s);
}

/*
 * Hand-over: other AioContexts, and the notifiers stay as they are
 *
 * While the guest waits for us, the BQL is held.  A host that works ends in
 * this time what can be in flight; a guest's watchdogs (10 s) and its timeouts
 * of commands (30 s) take longer.
 */
#define HAND_OVER_SECONDS 5

static void hand_over_expired(void *opaque)
{
    *(bool *)opaque = true;
}

/*
 * Returns true if nobody works on anything of ours.  What waits for the VM
 * although it was running is to be restarted in any case.
 */
static bool hand_over_settle(VirtIOSCSI *s, const GPtrArray *luns,
                             Error **errp)
{
    bool expired = false;
    QEMUTimer *timer = aio_timer_new(qemu_get_aio_context(),
                                     QEMU_CLOCK_REALTIME, SCALE_MS,
                                     hand_over_expired, &expired);
    SCSIDevice *busy;

    timer_mod(timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                     HAND_OVER_SECONDS * 1000);
    busy = scsi_bus_begin_idle(&s->bus, luns, &expired);
    if (!busy) {
        /* These have no request to wait for any more. */
        virtio_scsi_ctrl_settle(s);
    }
    timer_free(timer);

    if (busy) {
        g_autofree char *path = object_get_canonical_path(OBJECT(busy));

        error_setg(errp, "iothread-vq-mapping: I/O of '%s' has not ended "
                   "within %d seconds, so the mapping is as it was; try again "
                   "when the host's storage answers", busy->qdev.id ?: path,
                   HAND_OVER_SECONDS);
        return false;
    }
    if (s->in_contexts && !QSIMPLEQ_EMPTY(&s->late)) {
        error_setg(errp, "iothread-vq-mapping: the guest has just used buffers "
                   "outside of RAM, so the mapping is as it was; try again");
        return false;
    }
    return true;
}

/* A new home for LUNs whose home was in one of @num @old AioContexts */
static void hand_over_homes(VirtIOSCSI *s, const GPtrArray *luns,
                            AioContext *const *old, unsigned num)
{
    for (unsigned i = 0; i < luns->len; i++) {
        BlockBackend *blk = ((SCSIDevice *)luns->pdata[i])->conf.blk;
        AioContext *home = blk ? blk_get_aio_context(blk) : NULL;
        bool was_ours = !num && !s->main_only &&
                        home == qemu_get_aio_context();
        bool is_ours = false;

        for (unsigned n = 0; n < num; n++) {
            was_ours |= home == old[n];
        }
        for (unsigned n = 0; n < s->num_contexts; n++) {
            is_ours |= home == s->contexts[n];
        }
        if (blk && was_ours && !is_ours) {
            /* Other users of the node may insist; see lun_plug() */
            blk_set_aio_context(blk, virtio_scsi_choose_home(s), NULL);
        }
    }
}

/* The owners that are written down now, old or new ones, go on. */
static void hand_over_resume(VirtIOSCSI *s, const GPtrArray *luns)
{
    scsi_bus_end_idle(&s->bus, luns);
    if (s->in_contexts) {
        dataplane_attach_all(s);
    }
    qatomic_set(&s->accepts_kicks, true);
    dataplane_look_at_rings(s);
    for (unsigned i = 0; runstate_is_running() && i < luns->len; i++) {
        SCSIDevice *d = g_ptr_array_index(luns, i);

        /* Late: one that was stuck may be about to park. */
        scsi_inflight_restart(&d->inflight, true);
    }
}

bool virtio_scsi_dataplane_move(VirtIOSCSI *s, AioContext **by_queue,
                                const IOThreadVirtQueueMappingList *list,
                                Error **errp)
{
    g_autoptr(GPtrArray) luns = scsi_bus_list(&s->bus);
    bool done;

    GLOBAL_STATE_CODE();

    if (!s->accepts_kicks) {
        error_setg(errp, "iothread-vq-mapping: the device is starting or "
                   "stopping; try again");
        return false;
    }
    qatomic_set(&s->accepts_kicks, false);
    if (s->in_contexts) {
        dataplane_detach_all(s);
    }

    done = hand_over_settle(s, luns, errp);
    if (done) {
        unsigned old_num = s->num_contexts;
        g_autofree AioContext **old = g_memdup2(s->contexts,
                                                old_num * sizeof(*old));

        virtio_scsi_setup_move(s, by_queue, list);
        hand_over_homes(s, luns, old, old_num);
    }
    hand_over_resume(s, luns);
    virtio_scsi_watch_update(s);

    if (s->in_contexts && virtio_device_dma_is_translated(VIRTIO_DEVICE(s))) {
        virtio_scsi_needs_main_loop(VIRTIO_DEVICE(s));
    }
    return done;
}

/*
 * An IOThread can't get at memory that isn't plain RAM: it would need the BQL,
 * and the main loop may be waiting for it.  So the main loop takes over, until
 * the next reset of the device.
 */

void virtio_scsi_needs_main_loop(VirtIODevice *vdev)
{
    VirtIOSCSI *s = (VirtIOSCSI *)vdev;

    qatomic_set(&s->wants_main_loop, true);
    qemu_bh_schedule(s->main_bh);
}

/* What is left to do in the main loop; see virtio_scsi_needs_main_loop(). */
void virtio_scsi_main_bh(void *opaque)
{
    VirtIOSCSI *s = opaque;
    VirtIODevice *vdev = VIRTIO_DEVICE(s);

    if (!s->accepts_kicks) {
        return; /* owners change; whoever does that schedules us */
    }
    virtio_scsi_push_late(s);
    virtio_scsi_event_flush(s);
    if (!vdev->vm_running) {
        return; /* see virtio_scsi_vm_changed() */
    }
    for (unsigned i = 0; s->arrived && !s->in_contexts &&
                         i < dataplane_total_queues(s); i++) {
        notify_arrived(s, virtio_get_queue(vdev, i));
    }
    s->arrived = false;
    if (qatomic_xchg(&s->wants_main_loop, false) && s->in_contexts &&
        s->accepts_kicks) {
        s->main_only = true;
        virtio_scsi_dataplane_stop(vdev);
        virtio_scsi_dataplane_start(vdev);
        return;
    }
    if (s->wants_start && s->accepts_kicks) {
        s->wants_start = false;
        virtio_device_start_ioeventfd(vdev);
        dataplane_restart(s);
    }
    virtio_scsi_handle_ctrl(vdev, s->parent_obj.ctrl_vq);
    for (unsigned i = 0; !s->in_contexts &&
                         i < s->parent_obj.conf.num_queues; i++) {
        virtio_scsi_handle_cmd(vdev, s->queues[i].vq);
    }
}
