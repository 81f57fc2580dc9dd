/*
 * Assignment of a virtio device's queues to IOThreads, without a VM
 *
 * Only hw/virtio/iothread-vq-mapping.c is linked.  The IOThreads are fakes: a
 * name, a number of users, and an address that stands for the AioContext, which
 * the code under test passes on and never looks into.  So every number of
 * queues can be tried with every number of IOThreads, and what is left behind
 * is counted rather than guessed.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "hw/virtio/iothread-vq-mapping.h"
#include "monitor/monitor.h"
#include "system/iothread.h"

#define MAX_IOTHREADS   64
#define MAX_QUEUES      1021    /* request queues of the largest virtio-scsi */
#define LIMIT_QUEUES    65535   /* of the API */

/* Fake IOThreads, named io0 to io63 */

static IOThread fake_iothreads[MAX_IOTHREADS];
static char fake_contexts[MAX_IOTHREADS];
static char *fake_ids[MAX_IOTHREADS];
static GHashTable *fake_by_id;

static AioContext *fake_context(unsigned i)
{
    return (AioContext *)&fake_contexts[i];
}

static void fakes_init(void)
{
    fake_by_id = g_hash_table_new(g_str_hash, g_str_equal);
    for (unsigned i = 0; i < MAX_IOTHREADS; i++) {
        fake_ids[i] = g_strdup_printf("io%u", i);
        fake_iothreads[i].ctx = fake_context(i);
        g_hash_table_insert(fake_by_id, fake_ids[i], &fake_iothreads[i]);
    }
}

/* Like the real one, this takes a QOM path as well. */
IOThread *iothread_by_id(const char *id)
{
    static const char path[] = "/objects/";

    if (g_str_has_prefix(id, path)) {
        id += strlen(path);
    }
    return g_hash_table_lookup(fake_by_id, id);
}

char *iothread_get_id(IOThread *iothread)
{
    return g_strdup(fake_ids[iothread - fake_iothreads]);
}

AioContext *iothread_get_aio_context(IOThread *iothread)
{
    return iothread->ctx;
}

void iothread_attach_user(IOThread *iothread)
{
    iothread->users++;
}

void iothread_detach_user(IOThread *iothread)
{
    g_assert(iothread->users > 0);
    iothread->users--;
}

bool qemu_in_main_thread(void)
{
    return true;
}

/* What error_report() and warn_report() would have printed */

static GString *printed;

int error_vprintf(const char *fmt, va_list ap)
{
    size_t before = printed->len;

    g_string_append_vprintf(printed, fmt, ap);
    return printed->len - before;
}

int error_vprintf_unless_qmp(const char *fmt, va_list ap)
{
    return error_vprintf(fmt, ap);
}

/* Checks */

static void G_GNUC_PRINTF(2, 3) require(bool ok, const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    if (ok) {
        return;
    }
    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_test_message("%s", text);
    g_assert_not_reached();
}

static void require_users(unsigned first, unsigned count, unsigned users)
{
    for (unsigned i = first; i < first + count; i++) {
        require(fake_iothreads[i].users == users,
                "io%u should have %u users, has %u",
                i, users, fake_iothreads[i].users);
    }
}

static void require_silence(void)
{
    require(printed->len == 0, "should print nothing, but: %s", printed->str);
}

static unsigned count_str(const char *text, const char *part)
{
    unsigned count = 0;

    while ((text = strstr(text, part))) {
        text += strlen(part);
        count++;
    }
    return count;
}

/* Stands in every element that must not have been written to */
static AioContext *untouched(void)
{
    static char mark;

    return (AioContext *)&mark;
}

/* One element more than queues, to notice an overrun */
static AioContext **contexts_new(unsigned num_queues)
{
    AioContext **contexts = g_new(AioContext *, num_queues + 1);

    for (unsigned i = 0; i <= num_queues; i++) {
        contexts[i] = untouched();
    }
    return contexts;
}

/* Mappings as text: "io0:0,1 io1:2", "io0 io1", "io0:" for an empty vqs */

