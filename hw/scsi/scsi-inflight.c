/*
 * SCSI requests in flight, by AioContext
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "block/aio-wait.h"
#include "hw/scsi/scsi.h"
#include "scsi/constants.h"
#include "system/block-backend.h"
#include "system/runstate.h"
#include "scsi-internal.h"

static void inflight_make_slots(SCSIInflight *f)
{
    unsigned num_slots;

    assert(f->num <= UINT16_MAX);
    f->slots_log2 = ctz64(pow2ceil(4 * f->num));
    num_slots = 1u << f->slots_log2;
    f->slots = g_new(uint16_t, num_slots);
    for (unsigned slot = 0; slot < num_slots; slot++) {
        f->slots[slot] = f->num;
    }
    for (unsigned i = 0; i < f->num; i++) {
        unsigned slot = scsi_inflight_slot(f, f->contexts[i]);

        while (f->slots[slot] < f->num) {
            slot = scsi_inflight_next_slot(f, slot);
        }
        f->slots[slot] = i;
    }
}

static SCSILane *lanes_new(AioContext *const *contexts, unsigned num)
{
    SCSILane *lanes = qemu_memalign(__alignof__(SCSILane),
                                    num * sizeof(SCSILane));

    for (unsigned i = 0; i < num; i++) {
        lanes[i] = (SCSILane) { .ctx = contexts[i] };
        QTAILQ_INIT(&lanes[i].requests);
    }
    return lanes;
}

static void assert_lanes_empty(const SCSIInflight *f, unsigned from)
{
    for (unsigned i = from; i < f->num; i++) {
        assert(QTAILQ_EMPTY(&f->lanes[i].requests) && !f->lanes[i].live);
    }
}

void scsi_inflight_init(SCSIInflight *f, AioContext *const *contexts,
                        unsigned num)
{
    *f = (SCSIInflight) {
        .num = num,
        .contexts = contexts,
        .lanes = lanes_new(contexts, num),
    };
    inflight_make_slots(f);
}

void scsi_inflight_set_contexts(SCSIInflight *f, AioContext *const *contexts,
                                unsigned num)
{
    SCSILane *old = f->lanes;
    SCSIRequest *req, *next;
    SCSILane *first;

    GLOBAL_STATE_CODE();

    if (!f->num) {
        return;
    }
    assert(scsi_inflight_is_idle(f) && contexts[0] == old->ctx);
    assert_lanes_empty(f, 1);

    f->num = num;
    f->contexts = contexts;
    f->lanes = lanes_new(contexts, num);
    g_free(f->slots);
    inflight_make_slots(f);

    /* All that are left are parked, and so on the list. */
    first = &f->lanes[0];
    QTAILQ_FOREACH_SAFE(req, &old->requests, next, next) {
        QTAILQ_REMOVE(&old->requests, req, next);
        QTAILQ_INSERT_TAIL(&first->requests, req, next);
        req->lane = first;
    }
    first->live = old->live;
    first->parked = old->parked;
    first->pin = old->pin;
    qemu_vfree(old);
}

void scsi_inflight_destroy(SCSIInflight *f)
{
    assert_lanes_empty(f, 0);
    assert(!f->aborts && !f->restarts);
    qemu_vfree(f->lanes);
    g_free(f->slots);
    *f = (SCSIInflight) { .num = 0 };
}

bool scsi_inflight_is_idle(const SCSIInflight *f)
{
    if (f->aborts || qatomic_load_acquire(&f->restarts)) {
        return false;
    }
    for (unsigned i = 0; i < f->num; i++) {
        const SCSILane *lane = &f->lanes[i];

        /* In this order: who is parked after that is still alive. */
        if (qatomic_load_acquire(&lane->live) !=
            qatomic_load_acquire(&lane->parked)) {
            return false;
        }
    }
    return true;
}

/*
 * What is on the list of @lane now, with a reference to each: a callback may
 * take requests off the list, and not only its own.  Context: the lane's.
 */
static GPtrArray *lane_list(SCSILane *lane)
{
    GPtrArray *reqs =
        g_ptr_array_new_with_free_func((GDestroyNotify)scsi_req_unref);
    SCSIRequest *req;

    QTAILQ_FOREACH(req, &lane->requests, next) {
        g_ptr_array_add(reqs, scsi_req_ref(req));
    }
    return reqs;
}

