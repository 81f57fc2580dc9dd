/*
 * Fuzzing of a mapped virtio-scsi controller: sequences, and migration streams
 *
 * virtio-scsi-seq-fuzz takes acts of a guest and of its host from the input,
 * one after the other: commands in several rings, TMFs, registers, resets, LUNs
 * that come and go, drains, block jobs, stop and cont.  After each it waits for
 * both IOThreads, so that an input does the same when it is run again.
 *
 * virtio-scsi-stream-fuzz lets a controller stop with commands in flight, saves
 * it, changes the stream as the input says, and loads that.
 *
 * The driver is as small as can be: the device is at known addresses, rings and
 * buffers, too, and nobody looks at the answers.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "block/block.h"
#include "hw/qdev-core.h"
#include "io/channel-buffer.h"
#include "migration/qemu-file.h"
#include "migration/vmstate.h"
#include "monitor/monitor-internal.h"
#include "qapi/error.h"
#include "qapi/qmp-registry.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qobject.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "standard-headers/linux/virtio_ring.h"
#include "standard-headers/linux/virtio_scsi.h"
#include "system/runstate.h"
#include "tests/qtest/libqtest.h"
#include "fuzz.h"

#define PCI_SLOT        4
#define BAR             0xe0000000u
#define BAR_DEVICE      (BAR + 0x2000)
#define BAR_NOTIFY      (BAR + 0x3000)
#define NUM_VQS         6               /* control, event, four of requests */
#define RING_SIZE       16
#define RINGS           0x100000u       /* NUM_VQS times RING_STEP */
#define RING_STEP       0x4000u
#define BUFFERS         0x200000u       /* NUM_BUFFERS times BUFFER_STEP */
#define BUFFER_STEP     0x4000u
#define NUM_BUFFERS     64
#define MAX_ACTS        200
#define PCI_STATE       0x140           /* of it in the controller's stream */

#define DEVICES \
    "-object iothread,id=io0 -object iothread,id=io1 " \
    "-device '{\"driver\":\"virtio-scsi-pci\",\"id\":\"scsi0\"," \
    "\"addr\":\"4\",\"num_queues\":4,\"iothread-vq-mapping\":" \
    "[{\"iothread\":\"io0\"},{\"iothread\":\"io1\"}]}' " \
    "-blockdev null-co,node-name=n0,size=16777216,read-zeroes=on " \
    "-blockdev null-co,node-name=n1,size=16777216,read-zeroes=on " \
    "-blockdev null-co,node-name=n2,size=16777216,read-zeroes=on " \
    "-blockdev null-co,node-name=n3,size=16777216,read-zeroes=on " \
    "-device '{\"driver\":\"scsi-hd\",\"bus\":\"scsi0.0\",\"id\":\"hd0\"," \
    "\"scsi-id\":0,\"lun\":0,\"drive\":\"n0\"}' " \
    "-device '{\"driver\":\"scsi-cd\",\"bus\":\"scsi0.0\",\"id\":\"cd0\"," \
    "\"scsi-id\":0,\"lun\":1,\"drive\":\"n1\"}' "

typedef struct Seq {
    QTestState *qts;
    const uint8_t *data;        /* what is left of the input */
    size_t size;
    uint16_t avail[NUM_VQS];
    unsigned buffer;            /* next to use */
    unsigned drains;
} Seq;

static uint64_t number(Seq *s, unsigned bytes)
{
    uint64_t n = 0;

    for (; bytes; bytes--) {
        n <<= 8;
        if (s->size) {
            n |= *s->data++;
            s->size--;
        }
    }
    return n;
}

static uint8_t byte(Seq *s)
{
    return number(s, 1);
}

/*
 * The driver
 */

static void pci_config(Seq *s, unsigned offset, uint32_t value)
{
    qtest_outl(s->qts, 0xcf8, 0x80000000u | PCI_SLOT << 11 | offset);
    qtest_outl(s->qts, 0xcfc, value);
}

static void pci_enable(Seq *s)
{
    pci_config(s, 0x20, BAR);           /* BAR 4, of 64 bits */
    pci_config(s, 0x24, 0);
    pci_config(s, 0x04, 0x406);         /* memory, bus master, no INTx */
}