static IOThreadVirtQueueMapping *entry_new(const char *id)
{
    IOThreadVirtQueueMapping *entry = g_new0(IOThreadVirtQueueMapping, 1);

    entry->iothread = g_strdup(id);
    return entry;
}

static IOThreadVirtQueueMapping *entry_parse(const char *text)
{
    g_auto(GStrv) halves = g_strsplit(text, ":", 2);
    IOThreadVirtQueueMapping *entry = entry_new(halves[0] ?: "");

    if (halves[1]) {
        g_auto(GStrv) numbers = g_strsplit(halves[1], ",", -1);
        intList **tail = &entry->vqs;

        entry->has_vqs = true;
        for (unsigned i = 0; numbers[i]; i++) {
            int64_t vq = g_ascii_strtoll(numbers[i], NULL, 10);

            QAPI_LIST_APPEND(tail, vq);
        }
    }
    return entry;
}

static IOThreadVirtQueueMappingList *mapping_parse(const char *text)
{
    g_auto(GStrv) words = g_strsplit(text, " ", -1);
    IOThreadVirtQueueMappingList *list = NULL;
    IOThreadVirtQueueMappingList **tail = &list;

    for (unsigned i = 0; words[i]; i++) {
        QAPI_LIST_APPEND(tail, entry_parse(words[i]));
    }
    return list;
}

/* The first @count IOThreads, in order, without vqs */
static IOThreadVirtQueueMappingList *mapping_pool(unsigned count)
{
    IOThreadVirtQueueMappingList *list = NULL;
    IOThreadVirtQueueMappingList **tail = &list;

    for (unsigned i = 0; i < count; i++) {
        QAPI_LIST_APPEND(tail, entry_new(fake_ids[i]));
    }
    return list;
}

/*
 * Apply @list, expect queue i to go to IOThread @owners[i], and clean up.
 * The IOThreads of @list are the first @num_iothreads, in any order.
 */
static void run_good(IOThreadVirtQueueMappingList *list, unsigned num_iothreads,
                     const unsigned *owners, unsigned num_queues)
{
    g_autofree AioContext **contexts = contexts_new(num_queues);
    Error *err = NULL;

    if (!iothread_vq_mapping_apply(list, contexts, num_queues, &err)) {
        require(false, "%u IOThreads, %u queues refused: %s", num_iothreads,
                num_queues, err ? error_get_pretty(err) : "(no error set)");
    }
    require(!err, "success, but an error is set");
    for (unsigned i = 0; i < num_queues; i++) {
        require(contexts[i] == fake_context(owners[i]),
                "%u IOThreads, %u queues: queue %u should go to io%u",
                num_iothreads, num_queues, i, owners[i]);
    }
    require(contexts[num_queues] == untouched(),
            "%u queues: wrote beyond the array", num_queues);

    require_users(0, num_iothreads, 1);
    require_users(num_iothreads, MAX_IOTHREADS - num_iothreads, 0);
    iothread_vq_mapping_cleanup(list);
    require_users(0, MAX_IOTHREADS, 0);
}

static void run_good_text(const char *text, unsigned num_iothreads,
                          const unsigned *owners, unsigned num_queues)
{
    IOThreadVirtQueueMappingList *list = mapping_parse(text);

    run_good(list, num_iothreads, owners, num_queues);
    require_silence();
    qapi_free_IOThreadVirtQueueMappingList(list);
}

/* Small examples written out by hand, so that the loops below aren't alone */
static void test_examples(void)
{
    run_good_text("io0", 1, (unsigned[]) { 0 }, 1);
    run_good_text("io0", 1, (unsigned[]) { 0, 0, 0 }, 3);
    run_good_text("io1 io0", 2, (unsigned[]) { 1, 0, 1, 0, 1 }, 5);
    run_good_text("/objects/io0 io1", 2, (unsigned[]) { 0, 1, 0 }, 3);

    run_good_text("io0:0", 1, (unsigned[]) { 0 }, 1);
    run_good_text("io0:0 io1:1", 2, (unsigned[]) { 0, 1 }, 2);
    run_good_text("io0:1 io1:0", 2, (unsigned[]) { 1, 0 }, 2);
    run_good_text("io0:0,1 io1:2,3", 2, (unsigned[]) { 0, 0, 1, 1 }, 4);
    run_good_text("io1:3,0 io0:2,1", 2, (unsigned[]) { 1, 0, 0, 1 }, 4);
    run_good_text("io0:4,2,0,1 io2:5 io1:3", 3,
                  (unsigned[]) { 0, 0, 0, 1, 0, 2 }, 6);
}

