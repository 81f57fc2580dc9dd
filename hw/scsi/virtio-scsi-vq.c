/*
 * virtio SCSI host bus adapter: request virtqueues (virtio 1.2, 5.6.6.1)
 *
 * The hot path.  Everything here runs in the AioContext that owns the queue:
 * the IOThread that it is mapped to, or the main loop.  A command is popped,
 * parsed, submitted to its LUN and completed there, so neither the virtqueue
 * nor the list of commands in flight needs a lock.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/defer-call.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "hw/virtio/virtio-access.h"
#include "migration/qemu-file.h"
#include "migration/qemu-file-types.h"
#include "scsi/constants.h"
#include "trace.h"
#include "virtio-scsi-internal.h"

/*
 * Sizes that the driver may change any time.  Read once for each command, and
 * after it was popped: a command that was put into the ring after a change must
 * not be read with what was right before.
 */
typedef struct CmdSizes {
    uint32_t cdb;
    uint32_t sense;
} CmdSizes;

/* With room for the longest CDB, as sizes aren't known before */
#define CMD_ALLOC_SIZE (sizeof(VirtIOSCSIReq) + VIRTIO_SCSI_MAX_CDB_SIZE)

/* What a queue keeps for reuse: these, with a usual number of buffers */
#define CMD_USUAL_BUFFERS 18
#define CMD_BLOCK_SIZE                                              \
    ROUND_UP(CMD_ALLOC_SIZE + CMD_USUAL_BUFFERS *                   \
             (sizeof(hwaddr) + sizeof(struct iovec)), 64)

/* Heads that one visit of a queue takes; there may be others in the thread */
#define CMD_BATCH 64
QEMU_BUILD_BUG_ON(CMD_BATCH > SCSI_MERGE_MAX);

static CmdSizes cmd_sizes(VirtIOSCSI *s)
{
    return (CmdSizes) {
        .cdb = qatomic_read(&s->parent_obj.cdb_size),
        .sense = qatomic_read(&s->parent_obj.sense_size),
    };
}

/*
 * Complete
 */

static size_t cmd_resp_size(const VirtIOSCSIReq *req)
{
    return sizeof(req->resp) + req->sense_size;
}

static void cmd_free(VirtIOSCSIReq *req, VirtIOSCSIQueue *q)
{
    if (unlikely(req->own_iov)) {
        g_free(req->own_iov);
    }
    scsi_pool_put(&q->pool, req, req->size);
}

/* Show the guest what is in the used ring, and interrupt it if it wants. */
static void queue_flush(void *opaque)
{
    VirtIOSCSIQueue *q = opaque;

    if (!q->filled) {
        return;
    }
    WITH_RCU_READ_LOCK_GUARD() {
        virtqueue_flush(q->vq, q->filled);
    }
    q->filled = 0;
    virtio_scsi_notify(q->dev, q->vq);
    if (unlikely(q->place != QUEUE_HERE)) {
        qemu_bh_schedule(q->more_bh); /* it may leave now */
    }
}

/* At the end of a batch, at the latest. */
static void queue_push(VirtIOSCSIQueue *q, const VirtQueueElement *elem,
                       size_t written)
{
    WITH_RCU_READ_LOCK_GUARD() {
        virtqueue_fill(q->vq, elem, written, q->filled);
    }
    q->filled++;
    if (q->filled == 1) {
        defer_call(queue_flush, q);
    } else if (q->filled == CMD_BATCH) {
        queue_flush(q);
    }
}

/*
 * A command that didn't succeed may have written some of its data.  The guest
 * isn't told, but whoever tracks changes of its memory must be.
 */
static void cmd_touch_data(VirtIOSCSIReq *req)
{
    if (req->mode == SCSI_XFER_FROM_DEV) {
        virtqueue_touch_element(req->queue->vq, &req->elem);
    }
}

/*
 * Answers that are kept back
 */

void virtio_scsi_keep_back(VirtIOSCSI *s, VirtIOSCSILate *late)
{
    QSIMPLEQ_INSERT_TAIL(&s->late, late, next);
    qemu_bh_schedule(s->main_bh);
}

