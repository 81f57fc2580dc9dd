/*
 * What an emulated disk or cd tells of itself
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/uuid.h"
#include "hw/scsi/emulation.h"
#include "hw/scsi/scsi-disk-pages.h"
#include "scsi/constants.h"
#include "system/system.h"
#include "trace.h"

/* Sets of device types */
#define DISK        (1u << TYPE_DISK)
#define ROM         (1u << TYPE_ROM)

static bool is_one_of(const SCSIDiskFacts *f, unsigned types)
{
    return types & (1u << f->dev->type);
}

/*
 * Vital product data (SPC-4, 7.8; SBC-3, 6.6)
 */

/* In front of each page: peripheral, page code, PAGE LENGTH */
#define VPD_HEADER      4
/* As much as fits a length field of one byte */
#define VPD_SERIAL_MAX  252

/* Without the header; the data are as long as what is returned. */
typedef size_t VPDFill(const SCSIDiskFacts *f, const SCSICommand *cmd,
                       uint8_t *data);

/* Designators of page 83h: bits of the first two bytes */
#define CODE_BINARY     0x01
#define CODE_ASCII      0x02
#define PROTOCOL_SAS    0x60
#define TYPE_VENDOR     0x00
#define TYPE_T10        0x01
#define TYPE_NAA        0x03
#define TYPE_PORT       0x04
#define OF_PORT         0x90    /* of the target port; the protocol is valid */

#define T10_VENDOR      8
#define T10_PRODUCT     16
#define T10_MAX         (UINT8_MAX - 3)     /* a multiple of 4 */

static uint8_t *put_designator(uint8_t *p, uint8_t code, uint8_t type,
                               const void *id, size_t len)
{
    assert(len <= UINT8_MAX);
    p[0] = code;
    p[1] = type;
    p[3] = len;
    memcpy(p + 4, id, len);
    return p + 4 + len;
}

/* T10 vendor identification (SPC-4, 7.8.6.4): nobody else has the same. */
static uint8_t *put_t10(const SCSIDiskFacts *f, uint8_t *p)
{
    char id[T10_MAX + 1] = "";
    size_t len;

    strpadcpy(id, T10_VENDOR, f->vendor, ' ');
    /* The end tells disks apart. */
    if (f->serial && f->serial[0]) {
        const size_t max = T10_MAX - T10_VENDOR - T10_PRODUCT;

        len = strlen(f->serial);
        strpadcpy(id + T10_VENDOR, T10_PRODUCT, f->product, ' ');
        pstrcpy(id + T10_VENDOR + T10_PRODUCT, max + 1,
                f->serial + len - MIN(len, max));
    } else {
        len = strlen(f->unique);
        pstrcpy(id + T10_VENDOR, sizeof(id) - T10_VENDOR,
                f->unique + len - MIN(len, T10_MAX - T10_VENDOR));
    }
    return put_designator(p, CODE_ASCII, TYPE_T10, id, strlen(id));
}

char *scsi_disk_unique_name(SCSIDevice *dev)
{
    g_autofree char *path = qdev_get_dev_path(DEVICE(dev));
    char uuid[UUID_STR_LEN] = "";

    if (qemu_uuid_set) {
        qemu_uuid_unparse(&qemu_uuid, uuid);
    }
    return g_strdup_printf("%s%s%s", uuid, qemu_uuid_set ? " " : "",
                           path ?: "");
}

static size_t vpd_serial(const SCSIDiskFacts *f, const SCSICommand *cmd,
                         uint8_t *data)
{
    size_t len = MIN(strlen(f->serial), VPD_SERIAL_MAX);

    memcpy(data, f->serial, len);
    return len;
}

static size_t vpd_identification(const SCSIDiskFacts *f,
                                 const SCSICommand *cmd, uint8_t *data)
{
    uint8_t *p = data;

    if (f->device_id && f->device_id[0]) {
        p = put_designator(p, CODE_ASCII, TYPE_VENDOR, f->device_id,
                           MIN(strlen(f->device_id), UINT8_MAX - 8));
    }
    if (f->unique) {
        p = put_t10(f, p);
    }
    if (f->dev->wwn) {
        uint64_t wwn = cpu_to_be64(f->dev->wwn);

        p = put_designator(p, CODE_BINARY, TYPE_NAA, &wwn, sizeof(wwn));
    }
    if (f->dev->port_wwn) {
        uint64_t wwn = cpu_to_be64(f->dev->port_wwn);

        p = put_designator(p, PROTOCOL_SAS | CODE_BINARY, OF_PORT | TYPE_NAA,
                           &wwn, sizeof(wwn));
    }
    if (f->port_index) {
        uint32_t port = cpu_to_be32(f->port_index);

        p = put_designator(p, PROTOCOL_SAS | CODE_BINARY, OF_PORT | TYPE_PORT,
                           &port, sizeof(port));
    }
    return p - data;
}

