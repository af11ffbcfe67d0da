//! A thousand subscribers with nothing to do: what they cost, and what it costs to wake them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use eventplane::{Ack, Batch, Bus, Lsn, Start, Subscription};

use super::PATIENCE;
use crate::commit::{commit_micros, percentile};
use crate::report::{Bar, divide};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "idle_1000", run };

const WAKE: &str = "idle_1000_wake";

fn run(context: &Context) -> anyhow::Result<()> {
    let subscribers = context.scaled(1_000, 100);
    let commits = context.scaled(300, 50);
    let dir = tempfile::tempdir_in(&context.dir)?;
    let many = Crowd::start(Bus::builder().open(dir.path().join("many"))?, subscribers)?;
    let mut idle = vec![];
    for _ in 0..context.rounds {
        thread::sleep(Duration::from_millis(context.scaled(1_000, 200)));
        let (cpu, begun) = (cpu_seconds(), Instant::now());
        thread::sleep(Duration::from_millis(context.scaled(3_000, 500)));
        idle.push((cpu_seconds() - cpu) / begun.elapsed().as_secs_f64() * 100.0);
        many.commit(commits)?;
    }
    let one = Crowd::start(Bus::builder().open(dir.path().join("one"))?, 1)?;
    let (mut woken, mut p50s) = (vec![], [vec![], vec![]]);
    for _ in 0..context.rounds {
        thread::sleep(Duration::from_millis(100));
        let cpu = cpu_seconds();
        many.commit(1)?;
        woken.push((cpu_seconds() - cpu) * 1e3);
        p50s[0].push(many.commit(commits)?);
        p50s[1].push(one.commit(commits)?);
    }
    many.check()?;
    one.check()?;
    let report = &context.report;
    report.figure(BENCH.name, "processor, % of a core", &idle);
    report.ratio(BENCH.name, &idle, Bar::AtMost(1.0));
    report.figure(WAKE, "processor time of waking all of them once, ms", &woken);
    let label = format!("commits beside {subscribers} subscribers");
    report.sample(WAKE, "us p50", (&label, &p50s[0]), ("commits beside one", &p50s[1]));
    report.ratio(WAKE, &divide(&p50s[0], &p50s[1]), Bar::AtMost(3.0));
    Ok(())
}

/// Subscribers that see every record.
struct Crowd {
    subscriptions: Vec<Subscription>,
    seen: Arc<AtomicU64>,
    bus: Bus,
}

impl Crowd {
    fn start(bus: Bus, subscribers: u64) -> anyhow::Result<Crowd> {
        let seen = Arc::new(AtomicU64::new(0));
        let start = |i: u64| {
            let seen = Arc::clone(&seen);
            let subscribe = bus.subscribe(format!("idle-{i}")).start_at(Start::Latest);
            subscribe.run(move |batch: &Batch<'_>| {
                seen.fetch_add(batch.len() as u64, Ordering::Relaxed);
                Ok(Ack::All)
            })
        };
        let subscriptions = (0..subscribers).map(start).collect::<Result<_, _>>()?;
        Ok(Crowd { subscriptions, seen, bus })
    }

    /// Commits one by one, then waits for all to have seen it; returns the median in microseconds.
    fn commit(&self, commits: u64) -> anyhow::Result<f64> {
        let mut micros = commit_micros(&self.bus, &self.bus.writer(), commits)?;
        let last: Lsn = self.bus.committed_lsn();
        for subscription in &self.subscriptions {
            subscription.wait_processed(last, PATIENCE)?;
        }
        Ok(percentile(&mut micros, 0.5))
    }

    fn check(&self) -> anyhow::Result<()> {
        let seen = self.seen.load(Ordering::Relaxed);
        let expected = self.bus.committed_lsn().get() * self.subscriptions.len() as u64;
        ensure!(seen == expected, "{seen} records seen, {expected} expected");
        Ok(())
    }
}

/// Processor time of this process so far.
fn cpu_seconds() -> f64 {
    // SAFETY: plain bits, for which zeros are a value; the call only writes to them.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
