/*
 * virtio-scsi: what disks and cds tell of themselves
 *
 * INQUIRY data, VPD pages, mode pages and their like, in the default setting,
 * which is QEMU 10.0's, and with standard-answers=on.  The driver is in
 * virtio-scsi-mq-common.c.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "scsi/constants.h"
#include "virtio-scsi-mq-answer.h"

#define CTRL_SLOT   9
#define NUM_QUEUES  2
#define BLOCK       512
#define LUN_BLOCKS  4096u
#define LUN_BYTES   (LUN_BLOCKS * BLOCK)
#define DATA_MAX    (150 * KiB)
#define HUGE        (64 * KiB + 32)

/* The longest allocation length that is tried, and more bytes in the buffer */
#define ALLOC_MAX   512
#define SLACK       5

enum { LUN_HD, LUN_CD };

#define STANDARD    ",\"standard-answers\":true"

/*
 * Virtual machine
 */

static QGuestAllocator vm_alloc;
static QPCIBus *vm_bus;
static int hd_fd;       /* LUN_HD's file, which has no name */

/* The node of LUN_HD, up to the one that it has below */
#define RAW         "\"driver\":\"raw\",\"file\":"
#define QCOW2       "\"driver\":\"qcow2\",\"file\":"
/* One read that begins before READ_ERROR_LBA and comes to it fails. */
#define READ_ERROR_LBA  1000
#define READ_ERROR  "\"driver\":\"blkdebug\",\"inject-error\":[{" \
                    "\"event\":\"none\",\"iotype\":\"read\"," \
                    "\"sector\":" stringify(READ_ERROR_LBA) "," \
                    "\"once\":true}],\"image\":"

/* All JSON: plain -device options would be created before JSON ones. */
static char *vm_args(const char *hd_path, const char *hd_node,
                     const char *hd_props, const char *cd_props)
{
    return g_strdup_printf("-machine pc"
        " -object '{\"qom-type\":\"iothread\",\"id\":\"iot0\"}'"
        " -object '{\"qom-type\":\"iothread\",\"id\":\"iot1\"}'"
        " -blockdev '{\"node-name\":\"disk\",%s"
        "{\"driver\":\"file\",\"locking\":\"off\",\"filename\":\"%s\"}}'"
        " -blockdev '{\"driver\":\"null-co\",\"node-name\":\"dvd\","
        "\"read-only\":true,\"read-zeroes\":true,\"size\":%" PRIu64 "}'"
        " -device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"vs\","
        "\"addr\":\"%u\",\"num_queues\":%u,\"virtqueue_size\":16,"
        "\"iothread-vq-mapping\":"
        "[{\"iothread\":\"iot0\"},{\"iothread\":\"iot1\"}]}'"
        " -device '{\"driver\":\"scsi-hd\",\"id\":\"hd\",\"drive\":\"disk\","
        "\"bus\":\"vs.0\",\"channel\":0,\"scsi-id\":0,\"lun\":%u%s}'"
        " -device '{\"driver\":\"scsi-cd\",\"id\":\"cd\",\"drive\":\"dvd\","
        "\"bus\":\"vs.0\",\"channel\":0,\"scsi-id\":0,\"lun\":%u%s}'",
        hd_node, hd_path, (uint64_t)GiB, CTRL_SLOT, NUM_QUEUES, LUN_HD,
        hd_props, LUN_CD, cd_props);
}

static char *make_image(void)
{
    g_autofree uint8_t *image = g_malloc(LUN_BYTES);
    char *path = mq_open_unnamed(&hd_fd);

    mq_fill_pattern(image, 0, LUN_BLOCKS, 0);
    g_assert_cmpint(pwrite(hd_fd, image, LUN_BYTES, 0), ==, LUN_BYTES);
    return path;
}

static MqDev *begin_with(const char *qemu, char *args)
{
    QTestState *qts = qtest_init_with_env(qemu, args, true);
    MqDev *d;

    g_free(args);
    pc_alloc_init(&vm_alloc, qts, ALLOC_NO_FLAGS);
    vm_bus = qpci_new_pc(qts, &vm_alloc);
    d = mq_open(vm_bus, &vm_alloc, CTRL_SLOT);
    mq_start(d, MQ_SPLIT, DATA_MAX);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_HD);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_CD);
    return d;
}

/* @qemu: the environment variable that names the binary; or NULL */
static MqDev *begin_on(const char *qemu, const char *hd_props,
                       const char *cd_props)
{
    g_autofree char *path = make_image();

    return begin_with(qemu, vm_args(path, RAW, hd_props, cd_props));
}

static MqDev *begin(const char *hd_props, const char *cd_props)
{
    return begin_on(NULL, hd_props, cd_props);
}

static void end(MqDev *d)
{
    QTestState *qts = d->qts;

    mq_reset(d);
    mq_close(d);
    qpci_free_pc(vm_bus);
    alloc_destroy(&vm_alloc);
    qtest_quit(qts);
    close(hd_fd);
}

/* Each command comes by another queue. */
static void run(MqDev *d, const MqCmd *cmd, MqAnswer *a)
{
    static unsigned n;

    mq_run(mq_queue(d, n++ % NUM_QUEUES), cmd, &a->resp, a->in);
}

static void expect_refusal(MqDev *d, const MqCmd *cmd, uint16_t asc)
{
    static MqAnswer a;

    run(d, cmd, &a);
    mq_expect_sense(cmd, &a, ILLEGAL_REQUEST, asc);
    g_assert_cmpuint(le32_to_cpu(a.resp.resid), ==,
                     MAX(cmd->in_len, cmd->out_len));
}

#define INVALID_OPCODE  0x2000
#define OUT_OF_RANGE    0x2100
#define INVALID_FIELD   0x2400
#define INVALID_PARAM   0x2600

/*
 * Answers with an allocation length and a header that says how long they are
 */

