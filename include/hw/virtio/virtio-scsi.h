/*
 * virtio SCSI host bus adapter (virtio 1.2, 5.6)
 *
 * What the transports (PCI, CCW, MMIO), vhost-scsi and vhost-user-scsi see.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 * In the place of QEMU's file of this name (IBM, Corp. 2010), which is
 * GPL-2.0-only, and of the same names.
 *
 * SPDX-License-Identifier: GPL-2.0-only
 */

#ifndef QEMU_VIRTIO_SCSI_H
#define QEMU_VIRTIO_SCSI_H

#include "chardev/char-fe.h"
#include "hw/scsi/scsi.h"
#include "hw/virtio/virtio.h"
#include "qapi/qapi-types-virtio.h"
#include "qom/object.h"
#include "system/iothread.h"

/*
 * The driver chooses the size of the CDB and sense fields at run time, so the
 * structures end where these fields start.
 */
#define VIRTIO_SCSI_CDB_SIZE    0
#define VIRTIO_SCSI_SENSE_SIZE  0
#include "standard-headers/linux/virtio_scsi.h"

/* Request queues */
typedef struct virtio_scsi_cmd_resp VirtIOSCSICmdResp;
typedef struct virtio_scsi_cmd_req VirtIOSCSICmdReq;

/* Control queue */
typedef struct virtio_scsi_ctrl_an_resp VirtIOSCSICtrlANResp;
typedef struct virtio_scsi_ctrl_an_req VirtIOSCSICtrlANReq;
typedef struct virtio_scsi_ctrl_tmf_resp VirtIOSCSICtrlTMFResp;
typedef struct virtio_scsi_ctrl_tmf_req VirtIOSCSICtrlTMFReq;

/* Event queue, configuration space */
typedef struct virtio_scsi_event VirtIOSCSIEvent;
typedef struct virtio_scsi_config VirtIOSCSIConfig;

/* The addresses that a guest can use */
#define VIRTIO_SCSI_MAX_LUN     16383
#define VIRTIO_SCSI_MAX_TARGET  255
#define VIRTIO_SCSI_MAX_CHANNEL 0

/* Queue 0 is the control queue, 1 the event queue, the rest take requests. */
#define VIRTIO_SCSI_VQ_NUM_FIXED 2

/* num_queues was not set: the transport chooses, else it is 1 */
#define VIRTIO_SCSI_AUTO_NUM_QUEUES UINT32_MAX

/* Properties; but for the mapping, constant once the device is realized */
struct VirtIOSCSIConf {
    /* all kinds of virtio-scsi */
    uint32_t num_queues;
    uint32_t virtqueue_size;
    uint32_t max_sectors;
    uint32_t cmd_per_lun;
    bool seg_max_adjust;

    /* virtio-scsi in QEMU */
    IOThread *iothread;
    IOThreadVirtQueueMappingList *iothread_vq_mapping_list;

    /* vhost-scsi and vhost-user-scsi */
    char *wwpn;
    char *vhostfd;
    uint32_t boot_tpgt;
    bool worker_per_virtqueue;
    CharBackend chardev;
};

#define TYPE_VIRTIO_SCSI_COMMON "virtio-scsi-common"
OBJECT_DECLARE_SIMPLE_TYPE(VirtIOSCSICommon, VIRTIO_SCSI_COMMON)

struct VirtIOSCSICommon {
    VirtIODevice parent_obj;
    VirtIOSCSIConf conf;

    /* Constant once the device is realized */
    VirtQueue **cmd_vqs;        /* conf.num_queues elements */
    VirtQueue *ctrl_vq;
    VirtQueue *event_vq;

    /*
     * Configuration space that the driver may write at any time.  Written
     * under the BQL, read from any thread, both with qatomic_*(); a request
     * reads each of them once.
     */
    uint32_t cdb_size;
    uint32_t sense_size;
};

typedef struct VirtIOSCSIQueue VirtIOSCSIQueue;
typedef struct VirtIOSCSILate VirtIOSCSILate;
typedef struct VirtIOSCSIWatch VirtIOSCSIWatch;
typedef struct VirtIOSCSIEventNote VirtIOSCSIEventNote;

