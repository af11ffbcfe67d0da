//! Waking consumers without the append path doing it.
//!
//! The publisher rings one bell, and only if somebody sleeps; the waker thread answers it and
//! wakes each sleeper on its own word. A burst of publications is one round.
//!
//! One round for each committed position is enough: who announces its sleep at a position has
//! registered before anything later is published, so the round for what is later finds it; and who
//! saw the earlier position is refused (see `committed`). So the waker, which looks again every
//! `SLEEP_MAX` whether or not the bell rang, keeps watch for all sleepers by one comparison.

use std::sync::atomic::AtomicIsize;
use std::sync::{Arc, OnceLock};

use crossbeam_utils::CachePadded;

use super::committed::Committed;
use crate::limits;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Futex, Mutex};

/// What one consumer sleeps on. Control calls (pause, seek, stop) bump the same word.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    pub(crate) word: Futex,
    /// Set by the sleeper before it announces itself, taken by the waker. Release/Acquire through
    /// the committed word; Relaxed here would do, AcqRel keeps the reasoning local.
    asleep: AtomicBool,
}

impl Sleeper {
    pub(crate) fn register(&self) {
        self.asleep.store(true, Ordering::Release);
    }

    /// Returns whether it was still registered. Relaxed: the futex word carries what woke it.
    fn unregister(&self) -> bool {
        self.asleep.swap(false, Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        self.asleep.load(Ordering::Acquire) && self.asleep.swap(false, Ordering::AcqRel)
    }
}

/// All sleepers of a bus, and the bell of the thread that wakes them.
#[derive(Debug, Default)]
pub(crate) struct Sleepers {
    all: Mutex<Vec<Arc<Sleeper>>>,
    bell: Futex,
    /// How many were woken and have not got a core yet. A hint, so Relaxed; below zero for the
    /// moment in which one runs before it is counted.
    queued: CachePadded<AtomicIsize>,
}

fn cores() -> isize {
    static CORES: OnceLock<isize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get() as isize))
}

impl Sleepers {
    pub(crate) fn add(&self, sleeper: &Arc<Sleeper>) {
        self.all.lock().push(Arc::clone(sleeper));
    }

    pub(crate) fn remove(&self, sleeper: &Arc<Sleeper>) {
        self.all.lock().retain(|s| !Arc::ptr_eq(s, sleeper));
    }

    /// One futex call, whatever the number of sleepers.
    pub(crate) fn ring(&self) {
        self.bell.wake_all();
    }

    /// What the waker thread does: a round for each position that it sees committed.
    pub(crate) fn run(&self, committed: &Committed, mut is_over: impl FnMut() -> bool) {
        let mut woken_at = None;
        while !is_over() {
            // Read before the look, so that a bell in between ends the sleep at once.
            let bell = self.bell.read();
            let seen = committed.load();
            let at = Some((seen.position(), seen.is_poisoned()));
            if woken_at != at {
                woken_at = at;
                self.wake();
            }
            if !is_over() {
                self.bell.sleep(bell, limits::SLEEP_MAX);
            }
        }
    }

    pub(crate) fn wake(&self) {
        for sleeper in self.all.lock().iter() {
            if sleeper.take() {
                self.queued.fetch_add(1, Ordering::Relaxed);
                sleeper.word.wake_all();
            }
        }
    }

    /// To be called by who has registered and is awake again, whatever woke it.
    pub(crate) fn rise(&self, sleeper: &Sleeper) {
        if !sleeper.unregister() {
            self.queued.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether more were woken than there are cores: then to spin is to keep somebody waiting.
    pub(crate) fn are_crowding(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > cores()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sleeps_is_woken_once_and_nobody_else() {
        let sleepers = Sleepers::default();
        let [gone, asleep, awake] = [(); 3].map(|()| Arc::<Sleeper>::default());
        [&gone, &asleep, &awake].into_iter().for_each(|sleeper| sleepers.add(sleeper));
        sleepers.remove(&gone);
        [&gone, &asleep, &awake].into_iter().for_each(|sleeper| sleeper.register());
        sleepers.rise(&awake);
        let words = || [&gone, &asleep, &awake].map(|sleeper| sleeper.word.read());
        let before = words();
        sleepers.wake();
        let after = words();
        assert_eq!([0, 1, 2].map(|i: usize| after[i] != before[i]), [false, true, false]);
        sleepers.wake();
        assert_eq!(words(), after, "it has not gone to sleep again");
    }

    #[test]
    fn the_waker_wakes_once_for_each_committed_position_and_needs_no_bell() {
        let (sleepers, committed) = (Sleepers::default(), Committed::new(0));
        let sleeper = Arc::<Sleeper>::default();
        sleepers.add(&sleeper);
        sleeper.register();
        let (mut asked, mut words) = (0, vec![]);
        // Asked at the beginning of each round, and before it would sleep.
        sleepers.run(&committed, || {
            asked += 1;
            if asked % 2 == 0 {
                words.push(sleeper.word.read());
                sleeper.register();
                sleepers.ring();
            }
            if asked == 4 {
                assert!(!committed.publish(8), "nobody announced it: as if a bell were lost");
            }
            asked >= 8
        });
        assert_eq!(words, [1, 1, 2, 2]);
    }

    #[test]
    fn who_was_woken_and_does_not_run_yet_is_a_crowd() {
        let sleepers = Sleepers::default();
        let all: Vec<Arc<Sleeper>> = (0..=cores()).map(|_| Arc::default()).collect();
        all.iter().for_each(|sleeper| sleepers.add(sleeper));
        all.iter().for_each(|sleeper| sleeper.register());
        assert!(!sleepers.are_crowding(), "they sleep");
        sleepers.wake();
        assert!(sleepers.are_crowding());
        sleepers.rise(&all[0]);
        assert!(!sleepers.are_crowding(), "a core for each");
        all[1..].iter().for_each(|sleeper| sleepers.rise(sleeper));
        assert_eq!(sleepers.queued.load(Ordering::Relaxed), 0);
        all[0].register();
        sleepers.rise(&all[0]);
        assert_eq!(sleepers.queued.load(Ordering::Relaxed), 0, "it woke by itself");
    }
}
