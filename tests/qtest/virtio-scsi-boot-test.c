/*
 * A PC boots from a LUN of a virtio-scsi controller with mapped queues
 *
 * SeaBIOS loads the boot sector below through request queue 0.  The boot sector
 * reads and writes more sectors by INT 13h, compares what it gets, and ends
 * QEMU through isa-debug-exit, so QEMU's exit status tells how far it came.
 * Afterwards the trace shows which thread served the queue.
 *
 * Here a BIOS driver, a real CPU loop and (with KVM) the kernel's ioeventfds
 * work together with the device, which no libqos test can do.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "libqtest.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define SECTOR          512
#define DISK_SECTORS    65536

/* Where the boot sector reads and writes; its code has the same numbers. */
#define SINGLE_FIRST    1
#define SINGLE_STRIDE   776
#define SINGLE_COUNT    64
#define MANY_FIRST      50000
#define MANY_COUNT      40
#define WRITE_FIRST     60000
#define WRITE_COUNT     8

/* Step 3 reads one sector again, step 6 what step 5 wrote. */
#define READ_BYTES      ((SINGLE_COUNT + 1 + MANY_COUNT + WRITE_COUNT) * SECTOR)
#define WRITE_BYTES     (WRITE_COUNT * SECTOR)

/* The virtqueue that SeaBIOS uses: after control and event queue */
#define REQUEST_QUEUE_0 2

/*
 * A hang guard only.  A boot takes a second with TCG, but KVM that is itself
 * emulated needs ten on an idle host, and sanitizers slow all of it down.
 */
#define BOOT_LIMIT_S    90

/* isa-debug-exit turns the value V that is written into the status 2 V + 1 */
#define DEBUG_EXIT(v)   (((v) << 1 | 1) & 0xff)
#define BOOT_PASS       0x10
#define BOOT_FAIL       0x20    /* plus 2 * step, plus 1 for wrong data */

static const char *const boot_steps[] = {
    NULL,
    "1, check for packet calls",
    "2, read single sectors",
    "3, read by cylinder, head and sector",
    "4, read many sectors at once",
    "5, write sectors",
    "6, read back what was written",
};

/*
 * To change the code, edit the text behind the bars, assemble it with the
 * command below and put the bytes of boot.bin in here (and in order).  The same
 * command shows that the bytes belong to the text.
 *
 *   sed -n 's,.*[*] | \(.*\) [*]/$,\1,p' virtio-scsi-boot-test.c |
 *       as --32 -o boot.o - &&
 *       ld -m elf_i386 -e 0 -Ttext 0x7c00 --oformat binary -o boot.bin boot.o
 */
