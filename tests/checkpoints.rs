//! Whose checkpoint is stored, and when: by the consumer that has the name, and before a call that
//! says so returns.

mod common;

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use common::{
    LONG, Recorder, SEGMENT_BYTES, fill, fill_bytes, lsns, on_each_backend, recording, small, until,
};
use eventplane::offline::LogDir;
use eventplane::testing::{Fault, Faults, ManualClock, Op, Polled};
use eventplane::{Ack, Backend, Bus, ErrorKind, Lsn, Start, Subscription};

const HOUR: Duration = Duration::from_secs(3_600);

/// As a killed process would leave the directory.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else if !entry.file_name().to_string_lossy().ends_with(".tmp") {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Preparing a segment ends with a rename too.
fn until_prepared(dir: &Path) {
    let is_named = |e: &fs::DirEntry| e.path().extension().is_some_and(|e| e == "log");
    until("the first segment and two ahead", || {
        let entries = fs::read_dir(dir.join("segments")).unwrap();
        entries.filter(|e| e.as_ref().is_ok_and(is_named)).count() == 3
    });
}

/// Where a consumer of this name would go on.
fn stored(bus: &Bus, name: &str) -> Lsn {
    let consumer = bus.subscribe(name).manual(|_| Ok(Ack::All)).unwrap();
    consumer.handle().status().lsn
}

/// A consumer that has processed the ten records there are, and whose checkpoint is not stored by
/// itself.
fn at_end(backend: Backend, dir: &Path, faults: &Faults) -> (Bus, Subscription, Recorder) {
    let builder = small(backend).checkpoint_interval(HOUR).faults(faults);
    let bus = builder.open(dir).unwrap();
    let last = fill(&bus, &bus.writer(), 10, 100);
    let (consumer, seen) = recording(&bus, "c", Start::Earliest);
    consumer.wait_processed(last, LONG).unwrap();
    (bus, consumer, seen)
}

/// The second stop stored what the first consumer had processed, over what its successor had.
#[test]
fn stopping_again_leaves_the_successors_checkpoint_alone() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let bus = small(backend)
            .checkpoint_interval(HOUR)
            .open(dir.path())
            .unwrap();
        let last = fill(&bus, &bus.writer(), 100, 100);
        let (release, gate) = mpsc::channel::<()>();
        let (entered, inside) = mpsc::channel();
        let hung = bus.subscribe("c").start_if_new(Start::Earliest).run(move |_| {
            let _ = entered.send(());
            let _ = gate.recv();
            Ok(Ack::All)
        });
        let hung = hung.unwrap();
        inside.recv_timeout(LONG).unwrap();
        let late = hung.stop_within(Duration::from_millis(10)).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Timeout);
        drop(release);
        until("the first one to leave", || bus.consumers().is_empty());
        let successor = bus
            .subscribe("c")
            .start_at(Start::Earliest)
            .batch_records_max(50);
        let mut successor = successor.manual(|_| Ok(Ack::All)).unwrap();
        successor.poll();
        assert_eq!(successor.handle().status().lsn, Lsn::new(50));
        drop(successor);
        hung.stop().unwrap();
        hung.stop().unwrap();
        assert_eq!(stored(&bus, "c"), Lsn::new(50), "of {last}");
        assert!(bus.forget("c").unwrap());
        hung.stop().unwrap();
        assert!(!bus.forget("c").unwrap(), "stopping brought it back");
        bus.close().unwrap();
    });
}

#[test]
fn a_seek_is_stored_when_it_returns() {
    on_each_backend(|backend| {
        let [dir, after] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let bus = small(backend)
            .checkpoint_interval(HOUR)
            .open(dir.path())
            .unwrap();
        fill(&bus, &bus.writer(), 100, 100);
        let (consumer, _) = recording(&bus, "c", Start::Earliest);
        consumer.wait_caught_up(LONG).unwrap();
        consumer.pause();
        until("the pause", || consumer.status().paused);
        consumer.seek(Start::Lsn(Lsn::new(41))).unwrap();
        copy(dir.path(), after.path());
        let killed = small(backend).open(after.path()).unwrap();
        assert_eq!(stored(&killed, "c"), Lsn::new(40));
        killed.close().unwrap();
        bus.close().unwrap();
    });
}

