//! Damage to a log that nobody has open: to blocks that were acknowledged, and to what is beside
//! them.

use std::collections::BTreeMap;
use std::ops::{Not as _, RangeInclusive};
use std::path::PathBuf;

use eventplane::offline::LogDir;
use eventplane::testing::{Bug, ManualClock, SimDisk, plant};
use eventplane::{Bus, ErrorKind, Start};
use fastrand::Rng;

use crate::blocks::{Block, blocks};
use crate::history::finished;
use crate::ledger::Ledger;
use crate::life::{DIR, builder};

/// How often one log is damaged.
const DAMAGES: u64 = 60;

#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Found {
    /// A later block or watermark vouches for what was damaged. All are detected.
    pub(crate) vouched: u64,
    /// Acknowledged, but nothing later says so: detected, or taken for a tear.
    pub(crate) unvouched_detected: u64,
    pub(crate) unvouched_silent: u64,
    /// Damage to headers, footers, `meta` and checkpoints: detected, or nothing is lost by it.
    pub(crate) beside_detected: u64,
    pub(crate) beside_harmless: u64,
}

impl Found {
    pub(crate) fn add(&mut self, other: &Found) {
        self.vouched += other.vouched;
        self.unvouched_detected += other.unvouched_detected;
        self.unvouched_silent += other.unvouched_silent;
        self.beside_detected += other.beside_detected;
        self.beside_harmless += other.beside_harmless;
    }
}

/// What became of damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// An error, on opening or on reading.
    Detected,
    /// No error, and something acknowledged is not there.
    Silent,
    /// Everything acknowledged was read.
    Harmless,
}

/// The log of a seed, damaged again and again.
pub(crate) fn damages(seed: u64, bug: Option<Bug>) -> Result<Found, String> {
    let (disk, ledger) = finished(seed)?;
    let bus = builder(&disk.copy(), &ManualClock::default()).open(DIR);
    let first = bus.map_err(|e| format!("refused: {e:?}"))?.first_lsn().get();
    let log = Log::read(&disk, first..=ledger.acked);
    let mut rng = Rng::with_seed(!seed);
    let mut found = Found::default();
    for i in 0..DAMAGES {
        let damaged = disk.copy();
        let Some((what, target)) = log.damage(&damaged, &mut rng) else { continue };
        plant(bug);
        let outcome = outcome(&damaged, &ledger, &mut rng);
        plant(None);
        let fail = |why: &str| Err(format!("seed {seed}, damage {i}, {what}: {why}"));
        match (target, outcome) {
            (_, Err(why)) => return fail(&why),
            (Target::Vouched, Ok(Outcome::Detected)) => found.vouched += 1,
            (Target::Vouched, Ok(other)) => return fail(&format!("not detected, {other:?}")),
            (Target::Unvouched, Ok(Outcome::Detected)) => found.unvouched_detected += 1,
            (Target::Unvouched, Ok(Outcome::Silent)) => found.unvouched_silent += 1,
            (Target::Unvouched, Ok(Outcome::Harmless)) => return fail("not detected"),
            (Target::Beside, Ok(Outcome::Detected)) => found.beside_detected += 1,
            (Target::Beside, Ok(Outcome::Harmless)) => found.beside_harmless += 1,
            (Target::Beside, Ok(Outcome::Silent)) => return fail("records are lost in silence"),
        }
    }
    Ok(found)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Vouched,
    Unvouched,
    Beside,
}

/// A log as it lies on the disk.
struct Log {
    segments: Vec<(PathBuf, Vec<u8>)>,
    /// Acknowledged blocks with records: segment, block, whether a later block vouches for it.
    blocks: Vec<(usize, Block, bool)>,
}

impl Log {
    /// `promised`: the LSNs that are kept and acknowledged.
    fn read(disk: &SimDisk, promised: RangeInclusive<u64>) -> Log {
        let paths = disk.files().into_keys();
        let segments: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .map(|path| (path.clone(), disk.read(&path)))
            .collect();
        let mut all = Vec::new();
        for (segment, (path, bytes)) in segments.iter().enumerate() {
            let start = path.file_stem().and_then(|s| s.to_str()?.parse().ok()).unwrap();
            all.extend(blocks(bytes, start).into_iter().map(|block| (segment, block)));
        }
        let watermark = all.iter().map(|(_, block)| block.watermark).max().unwrap_or(0);
        let is_promised = |block: &Block| {
            let last = block.first_lsn + u64::from(block.records) - 1;
            block.records > 0 && promised.contains(&block.first_lsn) && promised.contains(&last)
        };
        let blocks = all
            .into_iter()
            .filter(|(_, block)| is_promised(block))
            .map(|(segment, block)| (segment, block, watermark > block.position))
            .collect();
        Log { segments, blocks }
    }

    /// Damages something, and says what. `None` if that changed no byte.
    fn damage(&self, disk: &SimDisk, rng: &mut Rng) -> Option<(String, Target)> {
        if rng.u8(0..6) == 0 {
            return self.damage_beside(disk, rng);
        }
        if self.blocks.is_empty() {
            return None;
        }
        // What nothing vouches for is rare, and the interesting part.
        let unvouched: Vec<_> = self.blocks.iter().filter(|(.., vouched)| !vouched).collect();
        let (segment, block, vouched) = if unvouched.is_empty() || rng.u8(0..4) > 0 {
            self.blocks[rng.usize(0..self.blocks.len())]
        } else {
            *unvouched[rng.usize(0..unvouched.len())]
        };
        let kind = self.damage_block(disk, (segment, &block), rng)?;
        let place = format!("{kind} in segment file {segment}, {block:?}");
        Some((place, if vouched { Target::Vouched } else { Target::Unvouched }))
    }

