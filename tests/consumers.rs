//! What a consumer may rely on: control under races, failures, leases, starts and checkpoints, and
//! what it is told when the log or its position is gone.

mod common;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use common::{
    KIB, LONG, RING_BYTES, Recorder, SEGMENT_BYTES, SLAB_BYTES, assert_content, content, fill,
    fill_bytes, lsns, on_each_backend, recording, small, until,
};
use eventplane::testing::{Fault, Faults, ManualClock, Op, Polled};
use eventplane::{
    Ack, Backend, Batch, Bus, Durability, ErrorKind, Filter, Lsn, OwnedRecord, ReadMode, Retry,
    Start, Subscription,
};
use parking_lot::Mutex;

#[test]
fn a_wait_after_a_seek_never_sees_the_old_position() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let bus = small(backend).open(dir.path()).unwrap();
        let last = fill(&bus, &bus.writer(), 10, 100);
        let (entered, inside) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let recorder = Recorder::default();
        let consumer = bus
            .subscribe("c")
            .start_if_new(Start::Earliest)
            .run({
                let recorder = recorder.clone();
                move |batch: &Batch<'_>| {
                    let _ = entered.send(());
                    let _ = gate.recv();
                    recorder.take(batch);
                    Ok(Ack::All)
                }
            })
            .unwrap();
        inside.recv_timeout(LONG).unwrap();
        release.send(()).unwrap();
        consumer.wait_processed(last, LONG).unwrap();
        let more = fill(&bus, &bus.writer(), 2, 100);
        inside.recv_timeout(LONG).unwrap();
        // Ten are processed, the callback has two in hand. Seeking does not wait for it.
        consumer.seek(Start::Lsn(Lsn::new(6))).unwrap();
        let too_early = |what: &str| {
            let early = consumer.wait_processed(last, Duration::ZERO).unwrap_err();
            assert_eq!(early.kind(), ErrorKind::Timeout, "{what}");
            assert_eq!(consumer.status().lsn, Lsn::new(5), "{what}");
        };
        too_early("during the callback");
        release.send(()).unwrap();
        inside.recv_timeout(LONG).unwrap();
        assert_eq!(recorder.lsns(), lsns(1..=12), "acknowledged, for the old place");
        too_early("after it");
        release.send(()).unwrap();
        consumer.wait_processed(more, LONG).unwrap();
        assert_eq!(recorder.lsns(), [lsns(1..=12), lsns(6..=12)].concat());
        bus.close().unwrap();
    });
}

#[test]
fn seeks_while_records_come_in_replay_all_that_follows_them() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let bus = small(backend).open(dir.path()).unwrap();
        fill(&bus, &bus.writer(), 50, 100);
        let (consumer, recorder) = recording(&bus, "c", Start::Earliest);
        for round in 0..100_u64 {
            let to = 1 + round * 7 % 50;
            let before = recorder.len();
            consumer.seek(Start::Lsn(Lsn::new(to))).unwrap();
            let last = fill(&bus, &bus.writer(), 3, 500);
            consumer.wait_processed(last, LONG).unwrap();
            // What was in progress may come first; then everything from the target on, once.
            let since = recorder.lsns().split_off(before);
            let wanted = lsns(to..=last.get());
            assert!(since.ends_with(&wanted), "round {round}: {since:?}");
            if round % 10 == 0 {
                consumer.pause();
                until("it pauses", || consumer.status().paused);
                consumer.resume();
            }
        }
        consumer.wait_caught_up(Duration::MAX).unwrap();
        bus.close().unwrap();
    });
}

