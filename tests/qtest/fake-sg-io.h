/*
 * Disks that answer SG_IO, and don't exist
 *
 * fake-sg-io.c is preloaded into QEMU, which passes these devices through; LBAs
 * say how a command ends.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_FAKE_SG_IO_H
#define TESTS_QTEST_FAKE_SG_IO_H

#define FAKE_SG_LIBRARY "libfake-sg-io.so"  /* beside the tests */

/* Which of them is at the other end of a file descriptor */
#define FAKE_SG_DISK    "/dev/null"
#define FAKE_SG_ROM     "/dev/zero"
#define FAKE_SG_MUTE    "/dev/full"     /* INQUIRY fails */
#define FAKE_SG_OLD     "/dev/random"   /* the interface is of Linux 2.2 */

#define FAKE_SG_BLOCK   512
#define FAKE_SG_BLOCKS  (1ULL << 33)
/*
 * So many blocks of the disk, from LBA 0, are there.  What is written elsewhere
 * goes to LBA 0, and what is read elsewhere is FakeSgEcho.
 */
#define FAKE_SG_STORE   2048u

/* Commands that do the same, with CDBs that nobody else knows */
#define FAKE_SG_VENDOR_IN   0xc1
#define FAKE_SG_VENDOR_OUT  0xc2

/* The CDB that reads it, and how long that is */
typedef struct FakeSgEcho {
    uint8_t len;
    uint8_t cdb[16];
} FakeSgEcho;

typedef enum FakeSgKind {
    FAKE_SG_STATUS,     /* value: the SCSI status */
    FAKE_SG_SENSE,      /* key, and value: the additional sense code */
    FAKE_SG_HOST,       /* value: the host status */
    FAKE_SG_DRIVER,     /* value: the driver status */
    FAKE_SG_ERRNO,      /* value: the errno of the ioctl itself */
    FAKE_SG_HELD,       /* ends well when FAKE_SG_FD gives a byte */
} FakeSgKind;

/* An LBA that ends so; if FAKE_SG_ONCE is set, only every second time */
#define FAKE_SG_LBA(kind, key, value) \
    (0x80000000u | (kind) << 24 | (key) << 16 | (value))
#define FAKE_SG_ONCE    0x40000000u

/* The environment variable that has the number of a file descriptor */
#define FAKE_SG_FD      "FAKE_SG_FD"

#endif
