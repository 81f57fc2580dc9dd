/*
 * What x-query-virtio-scsi-queues tells, to the last kick
 *
 * Each test knows what it does to each queue, and what each counter must say
 * afterwards; of all queues, so that nothing is counted for another one.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/virtio_config.h"
#include "virtio-scsi-data.h"

#define MODERN  ",\"disable-legacy\":\"on\",\"packed\":true"

enum {
    SUBMITTED, COMPLETED, IN_FLIGHT, ABORTED, FAILED, BYTES_READ,
    BYTES_WRITTEN, KICKS, INTERRUPTS, NUM_COUNTERS,
};

static const char *const counter_names[NUM_COUNTERS] = {
    "submitted", "completed", "in-flight", "aborted", "failed", "bytes-read",
    "bytes-written", "kicks", "interrupts",
};

/* What the device should say */
static uint64_t want[NUM_QUEUES][NUM_COUNTERS];

/*
 * Query
 */

/* The only device at @path, or the only device; for qobject_unref() */
static QDict *query(MqDev *d, const char *path)
{
    g_autoptr(QDict) resp = path
        ? qtest_qmp(d->qts, "{'execute': 'x-query-virtio-scsi-queues',"
                    " 'arguments': {'path': %s}}", path)
        : qtest_qmp(d->qts, "{'execute': 'x-query-virtio-scsi-queues'}");
    QList *list = qdict_get_qlist(resp, "return");

    g_assert_nonnull(list);
    g_assert_cmpuint(qlist_size(list), ==, 1);
    return qobject_to(QDict, qlist_pop(list));
}

/* What @device says of a queue */
static const QDict *queue_info(const QDict *device, unsigned queue)
{
    const QListEntry *entry = qlist_first(qdict_get_qlist(device, "queues"));

    for (unsigned i = 0; i < queue; i++) {
        entry = qlist_next(entry);
    }
    g_assert_nonnull(entry);
    return qobject_to(QDict, qlist_entry_obj(entry));
}

static void read_counters(MqDev *d, uint64_t now[NUM_QUEUES][NUM_COUNTERS])
{
    g_autoptr(QDict) device = query(d, "vs");

    g_assert_cmpuint(qlist_size(qdict_get_qlist(device, "queues")), ==,
                     NUM_QUEUES);
    for (unsigned q = 0; q < NUM_QUEUES; q++) {
        const QDict *info = queue_info(device, q);

        g_assert_cmpint(qdict_get_int(info, "queue"), ==, q);
        for (unsigned i = 0; i < NUM_COUNTERS; i++) {
            now[q][i] = qdict_get_int(info, counter_names[i]);
        }
    }
}

static void check_now(MqDev *d)
{
    uint64_t now[NUM_QUEUES][NUM_COUNTERS];

    read_counters(d, now);
    for (unsigned q = 0; q < NUM_QUEUES; q++) {
        for (unsigned i = 0; i < NUM_COUNTERS; i++) {
            if (now[q][i] != want[q][i]) {
                g_printerr("queue %u: %s is %" PRIu64 ", not %" PRIu64 "\n",
                           q, counter_names[i], now[q][i], want[q][i]);
            }
            g_assert_cmpuint(now[q][i], ==, want[q][i]);
        }
    }
}

/*
 * An answer may be here before its interrupt is, and a command may be taken
 * before its kick arrives.  A TMF runs a bottom half in each thread.  The first
 * may do so before the thread sees a kick, the second before it handles it; by
 * the third all is done.
 */
static void settle(MqDev *d)
{
    for (unsigned i = 0; i < 3; i++) {
        mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, LUN_STOP, 1);
    }
}

static void check(MqDev *d)
{
    settle(d);
    check_now(d);
}

/* From here on the test knows everything. */
static void begin(MqDev *d)
{
    settle(d);
    read_counters(d, want);
}

