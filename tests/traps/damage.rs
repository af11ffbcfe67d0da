//! Traps 3 and 4: damage and missing segments are errors, again and again, never a hole.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use eventplane::testing::Polled;
use eventplane::{Ack, Batch, Bus, Error, ErrorKind, Lsn, ReadMode, Retry, Signal, Start, Status};

use super::bed::{Bed, Rec, Via, backends, commit, fill_to, holds, read_to_end, reader, replace};
use super::raw;

/// Four sealed segments and a fifth with blocks, closed: everything is vouched for.
fn closed_log(bed: &Bed) -> Vec<Rec> {
    let bus = bed.by_hand();
    let mut model = Vec::new();
    fill_to(bed, &bus, &mut model, 4, 5_000);
    for _ in 0..4 {
        commit(&bus.writer(), &mut model, 5_000);
    }
    bus.close().unwrap();
    model
}

/// The ways to read a sealed segment.
const WAYS: [(Via, ReadMode); 3] =
    [(Via::CatchUp, ReadMode::Map), (Via::CatchUp, ReadMode::Pread), (Via::Cold, ReadMode::Map)];

fn by_hand(bed: &Bed, mode: ReadMode) -> Bus {
    bed.builder()
        .manual(&bed.clock)
        .read_mode(mode)
        .open(bed.path())
        .unwrap()
}

/// Reads until the error that must come. What came before it is the model's beginning.
#[track_caller]
fn prefix_and_error(bed: &Bed, bus: &Bus, via: Via, model: &[Rec]) -> (usize, Error) {
    let mut reader = reader(bus, via);
    let (records, error) = read_to_end(bus, &mut reader, &bed.clock);
    assert!(records == model[..records.len()], "{via:?}");
    let error = error.expect("a reader must not pass the damage");
    for _ in 0..3 {
        let again = reader.try_next().expect_err("the end of data is sticky");
        assert_eq!((again.kind(), again.offset()), (error.kind(), error.offset()));
    }
    (records.len(), error)
}

/// One bit flipped in the middle, and replay returned Ok with a hole: records 51 to 100 missing.
#[test]
fn trap_03_one_flipped_bit_is_an_error_wherever_it_is() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let model = closed_log(&bed);
        // In the segment that is not sealed, opening refuses.
        let file = bed.segment(4);
        for block in raw::filled(&file) {
            for at in [5, 20, 40, 56, 70, 64 + block.body_bytes / 2, 63 + block.body_bytes] {
                bed.flip(4, block.offset + at);
                let error = bed.refuses_at(ErrorKind::Corrupt, 4, block.offset);
                assert!(error.is_damage() && error.lsns().unwrap().0.get() == block.first_lsn);
                replace(&bed.segment_path(4), &file);
            }
        }
        // In a sealed one, whoever comes there is told.
        let file = bed.segment(2);
        let block = &raw::filled(&file)[9];
        let places = [0, 9, 17, 22, 35, 48, 60, 66, 64 + block.body_bytes / 2];
        for ((via, mode), at) in WAYS.iter().flat_map(|&way| places.map(|at| (way, at))) {
            bed.flip(2, block.offset + at);
            let bus = by_hand(&bed, mode);
            let (read, error) = prefix_and_error(&bed, &bus, via, &model);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{at}: {error:?}");
            assert_eq!(read as u64 + 1, block.first_lsn, "{via:?}");
            assert_eq!(
                (error.segment(), error.offset()),
                (Some(2), Some(block.offset as u64))
            );
            assert_eq!(error.path(), Some(&*bed.segment_path(2)));
            bus.close().unwrap();
            replace(&bed.segment_path(2), &file);
        }
        holds(&bed, &bed.by_hand(), &model);
    }
}

/// A block whose time was damaged was passed over when a time was sought, and its records with it.
#[test]
fn a_damaged_block_is_not_passed_over_by_a_start_in_time() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let mut model = Vec::new();
        let bus = bed.by_hand();
        for _ in 0..40 {
            bed.clock.advance(Duration::from_secs(1));
            commit(&bus.writer(), &mut model, 5_000);
            bus.drive().unwrap();
        }
        bus.close().unwrap();
        let file = bed.segment(1);
        for block in raw::filled(&file) {
            let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(block.time_nanos);
            // Its records, its time, its length: all less than they were.
            for (place, bytes) in [(20, 4), (40, 8), (16, 4)] {
                let mode = if place == 20 { ReadMode::Pread } else { ReadMode::Map };
                bed.patch(1, block.offset + place, &[0; 8][..bytes]);
                let bus = by_hand(&bed, mode);
                let sought = bus
                    .reader(Start::Time(at))
                    .and_then(|mut reader| reader.try_next());
                let error = sought.expect_err("the damage is in the way");
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{place}: {error:?}");
                assert_eq!(error.path(), Some(&*bed.segment_path(1)));
                bus.close().unwrap();
                replace(&bed.segment_path(1), &file);
            }
        }
        holds(&bed, &bed.by_hand(), &model);
    }
}

/// A missing middle or last segment: Ok.
#[test]
fn trap_03_a_missing_segment_is_an_error_on_open_whichever_it_is() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let model = closed_log(&bed);
        for number in 0..5 {
            let file = bed.segment(number);
            fs::remove_file(bed.segment_path(number)).unwrap();
            let error = bed.refuses_at(ErrorKind::MissingSegment, number, 0);
            assert!(error.is_damage());
            replace(&bed.segment_path(number), &file);
        }
        // The last one with records, and the empty ones behind it.
        let last = bed.segments().split_off(4);
        let files: Vec<_> = last.iter().map(|&n| (n, bed.segment(n))).collect();
        last.iter()
            .for_each(|&n| fs::remove_file(bed.segment_path(n)).unwrap());
        bed.refuses_at(ErrorKind::MissingSegment, 4, 0);
        files
            .iter()
            .for_each(|(n, file)| replace(&bed.segment_path(*n), file));
        holds(&bed, &bed.by_hand(), &model);
    }
}

