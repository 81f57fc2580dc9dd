/*
 * Stress of a virtio-scsi device whose queues are served by several IOThreads
 *
 * Each test runs commands on all queues until STRESS_OPS of them have been
 * answered, and between them, under load, does things to the device: resets,
 * task management, hot plug, block jobs...  It checks that
 *
 * - each command is answered exactly once, as it should be;
 * - reads return what was written (each block knows where it belongs, and the
 *   generation that was written last);
 * - sense data are those of the command, and a unit attention is reported once;
 * - nothing that a TMF aborts is answered after the TMF;
 * - what QMP says of the queues is right.
 *
 * Environment:
 *   STRESS_OPS     commands per test (2000), at least; it also sets how much is
 *                  done to the device
 *   STRESS_SEED    seed of all random choices (random, printed)
 *   STRESS_RSS_KB  by how much QEMU's memory may be more in the last thousand
 *                  acts than in the first (not looked at)
 *   STRESS_STOCK   1: QEMU is one without this series; what that is known to
 *                  fail is relaxed, each place with its reason, see where
 *                  stress_on_stock() is called
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include <glib/gstdio.h>
#include <sys/socket.h>
#include "libqmp.h"
#include "virtio-scsi-stress.h"

#define PCI_SLOT    4
#define RAM_SIZE    (32 * 1024 * 1024)
#define DEPTH       16      /* commands in flight on each queue */

/* Time that the slow LUN takes for anything */
#define SLOW_NS     20000000

static const LunSpec lun_specs[] = {
    { "disk0", 0, 0, LUN_DATA },
    { "disk1", 0, 1, LUN_DATA },
    { "disk2", 1, 0, LUN_DATA },
    { "zero",  0, 2, LUN_ZERO },
    { "error", 0, 3, LUN_DATA | LUN_ERRORS },
    { "size",  0, 4, LUN_DATA | LUN_RESIZE },
    { "stop",  1, 1, LUN_DATA | LUN_STOPS },
    { "slow",  2, 0, LUN_SLOW },
    { "hot0",  3, 0, LUN_DATA | LUN_HOT },
    { "hot1",  0, 7, LUN_DATA | LUN_HOT },
    { "hot2",  2, 1, LUN_SLOW | LUN_HOT },
};

static const char *const counter_names[NUM_COUNTERS] = {
    "commands", "blocks-read", "blocks-written", "sense", "unit-attentions",
    "tmfs", "aborted", "pinned", "no-target", "resets", "lost-to-resets",
    "config-writes", "plugs", "stops", "retries", "jobs", "events",
    "stats", "remaps", "moves", "throttles", "iothreads", "controllers",
    "migrations", "operations",
};

bool stress_on_stock(void)
{
    const char *env = getenv("STRESS_STOCK");

    return env && !strcmp(env, "1");
}

/* A number from the environment */
static uint64_t env_number(const char *name, uint64_t fallback)
{
    const char *text = getenv(name);
    uint64_t value = fallback;

    if (text && *text && qemu_strtou64(text, NULL, 10, &value)) {
        g_printerr("%s=%s is not a number\n", name, text);
        exit(1);
    }
    return value;
}

/*
 * LUNs
 */

/* Does the scenario use this LUN? */
static bool wants_lun(const Scenario *sc, unsigned i)
{
    unsigned special = lun_specs[i].kind & ~(LUN_DATA | LUN_ZERO);

    if (!sc->luns) {
        return i == 0;
    }
    return special ? !(special & ~sc->luns) : sc->luns & lun_specs[i].kind;
}

static void lun_init(Stress *s, Lun *lun, const LunSpec *spec)
{
    int fd;

    lun->spec = spec;
    lun->index = lun - s->luns;
    lun->present = true;
    lun->capacity = TOTAL_BLOCKS;
    lun->node = g_strdup_printf("%s-0", spec->name);
    if (!(spec->kind & LUN_DATA)) {
        return;
    }
    lun->blocks = g_new0(Block, TOTAL_BLOCKS);
    lun->file = g_strdup_printf("%s/%s-0", s->dir, spec->name);
    fd = g_open(lun->file, O_CREAT | O_RDWR, 0600);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, TOTAL_BLOCKS * BLOCK_SIZE), ==, 0);
    close(fd);
}

