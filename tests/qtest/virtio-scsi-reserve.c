/*
 * virtio-scsi: persistent reservations by qemu-pr-helper, through all queues
 *
 * Two scsi-block on two paths to one LUN, which are two I_T nexuses, on a
 * controller with several IOThreads.  PERSISTENT RESERVE commands go to QEMU's
 * own helper, which is killed, stopped and brought back.
 *
 * This needs real devices, so it is no test of the suite: virtio_scsi_nested
 * runs it in a guest.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "scsi/constants.h"
#include "virtio-scsi-lun.h"
#include <sys/prctl.h>
#include <sys/un.h>

#define NUM_QUEUES      4
#define PER_QUEUE       4       /* commands in flight */
#define NUM_PATHS       2
#define NUM_COMMANDS    200
#define READ_ADDRESS    8       /* any block */

/* Service actions, lengths and the type that is used (SPC-4, 6.13 and 6.14) */
enum { READ_KEYS, READ_RESERVATION };
enum {
    PR_REGISTER, PR_RESERVE, PR_RELEASE, PR_CLEAR, PR_PREEMPT,
    PR_REGISTER_IGNORE = 6
};
#define PARAM_LEN       24
#define ANSWER_LEN      64
#define ANSWER_HEAD     8
#define WRITE_EXCLUSIVE_REGISTRANTS 5

/* The helper was lost; and who was preempted is told, in three ways. */
#define ASC_COMM_FAILURE        0x0800
#define ASC_PREEMPTED_FIRST     0x2a03
#define ASC_PREEMPTED_LAST      0x2a05

static const uint64_t keys[NUM_PATHS] = { 0xa1a1a1a1, 0xb2b2b2b2 };

static const char *helper_program;
static char *helper_socket;
static GPid helper;
static char **disks;

/*
 * The helper
 */

static void end_with_parent(void *unused)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static bool helper_listens(void)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    bool listens;

    g_assert_cmpint(fd, >=, 0);
    g_strlcpy(addr.sun_path, helper_socket, sizeof(addr.sun_path));
    listens = !connect(fd, (struct sockaddr *)&addr, sizeof(addr));
    close(fd);
    return listens;
}

static void helper_start(void)
{
    const char *argv[] = { helper_program, "-k", helper_socket, NULL };
    gint64 start = 0;

    unlink(helper_socket);
    g_assert_true(g_spawn_async(NULL, (char **)argv, NULL,
                                G_SPAWN_DO_NOT_REAP_CHILD, end_with_parent,
                                NULL, &helper, NULL));
    while (!helper_listens()) {
        g_assert_cmpint(waitpid(helper, NULL, WNOHANG), ==, 0);
        mq_pause(&start, "the helper");
    }
}

static void helper_kill(void)
{
    g_assert_cmpint(kill(helper, SIGKILL), ==, 0);
    g_assert_cmpint(waitpid(helper, NULL, 0), ==, helper);
    g_spawn_close_pid(helper);
}

static bool is_connected(MqDev *d)
{
    QDict *answer = qtest_qmp(d->qts, "{'execute':'query-pr-managers'}");
    QList *managers = qdict_get_qlist(answer, "return");
    bool connected;

    g_assert_cmpuint(qlist_size(managers), ==, 1);
    connected = qdict_get_bool(qobject_to(QDict, qlist_peek(managers)),
                               "connected");
    qobject_unref(answer);
    return connected;
}

static void expect_event(MqDev *d, bool connected)
{
    QDict *event = qtest_qmp_eventwait_ref(d->qts,
                                           "PR_MANAGER_STATUS_CHANGED");
    QDict *data = qdict_get_qdict(event, "data");

    g_assert_cmpstr(qdict_get_str(data, "id"), ==, "pr");
    g_assert_cmpint(qdict_get_bool(data, "connected"), ==, connected);
    qobject_unref(event);
}

/*
 * Commands
 */

static MqCmd cmd_in(unsigned path, uint8_t action)
{
    MqCmd cmd = mq_cmd(path, PERSISTENT_RESERVE_IN);

    cmd.cdb[1] = action;
    lun_set_field(&cmd.cdb[7], 2, ANSWER_LEN);
    cmd.in_len = ANSWER_LEN;
    return cmd;
}

