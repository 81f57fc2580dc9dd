/*
 * A hostile guest for virtio-scsi: rings and requests
 *
 * Most of a request is right, or all of them would end at the first check.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "scsi/constants.h"
#include "virtio-scsi-hostile.h"

#define DESC_AREA   (RING_MAX * sizeof(struct vring_desc))
#define AVAIL_AREA  4096
#define USED_AREA   (3 * 4096)
#define SLOT_SIZE   1024        /* of the arena, for one request's parts */
#define NUM_SLOTS   (ARENA_SIZE / SLOT_SIZE)

/* Room in memory for @len bytes at @addr, or NULL */
static uint8_t *ram(ShmMem *mem, uint64_t addr, size_t len)
{
    return addr < mem->size && mem->size - addr >= len ? mem->host + addr
                                                       : NULL;
}

uint64_t any_address(Hostile *h, uint64_t right)
{
    const uint64_t places[] = {
        h->other_bar, h->other_bar + 0x1000, h->dev->pci->bar.addr,
        h->dev->pci->pdev->msix_table_bar.addr,
        0xfee00000, 0xfec00000, 0xfed00000, 0xa0000, 0xe0000, 0xfffc0000,
        h->mem.size - 16, h->mem.size - 4096, h->mem.size, 1ull << 40,
        UINT64_MAX - 511, 0,
    };

    if (!wrong(h)) {
        return right;
    }
    if (chance(h, 30)) {
        return below(h, h->mem.size);
    }
    return PICK(h, places) + (chance(h, 20) ? below(h, 4096) : 0);
}

/*
 * Where rings are
 */

void ring_homes(Hostile *h)
{
    h->arena = shm_alloc(&h->mem, ARENA_SIZE);
    for (unsigned i = 0; i < NUM_VQS; i++) {
        h->queues[i].home = shm_alloc(&h->mem,
                                      DESC_AREA + AVAIL_AREA + USED_AREA);
    }
}

void ring_place(Hostile *h, HostileQueue *q)
{
    uint8_t *home = h->mem.host + q->home;

    memset(home, 0, DESC_AREA + AVAIL_AREA + USED_AREA);
    q->desc = any_address(h, q->home);
    q->avail = any_address(h, q->home + DESC_AREA);
    q->used = any_address(h, q->home + DESC_AREA + AVAIL_AREA);
}

/*
 * Requests
 */

static const uint8_t opcodes[] = {
    TEST_UNIT_READY, REQUEST_SENSE, READ_6, WRITE_6, INQUIRY, MODE_SELECT,
    MODE_SENSE, START_STOP, ALLOW_MEDIUM_REMOVAL, READ_CAPACITY_10, READ_10,
    WRITE_10, WRITE_VERIFY_10, VERIFY_10, SYNCHRONIZE_CACHE, WRITE_SAME_10,
    UNMAP, READ_TOC, GET_CONFIGURATION, GET_EVENT_STATUS_NOTIFICATION,
    MODE_SELECT_10, MODE_SENSE_10, RESERVE, RELEASE, SEND_DIAGNOSTIC,
    READ_16, WRITE_16, VERIFY_16, WRITE_SAME_16, SERVICE_ACTION_IN_16,
    REPORT_LUNS, READ_12, WRITE_12, MECHANISM_STATUS, READ_DISC_INFORMATION,
    READ_DVD_STRUCTURE, FORMAT_UNIT, SEEK_10, COMPARE_AND_WRITE,
};

static void any_bytes(Hostile *h, uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        p[i] = below(h, 256);
    }
}

/* Each addressing method; most of the targets 0 and 1 have LUNs 0 to 2 */
static void any_lun(Hostile *h, uint8_t *field)
{
    static const uint8_t methods[] = { 0x00, 0x40, 0x40, 0x40, 0x80, 0xc1 };

    shm_put_lun(field, h->quick ? 0 : below(h, 3), h->quick ? 0 : below(h, 3));
    if (wrong(h)) {
        field[2] = PICK(h, methods) | (chance(h, 30) ? below(h, 64) : 0);
    }
    if (wrong(h)) {
        field[below(h, 8)] = below(h, 256);
    }
}

