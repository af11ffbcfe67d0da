//! Disks that fail while the log runs.

use super::*;
use crate::disk::{Fault, Op};

/// Commits until it fails; returns the error.
fn until_it_fails(rig: &Rig, model: &mut Vec<Record>, payload_bytes: usize) -> Error {
    let mut rng = Rng(model.len() as u64);
    loop {
        let record = rng.record(payload_bytes);
        match rig.writer().append(record.0, record.1, &record.2) {
            Ok(lsn) => assert_eq!(lsn.get(), model.len() as u64 + 1),
            Err(error) => return error,
        }
        model.push(record);
    }
}

/// After `fault` the log is poisoned for good, publishes nothing more, and reopens whole.
fn poisons(bed: &Bed, fault: Fault, payload_bytes: usize) {
    let mut model = Vec::new();
    let rig = bed.open();
    let record = Rng(1).record(10);
    commit(&rig.writer(), &mut model, record);
    rig.settle();
    bed.faults.inject(fault);
    let error = until_it_fails(&rig, &mut model, payload_bytes);
    assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    bed.faults.clear();
    for _ in 0..3 {
        assert_eq!(rig.writer().append(1, 1, b"x").unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(rig.writer().batch().reserve(1, 1, 9).unwrap_err().kind(), ErrorKind::Poisoned);
    }
    // Producers are refused first, then consumers are told.
    while !rig.log.ring.committed.load().is_poisoned() {
        std::thread::yield_now();
    }
    assert_eq!(rig.log.ring.committed_lsn().get(), model.len() as u64);
    assert!(rig.read(Tier::Hot) == model);
    rig.kill();
    let rig = bed.open();
    let again = rig.read(Tier::Hot);
    // The batch that failed is there whole, or not at all.
    assert!(again.len() <= model.len() + 1 && again[..model.len()] == model);
    let lsn = rig.writer().append(1, 1, b"x").unwrap();
    assert_eq!(lsn.get(), again.len() as u64 + 1);
}

#[test]
fn a_failed_write_or_sync_poisons_until_reopening() {
    for threads in [false, true] {
        for nth in [1, 2, 5, 20] {
            // Blocks, rolling blocks.
            let eio = Fault::errno(Op::DurableWrite, libc::EIO).nth(nth);
            poisons(&Bed::new(2, 2, threads), eio, 5_000);
        }
        // A footer, and its sync.
        let footer = Fault::errno(Op::Write, libc::EIO).on("00000.log");
        poisons(&Bed::new(2, 2, threads), footer, 5_000);
        let sync = Fault::errno(Op::Sync, libc::EIO).on("00000.log");
        poisons(&Bed::new(2, 2, threads), sync, 5_000);
    }
}

/// Prior art: a second sync after a failed one returns Ok; followers of a failed append were told
/// that it was durable.
#[test]
fn trap_12_and_13_followers_of_a_failed_block_fail_as_well() {
    for deferred in [false, true] {
        let mut bed = Bed::new(4, 2, true);
        if deferred {
            let interval = Duration::from_secs(3600);
            bed.options.durability = Durability::Deferred { interval, bytes: 1 << 30 };
        }
        let rig = bed.open();
        rig.writer().append(1, 1, b"first").unwrap();
        rig.log.sync().unwrap();
        let op = if deferred { Op::Sync } else { Op::DurableWrite };
        let hold = bed.faults.hold(op);
        bed.faults.inject(Fault::errno(op, libc::EIO).on("00000.log"));
        std::thread::scope(|scope| {
            let commit = || {
                let mut batch = rig.writer().clone();
                let outcome = batch_of_one(&mut batch);
                outcome.and_then(|()| rig.log.sync())
            };
            let waiting: Vec<_> = (0..8).map(|_| scope.spawn(commit)).collect();
            assert!(hold.wait_for(1));
            std::thread::sleep(Duration::from_millis(20));
            drop(hold);
            for outcome in waiting {
                assert_eq!(outcome.join().unwrap().unwrap_err().kind(), ErrorKind::Poisoned);
            }
        });
        assert!(rig.log.sync().is_err());
        assert_eq!(rig.log.ring.committed_lsn(), Lsn::new(1));
        assert_eq!(rig.read(Tier::Hot).len(), 1);
        rig.kill();
        bed.faults.clear();
        bed.open().read(Tier::Hot);
    }
}

fn batch_of_one(writer: &mut Writer) -> Result<()> {
    writer.append(1, 1, b"follower").map(|_| ())
}

/// Sealing fails on one thread while blocks are published on another: the mark must stay.
#[test]
fn publishing_does_not_undo_a_poisoning() {
    let bed = Bed::new(2, 2, false);
    let rig = bed.open();
    let mut batch = rig.writer().clone();
    batch_of_one(&mut batch).unwrap();
    let writer = rig.writer();
    let mut late = writer.batch();
    late.append(1, 1, b"late").unwrap();
    rig.log.ring.committed.poison();
    let _ = late.commit();
    assert!(rig.log.ring.committed.load().is_poisoned());
}

/// Prior art: an io_uring short write was taken for success.
#[test]
fn trap_11_a_short_write_is_finished() {
    for threads in [false, true] {
        let bed = Bed::new(2, 2, threads);
        let mut model = Vec::new();
        let rig = bed.open();
        rig.settle();
        for nth in 1..20 {
            bed.faults.inject(Fault::short(Op::DurableWrite, PAGE).nth(nth));
            bed.faults.inject(Fault::short(Op::Write, PAGE).nth(nth));
        }
        fill_to(&bed, &rig, &mut model, 2, 12_000);
        rig.kill();
        assert!(bed.open().read(Tier::Mapped) == model);
    }
}

#[test]
fn a_short_write_that_then_fails_is_a_torn_tail() {
    for threads in [false, true] {
        let bed = Bed::new(2, 2, threads);
        let mut model = Vec::new();
        let rig = bed.open();
        let record = Rng(1).record(10);
        commit(&rig.writer(), &mut model, record);
        bed.faults.inject(Fault::short(Op::DurableWrite, PAGE));
        bed.faults.inject(Fault::errno(Op::DurableWrite, libc::EIO).nth(2));
        assert_eq!(until_it_fails(&rig, &mut model, 12_000).kind(), ErrorKind::Poisoned);
        rig.kill();
        let rig = bed.open();
        assert!(rig.recovery.torn_bytes > 0);
        assert!(rig.read(Tier::Hot) == model);
    }
}

#[test]
fn a_failed_sync_while_opening_is_a_failed_opening() {
    let bed = Bed::new(2, 2, false);
    let mut model = Vec::new();
    let rig = bed.open();
    let record = Rng(1).record(10);
    commit(&rig.writer(), &mut model, record);
    rig.kill();
    bed.faults.inject(Fault::errno(Op::Sync, libc::EIO).on("00000.log"));
    assert_eq!(bed.try_open().err().unwrap().kind(), ErrorKind::Io);
    assert!(bed.open().read(Tier::Hot) == model);
}
