//! The machine: what it is, where threads run, and where its cores are meanwhile.

mod place;
mod probe;

use std::path::Path;
use std::{fs, thread};

pub use self::place::Place;

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
