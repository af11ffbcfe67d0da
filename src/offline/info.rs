//! What there is: the log as a whole, and segment by segment.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::check::Checked;
use super::scan::Depth;
use super::{LogDir, Scan};
use crate::error::{Error, Result};
use crate::format::{FORMAT_VERSION, Footer};
use crate::log::Found;
use crate::lsn::Lsn;

/// A log at a glance.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Info {
    /// Random identity, 32 hexadecimal digits.
    pub log_id: String,
    /// Version of the format on disk.
    pub format_version: u16,
    /// How often a repair cut committed records; checkpoints of an older generation are void.
    pub generation: u64,
    /// Size of a slab in bytes.
    pub slab_bytes: u64,
    /// Size of a segment file in bytes.
    pub segment_bytes: u64,
    /// The first record, or the next one to come if there is none.
    pub first_lsn: Lsn,
    /// The last record that can be read without a gap; `Lsn::ZERO` in a new log.
    pub last_lsn: Lsn,
    /// Records from the first to the last.
    pub records: u64,
    /// Segment files, those prepared ahead included.
    pub segments: u64,
    /// Size of all segment files in bytes.
    pub bytes: u64,
    /// Everything in it is vouched for by a later block: it was closed, or idle when its process
    /// ended. (Where a last block leaves no room for that block, it is not, even if closed.)
    pub clean: bool,
    /// Bytes of a torn write behind the last record, never acknowledged.
    pub torn_bytes: u64,
    /// What is stored for each consumer.
    pub checkpoints: Vec<Checkpoint>,
    /// What is wrong, as far as headers, footers and the newest segment tell.
    pub findings: Vec<Error>,
}

/// A consumer's stored checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Of the consumer.
    pub name: String,
    /// The last record it has processed.
    pub lsn: Lsn,
    /// Records it has not; 0 beyond the end.
    pub lag_records: u64,
}

/// What a segment file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SegmentState {
    /// Complete.
    Sealed,
    /// Complete; recovery sealed it over a torn write.
    Torn,
    /// Being written when the log was last open.
    Open,
    /// Empty, waiting to be written.
    Prepared,
    /// Something is wrong with it.
    Damaged,
}

impl SegmentState {
    /// In one word, lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            SegmentState::Sealed => "sealed",
            SegmentState::Torn => "torn",
            SegmentState::Open => "open",
            SegmentState::Prepared => "prepared",
            SegmentState::Damaged => "damaged",
        }
    }
}

/// A segment file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// Its number: first position divided by the segment size.
    pub number: u64,
    /// The file.
    pub path: PathBuf,
    /// What it is.
    pub state: SegmentState,
    /// First and last record in it, as far as nothing is damaged.
    pub lsns: Option<(Lsn, Lsn)>,
    /// Records in it, as far as nothing is damaged.
    pub records: u64,
    /// Time of its first and last block.
    pub times: Option<(SystemTime, SystemTime)>,
    /// Bytes up to the end of its last block, header page included.
    pub used_bytes: u64,
    /// Entries in its index.
    pub index_entries: u64,
}

impl SegmentInfo {
    fn new(number: u64, path: PathBuf, state: SegmentState) -> SegmentInfo {
        SegmentInfo {
            number,
            path,
            state,
            lsns: None,
            records: 0,
            times: None,
            used_bytes: 0,
            index_entries: 0,
        }
    }

    pub(super) fn unreadable(number: u64, path: PathBuf) -> SegmentInfo {
        SegmentInfo::new(number, path, SegmentState::Damaged)
    }

    pub(super) fn damaged(found: &Found) -> SegmentInfo {
        SegmentInfo::new(found.number, found.path.clone(), SegmentState::Damaged)
    }

    pub(super) fn prepared(found: &Found) -> SegmentInfo {
        SegmentInfo::new(found.number, found.path.clone(), SegmentState::Prepared)
    }

    pub(super) fn open(found: &Found) -> SegmentInfo {
        SegmentInfo::new(found.number, found.path.clone(), SegmentState::Open)
    }

    pub(super) fn sealed(found: &Found, footer: &Footer, used_bytes: u64) -> SegmentInfo {
        let state = if footer.torn { SegmentState::Torn } else { SegmentState::Sealed };
        SegmentInfo::new(found.number, found.path.clone(), state).with(footer, used_bytes)
    }

    pub(super) fn holding(self, checked: &Checked) -> SegmentInfo {
        self.with(&checked.index.finish(false), checked.end)
    }

    fn with(mut self, footer: &Footer, used_bytes: u64) -> SegmentInfo {
        let lsns = (Lsn::new(footer.first_lsn), Lsn::new(footer.last_lsn));
        self.lsns = (footer.records > 0).then_some(lsns);
        self.records = footer.records;
        let times = (time(footer.first_time_nanos), time(footer.last_time_nanos));
        self.times = (footer.first_time_nanos > 0).then_some(times);
        self.used_bytes = used_bytes;
        self.index_entries = footer.index.len() as u64;
        self
    }
}

pub(super) fn time(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}

impl LogDir {
    /// The log at a glance. Believes the footers of sealed segments.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if something cannot be read.
    pub fn info(&self) -> Result<Info> {
        let scan = self.scan(Depth::Footers)?;
        let side = self.side(scan.end_lsn())?;
        let files = scan.segments.len() as u64;
        let Scan { first_lsn, next_lsn, .. } = scan;
        let mut findings = scan.findings;
        findings.extend(side.findings);
        Ok(Info {
            log_id: self.meta.log_id.to_string(),
            format_version: FORMAT_VERSION,
            generation: self.meta.generation,
            slab_bytes: self.meta.slab_bytes,
            segment_bytes: self.meta.segment_bytes,
            first_lsn: Lsn::new(first_lsn),
            last_lsn: Lsn::new(next_lsn).previous(),
            records: next_lsn - first_lsn,
            segments: files,
            bytes: files * self.meta.segment_bytes,
            clean: !scan.unvouched && scan.torn_bytes == 0 && findings.is_empty(),
            torn_bytes: scan.torn_bytes,
            checkpoints: side
                .checkpoints
                .into_iter()
                .map(|entry| Checkpoint {
                    name: entry.name,
                    lsn: Lsn::new(entry.lsn),
                    lag_records: (next_lsn - 1).saturating_sub(entry.lsn),
                })
                .collect(),
            findings,
        })
    }

    /// The segments in order, and what is wrong with them as far as headers, footers and the newest
    /// segment tell.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if something cannot be read.
    pub fn segments(&self) -> Result<(Vec<SegmentInfo>, Vec<Error>)> {
        let scan = self.scan(Depth::Footers)?;
        Ok((scan.segments, scan.findings))
    }
}
