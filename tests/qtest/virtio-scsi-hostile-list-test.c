/*
 * What a virtio-scsi driver may do wrong, one thing after the other
 *
 * virtio-scsi-hostile does such things at random.  Here each has its turn, on
 * each kind of virtqueue, and it is known how it ends: with an answer, or with
 * a device that is broken until it is reset.  No test looks at a clock; what
 * never ends fails by its time limit.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "scsi/constants.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "virtio-scsi-shm-case.h"

#define RING        256
#define HEAD        sizeof(struct virtio_scsi_cmd_req)
#define RESP        sizeof(struct virtio_scsi_cmd_resp)

#define IN          VRING_DESC_F_WRITE
#define NEXT        VRING_DESC_F_NEXT
#define TABLE       VRING_DESC_F_INDIRECT

/*
 * Chains of descriptors
 */

typedef enum Place {
    AT_HEAD,
    AT_RESP,
    AT_DATA,
    AT_TABLE,
    AT_THE_END,         /* 8 bytes below the end of the address space */
} Place;

typedef struct Desc {
    Place place;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
} Desc;

typedef enum Ends {
    ANSWERED,
    BROKEN,
} Ends;

typedef struct Chain {
    const char *name;
    Ends ends;
    unsigned head;      /* what the avail ring names */
    Desc ring[4];
    Desc table[4];
    bool split_only;    /* a packed ring has no such thing */
} Chain;

static const Chain chains[] = {
    { "right", ANSWERED, 0,
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_RESP, RESP, IN } } },
    { "right, in a table", ANSWERED, 0, { { AT_TABLE, 32, TABLE } },
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_RESP, RESP, IN } } },

    { "points to itself", BROKEN, 0,
      { { AT_HEAD, HEAD, NEXT, 0 } }, .split_only = true },
    { "loop of two", BROKEN, 0,
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_DATA, 8, NEXT, 0 } },
      .split_only = true },
    { "loop of answers", BROKEN, 0,
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_RESP, RESP, IN | NEXT, 1 } },
      .split_only = true },
    { "loop in a table", BROKEN, 0, { { AT_TABLE, 32, TABLE } },
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_DATA, 8, NEXT, 0 } },
      .split_only = true },
    { "next is outside", BROKEN, 0,
      { { AT_HEAD, HEAD, NEXT, RING } }, .split_only = true },
    { "next is far outside", BROKEN, 0,
      { { AT_HEAD, HEAD, NEXT, 65535 } }, .split_only = true },
    { "next is outside of a table", BROKEN, 0, { { AT_TABLE, 32, TABLE } },
      { { AT_HEAD, HEAD, NEXT, 2 } }, .split_only = true },
    { "head is outside", BROKEN, RING, { }, .split_only = true },
    { "head is far outside", BROKEN, 65535, { }, .split_only = true },

    { "all at one place", ANSWERED, 0,
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_HEAD, RESP, IN } } },
    { "data over the answer", ANSWERED, 0,
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_RESP, RESP, IN | NEXT, 2 },
        { AT_RESP, RESP, IN } } },
    { "answer over its descriptors", ANSWERED, 0, { { AT_TABLE, 32, TABLE } },
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_TABLE, RESP, IN } } },

    { "no header", BROKEN, 0, { { AT_RESP, RESP, IN } } },
    { "header of one byte", BROKEN, 0,
      { { AT_HEAD, 1, NEXT, 1 }, { AT_RESP, RESP, IN } } },
    { "header ends in its LUN", BROKEN, 0,
      { { AT_HEAD, 3, NEXT, 1 }, { AT_RESP, RESP, IN } } },
    { "no answer", BROKEN, 0, { { AT_HEAD, HEAD } } },
    { "empty header", BROKEN, 0,
      { { AT_HEAD, 0, NEXT, 1 }, { AT_RESP, RESP, IN } } },
    { "empty answer", BROKEN, 0,
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_RESP, 0, IN } } },
    { "empty data", BROKEN, 0,
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_DATA, 0, NEXT, 2 },
        { AT_RESP, RESP, IN } } },
    { "answer first", BROKEN, 0,
      { { AT_RESP, RESP, IN | NEXT, 1 }, { AT_HEAD, HEAD } } },

    { "header beyond RAM", BROKEN, 0,
      { { AT_HEAD, UINT32_MAX, NEXT, 1 }, { AT_RESP, RESP, IN } } },
    { "answer of 4 GiB", BROKEN, 0,
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_RESP, UINT32_MAX, IN } } },
    { "data around the end of addresses", ANSWERED, 0,
      { { AT_HEAD, HEAD, NEXT, 1 }, { AT_RESP, RESP, IN | NEXT, 2 },
        { AT_THE_END, 4096, IN } } },
};

