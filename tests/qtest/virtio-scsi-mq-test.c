/*
 * virtio-scsi with its request queues on several IOThreads
 *
 * The controller is created with iothread-vq-mapping, on the command line or
 * by device_add, and driven by the driver in virtio-scsi-mq-common.c.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "scsi/constants.h"
#include "standard-headers/linux/virtio_config.h"
#include "libqos/qgraph.h"
#include "virtio-scsi-mq-common.h"

#define CTRL_SLOT   9
#define LUN_BYTES   ((unsigned)(16 * MiB))
#define LUN_BLOCKS  (LUN_BYTES / 512)
#define MAX_IOTHREADS 16

typedef enum Backend {
    BACKEND_ZEROES,     /* null-co: completes in the submitting AioContext */
    BACKEND_NULL,       /* the same, but nobody is told that it reads zeroes */
    BACKEND_SLOW,       /* null-co that takes SLOW_NS for each request */
    BACKEND_FILE,       /* a raw file */
} Backend;

/*
 * Requests on a slow backend are certainly in flight when the next thing is
 * done to the device; where they must not be too late, there is a check.
 */
#define SLOW_NS "500000000"

typedef struct MqConfig {
    unsigned iothreads;
    unsigned luns;
    Backend backend;
    bool no_controller;     /* the test adds it, or none */
    const char *controller; /* JSON members besides driver, id, addr, bus */
    unsigned form;          /* for mq_start() */
} MqConfig;

#define MAP2 "\"iothread-vq-mapping\":[{\"iothread\":\"iot0\"}," \
             "{\"iothread\":\"iot1\"}]"
#define MAP3 "\"iothread-vq-mapping\":[{\"iothread\":\"iot0\"}," \
             "{\"iothread\":\"iot1\"},{\"iothread\":\"iot2\"}]"
#define MAP4 "\"iothread-vq-mapping\":[{\"iothread\":\"iot0\"}," \
             "{\"iothread\":\"iot1\"},{\"iothread\":\"iot2\"}," \
             "{\"iothread\":\"iot3\"}]"

/* Host side of BACKEND_FILE; the files have no name any more. */
static int lun_fd[8];

/*
 * Command line
 */

static void add_backend(GString *cmd, const MqConfig *cfg, unsigned lun)
{
    if (cfg->backend == BACKEND_FILE) {
        g_autofree char *path = mq_open_unnamed(&lun_fd[lun]);

        g_assert_cmpint(ftruncate(lun_fd[lun], LUN_BYTES), ==, 0);
        g_string_append_printf(cmd,
            " -blockdev '{\"driver\":\"raw\",\"node-name\":\"disk%u\","
            "\"file\":{\"driver\":\"file\",\"locking\":\"off\","
            "\"filename\":\"%s\"}}'", lun, path);
        return;
    }
    g_string_append_printf(cmd,
        " -blockdev '{\"driver\":\"null-co\",\"node-name\":\"disk%u\","
        "\"size\":%u,\"read-zeroes\":%s,\"latency-ns\":%s}'",
        lun, LUN_BYTES, cfg->backend == BACKEND_NULL ? "false" : "true",
        cfg->backend == BACKEND_SLOW ? SLOW_NS : "0");
}

/* All JSON: plain -device options would be created before JSON ones. */
static void *mq_before(GString *cmd, void *arg)
{
    const MqConfig *cfg = arg;

    /* The tests leave the VM in a state of their own: never use it twice. */
    qos_invalidate_command_line();

    g_string_append(cmd, " -name debug-threads=on");
    for (unsigned i = 0; i < cfg->iothreads; i++) {
        g_string_append_printf(cmd, " -object '{\"qom-type\":\"iothread\","
                               "\"id\":\"iot%u\",\"poll-max-ns\":0}'", i);
    }
    for (unsigned i = 0; i < cfg->luns; i++) {
        add_backend(cmd, cfg, i);
    }
    if (cfg->no_controller) {
        return arg;
    }
    g_string_append_printf(cmd, " -device '{\"driver\":\"virtio-scsi-pci\","
                           "\"id\":\"vs\",\"addr\":\"%u\",%s}'",
                           CTRL_SLOT, cfg->controller);
    for (unsigned i = 0; i < cfg->luns; i++) {
        g_string_append_printf(cmd, " -device '{\"driver\":\"scsi-hd\","
                               "\"id\":\"hd%u\",\"drive\":\"disk%u\","
                               "\"bus\":\"vs.0\",\"channel\":0,\"scsi-id\":0,"
                               "\"lun\":%u}'", i, i, i);
    }
    return arg;
}

static void mq_after(const MqConfig *cfg)
{
    for (unsigned i = 0; cfg->backend == BACKEND_FILE && i < cfg->luns; i++) {
        close(lun_fd[i]);
    }
}

static MqDev *mq_begin(QPCIBus *bus, QGuestAllocator *alloc,
                       const MqConfig *cfg, size_t data_max)
{
    MqDev *d = mq_open(bus, alloc, CTRL_SLOT);

    mq_start(d, cfg->form, data_max);
    for (unsigned lun = 0; lun < cfg->luns; lun++) {
        mq_clear_ua(mq_queue(d, 0), 0, lun);
    }
    return d;
}

static void mq_end(MqDev *d, const MqConfig *cfg)
{
    mq_reset(d);
    mq_close(d);
    mq_after(cfg);
}

/*
 * Which host thread works?
 *
 * With polling off an IOThread sleeps in ppoll() until a kick of one of its
 * queues wakes it up, and the kernel counts how often it went to sleep.
 */

typedef struct Threads {
    pid_t pid;
    unsigned n;
    int64_t tid[MAX_IOTHREADS];
    uint64_t sleeps[MAX_IOTHREADS];
} Threads;

static uint64_t thread_sleeps(pid_t pid, int64_t tid)
{
    g_autofree char *path =
        g_strdup_printf("/proc/%d/task/%" PRId64 "/status", (int)pid, tid);
    g_autofree char *text = NULL;
    const char *line;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    line = strstr(text, "\nvoluntary_ctxt_switches:");
    g_assert_nonnull(line);
    return g_ascii_strtoull(strchr(line, ':') + 1, NULL, 10);
}

static void threads_mark(Threads *t)
{
    for (unsigned i = 0; i < t->n; i++) {
        t->sleeps[i] = thread_sleeps(t->pid, t->tid[i]);
    }
}

static uint64_t threads_slept(const Threads *t, unsigned i)
{
    g_assert_cmpuint(i, <, t->n);
    return thread_sleeps(t->pid, t->tid[i]) - t->sleeps[i];
}

/* IOThread "iot<i>" gets index i. */
static void threads_find(QTestState *qts, Threads *t)
{
    g_autoptr(QDict) resp = qtest_qmp(qts, "{'execute': 'query-iothreads'}");
    const QListEntry *e;

    memset(t, 0, sizeof(*t));
    t->pid = qtest_pid(qts);
    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), e) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(e));
        unsigned i = atoi(qdict_get_str(info, "id") + strlen("iot"));

        g_assert_cmpuint(i, <, MAX_IOTHREADS);
        t->tid[i] = qdict_get_int(info, "thread-id");
        t->n++;
    }
    threads_mark(t);
}

/*
 * Was IOThread @expected woken up by @rounds events, and no other one?  On a
 * busy host a thread that is late sees several events at one wake-up, and any
 * may be woken up now and then for other reasons.
 */
static void expect_only_thread(const Threads *t, unsigned rounds,
                               unsigned expected)
{
    for (unsigned i = 0; i < t->n; i++) {
        uint64_t slept = threads_slept(t, i);

        if (i == expected) {
            g_assert_cmpuint(slept, >=, rounds / 6);
        } else {
            g_assert_cmpuint(slept, <=, rounds / 10);
        }
    }
}

/* Drive queue @vq and see that IOThread @expected serves it, alone. */
static void check_queue_thread(MqDev *d, Threads *t, unsigned vq,
                               unsigned expected)
{
    enum { ROUNDS = 60 };

    threads_mark(t);
    for (unsigned i = 0; i < ROUNDS; i++) {
        MqCmd cmd = mq_read10(0, i, 1);

        mq_run_good(mq_queue(d, vq), &cmd, NULL);
    }
    expect_only_thread(t, ROUNDS, expected);
}

/*
 * Data: each block carries its own number and a seed
 */

static void check_pattern(const void *buf, uint32_t lba, unsigned blocks,
                          uint32_t seed)
{
    g_autofree uint8_t *want = g_malloc(blocks * 512);

    mq_fill_pattern(want, lba, blocks, seed);
    g_assert_cmpmem(buf, blocks * 512, want, blocks * 512);
}

static void check_file(unsigned lun, uint32_t lba, unsigned blocks,
                       uint32_t seed)
{
    g_autofree uint8_t *buf = g_malloc(blocks * 512);

    g_assert_cmpint(pread(lun_fd[lun], buf, blocks * 512, lba * 512ull), ==,
                    blocks * 512);
    check_pattern(buf, lba, blocks, seed);
}

static void check_good_resp(const struct virtio_scsi_cmd_resp *resp)
{
    mq_assert_good(resp);
    g_assert_cmpuint(le32_to_cpu(resp->resid), ==, 0);
}

static void check_good(MqSlot *slot)
{
    struct virtio_scsi_cmd_resp resp;

    mq_read_resp(slot, &resp, sizeof(resp));
    check_good_resp(&resp);
}

/* Write through each queue, read back through the next one. */
static void cross_queue_data(MqDev *d, unsigned lun, uint32_t seed)
{
    enum { BLOCKS = 8 };
    uint8_t buf[BLOCKS * 512];

    for (unsigned i = 0; i < d->num_queues; i++) {
        uint32_t lba = i * 64;
        MqCmd cmd;

        mq_fill_pattern(buf, lba, BLOCKS, seed);
        cmd = mq_write10(lun, lba, BLOCKS, buf);
        mq_run_good(mq_queue(d, i), &cmd, NULL);

        memset(buf, 0, sizeof(buf));
        cmd = mq_read10(lun, lba, BLOCKS);
        mq_run_good(mq_queue(d, (i + 1) % d->num_queues), &cmd, buf);
        check_pattern(buf, lba, BLOCKS, seed);
        check_file(lun, lba, BLOCKS, seed);
    }
}

/* For backends that keep nothing: each queue still works. */
static void cross_queue_read(MqDev *d)
{
    for (unsigned i = 0; i < d->num_queues; i++) {
        MqCmd cmd = mq_read10(0, i, 1);
        uint8_t buf[512], zero[512] = { 0 };

        mq_run_good(mq_queue(d, i), &cmd, buf);
        g_assert_cmpmem(buf, sizeof(buf), zero, sizeof(zero));
    }
}

/*
 * Each queue has an area of each LUN.  Fill all queues to the brim, kick them
 * all, and let them be full all together; every slot writes one block.
 */
static unsigned fill_queue(MqDev *d, const MqConfig *cfg, unsigned vq,
                           bool write, uint32_t seed)
{
    MqQueue *q = mq_queue(d, vq);
    uint8_t buf[512];

    for (unsigned i = 0; i < q->num_slots; i++) {
        unsigned lun = i % cfg->luns;
        uint32_t lba = (vq * q->num_slots + i) % LUN_BLOCKS;
        MqCmd cmd = mq_read10(lun, lba, 1);
        MqSlot *slot;

        if (write) {
            mq_fill_pattern(buf, lba, 1, seed);
            cmd = mq_write10(lun, lba, 1, buf);
        }
        slot = mq_post_cmd(q, &cmd);
        g_assert_nonnull(slot);
        g_assert_true(slot == &q->slots[i]);
    }
    g_assert_cmpuint(q->in_flight, ==, q->num_slots);
    return q->num_slots;
}

