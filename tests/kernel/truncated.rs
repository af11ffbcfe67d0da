//! Segments that somebody truncates or unlinks while they are read. Each case has a process of its
//! own, which must not die.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use eventplane::testing::{Force, ManualClock};
use eventplane::{Backend, Builder, Bus, Durability, ErrorKind, ReadMode, Reader, Reason, Start};

use super::rerun::{case_of, in_child, passes_in_child};
use super::{LONG, proof};

const ROW: &str = "truncated_mapping";
const KIB: u64 = 1 << 10;
const SEGMENT: u64 = 1024 * KIB;
const READAHEAD: u64 = 64 * KIB;
/// Eight records are a block of 64 KiB.
const PAYLOAD: usize = 8_000;
const RECORDS: u64 = 5 * SEGMENT / 2 / (8 * KIB);

fn builder(mode: ReadMode, io_uring: bool, readahead_bytes: u64) -> Builder {
    Bus::builder()
        .slab_bytes(128 * KIB)
        .segment_bytes(SEGMENT)
        .ring_bytes(2 * SEGMENT)
        .catchup_window_bytes(1 << 40)
        .readahead_bytes(readahead_bytes)
        .durability(Durability::Deferred { interval: LONG, bytes: 1 << 30 })
        .cold_bytes_per_second(None)
        .read_mode(mode)
        .backend(if io_uring { Backend::IoUring } else { Backend::Psync })
}

/// What the record with this key holds.
fn payload(key: u64) -> Vec<u8> {
    (0..PAYLOAD)
        .map(|i| (key as usize * 31 + i) as u8 | 1)
        .collect()
}

fn first_segment(dir: &Path) -> PathBuf {
    dir.join("segments").join(format!("{:020}.log", 0))
}

fn truncate(path: &Path, bytes: u64) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
}

struct Scene {
    bus: Bus,
    reader: Reader,
    clock: ManualClock,
    next: u64,
}

impl Scene {
    fn new(dir: &Path, builder: Builder) -> Scene {
        let clock = ManualClock::default();
        let bus = builder.manual(&clock).open(dir).unwrap();
        let writer = bus.writer();
        for key in 0..RECORDS {
            writer.append(0, key, &payload(key)).unwrap();
        }
        bus.sync().unwrap();
        bus.drive().unwrap();
        let reader = bus.reader(Start::Earliest).unwrap();
        bus.force(&reader.status().name, Force::CatchUp, Reason::Lapped);
        Scene { bus, reader, clock, next: 0 }
    }

    /// Reads on to this record, or to an error.
    fn read_to(&mut self, end: u64) -> eventplane::Result<()> {
        while self.next < end {
            match self.reader.try_next()? {
                Some(record) => {
                    assert_eq!(record.key(), self.next, "in order, and every one");
                    assert!(record.payload() == payload(self.next), "as it was written");
                    self.next += 1;
                }
                // It tries again later.
                None => self.clock.advance(Duration::from_secs(1)),
            }
        }
        Ok(())
    }
}

fn run(case: &str) {
    let [mode, io_uring, after, left, readahead] = case.split(' ').collect::<Vec<_>>()[..] else {
        panic!("no case: {case}")
    };
    let mode = if mode == "map" { ReadMode::Map } else { ReadMode::Pread };
    let dir = tempfile::tempdir().unwrap();
    let builder = builder(mode, io_uring == "true", readahead.parse().unwrap());
    let mut scene = Scene::new(dir.path(), builder);
    scene.read_to(after.parse().unwrap()).unwrap();
    let path = first_segment(dir.path());
    if left == "unlinked" {
        // It is served to its end, and what follows, too.
        fs::remove_file(&path).unwrap();
        scene.read_to(100).unwrap();
        return;
    }
    truncate(&path, left.parse().unwrap());
    let error = scene.read_to(RECORDS).expect_err("the rest is gone");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert_eq!(
        (error.segment(), error.path()),
        (Some(0), Some(&*path)),
        "{error:?}"
    );
    // The log itself goes on.
    scene
        .bus
        .writer()
        .append(0, RECORDS, &payload(RECORDS))
        .unwrap();
}

/// Read mode, how much is read before, what is left then.
fn cases() -> Vec<(&'static str, u64, String)> {
    let mut cases = Vec::new();
    for after in [0, 1, 3, 40, 100] {
        for left in [0, 5_000, 4 * KIB, 300 * KIB, 512 * KIB, SEGMENT - 64 * KIB] {
            cases.push(("pread", after, left.to_string()));
            // A mapping promises an error for what was not populated before: read-ahead is in
            // steps, of which the next may have been taken.
            if left >= (after + 8) * 8 * KIB + 3 * READAHEAD {
                cases.push(("map", after, left.to_string()));
            }
        }
        if after > 0 {
            cases.push(("pread", after, "unlinked".to_owned()));
            cases.push(("map", after, "unlinked".to_owned()));
        }
    }
    cases
}

#[test]
fn a_segment_that_shrinks_is_an_error_and_not_death() {
    const NAME: &str = "truncated::a_segment_that_shrinks_is_an_error_and_not_death";
    if let Some(case) = case_of(NAME) {
        return run(&case);
    }
    let wanted = proof::cases(ROW, 8);
    let all: Vec<String> = [true, false]
        .iter()
        .flat_map(|io_uring| {
            let case =
                move |(mode, after, left)| format!("{mode} {io_uring} {after} {left} {READAHEAD}");
            cases().into_iter().map(case)
        })
        .collect();
    let mut executed = 0;
    for case in all
        .iter()
        .step_by((all.len() as u64 / wanted.clamp(1, all.len() as u64)) as usize)
    {
        passes_in_child(NAME, case);
        executed += 1;
    }
    // The control: what was populated and is truncated then is death, the limit of a mapping; that
    // is seen. A piece of the read-ahead, an eighth, is of several slabs here, and a batch never of
    // more than one.
    let (child, text) = in_child(NAME, &format!("map true 3 0 {}", 8 * 512 * KIB));
    assert_eq!(
        child.status.signal(),
        Some(libc::SIGBUS),
        "{}\n{text}",
        child.status
    );
    proof::executed(ROW, executed);
}
