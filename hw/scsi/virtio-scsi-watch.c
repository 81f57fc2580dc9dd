/*
 * virtio SCSI host bus adapter: what keeps IOThreads and request queues busy,
 * and queues that move because of that
 *
 * Figures are made once a period, in the main loop.  See
 * docs/devel/virtio-scsi-threads.rst for what they are.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/virtio/iothread-vq-balance.h"
#include "qemu/main-loop.h"
#include "virtio-scsi-internal.h"

#define PERIOD_MS       100
/* A query has time measured for so long */
#define QUERY_SECONDS   10

/* Sums that only grow, as they were at the end of a period */
typedef struct WatchSums {
    int64_t handler_ns;
    uint64_t submitted;
    uint64_t ended;
} WatchSums;

struct VirtIOSCSIWatch {
    VirtIOSCSI *s;
    QEMUTimer *timer;           /* pending, or the device rests */
    unsigned num_contexts;
    unsigned num_queues;

    /* The end of the last period */
    int64_t clock_ns;           /* of QEMU_CLOCK_VIRTUAL */
    int64_t real_ns;
    int64_t *idle_ns;           /* of each context */
    WatchSums *sums;            /* of each queue */

    /* The last period */
    bool known;
    int64_t length_ns;
    int64_t *busy_ns;           /* of each context */
    int64_t *queue_ns;          /* of each queue */
    unsigned *owner;            /* of each queue: a context */

    IOThreadVqBalance *balance;
    IOThreadVqMove *moves;      /* to be made one by one */
    unsigned num_moves;
    unsigned next_move;
};

/*
 * Figures
 */

static unsigned watch_owner(const VirtIOSCSI *s, const VirtIOSCSIQueue *q)
{
    for (unsigned i = 0; i < s->num_contexts; i++) {
        if (s->contexts[i] == q->ctx) {
            return i;
        }
    }
    g_assert_not_reached();
}

static WatchSums watch_read_queue(const VirtIOSCSIQueue *q)
{
    const VirtIOSCSIStats *stats = &q->stats;

    return (WatchSums) {
        .handler_ns = stat64_get(&stats->handler_ns),
        .submitted = stat64_get(&stats->submitted),
        .ended = virtio_scsi_count_ended(stats),
    };
}

/* From here on a new period runs. */
static void watch_mark(VirtIOSCSIWatch *w)
{
    VirtIOSCSI *s = w->s;

    w->clock_ns = qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL);
    w->real_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    for (unsigned i = 0; i < w->num_contexts; i++) {
        w->idle_ns[i] = aio_context_idle_ns(s->contexts[i], w->real_ns);
    }
    for (unsigned i = 0; i < w->num_queues; i++) {
        w->sums[i] = watch_read_queue(&s->queues[i]);
    }
}

/*
 * Besides handlers, an IOThread is busy with completions, which come mixed, and
 * with what isn't ours.  A command's end takes at most as long as handlers take
 * for a command; what is more isn't ours.
 */
static void watch_deal_rest(VirtIOSCSIWatch *w, unsigned context,
                            const uint64_t *ended)
{
    int64_t handlers = 0;
    uint64_t all_ended = 0;
    double rest;

    for (unsigned i = 0; i < w->num_queues; i++) {
        if (w->owner[i] == context) {
            handlers += w->queue_ns[i];
            all_ended += ended[i];
        }
    }
    rest = MIN(handlers, MAX(0, w->busy_ns[context] - handlers));
    for (unsigned i = 0; i < w->num_queues && all_ended; i++) {
        if (w->owner[i] == context) {
            w->queue_ns[i] += rest * ended[i] / all_ended;
        }
    }
}

/*
 * End a period and begin another one.  Returns false if nothing was going on.
 */
static bool watch_measure(VirtIOSCSIWatch *w)
{
    g_autofree WatchSums *old = g_memdup2(w->sums,
                                          w->num_queues * sizeof(*old));
    g_autofree int64_t *old_idle = g_memdup2(w->idle_ns, w->num_contexts *
                                                         sizeof(*old_idle));
    g_autofree uint64_t *ended = g_new(uint64_t, w->num_queues);
    int64_t old_clock = w->clock_ns;
    int64_t old_real = w->real_ns;
    bool active = false;

    watch_mark(w);
    w->length_ns = MAX(1, w->clock_ns - old_clock);
    for (unsigned i = 0; i < w->num_contexts; i++) {
        w->busy_ns[i] = MAX(0, w->real_ns - old_real -
                               (w->idle_ns[i] - old_idle[i]));
    }
    for (unsigned i = 0; i < w->num_queues; i++) {
        ended[i] = w->sums[i].ended - old[i].ended;
        active |= ended[i] || w->sums[i].submitted != old[i].submitted;
        w->queue_ns[i] = w->sums[i].handler_ns - old[i].handler_ns;
        w->owner[i] = watch_owner(w->s, &w->s->queues[i]);
    }
    for (unsigned i = 0; i < w->num_contexts; i++) {
        watch_deal_rest(w, i, ended);
    }
    w->known = true;
    return active;
}

/*
 * Moves
 */

static void watch_refused(VirtIOSCSIWatch *w, unsigned queue)
{
    iothread_vq_balance_refused(w->balance, queue,
                                qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL));
}

static void watch_next_move(VirtIOSCSIWatch *w)
{
    VirtIOSCSI *s = w->s;

    while (s->balance && w->next_move < w->num_moves) {
        const IOThreadVqMove *move = &w->moves[w->next_move++];

        if (virtio_scsi_move_begin(s, &s->queues[move->queue],
                                   s->contexts[move->to])) {
            return;
        }
        watch_refused(w, move->queue);
    }
}

