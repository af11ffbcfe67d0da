//! Calls that cannot be served: records too large, names, panics, nesting, after the end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use eventplane::{Ack, Bus, ErrorKind, Lsn, OwnedRecord, Retry, Start};

use super::bed::{Bed, LONG, backends, commit, reopens};

/// On each backend, and in memory.
fn each_bus(mut test: impl FnMut(Bus)) {
    for backend in backends() {
        let bed = Bed::new(backend);
        test(bed.open());
        test(bed.builder().in_memory().unwrap());
    }
}

fn records(bus: &Bus) -> Vec<OwnedRecord> {
    let mut reader = bus.reader(Start::Earliest).unwrap();
    std::iter::from_fn(|| reader.try_next().unwrap()).collect()
}

#[test]
fn records_of_no_length_and_of_too_much() {
    each_bus(|bus| {
        let writer = bus.writer();
        let max = writer.payload_bytes_max();
        assert_eq!(writer.append(0, 0, b"").unwrap(), Lsn::new(1));
        for bytes in [max + 1, max + 7, 1 << 20, 1 << 30] {
            let mut batch = writer.batch();
            let error = batch.reserve(1, 1, bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::RecordTooLarge);
            assert!(error.to_string().contains(&max.to_string()), "{error}");
        }
        let mut batch = writer.batch();
        assert_eq!(
            batch.reserve(1, 1, usize::MAX).unwrap_err().kind(),
            ErrorKind::RecordTooLarge
        );
        batch.append(u16::MAX, u64::MAX, b"").unwrap();
        batch.reserve(0, 0, 0).unwrap();
        assert_eq!(batch.commit().unwrap(), Lsn::new(2)..=Lsn::new(3));
        let empty = writer.batch().commit().unwrap();
        assert!(empty.is_empty() && *empty.start() == Lsn::new(4));
        assert!(
            writer
                .batch()
                .commit_later()
                .unwrap()
                .wait()
                .unwrap()
                .is_empty()
        );
        let found = records(&bus);
        let kinds: Vec<_> = found
            .iter()
            .map(|r| (r.kind(), r.key(), r.payload().len()))
            .collect();
        assert_eq!(kinds, [(0, 0, 0), (u16::MAX, u64::MAX, 0), (0, 0, 0)]);
        drop(found);
        bus.close().unwrap();
    });
}

#[test]
fn names_of_consumers() {
    each_bus(|bus| {
        let run = |name: &str| bus.subscribe(name).run(|_| Ok(Ack::All));
        for (name, named) in
            [("", "0"), (&*"x".repeat(256), "256"), ("reader-1", "reader-"), ("reader-", "reader-")]
        {
            let error = run(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            assert!(error.to_string().contains(named), "{error}");
        }
        // As long as can be, not ASCII, and with what a path or a line could not bear.
        let odd = ["x".repeat(255), "ä".repeat(127), "a/b\n\0c".into(), "reader".into()];
        let running: Vec<_> = odd.iter().map(|name| run(name).unwrap()).collect();
        for name in &odd {
            let error = run(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NameTaken);
            assert_eq!(bus.forget(name).unwrap_err().kind(), ErrorKind::NameTaken);
        }
        assert!(!bus.forget("nobody").unwrap());
        running.iter().for_each(|consumer| consumer.stop().unwrap());
        assert!(run("reader").is_ok(), "free again");
        bus.close().unwrap();
    });
}

#[test]
fn names_are_found_again() {
    for backend in backends() {
        let bed = Bed::new(backend);
        for round in 0..2 {
            let bus = bed.by_hand();
            commit(&bus.writer(), &mut vec![(0, 0, vec![]); round], 10);
            for name in ["x".repeat(255), "a/b\n\0c".into()] {
                let consumer = bus.subscribe(name).start_if_new(Start::Latest);
                let mut consumer = consumer.manual(|_| Ok(Ack::All)).unwrap();
                assert_eq!(consumer.handle().status().lsn, Lsn::new(1), "round {round}");
                while consumer.handle().status().lag_records > 0 {
                    consumer.poll();
                }
                consumer.handle().seek(Start::Lsn(Lsn::new(2))).unwrap();
            }
            bus.close().unwrap();
        }
    }
}

#[test]
fn one_consumer_too_many() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.builder().consumers_max(2).open(bed.path()).unwrap();
        let first = bus.subscribe("first").run(|_| Ok(Ack::All)).unwrap();
        let second = bus.reader(Start::Earliest).unwrap();
        let error = bus.subscribe("third").run(|_| Ok(Ack::All)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooManyConsumers);
        let error = bus.reader(Start::Earliest).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooManyConsumers);
        // A refusal leaves no checkpoint behind.
        assert!(!bus.forget("third").unwrap());
        drop(second);
        bus.subscribe("third").run(|_| Ok(Ack::All)).unwrap();
        first.stop().unwrap();
        bus.close().unwrap();
    }
}

