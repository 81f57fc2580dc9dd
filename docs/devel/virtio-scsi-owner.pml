/*
 * Who owns a virtqueue: a model of virtio-scsi with two request queues, two
 * IOThreads and the main loop, for Spin (make check-model)
 *
 * Above each rule stand the C functions that it is about.  Between steps, each
 * a d_step or a statement, everybody else may go on.  virtio-scsi-threads.rst
 * says what is left out.  Behind #ifdef WITHOUT_ and SWAP_ are mutants: the
 * model must fail with each of them.
 *
 * Copyright (c) 2026 The virtio-scsi multiqueue authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef OPS     /* how much happens: scripts/check/check-model sets these */
#define OPS 1   /* times that the operator or the driver wants something ... */
#define MAY 127 /* ... of the following, a sum */
#define NC 2    /* commands, again and again: 0 on queue 0, 1 on either */
#define TMFS 1
#define ODD 1   /* a buffer outside of RAM: 1, if the next command has one */
#define DRAINS 1
#define STARTED 0 /* IOThreads are the owners already */
#define POLLS 1 /* an IOThread begins to poll */
#endif
#define STOP 1
#define START 2
#define RESET 4
#define UNPLUG 8
#define MOVE 16
#define STAY 32
#define MAPPING 64
#define CTRL 128 /* besides, what main_bh does */
#define RING0 256
#define RING1 512

#define MAIN 0  /* AioContexts: the main loop's; IOThreads are 1 and 2 */
#define NOBODY 3
#define AT(n, c) ((n) * 3 + (c))
/* Of a command: FREE is the guest's, FOUND popped, with a LUN, HELD by a drain,
 * ENDING the same with -ECANCELED, USED ended, not shown to the guest yet */
mtype:cmd = { FREE, RING, FOUND, IO, HELD, ENDING, PARKED, USED };
mtype:job = { NONE, VISIT, DETACH, ATTACH, PIN };
mtype:place = { HERE, LEAVING, LEFT };
typedef Cmd {
    mtype:cmd st;
    byte vq, lane;
    bool cancelled, waited[2] /* by aborts */, before_tmf
};
Cmd cmd[2];
/* Queues */
byte ctx[2], attached[2] = NOBODY, user[2] = NOBODY;
byte kicks_on[2] = 1; /* 2: the handler switches them on again */
bool event[2], polled[2], more[2], wants_move[2];
bool vcpu_kick[2];
mtype:place place[2] = HERE;
/* The device */
bool in_contexts, accepts = true, main_only, wants_main, wants_restart;
bool vm = true, notifiers, ctrl_attached, ctrl_kick, ctrl_ring, main_bh;
byte tmfs, ops = OPS, tmf_left = TMFS, odd = ODD, polls = POLLS;
/* The queue that moves */
byte mv = NOBODY, mv_to, visits, mv_visit;
bool arriving, mv_arrive, move_bh;
/* The LUN; aborts[0] is a TMF's, aborts[1] that of a reset or unplug */
bool published = true, freed, drained, all[2], done[2], abort_visit[6];
bool dying[3];
byte refs = 1, cancels, aborts, restarts, idle_waiters, restart[3], late[3];
byte unmarked[2], answers[2], marked[2], ended[2], both[2];
/* The main loop: level n + 1 is the event loop that a wait of level n runs */
byte top, waiters, left[2];
bool woken, running, may_expire, expired;
mtype:job job[6] = NONE;
hidden byte i, j, k, a; /* within a step */

#define owner(n) (in_contexts -> ctx[n] : MAIN)
#define each(n) (n(0) || n(1))
#define each2(n, x) (n(0, x) || n(1, x))
#define each3(n, x, y) (n(0, x, y) || n(1, x, y))
#define live(n) (cmd[n].st == IO || cmd[n].st == HELD || cmd[n].st == ENDING)
#define is_dying(n) dying[n]
#define taken(n) (cmd[n].st != FREE && cmd[n].st != RING)
#define taken_of(n, x) (taken(n) && cmd[n].vq == x)
#define in_ring(n, x) (cmd[n].st == RING && cmd[n].vq == x)
#define ending(n, c) (cmd[n].st == ENDING && cmd[n].lane == c)
#define parked(n, c) (cmd[n].st == PARKED && cmd[n].lane == c)
#define on_list(n, c) ((live(n) || cmd[n].st == PARKED) && cmd[n].lane == c)
#define waited_in(n, b, c) (cmd[n].waited[b] && cmd[n].lane == c)
#define is_parked(n) (cmd[n].st == PARKED)
#define num_parked (is_parked(0) + is_parked(1))
/* scsi_inflight_is_idle() */
#define is_idle (!aborts && !restarts && !each(live) && !each(is_dying) && \
                 !dying[2])

