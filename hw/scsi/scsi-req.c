/*
 * SCSI bus core: life of a request
 *
 *   scsi_req_new        -> parsed, on nobody's list
 *   scsi_req_enqueue    -> on the list of its lane, command sent to the LUN
 *   scsi_req_continue <-> scsi_req_data   (data phase)
 *   scsi_req_complete, scsi_req_complete_failed or scsi_req_cancel_complete
 *   scsi_req_unref      -> freed
 *
 * All of it happens in one AioContext, that of scsi_req_new(), so there is no
 * lock, and the reference count is a plain number.  A request holds no
 * reference to its LUN either: a LUN dies only after each AioContext has been
 * visited and its requests are gone, see scsi_device_abort().
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "block/aio-wait.h"
#include "hw/scsi/scsi-cdb.h"
#include "scsi/constants.h"
#include "system/block-backend.h"
#include "system/dma.h"
#include "trace.h"
#include "scsi-internal.h"

/*
 * Parse
 */

/**
 * scsi_req_parse_cdb:
 * @d: the LUN
 * @cmd: where to store the result
 * @buf: the CDB
 * @buf_len: bytes at @buf
 *
 * Context: any thread.
 * Returns: 0, or -1 if the CDB can't be measured, see scsi_cdb_parse().
 */
int scsi_req_parse_cdb(SCSIDevice *d, SCSICommand *cmd, uint8_t *buf,
                       size_t buf_len)
{
    /* MODE SELECT may change it meanwhile; the command has one size. */
    return scsi_cdb_parse(d->type, qatomic_read(&d->blocksize), buf, buf_len,
                          cmd);
}

/**
 * scsi_bus_parse_cdb:
 * @d: a LUN that hands commands on to real hardware
 * @cmd: where to store the result; its len must be 0
 * @buf: the CDB
 * @buf_len: bytes at @buf
 * @hba_private: the HBA's own, of the request to be
 *
 * Like scsi_req_parse_cdb(), but an HBA whose driver tells the direction and
 * the length of the data has the last word.
 *
 * Context: one of the bus's AioContexts.
 * Returns: 0, or -1 if the CDB can't be measured.
 */
int scsi_bus_parse_cdb(SCSIDevice *d, SCSICommand *cmd, uint8_t *buf,
                       size_t buf_len, void *hba_private)
{
    const SCSIBusInfo *info = scsi_bus_from_device(d)->info;
    int ret;

    assert(cmd->len == 0);
    ret = scsi_req_parse_cdb(d, cmd, buf, buf_len);
    if (info->parse_cdb) {
        ret = info->parse_cdb(d, cmd, buf, buf_len, hba_private);
    }
    return ret;
}

/*
 * Create and free
 */

static SCSIPool *req_pool(SCSIBus *bus, SCSIDevice *d, const SCSILane *lane)
{
    return &bus->pools[lane - d->inflight.lanes];
}

/**
 * scsi_req_alloc:
 * @ops: what the request does; ops->size bytes are allocated
 * @d: the LUN
 * @tag: the request's tag (SAM-5, command identifier)
 * @lun: the LUN that it was addressed to
 * @hba_private: the HBA's own
 *
 * For a device's alloc_req(); HBAs call scsi_req_new().
 *
 * Context: one of the bus's AioContexts, the request's from now on.
 * Returns: a request with one reference.
 */
SCSIRequest *scsi_req_alloc(const SCSIReqOps *ops, SCSIDevice *d,
                            uint32_t tag, uint32_t lun, void *hba_private)
{
    /* The sense buffer is big, and most commands never look at it. */
    const size_t tail = offsetof(SCSIRequest, sense) + SCSI_SENSE_BUF_SIZE;
    SCSILane *lane = scsi_inflight_lane_here(&d->inflight);
    SCSIBus *bus = scsi_bus_from_device(d);
    SCSIRequest *req = scsi_pool_get(req_pool(bus, d, lane), ops->size);

    memset((uint8_t *)req + tail, 0, ops->size - tail);
    req->bus = bus;
    req->dev = d;
    req->ops = ops;
    req->lane = lane;
    req->ctx = lane->ctx;
    req->refcount = 1;
    req->tag = tag;
    req->lun = lun;
    req->status = -1;
    req->host_status = -1;
    req->hba_private = hba_private;
    notifier_list_init(&req->cancel_notifiers);
    scsi_lane_add(lane);

    if (ops->init_req) {
        ops->init_req(req);
    }
    trace_scsi_req_alloc(d->id, lun, tag);
    return req;
}

