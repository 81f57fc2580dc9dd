/*
 * virtio-scsi commands whose buffers are pieces of any memory
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/virtio_ring.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "virtio-scsi-data.h"

#define CTRL_SLOT   9
#define GAP         16      /* bytes between two pieces */
#define GUARD_BYTE  0xdd    /* what is in them */

int data_fd[LUN_CD];
uint8_t *data_image[LUN_CD];
char *data_path[LUN_CD];

const Cuts data_one_piece;
const Cuts data_small_cuts = { 3, { 1, 511, 3 }, .with_header = true };
const Cuts data_page_cuts = { 3, { 4095, 1, 2 } };

/* The test's VM */
static const DataConfig *vm_config;
static QGuestAllocator vm_alloc;
static QPCIBus *vm_bus;
static QVirtioBus vm_ops;               /* libqos' with other features */
static const QVirtioBus *libqos_ops;

/*
 * Virtual machine
 */

static void make_image(unsigned lun)
{
    data_path[lun] = mq_open_unnamed(&data_fd[lun]);
    data_image[lun] = g_malloc(LUN_BYTES);
    mq_fill_pattern(data_image[lun], 0, LUN_BLOCKS, lun);
    g_assert_cmpint(pwrite(data_fd[lun], data_image[lun], LUN_BYTES, 0), ==,
                    LUN_BYTES);
}

static void add_error(GString *cmd, unsigned lba, const char *type, int err,
                      bool once)
{
    g_string_append_printf(cmd,
        "%s{\"event\":\"none\",\"iotype\":\"%s\",\"sector\":%u,"
        "\"errno\":%d,\"once\":%s}",
        cmd->str[cmd->len - 1] == '[' ? "" : ",", type, lba, err,
        once ? "true" : "false");
}

static void add_nodes(GString *cmd, const DataConfig *cfg)
{
    for (unsigned lun = 0; lun < LUN_CD; lun++) {
        g_string_append_printf(cmd,
            " -blockdev '{\"driver\":\"blkdebug\",\"node-name\":\"disk%u\","
            "\"image\":{\"driver\":\"file\",\"locking\":\"off\","
            "\"filename\":\"%s\",\"cache\":{\"direct\":%s}}%s,"
            "\"inject-error\":[", lun, data_path[lun],
            cfg->direct ? "true" : "false", cfg->node_props ?: "");
        add_error(cmd, BAD_LBA, "read", EIO, false);
        add_error(cmd, BAD_LBA, "write", EIO, false);
        for (unsigned i = 0; i < 2; i++) {
            add_error(cmd, TWICE_READ_LBA, "read", EIO, true);
            add_error(cmd, TWICE_FULL_LBA, "write", ENOSPC, true);
        }
        if (lun == LUN_STOP) {
            add_error(cmd, ONCE_READ_LBA, "read", EIO, true);
            add_error(cmd, ONCE_FULL_LBA, "write", ENOSPC, true);
        }
        g_string_append(cmd, "]}'");
    }
}

static void add_luns(GString *cmd, const DataConfig *cfg)
{
    for (unsigned lun = 0; lun < NUM_LUNS; lun++) {
        g_string_append_printf(cmd, " -device '{\"driver\":\"%s\","
            "\"id\":\"hd%u\",\"bus\":\"vs.0\",\"channel\":0,\"scsi-id\":0,"
            "\"lun\":%u", lun == LUN_CD ? "scsi-cd" : "scsi-hd", lun, lun);
        if (lun != LUN_CD) {
            g_string_append_printf(cmd, ",\"drive\":\"disk%u\"%s", lun,
                                   cfg->lun_props ?: "");
        }
        if (lun == LUN_STOP) {
            g_string_append(cmd, ",\"rerror\":\"stop\",\"werror\":\"enospc\"");
        }
        g_string_append(cmd, "}'");
    }
}

