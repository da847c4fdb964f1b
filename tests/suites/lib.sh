# lib.sh - what every suite starts with: . "$(dirname "$0")/lib.sh"
#
# A suite counts with pass, fail, skip, check, count_ctest, count_pytest and count_pytest_spread, and its exit trap
# prints the line that scripts/test adds up, `NAME: N passed, N failed[, N skipped]`. Counts come from what the tests
# themselves report (cmocka, pytest), never from an exit code alone; a run without tests is a failure, and so is a
# suite that dies. Output of each step goes to a file in build/test-logs; its end is shown when the step fails.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
cd "$root"
suite=${RETRO_SUITE:-$(basename "$0")}
logs=$build/test-logs/$suite
python=$root/.venv/bin/python
mkdir -p "$logs"
passed=0 failed=0 skipped=0 finished=

pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "$suite: FAILED: $*"; }
skip() { skipped=$((skipped + 1)); echo "$suite: skipped: $*"; }

report() {
    local code=$?
    [ -n "$finished" ] || [ $code -eq 0 ] || fail "the suite itself ended with exit code $code"
    [ $((passed + failed + skipped)) -gt 0 ] || fail "no test ran"
    local line="$suite: $passed passed, $failed failed"
    [ $skipped -eq 0 ] || line="$line, $skipped skipped"
    echo "$line"
    [ $failed -eq 0 ] || exit 1
    exit 0
}
trap report EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# step LOG COMMAND...: runs with output to LOG.log; on failure shows its end. Counts nothing.
step() {
    local log=$logs/$1.log code=0
    shift
    "$@" >"$log" 2>&1 </dev/null || code=$?
    if [ $code -ne 0 ]; then
        echo "--- exit code $code: $*"
        tail -n 60 "$log"
        echo "--- (whole output: ${log#"$root"/})"
    fi
    return $code
}

# check NAME COMMAND...: one test that passes with exit code 0.
check() {
    local name=$1
    shift
    if step "$(echo "$name" | tr -c 'A-Za-z0-9._\n-' _)" "$@"; then pass; else fail "$name"; fi
}

# add_counts FILE: adds the "passed failed skipped" that tests/suites/count.py prints, shows the failed tests' names.
add_counts() {
    local line
    if ! line=$("$python" tests/suites/count.py "$1"); then
        fail "results in $1 cannot be read: $line"
        return
    fi
    local p f s
    read -r p f s <<<"$(tail -n 1 <<<"$line")"
    sed '$d' <<<"$line"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

# count_ctest BUILD_DIR CTEST_OPTION...: runs tests of a build and counts cmocka's tests inside them.
count_ctest() {
    local dir=$1 xml=$logs/ctest.$RANDOM.xml
    shift
    rm -f "$xml"
    # cmocka's lines are read from the output, so the whole of it is kept.
    step ctest ctest --test-dir "$dir" -j "$jobs" --no-tests=error --output-on-failure --output-junit "$xml" \
        --test-output-size-passed 10000000 --test-output-size-failed 10000000 "$@"
    local code=$? before=$failed
    if [ -s "$xml" ]; then add_counts "$xml"; else fail "ctest $* left no results"; fi
    [ $code -eq 0 ] || [ $failed -gt "$before" ] || fail "ctest $* ended with exit code $code"
    rm -f "$xml"
}

# count_pytest PATH...: runs them with the tree's Python.
count_pytest() {
    local xml=$logs/pytest.$RANDOM.xml
    if [ ! -x "$python" ]; then
        fail "pytest: .venv is missing: run scripts/setup"
        return
    fi
    rm -f "$xml"
    step pytest "$python" -m pytest -q -p no:cacheprovider --junitxml "$xml" "$@"
    local code=$? before=$failed
    if [ -s "$xml" ]; then add_counts "$xml"; else fail "pytest $* left no results"; fi
    [ $code -eq 0 ] || [ $failed -gt "$before" ] || fail "pytest $* ended with exit code $code (5: no test found)"
    rm -f "$xml"
}

# count_pytest_spread PATH...: the same with the cases spread over the cores, for tests that take no times.
count_pytest_spread() { OPENBLAS_NUM_THREADS=1 count_pytest -n "$jobs" "$@"; }

# need_build: build/ is up to date, or the suite ends as failed.
need_build() {
    [ -n "${RETRO_BUILT:-}" ] && return # scripts/test has just built
    if ! step build scripts/build; then
        fail "scripts/build"
        finished=1
        exit 1
    fi
}

# need_model: the real model is there (a download the first time), or the suite goes on with a failure counted.
need_model() { step fetch-model scripts/fetch-model || fail "scripts/fetch-model"; }

# configure_build DIR OPTION...: a build of its own, beside build/; for `check`.
configure_build() {
    local dir=$1
    shift
    cmake -S "$root" -B "$dir" -G Ninja "$@" && ninja -C "$dir" -j "$jobs"
}
