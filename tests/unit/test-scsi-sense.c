/*
 * Unit test of hw/scsi/scsi-sense.c, with real threads and no VM
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/scsi/scsi-sense.h"
#include "scsi/constants.h"

#define UA(_asc, _ascq) { UNIT_ATTENTION, _asc, _ascq }

/* In the order in which an initiator must see them (SAM-5, 5.14) */
static const SCSISense ordered[] = {
    UA(0x29, 0x00), /* power on, reset, or bus device reset */
    UA(0x29, 0x04), /* device internal reset */
    UA(0x29, 0x02), /* SCSI bus reset */
    UA(0x29, 0x03), /* bus device reset function */
    UA(0x29, 0x07), /* I_T nexus loss */
    UA(0x2f, 0x01), /* commands cleared by power loss notification */
    UA(0x3f, 0x0e), /* reported LUNs data has changed */
};

static void assert_sense(SCSISense a, SCSISense b)
{
    g_assert_cmphex(a.key, ==, b.key);
    g_assert_cmphex(a.asc, ==, b.asc);
    g_assert_cmphex(a.ascq, ==, b.ascq);
}

static void assert_none(SCSIAttention *a)
{
    SCSISense sense;

    g_assert_false(scsi_attention_pending(a));
    g_assert_false(scsi_attention_claim(a, &sense));
    assert_sense(scsi_attention_first(a), SENSE_CODE(NO_SENSE));
}

static void assert_claim(SCSIAttention *a, SCSISense wanted)
{
    SCSISense sense;

    g_assert_true(scsi_attention_pending(a));
    assert_sense(scsi_attention_first(a), wanted);
    g_assert_true(scsi_attention_claim(a, &sense));
    assert_sense(sense, wanted);
}

/*
 * Unit attention conditions
 */

/* Whatever the order in which they were raised */
static void test_precedence(void)
{
    SCSIAttention a;

    scsi_attention_init(&a);
    for (unsigned step = 1; step < ARRAY_SIZE(ordered); step++) {
        /* their number is prime, so each step visits all of them */
        for (unsigned i = 0; i < ARRAY_SIZE(ordered); i++) {
            scsi_attention_raise(&a, ordered[i * step % ARRAY_SIZE(ordered)]);
        }
        for (unsigned i = 0; i < ARRAY_SIZE(ordered); i++) {
            assert_claim(&a, ordered[i]);
        }
        assert_none(&a);
    }
    scsi_attention_destroy(&a);
}

/* What has no level of its own comes in the order of events. */
static void test_fifo(void)
{
    static const SCSISense events[] = {
        UA(0x2a, 0x09),     /* capacity data has changed */
        UA(0x2a, 0x01),     /* mode parameters changed */
        UA(0x3f, 0x0e),     /* reported LUNs data has changed */
        UA(0x28, 0x00),     /* medium may have changed */
    };
    SCSIAttention a;

    scsi_attention_init(&a);
    for (unsigned i = 0; i < ARRAY_SIZE(events); i++) {
        scsi_attention_raise(&a, events[i]);
    }
    scsi_attention_raise(&a, SENSE_CODE(RESET));
    assert_claim(&a, SENSE_CODE(RESET));
    for (unsigned i = 0; i < ARRAY_SIZE(events); i++) {
        assert_claim(&a, events[i]);
    }
    assert_none(&a);
    scsi_attention_destroy(&a);
}

static void test_once(void)
{
    SCSIAttention a;

    scsi_attention_init(&a);
    assert_none(&a);
    for (unsigned i = 0; i < 3; i++) {
        scsi_attention_raise(&a, SENSE_CODE(CAPACITY_CHANGED));
        scsi_attention_raise(&a, SENSE_CODE(RESET));
        scsi_attention_raise(&a, SENSE_CODE(NO_SENSE));
        scsi_attention_raise(&a, SENSE_CODE(INVALID_OPCODE));
    }
    assert_claim(&a, SENSE_CODE(RESET));
    assert_claim(&a, SENSE_CODE(CAPACITY_CHANGED));
    assert_none(&a);

    /* Once it is reported, it may happen again. */
    scsi_attention_raise(&a, SENSE_CODE(RESET));
    assert_claim(&a, SENSE_CODE(RESET));
    assert_none(&a);
    scsi_attention_destroy(&a);
}