/* The result has a pointer to @param, which is filled in. */
static MqCmd cmd_out(unsigned path, uint8_t action, uint8_t *param)
{
    MqCmd cmd = mq_cmd(path, PERSISTENT_RESERVE_OUT);
    uint64_t action_key = action == PR_PREEMPT ? keys[!path] :
                          action == PR_REGISTER_IGNORE ? keys[path] : 0;

    cmd.cdb[1] = action;
    cmd.cdb[2] = WRITE_EXCLUSIVE_REGISTRANTS;
    lun_set_field(&cmd.cdb[5], 4, PARAM_LEN);
    memset(param, 0, PARAM_LEN);
    stq_be_p(param, action == PR_REGISTER_IGNORE ? 0 : keys[path]);
    stq_be_p(param + 8, action_key);
    cmd.out = param;
    cmd.out_len = PARAM_LEN;
    return cmd;
}

static bool has_key(const struct virtio_scsi_cmd_resp *resp, uint8_t key)
{
    return resp->status == CHECK_CONDITION && (resp->sense[2] & 0xf) == key;
}

static bool is_preempted(const struct virtio_scsi_cmd_resp *resp)
{
    return has_key(resp, UNIT_ATTENTION) &&
           mq_asc(resp) >= ASC_PREEMPTED_FIRST &&
           mq_asc(resp) <= ASC_PREEMPTED_LAST;
}

/*
 * Who isn't registered, or doesn't hold the reservation.  Linux's target also
 * has an answer of its own where SPC-4 wants RESERVATION CONFLICT.
 */
static bool is_refused(const struct virtio_scsi_cmd_resp *resp)
{
    return resp->status == RESERVATION_CONFLICT ||
           (has_key(resp, NOT_READY) && mq_asc(resp) == ASC_COMM_FAILURE);
}

static bool is_lost(const struct virtio_scsi_cmd_resp *resp)
{
    return has_key(resp, ABORTED_COMMAND) && mq_asc(resp) == ASC_COMM_FAILURE;
}

/* A command on its own, by another queue each; its status */
static uint8_t run(MqDev *d, const MqCmd *cmd, MqAnswer *a)
{
    static unsigned n;

    do {
        mq_run(mq_queue(d, n++ % NUM_QUEUES), cmd, &a->resp, a->in);
        g_assert_cmpuint(a->resp.response, ==, VIRTIO_SCSI_S_OK);
    } while (is_preempted(&a->resp));
    return a->resp.status;
}

static uint8_t run_out(MqDev *d, unsigned path, uint8_t action)
{
    static MqAnswer a;
    uint8_t param[PARAM_LEN];
    MqCmd cmd = cmd_out(path, action, param);

    return run(d, &cmd, &a);
}

static uint8_t run_io(MqDev *d, unsigned path, bool write)
{
    static MqAnswer a;
    static const uint8_t block[LUN_BLOCK];
    MqCmd cmd = write ? mq_write10(path, READ_ADDRESS, 1, block)
                      : mq_read10(path, READ_ADDRESS, 1);

    return run(d, &cmd, &a);
}

/* Which of keys[] an answer has, as bits */
static unsigned keys_of(const uint8_t *in, size_t step)
{
    unsigned found = 0;

    g_assert_cmpuint(ldl_be_p(in + 4), <=, ANSWER_LEN - ANSWER_HEAD);
    for (size_t at = 0; at < ldl_be_p(in + 4); at += step) {
        uint64_t key = ldq_be_p(in + ANSWER_HEAD + at);

        g_assert_true(key == keys[0] || key == keys[1]);
        found |= 1 << (key == keys[1]);
    }
    return found;
}

static unsigned holder_of(const uint8_t *in)
{
    unsigned found = keys_of(in, 16);

    g_assert_cmpuint(found, !=, 3);
    if (found) {
        g_assert_cmpuint(in[ANSWER_HEAD + 13], ==, WRITE_EXCLUSIVE_REGISTRANTS);
    }
    return found;
}

