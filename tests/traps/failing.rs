//! Traps 11 and 12: short writes, and what a failed sync means for everybody.

use std::time::Duration;

use eventplane::testing::{Fault, Op};
use eventplane::{Ack, Durability, ErrorKind, Lsn, Start};

use super::bed::{
    Bed, LONG, SLAB, backend_name, backend_of, backends, child_of, commit, fill_to, in_child,
    record, reopens, until,
};
use super::raw;

/// A short write of io_uring was taken for success: of 308,000 bytes 100,000 were written, Ok.
#[test]
fn trap_11_short_writes_are_finished() {
    for backend in backends() {
        for threads in [false, true] {
            let bed = Bed::new(backend);
            let builder = bed.builder().faults(&bed.faults);
            let builder = if threads { builder } else { builder.manual(&bed.clock) };
            let bus = builder.open(bed.path()).unwrap();
            let mut model = Vec::new();
            for nth in 1..60 {
                // Each write may fall short several times.
                bed.faults.inject(Fault::short(Op::DurableWrite, 4096).nth(nth));
                bed.faults.inject(Fault::short(Op::Write, 4096).nth(nth));
            }
            let before = bed.faults.calls(Op::DurableWrite);
            fill_to(&bed, &bus, &mut model, 3, 14_000);
            let blocks: usize = (0..3).map(|n| raw::filled(&bed.segment(n)).len()).sum();
            let attempts = bed.faults.calls(Op::DurableWrite) - before;
            assert!(
                attempts > 2 * blocks as u64,
                "{attempts} attempts, {blocks} blocks"
            );
            bus.close().unwrap();
            reopens(&bed, &mut model);
        }
    }
}

/// The same where the rest cannot be written: that is a failure, not a shorter success.
#[test]
fn trap_11_a_short_write_whose_rest_fails_is_a_failure() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed
            .builder()
            .manual(&bed.clock)
            .faults(&bed.faults)
            .open(bed.path())
            .unwrap();
        let mut model = Vec::new();
        commit(&bus.writer(), &mut model, 14_000);
        bed.faults.inject(Fault::short(Op::DurableWrite, 4096));
        bed.faults
            .inject(Fault::errno(Op::DurableWrite, libc::EIO).nth(2));
        let (kind, key, payload) = record(1, 14_000);
        let failed = bus.writer().append(kind, key, &payload).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Poisoned);
        assert_eq!(bus.committed_lsn(), Lsn::new(1));
        let image = bed.image();
        assert!(
            image.by_hand().recovery().torn_bytes > 0,
            "a part of it is on the disk"
        );
        reopens(&image, &mut model);
    }
}

