/*
 * SCSI bus core: migration
 *
 * The stream of QEMU 10.0: the first unit attention condition and the held
 * sense data of the LUN, and its requests that wait for the VM to be resumed.
 * They are written from an image, because the living ones belong to others.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "migration/qemu-file-types.h"
#include "migration/vmstate.h"
#include "scsi/constants.h"
#include "system/runstate.h"
#include "scsi-internal.h"

/* What stands before a request in the stream; 0 ends the list */
enum {
    END_OF_REQUESTS = 0,
    REQUEST_TO_RETRY = 1,
    REQUEST_IN_DATA_PHASE = 2,
};

/*
 * Requests
 */

static void put_request(QEMUFile *f, SCSIRequest *req)
{
    assert(req->enqueued && !req->io_canceled);
    assert(req->status == -1 && req->host_status == -1);

    qemu_put_sbyte(f, req->retry ? REQUEST_TO_RETRY : REQUEST_IN_DATA_PHASE);
    qemu_put_buffer(f, req->cmd.buf, sizeof(req->cmd.buf));
    qemu_put_be32(f, req->tag);
    qemu_put_be32(f, req->lun);
    if (req->bus->info->save_request) {
        req->bus->info->save_request(f, req);
    }
    if (req->ops->save_request) {
        req->ops->save_request(f, req);
    }
}

static int put_requests(QEMUFile *f, void *pv, size_t size,
                        const VMStateField *field, JSONWriter *vmdesc)
{
    SCSIDevice *d = pv;
    SCSIRequest *req;

    /* The VM is stopped and drained: no other thread is in any lane. */
    assert(!runstate_is_running());

    for (unsigned i = 0; i < d->inflight.num; i++) {
        QTAILQ_FOREACH(req, &d->inflight.lanes[i].requests, next) {
            put_request(f, req);
        }
    }
    qemu_put_sbyte(f, END_OF_REQUESTS);
    return 0;
}

/*
 * Whoever finds something wrong reports it, and sets the stream's error.  An
 * HBA that does so keeps nothing.  What a LUN refuses stays until a reset.
 */
static int get_request(QEMUFile *f, SCSIDevice *d, bool retry)
{
    SCSIBus *bus = scsi_bus_from_device(d);
    uint8_t cdb[SCSI_CMD_BUF_SIZE];
    uint32_t tag, lun;
    SCSIRequest *req;

    qemu_get_buffer(f, cdb, sizeof(cdb));
    tag = qemu_get_be32(f);
    lun = qemu_get_be32(f);

    if (qemu_file_get_error(f)) {
        return qemu_file_get_error(f);
    }
    if (!bus->info->load_request) {
        error_report("SCSI device: the HBA, %s, can't take over requests that "
                     "wait for the VM",
                     object_get_typename(OBJECT(bus->qbus.parent)));
        return -ENOTSUP;
    }
    req = scsi_req_restore(d, tag, lun, cdb);
    req->retry = retry;
    req->hba_private = bus->info->load_request(f, req);
    req->retry = false; /* not counted yet */
    if (qemu_file_get_error(f)) {
        scsi_req_unref(req);
        return qemu_file_get_error(f);
    }
    if (retry) {
        scsi_req_retry(req);
    }
    if (req->ops->load_request) {
        req->ops->load_request(f, req);
    }

    /* It goes on when the VM is resumed.  The list keeps it until then. */
    scsi_req_launch(req);
    scsi_req_unref(req);
    return qemu_file_get_error(f);
}

static int get_requests(QEMUFile *f, void *pv, size_t size,
                        const VMStateField *field)
{
    for (;;) {
        int kind = qemu_get_sbyte(f);
        int ret;

        switch (kind) {
        case END_OF_REQUESTS:
            return qemu_file_get_error(f);
        case REQUEST_TO_RETRY:
        case REQUEST_IN_DATA_PHASE:
            ret = get_request(f, pv, kind == REQUEST_TO_RETRY);
            if (ret) {
                return ret;
            }
            break;
        default:
            error_report("SCSI device: migration stream has %d where a request "
                         "(1 or 2) or the end of requests (0) should be", kind);
            return -EINVAL;
        }
    }
}

