//! A consumer far behind a writer that does not stop: how long until it is hot again, beside how
//! long it takes to read so much.
//!
//! What it has to read lies beyond the window of catch-up, so the default policy sheds it at once,
//! and it comes back through cold, catch-up and hot. All waiting that this takes counts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, ensure};
use eventplane::{Ack, Batch, Bus, Lsn, Retention, Signal, Start, Tier};

use super::PATIENCE;
use super::cold::read_four;
use crate::disk::{self, Pieces};
use crate::load::{LARGE, Log, fill};
use crate::report::{Bar, divide};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "chase", run };

/// A record of 1 KiB with its header.
const FRAMED: u64 = LARGE as u64 + 16;

fn run(context: &Context) -> anyhow::Result<()> {
    let behind = context.scaled(4 << 30, 64 << 20);
    let free = disk::free_bytes(&context.dir)?;
    if free < 2 * behind {
        context.report.skip(BENCH.name, &format!("{} MiB free of {}", free >> 20, behind >> 19));
        return Ok(());
    }
    let dir = context.dir.join("chase");
    let builder = Bus::builder().cold_bytes_per_second(None);
    let builder = builder.retention(Retention::bytes(behind + behind / 2));
    let builder = if context.quick {
        builder.ring_bytes(32 << 20).catchup_window_bytes(64 << 20)
    } else {
        builder
    };
    let begun = Instant::now();
    let log = Log::write(dir.clone(), behind, LARGE, builder.clone())?;
    let tenth = behind as f64 / begun.elapsed().as_secs_f64() / 10.0;
    let bus = builder.open(&dir)?;
    let (mut times, mut ideals) = (vec![], vec![]);
    let (mut speeds, mut slower, mut bare) = (vec![], vec![], vec![]);
    for round in 0..context.rounds {
        let alone = chase(&bus, &format!("alone-{round}"), behind)?;
        let name = format!("chasing-{round}");
        let chased = beside_writer(&bus, tenth, || chase(&bus, &name, behind))?;
        times.push(chased.seconds);
        ideals.push(chased.bytes as f64 / alone.speed());
        speeds.push(alone.speed() / 1e9);
        slower.push(alone.speed() / chased.speed());
        bare.push(slowdown(&bus, tenth, &log)?);
    }
    bus.close()?;
    fs::remove_dir_all(&dir)?;
    let report = &context.report;
    report.figure(BENCH.name, "the writer, GB/s", &[tenth / 1e9]);
    report.figure(BENCH.name, "replay alone, GB/s", &speeds);
    report.figure(BENCH.name, "replay's speed, alone / beside the writer", &slower);
    report.figure(BENCH.name, "a bare reader's, past the cache", &bare);
    report.sample(BENCH.name, "s", ("until hot", &times), ("ideal", &ideals));
    report.ratio(BENCH.name, &divide(&times, &ideals), Bar::AtMost(1.3));
    Ok(())
}

/// How much longer a bare reader takes beside the writer: what is the disk's doing.
fn slowdown(bus: &Bus, writer_rate: f64, log: &Log) -> anyhow::Result<f64> {
    // From the middle, where nothing is written, and nothing removed before long.
    let segments = log.segments()?;
    let middle = &segments[segments.len() * 3 / 8..segments.len() * 5 / 8];
    let mut pieces = Pieces::new()?;
    let mut read = || -> anyhow::Result<f64> {
        let begun = Instant::now();
        read_four(middle, &mut pieces)?;
        Ok(begun.elapsed().as_secs_f64())
    };
    let alone = read()?;
    Ok(beside_writer(bus, writer_rate, read)? / alone)
}

/// What a consumer did until it was hot.
struct Chased {
    seconds: f64,
    bytes: u64,
    /// Of `seconds`, those in which batches followed each other.
    busy: f64,
}

impl Chased {
    /// Bytes a second, while it read.
    fn speed(&self) -> f64 {
        self.bytes as f64 / self.busy
    }
}

/// What the callback keeps.
struct Progress {
    next: u64,
    astray: u64,
    records: u64,
    before: Instant,
    busy: Duration,
}

fn chase(bus: &Bus, name: &str, behind: u64) -> anyhow::Result<Chased> {
    let first = bus.committed_lsn().get() - behind / FRAMED + 1;
    let first = first.max(bus.first_lsn().get());
    let now = Instant::now();
    let progress =
        Progress { next: first, astray: 0, records: 0, before: now, busy: Duration::ZERO };
    let progress = Arc::new(Mutex::new(progress));
    let (hot, is_hot) = channel();
    let shared = Arc::clone(&progress);
    let begun = Instant::now();
    let consumer = bus
        .subscribe(name)
        .start_at(Start::Lsn(Lsn::new(first)))
        .on_signal(move |signal| tell_hot(signal, &hot))
        .run(move |batch: &Batch<'_>| {
            shared.lock().expect("nobody panics with it").take(batch);
            Ok(Ack::All)
        })?;
    let became_hot = is_hot.recv_timeout(PATIENCE).context("never hot")?;
    consumer.stop()?;
    bus.forget(name)?;
    let progress = progress.lock().expect("nobody panics with it");
    ensure!(progress.astray == 0, "{} records out of order or changed", progress.astray);
    Ok(Chased {
        seconds: (became_hot - begun).as_secs_f64(),
        bytes: progress.records * FRAMED,
        busy: progress.busy.as_secs_f64(),
    })
}

fn tell_hot(signal: &Signal, hot: &Sender<Instant>) {
    if let Signal::TierChanged { to: Tier::Hot, .. } = signal {
        // Whoever waits for the first has gone when there is a second.
        let _ = hot.send(Instant::now());
    }
}

impl Progress {
    fn take(&mut self, batch: &Batch<'_>) {
        /// A longer pause is a decision, not a read.
        const PAUSE: Duration = Duration::from_millis(50);
        if batch.tier() == Tier::Hot {
            return;
        }
        for record in batch {
            let number = record.payload().first_chunk().map(|n| u64::from_le_bytes(*n));
            let lsn = record.lsn().get();
            self.astray += u64::from(lsn != self.next || number != Some(lsn));
            self.next = lsn + 1;
        }
        self.records += batch.len() as u64;
        let now = Instant::now();
        let gap = now - self.before;
        self.busy += if gap < PAUSE { gap } else { Duration::ZERO };
        self.before = now;
    }
}

/// Runs something while a writer commits so many bytes a second.
fn beside_writer<T>(
    bus: &Bus,
    bytes_per_second: f64,
    run: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    const BATCH: u64 = 64;
    let stop = AtomicBool::new(false);
    let write = || -> anyhow::Result<()> {
        let writer = bus.writer();
        let mut payload = [0; LARGE];
        let mut next = bus.committed_lsn().get() + 1;
        let begun = Instant::now();
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let mut batch = writer.batch();
            for _ in 0..BATCH {
                fill(&mut payload, next);
                batch.append(1, next, &payload)?;
                next += 1;
            }
            batch.commit()?;
            let due = (number * BATCH * FRAMED) as f64 / bytes_per_second;
            thread::sleep(Duration::from_secs_f64(due).saturating_sub(begun.elapsed()));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let writing = scope.spawn(write);
        let outcome = run();
        stop.store(true, Ordering::Relaxed);
        writing.join().expect("the writer does not panic").and(outcome)
    })
}
