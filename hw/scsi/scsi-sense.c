/*
 * SCSI unit attention conditions and held sense data
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "hw/scsi/scsi-sense.h"
#include "scsi/constants.h"

/*
 * Unit attention conditions
 */

/* Precedence levels (SAM-5, 5.14); whatever isn't listed comes after these */
static const struct {
    uint8_t asc;
    uint8_t ascq;
    uint8_t level;
} precedence[] = {
    { 0x29, 0x00, 0 },  /* POWER ON, RESET, OR BUS DEVICE RESET OCCURRED */
    { 0x29, 0x01, 1 },  /* POWER ON OCCURRED */
    { 0x29, 0x04, 1 },  /* DEVICE INTERNAL RESET */
    { 0x29, 0x02, 2 },  /* SCSI BUS RESET OCCURRED */
    { 0x3f, 0x01, 2 },  /* MICROCODE HAS BEEN CHANGED */
    { 0x29, 0x03, 3 },  /* BUS DEVICE RESET FUNCTION OCCURRED */
    { 0x29, 0x07, 4 },  /* I_T NEXUS LOSS OCCURRED */
    { 0x2f, 0x01, 5 },  /* COMMANDS CLEARED BY POWER LOSS NOTIFICATION */
};

static unsigned precedence_level(SCSISense sense)
{
    for (unsigned i = 0; i < ARRAY_SIZE(precedence); i++) {
        if (precedence[i].asc == sense.asc &&
            precedence[i].ascq == sense.ascq) {
            return precedence[i].level;
        }
    }
    return UINT8_MAX;
}

void scsi_attention_init(SCSIAttention *a)
{
    qemu_mutex_init(&a->lock);
    a->pending = false;
    a->num = 0;
}

void scsi_attention_destroy(SCSIAttention *a)
{
    qemu_mutex_destroy(&a->lock);
}

/* Called with the lock held. */
static void attention_set_num(SCSIAttention *a, unsigned num)
{
    a->num = num;
    /* Read by scsi_attention_pending() */
    qatomic_set(&a->pending, num > 0);
}

/* Called with the lock held.  Returns a->num if it isn't there. */
static unsigned attention_find(const SCSIAttention *a, SCSISense sense)
{
    unsigned i;

    for (i = 0; i < a->num; i++) {
        if (a->conditions[i].asc == sense.asc &&
            a->conditions[i].ascq == sense.ascq) {
            break;
        }
    }
    return i;
}

/* Called with the lock held. */
static void attention_remove(SCSIAttention *a, unsigned i)
{
    memmove(&a->conditions[i], &a->conditions[i + 1],
            (a->num - i - 1) * sizeof(a->conditions[0]));
    attention_set_num(a, a->num - 1);
}

void scsi_attention_raise(SCSIAttention *a, SCSISense sense)
{
    unsigned level = precedence_level(sense);
    unsigned i;

    if (sense.key != UNIT_ATTENTION) {
        return;
    }

    QEMU_LOCK_GUARD(&a->lock);
    if (attention_find(a, sense) < a->num) {
        return;
    }
    for (i = a->num; i > 0; i--) {
        if (precedence_level(a->conditions[i - 1]) <= level) {
            break;
        }
    }
    if (i == SCSI_ATTENTION_MAX) {
        return;
    }
    if (a->num == SCSI_ATTENTION_MAX) {
        attention_remove(a, a->num - 1);
    }
    memmove(&a->conditions[i + 1], &a->conditions[i],
            (a->num - i) * sizeof(a->conditions[0]));
    a->conditions[i] = sense;
    attention_set_num(a, a->num + 1);
}

bool scsi_attention_claim(SCSIAttention *a, SCSISense *sense)
{
    QEMU_LOCK_GUARD(&a->lock);
    if (!a->num) {
        return false;
    }
    *sense = a->conditions[0];
    attention_remove(a, 0);
    return true;
}

void scsi_attention_withdraw(SCSIAttention *a, SCSISense sense)
{
    unsigned i;

    QEMU_LOCK_GUARD(&a->lock);
    i = attention_find(a, sense);
    if (i < a->num) {
        attention_remove(a, i);
    }
}

void scsi_attention_clear(SCSIAttention *a)
{
    QEMU_LOCK_GUARD(&a->lock);
    attention_set_num(a, 0);
}

SCSISense scsi_attention_first(SCSIAttention *a)
{
    QEMU_LOCK_GUARD(&a->lock);
    return a->num ? a->conditions[0] : SENSE_CODE(NO_SENSE);
}

/*
 * Held sense data
 */

void scsi_held_sense_init(SCSIHeldSense *h)
{
    qemu_mutex_init(&h->lock);
    h->present = false;
    h->is_ua = false;
    h->len = 0;
}

void scsi_held_sense_destroy(SCSIHeldSense *h)
{
    qemu_mutex_destroy(&h->lock);
}

void scsi_held_sense_set(SCSIHeldSense *h, const uint8_t *data, uint32_t len,
                         bool is_ua)
{
    assert(len <= sizeof(h->data));
    if (!len && !scsi_held_sense_present(h)) {
        return; /* the good path ends here */
    }

    QEMU_LOCK_GUARD(&h->lock);
    if (len) {
        memcpy(h->data, data, len);
    }
    h->len = len;
    h->is_ua = len && is_ua;
    /* Read by scsi_held_sense_present() */
    qatomic_set(&h->present, len > 0);
}

int scsi_held_sense_get(SCSIHeldSense *h, uint8_t *buf, int size, bool fixed)
{
    QEMU_LOCK_GUARD(&h->lock);
    return scsi_convert_sense(h->data, h->len, buf, size, fixed);
}

bool scsi_held_sense_is_ua(SCSIHeldSense *h)
{
    if (!scsi_held_sense_present(h)) {
        return false;
    }
    QEMU_LOCK_GUARD(&h->lock);
    return h->is_ua;
}

bool scsi_held_sense_drop_ua(SCSIHeldSense *h)
{
    QEMU_LOCK_GUARD(&h->lock);
    if (!h->is_ua) {
        return false;
    }
    h->is_ua = false;
    h->len = 0;
    qatomic_set(&h->present, false);
    return true;
}
