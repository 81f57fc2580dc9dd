/*
 * Request queues of a virtio-scsi device that move between IOThreads by
 * themselves
 *
 * The VM's clock stands still unless a test steps it, so a test decides when a
 * period ends, and lets queues work until the device says that they have kept
 * their IOThread busy for as long as the test wants.  How fast the machine is
 * makes no difference.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "scsi/constants.h"
#include "virtio-scsi-shm.h"

#define PCI_SLOT    4
#define RAM_SIZE    (32 * 1024 * 1024)
#define DEPTH       32
#define NUM_QUEUES  4
#define MS          1000000
#define PERIOD      (100 * MS)
#define BACKEND     "/machine/peripheral/scsi0/virtio-backend"

/* Queues 0 and 2 are t0's, 1 and 3 are t1's */
#define DEALT "\"iothread-vq-mapping\":[{\"iothread\":\"t0\"}," \
              "{\"iothread\":\"t1\"}]"
#define HOT   (1 << 0 | 1 << 2)
#define EVEN  ((1 << NUM_QUEUES) - 1)

/*
 * LUN 1 lets one command through, and the next one hours later;
 * LUN 2 takes some time; LUN 3 longer than a queue waits to leave.
 */
enum { LUN_FAST, LUN_SLOW, LUN_LAZY, LUN_LATE };

typedef struct Balance {
    QTestState *qts;
    ShmMem mem;
    ShmDev *dev;
    unsigned slow[NUM_QUEUES];  /* commands that don't end yet, at most */
    bool time_goes_on;          /* while answers don't come */
    uint8_t status;             /* of the last answer */
} Balance;

typedef struct QueueInfo {
    char iothread[8];
    uint64_t moves;
    int64_t handler_ns;
    double share;               /* -1: unknown */
    double busy;
} QueueInfo;

/*
 * The VM
 */

static void balance_open(Balance *b, const char *props)
{
    g_autofree char *mem = NULL;

    *b = (Balance) { };
    shm_mem_init(&b->mem, RAM_SIZE);
    mem = shm_mem_args(&b->mem);
    b->qts = qtest_initf(
        "-machine pc,memory-backend=ram %s -nodefaults "
        "-object iothread,id=t0 -object iothread,id=t1 "
        "-object throttle-group,id=slow,x-bps-total=1 "
        "-device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"scsi0\","
        "\"addr\":\"%02x.0\",\"num_queues\":%d,%s}' "
        "-blockdev null-co,node-name=fast,size=1048576,read-zeroes=on "
        "-blockdev '{\"driver\":\"throttle\",\"node-name\":\"slow\","
        "\"throttle-group\":\"slow\",\"file\":"
        "{\"driver\":\"null-co\",\"size\":1048576}}' "
        "-device '{\"driver\":\"scsi-hd\",\"drive\":\"fast\","
        "\"bus\":\"scsi0.0\",\"lun\":0}' "
        "-device '{\"driver\":\"scsi-hd\",\"drive\":\"slow\","
        "\"bus\":\"scsi0.0\",\"lun\":1}' "
        "-blockdev null-co,node-name=lazy,size=1048576,latency-ns=20000000 "
        "-device '{\"driver\":\"scsi-hd\",\"drive\":\"lazy\","
        "\"bus\":\"scsi0.0\",\"lun\":2}' "
        "-blockdev null-co,node-name=late,size=1048576,latency-ns=1000000000 "
        "-device '{\"driver\":\"scsi-hd\",\"drive\":\"late\","
        "\"bus\":\"scsi0.0\",\"lun\":3}'",
        mem, PCI_SLOT, NUM_QUEUES, props);
    b->dev = shm_new(b->qts, &b->mem, PCI_SLOT, DEPTH);
    shm_start(b->dev, SHM_EVENT_IDX);
}

static void balance_close(Balance *b)
{
    qtest_quit(b->qts);
    shm_free(b->dev);
    shm_mem_destroy(&b->mem);
}