static const uint8_t boot_code[] = {
    /* | .code16 */
    0xfa,                                /* | start: cli */
    0xfc,                                /* | cld */
    0x31, 0xc0,                          /* | xorw %ax, %ax */
    0x8e, 0xd8,                          /* | movw %ax, %ds */
    0x8e, 0xc0,                          /* | movw %ax, %es */
    0x8e, 0xd0,                          /* | movw %ax, %ss */
    0xbc, 0x00, 0x7c,                    /* | movw $0x7c00, %sp */
    0xfb,                                /* | sti */
    0x88, 0x16, 0xea, 0x7c,              /* | movb %dl, drive */
    /* | # step 1: has the BIOS packet calls (EDD) for this disk? */
    0xbd, 0x02, 0x00,                    /* | movw $2, %bp */
    0xb4, 0x41,                          /* | movb $0x41, %ah */
    0xbb, 0xaa, 0x55,                    /* | movw $0x55aa, %bx */
    0xcd, 0x13,                          /* | int $0x13 */
    0x72, 0x78,                          /* | jc fail */
    0x81, 0xfb, 0x55, 0xaa,              /* | cmpw $0xaa55, %bx */
    0x75, 0x71,                          /* | jne wrong */
    /* | # step 2: single sectors all over the disk */
    0xbd, 0x04, 0x00,                    /* | movw $4, %bp */
    0xbb, 0x01, 0x00,                    /* | movw $1, %bx */
    0xb9, 0x01, 0x00,                    /* | single: movw $1, %cx */
    0xe8, 0x70, 0x00,                    /* | call read */
    0xe8, 0x87, 0x00,                    /* | call check */
    0x81, 0xc3, 0x08, 0x03,              /* | addw $776, %bx */
    0x81, 0xfb, 0x01, 0xc2,              /* | cmpw $49665, %bx */
    0x72, 0xed,                          /* | jb single */
    /* | # step 3: the old call, by cylinder, head and sector */
    0xbd, 0x06, 0x00,                    /* | movw $6, %bp */
    0xbb, 0x00, 0x80,                    /* | movw $0x8000, %bx */
    0xb8, 0x01, 0x02,                    /* | movw $0x0201, %ax */
    0xb9, 0x02, 0x00,                    /* | movw $0x0002, %cx */
    0xb6, 0x00,                          /* | movb $0, %dh */
    0x8a, 0x16, 0xea, 0x7c,              /* | movb drive, %dl */
    0xcd, 0x13,                          /* | int $0x13 */
    0x72, 0x43,                          /* | jc fail */
    0xbb, 0x01, 0x00,                    /* | movw $1, %bx */
    0xb9, 0x01, 0x00,                    /* | movw $1, %cx */
    0xe8, 0x5e, 0x00,                    /* | call check */
    /* | # step 4: many sectors in one call */
    0xbd, 0x08, 0x00,                    /* | movw $8, %bp */
    0xbb, 0x50, 0xc3,                    /* | movw $50000, %bx */
    0xb9, 0x28, 0x00,                    /* | movw $40, %cx */
    0xe8, 0x38, 0x00,                    /* | call read */
    0xe8, 0x4f, 0x00,                    /* | call check */
    /* | # step 5: write sectors */
    0xbd, 0x0a, 0x00,                    /* | movw $10, %bp */
    0xbb, 0x60, 0xea,                    /* | movw $60000, %bx */
    0xb9, 0x08, 0x00,                    /* | movw $8, %cx */
    0xe8, 0x5c, 0x00,                    /* | call fill */
    0xb4, 0x43,                          /* | movb $0x43, %ah */
    0xe8, 0x26, 0x00,                    /* | call packet */
    /* | # step 6: read them back over a cleared buffer */
    0xbd, 0x0c, 0x00,                    /* | movw $12, %bp */
    0x51,                                /* | pushw %cx */
    0xbf, 0x00, 0x80,                    /* | movw $0x8000, %di */
    0xb9, 0x00, 0x08,                    /* | movw $2048, %cx */
    0x31, 0xc0,                          /* | xorw %ax, %ax */
    0xf3, 0xab,                          /* | rep stosw */
    0x59,                                /* | popw %cx */
    0xe8, 0x12, 0x00,                    /* | call read */
    0xe8, 0x29, 0x00,                    /* | call check */
    0xb0, 0x10,                          /* | movb $0x10, %al */
    0xeb, 0x05,                          /* | jmp leave */
    0x45,                                /* | wrong: incw %bp */
    0x89, 0xe8,                          /* | fail: movw %bp, %ax */
    0x04, 0x20,                          /* | addb $0x20, %al */
    0xe6, 0xf4,                          /* | leave: outb %al, $0xf4 */
    0xfa,                                /* | halt: cli */
    0xf4,                                /* | hlt */
    0xeb, 0xfc,                          /* | jmp halt */
    /* | # CX sectors from LBA BX to 0x8000; AH: 0x42 read, 0x43 write */
    0xb4, 0x42,                          /* | read: movb $0x42, %ah */
    0xb0, 0x00,                          /* | packet: movb $0, %al */
    0x89, 0x0e, 0xed, 0x7c,              /* | movw %cx, count */
    0x89, 0x1e, 0xf3, 0x7c,              /* | movw %bx, lba */
    0x8a, 0x16, 0xea, 0x7c,              /* | movb drive, %dl */
    0xbe, 0xeb, 0x7c,                    /* | movw $dap, %si */
    0x60,                                /* | pushaw */
    0xcd, 0x13,                          /* | int $0x13 */
    0x61,                                /* | popaw */
    0x72, 0xdd,                          /* | jc fail */
    0xc3,                                /* | ret */
    /* | # compare CX sectors at 0x8000 with the pattern of LBA BX... */
    0x60,                                /* | check: pushaw */
    0xbf, 0x00, 0x80,                    /* | movw $0x8000, %di */
    0x69, 0xc3, 0x35, 0x9e,              /* | 1: imulw $0x9e35, %bx, %ax */
    0xba, 0x00, 0x01,                    /* | movw $256, %dx */
    0xaf,                                /* | 2: scasw */
    0x75, 0xcd,                          /* | jne wrong */
    0x05, 0x1b, 0x4f,                    /* | addw $0x4f1b, %ax */
    0x4a,                                /* | decw %dx */
    0x75, 0xf7,                          /* | jnz 2b */
    0x43,                                /* | incw %bx */
    0xe2, 0xed,                          /* | loop 1b */
    0x61,                                /* | popaw */
    0xc3,                                /* | ret */
    /* | # put the pattern of LBA BX... into CX sectors at 0x8000 */
    0x60,                                /* | fill: pushaw */
    0xbf, 0x00, 0x80,                    /* | movw $0x8000, %di */
    0x69, 0xc3, 0x35, 0x9e,              /* | 1: imulw $0x9e35, %bx, %ax */
    0xba, 0x00, 0x01,                    /* | movw $256, %dx */
    0xab,                                /* | 2: stosw */
    0x05, 0x1b, 0x4f,                    /* | addw $0x4f1b, %ax */
    0x4a,                                /* | decw %dx */
    0x75, 0xf9,                          /* | jnz 2b */
    0x43,                                /* | incw %bx */
    0xe2, 0xef,                          /* | loop 1b */
    0x61,                                /* | popaw */
    0xc3,                                /* | ret */
    0x00,                                /* | drive: .byte 0 */
    0x10, 0x00,                          /* | dap: .byte 16, 0 */
    0x00, 0x00,                          /* | count: .word 0 */
    0x00, 0x80, 0x00, 0x00,              /* | .word 0x8000, 0 */
    0x00, 0x00, 0x00, 0x00,              /* | lba: .word 0, 0 */
    0x00, 0x00, 0x00, 0x00,              /* | .word 0, 0 */
};

