//! Without a directory: hot only, and whoever is lapped is told what is gone.

mod common;

use std::sync::Arc;
use std::thread;

use common::{LONG, RING_BYTES, Recorder, SLAB_BYTES, fill_bytes, lsns, recording, small};
use eventplane::testing::{ManualClock, Polled};
use eventplane::{Ack, Backend, Batch, ErrorKind, LossCause, Lsn, OnPositionLost, Signal, Start};
use parking_lot::Mutex;

#[test]
fn in_memory_a_lapped_consumer_is_told_what_it_lost() {
    let bus = small(Backend::Auto)
        .manual(&ManualClock::default())
        .in_memory()
        .unwrap();
    for on_loss in [OnPositionLost::Earliest, OnPositionLost::Fail] {
        let signals = Arc::new(Mutex::new(Vec::new()));
        let recorder = Recorder::default();
        let mut consumer = bus
            .subscribe(format!("{on_loss:?}"))
            .start_if_new(Start::Latest)
            .on_position_lost(on_loss)
            .on_signal({
                let signals = Arc::clone(&signals);
                move |signal| signals.lock().push(signal.clone())
            })
            .manual({
                let recorder = recorder.clone();
                move |batch: &Batch<'_>| {
                    recorder.take(batch);
                    Ok(Ack::All)
                }
            })
            .unwrap();
        let begin = bus.committed_lsn().get() + 1;
        fill_bytes(&bus, 4 * RING_BYTES);
        while consumer.poll() == Polled::Moved {}
        let lost = signals.lock().iter().find_map(|signal| match signal {
            Signal::PositionLost { from, to, cause } => Some((from.get(), to.get(), *cause)),
            _ => None,
        });
        let (from, to, cause) = lost.expect("it was told");
        assert_eq!((from, cause), (begin, LossCause::Lapped));
        let parked = consumer.handle().status().parked.map(|error| error.kind());
        if on_loss == OnPositionLost::Earliest {
            assert_eq!(recorder.lsns(), lsns(to + 1..=bus.committed_lsn().get()));
            assert_eq!(parked, None);
        } else {
            assert_eq!((recorder.len(), parked), (0, Some(ErrorKind::PositionLost)));
            consumer.handle().seek(Start::Earliest).unwrap();
            assert_eq!(consumer.poll(), Polled::Moved, "a seek gets it going");
        }
    }
}

/// What all consumers have left was kept until the ring had come round: memory that nobody needed,
/// walked in a circle larger than any cache.
#[test]
fn in_memory_what_everybody_has_left_goes_and_nothing_else() {
    const RING: u64 = 64 * SLAB_BYTES;
    let bus = small(Backend::Auto)
        .ring_bytes(RING)
        .manual(&ManualClock::default())
        .in_memory()
        .unwrap();
    let subscribe = |name: &str| {
        let recorder = Recorder::default();
        let consumer = bus.subscribe(name).start_if_new(Start::Earliest).manual({
            let recorder = recorder.clone();
            move |batch: &Batch<'_>| {
                recorder.take(batch);
                Ok(Ack::All)
            }
        });
        (consumer.unwrap(), recorder)
    };
    fill_bytes(&bus, 8 * SLAB_BYTES);
    assert_eq!(
        bus.first_lsn(),
        Lsn::FIRST,
        "without a consumer the ring keeps what fits"
    );
    let ((mut fast, fast_saw), (mut slow, slow_saw)) = (subscribe("fast"), subscribe("slow"));
    for _ in 0..3 {
        fill_bytes(&bus, 8 * SLAB_BYTES);
        while fast.poll() == Polled::Moved {}
    }
    assert_eq!(bus.first_lsn(), Lsn::FIRST, "one of them has still to read it");
    while slow.poll() == Polled::Moved {}
    let seen = bus.committed_lsn();
    fill_bytes(&bus, 4 * SLAB_BYTES);
    let first = bus.first_lsn();
    assert!(
        first.get() > seen.get() - 64 && first <= seen.next(),
        "{first} is first, {seen} was seen by all"
    );
    let (mut late, late_saw) = subscribe("late");
    while late.poll() == Polled::Moved {}
    assert_eq!(late_saw.lsns(), lsns(first.get()..=bus.committed_lsn().get()));
    // A seek back is good for what is still there, also where the consumer itself had left it.
    while slow.poll() == Polled::Moved {}
    let last = bus.committed_lsn();
    slow.handle().seek(Start::Lsn(seen.next())).unwrap();
    while fast.poll() == Polled::Moved {}
    fill_bytes(&bus, 4 * SLAB_BYTES);
    while slow.poll() == Polled::Moved {}
    let expected: Vec<u64> = (1..=last.get())
        .chain(seen.get() + 1..=bus.committed_lsn().get())
        .collect();
    assert_eq!(slow_saw.lsns(), expected);
    assert_eq!(fast_saw.lsns(), lsns(1..=last.get()));
}

#[test]
fn in_memory_many_producers_one_order() {
    const PRODUCERS: u64 = 4;
    const EACH: u64 = 2_000;
    let bus = small(Backend::Auto)
        .ring_bytes(64 * SLAB_BYTES)
        .in_memory()
        .unwrap();
    let consumers: Vec<_> = (0..2)
        .map(|i| recording(&bus, &format!("c{i}"), Start::Earliest))
        .collect();
    thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let writer = bus.writer();
            scope.spawn(move || {
                let mut before = Lsn::ZERO;
                for n in 0..EACH {
                    let lsn = writer.append(producer as u16, n, &n.to_le_bytes()).unwrap();
                    assert!(lsn > before);
                    before = lsn;
                }
            });
        }
    });
    let last = bus.committed_lsn();
    assert_eq!(last.get(), PRODUCERS * EACH);
    for (consumer, recorder) in &consumers {
        consumer.wait_processed(last, LONG).unwrap();
        assert_eq!(recorder.lsns(), lsns(1..=last.get()));
        let mut next = [0; PRODUCERS as usize];
        for (_, kind, key, bytes) in recorder.trace() {
            assert_eq!(
                (key, &bytes[..]),
                (next[usize::from(kind)], &key.to_le_bytes()[..])
            );
            next[usize::from(kind)] += 1;
        }
    }
    assert_eq!(consumers[0].1.trace(), consumers[1].1.trace());
    bus.close().unwrap();
}
