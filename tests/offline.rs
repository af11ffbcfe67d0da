//! Damage of every kind on small logs: it is found, a dry run changes nothing, and a repair leaves
//! a log that opens with exactly what was good before the damage.

mod small_logs;

use std::fs;
use std::path::Path;

use eventplane::offline::{LogDir, Repair, Report, SegmentState};
use eventplane::{Error, ErrorKind, Lsn};
use proptest::prelude::*;
use small_logs::{PAGE, SEGMENT_BYTES, Sample, flip, images, overwrite, read_all, segment_file};

fn verify(dir: &Path) -> Report {
    LogDir::open(dir).unwrap().verify().unwrap()
}

fn kinds(findings: &[Error]) -> Vec<ErrorKind> {
    findings.iter().map(Error::kind).collect()
}

/// Plans, checks that planning changed nothing, repairs, checks the log afterwards.
/// `good`: how many records are kept, from the first.
fn repair_to(sample: &Sample, good: u64) -> Repair {
    let before = images(&sample.dir);
    let plan = LogDir::open(&sample.dir).unwrap().plan_repair().unwrap();
    assert_eq!(images(&sample.dir), before, "a dry run changed something");
    assert!(plan.is_needed(), "{plan:?}");
    let done = LogDir::open(&sample.dir).unwrap().repair().unwrap();
    assert_eq!(
        format!("{plan:?}"),
        format!("{done:?}"),
        "the plan is not what was done"
    );
    assert_nothing_deleted(sample, &before);
    let report = verify(&sample.dir);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let again = images(&sample.dir);
    assert!(!LogDir::open(&sample.dir).unwrap().repair().unwrap().is_needed());
    assert_eq!(images(&sample.dir), again, "the second repair changed something");
    assert_eq!(
        read_all(&sample.dir),
        sample.records[..good as usize],
        "not the good prefix"
    );
    done
}

/// Every file that was there is there still, as it was, or is in `cut/`; `meta` apart.
fn assert_nothing_deleted(sample: &Sample, before: &[(String, Vec<u8>)]) {
    let after = images(&sample.dir);
    for (name, image) in before.iter().filter(|(name, _)| name != "meta") {
        assert!(after.iter().any(|(_, other)| other == image), "{name} is gone");
    }
}

#[test]
fn a_log_that_was_closed_has_no_findings() {
    let sample = Sample::new(41);
    let report = verify(&sample.dir);
    assert!(
        report.findings.is_empty() && report.notes.is_empty(),
        "{report:?}"
    );
    assert_eq!(report.records, 41);
    let log = LogDir::open(&sample.dir).unwrap();
    let info = log.info().unwrap();
    assert_eq!(
        (info.first_lsn, info.last_lsn, info.records),
        (Lsn::new(1), Lsn::new(41), 41)
    );
    assert!(info.clean, "{info:?}");
    let (segments, findings) = log.segments().unwrap();
    assert!(findings.is_empty());
    assert!(segments.len() > 4, "the sample should have several segments");
    assert_eq!(segments.iter().map(|s| s.records).sum::<u64>(), 41);
    let states: Vec<_> = segments.iter().map(|s| s.state).collect();
    assert_eq!(states[0], SegmentState::Sealed);
    assert_eq!(states.iter().filter(|&&s| s == SegmentState::Open).count(), 1);
    assert!(!log.plan_repair().unwrap().is_needed());
    drop(log);
    assert_eq!(sample.dumped(1, u64::MAX), sample.records);
    assert_eq!(sample.dumped(7, 9), sample.records[6..9]);
}

#[test]
fn a_missing_middle_segment_cuts_what_follows() {
    let sample = Sample::new(40);
    let (first, last) = sample.lsns_of(2);
    fs::remove_file(segment_file(&sample.dir, 2)).unwrap();
    let report = verify(&sample.dir);
    assert_eq!(kinds(&report.findings), [ErrorKind::MissingSegment]);
    assert_eq!(report.findings[0].lsns(), Some((Lsn::new(first), Lsn::new(last))));
    let repair = repair_to(&sample, first - 1);
    let lost = repair.lost_end.unwrap();
    assert_eq!((lost.from, lost.to), (Lsn::new(first), Some(Lsn::new(40))));
    assert_eq!(lost.records(), Some(41 - first));
    assert_eq!(repair.generation, 1);
    assert!(
        sample
            .dir
            .join("cut")
            .join(segment_file(&sample.dir, 3).file_name().unwrap())
            .exists()
    );
}

