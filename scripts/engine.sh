#!/usr/bin/env bash
# Runs a container engine of its own for tests: engine.sh docker|podman|rootless DIR. It needs root, and neither systemd
# nor a network. Everything that the engine has is in DIR and in namespaces of its own, so it meets no engine of the
# host, and nothing of it is left when this ends, DIR included: the first process takes all others along. An ordinary
# user runs "rootless" alone, as what he is: Podman makes its namespaces itself.
#
# It reads orders, one a line, and answers each with "ok" or what went wrong: "start", "stop" (as a service manager
# would), "kill" (as a crash would), "reboot" (as "kill", and all containers end). It ends with its standard input. The
# API's socket is DIR/sock.
set -euo pipefail
engine=$1 dir=$2
root=
[ "$(id -u)" -ne 0 ] || root=yes
if [ -n "$root" ]; then
	if [ "${3:-}" != inside ]; then
		exec unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private -- catatonit -- "$0" "$engine" "$dir" inside
	fi
	ip link set lo up
	mount -t tmpfs tmpfs /run # where engines keep what does not outlive the host
fi
mkdir -p "$dir/tmp"
id=$(basename "$dir")
export TMPDIR=$dir/tmp XDG_RUNTIME_DIR=$dir/run HOME=$dir/home CONTAINERS_CONF=$dir/containers.conf CONTAINERS_STORAGE_CONF=$dir/storage.conf
mkdir -p "$HOME" "$XDG_RUNTIME_DIR"
cat >"$CONTAINERS_CONF" <<CONF
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
[network]
network_backend = "netavark"
network_config_dir = "$dir/networks"
[engine]
runtime = "runc"
events_logger = "file"
cgroup_manager = "cgroupfs"
CONF
cat >"$CONTAINERS_STORAGE_CONF" <<CONF
[storage]
driver = "overlay"
graphroot = "$dir/storage"
runroot = "$dir/run/storage"
CONF
export CONTAINERS_REGISTRIES_CONF=$dir/registries.conf
cat >"$CONTAINERS_REGISTRIES_CONF" <<CONF
[[registry]]
location = "127.0.0.1:5000" # of the tests, in the engine's own network
insecure = true
CONF
as_user=()
[ -n "$root" ] || as_user=(setsid) # a group to end: Podman starts itself again
[ "$engine" != rootless ] || sed -i /default_ulimits/d "$CONTAINERS_CONF"
if [ "$engine" = rootless ] && [ -n "$root" ]; then # nobody, with the ids and the device that a user of a desktop has
	for f in subuid subgid; do
		echo "nobody:300000:65536" >"$dir/$f"
		mount --bind "$dir/$f" "/etc/$f"
	done
	mount -t tmpfs tmpfs /dev/net
	mknod -m 666 /dev/net/tun c 10 200
	chown -R nobody "$dir/home" "$dir/run" "$dir/tmp" "$dir"/*.conf
	chown nobody "$dir"
	as_user=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
fi

start() {
	case $engine in
	docker)
		dockerd --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" -H "unix://$dir/sock" --cgroup-parent "/$id" \
			--shutdown-timeout 5 --userland-proxy=false --ip6tables=false >>"$dir/log" 2>&1 0</dev/null &
		;;
	*)
		"${as_user[@]}" podman system service --time=0 "unix://$dir/sock" >>"$dir/log" 2>&1 0</dev/null &
		;;
	esac
	pid=$!
	for _ in $(seq 600); do
		if listens; then return 0; fi
		kill -0 "$pid" 2>/dev/null || return 1
		sleep 0.05
	done
	return 1
}
listens() { [ -S "$dir/sock" ] && grep -q "$dir/sock" /proc/net/unix; }
end() { # signal
	if [ -n "$root" ]; then
		kill "-$1" "$pid" 2>/dev/null || true
	else
		kill "-$1" -- "-$pid" 2>/dev/null || true
	fi
	wait "$pid" 2>/dev/null || true
	[ "$1" != KILL ] || rm -f "$dir/pid" "$dir/sock"
}

unpause() { # what holds a user's namespace
	kill -KILL "$(cat "$dir/run/libpod/tmp/pause.pid")" 2>/dev/null || true
}
kill_all() {
	if [ -z "$root" ]; then # there are processes of others
		podman kill --all --signal KILL >>"$dir/log" 2>&1 || true
		unpause
		return
	fi
	for p in /proc/[0-9]*; do
		p=${p#/proc/}
		[ "$p" -le 1 ] || [ "$p" = $$ ] || kill -KILL "$p" 2>/dev/null || true
	done
	wait 2>/dev/null || true
}
remove() { # everything: what runs, what is mounted, control groups, files
	set +e
	exec 2>/dev/null # bash says of every process that it was killed
	if [ -z "$root" ]; then
		end TERM
		podman system reset --force
		podman unshare rm -rf "$dir/storage"
		unpause
	else
		kill_all
	fi >/dev/null
	for c in "$dir"/storage/overlay-containers/*/ "/$id/"; do
		find /sys/fs/cgroup -mindepth 2 -depth -type d \( -path "*/$(basename "$c")" -o -path "*$(basename "$c")/*" \) -exec rmdir {} + 2>/dev/null || true
	done
	cd /
	grep -F " $dir/" /proc/self/mounts | cut -d' ' -f2 | sort -r | xargs -r umount -l
	rm -rf "$dir"
}
trap remove EXIT

start && echo ok || { echo "the engine did not start: $(tail -n 3 "$dir/log" | tr '\n' ' ')"; exit 1; }
while read -r order; do
	case $order in
	start) start && echo ok || echo "the engine did not start: $(tail -n 3 "$dir/log" | tr '\n' ' ')" ;;
	stop) end TERM && echo ok ;;
	kill) end KILL && echo ok ;;
	reboot)
		end KILL
		kill_all 2>/dev/null
		[ -z "$root" ] || { umount -l /run && mount -t tmpfs tmpfs /run; }
		find "$dir/run" "$dir/exec" -mindepth 1 -delete 2>/dev/null || true
		echo ok
		;;
	*) echo "no such order: $order" ;;
	esac
done
