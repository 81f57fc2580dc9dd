#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""hw/scsi/scsi-cdb.c reads random CDBs as the pristine base does.

Compiles the parser of build/base (scsi_req_parse_cdb) and ours into one
program, which feeds both the same pseudo-random CDBs of all operation codes,
kinds of devices, block sizes and lengths. Return code, CDB length, transfer
length, direction and LBA must be the same, but for the corrections listed
here; each of those must show. Prints TAP.
"""

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BASE = os.path.join(TOP, "build/base")
OBJ = os.path.join(TOP, "build/obj")
LEAST = 2000000  # CDBs; with fewer a rare difference may not show
TIMEOUT = 600   # hang guard for a compiler or the comparison, in seconds

ROM, TAPE, CHANGER, SCANNER = 5, 1, 8, 6
# disk, processor, write-once, magneto-optical, enclosure, RBC, zoned, none
BLOCK = (0, 3, 4, 7, 0x0d, 0x0e, 0x14, 0x7f)
ANY = BLOCK + (ROM, TAPE, CHANGER, SCANNER)
NOT_CHANGER = BLOCK + (ROM, TAPE, SCANNER)

LENGTH, DIRECTION = {"xfer", "mode"}, {"mode"}

# (operation code, types, fields that differ, what the standard says)
CORRECTIONS = [
    (0x13, (TAPE,), LENGTH,
     "SSC-4 VERIFY(6): bytes 2-4, data-out, only with BYTCMP"),
    (0x34, (SCANNER,), LENGTH,
     "SCSI-2 GET DATA BUFFER STATUS: allocation length"),
    (0x3f, BLOCK, LENGTH,
     "SBC-3 WRITE LONG(10): data-out of the byte transfer length"),
    (0x48, BLOCK, DIRECTION, "SBC-3 SANITIZE: data-out"),
    (0x51, BLOCK, LENGTH, "SBC-3 XPWRITE(10): blocks, data-out"),
    (0x54, (ROM,), DIRECTION, "MMC-6 SEND OPC INFORMATION: data-out"),
    (0x83, ANY, DIRECTION, "SPC-4 EXTENDED COPY: data-out"),
    (0x87, ANY, DIRECTION, "SPC-4 ACCESS CONTROL OUT: data-out"),
    (0x89, BLOCK, LENGTH,
     "SBC-3 COMPARE AND WRITE: twice the blocks of byte 13, data-out"),
    (0x8b, BLOCK, LENGTH, "SBC-3 ORWRITE(16): blocks, data-out"),
    (0x8d, ANY, DIRECTION, "SPC-4 WRITE ATTRIBUTE: data-out"),
    (0x8f, (TAPE,), LENGTH, "SSC-4 VERIFY(16): no data without BYTCMP"),
    (0x91, (TAPE,), DIRECTION, "SSC-4 SPACE(16): parameter list, data-out"),
    (0x9a, BLOCK, LENGTH,
     "SBC-4 WRITE STREAM(16): blocks of bytes 12-13, data-out"),
    (0x9c, BLOCK, LENGTH,
     "SBC-4 WRITE ATOMIC(16): blocks of bytes 12-13, data-out"),
    (0x9f, BLOCK, LENGTH,
     "SBC-3 WRITE LONG(16): bytes 12-13, data-out, none with WR_UNCOR"),
    (0xa2, ANY, {"xfer"}, "SPC-4 SECURITY PROTOCOL IN: INC_512"),
    (0xa6, (ROM,), LENGTH, "MMC-6 LOAD/UNLOAD MEDIUM: no data"),
    (0xb5, NOT_CHANGER, LENGTH,
     "SPC-4 SECURITY PROTOCOL OUT: data-out, INC_512"),
]

# Compiled with the base's headers: the base's parser, to be called like ours.
BASE_SIDE = """
#include "qemu/osdep.h"
#include "qemu/module.h"
#include "hw/scsi/scsi.h"

int base_parse(int type, uint32_t blocksize, uint8_t *cdb, size_t size,
               SCSICommand *cmd);

int base_parse(int type, uint32_t blocksize, uint8_t *cdb, size_t size,
               SCSICommand *cmd)
{
    static SCSIDevice dev;

    dev.type = type;
    dev.blocksize = blocksize;
    return scsi_req_parse_cdb(&dev, cmd, cdb, size);
}

/* The only code of the bus that would run: its constructor. */
void register_module_init(void (*fn)(void), module_init_type type)
{
}
"""

# Prints "OPCODE TYPE TRIES DIFFERENT-FIELDS EXAMPLE" for each pair, the fields
# as bits (FIELDS). Block sizes end where the base's int arithmetic for ATA
# PASS-THROUGH overflows.
FIELDS = ("rc", "len", "xfer", "mode", "lba", "buf")
DRIVER = """
#include "qemu/osdep.h"
#include "hw/scsi/scsi-cdb.h"

int base_parse(int type, uint32_t blocksize, uint8_t *cdb, size_t size,
               SCSICommand *cmd);

