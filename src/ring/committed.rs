//! How far the log is committed, whether somebody sleeps, whether it is poisoned: one word.
//!
//! | bits | meaning | set by | cleared by |
//! |---|---|---|---|
//! | 3.. | committed position, a multiple of 8 | publisher | never goes back |
//! | 1 | the log is poisoned | `poison` | never |
//! | 0 | somebody sleeps | a sleeper | the publisher, which then wakes |
//!
//! A sleeper registers itself, then sets bit 0 by a compare-exchange on the whole word it last saw.
//! If anything was published meanwhile the exchange fails and the sleeper looks again; if it
//! succeeds, the next publication finds the bit. Both sides work on one variable, so there is no
//! order between two variables to get wrong, no fence, and nothing to pay while nobody sleeps.

use crossbeam_utils::CachePadded;

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::planted;

const ASLEEP: u64 = 1;
const POISONED: u64 = 2;
const FLAGS: u64 = 7;

/// The word as a reader saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen(u64);

impl Seen {
    pub(crate) fn position(self) -> u64 {
        self.0 & !FLAGS
    }

    pub(crate) fn is_poisoned(self) -> bool {
        self.0 & POISONED != 0
    }
}

/// The word, alone on its cache lines.
#[derive(Debug)]
pub(crate) struct Committed {
    word: CachePadded<AtomicU64>,
    /// The position published last, for the publisher alone: a guess at the word.
    last: CachePadded<std::sync::atomic::AtomicU64>,
}

impl Committed {
    pub(crate) fn new(position: u64) -> Committed {
        debug_assert_eq!(position & FLAGS, 0);
        Committed {
            word: CachePadded::new(AtomicU64::new(position)),
            last: CachePadded::new(std::sync::atomic::AtomicU64::new(position)),
        }
    }

    /// Acquire: the bytes below the position, and the ends of slabs below it, are visible.
    pub(crate) fn load(&self) -> Seen {
        Seen(self.word.load(Ordering::Acquire))
    }

    /// Moves the position up; returns whether somebody sleeps. Only the committer calls this (in
    /// memory: the holder of the append lock). The poisoned bit stays: sealing, on another thread,
    /// may have failed meanwhile.
    ///
    /// SeqCst: producers that wait for durability count themselves, then look here; the publisher
    /// publishes, then looks for them (see `Waiters`). AcqRel would do for the readers.
    pub(crate) fn publish(&self, position: u64) -> bool {
        debug_assert_eq!(position & FLAGS, 0);
        // What it was left at, if no flag came: to look first would take the line twice.
        let mut old = self.last.load(Ordering::Relaxed);
        self.last.store(position, Ordering::Relaxed);
        loop {
            let new = position | (old & POISONED);
            match self.word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        debug_assert!(old & !FLAGS <= position, "committed went back");
        old & ASLEEP != 0 && !planted("publish_ignores_sleepers")
    }

    /// Marks the log poisoned; returns whether somebody sleeps.
    pub(crate) fn poison(&self) -> bool {
        self.word.fetch_or(POISONED, Ordering::SeqCst) & ASLEEP != 0
    }

    /// SeqCst load, for the other half of the handshake described at `publish`.
    pub(crate) fn load_seq_cst(&self) -> Seen {
        Seen(self.word.load(Ordering::SeqCst))
    }

    /// Tells the publisher that somebody who saw `seen` is about to sleep. False: look again.
    pub(crate) fn announce_sleep(&self, seen: Seen) -> bool {
        // AcqRel: Release hands the publisher the registration made before this call. Therefore an
        // exchange also where somebody else has set the bit: after a mere load the publisher might
        // clear the bit, and the waker look, before the registration is to be seen.
        if planted("announce_sleep_only_loads") && seen.0 & ASLEEP != 0 {
            return self.load() == seen;
        }
        self.word
            .compare_exchange(seen.0, seen.0 | ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_between_look_and_sleep_is_not_missed() {
        let word = Committed::new(0);
        let seen = word.load();
        assert!(!word.publish(8));
        assert!(!word.announce_sleep(seen));
        let seen = word.load();
        assert!(word.announce_sleep(seen));
        let second = word.load();
        assert!(word.announce_sleep(second), "the bit stands for all sleepers");
        assert!(word.publish(16));
        assert!(!word.announce_sleep(second));
        assert!(!word.publish(24), "the bit is cleared by a publication");
    }

    #[test]
    fn poison_says_whether_somebody_sleeps() {
        assert!(!Committed::new(64).poison());
        let word = Committed::new(0);
        assert!(word.announce_sleep(word.load()));
        assert!(word.poison());
    }

    #[test]
    fn poison_wakes_and_stays() {
        let word = Committed::new(64);
        assert!(word.announce_sleep(word.load()));
        assert!(word.poison());
        assert!(word.publish(72), "publishing takes the bit");
        assert!(!word.publish(72));
        assert!(word.load().is_poisoned());
        assert_eq!(word.load().position(), 72);
    }
}
