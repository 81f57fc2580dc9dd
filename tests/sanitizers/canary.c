/*
 * A library that overflows and leaks, for check-sanitizer to see both in a QEMU
 * that loads it
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <limits.h>
#include <stdlib.h>

__attribute__((constructor)) void canary(void)
{
    int big = INT_MAX;

    unsetenv("LD_PRELOAD");     /* not for llvm-symbolizer, too */
    big = big + 1;
    for (int i = 0; i < 10; i++) {
        void *lost = malloc(4242);
        (void)lost;
    }
}
