#!/bin/sh
# must_fail.sh REGEX COMMAND...: passes when the command fails and its output has a line that matches.
want=$1
shift
out=$("$@" 2>&1)
status=$?
printf '%s\n' "$out"
if [ "$status" -eq 0 ]; then
    echo "must_fail: the command succeeded"
    exit 1
fi
if ! printf '%s\n' "$out" | grep -q -e "$want"; then
    echo "must_fail: nothing matches: $want"
    exit 1
fi