/* One command was posted alone; and it was answered. */
static void posted(unsigned queue)
{
    want[queue][SUBMITTED]++;
    want[queue][IN_FLIGHT]++;
    want[queue][KICKS]++;
}

static void answered(unsigned queue)
{
    want[queue][COMPLETED]++;
    want[queue][IN_FLIGHT]--;
    want[queue][INTERRUPTS]++;
}

static void run(MqDev *d, unsigned queue, const MqCmd *cmd,
                struct virtio_scsi_cmd_resp *resp)
{
    mq_run(mq_queue(d, queue), cmd, resp, NULL);
    posted(queue);
    answered(queue);
}

static void run_good(MqDev *d, unsigned queue, const MqCmd *cmd)
{
    struct virtio_scsi_cmd_resp resp;

    run(d, queue, cmd, &resp);
    mq_assert_good(&resp);
    want[queue][BYTES_READ] += cmd->in_len ? cmd->in_len - resp.resid : 0;
    want[queue][BYTES_WRITTEN] += cmd->out_len ? cmd->out_len - resp.resid : 0;
}

static void run_failing(MqDev *d, unsigned queue, const MqCmd *cmd,
                        uint8_t response)
{
    struct virtio_scsi_cmd_resp resp;

    run(d, queue, cmd, &resp);
    g_assert_cmpuint(resp.response, ==, response);
    g_assert_cmpuint(resp.response || resp.status, !=, 0);
    want[queue][FAILED]++;
}

/* The device takes it, and holds it. */
static MqSlot *post(MqDev *d, unsigned queue, const MqCmd *cmd)
{
    MqSlot *slot = mq_post_cmd(mq_queue(d, queue), cmd);

    mq_flush(mq_queue(d, queue));
    posted(queue);
    return slot;
}

static void expect_answer(MqSlot *slot, uint8_t response)
{
    struct virtio_scsi_cmd_resp resp;

    mq_wait(slot);
    mq_read_resp(slot, &resp, sizeof(resp));
    g_assert_cmpuint(resp.response, ==, response);
    mq_release(slot);
}

/*
 * Other limits, and what that does by itself: it drains the LUN, and the device
 * kicks its queues afterwards, with which a kick of ours would be one.
 */
static void throttle(MqDev *d, bool on)
{
    data_throttle(d, LUN_FILE, on);
    settle(d);
}

/* The next commands to LUN_FILE are held, behind one that is not. */
static void hold(MqDev *d)
{
    MqCmd cmd = mq_read10(LUN_FILE, 0, 1);

    throttle(d, true);
    run_good(d, 0, &cmd);
}

static void qmp_and_wait(MqDev *d, const char *command, const char *event)
{
    qtest_qmp_assert_success(d->qts, "{'execute': %s}", command);
    qtest_qmp_eventwait(d->qts, event);
}

/*
 * Commands of all kinds
 */

static void run_kinds(MqDev *d)
{
    uint8_t data[BLOCK] = { 1 };
    MqCmd read = mq_read10(LUN_FILE, 10, 1);
    MqCmd write = mq_write10(LUN_FILE, 11, 1, data);
    MqCmd inquiry = mq_cmd(LUN_FILE, INQUIRY);
    MqCmd tur = mq_cmd(LUN_FILE, TEST_UNIT_READY);
    MqCmd bad_target = { .target = 7 }, bad_block, overrun;

    run_good(d, 0, &read);
    check(d);
    run_good(d, 1, &write);
    check(d);
    inquiry.cdb[4] = inquiry.in_len = 36;
    run_good(d, 2, &inquiry);
    check(d);
    inquiry.in_len = 200; /* all but 36 remain as they are */
    run_good(d, 2, &inquiry);
    check(d);
    run_good(d, 3, &tur);
    check(d);

    run_failing(d, 3, &bad_target, VIRTIO_SCSI_S_BAD_TARGET);
    check(d);
    bad_block = mq_read10(LUN_FILE, BAD_LBA, 1);
    run_failing(d, 2, &bad_block, VIRTIO_SCSI_S_OK);
    check(d);
    overrun = mq_read10(LUN_FILE, 20, 2);
    overrun.in_len = BLOCK;
    run_failing(d, 0, &overrun, VIRTIO_SCSI_S_OVERRUN);
    check(d);
}