void virtio_scsi_push_late(VirtIOSCSI *s)
{
    VirtIOSCSILate *late;

    while ((late = QSIMPLEQ_FIRST(&s->late))) {
        QSIMPLEQ_REMOVE_HEAD(&s->late, next);
        WITH_RCU_READ_LOCK_GUARD() {
            virtqueue_push(late->vq, late->elem, late->written);
        }
        virtio_scsi_notify(s, late->vq);
        late->free(late);
    }
}

void virtio_scsi_drop_late(VirtIOSCSI *s, VirtQueue *vq)
{
    VirtIOSCSILate *late, *next;

    QSIMPLEQ_FOREACH_SAFE(late, &s->late, next, next) {
        if (!vq || late->vq == vq) {
            QSIMPLEQ_REMOVE(&s->late, late, VirtIOSCSILate, next);
            virtqueue_detach_element(late->vq, late->elem, 0);
            late->free(late);
        }
    }
}

static void cmd_free_late(VirtIOSCSILate *late)
{
    VirtIOSCSIReq *req = container_of(late, VirtIOSCSIReq, late);

    cmd_free(req, req->queue);
}

/*
 * The only place where a command goes back to the guest.  @end counts such
 * ends: it is one of good, failed and aborted in the queue's stats.
 */
static void cmd_finish(VirtIOSCSIReq *req, uint8_t response, Stat64 *end)
{
    VirtIOSCSIQueue *q = req->queue;
    size_t written = cmd_resp_size(req);

    /* Pairs with info_read_stats(): who sees the end has seen the beginning. */
    smp_wmb();
    virtio_scsi_count(end, 1);

    if (req->data_in) {
        written = req->data_start + req->data_in;
    } else {
        cmd_touch_data(req);
    }
    req->resp.response = response;
    trace_virtio_scsi_cmd_resp(virtio_scsi_lun_number(req->hdr.lun),
                               req->hdr.tag, response, req->resp.status);

    iov_from_buf(req->elem.in_sg, req->elem.in_num, 0, &req->resp,
                 sizeof(req->resp));
    if (req->sreq) {
        req->sreq->hba_private = NULL;
        scsi_req_unref(g_steal_pointer(&req->sreq));
    }
    if (unlikely(!req->elem.in_ram || q->odd_ring) && qemu_in_main_thread()) {
        req->late = (VirtIOSCSILate) {
            .vq = q->vq,
            .elem = &req->elem,
            .written = written,
            .free = cmd_free_late,
        };
        virtio_scsi_keep_back(q->dev, &req->late);
        return;
    }
    queue_push(q, &req->elem, written);
    cmd_free(req, q);
}

/* Sense data stands behind the fixed part of the response. */
static void cmd_put_sense(VirtIOSCSIReq *req, SCSIRequest *sreq)
{
    VirtIODevice *vdev = (VirtIODevice *)req->queue->dev;
    uint8_t sense[SCSI_SENSE_BUF_SIZE];
    uint32_t len = scsi_req_get_sense(sreq, sense, sizeof(sense));

    len = MIN(len, req->sense_size);
    iov_from_buf(req->elem.in_sg, req->elem.in_num, sizeof(req->resp),
                 sense, len);
    req->resp.sense_len = virtio_tswap32(vdev, len);
}

void virtio_scsi_cmd_complete(SCSIRequest *sreq, size_t residual)
{
    VirtIOSCSIReq *req = sreq->hba_private;
    size_t moved = sreq->cmd.xfer - residual;
    VirtIOSCSIStats *stats;
    Stat64 *end;

    if (sreq->io_canceled) {
        return; /* virtio_scsi_cmd_cancelled() follows, or was before */
    }
    stats = &req->queue->stats;
    end = &stats->good;
    req->resp.status = sreq->status;
    req->resp.resid = virtio_tswap32((VirtIODevice *)req->queue->dev,
                                     req->data_size - moved);
    if (sreq->status != GOOD) {
        cmd_put_sense(req, sreq);
        end = &stats->failed;
    } else if (req->mode == SCSI_XFER_FROM_DEV) {
        req->data_in = moved;
        virtio_scsi_count(&stats->bytes_read, moved);
    } else if (req->mode == SCSI_XFER_TO_DEV) {
        virtio_scsi_count(&stats->bytes_written, moved);
    }
    cmd_finish(req, VIRTIO_SCSI_S_OK, end);
}

