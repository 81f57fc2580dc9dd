/*
 * A virtio-scsi driver that shares guest memory with QEMU
 *
 * What virtio-shm.h doesn't know about SCSI: sizes, LUNs, the control queue.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_SCSI_SHM_H
#define TESTS_QTEST_VIRTIO_SCSI_SHM_H

#include "virtio-shm.h"
#include "standard-headers/linux/virtio_scsi.h"

/* Bytes of data that a slot of shm_new() has room for */
#define SHM_DATA_MAX 8192

/* Bytes of a response: the fixed part, and sense data of this size at most */
#define SHM_RESP_FIXED offsetof(struct virtio_scsi_cmd_resp, sense)
#define SHM_SENSE_MAX  256

/* A SCSI host whose every queue has @depth slots */
ShmDev *shm_new(QTestState *qts, ShmMem *mem, unsigned pci_slot,
                unsigned depth);

/* shm_dev_start(), and the device must be a SCSI host */
void shm_start(ShmDev *d, unsigned flags);

static inline ShmQueue *shm_ctrl(ShmDev *d)
{
    return &d->vqs[0];
}

static inline ShmQueue *shm_event(ShmDev *d)
{
    return &d->vqs[1];
}

void shm_put_lun(uint8_t *field, unsigned target, unsigned lun);
void shm_post_tmf(ShmSlot *slot, uint32_t subtype, unsigned target,
                  unsigned lun, uint64_t tag);
uint8_t shm_tmf_response(const ShmSlot *slot);

#endif
