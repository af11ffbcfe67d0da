//! Models of a consumer's thread beside those who order it about, write for it, wait for it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::core::Consumer;
use super::thread::{Callbacks, run};
use super::{Ack, Batch, Checkpoints, Plane, Start, Subscribe, Subscription};
use crate::log::{Log, Writer};
use crate::lsn::{Geometry, Lsn};
use crate::models::Model;
use crate::options::Options;
use crate::policy::{Phase, Reason};
use crate::ring::Ring;
use crate::source::Cursor;
use crate::sync::{Clock, atomic, thread};

pub(crate) const ALL: &[Model] = &[
    Model { name: "consumer_stop", preemptions: 3, run: stop },
    Model { name: "consumer_seek", preemptions: 3, run: seek },
    Model { name: "consumer_pause_resume", preemptions: 3, run: pause_resume },
    Model { name: "consumer_transition", preemptions: 3, run: transition },
    Model { name: "consumer_append", preemptions: 2, run: append },
    Model { name: "consumer_progress", preemptions: 3, run: progress::<1> },
    Model { name: "consumer_progress_of_two", preemptions: 3, run: progress::<2> },
    Model { name: "consumer_progress_late", preemptions: 3, run: progress_late },
];

/// What the callback was given; not seen by the model, so that it adds no order of its own.
type Seen = Arc<std::sync::Mutex<Vec<u64>>>;

/// A bus in memory, without its threads.
struct Bed {
    plane: Arc<Plane>,
    seen: Seen,
    stop: Arc<atomic::AtomicBool>,
}

impl Bed {
    fn new(records: u64) -> Bed {
        let (slab_bytes, ring_bytes) = (4096, 4 * 4096);
        let options = Options {
            slab_bytes,
            ring_bytes,
            pin_budget_bytes: 0,
            consumers_max: 1,
            idle_spins: 0,
            ..Options::default()
        };
        let geometry = Geometry { ..options.memory_geometry() };
        let ring = Arc::new(Ring::new(&options, geometry, 0, Lsn::ZERO).expect("a ring"));
        let clock = Clock::Manual(Arc::new(AtomicU64::new(1)));
        let log = Log::new(&options, geometry, ring, clock, None, (0, Lsn::FIRST), true);
        let log = Arc::new(log.expect("a log"));
        let plane = Plane::new(options, log, None, None, Checkpoints::in_memory());
        let bed = Bed {
            plane: Arc::new(plane),
            seen: Seen::default(),
            stop: Arc::new(atomic::AtomicBool::new(false)),
        };
        (0..records).for_each(|_| bed.append());
        bed
    }

    fn append(&self) {
        let writer = Writer::new(Arc::clone(&self.plane.log));
        writer.append(1, 2, b"three").expect("memory never fails");
    }

    fn begin(&self, start: Start) -> (Consumer, Callbacks, Subscription) {
        let seen = Arc::clone(&self.seen);
        let deliver = move |batch: &Batch<'_>| {
            let mut seen = seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            seen.extend(batch.iter().map(|record| record.lsn().get()));
            Ok(Ack::All)
        };
        let subscribe = Subscribe::new(Arc::clone(&self.plane), "model".into());
        let subscribe = subscribe.start_if_new(start);
        let begun = subscribe.begin(Box::new(deliver)).expect("its name is free");
        let subscription = Subscription::by_hand(&begun.0);
        (begun.0, begun.1, subscription)
    }

    fn seen(&self) -> Vec<u64> {
        self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// As the waker thread.
    fn spawn_waker(&self) -> thread::JoinHandle<()> {
        let (log, stop) = (Arc::clone(&self.plane.log), Arc::clone(&self.stop));
        thread::spawn(move || {
            let Ring { sleepers, committed, .. } = &*log.ring;
            sleepers.run(committed, || stop.load(atomic::Ordering::Acquire));
        })
    }
}

const LONG: Duration = Duration::from_secs(1);

/// How a model ends is what `stop` is about: elsewhere one way is enough.
fn end(subscription: &Subscription, thread: thread::JoinHandle<()>) {
    atomic::end();
    subscription.stop_within(LONG).expect("it stops");
    thread.join().expect("the consumer");
}

