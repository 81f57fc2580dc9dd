/*
 * What the bytes of a SCSI command descriptor block say
 *
 * Only hw/scsi/scsi-cdb.c is linked.  A table lists the commands by name, as
 * their standards define them: which bytes hold the transfer length, what it
 * counts, which way the data goes.  Each command is tried with small, large
 * and extreme numbers in that field and different rubbish in all other bytes,
 * which must not matter.  Every operation code that no row claims must be read
 * as its group's guess.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "scsi/constants.h"
#include "hw/scsi/scsi-cdb.h"

#define MAX_CDB 16

/* Kinds of devices, as bits */
enum {
    D = 1,      /* disk, and all others */
    R = 2,      /* CD, DVD, BD */
    T = 4,      /* tape */
    M = 8,      /* medium changer */
    S = 16,     /* scanner */
    ANY = 31,
};
#define NOT(kinds) (ANY & ~(kinds))

static const int kind_types[] = {
    TYPE_DISK, TYPE_ROM, TYPE_TAPE, TYPE_MEDIUM_CHANGER, TYPE_SCANNER,
};

enum {
    NONE = SCSI_XFER_NONE,
    FROM = SCSI_XFER_FROM_DEV,
    TO = SCSI_XFER_TO_DEV,
};

/* What one in the length field stands for, if not for so many bytes */
enum { BLK = -1, TWO_BLK = -2, BLK_OR_256 = -3 };

typedef struct Command {
    uint8_t op;
    const char *name;
    int kinds;
    int dir;
    int first, last;    /* bytes of the length field, 0: has none */
    int unit;           /* bytes, or one of the above */
    int plus;           /* bytes to add, or BLK */
    struct {
        uint8_t byte, mask, value;
    } bits[2];          /* that select this row */
    const char *why;    /* for what QEMU 10.0 reads differently */
} Command;

#define IF(byte, mask, value)   { { byte, mask, value } }

