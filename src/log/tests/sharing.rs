//! Replays give way to small commits, for a while.

use super::*;
use crate::disk::Op;

/// How often a replay waits for a commit that does not end, for each piece or page.
const NAPS: u64 = limits::GIVE_WAY_NAPS_MAX as u64;

#[test]
fn a_small_commit_is_known_while_it_is_under_way() {
    let bed = Bed::new(2, 2, true);
    let rig = bed.open();
    let writes = || &rig.segments.catalogue().durable_writes;
    let before = writes().turns();
    let hold = bed.faults.hold(Op::DurableWrite);
    let writer = rig.writer();
    let committing = std::thread::spawn(move || writer.append(1, 1, b"x").map(drop));
    assert!(hold.wait_for(1));
    assert!(writes().is_under_way());
    drop(hold);
    committing.join().unwrap().unwrap();
    assert!(!writes().is_under_way());
    assert!(writes().turns() > before);
    rig.kill();
}

/// A reader in catch-up had up to 16 MiB in the device's queue, and every commit waited behind it.
#[test]
fn a_read_waits_for_a_commit_and_not_for_ever() {
    let (_bed, rig) = sealed();
    let (replay, position) = (rig.replay(), rig.log.geometry.first_block(0));
    let sealed = replay.catalogue.find(0).unwrap();
    let naps = |source: &mut CatchUp| {
        replay.catalogue.durable_writes.during(1, || fetch(source, position));
        replay.queue.take_naps()
    };
    // One after the other: one leaves the writer a core, and does not wait for that too.
    let mut mapped = replay.catch_up(&sealed, position).unwrap();
    assert!(naps(&mut mapped) >= NAPS);
    drop(mapped);
    let mut cold = CatchUp::Buffered(Box::new(replay.cold(&sealed).unwrap()));
    assert!(naps(&mut cold) >= NAPS);
    fetch(&mut cold, position);
    assert_eq!(replay.queue.take_naps(), 0);
    rig.kill();
}

/// A commit whose write was over waited for a core while all of them checked and delivered pages.
#[test]
fn a_page_waits_for_a_commit_if_there_may_be_no_core_for_it() {
    let (_bed, rig) = sealed();
    let (replay, position) = (rig.replay(), rig.log.geometry.first_block(0));
    let sealed = replay.catalogue.find(0).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let mapped = || replay.catch_up(&sealed, position).unwrap();
    let cold = CatchUp::Buffered(Box::new(replay.cold(&sealed).unwrap()));
    let _others: Vec<CatchUp> = (0..cores).map(|_| mapped()).collect();
    for mut source in [mapped(), cold] {
        fetch(&mut source, position);
        assert_eq!(replay.queue.take_naps(), 0);
        replay.catalogue.durable_writes.during(1, || fetch(&mut source, position));
        assert_eq!(replay.queue.take_naps(), NAPS);
    }
    rig.kill();
}

/// Eight consumers on two cores drifted a segment apart, and each group read it for itself.
#[test]
fn who_leads_waits_a_little_for_those_in_the_same_segment() {
    let (_bed, rig) = sealed();
    let (replay, geometry) = (rig.replay(), rig.log.geometry);
    let sealed = replay.catalogue.find(0).unwrap();
    let fetch_slab = |slab| {
        let position = geometry.first_block(slab);
        fetch(&mut replay.catch_up(&sealed, position).unwrap(), position);
        replay.queue.take_naps()
    };
    let slow = replay.catch_up(&sealed, geometry.first_block(0)).unwrap();
    assert_eq!([1, 2, 3].map(fetch_slab), [0, 0, NAPS]);
    drop(slow);
    assert_eq!([1, 2, 3].map(fetch_slab), [0, 0, 0]);
    rig.kill();
}

/// A log with a sealed segment.
fn sealed() -> (Bed, Rig) {
    let bed = Bed::new(4, 2, false);
    let rig = bed.open();
    fill_to(&bed, &rig, &mut Vec::new(), 3, 5_000);
    (bed, rig)
}

fn fetch(source: &mut CatchUp, position: u64) {
    let fetched = match source {
        CatchUp::Mapped(mapped) => mapped.fetch(position, false),
        CatchUp::Buffered(buffered) => buffered.fetch(position, false),
    };
    assert!(matches!(fetched.unwrap(), Fetch::Ready));
}