/* All JSON: plain -device options would be created before JSON ones. */
static void add_vm(GString *cmd, const DataConfig *cfg)
{
    for (unsigned i = 0; i < cfg->iothreads; i++) {
        g_string_append_printf(cmd, " -object '{\"qom-type\":\"iothread\","
                               "\"id\":\"iot%u\",\"poll-max-ns\":0}'", i);
    }
    g_string_append(cmd, cfg->args ?: "");
    add_nodes(cmd, cfg);
    g_string_append_printf(cmd, " -device '{\"driver\":\"virtio-scsi-pci\","
        "\"id\":\"vs\",\"addr\":\"%u\",\"num_queues\":%u,"
        "\"virtqueue_size\":256%s", CTRL_SLOT, NUM_QUEUES, cfg->props);
    for (unsigned i = 0; i < cfg->iothreads; i++) {
        g_string_append_printf(cmd, "%s{\"iothread\":\"iot%u\"}",
                               i ? "," : ",\"iothread-vq-mapping\":[", i);
    }
    g_string_append(cmd, cfg->iothreads ? "]}'" : "}'");
    add_luns(cmd, cfg);
}

static char *vm_args(const DataConfig *cfg, const char *more)
{
    GString *cmd = g_string_new("-machine pc");

    add_vm(cmd, cfg);
    g_string_append(cmd, more);
    return g_string_free(cmd, false);
}

/* The driver in virtio-scsi-mq-common.c knows nothing of some features. */
static void set_other_features(QVirtioDevice *vdev, uint64_t features)
{
    features |= vm_config->more_features;
    features &= ~vm_config->less_features;
    g_assert_cmphex(features & ~vdev->bus->get_features(vdev), ==, 0);
    libqos_ops->set_features(vdev, features);
}

void data_start(MqDev *d, unsigned form)
{
    mq_start(d, form, BLOCK);
    g_assert_cmpuint(d->num_queues, ==, NUM_QUEUES);
    for (unsigned lun = 0; lun < LUN_CD; lun++) {
        mq_clear_ua(mq_queue(d, 0), 0, lun);
    }
}

MqDev *data_begin(const DataConfig *cfg)
{
    g_autofree char *args = NULL;
    QTestState *qts;
    MqDev *d;

    for (unsigned lun = 0; lun < LUN_CD; lun++) {
        make_image(lun);
    }
    vm_config = cfg;
    args = vm_args(cfg, "");
    qts = qtest_init(args);
    pc_alloc_init(&vm_alloc, qts, ALLOC_NO_FLAGS);
    vm_bus = qpci_new_pc(qts, &vm_alloc);

    d = mq_open(vm_bus, &vm_alloc, CTRL_SLOT);
    libqos_ops = d->vdev->bus;
    vm_ops = *libqos_ops;
    vm_ops.set_features = set_other_features;
    d->vdev->bus = &vm_ops;
    data_start(d, cfg->form);
    return d;
}

void data_end(MqDev *d)
{
    QTestState *qts = d->qts;

    mq_reset(d);
    mq_close(d);
    qpci_free_pc(vm_bus);
    alloc_destroy(&vm_alloc);
    qtest_quit(qts);
    for (unsigned lun = 0; lun < LUN_CD; lun++) {
        close(data_fd[lun]);
        g_clear_pointer(&data_image[lun], g_free);
        g_clear_pointer(&data_path[lun], g_free);
    }
}

QPCIBus *data_bus(void)
{
    return vm_bus;
}

QTestState *data_begin_incoming(const DataConfig *cfg)
{
    g_autofree char *args = vm_args(cfg, " -incoming defer");

    return qtest_init(args);
}

void data_migrated(MqDev *d, QTestState *to)
{
    QTestState *from = d->qts;

    mq_migrated(d, to);
    qtest_quit(from);
}

MqQueue *data_queue(MqDev *d)
{
    static unsigned n;

    return mq_queue(d, n++ % NUM_QUEUES);
}

void data_check_image(unsigned lun)
{
    g_autofree uint8_t *buf = g_malloc(LUN_BYTES);

    g_assert_cmpint(pread(data_fd[lun], buf, LUN_BYTES, 0), ==, LUN_BYTES);
    g_assert_cmpmem(buf, LUN_BYTES, data_image[lun], LUN_BYTES);
}

