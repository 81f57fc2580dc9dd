/*
 * virtio-scsi data in memory that comes, goes and migrates
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "hw/pci/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "virtio-scsi-data.h"

/*
 * Memory that comes and goes
 */

#define BAR_SLOT        8
#define DIMM_BYTES      (128 * MiB)
#define DIMM_ADDR(n)    (4 * GiB + (n) * DIMM_BYTES)
#define MEMFD_NAME      "memfd:memory-backend-memfd"
enum { ACPI_DIMM_SELECT = 0xa00, ACPI_DIMM_CONTROL = 0xa14, ACPI_EJECT = 8,
       ACPI_PCI_EJECT = 0xae08 };

/* How much of the memory of backends is left? */
static unsigned count_mapped(QTestState *qts)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/maps",
                                            (int)qtest_pid(qts));
    g_autofree char *maps = NULL;
    unsigned n = 0;

    g_assert_true(g_file_get_contents(path, &maps, NULL, NULL));
    for (char *at = maps; (at = strstr(at, MEMFD_NAME)); at++) {
        n++;
    }
    return n;
}

static void wait_unmapped(QTestState *qts)
{
    gint64 begun = 0;

    while (count_mapped(qts)) {
        mq_pause(&begun, "QEMU to free the memory that was unplugged");
    }
}

static void plug_dimm(QTestState *qts, unsigned n)
{
    g_autofree char *id = g_strdup_printf("dimm%u", n);
    g_autofree char *mem = g_strdup_printf("mem%u", n);

    qtest_qmp_assert_success(qts,
        "{'execute': 'object-add', 'arguments': {"
        "'qom-type': 'memory-backend-memfd', 'id': %s, 'size': %" PRId64 "}}",
        mem, (int64_t)DIMM_BYTES);
    qtest_qmp_assert_success(qts,
        "{'execute': 'device_add', 'arguments': {'driver': 'pc-dimm',"
        " 'id': %s, 'memdev': %s, 'slot': %u, 'addr': %" PRId64 "}}",
        id, mem, n, (int64_t)DIMM_ADDR(n));
}

static void wait_deleted(QTestState *qts, const char *id)
{
    const char *gone;

    do {
        g_autoptr(QDict) event =
            qtest_qmp_eventwait_ref(qts, "DEVICE_DELETED");

        gone = qdict_get_try_str(qdict_get_qdict(event, "data"), "device");
        gone = gone && g_str_equal(gone, id) ? id : NULL;
    } while (!gone);
}

static void object_del(QTestState *qts, const char *id)
{
    qtest_qmp_assert_success(qts,
        "{'execute': 'object-del', 'arguments': {'id': %s}}", id);
}

static void unplug_dimm(QTestState *qts, unsigned n)
{
    g_autofree char *id = g_strdup_printf("dimm%u", n);
    g_autofree char *mem = g_strdup_printf("mem%u", n);

    qtest_qmp_device_del_send(qts, id);
    qtest_outl(qts, ACPI_DIMM_SELECT, n);
    qtest_outb(qts, ACPI_DIMM_CONTROL, ACPI_EJECT);
    wait_deleted(qts, id);
    object_del(qts, mem);
}

static void use_memory(MqDev *d, uint64_t base)
{
    g_autofree Arena *a = arena_at(d, base);

    data_framed_rw(d, a, &data_one_piece);
    data_framed_rw(d, a, &data_small_cuts);
    data_framed_lists(d, a, &data_small_cuts);
    data_framed_rw(d, a, &data_page_cuts);
}

/*
 * Plugged while requests are in flight, used from the first byte to the last,
 * and unplugged while requests are in flight: nobody keeps it.
 */
void test_hotplug(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);

    for (unsigned round = 0; round < 3; round++) {
        Flight *f = flight_begin(d, a, 0);

        plug_dimm(d->qts, 0);
        plug_dimm(d->qts, 1);
        flight_end(d, f, 0);
        use_memory(d, DIMM_ADDR(0));
        use_memory(d, DIMM_ADDR(2) - ARENA_SIZE);

        f = flight_begin(d, a, 0);
        unplug_dimm(d->qts, 1);
        unplug_dimm(d->qts, 0);
        flight_end(d, f, 0);
        wait_unmapped(d->qts);
    }
    data_end(d);
}