static void init_luns(Stress *s)
{
    s->luns = g_new0(Lun, ARRAY_SIZE(lun_specs));
    for (unsigned i = 0; i < ARRAY_SIZE(lun_specs); i++) {
        if (wants_lun(s->sc, i)) {
            lun_init(s, &s->luns[s->num_luns++], &lun_specs[i]);
        }
    }
}

static void free_luns(Stress *s)
{
    for (unsigned i = 0; i < s->num_luns; i++) {
        Lun *lun = &s->luns[i];

        g_free(lun->file);
        g_free(lun->node);
        g_free(lun->blocks);
    }
    g_free(s->luns);
}

/*
 * Command line
 */

static void add_rules(GString *args, const char *iotype, bool once,
                      unsigned first, unsigned num)
{
    for (unsigned i = first; i < first + num; i++) {
        g_string_append_printf(args, "%s{\"event\":\"none\",\"errno\":%d,"
                               "\"iotype\":\"%s\",\"once\":%s,\"sector\":%u}",
                               args->str[args->len - 1] == '[' ? "" : ",",
                               EIO, iotype, once ? "true" : "false",
                               DISK_BLOCKS + i);
    }
}

static void add_blkdebug(GString *args, const Lun *lun)
{
    g_string_append_printf(args, " -blockdev '{\"driver\":\"blkdebug\","
                           "\"node-name\":\"%s\",\"image\":\"%s-file\","
                           "\"inject-error\":[", lun->node, lun->node);
    if (lun->spec->kind & LUN_ERRORS) {
        add_rules(args, "read", false, 0, SPECIAL_BLOCKS);
    } else {
        add_rules(args, "read", true, 0, SPECIAL_BLOCKS / 2);
        add_rules(args, "write", true, SPECIAL_BLOCKS / 2, SPECIAL_BLOCKS / 2);
    }
    g_string_append(args, "]}'");
}

static void add_node(GString *args, const Lun *lun)
{
    bool filtered = lun->spec->kind & (LUN_ERRORS | LUN_STOPS);

    if (lun->blocks) {
        g_string_append_printf(args, " -blockdev '{\"driver\":\"file\","
                               "\"node-name\":\"%s%s\",\"filename\":\"%s\","
                               "\"discard\":\"unmap\",\"aio\":\"threads\"}'",
                               lun->node, filtered ? "-file" : "", lun->file);
    } else {
        g_string_append_printf(args, " -blockdev '{\"driver\":\"null-co\","
                               "\"node-name\":\"%s\",\"read-zeroes\":true,"
                               "\"latency-ns\":%u,\"size\":%u}'", lun->node,
                               lun->spec->kind & LUN_SLOW ? SLOW_NS : 0,
                               TOTAL_BLOCKS * BLOCK_SIZE);
    }
    if (filtered) {
        add_blkdebug(args, lun);
    }
}

static void add_lun(GString *args, const Lun *lun)
{
    const char *policy = lun->spec->kind & LUN_STOPS ? "stop" : "report";

    add_node(args, lun);
    g_string_append_printf(args, " -device '{\"driver\":\"scsi-hd\","
                           "\"id\":\"%s\",\"bus\":\"scsi0.0\","
                           "\"drive\":\"%s\",\"scsi-id\":%u,\"lun\":%u,"
                           "\"rerror\":\"%s\",\"werror\":\"%s\"}'",
                           lun->spec->name, lun->node, lun->spec->target,
                           lun->spec->lun, policy, policy);
}

