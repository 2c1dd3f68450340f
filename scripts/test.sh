#!/usr/bin/env bash
# Runs every lane, and prints how long each took. As root in CI a lane that cannot run is a failure; otherwise it is
# named and left out.
set -uo pipefail
cd "$(dirname "$0")/.."
summary=()
failed=0
lane() { # name, command...
	local name=$1 start=$SECONDS
	shift
	echo "== $name"
	if "$@"; then
		summary+=("$(printf '%-28s ok      %4d s' "$name" $((SECONDS - start)))")
	else
		summary+=("$(printf '%-28s FAILED  %4d s' "$name" $((SECONDS - start)))")
		failed=1
	fi
}
leave_out() { # name, why
	if [ "$(id -u)" -eq 0 ] && [ "${CI:-}" = true ]; then
		echo "== $1: $2"
		summary+=("$(printf '%-28s MISSING: %s' "$1" "$2")")
		failed=1
	else
		summary+=("$(printf '%-28s left out: %s' "$1" "$2")")
	fi
}
race=-race
command -v gcc >/dev/null || race=
scripts/kube.sh >/dev/null 2>&1 & # needs no package, and is long; its lane waits for it, and says what is wrong
lane "packages" scripts/install-packages.sh
command -v gcc >/dev/null && race=-race
[ -n "$race" ] || leave_out "race detector" "gcc is not installed"
lane "Kubernetes servers" scripts/kube.sh # before other builds, which would compile anew what it is about to have
lane "build" make -s build
lane "format and vet" scripts/lint.sh
# What needs a cluster, or virtual machines, has a lane of its own: emulated machines leave nothing of two processors to tests
# that measure time. A test that stands in neither list is in the first lane.
gateway=./gateway/internal/daemon
clusters='^(TestAChainInACluster|TestKilledAtEveryClusterCall)$|^TestTheDoorServesAnOpenShellGateway$/^kubernetes$'
machines='^(TestKilledAtEveryCallOfQEMU|TestLifecycle(Defects|Scenarios)|TestDriverScenarios|TestVMFigures|TestAMachine.*)$|^TestTheDoorServesAnOpenShellGateway$/^vm$'
tests() { # what go test is told besides
	go test $race -timeout 40m "$@"
}
mapfile -t rest < <(go list ./... | grep -vE '/(drivers/kubernetes|drivers/vm|test|gateway/internal/daemon)(/|$)')
lane "tests" tests -skip "$clusters|$machines" $gateway "${rest[@]}" # the longest first
# Their tests wait more than they work, so the driver's run beside the gateway's.
driver_and_gateway() { # the gateway's tests, what go test is told besides of the driver's
	local failed=0 out
	out=$(mktemp)
	tests -run "$1" $gateway >"$out" 2>&1 &
	tests "${@:2}" || failed=1
	wait $! || failed=1
	cat "$out" && rm "$out"
	return $failed
}
lane "Kubernetes" driver_and_gateway "$clusters" -parallel 8 ./drivers/kubernetes/... ./test/...
lane "virtual machines" driver_and_gateway "$machines" ./drivers/vm/...
lane "wire" scripts/proto.sh check
lane "demo" scripts/demo.sh
lane "Kubernetes walk-through" scripts/kubernetes-demo.sh
lane "authors" scripts/authors.sh
[ "$(id -u)" -eq 0 ] || {
	leave_out "native driver as root" "this is an ordinary user; network and limits need root"
	leave_out "Docker and Podman of root" "this is an ordinary user; only root gives an engine a place of its own"
	[ -r /dev/net/tun ] && [ -w /dev/net/tun ] || leave_out "rootless Podman" "this user may not open /dev/net/tun"
}
echo
printf '%s\n' "${summary[@]}"
exit $failed
