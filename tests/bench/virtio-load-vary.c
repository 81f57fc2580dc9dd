/*
 * virtio-load: load and mapping that change, and what the guest sees of that
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "virtio-load.h"

/* How often to look whether something is due */
#define TICK_NS (10 * 1000 * 1000)

/* Pauses are the longest of so long, if nothing else says when one begins. */
#define WINDOW_NS (100 * 1000 * 1000)

/*
 * Hot sets
 */

static void heat(Load *l, unsigned set, uint64_t now)
{
    unsigned hot = 0;

    l->set = set;
    for (unsigned i = 0; i < l->o->queues; i++) {
        LoadQueue *lq = &l->queues[i];

        lq->hot = !l->o->num_sets || l->o->sets[set][i];
        lq->last_ns = now;
        hot += lq->hot;
    }
    l->quarter = MAX(hot * l->o->depth / 4, 1);
    load_post_all(l);
}

/*
 * Changes of the mapping
 */

/* Send it and go on with the load; receive_answers() looks at the answer. */
static void send_remap(Load *l)
{
    g_autofree char *list = load_mapping(l->o, ++l->remapped);

    qtest_qmp_send(l->qts, "{'execute': 'qom-set', 'arguments': {"
                   "'path': '/machine/peripheral/vs/virtio-backend',"
                   "'property': 'iothread-vq-mapping', 'value': %p}}",
                   qobject_from_json(list, &error_abort));
}

static void receive_answers(Load *l)
{
    for (unsigned i = 0; i < l->remapped; i++) {
        QDict *resp = qtest_qmp_receive(l->qts);
        QDict *error = qdict_get_qdict(resp, "error");

        if (error) {
            load_die("--remap: %s", qdict_get_str(error, "desc"));
        }
        qobject_unref(resp);
    }
}

/*
 * Pauses
 */

/* The longest time without an answer that some queue has seen meanwhile */
static void close_window(Load *l, uint64_t now)
{
    for (unsigned i = 0; i < l->o->queues; i++) {
        if (l->queues[i].hot) {
            l->pause_ns = MAX(l->pause_ns, now - l->queues[i].last_ns);
        }
    }
    hist_add(l->calm_window ? &l->calm : &l->pauses, l->pause_ns);
    l->pause_ns = 0;
}

/*
 * Every other one begins with a change of the mapping.  Those in between tell
 * what the machine alone does.
 */
static void open_window(Load *l, uint64_t now)
{
    unsigned remaps = l->o->remaps;

    l->window_ns = now + (remaps ? 500000000 / remaps : WINDOW_NS);
    if (remaps && !l->calm_window) {
        send_remap(l);
    }
}

/*
 * The clock of a VM without CPUs stands still unless it is told to go on.
 */
static void step_clock(Load *l, uint64_t now)
{
    qtest_clock_step(l->qts, now - l->clock_ns);
    l->clock_ns = now;
}

void load_vary(Load *l, uint64_t now)
{
    const LoadOptions *o = l->o;

    l->vary_ns = now + TICK_NS;
    if (o->balance >= 0) {
        step_clock(l, now);
    }
    if (o->num_sets > 1) {
        unsigned set =
            (uint64_t)((now - l->schedule_ns) / (o->shift * 1e9)) % o->num_sets;

        if (set != l->set) {
            heat(l, set, now);
        }
    }
    if (l->measuring && now >= l->window_ns) {
        close_window(l, now);
        l->calm_window = o->remaps && !l->calm_window;
        open_window(l, now);
    }
}

void load_vary_begin(Load *l)
{
    l->clock_ns = l->vary_ns = load_now_ns();
    heat(l, 0, l->vary_ns);
}

void load_vary_measure(Load *l)
{
    uint64_t now = load_now_ns();

    for (unsigned i = 0; i < l->o->queues; i++) {
        l->queues[i].last_ns = now;
    }
    l->pause_ns = 0;
    open_window(l, now);
}

static uint64_t sum_of_moves(const QDict *device)
{
    const QListEntry *entry;
    uint64_t moves = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(device, "queues"), entry) {
        moves += qdict_get_try_int(qobject_to(QDict, qlist_entry_obj(entry)),
                                   "moves", 0);
    }
    return moves;
}

void load_vary_end(Load *l)
{
    QDict *resp;

    receive_answers(l);
    if (l->o->balance < 0) {
        return;
    }
    resp = qtest_qmp(l->qts, "{'execute': 'x-query-virtio-scsi-queues'}");
    if (qdict_haskey(resp, "return")) {
        QObject *first = qlist_peek(qdict_get_qlist(resp, "return"));

        l->moves = sum_of_moves(qobject_to(QDict, first));
    }
    qobject_unref(resp);
}