typedef struct Form {
    const char *name;
    uint8_t lun;
    uint8_t cdb[16];
    uint8_t alloc_at, alloc_n;  /* in the CDB */
    uint8_t len_at, len_n;      /* in the answer; n = 0: it is LEN_PLUS long */
    uint8_t len_plus;           /* to what stands there */
    uint16_t min;               /* shorter allocation lengths are refused */
    uint8_t unit;               /* the answer is cut in multiples of this */
    bool follows;               /* what QEMU 10.0 says depends on the length */
    bool standard;              /* needs standard-answers=on */
} Form;

#define VPD(name, lun, page) \
    { name, lun, { INQUIRY, 1, page }, 3, 2, 2, 2, 4 }
#define MODE6(name, lun, page) \
    { name, lun, { MODE_SENSE, 0, page }, 4, 1, 0, 1, 1 }
#define MODE10(name, lun, page) \
    { name, lun, { MODE_SENSE_10, 0, page }, 7, 2, 0, 2, 2 }

static const Form answer_forms[] = {
    { "inquiry", LUN_HD, { INQUIRY }, 3, 2, 4, 1, 5, .follows = true },
    { "inquiry/cd", LUN_CD, { INQUIRY }, 3, 2, 4, 1, 5, .follows = true },
    VPD("vpd/00", LUN_HD, 0x00),
    VPD("vpd/80", LUN_HD, 0x80),
    VPD("vpd/83", LUN_HD, 0x83),
    VPD("vpd/b0", LUN_HD, 0xb0),
    VPD("vpd/b1", LUN_HD, 0xb1),
    VPD("vpd/b2", LUN_HD, 0xb2),
    VPD("vpd/00/cd", LUN_CD, 0x00),
    VPD("vpd/83/cd", LUN_CD, 0x83),
    MODE6("mode6/01", LUN_HD, 0x01),
    MODE6("mode6/04", LUN_HD, 0x04),
    MODE6("mode6/05", LUN_HD, 0x05),
    MODE6("mode6/08", LUN_HD, 0x08),
    MODE6("mode6/3f", LUN_HD, 0x3f),
    MODE6("mode6/changeable", LUN_HD, 0x7f),
    MODE6("mode6/3f/cd", LUN_CD, 0x3f),
    MODE10("mode10/08", LUN_HD, 0x08),
    MODE10("mode10/3f", LUN_HD, 0x3f),
    MODE10("mode10/2a/cd", LUN_CD, 0x2a),
    MODE10("mode10/3f/cd", LUN_CD, 0x3f),
    { "capacity16", LUN_HD, { SERVICE_ACTION_IN_16, SAI_READ_CAPACITY_16 },
      10, 4, 0, 0, 32 },
    { "sense", LUN_HD, { REQUEST_SENSE }, 4, 1, 7, 1, 8 },
    { "luns", LUN_HD, { REPORT_LUNS }, 6, 4, 0, 4, 8, .min = 16, .unit = 8 },
    { "toc", LUN_CD, { READ_TOC }, 7, 2, 0, 2, 2 },
    { "toc/session", LUN_CD, { READ_TOC, 0, 1 }, 7, 2, 0, 2, 2 },
    { "toc/raw", LUN_CD, { READ_TOC, 0, 2 }, 7, 2, 0, 2, 2 },
    { "configuration", LUN_CD, { GET_CONFIGURATION }, 7, 2, 0, 4, 4 },
    { "event", LUN_CD, { GET_EVENT_STATUS_NOTIFICATION, 1, [4] = 16 },
      7, 2, 0, 2, 4 },
    { "mechanism", LUN_CD, { MECHANISM_STATUS }, 8, 2, 6, 2, 8 },
    { "disc", LUN_CD, { READ_DISC_INFORMATION }, 7, 2, 0, 2, 2 },
    { "dvd/list", LUN_CD, { READ_DVD_STRUCTURE, [7] = 0xff }, 8, 2, 0, 2, 2 },
    { "mode10/0a", LUN_HD, { MODE_SENSE_10, 0, 0x0a }, 7, 2, 0, 2, 2,
      .standard = true },
    { "opcodes", LUN_HD, { MAINTENANCE_IN, 0x0c }, 6, 4, 0, 4, 4,
      .standard = true },
    { "opcodes/timeouts", LUN_HD, { MAINTENANCE_IN, 0x0c, 0x80 }, 6, 4, 0, 4,
      4, .standard = true },
    { "opcode/none", LUN_HD, { MAINTENANCE_IN, 0x0c, 1, 0xff }, 6, 4, 2, 2, 4,
      .standard = true },
    { "opcode", LUN_HD, { MAINTENANCE_IN, 0x0c, 1, READ_10 }, 6, 4, 2, 2, 4,
      .standard = true },
    { "tmfs", LUN_HD, { MAINTENANCE_IN, 0x0d }, 6, 4, 3, 1, 4, .min = 4,
      .standard = true },
    { "tmfs/extended", LUN_HD, { MAINTENANCE_IN, 0x0d, 0x80 }, 6, 4, 3, 1, 4,
      .min = 4, .standard = true },
    { "dvd/physical", LUN_CD, { READ_DVD_STRUCTURE, [7] = 0x00 },
      8, 2, 0, 2, 2 },
};

static uint32_t field(const uint8_t *at, unsigned n)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < n; i++) {
        value = value << 8 | at[i];
    }
    return value;
}

static void set_field(uint8_t *at, unsigned n, uint32_t value)
{
    for (unsigned i = 0; i < n; i++) {
        at[i] = value >> 8 * (n - 1 - i);
    }
}

static uint32_t alloc_max(const Form *f)
{
    return f->alloc_n == 1 ? UINT8_MAX : ALLOC_MAX;
}

