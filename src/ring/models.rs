//! Models of the ring: publish, read, lap, reuse, sleep.

use std::sync::Arc;

use super::sleepers::Sleeper;
use super::{Place, Ring, SlabArc};
use crate::limits;
use crate::lsn::{Geometry, Lsn};
use crate::models::Model;
use crate::options::Options;
use crate::sync::thread;

pub(crate) const ALL: &[Model] = &[
    Model { name: "ring_publish_read", preemptions: 3, run: publish_read },
    Model { name: "ring_end_of_slab", preemptions: 3, run: end_of_slab },
    Model { name: "ring_lap_reuse", preemptions: 3, run: lap_reuse },
    Model { name: "ring_retire", preemptions: 3, run: retire },
    Model { name: "ring_start_beside_retire", preemptions: 3, run: start_beside_retire },
    Model { name: "ring_seek_beside_retire", preemptions: 3, run: seek_beside_retire },
    Model { name: "ring_oldest", preemptions: 3, run: oldest },
    Model { name: "ring_trim", preemptions: 3, run: trim },
    Model { name: "ring_sleep", preemptions: 3, run: sleep },
    Model { name: "ring_sleep_beside_another", preemptions: 3, run: sleep_beside_another },
    Model { name: "ring_waker", preemptions: 2, run: waker },
];

const SLAB: u64 = 4096;

fn ring(slots: u64) -> Arc<Ring> {
    let geometry = Geometry {
        slab_bytes: SLAB,
        segment_bytes: 1 << 40,
        head_bytes: 0,
        tail_bytes: 0,
        align_bytes: 8,
    };
    let options = Options {
        slab_bytes: SLAB,
        ring_bytes: slots * SLAB,
        pin_budget_bytes: 0,
        consumers_max: 1,
        ..Options::default()
    };
    Arc::new(Ring::new(&options, geometry, 0, Lsn::ZERO).expect("memory for a ring"))
}

/// What stands at a position of the log.
fn word(position: u64) -> [u8; 8] {
    (position + 1).to_le_bytes()
}

/// As the holder of the append lock would.
fn write(slab: &SlabArc, offset: usize) {
    // SAFETY: the models write each place once, above what they have published.
    let bytes = unsafe { slab.bytes_mut(offset, offset + 8) };
    bytes.copy_from_slice(&word(slab.number() * SLAB + offset as u64));
}

fn check(slab: &SlabArc, end: usize) {
    // SAFETY: `end` is what `readable` gave for a position loaded with Acquire.
    let bytes = unsafe { slab.bytes(end) };
    for (i, found) in bytes.chunks_exact(8).enumerate() {
        assert_eq!(found, word(slab.number() * SLAB + 8 * i as u64), "slab {}", slab.number());
    }
}

/// What is published is written, and is what the LSN says.
fn publish_read() {
    let ring = ring(2);
    let slab = ring.open_slab(0).expect("a free slab");
    let writer = Arc::clone(&ring);
    let thread = thread::spawn(move || {
        for i in 0..2 {
            write(&slab, 8 * i);
            writer.publish(8 * (i as u64 + 1), Lsn::new(i as u64 + 1));
        }
    });
    let seen = ring.committed.load();
    let lsn = ring.committed_lsn();
    assert!(lsn.get() * 8 >= seen.position(), "the LSN is of an older position");
    let slab = ring.get(0).expect("it never leaves");
    check(&slab, slab.readable(seen.position()));
    thread.join().expect("the writer");
}

