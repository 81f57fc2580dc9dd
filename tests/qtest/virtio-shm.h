/*
 * A virtio driver that shares guest memory with QEMU
 *
 * Guest memory is a file that this process maps, too.  So rings and data are
 * read and written with plain loads and stores, from another process than
 * QEMU's like a vCPU would from another thread, and only registers go through
 * the qtest socket.  That makes load that QEMU's IOThreads have to run for, and
 * leaves ThreadSanitizer nothing to see but QEMU's own threads.
 *
 * For little-endian guests and modern virtio-pci; virtio-scsi and virtio-blk,
 * split and packed virtqueues, direct and indirect descriptors.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_SHM_H
#define TESTS_QTEST_VIRTIO_SHM_H

#include "libqtest.h"
#include "libqos/pci.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_ring.h"

/* No progress for this long means that something hangs; see shm_wait(). */
#define SHM_HANG_US (300 * G_USEC_PER_SEC)

/* Descriptors that a request has at most: header, response, data */
#define SHM_PARTS 3

typedef struct ShmDev ShmDev;
typedef struct ShmQueue ShmQueue;

/* Guest memory, from guest physical address 0 on */
typedef struct ShmMem {
    int fd;
    uint8_t *host;
    size_t size;
    size_t used;
} ShmMem;

/* How much of what a driver needs; sizes in bytes, for each slot */
typedef struct ShmGeometry {
    unsigned depth;         /* slots of a request queue (fewer if the ring... */
    unsigned depth_other;   /* ...is too small), and of every other queue */
    unsigned head;          /* room for a request header */
    unsigned resp;          /* and for a response */
    unsigned data;
    bool adjacent;          /* data begin where the response ends */
} ShmGeometry;

/* Place for one request */
typedef struct ShmSlot {
    ShmQueue *q;
    void *owner;            /* the caller's */
    uint8_t *head;          /* request header */
    uint8_t *resp_end;      /* the response ends here; see shm_resp() */
    uint8_t *data;          /* either direction */
    struct vring_desc *table;   /* if indirect */
    struct vring_packed_desc ring[SHM_PARTS];   /* if packed: to copy */
    uint16_t num_descs;     /* that it takes in the ring */
    bool busy;              /* the device has it */
    uint32_t used_len;      /* valid when it comes back */
} ShmSlot;

/*
 * Positions count descriptors of a packed ring, entries of a split one.  They
 * run on over its end; what is in guest memory are their lower bits.
 */
struct ShmQueue {
    QVirtQueuePCI pci;      /* what libqos' register accessors want */
    ShmDev *dev;
    union {
        struct {
            struct vring_desc *desc;
            struct vring_avail *avail;
            struct vring_used *used;
        };
        struct {
            struct vring_packed_desc *packed;
            struct vring_packed_desc_event *driver_event;
            struct vring_packed_desc_event *device_event;
        };
    };
    uint32_t avail_idx;     /* added */
    uint32_t published;     /* and shown to the device */
    uint32_t used_idx;      /* taken back */
    uint32_t used_seen;     /* answers up to here have been seen */
    unsigned stride;        /* descriptors reserved for a slot, if split */
    ShmSlot *slots;
    unsigned num_slots;
    ShmSlot **free;         /* stack of those that are not busy */
    unsigned num_free;
    int kick_fd;            /* QEMU's ioeventfd, or -1: kick by qtest */
    uint32_t *msi;          /* the queue's interrupts store here, or NULL */
    uint64_t answered;      /* requests that came back, ever */
    uint64_t kicks;
};

/* What shm_dev_start() negotiates and how the driver behaves, or-ed together */
enum {
    SHM_EVENT_IDX = 1 << 0,
    SHM_INTERRUPTS = 1 << 1,    /* let odd queues interrupt, nobody looks */
    SHM_INDIRECT = 1 << 2,      /* indirect descriptors for all requests */
    SHM_PACKED = 1 << 3,
    SHM_MSIX = 1 << 4,          /* interrupts as in shm_irq_arm() */
};

struct ShmDev {
    QTestState *qts;
    ShmMem *mem;
    ShmGeometry geo;
    unsigned pci_slot;
    QPCIBus *bus;
    QVirtioPCIDevice *pci;
    unsigned flags;
    unsigned num_queues;    /* request queues */
    unsigned first_queue;   /* what the device calls the first of them */
    unsigned num_vqs;       /* also those that aren't for requests */
    ShmQueue *vqs;
};

