//! Subscribing, and the handle to a running consumer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::batch::Batch;
use super::core::{Consumer, ConsumerOptions, Failure, in_callback_of};
use super::filter::Filter;
use super::options::{Ack, OnPositionLost, Retry, Signal, Start};
use super::pins::Account;
use super::plane::Plane;
use super::state::{State, Status};
use super::thread::{Callbacks, DeadLetterFn, DeliverFn, SignalFn, run};
use super::tiering::Tiering;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::lsn::Lsn;
use crate::policy::Phase;
use crate::source::{Cursor, PageLimits};
use crate::sync::Mutex;
use crate::sync::thread::{self, JoinHandle};
use crate::telemetry::ConsumerMetrics;

/// How a consumer is to be; made by [`Bus::subscribe`](crate::Bus::subscribe), ended by `run`.
#[must_use = "`run` starts the consumer"]
pub struct Subscribe {
    plane: Arc<Plane>,
    name: String,
    start_if_new: Start,
    start_at: Option<Start>,
    options: ConsumerOptions,
    signal: Option<Box<SignalFn>>,
    dead_letter: Option<Box<DeadLetterFn>>,
}

impl fmt::Debug for Subscribe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribe").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Subscribe {
    pub(crate) fn new(plane: Arc<Plane>, name: String) -> Subscribe {
        Subscribe {
            plane,
            name,
            start_if_new: Start::Latest,
            start_at: None,
            options: ConsumerOptions {
                filter: Filter::all(),
                limits: PageLimits {
                    records: limits::BATCH_RECORDS_MAX,
                    bytes: limits::BATCH_BYTES_MAX,
                },
                retry: Retry::default(),
                on_loss: OnPositionLost::Fail,
            },
            signal: None,
            dead_letter: None,
        }
    }

    /// Where to start if no checkpoint is stored under this name. Default: `Latest`.
    pub fn start_if_new(mut self, start: Start) -> Subscribe {
        self.start_if_new = start;
        self
    }

    /// Where to start, whatever is stored; replaces a stored checkpoint. For those who keep the LSN
    /// with their own data: that makes processing exactly once. With a filter, the last record seen
    /// may lie far behind what counts as processed; retention may delete what is in between, and
    /// starting there is then [`ErrorKind::PositionLost`].
    pub fn start_at(mut self, start: Start) -> Subscribe {
        self.start_at = Some(start);
        self
    }

    /// What to see. Default: everything.
    pub fn filter(mut self, filter: Filter) -> Subscribe {
        self.options.filter = filter;
        self
    }

    /// At most this many records a batch, at least 1. Default 1,024.
    pub fn batch_records_max(mut self, records: usize) -> Subscribe {
        self.options.limits.records = records.max(1);
        self
    }

    /// At most this many bytes of records a batch, but at least one record. Default 1 MiB.
    pub fn batch_bytes_max(mut self, bytes: usize) -> Subscribe {
        self.options.limits.bytes = bytes.max(1);
        self
    }

    /// What to do when the callback fails. Default: ten attempts from 10 ms to 10 s, then park.
    pub fn retry(mut self, retry: Retry) -> Subscribe {
        self.options.retry = retry;
        self
    }

    /// What to do when records are gone before they were processed. Default: park.
    pub fn on_position_lost(mut self, what: OnPositionLost) -> Subscribe {
        self.options.on_loss = what;
        self
    }

    /// Is told what happens to the consumer, in order, on its thread.
    pub fn on_signal(mut self, hook: impl FnMut(&Signal) + Send + 'static) -> Subscribe {
        self.signal = Some(Box::new(hook));
        self
    }

    /// Takes a record whose attempts are exhausted, as a batch of one, with the last failure; then
    /// the consumer goes on behind it. Without this, or if it panics, the consumer is parked.
    pub fn dead_letter(
        mut self,
        take: impl FnMut(&Batch<'_>, &(dyn std::error::Error + Send + Sync)) + Send + 'static,
    ) -> Subscribe {
        let mut take = take;
        self.dead_letter = Some(Box::new(move |batch, why: &Failure| take(batch, &**why)));
        self
    }

    /// Starts the consumer on a thread of its own, named `ep:` and its name. Its start is stored as
    /// its first checkpoint before this returns.
    ///
    /// # Falling behind
    /// A consumer that is slower than the writer moves to catch-up, then to cold, and comes back;
    /// it sees every record once, in order, in whichever tier it is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for a name that is empty, longer than 255 bytes or begins with
    /// `reader-`; [`ErrorKind::NameTaken`]; [`ErrorKind::TooManyConsumers`];
    /// [`ErrorKind::ForeignCheckpoint`]; [`ErrorKind::BeyondEnd`] and [`ErrorKind::PositionLost`]
    /// for a start outside the log; [`ErrorKind::Io`] or [`ErrorKind::Corrupt`] if the log cannot
    /// be read in the search for it; [`ErrorKind::Io`] or [`ErrorKind::StorageFull`] if the
    /// checkpoint cannot be stored; [`ErrorKind::Io`] also if there is no thread to be had: then
    /// its start is stored; [`ErrorKind::Closed`].
    pub fn run<F>(self, callback: F) -> Result<Subscription>
    where
        F: FnMut(&Batch<'_>) -> Result<Ack, Failure> + Send + 'static,
    {
        let (consumer, callbacks) = self.begin(Box::new(callback))?;
        let (plane, state) = (Arc::clone(consumer.plane()), Arc::clone(consumer.state()));
        // A thread's name ends at a zero byte, and the library panics over one.
        let name = format!("ep:{}", state.name.replace('\0', "?"));
        let builder = thread::Builder::new().name(name);
        let thread = builder.spawn(move || run(consumer, callbacks)).map_err(|e| {
            plane.leave(&state, None);
            Error::new(ErrorKind::Io, "cannot start the consumer's thread").because(e)
        })?;
        Ok(Subscription { plane, state, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// The consumer, entered and with its first checkpoint stored, not running yet.
    pub(crate) fn begin(self, deliver: Box<DeliverFn>) -> Result<(Consumer, Callbacks)> {
        let Subscribe { plane, name, start_if_new, start_at, options, signal, dead_letter } = self;
        let consumer = begin(plane, name, (start_if_new, start_at), options)?;
        Ok((consumer, Callbacks { deliver, signal, dead_letter }))
    }
}

/// Finds the start, enters the consumer, stores its first checkpoint.
fn begin(
    plane: Arc<Plane>,
    name: String,
    (start_if_new, start_at): (Start, Option<Start>),
    options: ConsumerOptions,
) -> Result<Consumer> {
    if name.is_empty() || name.len() > limits::CONSUMER_NAME_BYTES_MAX {
        let what = format!("a consumer's name has 1 to 255 bytes, this one {}", name.len());
        return Err(Error::new(ErrorKind::InvalidOption, what));
    }
    if name.starts_with(READER_PREFIX) {
        let what = format!("names that begin with {READER_PREFIX:?} are those of readers");
        return Err(Error::new(ErrorKind::InvalidOption, what));
    }
    loop {
        let stored = match start_at {
            Some(_) => None,
            None => plane.checkpoints.get(&name, plane.log.ring.committed_lsn())?,
        };
        let _hold = plane.log.ring.readers.hold();
        let cursor = match (start_at, stored) {
            (Some(start), _) => plane.cursor(start)?,
            (None, Some(lsn)) => resume_at(&plane, lsn, options.on_loss)?,
            (None, None) => plane.cursor(start_if_new)?,
        };
        let mut entered = None;
        // Until it enters, the name may be that of one that stores more, and leaves; and what no
        // checkpoint keeps may be deleted. Then the start is looked for again.
        let enter = |now: Option<Lsn>| {
            let is_current = start_at.is_some() || now == stored;
            let is_kept = stored.is_some() || plane.keeps(&cursor);
            if is_current && is_kept {
                let plane = Arc::clone(&plane);
                entered = Some(enter(plane, name.clone(), true, cursor, options.clone())?);
            }
            Ok(is_current && is_kept)
        };
        let first = cursor.next_lsn.previous();
        let outcome = plane.checkpoints.store_one(&name, first, enter, || {});
        match (outcome, entered) {
            (Ok(_), Some(consumer)) => return Ok(consumer),
            (Ok(_), None) => {}
            (Err(error), entered) => {
                entered.inspect(|consumer| plane.leave(consumer.state(), None));
                return Err(error);
            }
        }
    }
}

/// The cursor behind a stored checkpoint, also where retention has passed it: then the consumer is
/// told what it lost when it gets there.
fn resume_at(plane: &Plane, stored: Lsn, on_loss: OnPositionLost) -> Result<Cursor> {
    match plane.cursor(Start::Lsn(stored.next())) {
        Err(e) if e.kind() == ErrorKind::PositionLost && on_loss == OnPositionLost::Earliest => {
            Ok(Cursor::at(0, stored.next()))
        }
        cursor => cursor,
    }
}

pub(crate) const READER_PREFIX: &str = "reader-";

/// Makes the consumer and enters it: hot if its first byte is in the ring, else in catch-up; that
/// is no transition.
pub(crate) fn enter(
    plane: Arc<Plane>,
    name: String,
    durable_name: bool,
    cursor: Cursor,
    options: ConsumerOptions,
) -> Result<Consumer> {
    let ring = &plane.log.ring;
    let at_end = cursor.block >= ring.committed.load().position();
    let in_ring = at_end || ring.contains(plane.log.geometry.slab_of(cursor.block));
    let hot = in_ring || plane.replay.is_none();
    let phase = if hot { Phase::Hot } else { Phase::CatchUp };
    let tiering = Tiering::new(phase, plane.log.clock.now());
    let account = Arc::new(Account::new(&plane.budget));
    let metrics = ConsumerMetrics::new(&name, plane.options.labels);
    let stirs = Arc::clone(&plane.stirs);
    let state = State::new(name, durable_name, account, cursor, tiering, metrics, stirs);
    let state = Arc::new(state);
    plane.enter(&state)?;
    Ok(Consumer::new(plane, state, cursor, options))
}

/// A handle to a running consumer. Cheap to clone; dropping it does not stop the consumer.
///
/// # Shedding
/// A consumer that stalls, pins too much or falls too far behind is shed: what it holds is
/// released, and it is replayed from the log when its back-off is over, its callback has returned
/// and its leases pin no more than half its share: drop them on [`Signal::TierChanged`] to come
/// back. [`Status::shed`] and [`Status::pinned_bytes`] say so.
///
/// # Closing
/// `stop`, or the close of the bus, lets a callback in progress finish, stores the checkpoint and
/// joins the thread.
#[derive(Clone)]
pub struct Subscription {
    plane: Arc<Plane>,
    state: Arc<State>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("name", &self.state.name).finish_non_exhaustive()
    }
}

impl Subscription {
    /// The consumer's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// How it is doing now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.plane.status(&self.state)
    }

    /// Delivers nothing more until `resume`; a callback in progress finishes. What the consumer
    /// held is released.
    pub fn pause(&self) {
        self.state.order(|control| control.paused = true);
    }

    /// Goes on after `pause`, and tries again what it is parked or waiting for.
    pub fn resume(&self) {
        self.state.order(|control| {
            control.paused = false;
            control.retry = true;
            control.parked = None;
        });
    }

    /// Moves the consumer, forward or back, without waiting for a callback in progress. When this
    /// returns, `status`, waits and the stored checkpoint are those of the new place.
    ///
    /// # Errors
    /// As for [`Start`]; [`ErrorKind::WouldDeadlock`] from its own callback, whose batch would then
    /// be acknowledged at the wrong place; [`ErrorKind::Stopped`]; [`ErrorKind::Io`] or
    /// [`ErrorKind::StorageFull`] if the checkpoint could not be stored. After any of them the
    /// consumer has not moved; only a crash before the next checkpoint is stored may bring it to
    /// either place.
    pub fn seek(&self, start: Start) -> Result<()> {
        self.refuse_own_callback("seek")?;
        let _hold = self.plane.log.ring.readers.hold();
        loop {
            let cursor = self.plane.cursor(start)?;
            let check = |_| {
                let is_stopped = self.state.control(|control| control.stop || control.finished);
                // Retention may have gone on since: then it is looked for again.
                if is_stopped { Err(self.stopped()) } else { Ok(self.plane.keeps(&cursor)) }
            };
            // Before anything else is stored: who stops meanwhile finds its last checkpoint here.
            let go = || {
                self.state.order(|control| {
                    control.seeks += 1;
                    control.parked = None;
                    control.seek = Some((cursor, control.seeks));
                    self.state.place.seek(cursor.block);
                });
            };
            let last = cursor.next_lsn.previous();
            if self.plane.checkpoints.store_one(&self.state.name, last, check, go)? {
                return Ok(());
            }
        }
    }

    /// Waits until this record is processed.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`]; [`ErrorKind::Parked`]; [`ErrorKind::Stopped`];
    /// [`ErrorKind::Poisoned`] when the log failed and everything published is processed;
    /// [`ErrorKind::WouldDeadlock`] from its own callback.
    pub fn wait_processed(&self, lsn: Lsn, timeout: Duration) -> Result<()> {
        self.refuse_own_callback("wait")?;
        let seeks = self.state.control(|control| control.seeks);
        let answer = self.state.changed.wait(timeout, || {
            // What a failed log published is still processed; beyond it nothing comes.
            let end = self.plane.log.ring.committed_lsn();
            self.state.await_lsn(lsn.min(end));
            let processed = self.state.processed_in(seeks);
            if processed.is_some_and(|processed| processed >= lsn) {
                return Some(Ok(()));
            }
            let (finished, parked) = self.state.control(|c| (c.finished, c.parked.clone()));
            if finished {
                return Some(Err(self.stopped()));
            }
            if let Some(parked) = parked {
                let what = format!("{:?} is parked", self.state.name);
                return Some(Err(Error::new(ErrorKind::Parked, what).because(parked)));
            }
            let drained = processed.is_some_and(|processed| processed >= end);
            self.plane.log.poisoned().filter(|_| drained).map(Err)
        });
        answer.unwrap_or_else(|| {
            let what = format!("{:?} has not processed LSN {lsn} in {timeout:?}", self.state.name);
            Err(Error::new(ErrorKind::Timeout, what))
        })
    }

    /// Waits until everything committed before this call is processed.
    ///
    /// # Errors
    /// As [`Subscription::wait_processed`].
    pub fn wait_caught_up(&self, timeout: Duration) -> Result<()> {
        self.wait_processed(self.plane.log.ring.committed_lsn(), timeout)
    }

    /// Stops the consumer within the default deadline of the bus.
    ///
    /// # Errors
    /// As [`Subscription::stop_within`].
    pub fn stop(&self) -> Result<()> {
        self.stop_within(self.plane.options.deadline)
    }

    /// Finishes the batch in progress, stores the checkpoint, joins the thread. Stopping what has
    /// stopped is fine.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] naming the consumer whose callback does not return: it stops as soon
    /// as it does; [`ErrorKind::WouldDeadlock`] from its own callback; an I/O error if the
    /// checkpoint could not be stored.
    pub fn stop_within(&self, deadline: Duration) -> Result<()> {
        self.refuse_own_callback("stop")?;
        stop(&self.state, deadline)?;
        let thread = self.thread.lock().take();
        // The thread has nothing left to do; panics of the callback are caught long before.
        let _ = thread.map(JoinHandle::join);
        self.state.control(|control| control.unstored.clone()).map_or(Ok(()), Err)
    }

    #[cfg(feature = "testing")]
    pub(crate) fn by_hand(consumer: &Consumer) -> Subscription {
        let (plane, state) = (Arc::clone(consumer.plane()), Arc::clone(consumer.state()));
        Subscription { plane, state, thread: Arc::default() }
    }

    fn refuse_own_callback(&self, what: &str) -> Result<()> {
        if in_callback_of(&self.state) {
            let what = format!("{what} of {:?} from its own callback", self.state.name);
            return Err(Error::new(ErrorKind::WouldDeadlock, what)
                .advise("do it from another thread, or after the callback"));
        }
        Ok(())
    }

    fn stopped(&self) -> Error {
        Error::new(ErrorKind::Stopped, format!("{:?} has stopped", self.state.name))
    }
}

/// Orders a consumer to stop and waits until it has.
pub(crate) fn stop(state: &State, deadline: Duration) -> Result<()> {
    state.order(|control| control.stop = true);
    let finished = || state.control(|control| control.finished).then_some(());
    state.changed.wait(deadline, finished).ok_or_else(|| {
        let what = format!("the callback of {:?} has not returned in {deadline:?}", state.name);
        Error::new(ErrorKind::Timeout, what)
    })
}
