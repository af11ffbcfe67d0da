//! A disk that is full: a file system of 16 MiB. The error is clear and comes before an LSN is
//! used, nothing acknowledged is lost, and the log goes on by itself when there is room: because
//! retention made some, or because the user did.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use eventplane::testing::{Fault, Faults, Op};
use eventplane::{Ack, Batch, Bus, Error, ErrorKind, Lsn, Retention, Start, Writer};

use super::judge::Judge;
use super::mount::{FileSystem, Kind};
use super::wire::{Message, Orders};
use super::{LONG, load, proof, until};

const BYTES: u64 = 16 << 20;
const ROW: &str = "full_disk";

/// Who makes room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Room {
    Retention,
    User,
    /// Nobody: for the control.
    Nobody,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    room: Room,
    io_uring: bool,
    /// Somebody else takes the last block as well; else what is free is only too little.
    to_the_last_block: bool,
    /// The log is closed and opened again while the disk is full.
    reopened: bool,
}

fn orders(disk: &FileSystem, case: Case) -> Orders {
    Orders {
        dir: disk.log("log"),
        life: 0,
        seed: 0,
        io_uring: case.io_uring,
        direct_io: true,
        large: false,
        deferred: false,
        retention: false,
        plant: None,
    }
}

fn occupy(path: &str, bytes: u64) {
    File::create(path)
        .unwrap()
        .write_all(&vec![0x55; bytes as usize])
        .unwrap();
}