static void any_cdb(Hostile *h, uint8_t *cdb, unsigned len)
{
    memset(cdb, 0, len);
    cdb[0] = wrong(h) ? below(h, 256)
                      : h->quick ? TEST_UNIT_READY : PICK(h, opcodes);
    if (cdb[0] == READ_10 || cdb[0] == WRITE_10 || cdb[0] == WRITE_SAME_10) {
        cdb[5] = below(h, 256);
        cdb[8] = below(h, 8);
    } else if (cdb[0] == MODE_SELECT) {
        cdb[1] = 0x10;
        cdb[4] = 12;
    } else if (cdb[0] == START_STOP) {
        cdb[4] = below(h, 4);
    } else if (cdb[0] != TEST_UNIT_READY) {
        cdb[4] = cdb[8] = cdb[13] = below(h, 256);
        cdb[1] = chance(h, 50) ? below(h, 256) : 0;
        cdb[2] = chance(h, 50) ? below(h, 256) : 0;
    }
    while (wrong(h)) {
        cdb[below(h, len)] = below(h, 256);
    }
}

static unsigned put_command(Hostile *h, uint8_t *p)
{
    struct virtio_scsi_cmd_req *req = (void *)p;

    any_lun(h, req->lun);
    req->tag = cpu_to_le64(below(h, 32));
    req->task_attr = chance(h, 80) ? 0 : below(h, 256);
    req->prio = req->crn = 0;
    any_cdb(h, req->cdb, sizeof(req->cdb));
    return sizeof(*req);
}

static unsigned put_control(Hostile *h, uint8_t *p)
{
    struct virtio_scsi_ctrl_tmf_req *req = (void *)p;

    *req = (struct virtio_scsi_ctrl_tmf_req) {
        .type = cpu_to_le32(chance(h, 80) ? VIRTIO_SCSI_T_TMF : below(h, 4)),
        .subtype = cpu_to_le32(wrong(h) ? g_rand_int(h->rand) : below(h, 8)),
        .tag = cpu_to_le64(below(h, 32)),
    };
    any_lun(h, req->lun);
    return sizeof(*req);
}

/* Parameters of MODE SELECT with a block size, or anything */
static void put_data(Hostile *h, uint8_t *p, unsigned len)
{
    memset(p, 0, len);
    if (chance(h, 30)) {
        p[3] = 8;
        p[10] = 2 << below(h, 4);
    } else if (chance(h, 50)) {
        any_bytes(h, p, MIN(len, 64));
    }
}

static uint32_t any_length(Hostile *h, uint32_t right)
{
    static const uint32_t lengths[] = {
        0, 1, 3, 12, 51, 107, 4096, 65536, 1 << 20, INT32_MAX, UINT32_MAX,
    };

    return wrong(h) ? PICK(h, lengths) : right;
}

/* A descriptor, in the form of both kinds of rings */
typedef struct Part {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
} Part;

static void put_part(Hostile *h, uint8_t *table, unsigned i, const Part *part,
                     bool packed)
{
    if (packed) {
        ((struct vring_packed_desc *)table)[i] = (struct vring_packed_desc) {
            .addr = cpu_to_le64(part->addr),
            .len = cpu_to_le32(part->len),
            .id = cpu_to_le16(wrong(h) ? below(h, 65536) : i),
            .flags = cpu_to_le16(part->flags |
                                 1 << VRING_PACKED_DESC_F_AVAIL),
        };
    } else {
        ((struct vring_desc *)table)[i] = (struct vring_desc) {
            .addr = cpu_to_le64(part->addr),
            .len = cpu_to_le32(part->len),
            .flags = cpu_to_le16(part->flags),
            .next = cpu_to_le16(part->next),
        };
    }
}