enum { RC = 1, LEN = 2, XFER = 4, MODE = 8, LBA = 16, BUF = 32 };

static const int types[] = { TYPES };
static const uint32_t sizes[] = { 0, 1, 512, 520, 2048, 4096, 32768 };
static unsigned tries[256][ARRAY_SIZE(types)];
static unsigned fields[256][ARRAY_SIZE(types)];
static char *example[256][ARRAY_SIZE(types)];
static uint64_t state;

static uint32_t rnd(uint32_t below)     /* xorshift64* */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 0x2545f4914f6cdd1dULL >> 32) % below;
}

static unsigned differ(int a_rc, SCSICommand *a, int b_rc, SCSICommand *b)
{
    unsigned d = (a_rc != b_rc ? RC : 0) | (a->len != b->len ? LEN : 0) |
                 (a->lba != b->lba ? LBA : 0);

    if (a_rc) {
        return d;   /* the base leaves the rest as it was */
    }
    return d | (a->xfer != b->xfer ? XFER : 0) |
           (a->mode != b->mode ? MODE : 0) |
           (memcmp(a->buf, b->buf, a->len) ? BUF : 0);
}

static char *show(uint32_t bs, const uint8_t *cdb, size_t size,
                  int a_rc, SCSICommand *a, int b_rc, SCSICommand *b)
{
    GString *s = g_string_new("");

    for (int i = 0; i < 16; i++) {
        g_string_append_printf(s, "%02x", cdb[i]);
    }
    g_string_append_printf(s, " size %zu block %u: "
        "base %d len %d xfer %zu mode %d lba %" PRIx64 ", "
        "ours %d len %d xfer %zu mode %d lba %" PRIx64,
        size, bs, a_rc, a->len, a->xfer, a->mode, a->lba,
        b_rc, b->len, b->xfer, b->mode, b->lba);
    return g_string_free(s, false);
}

static void fill(uint8_t *cdb)
{
    unsigned zeros = rnd(4);    /* sparse CDBs have small lengths, and 0 */

    for (int i = 0; i < 16; i++) {
        cdb[i] = rnd(4) < zeros ? 0 : rnd(256);
    }
    cdb[0] = rnd(256);
}

static void try(void)
{
    uint8_t cdb[16];
    unsigned t = rnd(ARRAY_SIZE(types));
    uint32_t bs = sizes[rnd(ARRAY_SIZE(sizes))];
    size_t size = rnd(2) ? 16 : rnd(17);
    SCSICommand a = { }, b = { };
    int a_rc, b_rc;
    unsigned d;

    fill(cdb);
    if (size == 0) {
        cdb[0] = 0xff;  /* the base looks at the byte that isn't there */
    }
    a_rc = base_parse(types[t], bs, cdb, size, &a);
    b_rc = scsi_cdb_parse(types[t], bs, cdb, size, &b);
    d = differ(a_rc, &a, b_rc, &b);
    tries[cdb[0]][t]++;
    if (d & ~fields[cdb[0]][t]) {
        g_free(example[cdb[0]][t]);
        example[cdb[0]][t] = show(bs, cdb, size, a_rc, &a, b_rc, &b);
        fields[cdb[0]][t] |= d;
    }
}

int main(int argc, char **argv)
{
    state = strtoull(argv[1], NULL, 10);
    for (uint64_t n = strtoull(argv[2], NULL, 10); n; n--) {
        try();
    }
    for (int op = 0; op < 256; op++) {
        for (int t = 0; t < ARRAY_SIZE(types); t++) {
            printf("%d %d %u %u %s\\n", op, types[t], tries[op][t],
                   fields[op][t], example[op][t] ?: "");
        }
    }
    return 0;
}
"""


class Failure(Exception):
    """The test can't be done; the text says why."""


def run(command, cwd=None):
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=TIMEOUT, universal_newlines=True)
    if done.returncode:
        for line in done.stdout.splitlines()[-20:]:
            print("# " + line)
        raise Failure("%s failed (%d)" % (command[0], done.returncode))
    return done.stdout


def base_flags():
    """Directory, compiler and flags for a file of the base's hw/scsi.

    Both are lists; the compiler may be "ccache cc".
    """
    with open(os.path.join(OBJ, "compile_commands.json")) as f:
        entries = json.load(f)
    for entry in entries:
        path = os.path.realpath(os.path.join(entry["directory"],
                                             entry["file"]))
        if path.endswith("/hw/scsi/scsi-disk.c"):
            break
    else:
        raise Failure("no hw/scsi/scsi-disk.c in compile_commands.json")
    source = path[:-len("/hw/scsi/scsi-disk.c")]
    words = shlex.split(entry["command"])
    compiler, flags = [], []
    while words and not words[0].startswith("-"):
        compiler.append(words.pop(0))
    while words:
        word = words.pop(0)
        if word in ("-MQ", "-MF", "-o", "-c"):
            words.pop(0)    # -c stands before the source file
        elif word != "-MD" and not word.startswith(("-fsanitize", "-flto")):
            flags.append(word.replace(source, BASE))
    return entry["directory"], compiler, flags


