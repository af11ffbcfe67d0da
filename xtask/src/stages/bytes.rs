//! Bad bytes.

use super::{Stage, row};

pub const STAGES: &[Stage] = &[Stage {
    name: "fuzz",
    what: "fuzz targets behind the checksums, and planted bugs that they must find",
    build: "command -v g++ >/dev/null || apt-get install -y -q g++ >/dev/null; fuzz/build.sh",
    run: "fuzz/prove.sh",
    budget_seconds: 200,
    // Far below what the slowest machine executes in its time: a target that hardly runs fails.
    rows: &[
        row("fuzz_blocks", 20_000, 200_000),
        row("fuzz_files", 100_000, 1_000_000),
        row("fuzz_directory", 1_000, 10_000),
        row("fuzz_control", 5, 5),
    ],
}];
