//! The header page of a segment file.
//!
//! It is written when the segment is prepared, before anybody knows which records will come to
//! lie there, and never again. So it says whose file this is and how it is divided, not what is
//! in it; that is the footer's part.
//!
//! ```text
//!  offset  bytes  field
//!       0     32  envelope        magic "EVPLSEGM", crc over the 4096 bytes, feature bits
//!      32     16  log_id          of the log that the segment belongs to
//!      48      8  nonce           random, new for every file
//!      56      8  number          of the segment: position / segment_bytes
//!      64      8  slab_bytes      a power of two, at least 64 KiB
//!      72      8  segment_bytes   a power of two, at least two slabs, at most 4 GiB
//!      80      8  created_nanos   since the Unix epoch
//!      88   4008  zeros
//! ```

use super::{
    Envelope, FormatError, LogId, NUMBER_END, PAGE, check_sizes, get, get_u64, put, put_u64,
};

const MAGIC: [u8; 8] = *b"EVPLSEGM";

/// Whose file this is and how it is divided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    /// The log that the segment belongs to.
    pub log_id: LogId,
    /// Random, new for every file: bytes of an earlier file of this number are not ours.
    pub nonce: u64,
    /// Position of the file's first byte, divided by `segment_bytes`.
    pub number: u64,
    pub slab_bytes: u64,
    pub segment_bytes: u64,
    /// Nanoseconds since the Unix epoch.
    pub created_nanos: u64,
    /// Features that a reader must know.
    pub required: u64,
    /// Features that a reader may ignore.
    pub optional: u64,
}

impl SegmentHeader {
    /// The page as it goes to disk. Panics on sizes that [`decode`](Self::decode) would refuse.
    pub(crate) fn encode(&self) -> [u8; PAGE] {
        assert_eq!(check_sizes(self.slab_bytes, self.segment_bytes), Ok(()));
        let mut page = [0; PAGE];
        put(&mut page, 32, self.log_id.0);
        put_u64(&mut page, 48, self.nonce);
        put_u64(&mut page, 56, self.number);
        put_u64(&mut page, 64, self.slab_bytes);
        put_u64(&mut page, 72, self.segment_bytes);
        put_u64(&mut page, 80, self.created_nanos);
        Envelope::seal(&mut page, MAGIC, self.required, self.optional);
        page
    }

    /// The header in the first 4 KiB of a file. That it is the right log and number is for the
    /// caller to check, who knows both.
    pub(crate) fn decode(page: &[u8]) -> Result<Self, FormatError> {
        let page: &[u8; PAGE] = page.first_chunk().ok_or(FormatError::Truncated)?;
        let envelope = Envelope::open(page, MAGIC)?;
        let header = Self::read(page, &envelope).ok_or(FormatError::Truncated)?;
        check_sizes(header.slab_bytes, header.segment_bytes)?;
        if header.number >= NUMBER_END / header.segment_bytes {
            return Err(FormatError::Field("number"));
        }
        Ok(header)
    }

    fn read(page: &[u8; PAGE], envelope: &Envelope) -> Option<Self> {
        Some(SegmentHeader {
            log_id: LogId(get(page, 32)?),
            nonce: get_u64(page, 48)?,
            number: get_u64(page, 56)?,
            slab_bytes: get_u64(page, 64)?,
            segment_bytes: get_u64(page, 72)?,
            created_nanos: get_u64(page, 80)?,
            required: envelope.required,
            optional: envelope.optional,
        })
    }

    /// What every block and the footer of this very file carry, and no other bytes: a mix of log
    /// id, nonce and number. Never 0, so that zeros never carry it. Part of the format.
    pub(crate) fn salt(&self) -> u64 {
        let id = u128::from_le_bytes(self.log_id.0);
        [id as u64, (id >> 64) as u64, self.nonce, self.number]
            .into_iter()
            .fold(0, |salt, word| mix(salt ^ word))
            .max(1)
    }
}

