//! The whole bus at work on real threads and files, for ThreadSanitizer to look at: writers,
//! consumers in every tier, leases, seeks, pauses, stops, reopening. What is delivered is checked.
//!
//! `runtime SECONDS`, as `races/tsan` builds and runs it. `RACES_PLANT=race` has two threads write a word without telling each other.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use eventplane::testing::Force;
use eventplane::{
    Ack, Batch, Builder, Bus, Durability, Lsn, OwnedRecord, Reason, Signal, Start, Subscription,
    Writer,
};
use parking_lot::Mutex;

const CONSUMERS: [&str; 3] = ["quick", "lapped", "shed"];
const WAIT: Duration = Duration::from_secs(60);

/// What a consumer has seen.
#[derive(Default)]
struct Track {
    last: AtomicU64,
    /// Where the latest seek leads: the only place to which it may jump.
    target: AtomicU64,
    delivered: AtomicU64,
    tiers: [AtomicU64; 3],
    wrong: AtomicBool,
}

impl Track {
    fn take(&self, batch: &Batch<'_>, leases: &mut Vec<OwnedRecord>) {
        for record in batch {
            let lsn = record.lsn().get();
            let last = self.last.swap(lsn, Ordering::Relaxed);
            let is_next = lsn == last + 1 || lsn == self.target.load(Ordering::Relaxed);
            if !is_next || record.payload() != payload(record.key()).as_slice() {
                eprintln!("LSN {lsn} after {last}, key {}", record.key());
                self.wrong.store(true, Ordering::Relaxed);
            }
            if lsn.is_multiple_of(97) {
                leases.extend(record.lease());
            }
        }
        let keep = leases.len().saturating_sub(4);
        leases.drain(..keep);
        self.delivered.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.tiers[batch.tier() as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Follows from the key, so that a torn or stale record shows.
fn payload(key: u64) -> Vec<u8> {
    (0..100 + key % 400).map(|i| (i ^ key) as u8).collect()
}

fn write(writer: &Writer, from: u64, stop: &AtomicBool) -> u64 {
    let mut key = from;
    while !stop.load(Ordering::Relaxed) {
        let mut batch = writer.batch();
        for _ in 0..16 {
            batch.append(1, key, &payload(key)).expect("it fits");
            key += 1;
        }
        if key.is_multiple_of(3) {
            batch.commit_later().expect("open").wait().expect("the disk works");
        } else {
            batch.commit().expect("the disk works");
        }
    }
    key - from
}

fn subscribe(bus: &Bus, name: &str, track: &Arc<Track>) -> Subscription {
    let track = Arc::clone(track);
    let leases = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&leases);
    let slow = name == "lapped";
    bus.subscribe(name)
        .start_at(Start::Earliest)
        // A shed consumer comes back when it pins little.
        .on_signal(move |signal| {
            if matches!(signal, Signal::TierChanged { .. }) {
                kept.lock().clear();
            }
        })
        .run(move |batch: &Batch<'_>| {
            track.take(batch, &mut leases.lock());
            if slow {
                thread::sleep(Duration::from_micros(300));
            }
            Ok(Ack::All)
        })
        .expect("the name is free")
}

/// Orders consumers about while writers write.
fn disturb(
    bus: &Bus,
    subscriptions: &[Subscription],
    tracks: &[Arc<Track>],
    until: Instant,
) -> u64 {
    let mut rounds = 0;
    while Instant::now() < until {
        let which = rounds as usize % subscriptions.len();
        let (subscription, track) = (&subscriptions[which], &tracks[which]);
        match rounds % 7 {
            0 => {
                let target = Lsn::new(bus.committed_lsn().get() / 2 + 1);
                track.target.store(target.get(), Ordering::Relaxed);
                subscription.seek(Start::Lsn(target)).expect("it is there");
            }
            1 => bus.force(CONSUMERS[which], Force::CatchUp, Reason::Lapped),
            2 => bus.force(CONSUMERS[which], Force::Shed, Reason::Stalled),
            3 => subscription.wait_caught_up(Duration::from_millis(20)).unwrap_or_default(),
            4 => subscription.pause(),
            5 => subscription.resume(),
            _ => drop(bus.consumers()),
        }
        thread::sleep(Duration::from_millis(10));
        rounds += 1;
    }
    rounds
}

fn builder(durability: Durability) -> Builder {
    Bus::builder()
        .slab_bytes(64 << 10)
        .segment_bytes(256 << 10)
        .ring_bytes(1 << 20)
        .catchup_window_bytes(4 << 20)
        .pin_budget_bytes(1 << 20)
        .readahead_bytes(256 << 10)
        .consumers_max(16)
        .durability(durability)
        .shed_backoff(Duration::from_millis(20), Duration::from_millis(50))
        .dwell(Duration::from_millis(20))
}

/// Two writers, three consumers, a reader, and somebody who orders them about. Returns how many
/// records were delivered.
fn round(bus: &Bus, tracks: &[Arc<Track>], until: Instant, key: &mut u64) -> u64 {
    tracks.iter().for_each(|track| {
        track.target.store(bus.first_lsn().get(), Ordering::Relaxed);
    });
    let pairs = CONSUMERS.iter().zip(tracks);
    let subscriptions: Vec<_> = pairs.map(|(name, track)| subscribe(bus, name, track)).collect();
    let stop = AtomicBool::new(false);
    let keys = [*key, *key + (1 << 40)];
    thread::scope(|scope| {
        let (stop, writers) = (&stop, keys.map(|key| (bus.writer(), key)));
        let written = writers.map(|(writer, key)| scope.spawn(move || write(&writer, key, stop)));
        let reading = scope.spawn(|| {
            let mut reader = bus.reader(Start::Latest).expect("there is room");
            let mut last = None;
            while !stop.load(Ordering::Relaxed) {
                let next = reader.next_timeout(Duration::from_millis(5)).expect("readable");
                if let Some(record) = next {
                    let lsn = record.lsn().get();
                    assert!(last.is_none_or(|last| lsn == last + 1), "{lsn} after {last:?}");
                    last = Some(lsn);
                }
            }
        });
        let rounds = disturb(bus, &subscriptions, tracks, until);
        stop.store(true, Ordering::Relaxed);
        let written = written.map(|thread| thread.join().expect("a writer"));
        reading.join().expect("the reader");
        *key += written[0];
        println!("{} records written, {rounds} orders given", written.iter().sum::<u64>());
    });
    bus.sync().expect("the disk works");
    for (subscription, track) in subscriptions.iter().zip(tracks) {
        subscription.resume();
        subscription.wait_caught_up(WAIT).expect("it comes to the end");
        assert_eq!(track.last.load(Ordering::Relaxed), bus.committed_lsn().get());
        subscription.stop().expect("it stops");
        assert!(
            !track.wrong.load(Ordering::Relaxed),
            "{} was given the wrong records",
            subscription.name()
        );
    }
    tracks.iter().map(|track| track.delivered.swap(0, Ordering::Relaxed)).sum()
}

fn main() {
    let seconds: u64 = env::args().nth(1).map_or(2, |seconds| seconds.parse().expect("seconds"));
    if env::var("RACES_PLANT").is_ok_and(|bug| bug == "race") {
        return race();
    }
    let dir = tempfile::tempdir().expect("a directory");
    let begun = Instant::now();
    let tracks: Vec<Arc<Track>> = CONSUMERS.map(|_| Arc::default()).into();
    let deferred = Durability::Deferred { interval: Duration::from_millis(2), bytes: 64 << 10 };
    let (mut delivered, mut rounds, mut key) = (0, 0, 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let until = Instant::now() + Duration::from_secs(1);
        let durability = if rounds % 2 == 0 { Durability::Synced } else { deferred };
        let bus = builder(durability).open(dir.path()).expect("it opens");
        delivered += round(&bus, &tracks, until, &mut key);
        bus.close().expect("it closes");
        rounds += 1;
    }
    let tiers = [0, 1, 2].map(|tier: usize| {
        tracks.iter().map(|track| track.tiers[tier].load(Ordering::Relaxed)).sum::<u64>()
    });
    println!("batches delivered hot, in catch-up, cold: {tiers:?}; opened {rounds} times");
    assert!(tiers.iter().all(|batches| *batches > 0), "a tier was never used");
    println!("proof tsan_seconds {}", begun.elapsed().as_secs());
    println!("proof tsan_records {delivered}");
}

struct Shared(std::cell::UnsafeCell<u64>);

// SAFETY: a lie. The control needs a race.
unsafe impl Sync for Shared {}

/// The bug that the sanitizer must report.
fn race() {
    let shared = Shared(std::cell::UnsafeCell::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let shared = &shared;
                for _ in 0..1_000 {
                    // SAFETY: none; that is the point.
                    unsafe { *shared.0.get() += 1 };
                }
            });
        }
    });
    println!("raced");
}