/* Both directions: the device doesn't get as far as the LUN. */
static void run_both_ways(MqDev *d, unsigned queue)
{
    uint8_t data[BLOCK] = { 0 };
    MqCmd cmd = mq_write10(LUN_FILE, 30, 1, data);
    g_autofree Arena *a = arena_new(d);
    g_autofree Request *r = g_new(Request, 1);
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);

    cmd.in_len = BLOCK;
    data_prepare(r, a, &cmd, &data_one_piece);
    data_post(mq_queue(d, queue), r);
    mq_flush(mq_queue(d, queue));
    data_finish(r, ans);
    g_assert_cmpuint(ans->resp.response, ==, VIRTIO_SCSI_S_FAILURE);
    posted(queue);
    answered(queue);
    want[queue][FAILED]++;
    guest_free(d->alloc, a->base);
}

/* Many for one kick, which have one interrupt as they end at once */
static void run_batch(MqDev *d, unsigned queue, unsigned n)
{
    MqQueue *q = mq_queue(d, queue);
    g_autofree MqSlot **slots = g_new(MqSlot *, n);

    for (unsigned i = 0; i < n; i++) {
        MqCmd cmd = mq_cmd(LUN_FILE, TEST_UNIT_READY);

        slots[i] = mq_post_cmd(q, &cmd);
    }
    mq_flush(q);
    for (unsigned i = 0; i < n; i++) {
        expect_answer(slots[i], VIRTIO_SCSI_S_OK);
    }
    want[queue][SUBMITTED] += n;
    want[queue][COMPLETED] += n;
    want[queue][KICKS]++;
    want[queue][INTERRUPTS]++;
}

static void run_all(MqDev *d)
{
    MqCmd read = mq_read10(LUN_FILE, 40, 1);

    run_kinds(d);
    run_both_ways(d, 1);
    check(d);
    run_batch(d, 1, 10);
    check(d);

    mq_want_interrupt(mq_queue(d, 2), false);
    run_good(d, 2, &read);
    want[2][INTERRUPTS]--;
    check(d);
    mq_want_interrupt(mq_queue(d, 2), true);
    run_good(d, 2, &read);
    check(d);

    mq_kick(mq_queue(d, 3));
    want[3][KICKS]++;
    check(d);
}

static void test_kinds(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    begin(d);
    for (unsigned i = 0; i < 3; i++) {
        run_all(d);
    }
    data_end(d);
}

/*
 * Commands that stay in the device, and what ends them
 */

static void test_abort(const DataConfig *cfg)
{
    uint8_t data[BLOCK] = { 2 };
    MqCmd read = mq_read10(LUN_FILE, 10, 1);
    MqCmd write = mq_write10(LUN_FILE, 11, 1, data);
    MqDev *d = data_begin(cfg);
    MqSlot *reading, *writing, *tmf;

    begin(d);
    hold(d);
    reading = post(d, 1, &read);
    writing = post(d, 2, &write);
    check(d);
    tmf = mq_post_tmf(d, VIRTIO_SCSI_T_TMF_ABORT_TASK, 0, LUN_FILE, read.tag);
    check(d);

    data_throttle(d, LUN_FILE, false);
    expect_answer(reading, VIRTIO_SCSI_S_ABORTED);
    expect_answer(writing, VIRTIO_SCSI_S_OK);
    mq_wait(tmf);
    mq_release(tmf);
    answered(1);
    want[1][ABORTED]++;
    answered(2);
    want[2][BYTES_WRITTEN] += BLOCK;
    check(d);
    data_end(d);
}