uint32_t scsi_disk_max_blocks(const SCSIDiskFacts *f, const SCSICommand *cmd)
{
    uint32_t max_io = f->max_io_size / cmd->blocksize;

    return MIN_NON_ZERO(f->max_transfer / cmd->blocksize, max_io);
}

#define UNMAP_DESCRIPTORS   255     /* in 4 KiB, behind a header */

static size_t vpd_block_limits(const SCSIDiskFacts *f, const SCSICommand *cmd,
                               uint8_t *data)
{
    const BlockConf *conf = &f->dev->conf;
    SCSIBlockLimits limits = {
        .wsnz = true,
        .unmap_sectors = conf->discard_granularity / cmd->blocksize,
        .min_io_size = conf->min_io_size / cmd->blocksize,
        .opt_io_size = conf->opt_io_size / cmd->blocksize,
        .max_unmap_sectors = f->max_unmap_size / cmd->blocksize,
        .max_unmap_descr = UNMAP_DESCRIPTORS,
        .max_io_sectors = scsi_disk_max_blocks(f, cmd),
    };

    return scsi_emulate_block_limits(data, &limits);
}

static size_t vpd_characteristics(const SCSIDiskFacts *f,
                                  const SCSICommand *cmd, uint8_t *data)
{
    stw_be_p(data, f->rotation_rate);
    return 0x3c;
}

static size_t vpd_provisioning(const SCSIDiskFacts *f, const SCSICommand *cmd,
                               uint8_t *data)
{
    data[1] = 0xe0;                                     /* LBPU, LBPWS both */
    data[2] = f->dev->conf.discard_granularity ? 2 : 1; /* thin, or full */
    return 4;
}

static VPDFill vpd_supported;

typedef struct VPDPage {
    uint8_t code;
    uint8_t types;          /* of devices that have it */
    uint8_t also;           /* and that QEMU 10.0 gives it to, unlisted */
    bool needs_serial;
    VPDFill *fill;
} VPDPage;

static const VPDPage vpd_pages[] = {
    { 0x00, DISK | ROM, .fill = vpd_supported },
    { 0x80, DISK | ROM, .fill = vpd_serial, .needs_serial = true },
    { 0x83, DISK | ROM, .fill = vpd_identification },
    { 0xb0, DISK, .fill = vpd_block_limits },
    { 0xb1, DISK, .fill = vpd_characteristics, .also = ROM },
    { 0xb2, DISK, .fill = vpd_provisioning, .also = ROM },
};

static bool vpd_has(const SCSIDiskFacts *f, const VPDPage *page)
{
    return is_one_of(f, page->types) && (f->serial || !page->needs_serial);
}

static size_t vpd_supported(const SCSIDiskFacts *f, const SCSICommand *cmd,
                            uint8_t *data)
{
    size_t n = 0;

    for (size_t i = 0; i < ARRAY_SIZE(vpd_pages); i++) {
        if (vpd_has(f, &vpd_pages[i])) {
            data[n++] = vpd_pages[i].code;
        }
    }
    return n;
}

static int inquiry_vpd(const SCSIDiskFacts *f, const SCSICommand *cmd,
                       uint8_t *buf)
{
    trace_scsi_disk_emulate_vpd_page(cmd->buf[2], cmd->xfer);
    for (size_t i = 0; i < ARRAY_SIZE(vpd_pages); i++) {
        const VPDPage *page = &vpd_pages[i];
        size_t len;

        if (page->code != cmd->buf[2]) {
            continue;
        }
        if (!vpd_has(f, page) &&
            (f->standard || !is_one_of(f, page->also))) {
            return -1;
        }
        len = page->fill(f, cmd, buf + VPD_HEADER);
        buf[0] = f->dev->type;
        buf[1] = page->code;
        stw_be_p(buf + 2, len);
        return VPD_HEADER + len;
    }
    return -1;
}

/*
 * Standard INQUIRY data (SPC-4, 6.6.2)
 */

#define INQUIRY_MIN         36
#define INQUIRY_DESCRIPTORS 58  /* here begin version descriptors, up to 8 */
#define INQUIRY_LEN         (INQUIRY_DESCRIPTORS + 8 * 2)
/* QEMU 10.0 fills the buffer up to this, and says that all of it is data. */
#define INQUIRY_PADDED_MAX  256

