/*
 * Unit tests of an engine for asynchronous I/O: a file, an IOThread or the main
 * loop, and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "block/aio-wait.h"
#include "block/block.h"
#include "block/raw-aio.h"
#include "qapi/error.h"
#include "qemu/defer-call.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "aio-engine.h"
#include "iothread-call.h"

#define BLOCK       4096
#define BLOCKS      2100        /* more than any engine's queues take */
#define TAIL        100         /* the file's last block isn't whole */

static const AioEngine *engine;
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
    int fd = g_file_open_tmp("test-aio-engine-XXXXXX", &path, &err);

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
    qdict_put_str(options, "aio", engine->name);
    qdict_put_bool(options, "cache.direct", direct);
    blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR | BDRV_O_RESIZE,
                       &error_abort);
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

/*
 * Many requests in one batch
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

static void check_many_of(IOThread *iothread)
{
    Many m = { .blk = open_file(iothread),
               .data = qemu_memalign(BLOCK, BLOCKS * BLOCK) };

    iothread_call(iothread, many_start, &m);
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&m.done) < BLOCKS);
    check_blocks(m.data, 0, BLOCKS);

    /* A drain waits for what is in flight. */
    memset(m.data, 0, BLOCKS * BLOCK);
    m.started = m.done = 0;
    iothread_call(iothread, many_start, &m);
    blk_drain(m.blk);
    check_blocks(m.data, 0, BLOCKS);
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&m.done) < BLOCKS);
    close_file(m.blk);
    qemu_vfree(m.data);
}

static void check_many(IOThread *iothread)
{
    AioContext *ctx = iothread ? iothread_get_aio_context(iothread)
                               : qemu_get_aio_context();

    check_many_of(iothread);

    /* linux-aio submits when 32 are there, and doesn't get its queue full. */
    aio_context_set_aio_params(ctx, BLOCKS);
    check_many_of(iothread);
    aio_context_set_aio_params(ctx, 0);
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
    set_result(&v->ret, ret);
}

static void vector_start(void *opaque)
{
    qemu_coroutine_enter(qemu_coroutine_create(vector_entry, opaque));
}

static void vector_run(IOThread *iothread, Vector *v)
{
    v->ret = PENDING;
    iothread_call(iothread, vector_start, v);
    g_assert_cmpint(wait_result(&v->ret), ==, 0);
}

static void check_vector(IOThread *iothread)
{
    Vector v = { .blk = open_file(iothread), .blocks = 5, .first = 17 };

    v.data = qemu_memalign(BLOCK, v.blocks * BLOCK);
    for (v.niov = 1; v.niov <= 3; v.niov++) {
        memset(v.data, 0, v.blocks * BLOCK);
        v.write = false;
        vector_run(iothread, &v);
        check_blocks(v.data, v.first, v.blocks);
        v.write = true;
        v.flags = v.niov == 1 ? 0 : BDRV_REQ_FUA;
        vector_run(iothread, &v);
    }
    qemu_vfree(v.data);
    close_file(v.blk);
}

/*
 * The kernel reads less than was asked for, because the file ends; the rest is
 * zeroes
 */
static void check_eof(IOThread *iothread)
{
    BlockBackend *blk = open_file(iothread);
    unsigned rest = QEMU_ALIGN_UP(TAIL, 512);
    unsigned first = BLOCKS - 2;
    size_t size = 2 * BLOCK + rest;
    uint8_t *data = qemu_memalign(BLOCK, 3 * BLOCK);

    for (unsigned niov = 1; niov <= 3; niov++) {
        struct iovec iov[3];
        QEMUIOVector qiov;

        memset(data, 0xee, 3 * BLOCK);
        for (unsigned i = 0; i < niov; i++) {
            iov[i].iov_base = data + i * BLOCK;
            iov[i].iov_len = i == niov - 1 ? size - i * BLOCK : BLOCK;
        }
        qemu_iovec_init_external(&qiov, iov, niov);
        g_assert_cmpint(blk_preadv(blk, (int64_t)first * BLOCK, size, &qiov,
                                   0), ==, 0);
        check_blocks(data, first, 2);
        check(data + 2 * BLOCK, first + 2, TAIL);
        for (unsigned i = TAIL; i < rest; i++) {
            g_assert_cmpint(data[2 * BLOCK + i], ==, 0);
        }
        g_assert_cmpint(data[size], ==, 0xee);
    }
    qemu_vfree(data);
    close_file(blk);
}

/*
 * Requests to the engine itself, for files that the block layer doesn't open
 */

typedef struct Raw {
    int fd;
    uint64_t offset;
    QEMUIOVector qiov;
    int type;
    int ret;            /* atomic */
} Raw;

