//! Waiting and time, and the primitives that races are about: re-exports in a normal build, and
//! under `--cfg races="loom"` or `"shuttle"` their doubles, which a model checker schedules.
//!
//! What goes through here is what threads tell each other by. Statistics, and locks under which
//! nobody waits or tells anything, are used as they are.

#[cfg(races)]
mod modelled;
#[cfg(races)]
use modelled as primitives;
#[cfg(not(races))]
mod real;
#[cfg(not(races))]
use real as primitives;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// Where time comes from: monotonic nanoseconds, and wall time, which is these and an offset. So
/// one reading of the system's clock does for both, which is most of what a step costs besides.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The offset of wall time, as of the last `adjust`. Relaxed: the number is all there is.
    System(Arc<std::sync::atomic::AtomicU64>),
    /// Driven by a test; wall time is the same number.
    #[cfg_attr(not(feature = "testing"), allow(dead_code))]
    Manual(Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    pub(crate) fn system() -> Clock {
        let clock = Clock::System(Arc::default());
        clock.adjust();
        clock
    }

    /// Follows the system's wall clock, which may be set. The supervisor calls this on every tick.
    pub(crate) fn adjust(&self) {
        if let Clock::System(offset) = self {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, nanos);
            offset.store(wall.saturating_sub(monotonic()), Ordering::Relaxed);
        }
    }

    /// Monotonic, in nanoseconds.
    pub(crate) fn now(&self) -> u64 {
        match self {
            Clock::System(_) => monotonic(),
            // Relaxed: the number is all there is.
            Clock::Manual(nanos) => nanos.load(Ordering::Relaxed),
        }
    }

    /// Wall time in nanoseconds since the Unix epoch.
    pub(crate) fn wall(&self) -> u64 {
        self.wall_at(self.now())
    }

    /// The wall time when `now` was `at`.
    pub(crate) fn wall_at(&self, at: u64) -> u64 {
        match self {
            Clock::System(offset) => offset.load(Ordering::Relaxed) + at,
            Clock::Manual(_) => at,
        }
    }
}

/// `Instant` would have its two numbers taken apart and put together again on each call.
fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing; with this clock the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A duration as the clock counts it.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

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
