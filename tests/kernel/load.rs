//! Records whose every byte follows from who wrote them: so whatever is found in a log afterwards
//! is known to be what was committed, or is not.

use std::time::Duration;

use eventplane::{Backend, Builder, Bus, Durability, OwnedRecord, Retention, WriteBatch};

use super::wire::Orders;

/// Marks the producers of a log with large slabs: now and then they write a record that makes its
/// block large enough for the write queue.
pub(crate) const LARGE: u64 = 1 << 15;

/// At most this many batches of a producer are committed and not acknowledged.
pub(crate) const OUTSTANDING_MAX: u64 = 24;

/// Which batch a record belongs to, and its place there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Identity {
    /// Unique over all lives of the log.
    pub(crate) producer: u64,
    pub(crate) sequence: u64,
    pub(crate) index: u64,
}

pub(crate) fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

impl Identity {
    fn key(self) -> u64 {
        (self.producer << 40) | (self.sequence << 8) | self.index
    }

    pub(crate) fn of_key(key: u64) -> Identity {
        Identity { producer: key >> 40, sequence: (key >> 8) & 0xFFFF_FFFF, index: key & 0xFF }
    }

    /// Now and then a record of many sectors; most are small.
    fn payload(self) -> Vec<u8> {
        let word = mix(self.key());
        if self.producer & LARGE != 0 && self.index == 0 && self.sequence.is_multiple_of(4) {
            let bytes = 70_000 + word as usize % 50_000;
            return (0..bytes)
                .map(|i| (word >> (i % 57)) as u8 ^ (i >> 3) as u8)
                .collect();
        }
        let bytes = if word.is_multiple_of(16) { 300 + word % 3_500 } else { word % 300 };
        (0..bytes).map(|i| (word >> (i % 57)) as u8 ^ i as u8).collect()
    }
}

/// How many records this batch has.
pub(crate) fn batch_records(producer: u64, sequence: u64) -> u64 {
    let word = mix(producer ^ mix(sequence));
    if word.is_multiple_of(3) { 1 } else { 1 + word % 7 }
}

/// Whether a batch is written once and abandoned before it is written and committed.
pub(crate) fn is_abandoned_first(producer: u64, sequence: u64) -> bool {
    mix(producer.wrapping_mul(31) ^ sequence).is_multiple_of(5)
}

/// Appends the records of a batch; those of an abandoned one differ in every byte.
pub(crate) fn fill(
    batch: &mut WriteBatch<'_>,
    (producer, sequence): (u64, u64),
    abandoned: bool,
) -> eventplane::Result<()> {
    for index in 0..batch_records(producer, sequence) {
        let identity = Identity { producer, sequence, index };
        let mut payload = identity.payload();
        if abandoned {
            payload.iter_mut().for_each(|byte| *byte = !*byte);
            payload.push(0xAB);
        }
        batch.append(producer as u16, identity.key(), &payload)?;
    }
    Ok(())
}

/// Whose record this is, if its every byte is as it was written.
pub(crate) fn recognize(record: &OwnedRecord) -> Result<Identity, String> {
    let identity = Identity::of_key(record.key());
    let kind = identity.producer as u16;
    if record.kind() != kind || record.payload() != identity.payload() {
        return Err(format!(
            "phantom: LSN {} is not what {identity:?} wrote",
            record.lsn()
        ));
    }
    Ok(identity)
}

/// What one record adds to the fingerprint of a run of them.
pub(crate) fn print_of(lsn: u64, key: u64) -> u64 {
    mix(key ^ mix(lsn))
}

/// A log so small that a tenth of a second takes it through several segments.
pub(crate) fn builder(orders: &Orders) -> Builder {
    let durability = if orders.deferred {
        Durability::Deferred { interval: Duration::from_millis(20), bytes: 1 << 20 }
    } else {
        Durability::Synced
    };
    let retention = if orders.retention { Retention::consumed() } else { Retention::keep_all() };
    let slab_bytes = if orders.large { 512 << 10 } else { 64 << 10 };
    Bus::builder()
        .slab_bytes(slab_bytes)
        .segment_bytes(4 * slab_bytes)
        .ring_bytes(8 * slab_bytes)
        .pin_budget_bytes(4 * slab_bytes)
        .catchup_window_bytes(16 * slab_bytes)
        .readahead_bytes(64 << 10)
        .consumers_max(16)
        .watermark_idle(Duration::from_millis(3))
        .checkpoint_interval(Duration::from_millis(5))
        .durability(durability)
        .retention(retention)
        .backend(if orders.io_uring { Backend::IoUring } else { Backend::Psync })
        .direct_io(orders.direct_io)
}
