/*
 * Stress of a virtio-scsi device: block jobs under load
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "virtio-scsi-stress.h"

static void add_target(Stress *s, Lun *lun)
{
    Job *job = &lun->job;
    int fd = g_open(job->file, O_CREAT | O_RDWR, 0600);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, TOTAL_BLOCKS * BLOCK_SIZE), ==, 0);
    close(fd);
    QMP(s, "{'execute': 'blockdev-add', 'arguments': {'driver': 'file', "
        "'node-name': %s, 'filename': %s, 'discard': 'unmap', "
        "'aio': 'threads'}}", job->node, job->file);
}

static void start_mirror(Stress *s, Lun *lun)
{
    add_target(s, lun);
    QMP(s, "{'execute': 'blockdev-mirror', 'arguments': {'job-id': %s, "
        "'device': %s, 'target': %s, 'sync': 'full'}}", lun->job.id,
        lun->node, lun->job.node);
}

/* A backup shows the disk as it was when the job began. */
static void start_backup(Stress *s, Lun *lun)
{
    Job *job = &lun->job;

    add_target(s, lun);
    load_drain(s);
    s->hold = true;
    job->copy = g_new(uint64_t, DISK_BLOCKS);
    for (unsigned i = 0; i < DISK_BLOCKS; i++) {
        const Block *b = &lun->blocks[i];

        job->copy[i] = b->unsettled || b->loose ? CONTENT_UNKNOWN :
                       b->is;
    }
    QMP(s, "{'execute': 'blockdev-backup', 'arguments': {'job-id': %s, "
        "'device': %s, 'target': %s, 'sync': 'full'}}", job->id, lun->node,
        job->node);
    s->hold = false;
}

/* A snapshot, and some writes into it */
static void take_snapshot(Stress *s, Lun *lun)
{
    Job *job = &lun->job;

    QMP(s, "{'execute': 'blockdev-snapshot-sync', 'arguments': {"
        "'node-name': %s, 'snapshot-file': %s, 'snapshot-node-name': %s, "
        "'format': 'qcow2'}}", lun->node, job->file, job->node);
    load_run(s, 4 * PACE);
}

/* A snapshot, and after some writes into it back to the file below */
static void start_commit(Stress *s, Lun *lun)
{
    Job *job = &lun->job;

    take_snapshot(s, lun);
    QMP(s, "{'execute': 'block-commit', 'arguments': {'job-id': %s, "
        "'device': %s}}", job->id, job->node);
}

/* A snapshot, and all that is below it copied up; the disk is a qcow2 then */
static void start_stream(Stress *s, Lun *lun)
{
    Job *job = &lun->job;

    take_snapshot(s, lun);
    QMP(s, "{'execute': 'block-stream', 'arguments': {'job-id': %s, "
        "'device': %s}}", job->id, job->node);
}

static void job_start(Stress *s, Lun *lun)
{
    static void (*const start[])(Stress *s, Lun *lun) = {
        [JOB_MIRROR] = start_mirror,
        [JOB_BACKUP] = start_backup,
        [JOB_COMMIT] = start_commit,
        [JOB_STREAM] = start_stream,
    };
    Job *job = &lun->job;
    const char *name = lun->spec->name;

    job->kind = stress_below(s, NUM_JOB_KINDS);
    job->serial++;
    job->state = JOB_RUNNING;
    job->id = g_strdup_printf("job-%s-%u", name, job->serial);
    job->node = g_strdup_printf("%s-%u", name, job->serial);
    job->file = g_strdup_printf("%s/%s-%u", s->dir, name, job->serial);
    start[job->kind](s, lun);
}

static void delete_node(Stress *s, const char *node)
{
    QMP(s, "{'execute': 'blockdev-del', 'arguments': {'node-name': %s}}", node);
}

static void job_finish(Stress *s, Lun *lun)
{
    Job *job = &lun->job;
    bool moved = job->kind == JOB_MIRROR || job->kind == JOB_STREAM;

    if (moved && !lun->node_goes) {
        delete_node(s, lun->node);
    }
    if (job->kind == JOB_BACKUP) {
        delete_node(s, job->node);
    }
    if (job->kind == JOB_BACKUP) {
        load_check_image(lun, job->file, job->copy);
    }
    if (moved) {
        lun->node_goes = job->kind == JOB_STREAM;
        g_unlink(lun->file);
        g_free(lun->file);
        g_free(lun->node);
        lun->file = g_strdup(job->file);
        lun->node = g_strdup(job->node);
    } else {
        g_unlink(job->file);
    }
    g_free(job->id);
    g_free(job->node);
    g_free(job->file);
    g_free(job->copy);
    *job = (Job) { .serial = job->serial };
    s->count[COUNT_JOBS]++;
}

static void job_advance(Stress *s, Lun *lun)
{
    Job *job = &lun->job;

    if (job->state == JOB_READY) {
        job->state = JOB_COMPLETING;
        QMP(s, "{'execute': 'job-complete', 'arguments': {'id': %s}}",
            job->id);
    } else if (job->state == JOB_DONE) {
        job_finish(s, lun);
    }
}

/* LUNs of LUN_DATA and nothing else take part in jobs. */
void act_job(Stress *s)
{
    for (unsigned i = 0; i < s->num_luns; i++) {
        Lun *lun = &s->luns[i];

        if (lun->spec->kind != LUN_DATA) {
            continue;
        }
        if (lun->job.state == JOB_NONE) {
            job_start(s, lun);
        } else {
            job_advance(s, lun);
        }
    }
}

/*
 * A job that follows the guest's writes may never catch up with them on a slow
 * build, so after a while there are no new ones.
 */
void act_finish_jobs(Stress *s)
{
    unsigned loaded = 100 * PACE;

    for (unsigned i = 0; i < s->num_luns; i++) {
        while (s->luns[i].job.state != JOB_NONE) {
            load_pump(s, loaded > 0);
            loaded -= loaded > 0;
            job_advance(s, &s->luns[i]);
        }
    }
}
