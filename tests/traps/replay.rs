//! Traps 5, 6, 7 and 10: what replaying costs, where it ends, what it keeps, and what it numbers.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use eventplane::testing::{Force, ManualSubscription, Polled};
use eventplane::{
    Ack, Backend, Batch, Bus, Filter, Lsn, ReadMode, Reason, Signal, Start, Subscribe,
};

use super::bed::{Bed, PAGE, SLAB, VIAS, Via, backends, commit, fill_to, reader, record};
use super::raw;

/// Where the consumer is sent, and how sealed segments are read.
const WAYS: [(Via, ReadMode); 4] = [
    (Via::Hot, ReadMode::Map),
    (Via::CatchUp, ReadMode::Map),
    (Via::CatchUp, ReadMode::Pread),
    (Via::Cold, ReadMode::Map),
];

fn open(bed: &Bed, mode: ReadMode) -> Bus {
    bed.builder()
        .manual(&bed.clock)
        .read_mode(mode)
        .open(bed.path())
        .unwrap()
}

fn send(bus: &Bus, name: &str, via: Via) {
    match via {
        Via::Hot => {}
        Via::CatchUp => bus.force(name, Force::CatchUp, Reason::Lapped),
        Via::Cold => bus.force(name, Force::Replaying, Reason::Admitted),
    }
}

/// Appends batches of many small records until segment `number` is begun.
fn fill_densely(bed: &Bed, bus: &Bus, number: u64) -> u64 {
    let writer = bus.writer();
    let mut key = 0;
    while raw::blocks(&fs::read(bed.segment_path(number)).unwrap_or_default()).is_empty() {
        let mut batch = writer.batch();
        for _ in 0..390 {
            let (kind, key_of_it, payload) = record(key, 60);
            batch.append(kind, key_of_it, &payload).unwrap();
            key += 1;
        }
        batch.commit().unwrap();
    }
    key
}

fn poll_to_end(consumer: &mut ManualSubscription) -> u64 {
    let mut polls = 0;
    loop {
        polls += 1;
        match consumer.poll() {
            Polled::Moved => {}
            Polled::CaughtUp => return polls,
            other => panic!("{other:?}: {:?}", consumer.handle().status()),
        }
    }
}

/// Bytes that this thread has read by system calls, and had fetched from storage.
fn thread_io() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/thread-self/io").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    Some((field("rchar:")?, field("read_bytes:")?))
}

/// A page limit made the reader open and scan the segment again for each page: 137 times slower
/// at 512 records a page.
#[test]
fn trap_05_a_page_resumes_where_the_last_one_ended() {
    for backend in backends() {
        for (via, mode) in WAYS {
            let bed = Bed::new(backend);
            let bus = open(&bed, mode);
            let records = fill_densely(&bed, &bus, 5);
            let mut consumer = bus
                .subscribe("pages")
                .start_if_new(Start::Earliest)
                .batch_records_max(7)
                .manual(|batch| {
                    assert!(batch.len() <= 7);
                    Ok(Ack::All)
                })
                .unwrap();
            send(&bus, "pages", via);
            let before = thread_io();
            let polls = poll_to_end(&mut consumer);
            let after = thread_io();
            assert!(polls > records / 7);
            let status = consumer.handle().status();
            assert_eq!(status.lag_records, 0);
            // Each record is looked at once.
            let walked = bus.walked("pages");
            assert!(
                walked > records / 2 && walked <= records,
                "{via:?}: {walked} of {records}"
            );
            // What is read, and fetched from the disk, is what is delivered.
            let delivered = 5 * bed.segment_bytes;
            let allowed = delivered + delivered / 10;
            let replayed: u64 = status.replayed_bytes.iter().sum();
            assert!(replayed <= allowed);
            let (Some(before), Some(after)) = (before, after) else {
                println!("SKIP bytes read: no /proc/thread-self/io");
                continue;
            };
            // Footers: one page read twice a segment.
            let footers = 4 * 5 * 4096;
            let (read, fetched) = (after.0 - before.0, after.1 - before.1);
            assert!(read <= allowed + footers, "{via:?} {mode:?}: {read} bytes read");
            assert!(
                fetched <= allowed + footers,
                "{via:?} {mode:?}: {fetched} bytes fetched"
            );
        }
    }
}

