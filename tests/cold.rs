//! The cold tier keeps its limits: so many bytes a second, so many reads at once.

mod common;

use std::time::Duration;

use common::{KIB, Recorder, fill_bytes, lsns, on_each_backend, small};
use eventplane::testing::{Force, ManualClock, ManualSubscription, Polled};
use eventplane::{Ack, Backend, Batch, Bus, Lsn, Reason, Start};

const RATE: u64 = 1024 * KIB;
const LOG_BYTES: u64 = 4 * RATE;

struct Paced {
    bus: Bus,
    clock: ManualClock,
    last: Lsn,
    _dir: tempfile::TempDir,
}

fn paced(backend: Backend, replays_max: usize) -> Paced {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let builder = small(backend)
        .cold_bytes_per_second(Some(RATE))
        .cold_replays_max(replays_max);
    let bus = builder.manual(&clock).open(dir.path()).unwrap();
    let last = fill_bytes(&bus, LOG_BYTES);
    Paced { bus, clock, last, _dir: dir }
}

fn replaying(bus: &Bus, name: &str) -> (ManualSubscription, Recorder) {
    let recorder = Recorder::default();
    let subscribe = bus.subscribe(name).start_if_new(Start::Earliest);
    let consumer = subscribe.manual({
        let recorder = recorder.clone();
        move |batch: &Batch<'_>| {
            recorder.take(batch);
            Ok(Ack::All)
        }
    });
    bus.force(name, Force::Shed, Reason::Lag);
    bus.force(name, Force::Replaying, Reason::Admitted);
    (consumer.unwrap(), recorder)
}

/// Polls a step a millisecond until all are caught up; returns how many bytes were read in cold.
/// That took as long as the rate says: a tenth of a second of it may come at once.
fn drain(log: &Paced, mut consumers: Vec<ManualSubscription>) -> u64 {
    let mut millis = 0;
    loop {
        let mut caught_up = 0;
        for consumer in consumers.iter_mut() {
            loop {
                match consumer.poll() {
                    Polled::Moved => {}
                    Polled::Later => break,
                    Polled::CaughtUp => {
                        caught_up += 1;
                        break;
                    }
                    other => panic!("{other:?}: {:?}", consumer.handle().status()),
                }
            }
        }
        if caught_up == consumers.len() {
            break;
        }
        log.clock.advance(Duration::from_millis(1));
        millis += 1;
    }
    let read = |consumer: &ManualSubscription| consumer.handle().status().replayed_bytes[2];
    let bytes = consumers.iter().map(read).sum::<u64>();
    let expected = bytes * 1_000 / RATE;
    assert!(
        (expected * 8 / 10..=expected * 13 / 10).contains(&millis),
        "{bytes} bytes took {millis} ms, not about {expected}"
    );
    bytes
}

/// The budget was only tested by itself: nobody saw whether reads ask for it.
#[test]
fn a_replay_takes_as_long_as_its_rate_says() {
    on_each_backend(|backend| {
        // One alone reads ahead where there is a permit left.
        for replays_max in [1, 2] {
            let log = paced(backend, replays_max);
            let (consumer, recorder) = replaying(&log.bus, "cold");
            let bytes = drain(&log, vec![consumer]);
            assert!(bytes > LOG_BYTES / 2, "what is not in the ring is read: {bytes}");
            assert_eq!(recorder.lsns(), lsns(1..=log.last.get()));
        }
    });
}

/// Two replays share one budget.
#[test]
fn the_rate_is_that_of_all_replays_together() {
    on_each_backend(|backend| {
        let log = paced(backend, 1);
        let (one, seen_by_one) = replaying(&log.bus, "one");
        let (two, seen_by_two) = replaying(&log.bus, "two");
        let bytes = drain(&log, vec![one, two]);
        assert!(bytes > LOG_BYTES, "each reads for itself: {bytes}");
        for seen in [seen_by_one, seen_by_two] {
            assert_eq!(seen.lsns(), lsns(1..=log.last.get()));
        }
    });
}
