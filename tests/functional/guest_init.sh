#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# First process of a test's guest, /init of an initramfs that has busybox as
# /usr/bin/busybox, the modules of virtio-scsi in /modules with their names in
# /modules/order, and fio.  It loads the drivers and runs the host's commands,
# as guest_shell.py says.
#
# ttyS0 is the console for people; what a program on the host reads goes to
# ttyS1, one line per fact, starting with "@".

say()
{
    echo "@$*" > /dev/ttyS1
}

setup()
{
    export PATH=/usr/bin:/usr/sbin
    /usr/bin/busybox --install -s /usr/bin
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs dev /dev
    mkdir -p /tmp /dev/shm /sys/kernel/debug
    mount -t tmpfs shm /dev/shm
    # No echo and no CR before LF: the host parses this line.
    stty -F /dev/ttyS1 raw -echo 2> /dev/null
    say "hello $(uname -r)"
    for module in $(cat /modules/order); do
        insmod "/modules/$module" || say "error: insmod $module"
    done
}

# Commands from tests/functional/guest_shell.py, a line each: NUMBER LENGTH
# COMMAND.  A line that was cut is asked for again; a number that was done is
# only answered again.
agent()
{
    exec 3<> /dev/ttyS1
    done=0
    while read -r number length command <&3; do
        case $number in
        *[!0-9]* | "") continue ;;
        esac
        if [ "${#command}" != "$length" ]; then
            say "again $number"
            continue
        fi
        if [ "$number" != "$done" ]; then
            done=$number
            (eval "$command") > /tmp/agent.out 2>&1 < /dev/null
            status=$?
        fi
        # awk ends the last line, too
        awk -v number="$number" -v status="$status" '
            BEGIN { print "@out " number }
            { print number "|" $0 }
            END { print "@ran " number " " status " " NR }
        ' /tmp/agent.out >&3
    done
}

setup
agent
poweroff -f