static uint64_t place_addr(const Case *c, const ShmSlot *slot, Place place)
{
    const ShmMem *mem = &c->mem;

    switch (place) {
    case AT_HEAD:
        return shm_guest_addr(mem, slot->head);
    case AT_RESP:
        return shm_guest_addr(mem, slot->resp_end - RESP);
    case AT_DATA:
        return shm_guest_addr(mem, slot->data);
    case AT_TABLE:
        return shm_guest_addr(mem, slot->table);
    default:
        return UINT64_MAX - 7;
    }
}

/* Descriptors up to the last one that is any use; an empty one may be bad. */
static unsigned chain_len(const Desc *desc)
{
    unsigned n = 1;

    while (n < 4 && (desc[n].len || desc[n].flags)) {
        n++;
    }
    return n;
}

static void put_desc(const Case *c, const ShmSlot *slot, void *to,
                     const Desc *desc, uint16_t packed_bits)
{
    if (c->dev->flags & SHM_PACKED) {
        *(struct vring_packed_desc *)to = (struct vring_packed_desc) {
            .addr = cpu_to_le64(place_addr(c, slot, desc->place)),
            .len = cpu_to_le32(desc->len),
            .flags = cpu_to_le16(desc->flags | packed_bits),
        };
    } else {
        *(struct vring_desc *)to = (struct vring_desc) {
            .addr = cpu_to_le64(place_addr(c, slot, desc->place)),
            .len = cpu_to_le32(desc->len),
            .flags = cpu_to_le16(desc->flags),
            .next = cpu_to_le16(desc->next),
        };
    }
}

/* In a queue that was just enabled, so the ring is at its beginning */
static void put_chain(Case *c, ShmQueue *q, const Chain *chain)
{
    ShmSlot *slot = &q->slots[0];

    memset(slot->head, 0, HEAD);
    if (q == shm_ctrl(c->dev)) {
        struct virtio_scsi_ctrl_tmf_req *req = (void *)slot->head;

        req->subtype = cpu_to_le32(VIRTIO_SCSI_T_TMF_QUERY_TASK);
        shm_put_lun(req->lun, 0, 0);
    } else {
        shm_put_lun(slot->head, 0, 0);
    }
    for (unsigned i = 0; i < chain_len(chain->table); i++) {
        put_desc(c, slot, &slot->table[i], &chain->table[i], 0);
    }
    for (unsigned i = chain_len(chain->ring); i-- > 0; ) {
        put_desc(c, slot, &q->desc[i], &chain->ring[i],
                 1 << VRING_PACKED_DESC_F_AVAIL);
        smp_wmb(); /* a packed ring's first descriptor shows all of them */
    }
    if (!(c->dev->flags & SHM_PACKED)) {
        q->avail->ring[0] = cpu_to_le16(chain->head);
        qatomic_store_release(&q->avail->idx, cpu_to_le16(1));
    }
}

static bool chain_answered(const Case *c, const ShmQueue *q)
{
    if (c->dev->flags & SHM_PACKED) {
        return le16_to_cpu(qatomic_read(&q->packed[0].flags)) &
               1 << VRING_PACKED_DESC_F_USED;
    }
    return qatomic_read(&q->used->idx);
}

