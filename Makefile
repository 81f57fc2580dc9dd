# SPDX-License-Identifier: GPL-2.0-or-later
#
# The front door: every target calls one program below scripts/, which can be run
# alone as well and explains itself with --help.

PREFIX ?= /usr/local
# Only those that are set: a variable without a value is not a value.
$(foreach v,QEMU_SRC CONFIGURE_FLAGS FULL JOBS PREFIX DESTDIR \
            VCPUS IOTHREADS RUNTIME BACKEND CONFIG ROUNDS PEER,$(if $($v),$(eval export $v)))

# QEMU's own build is started with its own -j; the jobserver's flags would only
# confuse the programs below.
unexport MAKEFLAGS MFLAGS

.DEFAULT_GOAL := build
.NOTPARALLEL:
.PHONY: help build stock install run check check-style check-tsan check-asan \
        check-model check-guest check-libvirt check-migration check-backends \
        check-tls check-iscsi check-ceph soak coverage \
        bench bench-net profile docs check-docs series check-series deb check-deb \
        base deps clean distclean

help: ## this list
	@sed -n 's/^#: \{0,1\}//p' $(MAKEFILE_LIST)

#: Build   make                 build/qemu-system-x86_64, qemu-img, ... (default)
#:         make install         it, below PREFIX=/usr/local (and DESTDIR=)
#:         make stock docs      pristine QEMU beside it; the manual with our pages
#:         make clean distclean delete what was built; all of build/
#:           QEMU_SRC=DIR CONFIGURE_FLAGS="..." FULL=1 JOBS=N
#: Try     make run             a Linux guest doing I/O on mapped IOThreads
#:           VCPUS=N IOTHREADS=N RUNTIME=S BACKEND=null|FILE|/dev/...
#: Test    make check           all tests, ours and the base's that touch this code
#:         make check-style     checkpatch.pl, scripts' syntax, no large files
#:         make check-tsan      data races (NO_STOCK=1); check-asan: memory, leaks
#:         make soak            stress and a hostile guest, MINUTES=10, SEED=N,
#:                              SANITIZER=tsan or asan
#:         make check-guest     iscsi-test-cu, sg3_utils, ext4 and xfs in a guest
#:         make check-backends  files, qcow2, loop, NBD servers that go away
#:         make check-tls       encrypted NBD disks
#:         make check-iscsi     scsi-hd, scsi-block, scsi-generic on a target
#:         make check-ceph      RBD: daemons that are killed, snapshots, clones
#:           TESTS="-k NAME"    only these
#:         make check-migration a guest at work moves, from and to stock, too
#:         make check-libvirt   mapped controllers from XML, hotplug, save, migrate
#:           PEER=sid           these two with QEMU or libvirt of Debian's sid
#:         make check-docs      the pages' commands, QMP and messages
#:         make check-model     who owns a virtqueue, by Spin: all states
#:         make coverage        which lines and branches of ours the tests run
#:         make fuzz            one fuzzer for a while: TARGET=NAME SECONDS=N
#: Measure make bench           stock virtio-scsi, virtio-blk, fio beside; ROUNDS=N
#:         make bench-net       IOThreads on disks of NBD, iSCSI and Ceph
#:         make profile         where the time goes: CONFIG=NAME
#:                              (scripts/bench/bench --list has the names)
#: Take    make series          mails to git am; check-series proves them (SERIES=A
#:                              APPLY_ONLY=1)
#:         make deb             Debian's source package with them (BUILD=1 binaries)
#:         make check-deb       it unpacks to our files, and compiles
#: Each target calls programs below scripts/; their --help tells more.

build: base ## QEMU with our files, as build/qemu-system-x86_64 (the default)
	@scripts/build/overlay
	@scripts/build/build-qemu ours

stock: base ## the pristine base with the same flags, as build/stock/qemu-system-x86_64
	@scripts/build/build-qemu stock

install: build ## install the build under PREFIX= (and DESTDIR=)
	@scripts/build/build-qemu install

run: run-check build ## walk-through: a Linux guest doing I/O on mapped IOThreads
	@scripts/lab/run

# Bad input is told at once, not after the build.
.PHONY: run-check
run-check:
	@scripts/build/deps run
	@scripts/lab/run --dry-run > /dev/null

check: build stock ## all tests, ours and the base's that touch this code
	@scripts/build/deps check $(if $(COVERAGE),coverage)
	@scripts/build/build-qemu tests
	@scripts/check/check $(if $(COVERAGE),--coverage)

check-tsan: sanitizer-deps build ## stress under ThreadSanitizer, ours and stock: no race in our files
	@scripts/build/build-qemu tests $(SANITIZED)
	@scripts/build/build-qemu tsan
	@$(if $(NO_STOCK),,scripts/build/build-qemu stock-tsan)
	@scripts/check/check-sanitizer tsan $(if $(NO_STOCK),--no-stock)

check-asan: sanitizer-deps build ## stress under AddressSanitizer and UBSan, with leak check
	@scripts/build/build-qemu tests $(SANITIZED)
	@scripts/build/build-qemu asan
	@scripts/check/check-sanitizer asan

# What check-sanitizer runs
SANITIZED = tests/qtest/virtio-scsi-stress tests/qtest/virtio-scsi-data-test \
            tests/qtest/qos-test

.PHONY: sanitizer-deps
sanitizer-deps:
	@scripts/build/deps sanitizers

