/*
 * What unit tests of drains share: a disk, and a mirror job that is held up
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
#include "blk-drain-util.h"

BlockBackend *new_slow_blk(int64_t latency_ns)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "null-co");
    qdict_put_int(options, "size", DISK_SIZE);
    qdict_put_int(options, "latency-ns", latency_ns);
    return blk_new_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
}

BlockBackend *new_null_blk(void)
{
    return new_slow_blk(0);
}

int coroutine_fn do_read(BlockBackend *blk)
{
    uint8_t buf[SECTOR];

    return blk_co_pread(blk, 0, sizeof(buf), buf, 0);
}

/* The target's flush: the second one, of the job's end, is held up. */
static struct {
    unsigned calls;         /* atomic */
    bool active;            /* atomic */
    Coroutine *co;
} flush;

static int coroutine_fn target_flush(BlockDriverState *bs)
{
    if (qatomic_fetch_inc(&flush.calls) == 1) {
        flush.co = qemu_coroutine_self();
        qatomic_store_release(&flush.active, true);
        aio_wait_kick();
        qemu_coroutine_yield();
        qatomic_set(&flush.active, false);
    }
    return 0;
}

static BlockDriver bdrv_target = {
    .format_name    = "target",
    .bdrv_co_flush  = target_flush,
};

bool mirror_flush_active(void)
{
    return qatomic_load_acquire(&flush.active);
}

void mirror_release_flush(void *opaque)
{
    aio_co_wake(flush.co);
}

void mirror_begin(Mirror *m)
{
    BlockDriverState *target = bdrv_new_open_driver(&bdrv_target, "target",
                                                    BDRV_O_RDWR, &error_abort);
    AioContext *ctx;

    m->iothread = iothread_new();
    ctx = iothread_get_aio_context(m->iothread);
    m->blk = new_null_blk();
    m->src = blk_bs(m->blk);
    bdrv_ref(m->src);
    target->total_sectors = DISK_SIZE / BDRV_SECTOR_SIZE;
    bdrv_try_change_aio_context(target, ctx, NULL, &error_abort);
    g_assert_cmpint(blk_set_aio_context(m->blk, ctx, &error_abort), ==, 0);
    flush.calls = 0;
    mirror_start("job", m->src, target, NULL, JOB_DEFAULT, 0, 0, 0,
                 MIRROR_SYNC_MODE_NONE, MIRROR_LEAVE_BACKING_CHAIN, false,
                 BLOCKDEV_ON_ERROR_REPORT, BLOCKDEV_ON_ERROR_REPORT, false,
                 NULL, MIRROR_COPY_MODE_BACKGROUND, &error_abort);
    bdrv_unref(target);
    WITH_JOB_LOCK_GUARD() {
        m->job = job_get_locked("job");
        g_assert_true(m->job->aio_context == ctx);
    }
    AIO_WAIT_WHILE_UNLOCKED(NULL, !job_is_ready(m->job));
}

void mirror_complete_begin(Mirror *m)
{
    WITH_JOB_LOCK_GUARD() {
        job_complete_locked(m->job, &error_abort);
    }
    AIO_WAIT_WHILE_UNLOCKED(NULL, !mirror_flush_active());
}

static Job *find_job(void)
{
    JOB_LOCK_GUARD();
    return job_get_locked("job");
}

void mirror_end(Mirror *m)
{
    AIO_WAIT_WHILE_UNLOCKED(NULL, find_job());
    bdrv_unref(m->src);
    blk_unref(m->blk);
    iothread_join(m->iothread);
}