QEMU_BUILD_BUG_ON(sizeof(boot_code) > 510);

typedef struct BootCase {
    const char *name;
    const char *machine;
    const char *controller;     /* more properties, as JSON members */
    unsigned num_iothreads;
    int server;                 /* IOThread of request queue 0, or MAIN_LOOP */
} BootCase;

#define MAIN_LOOP (-1)

static const BootCase tcg_cases[] = {
    {
        .name = "pc/main-loop",
        .machine = "pc",
        .controller = "",
        .num_iothreads = 1,
        .server = MAIN_LOOP,
    }, {
        .name = "pc/iothread",
        .machine = "pc",
        .controller = ", 'iothread': 'io1'",
        .num_iothreads = 2,
        .server = 1,
    }, {
        .name = "pc/round-robin",
        .machine = "pc",
        .controller = ", 'iothread-vq-mapping': ["
                      "{'iothread': 'io1'}, {'iothread': 'io0'}]",
        .num_iothreads = 2,
        .server = 1,
    }, {
        .name = "pc/vqs",
        .machine = "pc",
        .controller = ", 'iothread-vq-mapping': ["
                      "{'iothread': 'io0', 'vqs': [3]},"
                      "{'iothread': 'io1', 'vqs': [1]},"
                      "{'iothread': 'io2', 'vqs': [0]},"
                      "{'iothread': 'io3', 'vqs': [2]}]",
        .num_iothreads = 4,
        .server = 2,
    }, {
        /*
         * There is no legacy-only case: QEMU 10.0.13 gives each queue 1024
         * entries, whatever virtqueue_size says, a legacy driver can't reduce
         * that, and SeaBIOS takes at most 256.
         */
        .name = "pc/modern",
        .machine = "pc",
        .controller = ", 'disable-legacy': 'on', 'iothread-vq-mapping': ["
                      "{'iothread': 'io0', 'vqs': [1, 2]},"
                      "{'iothread': 'io1', 'vqs': [3, 0]}]",
        .num_iothreads = 2,
        .server = 1,
    }, {
        .name = "q35/round-robin",
        .machine = "q35",
        .controller = ", 'bus': 'rp0', 'iothread-vq-mapping': ["
                      "{'iothread': 'io2'}, {'iothread': 'io1'},"
                      "{'iothread': 'io0'}]",
        .num_iothreads = 3,
        .server = 2,
    }, {
        .name = "q35/vqs",
        .machine = "q35",
        .controller = ", 'bus': 'rp0', 'iothread-vq-mapping': ["
                      "{'iothread': 'io0', 'vqs': [1, 3]},"
                      "{'iothread': 'io1', 'vqs': [2, 0]}]",
        .num_iothreads = 2,
        .server = 1,
    },
};

