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
#include "hw/scsi/emulation.h"
#include "hw/scsi/scsi-disk-pages.h"
#include "scsi/constants.h"
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
#define TYPE_NAA        0x03
#define TYPE_PORT       0x04
#define OF_PORT         0x90    /* of the target port; the protocol is valid */

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

static size_t vpd_block_limits(const SCSIDiskFacts *f, const SCSICommand *cmd,
                               uint8_t *data)
{
    const BlockConf *conf = &f->dev->conf;
    uint32_t max_io = f->max_io_size / cmd->blocksize;
    SCSIBlockLimits limits = {
        .wsnz = true,
        .unmap_sectors = conf->discard_granularity / cmd->blocksize,
        .min_io_size = conf->min_io_size / cmd->blocksize,
        .opt_io_size = conf->opt_io_size / cmd->blocksize,
        .max_unmap_sectors = f->max_unmap_size / cmd->blocksize,
        .max_unmap_descr = 255,     /* in 4 KiB, behind a header */
        .max_io_sectors = MIN_NON_ZERO(f->max_transfer / cmd->blocksize,
                                       max_io),
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
