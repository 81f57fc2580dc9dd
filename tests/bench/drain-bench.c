/*
 * How long a drain takes: of a node with many parents, and below a long chain
 *
 * It uses nothing of ours, so that it can be linked with stock QEMU's block
 * layer, too: scripts/bench/bench-drain does both.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "../unit/iothread.h"

#define DRAINS  500
#define ROUNDS  30

#define MAX_THREADS 16

/* They have used the node that is drained, and are idle. */
static IOThread *iothreads[MAX_THREADS];
static unsigned num_threads;

/* The best of ROUNDS: nanoseconds for a drain, begin and end */
static double time_drains(BlockDriverState *bs)
{
    int64_t best = INT64_MAX;

    for (unsigned round = 0; round < ROUNDS; round++) {
        int64_t start = get_clock();

        for (unsigned i = 0; i < DRAINS; i++) {
            bdrv_drained_begin(bs);
            bdrv_drained_end(bs);
        }
        best = MIN(best, get_clock() - start);
    }
    return (double)best / DRAINS;
}

/* @depth filters above a null device */
static BlockBackend *open_chain(unsigned depth)
{
    g_autoptr(GString) prefix = g_string_new("");
    QDict *options = qdict_new();

    for (unsigned i = 0; i <= depth; i++) {
        g_autofree char *key = g_strdup_printf("%sdriver", prefix->str);

        qdict_put_str(options, key, i < depth ? "raw" : "null-co");
        g_string_append(prefix, "file.");
    }
    return blk_new_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
}

static void coroutine_fn read_entry(void *opaque)
{
    BlockBackend *blk = opaque;
    uint8_t buf[BDRV_SECTOR_SIZE];

    if (blk_co_pread(blk, 0, sizeof(buf), buf, 0) < 0) {
        abort();
    }
}

static void read_bh(void *opaque)
{
    qemu_coroutine_enter(qemu_coroutine_create(read_entry, opaque));
}

/* Each IOThread has used the node. */
static void read_in_threads(BlockBackend *blk)
{
    for (unsigned i = 0; i < num_threads; i++) {
        aio_wait_bh_oneshot(iothread_get_aio_context(iothreads[i]), read_bh,
                            blk);
    }
}

static double bench_chain(unsigned depth)
{
    BlockBackend *blk = open_chain(depth);
    BlockDriverState *bs = blk_bs(blk);
    double ns;

    read_in_threads(blk);
    bdrv_graph_rdlock_main_loop();
    while (!QLIST_EMPTY(&bs->children)) {
        bs = QLIST_FIRST(&bs->children)->bs;
    }
    bdrv_graph_rdunlock_main_loop();
    ns = time_drains(bs);
    blk_unref(blk);
    return ns;
}

static double bench_parents(unsigned parents)
{
    g_autofree BlockBackend **blk = g_new(BlockBackend *, parents);
    BlockDriverState *bs;
    double ns;

    blk[0] = open_chain(0);
    bs = blk_bs(blk[0]);
    read_in_threads(blk[0]);
    for (unsigned i = 1; i < parents; i++) {
        blk[i] = blk_new_with_bs(bs, 0, BLK_PERM_ALL, &error_abort);
    }
    ns = time_drains(bs);
    for (unsigned i = 0; i < parents; i++) {
        blk_unref(blk[i]);
    }
    return ns;
}

static void bench(unsigned threads)
{
    while (num_threads < threads) {
        iothreads[num_threads++] = iothread_new();
    }
    printf("single-%u-threads %.0f\n", threads, bench_parents(1));
    printf("parents-200-%u-threads %.0f\n", threads, bench_parents(200));
    printf("chain-50-%u-threads %.0f\n", threads, bench_chain(50));
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    bench(0);
    bench(1);
    bench(4);
    bench(MAX_THREADS);
    while (num_threads) {
        iothread_join(iothreads[--num_threads]);
    }
    printf("sizeof-BlockDriverState %zu\n", sizeof(BlockDriverState));
    return 0;
}
