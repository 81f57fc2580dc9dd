/*
 * Unit test of requests of one node from several threads, with real IOThreads
 * and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "iothread-call.h"

#define NUM_THREADS 4

/*
 * What overlaps is serialised, whatever threads it is from
 */

#define BLOCK       4096    /* what the node can write */
#define SECTOR      512     /* what a thread writes of it */
#define ROUNDS      300

typedef struct Writer {
    BlockBackend *blk;
    IOThreadCo co;
    unsigned index;
    unsigned rounds;
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

        *w = (Writer) { .blk = blk, .index = i, .rounds = ROUNDS };
        iothread_co_start(&w->co, count_in_sector, w);
    }
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        iothread_co_join(&writers[i].co);
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
    IOThreadCo co;
    unsigned *next;         /* atomic: the first sector behind the image */
    unsigned short_by;      /* how often the image was shorter than written */
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

        *g = (Grower) { .blk = blk, .next = &next };
        iothread_co_start(&g->co, grow, g);
    }
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        iothread_co_join(&growers[i].co);
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
    IOThreadCo co;
    unsigned served;        /* atomic */
} Reader;

static void coroutine_fn read_on(void *opaque)
{
    Reader *r = opaque;
    uint8_t buf[SECTOR];

    do {
        g_assert_cmpint(blk_co_pread(r->blk, 0, SECTOR, buf, 0), ==, 0);
        qatomic_inc(&r->served);
    } while (iothread_co_goes_on(&r->co));
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
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        readers[i] = (Reader) { .blk = blk };
        iothread_co_start(&readers[i].co, read_on, &readers[i]);
    }
    for (unsigned round = 0; round < NOPOLL_ROUNDS; round++) {
        /* As bdrv_graph_wrlock() does */
        bdrv_drain_all_begin_nopoll();
        bdrv_drain_all_end();
        for (unsigned i = 0; i < NUM_THREADS; i++) {
            expect_progress(&readers[i]);
        }
    }
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        iothread_co_stop(&readers[i].co);
    }
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