fn limit_files(bytes: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is there for the kernel to fill and to read.
    unsafe {
        // Without this a write beyond the limit kills the process instead of failing.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit), 0);
        limit.rlim_cur = bytes.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

/// The same from the kernel itself: a limit on the size of files cuts a queued write in the middle.
#[test]
fn trap_11_a_write_that_the_kernel_cuts_is_not_acknowledged() {
    const NAME: &str = "failing::trap_11_a_write_that_the_kernel_cuts_is_not_acknowledged";
    let Some(backend) = child_of(NAME) else {
        for backend in backends() {
            in_child(NAME, backend_name(backend));
        }
        return;
    };
    let bed = Bed::sized(backend_of(&backend), 16 * SLAB, 64 * SLAB);
    let bus = bed.open();
    until("segments are prepared", || bed.segments().len() >= 3);
    limit_files(20 * SLAB + 5 * 4096);
    let writer = bus.writer();
    let mut model = Vec::new();
    let mut tickets = Vec::new();
    for seed in 0..30 {
        let (kind, key, payload) = record(seed, 150_000);
        let mut batch = writer.batch();
        let ticket = batch
            .append(kind, key, &payload)
            .and_then(|()| batch.commit_later());
        let Ok(ticket) = ticket else { break };
        tickets.push(ticket);
        model.push((kind, key, payload));
    }
    let acknowledged = tickets
        .iter()
        .take_while(|ticket| ticket.wait().is_ok())
        .count();
    assert!(acknowledged < tickets.len(), "the limit was met");
    for ticket in &tickets[acknowledged..] {
        assert_eq!(ticket.wait().unwrap_err().kind(), ErrorKind::Poisoned);
    }
    assert_eq!(bus.durable_lsn(), Lsn::new(acknowledged as u64));
    limit_files(u64::MAX);
    let image = bed.image();
    assert_eq!(bus.close().unwrap_err().kind(), ErrorKind::Poisoned);
    let again = image.by_hand();
    let there = again.recovery().records as usize;
    assert!(
        there >= acknowledged && there <= 20 * SLAB as usize / 150_000,
        "{there}"
    );
    drop(again);
    model.truncate(there);
    reopens(&image, &mut model);
}

/// The second sync after a failed one returned Ok without a system call.
#[test]
fn trap_12_after_a_failed_sync_everything_fails_until_the_log_is_reopened() {
    for backend in backends() {
        for deferred in [true, false] {
            poison_and_look(&Bed::new(backend), deferred);
        }
    }
}

fn poison_and_look(bed: &Bed, deferred: bool) {
    let interval = Duration::from_secs(3600);
    let durability = if deferred {
        Durability::Deferred { interval, bytes: 1 << 30 }
    } else {
        Durability::Synced
    };
    let builder = bed.builder().durability(durability).watermark_idle(interval);
    let bus = builder.faults(&bed.faults).open(bed.path()).unwrap();
    let writer = bus.writer();
    let mut model = Vec::new();
    commit(&writer, &mut model, 100);
    bus.sync().unwrap();
    let consumer = bus
        .subscribe("c")
        .start_if_new(Start::Earliest)
        .run(|_| Ok(Ack::All));
    let consumer = consumer.unwrap();
    let mut reader = bus.reader(Start::Earliest).unwrap();
    // Once: the disk would say Ok to every further call.
    let op = if deferred { Op::Sync } else { Op::DurableWrite };
    bed.faults.inject(Fault::errno(op, libc::EIO).on("00.log"));
    let mut batch = writer.batch();
    batch.append(1, 1, b"lost").unwrap();
    let ticket = batch.commit_later().unwrap();
    assert_eq!(bus.sync().unwrap_err().kind(), ErrorKind::Poisoned);
    let file = bed.segment(0);
    for _ in 0..3 {
        let error = bus.sync().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Poisoned);
        assert!(error.to_string().contains("reopen"), "{error}");
        // With `Deferred` a ticket promises nothing; then `sync` was the one to ask.
        assert!(deferred || ticket.wait().unwrap_err().kind() == ErrorKind::Poisoned);
        assert_eq!(writer.append(1, 1, b"x").unwrap_err().kind(), ErrorKind::Poisoned);
        let mut batch = writer.batch();
        assert_eq!(batch.append(1, 1, b"x").unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(batch.reserve(1, 1, 1).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(batch.commit().unwrap_err().kind(), ErrorKind::Poisoned);
        let later = writer.batch().commit_later();
        assert_eq!(later.unwrap_err().kind(), ErrorKind::Poisoned);
    }
    // Consumers drain what was published, then are told, also those who would wait.
    assert_eq!(bus.durable_lsn(), Lsn::new(1));
    consumer.wait_processed(Lsn::new(1), LONG).unwrap();
    let waited = consumer.wait_processed(Lsn::new(2), LONG).unwrap_err();
    assert_eq!(waited.kind(), ErrorKind::Poisoned);
    assert_eq!(reader.next().unwrap().unwrap().lsn(), Lsn::new(1));
    for _ in 0..3 {
        assert_eq!(reader.next().unwrap().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(reader.try_next().unwrap_err().kind(), ErrorKind::Poisoned);
    }
    assert!(
        bed.segment(0) == file,
        "nothing more is written to a log that failed"
    );
    assert_eq!(bus.close().unwrap_err().kind(), ErrorKind::Poisoned);
    // What is really on the disk: the record whole, under its LSN, or nothing.
    let bus = bed.by_hand();
    let there = bus.recovery().records;
    assert!(there == 1 || there == 2);
    drop(bus);
    model.extend((1..there).map(|_| (1, 1, b"lost".to_vec())));
    reopens(bed, &mut model);
}
