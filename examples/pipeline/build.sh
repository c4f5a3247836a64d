#!/bin/sh
# Puts the sources together. Who only needs the program starts at the checkpoint; the manual is made after it.
set -eu
mkdir -p out
{ echo '#!/bin/sh'; cat src/*.sh; echo 'main "$@"'; } >out/app
chmod +x out/app
[ -z "${CPW_TASK:-}" ] || cpw checkpoint compiled --data '{"program": "out/app"}'
# A slow step stands here.
sleep 1
sed -n 's/^# //p' src/*.sh >out/manual.txt
echo "out/app and its manual, $(wc -l <out/manual.txt) lines"
