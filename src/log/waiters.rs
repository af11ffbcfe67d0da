//! Producers that wait for a block to be durable. All followers of one block share a futex word.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::limits;
use crate::sync::Futex;

const WORDS: usize = 64;

#[derive(Debug, Default)]
struct Slot {
    word: Futex,
    waiting: AtomicU32,
}

/// Futex words by block sequence.
///
/// A waiter counts itself, then looks at the committed position; the publisher publishes, then
/// looks
/// at the count. All four are SeqCst, so one of them sees the other, and a publisher that nobody
/// waits for makes no system call.
#[derive(Debug)]
pub(crate) struct Waiters([Slot; WORDS]);

impl Default for Waiters {
    fn default() -> Waiters {
        Waiters(std::array::from_fn(|_| Slot::default()))
    }
}

impl Waiters {
    fn slot(&self, sequence: u64) -> &Slot {
        &self.0[(sequence % WORDS as u64) as usize]
    }

    /// Sleeps until `done` says what came of block `sequence`. `done` may shorten the sleep.
    pub(crate) fn wait<T>(
        &self,
        sequence: u64,
        mut done: impl FnMut(&mut Duration) -> Option<T>,
    ) -> T {
        let slot = self.slot(sequence);
        slot.waiting.fetch_add(1, Ordering::SeqCst);
        let outcome = loop {
            let seen = slot.word.read();
            let mut timeout = limits::SLEEP_MAX;
            if let Some(outcome) = done(&mut timeout) {
                break outcome;
            }
            slot.word.sleep(seen, timeout);
        };
        slot.waiting.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    /// Blocks `from..=to` were published.
    pub(crate) fn wake(&self, from: u64, to: u64) {
        let from = from.max(to.saturating_sub(WORDS as u64 - 1));
        for sequence in from..=to {
            let slot = self.slot(sequence);
            if slot.waiting.load(Ordering::SeqCst) > 0 {
                slot.word.wake_all();
            }
        }
    }

    pub(crate) fn wake_all(&self) {
        for slot in &self.0 {
            slot.word.wake_all();
        }
    }
}