/// The same for what a filter leaves out: it is passed over once.
#[test]
fn trap_05_a_filter_is_asked_once_a_record() {
    for (via, mode) in WAYS {
        let bed = Bed::new(Backend::Psync);
        let bus = open(&bed, mode);
        let records = fill_densely(&bed, &bus, 4);
        let asked = Arc::new(Mutex::new(0));
        let count = Arc::clone(&asked);
        let filter = Filter::by(move |_, key| {
            *count.lock().unwrap() += 1;
            key % 97 == 0
        });
        let mut consumer = bus
            .subscribe("sparse")
            .start_if_new(Start::Earliest)
            .filter(filter)
            .batch_records_max(3)
            .manual(|_| Ok(Ack::All))
            .unwrap();
        send(&bus, "sparse", via);
        poll_to_end(&mut consumer);
        assert_eq!(bus.walked("sparse"), records, "{via:?} {mode:?}");
        assert!(*asked.lock().unwrap() >= records);
    }
}

/// `has_more` was true at the exact end, and a limit of 0 returned one record.
#[test]
fn trap_06_the_end_is_exact_and_a_limit_of_none_is_one() {
    for backend in backends() {
        for via in VIAS {
            for limit in [0, 1, 5, 10, 20, 100, 1_000] {
                let bed = Bed::new(backend);
                let bus = bed.by_hand();
                let writer = bus.writer();
                // 100 records in blocks of 20: the last page ends where the log does.
                for _ in 0..5 {
                    let mut batch = writer.batch();
                    (0..20).for_each(|key| batch.append(1, key, b"record").unwrap());
                    batch.commit().unwrap();
                }
                let (mut consumer, seen) = subscribe(bus.subscribe("end"), limit);
                send(&bus, "end", via);
                let polls = poll_to_end(&mut consumer);
                let expected = 100_usize.div_ceil(limit.max(1)) as u64;
                assert_eq!(polls, expected + 1, "{via:?}, limit {limit}");
                let seen = seen.lock().unwrap();
                assert!(seen.batches.iter().all(|&len| len == limit.clamp(1, 100)));
                assert_eq!(seen.batches.len() as u64, expected);
                // Told with the last page, not one page later, and once.
                assert_eq!(seen.caught_up, [(Lsn::new(100), seen.batches.len())]);
                drop(seen);
                assert_eq!(consumer.poll(), Polled::CaughtUp);
                let mut reader = reader(&bus, via);
                assert!((0..100).all(|_| reader.try_next().unwrap().is_some()));
                assert_eq!(reader.status().lag_records, 0);
                assert!(reader.try_next().unwrap().is_none());
            }
        }
    }
}

#[derive(Default)]
struct Ends {
    batches: Vec<usize>,
    /// LSN, and how many batches came before.
    caught_up: Vec<(Lsn, usize)>,
}

fn subscribe(subscribe: Subscribe, limit: usize) -> (ManualSubscription, Arc<Mutex<Ends>>) {
    let seen = Arc::new(Mutex::new(Ends::default()));
    let (given, told) = (Arc::clone(&seen), Arc::clone(&seen));
    let consumer = subscribe
        .start_if_new(Start::Earliest)
        .batch_records_max(limit)
        .on_signal(move |signal| {
            if let Signal::CaughtUp { lsn } = signal {
                let mut seen = told.lock().unwrap();
                let batches = seen.batches.len();
                seen.caught_up.push((*lsn, batches));
            }
        })
        .manual(move |batch| {
            assert!(!batch.is_empty() && batch.iter().count() == batch.len());
            given.lock().unwrap().batches.push(batch.len());
            Ok(Ack::All)
        });
    (consumer.unwrap(), seen)
}

