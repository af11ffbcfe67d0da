//! Batches: sizes, ends of slabs and segments, what a dropped or refused batch leaves behind.

use super::*;

fn payload_max() -> usize {
    payload_bytes_max((SLAB / 2) as usize)
}

use super::super::appender::payload_bytes_max;

/// Random batches, committed, ticketed, dropped or refused; then everything is read back.
fn random_batches(bed: &Bed, seed: u64, rounds: usize) {
    let mut rng = Rng(seed);
    let mut model = Vec::new();
    for _ in 0..2 {
        let rig = bed.open();
        assert_eq!(rig.recovery.records, model.len() as u64);
        let writer = rig.writer();
        let mut tickets = Vec::new();
        for _ in 0..rounds {
            let most = [0, 8, 100, 5_000, payload_max() + 1][rng.below(5)];
            let mut batch = writer.batch();
            let mut records = Vec::new();
            for _ in 0..rng.below(12) {
                let bytes = rng.below(most + 1);
                let record = rng.record(bytes);
                match append(&mut batch, &record) {
                    Ok(()) => records.push(record),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::BatchTooLarge),
                }
                assert_eq!(batch.len(), records.len());
            }
            let first = model.len() as u64 + 1;
            let lsns = Lsn::new(first)..=Lsn::new(first + records.len() as u64).previous();
            match rng.below(5) {
                0 => drop(batch),
                1 => {
                    let ticket = batch.commit_later().unwrap();
                    assert_eq!(ticket.lsns(), lsns);
                    tickets.push(ticket);
                    model.append(&mut records);
                }
                _ => {
                    assert_eq!(batch.commit().unwrap(), lsns);
                    model.append(&mut records);
                }
            }
            if rng.below(10) == 0 {
                tickets.drain(..).for_each(|ticket| assert!(ticket.wait().is_ok()));
            }
        }
        tickets.drain(..).for_each(|ticket| assert!(ticket.wait().is_ok()));
        rig.log.sync().unwrap();
        for tier in TIERS {
            assert!(rig.read(tier) == model, "seed {seed}, {tier:?}");
        }
        if rng.below(2) == 0 { rig.close() } else { rig.kill() }
    }
    let rig = bed.open();
    for tier in TIERS {
        assert!(rig.read(tier) == model, "seed {seed}, {tier:?}, reopened");
    }
}

#[test]
fn random_batches_without_threads() {
    for seed in 0..6 {
        random_batches(&Bed::new(2 + 2 * (seed % 2), 2, false), seed, 120);
    }
}

#[test]
fn random_batches_with_threads() {
    for seed in 10..14 {
        random_batches(&Bed::new(2, 2 + 2 * (seed % 2), true), seed, 150);
    }
}

#[test]
fn random_batches_with_io_uring() {
    for seed in 20..24 {
        random_batches(&Bed::new(2 + 2 * (seed % 2), 2, true).uring(), seed, 150);
    }
}

/// Records that end exactly where their slab does made the next batch panic.
#[test]
fn a_block_may_end_exactly_at_the_end_of_its_slab() {
    for threads in [false, true] {
        let bed = Bed::new(2, 2, threads);
        let rig = bed.open();
        let mut model = Vec::new();
        let mut rng = Rng(1);
        // 4 KiB of header page, two blocks that fill the slab, one in the next.
        for bytes in [28_672, 32_768, 4096] {
            let record = rng.record(bytes - 80);
            commit(&rig.writer(), &mut model, record);
        }
        assert!(rig.read(Tier::Hot) == model);
        rig.kill();
        let rig = bed.open();
        assert!(rig.read(Tier::Hot) == model);
    }
}

#[test]
fn reopening_at_a_slab_boundary_goes_on() {
    let bed = Bed::new(2, 2, false);
    let mut model = Vec::new();
    let mut rng = Rng(1);
    for bytes in [28_672, 32_768, 4096, 4096] {
        let rig = bed.open();
        let record = rng.record(bytes - 80);
        commit(&rig.writer(), &mut model, record);
        assert!(rig.read(Tier::Hot) == model);
        rig.kill();
    }
}

