//! What is deleted, what keeps it from being deleted, and what is told when something is gone.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{KIB, RING_BYTES, Recorder, SEGMENT_BYTES, fill_bytes, on_each_backend, small, until};
use eventplane::testing::{Fault, Faults, ManualClock, ManualSubscription, Op, Polled};
use eventplane::{
    Ack, Backend, Batch, Bus, ErrorKind, LossCause, Lsn, OnPositionLost, Retention, Signal, Start,
};
use parking_lot::Mutex;

fn open(backend: Backend, clock: &ManualClock, dir: &Path, retention: Retention) -> Bus {
    small(backend)
        .manual(clock)
        .retention(retention)
        .open(dir)
        .unwrap()
}

fn files(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir.join("segments")).unwrap();
    entries
        .filter(|e| {
            e.as_ref()
                .unwrap()
                .path()
                .extension()
                .is_some_and(|e| e == "log")
        })
        .count() as u64
}

/// Retention looks four times a second.
fn retain(bus: &Bus, clock: &ManualClock) {
    clock.advance(Duration::from_millis(300));
    bus.housekeep();
}

struct Told {
    subscription: ManualSubscription,
    recorder: Recorder,
    signals: Arc<Mutex<Vec<Signal>>>,
}

impl Told {
    fn new(bus: &Bus, name: &str, on_loss: OnPositionLost) -> eventplane::Result<Told> {
        let (recorder, signals) = (Recorder::default(), Arc::new(Mutex::new(Vec::new())));
        let subscription = bus
            .subscribe(name)
            .start_if_new(Start::Earliest)
            .on_position_lost(on_loss)
            .on_signal({
                let signals = Arc::clone(&signals);
                move |signal| signals.lock().push(signal.clone())
            })
            .manual({
                let recorder = recorder.clone();
                move |batch: &Batch<'_>| {
                    recorder.take(batch);
                    Ok(Ack::All)
                }
            })?;
        Ok(Told { subscription, recorder, signals })
    }

    fn drain(&mut self) -> Polled {
        loop {
            let polled = self.subscription.poll();
            if polled != Polled::Moved {
                return polled;
            }
        }
    }

    fn lost(&self) -> Option<(u64, u64, LossCause)> {
        self.signals.lock().iter().find_map(|signal| match signal {
            Signal::PositionLost { from, to, cause } => Some((from.get(), to.get(), *cause)),
            _ => None,
        })
    }
}

#[test]
fn the_oldest_segments_go_and_stay_gone() {
    on_each_backend(|backend| {
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::default());
        let retention = Retention::bytes(4 * SEGMENT_BYTES);
        let bus = open(backend, &clock, dir.path(), retention);
        fill_bytes(&bus, 8 * SEGMENT_BYTES);
        assert_eq!(bus.first_lsn(), Lsn::FIRST);
        let before = files(dir.path());
        retain(&bus, &clock);
        let first = bus.first_lsn();
        assert!(first > Lsn::FIRST && files(dir.path()) < before);
        let gone = bus.reader(Start::Lsn(first.previous())).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::PositionLost);
        for start in [Start::Earliest, Start::Lsn(first)] {
            assert_eq!(
                bus.reader(start).unwrap().try_next().unwrap().unwrap().lsn(),
                first
            );
        }
        let last = bus.committed_lsn();
        bus.close().unwrap();
        let bus = open(backend, &clock, dir.path(), retention);
        assert_eq!((bus.first_lsn(), bus.committed_lsn()), (first, last));
    });
}

#[test]
fn it_does_not_wait_for_checkpoints_that_are_stored_seldom() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let builder = small(backend).retention(Retention::bytes(4 * SEGMENT_BYTES));
        let hour = Duration::from_secs(3_600);
        let bus = builder.checkpoint_interval(hour).open(dir.path()).unwrap();
        fill_bytes(&bus, 8 * SEGMENT_BYTES);
        until("retention", || bus.first_lsn() > Lsn::FIRST);
        bus.close().unwrap();
    });
}

#[test]
fn by_age_and_by_what_is_consumed() {
    on_each_backend(|backend| {
        let hour = Duration::from_secs(3_600);
        for retention in [Retention::age(hour), Retention::consumed()] {
            let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::default());
            let bus = open(backend, &clock, dir.path(), retention);
            let mut consumer = Told::new(&bus, "c", OnPositionLost::Fail).unwrap();
            let old = fill_bytes(&bus, 4 * SEGMENT_BYTES);
            retain(&bus, &clock);
            assert_eq!(bus.first_lsn(), Lsn::FIRST, "young, and not consumed");
            assert_eq!(consumer.drain(), Polled::CaughtUp);
            clock.advance(2 * hour);
            retain(&bus, &clock);
            assert!(bus.first_lsn() > Lsn::FIRST, "{retention:?}");
            assert!(bus.first_lsn() <= old.next());
            // What comes now is young, and not consumed.
            let kept = bus.first_lsn();
            fill_bytes(&bus, KIB);
            retain(&bus, &clock);
            assert_eq!(bus.first_lsn(), kept);
        }
    });
}