static void finish_queue(MqDev *d, unsigned vq, bool read, uint32_t seed)
{
    MqQueue *q = mq_queue(d, vq);
    g_autofree uint8_t *all = NULL;

    mq_wait_idle(q);
    all = mq_read_slots(q);
    for (unsigned i = 0; i < q->num_slots; i++) {
        uint32_t lba = (vq * q->num_slots + i) % LUN_BLOCKS;
        const MqSlot *slot = &q->slots[i];
        struct virtio_scsi_cmd_resp resp;

        g_assert_true(slot->done);
        memcpy(&resp, all + (slot->resp - q->mem), sizeof(resp));
        check_good_resp(&resp);
        if (read) {
            check_pattern(all + (slot->data - q->mem), lba, 1, seed);
        }
        mq_release(&q->slots[i]);
    }
}

static void full_round(MqDev *d, const MqConfig *cfg, bool write,
                       uint32_t seed)
{
    for (unsigned i = 0; i < d->num_queues; i++) {
        fill_queue(d, cfg, i, write, seed);
    }
    for (unsigned i = 0; i < d->num_queues; i++) {
        mq_flush(mq_queue(d, i));
    }
    for (unsigned i = 0; i < d->num_queues; i++) {
        finish_queue(d, i, !write, seed);
    }
}

static void test_full_depth(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_begin(obj, alloc, cfg, 512);

    for (uint32_t seed = 1; seed <= 3; seed++) {
        full_round(d, cfg, true, seed);
        full_round(d, cfg, false, seed);
    }
    mq_end(d, cfg);
}

static void test_data(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const unsigned forms[] = {
        MQ_SPLIT,
        MQ_SPLIT | MQ_INDIRECT,
        MQ_SPLIT | MQ_EVENT_IDX,
        MQ_SPLIT | MQ_INDIRECT | MQ_EVENT_IDX,
        MQ_PACKED,
        MQ_PACKED | MQ_INDIRECT,
        MQ_PACKED | MQ_EVENT_IDX,
        MQ_PACKED | MQ_INDIRECT | MQ_EVENT_IDX,
    };
    const MqConfig *cfg = arg;
    MqDev *d = mq_open(obj, alloc, CTRL_SLOT);
    bool modern = mq_is_modern(d);

    g_assert_cmpint(modern, ==, !strstr(cfg->controller, "disable-modern"));
    for (unsigned i = 0; i < ARRAY_SIZE(forms); i++) {
        if ((forms[i] & MQ_PACKED) && !modern) {
            continue;
        }
        g_test_message("ring form 0x%x", forms[i]);
        mq_start(d, cfg->form | forms[i], 8 * 512);
        for (unsigned lun = 0; lun < cfg->luns; lun++) {
            mq_clear_ua(mq_queue(d, 0), 0, lun);
            cross_queue_data(d, lun, i * cfg->luns + lun + 1);
        }
        /* Twice, so that positions wrap round */
        full_round(d, cfg, true, 100 + i);
        full_round(d, cfg, false, 100 + i);
        mq_reset(d);
    }
    mq_close(d);
    mq_after(cfg);
}

/* Queue i must be served by IOThread number iothread_of[i]. */
static void check_map(QPCIBus *bus, QGuestAllocator *alloc,
                      const MqConfig *cfg, unsigned num_queues,
                      const uint8_t *iothread_of)
{
    MqDev *d = mq_begin(bus, alloc, cfg, 512);
    Threads t;

    g_assert_cmpuint(d->num_queues, ==, num_queues);
    threads_find(d->qts, &t);
    g_assert_cmpuint(t.n, ==, cfg->iothreads);
    for (unsigned i = 0; i < num_queues; i++) {
        check_queue_thread(d, &t, i, iothread_of[i]);
    }
    mq_end(d, cfg);
}

static void test_map_round_robin(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint8_t want[] = { 0, 1, 2, 0, 1, 2, 0 };

    check_map(obj, alloc, arg, ARRAY_SIZE(want), want);
}

static void test_map_vqs(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint8_t want[] = { 1, 2, 2, 0, 1, 0 };

    check_map(obj, alloc, arg, ARRAY_SIZE(want), want);
}

static void test_map_single(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint8_t want[] = { 1, 1, 1 };

    check_map(obj, alloc, arg, ARRAY_SIZE(want), want);
}

static void test_many_queues(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_begin(obj, alloc, cfg, 512);
    Threads t;

    g_assert_cmpuint(d->num_queues, ==, 64);
    threads_find(d->qts, &t);
    for (unsigned i = 0; i < 64; i += 9) {
        check_queue_thread(d, &t, i, i % 4);
    }
    full_round(d, cfg, true, 0);
    mq_end(d, cfg);
}

/*
 * Interrupts: each queue has an MSI-X vector of its own
 */

static void one_tur(MqQueue *q)
{
    MqCmd cmd = { .tag = mq_next_tag() };

    mq_run_good(q, &cmd, NULL);
}

static void wait_interrupt(MqQueue *q)
{
    gint64 start = 0;

    while (!mq_interrupted(q)) {
        mq_pause(&start, "an interrupt");
    }
}

static void test_interrupts(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const unsigned forms[] = {
        MQ_SPLIT, MQ_SPLIT | MQ_EVENT_IDX, MQ_PACKED, MQ_PACKED | MQ_EVENT_IDX
    };
    const MqConfig *cfg = arg;
    MqDev *d = mq_open(obj, alloc, CTRL_SLOT);

    for (unsigned f = 0; f < ARRAY_SIZE(forms); f++) {
        mq_start(d, forms[f] | MQ_MSIX, 512);
        mq_clear_ua(mq_queue(d, 0), 0, 0);
        do {
            g_usleep(20000);
        } while (mq_interrupted(mq_queue(d, 0)));

        for (unsigned i = 0; i < d->num_queues; i++) {
            MqQueue *q = mq_queue(d, i);

            for (unsigned n = 0; n < 4; n++) {
                mq_want_interrupt(q, true);
                one_tur(q);
                wait_interrupt(q);
            }
            mq_want_interrupt(q, false);
            one_tur(q);
            mq_want_interrupt(mq_ctrl(d), true);
            mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 0, 1);
            wait_interrupt(mq_ctrl(d));
            g_usleep(5000);
            for (unsigned j = 0; j < d->num_vqs; j++) {
                g_assert_false(mq_interrupted(d->vqs[j]));
            }
        }
        mq_reset(d);
    }
    mq_close(d);
    mq_after(cfg);
}

/*
 * Bad mappings
 */

typedef struct BadMapping {
    const char *what;
    const char *props;      /* JSON members of the controller */
    const char *words[4];   /* that the message must have */
} BadMapping;

#define MAPPING(list) "\"num_queues\":4,\"iothread-vq-mapping\":[" list "]"
#define ENTRY(id) "{\"iothread\":\"" id "\"}"
#define ENTRY_VQS(id, vqs) "{\"iothread\":\"" id "\",\"vqs\":[" vqs "]}"

static const BadMapping bad_mappings[] = {
    {
        "unknown IOThread", MAPPING(ENTRY("iot0") "," ENTRY("nosuch")),
        { "nosuch" },
    }, {
        "IOThread twice",
        MAPPING(ENTRY("iot0") "," ENTRY("iot1") "," ENTRY("iot0")),
        { "iot0", "twice" },
    }, {
        "IOThread twice, with vqs",
        MAPPING(ENTRY_VQS("iot1", "0,1") "," ENTRY_VQS("iot1", "2,3")),
        { "iot1", "twice" },
    }, {
        "first entry alone has vqs",
        MAPPING(ENTRY_VQS("iot0", "0,1,2,3") "," ENTRY("iot1")),
        { "vqs", "iot1" },
    }, {
        "second entry alone has vqs",
        MAPPING(ENTRY("iot0") "," ENTRY_VQS("iot1", "0,1,2,3")),
        { "vqs", "iot0" },
    }, {
        "index equal to num_queues",
        MAPPING(ENTRY_VQS("iot0", "0,1") "," ENTRY_VQS("iot2", "2,3,4")),
        { "vqs", "iot2", "4" },
    }, {
        "index above 65535",
        MAPPING(ENTRY_VQS("iot0", "0,1") "," ENTRY_VQS("iot1", "2,70000")),
        { "vqs", "iot1", "70000" },
    }, {
        "index that is 0 in 16 bits",
        MAPPING(ENTRY_VQS("iot1", "65536,1,2,3")),
        { "vqs", "iot1", "65536" },
    }, {
        "index that is 0 in 32 bits",
        MAPPING(ENTRY_VQS("iot1", "1,4294967296,2,3")),
        { "vqs", "iot1", "4294967296" },
    }, {
        "negative index",
        MAPPING(ENTRY_VQS("iot0", "0,1") "," ENTRY_VQS("iot1", "2,-1")),
        { "vqs", "iot1", "-1" },
    }, {
        "queue twice in one entry",
        MAPPING(ENTRY_VQS("iot0", "0,1") "," ENTRY_VQS("iot1", "2,3,2")),
        { "iot1", "2" },
    }, {
        "queue in two entries",
        MAPPING(ENTRY_VQS("iot0", "0,1") "," ENTRY_VQS("iot1", "2,3,1")),
        { "iot0", "iot1", "1" },
    }, {
        "queue in no entry",
        MAPPING(ENTRY_VQS("iot0", "0,1") "," ENTRY_VQS("iot1", "3")),
        { "vqs", "queue 2" },
    }, {
        "empty list", MAPPING(""),
        { "IOThread" },
    }, {
        "empty vqs",
        MAPPING(ENTRY_VQS("iot0", "0,1,2,3") "," ENTRY_VQS("iot2", "")),
        { "vqs", "iot2", "empty" },
    }, {
        "all vqs empty", MAPPING(ENTRY_VQS("iot2", "")),
        { "vqs", "iot2", "empty" },
    }, {
        "with iothread", "\"iothread\":\"iot0\"," MAPPING(ENTRY("iot1")),
        { "iothread" },
    }, {
        "without ioeventfd", "\"ioeventfd\":false," MAPPING(ENTRY("iot1")),
        { "ioeventfd" },
    },
};

static void check_message(const BadMapping *bad, const char *text)
{
    g_test_message("%s: %s", bad->what, text);
    /* Who reads it must find the property. */
    g_assert_nonnull(strstr(text, "iothread-vq-mapping"));
    for (unsigned i = 0; i < ARRAY_SIZE(bad->words) && bad->words[i]; i++) {
        g_assert_nonnull(strstr(text, bad->words[i]));
    }
}

/* Commands are built as text: the mappings are there as text. */
static QDict *qmp_text(QTestState *qts, const char *fmt, ...)
    G_GNUC_PRINTF(2, 3);
static QDict *qmp_text(QTestState *qts, const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    qtest_qmp_send_raw(qts, "%s", text);
    while (true) {
        QDict *resp = qtest_qmp_receive_dict(qts);

        if (!qdict_haskey(resp, "event")) {
            return resp;
        }
        qobject_unref(resp);
    }
}

static QDict *add_controller(QTestState *qts, const char *props)
{
    return qmp_text(qts, "{\"execute\":\"device_add\",\"arguments\":{"
                    "\"driver\":\"virtio-scsi-pci\",\"id\":\"vs\","
                    "\"addr\":\"%u\",%s}}", CTRL_SLOT, props);
}

static void add_controller_ok(QTestState *qts, const char *props)
{
    g_autoptr(QDict) resp = add_controller(qts, props);

    g_assert_true(qdict_haskey(resp, "return"));
}

static void add_null_node(QTestState *qts, const char *name,
                          unsigned latency_ns)
{
    qtest_qmp_assert_success(qts,
        "{'execute': 'blockdev-add', 'arguments': {'driver': 'null-co',"
        " 'node-name': %s, 'read-zeroes': true, 'size': %u,"
        " 'latency-ns': %u}}", name, LUN_BYTES, latency_ns);
}

