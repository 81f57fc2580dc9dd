/*
 * virtio SCSI host bus adapter: what its rooms share
 *
 *   virtio-scsi.c            QOM type, configuration, reset, hotplug
 *   virtio-scsi-setup.c      request queues and their AioContexts
 *   virtio-scsi-dataplane.c  who owns the virtqueues now: start and stop
 *   virtio-scsi-vq.c         request virtqueues
 *   virtio-scsi-move.c       one of them moves to another IOThread
 *   virtio-scsi-watch.c      when that is worth while
 *   virtio-scsi-ctrl.c       control virtqueue
 *   virtio-scsi-event.c      event virtqueue
 *   virtio-scsi-info.c       what QMP tells about the queues
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SCSI_VIRTIO_SCSI_INTERNAL_H
#define HW_SCSI_VIRTIO_SCSI_INTERNAL_H

#include "hw/scsi/scsi-merge.h"
#include "hw/virtio/virtio-scsi.h"
#include "qemu/iov.h"
#include "qemu/queue.h"
#include "qemu/stats64.h"

/* What the driver may ask for in configuration space */
#define VIRTIO_SCSI_MAX_CDB_SIZE    255
#define VIRTIO_SCSI_MAX_SENSE_SIZE  65535

/**
 * VirtIOSCSILate: an answer that is kept back, see virtio_scsi_push_late()
 */
struct VirtIOSCSILate {
    QSIMPLEQ_ENTRY(VirtIOSCSILate) next;
    VirtQueue *vq;
    VirtQueueElement *elem;
    size_t written;
    void (*free)(VirtIOSCSILate *late); /* what it is part of */
};

/**
 * VirtIOSCSIReq: a SCSI command that the guest has put on a request queue
 *
 * Created, advanced, cancelled and completed in the AioContext that owns its
 * queue; the rest of QEMU gets at it only from there.
 */
typedef struct VirtIOSCSIReq {
    VirtQueueElement elem;      /* first: virtqueue_pop() allocates the whole */
    size_t size;                /* of the allocation */
    VirtIOSCSILate late;        /* valid while it is on the list */
    QEMUIOVector iov;           /* what virtio_scsi_cmd_iov() has returned */

    /* From here on cleared for each command */
    VirtIOSCSIQueue *queue;
    SCSIRequest *sreq;          /* holds a reference */

    /* Data-out or data-in: what @data has behind @data_skip bytes */
    struct iovec *data;         /* part of @elem */
    unsigned data_num;
    size_t data_skip;
    size_t data_size;
    size_t data_start;          /* bytes before them in their direction */
    enum SCSIXferMode mode;     /* this direction */
    struct iovec *own_iov;      /* allocated for @iov; may be NULL */
    size_t data_in;             /* bytes that have been written */
    uint32_t sense_size;        /* what the driver has room for */
    bool overrun;               /* the CDB asks for more than @data has */
    VirtIOSCSICmdResp resp;

    VirtIOSCSICmdReq hdr;       /* last: the CDB follows */
} VirtIOSCSIReq;

/**
 * VirtIOSCSIStats: what a queue has done since the device was realized
 *
 * Only the queue's owner writes, see virtio_scsi_count(); virtio-scsi-info.c
 * reads, while the owner goes on.  A command that the owner has taken is in
 * @submitted, and later in one of @good, @failed and @aborted as well.
 */
typedef struct VirtIOSCSIStats {
    Stat64 submitted;
    Stat64 good;
    Stat64 failed;
    Stat64 aborted;
    Stat64 bytes_read;
    Stat64 bytes_written;
    Stat64 kicks;
    Stat64 interrupts;
    Stat64 handler_ns;          /* time in the handler, while it is measured */
} VirtIOSCSIStats;

/* Where a queue is, for its owner; see virtio-scsi-move.c */
typedef enum VirtIOSCSIQueuePlace {
    QUEUE_HERE,
    QUEUE_LEAVING,              /* takes no commands, waits for the last ones */
    QUEUE_LEFT,                 /* belongs to nobody but the main loop */
} VirtIOSCSIQueuePlace;

/* A request virtqueue */
struct VirtIOSCSIQueue {
    /* Constant once the device is realized */
    VirtIOSCSI *dev;
    VirtQueue *vq;
    unsigned index;             /* 0-based over the request queues */

    /* Constant but for virtio_scsi_setup_queue() */
    AioContext *ctx;            /* the owner while in_contexts is set */
    QEMUBH *more_bh;            /* in ctx: call the handler again */