static const Command commands[] = {
    /* 6 bytes */
    { 0x00, "TEST UNIT READY", ANY, NONE },
    { 0x01, "REWIND, REZERO UNIT", ANY, NONE },
    { 0x03, "REQUEST SENSE", ANY, FROM, 4, 4, 1 },
    { 0x04, "FORMAT UNIT without FMTDATA", NOT(T), NONE, 0, 0, 0, 0,
      IF(1, 0x10, 0x00) },
    { 0x04, "FORMAT UNIT, short header", NOT(T | R), TO, 0, 0, 0, 4,
      IF(1, 0x30, 0x10) },
    { 0x04, "FORMAT UNIT, long header", NOT(T | R), TO, 0, 0, 0, 8,
      IF(1, 0x30, 0x30) },
    { 0x04, "FORMAT UNIT of MMC", R, TO, 0, 0, 0, 12, IF(1, 0x10, 0x10) },
    { 0x04, "FORMAT MEDIUM", T, TO, 3, 4, 1 },
    { 0x05, "READ BLOCK LIMITS", ANY, FROM, 0, 0, 0, 6 },
    { 0x07, "REASSIGN BLOCKS", NOT(M), TO, 4, 4, 1 },
    { 0x07, "INITIALIZE ELEMENT STATUS", M, NONE },
    { 0x08, "READ(6)", NOT(T), FROM, 4, 4, BLK_OR_256 },
    { 0x08, "READ(6) of variable blocks", T, FROM, 2, 4, 1, 0, IF(1, 1, 0) },
    { 0x08, "READ(6) of fixed blocks", T, FROM, 2, 4, BLK, 0, IF(1, 1, 1) },
    { 0x0a, "WRITE(6)", NOT(T), TO, 4, 4, BLK_OR_256 },
    { 0x0a, "WRITE(6) of variable blocks", T, TO, 2, 4, 1, 0, IF(1, 1, 0) },
    { 0x0a, "WRITE(6) of fixed blocks", T, TO, 2, 4, BLK, 0, IF(1, 1, 1) },
    { 0x0b, "SET CAPACITY, SEEK(6)", ANY, NONE },
    { 0x0f, "READ REVERSE(6) elsewhere", NOT(T), FROM, 4, 4, BLK_OR_256 },
    { 0x0f, "READ REVERSE(6), variable", T, FROM, 2, 4, 1, 0, IF(1, 1, 0) },
    { 0x0f, "READ REVERSE(6), fixed", T, FROM, 2, 4, BLK, 0, IF(1, 1, 1) },
    { 0x10, "WRITE FILEMARKS(6)", ANY, NONE },
    { 0x11, "SPACE(6)", ANY, NONE },
    { 0x12, "INQUIRY", ANY, FROM, 3, 4, 1 },
    { 0x13, "VERIFY(6) without BYTCMP", T, NONE, 0, 0, 0, 0, IF(1, 2, 0),
      "SSC-4, VERIFY(6): no data without BYTCMP" },
    { 0x13, "VERIFY(6) of variable blocks", T, TO, 2, 4, 1, 0, IF(1, 3, 2),
      "SSC-4, VERIFY(6): BYTCMP compares with data-out" },
    { 0x13, "VERIFY(6) of fixed blocks", T, TO, 2, 4, BLK, 0, IF(1, 3, 3),
      "SSC-4, VERIFY(6): BYTCMP compares with data-out" },
    { 0x14, "RECOVER BUFFERED DATA, variable", T, FROM, 2, 4, 1, 0,
      IF(1, 1, 0) },
    { 0x14, "RECOVER BUFFERED DATA, fixed", T, FROM, 2, 4, BLK, 0,
      IF(1, 1, 1) },
    { 0x15, "MODE SELECT(6)", ANY, TO, 4, 4, 1 },
    { 0x16, "RESERVE(6)", ANY, NONE },
    { 0x17, "RELEASE(6)", ANY, NONE },
    { 0x18, "COPY", ANY, TO, 4, 4, 1 },
    { 0x19, "ERASE(6)", ANY, NONE },
    { 0x1a, "MODE SENSE(6)", ANY, FROM, 4, 4, 1 },
    { 0x1b, "START STOP UNIT, LOAD UNLOAD", NOT(S), NONE },
    { 0x1b, "SCAN", S, TO, 4, 4, 1 },
    { 0x1c, "RECEIVE DIAGNOSTIC RESULTS", ANY, FROM, 3, 4, 1 },
    { 0x1d, "SEND DIAGNOSTIC", ANY, TO, 3, 4, 1 },
    { 0x1e, "PREVENT ALLOW MEDIUM REMOVAL", ANY, NONE },

    /* 10 bytes */
    { 0x23, "READ FORMAT CAPACITIES", R, FROM, 7, 8, 1 },
    { 0x24, "SET WINDOW", S, TO, 6, 8, 1 },
    { 0x24, "SET WINDOW elsewhere", NOT(S), TO, 7, 8, 1 },
    { 0x25, "READ CAPACITY(10)", NOT(S), FROM, 0, 0, 0, 8 },
    { 0x25, "GET WINDOW", S, FROM, 6, 8, 1 },
    { 0x28, "READ(10)", NOT(S), FROM, 7, 8, BLK },
    { 0x28, "READ(10) of a scanner", S, FROM, 6, 8, 1 },
    { 0x2a, "WRITE(10)", NOT(S), TO, 7, 8, BLK },
    { 0x2a, "SEND(10)", S, TO, 6, 8, 1 },
    { 0x2b, "SEEK(10), LOCATE, POSITION TO ELEMENT", ANY, NONE },
    { 0x2e, "WRITE AND VERIFY(10)", ANY, TO, 7, 8, BLK },
    { 0x2f, "VERIFY(10)", ANY, NONE, 0, 0, 0, 0, IF(1, 6, 0) },
    { 0x2f, "VERIFY(10) BYTCHK=1", ANY, TO, 7, 8, BLK, 0, IF(1, 6, 2) },
    { 0x2f, "VERIFY(10) BYTCHK=2", ANY, NONE, 0, 0, 0, 0, IF(1, 6, 4) },
    { 0x2f, "VERIFY(10) BYTCHK=3", ANY, TO, 0, 0, 0, BLK, IF(1, 6, 6) },
    { 0x30, "SEARCH DATA HIGH(10)", ANY, TO, 7, 8, 1 },
    { 0x31, "SEARCH DATA EQUAL(10)", NOT(S), TO, 7, 8, 1 },
    { 0x31, "OBJECT POSITION", S, NONE },
    { 0x32, "SEARCH DATA LOW(10)", ANY, TO, 7, 8, 1 },
    { 0x33, "SET LIMITS(10)", ANY, NONE },
    { 0x34, "PRE-FETCH(10)", NOT(T | S), NONE },
    { 0x34, "READ POSITION, block ID", T, FROM, 0, 0, 0, 20, IF(1, 0x1f, 0) },
    { 0x34, "READ POSITION, vendor", T, FROM, 0, 0, 0, 20, IF(1, 0x1f, 1) },
    { 0x34, "READ POSITION, long", T, FROM, 0, 0, 0, 32, IF(1, 0x1f, 6) },
    { 0x34, "READ POSITION, extended", T, FROM, 7, 8, 1, 0, IF(1, 0x1f, 8) },
    { 0x34, "GET DATA BUFFER STATUS", S, FROM, 7, 8, 1,
      .why = "SCSI-2, GET DATA BUFFER STATUS: allocation length" },
    { 0x35, "SYNCHRONIZE CACHE(10)", ANY, NONE },
    { 0x36, "LOCK UNLOCK CACHE(10)", ANY, NONE },
    { 0x37, "READ DEFECT DATA(10)", NOT(M), FROM, 7, 8, 1 },
    { 0x37, "INITIALIZE ELEMENT STATUS WITH RANGE", M, NONE },
    { 0x38, "MEDIUM SCAN", ANY, TO, 7, 8, 1 },
    { 0x39, "COMPARE", ANY, TO, 7, 8, 1 },
    { 0x3a, "COPY AND VERIFY", ANY, TO, 7, 8, 1 },
    { 0x3b, "WRITE BUFFER(10)", ANY, TO, 6, 8, 1 },
    { 0x3c, "READ BUFFER(10)", ANY, FROM, 6, 8, 1 },
    { 0x3d, "UPDATE BLOCK", ANY, NONE },
    { 0x3e, "READ LONG(10)", ANY, FROM, 7, 8, 1 },
    { 0x3f, "WRITE LONG(10)", D, TO, 7, 8, 1, 0, IF(1, 0x40, 0),
      "SBC-3, WRITE LONG(10): byte transfer length" },
    { 0x3f, "WRITE LONG(10) WR_UNCOR", D, NONE, 0, 0, 0, 0,
      IF(1, 0x40, 0x40) },
    { 0x3f, "WRITE LONG(10) elsewhere", NOT(D), NONE },
    { 0x40, "CHANGE DEFINITION", ANY, TO, 7, 8, 1 },
    { 0x41, "WRITE SAME(10)", ANY, TO, 0, 0, 0, BLK, IF(1, 1, 0) },
    { 0x41, "WRITE SAME(10) without data", ANY, NONE, 0, 0, 0, 0,
      IF(1, 1, 1) },
    { 0x42, "UNMAP", ANY, TO, 7, 8, 1 },
    { 0x43, "READ TOC/PMA/ATIP", R, FROM, 7, 8, 1 },
    { 0x44, "REPORT DENSITY SUPPORT", T, FROM, 7, 8, 1 },
    { 0x46, "GET CONFIGURATION", R, FROM, 7, 8, 1 },
    { 0x48, "SANITIZE", D, TO, 7, 8, 1,
      .why = "SBC-3, SANITIZE: parameter list length" },
    { 0x4a, "GET EVENT STATUS NOTIFICATION", R, FROM, 7, 8, 1 },
    { 0x4c, "LOG SELECT", ANY, TO, 7, 8, 1 },
    { 0x4d, "LOG SENSE", ANY, FROM, 7, 8, 1 },
    { 0x51, "XPWRITE(10)", D, TO, 7, 8, BLK,
      .why = "SBC-3, XPWRITE(10): transfer length in blocks, data-out" },
    { 0x51, "READ DISC INFORMATION", R, FROM, 7, 8, 1 },
    { 0x52, "READ TRACK INFORMATION", R, FROM, 7, 8, 1 },
    { 0x53, "RESERVE TRACK", ANY, NONE },
    { 0x54, "SEND OPC INFORMATION", R, TO, 7, 8, 1,
      .why = "MMC-6, SEND OPC INFORMATION: parameter list length" },
    { 0x55, "MODE SELECT(10)", ANY, TO, 7, 8, 1 },
    { 0x5a, "MODE SENSE(10)", ANY, FROM, 7, 8, 1 },
    { 0x5c, "READ BUFFER CAPACITY", R, FROM, 7, 8, 1 },
    { 0x5d, "SEND CUE SHEET", ANY, TO, 6, 8, 1 },
    { 0x5e, "PERSISTENT RESERVE IN", ANY, FROM, 7, 8, 1 },
    { 0x5f, "PERSISTENT RESERVE OUT", ANY, TO, 5, 8, 1 },

    /* 16 bytes */
    { 0x80, "WRITE FILEMARKS(16)", ANY, NONE },
    { 0x81, "READ REVERSE(16), variable", T, FROM, 12, 14, 1, 0, IF(1, 1, 0) },
    { 0x81, "READ REVERSE(16), fixed", T, FROM, 12, 14, BLK, 0, IF(1, 1, 1) },
    { 0x82, "ALLOW OVERWRITE", ANY, NONE },
    { 0x83, "EXTENDED COPY", ANY, TO, 10, 13, 1,
      .why = "SPC-4, EXTENDED COPY: parameter list length" },
    { 0x84, "RECEIVE COPY RESULTS", ANY, FROM, 10, 13, 1 },
    { 0x86, "ACCESS CONTROL IN", ANY, FROM, 10, 13, 1 },
    { 0x87, "ACCESS CONTROL OUT", ANY, TO, 10, 13, 1,
      .why = "SPC-4, ACCESS CONTROL OUT: parameter list length" },
    { 0x88, "READ(16)", NOT(T), FROM, 10, 13, BLK },
    { 0x88, "READ(16) of variable blocks", T, FROM, 12, 14, 1, 0,
      IF(1, 1, 0) },
    { 0x88, "READ(16) of fixed blocks", T, FROM, 12, 14, BLK, 0, IF(1, 1, 1) },
    { 0x89, "COMPARE AND WRITE", D, TO, 13, 13, TWO_BLK,
      .why = "SBC-3, COMPARE AND WRITE: as many blocks again to write" },
    { 0x8a, "WRITE(16)", NOT(T), TO, 10, 13, BLK },
    { 0x8a, "WRITE(16) of variable blocks", T, TO, 12, 14, 1, 0,
      IF(1, 1, 0) },
    { 0x8a, "WRITE(16) of fixed blocks", T, TO, 12, 14, BLK, 0,
      IF(1, 1, 1) },
    { 0x8b, "ORWRITE(16)", D, TO, 10, 13, BLK,
      .why = "SBC-3, ORWRITE(16): transfer length in blocks, data-out" },
    { 0x8c, "READ ATTRIBUTE", ANY, FROM, 10, 13, 1 },
    { 0x8d, "WRITE ATTRIBUTE", ANY, TO, 10, 13, 1,
      .why = "SPC-4, WRITE ATTRIBUTE: parameter list length" },
    { 0x8e, "WRITE AND VERIFY(16)", ANY, TO, 10, 13, BLK },
    { 0x8f, "VERIFY(16)", NOT(T), NONE, 0, 0, 0, 0, IF(1, 6, 0) },
    { 0x8f, "VERIFY(16) BYTCHK=1", NOT(T), TO, 10, 13, BLK, 0,
      IF(1, 6, 2) },
    { 0x8f, "VERIFY(16) BYTCHK=2", NOT(T), NONE, 0, 0, 0, 0, IF(1, 6, 4) },
    { 0x8f, "VERIFY(16) BYTCHK=3", NOT(T), TO, 0, 0, 0, BLK, IF(1, 6, 6) },
    { 0x8f, "VERIFY(16) of tape without BYTCMP", T, NONE, 0, 0, 0, 0,
      IF(1, 2, 0), "SSC-4, VERIFY(16): no data without BYTCMP" },
    { 0x8f, "VERIFY(16) of variable blocks", T, TO, 12, 14, 1, 0,
      IF(1, 3, 2) },
    { 0x8f, "VERIFY(16) of fixed blocks", T, TO, 12, 14, BLK, 0,
      IF(1, 3, 3) },
    { 0x90, "PRE-FETCH(16)", ANY, NONE },
    { 0x91, "SYNCHRONIZE CACHE(16)", NOT(T), NONE },
    { 0x91, "SPACE(16)", T, TO, 12, 13, 1,
      .why = "SSC-4, SPACE(16): parameter list length" },
    { 0x92, "LOCATE(16)", ANY, NONE },
    { 0x93, "WRITE SAME(16)", NOT(T), TO, 0, 0, 0, BLK, IF(1, 1, 0) },
    { 0x93, "WRITE SAME(16) NDOB", NOT(T), NONE, 0, 0, 0, 0, IF(1, 1, 1) },
    { 0x93, "ERASE(16)", T, NONE },
    { 0x9a, "WRITE STREAM(16)", D, TO, 12, 13, BLK,
      .why = "SBC-4, WRITE STREAM(16): transfer length in blocks, data-out" },
    { 0x9c, "WRITE ATOMIC(16)", D, TO, 12, 13, BLK,
      .why = "SBC-4, WRITE ATOMIC(16): transfer length in blocks, data-out" },
    { 0x9e, "SERVICE ACTION IN(16), READ CAPACITY(16)", ANY, FROM, 10, 13, 1 },
    { 0x9f, "WRITE LONG(16)", D, TO, 12, 13, 1, 0, IF(1, 0x40, 0),
      "SBC-3, WRITE LONG(16): byte transfer length" },
    { 0x9f, "WRITE LONG(16) WR_UNCOR", D, NONE, 0, 0, 0, 0,
      IF(1, 0x40, 0x40), "SBC-3, WRITE LONG(16): no data" },

    /* 12 bytes */
    { 0xa0, "REPORT LUNS", ANY, FROM, 6, 9, 1 },
    { 0xa1, "BLANK", R, NONE },
    { 0xa2, "SECURITY PROTOCOL IN", ANY, FROM, 6, 9, 1, 0, IF(4, 0x80, 0) },
    { 0xa2, "SECURITY PROTOCOL IN INC_512", ANY, FROM, 6, 9, 512, 0,
      IF(4, 0x80, 0x80), "SPC-4, SECURITY PROTOCOL IN: units of 512 bytes" },
    { 0xa3, "MAINTENANCE IN", NOT(R), FROM, 6, 9, 1 },
    { 0xa3, "SEND KEY, as QEMU 10.0 reads it", R, FROM, 8, 9, 1 },
    { 0xa4, "MAINTENANCE OUT", NOT(R), TO, 6, 9, 1 },
    { 0xa4, "REPORT KEY, as QEMU 10.0 reads it", R, TO, 8, 9, 1 },
    { 0xa5, "MOVE MEDIUM", M, NONE },
    { 0xa6, "EXCHANGE MEDIUM", M, NONE },
    { 0xa6, "LOAD/UNLOAD MEDIUM", R, NONE, 0, 0, 0, 0, { },
      "MMC-6, LOAD/UNLOAD MEDIUM: byte 8 is the slot; no data" },
    { 0xa7, "SET READ AHEAD, MOVE MEDIUM ATTACHED", ANY, NONE },
    { 0xa8, "READ(12)", ANY, FROM, 6, 9, BLK },
    { 0xaa, "WRITE(12)", ANY, TO, 6, 9, BLK },
    { 0xab, "SERVICE ACTION IN(12)", ANY, FROM, 6, 9, 1 },
    { 0xac, "ERASE(12) of tape", T, NONE },
    { 0xac, "GET PERFORMANCE, nominal", R, FROM, 8, 9, 16, 8,
      { { 1, 3, 0 }, { 10, 0xff, 0 } } },
    { 0xac, "GET PERFORMANCE, exceptions 1", R, FROM, 8, 9, 6, 8,
      { { 1, 3, 1 }, { 10, 0xff, 0 } } },
    { 0xac, "GET PERFORMANCE, exceptions 2", R, FROM, 8, 9, 6, 8,
      { { 1, 3, 2 }, { 10, 0xff, 0 } } },
    { 0xac, "GET PERFORMANCE, exceptions 3", R, FROM, 8, 9, 6, 8,
      { { 1, 3, 3 }, { 10, 0xff, 0 } } },
    { 0xac, "GET PERFORMANCE, unusable area", R, FROM, 8, 9, 8, 8,
      IF(10, 0xff, 1) },
    { 0xac, "GET PERFORMANCE, defect status", R, FROM, 8, 9, 2048, 8,
      IF(10, 0xff, 2) },
    { 0xac, "GET PERFORMANCE, write speed", R, FROM, 8, 9, 16, 8,
      IF(10, 0xff, 3) },
    { 0xac, "GET PERFORMANCE, DBI", R, FROM, 8, 9, 8, 8, IF(10, 0xff, 4) },
    { 0xac, "GET PERFORMANCE, DBI cache", R, FROM, 8, 9, 8, 8,
      IF(10, 0xff, 5) },
    { 0xac, "GET PERFORMANCE, type 6", R, FROM, 0, 0, 0, 8, IF(10, 0xff, 6) },
    { 0xac, "GET PERFORMANCE, type 255", R, FROM, 0, 0, 0, 8,
      IF(10, 0xff, 0xff) },
    { 0xad, "READ DISC STRUCTURE", R, FROM, 8, 9, 1 },
    { 0xae, "WRITE AND VERIFY(12)", ANY, TO, 6, 9, BLK },
    { 0xaf, "VERIFY(12)", ANY, NONE, 0, 0, 0, 0, IF(1, 6, 0) },
    { 0xaf, "VERIFY(12) BYTCHK=1", ANY, TO, 6, 9, BLK, 0, IF(1, 6, 2) },
    { 0xaf, "VERIFY(12) BYTCHK=2", ANY, NONE, 0, 0, 0, 0, IF(1, 6, 4) },
    { 0xaf, "VERIFY(12) BYTCHK=3", ANY, TO, 0, 0, 0, BLK, IF(1, 6, 6) },
    { 0xb0, "SEARCH DATA HIGH(12)", ANY, TO, 6, 9, 1 },
    { 0xb1, "SEARCH DATA EQUAL(12)", ANY, TO, 6, 9, 1 },
    { 0xb2, "SEARCH DATA LOW(12)", ANY, TO, 6, 9, 1 },
    { 0xb5, "SECURITY PROTOCOL OUT", NOT(M), TO, 6, 9, 1, 0,
      IF(4, 0x80, 0), "SPC-4, SECURITY PROTOCOL OUT: data-out" },
    { 0xb5, "SECURITY PROTOCOL OUT INC_512", NOT(M), TO, 6, 9, 512, 0,
      IF(4, 0x80, 0x80), "SPC-4, SECURITY PROTOCOL OUT: units of 512 bytes" },
    { 0xb6, "SEND VOLUME TAG", NOT(R), TO, 8, 9, 1 },
    { 0xb6, "SET STREAMING", R, TO, 9, 10, 1 },
    { 0xb7, "READ DEFECT DATA(12)", ANY, FROM, 6, 9, 1 },
    { 0xb8, "READ ELEMENT STATUS", M, FROM, 7, 9, 1 },
    { 0xbb, "SET CD SPEED", ANY, NONE },
    { 0xbd, "MECHANISM STATUS", R, FROM, 8, 9, 1 },
    { 0xbe, "READ CD, as QEMU 10.0 reads it", ANY, FROM, 6, 8, 1 },
    { 0xbf, "SEND DISC STRUCTURE", R, TO, 8, 9, 1 },
    { 0xbf, "SEND DISC STRUCTURE elsewhere", NOT(R), TO, 6, 9, 1 },
};