static void test_lun_reset(const DataConfig *cfg)
{
    MqCmd read = mq_read10(LUN_FILE, 10, 1);
    MqCmd tur = mq_cmd(LUN_FILE, TEST_UNIT_READY);
    MqDev *d = data_begin(cfg);
    MqSlot *slot;

    begin(d);
    hold(d);
    slot = post(d, 3, &read);
    check(d);
    g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0,
                            LUN_FILE, 0), ==, VIRTIO_SCSI_S_OK);
    expect_answer(slot, VIRTIO_SCSI_S_RESET);
    answered(3);
    want[3][ABORTED]++;
    check(d);

    /* The unit attention */
    throttle(d, false);
    run_failing(d, 1, &tur, VIRTIO_SCSI_S_OK);
    check(d);
    data_end(d);
}

static void test_unplug_lun(const DataConfig *cfg)
{
    MqCmd read = mq_read10(LUN_FILE, 10, 1);
    MqDev *d = data_begin(cfg);
    MqSlot *slot;

    begin(d);
    hold(d);
    slot = post(d, 2, &read);
    check(d);
    qtest_qmp_device_del(d->qts, "hd0");
    expect_answer(slot, VIRTIO_SCSI_S_ABORTED);
    answered(2);
    want[2][ABORTED]++;
    check(d);
    data_end(d);
}

/* Before a device reset, what can be done is done: that is no abort. */
static void test_device_reset(const DataConfig *cfg)
{
    MqCmd read = mq_read10(LUN_FILE, 10, 1);
    MqDev *d = data_begin(cfg);

    begin(d);
    hold(d);
    post(d, 1, &read);
    check(d);
    mq_reset(d);
    answered(1);
    want[1][BYTES_READ] += BLOCK;
    check_now(d);
    data_throttle(d, LUN_FILE, false);

    /* The next driver, whose first commands we don't count: no less than now */
    data_start(d, cfg->form);
    begin(d);
    g_assert_cmpuint(want[1][SUBMITTED], >=, 1);
    g_assert_cmpuint(want[0][SUBMITTED], >, 1);
    run_all(d);
    data_end(d);
}

/*
 * A stopped VM
 */

static void test_stop(const DataConfig *cfg)
{
    MqCmd read = mq_read10(LUN_STOP, ONCE_READ_LBA, 1);
    MqDev *d = data_begin(cfg);
    MqSlot *slot;

    begin(d);
    /* To look at the rings again is no kick. */
    qmp_and_wait(d, "stop", "STOP");
    check_now(d);
    qmp_and_wait(d, "cont", "RESUME");
    check(d);

    slot = post(d, 1, &read);
    qtest_qmp_eventwait(d->qts, "STOP");
    check_now(d);
    qmp_and_wait(d, "cont", "RESUME");
    expect_answer(slot, VIRTIO_SCSI_S_OK);
    answered(1);
    want[1][BYTES_READ] += BLOCK;
    check(d);
    run_all(d);
    data_end(d);
}

/* A command that waits for the VM to go on is given up by a device reset. */
static void test_stop_reset(const DataConfig *cfg)
{
    MqCmd read = mq_read10(LUN_STOP, BAD_LBA, 1);
    MqDev *d = data_begin(cfg);

    begin(d);
    post(d, 2, &read);
    qtest_qmp_eventwait(d->qts, "STOP");
    check_now(d);
    mq_reset(d);
    answered(2);
    want[2][ABORTED]++;
    check_now(d);
    qmp_and_wait(d, "cont", "RESUME");
    data_start(d, cfg->form);
    begin(d);
    run_all(d);
    data_end(d);
}

