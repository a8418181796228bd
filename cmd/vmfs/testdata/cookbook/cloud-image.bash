# Makes what stands in for a distribution's cloud image:
#
#	bash cloud-image.bash IMAGE KERNEL INITRD
#
# a qcow2 image that a BIOS boots, whose first program is cloud-init's part.
set -e
image=$1 kernel=$2 initrd=$3 here=${0%/*}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp "$here/cloud-image-init" "$work/init"
chmod 755 "$work/init"
(cd "$work" && echo init | busybox cpio -o -H newc 2>/dev/null) >"$work/more"
cat >"$work/syslinux.cfg" <<END
DEFAULT linux
LABEL linux
KERNEL vmlinuz
INITRD initrd,more
APPEND console=ttyS0 quiet no_timer_check
END
truncate -s 24M "$work/disk"
mformat -i "$work/disk" ::
syslinux --install "$work/disk"
mcopy -i "$work/disk" "$kernel" ::vmlinuz
mcopy -i "$work/disk" "$initrd" ::initrd
mcopy -i "$work/disk" "$work/more" "$work/syslinux.cfg" ::
qemu-img convert -f raw -O qcow2 "$work/disk" "$image"
