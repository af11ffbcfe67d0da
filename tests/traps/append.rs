//! Traps 1, 2, 13 and 14: what appending leaves on disk, and who gets which LSN.

use std::sync::Mutex;

use eventplane::testing::{Fault, Op};
use eventplane::{ErrorKind, Lsn, Start};

use super::bed::{Bed, PAGE, SLAB, backends, commit, fill_to, holds, record, reopens};
use super::raw;

/// Batches were padded for O_DIRECT without a frame: of ten synced ones only the first was
/// readable, and after reopening LSNs were lost or used again.
#[test]
fn trap_01_every_synced_batch_is_readable_from_the_bytes_and_after_reopening() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        for bytes in [1, 100, 511, 512, 4000, 4016, 4017, 0, 7, 8] {
            commit(&bus.writer(), &mut model, bytes);
        }
        let file = bed.segment(0);
        let blocks = raw::filled(&file);
        assert_eq!(blocks.len(), 10, "a batch, a block");
        let (mut chain, mut expected) = (0, PAGE);
        for (block, record) in blocks.iter().zip(&model) {
            assert_eq!(raw::records(&file, block), std::slice::from_ref(record));
            assert_eq!((block.prev_crc, block.offset), (chain, expected));
            (chain, expected) = (block.crc, block.end());
        }
        // After a crash now, and after a clean end.
        let image = bed.image();
        bus.close().unwrap();
        for bed in [image, bed] {
            let mut model = model.clone();
            reopens(&bed, &mut model);
            reopens(&bed, &mut model);
        }
    }
}

/// The same through the write queue, where the backends differ: blocks too large for one write.
#[test]
fn trap_01_pipelined_batches_are_all_readable_from_the_bytes() {
    for backend in backends() {
        let bed = Bed::sized(backend, 16 * SLAB, 32 * SLAB);
        let bus = bed.open();
        let writer = bus.writer();
        let mut model = Vec::new();
        let mut tickets = Vec::new();
        for seed in 0..12 {
            let (kind, key, payload) = record(seed, 100_000 + seed as usize);
            let mut batch = writer.batch();
            batch.append(kind, key, &payload).unwrap();
            tickets.push(batch.commit_later().unwrap());
            model.push((kind, key, payload));
        }
        for (i, ticket) in tickets.iter().enumerate() {
            let lsn = Lsn::new(i as u64 + 1);
            assert_eq!(ticket.wait().unwrap(), lsn..=lsn);
        }
        let image = bed.image();
        let files: Vec<_> = image.segments().into_iter().map(|n| image.segment(n)).collect();
        let on_disk = files.iter().flat_map(|file| {
            raw::filled(file)
                .into_iter()
                .flat_map(|block| raw::records(file, &block))
        });
        assert!(on_disk.eq(model.iter().cloned()));
        reopens(&image, &mut model.clone());
        bus.close().unwrap();
        reopens(&bed, &mut model);
    }
}

/// Padding was not zeroed: ghosts of old records were replayed from it.
#[test]
fn trap_02_what_is_no_block_is_zero_also_from_reused_memory() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        // Three rings of large records, then small ones in memory that was full of them.
        fill_to(&bed, &bus, &mut model, 6, 20_000);
        fill_to(&bed, &bus, &mut model, 8, 10);
        let image = bed.image();
        for number in 0..8 {
            let mut file = image.segment(number);
            let blocks = raw::blocks(&file);
            assert!(blocks.len() > if number > 5 { 20 } else { 4 }, "segment {number}");
            for block in &blocks {
                file[block.offset..block.body_end()].fill(0);
            }
            let footer = file.len() - raw::footer_bytes(file.len());
            assert!(
                file[PAGE..footer].iter().all(|&byte| byte == 0),
                "segment {number}"
            );
        }
        reopens(&image, &mut model);
    }
}

/// Group commit gave 73 % of the callers the LSN of another record.
#[test]
fn trap_13_sixty_four_producers_get_exactly_their_own_lsns() {
    const PRODUCERS: u64 = 64;
    const ROUNDS: u64 = 12;
    let own = |key: u64| record(key, 50 + key as usize % 100);
    for backend in backends() {
        let bed = Bed::sized(backend, 4 * SLAB, 8 * SLAB);
        let bus = bed.open();
        let told = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for producer in 0..PRODUCERS {
                let (writer, told) = (bus.writer(), &told);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let key = producer * 1_000 + round * 10;
                        let mut batch = writer.batch();
                        for i in 0..=round % 3 {
                            let (kind, key, payload) = own(key + i);
                            batch.append(kind, key, &payload).unwrap();
                        }
                        let lsns = if round % 2 == 0 {
                            batch.commit().unwrap()
                        } else {
                            batch.commit_later().unwrap().wait().unwrap()
                        };
                        assert_eq!(lsns.end().get() - lsns.start().get(), round % 3);
                        told.lock().unwrap().push((key, *lsns.start(), *lsns.end()));
                    }
                });
            }
        });
        let mut told = told.into_inner().unwrap();
        told.sort_by_key(|&(_, first, _)| first);
        // Dense, and under each LSN what its producer wrote, now and after a crash.
        let mut next = Lsn::FIRST;
        for &(_, first, last) in &told {
            assert_eq!(first, next);
            next = last.next();
        }
        assert_eq!(told.len() as u64, PRODUCERS * ROUNDS);
        let model = told
            .iter()
            .flat_map(|&(key, first, last)| (key..=key + last.get() - first.get()).map(own));
        let mut model: Vec<_> = model.collect();
        reopens(&bed.image(), &mut model.clone());
        bus.close().unwrap();
        reopens(&bed, &mut model);
    }
}

