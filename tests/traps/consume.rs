//! Traps 9 and 18: falling behind and coming back loses nothing; checkpoints are stored while
//! busy, and are those of this log.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventplane::testing::{ManualSubscription, Polled};
use eventplane::{Ack, Batch, Bus, ErrorKind, Lsn, Reason, Retry, Start, Tier};

use super::bed::{Bed, LONG, backends, commit, fill_to, until};
use super::raw;

const QUICK: Retry = Retry::exponential(Duration::from_micros(100), Duration::from_millis(1));

/// After replay the drain popped one newer event and dropped it; gaps were only counted; after ten
/// failed retries the consumer was back to normal with events lost.
#[test]
fn trap_09_falling_behind_with_failing_callbacks_and_coming_back_loses_nothing() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let builder = bed
            .builder()
            .dwell(Duration::from_millis(1))
            .tick(Duration::from_millis(1));
        let bus = builder.open(bed.path()).unwrap();
        let processed = Arc::new(Mutex::new(Vec::new()));
        let (done, calls) = (Arc::clone(&processed), AtomicU32::new(0));
        let consumer = bus
            .subscribe("unlucky")
            .start_if_new(Start::Earliest)
            .batch_records_max(9)
            .retry(QUICK.forever())
            .run(move |batch| {
                let lsns: Vec<Lsn> = batch.iter().map(|record| record.lsn()).collect();
                match calls.fetch_add(1, Ordering::Relaxed) % 13 {
                    2 => return Err("unlucky".into()),
                    5 => panic!("unlucky"),
                    8 => return Ok(Ack::RetryAfter(Duration::ZERO)),
                    10 => {
                        done.lock().unwrap().push(lsns[0]);
                        return Ok(Ack::Through(lsns[0]));
                    }
                    _ => done.lock().unwrap().extend(lsns),
                }
                Ok(Ack::All)
            })
            .unwrap();
        let mut model = Vec::new();
        for _ in 0..4 {
            // Out of the ring while paused, back while records come in.
            consumer.pause();
            for _ in 0..150 {
                commit(&bus.writer(), &mut model, 5_000);
            }
            consumer.resume();
            for _ in 0..30 {
                commit(&bus.writer(), &mut model, 100);
            }
            consumer.wait_caught_up(LONG).unwrap();
            until("it is hot again", || {
                commit(&bus.writer(), &mut model, 10);
                consumer.status().tier == Tier::Hot
            });
        }
        consumer.wait_caught_up(LONG).unwrap();
        assert!(consumer.status().failures > 20);
        let counts = bus.transition_counts();
        assert!(
            counts[&(Tier::Hot, Tier::CatchUp, Reason::Lapped)] >= 4,
            "{counts:?}"
        );
        assert!(
            counts[&(Tier::CatchUp, Tier::Hot, Reason::CaughtUp)] >= 4,
            "{counts:?}"
        );
        bus.close().unwrap();
        let expected: Vec<Lsn> = (1..=model.len() as u64).map(Lsn::new).collect();
        assert!(*processed.lock().unwrap() == expected);
    }
}

fn poll_all(consumer: &mut ManualSubscription, bed: &Bed, bus: &Bus) {
    for _ in 0..300 {
        consumer.poll();
        bed.clock.advance(Duration::from_millis(50));
        bus.tick();
    }
}

/// The same where the callback never succeeds: parked, not back to normal.
#[test]
fn trap_09_exhausted_retries_park_and_skip_nothing() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        let (healthy, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (is_healthy, given) = (Arc::clone(&healthy), Arc::clone(&seen));
        let deliver = move |batch: &Batch<'_>| {
            for record in batch {
                if record.lsn() == Lsn::new(17) && !is_healthy.load(Ordering::Relaxed) {
                    return Err("never".into());
                }
            }
            given
                .lock()
                .unwrap()
                .extend(batch.iter().map(|record| record.lsn()));
            Ok(Ack::All)
        };
        let consumer = bus
            .subscribe("c")
            .start_if_new(Start::Earliest)
            .retry(QUICK.attempts(10));
        let mut consumer = consumer.manual(deliver).unwrap();
        for _ in 0..30 {
            commit(&bus.writer(), &mut model, 500);
        }
        // While it retries and parks, the ring moves on, twice over.
        poll_all(&mut consumer, &bed, &bus);
        fill_to(&bed, &bus, &mut model, 5, 9_000);
        poll_all(&mut consumer, &bed, &bus);
        assert_eq!(consumer.poll(), Polled::Waiting);
        let status = consumer.handle().status();
        let parked = status.parked.expect("parked");
        assert_eq!((parked.kind(), status.lsn), (ErrorKind::Parked, Lsn::new(16)));
        assert_eq!(parked.lsns(), Some((Lsn::new(17), Lsn::new(17))));
        // Neither a try in vain nor a stored checkpoint moves it on.
        consumer.handle().resume();
        poll_all(&mut consumer, &bed, &bus);
        bus.housekeep();
        let stored = raw::checkpoints(&fs::read(bed.path().join("checkpoints")).unwrap());
        assert_eq!(stored, [("c".to_owned(), 16)]);
        healthy.store(true, Ordering::Relaxed);
        consumer.handle().resume();
        poll_all(&mut consumer, &bed, &bus);
        let expected: Vec<Lsn> = (1..=model.len() as u64).map(Lsn::new).collect();
        assert!(*seen.lock().unwrap() == expected);
    }
}

