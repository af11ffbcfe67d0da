//! What a slow reader costs the writer: nothing of ours, and all of its own slowness where a ring
//! waits for its slowest reader.
//!
//! Nobody is held back by the benchmark here. A reader of ours that is lapped goes on at the
//! earliest record kept; it knows by the LSN which record that is, and what it missed is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use disruptor::{BusySpin, ProcessorSettings as _, build_single_producer};
use eventplane::{Ack, Batch, Bus, Lsn, OnPositionLost, Signal, Start, Subscription};

use super::load::{BATCH_MAX, Checker, Load, Sizes};
use super::ours::{Log, bus};
use super::race::{Job, Outlet};
use super::ring::{Fixed, Ring, Slot, slots};
use super::ticks;
use crate::machine::Place;
use crate::report::{Bar, Side};
use crate::{Bench, Context, machine};

const RING_BYTES: u64 = 4 << 20;
const SLOWED_NANOS: u64 = 200;
/// Some laps of the ring, so that the disruptor's room for 65,536 records hides little.
const RECORDS: u64 = 1 << 20;
const QUICK_RECORDS: u64 = 1 << 17;
const IDLE_SPINS: u32 = 16;
const DEADLINE: Duration = Duration::from_secs(30);

pub const COST: Bench = Bench {
    name: "slow_consumer_writer_cost",
    run: |context| {
        let (job, place) = (job(context), Place::new(context));
        let side = |label, slowed_nanos| {
            let (job, place) = (&job, &place);
            Side::new(label, move || place.sample(|| ours(job, slowed_nanos)))
        };
        let slow = side("eventplane, its reader slowed", SLOWED_NANOS);
        let fast = side("eventplane, its reader at full speed", 0);
        let row = (COST.name, "ns/record for the writer", Bar::AtMost(1.2));
        context.report.pair(context.rounds, row, slow, fast)?;
        place.tell(COST.name);
        Ok(())
    },
};

pub const DISRUPTOR: Bench = Bench {
    name: "slow_consumer_disruptor",
    run: |context| {
        let (job, place) = (job(context), Place::new(context));
        let theirs = Side::new("disruptor, its reader slowed", || place.sample(|| disruptor(&job)));
        let ours = Side::new("eventplane, its reader slowed", || {
            place.sample(|| ours(&job, SLOWED_NANOS))
        });
        let row = (DISRUPTOR.name, "ns/record for the writer", Bar::AtLeast(15.0));
        context.report.pair(context.rounds, row, theirs, ours)?;
        place.tell(DISRUPTOR.name);
        Ok(())
    },
};

fn job(context: &Context) -> Job {
    Job {
        load: Load::new(Sizes::Fixed(64)),
        total: context.scaled(RECORDS, QUICK_RECORDS),
        batch: BATCH_MAX,
        readers: 1,
        ring_bytes: RING_BYTES,
        ahead_bytes: None,
    }
}

fn dawdle(nanos: u64) {
    if nanos > 0 {
        ticks::wait_until(ticks::now() + ticks::in_nanos(nanos));
    }
}

/// Appends everything while a reader takes what it can; nanoseconds a record for the writer.
fn ours(job: &Job, slowed_nanos: u64) -> anyhow::Result<f64> {
    let bus = bus(RING_BYTES, IDLE_SPINS)?;
    let lost = Arc::new(AtomicU64::new(0));
    let (sender, verdict) = mpsc::channel();
    let end = Lsn::new(Lsn::FIRST.get() + job.total);
    let reader = subscribe(&bus, job, slowed_nanos, &lost, (end, sender))?;
    let mut log = Log::greet(&bus)?;
    reader.wait_caught_up(DEADLINE)?;
    let nanos = thread::scope(|scope| scope.spawn(|| append(job, &mut log)).join())
        .expect("appending does not panic")?;
    ensure!(log.last() == end, "the log ends at LSN {}", log.last());
    let checker: Checker = verdict.recv_timeout(DEADLINE).context("the reader did not end")?;
    reader.stop()?;
    checker.check_order()?;
    let (seen, lost) = (checker.seen, lost.load(Ordering::Relaxed));
    let total = job.total;
    ensure!(seen + lost == total, "{seen} records read and {lost} told lost of {total}");
    // In a smoke test the writer may be slower still.
    let lapped = lost > 0 || total < RECORDS;
    ensure!(slowed_nanos == 0 || lapped, "the slow reader was not lapped");
    Ok(nanos / job.total as f64)
}

fn append(job: &Job, log: &mut Log) -> anyhow::Result<f64> {
    machine::pin(0);
    let begun = Instant::now();
    let mut at = 0;
    for _ in 0..job.total / job.batch as u64 {
        log.publish(job.load.records(at, job.batch))?;
        at = (at + job.batch) % job.load.cycle();
    }
    Ok(begun.elapsed().as_nanos() as f64)
}

/// A reader that counts what it is told to have lost, and says what it saw when it is at the end.
fn subscribe(
    bus: &Bus,
    job: &Job,
    slowed_nanos: u64,
    lost: &Arc<AtomicU64>,
    (end, verdict): (Lsn, mpsc::Sender<Checker>),
) -> anyhow::Result<Subscription> {
    let mut checker = Checker::new(&job.load);
    let lost = Arc::clone(lost);
    let subscribe = bus
        .subscribe("reader")
        .start_if_new(Start::Earliest)
        .on_position_lost(OnPositionLost::Earliest)
        .on_signal(move |signal| {
            if let Signal::PositionLost { from, to, .. } = signal {
                lost.fetch_add(to.get() - from.get() + 1, Ordering::Relaxed);
            }
        });
    let subscription = subscribe.run(move |batch: &Batch<'_>| {
        let mut records = batch.iter();
        if batch.first_lsn() == Lsn::FIRST {
            machine::pin(1);
            records.next();
        }
        // The greeting has no number: record 0 is the LSN behind it.
        checker.skip_to(batch.first_lsn().get().max(2) - 2);
        for record in records {
            checker.take(record.payload());
            dawdle(slowed_nanos);
        }
        if batch.last_lsn() == end {
            verdict.send(checker.clone())?;
        }
        Ok(Ack::All)
    })?;
    Ok(subscription)
}

fn disruptor(job: &Job) -> anyhow::Result<f64> {
    type Event = Fixed<64>;
    let (mut readers, race) = job.prepare(None);
    let mut reader = readers.pop().context("a reader")?;
    let producer = build_single_producer(slots::<Event>(RING_BYTES), Event::empty, BusySpin)
        .pin_at_core(1)
        .handle_events_with(move |event: &Event, _, batch_ends| {
            reader.take(event.payload());
            dawdle(SLOWED_NANOS);
            if batch_ends {
                reader.batch_ends();
            }
        })
        .build();
    Ok(race.run(Ring::new(producer), |_| ())?.publishing)
}
