/*
 * SCSI disks on other HBAs than virtio-scsi
 *
 * Two ways in which data come to a disk: pvscsi has lists of guest memory,
 * am53c974 (ESP) moves what is in the disk's own buffer, part by part.  No
 * command ends there without a SCSI status.  And lsi53c895a's scripts.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "scsi/constants.h"
#include "scsi/utils.h"
#include "fake-sg-io.h"
#include "virtio-scsi-mq-common.h"

#define SLOT        9
#define BLOCK       512
#define BLOCKS      4096u
#define CAPACITY    (BLOCKS * BLOCK)
/* A disk's buffer takes 128 KiB: three parts, none of them like another */
#define LONG_BLOCKS 600u
#define DATA_MAX    (LONG_BLOCKS * BLOCK)
/* A read that comes to it fails once; it is in the second part of three. */
#define LONG_LBA    1000u
#define ERROR_LBA   (LONG_LBA + 300)
#define SENSE_LEN   18

#define PASSED_ID   3
enum { TARGET_HD, TARGET_CD, TARGET_SLOW, TARGET_PASSED = PASSED_ID };

static char *fake_sg_io;        /* the library's path */

#define ASC_IO          0x0006
#define ASC_RANGE       0x2100
#define ASC_NO_MEDIUM   0x3a00

typedef enum Dir { DATA_NONE, DATA_IN, DATA_OUT } Dir;

typedef struct Hba Hba;

typedef struct HbaOps {
    const char *name;
    void (*start)(Hba *h);
    /* @lists: guest memory in pieces, if the HBA can */
    void (*begin)(Hba *h, unsigned target, const uint8_t *cdb, Dir dir,
                  size_t len, bool lists);
    /* When it has ended: the SCSI status, and h->sense if that is wanted */
    uint8_t (*end)(Hba *h);
    /* What has begun and doesn't end */
    void (*cancel)(Hba *h);
} HbaOps;

struct Hba {
    const HbaOps *ops;
    QTestState *qts;
    QGuestAllocator alloc;
    QPCIBus *bus;
    QPCIDevice *pci;
    QPCIBar bar;
    int fd;                 /* the image, which has no name */
    char *args;             /* of this QEMU, and of one that it moves to */
    uint64_t page;          /* the HBA's own guest memory */
    uint64_t data;          /* DATA_MAX bytes of guest memory */
    unsigned num;           /* commands begun */
    Dir dir;
    size_t len;
    uint8_t sense[SENSE_LEN];
};

/*
 * pvscsi: one ring of requests, one of answers, one page each
 */

#define PV_COMMAND      0x0
#define PV_COMMAND_DATA 0x4
#define PV_STATUS       0x8
#define PV_KICK         0x4018
#define PV_RESET        1
#define PV_SETUP_RINGS  3
#define PV_RESET_DEVICE 5
#define PV_ABORT        6

#define PV_STATE        (h->page)
#define PV_REQUESTS     (h->page + 4 * KiB)
#define PV_ANSWERS      (h->page + 8 * KiB)
#define PV_LIST         (h->page + 12 * KiB)
#define PV_SENSE        (h->page + 16 * KiB)
#define HBA_PAGES       (20 * KiB)

#define PV_REQ_ENTRIES  32
#define PV_CMP_ENTRIES  128
#define PV_CMP_PROD     12      /* offset of an index in the state */
#define PV_HOST_OK      0
#define PV_HOST_LESS    0x12
#define PV_HOST_ABORTED 0x26

typedef struct QEMU_PACKED PVRequest {
    uint64_t context, data, data_len, sense;
    uint32_t sense_len, flags;
    uint8_t cdb[16], cdb_len, lun[8], tag, bus, target, hint, unused[59];
} PVRequest;

typedef struct QEMU_PACKED PVAnswer {
    uint64_t context, data_len;
    uint32_t sense_len;
    uint16_t host_status, scsi_status;
    uint32_t pad[2];
} PVAnswer;

typedef struct QEMU_PACKED PVElement {
    uint64_t addr;
    uint32_t len, flags;
} PVElement;

