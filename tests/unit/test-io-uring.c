/*
 * Unit test of aio=io_uring: a file, an IOThread or the main loop, and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "qapi/error.h"
#include "qemu/defer-call.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "iothread.h"

#define BLOCK       4096
#define BLOCKS      1000        /* more than both queues of a ring take */
#define TAIL        100         /* the file's last block isn't whole */
#define PENDING     INT_MAX     /* no result yet */

static char *path;
static bool direct;             /* O_DIRECT: nothing ends when it's submitted */

/* What a block has at @offset in it */
static uint8_t pattern(unsigned block, unsigned offset)
{
    return block * 7 + offset / 512 + 1;
}

static void fill(uint8_t *buf, unsigned block)
{
    for (unsigned i = 0; i < BLOCK; i++) {
        buf[i] = pattern(block, i);
    }
}

static void check(const uint8_t *buf, unsigned block, size_t len)
{
    for (unsigned i = 0; i < len; i++) {
        g_assert_cmpint(buf[i], ==, pattern(block, i));
    }
}

static void check_blocks(const uint8_t *buf, unsigned first, unsigned num)
{
    for (unsigned i = 0; i < num; i++) {
        check(buf + i * BLOCK, first + i, BLOCK);
    }
}

static void make_file(void)
{
    g_autofree uint8_t *data = g_malloc(BLOCKS * BLOCK + TAIL);
    g_autofree uint8_t *last = g_malloc(BLOCK);
    g_autoptr(GError) err = NULL;
    int fd = g_file_open_tmp("test-io-uring-XXXXXX", &path, &err);

    g_assert_no_error(err);
    close(fd);
    for (unsigned i = 0; i < BLOCKS; i++) {
        fill(data + i * BLOCK, i);
    }
    fill(last, BLOCKS);
    memcpy(data + BLOCKS * BLOCK, last, TAIL);
    g_file_set_contents(path, (char *)data, BLOCKS * BLOCK + TAIL, &err);
    g_assert_no_error(err);
}

static BlockBackend *open_file(IOThread *iothread)
{
    QDict *options = qdict_new();
    BlockBackend *blk;

    qdict_put_str(options, "driver", "file");
    qdict_put_str(options, "filename", path);
    qdict_put_str(options, "aio", "io_uring");
    qdict_put_bool(options, "cache.direct", direct);
    blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
    if (iothread) {
        blk_set_aio_context(blk, iothread_get_aio_context(iothread),
                            &error_abort);
    }
    return blk;
}

static void close_file(BlockBackend *blk)
{
    blk_drain(blk);
    blk_set_aio_context(blk, qemu_get_aio_context(), &error_abort);
    blk_unref(blk);
}

/* Run @func in the BlockBackend's thread. */
static void run_in(BlockBackend *blk, QEMUBHFunc *func, void *opaque)
{
    AioContext *ctx = blk_get_aio_context(blk);

    if (ctx == qemu_get_aio_context()) {
        func(opaque);
    } else {
        aio_wait_bh_oneshot(ctx, func, opaque);
    }
}

/*
 * Many requests in one batch, and twice as many as a ring takes
 */

typedef struct Many {
    BlockBackend *blk;
    uint8_t *data;
    unsigned started;
    unsigned done;      /* atomic */
} Many;

static void coroutine_fn many_entry(void *opaque)
{
    Many *m = opaque;
    unsigned block = m->started++;
    int ret = blk_co_pread(m->blk, (int64_t)block * BLOCK, BLOCK,
                           m->data + block * BLOCK, 0);

    g_assert_cmpint(ret, ==, 0);
    qatomic_inc(&m->done);
    aio_wait_kick();
}

static void many_start(void *opaque)
{
    defer_call_begin();
    for (unsigned i = 0; i < BLOCKS; i++) {
        qemu_coroutine_enter(qemu_coroutine_create(many_entry, opaque));
    }
    defer_call_end();
}