static void req_free(SCSIRequest *req)
{
    SCSILane *lane = req->lane;
    SCSIBus *bus = req->bus;

    if (req->hba_private && req->bus->info->free_request) {
        req->bus->info->free_request(req->bus, req->hba_private);
    }
    if (req->ops->free_req) {
        req->ops->free_req(req);
    }
    scsi_pool_put(req_pool(bus, req->dev, lane), req, req->ops->size);
    scsi_lane_remove(lane);
    scsi_bus_tell_waiters(bus);
}

static inline void req_ref(SCSIRequest *req)
{
    req->refcount++;
    assert(req->refcount > 1);
}

static inline void req_unref(SCSIRequest *req)
{
    assert(req->refcount);
    req->refcount--;
    if (!req->refcount) {
        req_free(req);
    }
}

/** scsi_req_ref: take a reference. Context: the request's AioContext. */
SCSIRequest *scsi_req_ref(SCSIRequest *req)
{
    req_ref(req);
    return req;
}

/** scsi_req_unref: drop a reference. Context: the request's AioContext. */
void scsi_req_unref(SCSIRequest *req)
{
    req_unref(req);
}

/**
 * scsi_req_unref_detach_hba:
 * @req: a request
 *
 * Drop a reference of an HBA that frees hba_private by itself.
 * Context: the request's AioContext.
 */
void scsi_req_unref_detach_hba(SCSIRequest *req)
{
    req->hba_private = NULL;
    req_unref(req);
}

static void trace_parsed(SCSIDevice *d, uint32_t lun, uint32_t tag,
                         const SCSICommand *cmd)
{
    trace_scsi_req_parsed(d->id, lun, tag, cmd->buf[0], cmd->mode, cmd->xfer);
    if (cmd->lba != -1) {
        trace_scsi_req_parsed_lba(d->id, lun, tag, cmd->buf[0], cmd->lba);
    }
    if (cmd->buf[0] == TEST_UNIT_READY) {
        trace_scsi_test_unit_ready(d->id, lun, tag);
    } else if (cmd->buf[0] == REQUEST_SENSE) {
        trace_scsi_request_sense(d->id, lun, tag);
    } else if (cmd->buf[0] == INQUIRY) {
        trace_scsi_inquiry(d->id, lun, tag, cmd->buf[1], cmd->buf[2]);
    } else if (cmd->buf[0] == REPORT_LUNS) {
        trace_scsi_report_luns(d->id, lun, tag);
    }
}

/* Parse, and find out who answers.  @req is set already if nobody needs to. */
static SCSIRequest *req_create(SCSIDevice *d, SCSIRequest *req, uint32_t tag,
                               uint32_t lun, uint8_t *buf, size_t buf_len,
                               void *hba_private)
{
    SCSIDeviceClass *sc = scsi_device_class(d);
    bool by_target = scsi_target_answers(d, lun, buf[0]);
    SCSICommand cmd = { .len = 0 };
    int ret;

    if (!buf_len || req || by_target || !sc->parse_cdb) {
        ret = scsi_req_parse_cdb(d, &cmd, buf, buf_len);
    } else {
        ret = sc->parse_cdb(d, &cmd, buf, buf_len, hba_private);
    }
    if (ret < 0) {
        trace_scsi_req_parse_bad(d->id, lun, tag, buf[0]);
        cmd = (SCSICommand) { .lba = -1 };
    } else {
        trace_parsed(d, lun, tag, &cmd);
    }

    if (req) {
        /* a unit attention; whatever the command says */
    } else if (ret < 0) {
        req = scsi_target_alloc_refusal(d, tag, lun, hba_private,
                                        lun && lun != d->lun
                                        ? SENSE_CODE(LUN_NOT_SUPPORTED)
                                        : SENSE_CODE(INVALID_OPCODE));
    } else if (cmd.xfer > INT32_MAX) {
        req = scsi_target_alloc_refusal(d, tag, lun, hba_private,
                                        SENSE_CODE(INVALID_FIELD));
    } else if (by_target) {
        req = scsi_target_alloc(d, tag, lun, hba_private);
    } else {
        req = sc->alloc_req(d, tag, lun, buf, hba_private);
    }
    req->cmd = cmd;
    req->residual = cmd.xfer;
    return req;
}

