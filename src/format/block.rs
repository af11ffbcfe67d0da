//! A block: what one group commit wrote. The unit of commit, checksum and atomic visibility.
//!
//! ```text
//!  offset  bytes  field
//!       0      4  magic           "EVBK"
//!       4      4  crc             CRC-32C of bytes 8 .. 64 + body_bytes
//!       8      8  position        of this header in the log
//!      16      4  body_bytes      the records that follow the header
//!      20      4  records         how many: 0 in a watermark block
//!      24      4  flags           bit 0 ROLLED: last of its segment, without records
//!      28      4  prev_crc        crc of the block before, also across segments
//!      32      8  first_lsn       of the first record; without records, of the next one to come
//!      40      8  time_nanos      since the Unix epoch, never less than in the block before
//!      48      8  watermark       end of the last block known durable when this was submitted
//!      56      8  salt            of the segment, see `SegmentHeader::salt`
//!      64      n  body            n = body_bytes: records back to back
//!    64+n         zeros           up to a multiple of 4096
//! ```
//!
//! Position and salt keep out what only looks like a block: misdirected writes, bytes of another
//! log, payloads that hold block images.
//!
//! # What a tear looks like
//!
//! Blocks are written once, into zeros, in sectors of 512 bytes of which a crash may drop any. So
//! after a crash each sector is either as it was written or zero, and nothing else. That gives
//! [`looks_torn`] its rule, which recovery applies to a block that no later one vouches for:
//!
//! - The header's sector is zero: explained. Nothing is known of the rest, not even its length.
//! - Else the header arrived and must be right in all that can be known of it, and so must every
//!   record header up to the first that was lost with its sector.
//! - The padding is zero either way, and a sector that should hold data must be missing.
//!
//! A sector in the middle of a payload may be zero because that was the payload. It passes for a
//! missing one: taking it for damage would refuse a log after an honest crash. So damage to a
//! block that has such a sector, and damage that zeroes sectors, look like a tear. Only a later
//! watermark tells them apart.

use std::fmt;

use super::{
    PAGE_BYTES, SECTOR_BYTES, align_up, check_lsns, get, get_u32, get_u64, is_zero, put, put_u32,
    put_u64, record,
};

pub(crate) const BLOCK_HEADER_BYTES: usize = 64;
/// The last block of its segment: the log goes on in the next.
pub(crate) const FLAG_ROLLED: u32 = 1;

const MAGIC: [u8; 4] = *b"EVBK";
const CRC_AT: usize = 4;
/// The checksum covers everything from here on.
const CHECKED_FROM: usize = 8;

/// The fields of a block's header, as drawn in the module documentation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct BlockHeader {
    pub crc: u32,
    pub position: u64,
    pub body_bytes: u32,
    pub records: u32,
    pub flags: u32,
    pub prev_crc: u32,
    pub first_lsn: u64,
    pub time_nanos: u64,
    pub watermark: u64,
    pub salt: u64,
}

impl BlockHeader {
    /// Write all fields as they are, `crc` included; [`seal`] computes it.
    pub(crate) fn write(&self, out: &mut [u8; BLOCK_HEADER_BYTES]) {
        put(out, 0, MAGIC);
        put_u32(out, CRC_AT, self.crc);
        put_u64(out, 8, self.position);
        put_u32(out, 16, self.body_bytes);
        put_u32(out, 20, self.records);
        put_u32(out, 24, self.flags);
        put_u32(out, 28, self.prev_crc);
        put_u64(out, 32, self.first_lsn);
        put_u64(out, 40, self.time_nanos);
        put_u64(out, 48, self.watermark);
        put_u64(out, 56, self.salt);
    }

