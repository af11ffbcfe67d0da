//! The log as a whole, from `open_log` to what readers see, against a `Vec` as its model.

mod ahead;
mod append;
mod damage;
mod deferred;
mod failure;
mod recovery;
mod retention;
mod sharing;
mod supply;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tempfile::TempDir;

use super::*;
use crate::disk::{Backend, Disk, Faults, FaultyDisk, RealDisk};
use crate::format::PAGE_BYTES;
use crate::options::ReadMode;
use crate::source::{
    CatchUp, Cold, Cursor, Fetch, Hot, PageLimits, Replay, RunIter, Select, Window, scan,
};

const SLAB: u64 = 64 << 10;
const PAGE: usize = PAGE_BYTES as usize;

/// Kind, key, payload. Its place in the model is its LSN - 1.
type Record = (u16, u64, Vec<u8>);

/// A directory, and how the log in it is opened.
struct Bed {
    dir: TempDir,
    options: Options,
    faults: Faults,
    threads: bool,
    clock: Clock,
}

impl Bed {
    /// Segments of so many slabs, a ring of so many segments.
    fn new(slabs: u64, segments: u64, threads: bool) -> Bed {
        let segment_bytes = slabs * SLAB;
        let ring_bytes = segments * segment_bytes;
        let options = Options {
            slab_bytes: SLAB,
            segment_bytes,
            ring_bytes,
            pin_budget_bytes: 4 * SLAB,
            catchup_window_bytes: 2 * ring_bytes,
            readahead_bytes: SLAB,
            consumers_max: 8,
            backend: Backend::Psync,
            append_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(1),
            ..Options::default()
        };
        let dir = tempfile::tempdir().unwrap();
        Bed { dir, options, faults: Faults::new(), threads, clock: Clock::system() }
    }

    fn uring(mut self) -> Bed {
        self.options.backend = Backend::Auto;
        self
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn geometry(&self) -> Geometry {
        self.options.validate_durable().unwrap()
    }

    fn try_open(&self) -> Result<Rig> {
        let real: Arc<dyn Disk> =
            Arc::new(RealDisk::new(self.options.backend, self.options.direct_io).unwrap());
        // With faults everything goes through `write_at`; io_uring is for the disk as it is.
        let disk: Arc<dyn Disk> = match self.options.backend {
            Backend::Psync => Arc::new(FaultyDisk::new(real, self.faults.clone())),
            _ => real,
        };
        let geometry = self.geometry();
        let opened = open_log(disk, self.path(), &self.options, geometry, &self.clock, |_| Ok(()))?;
        let Opened { files, ring, segments, committer, offset, next_lsn, recovery } = opened;
        let log = Arc::new(Log::new(
            &self.options,
            geometry,
            ring,
            self.clock.clone(),
            Some((Arc::clone(&segments), committer)),
            (offset, next_lsn),
            self.threads,
        )?);
        let mut rig = Rig { log, segments, files: Arc::new(files), recovery, running: None };
        if self.threads {
            rig.start();
        }
        Ok(rig)
    }

    fn open(&self) -> Rig {
        self.try_open().unwrap()
    }

    fn segment(&self, number: u64) -> PathBuf {
        segments::segment_path(self.path(), &self.geometry(), number)
    }

    fn segment_bytes(&self, number: u64) -> Vec<u8> {
        std::fs::read(self.segment(number)).unwrap()
    }

    /// Numbers of the segment files there are.
    fn listing(&self) -> Vec<u64> {
        let bytes = self.options.segment_bytes;
        let names = self.files().into_keys();
        names
            .filter_map(|n| n.strip_suffix(".log")?.parse::<u64>().ok())
            .map(|p| p / bytes)
            .collect()
    }

    /// Every file but the lock, by name.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for dir in [self.path().to_owned(), self.path().join("segments")] {
            for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let name = entry.file_name().into_string().unwrap();
                if entry.file_type().is_ok_and(|kind| kind.is_file()) && name != "LOCK" {
                    // The preparer may rename or remove its file meanwhile.
                    files.extend(std::fs::read(entry.path()).map(|bytes| (name, bytes)));
                }
            }
        }
        files
    }

    /// Changes the bytes of a segment file behind the log's back.
    fn patch(&self, number: u64, offset: usize, bytes: &[u8]) {
        let mut file = self.segment_bytes(number);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        let path = self.segment(number);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(path, file).unwrap();
    }

    fn flip(&self, number: u64, offset: usize) {
        let byte = self.segment_bytes(number)[offset] ^ 0x10;
        self.patch(number, offset, &[byte]);
    }

    /// Opening fails with this kind, and leaves every byte as it was.
    fn refuses(&self, kind: ErrorKind) -> Error {
        let before = self.files();
        let error = self.try_open().err().expect("opening must fail");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(self.files() == before, "a refusal changed files: {error}");
        error
    }
}