static void test_withdraw(void)
{
    SCSIAttention a;

    scsi_attention_init(&a);
    scsi_attention_withdraw(&a, SENSE_CODE(RESET));
    assert_none(&a);

    for (unsigned i = 0; i < ARRAY_SIZE(ordered); i++) {
        scsi_attention_raise(&a, ordered[i]);
    }
    for (unsigned i = 1; i < ARRAY_SIZE(ordered); i += 2) {
        scsi_attention_withdraw(&a, ordered[i]);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(ordered); i += 2) {
        assert_claim(&a, ordered[i]);
    }
    assert_none(&a);

    scsi_attention_raise(&a, SENSE_CODE(RESET));
    scsi_attention_raise(&a, SENSE_CODE(CAPACITY_CHANGED));
    scsi_attention_clear(&a);
    assert_none(&a);
    scsi_attention_destroy(&a);
}

/* With no room left, what matters most stays. */
static void test_full(void)
{
    SCSIAttention a;

    scsi_attention_init(&a);
    for (unsigned i = 0; i < 2 * SCSI_ATTENTION_MAX; i++) {
        scsi_attention_raise(&a, (SCSISense) UA(0x80, i));
    }
    scsi_attention_raise(&a, SENSE_CODE(RESET));
    assert_claim(&a, SENSE_CODE(RESET));
    for (unsigned i = 0; i < SCSI_ATTENTION_MAX - 1; i++) {
        assert_claim(&a, (SCSISense) UA(0x80, i));
    }
    assert_none(&a);
    scsi_attention_destroy(&a);
}

/*
 * Several threads
 */

#define NUM_THREADS 4
#define ROUNDS      4000

typedef struct Race {
    SCSIAttention attention;
    SCSIHeldSense held;
    bool done;                      /* atomic */
    unsigned claimed[NUM_THREADS];
    unsigned seen[NUM_THREADS];     /* of each kind */
} Race;

typedef struct RaceThread {
    Race *race;
    unsigned number;
    GThread *thread;
} RaceThread;

static void race_run(Race *race, GThreadFunc fn, void (*main_fn)(Race *))
{
    RaceThread t[NUM_THREADS];

    for (unsigned i = 0; i < NUM_THREADS; i++) {
        t[i] = (RaceThread) { .race = race, .number = i };
        t[i].thread = g_thread_new("race", fn, &t[i]);
    }
    main_fn(race);
    qatomic_set(&race->done, true);
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        g_thread_join(t[i].thread);
    }
}

static void *claim_all(void *opaque)
{
    RaceThread *t = opaque;
    Race *race = t->race;
    SCSISense sense;

    while (!qatomic_read(&race->done) ||
           scsi_attention_pending(&race->attention)) {
        if (scsi_attention_pending(&race->attention) &&
            scsi_attention_claim(&race->attention, &sense)) {
            race->claimed[t->number]++;
            qatomic_inc(&race->seen[sense.ascq]);
        } else {
            g_thread_yield();
        }
    }
    return NULL;
}

static void raise_all(Race *race)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned kind = i % NUM_THREADS;

        /* It can't be told twice; so wait until this one has been told. */
        while (qatomic_read(&race->seen[kind]) < i / NUM_THREADS) {
            g_thread_yield();
        }
        scsi_attention_raise(&race->attention, (SCSISense) UA(0x80, kind));
    }
}

static void test_claim_race(void)
{
    Race race = { .done = false };
    unsigned total = 0;

    scsi_attention_init(&race.attention);
    race_run(&race, claim_all, raise_all);
    assert_none(&race.attention);
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        total += race.claimed[i];
        g_assert_cmpuint(race.seen[i], ==, ROUNDS / NUM_THREADS);
    }
    g_assert_cmpuint(total, ==, ROUNDS);
    scsi_attention_destroy(&race.attention);
}

/*
 * Held sense data
 */

static void hold(SCSIHeldSense *h, SCSISense sense, bool is_ua)
{
    uint8_t data[SCSI_SENSE_LEN];

    scsi_held_sense_set(h, data, scsi_build_sense(data, sense), is_ua);
}

static SCSISense held(SCSIHeldSense *h, bool fixed)
{
    uint8_t data[SCSI_SENSE_LEN];
    int len = scsi_held_sense_get(h, data, sizeof(data), fixed);

    g_assert_cmpint(len, ==, fixed ? 18 : 8);
    g_assert_cmphex(data[0], ==, fixed ? 0x70 : 0x72);
    if (fixed) {
        return (SCSISense) { data[2], data[12], data[13] };
    }
    return (SCSISense) { data[1], data[2], data[3] };
}

