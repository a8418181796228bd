# Makes a host for one task of the cookbook, and keeps it until its standard
# input ends:
#
#	unshare --mount --uts bash host.bash DIR NAME VMFS UNITS
#
# It has this machine's programs, kernel and devices, network interfaces of its
# own if its caller saw to that, and nothing else: no file, no mount, no user
# that was not made here. So the page's paths are a real host's, and the daemon
# runs as the package installs it.
#
# One thing stands in for another: systemctl, beside this file, for systemd's.
set -e
root=$1 name=$2 vmfs=$3 units=$4
hostname "$name"

mount -t tmpfs -o mode=755 host "$root"
cd "$root"
for dir in /bin /sbin /lib*; do
	if [ -L "$dir" ]; then
		cp -a "$dir" .
	else
		mkdir "${dir#/}" && mount --rbind "$dir" "${dir#/}"
	fi
done
mkdir -p usr proc sys dev boot etc/ssh home old run/vmfs srv tmp var/lib var/log
mkdir -m 700 root
chmod 1777 tmp
for dir in usr proc sys dev; do
	mount --rbind "/$dir" "$dir"
done
# This machine's cgroups are not the host's to make some in.
mount -t tmpfs -o ro none sys/fs/cgroup
# On a host with udev everybody may open it.
if [ "$(stat -c %a dev/fuse)" != 666 ]; then
	mknod -m 666 run/fuse c 10 229
	mount --bind run/fuse dev/fuse
fi

# What is installed: the program, its units and the stand-in.
mount -t tmpfs -o mode=755 installed usr/local/sbin
cp "$vmfs" "${0%/*}/systemctl" usr/local/sbin/
mkdir -p etc/systemd/system
cp "$units/vmfs.service" etc/systemd/system/
cp "$units/vmfs.vmfs-guests.service" etc/systemd/system/vmfs-guests.service
mount -o remount,bind,ro usr

# A configuration that is Debian's, and users: alice, who is in ops, and bob.
for f in alternatives iproute2 ld.so.cache ssl/openssl.cnf; do
	mkdir -p "etc/$(dirname "$f")"
	[ ! -e "/etc/$f" ] || cp -a "/etc/$f" "etc/$f"
done
ln -s ../proc/self/mounts etc/mtab
echo 127.0.0.1 localhost "$name" >etc/hosts
cat >etc/passwd <<END
root:*:0:0::/root:/bin/bash
_vmfs:*:990:990::/nonexistent:/usr/sbin/nologin
sshd:*:991:65534::/run/sshd:/usr/sbin/nologin
alice:*:1001:1001::/home/alice:/bin/bash
bob:*:1002:1002::/home/bob:/bin/bash
nobody:*:65534:65534::/nonexistent:/usr/sbin/nologin
END
cat >etc/group <<END
root:*:0:
operator:*:37:
ops:*:900:alice
_vmfs:*:990:
alice:*:1001:
bob:*:1002:
nogroup:*:65534:
END
for user in 1001/alice 1002/bob; do
	install -d -m 700 -o "${user%/*}" -g "${user%/*}" "home/${user#*/}"
done

pivot_root . old
cd /
umount -l /old
rmdir /old
echo ready
exec cat
