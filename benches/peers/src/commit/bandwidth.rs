//! Bytes made durable for as long as one likes, beside a bare writer that has to do what any log
//! must: zeros are written and synced ahead of it, file by file, and it syncs as often.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use eventplane::{Bus, Retention, Ticket};

use crate::disk::{self, PIECE_BYTES, Pieces};
use crate::load::{LARGE, fill};
use crate::report::{Bar, Side};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "append_bandwidth", run };

/// As the library's defaults: size of a segment, and bytes written at most before a sync.
const FILE_BYTES: u64 = 16 << 20;
const SYNC_BYTES: u64 = 2 << 20;
/// Prepared files behind the one that is written to: one in the channel, one in the hand of the
/// preparer.
const IN_CHANNEL: usize = 1;
/// What both keep of the past.
const KEPT_BYTES: u64 = 128 << 20;

/// Records a batch, just below the size at which a block is closed; batches that wait at most.
const BATCH: u64 = 250;
const TICKETS: usize = 24;

fn run(context: &Context) -> anyhow::Result<()> {
    // Some forty times what lies prepared, so that preparing is paid for.
    let bytes = context.scaled(2 << 30, 256 << 20);
    let dir = context.dir.join("bandwidth");
    fs::create_dir(&dir)?;
    let ours = Side::new("eventplane, records of 1 KiB", || ours(&dir.join("log"), bytes));
    let theirs = Side::new("io_uring, 256 KiB, 4 in flight", || bare(&dir, bytes));
    let row = (BENCH.name, "GB/s", Bar::AtLeast(0.85));
    context.report.pair(context.rounds, row, ours, theirs)?;
    Ok(fs::remove_dir_all(&dir)?)
}

/// Payload alone counts: headers, padding and footers are ours to pay.
fn ours(dir: &Path, bytes: u64) -> anyhow::Result<f64> {
    let bus = Bus::builder().retention(Retention::bytes(KEPT_BYTES)).open(dir)?;
    let writer = bus.writer();
    let mut payload = [0; LARGE];
    fill(&mut payload, 1);
    let mut tickets: VecDeque<Ticket> = VecDeque::with_capacity(TICKETS);
    let mut acknowledged = 0;
    let mut acknowledge = |ticket: Ticket| {
        let lsns = ticket.wait()?;
        ensure!(lsns.start().get() == acknowledged + 1, "a gap behind {acknowledged}");
        acknowledged = lsns.end().get();
        Ok(acknowledged)
    };
    let batches = bytes / (BATCH * LARGE as u64);
    let begun = Instant::now();
    for number in 0..batches {
        if tickets.len() == TICKETS {
            acknowledge(tickets.pop_front().context("a ticket")?)?;
        }
        let mut batch = writer.batch();
        for i in 0..BATCH {
            let key = number * BATCH + i;
            payload[..8].copy_from_slice(&key.to_le_bytes());
            batch.append(1, key, &payload)?;
        }
        tickets.push_back(batch.commit_later()?);
    }
    let mut last = 0;
    for ticket in tickets.drain(..) {
        last = acknowledge(ticket)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(last == batches * BATCH, "{last} records acknowledged");
    bus.close()?;
    fs::remove_dir_all(dir)?;
    Ok((batches * BATCH * LARGE as u64) as f64 / 1e9 / seconds)
}

/// The other side: bytes that mean nothing, in files that somebody else prepares.
fn bare(dir: &Path, bytes: u64) -> anyhow::Result<f64> {
    let files = bytes / FILE_BYTES;
    let hurried = AtomicBool::new(false);
    let (sender, receiver) = sync_channel(IN_CHANNEL);
    thread::scope(|scope| {
        let preparer = scope.spawn(|| prepare_all(dir, files, &hurried, sender));
        let written = write_all(files, &hurried, receiver);
        preparer.join().expect("the preparer does not panic")?;
        Ok((files * FILE_BYTES) as f64 / 1e9 / written?)
    })
}

type Prepared = (File, PathBuf);

fn prepare_all(
    dir: &Path,
    files: u64,
    hurried: &AtomicBool,
    ready: SyncSender<Prepared>,
) -> anyhow::Result<()> {
    for number in 0..files {
        let path = dir.join(format!("bare-{number}"));
        let temporary = path.with_extension("tmp");
        let file = disk::open_direct(&temporary, true)?;
        disk::write_zeros(&file, FILE_BYTES, &|| hurried.load(Ordering::Relaxed))?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()?;
        hurried.store(false, Ordering::Relaxed);
        if ready.send((file, path)).is_err() {
            // The writer failed, and says why.
            break;
        }
    }
    Ok(())
}

/// Writes file after file; returns how many seconds it took.
fn write_all(files: u64, hurried: &AtomicBool, ready: Receiver<Prepared>) -> anyhow::Result<f64> {
    let mut pieces = Pieces::new()?;
    let mut kept: VecDeque<PathBuf> = VecDeque::new();
    // As a log that was just opened, it finds the first file ready.
    let mut first = Some(ready.recv().context("a prepared file")?);
    let begun = Instant::now();
    for _ in 0..files {
        let next = first.take().map_or_else(|| wait_for(&ready, hurried), Ok);
        let (file, path) = next?;
        write_file(&mut pieces, &file)?;
        kept.push_back(path);
        if kept.len() as u64 > KEPT_BYTES / FILE_BYTES {
            fs::remove_file(kept.pop_front().context("a file")?)?;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    for path in kept {
        fs::remove_file(path)?;
    }
    Ok(seconds)
}

/// The next file. If it is not ready, the rest of its zeros is left out, as the library does.
fn wait_for(ready: &Receiver<Prepared>, hurried: &AtomicBool) -> anyhow::Result<Prepared> {
    if let Ok(prepared) = ready.try_recv() {
        return Ok(prepared);
    }
    hurried.store(true, Ordering::Relaxed);
    ready.recv().context("a prepared file")
}

fn write_file(pieces: &mut Pieces, file: &File) -> anyhow::Result<()> {
    let (mut offset, mut unsynced) = (0, 0);
    while offset < FILE_BYTES || pieces.in_flight() > 0 {
        while let Some(slot) = pieces.free().filter(|_| offset < FILE_BYTES) {
            pieces.write(slot, file, offset)?;
            offset += PIECE_BYTES as u64;
        }
        unsynced += (pieces.wait()? * PIECE_BYTES) as u64;
        if unsynced >= SYNC_BYTES || pieces.in_flight() == 0 {
            file.sync_data()?;
            unsynced = 0;
        }
    }
    Ok(())
}
