//! Whatever happens to a consumer, and whichever tiers it goes through, it sees what a plain vector
//! of the acknowledged records says, in that order; and again only after an error, a restart or a
//! seek.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{LONG, small};
use eventplane::testing::{ManualClock, ManualSubscription, Polled};
use eventplane::{
    Ack, Backend, Batch, Bus, ErrorKind, Filter, Lsn, OwnedRecord, Reader, Retry, Start, Subscribe,
    Subscription,
};
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::sample::Index;

/// Kind, key, bytes; the LSN is the index and one.
type Model = Arc<Mutex<Vec<(u16, u64, Vec<u8>)>>>;

const CONSUMERS: usize = 3;
const CASES: u32 = 64;

/// What a callback does once.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Panic,
    Fail,
    Through(usize),
    RetryAfter,
    Lease,
    /// Is slow, on a thread; where it is polled by hand, is not polled.
    Stall,
}

#[derive(Clone, Debug)]
enum Step {
    /// Kinds and sizes of records; whether the batch is dropped.
    Batch(Vec<(u16, Size)>, bool),
    Poll(usize, usize),
    Read(usize),
    Time(u64),
    Mood(usize, Mood),
    Pause(usize),
    Resume(usize),
    Seek(usize, Index),
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Size {
    Bytes(usize),
    /// The most a record may have.
    Max,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![
        2 => Just(Size::Bytes(0)),
        6 => (1..300_usize).prop_map(Size::Bytes),
        4 => (300..9_000_usize).prop_map(Size::Bytes),
        2 => Just(Size::Max),
    ];
    let mood = prop_oneof![
        Just(Mood::Panic),
        Just(Mood::Fail),
        (0..40_usize).prop_map(Mood::Through),
        Just(Mood::RetryAfter),
        Just(Mood::Lease),
        Just(Mood::Stall),
    ];
    let who = 0..CONSUMERS;
    prop_oneof![
        24 => (prop::collection::vec((0..5_u16, size), 1..16), prop::bool::weighted(0.15))
            .prop_map(|(records, dropped)| Step::Batch(records, dropped)),
        12 => (who.clone(), 1..12_usize).prop_map(|(who, polls)| Step::Poll(who, polls)),
        4 => (1..100_usize).prop_map(Step::Read),
        8 => (1..1_500_u64).prop_map(Step::Time),
        8 => (who.clone(), mood).prop_map(|(who, mood)| Step::Mood(who, mood)),
        2 => who.clone().prop_map(Step::Pause),
        3 => who.clone().prop_map(Step::Resume),
        2 => (who, any::<Index>()).prop_map(|(who, to)| Step::Seek(who, to)),
        1 => Just(Step::Restart),
    ]
}

/// What one consumer has seen, and what it may see next.
struct Witness {
    model: Model,
    who: usize,
    /// The next LSN that is due, and those that seeks not yet seen to take effect lead to.
    next: u64,
    targets: Vec<u64>,
    mood: Option<Mood>,
    leases: Vec<OwnedRecord>,
    wrong: Option<String>,
}

/// Consumer 0 sees everything, the others a part.
fn wants(who: usize, kind: u16) -> bool {
    who == 0 || usize::from(kind) % 3 != who
}

impl Witness {
    /// Checks a batch against the model. `Err` says what is wrong with it.
    fn check(&mut self, batch: &Batch<'_>) -> Result<(), String> {
        let model = self.model.lock();
        let through = batch.last_lsn().get();
        let due = |from: u64| {
            let all = from..=through;
            all.filter(|n| wants(self.who, model[*n as usize - 1].0))
                .collect::<Vec<_>>()
        };
        let got: Vec<u64> = batch.iter().map(|record| record.lsn().get()).collect();
        if got != due(self.next) {
            let taken = self.targets.iter().position(|target| got == due(*target));
            let Some(taken) = taken else {
                let (next, targets) = (self.next, &self.targets);
                return Err(format!(
                    "{got:?} instead of {next}.. or {targets:?}.. to {through}"
                ));
            };
            self.next = self.targets[taken];
            self.targets.drain(..=taken);
        }
        if got.is_empty() || got.len() != batch.len() {
            return Err(format!("a batch of {} says it has {}", got.len(), batch.len()));
        }
        for record in batch {
            let (kind, key, bytes) = &model[record.lsn().get() as usize - 1];
            if (record.kind(), record.key(), record.payload()) != (*kind, *key, &bytes[..]) {
                return Err(format!("LSN {} is not what was written", record.lsn()));
            }
        }
        Ok(())
    }

