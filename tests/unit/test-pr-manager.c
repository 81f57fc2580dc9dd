/*
 * Unit test of pr-manager-helper: reservations from several IOThreads, and a
 * helper that is slow, goes away, comes back, or says nonsense
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <scsi/sg.h>
#include "block/block.h"
#include "block/block-global-state.h"
#include "io/channel-socket.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "qom/object_interfaces.h"
#include "scsi/constants.h"
#include "scsi/pr-manager.h"
#include "scsi/utils.h"
#include "scsi/pr-helper.h"
#include "iothread-call.h"

#define NUM_THREADS     4
#define NUM_ROUNDS      100
#define PARAM_LEN       24      /* of PERSISTENT RESERVE OUT (SPC-4, 6.14.3) */
#define KEYS_LEN        8

/* What the helper does with the next commands: atomic */
typedef enum Mood {
    ANSWER,
    DIE,                /* end before the answer */
    WAIT,               /* answer when the main loop has asked for its state */
    TOO_MUCH,           /* announce more than was asked for */
} Mood;

typedef struct Helper {
    char *dir;
    char *path;
    QIOChannelSocket *listener;
    QemuThread thread;
    Mood mood;
    bool quit;          /* atomic */
    bool asked;         /* atomic, for WAIT */
    bool in_time;       /* was it asked while it waited? */
    unsigned done[NUM_THREADS]; /* commands by thread, see key_of() */
    dev_t dev;          /* of the file that is passed with each */
    ino_t ino;
} Helper;

/*
 * The helper: one connection at a time, as pr-manager-helper makes no more
 */

static void check_fd(Helper *h, int fd)
{
    struct stat st;

    g_assert_cmpint(fstat(fd, &st), ==, 0);
    g_assert_true(st.st_dev == h->dev && st.st_ino == h->ino);
    close(fd);
}

static bool read_cdb(Helper *h, QIOChannel *ioc, uint8_t *cdb)
{
    size_t have = 0;

    while (have < PR_HELPER_CDB_SIZE) {
        struct iovec iov = { cdb + have, PR_HELPER_CDB_SIZE - have };
        g_autofree int *fds = NULL;
        size_t nfds = 0;
        ssize_t n = qio_channel_readv_full(ioc, &iov, 1, &fds, &nfds, 0, NULL);

        if (n <= 0) {
            return false;
        }
        g_assert_cmpuint(nfds, ==, have ? 0 : 1);
        if (nfds) {
            check_fd(h, fds[0]);
        }
        have += n;
    }
    return true;
}

static void wait_until_asked(Helper *h)
{
    /* The main loop needs nothing of us; this only ends a test that hangs. */
    for (int i = 0; i < 2000 && !qatomic_read(&h->asked); i++) {
        g_usleep(10000);
    }
    h->in_time = qatomic_read(&h->asked);
}

/* False if this is the connection's end */
static bool serve_one(Helper *h, QIOChannel *ioc)
{
    uint8_t cdb[PR_HELPER_CDB_SIZE], data[PARAM_LEN] = { 0 };
    PRHelperResponse resp = { .result = cpu_to_be32(GOOD) };
    Mood mood;

    if (!read_cdb(h, ioc, cdb)) {
        return false;
    }
    if (cdb[0] == PERSISTENT_RESERVE_OUT) {
        g_assert_cmpuint(ldl_be_p(&cdb[5]), ==, PARAM_LEN);
        if (qio_channel_read_all(ioc, (char *)data, PARAM_LEN, NULL) < 0) {
            return false;
        }
    } else {
        resp.sz = cpu_to_be32(KEYS_LEN);
    }

    mood = qatomic_read(&h->mood);
    if (mood == DIE) {
        return false;
    } else if (mood == WAIT) {
        wait_until_asked(h);
    } else if (mood == TOO_MUCH) {
        resp.sz = cpu_to_be32(INT32_MAX);
    }
    if (cdb[0] == PERSISTENT_RESERVE_OUT) {
        h->done[ldq_be_p(data)]++;
    }
    if (qio_channel_write_all(ioc, (char *)&resp, sizeof(resp), NULL) < 0) {
        return false;
    }
    return cdb[0] == PERSISTENT_RESERVE_OUT || mood == TOO_MUCH ||
           !qio_channel_write_all(ioc, (char *)data, KEYS_LEN, NULL);
}

static void *helper_thread(void *opaque)
{
    Helper *h = opaque;

    for (;;) {
        QIOChannelSocket *sioc = qio_channel_socket_accept(h->listener, NULL);
        uint32_t features = 0;

        if (!sioc) {
            return NULL;
        }
        if (!qio_channel_write_all(QIO_CHANNEL(sioc), (char *)&features,
                                   sizeof(features), NULL) &&
            !qio_channel_read_all(QIO_CHANNEL(sioc), (char *)&features,
                                  sizeof(features), NULL)) {
            while (!qatomic_read(&h->quit) &&
                   serve_one(h, QIO_CHANNEL(sioc))) {
                /* the next one */
            }
        }
        object_unref(OBJECT(sioc));
        if (qatomic_read(&h->quit) || qatomic_read(&h->mood) == DIE) {
            return NULL;
        }
    }
}

