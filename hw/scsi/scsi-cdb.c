/*
 * SCSI command descriptor blocks: what the bytes of a CDB say
 *
 * One table says for each operation code and kind of device where the
 * transfer length stands, what it counts and which way the data goes.  The
 * CDB's length and the place of the LBA follow from the group of the
 * operation code (SPC-4, "Operation code").
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "scsi/constants.h"
#include "hw/scsi/scsi-cdb.h"

/* Operation codes that scsi/constants.h has no name for */
#define VERIFY_6                0x13
#define XPWRITE_10              0x51    /* MMC: READ DISC INFORMATION */
#define SEND_OPC_INFORMATION    0x54
#define ORWRITE_16              0x8b
#define WRITE_ATTRIBUTE         0x8d
#define WRITE_STREAM_16         0x9a
#define WRITE_ATOMIC_16         0x9c
#define SECURITY_PROTOCOL_IN    0xa2
#define SECURITY_PROTOCOL_OUT   0xb5

/* Kinds of devices that use an operation code for commands of their own */
enum {
    KIND_BLOCK,     /* SBC, and whatever is not one of the others */
    KIND_ROM,       /* MMC */
    KIND_TAPE,      /* SSC */
    KIND_CHANGER,   /* SMC */
    KIND_SCANNER,   /* SCSI-2, clause 15 */
    KIND_MAX,
};

/* What the number in the transfer length field means */
enum {
    LEN_BYTES,
    LEN_BLOCKS,
    LEN_BLOCKS_6,       /* blocks, and 0 means 256 */
    LEN_CONSTANT,       /* no field: "at" is the number of bytes */
    LEN_VERIFY,         /* blocks, as far as BYTCHK asks for them */
    LEN_ONE_BLOCK,      /* one block, or none with NDOB */
    LEN_COMPARE_WRITE,  /* blocks, each to compare and to write */
    LEN_WRITE_LONG,     /* bytes, none with WR_UNCOR */
    LEN_INC_512,        /* bytes, or units of 512 with INC_512 */
    LEN_TAPE,           /* bytes, or blocks with FIXED */
    LEN_TAPE_VERIFY,    /* the same, none without BYTCMP */
    LEN_READ_POSITION,  /* by service action */
    LEN_FORMAT_DISK,    /* parameter list's header only */
    LEN_FORMAT_ROM,
    LEN_PERFORMANCE,    /* descriptors of a kind that the CDB tells */
    LEN_ATA,            /* by T_LENGTH, BYTE_BLOCK and T_TYPE */
};

/* After SCSI_XFER_*: the CDB of ATA PASS-THROUGH has a bit for it */
#define XFER_T_DIR      3

#define XFER_UNDEFINED  UINT64_MAX

/*
 * A form, in 16 bits: from byte "at", "n" bytes of transfer length; what that
 * means; direction.  The field is read as the end of four bytes (n = 0 masks
 * all of them), which must lie in SCSICommand.buf.
 */
typedef uint16_t CdbForm;

#define FORM(meaning, xfer, at, n)                                      \
    ((at) | (n) << 4 | (xfer) << 7 | (meaning) << 9 |                   \
     QEMU_BUILD_BUG_ON_ZERO((at) + (n) < 4 || (at) + (n) > 16))

#define FORM_AT(form)       ((form) & 0xf)
#define FORM_N(form)        ((form) >> 4 & 7)
#define FORM_XFER(form)     ((form) >> 7 & 3)
#define FORM_MEANING(form)  ((form) >> 9)

