#!/bin/sh
# The figures of one file of sales. Beside the conversation it says how far it is; by hand it only prints.
set -eu
rows=$(($(wc -l <"$1") - 1))
[ -z "${CPW_TASK:-}" ] || cpw progress 30 --note "$rows rows"
awk -F, -v file="$1" 'NR > 1 { sum += $3; shop[$2] += $3; if ($3 > most) most = $3 }
    END {
        for (name in shop) if (shop[name] > best || (shop[name] == best && name < top)) { best = shop[name]; top = name }
        printf "%s: %d rows, sum %d, mean %.1f, highest %d\n", file, NR - 1, sum, sum / (NR - 1), most
        printf "Best shop: %s with %d\n", top, best
    }' "$1"
