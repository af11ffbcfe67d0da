//! A log that was written, closed, and is to be read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use eventplane::{Builder, Bus, Durability};

use super::{Tally, fill};
use crate::disk;

/// Payload bytes of a batch: large enough to be written fast, small enough for a block.
const BATCH_BYTES: usize = 192 << 10;

pub struct Log {
    pub dir: PathBuf,
    pub written: Tally,
    pub payload_bytes: usize,
}

impl Log {
    /// One that holds nothing yet.
    pub fn of(dir: PathBuf, payload_bytes: usize) -> Log {
        Log { dir, written: Tally::default(), payload_bytes }
    }

    /// Writes about `bytes` of log, of records with `payload_bytes` each, and closes it.
    pub fn write(
        dir: PathBuf,
        bytes: u64,
        payload_bytes: usize,
        builder: Builder,
    ) -> anyhow::Result<Log> {
        let mut log = Log::of(dir, payload_bytes);
        // How it was written makes no difference to who reads it.
        let lazily = Durability::Deferred { interval: Duration::from_millis(50), bytes: 8 << 20 };
        let bus = builder.durability(lazily).open(&log.dir)?;
        let framed = (payload_bytes as u64).next_multiple_of(8) + 16;
        log.append(&bus, bytes / framed)?;
        bus.close()?;
        Ok(log)
    }

    /// Appends `records` more, in large batches.
    pub fn append(&mut self, bus: &Bus, records: u64) -> anyhow::Result<()> {
        let writer = bus.writer();
        let a_batch = (BATCH_BYTES / (self.payload_bytes + 16)).max(1) as u64;
        let mut payload = vec![0; self.payload_bytes];
        let end = self.written.records + records;
        while self.written.records < end {
            let mut batch = writer.batch();
            for _ in 0..a_batch.min(end - self.written.records) {
                let lsn = self.written.records + 1;
                fill(&mut payload, lsn);
                batch.append(1, lsn, &payload)?;
                self.written.take(lsn, &payload);
            }
            batch.commit()?;
        }
        Ok(())
    }

    /// Its segment files, oldest first.
    pub fn segments(&self) -> anyhow::Result<Vec<PathBuf>> {
        segments(&self.dir)
    }

    pub fn payload_bytes(&self) -> u64 {
        self.written.records * self.payload_bytes as u64
    }

    pub fn drop_cache(&self) -> anyhow::Result<()> {
        disk::drop_cache(&self.segments()?)
    }

    pub fn warm(&self) -> anyhow::Result<()> {
        disk::warm(&self.segments()?)
    }
}

fn segments(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir.join("segments"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "log") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
