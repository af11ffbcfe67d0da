//! Keeping a record beyond its callback, against cloning a counted reference that nobody else uses.

use std::hint::black_box;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, anyhow, ensure};
use eventplane::testing::Polled;
use eventplane::{Ack, Batch, Start};

use super::load::{BATCH_MAX, Load, Sizes};
use super::ours::bus;
use crate::machine::Place;
use crate::report::{Bar, Side};
use crate::{Bench, Context, machine};

const RECORDS: usize = 512;
const TIMES: u64 = 1_000;
const QUICK_TIMES: u64 = 20;

pub const BENCH: Bench = Bench { name: "lease_cost", run };

fn run(context: &Context) -> anyhow::Result<()> {
    let times = context.scaled(TIMES, QUICK_TIMES);
    let place = Place::new(context);
    let ours = Side::new("record.lease() and drop", || place.sample(|| on_core_0(|| lease(times))));
    let theirs = Side::new("clone of an Arc<[u8]> and drop", || {
        place.sample(|| on_core_0(|| Ok(clone(times))))
    });
    let row = (BENCH.name, "ns/record", Bar::AtMost(1.5));
    context.report.pair(context.rounds, row, ours, theirs)?;
    place.tell(BENCH.name);
    Ok(())
}

fn on_core_0(work: impl FnOnce() -> anyhow::Result<f64> + Send) -> anyhow::Result<f64> {
    let on_core = || {
        machine::pin(0);
        work()
    };
    let outcome = thread::scope(|scope| scope.spawn(on_core).join());
    outcome.map_err(|_| anyhow!("the measurement panicked"))?
}

/// Leases each record of a callback's batch, many times over.
fn lease(times: u64) -> anyhow::Result<f64> {
    let bus = bus(4 << 20, 0)?;
    let load = Load::new(Sizes::Fixed(64));
    let writer = bus.writer();
    for batch in 0..RECORDS / BATCH_MAX {
        let mut appended = writer.batch();
        for payload in load.records(batch * BATCH_MAX, BATCH_MAX) {
            appended.append(1, 0, payload)?;
        }
        appended.commit()?;
    }
    let (sender, took) = mpsc::channel();
    let subscribe = bus.subscribe("reader").start_if_new(Start::Earliest);
    let mut reader = subscribe.manual(move |batch: &Batch<'_>| {
        // Walking the batch is not part of it.
        let records: Vec<_> = batch.iter().collect();
        let begun = Instant::now();
        for _ in 0..times {
            for record in &records {
                let lease = record.lease()?;
                if !black_box(&lease).is_pinned() {
                    return Err("a copy, not a lease".into());
                }
            }
        }
        sender.send((begun.elapsed(), batch.len()))?;
        Ok(Ack::All)
    })?;
    ensure!(reader.poll() == Polled::Moved, "nothing was delivered");
    let (took, records) = took.try_recv().context("the callback failed")?;
    ensure!(records == RECORDS, "{records} records came at once");
    Ok(took.as_nanos() as f64 / (times * records as u64) as f64)
}

/// As many clones of one reference.
fn clone(times: u64) -> f64 {
    let payload: Arc<[u8]> = vec![7; 64].into();
    let clones = times * RECORDS as u64;
    let begun = Instant::now();
    for _ in 0..clones {
        black_box(Arc::clone(black_box(&payload)));
    }
    begun.elapsed().as_nanos() as f64 / clones as f64
}