QEMU_BUILD_BUG_ON(sizeof(PVRequest) != 128);
QEMU_BUILD_BUG_ON(sizeof(PVAnswer) != 32);

static void pv_command(Hba *h, uint32_t command, const uint32_t *words,
                       size_t num)
{
    qpci_io_writel(h->pci, h->bar, PV_COMMAND, command);
    for (size_t i = 0; i < num; i++) {
        qpci_io_writel(h->pci, h->bar, PV_COMMAND_DATA, words[i]);
    }
    g_assert_cmpuint(qpci_io_readl(h->pci, h->bar, PV_STATUS), ==, 0);
}

static void pv_start(Hba *h)
{
    uint32_t rings[132] = { 1, 1 };     /* pages of each */

    rings[2] = PV_STATE >> 12;
    rings[4] = PV_REQUESTS >> 12;
    rings[4 + 2 * 32] = PV_ANSWERS >> 12;
    pv_command(h, PV_RESET, NULL, 0);
    pv_command(h, PV_SETUP_RINGS, rings, ARRAY_SIZE(rings));
}

/* Pieces that end within a block, and one that no byte is left for */
static void pv_list(Hba *h, PVRequest *req)
{
    static const uint32_t pieces[] = { 100, 4000, 1, 70000, 511, 8192 };
    size_t left = h->len;

    for (unsigned i = 0; i <= ARRAY_SIZE(pieces); i++) {
        PVElement e = {
            .addr = cpu_to_le64(h->data + h->len - left),
            .len = cpu_to_le32(i < ARRAY_SIZE(pieces)
                               ? MIN(pieces[i], left) : left),
        };

        qtest_memwrite(h->qts, PV_LIST + i * sizeof(e), &e, sizeof(e));
        left -= le32_to_cpu(e.len);
    }
    g_assert_cmpuint(left, ==, 0);
    req->data = cpu_to_le64(PV_LIST);
    req->flags |= cpu_to_le32(1);
}

static void pv_begin(Hba *h, unsigned target, const uint8_t *cdb, Dir dir,
                     size_t len, bool lists)
{
    PVRequest req = {
        .context = cpu_to_le64(1 + h->num),
        .data = cpu_to_le64(h->data),
        .data_len = cpu_to_le64(len),
        .sense = cpu_to_le64(PV_SENSE),
        .sense_len = cpu_to_le32(SENSE_LEN),
        .flags = cpu_to_le32(dir == DATA_NONE ? 4 : dir == DATA_IN ? 8 : 16),
        .cdb_len = 16,
        .target = target,
    };

    memcpy(req.cdb, cdb, 16);
    if (lists) {
        pv_list(h, &req);
    }
    qtest_memwrite(h->qts, PV_REQUESTS +
                   h->num++ % PV_REQ_ENTRIES * sizeof(req), &req, sizeof(req));
    qtest_writel(h->qts, PV_STATE, h->num);
    qpci_io_writel(h->pci, h->bar, PV_KICK, 0);
}

static PVAnswer pv_answer(Hba *h)
{
    gint64 start = 0;
    PVAnswer a;

    while (qtest_readl(h->qts, PV_STATE + PV_CMP_PROD) != h->num) {
        mq_pause(&start, "an answer of pvscsi");
    }
    qtest_memread(h->qts, PV_ANSWERS +
                  (h->num - 1) % PV_CMP_ENTRIES * sizeof(a), &a, sizeof(a));
    g_assert_cmpuint(le64_to_cpu(a.context), ==, h->num);
    return a;
}

static uint8_t pv_end(Hba *h)
{
    PVAnswer a = pv_answer(h);

    /* After an error it may have got less data than the command asked for. */
    if (le16_to_cpu(a.scsi_status) == GOOD ||
        le16_to_cpu(a.host_status) != PV_HOST_LESS) {
        g_assert_cmpuint(le16_to_cpu(a.host_status), ==, PV_HOST_OK);
    }
    qtest_memread(h->qts, PV_SENSE, h->sense, SENSE_LEN);
    return le16_to_cpu(a.scsi_status);
}

