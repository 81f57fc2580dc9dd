# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest's command line, a shell in it that a migration doesn't end, and
CPU time of QEMU's threads.

The guest's init, guest_init.sh, reads lines "NUMBER LENGTH COMMAND" from a
serial port.  A line that has another length was cut: it answers "@again
NUMBER".  If the number isn't the last one it runs the command, else it only
answers again:

    @out NUMBER
    NUMBER|a line of output                 (for each line)
    @ran NUMBER STATUS COUNT-OF-LINES

This module needs nothing of QEMU's.
"""

import collections
import itertools
import os
import re
import select
import shlex
import socket
import time

RESEND = 10                     # seconds; an answer may get lost in migration
ATTEMPTS = 3
REPLY_LIMIT = 120               # seconds for a command, if none is given
WORK = 0.001                    # seconds of CPU time that are more than waking
# What a guest's kernel says if a vCPU gets no CPU time
STALL = re.compile(r"rcu.*(stall|starved)|soft lockup|hard LOCKUP")
# What QEMU says when multi-threaded TCG loses a race
FAULT = re.compile(r"iotlb_to_section")

# A program that ends with this one, even if this is killed
TIED = ["setpriv", "--pdeathsig", "KILL"]

Thread = collections.namedtuple("Thread", "name usr sys cpu switches")


class GuestError(AssertionError):
    """Not what should be; one line says why."""


class EmulatorFault(Exception):
    """A known fault of multi-threaded TCG on a busy host: no verdict on the
    device, so that the test is to be repeated."""


def expect(condition, text):
    if not condition:
        raise GuestError(text)


def wait_for(what, function, limit=60, step=0.2):
    """The first true result of function(); an error that names what."""
    end = time.monotonic() + limit
    while True:
        result = function()
        if result:
            return result
        expect(time.monotonic() <= end, f"no {what} in {limit} s")
        time.sleep(step)


def accelerator():
    """(QEMU's options, why these): /dev/kvm may open on a CPU that can't."""
    tcg = ["-accel", "tcg,thread=multi", "-cpu", "qemu64"]
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
        able = re.search(r"^flags\s*:.*\b(vmx|svm)\b", f.read(), re.M)
    if not able:
        return tcg, "TCG: this CPU shows neither vmx nor svm"
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return tcg, f"TCG: can't open /dev/kvm: {error.strerror}"
    return (["-accel", "kvm", "-cpu", "host"],
            f"KVM: the CPU has {able.group(1)} and /dev/kvm opens")


def guest_options(guest, initrd, console, agent, vcpus, memory):
    """QEMU's options for a guest from the folder guest, with a file for its
    console and a Unix socket for its shell."""
    return accelerator()[0] + [
        "-smp", str(vcpus), "-m", memory, "-nodefaults", "-no-reboot",
        "-name", "debug-threads=on",
        "-kernel", f"{guest}/vmlinuz", "-initrd", f"{guest}/{initrd}",
        "-append", "console=ttyS0 mitigations=off panic=-1",
        "-serial", f"file:{console}",
        "-chardev", f"socket,id=agent,path={agent},server=on,wait=off",
        "-serial", "chardev:agent"]


def repeated(function, tell):
    """The result of function(), which must get through without such a fault."""
    for _ in range(ATTEMPTS):
        try:
            return function()
        except EmulatorFault as fault:
            tell(f"fault of the emulator, run does not count: {fault}")
    raise GuestError(f"the emulator failed {ATTEMPTS} times; is the host "
                     "overloaded?")


class GuestShell:
    """The guest's init at the other end of a Unix socket.

    Whatever a migration or a reconnect cuts is sent again.
    """

    number = 0                  # of all shells, as the guest outlives one

    def __init__(self, path):
        self.path = path
        self.socket = None
        self.rest = b""
        self.alarm = lambda: None   # raises if the guest can't answer
        self.other = lambda text: None  # gets lines that are no answer

    def close(self):
        if self.socket:
            self.socket.close()
        self.socket = None

    def connect(self):
        self.close()
        self.rest = b""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(self.path)
        except OSError:
            self.close()

    def lines(self, seconds):
        """Whole lines that come within this time; none if nothing does."""
        if not self.socket:
            self.connect()
        if not self.socket:
            time.sleep(min(0.2, seconds))
            return []
        if not select.select([self.socket], [], [], seconds)[0]:
            return []
        try:
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.close()
            return []
        *whole, self.rest = (self.rest + data).split(b"\n")
        return [s.decode(errors="replace").strip("\r") for s in whole]

    def send(self, text):
        if not self.socket:
            self.connect()
        try:
            if self.socket:
                self.socket.sendall(text.encode())
        except OSError:
            self.close()

    def run(self, command, limit=REPLY_LIMIT, check=True):
        """Output lines of a shell command in the guest.

        With check=False: (exit status, output lines).
        """
        if "\n" in command or command != command.strip() or \
                len(command) > 2000:
            raise ValueError(f"not one short line: {command!r}")
        GuestShell.number += 1
        status, output = self.answer(GuestShell.number, command, limit)
        if not check:
            return status, output
        tail = " / ".join(output[-4:]) or "no output"
        expect(status == 0, f"in the guest: {command}: exit status {status}: "
               f"{tail}")
        return output

    def answer(self, number, command, limit):
        start, sent = time.monotonic(), 0
        output = []
        while True:
            now = time.monotonic()
            if now - start > limit:
                self.alarm()
                raise GuestError(f"no answer from the guest in {limit} s to: "
                                 f"{command}")
            if now - sent > RESEND:
                self.alarm()
                # The line break ends what a lost connection left half said.
                self.send(f"\n{number} {len(command)} {command}\n")
                sent = now
            for text in self.lines(0.5):
                if text == f"@out {number}":
                    output = []
                elif text.startswith(f"{number}|"):
                    output.append(text[len(f"{number}|"):])
                found = re.fullmatch(r"@ran (\d+) (\d+) (\d+)", text)
                if found and int(found.group(1)) == number:
                    if int(found.group(3)) == len(output):
                        return int(found.group(2)), output
                    sent = 0
                elif text == f"@again {number}":
                    sent = 0
                elif not re.match(r"@|\d+\|", text):
                    self.other(text)

    def start(self, name, command, again=False, endless=False):
        """Run a command in the background; finish() asks for its end.

        With again it is run again and again until then, so that nothing that
        is done meanwhile depends on how long it takes.  With endless it is a
        fio without an end of its own, which is terminated then: it says 128 if
        that is all that went wrong.
        """
        stop = f"[ -e /tmp/{name}.stop ]"
        if again:
            command = f"while :; do {command} || exit; ! {stop} || exit 0; done"
        if endless:
            command += (f" & until {stop} || ! kill -0 $!; do sleep 1; done; "
                        "kill $!; wait $!; s=$?; [ $s != 128 ] || exit 0; "
                        "exit $s")
        quoted = shlex.quote(f"({command}) > /tmp/{name}.out 2>&1; "
                             f"echo $? > /tmp/{name}.status")
        self.run(f"rm -f /tmp/{name}.status /tmp/{name}.stop; "
                 f"setsid sh -c {quoted} > /dev/null 2>&1 < /dev/null &")

    def running(self, name):
        return self.run(f"test -e /tmp/{name}.status", check=False)[0] != 0

    def finish(self, name, limit=REPLY_LIMIT):
        """Output lines of what start() started; an error if it failed."""
        self.run(f"touch /tmp/{name}.stop")
        wait_for(f"end of {name} in the guest",
                 lambda: not self.running(name), limit, 1)
        (status,) = self.run(f"cat /tmp/{name}.status")
        output = self.run(f"tail -n 40 /tmp/{name}.out")
        expect(status == "0", f"{name} in the guest: exit status {status}: "
               + " / ".join(output[-4:]))
        return output

    def lun_name(self, lun, kind="block"):
        """The guest's sdX of a LUN, or sgN with kind="scsi_generic"."""
        return wait_for(f"LUN {lun} in the guest", lambda: self.run(
            f"ls /sys/bus/scsi/devices/*:0:0:{lun}/{kind} 2> /dev/null || true"
            ), 60)[0]


def fio_verified(disk, queues, seconds=3600, region="64M", extra=""):
    """Shell command: random reads and verified writes, a job per queue.

    Each job stays on a vCPU of its own, so that each queue is fed.  A job comes
    to a block again as soon as it has had all of them, maybe while its last
    read of it is in flight; only --serialize_overlap keeps the two apart.
    Nobody wants the state of the verification, and a --trigger-file, which
    saves it for all jobs while they end, can crash fio (3.39).
    """
    return (f"fio --name=verified --filename=/dev/{disk} --rw=randrw --bs=4k "
            "--ioengine=libaio --direct=1 --iodepth=8 --verify=crc32c "
            "--verify_backlog=64 --verify_fatal=1 --verify_state_save=0 "
            "--exitall_on_error "
            "--randrepeat=0 --serialize_overlap=1 "
            f"--numjobs={queues} --cpus_allowed=0-{queues - 1} "
            f"--cpus_allowed_policy=split --size={region} "
            f"--offset_increment={region} --time_based --runtime={seconds} "
            f"--group_reporting --output-format=terse {extra}").strip()


# ------------------------------------------------ what a load does to the host

def interrupts(lines):
    """How often each queue has interrupted the guest, from /proc/interrupts."""
    return [sum(map(int, itertools.takewhile(str.isdigit, s.split()[1:])))
            for s in lines if re.search(r"virtio\d+-request", s)]


def read_threads(pid):
    """{tid: Thread} with CPU times in seconds."""
    hertz = os.sysconf("SC_CLK_TCK")
    threads = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        base = f"/proc/{pid}/task/{tid}"
        try:
            with open(f"{base}/stat", encoding="utf-8") as f:
                text = f.read()
            with open(f"{base}/status", encoding="utf-8") as f:
                found = re.search(r"^voluntary_ctxt_switches:\s*(\d+)",
                                  f.read(), re.M)
            try:
                # Nanoseconds; stat counts in steps of a clock tick.
                with open(f"{base}/schedstat", encoding="ascii") as f:
                    exact = int(f.read().split()[0]) / 1e9
            except OSError:
                exact = None
        except OSError:
            continue                    # the thread has just ended
        name = text[text.index("(") + 1:text.rindex(")")]
        fields = text[text.rindex(")") + 2:].split()
        usr, system = int(fields[11]) / hertz, int(fields[12]) / hertz
        threads[int(tid)] = Thread(name, usr, system,
                                   usr + system if exact is None else exact,
                                   int(found.group(1)))
    return threads


def difference(first, last):
    """[Thread] that used CPU or not between two samples, in thread order."""
    found = []
    for tid in sorted(last):
        old = first.get(tid, Thread("", 0, 0, 0, 0))
        found.append(Thread(last[tid].name, *(b - a for a, b in
                                              zip(old[1:], last[tid][1:]))))
    return found


def is_iothread(thread):
    """The monitor has one, too, which is none of the user's."""
    return thread.name.startswith("IO ") and thread.name != "IO mon_iothread"


def iothread_times(threads):
    """{iothread's id: Thread}; QEMU must run with -name debug-threads=on."""
    return {t.name[3:]: t for t in threads if is_iothread(t)}


class Sample:
    """What a load on one disk has done so far: requests, interrupts of each
    queue, CPU time of QEMU's threads."""

    def __init__(self, vm, disk="sda"):
        stat, *lines = vm.shell.run(f"cat /sys/block/{disk}/stat; "
                                    "grep virtio /proc/interrupts")
        self.time = time.monotonic()
        self.threads = read_threads(vm.get_pid())
        fields = stat.split()
        self.done = int(fields[0]) + int(fields[4])
        self.interrupts = interrupts(lines)

    def since(self, first):
        """Interrupts of each queue since then."""
        return [b - a for a, b in zip(first.interrupts, self.interrupts)]


def judge_cpu(queues, times, share=len):
    """What is wrong with the CPU time of IOThreads: iothread0, which serves
    queues[0], and so on.

    It must fit the share that the queues have of the load; a tenth of that is
    still clearly work.  One without queues sleeps from start to end.
    """
    total = sum(t.cpu for t in times.values())
    for i, vqs in enumerate(queues):
        name = f"iothread{i}"
        if name not in times:
            yield f'QEMU has no thread "IO {name}"'
            continue
        used = times[name].cpu
        told = f"({1000 * used:.1f} of {1000 * total:.1f} ms CPU)"
        if not vqs and used > max(WORK, 0.02 * total):
            yield f"{name} has no queue but worked {told}"
        if vqs and used < max(WORK, 0.1 * total * share(vqs)
                              / share(sum(queues, []))):
            yield f"{name} has queues {vqs} but did no work {told}"