static void add_disk(QTestState *qts, const char *id, const char *node,
                     unsigned target, unsigned lun)
{
    qtest_qmp_assert_success(qts,
        "{'execute': 'device_add', 'arguments': {'driver': 'scsi-hd',"
        " 'id': %s, 'drive': %s, 'bus': 'vs.0', 'channel': 0,"
        " 'scsi-id': %u, 'lun': %u}}", id, node, target, lun);
}

static bool device_exists(QTestState *qts, const char *id)
{
    g_autoptr(QDict) resp = qtest_qmp(qts,
        "{'execute': 'qom-list', 'arguments': {"
        "'path': '/machine/peripheral'}}");
    const QListEntry *e;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), e) {
        QDict *prop = qobject_to(QDict, qlist_entry_obj(e));

        if (g_str_equal(qdict_get_str(prop, "name"), id)) {
            return true;
        }
    }
    return false;
}

static void del_iothreads(QTestState *qts, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        g_autofree char *id = g_strdup_printf("iot%u", i);

        qtest_qmp_assert_success(qts,
            "{'execute': 'object-del', 'arguments': {'id': %s}}", id);
    }
}

static void add_iothreads(QTestState *qts, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        g_autofree char *id = g_strdup_printf("iot%u", i);

        qtest_qmp_assert_success(qts,
            "{'execute': 'object-add', 'arguments': {'id': %s,"
            " 'qom-type': 'iothread', 'poll-max-ns': 0}}", id);
    }
}

/* No IOThread may be left running behind the back of query-iothreads. */
static unsigned count_iothread_tasks(QTestState *qts)
{
    g_autofree char *path =
        g_strdup_printf("/proc/%d/task", (int)qtest_pid(qts));
    GDir *dir = g_dir_open(path, 0, NULL);
    unsigned n = 0;
    const char *name;

    g_assert_nonnull(dir);
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *file = g_strdup_printf("%s/%s/comm", path, name);
        g_autofree char *comm = NULL;

        if (g_file_get_contents(file, &comm, NULL, NULL) &&
            g_str_has_prefix(comm, "IO iot")) {
            n++;
        }
    }
    g_dir_close(dir);
    return n;
}

static void expect_iothread_tasks(QTestState *qts, unsigned n)
{
    gint64 start = 0;

    while (count_iothread_tasks(qts) != n) {
        mq_pause(&start, "IOThreads to come or go");
    }
}

static void work_a_little(QPCIBus *bus, QGuestAllocator *alloc,
                          unsigned iothreads)
{
    MqDev *d = mq_open(bus, alloc, CTRL_SLOT);
    Threads t;

    mq_start(d, MQ_SPLIT, 512);
    mq_clear_ua(mq_queue(d, 0), 0, 0);
    threads_find(d->qts, &t);
    for (unsigned i = 0; i < d->num_queues; i++) {
        check_queue_thread(d, &t, i, i % iothreads);
    }
    mq_reset(d);
    mq_close(d);
}

static void test_errors_qmp(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    QPCIBus *bus = obj;
    QTestState *qts = bus->qts;

    for (unsigned i = 0; i < ARRAY_SIZE(bad_mappings); i++) {
        g_autoptr(QDict) resp = add_controller(qts, bad_mappings[i].props);
        QDict *error;

        g_test_message("%s", bad_mappings[i].what);
        g_assert_true(qdict_haskey(resp, "error"));
        error = qdict_get_qdict(resp, "error");
        g_assert_cmpstr(qdict_get_str(error, "class"), ==, "GenericError");
        check_message(&bad_mappings[i], qdict_get_str(error, "desc"));

        g_assert_false(device_exists(qts, "vs"));
        expect_iothread_tasks(qts, cfg->iothreads);
        del_iothreads(qts, cfg->iothreads);
        expect_iothread_tasks(qts, 0);
        add_iothreads(qts, cfg->iothreads);
    }
    add_controller_ok(qts, MAPPING(ENTRY("iot0") "," ENTRY("iot1") ","
                                   ENTRY("iot2")));
    g_assert_true(device_exists(qts, "vs"));
    add_disk(qts, "hd0", "disk0", 0, 0);
    work_a_little(bus, alloc, 3);
    mq_after(cfg);
}

/* Run QEMU until it stops by itself; @input goes to its monitor. */
static int run_qemu(const char *props, const char *input, char **err)
{
    g_autofree char *controller =
        g_strdup_printf("{\"driver\":\"virtio-scsi-pci\",\"id\":\"vs\",%s}",
                        props);
    g_autofree char *script =
        g_strdup_printf("printf '%s' | exec \"$@\"", input);
    const char *argv[] = {
        "/bin/sh", "-c", script, "sh", getenv("QTEST_QEMU_BINARY"),
        "-M", "pc", "-accel", "qtest", "-nodefaults", "-display", "none",
        "-monitor", "stdio",
        "-object", "iothread,id=iot0", "-object", "iothread,id=iot1",
        "-object", "iothread,id=iot2", "-object", "iothread,id=iot3",
        "-device", controller, NULL
    };
    g_autofree char *out = NULL;
    int status;

    g_assert_true(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_DEFAULT,
                               NULL, NULL, &out, err, &status, NULL));
    g_assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_errors_cmdline(void *obj, void *arg, QGuestAllocator *alloc)
{
    for (unsigned i = 0; i < ARRAY_SIZE(bad_mappings); i++) {
        g_autofree char *err = NULL;

        g_assert_cmpint(run_qemu(bad_mappings[i].props, "quit\\n", &err),
                        ==, 1);
        check_message(&bad_mappings[i], err);
    }
}

/* More IOThreads than queues: one warning, which names the idle ones */
static void test_idle_iothreads(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint8_t want[] = { 0, 1 };
    g_autofree char *err = NULL;
    const char *warning;

    check_map(obj, alloc, arg, ARRAY_SIZE(want), want);

    g_assert_cmpint(run_qemu(MAP4 ",\"num_queues\":2", "quit\\n", &err),
                    ==, 0);
    warning = strstr(err, "warning:");
    g_assert_nonnull(warning);
    g_assert_null(strstr(warning + 1, "warning:"));
    g_assert_nonnull(strstr(warning, "iothread-vq-mapping"));
    g_assert_nonnull(strstr(warning, "iot2"));
    g_assert_nonnull(strstr(warning, "iot3"));
    g_assert_null(strstr(warning, "iot0"));
    g_assert_null(strstr(warning, "iot1"));
}

/* device_del and the guest's answer to it, then wait until it is gone */
static void unplug_controller(QTestState *qts)
{
    enum { PCIHP_EJECT = 0xae08 };

    qtest_qmp_device_del_send(qts, "vs");
    qtest_outl(qts, PCIHP_EJECT, 1u << CTRL_SLOT);
    while (true) {
        g_autoptr(QDict) event =
            qtest_qmp_eventwait_ref(qts, "DEVICE_DELETED");
        const char *id =
            qdict_get_try_str(qdict_get_qdict(event, "data"), "device");

        if (id && g_str_equal(id, "vs")) {
            break;
        }
    }
    g_assert_false(device_exists(qts, "vs"));
}

static void expect_iothread_in_use(QTestState *qts, const char *id)
{
    g_autoptr(QDict) resp = qtest_qmp(qts,
        "{'execute': 'object-del', 'arguments': {'id': %s}}", id);
    QDict *error = qdict_get_qdict(resp, "error");

    g_assert_nonnull(error);
    g_assert_cmpstr(qdict_get_str(error, "class"), ==, "GenericError");
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), id));
}

/*
 * While the controller is there its IOThreads can't be deleted.  Unplug it
 * with full queues: they can be, and everything can be set up again.
 */
static void test_unplug_controller(void *obj, void *arg,
                                   QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    QPCIBus *bus = obj;
    QTestState *qts = bus->qts;

    for (unsigned round = 0; round < 3; round++) {
        MqDev *d = mq_begin(bus, alloc, cfg, 512);

        for (unsigned i = 0; i < cfg->iothreads; i++) {
            g_autofree char *id = g_strdup_printf("iot%u", i);

            expect_iothread_in_use(qts, id);
        }
        for (unsigned i = 0; i < d->num_queues; i++) {
            fill_queue(d, cfg, i, round & 1, round);
            mq_flush(mq_queue(d, i));
        }
        unplug_controller(qts);
        mq_close(d);

        del_iothreads(qts, cfg->iothreads);
        expect_iothread_tasks(qts, 0);
        add_iothreads(qts, cfg->iothreads);
        add_controller_ok(qts, cfg->controller);
        for (unsigned lun = 0; lun < cfg->luns; lun++) {
            g_autofree char *id = g_strdup_printf("hd%u", lun);
            g_autofree char *node = g_strdup_printf("disk%u", lun);

            add_disk(qts, id, node, 0, lun);
        }
    }
    mq_after(cfg);
}

/*
 * Reset, stop, early kicks
 */

static void fill_all(MqDev *d, const MqConfig *cfg, bool write, uint32_t seed)
{
    for (unsigned i = 0; i < d->num_queues; i++) {
        fill_queue(d, cfg, i, write, seed);
    }
    for (unsigned i = 0; i < d->num_queues; i++) {
        mq_flush(mq_queue(d, i));
    }
}

/* The device's part of a ring and the slots, to see late writes */
static GByteArray *snapshot(MqDev *d)
{
    GByteArray *all = g_byte_array_new();

    for (unsigned i = 0; i < d->num_queues; i++) {
        MqQueue *q = mq_queue(d, i);
        size_t ring = q->pci.vq.used + 6 + 8 * q->pci.vq.size -
                      q->pci.vq.desc;
        size_t slots = q->stride * q->num_slots;
        guint at = all->len;

        g_byte_array_set_size(all, at + ring + slots);
        mq_read_mem(d, q->pci.vq.desc, all->data + at, ring);
        mq_read_mem(d, q->mem, all->data + at + ring, slots);
    }
    return all;
}

static void test_reset(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_open(obj, alloc, CTRL_SLOT);
    unsigned rounds = 4;

    for (unsigned round = 0; round < rounds; round++) {
        mq_start(d, cfg->form, 512);
        for (unsigned lun = 0; lun < cfg->luns; lun++) {
            mq_clear_ua(mq_queue(d, 0), 0, lun);
        }
        fill_all(d, cfg, round & 1, round);
        /* Status 0 while requests are on their way, or well in flight */
        g_usleep(round * 10000);
        qvirtio_reset(d->vdev);
        if (round == rounds - 1) {
            g_autoptr(GByteArray) before = snapshot(d);
            g_autoptr(GByteArray) after = NULL;

            /* Longer than the requests would have taken */
            g_usleep(700 * 1000);
            after = snapshot(d);
            g_assert_cmpmem(before->data, before->len,
                            after->data, after->len);
        }
        mq_reset(d);
    }
    mq_start(d, cfg->form, 512);
    mq_clear_ua(mq_queue(d, 1), 0, 0);
    cross_queue_read(d);
    mq_reset(d);
    mq_close(d);
    mq_after(cfg);
}

static void test_system_reset(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    QPCIBus *bus = obj;

    for (unsigned round = 0; round < 3; round++) {
        MqDev *d = mq_begin(bus, alloc, cfg, 512);

        fill_all(d, cfg, round & 1, round);
        g_usleep(round * 10000);
        qtest_system_reset(bus->qts);
        mq_close(d);
    }
    mq_end(mq_begin(bus, alloc, cfg, 512), cfg);
}

static unsigned total_in_flight(MqDev *d)
{
    unsigned n = 0;

    for (unsigned i = 0; i < d->num_queues; i++) {
        mq_reap(mq_queue(d, i));
        n += mq_queue(d, i)->in_flight;
    }
    return n;
}

