//! Consumers at rest: they are left alone until something is stirred, and what is decided about
//! them, told of them and stored for them is what it would be if each tick looked at each of them.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{KIB, LONG, fill, fill_bytes, small, until};
use eventplane::testing::{Force, ManualClock, ManualSubscription, Polled};
use eventplane::{Ack, Backend, Batch, Bus, Lsn, Reason, Start, Tier};
use metrics::{
    Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use parking_lot::Mutex;

const TICK: Duration = Duration::from_millis(10);
const STALL: Duration = Duration::from_millis(400);
const DWELL: Duration = Duration::from_millis(250);

/// Remembers gauges of consumers, by consumer and name: what was told last, and how often.
#[derive(Default)]
struct Told(Mutex<BTreeMap<(String, String), Arc<Value>>>);

#[derive(Default)]
struct Value {
    last: AtomicU64,
    times: AtomicU64,
}

impl GaugeFn for Value {
    fn increment(&self, _: f64) {}
    fn decrement(&self, _: f64) {}

    fn set(&self, value: f64) {
        self.last.store(value as u64, Ordering::Relaxed);
        self.times.fetch_add(1, Ordering::Relaxed);
    }
}

impl Recorder for Told {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let Some(name) = key.name().strip_prefix("eventplane_consumer_") else {
            return Gauge::noop();
        };
        let consumer = key.labels().next().unwrap().value().to_owned();
        let mut told = self.0.lock();
        Gauge::from_arc(Arc::clone(told.entry((consumer, name.to_owned())).or_default()))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

impl Told {
    fn of(&self, consumer: &str, gauge: &str) -> Arc<Value> {
        Arc::clone(&self.0.lock()[&(consumer.to_owned(), gauge.to_owned())])
    }

    /// How often the consumer was told of.
    fn times(&self, consumer: &str) -> u64 {
        self.of(consumer, "lsn").times.load(Ordering::Relaxed)
    }

    fn last(&self, consumer: &str, gauge: &str) -> u64 {
        self.of(consumer, gauge).last.load(Ordering::Relaxed)
    }
}

/// A bus on a manual clock, whose consumers have seen what is on it.
struct Bed {
    clock: ManualClock,
    bus: Bus,
    _dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        let builder = small(Backend::Psync)
            .stall_after(STALL)
            .dwell(DWELL)
            .manual(&clock);
        let bus = builder.open(dir.path()).unwrap();
        fill_bytes(&bus, 16 * KIB);
        Bed { clock, bus, _dir: dir }
    }

    fn consumer(&self, name: &str) -> ManualSubscription {
        let subscribe = self.bus.subscribe(name).start_if_new(Start::Earliest);
        let mut consumer = subscribe.manual(|_: &Batch<'_>| Ok(Ack::All)).unwrap();
        catch_up(&mut consumer);
        consumer
    }

    fn tick(&self) {
        self.clock.advance(TICK);
        self.bus.tick();
    }

    /// Ticks until it is not where it was, and returns the time that took.
    fn time_in(&self, consumer: &ManualSubscription, tier: Tier) -> Duration {
        let mut ticks = 0;
        while consumer.handle().status().tier == tier {
            assert!(ticks < 1_000, "still {tier}");
            self.tick();
            ticks += 1;
        }
        ticks * TICK
    }
}

fn catch_up(consumer: &mut ManualSubscription) {
    loop {
        match consumer.poll() {
            Polled::Moved => {}
            Polled::CaughtUp => return,
            other => panic!("{other:?}: {:?}", consumer.handle().status()),
        }
    }
}

#[test]
fn who_rests_is_told_every_five_seconds_and_again_when_something_is_stirred() {
    let told = Told::default();
    metrics::with_local_recorder(&told, || {
        let bed = Bed::new();
        let mut resting = bed.consumer("resting");
        bed.bus.tick();
        let before = told.times("resting");
        (0..499).for_each(|_| bed.tick());
        assert_eq!(told.times("resting"), before, "499 ticks of 10 ms");
        bed.tick();
        assert_eq!(told.times("resting"), before + 1);

        let last = fill(&bed.bus, &bed.bus.writer(), 1, 10);
        bed.tick();
        assert_eq!(told.times("resting"), before + 2, "it no longer rests");
        bed.tick();
        assert_eq!(told.times("resting"), before + 3);
        catch_up(&mut resting);
        bed.tick();
        assert_eq!(told.last("resting", "lsn"), last.get());
        bed.tick();
        assert_eq!(told.times("resting"), before + 4, "it rests again");

        resting.handle().seek(Start::Earliest).unwrap();
        bed.tick();
        assert_eq!(told.last("resting", "lsn"), 0, "an order stirs");
        catch_up(&mut resting);
        bed.tick();
        assert_eq!(told.last("resting", "lsn"), last.get());
        let _other = bed.consumer("other");
        bed.tick();
        assert_eq!(told.last("other", "lsn"), last.get(), "entering stirs");
    });
}

#[test]
fn what_came_since_the_last_tick_is_told_at_the_end() {
    let told = Told::default();
    metrics::with_local_recorder(&told, || {
        let bed = Bed::new();
        let mut consumer = bed.consumer("c");
        bed.tick();
        let last = fill(&bed.bus, &bed.bus.writer(), 3, 10);
        catch_up(&mut consumer);
        drop(consumer);
        assert_eq!(told.last("c", "lsn"), last.get());
        assert_eq!(told.last("c", "lag_records"), 0);
    });
}

/// Leases are dropped whenever their owners like, which nothing stirs.
#[test]
fn who_pins_does_not_rest() {
    let told = Told::default();
    metrics::with_local_recorder(&told, || {
        let bed = Bed::new();
        let leases = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&leases);
        let subscribe = bed.bus.subscribe("c").start_if_new(Start::Earliest);
        let keep = move |batch: &Batch<'_>| {
            kept.lock()
                .extend(batch.iter().take(1).map(|record| record.lease().unwrap()));
            Ok(Ack::All)
        };
        let mut consumer = subscribe.manual(keep).unwrap();
        catch_up(&mut consumer);
        (0..3).for_each(|_| bed.tick());
        assert_eq!(told.last("c", "pinned_bytes"), common::SLAB_BYTES);
        leases.lock().clear();
        bed.tick();
        assert_eq!(told.last("c", "pinned_bytes"), 0);
    });
}

