#!/usr/bin/env bash
# Runs the fuzz targets for 45 seconds each (the long version: as much longer as more is required),
# then with planted bugs, each of which must be found. Prints what was executed.
set -euo pipefail
cd "$(dirname "$0")"
bin=target/x86_64-unknown-linux-gnu/release
out=target/prove
rm -rf "$out"
trap 'jobs -p | xargs -r kill 2>/dev/null' EXIT
# A single execution that takes this long hangs; one that needs this much memory is caught earlier
# by the harness, unless it is mapped.
limits=(-timeout=5 -rss_limit_mb=512 -print_final_stats=1)
seconds=$((45 * ${PROOF_FUZZ_DIRECTORY:-1000} / 1000))

# run NAME TARGET ARGUMENTS..: the output goes to a file, findings beside it.
run() {
    local dir="$out/$1" target="$2"
    mkdir -p "$dir/corpus"
    local longest=1024
    [ "$target" = directory ] && longest=65
    "$bin/$target" "$dir/corpus" "seeds/$target" "${limits[@]}" -max_len="$longest" -artifact_prefix="$dir/" \
        "${@:3}" >"$dir/log" 2>&1
}

# fuzz TARGET: no finding in its time.
fuzz() {
    if ! run "$1" "$1" -max_total_time="$seconds"; then
        tail -n 60 "$out/$1/log"
        echo "$1 found something: cargo fuzz run -s none $1 fuzz/$out/$1/FILE"
        return 1
    fi
    echo "proof fuzz_$1 $(sed -n 's/^stat::number_of_executed_units: //p' "$out/$1/log")"
}

# control PLANT TARGET PATTERN: the planted bug is found, and is what was found.
control() {
    if PLANT="$1" run "control-$1-$2" "$2" -max_total_time=60; then
        echo "control: $1 in $2 was not found"
        return 1
    fi
    if ! grep -q "$3" "$out/control-$1-$2/log"; then
        tail -n 60 "$out/control-$1-$2/log"
        echo "control: not the planted $1, but something else was found in $2"
        return 1
    fi
    echo "found the planted $1 in $2"
    echo "proof fuzz_control 1"
}

controls() {
    control panic blocks 'planted: a certain record'
    control panic files 'planted: a certain name'
    control allocation files 'over-allocation'
    control hang blocks 'libFuzzer: timeout'
    control first-bad directory 'lost in silence'
}

# Two at a time, and the failure of one is the failure of all.
fuzz blocks & blocks=$!
fuzz files & files=$!
wait "$blocks"
wait "$files"
fuzz directory & directory=$!
controls
wait "$directory"