static void qmp_and_wait(QTestState *qts, const char *command,
                         const char *event)
{
    qtest_qmp_assert_success(qts, "{'execute': %s}", command);
    qtest_qmp_eventwait(qts, event);
}

static void test_stop_cont(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_begin(obj, alloc, cfg, 512);

    for (uint32_t round = 0; round < 12; round++) {
        unsigned left;

        for (unsigned i = 0; i < d->num_queues; i++) {
            fill_queue(d, cfg, i, true, round);
        }
        /* Every third round some queues are kicked only afterwards. */
        for (unsigned i = round % 3; i < d->num_queues; i++) {
            mq_flush(mq_queue(d, i));
        }
        qmp_and_wait(d->qts, "stop", "STOP");
        left = total_in_flight(d);
        g_usleep(10000);
        g_assert_cmpuint(total_in_flight(d), ==, left);
        qmp_and_wait(d->qts, "cont", "RESUME");
        for (unsigned i = 0; i < round % 3; i++) {
            mq_flush(mq_queue(d, i));
        }
        for (unsigned i = 0; i < d->num_queues; i++) {
            finish_queue(d, i, false, round);
        }
        full_round(d, cfg, false, round);
    }
    mq_end(d, cfg);
}

static void test_early_kick(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_open(obj, alloc, CTRL_SLOT);
    Threads t;

    mq_setup(d, cfg->form, 512);
    for (unsigned i = 0; i < d->num_queues; i++) {
        MqCmd cmd = { .tag = mq_next_tag() };

        mq_post_cmd(mq_queue(d, i), &cmd);
        mq_publish(mq_queue(d, i));
        mq_kick(mq_queue(d, i));
    }
    g_usleep(10000);
    mq_driver_ok(d);

    /* Nobody kicks again. */
    for (unsigned i = 0; i < d->num_queues; i++) {
        MqSlot *slot = &mq_queue(d, i)->slots[0];
        struct virtio_scsi_cmd_resp resp;

        mq_wait(slot);
        mq_read_resp(slot, &resp, sizeof(resp));
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_OK);
        mq_release(slot);
    }

    /* And each queue is where it belongs. */
    mq_clear_ua(mq_queue(d, 0), 0, 0);
    threads_find(d->qts, &t);
    for (unsigned i = 0; i < d->num_queues; i++) {
        check_queue_thread(d, &t, i, i % cfg->iothreads);
    }
    mq_end(d, cfg);
}

/*
 * Notifiers that can't be set up.  An eventfd is refused when no descriptor
 * number below the limit is free: leave @spare of them.
 */
static void limit_fds(pid_t pid, unsigned spare, struct rlimit *old)
{
    struct rlimit tight;
    unsigned limit = 0;

    g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, NULL, old), ==, 0);
    for (unsigned open_after = 0; ; limit++) {
        g_autofree char *path =
            g_strdup_printf("/proc/%d/fd/%u", (int)pid, limit);

        if (!g_file_test(path, G_FILE_TEST_IS_SYMLINK) &&
            open_after++ == spare) {
            break;
        }
    }
    tight = (struct rlimit) { limit, old->rlim_max };
    g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, &tight, NULL), ==, 0);
}

static void test_few_fds(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_open(obj, alloc, CTRL_SLOT);
    pid_t pid = qtest_pid(d->qts);
    unsigned most = UINT_MAX;
    struct rlimit old;

    for (unsigned spare = 0; spare < most; spare++) {
        Threads t;

        mq_setup(d, cfg->form, 512);
        most = 2 * d->num_vqs;
        limit_fds(pid, spare, &old);
        mq_driver_ok(d);
        g_assert_cmpint(prlimit(pid, RLIMIT_NOFILE, &old, NULL), ==, 0);

        /* Everything works, in the main loop. */
        threads_find(d->qts, &t);
        mq_clear_ua(mq_queue(d, 0), 0, 0);
        for (unsigned i = 0; i < d->num_queues; i++) {
            for (unsigned n = 0; n < 10; n++) {
                MqCmd cmd = mq_read10(0, n, 1);

                mq_run_good(mq_queue(d, i), &cmd, NULL);
            }
        }
        for (unsigned i = 0; i < t.n; i++) {
            g_assert_cmpuint(threads_slept(&t, i), <=, 3);
        }
        mq_reset(d);
    }

    /* With descriptors enough it is as if nothing had been. */
    mq_start(d, cfg->form, 512);
    mq_clear_ua(mq_queue(d, 0), 0, 0);
    for (unsigned i = 0; i < d->num_queues; i++) {
        Threads t;

        threads_find(d->qts, &t);
        check_queue_thread(d, &t, i, i % cfg->iothreads);
    }
    mq_end(d, cfg);
}

/*
 * Answers
 */

static void test_answers(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_open(obj, alloc, CTRL_SLOT);

    mq_start(d, cfg->form, 4096);
    for (unsigned i = 0; i < d->num_queues; i++) {
        MqQueue *q = mq_queue(d, i);
        struct virtio_scsi_cmd_resp resp;
        uint8_t buf[255];
        MqCmd cmd;

        /* One LUN per queue: its power-on condition is reported once. */
        cmd = (MqCmd) { .lun = i, .tag = mq_next_tag() };
        mq_run(q, &cmd, &resp, NULL);
        mq_assert_sense(&resp, UNIT_ATTENTION, 0x29, 0x00);
        mq_clear_ua(q, 0, i);

        /* LOGICAL BLOCK ADDRESS OUT OF RANGE */
        cmd = mq_read10(i, LUN_BLOCKS, 1);
        mq_run(q, &cmd, &resp, NULL);
        mq_assert_sense(&resp, ILLEGAL_REQUEST, 0x21, 0x00);
        cmd = mq_read10(i, LUN_BLOCKS - 1, 1);
        mq_run_good(q, &cmd, NULL);

        /* INVALID COMMAND OPERATION CODE */
        cmd = (MqCmd) { .lun = i, .tag = mq_next_tag(), .cdb = { 0xff } };
        mq_run(q, &cmd, &resp, NULL);
        mq_assert_sense(&resp, ILLEGAL_REQUEST, 0x20, 0x00);

        /* The list of LUNs is shorter than what is asked for. */
        cmd = (MqCmd) {
            .lun = 0, .tag = mq_next_tag(), .in_len = sizeof(buf),
            .cdb = { REPORT_LUNS, [9] = sizeof(buf) },
        };
        mq_run(q, &cmd, &resp, buf);
        mq_assert_good(&resp);
        g_assert_cmpuint(ldl_be_p(buf), ==, 8 * cfg->luns);
        g_assert_cmpuint(le32_to_cpu(resp.resid), ==,
                         sizeof(buf) - (8 + 8 * cfg->luns));

        /* Buffers that the command doesn't fit into, or of no use to it */
        cmd = mq_read10(i, 0, 2);
        cmd.in_len = 512;
        mq_run(q, &cmd, &resp, NULL);
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_OVERRUN);
        cmd = mq_read10(i, 0, 1);
        cmd.in_len = 0;
        mq_run(q, &cmd, &resp, NULL);
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_OVERRUN);
        cmd = mq_read10(i, 0, 1);
        cmd.in_len = 0;
        cmd.out = buf;
        cmd.out_len = sizeof(buf);
        mq_run(q, &cmd, &resp, NULL);
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_OVERRUN);

        /* Nobody there */
        cmd = mq_read10(i, 0, 1);
        cmd.target = 7;
        mq_run(q, &cmd, &resp, NULL);
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_BAD_TARGET);
    }
    mq_end(d, cfg);
}

/* A header cut short breaks the device until it is reset, and no longer. */
static void test_broken_request(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_open(obj, alloc, CTRL_SLOT);
    uint8_t head[8] = { 1 };

    mq_start(d, cfg->form, 512);
    for (unsigned i = 0; i < d->num_queues; i++) {
        gint64 start = 0;

        mq_post_raw(mq_queue(d, i), head, sizeof(head), NULL, 0,
                    sizeof(struct virtio_scsi_cmd_resp), 0);
        mq_flush(mq_queue(d, i));
        while (!(d->vdev->bus->get_status(d->vdev) &
                 VIRTIO_CONFIG_S_NEEDS_RESET)) {
            mq_pause(&start, "NEEDS_RESET");
        }
        mq_reset(d);
        mq_start(d, cfg->form, 512);
    }
    mq_clear_ua(mq_queue(d, 0), 0, 0);
    cross_queue_read(d);
    mq_end(d, cfg);
}

/*
 * Task management, for requests of all queues
 *
 * A throttled LUN holds its requests: qtest's clock stands still, so that no
 * more than the first one is ever let through.  Ending the throttling lets
 * them all go.
 */

#define MAX_HELD 8

typedef struct Held {
    unsigned n;
    MqSlot *slot[MAX_HELD];
    uint64_t tag[MAX_HELD];
} Held;

static void throttle(QTestState *qts, unsigned lun, bool on)
{
    g_autofree char *id = g_strdup_printf("hd%u", lun);

    qtest_qmp_assert_success(qts,
        "{'execute': 'block_set_io_throttle', 'arguments': {'id': %s,"
        " 'bps': 0, 'bps_rd': 0, 'bps_wr': 0,"
        " 'iops': %d, 'iops_rd': 0, 'iops_wr': 0}}", id, on);
}

/* One read through each queue; returns when the device has them all. */
static void hold_posts(MqDev *d, Held *h, uint8_t target, uint16_t lun)
{
    g_assert_cmpuint(d->num_queues, <=, MAX_HELD);
    h->n = d->num_queues;
    for (unsigned i = 0; i < h->n; i++) {
        MqCmd cmd = mq_read10(lun, i, 1);

        cmd.target = target;
        h->tag[i] = cmd.tag;
        h->slot[i] = mq_post_cmd(mq_queue(d, i), &cmd);
        mq_flush(mq_queue(d, i));
    }
    for (unsigned i = 0; i < h->n; i++) {
        mq_wait_taken(d, h->slot[i], target, lun, h->tag[i]);
    }
}

static void hold(MqDev *d, Held *h, unsigned lun)
{
    MqCmd first = mq_read10(lun, 0, 1);

    throttle(d->qts, lun, true);
    mq_run_good(mq_queue(d, 0), &first, NULL);
    hold_posts(d, h, 0, lun);
    for (unsigned i = 0; i < h->n; i++) {
        g_assert_false(h->slot[i]->done);
    }
}

/*
 * Everything that the control queue has set off in the IOThreads is done when
 * this returns: what they are asked now comes later.
 */
static void settle(MqDev *d, unsigned free_lun)
{
    mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, free_lun, 1);
    for (unsigned i = 0; i < d->num_queues; i++) {
        MqCmd cmd = { .lun = free_lun, .tag = mq_next_tag() };

        mq_run_good(mq_queue(d, i), &cmd, NULL);
    }
}

static uint8_t response_of(MqSlot *slot)
{
    struct virtio_scsi_cmd_resp resp;

    mq_read_resp(slot, &resp, sizeof(resp));
    return resp.response;
}

/* Wait for held requests; all but @victim (-1: none) must have succeeded. */
static void finish_held(MqDev *d, Held *h, int victim, uint8_t response)
{
    for (unsigned i = 0; i < h->n; i++) {
        mq_wait(h->slot[i]);
        if (i == victim) {
            g_assert_cmpuint(response_of(h->slot[i]), ==, response);
        } else {
            check_good(h->slot[i]);
        }
        mq_release(h->slot[i]);
    }
}

static void finish_held_all(MqDev *d, Held *h, uint8_t response)
{
    for (unsigned i = 0; i < h->n; i++) {
        mq_wait(h->slot[i]);
        g_assert_cmpuint(response_of(h->slot[i]), ==, response);
        mq_release(h->slot[i]);
    }
}

