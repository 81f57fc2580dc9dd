/*
 * What unit tests of drains share: a disk, and a mirror job that is held up
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TEST_BLK_DRAIN_UTIL_H
#define TEST_BLK_DRAIN_UTIL_H

#include "block/blockjob_int.h"
#include "system/block-backend.h"
#include "iothread-call.h"

#define SECTOR      512
#define DISK_SIZE   (1 << 20)

/*
 * Returns a BlockBackend with a disk of DISK_SIZE that does nothing: at once,
 * or for so many nanoseconds of each request.
 */
BlockBackend *new_null_blk(void);
BlockBackend *new_slow_blk(int64_t latency_ns);

int coroutine_fn do_read(BlockBackend *blk);

/* A mirror job in an IOThread. There is one at a time. */
typedef struct Mirror {
    IOThread *iothread;
    BlockBackend *blk;      /* of the source, as a device has it */
    BlockDriverState *src;
    Job *job;
} Mirror;

/* All to be called in the main loop */
void mirror_begin(Mirror *m);
void mirror_end(Mirror *m);

/* Returns when the job's source is drained, and the flush held up. */
void mirror_complete_begin(Mirror *m);

/* Is the target's flush held up?  Let it go on (a QEMUBHFunc). */
bool mirror_flush_active(void);
void mirror_release_flush(void *opaque);

#endif
