/*
 * virtio-load: load for virtio-scsi and virtio-blk without a guest
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "virtio-load.h"

void load_die(const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "virtio-load: ");
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

/*
 * A run
 */

static void pump_until(Load *l, uint64_t end_ns)
{
    uint64_t now;

    while ((now = load_now_ns()) < end_ns) {
        if (now >= l->vary_ns) {
            load_vary(l, now);
        }
        load_pump(l);
    }
}

/* A resize drains the disk, even if it can't be done. */
static void send_drain(Load *l)
{
    g_autofree char *node = g_strdup_printf("disk%u", l->o->luns);

    qtest_qmp_send(l->qts, "{'execute': 'block_resize', 'arguments': "
                   "{'node-name': %s, 'size': 4096}}", node);
}

static void pump_with_drains(Load *l, uint64_t end_ns)
{
    uint64_t period = 1000000000ULL / l->o->drains;
    uint64_t next = load_now_ns();
    unsigned sent = 0;

    while (next < end_ns) {
        send_drain(l);
        sent++;
        next += period;
        pump_until(l, MIN(next, end_ns));
    }
    while (sent--) {
        qobject_unref(qtest_qmp_receive(l->qts));
    }
}

static void drain(Load *l)
{
    l->phase = PHASE_DRAIN;
    while (load_in_flight(l)) {
        load_pump(l);
    }
}

static void start(Load *l)
{
    if (l->o->verify) {
        load_verify_init(l);
        l->phase = PHASE_FILL;
        load_post_all(l);
        while (load_in_flight(l)) {
            load_pump(l);
        }
        for (unsigned i = 0; i < l->o->queues * l->o->depth; i++) {
            l->ios[i].next = 0;
        }
    }
    l->phase = PHASE_RUN;
    l->schedule_ns = load_now_ns();
    if (l->o->rate) {
        l->vary_ns = UINT64_MAX;
    } else {
        load_vary_begin(l);
    }
}

static void count_events(const Load *l, uint64_t *kicks, uint64_t *irqs)
{
    *kicks = *irqs = 0;
    for (unsigned i = 0; i < l->o->queues; i++) {
        *kicks += l->queues[i].q->kicks;
        *irqs += l->queues[i].irqs;
    }
}

/* The user's command beside the load: perf, say */
static pid_t spawn(const Load *l)
{
    pid_t pid;

    if (!l->o->exec) {
        return 0;
    }
    pid = fork();
    if (pid == 0) {
        g_autofree char *text = g_strdup_printf("%d", l->pid);

        setenv("QEMU_PID", text, 1);
        execl("/bin/sh", "sh", "-c", l->o->exec, NULL);
        _exit(127);
    }
    return pid;
}

/* It may need the load until it ends. */
static void wait_for_command(Load *l, pid_t pid)
{
    int status = 0;

    while (waitpid(pid, &status, WNOHANG) == 0) {
        load_pump(l);
    }
    if (status) {
        fprintf(stderr, "virtio-load: --exec %s: failed with status %d\n",
                l->o->exec, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    }
}

static void measure(Load *l)
{
    uint64_t kicks, irqs;
    pid_t command;

    if (l->o->hmp_before) {
        g_free(qtest_hmp(l->qts, "%s", l->o->hmp_before));
    }
    command = spawn(l);
    count_events(l, &kicks, &irqs);
    proc_read(&l->before, l->pid);
    l->measuring = true;
    load_vary_measure(l);
    if (l->o->drains) {
        pump_with_drains(l, l->before.wall_ns + l->o->seconds * 1e9);
    } else {
        pump_until(l, l->before.wall_ns + l->o->seconds * 1e9);
    }
    l->measuring = false;
    proc_read(&l->after, l->pid);
    count_events(l, &l->kicks, &l->irqs);
    l->kicks -= kicks;
    l->irqs -= irqs;
    proc_read_rss(&l->rss_loaded, l->pid);
    load_vary_end(l);
    if (l->o->hmp_after) {
        l->hmp = qtest_hmp(l->qts, "%s", l->o->hmp_after);
    }
    if (command > 0) {
        wait_for_command(l, command);
    }
}

/* libqtest would wait a minute for a QEMU that ends at once to connect. */
static void qemu_ended(int signo)
{
    _exit(1);
}

static void start_qemu(Load *l, const LoadOptions *o)
{
    struct sigaction on_end = { .sa_handler = qemu_ended };
    struct sigaction before;

    sigaction(SIGCHLD, &on_end, &before);
    load_open(l, o);
    sigaction(SIGCHLD, &before, NULL);
}

/* Before the report, only QEMU and libraries have something to say, to @fd. */
static int run(const LoadOptions *o, int fd)
{
    g_autofree Load *l = g_new0(Load, 1);
    int out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0);

    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    setenv("QTEST_QEMU_BINARY", o->qemu, 1);
    /* naps are short ones */
    prctl(PR_SET_TIMERSLACK, 1);
    start_qemu(l, o);
    load_probe_luns(l);
    load_find_kicks(l);
    load_start_polling(l);
    load_io_init(l);
    start(l);
    pump_until(l, load_now_ns() + o->warmup * 1e9);
    measure(l);
    drain(l);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    load_report(l);
    load_io_free(l);
    load_close(l);
    proc_free(&l->before);
    proc_free(&l->after);
    g_free(l->hmp);
    return 0;
}

