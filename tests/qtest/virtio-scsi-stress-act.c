/*
 * Stress of a virtio-scsi device: what happens to the device under load
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/socket.h>
#include "scsi/constants.h"
#include "libqmp.h"
#include "qemu/timer.h"
#include "qobject/qbool.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "virtio-scsi-stress.h"

static Lun *random_lun(Stress *s, unsigned kind)
{
    Lun *found[32];
    unsigned n = 0;

    for (unsigned i = 0; i < s->num_luns; i++) {
        if (s->luns[i].spec->kind & kind) {
            found[n++] = &s->luns[i];
        }
    }
    return n ? found[stress_below(s, n)] : NULL;
}

/* The slow LUN that is always there, or NULL */
static Lun *slow_lun(Stress *s)
{
    for (unsigned i = 0; i < s->num_luns; i++) {
        if (s->luns[i].spec->kind == LUN_SLOW) {
            return &s->luns[i];
        }
    }
    return NULL;
}

static unsigned random_queue(Stress *s)
{
    return stress_below(s, s->dev->num_queues);
}

/*
 * QMP
 */

static Job *job_of(Stress *s, QDict *data)
{
    const char *id = qdict_get_str(data, "device");

    for (unsigned i = 0; i < s->num_luns; i++) {
        if (!g_strcmp0(s->luns[i].job.id, id)) {
            return &s->luns[i].job;
        }
    }
    g_printerr("event of an unknown block job '%s'\n", id);
    g_assert_not_reached();
}

static void handle_event(Stress *s, QDict *event)
{
    const char *name = qdict_get_str(event, "event");
    QDict *data = qdict_get_qdict(event, "data");

    if (!strcmp(name, "STOP")) {
        s->vm_stopped = true;
    } else if (!strcmp(name, "RESUME")) {
        s->vm_stopped = false;
    } else if (!strcmp(name, "RESET")) {
        s->reset_seen = true;
    } else if (!strcmp(name, "DEVICE_DELETED")) {
        s->deleted_seen |= !g_strcmp0(qdict_get_try_str(data, "device"),
                                      s->deleting);
    } else if (!strcmp(name, "BLOCK_JOB_READY")) {
        job_of(s, data)->state = JOB_READY;
    } else if (!strcmp(name, "BLOCK_JOB_COMPLETED")) {
        if (qdict_haskey(data, "error")) {
            g_printerr("block job: %s\n", qdict_get_str(data, "error"));
            g_assert_not_reached();
        }
        job_of(s, data)->state = JOB_DONE;
    }
}

/*
 * Has a message begun?  What libqmp leaves behind is the end of the line that
 * the last one stood on.
 */