static char *command_line(Stress *s, int qmp_fd)
{
    g_autofree char *mem = shm_mem_args(&s->mem);
    GString *args = g_string_new(NULL);

    g_string_append_printf(args, "-machine pc,memory-backend=ram %s "
                           "-nodefaults -chardev socket,id=stress,fd=%d "
                           "-mon chardev=stress,mode=control", mem, qmp_fd);
    for (unsigned i = 0; i < s->sc->num_iothreads; i++) {
        g_string_append_printf(args, " -object iothread,id=t%u", i);
    }
    g_string_append_printf(args, " -device '{\"driver\":\"virtio-scsi-pci\","
                           "\"id\":\"scsi0\",\"addr\":\"%02x.0\","
                           "\"num_queues\":%u,\"iothread-vq-mapping\":%s}'",
                           PCI_SLOT, s->sc->num_queues, s->sc->mapping);
    for (unsigned i = 0; i < s->num_luns; i++) {
        add_lun(args, &s->luns[i]);
    }
    oper_add_args(s, args);
    return g_string_free(args, false);
}

/*
 * A scenario
 */

static void start_qemu(Stress *s)
{
    g_autofree char *args = NULL;
    int fds[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
    g_assert_cmpint(fcntl(fds[0], F_SETFD, FD_CLOEXEC), ==, 0);
    args = command_line(s, fds[1]);
    s->qts = qtest_init(args);
    s->qmp = fds[0];
    close(fds[1]);
    qobject_unref(qmp_fd_receive(s->qmp));
    qobject_unref(qmp_fd(s->qmp, "{'execute': 'qmp_capabilities'}"));
    oper_start(s);
}

static void start_device(Stress *s)
{
    ShmDev *d = s->dev = shm_new(s->qts, &s->mem, PCI_SLOT, DEPTH);

    shm_start(d, s->sc->flags);
    g_assert_cmpuint(d->num_queues, <=, MAX_QUEUES);
    s->ops = g_new0(Op, d->num_queues * DEPTH);
    s->tmfs = g_new0(Tmf, DEPTH);
    for (unsigned i = 0; i < d->num_queues; i++) {
        for (unsigned j = 0; j < DEPTH; j++) {
            shm_queue(d, i)->slots[j].owner = &s->ops[i * DEPTH + j];
        }
    }
    for (unsigned j = 0; j < DEPTH; j++) {
        shm_ctrl(d)->slots[j].owner = &s->tmfs[j];
    }
    load_post_events(s);
}

/* Also called when a test fails */
static void remove_dir(void *opaque)
{
    const char *path = opaque;
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);

        g_unlink(file);
    }
    g_clear_pointer(&dir, g_dir_close);
    g_rmdir(path);
}

static void stress_open(Stress *s, const Scenario *sc, uint32_t seed)
{
    s->sc = sc;
    s->classes = sc->classes;
    s->rand = g_rand_new_with_seed(seed);
    s->dir = g_dir_make_tmp("virtio-scsi-stress-XXXXXX", NULL);
    g_assert_nonnull(s->dir);
    qtest_add_abrt_handler(remove_dir, s->dir);
    init_luns(s);
    s->ua_due[UA_RESET] = s->num_luns;
    shm_mem_init(&s->mem, RAM_SIZE);
    start_qemu(s);
    start_device(s);
}

static void stress_close(Stress *s)
{
    if (s->sc->operators) {
        oper_quit(s);
    }
    qtest_quit(s->qts);
    close(s->qmp);
    shm_free(s->dev);
    shm_mem_destroy(&s->mem);
    free_luns(s);
    qtest_remove_abrt_handler(s->dir);
    remove_dir(s->dir);
    g_free(s->dir);
    g_free(s->ops);
    g_free(s->tmfs);
    g_rand_free(s->rand);
}

static void report(Stress *s, uint32_t seed)
{
    g_autoptr(GString) text = g_string_new(NULL);
    uint64_t kicks = 0;

    for (unsigned i = 0; i < NUM_COUNTERS; i++) {
        if (s->count[i]) {
            g_string_append_printf(text, " %s=%" PRIu64, counter_names[i],
                                   s->count[i]);
        }
    }
    for (unsigned i = 0; i < s->dev->num_vqs; i++) {
        kicks += s->dev->vqs[i].kicks;
    }
    g_test_message("ops %s seed=%u%s kicks=%" PRIu64 " rss-kb=%" PRIu64
                   "/%" PRIu64, s->sc->name, seed, text->str, kicks,
                   s->rss_first, s->rss_last);
}

