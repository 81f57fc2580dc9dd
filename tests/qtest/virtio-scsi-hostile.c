/*
 * A hostile guest for virtio-scsi
 *
 * Each round sets a controller up, with more or less that is wrong, and does
 * random things to it: rings and buffers in RAM, MMIO, ROM and nowhere, loops
 * of descriptors, indices that a thread goes on moving, random commands, TMFs,
 * registers, interrupts; and the host stops the VM, unplugs LUNs, runs jobs.
 * After each of them a register access and query-status are timed.  At the end
 * of a round a device reset must bring back a controller that works.
 *
 * A run fails if QEMU dies, if it doesn't answer within --limit-ms, or if the
 * controller doesn't work after the reset.  It prints seed, round and the last
 * acts then.  What a round does depends on its seed and number only, so
 * --seed=S --first-round=R --rounds=1 does it again.  When QEMU's threads do
 * what is another matter.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_pci.h"
#include "virtio-scsi-hostile.h"

#define RAM_SIZE    (32 * 1024 * 1024)
#define DEPTH       8           /* of the honest driver's queues */
#define MAX_ACTS    24
#define EXIT_HANG   3
#define PATIENCE_MS 60000

typedef struct Controller {
    const char *name;
    const char *options;
} Controller;

static const Controller controllers[] = {
    { "mapped", "\"iothread-vq-mapping\":[{\"iothread\":\"t0\"},"
                "{\"iothread\":\"t1\"}]" },
    { "one-thread", "\"iothread\":\"t0\"" },
    { "no-ioeventfd", "\"ioeventfd\":false" },
    { "main-loop", "\"cmd_per_lun\":8" },
};

static int opt_seed = -1;
static int opt_rounds = 100;
static int opt_first;
static int opt_limit = PATIENCE_MS;
static gboolean opt_gdb;
static char *opt_qemu;
static char *opt_controller;

static const GOptionEntry options[] = {
    { "seed", 0, 0, G_OPTION_ARG_INT, &opt_seed,
      "Run this seed only (default: a few, short)", "N" },
    { "rounds", 0, 0, G_OPTION_ARG_INT, &opt_rounds,
      "Rounds of --seed (100)", "R" },
    { "first-round", 0, 0, G_OPTION_ARG_INT, &opt_first,
      "Begin with this round (0)", "R" },
    { "controller", 0, 0, G_OPTION_ARG_STRING, &opt_controller,
      "mapped, one-thread, no-ioeventfd or main-loop (by the seed)", "KIND" },
    { "limit-ms", 0, 0, G_OPTION_ARG_INT, &opt_limit,
      "How long an answer may take (60000)", "MS" },
    { "gdb", 0, 0, G_OPTION_ARG_NONE, &opt_gdb,
      "Print backtraces of a QEMU that hangs", NULL },
    { "qemu", 0, 0, G_OPTION_ARG_FILENAME, &opt_qemu,
      "The binary ($QTEST_QEMU_BINARY)", "FILE" },
    { NULL }
};

/*
 * The log, and times
 */

void hostile_log(Hostile *h, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    g_vsnprintf(h->log[h->logged++ % LOG_ENTRIES], sizeof(h->log[0]), fmt, ap);
    va_end(ap);
}

void hostile_report(Hostile *h, const char *why)
{
    unsigned first = h->logged > LOG_ENTRIES ? h->logged - LOG_ENTRIES : 0;

    fprintf(stderr, "hostile: %s: seed=%u round=%u odds=%u%s controller=%s, "
            "in '%s'\n", why, h->seed, h->round, h->odds,
            h->quick ? " quick" : "", h->controller, h->watch.what);
    for (unsigned i = first; i < h->logged; i++) {
        fprintf(stderr, "    %s\n", h->log[i % LOG_ENTRIES]);
    }
}

static void report_abort(void *opaque)
{
    hostile_report(opaque, "failed");
}

