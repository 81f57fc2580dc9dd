/*
 * Unit test of what requests of a BlockBackend meet in a drain, with real
 * IOThreads and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "block/blockjob_int.h"
#include "block/throttle-groups.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "iothread-call.h"

#define SECTOR      512
#define SIZE        (1 << 20)

static BlockBackend *new_null_blk(void)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "null-co");
    qdict_put_int(options, "size", SIZE);
    return blk_new_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
}

/*
 * blk_cancel_begin(): what waits for a drain ends
 */

typedef int coroutine_fn RequestFunc(BlockBackend *blk);

typedef struct Request {
    BlockBackend *blk;
    RequestFunc *func;
    int ret;            /* atomic */
} Request;

static int coroutine_fn do_read(BlockBackend *blk)
{
    uint8_t buf[SECTOR];

    return blk_co_pread(blk, 0, sizeof(buf), buf, 0);
}

static int coroutine_fn do_write(BlockBackend *blk)
{
    const uint8_t buf[SECTOR] = { 0 };

    return blk_co_pwrite(blk, 0, sizeof(buf), buf, 0);
}

static int coroutine_fn do_discard(BlockBackend *blk)
{
    return blk_co_pdiscard(blk, 0, SECTOR, 0);
}

static int coroutine_fn do_ioctl(BlockBackend *blk)
{
    return blk_co_ioctl(blk, 0, NULL);
}

static int coroutine_fn do_zone_report(BlockBackend *blk)
{
    BlockZoneDescriptor zone;
    unsigned int nr_zones = 1;

    return blk_co_zone_report(blk, 0, &nr_zones, &zone);
}

static int coroutine_fn do_zone_mgmt(BlockBackend *blk)
{
    return blk_co_zone_mgmt(blk, BLK_ZO_OPEN, 0, SECTOR);
}

static int coroutine_fn do_zone_append(BlockBackend *blk)
{
    uint8_t buf[SECTOR] = { 0 };
    QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, buf, sizeof(buf));
    int64_t offset = 0;

    return blk_co_zone_append(blk, &offset, &qiov, 0);
}

/* As IDE does it, for several requests in one */
static int coroutine_fn do_start(BlockBackend *blk)
{
    int ret = blk_co_start_request(blk);

    if (ret == 0) {
        ret = blk_co_pdiscard(blk, 0, SECTOR, BDRV_REQ_NO_QUEUE);
    }
    blk_end_request(blk);
    return ret;
}

static RequestFunc *const request_funcs[] = {
    do_read, do_write, do_discard, blk_co_flush, do_ioctl, do_zone_report,
    do_zone_mgmt, do_zone_append, do_start,
};

static void coroutine_fn request_entry(void *opaque)
{
    Request *r = opaque;

    set_result(&r->ret, r->func(r->blk));
}

static void request_start(void *opaque)
{
    Request *r = opaque;

    r->ret = PENDING;
    qemu_coroutine_enter(qemu_coroutine_create(request_entry, r));
}

static int run_request(IOThread *iothread, BlockBackend *blk, RequestFunc *func)
{
    Request r = { .blk = blk, .func = func };

    iothread_call(iothread, request_start, &r);
    return wait_result(&r.ret);
}

/*
 * Two drains: one is somebody else's and goes on meanwhile, the other is that
 * of blk_cancel_begin(), and begins before or after the request.
 */
static void check_cancel(IOThread *iothread, RequestFunc *func)
{
    BlockBackend *blk = new_null_blk();
    Request queued = { .blk = blk, .func = func };
    int normal = run_request(iothread, blk, func);

    g_assert_cmpint(normal, !=, -ECANCELED);

    bdrv_drained_begin(blk_bs(blk));
    iothread_call(iothread, request_start, &queued);
    g_assert_cmpint(queued.ret, ==, PENDING);
    blk_cancel_begin(blk);
    g_assert_cmpint(wait_result(&queued.ret), ==, -ECANCELED);
    g_assert_cmpint(run_request(iothread, blk, func), ==, -ECANCELED);

    /* A section in the section */
    blk_cancel_begin(blk);
    g_assert_cmpint(run_request(iothread, blk, func), ==, -ECANCELED);
    blk_cancel_end(blk);
    g_assert_cmpint(run_request(iothread, blk, func), ==, -ECANCELED);

    /* Back to normal: it waits for the other drain. */
    blk_cancel_end(blk);
    iothread_call(iothread, request_start, &queued);
    g_assert_cmpint(queued.ret, ==, PENDING);
    bdrv_drained_end(blk_bs(blk));
    g_assert_cmpint(wait_result(&queued.ret), ==, normal);

    /* Without another drain */
    blk_cancel_begin(blk);
    g_assert_cmpint(run_request(iothread, blk, func), ==, -ECANCELED);
    blk_cancel_end(blk);
    g_assert_cmpint(run_request(iothread, blk, func), ==, normal);

    /* Would not return if one was counted wrong */
    blk_drain(blk);
    blk_unref(blk);
}

