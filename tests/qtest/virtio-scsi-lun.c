/*
 * A disk and a cd on a mapped controller, whose answers a test looks at
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/host-utils.h"
#include "qemu/units.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "scsi/constants.h"
#include "virtio-scsi-lun.h"

#define CTRL_SLOT   9
#define NUM_QUEUES  2

static QGuestAllocator vm_alloc;
static QPCIBus *vm_bus;
int lun_hd_fd;

/* All JSON: plain -device options would be created before JSON ones. */
char *lun_vm_args_of(const char *nodes, const char *hd_props,
                     const char *cd_props)
{
    return g_strdup_printf("-machine pc"
        " -object '{\"qom-type\":\"iothread\",\"id\":\"iot0\"}'"
        " -object '{\"qom-type\":\"iothread\",\"id\":\"iot1\"}' %s"
        " -blockdev '{\"driver\":\"null-co\",\"node-name\":\"dvd\","
        "\"read-only\":true,\"read-zeroes\":true,\"size\":%" PRIu64 "}'"
        " -device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"vs\","
        "\"addr\":\"%u\",\"num_queues\":%u,\"virtqueue_size\":16,"
        "\"iothread-vq-mapping\":"
        "[{\"iothread\":\"iot0\"},{\"iothread\":\"iot1\"}]}'"
        " -device '{\"driver\":\"scsi-hd\",\"id\":\"hd\",\"drive\":\"disk\","
        "\"bus\":\"vs.0\",\"channel\":0,\"scsi-id\":0,\"lun\":%u%s}'"
        " -device '{\"driver\":\"scsi-cd\",\"id\":\"cd\",\"drive\":\"dvd\","
        "\"bus\":\"vs.0\",\"channel\":0,\"scsi-id\":0,\"lun\":%u%s}'",
        nodes, (uint64_t)GiB, CTRL_SLOT, NUM_QUEUES, LUN_HD, hd_props, LUN_CD,
        cd_props);
}

char *lun_vm_args(const char *hd_path, const char *hd_node,
                  const char *hd_props, const char *cd_props)
{
    g_autofree char *node = g_strdup_printf("-blockdev '{"
        "\"node-name\":\"disk\",%s{\"driver\":\"file\","
        "\"locking\":\"off\",\"filename\":\"%s\"}}'", hd_node, hd_path);

    return lun_vm_args_of(node, hd_props, cd_props);
}

char *lun_make_image(void)
{
    g_autofree uint8_t *image = g_malloc(LUN_BYTES);
    char *path = mq_open_unnamed(&lun_hd_fd);

    mq_fill_pattern(image, 0, LUN_BLOCKS, 0);
    g_assert_cmpint(pwrite(lun_hd_fd, image, LUN_BYTES, 0), ==, LUN_BYTES);
    return path;
}

MqDev *lun_begin_with(const char *qemu, char *args)
{
    QTestState *qts = qtest_init_with_env(qemu, args, true);
    MqDev *d;

    g_free(args);
    pc_alloc_init(&vm_alloc, qts, ALLOC_NO_FLAGS);
    vm_bus = qpci_new_pc(qts, &vm_alloc);
    d = mq_open(vm_bus, &vm_alloc, CTRL_SLOT);
    mq_start(d, MQ_SPLIT, LUN_DATA_MAX);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_HD);
    mq_clear_ua(mq_queue(d, 0), 0, LUN_CD);
    return d;
}

MqDev *lun_begin_on(const char *qemu, const char *hd_props,
                    const char *cd_props)
{
    g_autofree char *path = lun_make_image();

    return lun_begin_with(qemu, lun_vm_args(path, RAW, hd_props, cd_props));
}

MqDev *lun_begin(const char *hd_props, const char *cd_props)
{
    return lun_begin_on(NULL, hd_props, cd_props);
}

void lun_end(MqDev *d)
{
    QTestState *qts = d->qts;

    mq_reset(d);
    mq_close(d);
    qpci_free_pc(vm_bus);
    alloc_destroy(&vm_alloc);
    qtest_quit(qts);
    close(lun_hd_fd);
}

void lun_run(MqDev *d, const MqCmd *cmd, MqAnswer *a)
{
    static unsigned n;

    mq_run(mq_queue(d, n++ % NUM_QUEUES), cmd, &a->resp, a->in);
}

