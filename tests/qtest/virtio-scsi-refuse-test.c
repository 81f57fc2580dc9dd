/*
 * virtio-scsi: what disks and cds refuse, and their rarer answers
 *
 * Each CDB and list that can't be right, with the reason that is told; what a
 * cd says of its medium; and properties with which there is no disk.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "scsi/constants.h"
#include "virtio-scsi-lun.h"

#define ASC_PROTECTED   0x2700
#define ASC_FORMAT      0x3000
#define ASC_SAVING      0x3900
#define ASC_PREVENTED   0x5302

/* What is sent, and how it ends */
typedef struct Case {
    uint8_t lun;
    uint8_t cdb[16];
    uint16_t in_len;
    uint8_t out_len;
    uint16_t asc;           /* 0: it is good */
    uint8_t out[48];
    uint8_t key;            /* 0: ILLEGAL REQUEST */
} Case;

static void run_case(MqDev *d, const Case *c, MqAnswer *a)
{
    MqCmd cmd = mq_cmd(c->lun, c->cdb[0]);
    g_autofree uint8_t *out = g_malloc0(MAX(c->out_len, LUN_BLOCK));
    bool whole = c->cdb[0] == WRITE_SAME_10 || c->cdb[0] == WRITE_10;

    memcpy(cmd.cdb, c->cdb, sizeof(c->cdb));
    memcpy(out, c->out, sizeof(c->out));
    cmd.in_len = c->in_len;
    cmd.out = c->out_len ? out : NULL;
    cmd.out_len = whole ? LUN_BLOCK : c->out_len;
    lun_run(d, &cmd, a);
    if (c->asc) {
        mq_expect_sense(&cmd, a, c->key ?: ILLEGAL_REQUEST, c->asc);
    } else {
        mq_assert_good(&a->resp);
    }
}

static void run_cases(MqDev *d, const Case *cases, size_t num)
{
    static MqAnswer a;

    for (size_t i = 0; i < num; i++) {
        run_case(d, &cases[i], &a);
    }
}

