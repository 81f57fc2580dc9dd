/*
 * Unit test of what IOThreads have the main loop tell about a BlockBackend:
 * I/O errors and moves of the tray
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-emit-events.h"
#include "qapi/qapi-events-block-core.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "system/runstate.h"
#include "iothread.h"

#define FLOOD 10000

/*
 * What the main loop has told, one character for each: 'i', 'r', 's' for
 * BLOCK_IO_ERROR with an action, in capitals for reads, 'O' and 'C' for the
 * tray, 'p' and '!' for a request to stop the VM that is prepared and made.
 */
static GString *told;
static unsigned num_told;   /* atomic */
static char *last_reason;

static void tell(char what)
{
    g_assert_true(qemu_in_main_thread());
    g_string_append_c(told, what);
    qatomic_store_release(&num_told, num_told + 1);
}

void qapi_event_emit(QAPIEvent event, QDict *qdict)
{
    QDict *data = qdict_get_qdict(qdict, "data");

    if (event == QAPI_EVENT_BLOCK_IO_ERROR) {
        bool is_read = g_str_equal(qdict_get_str(data, "operation"), "read");
        char action = *qdict_get_str(data, "action");

        tell(is_read ? g_ascii_toupper(action) : action);
        g_free(last_reason);
        last_reason = g_strdup(qdict_get_str(data, "reason"));
    } else {
        g_assert_cmpint(event, ==, QAPI_EVENT_DEVICE_TRAY_MOVED);
        tell(qdict_get_bool(data, "tray-open") ? 'O' : 'C');
    }
}

void qemu_system_vmstop_request_prepare(void)
{
    tell('p');
}

void qemu_system_vmstop_request(RunState reason)
{
    g_assert_cmpint(reason, ==, RUN_STATE_IO_ERROR);
    tell('!');
}

/* The rest of the stub that had qapi_event_emit() */
Monitor *monitor_cur(void)
{
    return NULL;
}

Monitor *monitor_set_cur(Coroutine *co, Monitor *mon)
{
    return NULL;
}

int monitor_vprintf(Monitor *mon, const char *fmt, va_list ap)
{
    abort();
}

/*
 * A test's function runs in the IOThread while the main loop stands still, as
 * a device's request does: counted in flight.  Then the main loop drains.
 */
typedef void Errors(BlockBackend *blk);

typedef struct Run {
    BlockBackend *blk;
    Errors *errors;
    QemuEvent done;
} Run;

static void run_bh(void *opaque)
{
    Run *run = opaque;

    run->errors(run->blk);
    blk_dec_in_flight(run->blk);
    qemu_event_set(&run->done);
}

static void run_in_iothread(Errors *errors, const char *expected)
{
    IOThread *iothread = iothread_new();
    Run run = {
        .blk = blk_new(qemu_get_aio_context(), 0, BLK_PERM_ALL),
        .errors = errors,
    };

    told = g_string_new("");
    qemu_event_init(&run.done, false);
    blk_set_on_error(run.blk, BLOCKDEV_ON_ERROR_STOP, BLOCKDEV_ON_ERROR_STOP);
    blk_iostatus_enable(run.blk);
    for (unsigned round = 0; round < 2; round++) {
        blk_inc_in_flight(run.blk);
        qemu_event_reset(&run.done);
        aio_bh_schedule_oneshot(iothread_get_aio_context(iothread), run_bh,
                                &run);
        qemu_event_wait(&run.done);
        g_assert_cmpstr(told->str, ==, "");
        blk_drain(run.blk);
        g_assert_cmpstr(told->str, ==, expected);
        g_string_truncate(told, 0);
    }
    while (aio_poll(qemu_get_aio_context(), false)) {
        /* Nothing is left, and nothing told twice. */
    }
    g_assert_cmpstr(told->str, ==, "");
    blk_unref(run.blk);
    qemu_event_destroy(&run.done);
    g_string_free(told, true);
    iothread_join(iothread);
}

static void flood(BlockBackend *blk)
{
    for (unsigned i = 0; i < FLOOD; i++) {
        blk_error_action(blk, BLOCK_ERROR_ACTION_REPORT, true,
                         i < FLOOD - 1 ? EIO : EINVAL);
    }
}

/* However many: the last one is told. */
static void test_flood(void)
{
    run_in_iothread(flood, "R");
    g_assert_cmpstr(last_reason, ==, strerror(EINVAL));
}

static void stop_and_others(BlockBackend *blk)
{
    blk_error_action(blk, BLOCK_ERROR_ACTION_STOP, false, ENOSPC);
    blk_error_action(blk, BLOCK_ERROR_ACTION_REPORT, true, EIO);
    blk_error_action(blk, BLOCK_ERROR_ACTION_IGNORE, false, EIO);
    blk_error_action(blk, BLOCK_ERROR_ACTION_IGNORE, true, EIO);
}

/* No other error may hide one that stops the VM, and STOP comes after it. */
static void test_stop(void)
{
    run_in_iothread(stop_and_others, "iIRps!");
    g_assert_cmpstr(last_reason, ==, strerror(ENOSPC));
}

static void stop_both(BlockBackend *blk)
{
    blk_error_action(blk, BLOCK_ERROR_ACTION_STOP, true, EIO);
    blk_error_action(blk, BLOCK_ERROR_ACTION_STOP, false, EIO);
}

static void test_stop_both(void)
{
    run_in_iothread(stop_both, "ps!pS!");
}

static void coroutine_fn move_tray_entry(void *opaque)
{
    blk_co_eject(opaque, true);
    blk_co_eject(opaque, false);
    blk_co_eject(opaque, true);
}

static void move_tray(BlockBackend *blk)
{
    qemu_coroutine_enter(qemu_coroutine_create(move_tray_entry, blk));
}

/* Where it is in the end. */
static void test_tray(void)
{
    run_in_iothread(move_tray, "O");
}

/*
 * The next error comes while the main loop still tells of the last one: each is
 * told once.
 */

typedef struct Reporter {
    BlockBackend *blk;
    bool done;          /* atomic */
} Reporter;

static void report_bh(void *opaque)
{
    Reporter *r = opaque;

    for (unsigned i = 0; i < FLOOD; i++) {
        while (qatomic_load_acquire(&num_told) < i) {
            /* The main loop has its turn. */
        }
        blk_inc_in_flight(r->blk);
        blk_error_action(r->blk, i & 2 ? BLOCK_ERROR_ACTION_REPORT :
                                         BLOCK_ERROR_ACTION_IGNORE, i & 1, EIO);
        blk_dec_in_flight(r->blk);
    }
    qatomic_store_release(&r->done, true);
    aio_wait_kick();
}

static void test_none_lost(void)
{
    IOThread *iothread = iothread_new();
    Reporter r = { .blk = blk_new(qemu_get_aio_context(), 0, BLK_PERM_ALL) };

    told = g_string_new("");
    num_told = 0;
    aio_bh_schedule_oneshot(iothread_get_aio_context(iothread), report_bh, &r);
    AIO_WAIT_WHILE_UNLOCKED(NULL, !qatomic_load_acquire(&r.done));
    blk_drain(r.blk);
    g_assert_cmpuint(num_told, ==, FLOOD);
    blk_unref(r.blk);
    g_string_free(told, true);
    iothread_join(iothread);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/blk-events/flood", test_flood);
    g_test_add_func("/blk-events/stop", test_stop);
    g_test_add_func("/blk-events/stop-both", test_stop_both);
    g_test_add_func("/blk-events/tray", test_tray);
    g_test_add_func("/blk-events/none-lost", test_none_lost);
    return g_test_run();
}
