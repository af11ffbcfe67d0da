//! What recovery makes of logs that ended in the middle of something.

use super::*;
use crate::format::{BlockHeader, Footer, footer_bytes};

/// A log with `segments` complete segments and a few records behind, killed. Block sizes of about
/// 5 KiB; every record is a block of its own.
fn killed_log(bed: &Bed, segments: u64) -> Vec<Record> {
    let mut model = Vec::new();
    let rig = bed.open();
    fill_to(bed, &rig, &mut model, segments, 5_000);
    let mut rng = Rng(99);
    for _ in 0..4 {
        let record = rng.record(5_000);
        commit(&rig.writer(), &mut model, record);
    }
    rig.kill();
    model
}

/// The log opens, holds exactly `model`, takes a record, and does so again.
fn goes_on(bed: &Bed, model: &mut Vec<Record>) -> Recovery {
    let mut first = None;
    for round in 0..3 {
        let rig = bed.open();
        assert_eq!(rig.recovery.last_lsn.get(), model.len() as u64);
        first.get_or_insert(rig.recovery.clone());
        for tier in TIERS {
            assert!(rig.read(tier) == *model, "{tier:?}, round {round}");
        }
        if round > 0 {
            let record = Rng(round).record(300);
            commit(&rig.writer(), model, record);
        }
        rig.kill();
    }
    first.unwrap()
}

fn footer_of(bed: &Bed, number: u64) -> Option<Footer> {
    let file = bed.segment_bytes(number);
    let salt = crate::format::SegmentHeader::decode(&file).unwrap().salt();
    let region = &file[file.len() - footer_bytes(file.len() as u64) as usize..];
    Footer::decode(region, (number, salt), (bed.options.slab_bytes, bed.options.segment_bytes))
        .unwrap_or(None)
}

/// Offset of the last block with records in a segment, and where it ends.
pub(super) fn last_block(bed: &Bed, number: u64) -> (usize, usize) {
    let file = bed.segment_bytes(number);
    let blocks = (PAGE..file.len()).step_by(PAGE).filter_map(|at| {
        let header = BlockHeader::read(&file[at..]).filter(|h| h.records > 0)?;
        Some((at, (at + header.framed_bytes()).next_multiple_of(PAGE)))
    });
    blocks.max().expect("a block")
}

#[test]
fn an_empty_log_reopens() {
    let bed = Bed::new(2, 2, false);
    bed.open().kill();
    let mut model = Vec::new();
    assert_eq!(goes_on(&bed, &mut model).records, 0);
}

/// Prior art: after ten synced batches only the first was readable, and LSNs were used again.
#[test]
fn trap_01_small_synced_batches_all_come_back() {
    for threads in [false, true] {
        let bed = Bed::new(4, 2, threads);
        let mut model = Vec::new();
        let rig = bed.open();
        let mut rng = Rng(5);
        for bytes in [1, 100, 511, 512, 4000, 4016, 4017, 0, 7, 8] {
            let record = rng.record(bytes);
            commit(&rig.writer(), &mut model, record);
        }
        rig.close();
        goes_on(&bed, &mut model);
    }
}

/// Prior art: padding was not zeroed, and ghosts of old records were replayed.
#[test]
fn trap_02_padding_is_zero_in_reused_memory() {
    let bed = Bed::new(2, 2, false);
    let rig = bed.open();
    let mut model = Vec::new();
    // Three rings of large records, then small ones in memory that was used before.
    fill_to(&bed, &rig, &mut model, 6, 20_000);
    fill_to(&bed, &rig, &mut model, 7, 10);
    rig.kill();
    let file = bed.segment_bytes(6);
    let mut blocks = 0;
    for at in (PAGE..file.len()).step_by(PAGE) {
        if let Some(header) = BlockHeader::read(&file[at..]) {
            let end = at + header.framed_bytes();
            assert!(file[end..end.next_multiple_of(PAGE)].iter().all(|&byte| byte == 0));
            blocks += 1;
        }
    }
    assert!(blocks > 10);
    goes_on(&bed, &mut model);
}

