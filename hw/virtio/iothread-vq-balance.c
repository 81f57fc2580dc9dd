/*
 * Which virtqueue should be moved to another IOThread
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/virtio/iothread-vq-balance.h"

#define SECOND_NS 1000000000LL

/* All figures of load are parts of a period: 1 is an IOThread without pause. */
#define MIN_BUSY     0.5    /* below, an IOThread is no bottleneck */
#define MIN_GAIN     0.2    /* of what the busier one is busy */
#define SATURATED    0.95   /* who asks for more doesn't get it */
#define MIN_SHARE    0.02   /* of a queue that leaves a saturated IOThread... */
#define MIN_MARGIN   0.05   /* ...and by how much the other one stays better */

/* In so many periods nothing has changed but the load. */
#define SETTLED      2
#define SETTLED_LONG 5      /* enough for what isn't urgent */
#define MAX_SETTLED  8      /* of so many the average is */

#define HOLD_NS      SECOND_NS
#define MAX_HOLD_NS  (64 * SECOND_NS)
#define MAX_MOVES    8      /* in a second, of all queues */

/* What is true in one period only is noise. */
enum { LATEST, BEFORE, AVERAGE, NUM_VIEWS };

typedef struct BalanceIOThread {
    double other[NUM_VIEWS];    /* load that doesn't come from our queues */
    double load[NUM_VIEWS];     /* with queues as they are, or as planned */
    double small[NUM_VIEWS];    /* of it, from queues that fit elsewhere */
    unsigned settled;           /* periods since its queues changed */
    bool bottleneck;            /* before anything was planned */
    bool tried;
} BalanceIOThread;

typedef struct BalanceQueue {
    double share[NUM_VIEWS];
    unsigned owner;
    unsigned target;            /* while a move is pending */
    bool pending;
    bool has_moved;
    int64_t planned_ns;
    int64_t moved_ns;
    int64_t hold_ns;            /* how long it stays after a move... */
    int64_t refusal_ns;         /* ...and after one that wasn't possible */
    int64_t held_until_ns;
} BalanceQueue;

struct IOThreadVqBalance {
    unsigned num_iothreads;
    unsigned num_queues;
    bool begun;                 /* there is a period before */
    int64_t last_ns;            /* its end */
    int64_t planned_ns[MAX_MOVES];  /* when the last moves were planned */
    unsigned num_planned;
    BalanceIOThread *iothreads;
    BalanceQueue *queues;
};

IOThreadVqBalance *iothread_vq_balance_new(unsigned num_iothreads,
                                           unsigned num_queues)
{
    IOThreadVqBalance *b = g_new0(IOThreadVqBalance, 1);

    assert(num_iothreads && num_queues);
    b->num_iothreads = num_iothreads;
    b->num_queues = num_queues;
    b->iothreads = g_new0(BalanceIOThread, num_iothreads);
    b->queues = g_new0(BalanceQueue, num_queues);
    for (unsigned i = 0; i < num_queues; i++) {
        b->queues[i].hold_ns = HOLD_NS;
        b->queues[i].refusal_ns = HOLD_NS;
        b->queues[i].held_until_ns = INT64_MIN;
    }
    return b;
}

void iothread_vq_balance_free(IOThreadVqBalance *b)
{
    if (b) {
        g_free(b->iothreads);
        g_free(b->queues);
        g_free(b);
    }
}

/*
 * What has been measured
 */

/* A part of the period; clocks that differ make it negative, or more than 1. */
static double part(int64_t ns, const IOThreadVqPeriod *period)
{
    return MAX(0.0, MIN(1.0, (double)ns / period->length_ns));
}

/* Nothing is known of the time between two periods that aren't neighbours. */
static void forget_if_gap(IOThreadVqBalance *b, const IOThreadVqPeriod *period)
{
    int64_t gap_ns = period->now_ns - period->length_ns - b->last_ns;

    if (b->begun && gap_ns > period->length_ns / 2) {
        for (unsigned i = 0; i < b->num_iothreads; i++) {
            b->iothreads[i].settled = 0;
        }
    }
    b->last_ns = period->now_ns;
}

