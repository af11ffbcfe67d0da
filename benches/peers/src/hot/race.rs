//! A run: one publisher on core 0, one or more readers on core 1, and the time from the first
//! record published to the last one read.
//!
//! Where the system under test does not hold its publisher back, the run does: readers tell how far
//! they are each eighth of a window, and the publisher looks only when it believes to have used the
//! window up. So it takes two cache lines a fraction of a megabyte, and nobody is lapped.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use crossbeam_utils::CachePadded;

use super::load::{Checker, Load};
use crate::machine;

/// A poll that brings so many is not a partial one: there is more.
pub const POLL_MAX: usize = 256;

/// A run that takes longer does not end.
const DEADLINE: Duration = Duration::from_secs(30);

/// What is to be done.
pub struct Job {
    pub load: Load,
    pub total: u64,
    /// Records that become visible together.
    pub batch: usize,
    pub readers: usize,
    /// What a ring has for payloads, or for records with their headers.
    pub ring_bytes: u64,
    /// How far ahead of its slowest reader a publisher gets; `None`: as far as its ring allows.
    pub ahead_bytes: Option<u64>,
}

impl Job {
    /// The window, in records, of a system that holds its publisher back by itself.
    pub fn window(&self) -> Option<u64> {
        let mean = self.load.mean_bytes(|payload| payload);
        self.ahead_bytes.map(|bytes| (bytes as f64 / mean) as u64)
    }

    /// That of one that does not, and whose records take so many bytes of its ring.
    pub fn window_of(&self, record_bytes: f64) -> Option<u64> {
        self.window().or(Some((self.ring_bytes as f64 / 2.0 / record_bytes) as u64))
    }

    /// The readers of a run and what watches them.
    pub fn prepare(&self, window: Option<u64>) -> (Vec<Reader>, Race<'_>) {
        let step = window.map_or(u64::MAX, |records| (records / 8).max(1));
        let (sender, done) = mpsc::channel();
        let readers: Vec<Reader> = (0..self.readers)
            .map(|_| Reader {
                checker: Checker::new(&self.load),
                progress: Arc::default(),
                tell_at: step.min(self.total),
                step,
                total: self.total,
                done: sender.clone(),
            })
            .collect();
        let progress = readers.iter().map(|reader| Arc::clone(&reader.progress)).collect();
        let watch = Watch { progress, window, is_over: AtomicBool::new(false) };
        (readers, Race { job: self, watch, done })
    }
}

/// One reader's side of a run.
pub struct Reader {
    checker: Checker,
    progress: Arc<CachePadded<AtomicU64>>,
    tell_at: u64,
    step: u64,
    total: u64,
    done: Sender<(Instant, Checker)>,
}

impl Reader {
    #[inline]
    pub fn take(&mut self, payload: &[u8]) {
        self.checker.take(payload);
    }

    /// What the system handed over at once ends here.
    #[inline]
    pub fn batch_ends(&mut self) {
        if self.checker.seen >= self.tell_at {
            self.tell();
        }
    }

    #[cold]
    fn tell(&mut self) {
        let seen = self.checker.seen;
        self.tell_at = seen.saturating_add(self.step).min(self.total.max(seen + 1));
        // Release: whoever waits for the last of them sees what was done before.
        self.progress.store(seen, Ordering::Release);
        if seen >= self.total {
            // Nobody listens any more where another reader was too slow.
            let _ = self.done.send((Instant::now(), self.checker.clone()));
        }
    }

    pub fn object(&mut self) {
        self.checker.object();
    }
}

/// How far the readers are.
pub struct Watch {
    progress: Vec<Arc<CachePadded<AtomicU64>>>,
    window: Option<u64>,
    is_over: AtomicBool,
}

impl Watch {
    fn slowest(&self) -> u64 {
        let seen = |progress: &Arc<CachePadded<AtomicU64>>| progress.load(Ordering::Acquire);
        self.progress.iter().map(seen).min().unwrap_or(0)
    }

    /// Waits until `end` records are within the window; returns how many are.
    #[cold]
    fn allow(&self, end: u64, window: u64) -> anyhow::Result<u64> {
        let mut begun = None;
        loop {
            for _ in 0..1 << 16 {
                let allowed = self.slowest() + window;
                if allowed >= end {
                    return Ok(allowed);
                }
                hint::spin_loop();
            }
            if begun.get_or_insert_with(Instant::now).elapsed() > DEADLINE {
                bail!("a reader stands still at record {}", self.slowest());
            }
        }
    }
}

