/*
 * Unit test of what the block layer keeps by thread: requests in flight,
 * tracked requests and statistics, with real IOThreads and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/accounting.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/main-loop.h"
#include "qemu/thread-shard.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "iothread.h"

#define NUM_THREADS 4

/*
 * Numbers of threads
 */

static void *tell_shard(void *opaque)
{
    unsigned *shard = opaque;

    *shard = thread_shard();
    g_assert_cmpuint(*shard, ==, thread_shard());
    return NULL;
}

static void test_thread_shard(void)
{
    unsigned count[THREAD_SHARDS] = { 0 };

    /* In turn: after two rounds each number was given twice. */
    for (unsigned i = 0; i < 2 * THREAD_SHARDS; i++) {
        QemuThread thread;
        unsigned shard;

        qemu_thread_create(&thread, "shard", tell_shard, &shard,
                           QEMU_THREAD_JOINABLE);
        qemu_thread_join(&thread);
        g_assert_cmpuint(shard, <, THREAD_SHARDS);
        count[shard]++;
    }
    for (unsigned i = 0; i < THREAD_SHARDS; i++) {
        g_assert_cmpuint(count[i], ==, 2);
    }
}

/*
 * Requests in flight
 */

/* Threads hand one request on: each begins its own, then ends the last. */
typedef struct Relay {
    ShardedInFlight in_flight;
    unsigned turn;      /* atomic: how often it was handed on */
    bool stop;          /* atomic */
} Relay;

typedef struct Runner {
    Relay *relay;
    unsigned index;
    QemuThread thread;
} Runner;

static void *run_relay(void *opaque)
{
    Runner *runner = opaque;
    Relay *relay = runner->relay;

    while (!qatomic_read(&relay->stop)) {
        unsigned turn = qatomic_load_acquire(&relay->turn);

        if (turn % NUM_THREADS != runner->index) {
            continue;
        }
        sharded_in_flight_begin(&relay->in_flight);
        sharded_in_flight_end(&relay->in_flight);
        qatomic_store_release(&relay->turn, turn + 1);
    }
    return NULL;
}

/* There is always one, wherever it is; and the reader must never miss it. */
static void test_in_flight_moves(void)
{
    Relay relay = { .turn = 0 };
    Runner runners[NUM_THREADS];
    unsigned looks = 0;

    g_assert_cmpuint(sharded_in_flight(&relay.in_flight), ==, 0);
    sharded_in_flight_begin(&relay.in_flight);
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        runners[i] = (Runner) { .relay = &relay, .index = i };
        qemu_thread_create(&runners[i].thread, "relay", run_relay, &runners[i],
                           QEMU_THREAD_JOINABLE);
    }
    while (looks < 200000 || qatomic_read(&relay.turn) < 2000) {
        g_assert_cmpuint(sharded_in_flight(&relay.in_flight), >, 0);
        looks++;
    }
    qatomic_set(&relay.stop, true);
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        qemu_thread_join(&runners[i].thread);
    }
    sharded_in_flight_end(&relay.in_flight);
    g_assert_cmpuint(sharded_in_flight(&relay.in_flight), ==, 0);
}

/*
 * Tracked requests: what overlaps is serialised, whatever threads it is from
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
    char *path = g_strdup("/tmp/test-block-shards.XXXXXX");
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
 * Drain: nothing is in flight when it returns
 */

typedef struct Reader {
    BlockBackend *blk;
    IOThread *iothread;
    unsigned in_flight;     /* atomic */
    unsigned served;        /* atomic */
    bool stop;              /* atomic */
    bool done;              /* atomic */
} Reader;

