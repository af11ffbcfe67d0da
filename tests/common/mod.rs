//! What the behaviour tests share: small logs on every backend, records whose content follows from
//! their LSN, a recording subscriber, and waiting by looking.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use eventplane::{
    Ack, Backend, Batch, Builder, Bus, Lsn, Record, Signal, Start, Subscription, Ticket, Writer,
};
use parking_lot::Mutex;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const SLAB_BYTES: u64 = 64 * KIB;
pub(crate) const SEGMENT_BYTES: u64 = 128 * KIB;
pub(crate) const RING_BYTES: u64 = 256 * KIB;
pub(crate) const WINDOW_BYTES: u64 = 512 * KIB;
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A bus small enough that a few hundred kilobytes take a consumer through every tier.
pub(crate) fn small(backend: Backend) -> Builder {
    Bus::builder()
        .slab_bytes(SLAB_BYTES)
        .segment_bytes(SEGMENT_BYTES)
        .ring_bytes(RING_BYTES)
        .pin_budget_bytes(4 * SLAB_BYTES)
        .catchup_window_bytes(WINDOW_BYTES)
        .readahead_bytes(64 * KIB)
        .consumers_max(64)
        .cold_bytes_per_second(None)
        .backend(backend)
}

/// Runs `test` on every backend that this machine has, and says which it has not.
pub(crate) fn on_each_backend(mut test: impl FnMut(Backend)) {
    for backend in backends() {
        test(backend);
    }
}

pub(crate) fn backends() -> Vec<Backend> {
    let dir = tempfile::tempdir().unwrap();
    let mut backends = vec![Backend::Psync];
    match small(Backend::IoUring).open(dir.path()) {
        Ok(bus) => {
            bus.close().unwrap();
            backends.push(Backend::IoUring);
        }
        Err(error) => println!("SKIP the io_uring backend: {error}"),
    }
    backends
}

/// Looks until `done`, for at most 20 seconds.
#[track_caller]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// LSN, kind, key, bytes.
pub(crate) type Seen = (Lsn, u16, u64, Vec<u8>);

/// A subscriber's memory.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<Seen>>>);

impl Recorder {
    pub(crate) fn take(&self, batch: &Batch<'_>) {
        self.0.lock().extend(batch.iter().map(|record| seen(&record)));
    }

    pub(crate) fn take_one(&self, record: Seen) {
        self.0.lock().push(record);
    }

    pub(crate) fn trace(&self) -> Vec<Seen> {
        self.0.lock().clone()
    }

    pub(crate) fn lsns(&self) -> Vec<u64> {
        self.0.lock().iter().map(|(lsn, ..)| lsn.get()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

pub(crate) fn seen(record: &Record<'_>) -> Seen {
    (
        record.lsn(),
        record.kind(),
        record.key(),
        record.payload().to_vec(),
    )
}

/// What the record with this LSN holds: kind, key, and a payload of `bytes`.
pub(crate) fn content(lsn: u64, bytes: usize) -> (u16, u64, Vec<u8>) {
    let key = lsn.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let payload = (0..bytes).map(|i| (key >> (i % 57)) as u8 ^ i as u8).collect();
    ((lsn % 7) as u16, key, payload)
}

/// A record as `fill` wrote it.
#[track_caller]
pub(crate) fn assert_content(record: &Record<'_>) {
    let (kind, key, payload) = content(record.lsn().get(), record.payload().len());
    assert_eq!((record.kind(), record.key()), (kind, key), "LSN {}", record.lsn());
    assert!(record.payload() == payload, "the bytes of LSN {}", record.lsn());
}

/// Commits `records` records of `bytes` each in one batch; their content follows from their LSN.
pub(crate) fn fill(bus: &Bus, writer: &Writer, records: u64, bytes: usize) -> Lsn {
    let ticket = fill_later(writer, bus.committed_lsn(), records, bytes);
    *ticket.wait().unwrap().end()
}

/// As `fill`, behind `last` and without waiting for the disk.
pub(crate) fn fill_later(writer: &Writer, last: Lsn, records: u64, bytes: usize) -> Ticket {
    let mut batch = writer.batch();
    let first = last.get() + 1;
    for lsn in first..first + records {
        let (kind, key, payload) = content(lsn, bytes);
        batch.append(kind, key, &payload).unwrap();
    }
    let ticket = batch.commit_later().unwrap();
    assert_eq!(
        ticket.lsns().start().get(),
        first,
        "somebody else writes to this log"
    );
    ticket
}

/// Commits at least `bytes` of log in batches of 16 KiB, doing what the log's threads would do if
/// there are none.
pub(crate) fn fill_bytes(bus: &Bus, bytes: u64) -> Lsn {
    let writer = bus.writer();
    let mut last = bus.committed_lsn();
    for _ in 0..bytes.div_ceil(16 * KIB) {
        last = *fill_later(&writer, last, 4, 4_000).lsns().end();
    }
    bus.sync().unwrap();
    bus.drive().unwrap();
    last
}

/// `CaughtUp` and `FellBehind` alternate, `CaughtUp` first; returns how many there were.
#[track_caller]
pub(crate) fn assert_alternating(signals: &[Signal]) -> usize {
    let mut told = 0;
    for signal in signals {
        let expected = match signal {
            Signal::CaughtUp { .. } => 0,
            Signal::FellBehind { .. } => 1,
            _ => continue,
        };
        assert_eq!(told % 2, expected, "signal {told} is {signal:?}");
        told += 1;
    }
    told
}

/// A subscriber on its own thread that records what it sees.
pub(crate) fn recording(bus: &Bus, name: &str, start: Start) -> (Subscription, Recorder) {
    let recorder = Recorder::default();
    let subscription = bus
        .subscribe(name)
        .start_if_new(start)
        .run({
            let recorder = recorder.clone();
            move |batch: &Batch<'_>| {
                recorder.take(batch);
                Ok(Ack::All)
            }
        })
        .unwrap();
    (subscription, recorder)
}

pub(crate) fn lsns(range: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    range.collect()
}