/* None of them says which version of the standard it is. */
enum {
    VERSION_SAM_5   = 0x00a0,
    VERSION_SPC_3   = 0x0300,
    VERSION_SPC_4   = 0x0460,
    VERSION_SBC_3   = 0x04c0,
    VERSION_MMC_6   = 0x04e0,
};

static int inquiry_standard(const SCSIDiskFacts *f, const SCSICommand *cmd,
                            uint8_t *buf)
{
    int version = f->dev->default_scsi_version;
    int len;

    if (cmd->buf[2] != 0) {
        return -1;
    }
    if (f->standard) {
        uint8_t *p = buf + INQUIRY_DESCRIPTORS;

        stw_be_p(p, VERSION_SAM_5);
        stw_be_p(p + 2, version > 5 ? VERSION_SPC_4 : VERSION_SPC_3);
        stw_be_p(p + 4, is_one_of(f, ROM) ? VERSION_MMC_6 : VERSION_SBC_3);
        len = INQUIRY_LEN;
    } else {
        len = MAX(MIN(cmd->xfer, INQUIRY_PADDED_MAX), INQUIRY_MIN);
    }

    buf[0] = f->dev->type;
    buf[1] = f->removable ? 0x80 : 0;
    buf[2] = version;
    buf[3] = 0x10 | 2;                  /* HISUP, response format */
    buf[4] = len - 5;                   /* additional length */
    buf[7] = f->tcq ? 0x12 : 0x10;      /* SYNC, CMDQUE */
    strpadcpy((char *)buf + 8, 8, f->vendor, ' ');
    strpadcpy((char *)buf + 16, 16, f->product, ' ');
    memcpy(buf + 32, f->version, MIN(4, strlen(f->version)));
    return len;
}

int scsi_disk_inquiry(const SCSIDiskFacts *f, const SCSICommand *cmd,
                      uint8_t *buf)
{
    return cmd->buf[1] & 1 ? inquiry_vpd(f, cmd, buf)
                           : inquiry_standard(f, cmd, buf);
}

/*
 * Mode pages (SPC-4, 7.5; SBC-3, 6.5; MMC-6, 7.2)
 */

#define MODE_PAGE_MAX   30      /* bytes behind the header */
#define MODE_FIELDS_MAX 7

/* Where a value of the disk stands in a page, behind its header */
typedef struct ModeField {
    uint8_t at, n;
    enum { MODE_CYLINDERS, MODE_HEADS, MODE_SECTORS, MODE_BLOCK_SIZE,
           MODE_WRITE_CACHE, MODE_LOCKED } what;
} ModeField;

typedef struct ModePage {
    uint8_t code;
    uint8_t types;              /* of devices that have it */
    uint8_t len;
    bool standard;              /* QEMU 10.0 doesn't have it. */
    uint8_t quirks;             /* any of these, if it isn't 0 */
    uint8_t now[MODE_PAGE_MAX];
    uint8_t changeable[MODE_PAGE_MAX];
    ModeField fields[MODE_FIELDS_MAX];  /* added to "now" */
} ModePage;

/* The bytes of a field of two; some values */
#define HIGH(n)     ((n) >> 8)
#define LOW(n)      ((n) & 0xff)
#define RPM         5400
#define CD_SPEED(x) ((x) * 176)