    /* Main loop only */
    uint64_t moves;             /* how often ctx has changed */
    int64_t since_ns;           /* QEMU_CLOCK_REALTIME: the last time */

    bool wants_move;            /* the main loop, or leave_timer; atomic */
    VirtIOSCSIQueuePlace place; /* written by the owner, release */
    QEMUTimer *leave_timer;     /* only the owner, while it is leaving */

    /* Only the owner: ctx or the main loop, see VirtIOSCSI.in_contexts */
    bool running;               /* the handler */
    bool own_kick;              /* we have set the host notifier ourselves */
    bool odd_ring;              /* main loop: (parts of) the rings aren't RAM */
    unsigned filled;            /* used elements that the guest can't see yet */

    /* The same; within one call of the handler, where no LUN goes */
    bool in_batch;
    uint64_t batch_lun_field;   /* LUN field of the last command, as it came */
    SCSIDevice *batch_lun;      /* and what it found; NULL: nothing */

    SCSIPool pool;              /* for VirtIOSCSIReq */
    SCSIMergeBatch neighbours;  /* of the handler that is running */

    /* Written by the owner, read by anybody; a cache line of their own */
    QEMU_ALIGNED(64) VirtIOSCSIStats stats;
} QEMU_ALIGNED(64);

/**
 * virtio_scsi_count:
 * @stat: a counter of @VirtIOSCSIStats
 * @n: what to add
 *
 * No atomic addition: nobody else writes.  Context: the owner of the queue.
 */
static inline void virtio_scsi_count(Stat64 *stat, uint64_t n)
{
    stat64_set(stat, stat64_get(stat) + n);
}

/**
 * virtio_scsi_count_ended:
 * @stats: of a queue
 *
 * Context: any; who isn't the owner sees each counter at another time.
 * Returns: how many commands have been answered.
 */
static inline uint64_t virtio_scsi_count_ended(const VirtIOSCSIStats *stats)
{
    return stat64_get(&stats->good) + stat64_get(&stats->failed) +
           stat64_get(&stats->aborted);
}

/* virtio-scsi.c */

/**
 * virtio_scsi_lun_find:
 * @s: the device
 * @lun: LUN field of a request (virtio 1.2, 5.6.6.1)
 *
 * Context: an AioContext of @s.  The LUN stays until the caller returns to the
 * event loop, or runs it.
 * Returns: the device at that address, or another LUN of the same target if
 * only the LUN doesn't exist, or NULL.
 */
SCSIDevice *virtio_scsi_lun_find(VirtIOSCSI *s, const uint8_t lun[8]);

/**
 * virtio_scsi_choose_home:
 * @s: a device with IOThreads
 *
 * Context: BQL held.
 * Returns: the AioContext where background work of one more LUN should run.
 */
AioContext *virtio_scsi_choose_home(VirtIOSCSI *s);

/**
 * virtio_scsi_lun_number:
 * @lun: LUN field of a request, single level addressing (SAM-5, 4.7)
 *
 * Returns: the number, 0 to #VIRTIO_SCSI_MAX_LUN.
 */
static inline unsigned virtio_scsi_lun_number(const uint8_t lun[8])
{
    return (lun[2] & 0x3f) << 8 | lun[3];
}

/* virtio-scsi-setup.c */

/**
 * virtio_scsi_setup:
 * @s: a device being realized
 * @errp: where to store an error; nothing stays behind then
 *
 * Decide on the AioContext of each request queue, from the properties iothread
 * and iothread-vq-mapping, and mark the IOThreads as in use.
 *
 * Context: BQL held.
 * Returns: false with @errp set if the properties or the transport don't fit.
 */
bool virtio_scsi_setup(VirtIOSCSI *s, Error **errp);

/** virtio_scsi_setup_cleanup: undo the set-up. Context: BQL held. */
void virtio_scsi_setup_cleanup(VirtIOSCSI *s);

/**
 * virtio_scsi_setup_move:
 * @s: the device; nobody works on any of its requests or virtqueues
 * @by_queue: AioContexts of IOThreads, one for each request queue
 * @list: the mapping; it may have IOThreads without a queue
 *
 * Write down who is to own the request queues, on the bus, too.
 * Context: main loop, BQL held.
 */
void virtio_scsi_setup_move(VirtIOSCSI *s, AioContext **by_queue,
                            const IOThreadVirtQueueMappingList *list);

/**
 * virtio_scsi_setup_queue:
 * @q: a request queue that nobody works on
 * @ctx: its AioContext from now on
 *
 * Context: main loop, BQL held.
 */
