/*
 * A fuzzer without a VM: what libFuzzer and fuzz-replay.c call
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_UNIT_FUZZ_TARGET_H
#define TESTS_UNIT_FUZZ_TARGET_H

/**
 * LLVMFuzzerTestOneInput:
 * @data: the input
 * @size: its length
 *
 * Feed the code under test, and abort if an answer breaks a rule.
 *
 * Context: main thread; nothing is left of earlier calls.
 * Returns: 0.
 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Takes numbers from the beginning of an input, and 0 behind its end. */
typedef struct FuzzInput {
    const uint8_t *data;
    size_t size;
} FuzzInput;

static inline uint8_t fuzz_byte(FuzzInput *in)
{
    if (!in->size) {
        return 0;
    }
    in->size--;
    return *in->data++;
}

static inline uint64_t fuzz_number(FuzzInput *in, unsigned bytes)
{
    uint64_t n = 0;

    while (bytes--) {
        n = n << 8 | fuzz_byte(in);
    }
    return n;
}

#endif /* TESTS_UNIT_FUZZ_TARGET_H */
