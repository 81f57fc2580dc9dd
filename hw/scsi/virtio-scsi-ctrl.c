/*
 * virtio SCSI host bus adapter: the control virtqueue (virtio 1.2, 5.6.6.2)
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "block/aio-wait.h"
#include "hw/virtio/virtio-access.h"
#include "trace.h"
#include "virtio-scsi-internal.h"

/*
 * The virtqueue belongs to the main loop, the commands that a task management
 * function (TMF) is about belong to the AioContexts of their queues.  So a TMF
 * visits these, by a bottom half in each, deals with the commands that it finds
 * there, and comes back to the main loop by another bottom half:
 *
 *   main loop       AioContext 1            AioContext 2
 *   tmf_start
 *     tmf_visit --> visit_run
 *     tmf_visit ------------------------->  visit_run
 *                     cancel A, B             (nothing to cancel)
 *                                           visit_leave
 *   visit_back <------------------------------'
 *                   A, B are cancelled
 *                   visit_leave
 *   visit_back <------'
 *   tmf_finish
 *
 * Nothing is shared but the visit itself, which one side has at a time.  The
 * guest gets the answers to A and B before the answer to the TMF.
 */

/* A request on the control queue, in the guest's byte order */
typedef struct CtrlReq {
    VirtQueueElement elem;      /* first: virtqueue_pop() allocates the whole */
    VirtIOSCSI *dev;
    union {
        VirtIOSCSICtrlTMFReq tmf;
        VirtIOSCSICtrlANReq an;
    } req;
} CtrlReq;

/* What a subtype of TMF does */
typedef enum TmfOp {
    TMF_REJECT,
    TMF_ABORT,
    TMF_QUERY,
    TMF_RESET_LUN,
    TMF_RESET_NEXUS,
} TmfOp;

typedef struct TmfRule {
    TmfOp op;
    bool by_tag;                /* one command, otherwise all of the LUN */
} TmfRule;

static const TmfRule tmf_rules[] = {
    [VIRTIO_SCSI_T_TMF_ABORT_TASK]          = { TMF_ABORT, .by_tag = true },
    [VIRTIO_SCSI_T_TMF_ABORT_TASK_SET]      = { TMF_ABORT },
    [VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET]      = { TMF_ABORT },
    [VIRTIO_SCSI_T_TMF_QUERY_TASK]          = { TMF_QUERY, .by_tag = true },
    [VIRTIO_SCSI_T_TMF_QUERY_TASK_SET]      = { TMF_QUERY },
    [VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET]  = { TMF_RESET_LUN },
    [VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET]     = { TMF_RESET_NEXUS },
    /* We never establish an ACA condition. */
    [VIRTIO_SCSI_T_TMF_CLEAR_ACA]           = { TMF_REJECT },
};

/* A TMF under way; belongs to the main loop */
typedef struct Tmf {
    CtrlReq *creq;
    TmfRule rule;
    SCSIDevice *lun;            /* holds a reference; NULL for a nexus reset */
    uint8_t response;
    unsigned visits;            /* not yet back, plus one while starting */
} Tmf;

/* A TMF's visit to one AioContext; belongs to whoever it is with */
typedef struct TmfVisit {
    Tmf *tmf;                   /* creq, rule and lun are constant */
    AioContext *ctx;
    bool found;                 /* a command that matches */
    unsigned waiting;           /* cancellations, plus one while looking */
} TmfVisit;

/* Tells a visit that a command has been cancelled */
typedef struct TmfCancel {
    Notifier notifier;
    TmfVisit *visit;
} TmfCancel;

/*
 * Answer
 */

static void ctrl_finish(CtrlReq *creq, const void *resp, size_t size)
{
    VirtIOSCSI *s = creq->dev;
    VirtQueue *vq = s->parent_obj.ctrl_vq;

    iov_from_buf(creq->elem.in_sg, creq->elem.in_num, 0, resp, size);
    virtqueue_push(vq, &creq->elem, size);
    virtio_scsi_notify(s, vq);
    g_free(creq);
}

static void ctrl_bad(CtrlReq *creq)
{
    VirtIOSCSI *s = creq->dev;

    virtio_error(VIRTIO_DEVICE(s), "virtio-scsi: buffers of a request on the "
                 "control queue are too small");
    virtqueue_detach_element(s->parent_obj.ctrl_vq, &creq->elem, 0);
    g_free(creq);
}

static void tmf_finish(Tmf *tmf)
{
    VirtIOSCSICtrlTMFResp resp = { .response = tmf->response };

    trace_virtio_scsi_tmf_resp(
        virtio_scsi_lun_number(tmf->creq->req.tmf.lun),
        tmf->creq->req.tmf.tag, tmf->response);
    ctrl_finish(tmf->creq, &resp, sizeof(resp));
    if (tmf->lun) {
        object_unref(OBJECT(tmf->lun));
    }
    g_free(tmf);
}

static void tmf_put(Tmf *tmf)
{
    if (--tmf->visits == 0) {
        tmf_finish(tmf);
    }
}