static MqCmd form_cmd(const Form *f, uint32_t alloc)
{
    MqCmd cmd = mq_cmd(f->lun, 0);

    memcpy(cmd.cdb, f->cdb, sizeof(f->cdb));
    set_field(cmd.cdb + f->alloc_at, f->alloc_n, alloc);
    cmd.in_len = alloc + SLACK;
    return cmd;
}

/*
 * The residual is what the answer doesn't fill, and the answer says how long
 * it is; of it comes as much as was asked for.  Returns the bytes moved.
 */
static uint32_t check_answer(const Form *f, const MqCmd *cmd,
                             const MqAnswer *a, uint32_t alloc)
{
    uint32_t moved = cmd->in_len - le32_to_cpu(a->resp.resid);
    uint32_t want = f->unit ? alloc / f->unit * f->unit : alloc;

    g_assert_cmpuint(moved, <=, alloc);
    mq_expect_moved(cmd, a, moved);
    if (moved >= f->len_at + f->len_n) {
        want = MIN(want, field(a->in + f->len_at, f->len_n) + f->len_plus);
    }
    if (moved != want) {
        mq_describe(cmd, a);
        g_printerr("%s, allocation length %u: %u bytes instead of %u\n",
                   f->name, alloc, moved, want);
    }
    g_assert_cmpuint(moved, ==, want);
    return moved;
}

static void check_form(MqDev *d, const Form *f, bool standard)
{
    static MqAnswer whole, a;
    uint32_t max = alloc_max(f), len;
    MqCmd cmd = form_cmd(f, max);

    run(d, &cmd, &whole);
    len = check_answer(f, &cmd, &whole, max);
    for (uint32_t alloc = 0; alloc <= max; alloc++) {
        uint32_t moved;

        cmd = form_cmd(f, alloc);
        if (alloc < f->min) {
            expect_refusal(d, &cmd, INVALID_FIELD);
            continue;
        }
        run(d, &cmd, &a);
        moved = check_answer(f, &cmd, &a, alloc);
        g_assert_cmpuint(moved, <=, len);
        if (f->follows && !standard) {
            /* QEMU 10.0 fills the buffer. */
            if (alloc > 4) {
                g_assert_cmpuint(a.in[4], ==,
                                 MAX(MIN(alloc, 256), 36) - 5);
            }
            whole.in[4] = a.in[4];
        }
        g_assert_cmpmem(a.in, moved, whole.in, moved);
    }
}

static void check_lengths(bool standard)
{
    MqDev *d = begin(standard ? ",\"serial\":\"abc\"" STANDARD
                              : ",\"serial\":\"abc\"",
                     standard ? STANDARD : "");

    for (unsigned i = 0; i < ARRAY_SIZE(answer_forms); i++) {
        if (standard || !answer_forms[i].standard) {
            check_form(d, &answer_forms[i], standard);
        }
    }
    end(d);
}

static void test_lengths_default(void)
{
    check_lengths(false);
}

static void test_lengths_standard(void)
{
    check_lengths(true);
}

/* Any page, any length: no data and CHECK CONDITION, or as said above */
static void check_fuzzed(MqDev *d, unsigned rounds, bool standard)
{
    static MqAnswer a;

    while (rounds--) {
        Form f = answer_forms[g_test_rand_int_range(0,
                                            ARRAY_SIZE(answer_forms))];
        uint32_t alloc = g_test_rand_int_range(f.min, alloc_max(&f) + 1);
        bool constant = f.cdb[0] == SERVICE_ACTION_IN_16;
        MqCmd cmd;

        if (f.standard && !standard) {
            continue;
        }
        if (!constant && f.cdb[0] != REPORT_LUNS &&
            f.cdb[0] != MAINTENANCE_IN) {
            f.cdb[2] = g_test_rand_int_range(0, 256);
        }
        cmd = form_cmd(&f, alloc);
        run(d, &cmd, &a);
        if (a.resp.status == CHECK_CONDITION) {
            mq_expect_sense(&cmd, &a, ILLEGAL_REQUEST, mq_asc(&a.resp));
            g_assert_cmpuint(le32_to_cpu(a.resp.resid), ==, cmd.in_len);
        } else {
            check_answer(&f, &cmd, &a, alloc);
        }
    }
}

static void test_fuzzed(void)
{
    MqDev *d = begin("", "");

    check_fuzzed(d, 2000, false);
    end(d);
    d = begin(STANDARD, STANDARD);
    check_fuzzed(d, 2000, true);
    end(d);
}

/* Four bytes of allocation length may ask for anything. */
static void test_huge_lengths(void)
{
    MqDev *d = begin("", "");
    MqCmd cmd = mq_cmd(LUN_HD, SERVICE_ACTION_IN_16);
    static MqAnswer a;

    cmd.cdb[1] = SAI_READ_CAPACITY_16;
    set_field(cmd.cdb + 10, 4, HUGE);
    cmd.in_len = HUGE;
    run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 32);
    end(d);
}

/*
 * Standard INQUIRY data
 */

static void check_inquiry(MqDev *d, uint16_t lun, const uint8_t *versions)
{
    static MqAnswer a;
    MqCmd cmd = mq_cmd(lun, INQUIRY);

    cmd.cdb[4] = 255;
    cmd.in_len = 255;
    run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 74);
    g_assert_cmpuint(a.in[0], ==, lun == LUN_CD ? TYPE_ROM : TYPE_DISK);
    g_assert_cmpuint(a.in[1], ==, lun == LUN_CD ? 0x80 : 0);
    g_assert_cmpuint(a.in[2], ==, 5);
    g_assert_cmpuint(a.in[4], ==, 69);
    g_assert_cmpmem(a.in + 8, 8, "QEMU    ", 8);
    g_assert_cmpmem(a.in + 58, 6, versions, 6);
}