    /// Gives back what it leased, unchanged: one that is shed comes back only with hands free.
    fn let_go(&mut self) {
        self.mood = None;
        for lease in self.leases.drain(..) {
            let (kind, key, bytes) = &self.model.lock()[lease.lsn().get() as usize - 1];
            assert_eq!(
                (lease.kind(), lease.key(), lease.payload()),
                (*kind, *key, &bytes[..])
            );
        }
    }

    fn answer(&mut self, batch: &Batch<'_>) -> Result<Ack, &'static str> {
        let (from, last) = (self.next, batch.last_lsn().get());
        let ack = match self.mood.take() {
            Some(Mood::Fail) => return Err("as planned"),
            Some(Mood::RetryAfter) => return Ok(Ack::RetryAfter(Duration::from_millis(2))),
            Some(Mood::Through(n)) => Ack::Through(Lsn::new((from - 1 + n as u64).min(last + 1))),
            Some(Mood::Lease) => {
                self.leases
                    .extend(batch.iter().filter_map(|record| record.lease().ok()));
                Ack::All
            }
            _ => Ack::All,
        };
        let done = if let Ack::Through(lsn) = ack { lsn.get().min(last) } else { last };
        self.next = self.next.max(done + 1);
        Ok(ack)
    }
}

fn deliver(
    witness: &Mutex<Witness>,
    batch: &Batch<'_>,
) -> Result<Ack, Box<dyn std::error::Error + Send + Sync>> {
    let mood = witness.lock().mood;
    if matches!(mood, Some(Mood::Stall)) {
        std::thread::sleep(Duration::from_millis(40));
    }
    let mut witness = witness.lock();
    if let Err(wrong) = witness.check(batch) {
        witness.wrong.get_or_insert(wrong);
        return Ok(Ack::All);
    }
    if matches!(witness.mood, Some(Mood::Panic)) {
        witness.mood = None;
        drop(witness);
        std::panic::resume_unwind(Box::new("as planned"));
    }
    Ok(witness.answer(batch)?)
}

enum Driver {
    Thread(Subscription),
    Hand(Box<ManualSubscription>),
}

impl Driver {
    fn handle(&self) -> &Subscription {
        match self {
            Driver::Thread(subscription) => subscription,
            Driver::Hand(subscription) => subscription.handle(),
        }
    }
}

struct World {
    dir: tempfile::TempDir,
    backend: Backend,
    /// `None`: threads and real time.
    clock: Option<ManualClock>,
    model: Model,
    witnesses: Vec<Arc<Mutex<Witness>>>,
    bus: Option<(Bus, Vec<Driver>, Reader)>,
    read: u64,
}

/// How many records each tier delivered, in all cases together.
static DELIVERED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

impl World {
    fn new(backend: Backend, by_hand: bool) -> World {
        let model = Model::default();
        let witness = |who| {
            let model = Arc::clone(&model);
            let (targets, leases) = (Vec::new(), Vec::new());
            let witness = Witness { model, who, next: 1, targets, mood: None, leases, wrong: None };
            Arc::new(Mutex::new(witness))
        };
        let mut world = World {
            dir: tempfile::tempdir().unwrap(),
            backend,
            clock: by_hand.then(ManualClock::default),
            witnesses: (0..CONSUMERS).map(witness).collect(),
            model: Arc::clone(&model),
            bus: None,
            read: 0,
        };
        world.open();
        world
    }