#[test]
fn a_missing_first_segment_moves_the_start() {
    let sample = Sample::new(40);
    let (_, last) = sample.lsns_of(0);
    fs::remove_file(segment_file(&sample.dir, 0)).unwrap();
    assert_eq!(kinds(&verify(&sample.dir).findings), [ErrorKind::MissingSegment]);
    let done = LogDir::open(&sample.dir).unwrap().repair().unwrap();
    let lost = done.lost_start.unwrap();
    assert_eq!((lost.from, lost.to), (Lsn::new(1), Some(Lsn::new(last))));
    assert_eq!((done.lost_end, done.generation), (None, 0));
    assert!(verify(&sample.dir).findings.is_empty());
    assert_eq!(read_all(&sample.dir), sample.records[last as usize..]);
}

/// With the first segments missing, the next one says where the log begins: never by the header of
/// a block that is damaged, which may name any LSN.
#[test]
fn a_damaged_block_does_not_say_where_the_log_begins() {
    for newest in [false, true] {
        let sample = Sample::new(40);
        let left = if newest { sample.open_segment() } else { 1 };
        let (first, _) = sample.lsns_of(left);
        for number in 0..left {
            fs::remove_file(segment_file(&sample.dir, number)).unwrap();
        }
        let far = (1_u64 << 60).to_le_bytes();
        overwrite(&segment_file(&sample.dir, left), PAGE + 32, &far);
        let mut log = LogDir::open(&sample.dir).unwrap();
        let report = log.verify().unwrap();
        assert_eq!(report.records, 0, "{report:?}");
        assert_eq!(log.info().unwrap().records, if newest { 0 } else { 41 - first });
        let done = log.repair().unwrap();
        // The newest has no footer that would know.
        assert_eq!(
            done.first_lsn,
            Lsn::new(if newest { 1 } else { first }),
            "{done:?}"
        );
        assert_eq!(done.generation, 1);
        assert!(log.verify().unwrap().findings.is_empty());
        drop(log);
        assert_eq!(read_all(&sample.dir), []);
    }
}

#[test]
fn a_missing_newest_segment_is_found() {
    let sample = Sample::new(40);
    let open = sample.open_segment();
    let (first, _) = sample.lsns_of(open);
    for number in open.. {
        if fs::remove_file(segment_file(&sample.dir, number)).is_err() {
            break;
        }
    }
    assert_eq!(kinds(&verify(&sample.dir).findings), [ErrorKind::MissingSegment]);
    let lost = repair_to(&sample, first - 1).lost_end.unwrap();
    assert_eq!(
        (lost.from, lost.to),
        (Lsn::new(first), None),
        "nobody knows how many there were"
    );
}

#[test]
fn without_any_segment_the_log_begins_anew() {
    let sample = Sample::new(40);
    for number in 0.. {
        if fs::remove_file(segment_file(&sample.dir, number)).is_err() {
            break;
        }
    }
    repair_to(&sample, 0);
}

#[test]
fn truncated_and_emptied_segments_are_cut_whole() {
    for len in [0, 100, PAGE * 3, SEGMENT_BYTES - 1, SEGMENT_BYTES + 1] {
        let sample = Sample::new(40);
        let (first, _) = sample.lsns_of(1);
        let path = segment_file(&sample.dir, 1);
        small_logs::make_writable(&path);
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(len)
            .unwrap();
        assert_eq!(
            kinds(&verify(&sample.dir).findings),
            [ErrorKind::Corrupt],
            "{len}"
        );
        repair_to(&sample, first - 1);
    }
}

