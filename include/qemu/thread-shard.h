/*
 * A number for each thread, to keep threads out of each other's cache lines
 *
 * What all threads count, or keep a list of, is split into THREAD_SHARDS parts;
 * each thread changes its own part, and whoever wants to know the whole, which
 * must be seldom, looks at all of them.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_THREAD_SHARD_H
#define QEMU_THREAD_SHARD_H

#include "qemu/atomic.h"
#include "qemu/bitops.h"
#include "qemu/coroutine-tls.h"

#define THREAD_SHARDS 16

/* Parts of a type that is as big as this don't share a cache line. */
#define THREAD_SHARD_ALIGN 64

/* This thread's number + 1; 0: none yet */
QEMU_DECLARE_CO_TLS(unsigned, thread_shard_number)

/* Give this thread its number. */
unsigned thread_shard_first(void);

/**
 * thread_shard:
 *
 * Threads get their numbers in turn when they first ask, so up to THREAD_SHARDS
 * of them have different ones.  More share them; so a part needs a lock or
 * atomic access, but nobody is likely to wait.
 *
 * Context: any thread; a coroutine may go on in another one between two calls.
 * Returns: a number from 0 to THREAD_SHARDS - 1, always the same for a thread.
 */
static inline unsigned thread_shard(void)
{
    unsigned number = get_thread_shard_number();

    return likely(number) ? number - 1 : thread_shard_first();
}

/**
 * ShardedInFlight: how many requests are in flight
 *
 * Both numbers of a part only grow.  One that counted up and down could not be
 * summed up: while one looks at all parts, a request may end in a thread whose
 * part is still to come, after it has begun another one in a thread whose part
 * was already seen; the sum would be 0, though there never were none.
 */
typedef struct ShardedInFlight {
    unsigned long used;     /* atomic: a bit for each part that was ever used */
    struct {
        unsigned long begun;
        unsigned long ended;
        uint8_t padding[THREAD_SHARD_ALIGN - 2 * sizeof(unsigned long)];
    } shard[THREAD_SHARDS];
} ShardedInFlight;

/** sharded_in_flight_begin: one more. Context: any thread. */
static inline void sharded_in_flight_begin(ShardedInFlight *f)
{
    unsigned i = thread_shard();

    /* The first one of a part has begun when everybody knows of the part. */
    if (unlikely(qatomic_fetch_inc(&f->shard[i].begun) == 0)) {
        qatomic_or(&f->used, BIT(i));
    }
}

/** sharded_in_flight_end: one less. Context: any thread. */
static inline void sharded_in_flight_end(ShardedInFlight *f)
{
    unsigned i = thread_shard();

    /* Pairs with the acquire in sharded_in_flight() */
    if (unlikely(qatomic_fetch_inc(&f->shard[i].ended) == 0)) {
        qatomic_or(&f->used, BIT(i));
    }
}

/**
 * sharded_in_flight:
 * @f: all zero in the beginning
 *
 * Context: any thread.
 * Returns: about how many there are; 0 if there was a moment, during the call,
 * with none.  What these requests did is visible to the caller then.
 */
static inline unsigned long sharded_in_flight(const ShardedInFlight *f)
{
    unsigned long left = 0;
    unsigned long used;

    /*
     * First what has ended, then what had begun.  Take the moment in between:
     * by then at least as many have ended as were read, and at most as many
     * have begun as will be read.  If these are equal, so were those.  A part
     * that comes into use meanwhile may be left out of what has ended, but not
     * of what had begun.
     */
    for (used = qatomic_read(&f->used); used; used &= used - 1) {
        left -= qatomic_load_acquire(&f->shard[ctzl(used)].ended);
    }
    for (used = qatomic_load_acquire(&f->used); used; used &= used - 1) {
        left += qatomic_read(&f->shard[ctzl(used)].begun);
    }
    return left;
}

#endif /* QEMU_THREAD_SHARD_H */
