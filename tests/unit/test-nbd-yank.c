/*
 * Unit test of block/nbd: a yank, or the end of a job, just while a request
 * connects anew
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "block/block_int.h"
#include "block/nbd.h"
#include "io/channel-socket.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/yank.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"

#define EXPORT_SIZE     4096
#define OLDSTYLE_MAGIC  0x00420281861253ULL
#define OLDSTYLE_ZEROES 124
#define REQUEST_LEN     28
#define COOKIE_OFFSET   8
#define REPLY_MAGIC     0x67446698

typedef struct Server {
    char *dir;
    char *path;
    QIOChannelSocket *listener;
    QemuThread thread;
} Server;

/*
 * In place of util/yank.c: what comes exactly before the function of a lost
 * connection is unregistered, or right behind the registration of the next one.
 */
static void (*before_unregister)(YankFn *func, void *opaque);
static void (*behind_register)(YankFn *func, void *opaque);
static BlockBackend *blk;

bool yank_register_instance(const YankInstance *instance, Error **errp)
{
    return true;
}

void yank_unregister_instance(const YankInstance *instance)
{
}

void yank_register_function(const YankInstance *instance, YankFn *func,
                            void *opaque)
{
    if (behind_register) {
        behind_register(func, opaque);
    }
}

void yank_unregister_function(const YankInstance *instance, YankFn *func,
                              void *opaque)
{
    if (before_unregister) {
        before_unregister(func, opaque);
    }
}

/*
 * The server
 */

static bool shake_hands(QIOChannel *ioc)
{
    uint8_t hello[8 + 8 + 8 + 4 + OLDSTYLE_ZEROES] = "NBDMAGIC";

    stq_be_p(hello + 8, OLDSTYLE_MAGIC);
    stq_be_p(hello + 16, EXPORT_SIZE);
    stl_be_p(hello + 24, NBD_FLAG_HAS_FLAGS);
    return qio_channel_write_all(ioc, (char *)hello, sizeof(hello), NULL) == 0;
}

/* A READ of the whole export; false if there is none */
static bool serve_read(QIOChannel *ioc, bool answer)
{
    uint8_t request[REQUEST_LEN], reply[16 + EXPORT_SIZE] = { 0 };

    if (qio_channel_read_all(ioc, (char *)request, sizeof(request), NULL) < 0 ||
        lduw_be_p(request + 6) != NBD_CMD_READ) {
        return false;
    }
    stl_be_p(reply, REPLY_MAGIC);
    memcpy(reply + 8, request + COOKIE_OFFSET, 8);
    return answer &&
           qio_channel_write_all(ioc, (char *)reply, sizeof(reply), NULL) == 0;
}

/* The first connection breaks when it is used, all others are all right. */
static void *server_thread(void *opaque)
{
    Server *server = opaque;
    bool answer = false;

    for (;;) {
        QIOChannelSocket *sioc = qio_channel_socket_accept(server->listener,
                                                           NULL);

        if (!sioc) {
            return NULL;
        }
        if (shake_hands(QIO_CHANNEL(sioc))) {
            while (serve_read(QIO_CHANNEL(sioc), answer)) {
                /* the next one */
            }
        }
        object_unref(OBJECT(sioc));
        answer = true;
    }
}

static void setup(Server *server)
{
    QDict *options = qdict_new();
    SocketAddress addr = { .type = SOCKET_ADDRESS_TYPE_UNIX };

    server->dir = g_dir_make_tmp("test-nbd-yank-XXXXXX", NULL);
    server->path = g_strdup_printf("%s/sock", server->dir);
    addr.u.q_unix.path = server->path;
    server->listener = qio_channel_socket_new();
    qio_channel_socket_listen_sync(server->listener, &addr, 1, &error_abort);
    qemu_thread_create(&server->thread, "server", server_thread, server,
                       QEMU_THREAD_JOINABLE);

    qdict_put_str(options, "driver", "nbd");
    qdict_put_str(options, "server.type", "unix");
    qdict_put_str(options, "server.path", server->path);
    qdict_put_str(options, "reconnect-delay", "1000");
    blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
}

