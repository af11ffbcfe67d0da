//! Producers that wait for a block to be durable. All followers of one block share a futex word.

use std::time::Duration;

use crate::sync::Event;

const EVENTS: usize = 64;

/// One event for each of the newest blocks, by sequence: it is published.
#[derive(Debug)]
pub(crate) struct Waiters([Event; EVENTS]);

impl Default for Waiters {
    fn default() -> Waiters {
        Waiters(std::array::from_fn(|_| Event::default()))
    }
}

impl Waiters {
    fn event(&self, sequence: u64) -> &Event {
        &self.0[(sequence % EVENTS as u64) as usize]
    }

    /// Sleeps until `done` says what came of block `sequence`, looking at least every `nap`.
    pub(crate) fn wait<T>(
        &self,
        sequence: u64,
        nap: Duration,
        mut done: impl FnMut() -> Option<T>,
    ) -> T {
        loop {
            if let Some(outcome) = self.event(sequence).wait(nap, &mut done) {
                return outcome;
            }
        }
    }

    /// Blocks `from..=to` were published.
    pub(crate) fn wake(&self, from: u64, to: u64) {
        let from = from.max(to.saturating_sub(EVENTS as u64 - 1));
        (from..=to).for_each(|sequence| self.event(sequence).notify());
    }

    pub(crate) fn wake_all(&self) {
        self.0.iter().for_each(Event::notify);
    }
}
