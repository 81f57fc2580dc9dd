/*
 * Unit test of hw/scsi/scsi-inflight.c: lanes, aborts and restarts, with real
 * IOThreads, fake requests and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "hw/scsi/scsi.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "scsi/constants.h"
#include "system/block-backend.h"
#include "system/runstate.h"
#include "hw/scsi/scsi-internal.h"
#include "iothread.h"

#define NUM_THREADS 3
#define NUM_LANES   (NUM_THREADS + 1)
#define ROUNDS      2000

static IOThread *threads[NUM_THREADS];
static AioContext *contexts[NUM_LANES];

static void set_up(SCSIInflight *f)
{
    contexts[0] = qemu_get_aio_context();
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        threads[i] = iothread_new();
        contexts[i + 1] = iothread_get_aio_context(threads[i]);
    }
    scsi_inflight_init(f, contexts, NUM_LANES);
}

static void tear_down(SCSIInflight *f)
{
    scsi_inflight_destroy(f);
    g_assert_cmpuint(f->num, ==, 0);
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        iothread_join(threads[i]);
    }
}

/*
 * Lanes
 */

static void check_lane_here(void *opaque)
{
    SCSIInflight *f = opaque;
    SCSILane *lane = scsi_inflight_lane_here(f);

    g_assert_true(lane->ctx == qemu_get_current_aio_context());
    g_assert_true(lane == scsi_inflight_lane_of(f, lane->ctx));
    g_assert_true(QTAILQ_EMPTY(&lane->requests));
    g_assert_cmpuint((uintptr_t)lane % 64, ==, 0);
}

static void test_lanes(void)
{
    SCSIInflight f;

    set_up(&f);
    check_lane_here(&f);
    for (unsigned i = 0; i < NUM_LANES; i++) {
        g_assert_true(scsi_inflight_lane_of(&f, contexts[i]) == &f.lanes[i]);
        aio_wait_bh_oneshot(contexts[i], check_lane_here, &f);
    }
    tear_down(&f);
}

/*
 * Many lanes, of AioContexts that are never used: far apart, and side by side
 * at the least distance that memory for them can have.
 */
static void test_many_lanes(void)
{
    enum { NUM = 300 };
    g_autofree AioContext **many = g_new(AioContext *, NUM);
    SCSIInflight f;

    for (unsigned i = 0; i < NUM; i++) {
        many[i] = (AioContext *)(i % 2 ? 0x1000 + 16 * (uintptr_t)i
                                       : 0x10000 * (uintptr_t)(i + 1));
    }
    for (unsigned num = 1; num <= NUM; num++) {
        scsi_inflight_init(&f, many, num);
        for (unsigned i = 0; i < num; i++) {
            g_assert_true(scsi_inflight_lane_of(&f, many[i]) == &f.lanes[i]);
        }
        scsi_inflight_destroy(&f);
    }
}

