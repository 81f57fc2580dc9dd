/*
 * What unit tests run in an IOThread, and results that they wait for
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "iothread-call.h"

void iothread_call(IOThread *iothread, QEMUBHFunc *func, void *opaque)
{
    if (iothread) {
        aio_wait_bh_oneshot(iothread_get_aio_context(iothread), func, opaque);
    } else {
        func(opaque);
    }
}

void set_result(int *ret, int value)
{
    qatomic_set(ret, value);
    aio_wait_kick();
}

int wait_result(int *ret)
{
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(ret) == PENDING);
    return *ret;
}

static void hold_bh(void *opaque)
{
    IOThreadHold *hold = opaque;

    qatomic_set(&hold->held, true);
    while (!qatomic_read(&hold->release)) {
        g_usleep(10);
    }
}

void iothread_hold(IOThread *iothread, IOThreadHold *hold)
{
    *hold = (IOThreadHold) { .held = false };
    aio_bh_schedule_oneshot(iothread_get_aio_context(iothread), hold_bh, hold);
    while (!qatomic_read(&hold->held)) {
        g_usleep(10);
    }
}

void iothread_release(void *opaque)
{
    IOThreadHold *hold = opaque;

    qatomic_set(&hold->release, true);
}

static void coroutine_fn co_entry(void *opaque)
{
    IOThreadCo *co = opaque;

    co->entry(co->opaque);
    qatomic_set(&co->done, true);
    aio_wait_kick();
}

void iothread_co_start(IOThreadCo *co, CoroutineEntry *entry, void *opaque)
{
    *co = (IOThreadCo) {
        .iothread = iothread_new(),
        .entry = entry,
        .opaque = opaque,
    };
    aio_co_enter(iothread_get_aio_context(co->iothread),
                 qemu_coroutine_create(co_entry, co));
}

void iothread_co_join(IOThreadCo *co)
{
    AIO_WAIT_WHILE_UNLOCKED(NULL, !qatomic_read(&co->done));
    iothread_join(co->iothread);
}

bool coroutine_fn iothread_co_goes_on(IOThreadCo *co)
{
    aio_co_schedule(qemu_get_current_aio_context(), qemu_coroutine_self());
    qemu_coroutine_yield();
    return !qatomic_read(&co->stop);
}

void iothread_co_stop(IOThreadCo *co)
{
    qatomic_set(&co->stop, true);
    iothread_co_join(co);
}
