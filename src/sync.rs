//! Waiting and time: a futex word and a clock, the two things that a simulation replaces.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A word to sleep on. Whoever changes what a sleeper waits for bumps the word afterwards; whoever
/// wants to sleep reads the word first, then looks, then sleeps only if the word is still the same.
#[derive(Debug, Default)]
pub(crate) struct Futex {
    word: AtomicU32,
}

impl Futex {
    /// Acquire: what was written before the bump that this value shows is visible.
    pub(crate) fn read(&self) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    /// Changes the word and wakes everybody who sleeps on it.
    pub(crate) fn wake_all(&self) {
        // Release: pairs with `read`.
        self.word.fetch_add(1, Ordering::Release);
        // SAFETY: the word outlives the call, and FUTEX_WAKE only takes its address as a key.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.word.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                i32::MAX,
            );
        }
    }

    /// Sleeps while the word is `seen`, at most `timeout`. May return early: look again.
    pub(crate) fn sleep(&self, seen: u32, timeout: Duration) {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        // SAFETY: word and timeout outlive the call; the kernel compares the word atomically.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.word.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                seen,
                &raw const timeout,
            );
        }
    }
}

/// Where time comes from. Monotonic nanoseconds since the clock was made, and wall time.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    System(Instant),
    /// Driven by a test; wall time is the same number.
    #[cfg_attr(not(feature = "testing"), allow(dead_code))]
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub(crate) fn system() -> Clock {
        Clock::System(Instant::now())
    }

    /// Monotonic, in nanoseconds.
    pub(crate) fn now(&self) -> u64 {
        match self {
            Clock::System(start) => start.elapsed().as_nanos() as u64,
            // Relaxed: the number is all there is.
            Clock::Manual(nanos) => nanos.load(Ordering::Relaxed),
        }
    }

    /// Wall time in nanoseconds since the Unix epoch.
    pub(crate) fn wall(&self) -> u64 {
        match self {
            Clock::System(_) => {
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
            }
            Clock::Manual(nanos) => nanos.load(Ordering::Relaxed),
        }
    }
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
        // `None` is never: a time-out too long for the clock.
        let deadline = Instant::now().checked_add(timeout);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let answer = loop {
            let seen = self.word.read();
            if let Some(answer) = look() {
                break Some(answer);
            }
            let left =
                deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break None;
            }
            self.word.sleep(seen, left.min(crate::limits::SLEEP_MAX));
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        answer
    }
}