/// SplitMix64: a bijection in which every bit of the input moves half the bits of the output.
const fn mix(word: u64) -> u64 {
    let z = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::{for_each_bit_flip, resealed};
    use crate::format::{FORMAT_VERSION, put_u16};
    use proptest::prelude::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            log_id: LogId(std::array::from_fn(|i| i as u8 + 1)),
            nonce: 0x1122_3344_5566_7788,
            number: 42,
            slab_bytes: 1 << 20,
            segment_bytes: 1 << 24,
            created_nanos: 1_700_000_000_123_456_789,
            required: 0,
            optional: 1 << 63,
        }
    }

    #[test]
    fn round_trip() {
        let page = header().encode();
        assert_eq!(SegmentHeader::decode(&page), Ok(header()));
        let file = [page.as_slice(), &[9; 100]].concat();
        assert_eq!(SegmentHeader::decode(&file), Ok(header()));
    }

    #[test]
    fn the_page_is_laid_out_as_drawn() {
        let page = header().encode();
        assert_eq!(&page[..8], b"EVPLSEGM");
        assert_eq!(&page[24..32], (1u64 << 63).to_le_bytes());
        assert_eq!(&page[32..48], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        let words = [0x1122_3344_5566_7788, 42, 1 << 20, 1 << 24, 1_700_000_000_123_456_789u64];
        assert_eq!(&page[48..88], words.map(u64::to_le_bytes).concat());
        assert_eq!(&page[88..], [0; 4008]);
    }

    #[test]
    fn every_bit_flip_is_refused() {
        for_each_bit_flip(&header().encode(), |page| SegmentHeader::decode(page).is_err());
    }

    #[test]
    fn a_newer_version_is_named_whatever_else_changed() {
        let mut page = [0xEE; PAGE];
        put(&mut page, 0, MAGIC);
        put_u16(&mut page, 8, FORMAT_VERSION + 1);
        assert_eq!(SegmentHeader::decode(&page), Err(FormatError::Version(2)));
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let page = header().encode();
        assert_eq!(SegmentHeader::decode(&page[..4095]), Err(FormatError::Truncated));
        assert_eq!(SegmentHeader::decode(&[0; PAGE]), Err(FormatError::Magic));
        let unknown = SegmentHeader { required: 6, ..header() }.encode();
        assert_eq!(SegmentHeader::decode(&unknown), Err(FormatError::RequiredFeatures(6)));
        let mut odd = page.to_vec();
        put_u64(&mut odd, 64, 100_000);
        let refused = SegmentHeader::decode(&resealed(odd, MAGIC));
        assert_eq!(refused, Err(FormatError::Field("slab_bytes")));
    }

    #[test]
    fn a_number_beyond_all_positions_is_refused() {
        // Its end, as a position, overflowed.
        let last = NUMBER_END / header().segment_bytes - 1;
        for (number, is_read) in [(last, true), (last + 1, false), (u64::MAX, false)] {
            let page = SegmentHeader { number, ..header() }.encode();
            assert_eq!(SegmentHeader::decode(&page).is_ok(), is_read, "{number}");
        }
    }

    #[test]
    fn the_salt_is_fixed_by_the_format() {
        assert_eq!(header().salt(), 0x3BA4_15CF_7944_220E);
    }

    #[test]
    fn the_salt_depends_on_id_nonce_and_number_alone() {
        let of = |change: fn(&mut SegmentHeader)| {
            let mut other = header();
            change(&mut other);
            other.salt()
        };
        let salt = header().salt();
        assert_eq!(of(|header| header.created_nanos += 1), salt);
        for changed in [
            of(|header| header.number += 1),
            of(|header| header.nonce += 1),
            of(|header| header.log_id.0[0] += 1),
            of(|header| header.log_id.0[15] += 1),
        ] {
            assert!((changed ^ salt).count_ones() > 16);
        }
    }

    #[test]
    fn the_salt_is_never_zero() {
        let bare =
            |nonce, number| SegmentHeader { log_id: LogId([0; 16]), nonce, number, ..header() };
        // The one number whose mix is 0: the word that the finaliser's first addition cancels.
        let before = mix(mix(mix(0)));
        let number = before ^ 0u64.wrapping_sub(0x9E37_79B9_7F4A_7C15);
        assert_eq!(mix(before ^ number), 0);
        assert_eq!(bare(0, number).salt(), 1);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), PAGE..PAGE + 9),
            keep in 0..PAGE,
        ) {
            let _ = SegmentHeader::decode(&bytes);
            let _ = SegmentHeader::decode(&bytes[..keep]);
            let _ = SegmentHeader::decode(&resealed(bytes[..PAGE].to_vec(), MAGIC));
        }
    }
}
