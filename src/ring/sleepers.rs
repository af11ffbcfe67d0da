//! Waking consumers without the append path doing it.
//!
//! The publisher rings one bell, and only if somebody sleeps; the waker thread answers it and
//! wakes each sleeper on its own word. A burst of publications is one round.

use std::sync::Arc;
use std::time::Duration;

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

    pub(crate) fn unregister(&self) {
        self.asleep.store(false, Ordering::Relaxed);
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

    pub(crate) fn bell(&self) -> u32 {
        self.bell.read()
    }

    /// Waits until the bell has rung since it read `seen`, then wakes all who sleep.
    pub(crate) fn answer(&self, seen: u32, timeout: Duration) {
        self.bell.sleep(seen, timeout);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        for sleeper in self.all.lock().iter() {
            if sleeper.take() {
                sleeper.word.wake_all();
            }
        }
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
        awake.unregister();
        let words = || [&gone, &asleep, &awake].map(|sleeper| sleeper.word.read());
        let before = words();
        sleepers.wake();
        let after = words();
        assert_eq!([0, 1, 2].map(|i: usize| after[i] != before[i]), [false, true, false]);
        sleepers.wake();
        assert_eq!(words(), after, "it has not gone to sleep again");
        let seen = sleepers.bell();
        sleepers.ring();
        assert_ne!(sleepers.bell(), seen);
        asleep.register();
        sleepers.answer(seen, Duration::from_secs(60));
        assert_ne!(words(), after, "the bell is answered");
    }
}
