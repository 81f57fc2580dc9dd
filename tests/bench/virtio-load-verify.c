/*
 * virtio-load: data that know where they belong
 *
 * Each request slot has blocks of its own, so no two requests in flight meet in
 * one.  Every 8 bytes of a block are made from its LUN, its address and how
 * often it has been written; what is read must be what was written last.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "virtio-load.h"

/* Slots that share a LUN; they take its blocks in turn. */
static unsigned sharers(const Load *l)
{
    return DIV_ROUND_UP(l->o->queues * l->o->depth, l->o->luns);
}

static uint64_t own_blocks(const Load *l, const LoadIo *io)
{
    uint64_t blocks = l->luns[io->lun].blocks;

    return blocks <= io->rank ? 0
                              : (blocks - 1 - io->rank) / sharers(l) + 1;
}

void load_verify_init(Load *l)
{
    for (unsigned i = 0; i < l->o->luns; i++) {
        LoadLun *lun = &l->luns[i];

        if (lun->blocks < sharers(l)) {
            load_die("--verify: disk %u has %" PRIu64 " blocks to use, fewer "
                     "than its %u requests in flight", i, lun->blocks,
                     sharers(l));
        }
        lun->generation = g_new0(uint32_t, lun->blocks);
    }
}

/* Where the slot goes next; false when all its blocks have been filled */
bool load_verify_next(const Load *l, LoadIo *io)
{
    uint64_t n = own_blocks(l, io);
    uint64_t k = io->next;

    if (l->phase == PHASE_FILL && k == n) {
        return false;
    }
    if (l->phase != PHASE_FILL && l->o->random) {
        /* some steps ahead, others for each slot */
        k += 1 + (io->start_ns ^ io->rank) % n;
    }
    k %= n;
    io->next = k + 1;
    io->block = k * sharers(l) + io->rank;
    io->generation = l->luns[io->lun].generation[io->block];
    return true;
}

static uint64_t pattern(const LoadIo *io, uint32_t generation, unsigned i)
{
    uint64_t x = io->block << 24 ^ (uint64_t)generation << 44 ^
                 (uint64_t)io->lun << 12 ^ i;

    x *= 0x9e3779b97f4a7c15ull;
    return x ^ x >> 29;
}

/* A buffer that is read into gets anything else. */
void load_verify_fill(const Load *l, const LoadIo *io, uint8_t *data)
{
    if (!io->write) {
        memset(data, 0xee, l->o->bs);
        return;
    }
    for (unsigned i = 0; i < l->o->bs; i += 8) {
        stq_le_p(data + i, pattern(io, io->generation + 1, i));
    }
}

void load_verify_check(const Load *l, const LoadIo *io, const uint8_t *data)
{
    for (unsigned i = 0; !io->write && i < l->o->bs; i += 8) {
        uint64_t want = pattern(io, io->generation, i);
        uint64_t got = ldq_le_p(data + i);

        if (got != want) {
            load_die("wrong data: LUN %u, block %" PRIu64 " (of %u bytes), "
                     "generation %u, at byte %u: read %016" PRIx64
                     ", expected %016" PRIx64, io->lun, io->block, l->o->bs,
                     io->generation, i, got, want);
        }
    }
}

void load_verify_done(Load *l, const LoadIo *io)
{
    if (io->write) {
        l->luns[io->lun].generation[io->block]++;
    }
}