void op_begin(Hostile *h, OpKind kind, const char *fmt, ...)
{
    Watch *w = &h->watch;
    va_list ap;

    g_mutex_lock(&w->lock);
    va_start(ap, fmt);
    g_vsnprintf(w->what, sizeof(w->what), fmt, ap);
    va_end(ap);
    w->kind = kind;
    w->since = g_get_monotonic_time();
    g_mutex_unlock(&w->lock);
}

void op_end(Hostile *h)
{
    Watch *w = &h->watch;
    gint64 took;

    g_mutex_lock(&w->lock);
    took = g_get_monotonic_time() - w->since;
    w->since = 0;
    if (took > w->max_us[w->kind]) {
        w->max_us[w->kind] = took;
        memcpy(w->slowest[w->kind], w->what, sizeof(w->what));
    }
    g_mutex_unlock(&w->lock);
}

/* What is more than one access may take longer. */
static gint64 limit_us(OpKind kind)
{
    gint64 limit = opt_limit * 1000ll;

    return kind == OP_OTHER ? MAX(limit, 10 * G_USEC_PER_SEC) : limit;
}

static G_NORETURN void hang(Hostile *h)
{
    pid_t pid = qtest_pid(h->qts);

    hostile_report(h, "HANG");
    if (opt_gdb) {
        g_autofree char *cmd = g_strdup_printf(
            "gdb -p %d -batch -ex 'thread apply all bt 24' 2>/dev/null "
            "| grep -E '^(#|Thread)' >&2", (int)pid);

        if (system(cmd)) {
            g_printerr("no backtrace\n");
        }
    }
    fflush(NULL);
    /* Before the other thread finds that QEMU is gone, and calls it an abort */
    kill(pid, SIGKILL);
    _exit(EXIT_HANG);
}

static void *watch_run(void *opaque)
{
    Hostile *h = opaque;
    Watch *w = &h->watch;

    g_mutex_lock(&w->lock);
    while (!w->stop) {
        gint64 now = g_get_monotonic_time();

        if (w->since && now - w->since > limit_us(w->kind)) {
            hang(h);
        }
        g_cond_wait_until(&w->cond, &w->lock, now + G_USEC_PER_SEC / 20);
    }
    g_mutex_unlock(&w->lock);
    return NULL;
}

static void watch_stop(Watch *w)
{
    g_mutex_lock(&w->lock);
    w->stop = true;
    g_cond_signal(&w->cond);
    g_mutex_unlock(&w->lock);
    g_thread_join(w->thread);
}

/*
 * Registers and QMP
 */

void reg_write(Hostile *h, unsigned size, uint64_t addr, uint64_t value)
{
    op_begin(h, OP_REGISTER, "write%u 0x%" PRIx64 " = 0x%" PRIx64, size, addr,
             value);
    switch (size) {
    case 1:
        qtest_writeb(h->qts, addr, value);
        break;
    case 2:
        qtest_writew(h->qts, addr, value);
        break;
    default:
        qtest_writel(h->qts, addr, value);
        break;
    }
    op_end(h);
}

uint64_t reg_read(Hostile *h, unsigned size, uint64_t addr)
{
    uint64_t value;

    op_begin(h, OP_REGISTER, "read%u 0x%" PRIx64, size, addr);
    value = size == 1 ? qtest_readb(h->qts, addr)
                      : size == 2 ? qtest_readw(h->qts, addr)
                                  : qtest_readl(h->qts, addr);
    op_end(h);
    return value;
}

uint64_t common_reg(const Hostile *h, unsigned offset)
{
    return h->dev->pci->bar.addr + h->dev->pci->common_cfg_offset + offset;
}

QDict *hostile_qmp(Hostile *h, const char *name, const char *args)
{
    g_autofree char *text = g_strdup_printf(
        "{'execute': '%s', 'arguments': %s}", name, args ?: "{}");
    QDict *answer;

    op_begin(h, OP_QMP, "%s", name);
    qtest_qmp_send_raw(h->qts, "%s", text);
    answer = qtest_qmp_receive(h->qts);
    op_end(h);
    return answer;
}

