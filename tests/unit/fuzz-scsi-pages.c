/*
 * Fuzzer of what a disk or cd tells of itself
 *
 * Input: 8 bytes of flags, numbers for the disk's properties, five strings with
 * their lengths, and a CDB; what is left is what MODE SELECT would send.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/uuid.h"
#include "hw/scsi/scsi-cdb.h"
#include "hw/scsi/scsi-disk-pages.h"
#include "scsi/constants.h"
#include "system/system.h"
#include "fuzz-target.h"

/* Only scsi_disk_unique_name(), which has no input, asks for these. */
bool qemu_uuid_set;
QemuUUID qemu_uuid;

char *qdev_get_dev_path(DeviceState *dev)
{
    return NULL;
}

static char *fuzz_string(FuzzInput *in)
{
    size_t len = MIN(fuzz_byte(in), in->size);
    char *s = g_strndup((const char *)in->data, len);

    in->data += len;
    in->size -= len;
    return s;
}

static void fuzz_device(FuzzInput *in, SCSIDevice *dev, uint8_t flags)
{
    *dev = (SCSIDevice) {
        .type = flags & 1 ? TYPE_ROM : TYPE_DISK,
        .blocksize = 512 << fuzz_byte(in) % 13,
        .default_scsi_version = fuzz_byte(in) % 7,
        .wwn = flags & 2 ? fuzz_number(in, 8) : 0,
        .port_wwn = flags & 4 ? fuzz_number(in, 8) : 0,
        .conf = {
            .logical_block_size = 512 << fuzz_byte(in) % 13,
            .physical_block_size = 512 << fuzz_byte(in) % 13,
            .min_io_size = fuzz_number(in, 4),
            .opt_io_size = fuzz_number(in, 4),
            .discard_granularity = fuzz_number(in, 4),
            .cyls = fuzz_number(in, 4),
            .heads = fuzz_byte(in),
            .secs = fuzz_byte(in),
        },
    };
    dev->scsi_version = dev->default_scsi_version;
}

static void fuzz_facts(FuzzInput *in, SCSIDiskFacts *f, uint8_t flags,
                       uint8_t more)
{
    *f = (SCSIDiskFacts) {
        .tcq = flags & 8,
        .standard = flags & 16,
        .removable = flags & 32,
        .locked = flags & 64,
        .write_cache = flags & 128,
        .tmfs = fuzz_number(in, 2),
        .quirks = fuzz_number(in, 4),
        .port_index = fuzz_number(in, 2),
        .rotation_rate = fuzz_number(in, 2),
        .max_transfer = fuzz_number(in, 4) & INT_MAX,
        .max_io_size = fuzz_number(in, 8),
        .max_unmap_size = fuzz_number(in, 8),
        .vendor = fuzz_string(in),
        .product = fuzz_string(in),
        .version = fuzz_string(in),
        .serial = more & 1 ? fuzz_string(in) : NULL,
        .device_id = more & 2 ? fuzz_string(in) : NULL,
        .unique = more & 4 ? fuzz_string(in) : NULL,
    };
}

static void fuzz_facts_free(SCSIDiskFacts *f)
{
    g_free((char *)f->vendor);
    g_free((char *)f->product);
    g_free((char *)f->version);
    g_free((char *)f->serial);
    g_free((char *)f->device_id);
    g_free((char *)f->unique);
}

/* Exactly as long as the interface says, for sanitizers */
static void check_answers(const SCSIDiskFacts *f, const SCSICommand *cmd)
{
    g_autofree uint8_t *buf = g_malloc0(SCSI_DISK_ANSWER_MAX);
    const size_t header = 8;
    int len;

    len = scsi_disk_inquiry(f, cmd, buf);
    g_assert(len >= -1 && len <= SCSI_DISK_ANSWER_MAX);
    if (len > 0) {
        g_assert((buf[0] & 0x1f) == f->dev->type);
        g_assert(buffer_is_zero(buf + len, SCSI_DISK_ANSWER_MAX - len));
    }

    memset(buf, 0, SCSI_DISK_ANSWER_MAX);
    len = scsi_disk_maintenance_in(f, cmd, buf);
    g_assert(len >= -1 && len <= SCSI_DISK_ANSWER_MAX);
    g_assert(len < 0 ||
             buffer_is_zero(buf + len, SCSI_DISK_ANSWER_MAX - len));

    for (int changeable = 0; changeable < 2; changeable++) {
        memset(buf, 0, SCSI_DISK_ANSWER_MAX);
        len = scsi_disk_mode_pages(f, cmd->buf[2] & 0x3f, changeable,
                                   buf + header);
        g_assert(len >= -1 && len <= SCSI_DISK_ANSWER_MAX - (int)header);
    }
}

/* What a page says of itself may be selected, as long as it isn't all pages. */
static void check_mode_select(const SCSIDiskFacts *f, uint8_t code,
                              FuzzInput *in)
{
    g_autofree uint8_t *sent = g_memdup2(in->data, in->size);
    g_autofree uint8_t *now = g_malloc0(SCSI_DISK_ANSWER_MAX);
    int len = scsi_disk_mode_pages(f, code, false, now);

    scsi_disk_mode_page_ok(f, code, sent, in->size);
    g_assert(scsi_disk_mode_page_ok(f, code, now + 2, MAX(len - 2, 0)) ==
             (len > 0 && code != MODE_PAGE_ALLS));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, size };
    uint8_t flags = fuzz_byte(&in);
    uint8_t more = fuzz_byte(&in);
    uint8_t cdb[SCSI_CMD_BUF_SIZE];
    SCSIDevice dev;
    SCSIDiskFacts f;
    SCSICommand cmd;
    SCSISense sense = { 0 };

    fuzz_device(&in, &dev, flags);
    fuzz_facts(&in, &f, flags, more);
    f.dev = &dev;
    for (unsigned i = 0; i < sizeof(cdb); i++) {
        cdb[i] = fuzz_byte(&in);
    }

    scsi_cdb_parse(dev.type, dev.blocksize, cdb, sizeof(cdb), &cmd);
    g_assert(scsi_disk_cdb_ok(&dev, &cmd, &sense) || sense.key);
    scsi_disk_max_blocks(&f, &cmd);
    check_answers(&f, &cmd);
    check_mode_select(&f, cdb[2] & 0x3f, &in);

    fuzz_facts_free(&f);
    return 0;
}
