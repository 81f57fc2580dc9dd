/*
 * What a virtio-scsi command was answered, and what it should have been
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "scsi/constants.h"
#include "virtio-scsi-mq-answer.h"

MqCmd mq_cmd(uint16_t lun, uint8_t opcode)
{
    return (MqCmd) {
        .lun = lun, .tag = mq_next_tag(), .cdb = { opcode },
    };
}

bool mq_all_bytes(const uint8_t *buf, size_t len, uint8_t value)
{
    for (size_t i = 0; i < len; i++) {
        if (buf[i] != value) {
            return false;
        }
    }
    return true;
}

void mq_describe(const MqCmd *cmd, const MqAnswer *a)
{
    g_printerr("LUN %u CDB %02x %02x .. out %zu in %zu: response %u, "
               "status %u, resid %u, used %u, sense %x/%04x\n",
               cmd->lun, cmd->cdb[0], cmd->cdb[1], cmd->out_len,
               cmd->in_len, a->resp.response, a->resp.status,
               le32_to_cpu(a->resp.resid), a->used_len,
               a->resp.sense[2] & 0xf, mq_asc(&a->resp));
}

void mq_expect_moved(const MqCmd *cmd, const MqAnswer *a, size_t moved)
{
    size_t len = MAX(cmd->in_len, cmd->out_len);

    if (a->resp.response || a->resp.status ||
        le32_to_cpu(a->resp.resid) != len - moved) {
        mq_describe(cmd, a);
    }
    g_assert_cmpuint(a->resp.response, ==, VIRTIO_SCSI_S_OK);
    g_assert_cmpuint(a->resp.status, ==, GOOD);
    g_assert_cmpuint(le32_to_cpu(a->resp.resid), ==, len - moved);
    if (cmd->in_len) {
        g_assert_true(mq_all_bytes(a->in + moved, len - moved, MQ_FILLER));
    }
}

void mq_expect_sense(const MqCmd *cmd, const MqAnswer *a, uint8_t key,
                     uint16_t asc)
{
    if (a->resp.response || a->resp.status != CHECK_CONDITION ||
        mq_asc(&a->resp) != asc) {
        mq_describe(cmd, a);
    }
    mq_assert_sense(&a->resp, key, asc >> 8, asc & 0xff);
}