/*
 * A condition is reported once at most, over all queues.  Less often is right:
 * several that are pending at once may be one, and a LUN may go with its own.
 */
static void check_unit_attentions(Stress *s)
{
    for (unsigned kind = 0; kind < NUM_UA_KINDS; kind++) {
        uint64_t told = 0;

        for (unsigned i = 0; i < NUM_TARGETS; i++) {
            told += s->ua[i][kind];
        }
        if (!stress_on_stock()) {
            g_assert_cmpuint(told, <=, s->ua_due[kind]);
        }
    }
}

/* Was all of the scenario done? */
static void check_counters(Stress *s)
{
    for (unsigned i = 0; i < NUM_COUNTERS; i++) {
        if (s->sc->must & (1 << i) && !s->count[i]) {
            g_printerr("%s: no %s at all\n", s->sc->name, counter_names[i]);
            g_assert_not_reached();
        }
    }
}

/*
 * Memory of the first and of the last thousand acts (or half of them).  QEMU
 * has all it needs soon, as each thousand are the same.  What block jobs have
 * while they run, 10 MiB each and more, comes and goes: the most that was there
 * at first, and the least that stays at last.
 */
static void watch_memory(Stress *s, uint64_t i, uint64_t rounds)
{
    uint64_t window = MIN(rounds / 2, 1000);

    if (i < window) {
        s->rss_first = MAX(s->rss_first, shm_qemu_rss_kb(s->qts));
    } else if (i >= rounds - window) {
        uint64_t now = shm_qemu_rss_kb(s->qts);

        s->rss_last = s->rss_last ? MIN(s->rss_last, now) : now;
    }
}

static void check_memory(Stress *s)
{
    uint64_t more = env_number("STRESS_RSS_KB", UINT64_MAX / 2);

    g_assert_cmpuint(s->rss_last, <=, s->rss_first + more);
}

/* Acts in random order, but all equally often */
static void run_acts(Stress *s, uint64_t rounds)
{
    ActFunc *deck[32];
    unsigned num = 0, left = 0;

    for (uint64_t i = 0; i < rounds; i++) {
        watch_memory(s, i, rounds);
        load_run(s, 1 + stress_below(s, 2 * PACE));
        stat_check(s);
        if (!left) {
            for (num = 0; s->sc->acts[num]; num++) {
                deck[num] = s->sc->acts[num];
            }
            left = num;
        }
        if (left) {
            unsigned pick = stress_below(s, left);
            ActFunc *act = deck[pick];

            deck[pick] = deck[--left];
            act(s);
        }
    }
}

static void run(const void *opaque)
{
    const Scenario *sc = opaque;
    uint64_t ops = env_number("STRESS_OPS", 2000);
    uint32_t seed = env_number("STRESS_SEED", g_random_int());
    Stress s = { 0 };

    g_test_message("%s: STRESS_SEED=%u", sc->name, seed);
    stress_open(&s, sc, seed);
    run_acts(&s, ops / PACE);
    load_run(&s, ops - MIN(ops, s.count[COUNT_COMMANDS]));
    act_finish_jobs(&s);
    tmf_drain(&s);
    load_verify(&s);
    stat_check_sums(&s);
    check_unit_attentions(&s);
    oper_stop(&s);
    report(&s, seed);
    check_counters(&s);
    check_memory(&s);
    stress_close(&s);
}

/*
 * Scenarios
 */

#define MAP4 "[{\"iothread\":\"t0\",\"vqs\":[0]}," \
             "{\"iothread\":\"t1\",\"vqs\":[1]}," \
             "{\"iothread\":\"t2\",\"vqs\":[2]}," \
             "{\"iothread\":\"t3\",\"vqs\":[3]}]"
#define MAP3 "[{\"iothread\":\"t0\"},{\"iothread\":\"t1\"}," \
             "{\"iothread\":\"t2\"}]"

#define MUST(counter) (1ull << COUNT_ ## counter)
#define MUST_RW (MUST(BLOCKS_READ) | MUST(BLOCKS_WRITTEN))

