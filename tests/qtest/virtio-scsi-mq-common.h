/*
 * A small multiqueue virtio-scsi driver for qtest
 *
 * libqos drives one split virtqueue at a time, one request after the other.
 * The multiqueue tests need more: many requests in flight on many queues, a
 * packed ring, EVENT_IDX, any descriptor layout.  This driver takes register
 * access from libqos and keeps the rings itself.  It is for little-endian
 * guests on virtio-pci, legacy and modern.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_SCSI_MQ_COMMON_H
#define TESTS_QTEST_VIRTIO_SCSI_MQ_COMMON_H

#include "libqtest.h"
#include "libqos/pci.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_scsi.h"

/* Nothing here takes long; a wait this long (in us) means that it hangs. */
#define MQ_HANG_US (120 * G_USEC_PER_SEC)

/* Forms of a ring and of the descriptor chains in it, or-ed together */
enum {
    MQ_SPLIT     = 0,
    MQ_PACKED    = 1 << 0,
    MQ_INDIRECT  = 1 << 1,  /* each chain is one indirect table */
    MQ_EVENT_IDX = 1 << 2,
    MQ_ONE_BUF   = 1 << 3,  /* header and data share a descriptor */
    MQ_MSIX      = 1 << 4,  /* a vector per queue, else INTx */
    MQ_CUT_DATA  = 1 << 5,  /* data in three descriptors, cut anywhere */
};

typedef struct MqDev MqDev;
typedef struct MqQueue MqQueue;

/* Place for one request: guest memory and descriptors of its own */
typedef struct MqSlot {
    MqQueue *q;
    uint64_t table;     /* guest address of the indirect table */
    uint64_t data;      /* guest address of the data buffer */
    uint64_t resp;      /* guest address of the response header */
    uint16_t num_descs; /* in the ring, by the chain in flight */
    bool busy;          /* posted and not yet waited for */
    bool done;          /* seen in the used ring */
    uint32_t used_len;
} MqSlot;

struct MqQueue {
    QVirtQueuePCI pci;  /* what libqos' register accessors want */
    MqDev *dev;
    MqSlot *slots;
    unsigned num_slots;
    unsigned in_flight;         /* posted and not seen in the used ring */
    uint64_t mem;               /* guest memory of the slots */
    size_t stride;              /* bytes of it for each */
    uint64_t done_total;

    /* Free running counters of a split ring */
    uint16_t *avail_ring;       /* what split_publish() writes */
    uint16_t avail_idx;
    uint16_t avail_published;
    uint16_t used_idx;

    /* Positions and wrap counters of a packed ring */
    uint16_t next_avail, next_used;
    bool avail_wrap, used_wrap;
    bool head_held;             /* head_flags not written to head_pos yet */
    uint16_t head_pos, head_flags;
    uint16_t added;             /* descriptors since the last publish */
};

struct MqDev {
    QTestState *qts;
    QGuestAllocator *alloc;
    QVirtioPCIDevice *pci;
    QVirtioDevice *vdev;
    unsigned form;
    unsigned num_queues;        /* request queues */
    unsigned num_vqs;           /* num_queues, control and event queue */
    MqQueue **vqs;              /* NULL until mq_setup() */
    QPCIBus new_bus;            /* after mq_migrated() */
};

typedef struct MqCmd {
    uint8_t target;
    uint16_t lun;
    uint64_t tag;
    uint8_t cdb[VIRTIO_SCSI_CDB_SIZE];
    const void *out;
    size_t out_len;
    size_t in_len;
} MqCmd;

/* Life of the device */
MqDev *mq_open(QPCIBus *bus, QGuestAllocator *alloc, unsigned pci_slot);
void mq_close(MqDev *d);
void mq_setup(MqDev *d, unsigned form, size_t data_max);
void mq_driver_ok(MqDev *d);
void mq_start(MqDev *d, unsigned form, size_t data_max);
void mq_reset(MqDev *d);

/* What query-blockstats counts as @name for the disk whose ID has @id in it */
int64_t mq_disk_stat(MqDev *d, const char *id, const char *name);

/* Until @qts has come or gone; false if that failed */
bool mq_wait_migrated(QTestState *qts);