static bool qmp_readable(Stress *s)
{
    char c;

    while (recv(s->qmp, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 1) {
        if (!g_ascii_isspace(c)) {
            return true;
        }
        g_assert_cmpint(recv(s->qmp, &c, 1, 0), ==, 1);
    }
    return false;
}

/* Returns a reply, or NULL; takes care of events. */
static QDict *qmp_receive(Stress *s)
{
    QDict *dict;

    while (qmp_readable(s)) {
        dict = qmp_fd_receive(s->qmp);
        if (!qdict_haskey(dict, "event")) {
            return dict;
        }
        handle_event(s, dict);
        qobject_unref(dict);
    }
    return NULL;
}

/* Between commands there are only events. */
void stress_poll_qmp(Stress *s)
{
    if (!s->qmp_busy) {
        g_assert_null(qmp_receive(s));
    }
}

QDict *stress_qmp(Stress *s, const char *fmt, ...)
{
    QDict *reply;
    va_list ap;

    g_assert_false(s->qmp_busy);
    s->qmp_busy = true;
    va_start(ap, fmt);
    qmp_fd_vsend(s->qmp, fmt, ap);
    va_end(ap);
    while (!(reply = qmp_receive(s))) {
        load_pump(s, true);
    }
    s->qmp_busy = false;

    if (qdict_haskey(reply, "error")) {
        g_printerr("QMP command: %s: %s\n", fmt,
                   qdict_get_str(qdict_get_qdict(reply, "error"), "desc"));
        g_assert_not_reached();
    }
    return reply;
}

/*
 * TMFs
 */

static const uint32_t abort_subtypes[] = {
    VIRTIO_SCSI_T_TMF_ABORT_TASK,
    VIRTIO_SCSI_T_TMF_ABORT_TASK_SET,
    VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET,
    VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET,
    VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET,
};

/* The tag of a command in flight to @lun on any queue, or of none */
static uint64_t random_tag(Stress *s, Lun *lun)
{
    unsigned start = random_queue(s);

    for (unsigned i = 0; i < s->dev->num_queues; i++) {
        ShmQueue *q = shm_queue(s->dev, (start + i) % s->dev->num_queues);

        for (unsigned j = 0; j < q->num_slots; j++) {
            Op *op = q->slots[j].owner;

            if (q->slots[j].busy && op->lun == lun) {
                return op->tag;
            }
        }
    }
    return 1;
}

/* One TMF of any kind; its answer comes some time. */
void act_tmf(Stress *s)
{
    Lun *lun = random_lun(s, ~0u);

    tmf_post(s, stress_below(s, 8), lun, random_tag(s, lun), NULL, NULL);
}

/*
 * Commands that are known to be in the device, because QUERY TASK has found
 * them, must have been answered when a TMF that aborts them is.
 */
#define PINNED 8

void act_tmf_pinned(Stress *s)
{
    uint32_t subtype = abort_subtypes[
        stress_below(s, ARRAY_SIZE(abort_subtypes))];
    Lun *lun = slow_lun(s);
    Outcome outcome[PINNED];
    uint64_t tag[PINNED];
    bool inside[PINNED];

    tmf_drain(s);
    load_settle(s, lun);
    for (unsigned i = 0; i < PINNED; i++) {
        tag[i] = load_post(s, i % s->dev->num_queues, lun, &op_read,
                           i * MAX_BLOCKS, MAX_BLOCKS, &outcome[i]);
    }
    for (unsigned i = 0; i < PINNED; i++) {
        inside[i] = tmf_run(s, VIRTIO_SCSI_T_TMF_QUERY_TASK, lun, tag[i]) ==
                    VIRTIO_SCSI_S_FUNCTION_SUCCEEDED;
    }

    tmf_run(s, subtype, lun, tag[0]);
    for (unsigned i = 0; i < PINNED; i++) {
        bool aborted = i == 0 || subtype != VIRTIO_SCSI_T_TMF_ABORT_TASK;

        if (inside[i] && aborted) {
            s->count[COUNT_PINNED]++;
            g_assert_true(outcome[i].done);
        }
    }
    for (unsigned i = 0; i < PINNED; i++) {
        STRESS_WHILE(s, !outcome[i].done);
    }
}

/*
 * Unit attention
 */

/* No reset is under way, and no LUN of the target has anything to report. */
static void settle_target(Stress *s, unsigned target)
{
    tmf_drain(s);
    for (unsigned i = 0; i < s->num_luns; i++) {
        if (s->luns[i].spec->target == target) {
            load_settle(s, &s->luns[i]);
        }
    }
}

/*
 * All queues ask at once.  One of them gets the unit attention that was
 * established since @before was read, and nobody does later.
 */
static void expect_one_ua(Stress *s, Lun *lun, UaKind kind, uint64_t before)
{
    unsigned n = s->dev->num_queues;
    g_autofree Outcome *outcomes = g_new0(Outcome, n);
    uint64_t *now = &s->ua[lun->spec->target][kind];

    for (unsigned i = 0; i < n; i++) {
        load_post(s, i, lun, &op_test_unit_ready, 0, 0, &outcomes[i]);
    }
    for (unsigned i = 0; i < n; i++) {
        STRESS_WHILE(s, !outcomes[i].done);
    }
    load_settle(s, lun);
    load_run(s, PACE);
    load_settle(s, lun);
    if (*now == before + 1) {
        return;
    }
    if (stress_on_stock()) {
        /* There any IOThread reads and clears it without a lock. */
        g_test_message("stock: one unit attention reported %" PRIu64 " times",
                       *now - before);
        return;
    }
    g_assert_cmpuint(*now, ==, before + 1);
}

void act_lun_reset(Stress *s)
{
    Lun *lun = random_lun(s, LUN_DATA);
    uint64_t before;

    if (!lun->present) {
        return;
    }
    settle_target(s, lun->spec->target);
    before = s->ua[lun->spec->target][UA_RESET];
    tmf_run(s, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, lun, 0);
    expect_one_ua(s, lun, UA_RESET, before);
}

void act_resize(Stress *s)
{
    Lun *lun = random_lun(s, LUN_RESIZE);
    uint64_t before;

    settle_target(s, lun->spec->target);
    before = s->ua[lun->spec->target][UA_CAPACITY];
    s->ua_due[UA_CAPACITY]++;
    lun->capacity = lun->capacity > TOTAL_BLOCKS ? TOTAL_BLOCKS :
                    TOTAL_BLOCKS + 8 * (1 + stress_below(s, 100));
    QMP(s, "{'execute': 'block_resize', 'arguments': {'node-name': %s, "
        "'size': %" PRId64 "}}", lun->node,
        (int64_t)(lun->capacity * BLOCK_SIZE));
    expect_one_ua(s, lun, UA_CAPACITY, before);
}

/*
 * Resets
 */

/* There are commands in flight, and from now on any of them may end RESET. */
static void before_reset(Stress *s)
{
    load_occupy(s, slow_lun(s));
    load_pump(s, true);
    for (unsigned i = 0; i < s->num_luns; i++) {
        s->luns[i].tmfs++;
    }
}

/* The device has been reset.  It must leave memory alone. */
static void after_reset(Stress *s)
{
    ShmDev *d = s->dev;

    s->hold = true;
    load_pump(s, false);
    g_usleep(500);
    for (unsigned i = 0; i < d->num_vqs; i++) {
        g_assert_null(shm_reap(&d->vqs[i]));
    }
    load_forget(s);
    s->ua_due[UA_RESET] += s->num_luns;
    s->sense_size = s->cdb_size = 0;
    s->count[COUNT_RESETS]++;
}

static void start_again(Stress *s)
{
    s->hold = false;
    shm_start(s->dev, s->sc->flags);
    load_post_events(s);
}

void act_device_reset(Stress *s)
{
    before_reset(s);
    shm_reset(s->dev);
    after_reset(s);
    start_again(s);
}

void act_system_reset(Stress *s)
{
    before_reset(s);
    s->hold = true;
    s->reset_seen = false;
    QMP(s, "{'execute': 'system_reset'}");
    STRESS_WHILE(s, !s->reset_seen);
    after_reset(s);
    /* It resets each LUN by itself, then the controller with all its LUNs. */
    s->ua_due[UA_RESET] += s->num_luns;
    shm_probe(s->dev);
    start_again(s);
}

/*
 * Config space
 */

static void write_sizes(Stress *s, unsigned sense, unsigned cdb)
{
    load_sizes_change(s, sense, cdb);
    shm_config_writel(s->dev, offsetof(struct virtio_scsi_config, sense_size),
                      sense_sizes[sense]);
    shm_config_writel(s->dev, offsetof(struct virtio_scsi_config, cdb_size),
                      cdb_sizes[cdb]);
    s->count[COUNT_CONFIG_WRITES] += 2;
}

/*
 * The driver changes cdb_size and sense_size while commands are on their way.
 * That leaves open which of them a command meets, but it must be one for all of
 * the command.  No writes meanwhile: a driver that does this to them can't
 * expect anything.
 */
void act_config(Stress *s)
{
    load_drain(s);
    s->sizes_vary = true;
    s->classes &= CLASS_READ | CLASS_INFO | CLASS_ERROR;
    for (unsigned i = 0; i < 16; i++) {
        load_run(s, 1 + stress_below(s, PACE));
        write_sizes(s, stress_below(s, NUM_SIZES),
                    stress_below(s, 4) ? 0 : stress_below(s, NUM_SIZES));
    }
    write_sizes(s, 0, 0);
    load_drain(s);
    s->sizes_vary = false;
    s->classes = s->sc->classes;
}

/*
 * Hot plug
 */

/* Others delete devices, too; ours is gone when deleted_seen is set. */
void stress_delete(Stress *s, const char *id)
{
    s->deleting = id;
    s->deleted_seen = false;
    QMP(s, "{'execute': 'device_del', 'arguments': {'id': %s}}", id);
}

static void unplug(Stress *s, Lun *lun)
{
    stress_delete(s, lun->spec->name);
    STRESS_WHILE(s, !s->deleted_seen);
}

static void plug(Stress *s, Lun *lun)
{
    QMP(s, "{'execute': 'device_add', 'arguments': {"
        "'driver': 'scsi-hd', 'bus': 'scsi0.0', 'id': %s, 'drive': %s, "
        "'scsi-id': %u, 'lun': %u}}", lun->spec->name, lun->node,
        lun->spec->target, lun->spec->lun);
}

void act_hotplug(Stress *s)
{
    Lun *lun = random_lun(s, LUN_HOT);

    if (stress_on_stock()) {
        /* It aborts when a command comes for a LUN that is being removed. */
        load_drain(s);
        s->hold = true;
    } else if (lun->present && lun->spec->kind & LUN_SLOW) {
        load_occupy(s, lun);
    }
    lun->going = true;
    lun->epoch++;
    s->ua_due[UA_LUNS]++;
    load_pump(s, true);
    if (lun->present) {
        unplug(s, lun);
    } else {
        s->ua_due[UA_RESET]++;      /* power on */
        plug(s, lun);
    }
    /* What comes back in this round was under way in that time, too. */
    load_pump(s, false);
    lun->present = !lun->present;
    lun->going = false;
    lun->epoch++;
    s->hold = false;
    s->count[COUNT_PLUGS]++;
}

/*
 * Stop and cont
 */

/* The VM may have stopped again by the return. */
static void cont(Stress *s)
{
    QMP(s, "{'execute': 'cont'}");
}

void act_stop(Stress *s)
{
    load_occupy(s, slow_lun(s));
    load_pump(s, true);
    s->hold = true;
    QMP(s, "{'execute': 'stop'}");
    STRESS_WHILE(s, !s->vm_stopped);
    s->count[COUNT_STOPS]++;
    g_usleep(stress_below(s, 1000));
    load_pump(s, false);
    cont(s);
    s->hold = false;
}

/* A command that meets an injected error, and succeeds when it is retried */
typedef struct Stopper {
    const OpKind *kind;
    uint32_t lba;
    unsigned queue;
    Outcome outcome;
} Stopper;

static void stopper_post(Stress *s, Lun *lun, Stopper *st)
{
    load_post(s, st->queue, lun, st->kind, st->lba, 1, &st->outcome);
}

/* Half of the special blocks fail to be read, half to be written, once. */
static void stopper_init(Stress *s, Lun *lun, Stopper *st, unsigned queue)
{
    unsigned n = lun->specials++;

    st->kind = n % 2 ? &op_write : &op_read;
    st->lba = DISK_BLOCKS + n / 2 + (n % 2 ? SPECIAL_BLOCKS / 2 : 0);
    st->queue = queue;
}

/* Post again after a unit attention.  Returns true if the command is done. */
static bool stopper_done(Stress *s, Lun *lun, Stopper *st)
{
    if (!st->outcome.done) {
        return false;
    }
    g_assert_cmpuint(st->outcome.response, ==, VIRTIO_SCSI_S_OK);
    if (st->outcome.status == GOOD) {
        return true;
    }
    if (!s->vm_stopped) {
        stopper_post(s, lun, st);
    }
    return false;
}

/* Errors on several queues stop the VM; all is retried after "cont". */
void act_error_stop(Stress *s)
{
    Lun *lun = random_lun(s, LUN_STOPS);
    unsigned n = 1 + stress_below(s, s->dev->num_queues);
    g_autofree Stopper *st = g_new0(Stopper, n);
    unsigned done, stops = 0;

    if (lun->specials + n > SPECIAL_BLOCKS) {
        act_stop(s);    /* none left that would fail */
        return;
    }
    tmf_drain(s);
    load_settle(s, lun);
    load_pump(s, true);
    s->hold = true;
    /* A full queue may not move any more when the VM has stopped. */
    for (unsigned i = 0; i < n; i++) {
        STRESS_WHILE(s, !shm_take(shm_queue(s->dev, i)));
    }
    for (unsigned i = 0; i < n; i++) {
        stopper_init(s, lun, &st[i], i);
        stopper_post(s, lun, &st[i]);
    }
    do {
        done = 0;
        load_pump(s, false);
        if (s->vm_stopped) {
            stops++;
            cont(s);
        }
        for (unsigned i = 0; i < n; i++) {
            done += stopper_done(s, lun, &st[i]);
        }
    } while (done < n);
    s->hold = false;

    g_assert_cmpuint(stops, >, 0);
    s->count[COUNT_STOPS] += stops;
    s->count[COUNT_RETRIES] += n;
    for (unsigned i = 0; i < n; i++) {
        load_command(s, st[i].queue, lun, &op_read, st[i].lba, 1);
    }
}

/*
 * Throttling
 */

static void set_throttle(Stress *s, Lun *lun, unsigned iops)
{
    QMP(s, "{'execute': 'block_set_io_throttle', 'arguments': {'id': %s, "
        "'bps': 0, 'bps_rd': 0, 'bps_wr': 0, 'iops': %u, 'iops_rd': 0, "
        "'iops_wr': 0}}", lun->spec->name, iops);
}

/*
 * The VM's clock stands still, so a throttled LUN lets one command go, and
 * holds the others until a reset or a stop ends them or we end the throttling.
 * Nobody may wait for more than that meanwhile.
 */
void act_throttle(Stress *s)
{
    static const uint32_t subtypes[] = {
        VIRTIO_SCSI_T_TMF_ABORT_TASK_SET, VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET,
        VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET,
    };
    Lun *lun = random_lun(s, LUN_DATA);

    if (!lun->present) {
        return;
    }
    set_throttle(s, lun, 1);
    for (unsigned i = 0; i < 100; i++) {
        load_pump(s, true);
    }
    switch (stress_below(s, 4)) {
    case 0:
        QMP(s, "{'execute': 'stop'}");
        cont(s);
        break;
    case 1:
        for (unsigned i = 0; i < s->num_luns; i++) {
            s->luns[i].tmfs++;
        }
        shm_reset(s->dev);
        after_reset(s);
        start_again(s);
        break;
    default:
        tmf_run(s, subtypes[stress_below(s, ARRAY_SIZE(subtypes))], lun, 0);
        break;
    }
    set_throttle(s, lun, 0);
    s->count[COUNT_THROTTLES]++;
}

/*
 * Another mapping
 */

/* As many IOThreads as dice say, and each queue to any of them */
void act_remap(Stress *s)
{
    unsigned num = 1 + stress_below(s, s->sc->num_iothreads);
    unsigned first = stress_below(s, s->sc->num_iothreads);
    const char *const ids[] = { "t0", "t1", "t2", "t3" };
    bool with_vqs = num <= s->sc->num_queues && stress_below(s, 2);
    QList *list = qlist_new();

    for (unsigned i = 0; i < num; i++) {
        QDict *entry = qdict_new();
        QList *vqs = qlist_new();

        qdict_put_str(entry, "iothread",
                      ids[(first + i) % s->sc->num_iothreads]);
        for (unsigned q = 0; q < s->sc->num_queues; q++) {
            if ((q + first) % num == i) {
                qlist_append_int(vqs, q);
            }
        }
        if (with_vqs) {
            qdict_put(entry, "vqs", vqs);
        } else {
            qobject_unref(vqs);
        }
        qlist_append(list, entry);
    }
    QMP(s, "{'execute': 'qom-set', 'arguments': {"
        "'path': '/machine/peripheral/scsi0/virtio-backend', "
        "'property': 'iothread-vq-mapping', 'value': %p}}", list);
    s->count[COUNT_REMAPS]++;
}

static void set_property(Stress *s, const char *name, QObject *value)
{
    QMP(s, "{'execute': 'qom-set', 'arguments': {"
        "'path': '/machine/peripheral/scsi0/virtio-backend', "
        "'property': %s, 'value': %p}}", name, value);
}

/* How often queues have moved, and how busy the first one's IOThread was */
static uint64_t read_moves(Stress *s, double *busy)
{
    g_autoptr(QDict) resp =
        stress_qmp(s, "{'execute': 'x-query-virtio-scsi-queues',"
                   " 'arguments': {'path': 'scsi0'}}");
    const QListEntry *entry = qlist_first(qdict_get_qlist(resp, "return"));
    QDict *device = qobject_to(QDict, qlist_entry_obj(entry));
    uint64_t moves = 0;

    *busy = 0;
    QLIST_FOREACH_ENTRY(qdict_get_qlist(device, "queues"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));

        moves += qdict_get_int(info, "moves");
        if (!qdict_get_int(info, "queue") &&
            qdict_haskey(info, "iothread-busy")) {
            *busy = qdict_get_double(info, "iothread-busy");
        }
    }
    return moves;
}

