//! The primitives as they are.

use std::time::{Duration, Instant};

pub(crate) use std::sync::Arc as CountedArc;
pub(crate) use std::sync::atomic;
pub(crate) use std::{thread, thread_local};

pub(crate) use arc_swap::ArcSwapOption as Slot;
pub(crate) use crossbeam_channel::{Receiver, Sender, unbounded};
pub(crate) use parking_lot::{Mutex, MutexGuard};

use atomic::{AtomicU32, Ordering};

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

/// When a wait is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// A time-out too long for the clock is never over.
    pub(crate) fn after(timeout: Duration) -> Deadline {
        Deadline(Instant::now().checked_add(timeout))
    }

    pub(crate) fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }
}

/// Tells a model which bytes of a slab are read and written; here nobody listens.
#[derive(Debug)]
pub(crate) struct Touched;

impl Touched {
    pub(crate) fn new() -> Touched {
        Touched
    }

    #[inline(always)]
    pub(crate) fn read(&self, _from: usize, _to: usize) {}

    #[inline(always)]
    pub(crate) fn write(&self, _from: usize, _to: usize) {}
}

/// Whether a model planted this bug. Never here.
#[inline(always)]
pub(crate) const fn planted(_bug: &str) -> bool {
    false
}