/// Where a system takes records.
pub trait Outlet: Send {
    /// Publishes the records, all at once if the system can.
    fn publish<'l>(
        &mut self,
        records: impl ExactSizeIterator<Item = &'l [u8]>,
    ) -> anyhow::Result<()>;
}

/// Where a system gives them to somebody who asks.
pub trait Inlet: Send {
    /// Takes what there is, some [`POLL_MAX`] at most. Returns how many it took.
    fn poll(&mut self) -> usize;
}

/// Polls the inlets in turn until all records were read. After a poll that brought only a part of
/// what it may bring, the publisher is given so many pauses before the next look takes its line.
pub fn drain(inlets: &mut [impl Inlet], pauses: u32, watch: &Watch) {
    loop {
        let most = inlets.iter_mut().map(Inlet::poll).max().unwrap_or(0);
        if most == 0 {
            if watch.is_over.load(Ordering::Relaxed) {
                return;
            }
            hint::spin_loop();
        } else if most < POLL_MAX {
            (0..pauses).for_each(|_| hint::spin_loop());
        }
    }
}

/// Nanoseconds a record.
#[derive(Clone, Copy)]
pub struct Timing {
    /// From the first one published to the last one read.
    pub all: f64,
    /// From the first one published to the last one published.
    pub publishing: f64,
}

/// A run that is about to begin.
pub struct Race<'j> {
    job: &'j Job,
    watch: Watch,
    done: Receiver<(Instant, Checker)>,
}

impl Race<'_> {
    /// Publishes all records into `outlet` on core 0 while `read` runs on core 1. What is read by
    /// threads of the system itself needs no `read`.
    pub fn run(
        self,
        mut outlet: impl Outlet,
        read: impl FnOnce(&Watch) + Send,
    ) -> anyhow::Result<Timing> {
        let Race { job, watch, done } = self;
        let (watch, start) = (&watch, &Barrier::new(2));
        let (begun, published, last) = thread::scope(|scope| {
            let publisher = scope.spawn(move || {
                machine::pin(0);
                start.wait();
                let begun = Instant::now();
                let published = publish(job, watch, &mut outlet).map(|()| Instant::now());
                // The outlet goes back, for dropping it may wait for the system's own threads.
                (begun, published, outlet)
            });
            scope.spawn(move || {
                machine::pin(1);
                start.wait();
                read(watch);
            });
            let outcome = match publisher.join() {
                Ok((begun, Ok(published), _outlet)) => {
                    verdict(job, &done).map(|last| (begun, published, last))
                }
                Ok((_, Err(error), _)) => Err(error),
                Err(_) => Err(anyhow!("the publisher panicked")),
            };
            watch.is_over.store(true, Ordering::Relaxed);
            outcome
        })?;
        let nanos_each = |end: Instant| (end - begun).as_nanos() as f64 / job.total as f64;
        Ok(Timing { all: nanos_each(last), publishing: nanos_each(published) })
    }
}

fn publish(job: &Job, watch: &Watch, outlet: &mut impl Outlet) -> anyhow::Result<()> {
    let (mut sent, mut at) = (0, 0);
    let mut allowed = watch.window.unwrap_or(u64::MAX);
    while sent < job.total {
        let end = sent + job.batch as u64;
        if let Some(window) = watch.window
            && end > allowed
        {
            allowed = watch.allow(end, window)?;
        }
        outlet.publish(job.load.records(at, job.batch))?;
        sent = end;
        at += job.batch;
        if at >= job.load.cycle() {
            at -= job.load.cycle();
        }
    }
    Ok(())
}

/// Waits for all readers and checks what they read. Returns when the last of them was done.
fn verdict(job: &Job, done: &Receiver<(Instant, Checker)>) -> anyhow::Result<Instant> {
    let mut last = None;
    for _ in 0..job.readers {
        let (at, checker) =
            done.recv_timeout(DEADLINE).context("a reader did not come to its end")?;
        checker.check(&job.load, job.total)?;
        last = last.max(Some(at));
    }
    last.context("a run without readers")
}
