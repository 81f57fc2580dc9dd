/*
 * Stress of a virtio-scsi device: commands, their answers, TMFs and events
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/host-utils.h"
#include "scsi/constants.h"
#include "virtio-scsi-stress.h"

#define HEAD_FIXED offsetof(struct virtio_scsi_cmd_req, cdb)
#define CDB_SIZE   VIRTIO_SCSI_CDB_DEFAULT_SIZE

/* More room for data than a command needs, while sense_size varies */
#define SPARE_ROOM 256

/* The defaults come first. */
const uint32_t sense_sizes[NUM_SIZES] = { VIRTIO_SCSI_SENSE_SIZE, 18, 128 };
const uint32_t cdb_sizes[NUM_SIZES] = { CDB_SIZE, 16, 24 };

/*
 * Post
 */

static void op_post(Op *op)
{
    uint32_t resp_len = SHM_RESP_FIXED + op->sense_size;
    ShmShape shape = {
        .head = HEAD_FIXED + CDB_SIZE,
        .out = op->out_len,
        .resp = resp_len,
        .in = op->in_len,
    };

    /* An answer that was never written must not look good. */
    memset(shm_resp(op->slot, resp_len), 0xff, resp_len);
    if (op->in_len) {
        memset(op->slot->data, 0xee, op->in_len);
    }
    if (op->lun->blocks) {
        blocks_take(op);
    }
    op->lun->in_flight++;
    shm_post(op->slot, &shape);
}

/* Prepare a command in a free slot.  False: @kind can't be done now. */
static bool op_prepare(Stress *s, ShmSlot *slot, Lun *lun, const OpKind *kind,
                       uint32_t lba, uint16_t blocks)
{
    struct virtio_scsi_cmd_req *req = (void *)slot->head;
    Op *op = slot->owner;

    *op = (Op) {
        .kind = kind, .lun = lun, .slot = slot, .lba = lba, .blocks = blocks,
        .tag = (uint64_t)g_rand_int(s->rand) << 32 | s->next_tag++,
        .cdb = req->cdb,
        .sense_size = sense_sizes[s->sense_size],
        .sense_live = 1 << s->sense_size,
        .cdb_live = 1 << s->cdb_size,
        .epoch = lun->epoch,
    };
    memset(req, 0, sizeof(*req));
    shm_put_lun(req->lun, lun->spec->target, lun->spec->lun);
    req->tag = cpu_to_le64(op->tag);
    if (!kind->build(s, op)) {
        return false;
    }
    if (s->sizes_vary) {
        op->in_len += SPARE_ROOM;
    }
    return true;
}

/* A random command of class @cls, by weight */
static const OpKind *pick_kind(Stress *s, unsigned classes)
{
    unsigned total = 0, at;

    for (unsigned i = 0; i < NUM_OP_KINDS; i++) {
        total += op_kinds[i]->cls & classes ? op_kinds[i]->weight : 0;
    }
    at = stress_below(s, total);
    for (unsigned i = 0; ; i++) {
        unsigned weight = op_kinds[i]->cls & classes ? op_kinds[i]->weight : 0;

        if (at < weight) {
            return op_kinds[i];
        }
        at -= weight;
    }
}

static Lun *pick_lun(Stress *s)
{
    for (;;) {
        Lun *lun = &s->luns[stress_below(s, s->num_luns)];

        /* One that is away gets a command at times. */
        if (!(lun->spec->kind & LUN_SLOW) &&
            (lun->present || !stress_below(s, 4))) {
            return lun;
        }
    }
}

static void post_random(Stress *s, ShmSlot *slot)
{
    Lun *lun = pick_lun(s);
    const OpKind *kind = pick_kind(s, s->classes);

    if (kind->cls & (CLASS_WRITE | CLASS_ZERO) && !lun->blocks) {
        kind = &op_read;
    }
    if (!op_prepare(s, slot, lun, kind, 0, 0)) {
        g_assert_true(op_prepare(s, slot, lun, &op_test_unit_ready, 0, 0));
    }
    op_post(slot->owner);
}

