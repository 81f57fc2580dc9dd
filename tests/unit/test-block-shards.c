/*
 * Unit test of what the block layer keeps by thread: requests in flight
 * and statistics, with real IOThreads and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/accounting.h"
#include "block/block_int.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/thread-shard.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "iothread-call.h"

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
 * Drain: nothing is in flight when it returns
 */

#define SIZE        4096
#define SECTOR      512
#define ROUNDS      300

static BlockBackend *open_file(char *path)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "blkdebug");
    qdict_put_int(options, "align", SECTOR);
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

typedef struct Reader {
    BlockBackend *blk;
    IOThreadCo co;
    unsigned in_flight;     /* atomic */
} Reader;

static void coroutine_fn read_on(void *opaque)
{
    Reader *r = opaque;
    uint8_t buf[SECTOR];

    do {
        QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, buf, SECTOR);

        /* As the requests of a device: counted until they are dealt with */
        blk_inc_in_flight(r->blk);
        qatomic_inc(&r->in_flight);
        g_assert_cmpint(blk_co_preadv_counted(r->blk, 0, &qiov, 0), ==, 0);
        qatomic_dec(&r->in_flight);
        blk_dec_in_flight(r->blk);
    } while (iothread_co_goes_on(&r->co));
}

static void test_drain(void)
{
    g_autofree char *path = make_file(SIZE);
    BlockBackend *blk = open_file(path);
    Reader readers[NUM_THREADS];

    for (unsigned i = 0; i < NUM_THREADS; i++) {
        readers[i] = (Reader) { .blk = blk };
        iothread_co_start(&readers[i].co, read_on, &readers[i]);
    }
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
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        iothread_co_stop(&readers[i].co);
    }
    blk_unref(blk);
    g_assert_cmpint(unlink(path), ==, 0);
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
    g_test_add_func("/block-shards/drain", test_drain);
    g_test_add_func("/block-shards/accounting", test_accounting);
    return g_test_run();
}