static void coroutine_fn raw_entry(void *opaque)
{
    Raw *r = opaque;

    set_result(&r->ret, engine->co_submit(r->fd, r->offset, &r->qiov, r->type));
}

static void raw_start(void *opaque)
{
    Raw *r = opaque;

    r->ret = PENDING;
    qemu_coroutine_enter(qemu_coroutine_create(raw_entry, r));
}

/* With @size bytes of @data in @niov buffers, none of which is like another */
static int raw_run(IOThread *iothread, Raw *r, void *data, size_t size,
                   unsigned niov)
{
    size_t done = 0;
    int ret;

    qemu_iovec_init(&r->qiov, niov);
    for (unsigned i = 0; i < niov; i++) {
        size_t part = i == niov - 1 ? size - done : 700 * (i + 1);

        qemu_iovec_add(&r->qiov, data + done, part);
        done += part;
    }
    iothread_call(iothread, raw_start, r);
    ret = wait_result(&r->ret);
    qemu_iovec_destroy(&r->qiov);
    return ret;
}

/*
 * Each read gets only a part, which isn't the last: a pipe with O_DIRECT gives
 * one write at a time.  With @extra bytes more than that, it ends too early.
 */
static void check_parts_of(IOThread *iothread, unsigned niov, unsigned extra)
{
    static const unsigned part[] = { 1, 511, 2000, 1600, 300 };
    uint8_t sent[BLOCK * 2], got[BLOCK * 2];
    Raw r = { .type = QEMU_AIO_READ };
    size_t size = 0;
    int fds[2];

    g_assert_cmpint(pipe2(fds, O_DIRECT | O_CLOEXEC), ==, 0);
    for (unsigned i = 0; i < sizeof(sent); i++) {
        sent[i] = i % 251;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(part); i++) {
        g_assert_cmpint(write(fds[1], sent + size, part[i]), ==, part[i]);
        size += part[i];
    }
    close(fds[1]);
    memset(got, 0xee, sizeof(got));
    r.fd = fds[0];
    g_assert_cmpint(raw_run(iothread, &r, got, size + extra, niov), ==, 0);
    g_assert_cmpmem(got, size, sent, size);
    for (unsigned i = 0; i < extra; i++) {
        g_assert_cmpint(got[size + i], ==, 0);
    }
    g_assert_cmpint(got[size + extra], ==, 0xee);
    close(fds[0]);
}

static void check_parts(IOThread *iothread)
{
    for (unsigned niov = 1; niov <= 3; niov++) {
        check_parts_of(iothread, niov, 0);
        check_parts_of(iothread, niov, 900);
    }
}

/*
 * The same with a file that has offsets: sysfs gives a binary file page by page
 */
static void check_sysfs(IOThread *iothread)
{
    const size_t size = 5 * qemu_real_host_page_size();
    Raw r = { .type = QEMU_AIO_READ, .offset = size / 2 + 123 };
    g_autofree uint8_t *expected = g_malloc(size);
    g_autofree uint8_t *got = g_malloc(size);
    ssize_t len;

    r.fd = open("/sys/kernel/btf/vmlinux", O_RDONLY | O_CLOEXEC);
    if (r.fd < 0) {
        g_test_skip("no binary file in sysfs");
        return;
    }
    len = pread(r.fd, expected, size, r.offset);
    g_assert_cmpint(len, >, 0);
    g_assert_cmpint(len, <, size);
    for (size_t done = len; done < size; done += len) {
        len = pread(r.fd, expected + done, size - done, r.offset + done);
        g_assert_cmpint(len, >, 0);
    }
    for (unsigned niov = 1; niov <= 3; niov++) {
        memset(got, 0xee, size);
        g_assert_cmpint(raw_run(iothread, &r, got, size, niov), ==, 0);
        g_assert_cmpmem(got, size, expected, size);
    }
    close(r.fd);
}

/*
 * A write is cut off by a limit
 */
static void check_short_write(IOThread *iothread)
{
    g_autofree uint8_t *data = g_malloc(5 * BLOCK);
    g_autofree uint8_t *got = g_malloc(2 * BLOCK);
    Raw r = { .type = QEMU_AIO_WRITE, .offset = BLOCK };
    struct rlimit old, limit;
    struct stat st;
    int ret;

    for (unsigned i = 0; i < 5; i++) {
        fill(data + i * BLOCK, i);
    }
    g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &old), ==, 0);
    limit = old;
    limit.rlim_cur = 3 * BLOCK;
    signal(SIGXFSZ, SIG_IGN);
    for (unsigned niov = 1; niov <= 3; niov++) {
        r.fd = open(path, O_RDWR | O_TRUNC | O_CLOEXEC);
        g_assert_cmpint(r.fd, >=, 0);
        g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &limit), ==, 0);
        ret = raw_run(iothread, &r, data, 5 * BLOCK, niov);
        g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &old), ==, 0);
        g_assert_cmpint(ret, ==, engine->short_write);
        g_assert_cmpint(fstat(r.fd, &st), ==, 0);
        g_assert_cmpint(st.st_size, ==, 3 * BLOCK);
        g_assert_cmpint(pread(r.fd, got, 2 * BLOCK, BLOCK), ==, 2 * BLOCK);
        check_blocks(got, 0, 2);
        close(r.fd);
    }
}

