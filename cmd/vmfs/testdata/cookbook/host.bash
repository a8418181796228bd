# Makes a host for one task of the cookbook, and keeps it until its standard
# input ends:
#
#	unshare --mount --uts bash host.bash DIR NAME VMFS UNIT
#
# It has this machine's programs, kernel and devices, network interfaces of its
# own if its caller saw to that, and nothing else: no file, no mount, no user
# that was not made here. So the page's paths are a real host's, and the daemon
# runs as the package installs it.
#
# What stands in for what: systemctl for systemd, which cannot run here;
# it knows vmfs.service, by the unit that the package brings.
set -e
root=$1 name=$2 vmfs=$3 unit=$4
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
mkdir -p usr proc sys dev boot etc home old run/vmfs srv tmp var/lib var/log
mkdir -m 700 root
chmod 1777 tmp
for dir in usr proc sys dev; do
	mount --rbind "/$dir" "$dir"
done
# On a host with udev everybody may open it.
if [ "$(stat -c %a dev/fuse)" != 666 ]; then
	mknod -m 666 run/fuse c 10 229
	mount --bind run/fuse dev/fuse
fi

# What is installed: the program, its unit and the stand-in.
mount -t tmpfs -o mode=755 installed usr/local/sbin
cp "$vmfs" usr/local/sbin/vmfs
cp "${0%/*}/systemctl" usr/local/sbin/
mkdir -p etc/systemd/system
sed 's,/usr/sbin/vmfs,/usr/local/sbin/vmfs,' "$unit" >etc/systemd/system/vmfs.service
mount -o remount,bind,ro usr

# A configuration that is Debian's, and users: alice, who is in ops, and bob.
for f in alternatives iproute2 ld.so.cache ssl/openssl.cnf; do
	mkdir -p "etc/$(dirname "$f")"
	[ ! -e "/etc/$f" ] || cp -a "/etc/$f" "etc/$f"
done
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
ops:*:900:alice
_vmfs:*:990:
alice:*:1001:
bob:*:1002:
nogroup:*:65534:
END
for user in alice bob; do
	cp -a root "home/$user"
	chown "$user:" "home/$user" 2>/dev/null || chown "$(grep "^$user:" etc/passwd | cut -d: -f3,4)" "home/$user"
done

pivot_root . old
cd /
umount -l /old
rmdir /old
echo ready
exec cat