    fn damage_block(
        &self,
        disk: &SimDisk,
        (segment, block): (usize, &Block),
        rng: &mut Rng,
    ) -> Option<&'static str> {
        let (path, bytes) = &self.segments[segment];
        let framed = &bytes[block.offset..block.framed_end];
        let sector = block.offset + rng.usize(0..framed.len().div_ceil(512)) * 512;
        let sector_end = (sector + 512).min(block.framed_end);
        let (kind, at, new): (_, usize, Vec<u8>) = match rng.u8(0..9) {
            0 | 1 => {
                let at = rng.usize(block.offset..block.framed_end);
                ("a bit flips", at, vec![bytes[at] ^ (1 << rng.u8(0..8))])
            }
            2 => ("a sector is zeroed", sector, vec![0; sector_end - sector]),
            3 => ("the block was never written", block.offset, vec![0; framed.len()]),
            4 => {
                let mut garbage = vec![0; sector_end - sector];
                rng.fill(&mut garbage);
                ("a sector holds garbage", sector, garbage)
            }
            5 | 6 => {
                let (_, from) = &self.segments[rng.usize(0..self.segments.len())];
                let page = rng.usize(0..from.len() / 4096) * 4096;
                let len = 4096.min(block.framed_end - block.offset);
                (
                    "a page of elsewhere was written",
                    block.offset,
                    from[page..page + len].to_vec(),
                )
            }
            7 => {
                disk.truncate(path, rng.u64(block.offset as u64..block.framed_end as u64));
                return Some("the file is cut");
            }
            _ => {
                let (other, theirs) = &self.segments[rng.usize(0..self.segments.len())];
                if other == path {
                    disk.lose(path);
                    return Some("the file is gone");
                }
                disk.patch(path, 0, theirs);
                disk.patch(other, 0, bytes);
                return Some("two files are swapped");
            }
        };
        if bytes[at..at + new.len()] == new[..] {
            return None;
        }
        disk.patch(path, at as u64, &new);
        Some(kind)
    }

    /// Bytes of a file that hold no records.
    fn damage_beside(&self, disk: &SimDisk, rng: &mut Rng) -> Option<(String, Target)> {
        let (path, from, to) = match rng.u8(0..4) {
            0 => (PathBuf::from(DIR).join("meta"), 0, 8192),
            1 => (PathBuf::from(DIR).join("checkpoints"), 0, 1 << 20),
            2 => (self.segments[rng.usize(0..self.segments.len())].0.clone(), 0, 96),
            _ => {
                let (path, bytes) = &self.segments[rng.usize(0..self.segments.len())];
                (path.clone(), bytes.len() - 4096, bytes.len())
            }
        };
        let bytes = disk.read(&path);
        let to = to.min(bytes.len());
        let at = (from < to).then(|| rng.usize(from..to))?;
        let len = rng.usize(1..64).min(to - at);
        let new: Vec<u8> = match rng.u8(0..3) {
            0 => vec![bytes[at] ^ (1 << rng.u8(0..8))],
            1 => vec![0; len],
            _ => (0..len).map(|_| rng.u8(..)).collect(),
        };
        if bytes[at..at + new.len()] == new[..] {
            return None;
        }
        disk.patch(&path, at as u64, &new);
        Some((
            format!("{} bytes at {at} of {}", new.len(), path.display()),
            Target::Beside,
        ))
    }
}

/// Opens and reads. An error here is worse than silence: wrong data, or a changed disk.
fn outcome(disk: &SimDisk, ledger: &Ledger, rng: &mut Rng) -> Result<Outcome, String> {
    let findings = (rng.u8(0..8) == 0).then(|| verify(disk));
    let before = (rng.u8(0..8) == 0).then(|| contents(disk));
    let outcome = match builder(disk, &ManualClock::default()).open(DIR) {
        Ok(bus) => read(&bus, ledger)?,
        Err(error) => {
            let kinds = [
                ErrorKind::Corrupt,
                ErrorKind::MissingSegment,
                ErrorKind::ForeignSegment,
                ErrorKind::NotALog,
                ErrorKind::Unsupported,
            ];
            if !kinds.contains(&error.kind()) || error.path().is_none() {
                return Err(format!("a vague error: {error:?}"));
            }
            if before.is_some_and(|before| before != contents(disk)) {
                return Err("refusing has changed the disk".to_owned());
            }
            Outcome::Detected
        }
    };
    if findings == Some(false) && outcome == Outcome::Detected {
        return Err("`verify` finds nothing".to_owned());
    }
    Ok(outcome)
}

fn read(bus: &Bus, ledger: &Ledger) -> Result<Outcome, String> {
    let mut next = bus.first_lsn().get();
    if next > 1 && !ledger.deletes.something {
        return Ok(Outcome::Silent);
    }
    let Ok(mut reader) = bus.reader(Start::Earliest) else { return Ok(Outcome::Detected) };
    loop {
        match reader.try_next() {
            Err(_) => return Ok(Outcome::Detected),
            Ok(None) => break,
            Ok(Some(record)) => {
                let lsn = record.lsn().get();
                if lsn != next {
                    return Err(format!("LSN {lsn} was delivered in place of {next}"));
                }
                ledger.compare(lsn, record.kind(), record.key(), record.payload())?;
                next += 1;
            }
        }
    }
    Ok(if next > ledger.acked { Outcome::Harmless } else { Outcome::Silent })
}

/// Whether the offline tool finds anything.
fn verify(disk: &SimDisk) -> bool {
    let report = LogDir::simulated(&disk.copy(), DIR).and_then(|log| log.verify());
    report.is_ok_and(|report| report.findings.is_empty()).not()
}

fn contents(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = disk.files().into_keys().filter(|path| !path.ends_with("LOCK"));
    files.map(|path| (path.clone(), disk.read(&path))).collect()
}
