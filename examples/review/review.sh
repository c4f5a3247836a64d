#!/bin/sh
# One reviewer of a change: looks at it from one side, says what it found, and votes.
set -eu
added=$(grep -c '^+[^+]' "$2" || true)
case $1 in
style)
    found=$(grep -c '^+.*[[:space:]]$' "$2" || true)
    said="$found added lines end in a space"
    ;;
tests)
    found=0
    grep -q '^+++ .*test' "$2" || found=1
    said="$([ "$found" = 0 ] && echo "there is a test with it" || echo "no test with it")"
    ;;
size)
    found=$((added > 50))
    said="$added lines added"
    ;;
esac
if [ "$found" = 0 ]; then vote=proceed; else vote=abort; fi
echo "$1: $vote: $said"
[ -z "${CPW_TASK:-}" ] || cpw vote change "$vote" --reason "$said"
