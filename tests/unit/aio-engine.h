/*
 * Unit tests of an engine for asynchronous I/O
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TEST_AIO_ENGINE_H
#define TEST_AIO_ENGINE_H

#include "block/aio.h"
#include "iothread.h"

typedef void (*AioEngineTest)(IOThread *iothread);

typedef struct AioEngine {
    const char *name;       /* what aio= calls it */
    bool needs_direct;      /* the block layer wants cache.direct=on with it */
    int short_write;        /* what a write gets that a limit cuts off */
    bool (*setup)(AioContext *ctx);
    int coroutine_fn (*co_submit)(int fd, uint64_t offset, QEMUIOVector *qiov,
                                  int type);
} AioEngine;

/**
 * aio_engine_main: the main() of the tests of @engine
 */
int aio_engine_main(int argc, char **argv, const AioEngine *engine);

#endif
