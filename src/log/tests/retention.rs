//! Deleting the oldest segments: what goes, in which order, and what reopening makes of it.

use super::*;
use crate::disk::{Fault, Op};
use crate::error::Result;
use crate::log::retention::Retained;
use crate::options::Retention;

/// Five complete segments, and the records of each.
fn log() -> (Bed, Rig, Vec<Record>) {
    let bed = Bed::new(2, 2, false);
    let rig = bed.open();
    let mut model = Vec::new();
    fill_to(&bed, &rig, &mut model, 5, 5_000);
    (bed, rig, model)
}

fn retainer(rig: &Rig, policy: Retention) -> Retainer {
    let (files, segments) = (Arc::clone(&rig.files), Arc::clone(&rig.segments));
    Retainer::new(policy, rig.log.geometry, files, segments)
}

/// As the housekeeper does it.
fn run(retainer: &Retainer, wall_nanos: u64, barrier: Option<Lsn>) -> Result<Retained> {
    retainer.delete()?;
    let retained = retainer.release(wall_nanos, barrier);
    retainer.delete().map(|()| retained)
}

fn last_lsn(rig: &Rig, number: u64) -> u64 {
    rig.segments.catalogue().oldest(9).iter().find(|s| s.number == number).unwrap().last_lsn
}

#[test]
fn the_oldest_segments_go_and_stay_gone() {
    let (bed, rig, model) = log();
    let cut = last_lsn(&rig, 2);
    let keep = Retention::bytes(3 * bed.options.segment_bytes);
    let retained = run(&retainer(&rig, keep), 0, None).unwrap();
    assert_eq!((retained.deleted_segments, retained.yielded_to), (3, None));
    assert_eq!(run(&retainer(&rig, keep), 0, None).unwrap().deleted_segments, 0);
    assert_eq!(rig.segments.catalogue().first_lsn().get(), cut + 1);
    let lost = rig.segments.catalogue().locate_lsn(Lsn::new(cut)).unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::PositionLost);
    let left = &model[cut as usize..];
    for tier in TIERS {
        assert!(rig.read(tier) == left);
    }
    rig.kill();
    assert_eq!(bed.listing()[0], 3);
    let mut left = left.to_vec();
    for _ in 0..2 {
        let rig = bed.open();
        assert_eq!(rig.recovery.first_lsn.get(), cut + 1);
        assert_eq!(rig.recovery.records, left.len() as u64);
        assert!(rig.read(Tier::Mapped) == left);
        let lsn = rig.writer().append(1, 2, b"on").unwrap();
        left.push((1, 2, b"on".to_vec()));
        assert_eq!(lsn.get(), cut + left.len() as u64);
        rig.kill();
    }
}

#[test]
fn everything_sealed_may_go() {
    let (bed, rig, model) = log();
    let all = Retention::consumed();
    let retained = run(&retainer(&rig, all), 0, Some(Lsn::new(model.len() as u64))).unwrap();
    assert_eq!(retained.deleted_segments, 5);
    let first = rig.segments.catalogue().first_lsn().get();
    rig.kill();
    for _ in 0..2 {
        let rig = bed.open();
        assert!(rig.read(Tier::Hot) == model[first as usize - 1..]);
        rig.kill();
    }
}

#[test]
fn a_checkpoint_is_a_barrier_up_to_the_hard_cap() {
    let (bed, rig, _) = log();
    let segment = bed.options.segment_bytes;
    let barrier = Some(Lsn::new(last_lsn(&rig, 1)));
    let soft = Retention::bytes(2 * segment);
    assert_eq!(run(&retainer(&rig, soft), 0, barrier).unwrap().deleted_segments, 2);
    let yielded = last_lsn(&rig, 3);
    let segments = rig.segments.catalogue().segments() as u64;
    let hard = soft.hard_cap_bytes((segments - 2) * segment);
    let retained = run(&retainer(&rig, hard), 0, barrier).unwrap();
    assert_eq!(retained.deleted_segments, 2);
    assert_eq!(retained.yielded_to, Some(Lsn::new(yielded)));
}

