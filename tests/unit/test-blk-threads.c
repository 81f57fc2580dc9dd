/*
 * Unit test of requests of one node from several threads, with real IOThreads
 * and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "iothread.h"

#define NUM_THREADS 4

/*
 * What overlaps is serialised, whatever threads it is from
 */

#define BLOCK       4096    /* what the node can write */
#define SECTOR      512     /* what a thread writes of it */
#define ROUNDS      300

typedef struct Writer {
    BlockBackend *blk;
    IOThread *iothread;
    unsigned index;
    unsigned rounds;
    bool done;          /* atomic */
} Writer;

/*
 * Each thread counts in its own sector, all sectors are in one block.  The
 * block layer has to read and write the block as a whole; one that gets in
 * between undoes what another has written.
 */
static void coroutine_fn count_in_sector(void *opaque)
{
    Writer *w = opaque;
    int64_t offset = w->index * SECTOR;
    uint64_t buf[SECTOR / sizeof(uint64_t)] = { 0 };

    for (unsigned i = 0; i < w->rounds; i++) {
        g_assert_cmpint(blk_co_pread(w->blk, offset, SECTOR, buf, 0), ==, 0);
        g_assert_cmpuint(le64_to_cpu(buf[0]), ==, i);
        buf[0] = cpu_to_le64(i + 1);
        g_assert_cmpint(blk_co_pwrite(w->blk, offset, SECTOR, buf, 0), ==, 0);
    }
    qatomic_set(&w->done, true);
    aio_wait_kick();
}

static BlockBackend *open_file(char *path, size_t align)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "blkdebug");
    qdict_put_int(options, "align", align);
    qdict_put_str(options, "image.driver", "file");
    qdict_put_str(options, "image.filename", path);
    return blk_new_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
}

static char *make_file(size_t size)
{
    char *path = g_strdup("/tmp/test-blk-threads.XXXXXX");
    int fd = g_mkstemp(path);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    close(fd);
    return path;
}

static void test_overlapping_writes(void)
{
    g_autofree char *path = make_file(BLOCK);
    BlockBackend *blk = open_file(path, BLOCK);
    Writer writers[NUM_THREADS];

    for (unsigned i = 0; i < NUM_THREADS; i++) {
        Writer *w = &writers[i];

        *w = (Writer) {
            .blk = blk,
            .iothread = iothread_new(),
            .index = i,
            .rounds = ROUNDS,
        };
        aio_co_enter(iothread_get_aio_context(w->iothread),
                     qemu_coroutine_create(count_in_sector, w));
    }
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        AIO_WAIT_WHILE_UNLOCKED(NULL, !qatomic_read(&writers[i].done));
        iothread_join(writers[i].iothread);
    }
    blk_drain(blk);
    blk_unref(blk);
    g_assert_cmpint(unlink(path), ==, 0);
}

/*
 * Writes that extend the image
 */

#define GROW_ROUNDS 100000

static int coroutine_fn grow_pwritev(BlockDriverState *bs, int64_t offset,
                                     int64_t bytes, QEMUIOVector *qiov,
                                     BdrvRequestFlags flags)
{
    return 0;
}

static BlockDriver bdrv_grow = {
    .format_name        = "grow",
    .bdrv_co_pwritev    = grow_pwritev,
};

typedef struct Grower {
    BlockBackend *blk;
    IOThread *iothread;
    unsigned *next;         /* atomic: the first sector behind the image */
    unsigned short_by;      /* how often the image was shorter than written */
    bool done;              /* atomic */
} Grower;

/* What a thread has written belongs to the image, whatever others do. */
static void coroutine_fn grow(void *opaque)
{
    Grower *g = opaque;
    uint8_t buf[BDRV_SECTOR_SIZE] = { 0 };

    for (unsigned i = 0; i < GROW_ROUNDS; i++) {
        int64_t offset =
            (int64_t)qatomic_fetch_inc(g->next) * BDRV_SECTOR_SIZE;

        g_assert_cmpint(blk_co_pwrite(g->blk, offset, sizeof(buf), buf, 0),
                        ==, 0);
        g->short_by += blk_getlength(g->blk) < offset + sizeof(buf);
    }
    qatomic_set(&g->done, true);
    aio_wait_kick();
}

