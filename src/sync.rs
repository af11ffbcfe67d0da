//! Waiting and time, and the primitives that races are about: re-exports in a normal build, and
//! under `--cfg races="loom"` or `"shuttle"` their doubles, which a model checker schedules.
//!
//! What goes through here is what threads tell each other by. Statistics, and locks under which
//! nobody waits or tells anything, are used as they are.

mod clock;
#[cfg(races)]
mod modelled;
#[cfg(races)]
use modelled as primitives;
mod priority;
#[cfg(not(races))]
mod real;
#[cfg(not(races))]
use real as primitives;

use std::time::Duration;

pub(crate) use clock::{Clock, nanos};
#[cfg(races = "loom")]
pub(crate) use primitives::atomic::print_sites;
use primitives::atomic::{AtomicU32, Ordering};
#[cfg(races)]
pub(crate) use primitives::checker;
#[cfg(races = "shuttle")]
pub(crate) use primitives::pass_time;
pub(crate) use primitives::{
    CountedArc, Deadline, Futex, Mutex, MutexGuard, Receiver, Sender, Slot, Touched, atomic,
    planted, thread, thread_local, unbounded,
};
pub(crate) use priority::answer_soon;

/// Something that happens again and again, and that others wait for.
///
/// A waiter counts itself, then looks; whoever makes it happen does so, then looks for waiters.
/// With SeqCst on both sides one of them sees the other, and nobody waiting costs no system call.
#[derive(Debug, Default)]
pub(crate) struct Event {
    word: Futex,
    waiting: AtomicU32,
}

impl Event {
    /// It happened. The change that waiters look for was made before, with SeqCst or under a lock.
    pub(crate) fn notify(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.word.wake_all();
        }
    }

    /// Waits until `look` has an answer, at most `timeout`.
    pub(crate) fn wait<T>(
        &self,
        timeout: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let deadline = Deadline::after(timeout);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let answer = loop {
            let seen = self.word.read();
            if let Some(answer) = look() {
                break Some(answer);
            }
            let left = deadline.left();
            if left.is_zero() {
                break None;
            }
            self.word.sleep(seen, left.min(crate::limits::SLEEP_MAX));
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        answer
    }
}
