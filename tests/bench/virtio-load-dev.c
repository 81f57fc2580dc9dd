/*
 * virtio-load: QEMU and the device
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qemu/bswap.h"
#include "standard-headers/linux/virtio_blk.h"
#include "scsi/constants.h"
#include "../qtest/virtio-scsi-shm.h"
#include "virtio-load.h"

#define PCI_SLOT 9

/* Above this, guest addresses and offsets in the memory may differ. */
#define MAX_RAM (3 * GiB)

/* How often a disk may say that something has changed before it is ready */
#define MAX_ATTENTIONS 16

/*
 * The command line
 */

char *load_mapping(const LoadOptions *o, unsigned turn)
{
    g_autoptr(GString) s = g_string_new(NULL);
    bool explicit = !g_str_equal(o->mapping, "rr");

    for (unsigned i = 0; i < o->iothreads; i++) {
        g_autoptr(GString) vqs = g_string_new(NULL);

        for (unsigned q = 0; explicit && q < o->queues; q++) {
            if (o->thread_of[q] == i) {
                g_string_append_printf(vqs, "%s%u", vqs->len ? "," : "", q);
            }
        }
        if (!explicit || vqs->len) {
            g_string_append_printf(s, "%s{\"iothread\":\"iothread%u\"",
                                   s->len ? "," : "",
                                   (i + turn) % o->iothreads);
            g_string_append_printf(s, explicit ? ",\"vqs\":[%s]}" : "}",
                                   vqs->str);
        }
    }
    return g_strdup_printf("[%s]", s->str);
}

/* "", or properties with the queues' IOThreads */
static char *mapping_property(const LoadOptions *o)
{
    g_autofree char *list = NULL;

    if (!o->iothreads) {
        return g_strdup("");
    }
    if (g_str_equal(o->mapping, "none")) {
        return g_strdup(",\"iothread\":\"iothread0\"");
    }
    list = load_mapping(o, 0);
    return g_strdup_printf(",\"iothread-vq-mapping\":%s%s", list,
                           o->balance < 0 ? "" :
                           o->balance ? ",\"iothread-vq-balance\":true"
                                      : ",\"iothread-vq-balance\":false");
}

static void add_arg(GString *args, const char *option, const char *value)
{
    g_autofree char *quoted = g_shell_quote(value);

    g_string_append_printf(args, "%s %s ", option, quoted);
}

static void add_disk(GString *args, const char *driver, unsigned lun)
{
    g_autofree char *disk =
        g_strdup_printf("{\"driver\":\"%s\",\"id\":\"hd%u\","
                        "\"bus\":\"vs.0\",\"drive\":\"disk%u\",\"channel\":0,"
                        "\"scsi-id\":0,\"lun\":%u}", driver, lun, lun, lun);

    add_arg(args, "-device", disk);
}

static void add_device(GString *args, const LoadOptions *o)
{
    g_autofree char *mapping = mapping_property(o);
    g_autofree char *device = g_strdup_printf(
        "{\"driver\":\"%s\",\"id\":\"vs\",\"addr\":\"%02x.0\",\"%s\":%u,"
        "\"%s\":%u,\"packed\":%s%s%s}",
        o->scsi ? "virtio-scsi-pci" : "virtio-blk-pci", PCI_SLOT,
        o->scsi ? "num_queues" : "num-queues", o->queues,
        o->scsi ? "virtqueue_size" : "queue-size", o->ring_size,
        o->packed ? "true" : "false",
        o->scsi ? "" : ",\"drive\":\"disk0\"", mapping);

    add_arg(args, "-device", device);
    for (unsigned i = 0; o->scsi && i < o->luns + !!o->drains; i++) {
        add_disk(args, i < o->luns ? o->disk : "scsi-hd", i);
    }
}