static void test_cancel(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(request_funcs); i++) {
        check_cancel(NULL, request_funcs[i]);
    }
}

static void test_cancel_iothread(void)
{
    IOThread *iothread = iothread_new();

    for (unsigned i = 0; i < ARRAY_SIZE(request_funcs); i++) {
        check_cancel(iothread, request_funcs[i]);
    }
    iothread_join(iothread);
}

typedef struct Hold {
    bool held;          /* atomic */
    bool release;       /* atomic */
} Hold;

static void hold_bh(void *opaque)
{
    Hold *hold = opaque;

    qatomic_set(&hold->held, true);
    while (!qatomic_read(&hold->release)) {
        g_usleep(10);
    }
}

/* The request's thread is busy, and the section over when it wakes up. */
static void test_cancel_late(void)
{
    IOThread *iothread = iothread_new();
    BlockBackend *blk = new_null_blk();
    Request queued = { .blk = blk, .func = do_read };
    Hold hold = { .held = false };

    bdrv_drained_begin(blk_bs(blk));
    iothread_call(iothread, request_start, &queued);
    aio_bh_schedule_oneshot(iothread_get_aio_context(iothread), hold_bh, &hold);
    while (!qatomic_read(&hold.held)) {
        g_usleep(10);
    }
    blk_cancel_begin(blk);
    blk_cancel_end(blk);
    qatomic_set(&hold.release, true);
    g_assert_cmpint(wait_result(&queued.ret), ==, -ECANCELED);
    bdrv_drained_end(blk_bs(blk));
    g_assert_cmpint(run_request(iothread, blk, do_read), ==, 0);

    blk_drain(blk);
    blk_unref(blk);
    iothread_join(iothread);
}

/* The medium goes and comes in the section, or there is none. */
static void test_cancel_medium(void)
{
    BlockBackend *blk = new_null_blk();
    BlockDriverState *bs = blk_bs(blk);

    blk_cancel_begin(blk);
    blk_remove_bs(blk);
    blk_cancel_begin(blk);
    g_assert_cmpint(run_request(NULL, blk, do_read), ==, -ENOMEDIUM);
    g_assert_cmpint(blk_insert_bs(blk, bs, &error_abort), ==, 0);
    g_assert_cmpint(run_request(NULL, blk, do_read), ==, -ECANCELED);
    blk_cancel_end(blk);
    g_assert_cmpint(run_request(NULL, blk, do_read), ==, -ECANCELED);
    blk_cancel_end(blk);
    g_assert_cmpint(run_request(NULL, blk, do_read), ==, 0);

    /* It isn't there any more at the end. */
    blk_cancel_begin(blk);
    blk_remove_bs(blk);
    blk_cancel_end(blk);
    g_assert_cmpint(run_request(NULL, blk, do_read), ==, -ENOMEDIUM);
    blk_drain(blk);
    blk_unref(blk);
}

#define THROTTLED 4

/* Throttled for minutes, but for a drain; and then they do their work. */
static void check_throttled(BlockBackend *blk)
{
    Request r[THROTTLED];

    for (unsigned i = 0; i < THROTTLED; i++) {
        r[i] = (Request) { .blk = blk, .func = do_read };
        iothread_call(NULL, request_start, &r[i]);
    }
    g_assert_cmpint(r[THROTTLED - 1].ret, ==, PENDING);
    blk_cancel_begin(blk);
    for (unsigned i = 0; i < THROTTLED; i++) {
        g_assert_cmpint(wait_result(&r[i].ret), ==, 0);
    }
    g_assert_cmpint(run_request(NULL, blk, do_read), ==, -ECANCELED);
    blk_cancel_end(blk);
}

static void test_cancel_throttled(void)
{
    BlockBackend *blk = new_null_blk();
    BlockBackend *filtered;
    QDict *options = qdict_new();
    ThrottleConfig cfg;

    throttle_config_init(&cfg);
    cfg.buckets[THROTTLE_OPS_TOTAL].avg = 1;
    cfg.op_size = 1;    /* a sector is 512 operations */
    blk_io_limits_enable(blk, "slow");
    blk_set_io_limits(blk, &cfg);
    check_throttled(blk);

    /* A filter in the same group */
    qdict_put_str(options, "driver", "throttle");
    qdict_put_str(options, "throttle-group", "slow");
    qdict_put_str(options, "file.driver", "null-co");
    filtered = blk_new_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
    check_throttled(filtered);

    blk_unref(filtered);
    blk_io_limits_disable(blk);
    blk_unref(blk);
}

