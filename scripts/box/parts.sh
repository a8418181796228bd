# Shell functions that make the parts of the box: a kernel, the initramfs that
# finds its disk, and a disk with the programs of this host. Sourced after
# lib.sh, by testbed.
#
# The kernel is downloaded once. The programs are those that are installed
# here, by package, so that the box has this host's QEMU, bash and coreutils;
# their disk is made anew when any package changes, or this file.

box=$cache/box

# What the box's programs come from. It has their libraries besides, and
# nothing else of this host: no users, no configuration, nothing but /usr.
box_packages="base-files base-passwd bash bsdutils busybox-static coreutils
	dash diffutils findutils fuse3 grep gzip hostname iproute2 iputils-ping libc-bin
	libgcc-s1 mawk mount ncurses-base nftables procps sed tar util-linux
	attr rsync
	ipxe-qemu ovmf qemu-system-common qemu-system-data qemu-system-x86
	qemu-utils seabios"

# What of the kernel's modules is kept, of 370 MB: nothing that drives the
# hardware of real machines.
box_modules="arch crypto lib virt
	net
	drivers/acpi/button.ko drivers/input/evdev.ko
	fs/9p fs/ext4 fs/fscache fs/fuse fs/jbd2 fs/mbcache.ko fs/netfs fs/overlayfs
	drivers/block drivers/char drivers/crypto/ccp drivers/net/bonding
	drivers/net/ipvlan drivers/net/vxlan drivers/vhost drivers/virtio"
box_net="dummy ifb macvlan macvtap net_failover tap tun veth virtio_net vrf"

# box_parts makes what is missing, one caller at a time, and leaves it at
# $box/vmlinuz, initrd and root.
box_parts() {
	[ "$(uname -m)" = x86_64 ] || die "the box is an x86_64 one, and this is $(uname -m)"
	command -v apt-get >/dev/null || die "the box is made of Debian's packages, and there is no apt-get"
	need qemu-system-x86_64:qemu-system-x86 dpkg-deb:dpkg mke2fs:e2fsprogs busybox:busybox-static
	# The word splitting is meant: package names have no blanks.
	# shellcheck disable=SC2086
	need $box_packages
	qemu-system-x86_64 -accel help | grep -qx tcg || die "this QEMU emulates no CPU: it has no TCG"
	qemu-system-x86_64 -cpu help | grep -qw svm || die "this QEMU's CPUs have no svm"
	mkdir -p "$box"
	(
		flock 9
		tmp=$box/unfinished
		rm -rf "$tmp" "$box"/*.new
		box_kernel
		box_initrd
		box_root
	) 9>"$box/lock"
}

# box_kernel has Debian's generic kernel: the cloud kernel's guests need no
# KVM, VRF or 9P, but a host does.
box_kernel() {
	package=$(kernel_package linux-image-amd64 "$box/vmlinuz") || exit
	version=${package#linux-image-}
	key=$(echo "$version" $box_modules $box_net | hash)
	modules=$box/modules-$key/lib/modules/$version
	if [ ! -s "$box/vmlinuz-$version" ] || [ ! -d "$modules" ]; then
		say "downloading $package (70 MB; unpacked into $box, not installed)"
		mkdir "$tmp"
		unpack_package "$package" "$tmp"
		keep_modules "$tmp/lib/modules/$version" "$tmp/kept/lib/modules/$version"
		busybox depmod -b "$tmp/kept" "$version"
		rm -rf "$box"/modules-* "$box"/vmlinuz-*
		mv "$tmp/kept" "$box/modules-$key"
		mv "$tmp/boot/vmlinuz-$version" "$box/"
		rm -rf "$tmp"
	fi
	ln -sf "vmlinuz-$version" "$box/vmlinuz"
}

# keep_modules FROM TO keeps the modules that the box may need.
keep_modules() {
	mkdir -p "$2/kernel/drivers/net"
	for m in $box_modules; do
		mkdir -p "$2/kernel/${m%/*}"
		mv "$1/kernel/$m" "$2/kernel/$m"
	done
	for m in $box_net; do
		mv "$1/kernel/drivers/net/$m.ko" "$2/kernel/drivers/net/"
	done
	cp "$1"/modules.builtin* "$1/modules.order" "$2/"
}

# box_initrd is busybox, the modules between the kernel and a disk, and
# box/first.
box_initrd() {
	key=$(cat scripts/box/first scripts/box/parts.sh "$box/vmlinuz" "$(command -v busybox)" | hash)
	if [ ! -s "$box/initrd-$key" ]; then
		mkdir "$tmp" "$tmp/bin" "$tmp/dev" "$tmp/root"
		cp "$(command -v busybox)" "$tmp/bin/busybox"
		cp scripts/box/first "$tmp/init"
		first_modules >"$tmp/modules"
		(cd "$modules" && tar -cf - -T "$tmp/modules") | tar -xf - -C "$tmp"
		(cd "$tmp" && find . | busybox cpio -o -H newc 2>/dev/null) >"$box/initrd.new"
		rm -rf "$tmp" "$box"/initrd-*
		mv "$box/initrd.new" "$box/initrd-$key"
	fi
	ln -sf "initrd-$key" "$box/initrd"
}

# first_modules lists the modules of a disk, each after those that it needs.
first_modules() {
	awk '/\/(virtio_pci|virtio_blk|crc32c_generic|ext4)\.ko:/ {
		sub(":", "")
		for (i = NF; i > 0; i--) if (!seen[$i]++) print $i
	}' "$modules/modules.dep"
}

# box_root is an ext4 image of the packages and the modules. A run writes to
# a copy of its own, which it throws away.
box_root() {
	key=$({ dpkg-query -W; cat scripts/box/parts.sh "$modules/modules.dep"; } | hash)
	if [ ! -s "$box/root-$key" ]; then
		say "packing the box's disk"
		for d in bin lib lib32 lib64 libx32 sbin; do
			mkdir -p "$tmp/usr/$d"
			ln -s "usr/$d" "$tmp/$d"
		done
		# shellcheck disable=SC2086
		program_files $box_packages >"$box/files.new"
		tar -C / --no-recursion -cf - -T "$box/files.new" | tar -xf - -C "$tmp"
		mkdir "$tmp/usr/lib/modules"
		cp -a "$modules" "$tmp/usr/lib/modules/"
		mkdir "$tmp/boot"
		cp "$box/vmlinuz-${modules##*/}" "$tmp/boot/"
		configure "$tmp"
		rm -f "$box"/root-*
		mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 -d "$tmp" "$box/root.new" 2G >/dev/null ||
			die "cannot make the box's disk in $box"
		rm -rf "$tmp" "$box/files.new"
		mv "$box/root.new" "$box/root-$key"
	fi
	ln -sf "root-$key" "$box/root"
}

