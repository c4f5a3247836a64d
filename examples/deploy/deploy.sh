#!/bin/sh
# "Deploys" the file app to one of the servers, which are folders here.
set -eu
mkdir -p "servers/$1"
cp app "servers/$1/app"
echo "$1 has version $(sed -n 's/^version //p' app)"
