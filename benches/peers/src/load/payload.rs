//! Payloads that tell which record they belong to, and a sum that every reader makes alike.

use anyhow::ensure;

/// Fills the payload of record `lsn`: its number, then words that differ from record to record.
pub fn fill(payload: &mut [u8], lsn: u64) {
    let mut word = lsn;
    for bytes in payload.chunks_mut(8) {
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    }
}

/// Every byte counts: words, and what is left byte by byte.
#[inline]
pub fn sum(payload: &[u8]) -> u64 {
    let words = payload.chunks_exact(8);
    let rest: u64 = words.remainder().iter().map(|byte| u64::from(*byte)).sum();
    words.fold(rest, |sum, word| {
        sum.wrapping_add(u64::from_le_bytes(word.try_into().expect("eight bytes")))
    })
}

/// What a reader has seen: records from LSN 1 on, without a gap, and the sum of their bytes.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Tally {
    pub records: u64,
    pub sum: u64,
    /// How many records did not follow the one before.
    astray: u64,
}

impl Tally {
    #[inline]
    pub fn take(&mut self, lsn: u64, payload: &[u8]) {
        self.records += 1;
        self.astray += u64::from(lsn != self.records);
        self.sum = self.sum.wrapping_add(sum(payload));
    }

    /// An error unless this is what was written.
    pub fn check(&self, written: &Tally) -> anyhow::Result<()> {
        ensure!(self.astray == 0, "{} of {} records out of order", self.astray, self.records);
        ensure!(self == written, "read {self:?}, written {written:?}");
        Ok(())
    }
}