static void helper_start(Helper *h)
{
    SocketAddress addr = {
        .type = SOCKET_ADDRESS_TYPE_UNIX,
        .u.q_unix.path = h->path,
    };

    h->listener = qio_channel_socket_new();
    qio_channel_socket_listen_sync(h->listener, &addr, 1, &error_abort);
    qemu_thread_create(&h->thread, "helper", helper_thread, h,
                       QEMU_THREAD_JOINABLE);
}

/* Wait until it has ended, by mood or since there is no more client. */
static void helper_join(Helper *h)
{
    qemu_thread_join(&h->thread);
    qio_channel_close(QIO_CHANNEL(h->listener), NULL);
    object_unref(OBJECT(h->listener));
    unlink(h->path);
}

/*
 * The client
 */

static Object *setup(Helper *h)
{
    Object *manager;
    struct stat st;

    *h = (Helper) { .mood = ANSWER };
    h->dir = g_dir_make_tmp("test-pr-manager-XXXXXX", NULL);
    h->path = g_strdup_printf("%s/sock", h->dir);
    g_assert_cmpint(stat("/dev/null", &st), ==, 0);
    h->dev = st.st_dev;
    h->ino = st.st_ino;
    helper_start(h);
    manager = object_new_with_props("pr-manager-helper",
                                    object_get_objects_root(), "pr0",
                                    &error_abort, "path", h->path, NULL);
    return object_ref(manager);
}

/* The helper ends when the connection does, and nobody connects again. */
static void teardown(Helper *h, Object *manager)
{
    qatomic_set(&h->quit, true);
    object_unparent(manager);
    object_unref(manager);
    while (aio_poll(qemu_get_aio_context(), false)) {
        /* events hold references */
    }
    helper_join(h);
    rmdir(h->dir);
    g_free(h->path);
    g_free(h->dir);
}

typedef struct Command {
    PRManager *manager;
    uint8_t opcode;
    uint64_t key;               /* the number of the thread */
    int rounds;
    int fd;
    int ret;                    /* of the last one */
    sg_io_hdr_t hdr;
    uint8_t sense[PR_HELPER_SENSE_SIZE];
    IOThreadCo co;
} Command;

static void coroutine_fn command_entry(void *opaque)
{
    Command *c = opaque;
    bool out = c->opcode == PERSISTENT_RESERVE_OUT;
    uint8_t cdb[10] = { c->opcode };
    uint8_t data[PARAM_LEN];

    stl_be_p(&cdb[5], out ? PARAM_LEN : KEYS_LEN);
    for (int i = 0; i < c->rounds; i++) {
        memset(data, 0, sizeof(data));
        stq_be_p(data, c->key);
        c->hdr = (sg_io_hdr_t) {
            .interface_id = 'S',
            .dxfer_direction = out ? SG_DXFER_TO_DEV : SG_DXFER_FROM_DEV,
            .cmdp = cdb,
            .cmd_len = sizeof(cdb),
            .dxferp = data,
            .dxfer_len = out ? PARAM_LEN : KEYS_LEN,
            .sbp = c->sense,
            .mx_sb_len = sizeof(c->sense),
        };
        c->ret = pr_manager_execute(c->manager, qemu_get_current_aio_context(),
                                    c->fd, &c->hdr);
    }
}

static void command_start(Command *c, Object *manager, uint8_t opcode,
                          uint64_t key, int rounds)
{
    *c = (Command) {
        .manager = PR_MANAGER(manager),
        .opcode = opcode,
        .key = key,
        .rounds = rounds,
        .fd = open("/dev/null", O_RDWR),
    };
    g_assert_cmpint(c->fd, >=, 0);
    iothread_co_start(&c->co, command_entry, c);
}

static void command_join(Command *c)
{
    iothread_co_join(&c->co);
    close(c->fd);
}

static void command_good(Command *c)
{
    command_join(c);
    g_assert_cmpint(c->ret, ==, 0);
    g_assert_cmpint(c->hdr.status, ==, GOOD);
    g_assert_cmpint(c->hdr.resid, ==, 0);
}

