//! What the rest of the bus knows of a consumer: control going in, progress coming out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::options::Signal;
use super::pins::Account;
use super::plane::Stirs;
use super::tiering::{Tiering, Transition};
use crate::error::Error;
use crate::lsn::Lsn;
use crate::policy::Tier;
use crate::ring::{Place, Sleeper};
use crate::source::Cursor;
use crate::sync::{Event, Mutex, atomic, planted};
use crate::telemetry::ConsumerMetrics;

/// What a consumer is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Activity {
    Running,
    Paused,
    /// Waits until it may try again.
    Retrying,
    Parked,
    /// A reader between two calls: nobody waits for what it has not read.
    Unpolled,
}

/// What others want of it. Changed under the lock; the epoch tells the consumer to look.
#[derive(Debug, Default)]
pub(crate) struct Control {
    pub(crate) paused: bool,
    pub(crate) stop: bool,
    /// Try again although parked or waiting.
    pub(crate) retry: bool,
    /// Where to go, and the epoch that begins there.
    pub(crate) seek: Option<(Cursor, u64)>,
    /// Counts seeks; a wait compares it, so it never takes the old position for the new.
    pub(crate) seeks: u64,
    pub(crate) parked: Option<Error>,
    pub(crate) finished: bool,
    /// What kept its last checkpoint from being stored.
    pub(crate) unstored: Option<Error>,
}

pub(crate) struct State {
    /// Unique in the process.
    pub(crate) id: u64,
    pub(crate) name: String,
    /// Has a checkpoint under its name.
    pub(crate) durable_name: bool,
    pub(crate) sleeper: Arc<Sleeper>,
    /// Counted up by orders, for the supervisor.
    stirs: Arc<Stirs>,
    control: Mutex<Control>,
    /// Bumped after each change of `control`. Release by callers, Acquire by the consumer right
    /// before each callback.
    control_epoch: atomic::AtomicU32,
    /// Last record processed, in the epoch `seeks_applied`. Written by the consumer alone: first
    /// the LSN, then, after a seek, the epoch (Release), so a reader that sees the epoch sees an
    /// LSN of it or of a later one.
    processed: atomic::AtomicU64,
    seeks_applied: atomic::AtomicU64,
    /// Position of the next record, as far as bytes are concerned.
    pub(crate) place: Arc<Place>,
    /// Block time of the last record processed. Relaxed, as what it is at and all counts below:
    /// each is looked at by itself.
    pub(crate) last_time_nanos: AtomicU64,
    activity: AtomicU8,
    pub(crate) in_callback: AtomicBool,
    pub(crate) tiering: Mutex<Tiering>,
    /// Bumped after each transition. Release by whoever decides, Acquire by the consumer.
    pub(crate) tier_epoch: atomic::AtomicU32,
    /// Signals of transitions, taken by the consumer's thread.
    pub(crate) signals: Mutex<VecDeque<Signal>>,
    pub(crate) account: Arc<Account>,
    pub(crate) retries: AtomicU32,
    pub(crate) failures: AtomicU64,
    pub(crate) delivered: [AtomicU64; 3],
    pub(crate) replayed: [AtomicU64; 3],
    pub(crate) walked: AtomicU64,
    /// Block bytes whose checksum was computed for it.
    pub(crate) checked: AtomicU64,
    /// At most the least LSN that somebody waits for; an entry left behind costs a needless look.
    /// A wait enters its own before each look, so `publish` may take all back when it wakes them.
    awaited: atomic::AtomicU64,
    /// Something that a wait may look for has changed.
    pub(crate) changed: Event,
    pub(crate) metrics: ConsumerMetrics,
}