static void check_many(IOThread *iothread)
{
    Many m = { .blk = open_file(iothread),
               .data = qemu_memalign(BLOCK, BLOCKS * BLOCK) };

    run_in(m.blk, many_start, &m);
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&m.done) < BLOCKS);
    check_blocks(m.data, 0, BLOCKS);

    /* A drain waits for what is in flight. */
    memset(m.data, 0, BLOCKS * BLOCK);
    m.started = m.done = 0;
    run_in(m.blk, many_start, &m);
    blk_drain(m.blk);
    check_blocks(m.data, 0, BLOCKS);
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&m.done) < BLOCKS);
    close_file(m.blk);
    qemu_vfree(m.data);
}

/*
 * One buffer, or several, over the file's end as well
 */

typedef struct Vector {
    BlockBackend *blk;
    unsigned niov;
    unsigned blocks;
    unsigned first;
    bool write;
    BdrvRequestFlags flags;
    uint8_t *data;
    int ret;            /* atomic */
} Vector;

static void coroutine_fn vector_entry(void *opaque)
{
    Vector *v = opaque;
    size_t size = v->blocks * BLOCK;
    int64_t offset = (int64_t)v->first * BLOCK;
    QEMUIOVector qiov;
    int ret;

    qemu_iovec_init(&qiov, v->niov);
    for (unsigned i = 0; i < v->niov; i++) {
        size_t part = QEMU_ALIGN_DOWN(size / v->niov, BLOCK);

        qemu_iovec_add(&qiov, v->data + i * part,
                       i == v->niov - 1 ? size - i * part : part);
    }
    ret = v->write ? blk_co_pwritev(v->blk, offset, size, &qiov, v->flags)
                   : blk_co_preadv(v->blk, offset, size, &qiov, 0);
    qemu_iovec_destroy(&qiov);
    qatomic_set(&v->ret, ret);
    aio_wait_kick();
}

static void vector_start(void *opaque)
{
    qemu_coroutine_enter(qemu_coroutine_create(vector_entry, opaque));
}

static void vector_run(Vector *v)
{
    v->ret = PENDING;
    run_in(v->blk, vector_start, v);
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&v->ret) == PENDING);
    g_assert_cmpint(v->ret, ==, 0);
}

static void check_vector(IOThread *iothread)
{
    Vector v = { .blk = open_file(iothread), .blocks = 5, .first = 17 };

    v.data = qemu_memalign(BLOCK, v.blocks * BLOCK);
    for (v.niov = 1; v.niov <= 3; v.niov++) {
        memset(v.data, 0, v.blocks * BLOCK);
        v.write = false;
        vector_run(&v);
        check_blocks(v.data, v.first, v.blocks);
        v.write = true;
        v.flags = v.niov == 1 ? 0 : BDRV_REQ_FUA;
        vector_run(&v);
    }
    qemu_vfree(v.data);
    close_file(v.blk);
}

/*
 * The kernel reads less than was asked for; the rest is zeroes.  (The request
 * for the rest gets nothing, so that its operation isn't looked at.)
 */
static void check_short(IOThread *iothread)
{
    Vector v = { .blk = open_file(iothread), .blocks = 3,
                 .first = BLOCKS - 2 };
    unsigned rest = QEMU_ALIGN_UP(TAIL, 512);

    v.data = qemu_memalign(BLOCK, v.blocks * BLOCK);
    for (v.niov = 1; v.niov <= 3; v.niov++) {
        struct iovec iov[3];
        size_t size = 2 * BLOCK + rest;

        memset(v.data, 0xee, v.blocks * BLOCK);
        for (unsigned i = 0; i < v.niov; i++) {
            iov[i].iov_base = v.data + i * BLOCK;
            iov[i].iov_len = i == v.niov - 1 ? size - i * BLOCK : BLOCK;
        }
        QEMUIOVector qiov;
        qemu_iovec_init_external(&qiov, iov, v.niov);
        g_assert_cmpint(blk_preadv(v.blk, (int64_t)v.first * BLOCK, size, &qiov,
                                   0), ==, 0);
        check_blocks(v.data, v.first, 2);
        check(v.data + 2 * BLOCK, v.first + 2, TAIL);
        for (unsigned i = TAIL; i < rest; i++) {
            g_assert_cmpint(v.data[2 * BLOCK + i], ==, 0);
        }
        g_assert_cmpint(v.data[size], ==, 0xee);
    }
    qemu_vfree(v.data);
    close_file(v.blk);
}