/* In the order in which page 3Fh has them */
static const ModePage mode_pages[] = {
    {
        MODE_PAGE_VENDOR_SPECIFIC, DISK, 2,
        .quirks = 1 << SCSI_DISK_QUIRK_MODE_PAGE_VENDOR_SPECIFIC_APPLE,
        .changeable = { 0xff, 0xff },
    }, {
        MODE_PAGE_R_W_ERROR, DISK, 10,
        .now = { 0x80 },                        /* AWRE */
    }, {
        MODE_PAGE_R_W_ERROR, ROM, 10,
        .now = { 0x80, 0x20 },                  /* AWRE; read retries */
        .changeable = { 0x80 },
    }, {
        MODE_PAGE_HD_GEOMETRY, DISK, 22,
        .now = {
            [10] = HIGH(200), LOW(200),         /* step rate, ns */
            [12 ... 14] = 0xff,                 /* landing zone */
            [18] = HIGH(RPM), LOW(RPM),
        },
        .fields = {
            { 0, 3, MODE_CYLINDERS }, { 3, 1, MODE_HEADS },
            { 4, 3, MODE_CYLINDERS },           /* no precompensation */
            { 7, 3, MODE_CYLINDERS },           /* no reduced current */
        },
    }, {
        MODE_PAGE_FLEXIBLE_DISK_GEOMETRY, DISK, 30,
        .now = {
            HIGH(5000), LOW(5000),              /* kbit/s */
            [12] = HIGH(1), LOW(1),             /* step rate, 100 us */
            [14] = 1,                           /* step pulse, us */
            [15] = HIGH(1), LOW(1),             /* head settles, 100 us */
            [17] = 1,                           /* motor on, 0.1 s */
            [18] = 1,                           /* motor off, 0.1 s */
            [26] = HIGH(RPM), LOW(RPM),
        },
        .fields = {
            { 2, 1, MODE_HEADS }, { 3, 1, MODE_SECTORS },
            { 4, 2, MODE_BLOCK_SIZE }, { 6, 2, MODE_CYLINDERS },
            { 8, 2, MODE_CYLINDERS }, { 10, 2, MODE_CYLINDERS },
        },
    }, {
        MODE_PAGE_CACHING, DISK | ROM, 18,
        .changeable = { 4 },                    /* WCE */
        .fields = { { 0, 1, MODE_WRITE_CACHE } },
    }, {
        MODE_PAGE_CONTROL, DISK, 10, .standard = true,
        .now = { 0x02, 0x10 },  /* GLTSD: no logs; reordering as we like */
    }, {
        MODE_PAGE_AUDIO_CTL, ROM, 14,
    }, {
        MODE_PAGE_CAPABILITIES, ROM, 20,
        .now = {
            0x3b, 0,            /* reads CD-R, CD-RW, DVD; writes nothing */
            0x7f, 0xff,         /* audio, mode 2, multisession; CD-DA, C2 */
            0x2d, 0,            /* lock, jumper, eject, tray; no volume */
            HIGH(CD_SPEED(50)), LOW(CD_SPEED(50)),          /* at most */
            HIGH(2), LOW(2),            /* volume levels */
            HIGH(2048), LOW(2048),      /* KiB of buffer */
            HIGH(CD_SPEED(16)), LOW(CD_SPEED(16)),          /* now */
            [16] = HIGH(CD_SPEED(16)), LOW(CD_SPEED(16)),   /* of writing */
            HIGH(CD_SPEED(16)), LOW(CD_SPEED(16)),
        },
        .fields = { { 4, 1, MODE_LOCKED } },
    }, {
        MODE_PAGE_APPLE_VENDOR, ROM, 30,
        .quirks = 1 << SCSI_DISK_QUIRK_MODE_PAGE_APPLE_VENDOR,
        .now = "\0\0\0\0\0\0\0\0APPLE COMPUTER, INC   ",
    },
};

static uint32_t mode_value(const SCSIDiskFacts *f, const ModeField *field)
{
    const BlockConf *conf = &f->dev->conf;

    switch (field->what) {
    case MODE_CYLINDERS:
        return conf->cyls;
    case MODE_HEADS:
        return conf->heads;
    case MODE_SECTORS:
        return conf->secs;
    case MODE_BLOCK_SIZE:
        return qatomic_read(&f->dev->blocksize);
    case MODE_WRITE_CACHE:
        return f->write_cache ? 4 : 0;
    case MODE_LOCKED:
        return f->locked ? 2 : 0;
    default:
        g_assert_not_reached();
    }
}

static bool mode_has(const SCSIDiskFacts *f, const ModePage *page)
{
    return is_one_of(f, page->types) && (f->standard || !page->standard) &&
           (!page->quirks || page->quirks & f->quirks);
}

static size_t mode_put(const SCSIDiskFacts *f, const ModePage *page,
                       bool changeable, uint8_t *buf)
{
    uint8_t *data = buf + 2;

    buf[0] = page->code;
    buf[1] = page->len;
    memcpy(data, changeable ? page->changeable : page->now, page->len);
    for (size_t i = 0; !changeable && i < MODE_FIELDS_MAX; i++) {
        const ModeField *field = &page->fields[i];
        uint32_t value = mode_value(f, field);

        for (size_t n = field->n; n--; value >>= 8) {
            data[field->at + n] |= value;
        }
    }
    return 2 + page->len;
}