static void test_inquiry(void)
{
    static const uint8_t hd[] = { 0x00, 0xa0, 0x03, 0x00, 0x04, 0xc0 };
    static const uint8_t cd[] = { 0x00, 0xa0, 0x03, 0x00, 0x04, 0xe0 };
    MqDev *d = begin(STANDARD, STANDARD);

    check_inquiry(d, LUN_HD, hd);
    check_inquiry(d, LUN_CD, cd);
    end(d);
}

/* A page is in the list if, and only if, it is there. */
static void check_vpd_list(MqDev *d, uint16_t lun)
{
    static MqAnswer list, a;
    MqCmd cmd = mq_cmd(lun, INQUIRY);

    cmd.cdb[1] = 1;
    cmd.cdb[4] = 255;
    cmd.in_len = 255;
    run(d, &cmd, &list);
    mq_expect_moved(&cmd, &list, 4 + list.in[3]);
    for (unsigned page = 0; page < 256; page++) {
        cmd.tag = mq_next_tag();
        cmd.cdb[2] = page;
        if (memchr(list.in + 4, page, list.in[3])) {
            run(d, &cmd, &a);
            mq_expect_moved(&cmd, &a, 4 + field(a.in + 2, 2));
            g_assert_cmpuint(a.in[1], ==, page);
        } else {
            expect_refusal(d, &cmd, INVALID_FIELD);
        }
    }
}

static void test_vpd_list(void)
{
    MqDev *d = begin(",\"serial\":\"abc\"" STANDARD, STANDARD);

    check_vpd_list(d, LUN_HD);
    check_vpd_list(d, LUN_CD);
    end(d);
}

/* A VPD page; returns the length without header */
static size_t id_page(MqDev *d, uint16_t lun, uint8_t page, MqAnswer *a)
{
    MqCmd cmd = mq_cmd(lun, INQUIRY);

    cmd.cdb[1] = 1;
    cmd.cdb[2] = page;
    cmd.cdb[3] = 2;
    cmd.in_len = 512;
    run(d, &cmd, a);
    mq_expect_moved(&cmd, a, 4 + field(a->in + 2, 2));
    return field(a->in + 2, 2);
}

/* Two LUNs that nothing was said about are not the same one. */
static void test_unique(void)
{
    static MqAnswer hd, cd;
    MqDev *d = begin(STANDARD, STANDARD);
    size_t len = id_page(d, LUN_HD, 0x83, &hd);

    g_assert_cmpuint(id_page(d, LUN_CD, 0x83, &cd), ==, len);
    g_assert_cmpuint(len, >, 4 + 8);
    g_assert_cmpuint(hd.in[4], ==, 2);      /* ASCII */
    g_assert_cmpuint(hd.in[5], ==, 1);      /* T10 vendor identification */
    g_assert_cmpuint(hd.in[7], ==, len - 4);
    g_assert_cmpmem(hd.in + 8, 8, "QEMU    ", 8);
    g_assert_cmpint(memcmp(hd.in + 8, cd.in + 8, len - 4), !=, 0);
    end(d);

    /* By default there is nothing, as in QEMU 10.0. */
    d = begin("", "");
    g_assert_cmpuint(id_page(d, LUN_HD, 0x83, &hd), ==, 0);
    end(d);
}

/* A serial number longer than 36 characters: whole, or its beginning */
static void test_long_serial(void)
{
    g_autofree char *serial = g_strnfill(252, 's');
    g_autofree char *props = NULL;
    static MqAnswer a;

    memcpy(serial, "0123456789", 10);
    memcpy(serial + 242, "9876543210", 10);
    props = g_strdup_printf(",\"serial\":\"%s\"", serial);
    for (unsigned standard = 0; standard < 2; standard++) {
        g_autofree char *all = g_strconcat(props, standard ? STANDARD : "",
                                           NULL);
        MqDev *d = begin(all, "");
        size_t len = id_page(d, LUN_HD, 0x80, &a);

        g_assert_cmpmem(a.in + 4, len, serial, 252);
        len = id_page(d, LUN_HD, 0x83, &a);
        g_assert_cmpuint(a.in[5], ==, 0);   /* vendor specific */
        g_assert_cmpmem(a.in + 8, a.in[7], serial, 20);
        if (standard) {
            g_assert_cmpuint(a.in[29], ==, 1);
            g_assert_cmpuint(a.in[31], ==, 252);
            /* Its end tells disks apart. */
            g_assert_cmpmem(a.in + 56, 228, serial + 24, 228);
            g_assert_cmpuint(len, ==, 24 + 4 + 252);
        } else {
            g_assert_cmpuint(len, ==, 24);
        }
        end(d);
    }
}

/* An empty qcow2 image (docs/interop/qcow2.rst) with clusters of 64 KiB */
static char *make_qcow2(void)
{
    enum { CLUSTER = 64 * KiB };
    g_autofree uint8_t *image = g_malloc0(4 * CLUSTER);
    char *path = mq_open_unnamed(&hd_fd);

    memcpy(image, "QFI\xfb", 4);
    stl_be_p(image + 4, 2);                     /* version */
    stl_be_p(image + 20, 16);                   /* cluster bits */
    stq_be_p(image + 24, LUN_BYTES);
    stl_be_p(image + 36, 1);                    /* L1 entries */
    stq_be_p(image + 40, 3 * CLUSTER);          /* L1 table */
    stq_be_p(image + 48, CLUSTER);              /* refcount table */
    stl_be_p(image + 56, 1);                    /* its clusters */
    stq_be_p(image + CLUSTER, 2 * CLUSTER);
    for (unsigned i = 0; i < 4; i++) {
        stw_be_p(image + 2 * CLUSTER + 2 * i, 1);
    }
    g_assert_cmpint(pwrite(hd_fd, image, 4 * CLUSTER, 0), ==, 4 * CLUSTER);
    return path;
}

