//! Errno of a real kernel, into pwritev2 and into io_uring: writes, syncs and preparations that
//! fail, writes that end early. The error reaches whoever commits, the log is poisoned where it
//! must be, and after a crash and reopening nothing acknowledged is missing.

use std::error::Error as _;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use eventplane::{Backend, Bus, Error, ErrorKind, Start};

use super::fuse::{Call, Effect, Fault, Fuse};
use super::judge::Judge;
use super::load;
use super::wire::{Message, Orders};
use super::{LONG, proof, until};

/// Batches that are committed behind a fault, if nothing fails.
const BATCHES: u64 = 24;
const LOG: &str = ".log";
const TEMPORARY: &str = ".tmp";

/// What a fault must lead to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    /// Commits fail with `Poisoned`, because of this errno.
    Poisoned(i32),
    /// As if nothing had happened.
    Nothing,
    /// One of the two, depending on where the rest of a short write goes.
    Either,
    /// Batches are refused with this kind until the fault is gone, and then are not.
    Refused(ErrorKind),
}

#[derive(Clone, Debug)]
struct Case {
    bypass: bool,
    large: bool,
    deferred: bool,
    backend: Backend,
    faults: Vec<Fault>,
    expect: Expect,
}

fn fault(call: Call, suffix: &'static str, effect: Effect, after: u64, times: u64) -> Fault {
    Fault { call, suffix, effect, after, times }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for nth in 0..5 {
        for bits in 0..8 {
            let (bypass, large, deferred) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
            let mut add = |faults: &[Fault], expect| {
                // The kernel loses its place in a write of io_uring that ends early here: what
                // `Backend::Auto` avoids.
                let short = faults.iter().any(|f| matches!(f.effect, Effect::Short(_)));
                let backend = if short { Backend::Auto } else { Backend::IoUring };
                let faults = faults.to_vec();
                cases.push(Case { bypass, large, deferred, backend, faults, expect });
            };
            for errno in [libc::EIO, libc::ENOSPC] {
                for call in [Call::Write, Call::Sync] {
                    let one = fault(call, LOG, Effect::Fails(errno), nth, 1);
                    add(&[one], Expect::Poisoned(errno));
                }
            }
            let short = fault(Call::Write, LOG, Effect::Short(4096), nth, 1);
            // Not a multiple of what O_DIRECT demands of the rest.
            let odd = fault(Call::Write, LOG, Effect::Short(1_000), nth, 1);
            let then = fault(Call::Write, LOG, Effect::Fails(libc::EIO), 0, 1);
            add(&[Fault { times: 3, ..short }], Expect::Nothing);
            add(&[odd], Expect::Either);
            add(&[short, then], Expect::Either);
            if nth == 0 {
                for (call, errno, kind) in [
                    (Call::Write, libc::EIO, ErrorKind::Io),
                    (Call::Write, libc::ENOSPC, ErrorKind::StorageFull),
                    (Call::Allocate, libc::ENOSPC, ErrorKind::StorageFull),
                    (Call::Sync, libc::EIO, ErrorKind::Io),
                ] {
                    let lasting = fault(call, TEMPORARY, Effect::Fails(errno), 0, u64::MAX);
                    add(&[lasting], Expect::Refused(kind));
                }
            }
        }
    }
    cases
}

/// A writer and what it was promised.
struct Producer<'a> {
    bus: &'a Bus,
    producer: u64,
    sequence: u64,
    deferred: bool,
    told: Vec<Message>,
}

impl Producer<'_> {
    /// One batch, or on every third call three of which two are in flight together.
    fn commit(&mut self) -> Result<(), Error> {
        let writer = self.bus.writer();
        let batches = if self.sequence.is_multiple_of(3) { 3 } else { 1 };
        let mut tickets = Vec::new();
        for _ in 0..batches {
            let mut batch = writer.batch();
            load::fill(&mut batch, (self.producer, self.sequence), false)?;
            tickets.push((self.sequence, batch.commit_later()?));
            self.sequence += 1;
        }
        if self.deferred {
            self.bus.sync()?;
        }
        for (sequence, ticket) in tickets {
            let lsns = ticket.wait()?;
            let (producer, first, last) = (self.producer, lsns.start().get(), lsns.end().get());
            self.told
                .push(Message::Acknowledged { producer, sequence, first, last });
        }
        Ok(())
    }
}

