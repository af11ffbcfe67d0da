//! How long a single record takes from the call that publishes it to the callback, while the reader
//! spins: one record each 5 microseconds, so that nothing queues.

use std::hint;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use disruptor::{BusySpin, ProcessorSettings as _, build_single_producer};
use eventplane::{Ack, Batch, Bus, Lsn, Start, Subscribe};

use super::ours::{Log, bus};
use super::race::Outlet;
use super::ring::{Fixed, Ring, Slot, slots};
use super::ticks;
use crate::commit::percentile;
use crate::machine::Place;
use crate::report::{Bar, divide};
use crate::{Bench, Context, machine};

const P50: &str = "hot_latency_p50";
const P99: &str = "hot_latency_p99";
const RING_BYTES: u64 = 4 << 20;
const GAP_NANOS: u64 = 5_000;
const RECORDS: u64 = 40_000;
const QUICK_RECORDS: u64 = 2_000;
/// A machine that stops for a millisecond delays two hundred records. So that a few such stops do
/// not decide, the 99th percentile is taken of each 10 ms, and the median of these is what counts.
const WINDOW: usize = 2_000;
/// The first ones find cold caches, and the reader asleep.
const WARM_UP: u64 = 500;
const DEADLINE: Duration = Duration::from_secs(30);
/// Pauses between two looks of the callback thread. It looks sixteen times before it begins to
/// yield, so with fewer than these it would not spin through the gap.
const IDLE_SPINS: u32 = 24;

pub const BENCH: Bench = Bench { name: "hot_latency_p50 hot_latency_p99", run };

type Failure = Box<dyn std::error::Error + Send + Sync>;
/// How old each record was when it arrived, in nanoseconds.
type Ages = Vec<f64>;
type Measure = fn(u64) -> anyhow::Result<Ages>;

fn run(context: &Context) -> anyhow::Result<()> {
    let records = WARM_UP + context.scaled(RECORDS, QUICK_RECORDS);
    let place = Place::new(context);
    let systems: [(&str, Measure); 3] = [
        ("eventplane (polled, 0 pauses)", polled),
        ("disruptor (its own thread, BusySpin)", busy),
        ("eventplane (its own thread, 24 pauses)", by_thread),
    ];
    let mut p50 = [Vec::new(), Vec::new(), Vec::new()];
    let mut p99 = p50.clone();
    for _ in 0..context.rounds {
        for (i, (_, measure)) in systems.iter().enumerate() {
            let mut nanos = place.sample(|| measure(records))?;
            let windows = nanos.chunks_exact_mut(WINDOW);
            let mut p99s: Ages = windows.map(|window| percentile(window, 0.99)).collect();
            p99[i].push(percentile(&mut p99s, 0.5));
            p50[i].push(percentile(&mut nanos, 0.5));
        }
    }
    let [polled, busy, by_thread] = systems.map(|(label, _)| label);
    for (name, figures, bar) in [(P50, &p50, Bar::AtMost(1.0)), (P99, &p99, Bar::AtMost(1.3))] {
        let (ours, theirs) = ((polled, &*figures[0]), (busy, &*figures[1]));
        context.report.sample(name, "ns", ours, theirs);
        context.report.figure(name, &format!("{by_thread}, ns"), &figures[2]);
        context.report.ratio(name, &divide(&figures[0], &figures[1]), bar);
    }
    place.tell(BENCH.name);
    Ok(())
}

/// Notes how old each record is when it arrives, and gives the notes away with the last one.
struct Stopwatch {
    nanos: Ages,
    seen: u64,
    records: u64,
    done: Sender<Ages>,
}

impl Stopwatch {
    fn new(records: u64) -> (Stopwatch, Receiver<Ages>) {
        let (sender, done) = mpsc::channel();
        ticks::per_nano();
        // Written once, so that no page fault is measured.
        let mut nanos = vec![1.0; records as usize];
        nanos.clear();
        (Stopwatch { nanos, seen: 0, records, done: sender }, done)
    }