#[test]
fn a_closed_log_ends_with_a_watermark() {
    for threads in [false, true] {
        let bed = Bed::new(2, 2, threads);
        let mut model = Vec::new();
        let rig = bed.open();
        let record = Rng(1).record(100);
        commit(&rig.writer(), &mut model, record);
        rig.close();
        let (_, end) = last_block(&bed, 0);
        let header = BlockHeader::read(&bed.segment_bytes(0)[end..]).expect("a watermark");
        assert_eq!((header.records, header.watermark), (0, end as u64));
        // Closing again adds none: nothing was written since.
        bed.open().close();
        assert!(bed.segment_bytes(0)[end + PAGE..][..PAGE].iter().all(|&byte| byte == 0));
        // So a flipped bit in the last record is no tear, even if a sector of it is zero.
        bed.flip(0, end - PAGE + 100);
        bed.refuses(ErrorKind::Corrupt);
    }
}

/// The block that recovery found last was published, and never vouched for.
#[test]
fn what_recovery_found_is_vouched_for_on_close_and_when_idle() {
    for idle in [false, true] {
        let bed = Bed::new(2, 2, true);
        killed_log(&bed, 1);
        let (start, end) = last_block(&bed, 1);
        let rig = bed.open();
        if idle {
            std::thread::sleep(bed.options.watermark_idle * 4);
            rig.kill();
        } else {
            rig.close();
        }
        let header = BlockHeader::read(&bed.segment_bytes(1)[end..]).expect("a watermark");
        assert_eq!(header.watermark % bed.options.segment_bytes, end as u64);
        bed.patch(1, start, &[0; 512]);
        bed.refuses(ErrorKind::Corrupt);
    }
}

#[test]
fn an_idle_log_writes_one_watermark() {
    let bed = Bed::new(2, 2, true);
    let mut model = Vec::new();
    let rig = bed.open();
    let record = Rng(1).record(100);
    commit(&rig.writer(), &mut model, record);
    let blocks = || rig.log.counters.blocks.load(Ordering::Relaxed);
    while blocks() < 2 {
        std::thread::yield_now();
    }
    std::thread::sleep(bed.options.watermark_idle * 4);
    assert_eq!(blocks(), 2, "one is enough");
    assert!(rig.read(Tier::Hot) == model);
}

/// Prior art: a crash between rolling and the first sync made LSNs restart at 1.
#[test]
fn trap_15_a_rolled_segment_without_footer_is_sealed() {
    for (slabs, torn) in [(2, 0), (2, 512), (4, 0), (4, 1024)] {
        let bed = Bed::new(slabs, 2, false);
        let mut model = killed_log(&bed, 3);
        let footer = footer_of(&bed, 2).expect("sealed");
        let region = footer_bytes(bed.options.segment_bytes) as usize;
        let at = bed.options.segment_bytes as usize - region;
        bed.patch(2, at + torn, &vec![0; region - torn]);
        if torn > 0 {
            bed.patch(2, at, &[0; 512]);
        }
        assert_eq!(footer_of(&bed, 2), None);
        let recovery = goes_on(&bed, &mut model);
        assert_eq!((recovery.torn_bytes, recovery.segments), (0, 4));
        assert_eq!(footer_of(&bed, 2), Some(footer));
        let mode = std::fs::metadata(bed.segment(2)).unwrap().permissions();
        assert!(mode.readonly());
    }
}

#[test]
fn only_rolled_and_nothing_behind_goes_on_in_the_next_segment() {
    let bed = Bed::new(2, 2, false);
    let mut model = killed_log(&bed, 1);
    // As if the crash had come before the first block of segment 1.
    let file = bed.segment_bytes(1);
    let kept = model.len() - 5;
    bed.patch(1, PAGE, &vec![0; file.len() - PAGE]);
    model.truncate(kept);
    goes_on(&bed, &mut model);
}

#[test]
fn several_segments_without_footers_are_walked_and_sealed() {
    let bed = Bed::new(2, 4, false);
    let mut model = killed_log(&bed, 4);
    let region = footer_bytes(bed.options.segment_bytes) as usize;
    for number in [1, 3] {
        let at = bed.options.segment_bytes as usize - region;
        bed.patch(number, at, &vec![0; region]);
    }
    goes_on(&bed, &mut model);
    assert!((0..4).all(|number| footer_of(&bed, number).is_some()));
}

