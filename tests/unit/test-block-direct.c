/*
 * Unit test of the short way through the block layer: which requests take it,
 * and who waits for those that do
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "system/block-backend.h"
#include "iothread-call.h"

#define ALIGN       4096
#define MAX_BYTES   (16 * ALIGN)
#define SIZE        (64 * ALIGN)

/*
 * A driver that tells how its requests have come, and holds them if it is told
 */

typedef struct Toy {
    unsigned direct;            /* requests so far; atomic, as are the others */
    unsigned tracked;
    unsigned flushes;
    int flush_ret;

    unsigned direct_now;        /* in the driver */
    unsigned serialising_now;
    unsigned mixed;             /* how often both were */

    bool hold;
    bool yields;                /* once in each request */
    GSList *held;               /* coroutines; main loop only */
} Toy;

static void coroutine_fn toy_wait(Toy *toy)
{
    if (qatomic_read(&toy->yields)) {
        aio_co_schedule(qemu_get_current_aio_context(), qemu_coroutine_self());
        qemu_coroutine_yield();
    }
    if (qatomic_read(&toy->hold)) {
        toy->held = g_slist_append(toy->held, qemu_coroutine_self());
        qemu_coroutine_yield();
    }
}

static int coroutine_fn GRAPH_RDLOCK toy_io(BlockDriverState *bs)
{
    BdrvTrackedRequest *self = bdrv_co_get_self_request(bs);
    unsigned none = 0;
    Toy *toy = bs->opaque;
    unsigned *now = !self ? &toy->direct_now
                    : self->serialising ? &toy->serialising_now : &none;

    qatomic_inc(self ? &toy->tracked : &toy->direct);
    qatomic_inc(now);
    toy_wait(toy);
    if (qatomic_read(&toy->direct_now) && qatomic_read(&toy->serialising_now)) {
        qatomic_inc(&toy->mixed);
    }
    qatomic_dec(now);
    return 0;
}

static int coroutine_fn GRAPH_RDLOCK
toy_preadv(BlockDriverState *bs, int64_t offset, int64_t bytes,
           QEMUIOVector *qiov, BdrvRequestFlags flags)
{
    return toy_io(bs);
}

static int coroutine_fn GRAPH_RDLOCK
toy_pwritev(BlockDriverState *bs, int64_t offset, int64_t bytes,
            QEMUIOVector *qiov, BdrvRequestFlags flags)
{
    return toy_io(bs);
}

static int coroutine_fn toy_flush(BlockDriverState *bs)
{
    Toy *toy = bs->opaque;

    toy->flushes++;
    toy_wait(toy);
    return toy->flush_ret;
}

static void toy_refresh_limits(BlockDriverState *bs, Error **errp)
{
    bs->bl.request_alignment = ALIGN;
    bs->bl.max_transfer = MAX_BYTES;
}

static void toy_refresh_variable(BlockDriverState *bs, Error **errp)
{
    toy_refresh_limits(bs, errp);
    bs->bl.has_variable_length = true;
}

static int64_t coroutine_fn toy_getlength(BlockDriverState *bs)
{
    return SIZE;
}

#define TOY_DRIVER                                  \
    .instance_size          = sizeof(Toy),          \
    .bdrv_co_getlength      = toy_getlength,        \
    .bdrv_co_preadv         = toy_preadv,           \
    .bdrv_co_pwritev        = toy_pwritev,          \
    .bdrv_co_flush_to_disk  = toy_flush

static BlockDriver bdrv_toy = {
    .format_name            = "toy",
    .allows_direct          = true,
    .bdrv_refresh_limits    = toy_refresh_limits,
    TOY_DRIVER,
};

static BlockDriver bdrv_toy_tracked = {
    .format_name            = "toy-tracked",
    .bdrv_refresh_limits    = toy_refresh_limits,
    TOY_DRIVER,
};

static BlockDriver bdrv_toy_variable = {
    .format_name            = "toy-variable",
    .allows_direct          = true,
    .bdrv_refresh_limits    = toy_refresh_variable,
    TOY_DRIVER,
};

