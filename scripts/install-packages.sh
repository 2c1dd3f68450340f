#!/usr/bin/env bash
# Installs what the tests need besides Go. It is the only script that calls apt. As an ordinary user it installs
# nothing: the lanes that miss a tool say so.
set -euo pipefail
wanted=(postgresql iproute2 procps gcc libc6-dev python3-grpcio python3-protobuf)
# The engines, started by the tests that need them. runc is named, since podman would choose crun, which refuses a host
# of both control group versions.
wanted+=(docker.io podman runc netavark catatonit uidmap slirp4netns iptables busybox-static util-linux)
# What virtual machines need: QEMU, and what makes their disks.
wanted+=(qemu-system-x86 e2fsprogs squashfs-tools)
# The kernel of the tests' machines is Debian's, unpacked: this host is not to boot it.
kernel=/usr/local/lib/sandgate/kernel
missing=()
for p in "${wanted[@]}"; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ -e "$kernel/vmlinuz" ] || missing+=("a kernel in $kernel")
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "not installed, and only root can: ${missing[*]}"
	exit 0
fi
made=()
trap 'rm -rf "${made[@]}"' EXIT
# No service is started: an engine of the tests has a place of its own.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod +x /usr/sbin/policy-rc.d
	made+=(/usr/sbin/policy-rc.d)
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
if [ ! -e "$kernel/vmlinuz" ]; then
	package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')
	mkdir -p "$(dirname "$kernel")"
	tmp=$(mktemp -d "$kernel.XXXXXX")
	made+=("$tmp")
	(cd "$tmp" && apt-get download -qq -o APT::Sandbox::User=root "$package" >/dev/null && dpkg-deb -x ./*.deb unpacked)
	mkdir "$tmp/kernel"
	mv "$tmp"/unpacked/lib/modules/* "$tmp/kernel/modules"
	mv "$tmp"/unpacked/boot/vmlinuz-* "$tmp/kernel/vmlinuz"
	rm -rf "$kernel"
	mv "$tmp/kernel" "$kernel"
fi
