//! The supervisor: every tick it looks at each consumer, lets the policy decide, and tells the
//! metrics. And the housekeeper beside it, which does what may wait for the disk.
//!
//! A consumer at rest is not looked at again until something is stirred (see `Plane::look`): else
//! a thousand that have nothing to do would cost more than the one that has.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::consumer::{Plane, State, Stirred};
use crate::limits;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Futex, Mutex, nanos};
use crate::telemetry::BusMetrics;

/// Ends the background loops of a bus.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    flag: AtomicBool,
    bell: Futex,
}

impl Stop {
    pub(crate) fn stop(&self) {
        self.flag.store(true, Ordering::Release);
        self.bell.wake_all();
    }

    /// Sleeps for `interval`; false when it is time to end.
    fn pause(&self, interval: Duration) -> bool {
        let seen = self.bell.read();
        if !self.is_set() {
            self.bell.sleep(seen, interval);
        }
        !self.is_set()
    }

    pub(crate) fn is_set(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.flag
    }
}

pub(crate) struct Supervisor {
    plane: Arc<Plane>,
    metrics: BusMetrics,
    watch: Mutex<Watch>,
    /// The batch that held the append lock at the last tick, and the last one warned of. Relaxed:
    /// the tick's own numbers.
    held_batch: AtomicU64,
    warned_batch: AtomicU64,
    long_batches: AtomicU64,
}

/// Whom the supervisor has to look at.
#[derive(Default)]
struct Watch {
    /// Those not at rest when everybody was looked at, or since.
    restless: Vec<Arc<State>>,
    /// What was stirred, and when it was, when everybody was looked at; `None` at first.
    looked: Option<(Stirred, u64)>,
}

impl Supervisor {
    pub(crate) fn new(plane: Arc<Plane>) -> Supervisor {
        Supervisor {
            plane,
            metrics: BusMetrics::new(),
            watch: Mutex::default(),
            held_batch: AtomicU64::new(0),
            warned_batch: AtomicU64::new(0),
            long_batches: AtomicU64::new(0),
        }
    }

    /// Ticks until the end.
    pub(crate) fn run(&self, stop: &Stop) {
        while stop.pause(self.plane.options.tick) {
            self.tick();
        }
        self.tick();
    }

    /// One look at everything.
    pub(crate) fn tick(&self) {
        self.plane.log.clock.adjust();
        self.look();
        self.plane.log.ring.trim();
        self.watch_batches();
        self.tell();
    }

    fn look(&self) {
        let Watch { restless, looked } = &mut *self.watch.lock();
        let now = self.plane.log.clock.now();
        let exhausted = self.plane.budget.take_exhausted();
        // Before the look: what is stirred during it counts for the next one.
        let stirred = self.plane.stirred();
        let rests = looked.is_some_and(|(seen, at)| {
            seen == stirred && now.saturating_sub(at) < nanos(limits::LOOK_INTERVAL)
        });
        if exhausted || !rests {
            *restless = self.plane.consumers();
            *looked = Some((stirred, now));
        }
        let heaviest = exhausted.then(|| heaviest(restless)).flatten();
        restless.retain(|state| !self.plane.look(state, heaviest == Some(state.id)));
        self.plane.looked(now);
    }

    /// A batch that holds the append lock from one tick to a later one is long.
    fn watch_batches(&self) {
        let held = self.plane.log.held_batch();
        let before = self.held_batch.swap(held, Ordering::Relaxed);
        let is_long = held != 0 && held == before && self.plane.options.tick >= limits::LONG_BATCH;
        if is_long && self.warned_batch.swap(held, Ordering::Relaxed) != held {
            self.long_batches.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("a write batch holds the append lock for longer than a tick");
        }
    }

    fn tell(&self) {
        let (plane, metrics) = (&self.plane, &self.metrics);
        let (log, counters) = (&plane.log, &plane.log.counters);
        metrics.records.tell(counters.records.load(Ordering::Relaxed));
        metrics.bytes.tell(counters.bytes.load(Ordering::Relaxed));
        metrics.commits.tell(counters.commits.load(Ordering::Relaxed));
        metrics.long_batches.tell(self.long_batches.load(Ordering::Relaxed));
        let committed = log.ring.committed_lsn().get() as f64;
        metrics.committed_lsn.set(committed);
        metrics.durable_lsn.set(if plane.replay.is_some() { committed } else { 0.0 });
        metrics.pinned_bytes.set(plane.budget.pinned_bytes() as f64);
        metrics.poisoned.set(if log.poisoned().is_some() { 1.0 } else { 0.0 });
        let Some(segments) = log.segments() else {
            return;
        };
        let files = segments.files();
        metrics.wal_segments.set(files as f64);
        metrics.wal_bytes.set((files * log.geometry.segment_bytes) as f64);
        let mode = segments.disk().mode();
        metrics.io_uring.set(if mode.io_uring { 1.0 } else { 0.0 });
        metrics.direct_io.set(if mode.direct { 1.0 } else { 0.0 });
    }
}