def build(work):
    """Compile both parsers and the driver; returns the program's path."""
    directory, compiler, flags = base_flags()
    sources = {
        "base-bus": os.path.join(BASE, "hw/scsi/scsi-bus.c"),
        "base-utils": os.path.join(BASE, "scsi/utils.c"),
        "base-side": BASE_SIDE,
        "ours": os.path.join(TOP, "hw/scsi/scsi-cdb.c"),
        "driver": DRIVER.replace("TYPES", ", ".join(map(str, ANY)), 1),
    }
    # what the rest of scsi-bus.c needs of generated headers is thrown away
    flags += ["-w", "-Wno-error=implicit-function-declaration",
              "-ffunction-sections", "-fdata-sections"]
    for name, source in sources.items():
        if "\n" in source:
            path = os.path.join(work, name + ".c")
            with open(path, "w") as f:
                f.write(source)
            source = path
        # ours has a field more in SCSICommand, at its end
        include = (["-iquote", os.path.join(TOP, "build/src/include")]
                   if name in ("ours", "driver") else [])
        run(compiler + include + flags
            + ["-c", source, "-o", os.path.join(work, name + ".o")], directory)
    program = os.path.join(work, "differential")
    run(compiler + [os.path.join(work, name + ".o") for name in sources]
        + ["-no-pie", "-Wl,--gc-sections",
           "-Wl,--unresolved-symbols=ignore-all", "-lglib-2.0",
           "-o", program])
    return program


def compare(program, seed, count):
    """Results by (opcode, type): tries, set of different fields, example."""
    results = {}
    for line in run([program, str(seed), str(count)]).splitlines():
        opcode, kind, tries, fields, example = line.split(" ", 4)
        results[int(opcode), int(kind)] = (
            int(tries), {name for bit, name in enumerate(FIELDS)
                         if int(fields) >> bit & 1}, example)
    if len(results) != 256 * len(ANY):
        raise Failure("the program printed %d results instead of %d"
                      % (len(results), 256 * len(ANY)))
    return results


class Tap:
    def __init__(self):
        self.count = 0
        self.failed = 0

    def result(self, problems, name):
        self.count += 1
        self.failed += bool(problems)
        for problem in problems[:20]:
            print("# " + problem)
        print("%sok %d - %s" % ("not " if problems else "", self.count, name))


def judge(tap, results, count):
    tries = sum(result[0] for result in results.values())
    rare = ["opcode %#04x type %d: only %d CDBs" % (pair + result[:1])
            for pair, result in results.items()
            if result[0] < count / len(results) / 3]
    if tries != count:
        rare.append("%d CDBs instead of %d" % (tries, count))
    tap.result(rare, "%d CDBs, every opcode with every type" % count)

    allowed = {(opcode, kind): fields
               for opcode, kinds, fields, _ in CORRECTIONS for kind in kinds}
    tap.result(["opcode %#04x type %d: %s differ: %s"
                % (pair + ("+".join(sorted(fields)), example))
                for pair, (_, fields, example) in sorted(results.items())
                if fields - allowed.get(pair, set())],
               "no difference that is not listed")
    for opcode, kinds, fields, reason in CORRECTIONS:
        tap.result(["type %d: differs in %s, not in %s"
                    % (kind, "+".join(sorted(results[opcode, kind][1]))
                       or "nothing", "+".join(sorted(fields)))
                    for kind in kinds if results[opcode, kind][1] != fields],
                   "corrected: %#04x, %s" % (opcode, reason))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**63),
                        help="of the pseudo-random CDBs (default: another "
                             "each time; it is printed)")
    parser.add_argument("--count", type=int, default=4000000,
                        help="CDBs to compare (default: %(default)s)")
    args = parser.parse_args()
    if not 0 < args.seed < 2**64 or args.count < LEAST:
        parser.error("--seed must be 1 to 2^64-1, --count at least %d" % LEAST)

    for path, target in ((os.path.join(BASE, "hw/scsi/scsi-bus.c"), "base"),
                         (os.path.join(OBJ, "compile_commands.json"), "build"),
                         (os.path.join(OBJ, "config-host.h"), "build")):
        if not os.path.exists(path):
            print("1..0 # SKIP no %s (make %s)"
                  % (os.path.relpath(path, TOP), target))
            return 0

    tap = Tap()
    print("# seed %d" % args.seed, flush=True)
    with tempfile.TemporaryDirectory(prefix="cdb-differential-") as work:
        try:
            results = compare(build(work), args.seed, args.count)
        except (Failure, OSError, subprocess.TimeoutExpired) as e:
            tap.result([str(e)], "compile and run both parsers")
        else:
            judge(tap, results, args.count)
    print("1..%d" % tap.count)
    return 1 if tap.failed else 0


if __name__ == "__main__":
    sys.exit(main())
