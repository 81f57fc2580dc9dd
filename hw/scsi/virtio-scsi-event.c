/*
 * virtio SCSI host bus adapter: the event virtqueue (virtio 1.2, 5.6.6.3)
 *
 * Only the main loop touches the virtqueue.  Whoever has something to tell
 * leaves a note, and a bottom half in the main loop delivers it.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/iov.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "hw/virtio/virtio-access.h"
#include "trace.h"
#include "virtio-scsi-internal.h"

/* Something that happened.  @event is NO_EVENT if there's only the loss. */
struct VirtIOSCSIEventNote {
    QSIMPLEQ_ENTRY(VirtIOSCSIEventNote) next;
    uint32_t event;
    uint32_t reason;
    uint8_t lun[8];
    bool luns_changed;          /* a unit attention condition goes with it */
};

/* Write @note to a buffer of the guest.  Returns false if there is none. */
static bool event_push(VirtIOSCSI *s, const VirtIOSCSIEventNote *note)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    VirtQueue *vq = s->parent_obj.event_vq;
    g_autofree VirtQueueElement *elem = virtqueue_pop(vq, sizeof(*elem));
    uint32_t event = note->event;
    VirtIOSCSIEvent buf;

    if (!elem) {
        return false;
    }
    if (iov_size(elem->in_sg, elem->in_num) < sizeof(buf)) {
        virtio_error(vdev, "virtio-scsi: event buffer smaller than %zu bytes",
                     sizeof(buf));
        virtqueue_detach_element(vq, elem, 0);
        return true;
    }

    if (s->events_dropped) {
        event |= VIRTIO_SCSI_T_EVENTS_MISSED;
        s->events_dropped = false;
    }
    buf.event = virtio_tswap32(vdev, event);
    buf.reason = virtio_tswap32(vdev, note->reason);
    memcpy(buf.lun, note->lun, sizeof(buf.lun));
    trace_virtio_scsi_event(virtio_scsi_lun_number(note->lun), event,
                            note->reason);

    iov_from_buf(elem->in_sg, elem->in_num, 0, &buf, sizeof(buf));
    virtqueue_push(vq, elem, sizeof(buf));
    virtio_scsi_notify(s, vq);
    return true;
}

static void event_deliver(VirtIOSCSI *s, const VirtIOSCSIEventNote *note)
{
    if (note->luns_changed) {
        scsi_bus_set_ua(&s->bus, SENSE_CODE(REPORTED_LUNS_CHANGED));
    }
    /* Before DRIVER_OK the guest scans the bus anyway. */
    if ((VIRTIO_DEVICE(s)->status & VIRTIO_CONFIG_S_DRIVER_OK) &&
        !event_push(s, note)) {
        s->events_dropped = true;
    }
}

/* Take the oldest note off the list.  Returns NULL if there is none. */
static VirtIOSCSIEventNote *event_take_note(VirtIOSCSI *s)
{
    VirtIOSCSIEventNote *note;

    QEMU_LOCK_GUARD(&s->event_notes_lock);
    note = QSIMPLEQ_FIRST(&s->event_notes);
    if (note) {
        QSIMPLEQ_REMOVE_HEAD(&s->event_notes, next);
    }
    return note;
}

void virtio_scsi_event_flush(VirtIOSCSI *s)
{
    VirtIOSCSIEventNote *note;

    GLOBAL_STATE_CODE();

    while ((note = event_take_note(s))) {
        event_deliver(s, note);
        g_free(note);
    }
}

/* To write to a buffer that isn't RAM may reset the device. */
static void event_bh(void *opaque)
{
    VirtIOSCSI *s = opaque;

    if (s->accepts_kicks) { /* else see virtio_scsi_main_bh() */
        virtio_scsi_event_flush(s);
    }
}

void virtio_scsi_event_post(VirtIOSCSI *s, uint32_t event, uint32_t reason,
                            SCSIDevice *dev)
{
    VirtIOSCSIEventNote *note = g_new0(VirtIOSCSIEventNote, 1);

    note->luns_changed = event == VIRTIO_SCSI_T_TRANSPORT_RESET;
    note->event = event;
    note->reason = reason;
    note->lun[0] = 1;
    note->lun[1] = dev->id;
    /* Linux compares it with REPORT LUNS data, so use the method used there */
    note->lun[2] = dev->lun < 256 ? 0 : dev->lun >> 8 | 0x40;
    note->lun[3] = dev->lun & 0xff;

    WITH_QEMU_LOCK_GUARD(&s->event_notes_lock) {
        QSIMPLEQ_INSERT_TAIL(&s->event_notes, note, next);
    }
    /*
     * A LUN that is plugged isn't realized yet.  A guest that hears of it now
     * would look for it in another thread, and not find it.
     */
    qemu_bh_schedule(s->event_bh);
}

void virtio_scsi_handle_event(VirtIODevice *vdev, VirtQueue *vq)
{
    VirtIOSCSI *s = VIRTIO_SCSI(vdev);
    VirtIOSCSIEventNote missed = { .event = VIRTIO_SCSI_T_NO_EVENT };

    if (virtio_scsi_kick_is_ours(s) && s->events_dropped) {
        event_deliver(s, &missed);
    }
}

void virtio_scsi_event_reset(VirtIOSCSI *s)
{
    VirtIOSCSIEventNote *note;

    while ((note = event_take_note(s))) {
        g_free(note);
    }
    s->events_dropped = false;
}

void virtio_scsi_event_init(VirtIOSCSI *s)
{
    qemu_mutex_init(&s->event_notes_lock);
    QSIMPLEQ_INIT(&s->event_notes);
    s->event_bh = qemu_bh_new_guarded(event_bh, s,
                                      &DEVICE(s)->mem_reentrancy_guard);
}

void virtio_scsi_event_cleanup(VirtIOSCSI *s)
{
    qemu_bh_delete(s->event_bh);
    s->event_bh = NULL;
    virtio_scsi_event_reset(s);
    qemu_mutex_destroy(&s->event_notes_lock);
}