/* The granularity that is told is that of the image, unless it was given. */
static void test_granularity(void)
{
    static const struct {
        const char *node, *props;
        unsigned bytes;
    } cases[] = {
        { QCOW2, "", 4096 },
        { QCOW2, STANDARD, 65536 },
        { QCOW2, ",\"discard_granularity\":8192" STANDARD, 8192 },
        { RAW, STANDARD, 4096 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *path = make_qcow2();
        static MqAnswer a;
        MqDev *d = begin_with(NULL, vm_args(path, cases[i].node,
                                            cases[i].props, ""));

        id_page(d, LUN_HD, 0xb0, &a);
        g_assert_cmpuint(ldl_be_p(a.in + 28) * BLOCK, ==, cases[i].bytes);
        end(d);
    }
}

/*
 * Commands that there are
 */

/* Does REPORT SUPPORTED OPERATION CODES have that?  Returns the usage bits. */
static bool is_reported(MqDev *d, uint8_t opcode, bool by_action,
                        uint16_t action, uint8_t *usage)
{
    static MqAnswer a;
    MqCmd cmd = mq_cmd(LUN_HD, MAINTENANCE_IN);

    cmd.cdb[1] = 0x0c;
    cmd.cdb[2] = by_action ? 2 : 1;
    cmd.cdb[3] = opcode;
    stw_be_p(cmd.cdb + 4, action);
    stl_be_p(cmd.cdb + 6, 64);
    cmd.in_len = 64;
    run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 4 + lduw_be_p(a.in + 2));
    if (a.in[1] == 1) {
        g_assert_cmpuint(lduw_be_p(a.in + 2), ==, 0);
        return false;
    }
    g_assert_cmpuint(a.in[1], ==, 3);
    memcpy(usage, a.in + 4, lduw_be_p(a.in + 2));
    return true;
}

/* Is it anything but an unknown operation code? */
static bool is_known(MqDev *d, uint16_t lun, uint8_t opcode)
{
    static MqAnswer a;
    MqCmd cmd = mq_cmd(lun, opcode);

    run(d, &cmd, &a);
    return !(a.resp.response == VIRTIO_SCSI_S_OK &&
             a.resp.status == CHECK_CONDITION &&
             mq_asc(&a.resp) == INVALID_OPCODE);
}

/* What is in the list is there, and nothing else. */
static void test_opcodes(void)
{
    MqDev *d = begin(STANDARD, STANDARD);
    MqCmd cmd = mq_cmd(LUN_HD, MAINTENANCE_IN);
    bool listed[256] = { false };
    static MqAnswer a;
    uint8_t usage[16];
    size_t len;

    cmd.cdb[1] = 0x0c;
    stl_be_p(cmd.cdb + 6, 4096);
    cmd.in_len = 4096;
    run(d, &cmd, &a);
    len = ldl_be_p(a.in);
    mq_expect_moved(&cmd, &a, 4 + len);
    g_assert_cmpuint(len % 8, ==, 0);
    for (uint8_t *p = a.in + 4; p < a.in + 4 + len; p += 8) {
        static const uint8_t lengths[8] = { 6, 10, 10, 0, 16, 12 };

        listed[p[0]] = true;
        g_assert_cmpuint(lduw_be_p(p + 6), ==, lengths[p[0] >> 5]);
        g_assert_true(is_reported(d, p[0], p[5] & 1, lduw_be_p(p + 2),
                                  usage));
        g_assert_cmpuint(usage[0], ==, p[0]);
        if (p[5] & 1) {
            g_assert_cmpuint(usage[1] & 0x1f, ==, lduw_be_p(p + 2));
        }
    }
    for (unsigned opcode = 0; opcode < 256; opcode++) {
        g_assert_cmpint(is_known(d, LUN_HD, opcode), ==, listed[opcode]);
        if (!listed[opcode]) {
            g_assert_false(is_reported(d, opcode, false, 0, usage));
        }
    }
    g_assert_false(is_reported(d, MAINTENANCE_IN, true, 0x1f, usage));

    /* By the wrong option, of an option that there isn't, and of a cd */
    cmd.cdb[2] = 1;
    cmd.cdb[3] = MAINTENANCE_IN;
    expect_refusal(d, &cmd, INVALID_FIELD);
    cmd.cdb[2] = 2;
    cmd.cdb[3] = READ_10;
    expect_refusal(d, &cmd, INVALID_FIELD);
    cmd.cdb[2] = 4;
    expect_refusal(d, &cmd, INVALID_FIELD);
    g_assert_false(is_known(d, LUN_CD, MAINTENANCE_IN));
    g_assert_false(is_known(d, LUN_CD, WRITE_10));
    end(d);
}

/* A bit of byte 1 that isn't among the usage bits is refused, any other not. */
static void test_usage(void)
{
    static const uint8_t opcodes[] = {
        READ_6, READ_10, READ_12, READ_16, WRITE_10, WRITE_12, WRITE_16,
        WRITE_VERIFY_10, WRITE_VERIFY_12, WRITE_VERIFY_16, WRITE_SAME_10,
        WRITE_SAME_16,
    };
    static const uint8_t data[BLOCK];
    static MqAnswer a;
    MqDev *d = begin(STANDARD, STANDARD);

    for (unsigned i = 0; i < ARRAY_SIZE(opcodes); i++) {
        bool reads = i < 4;
        uint8_t usage[16];

        g_assert_true(is_reported(d, opcodes[i], false, 0, usage));
        for (unsigned bit = 0; bit < 8; bit++) {
            MqCmd cmd = mq_cmd(LUN_HD, opcodes[i]);
            bool ndob = opcodes[i] == WRITE_SAME_16 && bit == 0;

            if (opcodes[i] == READ_6 && bit < 5) {
                continue;       /* the LBA */
            }
            set_field(cmd.cdb + (opcodes[i] >> 5 == 0 ? 4 :
                                 opcodes[i] >> 5 == 5 ? 9 :
                                 opcodes[i] >> 5 == 4 ? 13 : 8), 1, 1);
            cmd.cdb[1] = 1 << bit;
            cmd.in_len = reads ? BLOCK : 0;
            cmd.out = data;
            cmd.out_len = reads || ndob ? 0 : BLOCK;
            if (usage[1] & 1 << bit) {
                run(d, &cmd, &a);
                mq_expect_moved(&cmd, &a, MAX(cmd.in_len, cmd.out_len));
            } else {
                expect_refusal(d, &cmd, INVALID_FIELD);
            }
        }
    }
    end(d);
}

