#!/usr/bin/env bash
# Breaks the engine on purpose, one fault at a time, in a copy, and has the simulation find each: a row per fault, with
# the invariant that found it, the history (the seed is the same number) and the step. A fault that is not found within
# N histories is a failure. Names of faults may be given; otherwise all of them are made.
set -uo pipefail
cd "$(dirname "$0")/.."
engine=gateway/internal/engine
n=${N:-2000}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r go.mod go.sum gateway shared plugin drivers "$copy"
missed=0
printf '%-42s %-4s %8s %6s\n' fault id history step
for patch in "$engine"/testdata/mutants/*.patch; do
	name=$(basename "$patch" .patch)
	[ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
	if ! patch -s -p1 -d "$copy" <"$patch"; then
		echo "$name: the patch does not fit the engine any more: make it anew"
		missed=1
	else
		out=$(cd "$copy" && GOMAXPROCS=1 SIM_N=$n SIM_SEED=1 SIM_FAILURES=1 go test -count 1 -timeout 10m -run 'TestSimulation$' "./$engine" 2>&1)
		row=$(grep -m1 -oE 'history [0-9]+, step [0-9]+: [A-Z][0-9]' <<<"$out" | sed -E 's/history ([0-9]+), step ([0-9]+): (..)/\3 \1 \2/')
		if [ -z "$row" ]; then
			echo "$name: not found in $n histories: $(tail -3 <<<"$out" | tr '\n' ' ')"
			missed=1
		else
			# shellcheck disable=SC2086
			printf '%-42s %-4s %8s %6s\n' "$name" $row
		fi
	fi
	rm -rf "${copy:?}/$engine" && cp -r "$engine" "$copy/$engine" # as it was
done
exit $missed
