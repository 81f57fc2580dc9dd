#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Errors of scripts/lab/run and scripts/lab/guest (TAP).  No guest boots here: a shell
# script plays QEMU where one is needed.

if [ "$1" = --help ]; then
    echo "usage: $0    (TAP on standard output; boots no guest)"
    exit 0
fi
top=$(cd "$(dirname "$0")/../.." && pwd) || exit 1
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
unset VCPUS IOTHREADS RUNTIME BACKEND QEMU GUEST
count=0
failed=0

verdict()   # STATUS NAME [FILE to show]
{
    count=$((count + 1))
    if [ "$1" -eq 0 ]; then
        echo "ok $count - $2"
    else
        echo "not ok $count - $2"
        failed=1
        [ -z "$3" ] || sed 's/^/# /' "$3"
    fi
}

skip()
{
    count=$((count + 1))
    echo "ok $count - $1 # SKIP $2"
}

# The command must fail with exactly one line of error that matches.
refuses()   # NAME PATTERN COMMAND...
{
    name=$1 pattern=$2
    shift 2
    timeout 60 env "$@" > "$tmp/out" 2> "$tmp/err" < /dev/null
    status=$?
    [ $status -eq 1 ] && [ "$(wc -l < "$tmp/err")" -eq 1 ] &&
        grep -Eq "$pattern" "$tmp/err"
    good=$?
    echo "status $status" >> "$tmp/err"
    verdict $good "$name" "$tmp/err"
}

# A QEMU whose "guest" is the shell code on standard input.
fake_qemu()
{
    {
        echo '#!/bin/sh'
        # shellcheck disable=SC2016
        echo 'case "$*" in *"-M none"*) cat > /dev/null; exit 0 ;; esac'
        echo "echo \$\$ >> $tmp/pids"
        cat
    } > "$tmp/qemu"
    chmod +x "$tmp/qemu"
    rm -f "$tmp/pids"
}

run=$top/scripts/lab/run
mkdir "$tmp/guest" "$tmp/folder"
touch "$tmp/guest/vmlinuz" "$tmp/guest/initrd" "$tmp/empty"
with="QEMU=$tmp/qemu GUEST=$tmp/guest"

# What the user asks for
fake_qemu < /dev/null
refuses "VCPUS is no number" '^run: error: VCPUS=abc: ' VCPUS=abc "$run"
refuses "VCPUS too small" '^run: error: VCPUS=1: .* 2 ' VCPUS=1 "$run"
refuses "too many IOThreads" '^run: error: IOTHREADS=999: ' IOTHREADS=999 "$run"
refuses "RUNTIME is 0" '^run: error: RUNTIME=0: ' RUNTIME=0 "$run"
refuses "QEMU missing" 'missing: run .make build. or set QEMU=' \
    QEMU="$tmp/none" "$run"
# shellcheck disable=SC2086
{
refuses "BACKEND missing" '^run: error: BACKEND=.*/none: No such file' \
    $with BACKEND="$tmp/none" "$run"
refuses "BACKEND is a folder" 'neither a file nor a block device' \
    $with BACKEND="$tmp/folder" "$run"
refuses "BACKEND is empty" 'BACKEND=.*/empty: 0 bytes' \
    $with BACKEND="$tmp/empty" "$run"
}
truncate -s 2M "$tmp/closed"
chmod 0 "$tmp/closed"
if [ -r "$tmp/closed" ]; then
    skip "BACKEND without permission" "this user may read every file"
else
    # shellcheck disable=SC2086
    refuses "BACKEND without permission" 'Permission denied' \
        $with BACKEND="$tmp/closed" "$run"
fi
refuses "GUEST without a kernel" 'GUEST=.*: no vmlinuz' \
    QEMU="$tmp/qemu" GUEST="$tmp/folder" "$run"