#[test]
fn what_would_wait_for_its_own_callback_is_refused() {
    // A reader polled inside the callback used to end the guard; closing there waited in vain.
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let bus = small(backend).open(dir.path()).unwrap();
        let last = fill(&bus, &bus.writer(), 1, 10);
        let mut reader = bus.reader(Start::Earliest).unwrap();
        let slot = Arc::new(Mutex::new(None::<(Bus, Subscription)>));
        let (told, kinds) = mpsc::channel();
        let consumer = bus
            .subscribe("c")
            .start_if_new(Start::Earliest)
            .run({
                let slot = Arc::clone(&slot);
                move |_: &Batch<'_>| {
                    until("the test hands over", || slot.lock().is_some());
                    let (bus, own) = slot.lock().take().unwrap();
                    assert_eq!(reader.try_next()?.unwrap().lsn(), last);
                    let outcomes = [
                        own.wait_processed(last, LONG),
                        own.wait_caught_up(LONG),
                        own.seek(Start::Earliest),
                        own.stop(),
                        bus.close_within(LONG),
                    ];
                    let _ = told.send(outcomes.map(|outcome| outcome.unwrap_err().kind()));
                    Ok(Ack::All)
                }
            })
            .unwrap();
        *slot.lock() = Some((bus, consumer.clone()));
        let kinds = kinds.recv_timeout(LONG / 2).unwrap();
        assert_eq!(kinds, [ErrorKind::WouldDeadlock; 5]);
        until("it ends with its callback", || {
            consumer
                .wait_processed(Lsn::new(2), Duration::ZERO)
                .unwrap_err()
                .kind()
                == ErrorKind::Stopped
        });
    });
}

/// On a manual clock, fails every delivery; parks after the first.
fn failing(bus: &Bus) -> eventplane::testing::ManualSubscription {
    bus.subscribe("c")
        .start_if_new(Start::Earliest)
        .retry(Retry::exponential(Duration::from_millis(1), Duration::from_millis(1)).attempts(1))
        .manual(|_: &Batch<'_>| Err("no".into()))
        .unwrap()
}

#[test]
fn who_resumes_or_seeks_a_parked_consumer_does_not_hear_that_it_is_parked() {
    let dir = tempfile::tempdir().unwrap();
    let bus = small(Backend::Auto)
        .manual(&ManualClock::default())
        .open(dir.path())
        .unwrap();
    let last = fill(&bus, &bus.writer(), 1, 10);
    let mut consumer = failing(&bus);
    for how in ["resume", "seek"] {
        assert_eq!(consumer.poll(), Polled::Waiting);
        let handle = consumer.handle();
        let wait = || handle.wait_processed(last, Duration::ZERO).unwrap_err().kind();
        assert_eq!(wait(), ErrorKind::Parked);
        assert!(handle.status().parked.is_some());
        match how {
            "resume" => handle.resume(),
            _ => handle.seek(Start::Earliest).unwrap(),
        }
        assert_eq!(wait(), ErrorKind::Timeout, "{how}");
        assert!(handle.status().parked.is_none());
    }
}

#[test]
fn one_bad_record_takes_no_neighbour_along() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let bus = small(backend).open(dir.path()).unwrap();
        let last = fill(&bus, &bus.writer(), 20, 100);
        let (good, dead) = (Recorder::default(), Recorder::default());
        let attempts = Arc::new(Mutex::new(0));
        let batches = Arc::new(Mutex::new(0));
        let consumer = bus
            .subscribe("c")
            .start_if_new(Start::Earliest)
            .retry(
                Retry::exponential(Duration::from_millis(1), Duration::from_millis(2)).attempts(3),
            )
            .dead_letter({
                let dead = dead.clone();
                move |batch, why| {
                    assert_eq!(why.to_string(), "seven");
                    dead.take(batch);
                }
            })
            .run({
                let (good, attempts) = (good.clone(), Arc::clone(&attempts));
                let batches = Arc::clone(&batches);
                move |batch: &Batch<'_>| {
                    if batch.iter().any(|record| record.lsn().get() == 7) {
                        *attempts.lock() += 1;
                        panic!("seven");
                    }
                    *batches.lock() += 1;
                    good.take(batch);
                    Ok(Ack::All)
                }
            })
            .unwrap();
        consumer.wait_processed(last, LONG).unwrap();
        assert_eq!(dead.lsns(), [7]);
        assert_eq!(good.lsns(), [lsns(1..=6), lsns(8..=20)].concat());
        // In its batch, and then alone.
        assert!((3..=4).contains(&*attempts.lock()), "{}", attempts.lock());
        assert_eq!(consumer.status().failures, *attempts.lock());
        // The seek ends the delivery one by one.
        *batches.lock() = 0;
        consumer.seek(Start::Lsn(Lsn::new(8))).unwrap();
        consumer.wait_processed(last, LONG).unwrap();
        assert_eq!(*batches.lock(), 1);
        bus.close().unwrap();
    });
}