#[test]
fn a_checkpoint_is_a_barrier_until_the_hard_cap() {
    on_each_backend(|backend| {
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::default());
        let retention = Retention::bytes(4 * SEGMENT_BYTES).hard_cap_bytes(12 * SEGMENT_BYTES);
        let bus = open(backend, &clock, dir.path(), retention);
        let mut slow = Told::new(&bus, "slow", OnPositionLost::Earliest).unwrap();
        let mut failing = Told::new(&bus, "failing", OnPositionLost::Fail).unwrap();
        fill_bytes(&bus, 8 * SEGMENT_BYTES);
        retain(&bus, &clock);
        assert_eq!(bus.first_lsn(), Lsn::FIRST, "their checkpoints hold it");
        let lead = slow.subscription.handle().status().lead_bytes.unwrap();
        fill_bytes(&bus, 2 * SEGMENT_BYTES);
        let shrunk = slow.subscription.handle().status().lead_bytes.unwrap();
        assert!(shrunk < lead && lead < 12 * SEGMENT_BYTES, "{lead} to {shrunk}");
        fill_bytes(&bus, 8 * SEGMENT_BYTES);
        retain(&bus, &clock);
        let first = bus.first_lsn();
        assert!(first > Lsn::FIRST, "the barrier yields");
        assert_eq!(slow.subscription.handle().status().lead_bytes, Some(0));

        assert_eq!(slow.drain(), Polled::CaughtUp);
        assert_eq!(slow.lost(), Some((1, first.get() - 1, LossCause::Retention)));
        let expected: Vec<u64> = (first.get()..=bus.committed_lsn().get()).collect();
        assert_eq!(slow.recorder.lsns(), expected);

        assert_eq!(failing.drain(), Polled::Waiting);
        assert_eq!(failing.lost(), slow.lost());
        let parked = failing.subscription.handle().status().parked.unwrap();
        assert_eq!(parked.kind(), ErrorKind::PositionLost);
        assert_eq!(failing.recorder.len(), 0);
        failing.subscription.handle().seek(Start::Earliest).unwrap();
        assert_eq!(failing.drain(), Polled::CaughtUp);
        assert_eq!(failing.recorder.lsns(), expected);
    });
}

#[test]
fn a_checkpoint_passed_by_retention_is_lost_also_while_its_slab_is_in_the_ring() {
    // Such a consumer began at position 0, where the header page is, not a block: if the first slab
    // was still in the ring, it was parked with a gap instead of being told what it lost.
    on_each_backend(|backend| {
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::default());
        let retention = Retention::bytes(2 * SEGMENT_BYTES).hard_cap_bytes(2 * SEGMENT_BYTES);
        let bus = small(backend)
            .ring_bytes(16 * SEGMENT_BYTES)
            .catchup_window_bytes(32 * SEGMENT_BYTES)
            .manual(&clock)
            .retention(retention)
            .open(dir.path())
            .unwrap();
        drop(Told::new(&bus, "c", OnPositionLost::Earliest).unwrap());
        fill_bytes(&bus, 6 * SEGMENT_BYTES);
        retain(&bus, &clock);
        let first = bus.first_lsn();
        assert!(first > Lsn::FIRST);
        let refused = Told::new(&bus, "c", OnPositionLost::Fail)
            .map(|_| ())
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PositionLost);
        let mut consumer = Told::new(&bus, "c", OnPositionLost::Earliest).unwrap();
        assert_eq!(consumer.drain(), Polled::CaughtUp);
        assert_eq!(consumer.lost(), Some((1, first.get() - 1, LossCause::Retention)));
        let expected: Vec<u64> = (first.get()..=bus.committed_lsn().get()).collect();
        assert_eq!(consumer.recorder.lsns(), expected);
    });
}

