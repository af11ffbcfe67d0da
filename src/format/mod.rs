//! The bytes on disk: encoding and decoding, and no I/O.
//!
//! Everything is little endian. There are two families of structures:
//!
//! - **Blocks** and the **records** in them are the data. They are what the committer writes and
//!   what every consumer reads, so their headers are small and read with a handful of loads.
//! - **Segment header, footer, meta and checkpoints** stand alone. Each begins with the same
//!   32-byte *envelope*, so "is this ours, can we read it, is it intact" is decided in one place:
//!
//! ```text
//!  offset  bytes  envelope
//!       0      8  magic       which structure this is
//!       8      2  version     of the format: 1
//!      10      2  zeros
//!      12      4  crc         CRC-32C of every byte of the structure but these four
//!      16      8  required    features that a reader must know
//!      24      8  optional    features that a reader may ignore
//! ```
//!
//! Magic, version and crc keep their places and meaning in every future version. Reserved bytes
//! are written as zeros and ignored when read: the checksum guards them, a later version may use
//! them. Decoders take bytes of any content: they neither panic nor allocate more than a small
//! multiple of what they were given. Encoders assert that what they write can be read again.

mod block;
mod checkpoint;
mod footer;
mod meta;
mod record;
mod segment;

use std::fmt;

pub(crate) use block::{
    BLOCK_HEADER_BYTES, BlockFault, BlockHeader, FLAG_ROLLED, looks_torn, seal as seal_block,
    verify as verify_block,
};
pub(crate) use checkpoint::{CheckpointEntry, Checkpoints};
pub(crate) use footer::{Footer, FooterBuilder, KindSet, footer_bytes, seek_lsn, seek_time};
pub(crate) use meta::Meta;
pub(crate) use record::{
    RECORD_HEADER_BYTES, RawRecord, copy_payload, read as read_record, record_bytes,
    skip as skip_record, split as split_record, write_header as write_record_header,
};
pub(crate) use segment::SegmentHeader;

/// Unit of alignment: blocks, header page and footer region start and end on it.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// What a disk writes whole or not at all, hence the unit in which a write tears.
pub(crate) const SECTOR_BYTES: usize = 512;
/// The one version that this build writes and reads.
pub(crate) const FORMAT_VERSION: u16 = 1;

/// Positions, LSNs and counts that are read are below this: sums of them cannot overflow, and what
/// is appended behind them never gets there.
pub(crate) const NUMBER_END: u64 = 1 << 62;

const PAGE: usize = PAGE_BYTES as usize;
const ENVELOPE_BYTES: usize = 32;
const CRC_AT: usize = 12;
/// Required features that this build knows: none so far.
const REQUIRED_KNOWN: u64 = 0;
/// The footer has room for one slab end each 64 KiB.
const SLAB_BYTES_MIN: u64 = 64 * 1024;
/// Offsets in a segment are stored as `u32`.
const SEGMENT_BYTES_MAX: u64 = 1 << 32;

// Lengths are stored as `u32` and added up as `usize`.
const _: () = assert!(usize::BITS >= 64);

/// Random identity of a log, drawn when it is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogId(pub [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why bytes were refused; the caller adds path, segment and offset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum FormatError {
    /// The structure does not begin with its magic number.
    Magic,
    /// The checksum does not match.
    Checksum,
    /// Written in a version of the format that this build does not read.
    Version(u16),
    /// Needs features that this build does not know: the unknown bits.
    RequiredFeatures(u64),
    /// Intact, yet this field holds what no writer puts there, or belongs elsewhere.
    Field(&'static str),
    /// Fewer bytes than the structure takes.
    Truncated,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("the magic number is missing"),
            Self::Checksum => f.write_str("the checksum does not match the bytes"),
            Self::Version(version) => write!(
                f,
                "the format version is {version}, but this build reads only {FORMAT_VERSION}"
            ),
            Self::RequiredFeatures(bits) => {
                write!(f, "features are required that this build does not know (bits {bits:#x})")
            }
            Self::Field(name) => write!(f, "the value of `{name}` is impossible here"),
            Self::Truncated => f.write_str("the bytes end before the structure does"),
        }
    }
}

impl std::error::Error for FormatError {}

impl FormatError {
    /// Written by a newer build, for all that can be said: not damaged.
    pub(crate) fn is_newer(&self) -> bool {
        matches!(self, Self::Version(_) | Self::RequiredFeatures(_))
    }
}

/// The least multiple of `to` (a power of two) that is not below `n`.
pub(crate) const fn align_up(n: u64, to: u64) -> u64 {
    debug_assert!(to.is_power_of_two());
    (n + to - 1) & !(to - 1)
}

/// Whether all bytes are zero. In chunks without early exit, so that it runs at memory speed.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    let or = |bytes: &[u8]| bytes.iter().fold(0, |or, byte| or | byte);
    chunks.iter().all(|chunk| or(chunk) == 0) && or(rest) == 0
}