static ActFunc *const acts_none[] = { NULL };
static ActFunc *const acts_sense[] = { act_lun_reset, act_resize, NULL };
static ActFunc *const acts_tmf[] = {
    act_tmf, act_tmf, act_tmf, act_tmf, act_tmf_pinned, NULL
};
static ActFunc *const acts_reset[] = { act_device_reset, NULL };
static ActFunc *const acts_config[] = { act_config, NULL };
static ActFunc *const acts_hotplug[] = { act_hotplug, NULL };
static ActFunc *const acts_stop[] = {
    act_stop, act_error_stop, act_system_reset, NULL
};
static ActFunc *const acts_jobs[] = { act_job, NULL };
static ActFunc *const acts_remap[] = {
    act_remap, act_remap, act_remap, act_remap, act_hotplug, act_tmf, act_tmf,
    act_lun_reset, act_stop, NULL
};
static ActFunc *const acts_balance[] = {
    act_balance, act_balance, act_balance, act_balance, act_tmf, act_tmf,
    act_hotplug, act_lun_reset, act_stop, act_remap, act_device_reset, NULL
};
static ActFunc *const acts_throttle[] = {
    act_throttle, act_throttle, act_tmf, act_lun_reset, NULL
};
static ActFunc *const acts_operator[] = {
    act_iothread, act_controller, act_migrate, act_remap, act_hotplug,
    act_stop, act_system_reset, act_job, NULL
};
static ActFunc *const acts_all[] = {
    act_tmf, act_tmf_pinned, act_lun_reset, act_resize, act_device_reset,
    act_config, act_hotplug, act_stop, act_error_stop, act_system_reset,
    act_job, act_job, act_job, act_remap, act_balance, NULL
};