/* A command that moves with the VM is one of the destination's. */
static void test_migrate(const DataConfig *cfg)
{
    MqCmd read = mq_read10(LUN_STOP, ONCE_READ_LBA, 1);
    uint64_t now[NUM_QUEUES][NUM_COUNTERS];
    MqDev *d = data_begin(cfg);
    QTestState *to = data_begin_incoming(cfg);
    MqSlot *slot;

    begin(d);
    slot = post(d, 1, &read);
    qtest_qmp_eventwait(d->qts, "STOP");
    mq_migrate(d->qts, to);
    data_migrated(d, to);

    memset(want, 0, sizeof(want));
    want[1][SUBMITTED] = 1;
    want[1][IN_FLIGHT] = 1;
    check_now(d);
    /* The block is bad here, too, for the first time. */
    qmp_and_wait(d, "cont", "STOP");
    read_counters(d, now);
    for (unsigned q = 0; q < NUM_QUEUES; q++) {
        /* Once where the guest goes on, if that was for long enough. */
        g_assert_cmpuint(now[q][INTERRUPTS], <=, 1);
        want[q][INTERRUPTS] = now[q][INTERRUPTS];
    }
    check_now(d);
    for (unsigned q = 0; q < NUM_QUEUES; q++) {
        want[q][INTERRUPTS] = 1;
    }
    qmp_and_wait(d, "cont", "RESUME");
    expect_answer(slot, VIRTIO_SCSI_S_OK);
    answered(1);
    want[1][BYTES_READ] = BLOCK;
    check(d);
    run_all(d);
    data_end(d);
}

/*
 * Nobody serves the queue as planned
 */

/* The driver breaks the rules: what it put there is no command. */
static void test_broken(const DataConfig *cfg)
{
    MqCmd read = mq_read10(LUN_FILE, 10, 1);
    MqDev *d = data_begin(cfg);
    gint64 begun = 0;
    uint64_t now[NUM_QUEUES][NUM_COUNTERS];

    begin(d);
    hold(d);
    post(d, 1, &read);
    check(d);
    mq_post_raw(mq_queue(d, 2), "abc", 3, NULL, 0, RESP_LEN, 0);
    mq_flush(mq_queue(d, 2));
    want[2][KICKS]++;
    while (!(d->vdev->bus->get_status(d->vdev) &
             VIRTIO_CONFIG_S_NEEDS_RESET)) {
        mq_pause(&begun, "NEEDS_RESET");
    }
    check_now(d);

    /* It ends all the same, though the guest doesn't see it. */
    data_throttle(d, LUN_FILE, false);
    begun = 0;
    while (read_counters(d, now), now[1][IN_FLIGHT]) {
        mq_pause(&begun, "a command to end in a broken device");
    }
    g_assert_cmpuint(now[1][COMPLETED], ==, want[1][COMPLETED] + 1);
    g_assert_cmpuint(now[1][SUBMITTED], ==, want[1][SUBMITTED]);

    mq_reset(d);
    data_start(d, cfg->form);
    begin(d);
    run_all(d);
    data_end(d);
}

/* "iothread" and "thread-id" of a queue; NULL: it is the main loop's */
static void expect_thread(MqDev *d, const char *path, unsigned queue,
                          const char *id, int64_t tid, bool polling)
{
    g_autoptr(QDict) device = query(d, path);
    const QDict *info = queue_info(device, queue);

    g_assert_cmpstr(qdict_get_try_str(info, "iothread"), ==, id);
    g_assert_cmpint(qdict_get_int(info, "thread-id"), ==, tid);
    g_assert_cmpint(qdict_get_bool(info, "polling"), ==, polling);
}

/* A driver starts the device where QEMU can open no more than @spare files. */
static void start_with_files(MqDev *d, const DataConfig *cfg, unsigned spare)
{
    pid_t pid = qtest_pid(d->qts);
    struct rlimit old, few;

    mq_reset(d);
    mq_setup(d, cfg->form, BLOCK);
    g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, NULL, &old), ==, 0);
    few = (struct rlimit) { data_limit_files(pid, spare), old.rlim_max };
    g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, &few, NULL), ==, 0);
    mq_driver_ok(d);
    g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, &old, NULL), ==, 0);
}