/*
 * Restart
 */

typedef struct LaneRestart {
    SCSIInflight *f;
    SCSILane *lane;
    bool again;
} LaneRestart;

/* In the lane's AioContext */
static void restart_bh(void *opaque)
{
    LaneRestart *visit = opaque;
    GPtrArray *reqs;

    if (visit->again) {
        /* After whatever has been scheduled, and may park a request */
        visit->again = false;
        aio_bh_schedule_oneshot(visit->lane->ctx, restart_bh, visit);
        return;
    }
    reqs = lane_list(visit->lane);
    for (unsigned i = 0; i < reqs->len; i++) {
        scsi_req_restart(g_ptr_array_index(reqs, i));
    }
    g_ptr_array_unref(reqs);

    /* The lane may be gone from here on. */
    qatomic_fetch_dec(&visit->f->restarts);
    aio_wait_kick();
    g_free(visit);
}

void scsi_inflight_restart(SCSIInflight *f, bool late)
{
    GLOBAL_STATE_CODE();

    for (unsigned i = 0; i < f->num; i++) {
        LaneRestart *visit;

        if (!late && !qatomic_read(&f->lanes[i].parked)) {
            continue;
        }
        visit = g_new(LaneRestart, 1);
        *visit = (LaneRestart) {
            .f = f, .lane = &f->lanes[i], .again = late,
        };
        qatomic_inc(&f->restarts);
        aio_bh_schedule_oneshot(visit->lane->ctx, restart_bh, visit);
    }
}

/*
 * Abort.  The SCSIAbort itself belongs to the main loop; a visit, to the lane's
 * AioContext until it has gone home.
 */

typedef struct LaneAbort {
    SCSIAbort *abort;           /* match, cancel, reset: constant */
    SCSILane *lane;
    unsigned waiting;           /* commands to end, plus one while looking */
    bool found;
} LaneAbort;

/* Tells a visit that a command has ended */
typedef struct EndOfCommand {
    Notifier notifier;
    LaneAbort *visit;
} EndOfCommand;

static bool abort_is_for_all(const SCSIAbort *abort)
{
    return abort->cancel && !abort->match;
}

static void abort_answer(SCSIAbort *abort)
{
    if (--abort->left) {
        return;
    }
    abort->dev->inflight.aborts--;
    if (abort_is_for_all(abort)) {
        blk_cancel_end(abort->dev->conf.blk);
        if (runstate_is_running() && qdev_is_realized(&abort->dev->qdev)) {
            /* Commands that came later, and were held back by that */
            scsi_inflight_restart(&abort->dev->inflight, true);
        }
    }
    abort->done(abort);
}

/* In the main loop: one lane more has been visited. */
static void abort_marked(void *opaque)
{
    SCSIAbort *abort = opaque;

    /*
     * Not before: what is let go by this is to be known as cancelled, so that
     * it isn't taken for a command that was completed, or one to be parked.
     */
    if (--abort->unmarked == 0 && abort_is_for_all(abort)) {
        blk_cancel_begin(abort->dev->conf.blk);
    }
    abort_answer(abort);
}

/* In the main loop: all commands of one lane more have ended. */
static void abort_ended(void *opaque)
{
    g_autofree LaneAbort *visit = opaque;

    visit->abort->found |= visit->found;
    abort_answer(visit->abort);
}

/* In the main loop itself a bottom half might come too late: see @done. */
static void go_home(SCSILane *lane, QEMUBHFunc *fn, void *opaque)
{
    AioContext *home = qemu_get_aio_context();

    if (lane->ctx == home) {
        fn(opaque);
    } else {
        aio_bh_schedule_oneshot(home, fn, opaque);
    }
}

static void visit_leave(LaneAbort *visit)
{
    if (--visit->waiting == 0) {
        go_home(visit->lane, abort_ended, visit);
    }
}

static void visit_command_ended(Notifier *notifier, void *data)
{
    g_autofree EndOfCommand *end =
        container_of(notifier, EndOfCommand, notifier);

    visit_leave(end->visit);
}

static void visit_cancel(LaneAbort *visit, SCSIRequest *req)
{
    EndOfCommand *end = g_new(EndOfCommand, 1);

    end->notifier.notify = visit_command_ended;
    end->visit = visit;
    visit->waiting++;
    req->by_reset |= visit->abort->reset;
    scsi_req_cancel_async(req, &end->notifier);
}