/// The common head of the structures that stand alone; drawn in the module documentation.
#[derive(Clone, Copy, Debug)]
struct Envelope {
    magic: [u8; 8],
    version: u16,
    required: u64,
    optional: u64,
}

impl Envelope {
    fn read(bytes: &[u8]) -> Option<Envelope> {
        let bytes: &[u8; ENVELOPE_BYTES] = bytes.first_chunk()?;
        Some(Envelope {
            magic: get(bytes, 0)?,
            version: get_u16(bytes, 8)?,
            required: get_u64(bytes, 16)?,
            optional: get_u64(bytes, 24)?,
        })
    }

    /// Check the structure that `bytes` hold as a whole. The version comes before the checksum:
    /// of a newer structure we may not even know how long it is.
    fn open(bytes: &[u8], magic: [u8; 8]) -> Result<Envelope, FormatError> {
        let envelope = Self::read(bytes).ok_or(FormatError::Truncated)?;
        if envelope.magic != magic {
            return Err(FormatError::Magic);
        }
        if envelope.version != FORMAT_VERSION {
            return Err(FormatError::Version(envelope.version));
        }
        if !Self::is_intact(bytes) {
            return Err(FormatError::Checksum);
        }
        match envelope.required & !REQUIRED_KNOWN {
            0 => Ok(envelope),
            unknown => Err(FormatError::RequiredFeatures(unknown)),
        }
    }

    /// Put the envelope around a structure that is otherwise complete.
    fn seal(bytes: &mut [u8], magic: [u8; 8], required: u64, optional: u64) {
        put(bytes, 0, magic);
        put_u16(bytes, 8, FORMAT_VERSION);
        put_u64(bytes, 16, required);
        put_u64(bytes, 24, optional);
        let crc = Self::crc(bytes);
        put_u32(bytes, CRC_AT, crc);
    }

    /// Whether the checksum holds, whatever the version.
    fn is_intact(bytes: &[u8]) -> bool {
        get_u32(bytes, CRC_AT) == Some(Self::crc(bytes))
    }

    fn crc(bytes: &[u8]) -> u32 {
        let before = bytes.get(..CRC_AT).unwrap_or_default();
        let after = bytes.get(CRC_AT + 4..).unwrap_or_default();
        crc32c::crc32c_append(crc32c::crc32c(before), after)
    }
}

/// Refuse sizes that no log can have. The narrower limits of configuration are not known here.
fn check_sizes(slab_bytes: u64, segment_bytes: u64) -> Result<(), FormatError> {
    if !slab_bytes.is_power_of_two() || slab_bytes < SLAB_BYTES_MIN {
        return Err(FormatError::Field("slab_bytes"));
    }
    // A power of two above the slab's is a multiple of it, so at least two slabs.
    if !segment_bytes.is_power_of_two()
        || segment_bytes <= slab_bytes
        || segment_bytes > SEGMENT_BYTES_MAX
    {
        return Err(FormatError::Field("segment_bytes"));
    }
    Ok(())
}

/// Whether `lsn` and those of so many records from it on are LSNs that a log can have.
fn check_lsns(lsn: u64, records: u64) -> bool {
    lsn > 0 && lsn.checked_add(records).is_some_and(|end| end <= NUMBER_END)
}

/// The `N` bytes at `at`; on an array with a constant `at` this compiles to a plain load.
#[inline]
fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[inline]
fn get_u16(bytes: &[u8], at: usize) -> Option<u16> {
    get(bytes, at).map(u16::from_le_bytes)
}

#[inline]
fn get_u32(bytes: &[u8], at: usize) -> Option<u32> {
    get(bytes, at).map(u32::from_le_bytes)
}

#[inline]
fn get_u64(bytes: &[u8], at: usize) -> Option<u64> {
    get(bytes, at).map(u64::from_le_bytes)
}

/// Write `value` at `at`. Panics past the end: a writer knows the size of what it writes.
#[inline]
fn put<const N: usize>(out: &mut [u8], at: usize, value: [u8; N]) {
    out[at..at + N].copy_from_slice(&value);
}

#[inline]
fn put_u16(out: &mut [u8], at: usize, value: u16) {
    put(out, at, value.to_le_bytes());
}

#[inline]
fn put_u32(out: &mut [u8], at: usize, value: u32) {
    put(out, at, value.to_le_bytes());
}

