# SPDX-License-Identifier: GPL-2.0-or-later
#
# Functions of test_virtio_scsi_suites.py, in the guest.

# links NAME TARGET LUN: /dev/NAME is its sg node, /dev/NAME.blk its disk, once
# they are there.
links()
{
    device=/sys/class/scsi_device/0:0:$2:$3/device
    [ -d "$device/scsi_generic" ] && [ -d "$device/block" ] &&
        ln -sf "$(ls "$device/scsi_generic")" "/dev/$1" &&
        ln -sf "$(ls "$device/block")" "/dev/$1.blk" &&
        [ -c "/dev/$1" ] && [ -b "/dev/$1.blk" ]
}

# with_resets COMMAND...: while the LUNs are reset every 3 s.  Fails if it does,
# or a reset, or if there was none.
with_resets()
{
    rm -f /tmp/no-resets /tmp/resets
    while [ ! -e /tmp/no-resets ]; do
        for lun in lun0 lun1; do
            sg_reset --no-esc --device /dev/$lun || echo "status $?: $lun"
            echo reset >> /tmp/resets
        done
        sleep 3
    done > /tmp/reset-errors 2>&1 &
    "$@"
    status=$?
    touch /tmp/no-resets
    wait
    cat /tmp/reset-errors
    echo "$(wc -l < /tmp/resets) resets"
    [ $status = 0 ] && [ ! -s /tmp/reset-errors ] && [ -s /tmp/resets ]
}

# ------------------------------------------------ sg3-utils: of $bs bytes, $dev

# 16 blocks that differ from each other and, by $1, from round to round
pattern()
{
    awk -v round="$1" -v lines=$((bs / 2)) 'BEGIN {
        for (i = 0; i < lines; i++) printf "round %11d line %8d\n", round, i
    }'
}

put_pattern()
{
    pattern "$1" > /tmp/is && sg_dd if=/tmp/is of="$dev" bs="$bs" count=16
}

# Are the first blocks of the disk what is in the file?
disk_is()
{
    sg_dd if="$dev" of=/tmp/now bs="$bs" count=16 > /dev/null 2>&1 &&
        cmp "$1" /tmp/now
}

# sg_raw must report that so many bytes came.
raw_receives()
{
    want=$1
    shift
    sg_raw "$@" > /tmp/raw 2>&1
    status=$?
    cat /tmp/raw
    [ $status = 0 ] && grep -q "Received $want bytes of data" /tmp/raw
}

# vpd_pages FIRST LAST: VPD pages, there or not, as the device answers
vpd_pages()
{
    for page in $(seq "$1" "$2"); do
        page=$(printf %02x "$page")
        echo "page $page"
        sg_raw -r 255 "$dev" 12 01 "$page" 00 ff 00
    done
}

# By the kernel's MODE SELECT
cache()
{
    file=/sys/class/scsi_disk/0:0:0:${dev#/dev/lun}/cache_type
    echo "$1" > "$file" && grep -qx "$1" "$file"
}

# What the kernel's scan finds at an address
scan()
{
    echo "0 $1 $2" > /sys/class/scsi_host/host0/scan
    ls /sys/class/scsi_device
}

# ----------------------------------------------------------------------- fio

# A job may come to a block again while its last read of it is in flight; only
# --serialize_overlap keeps the two apart.
verify="--verify=crc32c --verify_fatal=1 --verify_state_save=0
    --serialize_overlap=1"
mixed="$verify --rw=randrw --verify_backlog=64 --time_based"
each="--ioengine=libaio --direct=1 --bs=4k --iodepth=8 --numjobs=4
    --cpus_allowed=0-3 --cpus_allowed_policy=split --group_reporting --minimal"
own="--size=4M --offset_increment=4M"       # a region for each job

# fio_both OPTION...: for each CPU, and so for each queue, a job on both LUNs
fio_both()
{
    set -o pipefail
    # shellcheck disable=SC2086
    fio $each "$@" --name=lun0 --filename=/dev/lun0.blk \
        --name=lun1 --filename=/dev/lun1.blk | cut -d ';' -f 3-8,47-49
}

# Nothing that fio wrote is left.
all_zero()
{
    cmp -n $((16 << 20)) "/dev/$1.blk" /dev/zero
}

# -------------------------------------------- file systems on lun0 and on lun1

mount_both()
{
    mkdir -p /mnt/ext4 /mnt/xfs
    mount -t ext4 /dev/lun0.blk /mnt/ext4 && mount -t xfs /dev/lun1.blk /mnt/xfs
}

umount_both()
{
    umount /mnt/ext4 && umount /mnt/xfs
}

# Files whose content no cache can know after the next mount
make_files()
{
    for fs in ext4 xfs; do
        for i in 1 2 3 4 5 6 7 8; do
            head -c $((i * 1000003)) /dev/urandom > /mnt/$fs/file$i || return 1
        done
    done
    sync
}

dbench_on()
{
    dbench --loadfile=/usr/share/dbench/client.txt --directory="/mnt/$1" \
        --timelimit=15 --skip-cleanup 4 > "/tmp/dbench-$1" 2>&1
    status=$?
    tail -n 3 "/tmp/dbench-$1"
    return $status
}

fio_on()
{
    set -o pipefail
    # shellcheck disable=SC2086
    fio $each $mixed --runtime=15 --name="$1" --directory="/mnt/$1" --size=4M \
        --fsync=32 | cut -d ';' -f 3-8,47-49
}

# Everything at once; fails if one of them does
load()
{
    failed=0
    pids=
    for fs in ext4 xfs; do
        dbench_on $fs &
        pids="$pids $!"
        fio_on $fs &
        pids="$pids $!"
    done
    for pid in $pids; do
        wait "$pid" || failed=1
    done
    return $failed
}

sums()
{
    set -o pipefail
    find /mnt/ext4 /mnt/xfs -type f -print0 | sort -z |
        xargs -0 md5sum > "$1" && wc -l < "$1"
}

same_sums()
{
    set -o pipefail
    sums /tmp/now && [ -s /tmp/now ] && cmp /tmp/sums /tmp/now
}

remove_files()
{
    rm -rf /mnt/ext4/* /mnt/xfs/* && sync
}

# ---------------------------------------------------------------------- trim

on_disk="--name=trim --filename=/dev/lun0.blk --direct=1 --size=64M --minimal"

trim_fill()
{
    # shellcheck disable=SC2086
    fio $on_disk --rw=write --bs=1M > /dev/null
}

# Part by part, as long as the disk says
trim_disk()
{
    queue=/sys/block/$(readlink /dev/lun0.blk)/queue
    echo "granularity $(cat "$queue/discard_granularity")"
    # shellcheck disable=SC2086
    fio $on_disk --rw=randtrim --bs="$(cat "$queue/discard_granularity")" \
        > /dev/null
}

mount_ext4()
{
    mkdir -p /mnt/ext4 && mount -t ext4 /dev/lun1.blk /mnt/ext4
}

trim_files()
{
    for i in 1 2 3 4 5 6 7 8; do
        head -c $((i * 2000003)) /dev/urandom > /mnt/ext4/file$i || return 1
    done
    sync
}