/* Nothing happens after it was unplugged, so nothing makes a queue look up. */
static void plug_use_unplug(const DataConfig *cfg, uint64_t base)
{
    MqDev *d = data_begin(cfg);

    for (unsigned round = 0; round < 3; round++) {
        plug_dimm(d->qts, 0);
        plug_dimm(d->qts, 1);
        use_memory(d, base);
        g_assert_cmpuint(count_mapped(d->qts), >, 0);
        unplug_dimm(d->qts, 1);
        unplug_dimm(d->qts, 0);
        wait_unmapped(d->qts);
    }
    data_end(d);
}

void test_unplug_idle(const DataConfig *cfg)
{
    plug_use_unplug(cfg, DIMM_ADDR(1));
}

/* Each of the first data crosses from one DIMM into the other. */
void test_hotplug_across(const DataConfig *cfg)
{
    plug_use_unplug(cfg, DIMM_ADDR(1) - 4096);
}

static bool needs_reset(MqDev *d)
{
    return d->vdev->bus->get_status(d->vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

/*
 * What isn't there can be written and is lost, if it is little; more is an
 * error of the driver's.
 */
static void use_vanished(MqDev *d, Arena *a, unsigned form, uint64_t place)
{
    MqCmd little = mq_read10(LUN_FILE, 1, 2), much = mq_read10(LUN_FILE, 1, 99);
    g_autofree Request *r = g_new(Request, 1);
    struct virtio_scsi_cmd_resp resp;
    gint64 begun = 0;
    MqQueue *q = data_queue(d);

    arena_clear(a);
    data_prepare_far(r, a, &little, place);
    data_post(q, r);
    mq_flush(q);
    data_finish_far(r, &resp);
    mq_assert_good(&resp);
    g_assert_false(needs_reset(d));

    data_prepare_far(r, a, &much, place);
    data_post(q, r);
    mq_flush(q);
    while (!needs_reset(d)) {
        mq_pause(&begun, "NEEDS_RESET");
    }
    mq_reap(q);
    g_assert_false(r->slot->done);
    mq_reset(d);
    data_start(d, form);
}

void test_unplug_in_flight(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);

    for (unsigned round = 0; round < 3; round++) {
        Flight *f;

        plug_dimm(d->qts, 0);
        f = flight_begin(d, a, DIMM_ADDR(0) + round * 12345);
        unplug_dimm(d->qts, 0);
        g_assert_cmpuint(count_mapped(d->qts), >, 0);
        flight_end(d, f, 0);
        wait_unmapped(d->qts);
        use_vanished(d, a, cfg->form, DIMM_ADDR(0));
    }
    data_end(d);
}

/* Requests in other memory don't keep what is unplugged while they wait. */
void test_unplug_beside(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);

    for (unsigned round = 0; round < 3; round++) {
        Flight *f;

        plug_dimm(d->qts, 0);
        use_memory(d, DIMM_ADDR(0));
        f = flight_begin(d, a, 0);
        unplug_dimm(d->qts, 0);
        wait_unmapped(d->qts);
        flight_end(d, f, 0);
    }
    data_end(d);
}

/* Reset with requests in flight to memory that is gone */
void test_unplug_reset(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);

    for (unsigned round = 0; round < 3; round++) {
        Flight *f;

        plug_dimm(d->qts, 0);
        f = flight_begin(d, a, DIMM_ADDR(0));
        unplug_dimm(d->qts, 0);
        mq_reset(d);
        wait_unmapped(d->qts);
        data_throttle(d, LUN_FILE, false);
        data_start(d, cfg->form);
        data_check_image(LUN_FILE);
        g_free(f);
    }
    data_end(d);
}

static void bar_switch(QPCIDevice *dev, bool on)
{
    uint16_t cmd = qpci_config_readw(dev, PCI_COMMAND);

    cmd &= ~PCI_COMMAND_MEMORY;
    qpci_config_writew(dev, PCI_COMMAND, cmd | (on ? PCI_COMMAND_MEMORY : 0));
}

static void bar_move(QPCIDevice *dev, uint64_t addr)
{
    bar_switch(dev, false);
    qpci_config_writel(dev, PCI_BASE_ADDRESS_2, addr);
    bar_switch(dev, true);
}

/*
 * The BAR of another device is RAM, which the guest switches off and moves.
 */