#define FROM(at, n)             FORM(LEN_BYTES, SCSI_XFER_FROM_DEV, at, n)
#define TO(at, n)               FORM(LEN_BYTES, SCSI_XFER_TO_DEV, at, n)
#define FROM_AS(what, at, n)    FORM(LEN_ ## what, SCSI_XFER_FROM_DEV, at, n)
#define TO_AS(what, at, n)      FORM(LEN_ ## what, SCSI_XFER_TO_DEV, at, n)
#define FROM_CONSTANT(bytes)    FORM(LEN_CONSTANT, SCSI_XFER_FROM_DEV, bytes, 0)
#define ATA(at, n)              FORM(LEN_ATA, XFER_T_DIR, at, n)
#define NO_XFER                 FORM(LEN_BYTES, SCSI_XFER_NONE, 4, 0)

/* No row, or 0 in it: read as most commands of the group are built */
#define GUESS                   0

static const CdbForm cdb_guess[] = {
    [0] = FROM(4, 1),
    [1] = FROM(7, 2),
    [2] = FROM(7, 2),
    [4] = FROM(10, 4),
    [5] = FROM(6, 4),
};

/* Rows: the same for all kinds, or another form for some of them */
#define ALL(form)                   { form, form, form, form, form }
#define ROW(block, rom, tape, changer, scanner) \
    { block, rom, tape, changer, scanner }
#define BLOCK_OR(form, others)      ROW(form, others, others, others, others)
#define ROM_OR(form, others)        ROW(others, form, others, others, others)
#define TAPE_OR(form, others)       ROW(others, others, form, others, others)
#define CHANGER_OR(form, others)    ROW(others, others, others, form, others)
#define SCANNER_OR(form, others)    ROW(others, others, others, others, form)