/* The guest must be told that it may try again. */
static void command_lost(Command *c)
{
    SCSISense sense;

    command_join(c);
    g_assert_cmpint(c->ret, ==, 0);
    g_assert_cmpint(c->hdr.status, ==, CHECK_CONDITION);
    g_assert_cmpint(c->hdr.driver_status, ==, SG_ERR_DRIVER_SENSE);
    sense = scsi_parse_sense_buf(c->sense, c->hdr.sb_len_wr);
    g_assert_cmpint(sense.key, ==, SENSE_CODE(LUN_COMM_FAILURE).key);
    g_assert_cmpint(sense.asc, ==, SENSE_CODE(LUN_COMM_FAILURE).asc);
    g_assert_cmpint(sense.ascq, ==, SENSE_CODE(LUN_COMM_FAILURE).ascq);
}

static void one_good(Object *manager, uint8_t opcode)
{
    Command c;

    command_start(&c, manager, opcode, 0, 1);
    command_good(&c);
}

/*
 * Tests
 */

static void test_threads(void)
{
    Command commands[NUM_THREADS];
    Helper h;
    Object *manager = setup(&h);

    for (unsigned i = 0; i < NUM_THREADS; i++) {
        command_start(&commands[i], manager, i == NUM_THREADS - 1 ?
                      PERSISTENT_RESERVE_IN : PERSISTENT_RESERVE_OUT, i,
                      NUM_ROUNDS);
    }
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        command_good(&commands[i]);
        g_assert_cmpuint(h.done[i], ==,
                         i == NUM_THREADS - 1 ? 0 : NUM_ROUNDS);
    }
    teardown(&h, manager);
}

/* What it had is lost; what comes while it is away waits for its return. */
static void test_killed(void)
{
    Command first, others[NUM_THREADS];
    Helper h;
    Object *manager = setup(&h);

    qatomic_set(&h.mood, DIE);
    command_start(&first, manager, PERSISTENT_RESERVE_OUT, 0, 1);
    command_lost(&first);
    helper_join(&h);
    g_assert_false(pr_manager_is_connected(PR_MANAGER(manager)));
    g_assert_cmpuint(h.done[0], ==, 0);

    qatomic_set(&h.mood, ANSWER);
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        command_start(&others[i], manager, PERSISTENT_RESERVE_OUT, i, 1);
    }
    helper_start(&h);
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        command_good(&others[i]);
        g_assert_cmpuint(h.done[i], ==, 1);
    }
    g_assert_true(pr_manager_is_connected(PR_MANAGER(manager)));
    teardown(&h, manager);
}

/* While it thinks, the main loop can ask for the state of the connection. */
static void test_slow(void)
{
    Command c;
    Helper h;
    Object *manager = setup(&h);

    one_good(manager, PERSISTENT_RESERVE_IN);
    qatomic_set(&h.mood, WAIT);
    command_start(&c, manager, PERSISTENT_RESERVE_OUT, 0, 1);
    for (int i = 0; i < 10; i++) {
        g_usleep(10000);        /* so that the helper has it, probably */
        g_assert_true(pr_manager_is_connected(PR_MANAGER(manager)));
    }
    qatomic_set(&h.asked, true);
    command_good(&c);
    g_assert_true(h.in_time);
    teardown(&h, manager);
}

static void test_too_much(void)
{
    Command c;
    Helper h;
    Object *manager = setup(&h);

    for (int i = 0; i < 2; i++) {
        qatomic_set(&h.mood, TOO_MUCH);
        command_start(&c, manager, i ? PERSISTENT_RESERVE_IN
                                     : PERSISTENT_RESERVE_OUT, 0, 1);
        command_lost(&c);
        qatomic_set(&h.mood, ANSWER);
        one_good(manager, PERSISTENT_RESERVE_IN);
    }
    teardown(&h, manager);
}

/* object-del takes the name away, not what a node still uses. */
static void test_node(void)
{
    QDict *options = qdict_new();
    BlockDriverState *bs;
    Helper h;
    Object *manager = setup(&h);
    g_autofree char *image = g_strdup_printf("%s/image", h.dir);

    g_assert_true(g_file_set_contents(image, "", 0, NULL));
    qdict_put_str(options, "driver", "file");
    qdict_put_str(options, "filename", image);
    qdict_put_str(options, "pr-manager", "pr0");
    bs = bdrv_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
    while (aio_poll(qemu_get_aio_context(), false)) {
        /* events hold references */
    }
    object_unparent(manager);
    g_assert_cmpuint(manager->ref, ==, 2); /* ours, and the node's */
    bdrv_unref(bs);
    g_assert_cmpuint(manager->ref, ==, 1);
    unlink(image);
    qatomic_set(&h.quit, true);
    object_unref(manager);
    helper_join(&h);
    rmdir(h.dir);
    g_free(h.path);
    g_free(h.dir);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    bdrv_init();
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/pr-manager/threads", test_threads);
    g_test_add_func("/pr-manager/killed", test_killed);
    g_test_add_func("/pr-manager/slow", test_slow);
    g_test_add_func("/pr-manager/too-much", test_too_much);
    g_test_add_func("/pr-manager/node", test_node);
    return g_test_run();
}
