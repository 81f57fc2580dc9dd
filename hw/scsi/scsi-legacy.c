/*
 * SCSI bus core: -drive if=scsi, and other ways to get a disk without -device
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/option.h"
#include "hw/qdev-properties.h"
#include "hw/scsi/scsi.h"
#include "system/block-backend.h"
#include "system/blockdev.h"
#include "system/system.h"

static const char *driver_for(BlockBackend *blk)
{
    const DriveInfo *dinfo = blk_legacy_dinfo(blk);

    if (blk_is_sg(blk)) {
        return "scsi-generic";
    }
    return dinfo && dinfo->media_cd ? "scsi-cd" : "scsi-hd";
}

/* Set properties that not all of the drivers have. */
static void set_optional(DeviceState *dev, bool removable, const char *serial)
{
    if (object_property_find(OBJECT(dev), "removable")) {
        qdev_prop_set_bit(dev, "removable", removable);
    }
    if (serial && object_property_find(OBJECT(dev), "serial")) {
        qdev_prop_set_string(dev, "serial", serial);
    }
}

/**
 * scsi_bus_legacy_add_drive:
 * @bus: where to
 * @blk: the drive
 * @unit: the target's id
 * @removable: whether the medium is
 * @conf: the device's configuration, but for the drive
 * @serial: serial number, or NULL
 * @errp: where to store an error; nothing stays behind then
 *
 * Context: BQL held.
 * Returns: the new device, or NULL.
 */
SCSIDevice *scsi_bus_legacy_add_drive(SCSIBus *bus, BlockBackend *blk,
                                      int unit, bool removable,
                                      BlockConf *conf, const char *serial,
                                      Error **errp)
{
    ERRP_GUARD();
    g_autofree char *name = g_strdup_printf("legacy[%d]", unit);
    DeviceState *dev = qdev_new(driver_for(blk));
    SCSIDevice *d = SCSI_DEVICE(dev);

    object_property_add_child(OBJECT(bus), name, OBJECT(dev));
    d->conf = *conf;

    check_boot_index(conf->bootindex, errp);
    if (!*errp) {
        add_boot_device_path(conf->bootindex, dev, NULL);
        qdev_prop_set_uint32(dev, "scsi-id", unit);
        set_optional(dev, removable, serial);
        if (qdev_prop_set_drive_err(dev, "drive", blk, errp)) {
            qdev_realize(dev, &bus->qbus, errp);
        }
    }
    if (*errp) {
        object_unparent(OBJECT(dev));
        d = NULL;
    }
    object_unref(OBJECT(dev)); /* a child of the bus, or nothing any more */
    return d;
}

/**
 * scsi_bus_legacy_handle_cmdline:
 * @bus: a new bus
 *
 * Add the drives that -drive if=scsi,bus=N has for it; exit on error.
 * Context: BQL held.
 */
void scsi_bus_legacy_handle_cmdline(SCSIBus *bus)
{
    Location loc;

    loc_push_none(&loc);
    for (int unit = 0; unit <= bus->info->max_target; unit++) {
        DriveInfo *dinfo = drive_get(IF_SCSI, bus->busnr, unit);
        BlockConf conf = DEFAULT_BLOCK_CONF;

        if (dinfo) {
            /* An error shall point to the -drive. */
            qemu_opts_loc_restore(dinfo->opts);
            scsi_bus_legacy_add_drive(bus, blk_by_legacy_dinfo(dinfo), unit,
                                      false, &conf, NULL, &error_fatal);
        }
    }
    loc_pop(&loc);
}