static void pv_cancel(Hba *h)
{
    const uint32_t what[4] = { h->num };

    pv_command(h, PV_ABORT, what, ARRAY_SIZE(what));
    g_assert_cmpuint(le16_to_cpu(pv_answer(h).host_status), ==,
                     PV_HOST_ABORTED);
}

static const HbaOps pvscsi = {
    "pvscsi", pv_start, pv_begin, pv_end, pv_cancel,
};

/*
 * am53c974: a command's bytes by the FIFO, data by DMA
 */

#define ESP(reg)        ((reg) * 4)
#define ESP_TC_LOW      0
#define ESP_TC_MID      1
#define ESP_FIFO        2
#define ESP_CMD         3
#define ESP_STATUS      4       /* read: phase, and whether it interrupts */
#define ESP_TARGET      4       /* written */
#define ESP_INTR        5
#define ESP_TC_HIGH     14
#define ESP_DMA_CMD     0x40
#define ESP_DMA_LEN     0x44
#define ESP_DMA_ADDR    0x48

#define ESP_SELECT_ATN  0x42
#define ESP_TRANSFER    0x90    /* with DMA */
#define ESP_GET_STATUS  0x11
#define ESP_ACCEPT      0x12
#define ESP_INTERRUPT   0x80
#define ESP_PHASE       0x07
#define ESP_PHASE_STATUS 3

static void esp_write(Hba *h, unsigned reg, uint8_t value)
{
    qpci_io_writeb(h->pci, h->bar, ESP(reg), value);
}

static void esp_start(Hba *h)
{
}

/* Returns the phase that the bus is in. */
static uint8_t esp_wait(Hba *h)
{
    gint64 start = 0;
    uint8_t status;

    while (status = qpci_io_readb(h->pci, h->bar, ESP(ESP_STATUS)),
           !(status & ESP_INTERRUPT)) {
        mq_pause(&start, "an interrupt of am53c974");
    }
    qpci_io_readb(h->pci, h->bar, ESP(ESP_INTR));
    return status & ESP_PHASE;
}

static void esp_begin(Hba *h, unsigned target, const uint8_t *cdb, Dir dir,
                      size_t len, bool lists)
{
    static const uint8_t lengths[8] = { 6, 10, 10, 0, 16, 12 };

    esp_write(h, ESP_TARGET, target);
    esp_write(h, ESP_FIFO, 0x80);       /* IDENTIFY, LUN 0 */
    for (unsigned i = 0; i < lengths[cdb[0] >> 5]; i++) {
        esp_write(h, ESP_FIFO, cdb[i]);
    }
    esp_write(h, ESP_CMD, ESP_SELECT_ATN);
}

static uint8_t esp_end(Hba *h)
{
    uint8_t phase = esp_wait(h), status;

    if (phase != ESP_PHASE_STATUS) {
        qpci_io_writel(h->pci, h->bar, ESP_DMA_CMD, 0);
        qpci_io_writel(h->pci, h->bar, ESP_DMA_ADDR, h->data);
        qpci_io_writel(h->pci, h->bar, ESP_DMA_LEN, h->len);
        esp_write(h, ESP_TC_LOW, h->len);
        esp_write(h, ESP_TC_MID, h->len >> 8);
        esp_write(h, ESP_TC_HIGH, h->len >> 16);
        esp_write(h, ESP_CMD, ESP_TRANSFER);
        qpci_io_writel(h->pci, h->bar, ESP_DMA_CMD,
                       h->dir == DATA_IN ? 0x83 : 0x03);
        phase = esp_wait(h);
    }
    g_assert_cmpuint(phase, ==, ESP_PHASE_STATUS);
    esp_write(h, ESP_CMD, ESP_GET_STATUS);
    esp_wait(h);
    status = qpci_io_readb(h->pci, h->bar, ESP(ESP_FIFO));
    /* COMMAND COMPLETE */
    g_assert_cmpuint(qpci_io_readb(h->pci, h->bar, ESP(ESP_FIFO)), ==, 0);
    esp_write(h, ESP_CMD, ESP_ACCEPT);
    esp_wait(h);
    return status;
}

