/*
 * A hostile guest for virtio-scsi: what is done to the device
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "scsi/constants.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "virtio-scsi-hostile.h"

#define STATUS_READY (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)
#define PCI_ON (PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)

#define HOT_LUN "{'driver': 'scsi-hd', 'id': 'hot', 'bus': 'scsi0.0', " \
                "'drive': 'hot', 'scsi-id': 1, 'lun': 1}"

static void common_write(Hostile *h, unsigned size, unsigned offset,
                         uint64_t value)
{
    reg_write(h, size, common_reg(h, offset), value);
}

#define COMMON(field) offsetof(struct virtio_pci_common_cfg, field)

static void write_status(Hostile *h, uint8_t value)
{
    common_write(h, 1, COMMON(device_status), value);
}

static void write_address(Hostile *h, unsigned offset, uint64_t addr)
{
    common_write(h, 4, offset, (uint32_t)addr);
    common_write(h, 4, offset + 4, addr >> 32);
}

static unsigned any_queue(Hostile *h)
{
    return chance(h, 70) ? 2 + below(h, NUM_REQUEST_VQS) : below(h, NUM_VQS);
}

/*
 * The guest
 */

static void set_up_queue(Hostile *h, unsigned i)
{
    HostileQueue *q = &h->queues[i];

    common_write(h, 2, COMMON(queue_select), i);
    if (wrong(h)) {
        common_write(h, 2, COMMON(queue_size),
                     chance(h, 80) ? 1 << below(h, 11) : below(h, 65536));
    }
    q->size = reg_read(h, 2, common_reg(h, COMMON(queue_size)));
    ring_place(h, q);
    write_address(h, COMMON(queue_desc_lo), q->desc);
    write_address(h, COMMON(queue_avail_lo), q->avail);
    write_address(h, COMMON(queue_used_lo), q->used);
    common_write(h, 2, COMMON(queue_msix_vector), wrong(h) ? below(h, 10) : i);
    q->notify = h->dev->pci->bar.addr + h->dev->pci->notify_cfg_offset +
                h->dev->pci->notify_off_multiplier *
                reg_read(h, 2, common_reg(h, COMMON(queue_notify_off)));
    if (!chance(h, 5)) {
        common_write(h, 2, COMMON(queue_enable), 1);
    }
}

static void set_up_features(Hostile *h)
{
    uint64_t features;

    h->packed = chance(h, 35);
    features = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_SCSI_F_HOTPLUG |
               1ull << VIRTIO_SCSI_F_CHANGE | (uint64_t)h->packed << 34 |
               (uint64_t)chance(h, 50) << VIRTIO_RING_F_EVENT_IDX |
               (uint64_t)chance(h, 80) << VIRTIO_RING_F_INDIRECT_DESC |
               (uint64_t)chance(h, 50) << VIRTIO_F_RING_RESET |
               (uint64_t)chance(h, 30) << VIRTIO_F_NOTIFY_ON_EMPTY;
    if (chance(h, 5)) {
        features ^= 1ull << below(h, 64);
        h->packed = features >> 34 & 1;
    }
    for (unsigned i = 0; i < 2; i++) {
        common_write(h, 4, COMMON(guest_feature_select), i);
        common_write(h, 4, COMMON(guest_feature), features >> 32 * i);
    }
}

void hostile_set_up(Hostile *h)
{
    writer_stop(h);
    write_status(h, 0);
    write_status(h, STATUS_READY);
    set_up_features(h);
    write_status(h, STATUS_READY | VIRTIO_CONFIG_S_FEATURES_OK);
    hostile_log(h, "set up: %s", h->packed ? "packed" : "split");
    for (unsigned i = 0; i < NUM_VQS; i++) {
        set_up_queue(h, i);
        if (chance(h, 60)) {
            ring_fill(h, i);
        }
    }
    if (!chance(h, 5)) {
        write_status(h, STATUS_READY | VIRTIO_CONFIG_S_FEATURES_OK |
                        VIRTIO_CONFIG_S_DRIVER_OK);
    }
}

