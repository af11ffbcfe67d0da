//! Groups of 1,024 records, each durable before the next, beside nodedb-wal.
//!
//! Its direct mode pads batches without a frame, so that only the first can be read again; its
//! buffered mode is what a log can be made of. That writes every record to a second file first,
//! which can be switched off: the row compares with its defaults, and a figure tells the other.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use eventplane::Writer;
use nodedb_wal::record::RecordType;
use nodedb_wal::{DwbMode, SegmentedWal, SegmentedWalConfig};

use super::open;
use crate::load::{SMALL, fill};
use crate::report::{Bar, Side, divide};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "commit_group_1024", run };

const GROUP: u64 = 1_024;

fn run(context: &Context) -> anyhow::Result<()> {
    let groups = context.scaled(500, 40);
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bus = open(&dir.path().join("ours"))?;
    let writer = bus.writer();
    let peer = dir.path().join("peer");
    let mut sides = [
        Side::new("eventplane", || ours(&writer, groups)),
        Side::new("nodedb-wal 0.4.0, buffered", || theirs(&peer, groups, None)),
        Side::new("the same without its second file", || theirs(&peer, groups, Some(DwbMode::Off))),
    ];
    let (report, name) = (&context.report, BENCH.name);
    let figures = report.sides(context.rounds, (name, "records/s"), &mut sides)?;
    report.figure(name, "ratio to the latter", &divide(&figures[0], &figures[2]));
    report.ratio(name, &divide(&figures[0], &figures[1]), Bar::AtLeast(10.0));
    Ok(())
}

fn ours(writer: &Writer, groups: u64) -> anyhow::Result<f64> {
    let mut payload = [0; SMALL];
    let mut last = None;
    let begun = Instant::now();
    for _ in 0..groups {
        let mut batch = writer.batch();
        for key in 0..GROUP {
            fill(&mut payload, key);
            batch.append(1, key, &payload)?;
        }
        let lsns = batch.commit()?;
        let (first, end) = (lsns.start().get(), lsns.end().get());
        ensure!(end + 1 - first == GROUP, "{} records of a group", end + 1 - first);
        ensure!(last.is_none_or(|last| first == last + 1), "a gap before {first}");
        last = Some(end);
    }
    Ok((groups * GROUP) as f64 / begun.elapsed().as_secs_f64())
}

/// A new log each time, since it writes files of its own that grow.
fn theirs(dir: &Path, groups: u64, second_file: Option<DwbMode>) -> anyhow::Result<f64> {
    let mut config = SegmentedWalConfig::for_testing(dir.to_owned());
    config.writer_config.dwb_mode = second_file;
    let mut wal = SegmentedWal::open(config)?;
    let mut payload = [0; SMALL];
    let begun = Instant::now();
    for _ in 0..groups {
        for key in 0..GROUP {
            fill(&mut payload, key);
            wal.append(RecordType::Put as u32, 1, 0, 0, &payload)?;
        }
        wal.sync()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(wal.next_lsn() == groups * GROUP + 1, "next is {}", wal.next_lsn());
    drop(wal);
    fs::remove_dir_all(dir)?;
    Ok((groups * GROUP) as f64 / seconds)
}