static void coroutine_fn read_on(void *opaque)
{
    Reader *r = opaque;
    uint8_t buf[SECTOR];

    while (!qatomic_read(&r->stop)) {
        QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, buf, SECTOR);

        /* As the requests of a device: counted until they are dealt with */
        blk_inc_in_flight(r->blk);
        qatomic_inc(&r->in_flight);
        g_assert_cmpint(blk_co_preadv_counted(r->blk, 0, &qiov, 0), ==, 0);
        qatomic_dec(&r->in_flight);
        qatomic_inc(&r->served);
        blk_dec_in_flight(r->blk);
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

static void test_drain(void)
{
    g_autofree char *path = make_file(BLOCK);
    BlockBackend *blk = open_file(path, SECTOR);
    Reader readers[NUM_THREADS];

    start_readers(readers, blk);
    for (unsigned round = 0; round < ROUNDS; round++) {
        BlockDriverState *bs = blk_bs(blk);

        bdrv_drained_begin(bs);
        /*
         * A reader may be about to queue its request; it is not in flight.  But
         * whatever was, has ended; and none gets through as long as we drain.
         */
        g_assert_cmpuint(sharded_in_flight(&bs->in_flight), ==, 0);
        for (unsigned i = 0; i < 10; i++) {
            g_usleep(10);
            g_assert_cmpuint(sharded_in_flight(&bs->in_flight), ==, 0);
        }
        bdrv_drained_end(bs);
        aio_poll(qemu_get_aio_context(), false);
    }
    stop_readers(readers);
    blk_unref(blk);
    g_assert_cmpint(unlink(path), ==, 0);
}

/*
 * Drains that don't wait: whatever was queued for one goes on when it ends
 */

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

/*
 * Statistics
 */

#define OPS         20000
#define OP_BYTES    512

typedef struct Accountant {
    BlockAcctStats *stats;
    QemuThread thread;
} Accountant;

static void *account(void *opaque)
{
    Accountant *a = opaque;

    for (unsigned i = 0; i < OPS; i++) {
        BlockAcctCookie cookie;

        block_acct_start(a->stats, &cookie, OP_BYTES, BLOCK_ACCT_READ);
        block_acct_done(a->stats, &cookie);
        block_acct_start(a->stats, &cookie, OP_BYTES, BLOCK_ACCT_WRITE);
        block_acct_failed(a->stats, &cookie);
    }
    return NULL;
}

static uint64_t all_bins(const BlockLatencyHistogram *hist)
{
    uint64_t sum = 0;

    for (int i = 0; i < hist->nbins; i++) {
        sum += hist->bins[i];
    }
    return sum;
}

static void check_sums(BlockAcctStats *stats, uint64_t ops)
{
    g_assert_cmpuint(stats->nr_ops[BLOCK_ACCT_READ], ==, ops);
    g_assert_cmpuint(stats->nr_bytes[BLOCK_ACCT_READ], ==, ops * OP_BYTES);
    g_assert_cmpuint(stats->failed_ops[BLOCK_ACCT_READ], ==, 0);
    g_assert_cmpuint(stats->nr_ops[BLOCK_ACCT_WRITE], ==, 0);
    g_assert_cmpuint(stats->failed_ops[BLOCK_ACCT_WRITE], ==, ops);
    g_assert_cmpint(stats->last_access_time_ns, >, 0);
}

/* Nothing is lost or counted twice, however often somebody asks meanwhile. */
static void test_accounting(void)
{
    g_autofree BlockAcctStats *stats = g_new0(BlockAcctStats, 1);
    uint64List boundary = { .value = 1000 };
    Accountant accountants[NUM_THREADS];
    uint64_t before = 0;

    block_acct_init(stats);
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        accountants[i].stats = stats;
        qemu_thread_create(&accountants[i].thread, "account", account,
                           &accountants[i], QEMU_THREAD_JOINABLE);
    }
    while (before < OPS) {
        block_acct_collect(stats);
        g_assert_cmpuint(stats->nr_ops[BLOCK_ACCT_READ], >=, before);
        before = stats->nr_ops[BLOCK_ACCT_READ];
    }
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        qemu_thread_join(&accountants[i].thread);
    }
    block_acct_collect(stats);
    check_sums(stats, NUM_THREADS * OPS);

    /* A histogram that is set up now sees what comes, and only that. */
    g_assert_cmpint(block_latency_histogram_set(stats, BLOCK_ACCT_READ,
                                                &boundary), ==, 0);
    account(&accountants[0]);
    g_assert_cmpuint(all_bins(&stats->latency_histogram[BLOCK_ACCT_READ]), ==,
                     OPS);
    block_acct_collect(stats);
    check_sums(stats, (NUM_THREADS + 1) * OPS);
    block_latency_histograms_clear(stats);
    block_acct_cleanup(stats);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/block-shards/thread-shard", test_thread_shard);
    g_test_add_func("/block-shards/in-flight-moves", test_in_flight_moves);
    g_test_add_func("/block-shards/overlapping-writes",
                    test_overlapping_writes);
    g_test_add_func("/block-shards/growing", test_growing);
    g_test_add_func("/block-shards/drain", test_drain);
    g_test_add_func("/block-shards/drain-nopoll", test_drain_nopoll);
    g_test_add_func("/block-shards/accounting", test_accounting);
    return g_test_run();
}
