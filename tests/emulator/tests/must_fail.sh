#!/bin/sh
# must_fail.sh REGEX COMMAND...: passes when the command fails and its output has a line that matches. Then only that
# line is shown: the failures that cmocka reports in it are what was wanted, and would be counted.
want=$1
shift
out=$("$@" 2>&1)
status=$?
if [ "$status" -eq 0 ]; then
    printf '%s\n' "$out"
    echo "must_fail: the command succeeded"
    exit 1
fi
if ! line=$(printf '%s\n' "$out" | grep -m 1 -e "$want"); then
    printf '%s\n' "$out"
    echo "must_fail: nothing matches: $want"
    exit 1
fi
printf 'failed as it must: %s\n' "$line"