fn errno_of(error: &Error) -> Option<i32> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(errno) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(errno);
        }
        cause = error.source();
    }
    None
}

fn orders(fuse: &Fuse, name: &str, case: &Case) -> Orders {
    Orders {
        dir: fuse.path().join(name).to_str().unwrap().to_owned(),
        life: 0,
        seed: 0,
        io_uring: true,
        direct_io: true,
        large: case.large,
        deferred: case.deferred,
        retention: false,
        plant: None,
    }
}

/// Runs a case. The error says what did not hold.
fn run(fuse: &Fuse, name: &str, case: &Case) -> Result<(), String> {
    let orders = orders(fuse, name, case);
    let builder = load::builder(&orders).backend(case.backend);
    let bus = builder
        .open(&orders.dir)
        .map_err(|e| format!("opening: {e:?}"))?;
    let segments = fuse.path().join(name).join("segments");
    // So that it strikes the blocks, and not the segments that are being prepared.
    until("segments are prepared", || {
        let names = fs::read_dir(&segments)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().ends_with(LOG))
            .count()
            == 3
    });
    let large = if case.large { load::LARGE } else { 0 };
    let mut producer = Producer {
        bus: &bus,
        producer: large,
        sequence: 0,
        deferred: case.deferred,
        told: Vec::new(),
    };
    producer
        .commit()
        .map_err(|e| format!("before the fault: {e:?}"))?;
    for fault in &case.faults {
        fuse.inject(*fault);
    }
    let happened = behind_the_fault(fuse, case, &mut producer);
    let told = std::mem::take(&mut producer.told);
    drop(bus);
    fuse.heal();
    fuse.crash();
    let struck = fuse.take_struck();
    happened?;
    if struck == 0 {
        return Err("the fault never struck".into());
    }
    let mut judge = Judge::new(0);
    judge.hear(&told)?;
    judge.look(&orders)?;
    // It goes on where it ends.
    let bus = load::builder(&orders)
        .open(&orders.dir)
        .map_err(|e| format!("again: {e:?}"))?;
    let end = bus.committed_lsn();
    let lsn = bus
        .writer()
        .append(0, 0, b"on")
        .map_err(|e| format!("going on: {e:?}"))?;
    let goes_on = lsn == end.next() && bus.close().is_ok();
    if goes_on { Ok(()) } else { Err(format!("LSN {lsn} behind {end}")) }
}

