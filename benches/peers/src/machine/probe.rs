//! Where the cores of a virtual machine are, which changes from one second to the next.
//!
//! Between cores that share a cache a line travels several times as fast as between others, and the
//! two threads of one core have everything in common: figures of these cannot be compared.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use std::{hint, thread};

use crossbeam_utils::CachePadded;

use super::pin;

/// One-way latency of a cache line between cores that share a cache, at most, in nanoseconds.
/// Measured: 24 between the threads of a core, 45 to 60 between such cores, 245 across dies.
const NEAR_NANOS_MAX: f64 = 90.0;
/// How much longer work takes beside other work on cores of their own, at most. Measured: 0.94 to
/// 1.06, and 1.35 to 1.45 on the threads of one core.
const SLOWDOWN_MAX: f64 = 1.2;

/// How far apart the cores 0 and 1 are at the moment.
pub struct Probe {
    /// Median one-way latency of a cache line between them, in nanoseconds.
    pub one_way_nanos: f64,
    /// How much longer one takes for the same work while the other works too.
    slowdown: f64,
}

impl Probe {
    pub fn take() -> Probe {
        let one_way_nanos = one_way_nanos();
        Probe { one_way_nanos, slowdown: work_nanos(true) / work_nanos(false) }
    }

    /// Two cores that share a cache, but not the two threads of one core.
    pub fn is_near(&self) -> bool {
        self.one_way_nanos <= NEAR_NANOS_MAX && self.slowdown <= SLOWDOWN_MAX
    }
}

/// Parts of a measurement, whose median counts: the system takes a core away now and then.
const PARTS: u64 = 20;

fn median(mut parts: Vec<f64>) -> f64 {
    parts.sort_by(f64::total_cmp);
    parts[parts.len() / 2]
}

fn one_way_nanos() -> f64 {
    const ROUND_TRIPS: u64 = 200;
    let ping = CachePadded::new(AtomicU64::new(0));
    let pong = CachePadded::new(AtomicU64::new(0));
    let answer = || {
        pin(1);
        for i in 1..=PARTS * ROUND_TRIPS {
            while ping.load(Ordering::Acquire) != i {}
            pong.store(i, Ordering::Release);
        }
    };
    let ask = |part: u64| {
        let begun = Instant::now();
        for i in part * ROUND_TRIPS + 1..=(part + 1) * ROUND_TRIPS {
            ping.store(i, Ordering::Release);
            while pong.load(Ordering::Acquire) != i {}
        }
        begun.elapsed().as_nanos() as f64 / ROUND_TRIPS as f64 / 2.0
    };
    beside(answer, || median((0..PARTS).map(ask).collect()))
}

/// Nanoseconds that core 0 takes for some arithmetic.
fn work_nanos(is_other_busy: bool) -> f64 {
    let is_over = AtomicBool::new(!is_other_busy);
    let other = || {
        pin(1);
        while !is_over.load(Ordering::Relaxed) {
            work();
        }
    };
    beside(other, || {
        let part = |_| {
            let begun = Instant::now();
            (0..PARTS).for_each(|_| work());
            begun.elapsed().as_nanos() as f64
        };
        // The first ones, during which the other may not be there yet, are not counted.
        let nanos = median((0..2 * PARTS).map(part).skip(PARTS as usize).collect());
        is_over.store(true, Ordering::Relaxed);
        nanos
    })
}

/// Enough of independent operations to use what two threads of a core have to share.
fn work() {
    let mut lanes = hint::black_box([1_u64, 2, 3, 4]);
    for i in 0..1_000 {
        lanes = lanes.map(|lane| (lane.wrapping_mul(5) ^ i).rotate_left(7));
    }
    hint::black_box(lanes);
}

/// What `probe` on core 0 comes to beside a thread that does `other`.
fn beside(other: impl FnOnce() + Send, probe: impl FnOnce() -> f64 + Send) -> f64 {
    thread::scope(|scope| {
        scope.spawn(other);
        let probe = scope.spawn(|| {
            pin(0);
            probe()
        });
        probe.join().expect("the probe does not panic")
    })
}
