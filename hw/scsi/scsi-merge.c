/*
 * READs and WRITEs of one batch that are neighbours become one I/O
 *
 * See "Merging" in docs/devel/virtio-scsi-threads.rst.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/defer-call.h"
#include "qemu/host-utils.h"
#include "block/accounting.h"
#include "hw/scsi/scsi-merge.h"

QEMU_DEFINE_CO_TLS(SCSIMergeBatch *, scsi_merge_batch);

/*
 * Plan
 */

static uint64_t entry_end(const SCSIMergeEntry *e)
{
    return e->offset + e->bytes;
}

/* Does @b go on where @a ends? */
static bool is_next(const SCSIMergeEntry *a, const SCSIMergeEntry *b)
{
    return entry_end(a) == b->offset && a->lun == b->lun &&
           a->write == b->write;
}

/* A hash of places where a request may begin */
#define BUCKET_BITS 8

static unsigned bucket_of(uint64_t offset)
{
    /* The factor is 2^32 divided by the golden ratio. */
    return (uint32_t)(offset >> 9) * 0x9e3779b1u >> (32 - BUCKET_BITS);
}

/*
 * Random I/O has no neighbours, and must find that out quickly: look for each
 * end in a hash table of beginnings.
 */
bool scsi_merge_has_neighbours(SCSIMergeEntry *entries, unsigned num)
{
    uint8_t bucket[1 << BUCKET_BITS] = { 0 }; /* number of an entry, plus one */
    SCSIMergeEntry *e = entries;

    for (unsigned i = 1; i <= num; i++, e++) {
        uint8_t *newest = &bucket[bucket_of(e->offset)];

        e->older = *newest;
        *newest = i;
    }
    for (e = entries; e != entries + num; e++) {
        unsigned n = bucket[bucket_of(entry_end(e))];

        for (; n; n = entries[n - 1].older) {
            if (is_next(e, &entries[n - 1])) {
                return true;
            }
        }
    }
    return false;
}

static bool comes_before(const SCSIMergeEntry *a, const SCSIMergeEntry *b)
{
    if (a->lun != b->lun) {
        return (uintptr_t)a->lun < (uintptr_t)b->lun;
    }
    return a->offset < b->offset;
}

/*
 * By LUN and offset.  What comes from a guest is sorted for the most part, and
 * then this takes linear time.
 */
static void sort_entries(const SCSIMergeEntry *e, unsigned num, uint8_t *order)
{
    for (unsigned i = 0; i < num; i++) {
        unsigned k = i;

        for (; k && comes_before(&e[i], &e[order[k - 1]]); k--) {
            order[k] = order[k - 1];
        }
        order[k] = i;
    }
}

/* Which of the sorted entries overlap another one? */
static uint64_t find_overlaps(const SCSIMergeEntry *e, unsigned num,
                              const uint8_t *order)
{
    const SCSIMergeEntry *furthest = &e[order[0]];
    uint64_t overlaps = 0;

    QEMU_BUILD_BUG_ON(SCSI_MERGE_MAX > 64);
    for (unsigned k = 1; k < num; k++) {
        const SCSIMergeEntry *before = &e[order[k - 1]];
        const SCSIMergeEntry *here = &e[order[k]];

        if (here->lun != furthest->lun) {
            furthest = here;
            continue;
        }
        if (here->offset < entry_end(furthest)) {
            overlaps |= 1ull << k;
        }
        if (here->offset < entry_end(before)) {
            overlaps |= 1ull << (k - 1);
        }
        if (entry_end(here) > entry_end(furthest)) {
            furthest = here;
        }
    }
    return overlaps;
}

uint64_t scsi_merge_plan(const SCSIMergeEntry *e, unsigned num, uint8_t *next)
{
    uint8_t order[SCSI_MERGE_MAX];
    uint64_t overlaps, firsts = 0, bytes = 0;
    unsigned niov = 0;

    assert(num && num <= SCSI_MERGE_MAX);
    sort_entries(e, num, order);
    overlaps = find_overlaps(e, num, order);

    for (unsigned k = 0; k < num; k++) {
        const SCSIMergeEntry *here = &e[order[k]];
        unsigned before = k ? order[k - 1] : 0;

        bytes += here->bytes;
        niov += here->niov;
        next[order[k]] = SCSI_MERGE_END;
        if (k && !(overlaps >> (k - 1) & 3) && is_next(&e[before], here) &&
            bytes <= qatomic_read(&here->lun->max_transfer) &&
            niov <= qatomic_read(&here->lun->max_iov)) {
            next[before] = order[k];
        } else {
            firsts |= 1ull << order[k];
            bytes = here->bytes;
            niov = here->niov;
        }
    }
    return firsts;
}