/* Bits and fields of a CDB */
static void test_cdbs(void)
{
    static const Case cases[] = {
        { LUN_HD, { RESERVE, 1 }, 0, 0, ASC_FIELD },
        { LUN_HD, { RESERVE }, 0, 0, 0 },
        { LUN_HD, { RELEASE, 1 }, 0, 0, ASC_FIELD },
        { LUN_HD, { RELEASE }, 0, 0, 0 },
        { LUN_HD, { RESERVE_10, 2 }, 0, 0, ASC_FIELD },
        { LUN_HD, { RESERVE_10 }, 0, 0, 0 },
        { LUN_HD, { RELEASE_10, 1 }, 0, 0, ASC_FIELD },
        { LUN_HD, { RELEASE_10 }, 0, 0, 0 },
        { LUN_HD, { READ_CAPACITY_10, [5] = 1 }, 8, 0, ASC_FIELD },
        { LUN_HD, { READ_CAPACITY_10, [5] = 1, [8] = 1 }, 8, 0, 0 },
        { LUN_HD, { SERVICE_ACTION_IN_16, SAI_READ_CAPACITY_16, [9] = 1,
                    [13] = 32 }, 32, 0, ASC_FIELD },
        { LUN_HD, { SERVICE_ACTION_IN_16, SAI_READ_CAPACITY_16, [9] = 1,
                    [13] = 32, [14] = 1 }, 32, 0, 0 },
        { LUN_HD, { SERVICE_ACTION_IN_16, 0x1f, [13] = 32 }, 32, 0,
          ASC_FIELD },
        { LUN_HD, { SERVICE_ACTION_IN_16, 0x12, [13] = 32 }, 32, 0,
          ASC_FIELD },
        { LUN_HD, { SEEK_10, [4] = 0x0f, 0xff }, 0, 0, 0 },
        { LUN_HD, { SEEK_10, [4] = 0x10 }, 0, 0, ASC_RANGE },
        { LUN_HD, { READ_10, 0x20, [8] = 1 }, LUN_BLOCK, 0, ASC_FIELD },
        { LUN_HD, { WRITE_10, 0x20, [8] = 1 }, 0, 1, ASC_FIELD },
        { LUN_HD, { READ_6, 0, 0x0f, 0xff, 2 }, 2 * LUN_BLOCK, 0, ASC_RANGE },
        { LUN_HD, { WRITE_SAME_10, 0, [8] = 0 }, 0, 1, ASC_FIELD },
        { LUN_HD, { WRITE_SAME_10, 4, [8] = 1 }, 0, 1, ASC_FIELD },
        { LUN_HD, { WRITE_SAME_10, 2, [8] = 1 }, 0, 1, ASC_FIELD },
        { LUN_HD, { WRITE_SAME_10, [4] = 0x10, [8] = 1 }, 0, 1, ASC_RANGE },
        { LUN_HD, { INQUIRY, 0, 0x80, 0, 36 }, 36, 0, ASC_FIELD },
        { LUN_HD, { MODE_SENSE, 0, 0xc8, 0, 36 }, 36, 0, ASC_SAVING },
        { LUN_HD, { MODE_SENSE, 0, 0x3e, 0, 36 }, 36, 0, ASC_FIELD },
        { LUN_CD, { READ_TOC, 0, 3, [8] = 12 }, 12, 0, ASC_FIELD },
        { LUN_CD, { READ_TOC, 0, 0, [6] = 2, [8] = 12 }, 12, 0, ASC_FIELD },
        { LUN_CD, { READ_DISC_INFORMATION, 1, [8] = 34 }, 34, 0, ASC_FIELD },
        { LUN_CD, { GET_EVENT_STATUS_NOTIFICATION, 0, [4] = 16, [8] = 8 },
          8, 0, ASC_FIELD },
        { LUN_CD, { WRITE_10, 0, [8] = 1 }, 0, 1, ASC_PROTECTED,
          .key = DATA_PROTECT },
        { LUN_CD, { READ_10, 0, [2] = 0x7f, [8] = 1 }, 2048, 0, ASC_RANGE },
        /* Of a cd only */
        { LUN_HD, { READ_DISC_INFORMATION, 0, [8] = 34 }, 34, 0, ASC_FIELD },
        { LUN_HD, { READ_DVD_STRUCTURE, [7] = 0xff, [9] = 24 }, 24, 0,
          ASC_FIELD },
        { LUN_HD, { GET_EVENT_STATUS_NOTIFICATION, 1, [4] = 16, [8] = 8 },
          8, 0, ASC_FIELD },
        { LUN_HD, { GET_CONFIGURATION, [8] = 40 }, 40, 0, ASC_FIELD },
        { LUN_HD, { MECHANISM_STATUS, [9] = 8 }, 8, 0, ASC_FIELD },
        { LUN_CD, { INQUIRY, 1, 0xb0, 0, 64 }, 64, 0, ASC_FIELD },
    };
    static const Case unknown[] = {
        { LUN_HD, { READ_DISC_INFORMATION, 0, [8] = 34 }, 34, 0, ASC_OPCODE },
        { LUN_HD, { READ_DVD_STRUCTURE, [7] = 0xff, [9] = 24 }, 24, 0,
          ASC_OPCODE },
        { LUN_HD, { GET_CONFIGURATION, [8] = 40 }, 40, 0, ASC_OPCODE },
        { LUN_HD, { MECHANISM_STATUS, [9] = 8 }, 8, 0, ASC_OPCODE },
        { LUN_CD, { WRITE_10, 0, [8] = 1 }, 0, 1, ASC_OPCODE },
        { LUN_CD, { SERVICE_ACTION_IN_16, 0x12, [13] = 32 }, 32, 0,
          ASC_FIELD },
        { LUN_HD, { SERVICE_ACTION_IN_16, 0x32, [13] = 32 }, 32, 0,
          ASC_FIELD },
        { LUN_HD, { RESERVE, 1 }, 0, 0, ASC_FIELD },
        { LUN_HD, { MODE_SENSE, 0, 0x08, 1, 36 }, 36, 0, ASC_FIELD },
        { LUN_HD, { MODE_SENSE, 0, 0x3f, 0xff, 36 }, 36, 0, 0 },
    };
    MqDev *d = lun_begin("", "");

    run_cases(d, cases, ARRAY_SIZE(cases));
    lun_end(d);
    d = lun_begin(STANDARD, STANDARD);
    run_cases(d, unknown, ARRAY_SIZE(unknown));
    lun_end(d);
}

