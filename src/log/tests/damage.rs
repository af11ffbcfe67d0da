//! Damage that opening must refuse, naming the place and touching nothing.

use super::recovery::last_block;
use super::*;
use crate::format::{BlockHeader, SegmentHeader};

/// Three sealed segments, a fourth with blocks, closed: everything is vouched for.
fn log() -> (Bed, Vec<Record>) {
    let bed = Bed::new(2, 2, false);
    let mut model = Vec::new();
    let rig = bed.open();
    fill_to(&bed, &rig, &mut model, 3, 5_000);
    let mut rng = Rng(7);
    for _ in 0..4 {
        let record = rng.record(5_000);
        commit(&rig.writer(), &mut model, record);
    }
    rig.close();
    (bed, model)
}

/// Offsets of all blocks of a segment.
fn blocks(bed: &Bed, number: u64) -> Vec<usize> {
    let file = bed.segment_bytes(number);
    let is_block = |at: &usize| BlockHeader::read(&file[*at..]).is_some();
    (PAGE..file.len()).step_by(PAGE).filter(is_block).collect()
}

/// Prior art: one bit flipped in the middle, and replay returned Ok with a hole.
#[test]
fn trap_03_damage_to_a_vouched_block_is_refused() {
    let (bed, model) = log();
    let whole = bed.segment_bytes(3);
    for &at in &blocks(&bed, 3)[..4] {
        // Flipped bits, and lost sectors that look exactly like a tear.
        for damage in [0, 1, 2] {
            match damage {
                0 => bed.flip(3, at + 40),
                1 => bed.flip(3, at + 2000),
                _ => bed.patch(3, at, &[0; 512]),
            }
            let error = bed.refuses(ErrorKind::Corrupt);
            assert_eq!(error.path(), Some(&*bed.segment(3)));
            assert_eq!((error.segment(), error.offset()), (Some(3), Some(at as u64)));
            assert!(error.is_damage());
            let (first, last) = error.lsns().expect("which records it is about");
            assert!(first <= last);
            if at != blocks(&bed, 3)[3] {
                assert_eq!(last.get() as usize, model.len(), "the last that is there");
            }
            bed.patch(3, 0, &whole);
        }
    }
    bed.open();
}

/// Without `meta`, only the first block's header was looked at: with that page lost as well, the
/// segment passed for an unfinished creation and was deleted with all records behind it.
#[test]
fn segments_without_a_meta_file_are_never_deleted_if_anything_is_in_them() {
    let (bed, _) = log();
    std::fs::remove_file(bed.path().join("meta")).unwrap();
    for number in 0..4 {
        bed.patch(number, PAGE, &[0; PAGE]);
    }
    bed.refuses(ErrorKind::Corrupt);
    // All that is left is the last byte of one file.
    let bytes = bed.options.segment_bytes as usize;
    for number in 0..4 {
        bed.patch(number, 0, &vec![0; bytes]);
    }
    bed.patch(3, bytes - 1, &[1]);
    bed.refuses(ErrorKind::Corrupt);
}

/// A refusal used to come after leftovers were removed and rolled segments sealed.
#[test]
fn a_refusal_changes_nothing_even_with_work_to_do() {
    let (bed, _) = log();
    let footer = bed.options.segment_bytes as usize - PAGE;
    bed.patch(2, footer, &[0; PAGE]);
    std::fs::write(bed.path().join("segments/00000000000000999999.tmp"), b"leftover").unwrap();
    bed.flip(3, PAGE + 40);
    bed.refuses(ErrorKind::Corrupt);
}

/// Prior art: end-of-data was not sticky; reopening over damage resurrected old records.
#[test]
fn trap_04_and_16_nothing_behind_damage_is_read() {
    let (bed, model) = log();
    let damaged = blocks(&bed, 1)[2];
    bed.flip(1, damaged + 100);
    let rig = bed.open();
    for tier in [Tier::Mapped, Tier::Cold] {
        let error = rig.try_read(tier).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert_eq!((error.segment(), error.offset()), (Some(1), Some(damaged as u64)));
    }
    // Repaired by hand, all is there again: nothing was cut.
    rig.kill();
    bed.flip(1, damaged + 100);
    assert!(bed.open().read(Tier::Mapped) == model);
}

#[test]
fn trap_03_a_missing_segment_is_an_error_whichever_it_is() {
    for number in 0..4 {
        let (bed, _) = log();
        std::fs::remove_file(bed.segment(number)).unwrap();
        let error = bed.refuses(ErrorKind::MissingSegment);
        assert_eq!(error.segment(), Some(number));
        assert_eq!(error.path(), Some(&*bed.segment(number)));
    }
    // The last one with blocks and the prepared ones behind it.
    for footer in [true, false] {
        let (bed, _) = log();
        for number in 3..*bed.listing().last().unwrap() + 1 {
            std::fs::remove_file(bed.segment(number)).unwrap();
        }
        if !footer {
            bed.patch(2, bed.options.segment_bytes as usize - PAGE, &[0; PAGE]);
        }
        assert_eq!(bed.refuses(ErrorKind::MissingSegment).segment(), Some(3));
    }
    let (bed, _) = log();
    for number in bed.listing() {
        std::fs::remove_file(bed.segment(number)).unwrap();
    }
    bed.refuses(ErrorKind::MissingSegment);
}

