//! Models, schedules and sanitizers.

use super::{Stage, row};

pub const STAGES: &[Stage] = &[
    Stage {
        name: "loom",
        what: "every order of events of the ring, the committer's hand-over and consumers' control",
        build: "RUSTFLAGS='--cfg races --cfg races=\"loom\"' cargo build --quiet \
                --manifest-path races/Cargo.toml --target-dir target/loom --bin models",
        run: "target/loom/debug/models",
        budget_seconds: 200,
        rows: &[
            row("loom_models", 25, 25),
            row("loom_executions", 210_000, 780_000),
            row("loom_controls", 27, 27),
        ],
    },
    Stage {
        name: "shuttle",
        what: "the whole bus and all its threads in schedules by chance (PCT)",
        build: "RUSTFLAGS='--cfg races --cfg races=\"shuttle\"' cargo build --quiet \
                --manifest-path races/Cargo.toml --target-dir target/shuttle --bin schedules",
        run: "target/shuttle/debug/schedules",
        budget_seconds: 180,
        rows: &[row("shuttle_schedules", 200_000, 2_000_000), row("shuttle_controls", 6, 6)],
    },
    Stage {
        name: "tsan",
        what: "the whole bus on real threads and files under ThreadSanitizer",
        build: "RUSTC_BOOTSTRAP=1 \
                RUSTFLAGS='-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer' \
                cargo build --quiet --manifest-path races/Cargo.toml --target-dir target/tsan \
                --target x86_64-unknown-linux-gnu --bin runtime",
        run: "races/tsan",
        budget_seconds: 60,
        rows: &[
            row("tsan_seconds", 10, 120),
            row("tsan_records", 100_000, 1_000_000),
            row("tsan_control", 1, 1),
        ],
    },
    Stage {
        name: "asan",
        what: "the library's tests under AddressSanitizer",
        build: "races/asan build",
        run: "races/asan",
        budget_seconds: 240,
        rows: &[row("asan_tests", 300, 300), row("asan_control", 1, 1)],
    },
];
