/*
 * Disks that answer SG_IO, and don't exist
 *
 * A library for LD_PRELOAD: it takes ioctl()'s place, so that tests have
 * devices which fail as they like.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include <scsi/sg.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include "scsi/constants.h"
#include "scsi/utils.h"
#include "fake-sg-io.h"

/* Major number of the devices in FAKE_SG_*, and their minor numbers */
#define MEMORY_MAJOR    1
enum { DISK = 3, ROM = 5, MUTE = 7, OLD = 8 };

#define ROM_BLOCK       2048
#define ROM_BLOCKS      1000

typedef struct Transfer {
    uint64_t lba;
    uint32_t blocks;
} Transfer;

/* QEMU's threads are here at the same time. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t store[FAKE_SG_STORE * FAKE_SG_BLOCK];
static unsigned times;      /* that FAKE_SG_ONCE was asked for */

/* Not by its name: C libraries differ in its prototype. */
int fake_ioctl(int fd, unsigned long request, ...) __asm__("ioctl");

/* Between the guest's memory, as far as there is any, and @buf */
static void move(sg_io_hdr_t *io, uint8_t *buf, size_t len)
{
    sg_iovec_t whole = { io->dxferp, io->dxfer_len };
    sg_iovec_t *iov = io->iovec_count ? io->dxferp : &whole;
    bool from_dev = io->dxfer_direction == SG_DXFER_FROM_DEV;
    size_t left = MIN(len, io->dxfer_len);

    io->resid = io->dxfer_len - left;
    for (; left; iov++) {
        size_t n = MIN(left, iov->iov_len);

        memcpy(from_dev ? iov->iov_base : buf, from_dev ? buf : iov->iov_base,
               n);
        buf += n;
        left -= n;
    }
}

static void put_sense(sg_io_hdr_t *io, uint8_t key, uint16_t asc)
{
    uint8_t sense[18] = { 0x70, 0, key, [7] = 10, [12] = asc >> 8, asc & 0xff };

    io->sb_len_wr = MIN(sizeof(sense), io->mx_sb_len);
    memcpy(io->sbp, sense, io->sb_len_wr);
    io->status = CHECK_CONDITION;
    io->driver_status = SG_ERR_DRIVER_SENSE;
    io->resid = io->dxfer_len;
}

/* SPC-4, 6.4; pages 00h and 83h alone, with a NAA designator */
static void inquiry(sg_io_hdr_t *io, int device)
{
    uint8_t page[] = { 0, 0, 0, 2, 0x00, 0x83 };
    uint8_t id[] = { 0, 0x83, 0, 12, 1, 3, 0, 8, 0x50, 1, 2, 3, 4, 5, 6, 7 };
    uint8_t data[36] = "\0\0\5\2\37\0\0\2FAKE    SG_IO           1   ";

    page[0] = id[0] = data[0] = device == ROM ? TYPE_ROM : TYPE_DISK;
    data[1] = device == ROM ? 0x80 : 0;
    if (device == MUTE) {
        put_sense(io, HARDWARE_ERROR, 0x4400);
    } else if (!(io->cmdp[1] & 1)) {
        move(io, data, sizeof(data));
    } else if (io->cmdp[2] == 0x83) {
        move(io, id, sizeof(id));
    } else if (io->cmdp[2] == 0) {
        move(io, page, sizeof(page));
    } else {
        put_sense(io, ILLEGAL_REQUEST, 0x2400);
    }
}

static void capacity(sg_io_hdr_t *io, int device)
{
    uint64_t last = device == ROM ? ROM_BLOCKS - 1 : FAKE_SG_BLOCKS - 1;
    uint32_t size = device == ROM ? ROM_BLOCK : FAKE_SG_BLOCK;
    uint8_t data[32] = { 0 };

    if (io->cmdp[0] == READ_CAPACITY_10) {
        stl_be_p(data, MIN(last, UINT32_MAX));
        stl_be_p(data + 4, size);
        move(io, data, 8);
    } else {
        stq_be_p(data, last);
        stl_be_p(data + 8, size);
        move(io, data, sizeof(data));
    }
}

/* SBC-3; false if it isn't a command that transfers blocks */
static bool parse(const uint8_t *cdb, Transfer *t)
{
    switch (cdb[0]) {
    case READ_6:
    case WRITE_6:
        t->lba = ldl_be_p(cdb) & 0x1fffff;
        t->blocks = cdb[4];
        return true;
    case READ_10:
    case WRITE_10:
    case WRITE_VERIFY_10:
    case VERIFY_10:
        t->lba = (uint32_t)ldl_be_p(cdb + 2);
        t->blocks = lduw_be_p(cdb + 7);
        return true;
    case READ_12:
    case WRITE_12:
    case WRITE_VERIFY_12:
    case VERIFY_12:
        t->lba = (uint32_t)ldl_be_p(cdb + 2);
        t->blocks = ldl_be_p(cdb + 6);
        return true;
    case READ_16:
    case WRITE_16:
    case WRITE_VERIFY_16:
    case VERIFY_16:
        t->lba = ldq_be_p(cdb + 2);
        t->blocks = ldl_be_p(cdb + 10);
        return true;
    default:
        return false;
    }
}

