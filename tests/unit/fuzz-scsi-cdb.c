/*
 * Fuzzer of the CDB table
 *
 * Input: type of device, block size in 4 bytes, and the CDB.  The CDB is in
 * memory of its own length, so that a look behind it is seen by a sanitizer.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "scsi/constants.h"
#include "hw/scsi/scsi-cdb.h"
#include "fuzz-target.h"

static const size_t group_len[] = { 6, 10, 10, 0, 16, 12, 0, 0 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, size };
    int type = fuzz_byte(&in) & 0x1f;
    uint32_t blocksize = fuzz_number(&in, 4);
    g_autofree uint8_t *cdb = g_memdup2(in.data, in.size);
    size_t len = in.size ? group_len[cdb[0] >> 5] : 0;
    SCSICommand cmd, again;
    int ret;

    memset(&cmd, 0xa5, sizeof(cmd));
    memset(&again, 0x5a, sizeof(again));
    ret = scsi_cdb_parse(type, blocksize, cdb, in.size, &cmd);

    if (!len || in.size < len) {
        g_assert(ret == -1 && cmd.len == 0 && cmd.lba == UINT64_MAX);
    } else {
        g_assert(cmd.len == len && !memcmp(cmd.buf, cdb, len));
        g_assert(buffer_is_zero(cmd.buf + len, sizeof(cmd.buf) - len));
    }
    g_assert((cmd.mode == SCSI_XFER_NONE) == (cmd.xfer == 0));
    g_assert(ret == 0 || cmd.xfer == 0);

    /* What stands behind the CDB says nothing. */
    if (len && in.size >= len) {
        g_assert(scsi_cdb_parse(type, blocksize, cmd.buf, len, &again) == ret);
        g_assert(again.xfer == cmd.xfer && again.mode == cmd.mode &&
                 again.lba == cmd.lba && again.len == cmd.len);
    }
    return 0;
}
