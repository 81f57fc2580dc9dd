/*
 * Tests of what a bad virtio-scsi driver may do: a VM, some commands, a ring
 * that never ends
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_SCSI_SHM_CASE_H
#define TESTS_QTEST_VIRTIO_SCSI_SHM_CASE_H

#include "virtio-scsi-shm.h"
#include "standard-headers/linux/virtio_pci.h"

#define CASE_DEPTH  8
#define COMMON(field) offsetof(struct virtio_pci_common_cfg, field)

/* LUN 0 reads zeroes, and each READ of LUN 1 fails; two queues */
typedef struct Case {
    QTestState *qts;
    ShmMem mem;
    ShmDev *dev;
} Case;

/*
 * @controller: its properties, which a test gets as its argument
 * @size: of its virtqueues
 * @depth: slots of each of them
 * @more: of the command line
 */
QTestState *case_start_qemu(const ShmMem *shm, const char *controller,
                            unsigned size, const char *more);
void case_open(Case *c, const char *controller, unsigned size, unsigned depth);
void case_open_with(Case *c, const char *controller, unsigned size,
                    unsigned depth, const char *more);
void case_close(Case *c);

/* Whatever the driver does, QMP goes on. */
void case_status_returns(Case *c);
void case_writew(Case *c, unsigned offset, uint16_t value);
bool case_needs_reset(Case *c);

/* Commands to target 0, with a response of the default size */
void case_add_shape(ShmQueue *q, const uint8_t *cdb, unsigned lun,
                    ShmShape shape);
void case_add(ShmQueue *q, const uint8_t *cdb, unsigned in, unsigned lun);
ShmSlot *case_reap(Case *c, ShmQueue *q);
const struct virtio_scsi_cmd_resp *case_resp(ShmSlot *slot);
void case_expect_answer(Case *c, ShmQueue *q, uint8_t response,
                        uint8_t status);
void case_expect_good(Case *c, ShmQueue *q, const uint8_t *cdb, unsigned in);

/* Reset and set-up, after which all queues work */
void case_expect_works(Case *c, unsigned flags);

/*
 * A split ring that another vCPU keeps filling: all its entries name the first
 * slot, which stays as it is, and there are always @gap more of them than the
 * device has answered.
 */
typedef struct CaseFeed {
    ShmQueue *q;
    uint16_t gap;
    bool stop;
    GThread *thread;
} CaseFeed;

void case_feed_start(CaseFeed *f, ShmQueue *q, uint16_t gap);
void case_feed_stop(CaseFeed *f);

/* One test for each kind of controller, below /virtio-scsi-@name/ */
void case_test(const char *name, void (*test)(const void *));

#endif
