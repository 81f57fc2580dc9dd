/*
 * A virtio-scsi driver that shares guest memory with QEMU
 *
 * Guest memory is a file that this process maps, too.  So rings and data are
 * read and written with plain loads and stores, from another process than
 * QEMU's like a vCPU would from another thread, and only registers go through
 * the qtest socket.  That makes load that QEMU's IOThreads have to run for, and
 * leaves ThreadSanitizer nothing to see but QEMU's own threads.
 *
 * For little-endian guests and modern virtio-pci, split virtqueues.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_SCSI_SHM_H
#define TESTS_QTEST_VIRTIO_SCSI_SHM_H

#include "libqtest.h"
#include "libqos/pci.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_scsi.h"

/* Bytes of data that a slot has room for */
#define SHM_DATA_MAX 8192

/* Bytes of a response: the fixed part, and sense data of this size at most */
#define SHM_RESP_FIXED offsetof(struct virtio_scsi_cmd_resp, sense)
#define SHM_SENSE_MAX  256

/* No progress for this long means that something hangs; see shm_wait(). */
#define SHM_HANG_US (300 * G_USEC_PER_SEC)

typedef struct ShmDev ShmDev;
typedef struct ShmQueue ShmQueue;

/* Guest memory, from guest physical address 0 on */
typedef struct ShmMem {
    int fd;
    uint8_t *host;
    size_t size;
    size_t used;
} ShmMem;

/* Place for one request */
typedef struct ShmSlot {
    ShmQueue *q;
    void *owner;        /* the caller's */
    uint8_t *head;      /* request header */
    uint8_t *data;      /* either direction; the response ends here */
    bool busy;          /* the device has it */
    uint32_t used_len;  /* valid when it comes back */
} ShmSlot;

struct ShmQueue {
    QVirtQueuePCI pci;  /* what libqos' register accessors want */
    ShmDev *dev;
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint16_t avail_idx;     /* added */
    uint16_t published;     /* and shown to the device */
    uint16_t used_idx;      /* taken back */
    ShmSlot *slots;
    unsigned num_slots;
    ShmSlot **free;         /* stack of those that are not busy */
    unsigned num_free;
    uint64_t answered;      /* requests that came back, ever */
    uint64_t kicks;
};

/* What shm_start() negotiates and how the driver behaves, or-ed together */
enum {
    SHM_EVENT_IDX = 1 << 0,
    SHM_INTERRUPTS = 1 << 1,    /* let odd queues interrupt, nobody looks */
};

struct ShmDev {
    QTestState *qts;
    ShmMem *mem;
    unsigned pci_slot;
    QPCIBus *bus;
    QVirtioPCIDevice *pci;
    unsigned flags;
    unsigned num_queues;    /* request queues */
    unsigned num_vqs;       /* these, control and event queue */
    unsigned depth;         /* slots of each queue */
    ShmQueue *vqs;
};

/* Descriptors of a request: lengths in bytes, 0 for what it doesn't have */
typedef struct ShmShape {
    unsigned head;
    unsigned out;           /* of slot->data */
    unsigned resp;
    unsigned in;            /* of slot->data */
} ShmShape;

/* Memory */
void shm_mem_init(ShmMem *mem, size_t size);
char *shm_mem_args(const ShmMem *mem);
void shm_mem_destroy(ShmMem *mem);

/* Life of the device.  shm_probe() also follows a reset of the machine. */
ShmDev *shm_new(QTestState *qts, ShmMem *mem, unsigned pci_slot,
                unsigned depth);
void shm_probe(ShmDev *d);
void shm_start(ShmDev *d, unsigned flags);
void shm_reset(ShmDev *d);
void shm_free(ShmDev *d);
void shm_config_writel(ShmDev *d, unsigned offset, uint32_t value);

static inline ShmQueue *shm_ctrl(ShmDev *d)
{
    return &d->vqs[0];
}

static inline ShmQueue *shm_event(ShmDev *d)
{
    return &d->vqs[1];
}

static inline ShmQueue *shm_queue(ShmDev *d, unsigned i)
{
    g_assert_cmpuint(i, <, d->num_queues);
    return &d->vqs[2 + i];
}

/*
 * Requests.  shm_take() returns a free slot, or NULL.  When it is filled in,
 * shm_post() puts it in the ring, and the device sees it after shm_publish(),
 * which tells whether the device wants to be kicked.  shm_reap() returns a slot
 * that has been answered, or NULL; it is free again.  A used ring that says
 * anything impossible fails the test.
 */
ShmSlot *shm_take(ShmQueue *q);
void shm_post(ShmSlot *slot, const ShmShape *shape);
bool shm_publish(ShmQueue *q);
void shm_kick(ShmQueue *q);
void shm_flush(ShmQueue *q);
ShmSlot *shm_reap(ShmQueue *q);

static inline unsigned shm_in_flight(const ShmQueue *q)
{
    return q->num_slots - q->num_free;
}

/* The response of a slot that was posted with shape.resp = @len */
static inline uint8_t *shm_resp(const ShmSlot *slot, unsigned len)
{
    return slot->data - len;
}

void shm_put_lun(uint8_t *field, unsigned target, unsigned lun);
void shm_post_tmf(ShmSlot *slot, uint32_t subtype, unsigned target,
                  unsigned lun, uint64_t tag);
uint8_t shm_tmf_response(const ShmSlot *slot);

/*
 * A wait loop: ShmWait w = { 0 }; while (!cond) { shm_wait(&w, qts, "what"); }
 * It yields, sleeps when that doesn't help, and fails when nothing happens for
 * SHM_HANG_US or when QEMU is gone.  shm_progress() starts anew.
 */
typedef struct ShmWait {
    unsigned rounds;
    gint64 since;
} ShmWait;

void shm_wait(ShmWait *w, QTestState *qts, const char *what);

static inline void shm_progress(ShmWait *w)
{
    w->rounds = 0;
}

#endif