#[test]
fn a_segment_of_another_log_is_told_from_damage() {
    let (sample, other) = (Sample::new(40), Sample::new(40));
    let (first, _) = sample.lsns_of(1);
    let path = segment_file(&sample.dir, 1);
    fs::remove_file(&path).unwrap();
    fs::copy(segment_file(&other.dir, 1), &path).unwrap();
    assert_eq!(kinds(&verify(&sample.dir).findings), [ErrorKind::ForeignSegment]);
    repair_to(&sample, first - 1);
}

#[test]
fn a_newer_segment_is_never_cut() {
    let sample = Sample::new(40);
    overwrite(&segment_file(&sample.dir, 1), 8, &[2]);
    assert_eq!(kinds(&verify(&sample.dir).findings), [ErrorKind::Unsupported]);
    let before = images(&sample.dir);
    let error = LogDir::open(&sample.dir).unwrap().repair().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(images(&sample.dir), before);
}

#[test]
fn a_damaged_footer_costs_no_record() {
    for number in [0, 1, 2] {
        let sample = Sample::new(40);
        flip(&segment_file(&sample.dir, number), SEGMENT_BYTES - PAGE + 70, 3);
        let report = verify(&sample.dir);
        assert_eq!(kinds(&report.findings), [ErrorKind::Corrupt]);
        assert_eq!(report.findings[0].segment(), Some(number));
        assert_eq!(report.records, 40);
        let repair = repair_to(&sample, 40);
        assert_eq!(
            (repair.lost_end, repair.lost_start, repair.generation),
            (None, None, 0)
        );
    }
}

#[test]
fn a_damaged_closing_block_costs_no_record() {
    let sample = Sample::new(40);
    flip(&segment_file(&sample.dir, 1), SEGMENT_BYTES - 2 * PAGE + 33, 3);
    let report = verify(&sample.dir);
    assert_eq!(
        (kinds(&report.findings), report.records),
        (vec![ErrorKind::Corrupt], 40)
    );
    assert_eq!(repair_to(&sample, 40).lost_end, None);
}

/// Recovery stops at such bytes, since a block may be due there; the block behind says otherwise.
#[test]
fn bytes_in_a_gap_cost_no_record() {
    let sample = Sample::new(40);
    let blocks = sample.blocks();
    let early_ends: Vec<_> = blocks
        .windows(2)
        .filter(|pair| pair[0].segment == pair[1].segment && pair[0].end < pair[1].offset)
        .map(|pair| (pair[0].segment, pair[0].end))
        .collect();
    assert!(
        early_ends.len() > 2,
        "the sample should have slabs that end early"
    );
    for (segment, end) in early_ends {
        let sample = Sample::new(40);
        flip(&segment_file(&sample.dir, segment), end + 5, 2);
        let report = verify(&sample.dir);
        assert_eq!(
            (kinds(&report.findings), report.records),
            (vec![ErrorKind::Corrupt], 40)
        );
        let found = report.findings[0].offset().unwrap();
        assert!((end..end + PAGE).contains(&found), "{:?}", report.findings);
        assert_eq!(repair_to(&sample, 40).lost_end, None);
    }
}

#[test]
fn bytes_in_a_prepared_segment_are_set_aside() {
    for offset in [PAGE, SEGMENT_BYTES / 2 + 77] {
        let sample = Sample::unclosed(40);
        let prepared = sample.open_segment() + 1;
        flip(&segment_file(&sample.dir, prepared), offset, 2);
        let report = verify(&sample.dir);
        assert_eq!(
            (kinds(&report.findings), report.records),
            (vec![ErrorKind::Corrupt], 40)
        );
        let repair = repair_to(&sample, 40);
        assert_eq!((repair.lost_end, repair.generation), (None, 0));
    }
}

