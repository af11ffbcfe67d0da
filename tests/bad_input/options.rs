//! Options out of bounds, alone and together.

use std::time::Duration;

use eventplane::{Ack, Backend, Builder, Bus, Durability, ErrorKind, Retention, Start};

use super::bed::{Bed, LONG, RING, SEGMENT, SLAB, backends};

const MILLI: Duration = Duration::from_millis(1);

type Change = Box<dyn Fn(Builder) -> Builder>;

fn change(with: impl Fn(Builder) -> Builder + 'static) -> Change {
    Box::new(with)
}

/// A change for each wrong value of an option.
fn wrong<T: Copy + 'static>(
    name: &'static str,
    set: fn(Builder, T) -> Builder,
    values: impl IntoIterator<Item = T>,
) -> Vec<(&'static str, Change)> {
    values
        .into_iter()
        .map(|v| (name, change(move |b| set(b, v))))
        .collect()
}

/// What a bus in memory refuses as well.
fn wrong_anywhere() -> Vec<(&'static str, Change)> {
    let none = [Duration::ZERO];
    let slabs = [0, 1, SLAB - 1, SLAB + 1, SLAB / 2, 3 * SLAB, 128 << 20, u64::MAX];
    [
        wrong("slab_bytes", Builder::slab_bytes, slabs),
        wrong(
            "ring_bytes",
            Builder::ring_bytes,
            [0, SEGMENT, 3 * RING, 1 << 41, u64::MAX],
        ),
        wrong(
            "pin_budget_bytes",
            Builder::pin_budget_bytes,
            [0, 4 * SLAB - 1, u64::MAX],
        ),
        wrong(
            "consumers_max",
            Builder::consumers_max,
            [0, (1 << 16) + 1, usize::MAX],
        ),
        wrong("tick", Builder::tick, none),
        wrong("checkpoint_interval", Builder::checkpoint_interval, none),
        wrong("stall_after", Builder::stall_after, none),
        wrong("append_timeout", Builder::append_timeout, none),
        wrong("deadline", Builder::deadline, none),
        wrong("idle_spins", Builder::idle_spins, [u32::MAX]),
        vec![
            ("shed_backoff", change(|b| b.shed_backoff(Duration::ZERO, MILLI))),
            ("shed_backoff", change(|b| b.shed_backoff(2 * MILLI, MILLI))),
            ("flapping", change(|b| b.flapping(0, MILLI))),
        ],
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What only a log on disk has.
fn wrong_on_disk() -> Vec<(&'static str, Change)> {
    let segments = [0, SLAB, 3 * SLAB, 4 << 30, u64::MAX];
    let readahead = [0, 1, 100_000, 32 << 10, 4 << 30, u64::MAX];
    let deferred = |interval, bytes| Durability::Deferred { interval, bytes };
    let durability = [deferred(Duration::ZERO, 1 << 20), deferred(MILLI, 0), deferred(MILLI, 4095)];
    let keep = [
        Retention::bytes(0),
        Retention::bytes(2 * SEGMENT - 1),
        Retention::consumed().or_bytes(1),
        Retention::consumed().hard_cap_bytes(2 * SEGMENT - 1),
        Retention::bytes(8 * SEGMENT).hard_cap_bytes(8 * SEGMENT - 1),
    ];
    [
        wrong("segment_bytes", Builder::segment_bytes, segments),
        vec![("ring_bytes", change(|b| b.segment_bytes(2 * SEGMENT)))],
        wrong(
            "catchup_window_bytes",
            Builder::catchup_window_bytes,
            [0, 2 * RING - 1],
        ),
        wrong("readahead_bytes", Builder::readahead_bytes, readahead),
        wrong("Deferred", Builder::durability, durability),
        wrong("Retention", Builder::retention, keep),
        wrong("cold_replays_max", Builder::cold_replays_max, [0]),
        wrong(
            "cold_bytes_per_second",
            Builder::cold_bytes_per_second,
            [Some(0), Some(SLAB - 1)],
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn each_option_out_of_bounds_is_named_and_nothing_is_touched() {
    let bed = Bed::new(Backend::Psync);
    for (name, change) in wrong_anywhere().into_iter().chain(wrong_on_disk()) {
        let dir = bed.path().join("none");
        let error = change(bed.builder()).open(&dir).map(drop).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{name}: {error}");
        assert!(error.to_string().contains(name), "{name}: {error}");
        assert!(!dir.exists(), "{name}");
    }
    for (name, change) in wrong_anywhere() {
        let error = change(bed.builder()).in_memory().map(drop).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{name}: {error}");
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    // And what is wrong on disk alone is ignored in memory, but for the ring.
    for (name, change) in wrong_on_disk() {
        assert!(change(bed.builder()).in_memory().is_ok(), "{name}");
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let bed = Bed::new(Backend::Psync);
    let dir = bed.path().join("none");
    // Each is legal by itself: slabs so small that a footer leaves no room in them.
    let large = bed.builder().segment_bytes(2 << 30).ring_bytes(4 << 30);
    let error = large
        .catchup_window_bytes(1 << 40)
        .open(&dir)
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("segment_bytes"), "{error}");
    assert!(!dir.exists());
}

/// Instants cannot be added to without bound: a wait for ever is one all the same.
#[test]
fn the_longest_durations_are_no_overflow() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let max = Duration::MAX;
        let builder = bed
            .builder()
            .append_timeout(max)
            .lock_timeout(max)
            .watermark_idle(max);
        let builder = builder
            .checkpoint_interval(max)
            .tick(max)
            .dwell(max)
            .stall_after(max);
        let builder = builder
            .deadline(max)
            .shed_backoff(max, max)
            .flapping(u32::MAX, max);
        let builder = builder
            .cold_replays_max(usize::MAX)
            .cold_bytes_per_second(Some(u64::MAX));
        let builder = builder.catchup_window_bytes(u64::MAX);
        let builder = builder.retention(Retention::age(max).or_bytes(u64::MAX));
        let bus = builder
            .durability(Durability::Deferred { interval: max, bytes: u64::MAX })
            .open(bed.path())
            .unwrap();
        let consumer = bus
            .subscribe("c")
            .start_if_new(Start::Earliest)
            .run(|_| Ok(Ack::All));
        let consumer = consumer.unwrap();
        let lsn = bus.writer().append(1, 1, b"x").unwrap();
        bus.sync().unwrap();
        consumer.wait_processed(lsn, max).unwrap();
        let mut reader = bus.reader(Start::Earliest).unwrap();
        assert_eq!(reader.next_timeout(max).unwrap().unwrap().lsn(), lsn);
        drop(reader);
        consumer.stop_within(max).unwrap();
        bus.close_within(max).unwrap();
    }
}

/// The smallest of everything is a bus that works.
#[test]
fn options_at_their_lowest_work() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let none = Duration::ZERO;
        let builder = Bus::builder()
            .backend(backend)
            .slab_bytes(SLAB)
            .segment_bytes(2 * SLAB)
            .ring_bytes(4 * SLAB)
            .pin_budget_bytes(4 * SLAB)
            .catchup_window_bytes(8 * SLAB)
            .readahead_bytes(64 << 10)
            .consumers_max(1)
            .lock_timeout(none)
            .watermark_idle(none)
            .dwell(none)
            .idle_spins(0)
            .cold_replays_max(1)
            .cold_bytes_per_second(Some(SLAB))
            .durability(Durability::Deferred { interval: Duration::from_nanos(1), bytes: 4096 })
            .retention(Retention::age(none));
        let bus = builder
            .tick(MILLI)
            .checkpoint_interval(MILLI)
            .open(bed.path())
            .unwrap();
        let consumer = bus
            .subscribe("c")
            .start_if_new(Start::Earliest)
            .run(|_| Ok(Ack::All));
        let consumer = consumer.unwrap();
        let mut last = None;
        for key in 0..200 {
            last = Some(bus.writer().append(1, key, &[7; 3000]).unwrap());
        }
        consumer.wait_processed(last.unwrap(), LONG).unwrap();
        bus.close().unwrap();
    }
}
