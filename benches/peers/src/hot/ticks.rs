//! A clock that is cheap enough to be read for each record.

use std::hint;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The processor's counter, which runs at one rate and is the same on all cores.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn now() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; it only reads a counter.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
pub fn now() -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    EPOCH.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Ticks a nanosecond, measured once.
pub fn per_nano() -> f64 {
    static RATE: OnceLock<f64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let (begun, first) = (Instant::now(), now());
        while begun.elapsed() < Duration::from_millis(50) {
            hint::spin_loop();
        }
        (now() - first) as f64 / begun.elapsed().as_nanos() as f64
    })
}

pub fn in_nanos(nanos: u64) -> u64 {
    (nanos as f64 * per_nano()) as u64
}

/// Spins until the clock shows `until`.
#[inline]
pub fn wait_until(until: u64) {
    while now() < until {
        hint::spin_loop();
    }
}
