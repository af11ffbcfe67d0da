//! Traps 15 and 16: what reopening makes of a crash, and of what lies behind one.

use std::time::Duration;

use eventplane::testing::{Fault, Op};
use eventplane::{Durability, ErrorKind, Lsn};

use super::bed::{Bed, PAGE, SLAB, backends, commit, fill_to, holds, record, reopens, until};
use super::raw;

/// A crash between rolling and the first sync: LSNs restarted at 1.
#[test]
fn trap_15_a_crash_at_any_step_of_rolling_continues_the_lsns() {
    // The first block of segment 1; the rolling block of segment 0; the footer of segment 0, and
    // its sync; and what makes the new segment's first block durable in deferred mode.
    let steps = [
        ("the first block", Op::DurableWrite, "131072"),
        ("the rolling block", Op::DurableWrite, "00000.log"),
        ("the footer", Op::Write, "00000.log"),
        ("the footer's sync", Op::Sync, "00000.log"),
    ];
    for backend in backends() {
        for (step, op, file) in steps {
            let bed = Bed::new(backend);
            let bus = bed
                .builder()
                .manual(&bed.clock)
                .faults(&bed.faults)
                .open(bed.path())
                .unwrap();
            let mut model = Vec::new();
            let writer = bus.writer();
            // Five such blocks fill the first slab, four the second: the tenth does not fit.
            for _ in 0..9 {
                commit(&writer, &mut model, 10_000);
            }
            bed.faults
                .inject(Fault::errno(op, libc::EIO).on(file).forever());
            let (kind, key, payload) = record(model.len() as u64, 10_000);
            let failed = writer.append(kind, key, &payload);
            // Sealing fails behind the commit, which then was whole.
            let failed = failed
                .and_then(|_| bus.drive().map(|()| Lsn::ZERO))
                .unwrap_err();
            assert_eq!(failed.kind(), ErrorKind::Poisoned, "{step}");
            if op != Op::DurableWrite {
                model.push((kind, key, payload));
            }
            let image = bed.image();
            let begun = !raw::filled(&image.segment(1)).is_empty();
            assert_eq!(begun, op != Op::DurableWrite, "{step}");
            for _ in 0..2 {
                reopens(&image, &mut model);
            }
        }
    }
}

/// The same where a sync comes later than the write: nothing of it may be counted on.
#[test]
fn trap_15_a_crash_before_the_first_sync_of_a_new_segment_loses_the_unsynced_alone() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let deferred = Durability::Deferred { interval: Duration::from_secs(3600), bytes: 1 << 30 };
        let open = |bed: &Bed| {
            bed.builder()
                .durability(deferred)
                .watermark_idle(Duration::from_secs(3600))
                .faults(&bed.faults)
                .open(bed.path())
                .unwrap()
        };
        let bus = open(&bed);
        let mut model = Vec::new();
        for _ in 0..8 {
            commit(&bus.writer(), &mut model, 12_000);
        }
        bus.sync().unwrap();
        bed.faults
            .inject(Fault::errno(Op::Sync, libc::EIO).on("131072").forever());
        let (kind, key, payload) = record(9, 30_000);
        bus.writer().append(kind, key, &payload).unwrap();
        bus.writer().append(kind, key, &payload).unwrap();
        assert_eq!(bus.sync().unwrap_err().kind(), ErrorKind::Poisoned);
        let image = bed.image();
        assert!(!raw::blocks(&image.segment(0)).is_empty());
        // Nothing of segment 1 was synced: a power cut may leave none of it.
        image.patch(1, PAGE, &vec![0; image.segment(1).len() - PAGE]);
        let kept = raw::filled(&image.segment(0)).last().unwrap().clone();
        let kept = kept.first_lsn + u64::from(kept.records) - 1;
        assert!(kept >= 8, "what was synced is there");
        model.truncate(8);
        model.extend((8..kept).map(|_| (kind, key, payload.clone())));
        reopens(&image, &mut model);
        reopens(&image, &mut model);
    }
}