/**
 * scsi_req_new:
 * @d: the LUN, or another one of the target if that doesn't exist
 * @tag: the request's tag
 * @lun: the LUN that it is addressed to
 * @buf: the CDB
 * @buf_len: bytes at @buf
 * @hba_private: the HBA's own
 *
 * A unit attention condition, or a CDB that can't be parsed, makes it a request
 * that will end with CHECK CONDITION (SAM-5, 5.14; SPC-4, 4.2).
 *
 * Context: one of the bus's AioContexts, the request's from now on.
 * Returns: a request with one reference; cmd tells about the CDB.
 */
SCSIRequest *scsi_req_new(SCSIDevice *d, uint32_t tag, uint32_t lun,
                          uint8_t *buf, size_t buf_len, void *hba_private)
{
    uint8_t nothing = 0;
    SCSIRequest *ua;

    if (!buf_len) {
        buf = &nothing; /* shorter than any CDB, so it will be refused */
    }
    ua = scsi_target_has_attention(d)
         ? scsi_target_claim_attention(d, tag, lun, buf[0], hba_private) : NULL;
    return req_create(d, ua, tag, lun, buf, buf_len, hba_private);
}

SCSIRequest *scsi_req_restore(SCSIDevice *d, uint32_t tag, uint32_t lun,
                              uint8_t *cdb)
{
    return req_create(d, NULL, tag, lun, cdb, SCSI_CMD_BUF_SIZE, NULL);
}

/*
 * Enqueue and dequeue
 */

/*
 * A guest may offer more memory than the CDB asks for; the LUN must not see
 * the rest, or it would move that as well.
 */
static void sg_truncate(QEMUSGList *sg, size_t size)
{
    size_t left = size;
    int n = 0;

    if (sg->size <= size) {
        return;
    }
    while (left) {
        sg->sg[n].len = MIN(sg->sg[n].len, left);
        left -= sg->sg[n].len;
        n++;
    }
    sg->nsg = n;
    sg->size = size;
}

void scsi_req_launch(SCSIRequest *req)
{
    const SCSIBusInfo *info = req->bus->info;

    assert(!req->enqueued);
    req_ref(req);
    if (info->get_iov) {
        req->iov = info->get_iov(req, req->cmd.xfer);
    } else if (info->get_sg_list) {
        req->sg = info->get_sg_list(req);
    }
    if (req->sg) {
        sg_truncate(req->sg, req->cmd.xfer);
    }
    req->enqueued = true;
    QTAILQ_INSERT_TAIL(&req->lane->requests, req, next);
}

/* Does @req wait for the VM to be resumed? */
static void req_set_retry(SCSIRequest *req, bool retry)
{
    if (req->retry != retry) {
        req->retry = retry;
        scsi_lane_count(&req->lane->parked, retry ? 1 : -1);
        scsi_bus_tell_waiters(req->bus);
    }
}

/* True if it was enqueued; the list's reference is the caller's then. */
static bool req_dequeue(SCSIRequest *req)
{
    trace_scsi_req_dequeue(req->dev->id, req->lun, req->tag);
    req_set_retry(req, false);
    if (!req->enqueued) {
        return false;
    }
    req->enqueued = false;
    QTAILQ_REMOVE(&req->lane->requests, req, next);
    return true;
}

/**
 * scsi_req_enqueue:
 * @req: a new request
 *
 * Send the command to the LUN, which may complete it before this returns.
 *
 * Context: the request's AioContext.
 * Returns: bytes that are ready to be transferred to (positive) or from
 * (negative) the initiator after scsi_req_continue(), or 0 if the command has
 * no data phase.
 */
int32_t scsi_req_enqueue(SCSIRequest *req)
{
    int32_t len;

    assert(!req->retry);
    scsi_req_launch(req);

    /* The LUN may complete it at once. */
    req_ref(req);
    len = req->ops->send_command(req, req->cmd.buf);
    req_unref(req);
    return len;
}