#[test]
fn a_batch_that_comes_again_waits_and_a_part_is_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let bus = small(Backend::Auto).manual(&clock).open(dir.path()).unwrap();
    fill(&bus, &bus.writer(), 4, 100);
    let recorder = Recorder::default();
    let mut answers = vec![
        Ack::Through(Lsn::new(99)),
        Ack::Through(Lsn::new(2)),
        Ack::Through(Lsn::new(1)),
        Ack::Through(Lsn::new(1)),
        Ack::RetryAfter(Duration::from_secs(5)),
    ];
    let mut consumer = bus
        .subscribe("c")
        .start_if_new(Start::Earliest)
        .retry(Retry::exponential(Duration::from_secs(1), Duration::from_secs(1)))
        .manual({
            let recorder = recorder.clone();
            move |batch: &Batch<'_>| {
                recorder.take(batch);
                Ok(answers.pop().unwrap_or(Ack::All))
            }
        })
        .unwrap();
    assert_eq!(consumer.poll(), Polled::Later);
    clock.advance(Duration::from_millis(4_999));
    assert_eq!(consumer.poll(), Polled::Later);
    assert_eq!(recorder.len(), 4);
    clock.advance(Duration::from_millis(1));
    assert_eq!(consumer.poll(), Polled::Moved, "through 1");
    assert_eq!(consumer.poll(), Polled::Later, "through 1 again: no progress");
    assert_eq!(consumer.poll(), Polled::Later);
    clock.advance(Duration::from_secs(1));
    assert_eq!(consumer.poll(), Polled::Moved, "through 2");
    assert_eq!(consumer.poll(), Polled::Moved, "through 99, of 4");
    assert_eq!(consumer.poll(), Polled::CaughtUp);
    let expected = [lsns(1..=4), lsns(1..=4), lsns(2..=4), lsns(2..=4), lsns(3..=4)].concat();
    assert_eq!(recorder.lsns(), expected);
    assert_eq!(consumer.handle().status().delivered, [4, 0, 0]);
}

#[test]
fn leased_bytes_outlive_their_slab_and_a_share_is_a_share() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        let bus = small(backend).manual(&clock).open(dir.path()).unwrap();
        let leases = Arc::new(Mutex::new(Vec::<OwnedRecord>::new()));
        let refused = Arc::new(Mutex::new(0));
        let mut consumer = bus
            .subscribe("c")
            .start_if_new(Start::Earliest)
            .manual({
                let (leases, refused) = (Arc::clone(&leases), Arc::clone(&refused));
                move |batch: &Batch<'_>| {
                    for record in batch {
                        match record.lease() {
                            Ok(lease) => leases.lock().push(lease),
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::LeaseRefused);
                                *refused.lock() += 1;
                            }
                        }
                    }
                    Ok(Ack::All)
                }
            })
            .unwrap();
        for _ in 0..RING_BYTES / (32 * KIB) {
            fill_bytes(&bus, 32 * KIB);
            while consumer.poll() == Polled::Moved {}
        }
        let status = consumer.handle().status();
        assert_eq!(status.pinned_bytes, SLAB_BYTES, "one slab is its share");
        assert!(*refused.lock() > 0 && leases.lock().iter().all(OwnedRecord::is_pinned));
        drop(consumer);
        fill_bytes(&bus, 4 * RING_BYTES);
        bus.tick();
        let leases = std::mem::take(&mut *leases.lock());
        assert!(leases.len() >= 8);
        for lease in &leases {
            let (kind, key, payload) = content(lease.lsn().get(), lease.payload().len());
            assert_eq!((lease.kind(), lease.key()), (kind, key));
            assert!(lease.payload() == payload, "LSN {} was overwritten", lease.lsn());
        }
        bus.close().unwrap();
        assert_eq!(leases[0].payload().len(), 4_000, "also after the bus");
    });
}

