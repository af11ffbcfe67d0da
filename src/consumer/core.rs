//! The consumer as a state machine: `poll` does one step. It may wait for the disk, and a moment
//! for a commit that uses it; never for a record or an order.
//!
//! The same machine drives callback threads, the blocking iterator and tests. One step is: read
//! `committed`; obey control; follow the tier; bring bytes; look at control again; deliver;
//! advance; tell signals that are due; publish progress.

mod outcome;

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Result as Caught;
use std::time::Duration;

use super::batch::{Batch, Lender};
use super::filter::Filter;
use super::options::{Ack, LossCause, OnPositionLost, Retry, Signal};
use super::plane::Plane;
use super::state::{Activity, State, add};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::lsn::Lsn;
use crate::planted::{Bug, planted};
use crate::policy::Phase;
use crate::ring::Seen;
use crate::source::{Brought, Cursor, Held, PageLimits, RunIter, Scan, Want, scan as read};
use crate::sync::{nanos, thread_local};

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

thread_local! {
    /// The consumer whose callback this thread is in.
    static IN_CALLBACK: Cell<u64> = const { Cell::new(0) };
}

/// Whether this thread is in a callback of the consumer: then waiting for it would never end.
pub(crate) fn in_callback_of(state: &State) -> bool {
    IN_CALLBACK.with(Cell::get) == state.id
}

/// Runs a callback of the consumer. One inside of another, such as a reader's in a subscriber's,
/// does not end that one.
fn call<T>(state: &State, callback: impl FnOnce() -> T) -> Caught<T> {
    let outer = IN_CALLBACK.with(|id| id.replace(state.id));
    let outcome = catch_unwind(AssertUnwindSafe(callback));
    IN_CALLBACK.with(|id| id.set(outer));
    outcome
}

/// Where deliveries and signals go.
pub(crate) trait Subscriber {
    fn deliver(&mut self, batch: &Batch<'_>) -> Result<Ack, Failure>;
    fn signal(&mut self, _signal: &Signal) {}
    /// Takes a record that could not be delivered. False: park instead.
    fn dead_letter(&mut self, _batch: &Batch<'_>, _why: &Failure) -> bool {
        false
    }
    fn takes_dead_letters(&self) -> bool {
        false
    }
}

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// Something was delivered or passed over: poll again.
    Moved,
    /// Everything committed, as seen then, is processed.
    CaughtUp(Seen),
    /// Nothing can be done before this clock value.
    NotBefore(u64),
    /// Paused, parked or shed: until somebody orders or decides otherwise.
    Waiting,
    Stopped,
}

pub(crate) struct Consumer {
    plane: Arc<Plane>,
    state: Arc<State>,
    cursor: Cursor,
    held: Held,
    filter: Filter,
    limits: PageLimits,
    retry: Retry,
    on_loss: OnPositionLost,
    phase: Phase,
    tier_epoch: u32,
    control_epoch: u32,
    /// Deliveries of the batch at the cursor that failed.
    attempts: u32,
    /// After a failure records come one by one up to this one, so that one bad record does not
    /// hold up, or take along, its neighbours.
    singly_through: Lsn,
    read_failures: u32,
    not_before: u64,
    /// The tier epoch in which `CaughtUp` was told, or found to be told already.
    caught_up_in: Option<u32>,
    /// For jitter.
    dice: u64,
}

#[derive(Clone)]
pub(crate) struct ConsumerOptions {
    pub(crate) filter: Filter,
    pub(crate) limits: PageLimits,
    pub(crate) retry: Retry,
    pub(crate) on_loss: OnPositionLost,
}

