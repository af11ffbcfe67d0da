//! Slabs and segments ahead of the writer: a full disk, a slow one, a ring that must wait.

use super::*;
use crate::disk::{Fault, Op};

/// Commits until there is no room; no LSN is used by what was refused.
fn until_full(rig: &Rig, model: &mut Vec<Record>) {
    let mut rng = Rng(model.len() as u64);
    loop {
        let record = rng.record(5_000);
        match rig.writer().append(record.0, record.1, &record.2) {
            Ok(lsn) => assert_eq!(lsn.get(), model.len() as u64 + 1),
            Err(error) => return assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}"),
        }
        model.push(record);
    }
}

#[test]
fn a_full_disk_is_said_at_once_and_the_log_goes_on_when_there_is_room() {
    for threads in [false, true] {
        for op in [Op::Allocate, Op::Create] {
            let bed = Bed::new(2, 2, threads);
            let rig = bed.open();
            let mut model = Vec::new();
            bed.faults.inject(Fault::errno(op, libc::ENOSPC).on(".tmp").forever());
            until_full(&rig, &mut model);
            let begun = std::time::Instant::now();
            until_full(&rig, &mut model);
            assert!(begun.elapsed() < Duration::from_secs(2));
            // The half-made file is gone: it would take the room that is missing.
            assert!(bed.files().keys().all(|name| !name.ends_with(".tmp")));
            bed.faults.clear();
            while let Err(error) = rig.writer().append(9, 9, b"there is room") {
                assert_eq!(error.kind(), ErrorKind::StorageFull);
                // Without threads, nobody tries again by himself.
                if threads { std::thread::yield_now() } else { rig.log.drive().unwrap() }
            }
            model.push((9, 9, b"there is room".to_vec()));
            fill_to(&bed, &rig, &mut model, 4, 5_000);
            assert!(rig.read(Tier::Hot) == model);
            rig.kill();
            assert!(bed.open().read(Tier::Mapped) == model);
        }
    }
}

/// Nothing leaves the ring before it is sealed, however slow sealing is.
#[test]
fn trap_08_a_slab_stays_until_its_segment_is_sealed() {
    let mut bed = Bed::new(2, 2, true);
    bed.options.append_timeout = Duration::from_millis(300);
    let rig = bed.open();
    let mut model = Vec::new();
    rig.writer().append(1, 1, b"x").unwrap();
    model.push((1, 1, b"x".to_vec()));
    // All segments are prepared; then syncs (footers among them) stand still.
    while !rig.segments.is_prepared(2) {
        std::thread::yield_now();
    }
    let hold = bed.faults.hold(Op::Sync);
    let mut rng = Rng(3);
    let busy = loop {
        let record = rng.record(9_000);
        match rig.writer().append(record.0, record.1, &record.2) {
            Ok(_) => model.push(record),
            Err(error) => break error,
        }
        assert!(rig.read(Tier::Hot) == model);
    };
    assert_eq!(busy.kind(), ErrorKind::Busy);
    assert!(rig.log.ring.contains(0), "not sealed, so not evicted");
    drop(hold);
    rig.settle();
    commit(&rig.writer(), &mut model, rng.record(9_000));
    assert!(rig.read(Tier::Hot) == model);
}

/// The order on disk: a segment is durable before its slabs open, the old one ends with ROLLED
/// before the new one is written, and is sealed only then.
#[test]
fn rolling_keeps_its_order() {
    use crate::format::BlockHeader;
    let bed = Bed::new(2, 2, true);
    let rig = bed.open();
    let mut model = Vec::new();
    fill_to(&bed, &rig, &mut model, 5, 7_000);
    let geometry = bed.geometry();
    let mut previous: Option<BlockHeader> = None;
    for number in 0..5 {
        let file = bed.segment_bytes(number);
        let at = geometry.segment_offset(geometry.rolled_block(number)) as usize;
        let rolled = BlockHeader::read(&file[at..]).expect("a rolling block");
        assert!(rolled.is_rolled() && rolled.records == 0);
        let first = BlockHeader::read(&file[PAGE..]).expect("a first block");
        if let Some(previous) = previous {
            assert_eq!((first.prev_crc, first.first_lsn), (previous.crc, previous.first_lsn));
            assert!(first.watermark <= geometry.segment_start(number));
        }
        previous = Some(rolled);
        assert!(std::fs::metadata(bed.segment(number)).unwrap().permissions().readonly());
    }
}

#[test]
fn segments_are_kept_ready_ahead() {
    let bed = Bed::new(2, 2, true);
    let rig = bed.open();
    let mut model = Vec::new();
    fill_to(&bed, &rig, &mut model, 2, 7_000);
    let begun = std::time::Instant::now();
    while !(rig.segments.is_prepared(3) && rig.segments.is_prepared(4)) {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::yield_now();
    }
}

/// A producer that is refused because the bus closes does not wait for its timeout.
#[test]
fn closing_ends_a_wait_for_room() {
    let bed = Bed::new(2, 2, true);
    let rig = bed.open();
    let hold = bed.faults.hold(Op::Sync);
    let log = Arc::clone(&rig.log);
    let begun = std::time::Instant::now();
    let producer = std::thread::spawn(move || {
        let writer = Writer::new(log);
        let mut rng = Rng(1);
        loop {
            if let Err(error) = writer.append(1, 1, &rng.record(9_000).2) {
                return error.kind();
            }
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    rig.log.refuse(Error::new(ErrorKind::Closed, "closed"));
    assert_eq!(producer.join().unwrap(), ErrorKind::Closed);
    assert!(begun.elapsed() < Duration::from_secs(4));
    drop(hold);
}
