//! The long run, a minute of it, and whether it finds what is planted.

use super::{Stage, row};

pub const STAGES: &[Stage] = &[Stage {
    name: "soak",
    what: "everything at once on real files, with faults, kills and restarts",
    build: "cargo build --quiet --release --example soak",
    run: "cargo xtask soak --controls && cargo xtask soak --minutes 1",
    budget_seconds: 300,
    rows: &[
        row("soak_controls", 11, 11),
        row("soak_lives", 20, 200),
        row("soak_records", 150_000, 1_500_000),
        row("soak_faults", 20, 200),
    ],
}];