static void read_info(Balance *b, QueueInfo *info)
{
    QDict *resp = qtest_qmp(b->qts, "{'execute': 'x-query-virtio-scsi-queues',"
                            " 'arguments': {'path': 'scsi0'}}");
    QDict *device = qobject_to(QDict,
                               qlist_peek(qdict_get_qlist(resp, "return")));
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(device, "queues"), entry) {
        QDict *queue = qobject_to(QDict, qlist_entry_obj(entry));

        *info = (QueueInfo) {
            .moves = qdict_get_int(queue, "moves"),
            .handler_ns = qdict_get_int(queue, "handler-ns"),
            .share = qdict_haskey(queue, "share")
                     ? qdict_get_double(queue, "share") : -1,
            .busy = qdict_haskey(queue, "iothread-busy")
                    ? qdict_get_double(queue, "iothread-busy") : -1,
        };
        g_strlcpy(info->iothread,
                  qdict_get_try_str(queue, "iothread") ?: "",
                  sizeof(info->iothread));
        info++;
    }
    qobject_unref(resp);
}

static uint64_t all_moves(Balance *b)
{
    QueueInfo info[NUM_QUEUES];
    uint64_t moves = 0;

    read_info(b, info);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        moves += info[i].moves;
    }
    return moves;
}

/* The error's text, or NULL */
static char *try_set(Balance *b, const char *property, const char *value)
{
    g_autofree char *cmd =
        g_strdup_printf("{'execute': 'qom-set', 'arguments': {"
                        "'path': '" BACKEND "', 'property': '%s',"
                        " 'value': %s}}", property, value);
    QDict *resp = qtest_qmp(b->qts, cmd, NULL);
    QDict *error = qdict_get_qdict(resp, "error");
    char *text = error ? g_strdup(qdict_get_str(error, "desc")) : NULL;

    qobject_unref(resp);
    return text;
}

static void set(Balance *b, const char *property, const char *value)
{
    g_autofree char *error = try_set(b, property, value);

    g_assert_cmpstr(error, ==, NULL);
}

static void expect_error(Balance *b, const char *property, const char *value,
                         const char *message)
{
    g_autofree char *error = try_set(b, property, value);

    g_assert_nonnull(error);
    if (!strstr(error, message)) {
        g_printerr("\"%s\" doesn't say \"%s\"\n", error, message);
        g_assert_not_reached();
    }
}

/*
 * I/O
 */

static void add_read(Balance *b, ShmQueue *q, unsigned lun)
{
    ShmSlot *slot = shm_take(q);
    struct virtio_scsi_cmd_req *req = (void *)slot->head;
    ShmShape shape = {
        .head = sizeof(*req),
        .resp = SHM_RESP_FIXED + VIRTIO_SCSI_SENSE_DEFAULT_SIZE,
        .in = SHM_DATA_MAX,
    };

    memset(req, 0, sizeof(*req));
    shm_put_lun(req->lun, 0, lun);
    req->cdb[0] = READ_10;
    req->cdb[8] = SHM_DATA_MAX / 512;
    shm_post(slot, &shape);
}

static void step(Balance *b)
{
    qtest_clock_step(b->qts, PERIOD);
}

/* Wait until @left commands are in flight. */
static void reap(Balance *b, ShmQueue *q, unsigned left)
{
    ShmWait w = { 0 };

    while (shm_in_flight(q) > left) {
        ShmSlot *slot = shm_reap(q);

        if (slot) {
            const struct virtio_scsi_cmd_resp *resp =
                (const void *)shm_resp(slot, SHM_RESP_FIXED +
                                             VIRTIO_SCSI_SENSE_DEFAULT_SIZE);

            g_assert_cmpuint(resp->response, ==, VIRTIO_SCSI_S_OK);
            b->status = resp->status;
            shm_progress(&w);
        } else {
            shm_wait(&w, b->qts, "an answer");
            if (b->time_goes_on && w.rounds % 1000 == 0) {
                step(b);
            }
        }
    }
}

static void work_round(Balance *b, unsigned queues)
{
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        if (queues & 1 << i) {
            ShmQueue *q = shm_queue(b->dev, i);

            while (shm_in_flight(q) < DEPTH) {
                add_read(b, q, LUN_FAST);
            }
            shm_flush(q);
        }
    }
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        if (queues & 1 << i) {
            reap(b, shm_queue(b->dev, i), b->slow[i]);
        }
    }
}

