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
 * iothread_vq_balance_refused(); @owner of the next period tells.
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
