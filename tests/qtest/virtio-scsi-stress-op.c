/*
 * Stress of a virtio-scsi device: what LUNs hold, and the kinds of commands
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "scsi/constants.h"
#include "virtio-scsi-stress.h"

void load_fail(const Op *op, const char *fmt, ...)
{
    va_list ap;

    g_printerr("%s of LUN %s, queue %u, tag 0x%" PRIx64 ", blocks %u+%u: ",
               op->kind->name, op->lun->spec->name,
               op->slot->q->pci.vq.index - 2, op->tag, op->lba, op->blocks);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    g_printerr("\n");
    g_assert_not_reached();
}

/*
 * Blocks
 */

/*
 * Each 8 bytes of a block follow from the number that stands for its contents:
 * LUN, LBA and a generation.
 */
static uint64_t new_content(Stress *s, const Lun *lun, uint32_t lba)
{
    return (uint64_t)(lun->index + 1) << 56 | (uint64_t)lba << 32 |
           ++s->next_content;
}

static uint64_t block_word(uint64_t content, unsigned i)
{
    return content ? (content + i) * 0x9e3779b97f4a7c15ull : 0;
}

static void fill_block(uint8_t *buf, uint64_t content)
{
    for (unsigned i = 0; i < BLOCK_SIZE / 8; i++) {
        stq_le_p(buf + 8 * i, block_word(content, i));
    }
    if (content) {
        stq_le_p(buf, content);     /* for whoever has to look at it */
    }
}

static bool block_holds(const uint8_t *buf, uint64_t content)
{
    if (ldq_le_p(buf) != content) {
        return false;
    }
    for (unsigned i = 1; i < BLOCK_SIZE / 8; i++) {
        if (ldq_le_p(buf + 8 * i) != block_word(content, i)) {
            return false;
        }
    }
    return true;
}

static Block *op_block(const Op *op, unsigned i)
{
    return &op->lun->blocks[op->lba + i];
}

/* May a command use these blocks next to those in flight? */
static bool blocks_free(const Lun *lun, uint32_t lba, unsigned n, bool write)
{
    for (unsigned i = 0; i < n; i++) {
        const Block *b = &lun->blocks[lba + i];

        if (b->writing || (write && (b->readers || b->unsettled))) {
            return false;
        }
    }
    return true;
}

void blocks_take(Op *op)
{
    for (unsigned i = 0; i < op->blocks; i++) {
        if (op->writes) {
            op_block(op, i)->writing = true;
        } else {
            op_block(op, i)->readers++;
        }
    }
}

/* A write or UNMAP that is over: what does the block hold now? */
static void block_written(const Op *op, unsigned i, Fate fate)
{
    Block *b = op_block(op, i);

    b->writing = false;
    if (fate == FATE_UNDONE) {
        return;
    }
    if (op->kind == &op_unmap) {
        b->loose = true;
    } else if (fate == FATE_DONE) {
        b->is = op->content[i];
        b->loose = false;
    } else {
        b->maybe = op->content[i];
        b->unsettled = true;
    }
}

void blocks_release(Op *op, Fate fate)
{
    if (!op->lun->blocks) {
        return;
    }
    for (unsigned i = 0; i < op->blocks; i++) {
        if (op->writes) {
            block_written(op, i, fate);
        } else {
            op_block(op, i)->readers--;
        }
    }
}

static const Block zero_block;

static bool block_may_hold(const Block *b, const uint8_t *buf)
{
    return block_holds(buf, b->is) || (b->loose && block_holds(buf, 0)) ||
           (b->unsettled && block_holds(buf, b->maybe));
}

/* An unsettled block has been read. */
static void block_settle(Block *b, const uint8_t *buf)
{
    b->unsettled = false;
    if (!block_holds(buf, b->is) && !(b->loose && block_holds(buf, 0))) {
        b->is = b->maybe;
        b->loose = false;
    }
}