/* Let each of @queues keep its IOThread busy for at least @ns. */
static void work(Balance *b, unsigned queues, int64_t ns)
{
    QueueInfo begin[NUM_QUEUES], now[NUM_QUEUES];
    bool enough;

    read_info(b, begin);
    do {
        for (unsigned i = 0; i < 50; i++) {
            work_round(b, queues);
        }
        read_info(b, now);
        enough = true;
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            enough &= !(queues & 1 << i) ||
                      now[i].handler_ns - begin[i].handler_ns >= ns;
        }
    } while (!enough);
}

/* Work for some periods, in which each IOThread is busy with these queues. */
static void work_periods(Balance *b, unsigned queues, unsigned periods)
{
    for (unsigned i = 0; i < periods; i++) {
        work(b, queues, 60 * MS);
        step(b);
    }
}

/* Until a queue has moved, but for some periods at most */
static void work_until_moved(Balance *b, unsigned queues)
{
    uint64_t before = all_moves(b);

    for (unsigned i = 0; i < 20 && all_moves(b) == before; i++) {
        work_periods(b, queues, 1);
    }
    g_assert_cmpuint(all_moves(b), ==, before + 1);
}

/* This disk gets commands of each hot queue that take their time. */
static void add_slow(Balance *b, unsigned lun)
{
    /* This one only fetches the unit attention. */
    add_read(b, shm_queue(b->dev, 0), lun);
    shm_flush(shm_queue(b->dev, 0));
    reap(b, shm_queue(b->dev, 0), 0);
    g_assert_cmpuint(b->status, ==, CHECK_CONDITION);

    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        if (HOT & 1 << i) {
            /* Two, as LUN_SLOW may let one of them through */
            add_read(b, shm_queue(b->dev, i), lun);
            add_read(b, shm_queue(b->dev, i), lun);
            shm_flush(shm_queue(b->dev, i));
            b->slow[i] = 2;
        }
    }
}

static void drop_slow(Balance *b)
{
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        b->slow[i] = 0;
    }
}

/* All queues work, wherever they are. */
static void expect_works(Balance *b)
{
    for (unsigned i = 0; i < 3; i++) {
        work_round(b, EVEN);
    }
}

/*
 * Tests
 */

/* Two hot queues of one IOThread part, and that is it. */
static void test_hot(void)
{
    QueueInfo info[NUM_QUEUES];
    Balance b;

    balance_open(&b, DEALT ",\"iothread-vq-balance\":true");
    work_until_moved(&b, HOT);
    read_info(&b, info);
    g_assert_cmpstr(info[0].iothread, !=, info[2].iothread);
    g_assert_cmpstr(info[1].iothread, ==, "t1");
    g_assert_cmpstr(info[3].iothread, ==, "t1");
    work_periods(&b, HOT, 5);
    g_assert_cmpuint(all_moves(&b), ==, 1);
    expect_works(&b);

    /* The mapping that was set is as it was, and setting it puts them back. */
    set(&b, "iothread-vq-mapping", "[{'iothread': 't0'}, {'iothread': 't1'}]");
    read_info(&b, info);
    g_assert_cmpstr(info[0].iothread, ==, "t0");
    g_assert_cmpstr(info[2].iothread, ==, "t0");
    expect_works(&b);
    balance_close(&b);
}

/* The log says which queue has gone from where to where. */
static void test_trace(void)
{
    g_autofree char *path = NULL, *said = NULL, *log = NULL;
    int fd = g_file_open_tmp("qtest-balance-XXXXXX", &path, NULL);
    Balance b;

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    balance_open(&b, DEALT ",\"iothread-vq-balance\":true");
    qtest_qmp_assert_success(
        b.qts, "{'execute': 'trace-event-set-state', 'arguments': "
        "{'name': 'virtio_scsi_queue_move', 'enable': true}}");
    said = qtest_hmp(b.qts, "logfile %s", path);
    g_assert_cmpstr(said, ==, "");
    work_until_moved(&b, HOT);
    balance_close(&b);

    g_assert_true(g_file_get_contents(path, &log, NULL, NULL));
    if (!strstr(log, " queue=0 from=t0 to=t1\n") &&
        !strstr(log, " queue=2 from=t0 to=t1\n")) {
        g_error("the log is '%s'", log);
    }
    unlink(path);
}

