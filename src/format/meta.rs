//! What the log knows about itself: the file `meta`, two slots of 4 KiB, written in turn.
//!
//! ```text
//!  offset  bytes  slot
//!       0     32  envelope        magic "EVPLMETA", crc over the 4096 bytes, feature bits
//!      32     16  log_id
//!      48      8  sequence        of this version of the contents; its slot is sequence mod 2
//!      56      8  generation      raised by a repair that cut data: older checkpoints are void
//!      64      8  slab_bytes      as in the segment header
//!      72      8  segment_bytes   as in the segment header
//!      80      8  log_start       position below which everything was given up by retention
//!      88      8  log_start_lsn   of the first record not below log_start
//!      96   4000  zeros
//! ```
//!
//! Both slots are allocated when the log is created, so that retention can move `log_start` on a
//! full disk. A slot is overwritten only while the other holds the contents before it: whatever a
//! crash leaves of it, one of the two is whole.

use super::{
    Envelope, FormatError, LogId, NUMBER_END, PAGE, check_lsns, check_sizes, get, get_u64, put,
    put_u64,
};

const MAGIC: [u8; 8] = *b"EVPLMETA";

/// The contents of a slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Meta {
    /// Grows by one with every write.
    pub sequence: u64,
    pub log_id: LogId,
    /// Raised by a repair that cut data: checkpoints of an older one are void.
    pub generation: u64,
    pub slab_bytes: u64,
    pub segment_bytes: u64,
    /// Position below which everything was given up by retention.
    pub log_start: u64,
    /// LSN of the first record not below `log_start`.
    pub log_start_lsn: u64,
}

impl Meta {
    /// The slot as it goes to disk. Panics on sizes that [`decode`](Self::decode) would refuse.
    pub(crate) fn encode(&self) -> [u8; PAGE] {
        assert_eq!(check_sizes(self.slab_bytes, self.segment_bytes), Ok(()));
        let mut slot = [0; PAGE];
        put(&mut slot, 32, self.log_id.0);
        put_u64(&mut slot, 48, self.sequence);
        put_u64(&mut slot, 56, self.generation);
        put_u64(&mut slot, 64, self.slab_bytes);
        put_u64(&mut slot, 72, self.segment_bytes);
        put_u64(&mut slot, 80, self.log_start);
        put_u64(&mut slot, 88, self.log_start_lsn);
        Envelope::seal(&mut slot, MAGIC, 0, 0);
        slot
    }

    /// The contents of one slot.
    pub(crate) fn decode(slot: &[u8]) -> Result<Meta, FormatError> {
        let slot: &[u8; PAGE] = slot.first_chunk().ok_or(FormatError::Truncated)?;
        Envelope::open(slot, MAGIC)?;
        let meta = Self::read(slot).ok_or(FormatError::Truncated)?;
        check_sizes(meta.slab_bytes, meta.segment_bytes)?;
        // Retention gives up whole segments.
        let is_start = meta.log_start.is_multiple_of(meta.segment_bytes);
        for (field, possible) in [
            ("sequence", meta.sequence < NUMBER_END),
            ("generation", meta.generation < NUMBER_END),
            ("log_start", is_start && meta.log_start < NUMBER_END),
            ("log_start_lsn", check_lsns(meta.log_start_lsn, 0)),
        ] {
            if !possible {
                return Err(FormatError::Field(field));
            }
        }
        Ok(meta)
    }

    fn read(slot: &[u8; PAGE]) -> Option<Meta> {
        Some(Meta {
            log_id: LogId(get(slot, 32)?),
            sequence: get_u64(slot, 48)?,
            generation: get_u64(slot, 56)?,
            slab_bytes: get_u64(slot, 64)?,
            segment_bytes: get_u64(slot, 72)?,
            log_start: get_u64(slot, 80)?,
            log_start_lsn: get_u64(slot, 88)?,
        })
    }

    /// Which of the two slots these contents belong in.
    pub(crate) fn slot(&self) -> u64 {
        self.sequence % 2
    }

