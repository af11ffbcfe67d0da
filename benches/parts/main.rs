//! The parts of the bus, each beside what it is compared to, measured in turn in one run.
//!
//! `cargo bench` measures each for three seconds; `cargo bench -- --seconds 1` for one, `-- NAME`
//! only those whose name contains NAME. Figures are medians; a ratio below 1 means that ours takes
//! less time.

mod replay;

use std::hint::black_box;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use eventplane::{Ack, Batch, Bus, Start};

/// One run of something: how long it took for how many units.
type Run = Box<dyn FnMut() -> (Duration, u64)>;

/// Measures and prints for about so many seconds.
type Bench = fn(u64);

/// Ours and what it is compared to, in turn, for about `seconds`.
fn compare(name: &str, unit: &str, mut ours: Run, other: &str, mut theirs: Run, seconds: u64) {
    let begun = Instant::now();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    while a.len() < 3 || begun.elapsed() < Duration::from_secs(seconds) {
        a.push(nanos_each(ours()));
        b.push(nanos_each(theirs()));
        if begun.elapsed() > Duration::from_secs(10 * seconds) {
            break;
        }
    }
    let (ours, theirs) = (median(&mut a), median(&mut b));
    println!(
        "{name:<26} {ours:>12.1} ns/{unit:<7} {other:<34} {theirs:>12.1} ns/{unit:<7} ratio {:.2}",
        ours / theirs
    );
}

fn nanos_each((took, units): (Duration, u64)) -> f64 {
    took.as_nanos() as f64 / units.max(1) as f64
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Appending without anybody reading, against copying the same bytes.
fn append(seconds: u64) {
    const RECORDS: u64 = 1 << 20;
    let bus = Bus::builder().in_memory().expect("an in-memory bus");
    let writer = bus.writer();
    let payload = [7_u8; 64];
    let ours: Run = Box::new(move || {
        let begun = Instant::now();
        for _ in 0..RECORDS / 16 {
            let mut batch = writer.batch();
            for key in 0..16 {
                batch.append(1, key, black_box(&payload)).expect("room");
            }
            batch.commit().expect("in memory");
        }
        let _alive = &bus;
        (begun.elapsed(), RECORDS)
    });
    let mut memory = vec![0_u8; 64 << 20];
    let theirs: Run = Box::new(move || {
        let begun = Instant::now();
        for i in 0..RECORDS as usize {
            let at = i * 80 % ((64 << 20) - 64);
            memory[at..at + 64].copy_from_slice(black_box(&payload));
        }
        black_box(&memory);
        (begun.elapsed(), RECORDS)
    });
    compare("append_64B_batch16", "record", ours, "memcpy into 64 MiB", theirs, seconds);
}

/// One durable record at a time, against a bare durable write of a page.
fn commit(seconds: u64) {
    const COMMITS: u64 = 200;
    let dir = tempfile::tempdir_in(".").expect("a temporary directory");
    let bus = Bus::builder().open(dir.path()).expect("a new log");
    let writer = bus.writer();
    let ours: Run = Box::new(move || {
        let begun = Instant::now();
        for key in 0..COMMITS {
            writer.append(1, key, &[7; 100]).expect("a commit");
        }
        let _alive = &bus;
        (begun.elapsed(), COMMITS)
    });
    let bare = BarePages::new(dir.path());
    let theirs: Run = Box::new(move || {
        let _dir = &dir;
        let begun = Instant::now();
        for page in 0..COMMITS {
            bare.write_durable(page).expect("a page");
        }
        (begun.elapsed(), COMMITS)
    });
    compare("commit_1_record", "commit", ours, "pwritev2(RWF_DSYNC) of 4 KiB", theirs, seconds);
}

/// A zero-filled file that is overwritten page by page.
struct BarePages {
    file: std::fs::File,
    page: Box<Page>,
}

#[repr(align(4096))]
struct Page([u8; 4096]);

impl BarePages {
    fn new(dir: &std::path::Path) -> BarePages {
        let path = dir.join("bare");
        std::fs::write(&path, vec![0; 1 << 20]).expect("room");
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(options.write(true), libc::O_DIRECT);
        let file =
            options.open(&path).or_else(|_| std::fs::File::options().write(true).open(&path));
        let file = file.expect("a file");
        file.sync_all().expect("a sync");
        BarePages { file, page: Box::new(Page([7; 4096])) }
    }

    fn write_durable(&self, page: u64) -> io::Result<()> {
        let bytes = libc::iovec { iov_base: self.page.0.as_ptr().cast_mut().cast(), iov_len: 4096 };
        let offset = (page * 4096 % (1 << 20)) as i64;
        // SAFETY: one page that outlives the call, only read by the kernel.
        let wrote =
            unsafe { libc::pwritev2(self.file.as_raw_fd(), &bytes, 1, offset, libc::RWF_DSYNC) };
        if wrote != 4096 {
            self.file.write_all_at(&self.page.0, offset as u64)?;
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// From append to callback, one consumer keeping up, against a channel of the same records.
fn hot(seconds: u64) {
    const RECORDS: u64 = 1 << 19;
    let bus = Bus::builder().in_memory().expect("an in-memory bus");
    let (writer, seen) = (bus.writer(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&seen);
    let consumer =
        bus.subscribe("hot").start_if_new(Start::Earliest).run(move |batch: &Batch<'_>| {
            let mut sum = 0_u64;
            for record in batch {
                sum += u64::from(record.payload()[0]);
            }
            black_box(sum);
            count.fetch_add(batch.len() as u64, Ordering::Release);
            Ok(Ack::All)
        });
    let consumer = consumer.expect("a consumer");
    let mut total = 0;
    let ours: Run = Box::new(move || {
        let _alive = (&bus, &consumer);
        total += RECORDS;
        let begun = Instant::now();
        for _ in 0..RECORDS / 16 {
            let mut batch = writer.batch();
            for key in 0..16 {
                batch.append(1, key, black_box(&[7; 64])).expect("room");
            }
            batch.commit().expect("in memory");
        }
        while seen.load(Ordering::Acquire) < total {
            thread::yield_now();
        }
        (begun.elapsed(), RECORDS)
    });
    let theirs: Run = Box::new(move || {
        let (sender, receiver) = crossbeam_channel::bounded::<[u8; 64]>(1 << 16);
        let done = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&done);
        let begun = Instant::now();
        let reader = thread::spawn(move || {
            let sum: u64 = receiver.iter().map(|record| u64::from(record[0])).sum();
            end.store(black_box(sum) > 0, Ordering::Release);
        });
        for _ in 0..RECORDS {
            sender.send(black_box([7; 64])).expect("a reader");
        }
        drop(sender);
        reader.join().expect("the reader");
        assert!(done.load(Ordering::Acquire));
        (begun.elapsed(), RECORDS)
    });
    compare("hot_1to1_64B_batch16", "record", ours, "crossbeam-channel, [u8; 64]", theirs, seconds);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let mut seconds = 3;
    let mut wanted = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--seconds" => {
                let value = rest.next().and_then(|value| value.parse().ok());
                seconds = value.expect("--seconds takes a whole number");
            }
            name => wanted = Some(name.to_owned()),
        }
    }
    let benches: [(&str, Bench); 8] = [
        ("append", append),
        ("commit", commit),
        ("hot", hot),
        ("catch_up_warm", replay::catch_up_warm),
        ("catch_up_cold_cache", replay::catch_up_cold_cache),
        ("cold", replay::cold),
        ("paged", replay::paged),
        ("tier_switch", replay::tier_switch),
    ];
    for (name, run) in benches {
        if wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str())) {
            run(seconds);
        }
    }
}
