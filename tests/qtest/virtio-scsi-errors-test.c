/*
 * virtio-scsi and the SCSI bus: what users do wrong, and what they are told
 *
 * Each mistake is a device_add that is refused with words that name it, and
 * leaves nothing behind: the same id is free for the next one.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qobject/qdict.h"

#define CONTROLLER  "'driver':'virtio-scsi-pci','id':'new',"
#define MAPPING     CONTROLLER "'num_queues':2,'iothread-vq-mapping':"
#define CD          "'driver':'scsi-cd','id':'new',"
#define USB         "'driver':'usb-storage','id':'new','bus':'usb.0',"

/* All that the mistakes below need to be the only one. */
#define HOST \
    "-nodefaults -object iothread,id=t0 -object iothread,id=t1 " \
    "-device virtio-scsi-pci,id=vs,num_queues=2 " \
    "-device scsi-cd,bus=vs.0,id=taken,scsi-id=3,lun=1,bootindex=1 " \
    "-device lsi53c895a,id=lsi -device scsi-cd,bus=lsi.0,scsi-id=0 " \
    "-device qemu-xhci,id=usb " \
    "-drive if=none,id=stick,driver=null-co,media=cdrom,read-only=on "

#define NO_ID \
    "-nodefaults -object iothread,id=t0 " \
    "-device virtio-scsi-pci,iothread=t0,num_queues=1 "

typedef struct Mistake {
    const char *device;     /* the arguments of device_add */
    const char *words;      /* are in the error */
} Mistake;

static const Mistake of_controllers[] = {
    { CONTROLLER "'num_queues':0", "num_queues is 0, but must be 1 to" },
    { CONTROLLER "'num_queues':1023", "num_queues is 1023, but must be 1 to" },
    { CONTROLLER "'virtqueue_size':2", "virtqueue_size is 2, but must be 3" },
    { CONTROLLER "'virtqueue_size':2048", "virtqueue_size is 2048, but" },
    { CONTROLLER "'iothread':'t0','ioeventfd':false", "ioeventfd is off" },
    { CONTROLLER "'iothread-vq-balance':true", "there is no iothread-vq-mapp" },
    { MAPPING "[{'iothread':'t0'}],'iothread':'t1'", "are both set" },
    { MAPPING "[{'iothread':'t0'}],'ioeventfd':false", "ioeventfd is off" },
    { MAPPING "[{'iothread':'t9'}]", "there is no IOThread 't9'" },
    { MAPPING "[{'iothread':'t0'},{'iothread':'t0'}]", "is listed twice" },
    { MAPPING "[{'iothread':'t0','vqs':[0]}]", "queue 1 is in no" },
};

static const Mistake of_addresses[] = {
    { CD "'bus':'vs.0','channel':1", "channel=1 is out of range" },
    { CD "'bus':'vs.0','scsi-id':256", "scsi-id=256 is out of range" },
    { CD "'bus':'vs.0','lun':16384", "lun=16384 is out of range" },
    { CD "'bus':'vs.0','scsi-id':3,'lun':1", "is already used by 'taken'" },
    { CD "'bus':'lsi.0','scsi-id':0", "no free lun: all of 0 to 0 of" },
};

static const Mistake of_drives[] = {
    { USB "'drive':'stick','bootindex':1", "bootindex 1 has already been" },
};

/* Is it refused, and the id then free for a device that isn't? */
static void refused(QTestState *qts, const Mistake *m)
{
    g_autofree char *command = g_strdup_printf(
        "{'execute':'device_add','arguments':{%s}}", m->device);
    QDict *answer = qtest_qmp(qts, command, NULL);
    const char *desc = qdict_haskey(answer, "error") ?
        qdict_get_str(qdict_get_qdict(answer, "error"), "desc") : "no error";

    if (!strstr(desc, m->words)) {
        g_error("%s: '%s', wanted '%s'", m->device, desc, m->words);
    }
    qobject_unref(answer);
}

static void test_refused(const Mistake *mistakes, size_t n, const char *good)
{
    QTestState *qts = qtest_init(HOST);
    g_autofree char *command = g_strdup_printf(
        "{'execute':'device_add','arguments':{%s}}", good);

    for (size_t i = 0; i < n; i++) {
        refused(qts, &mistakes[i]);
    }
    qtest_qmp_assert_success(qts, command, NULL);
    qtest_quit(qts);
}

static void test_controllers(void)
{
    test_refused(of_controllers, ARRAY_SIZE(of_controllers),
                 MAPPING "[{'iothread':'t0','vqs':[1]},"
                 "{'iothread':'t1','vqs':[0]}]");
}

/* It has the same queues. */
static void test_vhost_user(void)
{
    static const Mistake none = {
        "'driver':'vhost-user-scsi-pci','id':'new','chardev':'none',"
        "'num_queues':0", "num_queues is 0, but must be 1 to"
    };
    QTestState *qts = qtest_init("-nodefaults -chardev null,id=none");

    refused(qts, &none);
    qtest_quit(qts);
}

static void test_addresses(void)
{
    test_refused(of_addresses, ARRAY_SIZE(of_addresses),
                 CD "'bus':'vs.0','scsi-id':3");
}

/* Those who give a drive to the bus themselves */
static void test_drives(void)
{
    test_refused(of_drives, ARRAY_SIZE(of_drives),
                 USB "'drive':'stick','bootindex':2,'serial':'s0'");
}

/* The first bus takes the next free target until there is none. */
static void test_full(void)
{
    static const Mistake full = {
        CD "'bus':'lsi.0'", "no free target: all of scsi-id=0 to 7 have lun=0"
    };
    QTestState *qts = qtest_init(HOST);

    for (unsigned i = 1; i < 8; i++) {
        qtest_qmp_assert_success(
            qts, "{'execute':'device_add','arguments':{'driver':'scsi-cd',"
            "'bus':'lsi.0'}}");
    }
    refused(qts, &full);
    qtest_quit(qts);
}

static void test_hmp(void)
{
    static const struct {
        const char *options, *command, *words;
    } cases[] = {
        { "-nodefaults", "info virtio-scsi-queues", "There is no virtio-scsi" },
        { "-nodefaults -device virtio-scsi-pci", "info virtio-scsi-queues",
          "queue 0: main-loop" },
        { NO_ID, "info virtio-scsi-queues",
          "virtio-backend:\r\n  queue 0: iothread=t0 " },
        { HOST, "info virtio-scsi-queues nobody", "virtio-scsi devices: vs" },
        { HOST, "info virtio-scsi-queues taken", "is of type scsi-cd, not" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        QTestState *qts = qtest_init(cases[i].options);
        g_autofree char *said = qtest_hmp(qts, "%s", cases[i].command);

        if (!strstr(said, cases[i].words)) {
            g_error("%s: '%s', wanted '%s'", cases[i].command, said,
                    cases[i].words);
        }
        qtest_quit(qts);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("/virtio-scsi-errors/controllers", test_controllers);
    if (qtest_has_device("vhost-user-scsi-pci")) {
        qtest_add_func("/virtio-scsi-errors/vhost-user", test_vhost_user);
    }
    qtest_add_func("/virtio-scsi-errors/addresses", test_addresses);
    qtest_add_func("/virtio-scsi-errors/drives", test_drives);
    qtest_add_func("/virtio-scsi-errors/full", test_full);
    qtest_add_func("/virtio-scsi-errors/hmp", test_hmp);
    return g_test_run();
}