#define LEAVES      5000

typedef struct Reader {
    BlockBackend *blk;
    bool stop;          /* atomic */
    unsigned running;   /* atomic */
} Reader;

static void coroutine_fn reader_entry(void *opaque)
{
    Reader *r = opaque;

    while (!qatomic_read(&r->stop)) {
        g_assert_cmpint(do_read(r->blk), ==, 0);
    }
    qatomic_dec(&r->running);
    aio_wait_kick();
}

#define MEMBERS 2

/*
 * Members of one group, each with readers in an IOThread of its own that reach
 * the group's limit at once.
 */
static void members_begin(IOThread **iothread, Reader *r)
{
    ThrottleConfig cfg;

    throttle_config_init(&cfg);
    cfg.buckets[THROTTLE_OPS_TOTAL].avg = 3000;
    for (unsigned i = 0; i < MEMBERS; i++) {
        AioContext *ctx;

        iothread[i] = iothread_new();
        ctx = iothread_get_aio_context(iothread[i]);
        r[i] = (Reader) { .blk = new_null_blk(), .running = THROTTLED };
        g_assert_cmpint(blk_set_aio_context(r[i].blk, ctx, &error_abort), ==,
                        0);
        blk_io_limits_enable(r[i].blk, "fast");
        blk_set_io_limits(r[i].blk, &cfg);
    }
    for (unsigned i = 0; i < MEMBERS; i++) {
        for (unsigned j = 0; j < THROTTLED; j++) {
            aio_co_enter(iothread_get_aio_context(iothread[i]),
                         qemu_coroutine_create(reader_entry, &r[i]));
        }
    }
}

static void members_end(IOThread **iothread, Reader *r)
{
    for (unsigned i = 0; i < MEMBERS; i++) {
        qatomic_set(&r[i].stop, true);
    }
    for (unsigned i = 0; i < MEMBERS; i++) {
        /* What passed in drains counts, too: a timer may be set for minutes */
        blk_io_limits_disable(r[i].blk);
        AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&r[i].running));
        blk_set_aio_context(r[i].blk, qemu_get_aio_context(), &error_abort);
        blk_unref(r[i].blk);
        iothread_join(iothread[i]);
    }
}

/* One member is drained, and leaves, while the other has always work to do. */
static void test_throttle_leave(void)
{
    IOThread *iothread[MEMBERS];
    Reader r[MEMBERS];

    members_begin(iothread, r);
    for (unsigned i = 0; i < LEAVES; i++) {
        blk_drain(r[i % MEMBERS].blk);
        blk_io_limits_disable(r[i % MEMBERS].blk);
        blk_io_limits_enable(r[i % MEMBERS].blk, "fast");
    }
    members_end(iothread, r);
}

/*
 * A mirror job in an IOThread: others' drains wait for it, cancelling doesn't
 */

typedef struct Mirror {
    IOThread *iothread;
    BlockBackend *blk;      /* of the source, as a device has it */
    BlockDriverState *src;
    Job *job;
} Mirror;

/* The target's flush: the second one, of the job's end, is held up. */
static struct {
    unsigned calls;         /* atomic */
    bool active;            /* atomic */
    Coroutine *co;
} flush;

static int coroutine_fn target_flush(BlockDriverState *bs)
{
    if (qatomic_fetch_inc(&flush.calls) == 1) {
        flush.co = qemu_coroutine_self();
        qatomic_store_release(&flush.active, true);
        aio_wait_kick();
        qemu_coroutine_yield();
        qatomic_set(&flush.active, false);
    }
    return 0;
}

static BlockDriver bdrv_target = {
    .format_name    = "target",
    .bdrv_co_flush  = target_flush,
};

static void release_flush(void *opaque)
{
    aio_co_wake(flush.co);
}

