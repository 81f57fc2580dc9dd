/*
 * Inputs of a fuzzer without libFuzzer, as a unit test
 *
 * Reads tests/fuzz-corpus/NAME, where NAME is the program's name without
 * "test-": a line is an input in hex digits, spaces are for the reader, and
 * a line that begins with # is a comment.  Each input is replayed as it is, cut
 * off after each byte, and with each byte changed in three ways.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "fuzz-target.h"

static const char *corpus; /* name of the file */

static GByteArray *parse_line(const char *line)
{
    GByteArray *input = g_byte_array_new();
    int high = -1;

    for (; *line; line++) {
        int digit = g_ascii_xdigit_value(*line);

        if (digit < 0) {
            g_assert(*line == ' ' && high < 0);
        } else if (high < 0) {
            high = digit;
        } else {
            uint8_t byte = high << 4 | digit;

            g_byte_array_append(input, &byte, 1);
            high = -1;
        }
    }
    g_assert(high < 0);
    return input;
}

static void replay(GByteArray *input)
{
    static const uint8_t flips[] = { 0x01, 0x80, 0xff };

    for (size_t size = 0; size <= input->len; size++) {
        LLVMFuzzerTestOneInput(input->data, size);
    }
    for (size_t i = 0; i < input->len; i++) {
        for (unsigned f = 0; f < ARRAY_SIZE(flips); f++) {
            input->data[i] ^= flips[f];
            LLVMFuzzerTestOneInput(input->data, input->len);
            input->data[i] ^= flips[f];
        }
    }
}

static void test_corpus(void)
{
    g_autofree char *path = g_test_build_filename(G_TEST_DIST, "..",
                                                  "fuzz-corpus", corpus, NULL);
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    g_autoptr(GError) error = NULL;
    unsigned num = 0;

    g_file_get_contents(path, &text, NULL, &error);
    g_assert_no_error(error);
    lines = g_strsplit(text, "\n", -1);
    for (unsigned i = 0; lines[i]; i++) {
        GByteArray *input;

        if (!lines[i][0] || lines[i][0] == '#') {
            continue;
        }
        input = parse_line(lines[i]);
        replay(input);
        g_byte_array_unref(input);
        num++;
    }
    g_assert_cmpuint(num, >, 0);
}

int main(int argc, char **argv)
{
    g_autofree char *name = g_path_get_basename(argv[0]);

    g_assert(g_str_has_prefix(name, "test-"));
    corpus = name + strlen("test-");
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/fuzz/corpus", test_corpus);
    return g_test_run();
}