/// An order to stop ends whatever sleep it finds, and is answered.
fn stop() {
    let bed = Bed::new(0);
    let (consumer, callbacks, subscription) = bed.begin(Start::Earliest);
    let thread = thread::spawn(move || run(consumer, callbacks));
    subscription.stop_within(LONG).expect("it stops");
    thread.join().expect("the consumer");
}

/// A wait after a seek is not answered by what was processed before it.
fn seek() {
    let bed = Bed::new(2);
    let (consumer, callbacks, subscription) = bed.begin(Start::Lsn(Lsn::new(2)));
    let thread = thread::spawn(move || run(consumer, callbacks));
    subscription.seek(Start::Earliest).expect("it is there");
    subscription.wait_processed(Lsn::new(2), LONG).expect("it is processed");
    // A callback that began before the seek may end behind it, but it is no answer.
    assert!([vec![1, 2], vec![2, 1, 2]].contains(&bed.seen()), "{:?}", bed.seen());
    end(&subscription, thread);
}

/// A resumed consumer goes on.
fn pause_resume() {
    let bed = Bed::new(1);
    let (consumer, callbacks, subscription) = bed.begin(Start::Earliest);
    let thread = thread::spawn(move || run(consumer, callbacks));
    subscription.pause();
    subscription.resume();
    subscription.wait_processed(Lsn::new(1), LONG).expect("it is processed");
    assert_eq!(bed.seen(), [1]);
    end(&subscription, thread);
}

/// A shed consumer waits; one that is brought back goes on.
fn transition() {
    let bed = Bed::new(1);
    let (consumer, callbacks, subscription) = bed.begin(Start::Earliest);
    let state = Arc::clone(consumer.state());
    let thread = thread::spawn(move || run(consumer, callbacks));
    for (phase, reason) in [(Phase::Shed, Reason::Stalled), (Phase::Hot, Reason::CaughtUp)] {
        bed.plane.apply(&state, &mut state.tiering.lock(), phase, reason);
    }
    subscription.wait_processed(Lsn::new(1), LONG).expect("it is processed");
    assert_eq!(bed.seen(), [1]);
    end(&subscription, thread);
}

/// Progress that is not at the end answers the waits for it.
fn progress<const WAITS: u64>() {
    let bed = Bed::new(WAITS);
    let (consumer, _, _) = bed.begin(Start::Earliest);
    let waits = (1..=WAITS).map(|lsn| {
        let subscription = Subscription::by_hand(&consumer);
        thread::spawn(move || subscription.wait_processed(Lsn::new(lsn), LONG))
    });
    let waits: Vec<_> = waits.collect();
    for lsn in 1..=WAITS {
        consumer.state().publish(&Cursor::at(4096 * lsn, Lsn::new(lsn + 1)));
    }
    for wait in waits {
        wait.join().expect("a waiter").expect("it is processed");
    }
}

/// A wait that entered while an older entry was taken back is answered at its own.
fn progress_late() {
    let bed = Bed::new(2);
    let (consumer, _, subscription) = bed.begin(Start::Earliest);
    let state = consumer.state();
    state.await_lsn(Lsn::new(1));
    let wait = thread::spawn(move || subscription.wait_processed(Lsn::new(2), LONG));
    for lsn in [1, 2] {
        state.publish(&Cursor::at(4096 * lsn, Lsn::new(lsn + 1)));
    }
    wait.join().expect("a waiter").expect("it is processed");
}

/// Writer, waker, consumer: what is appended is delivered, and the wait for it is answered.
fn append() {
    let bed = Bed::new(0);
    let (consumer, callbacks, subscription) = bed.begin(Start::Earliest);
    let thread = thread::spawn(move || run(consumer, callbacks));
    let waker = bed.spawn_waker();
    bed.append();
    subscription.wait_processed(Lsn::new(1), LONG).expect("it is processed");
    assert_eq!(bed.seen(), [1]);
    end(&subscription, thread);
    bed.stop.store(true, atomic::Ordering::Release);
    bed.plane.log.ring.sleepers.ring();
    waker.join().expect("the waker");
}