#[test]
fn what_is_being_read_is_served_though_its_file_is_gone() {
    on_each_backend(|backend| {
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::default());
        let bus = open(backend, &clock, dir.path(), Retention::bytes(2 * SEGMENT_BYTES));
        let end = fill_bytes(&bus, RING_BYTES + 4 * SEGMENT_BYTES);
        let mut reader = bus.reader(Start::Earliest).unwrap();
        assert_eq!(reader.try_next().unwrap().unwrap().lsn(), Lsn::FIRST);
        retain(&bus, &clock);
        let first = bus.first_lsn();
        assert!(first.get() > 64, "more is gone than a reader takes at once");
        let mut last = 1;
        let error = loop {
            match reader.try_next() {
                Ok(Some(record)) => {
                    assert_eq!(record.lsn().get(), last + 1);
                    last += 1;
                }
                Ok(None) => panic!("records are missing in silence behind {last} of {end}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::PositionLost, "{error}");
        assert!(last < first.get());
    });
}

/// Sixteen segments of which four are to be kept: more than there are footers in memory.
fn overfull(dir: &Path, faults: &Faults, clock: &ManualClock) -> Bus {
    let builder = small(Backend::Psync).faults(faults).manual(clock);
    let builder = builder.retention(Retention::bytes(4 * SEGMENT_BYTES));
    let bus = builder.open(dir).unwrap();
    fill_bytes(&bus, 16 * SEGMENT_BYTES);
    bus
}

/// Retention was quicker than the search for the place, and the answer was that it is there.
#[test]
fn who_looks_for_a_place_that_is_being_deleted_is_told_so() {
    for seeks in [true, false] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::new());
        let clock = ManualClock::default();
        let bus = overfull(dir.path(), &faults, &clock);
        let old = bus.subscribe("old").manual(|_| Ok(Ack::All)).unwrap();
        let seeker = old.handle().clone();
        let to = Start::Lsn(Lsn::new(2));
        let come = || match seeks {
            true => seeker.seek(to),
            false => bus
                .subscribe("new")
                .start_at(to)
                .manual(|_| Ok(Ack::All))
                .map(drop),
        };
        let hold = faults.hold(Op::Read);
        std::thread::scope(|scope| {
            let came = scope.spawn(come);
            assert!(hold.wait_for(1), "the index is being read");
            retain(&bus, &clock);
            assert!(bus.first_lsn() > Lsn::new(2));
            drop(hold);
            assert_eq!(came.join().unwrap().unwrap_err().kind(), ErrorKind::PositionLost);
        });
    }
}

/// A store that fails may be on the disk all the same: whoever was let in then missed records in
/// the next life.
#[test]
fn nobody_is_sent_to_what_the_disk_may_have_given_up() {
    let (dir, faults, clock) = (
        tempfile::tempdir().unwrap(),
        Faults::new(),
        ManualClock::default(),
    );
    let bus = overfull(dir.path(), &faults, &clock);
    let before = files(dir.path());
    faults.inject(Fault::errno(Op::Sync, libc::EIO).on("meta").forever());
    retain(&bus, &clock);
    let first = bus.first_lsn();
    fill_bytes(&bus, 2 * SEGMENT_BYTES);
    let before = files(dir.path()).max(before);
    retain(&bus, &clock);
    assert_eq!(bus.first_lsn(), first, "nothing more while that cannot be stored");
    let come = bus.subscribe("c").start_at(Start::Lsn(Lsn::new(2)));
    let lost = come.manual(|_| Ok(Ack::All)).map(drop).unwrap_err();
    assert_eq!(
        (lost.kind(), files(dir.path())),
        (ErrorKind::PositionLost, before)
    );
    faults.clear();
    faults.inject(Fault::errno(Op::Remove, libc::EIO));
    let oldest = dir.path().join("segments").join(format!("{:020}.log", 0));
    retain(&bus, &clock);
    assert!(
        files(dir.path()) < before && oldest.exists(),
        "one could not be removed"
    );
    retain(&bus, &clock);
    assert!(!oldest.exists(), "it is tried again");
}

/// A stop was told that its callback does not return.
#[test]
fn nobody_waits_for_files_that_are_being_deleted() {
    let (dir, faults, clock) = (
        tempfile::tempdir().unwrap(),
        Faults::new(),
        ManualClock::default(),
    );
    let bus = overfull(dir.path(), &faults, &clock);
    let consumer = bus.subscribe("c").manual(|_| Ok(Ack::All)).unwrap();
    let seeker = consumer.handle().clone();
    let hold = faults.hold(Op::Remove);
    std::thread::scope(|scope| {
        let retaining = scope.spawn(|| retain(&bus, &clock));
        assert!(hold.wait_for(1), "a file is being deleted");
        let seek = scope.spawn(|| seeker.seek(Start::Earliest));
        until("the seek", || seek.is_finished());
        drop(hold);
        retaining.join().unwrap();
        seek.join().unwrap().unwrap();
    });
    assert_eq!(seeker.status().lsn.next(), bus.first_lsn());
}