/// Who sees the committed position in the next slab sees where the one before ended.
fn end_of_slab() {
    let ring = ring(2);
    let first = ring.open_slab(0).expect("a free slab");
    let writer = Arc::clone(&ring);
    let thread = thread::spawn(move || {
        write(&first, 0);
        writer.publish(8, Lsn::new(1));
        let second = writer.open_slab(1).expect("a free slab");
        first.end_at(8);
        write(&second, 0);
        writer.publish(SLAB + 8, Lsn::new(2));
    });
    let seen = ring.committed.load();
    let slab = ring.get(0).expect("it never leaves");
    let end = slab.readable(seen.position());
    assert!(end <= 8, "readable up to {end}");
    check(&slab, end);
    if seen.position() > SLAB {
        let slab = ring.get(1).expect("it was put there before");
        check(&slab, slab.readable(seen.position()));
    }
    thread.join().expect("the writer");
}

/// A reader keeps what it holds; memory is used again when nobody reads it.
fn lap_reuse() {
    let ring = ring(1);
    write(&ring.open_slab(0).expect("a free slab"), 0);
    ring.publish(8, Lsn::new(1));
    let writer = Arc::clone(&ring);
    let thread = thread::spawn(move || {
        for number in 1..=2 {
            let slab = writer.open_slab(number).expect("a free slab");
            write(&slab, 0);
            writer.publish(number * SLAB + 8, Lsn::new(number + 1));
        }
    });
    let seen = ring.committed.load();
    let number = seen.position() / SLAB;
    match ring.get(number) {
        Some(slab) => check(&slab, slab.readable(seen.position()).min(8)),
        None => assert!(ring.committed.load().position() / SLAB < 3),
    }
    thread.join().expect("the writer");
}

/// What a reader has still to read stays, what it has left makes room.
fn retire() {
    let ring = ring(4);
    write(&ring.open_slab(0).expect("a free slab"), 0);
    ring.publish(8, Lsn::new(1));
    let place = Arc::new(Place::new(0));
    ring.readers.add(&place);
    let writer = Arc::clone(&ring);
    let thread = thread::spawn(move || {
        for number in 1..=2 {
            writer.retire();
            let slab = writer.open_slab(number).expect("a free slab");
            write(&slab, 0);
            writer.publish(number * SLAB + 8, Lsn::new(number + 1));
        }
    });
    for number in 0..2 {
        let seen = ring.committed.load();
        if seen.position() / SLAB < number {
            break;
        }
        let slab = ring.get(number).expect("the reader has not left it");
        check(&slab, slab.readable(seen.position()).min(8));
        place.move_to((number + 1) * SLAB);
    }
    thread.join().expect("the writer");
    // What is left is used again.
    place.move_to(2 * SLAB);
    ring.retire();
    assert!(!ring.contains(0) && !ring.contains(1) && ring.contains(2));
    assert_eq!(ring.oldest_position(), 2 * SLAB);
}

/// Who takes the oldest position for a start finds it there, although others have left it.
fn start_beside_retire() {
    let ring = ring(4);
    let place = Arc::new(Place::new(0));
    ring.readers.add(&place);
    drop(ring.open_slab(0));
    drop(ring.open_slab(1));
    ring.publish(SLAB + 8, Lsn::new(1));
    place.move_to(SLAB + 8);
    let writer = Arc::clone(&ring);
    let thread = thread::spawn(move || writer.retire());
    let hold = ring.readers.hold();
    let position = ring.oldest_position();
    let second = Arc::new(Place::new(position));
    ring.readers.add(&second);
    drop(hold);
    thread.join().expect("the writer");
    assert!(ring.contains(position / SLAB), "slab {} has left", position / SLAB);
}

/// What a consumer seeks is there until it arrives, and then because it is there.
fn seek_beside_retire() {
    let ring = ring(4);
    let place = Arc::new(Place::new(SLAB));
    ring.readers.add(&place);
    drop(ring.open_slab(0));
    drop(ring.open_slab(1));
    ring.publish(SLAB + 8, Lsn::new(1));
    let writer = Arc::clone(&ring);
    let thread = thread::spawn(move || writer.retire());
    let hold = ring.readers.hold();
    let target = ring.oldest_position();
    place.seek(target);
    drop(hold);
    place.arrive(target);
    thread.join().expect("the writer");
    assert!(ring.contains(target / SLAB), "slab {} has left", target / SLAB);
}