static const Scenario scenarios[] = {
    {
        .name = "one-lun", .mapping = MAP4, .num_iothreads = 4,
        .num_queues = 4, .classes = CLASS_RW, .acts = acts_none,
        .must = MUST_RW,
    }, {
        .name = "many-luns", .mapping = MAP4, .num_iothreads = 4,
        .num_queues = 4, .luns = LUN_DATA | LUN_ZERO, .classes = CLASS_RW,
        .flags = SHM_EVENT_IDX | SHM_INTERRUPTS,
        .acts = acts_none, .must = MUST_RW,
    }, {
        .name = "sense", .mapping = MAP4, .num_iothreads = 4,
        .num_queues = 4, .luns = LUN_DATA | LUN_ERRORS | LUN_RESIZE,
        .classes = CLASS_ALL, .flags = SHM_EVENT_IDX,
        .acts = acts_sense,
        .must = MUST_RW | MUST(SENSE) | MUST(UNIT_ATTENTIONS),
    }, {
        .name = "tmf", .mapping = MAP4, .num_iothreads = 4, .num_queues = 4,
        .luns = LUN_DATA | LUN_ZERO | LUN_SLOW, .classes = CLASS_ALL,
        .flags = SHM_INTERRUPTS, .acts = acts_tmf,
        .must = MUST_RW | MUST(TMFS) | MUST(ABORTED) | MUST(PINNED),
    }, {
        .name = "device-reset", .mapping = MAP4, .num_iothreads = 4,
        .num_queues = 4, .luns = LUN_DATA | LUN_SLOW, .classes = CLASS_ALL,
        .flags = SHM_EVENT_IDX, .acts = acts_reset,
        .must = MUST_RW | MUST(RESETS),
    }, {
        .name = "config-space", .mapping = MAP4, .num_iothreads = 4,
        .num_queues = 4, .luns = LUN_DATA | LUN_ZERO | LUN_ERRORS,
        .classes = CLASS_ALL, .acts = acts_config,
        .must = MUST_RW | MUST(SENSE) | MUST(CONFIG_WRITES),
    }, {
        .name = "hotplug", .mapping = MAP3, .num_iothreads = 3,
        .num_queues = 4, .luns = LUN_DATA | LUN_HOT | LUN_SLOW,
        .classes = CLASS_ALL, .flags = SHM_EVENT_IDX,
        .acts = acts_hotplug,
        .must = MUST_RW | MUST(PLUGS) | MUST(NO_TARGET) | MUST(EVENTS),
    }, {
        .name = "stop-cont", .mapping = MAP4, .num_iothreads = 4,
        .num_queues = 4, .luns = LUN_DATA | LUN_STOPS | LUN_SLOW,
        .classes = CLASS_ALL, .flags = SHM_EVENT_IDX | SHM_INTERRUPTS,
        .acts = acts_stop,
        .must = MUST_RW | MUST(STOPS) | MUST(RETRIES) | MUST(RESETS),
    }, {
        .name = "block-jobs", .mapping = MAP4, .num_iothreads = 4,
        .num_queues = 4, .luns = LUN_DATA, .classes = CLASS_ALL,
        .flags = SHM_EVENT_IDX, .acts = acts_jobs,
        .must = MUST_RW | MUST(JOBS),
    }, {
        .name = "remap", .mapping = MAP4, .num_iothreads = 4,
        .num_queues = 4,
        .luns = LUN_DATA | LUN_ZERO | LUN_SLOW | LUN_ERRORS | LUN_HOT,
        .classes = CLASS_ALL, .flags = SHM_EVENT_IDX | SHM_INTERRUPTS,
        .acts = acts_remap,
        .must = MUST_RW | MUST(REMAPS) | MUST(PLUGS) | MUST(TMFS) |
                MUST(STOPS),
    }, {
        .name = "balance", .mapping = MAP4, .num_iothreads = 4,
        .num_queues = 4, .luns = LUN_DATA | LUN_ZERO | LUN_SLOW | LUN_HOT,
        .classes = CLASS_ALL, .flags = SHM_EVENT_IDX | SHM_INTERRUPTS,
        .acts = acts_balance,
        .must = MUST_RW | MUST(MOVES) | MUST(REMAPS) | MUST(PLUGS) |
                MUST(TMFS) | MUST(STOPS) | MUST(RESETS),
    }, {
        .name = "throttle", .mapping = MAP4, .num_iothreads = 4,
        .num_queues = 4, .luns = LUN_DATA | LUN_SLOW, .classes = CLASS_ALL,
        .flags = SHM_EVENT_IDX, .acts = acts_throttle,
        .must = MUST_RW | MUST(THROTTLES) | MUST(TMFS),
    }, {
        .name = "operator", .mapping = MAP3, .num_iothreads = 3,
        .num_queues = 4, .luns = LUN_DATA | LUN_SLOW | LUN_HOT,
        .classes = CLASS_ALL, .flags = SHM_EVENT_IDX | SHM_INTERRUPTS,
        .acts = acts_operator, .operators = MAX_OPERATORS,
        .must = MUST_RW | MUST(IOTHREADS) | MUST(CONTROLLERS) |
                MUST(MIGRATIONS) | MUST(REMAPS) | MUST(PLUGS) | MUST(STOPS) |
                MUST(RESETS) | MUST(JOBS) | MUST(OPERATIONS),
    }, {
        .name = "everything", .mapping = MAP3, .num_iothreads = 3,
        .num_queues = 5,
        .luns = LUN_DATA | LUN_ZERO | LUN_SLOW | LUN_ERRORS | LUN_STOPS |
                LUN_HOT | LUN_RESIZE,
        .classes = CLASS_ALL, .flags = SHM_EVENT_IDX | SHM_INTERRUPTS,
        .acts = acts_all,
        .must = MUST_RW | MUST(SENSE) | MUST(TMFS) | MUST(RESETS) |
                MUST(CONFIG_WRITES) | MUST(PLUGS) | MUST(STOPS) | MUST(JOBS) |
                MUST(REMAPS),
    },
};

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(scenarios); i++) {
        g_autofree char *path = g_strdup_printf("/virtio-scsi-stress/%s",
                                                scenarios[i].name);

        qtest_add_data_func(path, &scenarios[i], run);
    }
    return g_test_run();
}
