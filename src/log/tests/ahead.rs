//! The cold tier reads the next slab while one is delivered: by right, once, and never for ever.

use super::*;
use crate::disk::{Fault, Op};
use crate::format::BlockHeader;
use crate::source::{Buffered, Held, Supply, Want};

/// The next slab was read when the one before had been delivered, and the disk stood still.
#[test]
fn two_reads_are_under_way_while_one_is_waited_for() {
    let (bed, rig, model) = sealed();
    let replay = rig.replay();
    let mut cold = replay.cold(&replay.catalogue.find(0).unwrap()).unwrap();
    let geometry = rig.log.geometry;
    let before = bed.faults.calls(Op::Read);
    ready(&mut cold, geometry.first_block(0));
    until("the second slab is read", || bed.faults.calls(Op::Read) == before + 2);
    let hold = bed.faults.hold(Op::Read);
    ready(&mut cold, geometry.first_block(1));
    assert!(hold.wait_for(1), "the third slab's read is under way while the second is there");
    let reader = std::thread::spawn(move || {
        ready(&mut cold, geometry.first_block(2));
        cold
    });
    assert!(hold.wait_for(2), "and while it is waited for, the fourth one's");
    drop(hold);
    drop(reader.join().unwrap());

    let before = bed.faults.calls(Op::Read);
    assert_is_first_segment(&replay, &model, &read_first_segment(&rig, &replay).unwrap());
    assert_eq!(bed.faults.calls(Op::Read) - before, SLABS, "each slab is read once");
    rig.kill();
}

#[test]
fn what_goes_wrong_ahead_is_said_when_the_consumer_comes_there() {
    let (bed, rig, _) = sealed();
    let replay = rig.replay();
    let geometry = rig.log.geometry;
    for (fault, kind) in [
        (Fault::errno(Op::Read, libc::EIO), ErrorKind::Io),
        (Fault::short(Op::Read, 0), ErrorKind::Corrupt),
    ] {
        let mut cold = replay.cold(&replay.catalogue.find(0).unwrap()).unwrap();
        let before = bed.faults.calls(Op::Read);
        bed.faults.inject(fault.nth(2));
        ready(&mut cold, geometry.first_block(0));
        until("it struck", || bed.faults.calls(Op::Read) == before + 2);
        let error = cold.fetch(geometry.first_block(1), false).err().unwrap();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!((error.segment(), error.offset()), (Some(0), Some(SLAB)), "{error}");
        ready(&mut cold, geometry.first_block(1));
        let first = BlockHeader::read(cold.window().bytes).unwrap();
        assert_eq!(first.position, geometry.first_block(1));
    }
    rig.kill();
}

/// Whoever else needs disk, permit, budget or memory has it first.
#[test]
fn nothing_is_read_ahead_where_others_may_need_what_it_takes() {
    let (bed, rig, _) = sealed();
    let replay = rig.replay();
    let first = rig.log.geometry.first_block(0);
    let reads = |replay: &Replay| {
        let before = bed.faults.calls(Op::Read);
        let mut cold = replay.cold(&replay.catalogue.find(0).unwrap()).unwrap();
        ready(&mut cold, first);
        // Waits for what is under way.
        drop(cold);
        bed.faults.calls(Op::Read) - before
    };
    assert_eq!(reads(&replay), 2);

    bed.faults.set_calls_at_once(1);
    assert_eq!(reads(&replay), 1, "the disk takes one call at a time");
    bed.faults.set_calls_at_once(2);
    let other = replay.cold.permit();
    assert_eq!(reads(&replay), 1, "the last permit is for another replay");
    drop(other);
    let others: Vec<_> = (0..limits::COLD_AHEAD_MAX).map(|_| replay.cold.second()).collect();
    assert_eq!(reads(&replay), 1, "second buffers are counted");
    drop(others);
    let still = Clock::Manual(Arc::default());
    let paced = replay_of(&rig, Cold::new(still.clone(), 2, Some(10), rig.log.block_bytes_max));
    assert_eq!(reads(&paced), 1, "the budget is spent");
    let shared = replay_of(&rig, Cold::new(still, 2, None, rig.log.block_bytes_max));
    assert_eq!(reads(&shared), 2);
    shared.catalogue.durable_writes.during(1, || ());
    assert_eq!(reads(&shared), 1, "commits share the disk");

    rig.kill();
}

/// A callback that hangs keeps its buffers and no permit.
#[test]
fn a_permit_comes_back_when_the_read_is_over() {
    let (_bed, rig, _) = sealed();
    let replay = rig.replay();
    let mut cold = replay.cold(&replay.catalogue.find(0).unwrap()).unwrap();
    ready(&mut cold, rig.log.geometry.first_block(0));
    until("both permits are there", || {
        [replay.cold.permit(), replay.cold.permit()].iter().all(Option::is_some)
    });
    drop(cold);
    rig.kill();
}