static void check_block(Op *op, unsigned i, const uint8_t *buf)
{
    const Block *b = op->lun->blocks ? op_block(op, i) : &zero_block;

    if (!block_may_hold(b, buf)) {
        load_fail(op, "block %u is wrong: begins with %016" PRIx64 " %016"
                  PRIx64 ", should be %016" PRIx64 "%s%s", op->lba + i,
                  ldq_le_p(buf), ldq_le_p(buf + 8), b->is,
                  b->loose ? " or zero" : "",
                  b->unsettled ? " or what was not settled" : "");
    }
    if (b->unsettled) {
        block_settle(op_block(op, i), buf);
    }
}

/* Compare an image that QEMU has written, and closed, with @content. */
void load_check_image(Lun *lun, const char *file, const uint64_t *content)
{
    g_autofree char *data = NULL;
    size_t len = 0;

    g_assert_true(g_file_get_contents(file, &data, &len, NULL));
    g_assert_cmpuint(len, >=, DISK_BLOCKS * BLOCK_SIZE);
    for (unsigned i = 0; i < DISK_BLOCKS; i++) {
        if (content[i] != CONTENT_UNKNOWN &&
            !block_holds((uint8_t *)data + i * BLOCK_SIZE, content[i])) {
            g_printerr("image %s of LUN %s: block %u is wrong\n", file,
                       lun->spec->name, i);
            g_assert_not_reached();
        }
    }
}

/*
 * Commands: data
 */

static bool pick_blocks(Stress *s, Op *op, bool write)
{
    Lun *lun = op->lun;

    op->writes = write;
    if (op->blocks) {
        return !lun->blocks || blocks_free(lun, op->lba, op->blocks, write);
    }
    for (unsigned tries = 0; tries < 4; tries++) {
        uint32_t lba = stress_below(s, DISK_BLOCKS - MAX_BLOCKS);
        unsigned n = 1 + stress_below(s, MAX_BLOCKS);

        if (!lun->blocks || blocks_free(lun, lba, n, write)) {
            op->lba = lba;
            op->blocks = n;
            return true;
        }
    }
    return false;
}

/* The same in a 6, 10, 12 or 16 byte CDB; @opcode is that of 6 bytes. */
static void put_rw_cdb(Stress *s, Op *op, uint8_t opcode)
{
    switch (stress_below(s, 4)) {
    case 0:
        stl_be_p(op->cdb, op->lba);
        op->cdb[0] = opcode;
        op->cdb[4] = op->blocks;
        break;
    case 1:
        op->cdb[0] = opcode | 0x20;
        stl_be_p(op->cdb + 2, op->lba);
        stw_be_p(op->cdb + 7, op->blocks);
        break;
    case 2:
        op->cdb[0] = opcode | 0xa0;
        stl_be_p(op->cdb + 2, op->lba);
        stl_be_p(op->cdb + 6, op->blocks);
        break;
    case 3:
        op->cdb[0] = opcode | 0x80;
        stq_be_p(op->cdb + 2, op->lba);
        stl_be_p(op->cdb + 10, op->blocks);
        break;
    }
}

static bool build_read(Stress *s, Op *op)
{
    if (!pick_blocks(s, op, false)) {
        return false;
    }
    put_rw_cdb(s, op, READ_6);
    op->in_len = op->blocks * BLOCK_SIZE;
    return true;
}

static bool build_write(Stress *s, Op *op)
{
    if (!pick_blocks(s, op, true)) {
        return false;
    }
    put_rw_cdb(s, op, WRITE_6);
    op->out_len = op->blocks * BLOCK_SIZE;
    for (unsigned i = 0; i < op->blocks; i++) {
        op->content[i] = new_content(s, op->lun, op->lba + i);
        fill_block(op->slot->data + i * BLOCK_SIZE, op->content[i]);
    }
    return true;
}

static bool build_write_same(Stress *s, Op *op)
{
    uint64_t content = 0;

    if (!pick_blocks(s, op, true)) {
        return false;
    }
    if (stress_below(s, 2)) {
        content = new_content(s, op->lun, op->lba);
    }
    op->cdb[0] = WRITE_SAME_16;
    stq_be_p(op->cdb + 2, op->lba);
    stl_be_p(op->cdb + 10, op->blocks);
    op->out_len = BLOCK_SIZE;
    fill_block(op->slot->data, content);
    for (unsigned i = 0; i < op->blocks; i++) {
        op->content[i] = content;
    }
    return true;
}