/* Descriptors of a request: lengths in bytes, 0 for what it doesn't have */
typedef struct ShmShape {
    unsigned head;
    unsigned out;           /* of slot->data */
    unsigned resp;
    unsigned in;            /* of slot->data */
    bool resp_last;         /* as virtio-blk wants it, not before the data */
} ShmShape;

/* Memory */
void shm_mem_init(ShmMem *mem, size_t size);
char *shm_mem_args(const ShmMem *mem);
void shm_mem_destroy(ShmMem *mem);
uint64_t shm_alloc(ShmMem *mem, size_t size);

static inline uint64_t shm_guest_addr(const ShmMem *mem, const void *host)
{
    return (const uint8_t *)host - mem->host;
}

/**
 * shm_dev_new:
 * @qts: QEMU, with the arguments of shm_mem_args() and a PC machine
 * @mem: guest memory
 * @pci_slot: where on the root bus the device is
 * @geo: what requests will need
 *
 * Find the device and map its registers.
 */
ShmDev *shm_dev_new(QTestState *qts, ShmMem *mem, unsigned pci_slot,
                    const ShmGeometry *geo);

/* Give the device its place in PCI address space; after a machine reset, too */
void shm_probe(ShmDev *d);

/**
 * shm_dev_start:
 * @d: the device
 * @flags: SHM_*; which ring and descriptors must be those of the first start
 *
 * Reset the device, agree on features and enable all queues, empty.
 */
void shm_dev_start(ShmDev *d, unsigned flags);

/* Enable a queue that was reset alone, empty. */
void shm_enable_queue(ShmQueue *q);

/* Device reset.  The slots stay as they are until shm_dev_start(). */
void shm_reset(ShmDev *d);
void shm_free(ShmDev *d);
void shm_config_writel(ShmDev *d, unsigned offset, uint32_t value);
uint32_t shm_config_readl(ShmDev *d, unsigned offset);

static inline ShmQueue *shm_queue(ShmDev *d, unsigned i)
{
    g_assert_cmpuint(i, <, d->num_queues);
    return &d->vqs[d->first_queue + i];
}

/* Rings; for virtio-shm.c */
void shm_ring_alloc(ShmQueue *q);
void shm_ring_clear(ShmQueue *q);
void shm_ring_init_events(ShmQueue *q);

/*
 * Requests.  shm_take() returns a free slot, or NULL.  When it is filled in,
 * shm_post() puts it in the ring, and the device sees it after shm_publish(),
 * which tells whether the device wants to be kicked.  shm_reap() returns a slot
 * that has been answered, or NULL; it is free again, and the one that
 * shm_take() returns next.  A ring that says anything impossible fails the
 * test.  (In a packed ring the device may see a request before
 * shm_publish(); the order matters only for the kick.)
 *
 * shm_post() is shm_build() and shm_add().  A slot that is built once can be
 * added again and again with another content of its header and data.
 */
ShmSlot *shm_take(ShmQueue *q);
void shm_post(ShmSlot *slot, const ShmShape *shape);
void shm_build(ShmSlot *slot, const ShmShape *shape);
void shm_add(ShmSlot *slot);
bool shm_publish(ShmQueue *q);
void shm_kick(ShmQueue *q);
void shm_flush(ShmQueue *q);
ShmSlot *shm_reap(ShmQueue *q);

/*
 * Interrupts (SHM_MSIX).  A queue's MSI-X messages are stores to a word in
 * guest memory.  shm_irq_came() tells whether there was one since it was last
 * asked.  shm_irq_arm() asks for one at the next answer and returns true if
 * there is an answer already, for which none may come; shm_irq_disarm() wants
 * none.
 */
bool shm_irq_came(ShmQueue *q);
bool shm_irq_arm(ShmQueue *q);
void shm_irq_disarm(ShmQueue *q);

static inline unsigned shm_in_flight(const ShmQueue *q)
{
    return q->num_slots - q->num_free;
}

/* The response of a slot that was posted with shape.resp = @len */
static inline uint8_t *shm_resp(const ShmSlot *slot, unsigned len)
{
    return slot->resp_end - len;
}

/* QEMU's resident memory; that of the guest counts as far as it was used */
uint64_t shm_qemu_rss_kb(QTestState *qts);

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
