/*
 * virtio-scsi: what disks and cds tell of themselves
 *
 * INQUIRY data, VPD pages, mode pages and their like, in the default setting,
 * which is QEMU 10.0's, and with standard-answers=on.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "scsi/constants.h"
#include "virtio-scsi-lun.h"

#define HUGE        (64 * KiB + 32)

/* A node that takes 64 blocks at most */
#define SMALL_NODE  "\"driver\":\"blkdebug\",\"max-transfer\":32768," \
                    "\"image\":"

/* The longest allocation length that is tried, and more bytes in the buffer */
#define ALLOC_MAX   512
#define SLACK       5

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
    { "lba-status", LUN_HD, { SERVICE_ACTION_IN_16, 0x12 }, 10, 4, 0, 4, 4,
      .standard = true },
    { "dvd/physical", LUN_CD, { READ_DVD_STRUCTURE, [7] = 0x00 },
      8, 2, 0, 2, 2 },
};

static uint32_t alloc_max(const Form *f)
{
    return f->alloc_n == 1 ? UINT8_MAX : ALLOC_MAX;
}

static MqCmd form_cmd(const Form *f, uint32_t alloc)
{
    MqCmd cmd = mq_cmd(f->lun, 0);

    memcpy(cmd.cdb, f->cdb, sizeof(f->cdb));
    lun_set_field(cmd.cdb + f->alloc_at, f->alloc_n, alloc);
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
        want = MIN(want, lun_field(a->in + f->len_at, f->len_n) + f->len_plus);
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

    lun_run(d, &cmd, &whole);
    len = check_answer(f, &cmd, &whole, max);
    for (uint32_t alloc = 0; alloc <= max; alloc++) {
        uint32_t moved;

        cmd = form_cmd(f, alloc);
        if (alloc < f->min) {
            lun_expect_refusal(d, &cmd, ASC_FIELD);
            continue;
        }
        lun_run(d, &cmd, &a);
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
    MqDev *d = lun_begin(standard ? ",\"serial\":\"abc\"" STANDARD
                              : ",\"serial\":\"abc\"",
                     standard ? STANDARD : "");

    for (unsigned i = 0; i < ARRAY_SIZE(answer_forms); i++) {
        if (standard || !answer_forms[i].standard) {
            check_form(d, &answer_forms[i], standard);
        }
    }
    lun_end(d);
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
        lun_run(d, &cmd, &a);
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
    MqDev *d = lun_begin("", "");

    check_fuzzed(d, 2000, false);
    lun_end(d);
    d = lun_begin(STANDARD, STANDARD);
    check_fuzzed(d, 2000, true);
    lun_end(d);
}

/* Four bytes of allocation length may ask for anything. */
static void test_huge_lengths(void)
{
    MqDev *d = lun_begin("", "");
    MqCmd cmd = mq_cmd(LUN_HD, SERVICE_ACTION_IN_16);
    static MqAnswer a;

    cmd.cdb[1] = SAI_READ_CAPACITY_16;
    lun_set_field(cmd.cdb + 10, 4, HUGE);
    cmd.in_len = HUGE;
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 32);
    lun_end(d);
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
    lun_run(d, &cmd, &a);
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
    MqDev *d = lun_begin(STANDARD, STANDARD);

    check_inquiry(d, LUN_HD, hd);
    check_inquiry(d, LUN_CD, cd);
    lun_end(d);
}

/* A page is in the list if, and only if, it is there. */
static void check_vpd_list(MqDev *d, uint16_t lun)
{
    static MqAnswer list, a;
    MqCmd cmd = mq_cmd(lun, INQUIRY);

    cmd.cdb[1] = 1;
    cmd.cdb[4] = 255;
    cmd.in_len = 255;
    lun_run(d, &cmd, &list);
    mq_expect_moved(&cmd, &list, 4 + list.in[3]);
    for (unsigned page = 0; page < 256; page++) {
        cmd.tag = mq_next_tag();
        cmd.cdb[2] = page;
        if (memchr(list.in + 4, page, list.in[3])) {
            lun_run(d, &cmd, &a);
            mq_expect_moved(&cmd, &a, 4 + lun_field(a.in + 2, 2));
            g_assert_cmpuint(a.in[1], ==, page);
        } else {
            lun_expect_refusal(d, &cmd, ASC_FIELD);
        }
    }
}

static void test_vpd_list(void)
{
    MqDev *d = lun_begin(",\"serial\":\"abc\"" STANDARD, STANDARD);

    check_vpd_list(d, LUN_HD);
    check_vpd_list(d, LUN_CD);
    lun_end(d);
}

