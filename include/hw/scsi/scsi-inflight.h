/*
 * SCSI requests in flight, by AioContext
 *
 * A LUN has one lane for each AioContext that may submit requests to it.  A
 * lane belongs to its AioContext, so nothing in it needs a lock; whoever wants
 * something of the requests in another lane goes there, by a bottom half.  As
 * no call into a LUN runs the event loop, a bottom half never finds a request
 * that somebody is in the middle of.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SCSI_SCSI_INFLIGHT_H
#define HW_SCSI_SCSI_INFLIGHT_H

#include "block/aio.h"
#include "qemu/queue.h"

typedef struct SCSIBus SCSIBus;
typedef struct SCSIDevice SCSIDevice;
typedef struct SCSIRequest SCSIRequest;
typedef QTAILQ_HEAD(SCSIRequestList, SCSIRequest) SCSIRequestList;

/** SCSILane: what one AioContext knows of one LUN */
typedef struct SCSILane {
    AioContext *ctx;            /* constant */

    /* Written in ctx, or by the main loop while nobody works; see there */
    unsigned live;              /* requests that exist, enqueued or not */
    unsigned parked;            /* of these, wait for the VM to be resumed */

    /* Only in ctx */
    SCSIRequestList requests;   /* from scsi_req_enqueue() until they end */
    void *pin;                  /* keeps the LUN for these */
} QEMU_ALIGNED(64) SCSILane;

/** SCSIInflight: the lanes of a LUN */
typedef struct SCSIInflight {
    /* Changed while the LUN is idle, see scsi_bus_set_contexts() */
    unsigned num;
    AioContext *const *contexts;    /* what lanes[i].ctx is, in fewer lines */
    SCSILane *lanes;
    uint16_t *slots;            /* hash table of indices; num: free slot */
    unsigned slots_log2;        /* there are so many, at least 4 * num */

    unsigned aborts;            /* under way; main loop only */
    unsigned restarts;          /* lanes yet to be restarted; atomic */
} SCSIInflight;

/**
 * SCSIAbort: what to do with the commands of a LUN, see scsi_device_abort()
 *
 * @dev: the LUN; the caller has a reference
 * @match: tells whether a command is meant; called in the command's
 *         AioContext.  NULL: all of them are
 * @cancel: end these commands; false: only find them
 * @reset: because the LUN is reset, which HBAs may tell the initiator
 * @done: called in the main loop at the end, maybe before scsi_device_abort()
 *        returns; @found is valid then
 * @opaque: for @match and @done
 * @found: a command was meant that hadn't ended
 */
typedef struct SCSIAbort SCSIAbort;
struct SCSIAbort {
    SCSIDevice *dev;
    bool (*match)(const SCSIRequest *req, void *opaque);
    bool cancel;
    bool reset;
    void (*done)(SCSIAbort *abort);
    void *opaque;

    bool found;

    /* Main loop only */
    unsigned unmarked;          /* lanes that haven't been visited */
    unsigned left;              /* answers to come, two of each lane */
};

/**
 * scsi_inflight_init:
 * @f: lanes of a LUN
 * @contexts: the AioContexts that may submit requests; must outlive @f
 * @num: how many, less than 65536
 *
 * Context: BQL held.
 */
void scsi_inflight_init(SCSIInflight *f, AioContext *const *contexts,
                        unsigned num);

/** scsi_inflight_destroy: all lanes must be empty. Context: BQL held. */
void scsi_inflight_destroy(SCSIInflight *f);

/*
 * Where to look for @ctx first, and then.  Most slots are free, so in the mean
 * it is found at once, however many AioContexts there are.
 */
static inline unsigned scsi_inflight_slot(const SCSIInflight *f,
                                          const AioContext *ctx)
{
    /* Fibonacci hashing; the lowest bits are the same for all */
    return (uint32_t)((uintptr_t)ctx >> 4) * 0x9e3779b1u >>
           (32 - f->slots_log2);
}

static inline unsigned scsi_inflight_next_slot(const SCSIInflight *f,
                                               unsigned slot)
{
    return (slot + 1) & ((1u << f->slots_log2) - 1);
}

/**
 * scsi_inflight_set_contexts:
 * @f: lanes of a LUN that is idle, see scsi_inflight_is_idle(); all of its
 *     requests are in the first lane.  It may never have been realized.
 * @contexts: the AioContexts that may submit requests; must outlive @f.  The
 *            first one is the same as before.
 * @num: how many
 *
 * Context: main loop, BQL held.
 */
void scsi_inflight_set_contexts(SCSIInflight *f, AioContext *const *contexts,
                                unsigned num);

/**
 * scsi_inflight_lane_of:
 * @f: lanes of a LUN
 * @ctx: an AioContext that was given to scsi_inflight_init()
 *
 * Context: any thread; what is in the lane is the business of @ctx only.
 */
