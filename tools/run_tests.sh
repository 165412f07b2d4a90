#!/bin/sh
# run_tests.sh [--e2e] BUILD JOBS: ctest (units, kernels, simulation, golden, tidy), then pytest over tests/e2e
# and tests/ray against the program in BUILD. A part whose tools are not there is passed over with a word.
set -eu
cd "$(dirname "$0")/.."
only_e2e=
[ "$1" != --e2e ] || { only_e2e=1; shift; }
build=$1 jobs=$2
python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python

# Tests on the default model take its path from here, and say that they were skipped when there is none.
if QUIRE_MODEL_FILE=$($python tools/fetch_model.py); then
    export QUIRE_MODEL_FILE
else
    unset QUIRE_MODEL_FILE
    echo "tests that need the default model are skipped" >&2
fi

status=0
[ -n "$only_e2e" ] || ctest --test-dir "$build" --output-on-failure -j "$jobs" || status=1

if [ -z "$(ls tests/e2e/test_*.py 2>/dev/null)" ]; then
    echo "no end-to-end tests in tests/e2e" >&2
elif ! $python -c 'import pytest, openai, httpx' 2>/dev/null; then
    echo "end-to-end tests are skipped: pytest and the openai client are not installed (./dev test does it)" >&2
else
    $python -m pytest -q tests/e2e || status=1
    # More of it: QUIRE_DIFFERENTIAL=10 (times) in the environment.
    [ -n "$only_e2e" ] || $python -m pytest -q tests/differential || status=1
fi

# One Ray a file, each in namespaces of its own; without root or Ray they are skipped and say so.
if $python -c 'import pytest, httpx' 2>/dev/null; then
    QUIRE_BINARY=$(realpath "$build/quire") QUIRE_LIBRARY=$(realpath "$build/libquire.so") \
        $python -m pytest -q -rs tests/ray || status=1
fi
exit $status
