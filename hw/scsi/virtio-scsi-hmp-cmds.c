/*
 * virtio SCSI host bus adapter: HMP
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-virtio.h"
#include "qemu/timer.h"
#include "qobject/qdict.h"

static void print_queue(Monitor *mon, const VirtioScsiQueueInfo *q)
{
    uint64_t stay_s = q->stay_ns / NANOSECONDS_PER_SECOND;

    monitor_printf(mon, "  queue %" PRIu32 ": %s%s thread-id=%" PRId64
                   " polling=%s", q->queue,
                   q->iothread ? "iothread=" : "main-loop",
                   q->iothread ?: "", q->thread_id, q->polling ? "yes" : "no");
    monitor_printf(mon, " submitted=%" PRIu64 " completed=%" PRIu64
                   " in-flight=%" PRIu64 " aborted=%" PRIu64
                   " failed=%" PRIu64, q->submitted, q->completed,
                   q->in_flight, q->aborted, q->failed);
    monitor_printf(mon, " bytes-read=%" PRIu64 " bytes-written=%" PRIu64
                   " kicks=%" PRIu64 " interrupts=%" PRIu64 "\n",
                   q->bytes_read, q->bytes_written, q->kicks, q->interrupts);
    monitor_printf(mon, "    moves=%" PRIu64 " stay=%" PRIu64 "s", q->moves,
                   stay_s);
    if (q->has_share) {
        monitor_printf(mon, " share=%.0f%% iothread-busy=%.0f%%",
                       q->share * 100, q->iothread_busy * 100);
    }
    monitor_printf(mon, "\n");
}

void hmp_info_virtio_scsi_queues(Monitor *mon, const QDict *qdict)
{
    const char *path = qdict_get_try_str(qdict, "path");
    g_autoptr(VirtioScsiQueuesList) list = NULL;
    Error *err = NULL;

    list = qmp_x_query_virtio_scsi_queues(path, &err);
    if (hmp_handle_error(mon, err)) {
        return;
    }
    if (!list) {
        monitor_printf(mon, "There is no virtio-scsi device.\n");
    }
    for (VirtioScsiQueuesList *d = list; d; d = d->next) {
        monitor_printf(mon, "%s%s%s:\n", d->value->id ?: "",
                       d->value->id ? " " : "", d->value->path);
        for (VirtioScsiQueueInfoList *q = d->value->queues; q; q = q->next) {
            print_queue(mon, q->value);
        }
    }
}
