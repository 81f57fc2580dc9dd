/*
 * Assignment of a virtio device's queues to IOThreads
 *
 * Written anew in the place of QEMU's file of this name, which is under
 * GPL-2.0-only (Copyright Red Hat, Inc).
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_IOTHREAD_VQ_MAPPING_H
#define HW_VIRTIO_IOTHREAD_VQ_MAPPING_H

#include "qapi/error.h"
#include "qapi/qapi-types-virtio.h"

/**
 * iothread_vq_mapping_apply:
 * @list: value of a device's iothread-vq-mapping property, one entry per
 *        IOThread
 * @vq_aio_context: array of @num_queues elements; on success, element i is the
 *                  AioContext of the IOThread that serves queue i
 * @num_queues: how many queues the mapping covers, 1 to 65535; queues that a
 *              device keeps in the main loop (virtio-scsi's control and event
 *              queue) do not count
 * @errp: where to store an error
 *
 * A mapping has one of two forms.  Either no entry has vqs: queue i then goes
 * to entry i modulo the number of entries.  Or every entry has a non-empty vqs
 * and together they name every queue exactly once.
 *
 * On success each IOThread of @list is marked as in use, so that object-del
 * refuses it, until iothread_vq_mapping_cleanup().  IOThreads that end up
 * without a queue are accepted, because management tools hand over whole
 * pools, but a warning names them.
 *
 * On error nothing has been changed: neither @vq_aio_context nor any IOThread.
 * Every message names the property, the offending value and what to do.
 *
 * Context: BQL held.
 *
 * Returns: true on success, false with @errp set otherwise.
 */
bool iothread_vq_mapping_apply(IOThreadVirtQueueMappingList *list,
                               AioContext **vq_aio_context,
                               uint16_t num_queues, Error **errp);

/**
 * iothread_vq_mapping_cleanup:
 * @list: the list that iothread_vq_mapping_apply() has accepted
 *
 * Give the IOThreads of @list free again.  The caller no longer runs anything
 * in their AioContexts.
 *
 * Context: BQL held.
 */
void iothread_vq_mapping_cleanup(IOThreadVirtQueueMappingList *list);

#endif /* HW_VIRTIO_IOTHREAD_VQ_MAPPING_H */