# The commands shown
"$run" --dry-run > "$tmp/out" 2> "$tmp/err"
[ $? -eq 0 ] && [ "$(grep -c '^\$ ' "$tmp/out")" -eq 5 ]
verdict $? "--dry-run prints five commands" "$tmp/out"
VCPUS=2 "$run" --dry-run > "$tmp/out" 2> "$tmp/err"
[ $? -eq 0 ] && [ "$(grep -c '^\$ ' "$tmp/out")" -eq 4 ]
verdict $? "with 2 vCPUs there is no queue to move" "$tmp/out"
refuses "moved with one IOThread" 'moved needs 3 vCPUs and 2 IOThreads' \
    IOTHREADS=1 "$run" --config moved
"$run" --config nonsense > "$tmp/out" 2> "$tmp/err"
[ $? -ne 0 ] && grep -q nonsense "$tmp/err"
verdict $? "unknown --config is refused" "$tmp/err"

# A QEMU that goes wrong
# shellcheck disable=SC2086
{
fake_qemu <<'END'
echo "qemu: -device virtio-scsi-pci: made up refusal" >&2
exit 1
END
refuses "QEMU's own error is passed on" 'single: .*status 1: .*made up refusal' \
    $with "$run"
[ "$(wc -l < "$tmp/pids")" -eq 1 ]
verdict $? "and it is not repeated"

fake_qemu <<'END'
echo "@hello" >&2
echo "qemu: iotlb_to_section: Assertion failed" >&2
kill -ABRT $$
END
refuses "the known abort of TCG is never counted as passed" \
    'single: the emulator failed 3 times' $with "$run" --config single
[ "$(wc -l < "$tmp/pids")" -eq 3 ]
verdict $? "and is tried three times" "$tmp/pids"

fake_qemu <<'END'
echo "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"
sleep 1000
END
refuses "so is a stalled vCPU" 'the emulator failed 3 times' \
    $with "$run" --config single

fake_qemu <<'END'
echo "some panic"
END
timeout 60 env $with "$run" --config single > "$tmp/out" 2> "$tmp/err"
[ $? -eq 1 ] && grep -q 'without finishing fio' "$tmp/err" &&
    grep -q '| some panic' "$tmp/err"
verdict $? "a guest that ends early: error with its console" "$tmp/err"

fake_qemu <<'END'
echo "@error: /dev/sda did not appear in the guest" >&2
sleep 1000
END
refuses "an error in the guest is passed on" 'guest: /dev/sda did not appear' \
    $with "$run" --config single
pid=$(cat "$tmp/pids")
# A killed child may be a zombie for a moment; what counts: it runs no more.
[ ! -e "/proc/$pid" ]
verdict $? "and QEMU is gone"

fake_queue_lines='@queues x: 4/0/0 default/read/poll queues
@mq 0 1 2 3
@irqs 0 0 0 0
@tick 0
@tick 100
@tick 200'
fake_qemu <<END
echo '$fake_queue_lines
@end 300
@irqs 9 9 9 0
@fio 3;fio;randread;0;0;1;1;100;1
@done 0' >&2
END
timeout 60 env $with "$run" --config single > "$tmp/out" 2> "$tmp/err"
[ $? -eq 1 ] && grep -q 'FAILED: single: QEMU has no thread' "$tmp/err"
verdict $? "without its IOThread the run fails" "$tmp/err"
grep -q 'FAILED: single: queue 3 never interrupted' "$tmp/err"
verdict $? "a queue that was not used fails it too" "$tmp/err"

fake_qemu <<END
echo '$fake_queue_lines' >&2
sleep 1000
END
env $with "$run" --config single > "$tmp/out" 2> "$tmp/err" &
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -s "$tmp/pids" ] && break
    sleep 0.5
done
kill -TERM $!
wait $!
[ $? -eq 143 ] && [ ! -e "/proc/$(cat "$tmp/pids")" ]
verdict $? "stopped by a signal: QEMU is stopped too" "$tmp/err"
}

# The judgement on IOThreads, with made-up CPU times
python3 -B - "$top/scripts/lab" > "$tmp/out" 2>&1 <<'END'
import importlib.machinery
import importlib.util
import sys
sys.path.insert(0, sys.argv[1])
loader = importlib.machinery.SourceFileLoader("run", sys.argv[1] + "/run")
run = importlib.util.module_from_spec(
    importlib.util.spec_from_loader("run", loader))
loader.exec_module(run)