static uint8_t response_from_host_status(int host_status)
{
    static const uint8_t table[] = {
        [SCSI_HOST_NO_LUN]              = VIRTIO_SCSI_S_INCORRECT_LUN,
        [SCSI_HOST_BUSY]                = VIRTIO_SCSI_S_BUSY,
        [SCSI_HOST_TIME_OUT]            = VIRTIO_SCSI_S_ABORTED,
        [SCSI_HOST_BAD_RESPONSE]        = VIRTIO_SCSI_S_BAD_TARGET,
        [SCSI_HOST_ABORTED]             = VIRTIO_SCSI_S_ABORTED,
        [SCSI_HOST_RESET]               = VIRTIO_SCSI_S_RESET,
        [SCSI_HOST_TRANSPORT_DISRUPTED] = VIRTIO_SCSI_S_TRANSPORT_FAILURE,
        [SCSI_HOST_TARGET_FAILURE]      = VIRTIO_SCSI_S_TARGET_FAILURE,
        [SCSI_HOST_RESERVATION_ERROR]   = VIRTIO_SCSI_S_NEXUS_FAILURE,
    };

    if (host_status < 0 || host_status >= ARRAY_SIZE(table) ||
        !table[host_status]) {
        return VIRTIO_SCSI_S_FAILURE;
    }
    return table[host_status];
}

void virtio_scsi_cmd_failed(SCSIRequest *sreq)
{
    VirtIOSCSIReq *req = sreq->hba_private;

    if (!sreq->io_canceled) {
        cmd_finish(req, response_from_host_status(sreq->host_status),
                   &req->queue->stats.failed);
    }
}

void virtio_scsi_cmd_cancelled(SCSIRequest *sreq)
{
    VirtIOSCSIReq *req = sreq->hba_private;
    VirtIOSCSIQueue *q;

    if (!req) {
        return; /* it was completed before it could be cancelled */
    }
    q = req->queue;
    if (req->overrun) {
        cmd_finish(req, VIRTIO_SCSI_S_OVERRUN, &q->stats.failed);
    } else {
        cmd_finish(req, sreq->by_reset ? VIRTIO_SCSI_S_RESET
                                       : VIRTIO_SCSI_S_ABORTED,
                   &q->stats.aborted);
    }
    /* Before whoever has cancelled it gets to know, and tells the guest */
    queue_flush(q);
}

/*
 * Parse
 */

static void cmd_set_data(VirtIOSCSIReq *req, enum SCSIXferMode mode,
                         struct iovec *iov, unsigned num, size_t skip,
                         size_t size)
{
    req->data_start = skip;
    while (skip >= iov->iov_len) {
        skip -= iov->iov_len;
        iov++;
        num--;
    }
    req->mode = mode;
    req->data = iov;
    req->data_num = num;
    req->data_skip = skip;
    req->data_size = size;
}

/*
 * Find the data buffers behind the headers; the request's has been read.
 * Returns -EINVAL if there is too little room for the response's, -ENOTSUP for
 * bidirectional commands.
 */
static int cmd_parse_buffers(VirtIOSCSIReq *req, size_t hdr_size)
{
    VirtIODevice *vdev = (VirtIODevice *)req->queue->dev;
    VirtQueueElement *elem = &req->elem;
    size_t out_skip = hdr_size;
    size_t in_skip = cmd_resp_size(req);
    size_t out_size = iov_size(elem->out_sg, elem->out_num);
    size_t in_size = iov_size(elem->in_sg, elem->in_num);

    if (in_size < in_skip) {
        return -EINVAL;
    }

    /*
     * Legacy drivers put each header into a buffer of its own (virtio 1.2,
     * 5.6.6, "Legacy Interface: Framing Requirements"), and old firmware pads
     * that buffer.  Since virtio 1.0 any framing is right ("Message Framing"),
     * with no feature bit to say so.
     */
    if (!virtio_vdev_has_feature(vdev, VIRTIO_F_VERSION_1) &&
        !virtio_vdev_has_feature(vdev, VIRTIO_F_ANY_LAYOUT)) {
        out_skip = elem->out_sg[0].iov_len;
        in_skip = elem->in_sg[0].iov_len;
    }
    if (out_size > out_skip && in_size > in_skip) {
        return -ENOTSUP;
    }

    if (out_size > out_skip) {
        cmd_set_data(req, SCSI_XFER_TO_DEV, elem->out_sg, elem->out_num,
                     out_skip, out_size - out_skip);
    } else if (in_size > in_skip) {
        cmd_set_data(req, SCSI_XFER_FROM_DEV, elem->in_sg, elem->in_num,
                     in_skip, in_size - in_skip);
    }
    return 0;
}