static uint64_t ring(unsigned vq)
{
    return RINGS + vq * RING_STEP;
}

static uint64_t avail_ring(unsigned vq)
{
    return ring(vq) + RING_STEP / 4;
}

static uint64_t used_ring(unsigned vq)
{
    return ring(vq) + RING_STEP / 2;
}

#define COMMON(field) (BAR + offsetof(struct virtio_pci_common_cfg, field))

static void set_up_queue(Seq *s, unsigned vq)
{
    qtest_memset(s->qts, ring(vq), 0, RING_STEP);
    qtest_writew(s->qts, COMMON(queue_select), vq);
    qtest_writew(s->qts, COMMON(queue_size), RING_SIZE);
    qtest_writel(s->qts, COMMON(queue_desc_lo), ring(vq));
    qtest_writel(s->qts, COMMON(queue_desc_hi), 0);
    qtest_writel(s->qts, COMMON(queue_avail_lo), avail_ring(vq));
    qtest_writel(s->qts, COMMON(queue_avail_hi), 0);
    qtest_writel(s->qts, COMMON(queue_used_lo), used_ring(vq));
    qtest_writel(s->qts, COMMON(queue_used_hi), 0);
    qtest_writew(s->qts, COMMON(queue_enable), 1);
    s->avail[vq] = 0;
}

static void set_up(Seq *s, uint32_t features)
{
    const unsigned status = VIRTIO_CONFIG_S_ACKNOWLEDGE |
                            VIRTIO_CONFIG_S_DRIVER |
                            VIRTIO_CONFIG_S_FEATURES_OK;

    pci_enable(s);
    qtest_writeb(s->qts, COMMON(device_status), 0);
    qtest_writel(s->qts, COMMON(guest_feature_select), 0);
    qtest_writel(s->qts, COMMON(guest_feature), features);
    qtest_writel(s->qts, COMMON(guest_feature_select), 1);
    qtest_writel(s->qts, COMMON(guest_feature), 1); /* VIRTIO_F_VERSION_1 */
    qtest_writeb(s->qts, COMMON(device_status), status);
    for (unsigned vq = 0; vq < NUM_VQS; vq++) {
        set_up_queue(s, vq);
    }
    qtest_writeb(s->qts, COMMON(device_status),
                 status | VIRTIO_CONFIG_S_DRIVER_OK);
}

static uint64_t new_buffer(Seq *s)
{
    return BUFFERS + s->buffer++ % NUM_BUFFERS * BUFFER_STEP;
}

static void put_desc(Seq *s, unsigned vq, unsigned i, uint64_t addr,
                     uint32_t len, uint16_t flags)
{
    struct vring_desc desc = {
        .addr = cpu_to_le64(addr),
        .len = cpu_to_le32(len),
        .flags = cpu_to_le16(flags),
        .next = cpu_to_le16((i + 1) % RING_SIZE),
    };

    qtest_memwrite(s->qts, ring(vq) + i % RING_SIZE * sizeof(desc), &desc,
                   sizeof(desc));
}

static void publish(Seq *s, unsigned vq, unsigned head)
{
    uint16_t slot = s->avail[vq]++ % RING_SIZE;

    qtest_writew(s->qts, avail_ring(vq) + offsetof(struct vring_avail,
                                                   ring[slot]), head);
    qtest_writew(s->qts, avail_ring(vq) + offsetof(struct vring_avail, idx),
                 s->avail[vq]);
}

static void kick(Seq *s, unsigned vq)
{
    qtest_writew(s->qts, BAR_NOTIFY + 4 * vq, vq);
}

