//! What is written and how it is recognised again: payloads, and whole logs of them.

mod log;
mod payload;

pub use log::Log;
pub use payload::{Tally, fill, sum};

/// The payload of small records, in bytes.
pub const SMALL: usize = 100;
/// The payload of those rows that are about bytes.
pub const LARGE: usize = 1_024;