void test_bar(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    QPCIDevice *dev = qpci_device_find(data_bus(), QPCI_DEVFN(BAR_SLOT, 0));
    g_autofree Arena *a = arena_new(d);
    uint64_t at, size;
    Flight *f;

    g_assert_nonnull(dev);
    qpci_device_enable(dev);
    at = qpci_iomap(dev, 2, &size).addr;
    g_assert_cmpuint(size, >, ARENA_SIZE);
    for (unsigned round = 0; round < 3; round++, at += 16 * MiB) {
        bar_move(dev, at);
        use_memory(d, at);

        f = flight_begin(d, a, at);
        bar_switch(dev, false);
        data_throttle(d, LUN_FILE, false);
        bar_switch(dev, true);
        flight_end(d, f, at);

        f = flight_begin(d, a, at);
        bar_move(dev, at + 64 * MiB);
        flight_end(d, f, at + 64 * MiB);
        use_vanished(d, a, cfg->form, at);
        use_memory(d, at + 64 * MiB);
    }

    bar_move(dev, at);
    f = flight_begin(d, a, at);
    qtest_qmp_device_del_send(d->qts, "bar");
    qtest_outl(d->qts, ACPI_PCI_EJECT, 1u << BAR_SLOT);
    wait_deleted(d->qts, "bar");
    object_del(d->qts, "barmem");
    flight_end(d, f, 0);
    wait_unmapped(d->qts);
    g_free(dev);
    data_end(d);
}

static void set_bus_master(MqDev *d, bool on)
{
    uint16_t cmd = qpci_config_readw(d->pci->pdev, PCI_COMMAND);

    cmd &= ~PCI_COMMAND_MASTER;
    qpci_config_writew(d->pci->pdev, PCI_COMMAND,
                       cmd | (on ? PCI_COMMAND_MASTER : 0));
}

/*
 * Without bus mastering the device is off: DRIVER_OK is gone, kicks do nothing.
 * Afterwards the driver goes on, with what it has put into the rings.
 */
void test_bus_master(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);
    g_autofree Request *r = g_new(Request, NUM_QUEUES);

    for (unsigned round = 0; round < 3; round++) {
        uint32_t lba = 300 * round;

        arena_clear(a);
        set_bus_master(d, false);
        g_assert_false(d->vdev->bus->get_status(d->vdev) &
                       VIRTIO_CONFIG_S_DRIVER_OK);
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            MqCmd cmd = mq_read10(LUN_FILE, lba + i, 3);

            data_prepare(&r[i], a, &cmd, &data_small_cuts);
            data_post(mq_queue(d, i), &r[i]);
            mq_publish(mq_queue(d, i));
            mq_kick(mq_queue(d, i));
        }
        g_usleep(20000);
        arena_check(a);

        set_bus_master(d, true);
        mq_driver_ok(d);
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            mq_kick(mq_queue(d, i));
            data_finish(&r[i], ans);
            data_expect_read(&r[i].cmd, ans, lba + i, 3);
        }
        arena_check(a);
    }
    data_end(d);
}

/* Whatever becomes of requests in flight, a reset makes all good again. */
void test_bus_master_in_flight(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);

    for (unsigned round = 0; round < 3; round++) {
        Flight *f = flight_begin(d, a, 0);

        set_bus_master(d, false);
        data_throttle(d, LUN_FILE, false);
        set_bus_master(d, true);
        mq_reset(d);
        data_check_image(LUN_FILE);
        data_start(d, cfg->form);
        data_framed_rw(d, a, &data_one_piece);
        g_free(f);
    }
    data_end(d);
}

/*
 * Migration: what the device writes while memory is being copied
 */

enum {
    MOVES = 64,                 /* commands */
    MOVE_ROOM = 16 * 1024,      /* memory of each one's data */
    MOVE_BLOCKS = 17,
    BALLAST = 32 * 1024 * 1024,
    PAD = 4096,
};

static void set_bandwidth(QTestState *qts, int64_t bytes_per_second)
{
    qtest_qmp_assert_success(qts,
        "{'execute': 'migrate-set-parameters',"
        " 'arguments': {'max-bandwidth': %" PRId64 "}}", bytes_per_second);
}

/* Wait until the status is @status and, if not 0, so many pages were copied. */
static void wait_migration(QTestState *qts, const char *status, int64_t pages)
{
    gint64 begun = 0;

    while (true) {
        g_autoptr(QDict) resp = qtest_qmp(qts, "{'execute': 'query-migrate'}");
        QDict *info = qdict_get_qdict(resp, "return");
        const char *now = qdict_get_try_str(info, "status");
        QDict *ram = qdict_get_qdict(info, "ram");

        g_assert_cmpstr(now, !=, "failed");
        if (now && g_str_equal(now, status) &&
            (!pages || (ram && qdict_get_int(ram, "normal") >= pages))) {
            return;
        }
        g_assert_false(pages && now && g_str_equal(now, "completed"));
        mq_pause(&begun, status);
    }
}