/// What the caller is told is "it did not work": then nothing may have happened.
#[test]
fn a_seek_that_cannot_be_stored_moves_nothing() {
    on_each_backend(|backend| {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::new());
        let (bus, consumer, seen) = at_end(backend, dir.path(), &faults);
        faults.inject(Fault::errno(Op::Rename, libc::EIO).on("checkpoints"));
        let refused = consumer.seek(Start::Lsn(Lsn::new(4))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Io);
        assert_eq!(consumer.status().lsn, Lsn::new(10));
        let last = fill(&bus, &bus.writer(), 1, 100);
        consumer.wait_processed(last, LONG).unwrap();
        assert_eq!(seen.lsns(), lsns(1..=11));
        consumer.seek(Start::Lsn(Lsn::new(11))).unwrap();
        consumer.wait_processed(last, LONG).unwrap();
        assert_eq!(seen.lsns()[11..], [11]);
        bus.close().unwrap();
    });
}

/// What the disk held then was the place that the seek did not lead to, and closing left it so.
#[test]
fn a_seek_that_fails_with_its_checkpoint_renamed_is_undone() {
    for to in [3, 50] {
        let (dir, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (faults, clock) = (Faults::new(), ManualClock::default());
        let builder = small(Backend::Psync).faults(&faults).manual(&clock);
        let bus = builder.open(dir.path()).unwrap();
        fill_bytes(&bus, 2 * SEGMENT_BYTES);
        let subscribe = bus.subscribe("c").start_if_new(Start::Earliest);
        let mut consumer = subscribe
            .batch_records_max(10)
            .manual(|_| Ok(Ack::All))
            .unwrap();
        consumer.poll();
        bus.housekeep();
        let at = consumer.handle().status().lsn;
        assert_eq!(at, Lsn::new(10));
        faults.inject(Fault::errno(Op::SyncDir, libc::EIO));
        let failed = consumer.handle().seek(Start::Lsn(Lsn::new(to)));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(consumer.handle().status().lsn, at);
        bus.housekeep();
        copy(dir.path(), after.path());
        let killed = small(Backend::Psync).open(after.path()).unwrap();
        assert_eq!(stored(&killed, "c"), at);
        killed.close().unwrap();
        drop(consumer);
        bus.close().unwrap();
    }
}

/// Closing waited its whole deadline for a consumer that had never run.
#[test]
fn nobody_waits_for_a_consumer_that_could_not_begin() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::new());
    let bus = small(Backend::Psync).faults(&faults).open(dir.path()).unwrap();
    let writer = bus.writer();
    until_prepared(dir.path());
    faults.inject(Fault::errno(Op::Rename, libc::EIO).on("checkpoints"));
    let hold = faults.hold(Op::Rename);
    let subscribe = bus.subscribe("c");
    std::thread::scope(|scope| {
        let begin = scope.spawn(|| subscribe.run(|_| Ok(Ack::All)).map(drop));
        assert!(hold.wait_for(1), "its first checkpoint is being stored");
        let close = scope.spawn(|| bus.close_within(LONG));
        until("the end", || writer.append(1, 1, b"x").is_err());
        drop(hold);
        assert_eq!(begin.join().unwrap().unwrap_err().kind(), ErrorKind::Io);
        close.join().unwrap().unwrap();
    });
}