static unsigned read_in(MqDev *d, unsigned path, uint8_t action,
                        uint32_t *generation)
{
    static MqAnswer a;
    MqCmd cmd = cmd_in(path, action);

    g_assert_cmpuint(run(d, &cmd, &a), ==, GOOD);
    if (generation) {
        *generation = ldl_be_p(a.in);
    }
    return action == READ_KEYS ? keys_of(a.in, 8) : holder_of(a.in);
}

static void clear(MqDev *d)
{
    g_assert_cmpuint(run_out(d, 0, PR_REGISTER_IGNORE), ==, GOOD);
    g_assert_cmpuint(run_out(d, 0, PR_CLEAR), ==, GOOD);
    g_assert_cmpuint(read_in(d, 1, READ_KEYS, NULL), ==, 0);
    g_assert_cmpuint(read_in(d, 0, READ_RESERVATION, NULL), ==, 0);
}

static MqDev *begin(unsigned iothreads)
{
    GString *args = g_string_new(NULL);

    helper_start();
    /* lun_end() closes it */
    lun_hd_fd = -1;
    g_string_printf(args, "-machine pc -m 256M -nodefaults"
                    " -object pr-manager-helper,id=pr,path=%s", helper_socket);
    for (unsigned i = 0; i < iothreads; i++) {
        g_string_append_printf(args, " -object iothread,id=iot%u", i);
    }
    g_string_append_printf(args, " -device '{\"driver\":\"virtio-scsi-pci\","
                           "\"id\":\"vs\",\"addr\":\"9\",\"num_queues\":%u,"
                           "\"virtqueue_size\":32,"
                           "\"iothread-vq-mapping\":[", NUM_QUEUES);
    for (unsigned i = 0; i < iothreads; i++) {
        g_string_append_printf(args, "%s{\"iothread\":\"iot%u\"}",
                               i ? "," : "", i);
    }
    g_string_append(args, "]}'");
    for (unsigned i = 0; i < NUM_PATHS; i++) {
        g_string_append_printf(args, " -blockdev '{\"driver\":\"host_device\","
                               "\"node-name\":\"path%u\",\"filename\":\"%s\","
                               "\"pr-manager\":\"pr\","
                               "\"cache\":{\"direct\":true}}' -device "
                               "'{\"driver\":\"scsi-block\",\"bus\":\"vs.0\","
                               "\"scsi-id\":0,\"lun\":%u,"
                               "\"drive\":\"path%u\"}'", i, disks[i], i, i);
    }
    return lun_begin_with(NULL, g_string_free(args, false));
}

static void end(MqDev *d)
{
    clear(d);
    lun_end(d);
    helper_kill();
    unlink(helper_socket);
}

/*
 * Commands of all kinds, and reads, in all queues at once
 */

typedef struct Load {
    MqDev *d;
    struct {
        MqSlot *slot;
        MqCmd cmd;
    } flights[NUM_QUEUES][PER_QUEUE];
    unsigned next;              /* kind of command, for each in turn */
    unsigned reservations;      /* answers of the helper */
    unsigned reads;
    unsigned refused;
    unsigned lost;              /* those that the helper took with it */
    uint32_t before;            /* generation of the registrations */
    uint32_t changed;           /* how often they certainly did */
} Load;

static void load_init(Load *l, MqDev *d)
{
    *l = (Load) { .d = d };
    read_in(d, 0, READ_KEYS, &l->before);
}

