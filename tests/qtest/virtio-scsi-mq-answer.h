/*
 * What a virtio-scsi command was answered, and what it should have been
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_SCSI_MQ_ANSWER_H
#define TESTS_QTEST_VIRTIO_SCSI_MQ_ANSWER_H

#include "virtio-scsi-mq-common.h"

#define MQ_ANSWER_MAX (64 * 1024)

/* The biggest data-in buffer, and room to see what is behind it */
typedef struct MqAnswer {
    struct virtio_scsi_cmd_resp resp;
    uint32_t used_len;
    uint8_t in[MQ_ANSWER_MAX + 64];
} MqAnswer;

/* A command with a tag of its own, whose CDB begins with @opcode */
MqCmd mq_cmd(uint16_t lun, uint8_t opcode);

bool mq_all_bytes(const uint8_t *buf, size_t len, uint8_t value);

/* The additional sense code, both bytes */
static inline uint16_t mq_asc(const struct virtio_scsi_cmd_resp *resp)
{
    return resp->sense[12] << 8 | resp->sense[13];
}

/* For whoever reads why a test has failed */
void mq_describe(const MqCmd *cmd, const MqAnswer *a);

/*
 * The command was good and moved so much of its buffer, from the front; the
 * rest is still full of MQ_FILLER.
 */
void mq_expect_moved(const MqCmd *cmd, const MqAnswer *a, size_t moved);

/* It ended with CHECK CONDITION; @asc is both bytes. */
void mq_expect_sense(const MqCmd *cmd, const MqAnswer *a, uint8_t key,
                     uint16_t asc);

#endif