/// Tears of the last block: any set of its sectors may be lost.
#[test]
fn a_torn_tail_is_sealed_over_and_never_comes_back() {
    for mask in [1u64, 2, 4, 1 << 9, 0b11_0000_0011, 0x3FE, 0x3FF] {
        let bed = Bed::new(2, 2, false);
        let mut model = killed_log(&bed, 1);
        let (start, end) = last_block(&bed, 1);
        for sector in 0..(end - start) / 512 {
            if mask >> sector & 1 == 1 {
                bed.patch(1, start + sector * 512, &[0; 512]);
            }
        }
        model.pop();
        let before = bed.segment_bytes(1);
        let gone = before[start..end].iter().all(|&byte| byte == 0);
        // Over a tear the log goes on right behind the next segment's header.
        let rig = bed.open();
        let goes_on_at = rig.log.ring.committed.load().position();
        let start_of = |number| bed.geometry().segment_start(number) as usize;
        let expected = if gone { start_of(1) + start } else { start_of(2) + PAGE };
        assert_eq!(goes_on_at as usize, expected);
        let recovery = rig.recovery.clone();
        rig.kill();
        goes_on(&bed, &mut model);
        assert_eq!(recovery.torn_bytes == 0, gone, "mask {mask:#x}");
        if !gone {
            let after = bed.segment_bytes(1);
            let footer = footer_of(&bed, 1).expect("sealed");
            assert!(footer.torn);
            let region = footer_bytes(bed.options.segment_bytes) as usize;
            assert!(before[..before.len() - region] == after[..after.len() - region]);
        }
    }
}

/// The torn write may lie at the start of the next slab, behind zeros: an early end.
#[test]
fn a_torn_first_block_of_a_slab_is_a_tear_and_a_damaged_one_is_not() {
    for (damage, refused) in [(false, false), (true, true)] {
        let bed = Bed::new(2, 2, false);
        let rig = bed.open();
        let mut model = Vec::new();
        let mut rng = Rng(3);
        // The second fills no slab to its end; the third opens the next one.
        for bytes in [20_000, 20_000, 30_000] {
            let record = rng.record(bytes);
            commit(&rig.writer(), &mut model, record);
        }
        rig.kill();
        let (start, _) = last_block(&bed, 0);
        assert_eq!(start, SLAB as usize);
        if damage {
            bed.flip(0, start + 700)
        } else {
            bed.patch(0, start + 1024, &[0; 512])
        }
        if refused {
            let error = bed.refuses(ErrorKind::Corrupt);
            assert_eq!((error.segment(), error.path()), (Some(0), Some(&*bed.segment(0))));
        } else {
            model.pop();
            assert!(goes_on(&bed, &mut model).torn_bytes > 0);
        }
    }
}

/// Of two writes in flight the second may be whole and the first lost.
#[test]
fn a_whole_block_behind_a_lost_one_is_never_published() {
    let bed = Bed::new(4, 2, true);
    let mut model = killed_log(&bed, 1);
    let (start, end) = last_block(&bed, 1);
    // Take back the last block's vouching: as if both had been submitted together.
    let mut file = bed.segment_bytes(1);
    let header = BlockHeader::read(&file[start..]).unwrap();
    let lost = (start / PAGE - 1) * PAGE;
    let first = (PAGE..=lost).step_by(PAGE).filter(|&at| BlockHeader::read(&file[at..]).is_some());
    let first = first.last().unwrap();
    let framed = header.framed_bytes();
    let earlier = BlockHeader { watermark: header.watermark - (start - first) as u64, ..header };
    crate::format::seal_block(&mut file[start..start + framed], &earlier);
    file[first..start].fill(0);
    bed.patch(1, 0, &file);
    model.truncate(model.len() - 2);
    let recovery = goes_on(&bed, &mut model);
    assert_eq!(recovery.torn_bytes, (end - start) as u64);
}

/// A crash at any step of sealing over a tear leaves something that recovery finishes.
#[test]
fn recovery_is_idempotent() {
    let bed = Bed::new(2, 2, false);
    let mut model = killed_log(&bed, 1);
    let (start, _) = last_block(&bed, 1);
    bed.patch(1, start + 512, &[0; 512]);
    model.pop();
    // Without the prepared segments: they are prepared again.
    for number in bed.listing().into_iter().filter(|&number| number > 1) {
        std::fs::remove_file(bed.segment(number)).unwrap();
    }
    let stages = [Op::Create, Op::Allocate, Op::Write, Op::SyncDir, Op::Rename, Op::Sync];
    for op in stages {
        for nth in 1..5 {
            bed.faults.inject(Fault::errno(op, libc::EIO).nth(nth));
            if let Ok(rig) = bed.try_open() {
                assert!(rig.read(Tier::Mapped) == model);
            }
            bed.faults.clear();
        }
    }
    goes_on(&bed, &mut model);
}

use crate::disk::{Fault, Op};

