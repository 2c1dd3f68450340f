#!/usr/bin/env bash
# Installs what the tests need besides Go. It is the only script that calls apt. As an ordinary user it installs
# nothing: the lanes that miss a tool say so.
set -euo pipefail
wanted=(postgresql iproute2 procps gcc libc6-dev python3-grpcio python3-protobuf)
# The engines, started by the tests that need them. runc is named, since podman would choose crun, which refuses a host
# of both control group versions.
wanted+=(docker.io podman runc netavark catatonit uidmap slirp4netns iptables busybox-static util-linux)
missing=()
for p in "${wanted[@]}"; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "not installed, and only root can: ${missing[*]}"
	exit 0
fi
# No service is started: an engine of the tests has a place of its own.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod +x /usr/sbin/policy-rc.d
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
