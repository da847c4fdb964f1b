#!/bin/sh
# mutate.sh SED SOURCE COPY: the copy with a fault in it; fails when the expression changes nothing, so that a fault
# does not get lost when the source moves on.
set -eu
mkdir -p "$(dirname "$3")"
sed -e "$1" "$2" >"$3"
if cmp -s "$2" "$3"; then
    rm -f "$3"
    echo "mutate: the expression changes nothing in $2: $1" >&2
    exit 1
fi