/* False if the buffers are too small */
static inline bool cmd_read_header(VirtIOSCSIReq *req, size_t size)
{
    return iov_to_buf(req->elem.out_sg, req->elem.out_num, 0, &req->hdr,
                      size) == size;
}

/* Fill in a @req that was just allocated. */
static int cmd_parse(VirtIOSCSIReq *req, VirtIOSCSIQueue *q, CmdSizes sizes)
{
    const size_t zero_from = offsetof(VirtIOSCSIReq, queue);
    const size_t zero_to = offsetof(VirtIOSCSIReq, hdr);
    /* The compiler makes moves of a copy of constant size. */
    const size_t usual_size = sizeof(req->hdr) + VIRTIO_SCSI_CDB_DEFAULT_SIZE;
    size_t hdr_size = sizeof(req->hdr) + sizes.cdb;

    memset((char *)req + zero_from, 0, zero_to - zero_from);
    req->queue = q;
    req->sense_size = sizes.sense;

    if (likely(hdr_size == usual_size) ? !cmd_read_header(req, usual_size)
                                       : !cmd_read_header(req, hdr_size)) {
        return -EINVAL;
    }
    return cmd_parse_buffers(req, hdr_size);
}

int virtio_scsi_cmd_parse_cdb(SCSIDevice *dev, SCSICommand *cmd, uint8_t *buf,
                              size_t buf_len, void *hba_private)
{
    VirtIOSCSIReq *req = hba_private;

    /* A pass-through device may know CDBs that the bus can't measure. */
    if (cmd->len == 0) {
        cmd->len = MIN(MIN(VIRTIO_SCSI_CDB_DEFAULT_SIZE, SCSI_CMD_BUF_SIZE),
                       buf_len);
        memcpy(cmd->buf, buf, cmd->len);
    }

    /*
     * And only the driver knows which way their data go, and how much.  There
     * is no @req yet if the request comes from a migration stream; then
     * virtio_scsi_cmd_load() does this.
     */
    if (req) {
        cmd->mode = req->mode;
        cmd->xfer = req->data_size;
    }
    return 0;
}

QEMUIOVector *virtio_scsi_cmd_iov(SCSIRequest *sreq, size_t len)
{
    VirtIOSCSIReq *req = sreq->hba_private;
    unsigned num = req->data_num;

    len = MIN(len, req->data_size);
    if (!len) {
        return NULL;
    }
    if (!req->data_skip && len == req->data_size) {
        qemu_iovec_init_external(&req->iov, req->data, num);
        return &req->iov;
    }

    /*
     * The first buffer begins with a header, or a guest offers more memory
     * than the CDB asks for.  The LUN mustn't see any of that.
     */
    if (!req->own_iov) {
        req->own_iov = g_new(struct iovec, num);
    }
    num = iov_copy(req->own_iov, num, req->data, num, req->data_skip, len);
    qemu_iovec_init_external(&req->iov, req->own_iov, num);
    return &req->iov;
}

/*
 * Submit
 */

/* Do the guest's buffers have room for what the CDB says? */
static bool cmd_fits_buffers(const VirtIOSCSIReq *req, const SCSICommand *cmd)
{
    return cmd->mode == SCSI_XFER_NONE ||
           (cmd->mode == req->mode && cmd->xfer <= req->data_size);
}

/*
 * Go on with a command that is ready to transfer data.
 *
 * Only now the buffers count: a command that the LUN doesn't know, say, ends
 * with CHECK CONDITION, whatever the length is that its CDB seems to have.
 */