/* Is that how the command ends? */
static bool fail(sg_io_hdr_t *io, uint64_t lba, int *error)
{
    uint16_t value = lba;
    char byte;

    if (lba > UINT32_MAX || !(lba & 0x80000000) ||
        (lba & FAKE_SG_ONCE && qatomic_fetch_inc(&times) % 2)) {
        return false;
    }
    io->resid = io->dxfer_len;
    switch (lba >> 24 & 0xf) {
    case FAKE_SG_STATUS:
        io->status = value;
        return true;
    case FAKE_SG_SENSE:
        put_sense(io, lba >> 16 & 0xf, value);
        return true;
    case FAKE_SG_HOST:
        io->host_status = value;
        return true;
    case FAKE_SG_DRIVER:
        io->driver_status = value;
        return true;
    case FAKE_SG_ERRNO:
        *error = value;
        return true;
    default:
        /* FAKE_SG_HELD */
        return read(atoi(getenv(FAKE_SG_FD)), &byte, 1) != 1;
    }
}

static void echo(sg_io_hdr_t *io)
{
    FakeSgEcho data = { .len = io->cmd_len };

    memcpy(data.cdb, io->cmdp, MIN(io->cmd_len, sizeof(data.cdb)));
    move(io, (uint8_t *)&data, sizeof(data));
    io->resid = 0;
}

/* Not more than there is in the store, wherever that is */
static void keep(sg_io_hdr_t *io, uint8_t *at)
{
    move(io, at, MIN(io->dxfer_len, store + sizeof(store) - at));
}

static void transfer(sg_io_hdr_t *io, const Transfer *t, int device)
{
    size_t len = io->dxfer_len;
    uint8_t *at = store + t->lba * FAKE_SG_BLOCK;

    pthread_mutex_lock(&lock);
    if (device != DISK || t->lba + t->blocks > FAKE_SG_STORE) {
        if (io->dxfer_direction == SG_DXFER_FROM_DEV) {
            echo(io);
        } else {
            keep(io, store);
        }
    } else if ((io->cmdp[0] & 0x1f) == (VERIFY_10 & 0x1f)) {
        g_autofree uint8_t *want = g_malloc(len);

        move(io, want, len);
        if (memcmp(want, at, len)) {
            put_sense(io, MISCOMPARE, 0x1d00);
        }
    } else {
        keep(io, at);
    }
    pthread_mutex_unlock(&lock);
}

static int sg_io(sg_io_hdr_t *io, int device)
{
    uint8_t mode[4] = { 3 }, no_sense[18] = { 0x70, [7] = 10 };
    Transfer t;
    int error = 0;

    io->status = io->host_status = io->driver_status = 0;
    io->sb_len_wr = 0;
    io->resid = 0;
    if (parse(io->cmdp, &t)) {
        if (!fail(io, t.lba, &error)) {
            transfer(io, &t, device);
        }
        errno = error;
        return error ? -1 : 0;
    }
    switch (io->cmdp[0]) {
    case INQUIRY:
        inquiry(io, device);
        break;
    case READ_CAPACITY_10:
    case SERVICE_ACTION_IN_16:
        capacity(io, device);
        break;
    case MODE_SENSE:
        move(io, mode, sizeof(mode));
        break;
    case REQUEST_SENSE:
        move(io, no_sense, sizeof(no_sense));
        break;
    case FAKE_SG_VENDOR_IN:
        echo(io);
        break;
    case FAKE_SG_VENDOR_OUT:
        keep(io, store);
        break;
    case TEST_UNIT_READY:
    case SYNCHRONIZE_CACHE:
        break;
    default:
        put_sense(io, ILLEGAL_REQUEST, 0x2000);
    }
    return 0;
}

int fake_ioctl(int fd, unsigned long request, ...)
{
    struct stat st;
    void *arg;
    va_list ap;

    va_start(ap, request);
    arg = va_arg(ap, void *);
    va_end(ap);
    if ((request == SG_GET_VERSION_NUM || request == SG_IO) &&
        !fstat(fd, &st) && S_ISCHR(st.st_mode) &&
        major(st.st_rdev) == MEMORY_MAJOR) {
        if (request == SG_IO) {
            return sg_io(arg, minor(st.st_rdev));
        }
        *(int *)arg = minor(st.st_rdev) == OLD ? 20000 : 30000;
        return 0;
    }
    return syscall(SYS_ioctl, fd, request, arg);
}