    /// The header that `bytes` begin with. `None` without 64 bytes or the magic number; nothing
    /// else is checked, see [`verify`].
    #[inline]
    pub(crate) fn read(bytes: &[u8]) -> Option<BlockHeader> {
        let bytes: &[u8; BLOCK_HEADER_BYTES] = bytes.first_chunk()?;
        if get(bytes, 0)? != MAGIC {
            return None;
        }
        Some(BlockHeader {
            crc: get_u32(bytes, CRC_AT)?,
            position: get_u64(bytes, 8)?,
            body_bytes: get_u32(bytes, 16)?,
            records: get_u32(bytes, 20)?,
            flags: get_u32(bytes, 24)?,
            prev_crc: get_u32(bytes, 28)?,
            first_lsn: get_u64(bytes, 32)?,
            time_nanos: get_u64(bytes, 40)?,
            watermark: get_u64(bytes, 48)?,
            salt: get_u64(bytes, 56)?,
        })
    }

    /// Header and body, without padding.
    #[inline]
    pub(crate) fn framed_bytes(&self) -> usize {
        BLOCK_HEADER_BYTES + self.body_bytes as usize
    }

    /// Whether the log goes on in the next segment.
    #[inline]
    pub(crate) fn is_rolled(&self) -> bool {
        self.flags & FLAG_ROLLED != 0
    }

    /// Whether the flags are known and go with the number of records.
    fn is_consistent(&self) -> bool {
        self.flags & !FLAG_ROLLED == 0 && !(self.is_rolled() && self.records != 0)
    }

    /// As [`is_consistent`](Self::is_consistent), and the LSNs are such that one can count on.
    fn is_possible(&self) -> bool {
        self.is_consistent() && check_lsns(self.first_lsn, self.records.into())
    }
}

/// CRC-32C of a block, header and body without padding, from its position on.
pub(crate) fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c(block.get(CHECKED_FROM..).unwrap_or_default())
}

/// Put the header on a block whose body is in place, and return its checksum; `header.crc` is
/// ignored. `block` is header and body, without padding.
pub(crate) fn seal(block: &mut [u8], header: &BlockHeader) -> u32 {
    assert_eq!(block.len(), header.framed_bytes(), "the body is not of the stated length");
    assert!(header.is_consistent(), "impossible header: {header:?}");
    let (image, body) = block.split_at_mut(BLOCK_HEADER_BYTES);
    debug_assert!(records_fit(body, header.records), "the body is not what the header says");
    if let Some(image) = image.first_chunk_mut() {
        header.write(image);
    }
    let crc = checksum(block);
    put_u32(block, CRC_AT, crc);
    crc
}

/// The first thing found wrong with a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockFault {
    /// The header's sector is all zeros, or there is no room for a header. What follows the
    /// sector may be anything.
    Zero,
    /// No magic number.
    Magic,
    /// A block of another place.
    Position,
    /// A block of another log, or of another file.
    Salt,
    /// Longer than the region it may occupy.
    Length,
    /// Header or body are not what was written.
    Checksum,
    /// Intact, yet flags, LSNs, record count and records contradict one another: no writer's
    /// block.
    Records,
}

impl fmt::Display for BlockFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zero => "there is no block",
            Self::Magic => "the magic number is missing",
            Self::Position => "the block belongs to another position",
            Self::Salt => "the block belongs to another log or file",
            Self::Length => "the block is longer than its region",
            Self::Checksum => "the checksum does not match the bytes",
            Self::Records => "header and records contradict each other",
        })
    }
}

/// Check the block that should start at `bytes[0]` down to its records. `bytes` reach to the end
/// of the region it may occupy. Its place in the chain is for the caller to check.
pub(crate) fn verify(bytes: &[u8], position: u64, salt: u64) -> Result<BlockHeader, BlockFault> {
    let (header, block, _) = open(bytes, position, salt)?;
    if checksum(block) != header.crc {
        return Err(BlockFault::Checksum);
    }
    let body = block.get(BLOCK_HEADER_BYTES..).unwrap_or_default();
    if !header.is_possible() || !records_fit(body, header.records) {
        return Err(BlockFault::Records);
    }
    Ok(header)
}

