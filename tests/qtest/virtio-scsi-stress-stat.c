/*
 * Stress of a virtio-scsi device: the counters of its queues
 *
 * They are read under load, while IOThreads write them: none may go back, nor
 * contradict another one.  In the end, when nothing is in flight, they must say
 * what the test has done.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qlist.h"
#include "scsi/constants.h"
#include "virtio-scsi-stress.h"

static const char *const stat_names[NUM_STATS] = {
    "submitted", "completed", "in-flight", "aborted", "failed", "bytes-read",
    "bytes-written", "kicks", "interrupts",
};

static StressQueue *queue_of(Stress *s, const Op *op)
{
    unsigned i = op->slot->q->pci.vq.index - s->dev->first_queue;

    g_assert_cmpuint(i, <, s->dev->num_queues);
    return &s->queues[i];
}

void stat_answered(Stress *s, const Op *op, const Outcome *o)
{
    const struct virtio_scsi_cmd_resp *resp =
        (void *)shm_resp(op->slot, SHM_RESP_FIXED + op->sense_size);
    StressQueue *q = queue_of(s, op);
    uint32_t len = op->in_len ?: op->out_len;

    q->done[STAT_COMPLETED]++;
    if (o->response == VIRTIO_SCSI_S_ABORTED ||
        o->response == VIRTIO_SCSI_S_RESET) {
        q->done[STAT_ABORTED]++;
    } else if (o->response != VIRTIO_SCSI_S_OK || o->status != GOOD) {
        q->done[STAT_FAILED]++;
    } else if (len) {
        q->done[op->in_len ? STAT_BYTES_READ : STAT_BYTES_WRITTEN] +=
            len - ldl_le_p(&resp->resid);
    }
}

void stat_lost(Stress *s, const Op *op)
{
    queue_of(s, op)->lost++;
}

static void stat_fail(unsigned queue, const uint64_t *now, const char *why)
{
    g_printerr("queue %u: %s:", queue, why);
    for (unsigned i = 0; i < NUM_STATS; i++) {
        g_printerr(" %s=%" PRIu64, stat_names[i], now[i]);
    }
    g_printerr("\n");
    g_assert_not_reached();
}

static void check_queue(Stress *s, unsigned queue, const uint64_t *now)
{
    const ShmQueue *ring = shm_queue(s->dev, queue);
    StressQueue *q = &s->queues[queue];

    for (unsigned i = 0; i < NUM_STATS; i++) {
        if (i != STAT_IN_FLIGHT && now[i] < q->seen[i]) {
            stat_fail(queue, now, stat_names[i]);
        }
    }
    if (now[STAT_SUBMITTED] - now[STAT_COMPLETED] != now[STAT_IN_FLIGHT] ||
        now[STAT_IN_FLIGHT] > ring->num_slots) {
        stat_fail(queue, now, "commands in flight");
    }
    if (now[STAT_ABORTED] + now[STAT_FAILED] > now[STAT_COMPLETED]) {
        stat_fail(queue, now, "more bad ends than ends");
    }
    /* What we have seen answered, it must have counted before. */
    if (now[STAT_COMPLETED] < q->known) {
        stat_fail(queue, now, "answers that weren't counted");
    }
    memcpy(q->seen, now, sizeof(q->seen));
}

void stat_check(Stress *s)
{
    g_autoptr(QDict) resp = NULL;
    const QListEntry *entry;
    QDict *device;

    if (stress_on_stock()) {
        return; /* it has no such command */
    }
    for (unsigned i = 0; i < s->dev->num_queues; i++) {
        s->queues[i].known = s->queues[i].done[STAT_COMPLETED];
    }
    resp = stress_qmp(s, "{'execute': 'x-query-virtio-scsi-queues',"
                      " 'arguments': {'path': 'scsi0'}}");
    entry = qlist_first(qdict_get_qlist(resp, "return"));
    device = qobject_to(QDict, qlist_entry_obj(entry));
    QLIST_FOREACH_ENTRY(qdict_get_qlist(device, "queues"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));
        uint64_t now[NUM_STATS];

        for (unsigned i = 0; i < NUM_STATS; i++) {
            now[i] = qdict_get_int(info, stat_names[i]);
        }
        check_queue(s, qdict_get_int(info, "queue"), now);
    }
    s->count[COUNT_STATS]++;
}

/* @lost is what may have been done as well, and we never heard of it. */
static void expect_stat(unsigned queue, const StressQueue *q, unsigned i,
                        uint64_t lost)
{
    if (q->seen[i] < q->done[i] || q->seen[i] > q->done[i] + lost) {
        g_printerr("%" PRIu64 " of %" PRIu64 " (and up to %" PRIu64
                   " lost)\n", q->seen[i], q->done[i], lost);
        stat_fail(queue, q->seen, stat_names[i]);
    }
}

void stat_check_sums(Stress *s)
{
    const uint64_t most = MAX_BLOCKS * BLOCK_SIZE; /* bytes of a command */

    if (stress_on_stock()) {
        return;
    }
    s->hold = true; /* or it would go on while we ask */
    stat_check(s);
    s->hold = false;
    for (unsigned i = 0; i < s->dev->num_queues; i++) {
        const StressQueue *q = &s->queues[i];

        if (q->seen[STAT_IN_FLIGHT]) {
            stat_fail(i, q->seen, "still in flight");
        }
        expect_stat(i, q, STAT_COMPLETED, q->lost);
        expect_stat(i, q, STAT_ABORTED, q->lost);
        expect_stat(i, q, STAT_FAILED, q->lost);
        /* While the driver changes sizes, the device sees other lengths. */
        if (!s->count[COUNT_CONFIG_WRITES]) {
            expect_stat(i, q, STAT_BYTES_READ, q->lost * most);
            expect_stat(i, q, STAT_BYTES_WRITTEN, q->lost * most);
        }
        if (q->seen[STAT_KICKS] > shm_queue(s->dev, i)->kicks) {
            stat_fail(i, q->seen, "kicks that we never sent");
        }
        if (q->seen[STAT_INTERRUPTS] > q->seen[STAT_COMPLETED]) {
            stat_fail(i, q->seen, "interrupts without an answer");
        }
    }
}