static void run_chain(Case *c, ShmQueue *q, const Chain *chain)
{
    ShmWait w = { 0 };
    bool answered, broken;

    g_test_message("virtqueue %u: %s", q->pci.vq.index, chain->name);
    put_chain(c, q, chain);
    shm_kick(q);
    do {
        broken = case_needs_reset(c);
        answered = chain_answered(c, q);
        shm_wait(&w, c->qts, chain->name);
    } while (!broken && !answered);
    g_assert_cmpint(broken, ==, chain->ends == BROKEN);
    case_status_returns(c);
}

/*
 * The control virtqueue's answer is of one byte, and its header is shorter.
 * What is long enough for a command is so for a TMF.
 */
static void run_chains(const char *controller, unsigned flags)
{
    g_autofree char *props = g_strdup_printf("%s,\"packed\":true", controller);
    Case c;

    case_open(&c, props, RING, CASE_DEPTH);
    case_expect_works(&c, flags | SHM_INDIRECT);
    for (unsigned i = 0; i < ARRAY_SIZE(chains); i++) {
        const ShmQueue *last = shm_queue(c.dev, 1);

        if (flags & SHM_PACKED && chains[i].split_only) {
            continue;
        }
        for (ShmQueue *q = shm_ctrl(c.dev); q <= last; q++) {
            if (q != shm_event(c.dev)) {
                shm_start(c.dev, flags | SHM_INDIRECT);
                run_chain(&c, q, &chains[i]);
            }
        }
        if (i % 4 == 0) {
            case_expect_works(&c, flags | SHM_INDIRECT);
        }
    }
    case_expect_works(&c, flags | SHM_INDIRECT);
    case_close(&c);
}

static void test_chains_split(const void *opaque)
{
    run_chains(opaque, 0);
}

static void test_chains_packed(const void *opaque)
{
    run_chains(opaque, SHM_PACKED);
}

/* An event for which the buffer is too small */
static void test_event_buffer(const void *opaque)
{
    static const Chain chain = {
        "event", BROKEN, 0,
        { { AT_RESP, sizeof(struct virtio_scsi_event) - 1, IN } }
    };
    ShmWait w = { 0 };
    Case c;

    case_open(&c, opaque, RING, CASE_DEPTH);
    case_expect_works(&c, 0);
    put_chain(&c, shm_event(c.dev), &chain);
    shm_kick(shm_event(c.dev));
    qtest_qmp_assert_success(c.qts,
        "{'execute': 'device_add', 'arguments': {'driver': 'scsi-cd',"
        " 'id': 'cd', 'bus': 'scsi0.0', 'lun': 5}}");
    while (!case_needs_reset(&c)) {
        shm_wait(&w, c.qts, "NEEDS_RESET");
    }
    case_expect_works(&c, 0);
    case_close(&c);
}

/*
 * What a driver has QEMU print
 */

/* Lines on QEMU's stderr about virtio devices, so far */
static unsigned log_lines(FILE *log, const char *last)
{
    char line[512];
    unsigned n = 0;
    bool found = false;

    rewind(log);
    while (fgets(line, sizeof(line), log)) {
        if (strstr(line, "virtio")) {
            n++;
            found = strstr(line, last);
        }
    }
    g_assert_true(found);
    return n;
}

/*
 * Broken and reset in turn.  At most 8 lines of a device in 60 seconds, which
 * are the VM's, and so ours.
 */
