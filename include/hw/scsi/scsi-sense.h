/*
 * SCSI unit attention conditions and held sense data
 *
 * Rare state that any thread may ask for.  Each object has a lock of its own,
 * and a flag that tells without the lock whether there is anything at all: a
 * command that ends well reads the flag and writes nothing.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SCSI_SCSI_SENSE_H
#define HW_SCSI_SCSI_SENSE_H

#include "qemu/thread.h"
#include "qemu/atomic.h"
#include "scsi/utils.h"

/* Room for any sense data that a device or the host may give us */
#define SCSI_SENSE_BUF_SIZE_OLD 96
#define SCSI_SENSE_BUF_SIZE 252

/* Conditions that can be pending at once; QEMU knows fewer kinds */
#define SCSI_ATTENTION_MAX 8

/**
 * SCSIAttention: the pending unit attention conditions of a LUN or of a bus
 * (SAM-5, 5.14), for its only I_T nexus
 */
typedef struct SCSIAttention {
    QemuMutex lock;
    /* Written with @lock held, read without by scsi_attention_pending() */
    bool pending;
    /* Protected by @lock; the condition to report first stands first */
    unsigned num;
    SCSISense conditions[SCSI_ATTENTION_MAX];
} SCSIAttention;

/**
 * SCSIHeldSense: the sense data of the last command that failed, for a later
 * REQUEST SENSE (SPC-4, 6.39)
 */
typedef struct SCSIHeldSense {
    QemuMutex lock;
    /* Written with @lock held, read without by scsi_held_sense_present() */
    bool present;
    /* Protected by @lock */
    bool is_ua;
    uint32_t len;
    uint8_t data[SCSI_SENSE_BUF_SIZE];
} SCSIHeldSense;

/** scsi_attention_init: nothing is pending. Context: the owner of @a. */
void scsi_attention_init(SCSIAttention *a);

/** scsi_attention_destroy: the opposite. Context: the owner of @a. */
void scsi_attention_destroy(SCSIAttention *a);

/**
 * scsi_attention_pending:
 * @a: conditions of a LUN or of a bus
 *
 * A hint that costs one load.  A condition that is raised concurrently may be
 * seen by the next command only, as if it had been raised a little later.
 *
 * Context: any thread.
 */
static inline bool scsi_attention_pending(const SCSIAttention *a)
{
    return qatomic_read(&a->pending);
}

/**
 * scsi_attention_raise:
 * @a: conditions of a LUN or of a bus
 * @sense: what has happened; anything but a UNIT ATTENTION is ignored
 *
 * A condition that is pending already stays so once.  Conditions are reported
 * in the order of precedence of SAM-5 (5.14, table of precedence levels), and
 * those of one level in the order in which they were raised.
 *
 * Context: any thread.
 */
void scsi_attention_raise(SCSIAttention *a, SCSISense sense);

/**
 * scsi_attention_claim:
 * @a: conditions of a LUN or of a bus
 * @sense: where to store the condition of the highest precedence
 *
 * The caller has to report it, or to raise it again: nobody else will get it.
 *
 * Context: any thread.
 * Returns: false if nothing is pending.
 */
bool scsi_attention_claim(SCSIAttention *a, SCSISense *sense);

/**
 * scsi_attention_withdraw:
 * @a: conditions of a LUN or of a bus
 * @sense: the condition that needn't be reported any more
 *
 * Context: any thread.
 */
void scsi_attention_withdraw(SCSIAttention *a, SCSISense sense);

/** scsi_attention_clear: withdraw all conditions. Context: any thread. */
void scsi_attention_clear(SCSIAttention *a);

/**
 * scsi_attention_first:
 * @a: conditions of a LUN or of a bus
 *
 * Context: any thread.
 * Returns: what would be reported first, or NO SENSE.
 */
SCSISense scsi_attention_first(SCSIAttention *a);

/** scsi_held_sense_init: nothing is held. Context: the owner of @h. */
void scsi_held_sense_init(SCSIHeldSense *h);

/** scsi_held_sense_destroy: the opposite. Context: the owner of @h. */
void scsi_held_sense_destroy(SCSIHeldSense *h);

/**
 * scsi_held_sense_present:
 * @h: held sense data of a LUN
 *
 * Context: any thread.
 */
static inline bool scsi_held_sense_present(const SCSIHeldSense *h)
{
    return qatomic_read(&h->present);
}

/**
 * scsi_held_sense_set:
 * @h: held sense data of a LUN
 * @data: sense data of the command that has just ended
 * @len: bytes at @data, at most SCSI_SENSE_BUF_SIZE; 0 if it ended well
 * @is_ua: the sense data report a unit attention condition
 *
 * Context: any thread.
 */
void scsi_held_sense_set(SCSIHeldSense *h, const uint8_t *data, uint32_t len,
                         bool is_ua);

/**
 * scsi_held_sense_get:
 * @h: held sense data of a LUN
 * @buf: where to store them
 * @size: bytes at @buf
 * @fixed: in fixed format (SPC-4, 4.5.3), otherwise in descriptor format
 *
 * Context: any thread.
 * Returns: the number of bytes stored; NO SENSE takes some, too.
 */
int scsi_held_sense_get(SCSIHeldSense *h, uint8_t *buf, int size, bool fixed);

/**
 * scsi_held_sense_is_ua:
 * @h: held sense data of a LUN
 *
 * Context: any thread.
 * Returns: true if a unit attention condition is held.
 */
bool scsi_held_sense_is_ua(SCSIHeldSense *h);

/**
 * scsi_held_sense_drop_ua:
 * @h: held sense data of a LUN
 *
 * The initiator has seen the unit attention condition that is held, if any.
 *
 * Context: any thread.
 * Returns: true for one caller only, if there was one.
 */
bool scsi_held_sense_drop_ua(SCSIHeldSense *h);

#endif /* HW_SCSI_SCSI_SENSE_H */
