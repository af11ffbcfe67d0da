//! The judge: knows what the process under test promised, reads what is left, and compares.
//!
//! - What was acknowledged, or seen by a consumer, is there, at its LSNs.
//! - What is there was committed, whole: no phantom, no part of a batch, nothing twice.
//! - LSNs are dense.
//! - A consumer goes on at or before the record behind the last one it processed, and repeats at
//!   most what came since one of the last checkpoints that were stored.

use std::collections::{BTreeMap, HashMap};

use eventplane::{Ack, Bus, Retention, Start};

use super::child::CONSUMERS;
use super::load::{self, Identity, OUTSTANDING_MAX};
use super::wire::{Message, Orders};

/// What goes on between two checkpoints of which a watcher, who looks now and then, sees that they
/// were stored, is in the one that is seen next: three sightings after a delivery began, what was
/// processed before it is stored. One more until the file's name is durable as well.
pub(crate) const SIGHTINGS_AFTER_KILL: usize = 3;
pub(crate) const SIGHTINGS_AFTER_POWER_CUT: usize = 4;

/// Producer and sequence.
type BatchName = (u64, u64);
type Lsns = (u64, u64);

#[derive(Default)]
pub(crate) struct Judge {
    acknowledged: HashMap<BatchName, Lsns>,
    /// Of each producer, the number of batches acknowledged.
    highest: HashMap<u64, u64>,
    /// The last LSN that anybody has seen.
    visible: u64,
    /// First, last, fingerprint of what consumers were given since the last look at the log.
    delivered: Vec<(u64, u64, u64)>,
    consumers: [Consumed; CONSUMERS.len()],
    sightings: usize,
    pub(crate) totals: Totals,
}

/// How far one consumer is, over all lives.
#[derive(Clone, Default)]
struct Consumed {
    processed: u64,
    /// What is stored for certain.
    stored: u64,
    life: Option<Life>,
}

/// How far it is in this life of the process.
#[derive(Clone, Copy)]
struct Life {
    processed: u64,
    delivered: u64,
    /// Processed when the last delivery began, so published.
    published: u64,
}

/// What it all came to, to be printed.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Totals {
    pub(crate) acknowledged: u64,
    /// Batches that were found and not acknowledged.
    pub(crate) unacknowledged: u64,
    pub(crate) torn: u64,
    pub(crate) resumed: u64,
    pub(crate) repeated: u64,
    pub(crate) repeated_max: u64,
    /// Resumptions before which something was stored for certain in that very life.
    pub(crate) bounded: u64,
}

impl Judge {
    pub(crate) fn new(sightings: usize) -> Judge {
        Judge { sightings, ..Judge::default() }
    }

    /// Every consumer has processed this much.
    pub(crate) fn all_processed(&mut self, lsn: u64) {
        self.consumers
            .iter_mut()
            .for_each(|consumer| consumer.processed = lsn);
    }

    /// Takes note of what a life of the process told, and judges what consumers were given.
    pub(crate) fn hear(&mut self, messages: &[Message]) -> Result<(), String> {
        self.consumers
            .iter_mut()
            .for_each(|consumer| consumer.life = None);
        let mut seen: Vec<[u64; CONSUMERS.len()]> = Vec::new();
        for message in messages {
            match *message {
                Message::Opened { last } => self.opened(last)?,
                Message::Acknowledged { producer, sequence, first, last } => {
                    self.acknowledged.insert((producer, sequence), (first, last));
                    let highest = self.highest.entry(producer).or_default();
                    *highest = (*highest).max(sequence + 1);
                    self.visible = self.visible.max(last);
                    self.totals.acknowledged += 1;
                }
                Message::Delivered { consumer, first, last, print } => {
                    self.delivered(consumer as usize, first, last)?;
                    self.delivered.push((first, last, print));
                    self.visible = self.visible.max(last);
                }
                Message::Processed { consumer, last } => {
                    let consumer = &mut self.consumers[consumer as usize];
                    consumer.processed = consumer.processed.max(last);
                    consumer.life.as_mut().expect("was given something").processed = last;
                }
                Message::Stored => {
                    let published = |c: &Consumed| c.life.map_or(0, |life| life.published);
                    seen.push(std::array::from_fn(|i| published(&self.consumers[i])));
                    if let Some(at) = seen.len().checked_sub(self.sightings + 1) {
                        for (consumer, published) in self.consumers.iter_mut().zip(seen[at]) {
                            consumer.stored = consumer.stored.max(published);
                        }
                    }
                }
                Message::Refused { .. } => {}
            }
        }
        self.totals.bounded += u64::from(seen.len() > self.sightings);
        Ok(())
    }