static const VMStateInfo vmstate_info_requests = {
    .name = "scsi-requests",
    .get = get_requests,
    .put = put_requests,
};

/*
 * The image
 */

static int image_pre_save(void *opaque)
{
    SCSIDevice *d = opaque;
    SCSIDeviceImage *image = &d->image;
    SCSIHeldSense *held = &d->held_sense;

    image->unit_attention = scsi_attention_first(&d->attention);
    WITH_QEMU_LOCK_GUARD(&held->lock) {
        image->sense_is_ua = held->is_ua;
        image->sense_len = held->len;
        memset(image->sense, 0, sizeof(image->sense));
        memcpy(image->sense, held->data, held->len);
    }
    return 0;
}

static int image_post_load(void *opaque, int version_id)
{
    SCSIDevice *d = opaque;
    const SCSIDeviceImage *image = &d->image;

    if (image->sense_len > sizeof(image->sense)) {
        error_report("SCSI device: migration stream has %" PRIu32 " bytes of "
                     "sense data, at most %zu are possible",
                     image->sense_len, sizeof(image->sense));
        return -EINVAL;
    }
    scsi_attention_clear(&d->attention);
    scsi_attention_raise(&d->attention, image->unit_attention);
    scsi_held_sense_set(&d->held_sense, image->sense, image->sense_len,
                        image->sense_is_ua);
    return 0;
}

/* The names are part of the stream's description. */
#define IMAGE_FIELD(_name, _member, _info, _type) {                          \
    .name = _name,                                                           \
    .offset = vmstate_offset_value(SCSIDevice, image._member, _type),        \
    .size = sizeof(_type),                                                   \
    .info = &_info,                                                          \
    .flags = VMS_SINGLE,                                                     \
}

#define IMAGE_SENSE(_first, _num) {                                          \
    .name = "sense",                                                         \
    .offset = offsetof(SCSIDevice, image.sense) + (_first),                  \
    .size = 1,                                                               \
    .num = (_num),                                                           \
    .info = &vmstate_info_uint8,                                             \
    .flags = VMS_ARRAY,                                                      \
}

static bool long_sense_needed(void *opaque)
{
    SCSIDevice *d = opaque;

    return d->image.sense_len > SCSI_SENSE_BUF_SIZE_OLD;
}

static const VMStateDescription vmstate_long_sense = {
    .name = "SCSIDevice/sense",
    .needed = long_sense_needed,
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        /* what has no room in the device's own section */
        IMAGE_SENSE(SCSI_SENSE_BUF_SIZE_OLD,
                    SCSI_SENSE_BUF_SIZE - SCSI_SENSE_BUF_SIZE_OLD),
        VMSTATE_END_OF_LIST()
    },
};

const VMStateDescription vmstate_scsi_device = {
    .name = "SCSIDevice",
    .pre_save = image_pre_save,
    .post_load = image_post_load,
    .version_id = 1,
    .minimum_version_id = 1,
    .subsections = (const VMStateDescription * const []) {
        &vmstate_long_sense, NULL
    },
    .fields = (const VMStateField[]) {
        IMAGE_FIELD("unit_attention.key", unit_attention.key,
                    vmstate_info_uint8, uint8_t),
        IMAGE_FIELD("unit_attention.asc", unit_attention.asc,
                    vmstate_info_uint8, uint8_t),
        IMAGE_FIELD("unit_attention.ascq", unit_attention.ascq,
                    vmstate_info_uint8, uint8_t),
        IMAGE_FIELD("sense_is_ua", sense_is_ua, vmstate_info_bool, bool),
        IMAGE_SENSE(0, SCSI_SENSE_BUF_SIZE_OLD),
        IMAGE_FIELD("sense_len", sense_len, vmstate_info_uint32, uint32_t),
        {
            /* of no size of its own, and about the whole device */
            .name = "requests",
            .flags = VMS_SINGLE,
            .info = &vmstate_info_requests,
        },
        VMSTATE_END_OF_LIST()
    },
};
