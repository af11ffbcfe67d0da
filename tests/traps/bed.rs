//! A log in a temporary directory, and what is done to it behind its back.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use eventplane::testing::{Faults, Force, ManualClock};
use eventplane::{Backend, Builder, Bus, Error, ErrorKind, Lsn, Reader, Reason, Start, Writer};
use tempfile::TempDir;

pub(crate) const PAGE: usize = 4096;
pub(crate) const SLAB: u64 = 64 << 10;
pub(crate) const SEGMENT: u64 = 2 * SLAB;
pub(crate) const RING: u64 = 2 * SEGMENT;
/// For what must happen: far beyond what it takes.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Kind, key, payload. Its place in a model is its LSN - 1.
pub(crate) type Rec = (u16, u64, Vec<u8>);

/// Psync, and io_uring where the kernel has it.
pub(crate) fn backends() -> Vec<Backend> {
    let dir = tempfile::tempdir().unwrap();
    let uring = Bed::sized(Backend::IoUring, SLAB, SEGMENT)
        .builder()
        .open(dir.path());
    match uring.map(drop) {
        Ok(()) => vec![Backend::Psync, Backend::IoUring],
        Err(error) => {
            println!("SKIP io_uring: {error}");
            vec![Backend::Psync]
        }
    }
}

/// A directory, and how the log in it is opened.
pub(crate) struct Bed {
    dir: TempDir,
    pub(crate) backend: Backend,
    pub(crate) slab_bytes: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) faults: Faults,
    pub(crate) clock: ManualClock,
}

impl Bed {
    pub(crate) fn new(backend: Backend) -> Bed {
        Bed::sized(backend, SLAB, SEGMENT)
    }

    pub(crate) fn sized(backend: Backend, slab_bytes: u64, segment_bytes: u64) -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let (faults, clock) = (Faults::new(), ManualClock::default());
        Bed { dir, backend, slab_bytes, segment_bytes, faults, clock }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// With threads, the real clock and a real disk.
    pub(crate) fn builder(&self) -> Builder {
        Bus::builder()
            .slab_bytes(self.slab_bytes)
            .segment_bytes(self.segment_bytes)
            .ring_bytes(2 * self.segment_bytes)
            .pin_budget_bytes(16 * self.slab_bytes)
            .catchup_window_bytes(1 << 40)
            .readahead_bytes(64 << 10)
            .consumers_max(64)
            .cold_bytes_per_second(None)
            .lock_timeout(Duration::from_secs(2))
            .backend(self.backend)
    }

    pub(crate) fn open(&self) -> Bus {
        self.builder().open(self.path()).unwrap()
    }

    /// Without threads: nothing happens but what the test does.
    pub(crate) fn by_hand(&self) -> Bus {
        self.builder().manual(&self.clock).open(self.path()).unwrap()
    }

    /// What a crash at this moment would leave, in a directory of its own.
    pub(crate) fn image(&self) -> Bed {
        let image = Bed::sized(self.backend, self.slab_bytes, self.segment_bytes);
        for (name, bytes) in self.tree() {
            let path = image.path().join(name);
            match bytes {
                Some(bytes) => fs::write(path, bytes).unwrap(),
                None => fs::create_dir(path).unwrap(),
            }
        }
        image
    }

    /// Every file and directory but the lock, by name.
    pub(crate) fn tree(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        tree(self.path())
    }

    pub(crate) fn segment_path(&self, number: u64) -> PathBuf {
        let position = number * self.segment_bytes;
        self.path().join("segments").join(format!("{position:020}.log"))
    }

    pub(crate) fn segment(&self, number: u64) -> Vec<u8> {
        fs::read(self.segment_path(number)).unwrap()
    }

    /// Segment files there are, oldest first.
    pub(crate) fn segments(&self) -> Vec<u64> {
        let names = fs::read_dir(self.path().join("segments")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut numbers: Vec<u64> = names
            .filter_map(|name| name.strip_suffix(".log")?.parse::<u64>().ok())
            .map(|position| position / self.segment_bytes)
            .collect();
        numbers.sort_unstable();
        numbers
    }

    pub(crate) fn patch(&self, number: u64, offset: usize, bytes: &[u8]) {
        patch(&self.segment_path(number), offset, bytes);
    }

    pub(crate) fn flip(&self, number: u64, offset: usize) {
        self.patch(number, offset, &[self.segment(number)[offset] ^ 0x10]);
    }

    /// Opening fails with this kind, names `path`, and leaves every byte as it was.
    #[track_caller]
    pub(crate) fn refuses(&self, kind: ErrorKind, path: &Path) -> Error {
        let error = refuses(self.builder(), self.path(), kind);
        assert_eq!(error.path(), Some(path), "{error}");
        error
    }

    /// As `refuses`, naming a place in a segment.
    #[track_caller]
    pub(crate) fn refuses_at(&self, kind: ErrorKind, number: u64, offset: usize) -> Error {
        let error = self.refuses(kind, &self.segment_path(number));
        let place = (error.segment(), error.offset());
        assert_eq!(place, (Some(number), Some(offset as u64)), "{error}");
        error
    }
}

#[track_caller]
pub(crate) fn refuses(builder: Builder, dir: &Path, kind: ErrorKind) -> Error {
    let before = tree(dir);
    let error = builder.open(dir).map(drop).expect_err("opening must fail");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(
        tree(dir) == before,
        "a refusal changed something on disk: {error:?}"
    );
    error
}

/// Every file and directory below `root` but the lock: its bytes, `None` for a directory.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.strip_prefix(root).unwrap().to_owned();
            if path.is_dir() {
                found.insert(name, None);
                dirs.push(path);
            } else if name != Path::new("LOCK") {
                // The preparer may rename its temporary file meanwhile.
                found.extend(fs::read(&path).map(|bytes| (name, Some(bytes))));
            }
        }
    }
    found
}

