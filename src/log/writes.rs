//! Small durable writes: what commits of few records wait for, and what replays give way to.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits;

/// Tells whether one is under way.
///
/// Written by whoever commits (there is one at a time), read by consumers that replay. Relaxed
/// everywhere: it is advice about the disk's queue and says nothing about memory; who misses a
/// change gives way a little too late or too long.
#[derive(Debug, Default)]
pub(crate) struct DurableWrites {
    /// Counts beginnings and ends: odd while a write is under way.
    turns: AtomicU64,
}

impl DurableWrites {
    /// Runs a durable write of so many bytes. A large one takes bandwidth, which is shared.
    pub(crate) fn during<T>(&self, bytes: usize, write: impl FnOnce() -> T) -> T {
        if bytes > limits::SMALL_COMMIT_BYTES {
            return write();
        }
        // Load and store: there is one author.
        let turns = self.turns.load(Ordering::Relaxed);
        self.turns.store(turns + 1, Ordering::Relaxed);
        let outcome = write();
        self.turns.store(turns + 2, Ordering::Relaxed);
        outcome
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.turns() % 2 == 1
    }

    /// Another number than before: there were writes in between.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}
