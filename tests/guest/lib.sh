# SPDX-License-Identifier: GPL-2.0-or-later
#
# Functions of the jobs of scripts/lab/check-guest, in the guest.  A part's output
# goes to ttyS1 as it is, between "@begin NAME" and "@end STATUS".

# Kept open: lines got lost when one writer closed it while another opened it.
exec 7> /dev/ttyS1

# scsi_dev CLASS TARGET LUN: the kernel's name of a LUN, once it is there
scsi_dev()
{
    tries=0
    until name=$(ls "/sys/class/scsi_device/0:0:$2:$3/device/$1") 2> /dev/null
    do
        tries=$((tries + 1))
        if [ $tries -gt 600 ]; then
            say "error: no $1 device of target $2, LUN $3 in the guest"
            finish 1
        fi
        sleep 0.1
    done
    echo "$name"
}

# part NAME COMMAND [SECONDS]: in the background, so that one that hangs can
# be ended.
part()
{
    say "begin $1"
    (eval "$2") > /tmp/output 2>&1 < /dev/null &
    pid=$!
    (sleep "${3:-60}" && echo "ended after ${3:-60} s" >> /tmp/output &&
     kill -9 $pid) &
    watcher=$!
    wait $pid
    status=$?
    kill $watcher 2> /dev/null
    cat /tmp/output > /dev/ttyS1
    echo > /dev/ttyS1        # "@" belongs at the start of a line
    say "end $status"
}

# start_resets DEVICE...: reset these LUNs every 3 s until stop_resets
start_resets()
{
    rm -f /tmp/no-resets /tmp/resets
    while [ ! -e /tmp/no-resets ]; do
        for generic; do
            sg_reset --no-esc --device "$generic" || echo "status $?: $generic"
            echo reset >> /tmp/resets
        done
        sleep 3
    done > /tmp/reset-errors 2>&1 &
    resetter=$!
}

# Fails if one of them failed, or if there was none.
stop_resets()
{
    touch /tmp/no-resets
    wait $resetter
    cat /tmp/reset-errors
    echo "$(wc -l < /tmp/resets) resets"
    [ ! -s /tmp/reset-errors ] && [ -s /tmp/resets ]
}

for module in $(cat /modules/extra); do
    insmod "/modules/$module" || say "error: insmod $module"
done
# On the console, as a program may be writing to ttyS1
(while sleep 10; do echo @alive > /dev/ttyS0; done) &