/* Another kind for each, out of step with queues, so that these have all. */
static void load_post(Load *l, unsigned queue, unsigned i)
{
    static const int out[] = {
        PR_REGISTER_IGNORE, PR_RESERVE, -1, PR_RELEASE, PR_PREEMPT, -1,
        PR_REGISTER_IGNORE, PR_RESERVE, -1, PR_CLEAR, -1,
    };
    unsigned n = l->next++, path = n / ARRAY_SIZE(out) % NUM_PATHS;
    int action = out[n % ARRAY_SIZE(out)];
    MqCmd *cmd = &l->flights[queue][i].cmd;
    uint8_t param[PARAM_LEN];

    if (action >= 0) {
        *cmd = cmd_out(path, action, param);
    } else if (n % 2) {
        *cmd = mq_read10(path, READ_ADDRESS, 1);
    } else {
        *cmd = cmd_in(path, n / 2 % 2 ? READ_KEYS : READ_RESERVATION);
    }
    l->flights[queue][i].slot = mq_post_cmd(mq_queue(l->d, queue), cmd);
    g_assert_nonnull(l->flights[queue][i].slot);
    mq_flush(mq_queue(l->d, queue));
}

static void load_answer(Load *l, const MqCmd *cmd, const MqAnswer *a)
{
    const struct virtio_scsi_cmd_resp *resp = &a->resp;
    bool is_out = cmd->cdb[0] == PERSISTENT_RESERVE_OUT;
    bool is_in = cmd->cdb[0] == PERSISTENT_RESERVE_IN;
    uint8_t action = cmd->cdb[1];
    bool changes = is_out && action != PR_RESERVE && action != PR_RELEASE;

    if (is_lost(resp) && (is_out || is_in)) {
        l->lost++;
        return;
    }
    /* Who isn't registered can't change anything, but anyone may register. */
    if (resp->response || (resp->status != GOOD && !is_preempted(resp) &&
                           !(is_refused(resp) && is_out &&
                             action != PR_REGISTER_IGNORE))) {
        mq_describe(cmd, a);
        g_assert_not_reached();
    }
    l->refused += is_refused(resp);
    if (resp->status == GOOD) {
        g_assert_cmpuint(resp->sense_len, ==, 0);
        l->changed += changes;
        if (is_in) {
            (void)(action == READ_KEYS ? keys_of(a->in, 8) : holder_of(a->in));
        }
    }
    if (is_out || is_in) {
        l->reservations++;
    } else {
        l->reads++;
    }
}

/* Takes what was answered in a queue; with @more there is more after that. */
static unsigned load_queue(Load *l, unsigned queue, bool more)
{
    static MqAnswer a;
    unsigned in_flight = 0;

    mq_reap(mq_queue(l->d, queue));
    for (unsigned i = 0; i < PER_QUEUE; i++) {
        MqSlot *slot = l->flights[queue][i].slot;

        if (slot && slot->done) {
            const MqCmd *cmd = &l->flights[queue][i].cmd;

            mq_read_resp(slot, &a.resp, sizeof(a.resp));
            if (cmd->in_len) {
                qtest_memread(l->d->qts, slot->data, a.in, cmd->in_len);
            }
            mq_release(slot);
            load_answer(l, cmd, &a);
            slot = l->flights[queue][i].slot = NULL;
        }
        if (!slot && more) {
            load_post(l, queue, i);
        }
        in_flight += !!l->flights[queue][i].slot;
    }
    return in_flight;
}

/* All queues are full then. */
static void load_post_all(Load *l)
{
    for (unsigned queue = 0; queue < NUM_QUEUES; queue++) {
        load_queue(l, queue, true);
    }
}

/* Until the helper has answered so many more */
static void load_run(Load *l, unsigned more)
{
    unsigned until = l->reservations + more;
    gint64 start = 0;

    while (l->reservations < until) {
        unsigned before = l->reservations;

        load_post_all(l);
        if (l->reservations == before) {
            mq_pause(&start, "commands of the load");
        } else {
            start = 0;
        }
    }
}

static void load_drain(Load *l)
{
    gint64 start = 0;
    unsigned in_flight;

    do {
        in_flight = 0;
        for (unsigned queue = 0; queue < NUM_QUEUES; queue++) {
            in_flight += load_queue(l, queue, false);
        }
        mq_pause(&start, "the load's end");
    } while (in_flight);
}

/*
 * Each command that was GOOD was done once: the target counts them, too.  Of
 * those that were lost it may have done any.
 */
