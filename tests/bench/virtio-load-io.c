/*
 * virtio-load: requests
 *
 * One thread looks after all queues.  Headers and descriptors are written once
 * for each slot; then only the LBA changes, so that the generator takes as
 * little as possible of the CPUs that it shares with the IOThreads.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/processor.h"
#include "standard-headers/linux/virtio_blk.h"
#include "scsi/constants.h"
#include "../qtest/virtio-scsi-shm.h"
#include "virtio-load.h"

/* So many new requests are shown to the device at once. */
#define BATCH 32

/* With fewer requests in flight than this, waiting is spinning. */
#define SPIN_BELOW 16

/* Limits for the sleep of a generator with deep queues */
#define NAP_MIN_NS 2000
#define NAP_MAX_NS 200000

/* No answer for so long, with requests in flight: give up. */
#define HANG_NS (60 * 1000000000ull)

/*
 * One request
 */

ShmShape load_shape(const Load *l, bool write)
{
    const LoadOptions *o = l->o;

    return (ShmShape) {
        .head = o->scsi ? sizeof(struct virtio_scsi_cmd_req)
                        : sizeof(struct virtio_blk_outhdr),
        .resp = o->scsi ? sizeof(struct virtio_scsi_cmd_resp) : 1,
        .out = write ? o->bs : 0,
        .in = write ? 0 : o->bs,
        .resp_last = !o->scsi,
    };
}

static void build_scsi(const Load *l, ShmSlot *slot, const LoadIo *io)
{
    struct virtio_scsi_cmd_req *req = (void *)slot->head;
    uint32_t sectors = l->o->bs / LOAD_SECTOR;

    memset(req, 0, sizeof(*req));
    shm_put_lun(req->lun, 0, io->lun);
    req->tag = cpu_to_le64(io - l->ios);
    if (l->cdb16) {
        req->cdb[0] = io->write ? WRITE_16 : READ_16;
        stl_be_p(req->cdb + 10, sectors);
    } else {
        req->cdb[0] = io->write ? WRITE_10 : READ_10;
        stw_be_p(req->cdb + 7, sectors);
    }
}

static void build_blk(ShmSlot *slot, const LoadIo *io)
{
    struct virtio_blk_outhdr *req = (void *)slot->head;

    *req = (struct virtio_blk_outhdr) {
        .type = cpu_to_le32(io->write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN),
    };
}

static void build(const Load *l, ShmSlot *slot, LoadIo *io)
{
    ShmShape shape = load_shape(l, io->write);

    if (l->o->scsi) {
        build_scsi(l, slot, io);
    } else {
        build_blk(slot, io);
    }
    shm_build(slot, &shape);
    io->built = true;
}

/* The response is set to what no device says, so that it must be written. */
static void put_lba(const Load *l, ShmSlot *slot, uint64_t lba)
{
    if (!l->o->scsi) {
        struct virtio_blk_outhdr *req = (void *)slot->head;

        req->sector = cpu_to_le64(lba);
        *shm_resp(slot, 1) = 0xff;
        return;
    }
    struct virtio_scsi_cmd_req *req = (void *)slot->head;
    struct virtio_scsi_cmd_resp *resp =
        (void *)shm_resp(slot, sizeof(*resp));

    if (l->cdb16) {
        stq_be_p(req->cdb + 2, lba);
    } else {
        stl_be_p(req->cdb + 2, lba);
    }
    resp->response = 0xff;
}

/* xorshift64*, but the upper half of its state will do */
static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;

    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return (x * 0x2545f4914f6cdd1dull) >> 32;
}

static void choose_block(const Load *l, LoadQueue *lq, LoadIo *io)
{
    uint64_t blocks = l->luns[io->lun].blocks;

    if (l->o->random) {
        io->block = blocks <= UINT32_MAX
            ? (next_random(&lq->rand) * blocks) >> 32
            : ((next_random(&lq->rand) << 31) ^ next_random(&lq->rand)) %
              blocks;
    } else {
        io->block = lq->cursor[io->lun]++;
        if (lq->cursor[io->lun] == blocks) {
            lq->cursor[io->lun] = 0;
        }
    }
}

static bool choose_write(const Load *l, LoadQueue *lq)
{
    unsigned percent = l->o->write_percent;

    if (l->phase == PHASE_FILL) {
        return true;
    }
    if (percent == 0 || percent == 100) {
        return percent;
    }
    return next_random(&lq->rand) % 100 < percent;
}

/* False if there is nothing left to fill. */
static bool submit(Load *l, LoadQueue *lq, ShmSlot *slot, uint64_t start_ns)
{
    LoadIo *io = slot->owner;
    bool write = choose_write(l, lq);

    if (l->o->verify) {
        if (!load_verify_next(l, io)) {
            return false;
        }
    } else {
        choose_block(l, lq, io);
    }
    if (!io->built || io->write != write) {
        io->write = write;
        build(l, slot, io);
    }
    put_lba(l, slot, io->block * (l->o->bs / LOAD_SECTOR));
    if (l->o->verify) {
        load_verify_fill(l, io, slot->data);
    }
    io->start_ns = start_ns;
    shm_add(slot);
    return true;
}