static void test_log_lines(const void *opaque)
{
    static const Chain chain = {
        "no header", BROKEN, 0, { { AT_RESP, RESP, IN } }
    };
    enum { ROUNDS = 200, PRINTED = 8 };
    FILE *log = tmpfile();
    int old = dup(STDERR_FILENO);
    Case c;

    g_assert_nonnull(log);
    g_assert_cmpint(old, >=, 0);
    g_assert_cmpint(dup2(fileno(log), STDERR_FILENO), >=, 0);
    case_open(&c, opaque, RING, CASE_DEPTH);
    g_assert_cmpint(dup2(old, STDERR_FILENO), >=, 0);
    close(old);

    for (unsigned i = 0; i < ROUNDS; i++) {
        shm_start(c.dev, 0);
        run_chain(&c, shm_queue(c.dev, i % 2), &chain);
        if (i == PRINTED - 1) {
            g_assert_cmpuint(log_lines(log, "too small"), ==, PRINTED);
        }
    }
    g_assert_cmpuint(log_lines(log, "more are not printed"), ==, PRINTED + 1);

    /* Another minute: how many were left out, and what is new */
    qtest_clock_step(c.qts, 61 * 1000 * 1000 * 1000LL);
    shm_start(c.dev, 0);
    run_chain(&c, shm_queue(c.dev, 0), &chain);
    g_assert_cmpuint(log_lines(log, "too small"), ==, PRINTED + 3);
    case_expect_works(&c, 0);
    case_close(&c);
    fclose(log);
}

/*
 * Headers and answers of every length up to the right one, and one more
 */

static void run_lengths(Case *c, ShmQueue *q, unsigned head, unsigned resp)
{
    bool right = head >= HEAD && resp >= RESP;
    Chain chain = {
        "", right ? ANSWERED : BROKEN, 0,
        { { AT_HEAD, head, NEXT, 1 }, { AT_RESP, resp, IN } }
    };
    g_autofree char *name = g_strdup_printf("%u and %u bytes", head, resp);

    chain.name = name;
    run_chain(c, q, &chain);
    shm_start(c->dev, 0);
}

static void test_lengths(const void *opaque)
{
    Case c;

    case_open(&c, opaque, RING, CASE_DEPTH);
    case_expect_works(&c, 0);
    shm_start(c.dev, 0);
    for (unsigned len = 1; len <= MAX(HEAD, RESP); len++) {
        ShmQueue *q = shm_queue(c.dev, len % 2);

        if (len <= HEAD) {
            run_lengths(&c, q, len, RESP);
        }
        if (len <= RESP) {
            run_lengths(&c, q, HEAD, len);
        }
    }
    case_expect_works(&c, 0);
    case_close(&c);
}

/*
 * Avail index
 */

/*
 * An entry is a command that succeeds.  Whatever the index is, the device ends
 * them all, or it is broken.
 */
static void test_avail_index(const void *opaque)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };
    static const uint16_t indices[] = {
        0, 2, RING - 1, RING, RING + 1, 2 * RING, 32767, 32768, 32769, 65534,
        65535,
    };
    Case c;

    case_open(&c, opaque, RING, CASE_DEPTH);
    for (unsigned i = 0; i < 2 * ARRAY_SIZE(indices); i++) {
        uint16_t index = indices[i / 2], used, before;
        ShmQueue *q;
        ShmWait w = { 0 };

        case_expect_works(&c, 0);
        q = i % 2 ? shm_ctrl(c.dev) : shm_queue(c.dev, 1);
        if (i % 2) {
            shm_post_tmf(shm_take(q), VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 0, 1);
        } else {
            case_add(q, ready, 0, 0);
        }
        for (unsigned j = 0; j < RING; j++) {
            q->avail->ring[j] = 0;
        }
        before = le16_to_cpu(qatomic_read(&q->used->idx));
        qatomic_store_release(&q->avail->idx, cpu_to_le16(before + index));
        shm_kick(q);
        do {
            case_status_returns(&c);
            used = le16_to_cpu(qatomic_read(&q->used->idx)) - before;
            shm_wait(&w, c.qts, "commands up to the avail index");
        } while (used != index && !case_needs_reset(&c));
    }
    case_expect_works(&c, 0);
    case_close(&c);
}