#[inline]
fn put_u64(out: &mut [u8], at: usize, value: u64) {
    put(out, at, value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: [u8; 8] = *b"EVPLTEST";

    /// Call `refuses` with every image that differs from `bytes` in one bit.
    pub(super) fn for_each_bit_flip(bytes: &[u8], mut refuses: impl FnMut(&[u8]) -> bool) {
        let mut image = bytes.to_vec();
        for bit in 0..image.len() * 8 {
            image[bit / 8] ^= 1 << (bit % 8);
            assert!(refuses(&image), "accepted with bit {bit} flipped");
            image[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// Make arbitrary bytes pass the envelope, so that the checks behind it are reached.
    pub(super) fn resealed(mut bytes: Vec<u8>, magic: [u8; 8]) -> Vec<u8> {
        Envelope::seal(&mut bytes, magic, 0, 0);
        bytes
    }

    #[test]
    fn alignment_rounds_up() {
        for (n, aligned) in [(0, 0), (1, 4096), (4095, 4096), (4096, 4096), (4097, 8192)] {
            assert_eq!(align_up(n, PAGE_BYTES), aligned);
        }
        assert_eq!(align_up(17, 8), 24);
    }

    #[test]
    fn one_set_byte_anywhere_is_not_zero() {
        let mut bytes = [0; 200];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in 0..bytes.len() {
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes));
            bytes[at] = 0;
        }
    }

    #[test]
    fn the_envelope_is_laid_out_as_drawn() {
        let mut bytes = [7; 40];
        put_u16(&mut bytes, 10, 0);
        Envelope::seal(&mut bytes, MAGIC, 0x0102, 0x0304);
        let head = [0x0102u64.to_le_bytes(), 0x0304u64.to_le_bytes(), [7; 8]].concat();
        let crc = crc32c::crc32c(&[b"EVPLTEST\x01\0\0\0".to_vec(), head.clone()].concat());
        assert_eq!(&bytes[..12], b"EVPLTEST\x01\0\0\0");
        assert_eq!(&bytes[12..16], crc.to_le_bytes());
        assert_eq!(&bytes[16..], head);
    }

    #[test]
    fn the_first_thing_wrong_is_named() {
        let mut bytes = [7; 40];
        Envelope::seal(&mut bytes, MAGIC, 0, 0);
        assert!(Envelope::open(&bytes, MAGIC).is_ok());
        let open = |bytes: &[u8]| Envelope::open(bytes, MAGIC).unwrap_err();
        assert_eq!(open(&bytes[..31]), FormatError::Truncated);
        assert_eq!(open(&bytes[..39]), FormatError::Checksum);
        assert_eq!(open(&[0; 40]), FormatError::Magic);

        let mut damaged = bytes;
        damaged[39] ^= 1;
        assert_eq!(open(&damaged), FormatError::Checksum);
        put_u16(&mut damaged, 8, 2);
        assert_eq!(open(&damaged), FormatError::Version(2));
        damaged[0] ^= 1;
        assert_eq!(open(&damaged), FormatError::Magic);

        Envelope::seal(&mut bytes, MAGIC, 0b101, !0);
        assert_eq!(open(&bytes), FormatError::RequiredFeatures(0b101));
        Envelope::seal(&mut bytes, MAGIC, 0, !0);
        assert!(Envelope::open(&bytes, MAGIC).is_ok(), "optional features are optional");
    }

    #[test]
    fn only_sizes_a_log_can_have_are_accepted() {
        const KIB: u64 = 1024;
        assert_eq!(check_sizes(64 * KIB, 128 * KIB), Ok(()));
        assert_eq!(check_sizes(64 * KIB * KIB, SEGMENT_BYTES_MAX), Ok(()));
        for slab_bytes in [0, 1, 32 * KIB, 96 * KIB, u64::MAX] {
            let refused = check_sizes(slab_bytes, 1 << 24);
            assert_eq!(refused, Err(FormatError::Field("slab_bytes")));
        }
        for segment_bytes in [0, 64 * KIB, 192 * KIB, 2 * SEGMENT_BYTES_MAX] {
            let refused = check_sizes(64 * KIB, segment_bytes);
            assert_eq!(refused, Err(FormatError::Field("segment_bytes")));
        }
    }

    #[test]
    fn lsns_cannot_overflow() {
        assert!(check_lsns(1, 0) && check_lsns(1, NUMBER_END - 1) && check_lsns(NUMBER_END, 0));
        for (lsn, records) in [(0, 0), (0, 5), (NUMBER_END + 1, 0), (2, NUMBER_END - 1)] {
            assert!(!check_lsns(lsn, records));
        }
        assert!(!check_lsns(u64::MAX, 1) && !check_lsns(1, u64::MAX));
    }

    #[test]
    fn a_log_id_reads_as_hex() {
        let id = LogId(std::array::from_fn(|i| i as u8 * 17));
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
    }

    #[test]
    fn errors_are_sentences() {
        assert_eq!(
            FormatError::Version(9).to_string(),
            "the format version is 9, but this build reads only 1"
        );
        assert_eq!(
            FormatError::Field("records").to_string(),
            "the value of `records` is impossible here"
        );
    }
}