#[test]
fn prepared_segments_may_be_missing() {
    let (bed, model) = log();
    for number in bed.listing().into_iter().filter(|&number| number > 3) {
        std::fs::remove_file(bed.segment(number)).unwrap();
    }
    assert!(bed.open().read(Tier::Hot) == model);
}

#[test]
fn a_file_of_another_length_is_refused() {
    for number in 0..4 {
        for bytes in [0, 1, 54, 4096, 100_000] {
            let (bed, _) = log();
            let mut file = bed.segment_bytes(number);
            file.truncate(bytes);
            std::fs::remove_file(bed.segment(number)).unwrap();
            std::fs::write(bed.segment(number), file).unwrap();
            assert_eq!(bed.refuses(ErrorKind::Corrupt).segment(), Some(number));
        }
    }
}

#[test]
fn headers_say_whose_segment_it_is() {
    let (bed, _) = log();
    let (other, _) = log();
    for number in [0, 2, 3, 4] {
        let whole = bed.segment_bytes(number);
        bed.patch(number, 0, &other.segment_bytes(number));
        assert_eq!(bed.refuses(ErrorKind::ForeignSegment).segment(), Some(number));
        bed.patch(number, 0, &whole);
        bed.flip(number, 200);
        bed.refuses(ErrorKind::Corrupt);
        bed.patch(number, 0, &whole);
        bed.patch(number, 8, &[9]);
        bed.refuses(ErrorKind::Unsupported);
        let header = SegmentHeader::decode(&whole).unwrap();
        bed.patch(number, 0, &SegmentHeader { required: 4, ..header.clone() }.encode());
        bed.refuses(ErrorKind::Unsupported);
        bed.patch(number, 0, &SegmentHeader { number: 17, ..header }.encode());
        bed.refuses(ErrorKind::Corrupt);
        bed.patch(number, 0, &whole);
    }
    let footer = bed.options.segment_bytes as usize - PAGE;
    bed.patch(1, footer + 8, &[9]);
    assert_eq!(bed.refuses(ErrorKind::Unsupported).offset(), Some(footer as u64));
}

/// Swapped, or an older copy put back: the chain across segments notices.
#[test]
fn trap_16_a_segment_of_another_history_is_refused() {
    let (bed, _) = log();
    // Both histories share segments 0 and 1, and differ from there on.
    let old = bed.files();
    let rig = bed.open();
    let mut rng = Rng(1);
    while bed.geometry().segment_of(rig.log.ring.committed.load().position()) < 5 {
        let (kind, key, payload) = rng.record(3_000);
        rig.writer().append(kind, key, &payload).unwrap();
    }
    rig.close();
    let name = bed.segment(4).file_name().unwrap().to_str().unwrap().to_owned();
    bed.patch(4, 0, &old[&name]);
    bed.refuses(ErrorKind::Corrupt);
}

#[test]
fn blocks_behind_a_segment_that_does_not_end_are_corruption() {
    let (bed, _) = log();
    // Segment 2 loses its footer, its rolling block and its last block.
    let at = bed.options.segment_bytes as usize - 2 * PAGE;
    let (start, end) = last_block(&bed, 2);
    bed.patch(2, at, &[0; 2 * PAGE]);
    bed.patch(2, start, &vec![0; end - start]);
    let error = bed.refuses(ErrorKind::Corrupt);
    assert_eq!((error.segment(), error.offset()), (Some(2), Some(start as u64)));
}

#[test]
fn bytes_in_a_segment_never_written_to_are_refused() {
    let (bed, _) = log();
    bed.patch(4, 50_000, b"what is this");
    assert_eq!(bed.refuses(ErrorKind::Corrupt).segment(), Some(4));
}

/// A good footer behind a damaged one was not believed; one sealed over a tear was even refused.
#[test]
fn a_segment_sealed_over_a_tear_is_read_though_the_footer_before_it_is_damaged() {
    let (bed, mut model) = log();
    let (start, end) = last_block(&bed, 3);
    // As if the last commit and its watermark had been torn.
    bed.patch(3, start + 512, &[0; 512]);
    bed.patch(3, end, &[0; PAGE]);
    model.pop();
    let rig = bed.open();
    assert!(rig.recovery.torn_bytes > 0);
    fill_to(&bed, &rig, &mut model, 5, 4_000);
    rig.close();
    bed.flip(2, bed.options.segment_bytes as usize - PAGE + 77);
    let rig = bed.open();
    for tier in TIERS {
        assert!(rig.read(tier) == model);
    }
}

#[test]
fn without_its_meta_file_a_log_is_not_begun_anew() {
    let (bed, _) = log();
    std::fs::remove_file(bed.path().join("meta")).unwrap();
    bed.refuses(ErrorKind::Corrupt);
    std::fs::write(bed.path().join("checkpoints"), b"some").unwrap();
    bed.refuses(ErrorKind::Corrupt);
    std::fs::write(bed.path().join("holiday.jpg"), b"some").unwrap();
    bed.refuses(ErrorKind::NotALog);
}