SCSIRequestList *scsi_device_requests(SCSIDevice *d)
{
    return &scsi_inflight_lane_here(&d->inflight)->requests;
}

void scsi_req_move(SCSIRequest *req, AioContext *ctx)
{
    SCSILane *to = scsi_inflight_lane_of(&req->dev->inflight, ctx);
    SCSILane *from = req->lane;

    GLOBAL_STATE_CODE();

    if (from == to) {
        return;
    }
    if (req->enqueued) {
        QTAILQ_REMOVE(&from->requests, req, next);
        QTAILQ_INSERT_TAIL(&to->requests, req, next);
    }
    if (req->retry) {
        scsi_lane_count(&from->parked, -1);
        scsi_lane_count(&to->parked, 1);
    }
    scsi_lane_count(&from->live, -1);
    scsi_lane_count(&to->live, 1);
    req->lane = to;
    req->ctx = ctx;
}

/*
 * Data phase
 */

/**
 * scsi_req_continue:
 * @req: a request in its data phase
 *
 * The HBA is ready for the next part of the data, or done with the last one.
 * Context: the request's AioContext.
 */
void scsi_req_continue(SCSIRequest *req)
{
    const SCSIReqOps *ops = req->ops;
    void (*next_step)(SCSIRequest *req) =
        req->cmd.mode == SCSI_XFER_TO_DEV ? ops->write_data : ops->read_data;

    if (req->io_canceled) {
        trace_scsi_req_continue_canceled(req->dev->id, req->lun, req->tag);
    } else {
        trace_scsi_req_continue(req->dev->id, req->lun, req->tag);
        next_step(req);
    }
}

static void req_transfer_sg(SCSIRequest *req, uint8_t *buf, int len)
{
    const MemTxAttrs attrs = MEMTXATTRS_UNSPECIFIED;

    if (req->cmd.mode == SCSI_XFER_TO_DEV) {
        dma_buf_write(buf, len, &req->residual, req->sg, attrs);
    } else {
        dma_buf_read(buf, len, &req->residual, req->sg, attrs);
    }
}

static void req_transfer_iov(SCSIRequest *req, uint8_t *buf, int len)
{
    size_t moved;

    if (req->cmd.mode == SCSI_XFER_TO_DEV) {
        moved = qemu_iovec_to_buf(req->iov, 0, buf, len);
    } else {
        moved = qemu_iovec_from_buf(req->iov, 0, buf, len);
    }
    req->residual = req->iov->size - moved;
}

/* The LUN's buffer against guest memory, all in one go */
static void req_transfer_all(SCSIRequest *req, int len)
{
    uint8_t *buf = scsi_req_get_buf(req);

    assert(!req->dma_started);
    req->dma_started = true;
    if (req->iov) {
        req_transfer_iov(req, buf, len);
    } else {
        req_transfer_sg(req, buf, len);
    }
    scsi_req_continue(req);
}

/* The HBA moves the data, and calls scsi_req_continue() when it has. */
static void req_transfer_by_hba(SCSIRequest *req, int len)
{
    req->residual -= len;
    req->bus->info->transfer_data(req, len);
}

/**
 * scsi_req_data:
 * @req: a request in its data phase
 * @len: bytes
 *
 * The LUN has filled its buffer, or wants it filled.
 * Context: the request's AioContext.
 */
void scsi_req_data(SCSIRequest *req, int len)
{
    assert(req->cmd.mode != SCSI_XFER_NONE);

    if (req->io_canceled) {
        trace_scsi_req_data_canceled(req->dev->id, req->lun, req->tag, len);
    } else {
        trace_scsi_req_data(req->dev->id, req->lun, req->tag, len);
        if (req->sg || req->iov) {
            req_transfer_all(req, len);
        } else {
            req_transfer_by_hba(req, len);
        }
    }
}

/** scsi_req_get_buf: the LUN's buffer. Context: the request's AioContext. */
uint8_t *scsi_req_get_buf(SCSIRequest *req)
{
    return req->ops->get_buf(req);
}

/*
 * Sense data
 */

/**
 * scsi_req_build_sense:
 * @req: a request that is about to end with CHECK CONDITION
 * @sense: why
 *
 * Context: the request's AioContext.
 */
