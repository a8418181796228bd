# Shell functions that the scripts beside it share. Sourced, not run:
#
#	. "$(dirname "$0")/lib.sh"
#
# It installs packages by name with apt-get and downloads kernels, which it
# does not install. It needs root for the former only.

set -eu
cd "$(dirname "$0")/.."

# Root in another user's checkout: git would refuse to tell its state.
export GOFLAGS="${GOFLAGS:+$GOFLAGS }-buildvcs=false"
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/vmfs

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# become_root runs the script again through sudo if it is not root yet. PATH
# is kept: Go is often not where root would look.
become_root() {
	[ "$(id -u)" = 0 ] && return
	command -v sudo >/dev/null || die "this needs root, and there is no sudo: run it as root"
	say "${0##*/}: this needs root; asking sudo"
	exec sudo env "PATH=$PATH" "scripts/${0##*/}" "$@"
}

# need_go says where Go comes from; the distribution's may be too old.
need_go() {
	command -v go >/dev/null || die "Go 1.26 or newer is needed to build: https://go.dev/dl/"
}

# need installs the packages that are not there, as PROGRAM:PACKAGE (only if
# the program is missing) or PACKAGE.
need() {
	missing=
	for n; do
		case $n in
		*:*) command -v "${n%%:*}" >/dev/null || missing="$missing ${n#*:}" ;;
		*) dpkg -s "$n" >/dev/null 2>&1 || missing="$missing $n" ;;
		esac
	done
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || die "missing packages:$missing"
	say "installing$missing"
	# The word splitting is meant: package names have no blanks.
	# shellcheck disable=SC2086
	quietly_install $missing ||
		{ quietly apt-get update && quietly_install $missing; } ||
		die "cannot install$missing: the lines above are apt-get's"
}

quietly_install() {
	DEBIAN_FRONTEND=noninteractive \
		quietly apt-get install -y --no-install-recommends "$@"
}

# quietly runs a command and shows what it said only if it fails.
quietly() {
	log=$(mktemp)
	if "$@" >"$log" 2>&1; then
		rm -f "$log"
	else
		status=$?
		tail -n 20 "$log" >&2
		rm -f "$log"
		return $status
	fi
}

# build makes the program as it is shipped: static, no paths of this machine.
# The guest of native machines is beside it.
build() {
	need_go
	{ CGO_ENABLED=0 go build -trimpath -o "$1" ./cmd/vmfs &&
		CGO_ENABLED=0 go build -trimpath -o "$1-guest" ./cmd/vmfs/guest; } ||
		die "the program does not build"
}

# guest_files makes the guest: a stock Debian cloud kernel, downloaded and
# unpacked but not installed, and a busybox initramfs. It sets kernel and
# initrd to their paths in the cache.
guest_files() {
	need busybox:busybox-static dpkg-deb:dpkg
	mkdir -p "$cache"
	package=$(kernel_package linux-image-cloud-amd64 "$cache/vmlinuz") || exit
	kernel=$cache/vmlinuz-${package#linux-image-}
	initrd=$cache/initrd-${package#linux-image-}
	if ! have_kernel; then fetch_kernel; fi
	make_initrd
	ln -sf "${kernel##*/}" "$cache/vmlinuz"
	ln -sf "${initrd##*/}" "$cache/initrd"
}

# kernel_package META LINK names the package that is the newest of META, or
# the one to which LINK in the cache leads if apt has no lists and no way to
# get them.
kernel_package() {
	newest_kernel "$1" || { [ "$(id -u)" != 0 ] || quietly apt-get update; newest_kernel "$1"; } ||
		cached_kernel "$2" || die "apt knows no $1: is this Debian, with a network?"
}

newest_kernel() {
	apt-cache depends --important "$1" 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | grep .
}

cached_kernel() {
	old=$(readlink "$1") && echo "linux-image-${old##*vmlinuz-}"
}

# guest_modules are the kernel's that the guest may need, in the order in which
# they can be loaded.
guest_modules="acpi/button input/evdev virtio/virtio_ring virtio/virtio
	virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev virtio/virtio_pci
	net/core/failover net/net_failover net/virtio_net
	virtio/virtio_mmio block/virtio_blk cdrom/cdrom isofs/isofs"

have_kernel() {
	[ -s "$kernel" ] || return 1
	for m in $guest_modules; do
		[ -s "$cache/modules/${m##*/}.ko" ] || return 1
	done
}

fetch_kernel() {
	say "downloading $package (27 MB; unpacked into $cache, not installed)"
	tmp=$(mktemp -d "$cache/unpack.XXXXXX")
	unpack_package "$package" "$tmp"
	mkdir -p "$cache/modules"
	for m in $guest_modules; do
		find "$tmp" -path "*/$m.ko" -exec mv {} "$cache/modules/" \;
	done
	mv "$tmp"/boot/vmlinuz-* "$kernel"
	rm -rf "$tmp"
}

# unpack_package PACKAGE DIR downloads a package and unpacks it there.
unpack_package() {
	# apt's own download user cannot write here.
	download="apt-get -o APT::Sandbox::User=root download $1"
	# shellcheck disable=SC2086
	(cd "$2" && { quietly $download ||
		{ [ "$(id -u)" = 0 ] && quietly apt-get update && quietly $download; }; } &&
		dpkg-deb -x ./*.deb . && rm ./*.deb) || { rm -rf "$2"; die "cannot download $1"; }
}

# exporter_file puts Prometheus's node exporter into PATH, unpacked into the
# cache: installed, it would be a service of this machine.
exporter_file() {
	exporter=$cache/exporter/usr/bin
	[ -x "$exporter/prometheus-node-exporter" ] || {
		mkdir -p "$cache/exporter"
		unpack_package prometheus-node-exporter "$cache/exporter"
	}
	PATH=$PATH:$exporter
}

# make_initrd packs the guest's userland, if it is older than its sources.
# It is not compressed: an emulated CPU would take longer to unpack it.
make_initrd() {
	for source in scripts/guest-init scripts/lib.sh "$kernel" "$cache/modules"; do
		[ "$initrd" -nt "$source" ] || break
	done
	[ "$initrd" -nt "$source" ] && return
	tmp=$(mktemp -d "$cache/initrd.XXXXXX")
	mkdir -p "$tmp/bin" "$tmp/dev" "$tmp/proc" "$tmp/sys" "$tmp/etc/acpi/PWRF" "$tmp/lib"
	cp "$(command -v busybox)" "$tmp/bin/busybox"
	cp scripts/guest-init "$tmp/init"
	cp "$cache"/modules/*.ko "$tmp/lib/"
	printf '#!/bin/busybox sh\necho "vmfs-guest: power button" >/dev/console\nsync\nexec /bin/busybox poweroff -f\n' >"$tmp/etc/acpi/PWRF/00000080"
	chmod 755 "$tmp/init" "$tmp/etc/acpi/PWRF/00000080"
	(cd "$tmp" && find . | busybox cpio -o -H newc 2>/dev/null) >"$initrd.new"
	rm -rf "$tmp"
	mv "$initrd.new" "$initrd"
}