static void mirror_begin(Mirror *m)
{
    BlockDriverState *target = bdrv_new_open_driver(&bdrv_target, "target",
                                                    BDRV_O_RDWR, &error_abort);
    AioContext *ctx;

    m->iothread = iothread_new();
    ctx = iothread_get_aio_context(m->iothread);
    m->blk = new_null_blk();
    m->src = blk_bs(m->blk);
    bdrv_ref(m->src);
    target->total_sectors = SIZE / BDRV_SECTOR_SIZE;
    bdrv_try_change_aio_context(target, ctx, NULL, &error_abort);
    g_assert_cmpint(blk_set_aio_context(m->blk, ctx, &error_abort), ==, 0);
    flush.calls = 0;
    mirror_start("job", m->src, target, NULL, JOB_DEFAULT, 0, 0, 0,
                 MIRROR_SYNC_MODE_NONE, MIRROR_LEAVE_BACKING_CHAIN, false,
                 BLOCKDEV_ON_ERROR_REPORT, BLOCKDEV_ON_ERROR_REPORT, false,
                 NULL, MIRROR_COPY_MODE_BACKGROUND, &error_abort);
    bdrv_unref(target);
    WITH_JOB_LOCK_GUARD() {
        m->job = job_get_locked("job");
        g_assert_true(m->job->aio_context == ctx);
    }
    AIO_WAIT_WHILE_UNLOCKED(NULL, !job_is_ready(m->job));
}

/* Returns when the job's source is drained, and the flush held up. */
static void mirror_complete_begin(Mirror *m)
{
    WITH_JOB_LOCK_GUARD() {
        job_complete_locked(m->job, &error_abort);
    }
    AIO_WAIT_WHILE_UNLOCKED(NULL, !qatomic_load_acquire(&flush.active));
}

static Job *find_job(void)
{
    JOB_LOCK_GUARD();
    return job_get_locked("job");
}

static void mirror_end(Mirror *m)
{
    AIO_WAIT_WHILE_UNLOCKED(NULL, find_job());
    bdrv_unref(m->src);
    blk_unref(m->blk);
    iothread_join(m->iothread);
}

/* Nothing is left of the job's requests when somebody else's drain is on. */
static void test_mirror_flush(void)
{
    Mirror m;

    mirror_begin(&m);
    mirror_complete_begin(&m);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), release_flush, NULL);
    bdrv_drained_begin(m.src);
    g_assert_false(qatomic_read(&flush.active));
    bdrv_drained_end(m.src);
    mirror_end(&m);
}

/* What waits for the end of the flush is cancelled, and new requests are. */
static void test_mirror_cancel(void)
{
    Mirror m;
    Request queued = { .func = do_read };

    mirror_begin(&m);
    mirror_complete_begin(&m);
    queued.blk = m.blk;
    iothread_call(m.iothread, request_start, &queued);
    g_assert_cmpint(queued.ret, ==, PENDING);
    blk_cancel_begin(m.blk);
    g_assert_cmpint(wait_result(&queued.ret), ==, -ECANCELED);
    g_assert_cmpint(run_request(m.iothread, m.blk, do_read), ==, -ECANCELED);
    g_assert_true(qatomic_read(&flush.active));
    blk_cancel_end(m.blk);
    g_assert_true(qatomic_read(&flush.active));
    release_flush(NULL);
    mirror_end(&m);
}

static void release_hold(void *opaque)
{
    Hold *hold = opaque;

    qatomic_set(&hold->release, true);
}

/* The job was told to resume, and hasn't yet when a drain begins. */
static void test_mirror_resume(void)
{
    Mirror m;
    Hold hold = { .held = false };

    mirror_begin(&m);
    bdrv_drained_begin(m.src);
    aio_bh_schedule_oneshot(iothread_get_aio_context(m.iothread), hold_bh,
                            &hold);
    while (!qatomic_read(&hold.held)) {
        g_usleep(10);
    }
    bdrv_drained_end(m.src);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), release_hold, &hold);
    bdrv_drained_begin(m.src);
    WITH_JOB_LOCK_GUARD() {
        g_assert_true(m.job->paused);
        g_assert_false(m.job->busy);
    }
    bdrv_drained_end(m.src);
    mirror_complete_begin(&m);
    release_flush(NULL);
    mirror_end(&m);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    module_call_init(MODULE_INIT_QOM);
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/blk-drain/cancel", test_cancel);
    g_test_add_func("/blk-drain/cancel-iothread", test_cancel_iothread);
    g_test_add_func("/blk-drain/cancel-late", test_cancel_late);
    g_test_add_func("/blk-drain/cancel-medium", test_cancel_medium);
    g_test_add_func("/blk-drain/cancel-throttled", test_cancel_throttled);
    g_test_add_func("/blk-drain/throttle-leave", test_throttle_leave);
    g_test_add_func("/blk-drain/mirror-flush", test_mirror_flush);
    g_test_add_func("/blk-drain/mirror-cancel", test_mirror_cancel);
    g_test_add_func("/blk-drain/mirror-resume", test_mirror_resume);
    return g_test_run();
}