/// Which pages of a file are in the page cache, whoever brought them there.
fn resident(path: &Path) -> Vec<bool> {
    let file = File::open(path).unwrap();
    // SAFETY: only its addresses are asked about, never its bytes.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    let mut pages = vec![0u8; map.len().div_ceil(PAGE)];
    // SAFETY: the range is mapped, and the vector has a byte for each of its pages.
    let done = unsafe {
        libc::mincore(
            map.as_ptr().cast_mut().cast(),
            map.len(),
            pages.as_mut_ptr().cast(),
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    pages.iter().map(|&page| page & 1 == 1).collect()
}

fn bytes_of(pages: &[bool]) -> u64 {
    (pages.iter().filter(|&&resident| resident).count() * PAGE) as u64
}

/// What of the sealed segments is resident: behind the block of this record, and in all.
fn residency(bed: &Bed, places: &[(u64, u64, usize)], lsn: Lsn) -> (u64, u64) {
    let at = places.partition_point(|&(first_lsn, ..)| first_lsn <= lsn.get()) - 1;
    let (_, number, offset) = places[at];
    let files: Vec<_> = (0..4).map(|n| resident(&bed.segment_path(n))).collect();
    let before = files
        .iter()
        .take(number as usize)
        .map(|file| bytes_of(file))
        .sum::<u64>();
    let behind = files
        .get(number as usize)
        .map_or(0, |file| bytes_of(&file[..offset / PAGE]));
    (before + behind, files.iter().map(|file| bytes_of(file)).sum())
}

/// `fadvise(DONTNEED)` on a live mapping freed nothing, and the counters said that it did.
#[test]
fn trap_07_pages_behind_the_last_reader_are_really_released() {
    const READAHEAD: u64 = 256 << 10;
    for backend in backends() {
        let bed = Bed::sized(backend, 16 * SLAB, 64 * SLAB);
        let builder = bed.builder().manual(&bed.clock).readahead_bytes(READAHEAD);
        let bus = builder.open(bed.path()).unwrap();
        fill_to(&bed, &bus, &mut Vec::new(), 4, 120_000);
        let files = (0..4).map(|number| (number, bed.segment(number)));
        let places: Vec<_> = files
            .flat_map(|(n, file)| {
                raw::filled(&file)
                    .into_iter()
                    .map(move |block| (block.first_lsn, n, block.offset))
            })
            .collect();
        // To look at them brought them all in, which shows that it can be seen; out with them.
        assert!(bytes_of(&resident(&bed.segment_path(0))) >= bed.segment_bytes / 2);
        (0..4).for_each(|number| forget(&bed.segment_path(number)));
        if residency(&bed, &places, Lsn::FIRST).1 > READAHEAD {
            println!("SKIP: this file system keeps everything in memory");
            return;
        }
        // Two readers share the mappings; what is behind both of them goes.
        let subscribe = |name| {
            let consumer = bus.subscribe(name).start_if_new(Start::Earliest);
            let consumer = consumer.batch_bytes_max(1).manual(|_| Ok(Ack::All)).unwrap();
            send(&bus, name, Via::CatchUp);
            consumer
        };
        let (mut ahead, mut behind) = (subscribe("ahead"), subscribe("behind"));
        let (mut behind_most, mut all_most, last) = (0, 0, Lsn::new(places[places.len() - 1].0));
        while behind.handle().status().lsn < last {
            ahead.poll();
            behind.poll();
            let (behind, all) = residency(&bed, &places, behind.handle().status().lsn);
            behind_most = behind_most.max(behind);
            all_most = all_most.max(all);
        }
        let name = super::bed::backend_name(backend);
        println!("{name}: {behind_most} bytes resident behind the readers, {all_most} in all");
        assert!(all_most >= 64 << 10, "they did read through the cache");
        // The kernel itself may read a file ahead to its end, but of what lies behind the last
        // reader no more stays than a step of release and a footer a segment.
        assert!(
            behind_most <= READAHEAD,
            "{behind_most} bytes were resident behind the readers"
        );
        assert!(
            all_most <= bed.segment_bytes + READAHEAD,
            "{all_most} bytes were resident"
        );
        drop((ahead, behind));
        let (_, left) = residency(&bed, &places, last);
        assert!(left <= READAHEAD / 2, "{left} bytes stay when all have left");
    }
}

/// Drops a file's pages from the cache.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    // SAFETY: takes no memory, and the descriptor is open.
    let done = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(done, 0);
}

/// Replay numbered events anew, so the LSNs before and after it differed.
#[test]
fn trap_10_an_lsn_names_the_same_record_in_every_tier_and_after_reopening() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let writer = bus.writer();
        let mut told = HashMap::new();
        let mut live = bus.reader(Start::Earliest).unwrap();
        for key in 0..600 {
            let (kind, _, payload) = record(key, 700);
            // Some batches come to nothing, which must not shift a number.
            if key % 7 == 0 {
                let mut abandoned = writer.batch();
                abandoned.append(9, key, b"abandoned").unwrap();
                drop(abandoned);
                assert!(writer.append(9, key, &vec![0; SLAB as usize]).is_err());
            }
            let lsn = writer.append(kind, key, &payload).unwrap();
            told.insert(key, lsn);
            let record = live.try_next().unwrap().unwrap();
            assert_eq!((record.lsn(), record.key()), (lsn, key));
        }
        let check = |bus: &Bus| {
            for via in VIAS {
                let mut reader = reader(bus, via);
                for _ in 0..600 {
                    let record = reader.try_next().unwrap().unwrap();
                    assert_eq!(Some(&record.lsn()), told.get(&record.key()), "{via:?}");
                }
            }
            // Sought by number, each is found.
            for (&key, &lsn) in told.iter().filter(|(key, _)| *key % 50 == 3) {
                let mut reader = bus.reader(Start::Lsn(lsn)).unwrap();
                assert_eq!(reader.try_next().unwrap().unwrap().key(), key);
            }
        };
        check(&bus);
        check(&bed.image().by_hand());
        bus.close().unwrap();
        for mode in [ReadMode::Map, ReadMode::Pread] {
            let bus = open(&bed, mode);
            check(&bus);
            assert_eq!(bus.writer().append(1, 1, b"next").unwrap(), bus.committed_lsn());
        }
        assert_eq!(bed.by_hand().committed_lsn(), Lsn::new(602));
    }
}

/// A subscriber that goes through all tiers while records come in sees the writer's numbers.
#[test]
fn trap_10_switching_tiers_renumbers_nothing() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let given = Arc::clone(&seen);
        let deliver = move |batch: &Batch<'_>| {
            given
                .lock()
                .unwrap()
                .extend(batch.iter().map(|r| (r.lsn().get(), r.key())));
            Ok(Ack::All)
        };
        let consumer = bus
            .subscribe("c")
            .start_if_new(Start::Earliest)
            .batch_records_max(3);
        let mut consumer = consumer.manual(deliver).unwrap();
        let tiers = [Force::CatchUp, Force::Hot, Force::Shed, Force::Replaying, Force::CatchUp];
        for round in 0..100 {
            for _ in 0..5 {
                commit(&bus.writer(), &mut model, 900);
            }
            bus.force("c", tiers[round % tiers.len()], Reason::Lapped);
            consumer.poll();
            bus.drive().unwrap();
        }
        bus.force("c", Force::CatchUp, Reason::Recovering);
        poll_to_end(&mut consumer);
        let expected: Vec<_> = (1..=500).map(|lsn| (lsn, lsn - 1)).collect();
        assert!(*seen.lock().unwrap() == expected);
    }
}