    /// What anybody saw was durable.
    fn opened(&self, last: u64) -> Result<(), String> {
        let visible = self.visible;
        if last < visible {
            return Err(format!(
                "lost: LSN {visible} was seen, and the log ends at {last}"
            ));
        }
        Ok(())
    }

    fn delivered(&mut self, index: usize, first: u64, last: u64) -> Result<(), String> {
        let (name, consumer) = (CONSUMERS[index], &mut self.consumers[index]);
        match &mut consumer.life {
            Some(life) => {
                if first > life.delivered + 1 {
                    return Err(format!("gap: {name} had {} and got {first}", life.delivered));
                }
                if first <= life.published {
                    return Err(format!("{name} got {first} after it had processed it"));
                }
                *life = Life { delivered: life.delivered.max(last), published: first - 1, ..*life };
            }
            None => {
                resumes(name, consumer, first)?;
                let repeated = consumer.processed + 1 - first;
                let totals = &mut self.totals;
                totals.resumed += 1;
                totals.repeated += repeated;
                totals.repeated_max = totals.repeated_max.max(repeated);
                let processed = first - 1;
                consumer.stored = consumer.stored.max(processed);
                consumer.life = Some(Life { processed, delivered: last, published: processed });
            }
        }
        Ok(())
    }

    /// Opens the log and reads all of it.
    pub(crate) fn look(&mut self, orders: &Orders) -> Result<(), String> {
        // Nothing is to be deleted while it is read.
        let bus = load::builder(orders)
            .retention(Retention::keep_all())
            .open(&orders.dir)
            .map_err(|e| format!("it does not open: {e:?}"))?;
        self.totals.torn += u64::from(bus.recovery().torn_bytes > 0);
        self.opened(bus.committed_lsn().get())?;
        let found = read(&bus)?;
        self.compare(&found, bus.first_lsn().get())?;
        // Seen now, so there for good.
        for (name, lsns) in found.batches {
            if self.acknowledged.insert(name, lsns).is_none() {
                self.totals.unacknowledged += 1;
            }
        }
        self.visible = bus.committed_lsn().get();
        bus.close().map_err(|e| format!("it does not close: {e:?}"))
    }

    fn compare(&mut self, found: &Found, first_lsn: u64) -> Result<(), String> {
        let slowest = self.consumers.iter().map(|c| c.processed).min().unwrap_or(0);
        if first_lsn > slowest + 1 {
            return Err(format!(
                "retention: kept from {first_lsn}, needed from {}",
                slowest + 1
            ));
        }
        for (name, &(first, last)) in &self.acknowledged {
            let there = found.batches.get(name);
            if last >= first_lsn && there != Some(&(first, last)) {
                return Err(format!(
                    "lost: LSNs {first} to {last} were acknowledged to {name:?}, found: {there:?}"
                ));
            }
        }
        for &(producer, sequence) in found.batches.keys() {
            let acknowledged = self.highest.get(&producer).copied().unwrap_or(0);
            if sequence >= acknowledged + OUTSTANDING_MAX {
                return Err(format!(
                    "phantom: batch {sequence} of {producer}, of {acknowledged}"
                ));
            }
        }
        for (first, last, print) in self.delivered.drain(..) {
            if first < first_lsn {
                continue;
            }
            let at = |lsn: u64| found.prints[(lsn - first_lsn) as usize];
            if at(last + 1).wrapping_sub(at(first)) != print {
                return Err(format!("LSNs {first} to {last} are not what was delivered"));
            }
        }
        Ok(())
    }

