//! Tiers change under a consumer's feet: nothing is lost, repeated or reordered, the policy makes
//! exactly the transitions of its table, and no load makes it flap.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{
    KIB, RING_BYTES, WINDOW_BYTES, assert_alternating, assert_content, backends, fill, fill_bytes,
    fill_later, on_each_backend, small,
};
use eventplane::testing::{Force, ManualClock, ManualSubscription, Polled};
use eventplane::{Ack, Backend, Batch, Bus, OwnedRecord, Reason, Signal, Start, Tier, Transition};
use parking_lot::Mutex;

const TRANSITIONS: usize = 100_000;

/// A hand-polled consumer that checks every record it sees.
struct Checked {
    subscription: ManualSubscription,
    last: Arc<Mutex<u64>>,
    signals: Arc<Mutex<Vec<Signal>>>,
}

impl Checked {
    fn new(bus: &Bus, name: &str, batch_records_max: usize) -> Checked {
        let last = Arc::new(Mutex::new(0));
        let signals = Arc::<Mutex<Vec<Signal>>>::default();
        let subscription = bus
            .subscribe(name)
            .start_if_new(Start::Earliest)
            .batch_records_max(batch_records_max)
            .on_signal({
                let signals = Arc::clone(&signals);
                move |signal| signals.lock().push(signal.clone())
            })
            .manual({
                let last = Arc::clone(&last);
                move |batch: &Batch<'_>| {
                    for record in batch {
                        let mut last = last.lock();
                        assert_eq!(record.lsn().get(), *last + 1, "lost or repeated");
                        assert_content(&record);
                        *last += 1;
                    }
                    Ok(Ack::All)
                }
            })
            .unwrap();
        Checked { subscription, last, signals }
    }

    fn catch_up(&mut self, clock: &ManualClock) {
        loop {
            match self.subscription.poll() {
                Polled::Moved => {}
                Polled::CaughtUp => return,
                Polled::Later => clock.advance(Duration::from_millis(1)),
                other => panic!("{other:?}: {:?}", self.subscription.handle().status()),
            }
        }
    }

    fn tier(&self) -> Tier {
        self.subscription.handle().status().tier
    }
}

/// The rows of the policy's table that leave a phase.
fn rows(from: Force) -> &'static [(Force, Reason)] {
    match from {
        Force::Hot => &[
            (Force::CatchUp, Reason::Lapped),
            (Force::Shed, Reason::PinBudget),
            (Force::Shed, Reason::Stalled),
        ],
        Force::CatchUp => &[
            (Force::Hot, Reason::CaughtUp),
            (Force::Shed, Reason::PinBudget),
            (Force::Shed, Reason::Stalled),
            (Force::Shed, Reason::Lag),
            (Force::Shed, Reason::Flapping),
        ],
        Force::Shed => &[(Force::Replaying, Reason::Admitted)],
        Force::Replaying => &[(Force::CatchUp, Reason::Recovering)],
    }
}