/// Whether a torn write into zeros can leave these bytes: `true` is a tear, `false` is damage or a
/// whole block. `bytes` reach from where the block should start, a multiple of 512, to the end of
/// the region it may occupy. The rule and its limits are in the module documentation.
pub(crate) fn looks_torn(bytes: &[u8], position: u64, salt: u64) -> bool {
    if is_zero(sector_at(bytes, 0)) {
        return true;
    }
    let Ok((header, block, rest)) = open(bytes, position, salt) else {
        return false;
    };
    let padded_bytes = align_up(block.len() as u64, PAGE_BYTES) as usize;
    let padding = rest.get(..padded_bytes - block.len()).unwrap_or(rest);
    header.is_possible()
        && is_zero(padding)
        && block.chunks(SECTOR_BYTES).any(is_zero)
        && arrived_records_fit(block, header.records)
        && checksum(block) != header.crc
}

/// The block as its header frames it and what lies behind it, once the header is known to be of
/// this place and its length possible.
fn open(bytes: &[u8], position: u64, salt: u64) -> Result<(BlockHeader, &[u8], &[u8]), BlockFault> {
    let Some(header) = BlockHeader::read(bytes) else {
        let empty = bytes.len() < BLOCK_HEADER_BYTES || is_zero(sector_at(bytes, 0));
        return Err(if empty { BlockFault::Zero } else { BlockFault::Magic });
    };
    if header.position != position {
        return Err(BlockFault::Position);
    }
    if header.salt != salt {
        return Err(BlockFault::Salt);
    }
    let (block, rest) = bytes.split_at_checked(header.framed_bytes()).ok_or(BlockFault::Length)?;
    Ok((header, block, rest))
}

/// Whether exactly so many records fill the body.
fn records_fit(body: &[u8], records: u32) -> bool {
    let mut rest = Some(body);
    for _ in 0..records {
        rest = rest.and_then(record::skip);
        if rest.is_none() {
            return false;
        }
    }
    rest.is_some_and(<[u8]>::is_empty)
}

/// As [`records_fit`], but only as far as the record headers' sectors arrived: where one is
/// missing, so is the length that leads to the next.
fn arrived_records_fit(block: &[u8], records: u32) -> bool {
    let mut offset = BLOCK_HEADER_BYTES;
    for _ in 0..records {
        // Length and flags lie in one sector, since records start at multiples of 8.
        if offset < block.len() && is_zero(sector_at(block, offset)) {
            return true;
        }
        let Some((_, next)) = record::read(block, offset) else {
            return false;
        };
        offset = next;
    }
    offset == block.len()
}

