//! Pulling records on one's own thread: the same machine behind an iterator.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::batch::{Batch, OwnedRecord};
use super::core::{Consumer, ConsumerOptions, Failure, Progress, Subscriber};
use super::filter::Filter;
use super::options::{Ack, OnPositionLost, Retry, Start};
use super::plane::Plane;
use super::state::{Activity, Control, Status};
use super::subscription::{READER_PREFIX, enter};
use super::thread::rest;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::source::PageLimits;

/// Owned records at a time: enough to spread the cost of a step, few enough to leave the share.
const FETCH_RECORDS: usize = 64;

/// Follows the log as an iterator of owned records, which are leased while the reader's share of
/// the pin budget lasts and copied after that. It moves through the same tiers as a subscriber.
///
/// The iterator blocks at the tail and ends only when the bus is closed; `try_next` and
/// `next_timeout` do not block, or not for long. It has no checkpoint.
pub struct Reader {
    consumer: Consumer,
    ready: Ready,
    idle: u32,
}

#[derive(Default)]
struct Ready(VecDeque<OwnedRecord>);

impl Subscriber for Ready {
    fn deliver(&mut self, batch: &Batch<'_>) -> Result<Ack, Failure> {
        self.0.extend(batch.iter().map(|record| record.lease_or_copy()));
        Ok(Ack::All)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("ready", &self.ready.0.len()).finish_non_exhaustive()
    }
}

static NEXT_READER: AtomicU64 = AtomicU64::new(1);

/// Why it cannot go on. What the disk refuses it may grant the next call.
fn parked(control: &mut Control) -> Option<Error> {
    let parked = control.parked.clone();
    if parked.as_ref().is_some_and(|error| error.kind() == ErrorKind::Io) {
        (control.parked, control.retry) = (None, true);
    }
    parked
}

/// How long a call looks for a record.
#[derive(Clone, Copy)]
enum Patience {
    /// Without waiting, through everything before this position.
    To(u64),
    Until(Instant),
    Endless,
}

impl Reader {
    pub(crate) fn new(plane: Arc<Plane>, start: Start, filter: Filter) -> Result<Reader> {
        let hold = plane.log.ring.readers.hold();
        let cursor = plane.cursor(start)?;
        let number = NEXT_READER.fetch_add(1, Ordering::Relaxed);
        let options = ConsumerOptions {
            filter,
            limits: PageLimits { records: FETCH_RECORDS, bytes: limits::BATCH_BYTES_MAX },
            retry: Retry::default(),
            on_loss: OnPositionLost::Fail,
        };
        let name = format!("{READER_PREFIX}{number}");
        let consumer = enter(Arc::clone(&plane), name, false, cursor, options)?;
        drop(hold);
        Ok(Reader { consumer, ready: Ready::default(), idle: 0 })
    }

    /// The next record of those committed before this call. `None` if there is none, and also where
    /// reading it has to wait: for a turn in the cold tier, or after a read that failed.
    ///
    /// # Errors
    /// As [`Reader::next_timeout`], but for the time-out.
    pub fn try_next(&mut self) -> Result<Option<OwnedRecord>> {
        let seen = self.consumer.plane().log.ring.committed.load();
        self.next_within(Patience::To(seen.position()))
    }

    /// The next record, waiting for it at most this long; `None` then, and when the bus is closed.
    ///
    /// # Errors
    /// [`ErrorKind::PositionLost`] if retention passed the reader, [`ErrorKind::Corrupt`] if the
    /// log is damaged, [`ErrorKind::Poisoned`] behind the last record of a failed log: every
    /// further call says so too. [`ErrorKind::Io`] if the log cannot be read: the next call tries
    /// again.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<OwnedRecord>> {
        let deadline = Instant::now().checked_add(timeout);
        self.next_within(deadline.map_or(Patience::Endless, Patience::Until))
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.consumer.plane().status(self.consumer.state())
    }

    fn next_within(&mut self, patience: Patience) -> Result<Option<OwnedRecord>> {
        if let Some(record) = self.ready.0.pop_front() {
            return Ok(Some(record));
        }
        let outcome = self.pull(patience);
        // However long the owner takes until the next call, that is no stall.
        self.consumer.state().set_activity(Activity::Unpolled);
        outcome
    }

    fn pull(&mut self, patience: Patience) -> Result<Option<OwnedRecord>> {
        loop {
            if let Some(record) = self.ready.0.pop_front() {
                return Ok(Some(record));
            }
            let word = self.consumer.state().sleeper.word.read();
            let progress = self.consumer.poll(&mut self.ready);
            let left = match patience {
                Patience::To(_) => Duration::ZERO,
                Patience::Until(at) => at.saturating_duration_since(Instant::now()),
                Patience::Endless => limits::REST_MAX,
            };
            let left = left.min(limits::REST_MAX);
            match progress {
                Progress::Moved => {
                    self.idle = 0;
                    // Where the filter lets nothing through, moving goes on for long.
                    let is_far = match patience {
                        Patience::To(position) => self.consumer.state().position() >= position,
                        Patience::Until(_) | Patience::Endless => left.is_zero(),
                    };
                    if is_far && self.ready.0.is_empty() {
                        return Ok(None);
                    }
                    continue;
                }
                Progress::Stopped => return Ok(None),
                Progress::Waiting => {
                    if let Some(error) = self.consumer.state().control(parked) {
                        return Err(error);
                    }
                }
                Progress::CaughtUp(seen) if seen.is_poisoned() => {
                    return Err(self.consumer.plane().log.poisoned().unwrap_or_else(|| {
                        Error::new(ErrorKind::Poisoned, "the log failed earlier")
                    }));
                }
                Progress::CaughtUp(_) | Progress::NotBefore(_) => {}
            }
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(progress, word, left);
        }
    }

    fn wait(&mut self, progress: Progress, word: u32, left: Duration) {
        match progress {
            Progress::CaughtUp(seen) => {
                self.idle = rest(&self.consumer, word, seen, self.idle, left);
            }
            Progress::NotBefore(at) => {
                let until = at.saturating_sub(self.consumer.plane().log.clock.now());
                let left = left.min(Duration::from_nanos(until));
                self.consumer.state().sleeper.word.sleep(word, left);
            }
            _ => self.consumer.state().sleeper.word.sleep(word, left),
        }
    }
}

impl Iterator for Reader {
    type Item = Result<OwnedRecord>;

    /// Blocks at the tail; `None` when the bus is closed.
    fn next(&mut self) -> Option<Self::Item> {
        self.next_within(Patience::Endless).transpose()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.consumer.end();
    }
}
