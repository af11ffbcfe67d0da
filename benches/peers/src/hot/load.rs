//! The records that are published, and who checks that they arrive.
//!
//! A publisher copies its records from a small source, over and over. Each begins with its number
//! in the source, so that nobody has to write into a record just before it is copied, which would
//! stall the copy; a reader knows which number comes next, and at the end what the sum of all is.

use std::ops::Range;

use anyhow::ensure;

/// As much as stays in a core's own cache.
const SOURCE_BYTES: usize = 128 << 10;
pub const BATCH_MAX: usize = 16;

/// What the payloads of a source have in bytes.
#[derive(Clone, Copy)]
pub enum Sizes {
    Fixed(usize),
    /// Drawn at random, the same ones each time.
    Mixed(usize, usize),
}

pub struct Load {
    bytes: Vec<u8>,
    /// Where the records lie; behind the last come the first ones again, so that a batch from
    /// anywhere is a slice.
    extents: Vec<Range<usize>>,
    sums: Vec<u64>,
}

impl Load {
    pub fn new(sizes: Sizes) -> Load {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut extents, mut end) = (Vec::new(), 0);
        while end < SOURCE_BYTES || extents.len() % 2 == 0 {
            // An odd number of records: what is left of an earlier lap of a ring, whose length is a
            // power of two, never has the number that is expected.
            let payload_bytes = match sizes {
                Sizes::Fixed(bytes) => bytes,
                Sizes::Mixed(min, max) => random.usize(min..=max),
            };
            extents.push(end..end + payload_bytes);
            end = (end + payload_bytes).next_multiple_of(8);
        }
        let mut bytes: Vec<u8> = (0..end).map(|_| random.u8(..)).collect();
        for (number, extent) in extents.iter().enumerate() {
            bytes[extent.start..][..8].copy_from_slice(&(number as u64).to_le_bytes());
        }
        let sums = extents.iter().map(|extent| sum(&bytes[extent.clone()])).collect();
        extents.extend_from_within(..BATCH_MAX);
        Load { bytes, extents, sums }
    }

    /// How many records come before the first one comes again.
    pub fn cycle(&self) -> usize {
        self.sums.len()
    }

    /// `count` records from number `first` on.
    pub fn records(&self, first: usize, count: usize) -> impl ExactSizeIterator<Item = &[u8]> {
        self.extents[first..first + count].iter().map(|extent| &self.bytes[extent.clone()])
    }

    /// The largest of all payloads.
    pub fn payload_bytes_max(&self) -> usize {
        self.extents.iter().map(ExactSizeIterator::len).max().unwrap_or(0)
    }

    /// What a record takes on average, if one of `payload` bytes takes `bytes(payload)`.
    pub fn mean_bytes(&self, bytes: impl Fn(usize) -> usize) -> f64 {
        let extents = &self.extents[..self.cycle()];
        extents.iter().map(|extent| bytes(extent.len())).sum::<usize>() as f64 / self.cycle() as f64
    }

    fn sum_of(&self, records: u64) -> u64 {
        let add = |sum: u64, of: &u64| sum.wrapping_add(*of);
        let (cycles, rest) = (records / self.cycle() as u64, records % self.cycle() as u64);
        let all = self.sums.iter().fold(0, add).wrapping_mul(cycles);
        self.sums[..rest as usize].iter().fold(all, add)
    }
}

/// Reads every byte, several at a time.
#[inline]
pub fn sum(payload: &[u8]) -> u64 {
    let (words, rest) = payload.as_chunks::<8>();
    let words = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    rest.iter().fold(words, |sum, byte| sum.wrapping_add(u64::from(*byte)))
}

/// Reads records, and knows which one comes next.
#[derive(Clone)]
pub struct Checker {
    cycle: u64,
    next: u64,
    pub seen: u64,
    sum: u64,
    wrong: u64,
}

impl Checker {
    pub fn new(load: &Load) -> Checker {
        Checker { cycle: load.cycle() as u64, next: 0, seen: 0, sum: 0, wrong: 0 }
    }

    #[inline]
    pub fn take(&mut self, payload: &[u8]) {
        let number = payload.first_chunk().map_or(u64::MAX, |number| u64::from_le_bytes(*number));
        self.wrong += u64::from(number != self.next);
        self.sum = self.sum.wrapping_add(sum(payload));
        self.next = if self.next + 1 == self.cycle { 0 } else { self.next + 1 };
        self.seen += 1;
    }

    /// The record that comes next is this one of all.
    pub fn skip_to(&mut self, index: u64) {
        self.next = index % self.cycle;
    }

    /// Something beside the records is not as it should be.
    #[cold]
    pub fn object(&mut self) {
        self.wrong += 1;
    }

    /// Each record that was seen was the right one.
    pub fn check_order(&self) -> anyhow::Result<()> {
        ensure!(self.wrong == 0, "{} of {} records are not the next one", self.wrong, self.seen);
        Ok(())
    }

    /// These were the first `total` records, each once, in order.
    pub fn check(&self, load: &Load, total: u64) -> anyhow::Result<()> {
        ensure!(self.seen == total, "{} records arrived of {total}", self.seen);
        self.check_order()?;
        ensure!(self.sum == load.sum_of(total), "the sum of all bytes is wrong");
        Ok(())
    }
}