/// Followers of a failed append were told `durable: true` for records that are not in the log.
#[test]
fn trap_13_followers_of_a_failed_block_get_errors() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.builder().faults(&bed.faults).open(bed.path()).unwrap();
        let hold = bed.faults.hold(Op::DurableWrite);
        // The leader's block goes well; the next one, which all followers share, does not.
        bed.faults
            .inject(Fault::errno(Op::DurableWrite, libc::EIO).on("00.log").nth(2));
        let tickets: Vec<_> = std::thread::scope(|scope| {
            let leader = scope.spawn(|| bus.writer().append(1, 0, b"leader"));
            assert!(hold.wait_for(1));
            let tickets = (1..=40).map(|key| {
                let writer = bus.writer();
                let mut batch = writer.batch();
                batch.append(1, key, b"follower").unwrap();
                batch.commit_later().unwrap()
            });
            let tickets = tickets.collect();
            drop(hold);
            assert_eq!(leader.join().unwrap().unwrap(), Lsn::new(1));
            tickets
        });
        for ticket in &tickets {
            assert_eq!(ticket.wait().unwrap_err().kind(), ErrorKind::Poisoned);
        }
        assert_eq!(bus.durable_lsn(), Lsn::new(1));
        let mut reader = bus.reader(Start::Earliest).unwrap();
        assert_eq!(reader.try_next().unwrap().unwrap().payload(), b"leader");
        assert_eq!(reader.try_next().unwrap_err().kind(), ErrorKind::Poisoned);
        drop(reader);
        let image = bed.image();
        assert_eq!(bus.close().unwrap_err().kind(), ErrorKind::Poisoned);
        // The batches of a block that was not acknowledged are there all together or not at all.
        let again = image.by_hand();
        assert_eq!(again.recovery().records, 1, "the failing write did nothing");
    }
}

/// An oversize record burnt an LSN and poisoned its neighbours; another time the writer accepted
/// a record that the reader refused, and the log could not be opened again.
#[test]
fn trap_14_an_oversize_record_burns_no_lsn_and_what_is_accepted_is_read() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let writer = bus.writer();
        let max = writer.payload_bytes_max();
        assert_eq!(max as u64, SLAB / 2 - 80);
        let mut model = Vec::new();
        for bytes in [max - 1, max, 3, max, max, 0, max - 7] {
            let refused = writer.append(1, 1, &vec![7; max + 1]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::RecordTooLarge);
            commit(&writer, &mut model, bytes);
        }
        let mut batch = writer.batch();
        for bytes in [0, 1, 2_000] {
            let (kind, key, payload) = record(model.len() as u64, bytes);
            batch.append(kind, key, &payload).unwrap();
            model.push((kind, key, payload));
            // The neighbours are as they were, and so is the batch.
            let refused = batch.append(9, 9, &vec![7; max + 1]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::RecordTooLarge);
            let refused = batch.reserve(9, 9, usize::MAX).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::RecordTooLarge);
            let refused = batch.append(9, 9, &vec![7; max]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::BatchTooLarge);
        }
        assert_eq!(batch.len(), 3);
        let last = Lsn::new(model.len() as u64);
        assert_eq!(batch.commit().unwrap(), Lsn::new(last.get() - 2)..=last);
        commit(&writer, &mut model, max);
        fill_to(&bed, &bus, &mut model, 4, max);
        holds(&bed, &bus, &model);
        let image = bed.image();
        bus.close().unwrap();
        reopens(&image, &mut model.clone());
        reopens(&bed, &mut model);
    }
}

/// The largest record and a batch of exactly a block pass through the write queue as well.
#[test]
fn trap_14_the_largest_block_passes_through_the_write_queue() {
    for backend in backends() {
        let bed = Bed::sized(backend, 16 * SLAB, 32 * SLAB);
        let bus = bed.open();
        let writer = bus.writer();
        let max = writer.payload_bytes_max();
        let mut model = Vec::new();
        let mut tickets = Vec::new();
        for seed in 0..6 {
            let (kind, key, payload) = record(seed, max - seed as usize % 2);
            let mut batch = writer.batch();
            batch.append(kind, key, &payload).unwrap();
            let refused = batch.append(1, 1, b"").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::BatchTooLarge);
            tickets.push(batch.commit_later().unwrap());
            model.push((kind, key, payload));
        }
        tickets.iter().for_each(|ticket| assert!(ticket.wait().is_ok()));
        bus.close().unwrap();
        reopens(&bed, &mut model);
    }
}