void scsi_req_build_sense(SCSIRequest *req, SCSISense sense)
{
    trace_scsi_req_build_sense(req->dev->id, req->lun, req->tag, sense.key,
                               sense.asc, sense.ascq);
    req->sense_len = scsi_build_sense(req->sense, sense);
}

/**
 * scsi_req_get_sense:
 * @req: a request that has just been completed
 * @buf: where to store its sense data, in fixed format (SPC-4, 4.5.3)
 * @len: bytes at @buf, at least 14
 *
 * To be called once, by HBAs with autosense (SAM-5, 5.13.4).
 *
 * Context: the request's AioContext.
 * Returns: the number of bytes stored, 0 if there are no sense data.
 */
int scsi_req_get_sense(SCSIRequest *req, uint8_t *buf, int len)
{
    assert(len >= 14); /* or some of the three codes would be missing */

    if (!req->sense_len) {
        return 0;
    }

    /*
     * Autosense: the initiator knows, so REQUEST SENSE needn't tell it again.
     * This is UA_INTLCK_CTRL = 00b (SPC-4, 7.5.7, Control mode page); an HBA
     * that doesn't call us behaves as with 10b.
     */
    if (scsi_target_is_attention(req)) {
        scsi_held_sense_drop_ua(&req->dev->held_sense);
        scsi_device_unit_attention_reported(req->dev);
    }
    return scsi_convert_sense(req->sense, req->sense_len, buf, len, true);
}

/*
 * End
 */

typedef enum ReqEnd {
    REQ_COMPLETED,
    REQ_FAILED,
    REQ_CANCELLED,
} ReqEnd;

/* The only place where a request leaves us.  @req may be gone afterwards. */
static void req_end(SCSIRequest *req, ReqEnd how)
{
    const SCSIBusInfo *info = req->bus->info;

    if (!req_dequeue(req)) {
        req_ref(req);
    }
    if (how == REQ_COMPLETED) {
        info->complete(req, req->residual);
    } else if (how == REQ_FAILED) {
        info->fail(req);
    } else if (info->cancel) {
        info->cancel(req);
    }

    /* However it ended: who wanted to cancel it needs to wait no longer. */
    notifier_list_notify(&req->cancel_notifiers, req);
    req_unref(req);
}

/* For a later REQUEST SENSE.  Usually there is nothing to hold or to drop. */
static void req_hold_sense(SCSIRequest *req)
{
    SCSIHeldSense *held = &req->dev->held_sense;

    if (!req->sense_len && !scsi_held_sense_present(held)) {
        return;
    }
    if (req->lun == req->dev->lun || req->lun == 0) {
        /* Not if the LUN only stood in for one that doesn't exist */
        scsi_held_sense_set(held, req->sense, req->sense_len,
                            scsi_target_is_attention(req));
    }
}

/* A request ends once. */
static void req_set_status(SCSIRequest *req, int status, int host_status)
{
    assert(req->status == -1 && req->host_status == -1);
    req->status = status;
    req->host_status = host_status;
}

/**
 * scsi_req_complete:
 * @req: a request
 * @status: how the command ended (SAM-5, 5.3)
 *
 * Context: the request's AioContext.
 */
void scsi_req_complete(SCSIRequest *req, int status)
{
    req_set_status(req, status, SCSI_HOST_OK);
    if (status == GOOD) {
        req->sense_len = 0;
    }
    req_hold_sense(req);
    req_end(req, REQ_COMPLETED);
}

/**
 * scsi_req_complete_failed:
 * @req: a request
 * @host_status: SCSI_HOST_*; the command never got a SCSI status
 *
 * Context: the request's AioContext.
 */
void scsi_req_complete_failed(SCSIRequest *req, int host_status)
{
    SCSISense sense;
    int status;

    assert(!scsi_target_is_attention(req));

    if (req->bus->info->fail) {
        req_set_status(req, -1, host_status);
        req_end(req, REQ_FAILED);
        return;
    }

    /* The HBA knows no such thing; make a SCSI status of it. */
    status = scsi_sense_from_host_status(host_status, &sense);
    if (status == CHECK_CONDITION) {
        scsi_req_build_sense(req, sense);
    }
    scsi_req_complete(req, status);
}

/*
 * Cancel
 */

