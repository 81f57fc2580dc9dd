# SPDX-License-Identifier: GPL-2.0-or-later
#
# Sourced by scripts/build/deps and scripts/build/fetch-base: use of this machine's Debian
# mirror with lists and cache of our own, so that the system's apt sources stay
# as they are. Needs $top; everything is kept under $top/build/dl.

export LC_ALL=C

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# debian_release: codename of the running Debian, empty elsewhere
debian_release() {
    # shellcheck disable=SC1091
    (. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME") \
        2>/dev/null || :
}

# debian_uris main|security: the URIs this machine's apt configuration has for
# the Debian archive, one a line. What apt *would* fetch is asked for, because
# that also answers where no list was ever fetched, and for both formats of
# sources. Repositories of others may use Debian's suite names; those fail
# later, as they aren't signed with the archive's key.
debian_uris() {
    suites="$(debian_release) stable oldstable oldoldstable bookworm trixie"
    apt-get --print-uris update 2>/dev/null |
        sed -n "s|^'\(.*\)/dists/\([^']*\)/InRelease'.*|\1 \2|p" |
        while read -r uri suite; do
            for s in $suites; do
                case "$1 $suite" in
                "main $s" | "security $s-security" | "security $s/updates")
                    echo "$uri"
                    break ;;
                esac
            done
        done | awk '!seen[$0]++'
}

# apt_setup NAME LINE: a private apt configuration with this one source;
# prints the path of the configuration file, for apt-get -c
apt_setup() {
    apt_dir=$top/build/dl/apt-$1
    mkdir -p "$apt_dir/lists/partial" "$apt_dir/cache/archives/partial" ||
        die "cannot write to $apt_dir"
    echo "$2" > "$apt_dir/sources.list"
    # The hooks cleared here belong to the system's lists. The sandbox user
    # usually can't read below a home directory; signatures are checked anyway.
    cat > "$apt_dir/apt.conf" <<EOF
Dir::Etc::sourcelist "$apt_dir/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$apt_dir/lists";
Dir::Cache "$apt_dir/cache";
APT::Sandbox::User "root";
APT::Default-Release "";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
EOF
    echo "$apt_dir/apt.conf"
}

# from_mirrors main|security NAME LINES COMMAND...: run COMMAND with the lists
# of this machine's mirrors, one after the other, until it succeeds; LINES are
# sources without their URI, and $conf is what apt-get -c wants
from_mirrors() {
    apt_uris=$(debian_uris "$1")
    apt_name=$2 apt_lines=$3
    shift 3
    for uri in $apt_uris; do
        conf=$(apt_setup "$apt_name" "$(printf '%s\n' "$apt_lines" |
            sed "s|^deb[^ ]* |&[signed-by=$keyring] $uri |")")
        apt-get -c "$conf" update -q --error-on=any && "$@" && return 0
    done
    return 1
}

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
