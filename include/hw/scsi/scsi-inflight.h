/*
 * SCSI requests in flight, by AioContext
 *
 * A LUN has one lane for each AioContext that may submit requests to it.  A
 * lane belongs to its AioContext, so nothing in it needs a lock; whoever wants
 * something of the requests in another lane goes there, by a bottom half.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SCSI_SCSI_INFLIGHT_H
#define HW_SCSI_SCSI_INFLIGHT_H

#include "block/aio.h"
#include "qemu/queue.h"

typedef struct SCSIRequest SCSIRequest;
typedef QTAILQ_HEAD(SCSIRequestList, SCSIRequest) SCSIRequestList;

/** SCSILane: what one AioContext knows of one LUN */
typedef struct SCSILane {
    AioContext *ctx;            /* constant */

    /*
     * Some request waits for the VM to be resumed.  Atomic: set in ctx, taken
     * by the main loop, which then has reason to visit.
     */
    bool waiting;

    /* Only in ctx */
    SCSIRequestList requests;   /* in the order of scsi_req_enqueue() */
    unsigned live;              /* requests that exist, enqueued or not */
    unsigned cancelling;        /* those that I/O is being cancelled for */
    unsigned busy;              /* calls into the LUN that haven't returned */
    void *pin;                  /* keeps the LUN for these, see scsi-req.c */
} QEMU_ALIGNED(64) SCSILane;

/** SCSIInflight: the lanes of a LUN */
typedef struct SCSIInflight {
    /* Constant while the LUN is realized */
    unsigned num;
    AioContext *const *contexts;    /* what lanes[i].ctx is, in fewer lines */
    SCSILane *lanes;
} SCSIInflight;

/**
 * SCSILaneFunc: called in the AioContext of @lane; from scsi_lane_visit() never
 * in the middle of a call into the LUN, even if that runs the event loop
 */
typedef void SCSILaneFunc(SCSILane *lane, void *opaque);

/**
 * scsi_inflight_init:
 * @f: lanes of a LUN
 * @contexts: the AioContexts that may submit requests; must outlive @f
 * @num: how many
 *
 * Context: BQL held.
 */
void scsi_inflight_init(SCSIInflight *f, AioContext *const *contexts,
                        unsigned num);

/** scsi_inflight_destroy: all lanes must be empty. Context: BQL held. */
void scsi_inflight_destroy(SCSIInflight *f);

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
    for (unsigned i = 0; i < f->num; i++) {
        if (f->contexts[i] == ctx) {
            return &f->lanes[i];
        }
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
 * scsi_lane_visit:
 * @lane: must stay until @fn has been called
 * @fn: called once in the lane's AioContext
 * @opaque: for @fn
 *
 * Returns at once; @fn is called from a bottom half, even if the lane belongs
 * to the caller.
 *
 * Context: any thread.
 */
void scsi_lane_visit(SCSILane *lane, SCSILaneFunc *fn, void *opaque);

/**
 * scsi_inflight_visit_wait:
 * @f: lanes of a LUN
 * @fn: called once in every lane's AioContext
 * @opaque: for @fn
 *
 * Returns when all calls have returned, and may run the main loop's event loop
 * meanwhile.  Whatever handlers were running in the other AioContexts at the
 * time of the call have ended then.
 *
 * Context: main loop, BQL held.
 */
void scsi_inflight_visit_wait(SCSIInflight *f, SCSILaneFunc *fn, void *opaque);

#endif /* HW_SCSI_SCSI_INFLIGHT_H */
