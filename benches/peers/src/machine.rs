//! The machine: what it is, where threads run, how far apart its cores are at the moment.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_utils::CachePadded;

/// One-way latency of a cache line between cores that share a cache, at most, in nanoseconds.
/// Measured: 25 to 60 near, 245 across dies.
const NEAR_NANOS_MAX: f64 = 90.0;

/// Prints what the figures depend on.
pub fn describe(dir: &Path) {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown processor", |m| m.trim_start_matches([' ', '\t', ':']));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = thread::available_parallelism().map_or(0, |n| n.get());
    println!("{model}, {cores} cores, Linux {}, files in {}", kernel.trim(), dir.display());
    if !pin(0) || !pin(1) {
        println!("WARNING: threads cannot be pinned: the hot rows will be noisy");
    }
    unpin();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|l| l.parse().ok()).unwrap_or(0.0);
    if load > 1.0 {
        println!("WARNING: the machine is busy (load {load}): figures will be noisy");
    }
}

/// Pins this thread to a core. False where that is refused.
pub fn pin(core: usize) -> bool {
    // SAFETY: a cpu_set_t is plain bits; both calls only read and write it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) == 0
    }
}

/// Lets this thread run on all cores again.
pub fn unpin() {
    // SAFETY: as in `pin`.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for core in 0..libc::CPU_SETSIZE as usize {
            libc::CPU_SET(core, &mut set);
        }
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// Where the cores 0 and 1 of a virtual machine are at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distance {
    Near,
    Far,
}

/// Bounces a cache line between the cores 0 and 1.
pub fn distance() -> Distance {
    if one_way_nanos(4_000) < NEAR_NANOS_MAX { Distance::Near } else { Distance::Far }
}

/// Median one-way latency of a cache line between the cores 0 and 1, in nanoseconds.
pub fn one_way_nanos(round_trips: u64) -> f64 {
    const CHUNKS: u64 = 20;
    let ping = CachePadded::new(AtomicU64::new(0));
    let pong = CachePadded::new(AtomicU64::new(0));
    let chunk = round_trips / CHUNKS;
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            for i in 1..=chunk * CHUNKS {
                while ping.load(Ordering::Acquire) != i {}
                pong.store(i, Ordering::Release);
            }
        });
        let probe = scope.spawn(|| {
            pin(0);
            let mut chunks = Vec::with_capacity(CHUNKS as usize);
            for c in 0..CHUNKS {
                let begun = Instant::now();
                for i in c * chunk + 1..=(c + 1) * chunk {
                    ping.store(i, Ordering::Release);
                    while pong.load(Ordering::Acquire) != i {}
                }
                chunks.push(begun.elapsed().as_nanos() as f64 / chunk as f64 / 2.0);
            }
            chunks.sort_by(f64::total_cmp);
            chunks[chunks.len() / 2]
        });
        probe.join().expect("the probe does not panic")
    })
}