/*
 * The copy goes from low to high addresses, and all pages of the ballast have
 * something in them.  When it has copied more pages than there are below the
 * ballast, it doesn't come back to these before the end of this pass; and then
 * only to those that are known to have changed.
 */
static void copy_up_to_ballast(MqDev *d, uint64_t ballast, const char *uri)
{
    enum { PAGE = 4096 };

    qtest_memset(d->qts, ballast, 0x5a, BALLAST);
    set_bandwidth(d->qts, 8 * MiB);
    qtest_qmp_assert_success(d->qts,
        "{'execute': 'migrate', 'arguments': {'uri': %s}}", uri);
    wait_migration(d->qts, "active", ballast / PAGE + 64);
    set_bandwidth(d->qts, 64 * KiB);
}

/* Its data get MOVE_ROOM bytes of @place. */
static void post_move(MqDev *d, Request *r, Arena *a, uint64_t place,
                        unsigned i, bool padded)
{
    MqCmd cmd = mq_read10(LUN_FILE, i * MOVE_BLOCKS, MOVE_BLOCKS);

    if (i % 8 == 7) {
        cmd = (MqCmd) {
            .tag = mq_next_tag(), .cdb = { INQUIRY, [4] = 96 }, .in_len = 96,
        };
    }
    /* The guest's side writes to other pages only. */
    data_prepare_far(r, a, &cmd, place + i * MOVE_ROOM + 4000);
    if (padded) {
        r->in.p[0].len += PAD;
        arena_take(a, PAD);
    }
    data_post(mq_queue(d, i % NUM_QUEUES), r);
}

static void move_all(MqDev *d, Arena *a, uint64_t place, bool padded)
{
    g_autofree Request *r = g_new(Request, MOVES);

    for (unsigned i = 0; i < MOVES; i++) {
        post_move(d, &r[i], a, place, i, padded);
    }
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        mq_flush(mq_queue(d, i));
    }
    for (unsigned i = 0; i < MOVES; i++) {
        struct virtio_scsi_cmd_resp resp;

        data_finish_far(&r[i], &resp);
        mq_assert_good(&resp);
        g_assert_cmpuint(le32_to_cpu(resp.resid), ==, 0);
    }
}

static void check_moves(MqDev *d, uint64_t place, const uint8_t *at_source)
{
    g_autofree uint8_t *buf = g_malloc(MOVES * MOVE_ROOM);
    const size_t len = MOVE_BLOCKS * BLOCK;

    mq_read_mem(d, place, buf, MOVES * MOVE_ROOM);
    for (unsigned i = 0; i < MOVES; i++) {
        const uint8_t *data = buf + i * MOVE_ROOM + 4000;

        g_test_message("command %u", i);
        if (i % 8 == 7) {
            g_assert_false(mq_all_bytes(data, 96, MQ_FILLER));
        } else {
            g_assert_cmpmem(data, len, data_image[LUN_FILE] + i * len, len);
        }
    }
    if (at_source) {
        g_assert_cmpmem(buf, MOVES * MOVE_ROOM, at_source, MOVES * MOVE_ROOM);
    }
}

void test_dirty_log(const DataConfig *cfg)
{
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);
    g_autofree uint8_t *at_source = g_malloc(MOVES * MOVE_ROOM);
    uint64_t place = guest_alloc(d->alloc, MOVES * MOVE_ROOM);
    uint64_t ballast = guest_alloc(d->alloc, BALLAST);
    int fd;
    g_autofree char *path = mq_open_unnamed(&fd);
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    QTestState *to = data_begin_incoming(cfg);

    g_assert_cmphex(ballast, >, place);
    qtest_memset(d->qts, place, MQ_FILLER, MOVES * MOVE_ROOM);
    copy_up_to_ballast(d, ballast, uri);
    move_all(d, a, place, cfg->less_features);
    check_moves(d, place, NULL);
    mq_read_mem(d, place, at_source, MOVES * MOVE_ROOM);
    wait_migration(d->qts, "active", 1);
    set_bandwidth(d->qts, 4 * GiB);
    wait_migration(d->qts, "completed", 0);

    qtest_qmp_assert_success(to,
        "{'execute': 'migrate-incoming', 'arguments': {'uri': %s}}", uri);
    wait_migration(to, "completed", 0);
    data_migrated(d, to);
    check_moves(d, place, at_source);
    data_end(d);
    close(fd);
}
