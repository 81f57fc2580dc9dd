/*
 * SCSI bus core: what the bus answers for the LUN
 *
 * REPORT LUNS, REQUEST SENSE if there is any, everything that is for a LUN that
 * doesn't exist (SPC-4, 6.33 and 6.39; SAM-5, 5.11), and commands that fail
 * before any LUN gets to see them.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/hw-version.h"
#include "scsi/constants.h"
#include "scsi-internal.h"

/*
 * Commands that end with CHECK CONDITION, whatever they are
 */

typedef struct SCSIRefusal {
    SCSIRequest req;
    SCSISense sense;
    SCSIAttention *claimed_from;    /* NULL if it isn't a unit attention */
    bool sent;
} SCSIRefusal;

static int32_t refusal_send(SCSIRequest *req, uint8_t *cdb)
{
    SCSIRefusal *r = container_of(req, SCSIRefusal, req);

    r->sent = true;
    scsi_req_build_sense(req, r->sense);
    scsi_req_complete(req, CHECK_CONDITION);
    return 0;
}

/* A unit attention that never made it to the initiator waits for the next. */
static void refusal_free(SCSIRequest *req)
{
    SCSIRefusal *r = container_of(req, SCSIRefusal, req);

    if (r->claimed_from && !r->sent) {
        scsi_attention_raise(r->claimed_from, r->sense);
    }
}

static const SCSIReqOps refusal_ops = {
    .size           = sizeof(SCSIRefusal),
    .send_command   = refusal_send,
    .free_req       = refusal_free,
};

SCSIRequest *scsi_target_alloc_refusal(SCSIDevice *d, uint32_t tag,
                                       uint32_t lun, void *hba_private,
                                       SCSISense sense)
{
    SCSIRequest *req = scsi_req_alloc(&refusal_ops, d, tag, lun, hba_private);

    container_of(req, SCSIRefusal, req)->sense = sense;
    return req;
}

bool scsi_target_is_attention(const SCSIRequest *req)
{
    return req->ops == &refusal_ops &&
           container_of(req, SCSIRefusal, req)->claimed_from;
}

/* Which commands a unit attention doesn't stop (SAM-5, 5.14; MMC-6, 4.1.6) */
static bool ignores_attention(SCSIDevice *d, uint8_t opcode)
{
    switch (opcode) {
    case INQUIRY:
    case REPORT_LUNS:
    case GET_CONFIGURATION:
    case GET_EVENT_STATUS_NOTIFICATION:
        return true;
    case REQUEST_SENSE:
        /* Tell of the one that is held before the next one. */
        return scsi_held_sense_is_ua(&d->held_sense);
    default:
        return false;
    }
}

SCSIRequest *scsi_target_claim_attention(SCSIDevice *d, uint32_t tag,
                                         uint32_t lun, uint8_t opcode,
                                         void *hba_private)
{
    SCSIBus *bus = scsi_bus_from_device(d);
    SCSIAttention *from;
    SCSIRequest *req;
    SCSISense sense;

    if (lun != d->lun || ignores_attention(d, opcode)) {
        return NULL;
    }

    /* Somebody else may have been quicker. */
    if (scsi_attention_claim(&d->attention, &sense)) {
        from = &d->attention;
    } else if (scsi_attention_claim(&bus->attention, &sense)) {
        from = &bus->attention;
    } else {
        return NULL;
    }
    req = scsi_target_alloc_refusal(d, tag, lun, hba_private, sense);
    container_of(req, SCSIRefusal, req)->claimed_from = from;
    return req;
}

/*
 * Commands with an answer
 */

typedef struct SCSITargetReq {
    SCSIRequest req;
    uint8_t *data;
    int len;        /* of data-in; 0 once they are under way */
} SCSITargetReq;

/* REPORT LUNS (SPC-4, 6.33) */

static void append_lun(GByteArray *to, uint32_t lun)
{
    uint8_t field[8] = { 0 };

    /* Peripheral device addressing as long as it goes, then flat space */
    stw_be_p(field, lun < 256 ? lun : lun | 0x4000);
    g_byte_array_append(to, field, sizeof(field));
}

static bool report_luns(SCSITargetReq *r)
{
    const SCSICommand *cmd = &r->req.cmd;
    SCSIDevice *d = r->req.dev;
    uint8_t header[8] = { 0 };
    g_autoptr(GArray) luns = NULL;
    GByteArray *list;

    if (cmd->xfer < 16 || cmd->buf[2] > 2) {
        return false;
    }

    luns = scsi_topology_list(r->req.bus, d->channel, d->id);
    list = g_byte_array_new();
    g_byte_array_append(list, header, sizeof(header));
    append_lun(list, 0); /* it is there to answer even if no device is */
    for (unsigned i = 0; i < luns->len; i++) {
        uint32_t lun = g_array_index(luns, uint32_t, i);

        if (lun) {
            append_lun(list, lun);
        }
    }
    stl_be_p(list->data, list->len - sizeof(header));

    r->len = MIN(list->len, cmd->xfer & ~7);
    r->data = g_byte_array_free(list, false);

    /* The initiator knows now (SPC-4, 6.33). */
    scsi_attention_withdraw(&d->attention, SENSE_CODE(REPORTED_LUNS_CHANGED));
    scsi_attention_withdraw(&r->req.bus->attention,
                            SENSE_CODE(REPORTED_LUNS_CHANGED));
    return true;
}

