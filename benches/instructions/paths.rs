//! What a record costs in instructions: appended, delivered, replayed.
//!
//! Each function is run once, with warm caches and pools; the sum over a known number of records
//! is compared with a bound a little above what it was last. `cargo bench` prints the counts.

use std::hint::black_box;

use eventplane::testing::{ManualSubscription, Polled};
use eventplane::{Ack, Batch, Bus, Start};
use gungraun::{
    library_benchmark, library_benchmark_group, main,
};

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
fn subscriber(bus: &Bus) -> ManualSubscription {
    let mut sum = 0;
    let each = move |batch: &Batch<'_>| {
        for record in batch.iter() {
            sum += record.key() + record.payload().len() as u64;
        }
        black_box(sum);
        Ok(Ack::All)
    };
    let subscribe = bus.subscribe("counted").start_if_new(Start::Earliest);
    subscribe.manual(each).expect("a consumer")
}

fn drain(consumer: &mut ManualSubscription, bus: &Bus) {
    while consumer.poll() == Polled::Moved {}
    assert_eq!(consumer.handle().status().lsn, bus.committed_lsn());
}

fn backlog(batch_records: u64) -> (Bus, ManualSubscription) {
    let bus = warm();
    let mut consumer = subscriber(&bus);
    drain(&mut consumer, &bus);
    append(&bus, batch_records);
    (bus, consumer)
}

#[library_benchmark]
#[bench::batch_16(args = (16), setup = of)]
#[bench::single(args = (1), setup = of)]
fn append_64_bytes((bus, batch_records): (Bus, u64)) -> Bus {
    append(&bus, batch_records);
    bus
}

fn of(batch_records: u64) -> (Bus, u64) {
    (warm(), batch_records)
}

// All records at once: what each costs.
#[library_benchmark]
#[bench::batch_16(args = (16), setup = backlog)]
#[bench::single(args = (1), setup = backlog)]
fn deliver_64_bytes((bus, mut consumer): (Bus, ManualSubscription)) -> (Bus, ManualSubscription) {
    while consumer.poll() == Polled::Moved {}
    (bus, consumer)
}

// A step for each batch of 16: append, then poll.
#[library_benchmark]
#[bench::batch_16(args = (16), setup = backlog)]
fn append_and_deliver(
    (bus, mut consumer): (Bus, ManualSubscription),
) -> (Bus, ManualSubscription) {
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

library_benchmark_group!(
    name = hot,
    benchmarks = [append_64_bytes, deliver_64_bytes, append_and_deliver]
);
main!(library_benchmark_groups = hot);