fn stored(bed: &Bed) -> Vec<(String, u64)> {
    raw::checkpoints(&fs::read(bed.path().join("checkpoints")).unwrap())
}

/// Checkpoints were flushed only when the ring was idle.
#[test]
fn trap_18_checkpoints_are_stored_while_the_consumer_is_busy() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        let consumer = bus
            .subscribe("busy")
            .start_if_new(Start::Earliest)
            .batch_records_max(3);
        let mut consumer = consumer.manual(|_| Ok(Ack::All)).unwrap();
        assert_eq!(stored(&bed), [("busy".to_owned(), 0)], "a barrier from the start");
        let mut last = 0;
        for _ in 0..20 {
            for _ in 0..5 {
                commit(&bus.writer(), &mut model, 500);
            }
            assert_eq!(consumer.poll(), Polled::Moved);
            let status = consumer.handle().status();
            assert!(
                status.lag_records > 0 && status.lsn.get() > last,
                "busy, never caught up"
            );
            bus.housekeep();
            last = status.lsn.get();
            assert_eq!(stored(&bed), [("busy".to_owned(), last)]);
        }
        // After a crash now it goes on there, and not at the beginning.
        let image = bed.image();
        let again = image.by_hand();
        let first = Arc::new(Mutex::new(None));
        let given = Arc::clone(&first);
        let consumer = again.subscribe("busy").start_if_new(Start::Earliest);
        let deliver = move |batch: &Batch<'_>| {
            given.lock().unwrap().get_or_insert(batch.first_lsn());
            Ok(Ack::All)
        };
        consumer.manual(deliver).unwrap().poll();
        assert_eq!(*first.lock().unwrap(), Some(Lsn::new(last + 1)));
    }
}

/// The same with threads: the bus does it by itself.
#[test]
fn trap_18_the_bus_stores_checkpoints_by_itself_while_busy() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let builder = bed.builder().checkpoint_interval(Duration::from_millis(2));
        let bus = builder.open(bed.path()).unwrap();
        let mut model = Vec::new();
        for _ in 0..100 {
            commit(&bus.writer(), &mut model, 50);
        }
        // The callback goes on only when what came before it is stored; the backlog never ends.
        let dir = bed.path().to_owned();
        let consumer = bus
            .subscribe("busy")
            .start_if_new(Start::Earliest)
            .batch_records_max(1);
        let deliver = move |batch: &Batch<'_>| {
            let before = batch.first_lsn().get() - 1;
            if before < 60 {
                until("the checkpoint is stored", || {
                    let file = fs::read(dir.join("checkpoints")).unwrap();
                    raw::checkpoints(&file) == [("busy".to_owned(), before)]
                });
            }
            Ok(Ack::All)
        };
        let consumer = consumer.run(deliver).unwrap();
        consumer.wait_processed(Lsn::new(60), LONG).unwrap();
        consumer.wait_caught_up(LONG).unwrap();
        assert_eq!(consumer.status().failures, 0);
        bus.close().unwrap();
        assert_eq!(stored(&bed), [("busy".to_owned(), 100)]);
    }
}

/// A checkpoint of another log was accepted.
#[test]
fn trap_18_a_checkpoint_of_another_log_is_refused() {
    for backend in backends() {
        let beds = [0, 1].map(|_| {
            let bed = Bed::new(backend);
            let bus = bed.by_hand();
            let mut model = Vec::new();
            for _ in 0..10 {
                commit(&bus.writer(), &mut model, 50);
            }
            let consumer = bus.subscribe("c").start_if_new(Start::Lsn(Lsn::new(5)));
            drop(consumer.manual(|_| Ok(Ack::All)).unwrap());
            bus.close().unwrap();
            bed
        });
        assert_eq!(stored(&beds[0]), [("c".to_owned(), 4)]);
        fs::copy(
            beds[0].path().join("checkpoints"),
            beds[1].path().join("checkpoints"),
        )
        .unwrap();
        for _ in 0..2 {
            // Again and again, until somebody says where to start.
            let bus = beds[1].by_hand();
            let refused = bus
                .subscribe("c")
                .start_if_new(Start::Earliest)
                .run(|_| Ok(Ack::All));
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ForeignCheckpoint);
            assert!(refused.path().is_some(), "{refused}");
            // Others are not concerned.
            drop(bus.subscribe("d").manual(|_| Ok(Ack::All)).unwrap());
            bus.close().unwrap();
        }
        let bus = beds[1].by_hand();
        let consumer = bus.subscribe("c").start_at(Start::Lsn(Lsn::new(8)));
        drop(consumer.manual(|_| Ok(Ack::All)).unwrap());
        bus.close().unwrap();
        assert!(stored(&beds[1]).contains(&("c".to_owned(), 7)));
        let bus = beds[1].by_hand();
        let consumer = bus.subscribe("c").manual(|_| Ok(Ack::All)).unwrap();
        assert_eq!(consumer.handle().status().lsn, Lsn::new(7));
    }
}
