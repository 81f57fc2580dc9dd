/*
 * SCSI bus core: what its rooms share
 *
 *   scsi-bus.c       bus and device: QOM, addresses, drain
 *   scsi-topology.c  which LUN is where
 *   scsi-req.c       life of a request
 *   scsi-inflight.c  requests in flight, by AioContext
 *   scsi-cdb.c       what a CDB says
 *   scsi-target.c    what the bus answers for the LUN
 *   scsi-sense.c     unit attention conditions, held sense data
 *   scsi-vmstate.c   migration
 *   scsi-legacy.c    -drive if=scsi
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SCSI_SCSI_INTERNAL_H
#define HW_SCSI_SCSI_INTERNAL_H

#include "block/aio-wait.h"
#include "hw/scsi/scsi.h"
#include "scsi/constants.h"

/* The class of a device, without a checked cast: hot path */
static inline SCSIDeviceClass *scsi_device_class(SCSIDevice *d)
{
    return (SCSIDeviceClass *)d->qdev.parent_obj.class;
}

/* scsi-topology.c */

/**
 * SCSILunMap: the realized LUNs of a bus, sorted by address.  A version of it
 * never changes; RCU frees it after the next one is published.
 */
struct SCSILunMap {
    struct rcu_head rcu;
    unsigned num;
    SCSIDevice *luns[];
};

/**
 * scsi_topology_publish:
 * @bus: the bus of @d
 * @d: a LUN with a valid address
 *
 * Commands find @d as soon as it is realized, too.  Context: BQL held.
 */
void scsi_topology_publish(SCSIBus *bus, SCSIDevice *d);

/**
 * scsi_topology_unpublish:
 * @bus: the bus of @d
 * @d: any device
 *
 * Nobody finds @d from now on, but somebody may have found it just before, and
 * be about to submit a command.  scsi_device_purge_requests() waits for them.
 *
 * Context: BQL held.
 */
void scsi_topology_unpublish(SCSIBus *bus, SCSIDevice *d);

/**
 * scsi_topology_list:
 * @bus: a bus
 * @channel: where the target is
 * @target: its id
 *
 * Context: any thread.
 * Returns: the target's LUNs in ascending order, as an array of uint32_t for
 * g_array_unref().
 */
GArray *scsi_topology_list(SCSIBus *bus, uint32_t channel, uint32_t target);

/**
 * scsi_topology_occupant:
 * @bus: a bus
 * @channel: an address on it
 * @target: an address on it
 * @lun: an address on it
 * @except: don't look at this one
 *
 * Context: BQL held.
 * Returns: the device with that address, be it realized or not, or NULL.
 */
SCSIDevice *scsi_topology_occupant(SCSIBus *bus, uint32_t channel,
                                   uint32_t target, uint32_t lun,
                                   const SCSIDevice *except);

/* scsi-req.c */

/**
 * scsi_req_restore:
 * @d: the LUN
 * @tag: the request's tag
 * @lun: the LUN that it was addressed to
 * @cdb: SCSI_CMD_BUF_SIZE bytes
 *
 * Like scsi_req_new(), for a request that another QEMU has begun: it doesn't
 * take a unit attention condition with it.
 *
 * Context: BQL held.
 */
SCSIRequest *scsi_req_restore(SCSIDevice *d, uint32_t tag, uint32_t lun,
                              uint8_t *cdb);

/**
 * scsi_req_launch:
 * @req: a request that is not enqueued
 *
 * Put it on the list of its lane, and find out about its guest memory.
 * Context: the request's AioContext.
 */
void scsi_req_launch(SCSIRequest *req);

/**
 * scsi_req_restart:
 * @req: an enqueued request
 *
 * Go on with it if it waited for the VM to be resumed.
 * Context: the request's AioContext.
 */
void scsi_req_restart(SCSIRequest *req);

/**
 * scsi_bus_tell_waiters:
 * @bus: the bus of a LUN one of whose lanes has changed
 *
 * Wake up scsi_bus_wait_idle().  Context: the lane's.
 */
static inline void scsi_bus_tell_waiters(SCSIBus *bus)
{
    /* Set before the waiter has visited us, so the plain read is enough. */
    if (unlikely(qatomic_read(&bus->idle_waiters))) {
        aio_wait_kick();
    }
}

/* scsi-target.c */

/**
 * scsi_target_answers:
 * @d: the LUN that was found
 * @lun: the LUN that the command is for
 * @opcode: the first byte of the CDB
 *
 * Context: any thread.
 * Returns: true if the bus answers the command, and not @d.
 */
static inline bool scsi_target_answers(const SCSIDevice *d, uint32_t lun,
                                       uint8_t opcode)
{
    return lun != d->lun || opcode == REPORT_LUNS ||
           (opcode == REQUEST_SENSE && scsi_held_sense_present(&d->held_sense));
}

/** scsi_target_alloc: a request that the bus answers. Context: any of @d's. */
SCSIRequest *scsi_target_alloc(SCSIDevice *d, uint32_t tag, uint32_t lun,
                               void *hba_private);

/**
 * scsi_target_alloc_refusal:
 * @d: the LUN
 * @tag: the request's tag
 * @lun: the LUN that it was addressed to
 * @hba_private: the HBA's own
 * @sense: what the initiator gets to know
 *
 * Context: any of @d's AioContexts.
 * Returns: a request that ends with CHECK CONDITION.
 */
SCSIRequest *scsi_target_alloc_refusal(SCSIDevice *d, uint32_t tag,
                                       uint32_t lun, void *hba_private,
                                       SCSISense sense);

/**
 * scsi_target_has_attention:
 * @d: the LUN
 *
 * A hint, see scsi_attention_pending().  Context: any thread.
 * Returns: true if scsi_target_claim_attention() may find something.
 */
static inline bool scsi_target_has_attention(SCSIDevice *d)
{
    return scsi_attention_pending(&d->attention) ||
           scsi_attention_pending(&scsi_bus_from_device(d)->attention);
}

/**
 * scsi_target_claim_attention:
 * @d: the LUN
 * @tag: the request's tag
 * @lun: the LUN that it was addressed to
 * @opcode: the first byte of the CDB
 * @hba_private: the HBA's own
 *
 * Context: any of @d's AioContexts.
 * Returns: a request that reports a unit attention condition in place of the
 * command's own result (SAM-5, 5.14), or NULL if there is nothing to report.
 */
SCSIRequest *scsi_target_claim_attention(SCSIDevice *d, uint32_t tag,
                                         uint32_t lun, uint8_t opcode,
                                         void *hba_private);

/** scsi_target_is_attention: what is @req? Context: the request's. */
bool scsi_target_is_attention(const SCSIRequest *req);

#endif /* HW_SCSI_SCSI_INTERNAL_H */