/* An AioContext that nobody has announced is a bug, not a race. */
static void test_foreign_context(void)
{
    SCSIInflight f;

    if (g_test_subprocess()) {
        set_up(&f);
        f.num = 1;
        scsi_inflight_lane_of(&f, contexts[1]);
        exit(0);
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("*should not be reached*");
}

/*
 * Fakes of the neighbours: a request is cancelled at once, or when its "I/O"
 * ends, which is a bottom half of its own AioContext.
 */

typedef struct FakeReq {
    SCSIRequest req;
    unsigned *ended;        /* of its lane */
    bool slow;              /* I/O is under way */
} FakeReq;

static bool running;        /* the VM */

bool runstate_is_running(void)
{
    return running;
}

void scsi_device_set_ua(SCSIDevice *d, SCSISense sense)
{
}

SCSIRequest *scsi_req_ref(SCSIRequest *req)
{
    req->refcount++;
    return req;
}

void scsi_req_unref(SCSIRequest *req)
{
    if (--req->refcount == 0) {
        scsi_lane_remove(req->lane);
        g_free(container_of(req, FakeReq, req));
    }
}

static void fake_end(void *opaque)
{
    FakeReq *fake = opaque;
    SCSIRequest *req = &fake->req;

    g_assert_true(req->ctx == qemu_get_current_aio_context());
    g_assert_true(req->enqueued);
    scsi_req_ref(req);
    req->enqueued = false;
    QTAILQ_REMOVE(&req->lane->requests, req, next);
    scsi_req_unref(req);
    if (req->retry) {
        scsi_lane_count(&req->lane->parked, -1);
    }
    ++*fake->ended;
    notifier_list_notify(&req->cancel_notifiers, req);
    scsi_req_unref(req);
}

void scsi_req_cancel_async(SCSIRequest *req, Notifier *notifier)
{
    FakeReq *fake = container_of(req, FakeReq, req);

    g_assert_true(req->enqueued);
    notifier_list_add(&req->cancel_notifiers, notifier);
    if (req->io_canceled) {
        return;
    }
    req->io_canceled = true;
    if (fake->slow) {
        aio_bh_schedule_oneshot(req->ctx, fake_end, fake);
    } else {
        fake_end(fake);
    }
}

/* Restarted requests end soon, and well. */
void scsi_req_restart(SCSIRequest *req)
{
    if (req->retry) {
        req->retry = false;
        scsi_lane_count(&req->lane->parked, -1);
        aio_bh_schedule_oneshot(req->ctx, fake_end,
                                container_of(req, FakeReq, req));
    }
}

static void fake_submit(SCSILane *lane, uint32_t tag, bool slow, bool parked,
                        unsigned *ended)
{
    FakeReq *fake = g_new0(FakeReq, 1);
    SCSIRequest *req = &fake->req;

    *fake = (FakeReq) {
        .req = {
            .lane = lane, .ctx = lane->ctx, .tag = tag, .refcount = 1,
            .enqueued = true, .retry = parked,
        },
        .slow = slow,
        .ended = ended,
    };
    notifier_list_init(&req->cancel_notifiers);
    scsi_lane_add(lane);
    scsi_lane_count(&lane->parked, parked);
    QTAILQ_INSERT_TAIL(&lane->requests, req, next);
}

/*
 * A LUN
 */

static void lun_set_up(SCSIDevice *d)
{
    memset(d, 0, sizeof(*d));
    set_up(&d->inflight);
    d->conf.blk = blk_new(qemu_get_aio_context(), 0, BLK_PERM_ALL);
}

static void lun_tear_down(SCSIDevice *d)
{
    /* Who has told us of the end may not be at its own end yet. */
    aio_wait_bh_oneshot_all(contexts, NUM_LANES, NULL, NULL);
    g_assert_true(scsi_inflight_is_idle(&d->inflight));
    blk_unref(d->conf.blk);
    tear_down(&d->inflight);
}

typedef struct Submit {
    SCSIDevice *d;
    bool slow;
    bool parked;
    unsigned ended[NUM_LANES];
} Submit;

static unsigned lane_index(const Submit *s)
{
    return scsi_inflight_lane_here(&s->d->inflight) - s->d->inflight.lanes;
}

/* Three commands in each lane; the tags say which lane it is. */
static void submit_three(void *opaque)
{
    Submit *s = opaque;
    unsigned i = lane_index(s);

    for (unsigned n = 0; n < 3; n++) {
        fake_submit(&s->d->inflight.lanes[i], 10 * i + n, s->slow, s->parked,
                    &s->ended[i]);
    }
}

static void submit_all(Submit *s)
{
    memset(s->ended, 0, sizeof(s->ended));
    aio_wait_bh_oneshot_all(contexts, NUM_LANES, submit_three, s);
}

typedef struct Abort {
    SCSIAbort abort;
    Submit *submit;
    uint32_t tag;
    unsigned done;
} Abort;

static void abort_done(SCSIAbort *abort)
{
    Abort *a = container_of(abort, Abort, abort);

    g_assert_true(qemu_get_current_aio_context() == qemu_get_aio_context());
    a->done++;
}

static bool abort_match(const SCSIRequest *req, void *opaque)
{
    g_assert_true(req->ctx == qemu_get_current_aio_context());
    return req->tag == ((Abort *)opaque)->tag;
}

static void run_abort(Abort *a, SCSIDevice *d, bool by_tag, bool cancel)
{
    a->done = 0;
    a->abort = (SCSIAbort) {
        .dev = d, .match = by_tag ? abort_match : NULL, .cancel = cancel,
        .done = abort_done, .opaque = a,
    };
    scsi_device_abort(&a->abort);
    AIO_WAIT_WHILE_UNLOCKED(NULL, !a->done);
    g_assert_cmpuint(a->done, ==, 1);
    g_assert_cmpuint(d->inflight.aborts, ==, 0);
}

/* All that was cancelled has ended when done() is called, and nothing else. */
static void test_abort(void)
{
    SCSIDevice d;
    Submit s = { .d = &d };
    Abort a;

    lun_set_up(&d);
    for (unsigned i = 0; i < ROUNDS / 10; i++) {
        s.slow = i % 2;
        s.parked = i % 3 == 0 && !s.slow;
        submit_all(&s);

        a.tag = 11; /* in lane 1 */
        run_abort(&a, &d, true, false);
        g_assert_true(a.abort.found);
        g_assert_cmpuint(s.ended[1], ==, 0);
        run_abort(&a, &d, true, true);
        g_assert_true(a.abort.found);
        g_assert_cmpuint(s.ended[1], ==, 1);
        run_abort(&a, &d, true, true);
        g_assert_false(a.abort.found);

        run_abort(&a, &d, false, true);
        g_assert_true(a.abort.found);
        for (unsigned n = 0; n < NUM_LANES; n++) {
            g_assert_cmpuint(s.ended[n], ==, 3);
        }
    }
    lun_tear_down(&d);
}

/* Two at once, for commands that the other one has begun to cancel. */
static void test_abort_twice(void)
{
    SCSIDevice d;
    Submit s = { .d = &d, .slow = true };
    Abort a[2];

    lun_set_up(&d);
    for (unsigned i = 0; i < ROUNDS / 10; i++) {
        submit_all(&s);
        for (unsigned n = 0; n < 2; n++) {
            a[n].done = 0;
            a[n].abort = (SCSIAbort) {
                .dev = &d, .cancel = true, .done = abort_done,
            };
            scsi_device_abort(&a[n].abort);
        }
        AIO_WAIT_WHILE_UNLOCKED(NULL, d.inflight.aborts);
        for (unsigned n = 0; n < 2; n++) {
            g_assert_cmpuint(a[n].done, ==, 1);
        }
        for (unsigned n = 0; n < NUM_LANES; n++) {
            g_assert_cmpuint(s.ended[n], ==, 3);
        }
    }
    lun_tear_down(&d);
}

/* Somebody in an IOThread has found a LUN and goes on with it for a while. */
typedef struct Handler {
    bool running;   /* atomic */
    bool go;        /* atomic */
    bool ended;     /* only in the IOThread, and after a visit to it */
} Handler;

static void run_handler(void *opaque)
{
    Handler *h = opaque;

    qatomic_set(&h->running, true);
    while (!qatomic_read(&h->go)) {
        g_thread_yield();
    }
    h->ended = true;
}

static void let_go(void *opaque)
{
    qatomic_set(&((Handler *)opaque)->go, true);
}

static void test_abort_waits_for_handlers(void)
{
    SCSIDevice d;
    Abort a;

    lun_set_up(&d);
    for (unsigned i = 0; i < ROUNDS / 10; i++) {
        Handler h = { .ended = false };

        aio_bh_schedule_oneshot(contexts[1], run_handler, &h);
        while (!qatomic_read(&h.running)) {
            g_thread_yield();
        }
        /* While the main loop waits, somebody else ends the handler. */
        aio_bh_schedule_oneshot(contexts[2], let_go, &h);
        run_abort(&a, &d, false, true);
        g_assert_true(h.ended);
    }
    lun_tear_down(&d);
}

/* A purge waits, but not again for what the HBA has done already. */
static void test_purge(void)
{
    SCSIDevice d;
    Submit s = { .d = &d, .slow = true };

    lun_set_up(&d);
    for (unsigned i = 0; i < ROUNDS / 10; i++) {
        submit_all(&s);
        d.purged = true;
        scsi_device_purge_requests(&d, SENSE_CODE(RESET));
        g_assert_false(scsi_inflight_is_idle(&d.inflight));
        d.purged = false;
        scsi_device_purge_requests(&d, SENSE_CODE(RESET));
        for (unsigned n = 0; n < NUM_LANES; n++) {
            g_assert_cmpuint(s.ended[n], ==, 3);
        }
    }
    lun_tear_down(&d);
}

/* Nobody is idle while requests are about to be restarted. */
static void test_restart(void)
{
    SCSIDevice d;
    Submit s = { .d = &d, .parked = true };

    lun_set_up(&d);
    for (unsigned i = 0; i < ROUNDS / 10; i++) {
        submit_all(&s);
        g_assert_true(scsi_inflight_is_idle(&d.inflight));
        scsi_inflight_restart(&d.inflight, false);
        g_assert_false(scsi_inflight_is_idle(&d.inflight));
        while (!scsi_inflight_is_idle(&d.inflight)) {
            aio_poll(qemu_get_aio_context(), false);
        }
        for (unsigned n = 0; n < NUM_LANES; n++) {
            g_assert_cmpuint(s.ended[n], ==, 3);
        }
    }
    lun_tear_down(&d);
}

/* Whoever is about to park when the end is looked for is restarted, too. */
static void park_later(void *opaque)
{
    Submit *s = opaque;
    unsigned i = lane_index(s);

    fake_submit(&s->d->inflight.lanes[i], i, false, true, &s->ended[i]);
}

static void test_restart_late(void)
{
    SCSIDevice d;
    Submit s = { .d = &d };

    lun_set_up(&d);
    for (unsigned i = 0; i < ROUNDS / 10; i++) {
        memset(s.ended, 0, sizeof(s.ended));
        for (unsigned n = 0; n < NUM_LANES; n++) {
            aio_bh_schedule_oneshot(contexts[n], park_later, &s);
        }
        scsi_inflight_restart(&d.inflight, true);
        AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&d.inflight.restarts));
        aio_wait_bh_oneshot_all(contexts, NUM_LANES, NULL, NULL);
        while (!scsi_inflight_is_idle(&d.inflight)) {
            aio_poll(qemu_get_aio_context(), false);
        }
        for (unsigned n = 0; n < NUM_LANES; n++) {
            g_assert_cmpuint(s.ended[n], ==, 1);
        }
    }
    lun_tear_down(&d);
}