static const CdbForm cdb_forms[256][KIND_MAX] = {
    /* Group 0: 6 bytes */
    [TEST_UNIT_READY]       = ALL(NO_XFER),
    [REWIND]                = ALL(NO_XFER),
    [FORMAT_UNIT]           = ROW(TO_AS(FORMAT_DISK, 4, 0),
                                  TO_AS(FORMAT_ROM, 4, 0),
                                  TO(3, 2),
                                  TO_AS(FORMAT_DISK, 4, 0),
                                  TO_AS(FORMAT_DISK, 4, 0)),
    [READ_BLOCK_LIMITS]     = ALL(FROM_CONSTANT(6)),
    [REASSIGN_BLOCKS]       = CHANGER_OR(NO_XFER, TO(4, 1)),
    [READ_6]                = TAPE_OR(FROM_AS(TAPE, 2, 3),
                                      FROM_AS(BLOCKS_6, 4, 1)),
    [WRITE_6]               = TAPE_OR(TO_AS(TAPE, 2, 3), TO_AS(BLOCKS_6, 4, 1)),
    [SET_CAPACITY]          = ALL(NO_XFER),
    [READ_REVERSE]          = TAPE_OR(FROM_AS(TAPE, 2, 3),
                                      FROM_AS(BLOCKS_6, 4, 1)),
    [WRITE_FILEMARKS]       = ALL(NO_XFER),
    [SPACE]                 = ALL(NO_XFER),
    [INQUIRY]               = ALL(FROM(3, 2)),
    [VERIFY_6]              = TAPE_OR(TO_AS(TAPE_VERIFY, 2, 3), GUESS),
    [RECOVER_BUFFERED_DATA] = TAPE_OR(FROM_AS(TAPE, 2, 3), GUESS),
    [MODE_SELECT]           = ALL(TO(4, 1)),
    [RESERVE]               = ALL(NO_XFER),
    [RELEASE]               = ALL(NO_XFER),
    [COPY]                  = ALL(TO(4, 1)),
    [ERASE]                 = ALL(NO_XFER),
    [START_STOP]            = SCANNER_OR(TO(4, 1), NO_XFER),
    [RECEIVE_DIAGNOSTIC]    = ALL(FROM(3, 2)),
    [SEND_DIAGNOSTIC]       = ALL(TO(3, 2)),
    [ALLOW_MEDIUM_REMOVAL]  = ALL(NO_XFER),

    /* Groups 1 and 2: 10 bytes */
    [SET_WINDOW]            = SCANNER_OR(TO(6, 3), TO(7, 2)),
    [READ_CAPACITY_10]      = SCANNER_OR(FROM(6, 3), FROM_CONSTANT(8)),
    [READ_10]               = SCANNER_OR(FROM(6, 3), FROM_AS(BLOCKS, 7, 2)),
    [WRITE_10]              = SCANNER_OR(TO(6, 3), TO_AS(BLOCKS, 7, 2)),
    [SEEK_10]               = ALL(NO_XFER),
    [WRITE_VERIFY_10]       = ALL(TO_AS(BLOCKS, 7, 2)),
    [VERIFY_10]             = ALL(TO_AS(VERIFY, 7, 2)),
    [SEARCH_HIGH]           = ALL(TO(7, 2)),
    [SEARCH_EQUAL]          = SCANNER_OR(NO_XFER, TO(7, 2)),
    [SEARCH_LOW]            = ALL(TO(7, 2)),
    [SET_LIMITS]            = ALL(NO_XFER),
    [PRE_FETCH]             = ROW(NO_XFER, NO_XFER,
                                  FROM_AS(READ_POSITION, 7, 2),
                                  NO_XFER,
                                  FROM(7, 2)),
    [SYNCHRONIZE_CACHE]     = ALL(NO_XFER),
    [LOCK_UNLOCK_CACHE]     = ALL(NO_XFER),
    [READ_DEFECT_DATA]      = CHANGER_OR(NO_XFER, GUESS),
    [MEDIUM_SCAN]           = ALL(TO(7, 2)),
    [COMPARE]               = ALL(TO(7, 2)),
    [COPY_VERIFY]           = ALL(TO(7, 2)),
    [WRITE_BUFFER]          = ALL(TO(6, 3)),
    [READ_BUFFER]           = ALL(FROM(6, 3)),
    [UPDATE_BLOCK]          = ALL(NO_XFER),
    [WRITE_LONG_10]         = BLOCK_OR(TO_AS(WRITE_LONG, 7, 2), NO_XFER),
    [CHANGE_DEFINITION]     = ALL(TO(7, 2)),
    [WRITE_SAME_10]         = ALL(TO_AS(ONE_BLOCK, 4, 0)),
    [UNMAP]                 = ALL(TO(7, 2)),
    [SANITIZE]              = BLOCK_OR(TO(7, 2), GUESS),
    [LOG_SELECT]            = ALL(TO(7, 2)),
    [XPWRITE_10]            = BLOCK_OR(TO_AS(BLOCKS, 7, 2), GUESS),
    [RESERVE_TRACK]         = ALL(NO_XFER),
    [SEND_OPC_INFORMATION]  = ROM_OR(TO(7, 2), GUESS),
    [MODE_SELECT_10]        = ALL(TO(7, 2)),
    [SEND_CUE_SHEET]        = ALL(TO(6, 3)),
    [PERSISTENT_RESERVE_OUT] = ALL(TO(5, 4)),

    /* Group 4: 16 bytes */
    [WRITE_FILEMARKS_16]    = ALL(NO_XFER),
    [READ_REVERSE_16]       = TAPE_OR(FROM_AS(TAPE, 12, 3), GUESS),
    [ALLOW_OVERWRITE]       = ALL(NO_XFER),
    [EXTENDED_COPY]         = ALL(TO(10, 4)),
    [ATA_PASSTHROUGH_16]    = ALL(ATA(3, 2)),
    [ACCESS_CONTROL_OUT]    = ALL(TO(10, 4)),
    [READ_16]               = TAPE_OR(FROM_AS(TAPE, 12, 3),
                                      FROM_AS(BLOCKS, 10, 4)),
    [COMPARE_AND_WRITE]     = BLOCK_OR(TO_AS(COMPARE_WRITE, 13, 1), GUESS),
    [WRITE_16]              = TAPE_OR(TO_AS(TAPE, 12, 3), TO_AS(BLOCKS, 10, 4)),
    [ORWRITE_16]            = BLOCK_OR(TO_AS(BLOCKS, 10, 4), GUESS),
    [WRITE_ATTRIBUTE]       = ALL(TO(10, 4)),
    [WRITE_VERIFY_16]       = ALL(TO_AS(BLOCKS, 10, 4)),
    [VERIFY_16]             = TAPE_OR(TO_AS(TAPE_VERIFY, 12, 3),
                                      TO_AS(VERIFY, 10, 4)),
    [PRE_FETCH_16]          = ALL(NO_XFER),
    [SYNCHRONIZE_CACHE_16]  = TAPE_OR(TO(12, 2), NO_XFER),
    [LOCATE_16]             = ALL(NO_XFER),
    [WRITE_SAME_16]         = TAPE_OR(NO_XFER, TO_AS(ONE_BLOCK, 4, 0)),
    [WRITE_STREAM_16]       = BLOCK_OR(TO_AS(BLOCKS, 12, 2), GUESS),
    [WRITE_ATOMIC_16]       = BLOCK_OR(TO_AS(BLOCKS, 12, 2), GUESS),
    [WRITE_LONG_16]         = BLOCK_OR(TO_AS(WRITE_LONG, 12, 2), GUESS),

    /* Group 5: 12 bytes */
    [ATA_PASSTHROUGH_12]    = ROM_OR(NO_XFER, ATA(3, 1)),
    [SECURITY_PROTOCOL_IN]  = ALL(FROM_AS(INC_512, 6, 4)),
    [MAINTENANCE_IN]        = ROM_OR(FROM(8, 2), GUESS),
    [MAINTENANCE_OUT]       = ROM_OR(TO(8, 2), TO(6, 4)),
    [MOVE_MEDIUM]           = CHANGER_OR(NO_XFER, GUESS),
    [EXCHANGE_MEDIUM]       = ROW(GUESS, NO_XFER, GUESS, NO_XFER, GUESS),
    [SET_READ_AHEAD]        = ALL(NO_XFER),
    [READ_12]               = ALL(FROM_AS(BLOCKS, 6, 4)),
    [WRITE_12]              = ALL(TO_AS(BLOCKS, 6, 4)),
    [ERASE_12]              = ROW(GUESS, FROM_AS(PERFORMANCE, 8, 2), NO_XFER,
                                  GUESS, GUESS),
    [READ_DVD_STRUCTURE]    = ROM_OR(FROM(8, 2), GUESS),
    [WRITE_VERIFY_12]       = ALL(TO_AS(BLOCKS, 6, 4)),
    [VERIFY_12]             = ALL(TO_AS(VERIFY, 6, 4)),
    [SEARCH_HIGH_12]        = ALL(TO(6, 4)),
    [SEARCH_EQUAL_12]       = ALL(TO(6, 4)),
    [SEARCH_LOW_12]         = ALL(TO(6, 4)),
    /* a changer's REQUEST VOLUME ELEMENT ADDRESS has the same code */
    [SECURITY_PROTOCOL_OUT] = CHANGER_OR(GUESS, TO_AS(INC_512, 6, 4)),
    [SEND_VOLUME_TAG]       = ROM_OR(TO(9, 2), TO(8, 2)),
    [READ_ELEMENT_STATUS]   = CHANGER_OR(FROM(7, 3), GUESS),
    [SET_CD_SPEED]          = ALL(NO_XFER),
    [MECHANISM_STATUS]      = ROM_OR(FROM(8, 2), GUESS),
    [READ_CD]               = ALL(FROM(6, 3)),
    [SEND_DVD_STRUCTURE]    = ROM_OR(TO(8, 2), TO(6, 4)),
};

