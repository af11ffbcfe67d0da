//! The cues: what the director tells the subscribers to do, and what they tell back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::exact::lock;
use crate::geometry::{SAMPLES, SAMPLES_MAX};

/// Relaxed throughout: each is a value by itself, no other memory hangs on it.
#[derive(Default)]
pub(crate) struct Cue(AtomicBool);

impl Cue {
    pub(crate) fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A cue that can be waited for.
#[derive(Default)]
pub(crate) struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn set(&self, closed: bool) {
        *lock(&self.closed) = closed;
        self.changed.notify_all();
    }

    pub(crate) fn wait_until_not(&self) {
        let mut closed = lock(&self.closed);
        while *closed {
            closed = self.changed.wait(closed).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[derive(Default)]
pub(crate) struct Stage {
    /// A page is as many records as a slab holds at most.
    pub(crate) page_records: u64,
    /// `delays` does its heavier work while it is hot.
    pub(crate) rush: Cue,
    /// The others keep as many samples as fill the budget beside the keeper's share.
    pub(crate) collect: Cue,
    /// `keeper` gives nothing back.
    pub(crate) hoard: Cue,
    /// Leases that `keeper` was refused.
    pub(crate) refused: Tally,
    pub(crate) endpoint_hangs: Gate,
}

impl Stage {
    /// How many samples each but the keeper holds.
    pub(crate) fn samples(&self) -> u64 {
        if self.collect.get() { SAMPLES_MAX } else { SAMPLES }
    }

    /// Everybody does as on any other day.
    pub(crate) fn calm(&self) {
        self.rush.set(false);
        self.hoard.set(false);
        self.collect.set(false);
        self.endpoint_hangs.set(false);
    }
}