/*
 * One command of the caller's choice, as soon as there is a slot for it and no
 * other command is in the way.  Returns its tag.
 */
uint64_t load_post(Stress *s, unsigned queue, Lun *lun, const OpKind *kind,
                   uint32_t lba, uint16_t blocks, Outcome *outcome)
{
    ShmQueue *q = shm_queue(s->dev, queue);
    ShmSlot *slot;
    Op *op;

    while (!(slot = shm_take(q)) ||
           !op_prepare(s, slot, lun, kind, lba, blocks)) {
        load_pump(s, false);
    }
    op = slot->owner;
    if (outcome) {
        *outcome = (Outcome) { .done = false };
        op->outcome = outcome;
    }
    op_post(op);
    shm_flush(q);
    return op->tag;
}

/* The same, with its answer; load goes on meanwhile. */
Outcome load_command(Stress *s, unsigned queue, Lun *lun, const OpKind *kind,
                     uint32_t lba, uint16_t blocks)
{
    Outcome outcome;

    load_post(s, queue, lun, kind, lba, blocks, &outcome);
    STRESS_WHILE(s, !outcome.done);
    return outcome;
}

/* Two reads on each queue that the slow LUN will not answer soon */
void load_occupy(Stress *s, Lun *lun)
{
    for (unsigned i = 0; i < 2 * s->dev->num_queues; i++) {
        load_post(s, i % s->dev->num_queues, lun, &op_read,
                  stress_below(s, DISK_BLOCKS), 1, NULL);
    }
}

/* Take the unit attentions of a LUN. */
void load_settle(Stress *s, Lun *lun)
{
    Outcome o;

    do {
        o = load_command(s, stress_below(s, s->dev->num_queues), lun,
                         &op_test_unit_ready, 0, 0);
    } while (o.response == VIRTIO_SCSI_S_OK && o.status == CHECK_CONDITION &&
             o.key == UNIT_ATTENTION);
}

/*
 * Answers
 */

static void count_ua(Stress *s, Op *op, const Outcome *o)
{
    uint64_t *ua = s->ua[op->lun->spec->target];

    s->count[COUNT_UNIT_ATTENTIONS]++;
    if (o->asc == 0x29) {
        ua[UA_RESET]++;
    } else if (o->asc == 0x2a && o->ascq == 0x09) {
        ua[UA_CAPACITY]++;
    } else if (o->asc == 0x3f && o->ascq == 0x0e) {
        ua[UA_LUNS]++;
    } else {
        load_fail(op, "unit attention %02x/%02x", o->asc, o->ascq);
    }
}

static Fate check_sense(Stress *s, Op *op, const Outcome *o)
{
    if (o->key == UNIT_ATTENTION) {
        count_ua(s, op, o);
        return FATE_UNDONE;
    }
    s->count[COUNT_SENSE]++;
    if (op->kind->key && op->kind->key == o->key &&
        op->kind->asc == o->asc && op->kind->ascq == o->ascq) {
        return FATE_UNDONE;
    }
    /* LOGICAL UNIT NOT SUPPORTED; REPORT LUNS is only for LUN 0 to know */
    if (o->key == ILLEGAL_REQUEST && o->asc == 0x25 &&
        (!lun_was_there(op) ||
         (op->kind == &op_report_luns && op->lun->spec->lun))) {
        return FATE_UNDONE;
    }
    /*
     * Stock: a second IOThread may find the unit attention already taken by the
     * first one, and reports no sense data.
     */
    if (stress_on_stock() && !o->key && !o->asc) {
        return FATE_UNDONE;
    }
    load_fail(op, "sense %x/%02x/%02x", o->key, o->asc, o->ascq);
    return FATE_UNDONE;
}

static Fate check_good(Stress *s, Op *op)
{
    if (op->kind->key) {
        load_fail(op, "GOOD, but there should be sense data");
    }
    if (lun_was_away(op) && !op->kind->any_lun) {
        load_fail(op, "GOOD, but the LUN is not there");
    }
    if (op->kind->check) {
        op->kind->check(s, op);
    }
    return FATE_DONE;
}

