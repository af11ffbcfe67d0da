//! What a run has appended, what of it must survive, and what consumers have done with it: the
//! naive model that the bus is compared with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;

/// A record as it was appended. Everything else of it follows from its key, which is never used
/// twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) key: u64,
    pub(crate) bytes: u32,
    /// The last record of its batch.
    pub(crate) ends_batch: bool,
}

impl Entry {
    pub(crate) fn kind(&self) -> u16 {
        (self.key % 5) as u16
    }

    /// Random bytes; for some keys zeros, or what looks like a block's header in every sector.
    pub(crate) fn payload(&self) -> Vec<u8> {
        let mut payload = vec![0; self.bytes as usize];
        if self.key.is_multiple_of(7) {
            return payload;
        }
        Rng::with_seed(self.key).fill(&mut payload);
        if self.key.is_multiple_of(11) {
            payload.chunks_mut(512).for_each(|sector| {
                let magic = &b"EVBK"[..sector.len().min(4)];
                sector[..magic.len()].copy_from_slice(magic);
            });
        }
        payload
    }
}

/// What retention may have deleted.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Deletes {
    /// Anything at all.
    pub(crate) something: bool,
    /// Files kept at least once something is deleted.
    pub(crate) files_min: u64,
    /// What a stored checkpoint needs may go as well.
    pub(crate) ignores_barrier: bool,
}

/// One run, from the first life of a log to its last.
#[derive(Clone, Default, Debug)]
pub(crate) struct Ledger {
    /// By LSN, from 1: what was appended in the order of acceptance.
    pub(crate) entries: Vec<Entry>,
    /// Up to this LSN everything was acknowledged, or seen by a consumer.
    pub(crate) acked: u64,
    pub(crate) keys: u64,
    /// By consumer: the values that may be stored as its checkpoint, `None` for none.
    pub(crate) checkpoints: BTreeMap<String, Vec<Option<u64>>>,
    pub(crate) deletes: Deletes,
    /// The disk fails: reads may park a consumer, and checkpoints may stay unstored.
    pub(crate) faulty: bool,
    /// What went wrong where it could not be told at once: in callbacks, whose panics are caught.
    pub(crate) violations: Vec<String>,
}

pub(crate) type Shared = Arc<Mutex<Ledger>>;

pub(crate) fn lock(ledger: &Shared) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Ledger {
    /// Records for a batch, not yet entered.
    pub(crate) fn make(&mut self, rng: &mut Rng, records: usize) -> Vec<Entry> {
        let mut batch: Vec<Entry> = (0..records).map(|_| self.make_one(rng)).collect();
        if let Some(last) = batch.last_mut() {
            last.ends_batch = true;
        }
        batch
    }

    fn make_one(&mut self, rng: &mut Rng) -> Entry {
        self.keys += 1;
        let bytes = match rng.u8(0..20) {
            0 => 0,
            1 => rng.u32(8_000..14_000),
            2..5 => rng.u32(2_000..6_000),
            _ => rng.u32(1..700),
        };
        Entry { key: self.keys, bytes, ends_batch: false }
    }

    pub(crate) fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(crate) fn entry(&self, lsn: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(lsn.checked_sub(1)?).ok()?)
    }

    /// Whether the record with this LSN is the one that was appended as such.
    pub(crate) fn compare(
        &self,
        lsn: u64,
        kind: u16,
        key: u64,
        payload: &[u8],
    ) -> Result<(), String> {
        let Some(entry) = self.entry(lsn) else {
            return Err(format!("phantom: LSN {lsn} with key {key} was never appended"));
        };
        if (entry.key, entry.kind()) != (key, kind) || entry.payload() != payload {
            return Err(format!(
                "phantom: LSN {lsn} has key {key}, appended was {entry:?}"
            ));
        }
        Ok(())
    }

    pub(crate) fn ack(&mut self, lsn: u64) {
        self.acked = self.acked.max(lsn);
    }

    /// The checkpoint of a consumer may now be this one as well.
    pub(crate) fn may_store(&mut self, consumer: &str, lsn: u64) {
        let values = self.checkpoints.entry(consumer.to_owned()).or_default();
        if values.last() != Some(&Some(lsn)) {
            values.push(Some(lsn));
        }
    }

    /// All consumers' last values are stored.
    pub(crate) fn flushed(&mut self) {
        if self.faulty {
            return;
        }
        for values in self.checkpoints.values_mut() {
            keep_last(values);
        }
    }

    /// This one's last value is stored.
    pub(crate) fn stored(&mut self, consumer: &str) {
        if let Some(values) = self.checkpoints.get_mut(consumer).filter(|_| !self.faulty) {
            keep_last(values);
        }
    }

    /// What retention must not pass: the lowest checkpoint, as far as each may have come.
    pub(crate) fn barrier(&self) -> Option<u64> {
        self.checkpoints
            .values()
            .filter_map(|values| values.iter().flatten().max())
            .min()
            .copied()
    }
}

fn keep_last(values: &mut Vec<Option<u64>>) {
    values.drain(..values.len().saturating_sub(1));
}
