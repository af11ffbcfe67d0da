//! Replay from sealed segments, in catch-up and cold, and switching between tiers.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eventplane::testing::{Force, ManualClock, Polled};
use eventplane::{Ack, Batch, Bus, Reason, Start};

use super::{Run, compare};

const LOG_BYTES: u64 = 128 << 20;
const PAYLOAD_BYTES: usize = 100;

/// A log of sealed segments, polled by hand.
struct Log {
    dir: tempfile::TempDir,
    bus: Bus,
    records: u64,
}

impl Log {
    fn new() -> Log {
        let dir = tempfile::tempdir_in(".").expect("a temporary directory");
        let bus = Bus::builder()
            .ring_bytes(32 << 20)
            .cold_bytes_per_second(None)
            .manual(&ManualClock::default())
            .open(dir.path())
            .expect("a new log");
        let writer = bus.writer();
        let mut records = 0;
        let mut bytes = 0;
        while bytes < LOG_BYTES {
            let mut batch = writer.batch();
            for _ in 0..1_024 {
                batch.append(1, records, &[7; PAYLOAD_BYTES]).expect("room");
                records += 1;
                bytes += 120;
            }
            batch.commit().expect("a commit");
        }
        bus.drive().expect("sealed");
        Log { dir, bus, records }
    }

    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("segments")).expect("segments");
        let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
        paths.sort();
        paths
    }

    fn drop_cache(&self) {
        for path in self.segments() {
            let file = File::open(path).expect("a segment");
            // SAFETY: advice on a file that is open.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
    }

    /// Replays everything in a tier; returns how long it took for how many records.
    fn replay(&self, name: &str, force: Force, reason: Reason, page: usize) -> (Duration, u64) {
        let seen = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&seen);
        let subscribe = self.bus.subscribe(name).start_at(Start::Earliest).batch_records_max(page);
        let consumer = subscribe.manual(move |batch: &Batch<'_>| {
            let bytes: u64 = batch.iter().map(|r| u64::from(r.payload()[PAYLOAD_BYTES - 1])).sum();
            black_box(bytes);
            count.fetch_add(batch.len() as u64, Ordering::Relaxed);
            Ok(Ack::All)
        });
        let mut consumer = consumer.expect("a consumer");
        self.bus.force(name, force, reason);
        let begun = Instant::now();
        while consumer.poll() != Polled::CaughtUp {}
        let took = begun.elapsed();
        assert_eq!(seen.load(Ordering::Relaxed), self.records, "every record, once");
        (took, self.records)
    }
}

/// Reads every byte of the segments with a checksum, as fast as it goes: the limit.
fn bare_walk(log: &Log) -> (Duration, u64) {
    let begun = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    for path in log.segments() {
        let file = File::open(path).expect("a segment");
        let mut offset = 0;
        while let Ok(read @ 1..) = file.read_at(&mut buffer, offset) {
            black_box(crc32c::crc32c(&buffer[..read]));
            offset += read as u64;
        }
    }
    (begun.elapsed(), log.records)
}

fn against_bare(
    name: &str,
    seconds: u64,
    cold_cache: bool,
    run: impl Fn(&Log) -> (Duration, u64) + 'static,
) {
    let log = Arc::new(Log::new());
    let this = Arc::clone(&log);
    let ours: Run = Box::new(move || {
        if cold_cache {
            this.drop_cache();
        }
        run(&this)
    });
    let theirs: Run = Box::new(move || {
        if cold_cache {
            log.drop_cache();
        }
        bare_walk(&log)
    });
    compare(name, "record", ours, "pread of 1 MiB with CRC-32C", theirs, seconds);
}

pub(crate) fn catch_up_warm(seconds: u64) {
    against_bare("catch_up_warm_100B", seconds, false, |log| {
        log.replay("warm", Force::CatchUp, Reason::Lapped, 1_024)
    });
}

pub(crate) fn catch_up_cold_cache(seconds: u64) {
    against_bare("catch_up_cold_cache_100B", seconds, true, |log| {
        log.replay("cold-cache", Force::CatchUp, Reason::Lapped, 1_024)
    });
}

pub(crate) fn cold(seconds: u64) {
    against_bare("cold_tier_100B", seconds, true, |log| {
        log.replay("cold", Force::Replaying, Reason::Admitted, 1_024)
    });
}

/// Pages of 512 records against one pass with the largest pages.
pub(crate) fn paged(seconds: u64) {
    let log = Arc::new(Log::new());
    let this = Arc::clone(&log);
    let ours: Run = Box::new(move || this.replay("paged", Force::CatchUp, Reason::Lapped, 512));
    let theirs: Run =
        Box::new(move || log.replay("whole", Force::CatchUp, Reason::Lapped, usize::MAX));
    compare("paged_replay_512", "record", ours, "one pass", theirs, seconds);
}

/// From the decision to the first record from the other tier, against staying in it.
pub(crate) fn tier_switch(seconds: u64) {
    const SWITCHES: u64 = 2_000;
    let log = Arc::new(Log::new());
    let start = |log: &Log, name: &str| {
        let subscribe = log.bus.subscribe(name).start_at(Start::Earliest).batch_records_max(1);
        subscribe.manual(|_: &Batch<'_>| Ok(Ack::All)).expect("a consumer")
    };
    let this = Arc::clone(&log);
    let ours: Run = Box::new(move || {
        let mut consumer = start(&this, "switching");
        let begun = Instant::now();
        for _ in 0..SWITCHES / 2 {
            this.bus.force("switching", Force::Replaying, Reason::Admitted);
            assert_eq!(consumer.poll(), Polled::Moved);
            this.bus.force("switching", Force::CatchUp, Reason::Recovering);
            assert_eq!(consumer.poll(), Polled::Moved);
        }
        (begun.elapsed(), SWITCHES)
    });
    let theirs: Run = Box::new(move || {
        let mut consumer = start(&log, "staying");
        let begun = Instant::now();
        for _ in 0..SWITCHES {
            assert_eq!(consumer.poll(), Polled::Moved);
        }
        (begun.elapsed(), SWITCHES)
    });
    compare("tier_switch_and_record", "switch", ours, "a record without a switch", theirs, seconds);
}