/*
 * Guest memory
 */

void arena_clear(Arena *a)
{
    a->used = GAP;
    memset(a->shadow, GUARD_BYTE, ARENA_SIZE);
    qtest_memset(a->d->qts, a->base, GUARD_BYTE, ARENA_SIZE);
}

Arena *arena_at(MqDev *d, uint64_t base)
{
    Arena *a = g_new(Arena, 1);

    a->d = d;
    a->base = base;
    arena_clear(a);
    return a;
}

Arena *arena_new(MqDev *d)
{
    return arena_at(d, guest_alloc(d->alloc, ARENA_SIZE));
}

uint64_t arena_take(Arena *a, size_t len)
{
    uint64_t addr = a->base + a->used;

    a->used += len + GAP;
    g_assert_cmpuint(a->used, <=, ARENA_SIZE);
    return addr;
}

static void arena_write(Arena *a, uint64_t addr, const void *buf, size_t len)
{
    memcpy(a->shadow + (addr - a->base), buf, len);
    qtest_bufwrite(a->d->qts, addr, buf, len);
}

void arena_check(const Arena *a)
{
    g_autofree uint8_t *buf = g_malloc(ARENA_SIZE);

    mq_read_mem(a->d, a->base, buf, a->used);
    g_assert_cmpmem(buf, a->used, a->shadow, a->used);
}

static void stream_add(Stream *s, uint64_t addr, size_t len)
{
    g_assert_cmpuint(s->n, <, MAX_PIECES);
    s->p[s->n++] = (Piece) { addr, len };
    s->len += len;
}

static void stream_cut(Stream *s, Arena *a, size_t total, const Cuts *cuts)
{
    for (unsigned i = 0; total; i++) {
        size_t len = cuts->n ? MIN(cuts->size[i % cuts->n], total) : total;

        stream_add(s, arena_take(a, len), len);
        total -= len;
    }
}

static void stream_make(Stream *s, Arena *a, size_t header, size_t data,
                        const Cuts *cuts)
{
    s->n = 0;
    s->len = 0;
    if (cuts->with_header) {
        stream_cut(s, a, header + data, cuts);
    } else {
        stream_add(s, arena_take(a, header), header);
        stream_cut(s, a, data, cuts);
    }
}

static void stream_write(const Stream *s, Arena *a, const uint8_t *buf)
{
    for (unsigned i = 0; i < s->n; i++) {
        arena_write(a, s->p[i].addr, buf, s->p[i].len);
        buf += s->p[i].len;
    }
}

/* What is there now becomes what should be there. */
static void stream_read(const Stream *s, Arena *a, uint8_t *buf)
{
    for (unsigned i = 0; i < s->n; i++) {
        const Piece *p = &s->p[i];

        mq_read_mem(a->d, p->addr, buf, p->len);
        memcpy(a->shadow + (p->addr - a->base), buf, p->len);
        buf += p->len;
    }
}

/*
 * Commands
 */

static void put_desc(uint8_t *to, uint64_t addr, uint32_t len, uint16_t flags,
                     uint16_t next)
{
    stq_le_p(to, addr);
    stl_le_p(to + 8, len);
    stw_le_p(to + 12, flags);
    stw_le_p(to + 14, next);
}

static void chain_desc(uint8_t *to, const Request *r, unsigned i,
                       unsigned first, bool packed)
{
    unsigned n = r->out.n + r->in.n;
    bool in = i >= r->out.n;
    const Piece *p = in ? &r->in.p[i - r->out.n] : &r->out.p[i];
    uint16_t write = in ? VRING_DESC_F_WRITE : 0;

    if (packed) {
        put_desc(to, p->addr, p->len, 0, write);
    } else if (i + 1 == n) {
        put_desc(to, p->addr, p->len, write, 0);
    } else {
        put_desc(to, p->addr, p->len, write | VRING_DESC_F_NEXT,
                 first + i + 1);
    }
}