/// Reopening over damage resurrected old records behind new ones.
#[test]
fn trap_16_nothing_torn_comes_back_behind_new_records() {
    for backend in backends() {
        // The header, a sector in the middle, the last one: lost with the power.
        for sector in [0, 3, 9] {
            let bed = Bed::new(backend);
            let bus = bed.by_hand();
            let mut model = Vec::new();
            for _ in 0..5 {
                commit(&bus.writer(), &mut model, 5_000);
            }
            let image = bed.image();
            let last = raw::filled(&image.segment(0)).pop().unwrap();
            image.patch(0, last.offset + sector * 512, &[0; 512]);
            let torn = model.pop().unwrap();
            for round in 0..3 {
                let bus = image.by_hand();
                assert_eq!(bus.recovery().torn_bytes > 0, round == 0);
                holds(&image, &bus, &model);
                // One that looks like the torn one but for a byte, under the same LSN.
                let mut like = torn.clone();
                like.2[0] ^= 2;
                let lsn = bus.writer().append(like.0, like.1, &like.2).unwrap();
                model.push(like);
                assert_eq!(lsn.get(), model.len() as u64);
                // Crashed, or closed.
                if round == 1 { drop(bus) } else { bus.close().unwrap() }
            }
            reopens(&image, &mut model);
        }
    }
}

/// The same where a whole block lies behind a lost one: two writes in flight, one arrived.
#[test]
fn trap_16_a_whole_block_behind_a_lost_one_never_comes_back() {
    for backend in backends() {
        let bed = Bed::sized(backend, 4 * SLAB, 8 * SLAB);
        let deferred = Durability::Deferred { interval: Duration::from_secs(3600), bytes: 1 << 30 };
        let bus = bed
            .builder()
            .durability(deferred)
            .watermark_idle(Duration::from_secs(3600))
            .faults(&bed.faults)
            .open(bed.path())
            .unwrap();
        until("segments are prepared", || bed.segments().len() >= 3);
        let mut model = Vec::new();
        commit(&bus.writer(), &mut model, 10);
        bus.sync().unwrap();
        // The third closes the second, so that it is submitted right behind the first.
        let hold = bed.faults.hold(Op::Write);
        for _ in 0..3 {
            commit(&bus.writer(), &mut model, 100_000);
        }
        assert!(hold.wait_for(1));
        drop(hold);
        bus.sync().unwrap();
        let image = bed.image();
        let blocks = raw::filled(&image.segment(0));
        let [_, lost, whole, late] = &blocks[..] else { panic!("{blocks:?}") };
        assert!(whole.watermark <= lost.position, "both were in flight together");
        for gone in [lost, late] {
            image.patch(0, gone.offset, &vec![0; gone.end() - gone.offset]);
        }
        model.truncate(1);
        for round in 0..3 {
            let bus = image.by_hand();
            assert_eq!(bus.recovery().torn_bytes > 0, round == 0);
            holds(&image, &bus, &model);
            // Of the length of the lost one: what is whole would follow it.
            commit(&bus.writer(), &mut model, 100_000);
            bus.close().unwrap();
        }
    }
}

/// And where what is old was committed: then there are no new records, there is a refusal.
#[test]
fn trap_16_damage_to_what_was_committed_leaves_no_room_for_new_records() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        fill_to(&bed, &bus, &mut model, 2, 9_000);
        commit(&bus.writer(), &mut model, 9_000);
        bus.close().unwrap();
        let file = bed.segment(2);
        for block in raw::filled(&file) {
            bed.patch(2, block.offset, &vec![0; block.end() - block.offset]);
            bed.refuses_at(ErrorKind::Corrupt, 2, block.offset);
            bed.patch(2, 0, &file);
        }
        reopens(&bed, &mut model);
    }
}