#define when(condition, ...) if :: condition -> __VA_ARGS__ :: else fi

/* aio_wait_kick() */
inline wake() { woken = woken || waiters > 0 }

/* scsi_bus_tell_waiters() */
inline tell_waiters() { woken = woken || (idle_waiters && waiters) }

/* virtqueue_pop(), virtqueue_fill(): one at a time, and only the owner */
inline begin_use(q, c) {
    assert(user[q] == NOBODY && owner(q) == c);
    user[q] = c
}

/*
 * The owner of a queue: AioContext c
 */

/* virtio_scsi_queue_attach(), virtio_queue_aio_attach_host_notifier() */
inline attach(q, c) {
    assert(user[q] == NOBODY && owner(q) == c && attached[q] == NOBODY);
    kicks_on[q] = 1; attached[q] = c; event[q] = true
}

/* virtio_queue_aio_detach_host_notifier(), qemu_bh_cancel() */
inline detach(q) { attached[q] = NOBODY; polled[q] = false; more[q] = false }

/* queue_flush() */
inline flush(n) {
    for (i : 0 .. 1) {
        when(cmd[i].st == USED && cmd[i].vq == n, cmd[i].st = FREE;
             cmd[i].lane = 0; cmd[i].before_tmf = false;
             cmd[i].cancelled = false; more[n] = more[n] || place[n] != HERE)
    }
}

/* scsi_req_enqueue(), scsi_req_continue(), blk_wait_while_drained() */
inline submit(n) {
    assert(!freed && cmd[n].lane == owner(cmd[n].vq));
    cmd[n].st = (cancels -> ENDING : (drained -> HELD : IO))
}

/* queue_try_leave() */
inline try_leave(q) {
    when(!each2(taken_of, q), place[q] = LEFT; move_bh = true)
}

/* virtqueue_pop(), cmd_find_lun(); without the BQL it may stay in the ring */
inline pop(x, q, c) {
    if
    :: odd == 1 && c != MAIN -> odd = 0; wants_main = true; main_bh = true
    :: else -> cmd[x].lane = c; got = true;
       cmd[x].st = (published -> FOUND : USED)
    fi
}

/* virtio_scsi_handle_cmd(), virtio_scsi_move_more(), queue_run(),
 * queue_run_batch() for a batch of one, queue_run_later() */
inline handle_cmd(q, c) {
    if
    :: d_step { place[q] == LEAVING -> try_leave(q) }
    :: place[q] == LEFT || place[q] == HERE && !accepts
    :: place[q] == HERE && accepts ->
       d_step {
           assert(c == MAIN || in_contexts);
           begin_use(q, c);
           when(kicks_on[q] == 1, kicks_on[q] = 2);
           if
           :: in_ring(0, q) -> pop(0, q, c)
           :: else -> when(in_ring(1, q), pop(1, q, c))
           fi
       };
       d_step {
           for (k : 0 .. 1) {
               when(cmd[k].st == FOUND && cmd[k].vq == q && cmd[k].lane == c,
                    submit(k))
           }
           flush(q);
           got = got || kicks_on[q] && each2(in_ring, q);
#ifdef SWAP_LOOK_AND_KICKS
       };
       d_step {
#endif
           kicks_on[q] = (kicks_on[q] > 0);
           user[q] = NOBODY;
           when(got && !wants_main, more[q] = more[q] || in_contexts;
                main_bh = main_bh || !in_contexts);
           got = false
       }
    fi
}

/* scsi_req_cancel_complete(), virtio_scsi_cmd_cancelled(), visit_leave() */
inline cancel_complete(n, c) {
    begin_use(cmd[n].vq, c);
    cmd[n].st = USED;
    for (a : 0 .. 1) {
        when(cmd[n].waited[a], cmd[n].waited[a] = false;
             when(!each3(waited_in, a, c), ended[a]++))
    }
    user[cmd[n].vq] = NOBODY;
#ifdef WITHOUT_FLUSH
    more[cmd[n].vq] = true
#else
    flush(cmd[n].vq)
#endif
}