/*
 * The queue came to its present owner by a move of ours.  If it had moved
 * shortly before, one of both moves was wrong, so let it rest for longer.
 */
static void note_move(BalanceQueue *q, int64_t now_ns)
{
    if (q->has_moved && now_ns - q->moved_ns < 2 * q->hold_ns) {
        q->hold_ns = MIN(2 * q->hold_ns, MAX_HOLD_NS);
    } else {
        q->hold_ns = HOLD_NS;
    }
    q->has_moved = true;
    q->moved_ns = now_ns;
    q->held_until_ns = now_ns + q->hold_ns;
    q->refusal_ns = HOLD_NS;
    q->pending = false;
}

static void note_refusal(BalanceQueue *q, int64_t now_ns)
{
    q->held_until_ns = now_ns + q->refusal_ns;
    q->refusal_ns = MIN(2 * q->refusal_ns, MAX_HOLD_NS);
    q->pending = false;
}

/*
 * The figures of a period in which an IOThread's queues changed tell neither
 * what was before nor what comes now.
 */
static void note_owners(IOThreadVqBalance *b, const IOThreadVqPeriod *period)
{
    for (unsigned i = 0; i < b->num_iothreads; i++) {
        b->iothreads[i].settled = MIN(b->iothreads[i].settled + 1, MAX_SETTLED);
    }
    for (unsigned i = 0; i < b->num_queues; i++) {
        BalanceQueue *q = &b->queues[i];
        unsigned owner = period->owner[i];

        assert(owner < b->num_iothreads);
        if (b->begun && owner != q->owner) {
            b->iothreads[q->owner].settled = 0;
            b->iothreads[owner].settled = 0;
            if (q->pending) {
                note_move(q, period->now_ns);
            } else {
                /* somebody else's will: see first what comes of it */
                q->held_until_ns = period->now_ns + q->hold_ns;
            }
        } else if (q->pending && period->now_ns - q->planned_ns >= HOLD_NS) {
            note_refusal(q, period->now_ns);
        }
        if (q->pending) {
            b->iothreads[owner].settled = 0;
            b->iothreads[q->target].settled = 0;
        }
        q->owner = owner;
    }
    b->begun = true;
}

static void add_up(IOThreadVqBalance *b, unsigned view)
{
    for (unsigned i = 0; i < b->num_iothreads; i++) {
        b->iothreads[i].load[view] = b->iothreads[i].other[view];
    }
    for (unsigned i = 0; i < b->num_queues; i++) {
        BalanceQueue *q = &b->queues[i];

        b->iothreads[q->owner].load[view] += q->share[view];
    }
}

static void follow(double *average, double latest, unsigned periods)
{
    *average += (latest - *average) / MAX(periods, 1);
}

static void note_queues(IOThreadVqBalance *b, const IOThreadVqPeriod *period)
{
    for (unsigned i = 0; i < b->num_iothreads; i++) {
        b->iothreads[i].other[BEFORE] = b->iothreads[i].other[LATEST];
        b->iothreads[i].other[LATEST] = 0;
    }
    for (unsigned i = 0; i < b->num_queues; i++) {
        BalanceQueue *q = &b->queues[i];

        q->share[BEFORE] = q->share[LATEST];
        q->share[LATEST] = part(period->queue_ns[i], period);
    }
    add_up(b, LATEST);
    /* Together, queues can't take more than all. */
    for (unsigned i = 0; i < b->num_queues; i++) {
        BalanceQueue *q = &b->queues[i];
        BalanceIOThread *t = &b->iothreads[q->owner];

        q->share[LATEST] /= MAX(1.0, t->load[LATEST]);
        follow(&q->share[AVERAGE], q->share[LATEST], t->settled);
    }
}

