/*
 * Memory of requests: blocks of one size for one AioContext
 *
 * A queue that is kept full has more requests in flight than malloc() caches
 * for a thread.  What was freed last is what is still in the processor's cache,
 * so it is the next to be used.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SCSI_SCSI_POOL_H
#define HW_SCSI_SCSI_POOL_H

/* As many as a virtqueue has entries.  Not if somebody looks for stale uses. */
#ifdef QEMU_SANITIZE_ADDRESS
#define SCSI_POOL_MAX 0
#else
#define SCSI_POOL_MAX 1024
#endif

/** SCSIPool: only one thread at a time may use it */
typedef struct SCSIPool {
    void *first;            /* each free block begins with the next one */
    unsigned num;
    size_t block_size;      /* constant */
} QEMU_ALIGNED(64) SCSIPool;

/** scsi_pool_init: an empty pool of blocks of @block_size bytes */
static inline void scsi_pool_init(SCSIPool *pool, size_t block_size)
{
    *pool = (SCSIPool) { .block_size = block_size };
}

/**
 * scsi_pool_get:
 * @pool: a pool
 * @size: bytes; any, but only up to the block size it is quick
 *
 * Returns: uninitialized memory, to be given back by scsi_pool_put().
 */
static inline void *scsi_pool_get(SCSIPool *pool, size_t size)
{
    void *block = pool->first;

    if (unlikely(!block || size > pool->block_size)) {
        return g_malloc(MAX(size, pool->block_size));
    }
    pool->first = *(void **)block;
    pool->num--;
    return block;
}

/**
 * scsi_pool_put:
 * @pool: a pool with the block size of the one that @block is from
 * @block: what scsi_pool_get() has returned
 * @size: as it was given there
 */
static inline void scsi_pool_put(SCSIPool *pool, void *block, size_t size)
{
    if (unlikely(size > pool->block_size || pool->num == SCSI_POOL_MAX)) {
        g_free(block);
        return;
    }
    *(void **)block = pool->first;
    pool->first = block;
    pool->num++;
}

/** scsi_pool_clear: free what is in the pool */
static inline void scsi_pool_clear(SCSIPool *pool)
{
    while (pool->first) {
        void *block = pool->first;

        pool->first = *(void **)block;
        g_free(block);
    }
    pool->num = 0;
}

#endif /* HW_SCSI_SCSI_POOL_H */
