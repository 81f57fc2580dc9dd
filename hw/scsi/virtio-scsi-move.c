/*
 * virtio SCSI host bus adapter: one request queue moves to another IOThread
 *
 * The others go on, and nobody waits: the old owner takes no more commands,
 * and lets go of the queue when those that it has taken have ended.  See
 * docs/devel/virtio-scsi-threads.rst.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "trace.h"
#include "virtio-scsi-internal.h"

/*
 * A queue whose commands don't end in this time stays.  Until then it takes no
 * others, so its owner looks at the clock itself: the main loop may be waiting
 * for something else.
 */
#define LEAVE_MS 100

/*
 * The owners
 */

static void queue_set_place(VirtIOSCSIQueue *q, VirtIOSCSIQueuePlace place)
{
    /* The main loop acts on it: all that was done before is done. */
    qatomic_store_release(&q->place, place);
    qemu_bh_schedule(q->dev->move.bh);
}

/*
 * Has the owner ended all commands of the queue that it has begun, and shown
 * all ends to the guest?
 */
static bool queue_is_idle(VirtIOSCSIQueue *q)
{
    const VirtIOSCSIStats *stats = &q->stats;

    return stat64_get(&stats->submitted) == virtio_scsi_count_ended(stats) &&
           !q->filled;
}

/* Context: a BH of the old owner, so no callback of a command is running. */
static void queue_try_leave(VirtIOSCSIQueue *q)
{
    /* The last one to end is shown to the guest by queue_flush(), later. */
    if (queue_is_idle(q)) {
        g_clear_pointer(&q->leave_timer, timer_free);
        queue_set_place(q, QUEUE_LEFT);
    }
}

static void queue_stay(VirtIOSCSIQueue *q)
{
    /* Somebody else may own it once it has left. */
    assert(q->place == QUEUE_LEAVING);
    g_clear_pointer(&q->leave_timer, timer_free);
    virtio_scsi_queue_attach(q); /* and look at the ring */
    queue_set_place(q, QUEUE_HERE);
}

/* Context: a timer of the old owner. */
static void queue_leave_expired(void *opaque)
{
    VirtIOSCSIQueue *q = opaque;

    qatomic_set(&q->wants_move, false);
    queue_stay(q);
}

void virtio_scsi_move_more(VirtIOSCSIQueue *q)
{
    if (q->place == QUEUE_LEAVING) {
        queue_try_leave(q);
    }
}

/* The owner does what the main loop wants of it now; BHs have no order. */
static void queue_visit(void *opaque)
{
    VirtIOSCSIQueue *q = opaque;
    VirtIOSCSIMove *move = &q->dev->move;
    bool leave = qatomic_read(&q->wants_move);

    if (q->place == QUEUE_HERE && leave) {
        virtio_queue_aio_detach_host_notifier(q->vq, q->ctx);
        qemu_bh_cancel(q->more_bh);
        q->place = QUEUE_LEAVING;
        q->leave_timer = aio_timer_new(q->ctx, QEMU_CLOCK_REALTIME, SCALE_MS,
                                       queue_leave_expired, q);
        timer_mod(q->leave_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + LEAVE_MS);
        queue_try_leave(q);
    } else if (q->place == QUEUE_LEAVING && !leave) {
        queue_stay(q);
    }
    /* Pairs with move_bh(): the last access to the queue. */
    qatomic_fetch_dec(&move->visits);
    qemu_bh_schedule(move->bh);
}

static void queue_arrive(void *opaque)
{
    VirtIOSCSIQueue *q = opaque;

    virtio_scsi_queue_attach(q); /* and look at the ring */
    queue_set_place(q, QUEUE_HERE);
}

/*
 * The main loop
 */

static void move_visit(VirtIOSCSI *s)
{
    qatomic_inc(&s->move.visits);
    aio_bh_schedule_oneshot(s->move.q->ctx, queue_visit, s->move.q);
}

static void move_hand_on(VirtIOSCSI *s)
{
    VirtIOSCSIQueue *q = s->move.q;

    /* What the old owner still had, it would end beside the new one. */
    assert(queue_is_idle(q));
    if (trace_event_get_state_backends(TRACE_VIRTIO_SCSI_QUEUE_MOVE)) {
        g_autofree char *from =
            iothread_get_id(virtio_scsi_mapped_iothread(s, q->ctx));
        g_autofree char *to =
            iothread_get_id(virtio_scsi_mapped_iothread(s, s->move.to));

        trace_virtio_scsi_queue_move(s, q->index, from, to);
    }
    virtio_scsi_setup_queue(q, s->move.to);
    s->move.arriving = true;
    aio_bh_schedule_oneshot(q->ctx, queue_arrive, q);
}

static void move_end(VirtIOSCSI *s)
{
    VirtIOSCSIQueue *q = g_steal_pointer(&s->move.q);

    qatomic_set(&q->wants_move, false);
    virtio_scsi_watch_moved(s, q, s->move.arriving);
}

/* Something may have happened at one of the owners. */
static void move_bh(void *opaque)
{
    VirtIOSCSI *s = opaque;
    VirtIOSCSIQueue *q = s->move.q;
    VirtIOSCSIQueuePlace place;

    if (!q || qatomic_load_acquire(&s->move.visits)) {
        return; /* nothing to do, or somebody is there */
    }
    place = qatomic_load_acquire(&q->place);
    if (place == QUEUE_LEFT && !s->move.arriving) {
        move_hand_on(s);
    } else if (place == QUEUE_HERE &&
               (s->move.arriving || !qatomic_read(&q->wants_move))) {
        move_end(s);
    }
}

bool virtio_scsi_move_begin(VirtIOSCSI *s, VirtIOSCSIQueue *q, AioContext *to)
{
    GLOBAL_STATE_CODE();

    if (s->move.q || !s->in_contexts || !s->accepts_kicks || q->ctx == to) {
        return false;
    }
    s->move.q = q;
    s->move.to = to;
    s->move.arriving = false;
    qatomic_set(&q->wants_move, true);
    move_visit(s);
    return true;
}

void virtio_scsi_move_cancel(VirtIOSCSI *s)
{
    GLOBAL_STATE_CODE();

    /* It is to stay where it is, unless it has left already. */
    if (s->move.q && !s->move.arriving &&
        qatomic_xchg(&s->move.q->wants_move, false)) {
        move_visit(s);
    }
    /* Ended by move_bh(): the owners' event loops call it, for no I/O. */
    AIO_WAIT_WHILE_UNLOCKED(NULL, s->move.q);
}

void virtio_scsi_move_init(VirtIOSCSI *s)
{
    s->move.bh = qemu_bh_new(move_bh, s);
}

void virtio_scsi_move_cleanup(VirtIOSCSI *s)
{
    assert(!s->move.q);
    g_clear_pointer(&s->move.bh, qemu_bh_delete);
}