static inline SCSILane *scsi_inflight_lane_of(const SCSIInflight *f,
                                              const AioContext *ctx)
{
    unsigned slot = scsi_inflight_slot(f, ctx);

    while (likely(f->slots[slot] < f->num)) {
        unsigned i = f->slots[slot];

        if (likely(f->contexts[i] == ctx)) {
            return &f->lanes[i];
        }
        slot = scsi_inflight_next_slot(f, slot);
    }
    /* The HBA must announce it by scsi_bus_set_contexts(). */
    g_assert_not_reached();
}

/** scsi_inflight_lane_here: the caller's lane. Context: one of @f's. */
static inline SCSILane *scsi_inflight_lane_here(const SCSIInflight *f)
{
    return scsi_inflight_lane_of(f, qemu_get_current_aio_context());
}

/**
 * scsi_lane_count:
 * @counter: live or parked of a lane
 * @change: what to add
 *
 * No atomic addition: nobody else writes.  Whoever reads the new value sees all
 * that was done before.  Context: the lane's.
 */
static inline void scsi_lane_count(unsigned *counter, int change)
{
    qatomic_store_release(counter, *counter + change);
}

/**
 * scsi_inflight_is_idle:
 * @f: lanes of a LUN that gets no new requests
 *
 * Context: main loop, BQL held.
 * Returns: true if all requests have ended or wait for the VM to be resumed,
 * none is about to be restarted, and nobody is visiting the lanes.
 */
bool scsi_inflight_is_idle(const SCSIInflight *f);

/**
 * scsi_bus_begin_idle:
 * @bus: a bus whose HBA submits no new requests
 * @luns: scsi_bus_list() of it
 * @give_up: the wait ends when this is set in the main loop, or NULL.  If it
 *           isn't, jobs and other users of the LUNs' nodes come to rest, too,
 *           so that a drain of these would find nothing to wait for.
 *
 * Wait until all requests have ended or wait for the VM to be resumed, and no
 * handler or callback of any is under way.  Requests that somebody's drain
 * holds back are made to wait for the VM, too.  Runs the main loop's event loop
 * meanwhile.  scsi_bus_end_idle() must follow in any case.
 *
 * Context: main loop, BQL held.
 * Returns: NULL, or one of @luns that was not idle when the wait was given up.
 */
SCSIDevice *scsi_bus_begin_idle(SCSIBus *bus, const GPtrArray *luns,
                                const bool *give_up);

/** scsi_bus_end_idle: drains may hold requests again. Context: BQL held. */
void scsi_bus_end_idle(SCSIBus *bus, const GPtrArray *luns);

/**
 * scsi_inflight_restart:
 * @f: lanes of a LUN
 * @late: some may be about to wait, because they have just got -ECANCELED
 *
 * Go on with the requests that wait for the VM to be resumed, each in its own
 * AioContext, from a bottom half.  Whoever takes the lanes away, or gives
 * requests to other lanes, waits for scsi_inflight_is_idle() before.
 *
 * Context: main loop, BQL held.
 */
void scsi_inflight_restart(SCSIInflight *f, bool late);

/**
 * scsi_device_abort:
 * @abort: filled in by the caller; stays until its done() is called
 *
 * Visit every lane of the LUN, by a bottom half in its AioContext, and deal
 * there with the commands that are meant.  done() is called when all that are
 * to be cancelled have ended, and their initiator has been told (SAM-5, 7.2 to
 * 7.7: the response to a task management function comes after those of the
 * commands that it ended).  Handlers that were running in any of the
 * AioContexts have ended by then.
 *
 * I/O that is under way isn't stopped.  But if all commands of the LUN are
 * cancelled, those that a drain holds back, be it whose it may, end at once,
 * and throttled ones are let go.  So done() never waits for anybody but the
 * I/O of these commands.
 *
 * Context: main loop, BQL held.
 */
void scsi_device_abort(SCSIAbort *abort);

/**
 * scsi_device_pin:
 * @d: an unpublished LUN all of whose requests have been cancelled
 *
 * An HBA may still hold references to some of these.  Let them keep @d, its bus
 * and the HBA.  Context: main loop, BQL held.
 */
void scsi_device_pin(SCSIDevice *d);

/**
 * scsi_lane_add: a request exists. Context: the lane's.
 * scsi_lane_remove: it doesn't any more. Context: the lane's.
 */
static inline void scsi_lane_add(SCSILane *lane)
{
    scsi_lane_count(&lane->live, 1);
}

void scsi_lane_unpin(SCSILane *lane);

static inline void scsi_lane_remove(SCSILane *lane)
{
    scsi_lane_count(&lane->live, -1);
    if (unlikely(lane->pin) && !lane->live) {
        scsi_lane_unpin(lane);
    }
}

#endif /* HW_SCSI_SCSI_INFLIGHT_H */
