//! Opening a log of 10 GiB: after it was closed, and after its writer was killed.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context as _, bail, ensure};
use eventplane::Bus;

use crate::disk;
use crate::load::{LARGE, Log, sum};
use crate::report::Bar;
use crate::{Bench, Context};

pub const CLOSED: Bench = Bench { name: "open_10GiB", run: closed };
pub const CRASHED: Bench = Bench { name: "open_10GiB_crashed", run: crashed };

const GIB: u64 = 1 << 30;
const BARE: &str = "bare reads of the same pages";
/// With room for what else there may be.
const NEEDS_BYTES: u64 = 15 * GIB;
/// The kernel goes on with the writes of a killed process for some 40 ms.
const AFTERMATH: Duration = Duration::from_millis(300);

/// Writes the log, or says why not.
fn prepare(context: &Context, bench: &Bench) -> anyhow::Result<Option<Log>> {
    let free = disk::free_bytes(&context.dir)?;
    if !context.quick && free < NEEDS_BYTES {
        context.report.skip(bench.name, &format!("{} GiB free of 15", free / GIB));
        return Ok(None);
    }
    let dir = context.dir.join(bench.name);
    let bytes = context.scaled(10 * GIB, 224 << 20);
    Ok(Some(Log::write(dir, bytes, 16 * LARGE, Bus::builder())?))
}

/// Opens the log with a cold cache; returns how many milliseconds that took, and how many records
/// it has.
fn open(log: &Log) -> anyhow::Result<(f64, u64)> {
    log.drop_cache()?;
    let begun = Instant::now();
    let bus = Bus::builder().open(&log.dir)?;
    let millis = begun.elapsed().as_secs_f64() * 1e3;
    let records = bus.committed_lsn().get();
    bus.close()?;
    Ok((millis, records))
}

fn closed(context: &Context) -> anyhow::Result<()> {
    let Some(log) = prepare(context, &CLOSED)? else { return Ok(()) };
    let (mut times, mut bare) = (vec![], vec![]);
    for _ in 0..context.rounds {
        let (millis, records) = open(&log)?;
        ensure!(records == log.written.records, "{records} of {}", log.written.records);
        times.push(millis);
        log.drop_cache()?;
        bare.push(bare_reads(&log.segments()?, 1)?);
    }
    fs::remove_dir_all(&log.dir)?;
    let report = &context.report;
    report.sample(CLOSED.name, "ms", ("open", &times), (BARE, &bare));
    report.ratio(CLOSED.name, &times, Bar::AtMost(50.0));
    Ok(())
}

fn crashed(context: &Context) -> anyhow::Result<()> {
    let Some(log) = prepare(context, &CRASHED)? else { return Ok(()) };
    let (mut times, mut walks, mut rests, mut bare) = (vec![], vec![], vec![], vec![]);
    for _ in 0..context.rounds {
        let acknowledged = write_and_be_killed(&log.dir)?;
        log.drop_cache()?;
        // Beside the one being written there are two that were prepared.
        bare.push(bare_reads(&log.segments()?, 3)?);
        let (millis, records) = open(&log)?;
        ensure!(records >= acknowledged, "{records} records, {acknowledged} acknowledged");
        let walk = walk_of_a_segment(&log.segments()?)?;
        times.push(millis);
        walks.push(walk);
        // A fast disk may walk a segment in less than it takes to open the rest, never in more.
        rests.push((millis - walk).max(0.0));
    }
    fs::remove_dir_all(&log.dir)?;
    let report = &context.report;
    report.sample(CRASHED.name, "ms", ("open", &times), ("a walk of one segment", &walks));
    report.figure(CRASHED.name, &format!("{BARE}, ms"), &bare);
    report.ratio(CRASHED.name, &rests, Bar::AtMost(50.0));
    Ok(())
}

/// What a walk of one segment takes at least: its bytes past the cache, a checksum of them.
fn walk_of_a_segment(segments: &[PathBuf]) -> anyhow::Result<f64> {
    let begun = Instant::now();
    std::hint::black_box(read_whole(segments.first().context("a segment")?)?);
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

fn read_whole(path: &Path) -> anyhow::Result<u64> {
    let file = disk::open_direct(path, false)?;
    let mut buffer = disk::page_buffer(1 << 20)?;
    let mut digest = 0;
    for offset in (0..file.metadata()?.len()).step_by(buffer.len()) {
        file.read_exact_at(&mut buffer, offset)?;
        digest ^= u64::from(crc32c::crc32c(&buffer)) ^ sum(&buffer);
    }
    Ok(digest)
}

/// What the disk, and a checksum, take for what opening reads: both ends of every segment, many at
/// once, and beside that the newest `whole` ones from end to end. In milliseconds.
fn bare_reads(segments: &[PathBuf], whole: usize) -> anyhow::Result<f64> {
    const AT_ONCE: usize = 32;
    const HEAD_BYTES: usize = 8 << 10;
    const FOOTER_BYTES: u64 = 12 << 10;
    let next = AtomicUsize::new(0);
    let ends = || -> anyhow::Result<()> {
        let mut buffer = disk::page_buffer(FOOTER_BYTES as usize)?;
        while let Some(path) = segments.get(next.fetch_add(1, Ordering::Relaxed)) {
            let file = disk::open_direct(path, false)?;
            file.read_exact_at(&mut buffer[..HEAD_BYTES], 0)?;
            file.read_exact_at(&mut buffer, file.metadata()?.len() - FOOTER_BYTES)?;
        }
        Ok(())
    };
    let newest = segments.iter().rev().take(whole);
    let begun = Instant::now();
    thread::scope(|scope| {
        let mut readers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(ends)).collect();
        readers.extend(newest.map(|path| scope.spawn(|| read_whole(path).map(drop))));
        readers.into_iter().try_for_each(|reader| reader.join().expect("it does not panic"))
    })?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Has this program append in another process, and kills that; returns the last record that it had
/// acknowledged.
fn write_and_be_killed(dir: &Path) -> anyhow::Result<u64> {
    /// Half a segment and something.
    const LINES: usize = 600;
    let mut child = Command::new(env::current_exe()?)
        .arg("--append-until-killed")
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    let mut last = None;
    for line in lines.take(LINES) {
        last = Some(line?.parse()?);
    }
    child.kill()?;
    child.wait()?;
    thread::sleep(AFTERMATH);
    last.context("it acknowledged nothing")
}

/// What the other process does: appends, and prints each LSN that was acknowledged.
pub fn append_until_killed(dir: &Path) -> anyhow::Result<()> {
    let bus = Bus::builder().open(dir)?;
    let writer = bus.writer();
    let payload = vec![7; 16 * LARGE];
    let mut out = std::io::stdout();
    for key in 0..1 << 20 {
        let lsn = writer.append(1, key, &payload)?;
        writeln!(out, "{}", lsn.get())?;
    }
    bail!("nobody killed it")
}
