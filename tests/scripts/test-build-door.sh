#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The build's front door: overlay, base, packages, test runner. Needs neither
# network nor root nor a build; works on copies of scripts/ and a toy tree.
# Prints TAP.

set -u
export LC_ALL=C
unset QEMU_SRC FULL JOBS PREFIX DESTDIR CONFIGURE_FLAGS MAKEFLAGS PYTHON

repo=$(cd "$(dirname "$0")/../.." && pwd)
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM

n=0
out=$tmp/out

# result STATUS NAME [OUTPUT]: one TAP line; and what was said if it failed
result() {
    n=$((n + 1))
    if [ "$1" = 0 ]; then
        echo "ok $n - $2"
    else
        echo "not ok $n - $2"
        sed 's/^/#   /' "${3:-$out}"
    fi
}

# check NAME COMMAND...: the command (a test, mostly) succeeds
check() {
    name=$1
    shift
    "$@" > "$tmp/check.out" 2>&1
    result $? "$name" "$tmp/check.out"
}

# refuses NAME TEXT COMMAND...: the command fails and its output has TEXT
refuses() {
    name=$1 text=$2
    shift 2
    if "$@" > "$out" 2>&1; then
        result 1 "$name (it succeeded)"
    else
        grep -qF -e "$text" "$out"
        result $? "$name"
    fi
}

# accepts NAME COMMAND...
accepts() {
    name=$1
    shift
    "$@" > "$out" 2>&1
    result $? "$name"
}

# says NAME TEXT: the output of the last accepts or refuses has TEXT
says() {
    grep -qF -e "$2" "$out"
    result $? "$1"
}

# sum DIR: one line for names, modes and content
sum() {
    (cd "$1" && find . ! -type d -exec ls -l {} + | awk '{ print $1, $NF }'
     find . -type f | sort | while read -r f; do cksum "$f"; done) | cksum
}

# new_top DIR: a toy repository with our scripts
new_top() {
    mkdir -p "$1"
    cp -R "$repo/scripts" "$1/scripts"
}

# new_qemu DIR VERSION: what passes for a QEMU tree
new_qemu() {
    mkdir -p "$1/hw/scsi" "$1/subprojects/keycodemapdb" \
        "$1/subprojects/berkeley-softfloat-3" \
        "$1/subprojects/berkeley-testfloat-3"
    touch "$1/subprojects/keycodemapdb/meson.build" \
        "$1/subprojects/berkeley-softfloat-3/meson.build" \
        "$1/subprojects/berkeley-testfloat-3/meson.build" "$1/configure"
    echo "$2" > "$1/VERSION"
    seq 1 20 > "$1/hw/scsi/numbers.c"
    echo stock > "$1/hw/scsi/device.c"
}

## scripts/build/overlay

top=$tmp/overlay
new_top "$top"
new_qemu "$top/build/base" 10.0.13
echo one > "$top/build/base.stamp"
mkdir -p "$top/hw/scsi" "$top/patches"
echo ours > "$top/hw/scsi/device.c"
echo new > "$top/hw/scsi/added.c"
echo backup > "$top/hw/scsi/added.c~"
base_sum=$(sum "$top/build/base")
overlay=$top/scripts/build/overlay
src=$top/build/src

# a patch that changes line 10, and one that makes a file
cat > "$top/patches/10-ten.patch" <<'EOF'
Ten is better written out

-- this line is not a header
--- a/hw/scsi/numbers.c
+++ b/hw/scsi/numbers.c
@@ -8,5 +8,5 @@
 8
 9
-10
+ten
 11
 12
EOF
cat > "$top/patches/20-made.patch" <<'EOF'
A file that a patch makes

--- /dev/null
+++ b/hw/scsi/made.c
@@ -0,0 +1 @@
+made
EOF

accepts "overlay: makes a tree" "$overlay"
check "overlay: file of ours replaces the base's" \
    grep -qx ours "$src/hw/scsi/device.c"