static bool build_unmap(Stress *s, Op *op)
{
    uint8_t *list = op->slot->data;

    if (!pick_blocks(s, op, true)) {
        return false;
    }
    op->cdb[0] = UNMAP;
    op->out_len = 24;
    stw_be_p(op->cdb + 7, op->out_len);
    memset(list, 0, op->out_len);
    stw_be_p(list, op->out_len - 2);
    stw_be_p(list + 2, 16);
    stq_be_p(list + 8, op->lba);
    stl_be_p(list + 16, op->blocks);
    return true;
}

static bool build_verify(Stress *s, Op *op)
{
    if (!pick_blocks(s, op, false)) {
        return false;
    }
    op->cdb[0] = VERIFY_10;
    stl_be_p(op->cdb + 2, op->lba);
    stw_be_p(op->cdb + 7, op->blocks);
    return true;
}

static bool blocks_hold(const Op *op, const uint8_t *data)
{
    for (unsigned i = 0; i < op->blocks; i++) {
        const Block *b = op->lun->blocks ? op_block(op, i) : &zero_block;

        if (!block_may_hold(b, data + i * BLOCK_SIZE)) {
            return false;
        }
    }
    return true;
}

/* Where the data begin depends on the sense_size that the device has read. */
static const uint8_t *find_data(Op *op)
{
    const uint8_t *resp = shm_resp(op->slot, SHM_RESP_FIXED + op->sense_size);
    const uint8_t *found = NULL;

    for (unsigned i = 0; i < NUM_SIZES; i++) {
        const uint8_t *at = resp + SHM_RESP_FIXED + sense_sizes[i];

        if (!blocks_hold(op, at)) {
            continue;
        }
        if (op->sense_live & (1 << i)) {
            return at;
        }
        found = at;
    }
    if (found) {
        load_fail(op, "data are where an old sense_size puts them, %td; the "
                  "driver has known %u", found - resp - SHM_RESP_FIXED,
                  op->sense_size);
    }
    return op->slot->data;
}

/*
 * All data have been transferred, and the used length is that of what the
 * device has written.  Stock counts data to the device there, too, and as
 * residual once more what it transfers again when a command is retried.
 */
static void check_lengths(Stress *s, Op *op)
{
    const struct virtio_scsi_cmd_resp *resp =
        (void *)shm_resp(op->slot, SHM_RESP_FIXED + op->sense_size);
    uint32_t resid = ldl_le_p(&resp->resid);
    uint32_t used = op->slot->used_len;

    if (used != SHM_RESP_FIXED + op->sense_size + op->in_len &&
        !(stress_on_stock() && op->writes)) {
        load_fail(op, "used length %u", used);
    }
    if (resid && !(stress_on_stock() && op->lun->spec->kind & LUN_STOPS)) {
        load_fail(op, "residual %u", resid);
    }
}

static void check_read(Stress *s, Op *op)
{
    const uint8_t *data = op->slot->data;

    if (s->sizes_vary) {
        data = find_data(op);
        /*
         * Stock looks for the data behind the first buffer, but for the end of
         * the response where sense_size says, so one destroys the other.
         */
        if (stress_on_stock()) {
            return;
        }
    } else {
        check_lengths(s, op);
    }
    for (unsigned i = 0; i < op->blocks; i++) {
        check_block(op, i, data + i * BLOCK_SIZE);
    }
    s->count[COUNT_BLOCKS_READ] += op->blocks;
}

static void check_write(Stress *s, Op *op)
{
    check_lengths(s, op);
    s->count[COUNT_BLOCKS_WRITTEN] += op->blocks;
}

/*
 * Commands: information
 */

static bool build_test_unit_ready(Stress *s, Op *op)
{
    op->cdb[0] = TEST_UNIT_READY;
    return true;
}