/* scsi_req_retry(), scsi_req_complete(), scsi_req_cancel_complete() */
#define req_ends(x, c, ok) \
    d_step { ok && (cmd[x].st == IO || cmd[x].st == ENDING) && \
             cmd[x].lane == c -> \
             n = x; assert(!freed); running = running || c == MAIN; \
             if \
             :: cmd[n].cancelled -> dying[c] = true; cancel_complete(n, c) \
             :: !cmd[n].cancelled && cmd[n].st == ENDING -> \
                cmd[n].st = PARKED; tell_waiters() \
             :: else -> begin_use(cmd[n].vq, c); cmd[n].st = USED; \
                tell_waiters() \
             fi }
/* queue_flush(), and in a callback what follows the notifiers */
inline req_ended(c) {
    d_step {
        if
        :: dying[c] -> assert(!freed); dying[c] = false; tell_waiters()
        :: cmd[n].st == USED -> user[cmd[n].vq] = NOBODY; flush(cmd[n].vq)
        :: else
        fi;
        n = 0
    }
}

/* visit_run(), visit_cancel() */
inline visit_run(b, c) {
    assert(!freed);
    for (k : 0 .. 1) {
        if
        :: parked(k, c) -> /* no I/O: it ends at once */
           cmd[k].cancelled = true; cancel_complete(k, c)
        :: on_list(k, c) && !is_parked(k) ->
           cmd[k].cancelled = true; cmd[k].waited[b] = true
        :: else
        fi
    }
    if :: each3(waited_in, b, c) -> marked[b]++ :: else -> both[b]++ fi
}

/* restart_bh() */
inline restart_run(c) {
    assert(!freed);
    for (k : 0 .. 1) { when(parked(k, c), submit(k)) }
    restarts--; wake()
}
/* restart_bh(): late means after what is about to park */
#define restarts_lane(c, ok, after) \
    d_step { ok && restart[c] -> restart[c]--; restart_run(c); after } \
    :: d_step { ok && late[c] && !each2(ending, c) -> \
                late[c]--; restart_run(c); after }

/* queue_stay(), queue_arrive(): it has been attached */
inline queue_here(q, c) { attach(q, c); place[q] = HERE; move_bh = true }

/* queue_visit() */
inline queue_visit(q, c) {
    mv_visit--;
    if
    :: place[q] == HERE && wants_move[q] ->
       detach(q); place[q] = LEAVING; try_leave(q)
    :: place[q] == LEAVING && !wants_move[q] -> queue_here(q, c)
    :: else
    fi
}

/* dataplane_detach(), dataplane_attach(), pin_lane(): no request is left */
inline run_job(l, c) {
    for (j : 0 .. 1) {
        if
        :: job[AT(l, c)] == DETACH && ctx[j] == c ->
           assert(place[j] == HERE && user[j] == NOBODY); detach(j)
        :: job[AT(l, c)] == ATTACH && ctx[j] == c -> attach(j, c)
        :: else
        fi
    }
    assert(job[AT(l, c)] != PIN || !each2(on_list, c));
    job[AT(l, c)] = NONE; left[l]--; wake()
}

/* virtio_queue_host_notifier_read() and its neighbours for polling,
 * virtio_scsi_queue_more(): the handler is called */
#define is_called(x, c) \
    d_step { event[x] && attached[x] == c -> event[x] = false; q = x } \
    :: d_step { polled[x] && attached[x] == c && each2(in_ring, x) -> q = x } \
    :: d_step { polled[x] && attached[x] == c -> \
                polled[x] = false; kicks_on[x] = 1; q = x } \
    :: d_step { more[x] && ctx[x] == c -> more[x] = false; q = x }
/* virtio_queue_host_notifier_aio_poll_begin() */
#define begins_poll(x, c) \
    d_step { polls && attached[x] == c && kicks_on[x] -> \
             polls--; polled[x] = true; kicks_on[x] = 0 }
