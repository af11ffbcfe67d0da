//! Durable commits: how long one takes, how many there are, how many bytes; beside the disk itself
//! and beside what one would pick instead.

mod bandwidth;
mod groups;
mod hogs;
mod latency;
mod peers;
mod producers;

use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::ensure;
use eventplane::{Bus, Durability};

pub use latency::{Bare, commit_micros, percentile};

use crate::Bench;

pub const BENCHES: &[&Bench] = &[
    &latency::BENCH,
    &producers::BENCH,
    &groups::BENCH,
    &bandwidth::BENCH,
    &peers::OKAYWAL,
    &peers::RAFT_ENGINE,
    &peers::FJALL,
    &peers::WALRUS,
    &peers::SQLITE,
    &peers::REDB,
    &hogs::BENCH,
];

/// A new log with the defaults, once the segments that it prepares ahead are there: what a log does
/// in its first moments is the disk's business of those moments alone. Segments that are prepared
/// later, because a row writes so much, are paid for by that row.
fn open(dir: &Path) -> anyhow::Result<Bus> {
    /// The first segment, and the two behind it.
    const PREPARED: usize = 3;
    let bus = Bus::builder().durability(Durability::Synced).open(dir)?;
    let begun = Instant::now();
    while ready_segments(dir)? < PREPARED {
        ensure!(begun.elapsed() < Duration::from_secs(10), "no segments are prepared");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(bus)
}

fn ready_segments(dir: &Path) -> anyhow::Result<usize> {
    let mut ready = 0;
    for entry in fs::read_dir(dir.join("segments"))? {
        ready += usize::from(entry?.path().extension().is_some_and(|e| e == "log"));
    }
    Ok(ready)
}
