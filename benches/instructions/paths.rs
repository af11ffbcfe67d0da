//! What a record costs in instructions: appended, delivered, replayed.
//!
//! Each function is run once, with warm pools, and the sum over a known number of records is held
//! against a bound: a tenth above what it was when the bound was set. Counts depend on the compiler
//! and hardly on anything else, so whoever moves one finds out. `cargo bench` prints them all; it
//! needs valgrind, and `cargo install gungraun-runner --version 0.20.0 --locked`.

use std::hint::black_box;

use eventplane::testing::{Force, ManualClock, ManualSubscription, Polled};
use eventplane::{Ack, Batch, Bus, Reason, Start};
use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use tempfile::TempDir;

const RECORDS: u64 = 4096;
const BATCH: u64 = 16;
const PAYLOAD: [u8; 64] = [7; 64];

/// Appends `RECORDS` records in batches of so many.
fn append(bus: &Bus, batch_records: u64) {
    let writer = bus.writer();
    for first in (0..RECORDS).step_by(batch_records as usize) {
        if batch_records == 1 {
            writer.append(1, first, black_box(&PAYLOAD)).expect("room");
            continue;
        }
        let mut batch = writer.batch();
        for key in first..first + batch_records {
            batch.append(1, key, black_box(&PAYLOAD)).expect("room");
        }
        batch.commit().expect("in memory nothing fails");
    }
}

/// A bus in memory that has done all that is only done once.
fn warm() -> Bus {
    let bus = Bus::builder().in_memory().expect("memory");
    for _ in 0..2 {
        append(&bus, BATCH);
    }
    bus
}

/// A subscriber that is polled, and adds up what it is given.
fn subscriber(bus: &Bus, page: usize) -> ManualSubscription {
    let mut sum = 0;
    let each = move |batch: &Batch<'_>| {
        for record in batch.iter() {
            sum += record.key() + record.payload().len() as u64;
        }
        black_box(sum);
        Ok(Ack::All)
    };
    let subscribe = bus.subscribe("counted").start_if_new(Start::Earliest);
    let subscribe = subscribe.batch_records_max(page);
    subscribe.manual(each).expect("a consumer")
}

/// At most so many instructions for each of `RECORDS` records.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions * RECORDS)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

fn drain(consumer: &mut ManualSubscription, bus: &Bus) {
    while consumer.poll() == Polled::Moved {}
    assert_eq!(consumer.handle().status().lsn, bus.committed_lsn());
}

fn backlog(batch_records: u64) -> (Bus, ManualSubscription) {
    let (bus, consumer) = caught_up(batch_records);
    append(&bus, batch_records);
    (bus, consumer)
}

fn caught_up(_: u64) -> (Bus, ManualSubscription) {
    let bus = warm();
    let mut consumer = subscriber(&bus, 1_024);
    drain(&mut consumer, &bus);
    (bus, consumer)
}

#[library_benchmark]
#[bench::batch_16(args = (16), setup = of, config = at_most(84))]
#[bench::single(args = (1), setup = of, config = at_most(322))]
fn append_64_bytes((bus, batch_records): (Bus, u64)) -> Bus {
    append(&bus, batch_records);
    bus
}

fn of(batch_records: u64) -> (Bus, u64) {
    (warm(), batch_records)
}

// All records at once: what each costs.
#[library_benchmark]
#[bench::batch_16(args = (16), setup = backlog, config = at_most(53))]
#[bench::single(args = (1), setup = backlog, config = at_most(172))]
fn deliver_64_bytes((bus, mut consumer): (Bus, ManualSubscription)) -> (Bus, ManualSubscription) {
    while consumer.poll() == Polled::Moved {}
    (bus, consumer)
}

// A step for each batch of 16: append, then poll.
#[library_benchmark]
#[bench::batch_16(args = (16), setup = caught_up, config = at_most(184))]
fn append_and_deliver((bus, mut consumer): (Bus, ManualSubscription)) -> (Bus, ManualSubscription) {
    let writer = bus.writer();
    for first in (0..RECORDS).step_by(BATCH as usize) {
        let mut batch = writer.batch();
        for key in first..first + BATCH {
            batch.append(1, key, black_box(&PAYLOAD)).expect("room");
        }
        batch.commit().expect("in memory nothing fails");
        consumer.poll();
    }
    (bus, consumer)
}

/// A consumer in catch-up, at the start of a sealed segment with more than `RECORDS` records.
fn far_behind(_: u64) -> (TempDir, Bus, ManualSubscription) {
    let dir = tempfile::tempdir().expect("a directory");
    let builder = Bus::builder().segment_bytes(2 << 20);
    let builder = builder.ring_bytes(4 << 20).manual(&ManualClock::default());
    let bus = builder.open(dir.path()).expect("a new log");
    for _ in 0..10 {
        append(&bus, 256);
    }
    bus.drive().expect("sealed");
    let mut consumer = subscriber(&bus, 512);
    bus.force("counted", Force::CatchUp, Reason::Lapped);
    assert_eq!(consumer.poll(), Polled::Moved);
    (dir, bus, consumer)
}

// Eight pages of 512 records: checked, and decoded.
#[library_benchmark]
#[bench::catch_up(args = (0), setup = far_behind, config = at_most(108))]
fn replay_64_bytes(
    (dir, bus, mut consumer): (TempDir, Bus, ManualSubscription),
) -> (TempDir, Bus, ManualSubscription) {
    let before = consumer.handle().status().lsn.get();
    for _ in 0..8 {
        consumer.poll();
    }
    assert_eq!(consumer.handle().status().lsn.get(), before + RECORDS);
    (dir, bus, consumer)
}

library_benchmark_group!(
    name = hot,
    benchmarks = [append_64_bytes, deliver_64_bytes, append_and_deliver, replay_64_bytes]
);
main!(library_benchmark_groups = hot);