#[test]
fn a_reader_copies_where_it_may_not_lease_and_is_not_stalled_between_calls() {
    // A reader that nobody called for two seconds was shed, and the next call came back empty.
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let bus = small(Backend::Auto).manual(&clock).open(dir.path()).unwrap();
    fill_bytes(&bus, RING_BYTES / 2);
    let mut reader = bus.reader(Start::Earliest).unwrap();
    let mut kept = vec![reader.try_next().unwrap().unwrap()];
    bus.tick();
    clock.advance(Duration::from_secs(60));
    bus.tick();
    assert!(!reader.status().shed);
    while let Some(record) = reader.try_next().unwrap() {
        kept.push(record);
    }
    assert_eq!(kept.len() as u64, bus.committed_lsn().get());
    assert!(kept.iter().any(OwnedRecord::is_pinned) && !kept.iter().all(OwnedRecord::is_pinned));
    for (i, record) in kept.iter().enumerate() {
        assert_eq!(record.lsn().get(), i as u64 + 1);
        assert!(record.payload() == content(i as u64 + 1, 4_000).2);
    }
    assert!(bus.transitions().is_empty());
}

#[test]
fn every_start_is_where_it_says() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        let bus = small(backend).manual(&clock).open(dir.path()).unwrap();
        // A record a second, so that times tell them apart; the first ones are in sealed segments.
        let writer = bus.writer();
        for _ in 0..60 {
            clock.advance(Duration::from_secs(1));
            fill(&bus, &writer, 1, 20_000);
            bus.drive().unwrap();
        }
        let first_after = |start: Start| {
            let mut reader = bus.reader(start)?;
            Ok::<_, eventplane::Error>(reader.try_next()?.map(|record| record.lsn().get()))
        };
        assert_eq!(first_after(Start::Earliest).unwrap(), Some(1));
        assert_eq!(first_after(Start::Latest).unwrap(), None);
        for n in 1..=60 {
            assert_eq!(first_after(Start::Lsn(Lsn::new(n))).unwrap(), Some(n));
            // The manual clock begins at one second.
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1 + n);
            assert_eq!(first_after(Start::Time(at)).unwrap(), Some(n), "at its time");
            let before = at - Duration::from_millis(999);
            assert_eq!(
                first_after(Start::Time(before)).unwrap(),
                Some(n),
                "behind the one before"
            );
        }
        let late = SystemTime::UNIX_EPOCH + Duration::from_secs(62);
        assert_eq!(first_after(Start::Time(late)).unwrap(), None);
        assert_eq!(first_after(Start::Time(SystemTime::UNIX_EPOCH)).unwrap(), Some(1));
        assert_eq!(
            first_after(Start::Lsn(Lsn::new(61))).unwrap(),
            None,
            "the next one"
        );
        let beyond = first_after(Start::Lsn(Lsn::new(62))).unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::BeyondEnd);
        let mut reader = bus.reader(Start::Time(late)).unwrap();
        let next = fill(&bus, &writer, 1, 100);
        assert_eq!(
            reader.try_next().unwrap().unwrap().lsn(),
            next,
            "what comes later"
        );
    });
}