#[test]
fn age_counts_from_the_last_record_of_a_segment() {
    let (_bed, rig, _) = log();
    let catalogue = rig.segments.catalogue();
    let second = catalogue.oldest(2)[1].last_time_nanos;
    let policy = Retention::age(Duration::from_secs(1));
    let run = |wall| run(&retainer(&rig, policy), wall, None).unwrap().deleted_segments;
    assert_eq!(run(second), 0);
    assert_eq!(run(second + 1_000_000_000), 1);
    assert_eq!(run(second + 1_000_000_001), 1);
}

/// `log_start` is durable before a file goes; a crash in between is finished by the next opening.
#[test]
fn a_failed_deletion_is_finished_by_the_next_opening() {
    let (bed, rig, model) = log();
    let cut = last_lsn(&rig, 1) as usize;
    let keep = Retention::consumed();
    bed.faults.inject(Fault::errno(Op::Remove, libc::EIO).forever());
    let error = run(&retainer(&rig, keep), 0, Some(Lsn::new(cut as u64))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    bed.faults.clear();
    assert!(rig.read(Tier::Mapped) == model[cut..]);
    rig.kill();
    assert_eq!(bed.listing()[0], 0);
    let rig = bed.open();
    assert_eq!(bed.listing()[0], 2);
    assert!(rig.read(Tier::Mapped) == model[cut..]);
}

#[test]
fn nothing_goes_if_its_loss_cannot_be_noted() {
    for op in [Op::Write, Op::Sync] {
        let (bed, rig, model) = log();
        let retainer = retainer(&rig, Retention::consumed());
        bed.faults.inject(Fault::errno(op, libc::EIO).on("meta").forever());
        let all = Some(Lsn::new(model.len() as u64));
        for _ in 0..2 {
            assert!(run(&retainer, 0, all).is_err());
            assert_eq!(bed.listing()[0], 0);
            let (log_start, first) = rig.segments.catalogue().start();
            assert!(log_start > 0 && first > Lsn::FIRST, "but nobody is sent there");
        }
        bed.faults.clear();
        if op == Op::Sync {
            run(&retainer, 0, all).unwrap();
            assert!(bed.listing()[0] > 0, "it is tried again");
            assert!(rig.segments.catalogue().leaving().is_empty());
        } else {
            drop(retainer);
            rig.kill();
            assert!(bed.open().read(Tier::Mapped) == model);
        }
    }
}

#[test]
fn a_missing_first_segment_is_told_from_a_deleted_one() {
    let (bed, rig, _) = log();
    run(&retainer(&rig, Retention::bytes(3 * bed.options.segment_bytes)), 0, None).unwrap();
    rig.kill();
    let first = bed.listing()[0];
    std::fs::remove_file(bed.segment(first)).unwrap();
    assert_eq!(bed.refuses(ErrorKind::MissingSegment).segment(), Some(first));
}

#[test]
fn time_is_sought_past_segments_without_records() {
    let (bed, rig, mut model) = log();
    rig.kill();
    // Segments 5 and 6 come to hold nothing but a torn block each.
    for number in 5..7 {
        let file = bed.segment_bytes(number);
        bed.patch(number, PAGE, &vec![0; file.len() - PAGE]);
        bed.patch(number, PAGE + 512, &[1; 512]);
        let rig = bed.open();
        model.truncate(rig.recovery.records as usize);
        rig.kill();
    }
    let rig = bed.open();
    fill_to(&bed, &rig, &mut model, 9, 5_000);
    let catalogue = rig.segments.catalogue();
    for sealed in catalogue.oldest(20) {
        let Located::Sealed(found) = catalogue.locate_time(sealed.last_time_nanos) else {
            panic!("it is sealed")
        };
        let empty = sealed.last_lsn < sealed.first_lsn;
        assert!(empty || found.number == sealed.number);
    }
}