/// What there is of the sector that holds `bytes[at]`.
fn sector_at(bytes: &[u8], at: usize) -> &[u8] {
    let tail = bytes.get(at - at % SECTOR_BYTES..).unwrap_or_default();
    tail.get(..SECTOR_BYTES).unwrap_or(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::NUMBER_END;
    use crate::format::record::tests::push;
    use crate::format::tests::for_each_bit_flip;
    use proptest::prelude::*;

    const POSITION: u64 = 0x0001_2000;
    const SALT: u64 = 0x0123_4567_89AB_CDEF;

    fn header(body_bytes: usize, records: usize) -> BlockHeader {
        BlockHeader {
            crc: 0,
            position: POSITION,
            body_bytes: body_bytes as u32,
            records: records as u32,
            flags: 0,
            prev_crc: 0xDEAD_BEEF,
            first_lsn: 77,
            time_nanos: 1_700_000_000_000_000_000,
            watermark: POSITION - PAGE_BYTES,
            salt: SALT,
        }
    }

    /// A block of these payloads, padded to whole pages as it lies on disk.
    fn block_of<P: AsRef<[u8]>>(payloads: &[P]) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK_HEADER_BYTES];
        for (i, payload) in payloads.iter().enumerate() {
            push(&mut bytes, i as u16, !(i as u64), payload.as_ref());
        }
        let header = header(bytes.len() - BLOCK_HEADER_BYTES, payloads.len());
        seal(&mut bytes, &header);
        bytes.resize(align_up(bytes.len() as u64, PAGE_BYTES) as usize, 0);
        bytes
    }

    fn check(bytes: &[u8]) -> Result<BlockHeader, BlockFault> {
        verify(bytes, POSITION, SALT)
    }

    fn torn(bytes: &[u8]) -> bool {
        looks_torn(bytes, POSITION, SALT)
    }

    /// Sealed again after a change, so that the checks behind the checksum are reached.
    fn resealed(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        change(&mut bytes);
        let framed_bytes = BlockHeader::read(&bytes).expect("a block").framed_bytes();
        let crc = checksum(&bytes[..framed_bytes]);
        put_u32(&mut bytes, CRC_AT, crc);
        bytes
    }

    #[test]
    fn lsns_that_a_sum_would_overflow_are_refused() {
        // Recovery added the number of records to any LSN, and panicked.
        for (first_lsn, fault) in [
            (1, Ok(())),
            (NUMBER_END - 1, Ok(())),
            (0, Err(BlockFault::Records)),
            (NUMBER_END, Err(BlockFault::Records)),
            (u64::MAX, Err(BlockFault::Records)),
        ] {
            let block = resealed(block_of(&["abc"]), |bytes| put_u64(bytes, 32, first_lsn));
            assert_eq!(check(&block).map(drop), fault, "{first_lsn}");
            let mut half = block_of(&[[7; 2000]]);
            put_u64(&mut half, 32, first_lsn);
            half[1024..1536].fill(0);
            assert_eq!(torn(&half), fault.is_ok(), "{first_lsn}");
        }
    }

    #[test]
    fn what_follows_a_torn_block_says_nothing_of_it() {
        let mut half = block_of(&[[7; 2000]]);
        half[1024..1536].fill(0);
        half.extend([9; 4096]);
        assert!(torn(&half));
        // Its own padding does.
        half[4095] = 9;
        assert!(!torn(&half));
    }

    #[test]
    fn the_header_is_laid_out_as_drawn() {
        let header = BlockHeader { crc: 0x0403_0201, flags: FLAG_ROLLED, ..header(24, 1) };
        let mut image = [0xFF; BLOCK_HEADER_BYTES];
        header.write(&mut image);
        assert_eq!(&image[..16], b"EVBK\x01\x02\x03\x04\x00\x20\x01\0\0\0\0\0");
        assert_eq!(&image[16..32], b"\x18\0\0\0\x01\0\0\0\x01\0\0\0\xEF\xBE\xAD\xDE");
        let words = [77, 1_700_000_000_000_000_000, POSITION - PAGE_BYTES, SALT];
        assert_eq!(&image[32..], words.map(u64::to_le_bytes).concat());
        assert_eq!(BlockHeader::read(&image), Some(header));
        assert_eq!(BlockHeader::read(&image[..63]), None);
    }

    #[test]
    fn a_block_reads_back_with_its_checksum() {
        let bytes = block_of(&["one", "", "three"]);
        let header = check(&bytes).expect("sound");
        assert_eq!(header.crc, crc32c::crc32c(&bytes[8..header.framed_bytes()]));
        assert_eq!((header.records, header.first_lsn), (3, 77));
        assert_eq!(header.framed_bytes(), 64 + 24 + 16 + 24);
        assert_eq!(check(&bytes[..header.framed_bytes()]), Ok(header));
    }

    #[test]
    fn blocks_without_records_are_sound() {
        let mut bytes = [0; BLOCK_HEADER_BYTES];
        for flags in [0, FLAG_ROLLED] {
            let mut header = header(0, 0);
            header.flags = flags;
            header.crc = seal(&mut bytes, &header);
            assert_eq!(check(&bytes), Ok(header));
            assert_eq!(header.is_rolled(), flags == FLAG_ROLLED);
        }
    }

    #[test]
    fn each_fault_is_told_apart() {
        let bytes = block_of(&["one", "two"]);
        assert_eq!(check(&[0; 512]), Err(BlockFault::Zero));
        assert_eq!(check(&bytes[..63]), Err(BlockFault::Zero));
        let late = [&[0; 511], &[1][..]].concat();
        assert_eq!(check(&late), Err(BlockFault::Magic));
        let elsewhere = verify(&bytes, POSITION + PAGE_BYTES, SALT);
        assert_eq!(elsewhere, Err(BlockFault::Position));
        assert_eq!(verify(&bytes, POSITION, SALT + 1), Err(BlockFault::Salt));
        assert_eq!(check(&bytes[..64 + 47]), Err(BlockFault::Length));
        // Fewer and more records than there are, ROLLED with records, an unknown flag.
        for (at, value) in [(20, 1), (20, 3), (24, 1), (24, 2)] {
            let odd = resealed(bytes.clone(), |bytes| bytes[at] = value);
            assert_eq!(check(&odd), Err(BlockFault::Records), "{value} at {at}");
        }
        let mut damaged = bytes;
        damaged[100] ^= 1;
        assert_eq!(check(&damaged), Err(BlockFault::Checksum));
    }

    #[test]
    fn every_bit_flip_is_refused_and_is_no_tear() {
        let payloads = [[0xA5; 300], [0x5A; 300], [0xFF; 300]];
        for bytes in [block_of(&payloads), block_of::<[u8; 0]>(&[])] {
            let framed_bytes = check(&bytes).expect("sound").framed_bytes();
            for_each_bit_flip(&bytes[..framed_bytes], |image| {
                let padded = [image, &bytes[framed_bytes..]].concat();
                check(image).is_err() && check(&padded).is_err() && !torn(&padded)
            });
        }
    }

    #[test]
    fn a_block_image_in_a_payload_is_no_block() {
        // A consumer that stores blocks of another log, or of this one, as payloads: at any
        // offset where recovery may look, they must not pass for blocks of this place.
        let image = block_of(&["inner"]);
        let payload = [vec![0; 4096 - 80], image.clone()].concat();
        let outer = block_of(&[payload]);
        assert_eq!(&outer[4096..4096 + 64], &image[..64]);
        let here = verify(&outer[4096..], POSITION + 4096, SALT);
        assert_eq!(here, Err(BlockFault::Position));
        assert!(!looks_torn(&outer[4096..], POSITION + 4096, SALT));
        let other_log = verify(&outer[4096..], POSITION, !SALT);
        assert_eq!(other_log, Err(BlockFault::Salt));
        assert!(!looks_torn(&outer[4096..], POSITION, !SALT));
    }

    #[test]
    #[should_panic(expected = "the body is not of the stated length")]
    fn a_wrong_length_is_not_written() {
        seal(&mut [0; 80], &header(24, 1));
    }

    #[test]
    #[should_panic(expected = "impossible header")]
    fn records_in_a_rolled_block_are_not_written() {
        let mut block = vec![0; BLOCK_HEADER_BYTES];
        push(&mut block, 1, 2, b"x");
        let mut header = header(24, 1);
        header.flags = FLAG_ROLLED;
        seal(&mut block, &header);
    }

    #[test]
    fn zeros_are_explained_by_a_tear_and_a_whole_block_is_not_torn() {
        assert!(torn(&[]) && torn(&[0; 8192]));
        assert!(!torn(&block_of(&["whole"])));
        let zero_sectors = block_of(&[[0; 4096]]);
        assert!(!torn(&zero_sectors), "they are its payload");
        assert!(!torn(&[1; 63]), "not zero, yet too short for a header");
    }

    #[test]
    fn a_lost_header_hides_the_rest() {
        let mut bytes = block_of(&[[7; 3000]]);
        bytes[..512].fill(0);
        assert!(torn(&bytes));
    }

    #[test]
    fn what_arrived_of_a_torn_block_must_be_right() {
        let mut bytes = block_of(&[[7; 1000], [7; 1000], [7; 1000]]);
        bytes[2560..3072].fill(0);
        assert!(torn(&bytes));
        let flips = [
            ("magic", 0, 1),
            ("position", 8, 1),
            ("body_bytes", 18, 1),
            ("records", 20, 1),
            ("ROLLED", 24, FLAG_ROLLED as u8),
            ("unknown flag", 24, 2),
            ("salt", 56, 1),
            ("first record's length", 65, 1),
            ("second record's flags", 64 + 1016 + 7, 1),
            ("padding", 4095, 1),
        ];
        for (name, at, bits) in flips {
            let mut damaged = bytes.clone();
            damaged[at] ^= bits;
            assert!(!torn(&damaged), "{name}");
        }
    }

    #[test]
    fn more_records_than_fit_are_not_lost_ones() {
        let mut bytes = block_of(&[[7; 4096 - 80]]);
        bytes[512..1024].fill(0);
        assert!(torn(&bytes));
        bytes[20] = 2;
        assert!(!torn(&bytes));
    }

    #[test]
    fn a_longer_body_than_was_written_is_no_missing_sector() {
        // One flipped bit in body_bytes stretches the block over the zeros behind it.
        let mut bytes = block_of(&[[7; 500]]);
        bytes.resize(8192, 0);
        bytes[17] ^= 0x10;
        assert_eq!(check(&bytes), Err(BlockFault::Checksum));
        assert!(!torn(&bytes));
    }

    #[test]
    fn zero_payload_passes_for_a_missing_sector_where_nothing_contradicts() {
        let whole = block_of(&[vec![0; 1500], vec![7; 400]]);
        assert!(check(&whole).is_ok() && whole.chunks(512).take(4).any(is_zero));
        // In the payload behind the zeros: undecidable, and taken for a tear.
        let mut damaged = whole.clone();
        damaged[1700] ^= 1;
        assert!(torn(&damaged));
        // In a record header that arrived: no tear leaves that.
        for at in [64, 64 + 6, 64 + 1520 + 1, 64 + 1520 + 6] {
            let mut damaged = whole.clone();
            damaged[at] ^= 8;
            assert!(!torn(&damaged), "byte {at}");
        }
    }

    /// For blocks of up to some 50 sectors; with `zeros`, some are sectors of nothing else.
    fn payloads(zeros: bool) -> impl Strategy<Value = Vec<Vec<u8>>> {
        let least = if zeros { 0 } else { 1 };
        let bytes = proptest::collection::vec(least..=255u8, 0..1500);
        let runs = (least..=1u8, 0..3000usize).prop_map(|(byte, n)| vec![byte; n]);
        proptest::collection::vec(prop_oneof![bytes, runs], 0..8)
    }

    proptest! {
        #[test]
        fn any_loss_of_sectors_is_a_tear(payloads in payloads(true), arrived in any::<u64>()) {
            let whole = block_of(&payloads);
            let mut bytes = vec![0; whole.len() + 4096];
            for (i, sector) in whole.chunks(512).enumerate() {
                if arrived.rotate_right(i as u32) & 1 == 1 {
                    bytes[i * 512..][..512].copy_from_slice(sector);
                }
            }
            if bytes[..whole.len()] == whole {
                prop_assert!(check(&bytes).is_ok() && !torn(&bytes));
            } else {
                prop_assert!(check(&bytes).is_err() && torn(&bytes));
            }
        }

        #[test]
        fn any_damage_to_a_block_without_zero_sectors_is_no_tear(
            payloads in payloads(false),
            at in any::<prop::sample::Index>(),
            bit in 0..8u32,
            sector in proptest::collection::vec(1..=255u8, 512),
        ) {
            let whole = block_of(&payloads);
            let framed_bytes = check(&whole).expect("sound").framed_bytes();
            let at = at.index(framed_bytes);

            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            prop_assume!(!flipped[..framed_bytes].chunks(512).any(is_zero));
            prop_assert!(check(&flipped).is_err() && !torn(&flipped));

            let mut foreign = whole;
            foreign[at / 512 * 512..][..512].copy_from_slice(&sector);
            prop_assert!(check(&foreign).is_err() && !torn(&foreign));
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..1500),
            mut header in (any::<u32>(), 0..1500u32, 0..40u32, 0..4u32).prop_map(
                |(crc, body_bytes, records, flags)| {
                    BlockHeader { crc, body_bytes, records, flags, ..header(0, 0) }
                },
            ),
        ) {
            let _ = (check(&bytes), torn(&bytes));
            if let Some(image) = bytes.first_chunk_mut() {
                header.write(image);
                let _ = (check(&bytes), torn(&bytes));
                header.crc = checksum(&bytes[..header.framed_bytes().min(bytes.len())]);
                let _ = bytes.first_chunk_mut().map(|image| header.write(image));
                let _ = (check(&bytes), torn(&bytes));
            }
        }
    }
}