/* Two LUNs that nothing was said about are not the same one. */
static void test_unique(void)
{
    static MqAnswer hd, cd;
    MqDev *d = lun_begin(STANDARD, STANDARD);
    size_t len = lun_vpd_page(d, LUN_HD, 0x83, &hd);

    g_assert_cmpuint(lun_vpd_page(d, LUN_CD, 0x83, &cd), ==, len);
    g_assert_cmpuint(len, >, 4 + 8);
    g_assert_cmpuint(hd.in[4], ==, 2);      /* ASCII */
    g_assert_cmpuint(hd.in[5], ==, 1);      /* T10 vendor identification */
    g_assert_cmpuint(hd.in[7], ==, len - 4);
    g_assert_cmpmem(hd.in + 8, 8, "QEMU    ", 8);
    g_assert_cmpint(memcmp(hd.in + 8, cd.in + 8, len - 4), !=, 0);
    lun_end(d);

    /* By default there is nothing, as in QEMU 10.0. */
    d = lun_begin("", "");
    g_assert_cmpuint(lun_vpd_page(d, LUN_HD, 0x83, &hd), ==, 0);
    lun_end(d);
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
        MqDev *d = lun_begin(all, "");
        size_t len = lun_vpd_page(d, LUN_HD, 0x80, &a);

        g_assert_cmpmem(a.in + 4, len, serial, 252);
        len = lun_vpd_page(d, LUN_HD, 0x83, &a);
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
        lun_end(d);
    }
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
        g_autofree char *path = lun_make_qcow2();
        static MqAnswer a;
        MqDev *d = lun_begin_with(NULL, lun_vm_args(path, cases[i].node,
                                            cases[i].props, ""));

        lun_vpd_page(d, LUN_HD, 0xb0, &a);
        g_assert_cmpuint(ldl_be_p(a.in + 28) * LUN_BLOCK, ==, cases[i].bytes);
        lun_end(d);
    }
}

/* No more at once than the node takes, nor than max_io_size */
static void test_limits(void)
{
    static const struct {
        const char *node, *props;
        unsigned blocks;
    } cases[] = {
        { RAW, "", INT32_MAX / LUN_BLOCK },
        { SMALL_NODE, "", 64 },
        { SMALL_NODE, ",\"max_io_size\":8192", 16 },
        { SMALL_NODE, ",\"max_io_size\":65536", 64 },
        { SMALL_NODE, STANDARD, 64 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *path = lun_make_image();
        static MqAnswer a;
        MqDev *d = lun_begin_with(NULL, lun_vm_args(path, cases[i].node,
                                                    cases[i].props, ""));

        lun_vpd_page(d, LUN_HD, 0xb0, &a);
        g_assert_cmpuint(ldl_be_p(a.in + 8), ==, cases[i].blocks);
        g_assert_cmpuint(ldl_be_p(a.in + 40), ==, cases[i].blocks);
        /* Nothing is atomic (SBC-4, 6.6.4). */
        g_assert_true(mq_all_bytes(a.in + 44, 20, 0));
        lun_end(d);
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
    lun_run(d, &cmd, &a);
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

    lun_run(d, &cmd, &a);
    return !(a.resp.response == VIRTIO_SCSI_S_OK &&
             a.resp.status == CHECK_CONDITION &&
             mq_asc(&a.resp) == ASC_OPCODE);
}

/* What is in the list is there, and nothing else. */
static void test_opcodes(void)
{
    MqDev *d = lun_begin(STANDARD, STANDARD);
    MqCmd cmd = mq_cmd(LUN_HD, MAINTENANCE_IN);
    bool listed[256] = { false };
    static MqAnswer a;
    uint8_t usage[16];
    size_t len;

    cmd.cdb[1] = 0x0c;
    stl_be_p(cmd.cdb + 6, 4096);
    cmd.in_len = 4096;
    lun_run(d, &cmd, &a);
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
    lun_expect_refusal(d, &cmd, ASC_FIELD);
    cmd.cdb[2] = 2;
    cmd.cdb[3] = READ_10;
    lun_expect_refusal(d, &cmd, ASC_FIELD);
    cmd.cdb[2] = 4;
    lun_expect_refusal(d, &cmd, ASC_FIELD);
    g_assert_false(is_known(d, LUN_CD, MAINTENANCE_IN));
    g_assert_false(is_known(d, LUN_CD, WRITE_10));
    lun_end(d);
}

/* A bit of byte 1 that isn't among the usage bits is refused, any other not. */
static void test_usage(void)
{
    static const uint8_t opcodes[] = {
        READ_6, READ_10, READ_12, READ_16, WRITE_10, WRITE_12, WRITE_16,
        WRITE_VERIFY_10, WRITE_VERIFY_12, WRITE_VERIFY_16, WRITE_SAME_10,
        WRITE_SAME_16,
    };
    static const uint8_t data[LUN_BLOCK];
    static MqAnswer a;
    MqDev *d = lun_begin(STANDARD, STANDARD);

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
            lun_set_field(cmd.cdb + (opcodes[i] >> 5 == 0 ? 4 :
                                 opcodes[i] >> 5 == 5 ? 9 :
                                 opcodes[i] >> 5 == 4 ? 13 : 8), 1, 1);
            cmd.cdb[1] = 1 << bit;
            cmd.in_len = reads ? LUN_BLOCK : 0;
            cmd.out = data;
            cmd.out_len = reads || ndob ? 0 : LUN_BLOCK;
            if (usage[1] & 1 << bit) {
                lun_run(d, &cmd, &a);
                mq_expect_moved(&cmd, &a, MAX(cmd.in_len, cmd.out_len));
            } else {
                lun_expect_refusal(d, &cmd, ASC_FIELD);
            }
        }
    }
    lun_end(d);
}

