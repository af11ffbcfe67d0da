//! Trap 20: the watermark is really written, and really believed.

use std::time::Duration;

use eventplane::{Durability, ErrorKind, Writer};

use super::bed::{Bed, PAGE, Rec, backends, commit, fill_to, record, reopens, until};
use super::raw;

/// The last block of the file vouches for every block with records.
fn is_vouched(bed: &Bed, number: u64) -> bool {
    let file = bed.segment(number);
    let (Some(last), Some(filled)) = (raw::blocks(&file).pop(), raw::filled(&file).pop()) else {
        return false;
    };
    let base = number * bed.segment_bytes;
    last.watermark >= base + filled.end() as u64
}

/// Watermarks rise from block to block, and none claims what was not written before it.
fn are_wired(bed: &Bed, number: u64) {
    let mut vouched = 0;
    let blocks = raw::blocks(&bed.segment(number));
    assert!(blocks.len() > 1);
    for (i, block) in blocks.iter().enumerate() {
        assert!(
            block.watermark >= vouched && block.watermark <= block.position,
            "block {i}"
        );
        vouched = block.watermark;
    }
    assert!(blocks.iter().filter(|block| block.watermark > 0).count() >= blocks.len() - 1);
}

/// Any damage to the last acknowledged block, even one that looks like a tear, is found out.
fn damage_is_detected(bed: &Bed, number: u64, model: &mut Vec<Rec>) {
    let file = bed.segment(number);
    let last = raw::filled(&file).pop().unwrap();
    let sectors = (last.body_end() - last.offset).div_ceil(512);
    for sector in [0, sectors / 2, sectors - 1] {
        bed.patch(number, last.offset + sector * 512, &[0; 512]);
        let error = bed.refuses_at(ErrorKind::Corrupt, number, last.offset);
        assert_eq!(error.lsns().unwrap().0.get(), last.first_lsn);
        bed.patch(number, 0, &file);
    }
    bed.patch(number, last.offset, &vec![0; last.end() - last.offset]);
    bed.refuses_at(ErrorKind::Corrupt, number, last.offset);
    bed.patch(number, 0, &file);
    bed.flip(number, last.offset + 70);
    bed.refuses_at(ErrorKind::Corrupt, number, last.offset);
    bed.patch(number, 0, &file);
    reopens(bed, model);
}

fn bounds() -> [Durability; 2] {
    let interval = Duration::from_millis(5);
    [Durability::Synced, Durability::Deferred { interval, bytes: 64 << 10 }]
}

/// A watermark of LSN 0 was persisted for ever, because its setter was never called.
#[test]
fn trap_20_an_idle_log_vouches_for_its_last_block() {
    for (backend, durability) in backends().into_iter().flat_map(|b| bounds().map(|d| (b, d))) {
        let bed = Bed::new(backend);
        let builder = bed.builder().durability(durability);
        let bus = builder
            .watermark_idle(Duration::from_millis(10))
            .open(bed.path())
            .unwrap();
        let mut model = Vec::new();
        for round in 0..4 {
            for _ in 0..5 {
                commit(&bus.writer(), &mut model, 1_000 + round);
            }
            bus.sync().unwrap();
            until("the idle log vouches", || is_vouched(&bed, 0));
        }
        are_wired(&bed, 0);
        // As after a crash now, hours later.
        damage_is_detected(&bed.image(), 0, &mut model);
    }
}

/// Offset behind the last page of a segment where a block may lie but the rolling one.
fn room(bed: &Bed) -> usize {
    let bytes = bed.segment_bytes as usize;
    bytes - raw::footer_bytes(bytes) - PAGE
}

fn begun(bed: &Bed, number: u64) -> bool {
    !raw::blocks(&bed.segment(number)).is_empty()
}

/// A last block that fills its slab to the end had no room behind it, and stayed unvouched.
#[test]
fn trap_20_a_block_that_fills_its_slab_is_vouched_for_in_the_next() {
    for (backend, idle) in backends()
        .into_iter()
        .flat_map(|b| [false, true].map(|i| (b, i)))
    {
        let bed = Bed::new(backend);
        let wait = Duration::from_millis(if idle { 5 } else { 3_600_000 });
        let bus = bed.builder().watermark_idle(wait).open(bed.path()).unwrap();
        let mut model = Vec::new();
        fill_slab(&bus.writer(), &mut model);
        let last = raw::filled(&bed.segment(0)).pop().unwrap();
        assert_eq!(last.end() as u64, bed.slab_bytes);
        if idle {
            until("the idle log vouches", || is_vouched(&bed, 0));
        }
        let image = if idle { Some(bed.image()) } else { None };
        bus.close().unwrap();
        let bed = image.unwrap_or(bed);
        assert!(is_vouched(&bed, 0));
        damage_is_detected(&bed, 0, &mut model);
    }
}

/// Two tickets of one block each, so that no watermark comes in between: 28 and 32 KiB.
fn fill_slab(writer: &Writer, model: &mut Vec<Rec>) {
    let tickets = [28_000, 32_000].map(|bytes| {
        let (kind, key, payload) = record(model.len() as u64, bytes);
        let mut batch = writer.batch();
        batch.append(kind, key, &payload).unwrap();
        model.push((kind, key, payload));
        batch.commit_later().unwrap()
    });
    tickets.iter().for_each(|ticket| assert!(ticket.wait().is_ok()));
}

/// The same on close, also right behind a segment's end.
#[test]
fn trap_20_a_closed_log_vouches_for_its_last_block() {
    for (backend, durability) in backends().into_iter().flat_map(|b| bounds().map(|d| (b, d))) {
        for mut number in [0, 1, 2] {
            let bed = Bed::new(backend);
            let builder = bed.builder().durability(durability);
            let bus = builder
                .watermark_idle(Duration::from_secs(3600))
                .open(bed.path())
                .unwrap();
            let mut model = Vec::new();
            fill_to(&bed, &bus, &mut model, number, 3_000);
            commit(&bus.writer(), &mut model, 3_000);
            bus.sync().unwrap();
            // Behind a segment's last room there is none for a watermark.
            while raw::filled(&bed.segment(number)).pop().unwrap().end() == room(&bed) {
                commit(&bus.writer(), &mut model, 3_000);
                bus.sync().unwrap();
                number = *bed.segments().iter().rfind(|&&n| begun(&bed, n)).unwrap();
            }
            assert!(!is_vouched(&bed, number), "nothing but closing vouches here");
            bus.close().unwrap();
            assert!(
                is_vouched(&bed, number),
                "{backend:?}, {durability:?}, segment {number}"
            );
            are_wired(&bed, number);
            damage_is_detected(&bed, number, &mut model);
        }
    }
}