/* Parameter lists, each but for one thing as it should be */
static void test_lists(void)
{
    static const Case cases[] = {
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 0 }, 0, 0, 0 },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 3 }, 0, 3, ASC_PARAM_LEN },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 4 }, 0, 4, 0 },
        { LUN_HD, { MODE_SELECT, 0x00, [4] = 4 }, 0, 4, ASC_FIELD },
        { LUN_HD, { MODE_SELECT, 0x11, [4] = 4 }, 0, 4, ASC_FIELD },
        { LUN_HD, { MODE_SELECT_10, 0x10, [8] = 7 }, 0, 7, ASC_PARAM_LEN },
        { LUN_HD, { MODE_SELECT_10, 0x10, [8] = 8 }, 0, 8, 0 },
        /* Block descriptors: longer than the list, half of one, two */
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 8 }, 0, 8, ASC_PARAM_LEN,
          { [3] = 8 } },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 8 }, 0, 8, ASC_PARAM,
          { [3] = 4 } },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 20 }, 0, 20, ASC_PARAM,
          { [3] = 16 } },
        /* Pages: half a header, of either form; cut; a subpage; all pages */
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 5 }, 0, 5, ASC_PARAM_LEN,
          { [4] = 8 } },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 7 }, 0, 7, ASC_PARAM_LEN,
          { [4] = 0x48 } },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 23 }, 0, 23, ASC_PARAM_LEN,
          { [4] = 8, 18, 4 } },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 26 }, 0, 26, ASC_PARAM,
          { [4] = 0x48, 1, 0, 18, 4 } },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 26 }, 0, 26, 0,
          { [4] = 0x48, 0, 0, 18, 4 } },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 24 }, 0, 24, ASC_PARAM,
          { [4] = 0x3f, 18, 4 } },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 6 }, 0, 6, 0, { [4] = 8, 0 } },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 25 }, 0, 25, ASC_PARAM,
          { [4] = 8, 19, 4 } },
        /* Without a write cache each MODE SELECT flushes. */
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 24 }, 0, 24, 0,
          { [4] = 8, 18, 0 } },
        { LUN_HD, { MODE_SELECT, 0x10, [4] = 24 }, 0, 24, 0,
          { [4] = 8, 18, 4 } },

        { LUN_HD, { UNMAP, 1, [8] = 24 }, 0, 24, ASC_FIELD,
          { 0, 22, 0, 16 } },
        { LUN_HD, { UNMAP, [8] = 7 }, 0, 7, ASC_PARAM_LEN },
        { LUN_HD, { UNMAP, [8] = 24 }, 0, 24, ASC_PARAM_LEN,
          { 0, 23, 0, 16 } },
        { LUN_HD, { UNMAP, [8] = 24 }, 0, 24, ASC_PARAM_LEN,
          { 0, 22, 0, 17 } },
        { LUN_HD, { UNMAP, [8] = 24 }, 0, 24, ASC_PARAM_LEN,
          { 0, 22, 0, 15 } },
        { LUN_HD, { UNMAP, [8] = 24 }, 0, 24, 0,
          { 0, 22, 0, 16, [19] = 8 } },
        { LUN_HD, { FORMAT_UNIT }, 0, 0, 0 },
        { LUN_HD, { FORMAT_UNIT, 0x10 }, 0, 4, 0 },
    };
    MqDev *d = lun_begin("", "");

    run_cases(d, cases, ARRAY_SIZE(cases));
    lun_end(d);
}

/* A page that is longer than the list is cut, if that is a quirk of the disk */
static void test_truncated(void)
{
    static const Case cut = {
        LUN_CD, { MODE_SELECT, 0x10, [4] = 7 }, 0, 7, 0, { [4] = 8, 18, 4 },
    };
    Case refused = cut;
    MqDev *d = lun_begin("", ",\"quirk_mode_page_truncated\":true");
    static MqAnswer a;

    run_case(d, &cut, &a);
    lun_end(d);

    /* And none of its neighbours */
    refused.asc = ASC_PARAM_LEN;
    d = lun_begin("", ",\"quirk_mode_page_apple_vendor\":true,"
                      "\"quirk_mode_sense_rom_use_dbd\":true,"
                      "\"quirk_mode_page_vendor_specific_apple\":true");
    run_case(d, &refused, &a);
    lun_end(d);
}

