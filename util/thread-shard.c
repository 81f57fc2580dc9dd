/*
 * A number for each thread, to keep threads out of each other's cache lines
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/thread-shard.h"

/* 0: none yet */
static __thread unsigned mine;
static unsigned given;

/* Not inline: a coroutine may go on in another thread between two calls. */
unsigned thread_shard(void)
{
    if (unlikely(!mine)) {
        mine = 1 + qatomic_fetch_inc(&given) % THREAD_SHARDS;
    }
    return mine - 1;
}