/*
 * Visit
 */

/* Back in the main loop */
static void visit_back(void *opaque)
{
    g_autofree TmfVisit *visit = opaque;
    Tmf *tmf = visit->tmf;

    tmf->creq->dev->tmf_visits--;
    if (visit->found && tmf->rule.op == TMF_QUERY) {
        tmf->response = VIRTIO_SCSI_S_FUNCTION_SUCCEEDED;
    }
    tmf_put(tmf);
}

/* In the visited AioContext: one thing less to wait for */
static void visit_leave(TmfVisit *visit)
{
    AioContext *main_ctx = qemu_get_aio_context();

    if (--visit->waiting) {
        return;
    }
    if (visit->ctx == main_ctx) {
        /* The VM may be about to stop; a bottom half would come too late. */
        visit_back(visit);
    } else {
        aio_bh_schedule_oneshot(main_ctx, visit_back, visit);
    }
}

static void visit_cancelled(Notifier *notifier, void *data)
{
    g_autofree TmfCancel *cancel = container_of(notifier, TmfCancel, notifier);

    visit_leave(cancel->visit);
}

static void visit_cancel(TmfVisit *visit, VirtIOSCSIReq *req)
{
    TmfCancel *cancel = g_new(TmfCancel, 1);

    cancel->notifier.notify = visit_cancelled;
    cancel->visit = visit;
    visit->waiting++;

    req->aborted = true;
    scsi_req_cancel_async(req->sreq, &cancel->notifier);
}

static void visit_queue(TmfVisit *visit, VirtIOSCSIQueue *q)
{
    const Tmf *tmf = visit->tmf;
    VirtIOSCSIReq *req, *next;

    /* Cancelling may complete this command at once, but no other. */
    QTAILQ_FOREACH_SAFE(req, &q->in_flight, next, next) {
        if (req->sreq->dev != tmf->lun ||
            (tmf->rule.by_tag && req->hdr.tag != tmf->creq->req.tmf.tag)) {
            continue;
        }
        visit->found = true;
        if (tmf->rule.op == TMF_ABORT) {
            visit_cancel(visit, req);
        }
    }
}

/* Are we in the middle of a handler, because a LUN runs the event loop? */
static bool visit_is_untimely(const TmfVisit *visit)
{
    VirtIOSCSI *s = visit->tmf->creq->dev;

    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        if (s->queues[i].ctx == visit->ctx) {
            return s->queues[i].leader->busy;
        }
    }
    return false;
}

/* In the visited AioContext */
static void visit_run(void *opaque)
{
    TmfVisit *visit = opaque;
    VirtIOSCSI *s = visit->tmf->creq->dev;
    bool all_here = visit->ctx == qemu_get_aio_context();

    if (!all_here && visit_is_untimely(visit)) {
        aio_bh_schedule_oneshot(visit->ctx, visit_run, visit);
        return;
    }
    /* If a queue is visited in the main loop, then all of them are. */
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        if (all_here || s->queues[i].ctx == visit->ctx) {
            visit_queue(visit, &s->queues[i]);
        }
    }
    visit_leave(visit);
}

static void tmf_visit(Tmf *tmf, AioContext *ctx)
{
    TmfVisit *visit = g_new(TmfVisit, 1);

    *visit = (TmfVisit) { .tmf = tmf, .ctx = ctx, .waiting = 1 };
    tmf->visits++;
    tmf->creq->dev->tmf_visits++;
    if (ctx == qemu_get_aio_context()) {
        visit_run(visit);
    } else {
        aio_bh_schedule_oneshot(ctx, visit_run, visit);
    }
}

static void tmf_visit_all(Tmf *tmf)
{
    VirtIOSCSI *s = tmf->creq->dev;

    if (!s->num_contexts || virtio_scsi_queues_in_main_loop(s)) {
        tmf_visit(tmf, qemu_get_aio_context());
        return;
    }
    for (unsigned i = 0; i < s->num_contexts; i++) {
        tmf_visit(tmf, s->contexts[i]);
    }
}

/*
 * Reset.  The LUN cancels its commands in their AioContexts and drains, so
 * they are all gone on return.
 */

static void tmf_reset_lun(Tmf *tmf, SCSIDevice *lun)
{
    VirtIOSCSI *s = tmf->creq->dev;

    qatomic_inc(&s->resetting);
    device_cold_reset(&lun->qdev);
    qatomic_dec(&s->resetting);
}

static void tmf_reset_nexus(Tmf *tmf)
{
    g_autoptr(GPtrArray) luns = virtio_scsi_list_luns(tmf->creq->dev);
    unsigned target = tmf->creq->req.tmf.lun[1];

    for (unsigned i = 0; i < luns->len; i++) {
        SCSIDevice *lun = SCSI_DEVICE(g_ptr_array_index(luns, i));

        if (lun->channel == 0 && lun->id == target &&
            qdev_is_realized(&lun->qdev)) {
            tmf_reset_lun(tmf, lun);
        }
    }
}