void virtio_scsi_setup_queue(VirtIOSCSIQueue *q, AioContext *ctx);

/**
 * virtio_scsi_mapped_iothread:
 * @s: the device
 * @ctx: an AioContext
 *
 * Context: BQL held.
 * Returns: the IOThread of @ctx if the device is mapped to it, or NULL.
 */
IOThread *virtio_scsi_mapped_iothread(VirtIOSCSI *s, AioContext *ctx);

/** virtio_scsi_set_balance: property iothread-vq-balance. Context: BQL held. */
bool virtio_scsi_set_balance(VirtIOSCSI *s, bool on, Error **errp);

/**
 * virtio_scsi_set_mapping:
 * @s: a realized device
 * @list: the mapping; on success it belongs to @s
 * @errp: where to store an error; nothing has changed then
 *
 * Replace the present mapping, or what is there instead of one, while the
 * device works.  Runs the event loop, for seconds if I/O is stuck.
 *
 * Context: main loop, BQL held.
 * Returns: false with @errp set if the value doesn't fit, or I/O doesn't end.
 */
bool virtio_scsi_set_mapping(VirtIOSCSI *s, IOThreadVirtQueueMappingList *list,
                             Error **errp);

/* virtio-scsi-dataplane.c */

/**
 * virtio_scsi_dataplane_move:
 * @s: a realized device
 * @by_queue: AioContexts of IOThreads, one for each request queue
 * @list: the mapping; it may have IOThreads without a queue
 * @errp: where to store an error; the owners are the old ones then
 *
 * Hand the request queues over to other AioContexts, or to the main loop those
 * that will have them at the next start.
 *
 * Context: main loop, BQL held.
 * Returns: false with @errp set if a request doesn't end.
 */
bool virtio_scsi_dataplane_move(VirtIOSCSI *s, AioContext **by_queue,
                                const IOThreadVirtQueueMappingList *list,
                                Error **errp);

/**
 * virtio_scsi_queue_attach:
 * @q: a request queue
 *
 * Listen to kicks, and behave as if there had been one.  Context: the owner.
 */
void virtio_scsi_queue_attach(VirtIOSCSIQueue *q);

/**
 * virtio_scsi_dataplane_start:
 * @vdev: a #VirtIOSCSI
 *
 * Set up all notifiers and hand the virtqueues to their AioContexts.  If that
 * fails, the main loop serves them until the next start.
 *
 * Context: main loop, BQL held.
 * Returns: 0 or a negative errno value.
 */
int virtio_scsi_dataplane_start(VirtIODevice *vdev);

/**
 * virtio_scsi_dataplane_stop:
 * @vdev: a #VirtIOSCSI
 *
 * Take the virtqueues back to the main loop.  On return no request is in
 * flight, except those that wait for the VM to be resumed, which belong to
 * the main loop as well now.
 *
 * Context: main loop, BQL held.
 */
void virtio_scsi_dataplane_stop(VirtIODevice *vdev);

/**
 * virtio_scsi_kick_is_ours:
 * @s: the device
 *
 * Every handler of a virtqueue asks this first.  A kick may come before
 * DRIVER_OK, with no host notifier set up yet; if IOThreads are to serve the
 * virtqueues, they are started then, and look at the rings themselves.
 *
 * Context: the owner of the virtqueue, see VirtIOSCSI.in_contexts.
 * Returns: true if the caller is to serve the virtqueue.
 */
bool virtio_scsi_kick_is_ours(VirtIOSCSI *s);

/**
 * virtio_scsi_notify:
 * @s: the device
 * @vq: one of its virtqueues, with new used elements
 *
 * Send the guest an interrupt if it wants one.  Context: the owner of @vq.
 */
void virtio_scsi_notify(VirtIOSCSI *s, VirtQueue *vq);

/**
 * virtio_scsi_needs_main_loop:
 * @vdev: a #VirtIOSCSI
 *
 * The guest uses memory that an IOThread can't get at.  Soon the main loop will
 * own all virtqueues, until the device is reset.
 *
 * Context: any thread.
 */
void virtio_scsi_needs_main_loop(VirtIODevice *vdev);

/** virtio_scsi_main_bh: what is left to do. Context: main loop, BQL held. */
void virtio_scsi_main_bh(void *opaque);

/**
 * virtio_scsi_settle:
 * @s: a device that accepts no kicks, or whose queues the main loop owns
 *
 * Wait until all requests and TMFs have ended or, in the case of requests, wait
 * for the VM to be resumed.  Context: main loop, BQL held.
 */