static unsigned cdb_kind(int type)
{
    switch (type) {
    case TYPE_ROM:
        return KIND_ROM;
    case TYPE_TAPE:
        return KIND_TAPE;
    case TYPE_MEDIUM_CHANGER:
        return KIND_CHANGER;
    case TYPE_SCANNER:
        return KIND_SCANNER;
    default:
        return KIND_BLOCK;
    }
}

/* The number of @n big-endian bytes from @at on; reads before them, too. */
static uint64_t cdb_field(const uint8_t *buf, unsigned at, unsigned n)
{
    uint32_t word = ldl_be_p(buf + at + n - 4);

    return word & ((1ULL << (8 * n)) - 1);
}

/* BYTCHK in VERIFY: 1 compares all blocks, 3 one block with all of them. */
static uint64_t cdb_verify_blocks(const uint8_t *buf, uint64_t blocks)
{
    switch (buf[1] >> 1 & 3) {
    case 1:
        return blocks;
    case 3:
        return 1;
    default:
        return 0;
    }
}

/* SSC-4, READ POSITION: only the extended form has an allocation length. */
static uint64_t cdb_position_bytes(const uint8_t *buf, uint64_t allocated)
{
    switch (buf[1] & 0x1f) {
    case SHORT_FORM_BLOCK_ID:
    case SHORT_FORM_VENDOR_SPECIFIC:
        return 20;
    case LONG_FORM:
        return 32;
    case EXTENDED_FORM:
        return allocated;
    default:
        return XFER_UNDEFINED;
    }
}

