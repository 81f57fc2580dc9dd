/*
 * Unit test of hw/scsi/scsi-inflight.c: lanes and visits, with real IOThreads
 * and no VM
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
 * Visits
 */

static void count_visit(SCSILane *lane, void *opaque)
{
    unsigned *visits = opaque;

    g_assert_true(lane->ctx == qemu_get_current_aio_context());
    qatomic_inc(visits);
}

static void test_visit_wait(void)
{
    unsigned visits = 0;
    SCSIInflight f;

    set_up(&f);
    for (unsigned i = 1; i <= ROUNDS; i++) {
        scsi_inflight_visit_wait(&f, count_visit, &visits);
        g_assert_cmpuint(visits, ==, i * NUM_LANES);
    }
    tear_down(&f);
}

static void test_visit_one(void)
{
    unsigned visits = 0;
    SCSIInflight f;

    set_up(&f);
    for (unsigned i = 0; i < NUM_LANES; i++) {
        scsi_lane_visit(&f.lanes[i], count_visit, &visits);
    }
    /* It is a bottom half even at home, or a caller might find itself in it */
    while (qatomic_read(&visits) < NUM_LANES) {
        aio_poll(qemu_get_aio_context(), false);
    }
    scsi_inflight_visit_wait(&f, count_visit, &visits);
    g_assert_cmpuint(visits, ==, 2 * NUM_LANES);
    tear_down(&f);
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

static void test_visit_waits_for_handlers(void)
{
    unsigned visits = 0;
    SCSIInflight f;

    set_up(&f);
    for (unsigned i = 0; i < ROUNDS / 10; i++) {
        Handler h = { .ended = false };

        aio_bh_schedule_oneshot(contexts[1], run_handler, &h);
        while (!qatomic_read(&h.running)) {
            g_thread_yield();
        }
        /* While the main loop waits, somebody else ends the handler. */
        aio_bh_schedule_oneshot(contexts[2], let_go, &h);
        scsi_inflight_visit_wait(&f, count_visit, &visits);
        g_assert_true(h.ended);
    }
    tear_down(&f);
}

/*
 * A handler that is inside a LUN runs the event loop.  Visits must not find it
 * half done.
 */
typedef struct Nested {
    SCSILane *lane;
    bool running;       /* atomic */
    bool under_way;     /* atomic; the visit */
    unsigned visits;
    bool ended;
} Nested;

static void run_event_loop(void *opaque)
{
    Nested *n = opaque;

    n->lane->busy++;
    qatomic_set(&n->running, true);
    while (!qatomic_read(&n->under_way)) {
        aio_poll(n->lane->ctx, false);
    }
    for (unsigned i = 0; i < 100; i++) {
        aio_poll(n->lane->ctx, false);
        g_assert_cmpuint(n->visits, ==, 0);
    }
    n->lane->busy--;
    n->ended = true;
}

static void visit_nested(SCSILane *lane, void *opaque)
{
    Nested *n = opaque;

    if (lane == n->lane) {
        g_assert_true(n->ended);
        g_assert_cmpuint(n->visits++, ==, 0);
    } else if (lane->ctx == qemu_get_aio_context()) {
        /* Our own lane comes last: the others have been sent for. */
        qatomic_set(&n->under_way, true);
    }
}

static void test_visit_not_nested(void)
{
    SCSIInflight f;

    set_up(&f);
    for (unsigned i = 0; i < ROUNDS / 10; i++) {
        Nested n = { .lane = &f.lanes[1] };

        aio_bh_schedule_oneshot(contexts[1], run_event_loop, &n);
        while (!qatomic_read(&n.running)) {
            g_thread_yield();
        }
        scsi_inflight_visit_wait(&f, visit_nested, &n);
        g_assert_cmpuint(n.visits, ==, 1);
    }
    tear_down(&f);
}

/*
 * Requests come and go in all lanes, while the main loop purges all of them
 * again and again.  No list has a lock.
 */

typedef struct Worker {
    SCSIInflight *f;
    unsigned left;
    unsigned submitted;
    unsigned completed;
} Worker;

typedef struct Purge {
    unsigned purged[NUM_LANES];
} Purge;

static unsigned workers_running; /* atomic */

static void request_end(SCSILane *lane, SCSIRequest *req)
{
    g_assert_true(req->lane == lane && req->enqueued);
    QTAILQ_REMOVE(&lane->requests, req, next);
    lane->live--;
    g_free(req);
}

static void work(void *opaque)
{
    Worker *w = opaque;
    SCSILane *lane = scsi_inflight_lane_here(w->f);

    for (unsigned i = 0; i < 4; i++) {
        SCSIRequest *req = g_new0(SCSIRequest, 1);

        req->lane = lane;
        req->enqueued = true;
        lane->live++;
        QTAILQ_INSERT_TAIL(&lane->requests, req, next);
        w->submitted++;
    }
    while (w->left % 3 == 0 && !QTAILQ_EMPTY(&lane->requests)) {
        request_end(lane, QTAILQ_FIRST(&lane->requests));
        w->completed++;
    }
    if (--w->left) {
        aio_bh_schedule_oneshot(lane->ctx, work, w);
    } else {
        qatomic_dec(&workers_running);
        aio_wait_kick();
    }
}

static void purge_lane(SCSILane *lane, void *opaque)
{
    Purge *purge = opaque;
    SCSIRequest *req, *next;
    unsigned i;

    for (i = 0; contexts[i] != lane->ctx; i++) {
        /* which one is it? */
    }
    QTAILQ_FOREACH_SAFE(req, &lane->requests, next, next) {
        request_end(lane, req);
        purge->purged[i]++;
    }
    g_assert_cmpuint(lane->live, ==, 0);
}

static void test_purge_race(void)
{
    Worker workers[NUM_LANES];
    Purge purge = { 0 };
    SCSIInflight f;

    set_up(&f);
    workers_running = NUM_LANES;
    for (unsigned i = 0; i < NUM_LANES; i++) {
        workers[i] = (Worker) { .f = &f, .left = ROUNDS };
        aio_bh_schedule_oneshot(contexts[i], work, &workers[i]);
    }
    while (qatomic_read(&workers_running)) {
        scsi_inflight_visit_wait(&f, purge_lane, &purge);
    }
    scsi_inflight_visit_wait(&f, purge_lane, &purge);

    for (unsigned i = 0; i < NUM_LANES; i++) {
        g_assert_cmpuint(workers[i].submitted, ==, 4 * ROUNDS);
        g_assert_cmpuint(workers[i].completed + purge.purged[i], ==,
                         workers[i].submitted);
    }
    tear_down(&f);
}

int main(int argc, char **argv)
{
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/scsi-inflight/lanes", test_lanes);
    g_test_add_func("/scsi-inflight/foreign-context", test_foreign_context);
    g_test_add_func("/scsi-inflight/visit-wait", test_visit_wait);
    g_test_add_func("/scsi-inflight/visit-one", test_visit_one);
    g_test_add_func("/scsi-inflight/visit-waits-for-handlers",
                    test_visit_waits_for_handlers);
    g_test_add_func("/scsi-inflight/visit-not-nested", test_visit_not_nested);
    g_test_add_func("/scsi-inflight/purge-race", test_purge_race);
    return g_test_run();
}
