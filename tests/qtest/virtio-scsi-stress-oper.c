/*
 * Stress of a virtio-scsi device: what operators in a hurry do
 *
 * Some of it is done by us, between other acts, as it changes what the guest
 * sees.  The rest is done by threads with monitors of their own, all the time:
 * to a second controller that has no driver, and to IOThreads and nodes that
 * they add.  Two of them may want the same, so any of it may be refused.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include <sys/socket.h>
#include "libqmp.h"
#include "virtio-scsi-stress.h"

/* Where the controller that comes and goes is; the PIIX4's ejection register */
#define HOT_SLOT    9
#define EJECT_PORT  0xae08

#define BACKEND(id) "/machine/peripheral/" id "/virtio-backend"

/*
 * Others
 */

static bool oper_qmp(Operator *o, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* Returns false if it was refused. */
static bool oper_qmp(Operator *o, const char *fmt, ...)
{
    QDict *reply;
    va_list ap;
    bool ok;

    va_start(ap, fmt);
    qmp_fd_vsend(o->fd, fmt, ap);
    va_end(ap);
    while (qdict_haskey(reply = qmp_fd_receive(o->fd), "event")) {
        qobject_unref(reply);
    }
    ok = qdict_haskey(reply, "return");
    qobject_unref(reply);
    o->commands++;
    return ok;
}

static void oper_lun(Operator *o)
{
    g_autofree char *id = g_strdup_printf("op%u-lun", o->index);
    g_autofree char *node = g_strdup_printf("op%u-node", o->index);

    oper_qmp(o, "{'execute': 'blockdev-add', 'arguments': {"
             "'driver': 'null-co', 'node-name': %s, 'size': 1048576}}", node);
    oper_qmp(o, "{'execute': 'device_add', 'arguments': {"
             "'driver': 'scsi-hd', 'bus': 'scsi1.0', 'id': %s, 'drive': %s, "
             "'lun': %u}}", id, node, o->index);
    oper_qmp(o, "{'execute': 'block_resize', 'arguments': {'node-name': %s, "
             "'size': 2097152}}", node);
    oper_qmp(o, "{'execute': 'device_del', 'arguments': {'id': %s}}", id);
    oper_qmp(o, "{'execute': 'blockdev-del', 'arguments': {"
             "'node-name': %s}}", node);
}

/* It can't be deleted while it is mapped. */
static void oper_iothread(Operator *o)
{
    g_autofree char *id = g_strdup_printf("op%u-io", o->index);

    oper_qmp(o, "{'execute': 'object-add', 'arguments': {"
             "'qom-type': 'iothread', 'id': %s}}", id);
    oper_qmp(o, "{'execute': 'qom-set', 'arguments': {'path': '"
             BACKEND("scsi1") "', 'property': 'iothread-vq-mapping', "
             "'value': [{'iothread': %s}]}}", id);
    oper_qmp(o, "{'execute': 'object-del', 'arguments': {'id': %s}}", id);
    oper_qmp(o, "{'execute': 'qom-set', 'arguments': {'path': '"
             BACKEND("scsi1") "', 'property': 'iothread-vq-mapping', "
             "'value': [{'iothread': 't0'}, {'iothread': 't1'}]}}");
    oper_qmp(o, "{'execute': 'object-del', 'arguments': {'id': %s}}", id);
}

static void oper_poll(Operator *o)
{
    oper_qmp(o, "{'execute': 'qom-set', 'arguments': {"
             "'path': '/objects/t0', 'property': 'poll-max-ns', "
             "'value': %d}}", g_rand_int_range(o->rand, 0, 3) * 32768);
}

static void oper_ask(Operator *o)
{
    static const char *const questions[] = {
        "{'execute': 'x-query-virtio-scsi-queues'}",
        "{'execute': 'query-iothreads'}", "{'execute': 'query-block'}",
        "{'execute': 'query-blockstats'}", "{'execute': 'query-block-jobs'}",
        "{'execute': 'query-named-block-nodes'}",
        "{'execute': 'query-status'}",
        "{'execute': 'qom-get', 'arguments': {'path': '" BACKEND("scsi0") "',"
        " 'property': 'iothread-vq-mapping'}}",
    };

    g_assert_true(oper_qmp(o, questions[g_rand_int_range(
        o->rand, 0, ARRAY_SIZE(questions))], NULL));
}

static void *oper_run(void *opaque)
{
    static void (*const acts[])(Operator *) = {
        oper_lun, oper_iothread, oper_poll, oper_ask, oper_ask, oper_ask,
    };
    Operator *o = opaque;

    qobject_unref(qmp_fd_receive(o->fd));
    g_assert_true(oper_qmp(o, "{'execute': 'qmp_capabilities'}"));
    while (!qatomic_read(&o->stop)) {
        acts[g_rand_int_range(o->rand, 0, ARRAY_SIZE(acts))](o);
        /* Nobody types faster, and the load shall have the monitor, too. */
        g_usleep(2000);
    }
    return NULL;
}

void oper_add_args(Stress *s, GString *args)
{
    if (s->sc->operators) {
        g_string_append(args, " -device '{\"driver\":\"virtio-scsi-pci\","
                        "\"id\":\"scsi1\",\"addr\":\"08.0\","
                        "\"num_queues\":4,\"iothread-vq-mapping\":"
                        "[{\"iothread\":\"t0\"},{\"iothread\":\"t1\"}]}'");
    }
    for (unsigned i = 0; i < s->sc->operators; i++) {
        Operator *o = &s->operators[i];
        int fds[2];

        g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
        g_assert_cmpint(fcntl(fds[0], F_SETFD, FD_CLOEXEC), ==, 0);
        g_string_append_printf(args, " -chardev socket,id=op%u,fd=%d"
                               " -mon chardev=op%u,mode=control", i, fds[1],
                               i);
        *o = (Operator) {
            .index = i, .fd = fds[0],
            .rand = g_rand_new_with_seed(g_rand_int(s->rand)),
        };
    }
}

void oper_start(Stress *s)
{
    for (unsigned i = 0; i < s->sc->operators; i++) {
        Operator *o = &s->operators[i];

        o->thread = g_thread_new("operator", oper_run, o);
    }
}

void oper_stop(Stress *s)
{
    for (unsigned i = 0; i < s->sc->operators; i++) {
        Operator *o = &s->operators[i];

        qatomic_set(&o->stop, true);
        g_thread_join(o->thread);
        s->count[COUNT_OPERATIONS] += o->commands;
        g_rand_free(o->rand);
        close(o->fd);
    }
}

/* All queues are full, and jobs may be under way. */
void oper_quit(Stress *s)
{
    load_pump(s, true);
    qmp_fd_send(s->qmp, "{'execute': 'quit'}");
    qtest_wait_qemu(s->qts);
}

/*
 * Ours
 */

static void set_mapping(Stress *s, const char *first, const char *second)
{
    QMP(s, "{'execute': 'qom-set', 'arguments': {'path': '"
        BACKEND("scsi0") "', 'property': 'iothread-vq-mapping', 'value': "
        "[{'iothread': %s}, {'iothread': %s}]}}", first, second);
    s->count[COUNT_REMAPS]++;
}

/* An IOThread comes, serves queues, and goes. */
void act_iothread(Stress *s)
{
    QMP(s, "{'execute': 'object-add', 'arguments': {"
        "'qom-type': 'iothread', 'id': 'guest'}}");
    set_mapping(s, "guest", "t1");
    load_run(s, 1 + stress_below(s, PACE));
    set_mapping(s, "t0", "t1");
    QMP(s, "{'execute': 'object-del', 'arguments': {'id': 'guest'}}");
    s->count[COUNT_IOTHREADS]++;
}

/* On a PC the guest ejects what it is asked to let go. */
void act_controller(Stress *s)
{
    QMP(s, "{'execute': 'device_add', 'arguments': {"
        "'driver': 'virtio-scsi-pci', 'id': 'scsi2', 'addr': %s, "
        "'num_queues': 3, 'iothread-vq-mapping': "
        "[{'iothread': 't0'}, {'iothread': 't1'}]}}",
        stringify(HOT_SLOT) ".0");
    QMP(s, "{'execute': 'blockdev-add', 'arguments': {"
        "'driver': 'null-co', 'node-name': 'passing'}}");
    QMP(s, "{'execute': 'device_add', 'arguments': {"
        "'driver': 'scsi-hd', 'bus': 'scsi2.0', 'drive': 'passing'}}");
    load_run(s, 1 + stress_below(s, PACE));
    stress_delete(s, "scsi2");
    qtest_outl(s->qts, EJECT_PORT, 1u << HOT_SLOT);
    STRESS_WHILE(s, !s->deleted_seen);
    QMP(s, "{'execute': 'blockdev-del', 'arguments': {"
        "'node-name': 'passing'}}");
    s->count[COUNT_CONTROLLERS]++;
}

static bool migration_is_over(Stress *s)
{
    g_autoptr(QDict) resp = stress_qmp(s, "{'execute': 'query-migrate'}");
    const char *status = qdict_get_str(qdict_get_qdict(resp, "return"),
                                       "status");

    g_assert_cmpstr(status, !=, "completed");
    return !strcmp(status, "cancelled") || !strcmp(status, "failed");
}

/* So slow that it doesn't come to its end before it is cancelled */
void act_migrate(Stress *s)
{
    g_autofree char *uri = g_strdup_printf("file:%s/migration", s->dir);

    QMP(s, "{'execute': 'migrate-set-parameters', 'arguments': {"
        "'max-bandwidth': 1000}}");
    QMP(s, "{'execute': 'migrate', 'arguments': {'uri': %s}}", uri);
    load_run(s, 1 + stress_below(s, 4 * PACE));
    QMP(s, "{'execute': 'migrate_cancel'}");
    STRESS_WHILE(s, !migration_is_over(s));
    s->count[COUNT_MIGRATIONS]++;
}
