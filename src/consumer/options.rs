//! What a subscriber chooses, answers and is told.

use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::limits;
use crate::lsn::Lsn;
use crate::policy::{Reason, Tier};

/// Where a consumer starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Start {
    /// At the first record kept.
    Earliest,
    /// Behind the last record committed now.
    Latest,
    /// At this record. The LSN after the last is legal; beyond is [`ErrorKind::BeyondEnd`]; below
    /// the first one kept is [`ErrorKind::PositionLost`].
    ///
    /// [`ErrorKind::BeyondEnd`]: crate::ErrorKind::BeyondEnd
    /// [`ErrorKind::PositionLost`]: crate::ErrorKind::PositionLost
    Lsn(Lsn),
    /// At the first record committed at or after this time.
    Time(SystemTime),
}

/// What a callback made of its batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Ack {
    /// All of it is processed.
    All,
    /// Processed up to and including this record; the rest comes again.
    Through(Lsn),
    /// None of it is processed; the batch comes again after this long.
    RetryAfter(Duration),
}

/// How often, and how soon, a batch is delivered again after its callback failed or panicked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retry {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
    pub(crate) attempts: Option<u32>,
}

impl Retry {
    /// Waits `min`, then twice as long each time up to `max`, with jitter. Ten attempts.
    #[must_use]
    pub const fn exponential(min: Duration, max: Duration) -> Retry {
        Retry { min, max, attempts: Some(limits::RETRY_ATTEMPTS) }
    }

    /// Gives up after this many deliveries of the same record; at least one.
    #[must_use]
    pub const fn attempts(self, attempts: u32) -> Retry {
        Retry { attempts: Some(if attempts == 0 { 1 } else { attempts }), ..self }
    }

    /// Never gives up.
    #[must_use]
    pub const fn forever(self) -> Retry {
        Retry { attempts: None, ..self }
    }
}

impl Default for Retry {
    fn default() -> Retry {
        Retry::exponential(limits::RETRY_MIN, limits::RETRY_MAX)
    }
}

/// What happens when records that a consumer still needs are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum OnPositionLost {
    /// It is parked with the error. The default.
    #[default]
    Fail,
    /// It is told, by [`Signal::PositionLost`], and goes on at the first record kept.
    Earliest,
}

/// Why records are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum LossCause {
    /// Retention deleted them.
    Retention,
    /// They left the ring of an in-memory bus.
    Lapped,
}

/// What a subscriber is told, in order, on its own thread.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Signal {
    /// Everything committed is processed. Alternates strictly with `FellBehind`.
    CaughtUp {
        /// The last record processed.
        lsn: Lsn,
    },
    /// It left the hot tier.
    FellBehind {
        /// The last record processed.
        lsn: Lsn,
        /// Records committed and not yet processed.
        lag_records: u64,
        /// Why.
        reason: Reason,
    },
    /// Records are gone before it saw them.
    PositionLost {
        /// The first record lost.
        from: Lsn,
        /// The last.
        to: Lsn,
        /// Why.
        cause: LossCause,
    },
    /// It changed its tier, or within cold from shed to replaying.
    TierChanged {
        /// The tier it left.
        from: Tier,
        /// The tier it is in.
        to: Tier,
        /// Why.
        reason: Reason,
        /// The last record processed.
        lsn: Lsn,
    },
    /// It is stopped at a record until `resume`, `seek` or `stop`.
    Parked {
        /// The last record processed.
        lsn: Lsn,
        /// What kept failing.
        error: Error,
    },
}