static Fate check_response(Stress *s, Op *op, const Outcome *o)
{
    switch (o->response) {
    case VIRTIO_SCSI_S_OK:
        if (o->status == GOOD) {
            return check_good(s, op);
        }
        if (o->status == CHECK_CONDITION) {
            return check_sense(s, op, o);
        }
        load_fail(op, "status %u", o->status);
        break;
    case VIRTIO_SCSI_S_ABORTED:
    case VIRTIO_SCSI_S_RESET:
        s->count[COUNT_ABORTED]++;
        /* Stock may answer a LUN reset before the commands that it aborts. */
        if (!op->lun->tmfs && lun_was_there(op) &&
            !(stress_on_stock() && s->count[COUNT_TMFS])) {
            load_fail(op, "response %u, but nobody aborts anything",
                      o->response);
        }
        return FATE_UNKNOWN;
    case VIRTIO_SCSI_S_BAD_TARGET:
        s->count[COUNT_NO_TARGET]++;
        if (lun_was_there(op)) {
            load_fail(op, "bad target, but the LUN is there");
        }
        return FATE_UNDONE;
    case VIRTIO_SCSI_S_FAILURE:
        /* With a smaller cdb_size the rest of it looks like data. */
        if (op->in_len && op->cdb_live & ~1u) {
            return FATE_UNDONE;
        }
        /* fall through */
    default:
        load_fail(op, "response %u", o->response);
    }
    return FATE_UNKNOWN;
}

static Outcome read_response(Op *op)
{
    const struct virtio_scsi_cmd_resp *resp =
        (void *)shm_resp(op->slot, SHM_RESP_FIXED + op->sense_size);
    Outcome o = {
        .done = true, .response = resp->response, .status = resp->status
    };

    if (o.response == VIRTIO_SCSI_S_OK && o.status == CHECK_CONDITION &&
        ldl_le_p(&resp->sense_len)) {
        if (ldl_le_p(&resp->sense_len) < 14 ||
            (resp->sense[0] & 0x7f) != 0x70) {
            load_fail(op, "sense data of %u bytes, format %02x",
                      ldl_le_p(&resp->sense_len), resp->sense[0]);
        }
        o.key = resp->sense[2] & 0xf;
        o.asc = resp->sense[12];
        o.ascq = resp->sense[13];
    }
    return o;
}

static void op_done(Stress *s, Op *op)
{
    Outcome o = read_response(op);

    s->count[COUNT_COMMANDS]++;
    stat_answered(s, op, &o);
    op->lun->in_flight--;
    blocks_release(op, check_response(s, op, &o));
    if (op->outcome) {
        *op->outcome = o;
    }
}

/*
 * The device was reset: what it has not answered by now, it never will.
 * Whoever waits for one of these sees it done, with an impossible response.
 */
void load_forget(Stress *s)
{
    for (unsigned i = 0; i < s->dev->num_queues; i++) {
        ShmQueue *q = shm_queue(s->dev, i);

        for (unsigned j = 0; j < q->num_slots; j++) {
            Op *op = q->slots[j].owner;

            if (!q->slots[j].busy) {
                continue;
            }
            stat_lost(s, op);
            op->lun->in_flight--;
            blocks_release(op, FATE_UNKNOWN);
            s->count[COUNT_LOST_TO_RESETS]++;
            if (op->outcome) {
                *op->outcome = (Outcome) { .done = true, .response = 0xff };
            }
        }
    }
    for (unsigned i = 0; i < s->num_luns; i++) {
        g_assert_cmpuint(s->luns[i].in_flight, ==, 0);
        s->luns[i].tmfs = 0;
    }
    s->tmfs_in_flight = 0;
}

/*
 * TMFs
 */

static void tmf_cover(Stress *s, Tmf *tmf, int delta)
{
    for (unsigned i = 0; i < s->num_luns; i++) {
        if (tmf->covers & (1 << i)) {
            s->luns[i].tmfs += delta;
        }
    }
    s->tmfs_in_flight += delta;
}