/// The same while the bus is open: the file is gone before a consumer comes to it.
#[test]
fn trap_03_a_segment_that_vanishes_is_an_error_for_its_readers() {
    for backend in backends() {
        for (via, mode) in WAYS {
            let bed = Bed::new(backend);
            let model = closed_log(&bed);
            let first = raw::filled(&bed.segment(1))[0].first_lsn;
            let bus = by_hand(&bed, mode);
            fs::remove_file(bed.segment_path(1)).unwrap();
            let (read, error) = prefix_and_error(&bed, &bus, via, &model);
            assert_eq!(error.kind(), ErrorKind::MissingSegment, "{error:?}");
            assert_eq!(read as u64 + 1, first, "{via:?} {mode:?}");
            assert_eq!(error.segment(), Some(1));
            assert_eq!(error.path(), Some(&*bed.segment_path(1)));
        }
    }
}

/// What a subscriber was given and told.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<(Vec<Lsn>, usize)>>);

impl Seen {
    fn deliver(&self, batch: &Batch<'_>) {
        self.0
            .lock()
            .unwrap()
            .0
            .extend(batch.iter().map(|record| record.lsn()));
    }

    fn note(&self, signal: &Signal) {
        if let Signal::Parked { error, .. } = signal {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            self.0.lock().unwrap().1 += 1;
        }
    }

    fn lsns(&self) -> Vec<Lsn> {
        self.0.lock().unwrap().0.clone()
    }

    fn parkings(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

fn parked_at(status: &Status, damaged: Lsn) {
    assert_eq!(status.lsn.next(), damaged);
    let error = status.parked.as_ref().expect("parked");
    assert_eq!((error.kind(), error.segment()), (ErrorKind::Corrupt, Some(1)));
}

/// End-of-data was not sticky: after the damage, the next call returned later records.
#[test]
fn trap_04_a_consumer_parks_at_the_damage_and_never_sees_what_is_behind_it() {
    for backend in backends() {
        for mode in [ReadMode::Map, ReadMode::Pread] {
            let bed = Bed::new(backend);
            closed_log(&bed);
            let block = raw::filled(&bed.segment(1)).swap_remove(5);
            bed.flip(1, block.offset + 100);
            let damaged = Lsn::new(block.first_lsn);
            let bus = by_hand(&bed, mode);
            let seen = Seen::default();
            let (given, told) = (seen.clone(), seen.clone());
            let mut consumer = bus
                .subscribe("orders")
                .start_if_new(Start::Earliest)
                .retry(Retry::exponential(
                    Duration::from_millis(1),
                    Duration::from_millis(1),
                ))
                .on_signal(move |signal| told.note(signal))
                .manual(move |batch| {
                    given.deliver(batch);
                    Ok(Ack::All)
                })
                .unwrap();
            for round in 1..=4 {
                for _ in 0..200 {
                    consumer.poll();
                    bed.clock.advance(Duration::from_millis(100));
                    bus.tick();
                }
                assert_eq!(consumer.poll(), Polled::Waiting);
                parked_at(&consumer.handle().status(), damaged);
                assert_eq!(seen.parkings(), round);
                let waited = consumer.handle().wait_processed(damaged, Duration::ZERO);
                assert_eq!(waited.unwrap_err().kind(), ErrorKind::Parked);
                consumer.handle().resume();
            }
            let expected: Vec<Lsn> = (1..damaged.get()).map(Lsn::new).collect();
            assert_eq!(seen.lsns(), expected);
            drop(consumer);
            bus.close().unwrap();
            // What is stored is where it stands: nothing behind the damage counts as processed.
            let stored = raw::checkpoints(&fs::read(bed.path().join("checkpoints")).unwrap());
            assert_eq!(stored, [("orders".to_owned(), damaged.get() - 1)]);
        }
    }
}

/// The same with threads and live traffic: later records are delivered to others, not to it.
#[test]
fn trap_04_neighbours_of_a_parked_consumer_go_on() {
    for backend in backends() {
        let bed = Bed::new(backend);
        closed_log(&bed);
        let block = raw::filled(&bed.segment(0)).swap_remove(3);
        bed.flip(0, block.offset + 100);
        let bus = bed.open();
        let seen = Seen::default();
        let given = seen.clone();
        let stuck = bus
            .subscribe("stuck")
            .start_if_new(Start::Earliest)
            .run(move |batch| {
                given.deliver(batch);
                Ok(Ack::All)
            });
        let stuck = stuck.unwrap();
        let live = bus.subscribe("live").run(|_| Ok(Ack::All)).unwrap();
        let wait = stuck.wait_processed(Lsn::new(block.first_lsn), super::bed::LONG);
        assert_eq!(wait.unwrap_err().kind(), ErrorKind::Parked);
        for key in 0..50 {
            let lsn = bus.writer().append(1, key, b"live").unwrap();
            live.wait_processed(lsn, super::bed::LONG).unwrap();
        }
        let expected: Vec<Lsn> = (1..block.first_lsn).map(Lsn::new).collect();
        assert_eq!(seen.lsns(), expected);
        bus.close().unwrap();
    }
}