/* queue_leave_expired() */
#define expires(x, c) \
    d_step { place[x] == LEAVING && ctx[x] == c -> \
             wants_move[x] = false; queue_here(x, c) }

/* iothread_run() */
proctype IOThread(byte c) {
    byte n, q;
    bool got;
end:
    do
    :: if :: is_called(0, c) :: is_called(1, c) fi; handle_cmd(q, c); q = 0
    :: if :: req_ends(0, c, 1) :: req_ends(1, c, 1) fi;
       req_ended(c)
    :: begins_poll(0, c)
    :: begins_poll(1, c)
    :: expires(0, c)
    :: expires(1, c)
    :: restarts_lane(c, 1, skip)
    :: d_step { job[AT(0, c)] != NONE -> run_job(0, c) }
    :: d_step { job[AT(1, c)] != NONE -> run_job(1, c) }
    :: d_step { abort_visit[AT(0, c)] ->
                abort_visit[AT(0, c)] = false; visit_run(0, c) }
    :: d_step { abort_visit[AT(1, c)] ->
                abort_visit[AT(1, c)] = false; visit_run(1, c) }
    :: d_step { mv_visit && ctx[mv] == c -> n = mv; queue_visit(n, c); n = 0 };
       d_step { visits--; move_bh = true }
    :: d_step { mv_arrive && ctx[mv] == c ->
                mv_arrive = false; n = mv; queue_here(n, c); n = 0 }
    od
}

/*
 * The main loop: level me
 */

/* AIO_WAIT_WHILE_UNLOCKED(): looks when it begins, and when it is woken */
inline wait_for(what) {
    d_step { waiters++; top = me + 1; woken = true; running = false };
    do
    :: d_step { top == me + 1 && !running && woken && !(what) -> woken = false }
    :: d_step { top == me + 1 && !running && woken && (what) ->
                top = me; running = true }; break
    od;
    waiters--
}

/* aio_wait_bh_oneshot_all() */
inline run_in_contexts(what) {
    d_step { left[me] = 2; job[AT(me, 1)] = what; job[AT(me, 2)] = what };
    wait_for(left[me] == 0)
}

/* blk_cancel_begin() */
inline cancel_begin() {
    for (i : 0 .. 1) { when(cmd[i].st == HELD, cmd[i].st = ENDING) }
    cancels++
}

/* scsi_inflight_restart(): of visits for nothing, IOThread 1's is enough */
inline inflight_restart(is_late) {
    for (j : 0 .. 2) {
        if
        :: is_late && (j == 1 || each2(parked, j) || each2(ending, j)) ->
           late[j]++; restarts++
        :: !is_late && each2(parked, j) -> restart[j]++; restarts++
        :: else
        fi
    }
}

/* scsi_device_abort() */
inline device_abort(b, everything) {
    aborts++; all[b] = everything; done[b] = false;
    unmarked[b] = 3; answers[b] = 6;
    abort_visit[AT(b, 1)] = true; abort_visit[AT(b, 2)] = true;
    visit_run(b, MAIN)
}

/* scsi_device_finalize() */
inline unref() {
    refs--; freed = (refs == 0);
    assert(!freed || !aborts && !restarts && !each(live) && !each(is_parked))
}

/* tmf_finish() */
inline tmf_finish() {
    for (i : 0 .. 1) { assert(!cmd[i].before_tmf) }
    tmfs--
}

/* abort_answer(), tmf_lun_done(), purge_done() */
inline abort_answer(b) {
    answers[b]--;
    when(!answers[b], aborts--; done[b] = true; cancels = cancels - all[b];
         when(all[b] && vm && published, inflight_restart(true));
         all[b] = false; when(b == 0, tmf_finish(); unref()))
}

/* abort_marked(), abort_ended(), go_home() */
#define abort_goes_on(b) \
    d_step { my_turn && marked[b] -> marked[b]--; unmarked[b]--; \
             if :: !unmarked[b] && all[b] -> cancel_begin() :: else fi; \
             abort_answer(b); back() } \
    :: d_step { my_turn && ended[b] -> ended[b]--; abort_answer(b); back() } \
    :: d_step { my_turn && both[b] -> both[b]--; unmarked[b]--; \
             if :: !unmarked[b] && all[b] -> cancel_begin() :: else fi; \
             abort_answer(b); abort_answer(b); back() }

