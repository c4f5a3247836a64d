#!/bin/sh
# Packs what was built and tested.
set -eu
tar -cf out/app.tar -C out app manual.txt
echo "out/app.tar, $(wc -c <out/app.tar) bytes"
