/*
 * What an emulated disk or cd tells of itself
 *
 * INQUIRY data, vital product data, mode pages, and which commands there are,
 * from tables.  Pure functions of facts that the caller has put together; no
 * state, any thread.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SCSI_SCSI_DISK_PAGES_H
#define HW_SCSI_SCSI_DISK_PAGES_H

#include "hw/scsi/scsi.h"

/* No answer is longer, whatever the allocation length is. */
#define SCSI_DISK_ANSWER_MAX    4096

/* Of SERVICE ACTION IN (16) */
#define SAI_GET_LBA_STATUS      0x12

/**
 * SCSIDiskFacts: what the answers depend on
 *
 * @dev: the LUN; type, names, BlockConf and SCSI version are read
 * @tcq: the HBA can queue commands
 * @standard: as the standards say, otherwise as QEMU 10.0 does where the two
 *            differ and a guest could notice
 * @block_size_change: MODE SELECT may change the block size
 * @removable: the medium is
 * @locked: it can't be taken out now
 * @write_cache: there is one, and it may be used
 * @tmfs: the HBA's task management functions, the first two bytes of REPORT
 *        SUPPORTED TASK MANAGEMENT FUNCTIONS; 0 if it doesn't tell
 * @quirks: bits SCSI_DISK_QUIRK_*
 * @unique: scsi_disk_unique_name(), if page 83h shall have it
 * @max_transfer: of the node below, in bytes, or 0
 * @max_io_size, @max_unmap_size: bytes, from the properties
 *
 * The others are the properties of the same names; strings may be NULL where
 * those may be unset.
 */
typedef struct SCSIDiskFacts {
    const SCSIDevice *dev;
    bool tcq;
    bool standard;
    bool block_size_change;
    bool removable;
    bool locked;
    bool write_cache;
    uint16_t tmfs;
    uint32_t quirks;
    const char *vendor;
    const char *product;
    const char *version;
    const char *serial;
    const char *device_id;
    const char *unique;
    uint16_t port_index;
    uint16_t rotation_rate;
    int max_transfer;
    uint64_t max_io_size;
    uint64_t max_unmap_size;
} SCSIDiskFacts;

/**
 * scsi_disk_unique_name:
 * @dev: the LUN, on its bus
 *
 * The VM's UUID, if it has one, and the path of the device.  Both are the same
 * after a restart and after a migration.
 *
 * Context: main loop.
 * Returns: a string for g_free().
 */
char *scsi_disk_unique_name(SCSIDevice *dev);

/**
 * scsi_disk_inquiry:
 * @f: the facts
 * @cmd: an INQUIRY
 * @buf: SCSI_DISK_ANSWER_MAX bytes, all 0; the answer is written there
 *
 * Standard INQUIRY data (SPC-4, 6.6.2) or a VPD page (7.8, and SBC-3, 6.6).
 * The answer is whole, however short the allocation length is.
 *
 * Context: any thread.
 * Returns: the length of the answer, or -1 if the CDB asks for something that
 * isn't there.
 */
int scsi_disk_inquiry(const SCSIDiskFacts *f, const SCSICommand *cmd,
                      uint8_t *buf);

/**
 * scsi_disk_max_blocks:
 * @f: the facts
 * @cmd: a command
 *
 * MAXIMUM TRANSFER LENGTH and MAXIMUM WRITE SAME LENGTH of page B0h.
 *
 * Context: any thread.
 * Returns: blocks of the command's size, or 0 if there is no limit.
 */
uint32_t scsi_disk_max_blocks(const SCSIDiskFacts *f, const SCSICommand *cmd);

/**
 * scsi_disk_mode_pages:
 * @f: the facts
 * @code: of a mode page, or MODE_PAGE_ALLS
 * @changeable: which bits MODE SELECT may change, instead of the values
 * @buf: where to write them, SCSI_DISK_ANSWER_MAX less MODE SENSE's header
 *
 * Context: any thread.
 * Returns: their length, or -1 if there is no such page.
 */
int scsi_disk_mode_pages(const SCSIDiskFacts *f, uint8_t code,
                         bool changeable, uint8_t *buf);

/**
 * scsi_disk_mode_page_ok:
 * @f: the facts
 * @code: of the page
 * @data: what MODE SELECT sends of it, without header; the end may be missing
 * @len: bytes at @data
 *
 * Context: any thread.
 * Returns: whether only bits that are changeable differ from what is there.
 */
bool scsi_disk_mode_page_ok(const SCSIDiskFacts *f, uint8_t code,
                            const uint8_t *data, size_t len);

