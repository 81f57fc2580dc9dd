/*
 * A disk and a cd on a mapped controller, whose answers a test looks at
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_SCSI_LUN_H
#define TESTS_QTEST_VIRTIO_SCSI_LUN_H

#include "qemu/units.h"
#include "virtio-scsi-mq-answer.h"

enum { LUN_HD, LUN_CD };

#define LUN_BLOCK       512     /* bytes; the cd has none that are looked at */
#define LUN_BLOCKS      4096u
#define LUN_BYTES       (LUN_BLOCKS * LUN_BLOCK)
#define LUN_CLUSTER     (64 * KiB)
#define LUN_DATA_MAX    (150 * KiB)

#define STANDARD        ",\"standard-answers\":true"

/* The node of LUN_HD, up to the one that it has below */
#define RAW             "\"driver\":\"raw\",\"file\":"
#define QCOW2           "\"driver\":\"qcow2\",\"file\":"

/* Additional sense codes, both bytes */
#define ASC_PARAM_LEN   0x1a00
#define ASC_DIFFERS     0x1d00
#define ASC_OPCODE      0x2000
#define ASC_RANGE       0x2100
#define ASC_FIELD       0x2400
#define ASC_PARAM       0x2600
#define ASC_NO_MEDIUM   0x3a00

extern int lun_hd_fd;           /* LUN_HD's file, which has no name */

/*
 * QEMU's arguments: the path of LUN_HD's file, its node (see above), and more
 * properties of both devices, with a comma in front.  To be freed.
 */
char *lun_vm_args(const char *hd_path, const char *hd_node,
                  const char *hd_props, const char *cd_props);

/* The same, with -blockdev, and what else makes the node "disk" */
char *lun_vm_args_of(const char *nodes, const char *hd_props,
                     const char *cd_props);

/* Makes lun_hd_fd: a raw file full of mq_fill_pattern().  Returns its path. */
char *lun_make_image(void);

/*
 * The same: an empty qcow2 image (docs/interop/qcow2.rst) of LUN_BYTES, with
 * clusters of LUN_CLUSTER bytes
 */
char *lun_make_qcow2(void);

/* With clusters of @cluster bytes, a power of 2, and a disk of @bytes */
char *lun_make_qcow2_with(unsigned cluster, uint64_t bytes);

/*
 * Start a VM, and have the unit attentions reported.  @qemu: the environment
 * variable that names the binary, or NULL; @args are freed.
 */
MqDev *lun_begin_with(const char *qemu, char *args);
MqDev *lun_begin_on(const char *qemu, const char *hd_props,
                    const char *cd_props);
MqDev *lun_begin(const char *hd_props, const char *cd_props);
void lun_end(MqDev *d);

/* Each command comes by another queue. */
void lun_run(MqDev *d, const MqCmd *cmd, MqAnswer *a);

/* So many blocks, for which READ CAPACITY (10) has no room */
void lun_expect_huge(MqDev *d, uint64_t blocks);

/* It must be an ILLEGAL REQUEST, and nothing be transferred. */
void lun_expect_refusal(MqDev *d, const MqCmd *cmd, uint16_t asc);

/* A field of @n bytes, the most significant one first */
uint32_t lun_field(const uint8_t *at, unsigned n);
void lun_set_field(uint8_t *at, unsigned n, uint32_t value);

/* A VPD page; returns the length without header. */
size_t lun_vpd_page(MqDev *d, uint16_t lun, uint8_t page, MqAnswer *a);

/* @name's path is "virtio-scsi-mq/" @name; only on PCs. */
typedef struct LunTest {
    const char *name;
    void (*func)(void);
} LunTest;

int lun_test_main(int argc, char **argv, const LunTest *tests, size_t num);

#endif