#[test]
fn a_log_whose_start_was_deleted_is_whole() {
    let sample = Sample::retained(40);
    let log = LogDir::open(&sample.dir).unwrap();
    let info = log.info().unwrap();
    assert!(info.first_lsn > Lsn::new(1), "nothing was deleted");
    drop(log);
    let report = verify(&sample.dir);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let kept = &sample.records[info.first_lsn.get() as usize - 1..];
    assert_eq!(report.records, kept.len() as u64);
    assert_eq!(sample.dumped(1, u64::MAX), kept);
    // A lost header of the first segment kept, now: nothing is left, and the LSNs go on.
    let (segments, _) = LogDir::open(&sample.dir).unwrap().segments().unwrap();
    flip(&segments[0].path, 40, 0);
    let done = LogDir::open(&sample.dir).unwrap().repair().unwrap();
    let lost = done.lost_end.unwrap();
    assert_eq!((lost.from, lost.to), (info.first_lsn, Some(Lsn::new(40))));
    assert_eq!(read_all(&sample.dir), []);
    assert_eq!(sample.append_from(info.first_lsn.get(), 2).len(), 2);
}

#[test]
fn a_damaged_slot_of_meta_is_found_and_written_anew() {
    for slot in [0, 1] {
        for at in [0, 9, 35, 90, 4000] {
            let sample = Sample::new(10);
            flip(&sample.dir.join("meta"), slot * PAGE + at, 0);
            let report = verify(&sample.dir);
            assert_eq!(
                kinds(&report.findings),
                [ErrorKind::Corrupt],
                "slot {slot} byte {at}"
            );
            repair_to(&sample, 10);
        }
    }
}

#[test]
fn a_torn_tail_is_no_finding() {
    let sample = Sample::unclosed(40);
    let (offset, _) = sample.last_block();
    let path = segment_file(&sample.dir, sample.open_segment());
    // The header's sector arrived, the third did not.
    let image = fs::read(&path).unwrap();
    let sectors = &image[offset as usize + 1024..offset as usize + 1536];
    assert!(sectors.iter().any(|&byte| byte != 0));
    overwrite(&path, offset + 1024, &[0; 512]);
    let report = verify(&sample.dir);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let torn = report.notes.iter().filter(|note| note.contains("torn write"));
    assert_eq!((torn.count(), report.records), (1, 39));
    let log = LogDir::open(&sample.dir).unwrap();
    let info = log.info().unwrap();
    assert!(!info.clean && info.torn_bytes > 0 && info.findings.is_empty());
    assert!(!log.plan_repair().unwrap().is_needed());
    drop(log);
    // What opening makes of it is sound as well.
    assert_eq!(read_all(&sample.dir), sample.records[..39]);
    assert!(verify(&sample.dir).findings.is_empty());
    let (segments, _) = LogDir::open(&sample.dir).unwrap().segments().unwrap();
    assert!(
        segments
            .iter()
            .any(|segment| segment.state == SegmentState::Torn)
    );
}

/// The same bytes, but a watermark block behind them says that they were durable.
#[test]
fn what_looks_torn_but_was_acknowledged_is_damage() {
    let sample = Sample::shared();
    let (offset, _) = sample.last_block();
    let open = sample.open_segment();
    overwrite(&segment_file(&sample.dir, open), offset + 1024, &[0; 512]);
    // With no segment prepared behind it, that one was told to be missing as well.
    for number in open + 1.. {
        if fs::remove_file(segment_file(&sample.dir, number)).is_err() {
            break;
        }
    }
    let report = verify(&sample.dir);
    assert_eq!(kinds(&report.findings), [ErrorKind::Corrupt]);
    let place = (report.findings[0].segment(), report.findings[0].offset());
    assert_eq!(place, (Some(open), Some(offset)));
    repair_to(&sample, 40);
}

/// Restored from a backup of another life of the same log.
#[test]
fn a_segment_that_does_not_continue_the_one_before_it_is_cut() {
    let (sample, other) = (Sample::new(10), Sample::empty());
    small_logs::copy_tree(&sample.dir, &other.dir);
    let records = sample.append_more(30);
    other.append_more(30);
    let sample = sample.holding(records);
    let swapped = sample.open_segment() - 1;
    let (first, last) = sample.lsns_of(swapped);
    assert!(first > 10 && last < 40);
    let path = segment_file(&sample.dir, swapped);
    fs::remove_file(&path).unwrap();
    fs::copy(segment_file(&other.dir, swapped), &path).unwrap();
    let report = verify(&sample.dir);
    assert_eq!(report.findings[0].kind(), ErrorKind::Corrupt);
    let place = (report.findings[0].segment(), report.findings[0].offset());
    assert_eq!(place, (Some(swapped), Some(PAGE)));
    repair_to(&sample, first - 1);
}