static void load_end(Load *l)
{
    uint32_t after;

    load_drain(l);
    read_in(l->d, 0, READ_KEYS, &after);
    g_test_message("%u reservations, %u refused, %u reads, %u lost; "
                   "%u changes, the target says %u", l->reservations,
                   l->refused, l->reads, l->lost, l->changed,
                   after - l->before);
    g_assert_cmpuint(after - l->before, >=, l->changed);
    g_assert_cmpuint(after - l->before, <=, l->changed + l->lost);
}

/*
 * Tests
 */

/* What a reservation means for the other path, from register to clear */
static void test_meaning(void)
{
    MqDev *d = begin(2);

    clear(d);
    g_assert_cmpuint(run_out(d, 0, PR_RESERVE), !=, GOOD);
    g_assert_cmpuint(run_out(d, 0, PR_REGISTER_IGNORE), ==, GOOD);
    g_assert_cmpuint(run_out(d, 0, PR_RESERVE), ==, GOOD);
    g_assert_cmpuint(read_in(d, 1, READ_RESERVATION, NULL), ==, 1);
    g_assert_cmpuint(run_io(d, 0, true), ==, GOOD);
    g_assert_cmpuint(run_io(d, 1, false), ==, GOOD);
    g_assert_cmpuint(run_io(d, 1, true), ==, RESERVATION_CONFLICT);

    g_assert_cmpuint(run_out(d, 1, PR_REGISTER_IGNORE), ==, GOOD);
    g_assert_cmpuint(read_in(d, 0, READ_KEYS, NULL), ==, 3);
    g_assert_cmpuint(run_io(d, 1, true), ==, GOOD);
    g_assert_cmpuint(run_out(d, 1, PR_RESERVE), ==, RESERVATION_CONFLICT);
    g_assert_cmpuint(run_out(d, 1, PR_PREEMPT), ==, GOOD);
    g_assert_cmpuint(read_in(d, 0, READ_KEYS, NULL), ==, 2);
    g_assert_cmpuint(read_in(d, 0, READ_RESERVATION, NULL), ==, 2);
    g_assert_cmpuint(run_io(d, 0, true), ==, RESERVATION_CONFLICT);
    g_assert_cmpuint(run_io(d, 1, true), ==, GOOD);

    g_assert_cmpuint(run_out(d, 1, PR_RELEASE), ==, GOOD);
    g_assert_cmpuint(read_in(d, 1, READ_RESERVATION, NULL), ==, 0);
    g_assert_cmpuint(run_io(d, 0, true), ==, GOOD);
    end(d);
}

static void test_load(const void *iothreads)
{
    Load l;

    load_init(&l, begin(GPOINTER_TO_UINT(iothreads)));
    load_run(&l, NUM_COMMANDS);
    load_end(&l);
    g_assert_cmpuint(l.lost, ==, 0);
    g_assert_cmpuint(l.refused, >, 0);
    end(l.d);
}

/*
 * The helper dies, three times.  What it had is lost, what comes then waits
 * for its return, and reads don't care.
 */
static void test_killed(const void *iothreads)
{
    Load l;
    gint64 start;

    load_init(&l, begin(GPOINTER_TO_UINT(iothreads)));
    for (unsigned i = 0; i < 3; i++) {
        load_run(&l, NUM_COMMANDS / 4);
        helper_kill();
        for (start = 0; is_connected(l.d); mq_pause(&start, "its end")) {
            load_post_all(&l);      /* one of these finds that out */
        }
        expect_event(l.d, false);
        helper_start();
        load_run(&l, NUM_COMMANDS / 4);
        expect_event(l.d, true);
        g_assert_true(is_connected(l.d));
    }
    load_end(&l);
    end(l.d);
}

/* PERSISTENT RESERVE for the first path, in all queues */
static void post_all(MqDev *d, MqSlot **slots)
{
    uint8_t param[PARAM_LEN];

    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        MqCmd cmd = i % 2 ? cmd_in(0, READ_KEYS)
                          : cmd_out(0, PR_REGISTER_IGNORE, param);

        slots[i] = mq_post_cmd(mq_queue(d, i), &cmd);
        mq_flush(mq_queue(d, i));
    }
}