fn phase(bus: &Bus, name: &str) -> Force {
    let status = bus
        .consumers()
        .into_iter()
        .find(|status| status.name == name)
        .unwrap();
    match status.tier {
        Tier::Hot => Force::Hot,
        Tier::CatchUp => Force::CatchUp,
        _ if status.shed => Force::Shed,
        _ => Force::Replaying,
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn each_lsn_once_in_order_through_a_hundred_thousand_forced_switches() {
    let backends = backends();
    let share = TRANSITIONS.div_ceil(backends.len());
    let mut forced = 0;
    for backend in backends {
        forced += force_switches(backend, share);
    }
    assert!(forced >= TRANSITIONS);
}

/// Lets a writer commit, forces consumers along the rows of the table, polls them a little.
fn force_switches(backend: Backend, transitions: usize) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let bus = small(backend).manual(&clock).open(dir.path()).unwrap();
    let writer = bus.writer();
    let names = ["one", "few", "many"];
    let pages = [1, 7, 4096];
    let mut consumers: Vec<_> = names
        .iter()
        .zip(pages)
        .map(|(name, page)| Checked::new(&bus, name, page))
        .collect();
    let mut dice = Dice(0xE7E7_0001);
    let mut forced = BTreeMap::new();
    let mut count = 0;
    while count < transitions {
        if dice.below(80) == 0 {
            let mut last = bus.committed_lsn();
            for _ in 0..dice.below(16) {
                let (records, bytes) = (1 + dice.below(6), [0, 40, 900, 2_600][dice.below(4)]);
                last = *fill_later(&writer, last, records as u64, bytes).lsns().end();
            }
            bus.sync().unwrap();
            bus.drive().unwrap();
        }
        let which = dice.below(consumers.len());
        let from = phase(&bus, names[which]);
        let (to, reason) = rows(from)[dice.below(rows(from).len())];
        bus.force(names[which], to, reason);
        *forced
            .entry((format!("{from:?}"), format!("{to:?}"), reason))
            .or_insert(0) += 1;
        count += 1;
        let ahead = bus.committed_lsn().get() - *consumers[which].last.lock();
        for _ in 0..dice.below(4) + (ahead > 500) as usize {
            consumers[which].subscription.poll();
        }
    }
    assert_eq!(forced.len(), 10, "every row of the table was forced: {forced:?}");
    for (name, consumer) in names.iter().zip(&mut consumers) {
        if phase(&bus, name) == Force::Shed {
            bus.force(name, Force::Replaying, Reason::Admitted);
        }
        consumer.catch_up(&clock);
        assert_eq!(
            *consumer.last.lock(),
            bus.committed_lsn().get(),
            "{name} saw everything"
        );
        let signals = consumer.signals.lock();
        assert!(
            assert_alternating(&signals) > 20,
            "{name} fell behind and came back"
        );
        assert_chained(&signals);
        let status = consumer.subscription.handle().status();
        assert!(
            status.delivered.iter().all(|&records| records > 0),
            "{:?}",
            status.delivered
        );
        assert_eq!(status.delivered.iter().sum::<u64>(), bus.committed_lsn().get());
    }
    drop(consumers);
    bus.close().unwrap();
    count
}

/// Each change of tier begins in the tier that the one before led to.
#[track_caller]
fn assert_chained(signals: &[Signal]) {
    let mut tier = Tier::Hot;
    let mut lsn_before = 0;
    for signal in signals {
        if let Signal::TierChanged { from, to, lsn, .. } = signal {
            assert_eq!(*from, tier, "{signal:?}");
            assert!(lsn.get() >= lsn_before, "{signal:?} before LSN {lsn_before}");
            (tier, lsn_before) = (*to, lsn.get());
        }
    }
}

const DWELL: Duration = Duration::from_millis(250);
const STALL: Duration = Duration::from_secs(2);

fn rows_taken(bus: &Bus, name: &str) -> Vec<(Tier, Tier, Reason)> {
    let rows = |t: Transition| (t.consumer == name).then_some((t.from, t.to, t.reason));
    bus.transitions().into_iter().filter_map(rows).collect()
}

/// From shed back to hot: back-off, admission, recovery, dwell.
fn come_back(bus: &Bus, clock: &ManualClock, consumer: &mut Checked) {
    bus.tick();
    assert_eq!(
        consumer.subscription.poll(),
        Polled::Waiting,
        "shed until the back-off is over"
    );
    clock.advance(Duration::from_secs(30));
    bus.tick();
    consumer.catch_up(clock);
    bus.tick();
    clock.advance(DWELL);
    bus.tick();
    consumer.catch_up(clock);
    assert_eq!(consumer.tier(), Tier::Hot);
}

/// The transitions that the test below provokes, in order.
fn rows_of_all_eight() -> Vec<(Tier, Tier, Reason)> {
    let shed = |from, reason| {
        [
            (from, Tier::Cold, reason),
            (Tier::Cold, Tier::Cold, Reason::Admitted),
            (Tier::Cold, Tier::CatchUp, Reason::Recovering),
            (Tier::CatchUp, Tier::Hot, Reason::CaughtUp),
        ]
    };
    let out = (Tier::Hot, Tier::CatchUp, Reason::Lapped);
    let back = (Tier::CatchUp, Tier::Hot, Reason::CaughtUp);
    let mut expected = vec![out, back];
    expected.extend(shed(Tier::Hot, Reason::Stalled));
    expected.push(out);
    expected.extend(shed(Tier::CatchUp, Reason::Lag));
    expected.extend([out, back].repeat(4));
    expected.push(out);
    expected.extend(shed(Tier::CatchUp, Reason::Flapping));
    expected
}

#[test]
fn the_policy_itself_goes_through_all_eight_reasons() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        let bus = small(backend).manual(&clock).open(dir.path()).unwrap();
        let mut consumer = Checked::new(&bus, "c", 64);
        fill_bytes(&bus, 16 * KIB);
        consumer.catch_up(&clock);

        // Lapped, then caught up, but not before the dwell is over.
        fill_bytes(&bus, 2 * RING_BYTES);
        assert_eq!(
            consumer.subscription.poll(),
            Polled::Moved,
            "the slab it holds is still read"
        );
        assert_eq!(consumer.tier(), Tier::Hot);
        consumer.catch_up(&clock);
        assert_eq!(
            consumer.tier(),
            Tier::CatchUp,
            "the consumer itself found the next slab gone"
        );
        bus.tick();
        assert_eq!(consumer.tier(), Tier::CatchUp, "dwells");
        clock.advance(DWELL);
        bus.tick();
        assert_eq!(consumer.tier(), Tier::Hot);
        consumer.catch_up(&clock);

        // Stalled: a record waits, and nobody polls.
        fill_bytes(&bus, KIB);
        bus.tick();
        clock.advance(STALL - Duration::from_millis(1));
        bus.tick();
        assert_eq!(consumer.tier(), Tier::Hot);
        clock.advance(Duration::from_millis(1));
        bus.tick();
        come_back(&bus, &clock, &mut consumer);

        // Lag: further behind than the window.
        fill_bytes(&bus, WINDOW_BYTES + RING_BYTES);
        bus.tick();
        bus.tick();
        come_back(&bus, &clock, &mut consumer);

        // Flapping: out of hot five times within ten seconds.
        for _ in 0..5 {
            assert_eq!(consumer.tier(), Tier::Hot);
            fill_bytes(&bus, RING_BYTES + 64 * KIB);
            bus.tick();
            consumer.catch_up(&clock);
            clock.advance(DWELL);
            bus.tick();
        }
        come_back(&bus, &clock, &mut consumer);

        let expected = rows_of_all_eight();
        assert_eq!(rows_taken(&bus, "c"), expected);
        let mut counted = BTreeMap::new();
        for row in expected {
            *counted.entry(row).or_insert(0_u64) += 1;
        }
        assert_eq!(bus.transition_counts(), counted);
        assert_alternating(&consumer.signals.lock());
        assert_chained(&consumer.signals.lock());
        assert_eq!(*consumer.last.lock(), bus.committed_lsn().get());
    });
}