/* A queue leaves when its commands have ended, and not before. */
static void test_in_flight(void)
{
    QueueInfo info[NUM_QUEUES];
    Balance b;

    balance_open(&b, DEALT ",\"iothread-vq-balance\":true");
    for (unsigned i = 0; i < 20 && !all_moves(&b); i++) {
        /* One on its way works again when it has arrived. */
        work(&b, HOT, 60 * MS);
        for (unsigned n = 0; n < NUM_QUEUES; n++) {
            if (HOT & 1 << n) {
                add_read(&b, shm_queue(b.dev, n), LUN_LAZY);
                shm_flush(shm_queue(b.dev, n));
            }
        }
        step(&b);
    }
    expect_works(&b);
    read_info(&b, info);
    g_assert_cmpuint(info[0].moves + info[2].moves, ==, 1);
    balance_close(&b);
}

/* Load that is even, or that one queue makes, moves nothing. */
static void test_still(void)
{
    Balance b;

    balance_open(&b, DEALT ",\"iothread-vq-balance\":true");
    work_periods(&b, EVEN, 4);
    g_assert_cmpuint(all_moves(&b), ==, 0);
    work_periods(&b, 1 << 2, 4);
    g_assert_cmpuint(all_moves(&b), ==, 0);
    /* Nor does none. */
    for (unsigned i = 0; i < 8; i++) {
        step(&b);
    }
    g_assert_cmpuint(all_moves(&b), ==, 0);
    balance_close(&b);
}

static bool hmp_tells_share(Balance *b)
{
    g_autofree char *said = qtest_hmp(b->qts, "info virtio-scsi-queues");

    return strstr(said, " share=") && strstr(said, "% iothread-busy=");
}

/* Off is off; a query only makes the device measure. */
static void test_switch(void)
{
    QueueInfo info[NUM_QUEUES];
    Balance b;

    balance_open(&b, DEALT);
    read_info(&b, info);
    g_assert_cmpint(info[0].handler_ns, ==, 0);
    work_periods(&b, HOT, 5);
    read_info(&b, info);
    g_assert_cmpuint(info[0].moves + info[2].moves, ==, 0);
    /* Each was busy for more than 60 of 100 ms. */
    g_assert_cmpfloat(info[0].share, >=, 0.6);
    g_assert_cmpfloat(info[0].busy, >=, info[0].share);
    g_assert_cmpfloat(info[1].share, ==, 0);
    g_assert_cmpfloat(info[3].busy, <, 0.6);

    set(&b, "iothread-vq-balance", "true");
    work_until_moved(&b, HOT);
    set(&b, "iothread-vq-mapping", "[{'iothread': 't0'}, {'iothread': 't1'}]");
    set(&b, "iothread-vq-balance", "false");
    read_info(&b, info);
    work_periods(&b, HOT, 5);
    g_assert_cmpuint(all_moves(&b), ==, info[0].moves + info[2].moves);

    /* A device that rests has no load, and works again. */
    step(&b);
    step(&b);
    read_info(&b, info);
    g_assert_cmpfloat(info[0].share, ==, 0);
    work_periods(&b, HOT, 2);
    read_info(&b, info);
    g_assert_cmpfloat(info[0].share, >=, 0.6);
    g_assert_true(hmp_tells_share(&b));

    /* While the main loop owns the queues, nobody measures. */
    qtest_qmp_assert_success(b.qts, "{'execute': 'stop'}");
    read_info(&b, info);
    g_assert_cmpfloat(info[0].share, ==, -1);
    g_assert_false(hmp_tells_share(&b));
    balance_close(&b);
}

/*
 * A queue whose commands don't end stays where it is.  What the guest has added
 * while it was to leave is served from the next period on.
 */