/*
 * The length of a disk's defect list is only known from the parameter list's
 * header, so this is the header alone.
 */
static uint64_t cdb_format_bytes(const uint8_t *buf, bool rom)
{
    bool fmtdata = buf[1] & 0x10;
    bool longlist = buf[1] & 0x20;

    if (!fmtdata) {
        return 0;
    }
    if (rom) {
        return 12;
    }
    return longlist ? 8 : 4;
}

/* MMC-6, GET PERFORMANCE: a header and descriptors of that TYPE. */
static uint64_t cdb_performance_bytes(const uint8_t *buf, uint64_t descriptors)
{
    static const uint16_t sizes[] = { 16, 8, 2048, 16, 8, 8 };
    unsigned type = buf[10];
    unsigned size = type < ARRAY_SIZE(sizes) ? sizes[type] : 0;

    if (type == 0 && (buf[1] & 3)) {
        size = 6;       /* exceptions instead of nominal performance */
    }
    return 8 + descriptors * size;
}

/*
 * SAT-3, ATA PASS-THROUGH: the field found is FEATURES, COUNT comes next and
 * is as long.  The upper byte of both is for 48-bit commands (EXTEND) only.
 */
static uint64_t cdb_ata_bytes(const uint8_t *buf, CdbForm form,
                              uint32_t blocksize)
{
    unsigned t_length = buf[2] & 3;
    bool byte_block = buf[2] & 4;
    bool t_type = buf[2] & 0x10;
    bool extend = buf[1] & 1;
    unsigned at = FORM_AT(form);
    unsigned n = FORM_N(form);
    uint64_t count;

    if (t_length != 1 && t_length != 2) {
        return 0;
    }
    count = cdb_field(buf, t_length == 1 ? at : at + n, n);
    if (!extend) {
        count &= 0xff;
    }
    if (!byte_block) {
        return count;
    }
    return count * (t_type ? blocksize : 512);
}

