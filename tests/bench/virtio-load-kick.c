/*
 * virtio-load: kicks through QEMU's ioeventfds
 *
 * KVM turns a guest's write to a queue's notification register into a signal of
 * an eventfd.  Over qtest the main loop has to do that, after it has parsed a
 * line of text, while the generator waits.  So we do what KVM does: take a copy
 * of the eventfd out of QEMU and write to it.  Which of QEMU's eventfds belongs
 * to which queue is found by trying: a request that nobody was told about is
 * answered when it is the right one.  IOThreads must not poll meanwhile.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/syscall.h>
#include "virtio-load.h"

/*
 * How long to wait for an answer that may not come, in the first round; later
 * ones have more patience, in case that QEMU doesn't get a CPU.
 */
#define TRY_MS 3
#define MORE_PATIENCE 8
#define ROUNDS 3

#define CONFIRM_MS 200

#define EVENTFD "anon_inode:[eventfd]"

static gint compare_descending(gconstpointer a, gconstpointer b)
{
    return *(const int *)b - *(const int *)a;
}

/* The newest first; those of the request queues are made last. */
static GArray *list_eventfds(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", pid);
    GArray *fds = g_array_new(false, false, sizeof(int));
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *link = g_build_filename(path, name, NULL);
        g_autofree char *target = g_file_read_link(link, NULL);
        int fd = atoi(name);

        if (g_strcmp0(target, EVENTFD) == 0) {
            g_array_append_val(fds, fd);
        }
    }
    g_clear_pointer(&dir, g_dir_close);
    g_array_sort(fds, compare_descending);
    return fds;
}

/* Copies of another process' file descriptors, in place of their numbers */
static bool copy_fds(pid_t pid, GArray *fds)
{
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    bool good = pidfd >= 0;

    for (unsigned i = 0; good && i < fds->len; i++) {
        int *fd = &g_array_index(fds, int, i);

        *fd = syscall(SYS_pidfd_getfd, pidfd, *fd, 0);
        if (*fd < 0) {
            g_array_set_size(fds, i);
            good = false;
        }
    }
    if (pidfd >= 0) {
        close(pidfd);
    }
    return good;
}

static bool answered_within(ShmQueue *q, unsigned ms)
{
    uint64_t end = load_now_ns() + ms * 1000000ull;

    while (load_now_ns() < end) {
        if (shm_reap(q)) {
            return true;
        }
        g_usleep(20);
    }
    return false;
}

/*
 * Post a request and tell nobody.  A device that looks at the ring anyway
 * answers it; then try again until it sleeps.
 */
static void post_silently(Load *l, ShmQueue *q)
{
    ShmShape shape;
    ShmSlot *slot;
    bool sleeps;

    do {
        g_usleep(200);
        slot = shm_take(q);
        shape = load_fill_probe(l, slot);
        shm_post(slot, &shape);
        sleeps = shm_publish(q);
    } while (answered_within(q, sleeps ? 1 : CONFIRM_MS));
}

static bool signal_wakes(ShmQueue *q, int fd, unsigned ms)
{
    const uint64_t one = 1;

    return write(fd, &one, sizeof(one)) == sizeof(one) &&
           answered_within(q, ms);
}

/*
 * Is it the queue's eventfd?  There is a request in flight before, and after
 * unless it is.  An answer may be a late one to the previous try.
 */
static bool is_queues_fd(Load *l, ShmQueue *q, int fd, unsigned ms)
{
    if (!signal_wakes(q, fd, ms)) {
        return false;
    }
    post_silently(l, q);
    return signal_wakes(q, fd, CONFIRM_MS);
}

static bool find_kick(Load *l, ShmQueue *q, GArray *fds)
{
    unsigned ms = TRY_MS;

    post_silently(l, q);
    for (unsigned i = 0; i < ROUNDS * fds->len; i++) {
        int fd = g_array_index(fds, int, i % fds->len);

        if (is_queues_fd(l, q, fd, ms)) {
            g_array_remove_index(fds, i % fds->len);
            q->kick_fd = fd;
            return true;
        }
        if (i % fds->len == fds->len - 1) {
            ms *= MORE_PATIENCE;
        }
    }
    shm_kick(q);
    if (!answered_within(q, SHM_HANG_US / 1000)) {
        load_die("no answer to a first request");
    }
    return false;
}

static void close_fds(GArray *fds)
{
    for (unsigned i = 0; i < fds->len; i++) {
        close(g_array_index(fds, int, i));
    }
    g_array_free(fds, true);
}

void load_find_kicks(Load *l)
{
    GArray *fds;

    if (!l->o->kick_eventfd) {
        return;
    }
    l->kicks_by_eventfd = true;
    fds = list_eventfds(l->pid);
    if (!copy_fds(l->pid, fds)) {
        fprintf(stderr, "virtio-load: cannot get QEMU's eventfds (%s), "
                "kicks go over qtest\n", g_strerror(errno));
        l->kicks_by_eventfd = false;
    }
    for (unsigned i = l->o->queues; l->kicks_by_eventfd && i-- > 0; ) {
        if (!find_kick(l, shm_queue(l->dev, i), fds)) {
            fprintf(stderr, "virtio-load: queue %u has no ioeventfd, "
                    "its kicks go over qtest\n", i);
            l->kicks_by_eventfd = false;
        }
    }
    close_fds(fds);
}