/*
 * Wait for a TMF.  When the driver sees its answer, those of the requests
 * first..first+n-1 in @h, which it ends, must be there already.
 */
static void finish_tmf(MqDev *d, MqSlot *tmf, Held *h, unsigned first,
                       unsigned n)
{
    uint8_t response;

    mq_wait(tmf);
    for (unsigned i = first; i < first + n; i++) {
        mq_reap(h->slot[i]->q);
        g_assert_true(h->slot[i]->done);
    }
    mq_read_resp(tmf, &response, sizeof(response));
    g_assert_cmpuint(response, ==, VIRTIO_SCSI_S_OK);
    mq_release(tmf);
}

static bool none_done(MqDev *d, const Held *h)
{
    for (unsigned i = 0; i < h->n; i++) {
        mq_reap(h->slot[i]->q);
        if (h->slot[i]->done) {
            return false;
        }
    }
    return true;
}

static void test_tmf_abort_task(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_begin(obj, alloc, cfg, 512);

    for (unsigned victim = 0; victim < d->num_queues; victim++) {
        MqSlot *tmf;
        Held h;

        hold(d, &h, 0);
        /* A tag that nobody has, and a LUN where nobody has the tag */
        g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_ABORT_TASK, 0, 0,
                                mq_next_tag()), ==, VIRTIO_SCSI_S_OK);
        g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_ABORT_TASK, 0, 2,
                                h.tag[victim]), ==, VIRTIO_SCSI_S_OK);
        tmf = mq_post_tmf(d, VIRTIO_SCSI_T_TMF_ABORT_TASK, 0, 0,
                          h.tag[victim]);
        settle(d, 2);
        /* Its buffer is still in use: neither it nor the TMF may be done. */
        g_assert_true(none_done(d, &h));
        mq_reap(mq_ctrl(d));
        g_assert_false(tmf->done);

        throttle(d->qts, 0, false);
        finish_tmf(d, tmf, &h, victim, 1);
        finish_held(d, &h, victim, VIRTIO_SCSI_S_ABORTED);
    }
    mq_end(d, cfg);
}

static void test_tmf_task_set(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint32_t subtypes[] = {
        VIRTIO_SCSI_T_TMF_ABORT_TASK_SET, VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET
    };
    const MqConfig *cfg = arg;
    MqDev *d = mq_begin(obj, alloc, cfg, 512);

    for (unsigned i = 0; i < ARRAY_SIZE(subtypes); i++) {
        Held mine, other;
        MqSlot *tmf;

        /* Nothing to abort */
        g_assert_cmpuint(mq_tmf(d, subtypes[i], 0, 0, 0), ==,
                         VIRTIO_SCSI_S_OK);
        hold(d, &mine, 0);
        hold(d, &other, 1);
        /* Whoever ends all commands of a LUN waits for no throttling. */
        tmf = mq_post_tmf(d, subtypes[i], 0, 0, 0);
        finish_tmf(d, tmf, &mine, 0, mine.n);
        finish_held_all(d, &mine, VIRTIO_SCSI_S_ABORTED);
        settle(d, 2);
        g_assert_true(none_done(d, &other));
        throttle(d->qts, 0, false);
        throttle(d->qts, 1, false);
        finish_held(d, &other, -1, 0);
    }
    mq_end(d, cfg);
}

static void test_tmf_query(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint32_t for_a_lun[] = {
        VIRTIO_SCSI_T_TMF_ABORT_TASK, VIRTIO_SCSI_T_TMF_ABORT_TASK_SET,
        VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET, VIRTIO_SCSI_T_TMF_QUERY_TASK,
        VIRTIO_SCSI_T_TMF_QUERY_TASK_SET, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET,
    };
    static const uint32_t types[] = {
        VIRTIO_SCSI_T_AN_QUERY, VIRTIO_SCSI_T_AN_SUBSCRIBE
    };
    const MqConfig *cfg = arg;
    MqDev *d = mq_begin(obj, alloc, cfg, 512);
    Held h;

    hold(d, &h, 0);
    for (unsigned i = 0; i < h.n; i++) {
        g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 0,
                                h.tag[i]),
                         ==, VIRTIO_SCSI_S_FUNCTION_SUCCEEDED);
        g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 1,
                                h.tag[i]), ==, VIRTIO_SCSI_S_OK);
    }
    g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 0,
                            mq_next_tag()), ==, VIRTIO_SCSI_S_OK);
    g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK_SET, 0, 0, 0),
                     ==, VIRTIO_SCSI_S_FUNCTION_SUCCEEDED);
    g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK_SET, 0, 1, 0),
                     ==, VIRTIO_SCSI_S_OK);
    throttle(d->qts, 0, false);
    finish_held(d, &h, -1, 0);
    g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK_SET, 0, 0, 0),
                     ==, VIRTIO_SCSI_S_OK);

    for (unsigned i = 0; i < ARRAY_SIZE(for_a_lun); i++) {
        g_assert_cmpuint(mq_tmf(d, for_a_lun[i], 5, 0, 1), ==,
                         VIRTIO_SCSI_S_BAD_TARGET);
        g_assert_cmpuint(mq_tmf(d, for_a_lun[i], 0, 77, 1), ==,
                         VIRTIO_SCSI_S_INCORRECT_LUN);
    }
    g_assert_cmpuint(mq_tmf(d, VIRTIO_SCSI_T_TMF_CLEAR_ACA, 0, 0, 0), ==,
                     VIRTIO_SCSI_S_FUNCTION_REJECTED);
    g_assert_cmpuint(mq_tmf(d, 4711, 0, 0, 0), ==,
                     VIRTIO_SCSI_S_FUNCTION_REJECTED);

    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        struct virtio_scsi_ctrl_an_req req = {
            .type = cpu_to_le32(types[i]),
            .lun = { 1, 0, 0x40, 0 },
            .event_requested = cpu_to_le32(0x7e),
        };
        struct virtio_scsi_ctrl_an_resp resp;
        MqSlot *slot = mq_post_raw(mq_ctrl(d), &req, sizeof(req), NULL, 0,
                                   sizeof(resp), 0);

        mq_flush(mq_ctrl(d));
        mq_wait(slot);
        mq_read_resp(slot, &resp, sizeof(resp));
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_OK);
        g_assert_cmpuint(le32_to_cpu(resp.event_actual), ==, 0);
        mq_release(slot);
    }
    mq_end(d, cfg);
}

/*
 * Resets by TMF drain the LUN, which ends its throttling too soon.  So these
 * requests are on a slow backend; if the host was so slow that one of them is
 * done before the TMF, take another try.
 */
static void tmf_reset(MqDev *d, uint32_t subtype, unsigned lun)
{
    Held mine, other;
    MqSlot *tmf;

    for (unsigned tries = 0; ; tries++) {
        g_assert_cmpuint(tries, <, 10);
        hold_posts(d, &mine, 0, lun);
        hold_posts(d, &other, 1, 0);
        if (none_done(d, &mine)) {
            break;
        }
        finish_held(d, &mine, -1, 0);
        finish_held(d, &other, -1, 0);
    }

    tmf = mq_post_tmf(d, subtype, 0, lun, 0);
    finish_tmf(d, tmf, &mine, 0, mine.n);
    finish_held_all(d, &mine, VIRTIO_SCSI_S_RESET);
    finish_held(d, &other, -1, 0);
}

static void expect_ua(MqDev *d, unsigned vq, uint8_t target, uint16_t lun,
                      uint8_t asc, uint8_t ascq)
{
    MqCmd cmd = { .target = target, .lun = lun, .tag = mq_next_tag() };
    struct virtio_scsi_cmd_resp resp;

    mq_run(mq_queue(d, vq), &cmd, &resp, NULL);
    mq_assert_sense(&resp, UNIT_ATTENTION, asc, ascq);
}

static void test_tmf_reset(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    QPCIBus *bus = obj;
    MqCmd cmd;
    MqDev *d;

    add_null_node(bus->qts, "far", 500000000);
    add_disk(bus->qts, "far", "far", 1, 0);

    d = mq_begin(obj, alloc, cfg, 512);
    mq_clear_ua(mq_queue(d, 0), 1, 0);

    tmf_reset(d, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0);
    expect_ua(d, 2, 0, 0, 0x29, 0x00);
    mq_clear_ua(mq_queue(d, 0), 0, 0);
    /* The neighbour has no unit attention. */
    cmd = mq_read10(1, 0, 1);
    mq_run_good(mq_queue(d, 1), &cmd, NULL);

    /*
     * All LUNs of the target.  They are reset in turn, which takes as long as
     * their requests, so only one of them has any.
     */
    for (unsigned busy = 0; busy < 2; busy++) {
        tmf_reset(d, VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET, busy);
        expect_ua(d, 1, 0, 0, 0x29, 0x00);
        expect_ua(d, 3, 0, 1, 0x29, 0x00);
        cmd = mq_read10(0, 0, 1);
        cmd.target = 1;
        mq_run_good(mq_queue(d, 1), &cmd, NULL);
    }

    mq_end(d, cfg);
}

/*
 * Events and hotplug
 */

static MqSlot *post_event(MqDev *d)
{
    MqSlot *slot = mq_post_raw(mq_event(d), NULL, 0, NULL, 0,
                               sizeof(struct virtio_scsi_event), 0);

    g_assert_nonnull(slot);
    return slot;
}

static void expect_event(MqSlot *slot, uint32_t event, uint32_t reason,
                         int target, int lun)
{
    struct virtio_scsi_event ev;

    mq_wait(slot);
    mq_read_resp(slot, &ev, sizeof(ev));
    g_assert_cmphex(le32_to_cpu(ev.event), ==, event);
    g_assert_cmphex(le32_to_cpu(ev.reason), ==, reason);
    if (target >= 0) {
        g_assert_cmpuint(ev.lun[0], ==, 1);
        g_assert_cmpuint(ev.lun[1], ==, target);
        g_assert_cmpuint((ev.lun[2] & 0x3f) << 8 | ev.lun[3], ==, lun);
    }
    mq_release(slot);
}

static void test_events(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_begin(obj, alloc, cfg, 512);
    MqSlot *first, *second;
    uint8_t cap[8];
    MqCmd cmd = {
        .tag = mq_next_tag(), .in_len = sizeof(cap),
        .cdb = { READ_CAPACITY_10 },
    };

    add_null_node(d->qts, "extra", 0);
    first = post_event(d);
    second = post_event(d);
    mq_flush(mq_event(d));

    add_disk(d->qts, "hot", "extra", 3, 300);
    expect_event(first, VIRTIO_SCSI_T_TRANSPORT_RESET,
                 VIRTIO_SCSI_EVT_RESET_RESCAN, 3, 300);
    g_assert_false(second->done);
    expect_ua(d, 1, 0, 0, 0x3f, 0x0e); /* REPORTED LUNS DATA HAS CHANGED */
    mq_clear_ua(mq_queue(d, 1), 3, 300);

    qtest_qmp_device_del(d->qts, "hot");
    expect_event(second, VIRTIO_SCSI_T_TRANSPORT_RESET,
                 VIRTIO_SCSI_EVT_RESET_REMOVED, 3, 300);
    mq_clear_ua(mq_queue(d, 0), 0, 0);

    /* No buffer: the event is lost, which the next buffer tells at once. */
    add_disk(d->qts, "hot", "extra", 3, 1);
    first = post_event(d);
    mq_publish(mq_event(d));
    mq_kick(mq_event(d));
    expect_event(first, VIRTIO_SCSI_T_NO_EVENT |
                 VIRTIO_SCSI_T_EVENTS_MISSED, 0, -1, 0);
    qtest_qmp_device_del(d->qts, "hot");

    /* Reset: what was missed before is of no interest any more. */
    mq_reset(d);
    mq_start(d, cfg->form, 512);
    mq_clear_ua(mq_queue(d, 0), 0, 0);
    first = post_event(d);
    mq_flush(mq_event(d));
    qtest_qmp_assert_success(d->qts,
        "{'execute': 'block_resize', 'arguments': {"
        "'node-name': 'disk0', 'size': %u}}", 2 * LUN_BYTES);
    expect_event(first, VIRTIO_SCSI_T_PARAM_CHANGE, 0x092a, 0, 0);
    expect_ua(d, 1, 0, 0, 0x2a, 0x09); /* CAPACITY DATA HAS CHANGED */
    mq_run_good(mq_queue(d, 2), &cmd, cap);
    g_assert_cmpuint(ldl_be_p(cap), ==, 2 * LUN_BLOCKS - 1);

    mq_end(d, cfg);
}