/* Was the LUN there all the time?  Then it has to answer for itself. */
bool lun_was_there(const Op *op)
{
    return op->lun->present && !op->lun->going && op->epoch == op->lun->epoch;
}

bool lun_was_away(const Op *op)
{
    return !op->lun->present && !op->lun->going &&
           op->epoch == op->lun->epoch;
}

static bool build_inquiry(Stress *s, Op *op)
{
    op->cdb[0] = INQUIRY;
    op->cdb[4] = op->in_len = 36;
    return true;
}

static void check_inquiry(Stress *s, Op *op)
{
    const uint8_t *data = op->slot->data;

    if (lun_was_there(op) && !s->sizes_vary &&
        (data[0] != TYPE_DISK || memcmp(data + 8, "QEMU    ", 8))) {
        load_fail(op, "peripheral %02x, vendor '%.8s'", data[0], data + 8);
    }
}

static bool build_mode_sense(Stress *s, Op *op)
{
    op->cdb[0] = MODE_SENSE;
    op->cdb[2] = 0x08;      /* caching page */
    op->cdb[4] = op->in_len = 128;
    return true;
}

static void check_mode_sense(Stress *s, Op *op)
{
    const uint8_t *data = op->slot->data;

    /* Length, and block descriptor of 8 bytes before the page */
    if (!s->sizes_vary && (data[0] < 12 + 18 - 1 || data[3] != 8 ||
                           (data[12] & 0x3f) != 0x08)) {
        load_fail(op, "no caching page: %02x %02x %02x", data[0], data[3],
                  data[12]);
    }
}

static bool build_read_capacity(Stress *s, Op *op)
{
    op->cdb[0] = READ_CAPACITY_10;
    op->in_len = 8;
    return true;
}

static void check_read_capacity(Stress *s, Op *op)
{
    const uint8_t *data = op->slot->data;

    if (op->lun->spec->kind & LUN_RESIZE || s->sizes_vary) {
        return;
    }
    if (ldl_be_p(data) != op->lun->capacity - 1 ||
        ldl_be_p(data + 4) != BLOCK_SIZE) {
        load_fail(op, "last LBA %u, block size %u", ldl_be_p(data),
                  ldl_be_p(data + 4));
    }
}

static bool build_report_luns(Stress *s, Op *op)
{
    op->cdb[0] = REPORT_LUNS;
    op->in_len = 256;
    stl_be_p(op->cdb + 6, op->in_len);
    return true;
}

static bool target_has_lun(Stress *s, unsigned target, unsigned lun)
{
    for (unsigned i = 0; i < s->num_luns; i++) {
        if (s->luns[i].spec->target == target &&
            s->luns[i].spec->lun == lun) {
            return true;
        }
    }
    return lun == 0;    /* always reported, whether it is there or not */
}

static void check_report_luns(Stress *s, Op *op)
{
    const uint8_t *data = op->slot->data;
    uint32_t len = ldl_be_p(data);

    if (s->sizes_vary) {
        return;
    }
    if (!len || len % 8 || len > 8 * s->num_luns + 8) {
        load_fail(op, "LUN list of %u bytes", len);
    }
    for (unsigned at = 8; at < 8 + len; at += 8) {
        if (!target_has_lun(s, op->lun->spec->target, data[at + 1])) {
            load_fail(op, "there is no LUN %u", data[at + 1]);
        }
    }
}

static bool build_request_sense(Stress *s, Op *op)
{
    op->cdb[0] = REQUEST_SENSE;
    op->cdb[4] = op->in_len = 18;
    return true;
}

static void check_request_sense(Stress *s, Op *op)
{
    const uint8_t *data = op->slot->data;

    if (!s->sizes_vary && (data[0] & 0x7f) != 0x70) {
        load_fail(op, "no fixed format sense data: %02x", data[0]);
    }
}

static bool build_sync_cache(Stress *s, Op *op)
{
    op->cdb[0] = SYNCHRONIZE_CACHE;
    return true;
}