/* Has more bits than the table can say; see test_ata() */
#define ATA_16  0x85
#define ATA_12  0xa1    /* not for MMC */

static const uint32_t blocksizes[] = {
    1, 512, 520, 2048, 4096, 2 * MiB, UINT32_MAX,
};

static const uint8_t rubbish[] = { 0x00, 0xff, 0x55, 0xaa };

/* Where a CDB ends that is followed by memory which must not be read. */
static uint8_t *memory_end(void)
{
    static uint8_t *end;

    if (!end) {
#ifdef CONFIG_POSIX
        size_t page = qemu_real_host_page_size();

        end = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANON, -1, 0);
        g_assert(end != MAP_FAILED);
        end += page;
        g_assert_cmpint(mprotect(end, page, PROT_NONE), ==, 0);
#else
        end = g_new(uint8_t, MAX_CDB) + MAX_CDB;
#endif
    }
    return end;
}

/* Parse a copy of @size bytes; the result starts as rubbish. */
static int parse(int type, uint32_t blocksize, const uint8_t *cdb, size_t size,
                 SCSICommand *cmd)
{
    uint8_t *copy = memory_end() - size;

    memcpy(copy, cdb, size);
    memset(cmd, 0x5a, sizeof(*cmd));
    return scsi_cdb_parse(type, blocksize, copy, size, cmd);
}