/// Several blocks were in flight, the first was torn, one behind it arrived: nobody saw either.
#[test]
fn a_whole_block_behind_a_torn_one_is_no_finding() {
    let sample = Sample::in_flight();
    assert_eq!(verify(&sample.dir).records, 2, "the sample is not sound");
    overwrite(
        &segment_file(&sample.dir, 0),
        sample.blocks()[0].offset + 1024,
        &[0; 512],
    );
    let check = || {
        let report = verify(&sample.dir);
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!(report.records, 0);
    };
    check();
    assert_eq!(read_all(&sample.dir), []);
    check();
    let (segments, _) = LogDir::open(&sample.dir).unwrap().segments().unwrap();
    assert_eq!(segments[0].state, SegmentState::Torn);
}

#[test]
fn a_damaged_footer_over_a_torn_tail_costs_no_record() {
    let sample = Sample::unclosed(40);
    let (offset, _) = sample.last_block();
    let open = sample.open_segment();
    overwrite(&segment_file(&sample.dir, open), offset + 1024, &[0; 512]);
    let records = sample.append_more(5);
    flip(&segment_file(&sample.dir, open), SEGMENT_BYTES - PAGE + 70, 3);
    assert_eq!(kinds(&verify(&sample.dir).findings), [ErrorKind::Corrupt]);
    let done = LogDir::open(&sample.dir).unwrap().repair().unwrap();
    assert_eq!(done.lost_end, None);
    assert!(verify(&sample.dir).findings.is_empty());
    assert_eq!(read_all(&sample.dir), records);
}

#[test]
fn checkpoints_are_looked_at() {
    let (sample, other) = (Sample::with_checkpoint(40, "orders"), Sample::new(1));
    let checkpoints = sample.dir.join("checkpoints");
    let log = LogDir::open(&sample.dir).unwrap();
    let stored = log.info().unwrap().checkpoints;
    assert_eq!(
        (&*stored[0].name, stored[0].lsn, stored[0].lag_records),
        ("orders", Lsn::new(40), 0)
    );
    drop(log);
    fs::copy(&checkpoints, other.dir.join("checkpoints")).unwrap();
    assert_eq!(
        kinds(&verify(&other.dir).findings),
        [ErrorKind::ForeignCheckpoint]
    );

    // A cut log refuses the checkpoint of what it was.
    let (first, _) = sample.lsns_of(2);
    fs::remove_file(segment_file(&sample.dir, 2)).unwrap();
    repair_to(&sample, first - 1);
    let refused = small_logs::subscribe_error(&sample.dir, "orders");
    assert_eq!(refused.kind(), ErrorKind::ForeignCheckpoint);

    let sample = Sample::with_checkpoint(40, "orders");
    flip(&sample.dir.join("checkpoints"), 60, 1);
    assert_eq!(kinds(&verify(&sample.dir).findings), [ErrorKind::Corrupt]);
    repair_to(&sample, 40);
}

#[test]
fn a_checkpoint_beyond_the_end_is_a_finding() {
    let sample = Sample::with_checkpoint(40, "orders");
    // The same log as it was earlier: restored from a backup, but for the checkpoints.
    let open = sample.open_segment();
    let (first, _) = sample.lsns_of(open);
    let path = segment_file(&sample.dir, open);
    let mut image = fs::read(&path).unwrap();
    image[PAGE as usize..].fill(0);
    fs::write(&path, image).unwrap();
    let report = verify(&sample.dir);
    assert_eq!(kinds(&report.findings), [ErrorKind::BeyondEnd]);
    assert_eq!(report.records, first - 1);
}