    /// The newest contents in a whole file: where one slot is torn, those of the other. But an
    /// intact slot that this build cannot read was written by a later one, and what it replaced
    /// must not be taken for the state of the log.
    pub(crate) fn newest(file: &[u8]) -> Result<Meta, FormatError> {
        let (first, second) = file.split_at_checked(PAGE).unwrap_or((file, &[]));
        match (Self::decode_in(first, 0), Self::decode_in(second, 1)) {
            (Ok(first), Ok(second)) if first.sequence > second.sequence => Ok(first),
            (Ok(_), Ok(second)) => Ok(second),
            (Ok(meta), Err(error)) => Self::unless_newer(meta, error, second),
            (Err(error), Ok(meta)) => Self::unless_newer(meta, error, first),
            (Err(first), Err(second)) if rank(&first) <= rank(&second) => Err(first),
            (Err(_), Err(second)) => Err(second),
        }
    }

    /// As [`decode`](Self::decode), and in its own slot: contents elsewhere were misdirected.
    fn decode_in(slot: &[u8], number: u64) -> Result<Meta, FormatError> {
        let meta = Self::decode(slot)?;
        if meta.slot() != number {
            return Err(FormatError::Field("sequence"));
        }
        Ok(meta)
    }

    /// `meta`, unless the other slot was refused for being a later build's.
    fn unless_newer(meta: Meta, error: FormatError, slot: &[u8]) -> Result<Meta, FormatError> {
        let slot = slot.get(..PAGE).unwrap_or_default();
        match error {
            // The checksum is not asked before the version, and a torn slot may say anything.
            FormatError::Version(_) | FormatError::RequiredFeatures(_)
                if Envelope::is_intact(slot) =>
            {
                Err(error)
            }
            _ => Ok(meta),
        }
    }
}

