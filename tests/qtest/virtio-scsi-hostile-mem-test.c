/*
 * virtio-scsi drivers that put rings, buffers and interrupts where no RAM is
 *
 * IOThreads serve the virtqueues, and the main loop resets the device at the
 * same time.  What isn't RAM is reached with the BQL only; an IOThread that
 * waits for it, while the main loop waits for the IOThread, hangs QEMU.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qdict.h"
#include "hw/pci/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "virtio-scsi-data.h"

#define MMIO_SLOT   8
#define MMIO_ARGS   " -device '{\"driver\":\"edu\",\"id\":\"mmio\"," \
                    "\"addr\":\"8\"}'"
#define IOMMU_ARGS  " -machine q35 -device '{\"driver\":\"intel-iommu\"}'"
#define POLL_NS     (100 * 1000 * 1000)
#define NOWHERE     0x7000000000ull     /* no RAM, no device */

enum { ROUNDS = 20, REQUESTS = 6 /* on each queue */ };

/* Registers of intel-iommu */
#define VTD_BASE    0xfed90000
enum { VTD_GCMD = 0x18, VTD_RTADDR = 0x20, VTD_FECTL = 0x38, VTD_FEDATA = 0x3c,
       VTD_FEADDR = 0x40 };
#define VTD_GCMD_TE     (1u << 31)
#define VTD_GCMD_SRTP   (1u << 30)

/* The BAR of a device that has registers only */
static uint64_t map_mmio(void)
{
    QPCIDevice *dev = qpci_device_find(data_bus(), QPCI_DEVFN(MMIO_SLOT, 0));
    uint64_t addr;

    g_assert_nonnull(dev);
    qpci_device_enable(dev);
    addr = qpci_iomap(dev, 0, NULL).addr;
    g_free(dev);
    return addr;
}

static void expect_qmp(MqDev *d)
{
    qtest_qmp_assert_success(d->qts, "{'execute': 'query-status'}");
}

/* It all works as ever after a reset. */
static void start_again(MqDev *d, Arena *a, unsigned form)
{
    expect_qmp(d);
    mq_reset(d);
    data_start(d, form);
    data_framed_rw(d, a, &data_one_piece);
}

/* An IOThread that polls is at the rings all the time. */
static void set_polling(MqDev *d, int64_t ns)
{
    for (unsigned i = 0; i < 2; i++) {
        g_autofree char *path = g_strdup_printf("/objects/iot%u", i);

        qtest_qmp_assert_success(d->qts,
            "{'execute': 'qom-set', 'arguments': {'path': %s,"
            " 'property': 'poll-max-ns', 'value': %" PRId64 "}}", path, ns);
    }
}

static bool needs_reset(MqDev *d)
{
    return d->vdev->bus->get_status(d->vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

static void wait_needs_reset(MqDev *d)
{
    gint64 begun = 0;

    while (!needs_reset(d)) {
        mq_pause(&begun, "NEEDS_RESET");
    }
}

/*
 * Buffers
 */

/* One is answered; many are reset while the device works on them. */
static void use_buffers(const DataConfig *cfg, MqDev *d, uint64_t place)
{
    g_autofree Arena *a = arena_new(d);
    g_autofree Request *r = g_new(Request, 1);
    MqCmd cmd = mq_read10(LUN_FILE, 1, 1);
    struct virtio_scsi_cmd_resp resp;

    for (unsigned i = 0; i < NUM_QUEUES; i++) {
        arena_clear(a);
        data_prepare_far(r, a, &cmd, place);
        data_post(mq_queue(d, i), r);
        mq_flush(mq_queue(d, i));
        data_finish_far(r, &resp);
        mq_assert_good(&resp);
        start_again(d, a, cfg->form);
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        arena_clear(a);
        for (unsigned i = 0; i < NUM_QUEUES * REQUESTS; i++) {
            data_prepare_far(r, a, &cmd, place);
            data_post(mq_queue(d, i % NUM_QUEUES), r);
        }
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            mq_flush(mq_queue(d, i));
        }
        mq_reset(d);
        data_start(d, cfg->form);
    }
    start_again(d, a, cfg->form);
    data_end(d);
}

static void test_buffer_mmio(const void *opaque)
{
    const DataConfig *cfg = opaque;
    MqDev *d = data_begin(cfg);

    use_buffers(cfg, d, map_mmio());
}

static void test_buffer_nowhere(const void *opaque)
{
    const DataConfig *cfg = opaque;

    use_buffers(cfg, data_begin(cfg), NOWHERE);
}

/*
 * The configuration interrupt
 */

static void aim_config_vector(MqDev *d, uint64_t addr)
{
    QPCIDevice *pdev = d->pci->pdev;
    uint64_t entry = pdev->msix_table_off +
                     d->num_vqs * PCI_MSIX_ENTRY_SIZE;

    qvirtio_pci_set_msix_configuration_vector(d->pci, d->alloc, d->num_vqs);
    qpci_io_writel(pdev, pdev->msix_table_bar,
                   entry + PCI_MSIX_ENTRY_LOWER_ADDR, addr);
    qpci_io_writel(pdev, pdev->msix_table_bar,
                   entry + PCI_MSIX_ENTRY_UPPER_ADDR, addr >> 32);
}

/* All queues find an error at the same time; its interrupt goes to MMIO. */
static void test_error_interrupt(const void *opaque)
{
    const DataConfig *cfg = opaque;
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);
    uint64_t mmio = map_mmio();
    uint8_t head[4] = { };

    set_polling(d, POLL_NS);
    for (unsigned round = 0; round < 3 * ROUNDS; round++) {
        aim_config_vector(d, mmio);
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            mq_post_raw(mq_queue(d, i), head, sizeof(head), NULL, 0,
                        RESP_LEN, 0);
            mq_publish(mq_queue(d, i));
            mq_kick(mq_queue(d, i));
        }
        if (round % 4 == 0) {
            wait_needs_reset(d);
        }
        mq_reset(d);
        g_assert_false(needs_reset(d));
        data_start(d, cfg->form);
        g_assert_false(needs_reset(d));
    }
    start_again(d, a, cfg->form);
    data_end(d);
}