/*
 * Addresses of LUNs
 */

/* Peripheral device addressing up to LUN 255, flat space; virtio's target */
static bool lun_is_right(const uint8_t *lun)
{
    return lun[0] == 1 && lun[1] == 0 && (!lun[2] || lun[2] >> 6 == 1);
}

static uint8_t ask_lun(Case *c, ShmQueue *q, const uint8_t *lun)
{
    static const uint8_t inquiry[16] = { INQUIRY, [4] = 36 };
    struct virtio_scsi_cmd_req *req = (void *)shm_take(q)->head;

    case_add(q, inquiry, 36, 0);
    memcpy(req->lun, lun, 8);
    shm_flush(q);
    return case_resp(case_reap(c, q))->response;
}

static uint8_t reset_lun(Case *c, const uint8_t *lun)
{
    ShmQueue *q = shm_ctrl(c->dev);
    ShmSlot *slot = shm_take(q);
    struct virtio_scsi_ctrl_tmf_req *req = (void *)slot->head;

    shm_post_tmf(slot, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, 0, 1);
    memcpy(req->lun, lun, 8);
    shm_flush(q);
    return shm_tmf_response(case_reap(c, q));
}

/* All methods of SAM-5, 4.7, well-known LUNs among them, and what isn't any */
static void test_luns(const void *opaque)
{
    static const uint8_t first[] = { 0, 1, 2, 0xc1, 255 };
    static const uint8_t target[] = { 0, 1, 255 };
    static const uint8_t low[] = { 0, 1, 2, 0x80, 255 };
    Case c;

    case_open(&c, opaque, RING, CASE_DEPTH);
    case_expect_works(&c, 0);
    for (unsigned i = 0; i < 256 * 5 * 3 * 5; i++) {
        unsigned at = i / 256;
        uint8_t lun[8] = {
            first[at % 5], target[at / 5 % 3], i % 256, low[at / 15],
        };
        bool right = lun_is_right(lun);
        uint8_t response;

        memset(lun + 4, i % 7 ? 0 : 0xff, 4);
        response = ask_lun(&c, shm_queue(c.dev, i % 2), lun);
        g_assert_cmpuint(response, ==, right ? VIRTIO_SCSI_S_OK
                                             : VIRTIO_SCSI_S_BAD_TARGET);
        if (i % 3 == 0) {
            bool there = !(lun[2] & 0x3f) && lun[3] <= 1;

            response = reset_lun(&c, lun);
            g_assert_cmpuint(response, ==,
                             !right ? VIRTIO_SCSI_S_BAD_TARGET :
                             there ? VIRTIO_SCSI_S_OK :
                             VIRTIO_SCSI_S_INCORRECT_LUN);
        }
    }
    case_expect_works(&c, 0);
    case_close(&c);
}

/*
 * Sizes of CDB and sense data
 */

static void set_size(Case *c, bool cdb, uint32_t value)
{
    shm_config_writel(c->dev, cdb ?
                      offsetof(struct virtio_scsi_config, cdb_size) :
                      offsetof(struct virtio_scsi_config, sense_size), value);
}

/* A command whose header has @size bytes of CDB */
static const struct virtio_scsi_cmd_resp *run_cdb(Case *c, ShmQueue *q,
                                                  const uint8_t *cdb,
                                                  unsigned size)
{
    ShmSlot *slot = shm_take(q);
    struct virtio_scsi_cmd_req *req = (void *)slot->head;
    ShmShape shape = {
        .head = offsetof(struct virtio_scsi_cmd_req, cdb) + size,
        .resp = RESP, .in = 512,
    };

    memset(req, 0, 512);
    shm_put_lun(req->lun, 0, 0);
    memcpy(req->cdb, cdb, 16);
    shm_post(slot, &shape);
    shm_flush(q);
    return case_resp(case_reap(c, q));
}