/* Fewer, because emulated KVM is slow: each form once, each machine once */
static const BootCase kvm_cases[] = {
    {
        .name = "pc/round-robin",
        .machine = "pc",
        .controller = ", 'iothread-vq-mapping': ["
                      "{'iothread': 'io1'}, {'iothread': 'io0'}]",
        .num_iothreads = 2,
        .server = 1,
    }, {
        .name = "q35/vqs",
        .machine = "q35",
        .controller = ", 'bus': 'rp0', 'iothread-vq-mapping': ["
                      "{'iothread': 'io0', 'vqs': [1]},"
                      "{'iothread': 'io1', 'vqs': [2]},"
                      "{'iothread': 'io2', 'vqs': [3]},"
                      "{'iothread': 'io3', 'vqs': [0]}]",
        .num_iothreads = 4,
        .server = 3,
    },
};

typedef struct BootFiles {
    char *dir;
    char *disk;
    char *trace;
    char *bios;
} BootFiles;

static void G_GNUC_PRINTF(1, 2) boot_fail(const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_test_message("FAILED: %s", text);
    g_test_fail();
}

/* Each sector has words that no other has, so a mix-up is seen. */
static void fill_pattern(uint8_t *data, unsigned lba, unsigned count)
{
    for (unsigned s = 0; s < count; s++) {
        for (unsigned w = 0; w < SECTOR / 2; w++) {
            uint16_t word = (lba + s) * 0x9e35 + w * 0x4f1b;

            *data++ = word & 0xff;
            *data++ = word >> 8;
        }
    }
}

static void disk_write(int fd, const void *data, unsigned lba, unsigned count)
{
    ssize_t len = count * SECTOR;

    g_assert(pwrite(fd, data, len, (off_t)lba * SECTOR) == len);
}

static void disk_create(const char *path)
{
    uint8_t data[MANY_COUNT * SECTOR] = { 0 };
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);

    g_assert(fd >= 0);
    g_assert(ftruncate(fd, (off_t)DISK_SECTORS * SECTOR) == 0);

    memcpy(data, boot_code, sizeof(boot_code));
    data[510] = 0x55;
    data[511] = 0xaa;
    disk_write(fd, data, 0, 1);

    for (unsigned i = 0; i < SINGLE_COUNT; i++) {
        unsigned lba = SINGLE_FIRST + i * SINGLE_STRIDE;

        fill_pattern(data, lba, 1);
        disk_write(fd, data, lba, 1);
    }
    fill_pattern(data, MANY_FIRST, MANY_COUNT);
    disk_write(fd, data, MANY_FIRST, MANY_COUNT);
    close(fd);
}

/* The guest's write is in the file, and its neighbours are still zero. */
static void disk_check_written(const char *path)
{
    uint8_t want[(WRITE_COUNT + 2) * SECTOR] = { 0 };
    uint8_t have[sizeof(want)];
    int fd = open(path, O_RDONLY);
    ssize_t len;

    fill_pattern(want + SECTOR, WRITE_FIRST, WRITE_COUNT);
    len = pread(fd, have, sizeof(have), (off_t)(WRITE_FIRST - 1) * SECTOR);
    close(fd);
    if (len != sizeof(have)) {
        boot_fail("can't read the image file back");
        return;
    }
    for (unsigned s = 0; s < WRITE_COUNT + 2; s++) {
        if (memcmp(want + s * SECTOR, have + s * SECTOR, SECTOR) != 0) {
            boot_fail("wrong data in sector %u of the image file",
                      WRITE_FIRST - 1 + s);
        }
    }
}

