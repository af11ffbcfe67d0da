//! A replay of a log larger than the caches we may use leaves next to nothing of it in the page
//! cache, neither behind itself nor, at any moment, before itself. Asked of `mincore`, over fresh
//! mappings: counters have lied about this before, for the kernel drops no page that is mapped.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eventplane::testing::{ManualClock, Polled};
use eventplane::{Ack, Batch, Bus, Durability, Lsn, Start, Tier};

const MIB: u64 = 1 << 20;
const PAGE_BYTES: u64 = 4096;
const SEGMENT_BYTES: u64 = 16 * MIB;
const READAHEAD_BYTES: u64 = 4 * MIB;
const LOG_BYTES: u64 = 528 * MIB;

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("segments")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "log"));
    paths.sort();
    paths
}

/// Bytes of the file that are in the page cache.
fn resident_bytes(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    // SAFETY: only the mapping's address is used; its bytes are never looked at.
    let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
    let mut pages = vec![0_u8; map.len().div_ceil(PAGE_BYTES as usize)];
    // SAFETY: the mapping lives, and there is a byte for each of its pages.
    let asked =
        unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), pages.as_mut_ptr().cast()) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&&page| page & 1 == 1).count() as u64 * PAGE_BYTES
}

fn resident(paths: &[PathBuf]) -> u64 {
    paths.iter().map(|path| resident_bytes(path)).sum()
}

fn drop_caches(paths: &[PathBuf]) {
    for path in paths {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        // SAFETY: advice about a descriptor that lives.
        let refused =
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(refused, 0);
    }
}

/// Half a gigabyte in records of half a megabyte.
fn write_log(bus: &Bus) -> Lsn {
    let writer = bus.writer();
    let payload = vec![7; writer.payload_bytes_max() & !4095];
    let mut last = Lsn::ZERO;
    for _ in 0..LOG_BYTES / payload.len() as u64 {
        last = writer.append(1, 1, &payload).unwrap();
        bus.drive().unwrap();
    }
    bus.sync().unwrap();
    for _ in 0..8 {
        bus.drive().unwrap();
    }
    last
}

fn open(dir: &Path) -> Bus {
    Bus::builder()
        .segment_bytes(SEGMENT_BYTES)
        .readahead_bytes(READAHEAD_BYTES)
        .ring_bytes(2 * SEGMENT_BYTES)
        .durability(Durability::Deferred { interval: Duration::from_secs(1), bytes: 8 * MIB })
        .manual(&ManualClock::default())
        .open(dir)
        .unwrap()
}

#[test]
fn a_replay_leaves_little_in_the_page_cache() {
    let begun = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let bus = open(dir.path());
    let last = write_log(&bus);
    let files = segments(dir.path());
    assert!(
        files.len() as u64 * SEGMENT_BYTES > 512 * MIB,
        "{} segments",
        files.len()
    );
    drop_caches(&files);
    assert_eq!(resident(&files), 0, "the caches could be dropped");
    println!("written in {:?}", begun.elapsed());

    let (mut delivered, mut worst, mut looks) = (0_u64, 0, 0);
    let counted = Arc::new(AtomicU64::new(0));
    let mut consumer = bus
        .subscribe("replay")
        .start_if_new(Start::Earliest)
        .manual({
            let counted = Arc::clone(&counted);
            move |batch: &Batch<'_>| {
                // Touches each page, as a consumer that reads its records does.
                let touched = batch.iter().flat_map(|r| r.payload().iter().step_by(4096));
                assert!(touched.copied().all(|byte| byte == 7));
                counted.fetch_add(batch.len() as u64, Ordering::Relaxed);
                Ok(Ack::All)
            }
        })
        .unwrap();
    assert_eq!(consumer.handle().status().tier, Tier::CatchUp);
    loop {
        match consumer.poll() {
            Polled::Moved => {}
            Polled::CaughtUp => break,
            other => panic!("{other:?}: {:?}", consumer.handle().status()),
        }
        let now = counted.load(Ordering::Relaxed);
        if now / 64 != delivered / 64 {
            looks += 1;
            worst = worst.max(resident(&files));
        }
        delivered = now;
    }
    assert_eq!(delivered, last.get());
    assert!(looks >= 10, "{looks} looks while replaying");
    let status = consumer.handle().status();
    assert!(
        status.replayed_bytes[1] > LOG_BYTES * 9 / 10,
        "{:?}",
        status.replayed_bytes
    );
    let most = 2 * READAHEAD_BYTES;
    assert!(worst > 0, "what is being read is resident");
    assert!(
        worst <= most,
        "{worst} bytes resident while replaying, at most {most} expected"
    );
    let left = resident(&files);
    assert!(left <= MIB, "{left} bytes resident afterwards");
    println!(
        "{worst} bytes at worst in {looks} looks, {left} afterwards, {:?}",
        begun.elapsed()
    );
    drop(consumer);
    leave_half_way(&bus, &files);
    bus.close().unwrap();
}

/// What was asked for ahead of a consumer that leaves stayed, since no page is dropped while it is
/// being read.
fn leave_half_way(bus: &Bus, files: &[PathBuf]) {
    for polls in 1..12 {
        let subscribe = bus.subscribe(format!("leaving-{polls}"));
        let subscribe = subscribe.start_if_new(Start::Earliest);
        let mut consumer = subscribe.manual(|_: &Batch<'_>| Ok(Ack::All)).unwrap();
        for _ in 0..polls {
            assert!(matches!(consumer.poll(), Polled::Moved));
        }
        drop(consumer);
        let left = resident(files);
        assert!(
            left <= READAHEAD_BYTES / 8,
            "{left} bytes resident after {polls} polls"
        );
    }
}