bool hostile_qmp_ok(Hostile *h, const char *name, const char *args)
{
    QDict *answer = hostile_qmp(h, name, args);
    bool ok = qdict_haskey(answer, "return");

    hostile_log(h, "QMP %s%s", name, ok ? "" : ": refused");
    qobject_unref(answer);
    return ok;
}

/*
 * The VM
 */

void hostile_find_device(Hostile *h)
{
    QPCIDevice *other;

    op_begin(h, OP_OTHER, "probe");
    if (h->dev) {
        shm_probe(h->dev);
    } else {
        h->dev = shm_new(h->qts, &h->mem, PCI_SLOT, DEPTH);
    }
    qpci_msix_enable(h->dev->pci->pdev);
    other = qpci_device_find(h->dev->bus, QPCI_DEVFN(OTHER_SLOT, 0));
    g_assert_nonnull(other);
    qpci_device_enable(other);
    h->other_bar = qpci_iomap(other, 4, NULL).addr;
    g_free(other);
    op_end(h);
}

static const Controller *pick_controller(uint32_t seed)
{
    static const uint8_t by_seed[] = { 0, 0, 1, 0, 2, 3 };
    unsigned i = by_seed[seed % ARRAY_SIZE(by_seed)];

    if (opt_controller) {
        for (i = 0; strcmp(controllers[i].name, opt_controller); i++) {
            if (i + 1 == ARRAY_SIZE(controllers)) {
                g_error("%s: no such kind of controller", opt_controller);
            }
        }
    }
    return &controllers[i];
}

#define NULL_CO(node, more) \
    " -blockdev null-co,node-name=" node ",size=1048576,read-zeroes=on" more
#define LUN(driver, id, node, target, lun, more) \
    " -device '{\"driver\":\"" driver "\",\"id\":\"" id "\"," node \
    "\"bus\":\"scsi0.0\",\"scsi-id\":" target ",\"lun\":" lun more "}'"
#define DISK(id, target, lun, more) \
    LUN("scsi-hd", id, "\"drive\":\"" id "\",", target, lun, \
        ",\"share-rw\":true" more)
#define POLICY(what) ",\"rerror\":\"" what "\",\"werror\":\"" what "\""
#define LIMITED(node) \
    " -object throttle-group,id=tg,x-iops-total=20" \
    " -blockdev '{\"driver\":\"throttle\",\"node-name\":\"" node "\"," \
    "\"throttle-group\":\"tg\",\"file\":{\"driver\":\"null-co\"," \
    "\"size\":1048576}}'"
#define FAILING(node) \
    " -blockdev '{\"driver\":\"blkdebug\",\"node-name\":\"" node "\"," \
    "\"image\":{\"driver\":\"null-co\",\"size\":1048576},\"inject-error\":[" \
    "{\"event\":\"none\",\"errno\":5,\"immediately\":true,\"once\":false}]}'"

static void start_qemu(Hostile *h, const char *options)
{
    static const unsigned depths[] = { 256, 32, 128, 1024 };
    g_autofree char *mem = shm_mem_args(&h->mem);

    h->qts = qtest_initf(
        "-machine pc,memory-backend=ram %s -nodefaults "
        "-object iothread,id=t0 -object iothread,id=t1 "
        "-device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"scsi0\","
        "\"addr\":\"%02x.0\",\"num_queues\":%u,\"packed\":true,"
        "\"virtqueue_size\":%u,%s}' "
        "-device virtio-scsi-pci,id=other,addr=%02x.0"
        NULL_CO("disk", "") NULL_CO("copy", ",latency-ns=2000000")
        NULL_CO("slow", ",latency-ns=5000000") NULL_CO("hot", "")
        NULL_CO("medium", ",read-only=on") FAILING("bad") FAILING("halt")
        LIMITED("limited")
        DISK("disk", "0", "0", "") DISK("bad", "0", "1", POLICY("report"))
        DISK("slow", "0", "2", "") DISK("halt", "1", "2", POLICY("stop"))
        DISK("hot", "1", "1", "") DISK("limited", "2", "1", "")
        LUN("scsi-cd", "cd", "\"drive\":\"medium\",", "1", "0", "")
        LUN("scsi-cd", "empty", "", "2", "0", ""),
        mem, PCI_SLOT, NUM_REQUEST_VQS, PICK(h, depths), options,
        OTHER_SLOT);
}