/*
 * Requests come and go in all lanes, while the main loop purges all of them
 * again and again.  No list has a lock.
 */

typedef struct Worker {
    Submit *s;
    unsigned left;
    unsigned submitted;
} Worker;

static unsigned workers_running; /* atomic */

static void work(void *opaque)
{
    Worker *w = opaque;
    unsigned i = lane_index(w->s);
    SCSILane *lane = &w->s->d->inflight.lanes[i];

    for (unsigned n = 0; n < 4; n++) {
        fake_submit(lane, n, w->left % 2, false, &w->s->ended[i]);
        w->submitted++;
    }
    while (w->left % 3 == 0 && !QTAILQ_EMPTY(&lane->requests) &&
           !QTAILQ_FIRST(&lane->requests)->io_canceled) {
        fake_end(container_of(QTAILQ_FIRST(&lane->requests), FakeReq, req));
    }
    if (--w->left) {
        aio_bh_schedule_oneshot(lane->ctx, work, w);
    } else {
        qatomic_dec(&workers_running);
        aio_wait_kick();
    }
}

static void test_purge_race(void)
{
    Worker workers[NUM_LANES];
    SCSIDevice d;
    Submit s = { .d = &d };

    lun_set_up(&d);
    workers_running = NUM_LANES;
    for (unsigned i = 0; i < NUM_LANES; i++) {
        workers[i] = (Worker) { .s = &s, .left = ROUNDS };
        aio_bh_schedule_oneshot(contexts[i], work, &workers[i]);
    }
    while (qatomic_read(&workers_running)) {
        scsi_device_purge_requests(&d, SENSE_CODE(NO_SENSE));
    }
    scsi_device_purge_requests(&d, SENSE_CODE(NO_SENSE));

    for (unsigned i = 0; i < NUM_LANES; i++) {
        g_assert_cmpuint(workers[i].submitted, ==, 4 * ROUNDS);
        g_assert_cmpuint(s.ended[i], ==, workers[i].submitted);
    }
    lun_tear_down(&d);
}

