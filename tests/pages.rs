//! Small pages are not expensive pages: every block is read once, and records are walked by who
//! subscribes, however many of them a batch may have.

mod common;

use common::{Recorder, SEGMENT_BYTES, WINDOW_BYTES, fill_later, on_each_backend, small};
use eventplane::testing::{Force, ManualClock, ManualSubscription, Polled};
use eventplane::{Ack, Backend, Batch, Bus, Filter, Lsn, ReadMode, Reason, Start, Tier};
use parking_lot::{Mutex, MutexGuard};

/// A log whose first half and more is in sealed segments only, made of blocks with many records.
struct Log {
    bus: Bus,
    clock: ManualClock,
    /// The last record that no ring holds any more.
    last: Lsn,
    _dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// The kernel counts what the process reads, threads that read ahead included.
static ALONE: Mutex<()> = Mutex::new(());

fn log(backend: Backend, mode: ReadMode) -> Log {
    let alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let builder = small(backend)
        .catchup_window_bytes(16 * WINDOW_BYTES)
        .read_mode(mode);
    let bus = builder.manual(&clock).open(dir.path()).unwrap();
    let writer = bus.writer();
    let mut last = bus.committed_lsn();
    for _ in 0..60 {
        last = *fill_later(&writer, last, 240, 100).lsns().end();
        bus.drive().unwrap();
    }
    bus.sync().unwrap();
    bus.drive().unwrap();
    Log { bus, clock, last, _dir: dir, _alone: alone }
}

/// Replays everything in one tier; returns the bytes read by tier and the records walked.
fn replay(log: &Log, name: &str, tier: Force, page: usize) -> ([u64; 3], u64) {
    let recorder = Recorder::default();
    let mut consumer = log
        .bus
        .subscribe(name)
        .start_if_new(Start::Earliest)
        .batch_records_max(page)
        .manual({
            let recorder = recorder.clone();
            move |batch: &Batch<'_>| {
                recorder.take(batch);
                Ok(Ack::All)
            }
        })
        .unwrap();
    if tier == Force::Replaying {
        log.bus.force(name, Force::Shed, Reason::Lag);
        log.bus.force(name, Force::Replaying, Reason::Admitted);
    }
    drain(&mut consumer, &log.clock);
    let expected: Vec<u64> = (1..=log.last.get()).collect();
    assert_eq!(recorder.lsns(), expected);
    let bytes = consumer.handle().status().replayed_bytes;
    // A page that resumed in a block of the cold tier checked all of it again.
    let checked = log.bus.checked_bytes(name);
    let read: u64 = bytes.iter().sum();
    assert!(
        checked <= read && checked > read / 2,
        "{checked} bytes checked of {read} read"
    );
    (bytes, log.bus.walked(name))
}

fn drain(consumer: &mut ManualSubscription, clock: &ManualClock) {
    loop {
        match consumer.poll() {
            Polled::Moved => {}
            Polled::Later => clock.advance(std::time::Duration::from_millis(1)),
            Polled::CaughtUp => return,
            other => panic!("{other:?}: {:?}", consumer.handle().status()),
        }
    }
}

#[test]
fn bytes_read_are_those_of_the_blocks_delivered_whatever_the_page() {
    on_each_backend(|backend| {
        for mode in [ReadMode::Map, ReadMode::Pread] {
            let log = log(backend, mode);
            // By construction: whole segments less header, footer and early ends; each block once.
            let sealed = committed_bytes(&log.bus) / SEGMENT_BYTES * SEGMENT_BYTES;
            for (tier, index) in [(Force::CatchUp, 1), (Force::Replaying, 2)] {
                let mut read = Vec::new();
                for page in [1, 512, 4096] {
                    let name = format!("{tier:?}-{page}");
                    let before = bytes_read_by_this_process();
                    let (bytes, walked) = replay(&log, &name, tier, page);
                    if let (Some(before), Some(after)) = (before, bytes_read_by_this_process()) {
                        // What the kernel saw, footers included. Mappings are not read by calls.
                        let by_calls = mode == ReadMode::Pread || tier == Force::Replaying;
                        let read = after - before;
                        assert!(read as f64 <= 1.1 * sealed as f64, "{read} of {sealed}, {name}");
                        assert!(!by_calls || read >= bytes[index], "{read} counted as {bytes:?}");
                    }
                    println!("{backend:?} {mode:?} {name}: {bytes:?} bytes, {walked} walked");
                    assert_eq!(bytes[0] + bytes[3 - index], 0, "one tier alone reads");
                    assert_eq!(walked, 0, "the subscriber alone walks");
                    read.push(bytes[index]);
                }
                assert_eq!(read[0], read[2], "pages of one record read no more");
                assert_eq!(read[1], read[2]);
                assert!(read[0] as f64 <= 1.1 * sealed as f64, "{} of {sealed}", read[0]);
                assert!(read[0] as f64 >= 0.5 * sealed as f64, "{} of {sealed}", read[0]);
            }
        }
    });
}

