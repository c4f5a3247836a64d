#!/bin/sh
# Looks at what was deployed: every line "expect WORD" of app must be followed by a line "WORD".
set -eu
failed=0
for word in $(sed -n 's/^expect //p' "servers/$1/app"); do
    grep -qx "$word" "servers/$1/app" || { echo "$word is missing"; failed=$((failed + 1)); }
done
echo "$failed checks failed on $1"
[ "$failed" = 0 ]