static BootFiles *boot_files_new(void)
{
    BootFiles *files = g_new0(BootFiles, 1);

    files->dir = g_dir_make_tmp("virtio-scsi-boot-XXXXXX", NULL);
    g_assert(files->dir);
    files->disk = g_build_filename(files->dir, "disk.raw", NULL);
    files->trace = g_build_filename(files->dir, "trace.log", NULL);
    files->bios = g_build_filename(files->dir, "bios.log", NULL);
    disk_create(files->disk);
    return files;
}

static void boot_files_free(BootFiles *files)
{
    g_unlink(files->disk);
    g_unlink(files->trace);
    g_unlink(files->bios);
    g_rmdir(files->dir);
    g_free(files->disk);
    g_free(files->trace);
    g_free(files->bios);
    g_free(files->dir);
    g_free(files);
}

/* The devices depend on each other: all are JSON, or the order is lost. */
static void args_add_device(GString *args, const char *fmt, ...)
    G_GNUC_PRINTF(2, 3);

static void args_add_device(GString *args, const char *fmt, ...)
{
    g_autoptr(GString) json = g_string_new(NULL);
    va_list ap;

    va_start(ap, fmt);
    g_string_vprintf(json, fmt, ap);
    va_end(ap);
    /* The command line goes through the shell, so quote the other way round. */
    g_strdelimit(json->str, "'", '"');
    g_string_append_printf(args, " -device '{%s}'", json->str);
}

static char *boot_args(const BootCase *bc, const char *accel,
                       const BootFiles *files)
{
    GString *args = g_string_new(NULL);

    /* Stopped at first, so that the threads can be looked at in any case. */
    g_string_append_printf(args, "-S -accel %s -machine %s -m 64 -nodefaults"
                           " -vga none", accel, bc->machine);
    /* If SeaBIOS finds nothing to boot, it resets soon, and QEMU ends. */
    g_string_append(args, " -no-reboot -boot reboot-timeout=10");
    for (unsigned i = 0; i < bc->num_iothreads; i++) {
        g_string_append_printf(args, " -object iothread,id=io%u", i);
    }
    g_string_append_printf(args, " -blockdev driver=file,node-name=disk,"
                           "filename=%s", files->disk);
    if (g_str_equal(bc->machine, "q35")) {
        args_add_device(args, "'driver': 'pcie-root-port', 'id': 'rp0'");
    }
    args_add_device(args, "'driver': 'virtio-scsi-pci', 'id': 'ctrl',"
                    " 'num_queues': 4%s", bc->controller);
    args_add_device(args, "'driver': 'scsi-hd', 'bus': 'ctrl.0', 'lun': 5,"
                    " 'drive': 'disk', 'bootindex': 0");
    args_add_device(args, "'driver': 'isa-debug-exit', 'iobase': %u,"
                    " 'iosize': 4", 0xf4);

    /* SeaBIOS talks to this port; shown when the boot fails. */
    g_string_append_printf(args, " -chardev file,id=bios,path=%s", files->bios);
    args_add_device(args, "'driver': 'isa-debugcon', 'iobase': %u,"
                    " 'chardev': 'bios'", 0x402);

    /* The time stamp comes with the number of the thread. */
    g_string_append_printf(args, " -msg timestamp=on -D %s -d"
                           " trace:blk_co_preadv,trace:blk_co_pwritev,"
                           "trace:virtio_queue_notify", files->trace);
    if (g_str_equal(accel, "kvm")) {
        g_string_append(args, ",trace:kvm_set_ioeventfd_pio,"
                        "trace:kvm_set_ioeventfd_mmio");
    }
    return g_string_free(args, false);
}

static bool kvm_is_used(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'query-kvm' }");
    bool enabled = qdict_get_bool(qdict_get_qdict(rsp, "return"), "enabled");

    qobject_unref(rsp);
    return enabled;
}