static void test_tmfs(void)
{
    MqDev *d = lun_begin(STANDARD, "");
    MqCmd cmd = mq_cmd(LUN_HD, MAINTENANCE_IN);
    static MqAnswer a;

    cmd.cdb[1] = 0x0d;
    cmd.cdb[9] = 16;
    cmd.in_len = 16;
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 4);
    /* ATS, ATSS, CTSS, LURS, QTS; QTSS, ITNRS */
    g_assert_cmphex(lduw_be_p(a.in), ==, 0xdc03);
    lun_end(d);
}

/* What QEMU 10.0 hasn't got isn't there by default. */
static void test_default(void)
{
    MqDev *d = lun_begin("", "");
    MqCmd cmd = mq_cmd(LUN_HD, MODE_SENSE);

    g_assert_false(is_known(d, LUN_HD, MAINTENANCE_IN));
    g_assert_false(is_known(d, LUN_HD, SYNCHRONIZE_CACHE_16));
    g_assert_false(is_known(d, LUN_CD, SYNCHRONIZE_CACHE_16));
    cmd.cdb[2] = MODE_PAGE_CONTROL;
    cmd.cdb[4] = 255;
    cmd.in_len = 255;
    lun_expect_refusal(d, &cmd, ASC_FIELD);
    lun_end(d);
}

/* MODE SELECT takes what MODE SENSE says, and changes only WCE. */
static void test_mode_select(void)
{
    MqDev *d = lun_begin(STANDARD, STANDARD);
    static MqAnswer now, changeable, a;

    for (unsigned page = 0; page < 0x3f; page++) {
        MqCmd cmd = mq_cmd(LUN_HD, MODE_SENSE_10);
        size_t len;

        cmd.cdb[1] = 8;
        cmd.cdb[2] = page;
        cmd.cdb[8] = 255;
        cmd.in_len = 255;
        lun_run(d, &cmd, &now);
        if (now.resp.status != GOOD) {
            continue;
        }
        len = 2 + lduw_be_p(now.in);
        g_assert_cmphex(now.in[3], ==, 0x10);       /* DPOFUA */
        g_assert_cmpuint(now.in[8], ==, page);
        cmd.tag = mq_next_tag();
        cmd.cdb[2] |= 0x40;
        lun_run(d, &cmd, &changeable);

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
            lun_run(d, &cmd, &a);
            g_assert_cmpint(may, ==, page == MODE_PAGE_CACHING && bit == 2);
            if (may) {
                mq_assert_good(&a.resp);
            } else {
                mq_expect_sense(&cmd, &a, ILLEGAL_REQUEST, ASC_PARAM);
            }
        }
    }
    lun_end(d);
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
    lun_run(d, cmd, &a);
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

            lun_set_field(cmd.cdb + 3, 2, allocs[i]);
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
        MqDev *d = lun_begin(hd[i], cd[i]);

        ours = collect(d);
        lun_end(d);
        d = lun_begin_on(OTHER_QEMU, hd[i], cd[i]);
        theirs = collect(d);
        lun_end(d);
        g_assert_cmpuint(ours->len, ==, theirs->len);
        for (unsigned j = 0; j < ours->len; j++) {
            g_assert_cmpstr(g_ptr_array_index(ours, j), ==,
                            g_ptr_array_index(theirs, j));
        }
    }
}

static const LunTest page_tests[] = {
    { "pages/lengths/default", test_lengths_default },
    { "pages/lengths/standard", test_lengths_standard },
    { "pages/lengths/fuzzed", test_fuzzed },
    { "pages/lengths/huge", test_huge_lengths },
    { "pages/inquiry", test_inquiry },
    { "pages/vpd/list", test_vpd_list },
    { "pages/vpd/unique", test_unique },
    { "pages/vpd/long-serial", test_long_serial },
    { "pages/vpd/granularity", test_granularity },
    { "pages/vpd/limits", test_limits },
    { "pages/mode/select", test_mode_select },
    { "pages/commands/opcodes", test_opcodes },
    { "pages/commands/usage", test_usage },
    { "pages/commands/tmfs", test_tmfs },
    { "pages/default/nothing-new", test_default },
    { "pages/default/other-qemu", test_other },
};

int main(int argc, char **argv)
{
    return lun_test_main(argc, argv, page_tests, ARRAY_SIZE(page_tests));
}