#[test]
fn a_callback_that_panics_is_parked_with_its_words_and_alone() {
    each_bus(|bus| {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let retry = Retry::exponential(Duration::from_micros(10), Duration::from_micros(10));
        let bad = bus.subscribe("bad").retry(retry.attempts(3)).run(move |batch| {
            count.fetch_add(1, Ordering::Relaxed);
            panic!("no room for {}", batch.first_lsn());
        });
        let bad = bad.unwrap();
        let hook = bus
            .subscribe("hook")
            .on_signal(|_| panic!("a hook"))
            .run(|_| Ok(Ack::All));
        let hook = hook.unwrap();
        let good = bus.subscribe("good").run(|_| Ok(Ack::All)).unwrap();
        let lsn = bus.writer().append(1, 1, b"x").unwrap();
        let error = bad.wait_processed(lsn, LONG).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Parked);
        assert!(error.to_string().contains("no room for 1"), "{error}");
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        let status = bad.status();
        assert_eq!((status.lsn, status.failures), (Lsn::ZERO, 3));
        good.wait_processed(lsn, LONG).unwrap();
        hook.wait_processed(lsn, LONG).unwrap();
        bad.stop().unwrap();
        bus.close().unwrap();
    });
}

/// What a panic said.
fn words_of<T>(call: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(call))
        .map(drop)
        .expect_err("it must panic");
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .unwrap_or_else(|| {
            panic
                .downcast_ref::<String>()
                .cloned()
                .expect("a panic with words")
        })
}

#[test]
fn a_nested_batch_panics_naming_the_cause_and_does_no_harm() {
    each_bus(|bus| {
        let writer = bus.writer();
        let ticket = writer.batch().commit_later().unwrap();
        let mut batch = writer.batch();
        batch.append(1, 1, b"outer").unwrap();
        let said = [
            words_of(|| writer.append(2, 2, b"inner")),
            words_of(|| drop(writer.batch())),
            words_of(|| drop(bus.writer().clone().batch())),
        ];
        for said in said {
            assert!(said.contains("already holds a batch"), "{said}");
            assert!(said.contains("commit or drop it first"), "{said}");
        }
        // The outer one is as it was, and another log is no concern of this one.
        let other = Bus::builder().ring_bytes(4 << 20).in_memory().unwrap();
        assert_eq!(other.writer().append(1, 1, b"x").unwrap(), Lsn::FIRST);
        batch.append(1, 1, b"outer").unwrap();
        assert_eq!(batch.commit().unwrap(), Lsn::new(1)..=Lsn::new(2));
        assert!(ticket.wait().is_ok() && bus.sync().is_ok());
        assert!(records(&bus).iter().all(|record| record.payload() == b"outer"));
        bus.close().unwrap();
    });
}

/// The same for what would wait for the batch's own commit.
#[test]
fn waiting_inside_a_batch_panics_naming_the_cause() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.open();
        let writer = bus.writer();
        let ticket = writer.batch().commit_later().unwrap();
        let batch = writer.batch();
        for said in [words_of(|| bus.sync()), words_of(|| ticket.wait())] {
            assert!(said.contains("already holds a batch"), "{said}");
        }
        drop(batch);
        assert_eq!(writer.append(1, 1, b"x").unwrap(), Lsn::FIRST);
        bus.close().unwrap();
    }
}

#[test]
fn everything_is_closed_after_close() {
    each_bus(|bus| {
        let writer = bus.writer();
        let lsn = writer.append(1, 1, b"x").unwrap();
        let ticket = writer.batch().commit_later().unwrap();
        let consumer = bus
            .subscribe("c")
            .start_if_new(Start::Earliest)
            .run(|_| Ok(Ack::All));
        let consumer = consumer.unwrap();
        consumer.wait_processed(lsn, LONG).unwrap();
        let mut reader = bus.reader(Start::Earliest).unwrap();
        let late = bus.subscribe("late");
        bus.close().unwrap();
        for _ in 0..2 {
            assert_eq!(writer.append(1, 1, b"x").unwrap_err().kind(), ErrorKind::Closed);
            let mut batch = writer.batch();
            assert_eq!(batch.append(1, 1, b"x").unwrap_err().kind(), ErrorKind::Closed);
            assert_eq!(batch.reserve(1, 1, 1).unwrap_err().kind(), ErrorKind::Closed);
            assert!(batch.is_empty());
            assert_eq!(batch.commit().unwrap_err().kind(), ErrorKind::Closed);
            let later = writer.batch().commit_later();
            assert_eq!(later.unwrap_err().kind(), ErrorKind::Closed);
            assert_eq!(
                consumer.seek(Start::Earliest).unwrap_err().kind(),
                ErrorKind::Stopped
            );
            let wait = consumer.wait_processed(lsn.next(), LONG).unwrap_err();
            assert_eq!(wait.kind(), ErrorKind::Stopped);
            consumer.pause();
            consumer.resume();
            consumer.stop().unwrap();
            assert!(reader.next_timeout(LONG).unwrap().is_none());
            assert!(reader.next().is_none());
        }
        // What was acknowledged and processed before stays so.
        assert!(ticket.wait().is_ok());
        consumer.wait_processed(lsn, LONG).unwrap();
        assert_eq!(consumer.status().lsn, lsn);
        assert_eq!(late.run(|_| Ok(Ack::All)).unwrap_err().kind(), ErrorKind::Closed);
    });
}

/// Handles that outlive the bus hold neither the directory nor its files.
#[test]
fn what_outlives_the_bus_does_not_keep_the_directory() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.open();
        let mut model = Vec::new();
        let writer = bus.writer();
        commit(&writer, &mut model, 100);
        let consumer = bus.subscribe("c").run(|_| Ok(Ack::All)).unwrap();
        let reader = bus.reader(Start::Earliest).unwrap();
        bus.close().unwrap();
        reopens(&bed, &mut model);
        assert_eq!(writer.append(1, 1, b"x").unwrap_err().kind(), ErrorKind::Closed);
        drop((consumer, reader));
        reopens(&bed, &mut model);
    }
}
