#!/usr/bin/env bash
# The Kubernetes control plane that tests start, test/kube: kube.sh builds it, once, outside the tree, and prints where
# the program is; "kube.sh find" builds nothing, and fails where it is not built. A cold build takes some minutes and 3 GiB
# of memory. It is built anew when what it is made of changes: its module, its source, or Go.
set -euo pipefail
cd "$(dirname "$0")/../test/kube"
made_of=$({ go version && cat go.mod go.sum main.go standin/*.go; } | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sandgate dir=$cache/kube-$made_of
if [ ! -x "$dir/kube" ]; then
	[ "${1:-}" != find ] || { echo "the Kubernetes servers are not built: scripts/kube.sh does that, in some minutes" >&2; exit 1; }
	mkdir -p "$dir"
	exec 9>"$dir/lock"
	flock 9 # whoever comes second finds it built
	if [ ! -x "$dir/kube" ]; then
		find "$cache" -maxdepth 1 -name 'kube-*' -mtime +7 -exec rm -rf {} + # of what it was made of before
		export CGO_ENABLED=0
		version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' go.mod) # the servers say it, and kubectl reads it
		IFS=. read -r major minor _ <<<"${version#v}"
		v=k8s.io/component-base/version
		go build -trimpath -buildvcs=false -o "$dir/kube.new" -ldflags \
			"-s -w -X $v.gitVersion=$version -X $v.gitMajor=$major -X $v.gitMinor=$minor -X $v.gitTreeState=clean" . >&2
		mv "$dir/kube.new" "$dir/kube"
	fi
fi
touch -c "$dir"
echo "$dir/kube"
