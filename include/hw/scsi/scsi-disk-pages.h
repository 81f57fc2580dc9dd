/*
 * What an emulated disk or cd tells of itself
 *
 * INQUIRY data and vital product data, from tables.  Pure functions of facts
 * that the caller has put together; no state, any thread.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SCSI_SCSI_DISK_PAGES_H
#define HW_SCSI_SCSI_DISK_PAGES_H

#include "hw/scsi/scsi.h"

/* No answer is longer, whatever the allocation length is. */
#define SCSI_DISK_ANSWER_MAX    4096

/**
 * SCSIDiskFacts: what the answers depend on
 *
 * @dev: the LUN; type, names, BlockConf and SCSI version are read
 * @tcq: the HBA can queue commands
 * @standard: as the standards say, otherwise as QEMU 10.0 does where the two
 *            differ and a guest could notice
 * @removable: the medium is
 * @max_transfer: of the node below, in bytes, or 0
 * @max_io_size, @max_unmap_size: bytes, from the properties
 *
 * The others are the properties of the same names; strings may be NULL where
 * those may be unset.
 */
typedef struct SCSIDiskFacts {
    const SCSIDevice *dev;
    bool tcq;
    bool standard;
    bool removable;
    const char *vendor;
    const char *product;
    const char *version;
    const char *serial;
    const char *device_id;
    uint16_t port_index;
    uint16_t rotation_rate;
    int max_transfer;
    uint64_t max_io_size;
    uint64_t max_unmap_size;
} SCSIDiskFacts;

/**
 * scsi_disk_inquiry:
 * @f: the facts
 * @cmd: an INQUIRY
 * @buf: SCSI_DISK_ANSWER_MAX bytes, all 0; the answer is written there
 *
 * Standard INQUIRY data (SPC-4, 6.6.2) or a VPD page (7.8, and SBC-3, 6.6).
 * The answer is whole, however short the allocation length is.
 *
 * Context: any thread.
 * Returns: the length of the answer, or -1 if the CDB asks for something that
 * isn't there.
 */
int scsi_disk_inquiry(const SCSIDiskFacts *f, const SCSICommand *cmd,
                      uint8_t *buf);

#endif /* HW_SCSI_SCSI_DISK_PAGES_H */