static unsigned length_of(uint8_t op)
{
    return op < 0x20 ? 6 : op < 0x60 ? 10 : op < 0x80 ? 0 :
           op < 0xa0 ? 16 : op < 0xc0 ? 12 : 0;
}

static uint64_t lba_of(const uint8_t *cdb)
{
    unsigned len = length_of(cdb[0]);
    unsigned first = len == 6 ? 1 : 2;
    unsigned bytes = len == 6 ? 3 : len == 16 ? 8 : 4;
    uint64_t lba = 0;

    for (unsigned i = first; i < first + bytes; i++) {
        lba = lba * 256 + (len == 6 && i == 1 ? cdb[i] % 32 : cdb[i]);
    }
    return lba;
}

static char *show(const uint8_t *cdb)
{
    GString *s = g_string_new(NULL);

    for (unsigned i = 0; i < MAX_CDB; i++) {
        g_string_append_printf(s, "%02x ", cdb[i]);
    }
    return g_string_free(s, false);
}

/* Parse and compare everything that is said of a good CDB. */
static void check(const char *name, int type, uint32_t blocksize,
                  const uint8_t *cdb, uint64_t xfer, int dir)
{
    SCSICommand cmd;
    unsigned len = length_of(cdb[0]);
    int rc = parse(type, blocksize, cdb, len, &cmd);
    static const uint8_t zeros[MAX_CDB];
    int mode = xfer ? dir : NONE;

    if (rc != 0 || cmd.len != len || cmd.xfer != MIN(xfer, SIZE_MAX) ||
        cmd.mode != mode || cmd.lba != lba_of(cdb)) {
        g_autofree char *bytes = show(cdb);

        g_test_message("%s: type %d, block size %u, CDB %s", name, type,
                       blocksize, bytes);
    }
    g_assert_cmpint(rc, ==, 0);
    g_assert_cmpint(cmd.len, ==, len);
    g_assert_cmphex(cmd.xfer, ==, MIN(xfer, SIZE_MAX));
    g_assert_cmpint(cmd.mode, ==, mode);
    g_assert_cmphex(cmd.lba, ==, lba_of(cdb));
    g_assert_cmpmem(cmd.buf, len, cdb, len);
    g_assert_cmpmem(cmd.buf + len, MAX_CDB - len, zeros, MAX_CDB - len);
}

