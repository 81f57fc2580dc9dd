/*
 * virtio SCSI host bus adapter: QMP in a QEMU without it
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-virtio.h"

VirtioScsiQueuesList *qmp_x_query_virtio_scsi_queues(const char *path,
                                                     Error **errp)
{
    if (path) {
        error_setg(errp, "path '%s' is not a virtio-scsi device: this QEMU was "
                   "built without virtio-scsi", path);
    }
    return NULL; /* without an error: there is none */
}