/// Who pins most; of several the one furthest behind, whose pins are the oldest.
fn heaviest(consumers: &[Arc<State>]) -> Option<u64> {
    let pinning = consumers.iter().filter(|state| state.account.pinned_bytes() > 0);
    pinning
        .max_by_key(|state| (state.account.pinned_bytes(), Reverse(state.processed())))
        .map(|state| state.id)
}

/// Stores checkpoints and deletes segments, apart from the supervisor: both wait for the disk.
pub(crate) struct Housekeeper {
    plane: Arc<Plane>,
    /// The last run failed: an error that repeats is told once. Relaxed, as the times of the last
    /// warning and of the last retention: the housekeeper's own.
    storing_fails: AtomicBool,
    retention_fails: AtomicBool,
    warned_at: AtomicU64,
    retained_at: AtomicU64,
}

impl Housekeeper {
    pub(crate) fn new(plane: Arc<Plane>) -> Housekeeper {
        Housekeeper {
            plane,
            storing_fails: AtomicBool::new(false),
            retention_fails: AtomicBool::new(false),
            warned_at: AtomicU64::new(0),
            retained_at: AtomicU64::new(0),
        }
    }

    /// However seldom checkpoints are stored, retention goes on.
    pub(crate) fn run(&self, stop: &Stop) {
        let (clock, interval) = (&self.plane.log.clock, self.plane.options.checkpoint_interval);
        let mut due = clock.now().saturating_add(nanos(interval));
        let mut pause = interval;
        while stop.pause(pause.min(limits::RETENTION_INTERVAL)) {
            let now = clock.now();
            if now >= due {
                due = now.saturating_add(nanos(interval));
                self.store();
            }
            self.retain_if_due(now);
            pause = Duration::from_nanos(due - now);
        }
    }

    /// Checkpoints, then retention, whether or not the first worked.
    pub(crate) fn step(&self) {
        self.store();
        self.retain_if_due(self.plane.log.clock.now());
    }

    fn store(&self) {
        let outcome = self.plane.flush_checkpoints();
        report("storing checkpoints", outcome, &self.storing_fails);
    }

    fn retain_if_due(&self, now: u64) {
        let due = self.retained_at.load(Ordering::Relaxed) + nanos(limits::RETENTION_INTERVAL);
        if now >= due {
            self.retained_at.store(now, Ordering::Relaxed);
            self.retain(now);
        }
    }

    fn retain(&self, now: u64) {
        let Some(retainer) = &self.plane.retainer else {
            return;
        };
        self.warn_of_leads(now);
        let wall = self.plane.log.clock.wall();
        let outcome = retainer.delete().and_then(|()| {
            // Meanwhile nobody's start or seek is stored: who comes later finds a later first
            // record, and who came before is the barrier.
            let retained =
                self.plane.checkpoints.with_lowest(|barrier| retainer.release(wall, barrier));
            if let Some(lsn) = retained.yielded_to {
                tracing::warn!(%lsn, "retention passed the slowest checkpoint: hard cap");
            }
            retainer.delete()
        });
        report("retention", outcome, &self.retention_fails);
    }

    /// At most once in ten seconds.
    fn warn_of_leads(&self, now: u64) {
        let Some(retainer) = &self.plane.retainer else {
            return;
        };
        let deletes = retainer.kept_bytes_max() < u64::MAX;
        if !deletes || now < self.warned_at.load(Ordering::Relaxed) {
            return;
        }
        for state in self.plane.consumers() {
            let sample = self.plane.sample(&state);
            let Some(lead_bytes) = sample.lead_bytes.filter(|_| sample.lag_records > 0) else {
                continue;
            };
            if lead_bytes < retainer.kept_bytes_max() / limits::LEAD_WARN_FRACTION {
                let consumer = &*state.name;
                tracing::warn!(consumer, lead_bytes, "what it needs next is soon deleted");
                self.warned_at.store(now + nanos(Duration::from_secs(10)), Ordering::Relaxed);
            }
        }
    }
}

fn report(what: &str, outcome: crate::Result<()>, failing: &AtomicBool) {
    let error = outcome.err();
    if !failing.swap(error.is_some(), Ordering::Relaxed)
        && let Some(error) = error
    {
        tracing::warn!(%error, what, "housekeeping failed; it is tried again");
    }
}
