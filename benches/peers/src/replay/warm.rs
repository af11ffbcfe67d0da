//! Catch-up over files that are in the page cache: beside a walk that does the least, and beside
//! nodedb-wal.

use std::time::Instant;

use eventplane::Bus;
use memmap2::Advice;

use super::consumer::{Consumer, reopen};
use super::nodedb::PeerLog;
use super::walk::walk;
use crate::load::{Log, SMALL};
use crate::report::{Bar, Side};
use crate::{Bench, Context};

pub const WALK: Bench = Bench { name: "replay_warm_100B", run: beside_walk };
pub const NODEDB: Bench = Bench { name: "replay_warm_nodedb", run: beside_nodedb };

fn beside_walk(context: &Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bytes = context.scaled(512 << 20, 64 << 20);
    let log = Log::write(dir.path().join("log"), bytes, SMALL, Bus::builder())?;
    let segments = log.segments()?;
    let bus = reopen(&log)?;
    let consumer = Consumer::start(bus.subscribe("warm"))?;
    let theirs = Side::new("a bare walk, mapped, with CRC-32C", || {
        log.warm()?;
        let begun = Instant::now();
        let tally = walk(&segments, Advice::PopulateRead)?;
        let seconds = begun.elapsed().as_secs_f64();
        tally.check(&log.written)?;
        Ok(log.written.records as f64 / seconds)
    });
    let ours = Side::new("eventplane, catch-up", || {
        log.warm()?;
        Ok(log.written.records as f64 / consumer.pass(&log)?)
    });
    context.report.pair(context.rounds, (WALK.name, "records/s", Bar::AtLeast(0.8)), ours, theirs)
}

fn beside_nodedb(context: &Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bytes = context.scaled(256 << 20, 48 << 20);
    let log = Log::write(dir.path().join("log"), bytes, SMALL, Bus::builder())?;
    let peer = PeerLog::write(dir.path().join("peer"), log.written.records)?;
    let bus = reopen(&log)?;
    let consumer = Consumer::start(bus.subscribe("warm"))?;
    let records = log.written.records as f64;
    let ours = Side::new("eventplane, catch-up", || {
        log.warm()?;
        Ok(records / consumer.pass(&log)?)
    });
    let theirs = Side::new("nodedb-wal 0.4.0, replay_segments_mmap", || {
        peer.warm()?;
        Ok(records / peer.replay()?)
    });
    context.report.pair(context.rounds, (NODEDB.name, "records/s", Bar::AtLeast(5.0)), ours, theirs)
}