/* Header, and data to the device; answer, and data from it */
static void put_chain(Seq *s, unsigned vq, const void *header, uint32_t out,
                      uint32_t answer, uint32_t data_out, uint32_t data_in)
{
    uint64_t buffer = new_buffer(s);
    unsigned head = s->avail[vq] * 4 % RING_SIZE;
    unsigned i = head;
    uint16_t last = VRING_DESC_F_WRITE;

    qtest_memwrite(s->qts, buffer, header, out);
    put_desc(s, vq, i++, buffer, out, VRING_DESC_F_NEXT);
    if (data_out) {
        put_desc(s, vq, i++, buffer + 0x1000, data_out, VRING_DESC_F_NEXT);
    }
    put_desc(s, vq, i++, buffer + 0x800, answer,
             data_in ? last | VRING_DESC_F_NEXT : last);
    if (data_in) {
        put_desc(s, vq, i++, buffer + 0x2000, data_in, last);
    }
    publish(s, vq, head);
}

/*
 * Acts of the guest
 */

static void fuzz_lun(Seq *s, uint8_t *lun)
{
    uint8_t how = byte(s);

    if (how & 0x80) {
        for (unsigned i = 0; i < 8; i++) {
            lun[i] = byte(s);
        }
        return;
    }
    lun[0] = 1;
    lun[1] = how >> 4;
    lun[2] = how & 8 ? 0x40 : 0;
    lun[3] = how & 7;
}

static void act_command(Seq *s)
{
    uint8_t how = byte(s);
    unsigned vq = 2 + how % 4;
    struct virtio_scsi_cmd_req req = { .tag = s->buffer };
    unsigned cdb = how & 0x10 ? 16 : 10;
    uint32_t in = 0, out = 0;

    fuzz_lun(s, req.lun);
    for (unsigned i = 0; i < cdb; i++) {
        req.cdb[i] = byte(s);
    }
    if (how & 0x20) {
        in = number(s, 2) & 0x1fff;
    }
    if (how & 0x40) {
        out = number(s, 2) & 0xfff;
    }
    put_chain(s, vq, &req, sizeof(req), sizeof(struct virtio_scsi_cmd_resp),
              out, in);
    if (!(how & 0x80)) {
        kick(s, vq);
    }
}

static void act_control(Seq *s)
{
    struct virtio_scsi_ctrl_tmf_req req = {
        .type = cpu_to_le32(byte(s) % 3),
        .subtype = cpu_to_le32(byte(s) % 9),
    };

    fuzz_lun(s, req.lun);
    req.tag = byte(s);
    put_chain(s, 0, &req, sizeof(req), byte(s) % 16, 0, 0);
    kick(s, 0);
}

static void act_event(Seq *s)
{
    unsigned head = s->avail[1] * 4 % RING_SIZE;

    put_desc(s, 1, head, new_buffer(s), byte(s), VRING_DESC_F_WRITE);
    publish(s, 1, head);
    kick(s, 1);
}

static void act_descriptor(Seq *s)
{
    unsigned vq = byte(s) % NUM_VQS;
    unsigned i = byte(s);
    uint64_t addr = BUFFERS + number(s, 3) % (NUM_BUFFERS * BUFFER_STEP);
    uint32_t len = number(s, 2);
    uint16_t flags = byte(s);

    put_desc(s, vq, i, flags & 8 ? ring(vq) : addr, len, flags & 7);
}

static void act_avail(Seq *s)
{
    unsigned vq = byte(s) % NUM_VQS;
    uint8_t how = byte(s);

    if (how & 1) {
        s->avail[vq] = number(s, 2);
    }
    publish(s, vq, byte(s) % (how & 2 ? 256 : RING_SIZE));
    if (how & 4) {
        kick(s, vq);
    }
}

static void act_kick(Seq *s)
{
    kick(s, byte(s) % NUM_VQS);
}

static void act_config(Seq *s)
{
    unsigned offset = byte(s) % 40;

    if (offset & 1) {
        qtest_readl(s->qts, BAR_DEVICE + offset - 1);
    } else {
        qtest_writel(s->qts, BAR_DEVICE + offset, number(s, 2));
    }
}

static void act_common(Seq *s)
{
    unsigned offset = byte(s) % sizeof(struct virtio_pci_modern_common_cfg);
    uint32_t value = number(s, 2);

    qtest_writew(s->qts, COMMON(queue_select), byte(s) % (NUM_VQS + 1));
    qtest_writew(s->qts, BAR + (offset & ~1), value);
}