static void test_cdb_lengths(const void *opaque)
{
    static const uint8_t read[16] = { READ_10, [8] = 1 };
    static const uint32_t too_large[] = { 65536, 256, UINT32_MAX, UINT32_MAX };
    Case c;

    case_open(&c, opaque, RING, CASE_DEPTH);
    case_expect_works(&c, 0);
    for (unsigned size = 0; size < 256; size++) {
        const struct virtio_scsi_cmd_resp *resp;

        set_size(&c, true, size);
        resp = run_cdb(&c, shm_queue(c.dev, size % 2), read, size);
        g_assert_cmpuint(resp->response, ==, VIRTIO_SCSI_S_OK);
        g_assert_cmpuint(resp->status, ==,
                         size >= 10 ? GOOD : CHECK_CONDITION);
        for (unsigned op = 0; op < 256; op += 1 + size / 2) {
            const uint8_t cdb[16] = { op };

            /* These take the disk away from commands that come later. */
            if (op != START_STOP && op != FORMAT_UNIT) {
                run_cdb(&c, shm_queue(c.dev, op % 2), cdb, size);
            }
        }
    }
    for (unsigned i = 0; i < ARRAY_SIZE(too_large); i++) {
        set_size(&c, i % 2, too_large[i]);
        g_assert_true(case_needs_reset(&c));
        case_expect_works(&c, 0);
    }
    case_close(&c);
}

/*
 * Full load of all request virtqueues, which other threads keep up
 */

typedef struct Load {
    Case *c;
    CaseFeed feeds[2];
} Load;

static void load_start(Load *l, Case *c, const uint8_t *cdb, unsigned in)
{
    l->c = c;
    for (unsigned i = 0; i < 2; i++) {
        ShmQueue *q = shm_queue(c->dev, i);

        case_add_shape(q, cdb, 0, (ShmShape) {
            .head = HEAD + 32, .in = in,
        });
        case_feed_start(&l->feeds[i], q, RING / 2);
        shm_kick(q);
    }
}

static void load_stop(Load *l)
{
    for (unsigned i = 0; i < 2; i++) {
        case_feed_stop(&l->feeds[i]);
    }
}

/* Wait for another answer on each queue, or for the device to give up. */
static void load_goes_on(Load *l)
{
    for (unsigned i = 0; i < 2; i++) {
        ShmQueue *q = l->feeds[i].q;
        uint16_t before = qatomic_read(&q->used->idx);
        ShmWait w = { 0 };

        while (qatomic_read(&q->used->idx) == before &&
               !case_needs_reset(l->c)) {
            shm_kick(q);
            shm_wait(&w, l->c->qts, "commands under load");
        }
    }
}

static const uint8_t load_read[16] = { READ_10, [8] = 1 };

/* Sizes change while commands come; at last there are some that can't be. */
static void test_sizes_under_load(const void *opaque)
{
    static const uint32_t cdb[] = { 32, 16, 0, 10, 64, 48, 6, 32 };
    static const uint32_t sense[] = { 96, 0, 18, 252, 96, 1, 96 };
    Load l;
    Case c;

    case_open(&c, opaque, RING, CASE_DEPTH);
    case_expect_works(&c, 0);
    load_start(&l, &c, load_read, 4096);
    for (unsigned i = 0; i < 300; i++) {
        set_size(&c, true, cdb[i % ARRAY_SIZE(cdb)]);
        set_size(&c, false, sense[i % ARRAY_SIZE(sense)]);
        if (i % 16 == 0) {
            load_goes_on(&l);
        }
        g_assert_false(case_needs_reset(&c));
    }
    /* There is no room for as much. */
    set_size(&c, true, 255);
    load_goes_on(&l);
    set_size(&c, true, 256);
    g_assert_true(case_needs_reset(&c));
    case_status_returns(&c);
    shm_reset(c.dev);
    load_stop(&l);
    case_expect_works(&c, 0);
    case_close(&c);
}

