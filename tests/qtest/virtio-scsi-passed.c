/*
 * virtio-scsi: what a disk that is passed through hears and tells
 *
 * One disk as scsi-block and as scsi-generic.
 *
 * This needs a real device, so it is no test of the suite: virtio_scsi_nested
 * runs it in a guest, and looks at what the disk has heard.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "scsi/constants.h"
#include "virtio-scsi-lun.h"

enum { LUN_PASSED_BLOCK, LUN_PASSED_GENERIC, NUM_LUNS };

/* Which scsi_debug logs, and nobody else sends */
#define GROUP_12    0x0b
#define GROUP_16    0x15

static const char *paths[NUM_LUNS];

static MqDev *begin(void)
{
    static const char *const drivers[] = { "scsi-block", "scsi-generic" };
    GString *args = g_string_new("-machine pc -m 256M -nodefaults"
        " -object iothread,id=iot0"
        " -device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"vs\","
        "\"addr\":\"9\",\"num_queues\":2,\"virtqueue_size\":32,"
        "\"iothread-vq-mapping\":[{\"iothread\":\"iot0\"}]}'");

    /* lun_end() closes it */
    lun_hd_fd = -1;
    for (unsigned i = 0; i < NUM_LUNS; i++) {
        g_string_append_printf(args, " -blockdev '{\"driver\":\"host_device\","
                               "\"node-name\":\"disk%u\",\"filename\":\"%s\","
                               "\"cache\":{\"direct\":%s}}' -device "
                               "'{\"driver\":\"%s\",\"bus\":\"vs.0\","
                               "\"scsi-id\":0,\"lun\":%u,\"drive\":\"disk%u\"}'",
                               i, paths[i],
                               i == LUN_PASSED_BLOCK ? "true" : "false",
                               drivers[i], i, i);
    }
    return lun_begin_with(NULL, g_string_free(args, false));
}

/* GROUP NUMBER stands before the last byte of CDBs of 12 and 16 bytes. */
static void test_group(void)
{
    MqDev *d = begin();

    for (unsigned lun = 0; lun < NUM_LUNS; lun++) {
        MqCmd read_12 = mq_cmd(lun, READ_12), read_16 = mq_cmd(lun, READ_16);
        static MqAnswer a;

        read_12.cdb[9] = read_16.cdb[13] = 1;
        read_12.cdb[10] = GROUP_12;
        read_16.cdb[14] = GROUP_16;
        read_12.in_len = read_16.in_len = LUN_BLOCK;
        lun_run(d, &read_12, &a);
        mq_expect_moved(&read_12, &a, LUN_BLOCK);
        lun_run(d, &read_16, &a);
        mq_expect_moved(&read_16, &a, LUN_BLOCK);
    }
    lun_end(d);
}

/* What is atomic is sent at once, and in whole units of the granularity. */
static void test_atomic(void)
{
    MqDev *d = begin();

    for (unsigned lun = 0; lun < NUM_LUNS; lun++) {
        static MqAnswer a;
        uint32_t max, granularity;

        g_assert_cmpuint(lun_vpd_page(d, lun, 0xb0, &a), >=, 60);
        max = ldl_be_p(a.in + 8);
        granularity = ldl_be_p(a.in + 52);
        g_assert_cmpuint(max, >, granularity);
        g_assert_cmpuint(max % granularity, !=, 0);
        g_assert_cmpuint(ldl_be_p(a.in + 44), ==, max - max % granularity);
        g_assert_cmpuint(ldl_be_p(a.in + 56), ==, max - max % granularity);
    }
    lun_end(d);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    paths[LUN_PASSED_BLOCK] = g_getenv("QTEST_PASSED_BLOCK");
    paths[LUN_PASSED_GENERIC] = g_getenv("QTEST_PASSED_GENERIC");
    if (!paths[LUN_PASSED_BLOCK] || !paths[LUN_PASSED_GENERIC]) {
        g_printerr("virtio-scsi-passed: QTEST_PASSED_BLOCK must be a disk, "
                   "QTEST_PASSED_GENERIC the /dev/sg of it\n");
        return 1;
    }
    g_test_add_func("/passed/group", test_group);
    g_test_add_func("/passed/atomic", test_atomic);
    return g_test_run();
}