static pid_t server_thread(QTestState *qts, int server)
{
    g_autofree char *id = g_strdup_printf("io%d", server);
    pid_t tid = 0;
    QListEntry *entry;
    QDict *rsp;

    if (server == MAIN_LOOP) {
        return qtest_pid(qts);
    }
    rsp = qtest_qmp(qts, "{ 'execute': 'query-iothreads' }");
    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(info, "id"), id)) {
            tid = qdict_get_int(info, "thread-id");
        }
    }
    qobject_unref(rsp);
    g_assert(tid > 0);
    return tid;
}

/*
 * Wait until QEMU ends, and leave it to libqtest to reap it.
 * Returns: the exit status, or -1 if QEMU hangs or was killed
 */
static int wait_for_exit(QTestState *qts)
{
    gint64 limit = g_get_monotonic_time() + BOOT_LIMIT_S * G_USEC_PER_SEC;

    do {
        siginfo_t info = { .si_pid = 0 };
        int ret = waitid(P_PID, qtest_pid(qts), &info,
                         WEXITED | WNOHANG | WNOWAIT);

        g_assert(ret == 0);
        if (info.si_pid) {
            return info.si_code == CLD_EXITED ? info.si_status : -1;
        }
        g_usleep(20 * 1000);
    } while (g_get_monotonic_time() < limit);

    g_test_message("no end after %d s", BOOT_LIMIT_S);
    return -1;
}

static void show_bios_log(const char *path)
{
    g_autofree char *text = NULL;
    gsize len;

    if (g_file_get_contents(path, &text, &len, NULL)) {
        g_test_message("the end of SeaBIOS's log:");
        g_test_message("%s", text + (len > 1500 ? len - 1500 : 0));
    }
}

static void explain_status(int status)
{
    for (unsigned i = 1; i < ARRAY_SIZE(boot_steps); i++) {
        if (status == DEBUG_EXIT(BOOT_FAIL + 2 * i)) {
            boot_fail("step %s: the BIOS reports an error", boot_steps[i]);
            return;
        }
        if (status == DEBUG_EXIT(BOOT_FAIL + 2 * i + 1)) {
            boot_fail("step %s: wrong data", boot_steps[i]);
            return;
        }
    }
    if (status < 0) {
        boot_fail("QEMU did not end by itself");
    } else {
        boot_fail("the boot sector did not run to its end: exit status %d",
                  status);
    }
}

typedef struct TraceSums {
    int64_t read[2];            /* bytes; [true] is the wanted thread */
    int64_t written[2];
    unsigned kicks[2];          /* of request queue 0 */
    unsigned ioeventfds;
} TraceSums;

static int64_t trace_number(const char *line, const char *name)
{
    const char *at = strstr(line, name);

    g_assert(at);
    return g_ascii_strtoll(at + strlen(name), NULL, 0);
}

static void trace_add_line(TraceSums *sums, const char *line, pid_t wanted)
{
    char event[32];
    bool match;
    int tid;

    if (sscanf(line, "%d@%*u.%*u:%31s", &tid, event) != 2) {
        return;
    }
    match = tid == wanted;
    if (g_str_equal(event, "virtio_queue_notify")) {
        sums->kicks[match] += trace_number(line, " n ") == REQUEST_QUEUE_0;
    } else if (g_str_has_prefix(event, "kvm_set_ioeventfd_")) {
        sums->ioeventfds += trace_number(line, " assign: ");
    } else if (g_str_equal(event, "blk_co_pwritev")) {
        sums->written[match] += trace_number(line, " bytes ");
    } else if (trace_number(line, " offset ") != 0) {
        /* Sector 0 is also read by realize, in whatever thread that is. */
        sums->read[match] += trace_number(line, " bytes ");
    }
}