/// Takes the last block, also that which an attempt to prepare a segment had for a moment.
fn occupy_all(path: &str) {
    let mut file = File::create(path).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(350) {
        if file
            .write_all(&[0x55; 4096])
            .and_then(|()| file.sync_data())
            .is_err()
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

struct Producer {
    writer: Writer,
    sequence: u64,
    told: Vec<Message>,
}

impl Producer {
    fn commit(&mut self) -> Result<(), Error> {
        let mut batch = self.writer.batch();
        load::fill(&mut batch, (0, self.sequence), false)?;
        let lsns = batch.commit()?;
        let (first, last) = (lsns.start().get(), lsns.end().get());
        let sequence = self.sequence;
        self.told
            .push(Message::Acknowledged { producer: 0, sequence, first, last });
        self.sequence += 1;
        Ok(())
    }

    /// Writes until the disk is full.
    fn fill(&mut self) -> Result<Error, String> {
        let deadline = Instant::now() + LONG;
        while Instant::now() < deadline {
            if let Err(error) = self.commit() {
                return Ok(error);
            }
        }
        Err("the disk does not get full".into())
    }

    /// The same batch that was refused, until it is accepted.
    fn goes_on_within(&mut self, time: Duration) -> Result<(), String> {
        let deadline = Instant::now() + time;
        while let Err(error) = self.commit() {
            if error.kind() != ErrorKind::StorageFull || Instant::now() > deadline {
                return Err(format!("it does not go on: {error:?}"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn is_clear(error: &Error) -> Result<(), String> {
    let says = error.to_string();
    let clear = error.kind() == ErrorKind::StorageFull
        && error.is_transient()
        && error.path().is_some()
        && says.contains("No space left");
    if clear { Ok(()) } else { Err(format!("not clear: {error:?}")) }
}

fn run(case: Case, patience: Duration) -> Result<(), String> {
    let disk = FileSystem::new(Kind::Ext4, BYTES)?;
    let (orders, filler) = (orders(&disk, case), disk.log("filler"));
    if case.room == Room::User {
        occupy(&filler, BYTES / 3);
    }
    let retention = match case.room {
        Room::Retention => Retention::consumed(),
        _ => Retention::keep_all(),
    };
    let failed = |e: Error| format!("{e:?}");
    // A bus, and a consumer that does not consume yet.
    let open = || {
        let bus = load::builder(&orders).retention(retention).open(&orders.dir)?;
        let consumer = bus.subscribe("slow").start_if_new(Start::Earliest);
        let consumer = consumer.run(|_: &Batch<'_>| Ok(Ack::All))?;
        consumer.pause();
        Ok((bus, consumer))
    };
    let (mut bus, mut consumer) = open().map_err(failed)?;
    let mut producer = Producer { writer: bus.writer(), sequence: 0, told: Vec::new() };
    producer.fill().and_then(|error| is_clear(&error))?;
    if case.to_the_last_block {
        occupy_all(&disk.log("more"));
        is_clear(&producer.commit().expect_err("there is no room"))?;
    }
    let full_at = bus.committed_lsn();
    if case.reopened {
        bus.close().map_err(failed)?;
        (bus, consumer) = open().map_err(failed)?;
        producer.writer = bus.writer();
        // What is left of the last slab is used, to the end.
        producer.fill().and_then(|error| is_clear(&error))?;
    }
    let (found, full_at) = (full_at, bus.committed_lsn());
    if full_at < found {
        return Err(format!("{full_at} of {found} after reopening"));
    }
    is_clear(&producer.commit().expect_err("there is still no room"))?;
    // All of it can be read while the disk is full, and nothing is half there.
    let read = bus.reader(Start::Earliest).map_err(failed)?;
    let read = read.take(full_at.get() as usize).filter_map(Result::ok).count();
    if read as u64 != full_at.get() {
        return Err(format!("{read} of {full_at} records while it is full"));
    }
    match case.room {
        Room::Retention => consumer.resume(),
        Room::User => fs::remove_file(&filler).unwrap(),
        Room::Nobody => {}
    }
    producer.goes_on_within(patience)?;
    match producer.told.last() {
        Some(Message::Acknowledged { first, .. }) if Lsn::new(*first) == full_at.next() => {}
        told => return Err(format!("behind {full_at} came {told:?}")),
    }
    let told = std::mem::take(&mut producer.told);
    bus.close().map_err(failed)?;
    let mut judge = Judge::new(0);
    // The one consumer there is acknowledged what retention may have deleted.
    judge.all_processed(full_at.get());
    judge.hear(&told)?;
    judge.look(&orders)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for room in [Room::Retention, Room::User] {
        for bits in 0..8 {
            let (io_uring, to_the_last_block) = (bits & 1 == 0, bits & 2 != 0);
            cases.push(Case { room, io_uring, to_the_last_block, reopened: bits & 4 != 0 });
        }
    }
    cases
}

#[test]
fn a_full_disk_is_told_and_gone_through() {
    if let Err(why) = FileSystem::new(Kind::Ext4, BYTES) {
        return proof::skipped(ROW, &why);
    }
    let mut executed = 0;
    let wanted = proof::cases(ROW, 2) as usize;
    let all = cases();
    for case in all.iter().step_by((all.len() / wanted).max(1)) {
        run(*case, LONG).unwrap_or_else(|why| panic!("{case:?}: {why}"));
        executed += 1;
    }
    proof::executed(ROW, executed);
}

/// The control: where nobody makes room, it does not go on, and that is found.
#[test]
fn a_disk_that_stays_full_is_found() {
    if FileSystem::new(Kind::Ext4, BYTES).is_err() {
        return;
    }
    let case =
        Case { room: Room::Nobody, io_uring: true, to_the_last_block: false, reopened: false };
    let found = run(case, Duration::from_millis(500)).expect_err("there is no room");
    assert!(found.contains("does not go on"), "{found}");
    println!("control: full_disk: {found}");
}

/// What every consumer had processed could not be deleted on a disk that was full to the last
/// block: for that the checkpoint had to be stored, for which there was no block.
#[test]
fn there_is_room_for_the_checkpoint_that_lets_retention_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::new();
    let bus = Bus::builder()
        .slab_bytes(64 << 10)
        .segment_bytes(128 << 10)
        .ring_bytes(256 << 10)
        .catchup_window_bytes(1 << 20)
        .retention(Retention::consumed())
        .checkpoint_interval(Duration::from_millis(5))
        .faults(&faults)
        .open(dir.path())
        .unwrap();
    let consumer = bus.subscribe("one").start_if_new(Start::Earliest);
    let consumer = consumer.run(|_: &Batch<'_>| Ok(Ack::All)).unwrap();
    consumer.pause();
    let append = |key| bus.writer().append(0, key, &[7; 10_000]);
    for key in 0..40 {
        append(key).unwrap();
    }
    // From here on there is room for what has a file already, and for nothing else.
    for op in [Op::Create, Op::Allocate] {
        faults.inject(Fault::errno(op, libc::ENOSPC).forever());
    }
    consumer.resume();
    until("retention made room", || bus.first_lsn() > Lsn::FIRST);
}