/* tmf_start(), tmf_lun() */
inline tmf_start(everything) {
    ctrl_ring = false; tmfs++;
    if
    :: published -> refs++;
       for (i : 0 .. 1) { cmd[i].before_tmf = taken(i) }
       device_abort(0, everything)
    :: else -> tmf_finish()
    fi
}

/* virtio_scsi_handle_ctrl(): abort by match, or all for a reset */
inline handle_ctrl() {
    if
    :: d_step { accepts && ctrl_ring -> tmf_start(true) }
    :: d_step { accepts && ctrl_ring -> tmf_start(false) }
    :: else
    fi
}

/* scsi_bus_begin_idle() */
inline begin_idle() {
#ifndef SWAP_WAITERS_AND_VISIT
    idle_waiters++;
#endif
    run_in_contexts(VISIT);
    d_step { cancel_begin() };
    wait_for(is_idle || expired);
#ifdef SWAP_WAITERS_AND_VISIT
    idle_waiters++;
#endif
#ifndef SWAP_VISIT_AND_LOOK
    busy = !is_idle;
#endif
#ifndef WITHOUT_SECOND_VISIT
    run_in_contexts(VISIT);
#endif
#ifdef SWAP_VISIT_AND_LOOK
    busy = !is_idle
#endif
}

/* virtio_scsi_settle(), scsi_bus_end_idle(), virtio_scsi_ctrl_settle() */
inline settle() {
    before = num_parked;
    begin_idle();
    d_step { cancels--; idle_waiters--;
             wants_restart = wants_restart || (num_parked > before && vm);
             before = 0 };
    wait_for(!tmfs)
}

/* dataplane_rehome(), virtio_scsi_rehome_lun(), scsi_req_move() */
inline rehome(to_contexts) {
    for (i : 0 .. 1) {
        when(taken(i), assert(is_parked(i));
             cmd[i].lane = (to_contexts -> ctx[cmd[i].vq] : MAIN))
    }
}

/* virtio_scsi_move_cancel() */
inline move_cancel() {
    d_step {
        when(mv != NOBODY && !arriving && wants_move[mv],
             wants_move[mv] = false; visits++; mv_visit++)
    };
    wait_for(mv == NOBODY)
}

/* dataplane_attach_all() */
inline attach_all() {
    d_step { ctrl_attached = true; ctrl_kick = true };
    run_in_contexts(ATTACH)
}

/* dataplane_detach_all() */
inline detach_all() {
#ifndef WITHOUT_MOVE_CANCEL
    move_cancel();
#endif
    ctrl_attached = false;
#ifndef WITHOUT_DETACH
    run_in_contexts(DETACH)
#endif
}

/* move_bh(), move_hand_on(), virtio_scsi_setup_queue(), move_end() */
inline run_move_bh() {
    move_bh = false;
    if
#ifdef WITHOUT_VISITS
    :: mv == NOBODY
#else
    :: mv == NOBODY || visits
#endif
    :: else ->
       if
       :: place[mv] == LEFT && !arriving ->
          assert(user[mv] == NOBODY && !each2(taken_of, mv));
          ctx[mv] = mv_to; more[mv] = false; arriving = true; mv_arrive = true
       :: place[mv] == HERE && (arriving || !wants_move[mv]) ->
          wants_move[mv] = false; mv = NOBODY; arriving = false
       :: else
       fi
    fi
}

/* dataplane_look_at_rings() */
inline look_at_rings() {
    main_bh = true; more[0] = more[0] || in_contexts;
    more[1] = more[1] || in_contexts
}

/* virtio_scsi_dataplane_start(), dataplane_set_host_notifiers(),
 * dataplane_restart(), dataplane_serve_all(); main_bh serves the control
 * queue */
inline dataplane_start() {
    if
    :: in_contexts || !accepts
    :: else ->
       accepts = false;
       when(!main_only, settle());
       if
       :: !main_only ->
          d_step { notifiers = true; event[0] = true; event[1] = true };
          d_step { rehome(true); in_contexts = true };
          attach_all();
#ifdef SWAP_LOOK_AND_ACCEPT
          d_step { look_at_rings() };
          accepts = true
#else
          accepts = true;
          d_step { look_at_rings() }
#endif
       :: else -> accepts = true; main_bh = true
       fi;
       d_step {
           when(wants_restart && vm && published, inflight_restart(false));
           wants_restart = false
       };
       when(main_only, kicks_on[0] = 1; kicks_on[1] = 1; todo = RING0 + RING1)
    fi
}