/* A new command, and be it for nobody, ends the one before. */
static void esp_cancel(Hba *h)
{
    static const uint8_t cdb[16] = { TEST_UNIT_READY };

    esp_begin(h, 6, cdb, DATA_NONE, 0, false);
    g_assert_cmpuint(esp_wait(h), ==, 0);       /* disconnected */
    esp_write(h, ESP_CMD, 0x01);                /* forget what is in the FIFO */
}

static const HbaOps am53c974 = {
    "am53c974", esp_start, esp_begin, esp_end, esp_cancel,
};

/*
 * Both
 */

static void begin(Hba *h, unsigned target, const uint8_t *cdb, Dir dir,
                  size_t len, bool lists)
{
    g_assert_cmpuint(len, <=, DATA_MAX);
    h->dir = dir;
    h->len = len;
    h->ops->begin(h, target, cdb, dir, len, lists);
}

static uint8_t run(Hba *h, unsigned target, const uint8_t *cdb, Dir dir,
                   size_t len)
{
    begin(h, target, cdb, dir, len, false);
    return h->ops->end(h);
}

static void expect_good(Hba *h, unsigned target, const uint8_t *cdb, Dir dir,
                        size_t len)
{
    g_assert_cmpuint(run(h, target, cdb, dir, len), ==, GOOD);
}

/* An HBA without autosense has to ask, and is told once. */
static void expect_sense(Hba *h, unsigned target, uint8_t status, uint8_t key,
                         uint16_t asc)
{
    static const uint8_t cdb[16] = { REQUEST_SENSE, [4] = SENSE_LEN };

    g_assert_cmpuint(status, ==, CHECK_CONDITION);
    if (h->ops != &pvscsi) {
        expect_good(h, target, cdb, DATA_IN, SENSE_LEN);
        qtest_memread(h->qts, h->data, h->sense, SENSE_LEN);
    }
    g_assert_cmpuint(h->sense[2] & 0xf, ==, key);
    g_assert_cmphex(lduw_be_p(h->sense + 12), ==, asc);
    if (h->ops != &pvscsi) {
        expect_good(h, target, cdb, DATA_IN, SENSE_LEN);
        qtest_memread(h->qts, h->data, h->sense, SENSE_LEN);
        g_assert_cmpuint(h->sense[2] & 0xf, ==, NO_SENSE);
    }
}

static void clear_attention(Hba *h, unsigned target)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };
    static const uint8_t sense[16] = { REQUEST_SENSE, [4] = SENSE_LEN };

    for (unsigned i = 0; i < 4; i++) {
        if (run(h, target, ready, DATA_NONE, 0) == GOOD) {
            return;
        }
        run(h, target, sense, DATA_IN, SENSE_LEN);
    }
    g_assert_cmpuint(target, ==, TARGET_CD);    /* and has no medium */
}

