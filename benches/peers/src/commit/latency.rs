//! One record, one commit, one at a time.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use eventplane::{Bus, Writer};
use memmap2::MmapMut;

use super::open;
use crate::disk;
use crate::load::{SMALL, fill};
use crate::report::{Bar, Side};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "commit_1_p50", run };

/// Size of the file that the bare loop walks through, and of a step.
const BARE_BYTES: u64 = 16 << 20;
const PAGE: u64 = 4_096;

fn run(context: &Context) -> anyhow::Result<()> {
    let commits = context.scaled(2_000, 200);
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bus = open(&dir.path().join("log"))?;
    let writer = bus.writer();
    let mut bare = Bare::new(&dir.path().join("bare"))?;
    let ours = Side::new("eventplane, a record of 100 B", || {
        Ok(percentile(&mut commit_micros(&bus, &writer, commits)?, 0.5))
    });
    let theirs = Side::new("pwritev2(RWF_DSYNC) of 4 KiB", || {
        Ok(percentile(&mut bare.write_micros(commits)?, 0.5))
    });
    let row = (BENCH.name, "us p50", Bar::AtMost(1.2));
    context.report.pair(context.rounds, row, ours, theirs)
}

/// A file of zeros that is overwritten page by page, each page durable before the next.
pub struct Bare {
    file: File,
    page: MmapMut,
    offset: u64,
}

impl Bare {
    pub fn new(path: &Path) -> anyhow::Result<Bare> {
        let file = disk::zeroed(path, BARE_BYTES)?;
        Ok(Bare { file, page: disk::page_buffer(PAGE as usize)?, offset: 0 })
    }

    /// Writes so many pages; returns how long each took, in microseconds.
    pub fn write_micros(&mut self, pages: u64) -> anyhow::Result<Vec<f64>> {
        let mut micros = Vec::with_capacity(pages as usize);
        for _ in 0..pages {
            let begun = Instant::now();
            disk::write_durable(&self.file, &self.page, self.offset)?;
            micros.push(begun.elapsed().as_secs_f64() * 1e6);
            self.offset = (self.offset + PAGE) % BARE_BYTES;
        }
        Ok(micros)
    }
}

/// Commits so many records of 100 B, one at a time; returns how long each took, in microseconds.
pub fn commit_micros(bus: &Bus, writer: &Writer, commits: u64) -> anyhow::Result<Vec<f64>> {
    let mut payload = [0; SMALL];
    let mut micros = Vec::with_capacity(commits as usize);
    let first = bus.committed_lsn().get() + 1;
    for expected in first..first + commits {
        fill(&mut payload, expected);
        let begun = Instant::now();
        let lsn = writer.append(1, expected, &payload)?.get();
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
        ensure!(lsn == expected, "record {expected} got the LSN {lsn}");
    }
    ensure!(bus.durable_lsn().get() == first + commits - 1, "acknowledged, and not durable");
    Ok(micros)
}

/// The smallest sample that `fraction` of them do not exceed.
pub fn percentile(samples: &mut [f64], fraction: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let rank = (samples.len() as f64 * fraction).ceil() as usize;
    samples.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
