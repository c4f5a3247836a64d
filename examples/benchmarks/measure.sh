#!/bin/sh
# Runs a module ten times and prints how long the fastest and the middle run took.
set -eu
runs=10
now() { date +%s%N; }
times=""
run=1
while [ "$run" -le "$runs" ]; do
    begun=$(now)
    sh "$1" >/dev/null
    times="$times $((($(now) - begun) / 1000))"
    [ -z "${CPW_TASK:-}" ] || cpw progress $((run * 100 / runs)) --note "run $run of $runs"
    run=$((run + 1))
done
printf '%s\n' $times | sort -n | awk -v module="$1" '{ us[NR] = $1 }
    END { printf "%s: %.1f ms at best, %.1f ms in the middle of %d runs\n", module, us[1] / 1000, us[int((NR + 1) / 2)] / 1000, NR }'