static void cmd_transfer(VirtIOSCSIReq *req)
{
    if (cmd_fits_buffers(req, &req->sreq->cmd)) {
        scsi_req_continue(req->sreq);
    } else {
        req->overrun = true;
        scsi_req_cancel_async(req->sreq, NULL);
    }
}

/* No reference: before the LUN can die, the bus visits our AioContext. */
static SCSIDevice *cmd_find_lun(const VirtIOSCSIReq *req)
{
    VirtIOSCSIQueue *q = req->queue;
    uint64_t field = ldq_he_p(req->hdr.lun);

    if (q->batch_lun && field == q->batch_lun_field) {
        return q->batch_lun;
    }
    if (!q->in_batch) {
        return virtio_scsi_lun_find(q->dev, req->hdr.lun);
    }
    q->batch_lun_field = field;
    q->batch_lun = virtio_scsi_lun_find(q->dev, req->hdr.lun);
    return q->batch_lun;
}

static void cmd_submit(VirtIOSCSIReq *req, size_t cdb_size)
{
    unsigned lun = virtio_scsi_lun_number(req->hdr.lun);
    SCSIRequest *sreq;
    SCSIDevice *d;

    trace_virtio_scsi_cmd_req(lun, req->hdr.tag, req->hdr.cdb[0]);

    d = cmd_find_lun(req);
    if (!d) {
        cmd_finish(req, VIRTIO_SCSI_S_BAD_TARGET, &req->queue->stats.failed);
        return;
    }
    sreq = scsi_req_new(d, req->hdr.tag, lun, req->hdr.cdb, cdb_size, req);
    req->sreq = sreq;

    /* It may be completed, and our reference be gone, before this returns. */
    scsi_req_ref(sreq);
    if (scsi_req_enqueue(sreq)) {
        cmd_transfer(req);
    }
    scsi_req_unref(sreq);
}

/* Returns false if the driver broke the rules, and the device with it. */
static bool cmd_process(VirtIOSCSIReq *req, VirtIOSCSIQueue *q, CmdSizes sizes)
{
    switch (cmd_parse(req, q, sizes)) {
    case 0:
        virtio_scsi_count(&q->stats.submitted, 1);
        cmd_submit(req, sizes.cdb);
        return true;
    case -ENOTSUP:
        /* We don't offer VIRTIO_SCSI_F_INOUT. */
        virtio_scsi_count(&q->stats.submitted, 1);
        cmd_finish(req, VIRTIO_SCSI_S_FAILURE, &q->stats.failed);
        return true;
    default:
        virtio_error((VirtIODevice *)q->dev, "virtio-scsi: buffers of a "
                     "command are too small for its headers");
        virtqueue_detach_element(q->vq, &req->elem, 0);
        cmd_free(req, q);
        return false;
    }
}

/*
 * Pop
 */

static void *queue_alloc(void *opaque, size_t size)
{
    VirtIOSCSIQueue *q = opaque;
    VirtIOSCSIReq *req = scsi_pool_get(&q->pool, size);

    req->size = size;
    return req;
}

/* Any number of ours and the guest's are one, if nobody looks in between. */
static void queue_kicked(void *opaque)
{
    VirtIOSCSIQueue *q = opaque;

    if (q->own_kick) {
        q->own_kick = false;
    } else {
        virtio_scsi_count(&q->stats.kicks, 1);
    }
}

static void queue_interrupt(void *opaque)
{
    VirtIOSCSIQueue *q = opaque;

    virtio_scsi_count(&q->stats.interrupts, 1);
}

static const VirtQueueOps queue_ops = {
    .alloc = queue_alloc,
    .kicked = queue_kicked,
    .interrupt = queue_interrupt,
};

void virtio_scsi_queue_init(VirtIOSCSIQueue *q)
{
    scsi_pool_init(&q->pool, CMD_BLOCK_SIZE);
    virtio_queue_set_ops(q->vq, &queue_ops, q);
}

void virtio_scsi_queue_cleanup(VirtIOSCSIQueue *q)
{
    assert(!q->filled);
    virtio_queue_set_ops(q->vq, NULL, NULL);
    scsi_pool_clear(&q->pool);
}