static void start_with(Hba *h, const HbaOps *ops, const char *hd_props,
                       const char *more)
{
    g_autofree uint8_t *image = g_malloc(CAPACITY);
    g_autofree char *path = mq_open_unnamed(&h->fd);
    QPCIAddress addr = { .devfn = QPCI_DEVFN(SLOT, 0) };

    mq_fill_pattern(image, 0, BLOCKS, 0);
    g_assert_cmpint(pwrite(h->fd, image, CAPACITY, 0), ==, CAPACITY);
    *h = (Hba) { .ops = ops, .fd = h->fd };
    h->args = g_strdup_printf("-machine pc -nodefaults"
        " -blockdev '{\"driver\":\"blkdebug\",\"node-name\":\"disk\","
        "\"image\":{\"driver\":\"file\",\"locking\":\"off\","
        "\"filename\":\"%s\"},\"inject-error\":[{\"event\":\"none\","
        "\"iotype\":\"read\",\"sector\":%u,\"once\":true}]}'"
        " -blockdev '{\"driver\":\"null-co\",\"node-name\":\"slow\","
        "\"size\":%u,\"latency-ns\":4000000000}'"
        " -device '{\"driver\":\"%s\",\"id\":\"hba\",\"addr\":\"%u\"}'"
        " -device '{\"driver\":\"scsi-hd\",\"bus\":\"hba.0\",\"scsi-id\":%u,"
        "\"drive\":\"disk\"%s}'"
        " -device '{\"driver\":\"scsi-cd\",\"bus\":\"hba.0\",\"scsi-id\":%u}'"
        " -device '{\"driver\":\"scsi-hd\",\"bus\":\"hba.0\",\"scsi-id\":%u,"
        "\"drive\":\"slow\",\"cyls\":8,\"heads\":16,\"secs\":32}'%s",
        path, ERROR_LBA, CAPACITY, ops->name, SLOT, TARGET_HD, hd_props,
        TARGET_CD, TARGET_SLOW, more);
    h->qts = qtest_init(h->args);
    pc_alloc_init(&h->alloc, h->qts, ALLOC_NO_FLAGS);
    h->bus = qpci_new_pc(h->qts, &h->alloc);
    h->pci = qpci_device_find(h->bus, addr.devfn);
    g_assert_nonnull(h->pci);
    qpci_device_enable(h->pci);
    h->bar = qpci_iomap(h->pci, 0, NULL);
    h->page = guest_alloc(&h->alloc, HBA_PAGES);
    h->data = guest_alloc(&h->alloc, DATA_MAX);
    g_assert_cmpuint(h->page % (4 * KiB), ==, 0);
    h->ops->start(h);
    clear_attention(h, TARGET_HD);
    clear_attention(h, TARGET_CD);
    clear_attention(h, TARGET_SLOW);
}

static void start(Hba *h, const HbaOps *ops, const char *hd_props)
{
    start_with(h, ops, hd_props, "");
}

static void end(Hba *h)
{
    g_free(h->pci);
    qpci_free_pc(h->bus);
    alloc_destroy(&h->alloc);
    qtest_quit(h->qts);
    g_free(h->args);
    close(h->fd);
}

static void put_range(uint8_t *cdb, uint8_t opcode, uint8_t byte1,
                      uint32_t lba, uint16_t blocks)
{
    memset(cdb, 0, 16);
    cdb[0] = opcode;
    cdb[1] = byte1;
    stl_be_p(cdb + 2, lba);
    stw_be_p(cdb + 7, blocks);
}

static void put_data(Hba *h, uint32_t lba, unsigned blocks, uint32_t seed)
{
    g_autofree uint8_t *data = g_malloc(blocks * BLOCK);

    mq_fill_pattern(data, lba, blocks, seed);
    qtest_memwrite(h->qts, h->data, data, blocks * BLOCK);
}

static void check_data(Hba *h, uint32_t lba, unsigned blocks, uint32_t seed)
{
    g_autofree uint8_t *got = g_malloc(blocks * BLOCK);
    g_autofree uint8_t *want = g_malloc(blocks * BLOCK);

    qtest_memread(h->qts, h->data, got, blocks * BLOCK);
    mq_fill_pattern(want, lba, blocks, seed);
    g_assert_cmpmem(got, blocks * BLOCK, want, blocks * BLOCK);
}

static void check_image(Hba *h, uint32_t lba, unsigned blocks, uint32_t seed)
{
    g_autofree uint8_t *got = g_malloc(blocks * BLOCK);
    g_autofree uint8_t *want = g_malloc(blocks * BLOCK);

    g_assert_cmpint(pread(h->fd, got, blocks * BLOCK, lba * BLOCK), ==,
                    blocks * BLOCK);
    mq_fill_pattern(want, lba, blocks, seed);
    g_assert_cmpmem(got, blocks * BLOCK, want, blocks * BLOCK);
}