static void test_held(void)
{
    SCSIHeldSense h;

    scsi_held_sense_init(&h);
    for (int fixed = 0; fixed < 2; fixed++) {
        g_assert_false(scsi_held_sense_present(&h));
        assert_sense(held(&h, fixed), SENSE_CODE(NO_SENSE));

        hold(&h, SENSE_CODE(LBA_OUT_OF_RANGE), false);
        g_assert_true(scsi_held_sense_present(&h));
        g_assert_false(scsi_held_sense_is_ua(&h));
        g_assert_false(scsi_held_sense_drop_ua(&h));
        assert_sense(held(&h, fixed), SENSE_CODE(LBA_OUT_OF_RANGE));

        hold(&h, SENSE_CODE(RESET), true);
        g_assert_true(scsi_held_sense_is_ua(&h));
        assert_sense(held(&h, fixed), SENSE_CODE(RESET));
        g_assert_true(scsi_held_sense_drop_ua(&h));
        g_assert_false(scsi_held_sense_drop_ua(&h));
        g_assert_false(scsi_held_sense_present(&h));
        assert_sense(held(&h, fixed), SENSE_CODE(NO_SENSE));

        /* A command that ends well makes it void. */
        hold(&h, SENSE_CODE(RESET), true);
        scsi_held_sense_set(&h, NULL, 0, false);
        g_assert_false(scsi_held_sense_is_ua(&h));
        g_assert_false(scsi_held_sense_drop_ua(&h));
    }
    scsi_held_sense_destroy(&h);
}

static void test_held_short_buffer(void)
{
    uint8_t data[SCSI_SENSE_LEN] = { [8 ... 17] = 0xaa };
    SCSIHeldSense h;

    scsi_held_sense_init(&h);
    hold(&h, SENSE_CODE(LBA_OUT_OF_RANGE), false);
    g_assert_cmpint(scsi_held_sense_get(&h, data, 8, true), ==, 8);
    g_assert_cmphex(data[2], ==, ILLEGAL_REQUEST);
    g_assert_cmphex(data[8], ==, 0xaa);
    scsi_held_sense_destroy(&h);
}

/* Commands fail in all threads, and somebody reads what is held. */
static void *fail_all(void *opaque)
{
    RaceThread *t = opaque;
    uint8_t code = 0x10 + t->number;

    for (unsigned i = 0; i < ROUNDS; i++) {
        hold(&t->race->held, (SCSISense) { code, code, code }, i & 1);
        if (i % 8 == 0) {
            scsi_held_sense_set(&t->race->held, NULL, 0, false);
        }
    }
    return NULL;
}

static void read_all(Race *race)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        SCSISense sense = held(&race->held, true);

        /* never half of one and half of another */
        g_assert_cmphex(sense.key, ==, sense.asc);
        g_assert_cmphex(sense.asc, ==, sense.ascq);
        scsi_held_sense_is_ua(&race->held);
    }
}

static void test_held_race(void)
{
    Race race = { .done = false };

    scsi_held_sense_init(&race.held);
    race_run(&race, fail_all, read_all);
    scsi_held_sense_destroy(&race.held);
}

/* One unit attention is held at a time; only one thread may drop each. */
static void *drop_all(void *opaque)
{
    RaceThread *t = opaque;

    while (!qatomic_read(&t->race->done) ||
           scsi_held_sense_present(&t->race->held)) {
        if (scsi_held_sense_drop_ua(&t->race->held)) {
            t->race->claimed[t->number]++;
        } else {
            g_thread_yield();
        }
    }
    return NULL;
}

static void hold_all(Race *race)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        hold(&race->held, SENSE_CODE(RESET), true);
        while (scsi_held_sense_present(&race->held)) {
            g_thread_yield();
        }
    }
}

static void test_drop_race(void)
{
    Race race = { .done = false };
    unsigned total = 0;

    scsi_held_sense_init(&race.held);
    race_run(&race, drop_all, hold_all);
    for (unsigned i = 0; i < NUM_THREADS; i++) {
        total += race.claimed[i];
    }
    g_assert_cmpuint(total, ==, ROUNDS);
    scsi_held_sense_destroy(&race.held);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/scsi-sense/attention/precedence", test_precedence);
    g_test_add_func("/scsi-sense/attention/fifo", test_fifo);
    g_test_add_func("/scsi-sense/attention/once", test_once);
    g_test_add_func("/scsi-sense/attention/withdraw", test_withdraw);
    g_test_add_func("/scsi-sense/attention/full", test_full);
    g_test_add_func("/scsi-sense/attention/claim-race", test_claim_race);
    g_test_add_func("/scsi-sense/held/basics", test_held);
    g_test_add_func("/scsi-sense/held/short-buffer", test_held_short_buffer);
    g_test_add_func("/scsi-sense/held/race", test_held_race);
    g_test_add_func("/scsi-sense/held/drop-race", test_drop_race);
    return g_test_run();
}