static void bad_answer(const Load *l, const ShmSlot *slot)
{
    const LoadIo *io = slot->owner;
    const uint8_t *resp = shm_resp(slot, load_shape(l, io->write).resp);

    load_die("queue %u, LUN %u, %s of block %" PRIu64 " failed: %s %u, "
             "status 0x%02x, used length %u",
             slot->q->pci.vq.index - l->dev->first_queue, io->lun,
             io->write ? "write" : "read", io->block,
             l->o->scsi ? "response" : "status byte",
             l->o->scsi ? resp[11] : resp[0], l->o->scsi ? resp[10] : 0,
             slot->used_len);
}

/*
 * QEMU counts what was transferred in either direction in a SCSI request's used
 * length; the specification counts what was written to memory.
 */
static bool answer_good(const Load *l, const ShmSlot *slot, const LoadIo *io)
{
    uint32_t in = io->write ? 0 : l->o->bs;

    if (l->o->scsi) {
        const struct virtio_scsi_cmd_resp *resp =
            (void *)shm_resp(slot, sizeof(*resp));

        return !resp->response && !resp->status && !resp->resid &&
               (slot->used_len == sizeof(*resp) + in ||
                slot->used_len == sizeof(*resp) + l->o->bs);
    }
    return *shm_resp(slot, 1) == VIRTIO_BLK_S_OK && slot->used_len == in + 1;
}

static void complete(Load *l, LoadQueue *lq, ShmSlot *slot, uint64_t now)
{
    LoadIo *io = slot->owner;

    if (unlikely(!answer_good(l, slot, io))) {
        bad_answer(l, slot);
    }
    if (l->o->verify) {
        load_verify_check(l, io, slot->data);
        load_verify_done(l, io);
    }
    if (l->measuring) {
        hist_add(&lq->hist, now > io->start_ns ? now - io->start_ns : 0);
    }
}

/*
 * One queue
 */

/* Closed loop: each answer makes room for the next request. */
static unsigned pump_closed(Load *l, LoadQueue *lq)
{
    uint64_t now = 0;
    unsigned n = 0;
    ShmSlot *slot;

    while (n < lq->depth && (slot = shm_reap(lq->q))) {
        if (!now) {
            now = load_now_ns();
        }
        complete(l, lq, slot, now);
        n++;
        if (lq->hot && l->phase != PHASE_DRAIN) {
            submit(l, lq, slot, now);
            if (n % BATCH == 0) {
                shm_flush(lq->q);
            }
        }
    }
    shm_flush(lq->q);
    if (n && lq->hot) {
        l->pause_ns = MAX(l->pause_ns, now - lq->last_ns);
        lq->last_ns = now;
    }
    return n;
}

/* When the queue's next request is due */
static uint64_t due_ns(const Load *l, const LoadQueue *lq)
{
    uint64_t n = lq->scheduled * l->o->queues + lq->index;

    return l->schedule_ns + (uint64_t)(n * l->interval_ns);
}

/* Open loop: requests come by schedule; those without a slot wait. */
static unsigned pump_open(Load *l, LoadQueue *lq)
{
    uint64_t now = load_now_ns();
    unsigned n = 0;
    uint64_t due;
    ShmSlot *slot;

    while (n < lq->depth && (slot = shm_reap(lq->q))) {
        complete(l, lq, slot, now);
        n++;
    }
    while (l->phase == PHASE_RUN && (due = due_ns(l, lq)) <= now &&
           (slot = shm_take(lq->q))) {
        submit(l, lq, slot, due);
        lq->scheduled++;
    }
    shm_flush(lq->q);
    return n;
}

static unsigned pump_any(Load *l, LoadQueue *lq)
{
    return l->o->rate && l->phase != PHASE_FILL ? pump_open(l, lq)
                                                : pump_closed(l, lq);
}

/*
 * As a driver's interrupt handler and its poller would: the interrupt starts
 * polling, which ends with the ring empty and interrupts armed.
 */
static unsigned pump_interrupts(Load *l, LoadQueue *lq)
{
    unsigned n = 0;

    if (shm_irq_came(lq->q)) {
        lq->irqs++;
        if (!lq->polling) {
            lq->polling = true;
            shm_irq_disarm(lq->q);
        }
    }
    if (lq->polling) {
        n = pump_any(l, lq);
        lq->polling = shm_irq_arm(lq->q);
        if (lq->polling) {
            shm_irq_disarm(lq->q);
        }
    } else if (l->o->rate && l->phase == PHASE_RUN &&
               due_ns(l, lq) <= load_now_ns()) {
        pump_open(l, lq);
    }
    return n;
}