static unsigned tmf_covers(Stress *s, uint32_t subtype, Lun *lun)
{
    unsigned luns = 0;

    if (subtype != VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET) {
        return 1 << lun->index;
    }
    for (unsigned i = 0; i < s->num_luns; i++) {
        if (s->luns[i].spec->target == lun->spec->target) {
            luns |= 1 << i;
        }
    }
    return luns;
}

/* Returns false if the control queue is full. */
bool tmf_post(Stress *s, uint32_t subtype, Lun *lun, uint64_t tag,
              bool *done, uint8_t *response)
{
    ShmQueue *q = shm_ctrl(s->dev);
    ShmSlot *slot = shm_take(q);
    Tmf *tmf;

    if (!slot || s->hold) {
        return false;
    }
    tmf = slot->owner;
    *tmf = (Tmf) {
        .s = s, .subtype = subtype, .target = lun->spec->target, .lun = lun,
        .covers = tmf_covers(s, subtype, lun), .done = done,
        .response = response,
    };
    tmf_cover(s, tmf, 1);
    if (done) {
        *done = false;
    }
    shm_post_tmf(slot, subtype, lun->spec->target, lun->spec->lun, tag);
    shm_flush(q);
    return true;
}

static void tmf_check(const Tmf *tmf, uint8_t response)
{
    bool ok = response == VIRTIO_SCSI_S_OK;

    switch (tmf->subtype) {
    case VIRTIO_SCSI_T_TMF_CLEAR_ACA:
        ok = response == VIRTIO_SCSI_S_FUNCTION_REJECTED;
        break;
    case VIRTIO_SCSI_T_TMF_QUERY_TASK:
    case VIRTIO_SCSI_T_TMF_QUERY_TASK_SET:
        ok |= response == VIRTIO_SCSI_S_FUNCTION_SUCCEEDED;
        break;
    }
    /* Nobody or a sibling answers for a hot-plugged LUN that is away. */
    if (tmf->lun->spec->kind & LUN_HOT) {
        ok |= response == VIRTIO_SCSI_S_BAD_TARGET ||
              response == VIRTIO_SCSI_S_INCORRECT_LUN;
    }
    if (!ok) {
        g_printerr("TMF %u of LUN %s: response %u\n", tmf->subtype,
                   tmf->lun->spec->name, response);
        g_assert_not_reached();
    }
}

static void tmf_done(Stress *s, ShmSlot *slot)
{
    Tmf *tmf = slot->owner;
    uint8_t response = shm_tmf_response(slot);

    s->count[COUNT_TMFS]++;
    tmf_check(tmf, response);
    if (tmf->subtype == VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET ||
        tmf->subtype == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET) {
        s->ua_due[UA_RESET] += ctpop64(tmf->covers);
    }
    tmf_cover(s, tmf, -1);
    if (tmf->response) {
        *tmf->response = response;
    }
    if (tmf->done) {
        *tmf->done = true;
    }
}

uint8_t tmf_run(Stress *s, uint32_t subtype, Lun *lun, uint64_t tag)
{
    uint8_t response = 0xff;
    bool done = false;

    STRESS_WHILE(s, !tmf_post(s, subtype, lun, tag, &done, &response));
    STRESS_WHILE(s, !done);
    return response;
}

void tmf_drain(Stress *s)
{
    STRESS_WHILE(s, s->tmfs_in_flight);
}

/*
 * Events
 */

static void event_post(ShmSlot *slot)
{
    ShmShape shape = { .resp = sizeof(struct virtio_scsi_event) };

    shm_post(slot, &shape);
}

void load_post_events(Stress *s)
{
    ShmQueue *q = shm_event(s->dev);
    ShmSlot *slot;

    while ((slot = shm_take(q))) {
        event_post(slot);
    }
    shm_flush(q);
}

static void event_done(Stress *s, ShmSlot *slot)
{
    struct virtio_scsi_event *event =
        (void *)shm_resp(slot, sizeof(struct virtio_scsi_event));
    uint32_t type = ldl_le_p(&event->event) & ~VIRTIO_SCSI_T_EVENTS_MISSED;

    if (type > VIRTIO_SCSI_T_PARAM_CHANGE) {
        g_printerr("unknown event %u\n", type);
        g_assert_not_reached();
    }
    s->count[COUNT_EVENTS]++;
    event_post(slot);
}