static void act_device_reset(Seq *s)
{
    uint8_t how = byte(s);

    qtest_writeb(s->qts, COMMON(device_status), 0);
    if (how & 1) {
        set_up(s, how & 2 ? number(s, 4) : 6);
    }
}

static void act_queue_again(Seq *s)
{
    set_up_queue(s, byte(s) % NUM_VQS);
}

static void act_pci_command(Seq *s)
{
    pci_config(s, 0x04, byte(s) & 6);
}

/*
 * Acts of the host
 */

static void qmp(const char *text)
{
    QObject *request = qobject_from_json(text, &error_abort);
    QDict *answer = qmp_dispatch(&qmp_commands, request, false, NULL);

    qobject_unref(answer);
    qobject_unref(request);
}

#define SET_MAPPING(value) \
    "{'execute':'qom-set','arguments':{'path':'scsi0/virtio-backend'," \
    "'property':'iothread-vq-mapping','value':" value "}}"
#define SET_BALANCE(value) \
    "{'execute':'qom-set','arguments':{'path':'scsi0/virtio-backend'," \
    "'property':'iothread-vq-balance','value':" value "}}"
/* Without a geometry it would be read, and wait for the end of our drain. */
#define ADD_LUN(id, target, lun, drive) \
    "{'execute':'device_add','arguments':{'driver':'scsi-hd','id':'" id "'," \
    "'bus':'scsi0.0','scsi-id':" target ",'lun':" lun ",'drive':'" drive "'," \
    "'cyls':32,'heads':16,'secs':63}}"
#define DELETE(id) "{'execute':'device_del','arguments':{'id':'" id "'}}"
#define MAPPING_AT_FIRST SET_MAPPING("[{'iothread':'io0'},{'iothread':'io1'}]")

static void act_qmp(Seq *s)
{
    static const char *const commands[] = {
        ADD_LUN("hd2", "0", "2", "n2"),
        DELETE("hd2"),
        ADD_LUN("hd3", "3", "5", "n3"),
        DELETE("hd3"),
        "{'execute':'blockdev-mirror','arguments':{'job-id':'j','device':'n0',"
        "'target':'n3','sync':'full'}}",
        "{'execute':'block-job-cancel','arguments':{'device':'j'}}",
        "{'execute':'job-complete','arguments':{'id':'j'}}",
        SET_MAPPING("[{'iothread':'io1'}]"),
        SET_MAPPING("[{'iothread':'io0','vqs':[0,3]},"
                    "{'iothread':'io1','vqs':[2,1]}]"),
        MAPPING_AT_FIRST,
        SET_BALANCE("true"),
        SET_BALANCE("false"),
        "{'execute':'x-query-virtio-scsi-queues'}",
        "{'execute':'blockdev-open-tray','arguments':{'id':'cd0',"
        "'force':true}}",
        "{'execute':'blockdev-close-tray','arguments':{'id':'cd0'}}",
        "{'execute':'query-blockstats'}",
    };

    qmp(commands[byte(s) % ARRAY_SIZE(commands)]);
}

static void act_drain(Seq *s)
{
    if (byte(s) & 1) {
        if (s->drains < 3) {
            bdrv_drain_all_begin();
            s->drains++;
        }
    } else if (s->drains) {
        bdrv_drain_all_end();
        s->drains--;
    }
}

static void act_vm(Seq *s)
{
    if (byte(s) & 1) {
        vm_stop(RUN_STATE_PAUSED);
    } else {
        vm_start();
    }
}

static void act_system_reset(Seq *s)
{
    fuzz_reset(s->qts);
}

static void act_clock(Seq *s)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL);

    qemu_clock_advance_virtual_time(now + number(s, 2) * SCALE_MS);
}

static void (*const acts[])(Seq *s) = {
    act_command, act_command, act_command, act_command, act_command,
    act_control, act_control, act_event, act_descriptor, act_avail, act_kick,
    act_config, act_common, act_device_reset, act_queue_again, act_pci_command,
    act_qmp, act_qmp, act_drain, act_vm, act_system_reset, act_clock,
};