    fn open(&mut self) {
        let builder = small(self.backend).flapping(2, Duration::from_secs(1));
        let builder = match &self.clock {
            Some(clock) => builder.manual(clock),
            None => builder
                .tick(Duration::from_millis(1))
                .dwell(Duration::from_millis(3))
                .stall_after(Duration::from_millis(15))
                .shed_backoff(Duration::from_millis(1), Duration::from_millis(8)),
        };
        let bus = builder.open(self.dir.path()).unwrap();
        assert_eq!(bus.committed_lsn().get(), self.model.lock().len() as u64);
        let drivers = (0..CONSUMERS).map(|who| self.subscribe(&bus, who)).collect();
        let reader = bus.reader(Start::Lsn(Lsn::new(self.read + 1))).unwrap();
        self.bus = Some((bus, drivers, reader));
    }

    fn subscribe(&self, bus: &Bus, who: usize) -> Driver {
        let page = [1, 7, 1024][who];
        let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(2));
        let filter = Filter::by(move |kind, _| wants(who, kind));
        let subscribe: Subscribe = bus
            .subscribe(format!("c{who}"))
            .start_if_new(Start::Earliest)
            .filter(if who == 0 { Filter::all() } else { filter })
            .batch_records_max(page)
            .retry(retry.forever());
        let witness = Arc::clone(&self.witnesses[who]);
        let callback = move |batch: &Batch<'_>| deliver(&witness, batch);
        match self.clock {
            Some(_) => Driver::Hand(Box::new(subscribe.manual(callback).unwrap())),
            None => Driver::Thread(subscribe.run(callback).unwrap()),
        }
    }

    fn close(&mut self) {
        let Some((bus, drivers, reader)) = self.bus.take() else { return };
        for driver in &drivers {
            let delivered = driver.handle().status().delivered;
            for (sum, records) in DELIVERED.iter().zip(delivered) {
                sum.fetch_add(records, Ordering::Relaxed);
            }
        }
        drop(reader);
        drivers.into_iter().for_each(|driver| match driver {
            Driver::Thread(subscription) => subscription.stop().unwrap(),
            Driver::Hand(subscription) => drop(subscription),
        });
        bus.close().unwrap();
    }

    fn step(&mut self, step: &Step) {
        if let Step::Restart = step {
            self.close();
            return self.open();
        }
        let (bus, drivers, _) = self.bus.as_mut().unwrap();
        match step {
            Step::Batch(records, dropped) => write(bus, &self.model, records, *dropped),
            Step::Poll(who, polls) => {
                if let Driver::Hand(consumer) = &mut drivers[*who] {
                    (0..*polls).for_each(|_| _ = consumer.poll());
                }
            }
            Step::Read(records) => (0..*records).for_each(|_| _ = self.read_one()),
            Step::Time(millis) => match &self.clock {
                Some(clock) => {
                    clock.advance(Duration::from_millis(*millis));
                    bus.drive().unwrap();
                    bus.tick();
                    bus.housekeep();
                }
                None => std::thread::yield_now(),
            },
            Step::Mood(who, mood) => self.witnesses[*who].lock().mood = Some(*mood),
            Step::Pause(who) => drivers[*who].handle().pause(),
            Step::Resume(who) => drivers[*who].handle().resume(),
            Step::Seek(who, to) => {
                let to = 1 + to.index(self.model.lock().len() + 1) as u64;
                // Known before it takes effect: a thread may be quicker than this one.
                self.witnesses[*who].lock().targets.push(to);
                drivers[*who].handle().seek(Start::Lsn(Lsn::new(to))).unwrap();
            }
            Step::Restart => {}
        }
    }

    /// The reader sees everything once, whatever else happens.
    fn read_one(&mut self) -> bool {
        let (_, _, reader) = self.bus.as_mut().unwrap();
        let Some(record) = reader.try_next().unwrap() else { return false };
        assert_eq!(record.lsn().get(), self.read + 1);
        let model = self.model.lock();
        let (kind, key, bytes) = &model[self.read as usize];
        assert_eq!(
            (record.kind(), record.key(), record.payload()),
            (*kind, *key, &bytes[..])
        );
        self.read += 1;
        true
    }