/// A hand-polled consumer that leases what it sees while it may.
fn leasing(bus: &Bus, name: &str) -> (ManualSubscription, Arc<Mutex<Vec<OwnedRecord>>>) {
    let leases = Arc::<Mutex<Vec<OwnedRecord>>>::default();
    let subscription = bus
        .subscribe(name)
        .start_if_new(Start::Earliest)
        .manual({
            let leases = Arc::clone(&leases);
            move |batch: &Batch<'_>| {
                leases
                    .lock()
                    .extend(batch.iter().filter_map(|record| record.lease().ok()));
                Ok(Ack::All)
            }
        })
        .unwrap();
    (subscription, leases)
}

#[test]
fn who_pins_most_of_an_exhausted_budget_is_shed_until_it_pins_half_a_share() {
    on_each_backend(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        let bus = small(backend).manual(&clock).open(dir.path()).unwrap();
        fill_bytes(&bus, 16 * KIB);
        // The budget is four slabs, a share one: four consumers take it all, the fifth gets none.
        let mut consumers: Vec<_> = (0..5).map(|i| leasing(&bus, &format!("c{i}"))).collect();
        for (consumer, _) in &mut consumers[..4] {
            assert_eq!(consumer.poll(), Polled::Moved);
        }
        bus.tick();
        assert!(bus.transitions().is_empty(), "a full budget alone sheds nobody");
        assert_eq!(consumers[4].0.poll(), Polled::Moved);
        assert!(consumers[4].1.lock().is_empty(), "the budget is exhausted");
        bus.tick();
        let shed: Vec<_> = bus.transitions();
        assert_eq!(shed.len(), 1, "{shed:?}");
        assert_eq!((shed[0].to, shed[0].reason), (Tier::Cold, Reason::PinBudget));
        let name = shed[0].consumer.clone();
        assert_ne!(name, "c4", "it pins nothing");
        let which: usize = name[1..].parse().unwrap();

        clock.advance(Duration::from_secs(31));
        bus.tick();
        assert_eq!(
            consumers[which].0.poll(),
            Polled::Waiting,
            "it still pins a whole share"
        );
        consumers[which].1.lock().clear();
        bus.tick();
        assert_eq!(rows_taken(&bus, &name).last().unwrap().2, Reason::Admitted);
        bus.tick();
        assert_eq!(consumers[which].0.poll(), Polled::CaughtUp);
        clock.advance(DWELL);
        bus.tick();
        assert_eq!(rows_taken(&bus, &name).last().unwrap().1, Tier::Hot);
        fill_bytes(&bus, KIB);
        assert_eq!(consumers[4].0.poll(), Polled::Moved);
        assert!(
            !consumers[4].1.lock().is_empty(),
            "what was given back can be leased again"
        );
    });
}

