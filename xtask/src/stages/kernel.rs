//! Real files, real errors, real crashes.

use super::{Row, Stage, row};

/// What it takes: file systems of its own, mounted through loop devices and FUSE. What cannot be
/// installed is told by the rows that need it, as SKIP.
const BUILD: &str = "\
    command -v mkfs.xfs >/dev/null && command -v mkfs.ext4 >/dev/null && \
    command -v fusermount3 >/dev/null || \
    (apt-get update -q && apt-get install -y -q xfsprogs e2fsprogs fuse3 mount) >/dev/null 2>&1; \
    cargo test --quiet --test kernel --no-run";

const ROWS: &[Row] = &[
    row("sigkill", 200, 5_000),
    row("power_cut_ext4", 20, 500),
    row("power_cut_xfs", 20, 500),
    row("fuse_errors", 312, 312),
    row("fuse_checkpoints", 16, 16),
    row("full_disk", 16, 16),
    row("file_size_limit", 12, 12),
    row("truncated_mapping", 96, 96),
];

pub const STAGES: &[Stage] = &[
    Stage {
        name: "kernel",
        what: "kills, power cuts, errors, full disks and shrinking files, on real kernels",
        build: BUILD,
        run: "cargo test --quiet --test kernel -- --nocapture --skip hogs",
        budget_seconds: 150,
        rows: ROWS,
    },
    // By itself: what runs beside it would be a third hog.
    Stage {
        name: "hogs",
        what: "a synced writer beside threads that never wait",
        build: BUILD,
        run: "cargo test --quiet --test kernel -- --nocapture hogs",
        budget_seconds: 215,
        rows: &[row("hogs", 4, 4)],
    },
];
