//! The cold tier without its limit on the rate, beside the better of two bare readers past the page
//! cache. All of them compute a checksum of what they read, then the sum of it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{bail, ensure};
use eventplane::testing::{Force, ManualClock, Polled};
use eventplane::{Ack, Batch, Bus, Reason, Start};

use crate::disk::{self, DEPTH, PIECE_BYTES, Pieces};
use crate::load::{LARGE, Log, Tally, sum};
use crate::report::{Bar, Spread, divide};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "cold_tier", run };

const SIDES: [&str; 3] = [
    "eventplane, cold, records of 1 KiB",
    "O_DIRECT, pread of 1 MiB",
    "O_DIRECT, io_uring, 256 KiB x 4",
];

fn run(context: &Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bytes = context.scaled(896 << 20, 128 << 20);
    let log = Log::write(dir.path().join("log"), bytes, LARGE, Bus::builder())?;
    let segments = log.segments()?;
    // On a clock that stands still, without threads: nobody takes it back to catch-up near the end.
    let bus = Bus::builder().cold_bytes_per_second(None).manual(&ManualClock::default());
    let bus = bus.open(&log.dir)?;
    let gigabytes = log.payload_bytes() as f64 / 1e9;
    let mut one = disk::page_buffer(1 << 20)?;
    let mut four = Pieces::new()?;
    let mut measure = |side: usize| {
        log.drop_cache()?;
        let begun = Instant::now();
        match side {
            0 => replay(&bus, &log)?,
            1 => read_one(&segments, &mut one).map(drop)?,
            _ => read_four(&segments, &mut four).map(drop)?,
        }
        anyhow::Ok(gigabytes / begun.elapsed().as_secs_f64())
    };
    let mut figures = [vec![], vec![], vec![]];
    for _ in 0..context.rounds {
        let mut tries = [vec![], vec![], vec![]];
        // On a shared disk the order may matter: each has each place in it once.
        for place in 0..SIDES.len() * SIDES.len() {
            let side = (place + place / SIDES.len()) % SIDES.len();
            tries[side].push(measure(side)?);
        }
        for (figures, tries) in figures.iter_mut().zip(&tries) {
            figures.push(Spread::of(tries).median);
        }
    }
    let (report, name) = (&context.report, BENCH.name);
    for (side, figures) in SIDES.iter().zip(&figures) {
        report.figure(name, &format!("{side}, GB/s"), figures);
    }
    let [ours, one, four] = &figures;
    let better = if Spread::of(one).median > Spread::of(four).median { one } else { four };
    report.ratio(name, &divide(ours, better), Bar::AtLeast(0.9));
    Ok(())
}

/// Replays the whole log in the cold tier.
fn replay(bus: &Bus, log: &Log) -> anyhow::Result<()> {
    const NAME: &str = "cold";
    let seen = Arc::new(Mutex::new(Tally::default()));
    let tally = Arc::clone(&seen);
    let subscribe = bus.subscribe(NAME).start_at(Start::Earliest);
    let mut consumer = subscribe.manual(move |batch: &Batch<'_>| {
        let mut tally = tally.lock().expect("nobody panics with it");
        for record in batch {
            tally.take(record.lsn().get(), record.payload());
        }
        Ok(Ack::All)
    })?;
    bus.force(NAME, Force::Replaying, Reason::Admitted);
    loop {
        match consumer.poll() {
            Polled::Moved => {}
            Polled::CaughtUp => break,
            other => bail!("a cold replay without limits came to {other:?}"),
        }
    }
    seen.lock().expect("nobody panics with it").check(&log.written)?;
    let cold = consumer.handle().status().replayed_bytes[2];
    ensure!(cold > log.payload_bytes() / 2, "only {cold} bytes came from the cold tier");
    Ok(())
}

/// A checksum and a sum of all bytes, so that both sides touch them as often.
fn digest(bytes: &[u8]) -> u64 {
    u64::from(crc32c::crc32c(bytes)) ^ sum(bytes)
}

fn read_one(segments: &[PathBuf], buffer: &mut [u8]) -> anyhow::Result<u64> {
    use std::os::unix::fs::FileExt;
    let mut digests = 0;
    for path in segments {
        let file = disk::open_direct(path, false)?;
        let bytes = file.metadata()?.len();
        for offset in (0..bytes).step_by(buffer.len()) {
            file.read_exact_at(buffer, offset)?;
            digests ^= digest(buffer);
        }
    }
    Ok(std::hint::black_box(digests))
}

/// In pieces of 256 KiB, four in flight; returns a digest of them.
pub fn read_four(segments: &[PathBuf], pieces: &mut Pieces) -> anyhow::Result<u64> {
    let mut digests = 0;
    for path in segments {
        let file = disk::open_direct(path, false)?;
        let count = file.metadata()?.len() as usize / PIECE_BYTES;
        for ahead in 0..DEPTH.min(count) {
            pieces.read(ahead, &file, (ahead * PIECE_BYTES) as u64)?;
        }
        // In order, as a log is read.
        for piece in 0..count {
            let slot = piece % DEPTH;
            while pieces.is_busy(slot) {
                pieces.wait()?;
            }
            digests ^= digest(pieces.piece(slot));
            if piece + DEPTH < count {
                pieces.read(slot, &file, ((piece + DEPTH) * PIECE_BYTES) as u64)?;
            }
        }
    }
    Ok(std::hint::black_box(digests))
}