/*
 * What a completion leads to makes one more request, and runs the event loop
 * until that one and the others are done
 */

#define NESTED 8

typedef struct Nested {
    BlockBackend *blk;
    QEMUIOVector qiov[NESTED];
    QEMUIOVector more;
    unsigned done;
    bool over;          /* atomic */
} Nested;

static void nested_done(void *opaque, int ret);

static void nested_bh(void *opaque)
{
    Nested *n = opaque;

    blk_aio_preadv(n->blk, NESTED * BLOCK, &n->more, 0, nested_done, n);
    g_assert_cmpint(n->done, <=, NESTED);
    while (n->done < NESTED + 1) {
        aio_poll(qemu_get_current_aio_context(), true);
    }
    qatomic_set(&n->over, true);
    aio_wait_kick();
}

static void nested_done(void *opaque, int ret)
{
    Nested *n = opaque;

    g_assert_cmpint(ret, ==, 0);
    if (n->done++ == 0) {
        aio_bh_schedule_oneshot(qemu_get_current_aio_context(), nested_bh, n);
    }
}

static void nested_start(void *opaque)
{
    Nested *n = opaque;

    defer_call_begin();
    for (unsigned i = 0; i < NESTED; i++) {
        blk_aio_preadv(n->blk, i * BLOCK, &n->qiov[i], 0, nested_done, n);
    }
    defer_call_end();
}

static void check_nested(IOThread *iothread)
{
    Nested n = { .blk = open_file(iothread) };
    uint8_t *data = qemu_memalign(BLOCK, (NESTED + 1) * BLOCK);
    struct iovec iov[NESTED + 1];

    for (unsigned i = 0; i <= NESTED; i++) {
        iov[i] = (struct iovec) { .iov_base = data + i * BLOCK,
                                  .iov_len = BLOCK };
        qemu_iovec_init_external(i < NESTED ? &n.qiov[i] : &n.more, &iov[i], 1);
    }
    run_in(n.blk, nested_start, &n);
    AIO_WAIT_WHILE_UNLOCKED(NULL, !qatomic_read(&n.over));
    check_blocks(data, 0, NESTED + 1);
    qemu_vfree(data);
    close_file(n.blk);
}

static bool have_io_uring(AioContext *ctx)
{
    return aio_setup_linux_io_uring(ctx, NULL) != NULL;
}

static void have_io_uring_bh(void *opaque)
{
    bool *have = opaque;

    *have = have_io_uring(qemu_get_current_aio_context());
}

/* In an IOThread, with and without polling */
static void run_in_iothread(void (*func)(IOThread *iothread), int64_t poll_ns)
{
    IOThread *iothread = iothread_new();
    AioContext *ctx = iothread_get_aio_context(iothread);
    bool have = false;

    aio_context_set_poll_params(ctx, poll_ns, 0, 0, &error_abort);
    aio_wait_bh_oneshot(ctx, have_io_uring_bh, &have);
    if (have) {
        func(iothread);
    } else {
        g_test_skip("no io_uring in an IOThread");
    }
    iothread_join(iothread);
}

static bool have_direct(void)
{
    int fd = open(path, O_RDWR | O_DIRECT);

    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

static void run_test(const void *opaque)
{
    void (*func)(IOThread *iothread) = opaque;

    if (!have_io_uring(qemu_get_aio_context())) {
        g_test_skip("no io_uring here");
        return;
    }
    make_file();
    for (int i = 0; i < 2; i++) {
        direct = i;
        if (direct && !have_direct()) {
            g_test_skip("no O_DIRECT here");
            break;
        }
        func(NULL);
        run_in_iothread(func, 0);
        run_in_iothread(func, 1000000);
    }
    unlink(path);
    g_free(path);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    module_call_init(MODULE_INIT_QOM);
    g_test_init(&argc, &argv, NULL);

    g_test_add_data_func("/io-uring/many", check_many, run_test);
    g_test_add_data_func("/io-uring/vector", check_vector, run_test);
    g_test_add_data_func("/io-uring/short", check_short, run_test);
    g_test_add_data_func("/io-uring/nested", check_nested, run_test);
    return g_test_run();
}