impl Consumer {
    pub(crate) fn new(
        plane: Arc<Plane>,
        state: Arc<State>,
        cursor: Cursor,
        options: ConsumerOptions,
    ) -> Consumer {
        let phase = state.tiering.lock().phase;
        let ConsumerOptions { filter, limits, retry, on_loss } = options;
        Consumer {
            dice: seed_of(&state.name),
            plane,
            state,
            cursor,
            held: Held::None,
            filter,
            limits,
            retry,
            on_loss,
            phase,
            tier_epoch: 0,
            control_epoch: 0,
            attempts: 0,
            singly_through: Lsn::ZERO,
            read_failures: 0,
            not_before: 0,
            caught_up_in: None,
        }
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    pub(crate) fn plane(&self) -> &Arc<Plane> {
        &self.plane
    }

    /// One step.
    pub(crate) fn poll(&mut self, subscriber: &mut dyn Subscriber) -> Progress {
        let epoch = self.state.control_epoch();
        if epoch != self.control_epoch || self.state.activity() != Activity::Running {
            self.control_epoch = epoch;
            if let Some(progress) = self.obey() {
                self.tell_signals(subscriber);
                return progress;
            }
        }
        if self.follow_tier() {
            self.tell_signals(subscriber);
        }
        if self.phase == Phase::Shed {
            return Progress::Waiting;
        }
        // Callbacks are caught where they are called; what is left is the user's filter.
        match catch_unwind(AssertUnwindSafe(|| self.page(subscriber))) {
            Ok(Ok(progress)) => progress,
            Ok(Err(error)) => self.read_failed(error, subscriber),
            Err(panic) => {
                let error = Error::new(ErrorKind::Parked, "the filter panicked")
                    .because(panic_text(&*panic))
                    .advise("`resume` tries again, `seek` goes elsewhere");
                self.park(error, subscriber)
            }
        }
    }

    // ---- control ---------------------------------------------------------------------------

    /// Does what was ordered. `Some` if there is nothing else to do now.
    fn obey(&mut self) -> Option<Progress> {
        let state = Arc::clone(&self.state);
        let mut sought = false;
        let (paused, stop, parked) = state.control(|control| {
            if let Some((cursor, epoch)) = control.seek.take() {
                self.cursor = cursor;
                self.held = Held::None;
                self.singly_through = Lsn::ZERO;
                sought = true;
                control.retry = true;
                state.apply_seek(&cursor, epoch);
            }
            if std::mem::take(&mut control.retry) {
                (self.attempts, self.read_failures, self.not_before) = (0, 0, 0);
                state.retries.store(0, Ordering::Relaxed);
            }
            (control.paused, control.stop, control.parked.is_some())
        });
        if sought {
            // Leaving hot by a seek is no sign of being too slow for it.
            state.tiering.lock().forgive_falls();
        }
        if stop {
            return Some(Progress::Stopped);
        }
        let (activity, progress) = if paused {
            (Activity::Paused, Progress::Waiting)
        } else if parked {
            (Activity::Parked, Progress::Waiting)
        } else if self.plane.log.clock.now() < self.not_before {
            (Activity::Retrying, Progress::NotBefore(self.not_before))
        } else {
            self.state.set_activity(Activity::Running);
            return None;
        };
        self.state.set_activity(activity);
        self.held = Held::None;
        Some(progress)
    }

    /// Whether somebody ordered or decided something since this step began.
    fn is_interrupted(&self) -> bool {
        self.state.control_epoch() != self.control_epoch
            || self.state.tier_epoch.load(Ordering::Acquire) != self.tier_epoch
    }

    /// Takes over a transition: what was held goes, the cursor stays. Returns whether there was
    /// one: its signals were queued before the epoch that says so.
    fn follow_tier(&mut self) -> bool {
        let epoch = self.state.tier_epoch.load(Ordering::Acquire);
        if epoch == self.tier_epoch {
            return false;
        }
        self.tier_epoch = epoch;
        self.phase = self.state.tiering.lock().phase;
        self.held = Held::None;
        true
    }

    fn tell_signals(&mut self, subscriber: &mut dyn Subscriber) {
        loop {
            let Some(signal) = self.state.signals.lock().pop_front() else {
                return;
            };
            self.tell(&signal, subscriber);
        }
    }

    fn tell(&mut self, signal: &Signal, subscriber: &mut dyn Subscriber) {
        if let Err(panic) = call(&self.state, || subscriber.signal(signal)) {
            self.state.failures.fetch_add(1, Ordering::Relaxed);
            let (consumer, panic) = (&*self.state.name, panic_text(&*panic));
            tracing::warn!(consumer, ?signal, panic, "a signal hook panicked");
        }
    }

    // ---- a page ----------------------------------------------------------------------------

    fn want(&self) -> Want {
        match self.phase {
            Phase::Hot => Want::Hot,
            Phase::CatchUp => Want::CatchUp,
            Phase::Shed | Phase::Replaying => Want::Cold,
        }
    }

    fn page(&mut self, subscriber: &mut dyn Subscriber) -> Result<Progress> {
        let seen = self.plane.log.ring.committed.load();
        let begun = (self.phase != Phase::Hot).then(|| self.plane.log.clock.now());
        let mut scan = match self.scan_at_cursor(seen)? {
            Ok(scan) => scan,
            Err(brought) => return Ok(self.without_bytes(brought, seen, subscriber)),
        };
        self.read_failures = 0;
        self.held.passed(&scan.to);
        if scan.matched > 0 && self.is_interrupted() {
            return Ok(Progress::Moved);
        }
        self.count(&scan, begun);
        if scan.matched == 0 {
            self.cursor = scan.to;
            self.advanced(seen, subscriber);
            return Ok(Progress::Moved);
        }
        if planted(Bug::StoresReceived) {
            self.state.publish(&scan.to);
        }
        let outcome = self.deliver(&mut scan, subscriber);
        Ok(self.settle(scan, outcome, seen, subscriber))
    }

    /// The next run, or why there is none.
    fn scan_at_cursor(&mut self, seen: Seen) -> Result<Result<Scan, Brought>> {
        let singly = self.cursor.next_lsn <= self.singly_through;
        let limits = if singly { PageLimits { records: 1, ..self.limits } } else { self.limits };
        let want = self.want();
        let Consumer { plane, state, held, cursor, filter, .. } = self;
        let mut more = false;
        loop {
            let brought = held.bring(plane.supply(), want, cursor, seen, more)?;
            if brought != Brought::Ready {
                return Ok(Err(brought));
            }
            let check = |position, block: &[u8]| {
                if held.verify(position, block)? {
                    add(&state.checked, block.len() as u64);
                }
                Ok(())
            };
            let window = held.window(&plane.log.geometry);
            let scan = read(window, *cursor, filter, limits, check)?;
            if scan.to != *cursor {
                return Ok(Ok(scan));
            }
            more = held.ask_for_more(more)?;
        }
    }

    fn count(&mut self, scan: &Scan, begun: Option<u64>) {
        add(&self.state.walked, scan.walked);
        if !self.held.is_replay() {
            return;
        }
        let tier = self.phase.tier() as usize;
        add(&self.state.replayed[tier], scan.block_bytes);
        if let Some(begun) = begun {
            let took = self.plane.log.clock.now().saturating_sub(begun);
            self.state.metrics.page_seconds.record(Duration::from_nanos(took));
        }
    }

    fn deliver(
        &mut self,
        scan: &mut Scan,
        subscriber: &mut dyn Subscriber,
    ) -> Result<Ack, Failure> {
        let clock = &self.plane.log.clock;
        self.with_batch(scan, |state, batch, time_nanos| {
            let begun = clock.now();
            let waited = clock.wall_at(begun).saturating_sub(time_nanos);
            state.metrics.delivery_seconds.record(Duration::from_nanos(waited));
            state.last_time_nanos.store(time_nanos, Ordering::Relaxed);
            state.in_callback.store(true, Ordering::Relaxed);
            let outcome = call(state, || subscriber.deliver(batch));
            state.in_callback.store(false, Ordering::Relaxed);
            let took = clock.now().saturating_sub(begun);
            state.metrics.callback_seconds.record(Duration::from_nanos(took));
            outcome.unwrap_or_else(|panic| Err(panic_text(&*panic).into()))
        })
    }

    /// The scanned run as a batch, with the time of its first block.
    fn with_batch<T>(&self, scan: &mut Scan, then: impl FnOnce(&State, &Batch<'_>, u64) -> T) -> T {
        let window = self.held.window(&self.plane.log.geometry);
        let run = RunIter::new(window, scan);
        let time_nanos = run.time_nanos();
        let lsns = (scan.from.next_lsn, scan.to.next_lsn.previous());
        let lender =
            Lender { account: &self.state.account, slab: self.held.slab(), pin: OnceCell::new() };
        let tier = self.phase.tier();
        let batch = Batch::new((run, scan.matched), lsns, tier, &self.filter, lender);
        let answer = then(&self.state, &batch, time_nanos);
        if let Some(offset) = batch.reached() {
            scan.close(offset);
        }
        answer
    }

    // ---- without bytes ---------------------------------------------------------------------

    fn without_bytes(
        &mut self,
        brought: Brought,
        seen: Seen,
        subscriber: &mut dyn Subscriber,
    ) -> Progress {
        match brought {
            Brought::Ready => Progress::Moved,
            Brought::NotBefore(at) => Progress::NotBefore(at),
            Brought::End => {
                if self.held.is_replay() {
                    self.held = Held::None;
                }
                self.advanced(seen, subscriber);
                if seen.is_poisoned() {
                    // Behind this nothing comes: waits for more are over.
                    self.state.changed.notify();
                }
                Progress::CaughtUp(seen)
            }
            Brought::LeftRing if self.plane.replay.is_some() => {
                // The policy says where to; if it has said so meanwhile, that stands.
                self.state.publish(&self.cursor);
                self.plane.examine(&self.state, false);
                Progress::Moved
            }
            Brought::LeftRing => self.lost(LossCause::Lapped, subscriber),
            Brought::Lost => self.lost(LossCause::Retention, subscriber),
        }
    }

    /// Records are gone. Never in silence.
    fn lost(&mut self, cause: LossCause, subscriber: &mut dyn Subscriber) -> Progress {
        if self.is_interrupted() {
            // Who was sent elsewhere meanwhile does not miss what was here.
            return Progress::Moved;
        }
        let earliest = self.plane.earliest();
        if earliest.next_lsn <= self.cursor.next_lsn {
            // What is at the cursor can still be had, a little further on.
            self.cursor = Cursor::seeking(earliest.block, self.cursor.next_lsn);
            self.held = Held::None;
            return Progress::Moved;
        }
        let (from, to) = (self.cursor.next_lsn, earliest.next_lsn.previous());
        let consumer = &*self.state.name;
        tracing::warn!(consumer, %from, %to, ?cause, "records were lost to a consumer");
        self.tell(&Signal::PositionLost { from, to, cause }, subscriber);
        match self.on_loss {
            OnPositionLost::Earliest => {
                self.cursor = earliest;
                self.held = Held::None;
                self.state.publish(&self.cursor);
                Progress::Moved
            }
            OnPositionLost::Fail => {
                let what = "records that the consumer had not processed are gone";
                let error = Error::new(ErrorKind::PositionLost, what)
                    .at_lsns(from, to)
                    .advise("`seek` to a start that is still there");
                self.park(error, subscriber)
            }
        }
    }

    /// A failing read never promotes: it is tried again, then the consumer is parked.
    fn read_failed(&mut self, error: Error, subscriber: &mut dyn Subscriber) -> Progress {
        self.read_failures += 1;
        self.held = Held::None;
        let hopeless = matches!(error.kind(), ErrorKind::Gap | ErrorKind::Corrupt);
        if !hopeless && self.read_failures < limits::READ_RETRY_ATTEMPTS {
            let consumer = &*self.state.name;
            tracing::warn!(consumer, %error, "a read of the log failed");
            return self.back_off(nanos(limits::RETRY_MIN) << self.read_failures);
        }
        self.park(error, subscriber)
    }

    fn park(&mut self, error: Error, subscriber: &mut dyn Subscriber) -> Progress {
        let lsn = self.cursor.next_lsn.previous();
        tracing::error!(consumer = &*self.state.name, %lsn, %error, "parked");
        self.held = Held::None;
        self.state.set_activity(Activity::Parked);
        self.tell(&Signal::Parked { lsn, error: error.clone() }, subscriber);
        self.state.control(|control| {
            // Who has ordered to go on meanwhile, perhaps on that very signal, must not be told
            // that it is parked.
            if !control.retry && control.seek.is_none() {
                control.parked = Some(error);
            }
        });
        self.state.changed.notify();
        Progress::Waiting
    }

    /// The last of a consumer: what it holds goes, its checkpoint is stored, it leaves the bus.
    pub(crate) fn end(&mut self) {
        self.held = Held::None;
        let (plane, state) = (&self.plane, &self.state);
        let stored = if state.durable_name { plane.flush_checkpoints() } else { Ok(()) };
        if let Err(error) = &stored {
            let consumer = &*state.name;
            tracing::warn!(consumer, %error, "the last checkpoint was not stored");
        }
        // What came since the last tick.
        let tier = state.tiering.lock().phase.tier();
        state.metrics.tell(&plane.sample(state), tier);
        plane.leave(state, stored.err());
    }
}

/// Consumers of a bus have different names, so they do not retry together; and the same ones retry
/// in the same way each time (FNV-1a).
fn seed_of(name: &str) -> u64 {
    let hash = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, hash).max(1)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "the callback panicked".to_owned())
}
