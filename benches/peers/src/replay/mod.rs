//! Reading what was written: catch-up and cold, warm and cold cache, alone and beside a writer; and
//! what a consumer costs that has nothing to read.

mod cached;
mod chase;
mod cold;
mod consumer;
mod distance;
mod idle;
mod isolation;
mod nodedb;
mod opening;
mod paged;
mod shared;
mod switch;
mod walk;
mod warm;

pub use opening::append_until_killed;

use crate::Bench;

pub const BENCHES: &[&Bench] = &[
    &warm::WALK,
    &warm::NODEDB,
    &paged::ONE_PASS,
    &paged::NODEDB,
    &cached::BENCH,
    &cold::BENCH,
    &shared::BENCH,
    &isolation::BENCH,
    &chase::BENCH,
    &switch::BENCH,
    &opening::CLOSED,
    &opening::CRASHED,
    &idle::BENCH,
    &distance::BENCH,
];

/// How long anything here may take before it counts as hung.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(180);