/// Bursts that lap the consumer whenever it is hot. Returns the transitions of each second.
fn worst_load(bus: &Bus, clock: &ManualClock, seconds: usize) -> (Vec<usize>, Checked) {
    let mut consumer = Checked::new(bus, "c", 4096);
    let mut per_second = Vec::new();
    let mut before = 0;
    for _ in 0..seconds {
        for _ in 0..100 {
            if consumer.tier() == Tier::Hot {
                fill_bytes(bus, RING_BYTES + 64 * KIB);
            }
            for _ in 0..32 {
                consumer.subscription.poll();
            }
            bus.tick();
            clock.advance(Duration::from_millis(10));
        }
        let now: u64 = bus.transition_counts().values().sum();
        per_second.push((now - before) as usize);
        before = now;
    }
    (per_second, consumer)
}

#[test]
fn no_load_makes_a_consumer_flap() {
    let clock = ManualClock::default();
    let dir = tempfile::tempdir().unwrap();
    let window = Duration::from_secs(10);
    let bus = small(Backend::Auto)
        .flapping(u32::MAX, window)
        .manual(&clock)
        .open(dir.path())
        .unwrap();
    let (per_second, consumer) = worst_load(&bus, &clock, 10);
    // A stay in catch-up lasts a dwell at least: four round trips a second, and one begun before.
    let most = 2 * (Duration::from_secs(1).as_nanos() / DWELL.as_nanos()) as usize + 1;
    assert!(per_second.iter().all(|&n| n <= most), "{per_second:?}");
    assert!(
        per_second.iter().any(|&n| n >= most / 2),
        "hardly a load: {per_second:?}"
    );
    assert_alternating(&consumer.signals.lock());

    let clock = ManualClock::default();
    let dir = tempfile::tempdir().unwrap();
    let bus = small(Backend::Auto).manual(&clock).open(dir.path()).unwrap();
    let (per_second, consumer) = worst_load(&bus, &clock, 60);
    assert!(per_second.iter().all(|&n| n <= most), "{per_second:?}");
    // Five laps, then out for twice as long each time: 0.5, 1, 2, 4, 8, 16, 30 s.
    let total: usize = per_second.iter().sum();
    let flapping = bus.transition_counts()[&(Tier::CatchUp, Tier::Cold, Reason::Flapping)];
    assert!((4..=7).contains(&flapping), "{flapping} sheds in a minute");
    let lapped = bus.transition_counts()[&(Tier::Hot, Tier::CatchUp, Reason::Lapped)];
    assert!(
        lapped >= 5 * flapping,
        "{lapped} laps for {flapping} sheds: each takes five of its own"
    );
    assert!(total <= 14 * 8, "{total} transitions in a minute: {per_second:?}");
    assert_alternating(&consumer.signals.lock());
}

