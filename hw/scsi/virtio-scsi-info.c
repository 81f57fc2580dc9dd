/*
 * virtio SCSI host bus adapter: what QMP tells about the request queues
 *
 * Runs in the main loop, and visits no other thread: the counters are read
 * while their owners go on.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-virtio.h"
#include "qemu/main-loop.h"
#include "virtio-scsi-internal.h"

/*
 * One queue
 */

/* Returns NULL if the main loop serves @q. */
static IOThread *info_iothread(const VirtIOSCSIQueue *q)
{
    return q->dev->main_only ? NULL
                             : virtio_scsi_mapped_iothread(q->dev, q->ctx);
}

/*
 * An event loop doesn't poll if it waits for anything that can only be waited
 * for in a system call.
 */
static bool info_polling(const VirtIOSCSIQueue *q)
{
    return q->dev->in_contexts && q->ctx->poll_max_ns > 0 &&
           !qatomic_read(&q->ctx->poll_disable_cnt);
}

static void info_read_stats(VirtioScsiQueueInfo *info,
                            const VirtIOSCSIStats *stats)
{
    info->aborted = stat64_get(&stats->aborted);
    info->failed = stat64_get(&stats->failed);
    info->completed = info->aborted + info->failed + stat64_get(&stats->good);
    /* Pairs with cmd_finish(): all of these have been submitted. */
    smp_rmb();
    info->submitted = stat64_get(&stats->submitted);
    info->in_flight = info->submitted - info->completed;

    info->bytes_read = stat64_get(&stats->bytes_read);
    info->bytes_written = stat64_get(&stats->bytes_written);
    info->kicks = stat64_get(&stats->kicks);
    info->interrupts = stat64_get(&stats->interrupts);
}

static VirtioScsiQueueInfo *info_queue(const VirtIOSCSIQueue *q)
{
    VirtioScsiQueueInfo *info = g_new0(VirtioScsiQueueInfo, 1);
    IOThread *iothread = info_iothread(q);

    info->queue = q->index;
    info->iothread = iothread ? iothread_get_id(iothread) : NULL;
    info->thread_id = iothread ? iothread->thread_id : qemu_get_thread_id();
    info->polling = info_polling(q);
    info_read_stats(info, &q->stats);
    info->moves = q->moves;
    info->stay_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - q->since_ns;
    info->handler_ns = stat64_get(&q->stats.handler_ns);
    info->has_share = info->has_iothread_busy =
        virtio_scsi_watch_share(q->dev, q->index, &info->share,
                                &info->iothread_busy);
    return info;
}

/*
 * One device
 */

/* What the user calls it: the proxy has the id, if there is one */
static const char *info_id(VirtIOSCSI *s)
{
    Object *parent = OBJECT(s)->parent;

    if (!DEVICE(s)->id && object_dynamic_cast(parent, TYPE_DEVICE)) {
        return DEVICE(parent)->id;
    }
    return DEVICE(s)->id;
}

static VirtioScsiQueues *info_device(VirtIOSCSI *s)
{
    VirtioScsiQueues *info = g_new0(VirtioScsiQueues, 1);
    VirtioScsiQueueInfoList **tail = &info->queues;

    virtio_scsi_watch_ask(s);
    info->path = object_get_canonical_path(OBJECT(s));
    info->id = g_strdup(info_id(s));
    for (unsigned i = 0; i < s->parent_obj.conf.num_queues; i++) {
        QAPI_LIST_APPEND(tail, info_queue(&s->queues[i]));
    }
    return info;
}

/*
 * All devices
 */

static int info_collect(Object *obj, void *opaque)
{
    Object *s = object_dynamic_cast(obj, TYPE_VIRTIO_SCSI);

    if (s && qdev_is_realized(DEVICE(s))) {
        g_ptr_array_add(opaque, s);
    }
    return 0;
}

static int info_compare_paths(const void *a, const void *b)
{
    g_autofree char *path_a = object_get_canonical_path(*(Object **)a);
    g_autofree char *path_b = object_get_canonical_path(*(Object **)b);

    return strcmp(path_a, path_b);
}

/* Objects have no order of their own; have one that stays the same. */
static GPtrArray *info_list_devices(void)
{
    GPtrArray *devices = g_ptr_array_new();

    object_child_foreach_recursive(object_get_root(), info_collect, devices);
    g_ptr_array_sort(devices, info_compare_paths);
    return devices;
}

/* What the user could have meant */
static char *info_names(void)
{
    g_autoptr(GPtrArray) devices = info_list_devices();
    GString *names = g_string_new(devices->len ? "" : "none");

    for (unsigned i = 0; i < devices->len; i++) {
        VirtIOSCSI *s = g_ptr_array_index(devices, i);
        g_autofree char *path = object_get_canonical_path(OBJECT(s));

        g_string_append_printf(names, "%s%s", i ? ", " : "",
                               info_id(s) ?: path);
    }
    return g_string_free(names, false);
}

/* Returns NULL, with @errp set, if @path is not a virtio-scsi device. */
static VirtIOSCSI *info_find(const char *path, Error **errp)
{
    Object *obj = *path == '/' ? object_resolve_path(path, NULL)
        : object_resolve_path_component(machine_get_container("peripheral"),
                                        path);
    Object *backend =
        obj ? object_resolve_path_component(obj, "virtio-backend") : NULL;
    Object *s = obj ? object_dynamic_cast(backend ?: obj, TYPE_VIRTIO_SCSI)
                    : NULL;
    g_autofree char *names = NULL;

    if (s && qdev_is_realized(DEVICE(s))) {
        return VIRTIO_SCSI(s);
    }
    names = info_names();
    if (!obj) {
        error_setg(errp, "path '%s' is neither the id of a device nor a QOM "
                   "path; virtio-scsi devices: %s", path, names);
    } else {
        error_setg(errp, "path '%s' is of type %s, not a virtio-scsi device "
                   "emulated by QEMU; virtio-scsi devices: %s", path,
                   object_get_typename(obj), names);
    }
    return NULL;
}

VirtioScsiQueuesList *qmp_x_query_virtio_scsi_queues(const char *path,
                                                     Error **errp)
{
    g_autoptr(GPtrArray) devices = NULL;
    VirtioScsiQueuesList *list = NULL;
    VirtioScsiQueuesList **tail = &list;

    GLOBAL_STATE_CODE();

    if (path) {
        VirtIOSCSI *s = info_find(path, errp);

        if (s) {
            QAPI_LIST_APPEND(tail, info_device(s));
        }
        return list;
    }
    devices = info_list_devices();
    for (unsigned i = 0; i < devices->len; i++) {
        QAPI_LIST_APPEND(tail, info_device(g_ptr_array_index(devices, i)));
    }
    return list;
}