check "overlay: file of ours is added" grep -qx new "$src/hw/scsi/added.c"
check "overlay: backup file stays out" test ! -e "$src/hw/scsi/added.c~"
check "overlay: patch is applied" grep -qx ten "$src/hw/scsi/numbers.c"
check "overlay: patch makes a file" grep -qx made "$src/hw/scsi/made.c"
accepts "overlay: second run" "$overlay"
says "overlay: second run writes nothing" "0 files of build/src updated"

echo more >> "$top/hw/scsi/added.c"
accepts "overlay: after an edit" "$overlay"
says "overlay: an edit updates that file only" "1 files of build/src updated"
echo scribble > "$src/hw/scsi/numbers.c"
accepts "overlay: after a scribble in build/src" "$overlay"
check "overlay: scribble is overwritten" grep -qx ten "$src/hw/scsi/numbers.c"

before=$(sum "$src")
sed 's/^ 9$/ nine/; s/ten/TEN/' "$top/patches/10-ten.patch" \
    > "$top/patches/30-bad.patch"
refuses "overlay: bad patch stops, with its name" "30-bad.patch does not apply" \
    "$overlay"
says "overlay: it says which hunk" "Hunk #1 FAILED at 8"
check "overlay: bad patch leaves build/src alone" \
    test "$(sum "$src")" = "$before"
# one line of context is wrong: patch(1) would take that with fuzz
sed '/^-10/,/^+ten/d; s/^ 11$/-11\n+eleven/; s/^ 8$/ eight/; s/^ 9$/ 9\n ten/' \
    "$top/patches/10-ten.patch" > "$top/patches/30-bad.patch"
refuses "overlay: fuzz is refused" "30-bad.patch does not apply" "$overlay"
sed 's/numbers.c/device.c/' "$top/patches/10-ten.patch" \
    > "$top/patches/30-bad.patch"
refuses "overlay: patch of a whole file of ours is refused" \
    "30-bad.patch touches hw/scsi/device.c, which is a whole file" "$overlay"
sed 's/numbers.c/absent.c/' "$top/patches/10-ten.patch" \
    > "$top/patches/30-bad.patch"
refuses "overlay: patch of an absent file is refused" \
    "can't find file to patch" "$overlay"
sed 's,[ab]/hw/scsi/numbers.c,a/../../escape,' "$top/patches/10-ten.patch" \
    > "$top/patches/30-bad.patch"
refuses "overlay: patch outside the tree is refused" "can't find file" "$overlay"
echo nothing > "$top/patches/30-bad.patch"
refuses "overlay: empty patch is refused" "30-bad.patch does not apply" "$overlay"
mv "$top/patches/30-bad.patch" "$top/patches/bad.patch"
refuses "overlay: patch without a number is refused" "starts with its number" \
    "$overlay"
rm "$top/patches/bad.patch"
check "overlay: after all that build/src is as before" \
    test "$(sum "$src")" = "$before"

check "overlay: what is ours in scripts/ of QEMU's tree" \
    test "$(ls "$src/scripts")" = virtio-scsi-top -a -x "$src/scripts/virtio-scsi-top"