static void fall_back(MqDev *d, const DataConfig *cfg, unsigned spare)
{
    begin(d);
    start_with_files(d, cfg, spare);
    check_now(d); /* the main loop had a look; that is no kick */

    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        expect_thread(d, "vs", i, NULL, qtest_pid(d->qts), false);
    }
    mq_clear_ua(mq_queue(d, 0), 0, LUN_FILE);
    begin(d);
    run_all(d);
}

/*
 * Notifiers that can't be set up, and the main loop has all queues: none at
 * all, or not all of the host notifiers
 */
static void test_fallback(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    fall_back(d, cfg, 0);
    fall_back(d, cfg, 2 * d->num_vqs - 1);
    data_end(d);
}

/*
 * A driver that starts the device again and again meanwhile fills no log: no
 * more than 8 lines in 60 seconds of the VM, which are ours, and one that says
 * that there would be more.
 */
static void test_fallback_log(const DataConfig *cfg)
{
    enum { ROUNDS = 50, PRINTED = 8 };
    FILE *log = tmpfile();
    int old = dup(STDERR_FILENO);
    unsigned lines = 0;
    char line[512];
    MqDev *d;

    g_assert_nonnull(log);
    g_assert_cmpint(old, >=, 0);
    g_assert_cmpint(dup2(fileno(log), STDERR_FILENO), >=, 0);
    d = data_begin(cfg);
    g_assert_cmpint(dup2(old, STDERR_FILENO), >=, 0);
    close(old);

    for (unsigned i = 0; i < ROUNDS; i++) {
        start_with_files(d, cfg, 2 * (i % d->num_vqs));
    }
    rewind(log);
    while (fgets(line, sizeof(line), log)) {
        lines += strstr(line, "virtio") != NULL;
    }
    fclose(log);
    g_assert_cmpuint(lines, ==, PRINTED + 1);

    mq_clear_ua(mq_queue(d, 0), 0, LUN_FILE);
    begin(d);
    run_all(d);
    data_end(d);
}

/*
 * Who is who
 */

static int64_t iothread_tid(QTestState *qts, const char *id)
{
    g_autoptr(QDict) resp = qtest_qmp(qts, "{'execute': 'query-iothreads'}");
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(info, "id"), id)) {
            return qdict_get_int(info, "thread-id");
        }
    }
    g_assert_not_reached();
}

static void expect_threads(MqDev *d, const char *path, bool first_polls)
{
    int64_t tid[2] = {
        iothread_tid(d->qts, "iot0"), iothread_tid(d->qts, "iot1"),
    };

    g_assert_cmpint(tid[0], !=, tid[1]);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        expect_thread(d, path, i, i % 2 ? "iot1" : "iot0", tid[i % 2],
                      first_polls && !(i % 2));
    }
}

static void set_polling(MqDev *d, const char *id, int64_t ns)
{
    g_autofree char *path = g_strdup_printf("/objects/%s", id);

    qtest_qmp_assert_success(d->qts,
        "{'execute': 'qom-set', 'arguments': {'path': %s,"
        " 'property': 'poll-max-ns', 'value': %" PRId64 "}}", path, ns);
}

static void test_threads(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    settle(d);
    expect_threads(d, NULL, false);
    expect_threads(d, "vs", false);
    expect_threads(d, "/machine/peripheral/vs", false);
    expect_threads(d, "/machine/peripheral/vs/virtio-backend", false);

    set_polling(d, "iot0", 1000);
    expect_threads(d, "vs", true);
    qmp_and_wait(d, "stop", "STOP");
    expect_threads(d, "vs", false);
    qmp_and_wait(d, "cont", "RESUME");
    expect_threads(d, "vs", true);
    set_polling(d, "iot0", 0);
    expect_threads(d, "vs", false);
    data_end(d);
}

static void test_one_thread(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        expect_thread(d, NULL, i, "legacy", iothread_tid(d->qts, "legacy"),
                      false);
    }
    begin(d);
    run_all(d);
    data_end(d);
}

static void test_main_loop(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);

    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        expect_thread(d, NULL, i, NULL, qtest_pid(d->qts), false);
    }
    begin(d);
    run_all(d);
    data_end(d);
}