/* Have the ring's descriptor of the slot stand for a table of all pieces. */
static void post_table(MqQueue *q, Request *r)
{
    bool packed = q->dev->form & MQ_PACKED;
    uint32_t size = q->pci.vq.size;
    unsigned n = r->out.n + r->in.n;
    unsigned pos = packed ? (q->next_avail + size - 1) % size
                          : r->slot - q->slots;
    g_autofree uint8_t *table = g_malloc(16 * n);
    uint64_t addr = arena_take(r->arena, 16 * n);
    uint8_t raw[16];

    for (unsigned i = 0; i < n; i++) {
        chain_desc(table + 16 * i, r, i, 0, packed);
    }
    arena_write(r->arena, addr, table, 16 * n);
    /* Flags of a packed descriptor are there already, or come later. */
    put_desc(raw, addr, 16 * n, 0, 0);
    qtest_bufwrite(q->dev->qts, q->pci.vq.desc + 16 * pos, raw, 12);
}

/*
 * The slot has three descriptors in the ring.  From the first one the chain
 * goes on in the upper half of the ring, whose slots the tests don't need.
 */
static void post_chain(MqQueue *q, Request *r)
{
    unsigned upper = q->pci.vq.size / 2;
    unsigned n = r->out.n + r->in.n;
    unsigned head = (r->slot - q->slots) * 3;
    uint8_t raw[16];

    g_assert_cmpuint(head, <, upper);
    g_assert_cmpuint(n, <=, upper);
    for (unsigned i = 0; i < n; i++) {
        chain_desc(raw, r, i, upper - 1, false);
        qtest_bufwrite(q->dev->qts,
                       q->pci.vq.desc + 16 * (i ? upper + i - 1 : head),
                       raw, sizeof(raw));
    }
}

/* The device doesn't see it before mq_publish(). */
void data_post(MqQueue *q, Request *r)
{
    /* Whatever is in the slot: the descriptors point elsewhere. */
    r->slot = mq_post_raw(q, "", 1, NULL, 0, 1, 0);
    g_assert_nonnull(r->slot);
    if (q->dev->form & MQ_INDIRECT) {
        post_table(q, r);
    } else {
        g_assert_false(q->dev->form & MQ_PACKED);
        post_chain(q, r);
    }
}

static void make_header(uint8_t *buf, const MqCmd *cmd)
{
    struct virtio_scsi_cmd_req req = { .tag = cpu_to_le64(cmd->tag) };

    req.lun[0] = 1;
    req.lun[1] = cmd->target;
    req.lun[2] = 0x40;
    req.lun[3] = cmd->lun;
    memcpy(req.cdb, cmd->cdb, sizeof(req.cdb));
    memcpy(buf, &req, sizeof(req));
}

/* What is in the streams before the device gets them */
static void fill_streams(Request *r)
{
    g_autofree uint8_t *buf = g_malloc(MAX(r->out.len, r->in.len));

    make_header(buf, &r->cmd);
    if (r->cmd.out_len) {
        memcpy(buf + HEAD_LEN, r->cmd.out, r->cmd.out_len);
    }
    stream_write(&r->out, r->arena, buf);
    memset(buf, MQ_FILLER, r->in.len);
    memset(buf, 0xff, RESP_LEN);
    stream_write(&r->in, r->arena, buf);
}

void data_prepare(Request *r, Arena *a, const MqCmd *cmd, const Cuts *cuts)
{
    r->cmd = *cmd;
    r->arena = a;
    stream_make(&r->out, a, HEAD_LEN, cmd->out_len, cuts);
    stream_make(&r->in, a, RESP_LEN, cmd->in_len, cuts);
    fill_streams(r);
}

void data_finish(Request *r, MqAnswer *ans)
{
    g_autofree uint8_t *buf = g_malloc(r->in.len);

    mq_wait(r->slot);
    g_assert_cmpuint(r->cmd.in_len, <=, sizeof(ans->in));
    stream_read(&r->in, r->arena, buf);
    memcpy(&ans->resp, buf, RESP_LEN);
    memcpy(ans->in, buf + RESP_LEN, r->cmd.in_len);
    ans->used_len = r->slot->used_len;
    mq_release(r->slot);
}

