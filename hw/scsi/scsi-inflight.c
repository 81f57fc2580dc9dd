/*
 * SCSI requests in flight, by AioContext
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "block/aio-wait.h"
#include "hw/scsi/scsi-inflight.h"

void scsi_inflight_init(SCSIInflight *f, AioContext *const *contexts,
                        unsigned num)
{
    *f = (SCSIInflight) {
        .num = num,
        .contexts = contexts,
        .lanes = qemu_memalign(__alignof__(SCSILane), num * sizeof(SCSILane)),
    };
    for (unsigned i = 0; i < num; i++) {
        f->lanes[i] = (SCSILane) { .ctx = contexts[i] };
        QTAILQ_INIT(&f->lanes[i].requests);
    }
}

void scsi_inflight_destroy(SCSIInflight *f)
{
    for (unsigned i = 0; i < f->num; i++) {
        assert(QTAILQ_EMPTY(&f->lanes[i].requests) && !f->lanes[i].live);
    }
    qemu_vfree(f->lanes);
    *f = (SCSIInflight) { .num = 0 };
}

/*
 * Visits
 */

typedef struct Visit {
    SCSILane *lane;
    SCSILaneFunc *fn;
    void *opaque;
} Visit;

/* In the lane's AioContext */
static void visit_bh(void *opaque)
{
    Visit *visit = opaque;

    if (visit->lane->busy) {
        /*
         * The block layer may run the event loop while it waits for the graph
         * lock.  Our fn() expects that no handler is half done; come again.
         */
        aio_bh_schedule_oneshot(visit->lane->ctx, visit_bh, visit);
        return;
    }
    visit->fn(visit->lane, visit->opaque);
    g_free(visit);
}

void scsi_lane_visit(SCSILane *lane, SCSILaneFunc *fn, void *opaque)
{
    Visit *visit = g_new(Visit, 1);

    *visit = (Visit) { .lane = lane, .fn = fn, .opaque = opaque };
    aio_bh_schedule_oneshot(lane->ctx, visit_bh, visit);
}

/* On the stack of a caller who waits */
typedef struct Round {
    SCSILaneFunc *fn;
    void *opaque;
    unsigned left;  /* atomic; the release of each visit meets the waiter */
} Round;

static void round_visit(SCSILane *lane, void *opaque)
{
    Round *round = opaque;

    round->fn(lane, round->opaque);
    /* The waiter may return, and *round be gone, from here on. */
    qatomic_dec(&round->left);
    aio_wait_kick();
}

void scsi_inflight_visit_wait(SCSIInflight *f, SCSILaneFunc *fn, void *opaque)
{
    Round round = { .fn = fn, .opaque = opaque, .left = f->num };
    SCSILane *home = scsi_inflight_lane_here(f);

    GLOBAL_STATE_CODE();

    for (unsigned i = 0; i < f->num; i++) {
        if (&f->lanes[i] != home) {
            scsi_lane_visit(&f->lanes[i], round_visit, &round);
        }
    }
    /* With no other lane the event loop needn't run at all. */
    round_visit(home, &round);
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_load_acquire(&round.left) > 0);
}
