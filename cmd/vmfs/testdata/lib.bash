# What the sessions' shell lines may use beside the system's commands.

# as USER LINE runs a line as somebody else, with all his groups.
as() {
	setpriv --reuid="$1" --regid="$(id -g "$1")" --init-groups bash -c "$2"
}

# The kernel's test of its timer fails at times on a busy host's emulated CPU.
CMDLINE='console=ttyS0 quiet no_timer_check'

# debian NAME [WORD...] makes a machine that boots the Debian kernel, with
# words for its command line.
debian() {
	mkdir "$MNT/vm/$1" && cat >"$MNT/vm/$1/config" <<-END
		kernel $KERNEL
		initrd $INITRD
		memory 192M
		cmdline $CMDLINE ${*:2}
	END
}

# up NAME [N] waits until the guest's own programs run, for the N-th time in
# this launch.
up() {
	test "$(timeout 170 grep -a -m"${2-1}" 'userland is up' "$MNT/live/vm/$1/console" | wc -l)" = "${2-1}"
}

# ended NAME waits for the launch's end and says how it was.
ended() {
	timeout 170 cat "$MNT/live/vm/$1/wait"
}

# adopted NAME... is true when a daemon that did not start them has taken up the
# guests of machines. It serves before, and what is asked of one that has not
# answered yet is refused.
adopted() {
	local name
	for name; do grep -q '^started ' "$MNT/vm/$name/info" || return; done
}

# unchanged LINE runs a line after which every machine is what it was: no
# event, no size and no time of a file differs.
unchanged() {
	stamps >"$WORK/stamps" && bash -c "$1" && stamps | diff "$WORK/stamps" -
}

stamps() {
	cat "$MNT/events.log" &&
		find "$MNT/vm" \( -type d -o -name err -prune -o -print \) -exec stat -c '%n %s %y %a %U %G' {} + | sort
}

# issue NAME [ARG...] makes a key and a certificate of ca.pem for a name.
issue() {
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$1.key" "${@:2}" 2>/dev/null |
		openssl x509 -req -CA ca.pem -CAkey ca.key -days 30 -copy_extensions copy -out "$1.pem" 2>/dev/null
}

# remote DIR [FLAG...] mounts the daemon's tree by 9P, until that ends: from its
# socket, or from the address AT. Where it is mounted, remote.pid says who mounts.
remote() {
	(echo $BASHPID >"$WORK/remote.pid"; exec prlimit --msgqueue="$TAG" "$VMFS" mount "${@:2}" "${AT-unix!$RUN/9p.sock}" "$1") &
	wait $!
}

# guest NAME LINE types a line on a console, and is done when the guest is,
# with its status.
guest() {
	local n=$SRANDOM said
	echo "$2; echo ended \$(($n)) \$?" >"$MNT/live/vm/$1/console"
	said=$(timeout 150 grep -a -o -m1 "^ended $n [0-9]*" "$MNT/live/vm/$1/console") && return "${said##* }"
}

# plugged NAME ADDR SWITCH makes a machine that boots the Debian kernel, with
# one NIC on a switch.
plugged() {
	debian "$1" "net=$2" && cat >"$MNT/vm/$1/config" <<-END
		memory 128M
		nic/0/switch $3
	END
}

# cable NAME NETNS ADDR lays a cable from NAME to eth0 of another network
# namespace, which has an address, and waits until both ends carry.
cable() {
	ip link add "$1" type veth peer name eth0 netns "$2" &&
		ip -n "$2" addr add "$3" dev eth0 && ip -n "$2" link set eth0 up && ip link set "$1" up &&
		until ip addr show "$1" | grep -q fe80 && ip -n "$2" addr show eth0 | grep -q fe80; do sleep 0.1; done
}

# tables is what the daemon calls its nftables tables.
tables() { echo "vmfs-$(printf %s "$RUN" | sha256sum | cut -c1-8)"; }

# started NAME starts a machine that does not run. On a busy machine an emulated
# guest process may take longer to start than a start may: the caller tries again.
started() {
	grep -qx running "$MNT/vm/$1/status" || { echo clear-failed >"$MNT/vm/$1/ctl"; echo start >"$MNT/vm/$1/ctl"; }
}

# starting LINE runs a line while the machine of this directory is starting, in
# which something holds it up; anew if it was not for as long as that.
starting() {
	local said status starter
	said=$(mktemp)
	while :; do
		echo clear-failed >ctl
		(echo >do/start) 2>/dev/null & starter=$!
		until grep -qx starting status || ! kill -0 $starter 2>/dev/null; do sleep 0.02; done
		bash -c "$1" >"$said" 2>&1 && status=0 || status=$?
		grep -qx starting status && break
		wait $starter
	done
	echo >do/kill
	wait $starter
	cat "$said" >&2
	rm "$said"
	return $status
}

# tree is where a daemon makes cgroups that has /sys/fs/cgroup/machines for them,
# and group NAME the cgroup of a machine there.
tree() { echo "/sys/fs/cgroup/machines/$(tables)"; }
group() { echo "$(tree)/vm-$(sed -n 's/^id //p' "$MNT/vm/$1/info")"; }

# unpacked NAME has the kernel of a machine unpacked, which the daemon keeps;
# starting it is not done at the first try on every host.
unpacked() {
	started "$1" && ! pgrep -f '^vmfs unpack' >/dev/null &&
		echo kill >"$MNT/vm/$1/ctl" && echo clear-failed >"$MNT/vm/$1/ctl"
}
