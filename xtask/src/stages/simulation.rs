//! The whole bus on a simulated disk.

use super::{Stage, row};

const BUILD: &str = "cargo test --quiet --no-run --test simulation";

pub const STAGES: &[Stage] = &[
    Stage {
        name: "crashes",
        what: "power cuts and kills in the middle of everything, recovery included",
        build: BUILD,
        run: "cargo test --quiet --test simulation crash -- --nocapture",
        budget_seconds: 240,
        rows: &[
            row("crash_states", 100_000, 1_000_000),
            row("crashes_of_recovery", 15_000, 150_000),
            row("crashes_each_phase", 500, 5_000),
            row("checkpoints", 100_000, 1_000_000),
            row("crash_controls", 10, 10),
        ],
    },
    Stage {
        name: "damage",
        what: "bits, sectors, pages and files of a log are damaged",
        build: BUILD,
        run: "cargo test --quiet --test simulation damage -- --nocapture",
        budget_seconds: 90,
        rows: &[
            row("damages", 50_000, 1_000_000),
            row("damages_beside", 5_000, 100_000),
            row("damage_controls", 1, 1),
        ],
    },
    Stage {
        name: "faults",
        what: "every call to the disk fails, once and for good",
        build: BUILD,
        run: "cargo test --quiet --test simulation fault -- --nocapture",
        budget_seconds: 180,
        rows: &[
            row("fault_runs", 8_000, 100_000),
            row("fault_operations", 17, 17),
            row("fault_controls", 2, 2),
        ],
    },
];