/// Bytes of read calls, if this kernel counts them.
fn bytes_read_by_this_process() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/self/io");
    let count = io
        .ok()
        .and_then(|io| io.strip_prefix("rchar: ")?.lines().next()?.parse().ok());
    if count.is_none() {
        println!("SKIP bytes by the kernel's count: no /proc/self/io");
    }
    count
}

/// Log bytes committed, from a consumer's lag at the very start.
fn committed_bytes(bus: &Bus) -> u64 {
    let probe = bus.subscribe("probe").start_at(Start::Earliest);
    let probe = probe.manual(|_: &Batch<'_>| Ok(Ack::All)).unwrap();
    probe.handle().status().lag_bytes
}

#[test]
fn a_page_ends_where_it_ends_whether_or_not_it_is_looked_at() {
    // A page's end inside of a block is found by whoever reads the page.
    on_each_backend(|backend| {
        let log = log(backend, ReadMode::Map);
        for looked_at in 0..=8 {
            let next = std::sync::Arc::new(std::sync::Mutex::new(Lsn::new(1)));
            let name = format!("looks-at-{looked_at}");
            let subscribe = log.bus.subscribe(&name).start_if_new(Start::Earliest);
            let mut consumer = subscribe
                .batch_records_max(7)
                .manual({
                    let next = std::sync::Arc::clone(&next);
                    move |batch: &Batch<'_>| {
                        let mut next = next.lock().unwrap();
                        assert_eq!(batch.first_lsn(), *next);
                        for (record, lsn) in batch.iter().take(looked_at).zip(next.get()..) {
                            common::seen(&record);
                            assert_eq!(record.lsn().get(), lsn);
                        }
                        *next = batch.last_lsn().next();
                        Ok(Ack::All)
                    }
                })
                .unwrap();
            drain(&mut consumer, &log.clock);
            assert_eq!(*next.lock().unwrap(), log.last.next());
            let walked = log.bus.walked(&name);
            assert!(
                walked <= log.last.get(),
                "{walked} walked for {} records",
                log.last
            );
            assert_eq!(walked == 0, looked_at >= 7, "{walked} walked by {name}");
            assert_eq!(consumer.handle().status().tier, Tier::CatchUp);
        }
    });
}

#[test]
fn acknowledging_one_by_one_walks_each_record_a_bounded_number_of_times() {
    // A partial acknowledgement went back to the start of its block and walked it from there.
    on_each_backend(|backend| {
        let log = log(backend, ReadMode::Map);
        for filter in [Filter::all(), Filter::kinds([1, 3])] {
            let recorder = Recorder::default();
            let name = format!("{filter:?}");
            let matching = (1..=log.last.get()).filter(|n| filter_matches(&name, *n));
            let expected: Vec<u64> = matching.collect();
            let page = 4;
            let mut consumer = log
                .bus
                .subscribe(&name)
                .start_if_new(Start::Earliest)
                .filter(filter)
                .batch_records_max(page)
                .manual({
                    let recorder = recorder.clone();
                    move |batch: &Batch<'_>| {
                        let first = batch.iter().next().unwrap();
                        recorder.take_one(common::seen(&first));
                        Ok(Ack::Through(first.lsn()))
                    }
                })
                .unwrap();
            drain(&mut consumer, &log.clock);
            assert_eq!(recorder.lsns(), expected);
            let status = consumer.handle().status();
            assert_eq!(status.delivered.iter().sum::<u64>(), expected.len() as u64);
            // Two of seven kinds match: a page of four looks at fourteen, a block holds 240.
            let most = (page as u64 * 7 / 2 + 4) * log.last.get();
            let walked = log.bus.walked(&name);
            assert!(walked <= most, "{walked} walked for {} records", log.last);
            assert_eq!(status.tier, Tier::CatchUp);
        }
    });
}

fn filter_matches(name: &str, lsn: u64) -> bool {
    name.contains("kinds: false") || [1, 3].contains(&(lsn % 7))
}