/// An open log.
struct Rig {
    log: Arc<Log>,
    segments: Arc<Segments>,
    files: Arc<crate::log::recovery::LogFiles>,
    recovery: Recovery,
    running: Option<Running>,
}

struct Running {
    stop: [Arc<AtomicBool>; 2],
    threads: [JoinHandle<()>; 2],
}

impl Rig {
    fn start(&mut self) {
        let stop = [Arc::default(), Arc::default()];
        let (log, stopped) = (Arc::clone(&self.log), Arc::clone(&stop[0]));
        let committer = std::thread::spawn(move || log.run_committer(&stopped));
        let (log, stopped) = (Arc::clone(&self.log), Arc::clone(&stop[1]));
        let segments = Arc::clone(&self.segments);
        let preparer = std::thread::spawn(move || segments.run(&log, &stopped));
        self.running = Some(Running { stop, threads: [committer, preparer] });
    }

    fn writer(&self) -> Writer {
        Writer::new(Arc::clone(&self.log))
    }

    fn join(&mut self) {
        let Some(Running { stop, threads: [committer, preparer] }) = self.running.take() else {
            return;
        };
        stop[0].store(true, Ordering::Release);
        self.log.kick();
        committer.join().unwrap();
        stop[1].store(true, Ordering::Release);
        self.segments.kick();
        preparer.join().unwrap();
    }

    fn close(mut self) {
        self.log.refuse(Error::new(ErrorKind::Closed, "closed"));
        if self.running.is_some() {
            self.join();
        } else {
            self.log.finish();
            self.segments.step(&self.log);
        }
    }

    /// As after a SIGKILL: nothing more is written, no watermark, no seal.
    fn kill(self) {
        drop(self);
    }

    /// Waits until nothing is left to seal.
    fn settle(&self) {
        let active = self.log.geometry.segment_of(self.log.ring.committed.load().position());
        while self.segments.active() < active && self.log.poisoned().is_none() {
            if self.running.is_none() {
                self.segments.step(&self.log);
            }
            std::thread::yield_now();
        }
    }

    fn replay(&self) -> Replay {
        let log = &self.log;
        let cold = Cold::new(log.clock.clone(), 2, None, log.block_bytes_max);
        let catalogue = Arc::clone(self.segments.catalogue());
        let mode = (ReadMode::Map, SLAB);
        Replay::new(catalogue, Arc::clone(self.segments.disk()), log.geometry, mode, cold)
    }

    /// Every record from the first one kept, by way of `tier` where there is a choice.
    fn read(&self, tier: Tier) -> Vec<Record> {
        self.try_read(tier).unwrap()
    }