static void test_tmfs(void)
{
    MqDev *d = begin(STANDARD, "");
    MqCmd cmd = mq_cmd(LUN_HD, MAINTENANCE_IN);
    static MqAnswer a;

    cmd.cdb[1] = 0x0d;
    cmd.cdb[9] = 16;
    cmd.in_len = 16;
    run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 4);
    /* ATS, ATSS, CTSS, LURS, QTS; QTSS, ITNRS */
    g_assert_cmphex(lduw_be_p(a.in), ==, 0xdc03);
    end(d);
}

/* What QEMU 10.0 hasn't got isn't there by default. */
static void test_default(void)
{
    MqDev *d = begin("", "");
    MqCmd cmd = mq_cmd(LUN_HD, MODE_SENSE);

    g_assert_false(is_known(d, LUN_HD, MAINTENANCE_IN));
    cmd.cdb[2] = MODE_PAGE_CONTROL;
    cmd.cdb[4] = 255;
    cmd.in_len = 255;
    expect_refusal(d, &cmd, INVALID_FIELD);
    end(d);
}

/* MODE SELECT takes what MODE SENSE says, and changes only WCE. */
static void test_mode_select(void)
{
    MqDev *d = begin(STANDARD, STANDARD);
    static MqAnswer now, changeable, a;

    for (unsigned page = 0; page < 0x3f; page++) {
        MqCmd cmd = mq_cmd(LUN_HD, MODE_SENSE_10);
        size_t len;

        cmd.cdb[1] = 8;
        cmd.cdb[2] = page;
        cmd.cdb[8] = 255;
        cmd.in_len = 255;
        run(d, &cmd, &now);
        if (now.resp.status != GOOD) {
            continue;
        }
        len = 2 + lduw_be_p(now.in);
        g_assert_cmphex(now.in[3], ==, 0x10);       /* DPOFUA */
        g_assert_cmpuint(now.in[8], ==, page);
        cmd.tag = mq_next_tag();
        cmd.cdb[2] |= 0x40;
        run(d, &cmd, &changeable);

        for (unsigned bit = 0; bit < (len - 10) * 8; bit++) {
            g_autofree uint8_t *list = g_memdup2(now.in, len);
            bool may = changeable.in[10 + bit / 8] & 1 << bit % 8;

            stw_be_p(list, 0);
            list[3] = 0;
            list[10 + bit / 8] ^= 1 << bit % 8;
            cmd = mq_cmd(LUN_HD, MODE_SELECT_10);
            cmd.cdb[1] = 0x10;
            cmd.cdb[8] = len;
            cmd.out = list;
            cmd.out_len = len;
            run(d, &cmd, &a);
            g_assert_cmpint(may, ==, page == MODE_PAGE_CACHING && bit == 2);
            if (may) {
                mq_assert_good(&a.resp);
            } else {
                mq_expect_sense(&cmd, &a, ILLEGAL_REQUEST, INVALID_PARAM);
            }
        }
    }
    end(d);
}

/*
 * VERIFY and WRITE SAME
 */

#define DIFFERS     0x1d00

static MqCmd range_cmd(uint8_t opcode, unsigned byte1, uint32_t lba,
                       uint32_t blocks)
{
    MqCmd cmd = mq_cmd(LUN_HD, opcode);
    bool is_16 = opcode >> 5 == 4, is_12 = opcode >> 5 == 5;

    cmd.cdb[1] = byte1;
    set_field(cmd.cdb + (is_16 ? 6 : 2), 4, lba);
    set_field(cmd.cdb + (is_16 ? 10 : is_12 ? 6 : 7), is_16 || is_12 ? 4 : 2,
              blocks);
    return cmd;
}

/* @data of @len bytes against @blocks from @lba on; @asc: 0 if it is good */
static void verify(MqDev *d, uint8_t opcode, unsigned bytchk, uint32_t lba,
                   uint32_t blocks, const uint8_t *data, size_t len,
                   uint16_t asc)
{
    static MqAnswer a;
    MqCmd cmd = range_cmd(opcode, bytchk << 1, lba, blocks);

    cmd.out = data;
    cmd.out_len = len;
    run(d, &cmd, &a);
    if (!asc) {
        mq_expect_moved(&cmd, &a, len);
    } else {
        mq_expect_sense(&cmd, &a, asc == DIFFERS ? MISCOMPARE
                                                 : ILLEGAL_REQUEST, asc);
    }
}