/* INQUIRY to a LUN that doesn't exist (SPC-4, 6.6) */

/* There is a device neither here nor, unless it is LUN 0, ever. */
static uint8_t inquiry_peripheral(const SCSITargetReq *r)
{
    return r->req.lun ? TYPE_NO_LUN : TYPE_NOT_PRESENT | TYPE_INACTIVE;
}

static bool inquiry_vpd(SCSITargetReq *r)
{
    /* Header with the length of the list, and the list: only this page */
    const uint8_t supported_pages[] = { inquiry_peripheral(r), 0, 0, 1, 0 };

    if (r->req.cmd.buf[2] != 0) {
        return false;
    }
    r->data = g_memdup2(supported_pages, sizeof(supported_pages));
    r->len = MIN(sizeof(supported_pages), r->req.cmd.xfer);
    return true;
}

static bool inquiry_standard(SCSITargetReq *r)
{
    uint8_t *data;

    if (r->req.cmd.buf[2] != 0) {
        return false;
    }
    data = g_malloc0(SCSI_INQUIRY_LEN);
    r->data = data;
    r->len = MIN(SCSI_INQUIRY_LEN, r->req.cmd.xfer);

    data[0] = inquiry_peripheral(r);
    if (r->req.lun) {
        return true;
    }
    data[2] = 5;                                /* SPC-3 */
    data[3] = 0x10 | 2;                         /* HISUP, response format */
    data[4] = SCSI_INQUIRY_LEN - 5;             /* additional length */
    data[7] = r->req.bus->info->tcq ? 0x12 : 0x10; /* SYNC, CMDQUE */
    memcpy(data + 8, "QEMU    QEMU TARGET     ", 24);
    pstrcpy((char *)data + 32, 4, qemu_hw_version());
    return true;
}

static bool inquiry(SCSITargetReq *r)
{
    if (r->req.cmd.buf[1] & 2) {
        return false; /* CMDDT is obsolete */
    }
    return r->req.cmd.buf[1] & 1 ? inquiry_vpd(r) : inquiry_standard(r);
}

/* REQUEST SENSE (SPC-4, 6.39) */

static void request_sense(SCSITargetReq *r)
{
    SCSIDevice *d = r->req.dev;
    bool fixed = !(r->req.cmd.buf[1] & 1);
    int size = d->type == TYPE_SCANNER ? SCSI_SENSE_LEN_SCANNER
                                       : SCSI_SENSE_LEN;

    r->data = g_malloc0(size);
    size = MIN(size, r->req.cmd.xfer);
    if (r->req.lun != 0 && r->req.lun != d->lun) {
        r->len = scsi_build_sense_buf(r->data, size,
                                      SENSE_CODE(LUN_NOT_SUPPORTED), fixed);
        return;
    }
    r->len = scsi_held_sense_get(&d->held_sense, r->data, size, fixed);
    if (scsi_held_sense_drop_ua(&d->held_sense)) {
        scsi_device_unit_attention_reported(d);
    }
}

static int32_t target_refuse(SCSIRequest *req, SCSISense sense)
{
    scsi_req_build_sense(req, sense);
    scsi_req_complete(req, CHECK_CONDITION);
    return 0;
}

static int32_t target_send(SCSIRequest *req, uint8_t *cdb)
{
    SCSITargetReq *r = container_of(req, SCSITargetReq, req);
    bool valid = true;

    if (req->lun != 0 && req->lun != req->dev->lun &&
        cdb[0] != INQUIRY && cdb[0] != REQUEST_SENSE) {
        return target_refuse(req, SENSE_CODE(LUN_NOT_SUPPORTED));
    }
    switch (cdb[0]) {
    case REPORT_LUNS:
        valid = report_luns(r);
        break;
    case INQUIRY:
        valid = inquiry(r);
        break;
    case REQUEST_SENSE:
        request_sense(r);
        break;
    case TEST_UNIT_READY:
        break;
    default:
        return target_refuse(req, SENSE_CODE(INVALID_OPCODE));
    }
    if (!valid) {
        return target_refuse(req, SENSE_CODE(INVALID_FIELD));
    }
    if (!r->len) {
        scsi_req_complete(req, GOOD);
    }
    return r->len;
}

static void target_read_data(SCSIRequest *req)
{
    SCSITargetReq *r = container_of(req, SCSITargetReq, req);
    int len = r->len;

    r->len = 0;
    if (len) {
        scsi_req_data(req, len);
    } else {
        scsi_req_complete(req, GOOD);
    }
}

static uint8_t *target_get_buf(SCSIRequest *req)
{
    return container_of(req, SCSITargetReq, req)->data;
}

static void target_free(SCSIRequest *req)
{
    g_free(container_of(req, SCSITargetReq, req)->data);
}

static const SCSIReqOps target_ops = {
    .size           = sizeof(SCSITargetReq),
    .send_command   = target_send,
    .read_data      = target_read_data,
    .get_buf        = target_get_buf,
    .free_req       = target_free,
};

SCSIRequest *scsi_target_alloc(SCSIDevice *d, uint32_t tag, uint32_t lun,
                               void *hba_private)
{
    return scsi_req_alloc(&target_ops, d, tag, lun, hba_private);
}
