//! Real kernels: processes that are killed, file systems that lose power, disks that fill up, calls
//! that fail, files that shrink. Each test has a control, a bug planted in the process under test,
//! which the same judge must find.

mod child;
mod judge;
mod load;
mod mount;
mod power_cut;
#[path = "../common/proof.rs"]
mod proof;
mod seccomp;
mod sigkill;
mod wire;

/// For what must happen: far beyond what it takes.
const LONG: std::time::Duration = std::time::Duration::from_secs(20);
