//! Running many seeds on all cores, and saying how to run one again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Runs `case` with one seed after the other until it has executed `required` cases, or once with
/// the seed that `SEED` names. Returns how many were executed.
pub(crate) fn each_seed(test: &str, required: u64, case: impl Fn(u64) -> u64 + Sync) -> u64 {
    if let Some(seed) = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        return case(seed);
    }
    let (next, executed, failed) = (AtomicU64::new(1), AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        while executed.load(Ordering::Relaxed) < required && !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            match catch_unwind(AssertUnwindSafe(|| case(seed))) {
                Ok(cases) => {
                    executed.fetch_add(cases, Ordering::Relaxed);
                }
                Err(_) => {
                    failed.store(true, Ordering::Relaxed);
                    eprintln!("to replay: SEED={seed} cargo test --test simulation {test}");
                }
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        (0..workers).for_each(|_| {
            scope.spawn(work);
        });
    });
    assert!(!failed.load(Ordering::Relaxed), "{test} failed, see above");
    executed.load(Ordering::Relaxed)
}

/// Whether one of the first `seeds` seeds makes `case` panic: a planted bug is found.
pub(crate) fn is_found(seeds: u64, case: impl Fn(u64) + Sync) -> Option<u64> {
    (1..=seeds).find(|&seed| catch_unwind(AssertUnwindSafe(|| case(seed))).is_err())
}
