/*
 * Fuzzer of iothread-vq-mapping's JSON
 *
 * Input: the number of queues, in 2 bytes, and the property's value as text.
 * Eight IOThreads exist, io0 to io7.  A value that isn't taken must leave
 * nothing, and one that is taken an IOThread for each queue.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qapi/qapi-visit-virtio.h"
#include "qobject/qjson.h"
#include "qobject/qobject.h"
#include "qapi/qobject-input-visitor.h"
#include "hw/virtio/iothread-vq-mapping.h"
#include "monitor/monitor.h"
#include "qemu/main-loop.h"
#include "system/iothread.h"
#include "fuzz-target.h"

#define NUM_IOTHREADS   8
#define MAX_QUEUES      1021

static IOThread fakes[NUM_IOTHREADS];

IOThread *iothread_by_id(const char *id)
{
    bool is_one = !strncmp(id, "io", 2) && id[2] >= '0' &&
                  id[2] < '0' + NUM_IOTHREADS && !id[3];

    return is_one ? &fakes[id[2] - '0'] : NULL;
}

char *iothread_get_id(IOThread *iothread)
{
    return g_strdup_printf("io%d", (int)(iothread - fakes));
}

/* Passed on, and never looked into */
AioContext *iothread_get_aio_context(IOThread *iothread)
{
    return (AioContext *)iothread;
}

void iothread_attach_user(IOThread *iothread)
{
    iothread->users++;
}

void iothread_detach_user(IOThread *iothread)
{
    g_assert(iothread->users == 1);
    iothread->users--;
}

bool qemu_in_main_thread(void)
{
    return true;
}

/* Warnings of IOThreads that stay idle would drown everything else. */
int error_vprintf(const char *fmt, va_list ap)
{
    return 0;
}

int error_vprintf_unless_qmp(const char *fmt, va_list ap)
{
    return 0;
}

static unsigned count_users(void)
{
    unsigned users = 0;

    for (unsigned i = 0; i < NUM_IOTHREADS; i++) {
        g_assert(fakes[i].users <= 1);
        users += fakes[i].users;
    }
    return users;
}

static unsigned list_length(IOThreadVirtQueueMappingList *list)
{
    unsigned n = 0;

    for (; list; list = list->next) {
        n++;
    }
    return n;
}

static void try_mapping(IOThreadVirtQueueMappingList *list, unsigned queues)
{
    AioContext *ctx[MAX_QUEUES] = { 0 };
    Error *err = NULL;

    if (!iothread_vq_mapping_apply(list, ctx, queues, &err)) {
        g_assert(err && strstr(error_get_pretty(err), "iothread-vq-mapping"));
        error_free(err);
        g_assert(!ctx[0] && !count_users());
        return;
    }
    g_assert(!err && count_users() == list_length(list));
    for (unsigned i = 0; i < queues; i++) {
        IOThread *iothread = (IOThread *)ctx[i];

        g_assert(iothread >= fakes && iothread < fakes + NUM_IOTHREADS);
        g_assert(iothread->users == 1);
    }
    iothread_vq_mapping_cleanup(list);
    g_assert(!count_users());
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, size };
    unsigned queues = 1 + fuzz_number(&in, 2) % MAX_QUEUES;
    g_autofree char *json = g_strndup((const char *)in.data, in.size);
    IOThreadVirtQueueMappingList *list = NULL;
    QObject *value = qobject_from_json(json, NULL);
    Visitor *v;

    if (!value) {
        return 0;
    }
    v = qobject_input_visitor_new(value);
    if (visit_type_IOThreadVirtQueueMappingList(v, NULL, &list, NULL)) {
        try_mapping(list, queues);
    }
    qapi_free_IOThreadVirtQueueMappingList(list);
    visit_free(v);
    qobject_unref(value);
    return 0;
}
