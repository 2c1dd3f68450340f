#!/usr/bin/env bash
# Runs the commands of docs/kubernetes.md as they stand there, and then the drivers of examples/acme-kubernetes, against a
# control plane of the tests' own. It exits with an error if one of them does.
set -euo pipefail
cd "$(dirname "$0")/.."
for p in sandgate tenant-namespace ipam device-claim route; do [ -x "bin/$p" ] || { make -s build; break; }; done
kube=$(scripts/kube.sh)
dir=$(mktemp -d /tmp/sandgate-kube-XXXXXX)
mkdir -p "$dir/bin" "$dir/path"
ln -s "$PWD"/bin/* "$dir/bin/"
ln -s "$PWD/scripts" "$PWD/examples" "$dir/"
printf '#!/bin/sh\nexec %s kubectl "$@"\n' "$kube" >"$dir/path/kubectl"
chmod +x "$dir/path/kubectl"
CGO_ENABLED=0 go build -trimpath -o "$dir/cluster" ./test/cluster
coproc CLUSTER { exec "$dir/cluster" 2>"$dir/cluster.log"; }
lifeline=${CLUSTER[1]}
finish() {
	code=$?
	[ "$code" -eq 0 ] || tail -n 30 "$dir"/*.log >&2 || true
	[ -z "${gateway:-}" ] || kill -9 "$gateway" 2>/dev/null || true
	exec {lifeline}>&- # the cluster ends with it
	wait 2>/dev/null || true
	rm -rf "$dir"
	exit "$code"
}
trap finish EXIT
read -r KUBECONFIG <&"${CLUSTER[0]}" || { echo "the cluster did not start" >&2; exit 1; }
export KUBECONFIG PATH="$dir/path:$PATH"

# What an installed agent-sandbox has, by whose name the stand-in for its controller goes.
kubectl create namespace agent-sandbox-system
kubectl create clusterrole agent-sandbox-controller --verb=create --resource=pods
kubectl create clusterrolebinding agent-sandbox-controller --clusterrole=agent-sandbox-controller --serviceaccount=agent-sandbox-system:agent-sandbox-controller

cp "$PWD/docs/kubernetes.md" "$dir/"
cd "$dir"
{
	echo "trap 'kill \$(jobs -p) 2>/dev/null || true' EXIT"
	# A command that is to fail begins with "!", which by itself would let one that succeeds pass.
	sed -n '/^```sh$/,/^```$/{/^```/d;p}' kubernetes.md | sed 's/^! \(.*\)$/if \1; then echo "it should have failed" >\&2; exit 1; fi/'
} >commands.sh
echo "== docs/kubernetes.md"
bash -euo pipefail -x -m commands.sh

# Each file of the example with paths of this machine: its driver makes a sandbox, and takes it away again.
example() { # file, driver, workspace, the drivers' rights
	echo "== examples/acme-kubernetes/$1"
	kubectl apply -f "scripts/kubernetes/$4.yaml"
	rm -rf example && mkdir -p example/run/drivers example/routes
	sed -E -e "s#/usr/lib/sandgate/extensions#$dir/bin#; s#/var/lib/sandgate-ipam#$dir/example/leases#; s#/etc/traefik/sandboxes#$dir/example/routes#" \
		-e "s#/etc/sandgate/kubeconfig#$dir/gateway.kubeconfig#; s#/var/lib/sandgate#$dir/example/data#; s#/run/sandgate#$dir/example/run#; s#allowed_uids = .*##" \
		"examples/acme-kubernetes/$1" >example/unpinned.hcl
	while IFS= read -r line; do # each program has its own checksum
		case $line in
		*command*=*) program=$(sed -E 's/.*"(.*)".*/\1/' <<<"$line") ;;
		*checksum*=*) line="checksum = \"sha256:$(sha256sum "$program" | cut -d' ' -f1)\"" ;;
		esac
		printf '%s\n' "$line"
	done <example/unpinned.hcl >example/site.hcl
	bin/sandgate config validate --launch example/site.hcl
	bin/sandgate gateway --config example/site.hcl >example.log 2>&1 &
	gateway=$!
	export SANDGATE_ADDR=unix://$dir/example/run/gateway.sock
	until bin/sandgate version --gateway >/dev/null 2>&1; do kill -0 "$gateway" && sleep 0.2; done
	one=(--driver "$2" --workspace "$3" --name one --image registry.example/agent:1)
	bin/sandgate sandbox plan "${one[@]}" -- agent >/dev/null
	bin/sandgate sandbox create "${one[@]}" --wait -- agent
	kubectl get sandbox,pod -A -l "openshell.ai/sandbox-workspace=$3" --show-labels
	bin/sandgate sandbox delete one --wait
	bin/sandgate workspace delete --driver "$2" "$3"
	[ -z "$(kubectl get namespace,sandbox,pod,networkpolicy -A -l "openshell.ai/sandbox-workspace=$3" -o name)" ]
	kill "$gateway"
	wait "$gateway" || true
}
example acme.hcl acme-kubernetes team-a managed
example hooks.hcl acme-cluster public-a managed
echo "== all of it is as it should be"