fn behind_the_fault(fuse: &Fuse, case: &Case, producer: &mut Producer<'_>) -> Result<(), String> {
    let lasting = matches!(case.expect, Expect::Refused(_));
    // A log goes through the segments that are prepared before it needs another one.
    let enough = if lasting { 100 * BATCHES } else { BATCHES };
    let mut failed = None;
    while producer.sequence < enough && failed.is_none() {
        failed = producer.commit().err();
    }
    match (case.expect, &failed) {
        (Expect::Nothing | Expect::Either, None) => Ok(()),
        (Expect::Poisoned(errno), Some(e)) if errno_of(e) == Some(errno) => poisoned(producer, e),
        (Expect::Either, Some(error)) => poisoned(producer, error),
        (Expect::Refused(kind), Some(error)) if error.kind() == kind => {
            fuse.heal();
            let deadline = Instant::now() + LONG;
            while let Err(error) = producer.commit() {
                if error.kind() != kind || Instant::now() > deadline {
                    return Err(format!("it does not go on: {error:?}"));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        }
        (_, failed) => Err(format!("it came to {failed:?}")),
    }
}

/// From the failure on everything is refused, and nothing that failed is visible.
fn poisoned(producer: &mut Producer<'_>, error: &Error) -> Result<(), String> {
    let end = producer.bus.committed_lsn();
    let again = producer.commit().map_err(|e| e.kind());
    let promised = producer.told.iter().filter_map(|told| match told {
        Message::Acknowledged { last, .. } => Some(*last),
        _ => None,
    });
    let holds = error.kind() == ErrorKind::Poisoned
        && again == Err(ErrorKind::Poisoned)
        && promised.max().unwrap_or(0) <= end.get()
        && end == producer.bus.committed_lsn();
    if holds { Ok(()) } else { Err(format!("not poisoned: {error:?}, then {again:?}")) }
}

#[test]
fn errors_of_the_kernel_reach_the_caller_and_lose_nothing() {
    const ROW: &str = "fuse_errors";
    let disks = match (Fuse::mount(false), Fuse::mount(true)) {
        (Ok(cached), Ok(bypassed)) => [cached, bypassed],
        (Err(why), _) | (_, Err(why)) => return proof::skipped(ROW, &why),
    };
    let wanted = proof::cases(ROW, 20);
    let all = cases();
    // In steps, so that a few of them are of every kind.
    let stride = (all.len() as u64 / wanted.clamp(1, all.len() as u64)) as usize;
    let mut executed = 0;
    for (number, case) in all.iter().enumerate().step_by(stride) {
        let disk = &disks[usize::from(case.bypass)];
        let outcome = run(disk, &format!("log-{number}"), case);
        disk.clear();
        outcome.unwrap_or_else(|why| panic!("case {number}: {case:?}: {why}"));
        executed += 1;
    }
    proof::executed(ROW, executed);
}

/// A short write of io_uring was continued by the kernel at the offset of its beginning, and told
/// as whole: acknowledged, and after reopening `Corrupt`.
#[test]
fn the_rest_of_a_short_write_goes_where_it_belongs() {
    let Ok(fuse) = Fuse::mount(true) else { return };
    let case = Case {
        bypass: true,
        large: true,
        deferred: false,
        backend: Backend::Auto,
        faults: vec![fault(Call::Write, LOG, Effect::Short(4096), 0, 3)],
        expect: Expect::Nothing,
    };
    run(&fuse, "log", &case).unwrap();
}

/// Where files cannot be mapped, consumers that fell behind failed to read them, again and again.
#[test]
fn what_cannot_be_mapped_is_read() {
    let Ok(fuse) = Fuse::mount(true) else { return };
    let small = Bus::builder()
        .slab_bytes(64 << 10)
        .segment_bytes(128 << 10)
        .ring_bytes(256 << 10);
    let bus = small
        .catchup_window_bytes(1 << 30)
        .open(fuse.path().join("log"))
        .unwrap();
    let writer = bus.writer();
    for key in 0..100 {
        writer.append(0, key, &[7; 10_000]).unwrap();
    }
    let mut reader = bus.reader(Start::Earliest).unwrap();
    for key in 0..100 {
        let record = reader.next_timeout(LONG).unwrap().expect("all of them");
        assert_eq!(record.key(), key);
    }
}

/// The control: disks that lie. What they lose was acknowledged, and is missed.
#[test]
fn a_disk_that_lies_is_found_out() {
    for bypass in [false, true] {
        let Ok(fuse) = Fuse::mount(bypass) else { return };
        for (number, call) in [Call::Write, Call::Sync].into_iter().enumerate() {
            let faults = vec![fault(call, LOG, Effect::Lies, 0, u64::MAX)];
            let (large, deferred) = (number == 0, false);
            let (backend, expect) = (Backend::IoUring, Expect::Nothing);
            let case = Case { bypass, large, deferred, backend, faults, expect };
            let found = run(&fuse, &format!("log-{number}"), &case).expect_err("it lied");
            assert!(
                found.contains("lost"),
                "{call:?} was found for another reason: {found}"
            );
            println!("control: fuse_errors: {call:?} lies: {found}");
        }
    }
}
