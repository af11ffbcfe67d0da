//! A repair that stops anywhere is finished by the next one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LogDir;
use crate::bus::{Builder, Bus};
use crate::consumer::Start;
use crate::disk::{Backend, Disk, Fault, Faults, FaultyDisk, Op, RealDisk};
use crate::lsn::Lsn;

const SLAB_BYTES: u64 = 64 << 10;
const SEGMENT_BYTES: u64 = 128 << 10;
const RECORDS: u64 = 24;

fn builder() -> Builder {
    Bus::builder()
        .slab_bytes(SLAB_BYTES)
        .segment_bytes(SEGMENT_BYTES)
        .ring_bytes(4 * SEGMENT_BYTES)
        .pin_budget_bytes(4 * SEGMENT_BYTES)
        .catchup_window_bytes(16 * SEGMENT_BYTES)
}

fn segment(dir: &Path, number: u64) -> PathBuf {
    dir.join("segments").join(format!("{:020}.log", number * SEGMENT_BYTES))
}

/// Records of 20 KB: five a segment, three of them in its first slab.
fn make(dir: &Path) {
    let bus = builder().open(dir).unwrap();
    for lsn in 1..=RECORDS {
        bus.writer().append(1, lsn, &[lsn as u8; 20_000]).unwrap();
    }
    bus.close().unwrap();
}

fn keys(dir: &Path) -> Vec<u64> {
    let bus = builder().open(dir).unwrap();
    let mut reader = bus.reader(Start::Earliest).unwrap();
    let mut keys = Vec::new();
    while let Some(record) = reader.try_next().unwrap() {
        keys.push(record.key());
    }
    drop(reader);
    bus.close().unwrap();
    keys
}

fn open(dir: &Path, faults: &Faults) -> LogDir {
    let real = RealDisk::new(Backend::Psync, false).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::new(Arc::new(real), faults.clone()));
    LogDir::open_on(disk, dir).unwrap()
}

/// Damages a fresh log, lets the nth call of `op` fail for ever, repairs again without faults.
/// Returns whether the first repair got through.
fn interrupted(damage: fn(&Path), op: Op, nth: u64, kept: &[u64]) -> bool {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    make(dir);
    damage(dir);
    let faults = Faults::new();
    let mut log = open(dir, &faults);
    faults.inject(Fault::errno(op, libc::EIO).nth(nth).forever());
    let through = log.repair().is_ok();
    drop(log);
    let mut log = open(dir, &Faults::new());
    let again = log.repair().unwrap_or_else(|e| panic!("after {op:?} {nth}: {e}"));
    assert!(again.last_lsn == Lsn::new(*kept.last().unwrap()), "{op:?} {nth}: {again:?}");
    let report = log.verify().unwrap();
    assert!(report.findings.is_empty(), "{op:?} {nth}: {:?}", report.findings);
    assert!(
        log.meta.generation > 0,
        "{op:?} {nth}: checkpoints of the longer log would be believed"
    );
    drop(log);
    assert_eq!(keys(dir), kept, "{op:?} {nth}");
    through
}

fn every_interruption(damage: fn(&Path), kept: &[u64]) {
    for op in [Op::Write, Op::Sync, Op::SyncDir, Op::Rename, Op::Create] {
        let mut nth = 1;
        while !interrupted(damage, op, nth, kept) {
            nth += 1;
        }
        assert!(nth > 1, "{op:?} was not interrupted");
    }
}

fn flip_in_segment_2(dir: &Path) {
    let path = segment(dir, 2);
    let mut image = fs::read(&path).unwrap();
    // The first block of the second slab, and the segment's fourth.
    image[SLAB_BYTES as usize + 1000] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, image).unwrap();
}

/// All that says that the segment went on is in the segments behind it.
fn lose_the_end_of_segment_2(dir: &Path) {
    let path = segment(dir, 2);
    let mut image = fs::read(&path).unwrap();
    // The second of the two blocks in the last slab, of five pages each, and all behind it.
    image[SLAB_BYTES as usize + 5 * 4096..].fill(0);
    fs::remove_file(&path).unwrap();
    fs::write(&path, image).unwrap();
}

fn damage_the_header_of_segment_2(dir: &Path) {
    let path = segment(dir, 2);
    let mut image = fs::read(&path).unwrap();
    image[50] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, image).unwrap();
}

fn remove_segment_2(dir: &Path) {
    fs::remove_file(segment(dir, 2)).unwrap();
}

#[test]
fn a_cut_inside_a_segment_survives_every_interruption() {
    every_interruption(flip_in_segment_2, &(1..=13).collect::<Vec<_>>());
}

#[test]
fn a_cut_at_a_missing_segment_survives_every_interruption() {
    every_interruption(remove_segment_2, &(1..=10).collect::<Vec<_>>());
}

#[test]
fn a_cut_before_a_lost_end_survives_every_interruption() {
    every_interruption(lose_the_end_of_segment_2, &(1..=14).collect::<Vec<_>>());
}

#[test]
fn a_cut_at_an_unreadable_segment_survives_every_interruption() {
    every_interruption(damage_the_header_of_segment_2, &(1..=10).collect::<Vec<_>>());
}
