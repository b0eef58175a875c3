# shellcheck shell=bash
# What the scripts share. To be sourced: . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# It knows Debian and Ubuntu. Whoever starts a script, as root, as a user, or as a user through sudo: what builds runs as the
# user (as_user), what the system must allow runs as root (as_root).

set -euo pipefail
shopt -s inherit_errexit

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}

# What building takes: a C compiler and make for C libraries, clang (with its libclang) for the XDP program and for bindings,
# libelf and zlib for libbpf, llvm, m4 and pkg-config for libxdp's configure, the kernel's and libbpf's headers.
BUILD_PACKAGES=(gcc libc6-dev make clang llvm libelf-dev zlib1g-dev m4 pkg-config linux-libc-dev libbpf-dev)

# What the tests are judged by, and what their laboratories take.
TEST_PACKAGES=(tshark tcpdump nfdump softflowd tcpreplay ethtool iproute2 procps systemd python3 python3-venv jq faketime
    libfixbuf-dev libfixbuf-tools python3-ipfix openssl)

if [[ -t 2 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
    BOLD=$'\e[1m' GREEN=$'\e[32m' YELLOW=$'\e[33m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' GREEN='' YELLOW='' RED='' PLAIN=''
fi

# say TEXT: a step begins. Like all words for people it goes to standard error.
say() { echo "${BOLD}${GREEN}==>${PLAIN}${BOLD} $*${PLAIN}" >&2; }
# note TEXT: a detail of the step.
note() { echo "    $*" >&2; }
warn() { echo "${YELLOW}warning:${PLAIN} $*" >&2; }
die() {
    echo "${RED}error:${PLAIN} $*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# skip REASON: a check that cannot run here. In CI every check must run, so there it fails.
skip() {
    [[ ${CI:-} == true ]] && die "skipped: $* (CI runs everything)"
    echo "skipped: $*" >&2
}

# need_root "$@": starts the script again as root, through sudo, unless it is root already.
need_root() {
    ((EUID == 0)) && return
    have sudo || die "$(basename "$0") must run as root, and there is no sudo here"
    say "root is needed: asking sudo"
    exec sudo --preserve-env=CI,NO_COLOR,CARGO_TARGET_DIR -- "$0" "$@"
}

# as_root COMMAND...: as root, through sudo if need be.
as_root() {
    if ((EUID == 0)); then "$@"; else
        have sudo || die "this step needs root, and there is no sudo here: $*"
        sudo -- "$@"
    fi
}

# as_user COMMAND...: as the user who started the script, also where that went through sudo. Finds the user's own cargo.
as_user() {
    local user=${SUDO_USER:-root} home environment
    if ((EUID != 0)) || [[ $user == root ]]; then
        PATH="$HOME/.cargo/bin:$PATH" "$@"
        return
    fi
    home=$(getent passwd "$user" | cut -d: -f6)
    environment=("PATH=$home/.cargo/bin:$PATH" "TERM=${TERM:-dumb}" "CARGO_TARGET_DIR=$TARGET")
    [[ -z ${RUSTUP_TOOLCHAIN:-} ]] || environment+=("RUSTUP_TOOLCHAIN=$RUSTUP_TOOLCHAIN")
    sudo -u "$user" -H -- env "${environment[@]}" "$@"
}

# need_packages PACKAGE...: installs those of Debian's packages that are missing.
need_packages() {
    local missing=() package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) == "install ok installed" ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    have apt-get || die "these packages (Debian's names) are missing, and there is no apt-get to install them: ${missing[*]}"
    say "installing ${missing[*]}"
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" >&2
}

# The package of Debian that has a command, where its name is another.
package_of() {
    case $1 in
        ip) echo iproute2 ;;
        nfcapd | nfdump) echo nfdump ;;
        unshare | nsenter | setpriv | taskset) echo util-linux ;;
        systemd-analyze | systemctl) echo systemd ;;
        sysctl | pgrep) echo procps ;;
        column) echo bsdextrautils ;;
        cc) echo gcc ;;
        *) echo "$1" ;;
    esac
}

# need_commands COMMAND...: installs the packages of those that are missing.
need_commands() {
    local missing=() command
    for command in "$@"; do
        # Root's commands are not always in a user's PATH.
        PATH="$PATH:/usr/sbin:/sbin" have "$command" || missing+=("$(package_of "$command")")
    done
    if ((${#missing[@]})); then need_packages "${missing[@]}"; fi
}

# The oldest Rust that builds this workspace.
rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

cargo_is_new_enough() {
    local wanted found
    wanted=$(rust_version)
    found=$(cd "$ROOT" && as_user cargo --version 2>/dev/null | cut -d' ' -f2) || return 1
    [[ $(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1) == "$wanted" ]]
}

# need_rust: a cargo that is new enough, installed by rustup for the user where it is absent.
need_rust() {
    if cargo_is_new_enough; then return; fi
    if ! as_user sh -c 'command -v rustup' >/dev/null; then
        if apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [^(]'; then need_packages rustup; else
            need_packages curl ca-certificates
            say "installing rustup, Rust's own installer, into ~/.cargo and ~/.rustup"
            as_user sh -c 'curl --proto "=https" --tlsv1.2 -sSf https://sh.rustup.rs |
                sh -s -- -y --profile minimal --no-modify-path --default-toolchain none' >&2
        fi
    fi
    say "installing Rust for $(as_user id -un)"
    as_user rustup toolchain install stable --profile minimal --component rustfmt --component clippy >&2
    as_user rustup default >/dev/null 2>&1 || as_user rustup default stable >&2
    # A default that is older stays the user's default.
    cargo_is_new_enough || export RUSTUP_TOOLCHAIN=stable
    cargo_is_new_enough || die "Rust $(rust_version) or newer is needed, and rustup's stable is older"
}

# build_needs: what building takes, where it is missing.
build_needs() {
    need_packages "${BUILD_PACKAGES[@]}"
    need_rust
}

# build [PROGRAM...]: release builds as the user; of the whole workspace where no program is named. One selection of packages
# has one set of features: whoever builds the collector builds the workspace, so that its store's engine is built once.
build() {
    local packages=(--workspace)
    build_needs
    [[ "$*" != nagare-probe ]] || packages=(-p nagare-probe)
    say "building (the first time takes about 15 minutes on 2 cores, most of it for the collector's store; the probe alone 3)"
    (cd "$ROOT" && as_user cargo build --release --locked "${packages[@]}") >&2
}