/* 64 bits hold any 32-bit count of blocks of any 32-bit size. */
static uint64_t cdb_xfer(const uint8_t *buf, CdbForm form, uint32_t blocksize)
{
    uint64_t n = cdb_field(buf, FORM_AT(form), FORM_N(form));

    switch (FORM_MEANING(form)) {
    case LEN_BYTES:
        return n;
    case LEN_BLOCKS:
        return n * blocksize;
    case LEN_BLOCKS_6:
        return (n ?: 256) * blocksize;
    case LEN_CONSTANT:
        return FORM_AT(form);
    case LEN_VERIFY:
        return cdb_verify_blocks(buf, n) * blocksize;
    case LEN_ONE_BLOCK:
        return buf[1] & 1 ? 0 : blocksize;
    case LEN_COMPARE_WRITE:
        return 2 * n * blocksize;
    case LEN_WRITE_LONG:
        return buf[1] & 0x40 ? 0 : n;
    case LEN_INC_512:
        return buf[4] & 0x80 ? n * 512 : n;
    case LEN_TAPE_VERIFY:
        if (!(buf[1] & 2)) {
            return 0;
        }
        /* fall through */
    case LEN_TAPE:
        return buf[1] & 1 ? n * blocksize : n;
    case LEN_READ_POSITION:
        return cdb_position_bytes(buf, n);
    case LEN_FORMAT_DISK:
        return cdb_format_bytes(buf, false);
    case LEN_FORMAT_ROM:
        return cdb_format_bytes(buf, true);
    case LEN_PERFORMANCE:
        return cdb_performance_bytes(buf, n);
    case LEN_ATA:
        return cdb_ata_bytes(buf, form, blocksize);
    default:
        g_assert_not_reached();
    }
}

static enum SCSIXferMode cdb_mode(const uint8_t *buf, CdbForm form)
{
    unsigned xfer = FORM_XFER(form);

    if (xfer == XFER_T_DIR) {
        return buf[2] & 8 ? SCSI_XFER_FROM_DEV : SCSI_XFER_TO_DEV;
    }
    return xfer;
}

/* Lengths are constants for the compiler, which makes moves of the copies. */
static bool cdb_copy(SCSICommand *cmd, const uint8_t *cdb, size_t size,
                     size_t len)
{
    if (size < len) {
        return false;
    }
    memcpy(cmd->buf, cdb, len);
    cmd->len = len;
    return true;
}

/* Fill in length, bytes and LBA; all that comes later reads the copy. */
static bool cdb_fetch(SCSICommand *cmd, const uint8_t *cdb, size_t size)
{
    if (size == 0) {
        return false;
    }
    switch (cdb[0] >> 5) {
    case 0:
        if (!cdb_copy(cmd, cdb, size, 6)) {
            return false;
        }
        cmd->lba = cdb_field(cmd->buf, 1, 3) & 0x1fffff;
        return true;
    case 1:
    case 2:
        if (!cdb_copy(cmd, cdb, size, 10)) {
            return false;
        }
        break;
    case 4:
        if (!cdb_copy(cmd, cdb, size, 16)) {
            return false;
        }
        cmd->lba = ldq_be_p(cmd->buf + 2);
        return true;
    case 5:
        if (!cdb_copy(cmd, cdb, size, 12)) {
            return false;
        }
        break;
    default:
        return false;
    }
    cmd->lba = cdb_field(cmd->buf, 2, 4);
    return true;
}

int scsi_cdb_parse(int type, uint32_t blocksize, const uint8_t *cdb,
                   size_t size, SCSICommand *cmd)
{
    CdbForm form;
    uint64_t xfer;

    *cmd = (SCSICommand) {
        .lba = -1, .mode = SCSI_XFER_NONE, .blocksize = blocksize,
    };
    if (!cdb_fetch(cmd, cdb, size)) {
        return -1;
    }

    form = cdb_forms[cmd->buf[0]][cdb_kind(type)];
    if (form == GUESS) {
        form = cdb_guess[cmd->buf[0] >> 5];
    }
    xfer = cdb_xfer(cmd->buf, form, blocksize);
    if (xfer == XFER_UNDEFINED) {
        cmd->lba = -1;
        return -1;
    }

    /* no HBA moves more than SIZE_MAX, which 32-bit hosts reach */
    cmd->xfer = MIN(xfer, SIZE_MAX);
    if (xfer) {
        cmd->mode = cdb_mode(cmd->buf, form);
    }
    return 0;
}