static char *command_line(const Load *l)
{
    const LoadOptions *o = l->o;
    g_autofree char *mem = shm_mem_args(&l->mem);
    GString *args = g_string_new(NULL);

    g_string_append_printf(args, "-machine pc,memory-backend=ram %s "
                           "-nodefaults -name debug-threads=on ", mem);
    for (unsigned i = 0; i < o->iothreads; i++) {
        g_autofree char *thread =
            g_strdup_printf("{\"qom-type\":\"iothread\",\"id\":\"iothread%u\","
                            "\"poll-max-ns\":0}", i);

        add_arg(args, "-object", thread);
    }
    for (unsigned i = 0; i < o->luns; i++) {
        g_autofree char *blockdev = load_blockdev(o, i);

        add_arg(args, "-blockdev", blockdev);
    }
    if (o->drains) {
        g_autofree char *beside =
            g_strdup_printf("null-co,node-name=disk%u,read-zeroes=on", o->luns);

        add_arg(args, "-blockdev", beside);
    }
    add_device(args, o);
    return g_string_free(args, false);
}

/* Guest memory that all rings and slots need, and the machine itself */
static size_t ram_size(const LoadOptions *o)
{
    size_t slot = 512 + MAX(o->bs, 4096);
    size_t queue = o->depth * slot + o->ring_size * 32 + 64 * KiB;
    size_t size = ROUND_UP(32 * MiB + o->queues * queue, 2 * MiB);

    if (size > MAX_RAM) {
        load_die("--queues %u --depth %u --bs %u: needs %zu MiB of guest "
                 "memory, there are at most %u", o->queues, o->depth, o->bs,
                 size >> 20, (unsigned)(MAX_RAM >> 20));
    }
    return size;
}

/*
 * Life
 */

static void pin_thread(pid_t tid, unsigned cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(tid, sizeof(set), &set)) {
        load_die("--pin: cannot use CPU %u: %s", cpu, g_strerror(errno));
    }
}

/* IOThreads from the last CPU on; what remains is the generator's. */
static void pin_all(Load *l)
{
    unsigned cpus = g_get_num_processors();
    unsigned pinned = 0;
    ProcStat s;

    proc_read(&s, l->pid);
    for (unsigned i = 0; i < s.num_threads; i++) {
        if (proc_is_iothread(&s.threads[i])) {
            pin_thread(s.threads[i].tid, cpus - 1 - pinned++ % cpus);
        }
    }
    proc_free(&s);
    if (pinned < cpus) {
        pin_thread(0, 0);
    }
}

static unsigned device_flags(const LoadOptions *o)
{
    return (o->packed ? SHM_PACKED : 0) |
           (o->indirect ? SHM_INDIRECT : 0) |
           (o->event_idx ? SHM_EVENT_IDX : 0) |
           (o->interrupts ? SHM_MSIX : 0);
}

void load_open(Load *l, const LoadOptions *o)
{
    ShmGeometry geo = {
        .depth = o->depth,
        .depth_other = 1,
        .head = sizeof(struct virtio_scsi_cmd_req),
        .resp = sizeof(struct virtio_scsi_cmd_resp),
        .data = MAX(o->bs, LOAD_SECTOR),
    };
    g_autofree char *args = NULL;

    l->o = o;
    l->rand = 0x9e3779b97f4a7c15ull;
    shm_mem_init(&l->mem, ram_size(o));
    args = command_line(l);
    l->qts = qtest_init(args);
    l->pid = qtest_pid(l->qts);
    l->dev = shm_dev_new(l->qts, &l->mem, PCI_SLOT, &geo);
    shm_dev_start(l->dev, device_flags(o));
    if (l->dev->num_queues != o->queues) {
        load_die("--queues %u: the device has %u", o->queues,
                 l->dev->num_queues);
    }
    if (o->pin) {
        pin_all(l);
    }
    proc_read_rss(&l->rss_idle, l->pid);
}

void load_close(Load *l)
{
    qtest_quit(l->qts);
    shm_free(l->dev);
    shm_mem_destroy(&l->mem);
}

void load_start_polling(Load *l)
{
    for (unsigned i = 0; l->o->poll_ns && i < l->o->iothreads; i++) {
        g_autofree char *path = g_strdup_printf("/objects/iothread%u", i);

        qtest_qmp_assert_success(l->qts, "{'execute': 'qom-set', 'arguments': "
                                 "{'path': %s, 'property': 'poll-max-ns', "
                                 "'value': %" PRId64 "}}", path, l->o->poll_ns);
    }
}

/*
 * Commands before the load: how large are the disks?
 */