int scsi_disk_mode_pages(const SCSIDiskFacts *f, uint8_t code,
                         bool changeable, uint8_t *buf)
{
    size_t len = 0;

    for (size_t i = 0; i < ARRAY_SIZE(mode_pages); i++) {
        const ModePage *page = &mode_pages[i];

        if ((code == page->code || code == MODE_PAGE_ALLS) &&
            mode_has(f, page)) {
            len += mode_put(f, page, changeable, buf + len);
        }
    }
    return len || code == MODE_PAGE_ALLS ? len : -1;
}

bool scsi_disk_mode_page_ok(const SCSIDiskFacts *f, uint8_t code,
                            const uint8_t *data, size_t len)
{
    uint8_t now[2 + MODE_PAGE_MAX], changeable[2 + MODE_PAGE_MAX];
    int max;

    if (code == MODE_PAGE_ALLS) {
        return false;
    }
    max = scsi_disk_mode_pages(f, code, false, now);
    if (max < 0 || len > max - 2) {
        return false;
    }
    scsi_disk_mode_pages(f, code, true, changeable);
    for (size_t i = 0; i < len; i++) {
        if ((now[2 + i] ^ data[i]) & ~changeable[2 + i]) {
            return false;
        }
    }
    return true;
}

int scsi_disk_block_size_asked(const SCSIDiskFacts *f, const SCSICommand *cmd,
                               const uint8_t *descriptor)
{
    uint32_t size = ldl_be_p(descriptor + 4) & 0xffffff;

    if (!size || size == cmd->blocksize) {
        return 0;
    }
    /* READ CAPACITY's answer has one byte for it, as QEMU always had it. */
    if (!(size & ~0xfe00) && f->block_size_change) {
        return size;
    }
    return f->standard || !f->block_size_change ? -1 : 0;
}

/*
 * UNMAP (SBC-3, 5.28)
 */

#define UNMAP_DESCRIPTOR    16

bool scsi_disk_unmap_ok(const SCSIDiskFacts *f, const SCSICommand *cmd,
                        const uint8_t *descriptors, unsigned num)
{
    uint64_t max = f->max_unmap_size / cmd->blocksize;
    uint64_t blocks = 0;

    for (unsigned i = 0; i < num; i++) {
        blocks += ldl_be_p(descriptors + i * UNMAP_DESCRIPTOR + 8);
    }
    /* 0: no limit was told */
    return num <= UNMAP_DESCRIPTORS && (!max || blocks <= max);
}

static int compare_ranges(const void *one, const void *other)
{
    const SCSIBlockRange *a = one, *b = other;

    return a->lba < b->lba ? -1 : a->lba > b->lba;
}

unsigned scsi_disk_unmap_ranges(const uint8_t *descriptors, unsigned num,
                                SCSIBlockRange *ranges)
{
    unsigned n = 0;

    for (unsigned i = 0; i < num; i++) {
        const uint8_t *p = descriptors + i * UNMAP_DESCRIPTOR;

        ranges[i] = (SCSIBlockRange) { ldq_be_p(p), ldl_be_p(p + 8) };
    }
    qsort(ranges, num, sizeof(*ranges), compare_ranges);
    for (unsigned i = 0; i < num; i++) {
        SCSIBlockRange next = ranges[i];
        SCSIBlockRange *last = n ? &ranges[n - 1] : NULL;

        if (!next.blocks) {
            continue;
        }
        if (last && next.lba - last->lba <= last->blocks) {
            last->blocks = MAX(last->blocks,
                               next.lba - last->lba + next.blocks);
        } else {
            ranges[n++] = next;
        }
    }
    return n;
}

/*
 * GET LBA STATUS (SBC-3, 5.5)
 */

#define LBA_STATUS_HEADER       8
#define LBA_STATUS_DESCRIPTOR   16

enum { LBA_MAPPED, LBA_DEALLOCATED };

uint64_t scsi_disk_add_lba_status(uint8_t *buf, uint64_t lba, uint64_t blocks,
                                  bool deallocated)
{
    uint8_t status = deallocated ? LBA_DEALLOCATED : LBA_MAPPED;
    size_t len = ldl_be_p(buf) ? 4 + ldl_be_p(buf) : LBA_STATUS_HEADER;
    uint8_t *p = buf + len;
    uint8_t *last = p - LBA_STATUS_DESCRIPTOR;
    uint32_t before = 0;

    if (len > LBA_STATUS_HEADER && last[12] == status &&
        ldl_be_p(last + 8) < UINT32_MAX) {
        p = last;
        before = ldl_be_p(p + 8);
    } else if (len + LBA_STATUS_DESCRIPTOR > SCSI_DISK_ANSWER_MAX) {
        return 0;
    } else {
        stq_be_p(p, lba);
        p[12] = status;
        stl_be_p(buf, len + LBA_STATUS_DESCRIPTOR - 4);
    }
    blocks = MIN(blocks, UINT32_MAX - before);
    stl_be_p(p + 8, before + blocks);
    return blocks;
}