    /// Everybody gets to the end: then everything due was seen.
    fn finish(&mut self) {
        let last = self.model.lock().len() as u64;
        for (who, witness) in self.witnesses.iter().enumerate() {
            witness.lock().let_go();
            let (bus, drivers, _) = self.bus.as_mut().unwrap();
            drivers[who].handle().resume();
            match (&mut drivers[who], &self.clock) {
                (Driver::Hand(consumer), Some(clock)) => drain(bus, consumer, clock),
                (driver, _) => driver.handle().wait_processed(Lsn::new(last), LONG).unwrap(),
            }
            let witness = witness.lock();
            assert_eq!(witness.wrong, None, "consumer {who}");
            let model = self.model.lock();
            let due = |from: u64| (from..=last).find(|n| wants(who, model[*n as usize - 1].0));
            let sought = witness.targets.iter().any(|target| due(*target).is_none());
            let missed = due(witness.next);
            assert!(
                missed.is_none() || sought,
                "consumer {who} never saw {missed:?} of {last}"
            );
        }
        let (bus, ..) = self.bus.as_ref().unwrap();
        assert_eq!(bus.committed_lsn().get(), last);
        while self.read < last {
            self.let_time_pass();
            while self.read_one() {}
        }
        self.close();
    }

    fn let_time_pass(&self) {
        let (bus, ..) = self.bus.as_ref().unwrap();
        match &self.clock {
            Some(clock) => {
                clock.advance(Duration::from_millis(100));
                bus.tick();
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn drain(bus: &Bus, consumer: &mut ManualSubscription, clock: &ManualClock) {
    for _ in 0..100_000 {
        match consumer.poll() {
            Polled::Moved => {}
            Polled::CaughtUp => return,
            Polled::Later | Polled::Waiting => {
                clock.advance(Duration::from_millis(100));
                bus.tick();
            }
            Polled::Stopped => panic!("nobody stopped it"),
        }
    }
    panic!("not caught up: {:?}", consumer.handle().status());
}

/// Appends to the model what the bus will accept, then commits; or does neither.
fn write(bus: &Bus, model: &Model, records: &[(u16, Size)], dropped: bool) {
    let writer = bus.writer();
    let most = writer.payload_bytes_max();
    let mut accepted = Vec::new();
    let mut batch = writer.batch();
    let first = model.lock().len() as u64 + 1;
    for (i, (kind, size)) in records.iter().enumerate() {
        let bytes = match size {
            Size::Bytes(bytes) => *bytes,
            Size::Max => most,
        };
        let key = (first + i as u64) << 3;
        let payload = vec![(key % 251) as u8; bytes];
        match batch.append(*kind, key, &payload) {
            Ok(()) => accepted.push((*kind, key, payload)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::BatchTooLarge),
        }
    }
    assert_eq!(batch.len(), accepted.len());
    if dropped {
        return;
    }
    // Before the commit: a consumer may see it before this thread goes on.
    model.lock().extend(accepted.iter().cloned());
    let lsns = batch.commit().unwrap();
    assert_eq!(
        (lsns.start().get(), lsns.end().get() + 1),
        (first, first + accepted.len() as u64)
    );
}

#[test]
fn every_trace_is_that_of_the_model() {
    let backends = common::backends();
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    let config = ProptestConfig {
        cases: cases.unwrap_or(CASES),
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let steps = prop::collection::vec(step(), 20..120);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let case = (prop::sample::select(backends), any::<bool>(), steps);
    runner
        .run(&case, |(backend, by_hand, steps)| {
            let mut world = World::new(backend, by_hand);
            steps.iter().for_each(|step| world.step(step));
            world.finish();
            Ok(())
        })
        .unwrap();
    let delivered: Vec<u64> = DELIVERED.iter().map(|n| n.load(Ordering::Relaxed)).collect();
    println!("delivered by hot, catch-up and cold: {delivered:?}");
    // Anything but a small number of cases goes through all tiers.
    assert!(cases.is_some_and(|n| n < CASES) || delivered.iter().all(|n| *n > 100));
}
