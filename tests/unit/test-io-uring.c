/*
 * Unit test of aio=io_uring
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "block/raw-aio.h"
#include "aio-engine.h"

static bool setup(AioContext *ctx)
{
    return aio_setup_linux_io_uring(ctx, NULL) != NULL;
}

static int coroutine_fn co_submit(int fd, uint64_t offset, QEMUIOVector *qiov,
                                  int type)
{
    return luring_co_submit(NULL, fd, offset, qiov, type, 0);
}

static const AioEngine io_uring = {
    .name = "io_uring",
    .short_write = -ENOSPC,
    .setup = setup,
    .co_submit = co_submit,
};

int main(int argc, char **argv)
{
    return aio_engine_main(argc, argv, &io_uring);
}
