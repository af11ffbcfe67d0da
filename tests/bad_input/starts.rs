//! Starts and seeks outside of the log, and checkpoints that lie there.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eventplane::{Ack, Bus, Error, ErrorKind, Lsn, OnPositionLost, Retention, Start, Subscription};

use super::bed::{Bed, Rec, SEGMENT, backends, commit, fill_to};

fn commit_five(bus: &Bus, model: &mut Vec<Rec>) {
    for _ in 0..5 {
        commit(&bus.writer(), model, 100);
    }
}

/// A log whose first segments were deleted.
fn shortened(bed: &Bed) -> (Bus, Lsn, Lsn) {
    let builder = bed
        .builder()
        .manual(&bed.clock)
        .retention(Retention::bytes(2 * SEGMENT));
    let bus = builder.open(bed.path()).unwrap();
    fill_to(bed, &bus, &mut Vec::new(), 6, 9_000);
    bed.clock.advance(Duration::from_secs(60));
    bus.housekeep();
    let (first, last) = (bus.first_lsn(), bus.committed_lsn());
    assert!(first > Lsn::new(20) && last > first.next());
    (bus, first, last)
}

/// By subscribing, reading and seeking: all three say the same.
fn each_way(bus: &Bus, seeker: &Subscription, start: Start) -> [Result<Lsn, Error>; 3] {
    let subscribed = bus.subscribe("new").start_at(start).manual(|_| Ok(Ack::All));
    let subscribed = subscribed.map(|consumer| consumer.handle().status().lsn);
    let read = bus.reader(start).map(|reader| reader.status().lsn);
    let sought = seeker.seek(start).map(|()| seeker.status().lsn);
    [subscribed, read, sought]
}

#[test]
fn starts_are_checked_against_both_ends() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let (bus, first, last) = shortened(&bed);
        let consumer = bus.subscribe("seeker").manual(|_| Ok(Ack::All)).unwrap();
        let seeker = consumer.handle();
        for lsn in [last.get() + 2, last.get() + 1_000, u64::MAX] {
            for outcome in each_way(&bus, seeker, Start::Lsn(Lsn::new(lsn))) {
                let error = outcome.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::BeyondEnd, "{lsn}");
                assert_eq!(error.lsns(), Some((Lsn::new(lsn), Lsn::new(lsn))));
                assert!(error.to_string().contains(&last.to_string()), "{error}");
            }
        }
        for lsn in [0, 1, first.get() - 1] {
            for outcome in each_way(&bus, seeker, Start::Lsn(Lsn::new(lsn))) {
                let error = outcome.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PositionLost, "{lsn}");
                assert_eq!(error.lsns(), Some((Lsn::new(lsn), first.previous())));
            }
        }
        assert_eq!(seeker.status().lsn, last, "a refused seek moves nothing");
        let far = SystemTime::now() + Duration::from_secs(1 << 40);
        let before = UNIX_EPOCH - Duration::from_secs(1 << 40);
        for (start, lsn) in [
            (Start::Earliest, first.previous()),
            (Start::Latest, last),
            (Start::Lsn(first), first.previous()),
            (Start::Lsn(last), last.previous()),
            (Start::Lsn(last.next()), last),
            (Start::Time(far), last),
            (Start::Time(before), first.previous()),
        ] {
            for outcome in each_way(&bus, seeker, start) {
                assert_eq!(outcome.unwrap(), lsn, "{start:?}");
            }
        }
        drop(consumer);
        bus.close().unwrap();
    }
}

#[test]
fn starts_in_an_empty_log() {
    for backend in backends() {
        let bed = Bed::new(backend);
        for bus in [bed.by_hand(), bed.builder().manual(&bed.clock).in_memory().unwrap()] {
            let seeker = bus.subscribe("seeker").manual(|_| Ok(Ack::All)).unwrap();
            let starts = [
                Start::Earliest,
                Start::Latest,
                Start::Lsn(Lsn::FIRST),
                Start::Time(UNIX_EPOCH),
                Start::Time(SystemTime::now()),
            ];
            for start in starts {
                for outcome in each_way(&bus, seeker.handle(), start) {
                    assert_eq!(outcome.unwrap(), Lsn::ZERO, "{start:?}");
                }
            }
            for outcome in each_way(&bus, seeker.handle(), Start::Lsn(Lsn::new(2))) {
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::BeyondEnd);
            }
        }
    }
}

/// A refused start leaves no trace: no checkpoint, no name taken.
#[test]
fn a_refused_subscription_leaves_nothing_behind() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let before = bed.tree();
        for _ in 0..2 {
            let start = Start::Lsn(Lsn::new(9));
            let error = bus
                .subscribe("c")
                .start_if_new(start)
                .run(|_| Ok(Ack::All))
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BeyondEnd);
        }
        assert!(bed.tree() == before && bus.consumers().is_empty());
        bus.close().unwrap();
    }
}

/// Clamped, it would skip what is written next under those LSNs.
#[test]
fn a_checkpoint_beyond_the_end_is_refused() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        commit_five(&bus, &mut model);
        let image = bed.image();
        commit_five(&bus, &mut model);
        drop(bus.subscribe("c").manual(|_| Ok(Ack::All)).unwrap());
        bus.close().unwrap();
        // An older copy of the log with the newer checkpoints.
        fs::copy(bed.path().join("checkpoints"), image.path().join("checkpoints")).unwrap();
        let bus = image.by_hand();
        for _ in 0..2 {
            let error = bus
                .subscribe("c")
                .manual(|_| Ok(Ack::All))
                .map(drop)
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BeyondEnd);
            assert_eq!(error.lsns(), Some((Lsn::new(10), Lsn::new(10))));
            assert!(error.to_string().contains("start_at"), "{error}");
        }
        let start = Start::Lsn(Lsn::new(6));
        let consumer = bus
            .subscribe("c")
            .start_at(start)
            .manual(|_| Ok(Ack::All))
            .unwrap();
        assert_eq!(consumer.handle().status().lsn, Lsn::new(5));
    }
}

#[test]
fn a_checkpoint_below_the_first_record_is_lost_unless_told_to_go_on() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        commit_five(&bus, &mut model);
        drop(bus.subscribe("c").manual(|_| Ok(Ack::All)).unwrap());
        bus.close().unwrap();
        // The barrier yields at the hard cap.
        let retention = Retention::bytes(2 * SEGMENT).hard_cap_bytes(3 * SEGMENT);
        let builder = bed.builder().manual(&bed.clock).retention(retention);
        let bus = builder.open(bed.path()).unwrap();
        fill_to(&bed, &bus, &mut model, 7, 9_000);
        bed.clock.advance(Duration::from_secs(60));
        bus.housekeep();
        let first = bus.first_lsn();
        assert!(first > Lsn::new(6));
        let error = bus
            .subscribe("c")
            .manual(|_| Ok(Ack::All))
            .map(drop)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PositionLost);
        assert_eq!(error.lsns(), Some((Lsn::new(6), first.previous())));
        let consumer = bus.subscribe("c").on_position_lost(OnPositionLost::Earliest);
        let mut consumer = consumer.manual(|_| Ok(Ack::All)).unwrap();
        while consumer.handle().status().lag_records > 0 {
            consumer.poll();
        }
        let delivered: u64 = consumer.handle().status().delivered.iter().sum();
        assert_eq!(delivered, bus.committed_lsn().get() - first.previous().get());
    }
}