static void kick(Hostile *h, unsigned index)
{
    hostile_log(h, "kick %u", index);
    reg_write(h, 2, h->queues[index].notify, index);
}

static void act_requests(Hostile *h)
{
    unsigned index = any_queue(h);

    if (chance(h, 50)) {
        ring_fill(h, index);
    }
    ring_publish(h, index);
    kick(h, index);
}

static void act_control(Hostile *h)
{
    ring_fill(h, 0);
    ring_publish(h, 0);
    kick(h, 0);
}

static void act_kicks(Hostile *h)
{
    for (unsigned i = 0; i < 4; i++) {
        kick(h, below(h, NUM_VQS));
    }
}

static void act_writer(Hostile *h)
{
    writer_start(h);
    act_kicks(h);
}

static void act_writer_stop(Hostile *h)
{
    writer_stop(h);
}

static void act_config(Hostile *h)
{
    static const uint32_t sizes[] = { 0, 6, 18, 32, 96, 252, 255, 256, 65535 };
    bool cdb = chance(h, 50);
    uint32_t value = wrong(h) ? g_rand_int(h->rand) : PICK(h, sizes);

    hostile_log(h, "%s_size = %u", cdb ? "cdb" : "sense", value);
    reg_write(h, 4, h->dev->pci->bar.addr + h->dev->pci->device_cfg_offset +
                    (cdb ? offsetof(struct virtio_scsi_config, cdb_size)
                         : offsetof(struct virtio_scsi_config, sense_size)),
              value);
}

/* Interrupts that are stores to MMIO, to RAM, or to nowhere */
static void act_msix(Hostile *h)
{
    QPCIDevice *pdev = h->dev->pci->pdev;
    unsigned entry = below(h, NUM_VQS + 1);
    uint64_t at = pdev->msix_table_bar.addr + pdev->msix_table_off +
                  entry * PCI_MSIX_ENTRY_SIZE;
    uint64_t addr = chance(h, 50) ? h->other_bar : any_address(h, h->arena);
    uint8_t cap = qpci_find_capability(pdev, PCI_CAP_ID_MSIX, 0);

    hostile_log(h, "MSI-X entry %u: 0x%" PRIx64, entry, addr);
    reg_write(h, 4, at + PCI_MSIX_ENTRY_LOWER_ADDR, (uint32_t)addr & ~3);
    reg_write(h, 4, at + PCI_MSIX_ENTRY_UPPER_ADDR, addr >> 32);
    reg_write(h, 4, at + PCI_MSIX_ENTRY_DATA, 1);
    reg_write(h, 4, at + PCI_MSIX_ENTRY_VECTOR_CTRL, chance(h, 10));
    common_write(h, 2, COMMON(msix_config), entry);
    op_begin(h, OP_OTHER, "MSI-X control");
    qpci_config_writew(pdev, cap + PCI_MSIX_FLAGS,
                       chance(h, 85) ? PCI_MSIX_FLAGS_ENABLE : 0);
    op_end(h);
}

static void pci_command(Hostile *h, uint16_t value)
{
    op_begin(h, OP_OTHER, "PCI command 0x%x", value);
    qpci_config_writew(h->dev->pci->pdev, PCI_COMMAND, value);
    op_end(h);
}

static void act_bus_master(Hostile *h)
{
    hostile_log(h, "bus mastering off and on");
    pci_command(h, PCI_ON & ~(chance(h, 80) ? PCI_COMMAND_MASTER
                                            : PCI_COMMAND_MEMORY));
    act_kicks(h);
    pci_command(h, PCI_ON);
}

static void act_queue_state(Hostile *h)
{
    unsigned index = chance(h, 95) ? any_queue(h) : below(h, 65536);

    common_write(h, 2, COMMON(queue_select), index);
    switch (below(h, 3)) {
    case 0:
        hostile_log(h, "queue_enable of %u", index);
        common_write(h, 2, COMMON(queue_enable), below(h, 3));
        break;
    case 1:
        hostile_log(h, "queue_reset of %u", index);
        common_write(h, 2, offsetof(struct virtio_pci_modern_common_cfg,
                                    queue_reset), 1);
        break;
    case 2:
        if (index < NUM_VQS) {
            hostile_log(h, "queue_reset and set-up of %u", index);
            common_write(h, 2, offsetof(struct virtio_pci_modern_common_cfg,
                                        queue_reset), 1);
            writer_stop(h);
            set_up_queue(h, index);
        }
        break;
    }
}