/* Block descriptors of a cd, for old systems; PF that isn't there */
static void test_quirks(void)
{
    static const Case all = { LUN_CD, { MODE_SENSE, 0, 0x01, 0, 64 }, 64 };
    static const Case dbd = { LUN_CD, { MODE_SENSE, 8, 0x01, 0, 64 }, 64 };
    static const Case apple = { LUN_CD, { MODE_SENSE, 0, 0x30, 0, 64 }, 64 };
    static const Case no_pf = { LUN_CD, { MODE_SELECT, 0, [4] = 4 }, 0, 4 };
    MqDev *d = lun_begin("", ",\"quirk_mode_sense_rom_use_dbd\":true,"
                             "\"quirk_mode_page_apple_vendor\":true,"
                             "\"quirk_mode_page_vendor_specific_apple\":true");
    static MqAnswer a;

    run_case(d, &all, &a);
    g_assert_cmpuint(a.in[3], ==, 8);
    g_assert_cmpuint(lun_field(a.in + 9, 3), ==, 2048);
    g_assert_cmpuint(a.in[12], ==, 0x01);
    run_case(d, &dbd, &a);
    g_assert_cmpuint(a.in[3], ==, 0);
    g_assert_cmpuint(a.in[4], ==, 0x01);
    run_case(d, &apple, &a);
    g_assert_cmpuint(a.in[3], ==, 0);
    g_assert_cmpmem(a.in + 14, 5, "APPLE", 5);
    run_case(d, &no_pf, &a);
    lun_end(d);
}

/* Nothing is written to what can't be written, nor to a shut image. */
static void test_read_only(void)
{
    static const Case cases[] = {
        { LUN_HD, { WRITE_10, 0, [8] = 1 }, 0, 1, ASC_PROTECTED,
          .key = DATA_PROTECT },
        { LUN_HD, { WRITE_SAME_10, 0, [8] = 1 }, 0, 1, ASC_PROTECTED,
          .key = DATA_PROTECT },
        { LUN_HD, { UNMAP, [8] = 24 }, 0, 24, ASC_PROTECTED,
          { 0, 22, 0, 16, [19] = 8 }, .key = DATA_PROTECT },
        { LUN_HD, { SYNCHRONIZE_CACHE }, 0, 0, 0 },
    };
    static const Case sense = { LUN_HD, { MODE_SENSE, 0, 0x3f, 0, 255 }, 255 };
    g_autofree char *path = lun_make_image();
    MqDev *d = lun_begin_with(NULL, lun_vm_args(path,
                                    "\"read-only\":true," RAW, "", ""));
    static MqAnswer a;

    run_cases(d, cases, ARRAY_SIZE(cases));
    run_case(d, &sense, &a);
    g_assert_cmphex(a.in[2], ==, 0x80);     /* WP */
    lun_end(d);
}

/*
 * A cd's medium: the dvd that lun_vm_args() has, a cd, and none
 */

static void check_dvd(MqDev *d)
{
    static const Case refused[] = {
        { LUN_CD, { READ_DVD_STRUCTURE, 1, [7] = 0xff, [9] = 24 }, 24, 0,
          ASC_FIELD },
        { LUN_CD, { READ_DVD_STRUCTURE, [6] = 1, [9] = 24 }, 24, 0,
          ASC_FIELD },
        { LUN_CD, { READ_DVD_STRUCTURE, [7] = 2, [9] = 24 }, 24, 0,
          ASC_FIELD },
        { LUN_CD, { READ_DVD_STRUCTURE, [7] = 3, [9] = 24 }, 24, 0,
          ASC_FIELD },
        { LUN_CD, { READ_DVD_STRUCTURE, [7] = 5, [9] = 24 }, 24, 0,
          ASC_FIELD },
    };
    static const Case physical = {
        LUN_CD, { READ_DVD_STRUCTURE, [7] = 0, [9] = 24 }, 24
    };
    static const Case copyright = {
        LUN_CD, { READ_DVD_STRUCTURE, [7] = 1, [9] = 8 }, 8
    };
    static const Case maker = {
        LUN_CD, { READ_DVD_STRUCTURE, [7] = 4, [8] = 8, 4 }, 2052
    };
    static MqAnswer a;

    run_cases(d, refused, ARRAY_SIZE(refused));
    run_case(d, &physical, &a);
    g_assert_cmpuint(lduw_be_p(a.in), ==, 2050);
    /* Blocks of 2048 bytes of its GiB */
    g_assert_cmpuint(ldl_be_p(a.in + 12), ==, GiB / 2048 - 1);
    g_assert_cmpuint(ldl_be_p(a.in + 16), ==, GiB / 2048 - 1);
    run_case(d, &copyright, &a);
    g_assert_cmpuint(lduw_be_p(a.in), ==, 6);
    g_assert_true(mq_all_bytes(a.in + 2, 6, 0));
    run_case(d, &maker, &a);
    g_assert_cmpuint(lduw_be_p(a.in), ==, 2050);
    g_assert_true(mq_all_bytes(a.in + 2, 2050, 0));
}

