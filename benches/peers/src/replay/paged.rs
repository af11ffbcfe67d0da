//! Catch-up in pages of 512 records: beside one pass, and beside nodedb-wal, which begins its
//! segment anew for each page.

use eventplane::Bus;

use super::consumer::{Consumer, reopen};
use super::nodedb::PeerLog;
use crate::load::{Log, SMALL};
use crate::report::{Bar, Side};
use crate::{Bench, Context};

pub const ONE_PASS: Bench = Bench { name: "replay_paged_512", run: beside_one_pass };
pub const NODEDB: Bench = Bench { name: "replay_paged_nodedb", run: beside_nodedb };

const PAGE: usize = 512;

fn beside_one_pass(context: &Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bytes = context.scaled(512 << 20, 64 << 20);
    let log = Log::write(dir.path().join("log"), bytes, SMALL, Bus::builder())?;
    let bus = reopen(&log)?;
    let paged = Consumer::start(bus.subscribe("paged").batch_records_max(PAGE))?;
    let whole = bus.subscribe("whole").batch_records_max(usize::MAX).batch_bytes_max(usize::MAX);
    let whole = Consumer::start(whole)?;
    let seconds = |consumer: &Consumer| {
        log.warm()?;
        consumer.pass(&log)
    };
    let ours = Side::new("pages of 512 records", || seconds(&paged));
    let theirs = Side::new("pages as large as they come", || seconds(&whole));
    context.report.pair(context.rounds, (ONE_PASS.name, "s", Bar::AtMost(1.15)), ours, theirs)
}

/// The peer's rate falls with the size of its segment, ours does not; so it gets a log that it can
/// read in some seconds, and ours is one on which there is something to measure.
fn beside_nodedb(context: &Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bytes = context.scaled(256 << 20, 64 << 20);
    let log = Log::write(dir.path().join("log"), bytes, SMALL, Bus::builder())?;
    let peer = PeerLog::write(dir.path().join("peer"), context.scaled(3 << 16, 1 << 14))?;
    let bus = reopen(&log)?;
    let paged = Consumer::start(bus.subscribe("paged").batch_records_max(PAGE))?;
    let label = format!("eventplane, {} records", log.written.records);
    let ours = Side::new(label, || {
        log.warm()?;
        Ok(log.written.records as f64 / paged.pass(&log)?)
    });
    let label = format!("nodedb-wal 0.4.0, {} records in one segment", peer.written.records);
    let theirs = Side::new(label, || {
        peer.warm()?;
        Ok(peer.written.records as f64 / peer.replay_paged(PAGE)?)
    });
    let row = (NODEDB.name, "records/s", Bar::AtLeast(300.0));
    context.report.pair(context.rounds, row, ours, theirs)
}