/// Whoever starts at the oldest position finds its slab, or a later oldest one.
fn oldest() {
    let ring = ring(1);
    drop(ring.open_slab(0));
    let writer = Arc::clone(&ring);
    let thread = thread::spawn(move || {
        drop(writer.open_slab(1));
        writer.publish(SLAB + 8, Lsn::new(1));
    });
    let seen = ring.committed.load();
    let position = ring.oldest_position();
    if seen.position() > SLAB {
        assert_eq!(position, SLAB, "what was evicted counts as there");
    }
    if position == SLAB {
        assert!(!ring.contains(0), "what is below the oldest is gone");
    }
    thread.join().expect("the writer");
}

/// Giving memory back disturbs neither a reader nor the writer.
fn trim() {
    let ring = ring(1);
    // More slabs at once than are kept warm.
    let held: Vec<SlabArc> = (0..4).filter_map(|number| ring.open_slab(number)).collect();
    held.iter().for_each(|slab| write(slab, 0));
    ring.publish(3 * SLAB + 8, Lsn::new(4));
    drop(held);
    let writer = Arc::clone(&ring);
    let thread = thread::spawn(move || {
        let slab = writer.open_slab(4).expect("a free slab");
        write(&slab, 0);
        writer.publish(4 * SLAB + 8, Lsn::new(5));
        check(&slab, 8);
    });
    ring.trim();
    thread.join().expect("the writer");
    let last = ring.get(4).expect("the newest slab");
    check(&last, 8);
}

fn sleeper(ring: &Ring) -> Arc<Sleeper> {
    let sleeper = Arc::default();
    ring.sleepers.add(&sleeper);
    sleeper
}

/// What `consumer::thread` does, up to the position wanted.
fn follow(ring: &Ring, sleeper: &Sleeper, position: u64) {
    loop {
        let word = sleeper.word.read();
        let seen = ring.committed.load();
        if seen.position() >= position {
            return;
        }
        sleeper.register();
        if ring.committed.announce_sleep(seen) {
            sleeper.word.sleep(word, limits::SLEEP_MAX);
        }
        ring.sleepers.rise(sleeper);
    }
}

/// The waker's work is done by the publisher.
fn publish(ring: &Ring, position: u64) {
    if ring.publish(position, Lsn::new(position / 8)) {
        ring.sleepers.wake();
    }
}

/// Nobody sleeps through a publication.
fn sleep() {
    let ring = ring(1);
    let sleeper = sleeper(&ring);
    let follower = Arc::clone(&ring);
    let thread = thread::spawn(move || follow(&follower, &sleeper, 16));
    publish(&ring, 8);
    publish(&ring, 16);
    thread.join().expect("the follower");
}

/// Nor does one that finds the bit of another already set.
fn sleep_beside_another() {
    let ring = ring(1);
    let other = sleeper(&ring);
    other.register();
    assert!(ring.committed.announce_sleep(ring.committed.load()));
    let sleeper = sleeper(&ring);
    let follower = Arc::clone(&ring);
    let thread = thread::spawn(move || follow(&follower, &sleeper, 8));
    publish(&ring, 8);
    thread.join().expect("the follower");
}

/// With the bell and a thread that answers it.
fn waker() {
    let ring = ring(1);
    let sleeper = sleeper(&ring);
    let (follower, waker) = (Arc::clone(&ring), Arc::clone(&ring));
    let following = thread::spawn(move || follow(&follower, &sleeper, 8));
    let waking = thread::spawn(move || {
        let Ring { sleepers, committed, .. } = &*waker;
        sleepers.run(committed, || committed.load().is_poisoned());
    });
    if ring.publish(8, Lsn::new(1)) {
        ring.sleepers.ring();
    }
    following.join().expect("the follower");
    // The end, for the model.
    ring.committed.poison();
    ring.sleepers.ring();
    waking.join().expect("the waker");
}