static void test_lun_hotplug(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    MqDev *d = mq_begin(obj, alloc, cfg, 512);

    add_null_node(d->qts, "slow", 50 * 1000 * 1000);
    for (uint32_t round = 0; round < 6; round++) {
        struct virtio_scsi_cmd_resp resp;
        MqCmd cmd;

        /* Plug in while all queues are full ... */
        fill_all(d, cfg, true, round);
        add_disk(d->qts, "hot", "slow", 1, 0);
        for (unsigned i = 0; i < d->num_queues; i++) {
            MqQueue *q = mq_queue(d, i);

            mq_wait_idle(q);
            for (unsigned s = 0; s < q->num_slots; s++) {
                mq_read_resp(&q->slots[s], &resp, sizeof(resp));
                /* A command may have met the unit attention. */
                g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_OK);
                g_assert_true(resp.status == GOOD ||
                              resp.status == CHECK_CONDITION);
                mq_release(&q->slots[s]);
            }
        }
        for (unsigned lun = 0; lun < cfg->luns; lun++) {
            mq_clear_ua(mq_queue(d, 0), 0, lun);
        }
        mq_clear_ua(mq_queue(d, 0), 1, 0);
        full_round(d, cfg, true, round);

        /* ... and pull it while its requests are in flight. */
        for (unsigned i = 0; i < d->num_queues; i++) {
            for (unsigned n = 0; n < mq_queue(d, i)->num_slots; n++) {
                cmd = mq_read10(0, n, 1);
                cmd.target = 1;
                g_assert_nonnull(mq_post_cmd(mq_queue(d, i), &cmd));
            }
            mq_flush(mq_queue(d, i));
        }
        g_usleep(round * 2000);
        qtest_qmp_device_del(d->qts, "hot");
        for (unsigned i = 0; i < d->num_queues; i++) {
            MqQueue *q = mq_queue(d, i);

            mq_wait_idle(q);
            for (unsigned s = 0; s < q->num_slots; s++) {
                /* Done, given up or too late, but answered */
                g_assert_cmpuint(response_of(&q->slots[s]), <=,
                                 VIRTIO_SCSI_S_FAILURE);
                mq_release(&q->slots[s]);
            }
        }
        cmd = mq_read10(0, 0, 1);
        cmd.target = 1;
        mq_run(mq_queue(d, 1), &cmd, &resp, NULL);
        g_assert_cmpuint(resp.response, ==, VIRTIO_SCSI_S_BAD_TARGET);
        for (unsigned lun = 0; lun < cfg->luns; lun++) {
            mq_clear_ua(mq_queue(d, 0), 0, lun);
        }
        full_round(d, cfg, false, round);
    }
    mq_end(d, cfg);
}

/*
 * The home AioContext of a LUN is where block jobs on it run.  This one makes
 * one write of 0.5 ms after the other to another node, each of which wakes up
 * the home.  It needs BACKEND_NULL: zeroes it would write many at a time.
 */
static void check_home(QTestState *qts, Threads *t, unsigned lun,
                       unsigned expected)
{
    enum { PIECE = 32 * KiB };
    g_autofree char *node = g_strdup_printf("disk%u", lun);

    g_test_message("home of LUN %u: iot%u", lun, expected);
    threads_mark(t);
    qtest_qmp_assert_success(qts,
        "{'execute': 'blockdev-mirror', 'arguments': {'job-id': 'job',"
        " 'device': %s, 'target': 'target', 'sync': 'full',"
        " 'granularity': %u, 'buf-size': %u}}", node, PIECE, PIECE);
    qtest_qmp_eventwait(qts, "BLOCK_JOB_READY");
    expect_only_thread(t, LUN_BYTES / PIECE, expected);
    qtest_qmp_assert_success(qts,
        "{'execute': 'block-job-cancel', 'arguments': {'device': 'job'}}");
    qtest_qmp_eventwait(qts, "BLOCK_JOB_COMPLETED");
}

/* @order has the IOThreads with queues in the order of their first queue. */
static void check_homes(QPCIBus *bus, QGuestAllocator *alloc,
                        const MqConfig *cfg, const uint8_t *order, unsigned n)
{
    /*
     * Places in @order.  When some LUNs are gone the first place and the third
     * have one each.  New ones go to the emptiest place, the first of several.
     */
    static const uint8_t del[] = { 4, 3, 5, 1 };
    static const uint8_t add[] = { 5, 1, 4, 3 };
    static const uint8_t place_before[] = { 0, 1, 2, 0, 1, 2 };
    static const uint8_t place_after[] = { 0, 0, 2, 2, 1, 1 };
    MqDev *d = mq_begin(bus, alloc, cfg, 512);
    Threads t;

    g_assert_cmpuint(cfg->luns, ==, ARRAY_SIZE(place_before));
    add_null_node(d->qts, "target", 500 * 1000);
    threads_find(d->qts, &t);
    g_assert_cmpuint(t.n, ==, cfg->iothreads);
    for (unsigned lun = 0; lun < cfg->luns; lun++) {
        check_home(d->qts, &t, lun, order[place_before[lun] % n]);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(del); i++) {
        g_autofree char *id = g_strdup_printf("hd%u", del[i]);

        qtest_qmp_device_del(d->qts, id);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(add); i++) {
        g_autofree char *id = g_strdup_printf("hd%u", add[i]);
        g_autofree char *node = g_strdup_printf("disk%u", add[i]);

        add_disk(d->qts, id, node, 0, add[i]);
    }
    for (unsigned lun = 0; lun < cfg->luns; lun++) {
        check_home(d->qts, &t, lun, order[place_after[lun] % n]);
    }

    /* The guest's requests run where their queue says nevertheless. */
    mq_clear_ua(mq_queue(d, 0), 0, 0);
    for (unsigned i = 0; i < d->num_queues; i++) {
        check_queue_thread(d, &t, i, order[i % n]);
    }
    mq_end(d, cfg);
}

static void test_homes_round_robin(void *obj, void *arg,
                                   QGuestAllocator *alloc)
{
    static const uint8_t order[] = { 0, 1, 2 };

    check_homes(obj, alloc, arg, order, ARRAY_SIZE(order));
}

static void test_homes_vqs(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint8_t order[] = { 2, 0, 1 };

    check_homes(obj, alloc, arg, order, ARRAY_SIZE(order));
}

static void test_homes_iothread(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const uint8_t order[] = { 1 };

    check_homes(obj, alloc, arg, order, ARRAY_SIZE(order));
}

/*
 * Migration of requests that wait for the VM to go on after an error
 *
 * On the source the blocks from BAD_LBA on are bad, and LUNs stop the VM when
 * they meet one.  On the destination they are good.  LUN 0 is a file with
 * data.  The other LUNs each take one request of the queue SLOW_QUEUE, and
 * each takes another time for it on the destination, so that each wakes up
 * the thread that serves this queue.
 */
enum {
    BAD_LBA = 1000,
    BAD_BLOCKS = 16,
    SLOW_LUNS = 30,
    SLOW_QUEUE = 1,
    SLOW_STEP_MS = 20,
    SEED_BEFORE = 1,
    SEED_AFTER = 2,
};

static void add_migrated_lun(QTestState *qts, unsigned lun, const char *path,
                             bool source)
{
    g_autoptr(GString) node = g_string_new(NULL);
    g_autofree char *id = g_strdup_printf("hd%u", lun);
    g_autofree char *name = g_strdup_printf("disk%u", lun);
    g_autoptr(QDict) resp = NULL;

    if (lun == 0) {
        g_string_printf(node, "\"driver\":\"file\",\"locking\":\"off\","
                        "\"filename\":\"%s\"", path);
    } else {
        /* When QEMU ends it would flush one after the other, slowly. */
        g_string_printf(node, "\"driver\":\"null-co\",\"read-zeroes\":true,"
                        "\"cache\":{\"no-flush\":true},"
                        "\"size\":%u,\"latency-ns\":%u", LUN_BYTES,
                        source ? 0 : lun * SLOW_STEP_MS * 1000 * 1000);
    }
    if (source) {
        g_autofree char *image = g_strdup(node->str);

        g_string_printf(node, "\"driver\":\"blkdebug\",\"image\":{%s},"
                        "\"inject-error\":[", image);
        for (unsigned i = 0; i < BAD_BLOCKS; i++) {
            g_string_append_printf(node, "%s{\"event\":\"none\","
                                   "\"sector\":%u}", i ? "," : "",
                                   BAD_LBA + i);
        }
        g_string_append(node, "]");
    }
    resp = qmp_text(qts, "{\"execute\":\"blockdev-add\",\"arguments\":{"
                    "\"node-name\":\"%s\",%s}}", name, node->str);
    g_assert_true(qdict_haskey(resp, "return"));
    /* With a geometry the slow LUN isn't read for its partition table. */
    qtest_qmp_assert_success(qts,
        "{'execute': 'device_add', 'arguments': {'driver': 'scsi-hd',"
        " 'id': %s, 'drive': %s, 'bus': 'vs.0', 'channel': 0,"
        " 'scsi-id': 0, 'lun': %u, 'rerror': 'stop', 'werror': 'stop',"
        " 'cyls': 32, 'heads': 16, 'secs': 63}}",
        id, name, lun);
}

typedef struct Waiting {
    MqSlot *slot;
    uint16_t lun;
    uint32_t lba;
    bool write;
    uint64_t tag;
} Waiting;

typedef struct WaitingList {
    unsigned n;
    Waiting w[BAD_BLOCKS + SLOW_LUNS];
} WaitingList;

static void post_waiting(WaitingList *list, MqQueue *q, uint16_t lun,
                         uint32_t lba, bool write)
{
    MqCmd cmd = mq_read10(lun, lba, 1);
    uint8_t buf[512];
    MqSlot *slot;

    if (write) {
        mq_fill_pattern(buf, lba, 1, SEED_AFTER);
        cmd = mq_write10(lun, lba, 1, buf);
    }
    slot = mq_post_cmd(q, &cmd);
    g_assert_nonnull(slot);
    g_assert_cmpuint(list->n, <, ARRAY_SIZE(list->w));
    list->w[list->n++] = (Waiting) { slot, lun, lba, write, cmd.tag };
}

static void finish_waiting(const Waiting *w)
{
    uint8_t buf[512];

    mq_wait(w->slot);
    check_good(w->slot);
    if (w->lun == 0 && w->write) {
        check_file(0, w->lba, 1, SEED_AFTER);
    } else if (w->lun == 0) {
        mq_read_mem(w->slot->q->dev, w->slot->data, buf, sizeof(buf));
        check_pattern(buf, w->lba, 1, SEED_BEFORE);
    }
    mq_release(w->slot);
}

