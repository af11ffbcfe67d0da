//! Appending and committing.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput};
use eventplane::{Bus, Writer};

/// As many records as are appended in one measured piece.
const RECORDS: u64 = 4_096;

/// Appends `RECORDS` records in batches of so many.
pub(crate) fn append(writer: &Writer, payload: &[u8], batch_records: u64) {
    for first in (0..RECORDS).step_by(batch_records as usize) {
        let mut batch = writer.batch();
        for key in first..first + batch_records {
            batch.append(1, key, black_box(payload)).expect("room");
        }
        batch.commit().expect("a commit");
    }
}

/// In memory, nobody reading: what a record costs by its size, in batches of 16.
pub(crate) fn append_by_size(c: &mut Criterion) {
    let mut group = c.benchmark_group("append_batch16_by_size");
    for payload_bytes in [16, 64, 256, 1_024, 4_096] {
        let payload = vec![7; payload_bytes];
        let bus = Bus::builder().in_memory().expect("memory");
        let writer = bus.writer();
        group.throughput(Throughput::Elements(RECORDS));
        let id = BenchmarkId::from_parameter(payload_bytes);
        group.bench_function(id, |b| b.iter(|| append(&writer, &payload, 16)));
    }
}

/// In memory, nobody reading: what a record of 64 bytes costs by the size of its batch.
pub(crate) fn append_by_batch(c: &mut Criterion) {
    let mut group = c.benchmark_group("append_64B_by_batch");
    for batch_records in [1, 4, 16, 64, 256, 1_024] {
        let bus = Bus::builder().in_memory().expect("memory");
        let writer = bus.writer();
        group.throughput(Throughput::Elements(RECORDS));
        let id = BenchmarkId::from_parameter(batch_records);
        group.bench_function(id, |b| b.iter(|| append(&writer, &[7; 64], batch_records)));
    }
}

fn durable() -> (tempfile::TempDir, Bus) {
    let dir = tempfile::tempdir_in(".").expect("a directory");
    let bus = Bus::builder().open(dir.path()).expect("a new log");
    (dir, bus)
}

/// One producer that waits for each group to be durable.
pub(crate) fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit_100B_by_batch");
    let (_dir, bus) = durable();
    let writer = bus.writer();
    for batch_records in [1, 16, 256, 1_024] {
        group.throughput(Throughput::Elements(batch_records));
        group.bench_function(BenchmarkId::from_parameter(batch_records), |b| {
            b.iter(|| {
                let mut batch = writer.batch();
                for key in 0..batch_records {
                    batch.append(1, key, &[7; 100]).expect("room");
                }
                batch.commit().expect("a commit")
            });
        });
    }
}

/// Producers of single records, each waiting for its own: what group commit makes of them.
pub(crate) fn producers(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit_100B_by_producers");
    let (_dir, bus) = durable();
    for producers in [1_u64, 4, 16, 64] {
        group.throughput(Throughput::Elements(producers));
        group.bench_function(BenchmarkId::from_parameter(producers), |b| {
            b.iter_custom(|rounds| {
                let begun = Instant::now();
                thread::scope(|scope| {
                    for key in 0..producers {
                        let writer = bus.writer();
                        scope.spawn(move || {
                            for _ in 0..rounds {
                                writer.append(1, key, &[7; 100]).expect("a commit");
                            }
                        });
                    }
                });
                begun.elapsed()
            });
        });
    }
}