static BlockBackend *toy_new(BlockDriver *drv, Toy **toy)
{
    BlockDriverState *bs = bdrv_new_open_driver(drv, "toy", BDRV_O_RDWR,
                                                &error_abort);
    BlockBackend *blk = blk_new(qemu_get_aio_context(), BLK_PERM_ALL,
                                BLK_PERM_ALL);

    g_assert_cmpint(blk_insert_bs(blk, bs, &error_abort), ==, 0);
    blk_set_enable_write_cache(blk, true);
    blk_set_disable_request_queuing(blk, false);
    bdrv_unref(bs);
    *toy = bs->opaque;
    return blk;
}

static void toy_release(Toy *toy)
{
    toy->hold = false;
    while (toy->held) {
        Coroutine *co = toy->held->data;

        toy->held = g_slist_delete_link(toy->held, toy->held);
        aio_co_wake(co);
    }
}

/*
 * Requests
 */

enum { READ, WRITE, FLUSH };

typedef struct Req {
    BlockBackend *blk;
    int what;
    int64_t offset;
    int64_t bytes;
    BdrvRequestFlags flags;
    size_t skip;            /* bytes at the beginning of the buffer */
    bool below;             /* not by @blk, but from the node on */
    int ret;
} Req;

static uint8_t data[2 * SIZE];

static int coroutine_fn GRAPH_RDLOCK req_below(Req *r, QEMUIOVector *qiov)
{
    BdrvChild *child = (BdrvChild *)blk_root(r->blk);

    return r->what == READ
           ? bdrv_co_preadv(child, r->offset, r->bytes, qiov, r->flags)
           : bdrv_co_pwritev(child, r->offset, r->bytes, qiov, r->flags);
}

static void coroutine_fn req_entry(void *opaque)
{
    Req *r = opaque;
    QEMUIOVector qiov;
    int ret;

    qemu_iovec_init_buf(&qiov, data, r->skip + r->bytes);
    if (r->what == FLUSH) {
        ret = blk_co_flush(r->blk);
    } else if (r->below) {
        GRAPH_RDLOCK_GUARD();
        ret = req_below(r, &qiov);
    } else if (r->what == READ) {
        ret = blk_co_preadv_part(r->blk, r->offset, r->bytes, &qiov, r->skip,
                                 r->flags);
    } else {
        ret = blk_co_pwritev_part(r->blk, r->offset, r->bytes, &qiov, r->skip,
                                  r->flags);
    }
    set_result(&r->ret, ret);
}

static void req_start(Req *r)
{
    r->ret = PENDING;
    qemu_coroutine_enter(qemu_coroutine_create(req_entry, r));
}

static int req_run(Req r)
{
    req_start(&r);
    return wait_result(&r.ret);
}

/* Let everybody go on who can. */
static void settle(void)
{
    for (unsigned i = 0; i < 20; i++) {
        aio_poll(qemu_get_aio_context(), false);
    }
}

/* Run it, and expect that it goes one way or the other. */
static void expect(Toy *toy, Req r, bool direct)
{
    unsigned before_direct = toy->direct;
    unsigned before_tracked = toy->tracked;

    g_assert_cmpint(req_run(r), ==, 0);
    g_assert_cmpint(toy->direct > before_direct, ==, direct);
    g_assert_cmpint(toy->tracked > before_tracked, ==, !direct);
}

/* How many requests are tracked after one that was serialising */
#define PAUSE       256

#define EXPECT(direct, ...) expect(toy, (Req) { .blk = blk, __VA_ARGS__ }, \
                                   direct)

static void run_through_pause(BlockBackend *blk, Toy *toy, unsigned left)
{
    while (left--) {
        EXPECT(false, READ, 0, ALIGN);
    }
    EXPECT(true, READ, 0, ALIGN);
}

/*
 * Which way a request goes
 */

static void test_plain(void)
{
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);

    for (int what = READ; what <= WRITE; what++) {
        for (int below = 0; below <= 1; below++) {
            EXPECT(true, what, 0, ALIGN, .below = below);
            EXPECT(true, what, ALIGN, MAX_BYTES, .below = below);
            EXPECT(true, what, SIZE - ALIGN, ALIGN, .below = below);
        }
    }
    blk_unref(blk);
}