/*
 * Pins
 */

static void add_request(void *opaque)
{
    scsi_lane_add(scsi_inflight_lane_here(opaque));
}

static void remove_request(void *opaque)
{
    scsi_lane_remove(scsi_inflight_lane_here(opaque));
}

/* Wait until nobody but us and @lanes has the LUN, its bus and the HBA. */
static void wait_for_owners(SCSIDevice *d, unsigned lanes)
{
    const DeviceState *hba = d->qdev.parent_bus->parent;

    while (OBJECT(d)->ref != 1 + lanes) {
        aio_poll(qemu_get_aio_context(), true);
    }
    g_assert_cmpuint(OBJECT(d->qdev.parent_bus)->ref, ==, 1 + lanes);
    g_assert_cmpuint(OBJECT(hba)->ref, ==, 1 + lanes);
}

/* A lane keeps them from when it is pinned until its last request is gone. */
static void test_pin(void)
{
    DeviceState hba = { .parent_obj.ref = 1 };
    SCSIBus bus = { .qbus.obj.ref = 1, .qbus.parent = &hba };
    SCSIDevice d = {
        .qdev.parent_obj.ref = 1, .qdev.parent_bus = &bus.qbus,
    };

    set_up(&d.inflight);
    scsi_device_pin(&d);
    wait_for_owners(&d, 0);     /* no request, no pin */

    add_request(&d.inflight);
    for (unsigned i = 0; i < 2; i++) {
        aio_wait_bh_oneshot(contexts[1], add_request, &d.inflight);
    }
    scsi_device_pin(&d);
    wait_for_owners(&d, 2);
    scsi_device_pin(&d);        /* it is already */
    wait_for_owners(&d, 2);

    aio_wait_bh_oneshot(contexts[1], remove_request, &d.inflight);
    wait_for_owners(&d, 2);
    aio_wait_bh_oneshot(contexts[1], remove_request, &d.inflight);
    wait_for_owners(&d, 1);
    remove_request(&d.inflight);
    wait_for_owners(&d, 0);
    tear_down(&d.inflight);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/scsi-inflight/lanes", test_lanes);
    g_test_add_func("/scsi-inflight/many-lanes", test_many_lanes);
    g_test_add_func("/scsi-inflight/foreign-context", test_foreign_context);
    g_test_add_func("/scsi-inflight/abort", test_abort);
    g_test_add_func("/scsi-inflight/abort-twice", test_abort_twice);
    g_test_add_func("/scsi-inflight/abort-waits-for-handlers",
                    test_abort_waits_for_handlers);
    g_test_add_func("/scsi-inflight/purge", test_purge);
    g_test_add_func("/scsi-inflight/restart", test_restart);
    g_test_add_func("/scsi-inflight/restart-late", test_restart_late);
    g_test_add_func("/scsi-inflight/purge-race", test_purge_race);
    g_test_add_func("/scsi-inflight/pin", test_pin);
    return g_test_run();
}
