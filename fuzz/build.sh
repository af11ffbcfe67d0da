#!/usr/bin/env bash
# Builds the fuzz targets on the stable toolchain, as `cargo fuzz build --sanitizer none` does.
set -euo pipefail
cd "$(dirname "$0")"
export RUSTFLAGS="-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 --cfg fuzzing"
exec cargo build --quiet --release --bins --target x86_64-unknown-linux-gnu "$@"
