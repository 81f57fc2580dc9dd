/*
 * virtio SCSI host bus adapter: the part that is common to virtio-scsi,
 * vhost-scsi and vhost-user-scsi
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "hw/virtio/virtio-access.h"
#include "hw/virtio/virtio-scsi.h"
#include "standard-headers/linux/virtio_ids.h"

#define MAX_NUM_QUEUES (VIRTIO_QUEUE_MAX - VIRTIO_SCSI_VQ_NUM_FIXED)

/*
 * seg_max is virtqueue_size minus the two descriptors of the headers, and one
 * descriptor must be left for data.
 */
#define MIN_QUEUE_SIZE 3

bool virtio_scsi_common_check(VirtIOSCSIConf *conf, Error **errp)
{
    if (conf->num_queues == VIRTIO_SCSI_AUTO_NUM_QUEUES) {
        conf->num_queues = 1;
    }
    if (conf->num_queues < 1 || conf->num_queues > MAX_NUM_QUEUES) {
        error_setg(errp, "num_queues is %" PRIu32 ", but must be 1 to %d",
                   conf->num_queues, MAX_NUM_QUEUES);
        return false;
    }
    if (conf->virtqueue_size < MIN_QUEUE_SIZE ||
        conf->virtqueue_size > VIRTQUEUE_MAX_SIZE) {
        error_setg(errp, "virtqueue_size is %" PRIu32 ", but must be %d to %d",
                   conf->virtqueue_size, MIN_QUEUE_SIZE, VIRTQUEUE_MAX_SIZE);
        return false;
    }
    return true;
}

void virtio_scsi_common_realize(DeviceState *dev, VirtIOHandleOutput ctrl,
                                VirtIOHandleOutput evt, VirtIOHandleOutput cmd,
                                Error **errp)
{
    VirtIOSCSICommon *vs = VIRTIO_SCSI_COMMON(dev);
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    unsigned size = vs->conf.virtqueue_size;

    if (!virtio_scsi_common_check(&vs->conf, errp)) {
        return;
    }

    virtio_init(vdev, VIRTIO_ID_SCSI, sizeof(VirtIOSCSIConfig));
    vs->cdb_size = VIRTIO_SCSI_CDB_DEFAULT_SIZE;
    vs->sense_size = VIRTIO_SCSI_SENSE_DEFAULT_SIZE;

    /* virtio 1.2, 5.6.2 gives the order */
    vs->ctrl_vq = virtio_add_queue(vdev, size, ctrl);
    vs->event_vq = virtio_add_queue(vdev, size, evt);
    vs->cmd_vqs = g_new(VirtQueue *, vs->conf.num_queues);
    for (unsigned i = 0; i < vs->conf.num_queues; i++) {
        vs->cmd_vqs[i] = virtio_add_queue(vdev, size, cmd);
    }
}

void virtio_scsi_common_unrealize(DeviceState *dev)
{
    VirtIOSCSICommon *vs = VIRTIO_SCSI_COMMON(dev);
    unsigned total = VIRTIO_SCSI_VQ_NUM_FIXED + vs->conf.num_queues;

    for (unsigned i = 0; i < total; i++) {
        virtio_del_queue(VIRTIO_DEVICE(dev), i);
    }
    g_clear_pointer(&vs->cmd_vqs, g_free);
    virtio_cleanup(VIRTIO_DEVICE(dev));
}

static void virtio_scsi_get_config(VirtIODevice *vdev, uint8_t *config)
{
    VirtIOSCSICommon *vs = VIRTIO_SCSI_COMMON(vdev);
    const VirtIOSCSIConf *conf = &vs->conf;
    VirtIOSCSIConfig *c = (VirtIOSCSIConfig *)config;
    uint32_t seg_max;

    /* Old machine types promise 128 descriptors whatever the queue's size. */
    seg_max = (conf->seg_max_adjust ? conf->virtqueue_size : 128) - 2;

    virtio_stw_p(vdev, &c->max_channel, VIRTIO_SCSI_MAX_CHANNEL);
    virtio_stw_p(vdev, &c->max_target, VIRTIO_SCSI_MAX_TARGET);
    virtio_stl_p(vdev, &c->max_lun, VIRTIO_SCSI_MAX_LUN);
    virtio_stl_p(vdev, &c->num_queues, conf->num_queues);
    virtio_stl_p(vdev, &c->max_sectors, conf->max_sectors);
    virtio_stl_p(vdev, &c->cmd_per_lun, conf->cmd_per_lun);
    virtio_stl_p(vdev, &c->seg_max, seg_max);
    virtio_stl_p(vdev, &c->event_info_size, sizeof(VirtIOSCSIEvent));
    virtio_stl_p(vdev, &c->cdb_size, qatomic_read(&vs->cdb_size));
    virtio_stl_p(vdev, &c->sense_size, qatomic_read(&vs->sense_size));
}

static void virtio_scsi_common_class_init(ObjectClass *klass, void *data)
{
    set_bit(DEVICE_CATEGORY_STORAGE, DEVICE_CLASS(klass)->categories);
    VIRTIO_DEVICE_CLASS(klass)->get_config = virtio_scsi_get_config;
}

static const TypeInfo virtio_scsi_common_types[] = {
    {
        .name           = TYPE_VIRTIO_SCSI_COMMON,
        .parent         = TYPE_VIRTIO_DEVICE,
        .abstract       = true,
        .instance_size  = sizeof(VirtIOSCSICommon),
        .class_init     = virtio_scsi_common_class_init,
    },
};

DEFINE_TYPES(virtio_scsi_common_types)