static void note_load(IOThreadVqBalance *b, const IOThreadVqPeriod *period)
{
    note_queues(b, period);
    add_up(b, LATEST);
    /* What the queues didn't take was for others. */
    for (unsigned i = 0; i < b->num_iothreads; i++) {
        BalanceIOThread *t = &b->iothreads[i];

        t->other[LATEST] = MAX(0.0, part(period->busy_ns[i], period) -
                                    t->load[LATEST]);
        follow(&t->other[AVERAGE], t->other[LATEST], t->settled);
    }
    for (unsigned view = 0; view < NUM_VIEWS; view++) {
        add_up(b, view);
    }
    for (unsigned i = 0; i < b->num_iothreads; i++) {
        BalanceIOThread *t = &b->iothreads[i];

        t->bottleneck = MIN(t->load[LATEST], t->load[BEFORE]) >= MIN_BUSY;
    }
}

/*
 * What should be done
 */

/*
 * By how much the busier of two IOThreads is less busy after a move: what the
 * queue takes away, but not more than what makes the other one the busier.
 */
static double gain_of(const BalanceIOThread *from, const BalanceIOThread *to,
                      const BalanceQueue *q, unsigned view)
{
    return MIN(q->share[view],
               from->load[view] - to->load[view] - q->share[view]);
}

static bool is_clear(const BalanceIOThread *from, double gain, unsigned view)
{
    return gain >= MIN_GAIN * from->load[view];
}

/*
 * Many queues of which each takes little are worth their moves together: they
 * may make both IOThreads alike.  (A queue that takes more than half of the
 * difference doesn't, so it isn't one of them.)
 */
static bool is_part_of_gain(const BalanceIOThread *from,
                            const BalanceIOThread *to,
                            const BalanceQueue *q, unsigned view)
{
    double half = (from->load[view] - to->load[view]) / 2;

    return q->share[view] <= half &&
        is_clear(from, MIN(half, from->small[view]), view);
}

static bool is_clear_gain(const BalanceIOThread *from,
                          const BalanceIOThread *to,
                          const BalanceQueue *q, unsigned view)
{
    return is_clear(from, gain_of(from, to, q, view), view) ||
        is_part_of_gain(from, to, q, view);
}

/*
 * An IOThread without pause hides how much its queues ask for: each would take
 * more if it were alone.  So if there is nothing better to do, let a queue go
 * where it finds fewer that it shares the IOThread with.  As that is what it
 * went for, there is no reason for the way back.
 */
static bool finds_room(const BalanceIOThread *from, const BalanceIOThread *to,
                       const BalanceQueue *q, unsigned view)
{
    double share = q->share[view];

    return from->load[view] >= SATURATED && share >= MIN_SHARE &&
        from->load[view] - share - to->load[view] >= MIN_MARGIN;
}

/* Returns: 0 if it isn't worth a move */
static double worth_of_move(const BalanceIOThread *from,
                            const BalanceIOThread *to, const BalanceQueue *q)
{
    if ((is_clear_gain(from, to, q, LATEST) &&
         is_clear_gain(from, to, q, BEFORE)) ||
        (MIN(from->settled, to->settled) >= SETTLED_LONG &&
         finds_room(from, to, q, LATEST) && finds_room(from, to, q, BEFORE) &&
         finds_room(from, to, q, AVERAGE))) {
        return gain_of(from, to, q, LATEST) + gain_of(from, to, q, BEFORE);
    }
    return 0;
}

/* The busiest, or the idlest, of those whose figures can be relied upon */
static BalanceIOThread *most(IOThreadVqBalance *b, bool busy)
{
    BalanceIOThread *best = NULL;
    double best_load = 0;

    for (unsigned i = 0; i < b->num_iothreads; i++) {
        BalanceIOThread *t = &b->iothreads[i];
        double load = t->load[LATEST] + t->load[BEFORE];

        if (t->settled < SETTLED || (busy && (t->tried || !t->bottleneck))) {
            continue;
        }
        if (!best || (busy ? load > best_load : load < best_load)) {
            best = t;
            best_load = load;
        }
    }
    return best;
}