/*
 * Commands: errors
 */

static bool build_bad_opcode(Stress *s, Op *op)
{
    op->cdb[0] = 0xc0 + stress_below(s, 32);    /* vendor specific */
    return true;
}

static bool build_bad_lba(Stress *s, Op *op)
{
    op->cdb[0] = READ_10;
    stl_be_p(op->cdb + 2, op->lun->capacity * 4 + stress_below(s, 1000));
    stw_be_p(op->cdb + 7, 1);
    op->in_len = BLOCK_SIZE;
    return true;
}

static bool build_bad_page(Stress *s, Op *op)
{
    op->cdb[0] = MODE_SENSE;
    op->cdb[2] = 0x3e;      /* no such page */
    op->cdb[4] = op->in_len = 64;
    return true;
}

static bool build_read_error(Stress *s, Op *op)
{
    if (!(op->lun->spec->kind & LUN_ERRORS)) {
        return false;
    }
    op->lba = DISK_BLOCKS + stress_below(s, SPECIAL_BLOCKS);
    op->cdb[0] = READ_10;
    stl_be_p(op->cdb + 2, op->lba);
    stw_be_p(op->cdb + 7, 1);
    op->in_len = BLOCK_SIZE;
    return true;
}

const OpKind op_read = {
    "READ", CLASS_READ, 40, build_read, check_read
};
const OpKind op_write = {
    "WRITE", CLASS_WRITE, 40, build_write, check_write
};
const OpKind op_test_unit_ready = {
    "TEST UNIT READY", CLASS_INFO, 4, build_test_unit_ready
};

static const OpKind op_write_same = {
    "WRITE SAME", CLASS_ZERO, 4, build_write_same, check_write
};
const OpKind op_unmap = {
    "UNMAP", CLASS_ZERO, 4, build_unmap
};
static const OpKind op_verify = {
    "VERIFY", CLASS_READ, 2, build_verify
};
static const OpKind op_inquiry = {
    "INQUIRY", CLASS_INFO, 4, build_inquiry, check_inquiry, .any_lun = true
};
static const OpKind op_mode_sense = {
    "MODE SENSE", CLASS_INFO, 4, build_mode_sense, check_mode_sense
};
static const OpKind op_read_capacity = {
    "READ CAPACITY", CLASS_INFO, 4, build_read_capacity, check_read_capacity
};
const OpKind op_report_luns = {
    "REPORT LUNS", CLASS_INFO, 2, build_report_luns, check_report_luns,
    .any_lun = true
};
static const OpKind op_request_sense = {
    "REQUEST SENSE", CLASS_INFO, 4, build_request_sense, check_request_sense,
    .any_lun = true
};
static const OpKind op_sync_cache = {
    "SYNCHRONIZE CACHE", CLASS_WRITE, 1, build_sync_cache
};
static const OpKind op_bad_opcode = {
    "unknown command", CLASS_ERROR, 4, build_bad_opcode, NULL,
    ILLEGAL_REQUEST, 0x20, 0x00
};
static const OpKind op_bad_lba = {
    "READ past the end", CLASS_ERROR, 4, build_bad_lba, NULL,
    ILLEGAL_REQUEST, 0x21, 0x00
};
static const OpKind op_bad_page = {
    "MODE SENSE without a page", CLASS_ERROR, 4, build_bad_page, NULL,
    ILLEGAL_REQUEST, 0x24, 0x00
};
static const OpKind op_read_error = {
    "READ with an I/O error", CLASS_ERROR, 20, build_read_error, NULL,
    ABORTED_COMMAND, 0x00, 0x06
};

const OpKind *const op_kinds[NUM_OP_KINDS] = {
    &op_read, &op_write, &op_test_unit_ready, &op_write_same, &op_unmap,
    &op_verify, &op_inquiry, &op_mode_sense, &op_read_capacity,
    &op_report_luns, &op_request_sense, &op_sync_cache, &op_bad_opcode,
    &op_bad_lba, &op_bad_page, &op_read_error,
};