/* Written, read and compared: in one part and in several, with FUA and not */
static void test_data(const void *arg)
{
    static const unsigned counts[] = { 1, 256, 257, LONG_BLOCKS };
    const unsigned lba = 2000;
    uint8_t cdb[16];
    Hba h;

    start(&h, arg, "");
    for (unsigned i = 0; i < 4 * ARRAY_SIZE(counts); i++) {
        unsigned blocks = counts[i / 4], seed = 1 + i;
        uint8_t fua = i & 1 ? 8 : 0;
        bool lists = i & 2;

        put_range(cdb, WRITE_10, fua, lba, blocks);
        put_data(&h, lba, blocks, seed);
        begin(&h, TARGET_HD, cdb, DATA_OUT, blocks * BLOCK, lists);
        g_assert_cmpuint(h.ops->end(&h), ==, GOOD);
        check_image(&h, lba - 1, 1, 0);
        check_image(&h, lba, blocks, seed);
        check_image(&h, lba + LONG_BLOCKS, 1, 0);

        put_data(&h, 0, blocks, 99);
        put_range(cdb, READ_10, fua, lba, blocks);
        begin(&h, TARGET_HD, cdb, DATA_IN, blocks * BLOCK, lists);
        g_assert_cmpuint(h.ops->end(&h), ==, GOOD);
        check_data(&h, lba, blocks, seed);

        put_range(cdb, VERIFY_10, 2, lba, blocks);
        begin(&h, TARGET_HD, cdb, DATA_OUT, blocks * BLOCK, lists);
        g_assert_cmpuint(h.ops->end(&h), ==, GOOD);
        put_range(cdb, VERIFY_10, 2, lba + 1, blocks);
        expect_sense(&h, TARGET_HD,
                     run(&h, TARGET_HD, cdb, DATA_OUT, blocks * BLOCK),
                     MISCOMPARE, 0x1d00);
    }
    put_range(cdb, READ_10, 0, BLOCKS - 1, 2);
    expect_sense(&h, TARGET_HD, run(&h, TARGET_HD, cdb, DATA_IN, 2 * BLOCK),
                 ILLEGAL_REQUEST, ASC_RANGE);
    end(&h);
}

/* An error within the data is told; the next try is good. */
static void test_error(const void *arg)
{
    uint8_t cdb[16];
    Hba h;

    start(&h, arg, "");
    put_range(cdb, READ_10, 0, LONG_LBA, LONG_BLOCKS);
    expect_sense(&h, TARGET_HD, run(&h, TARGET_HD, cdb, DATA_IN, DATA_MAX),
                 ABORTED_COMMAND, ASC_IO);
    expect_good(&h, TARGET_HD, cdb, DATA_IN, DATA_MAX);
    check_data(&h, LONG_LBA, LONG_BLOCKS, 0);
    end(&h);
}

/* A read that fails, and that the VM waits with */
static void start_waiting(Hba *h, const HbaOps *ops)
{
    uint8_t cdb[16];

    start(h, ops, ",\"rerror\":\"stop\"");
    put_range(cdb, READ_10, 0, ERROR_LBA, 8);
    begin(h, TARGET_HD, cdb, DATA_IN, 8 * BLOCK, true);
    qtest_qmp_eventwait(h->qts, "STOP");
}

/* It is read once more, and that is all. */
static void end_waiting(Hba *h)
{
    qtest_qmp_assert_success(h->qts, "{'execute': 'cont'}");
    g_assert_cmpuint(h->ops->end(h), ==, GOOD);
    check_data(h, ERROR_LBA, 8, 0);
    end(h);
}

static void test_stop(const void *arg)
{
    Hba h;

    start_waiting(&h, arg);
    end_waiting(&h);
}

/* The VM moves while a read waits; the other QEMU fails it once, too. */
static void test_migrate(const void *arg)
{
    g_autofree char *args = NULL;
    QTestState *to;
    Hba h;

    start_waiting(&h, arg);
    args = g_strdup_printf("%s -incoming defer", h.args);
    to = qtest_init(args);
    mq_migrate(h.qts, to);
    qtest_quit(h.qts);
    h.qts = h.bus->qts = to;
    qtest_qmp_assert_success(h.qts, "{'execute': 'cont'}");
    qtest_qmp_eventwait(h.qts, "STOP");
    end_waiting(&h);
}