/*
 * The run is a process of its own: when QEMU can't start or dies, the qtest
 * library aborts.  What both have to say is collected, and told in one line.
 */

/* Warnings; a line with # is libqtest's, about how it starts QEMU. */
static void pass_on(const char *text)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", 0);

    for (unsigned i = 0; lines[i]; i++) {
        if (*lines[i] && *lines[i] != '#') {
            fprintf(stderr, "%s\n", lines[i]);
        }
    }
}

static bool is_line_of(const char *line, const char *program)
{
    return g_str_has_prefix(line, program) && !strstr(line, ": warning:");
}

static void explain(const LoadOptions *o, const char *text)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", 0);
    g_autofree char *name = g_path_get_basename(o->qemu);
    const char *first = NULL;

    for (unsigned i = 0; lines[i]; i++) {
        if (is_line_of(lines[i], "virtio-load:")) {
            fprintf(stderr, "%s\n", lines[i]);
            return;
        }
        if (!first && (is_line_of(lines[i], o->qemu) ||
                       is_line_of(lines[i], name))) {
            first = lines[i];
        }
    }
    if (first) {
        fprintf(stderr, "virtio-load: QEMU says: %s\n", first);
    } else {
        fprintf(stderr, "virtio-load: %s failed, and said only:\n", o->qemu);
        pass_on(text);
    }
}

/* What libqtest leaves behind when QEMU doesn't connect */
static void remove_sockets(pid_t child)
{
    static const char *const suffixes[] = { "sock", "qmp" };

    for (unsigned i = 0; i < ARRAY_SIZE(suffixes); i++) {
        g_autofree char *path = g_strdup_printf("%s/qtest-%d.%s",
                                                g_get_tmp_dir(), child,
                                                suffixes[i]);

        unlink(path);
    }
}

static int supervise(const LoadOptions *o, pid_t child, int fd)
{
    g_autofree char *text = NULL;
    off_t size;
    int status;

    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
        /* again */
    }
    size = lseek(fd, 0, SEEK_END);
    text = g_malloc0(size + 1);
    if (size && pread(fd, text, size, 0) != size) {
        text[0] = '\0';
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        pass_on(text);
        return 0;
    }
    remove_sockets(child);
    explain(o, text);
    return 1;
}

static int print_histogram(void)
{
    g_autofree Hist *h = g_new0(Hist, 1);
    uint64_t ns;

    while (scanf("%" SCNu64, &ns) == 1) {
        hist_add(h, ns);
    }
    printf("{\"count\": %" PRIu64 ", \"mean\": %.3f, \"p50\": %" PRIu64
           ", \"p99\": %" PRIu64 ", \"p999\": %" PRIu64 ", \"max\": %" PRIu64
           "}\n", h->count, hist_mean(h), hist_percentile(h, 0.5),
           hist_percentile(h, 0.99), hist_percentile(h, 0.999), h->max);
    return 0;
}

int main(int argc, char **argv)
{
    LoadOptions o;
    pid_t parent = getpid();
    pid_t child;
    int fd;

    load_parse_options(&o, argc, argv);
    if (o.histogram) {
        return print_histogram();
    }
    fd = memfd_create("virtio-load-stderr", MFD_CLOEXEC);
    child = fd < 0 ? -1 : fork();
    if (child < 0) {
        load_die("cannot start: %s", g_strerror(errno));
    }
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) {
            return 1;
        }
        return run(&o, fd);
    }
    return supervise(&o, child, fd);
}