void virtio_scsi_watch_moved(VirtIOSCSI *s, VirtIOSCSIQueue *q, bool moved)
{
    VirtIOSCSIWatch *w = s->watch;

    if (!w) {
        return;
    }
    if (!moved) {
        watch_refused(w, q->index);
    }
    watch_next_move(w);
}

static void watch_balance(VirtIOSCSIWatch *w)
{
    IOThreadVqPeriod period = {
        .now_ns = w->clock_ns,
        .length_ns = w->length_ns,
        .busy_ns = w->busy_ns,
        .queue_ns = w->queue_ns,
        .owner = w->owner,
    };

    w->num_moves = iothread_vq_balance_period(w->balance, &period, w->moves);
    w->next_move = 0;
    watch_next_move(w);
}

/*
 * Periods
 */

static void watch_arm(VirtIOSCSIWatch *w)
{
    timer_mod(w->timer, w->clock_ns / SCALE_MS + PERIOD_MS);
}

static void watch_tick(void *opaque)
{
    VirtIOSCSIWatch *w = opaque;
    VirtIOSCSI *s = w->s;
    bool active = watch_measure(w);

    virtio_scsi_watch_update(s);
    if (!s->watch) {
        return; /* nobody wants to know any more */
    }
    if (!active) {
        /* A handler that reads the old value leaves it to the next one. */
        qatomic_set(&s->watch_awake, false);
        return;
    }
    if (s->balance && !s->move.q) {
        watch_balance(w);
    }
    watch_arm(w);
}

/* A queue is at work again. */
static void watch_wake(void *opaque)
{
    VirtIOSCSI *s = opaque;

    if (s->watch && !timer_pending(s->watch->timer)) {
        watch_mark(s->watch);
        watch_arm(s->watch);
    }
}

static void watch_begin(VirtIOSCSI *s)
{
    VirtIOSCSIWatch *w = g_new0(VirtIOSCSIWatch, 1);

    *w = (VirtIOSCSIWatch) {
        .s = s,
        .num_contexts = s->num_contexts,
        .num_queues = s->parent_obj.conf.num_queues,
    };
    /* External: a replay of the VM doesn't know who asked for figures. */
    w->timer = timer_new_full(NULL, QEMU_CLOCK_VIRTUAL, SCALE_MS,
                              QEMU_TIMER_ATTR_EXTERNAL, watch_tick, w);
    w->idle_ns = g_new0(int64_t, w->num_contexts);
    w->busy_ns = g_new0(int64_t, w->num_contexts);
    w->sums = g_new0(WatchSums, w->num_queues);
    w->queue_ns = g_new0(int64_t, w->num_queues);
    w->owner = g_new0(unsigned, w->num_queues);
    w->moves = g_new0(IOThreadVqMove, w->num_queues);
    w->balance = iothread_vq_balance_new(w->num_contexts, w->num_queues);
    for (unsigned i = 0; i < w->num_contexts; i++) {
        aio_context_watch_idle(s->contexts[i], true);
    }
    s->watch = w;
    watch_mark(w);
    watch_arm(w);
    qatomic_set(&s->watch_awake, true);
    qatomic_set(&s->watched, true);
}

static void watch_end(VirtIOSCSI *s)
{
    VirtIOSCSIWatch *w = g_steal_pointer(&s->watch);

    qatomic_set(&s->watched, false);
    for (unsigned i = 0; i < w->num_contexts; i++) {
        aio_context_watch_idle(s->contexts[i], false);
    }
    timer_free(w->timer);
    iothread_vq_balance_free(w->balance);
    g_free(w->idle_ns);
    g_free(w->busy_ns);
    g_free(w->sums);
    g_free(w->queue_ns);
    g_free(w->owner);
    g_free(w->moves);
    g_free(w);
}

void virtio_scsi_watch_update(VirtIOSCSI *s)
{
    bool wanted = s->in_contexts && s->accepts_kicks && s->num_contexts &&
                  (s->balance ||
                   qemu_clock_get_ns(QEMU_CLOCK_REALTIME) <= s->watch_until);

    GLOBAL_STATE_CODE();

    if (wanted && !s->watch) {
        watch_begin(s);
    } else if (!wanted && s->watch) {
        watch_end(s);
    }
}

void virtio_scsi_watch_ask(VirtIOSCSI *s)
{
    s->watch_until = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) +
                     QUERY_SECONDS * NANOSECONDS_PER_SECOND;
    virtio_scsi_watch_update(s);
}

bool virtio_scsi_watch_share(VirtIOSCSI *s, unsigned queue, double *share,
                             double *busy)
{
    const VirtIOSCSIWatch *w = s->watch;
    double length;

    if (!w || !w->known) {
        return false;
    }
    if (!timer_pending(w->timer)) {
        *share = *busy = 0; /* at rest */
        return true;
    }
    length = w->length_ns;
    *share = MIN(1, w->queue_ns[queue] / length);
    *busy = MIN(1, w->busy_ns[watch_owner(s, &s->queues[queue])] / length);
    return true;
}

void virtio_scsi_watch_init(VirtIOSCSI *s)
{
    s->watch_bh = qemu_bh_new(watch_wake, s);
}

void virtio_scsi_watch_cleanup(VirtIOSCSI *s)
{
    assert(!s->watch);
    g_clear_pointer(&s->watch_bh, qemu_bh_delete);
}