/*
 * One IOThread gets all queues but the last, which has no load, and the device
 * sees to it.  What it takes for a tenth of a second is as long as that
 * IOThread needs to be busy for most of that time, whatever the machine is.  We
 * may go while a queue is on its way.
 */
void act_balance(Stress *s)
{
    enum { LONGEST_US = 2000000 };
    double pace_us = 100000, busy;
    uint64_t before, moves;

    set_property(s, "iothread-vq-mapping", qobject_from_jsonf_nofail(
        s->sc->num_queues == 4
        ? "[{'iothread': 't0', 'vqs': [0, 1, 2]},"
          " {'iothread': 't1', 'vqs': [3]}]"
        : "[{'iothread': 't0', 'vqs': [0, 1, 2, 3]},"
          " {'iothread': 't1', 'vqs': [4]}]"));
    set_property(s, "iothread-vq-balance", QOBJECT(qbool_from_bool(true)));
    before = moves = read_moves(s, &busy);
    s->quiet = 1;
    for (unsigned i = 0; i < 12 && moves == before; i++) {
        gint64 until = g_get_monotonic_time() + pace_us;

        STRESS_WHILE(s, g_get_monotonic_time() < until);
        qtest_clock_step(s->qts, 100 * SCALE_MS);
        if (i > 3 && !stress_below(s, 4)) {
            break;
        }
        moves = read_moves(s, &busy);
        pace_us *= busy < 0.8 ? 0.9 / MAX(busy, 0.3) : 1;
        /* With too little of the host's CPUs it is never busy enough. */
        pace_us = MIN(pace_us, LONGEST_US);
    }
    s->quiet = 0;
    s->count[COUNT_MOVES] += read_moves(s, &busy) - before;
    set_property(s, "iothread-vq-balance",
                 QOBJECT(qbool_from_bool(stress_below(s, 2))));
}
