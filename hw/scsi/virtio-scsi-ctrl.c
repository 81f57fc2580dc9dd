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
 * The virtqueue belongs to the main loop, and so does all that is here.  The
 * commands that a task management function (TMF) is about belong to other
 * AioContexts; scsi_device_abort() goes there, and answers in the main loop.
 * Nothing here waits or runs the event loop.
 *
 * The guest gets the answers to the commands before the answer to the TMF.
 */

/* What one call of the handler takes; the event loop has other work */
#define CTRL_BATCH 64

/* A request on the control queue, in the guest's byte order */
typedef struct CtrlReq {
    VirtQueueElement elem;      /* first: virtqueue_pop() allocates the whole */
    VirtIOSCSILate late;        /* valid while it is on the list */
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
    uint16_t report;            /* bit for SCSIBusInfo.supported_tmfs() */
} TmfRule;

static const TmfRule tmf_rules[] = {
    [VIRTIO_SCSI_T_TMF_ABORT_TASK]          = { TMF_ABORT, true, 0x8000 },
    [VIRTIO_SCSI_T_TMF_ABORT_TASK_SET]      = { TMF_ABORT, false, 0x4000 },
    [VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET]      = { TMF_ABORT, false, 0x1000 },
    [VIRTIO_SCSI_T_TMF_QUERY_TASK]          = { TMF_QUERY, true, 0x0400 },
    [VIRTIO_SCSI_T_TMF_QUERY_TASK_SET]      = { TMF_QUERY, false, 2 },
    [VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET]  = { TMF_RESET_LUN, false, 0x0800 },
    [VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET]     = { TMF_RESET_NEXUS, false, 1 },
    /* We never establish an ACA condition. */
    [VIRTIO_SCSI_T_TMF_CLEAR_ACA]           = { TMF_REJECT },
};

uint16_t virtio_scsi_supported_tmfs(SCSIBus *bus)
{
    uint16_t all = 0;

    for (size_t i = 0; i < ARRAY_SIZE(tmf_rules); i++) {
        all |= tmf_rules[i].report;
    }
    return all;
}

/* A TMF under way */
typedef struct Tmf {
    CtrlReq *creq;
    TmfRule rule;
    uint8_t response;
    unsigned left;              /* LUNs to come, plus one while starting */
} Tmf;

/* What a TMF does to one LUN */
typedef struct TmfLun {
    SCSIAbort abort;            /* holds a reference to the LUN */
    Tmf *tmf;
} TmfLun;

/*
 * Answer
 */

static void ctrl_free_late(VirtIOSCSILate *late)
{
    g_free(container_of(late, CtrlReq, late));
}

/* After the answers of all commands that have ended, should some be late */
static void ctrl_finish(CtrlReq *creq, const void *resp, size_t size)
{
    VirtIOSCSI *s = creq->dev;
    VirtQueue *vq = s->parent_obj.ctrl_vq;

    iov_from_buf(creq->elem.in_sg, creq->elem.in_num, 0, resp, size);
    if (!creq->elem.in_ram || !virtio_queue_in_ram(vq) ||
        !QSIMPLEQ_EMPTY(&s->late)) {
        creq->late = (VirtIOSCSILate) {
            .vq = vq,
            .elem = &creq->elem,
            .written = size,
            .free = ctrl_free_late,
        };
        virtio_scsi_keep_back(s, &creq->late);
        return;
    }
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
    tmf->creq->dev->tmfs--;
    ctrl_finish(tmf->creq, &resp, sizeof(resp));
    g_free(tmf);
}

static void tmf_put(Tmf *tmf)
{
    if (--tmf->left == 0) {
        tmf_finish(tmf);
    }
}

/*
 * One LUN
 */

static bool tmf_has_tag(const SCSIRequest *sreq, void *opaque)
{
    const Tmf *tmf = ((TmfLun *)opaque)->tmf;
    const VirtIOSCSIReq *req = sreq->hba_private;

    return req->hdr.tag == tmf->creq->req.tmf.tag;
}

static void tmf_lun_done(SCSIAbort *abort)
{
    g_autofree TmfLun *lun = container_of(abort, TmfLun, abort);
    SCSIDevice *d = abort->dev;
    Tmf *tmf = lun->tmf;

    if (abort->reset) {
        /* It may have been unplugged meanwhile. */
        if (qdev_is_realized(&d->qdev)) {
            /* What it would end has ended; what came later may go on. */
            d->purged = true;
            device_cold_reset(&d->qdev);
            d->purged = false;
        }
    }
    if (abort->found && tmf->rule.op == TMF_QUERY) {
        tmf->response = VIRTIO_SCSI_S_FUNCTION_SUCCEEDED;
    }
    object_unref(OBJECT(d));
    tmf_put(tmf);
}