/*
 * Pump
 */

static bool reap_commands(Stress *s)
{
    bool any = false;

    for (unsigned i = 0; i < s->dev->num_queues; i++) {
        ShmSlot *slot;

        while ((slot = shm_reap(shm_queue(s->dev, i)))) {
            op_done(s, slot->owner);
            any = true;
        }
    }
    return any;
}

/*
 * The control queue is looked at first, the others next, and only then a TMF
 * counts as done.  So each command that is found aborted after that was
 * answered after the TMF that aborted it, which must not happen.
 */
static bool reap_all(Stress *s)
{
    ShmSlot *tmfs[64];
    unsigned n = 0;
    ShmSlot *slot;
    bool any;

    while (n < ARRAY_SIZE(tmfs) && (tmfs[n] = shm_reap(shm_ctrl(s->dev)))) {
        n++;
    }
    any = reap_commands(s) || n;
    for (unsigned i = 0; i < n; i++) {
        tmf_done(s, tmfs[i]);
    }
    while ((slot = shm_reap(shm_event(s->dev)))) {
        event_done(s, slot);
        any = true;
    }
    return any;
}

static void post_all(Stress *s)
{
    for (unsigned i = 0; i < s->dev->num_queues - s->quiet; i++) {
        ShmQueue *q = shm_queue(s->dev, i);
        ShmSlot *slot;

        while ((slot = shm_take(q))) {
            post_random(s, slot);
        }
        shm_flush(q);
    }
}

/* One round: take answers, and, with @post, fill the queues again. */
void load_pump(Stress *s, bool post)
{
    if (reap_all(s)) {
        shm_progress(&s->wait);
    } else {
        shm_wait(&s->wait, s->qts, "any answer");
    }
    if (s->rounds++ % 8 == 0) {
        stress_poll_qmp(s);
    }
    if (!s->hold) {
        if (post) {
            post_all(s);
        }
        shm_flush(shm_event(s->dev));
    }
}

void load_run(Stress *s, uint64_t commands)
{
    uint64_t until = s->count[COUNT_COMMANDS] + commands;

    STRESS_WHILE(s, s->count[COUNT_COMMANDS] < until);
}

static bool any_in_flight(Stress *s)
{
    for (unsigned i = 0; i < s->dev->num_queues; i++) {
        if (shm_in_flight(shm_queue(s->dev, i))) {
            return true;
        }
    }
    return s->tmfs_in_flight;
}

void load_drain(Stress *s)
{
    while (any_in_flight(s)) {
        load_pump(s, false);
    }
}

/* Read all disks. */
void load_verify(Stress *s)
{
    load_drain(s);
    for (unsigned i = 0; i < s->num_luns; i++) {
        Lun *lun = &s->luns[i];
        uint64_t before;

        if (!lun->blocks || !lun->present) {
            continue;
        }
        load_settle(s, lun);
        load_drain(s);
        before = s->count[COUNT_BLOCKS_READ];
        for (uint32_t lba = 0; lba < DISK_BLOCKS; lba += MAX_BLOCKS) {
            load_post(s, stress_below(s, s->dev->num_queues), lun, &op_read,
                      lba, MAX_BLOCKS, NULL);
        }
        load_drain(s);
        g_assert_cmpuint(s->count[COUNT_BLOCKS_READ] - before, ==, DISK_BLOCKS);
    }
}

/* Commands in flight may see the sizes of before or those of now. */
void load_sizes_change(Stress *s, unsigned sense, unsigned cdb)
{
    s->sense_size = sense;
    s->cdb_size = cdb;
    for (unsigned i = 0; i < s->dev->num_queues; i++) {
        ShmQueue *q = shm_queue(s->dev, i);

        for (unsigned j = 0; j < q->num_slots; j++) {
            Op *op = q->slots[j].owner;

            op->sense_live |= 1 << sense;
            op->cdb_live |= 1 << cdb;
        }
    }
}