/*
 * Commands
 */

/* Rows: who answers, for which types, bits that are looked at, by CDB byte */
#define EMULATED(...)   { SCSI_DISK_EMULATED, __VA_ARGS__ }
#define ANYTIME(...)    { SCSI_DISK_EMULATED, __VA_ARGS__, .anytime = true }
#define MEDIUM(...)     { SCSI_DISK_MEDIUM, __VA_ARGS__ }
#define BY_ACTION       .by_action = true
#define STANDARD        .standard = true

const SCSIDiskCommand scsi_disk_commands[256] = {
    [TEST_UNIT_READY]       = EMULATED(DISK | ROM),
    [REQUEST_SENSE]         = ANYTIME(DISK | ROM, { [1] = 0x01, [4] = 0xff }),
    [FORMAT_UNIT]           = EMULATED(DISK, { [1] = 0x3f }),
    [READ_6]                = MEDIUM(DISK | ROM,
            { [1] = 0x1f, [2 ... 4] = 0xff }),
    [WRITE_6]               = MEDIUM(DISK, { [1] = 0x1f, [2 ... 4] = 0xff }),
    [INQUIRY]               = ANYTIME(DISK | ROM,
            { [1] = 0x01, [2 ... 4] = 0xff }),
    [MODE_SELECT]           = EMULATED(DISK | ROM, { [1] = 0x10, [4] = 0xff }),
    [RESERVE]               = ANYTIME(DISK | ROM),
    [RELEASE]               = ANYTIME(DISK | ROM),
    [MODE_SENSE]            = ANYTIME(DISK | ROM,
            { [1] = 0x08, [2 ... 4] = 0xff }),
    [START_STOP]            = ANYTIME(DISK | ROM, { [1] = 0x01, [4] = 0xf3 }),
    [ALLOW_MEDIUM_REMOVAL]  = ANYTIME(DISK | ROM, { [4] = 0x01 }),

    [READ_CAPACITY_10]      = EMULATED(DISK | ROM,
            { [2 ... 5] = 0xff, [8] = 0x01 }),
    [READ_10]               = MEDIUM(DISK | ROM,
            { [1] = 0x18, [2 ... 5] = 0xff, [7 ... 8] = 0xff }),
    [WRITE_10]              = MEDIUM(DISK,
            { [1] = 0x18, [2 ... 5] = 0xff, [7 ... 8] = 0xff }),
    [SEEK_10]               = EMULATED(DISK | ROM, { [2 ... 5] = 0xff }),
    [WRITE_VERIFY_10]       = MEDIUM(DISK,
            { [1] = 0x12, [2 ... 5] = 0xff, [7 ... 8] = 0xff }),
    [VERIFY_10]             = EMULATED(DISK | ROM,
            { [1] = 0x16, [2 ... 5] = 0xff, [7 ... 8] = 0xff }),
    [SYNCHRONIZE_CACHE]     = EMULATED(DISK | ROM,
            { [1] = 0x06, [2 ... 5] = 0xff, [7 ... 8] = 0xff }),
    [WRITE_SAME_10]         = EMULATED(DISK,
            { [1] = 0x08, [2 ... 5] = 0xff, [7 ... 8] = 0xff }),
    [UNMAP]                 = EMULATED(DISK, { [7 ... 8] = 0xff }),
    [READ_TOC]              = EMULATED(ROM,
            { [1] = 0x02, [2] = 0x0f, [6 ... 8] = 0xff }),
    [GET_CONFIGURATION]     = ANYTIME(ROM,
            { [1] = 0x03, [2 ... 3] = 0xff, [7 ... 8] = 0xff }),
    [GET_EVENT_STATUS_NOTIFICATION] = ANYTIME(ROM,
            { [1] = 0x01, [4] = 0xff, [7 ... 8] = 0xff }),
    [READ_DISC_INFORMATION] = EMULATED(ROM, { [1] = 0x07, [7 ... 8] = 0xff }),
    [MODE_SELECT_10]        = EMULATED(DISK | ROM,
            { [1] = 0x10, [7 ... 8] = 0xff }),
    [RESERVE_10]            = ANYTIME(DISK | ROM),
    [RELEASE_10]            = ANYTIME(DISK | ROM),
    [MODE_SENSE_10]         = ANYTIME(DISK | ROM,
            { [1] = 0x18, [2 ... 3] = 0xff, [7 ... 8] = 0xff }),

    [READ_16]               = MEDIUM(DISK | ROM,
            { [1] = 0x18, [2 ... 13] = 0xff }),
    [WRITE_16]              = MEDIUM(DISK, { [1] = 0x18, [2 ... 13] = 0xff }),
    [WRITE_VERIFY_16]       = MEDIUM(DISK, { [1] = 0x12, [2 ... 13] = 0xff }),
    [VERIFY_16]             = EMULATED(DISK | ROM,
            { [1] = 0x16, [2 ... 13] = 0xff }),
    [SYNCHRONIZE_CACHE_16]  = EMULATED(DISK | ROM,
            { [1] = 0x06, [2 ... 13] = 0xff }, STANDARD),
    [WRITE_SAME_16]         = EMULATED(DISK, { [1] = 0x09, [2 ... 13] = 0xff }),
    [SERVICE_ACTION_IN_16]  = EMULATED(DISK | ROM, BY_ACTION),

    [REPORT_LUNS]           = { SCSI_DISK_BY_BUS, DISK | ROM,
            { [2] = 0xff, [6 ... 9] = 0xff } },
    [MAINTENANCE_IN]        = ANYTIME(DISK, BY_ACTION, STANDARD),
    [READ_12]               = MEDIUM(DISK | ROM,
            { [1] = 0x18, [2 ... 9] = 0xff }),
    [WRITE_12]              = MEDIUM(DISK, { [1] = 0x18, [2 ... 9] = 0xff }),
    [READ_DVD_STRUCTURE]    = EMULATED(ROM,
            { [1] = 0x0f, [2 ... 9] = 0xff, [10] = 0xc0 }),
    [WRITE_VERIFY_12]       = MEDIUM(DISK, { [1] = 0x12, [2 ... 9] = 0xff }),
    [VERIFY_12]             = EMULATED(DISK | ROM,
            { [1] = 0x16, [2 ... 9] = 0xff }),
    [MECHANISM_STATUS]      = ANYTIME(ROM, { [8 ... 9] = 0xff }),
};