/*
 * Move the VM by a file to @to, which waits with "-incoming defer"; false if
 * that refuses it, where mq_migrate() fails.
 */
bool mq_try_migrate(QTestState *from, QTestState *to);
void mq_migrate(QTestState *from, QTestState *to);

void mq_migrated(MqDev *d, QTestState *to);

/* libqos has found the capabilities of a modern device. */
static inline bool mq_is_modern(MqDev *d)
{
    return d->pci->notify_cfg_offset != 0;
}

static inline MqQueue *mq_ctrl(MqDev *d)
{
    return d->vqs[0];
}

static inline MqQueue *mq_event(MqDev *d)
{
    return d->vqs[1];
}

static inline MqQueue *mq_queue(MqDev *d, unsigned i)
{
    g_assert_cmpuint(i, <, d->num_queues);
    return d->vqs[2 + i];
}

/*
 * Rings.  mq_post_*() fill a free slot (NULL: the queue is full) and put it
 * in the ring; the device sees it after mq_publish().  mq_flush() publishes
 * and kicks if the device wants to be kicked.
 */
MqSlot *mq_post_raw(MqQueue *q, const void *head, size_t head_len,
                    const void *out, size_t out_len,
                    size_t resp_len, size_t in_len);
MqSlot *mq_post_cmd(MqQueue *q, const MqCmd *cmd);
bool mq_publish(MqQueue *q);
void mq_kick(MqQueue *q);
void mq_flush(MqQueue *q);
void mq_reap(MqQueue *q);
void mq_want_interrupt(MqQueue *q, bool on);
bool mq_interrupted(MqQueue *q);

void mq_wait(MqSlot *slot);
void mq_wait_idle(MqQueue *q);
void mq_read_resp(MqSlot *slot, void *buf, size_t len);
void mq_release(MqSlot *slot);
void mq_read_mem(MqDev *d, uint64_t addr, void *buf, size_t len);
uint8_t *mq_read_slots(MqQueue *q);

/* What is in data-in buffers before the device has answered */
#define MQ_FILLER 0xee

/* Commands */
MqCmd mq_read10(uint16_t lun, uint32_t lba, uint16_t blocks);
MqCmd mq_write10(uint16_t lun, uint32_t lba, uint16_t blocks,
                 const void *data);
uint64_t mq_next_tag(void);
void mq_run(MqQueue *q, const MqCmd *cmd, struct virtio_scsi_cmd_resp *resp,
            void *in);
void mq_run_good(MqQueue *q, const MqCmd *cmd, void *in);
void mq_assert_good(const struct virtio_scsi_cmd_resp *resp);
void mq_clear_ua(MqQueue *q, uint8_t target, uint16_t lun);
void mq_assert_sense(const struct virtio_scsi_cmd_resp *resp,
                     uint8_t key, uint8_t asc, uint8_t ascq);
MqSlot *mq_post_tmf(MqDev *d, uint32_t subtype, uint8_t target, uint16_t lun,
                    uint64_t tag);
/* Wait for the TMF's answer, and return it. */
uint8_t mq_end_tmf(MqSlot *slot);
uint8_t mq_tmf(MqDev *d, uint32_t subtype, uint8_t target, uint16_t lun,
               uint64_t tag);
/* Returns true when the device has the command, false if it has done it. */
bool mq_wait_taken(MqDev *d, MqSlot *slot, uint8_t target, uint16_t lun,
                   uint64_t tag);
/* ABORT TASK of a command that is held; mq_end_tmf() when it is let go */
MqSlot *mq_abort_held(MqDev *d, MqSlot *slot, uint16_t lun, uint64_t tag);

/* Set the limit of throttle group @id; 0 for none. */
void mq_limit_iops(MqDev *d, const char *id, uint64_t iops);

/* A wait loop: while (!cond) { mq_pause(&start, "what"); } */
void mq_pause(gint64 *start, const char *what);

/*
 * A file without a name, so it is never left behind; returns the path by which
 * QEMU opens it, for g_free().
 */
char *mq_open_unnamed(int *fd);

/* Blocks of 512 bytes that all differ, by LBA and @seed */
void mq_fill_pattern(void *buf, uint32_t lba, unsigned blocks, uint32_t seed);

#endif
