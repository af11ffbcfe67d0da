//! Leases that a subscriber holds on to: a sample of each of the last slabs' worth of records.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use eventplane::{Batch, OwnedRecord, Signal, Tier};

use crate::exact::lock;

/// Shared by the callback, which fills it, and the signal hook, which empties it.
#[derive(Clone)]
pub(crate) struct Shelf {
    /// A sample is the first record of each page of this many.
    page_records: u64,
    samples: Arc<Mutex<Samples>>,
}

#[derive(Default)]
struct Samples {
    page: u64,
    kept: VecDeque<OwnedRecord>,
}

impl Shelf {
    pub(crate) fn new(page_records: u64) -> Shelf {
        Shelf { page_records, samples: Arc::default() }
    }

    /// Keeps a sample of each page that begins in the batch, at most `max` in all: the oldest go.
    /// Returns how many leases were refused: those pages have no sample.
    pub(crate) fn sample(&self, batch: &Batch<'_>, max: u64) -> u64 {
        let mut samples = lock(&self.samples);
        let Samples { page, kept } = &mut *samples;
        let mut refused = 0;
        if batch.last_lsn().get() / self.page_records != *page {
            for record in batch {
                if record.lsn().get() / self.page_records != *page {
                    *page = record.lsn().get() / self.page_records;
                    match record.lease() {
                        Ok(lease) => kept.push_back(lease),
                        Err(_) => refused += 1,
                    }
                }
            }
        }
        let excess = (kept.len() as u64).saturating_sub(max);
        kept.drain(..excess as usize);
        refused
    }

    /// Lets go of everything when the consumer is shed: whoever pins more than half its share is
    /// not admitted again.
    pub(crate) fn heed(&self, signal: &Signal) {
        if matches!(signal, Signal::TierChanged { to: Tier::Cold, .. }) {
            lock(&self.samples).kept.clear();
        }
    }
}