void virtio_scsi_settle(VirtIOSCSI *s);

/* virtio-scsi-vq.c */

/**
 * virtio_scsi_queue_init:
 * @q: a request queue whose dev and vq are set
 *
 * Context: BQL held.
 */
void virtio_scsi_queue_init(VirtIOSCSIQueue *q);

/** virtio_scsi_queue_cleanup: it is empty. Context: BQL held. */
void virtio_scsi_queue_cleanup(VirtIOSCSIQueue *q);

/** virtio_scsi_handle_cmd: a kick of a request queue. Context: its owner. */
void virtio_scsi_handle_cmd(VirtIODevice *vdev, VirtQueue *vq);

/**
 * virtio_scsi_keep_back:
 * @s: the device
 * @late: filled in but for next
 *
 * Where there is no RAM, the guest may have put registers of ours: to push such
 * an element, or any element into such a ring, may stop or reset the device.
 * So this is done when no handler and no callback is on the stack, and nobody
 * waits for anything of the device any more.
 *
 * Context: main loop, BQL held.
 */
void virtio_scsi_keep_back(VirtIOSCSI *s, VirtIOSCSILate *late);

/**
 * virtio_scsi_push_late:
 * @s: the device
 *
 * Give back what was kept back, in the order of the calls.  May stop or reset
 * the device.  Context: main loop, BQL held, no handler running, and nobody
 * changing owners.
 */
void virtio_scsi_push_late(VirtIOSCSI *s);

/**
 * virtio_scsi_drop_late:
 * @s: the device
 * @vq: the virtqueue that is reset, or NULL: all of them are
 *
 * Forget what was kept back.  Context: main loop, BQL held.
 */
void virtio_scsi_drop_late(VirtIOSCSI *s, VirtQueue *vq);

/** virtio_scsi_queue_more: the rest of a batch. Context: the queue's ctx. */
void virtio_scsi_queue_more(void *opaque);

/**
 * virtio_scsi_queue_abort:
 * @q: a request queue; virtio_scsi_settle() has been called
 *
 * End its requests that wait for the VM to be resumed.
 * Context: main loop, BQL held.
 */
void virtio_scsi_queue_abort(VirtIOSCSIQueue *q);

/**
 * virtio_scsi_rehome_lun:
 * @d: a LUN none of whose requests anybody works on
 * @in_contexts: who owns the queues from now on
 *
 * Let requests that wait for the VM to be resumed go on there.
 *
 * Context: main loop, BQL held.
 */
void virtio_scsi_rehome_lun(SCSIDevice *d, bool in_contexts);

/* Callbacks of the SCSI bus.  Context: the owner of the request's queue. */
void virtio_scsi_cmd_complete(SCSIRequest *sreq, size_t residual);
void virtio_scsi_cmd_failed(SCSIRequest *sreq);
void virtio_scsi_cmd_cancelled(SCSIRequest *sreq);
int virtio_scsi_cmd_parse_cdb(SCSIDevice *dev, SCSICommand *cmd, uint8_t *buf,
                              size_t buf_len, void *hba_private);
QEMUIOVector *virtio_scsi_cmd_iov(SCSIRequest *sreq, size_t len);

/* Migration of requests in flight.  Context: BQL held, VM stopped. */
void virtio_scsi_cmd_save(QEMUFile *f, SCSIRequest *sreq);
void *virtio_scsi_cmd_load(QEMUFile *f, SCSIRequest *sreq);

/* virtio-scsi-move.c */

/** virtio_scsi_move_init: on realize. Context: BQL held. */
void virtio_scsi_move_init(VirtIOSCSI *s);

/** virtio_scsi_move_cleanup: no move is under way. Context: BQL held. */
void virtio_scsi_move_cleanup(VirtIOSCSI *s);

/**
 * virtio_scsi_move_begin:
 * @s: the device
 * @q: one of its request queues
 * @to: one of its AioContexts
 *
 * Let @q move as soon as its commands have ended, if they do so soon.  Doesn't
 * wait; virtio_scsi_watch_moved() is called at the end.
 *
 * Context: main loop, BQL held.
 * Returns: false if that isn't possible now, or makes no sense.
 */
bool virtio_scsi_move_begin(VirtIOSCSI *s, VirtIOSCSIQueue *q, AioContext *to);

/**
 * virtio_scsi_move_cancel:
 * @s: a device that accepts no kicks, or has no balance any more, so that no
 *     other move begins
 *
 * The queue that is about to move, if there is one, is to stay where it is,
 * unless it has left already.  Wait until no queue is on its way; that depends
 * on no I/O.  Context: main loop, BQL held.
 */