static void hostile_open(Hostile *h, uint32_t seed)
{
    const Controller *controller = pick_controller(seed);

    h->seed = seed;
    h->controller = controller->name;
    h->rand = g_rand_new_with_seed(seed);
    h->flags = (chance(h, 35) ? SHM_PACKED : 0) |
               (chance(h, 35) ? SHM_INDIRECT : 0);
    shm_mem_init(&h->mem, RAM_SIZE);
    start_qemu(h, controller->options);
    qtest_add_abrt_handler(report_abort, h);
    h->watch.thread = g_thread_new("watch", watch_run, h);
    hostile_find_device(h);
    ring_homes(h);
}

static void hostile_close(Hostile *h)
{
    op_begin(h, OP_OTHER, "quit");
    qtest_quit(h->qts);
    op_end(h);
    watch_stop(&h->watch);
    qtest_remove_abrt_handler(h);
    shm_free(h->dev);
    shm_mem_destroy(&h->mem);
    g_rand_free(h->rand);
}

/*
 * Rounds
 */

static void run_round(Hostile *h)
{
    static const unsigned odds[] = { 0, 1, 3, 10, 30 };
    const uint32_t key[] = { h->seed, h->round };
    unsigned acts;

    g_rand_set_seed_array(h->rand, key, ARRAY_SIZE(key));
    h->logged = 0;
    h->odds = PICK(h, odds);
    h->quick = chance(h, 25);
    acts = 6 + below(h, MAX_ACTS);
    hostile_set_up(h);
    for (unsigned i = 0; i < acts; i++) {
        hostile_act(h);
        qobject_unref(hostile_qmp(h, "query-status", NULL));
        reg_read(h, 1, common_reg(h, offsetof(struct virtio_pci_common_cfg,
                                              device_status)));
    }
    hostile_recover(h);
}

static void run_seed(uint32_t seed, unsigned first, unsigned rounds)
{
    Hostile h = { 0 };
    Watch *w = &h.watch;

    hostile_open(&h, seed);
    for (unsigned i = 0; i < rounds; i++) {
        h.round = first + i;
        run_round(&h);
    }
    hostile_close(&h);
    g_test_message("seed=%u rounds=%u qmp-max-ms=%.1f (%s) "
                   "register-max-ms=%.1f (%s) other-max-ms=%.1f (%s) %s",
                   seed, rounds, w->max_us[OP_QMP] / 1000.,
                   w->slowest[OP_QMP], w->max_us[OP_REGISTER] / 1000.,
                   w->slowest[OP_REGISTER], w->max_us[OP_OTHER] / 1000.,
                   w->slowest[OP_OTHER], h.controller);
}

static void test_option(void)
{
    run_seed(opt_seed, opt_first, opt_rounds);
}

/* One with each kind of controller */
static void test_short(const void *opaque)
{
    run_seed(GPOINTER_TO_UINT(opaque), 0, 20);
}

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) err = NULL;

    g_option_context_add_main_entries(context, options, NULL);
    g_option_context_set_ignore_unknown_options(context, true);
    if (!g_option_context_parse(context, &argc, &argv, &err)) {
        g_printerr("%s\n", err->message);
        return 1;
    }
    if (opt_qemu) {
        g_setenv("QTEST_QEMU_BINARY", opt_qemu, true);
    }
    g_test_init(&argc, &argv, NULL);
    if (opt_seed >= 0) {
        qtest_add_func("/virtio-scsi-hostile/seed", test_option);
    } else {
        for (unsigned seed = 1; seed <= 5; seed++) {
            g_autofree char *path = g_strdup_printf(
                "/virtio-scsi-hostile/short/%u", seed);

            qtest_add_data_func(path, GUINT_TO_POINTER(seed), test_short);
        }
    }
    return g_test_run();
}