# program_files lists what packages have below /usr and the libraries that
# they need, relative to / and through no link.
program_files() {
	dpkg -L "$@" | sed 's,^/\(s\?bin\|lib[0-9x]*\)/,/usr/\1/,' |
		grep '^/usr/' | grep -vE '^/usr/share/(doc|info|lintian|locale|man)/' |
		existing >"$box/programs.new"
	grep -E '/(s?bin|libexec)/|\.so(\.|$)' "$box/programs.new" | xargs -d '\n' ldd 2>/dev/null |
		grep -o '/[^ :]*\.so[^ :]*' | sort -u | in_usr >>"$box/programs.new"
	sort -u "$box/programs.new" | cut -c2-
	rm "$box/programs.new"
}

existing() { while read -r f; do if [ -e "$f" ]; then echo "$f"; fi; done; }

# in_usr says where each file is if no directory is a link, and where what it
# leads to is.
in_usr() {
	while read -r f; do
		echo "$(readlink -f "${f%/*}")/${f##*/}"
		readlink -f "$f"
	done
}

# configure does in a new root what the packages' own scripts do in others.
configure() {
	mkdir -p "$1/etc"
	cp /usr/share/base-passwd/passwd.master "$1/etc/passwd"
	cp /usr/share/base-passwd/group.master "$1/etc/group"
	sed 's/:.*/:*:1::::::/' "$1/etc/passwd" >"$1/etc/shadow"
	chmod 640 "$1/etc/shadow"
	cp /usr/share/libc-bin/nsswitch.conf "$1/etc/"
	echo "127.0.0.1 localhost box" >"$1/etc/hosts"
	ln -sf mawk "$1/usr/bin/awk"
	for m in depmod insmod lsmod modprobe rmmod; do ln -sf ../bin/busybox "$1/usr/sbin/$m"; done
	for d in box dev mnt proc root run sys tmp var/lib var/tmp; do mkdir -p "$1/$d"; done
	chmod 1777 "$1/tmp" "$1/var/tmp"
	ldconfig -r "$1"
}

hash() { sha256sum | cut -c1-16; }
