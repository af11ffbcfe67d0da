//! The peer to beat: a ring of fixed slots without a log, headers, filters or late readers.

use std::hint;

use disruptor::wait_strategies::WaitStrategy;
use disruptor::{
    BusySpin, EventPoller, ProcessorSettings as _, Producer, SingleProducerBarrier,
    build_single_producer,
};

use super::policy::{ALL, By, POLLS, Policy, System};
use super::race::{Inlet, Job, Outlet, POLL_MAX, Race, Reader, Timing, drain};

/// An element of the ring. Each begins on a cache line of its own.
pub trait Slot: Send + Sync + 'static {
    /// Anything but zeros: those would be memory that the system gives on first touch, in the
    /// midst of a run.
    fn empty() -> Self;
    fn put(&mut self, payload: &[u8]);
    fn payload(&self) -> &[u8];
}

#[repr(align(64))]
pub struct Fixed<const BYTES: usize>([u8; BYTES]);

impl<const BYTES: usize> Slot for Fixed<BYTES> {
    fn empty() -> Self {
        Fixed([1; BYTES])
    }

    #[inline]
    fn put(&mut self, payload: &[u8]) {
        self.0.copy_from_slice(payload);
    }

    #[inline]
    fn payload(&self) -> &[u8] {
        &self.0
    }
}

/// Room for the largest payload, and how much of it is used.
#[repr(align(64))]
pub struct UpTo<const BYTES: usize> {
    len: usize,
    bytes: [u8; BYTES],
}

impl<const BYTES: usize> Slot for UpTo<BYTES> {
    fn empty() -> Self {
        UpTo { len: 0, bytes: [1; BYTES] }
    }

    #[inline]
    fn put(&mut self, payload: &[u8]) {
        self.len = payload.len();
        self.bytes[..payload.len()].copy_from_slice(payload);
    }

    #[inline]
    fn payload(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

pub const fn disruptor<S: Slot>() -> System {
    System { label: "disruptor", policies: &ALL, run: run::<S> }
}

pub const fn disruptor_polled<S: Slot>() -> System {
    System { label: "disruptor", policies: &POLLS, run: run::<S> }
}

pub fn slots<S: Slot>(ring_bytes: u64) -> usize {
    (ring_bytes as usize / size_of::<S>()).next_power_of_two()
}

fn run<S: Slot>(job: &Job, policy: Policy) -> anyhow::Result<Timing> {
    let (readers, race) = job.prepare(job.window());
    match policy.by {
        By::Thread => by_thread::<S>(job, readers, race, policy.pauses),
        By::Poll if job.readers == 1 => by_poll::<S>(job, readers, race, policy.pauses),
        By::Poll => by_polls::<S>(job, readers, race, policy.pauses),
    }
}

/// Looks again after so many pauses.
#[derive(Clone, Copy)]
struct Pauses(u32);

impl WaitStrategy for Pauses {
    fn wait_for(&self, _: i64) {
        (0..self.0).for_each(|_| hint::spin_loop());
    }
}

fn by_thread<S: Slot>(
    job: &Job,
    readers: Vec<Reader>,
    race: Race<'_>,
    pauses: u32,
) -> anyhow::Result<Timing> {
    let mut reader = only(readers);
    let producer = build_single_producer(slots::<S>(job.ring_bytes), S::empty, Pauses(pauses))
        .pin_at_core(1)
        .handle_events_with(move |slot: &S, _, batch_ends| {
            reader.take(slot.payload());
            if batch_ends {
                reader.batch_ends();
            }
        })
        .build();
    race.run(Ring::new(producer), |_| ())
}

/// With one reader the producer need not look for the slowest: the library knows a shorter way.
fn by_poll<S: Slot>(
    job: &Job,
    readers: Vec<Reader>,
    race: Race<'_>,
    pauses: u32,
) -> anyhow::Result<Timing> {
    let builder = build_single_producer(slots::<S>(job.ring_bytes), S::empty, BusySpin);
    let (poller, builder) = builder.new_event_poller();
    let mut inlets = [Poller { poller, reader: only(readers) }];
    race.run(Ring::new(builder.build()), move |watch| drain(&mut inlets, pauses, watch))
}

fn only(readers: Vec<Reader>) -> Reader {
    let [reader] = <[Reader; 1]>::try_from(readers).ok().expect("one reader");
    reader
}

fn by_polls<S: Slot>(
    job: &Job,
    readers: Vec<Reader>,
    race: Race<'_>,
    pauses: u32,
) -> anyhow::Result<Timing> {
    let mut builder =
        build_single_producer(slots::<S>(job.ring_bytes), S::empty, BusySpin).with_multi_consumer();
    let mut inlets = Vec::new();
    for reader in readers {
        let (poller, next) = builder.new_event_poller();
        builder = next;
        inlets.push(Poller { poller, reader });
    }
    race.run(Ring::new(builder.build()), move |watch| drain(&mut inlets, pauses, watch))
}

struct Poller<S> {
    poller: EventPoller<S, SingleProducerBarrier>,
    reader: Reader,
}

impl<S: Slot> Inlet for Poller<S> {
    #[inline]
    fn poll(&mut self) -> usize {
        let Poller { poller, reader } = self;
        let Ok(mut slots) = poller.take(POLL_MAX as u64) else {
            return 0;
        };
        let mut taken = 0;
        for slot in &mut slots {
            reader.take(slot.payload());
            taken += 1;
        }
        // The slots go back first: nobody is to be told that they may be written before.
        drop(slots);
        reader.batch_ends();
        taken
    }
}

/// The producer's end.
pub struct Ring<P, S> {
    producer: P,
    slot: std::marker::PhantomData<fn(S)>,
}

impl<P: Producer<S>, S: Slot> Ring<P, S> {
    pub fn new(producer: P) -> Ring<P, S> {
        Ring { producer, slot: std::marker::PhantomData }
    }

    #[inline]
    pub fn put(&mut self, payload: &[u8]) {
        self.producer.publish(|slot| slot.put(payload));
    }
}

impl<P: Producer<S> + Send, S: Slot> Outlet for Ring<P, S> {
    #[inline]
    fn publish<'l>(
        &mut self,
        mut records: impl ExactSizeIterator<Item = &'l [u8]>,
    ) -> anyhow::Result<()> {
        if records.len() == 1 {
            self.put(records.next().unwrap_or_default());
            return Ok(());
        }
        self.producer.batch_publish(records.len(), |slots| {
            slots.zip(records).for_each(|(slot, payload)| slot.put(payload));
        });
        Ok(())
    }
}