static void tmf_lun(Tmf *tmf, SCSIDevice *d)
{
    bool reset = tmf->rule.op == TMF_RESET_LUN ||
                 tmf->rule.op == TMF_RESET_NEXUS;
    TmfLun *lun = g_new(TmfLun, 1);

    *lun = (TmfLun) {
        .abort = {
            .dev = SCSI_DEVICE(object_ref(OBJECT(d))),
            .match = tmf->rule.by_tag ? tmf_has_tag : NULL,
            .cancel = tmf->rule.op != TMF_QUERY,
            .reset = reset,
            .done = tmf_lun_done,
            .opaque = lun,
        },
        .tmf = tmf,
    };
    tmf->left++;
    scsi_device_abort(&lun->abort);
}

/*
 * Start
 */

static void tmf_one_lun(Tmf *tmf)
{
    const uint8_t *lun = tmf->creq->req.tmf.lun;
    SCSIDevice *d = virtio_scsi_lun_find(tmf->creq->dev, lun);

    if (!d) {
        tmf->response = VIRTIO_SCSI_S_BAD_TARGET;
    } else if (d->lun != virtio_scsi_lun_number(lun)) {
        tmf->response = VIRTIO_SCSI_S_INCORRECT_LUN;
    } else {
        tmf_lun(tmf, d);
    }
}

static void tmf_all_luns(Tmf *tmf)
{
    g_autoptr(GPtrArray) luns = scsi_bus_list(&tmf->creq->dev->bus);
    unsigned target = tmf->creq->req.tmf.lun[1];

    for (unsigned i = 0; i < luns->len; i++) {
        SCSIDevice *d = SCSI_DEVICE(g_ptr_array_index(luns, i));

        if (d->channel == 0 && d->id == target && qdev_is_realized(&d->qdev)) {
            tmf_lun(tmf, d);
        }
    }
}

static void tmf_start(CtrlReq *creq)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(creq->dev);
    uint32_t subtype = virtio_tswap32(vdev, creq->req.tmf.subtype);
    Tmf *tmf = g_new0(Tmf, 1);

    tmf->creq = creq;
    tmf->response = VIRTIO_SCSI_S_OK;   /* FUNCTION COMPLETE */
    tmf->left = 1;
    creq->dev->tmfs++;
    if (subtype < ARRAY_SIZE(tmf_rules)) {
        tmf->rule = tmf_rules[subtype];
    }
    trace_virtio_scsi_tmf_req(virtio_scsi_lun_number(creq->req.tmf.lun),
                              creq->req.tmf.tag, subtype);

    switch (tmf->rule.op) {
    case TMF_ABORT:
    case TMF_QUERY:
    case TMF_RESET_LUN:
        tmf_one_lun(tmf);
        break;
    case TMF_RESET_NEXUS:
        tmf_all_luns(tmf);
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

/* Returns true if there may be more. */
static bool ctrl_run_batch(VirtIOSCSI *s, VirtQueue *vq)
{
    CtrlReq *creq;

    for (int n = 0; n < CTRL_BATCH; n++) {
        creq = virtqueue_pop(vq, sizeof(*creq));
        if (!creq) {
            return false;
        }
        creq->dev = s;
        if (!ctrl_start(creq)) {
            return false;
        }
    }
    return true;
}

void virtio_scsi_handle_ctrl(VirtIODevice *vdev, VirtQueue *vq)
{
    VirtIOSCSI *s = VIRTIO_SCSI(vdev);

    if (!virtio_scsi_kick_is_ours(s)) {
        return;
    }
    /* Not in the middle of itself; see virtio_scsi_handle_cmd(). */
    if (s->in_ctrl) {
        qemu_bh_schedule(s->main_bh);
        return;
    }
    s->in_ctrl = true;
    if (ctrl_run_batch(s, vq)) {
        qemu_bh_schedule(s->main_bh);
    }
    s->in_ctrl = false;
}

void virtio_scsi_ctrl_settle(VirtIOSCSI *s)
{
    GLOBAL_STATE_CODE();

    /* Bottom halves in the main loop change it, so nobody needs to kick us. */
    AIO_WAIT_WHILE_UNLOCKED(NULL, s->tmfs > 0);
}