static bool may_move(const IOThreadVqBalance *b, const BalanceIOThread *from,
                     const BalanceQueue *q, int64_t now_ns)
{
    return &b->iothreads[q->owner] == from && !q->pending &&
        now_ns >= q->held_until_ns;
}

static void add_up_small(IOThreadVqBalance *b, BalanceIOThread *from,
                         const BalanceIOThread *to, int64_t now_ns)
{
    for (unsigned view = 0; view < NUM_VIEWS; view++) {
        double half = (from->load[view] - to->load[view]) / 2;

        from->small[view] = 0;
        for (unsigned i = 0; i < b->num_queues; i++) {
            const BalanceQueue *q = &b->queues[i];

            if (may_move(b, from, q, now_ns) && q->share[view] <= half) {
                from->small[view] += q->share[view];
            }
        }
    }
}

static BalanceQueue *best_queue(IOThreadVqBalance *b, BalanceIOThread *from,
                                const BalanceIOThread *to, int64_t now_ns)
{
    BalanceQueue *best = NULL;
    double best_gain = 0;

    add_up_small(b, from, to, now_ns);
    for (unsigned i = 0; i < b->num_queues; i++) {
        BalanceQueue *q = &b->queues[i];
        double gain;

        if (!may_move(b, from, q, now_ns)) {
            continue;
        }
        gain = worth_of_move(from, to, q);
        if (gain > best_gain) {
            best = q;
            best_gain = gain;
        }
    }
    return best;
}

/*
 * The idlest IOThread is the best one to go to, whichever queue goes.  The
 * busiest may have nothing to give: others' work keeps it busy, or one queue.
 */
static BalanceQueue *find_move(IOThreadVqBalance *b, int64_t now_ns,
                               BalanceIOThread **to)
{
    BalanceIOThread *from;
    BalanceQueue *q;

    for (unsigned i = 0; i < b->num_iothreads; i++) {
        b->iothreads[i].tried = false;
    }
    *to = most(b, false);
    while ((from = most(b, true)) && from != *to) {
        q = best_queue(b, from, *to, now_ns);
        if (q) {
            return q;
        }
        from->tried = true;
    }
    return NULL;
}

/* The next move is planned with what this one will have changed. */
static void plan_move(IOThreadVqBalance *b, BalanceQueue *q,
                      BalanceIOThread *to, int64_t now_ns)
{
    BalanceIOThread *from = &b->iothreads[q->owner];

    for (unsigned view = 0; view < NUM_VIEWS; view++) {
        from->load[view] -= q->share[view];
        to->load[view] += q->share[view];
    }
    q->pending = true;
    q->target = to - b->iothreads;
    q->planned_ns = now_ns;
    b->planned_ns[b->num_planned++ % MAX_MOVES] = now_ns;
}

static bool too_many_moves(const IOThreadVqBalance *b, int64_t now_ns)
{
    return b->num_planned >= MAX_MOVES &&
        now_ns - b->planned_ns[b->num_planned % MAX_MOVES] < SECOND_NS;
}

unsigned iothread_vq_balance_period(IOThreadVqBalance *b,
                                    const IOThreadVqPeriod *period,
                                    IOThreadVqMove *moves)
{
    unsigned num = 0;

    assert(period->length_ns > 0);
    forget_if_gap(b, period);
    note_owners(b, period);
    note_load(b, period);
    while (!too_many_moves(b, period->now_ns)) {
        BalanceIOThread *to;
        BalanceQueue *q = find_move(b, period->now_ns, &to);

        if (!q) {
            break;
        }
        plan_move(b, q, to, period->now_ns);
        moves[num++] = (IOThreadVqMove) {
            .queue = q - b->queues,
            .from = q->owner,
            .to = q->target,
        };
    }
    return num;
}

void iothread_vq_balance_refused(IOThreadVqBalance *b, unsigned queue,
                                 int64_t now_ns)
{
    assert(queue < b->num_queues);
    note_refusal(&b->queues[queue], now_ns);
}
