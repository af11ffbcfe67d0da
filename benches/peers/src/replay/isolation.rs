//! A writer at half its own speed, with and without four consumers that replay beside it: two in
//! catch-up, two cold, under the default limits.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use eventplane::testing::Force;
use eventplane::{
    Ack, Batch, Builder, Bus, OnPositionLost, Reason, Retention, Start, Subscription, Tier, Writer,
};

use crate::commit::{commit_micros, percentile};
use crate::disk;
use crate::load::{Log, SMALL, fill};
use crate::report::{Bar, divide};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "isolation", run };

const CATCHING_UP: usize = 2;
const COLD: usize = 2;

/// What there is to replay, and how far behind a cold consumer stays cold.
struct Distances {
    log: u64,
    cold: u64,
}

fn run(context: &Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&context.dir)?;
    let (distances, builder) = if context.quick {
        let builder = Bus::builder().ring_bytes(32 << 20).catchup_window_bytes(192 << 20);
        (Distances { log: 144 << 20, cold: 96 << 20 }, builder)
    } else {
        // Half the default window of catch-up; the whole of it would shed the others.
        (Distances { log: 832 << 20, cold: 512 << 20 }, Bus::builder())
    };
    // What the writer adds, retention takes away.
    let builder: Builder = builder.retention(Retention::bytes(distances.log));
    Log::write(dir.path().join("log"), distances.log, SMALL, builder.clone())?;
    let bus = builder.open(dir.path().join("log"))?;
    let writer = bus.writer();
    let lasting = Duration::from_millis(context.scaled(3_000, 250));
    let replays = Replays::start(&bus, distances.cold)?;
    let bare = Bare::new(dir.path())?;
    let (mut p99s, mut rates, mut bares) = ([vec![], vec![]], [vec![], vec![]], [vec![], vec![]]);
    for _ in 0..context.rounds {
        // Anew each time, and by the median: a moment in which the disk was busy would make for an
        // easy pace.
        let mut micros = commit_micros(&bus, &writer, context.scaled(2_000, 200))?;
        let interval = 2.0 * percentile(&mut micros, 0.5) / 1e6;
        let before = replays.read.load(Ordering::Relaxed);
        for (side, replaying) in [true, false].into_iter().enumerate() {
            let pace = || paced(&bus, &writer, interval, lasting);
            let paced = if replaying { replays.beside(pace)? } else { pace()? };
            p99s[side].push(paced.p99);
            rates[side].push(paced.rate);
        }
        let read = (replays.read.load(Ordering::Relaxed) - before) * RECORD_BYTES;
        let rate = read as f64 / lasting.as_secs_f64();
        let beside = bare.paced(interval, lasting, rate)?;
        let alone = bare.paced(interval, lasting, 0.0)?;
        bares[0].push(beside.p99 / alone.p99);
        bares[1].push(beside.rate / alone.rate);
    }
    ensure!(replays.wrong.load(Ordering::Relaxed) == 0, "payloads of other records");
    let report = &context.report;
    for (name, unit, figures, bar) in [
        ("isolation_p99", "us", &p99s, Bar::AtMost(1.2)),
        ("isolation_rate", "records/s", &rates, Bar::AtLeast(0.95)),
    ] {
        report.sample(name, unit, ("with four replays", &figures[0]), ("alone", &figures[1]));
        report.ratio(name, &divide(&figures[0], &figures[1]), bar);
    }
    let read = replays.read.load(Ordering::Relaxed) as f64 / 1e6;
    report.figure(BENCH.name, "million records replayed meanwhile", &[read]);
    for (what, figures) in ["p99", "rate"].into_iter().zip(&bares) {
        let what = format!("{what} of bare writes beside a bare reader of as many bytes / alone");
        report.figure(BENCH.name, &what, figures);
    }
    ensure!(read > 0.0, "nobody replayed anything");
    Ok(())
}

/// What a writer came to.
struct Paced {
    p99: f64,
    rate: f64,
}

/// Commits one record each `interval` seconds, for so long; the 99th percentile is of how long a
/// commit took, in microseconds.
fn paced(bus: &Bus, writer: &Writer, interval: f64, lasting: Duration) -> anyhow::Result<Paced> {
    let mut payload = [0; SMALL];
    let mut next = bus.committed_lsn().get() + 1;
    let begun = Instant::now();
    let mut micros = timed(begun, interval, lasting, |_| {
        fill(&mut payload, next);
        let lsn = writer.append(1, next, &payload)?.get();
        ensure!(lsn == next, "record {next} got the LSN {lsn}");
        next += 1;
        Ok(())
    })?;
    let rate = micros.len() as f64 / begun.elapsed().as_secs_f64();
    Ok(Paced { p99: percentile(&mut micros, 0.99), rate })
}

/// Calls with 0, 1, 2 and so on each `interval` seconds; returns how long each took, in
/// microseconds.
fn timed(
    begun: Instant,
    interval: f64,
    lasting: Duration,
    mut call: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let mut micros = Vec::new();
    while begun.elapsed() < lasting {
        let due = Duration::from_secs_f64(interval * micros.len() as f64);
        thread::sleep(due.saturating_sub(begun.elapsed()));
        let calling = Instant::now();
        call(micros.len() as u64)?;
        micros.push(calling.elapsed().as_secs_f64() * 1e6);
    }
    Ok(micros)
}

