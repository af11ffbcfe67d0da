//! The same payloads in the log of nodedb-wal, and its two ways to replay them.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use nodedb_wal::mmap_reader::{replay_segments_mmap, replay_segments_mmap_limit};
use nodedb_wal::record::RecordType;
use nodedb_wal::{DwbMode, SegmentedWal, SegmentedWalConfig};

use crate::disk;
use crate::load::{SMALL, Tally, fill};

pub struct PeerLog {
    dir: PathBuf,
    pub written: Tally,
}

impl PeerLog {
    pub fn write(dir: PathBuf, records: u64) -> anyhow::Result<PeerLog> {
        let mut config = SegmentedWalConfig::for_testing(dir.clone());
        // How it was written makes no difference to who reads it.
        config.writer_config.dwb_mode = Some(DwbMode::Off);
        let mut wal = SegmentedWal::open(config)?;
        let mut written = Tally::default();
        let mut payload = [0; SMALL];
        for lsn in 1..=records {
            fill(&mut payload, lsn);
            wal.append(RecordType::Put as u32, 1, 0, 0, &payload)?;
            written.take(lsn, &payload);
        }
        wal.sync()?;
        Ok(PeerLog { dir, written })
    }

    /// It gives its pages back when it has read them.
    pub fn warm(&self) -> anyhow::Result<()> {
        let entries = std::fs::read_dir(&self.dir)?;
        let paths: std::io::Result<Vec<_>> = entries.map(|e| e.map(|e| e.path())).collect();
        disk::warm(&paths?)
    }

    /// Everything at once; returns how many seconds it took.
    pub fn replay(&self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let mut tally = Tally::default();
        for record in replay_segments_mmap(&self.dir, 1)? {
            tally.take(record.header.lsn, &record.payload);
        }
        let seconds = begun.elapsed().as_secs_f64();
        tally.check(&self.written)?;
        Ok(seconds)
    }

    /// Page by page, each from where the last one ended.
    pub fn replay_paged(&self, page: usize) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let mut tally = Tally::default();
        let mut next = 1;
        loop {
            let (records, has_more) = replay_segments_mmap_limit(&self.dir, next, page)?;
            for record in &records {
                tally.take(record.header.lsn, &record.payload);
            }
            if !has_more {
                break;
            }
            next = records.last().context("an empty page with more to come")?.header.lsn + 1;
        }
        let seconds = begun.elapsed().as_secs_f64();
        tally.check(&self.written)?;
        Ok(seconds)
    }
}