    /// The end of a log's lives: lets each consumer go on, in this process, to the end.
    pub(crate) fn resume_all(&mut self, orders: &Orders) -> Result<(), String> {
        let failed = |e: eventplane::Error| format!("{e:?}");
        let bus = load::builder(orders).open(&orders.dir).map_err(failed)?;
        for (index, name) in CONSUMERS.iter().enumerate() {
            let (send, given) = std::sync::mpsc::channel();
            let subscribe = bus.subscribe(*name).start_if_new(Start::Earliest);
            let running = subscribe.run(move |batch| {
                send.send((batch.first_lsn().get(), batch.last_lsn().get()))?;
                Ok(Ack::All)
            });
            let running = running.map_err(failed)?;
            running.wait_caught_up(super::LONG).map_err(failed)?;
            let end = bus.committed_lsn().get();
            self.consumers[index].life = None;
            let given: Vec<_> = given.try_iter().collect();
            if given.is_empty() {
                resumes(name, &self.consumers[index], end + 1)?;
            }
            for (first, last) in given {
                self.delivered(index, first, last)?;
            }
        }
        bus.close().map_err(failed)
    }
}

fn resumes(name: &str, consumer: &Consumed, first: u64) -> Result<(), String> {
    let Consumed { processed, stored, .. } = *consumer;
    if first > processed + 1 {
        return Err(format!(
            "gap: {name} had processed {processed} and went on at {first}"
        ));
    }
    if first <= stored {
        return Err(format!(
            "{name} went on at {first} when {stored} had long been stored"
        ));
    }
    Ok(())
}

/// What a log holds.
struct Found {
    batches: BTreeMap<BatchName, Lsns>,
    /// The sum of the fingerprints of all records before, for each record kept and the end.
    prints: Vec<u64>,
}

fn read(bus: &Bus) -> Result<Found, String> {
    let mut reader = bus.reader(Start::Earliest).map_err(|e| format!("{e:?}"))?;
    let (first_lsn, end) = (bus.first_lsn().get(), bus.committed_lsn().get());
    let mut found = Found { batches: BTreeMap::new(), prints: vec![0] };
    let mut before: Option<Identity> = None;
    let mut next_of: HashMap<u64, u64> = HashMap::new();
    for lsn in first_lsn..=end {
        let record = reader
            .next_timeout(super::LONG)
            .map_err(|e| format!("{e:?}"))?
            .ok_or(format!("nothing at LSN {lsn} of {end}"))?;
        if record.lsn().get() != lsn {
            return Err(format!("LSN {} where {lsn} should be", record.lsn()));
        }
        let identity = load::recognize(&record)?;
        let Identity { producer, sequence, index } = identity;
        let records = load::batch_records(producer, sequence);
        if index == 0 {
            let next = next_of
                .entry(producer)
                .or_insert(if first_lsn == 1 { 0 } else { sequence });
            if sequence != *next {
                return Err(format!("LSN {lsn} is batch {sequence} of {producer}, not {next}"));
            }
            *next += 1;
            found
                .batches
                .insert((producer, sequence), (lsn, lsn + records - 1));
        }
        let expected = before.filter(|b| b.index + 1 < load::batch_records(b.producer, b.sequence));
        let follows = match expected {
            Some(b) => identity == Identity { index: b.index + 1, ..b },
            None => index == 0,
        };
        if !follows {
            return Err(format!(
                "a part of a batch: LSN {lsn}, {identity:?} after {before:?}"
            ));
        }
        before = Some(identity);
        let sum = found.prints.last().copied().unwrap_or(0);
        found
            .prints
            .push(sum.wrapping_add(load::print_of(lsn, record.key())));
    }
    match before {
        Some(b) if b.index + 1 < load::batch_records(b.producer, b.sequence) => {
            Err(format!("the log ends in the middle of a batch: {b:?}"))
        }
        _ => Ok(found),
    }
}