    fn try_read(&self, tier: Tier) -> Result<Vec<Record>> {
        let (log, replay) = (&self.log, self.replay());
        let first = replay.catalogue.first_lsn();
        let mut cursor = Cursor::at(
            log.geometry.first_block(log.geometry.slab_of(replay.catalogue.log_start())),
            first,
        );
        let mut records = Vec::new();
        let committed = log.ring.committed.load();
        while cursor.block < committed.position() {
            let sealed = replay.catalogue.find(cursor.block);
            let hot = Hot::open(&log.ring, log.geometry, cursor.block);
            match (sealed, hot) {
                (Some(sealed), hot) if tier != Tier::Hot || hot.is_none() => {
                    let mut from = match tier {
                        Tier::Cold => CatchUp::Buffered(Box::new(replay.cold(&sealed)?)),
                        _ => replay.catch_up(&sealed, cursor.block)?,
                    };
                    read_sealed(&mut from, &mut cursor, log.geometry, &mut records)?;
                }
                (_, Some(mut hot)) => match hot.fetch(cursor.block, committed) {
                    Fetch::Ready => take(hot.window(), &mut cursor, &mut records, |_, _| Ok(()))?,
                    _ => cursor = next_slab(cursor, log.geometry),
                },
                _ => panic!("position {} is nowhere", cursor.block),
            }
        }
        assert_eq!(cursor.next_lsn, log.ring.committed_lsn().next());
        Ok(records)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.log.poison(Error::new(ErrorKind::Io, "killed"));
            self.join();
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tier {
    Hot,
    Mapped,
    Cold,
}

const TIERS: [Tier; 3] = [Tier::Hot, Tier::Mapped, Tier::Cold];

fn next_slab(cursor: Cursor, geometry: Geometry) -> Cursor {
    Cursor::at(geometry.next_slab(cursor.block), cursor.next_lsn)
}

fn read_sealed(
    from: &mut CatchUp,
    cursor: &mut Cursor,
    geometry: Geometry,
    records: &mut Vec<Record>,
) -> Result<()> {
    let segment = geometry.segment_of(cursor.block);
    let mut more = false;
    while geometry.segment_of(cursor.block) == segment {
        let before = *cursor;
        let fetched = match from {
            CatchUp::Mapped(mapped) => mapped.fetch(cursor.block, more)?,
            CatchUp::Buffered(buffered) => buffered.fetch(cursor.block, more)?,
        };
        match (fetched, &*from) {
            (Fetch::SlabEnd, _) => *cursor = next_slab(*cursor, geometry),
            (_, CatchUp::Mapped(mapped)) => {
                take(mapped.window(), cursor, records, |at, block| {
                    mapped.verify(at, block).map(drop)
                })?;
            }
            (_, CatchUp::Buffered(buffered)) => {
                take(buffered.window(), cursor, records, |at, block| {
                    buffered.verify(at, block).map(drop)
                })?;
            }
        }
        more = *cursor == before;
    }
    Ok(())
}

struct All;

impl Select for All {
    fn all(&self) -> bool {
        true
    }
    fn matches(&self, _: u16, _: u64) -> bool {
        true
    }
}

fn take(
    window: Window<'_>,
    cursor: &mut Cursor,
    records: &mut Vec<Record>,
    check: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let limits = PageLimits { records: 5, bytes: 20_000 };
    let mut found = scan(window, *cursor, &All, limits, check)?;
    let mut expected = found.from.next_lsn;
    let mut run = RunIter::new(window, &found);
    for (lsn, _, record) in run.by_ref() {
        assert_eq!(lsn, expected);
        expected = lsn.next();
        records.push((record.kind, record.key, record.payload.to_vec()));
    }
    assert!(found.records == 0 || expected == found.to.next_lsn);
    found.close(run.offset());
    *cursor = found.to;
    Ok(())
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A record without zero bytes, so that no sector of it is zero.
    fn record(&mut self, payload_bytes: usize) -> Record {
        let byte = self.next();
        let payload = (0..payload_bytes).map(|i| (byte >> (i % 8 * 8)) as u8 | 1).collect();
        (self.next() as u16, self.next(), payload)
    }
}

fn append(batch: &mut WriteBatch<'_>, (kind, key, payload): &Record) -> Result<()> {
    batch.append(*kind, *key, payload)
}

/// Commits one record and notes it.
fn commit(writer: &Writer, model: &mut Vec<Record>, record: Record) -> Lsn {
    let lsn = writer.append(record.0, record.1, &record.2).unwrap();
    model.push(record);
    assert_eq!(lsn.get(), model.len() as u64);
    lsn
}

/// Commits records of `payload_bytes` until the log is in segment `number`.
fn fill_to(bed: &Bed, rig: &Rig, model: &mut Vec<Record>, number: u64, payload_bytes: usize) {
    let mut rng = Rng(number);
    let geometry = bed.geometry();
    while geometry.segment_of(rig.log.ring.committed.load().position()) < number {
        let record = rng.record(payload_bytes);
        commit(&rig.writer(), model, record);
    }
    rig.settle();
}
