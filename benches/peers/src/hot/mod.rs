//! The hot tier: records from a publisher on one core to readers on another, in memory.
//!
//! Everybody reads every byte, each has a ring of the same size and the way of waiting that suits
//! it best. What is compared is therefore the way of a record: ours through a log with headers,
//! LSNs and a place for late readers, theirs through a ring or a channel and nothing else.

mod bare;
mod channels;
mod latency;
mod lease;
mod load;
mod ours;
mod policy;
mod race;
mod ring;
mod slow;
mod throughput;
mod ticks;

use crate::Bench;

pub const BENCHES: &[&Bench] = &[
    &throughput::ONE_64,
    &throughput::ONE_1024,
    &throughput::THREE_256,
    &throughput::MIXED,
    &throughput::RETENTION_64,
    &throughput::RETENTION_1024,
    &throughput::SINGLE,
    &throughput::BARE_64,
    &throughput::BARE_1024,
    &throughput::BARE_THREE,
    &throughput::BARE_MIXED,
    &throughput::BARE_RETENTION,
    &throughput::BARE_SINGLE,
    &throughput::THREE_TOKIO,
    &throughput::THREE_CROSSBEAM,
    &slow::COST,
    &slow::DISRUPTOR,
    &latency::BENCH,
    &lease::BENCH,
];