/** VirtIOSCSIMove: a queue that is on its way to another IOThread */
typedef struct VirtIOSCSIMove {
    QEMUBH *bh;                 /* in the main loop; constant */

    /* Main loop only */
    VirtIOSCSIQueue *q;         /* NULL: none is */
    AioContext *to;
    bool arriving;              /* the new owner has been told */

    unsigned visits;            /* at the old owner; atomic */
} VirtIOSCSIMove;

#define TYPE_VIRTIO_SCSI "virtio-scsi-device"
OBJECT_DECLARE_SIMPLE_TYPE(VirtIOSCSI, VIRTIO_SCSI)

struct VirtIOSCSI {
    VirtIOSCSICommon parent_obj;
    SCSIBus bus;

    /* Constant once the device is realized */
    uint32_t host_features;
    VirtIOSCSIQueue *queues;    /* conf.num_queues elements */
    QEMUBH *event_bh;           /* in the main loop: deliver event_notes */
    QEMUBH *main_bh;            /* in the main loop: what is left to do */
    VMChangeStateEntry *vmstate;

    /* Constant but for virtio_scsi_setup_move() */
    AioContext **contexts;      /* of the IOThreads that may have a queue */
    unsigned num_contexts;      /* 0: the main loop does everything */

    /*
     * Two facts about the virtqueues.  Written under the BQL, read from any
     * thread with qatomic_read(); they change when nobody works on a virtqueue.
     *
     * Request queues belong to the AioContexts that they are mapped to, and
     * host notifiers are set up for all virtqueues; or all belong to the main
     * loop, that is whoever holds the BQL.
     */
    bool in_contexts;
    bool accepts_kicks;         /* or leave requests in the rings */

    bool wants_main_loop;       /* set in any thread; atomic */

    /*
     * Hints, read and written with qatomic_*(): owners of queues are to measure
     * their time, and watch_bh has been scheduled since the device rested.
     */
    bool watched;
    bool watch_awake;
    QEMUBH *watch_bh;           /* in the main loop; constant */

    /* Main loop only */
    bool main_only;             /* until reset: the main loop owns all */
    bool arrived;               /* by migration, and not been started since */
    bool wants_restart;         /* requests that settled in a running VM */
    bool wants_start;           /* when a virtqueue has been reset */
    QSIMPLEQ_HEAD(, VirtIOSCSILate) late; /* see virtio_scsi_push_late() */
    bool in_ctrl;               /* the control queue's handler */
    unsigned tmfs;              /* task management functions under way */
    bool balance;               /* property iothread-vq-balance */
    VirtIOSCSIWatch *watch;     /* NULL: time isn't measured */
    int64_t watch_until;        /* QEMU_CLOCK_REALTIME, because of a query */
    VirtIOSCSIMove move;
    bool events_dropped;        /* the event queue had no buffer left */

    /* Any thread; off the I/O path */
    QemuMutex event_notes_lock; /* protects event_notes */
    QSIMPLEQ_HEAD(, VirtIOSCSIEventNote) event_notes;
};

/**
 * virtio_scsi_common_check:
 * @conf: properties of a device that is about to be realized
 * @errp: where to store an error
 *
 * Check what all kinds of virtio-scsi have in common, and replace
 * VIRTIO_SCSI_AUTO_NUM_QUEUES by 1.  Nothing is allocated.
 *
 * Context: BQL held.
 * Returns: false with @errp set if a property has an impossible value.
 */
bool virtio_scsi_common_check(VirtIOSCSIConf *conf, Error **errp);

/**
 * virtio_scsi_common_realize:
 * @dev: a #VirtIOSCSICommon
 * @ctrl: handler for kicks of the control queue
 * @evt: handler for kicks of the event queue
 * @cmd: handler for kicks of the request queues
 * @errp: where to store an error; nothing stays behind then
 *
 * Initialize the virtio device and create its virtqueues.
 *
 * Context: BQL held.
 */
void virtio_scsi_common_realize(DeviceState *dev, VirtIOHandleOutput ctrl,
                                VirtIOHandleOutput evt, VirtIOHandleOutput cmd,
                                Error **errp);

/**
 * virtio_scsi_common_unrealize:
 * @dev: a #VirtIOSCSICommon
 *
 * Undo virtio_scsi_common_realize().  Context: BQL held.
 */
void virtio_scsi_common_unrealize(DeviceState *dev);

#endif /* QEMU_VIRTIO_SCSI_H */