static void test_shape(void)
{
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);

    for (int what = READ; what <= WRITE; what++) {
        EXPECT(false, what, 512, ALIGN - 512);
        EXPECT(false, what, 0, 512);
        EXPECT(false, what, 0, MAX_BYTES + ALIGN);
        EXPECT(false, what, 0, ALIGN, .skip = ALIGN);
        g_assert_cmpint(req_run((Req) { blk, what, SIZE, ALIGN }), ==, -EIO);
        g_assert_cmpint(req_run((Req) { blk, what, SIZE - ALIGN, 2 * ALIGN }),
                        ==, -EIO);
    }
    g_assert_cmpuint(toy->direct, ==, 0);

    /* It makes the node longer. */
    blk_set_allow_write_beyond_eof(blk, true);
    EXPECT(false, WRITE, SIZE - ALIGN, 2 * ALIGN);
    blk_unref(blk);
}

static void test_asked_for_more(void)
{
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);
    BlockDriverState *bs = blk_bs(blk);

    EXPECT(false, WRITE, 0, ALIGN, BDRV_REQ_FUA);
    EXPECT(true, WRITE, 0, ALIGN, BDRV_REQ_REGISTERED_BUF);
    EXPECT(false, WRITE, 0, ALIGN, BDRV_REQ_SERIALISING);
    run_through_pause(blk, toy, PAUSE);

    blk_set_enable_write_cache(blk, false);
    EXPECT(false, WRITE, 0, ALIGN);
    EXPECT(true, READ, 0, ALIGN);
    blk_set_enable_write_cache(blk, true);

    bs->detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_ON;
    EXPECT(false, WRITE, 0, ALIGN);
    EXPECT(true, READ, 0, ALIGN);
    bs->detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF;
    EXPECT(true, WRITE, 0, ALIGN);

    /* Nothing is copied: all of the node is its own. */
    bdrv_enable_copy_on_read(bs);
    EXPECT(false, READ, 0, ALIGN);
    bdrv_disable_copy_on_read(bs);
    run_through_pause(blk, toy, PAUSE);
    blk_unref(blk);
}

static void test_readonly_bitmap(void)
{
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);
    BdrvDirtyBitmap *bitmap = bdrv_create_dirty_bitmap(blk_bs(blk), ALIGN, "b",
                                                       &error_abort);

    bdrv_dirty_bitmap_set_readonly(bitmap, true);
    g_assert_cmpint(req_run((Req) { blk, WRITE, 0, ALIGN }), ==, -EPERM);
    EXPECT(true, READ, 0, ALIGN);
    bdrv_dirty_bitmap_set_readonly(bitmap, false);
    EXPECT(true, WRITE, 0, ALIGN);
    bdrv_release_dirty_bitmap(bitmap);
    blk_unref(blk);
}

static void test_driver(void)
{
    BlockDriver *drivers[] = { &bdrv_toy_tracked, &bdrv_toy_variable };

    for (unsigned i = 0; i < ARRAY_SIZE(drivers); i++) {
        Toy *toy;
        BlockBackend *blk = toy_new(drivers[i], &toy);

        EXPECT(false, READ, 0, ALIGN);
        EXPECT(false, WRITE, 0, ALIGN);
        blk_unref(blk);
    }
}

static bool tray_is_open(void *opaque)
{
    return true;
}

static void test_tray(void)
{
    static const BlockDevOps ops = { .is_tray_open = tray_is_open };
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);

    blk_set_dev_ops(blk, &ops, NULL);
    for (int what = READ; what <= WRITE; what++) {
        g_assert_cmpint(req_run((Req) { blk, what, 0, ALIGN }), ==,
                        -ENOMEDIUM);
    }
    blk_unref(blk);
}

/*
 * Who waits
 */