/* One command, start to end; no other memory may have changed. */
void data_run(MqQueue *q, Arena *a, const MqCmd *cmd, const Cuts *cuts,
              MqAnswer *ans)
{
    g_autofree Request *r = g_new(Request, 1);

    arena_clear(a);
    data_prepare(r, a, cmd, cuts);
    data_post(q, r);
    mq_flush(q);
    data_finish(r, ans);
    arena_check(a);
}

void data_expect_read(const MqCmd *cmd, const MqAnswer *a, uint32_t lba,
                      unsigned blocks)
{
    mq_expect_moved(cmd, a, blocks * BLOCK);
    g_assert_cmpmem(a->in, blocks * BLOCK,
                    data_image[cmd->lun] + lba * BLOCK, blocks * BLOCK);
}

void data_fill(uint8_t *buf, uint32_t lba, unsigned blocks)
{
    static uint32_t seed = 100;

    mq_fill_pattern(buf, lba, blocks, ++seed);
}

void data_take_ua(MqDev *d, Arena *a, uint16_t lun)
{
    g_autofree MqAnswer *ans = g_new(MqAnswer, 1);
    unsigned n = 0;

    do {
        MqCmd cmd = mq_cmd(lun, TEST_UNIT_READY);

        data_run(data_queue(d), a, &cmd, &data_one_piece, ans);
        g_assert_cmpuint(n++, <, 8);
    } while (ans->resp.status == CHECK_CONDITION &&
             (ans->resp.sense[2] & 0xf) == UNIT_ATTENTION);
}

/*
 * Requests that the device has taken, and holds: qtest's clock stands still, so
 * throttling lets one request through and holds those after it.
 */

void data_throttle(MqDev *d, uint16_t lun, bool on)
{
    g_autofree char *id = g_strdup_printf("hd%u", lun);

    qtest_qmp_assert_success(d->qts,
        "{'execute': 'block_set_io_throttle', 'arguments': {'id': %s,"
        " 'bps': 0, 'bps_rd': 0, 'bps_wr': 0,"
        " 'iops': %d, 'iops_rd': 0, 'iops_wr': 0}}", id, on);
}

void data_hold(MqDev *d, uint16_t lun)
{
    MqCmd cmd = mq_read10(lun, 0, 1);

    data_throttle(d, lun, true);
    mq_run_good(mq_queue(d, 0), &cmd, NULL);
}

void data_wait_taken(MqDev *d, const Request *r)
{
    g_assert_true(mq_wait_taken(d, r->slot, 0, r->cmd.lun, r->cmd.tag));
    mq_reap(r->slot->q);
    g_assert_false(r->slot->done);
}

int64_t data_stat(QTestState *qts, uint16_t lun, const char *what)
{
    g_autoptr(QDict) resp = qtest_qmp(qts, "{'execute': 'query-blockstats'}");
    g_autofree char *id = g_strdup_printf("hd%u", lun);
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(resp, "return"), entry) {
        QDict *dev = qobject_to(QDict, qlist_entry_obj(entry));
        const char *qdev = qdict_get_try_str(dev, "qdev");

        if (qdev && strstr(qdev, id)) {
            return qdict_get_int(qdict_get_qdict(dev, "stats"), what);
        }
    }
    g_assert_not_reached();
}

/*
 * What the control queue has set off in the IOThreads is done when this
 * returns: whatever they get now comes later.
 */
static void settle(MqDev *d)
{
    mq_tmf(d, VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, LUN_STOP, 1);
    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        MqCmd cmd = mq_cmd(LUN_STOP, TEST_UNIT_READY);

        mq_run_good(mq_queue(d, i), &cmd, NULL);
    }
}

