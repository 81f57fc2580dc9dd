/*
 * Assignment of a virtio device's queues to IOThreads
 *
 * The work is done in two steps.  Planning looks up every IOThread and decides
 * on each queue's, in memory of its own, and is the only step that can fail.
 * Committing copies the plan out and marks the IOThreads as in use.  So an
 * error can never leave anything half done.
 *
 * Written anew in the place of QEMU's file of this name, which is under
 * GPL-2.0-only (Copyright Red Hat, Inc).
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "hw/virtio/iothread-vq-mapping.h"
#include "system/iothread.h"

#define PROP "iothread-vq-mapping"

typedef struct MappingPlan {
    uint16_t num_queues;
    IOThread **by_queue;    /* num_queues elements, NULL: not assigned yet */
    GPtrArray *iothreads;   /* in the order of the list */
} MappingPlan;

static void mapping_plan_free(MappingPlan *plan)
{
    g_free(plan->by_queue);
    g_ptr_array_free(plan->iothreads, true);
    g_free(plan);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(MappingPlan, mapping_plan_free)

static MappingPlan *mapping_plan_new(uint16_t num_queues)
{
    MappingPlan *plan = g_new0(MappingPlan, 1);

    plan->num_queues = num_queues;
    plan->by_queue = g_new0(IOThread *, num_queues);
    plan->iothreads = g_ptr_array_new();
    return plan;
}

/* Returns NULL, with @errp set, if @id is not another IOThread. */
static IOThread *mapping_plan_add_iothread(MappingPlan *plan, const char *id,
                                           Error **errp)
{
    IOThread *iothread = iothread_by_id(id);

    if (!iothread) {
        error_setg(errp, PROP ": there is no IOThread '%s'; create it first, "
                   "with -object iothread,id=... or QMP object-add", id);
        return NULL;
    }
    /* Compare objects, not names: one IOThread also answers to its QOM path. */
    if (g_ptr_array_find(plan->iothreads, iothread, NULL)) {
        error_setg(errp, PROP ": IOThread '%s' is listed twice; list it once, "
                   "with all of its queues in that entry's vqs", id);
        return NULL;
    }
    g_ptr_array_add(plan->iothreads, iothread);
    return iothread;
}

static bool mapping_plan_add_queue(MappingPlan *plan, int64_t vq,
                                   IOThread *iothread, Error **errp)
{
    if (vq < 0 || vq >= plan->num_queues) {
        g_autofree char *id = iothread_get_id(iothread);

        error_setg(errp, PROP ": vqs of IOThread '%s' has %" PRId64 ", but the "
                   "device's %u queues have the indices 0 to %u; correct the "
                   "index or the device's number of queues",
                   id, vq, plan->num_queues, plan->num_queues - 1);
        return false;
    }
    if (plan->by_queue[vq]) {
        g_autofree char *id = iothread_get_id(iothread);
        g_autofree char *other = iothread_get_id(plan->by_queue[vq]);

        error_setg(errp, PROP ": vqs of IOThread '%s' has queue %" PRId64
                   ", which IOThread '%s' has already; name each queue once",
                   id, vq, other);
        return false;
    }
    plan->by_queue[vq] = iothread;
    return true;
}

static bool mapping_plan_add_vqs(MappingPlan *plan,
                                 const IOThreadVirtQueueMapping *entry,
                                 IOThread *iothread, Error **errp)
{
    intList *item;

    if (!entry->vqs) {
        error_setg(errp, PROP ": vqs of IOThread '%s' is empty; name at least "
                   "one queue there, or leave the IOThread out of the list",
                   entry->iothread);
        return false;
    }
    for (item = entry->vqs; item; item = item->next) {
        if (!mapping_plan_add_queue(plan, item->value, iothread, errp)) {
            return false;
        }
    }
    return true;
}

/* The form without vqs: deal the queues out, one to each IOThread in turn. */
static void mapping_plan_deal(MappingPlan *plan)
{
    for (unsigned i = 0; i < plan->num_queues; i++) {
        plan->by_queue[i] = g_ptr_array_index(plan->iothreads,
                                              i % plan->iothreads->len);
    }
}

static bool mapping_plan_is_complete(MappingPlan *plan, Error **errp)
{
    for (unsigned i = 0; i < plan->num_queues; i++) {
        if (!plan->by_queue[i]) {
            error_setg(errp, PROP ": queue %u is in no IOThread's vqs; name "
                       "each of the queues 0 to %u once, or leave vqs out of "
                       "all entries", i, plan->num_queues - 1);
            return false;
        }
    }
    return true;
}

static MappingPlan *mapping_plan_make(IOThreadVirtQueueMappingList *list,
                                      uint16_t num_queues, Error **errp)
{
    g_autoptr(MappingPlan) plan = mapping_plan_new(num_queues);
    const IOThreadVirtQueueMapping *first;

    if (!list) {
        error_setg(errp, PROP ": the list is empty; name at least one "
                   "IOThread, or leave the property out to use the main loop");
        return NULL;
    }

    first = list->value;
    for (IOThreadVirtQueueMappingList *node = list; node; node = node->next) {
        const IOThreadVirtQueueMapping *entry = node->value;
        IOThread *iothread;

        iothread = mapping_plan_add_iothread(plan, entry->iothread, errp);
        if (!iothread) {
            return NULL;
        }
        if (entry->has_vqs != first->has_vqs) {
            error_setg(errp, PROP ": IOThread '%s' has vqs, but IOThread '%s' "
                       "has none; give vqs to every entry or to none",
                       entry->has_vqs ? entry->iothread : first->iothread,
                       entry->has_vqs ? first->iothread : entry->iothread);
            return NULL;
        }
        if (entry->has_vqs &&
            !mapping_plan_add_vqs(plan, entry, iothread, errp)) {
            return NULL;
        }
    }

    if (!first->has_vqs) {
        mapping_plan_deal(plan);
    } else if (!mapping_plan_is_complete(plan, errp)) {
        return NULL;
    }
    return g_steal_pointer(&plan);
}

/* Dealt out in turn, so exactly the entries after the last queue get none. */
static void mapping_plan_warn_idle(const MappingPlan *plan)
{
    g_autoptr(GString) ids = g_string_new(NULL);

    if (plan->iothreads->len <= plan->num_queues) {
        return;
    }
    for (unsigned i = plan->num_queues; i < plan->iothreads->len; i++) {
        g_autofree char *id =
            iothread_get_id(g_ptr_array_index(plan->iothreads, i));

        g_string_append_printf(ids, "%s'%s'", ids->len ? ", " : "", id);
    }
    warn_report(PROP ": %u IOThreads for %u queues, no queue is left for %s; "
                "they stay idle unless the device gets more queues",
                plan->iothreads->len, plan->num_queues, ids->str);
}

bool iothread_vq_mapping_apply(IOThreadVirtQueueMappingList *list,
                               AioContext **vq_aio_context,
                               uint16_t num_queues, Error **errp)
{
    g_autoptr(MappingPlan) plan = NULL;

    GLOBAL_STATE_CODE();

    plan = mapping_plan_make(list, num_queues, errp);
    if (!plan) {
        return false;
    }

    for (unsigned i = 0; i < num_queues; i++) {
        vq_aio_context[i] = iothread_get_aio_context(plan->by_queue[i]);
    }
    for (unsigned i = 0; i < plan->iothreads->len; i++) {
        iothread_attach_user(g_ptr_array_index(plan->iothreads, i));
    }
    mapping_plan_warn_idle(plan);
    return true;
}

void iothread_vq_mapping_cleanup(IOThreadVirtQueueMappingList *list)
{
    GLOBAL_STATE_CODE();

    /* An IOThread in use can't be deleted, so its id still means the same. */
    for (IOThreadVirtQueueMappingList *node = list; node; node = node->next) {
        iothread_detach_user(iothread_by_id(node->value->iothread));
    }
}
