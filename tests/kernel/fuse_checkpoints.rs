//! Checkpoints that cannot be stored, by errno of a real kernel: nobody is stopped by that, nothing
//! is skipped after a crash, and when it works again, what was processed is stored.

use std::sync::mpsc;
use std::time::Duration;

use eventplane::{Ack, Batch, Bus, Error, Lsn, Start, Subscription};

use super::fuse::{Call, Effect, Fault, Fuse};
use super::{LONG, proof, until};

const NAME: &str = "checkpoints.tmp";
const RECORDS: u64 = 100;

fn open(fuse: &Fuse) -> Result<Bus, Error> {
    Bus::builder()
        .slab_bytes(64 << 10)
        .segment_bytes(128 << 10)
        .ring_bytes(256 << 10)
        .catchup_window_bytes(1 << 30)
        .checkpoint_interval(Duration::from_millis(5))
        .open(fuse.path().join("log"))
}

/// A consumer, and where each of its batches begins.
fn consume(bus: &Bus) -> (Subscription, mpsc::Receiver<Lsn>) {
    let (send, begins) = mpsc::channel();
    let consumer = bus.subscribe("one").start_if_new(Start::Earliest);
    let consumer = consumer.run(move |batch: &Batch<'_>| {
        send.send(batch.first_lsn())?;
        Ok(Ack::All)
    });
    (consumer.unwrap(), begins)
}

fn append(bus: &Bus) {
    for key in 0..RECORDS {
        bus.writer().append(0, key, &[7; 1_000]).unwrap();
    }
}

fn run(fuse: &Fuse, call: Call, errno: i32, heals: bool) {
    let bus = open(fuse).unwrap();
    let (consumer, _begins) = consume(&bus);
    append(&bus);
    consumer.wait_caught_up(LONG).unwrap();
    let fault =
        Fault { call, suffix: NAME, effect: Effect::Fails(errno), after: 0, times: u64::MAX };
    fuse.inject(fault);
    append(&bus);
    consumer.wait_caught_up(LONG).unwrap();
    until("it was tried more than once", || fuse.struck() > 2);
    // The log is as sound as ever.
    append(&bus);
    let end = bus.committed_lsn();
    consumer.wait_caught_up(LONG).unwrap();
    if heals {
        fuse.heal();
        consumer.stop().unwrap();
    } else {
        consumer.stop().expect_err("its checkpoint is not stored");
    }
    drop(bus);
    fuse.heal();
    fuse.crash();
    fuse.take_struck();
    let bus = open(fuse).unwrap();
    assert_eq!(bus.committed_lsn(), end);
    let (consumer, begins) = consume(&bus);
    consumer.wait_caught_up(LONG).unwrap();
    match (heals, begins.try_iter().next()) {
        (true, first) => assert_eq!(first, None, "all of it was stored"),
        (false, first) => {
            let first = first.expect("what is not stored comes again");
            assert!(first <= Lsn::new(RECORDS * 2 + 1), "from {first} on, of {end}");
        }
    }
    bus.close().unwrap();
    fuse.clear();
}

#[test]
fn checkpoints_that_cannot_be_stored_stop_nobody_and_skip_nothing() {
    const ROW: &str = "fuse_checkpoints";
    let mut executed = 0;
    for bypass in [false, true] {
        let fuse = match Fuse::mount(bypass) {
            Ok(fuse) => fuse,
            Err(why) => return proof::skipped(ROW, &why),
        };
        for call in [Call::Write, Call::Sync] {
            for errno in [libc::EIO, libc::ENOSPC] {
                for heals in [false, true] {
                    run(&fuse, call, errno, heals);
                    executed += 1;
                }
            }
        }
    }
    proof::executed(ROW, executed);
}
