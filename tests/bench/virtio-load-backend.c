/*
 * virtio-load: what the disks are made of
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "virtio-load.h"

static char *node_name(unsigned lun)
{
    return g_strdup_printf("\"node-name\":\"disk%u\"", lun);
}

static char *numbered(const LoadOptions *o, unsigned lun)
{
    g_autofree char *number_text = g_strdup_printf("%u", lun);
    g_auto(GStrv) parts = g_strsplit(o->backend, "%d", 0);

    if (o->luns > 1 && !parts[1] && strstr(o->backend, "file")) {
        bad_opt("backend", o->backend, "must contain %%d for --luns %u",
            o->luns);
    }
    return g_strjoinv(number_text, parts);
}

static char *null_backend(const LoadOptions *o, char **words, const char *node)
{
    uint64_t latency = 0;

    for (unsigned i = 1; words[i]; i++) {
        if (!g_str_has_prefix(words[i], "latency-ns=") ||
            qemu_strtou64(words[i] + strlen("latency-ns="), NULL, 10,
                          &latency)) {
            bad_opt("backend", o->backend, "\"%s\" must be latency-ns=N",
                    words[i]);
        }
    }
    return g_strdup_printf("{\"driver\":\"null-co\",%s,\"size\":%" PRIu64
                           ",\"read-zeroes\":false,\"latency-ns\":%" PRIu64
                           "}", node, (uint64_t)(8 * GiB), latency);
}

/* Written, so that there is something to read */
static void create_file(const LoadOptions *o, const char *path, uint64_t size)
{
    g_autofree char *block = g_malloc(MiB);
    int fd;

    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        bad_opt("backend", o->backend, "cannot create %s: %s", path,
            g_strerror(errno));
    }
    memset(block, 0x5a, MiB);
    for (uint64_t at = lseek(fd, 0, SEEK_END); at < size; ) {
        ssize_t n = pwrite(fd, block, MIN(MiB, size - at), at);

        if (n < 0) {
            bad_opt("backend", o->backend, "cannot write %s: %s", path,
                g_strerror(errno));
        }
        at += n;
    }
    fsync(fd);
    close(fd);
}

static char *json_quote(const char *text)
{
    GString *s = g_string_new(NULL);

    for (; *text; text++) {
        if (*text == '"' || *text == '\\') {
            g_string_append_c(s, '\\');
        }
        g_string_append_c(s, *text);
    }
    return g_string_free(s, false);
}

static char *file_backend(const LoadOptions *o, char **words, const char *node)
{
    const char *aio = "threads";
    bool direct = false;
    uint64_t size;
    g_autofree char *path = NULL;
    struct stat st;

    if (!words[1] || !*words[1]) {
        bad_opt("backend", o->backend, "must be file:PATH...");
    }
    for (unsigned i = 2; words[i]; i++) {
        if (g_str_has_prefix(words[i], "aio=")) {
            aio = words[i] + strlen("aio=");
            opt_word("backend", aio, "threads|native|io_uring");
        } else if (g_str_has_prefix(words[i], "size=")) {
            size = opt_bytes("backend", words[i] + strlen("size="), MiB, TiB);
            create_file(o, words[1], size);
        } else if (g_str_equal(words[i], "direct")) {
            direct = true;
        } else {
            bad_opt("backend", o->backend, "\"%s\" must be aio=..., direct or "
                "size=BYTES", words[i]);
        }
    }
    if (stat(words[1], &st)) {
        bad_opt("backend", o->backend, "%s: %s", words[1], g_strerror(errno));
    }
    if (g_str_equal(aio, "native") && !direct) {
        bad_opt("backend", o->backend, "aio=native needs direct");
    }
    path = json_quote(words[1]);
    return g_strdup_printf("{\"driver\":\"%s\",%s,\"filename\":\"%s\","
                           "\"aio\":\"%s\",\"cache\":{\"direct\":%s}}",
                           S_ISBLK(st.st_mode) ? "host_device" : "file",
                           node, path, aio, direct ? "true" : "false");
}

char *load_blockdev(const LoadOptions *o, unsigned lun)
{
    g_autofree char *text = numbered(o, lun);
    g_autofree char *node = node_name(lun);
    g_auto(GStrv) words = NULL;

    if (text[0] == '{') {
        return g_strdup_printf("{%s,%s", node, text + 1);
    }
    words = g_strsplit(text, ":", 0);
    if (g_str_equal(words[0], "null-co")) {
        return null_backend(o, words, node);
    }
    if (g_str_equal(words[0], "file")) {
        return file_backend(o, words, node);
    }
    bad_opt("backend", o->backend, "must be null-co, file:PATH or JSON");
}