/// A consumer that had nothing to do for long was taken for stalled at the first record.
#[test]
fn the_time_at_rest_does_not_count_as_a_stall() {
    let bed = Bed::new();
    let mut consumer = bed.consumer("c");
    bed.bus.tick();
    for idle in [Duration::ZERO, TICK, 3 * STALL, Duration::from_secs(100)] {
        for _ in 0..idle.as_millis() / TICK.as_millis() {
            bed.tick();
        }
        fill_bytes(&bed.bus, KIB);
        assert_eq!(bed.time_in(&consumer, Tier::Hot), STALL, "after {idle:?}");
        while consumer.poll() != Polled::CaughtUp || consumer.handle().status().tier != Tier::Hot {
            bed.tick();
        }
        bed.tick();
    }
}

/// As above, where the consumer itself finds its slab gone before a tick looks at it.
#[test]
fn who_is_lapped_out_of_its_rest_is_not_stalled() {
    let bed = Bed::new();
    let mut consumer = bed.consumer("c");
    // So that it holds no slab, which it could still read to the end.
    consumer.handle().pause();
    assert_eq!(consumer.poll(), Polled::Waiting);
    consumer.handle().resume();
    // Longer than a stall after the last look at everybody.
    (0..1_050).for_each(|_| bed.tick());
    fill_bytes(&bed.bus, 2 * common::RING_BYTES);
    catch_up(&mut consumer);
    let transitions = bed.bus.transitions();
    let reasons: Vec<_> = transitions.iter().map(|transition| transition.reason).collect();
    assert_eq!(reasons, [Reason::Lapped]);
}

#[test]
fn what_stirs_a_consumer_at_rest_is_acted_on_in_time() {
    let bed = Bed::new();
    let mut consumer = bed.consumer("c");
    (0..3).for_each(|_| bed.tick());
    bed.bus.force("c", Force::CatchUp, Reason::Lapped);
    assert_eq!(bed.time_in(&consumer, Tier::CatchUp), DWELL);
    catch_up(&mut consumer);
    (0..3).for_each(|_| bed.tick());

    consumer.handle().seek(Start::Earliest).unwrap();
    assert_eq!(
        bed.time_in(&consumer, Tier::Hot),
        STALL + TICK,
        "from the tick that sees it elsewhere"
    );
}

#[test]
fn checkpoints_are_stored_of_who_was_at_rest() {
    let bed = Bed::new();
    let mut consumers = [bed.consumer("a"), bed.consumer("b")];
    let stored = || ["a", "b"].map(|name| bed.bus.checkpoint(name).unwrap().unwrap().get());
    let end = bed.bus.committed_lsn().get();
    for _ in 0..2 {
        bed.bus.housekeep();
        assert_eq!(stored(), [end; 2]);
    }
    consumers[0].handle().seek(Start::Earliest).unwrap();
    bed.bus.housekeep();
    assert_eq!(stored(), [0, end], "a seek is stored");
    catch_up(&mut consumers[0]);
    bed.bus.housekeep();
    assert_eq!(stored(), [end; 2], "and the way back");
    fill(&bed.bus, &bed.bus.writer(), 1, 10);
    catch_up(&mut consumers[1]);
    bed.bus.housekeep();
    assert_eq!(stored(), [end, end + 1], "one of two moves");
    catch_up(&mut consumers[0]);
    bed.bus.housekeep();
    assert_eq!(stored(), [end + 1; 2], "and the other later");
}

/// Many threads asleep, with the waker and the supervisor as they are: each record wakes each.
#[test]
fn a_crowd_that_sleeps_sees_every_record() {
    const CROWD: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let bus = small(Backend::Psync).open(dir.path()).unwrap();
    let start = |i| {
        let subscribe = bus.subscribe(format!("c{i}")).start_if_new(Start::Earliest);
        subscribe.run(|_: &Batch<'_>| Ok(Ack::All)).unwrap()
    };
    let crowd: Vec<_> = (0..CROWD).map(start).collect();
    for round in 1..=50 {
        let last = fill(&bus, &bus.writer(), 1, 10);
        for consumer in &crowd {
            consumer.wait_processed(last, LONG).unwrap();
        }
        assert_eq!(last, Lsn::new(round));
    }
    until("all are hot and at the end", || {
        crowd.iter().all(|consumer| {
            let status = consumer.status();
            status.tier == Tier::Hot && status.lag_records == 0 && status.delivered[0] == 50
        })
    });
    bus.close().unwrap();
}
