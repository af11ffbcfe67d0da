//! Deferred durability: commits return at once, the sync follows, nothing is seen before it.

use std::time::Instant;

use super::*;
use crate::disk::Op;

fn bed(interval: Duration, bytes: u64, threads: bool) -> Bed {
    let mut bed = Bed::new(4, 2, threads);
    bed.options.durability = Durability::Deferred { interval, bytes };
    bed
}

const HOUR: Duration = Duration::from_secs(3600);

fn durable_within(rig: &Rig, lsn: u64, limit: Duration) -> bool {
    let begun = Instant::now();
    while rig.log.ring.committed_lsn().get() < lsn {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn nothing_is_visible_before_it_is_durable() {
    for threads in [false, true] {
        let bed = bed(HOUR, 1 << 30, threads);
        let rig = bed.open();
        let mut model = Vec::new();
        let mut rng = Rng(1);
        for bytes in [10, 30_000, 30_000, 20] {
            let record = rng.record(bytes);
            commit(&rig.writer(), &mut model, record);
        }
        std::thread::sleep(Duration::from_millis(30));
        assert!(rig.read(Tier::Hot).is_empty());
        rig.log.sync().unwrap();
        assert!(rig.read(Tier::Hot) == model);
        rig.kill();
        assert!(bed.open().read(Tier::Hot) == model);
    }
}

#[test]
fn the_interval_bounds_the_wait() {
    let bed = bed(Duration::from_millis(50), 1 << 30, true);
    let rig = bed.open();
    for lsn in 1..5 {
        let begun = Instant::now();
        rig.writer().append(1, 1, b"x").unwrap();
        assert!(durable_within(&rig, lsn, Duration::from_secs(2)));
        assert!(begun.elapsed() > Duration::from_millis(40));
    }
}

/// The interval of what stood in the open block began anew when a full one was synced.
#[test]
fn a_commit_waits_no_longer_because_others_were_synced() {
    let bed = bed(Duration::from_millis(800), 64 << 10, true);
    let rig = bed.open();
    let mut rng = Rng(1);
    let begun = Instant::now();
    let mut last = 0;
    while begun.elapsed() < Duration::from_millis(600) {
        last = rig.writer().append(1, 1, &rng.record(3_000).2).unwrap().get();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(durable_within(&rig, last, Duration::from_millis(1_100)));
}

/// The bound in bytes did not count the open block.
#[test]
fn the_bytes_bound_the_unsynced_tail() {
    let bed = bed(HOUR, 8192, true);
    let rig = bed.open();
    let mut rng = Rng(1);
    let mut last = 0;
    for _ in 0..20 {
        last = rig.writer().append(1, 1, &rng.record(1_000).2).unwrap().get();
    }
    assert!(durable_within(&rig, last - 9, Duration::from_secs(2)));
}

/// One `sync()` on an idle log made every later commit a synced one.
#[test]
fn a_sync_with_nothing_to_do_leaves_nothing_behind() {
    let bed = bed(HOUR, 1 << 30, true);
    let rig = bed.open();
    rig.log.sync().unwrap();
    rig.writer().append(1, 1, b"x").unwrap();
    rig.log.sync().unwrap();
    rig.log.sync().unwrap();
    rig.writer().append(1, 1, b"y").unwrap();
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(rig.log.ring.committed_lsn(), Lsn::new(1));
}

#[test]
fn commits_are_gathered_while_others_sync() {
    let bed = bed(HOUR, 1 << 30, true);
    let rig = bed.open();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let lsn = rig.writer().append(1, 1, b"x").unwrap();
                    rig.log.sync().unwrap();
                    assert!(rig.log.ring.committed_lsn() >= lsn);
                }
            });
        }
    });
    assert_eq!(rig.read(Tier::Hot).len(), 400);
}

#[test]
fn closing_syncs_without_waiting_for_the_interval() {
    for threads in [false, true] {
        let bed = bed(HOUR, 1 << 30, threads);
        let rig = bed.open();
        let mut model = Vec::new();
        for seed in 0..5 {
            let record = Rng(seed).record(100);
            commit(&rig.writer(), &mut model, record);
        }
        let begun = Instant::now();
        rig.close();
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(bed.open().read(Tier::Hot) == model);
    }
}

/// The watermark of an idle log has no commit to date from: it went out and was never synced.
#[test]
fn the_idle_watermark_is_synced_in_its_time_and_burns_no_processor() {
    let bed = bed(Duration::from_millis(20), 1 << 30, true);
    let rig = bed.open();
    while !rig.segments.is_prepared(2) {
        std::thread::yield_now();
    }
    rig.writer().append(1, 1, b"x").unwrap();
    rig.log.sync().unwrap();
    let syncs = bed.faults.calls(Op::Sync);
    let end = rig.log.ring.committed.load().position();
    std::thread::sleep(bed.options.watermark_idle * 5);
    assert_eq!(rig.log.ring.committed.load().position(), end + PAGE_BYTES);
    assert_eq!(bed.faults.calls(Op::Sync), syncs + 1);
}

/// Many rings of data with a long interval: rolling syncs what sealing needs.
#[test]
fn a_long_interval_does_not_stop_the_ring() {
    for bed in
        [bed(HOUR, 1 << 30, true), bed(HOUR, 1 << 30, true).uring(), bed(HOUR, 1 << 30, false)]
    {
        let rig = bed.open();
        let mut model = Vec::new();
        fill_to(&bed, &rig, &mut model, 7, 6_000);
        rig.log.sync().unwrap();
        for tier in TIERS {
            assert!(rig.read(tier) == model);
        }
    }
}