#define MI_SUPPORTED_OPCODES    0x0c
#define MI_SUPPORTED_TMFS       0x0d

/* Of operation codes that are by_action */
static const struct {
    uint8_t opcode;
    uint8_t action;
    uint8_t types;          /* of devices that have it */
    uint8_t usage[16];
} actions[] = {
    { SERVICE_ACTION_IN_16, SAI_READ_CAPACITY_16, DISK | ROM,
            { [2 ... 13] = 0xff, [14] = 0x01 } },
    { SERVICE_ACTION_IN_16, SAI_GET_LBA_STATUS, DISK, { [2 ... 13] = 0xff } },
    { MAINTENANCE_IN, MI_SUPPORTED_OPCODES, DISK,
            { [2] = 0x87, [3 ... 9] = 0xff } },
    { MAINTENANCE_IN, MI_SUPPORTED_TMFS, DISK,
            { [2] = 0x80, [6 ... 9] = 0xff } },
};

static size_t cdb_length(uint8_t opcode)
{
    static const uint8_t by_group[8] = { 6, 10, 10, 0, 16, 12 };

    return by_group[opcode >> 5];
}

/* The usage bits of a command; NULL if no device of that type has it. */
static const uint8_t *find_usage(int type, uint8_t opcode, uint16_t action)
{
    const SCSIDiskCommand *command = &scsi_disk_commands[opcode];

    if (!(command->types & (1u << type))) {
        return NULL;
    }
    if (!command->by_action) {
        return command->usage;
    }
    for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
        if (actions[i].opcode == opcode && actions[i].action == action &&
            actions[i].types & (1u << type)) {
            return actions[i].usage;
        }
    }
    return NULL;
}

bool scsi_disk_cdb_ok(const SCSIDevice *dev, const SCSICommand *cmd,
                      SCSISense *sense)
{
    const SCSIDiskCommand *command = &scsi_disk_commands[cmd->buf[0]];
    const uint8_t *usage = find_usage(dev->type, cmd->buf[0],
                                      cmd->buf[1] & 0x1f);
    /* Up to SCSI-2 the LUN stood there. */
    uint8_t bits = qatomic_read(&dev->scsi_version) > 2 ? 0xff : 0x1f;

    if (!(command->types & (1u << dev->type))) {
        *sense = SENSE_CODE(INVALID_OPCODE);
        return false;
    }
    if (command->by_action) {
        bits &= 0xe0;
    }
    if (!usage || cmd->buf[1] & bits & ~usage[1]) {
        *sense = SENSE_CODE(INVALID_FIELD);
        return false;
    }
    return true;
}