def verdicts(queues, *cpu):
    config = run.Config("x", "x", queues, "")
    times = {f"iothread{i}": run.Thread("", 0, 0, c, 5)
             for i, c in enumerate(cpu)}
    return list(run.judge_iothreads(config, times))

bad = 0
for queues, cpu, want in (
        ([[0], [1]], (0.5, 0.4), []),
        ([[0], [1]], (0.5, 0.0002), ["iothread1 has queues"]),
        ([[0], [1]], (0.9, 0.01), ["iothread1 has queues"]),
        ([[0], [1]], (0, 0), ["iothread0 has", "iothread1 has"]),
        ([[0, 1], []], (0.5, 0.0001), []),
        ([[0, 1], []], (0.5, 0.3), ["iothread1 has no queue"]),
        ([[0], [1]], (0.5,), ["QEMU has no thread"])):
    got = verdicts(queues, *cpu)
    if len(got) != len(want) or any(w not in g for w, g in zip(want, got)):
        print(queues, cpu, "want", want, "got", got)
        bad = 1
# What QEMU says of its queues: (IOThread, requests) of each
def views(queues, *view):
    config = run.Config("x", "x", queues, "")
    told = [{"submitted": n, **({"iothread": t} if t else {})}
            for t, n in view]
    return list(run.judge_view(config, told))

one, two = ("iothread0", 5), ("iothread1", 5)
for queues, view, want in (
        ([[0, 1]], (one, one), []),
        ([[0], [1]], (one, two), []),
        ([[0], [1]], (two, one), ["queue 0 is served by iothread1",
                                  "queue 1 is served by iothread0"]),
        ([[0], [1]], (one, (None, 5)), ["by the main loop"]),
        ([[0], [1]], (one, ("iothread1", 0)), ["queue 1 had no request"]),
        ([[0], [1]], (), [])):      # stock tells nothing
    got = views(queues, *view)
    if len(got) != len(want) or any(w not in g for w, g in zip(want, got)):
        print(queues, view, "want", want, "got", got)
        bad = 1
sys.exit(bad)
END
verdict $? "idle and busy IOThreads are told apart" "$tmp/out"

# Queues that move, with made-up phases: who serves the hot queues, how busy
python3 -B - "$top/scripts/lab" > "$tmp/out" 2>&1 <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from watch import Sample
from watchmove import Phase, judge

def verdicts(title, busy, *names):
    queues = [{"iothread": n, "iothread-busy": busy} for n in names]
    return list(judge([Phase(title, 0, [Sample(1, 1, {}, queues)])]))

bad = 0
for title, busy, names, want in (
        ("as mapped", 0.9, "aa", 0), ("as mapped", 0.9, "ab", 1),
        ("by hand", 0.9, "ab", 0), ("by hand", 0.1, "aa", 1),
        ("by themselves", 0.9, "ba", 0), ("by themselves", 0.9, "aa", 1),
        ("by themselves", 0.1, "aa", 0)):
    if len(verdicts(title, busy, *names)) != want:
        print(title, busy, names, "got", verdicts(title, busy, *names))
        bad = 1
sys.exit(bad)
END
verdict $? "queues that moved and that didn't are told apart" "$tmp/out"

# The guest: no network, no space
proxy=http://127.0.0.1:9
refuses "no network" '^guest: error: no package lists' \
    http_proxy=$proxy https_proxy=$proxy "$top/scripts/lab/guest" --dir "$tmp/g"
refuses "the guest's folder can't be made" '^guest: error: .*Not a directory' \
    "$top/scripts/lab/guest" --dir "$tmp/empty/g"
mkdir "$tmp/small"
if unshare -m mount -t tmpfs -o size=8M none "$tmp/small" 2> /dev/null; then
    # shellcheck disable=SC2016
    refuses "no space" '^guest: error: no space: ' unshare -m sh -c '
        mount -t tmpfs -o size=8M none "$1" && exec "$2" --dir "$1/g"' \
        - "$tmp/small" "$top/scripts/lab/guest"
else
    skip "no space" "needs the right to mount a small tmpfs"
fi

echo "1..$count"
exit $failed