/* Registers of a queue that has commands in flight */
static void disturb(Case *c, unsigned i)
{
    ShmQueue *q = shm_queue(c->dev, i % 2);
    QVirtQueue vq = q->pci.vq;
    QVirtioDevice *vdev = &c->dev->pci->vdev;
    QPCIDevice *pdev = c->dev->pci->pdev;
    bool odd = i & 1;
    const uint16_t no_enable = odd ? 0 : 2, no_size = odd ? 1 : 65535;
    uint16_t on = PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;

    vdev->bus->queue_select(vdev, q->pci.vq.index);
    switch (i / 2 % 5) {
    case 0:     /* its rings are elsewhere */
        vq.desc += 16;
        vq.avail += 2;
        vdev->bus->set_queue_address(vdev, &vq);
        case_writew(c, COMMON(queue_enable), 1);
        break;
    case 1:     /* it isn't enabled any more; nor is it a number */
        case_writew(c, COMMON(queue_enable), no_enable);
        break;
    case 2:
        case_writew(c, COMMON(queue_size), no_size);
        break;
    case 3:
        qpci_config_writew(pdev, PCI_COMMAND, on & ~PCI_COMMAND_MASTER);
        shm_kick(q);
        case_status_returns(c);
        qpci_config_writew(pdev, PCI_COMMAND, on);
        break;
    case 4:     /* the driver gives up */
        vdev->bus->set_status(vdev, vdev->bus->get_status(vdev) |
                                    VIRTIO_CONFIG_S_FAILED);
        break;
    }
    for (unsigned j = 0; j < 2; j++) {
        shm_kick(shm_queue(c->dev, j));
        shm_kick(shm_ctrl(c->dev));
    }
}

static void test_rings_under_load(const void *opaque)
{
    Load l;
    Case c;

    case_open(&c, opaque, RING, CASE_DEPTH);
    for (unsigned i = 0; i < 60; i++) {
        case_expect_works(&c, 0);
        load_start(&l, &c, load_read, 4096);
        load_goes_on(&l);
        disturb(&c, i);
        case_status_returns(&c);
        /* The ring is filled during the reset, and kicked after it. */
        shm_reset(c.dev);
        for (unsigned j = 0; j < c.dev->num_vqs; j++) {
            shm_kick(&c.dev->vqs[j]);
        }
        load_stop(&l);
    }
    case_expect_works(&c, 0);
    case_close(&c);
}

/* Commands are looked for in a ring whose size the driver changes meanwhile. */
static void test_size_under_load(const void *opaque)
{
    Load l;
    Case c;

    case_open(&c, opaque, RING, CASE_DEPTH);
    for (unsigned i = 0; i < 20; i++) {
        QVirtioDevice *vdev = &c.dev->pci->vdev;

        case_expect_works(&c, 0);
        load_start(&l, &c, load_read, 4096);
        load_goes_on(&l);
        for (unsigned j = 0; j < 400; j++) {
            ShmQueue *q = shm_queue(c.dev, j / 2 % 2);
            uint16_t size = j & 1 ? RING : RING * 3 / 4;

            vdev->bus->queue_select(vdev, q->pci.vq.index);
            shm_kick(q);
            case_writew(&c, COMMON(queue_size), size);
            if (j & 4) {
                case_writew(&c, COMMON(queue_enable), 1);
            }
        }
        case_status_returns(&c);
        shm_reset(c.dev);
        load_stop(&l);
    }
    case_expect_works(&c, 0);
    case_close(&c);
}

