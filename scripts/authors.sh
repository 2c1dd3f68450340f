#!/usr/bin/env bash
# Runs the commands of README.md, then those of docs/extension-authors.md in an empty directory, word for word: what a new
# operator and a new author would do.
# Without Debian's python3-grpcio those for Python are left out; as root in CI that is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x bin/sandgate ] || make -s build
languages='sh( python)?'
if ! /usr/bin/python3 -c 'import grpc, google.protobuf' 2>/dev/null; then
	[ "$(id -u)" -ne 0 ] || [ "${CI:-}" != true ] || { echo "python3-grpcio is not installed"; exit 1; }
	echo "left out: Python, since python3-grpcio is not installed"
	languages='sh'
fi
export SANDGATE_SOURCE=$PWD PATH=$PWD/bin:$PATH
dir=$(mktemp -d /tmp/sandgate-authors-XXXXXX)
trap 'rm -rf "$dir"' EXIT
{
	echo "trap 'kill \$(jobs -p) 2>/dev/null || true; wait; rm -rf \$SITE' EXIT"
	awk '/^```sh$/ { on = 1; next } /^```/ { on = 0 } on' README.md
} >"$dir/first"
grep -q 'sandbox create' "$dir/first"
bash -euo pipefail -x -m "$dir/first"
awk -v from="^\`\`\`$languages\$" '$0 ~ from { on = 1; next } /^```/ { on = 0 } on' docs/extension-authors.md >"$dir/commands"
[ -s "$dir/commands" ]
mkdir "$dir/empty"
cd "$dir/empty"
bash -euo pipefail -x ../commands