/* An HBA that can't take waiting requests along stays where it is. */
static void test_stay(const void *arg)
{
    int fd;
    g_autofree char *path = mq_open_unnamed(&fd);
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    Hba h;

    start_waiting(&h, arg);
    qtest_qmp_assert_success(h.qts, "{'execute': 'migrate',"
                             " 'arguments': {'uri': %s}}", uri);
    g_assert_false(mq_wait_migrated(h.qts));
    end_waiting(&h);
    close(fd);
}

/* A read that takes its time is cancelled, one that the VM waits with, too. */
static void test_cancel(const void *arg)
{
    uint8_t cdb[16];
    Hba h;

    start(&h, arg, ",\"rerror\":\"stop\"");
    put_range(cdb, READ_10, 0, 100, 8);
    begin(&h, TARGET_SLOW, cdb, DATA_IN, 8 * BLOCK, false);
    h.ops->cancel(&h);
    put_range(cdb, READ_10, 0, ERROR_LBA, 8);
    begin(&h, TARGET_HD, cdb, DATA_IN, 8 * BLOCK, false);
    qtest_qmp_eventwait(h.qts, "STOP");
    h.ops->cancel(&h);
    qtest_qmp_assert_success(h.qts, "{'execute': 'cont'}");

    expect_good(&h, TARGET_HD, cdb, DATA_IN, 8 * BLOCK);
    check_data(&h, ERROR_LBA, 8, 0);
    end(&h);
}

/* What needs a medium says that there is none. */
static void test_no_medium(const void *arg)
{
    static const struct {
        uint8_t cdb[16];
        Dir dir;
        size_t len;
    } cmds[] = {
        { { TEST_UNIT_READY }, DATA_NONE },
        { { READ_10, [8] = 1 }, DATA_IN, 2048 },
        { { READ_CAPACITY_10 }, DATA_IN, 8 },
        { { READ_TOC, [8] = 12 }, DATA_IN, 12 },
        { { READ_DVD_STRUCTURE, [9] = 24 }, DATA_IN, 24 },
    };
    Hba h;

    start(&h, arg, "");
    for (unsigned i = 0; i < ARRAY_SIZE(cmds); i++) {
        expect_sense(&h, TARGET_CD,
                     run(&h, TARGET_CD, cmds[i].cdb, cmds[i].dir, cmds[i].len),
                     NOT_READY, ASC_NO_MEDIUM);
    }
    end(&h);
}

/* The guest has more memory for the data than there are. */
static void test_longer(const void *arg)
{
    enum { LBA = 100, NUM = 8 };
    uint8_t cdb[16], behind[BLOCK], was[BLOCK];
    Hba h;

    start(&h, arg, "");
    for (unsigned lists = 0; lists < 2; lists++) {
        put_data(&h, 0, NUM + 1, 99);
        put_range(cdb, READ_10, 0, LBA, NUM);
        begin(&h, TARGET_HD, cdb, DATA_IN, (NUM + 1) * BLOCK, lists);
        g_assert_cmpuint(h.ops->end(&h), ==, GOOD);
        check_data(&h, LBA, NUM, 0);
        mq_fill_pattern(was, NUM, 1, 99);
        qtest_memread(h.qts, h.data + NUM * BLOCK, behind, BLOCK);
        g_assert_cmpmem(behind, BLOCK, was, BLOCK);
    }
    end(&h);
}

