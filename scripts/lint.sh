#!/usr/bin/env bash
# gofmt and vet always; golangci-lint where it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -trimpath" # as make build has them: what it has compiled is not compiled again
unformatted=$(gofmt -l $(git ls-files '*.go'))
[ -z "$unformatted" ] || { echo "not formatted:"; echo "$unformatted"; exit 1; }
go vet ./...
if command -v golangci-lint >/dev/null; then golangci-lint run; else echo "left out: golangci-lint is not installed"; fi