#[test]
fn a_checkpoint_is_resumed_exactly_and_a_start_at_replaces_it() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let open = || small(backend).open(dir.path()).unwrap();
        let bus = open();
        let last = fill(&bus, &bus.writer(), 10, 100);
        let (consumer, _) = recording(&bus, "c", Start::Lsn(Lsn::new(4)));
        consumer.wait_processed(last, LONG).unwrap();
        consumer.seek(Start::Lsn(Lsn::new(7))).unwrap();
        consumer.wait_processed(last, LONG).unwrap();
        consumer.stop().unwrap();
        consumer.stop().unwrap();
        assert_eq!(
            consumer.seek(Start::Earliest).unwrap_err().kind(),
            ErrorKind::Stopped
        );
        fill(&bus, &bus.writer(), 5, 100);
        let taken = bus.subscribe("c").run(|_: &Batch<'_>| Ok(Ack::All)).unwrap();
        let again = bus
            .subscribe("c")
            .run(|_: &Batch<'_>| Ok(Ack::All))
            .unwrap_err();
        assert_eq!(again.kind(), ErrorKind::NameTaken);
        taken.pause();
        bus.close().unwrap();

        let bus = open();
        let (consumer, recorder) = recording(&bus, "c", Start::Earliest);
        consumer.wait_caught_up(LONG).unwrap();
        let resumed = recorder.lsns();
        assert!(resumed.is_empty() || resumed == lsns(11..=15), "{resumed:?}");
        consumer.stop().unwrap();
        let at = bus.subscribe("c").start_at(Start::Lsn(Lsn::new(3)));
        at.run(|_: &Batch<'_>| Ok(Ack::RetryAfter(LONG))).unwrap();
        bus.close().unwrap();

        let bus = open();
        let (consumer, recorder) = recording(&bus, "c", Start::Latest);
        consumer.wait_caught_up(LONG).unwrap();
        assert_eq!(recorder.lsns(), lsns(3..=15));
        assert!(!bus.forget("nobody").unwrap());
        assert_eq!(bus.forget("c").unwrap_err().kind(), ErrorKind::NameTaken);
        consumer.stop().unwrap();
        assert!(bus.forget("c").unwrap());
        let (consumer, recorder) = recording(&bus, "c", Start::Latest);
        consumer.wait_caught_up(LONG).unwrap();
        assert_eq!(recorder.len(), 0);
        bus.close().unwrap();
    });
}

#[test]
fn a_clean_stop_is_not_undone_by_a_checkpoint_looked_at_before() {
    // The housekeeper looked, the consumer stopped and left, the housekeeper stored what it saw.
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let builder = || small(backend).checkpoint_interval(Duration::from_micros(1));
        let bus = builder().open(dir.path()).unwrap();
        for _ in 0..60 {
            let (consumer, recorder) = recording(&bus, "c", Start::Earliest);
            assert_eq!(recorder.len(), 0);
            let last = fill(&bus, &bus.writer(), 1, 10);
            consumer.wait_processed(last, LONG).unwrap();
            assert_eq!(
                recorder.lsns(),
                [last.get()],
                "nothing comes twice after a clean stop"
            );
            consumer.stop().unwrap();
        }
        bus.close().unwrap();
    });
}

#[test]
fn a_failed_log_is_drained_and_then_says_so() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::new();
        let bus = small(backend).faults(&faults).open(dir.path()).unwrap();
        let last = fill(&bus, &bus.writer(), 10, 100);
        let (entered, inside) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let consumer = bus
            .subscribe("c")
            .start_if_new(Start::Earliest)
            .run(move |batch: &Batch<'_>| {
                let _ = entered.send(());
                let _ = gate.recv();
                batch.iter().for_each(|record| assert_content(&record));
                Ok(Ack::All)
            })
            .unwrap();
        inside.recv_timeout(LONG).unwrap();
        faults.inject(Fault::errno(Op::DurableWrite, libc::EIO).forever());
        faults.inject(Fault::errno(Op::Write, libc::EIO).on("segments").forever());
        let failed = bus.writer().append(1, 1, b"lost").unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Poisoned);
        let mut reader = bus.reader(Start::Earliest).unwrap();
        for n in 1..=last.get() {
            assert_eq!(
                reader.next().unwrap().unwrap().lsn().get(),
                n,
                "what is published is had"
            );
        }
        assert_eq!(reader.next().unwrap().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(reader.try_next().unwrap_err().kind(), ErrorKind::Poisoned);
        let more = last.next();
        let still = consumer.wait_processed(more, Duration::ZERO).unwrap_err();
        assert_eq!(
            still.kind(),
            ErrorKind::Timeout,
            "ten records are still in its hands"
        );
        drop(release);
        consumer.wait_processed(last, LONG).unwrap();
        assert_eq!(
            consumer.wait_processed(more, LONG).unwrap_err().kind(),
            ErrorKind::Poisoned
        );
        consumer.wait_caught_up(LONG).unwrap();
        faults.clear();
        assert_eq!(bus.close().unwrap_err().kind(), ErrorKind::Poisoned);
    });
}