static void test_growing(void)
{
    BlockDriverState *bs = bdrv_new_open_driver(&bdrv_grow, "grow",
                                                BDRV_O_RDWR, &error_abort);
    BlockBackend *blk = blk_new(qemu_get_aio_context(),
                                BLK_PERM_WRITE | BLK_PERM_RESIZE,
                                BLK_PERM_ALL);
    Grower growers[NUM_THREADS];
    unsigned next = 0;

    g_assert_cmpint(blk_insert_bs(blk, bs, &error_abort), ==, 0);
    blk_set_allow_write_beyond_eof(blk, true);
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        Grower *g = &growers[i];

        *g = (Grower) {
            .blk = blk,
            .iothread = iothread_new(),
            .next = &next,
        };
        aio_co_enter(iothread_get_aio_context(g->iothread),
                     qemu_coroutine_create(grow, g));
    }
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        AIO_WAIT_WHILE_UNLOCKED(NULL, !qatomic_read(&growers[i].done));
        iothread_join(growers[i].iothread);
        g_assert_cmpuint(growers[i].short_by, ==, 0);
    }
    g_assert_cmpint(blk_getlength(blk), ==, (int64_t)next * BDRV_SECTOR_SIZE);
    bdrv_unref(bs);
    blk_unref(blk);
}

/*
 * Drains that don't wait: whatever was queued for one goes on when it ends
 */

typedef struct Reader {
    BlockBackend *blk;
    IOThread *iothread;
    unsigned served;        /* atomic */
    bool stop;              /* atomic */
    bool done;              /* atomic */
} Reader;

static void coroutine_fn read_on(void *opaque)
{
    Reader *r = opaque;
    uint8_t buf[SECTOR];

    while (!qatomic_read(&r->stop)) {
        g_assert_cmpint(blk_co_pread(r->blk, 0, SECTOR, buf, 0), ==, 0);
        qatomic_inc(&r->served);
        /* Let bottom halves run, as an event loop does. */
        aio_co_schedule(qemu_get_current_aio_context(),
                        qemu_coroutine_self());
        qemu_coroutine_yield();
    }
    qatomic_set(&r->done, true);
    aio_wait_kick();
}

static void start_readers(Reader *readers, BlockBackend *blk)
{
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        Reader *r = &readers[i];

        *r = (Reader) { .blk = blk, .iothread = iothread_new() };
        aio_co_enter(iothread_get_aio_context(r->iothread),
                     qemu_coroutine_create(read_on, r));
    }
}

static void stop_readers(Reader *readers)
{
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        qatomic_set(&readers[i].stop, true);
        AIO_WAIT_WHILE_UNLOCKED(NULL, !qatomic_read(&readers[i].done));
        iothread_join(readers[i].iothread);
    }
}

#define NOPOLL_ROUNDS   1000
#define PATIENCE        1000000 /* a guard: 100 seconds at least */

/* One request more; the next drain would wake up one that was forgotten. */
static void expect_progress(Reader *r)
{
    unsigned served = qatomic_read(&r->served);
    unsigned looks = 0;

    for (unsigned i = 0; qatomic_read(&r->served) == served; i++) {
        if (i > 1000) {
            g_assert_cmpuint(looks++, <, PATIENCE);
            g_usleep(100);
        }
    }
}

static void test_drain_nopoll(void)
{
    QDict *options = qdict_new();
    Reader readers[NUM_THREADS];
    BlockBackend *blk;

    qdict_put_str(options, "driver", "null-co");
    blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
    start_readers(readers, blk);
    for (unsigned round = 0; round < NOPOLL_ROUNDS; round++) {
        /* As bdrv_graph_wrlock() does */
        bdrv_drain_all_begin_nopoll();
        bdrv_drain_all_end();
        for (unsigned i = 0; i < NUM_THREADS; i++) {
            expect_progress(&readers[i]);
        }
    }
    stop_readers(readers);
    blk_unref(blk);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/blk-threads/overlapping-writes",
                    test_overlapping_writes);
    g_test_add_func("/blk-threads/growing", test_growing);
    g_test_add_func("/blk-threads/drain-nopoll", test_drain_nopoll);
    return g_test_run();
}