/* One that reads, changes and writes, while a direct one is under way */
static void test_serialising_waits(void)
{
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);
    Req first = { blk, READ, 2 * ALIGN, ALIGN };
    Req rmw = { blk, WRITE, 0, 512 };
    Req later = { blk, READ, ALIGN, ALIGN };
    Req overlapping = { blk, READ, 0, ALIGN };

    toy->hold = true;
    req_start(&first);
    toy->hold = false;
    req_start(&rmw);
    settle();
    g_assert_cmpuint(toy->tracked, ==, 0);
    g_assert_cmpint(rmw.ret, ==, PENDING);

    /* From now on nobody goes the short way; who doesn't overlap goes on. */
    req_start(&later);
    req_start(&overlapping);
    settle();
    g_assert_cmpint(later.ret, ==, 0);
    g_assert_cmpint(overlapping.ret, ==, PENDING);
    g_assert_cmpuint(toy->direct, ==, 1);

    toy_release(toy);
    g_assert_cmpint(wait_result(&first.ret), ==, 0);
    g_assert_cmpint(wait_result(&rmw.ret), ==, 0);
    g_assert_cmpint(wait_result(&overlapping.ret), ==, 0);
    run_through_pause(blk, toy, PAUSE - 2); /* two have come already */
    blk_unref(blk);
}

/* One that takes longer than the pause that it causes */
static void test_serialising_is_slow(void)
{
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);
    Req rmw = { blk, WRITE, 0, 512 };
    Req overlapping = { blk, READ, 0, ALIGN };

    toy->hold = true;
    req_start(&rmw);
    toy->hold = false;
    for (unsigned i = 0; i < 2 * PAUSE; i++) {
        EXPECT(false, READ, ALIGN, ALIGN);
    }
    req_start(&overlapping);
    settle();
    g_assert_cmpint(overlapping.ret, ==, PENDING);
    toy_release(toy);
    g_assert_cmpint(wait_result(&rmw.ret), ==, 0);
    g_assert_cmpint(wait_result(&overlapping.ret), ==, 0);
    EXPECT(true, READ, 0, ALIGN);
    blk_unref(blk);
}

/* One that doesn't want to wait, where direct ones may be and where not */
static void test_no_wait(void)
{
    const BdrvRequestFlags flags = BDRV_REQ_SERIALISING | BDRV_REQ_NO_WAIT;
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);
    Req first = { blk, READ, 0, ALIGN };

    blk_set_allow_write_beyond_eof(blk, true);
    toy->hold = true;
    req_start(&first);
    toy->hold = false;
    g_assert_cmpint(req_run((Req) { blk, WRITE, 4 * ALIGN, ALIGN, flags }),
                    ==, -EBUSY);
    g_assert_cmpint(req_run((Req) { blk, WRITE, SIZE, ALIGN, flags }), ==, 0);
    g_assert_cmpint(first.ret, ==, PENDING);
    toy_release(toy);
    g_assert_cmpint(wait_result(&first.ret), ==, 0);
    g_assert_cmpint(req_run((Req) { blk, WRITE, 4 * ALIGN, ALIGN, flags }),
                    ==, 0);
    blk_unref(blk);
}

static void release_bh(void *opaque)
{
    toy_release(opaque);
}

/* The request isn't the BlockBackend's, so only the node knows of it. */
static void test_drain_waits(void)
{
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);
    Req r = { blk, WRITE, 0, ALIGN, .below = true };

    toy->hold = true;
    req_start(&r);
    g_assert_cmpuint(toy->direct, ==, 1);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), release_bh, toy);
    bdrv_drained_begin(blk_bs(blk));
    g_assert_cmpint(r.ret, ==, 0);
    bdrv_drained_end(blk_bs(blk));
    blk_unref(blk);
}

static void test_bitmap_made_meanwhile(void)
{
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);
    Req r = { blk, WRITE, 2 * ALIGN, ALIGN };
    BdrvDirtyBitmap *bitmap;

    toy->hold = true;
    req_start(&r);
    bitmap = bdrv_create_dirty_bitmap(blk_bs(blk), ALIGN, "b", &error_abort);
    g_assert_cmpint(bdrv_get_dirty_count(bitmap), ==, 0);
    toy_release(toy);
    g_assert_cmpint(wait_result(&r.ret), ==, 0);
    g_assert_cmpint(bdrv_get_dirty_count(bitmap), ==, ALIGN);
    g_assert_cmpuint(toy->direct, ==, 1);
    bdrv_release_dirty_bitmap(bitmap);
    blk_unref(blk);
}

/*
 * Flush: after each write that it comes after, and only then
 */

