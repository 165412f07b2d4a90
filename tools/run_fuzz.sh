#!/bin/sh
# run_fuzz.sh BUILD SECONDS: each fuzz target for so long, from its corpus in tests/fuzz/corpus/<name>. What it
# finds is left in BUILD/findings; put a reduced finding into the corpus with the fix.
set -eu
cd "$(dirname "$0")/.."
build=$1 seconds=$2
status=0 count=0
mkdir -p "$build/findings"
for source in tests/fuzz/fuzz_*.c; do
    [ -e "$source" ] || continue
    target=$(basename "$source" .c)
    fresh=$build/corpus/$target
    seeds=tests/fuzz/corpus/${target#fuzz_}
    mkdir -p "$fresh"
    [ -d "$seeds" ] || seeds=
    count=$((count + 1))
    if "$build/$target" -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=20 -max_len=65536 \
        -artifact_prefix="$build/findings/$target-" -print_final_stats=1 "$fresh" $seeds >"$build/$target.log" 2>&1; then
        echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$build/$target.log") runs, no finding"
    else
        status=1
        tail -40 "$build/$target.log"
        echo "$target: FAILED (log: $build/$target.log)"
    fi
done
echo "$count fuzz targets, $seconds s each"
exit $status
