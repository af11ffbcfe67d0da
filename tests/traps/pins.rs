//! Trap 19: what leases pin is counted right, for one and for all.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use eventplane::testing::{Force, ManualSubscription};
use eventplane::{Ack, Bus, ErrorKind, OwnedRecord, Reason, Start, Tier};

use super::bed::{Bed, LONG, Rec, SLAB, backends, commit};

/// A quarter of the budget of sixteen slabs.
const SHARE: u64 = 4 * SLAB;

/// What a consumer keeps, and how often it was refused.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<(Vec<OwnedRecord>, usize)>>);

impl Kept {
    fn records(&self) -> std::sync::MutexGuard<'_, (Vec<OwnedRecord>, usize)> {
        self.0.lock().unwrap()
    }

    fn clear(&self) {
        *self.records() = (Vec::new(), 0);
    }
}

/// Leases every record it is given.
fn hoarder(bus: &Bus, name: &str) -> (ManualSubscription, Kept) {
    let kept = Kept::default();
    let keep = kept.clone();
    let consumer = bus
        .subscribe(name)
        .start_if_new(Start::Latest)
        .manual(move |batch| {
            for record in batch {
                match record.lease() {
                    Ok(owned) => keep.records().0.push(owned),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::LeaseRefused);
                        keep.records().1 += 1;
                    }
                }
            }
            Ok(Ack::All)
        });
    (consumer.unwrap(), kept)
}

/// Slabs that these leases keep, by address: the arena is cut at multiples of a slab.
fn pinned_slabs(kept: &[OwnedRecord]) -> u64 {
    let pinned = kept.iter().filter(|record| record.is_pinned());
    let slabs: BTreeSet<u64> = pinned.map(|r| r.payload().as_ptr() as u64 / SLAB).collect();
    slabs.len() as u64
}

fn pinned(consumer: &ManualSubscription) -> u64 {
    consumer.handle().status().pinned_bytes
}

/// Two records a slab.
fn step(bus: &Bus, model: &mut Vec<Rec>, consumers: &mut [&mut ManualSubscription]) {
    commit(&bus.writer(), model, 25_000);
    bus.drive().unwrap();
    consumers.iter_mut().for_each(|consumer| {
        while consumer.handle().status().lag_records > 0 {
            consumer.poll();
        }
    });
}

/// A limit per core was compared with the sum of all cores.
#[test]
fn trap_19_a_share_is_one_consumers_and_the_budget_is_all_of_theirs() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        let (mut a, a_kept) = hoarder(&bus, "a");
        for _ in 0..20 {
            step(&bus, &mut model, &mut [&mut a]);
            // Charged by the slab, once for all leases in it.
            let slabs = pinned_slabs(&a_kept.records().0);
            assert_eq!(pinned(&a), slabs * SLAB);
            assert!(slabs * SLAB <= SHARE);
        }
        assert_eq!(pinned(&a), SHARE);
        assert!(a_kept.records().1 > 0, "over its share it was refused");
        // The share of another is its own, and so is that of a third and a fourth.
        let (mut b, b_kept) = hoarder(&bus, "b");
        let (mut c, c_kept) = hoarder(&bus, "c");
        let (mut d, d_kept) = hoarder(&bus, "d");
        let (mut e, e_kept) = hoarder(&bus, "e");
        for _ in 0..9 {
            step(&bus, &mut model, &mut [&mut b, &mut c, &mut d]);
        }
        let all = [(&a, &a_kept), (&b, &b_kept), (&c, &c_kept), (&d, &d_kept)];
        for (consumer, kept) in all {
            assert_eq!(pinned(consumer), SHARE);
            assert_eq!(pinned_slabs(&kept.records().0) * SLAB, SHARE);
        }
        // The whole budget is taken: the next one is refused though its own share is free, and the
        // one that pins most, of these the furthest behind, is shed for it.
        bus.tick();
        assert!(bus.transitions().iter().all(|t| t.reason != Reason::PinBudget));
        step(&bus, &mut model, &mut [&mut e]);
        assert_eq!((pinned(&e), e_kept.records().0.len()), (0, 0));
        assert!(e_kept.records().1 > 0);
        bus.tick();
        let shed = bus
            .transitions()
            .into_iter()
            .rfind(|t| t.reason == Reason::PinBudget);
        assert_eq!(
            shed.map(|t| (t.consumer, t.to)),
            Some(("a".to_owned(), Tier::Cold))
        );
        // Kept bytes are what they were, though the ring has passed over them many times.
        for kept in [&a_kept, &b_kept, &c_kept, &d_kept] {
            for record in &kept.records().0 {
                assert!(record.payload() == model[record.lsn().get() as usize - 1].2);
            }
        }
        // What is given back may be had by others, and nothing wraps.
        a_kept.clear();
        assert_eq!(pinned(&a), 0);
        step(&bus, &mut model, &mut [&mut e]);
        assert_eq!((pinned(&e), e_kept.records().0.len()), (SLAB, 1));
        [b_kept, c_kept, d_kept, e_kept].iter().for_each(Kept::clear);
        assert!(bus.consumers().iter().all(|status| status.pinned_bytes == 0));
    }
}