/// Which of two errors tells more: the lower.
fn rank(error: &FormatError) -> u8 {
    match error {
        FormatError::Version(_) | FormatError::RequiredFeatures(_) => 0,
        FormatError::Field(_) => 1,
        FormatError::Checksum => 2,
        FormatError::Magic => 3,
        FormatError::Truncated => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::{for_each_bit_flip, resealed};
    use crate::format::{CRC_AT, put_u16, put_u32};
    use proptest::prelude::*;

    fn meta(sequence: u64) -> Meta {
        Meta {
            sequence,
            log_id: LogId(std::array::from_fn(|i| i as u8 + 1)),
            generation: 3,
            slab_bytes: 1 << 20,
            segment_bytes: 1 << 24,
            log_start: sequence << 24,
            log_start_lsn: 1 + sequence * 1000,
        }
    }

    /// A file in which `sequence` was written last.
    fn file(sequence: u64) -> Vec<u8> {
        let mut slots = [meta(sequence - 1), meta(sequence)];
        slots.sort_by_key(Meta::slot);
        slots.iter().flat_map(Meta::encode).collect()
    }

    fn with_version(mut slot: Vec<u8>, version: u16, sealed: bool) -> Vec<u8> {
        put_u16(&mut slot, 8, version);
        if sealed {
            let crc = Envelope::crc(&slot);
            put_u32(&mut slot, CRC_AT, crc);
        }
        slot
    }

    #[test]
    fn round_trip() {
        assert_eq!(Meta::decode(&meta(9).encode()), Ok(meta(9)));
    }

    #[test]
    fn a_slot_is_laid_out_as_drawn() {
        let slot = meta(9).encode();
        assert_eq!(&slot[..12], b"EVPLMETA\x01\0\0\0");
        assert_eq!(&slot[32..48], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        let words = [9, 3, 1 << 20, 1 << 24, 9 << 24, 9001u64];
        assert_eq!(&slot[48..96], words.map(u64::to_le_bytes).concat());
        assert_eq!(&slot[96..], [0; 4000]);
    }

    #[test]
    fn every_bit_flip_is_refused() {
        for_each_bit_flip(&meta(9).encode(), |slot| Meta::decode(slot).is_err());
    }

    #[test]
    fn numbers_that_a_sum_would_overflow_are_refused() {
        // A log that began with LSN 0, or ended at the last there is, panicked when opened.
        let refuses = |change: fn(&mut Meta), field| {
            let mut odd = meta(9);
            change(&mut odd);
            assert_eq!(Meta::decode(&odd.encode()), Err(FormatError::Field(field)));
        };
        refuses(|meta| meta.log_start_lsn = 0, "log_start_lsn");
        refuses(|meta| meta.log_start_lsn = NUMBER_END + 1, "log_start_lsn");
        refuses(|meta| meta.log_start += 4096, "log_start");
        refuses(|meta| meta.log_start = NUMBER_END, "log_start");
        refuses(|meta| meta.sequence = NUMBER_END, "sequence");
        refuses(|meta| meta.generation = NUMBER_END, "generation");
        let last = Meta {
            sequence: NUMBER_END - 1,
            generation: NUMBER_END - 1,
            log_start: NUMBER_END - (1 << 24),
            log_start_lsn: NUMBER_END,
            ..meta(9)
        };
        assert_eq!(Meta::decode(&last.encode()), Ok(last));
    }

    #[test]
    fn the_newest_slot_wins() {
        assert_eq!(Meta::newest(&file(8)), Ok(meta(8)));
        assert_eq!(Meta::newest(&file(9)), Ok(meta(9)));
    }

    #[test]
    fn a_torn_slot_leaves_the_other() {
        for sequence in [8, 9] {
            let whole = file(sequence);
            let newest = meta(sequence).slot() as usize * PAGE;
            // The slot before it held sequence - 2: any mix of the two at sector granularity.
            let before = meta(sequence - 2).encode();
            for mask in 0..=255u8 {
                let mut torn = whole.clone();
                for sector in (0..8).filter(|sector| mask >> sector & 1 == 1) {
                    let at = sector * 512;
                    torn[newest + at..][..512].copy_from_slice(&before[at..at + 512]);
                }
                let survivor = if mask & 1 == 0 { sequence } else { sequence - 1 };
                assert_eq!(Meta::newest(&torn), Ok(meta(survivor)), "mask {mask:#x}");
            }
        }
    }

    #[test]
    fn any_flipped_bit_in_one_slot_leaves_the_other() {
        let whole = file(9);
        for bit in 0..PAGE * 8 {
            let mut damaged = whole.clone();
            damaged[PAGE + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Meta::newest(&damaged), Ok(meta(8)), "bit {bit}");
        }
    }

    #[test]
    fn a_later_builds_slot_is_not_passed_over() {
        let (old, new) = (meta(8).encode().to_vec(), meta(9).encode().to_vec());
        let newer = [old.clone(), with_version(new.clone(), 2, true)].concat();
        assert_eq!(Meta::newest(&newer), Err(FormatError::Version(2)));
        let newer = [with_version(old.clone(), 2, true), new.clone()].concat();
        assert_eq!(Meta::newest(&newer), Err(FormatError::Version(2)));
        let torn = [old.clone(), with_version(new.clone(), 2, false)].concat();
        assert_eq!(Meta::newest(&torn), Ok(meta(8)));
        let mut features = new;
        Envelope::seal(&mut features, MAGIC, 4, 0);
        let features = [old, features].concat();
        assert_eq!(Meta::newest(&features), Err(FormatError::RequiredFeatures(4)));
    }

    #[test]
    fn contents_in_the_wrong_slot_are_passed_over() {
        let misdirected = [meta(8).encode(), meta(10).encode()].concat();
        assert_eq!(Meta::newest(&misdirected), Ok(meta(8)));
        let swapped = [meta(9).encode(), meta(8).encode()].concat();
        assert_eq!(Meta::newest(&swapped), Err(FormatError::Field("sequence")));
    }

    #[test]
    fn without_a_valid_slot_the_better_reason_is_given() {
        let slot = meta(8).encode().to_vec();
        let mut damaged = slot.clone();
        damaged[100] ^= 1;
        let newer = with_version(slot, 7, false);
        let zeros = vec![0; PAGE];
        let reason = |a: &[u8], b: &[u8]| Meta::newest(&[a, b].concat()).unwrap_err();
        assert_eq!(reason(&damaged, &newer), FormatError::Version(7));
        assert_eq!(reason(&newer, &damaged), FormatError::Version(7));
        assert_eq!(reason(&zeros, &damaged), FormatError::Checksum);
        assert_eq!(reason(&damaged, &zeros), FormatError::Checksum);
        assert_eq!(reason(&zeros, &[]), FormatError::Magic);
        assert_eq!(reason(&[], &[]), FormatError::Truncated);
        assert_eq!(reason(&zeros[1..], &[]), FormatError::Truncated);
    }

    #[test]
    fn half_a_file_serves_if_its_slot_is_valid() {
        assert_eq!(Meta::newest(&meta(8).encode()), Ok(meta(8)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..2 * PAGE + 9),
        ) {
            let _ = (Meta::decode(&bytes), Meta::newest(&bytes));
            if let Some(slot) = bytes.get(..PAGE) {
                let slot = resealed(slot.to_vec(), MAGIC);
                let _ = (Meta::decode(&slot), Meta::newest(&slot));
            }
        }
    }
}
