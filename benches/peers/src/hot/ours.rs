//! eventplane in memory, read by its callback threads or polled.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use eventplane::testing::ManualSubscription;
use eventplane::{Ack, Batch, Bus, Lsn, Start, Subscribe, Writer};

use super::policy::{ALL, By, POLLS, Policy, System};
use super::race::{Inlet, Job, Outlet, Race, Reader, Timing, drain};
use crate::machine;

/// Readers of one: callback thread or polled, whichever is faster.
pub const OURS: System = System { label: "eventplane", policies: &ALL, run };
/// Several readers share a core, so they are polled in turn.
pub const OURS_POLLED: System = System { label: "eventplane", policies: &POLLS, run };

/// What a record takes besides its payload, and a batch besides its records.
const RECORD_HEADER_BYTES: usize = 16;
const BLOCK_HEADER_BYTES: usize = 64;
/// A ring has at least so many slabs: many enough that the one being left is little of it.
const SLABS_MIN: u64 = 16;
/// The default. Where a slab has room for a few batches only, much of it is left empty.
const SLAB_BYTES_MAX: u64 = 1 << 20;

type Failure = Box<dyn std::error::Error + Send + Sync>;

pub fn bus(ring_bytes: u64, idle_spins: u32) -> anyhow::Result<Bus> {
    let slab_bytes = (ring_bytes / SLABS_MIN).min(SLAB_BYTES_MAX);
    let builder = Bus::builder().ring_bytes(ring_bytes).slab_bytes(slab_bytes);
    Ok(builder.idle_spins(idle_spins).in_memory()?)
}

fn run(job: &Job, policy: Policy) -> anyhow::Result<Timing> {
    let bus = bus(job.ring_bytes, policy.pauses)?;
    let record = |payload: usize| RECORD_HEADER_BYTES + payload.next_multiple_of(8);
    let header = BLOCK_HEADER_BYTES as f64 / job.batch as f64;
    let window = job.window_of(job.load.mean_bytes(record) + header);
    let (readers, race) = job.prepare(window);
    match policy.by {
        By::Thread => by_threads(&bus, readers, race),
        By::Poll => by_polls(&bus, readers, race, policy.pauses),
    }
}

fn by_threads(bus: &Bus, readers: Vec<Reader>, race: Race<'_>) -> anyhow::Result<Timing> {
    let mut consumers = Vec::new();
    for (i, reader) in readers.into_iter().enumerate() {
        let consumer = subscribe(bus, i).run(callback(reader, Arc::default()))?;
        consumers.push(consumer);
    }
    let outlet = Log::greet(bus)?;
    for consumer in &consumers {
        consumer.wait_caught_up(Duration::from_secs(10))?;
    }
    let timing = race.run(outlet, |_| ())?;
    consumers.iter().try_for_each(|consumer| consumer.stop()).context("stopping")?;
    Ok(timing)
}

fn by_polls(
    bus: &Bus,
    readers: Vec<Reader>,
    race: Race<'_>,
    pauses: u32,
) -> anyhow::Result<Timing> {
    let mut inlets = Vec::new();
    for (i, reader) in readers.into_iter().enumerate() {
        let taken = Arc::default();
        let consumer = subscribe(bus, i).manual(callback(reader, Arc::clone(&taken)))?;
        inlets.push(Polled { consumer, taken });
    }
    let outlet = Log::greet(bus)?;
    race.run(outlet, move |watch| drain(&mut inlets, pauses, watch))
}

fn subscribe(bus: &Bus, reader: usize) -> Subscribe {
    bus.subscribe(format!("reader{reader}")).start_if_new(Start::Earliest)
}

/// Pins its thread on the greeting, which is the first record; then reads, and checks that LSNs
/// are contiguous. `taken` is how many records it was given last.
fn callback(
    mut reader: Reader,
    taken: Arc<AtomicUsize>,
) -> impl FnMut(&Batch<'_>) -> Result<Ack, Failure> + Send + 'static {
    let mut next = Lsn::FIRST;
    move |batch| {
        taken.store(batch.len(), Ordering::Relaxed);
        let (first, last) = (batch.first_lsn(), batch.last_lsn());
        if first != next || last.get() - first.get() + 1 != batch.len() as u64 {
            reader.object();
        }
        next = last.next();
        let mut records = batch.iter();
        if first == Lsn::FIRST {
            machine::pin(1);
            records.next();
        }
        for record in records {
            reader.take(record.payload());
        }
        reader.batch_ends();
        Ok(Ack::All)
    }
}

/// A subscription that the benchmark polls.
struct Polled {
    consumer: ManualSubscription,
    taken: Arc<AtomicUsize>,
}

impl Inlet for Polled {
    #[inline]
    fn poll(&mut self) -> usize {
        self.taken.store(0, Ordering::Relaxed);
        self.consumer.poll();
        self.taken.load(Ordering::Relaxed)
    }
}

/// The log, as publishers see it.
pub struct Log {
    writer: Writer,
    next: u64,
}

impl Log {
    /// Appends the greeting.
    pub fn greet(bus: &Bus) -> anyhow::Result<Log> {
        let writer = bus.writer();
        let lsn = writer.append(0, 0, &[])?;
        ensure!(lsn == Lsn::FIRST, "the greeting is LSN {lsn}");
        Ok(Log { writer, next: lsn.next().get() })
    }

    pub fn last(&self) -> Lsn {
        Lsn::new(self.next).previous()
    }
}

impl Outlet for Log {
    #[inline]
    fn publish<'l>(
        &mut self,
        mut records: impl ExactSizeIterator<Item = &'l [u8]>,
    ) -> anyhow::Result<()> {
        let (next, count) = (self.next, records.len() as u64);
        let first = if count == 1 {
            self.writer.append(1, next, records.next().unwrap_or_default())?
        } else {
            let mut batch = self.writer.batch();
            for payload in records {
                batch.append(1, next, payload)?;
            }
            *batch.commit()?.start()
        };
        self.next += count;
        ensure!(first.get() == next, "LSN {first} where {next} was next");
        Ok(())
    }
}