/* @path is refused, by a message that names it and what is there. */
static void expect_refusal(MqDev *d, const char *path, const char *why,
                           const char *there)
{
    g_autoptr(QDict) resp = qtest_qmp(d->qts,
        "{'execute': 'x-query-virtio-scsi-queues',"
        " 'arguments': {'path': %s}}", path);
    g_autofree char *hmp = qtest_hmp(d->qts, "info virtio-scsi-queues %s",
                                     path);
    g_autofree char *quoted = g_strdup_printf("'%s'", path);
    QDict *error = qdict_get_qdict(resp, "error");
    const char *desc;

    g_assert_nonnull(error);
    g_assert_cmpstr(qdict_get_str(error, "class"), ==, "GenericError");
    desc = qdict_get_str(error, "desc");
    g_assert_nonnull(strstr(desc, quoted));
    g_assert_nonnull(strstr(desc, why));
    g_assert_nonnull(strstr(desc, there));
    g_assert_nonnull(strstr(hmp, desc));
}

/* The names of all devices, as "id,id" */
static char *list_devices(QTestState *qts)
{
    g_autoptr(QDict) resp =
        qtest_qmp(qts, "{'execute': 'x-query-virtio-scsi-queues'}");
    GString *names = g_string_new("");
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), entry) {
        QDict *device = qobject_to(QDict, qlist_entry_obj(entry));
        const char *id = qdict_get_try_str(device, "id") ?: "(none)";
        g_autofree char *path =
            g_strdup_printf("/machine/peripheral/%s/virtio-backend", id);

        g_string_append_printf(names, "%s%s", names->len ? "," : "", id);
        if (qdict_haskey(device, "id")) {
            g_assert_cmpstr(qdict_get_str(device, "path"), ==, path);
        }
    }
    return g_string_free(names, false);
}

static void unplug(QTestState *qts, const char *id, unsigned pci_slot)
{
    enum { PCIHP_EJECT = 0xae08 };
    bool gone = false;

    qtest_qmp_device_del_send(qts, id);
    qtest_outl(qts, PCIHP_EJECT, 1u << pci_slot);
    while (!gone) {
        g_autoptr(QDict) event =
            qtest_qmp_eventwait_ref(qts, "DEVICE_DELETED");
        const char *name =
            qdict_get_try_str(qdict_get_qdict(event, "data"), "device");

        gone = name && g_str_equal(name, id);
    }
}

static void test_plug(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree char *one = list_devices(d->qts);
    g_autofree char *two = NULL, *again = NULL;

    g_assert_cmpstr(one, ==, "vs");
    expect_refusal(d, "hot", "neither the id of a device nor a QOM path",
                   "devices: vs");
    expect_refusal(d, "/machine/nothing", "neither", "devices: vs");
    expect_refusal(d, "hd0", "scsi-hd", "devices: vs");
    expect_refusal(d, "/objects/iot0", "iothread", "devices: vs");

    qtest_qmp_device_add(d->qts, "virtio-scsi-pci", "hot",
                         "{'addr': 'a', 'num_queues': 1,"
                         " 'iothread-vq-mapping': [{'iothread': 'iot1'}]}");
    two = list_devices(d->qts);
    g_assert_cmpstr(two, ==, "hot,vs");
    expect_thread(d, "hot", 0, "iot1", iothread_tid(d->qts, "iot1"), false);
    expect_refusal(d, "cold", "neither", "devices: hot, vs");

    unplug(d->qts, "hot", 0xa);
    again = list_devices(d->qts);
    g_assert_cmpstr(again, ==, "vs");
    expect_refusal(d, "hot", "neither", "devices: vs");
    data_end(d);
}

