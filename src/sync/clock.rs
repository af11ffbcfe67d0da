//! Time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where time comes from: monotonic nanoseconds, and wall time, which is these and an offset. So
/// one reading of the system's clock does for both, which is most of what a step costs besides.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The offset of wall time, as of the last `adjust`. Relaxed: the number is all there is.
    System(Arc<AtomicU64>),
    /// Driven by a test; wall time is the same number.
    #[cfg_attr(not(feature = "testing"), allow(dead_code))]
    Manual(Arc<AtomicU64>),
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
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        match self {
            Clock::System(_) => monotonic(),
            // Relaxed: the number is all there is.
            Clock::Manual(nanos) => nanos.load(Ordering::Relaxed),
        }
    }

    /// Wall time in nanoseconds since the Unix epoch.
    #[inline]
    pub(crate) fn wall(&self) -> u64 {
        self.wall_at(self.now())
    }

    /// The wall time when `now` was `at`.
    #[inline]
    pub(crate) fn wall_at(&self, at: u64) -> u64 {
        match self {
            Clock::System(offset) => offset.load(Ordering::Relaxed) + at,
            Clock::Manual(_) => at,
        }
    }
}

/// `Instant` would have its two numbers taken apart and put together again on each call.
#[inline]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_follows_the_system() {
        let clock = Clock::system();
        let Clock::System(offset) = &clock else { unreachable!() };
        // As after the system's clock was set.
        offset.store(17, Ordering::Relaxed);
        clock.adjust();
        let before = nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        let wall = clock.wall();
        assert!(wall.abs_diff(before) < 1_000_000_000, "{wall} and {before}");
        assert!(clock.now() <= clock.now());
    }
}