soak: build ## stress and hostile guest for MINUTES=10; SANITIZER=tsan or asan, SEED=N
	@scripts/build/deps soak $(if $(SANITIZER),sanitizers)
	@scripts/build/build-qemu tests
	@$(if $(SANITIZER),scripts/build/build-qemu $(SANITIZER))
	@scripts/check/soak $(if $(MINUTES),--minutes '$(MINUTES)') \
		$(if $(SANITIZER),--sanitizer '$(SANITIZER)') \
		$(if $(SEED),--seed '$(SEED)')

check-libvirt: build ## a real libvirt: mapped controllers from XML, hotplug, save, snapshot
	@scripts/build/deps run $(if $(PEER),,libvirt)
	@$(if $(PEER),scripts/build/unpack libvirt '$(PEER)')
	@scripts/lab/functional libvirt

check-guest: build stock ## iscsi-test-cu, sg3_utils, fio, ext4 and xfs in a guest, ours and stock
	@scripts/build/deps run
	@scripts/lab/functional suites

check-migration: build stock ## a guest at work moves between QEMUs, ours and stock
	@scripts/build/deps run
	@$(if $(PEER),scripts/build/unpack qemu '$(PEER)')
	@scripts/lab/functional migration \
		-k VirtioScsiMigration$(if $(PEER),Newer).

check-backends: build ## files, qcow2, a loop device, SG_IO, NBD servers that go away: data verified
	@scripts/build/deps run backends
	@scripts/build/build-qemu tests tests/qtest/virtio-load
	@scripts/lab/functional backends nested

check-tls: storage ## encrypted NBD disks whose servers go away, and a guest
	@scripts/build/deps run backends
	@QEMU=build/storage/qemu-system-x86_64 scripts/lab/functional backends \
		-k VirtioScsiTls.

check-iscsi: storage ## a private iSCSI target that comes and goes, and a guest
	@scripts/lab/functional iscsi $(TESTS)

check-ceph: storage ## a private Ceph cluster whose daemons are killed, and a guest
	@scripts/lab/functional ceph $(TESTS)

.PHONY: storage
storage: build
	@scripts/build/deps run storage
	@scripts/build/build-qemu tests tests/qtest/virtio-load
	@scripts/build/build-qemu storage

bench: build stock ## CPU per I/O, IOPS and latency: ours, stock virtio-scsi and virtio-blk, fio
	@scripts/build/deps bench
	@scripts/build/build-qemu tests tests/qtest/virtio-load
	@scripts/bench/bench $(if $(ROUNDS),--rounds '$(ROUNDS)')

bench-net: storage ## what several IOThreads cost on disks of NBD, iSCSI and Ceph
	@scripts/build/deps backends
	@scripts/build/build-qemu stock-storage
	@scripts/bench/bench --net $(if $(ROUNDS),--rounds '$(ROUNDS)')

profile: build stock ## where the CPU time of one configuration goes
	@scripts/build/deps profile
	@scripts/build/build-qemu tests tests/qtest/virtio-load
	@scripts/bench/profile $(if $(CONFIG),'$(CONFIG)')

docs: base ## QEMU's manual with our pages, as build/docs/index.html
	@scripts/build/deps docs
	@scripts/build/overlay
	@scripts/docs/docs

check-docs: build ## our pages without a warning; their commands, QMP and messages tried
	@scripts/build/deps docs
	@scripts/docs/docs --check

check-model: ## the model of who owns a virtqueue holds, and each mutant of it fails
	@scripts/build/deps model
	@scripts/check/check-model

coverage: build ## lines and branches that tests run; fails if tests/coverage.txt has more
	@scripts/build/deps check coverage
	@scripts/build/build-qemu tests
	@scripts/check/check --coverage --only=unit --only=qtest --only=qos --only=base

.PHONY: fuzz
fuzz: sanitizer-deps build ## libFuzzer with ASan and UBSan: TARGET=NAME (or a list of them) SECONDS=N
	@scripts/build/build-qemu fuzz
	@scripts/check/fuzz $(if $(SECONDS),--seconds '$(SECONDS)') $(if $(TARGET),'$(TARGET)')

series: base ## our changes as mails to git am, with a cover letter, in build/series
	@scripts/build/deps series
	@scripts/series/series

check-series: build series ## git am on the tarball, a build and tests after each mail
	@scripts/build/deps style check docs
	@scripts/series/check-series $(if $(APPLY_ONLY),--apply-only) \
		$(if $(SERIES),--series '$(SERIES)') $(if $(FAULTS),--faults)

deb: series ## Debian's source package with the series (BUILD=1: the packages too, as root, an hour)
	@scripts/build/deps deb
	@scripts/build/overlay
	@scripts/series/deb $(if $(BUILD),--binary)

check-deb: series ## the package unpacks to our files, Debian's configuration compiles them (root)
	@scripts/build/deps deb
	@scripts/build/overlay
	@scripts/series/deb --check

check-style: base ## QEMU's checkpatch.pl over our C files and patches, syntax of our scripts
	@scripts/build/deps style
	@scripts/check/check-style

base: deps ## fetch and unpack the QEMU source, as build/base
	@scripts/build/fetch-base

deps: ## install the packages the build needs (only the missing ones)
	@scripts/build/deps build

clean: ## delete what was built; keeps the base, the downloads and the guest
	rm -rf build/obj build/full build/stock* build/src* build/storage* \
	    build/tsan build/asan build/coverage* \
	    build/check build/bench build/series build/check-series \
	    build/docs build/docs.warnings build/deb build/model \
	    build/qemu-* build/*.log build/.[a-z]*

distclean: ## delete build/ altogether
	rm -rf build