/*
 * Process up to CMD_BATCH commands of the ring.  A guest that adds commands as
 * fast as we complete them would keep us here, and the other queues of the
 * thread, or who wants us to stop, waiting.  Returns true if there may be more.
 */
static bool queue_run_batch(VirtIOSCSIQueue *q)
{
    VirtIOSCSIReq *req;
    bool more = true;

    /* With the BQL, a guest's buffer may be a register that does anything. */
    q->in_batch = !bql_locked();
    q->odd_ring = !q->in_batch && !virtio_queue_in_ram(q->vq);
    for (int n = 0; more && n < CMD_BATCH; n++) {
        req = virtqueue_pop(q->vq, CMD_ALLOC_SIZE);
        more = req && cmd_process(req, q, cmd_sizes(q->dev));
    }
    q->in_batch = false;
    q->batch_lun = NULL;
    return more;
}

/* Call the handler again, from a bottom half of the queue's owner. */
static void queue_run_later(VirtIOSCSIQueue *q)
{
    VirtIOSCSI *s = q->dev;

    qemu_bh_schedule(qatomic_read(&s->in_contexts) ? q->more_bh : s->main_bh);
}

/* Returns the time if it is measured, or 0. */
static int64_t queue_begin_time(VirtIOSCSI *s)
{
    if (likely(!qatomic_read(&s->watched))) {
        return 0;
    }
    if (unlikely(!qatomic_read(&s->watch_awake))) {
        qatomic_set(&s->watch_awake, true);
        qemu_bh_schedule(s->watch_bh);
    }
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static void queue_end_time(VirtIOSCSIQueue *q, int64_t begin)
{
    if (unlikely(begin)) {
        virtio_scsi_count(&q->stats.handler_ns,
                          qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - begin);
    }
}

/* While the event loop polls, it has switched kicks off by itself. */
static void queue_run(VirtIOSCSIQueue *q)
{
    bool switch_kicks = virtio_queue_get_notification(q->vq);
    int64_t begin = queue_begin_time(q->dev);
    bool more;

    if (switch_kicks) {
        virtio_queue_set_notification(q->vq, 0);
    }
    /* Submit all to the host kernel at once, and interrupt once. */
    aio_handler_begin();
    defer_call_begin();
    scsi_merge_begin(&q->neighbours);
    more = queue_run_batch(q);
    scsi_merge_end(&q->neighbours);
    defer_call_end();
    aio_handler_end();
    queue_end_time(q, begin);
    if (switch_kicks) {
        virtio_queue_set_notification(q->vq, 1);
        /* The guest may have added some just before kicks were on again. */
        more |= !virtio_queue_empty(q->vq);
    }
    /* The main loop takes over soon, and looks at the ring. */
    if (more && !qatomic_read(&q->dev->wants_main_loop)) {
        queue_run_later(q);
    }
}

void virtio_scsi_queue_more(void *opaque)
{
    VirtIOSCSIQueue *q = opaque;

    virtio_scsi_handle_cmd((VirtIODevice *)q->dev, q->vq);
}

void virtio_scsi_handle_cmd(VirtIODevice *vdev, VirtQueue *vq)
{
    VirtIOSCSI *s = (VirtIOSCSI *)vdev; /* no cast at run time: hot path */
    unsigned n = virtio_get_queue_index(vq) - VIRTIO_SCSI_VQ_NUM_FIXED;
    VirtIOSCSIQueue *q = &s->queues[n];

    if (unlikely(q->place != QUEUE_HERE)) {
        virtio_scsi_move_more(q);
        return;
    }
    if (!virtio_scsi_kick_is_ours(s)) {
        return;
    }
    /*
     * The guest may have a buffer in the registers of a virtqueue.  Only the
     * main loop writes there, and then we would be called in the middle.
     */
    if (q->running) {
        queue_run_later(q);
        return;
    }
    q->running = true;
    queue_run(q);
    q->running = false;
}

/*
 * Requests that outlive a stop of the VM
 */

void virtio_scsi_queue_abort(VirtIOSCSIQueue *q)
{
    g_autoptr(GPtrArray) luns = scsi_bus_list(&q->dev->bus);

    GLOBAL_STATE_CODE();

    for (unsigned i = 0; i < luns->len; i++) {
        SCSIDevice *d = SCSI_DEVICE(g_ptr_array_index(luns, i));
        SCSIRequest *sreq, *next;

        /* Nobody works on them, so they end at once. */
        QTAILQ_FOREACH_SAFE(sreq, scsi_device_requests(d), next, next) {
            if (((VirtIOSCSIReq *)sreq->hba_private)->queue == q) {
                scsi_req_cancel_async(sreq, NULL);
            }
        }
    }
}

void virtio_scsi_rehome_lun(SCSIDevice *d, bool in_contexts)
{
    GLOBAL_STATE_CODE();

    for (unsigned i = 0; i < d->inflight.num; i++) {
        SCSIRequest *sreq, *next;

        QTAILQ_FOREACH_SAFE(sreq, &d->inflight.lanes[i].requests, next, next) {
            VirtIOSCSIReq *req = sreq->hba_private;

            assert(sreq->retry && !req->queue->filled);
            scsi_req_move(sreq, in_contexts ? req->queue->ctx
                                            : qemu_get_aio_context());
        }
    }
}

void virtio_scsi_cmd_save(QEMUFile *f, SCSIRequest *sreq)
{
    VirtIOSCSIReq *req = sreq->hba_private;
    VirtIOSCSIQueue *q = req->queue;

    qemu_put_be32(f, q->index);
    qemu_put_virtqueue_element(VIRTIO_DEVICE(q->dev), f, &req->elem);
}

/* The bus could not ask us about the data of a pass-through command before. */
static bool cmd_load_cdb(VirtIOSCSIReq *req, SCSIRequest *sreq)
{
    SCSIDeviceClass *sc = SCSI_DEVICE_GET_CLASS(sreq->dev);
    SCSICommand cmd = { .len = 0 };

    if (!sc->parse_cdb) {
        return true;
    }
    if (sc->parse_cdb(sreq->dev, &cmd, sreq->cmd.buf, sizeof(sreq->cmd.buf),
                      req) < 0) {
        return false;
    }
    sreq->cmd = cmd;
    return true;
}

/* NULL, with the error reported, if the stream can't be right */
static VirtIOSCSIReq *cmd_load(QEMUFile *f, SCSIRequest *sreq)
{
    VirtIOSCSI *s = container_of(sreq->bus, VirtIOSCSI, bus);
    unsigned num_queues = s->parent_obj.conf.num_queues;
    uint32_t n = qemu_get_be32(f);
    VirtIOSCSIReq *req;

    if (n >= num_queues) {
        error_report("virtio-scsi: migration stream has a request of queue "
                     "%" PRIu32 ", but num_queues is %u; set it as on the "
                     "source", n, num_queues);
        return NULL;
    }
    if (!sreq->retry) {
        error_report("virtio-scsi: migration stream has a request that doesn't "
                     "wait for the VM to be resumed; nobody would end it");
        return NULL;
    }
    req = qemu_get_virtqueue_element(VIRTIO_DEVICE(s),
                                     VIRTIO_SCSI_VQ_NUM_FIXED + n, f,
                                     CMD_ALLOC_SIZE);
    if (!req) {
        return NULL;
    }
    req->size = SIZE_MAX; /* not from the queue's pool */
    if (cmd_parse(req, &s->queues[n], cmd_sizes(s)) < 0 ||
        !cmd_load_cdb(req, sreq) || !cmd_fits_buffers(req, &sreq->cmd)) {
        error_report("virtio-scsi: migration stream has a request whose "
                     "buffers don't fit its headers");
        virtqueue_detach_element(s->queues[n].vq, &req->elem, 0);
        g_free(req);
        return NULL;
    }
    req->sreq = scsi_req_ref(sreq);
    virtio_scsi_count(&s->queues[n].stats.submitted, 1);
    return req;
}

void *virtio_scsi_cmd_load(QEMUFile *f, SCSIRequest *sreq)
{
    VirtIOSCSIReq *req = cmd_load(f, sreq);

    if (!req) {
        qemu_file_set_error(f, -EINVAL);
    }
    return req;
}