/* Throttling holds all but the first one until the device has them all. */
static void stop_by_error(MqDev *d, WaitingList *list)
{
    MqCmd first = mq_read10(0, 0, 1);

    for (unsigned lun = 0; lun <= SLOW_LUNS; lun++) {
        g_autofree char *id = g_strdup_printf("hd%u", lun);

        mq_clear_ua(mq_queue(d, 0), 0, lun);
        qtest_qmp_assert_success(d->qts,
            "{'execute': 'block_set_io_throttle', 'arguments': {'id': %s,"
            " 'group': 'all', 'bps': 0, 'bps_rd': 0, 'bps_wr': 0,"
            " 'iops': 1, 'iops_rd': 0, 'iops_wr': 0}}", id);
    }
    mq_run_good(mq_queue(d, 0), &first, NULL);
    for (unsigned i = 0; i < d->num_queues; i++) {
        MqQueue *q = mq_queue(d, i);

        post_waiting(list, q, 0, BAD_LBA + 3 * i, false);
        post_waiting(list, q, 0, BAD_LBA + 3 * i + 1, true);
        for (unsigned lun = 1; i == SLOW_QUEUE && lun <= SLOW_LUNS; lun++) {
            post_waiting(list, q, lun, BAD_LBA, lun & 1);
        }
        mq_flush(q);
    }
    for (unsigned i = 0; i < list->n; i++) {
        const Waiting *w = &list->w[i];

        mq_wait_taken(d, w->slot, 0, w->lun, w->tag);
    }
    throttle(d->qts, 0, false);
    qtest_qmp_eventwait(d->qts, "STOP");
    g_assert_cmpuint(total_in_flight(d), ==, list->n);
}

/*
 * Migration to another QEMU than QTEST_QEMU_BINARY, stock's for example.
 * Requests that waited go on in its main loop, whatever the mapping.
 */
#define OTHER_QEMU          "QTEST_QEMU_BINARY_DST"
#define OTHER_QEMU_IS_STOCK "MQ_DST_IS_STOCK"

static QTestState *init_destination(const char *args)
{
    return getenv(OTHER_QEMU) ? qtest_init_with_env(OTHER_QEMU, args, true)
                              : qtest_init(args);
}

/* All requests get done, those of SLOW_QUEUE by IOThread @slow_thread. */
static void finish_migrated(QTestState *qts, const WaitingList *list,
                            const Threads *t, int slow_thread)
{
    for (unsigned i = 0; i < list->n; i++) {
        finish_waiting(&list->w[i]);
    }
    if (getenv(OTHER_QEMU_IS_STOCK)) {
        return;
    }
    for (int i = 0; i < t->n; i++) {
        uint64_t slept = threads_slept(t, i);

        /*
         * All of them have a little to do when the VM goes on, a dozen times
         * or so; but not once for each slow LUN as well.
         */
        if (i == slow_thread) {
            g_assert_cmpuint(slept, >=, SLOW_LUNS / 2);
        } else {
            g_assert_cmpuint(slept, <, SLOW_LUNS);
        }
    }
}

/*
 * The controller on the destination is that of @to_cfg, where IOThread number
 * thread[i] serves queue i, the main loop if it is -1.
 */
static void check_migration(QPCIBus *bus, QGuestAllocator *alloc,
                            const MqConfig *cfg, const MqConfig *to_cfg,
                            const int8_t *thread)
{
    g_autoptr(GString) args = g_string_new(qos_get_current_command_line());
    g_autofree char *path = mq_open_unnamed(&lun_fd[0]);
    uint8_t data[BAD_BLOCKS * 512];
    WaitingList list = { 0 };
    QTestState *to;
    Threads t;
    MqDev *d;

    mq_fill_pattern(data, BAD_LBA, BAD_BLOCKS, SEED_BEFORE);
    g_assert_cmpint(ftruncate(lun_fd[0], LUN_BYTES), ==, 0);
    g_assert_cmpint(pwrite(lun_fd[0], data, sizeof(data), BAD_LBA * 512), ==,
                    sizeof(data));

    mq_before(args, (void *)to_cfg);
    g_string_append(args, " -incoming defer");
    to = init_destination(args->str);
    for (unsigned lun = 0; lun <= SLOW_LUNS; lun++) {
        add_migrated_lun(bus->qts, lun, path, true);
        add_migrated_lun(to, lun, path, false);
    }

    d = mq_begin(bus, alloc, cfg, 512);
    g_assert_cmpuint(3 * d->num_queues, <=, BAD_BLOCKS);
    stop_by_error(d, &list);
    /* And some that the device doesn't know of yet */
    for (unsigned i = 0; i < d->num_queues; i++) {
        post_waiting(&list, mq_queue(d, i), 0, BAD_LBA + 3 * i + 2, false);
        mq_publish(mq_queue(d, i));
    }

    mq_migrate(d->qts, to);
    g_assert_cmpuint(total_in_flight(d), ==, list.n);
    mq_migrated(d, to);
    g_assert_cmpuint(total_in_flight(d), ==, list.n);
    check_file(0, BAD_LBA, BAD_BLOCKS, SEED_BEFORE);

    threads_find(to, &t);
    g_assert_cmpuint(t.n, ==, to_cfg->iothreads);
    qmp_and_wait(to, "cont", "RESUME");
    for (unsigned i = 0; i < d->num_queues; i++) {
        mq_kick(mq_queue(d, i));
    }
    finish_migrated(to, &list, &t, thread[SLOW_QUEUE]);

    for (unsigned i = 0; i < d->num_queues && thread[i] >= 0; i++) {
        check_queue_thread(d, &t, i, thread[i]);
    }
    cross_queue_data(d, 0, SEED_AFTER);
    mq_end(d, cfg);
    close(lun_fd[0]);
    qtest_quit(to);
}

#define MAP_CROSSED "\"iothread-vq-mapping\":[" \
    "{\"iothread\":\"iot0\",\"vqs\":[3]}," \
    "{\"iothread\":\"iot1\",\"vqs\":[0,2]}," \
    "{\"iothread\":\"iot2\",\"vqs\":[1]}]"

static void test_migrate_mapping(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const int8_t thread[] = { 1, 2, 1, 0 };
    static const MqConfig to = {
        .iothreads = 3,
        .controller = MAP_CROSSED ",\"num_queues\":4",
    };

    check_migration(obj, alloc, arg, &to, thread);
}

static void test_migrate_no_mapping(void *obj, void *arg,
                                    QGuestAllocator *alloc)
{
    static const int8_t thread[] = { -1, -1, -1, -1 };
    static const MqConfig to = {
        .iothreads = 3, .controller = "\"num_queues\":4",
    };

    check_migration(obj, alloc, arg, &to, thread);
}

/*
 * Requests of packed rings.  Not below migrate/, as QEMU 10.0 can't take them:
 * it reads elements otherwise than it writes them.
 */
static void test_migrate_packed(void *obj, void *arg, QGuestAllocator *alloc)
{
    static const int8_t thread[] = { 1, 2, 1, 0 };
    static const MqConfig to = {
        .iothreads = 3,
        .controller = MAP_CROSSED ",\"num_queues\":4,\"packed\":true,"
            "\"disable-legacy\":\"on\"",
    };

    check_migration(obj, alloc, arg, &to, thread);
}

/*
 * A hostile source
 *
 * One command waits for the VM to go on; its stream is changed in one place.
 * The destination must say that the migration has failed, and live on.
 */
enum {
    HOSTILE_LUN = 1,
    /* Places behind the CDB of the request in the stream; see put_request() */
    SENSE_LEN = -5,             /* of the LUN */
    REQ_KIND = -1,
    REQ_QUEUE = 24,
    REQ_INDEX = 28,             /* of a VirtQueueElementOld, host's order */
    REQ_OUT_NUM = 32,
    REQ_IN_NUM = 36,
    REQ_IN_ADDR = 44,
    REQ_IN_LEN = REQ_IN_ADDR + 2 * 8 * 1024 + 8,
    REQ_SECTOR = REQ_IN_ADDR + (2 * 8 + 2 * 16) * 1024,
    REQ_BUFLEN = REQ_SECTOR + 12,
    /* Behind a section's name: its instance, version, and number of lines */
    PCIBUS_LINE_0 = 3 * 4,
};

/* What is read as a number: @at behind the CDB, or behind the ring's size */
static const struct {
    const char *what;
    bool ring;
    int at;
    unsigned bytes;
    uint64_t value;
} hostile_edits[] = {
    { "more sense data than fit", false, SENSE_LEN, 4, 253 },
    { "no request", false, REQ_KIND, 1, 7 },
    { "a request that doesn't wait", false, REQ_KIND, 1, 2 },
    { "a queue that isn't there", false, REQ_QUEUE, 4, 99 },
    { "an index beyond the ring", false, REQ_INDEX, 4, 0x00100000 },
    { "too many buffers to read", false, REQ_OUT_NUM, 4, 0xffffff7f },
    { "too many buffers to write", false, REQ_IN_NUM, 4, 0x01040000 },
    { "a buffer of no length", false, REQ_IN_LEN, 8, 0 },
    { "a buffer beyond the end of RAM", false, REQ_IN_LEN, 8,
      0xffffffffffff0000 },
    { "a command of another direction", false, 0, 1, 0x2a },
    { "a command that has no data", false, 0, 1, 0x1d },
    { "a sector beyond all disks", false, REQ_SECTOR, 8, INT64_MAX },
    { "a huge buffer of the disk's", false, REQ_BUFLEN, 4, UINT32_MAX },
    { "a ring that is too long", true, 0, 4, 4096 },
    { "a ring with nothing in flight", true, 12, 2, 0 },
};

static uint8_t *find_bytes(GByteArray *in, const void *what, size_t len)
{
    uint8_t *found = memmem(in->data, in->len, what, len);

    g_assert_nonnull(found);
    return found;
}

/* Where an edit is; @ring: how a queue's size and its address stand there */
static uint8_t *hostile_place(GByteArray *stream, unsigned edit,
                              const MqQueue *q)
{
    /* The CDB on its own is in guest memory as well. */
    uint8_t request[1 + 16] = { 1, 0x28, [5] = BAD_LBA >> 8, BAD_LBA & 0xff,
                                [9] = 1 };
    uint8_t ring[12];

    if (!hostile_edits[edit].ring) {
        return find_bytes(stream, request, sizeof(request)) + 1 +
               hostile_edits[edit].at;
    }
    stl_be_p(ring, q->pci.vq.size);
    stq_be_p(ring + 4, q->pci.vq.desc);
    return find_bytes(stream, ring, sizeof(ring)) + hostile_edits[edit].at;
}

static void write_stream(int fd, const GByteArray *stream)
{
    g_assert_cmpint(pwrite(fd, stream->data, stream->len, 0), ==, stream->len);
}

static bool is_migrating(QTestState *qts, const char **status)
{
    g_autoptr(QDict) resp = qtest_qmp(qts, "{'execute': 'query-migrate'}");
    const char *now = qdict_get_try_str(qdict_get_qdict(resp, "return"),
                                        "status");

    *status = g_intern_string(now);
    return !now || (strcmp(now, "failed") && strcmp(now, "completed"));
}

/* A destination for this stream alone; it must live on, and say @wanted. */
static void try_stream(const char *args, const char *uri, const char *wanted,
                       const char *what)
{
    QTestState *to = qtest_init(args);
    const char *status;
    gint64 start = 0;

    g_test_message("%s", what);
    add_migrated_lun(to, HOSTILE_LUN, NULL, false);
    qtest_qmp_assert_success(to,
        "{'execute': 'migrate-incoming', 'arguments': {'uri': %s,"
        " 'exit-on-error': false}}", uri);
    while (is_migrating(to, &status)) {
        mq_pause(&start, "the end of a migration");
    }
    g_assert_cmpstr(status, ==, wanted);
    qtest_system_reset(to);
    qtest_quit(to);
}

