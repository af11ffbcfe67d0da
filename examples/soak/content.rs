//! What a record holds: it follows from the seed, from the life that wrote it and from its LSN, so
//! that whoever sees a record knows whether it is the right one, and which records a filter skips.

use serde::{Deserialize, Serialize};

pub(crate) const KINDS: u16 = 8;

const REMAINING_BITS: u32 = 12;
const HASH_BITS: u32 = 36;
/// Records a batch at most: how many follow in it is a part of the key.
pub(crate) const BATCH_RECORDS_MAX: u64 = (1 << REMAINING_BITS) - 1;

/// One step of SplitMix64.
pub(crate) fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ word >> 31
}

/// Which life wrote which records: the first LSN of each, ascending.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Eras(Vec<(u64, u16)>);

impl Eras {
    /// This life writes from `first` on; what an earlier one wrote there did not survive it.
    pub(crate) fn begin(&mut self, first: u64, life: u16) {
        self.0.retain(|(begun, _)| *begun < first);
        self.0.push((first, life));
    }

    pub(crate) fn life_of(&self, lsn: u64) -> u16 {
        let behind = self.0.partition_point(|(first, _)| *first <= lsn);
        self.0[..behind].last().map_or(0, |(_, life)| *life)
    }
}

#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) seed: u64,
    pub(crate) eras: Eras,
    /// The most a record may hold, a part of the log's geometry.
    pub(crate) payload_bytes_max: usize,
}

/// All that follows from an LSN alone.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    hash: u64,
    life: u16,
}

impl Content {
    pub(crate) fn shape(&self, lsn: u64) -> Shape {
        let life = self.eras.life_of(lsn);
        Shape { hash: mix(self.seed ^ mix(u64::from(life) << 48 ^ lsn)), life }
    }

    /// Zero, small, middling, large, the largest.
    pub(crate) fn payload_bytes(&self, shape: Shape) -> usize {
        let (dice, rest) = (shape.hash >> 8 & 63, (shape.hash >> 16) as usize);
        match dice {
            0 => 0,
            1..=44 => 1 + rest % 200,
            45..=58 => 200 + rest % 1_800,
            59..=62 => 2_000 + rest % 7_000,
            _ if rest.is_multiple_of(6) => self.payload_bytes_max,
            _ => rest % (self.payload_bytes_max / 2),
        }
    }

    /// What is wrong with this record, if anything is.
    pub(crate) fn judge(
        &self,
        lsn: u64,
        kind: u16,
        key: u64,
        payload: &[u8],
    ) -> Result<(), String> {
        let shape = self.shape(lsn);
        let due = shape.key(remaining(key));
        if key != due {
            let lives = (key >> (REMAINING_BITS + HASH_BITS), shape.life);
            return Err(format!("LSN {lsn} has the key {key:x}, not {due:x}; lives {lives:?}"));
        }
        if kind != shape.kind() {
            return Err(format!("LSN {lsn} has the kind {kind}, not {}", shape.kind()));
        }
        let bytes = self.payload_bytes(shape);
        if payload.len() != bytes {
            return Err(format!("LSN {lsn} has {} bytes, not {bytes}", payload.len()));
        }
        match shape.first_wrong(payload) {
            Some(at) => Err(format!("byte {at} of the {bytes} bytes of LSN {lsn} is wrong")),
            None => Ok(()),
        }
    }
}

/// How many records follow in the same batch.
pub(crate) fn remaining(key: u64) -> u64 {
    key >> HASH_BITS & BATCH_RECORDS_MAX
}

impl Shape {
    pub(crate) fn kind(self) -> u16 {
        (self.hash % u64::from(KINDS)) as u16
    }

    pub(crate) fn key(self, remaining: u64) -> u64 {
        let life = u64::from(self.life) << (REMAINING_BITS + HASH_BITS);
        life | remaining << HASH_BITS | self.dice()
    }

    /// The part of the key that filters look at.
    pub(crate) fn dice(self) -> u64 {
        dice(self.hash >> 20)
    }

    fn word(self, i: usize) -> [u8; 8] {
        mix(self.hash ^ i as u64).to_le_bytes()
    }

    pub(crate) fn fill(self, payload: &mut [u8]) {
        for (i, part) in payload.chunks_mut(8).enumerate() {
            part.copy_from_slice(&self.word(i)[..part.len()]);
        }
    }

    fn first_wrong(self, payload: &[u8]) -> Option<usize> {
        let wrong = |(i, part): (usize, &[u8])| part != &self.word(i)[..part.len()];
        payload.chunks(8).enumerate().position(wrong).map(|i| i * 8)
    }
}

pub(crate) fn dice(key: u64) -> u64 {
    key & ((1 << HASH_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_told_from_any_other() {
        let mut eras = Eras::default();
        eras.begin(1, 0);
        eras.begin(100, 1);
        eras.begin(50, 2);
        assert_eq!([49, 50, 100].map(|lsn| eras.life_of(lsn)), [0, 2, 2]);
        let content = Content { seed: 7, eras, payload_bytes_max: 32_000 };
        for lsn in 1..500 {
            let shape = content.shape(lsn);
            let mut payload = vec![0; content.payload_bytes(shape)];
            shape.fill(&mut payload);
            let key = shape.key(3);
            assert_eq!((remaining(key), dice(key)), (3, shape.dice()));
            assert_eq!(content.judge(lsn, shape.kind(), key, &payload), Ok(()));
            assert!(content.judge(lsn + 1, shape.kind(), key, &payload).is_err());
            assert!(content.judge(lsn, shape.kind() + 1, key, &payload).is_err());
            if let Some(last) = payload.last_mut() {
                *last ^= 1;
                assert!(content.judge(lsn, shape.kind(), key, &payload).is_err());
            }
        }
    }
}
