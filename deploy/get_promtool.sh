#!/bin/sh
# Prints the path of promtool. Unpacks Debian's package "prometheus" into a cache folder the first time; needs no root.
#
# Exit status: 0 with the path on stdout; 3 if this system has no apt or dpkg; 1 if the package cannot be had or is broken.
set -eu

say() { printf '%s\n' "get_promtool: $*" >&2; }

cache="${STETHOSCOPE_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/stethoscope}"
case "$cache" in
    /*) ;;
    *) cache="$PWD/$cache" ;;
esac
home="$cache/promtool"
tool="$home/usr/bin/promtool"

if [ -x "$tool" ]; then
    printf '%s\n' "$tool"
    exit 0
fi

for needed in apt-get dpkg; do
    if ! command -v "$needed" >/dev/null 2>&1; then
        say "$needed is not here: promtool is unpacked from a Debian package, so the rules of deploy/ stay untested"
        exit 3
    fi
done

mkdir -p "$cache"
# Two runs at once are fine: each unpacks into a folder of its own, and the last rename wins or finds the place taken.
work="$(mktemp -d "$cache/promtool.XXXXXX")"
trap 'rm -rf "$work"' EXIT HUP INT TERM

# The lists of the system may be absent (a bare container image) and only root can renew them. Then fetch lists of our own.
own_lists() {
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
    set -- -o "Dir::State::lists=$work/state/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=
    apt-get "$@" -qq update >&2 && apt-get "$@" -qq download prometheus >&2
}

cd "$work"
if ! apt-get -qq download prometheus >&2 && ! own_lists; then
    say "apt-get cannot download the package prometheus"
    exit 1
fi
dpkg -x "$work"/prometheus_*.deb "$work/root"
"$work/root/usr/bin/promtool" --version >/dev/null
mv -T "$work/root" "$home" 2>/dev/null || [ -x "$tool" ] || { say "cannot put it into $cache"; exit 1; }
printf '%s\n' "$tool"