static void test_hostile_stream(void *obj, void *arg, QGuestAllocator *alloc)
{
    const MqConfig *cfg = arg;
    g_autoptr(GString) args = g_string_new(qos_get_current_command_line());
    QPCIBus *bus = obj;
    WaitingList list = { 0 };
    int fd;
    g_autofree char *path = mq_open_unnamed(&fd);
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autoptr(GByteArray) stream = g_byte_array_new();
    uint8_t *line;
    MqDev *d;

    add_migrated_lun(bus->qts, HOSTILE_LUN, NULL, true);
    d = mq_begin(bus, alloc, cfg, 512);
    mq_clear_ua(mq_queue(d, 0), 0, HOSTILE_LUN);
    post_waiting(&list, mq_queue(d, 1), HOSTILE_LUN, BAD_LBA, false);
    mq_flush(mq_queue(d, 1));
    qtest_qmp_eventwait(d->qts, "STOP");
    qtest_qmp_assert_success(d->qts,
        "{'execute': 'migrate', 'arguments': {'uri': %s}}", uri);
    g_assert_true(mq_wait_migrated(d->qts));
    g_byte_array_set_size(stream, lseek(fd, 0, SEEK_END));
    g_assert_cmpint(pread(fd, stream->data, stream->len, 0), ==, stream->len);

    mq_before(args, (void *)cfg);
    g_string_append(args, " -incoming defer");
    try_stream(args->str, uri, "completed", "as it is");
    for (unsigned i = 0; i < ARRAY_SIZE(hostile_edits); i++) {
        uint8_t *place = hostile_place(stream, i, mq_queue(d, 1));
        unsigned bytes = hostile_edits[i].bytes;
        uint64_t value = hostile_edits[i].value, was;

        was = ldn_be_p(place, bytes);
        stn_be_p(place, bytes, value);
        write_stream(fd, stream);
        stn_be_p(place, bytes, was);
        try_stream(args->str, uri, "failed", hostile_edits[i].what);
    }

    /* Lines of the PCI bus, which no device raises */
    line = find_bytes(stream, "PCIBUS", 6) + 6 + PCIBUS_LINE_0;
    stl_be_p(line, INT32_MAX);
    write_stream(fd, stream);
    try_stream(args->str, uri, "failed", "a line raised by too many");
    stl_be_p(line, 1);
    write_stream(fd, stream);
    try_stream(args->str, uri, "completed", "a line raised by nobody");
    close(fd);
    qos_invalidate_command_line(); /* its disk stays bad */
}

static const struct {
    const char *name;
    QOSTestFunc func;
    MqConfig cfg;
} mq_tests[] = {
    {
        "mapping/round-robin", test_map_round_robin,
        { .iothreads = 4, .luns = 1,
          .controller = MAP3 ",\"num_queues\":7" },
    }, {
        "mapping/vqs", test_map_vqs,
        { .iothreads = 3, .luns = 1,
          .controller = "\"num_queues\":6,\"iothread-vq-mapping\":["
              "{\"iothread\":\"iot0\",\"vqs\":[5,3]},"
              "{\"iothread\":\"iot1\",\"vqs\":[0,4]},"
              "{\"iothread\":\"iot2\",\"vqs\":[2,1]}]" },
    }, {
        "mapping/iothread", test_map_single,
        { .iothreads = 2, .luns = 1,
          .controller = "\"num_queues\":3,\"iothread\":\"iot1\"" },
    }, {
        "many-queues", test_many_queues,
        { .iothreads = 4, .luns = 1, .form = MQ_INDIRECT,
          .controller = MAP4 ",\"num_queues\":64,\"virtqueue_size\":64" },
    }, {
        "data/modern", test_data,
        { .iothreads = 2, .luns = 2, .backend = BACKEND_FILE,
          .controller = MAP2 ",\"num_queues\":4,\"virtqueue_size\":64,"
              "\"disable-legacy\":\"on\",\"packed\":true" },
    }, {
        "data/legacy", test_data,
        { .iothreads = 2, .luns = 2, .backend = BACKEND_FILE,
          .controller = MAP2 ",\"num_queues\":4,\"virtqueue_size\":64,"
              "\"disable-modern\":true,\"disable-legacy\":\"off\"" },
    }, {
        "data/modern-one-buffer", test_data,
        { .iothreads = 2, .luns = 1, .backend = BACKEND_FILE,
          .form = MQ_ONE_BUF,
          .controller = MAP2 ",\"num_queues\":3,\"virtqueue_size\":64,"
              "\"disable-legacy\":\"on\",\"packed\":true" },
    }, {
        "data/legacy-one-buffer", test_data,
        { .iothreads = 2, .luns = 1, .backend = BACKEND_FILE,
          .form = MQ_ONE_BUF,
          .controller = MAP2 ",\"num_queues\":3,\"virtqueue_size\":64,"
              "\"disable-modern\":true,\"disable-legacy\":\"off\"" },
    }, {
        "full-depth", test_full_depth,
        { .iothreads = 4, .luns = 3, .backend = BACKEND_FILE,
          .form = MQ_INDIRECT | MQ_EVENT_IDX,
          .controller = MAP4 ",\"num_queues\":8,\"virtqueue_size\":128" },
    }, {
        "interrupts", test_interrupts,
        { .iothreads = 2, .luns = 1,
          .controller = MAP2 ",\"num_queues\":3,\"packed\":true" },
    }, {
        "errors/device_add", test_errors_qmp,
        { .iothreads = 3, .luns = 1, .no_controller = true },
    }, {
        "errors/command-line", test_errors_cmdline,
        { .no_controller = true },
    }, {
        "idle-iothreads", test_idle_iothreads,
        { .iothreads = 4, .luns = 1,
          .controller = MAP4 ",\"num_queues\":2" },
    }, {
        "unplug-controller", test_unplug_controller,
        { .iothreads = 2, .luns = 2, .backend = BACKEND_SLOW,
          .form = MQ_INDIRECT,
          .controller = MAP2 ",\"num_queues\":4,\"virtqueue_size\":64" },
    }, {
        "reset/modern", test_reset,
        { .iothreads = 3, .luns = 2, .backend = BACKEND_SLOW,
          .form = MQ_PACKED | MQ_INDIRECT,
          .controller = MAP3 ",\"num_queues\":5,\"virtqueue_size\":64,"
              "\"packed\":true,\"disable-legacy\":\"on\"" },
    }, {
        "reset/legacy", test_reset,
        { .iothreads = 3, .luns = 2, .backend = BACKEND_SLOW,
          .controller = MAP3 ",\"num_queues\":5,\"virtqueue_size\":64,"
              "\"disable-modern\":true,\"disable-legacy\":\"off\"" },
    }, {
        "reset/system", test_system_reset,
        { .iothreads = 3, .luns = 2, .backend = BACKEND_SLOW,
          .form = MQ_EVENT_IDX,
          .controller = MAP3 ",\"num_queues\":5,\"virtqueue_size\":64" },
    }, {
        "stop-cont", test_stop_cont,
        { .iothreads = 2, .luns = 2, .backend = BACKEND_FILE,
          .form = MQ_INDIRECT | MQ_EVENT_IDX,
          .controller = MAP2 ",\"num_queues\":4,\"virtqueue_size\":64" },
    }, {
        "early-kick/modern", test_early_kick,
        { .iothreads = 2, .luns = 1,
          .controller = MAP2 ",\"num_queues\":4,\"disable-legacy\":\"on\"" },
    }, {
        "early-kick/legacy", test_early_kick,
        { .iothreads = 2, .luns = 1,
          .controller = MAP2 ",\"num_queues\":4,"
              "\"disable-modern\":true,\"disable-legacy\":\"off\"" },
    }, {
        "few-fds", test_few_fds,
        { .iothreads = 2, .luns = 1,
          .controller = MAP2 ",\"num_queues\":4" },
    }, {
        "answers", test_answers,
        { .iothreads = 2, .luns = 3,
          .controller = MAP2 ",\"num_queues\":3" },
    }, {
        "broken-request", test_broken_request,
        { .iothreads = 2, .luns = 1,
          .controller = MAP2 ",\"num_queues\":3" },
    }, {
        "tmf/abort-task", test_tmf_abort_task,
        { .iothreads = 4, .luns = 3,
          .controller = MAP4 ",\"num_queues\":5" },
    }, {
        "tmf/task-set", test_tmf_task_set,
        { .iothreads = 4, .luns = 3,
          .controller = MAP4 ",\"num_queues\":5" },
    }, {
        "tmf/query", test_tmf_query,
        { .iothreads = 4, .luns = 2,
          .controller = MAP4 ",\"num_queues\":5" },
    }, {
        "tmf/reset", test_tmf_reset,
        { .iothreads = 4, .luns = 2, .backend = BACKEND_SLOW,
          .controller = MAP4 ",\"num_queues\":5" },
    }, {
        "events", test_events,
        { .iothreads = 2, .luns = 1, .backend = BACKEND_FILE,
          .controller = MAP2 ",\"num_queues\":3" },
    }, {
        "lun-hotplug", test_lun_hotplug,
        { .iothreads = 2, .luns = 2, .backend = BACKEND_FILE,
          .form = MQ_INDIRECT | MQ_EVENT_IDX,
          .controller = MAP2 ",\"num_queues\":4,\"virtqueue_size\":64" },
    }, {
        "lun-homes/round-robin", test_homes_round_robin,
        { .iothreads = 4, .luns = 6, .backend = BACKEND_NULL,
          .controller = MAP4 ",\"num_queues\":3" },
    }, {
        "lun-homes/vqs", test_homes_vqs,
        { .iothreads = 4, .luns = 6, .backend = BACKEND_NULL,
          .controller = "\"num_queues\":6,\"iothread-vq-mapping\":["
              "{\"iothread\":\"iot0\",\"vqs\":[4,1]},"
              "{\"iothread\":\"iot1\",\"vqs\":[5,2]},"
              "{\"iothread\":\"iot2\",\"vqs\":[0,3]}]" },
    }, {
        "lun-homes/iothread", test_homes_iothread,
        { .iothreads = 3, .luns = 6, .backend = BACKEND_NULL,
          .controller = "\"num_queues\":3,\"iothread\":\"iot1\"" },
    }, {
        "migrate/other-mapping", test_migrate_mapping,
        { .iothreads = 2, .form = MQ_EVENT_IDX,
          .controller = MAP2 ",\"num_queues\":4" },
    }, {
        "migrate/to-no-mapping", test_migrate_no_mapping,
        { .iothreads = 3,
          .controller = MAP_CROSSED ",\"num_queues\":4" },
    }, {
        "packed-migrate/direct", test_migrate_packed,
        { .iothreads = 2, .form = MQ_PACKED,
          .controller = MAP2 ",\"num_queues\":4,\"packed\":true,"
              "\"disable-legacy\":\"on\"" },
    }, {
        "packed-migrate/indirect", test_migrate_packed,
        { .iothreads = 2, .form = MQ_PACKED | MQ_INDIRECT | MQ_EVENT_IDX,
          .controller = MAP2 ",\"num_queues\":4,\"packed\":true,"
              "\"disable-legacy\":\"on\"" },
    }, {
        "hostile-stream", test_hostile_stream,
        { .iothreads = 2, .controller = MAP2 ",\"num_queues\":4" },
    }, {
        "migrate/from-no-mapping", test_migrate_mapping,
        { .form = MQ_INDIRECT,
          .controller = "\"num_queues\":4" },
    },
};

static void register_virtio_scsi_mq_tests(void)
{
    const char *arch = qtest_get_arch();

    /* The driver is little-endian, and unplugging is done the PC's way. */
    if (!g_str_equal(arch, "x86_64") && !g_str_equal(arch, "i386")) {
        return;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(mq_tests); i++) {
        g_autofree char *name =
            g_strdup_printf("virtio-scsi-mq/%s", mq_tests[i].name);
        QOSGraphTestOptions opts = {
            .before = mq_before,
            .arg = (void *)&mq_tests[i].cfg,
        };

        qos_add_test(name, "pci-bus", mq_tests[i].func, &opts);
    }
}

libqos_init(register_virtio_scsi_mq_tests);
