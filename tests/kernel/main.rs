//! Real kernels: processes that are killed, file systems that lose power, disks that fill up, calls
//! that fail, files that shrink. Each test has a control, a bug planted in the process under test,
//! which the same judge must find.

mod child;
mod full_disk;
mod fuse;
mod fuse_checkpoints;
mod fuse_errors;
mod hogs;
mod judge;
mod load;
mod mount;
mod power_cut;
#[path = "../common/proof.rs"]
mod proof;
mod rerun;
mod seccomp;
mod sigkill;
mod size_limit;
mod truncated;
mod wire;

use std::thread;
use std::time::{Duration, Instant};

/// For what must happen: far beyond what it takes.
const LONG: Duration = Duration::from_secs(20);

/// Looks until it is so.
#[track_caller]
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