/* Kicks before a virtqueue is enabled, before and instead of DRIVER_OK */
static void test_kicks_early(const void *opaque)
{
    static const uint8_t states[] = {
        0, VIRTIO_CONFIG_S_ACKNOWLEDGE,
        VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER,
        VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
            VIRTIO_CONFIG_S_FEATURES_OK,
        VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_DRIVER_OK, 255,
    };
    Case c;

    case_open(&c, opaque, RING, CASE_DEPTH);
    for (unsigned i = 0; i < 4 * ARRAY_SIZE(states); i++) {
        QVirtioDevice *vdev = &c.dev->pci->vdev;

        case_expect_works(&c, 0);
        case_add(shm_queue(c.dev, 0), load_read, 512, 0);
        shm_publish(shm_queue(c.dev, 0));
        shm_reset(c.dev);
        vdev->bus->set_status(vdev, states[i / 4]);
        for (unsigned j = 0; j < c.dev->num_vqs; j++) {
            if (i % 2) {
                ShmQueue *q = &c.dev->vqs[j];

                vdev->bus->queue_select(vdev, j);
                vdev->bus->set_queue_address(vdev, &q->pci.vq);
                case_writew(&c, COMMON(queue_enable), 1);
            }
            shm_kick(&c.dev->vqs[j]);
        }
        if (i & 2) {
            vdev->bus->set_status(vdev, states[i / 4] |
                                        VIRTIO_CONFIG_S_DRIVER_OK);
        }
        case_status_returns(&c);
    }
    case_expect_works(&c, 0);
    case_close(&c);
}

/* 50,000 TMFs, for which IOThreads have to give up what they are doing */
static void test_tmf_flood(const void *opaque)
{
    enum { NUM = 50000 };
    static const uint32_t subtypes[] = {
        VIRTIO_SCSI_T_TMF_ABORT_TASK, VIRTIO_SCSI_T_TMF_ABORT_TASK_SET,
        VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET, VIRTIO_SCSI_T_TMF_QUERY_TASK,
        VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET,
        VIRTIO_SCSI_T_TMF_QUERY_TASK_SET,
        VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET,
    };
    unsigned posted = 0, answered = 0;
    ShmWait w = { 0 };
    ShmQueue *ctrl;
    ShmSlot *slot;
    Load l;
    Case c;

    case_open(&c, opaque, RING, CASE_DEPTH);
    case_expect_works(&c, 0);
    load_start(&l, &c, load_read, 4096);
    load_goes_on(&l);
    ctrl = shm_ctrl(c.dev);
    while (answered < NUM) {
        while (posted < NUM && (slot = shm_take(ctrl))) {
            shm_post_tmf(slot, subtypes[posted % ARRAY_SIZE(subtypes)], 0,
                         posted / 7 % 2, 0);
            posted++;
        }
        shm_flush(ctrl);
        slot = shm_reap(ctrl);
        if (!slot) {
            shm_wait(&w, c.qts, "answers to TMFs");
            continue;
        }
        do {
            uint8_t response = shm_tmf_response(slot);

            g_assert_true(response == VIRTIO_SCSI_S_OK ||
                          response == VIRTIO_SCSI_S_FUNCTION_SUCCEEDED);
            answered++;
        } while ((slot = shm_reap(ctrl)));
        shm_progress(&w);
    }
    load_goes_on(&l);
    case_status_returns(&c);
    shm_reset(c.dev);
    load_stop(&l);
    case_expect_works(&c, 0);
    case_close(&c);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    case_test("hostile-list/chains-split", test_chains_split);
    case_test("hostile-list/chains-packed", test_chains_packed);
    case_test("hostile-list/event-buffer", test_event_buffer);
    case_test("hostile-list/log-lines", test_log_lines);
    case_test("hostile-list/lengths", test_lengths);
    case_test("hostile-list/avail-index", test_avail_index);
    case_test("hostile-list/luns", test_luns);
    case_test("hostile-list/cdb-lengths", test_cdb_lengths);
    case_test("hostile-list/sizes-under-load", test_sizes_under_load);
    case_test("hostile-list/rings-under-load", test_rings_under_load);
    case_test("hostile-list/size-under-load", test_size_under_load);
    case_test("hostile-list/kicks-early", test_kicks_early);
    case_test("hostile-list/tmf-flood", test_tmf_flood);
    return g_test_run();
}