static void check_profile(MqDev *d, uint16_t profile)
{
    static const Case configuration = {
        LUN_CD, { GET_CONFIGURATION, [8] = 40 }, 40
    };
    static MqAnswer a;

    run_case(d, &configuration, &a);
    g_assert_cmpuint(ldl_be_p(a.in), ==, 36);
    g_assert_cmphex(lduw_be_p(a.in + 6), ==, profile);
    /* The list has DVD-ROM first, then CD-ROM: is it the current one? */
    g_assert_cmpuint(a.in[14], ==, profile == MMC_PROFILE_DVD_ROM);
    g_assert_cmpuint(a.in[18], ==, profile == MMC_PROFILE_CD_ROM);
}

static void check_cd(MqDev *d)
{
    static const Case not_a_dvd = {
        LUN_CD, { READ_DVD_STRUCTURE, [9] = 24 }, 24, 0, ASC_FORMAT
    };
    static const Case toc = { LUN_CD, { READ_TOC, 2, [8] = 20 }, 20 };
    static const Case blocks = { LUN_CD, { READ_TOC, 0, [8] = 20 }, 20 };
    static const Case end = {
        LUN_CD, { READ_TOC, 0, [6] = 0xaa, [8] = 12 }, 12
    };
    static MqAnswer a;

    run_case(d, &not_a_dvd, &a);
    /* Track 1 and the lead-out, by minutes, seconds and frames or by blocks */
    run_case(d, &blocks, &a);
    g_assert_cmpuint(lduw_be_p(a.in), ==, 18);
    g_assert_cmpuint(a.in[6], ==, 1);
    g_assert_cmpuint(ldl_be_p(a.in + 8), ==, 0);
    g_assert_cmphex(a.in[14], ==, 0xaa);
    g_assert_cmpuint(ldl_be_p(a.in + 16), ==, MiB / 2048);
    run_case(d, &toc, &a);
    g_assert_cmpmem(a.in + 8, 4, "\0\0\2\0", 4);
    /* 512 frames and 2 seconds are 8 seconds and 62 frames. */
    g_assert_cmpmem(a.in + 16, 4, "\0\0\10\76", 4);
    run_case(d, &end, &a);
    g_assert_cmpuint(lduw_be_p(a.in), ==, 10);
    g_assert_cmpuint(ldl_be_p(a.in + 8), ==, MiB / 2048);
}

static void check_none(MqDev *d)
{
    static const Case cases[] = {
        { LUN_CD, { READ_DVD_STRUCTURE, [7] = 0, [9] = 24 }, 24, 0,
          ASC_NO_MEDIUM, .key = NOT_READY },
        { LUN_CD, { READ_TOC, [8] = 12 }, 12, 0, ASC_NO_MEDIUM,
          .key = NOT_READY },
        { LUN_CD, { READ_DISC_INFORMATION, [8] = 34 }, 34, 0, ASC_NO_MEDIUM,
          .key = NOT_READY },
        /* It can't be read anyway, but that isn't the first thing to say. */
        { LUN_CD, { READ_10, [2] = 0x7f, [8] = 1 }, 2048, 0, ASC_NO_MEDIUM,
          .key = NOT_READY },
        { LUN_CD, { WRITE_10, [8] = 1 }, 0, 1, ASC_NO_MEDIUM,
          .key = NOT_READY },
    };

    run_cases(d, cases, ARRAY_SIZE(cases));
}