static void act_status(Hostile *h)
{
    uint8_t value = chance(h, 50) ? 0 : below(h, 256);

    hostile_log(h, "status %u", value);
    write_status(h, value);
}

static void act_set_up(Hostile *h)
{
    hostile_set_up(h);
}

/*
 * The host
 */

static void act_stop(Hostile *h)
{
    hostile_qmp_ok(h, "stop", NULL);
    if (chance(h, 50)) {
        act_kicks(h);
    }
    if (chance(h, 80)) {
        hostile_qmp_ok(h, "cont", NULL);
    }
}

static void act_throttle(Hostile *h)
{
    static const char *const luns[] = { "disk", "slow", "hot" };
    static const unsigned iops[] = { 0, 1, 100 };
    g_autofree char *args = g_strdup_printf(
        "{'id': '%s', 'bps': 0, 'bps_rd': 0, 'bps_wr': 0, 'iops': %u, "
        "'iops_rd': 0, 'iops_wr': 0}", PICK(h, luns), PICK(h, iops));

    hostile_qmp_ok(h, "block_set_io_throttle", args);
}

static void act_tray(Hostile *h)
{
    switch (below(h, 4)) {
    case 0:
        hostile_qmp_ok(h, "eject", "{'id': 'cd', 'force': true}");
        break;
    case 1:
        hostile_qmp_ok(h, "blockdev-open-tray", "{'id': 'cd', 'force': true}");
        break;
    case 2:
        hostile_qmp_ok(h, "blockdev-insert-medium",
                       "{'id': 'cd', 'node-name': 'medium'}");
        break;
    case 3:
        hostile_qmp_ok(h, "blockdev-close-tray", "{'id': 'cd'}");
        break;
    }
}

static void act_job(Hostile *h)
{
    if (chance(h, 50)) {
        hostile_qmp_ok(h, "blockdev-mirror",
                       "{'job-id': 'job', 'device': 'disk', 'target': 'copy',"
                       " 'sync': 'none'}");
    } else if (chance(h, 50)) {
        hostile_qmp_ok(h, "job-complete", "{'id': 'job'}");
    } else {
        hostile_qmp_ok(h, "block-job-cancel",
                       chance(h, 50) ? "{'device': 'job'}"
                                     : "{'device': 'job', 'force': true}");
    }
}

static void act_hotplug(Hostile *h)
{
    if (chance(h, 50)) {
        hostile_qmp_ok(h, "device_del", "{'id': 'hot'}");
    } else {
        hostile_qmp_ok(h, "device_add", HOT_LUN);
    }
}

static void act_system_reset(Hostile *h)
{
    writer_stop(h);
    hostile_log(h, "system_reset");
    op_begin(h, OP_QMP, "system_reset");
    qtest_qmp_send(h->qts, "{'execute': 'system_reset'}");
    qtest_qmp_eventwait(h->qts, "RESET");
    op_end(h);
    hostile_find_device(h);
    if (chance(h, 80)) {
        hostile_set_up(h);
    }
}

typedef struct Act {
    void (*run)(Hostile *h);
    unsigned weight;
} Act;

static const Act acts[] = {
    { act_requests, 40 }, { act_control, 12 }, { act_kicks, 5 },
    { act_writer, 10 }, { act_writer_stop, 3 }, { act_config, 4 },
    { act_msix, 8 }, { act_bus_master, 3 }, { act_queue_state, 5 },
    { act_status, 6 }, { act_set_up, 6 }, { act_stop, 5 },
    { act_throttle, 3 }, { act_tray, 5 }, { act_job, 5 },
    { act_hotplug, 4 }, { act_system_reset, 1 },
};