/// Outside of hot a lease is a copy, charged in bytes to the same share.
#[test]
fn trap_19_copies_are_charged_to_the_same_share() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        let (mut consumer, kept) = hoarder(&bus, "c");
        for _ in 0..30 {
            commit(&bus.writer(), &mut model, 25_000);
        }
        bus.drive().unwrap();
        bus.force("c", Force::CatchUp, Reason::Lapped);
        while consumer.handle().status().lag_records > 0 {
            consumer.poll();
            let records = kept.records();
            let copied = records.0.iter().filter(|r| !r.is_pinned());
            let copied: u64 = copied.map(|record| record.payload().len() as u64).sum();
            assert_eq!(pinned(&consumer), copied + pinned_slabs(&records.0) * SLAB);
        }
        assert_eq!(kept.records().0.len() as u64, SHARE / 25_000);
        assert_eq!(kept.records().1 as u64, 30 - SHARE / 25_000);
        kept.clear();
        assert_eq!(pinned(&consumer), 0);
    }
}

/// Pinned bytes were counted down before or after the memory was free; a counter wrapped.
#[test]
fn trap_19_pinned_bytes_never_understate_or_wrap_under_contention() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.open();
        let kept = Kept::default();
        let keep = kept.clone();
        let consumer = bus.subscribe("c").batch_records_max(4).run(move |batch| {
            for record in batch {
                // The lock makes a lease and its place in the list one step for who compares.
                let mut kept = keep.records();
                match record.lease() {
                    Ok(owned) => kept.0.push(owned),
                    Err(_) => kept.1 += 1,
                }
            }
            Ok(Ack::All)
        });
        let consumer = consumer.unwrap();
        let done = AtomicBool::new(false);
        let mut looks = 0;
        std::thread::scope(|scope| {
            for seed in 0..2 {
                let (kept, done) = (&kept, &done);
                scope.spawn(move || {
                    let mut at: usize = seed;
                    while !done.load(Ordering::Relaxed) {
                        // Taken out under the lock, dropped outside of it; a few always stay.
                        let gone = {
                            let mut records = kept.records();
                            at = at.wrapping_mul(31).wrapping_add(7);
                            let len = records.0.len();
                            (len > 3).then(|| records.0.swap_remove(at % len))
                        };
                        drop(gone);
                        std::thread::yield_now();
                    }
                });
            }
            let mut model = Vec::new();
            for _ in 0..400 {
                commit(&bus.writer(), &mut model, 12_000);
                let records = kept.records();
                let counted = consumer.status().pinned_bytes;
                let held = pinned_slabs(&records.0) * SLAB;
                assert!(
                    counted >= held && counted <= SHARE,
                    "{counted} counted, {held} held"
                );
                looks += u64::from(held > 0);
            }
            consumer.wait_caught_up(LONG).unwrap();
            done.store(true, Ordering::Relaxed);
        });
        assert!(looks > 20, "there was something to compare: {looks}");
        // Dropped elsewhere, and after the consumer and the bus have gone.
        let (left, _) = std::mem::take(&mut *kept.records());
        let half = left.len() / 2;
        let mut left = left;
        let others = left.split_off(half);
        std::thread::spawn(move || drop(others)).join().unwrap();
        consumer.stop().unwrap();
        bus.close().unwrap();
        drop(left);
        assert_eq!(consumer.status().pinned_bytes, 0);
    }
}
