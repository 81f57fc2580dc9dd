/*
 * READs and WRITEs of one batch that are neighbours become one I/O
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SCSI_SCSI_MERGE_H
#define HW_SCSI_SCSI_MERGE_H

#include "qemu/coroutine.h"
#include "qemu/coroutine-tls.h"
#include "qemu/iov.h"
#include "hw/scsi/scsi.h"
#include "system/block-backend.h"

/* A batch has room for so many; what comes then stays alone. */
#define SCSI_MERGE_MAX 64

/* No other request comes after this one in its group. */
#define SCSI_MERGE_END UINT8_MAX

/**
 * SCSIMergeOps: what a LUN does with a request of its own
 *
 * @alone: do the I/O of this request alone; @opaque is the SCSIRequest.  Calls
 *         blk_dec_in_flight() at the end.
 * @complete: the I/O has ended, for this request as well, with 0 or -errno
 *
 * Context: the request's AioContext; @complete in a coroutine, too.
 */
typedef struct SCSIMergeOps {
    CoroutineEntry *alone;
    void (*complete)(SCSIRequest *req, int ret);
} SCSIMergeOps;

/** SCSIMergeLun: what merging has to know of a LUN, whose part it is */
typedef struct SCSIMergeLun {
    const SCSIMergeOps *ops;    /* constant, like @enabled */
    bool enabled;
    uint32_t max_transfer;      /* bytes; written by the main loop, atomic */
    uint32_t max_iov;           /* buffers; the same */
} SCSIMergeLun;

/** SCSIMergeEntry: a request that waits for the end of its batch */
typedef struct SCSIMergeEntry {
    SCSIMergeLun *lun;
    SCSIRequest *req;
    uint64_t offset;
    uint32_t bytes;
    uint16_t niov;
    bool write;
    uint8_t older;              /* scsi_merge_has_neighbours()'s own */
} SCSIMergeEntry;

/**
 * SCSIMergeBatch: what a handler has found so far
 *
 * Belongs to the AioContext of the handler.  Nothing in it outlives that.
 */
typedef struct SCSIMergeBatch {
    struct SCSIMergeBatch *outer;
    unsigned num;
    SCSIMergeEntry entries[SCSI_MERGE_MAX];
} SCSIMergeBatch;

/* The innermost batch of this thread, or NULL */
QEMU_DECLARE_CO_TLS(SCSIMergeBatch *, scsi_merge_batch);

/**
 * scsi_merge_begin:
 * @batch: the caller's; needs no initialization
 *
 * From now on scsi_merge_submit() collects what this thread has for it.
 * Batches nest, each for itself.  Between this and scsi_merge_end() the event
 * loop must not run.
 *
 * Context: any AioContext, not in a coroutine.
 */
void scsi_merge_begin(SCSIMergeBatch *batch);

/**
 * scsi_merge_end:
 * @batch: the one that was begun last
 *
 * Submit what was collected.  Call it before defer_call_end(), or the block
 * drivers get one system call for each request.
 *
 * Context: that of scsi_merge_begin().
 */
void scsi_merge_end(SCSIMergeBatch *batch);

/**
 * scsi_merge_set_limits:
 * @lun: part of a LUN
 * @max_transfer: bytes that one I/O may move
 * @max_iov: buffers that one I/O may have
 *
 * Context: main loop.
 */
void scsi_merge_set_limits(SCSIMergeLun *lun, uint32_t max_transfer,
                           uint32_t max_iov);

/**
 * scsi_merge_submit_alone:
 * @lun: part of the request's LUN
 * @req: a request that is ready to move data from or to req->iov
 *
 * Context: the request's AioContext.
 */
static inline void scsi_merge_submit_alone(SCSIMergeLun *lun, SCSIRequest *req)
{
    blk_inc_in_flight(req->dev->conf.blk);
    qemu_coroutine_enter(qemu_coroutine_create(lun->ops->alone, req));
}

/**
 * scsi_merge_submit:
 * @lun: part of the request's LUN
 * @req: a request that is ready to move data from or to req->iov
 * @offset: where, in bytes
 *
 * Within a batch @req is submitted at its end, alone or together with others.
 * It is submitted at once if there is no batch, or merging is switched off.
 *
 * Context: the request's AioContext.
 */
static inline void scsi_merge_submit(SCSIMergeLun *lun, SCSIRequest *req,
                                     uint64_t offset)
{
    SCSIMergeBatch *batch = get_scsi_merge_batch();
    SCSIMergeEntry *e;

    if (!batch || !lun->enabled || batch->num == SCSI_MERGE_MAX) {
        scsi_merge_submit_alone(lun, req);
        return;
    }
    e = &batch->entries[batch->num++];
    e->lun = lun;
    e->req = req;
    e->offset = offset;
    e->bytes = req->iov->size;
    e->niov = req->iov->niov;
    e->write = req->cmd.mode == SCSI_XFER_TO_DEV;
}

/**
 * scsi_merge_has_neighbours:
 * @e: requests in the order in which they came
 * @num: how many, at most SCSI_MERGE_MAX
 *
 * Context: any thread.
 * Returns: true if one of them begins where another one of the same LUN and
 * direction ends.
 */
bool scsi_merge_has_neighbours(SCSIMergeEntry *e, unsigned num);

/**
 * scsi_merge_plan:
 * @e: requests in the order in which they came
 * @num: how many, 1 to SCSI_MERGE_MAX
 * @next: filled in: the next one of a request's group, or SCSI_MERGE_END
 *
 * A group is what can be one I/O: the same LUN and direction, each request
 * begins where the one before ends, and together they keep to the limits of the
 * LUN.  A request that overlaps another one stays alone, whatever their
 * directions are: so requests that overlap are submitted in the order in which
 * they came, if groups are submitted in the order of their first requests.
 *
 * Depends on nothing but @e and the limits.  Context: any thread.
 * Returns: a bit for each request that is the first of its group, in the order
 * of their data.
 */
uint64_t scsi_merge_plan(const SCSIMergeEntry *e, unsigned num, uint8_t *next);

#endif /* HW_SCSI_SCSI_MERGE_H */