/// Whoever stops meanwhile ends where the seek leads to, and that is what is stored.
#[test]
fn a_seek_that_began_before_a_stop_is_the_last_word() {
    on_each_backend(|backend| {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::new());
        let (bus, consumer, seen) = at_end(backend, dir.path(), &faults);
        until_prepared(dir.path());
        let hold = faults.hold(Op::Rename);
        std::thread::scope(|scope| {
            let seek = scope.spawn(|| consumer.seek(Start::Lsn(Lsn::new(4))));
            assert!(hold.wait_for(1), "the seek stores where it leads to");
            let stop = consumer.stop_within(Duration::ZERO);
            assert_eq!(
                stop.unwrap_err().kind(),
                ErrorKind::Timeout,
                "it waits for the seek"
            );
            drop(hold);
            seek.join().unwrap().unwrap();
        });
        consumer.stop().unwrap();
        let late = consumer.seek(Start::Lsn(Lsn::new(6))).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Stopped);
        assert_eq!(seen.lsns(), lsns(1..=10));
        assert_eq!(consumer.status().lsn, Lsn::new(3));
        assert_eq!(stored(&bus, "c"), Lsn::new(3));
        bus.close().unwrap();
    });
}

/// The successor had looked its checkpoint up before the last one of its predecessor was stored.
#[test]
fn a_name_that_changes_hands_takes_the_last_checkpoint_along() {
    let (dir, faults, clock) = (
        tempfile::tempdir().unwrap(),
        Faults::new(),
        ManualClock::default(),
    );
    // With faults, what is read goes through calls that can be held.
    let builder = small(Backend::Psync).faults(&faults).manual(&clock);
    let bus = builder.open(dir.path()).unwrap();
    // More segments than there are footers in memory.
    let last = fill_bytes(&bus, 16 * SEGMENT_BYTES);
    let first = bus
        .subscribe("c")
        .start_if_new(Start::Earliest)
        .batch_records_max(5);
    let mut first = first.manual(|_| Ok(Ack::All)).unwrap();
    first.poll();
    bus.housekeep();
    let early = first.handle().status().lsn;
    assert!(early > Lsn::ZERO && early < last);
    while first.poll() != Polled::CaughtUp {
        clock.advance(Duration::from_millis(20));
        bus.tick();
    }
    let hold = faults.hold(Op::Read);
    std::thread::scope(|scope| {
        let successor = scope.spawn(|| stored(&bus, "c"));
        assert!(
            hold.wait_for(1),
            "the successor looks for the place of its checkpoint"
        );
        drop(first);
        drop(hold);
        assert_eq!(successor.join().unwrap(), last);
    });
    assert_eq!(stored(&bus, "c"), last);
}

#[test]
fn a_close_says_that_the_last_checkpoints_were_not_stored() {
    on_each_backend(|backend| {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::new());
        let (bus, consumer, _) = at_end(backend, dir.path(), &faults);
        faults.inject(Fault::errno(Op::Rename, libc::EIO).on("checkpoints").forever());
        assert_eq!(bus.close().unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(consumer.stop().unwrap_err().kind(), ErrorKind::Io);
    });
}

/// A repair moved them away, and their consumers were new ones.
#[test]
fn those_of_a_newer_build_are_left_alone() {
    for name in ["checkpoints", "checkpoints.foreign"] {
        let dir = tempfile::tempdir().unwrap();
        let bus = small(Backend::Psync).open(dir.path()).unwrap();
        fill(&bus, &bus.writer(), 3, 100);
        bus.subscribe("c").run(|_| Ok(Ack::All)).unwrap();
        bus.close().unwrap();
        let path = dir.path().join(name);
        fs::rename(dir.path().join("checkpoints"), &path).unwrap();
        let mut newer = fs::read(&path).unwrap();
        newer[8] = 2;
        fs::write(&path, &newer).unwrap();
        let mut log = LogDir::open(dir.path()).unwrap();
        let findings = log.verify().unwrap().findings;
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].kind(), ErrorKind::Unsupported);
        let _ = log.repair();
        drop(log);
        assert!(fs::read(&path).unwrap() == newer);
        let error = small(Backend::Psync).open(dir.path()).unwrap_err();
        assert_eq!(
            (error.kind(), error.path()),
            (ErrorKind::Unsupported, Some(&*path))
        );
    }
}