static void check_bad(int type, const uint8_t *cdb, size_t size, int len)
{
    SCSICommand cmd;

    g_assert_cmpint(parse(type, 512, cdb, size, &cmd), ==, -1);
    g_assert_cmpint(cmd.len, ==, len);
    g_assert_cmpmem(cmd.buf, len, cdb, len);
    g_assert_cmphex(cmd.lba, ==, UINT64_MAX);
    g_assert_cmphex(cmd.xfer, ==, 0);
    g_assert_cmpint(cmd.mode, ==, NONE);
}

static void put_field(uint8_t *cdb, unsigned first, unsigned last, uint64_t n)
{
    for (unsigned i = last; i >= first; i--) {
        cdb[i] = n & 0xff;
        n >>= 8;
    }
    g_assert_cmphex(n, ==, 0);
}

static uint64_t times(uint64_t n, int unit, uint32_t blocksize)
{
    switch (unit) {
    case BLK:
        return n * blocksize;
    case TWO_BLK:
        return n * blocksize + n * blocksize;
    case BLK_OR_256:
        return (n == 0 ? 256 : n) * blocksize;
    default:
        return n * unit;
    }
}

static void check_number(const Command *c, int type, uint8_t *cdb, uint64_t n)
{
    if (c->first) {
        put_field(cdb, c->first, c->last, n);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(blocksizes); i++) {
        uint64_t xfer = times(n, c->unit, blocksizes[i]) +
                        times(1, c->plus, blocksizes[i]);

        check(c->name, type, blocksizes[i], cdb, xfer, c->dir);
    }
}