/// Changes bytes of a file, sealed or not.
pub(crate) fn patch(path: &Path, offset: usize, bytes: &[u8]) {
    let mut file = fs::read(path).unwrap();
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    replace(path, &file);
}

/// Puts another file in its place.
pub(crate) fn replace(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A record without zero bytes, so that no sector of it is zero, and unlike every other.
pub(crate) fn record(seed: u64, payload_bytes: usize) -> Rec {
    let mix = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let byte = |i: usize| (mix.rotate_left(i as u32 * 7) as u8).wrapping_add(i as u8) | 1;
    (mix as u16, seed, (0..payload_bytes).map(byte).collect())
}

/// Commits a record and notes it.
pub(crate) fn commit(writer: &Writer, model: &mut Vec<Rec>, payload_bytes: usize) -> Lsn {
    let (kind, key, payload) = record(model.len() as u64, payload_bytes);
    let lsn = writer.append(kind, key, &payload).unwrap();
    model.push((kind, key, payload));
    assert_eq!(lsn.get(), model.len() as u64);
    lsn
}

/// Commits records until segment `number` has its first block.
pub(crate) fn fill_to(
    bed: &Bed,
    bus: &Bus,
    model: &mut Vec<Rec>,
    number: u64,
    payload_bytes: usize,
) {
    let writer = bus.writer();
    let begun = |bed: &Bed| {
        let file = fs::read(bed.segment_path(number)).unwrap_or_default();
        file.get(PAGE..PAGE + 4).is_some_and(|magic| magic == b"EVBK")
    };
    while !begun(bed) {
        commit(&writer, model, payload_bytes);
    }
    // Without threads: what is complete is sealed.
    bus.drive().unwrap();
}

/// Where a reader's bytes come from, where there is a choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    Hot,
    CatchUp,
    Cold,
}

pub(crate) const VIAS: [Via; 3] = [Via::Hot, Via::CatchUp, Via::Cold];

/// A reader from the first record on, sent where it is to read from. For a bus by hand.
pub(crate) fn reader(bus: &Bus, via: Via) -> Reader {
    let reader = bus.reader(Start::Earliest).unwrap();
    let name = reader.status().name;
    match via {
        Via::Hot => {}
        Via::CatchUp => bus.force(&name, Force::CatchUp, Reason::Lapped),
        Via::Cold => bus.force(&name, Force::Replaying, Reason::Admitted),
    }
    reader
}

/// Reads to the end, or to the first error; LSNs without a gap.
pub(crate) fn read_to_end(
    bus: &Bus,
    reader: &mut Reader,
    clock: &ManualClock,
) -> (Vec<Rec>, Option<Error>) {
    let mut records = Vec::new();
    let mut next = None;
    loop {
        match reader.try_next() {
            Ok(Some(record)) => {
                assert_eq!(record.lsn(), next.unwrap_or(record.lsn()));
                next = Some(record.lsn().next());
                records.push((record.kind(), record.key(), record.payload().to_vec()));
            }
            Ok(None) if reader.status().lsn == bus.committed_lsn() => return (records, None),
            // It retries later, for instance after a failed read.
            Ok(None) => clock.advance(Duration::from_secs(1)),
            Err(error) => return (records, Some(error)),
        }
    }
}

/// The log holds exactly `model`, whichever way it is read.
#[track_caller]
pub(crate) fn holds(bed: &Bed, bus: &Bus, model: &[Rec]) {
    assert_eq!(bus.committed_lsn().get(), model.len() as u64);
    for via in VIAS {
        let (records, error) = read_to_end(bus, &mut reader(bus, via), &bed.clock);
        assert!(error.is_none(), "{via:?}: {error:?}");
        assert!(
            records == model,
            "{via:?}: {} records of {}",
            records.len(),
            model.len()
        );
    }
}

/// Opens the log by hand, finds exactly `model`, and that the next LSN is the one behind it.
#[track_caller]
pub(crate) fn reopens(bed: &Bed, model: &mut Vec<Rec>) {
    let bus = bed.by_hand();
    assert_eq!(bus.recovery().last_lsn.get(), model.len() as u64);
    holds(bed, &bus, model);
    commit(&bus.writer(), model, 77);
    bus.close().unwrap();
}

/// Looks until it is so.
#[track_caller]
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const CHILD: &str = "EVENTPLANE_TEST_CHILD";

/// The argument of the child process that this is, if `test` was started by `in_child`.
pub(crate) fn child_of(test: &str) -> Option<OsString> {
    std::env::var(CHILD).is_ok_and(|name| name == test).then(|| {
        let argument = std::env::var_os("EVENTPLANE_TEST_ARGUMENT");
        argument.expect("set together with the name")
    })
}

/// Runs the test again in a process of its own, where `child_of(test)` is the argument. What it
/// does to limits, users or its own life is its own affair.
#[track_caller]
pub(crate) fn in_child(test: &str, argument: impl Into<OsString>) -> String {
    let room = tempfile::tempdir().unwrap();
    set_mode(room.path(), 0o777);
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .env("EVENTPLANE_TEST_ARGUMENT", argument.into())
        .env("TMPDIR", room.path())
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr)
    );
    assert!(
        child.status.success(),
        "{test} in a child: {}\n{text}",
        child.status
    );
    assert!(text.contains("1 passed"), "no such test: {test}\n{text}");
    text
}

pub(crate) fn backend_name(backend: Backend) -> &'static str {
    match backend {
        Backend::IoUring => "io_uring",
        _ => "psync",
    }
}

pub(crate) fn backend_of(name: &OsString) -> Backend {
    if name == "io_uring" { Backend::IoUring } else { Backend::Psync }
}
