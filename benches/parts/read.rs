//! Delivering, leasing, replaying, switching, opening.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use eventplane::testing::{Force, ManualClock, ManualSubscription, Polled};
use eventplane::{Ack, Batch, Bus, Reason, Start};

use super::write::append;

const RECORDS: u64 = 4_096;

fn subscriber(bus: &Bus, name: &str, page: usize) -> ManualSubscription {
    let subscribe = bus.subscribe(name).start_at(Start::Earliest).batch_records_max(page);
    let consumer = subscribe.manual(|batch: &Batch<'_>| {
        let sum = |payload: &[u8]| payload.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        black_box(batch.iter().map(|record| sum(record.payload())).sum::<u64>());
        Ok(Ack::All)
    });
    consumer.expect("a consumer")
}

fn drain(consumer: &mut ManualSubscription) {
    while consumer.poll() != Polled::CaughtUp {}
}

/// Time to deliver what is appended untimed: `payload_bytes` a record, so many in a batch.
fn deliver(
    c: &mut Criterion,
    (group, parameter): (&str, u64),
    (payload_bytes, batch_records, consumers): (usize, u64, usize),
) {
    let bus = Bus::builder().in_memory().expect("memory");
    let payload = vec![7; payload_bytes];
    let names = (0..consumers).map(|i| format!("consumer{i}"));
    let mut polled: Vec<_> = names.map(|name| subscriber(&bus, &name, 1_024)).collect();
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(RECORDS * consumers as u64));
    group.bench_function(BenchmarkId::from_parameter(parameter), |b| {
        b.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                append(&bus.writer(), &payload, batch_records);
                let begun = Instant::now();
                polled.iter_mut().for_each(drain);
                took += begun.elapsed();
            }
            took
        });
    });
}

/// From the ring, every byte read, by the size of a record.
pub(crate) fn deliver_by_size(c: &mut Criterion) {
    for payload_bytes in [16, 64, 256, 1_024, 4_096] {
        let named = ("deliver_batch16_by_size", payload_bytes as u64);
        deliver(c, named, (payload_bytes, 16, 1));
    }
}

/// From the ring, by the number of records that were committed together.
pub(crate) fn deliver_by_batch(c: &mut Criterion) {
    for batch_records in [1, 4, 16, 64, 256] {
        deliver(c, ("deliver_64B_by_batch", batch_records), (64, batch_records, 1));
    }
}

/// From the ring, a record to one of so many consumers, polled in turn.
pub(crate) fn deliver_by_consumers(c: &mut Criterion) {
    for consumers in [1, 10, 100, 1_000] {
        deliver(c, ("deliver_64B_by_consumers", consumers as u64), (64, 16, consumers));
    }
}

/// Keeping a record beyond its callback.
pub(crate) fn lease(c: &mut Criterion) {
    let bus = Bus::builder().in_memory().expect("memory");
    c.bench_function("lease", |b| {
        b.iter_custom(|rounds| {
            let (mut took, mut left) = (Duration::ZERO, rounds);
            while left > 0 {
                append(&bus.writer(), &[7; 64], 256);
                let subscribe = bus.subscribe("leasing").start_at(Start::Earliest);
                let measured = std::sync::Mutex::new((Duration::ZERO, left));
                let measured = std::sync::Arc::new(measured);
                let inside = std::sync::Arc::clone(&measured);
                let consumer = subscribe.manual(move |batch: &Batch<'_>| {
                    let mut state = inside.lock().expect("no panic");
                    let begun = Instant::now();
                    for record in batch.iter().take(state.1 as usize) {
                        black_box(record.lease().expect("within the budget"));
                    }
                    state.0 += begun.elapsed();
                    state.1 = state.1.saturating_sub(batch.len() as u64);
                    Ok(Ack::All)
                });
                drain(&mut consumer.expect("a consumer"));
                let state = measured.lock().expect("no panic");
                (took, left) = (took + state.0, state.1);
            }
            took
        });
    });
}

const SEGMENT_BYTES: u64 = 4 << 20;

/// A log with so many sealed segments, polled by hand.
struct Log {
    dir: tempfile::TempDir,
    bus: Bus,
    records: u64,
}

impl Log {
    fn new(segments: u64) -> Log {
        let dir = tempfile::tempdir_in(".").expect("a directory");
        let bus = Bus::builder()
            .segment_bytes(SEGMENT_BYTES)
            .ring_bytes(2 * SEGMENT_BYTES)
            .cold_bytes_per_second(None)
            .manual(&ManualClock::default())
            .open(dir.path())
            .expect("a new log");
        let (writer, mut records) = (bus.writer(), 0);
        while records * 120 < segments * SEGMENT_BYTES {
            append(&writer, &[7; 100], 1_024);
            records += RECORDS;
        }
        bus.drive().expect("sealed");
        Log { dir, bus, records }
    }
}

/// Warm, by tier and by the number of records in a page.
pub(crate) fn replay(c: &mut Criterion) {
    let log = Log::new(16);
    let mut group = c.benchmark_group("replay_100B");
    group.throughput(Throughput::Elements(log.records)).sample_size(10);
    for (tier, force, reason) in
        [("catch_up", Force::CatchUp, Reason::Lapped), ("cold", Force::Replaying, Reason::Admitted)]
    {
        for page in [64, 512, 1_024, usize::MAX] {
            let parameter = if page == usize::MAX { 0 } else { page };
            group.bench_function(BenchmarkId::new(tier, parameter), |b| {
                let begin = || {
                    let consumer = subscriber(&log.bus, tier, page);
                    log.bus.force(tier, force, reason);
                    consumer
                };
                let all = |mut consumer: ManualSubscription| {
                    drain(&mut consumer);
                    consumer
                };
                b.iter_batched(begin, all, BatchSize::PerIteration);
            });
        }
    }
}

/// From the decision to the first record from the other tier, with a warm cache.
pub(crate) fn switch(c: &mut Criterion) {
    let log = Log::new(4);
    let mut group = c.benchmark_group("switch");
    for (name, force, reason) in [
        ("to_catch_up", Force::CatchUp, Reason::Recovering),
        ("to_cold", Force::Replaying, Reason::Admitted),
    ] {
        group.bench_function(name, |b| {
            b.iter_batched(
                || {
                    let mut consumer = subscriber(&log.bus, name, 1);
                    let (back, why) = if force == Force::CatchUp {
                        (Force::Replaying, Reason::Admitted)
                    } else {
                        (Force::CatchUp, Reason::Lapped)
                    };
                    log.bus.force(name, back, why);
                    consumer.poll();
                    consumer
                },
                |mut consumer| {
                    log.bus.force(name, force, reason);
                    assert_eq!(consumer.poll(), Polled::Moved);
                    consumer
                },
                BatchSize::PerIteration,
            );
        });
    }
}

/// Opening a log that was closed, with a warm cache.
pub(crate) fn open_by_segments(c: &mut Criterion) {
    let mut group = c.benchmark_group("open_by_segments");
    for segments in [4, 16, 64] {
        let log = Log::new(segments);
        let Log { dir, bus, .. } = log;
        bus.close().expect("closed");
        group.bench_function(BenchmarkId::from_parameter(segments), |b| {
            let open = || {
                let clock = ManualClock::default();
                let builder = Bus::builder().segment_bytes(SEGMENT_BYTES);
                let bus = builder.ring_bytes(2 * SEGMENT_BYTES).manual(&clock).open(dir.path());
                bus.expect("a log")
            };
            b.iter_with_large_drop(open);
        });
    }
}
