//! Disks that fail while the log runs.

use super::*;
use crate::disk::{Fault, Op, SimDisk};

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

/// Sealing failed, and has not refused appending yet, when a write fails: what follows was written
/// behind the hole.
#[test]
fn nothing_is_written_behind_a_failure_that_is_still_being_told() {
    let mut bed = Bed::new(4, 2, true);
    bed.options.watermark_idle = Duration::from_secs(3600);
    let rig = bed.open();
    rig.writer().append(1, 1, b"first").unwrap();
    // As far as the first of two failures has come.
    let cause = Error::new(ErrorKind::Io, "sealing failed");
    rig.log.poison.set(cause).unwrap();
    rig.log.poison(Error::new(ErrorKind::Io, "writing failed"));
    let before = bed.segment_bytes(0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| rig.writer().append(1, 1, b"behind the hole"));
        while !rig.log.writing.append.lock().has_open_records() && !waiting.is_finished() {
            std::thread::yield_now();
        }
        let claimed = (rig.log.lead_if_free(), rig.log.claim(&AtomicBool::new(false)));
        rig.log.refuse(rig.log.poisoned().unwrap());
        rig.log.ring.committed.poison();
        rig.log.waiters.wake_all();
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(claimed, (false, Some(false)), "nobody may write");
    });
    assert_eq!(rig.log.ring.committed_lsn(), Lsn::new(1));
    assert!(bed.segment_bytes(0) == before);
}

/// The name of a segment was not durable, its predecessor was discarded on closing, and nothing
/// opened that gap.
#[test]
fn a_segment_whose_name_could_not_be_synced_does_not_stay_behind_a_gap() {
    for (op, stays) in [(Op::SyncDir, false), (Op::SyncDir, true), (Op::Rename, false)] {
        let bed = Bed::new(2, 4, false);
        let rig = bed.open();
        rig.writer().append(1, 1, b"x").unwrap();
        bed.faults.inject(Fault::errno(op, libc::EIO).nth(2));
        if stays {
            bed.faults.inject(Fault::errno(Op::Remove, libc::EIO).forever());
        }
        rig.segments.step(&rig.log);
        let left = if stays { vec![0, 1, 2] } else { vec![0, 1] };
        assert_eq!(bed.listing(), left, "one was prepared, the next one failed");
        bed.faults.clear();
        rig.log.refuse(Error::new(ErrorKind::Closed, "closed"));
        rig.log.finish();
        rig.segments.discard_prepared();
        drop(rig);
        assert_eq!(bed.open().read(Tier::Hot).len(), 1);
    }
}

/// A sync of `meta` failed, and the next life took what was left in the cache for what is on disk.
#[test]
fn what_a_failed_sync_left_in_the_cache_is_not_believed() {
    let bed = Bed::new(2, 2, false);
    let meta = bed.open().files.meta.get();
    let (disk, dir) = (SimDisk::new(1), Path::new("/log"));
    disk.create_dir(dir).unwrap();
    let file = MetaFile::create(&disk, dir, meta.clone()).unwrap();
    disk.faults().inject(Fault::errno(Op::Sync, libc::EIO));
    file.update(|meta| meta.generation += 1).unwrap_err();
    drop(file);
    let found = MetaFile::open(&disk, dir, true).unwrap();
    found.sync().unwrap();
    assert_eq!(found.get().generation, meta.generation);
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
