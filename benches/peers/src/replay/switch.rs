//! A consumer that finds its slab gone: how long until catch-up has brought it the next record,
//! with nothing of it in the page cache.
//!
//! The clock starts when the last hot callback returns, so finding out and deciding count as well.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use eventplane::{Ack, Batch, Bus, Reason, Retention, Start, Subscription, Tier};

use super::PATIENCE;
use crate::commit::percentile;
use crate::load::{LARGE, Log};
use crate::report::Bar;
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "switch_p99", run };

/// A small ring, so that to lap it does not take long.
const RING_BYTES: u64 = 8 << 20;
const SEGMENT_BYTES: u64 = 4 << 20;

fn run(context: &Context) -> anyhow::Result<()> {
    let switches = context.scaled(100, 8);
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bus = Bus::builder()
        .segment_bytes(SEGMENT_BYTES)
        .ring_bytes(RING_BYTES)
        .retention(Retention::bytes(4 * RING_BYTES))
        // The supervisor looks when it is told to: else it would switch the consumer while that is
        // held up, and not when it asks for its next record.
        .tick(Duration::from_secs(3_600))
        .dwell(Duration::ZERO)
        .flapping(u32::MAX, Duration::from_secs(1))
        .open(dir.path().join("log"))?;
    let mut log = Log::of(dir.path().join("log"), LARGE);
    let consumer = Gated::start(&bus)?;
    let (mut p99s, mut medians) = (vec![], vec![]);
    for _ in 0..context.rounds {
        let switch = |_| consumer.lap(&bus, &mut log);
        let mut millis = (0..switches).map(switch).collect::<anyhow::Result<Vec<f64>>>()?;
        p99s.push(percentile(&mut millis, 0.99));
        medians.push(percentile(&mut millis, 0.5));
    }
    let lapped = bus.transition_counts().get(&(Tier::Hot, Tier::CatchUp, Reason::Lapped)).copied();
    let expected = switches * context.rounds as u64;
    ensure!(lapped == Some(expected), "{lapped:?} laps of {expected}");
    context.report.figure(BENCH.name, "median, ms", &medians);
    context.report.figure(BENCH.name, "p99, ms", &p99s);
    context.report.ratio(BENCH.name, &p99s, Bar::AtMost(2.0));
    Ok(())
}

/// A consumer that stays in its callback, on request.
struct Gated {
    subscription: Subscription,
    /// It is in the callback that was asked for.
    entered: Receiver<()>,
    /// Lets the next callback wait, and then go on.
    hold: Sender<()>,
    go: Sender<()>,
    /// Milliseconds from the end of a hot callback to the first one of catch-up.
    switched: Receiver<f64>,
}

impl Gated {
    fn start(bus: &Bus) -> anyhow::Result<Gated> {
        let (enter, entered) = channel();
        let (hold, held) = channel();
        let (go, gone) = channel();
        let (switch, switched) = channel();
        let mut before = (Tier::Hot, Instant::now());
        let subscribe = bus.subscribe("lapped").start_at(Start::Latest);
        let subscription = subscribe.run(move |batch: &Batch<'_>| {
            if before.0 == Tier::Hot && batch.tier() == Tier::CatchUp {
                switch.send(before.1.elapsed().as_secs_f64() * 1e3)?;
            }
            let wrong = batch.iter().any(|record| {
                let number = record.payload().first_chunk().map(|n| u64::from_le_bytes(*n));
                number != Some(record.lsn().get())
            });
            if wrong {
                return Err("the payload of another record".into());
            }
            if held.try_recv().is_ok() {
                enter.send(())?;
                gone.recv()?;
            }
            before = (batch.tier(), Instant::now());
            Ok(Ack::All)
        })?;
        Ok(Gated { subscription, entered, hold, go, switched })
    }

    /// Holds it up, writes more than the ring holds, drops the cache, lets it go; returns how long
    /// the switch took.
    fn lap(&self, bus: &Bus, log: &mut Log) -> anyhow::Result<f64> {
        self.hold.send(())?;
        log.append(bus, 1)?;
        self.entered.recv_timeout(PATIENCE).context("not in its callback")?;
        // What the consumer has in hand is its slab: the ring is to be full of others.
        let records = (RING_BYTES + 2 * SEGMENT_BYTES) / (LARGE as u64 + 16);
        log.append(bus, records)?;
        bus.sync()?;
        log.drop_cache()?;
        self.go.send(())?;
        let millis = self.switched.recv_timeout(PATIENCE).context("it never switched")?;
        let last = bus.committed_lsn();
        self.subscription.wait_processed(last, PATIENCE)?;
        let begun = Instant::now();
        while self.subscription.status().tier != Tier::Hot {
            ensure!(begun.elapsed() < PATIENCE, "it stays in {}", self.subscription.status().tier);
            bus.tick();
            thread::yield_now();
        }
        Ok(millis)
    }
}