/*
 * All queues
 */

bool load_in_flight(const Load *l)
{
    for (unsigned i = 0; i < l->o->queues; i++) {
        if (shm_in_flight(l->queues[i].q)) {
            return true;
        }
    }
    return false;
}

static void check_alive(Load *l)
{
    uint64_t now = load_now_ns();

    if (!qtest_probe_child(l->qts)) {
        load_die("QEMU ended during the load");
    }
    if (now - l->last_ns > HANG_NS && load_in_flight(l)) {
        load_die("hang: requests in flight, but no answer for %u s",
                 (unsigned)(HANG_NS / 1000000000));
    }
}

/*
 * With deep queues: sleep until about a quarter of all that is in flight should
 * have been answered.  The device keeps busy with the rest, and we don't take
 * its CPU for looking.
 */
static void nap(Load *l)
{
    uint64_t ns = l->recent_ns / MAX(l->recent_ios, 1) * l->quarter;
    struct timespec ts = {
        .tv_nsec = MIN(MAX(ns, NAP_MIN_NS), NAP_MAX_NS),
    };

    nanosleep(&ts, NULL);
}

/* Sums, not averages of single rounds: those differ too much in size. */
static void note_progress(Load *l, uint64_t n)
{
    uint64_t now = load_now_ns();

    l->recent_ns += now - l->last_ns;
    l->recent_ios += n;
    if (l->recent_ios > 16 * l->quarter) {
        l->recent_ns /= 2;
        l->recent_ios /= 2;
    }
    l->last_ns = now;
    l->idle_rounds = 0;
}

uint64_t load_pump(Load *l)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < l->o->queues; i++) {
        LoadQueue *lq = &l->queues[i];

        n += l->o->interrupts ? pump_interrupts(l, lq) : pump_any(l, lq);
    }
    if (n) {
        note_progress(l, n);
    } else if (++l->idle_rounds % 4096 == 0) {
        check_alive(l);
    }
    if (l->spin) {
        cpu_relax();
    } else if (n < l->quarter) {
        nap(l);
    }
    return n;
}

void load_post_all(Load *l)
{
    uint64_t now = load_now_ns();

    for (unsigned i = 0; i < l->o->queues; i++) {
        LoadQueue *lq = &l->queues[i];
        ShmSlot *slot;

        while (lq->hot && shm_in_flight(lq->q) < lq->depth &&
               (slot = shm_take(lq->q))) {
            if (!submit(l, lq, slot, now)) {
                break;
            }
        }
        shm_flush(lq->q);
    }
}

/*
 * Set-up
 */

static void init_queue(Load *l, unsigned index)
{
    const LoadOptions *o = l->o;
    LoadQueue *lq = &l->queues[index];

    lq->q = shm_queue(l->dev, index);
    lq->index = index;
    lq->depth = (int)index == o->flood ? 1 : o->depth;
    lq->rand = l->rand + index * 0x9e3779b97f4a7c15ull + 1;
    lq->hot = true;
    lq->polling = true;
    lq->cursor = g_new0(uint64_t, o->luns);
    for (unsigned i = 0; i < o->luns; i++) {
        lq->cursor[i] = l->luns[i].blocks / o->queues * index;
    }
    g_assert(lq->q->num_slots >= o->depth);
    for (unsigned j = 0; j < o->depth; j++) {
        unsigned number = index * o->depth + j;
        LoadIo *io = &l->ios[number];

        if (o->own_lun) {
            io->lun = index % o->luns;
            io->rank = index / o->luns * o->depth + j;
        } else {
            io->lun = number % o->luns;
            io->rank = number / o->luns;
        }
        lq->q->slots[j].owner = io;
    }
}

void load_io_init(Load *l)
{
    const LoadOptions *o = l->o;
    unsigned in_flight = o->queues * o->depth;

    /* Of a queue that the others flood, the latency matters. */
    l->spin = o->rate || in_flight < SPIN_BELOW || o->flood >= 0;
    l->quarter = in_flight / 4;
    l->last_ns = load_now_ns();
    l->queues = g_new0(LoadQueue, o->queues);
    l->ios = g_new0(LoadIo, o->queues * o->depth);
    l->interval_ns = o->rate ? 1e9 / o->rate : 0;
    for (unsigned i = 0; i < o->queues; i++) {
        init_queue(l, i);
    }
}

void load_io_free(Load *l)
{
    for (unsigned i = 0; i < l->o->queues; i++) {
        g_free(l->queues[i].cursor);
    }
    for (unsigned i = 0; i < l->o->luns; i++) {
        g_free(l->luns[i].generation);
    }
    g_free(l->queues);
    g_free(l->ios);
    g_free(l->luns);
}