void hostile_act(Hostile *h)
{
    unsigned sum = 0, pick;

    for (unsigned i = 0; i < ARRAY_SIZE(acts); i++) {
        sum += acts[i].weight;
    }
    pick = below(h, sum);
    for (const Act *act = acts; ; act++) {
        if (pick < act->weight) {
            act->run(h);
            return;
        }
        pick -= act->weight;
    }
}

/*
 * A reset brings back a device that works
 */

/* Host and PCI bus as they were */
static void recover_host(Hostile *h)
{
    QPCIDevice *pdev = h->dev->pci->pdev;
    uint8_t cap;

    pci_command(h, PCI_ON);
    cap = qpci_find_capability(pdev, PCI_CAP_ID_MSIX, 0);
    op_begin(h, OP_OTHER, "MSI-X control");
    qpci_config_writew(pdev, cap + PCI_MSIX_FLAGS, 0);
    op_end(h);
    write_status(h, 0);
    hostile_qmp_ok(h, "cont", NULL);
    hostile_qmp_ok(h, "block-job-cancel", "{'device': 'job', 'force': true}");
    hostile_qmp_ok(h, "block_set_io_throttle",
                   "{'id': 'disk', 'bps': 0, 'bps_rd': 0, 'bps_wr': 0, "
                   "'iops': 0, 'iops_rd': 0, 'iops_wr': 0}");
    hostile_qmp_ok(h, "device_add", HOT_LUN);
}

static void command(Hostile *h, ShmQueue *q, const uint8_t *cdb, unsigned out,
                    unsigned in, struct virtio_scsi_cmd_resp *resp)
{
    ShmSlot *slot = shm_take(q);
    struct virtio_scsi_cmd_req *req = (void *)slot->head;
    ShmShape shape = {
        .head = sizeof(*req), .out = out, .in = in,
        .resp = SHM_RESP_FIXED + VIRTIO_SCSI_SENSE_DEFAULT_SIZE,
    };

    memset(req, 0, sizeof(*req));
    shm_put_lun(req->lun, 0, 0);
    memcpy(req->cdb, cdb, 16);
    shm_post(slot, &shape);
    op_begin(h, OP_OTHER, "command 0x%x on queue %u", cdb[0],
             q->pci.vq.index);
    shm_flush(q);
    while (!(slot = shm_reap(q))) {
        g_usleep(20);
    }
    op_end(h);
    memcpy(resp, shm_resp(slot, shape.resp), SHM_RESP_FIXED);
}

/* GOOD, after some unit attentions perhaps */
static void command_good(Hostile *h, ShmQueue *q, const uint8_t *cdb,
                         unsigned out, unsigned in)
{
    struct virtio_scsi_cmd_resp resp;

    for (unsigned i = 0; i < 16; i++) {
        command(h, q, cdb, out, in, &resp);
        if (resp.response == VIRTIO_SCSI_S_OK && resp.status == GOOD) {
            return;
        }
    }
    g_printerr("queue %u: command 0x%x ends with response %u, status %u\n",
               q->pci.vq.index, cdb[0], resp.response, resp.status);
    g_assert_not_reached();
}

void hostile_recover(Hostile *h)
{
    static const uint8_t ready[16] = { TEST_UNIT_READY };
    static const uint8_t select[16] = { MODE_SELECT, 0x10, 0, 0, 12 };
    static const uint8_t read[16] = { READ_10, [8] = 1 };
    static const uint8_t block_size[12] = { 0, 0, 0, 8, [10] = 2 };

    writer_stop(h);
    hostile_log(h, "recover");
    recover_host(h);
    op_begin(h, OP_OTHER, "set-up");
    shm_start(h->dev, h->flags | (chance(h, 50) ? SHM_EVENT_IDX : 0));
    op_end(h);
    for (unsigned i = 0; i < h->dev->num_queues; i++) {
        ShmQueue *q = shm_queue(h->dev, i);

        command_good(h, q, ready, 0, 0);
        if (i == 0) {
            memcpy(shm_take(q)->data, block_size, sizeof(block_size));
            command_good(h, q, select, sizeof(block_size), 0);
        }
        command_good(h, q, read, 0, 512);
    }
}