static void trace_check(const char *path, pid_t wanted, bool kvm)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    TraceSums sums = { .ioeventfds = 0 };

    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        boot_fail("QEMU wrote no trace");
        return;
    }
    lines = g_strsplit(text, "\n", -1);
    for (unsigned i = 0; lines[i]; i++) {
        trace_add_line(&sums, lines[i], wanted);
    }
    g_test_message("right thread: %" PRId64 " bytes read, %" PRId64
                   " written, %u kicks; others: %" PRId64 ", %" PRId64 ", %u;"
                   " %u ioeventfds in KVM",
                   sums.read[true], sums.written[true], sums.kicks[true],
                   sums.read[false], sums.written[false], sums.kicks[false],
                   sums.ioeventfds);

    if (sums.read[true] != READ_BYTES || sums.written[true] != WRITE_BYTES) {
        boot_fail("the queue's thread should have read %d and written %d bytes",
                  READ_BYTES, WRITE_BYTES);
    }
    if (sums.read[false] || sums.written[false]) {
        boot_fail("another thread did some of the queue's I/O");
    }
    /*
     * A kick that leaves KVM for QEMU (no ioeventfd, or one that doesn't match)
     * is taken by the vCPU's thread.
     */
    if (!sums.kicks[true] || sums.kicks[false]) {
        boot_fail("kicks should arrive in the queue's thread, and only there");
    }
    if (kvm && !sums.ioeventfds) {
        boot_fail("KVM was given no ioeventfd");
    }
}

/* Returns: why the test can't run here, NULL if it can */
static char *why_not(const BootCase *bc, const char *accel)
{
    const char *const devices[] = {
        "virtio-scsi-pci", "scsi-hd", "pcie-root-port",
        "isa-debug-exit", "isa-debugcon",
    };

    if (!qtest_has_machine(bc->machine)) {
        return g_strdup_printf("no machine \"%s\"", bc->machine);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(devices); i++) {
        if (!qtest_has_device(devices[i])) {
            return g_strdup_printf("no device \"%s\"", devices[i]);
        }
    }
    if (g_str_equal(accel, "kvm")) {
        int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

        if (fd < 0) {
            return g_strdup_printf("can't open /dev/kvm: %s", strerror(errno));
        }
        close(fd);
    }
    if (!qtest_has_accel(accel)) {
        return g_strdup_printf("this QEMU was built without %s", accel);
    }
    return NULL;
}

static void boot(const BootCase *bc, const char *accel)
{
    bool kvm = g_str_equal(accel, "kvm");
    g_autofree char *args = NULL;
    g_autofree char *missing = why_not(bc, accel);
    BootFiles *files;
    QTestState *qts;
    pid_t thread;
    int status;

    if (missing) {
        g_test_skip(missing);
        return;
    }

    files = boot_files_new();
    args = boot_args(bc, accel, files);
    qts = qtest_init(args);
    /* libqtest adds -accel qtest, to which QEMU falls back without a word. */
    if (kvm_is_used(qts) != kvm) {
        boot_fail("QEMU could not start with -accel %s", accel);
        qtest_quit(qts);
        boot_files_free(files);
        return;
    }
    thread = server_thread(qts, bc->server);
    qtest_qmp_assert_success(qts, "{ 'execute': 'cont' }");

    status = wait_for_exit(qts);
    if (status > 0) {
        qtest_set_expected_status(qts, status);
    }
    qtest_quit(qts);

    if (status == DEBUG_EXIT(BOOT_PASS)) {
        disk_check_written(files->disk);
#ifdef CONFIG_TRACE_LOG
        trace_check(files->trace, thread, kvm);
#else
        g_test_skip("it boots, but which thread did it can't be seen without"
                    " the trace backend \"log\"");
#endif
    } else {
        explain_status(status);
        show_bios_log(files->bios);
    }
    boot_files_free(files);
}

static void boot_tcg(const void *data)
{
    boot(data, "tcg");
}

static void boot_kvm(const void *data)
{
    boot(data, "kvm");
}

static void add_cases(const char *accel, const BootCase *cases, unsigned count,
                      void (*fn)(const void *data))
{
    for (unsigned i = 0; i < count; i++) {
        g_autofree char *path = g_strdup_printf("virtio-scsi-boot/%s/%s",
                                                accel, cases[i].name);

        qtest_add_data_func(path, &cases[i], fn);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add_cases("tcg", tcg_cases, ARRAY_SIZE(tcg_cases), boot_tcg);
    add_cases("kvm", kvm_cases, ARRAY_SIZE(kvm_cases), boot_kvm);
    return g_test_run();
}