/// Adds to what the consumer counts, and nobody else writes: so without an exchange. Relaxed.
pub(crate) fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl State {
    pub(crate) fn new(
        name: String,
        durable_name: bool,
        account: Arc<Account>,
        cursor: Cursor,
        tiering: Tiering,
        metrics: ConsumerMetrics,
        stirs: Arc<Stirs>,
    ) -> State {
        State {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            name,
            durable_name,
            sleeper: Arc::default(),
            stirs,
            control: Mutex::default(),
            control_epoch: atomic::AtomicU32::new(0),
            processed: atomic::AtomicU64::new(cursor.next_lsn.previous().get()),
            seeks_applied: atomic::AtomicU64::new(0),
            place: Arc::new(Place::new(cursor.block)),
            last_time_nanos: AtomicU64::new(0),
            activity: AtomicU8::new(Activity::Running as u8),
            in_callback: AtomicBool::new(false),
            tiering: Mutex::new(tiering),
            tier_epoch: atomic::AtomicU32::new(0),
            signals: Mutex::default(),
            account,
            retries: AtomicU32::new(0),
            failures: AtomicU64::new(0),
            delivered: Default::default(),
            replayed: Default::default(),
            walked: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            awaited: atomic::AtomicU64::new(u64::MAX),
            changed: Event::default(),
            metrics,
        }
    }

    // ---- control ---------------------------------------------------------------------------

    pub(crate) fn control_epoch(&self) -> u32 {
        self.control_epoch.load(Ordering::Acquire)
    }

    /// Changes what is wanted and wakes the consumer to see it.
    pub(crate) fn order<T>(&self, change: impl FnOnce(&mut Control) -> T) -> T {
        let answer = change(&mut self.control.lock());
        self.control_epoch.fetch_add(1, Ordering::Release);
        self.stirs.stir();
        self.sleeper.word.wake_all();
        self.changed.notify();
        answer
    }

    /// Looks at, or changes as the consumer itself, what is wanted.
    pub(crate) fn control<T>(&self, look: impl FnOnce(&mut Control) -> T) -> T {
        look(&mut self.control.lock())
    }

    // ---- progress, written by the consumer alone -------------------------------------------

    /// Everything before the cursor is processed. Who waits is told at the LSN awaited.
    pub(crate) fn publish(&self, cursor: &Cursor) {
        let (at, lsn) = (cursor.block + u64::from(cursor.offset), cursor.next_lsn.previous().get());
        // A consumer that finds nothing tells nothing. Relaxed: these are its own words.
        if self.place.at() == at && self.processed.load(Ordering::Relaxed) == lsn {
            return;
        }
        self.place.move_to(at);
        // SeqCst, as for who waits: it enters what it waits for and then looks at this word.
        self.processed.store(lsn, Ordering::SeqCst);
        if lsn >= self.awaited.load(Ordering::SeqCst) {
            // Acquire: whoever entered before this has counted itself as waiting, and is woken.
            self.awaited.swap(u64::MAX, Ordering::Acquire);
            self.changed.notify();
        }
    }

    pub(crate) fn apply_seek(&self, cursor: &Cursor, epoch: u64) {
        self.place.arrive(cursor.block);
        self.processed.store(cursor.next_lsn.previous().get(), Ordering::SeqCst);
        self.seeks_applied.store(epoch, Ordering::SeqCst);
        self.changed.notify();
    }

    pub(crate) fn set_activity(&self, activity: Activity) {
        self.activity.store(activity as u8, Ordering::Relaxed);
    }

    // ---- progress, read by anybody ---------------------------------------------------------

    pub(crate) fn activity(&self) -> Activity {
        match self.activity.load(Ordering::Relaxed) {
            0 => Activity::Running,
            1 => Activity::Paused,
            2 => Activity::Retrying,
            3 => Activity::Parked,
            _ => Activity::Unpolled,
        }
    }

    /// The last record processed; where a seek is pending, the one before its target.
    pub(crate) fn processed(&self) -> Lsn {
        let control = self.control.lock();
        match &control.seek {
            Some((cursor, _)) => cursor.next_lsn.previous(),
            None => self.processed_now(),
        }
    }

    fn processed_now(&self) -> Lsn {
        Lsn::new(self.processed.load(Ordering::SeqCst))
    }

    /// To be called in each look of a wait on `changed`, before it looks.
    pub(crate) fn await_lsn(&self, lsn: Lsn) {
        let lsn = if planted("wait_enters_the_next") { lsn.next() } else { lsn };
        self.awaited.fetch_min(lsn.get(), Ordering::SeqCst);
    }

    /// The last record processed in seek epoch `seeks` or a later one.
    pub(crate) fn processed_in(&self, seeks: u64) -> Option<Lsn> {
        let seeks = if planted("wait_ignores_seeks") { 0 } else { seeks };
        (self.seeks_applied.load(Ordering::SeqCst) >= seeks).then(|| self.processed_now())
    }

    pub(crate) fn position(&self) -> u64 {
        let control = self.control.lock();
        match &control.seek {
            Some((cursor, _)) => cursor.block,
            None => self.place.at(),
        }
    }
}

/// A consumer at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// Its name; `reader-N` for a [`Reader`](crate::Reader).
    pub name: String,
    /// Where its bytes come from.
    pub tier: Tier,
    /// Cold, and not replaying yet.
    pub shed: bool,
    /// Last record processed.
    pub lsn: Lsn,
    /// Records committed and not processed.
    pub lag_records: u64,
    /// Log bytes committed and not processed, padding included.
    pub lag_bytes: u64,
    /// Age of the last record processed while others wait; zero when caught up.
    pub lag: Duration,
    /// Bytes that may be written before retention deletes what it needs next; `None` if it never
    /// does.
    pub lead_bytes: Option<u64>,
    /// Bytes that its leases keep in memory.
    pub pinned_bytes: u64,
    /// Records delivered, by tier: hot, catch-up, cold.
    pub delivered: [u64; 3],
    /// Block bytes read, by tier: hot, catch-up, cold. Nothing is read in hot.
    pub replayed_bytes: [u64; 3],
    /// Deliveries of the current batch that failed.
    pub retries: u32,
    /// Deliveries that failed since it was subscribed.
    pub failures: u64,
    /// Paused by `pause`.
    pub paused: bool,
    /// What it is parked for.
    pub parked: Option<Error>,
    /// Its last change of tier.
    pub last_transition: Option<Transition>,
}
