#!/usr/bin/env bash
# The wire: generate makes the Go code anew; check lints it, compares it with the wire that was released, and proves
# that the generated code is fresh. The tools are built from scripts/tools, once, outside the tree.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${XDG_CACHE_HOME:-$HOME/.cache}/sandgate/tools-$(sha256sum scripts/tools/go.sum | cut -c1-16)"
if [ ! -x "$cache/buf" ]; then
	mkdir -p "$cache.new"
	(cd scripts/tools && CGO_ENABLED=0 go build -trimpath -o "$cache.new/" tool)
	rm -rf "$cache" && mv "$cache.new" "$cache"
fi
export PATH="$cache:$PATH"
cd shared/proto
case "${1:-check}" in
generate)
	buf generate
	image=$(mktemp -d)
	trap 'rm -rf "$image"' EXIT
	buf build -o "$image/image.binpb"
	# Debian's protoc (protobuf-compiler) makes what its python3-protobuf reads; a test of the example says when it is stale.
	protoc --descriptor_set_in="$image/image.binpb" --python_out="$image" extension/v1/extension.proto
	cp "$image/extension/v1/extension_pb2.py" ../../examples/python-labels/
	;;
baseline)
	buf build -o baseline.binpb
	;;
check)
	buf lint
	buf breaking --against baseline.binpb
	fresh=$(mktemp -d)
	trap 'rm -rf "$fresh"' EXIT
	buf generate -o "$fresh"
	for f in $(cd "$fresh" && find . -name '*.go'); do
		cmp -s "$fresh/$f" "$f" || { echo "shared/proto/$f is not what the proto says: run make generate"; exit 1; }
	done
	;;
esac
