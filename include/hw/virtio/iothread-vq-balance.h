/*
 * Which virtqueue should be moved to another IOThread
 *
 * Decides from figures that the caller has measured, period by period, and
 * looks at no clock and no device itself.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_IOTHREAD_VQ_BALANCE_H
#define HW_VIRTIO_IOTHREAD_VQ_BALANCE_H

/*
 * When a queue moves:
 *
 * - Its IOThread was busy for at least half of each of two periods one after
 *   the other, and in both the move would have made the busier one of the two
 *   IOThreads less busy by at least a fifth.  Small queues count together.  So
 *   one that keeps its IOThread busy alone stays there, and nothing goes to an
 *   IOThread that others keep busy.
 * - Or its IOThread was busy without pause, which hides how much is asked of
 *   it, and for several periods the queue would have shared the other IOThread
 *   with clearly less.
 *
 * It goes to the IOThread that is the least busy, and of the queues on the
 * busiest IOThread that can be helped, that one goes which helps most.  Several
 * moves may be planned in a period, each with what those before it will change.
 * Periods in which an IOThread gets or loses a queue, or waits for a move,
 * don't count for it.
 *
 * When it doesn't: a queue stays for a second after a move, and for twice as
 * long as the last time if it had moved within twice that time before, up to 64
 * seconds.  After a while without a move that is a second again.  One that
 * couldn't be moved stays for a second, too, and twice as long each time until
 * it can.  All queues together move eight times a second at most.
 */
typedef struct IOThreadVqBalance IOThreadVqBalance;

/**
 * IOThreadVqPeriod: what was measured in one period
 *
 * @now_ns: end of the period, by a clock that never goes back
 * @length_ns: how long it was, more than 0
 * @busy_ns: for each IOThread, how long it worked, for whomever
 * @queue_ns: for each queue, how long its IOThread worked for it
 * @owner: for each queue, the index of its IOThread
 *
 * Times may be longer than the period: clocks of different threads differ.
 */
typedef struct IOThreadVqPeriod {
    int64_t now_ns;
    int64_t length_ns;
    const int64_t *busy_ns;
    const int64_t *queue_ns;
    const unsigned *owner;
} IOThreadVqPeriod;

/** IOThreadVqMove: @queue goes from IOThread @from to IOThread @to */
typedef struct IOThreadVqMove {
    unsigned queue;
    unsigned from;
    unsigned to;
} IOThreadVqMove;

/**
 * iothread_vq_balance_new:
 * @num_iothreads: how many IOThreads may own queues, at least 1
 * @num_queues: how many queues there are, at least 1
 *
 * Context: any thread, but one at a time for each object.
 */
IOThreadVqBalance *iothread_vq_balance_new(unsigned num_iothreads,
                                           unsigned num_queues);

/** iothread_vq_balance_free: @b may be NULL. */
void iothread_vq_balance_free(IOThreadVqBalance *b);

/**
 * iothread_vq_balance_period:
 * @b: what is known from the periods before
 * @period: the latest one
 * @moves: where to store moves, with room for one of each queue
 *
 * Queues that are to move now, in this order.  The caller does so, or calls
 * iothread_vq_balance_refused(); @owner of the next periods tells.  If that
 * hasn't changed after a second, the move counts as refused.  A queue that
 * another one's will has moved (a new mapping, say) stays there for a second.
 *
 * If @period doesn't begin where the one before ended, figures of before aren't
 * used.
 *
 * Returns: how many there are.
 */
unsigned iothread_vq_balance_period(IOThreadVqBalance *b,
                                    const IOThreadVqPeriod *period,
                                    IOThreadVqMove *moves);

/**
 * iothread_vq_balance_refused:
 * @b: what is known
 * @queue: it could not be moved
 * @now_ns: as in the periods
 *
 * Leave it alone for some time, the longer the more often this happens.
 */
void iothread_vq_balance_refused(IOThreadVqBalance *b, unsigned queue,
                                 int64_t now_ns);

#endif /* HW_VIRTIO_IOTHREAD_VQ_BALANCE_H */