/* Back to what each input begins with: running, two LUNs, nobody's drain */
static void clean_up(Seq *s)
{
    while (s->drains) {
        bdrv_drain_all_end();
        s->drains--;
    }
    qmp("{'execute':'block-job-cancel','arguments':{'device':'j',"
        "'force':true}}");
    if (!runstate_is_running()) {
        vm_start();
    }
    pci_enable(s);
    qtest_writeb(s->qts, COMMON(device_status), 0);
    qmp(DELETE("hd2"));
    qmp(DELETE("hd3"));
    qmp(SET_BALANCE("false"));
    qmp(MAPPING_AT_FIRST);
    fuzz_reset(s->qts);
    flush_events(s->qts);
}

static void seq_fuzz(QTestState *qts, const unsigned char *data, size_t size)
{
    Seq s = { .qts = qts, .data = data, .size = size };

    set_up(&s, 6); /* hotplug and change; plain rings */
    for (unsigned n = 0; s.size && n < MAX_ACTS; n++) {
        acts[byte(&s) % ARRAY_SIZE(acts)](&s);
        flush_events(s.qts);
    }
    clean_up(&s);
}

/*
 * Migration streams
 */

static GByteArray *save(DeviceState *dev)
{
    const VMStateDescription *vmsd = qdev_get_vmsd(dev);
    QIOChannelBuffer *channel = qio_channel_buffer_new(65536);
    QEMUFile *f = qemu_file_new_output(QIO_CHANNEL(channel));
    GByteArray *bytes = g_byte_array_new();

    vmstate_save_state(f, vmsd, dev, NULL);
    qemu_fflush(f);
    g_byte_array_append(bytes, channel->data, channel->usage);
    qemu_fclose(f);
    object_unref(OBJECT(channel));
    return bytes;
}

static bool load(DeviceState *dev, const GByteArray *bytes)
{
    const VMStateDescription *vmsd = qdev_get_vmsd(dev);
    const size_t behind = 16; /* whoever looks there finds no subsection */
    QIOChannelBuffer *channel = qio_channel_buffer_new(bytes->len + behind);
    QEMUFile *f;
    int ret;

    memcpy(channel->data, bytes->data, bytes->len);
    memset(channel->data + bytes->len, 0, behind);
    channel->usage = bytes->len + behind;
    f = qemu_file_new_input(QIO_CHANNEL(channel));
    ret = vmstate_load_state(f, vmsd, dev, vmsd->version_id);
    qemu_fclose(f);
    object_unref(OBJECT(channel));
    return ret == 0;
}

static void put_command(Seq *s, unsigned vq, unsigned lun, const uint8_t *cdb,
                        uint32_t out, uint32_t in)
{
    struct virtio_scsi_cmd_req req = { .lun = { 1, 0, 0, lun } };

    memcpy(req.cdb, cdb, 10);
    put_chain(s, vq, &req, sizeof(req), sizeof(struct virtio_scsi_cmd_resp),
              out, in);
    kick(s, vq);
}

/* A drain holds them back, and whoever stops the VM parks them. */
static void stop_with_commands(Seq *s, unsigned which)
{
    static const uint8_t ready[10] = { 0 };
    static const struct {
        uint8_t cdb[10];
        uint8_t vq, lun;
        uint16_t out, in;
    } commands[] = {
        { { 0x28, [8] = 8 }, 2, 0, 0, 4096 },           /* READ */
        { { 0x2a, [8] = 4 }, 3, 0, 2048, 0 },           /* WRITE */
        { { 0x42, [8] = 24 }, 4, 0, 24, 0 },            /* UNMAP */
        { { 0x35 }, 5, 0, 0, 0 },                       /* SYNCHRONIZE CACHE */
        { { 0x28, [8] = 2 }, 3, 1, 0, 4096 },           /* READ from the cd */
        { { 0x2f, 2, [8] = 1 }, 2, 0, 512, 0 },         /* VERIFY */
        { { 0x41, [8] = 1 }, 5, 0, 512, 0 },            /* WRITE SAME */
    };

    for (unsigned i = 0; i < 4; i++) { /* for the unit attentions */
        put_command(s, 2 + i, i & 1, ready, 0, 0);
        flush_events(s->qts);
    }
    bdrv_drain_all_begin();
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (which & 1u << i) {
            put_command(s, commands[i].vq, commands[i].lun, commands[i].cdb,
                        commands[i].out, commands[i].in);
        }
    }
    flush_events(s->qts);
    vm_stop(RUN_STATE_PAUSED);
    bdrv_drain_all_end();
}