/* What the host says of a command becomes a SCSI status, and sense data. */
static void test_host_status(const void *arg)
{
    static const struct {
        uint8_t host_status, status, key;
        uint16_t asc;
    } rows[] = {
        { SCSI_HOST_NO_LUN, CHECK_CONDITION, ABORTED_COMMAND, 0x0500 },
        { SCSI_HOST_BUSY, BUSY },
        { SCSI_HOST_TIME_OUT, CHECK_CONDITION, ABORTED_COMMAND, 0x2e02 },
        { SCSI_HOST_RESERVATION_ERROR, RESERVATION_CONFLICT },
        { SCSI_HOST_MEDIUM_ERROR, CHECK_CONDITION, MEDIUM_ERROR, 0x1100 },
    };
    static const uint8_t capacity[16] = { READ_CAPACITY_10 };
    Hba h;

    g_setenv("LD_PRELOAD", fake_sg_io, true);
    start_with(&h, arg, "",
        " -blockdev '{\"driver\":\"host_device\",\"node-name\":\"passed\","
        "\"locking\":\"off\",\"filename\":\"" FAKE_SG_DISK "\"}'"
        " -device '{\"driver\":\"scsi-block\",\"bus\":\"hba.0\","
        "\"scsi-id\":" stringify(PASSED_ID) ",\"drive\":\"passed\"}'");
    g_unsetenv("LD_PRELOAD");
    clear_attention(&h, TARGET_PASSED);
    expect_good(&h, TARGET_PASSED, capacity, DATA_IN, 8);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        uint8_t cdb[16], status;

        put_range(cdb, READ_10, 0,
                  FAKE_SG_LBA(FAKE_SG_HOST, 0, rows[i].host_status), 1);
        status = run(&h, TARGET_PASSED, cdb, DATA_IN, BLOCK);
        g_assert_cmpuint(status, ==, rows[i].status);
        if (status == CHECK_CONDITION) {
            expect_sense(&h, TARGET_PASSED, status, rows[i].key, rows[i].asc);
        }
    }
    end(&h);
}

/*
 * lsi53c895a: a script that counts, moves memory and begins anew is interrupted
 * when it has moved enough.  It would go on by the virtual clock, which stands.
 */
static void test_lsi_moves(void)
{
    enum { SCRIPT = 1 * MiB, FROM = 32 * MiB, TO = 64 * MiB, MOVE = 0xffffff,
           DSP = 0x2c, SCRATCH_A = 0x34, MMIO_BAR = 1 };
    static const uint32_t script[] = {
        0x7e000000 | SCRATCH_A << 16 | 1 << 8, 0,       /* add 1 to it */
        0xc0000000 | MOVE, FROM, TO,
        0x80080000, SCRIPT,                             /* jump */
    };
    QTestState *qts = qtest_initf("-M pc -m 128 -device lsi53c895a,addr=%u",
                                  SLOT);
    QPCIBus *bus = qpci_new_pc(qts, NULL);
    QPCIDevice *pci = qpci_device_find(bus, QPCI_DEVFN(SLOT, 0));
    QPCIBar bar;

    qpci_device_enable(pci);
    bar = qpci_iomap(pci, MMIO_BAR, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(script); i++) {
        qtest_writel(qts, SCRIPT + 4 * i, script[i]);
    }
    qpci_io_writel(pci, bar, DSP, SCRIPT);
    g_assert_cmpuint(qpci_io_readl(pci, bar, SCRATCH_A), ==, 1);

    g_free(pci);
    qpci_free_pc(bus);
    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    g_autofree char *dir = g_path_get_dirname(argv[0]);
    static const HbaOps *const hbas[] = { &pvscsi, &am53c974 };
    static const struct {
        const char *name;
        void (*func)(const void *arg);
        const HbaOps *only;
    } tests[] = {
        { "data", test_data },
        { "longer", test_longer, &pvscsi },
        { "host-status", test_host_status, &am53c974 },
        { "error", test_error },
        { "stop", test_stop },
        { "migrate", test_migrate, &am53c974 },
        { "stay", test_stay, &pvscsi },
        { "cancel", test_cancel },
        { "no-medium", test_no_medium },
    };

    g_test_init(&argc, &argv, NULL);
    fake_sg_io = g_build_filename(dir, FAKE_SG_LIBRARY, NULL);
    if (qtest_has_device("lsi53c895a")) {
        qtest_add_func("scsi-hba/lsi53c895a/moves", test_lsi_moves);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(hbas); i++) {
        for (unsigned j = 0; j < ARRAY_SIZE(tests); j++) {
            g_autofree char *path = g_strdup_printf("scsi-hba/%s/%s",
                                                    hbas[i]->name,
                                                    tests[j].name);

            if (qtest_has_device(hbas[i]->name) &&
                (!tests[j].only || tests[j].only == hbas[i])) {
                qtest_add_data_func(path, hbas[i], tests[j].func);
            }
        }
    }
    return g_test_run();
}