/// Mappings and open files of the log's segments in this process.
fn held(dir: &Path) -> usize {
    let dir = dir.join("segments").display().to_string();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let files = fs::read_dir("/proc/self/fd").unwrap();
    let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    maps.lines().filter(|line| line.contains(&dir)).count()
        + links.filter(|path| path.starts_with(&dir)).count()
}

#[test]
fn who_is_shed_paused_or_waiting_holds_nothing() {
    on_each_backend(|backend| {
        let clock = ManualClock::default();
        let dir = tempfile::tempdir().unwrap();
        let bus = small(backend).manual(&clock).open(dir.path()).unwrap();
        fill_bytes(&bus, 2 * RING_BYTES);
        for tier in [Force::CatchUp, Force::Replaying] {
            for _ in 0..8 {
                bus.drive().unwrap();
            }
            let mut answers = vec![Ack::RetryAfter(Duration::from_secs(1))];
            let mut consumer = bus
                .subscribe("c")
                .start_at(Start::Earliest)
                .batch_records_max(1)
                .manual(move |batch: &Batch<'_>| {
                    let late = batch.first_lsn().get() == 4;
                    Ok(late.then(|| answers.pop()).flatten().unwrap_or(Ack::All))
                })
                .unwrap();
            let nothing = held(dir.path());
            bus.force("c", tier, Reason::Recovering);
            let read = |consumer: &mut ManualSubscription, what: &str| {
                assert_eq!(consumer.poll(), Polled::Moved);
                assert!(held(dir.path()) > nothing, "{tier:?}: reads before it is {what}");
            };
            read(&mut consumer, "paused");
            consumer.handle().pause();
            assert_eq!(consumer.poll(), Polled::Waiting);
            assert_eq!(held(dir.path()), nothing, "{tier:?}, paused");
            consumer.handle().resume();
            read(&mut consumer, "shed");
            bus.force("c", Force::Shed, Reason::Stalled);
            assert_eq!(consumer.poll(), Polled::Waiting);
            assert_eq!(held(dir.path()), nothing, "{tier:?}, shed");
            bus.force("c", tier, Reason::Admitted);
            read(&mut consumer, "waiting");
            assert_eq!(consumer.poll(), Polled::Later);
            assert_eq!(held(dir.path()), nothing, "{tier:?}, waiting to try again");
        }
    });
}

#[test]
fn a_transition_told_while_catching_up_does_not_reorder_signals() {
    // `CaughtUp` was noted, then earlier transitions were told, and one decided meanwhile put its
    // `FellBehind` in front of the `CaughtUp` it ends.
    let clock = ManualClock::default();
    let dir = tempfile::tempdir().unwrap();
    let bus = Arc::new(small(Backend::Auto).manual(&clock).open(dir.path()).unwrap());
    let signals = Arc::<Mutex<Vec<Signal>>>::default();
    let mut consumer = bus
        .subscribe("c")
        .start_if_new(Start::Earliest)
        .on_signal({
            let (signals, bus) = (Arc::clone(&signals), Arc::downgrade(&bus));
            move |signal| {
                signals.lock().push(signal.clone());
                if matches!(signal, Signal::TierChanged { reason: Reason::Lapped, .. }) {
                    bus.upgrade().unwrap().force("c", Force::Shed, Reason::Stalled);
                }
            }
        })
        .manual({
            let bus = Arc::downgrade(&bus);
            move |_: &Batch<'_>| {
                bus.upgrade()
                    .unwrap()
                    .force("c", Force::CatchUp, Reason::Lapped);
                Ok(Ack::All)
            }
        })
        .unwrap();
    fill(&bus, &bus.writer(), 1, 10);
    assert_eq!(consumer.poll(), Polled::Moved);
    bus.force("c", Force::Replaying, Reason::Admitted);
    assert_eq!(consumer.poll(), Polled::CaughtUp);
    let signals = signals.lock().clone();
    assert_eq!(assert_alternating(&signals), 3, "{signals:?}");
}
