/*
 * A number for each thread, to keep threads out of each other's cache lines
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/thread-shard.h"

QEMU_DEFINE_CO_TLS(unsigned, thread_shard_number)

unsigned thread_shard_first(void)
{
    static unsigned given;
    unsigned shard = qatomic_fetch_inc(&given) % THREAD_SHARDS;

    set_thread_shard_number(shard + 1);
    return shard;
}
