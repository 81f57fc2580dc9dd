/*
 * virtio-serial: a hostile migration stream
 *
 * A port whose host doesn't read is throttled in the middle of a buffer.  Where
 * that is stands in the migration stream, which the test changes: then the
 * migration must fail, and the destination live on.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "libqtest.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_ids.h"

#define PCI_SLOT    4
#define PORT        1
#define TX_QUEUE    5       /* of port 1: without VIRTIO_CONSOLE_F_MULTIPORT */
#define BUF_SIZE    4096
#define MAX_BUFS    1024    /* more than a socket of the host's takes */

/* A port with the name @id on this end of a socket */
static QTestState *start(const char *id, int fd, const char *more)
{
    return qtest_initf("-machine pc -m 64M -nodefaults "
                       "-chardev socket,id=%s,fd=%d "
                       "-device virtio-serial-pci,id=vser,addr=%02x.0,"
                       "ioeventfd=off,disable-legacy=on "
                       "-device virtserialport,bus=vser.0,nr=%u,chardev=%s %s",
                       id, fd, PCI_SLOT, PORT, id, more);
}

static void make_socket(int *fds)
{
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
}

/* Until the host takes no more: a buffer stays with the device. */
static void fill_host(QTestState *qts)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(PCI_SLOT, 0) };
    QGuestAllocator alloc;
    QPCIBus *bus;
    QVirtioPCIDevice *pci;
    QVirtQueue *vq;
    uint64_t buf;
    unsigned n;

    pc_alloc_init(&alloc, qts, ALLOC_NO_FLAGS);
    bus = qpci_new_pc(qts, &alloc);
    pci = virtio_pci_new(bus, &addr);
    g_assert_nonnull(pci);
    g_assert_cmpuint(pci->vdev.device_type, ==, VIRTIO_ID_CONSOLE);
    qvirtio_pci_device_enable(pci);
    qvirtio_start_device(&pci->vdev);
    qvirtio_set_features(&pci->vdev, 1ull << VIRTIO_F_VERSION_1);
    vq = qvirtqueue_setup(&pci->vdev, &alloc, TX_QUEUE);
    qvirtio_set_driver_ok(&pci->vdev);

    buf = guest_alloc(&alloc, BUF_SIZE);
    for (n = 0; n < MAX_BUFS; n++) {
        uint32_t head = qvirtqueue_add(qts, vq, buf, BUF_SIZE, false, false);

        /* Without an ioeventfd the device has looked when this returns. */
        qvirtqueue_kick(qts, &pci->vdev, vq, head);
        if (!qvirtqueue_get_buf(qts, vq, NULL, NULL)) {
            break;
        }
        vq->num_free++;
        vq->free_head = head;
    }
    g_assert_cmpuint(n, >, 0);
    g_assert_cmpuint(n, <, MAX_BUFS);

    qvirtqueue_cleanup(pci->vdev.bus, vq, &alloc);
    qvirtio_pci_device_disable(pci);
    g_free(pci->pdev);
    g_free(pci);
    qpci_free_pc(bus);
    alloc_destroy(&alloc);
}

static bool is_under_way(QTestState *qts, const char **status)
{
    g_autoptr(QDict) resp = qtest_qmp(qts, "{'execute': 'query-migrate'}");
    const char *now = qdict_get_try_str(qdict_get_qdict(resp, "return"),
                                        "status");

    *status = g_intern_string(now);
    return !now || (strcmp(now, "failed") && strcmp(now, "completed"));
}

static void expect_end(QTestState *qts, const char *wanted)
{
    gint64 end = g_get_monotonic_time() + 120 * G_USEC_PER_SEC;
    const char *status;

    while (is_under_way(qts, &status)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
    g_assert_cmpstr(status, ==, wanted);
}

static void try_stream(const char *uri, const char *wanted)
{
    QTestState *to;
    int fds[2];

    make_socket(fds);
    to = start("to", fds[1], "-incoming defer");
    qtest_qmp_assert_success(to,
        "{'execute': 'migrate-incoming', 'arguments': {'uri': %s,"
        " 'exit-on-error': false}}", uri);
    expect_end(to, wanted);
    qtest_system_reset(to);
    qtest_quit(to);
    close(fds[0]);
    close(fds[1]);
}

/*
 * The index of the buffer, as it is in the stream: what stands before and
 * behind it is known, but for the offset.
 */
static uint8_t *find_place(uint8_t *stream, size_t len)
{
    const uint8_t port[] = { 0, 0, 0, PORT, 0, 1, 0, 0, 0, 1 };

    for (size_t i = 0; i + sizeof(port) + 24 < len; i++) {
        const uint8_t *at = stream + i + sizeof(port);

        if (!memcmp(stream + i, port, sizeof(port)) &&
            ldl_be_p(at) == 0 && ldq_be_p(at + 4) < BUF_SIZE &&
            ldl_he_p(at + 16) == 1 && ldl_he_p(at + 20) == 0) {
            return stream + i + sizeof(port);
        }
    }
    g_assert_not_reached();
}

static void write_file(int fd, const uint8_t *stream, size_t len)
{
    g_assert_cmpint(pwrite(fd, stream, len, 0), ==, len);
}

static void test_hostile_stream(void)
{
    g_autofree char *dir = g_dir_make_tmp("virtio-serial-XXXXXX", NULL);
    g_autofree char *path = g_strdup_printf("%s/stream", dir);
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    g_autofree uint8_t *stream = NULL;
    uint8_t *place;
    QTestState *from;
    int fds[2], fd;
    uint64_t was;
    size_t len;

    make_socket(fds);
    from = start("from", fds[1], "");
    fill_host(from);
    qtest_qmp_assert_success(from,
        "{'execute': 'migrate', 'arguments': {'uri': %s}}", uri);
    expect_end(from, "completed");
    qtest_quit(from);
    close(fds[0]);
    close(fds[1]);

    fd = open(path, O_RDWR);
    g_assert_cmpint(fd, >=, 0);
    len = lseek(fd, 0, SEEK_END);
    stream = g_malloc(len);
    g_assert_cmpint(pread(fd, stream, len, 0), ==, len);
    place = find_place(stream, len);

    try_stream(uri, "completed");
    stl_be_p(place, 1);
    write_file(fd, stream, len);
    try_stream(uri, "failed");

    stl_be_p(place, 0);
    was = ldq_be_p(place + 4);
    stq_be_p(place + 4, BUF_SIZE + 1);
    write_file(fd, stream, len);
    try_stream(uri, "failed");

    stq_be_p(place + 4, was);
    write_file(fd, stream, len);
    try_stream(uri, "completed");

    close(fd);
    unlink(path);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("virtio-serial/hostile-stream", test_hostile_stream);
    return g_test_run();
}
