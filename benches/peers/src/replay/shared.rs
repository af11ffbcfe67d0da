//! Eight consumers that catch up from one point: what the device has to read for them, beside what
//! it has to read for one.

use anyhow::ensure;
use eventplane::Bus;

use super::consumer::{Consumer, reopen};
use crate::disk;
use crate::load::{LARGE, Log};
use crate::report::{Bar, Side};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "shared_replay", run };

const CONSUMERS: usize = 8;

fn run(context: &Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bytes = context.scaled(512 << 20, 96 << 20);
    let log = Log::write(dir.path().join("log"), bytes, LARGE, Bus::builder())?;
    let bus = reopen(&log)?;
    let start = |i| Consumer::start(bus.subscribe(format!("shared-{i}")));
    let consumers: Vec<Consumer> = (0..CONSUMERS).map(start).collect::<anyhow::Result<_>>()?;
    let ours = Side::new("eight consumers", || read_by(&consumers, &log));
    let theirs = Side::new("one consumer", || read_by(&consumers[..1], &log));
    let row = (BENCH.name, "MB read from the device", Bar::AtMost(1.3));
    context.report.pair(context.rounds, row, ours, theirs)
}

fn read_by(consumers: &[Consumer], log: &Log) -> anyhow::Result<f64> {
    log.drop_cache()?;
    let before = disk::read_bytes()?;
    // From one point at one time: each place sought is stored before the next one's.
    consumers.iter().for_each(Consumer::pause);
    consumers.iter().try_for_each(Consumer::rewind)?;
    consumers.iter().for_each(Consumer::resume);
    consumers.iter().try_for_each(|consumer| consumer.finish(log))?;
    let read = disk::read_bytes()? - before;
    // Less would mean that the cache had not been dropped.
    ensure!(read > log.payload_bytes() / 10 * 9, "only {read} bytes were read");
    Ok(read as f64 / 1e6)
}