/*
 * Start
 */

/* Look up the LUN.  Returns false, with the response set, if it is missing. */
static bool tmf_find_lun(Tmf *tmf)
{
    const uint8_t *lun = tmf->creq->req.tmf.lun;

    tmf->lun = virtio_scsi_lun_find(tmf->creq->dev, lun);
    if (!tmf->lun) {
        tmf->response = VIRTIO_SCSI_S_BAD_TARGET;
        return false;
    }
    object_ref(OBJECT(tmf->lun));
    if (tmf->lun->lun != virtio_scsi_lun_number(lun)) {
        tmf->response = VIRTIO_SCSI_S_INCORRECT_LUN;
        return false;
    }
    return true;
}

static void tmf_start(CtrlReq *creq)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(creq->dev);
    uint32_t subtype = virtio_tswap32(vdev, creq->req.tmf.subtype);
    Tmf *tmf = g_new0(Tmf, 1);

    tmf->creq = creq;
    tmf->response = VIRTIO_SCSI_S_OK;   /* FUNCTION COMPLETE */
    tmf->visits = 1;
    if (subtype < ARRAY_SIZE(tmf_rules)) {
        tmf->rule = tmf_rules[subtype];
    }
    trace_virtio_scsi_tmf_req(virtio_scsi_lun_number(creq->req.tmf.lun),
                              creq->req.tmf.tag, subtype);

    switch (tmf->rule.op) {
    case TMF_ABORT:
    case TMF_QUERY:
        if (tmf_find_lun(tmf)) {
            tmf_visit_all(tmf);
        }
        break;
    case TMF_RESET_LUN:
        if (tmf_find_lun(tmf)) {
            tmf_reset_lun(tmf, tmf->lun);
        }
        break;
    case TMF_RESET_NEXUS:
        tmf_reset_nexus(tmf);
        break;
    case TMF_REJECT:
        tmf->response = VIRTIO_SCSI_S_FUNCTION_REJECTED;
        break;
    }
    tmf_put(tmf);
}

/* Asynchronous notification: no SCSI device of ours has any event to offer. */
static void an_start(CtrlReq *creq)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(creq->dev);
    unsigned lun = virtio_scsi_lun_number(creq->req.an.lun);
    VirtIOSCSICtrlANResp resp = {
        .event_actual = 0,
        .response = VIRTIO_SCSI_S_OK,
    };

    trace_virtio_scsi_an_req(lun, virtio_tswap32(vdev,
                                                 creq->req.an.event_requested));
    trace_virtio_scsi_an_resp(lun, resp.response);
    ctrl_finish(creq, &resp, sizeof(resp));
}

/* Does the guest give us @out bytes, and room for @in? */
static bool ctrl_read(CtrlReq *creq, size_t out, size_t in)
{
    const VirtQueueElement *elem = &creq->elem;

    return iov_to_buf(elem->out_sg, elem->out_num, 0, &creq->req, out) == out &&
           iov_size(elem->in_sg, elem->in_num) >= in;
}

/* Returns false if the driver broke the rules, and the device with it. */
static bool ctrl_start(CtrlReq *creq)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(creq->dev);
    uint32_t type;

    if (!ctrl_read(creq, sizeof(type), 0)) {
        ctrl_bad(creq);
        return false;
    }

    type = virtio_tswap32(vdev, creq->req.tmf.type);
    switch (type) {
    case VIRTIO_SCSI_T_TMF:
        if (ctrl_read(creq, sizeof(creq->req.tmf),
                      sizeof(VirtIOSCSICtrlTMFResp))) {
            tmf_start(creq);
            return true;
        }
        break;
    case VIRTIO_SCSI_T_AN_QUERY:
    case VIRTIO_SCSI_T_AN_SUBSCRIBE:
        if (ctrl_read(creq, sizeof(creq->req.an),
                      sizeof(VirtIOSCSICtrlANResp))) {
            an_start(creq);
            return true;
        }
        break;
    default:
        /* The response's layout is unknown; an empty one is what drivers get */
        ctrl_finish(creq, NULL, 0);
        return true;
    }
    ctrl_bad(creq);
    return false;
}

void virtio_scsi_handle_ctrl(VirtIODevice *vdev, VirtQueue *vq)
{
    VirtIOSCSI *s = VIRTIO_SCSI(vdev);
    CtrlReq *creq;

    if (!virtio_scsi_kick_is_ours(s)) {
        return;
    }
    while ((creq = virtqueue_pop(vq, sizeof(*creq)))) {
        creq->dev = s;
        if (!ctrl_start(creq)) {
            break;
        }
    }
}

void virtio_scsi_ctrl_settle(VirtIOSCSI *s)
{
    GLOBAL_STATE_CODE();

    /* Bottom halves in the main loop change it, so nobody needs to kick us. */
    AIO_WAIT_WHILE_UNLOCKED(NULL, s->tmf_visits > 0);
}