/* Each counter of each queue, in words */
static void test_hmp(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree char *all = NULL, *one = NULL;

    begin(d);
    run_all(d);
    settle(d);
    all = qtest_hmp(d->qts, "info virtio-scsi-queues");
    one = qtest_hmp(d->qts, "info virtio-scsi-queues vs");
    g_assert_cmpstr(all, ==, one);
    g_assert_nonnull(strstr(all, "vs /machine/peripheral/vs/virtio-backend:"));
    for (unsigned q = 0; q < NUM_QUEUES; q++) {
        const char *id = q % 2 ? "iot1" : "iot0";
        g_autoptr(GString) line = g_string_new(NULL);

        g_string_printf(line, "  queue %u: iothread=%s thread-id=%" PRId64
                        " polling=no", q, id, iothread_tid(d->qts, id));
        for (unsigned i = 0; i < NUM_COUNTERS; i++) {
            g_string_append_printf(line, " %s=%" PRIu64, counter_names[i],
                                   want[q][i]);
        }
        g_string_append(line, "\r\n");
        g_assert_nonnull(strstr(all, line->str));
    }
    data_end(d);
}

/*
 * Tests
 */

#define LEGACY_THREAD " -object '{\"qom-type\":\"iothread\"," \
                      "\"id\":\"legacy\",\"poll-max-ns\":0}'"

static const struct {
    const char *name;
    void (*func)(const DataConfig *cfg);
    DataConfig cfg;
} queue_tests[] = {
    { "kinds/split", test_kinds,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "kinds/packed", test_kinds,
      { .iothreads = 2, .form = MQ_PACKED | MQ_INDIRECT, .props = MODERN } },
    { "kinds/msix", test_kinds,
      { .iothreads = 4, .form = MQ_INDIRECT | MQ_MSIX, .props = MODERN } },
    { "kinds/one-thread", test_one_thread,
      { .form = MQ_INDIRECT, .args = LEGACY_THREAD,
        .props = MODERN ",\"iothread\":\"legacy\"" } },
    { "kinds/main-loop", test_main_loop,
      { .form = MQ_INDIRECT, .props = MODERN } },
    { "kinds/no-ioeventfd", test_main_loop,
      { .form = MQ_INDIRECT, .props = MODERN ",\"ioeventfd\":false" } },
    { "kinds/fallback", test_fallback,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "kinds/fallback-log", test_fallback_log,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "end/abort", test_abort,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "end/abort-main-loop", test_abort,
      { .form = MQ_INDIRECT, .props = MODERN } },
    { "end/lun-reset", test_lun_reset,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "end/unplug-lun", test_unplug_lun,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "end/device-reset", test_device_reset,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "end/broken", test_broken,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "stop/cont", test_stop,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "stop/cont-main-loop", test_stop,
      { .form = MQ_INDIRECT, .props = MODERN } },
    { "stop/reset", test_stop_reset,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    /* Not with packed=on: QEMU can't load what it has saved of a command. */
    { "stop/migrate", test_migrate,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = "" } },
    { "stop/migrate-main-loop", test_migrate,
      { .form = MQ_INDIRECT, .props = "" } },
    { "threads", test_threads,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "plug", test_plug,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
    { "hmp", test_hmp,
      { .iothreads = 2, .form = MQ_INDIRECT, .props = MODERN } },
};

static void run_test(const void *arg)
{
    for (unsigned i = 0; i < ARRAY_SIZE(queue_tests); i++) {
        if (arg == &queue_tests[i]) {
            queue_tests[i].func(&queue_tests[i].cfg);
        }
    }
}

int main(int argc, char **argv)
{
    const char *arch = qtest_get_arch();

    g_test_init(&argc, &argv, NULL);
    if (!g_str_equal(arch, "x86_64") && !g_str_equal(arch, "i386")) {
        /* The driver is little-endian, and so is what it knows of a PC. */
        return 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(queue_tests); i++) {
        g_autofree char *path =
            g_strdup_printf("virtio-scsi-mq/queues/%s", queue_tests[i].name);

        qtest_add_data_func(path, &queue_tests[i], run_test);
    }
    return g_test_run();
}
