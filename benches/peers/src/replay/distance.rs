//! What a consumer pays for being behind, by how far it is: the same for each byte, if distance
//! itself costs nothing.

use std::fs;
use std::time::Instant;

use anyhow::Context as _;
use eventplane::{Ack, Batch, Bus, Lsn, Start};

use super::PATIENCE;
use crate::disk;
use crate::load::{LARGE, Log, sum};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "distance", run };

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// From what is in the ring to what no memory holds.
const DISTANCES: [(&str, u64); 6] = [
    ("1 MiB", MIB),
    ("64 MiB", 64 * MIB),
    ("256 MiB", 256 * MIB),
    ("1 GiB", GIB),
    ("10 GiB", 10 * GIB),
    ("50 GiB", 50 * GIB),
];
/// Left to others.
const SPARE_BYTES: u64 = 4 * GIB;
const PAYLOAD_BYTES: usize = 4 * LARGE;
/// With its header.
const FRAMED_BYTES: u64 = PAYLOAD_BYTES as u64 + 16;

fn run(context: &Context) -> anyhow::Result<()> {
    let room = disk::free_bytes(&context.dir)?.saturating_sub(SPARE_BYTES);
    let room = room.min(context.scaled(u64::MAX, 64 * MIB));
    let reached = DISTANCES.iter().filter(|(_, bytes)| *bytes <= room);
    let farthest = reached.clone().next_back().context("no room for a log")?.1;
    for (name, _) in DISTANCES.iter().filter(|(_, bytes)| *bytes > room) {
        context.report.skip(BENCH.name, &format!("{name}: {} GiB free", room / GIB));
    }
    let dir = context.dir.join(BENCH.name);
    let unthrottled = || Bus::builder().cold_bytes_per_second(None);
    let log = Log::write(dir, farthest + MIB, PAYLOAD_BYTES, unthrottled())?;
    let bus = unthrottled().open(&log.dir)?;
    for (name, bytes) in reached {
        let mut speeds = Vec::new();
        for _ in 0..context.rounds {
            log.drop_cache()?;
            speeds.push(catch_up(&bus, &log, *bytes)?);
        }
        context.report.figure(BENCH.name, &format!("{name} behind, GB/s"), &speeds);
    }
    bus.close()?;
    Ok(fs::remove_dir_all(&log.dir)?)
}

/// GB/s of payload, from when a subscriber begins that far behind until it has had all of it.
fn catch_up(bus: &Bus, log: &Log, bytes: u64) -> anyhow::Result<f64> {
    let records = (bytes / FRAMED_BYTES).min(log.written.records);
    let last = Lsn::new(log.written.records);
    let mut next = Lsn::new(last.get() - records + 1);
    let begun = Instant::now();
    let subscribe = bus.subscribe("behind").start_at(Start::Lsn(next));
    let consumer = subscribe.run(move |batch: &Batch<'_>| {
        for record in batch {
            if record.lsn() != next {
                return Err(format!("{} where {next} was next", record.lsn()).into());
            }
            std::hint::black_box(sum(record.payload()));
            next = next.next();
        }
        Ok(Ack::All)
    })?;
    consumer.wait_processed(last, PATIENCE)?;
    let seconds = begun.elapsed().as_secs_f64();
    consumer.stop()?;
    Ok((records * PAYLOAD_BYTES as u64) as f64 / 1e9 / seconds)
}