/// A read ends within a block: the rest is read behind it, and said to be missing from there.
#[test]
fn a_block_is_read_on_behind_what_is_there_of_it() {
    let (bed, rig, model) = large_slabs(16 * SLAB);
    let replay = rig.replay();
    assert_is_first_segment(&replay, &model, &read_first_segment(&rig, &replay).unwrap());
    bed.faults.inject(Fault::short(Op::Read, 0).nth(2));
    let error = read_first_segment(&rig, &replay).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let first = rig.log.geometry.first_block(0);
    // The system may have given less than it was asked for.
    let read = error.offset().unwrap() - first;
    assert!(
        error.segment() == Some(0) && (1..=limits::FIRST_READ_BYTES).contains(&read),
        "{error}"
    );
    rig.kill();
}

/// What was read ahead of a slab that is larger than a buffer was thrown away and read again.
#[test]
fn slabs_larger_than_a_buffer_are_read_once() {
    let (bed, rig, model) = large_slabs(32 * SLAB);
    bed.faults.set_calls_at_once(2);
    let replay = rig.replay();
    let before = bed.faults.calls(Op::Read);
    assert_is_first_segment(&replay, &model, &read_first_segment(&rig, &replay).unwrap());
    // The first slab: 256 and 512 KiB, 1 MiB, the rest. The second: 1 MiB ahead, then the rest.
    assert_eq!(bed.faults.calls(Op::Read) - before, 6);
    rig.kill();
}

/// Every segment was begun with small reads, as if somebody waited for its first record.
#[test]
fn who_goes_on_to_the_next_segment_reads_at_full_length() {
    let (bed, rig, _) = large_slabs(16 * SLAB);
    let geometry = rig.log.geometry;
    let replay = replay_of(&rig, Cold::new(bed.clock.clone(), 2, None, rig.log.block_bytes_max));
    let supply = Supply { ring: &rig.log.ring, geometry, replay: Some(&replay) };
    let seen = rig.log.ring.committed.load();
    for want in [Want::CatchUp, Want::Cold] {
        let bring = |held: &mut Held, slab| {
            let mut cursor = Cursor::at(geometry.first_block(slab), Lsn::new(1));
            held.bring(supply, want, &mut cursor, seen, false).unwrap();
            held.window(&geometry).bytes.len() as u64
        };
        let mut held = Held::default();
        let first = bring(&mut held, 2);
        assert!(first <= limits::FIRST_READ_BYTES, "{want:?}: {first}");
        let mut held = Held::default();
        bring(&mut held, 0);
        let next = bring(&mut held, 2);
        assert!(next > limits::FIRST_READ_BYTES, "{want:?}: {next}");
    }
    rig.kill();
}

/// A log with sealed segments of two slabs, each more than one read at first.
fn large_slabs(slab_bytes: u64) -> (Bed, Rig, Vec<Record>) {
    let mut bed = Bed::new(2 * slab_bytes / SLAB, 2, false);
    bed.options.slab_bytes = slab_bytes;
    bed.options.pin_budget_bytes = 4 * slab_bytes;
    filled(bed)
}

const SLABS: u64 = 4;

/// With a cold tier of one's own, and pieces beyond the first read.
fn replay_of(rig: &Rig, cold: Cold) -> Replay {
    let catalogue = Arc::clone(rig.segments.catalogue());
    let mode = (ReadMode::Map, 64 * SLAB);
    Replay::new(catalogue, Arc::clone(rig.segments.disk()), rig.log.geometry, mode, cold)
}

/// A log with sealed segments, on a disk that has several calls under way at once.
fn sealed() -> (Bed, Rig, Vec<Record>) {
    let log = filled(Bed::new(SLABS, 2, false));
    log.0.faults.set_calls_at_once(2);
    log
}

/// No small commits, which would have the disk for a while.
fn filled(bed: Bed) -> (Bed, Rig, Vec<Record>) {
    let (rig, mut model) = (bed.open(), Vec::new());
    fill_to(&bed, &rig, &mut model, 3, 20_000);
    (bed, rig, model)
}

/// In the cold tier.
fn read_first_segment(rig: &Rig, replay: &Replay) -> Result<Vec<Record>> {
    let geometry = rig.log.geometry;
    let (mut records, mut cursor) = (vec![], Cursor::at(geometry.first_block(0), Lsn::new(1)));
    let mut cold = CatchUp::Buffered(Box::new(replay.cold(&replay.catalogue.find(0).unwrap())?));
    read_sealed(&mut cold, &mut cursor, geometry, &mut records).map(|()| records)
}

#[track_caller]
fn assert_is_first_segment(replay: &Replay, model: &[Record], records: &[Record]) {
    assert_eq!(records.len() as u64, replay.catalogue.find(0).unwrap().last_lsn);
    assert!(*records == model[..records.len()]);
}

fn ready(cold: &mut Buffered, position: u64) {
    assert!(matches!(cold.fetch(position, false).unwrap(), Fetch::Ready));
}

#[track_caller]
fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}
