/*
 * A virtio-scsi driver that shares guest memory with QEMU
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "standard-headers/linux/virtio_ids.h"
#include "virtio-scsi-shm.h"

/* With cdb_size as large as drivers may make it */
#define HEAD_MAX 512

ShmDev *shm_new(QTestState *qts, ShmMem *mem, unsigned pci_slot,
                unsigned depth)
{
    ShmGeometry geo = {
        .depth = depth,
        .depth_other = depth,
        .head = HEAD_MAX,
        .resp = SHM_RESP_FIXED + SHM_SENSE_MAX,
        .data = SHM_DATA_MAX,
        .adjacent = true,   /* the device may get sense_size wrong */
    };

    return shm_dev_new(qts, mem, pci_slot, &geo);
}

void shm_start(ShmDev *d, unsigned flags)
{
    g_assert_cmpuint(d->pci->vdev.device_type, ==, VIRTIO_ID_SCSI);
    shm_dev_start(d, flags);
}

/* Virtio 1.2, 5.6.6.1: single level addressing, flat space for the LUN */
void shm_put_lun(uint8_t *field, unsigned target, unsigned lun)
{
    memset(field, 0, 8);
    field[0] = 1;
    field[1] = target;
    field[2] = 0x40 | lun >> 8;
    field[3] = lun & 0xff;
}

void shm_post_tmf(ShmSlot *slot, uint32_t subtype, unsigned target,
                  unsigned lun, uint64_t tag)
{
    struct virtio_scsi_ctrl_tmf_req *req = (void *)slot->head;
    ShmShape shape = {
        .head = sizeof(*req),
        .resp = sizeof(struct virtio_scsi_ctrl_tmf_resp),
    };

    *req = (struct virtio_scsi_ctrl_tmf_req) {
        .type = cpu_to_le32(VIRTIO_SCSI_T_TMF),
        .subtype = cpu_to_le32(subtype),
        .tag = cpu_to_le64(tag),
    };
    shm_put_lun(req->lun, target, lun);
    *shm_resp(slot, shape.resp) = 0xff;
    shm_post(slot, &shape);
}

uint8_t shm_tmf_response(const ShmSlot *slot)
{
    return *shm_resp(slot, sizeof(struct virtio_scsi_ctrl_tmf_resp));
}