static void test_busy(void)
{
    Balance b;

    balance_open(&b, DEALT ",\"iothread-vq-balance\":true");
    b.time_goes_on = true;
    add_slow(&b, LUN_SLOW);
    work_periods(&b, HOT, 12);
    g_assert_cmpuint(all_moves(&b), ==, 0);
    expect_works(&b);
    balance_close(&b);
}

/* It leaves later, when they have ended. */
static void test_later(void)
{
    Balance b;

    balance_open(&b, DEALT ",\"iothread-vq-balance\":true");
    b.time_goes_on = true;
    work_periods(&b, HOT, 1);
    work(&b, HOT, 60 * MS);
    add_slow(&b, LUN_LATE);
    step(&b);
    work_round(&b, HOT);
    drop_slow(&b);
    for (unsigned i = 0; i < 20 && !all_moves(&b); i++) {
        work_periods(&b, HOT, 1);
    }
    g_assert_cmpuint(all_moves(&b), ==, 1);
    expect_works(&b);
    balance_close(&b);
}

static void end_by_stop(Balance *b)
{
    /* What is throttled is let go. */
    qtest_qmp_assert_success(b->qts, "{'execute': 'stop'}");
    qtest_qmp_assert_success(b->qts, "{'execute': 'cont'}");
    drop_slow(b);
}

static void end_by_remap(Balance *b)
{
    QueueInfo info[NUM_QUEUES];

    set(b, "iothread-vq-mapping", "[{'iothread': 't1'}, {'iothread': 't0'}]");
    drop_slow(b);
    read_info(b, info);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        g_assert_cmpstr(info[i].iothread, ==, i % 2 ? "t0" : "t1");
    }
}

static void end_by_reset(Balance *b)
{
    shm_reset(b->dev);
    shm_start(b->dev, SHM_EVENT_IDX);
    drop_slow(b);
}

static void end_by_off(Balance *b)
{
    set(b, "iothread-vq-balance", "false");
    end_by_stop(b);
}

/* Owners change while a queue is asked to leave, and can't. */
static void test_leaving(const void *opaque)
{
    void (*end)(Balance *b) = opaque;
    Balance b;

    balance_open(&b, DEALT ",\"iothread-vq-balance\":true");
    add_slow(&b, LUN_SLOW);
    b.time_goes_on = true;
    work_periods(&b, HOT, 2);
    end(&b);
    expect_works(&b);
    /* What the owner had set up in order to leave would come by now. */
    g_usleep(150 * 1000);
    expect_works(&b);
    balance_close(&b);
}

static void test_errors(void)
{
    static const char *const props[] = {
        "\"cmd_per_lun\":8", "\"ioeventfd\":false",
    };

    for (unsigned i = 0; i < ARRAY_SIZE(props); i++) {
        Balance b;

        balance_open(&b, props[i]);
        expect_error(&b, "iothread-vq-balance", "true",
                     "iothread-vq-balance is on, but there is no "
                     "iothread-vq-mapping");
        expect_error(&b, "iothread-vq-balance", "'maybe'", "boolean");
        set(&b, "iothread-vq-balance", "false");
        expect_works(&b);
        balance_close(&b);
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
    qtest_add_func("virtio-scsi-balance/hot", test_hot);
    qtest_add_func("virtio-scsi-balance/trace", test_trace);
    qtest_add_func("virtio-scsi-balance/in-flight", test_in_flight);
    qtest_add_func("virtio-scsi-balance/still", test_still);
    qtest_add_func("virtio-scsi-balance/switch", test_switch);
    qtest_add_func("virtio-scsi-balance/busy", test_busy);
    qtest_add_func("virtio-scsi-balance/later", test_later);
    qtest_add_data_func("virtio-scsi-balance/leaving/stop", end_by_stop,
                        test_leaving);
    qtest_add_data_func("virtio-scsi-balance/leaving/remap", end_by_remap,
                        test_leaving);
    qtest_add_data_func("virtio-scsi-balance/leaving/reset", end_by_reset,
                        test_leaving);
    qtest_add_data_func("virtio-scsi-balance/leaving/off", end_by_off,
                        test_leaving);
    qtest_add_func("virtio-scsi-balance/errors", test_errors);
    return g_test_run();
}