static void select_row(const Command *c, uint8_t *cdb)
{
    for (unsigned i = 0; i < ARRAY_SIZE(c->bits); i++) {
        if (c->bits[i].mask) {
            cdb[c->bits[i].byte] &= ~c->bits[i].mask;
            cdb[c->bits[i].byte] |= c->bits[i].value;
        }
    }
}

static void test_command(gconstpointer data)
{
    const Command *c = data;
    uint64_t max = (1ULL << (8 * (c->last - c->first + 1))) - 1;
    const uint64_t numbers[] = {
        0, 1, 0x80, 0x8081, 0x808182, 0x80818283, max / 2, max / 2 + 1, max,
    };

    for (unsigned kind = 0; kind < ARRAY_SIZE(kind_types); kind++) {
        if (!(c->kinds & 1 << kind)) {
            continue;
        }
        for (unsigned i = 0; i < ARRAY_SIZE(rubbish); i++) {
            uint8_t cdb[MAX_CDB];

            memset(cdb, rubbish[i], sizeof(cdb));
            cdb[0] = c->op;
            select_row(c, cdb);
            for (unsigned j = 0; j < ARRAY_SIZE(numbers); j++) {
                check_number(c, kind_types[kind], cdb, numbers[j] & max);
            }
        }
    }
}

static bool is_ata(unsigned op, unsigned kind)
{
    return op == ATA_16 || (op == ATA_12 && kind_types[kind] != TYPE_ROM);
}

