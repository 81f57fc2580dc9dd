/*
 * What unit tests run in an IOThread, and results that they wait for
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TEST_IOTHREAD_CALL_H
#define TEST_IOTHREAD_CALL_H

#include "qemu/coroutine.h"
#include "iothread.h"

#define PENDING     INT_MAX     /* no result yet */

/**
 * iothread_call: run @func in @iothread, and wait for it
 * @iothread: %NULL for the main loop, where it's called at once
 * @func: a function
 * @opaque: its argument
 *
 * To be called in the main loop.
 */
void iothread_call(IOThread *iothread, QEMUBHFunc *func, void *opaque);

typedef struct IOThreadHold {
    bool held;          /* atomic */
    bool release;       /* atomic */
} IOThreadHold;

/**
 * iothread_hold: keep @iothread busy, so that nothing else runs in it
 * @hold: uninitialised; to stay until iothread_release() is called
 *
 * To be called in the main loop.
 */
void iothread_hold(IOThread *iothread, IOThreadHold *hold);

/**
 * iothread_release: let it go on
 * @hold: the IOThreadHold, as the argument of a QEMUBHFunc
 *
 * For any thread.
 */
void iothread_release(void *hold);

/**
 * set_result: store a result, and wake who waits for it
 * @ret: where
 * @value: anything but %PENDING
 *
 * For any thread.
 */
void set_result(int *ret, int value);

/**
 * wait_result: wait until a result is there, and return it
 * @ret: where set_result() stores it; %PENDING until then
 *
 * To be called in the main loop, which runs meanwhile.
 */
int wait_result(int *ret);

typedef struct IOThreadCo {
    IOThread *iothread;
    CoroutineEntry *entry;
    void *opaque;
    bool stop;          /* atomic */
    bool done;          /* atomic */
} IOThreadCo;

/**
 * iothread_co_start: run a coroutine in an IOThread of its own
 * @co: uninitialised; to stay until iothread_co_join() or iothread_co_stop()
 * @entry: what it does
 * @opaque: its argument
 *
 * To be called in the main loop.
 */
void iothread_co_start(IOThreadCo *co, CoroutineEntry *entry, void *opaque);

/**
 * iothread_co_join: wait until the coroutine has ended by itself
 *
 * To be called in the main loop, which runs meanwhile.
 */
void iothread_co_join(IOThreadCo *co);

/**
 * iothread_co_goes_on: let bottom halves run, as an event loop does
 *
 * To be called in the coroutine, for each round of its loop.
 *
 * Returns: false as soon as iothread_co_stop() was called
 */
bool coroutine_fn iothread_co_goes_on(IOThreadCo *co);

/**
 * iothread_co_stop: end a coroutine that asks iothread_co_goes_on()
 *
 * To be called in the main loop, which runs meanwhile.
 */
void iothread_co_stop(IOThreadCo *co);

#endif