/*
 * Several requests, one I/O
 */

typedef struct MergedIO {
    SCSIMergeLun *lun;
    BlockBackend *blk;
    uint64_t offset;
    bool write;
    QEMUIOVector iov;           /* of all of them */
    unsigned num;
    SCSIRequest *reqs[];        /* in the order of their data */
} MergedIO;

/*
 * An error, or a short transfer, is that of one request as a rule, and nobody
 * knows whose.  So each tries again by itself, and gets its own result.  Not if
 * nothing was tried: a drain has held it back, or there is no medium; nor if
 * nobody wants to know any more.
 */
static bool must_try_again(const SCSIRequest *req, int ret)
{
    return ret && ret != -ECANCELED && ret != -ENOMEDIUM && !req->io_canceled;
}

static void coroutine_fn merged_co_entry(void *opaque)
{
    g_autofree MergedIO *io = opaque;
    const SCSIMergeOps *ops = io->lun->ops;
    BlockBackend *blk = io->blk;
    int ret;

    if (io->write) {
        ret = blk_co_pwritev_counted(blk, io->offset, &io->iov, 0);
    } else {
        ret = blk_co_preadv_counted(blk, io->offset, &io->iov, 0);
    }
    qemu_iovec_destroy(&io->iov);

    /* One interrupt for all of them, and one system call */
    defer_call_begin();
    for (unsigned i = 0; i < io->num; i++) {
        if (must_try_again(io->reqs[i], ret)) {
            scsi_merge_submit_alone(io->lun, io->reqs[i]);
        } else {
            ops->complete(io->reqs[i], ret);
        }
    }
    defer_call_end();
    blk_dec_in_flight(blk);
}

static void submit_merged(const SCSIMergeEntry *e, unsigned i,
                          const uint8_t *next)
{
    MergedIO *io = g_malloc(sizeof(*io) +
                            SCSI_MERGE_MAX * sizeof(io->reqs[0]));
    enum BlockAcctType type = e[i].write ? BLOCK_ACCT_WRITE : BLOCK_ACCT_READ;
    unsigned niov = 0;

    *io = (MergedIO) {
        .lun = e[i].lun,
        .blk = e[i].req->dev->conf.blk,
        .offset = e[i].offset,
        .write = e[i].write,
    };
    for (; i != SCSI_MERGE_END; i = next[i]) {
        io->reqs[io->num++] = e[i].req;
        niov += e[i].niov;
    }
    qemu_iovec_init(&io->iov, niov);
    for (i = 0; i < io->num; i++) {
        QEMUIOVector *iov = io->reqs[i]->iov;

        qemu_iovec_concat(&io->iov, iov, 0, iov->size);
    }
    block_acct_merge_done(blk_get_stats(io->blk), type, io->num - 1);
    blk_inc_in_flight(io->blk);
    qemu_coroutine_enter(qemu_coroutine_create(merged_co_entry, io));
}

static void submit_groups(const SCSIMergeEntry *e, unsigned num)
{
    uint8_t next[SCSI_MERGE_MAX];
    uint64_t firsts = scsi_merge_plan(e, num, next);

    for (; firsts; firsts &= firsts - 1) {
        unsigned i = ctz64(firsts);

        if (next[i] == SCSI_MERGE_END) {
            scsi_merge_submit_alone(e[i].lun, e[i].req);
        } else {
            submit_merged(e, i, next);
        }
    }
}

/*
 * Batches
 */

void scsi_merge_begin(SCSIMergeBatch *batch)
{
    batch->outer = get_scsi_merge_batch();
    batch->num = 0;
    set_scsi_merge_batch(batch);
}

void scsi_merge_end(SCSIMergeBatch *batch)
{
    unsigned num = batch->num;

    assert(get_scsi_merge_batch() == batch);
    set_scsi_merge_batch(batch->outer);

    if (num > 1 && scsi_merge_has_neighbours(batch->entries, num)) {
        submit_groups(batch->entries, num);
        return;
    }
    for (SCSIMergeEntry *e = batch->entries; num; e++, num--) {
        scsi_merge_submit_alone(e->lun, e->req);
    }
}

void scsi_merge_set_limits(SCSIMergeLun *lun, uint32_t max_transfer,
                           uint32_t max_iov)
{
    qatomic_set(&lun->max_transfer, max_transfer);
    qatomic_set(&lun->max_iov, MIN(max_iov, IOV_MAX));
}