static void require_idle_warning(unsigned num_iothreads, unsigned num_queues)
{
    if (num_iothreads <= num_queues) {
        require_silence();
        return;
    }
    require(count_str(printed->str, "warning: ") == 1 &&
            count_str(printed->str, "\n") == 1 &&
            strstr(printed->str, "iothread-vq-mapping"),
            "%u IOThreads, %u queues: should be one warning with the "
            "property's name: %s", num_iothreads, num_queues, printed->str);
    for (unsigned i = 0; i < num_iothreads; i++) {
        g_autofree char *quoted = g_strdup_printf("'%s'", fake_ids[i]);

        require(!strstr(printed->str, quoted) == (i < num_queues),
                "%u IOThreads, %u queues: wrong about io%u being idle: %s",
                num_iothreads, num_queues, i, printed->str);
    }
    g_string_truncate(printed, 0);
}

static void test_round_robin(void)
{
    g_autofree unsigned *owners = g_new(unsigned, MAX_QUEUES);

    for (unsigned t = 1; t <= MAX_IOTHREADS; t++) {
        IOThreadVirtQueueMappingList *list = mapping_pool(t);
        unsigned next = 0;

        for (unsigned i = 0; i < MAX_QUEUES; i++) {
            owners[i] = next++;
            if (next == t) {
                next = 0;
            }
        }
        for (unsigned n = 1; n <= MAX_QUEUES; n++) {
            run_good(list, t, owners, n);
            require_idle_warning(t, n);
        }
        qapi_free_IOThreadVirtQueueMappingList(list);
    }
}

static void shuffle(GRand *rand, unsigned *numbers, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        numbers[i] = i;
    }
    for (unsigned left = count; left > 1; left--) {
        unsigned pick = g_rand_int_range(rand, 0, left);
        unsigned number = numbers[pick];

        numbers[pick] = numbers[left - 1];
        numbers[left - 1] = number;
    }
}

/*
 * Deal @n queues in random order to @t IOThreads, which stand in random order
 * in the list.  Each gets one queue at least, the others go anywhere.
 */
static IOThreadVirtQueueMappingList *
mapping_random(GRand *rand, unsigned t, unsigned n, unsigned *owners)
{
    g_autofree unsigned *queues = g_new(unsigned, n);
    g_autofree unsigned *order = g_new(unsigned, t);
    IOThreadVirtQueueMapping *entries[MAX_IOTHREADS];
    IOThreadVirtQueueMappingList *list = NULL;
    IOThreadVirtQueueMappingList **tail = &list;

    for (unsigned i = 0; i < t; i++) {
        entries[i] = entry_new(fake_ids[i]);
        entries[i]->has_vqs = true;
    }
    shuffle(rand, queues, n);
    for (unsigned i = 0; i < n; i++) {
        unsigned owner = i < t ? i : g_rand_int_range(rand, 0, t);

        QAPI_LIST_PREPEND(entries[owner]->vqs, queues[i]);
        owners[queues[i]] = owner;
    }
    shuffle(rand, order, t);
    for (unsigned i = 0; i < t; i++) {
        QAPI_LIST_APPEND(tail, entries[order[i]]);
    }
    return list;
}

static void run_random(GRand *rand, unsigned t, unsigned n)
{
    g_autofree unsigned *owners = g_new(unsigned, n);
    IOThreadVirtQueueMappingList *list = mapping_random(rand, t, n, owners);

    run_good(list, t, owners, n);
    require_silence();
    qapi_free_IOThreadVirtQueueMappingList(list);
}