/* In the lane's AioContext */
static void visit_run(void *opaque)
{
    LaneAbort *visit = opaque;
    SCSIAbort *abort = visit->abort;
    GPtrArray *reqs = lane_list(visit->lane);

    for (unsigned i = 0; i < reqs->len; i++) {
        SCSIRequest *req = g_ptr_array_index(reqs, i);

        if (!req->enqueued ||
            (abort->match && !abort->match(req, abort->opaque))) {
            continue;
        }
        visit->found = true;
        if (abort->cancel) {
            visit_cancel(visit, req);
        }
    }
    g_ptr_array_unref(reqs);

    go_home(visit->lane, abort_marked, abort);
    visit_leave(visit);
}

void scsi_device_abort(SCSIAbort *abort)
{
    SCSIInflight *f = &abort->dev->inflight;
    LaneAbort *here = NULL;

    GLOBAL_STATE_CODE();

    f->aborts++;
    abort->found = false;
    abort->unmarked = f->num;
    abort->left = 2 * f->num;
    for (unsigned i = 0; i < f->num; i++) {
        LaneAbort *visit = g_new(LaneAbort, 1);

        *visit = (LaneAbort) {
            .abort = abort, .lane = &f->lanes[i], .waiting = 1,
        };
        if (visit->lane->ctx == qemu_get_aio_context()) {
            here = visit;
        } else {
            aio_bh_schedule_oneshot(visit->lane->ctx, visit_run, visit);
        }
    }
    /* Last: with no other lane, *abort may be gone afterwards. */
    visit_run(here);
}

static void purge_done(SCSIAbort *abort)
{
    *(bool *)abort->opaque = true;
}

/**
 * scsi_device_purge_requests:
 * @d: a LUN
 * @sense: unit attention condition to establish, or NO SENSE
 *
 * Cancel all requests, and wait until they are gone (SAM-5, 6.3.3: logical unit
 * reset).  Runs the main loop's event loop meanwhile, which ends the wait: all
 * that it waits for are the visits to the lanes, and I/O of @d that is under
 * way.
 *
 * Context: main loop, BQL held.
 */
void scsi_device_purge_requests(SCSIDevice *d, SCSISense sense)
{
    bool done = false;
    SCSIAbort abort = {
        .dev = d,
        .cancel = true,
        .reset = sense.key == UNIT_ATTENTION,
        .done = purge_done,
        .opaque = &done,
    };

    if (!d->purged) {
        scsi_device_abort(&abort);
        AIO_WAIT_WHILE_UNLOCKED(NULL, !done);
    }
    scsi_device_set_ua(d, sense);
}

/*
 * What keeps a LUN that has been unplugged
 */

typedef struct SCSIPin {
    SCSIDevice *dev;
    SCSIBus *bus;       /* has the pools, and lies in the HBA's memory */
    DeviceState *hba;
} SCSIPin;

/* In the main loop: devices are finalized nowhere else. */
static void pin_release(void *opaque)
{
    g_autofree SCSIPin *pin = opaque;

    object_unref(OBJECT(pin->dev));
    object_unref(OBJECT(pin->bus));
    object_unref(OBJECT(pin->hba));
}

void scsi_lane_unpin(SCSILane *lane)
{
    aio_bh_schedule_oneshot(qemu_get_aio_context(), pin_release,
                            g_steal_pointer(&lane->pin));
}

/* In the AioContext of a lane */
static void pin_lane(void *opaque)
{
    const SCSIPin *pin = opaque;
    SCSILane *lane = scsi_inflight_lane_here(&pin->dev->inflight);

    if (lane->live && !lane->pin) {
        SCSIPin *own = g_new(SCSIPin, 1);

        *own = *pin;
        object_ref(OBJECT(pin->dev));
        object_ref(OBJECT(pin->bus));
        object_ref(OBJECT(pin->hba));
        lane->pin = own;
    }
}

void scsi_device_pin(SCSIDevice *d)
{
    SCSIBus *bus = scsi_bus_from_device(d);
    SCSIPin pin = { .dev = d, .bus = bus, .hba = bus->qbus.parent };

    aio_wait_bh_oneshot_all(d->inflight.contexts, d->inflight.num, pin_lane,
                            &pin);
}