/// It said the same for ever, at once.
#[test]
fn a_reader_tries_again_what_the_disk_refused() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::new());
    let builder = small(Backend::Psync).faults(&faults).read_mode(ReadMode::Pread);
    let bus = builder.open(dir.path()).unwrap();
    fill_bytes(&bus, 8 * RING_BYTES);
    let mut reader = bus.reader(Start::Earliest).unwrap();
    faults.inject(Fault::errno(Op::Read, libc::EIO).forever());
    for _ in 0..2 {
        let before = faults.calls(Op::Read);
        assert_eq!(reader.next_timeout(LONG).unwrap_err().kind(), ErrorKind::Io);
        assert!(faults.calls(Op::Read) > before, "it was tried");
    }
    faults.clear();
    for lsn in [1, 2] {
        assert_eq!(reader.next_timeout(LONG).unwrap().unwrap().lsn(), Lsn::new(lsn));
    }
    drop(reader);
    bus.close().unwrap();
}

/// The callback that hangs was all that was told.
#[test]
fn a_close_that_loses_records_says_so_first() {
    on_each_backend(|backend| {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::new());
        let late = Durability::Deferred { interval: Duration::from_secs(3_600), bytes: 1 << 20 };
        let builder = small(backend).faults(&faults).durability(late);
        let bus = builder.open(dir.path()).unwrap();
        let (entered, inside) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let hanging = bus.subscribe("hanging").start_if_new(Start::Earliest);
        let hanging = hanging
            .run(move |_| {
                let _ = entered.send(());
                let _ = gate.recv();
                Ok(Ack::All)
            })
            .unwrap();
        let writer = bus.writer();
        writer.append(1, 1, b"kept").unwrap();
        bus.sync().unwrap();
        inside.recv_timeout(LONG).unwrap();
        writer.append(1, 1, b"lost").unwrap();
        faults.inject(
            Fault::errno(Op::DurableWrite, libc::EIO)
                .on("segments")
                .forever(),
        );
        faults.inject(Fault::errno(Op::Write, libc::EIO).on("segments").forever());
        faults.inject(Fault::errno(Op::Sync, libc::EIO).on("segments").forever());
        let closed = bus.close_within(Duration::from_millis(50)).unwrap_err();
        assert_eq!(closed.kind(), ErrorKind::Poisoned);
        faults.clear();
        drop(release);
        let _ = hanging.stop_within(LONG);
    });
}

/// Where the filter lets nothing through, a call went on to the end of the log.
#[test]
fn a_reader_that_finds_nothing_keeps_its_deadline() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        // Nobody sheds it.
        let clock = ManualClock::default();
        let bus = small(backend).manual(&clock).open(dir.path()).unwrap();
        fill_bytes(&bus, 8 * SEGMENT_BYTES);
        let last = bus.writer().append(77, 1, b"here").unwrap();
        let seek = || bus.reader_of(Start::Earliest, Filter::kinds([77])).unwrap();
        let mut reader = seek();
        assert!(reader.next_timeout(Duration::ZERO).unwrap().is_none());
        assert!(reader.status().lsn < last, "it has looked at everything");
        assert_eq!(reader.next_timeout(LONG).unwrap().unwrap().lsn(), last);
        let mut reader = seek();
        assert_eq!(reader.try_next().unwrap().unwrap().lsn(), last);
        assert!(reader.try_next().unwrap().is_none());
    });
}