/**
 * scsi_disk_block_size_asked:
 * @f: the facts
 * @cmd: a MODE SELECT
 * @descriptor: its block descriptor, 8 bytes (SBC-3, 6.5.2.2)
 *
 * Context: any thread.
 * Returns: the block size that shall be, in bytes; 0 if it stays; or -1 if it
 * can't be or mustn't change.
 */
int scsi_disk_block_size_asked(const SCSIDiskFacts *f, const SCSICommand *cmd,
                               const uint8_t *descriptor);

/* Who answers a command */
typedef enum SCSIDiskRoom {
    SCSI_DISK_UNKNOWN,
    SCSI_DISK_EMULATED,         /* data in a buffer of ours */
    SCSI_DISK_MEDIUM,           /* data between guest and medium */
    SCSI_DISK_BY_BUS,           /* scsi-target.c */
} SCSIDiskRoom;

/**
 * SCSIDiskCommand: what there is to know of an operation code
 *
 * @types: bits of TYPE_*, of the devices that have it
 * @usage: bits of the CDB that are looked at (SPC-4, CDB USAGE DATA), but for
 *         the operation code and SERVICE ACTION
 * @by_action: there is a SERVICE ACTION, and @usage is by that
 * @anytime: there need not be a medium
 * @standard: QEMU 10.0 doesn't have it; so it needs standard-answers=on
 */
typedef struct SCSIDiskCommand {
    uint8_t room;
    uint8_t types;
    uint8_t usage[16];
    bool by_action;
    bool anytime;
    bool standard;
} SCSIDiskCommand;

/* By operation code; commands are dispatched by this, and reported from it. */
extern const SCSIDiskCommand scsi_disk_commands[256];

/**
 * scsi_disk_cdb_ok:
 * @dev: the LUN
 * @cmd: any command
 * @sense: why not
 *
 * Does the device have this command, and does byte 1 of the CDB ask for nothing
 * that it can't do (protection information, for one)?
 *
 * Context: any thread.
 */
bool scsi_disk_cdb_ok(const SCSIDevice *dev, const SCSICommand *cmd,
                      SCSISense *sense);

/**
 * scsi_disk_maintenance_in:
 * @f: the facts
 * @cmd: a MAINTENANCE IN
 * @buf: SCSI_DISK_ANSWER_MAX bytes, all 0; the answer is written there
 *
 * REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35), from the table that
 * dispatches commands, and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (6.36).
 *
 * Context: any thread.
 * Returns: the length of the answer, or -1 if the CDB asks for something that
 * isn't there.
 */
int scsi_disk_maintenance_in(const SCSIDiskFacts *f, const SCSICommand *cmd,
                             uint8_t *buf);

/* A part of the medium */
typedef struct SCSIBlockRange {
    uint64_t lba;
    uint64_t blocks;
} SCSIBlockRange;

/**
 * scsi_disk_unmap_ranges:
 * @descriptors: UNMAP block descriptors (SBC-3, 5.28.2), which end by LBA 2^64
 * @num: how many
 * @ranges: @num of them; the result is written there
 *
 * In ascending order, with nothing empty, and one range of what touches or
 * overlaps: a node that frees clusters as a whole ignores parts of them.
 *
 * Context: any thread.
 * Returns: how many ranges there are.
 */
unsigned scsi_disk_unmap_ranges(const uint8_t *descriptors, unsigned num,
                                SCSIBlockRange *ranges);

/**
 * scsi_disk_unmap_ok:
 * @f: the facts
 * @cmd: an UNMAP
 * @descriptors: UNMAP block descriptors
 * @num: how many
 *
 * Context: any thread.
 * Returns: whether they keep to MAXIMUM UNMAP LBA COUNT and MAXIMUM UNMAP BLOCK
 * DESCRIPTOR COUNT of page B0h (SBC-3, 5.28.1).
 */
bool scsi_disk_unmap_ok(const SCSIDiskFacts *f, const SCSICommand *cmd,
                        const uint8_t *descriptors, unsigned num);

/**
 * scsi_disk_add_lba_status:
 * @buf: an answer to GET LBA STATUS, SCSI_DISK_ANSWER_MAX bytes; all 0 before
 *       the first call
 * @lba: behind what the last call has taken
 * @blocks: how many are alike, not 0
 * @deallocated: are these?  Otherwise they are mapped.
 *
 * Add that to the answer's last LBA status descriptor, or another descriptor
 * (SBC-3, 5.5.2.2; no two that one would do for).
 *
 * Context: any thread.
 * Returns: of how many blocks the answer tells now; 0 if there was no room.
 */
uint64_t scsi_disk_add_lba_status(uint8_t *buf, uint64_t lba, uint64_t blocks,
                                  bool deallocated);

#endif /* HW_SCSI_SCSI_DISK_PAGES_H */