    #[inline]
    fn take(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        let age = ticks::now().saturating_sub(stamp_of(payload));
        self.seen += 1;
        if self.seen > WARM_UP {
            self.nanos.push(age as f64 / ticks::per_nano());
        }
        ensure!(self.seen <= self.records, "more records than were published");
        if self.seen == self.records {
            self.done.send(std::mem::take(&mut self.nanos))?;
        }
        Ok(())
    }
}

fn stamp_of(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(u64::MAX, |stamp| u64::from_le_bytes(*stamp))
}

/// Publishes stamped records, each some gap after the one before.
fn publish(records: u64, outlet: &mut impl Outlet) -> anyhow::Result<()> {
    machine::pin(0);
    let mut random = fastrand::Rng::with_seed(11);
    let mut payload = [0_u8; 64];
    let mut at = ticks::now();
    for _ in 0..records {
        // Not in step with the reader's looks.
        at += ticks::in_nanos(random.u64(GAP_NANOS / 2..GAP_NANOS * 3 / 2));
        ticks::wait_until(at);
        at = ticks::now();
        payload[..8].copy_from_slice(&at.to_le_bytes());
        outlet.publish(std::iter::once(&payload[..]))?;
    }
    Ok(())
}

/// Publishes on core 0 while `read` runs on core 1, until all notes are there.
fn race(
    records: u64,
    mut outlet: impl Outlet,
    done: Receiver<Ages>,
    read: impl FnOnce(u64) + Send,
) -> anyhow::Result<Ages> {
    thread::scope(|scope| {
        let publisher = scope.spawn(move || publish(records, &mut outlet).map(|()| outlet));
        scope.spawn(move || {
            machine::pin(1);
            read(records);
        });
        let _outlet = publisher.join().map_err(|_| anyhow!("the publisher panicked"))??;
        let nanos = done.recv_timeout(DEADLINE).context("a record did not arrive")?;
        ensure!(nanos.len() as u64 == records - WARM_UP, "{} records were noted", nanos.len());
        Ok(nanos)
    })
}

fn busy(records: u64) -> anyhow::Result<Ages> {
    type Event = Fixed<64>;
    let (mut stopwatch, done) = Stopwatch::new(records);
    let producer = build_single_producer(slots::<Event>(RING_BYTES), Event::empty, BusySpin)
        .pin_at_core(1)
        .handle_events_with(move |event: &Event, _, _| {
            stopwatch.take(event.payload()).expect("somebody waits for the last record");
        })
        .build();
    race(records, Ring::new(producer), done, |_| ())
}

fn polled(records: u64) -> anyhow::Result<Ages> {
    let bus = bus(RING_BYTES, IDLE_SPINS)?;
    let (stopwatch, done) = Stopwatch::new(records);
    let mut reader = subscribe(&bus).manual(callback(stopwatch))?;
    let log = Log::greet(&bus)?;
    let begun = ticks::now();
    race(records, log, done, move |records| {
        let last = Lsn::new(Lsn::FIRST.get() + records);
        let patience = ticks::in_nanos(DEADLINE.as_nanos() as u64);
        while reader.handle().status().lsn < last && ticks::now() - begun < patience {
            // Asking where it is takes locks: seldom.
            (0..1 << 14).for_each(|_| _ = hint::black_box(reader.poll()));
        }
    })
}

fn by_thread(records: u64) -> anyhow::Result<Ages> {
    let bus = bus(RING_BYTES, IDLE_SPINS)?;
    let (stopwatch, done) = Stopwatch::new(records);
    let reader = subscribe(&bus).run(callback(stopwatch))?;
    let log = Log::greet(&bus)?;
    reader.wait_caught_up(DEADLINE)?;
    let nanos = race(records, log, done, |_| ())?;
    reader.stop()?;
    Ok(nanos)
}

fn subscribe(bus: &Bus) -> Subscribe {
    bus.subscribe("reader").start_if_new(Start::Earliest)
}

fn callback(
    mut stopwatch: Stopwatch,
) -> impl FnMut(&Batch<'_>) -> Result<Ack, Failure> + Send + 'static {
    move |batch| {
        for record in batch {
            if record.lsn() == Lsn::FIRST {
                machine::pin(1);
                continue;
            }
            stopwatch.take(record.payload())?;
        }
        Ok(Ack::All)
    }
}