/* Post the request of the first slot and wait for its answer. */
static void do_request(Load *l, ShmSlot *slot, const ShmShape *shape)
{
    ShmWait w = { 0 };

    shm_post(slot, shape);
    shm_flush(slot->q);
    while (!shm_reap(slot->q)) {
        shm_wait(&w, l->qts, "the answer to a command before the load");
    }
}

static ShmShape fill_command(const Load *l, ShmSlot *slot, unsigned lun,
                             const uint8_t *cdb, unsigned cdb_len, unsigned in)
{
    struct virtio_scsi_cmd_req *req = (void *)slot->head;
    ShmShape shape = load_shape(l, false);

    memset(req, 0, sizeof(*req));
    shm_put_lun(req->lun, 0, lun);
    memcpy(req->cdb, cdb, cdb_len);
    shape.in = in;
    return shape;
}

static const struct virtio_scsi_cmd_resp *
do_command(Load *l, unsigned lun, const uint8_t *cdb, unsigned cdb_len,
           unsigned in)
{
    ShmSlot *slot = shm_take(shm_queue(l->dev, 0));
    ShmShape shape = fill_command(l, slot, lun, cdb, cdb_len, in);

    do_request(l, slot, &shape);
    return (void *)shm_resp(slot, shape.resp);
}

ShmShape load_fill_probe(const Load *l, ShmSlot *slot)
{
    const uint8_t cdb[6] = { TEST_UNIT_READY };

    if (l->o->scsi) {
        return fill_command(l, slot, 0, cdb, sizeof(cdb), 0);
    }
    *(struct virtio_blk_outhdr *)slot->head = (struct virtio_blk_outhdr) {
        .type = cpu_to_le32(VIRTIO_BLK_T_IN),
    };
    return load_shape(l, false);
}

static void wait_until_ready(Load *l, unsigned lun)
{
    const uint8_t cdb[6] = { TEST_UNIT_READY };
    const struct virtio_scsi_cmd_resp *resp = NULL;

    for (unsigned i = 0; i < MAX_ATTENTIONS; i++) {
        resp = do_command(l, lun, cdb, sizeof(cdb), 0);
        if (!resp->response && !resp->status) {
            return;
        }
    }
    load_die("LUN %u doesn't get ready: response %u, status 0x%02x", lun,
             resp->response, resp->status);
}

static uint64_t scsi_sectors(Load *l, unsigned lun)
{
    const uint8_t cdb[16] = { SERVICE_ACTION_IN_16, SAI_READ_CAPACITY_16,
                              [13] = 32 };
    const struct virtio_scsi_cmd_resp *resp;
    const uint8_t *data = shm_take(shm_queue(l->dev, 0))->data;

    wait_until_ready(l, lun);
    resp = do_command(l, lun, cdb, sizeof(cdb), 32);
    if (resp->response || resp->status || ldl_be_p(data + 8) != LOAD_SECTOR) {
        load_die("LUN %u: READ CAPACITY failed or has blocks of other than "
                 "512 bytes: response %u, status 0x%02x", lun, resp->response,
                 resp->status);
    }
    return ldq_be_p(data) + 1;
}

static uint64_t blk_sectors(Load *l)
{
    uint32_t low = shm_config_readl(l->dev, 0);

    return low | (uint64_t)shm_config_readl(l->dev, 4) << 32;
}

void load_probe_luns(Load *l)
{
    const LoadOptions *o = l->o;

    l->luns = g_new0(LoadLun, o->luns);
    for (unsigned i = 0; i < o->luns; i++) {
        LoadLun *lun = &l->luns[i];
        uint64_t region;

        lun->sectors = o->scsi ? scsi_sectors(l, i) : blk_sectors(l);
        region = lun->sectors * LOAD_SECTOR;
        if (o->region) {
            region = MIN(region, o->region);
        }
        lun->blocks = region / o->bs;
        if (!lun->blocks) {
            load_die("--bs %u: disk %u has only %" PRIu64 " bytes to use",
                     o->bs, i, region);
        }
        l->cdb16 |= lun->blocks * (o->bs / LOAD_SECTOR) > UINT32_MAX;
    }
}