/// Prior art: an oversize record burns an LSN and poisons its neighbours.
#[test]
fn trap_14_what_is_too_large_is_refused_and_leaves_no_trace() {
    let bed = Bed::new(2, 2, false);
    let rig = bed.open();
    let writer = rig.writer();
    let mut model = Vec::new();
    let mut rng = Rng(2);
    assert_eq!(writer.payload_bytes_max(), payload_max());
    let error = writer.append(1, 1, &vec![1; payload_max() + 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RecordTooLarge);
    let largest = rng.record(payload_max());
    commit(&writer, &mut model, largest);

    let mut batch = writer.batch();
    let small = rng.record(100);
    append(&mut batch, &small).unwrap();
    for (bytes, kind) in [
        (payload_max() + 1, ErrorKind::RecordTooLarge),
        (usize::MAX, ErrorKind::RecordTooLarge),
        (payload_max(), ErrorKind::BatchTooLarge),
    ] {
        assert_eq!(batch.reserve(1, 1, bytes).unwrap_err().kind(), kind);
        assert_eq!(batch.len(), 1);
    }
    append(&mut batch, &small).unwrap();
    assert_eq!(batch.commit().unwrap(), Lsn::new(2)..=Lsn::new(3));
    model.extend([small.clone(), small]);
    assert!(rig.read(Tier::Hot) == model);
    drop(writer);
    rig.kill();
    assert!(bed.open().read(Tier::Hot) == model);
}

/// Committing an empty batch left the thread marked as holding one: its next batch panicked.
#[test]
fn an_empty_batch_commits_to_nothing() {
    let bed = Bed::new(2, 2, false);
    let rig = bed.open();
    let writer = rig.writer();
    assert!(writer.batch().commit().unwrap().is_empty());
    let ticket = writer.batch().commit_later().unwrap();
    assert!(ticket.wait().unwrap().is_empty());
    assert_eq!(rig.log.held_batch(), 0);
    assert_eq!(writer.append(1, 1, b"x").unwrap(), Lsn::new(1));
}

#[test]
fn reserved_bytes_are_zero_whatever_lay_there() {
    let bed = Bed::new(2, 2, false);
    let rig = bed.open();
    let writer = rig.writer();
    let mut dirty = writer.batch();
    dirty.reserve(1, 1, 500).unwrap().fill(7);
    drop(dirty);
    let mut clean = writer.batch();
    assert!(clean.reserve(1, 1, 500).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
#[should_panic(expected = "already holds a batch")]
fn a_nested_batch_panics_instead_of_deadlocking() {
    let rig = Bed::new(2, 2, false).open();
    let (writer, other) = (rig.writer(), rig.writer());
    let _batch = writer.batch();
    let _ = other.append(1, 1, b"x");
}

/// The committer needs the append lock: waiting for it while holding that never ended.
#[test]
#[should_panic(expected = "already holds a batch")]
fn waiting_inside_a_batch_panics_instead_of_deadlocking() {
    let rig = Bed::new(2, 2, true).open();
    let writer = rig.writer();
    let mut first = writer.batch();
    first.append(1, 1, b"x").unwrap();
    let ticket = first.commit_later().unwrap();
    let _second = writer.batch();
    let _ = ticket.wait();
}

/// Batches of two logs on one thread: ending the second forgot that the first was held.
#[test]
fn batches_of_two_logs_do_not_mix() {
    let (one, two) = (Bed::new(2, 2, false).open(), Bed::new(2, 2, false).open());
    let (first, second) = (one.writer(), two.writer());
    let mut a = first.batch();
    let mut b = second.batch();
    a.append(1, 1, b"a").unwrap();
    b.append(1, 1, b"b").unwrap();
    a.commit().unwrap();
    b.commit().unwrap();
    let _a = first.batch();
    drop(second.batch());
    let nested = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| first.batch().len()));
    assert!(nested.is_err());
}

/// Prior art: 73 % of the callers of a group commit got another record's LSN.
#[test]
fn trap_13_concurrent_commits_get_their_own_lsns() {
    for bed in [Bed::new(2, 2, true), Bed::new(4, 2, true).uring()] {
        let rig = bed.open();
        let mut named = BTreeMap::new();
        std::thread::scope(|scope| {
            let producers: Vec<_> = (0..64u64)
                .map(|producer| {
                    let writer = rig.writer();
                    scope.spawn(move || {
                        let mut rng = Rng(producer);
                        let mut mine = Vec::new();
                        for _ in 0..20 {
                            let records: Vec<_> = (0..1 + rng.below(3))
                                .map(|_| {
                                    let n = rng.below(900);
                                    rng.record(n)
                                })
                                .collect();
                            let mut batch = writer.batch();
                            records.iter().for_each(|r| append(&mut batch, r).unwrap());
                            let lsns = match rng.below(3) {
                                0 => batch.commit_later().unwrap().wait().unwrap(),
                                _ => batch.commit().unwrap(),
                            };
                            let lsns = lsns.start().get()..=lsns.end().get();
                            assert_eq!(lsns.clone().count(), records.len());
                            mine.extend(lsns.zip(records));
                        }
                        mine
                    })
                })
                .collect();
            for producer in producers {
                named.extend(producer.join().unwrap());
            }
        });
        let model: Vec<_> = named.values().cloned().collect();
        assert!(named.keys().copied().eq(1..=model.len() as u64));
        assert!(rig.read(Tier::Hot) == model);
        rig.close();
        assert!(bed.open().read(Tier::Mapped) == model);
    }
}