static bool is_listed(unsigned op, unsigned kind)
{
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (commands[i].op == op && commands[i].kinds & 1 << kind) {
            return true;
        }
    }
    return is_ata(op, kind);
}

/* What nobody has defined: most commands of the group look like this. */
static void test_unknown(void)
{
    static const Command guesses[] = {
        { 0x00, "unknown, 6 bytes", ANY, FROM, 4, 4, 1 },
        { 0x20, "unknown, 10 bytes", ANY, FROM, 7, 8, 1 },
        { 0x40, "unknown, 10 bytes", ANY, FROM, 7, 8, 1 },
        { 0x80, "unknown, 16 bytes", ANY, FROM, 10, 13, 1 },
        { 0xa0, "unknown, 12 bytes", ANY, FROM, 6, 9, 1 },
    };
    unsigned found = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(guesses); i++) {
        for (unsigned op = guesses[i].op; op < guesses[i].op + 0x20; op++) {
            for (unsigned kind = 0; kind < ARRAY_SIZE(kind_types); kind++) {
                Command c = guesses[i];

                if (!is_listed(op, kind)) {
                    c.op = op;
                    c.kinds = 1 << kind;
                    test_command(&c);
                    found++;
                }
            }
        }
    }
    g_test_message("%u unknown pairs of code and kind", found);
    g_assert_cmpuint(found, >, 100);
}

static bool is_selected(const Command *c, const uint8_t *cdb)
{
    for (unsigned i = 0; i < ARRAY_SIZE(c->bits); i++) {
        if ((cdb[c->bits[i].byte] & c->bits[i].mask) != c->bits[i].value) {
            return false;
        }
    }
    return true;
}

static unsigned rows_for(const uint8_t *cdb, unsigned kind)
{
    unsigned n = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        const Command *c = &commands[i];

        if (c->op == cdb[0] && c->kinds & 1 << kind && is_selected(c, cdb)) {
            n++;
        }
    }
    return n;
}

/*
 * This test's own table: bits select one row, whatever their values are; only
 * READ POSITION has undefined ones.
 */
static void test_one_row_each(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        const Command *c = &commands[i];

        g_assert_cmpuint(c->last, <, length_of(c->op));
        for (unsigned j = 0; j < 256 * 2 * 7; j++) {
            uint8_t cdb[MAX_CDB] = {
                c->op, [1] = j, [4] = j & 256 ? 0x80 : 0, [10] = j / 512,
            };

            for (unsigned kind = 0; kind < ARRAY_SIZE(kind_types); kind++) {
                unsigned n = rows_for(cdb, kind);

                if (c->kinds & 1 << kind &&
                    !(n == 0 && c->op == 0x34 && 1 << kind == T)) {
                    g_assert_cmpuint(n, ==, 1);
                    g_assert(!is_ata(c->op, kind));
                }
            }
        }
    }
}

static void check_ata(int type, unsigned op, uint8_t extend, uint8_t byte2)
{
    /* numbers whose bytes all differ, so that a mix-up shows */
    uint64_t features = extend ? 0xf1f2 : 0xf2;
    uint64_t sectors = extend ? 0xc3c4 : 0xc4;
    uint8_t cdb12[MAX_CDB] = { op, extend, byte2, 0xf2, 0xc4, 0xff, 0xff };
    uint8_t cdb16[MAX_CDB] = { op, extend, byte2, 0xf1, 0xf2, 0xc3, 0xc4 };
    const uint8_t *cdb = op == ATA_12 ? cdb12 : cdb16;
    uint64_t n[] = { 0, features, sectors, 0 };
    int dir = byte2 & 8 ? FROM : TO;

    if (op == ATA_12) {
        n[1] &= 0xff;
        n[2] &= 0xff;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(blocksizes); i++) {
        uint64_t unit = !(byte2 & 4) ? 1 : byte2 & 16 ? blocksizes[i] : 512;

        check("ATA PASS-THROUGH", type, blocksizes[i], cdb,
              n[byte2 & 3] * unit, dir);
    }
}

static void test_ata(void)
{
    static const uint8_t ops[] = { ATA_12, ATA_16 };

    for (unsigned kind = 0; kind < ARRAY_SIZE(kind_types); kind++) {
        for (unsigned i = 0; i < ARRAY_SIZE(ops); i++) {
            for (unsigned b = 0; b < 512 && is_ata(ops[i], kind); b++) {
                check_ata(kind_types[kind], ops[i], b >> 8, b);
            }
        }
    }
}

static void test_read_position(void)
{
    for (unsigned action = 0; action < 0x20; action++) {
        uint8_t cdb[MAX_CDB] = { 0x34, 0xe0 | action };

        if (action != 0 && action != 1 && action != 6 && action != 8) {
            check_bad(TYPE_TAPE, cdb, 10, 10);
        }
    }
}