/* Header, response and data of a request in the slot; returns the parts */
static unsigned put_request(Hostile *h, unsigned index, Part parts[3])
{
    uint64_t slot = h->arena + below(h, NUM_SLOTS) * SLOT_SIZE;
    uint8_t *p = h->mem.host + slot;
    unsigned head = 0, num = 0;
    bool out = chance(h, 40);

    put_data(h, p + 512, 512);
    if (index != 1) {
        head = index ? put_command(h, p) : put_control(h, p);
        parts[num++] = (Part) { slot, head, 0 };
    }
    if (index > 1 && out) {
        parts[num++] = (Part) { slot + 512, chance(h, 50) ? 512 : 12, 0 };
    }
    parts[num++] = (Part) {
        slot + 128, index > 1 ? SHM_RESP_FIXED + VIRTIO_SCSI_SENSE_DEFAULT_SIZE
                              : index ? 16 : 1, VRING_DESC_F_WRITE,
    };
    if (index > 1 && !out) {
        parts[num++] = (Part) { slot + 512, 512, VRING_DESC_F_WRITE };
    }
    for (unsigned i = 0; i < num; i++) {
        parts[i].addr = any_address(h, parts[i].addr);
        parts[i].len = any_length(h, parts[i].len);
        if (wrong(h)) {
            parts[i].flags ^= 1 << below(h, 3);
        }
    }
    return num;
}

/* Chains from descriptor @at on; the last one's next may be anything */
static unsigned put_chain(Hostile *h, uint8_t *table, unsigned at,
                          unsigned size, Part *parts, unsigned num, bool packed)
{
    unsigned i;

    for (i = 0; i < num && at + i < size; i++) {
        parts[i].next = at + i + 1;
        if (i + 1 < num) {
            parts[i].flags |= VRING_DESC_F_NEXT;
        }
        if (wrong(h)) {
            parts[i].next = below(h, chance(h, 80) ? size : 65536);
            parts[i].flags |= VRING_DESC_F_NEXT;
        }
        put_part(h, table, at + i, &parts[i], packed);
    }
    return i;
}

/* Put the parts into a table: they become one indirect descriptor. */
static unsigned make_indirect(Hostile *h, Part *parts, unsigned num)
{
    uint64_t slot = h->arena + below(h, NUM_SLOTS) * SLOT_SIZE + 256;
    unsigned len = num * sizeof(struct vring_desc);

    put_chain(h, h->mem.host + slot, 0, 16, parts, num, h->packed);
    parts[0] = (Part) {
        any_address(h, slot), any_length(h, len), VRING_DESC_F_INDIRECT
    };
    if (wrong(h)) {
        parts[0].len += below(h, 32);
    }
    return 1;
}

void ring_fill(Hostile *h, unsigned index)
{
    HostileQueue *q = &h->queues[index];
    uint8_t *table = ram(&h->mem, q->desc, DESC_AREA);
    uint8_t *avail = ram(&h->mem, q->avail, AVAIL_AREA);
    unsigned size = MIN(q->size, RING_MAX);
    unsigned heads = 0;

    for (unsigned at = 0; table && at < size; ) {
        Part parts[3];
        unsigned num = put_request(h, index, parts);

        if (chance(h, 20)) {
            num = make_indirect(h, parts, num);
            if (wrong(h)) {
                num = make_indirect(h, parts, num);
            }
        }
        if (avail && !h->packed) {
            stw_le_p(avail + 4 + 2 * heads++,
                     wrong(h) ? below(h, chance(h, 80) ? size : 65536) : at);
        }
        at += put_chain(h, table, at, size, parts, num, h->packed);
    }
    /* The ring has more entries than there are heads: all of them again */
    for (unsigned i = heads; heads && i < size; i++) {
        memcpy(avail + 4 + 2 * i, avail + 4 + 2 * (i % heads), 2);
    }
    hostile_log(h, "fill queue %u, %u heads", index, heads);
}

