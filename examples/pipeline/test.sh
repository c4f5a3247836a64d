#!/bin/sh
# Tests the program that the checkpoint names, while the manual is still being made.
set -eu
program=out/app
[ -z "${CPW_NEEDS:-}" ] || program=$(sed -n 's/.*"program": *"\([^"]*\)".*/\1/p' "$CPW_NEEDS")
[ "$("./$program" 2 3)" = 5 ] || { echo "2 and 3 is not 5"; exit 1; }
[ "$("./$program" 40 2)" = 42 ] || { echo "40 and 2 is not 42"; exit 1; }
echo "2 tests passed"
