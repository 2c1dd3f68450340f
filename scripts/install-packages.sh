#!/usr/bin/env bash
# Installs what the tests need besides Go. It is the only script that calls apt. As an ordinary user it installs
# nothing: the lanes that miss a tool say so.
set -euo pipefail
wanted=(postgresql iproute2 procps gcc libc6-dev python3-grpcio python3-protobuf)
missing=()
for p in "${wanted[@]}"; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "not installed, and only root can: ${missing[*]}"
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