/// A record in the log.
const RECORD_BYTES: u64 = 16 + (SMALL as u64).next_multiple_of(8);

/// The same without a log: how much of the row is the disk's doing.
struct Bare {
    written: File,
    read: File,
}

impl Bare {
    const BYTES: u64 = 64 << 20;
    const PAGE: u64 = 4 << 10;
    const PIECE: u64 = 64 << 10;

    fn new(dir: &Path) -> anyhow::Result<Bare> {
        let file = |name| disk::zeroed(&dir.join(name), Bare::BYTES);
        Ok(Bare { written: file("written")?, read: file("read")? })
    }

    /// Durable writes of a page, one each `interval` seconds, beside reads in pieces of 64 KiB, of
    /// so many bytes a second.
    fn paced(&self, interval: f64, lasting: Duration, read_rate: f64) -> anyhow::Result<Paced> {
        let page = disk::page_buffer(Bare::PAGE as usize)?;
        let begun = Instant::now();
        let reader = || -> anyhow::Result<()> {
            if read_rate > 0.0 {
                let mut piece = disk::page_buffer(Bare::PIECE as usize)?;
                timed(begun, Bare::PIECE as f64 / read_rate, lasting, |n| {
                    Ok(self.read.read_exact_at(&mut piece, n * Bare::PIECE % Bare::BYTES)?)
                })?;
            }
            Ok(())
        };
        let mut micros = thread::scope(|scope| {
            let reader = scope.spawn(reader);
            let micros = timed(begun, interval, lasting, |n| {
                disk::write_durable(&self.written, &page, n * Bare::PAGE % Bare::BYTES)
            });
            reader.join().expect("the reader does not panic").and(micros)
        })?;
        let rate = micros.len() as f64 / begun.elapsed().as_secs_f64();
        Ok(Paced { p99: percentile(&mut micros, 0.99), rate })
    }
}

/// Consumers that begin again whenever they come too close to the end.
struct Replays<'a> {
    bus: &'a Bus,
    catching_up: Vec<Subscription>,
    cold: Vec<Subscription>,
    cold_distance: u64,
    read: Arc<AtomicU64>,
    wrong: Arc<AtomicU64>,
}

impl Replays<'_> {
    fn start(bus: &Bus, cold_distance: u64) -> anyhow::Result<Replays<'_>> {
        let (read, wrong) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let start = |name: String| {
            let (read, wrong) = (Arc::clone(&read), Arc::clone(&wrong));
            let subscribe = bus.subscribe(&name).start_at(Start::Latest);
            let subscribe = subscribe.on_position_lost(OnPositionLost::Earliest);
            let subscription = subscribe.run(move |batch: &Batch<'_>| {
                let strangers = batch.iter().filter(|record| {
                    let number = record.payload().first_chunk().map(|n| u64::from_le_bytes(*n));
                    number != Some(record.lsn().get())
                });
                wrong.fetch_add(strangers.count() as u64, Ordering::Relaxed);
                read.fetch_add(batch.len() as u64, Ordering::Relaxed);
                Ok(Ack::All)
            });
            subscription.context(name)
        };
        let several = |what: &str, count| -> anyhow::Result<Vec<Subscription>> {
            (0..count).map(|i| start(format!("{what}-{i}"))).collect()
        };
        let (catching_up, cold) = (several("catch-up", CATCHING_UP)?, several("cold", COLD)?);
        Ok(Replays { bus, catching_up, cold, cold_distance, read, wrong })
    }

    fn all(&self) -> impl Iterator<Item = &Subscription> {
        self.catching_up.iter().chain(&self.cold)
    }

    /// Runs something while they replay.
    fn beside<T: Send>(&self, run: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let stop = AtomicBool::new(false);
        self.all().for_each(Subscription::resume);
        let outcome = thread::scope(|scope| {
            let keeper = scope.spawn(|| self.keep_behind(&stop));
            // They are under way when it begins.
            thread::sleep(Duration::from_millis(50));
            let outcome = run();
            stop.store(true, Ordering::Relaxed);
            keeper.join().expect("the keeper does not panic").and(outcome)
        });
        self.all().for_each(Subscription::pause);
        outcome
    }

    fn keep_behind(&self, stop: &AtomicBool) -> anyhow::Result<()> {
        const CLOSE: u64 = 32 << 20;
        while !stop.load(Ordering::Relaxed) {
            for consumer in &self.catching_up {
                if consumer.status().lag_bytes < CLOSE {
                    consumer.seek(Start::Earliest)?;
                }
            }
            for consumer in &self.cold {
                let status = consumer.status();
                let replays = status.tier == Tier::Cold && !status.shed;
                if !replays || status.lag_bytes < self.cold_distance + CLOSE {
                    consumer.seek(Start::Earliest)?;
                    self.bus.force(consumer.name(), Force::Replaying, Reason::Admitted);
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}