/*
 * An edit is a place, from the end or from the start, and what is there.  The
 * PCI device's state, in front of virtio's, is left alone: an interrupt that is
 * pending would have to agree with the bus's, which is not in the stream.
 */
static void edit(Seq *s, GByteArray *bytes, size_t from)
{
    for (unsigned n = byte(s) % 16; n; n--) {
        uint8_t how = byte(s);
        size_t at = number(s, 2);
        unsigned width = 1 << (how & 3);
        uint64_t value = number(s, width);

        if (how & 0x10) {
            g_byte_array_set_size(bytes, at % (bytes->len + 1));
        }
        at = how & 4 ? from + at : bytes->len - at;
        if (at < from || at > bytes->len || width > bytes->len - at) {
            continue;
        }
        for (unsigned i = 0; i < width; i++) {
            bytes->data[at + i] = value >> 8 * (width - 1 - i);
        }
    }
}

static void stream_fuzz(QTestState *qts, const unsigned char *data,
                        size_t size)
{
    static const char *const paths[] = { "scsi0", "hd0", "cd0" };
    Seq s = { .qts = qts, .data = data, .size = size };
    GByteArray *streams[ARRAY_SIZE(paths)];
    DeviceState *devs[ARRAY_SIZE(paths)];
    g_autofree uint8_t *rings = g_malloc(NUM_VQS * RING_STEP);
    uint8_t order = byte(&s);
    bool good = true;

    set_up(&s, 6);
    stop_with_commands(&s, byte(&s));
    for (unsigned i = 0; i < ARRAY_SIZE(paths); i++) {
        Object *obj = object_resolve_path(paths[i], NULL);

        devs[i] = DEVICE(i ? obj : object_resolve_path_component(
                                       obj, "virtio-backend"));
        streams[i] = save(devs[i]);
        edit(&s, streams[i], i ? 0 : PCI_STATE);
    }

    /*
     * As at the destination, which has the guest's memory already.  What the
     * reset ends goes to the used rings.
     */
    qtest_memread(s.qts, RINGS, rings, NUM_VQS * RING_STEP);
    fuzz_reset(s.qts);
    qtest_memwrite(s.qts, RINGS, rings, NUM_VQS * RING_STEP);
    for (unsigned n = 0; n < ARRAY_SIZE(paths); n++) {
        unsigned i = order & 1 ? ARRAY_SIZE(paths) - 1 - n : n;

        good = good && load(devs[i], streams[i]);
        if (order & 2) {
            good = good && load(devs[i], streams[i]); /* once more */
        }
    }
    if (good) {
        vm_start();
        flush_events(s.qts);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(paths); i++) {
        g_byte_array_unref(streams[i]);
    }
    fuzz_reset(s.qts);
    clean_up(&s);
}

/*
 * Targets
 */

static GString *cmdline(FuzzTarget *t)
{
    return g_string_new(TARGET_NAME " -machine pc,accel=qtest -display none "
                        "-nodefaults -m 64 " DEVICES);
}

static void register_virtio_scsi_seq_targets(void)
{
    fuzz_add_target(&(FuzzTarget) {
        .name = "virtio-scsi-seq-fuzz",
        .description = "Sequences of what guest and host do to virtio-scsi "
                       "with several IOThreads",
        .get_init_cmdline = cmdline,
        .fuzz = seq_fuzz,
    });
    fuzz_add_target(&(FuzzTarget) {
        .name = "virtio-scsi-stream-fuzz",
        .description = "Migration streams of virtio-scsi, its LUNs and their "
                       "requests, from a hostile source",
        .get_init_cmdline = cmdline,
        .fuzz = stream_fuzz,
    });
}

fuzz_target_init(register_virtio_scsi_seq_targets);
