#!/usr/bin/env bash
# Shows a sandbox live its whole life through a chain of two extensions, kills one of them and then the gateway in the
# middle of creates, and proves that nothing leaks. It exits with an error if anything is not as it should be.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x bin/sandgate ] && [ -x bin/ipam ] && [ -x bin/tenant-namespace ] || make -s build

dir=$(mktemp -d /tmp/sandgate-demo-XXXXXX)
export SANDGATE_ADDR="unix://$dir/gateway.sock"
gateway=
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() {
	printf '\nNOT AS IT SHOULD BE: %s\n' "$*" >&2
	tail -n 20 "$dir/gateway.log" >&2 || true
	exit 1
}
run() {
	printf '$ sandgate %s\n' "$*"
	bin/sandgate "$@"
}
finish() {
	[ -z "$gateway" ] || kill -9 "$gateway" 2>/dev/null || true
	for s in "$dir"/data/drivers/native/sandboxes/*/shim.json; do
		[ -e "$s" ] && kill -9 "$(sed -E 's/.*"pid":([0-9]+).*/\1/' "$s")" 2>/dev/null || true
	done
	rm -rf "$dir"
}
trap finish EXIT

network=true
mutate='"Process.network.address", "Network.subnet", "Process.environment"'
if [ "$(id -u)" -ne 0 ]; then
	say "This is an ordinary user: the host gives sandboxes no network, so the leased address reaches them in their environment."
	network=false
	mutate='"Process.environment"'
fi
tenant='"Process.labels", "Process.annotations", "Network"'
cat >"$dir/site.hcl" <<HCL
gateway {
  data_dir = "$dir/data"
  listen   = "unix://$dir/gateway.sock"
}
extension "tenant-namespace" {
  command  = "$PWD/bin/tenant-namespace"
  checksum = "sha256:$(sha256sum bin/tenant-namespace | cut -d' ' -f1)"
  config {
    tenant "team-*" {
      labels  = { tier = "demo" }
      network = $network
    }
  }
}
extension "ipam" {
  command  = "$PWD/bin/ipam"
  checksum = "sha256:$(sha256sum bin/ipam | cut -d' ' -f1)"
  paths {
    write = ["$dir/leases"]
  }
  config {
    store = "$dir/leases"
    pool "sandboxes" {
      cidr          = "10.80.0.0/16"
      subnet_prefix = 24
    }
  }
}
driver "native" {
  config {
    stop_timeout = "2s"
  }
}
driver "acme-native" {
  base = "native"
  bind "tenant-namespace" {
    grant { mutate = [$tenant] }
  }
  bind "ipam" {
    grant { mutate = [$mutate] }
  }
}
HCL

start_gateway() {
	bin/sandgate gateway --config "$dir/site.hcl" >>"$dir/gateway.log" 2>&1 &
	gateway=$!
	for _ in $(seq 300); do
		bin/sandgate version --gateway >/dev/null 2>&1 && return 0
		kill -0 "$gateway" 2>/dev/null || fail "the gateway did not start"
		sleep 0.05
	done
	fail "the gateway does not answer"
}
pid_of() { bin/sandgate extension inspect "$1" -o json | sed -nE 's/^ *"pid": *([0-9]+).*/\1/p'; }
state_of() { bin/sandgate sandbox get "$1" -o json 2>/dev/null | sed -nE 's/^ *"state": *"([a-z]+)".*/\1/p'; }
wait_for() { # what, command
	for _ in $(seq 600); do
		eval "$2" && return 0
		sleep 0.05
	done
	fail "$1"
}
in_phase() { bin/sandgate operation list -o json | grep -q '"phase": *"before_create"'; }
create() { run sandbox create --driver acme-native --workspace team-a --name "$1" --env GREETING=hello --wait -- sh -c 'echo "$GREETING from $SANDGATE_SANDBOX_NAME, at ${SANDGATE_ADDRESS:-its own address}"; exec sleep 600'; }

say "1. A gateway, a native driver, and two extensions as processes of their own"
start_gateway
run extension list

say "2. What a sandbox would be, and who says so. Nothing is created, nothing is held."
run sandbox plan --driver acme-native --workspace team-a --name one -- sleep 600
[ "$(bin/sandgate resource list | wc -l)" -eq 1 ] || fail "the plan holds something"

say "3. It is created through both extensions"
create one
[ "$(state_of one)" = ready ] || fail "sandbox one is $(state_of one)"
run resource list
run sandbox logs one
run sandbox history one

say "4. ipam is killed in the middle of a second create, which succeeds"
kill -STOP "$(pid_of ipam)"
create two >"$dir/two.log" 2>&1 &
two=$!
wait_for "the create did not come to ipam" in_phase
kill -9 "$(pid_of ipam)"
wait "$two" || fail "the create failed: $(cat "$dir/two.log")"
cat "$dir/two.log"
run extension list

say "5. The gateway is killed in the middle of a third. After its restart the create is finished or undone."
kill -STOP "$(pid_of ipam)"
create three >"$dir/three.log" 2>&1 &
three=$!
wait_for "the create did not come to ipam" in_phase
kill -9 "$gateway"
wait "$three" 2>/dev/null || true
wait "$gateway" 2>/dev/null || true
start_gateway
wait_for "the third create is neither finished nor undone" '[ "$(state_of three)" = ready ] || [ "$(state_of three)" = deleted ]'
run sandbox list --all
[ "$(state_of one)" = ready ] || fail "sandbox one did not outlive the gateway"

say "6. Everything is deleted. The ledger is empty."
for s in one two three; do
	run sandbox delete "$s" --wait
done
run workspace delete --driver acme-native team-a
run resource list
[ "$(bin/sandgate resource list | wc -l)" -eq 1 ] || fail "something is still held"
kill -TERM "$gateway"
wait "$gateway" || fail "the gateway ended with an error"
gateway=
left=$(find "$dir/data/drivers/native/sandboxes" -mindepth 1 | head -3)
[ -z "$left" ] || fail "something is left: $left"
say "As it should be."