static bool req_has_io(const SCSIRequest *req)
{
    return req->aiocb || req->co_running;
}

/*
 * The request stays where it is until scsi_req_cancel_complete(), so that
 * whoever looks for commands that haven't ended finds it.
 */
static void req_cancel(SCSIRequest *req, void (*cancel_aio)(BlockAIOCB *acb))
{
    req_ref(req);
    req_set_retry(req, false);
    req->io_canceled = true;
    if (!req_has_io(req)) {
        scsi_req_cancel_complete(req);
    } else if (req->aiocb) {
        /* The device calls us back; there is no way to hurry a coroutine. */
        cancel_aio(req->aiocb);
    }
}

/**
 * scsi_req_cancel_complete:
 * @req: a request that was cancelled
 *
 * The LUN has stopped working on it.  Context: the request's AioContext.
 */
void scsi_req_cancel_complete(SCSIRequest *req)
{
    assert(req->io_canceled);
    req_end(req, REQ_CANCELLED);
    req_unref(req);
}

/**
 * scsi_req_cancel_async:
 * @req: an enqueued request, or one that is being cancelled
 * @notifier: called when it is cancelled or, after all, completed; may be NULL
 *
 * Context: the request's AioContext.
 */
void scsi_req_cancel_async(SCSIRequest *req, Notifier *notifier)
{
    trace_scsi_req_cancel(req->dev->id, req->lun, req->tag);
    if (notifier) {
        notifier_list_add(&req->cancel_notifiers, notifier);
    }
    if (!req->io_canceled) {
        req_cancel(req, blk_aio_cancel_async);
    } else {
        /* It is under way, and its end will notify this one, too. */
        assert(req_has_io(req));
    }
}

/**
 * scsi_req_cancel:
 * @req: a request of an HBA whose only AioContext is the main loop's
 *
 * Returns when it is cancelled, or after all completed; nothing happens if it
 * isn't enqueued.  Runs the event loop meanwhile.
 *
 * Context: main loop, BQL held.
 */
void scsi_req_cancel(SCSIRequest *req)
{
    trace_scsi_req_cancel(req->dev->id, req->lun, req->tag);
    if (req->enqueued && !req->io_canceled) {
        req_ref(req);
        req_cancel(req, blk_aio_cancel);
        AIO_WAIT_WHILE_UNLOCKED(NULL, req->enqueued);
        req_unref(req);
    }
}

/*
 * Requests that wait for the VM to be resumed
 */

/**
 * scsi_req_retry:
 * @req: an enqueued request, or one that is about to be
 *
 * It will be restarted when the VM is resumed.
 * Context: the request's AioContext.
 */
void scsi_req_retry(SCSIRequest *req)
{
    req_set_retry(req, true);
}

void scsi_req_restart(SCSIRequest *req)
{
    if (!req->retry) {
        return;
    }
    if (req->cmd.mode == SCSI_XFER_NONE) {
        /* No data phase to repeat: once more from the start */
        if (req_dequeue(req)) {
            scsi_req_enqueue(req);
            req_unref(req);
        }
    } else {
        req_set_retry(req, false);
        if ((req->sg || req->iov) && !req->dma_started) {
            /* The LUN moves all of it once more, and counts that. */
            req->residual = req->cmd.xfer;
        }
        scsi_req_continue(req);
    }
}

/*
 * For debugging
 */

/** scsi_req_print: to stderr. Context: the request's AioContext. */
void scsi_req_print(SCSIRequest *req)
{
    static const char *const modes[] = {
        [SCSI_XFER_NONE]        = "none",
        [SCSI_XFER_FROM_DEV]    = "from-dev",
        [SCSI_XFER_TO_DEV]      = "to-dev",
    };
    g_autoptr(GString) cdb = g_string_new(NULL);

    for (int i = 1; i < req->cmd.len; i++) {
        g_string_append_printf(cdb, " 0x%02x", req->cmd.buf[i]);
    }
    fprintf(stderr, "[%s id=%" PRIu32 "] %s%s - %s len=%zu\n",
            BUS(req->bus)->name, req->dev->id,
            scsi_command_name(req->cmd.buf[0]), cdb->str,
            modes[req->cmd.mode], req->cmd.xfer);
}