/* All queues serve the other path, while none of @slots is done. */
static void reads_go_on(MqDev *d, MqSlot **slots)
{
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        g_assert_cmpuint(run_io(d, 1, false), ==, GOOD);
    }
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        mq_reap(mq_queue(d, i));
        g_assert_false(slots[i]->done);
    }
}

static void take_answer(MqSlot *slot, void *answer, size_t size)
{
    mq_wait(slot);
    mq_read_resp(slot, answer, size);
    mq_release(slot);
}

/* It doesn't come back in time: each command says so, and can be sent again. */
static void test_away(void)
{
    MqDev *d = begin(4);
    MqSlot *slots[NUM_QUEUES];
    struct virtio_scsi_cmd_resp resp;

    helper_kill();
    post_all(d, slots);
    expect_event(d, false);
    reads_go_on(d, slots);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        take_answer(slots[i], &resp, sizeof(resp));
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_OK);
        g_assert_true(is_lost(&resp));
    }
    g_assert_false(is_connected(d));
    helper_start();
    g_assert_cmpuint(run_out(d, 0, PR_REGISTER_IGNORE), ==, GOOD);
    expect_event(d, true);
    end(d);
}

/*
 * It stands still: commands wait for it, a reset of their LUN waits for them,
 * and nothing else does.
 */
static void test_stopped(void)
{
    MqDev *d = begin(4);
    MqSlot *slots[NUM_QUEUES], *reset;
    struct virtio_scsi_ctrl_tmf_resp tmf;
    struct virtio_scsi_cmd_resp resp;

    g_assert_cmpint(kill(helper, SIGSTOP), ==, 0);
    post_all(d, slots);
    reads_go_on(d, slots);
    g_assert_true(is_connected(d));
    reset = mq_post_tmf(d, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, 0, 0);
    reads_go_on(d, slots);
    mq_reap(mq_ctrl(d));
    g_assert_false(reset->done);
    g_assert_cmpint(kill(helper, SIGCONT), ==, 0);
    take_answer(reset, &tmf, sizeof(tmf));
    g_assert_cmpuint(tmf.response, ==, VIRTIO_SCSI_S_OK);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        take_answer(slots[i], &resp, sizeof(resp));
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_RESET);
    }
    /* The next command tells of the reset, and only that. */
    g_assert_cmpuint(run_io(d, 0, false), ==, CHECK_CONDITION);
    g_assert_cmpuint(run_io(d, 0, false), ==, GOOD);
    end(d);
}

int main(int argc, char **argv)
{
    static const unsigned iothreads[] = { 1, 2, 4 };
    const char *paths = g_getenv("QTEST_PR_DISKS");
    g_autofree char *dir = g_dir_make_tmp("reserve-XXXXXX", NULL);
    int status;

    g_test_init(&argc, &argv, NULL);
    helper_program = g_getenv("QTEST_PR_HELPER");
    disks = g_strsplit(paths ?: "", " ", -1);
    if (!helper_program || g_strv_length(disks) != NUM_PATHS) {
        g_printerr("virtio-scsi-reserve: QTEST_PR_HELPER must be "
                   "qemu-pr-helper, QTEST_PR_DISKS two paths to a disk\n");
        return 1;
    }
    helper_socket = g_strdup_printf("%s/socket", dir);
    g_test_add_func("/reserve/meaning", test_meaning);
    for (unsigned i = 0; i < ARRAY_SIZE(iothreads); i++) {
        g_autofree char *load = g_strdup_printf("/reserve/load/%u",
                                                iothreads[i]);
        g_autofree char *killed = g_strdup_printf("/reserve/killed/%u",
                                                  iothreads[i]);

        g_test_add_data_func(load, GUINT_TO_POINTER(iothreads[i]), test_load);
        g_test_add_data_func(killed, GUINT_TO_POINTER(iothreads[i]),
                             test_killed);
    }
    g_test_add_func("/reserve/away", test_away);
    g_test_add_func("/reserve/stopped", test_stopped);
    status = g_test_run();
    rmdir(dir);
    g_free(helper_socket);
    g_strfreev(disks);
    return status;
}