void lun_expect_huge(MqDev *d, uint64_t blocks)
{
    MqCmd cmd = mq_cmd(LUN_HD, READ_CAPACITY_10);
    static MqAnswer a;

    cmd.in_len = 8;
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 8);
    g_assert_cmphex(lun_field(a.in, 4), ==, UINT32_MAX);

    cmd = mq_cmd(LUN_HD, SERVICE_ACTION_IN_16);
    cmd.cdb[1] = SAI_READ_CAPACITY_16;
    cmd.cdb[13] = cmd.in_len = 32;
    lun_run(d, &cmd, &a);
    mq_expect_moved(&cmd, &a, 32);
    g_assert_cmpuint(ldq_be_p(a.in), ==, blocks - 1);
}

void lun_expect_refusal(MqDev *d, const MqCmd *cmd, uint16_t asc)
{
    static MqAnswer a;

    lun_run(d, cmd, &a);
    mq_expect_sense(cmd, &a, ILLEGAL_REQUEST, asc);
    g_assert_cmpuint(le32_to_cpu(a.resp.resid), ==,
                     MAX(cmd->in_len, cmd->out_len));
}

uint32_t lun_field(const uint8_t *at, unsigned n)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < n; i++) {
        value = value << 8 | at[i];
    }
    return value;
}

void lun_set_field(uint8_t *at, unsigned n, uint32_t value)
{
    for (unsigned i = 0; i < n; i++) {
        at[i] = value >> 8 * (n - 1 - i);
    }
}

size_t lun_vpd_page(MqDev *d, uint16_t lun, uint8_t page, MqAnswer *a)
{
    MqCmd cmd = mq_cmd(lun, INQUIRY);

    cmd.cdb[1] = 1;
    cmd.cdb[2] = page;
    cmd.cdb[3] = 2;
    cmd.in_len = 512;
    lun_run(d, &cmd, a);
    mq_expect_moved(&cmd, a, 4 + lun_field(a->in + 2, 2));
    return lun_field(a->in + 2, 2);
}

char *lun_make_qcow2_with(unsigned cluster, uint64_t bytes)
{
    uint32_t l1_entries = DIV_ROUND_UP(bytes, (uint64_t)cluster * cluster / 8);
    unsigned clusters = 3 + DIV_ROUND_UP(l1_entries * 8, cluster);
    g_autofree uint8_t *image = g_malloc0(clusters * cluster);
    char *path = mq_open_unnamed(&lun_hd_fd);

    g_assert_cmpuint(clusters, <=, cluster / 2);
    memcpy(image, "QFI\xfb", 4);
    stl_be_p(image + 4, 2);                     /* version */
    stl_be_p(image + 20, ctz32(cluster));       /* cluster bits */
    stq_be_p(image + 24, bytes);
    stl_be_p(image + 36, l1_entries);
    stq_be_p(image + 40, 3 * cluster);          /* L1 table */
    stq_be_p(image + 48, cluster);              /* refcount table */
    stl_be_p(image + 56, 1);                    /* its clusters */
    stq_be_p(image + cluster, 2 * cluster);
    for (unsigned i = 0; i < clusters; i++) {
        stw_be_p(image + 2 * cluster + 2 * i, 1);
    }
    g_assert_cmpint(pwrite(lun_hd_fd, image, clusters * cluster, 0), ==,
                    clusters * cluster);
    return path;
}

char *lun_make_qcow2(void)
{
    return lun_make_qcow2_with(LUN_CLUSTER, LUN_BYTES);
}

int lun_test_main(int argc, char **argv, const LunTest *tests, size_t num)
{
    const char *arch = qtest_get_arch();

    g_test_init(&argc, &argv, NULL);
    if (!g_str_equal(arch, "x86_64") && !g_str_equal(arch, "i386")) {
        /* The driver is little-endian, and so is what it knows of a PC. */
        return 0;
    }
    for (size_t i = 0; i < num; i++) {
        g_autofree char *path =
            g_strdup_printf("virtio-scsi-mq/%s", tests[i].name);

        qtest_add_func(path, tests[i].func);
    }
    return g_test_run();
}