/* A reset ends all that are held; they go on after one of them was aborted. */
void data_run_tmf(MqDev *d, uint32_t subtype, uint64_t tag)
{
    MqSlot *tmf = mq_post_tmf(d, subtype, 0, LUN_FILE, tag);
    uint8_t response;

    if (subtype == VIRTIO_SCSI_T_TMF_ABORT_TASK) {
        settle(d);
        data_throttle(d, LUN_FILE, false);
    }
    mq_wait(tmf);
    data_throttle(d, LUN_FILE, false);
    mq_read_resp(tmf, &response, sizeof(response));
    g_assert_cmpuint(response, ==, VIRTIO_SCSI_S_OK);
    mq_release(tmf);
}

void data_prepare_far(Request *r, Arena *a, const MqCmd *cmd, uint64_t data)
{
    MqCmd near = *cmd;

    near.out_len = 0;
    near.in_len = 0;
    data_prepare(r, a, &near, &data_one_piece);
    r->cmd = *cmd;
    if (cmd->out_len) {
        qtest_bufwrite(a->d->qts, data, cmd->out, cmd->out_len);
        stream_add(&r->out, data, cmd->out_len);
    } else if (cmd->in_len) {
        stream_add(&r->in, data, cmd->in_len);
    }
}

void data_finish_far(Request *r, struct virtio_scsi_cmd_resp *resp)
{
    mq_wait(r->slot);
    mq_read_mem(r->arena->d, r->in.p[0].addr, resp, RESP_LEN);
    mq_release(r->slot);
}

static uint64_t flight_place(const Flight *f, uint64_t place, unsigned i)
{
    return f->place ? place + i * 8192 + 4000 : f->r[i].in.p[1].addr;
}

Flight *flight_begin(MqDev *d, Arena *a, uint64_t place)
{
    Flight *f = g_new(Flight, 1);
    uint32_t lba = FLIGHT_LBA;

    arena_clear(a);
    f->place = place;
    data_hold(d, LUN_FILE);
    for (unsigned i = 0; i < FLIGHT_SIZE; i++, lba += FLIGHT_BLOCKS) {
        uint8_t *data = data_image[LUN_FILE] + lba * BLOCK;
        MqCmd cmd = mq_read10(LUN_FILE, lba, FLIGHT_BLOCKS);

        if (i % 2) {
            data_fill(data, lba, FLIGHT_BLOCKS);
            cmd = mq_write10(LUN_FILE, lba, FLIGHT_BLOCKS, data);
        }
        if (place) {
            data_prepare_far(&f->r[i], a, &cmd, flight_place(f, place, i));
        } else {
            data_prepare(&f->r[i], a, &cmd, &data_one_piece);
        }
        data_post(mq_queue(d, i / 2), &f->r[i]);
        mq_flush(mq_queue(d, i / 2));
    }
    for (unsigned i = 0; i < FLIGHT_SIZE; i++) {
        data_wait_taken(d, &f->r[i]);
    }
    return f;
}

/* All end well.  Their data are checked if @place is where they are now. */
void flight_end(MqDev *d, Flight *f, uint64_t place)
{
    uint32_t lba = FLIGHT_LBA;

    data_throttle(d, LUN_FILE, false);
    for (unsigned i = 0; i < FLIGHT_SIZE; i++, lba += FLIGHT_BLOCKS) {
        uint8_t in[FLIGHT_BLOCKS * BLOCK];
        struct virtio_scsi_cmd_resp resp;

        data_finish_far(&f->r[i], &resp);
        mq_assert_good(&resp);
        g_assert_cmpuint(le32_to_cpu(resp.resid), ==, 0);
        if (i % 2 || (f->place && !place)) {
            continue;
        }
        mq_read_mem(d, flight_place(f, place, i), in, sizeof(in));
        g_assert_cmpmem(in, sizeof(in), data_image[LUN_FILE] + lba * BLOCK,
                        sizeof(in));
    }
    data_check_image(LUN_FILE);
    g_free(f);
}

unsigned data_limit_files(pid_t pid, unsigned spare)
{
    for (unsigned n = 0; ; n++) {
        g_autofree char *path = g_strdup_printf("/proc/%d/fd/%u", (int)pid, n);

        if (!g_file_test(path, G_FILE_TEST_IS_SYMLINK) && !spare--) {
            return n;
        }
    }
}