#[test]
fn what_is_no_log_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("letter"), "dear log").unwrap();
    let before = images(dir.path());
    assert_eq!(LogDir::open(dir.path()).unwrap_err().kind(), ErrorKind::NotALog);
    assert_eq!(
        LogDir::open(dir.path().join("nowhere")).unwrap_err().kind(),
        ErrorKind::NotALog
    );
    assert_eq!(
        LogDir::open(dir.path().join("letter")).unwrap_err().kind(),
        ErrorKind::NotALog
    );
    assert_eq!(images(dir.path()), before);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// A flipped bit anywhere in a committed block, its padding included, or in a header page.
    #[test]
    fn every_bit_flip_is_found(block in any::<prop::sample::Index>(), at in any::<u64>()) {
        let sample = Sample::shared();
        let blocks = sample.blocks();
        let block = block.get(&blocks);
        let bit = at % ((block.end - block.offset) * 8);
        let offset = block.offset + bit / 8;
        let path = segment_file(&sample.dir, block.segment);
        flip(&path, offset, (bit % 8) as u8);
        let report = verify(&sample.dir);
        prop_assert!(!report.findings.is_empty(), "{block:?} at {offset}");
        let finding = &report.findings[0];
        prop_assert_eq!(finding.segment(), Some(block.segment));
        let found = finding.offset().unwrap();
        prop_assert!((block.offset..block.end).contains(&found), "{} is not {}", found, offset);
        let in_padding = offset >= block.framed_end;
        let good = if in_padding { sample.records.len() as u64 } else { block.first_lsn - 1 };
        let repair = repair_to(&sample, good);
        prop_assert_eq!(repair.lost_end.is_none(), in_padding);
    }

    /// A page of zeros or garbage over any committed page.
    #[test]
    fn every_lost_page_is_found(
        block in any::<prop::sample::Index>(),
        page in any::<u64>(),
        fill in prop::sample::select(vec![0u8, 0xA5]),
    ) {
        let sample = Sample::shared();
        let blocks = sample.blocks();
        let block = block.get(&blocks);
        let offset = block.offset + page % ((block.end - block.offset) / PAGE) * PAGE;
        overwrite(&segment_file(&sample.dir, block.segment), offset, &[fill; PAGE as usize]);
        let report = verify(&sample.dir);
        prop_assert!(!report.findings.is_empty(), "{block:?} at {offset}");
        repair_to(&sample, block.first_lsn - 1);
    }
}

#[test]
fn any_name_of_a_segment_is_looked_at_in_no_time() {
    // Each segment missing before one with a far position became a finding: until memory ran out.
    let sample = Sample::new(3);
    let far = sample.dir.join("segments/04611686018427256832.log");
    fs::copy(segment_file(&sample.dir, 0), far).unwrap();
    let findings = verify(&sample.dir).findings;
    let missing = findings
        .iter()
        .filter(|e| e.kind() == ErrorKind::MissingSegment)
        .count();
    assert!((2..=101).contains(&missing), "{missing}");
    assert!(
        findings
            .iter()
            .any(|e| e.to_string().contains("segments more are missing"))
    );

    // Beyond what a log can reach, it is no segment at all.
    let sample = Sample::new(3);
    let last = u64::MAX / SEGMENT_BYTES * SEGMENT_BYTES;
    fs::write(sample.dir.join(format!("segments/{last:020}.log")), []).unwrap();
    assert!(verify(&sample.dir).findings.is_empty());
    assert_eq!(read_all(&sample.dir), sample.records);
}

#[test]
fn checkpoints_set_aside_are_looked_at() {
    // Verification found nothing wrong with a log that no bus opened.
    let sample = Sample::new(3);
    let path = sample.dir.join("checkpoints.foreign");
    fs::write(&path, b"damaged").unwrap();
    let error = small_logs::builder().open(&sample.dir).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Corrupt, Some(&*path)));
    let findings = verify(&sample.dir).findings;
    assert_eq!(
        (kinds(&findings), findings[0].path()),
        (vec![ErrorKind::Corrupt], Some(&*path))
    );
    let done = repair_to(&sample, 3);
    assert_eq!(done.moved, [path]);
}
