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