void virtio_scsi_move_cancel(VirtIOSCSI *s);

/** virtio_scsi_move_more: more_bh of a queue on its way. Context: its owner. */
void virtio_scsi_move_more(VirtIOSCSIQueue *q);

/* virtio-scsi-watch.c */

/** virtio_scsi_watch_init: on realize. Context: BQL held. */
void virtio_scsi_watch_init(VirtIOSCSI *s);

/** virtio_scsi_watch_cleanup: the device is stopped. Context: BQL held. */
void virtio_scsi_watch_cleanup(VirtIOSCSI *s);

/**
 * virtio_scsi_watch_update:
 * @s: the device
 *
 * Begin to measure time, or end it, after what that depends on has changed:
 * who owns the queues, whether kicks are accepted, and who wants to know.
 * Before contexts change, kicks must not be accepted.
 *
 * Context: main loop, BQL held.
 */
void virtio_scsi_watch_update(VirtIOSCSI *s);

/**
 * virtio_scsi_watch_ask:
 * @s: the device
 *
 * Somebody wants figures: measure time for a while.  Context: BQL held.
 */
void virtio_scsi_watch_ask(VirtIOSCSI *s);

/**
 * virtio_scsi_watch_share:
 * @s: the device
 * @queue: index of a request queue
 * @share: what part of its IOThread's time it took in the last period, 0 to 1
 * @busy: what part of that time its IOThread was busy, 0 to 1
 *
 * Context: BQL held.
 * Returns: false if time isn't measured, or hasn't been for long enough.
 */
bool virtio_scsi_watch_share(VirtIOSCSI *s, unsigned queue, double *share,
                             double *busy);

/**
 * virtio_scsi_watch_moved:
 * @s: the device
 * @q: a queue that virtio_scsi_move_begin() was called for
 * @moved: it has another owner now
 *
 * Context: main loop, BQL held.
 */
void virtio_scsi_watch_moved(VirtIOSCSI *s, VirtIOSCSIQueue *q, bool moved);

/* virtio-scsi-ctrl.c */

/** virtio_scsi_handle_ctrl: a kick of the control queue. Context: main loop. */
void virtio_scsi_handle_ctrl(VirtIODevice *vdev, VirtQueue *vq);

/** virtio_scsi_supported_tmfs: see SCSIBusInfo. Context: any thread. */
uint16_t virtio_scsi_supported_tmfs(SCSIBus *bus);

/**
 * virtio_scsi_ctrl_settle:
 * @s: the device
 *
 * Wait until every task management function has been answered.  The caller
 * has made sure that no request that one waits for is stuck.
 *
 * Context: main loop, BQL held.
 */
void virtio_scsi_ctrl_settle(VirtIOSCSI *s);

/* virtio-scsi-event.c */

/** virtio_scsi_event_init: on realize. Context: BQL held. */
void virtio_scsi_event_init(VirtIOSCSI *s);

/** virtio_scsi_event_cleanup: on unrealize. Context: BQL held. */
void virtio_scsi_event_cleanup(VirtIOSCSI *s);

/** virtio_scsi_event_reset: forget all events. Context: BQL held. */
void virtio_scsi_event_reset(VirtIOSCSI *s);

/**
 * virtio_scsi_event_flush:
 * @s: the device
 *
 * Deliver now what has been posted.  Context: BQL held.
 */
void virtio_scsi_event_flush(VirtIOSCSI *s);

/**
 * virtio_scsi_event_post:
 * @s: the device
 * @event: VIRTIO_SCSI_T_*
 * @reason: depends on @event (virtio 1.2, 5.6.6.3)
 * @dev: the LUN that the event is about
 *
 * Tell the guest, in the order of the calls, from a bottom half in the main
 * loop.  After VIRTIO_SCSI_T_TRANSPORT_RESET the first command to any LUN
 * reports REPORTED LUNS DATA HAS CHANGED, too (SAM-5, 5.14).
 *
 * Context: any thread.
 */
void virtio_scsi_event_post(VirtIOSCSI *s, uint32_t event, uint32_t reason,
                            SCSIDevice *dev);

/** virtio_scsi_handle_event: buffers for events. Context: main loop. */
void virtio_scsi_handle_event(VirtIODevice *vdev, VirtQueue *vq);

#endif /* HW_SCSI_VIRTIO_SCSI_INTERNAL_H */