/* Too short for its operation code, with nothing readable behind it */
static void test_short(void)
{
    for (unsigned op = 0; op < 256; op++) {
        unsigned len = length_of(op);
        uint8_t cdb[MAX_CDB] = { op };

        for (unsigned kind = 0; kind < ARRAY_SIZE(kind_types); kind++) {
            SCSICommand cmd;

            check_bad(kind_types[kind], cdb, 0, 0);
            for (unsigned size = 1; size < len; size++) {
                check_bad(kind_types[kind], cdb, size, 0);
            }
            for (unsigned size = 1; size <= MAX_CDB && !len; size++) {
                check_bad(kind_types[kind], cdb, size, 0);
            }
            for (unsigned size = len; size <= MAX_CDB && len; size++) {
                g_assert_cmpint(parse(kind_types[kind], 512, cdb, size, &cmd),
                                ==, 0);
                g_assert_cmpint(cmd.len, ==, len);
            }
        }
    }
}

static void test_lba(void)
{
    static const struct {
        uint8_t cdb[MAX_CDB];
        uint64_t lba;
    } lbas[] = {
        { { 0x08, 0x1f, 0xff, 0xff, 1 }, 0x1fffff },
        { { 0x08, 0xe0, 0x00, 0x00, 1 }, 0 },
        { { 0x0a, 0xff, 0x80, 0x01, 1 }, 0x1f8001 },
        { { 0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 1 }, 0xffffffff },
        { { 0x28, 0, 0x80, 0, 0, 0, 0xff, 0, 1 }, 0x80000000 },
        { { 0x2a, 0, 0x01, 0x02, 0x83, 0x84, 0, 0, 1 }, 0x01028384 },
        { { 0xa8, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1 }, 0xffffffff },
        { { 0xaa, 0, 0x81, 0x02, 0x83, 0x04, 0, 0, 0, 1 }, 0x81028304 },
        { { 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
          UINT64_MAX },
        { { 0x8a, 0, 0x81, 0x02, 0x83, 0x04, 0x85, 0x06, 0x87, 0x08, 0xff },
          0x8102830485068708 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(lbas); i++) {
        SCSICommand cmd;

        g_assert_cmpint(parse(TYPE_DISK, 512, lbas[i].cdb, MAX_CDB, &cmd),
                        ==, 0);
        g_assert_cmphex(cmd.lba, ==, lbas[i].lba);
    }
}

/* All types that have no commands of their own are read as disks. */
static void test_other_types(void)
{
    for (int type = -1; type < 0x80; type++) {
        if (type == TYPE_ROM || type == TYPE_TAPE || type == TYPE_SCANNER ||
            type == TYPE_MEDIUM_CHANGER) {
            continue;
        }
        for (unsigned op = 0; op < 256; op++) {
            uint8_t cdb[MAX_CDB] = { op, 7, 6, 5, 4, 3, 2, 1, 9, 8, 7, 6, 5 };
            SCSICommand disk, other;
            int rc = parse(TYPE_DISK, 520, cdb, MAX_CDB, &disk);

            g_assert_cmpint(parse(type, 520, cdb, MAX_CDB, &other), ==, rc);
            g_assert_cmphex(other.xfer, ==, disk.xfer);
            g_assert_cmphex(other.lba, ==, disk.lba);
            g_assert_cmpint(other.mode, ==, disk.mode);
            g_assert_cmpint(other.len, ==, disk.len);
        }
    }
}

/* What stood in the result before does not matter. */
static void test_determinism(void)
{
    for (unsigned i = 0; i < 100000; i++) {
        uint8_t cdb[MAX_CDB];
        SCSICommand a, b;
        int type = kind_types[i % ARRAY_SIZE(kind_types)];
        int rc;

        for (unsigned j = 0; j < MAX_CDB; j++) {
            cdb[j] = g_test_rand_int();
        }
        memset(&a, 0x00, sizeof(a));
        memset(&b, 0xff, sizeof(b));
        rc = scsi_cdb_parse(type, 4096, cdb, MAX_CDB, &a);
        g_assert_cmpint(scsi_cdb_parse(type, 4096, cdb, MAX_CDB, &b), ==, rc);
        g_assert_cmpint(a.len, ==, b.len);
        g_assert_cmphex(a.xfer, ==, b.xfer);
        g_assert_cmphex(a.lba, ==, b.lba);
        g_assert_cmpint(a.mode, ==, b.mode);
        g_assert_cmpmem(a.buf, MAX_CDB, b.buf, MAX_CDB);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        const Command *c = &commands[i];
        g_autofree char *name = g_strdelimit(g_strdup(c->name), "/", ' ');
        g_autofree char *path = NULL;

        path = c->why ? g_strdup_printf("/scsi-cdb/corrected/%02x %s (%s)",
                                        c->op, name, c->why)
                      : g_strdup_printf("/scsi-cdb/command/%02x %s",
                                        c->op, name);
        g_strdelimit(path + strlen("/scsi-cdb/corrected/"), "/", ' ');
        g_test_add_data_func(path, c, test_command);
    }
    g_test_add_func("/scsi-cdb/ata-pass-through", test_ata);
    g_test_add_func("/scsi-cdb/read-position-undefined", test_read_position);
    g_test_add_func("/scsi-cdb/unknown", test_unknown);
    g_test_add_func("/scsi-cdb/rows-of-this-test", test_one_row_each);
    g_test_add_func("/scsi-cdb/short", test_short);
    g_test_add_func("/scsi-cdb/lba", test_lba);
    g_test_add_func("/scsi-cdb/other-types", test_other_types);
    g_test_add_func("/scsi-cdb/determinism", test_determinism);

    return g_test_run();
}