/* virtio_scsi_dataplane_stop(), dataplane_clear_host_notifiers() */
inline dataplane_stop() {
    if
    :: !in_contexts || !accepts
    :: else ->
       accepts = false;
       detach_all();
#ifndef WITHOUT_SETTLE
       settle();
#endif
       d_step { notifiers = false; ctrl_kick = false;
                event[0] = false; event[1] = false };
       d_step { rehome(false); in_contexts = false };
       accepts = true
    fi
}

/* virtio_scsi_dataplane_move(), hand_over_settle(), virtio_scsi_setup_move(),
 * hand_over_resume(); expired is set by hand_over_expired() */
inline dataplane_move() {
    accepts = false;
    when(in_contexts, detach_all());
    may_expire = true;
    begin_idle();
    d_step { may_expire = false; expired = false };
    if
    :: !busy -> wait_for(!tmfs);
       d_step { rehome(false); ctx[0] = 3 - ctx[0]; ctx[1] = 1;
                rehome(in_contexts); skip }
    :: else -> busy = false
    fi;
    d_step { cancels--; idle_waiters-- };
    when(in_contexts, attach_all());
    accepts = true;
    d_step { look_at_rings(); when(vm && published, inflight_restart(true)) }
}

/* virtio_scsi_reset(), scsi_device_purge_requests(), virtio_reset() */
inline reset() {
#ifndef WITHOUT_REFUSAL
    accepts = false;
#endif
    when(!freed, d_step { device_abort(1, true) }; wait_for(done[1]));
    wait_for(!tmfs);
    d_step {
        assert(!in_contexts);
        for (i : 0 .. 1) { assert(!taken(i)); cmd[i].st = FREE; cmd[i].vq = 0 }
        accepts = true; main_only = false; wants_main = false;
        wants_restart = false; kicks_on[0] = 1; kicks_on[1] = 1;
        ctrl_ring = false
    }
}

/* scsi_device_unrealize(), scsi_topology_unpublish(), scsi_device_pin() */
inline unplug() {
    published = false;
#ifdef WITHOUT_PURGE
    wait_for(is_idle);
#else
    d_step { device_abort(1, true) };
    wait_for(done[1]);
#endif
#ifndef WITHOUT_RESTARTS
    wait_for(!restarts);
#endif
#ifndef WITHOUT_PIN
    run_in_contexts(PIN);
#endif
    d_step { unref() }
}

/* aio_poll(): a wait looks again */
inline back() { running = false; woken = waiters > 0 }

#define my_turn (top == me && !running)
/* virtio_scsi_main_bh(), virtio_scsi_kick_is_ours() */
#define runs_main_bh \
    d_step { my_turn && main_bh && accepts && vm -> \
             main_bh = false; running = true; \
             if \
             :: wants_main && in_contexts -> main_only = true; \
                todo = STOP + START \
             :: else -> \
                todo = RING0 + RING1 + CTRL + (main_only -> 0 : START) \
             fi; \
             wants_main = false }

/* virtio_queue_notify() by a vCPU, virtio_device_start_ioeventfd() */
#define is_kicked(x) \
    d_step { my_turn && vcpu_kick[x] && vm && !me -> \
             vcpu_kick[x] = false; running = true; \
             event[x] = event[x] || notifiers; \
             todo = (notifiers -> 0 : (RING0 << x) + (main_only -> 0 : START)) }

/* qmp_stop(), qmp_device_del() and the like, if that is left to do */
#define wants(what) \
    my_turn && ops && !me && (MAY & (what)) -> ops--; running = true
/* main_loop_wait(): QMP, a vCPU that holds the BQL */
#define operator_wants \
    d_step { vm && wants(STOP); vm = false; todo = STOP } \
    :: d_step { !(vm && in_contexts) && wants(START); \
                vm = true; wants_restart = true; todo = START } \
    :: d_step { wants(RESET); todo = STOP + RESET } \
    :: d_step { published && wants(UNPLUG); todo = UNPLUG } \
    :: d_step { mv != NOBODY && wants(STAY); todo = STAY } \
    :: d_step { wants(MAPPING); todo = MAPPING }

