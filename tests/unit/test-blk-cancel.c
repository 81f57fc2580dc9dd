/*
 * Unit test of blk_cancel_begin(): requests that end in a drain, with real
 * IOThreads and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "block/qdict.h"
#include "block/throttle-groups.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "blk-drain-util.h"

/*
 * blk_cancel_begin(): what waits for a drain ends
 */

typedef int coroutine_fn RequestFunc(BlockBackend *blk);

typedef struct Request {
    BlockBackend *blk;
    RequestFunc *func;
    int ret;            /* atomic */
} Request;

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

/* The request's thread is busy, and the section over when it wakes up. */
static void test_cancel_late(void)
{
    IOThread *iothread = iothread_new();
    BlockBackend *blk = new_null_blk();
    Request queued = { .blk = blk, .func = do_read };
    IOThreadHold hold;

    bdrv_drained_begin(blk_bs(blk));
    iothread_call(iothread, request_start, &queued);
    iothread_hold(iothread, &hold);
    blk_cancel_begin(blk);
    blk_cancel_end(blk);
    iothread_release(&hold);
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

static void check_node(QDict *options)
{
    BlockBackend *blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR,
                                     &error_abort);

    check_throttled(blk);
    blk_unref(blk);
}

static void test_cancel_throttled(void)
{
    BlockBackend *blk = new_null_blk();
    QDict *options = qdict_new(), *above = qdict_new();
    ThrottleConfig cfg;

    throttle_config_init(&cfg);
    cfg.buckets[THROTTLE_OPS_TOTAL].avg = 1;
    cfg.op_size = 1;    /* a sector is 512 operations */
    blk_io_limits_enable(blk, "slow");
    blk_set_io_limits(blk, &cfg);
    check_throttled(blk);

    /* A filter in the same group, and one below the disk's node */
    qdict_put_str(options, "driver", "throttle");
    qdict_put_str(options, "throttle-group", "slow");
    qdict_put_str(options, "file.driver", "null-co");
    qdict_put_str(above, "driver", "raw");
    qdict_put(above, "file", qdict_clone_shallow(options));
    qdict_flatten(above);
    check_node(options);
    check_node(above);

    blk_io_limits_disable(blk);
    blk_unref(blk);
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
    g_assert_true(mirror_flush_active());
    blk_cancel_end(m.blk);
    g_assert_true(mirror_flush_active());
    mirror_release_flush(NULL);
    mirror_end(&m);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    module_call_init(MODULE_INIT_QOM);
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/blk-cancel/requests", test_cancel);
    g_test_add_func("/blk-cancel/iothread", test_cancel_iothread);
    g_test_add_func("/blk-cancel/late", test_cancel_late);
    g_test_add_func("/blk-cancel/medium", test_cancel_medium);
    g_test_add_func("/blk-cancel/throttled", test_cancel_throttled);
    g_test_add_func("/blk-cancel/mirror", test_mirror_cancel);
    return g_test_run();
}
