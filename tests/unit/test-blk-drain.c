/*
 * Unit test of what throttled requests and mirror jobs meet in a drain, with
 * real IOThreads and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "block/throttle-groups.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qemu/main-loop.h"
#include "blk-drain-util.h"

#define THROTTLED   4
#define LEAVES      5000
#define SLOW_NS     (10 * 1000 * 1000)

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

/* No request is under way while limits are turned on: it would find half. */
static void test_throttle_enable(void)
{
    Reader r = { .blk = new_slow_blk(SLOW_NS), .running = 1 };

    qemu_coroutine_enter(qemu_coroutine_create(reader_entry, &r));
    qatomic_set(&r.stop, true);
    g_assert_cmpuint(qatomic_read(&r.running), ==, 1);
    blk_io_limits_enable(r.blk, "slow");
    g_assert_cmpuint(qatomic_read(&r.running), ==, 0);
    blk_io_limits_disable(r.blk);
    blk_unref(r.blk);
}

static BlockDriverState *add_throttle(const char *group, const char *file,
                                      Error **errp)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "throttle");
    qdict_put_str(options, "throttle-group", group);
    qdict_put_str(options, "file", file);
    return bdrv_open(NULL, NULL, options, BDRV_O_RDWR, errp);
}

/* A node that is added above another one goes to the IOThread of that. */
static void test_throttle_open(void)
{
    IOThread *iothread = iothread_new();
    AioContext *ctx = iothread_get_aio_context(iothread);
    BlockBackend *blk = new_null_blk();
    BlockDriverState *bs;
    Error *err = NULL;

    blk_set_aio_context(blk, ctx, &error_abort);
    blk_io_limits_enable(blk, "slow");
    bs = add_throttle("slow", bdrv_get_node_name(blk_bs(blk)), &error_abort);
    g_assert_true(bdrv_get_aio_context(bs) == ctx);
    bdrv_unref(bs);
    bs = add_throttle("slow", "none", &err);
    g_assert_null(bs);
    error_free_or_abort(&err);

    blk_io_limits_disable(blk);
    blk_set_aio_context(blk, qemu_get_aio_context(), &error_abort);
    blk_unref(blk);
    iothread_join(iothread);
}

/*
 * A mirror job in an IOThread: others' drains wait for it
 */

/* Nothing is left of the job's requests when somebody else's drain is on. */
static void test_mirror_flush(void)
{
    Mirror m;

    mirror_begin(&m);
    mirror_complete_begin(&m);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), mirror_release_flush, NULL);
    bdrv_drained_begin(m.src);
    g_assert_false(mirror_flush_active());
    bdrv_drained_end(m.src);
    mirror_end(&m);
}

/* The job was told to resume, and hasn't yet when a drain begins. */
static void test_mirror_resume(void)
{
    Mirror m;
    IOThreadHold hold;

    mirror_begin(&m);
    bdrv_drained_begin(m.src);
    iothread_hold(m.iothread, &hold);
    bdrv_drained_end(m.src);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), iothread_release, &hold);
    bdrv_drained_begin(m.src);
    WITH_JOB_LOCK_GUARD() {
        g_assert_true(m.job->paused);
        g_assert_false(m.job->busy);
    }
    bdrv_drained_end(m.src);
    mirror_complete_begin(&m);
    mirror_release_flush(NULL);
    mirror_end(&m);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    module_call_init(MODULE_INIT_QOM);
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/blk-drain/throttle-leave", test_throttle_leave);
    g_test_add_func("/blk-drain/throttle-enable", test_throttle_enable);
    g_test_add_func("/blk-drain/throttle-open", test_throttle_open);
    g_test_add_func("/blk-drain/mirror-flush", test_mirror_flush);
    g_test_add_func("/blk-drain/mirror-resume", test_mirror_resume);
    return g_test_run();
}