/* aio_poll(), and main_loop_wait() at level 0 */
proctype MainLoop(byte me) {
    byte n, q, before;
    short todo;
    bool got, busy;
end:
    do
    :: d_step { my_turn && move_bh -> run_move_bh(); back() }
    :: d_step { my_turn && main_bh && !(accepts && vm) ->
                main_bh = false; back() }
    :: d_step { my_turn && may_expire && !expired -> expired = true; back() }
    /* virtio_scsi_move_begin() */
    :: d_step { mv == NOBODY && in_contexts && accepts && wants(MOVE);
                running = false; mv = 0; mv_to = 3 - ctx[0];
                wants_move[0] = true; visits++; mv_visit++ }
    :: abort_goes_on(0)
    :: abort_goes_on(1)
    :: restarts_lane(MAIN, my_turn, back())
    :: if :: req_ends(0, MAIN, my_turn) :: req_ends(1, MAIN, my_turn) fi;
       req_ended(MAIN); back()
    :: if
       :: runs_main_bh
       :: is_kicked(0)
       :: is_kicked(1)
       :: d_step { my_turn && ctrl_kick &&
                   (ctrl_attached || !notifiers && !me) ->
                   ctrl_kick = false; running = true;
                   todo = CTRL + (main_only -> 0 : START) }
       :: operator_wants
       fi;
       when(todo & STOP, dataplane_stop());
       when(todo & START, dataplane_start());
       if
       :: todo & RESET -> reset()
       :: todo & UNPLUG -> unplug()
       :: todo & STAY -> move_cancel()
       :: todo & MAPPING -> dataplane_move()
       :: todo & CTRL -> handle_ctrl()
       :: else
       fi;
       do
       :: d_step { todo & (RING0 + RING1) && !in_contexts ->
                   q = (todo & RING0 -> 0 : 1); todo = todo & ~(RING0 << q) };
          handle_cmd(q, MAIN); q = 0
       :: else -> break
       od;
       todo = 0; back()
    od
}

/*
 * The world
 */

/* virtio_queue_notify(), event_notifier_set() */
#define adds(n, x) \
    d_step { vm && n < NC && cmd[n].st == FREE -> \
             cmd[n].st = RING; cmd[n].vq = x; \
             event[x] = event[x] || kicks_on[x] == 1 && notifiers; \
             vcpu_kick[x] = vcpu_kick[x] || kicks_on[x] == 1 && !notifiers }

proctype Guest() {
    do
    :: adds(0, 0)
    :: adds(1, 0)
    :: adds(1, 1)
    :: d_step { vm && tmf_left && !ctrl_ring ->
                tmf_left--; ctrl_ring = true; ctrl_kick = true }
    :: break
    od
}

/* bdrv_drained_begin(), bdrv_drained_end() */
proctype Drain() {
    drained = true;
    d_step {
        for (i : 0 .. 1) { when(cmd[i].st == HELD, cmd[i].st = IO) }
        drained = false
    }
}

#define answered(n) (cmd[n].st == FREE || !vm && cmd[n].st == RING)
#define at_rest(n) (answered(n) || !vm && is_parked(n))

/* When nothing happens any more nobody waits, and nothing is forgotten. */
proctype Rest() {
    timeout;
    assert(!top && !waiters && !tmfs && !aborts && !restarts && !cancels);
    assert(accepts && mv == NOBODY && (published || freed));
    assert(at_rest(0) && at_rest(1) && (!vm || !ctrl_ring))
}

init {
    atomic {
        /* or less: what is still to come would hide what is forgotten */
        do :: ops -> ops-- :: break od;
        if :: odd = 0 :: skip fi;
        if :: polls = 0 :: skip fi;
        ctx[0] = 1; ctx[1] = 2;
        for (i : 0 .. 1) { cmd[i].st = FREE }
        when(STARTED, in_contexts = true; notifiers = true;
             ctrl_attached = true; attached[0] = 1; attached[1] = 2);
        run IOThread(1); run IOThread(2);
        run MainLoop(0); run MainLoop(1); run MainLoop(2);
        run Guest(); run Rest();
        when(DRAINS, run Drain())
    }
}
