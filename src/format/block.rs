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
    debug_assert!(examine(block, header.records).1, "the body is not what the header says");
    if let Some(image) = block.first_chunk_mut() {
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
    let (crc, records_fit) = examine(block, header.records);
    if crc != header.crc {
        return Err(BlockFault::Checksum);
    }
    if !header.is_possible() || !records_fit {
        return Err(BlockFault::Records);
    }
    Ok(header)
}

/// The block's [`checksum`], and whether exactly so many records fill its body. Each of them is
/// where the one before it says: a stretch is walked while the nearest cache still has it.
fn examine(block: &[u8], records: u32) -> (u32, bool) {
    /// Most of that cache, and what the checksum takes in one go.
    const STRETCH_BYTES: usize = 24 << 10;
    let checked = block.get(CHECKED_FROM..).unwrap_or_default();
    let (mut crc, mut behind) = (0, checked.len());
    let (mut rest, mut left) = (block.get(BLOCK_HEADER_BYTES..), records);
    for stretch in checked.chunks(STRETCH_BYTES) {
        (crc, behind) = (crc32c::crc32c_append(crc, stretch), behind - stretch.len());
        while let Some(here) = rest.filter(|rest| left > 0 && rest.len() > behind) {
            (rest, left) = (record::skip(here), left - 1);
        }
    }
    (crc, left == 0 && rest.is_some_and(<[u8]>::is_empty))
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

/// Whether so many records fill the block, as far as the sectors of their headers arrived: where
/// one is missing, so is the length that leads to the next.
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
mod tests;