static void check_verify(MqDev *d, uint8_t opcode, bool standard)
{
    enum { SAME_LBA = 3000, SAME_BLOCKS = 400 };
    static const uint16_t counts[] = { 1, 8, 128, 300 };
    static uint8_t data[DATA_MAX];

    verify(d, opcode, 0, 5, 0, NULL, 0, 0);
    verify(d, opcode, 0, 5, 7, NULL, 0, 0);
    verify(d, opcode, 0, LUN_BLOCKS, 0, NULL, 0, 0);
    verify(d, opcode, 0, LUN_BLOCKS - 1, 2, NULL, 0,
           standard ? OUT_OF_RANGE : 0);
    verify(d, opcode, 2, 5, 1, NULL, 0, INVALID_FIELD);
    verify(d, opcode, 0x11, 5, 1, data, BLOCK, INVALID_FIELD);
    verify(d, opcode, 1, LUN_BLOCKS, 1, data, BLOCK, OUT_OF_RANGE);
    verify(d, opcode, 3, LUN_BLOCKS - 1, 2, data, BLOCK, OUT_OF_RANGE);

    for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
        size_t len = counts[i] * BLOCK;

        mq_fill_pattern(data, 100, counts[i], 0);
        verify(d, opcode, 1, 100, counts[i], data, len, 0);
        verify(d, opcode, 1, 101, counts[i], data, len, DIFFERS);
        data[len - 1] ^= 1;
        verify(d, opcode, 1, 100, counts[i], data, len, DIFFERS);
    }

    /* The same block from SAME_LBA on, and another one behind it */
    mq_fill_pattern(data, 0, 1, 1234);
    for (unsigned i = 0; i < SAME_BLOCKS; i++) {
        g_assert_cmpint(pwrite(hd_fd, data, BLOCK, (SAME_LBA + i) * BLOCK),
                        ==, BLOCK);
    }
    verify(d, opcode, 3, SAME_LBA, SAME_BLOCKS, data, BLOCK, 0);
    verify(d, opcode, 3, SAME_LBA, SAME_BLOCKS + 1, data, BLOCK, DIFFERS);
    verify(d, opcode, 3, SAME_LBA - 1, 2, data, BLOCK, DIFFERS);
}

static void test_verify(void)
{
    static const uint8_t opcodes[] = { VERIFY_10, VERIFY_12, VERIFY_16 };

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(opcodes); i++) {
        MqDev *d = begin(i % 2 ? STANDARD : "", "");

        check_verify(d, opcodes[i / 2], i % 2);
        end(d);
    }
}

/* Move the stopped VM to a new QEMU with the image that hd_fd is. */
static QTestState *hop(QTestState *from, const char *props)
{
    g_autofree char *disk = g_strdup_printf("/proc/%d/fd/%d", (int)getpid(),
                                            hd_fd);
    g_autofree char *args = vm_args(disk, RAW, props, "");
    g_autofree char *to_args = g_strdup_printf("%s -incoming defer", args);
    QTestState *to = qtest_init(to_args);

    mq_migrate(from, to);
    return to;
}

/*
 * A read fails, the VM stops, moves on twice, and the rest is done there; the
 * data come from guest memory again.
 */
static void test_verify_migrate(void)
{
    enum { LBA = READ_ERROR_LBA - 2, BLOCKS = 8 };
    static const char props[] = ",\"rerror\":\"stop\"";
    g_autofree char *disk = make_image();
    uint8_t data[BLOCKS * BLOCK];
    struct virtio_scsi_cmd_resp resp;
    MqCmd cmd = range_cmd(VERIFY_10, 1 << 1, LBA, BLOCKS);
    MqDev *d = begin_with(NULL, vm_args(disk, READ_ERROR, props, ""));
    QTestState *from = d->qts, *via, *to;
    MqSlot *slot;

    mq_fill_pattern(data, LBA, BLOCKS, 0);
    cmd.out = data;
    cmd.out_len = sizeof(data);
    slot = mq_post_cmd(mq_queue(d, 1), &cmd);
    mq_flush(mq_queue(d, 1));
    qtest_qmp_eventwait(d->qts, "STOP");

    via = hop(from, props);
    to = hop(via, props);
    mq_migrated(d, to);
    qtest_quit(from);
    qtest_quit(via);
    qtest_qmp_assert_success(to, "{'execute': 'cont'}");

    mq_wait(slot);
    mq_read_resp(slot, &resp, sizeof(resp));
    mq_release(slot);
    mq_assert_good(&resp);
    end(d);
}

/* NDOB: zeroes, without data that say so */
static void test_ndob(void)
{
    enum { LBA = 400, BLOCKS = 9 };
    static const uint8_t zeroes[BLOCK];
    static MqAnswer a;
    MqDev *d = begin("", "");
    MqCmd cmd = range_cmd(WRITE_SAME_16, 1, LBA, BLOCKS);

    verify(d, VERIFY_10, 3, LBA, 1, zeroes, BLOCK, DIFFERS);
    run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 0);
    verify(d, VERIFY_10, 3, LBA, BLOCKS, zeroes, BLOCK, 0);
    verify(d, VERIFY_10, 3, LBA, BLOCKS + 1, zeroes, BLOCK, DIFFERS);
    end(d);
}

/* No more blocks than VPD page B0h says */
static void test_write_same(void)
{
    static const uint8_t opcodes[] = { WRITE_SAME_10, WRITE_SAME_16 };
    static const uint8_t block[BLOCK];
    static MqAnswer a;

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(opcodes); i++) {
        bool standard = i % 2;
        MqDev *d = begin(standard ? ",\"max_io_size\":65536" STANDARD
                                  : ",\"max_io_size\":65536", "");
        MqCmd cmd = mq_cmd(LUN_HD, INQUIRY);

        cmd.cdb[1] = 1;
        cmd.cdb[2] = 0xb0;
        cmd.cdb[4] = 64;
        cmd.in_len = 64;
        run(d, &cmd, &a);
        g_assert_cmpuint(ldl_be_p(a.in + 40), ==, 128);

        cmd = range_cmd(opcodes[i / 2], 0, 7, 128);
        cmd.out = block;
        cmd.out_len = BLOCK;
        run(d, &cmd, &a);
        mq_expect_moved(&cmd, &a, BLOCK);
        cmd = range_cmd(opcodes[i / 2], 0, 7, 129);
        cmd.out = block;
        cmd.out_len = BLOCK;
        run(d, &cmd, &a);
        if (standard) {
            mq_expect_sense(&cmd, &a, ILLEGAL_REQUEST, INVALID_FIELD);
        } else {
            mq_expect_moved(&cmd, &a, BLOCK);
        }
        end(d);
    }
}

/*
 * Another QEMU's answers, by default
 */

