//! Catch-up over files that are not in the page cache, beside the same walk over a mapping that is
//! advised to be read in order.

use std::time::Instant;

use eventplane::Bus;
use memmap2::Advice;

use super::consumer::{Consumer, reopen};
use super::walk::walk;
use crate::load::{LARGE, Log};
use crate::report::{Bar, Side};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "replay_cold_cache", run };

fn run(context: &Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bytes = context.scaled(896 << 20, 128 << 20);
    let log = Log::write(dir.path().join("log"), bytes, LARGE, Bus::builder())?;
    let segments = log.segments()?;
    let bus = reopen(&log)?;
    let consumer = Consumer::start(bus.subscribe("cold-cache"))?;
    let gigabytes = log.payload_bytes() as f64 / 1e9;
    let ours = Side::new("eventplane, catch-up, records of 1 KiB", || {
        log.drop_cache()?;
        Ok(gigabytes / consumer.pass(&log)?)
    });
    let theirs = Side::new("a bare walk, MADV_SEQUENTIAL, with CRC-32C", || {
        log.drop_cache()?;
        let begun = Instant::now();
        let tally = walk(&segments, Advice::Sequential)?;
        let seconds = begun.elapsed().as_secs_f64();
        tally.check(&log.written)?;
        Ok(gigabytes / seconds)
    });
    context.report.pair(context.rounds, (BENCH.name, "GB/s", Bar::AtLeast(0.9)), ours, theirs)
}