static void test_media(void)
{
    static const Case lock = { LUN_CD, { ALLOW_MEDIUM_REMOVAL, [4] = 1 } };
    static const Case unlock = { LUN_CD, { ALLOW_MEDIUM_REMOVAL } };
    static const Case eject = { LUN_CD, { START_STOP, [4] = 2 } };
    static const Case load = { LUN_CD, { START_STOP, [4] = 3 } };
    static const Case sleep = { LUN_CD, { START_STOP, [4] = 0x32 } };
    static MqAnswer a;
    MqDev *d = lun_begin("", "");
    Case prevented = eject;

    check_profile(d, MMC_PROFILE_DVD_ROM);
    check_dvd(d);
    /* A power condition moves no tray, a lock holds it. */
    run_case(d, &sleep, &a);
    check_profile(d, MMC_PROFILE_DVD_ROM);
    run_case(d, &lock, &a);
    prevented.asc = ASC_PREVENTED;
    run_case(d, &prevented, &a);
    run_case(d, &unlock, &a);

    run_case(d, &eject, &a);
    check_profile(d, MMC_PROFILE_NONE);
    check_none(d);
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-remove-medium',"
                             " 'arguments': {'id': 'cd'}}");
    run_case(d, &load, &a);
    check_profile(d, MMC_PROFILE_NONE);
    check_none(d);
    run_case(d, &lock, &a);
    prevented.key = NOT_READY;
    run_case(d, &prevented, &a);
    run_case(d, &unlock, &a);

    run_case(d, &eject, &a);
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-add',"
        " 'arguments': {'driver': 'null-co', 'node-name': 'cd0',"
        " 'read-only': true, 'size': %" PRIu64 "}}", (uint64_t)MiB);
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-insert-medium',"
        " 'arguments': {'id': 'cd', 'node-name': 'cd0'}}");
    run_case(d, &load, &a);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_CD);
    check_profile(d, MMC_PROFILE_CD_ROM);
    check_cd(d);
    lun_end(d);
}

/*
 * Properties
 */

static void test_properties(void)
{
    g_autofree char *serial = g_strnfill(253, 's');
    const struct {
        const char *driver, *props, *says;
    } rows[] = {
        { "scsi-hd", "", "drive property not set" },
        { "scsi-hd", ",\"drive\":\"new\",\"serial\":\"@\"",
          "The serial number can't be longer than 252 characters" },
        { "scsi-hd", ",\"drive\":\"new\",\"logical_block_size\":3000",
          "logical_block_size" },
        { "scsi-hd", ",\"drive\":\"new\",\"cyls\":70000",
          "cyls must be between 1 and 65535" },
        { "scsi-hd", ",\"drive\":\"ro\",\"werror\":\"ignored\"", "werror" },
        { "scsi-cd", ",\"drive\":\"new\",\"logical_block_size\":65537",
          "logical_block_size" },
        { "scsi-block", "", "drive property not set" },
        { "scsi-block", ",\"drive\":\"new\"", "cannot get SG_IO version" },
        { "scsi-generic", ",\"drive\":\"new\"", "cannot get SG_IO version" },
    };
    MqDev *d = lun_begin("", "");

    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-add',"
        " 'arguments': {'driver': 'null-co', 'node-name': 'new',"
        " 'size': %" PRIu64 "}}", (uint64_t)MiB);
    qtest_qmp_assert_success(d->qts, "{'execute': 'blockdev-add',"
        " 'arguments': {'driver': 'null-co', 'node-name': 'ro',"
        " 'read-only': true, 'size': %" PRIu64 "}}", (uint64_t)MiB);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        g_auto(GStrv) parts = g_strsplit(rows[i].props, "@", -1);
        g_autofree char *props = g_strjoinv(serial, parts);
        g_autofree char *command = g_strdup_printf(
            "{\"execute\":\"device_add\",\"arguments\":{\"driver\":\"%s\","
            "\"id\":\"x\",\"bus\":\"vs.0\",\"scsi-id\":7%s}}", rows[i].driver,
            props);
        g_autoptr(QDict) resp = NULL;
        const char *desc;

        qtest_qmp_send_raw(d->qts, "%s", command);
        resp = qtest_qmp_receive(d->qts);
        g_assert_true(qdict_haskey(resp, "error"));
        desc = qdict_get_str(qdict_get_qdict(resp, "error"), "desc");
        if (!strstr(desc, rows[i].says)) {
            g_error("%s%s: '%s', wanted '%s'", rows[i].driver, props, desc,
                    rows[i].says);
        }
    }
    lun_end(d);
}

static const LunTest refuse_tests[] = {
    { "refuse/cdbs", test_cdbs },
    { "refuse/lists", test_lists },
    { "refuse/truncated", test_truncated },
    { "refuse/quirks", test_quirks },
    { "refuse/read-only", test_read_only },
    { "refuse/media", test_media },
    { "refuse/properties", test_properties },
};

int main(int argc, char **argv)
{
    return lun_test_main(argc, argv, refuse_tests, ARRAY_SIZE(refuse_tests));
}