#[test]
fn other_sizes_than_at_creation_are_refused() {
    let (mut bed, _) = log();
    bed.options.segment_bytes *= 2;
    bed.options.ring_bytes *= 2;
    bed.options.catchup_window_bytes *= 2;
    bed.refuses(ErrorKind::InvalidOption);
}

/// Files in `segments/` that are not ours are left alone.
#[test]
fn strangers_among_the_segments_are_not_taken_for_segments() {
    let (bed, model) = log();
    for name in ["0.log", "notes", "00000000000000000001.log"] {
        std::fs::write(bed.path().join("segments").join(name), b"hello").unwrap();
    }
    assert!(bed.open().read(Tier::Mapped) == model);
    assert!(bed.files().contains_key("notes"));
}

/// Each page a header that claims the rest of its slab was checked by itself: half an hour for one
/// segment of the largest size.
#[test]
fn headers_that_overlap_are_not_checked_over_and_over_again() {
    let mut bed = Bed::new(2, 2, false);
    bed.options.slab_bytes = 16 << 20;
    bed.options.segment_bytes = 32 << 20;
    bed.options.ring_bytes = 64 << 20;
    bed.options.pin_budget_bytes = 64 << 20;
    bed.options.catchup_window_bytes = 128 << 20;
    bed.open().close();
    let mut file = bed.segment_bytes(0);
    let salt = SegmentHeader::decode(&file).unwrap().salt();
    let slab = bed.options.slab_bytes as usize;
    for at in (2 * PAGE..slab).step_by(PAGE) {
        let body_bytes = (slab - at - 64) as u32;
        let position = at as u64;
        let header = BlockHeader { position, body_bytes, salt, first_lsn: 9, ..Default::default() };
        header.write(file[at..].first_chunk_mut().unwrap());
    }
    bed.patch(0, 0, &file);
    let begun = std::time::Instant::now();
    bed.refuses(ErrorKind::Corrupt);
    // 32 GiB of checksums before, at most a quarter of one now.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let log = crate::offline::LogDir::open(bed.path()).unwrap();
    let findings = log.verify().unwrap().findings;
    assert!(findings.iter().any(|e| e.to_string().contains("overlap")), "{findings:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// A log whose segment 0 is complete but has no footer, with nothing behind it.
fn rolled_log() -> (Bed, usize) {
    let bed = Bed::new(2, 2, false);
    let rig = bed.open();
    fill_to(&bed, &rig, &mut Vec::new(), 1, 5_000);
    rig.kill();
    let bytes = bed.options.segment_bytes as usize;
    let region = crate::format::footer_bytes(bytes as u64) as usize;
    bed.patch(0, bytes - region, &vec![0; region]);
    bed.patch(1, PAGE, &vec![0; bytes - PAGE]);
    let rolled = bed.geometry().rolled_block(0) as usize;
    (bed, rolled)
}

/// The block that ends a segment vouches for the one before it.
#[test]
fn a_tear_before_a_rolling_block_is_damage() {
    let (bed, _) = rolled_log();
    let (start, _) = last_block(&bed, 0);
    bed.patch(0, start + 1024, &[0; 512]);
    let error = bed.refuses(ErrorKind::Corrupt);
    assert_eq!((error.segment(), error.offset()), (Some(0), Some(start as u64)));
}

/// It is one sector: there, or not.
#[test]
fn a_rolling_block_cannot_be_torn() {
    let (bed, rolled) = rolled_log();
    bed.flip(0, rolled + 20);
    assert_eq!(bed.refuses(ErrorKind::Corrupt).segment(), Some(0));
}

/// Sealed segments are not walked: what joins them is all that is looked at.
#[test]
fn a_sealed_segment_must_continue_the_one_before() {
    let (bed, _) = log();
    for number in 0..3 {
        let whole = bed.segment_bytes(number);
        let mut file = whole.clone();
        let header = BlockHeader::read(&file[PAGE..]).unwrap();
        let framed = header.framed_bytes();
        let other = BlockHeader { prev_crc: header.prev_crc ^ 1, ..header };
        crate::format::seal_block(&mut file[PAGE..PAGE + framed], &other);
        bed.patch(number, 0, &file);
        assert_eq!(bed.refuses(ErrorKind::Corrupt).segment(), Some(number));
        bed.patch(number, 0, &whole);
    }
    bed.open();
}

/// Only the first piece of a file was looked at.
#[test]
fn the_last_byte_of_a_large_segment_is_somebodys_data() {
    let bed = Bed::new(8, 2, false);
    bed.open().kill();
    std::fs::remove_file(bed.path().join("meta")).unwrap();
    let bytes = bed.options.segment_bytes as usize;
    bed.patch(0, 0, &vec![0; bytes]);
    bed.patch(0, bytes - 1, &[1]);
    bed.refuses(ErrorKind::Corrupt);
}