static void teardown(Server *server)
{
    before_unregister = behind_register = NULL;
    blk_unref(blk);
    qio_channel_shutdown(QIO_CHANNEL(server->listener),
                         QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    qemu_thread_join(&server->thread);
    object_unref(OBJECT(server->listener));
    unlink(server->path);
    rmdir(server->dir);
    g_free(server->path);
    g_free(server->dir);
}

static int read_all(void)
{
    uint8_t data[EXPORT_SIZE];

    return blk_pread(blk, 0, sizeof(data), data, 0);
}

/*
 * The tests
 */

static void yank(YankFn *func, void *opaque)
{
    before_unregister = behind_register = NULL;
    func(opaque);
}

static void cancel_in_flight(YankFn *func, void *opaque)
{
    BlockDriverState *bs = blk_bs(blk);

    before_unregister = NULL;
    bs->drv->bdrv_cancel_in_flight(bs);
}

/* Nothing happens: the request is sent again. */
static void test_reconnect(void)
{
    Server server;

    setup(&server);
    g_assert_cmpint(read_all(), ==, 0);
    g_assert_cmpint(read_all(), ==, 0);
    teardown(&server);
}

/* What was yanked stays so. */
static void test_yank_old(void)
{
    Server server;

    setup(&server);
    before_unregister = yank;
    g_assert_cmpint(read_all(), ==, -EIO);
    g_assert_cmpint(read_all(), ==, -EIO);
    teardown(&server);
}

static void test_yank_new(void)
{
    Server server;

    setup(&server);
    behind_register = yank;
    g_assert_cmpint(read_all(), ==, -EIO);
    g_assert_cmpint(read_all(), ==, -EIO);
    teardown(&server);
}

/* Who cancels does not want to wait for the server. */
static void test_cancel(void)
{
    Server server;

    setup(&server);
    before_unregister = cancel_in_flight;
    g_assert_cmpint(read_all(), ==, -EIO);
    teardown(&server);
}

typedef struct Attempt {
    NBDClientConnection *conn;
    bool over;
} Attempt;

static void coroutine_fn attempt_co(void *opaque)
{
    Attempt *attempt = opaque;
    NBDExportInfo info;

    g_assert_null(nbd_co_establish_connection(attempt->conn, &info, true,
                                              NULL));
    attempt->over = true;
}

/*
 * Nobody listens.  Who cancels when it is decided already that an attempt will
 * wait doesn't find it waiting, and means it all the same.
 */
static void test_cancel_early(void)
{
    SocketAddress addr = { .type = SOCKET_ADDRESS_TYPE_UNIX };
    Attempt attempt = { };

    addr.u.q_unix.path = (char *)"/nonexistent/test-nbd-yank";
    attempt.conn = nbd_client_connection_new(&addr, true, "", NULL, NULL, NULL);
    nbd_client_connection_enable_retry(attempt.conn);

    nbd_client_connection_begin(attempt.conn);
    nbd_co_establish_connection_cancel(attempt.conn);
    qemu_coroutine_enter(qemu_coroutine_create(attempt_co, &attempt));
    g_assert_true(attempt.over);

    /* The next one waits, until it is cancelled, too. */
    attempt.over = false;
    nbd_client_connection_begin(attempt.conn);
    qemu_coroutine_enter(qemu_coroutine_create(attempt_co, &attempt));
    g_assert_false(attempt.over);
    nbd_co_establish_connection_cancel(attempt.conn);
    g_assert_true(attempt.over);

    nbd_client_connection_release(attempt.conn);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    bdrv_init();

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nbd-yank/reconnect", test_reconnect);
    g_test_add_func("/nbd-yank/old-connection", test_yank_old);
    g_test_add_func("/nbd-yank/new-connection", test_yank_new);
    g_test_add_func("/nbd-yank/cancel", test_cancel);
    g_test_add_func("/nbd-yank/cancel-early", test_cancel_early);
    return g_test_run();
}