void ring_publish(Hostile *h, unsigned index)
{
    HostileQueue *q = &h->queues[index];
    uint8_t *avail = ram(&h->mem, q->avail, AVAIL_AREA);
    uint16_t idx;

    if (!avail || h->packed) {
        return;
    }
    idx = lduw_le_p(avail + 2) + 1 + below(h, MAX(q->size / 2, 1));
    if (chance(h, 10)) {
        idx = lduw_le_p(avail + 2) + 32000;
    } else if (wrong(h)) {
        idx = below(h, 65536);
    }
    qatomic_store_release((uint16_t *)(avail + 2), cpu_to_le16(idx));
    hostile_log(h, "avail index of queue %u: %u", index, idx);
}

/*
 * The writer
 */

static void scribble(Writer *w, HostileQueue *q)
{
    uint8_t *table = ram(w->mem, q->desc, DESC_AREA);
    unsigned at = g_rand_int_range(w->rand, 0, MAX(MIN(q->size, RING_MAX), 1));
    uint8_t *desc = table ? table + at * sizeof(struct vring_desc) : NULL;

    if (!table) {
        return;
    }
    if (w->packed) {
        /* available in this lap, then in the next one */
        qatomic_set((uint16_t *)(desc + 14),
                    lduw_le_p(desc + 14) ^ (1 << VRING_PACKED_DESC_F_AVAIL |
                                            1 << VRING_PACKED_DESC_F_USED));
    } else if (g_rand_boolean(w->rand)) {
        qatomic_set((uint32_t *)(desc + 8), g_rand_int_range(w->rand, 0, 8192));
    } else {
        qatomic_set((uint16_t *)(desc + 12), g_rand_int_range(w->rand, 0, 8));
    }
}

static void write_once(Writer *w, HostileQueue *q)
{
    uint8_t *avail = ram(w->mem, q->avail, AVAIL_AREA);
    uint8_t *used = ram(w->mem, q->used, USED_AREA);
    uint16_t *idx = (uint16_t *)(avail + 2);

    if (w->packed || w->mode == WRITER_SCRIBBLE) {
        scribble(w, q);
    } else if (!avail || !used || q->avail % 2 || q->used % 2) {
        return;
    } else if (w->mode == WRITER_AHEAD) {
        qatomic_set(idx, qatomic_read((uint16_t *)(used + 2)) + w->gap);
    } else if (w->mode == WRITER_STEP) {
        qatomic_set(idx, *idx + 1);
    } else {
        qatomic_set(idx, g_rand_int_range(w->rand, 0, 65536));
    }
}

static void *writer_run(void *opaque)
{
    Writer *w = opaque;

    while (!qatomic_read(&w->stop)) {
        for (unsigned i = 0; i < w->num; i++) {
            write_once(w, &w->queues[i]);
        }
    }
    return NULL;
}

void writer_start(Hostile *h)
{
    static const uint16_t gaps[] = { 1, 64, 256, 32000, 65535 };
    Writer *w = &h->writer;

    writer_stop(h);
    w->mode = below(h, NUM_WRITER_MODES);
    w->gap = PICK(h, gaps);
    w->packed = h->packed;
    w->mem = &h->mem;
    w->rand = g_rand_new_with_seed(g_rand_int(h->rand));
    w->num = 0;
    for (unsigned i = 0; i < NUM_VQS; i++) {
        if (h->queues[i].size && chance(h, 60)) {
            w->queues[w->num++] = h->queues[i];
        }
    }
    w->stop = false;
    w->thread = g_thread_new("writer", writer_run, w);
    hostile_log(h, "writer: mode %d, gap %u, %u queues", w->mode, w->gap,
                w->num);
}

void writer_stop(Hostile *h)
{
    Writer *w = &h->writer;

    if (w->thread) {
        qatomic_set(&w->stop, true);
        g_thread_join(w->thread);
        w->thread = NULL;
        g_rand_free(w->rand);
    }
}