static void test_vqs(void)
{
    /* A fixed seed, so that a failure comes again */
    g_autoptr(GRand) rand = g_rand_new_with_seed(20261122);

    for (unsigned n = 1; n <= MAX_QUEUES; n++) {
        unsigned most = MIN(n, MAX_IOTHREADS);

        run_random(rand, 1, n);
        run_random(rand, most, n);
        run_random(rand, g_rand_int_range(rand, 1, most + 1), n);
    }
    run_random(rand, MAX_IOTHREADS, LIMIT_QUEUES);
}

/* A second device on the same IOThreads; each gives back only its own claim. */
static void test_two_devices(void)
{
    IOThreadVirtQueueMappingList *one = mapping_parse("io0 io1");
    IOThreadVirtQueueMappingList *two = mapping_parse("io1:0,2 io2:1");
    g_autofree AioContext **contexts = contexts_new(3);

    g_assert(iothread_vq_mapping_apply(one, contexts, 3, &error_abort));
    g_assert(iothread_vq_mapping_apply(two, contexts, 3, &error_abort));
    require_users(0, 1, 1);
    require_users(1, 1, 2);
    require_users(2, 1, 1);

    iothread_vq_mapping_cleanup(one);
    require_users(0, 1, 0);
    require_users(1, 2, 1);
    iothread_vq_mapping_cleanup(two);
    require_users(0, MAX_IOTHREADS, 0);

    require_silence();
    qapi_free_IOThreadVirtQueueMappingList(one);
    qapi_free_IOThreadVirtQueueMappingList(two);
}

typedef struct BadCase {
    const char *name;
    const char *mapping;
    unsigned num_queues;
    const char *value;      /* what the message must show of the mistake */
    const char *remedy;     /* ... and what to do about it */
} BadCase;

static const BadCase bad_cases[] = {
    { "unknown/only", "nobody", 4, "'nobody'", "object-add" },
    { "unknown/last", "io0 io1 nobody", 4, "'nobody'", "object-add" },
    { "unknown/vqs", "io0:0,1 nobody:2,3", 4, "'nobody'", "object-add" },
    { "unknown/empty-name", "io0 ", 4, "''", "object-add" },

    { "twice/neighbours", "io0 io1 io1", 4, "'io1'", "once" },
    { "twice/apart", "io0 io1 io2 io0", 4, "'io0'", "once" },
    { "twice/vqs", "io0:0,1 io1:2 io0:3", 4, "'io0'", "once" },
    { "twice/path", "io0 io1 /objects/io0", 4, "io0'", "once" },

    { "mixed/last-without", "io0:0,1 io1:2,3 io2", 4, "'io2'", "every" },
    { "mixed/last-with", "io0 io1 io2:3", 4, "'io2'", "every" },
    { "mixed/complete", "io0:0,1,2,3 io1", 4, "'io1'", "every" },
    { "mixed/empty", "io0 io1:", 4, "'io1'", "every" },

    { "empty-list", "", 4, "empty", "at least one" },
    { "empty-vqs/only", "io0:", 4, "'io0'", "at least one" },
    { "empty-vqs/last", "io0:0,1,2,3 io1:", 4, "'io1'", "at least one" },
    { "empty-vqs/first", "io0: io1:0,1,2,3", 4, "'io0'", "at least one" },

    { "queue-twice/same", "io0:0,1 io1:2,3,2", 4, " 2,", "once" },
    { "queue-twice/other", "io0:0,1 io1:2,3,0", 4, "'io0'", "once" },
    { "queue-twice/short", "io0:0,1 io1:2,2", 4, "'io1'", "once" },

    { "queue-missing/first", "io0:1 io1:2,3", 4, "queue 0 ", "once" },
    { "queue-missing/middle", "io0:0,1 io1:3", 4, "queue 2 ", "once" },
    { "queue-missing/last", "io0:0,1 io1:2", 4, "queue 3 ", "once" },
    { "queue-missing/1021", "io0:0", 1021, "queue 1 ", "0 to 1020" },
};