static void test_flush(void)
{
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);
    Req flush = { blk, FLUSH };
    Req w = { blk, WRITE, 0, ALIGN };

    g_assert_cmpint(req_run(flush), ==, 0);
    g_assert_cmpuint(toy->flushes, ==, 0);
    for (unsigned i = 1; i <= 3; i++) {
        g_assert_cmpint(req_run(w), ==, 0);
        g_assert_cmpint(req_run(w), ==, 0);
        g_assert_cmpint(req_run(flush), ==, 0);
        g_assert_cmpint(req_run(flush), ==, 0);
        g_assert_cmpuint(toy->flushes, ==, i);
    }

    /* What is written during a flush needs another. */
    g_assert_cmpint(req_run(w), ==, 0);
    toy->hold = true;
    req_start(&flush);
    toy->hold = false;
    g_assert_cmpuint(toy->flushes, ==, 4);
    g_assert_cmpint(req_run(w), ==, 0);
    toy_release(toy);
    g_assert_cmpint(wait_result(&flush.ret), ==, 0);
    g_assert_cmpint(req_run(flush), ==, 0);
    g_assert_cmpuint(toy->flushes, ==, 5);

    /* One that fails doesn't count. */
    g_assert_cmpint(req_run(w), ==, 0);
    toy->flush_ret = -EIO;
    g_assert_cmpint(req_run(flush), ==, -EIO);
    toy->flush_ret = 0;
    g_assert_cmpint(req_run(flush), ==, 0);
    g_assert_cmpint(req_run(flush), ==, 0);
    g_assert_cmpuint(toy->flushes, ==, 7);
    blk_unref(blk);
}

/*
 * Threads
 */

#define NUM_THREADS 4
#define ROUNDS      20000

typedef struct Worker {
    BlockBackend *blk;
    IOThread *iothread;
    unsigned index;
    int ret;
} Worker;

static void coroutine_fn work(void *opaque)
{
    Worker *w = opaque;
    g_autofree uint8_t *buf = g_malloc0(ALIGN);

    for (unsigned i = 0; i < ROUNDS; i++) {
        /* Now and then one that must be alone */
        int64_t bytes = (i + 200 * w->index) % 1000 ? ALIGN : 512;

        g_assert_cmpint(blk_co_pwrite(w->blk, 0, bytes, buf, 0), ==, 0);
    }
    set_result(&w->ret, 0);
}

static void test_threads(void)
{
    Toy *toy;
    BlockBackend *blk = toy_new(&bdrv_toy, &toy);
    Worker workers[NUM_THREADS];

    toy->yields = true;
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        workers[i] = (Worker) {
            .blk = blk,
            .iothread = iothread_new(),
            .index = i,
            .ret = PENDING,
        };
    }
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        aio_co_enter(iothread_get_aio_context(workers[i].iothread),
                     qemu_coroutine_create(work, &workers[i]));
    }
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        g_assert_cmpint(wait_result(&workers[i].ret), ==, 0);
        iothread_join(workers[i].iothread);
    }
    g_assert_cmpuint(toy->direct, >, 0);
    g_assert_cmpuint(toy->tracked, >, 0);
    g_assert_cmpuint(toy->mixed, ==, 0);
    blk_unref(blk);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/block-direct/plain", test_plain);
    g_test_add_func("/block-direct/shape", test_shape);
    g_test_add_func("/block-direct/asked-for-more", test_asked_for_more);
    g_test_add_func("/block-direct/readonly-bitmap", test_readonly_bitmap);
    g_test_add_func("/block-direct/driver", test_driver);
    g_test_add_func("/block-direct/tray", test_tray);
    g_test_add_func("/block-direct/serialising-waits", test_serialising_waits);
    g_test_add_func("/block-direct/serialising-is-slow",
                    test_serialising_is_slow);
    g_test_add_func("/block-direct/no-wait", test_no_wait);
    g_test_add_func("/block-direct/drain-waits", test_drain_waits);
    g_test_add_func("/block-direct/bitmap-made-meanwhile",
                    test_bitmap_made_meanwhile);
    g_test_add_func("/block-direct/flush", test_flush);
    g_test_add_func("/block-direct/threads", test_threads);
    return g_test_run();
}