/*
 * The kernel refuses some requests of a batch: the others are done
 */

#define REFUSED 9

static void refused_start(void *opaque)
{
    Raw *r = opaque;

    defer_call_begin();
    for (unsigned i = 0; i < REFUSED; i++) {
        raw_start(&r[i]);
    }
    defer_call_end();
}

static void check_refused(IOThread *iothread)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    /* The first, the last, one alone and two in a row */
    bool bad[REFUSED] = { true, false, true, false, false, true, true, false,
                          true };
    g_autofree uint8_t *data = g_malloc0(REFUSED * BLOCK);
    struct iovec iov[REFUSED];
    Raw r[REFUSED] = {};

    g_assert_cmpint(fd, >=, 0);
    for (unsigned i = 0; i < REFUSED; i++) {
        r[i].fd = bad[i] ? -1 : fd;
        r[i].offset = i * BLOCK;
        r[i].type = QEMU_AIO_READ;
        iov[i] = (struct iovec) { .iov_base = data + i * BLOCK,
                                  .iov_len = BLOCK };
        qemu_iovec_init_external(&r[i].qiov, &iov[i], 1);
    }
    iothread_call(iothread, refused_start, r);
    for (unsigned i = 0; i < REFUSED; i++) {
        g_assert_cmpint(wait_result(&r[i].ret), ==, bad[i] ? -EBADF : 0);
        if (!bad[i]) {
            check_blocks(data + i * BLOCK, i, 1);
        }
    }
    close(fd);
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
    iothread_call(iothread, nested_start, &n);
    AIO_WAIT_WHILE_UNLOCKED(NULL, !qatomic_read(&n.over));
    check_blocks(data, 0, NESTED + 1);
    qemu_vfree(data);
    close_file(n.blk);
}

static void setup_bh(void *opaque)
{
    bool *have = opaque;

    *have = engine->setup(qemu_get_current_aio_context());
}

/* In an IOThread, with and without polling */
static void run_in_iothread(AioEngineTest func, int64_t poll_ns)
{
    IOThread *iothread = iothread_new();
    bool have = false;

    aio_context_set_poll_params(iothread_get_aio_context(iothread), poll_ns, 0,
                                0, &error_abort);
    iothread_call(iothread, setup_bh, &have);
    if (have) {
        func(iothread);
    } else {
        g_test_skip("the engine can't be used in an IOThread");
    }
    iothread_join(iothread);
}

static void run_everywhere(AioEngineTest func)
{
    func(NULL);
    run_in_iothread(func, 0);
    run_in_iothread(func, 1000000);
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

static bool begin_test(void)
{
    if (!engine->setup(qemu_get_aio_context())) {
        g_test_skip("the engine can't be used here");
        return false;
    }
    make_file();
    return true;
}

static void end_test(void)
{
    unlink(path);
    g_free(path);
}

/* A test that opens the file through the block layer */
static void run_test(const void *opaque)
{
    if (!begin_test()) {
        return;
    }
    for (int i = engine->needs_direct; i < 2; i++) {
        direct = i;
        if (direct && !have_direct()) {
            g_test_skip("no O_DIRECT here");
            break;
        }
        run_everywhere((AioEngineTest)opaque);
    }
    end_test();
}

/* A test that opens files on its own */
static void run_raw_test(const void *opaque)
{
    if (begin_test()) {
        run_everywhere((AioEngineTest)opaque);
        end_test();
    }
}

static void add_test(const char *name, AioEngineTest func, GTestDataFunc run)
{
    g_autofree char *full = g_strdup_printf("/%s/%s", engine->name, name);

    g_test_add_data_func(full, func, run);
}

int aio_engine_main(int argc, char **argv, const AioEngine *tested)
{
    engine = tested;
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    module_call_init(MODULE_INIT_QOM);
    g_test_init(&argc, &argv, NULL);

    add_test("many", check_many, run_test);
    add_test("vector", check_vector, run_test);
    add_test("eof", check_eof, run_test);
    add_test("nested", check_nested, run_test);
    add_test("parts", check_parts, run_raw_test);
    add_test("sysfs", check_sysfs, run_raw_test);
    add_test("short-write", check_short_write, run_raw_test);
    add_test("refused", check_refused, run_raw_test);
    return g_test_run();
}