/* What came of one command, as a line of text */
static void collect_one(MqDev *d, MqCmd *cmd, GPtrArray *to)
{
    static MqAnswer a;
    GString *line = g_string_new(NULL);
    uint32_t left;

    cmd->tag = mq_next_tag();
    run(d, cmd, &a);
    g_string_append_printf(line, "LUN %u %02x %02x %02x in %zu:", cmd->lun,
                           cmd->cdb[0], cmd->cdb[1], cmd->cdb[2], cmd->in_len);
    if (a.resp.status != GOOD) {
        g_string_append_printf(line, " sense %04x", mq_asc(&a.resp));
    } else {
        /* QEMU 10.0 fills the buffer with zeroes. */
        left = le32_to_cpu(a.resp.resid);
        memset(a.in + cmd->in_len - left, 0, left);
        for (size_t i = 0; i < cmd->in_len; i++) {
            g_string_append_printf(line, " %02x", a.in[i]);
        }
    }
    g_ptr_array_add(to, g_string_free(line, false));
}

static GPtrArray *collect(MqDev *d)
{
    static const uint16_t allocs[] = { 5, 36, 37, 96, 255, 256, 300 };
    GPtrArray *all = g_ptr_array_new_with_free_func(g_free);

    for (unsigned lun = LUN_HD; lun <= LUN_CD; lun++) {
        for (unsigned i = 0; i < ARRAY_SIZE(allocs); i++) {
            MqCmd cmd = mq_cmd(lun, INQUIRY);

            set_field(cmd.cdb + 3, 2, allocs[i]);
            cmd.in_len = allocs[i];
            collect_one(d, &cmd, all);
        }
        for (unsigned page = 0; page < 256; page++) {
            MqCmd cmd = mq_cmd(lun, INQUIRY);

            cmd.cdb[1] = 1;
            cmd.cdb[2] = page;
            cmd.cdb[4] = 255;
            cmd.in_len = 255;
            collect_one(d, &cmd, all);
            cmd = mq_cmd(lun, MODE_SENSE);
            cmd.cdb[2] = page;
            cmd.cdb[4] = 255;
            cmd.in_len = 255;
            collect_one(d, &cmd, all);
            cmd = mq_cmd(lun, MODE_SENSE_10);
            cmd.cdb[1] = 8;
            cmd.cdb[2] = page;
            cmd.cdb[7] = 1;
            cmd.in_len = 256;
            collect_one(d, &cmd, all);
        }
    }
    for (unsigned i = 0; i < ARRAY_SIZE(answer_forms); i++) {
        MqCmd cmd = form_cmd(&answer_forms[i], 255);

        cmd.in_len = 255;
        if (!answer_forms[i].standard && cmd.cdb[0] != REPORT_LUNS) {
            collect_one(d, &cmd, all);
        }
    }
    return all;
}

#define OTHER_QEMU  "QTEST_QEMU_BINARY_DST"

static void test_other(void)
{
    static const char props[] =
        ",\"serial\":\"12345678901234567890\",\"wwn\":1311768467463790320,"
        "\"port_wwn\":81985529216486895,\"port_index\":3,"
        "\"rotation_rate\":7200,\"cyls\":60000,\"heads\":16,\"secs\":63,"
        "\"dpofua\":true,\"discard_granularity\":65536,"
        "\"opt_io_size\":65536,\"min_io_size\":4096,"
        "\"quirk_mode_page_vendor_specific_apple\":true";
    static const char cd_props[] = ",\"quirk_mode_page_apple_vendor\":true,"
                                   "\"product\":\"A CD\",\"vendor\":\"ME\"";
    const char *hd[] = { "", props }, *cd[] = { "", cd_props };

    if (!getenv(OTHER_QEMU)) {
        g_test_skip(OTHER_QEMU " isn't set");
        return;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(hd); i++) {
        g_autoptr(GPtrArray) ours = NULL, theirs = NULL;
        MqDev *d = begin(hd[i], cd[i]);

        ours = collect(d);
        end(d);
        d = begin_on(OTHER_QEMU, hd[i], cd[i]);
        theirs = collect(d);
        end(d);
        g_assert_cmpuint(ours->len, ==, theirs->len);
        for (unsigned j = 0; j < ours->len; j++) {
            g_assert_cmpstr(g_ptr_array_index(ours, j), ==,
                            g_ptr_array_index(theirs, j));
        }
    }
}

static const struct {
    const char *name;
    void (*func)(void);
} page_tests[] = {
    { "lengths/default", test_lengths_default },
    { "lengths/standard", test_lengths_standard },
    { "lengths/fuzzed", test_fuzzed },
    { "lengths/huge", test_huge_lengths },
    { "inquiry", test_inquiry },
    { "vpd/list", test_vpd_list },
    { "vpd/unique", test_unique },
    { "vpd/long-serial", test_long_serial },
    { "vpd/granularity", test_granularity },
    { "mode/select", test_mode_select },
    { "commands/opcodes", test_opcodes },
    { "commands/usage", test_usage },
    { "commands/tmfs", test_tmfs },
    { "verify/data", test_verify },
    { "verify/migrate", test_verify_migrate },
    { "write-same-ndob", test_ndob },
    { "write-same", test_write_same },
    { "default/nothing-new", test_default },
    { "default/other-qemu", test_other },
};

int main(int argc, char **argv)
{
    const char *arch = qtest_get_arch();

    g_test_init(&argc, &argv, NULL);
    if (!g_str_equal(arch, "x86_64") && !g_str_equal(arch, "i386")) {
        /* The driver is little-endian, and so is what it knows of a PC. */
        return 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(page_tests); i++) {
        g_autofree char *path =
            g_strdup_printf("virtio-scsi-mq/pages/%s", page_tests[i].name);

        qtest_add_func(path, page_tests[i].func);
    }
    return g_test_run();
}