static void require_refused(const BadCase *bad)
{
    IOThreadVirtQueueMappingList *list =
        *bad->mapping ? mapping_parse(bad->mapping) : NULL;
    g_autofree AioContext **contexts = contexts_new(bad->num_queues);
    const char *const parts[] = {
        "iothread-vq-mapping", bad->value, bad->remedy,
    };
    Error *err = NULL;

    require(!iothread_vq_mapping_apply(list, contexts, bad->num_queues, &err),
            "\"%s\" for %u queues is accepted", bad->mapping, bad->num_queues);
    require(err, "\"%s\" is refused without an error", bad->mapping);
    g_test_message("\"%s\": %s", bad->mapping, error_get_pretty(err));
    for (unsigned i = 0; i < ARRAY_SIZE(parts); i++) {
        require(strstr(error_get_pretty(err), parts[i]),
                "the message does not have \"%s\"", parts[i]);
    }
    error_free(err);

    /* A caller may also not want to know why. */
    g_assert(!iothread_vq_mapping_apply(list, contexts, bad->num_queues, NULL));

    for (unsigned i = 0; i <= bad->num_queues; i++) {
        require(contexts[i] == untouched(), "queue %u's element written", i);
    }
    require_users(0, MAX_IOTHREADS, 0);
    require_silence();
    qapi_free_IOThreadVirtQueueMappingList(list);

    /* The next attempt, with a good mapping, is not disturbed. */
    run_good_text("io1 io0", 2, (unsigned[]) { 1, 0, 1 }, 3);
}

static void test_bad(const void *data)
{
    require_refused(data);
}

/*
 * Indices out of range.  In place of queue 3, so that an index that has been
 * cut to 16 or 32 bits would complete the mapping where it becomes 3.
 */
static void test_bad_index(void)
{
    static const int64_t indices[] = {
        4, 5, 255, 256, 259, 1020, 1021, 65534, 65535, 65536, 65537, 65539,
        INT32_MAX, 0x80000000, 0x80000003, UINT32_MAX, 0x100000000,
        0x100000003, INT64_MAX, -1, -4, -65533, INT32_MIN, -0x80000001LL,
        -0xfffffffdLL, INT64_MIN,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(indices); i++) {
        g_autofree char *value = g_strdup_printf(" %" PRId64 ",", indices[i]);
        g_autofree char *mapping =
            g_strdup_printf("io0:0,1 io1:2,%" PRId64, indices[i]);
        g_autofree char *first =
            g_strdup_printf("io1:%" PRId64 ",2 io0:0,1", indices[i]);

        require_refused(&(BadCase) { "", mapping, 4, value, "0 to 3" });
        require_refused(&(BadCase) { "", first, 4, "'io1'", "correct" });
    }
}

/* The first index that is too large, for each number of queues */
static void test_bad_index_edge(void)
{
    for (unsigned i = 1; i <= MAX_QUEUES + 1; i++) {
        unsigned n = i <= MAX_QUEUES ? i : LIMIT_QUEUES;
        g_autofree char *mapping = g_strdup_printf("io0:%u", n);
        g_autofree char *value = g_strdup_printf(" %u,", n);
        g_autofree char *range = g_strdup_printf("0 to %u", n - 1);

        require_refused(&(BadCase) { "", mapping, n, value, range });
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    fakes_init();
    printed = g_string_new(NULL);

    g_test_add_func("/iothread-vq-mapping/examples", test_examples);
    g_test_add_func("/iothread-vq-mapping/round-robin", test_round_robin);
    g_test_add_func("/iothread-vq-mapping/vqs", test_vqs);
    g_test_add_func("/iothread-vq-mapping/two-devices", test_two_devices);
    for (unsigned i = 0; i < ARRAY_SIZE(bad_cases); i++) {
        g_autofree char *path = g_strdup_printf("/iothread-vq-mapping/bad/%s",
                                                bad_cases[i].name);

        g_test_add_data_func(path, &bad_cases[i], test_bad);
    }
    g_test_add_func("/iothread-vq-mapping/bad/index", test_bad_index);
    g_test_add_func("/iothread-vq-mapping/bad/index-edge", test_bad_index_edge);
    return g_test_run();
}
