/*
 * SCSI command descriptor blocks: what the bytes of a CDB say
 *
 * Pure functions over one table of commands; no state, any thread.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SCSI_SCSI_CDB_H
#define HW_SCSI_SCSI_CDB_H

#include "scsi/utils.h"

/**
 * scsi_cdb_parse:
 * @type: peripheral device type of the LUN (SPC-4, 6.6.2: TYPE_DISK, ...);
 *        the same operation code means different commands to different types
 * @blocksize: bytes per logical block of the LUN
 * @cdb: what the initiator has sent; not within @cmd
 * @size: bytes that may be read at @cdb
 * @cmd: where to store the result
 *
 * Find a CDB's length, logical block address, and the direction and the
 * length in bytes of its data transfer, as SPC-4, SBC-3, SSC-4, SMC-3 and
 * MMC-6 define them.  @cmd->lba is what stands where the operation code's
 * group has the LBA, also if this command has something else there.  An
 * unknown operation code is read as most others of its group, from the device.
 * Bytes of @cmd->buf beyond the CDB are zero.
 *
 * Context: any thread.
 * Returns: 0, or -1 if @cdb is of unknown length or longer than @size
 * (@cmd->len is 0 then, @cmd->buf empty) or of a form without a defined
 * transfer length (@cmd->len and @cmd->buf are valid); @cmd->lba is -1, there
 * is no transfer.
 */
int scsi_cdb_parse(int type, uint32_t blocksize, const uint8_t *cdb,
                   size_t size, SCSICommand *cmd);

#endif /* HW_SCSI_SCSI_CDB_H */