/*
 * REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35)
 */

/* We don't know how long a command may take. */
static uint8_t *put_timeouts(uint8_t *p)
{
    stw_be_p(p, 10);
    return p + 12;
}

static uint8_t *put_opcode(uint8_t *p, uint8_t opcode, bool by_action,
                           uint16_t action, bool timeouts)
{
    p[0] = opcode;
    stw_be_p(p + 2, action);
    p[5] = (timeouts ? 2 : 0) | (by_action ? 1 : 0);
    stw_be_p(p + 6, cdb_length(opcode));
    return timeouts ? put_timeouts(p + 8) : p + 8;
}

static const uint8_t *find_reported(const SCSIDiskFacts *f, uint8_t opcode,
                                    uint16_t action)
{
    if (opcode == MAINTENANCE_IN && action == MI_SUPPORTED_TMFS && !f->tmfs) {
        return NULL;
    }
    return find_usage(f->dev->type, opcode, action);
}

static int report_all_opcodes(const SCSIDiskFacts *f, bool timeouts,
                              uint8_t *buf)
{
    uint8_t *p = buf + 4;

    for (unsigned opcode = 0; opcode < 256; opcode++) {
        if (is_one_of(f, scsi_disk_commands[opcode].types) &&
            !scsi_disk_commands[opcode].by_action) {
            p = put_opcode(p, opcode, false, 0, timeouts);
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
        if (find_reported(f, actions[i].opcode, actions[i].action)) {
            p = put_opcode(p, actions[i].opcode, true, actions[i].action,
                           timeouts);
        }
    }
    stl_be_p(buf, p - buf - 4);
    return p - buf;
}

static int report_opcode(const SCSIDiskFacts *f, uint8_t opcode,
                         uint16_t action, bool timeouts, uint8_t *buf)
{
    const uint8_t *usage = find_reported(f, opcode, action);
    size_t len = cdb_length(opcode);

    if (!usage) {
        buf[1] = 1;                             /* not supported */
        return 4;
    }
    buf[1] = (timeouts ? 0x80 : 0) | 3;         /* as in the standard */
    stw_be_p(buf + 2, len);
    buf[4] = opcode;
    memcpy(buf + 5, usage + 1, len - 1);
    if (scsi_disk_commands[opcode].by_action) {
        buf[5] |= action;
    }
    return timeouts ? put_timeouts(buf + 4 + len) - buf : 4 + len;
}

static int report_opcodes(const SCSIDiskFacts *f, const uint8_t *cdb,
                          uint8_t *buf)
{
    bool timeouts = cdb[2] & 0x80;
    uint8_t opcode = cdb[3];
    uint16_t action = lduw_be_p(cdb + 4);
    bool by_action = scsi_disk_commands[opcode].by_action &&
                     is_one_of(f, scsi_disk_commands[opcode].types);

    switch (cdb[2] & 7) {
    case 0:
        return report_all_opcodes(f, timeouts, buf);
    case 1:
        return by_action ? -1 : report_opcode(f, opcode, 0, timeouts, buf);
    case 2:
        return by_action ? report_opcode(f, opcode, action, timeouts, buf)
                         : -1;
    case 3:
        if (!by_action && action) {
            buf[1] = 1;
            return 4;
        }
        return report_opcode(f, opcode, action, timeouts, buf);
    default:
        return -1;
    }
}

/*
 * REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4, 6.36)
 */

static int report_tmfs(const SCSIDiskFacts *f, const SCSICommand *cmd,
                       uint8_t *buf)
{
    bool extended = cmd->buf[2] & 0x80;

    if (!f->tmfs || cmd->xfer < 4) {
        return -1;
    }
    stw_be_p(buf, f->tmfs);
    if (extended) {
        buf[3] = 12;            /* and no timeouts */
        return 16;
    }
    return 4;
}

int scsi_disk_maintenance_in(const SCSIDiskFacts *f, const SCSICommand *cmd,
                             uint8_t *buf)
{
    switch (cmd->buf[1] & 0x1f) {
    case MI_SUPPORTED_OPCODES:
        return report_opcodes(f, cmd->buf, buf);
    case MI_SUPPORTED_TMFS:
        return report_tmfs(f, cmd, buf);
    default:
        return -1;
    }
}