/*
 * Rings
 */

/* Request queue @i gets its rings at @addr. */
static void move_rings(MqDev *d, unsigned i, uint64_t addr)
{
    QVirtioPCIDevice *pci = d->pci;
    QVirtQueue vq = mq_queue(d, i)->pci.vq;

    vq.desc = addr;
    vq.avail = addr + 0x4000;
    vq.used = addr + 0x8000;
    d->vdev->bus->queue_select(d->vdev, vq.index);
    d->vdev->bus->set_queue_address(d->vdev, &vq);
    qpci_io_writew(pci->pdev, pci->bar, pci->common_cfg_offset +
                   offsetof(struct virtio_pci_common_cfg, queue_enable), 1);
}

static void test_rings_mmio(const void *opaque)
{
    const DataConfig *cfg = opaque;
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);
    uint64_t mmio = map_mmio();

    set_polling(d, POLL_NS);
    for (unsigned round = 0; round < ROUNDS; round++) {
        mq_reset(d);
        mq_setup(d, cfg->form, BLOCK);
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            move_rings(d, i, mmio + i * 0x10000);
        }
        mq_driver_ok(d);
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            mq_kick(mq_queue(d, i));
        }
        if (round % 4 == 0) {
            expect_qmp(d);
        }
    }
    start_again(d, a, cfg->form);
    data_end(d);
}

/*
 * An IOMMU that is switched on while IOThreads poll rings that then are gone
 */

static void set_translation(MqDev *d, bool on)
{
    /* A fault raises an NMI; any other interrupt is off in this APIC. */
    qtest_writel(d->qts, VTD_BASE + VTD_FEDATA, 0x400);
    qtest_writel(d->qts, VTD_BASE + VTD_FEADDR, 0xfee00000);
    qtest_writel(d->qts, VTD_BASE + VTD_FECTL, 0);
    qtest_writeq(d->qts, VTD_BASE + VTD_RTADDR, 0x1000); /* all zero */
    qtest_writel(d->qts, VTD_BASE + VTD_GCMD, VTD_GCMD_SRTP);
    qtest_writel(d->qts, VTD_BASE + VTD_GCMD, on ? VTD_GCMD_TE : 0);
}

static void test_iommu(const void *opaque)
{
    const DataConfig *cfg = opaque;
    MqDev *d = data_begin(cfg);
    g_autofree Arena *a = arena_new(d);

    qtest_memset(d->qts, 0x1000, 0, 0x1000);
    set_polling(d, POLL_NS);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < NUM_QUEUES; i++) {
            mq_clear_ua(mq_queue(d, i), 0, LUN_FILE);
        }
        set_translation(d, true);
        if (round % 2) {
            for (unsigned i = 0; i < NUM_QUEUES; i++) {
                mq_kick(mq_queue(d, i));
            }
        }
        expect_qmp(d);
        set_translation(d, false);
        mq_reset(d);
        data_start(d, cfg->form);
    }
    start_again(d, a, cfg->form);
    data_end(d);
}

#define MODERN ",\"disable-legacy\":\"on\""

static const struct {
    const char *name;
    void (*fn)(const void *opaque);
    DataConfig cfg;
} hostile_tests[] = {
    { "buffer-mmio", test_buffer_mmio,
      { 2, MQ_SPLIT, "edu", MMIO_ARGS, MODERN } },
    { "buffer-nowhere", test_buffer_nowhere,
      { 2, MQ_SPLIT | MQ_EVENT_IDX, "edu", MMIO_ARGS, MODERN } },
    { "error-interrupt", test_error_interrupt,
      { 2, MQ_SPLIT | MQ_MSIX, "edu", MMIO_ARGS, MODERN } },
    { "rings-mmio", test_rings_mmio,
      { 2, MQ_SPLIT, "edu", MMIO_ARGS, MODERN } },
    { "iommu", test_iommu,
      { 2, MQ_SPLIT, "intel-iommu", IOMMU_ARGS,
        MODERN ",\"iommu_platform\":true",
        .more_features = 1ull << VIRTIO_F_ACCESS_PLATFORM } },
};

int main(int argc, char **argv)
{
    const char *arch = qtest_get_arch();

    g_test_init(&argc, &argv, NULL);
    if (!g_str_equal(arch, "x86_64")) {
        return 0;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(hostile_tests); i++) {
        const DataConfig *cfg = &hostile_tests[i].cfg;
        g_autofree char *path =
            g_strdup_printf("virtio-scsi-mq/hostile-mem/%s",
                            hostile_tests[i].name);

        if (qtest_has_device(cfg->needs)) {
            qtest_add_data_func(path, cfg, hostile_tests[i].fn);
        }
    }
    return g_test_run();
}