rm "$top"/patches/*.patch "$top/hw/scsi/added.c" "$top/hw/scsi/device.c" \
    "$top/scripts/virtio-scsi-top"
accepts "overlay: without files and patches" "$overlay"
check "overlay: what is gone from us is the base's again" \
    test "$(sum "$src")" = "$base_sum"
echo changed > "$top/build/base/hw/scsi/device.c"
rm "$top/build/base/hw/scsi/numbers.c"
echo two > "$top/build/base.stamp"
accepts "overlay: another base" "$overlay"
check "overlay: build/src follows the base" \
    test "$(sum "$src")" = "$(sum "$top/build/base")"
rm -rf "$top/build/base"
refuses "overlay: no base" "make base" "$overlay"

## scripts/build/fetch-base with QEMU_SRC

top=$tmp/fetch
new_top "$top"
qemu=$tmp/qemu
fetch=$top/scripts/build/fetch-base
export QEMU_SRC="$qemu"

refuses "base: no such directory" "QEMU_SRC=$qemu is not a directory" "$fetch"
new_qemu "$qemu" 9.2.4
refuses "base: 9.2 is refused" "is QEMU 9.2.4" "$fetch"
echo 10.0.50 > "$qemu/VERSION"
refuses "base: development of 10.1 is refused" "is QEMU 10.0.50" "$fetch"
echo 10.1.0 > "$qemu/VERSION"
refuses "base: 10.1 is refused" "is QEMU 10.1.0" "$fetch"
check "base: nothing was copied" test ! -e "$top/build/base"
rm "$qemu/VERSION"
refuses "base: no QEMU tree" "not a QEMU source tree" "$fetch"
echo 10.0.9 > "$qemu/VERSION"
mv "$qemu/subprojects/keycodemapdb" "$tmp/keycodemapdb"
refuses "base: missing subproject" "has no subprojects/keycodemapdb" "$fetch"
mv "$tmp/keycodemapdb" "$qemu/subprojects/keycodemapdb"

mkdir -p "$qemu/.git" "$qemu/build-clang" "$qemu/roms/sub"
touch "$qemu/.git/HEAD" "$qemu/build-clang/build.ninja" "$qemu/roms/sub/.git"
before=$(sum "$qemu")
accepts "base: 10.0.9 is taken" "$fetch"
check "base: QEMU_SRC is not written to" test "$(sum "$qemu")" = "$before"
check "base: no .git" test ! -e "$top/build/base/.git"
check "base: no build directory" test ! -e "$top/build/base/build-clang"
check "base: the rest is there" test -f "$top/build/base/hw/scsi/device.c"
accepts "base: second run" "$fetch"
check "base: second run copies nothing" test ! -s "$out"
echo edited >> "$qemu/hw/scsi/device.c"
accepts "base: after an edit" "$fetch"
check "base: an edit is copied" \
    cmp "$qemu/hw/scsi/device.c" "$top/build/base/hw/scsi/device.c"
rm "$top/build/base.stamp"
echo half > "$top/build/base/hw/scsi/device.c"
accepts "base: after an interrupted run" "$fetch"
check "base: a half copy is not believed" \
    cmp "$qemu/hw/scsi/device.c" "$top/build/base/hw/scsi/device.c"
refuses "base: a tree around our build" "contains this build" \
    env QEMU_SRC="$tmp" "$fetch"

unset QEMU_SRC

# no Debian archive configured; apt itself is real where there is one
if command -v apt-get >/dev/null && command -v dpkg-source >/dev/null &&
   [ -f /usr/share/keyrings/debian-archive-keyring.gpg ]; then
    printf 'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "-";\n' \
        > "$tmp/apt.conf"
    rm -f "$top/build/base.stamp"
    refuses "base: no Debian archive: names QEMU_SRC" "QEMU_SRC=DIR" \
        env APT_CONFIG="$tmp/apt.conf" "$fetch"
    printf 'deb http://127.0.0.1:9/debian bookworm main\n' > "$tmp/dead.list"
    printf 'Dir::Etc::sourcelist "%s";\nDir::Etc::sourceparts "-";\n' \
        "$tmp/dead.list" > "$tmp/apt.conf"
    refuses "base: dead mirror: names QEMU_SRC" "QEMU_SRC=DIR" \
        env APT_CONFIG="$tmp/apt.conf" "$fetch"
else
    n=$((n + 1))
    echo "ok $n - base: mirror errors # SKIP no apt, dpkg-source or keyring"
fi

## scripts/build/deps, with an apt and a dpkg of ours

top=$tmp/deps
new_top "$top"
deps=$top/scripts/build/deps
bin=$tmp/bin
mkdir "$bin"
export FAKE="$tmp/fake"
mkdir "$FAKE"
# installed is what is in $FAKE/installed
cat > "$bin/dpkg-query" <<'EOF'
#!/bin/sh
for p; do :; done
# perl was removed once: dpkg still knows it
grep -qx "$p" "$FAKE/installed" && printf installed ||
    { [ "$p" = perl ] && printf config-files; }
EOF
cat > "$bin/apt-get" <<'EOF'
#!/bin/sh
echo "apt-get $*" >> "$FAKE/log"
[ "$1" != install ] || printf '%s\n' "$@" >> "$FAKE/installed"
[ ! -e "$FAKE/broken" ]
EOF
printf '#!/bin/sh\n' > "$bin/apt-cache"
printf '#!/bin/sh\nexec "$@"\n' > "$bin/sudo"
chmod +x "$bin"/*
: > "$FAKE/installed"
: > "$FAKE/log"

refuses "deps: unknown group" "unknown group 'nonsense'" "$deps" nonsense
refuses "deps: no group" "usage" "$deps"
accepts "deps: installs" env PATH="$bin:$PATH" "$deps" style
says "deps: says which" "deps: installing: perl python3"
check "deps: asks for lists first where it knows none" \
    grep -q '^apt-get update' "$FAKE/log"
check "deps: asks apt for them" grep -q '^apt-get install .*perl' "$FAKE/log"
: > "$FAKE/log"
accepts "deps: second run" env PATH="$bin:$PATH" "$deps" style
check "deps: nothing missing, apt is not run" test ! -s "$FAKE/log"
: > "$FAKE/installed"
touch "$FAKE/broken"
refuses "deps: apt fails" "deps: " env PATH="$bin:$PATH" "$deps" style

## scripts/build/build-qemu

top=$tmp/build-qemu
new_top "$top"
build=$top/scripts/build/build-qemu
refuses "build: no source" "no source at" "$build" ours
refuses "build: bad JOBS" "JOBS=many is not a number" env JOBS=many "$build" ours
refuses "build: bad FULL" "FULL=yes" env FULL=yes "$build" ours
refuses "build: install without a build" "nothing built" "$build" install
refuses "build: unknown word" "usage" "$build" theirs

# configures MODE FOLDER WORD...: the source that is configured for MODE, and
# what is among the words for it; -WORD: what isn't
configures() {
    mode=$1 folder=$2
    shift 2
    rm -f "$top"/build/*.log "$top"/build/.stock/*.log
    PATH=$PATH:$bin "$build" "$mode" > "$out" 2>&1
    log=$top/build/${folder%src}$mode.configure.log
    grep -q "^$top/build/$folder/configure " "$log" 2>> "$out"
    result $? "build: $mode is of $folder"
    for word; do
        wanted=0
        case $word in -*) wanted=1 ;; esac
        grep -q -e "--enable-${word#-}" "$log" 2>> "$out"
        result $(($? != wanted)) "build: $mode, $word"
    done
}
for folder in src base; do
    mkdir -p "$top/build/$folder"
    echo 'echo "$0 $*"; exit 1' "# $folder" > "$top/build/$folder/configure"
    chmod +x "$top/build/$folder/configure"
    : > "$top/build/$folder/pythondeps.toml"
done
: > "$top/build/base.stamp"
ln -sf "$(command -v true)" "$bin/clang"
configures stock .stock/src -rbd -asan -tsan
check "build: stock's source is the base" cmp \
    "$top/build/base/configure" "$top/build/.stock/src/configure"
check "build: stock is found" test "$top/build/stock" -ef "$top/build/.stock/stock"
configures storage src rbd libiscsi -asan -tsan
configures stock-storage .stock/src rbd libiscsi -asan -tsan
configures asan src asan ubsan -rbd -tsan
configures storage-asan src asan ubsan rbd libiscsi
configures storage-tsan src tsan rbd libiscsi -asan
configures stock-tsan .stock/src tsan -rbd -asan
export FULL=1
configures stock-storage .stock/src rbd linux-aio
PATH=$PATH:$bin "$build" stock > "$out" 2>&1
check "build: FULL=1 stock is found" \
    test "$top/build/stock-full" -ef "$top/build/.stock/stock-full"
unset FULL

## scripts/check/check: counting

top=$tmp/check
new_top "$top"
mkdir -p "$top/build/obj/meson-info"
touch "$top/build/obj/qemu-system-x86_64"
runner=$top/scripts/check/check
# one program in the group, however many there are
sed -i '/^UNIT = \[/,/\]/c UNIT = ["test-iothread-vq-mapping"]' "$runner"
mkdir -p "$top/build/obj/pyvenv/bin"
ln -s "$(command -v meson)" "$top/build/obj/pyvenv/bin/meson"
refuses "check: no build" "run make first" "$runner"
ln -s obj/qemu-system-x86_64 "$top/build/qemu-system-x86_64"
refuses "check: no tests configured" "intro-tests.json is missing" "$runner"
cat > "$top/build/obj/meson-info/intro-tests.json" <<EOF
[{"name": "test-iothread-vq-mapping", "cmd": ["$tmp/program"], "env": {},
  "workdir": null, "timeout": 30}]
EOF

# counts NAME LINE TAP...: the unit group with a program that prints TAP
counts() {
    name=$1 want=$2
    shift 2
    { echo '#!/bin/sh'
      for line; do echo "$line"; done; } > "$tmp/program"
    chmod +x "$tmp/program"
    "$runner" --only unit > "$out" 2>&1
    status=$?
    red=1
    case $want in *" 0 failed"*) red=0 ;; esac
    test "$(tail -n 1 "$out") $status" = "$want $red"
    result $? "check: $name"
}
counts "all pass" "2 passed, 0 failed, 0 skipped" \
    'echo 1..2' 'echo ok 1 /a' 'echo ok 2 /b'
mkdir -p "$top/tests/scripts"
cp "$tmp/program" "$top/tests/scripts/one.sh"
"$runner" --only unit --only scripts > "$out" 2>&1
check "check: two groups" \
    test "$(tail -n 1 "$out")" = "4 passed, 0 failed, 0 skipped"
rm "$top/tests/scripts/one.sh"
counts "one fails" "1 passed, 1 failed, 0 skipped" \
    'echo 1..2' 'echo ok 1 /a' 'echo not ok 2 /b' 'exit 1'
counts "failure with exit status 0" "0 passed, 1 failed, 0 skipped" \
    'echo 1..1' 'echo not ok 1 /a'
counts "skip" "1 passed, 0 failed, 1 skipped" \
    'echo 1..2' 'echo ok 1 /a' 'echo "ok 2 /b # SKIP no such thing"'
says "check: reason of a skip is shown" "no such thing"
counts "all skipped" "0 passed, 0 failed, 1 skipped" \
    'echo "1..0 # SKIP not here"' 'exit 77'
counts "has no test" "0 passed, 1 failed, 0 skipped" 'echo 1..0'
counts "ends early" "1 passed, 1 failed, 0 skipped" 'echo 1..2' 'echo ok 1 /a'
counts "crashes" "1 passed, 1 failed, 0 skipped" \
    'echo 1..2' 'echo ok 1 /a' 'kill -SEGV $$'
counts "says nothing" "0 passed, 1 failed, 0 skipped" 'exit 0'
counts "exit status only" "1 passed, 1 failed, 0 skipped" \
    'echo 1..1' 'echo ok 1 /a' 'exit 3'
counts "bails out" "0 passed, 1 failed, 0 skipped" 'echo Bail out! no'
says "check: what it said is shown" "| Bail out! no"
sed -i 's/^TIMEOUT_FACTOR = .*/TIMEOUT_FACTOR = 0.1/
        s/^MIN_TIMEOUT = .*/MIN_TIMEOUT = 1/' "$top/scripts/check/mesontest.py"
counts "hangs" "1 passed, 1 failed, 0 skipped" \
    'echo 1..2' 'echo ok 1 /a' 'sleep 600'
says "check: a hang is called one" "(hung: stopped after"
"$runner" --only qtest > "$out" 2>&1
result $(($? != 1)) "check: missing test programs fail"
"$runner" --only scripts > "$out" 2>&1
result $(($? != 1)) "check: empty group fails"

echo "1..$n"