#[test]
fn an_unfinished_creation_is_begun_again() {
    for op in [Op::Create, Op::Write, Op::Sync, Op::Rename, Op::SyncDir, Op::Allocate] {
        for nth in 1..4 {
            let bed = Bed::new(2, 2, false);
            bed.faults.inject(Fault::errno(op, libc::EIO).nth(nth));
            drop(bed.try_open());
            bed.faults.clear();
            goes_on(&bed, &mut Vec::new());
        }
    }
}

#[test]
fn a_damaged_rolling_block_behind_a_lost_block_is_no_tear() {
    let bed = Bed::new(2, 2, false);
    killed_log(&bed, 1);
    // As if the crash had come before the footer of segment 0 and the first block of segment 1.
    let len = bed.options.segment_bytes as usize;
    let region = footer_bytes(bed.options.segment_bytes) as usize;
    bed.patch(0, len - region, &vec![0; region]);
    bed.patch(1, PAGE, &vec![0; len - PAGE]);
    let (start, end) = last_block(&bed, 0);
    bed.patch(0, start, &vec![0; end - start]);
    bed.flip(0, bed.geometry().rolled_block(0) as usize + 20);
    assert_eq!(bed.try_open().err().map(|e| e.kind()), Some(ErrorKind::Corrupt));
}

/// Who runs tests may be allowed everything, so the system's answers are made up.
#[test]
fn a_directory_above_a_new_log_may_be_forbidden_and_not_fail() {
    for (errno, opens) in [(libc::EACCES, true), (libc::EINVAL, true), (libc::EIO, false)] {
        let bed = Bed::new(2, 2, false);
        // The first directory is the log's own.
        bed.faults.inject(Fault::errno(Op::SyncDir, errno).nth(2));
        match bed.try_open() {
            Ok(_) => assert!(opens),
            Err(error) => {
                assert!(!opens && error.to_string().contains("cannot sync a directory"), "{error}");
            }
        }
    }
}

#[test]
fn the_newest_footer_is_durable_before_anything_follows() {
    let bed = Bed::new(2, 2, false);
    let mut model = killed_log(&bed, 2);
    let sealed = bed.segment(1);
    let name = sealed.file_name().unwrap().to_str().unwrap();
    bed.faults.inject(Fault::errno(Op::Sync, libc::EIO).on(name));
    let error = bed.try_open().err().expect("it asks the disk");
    assert!(error.to_string().contains("cannot make a footer durable"), "{error}");
    bed.faults.clear();
    goes_on(&bed, &mut model);
}

#[test]
fn a_log_that_outlives_its_writers_lock_opens_again_at_once() {
    for threads in [false, true] {
        let mut bed = Bed::new(2, 2, threads).uring();
        bed.options.lock_timeout = Duration::from_millis(200);
        let rig = bed.open();
        let writer = rig.writer();
        writer.append(1, 1, b"x").unwrap();
        rig.close();
        let rig = bed.open();
        assert_eq!(writer.append(1, 1, b"y").unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(rig.writer().append(1, 1, b"z").unwrap(), Lsn::new(2));
    }
}

#[test]
fn a_log_is_open_once() {
    let bed = Bed::new(2, 2, false);
    let _rig = bed.open();
    assert_eq!(bed.try_open().err().unwrap().kind(), ErrorKind::Locked);
}

/// What is behind the end of the log was read a second time, and for the ring all of it a third.
#[test]
fn what_is_walked_is_read_once_and_is_in_the_ring() {
    let bed = Bed::new(4, 2, false);
    let model = killed_log(&bed, 2);
    let files = bed.listing();
    let before = bed.faults.calls(Op::Read);
    let rig = bed.open();
    let reads = bed.faults.calls(Op::Read) - before;
    // Of each its head and footer; all slabs of the newest and of those prepared.
    let unsealed = files.iter().filter(|number| **number >= 2).count() as u64;
    assert!(unsealed > 1);
    assert_eq!(reads, 1 + 2 * files.len() as u64 + 4 * unsealed);
    // Of the newest there is no other source.
    assert!(rig.read(Tier::Hot) == model);
}

/// One with records is.
#[test]
fn a_newest_segment_without_records_is_not_counted() {
    let bed = Bed::new(4, 2, false);
    bed.open().kill();
    let rig = bed.open();
    assert_eq!((rig.recovery.segments, rig.recovery.records), (0, 0));
    commit(&rig.writer(), &mut Vec::new(), Rng(1).record(10));
    rig.kill();
    assert_eq!(bed.open().recovery.segments, 1);
}
