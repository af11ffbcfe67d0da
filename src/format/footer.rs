//! The footer of a sealed segment: what is in it and where.
//!
//! It has a fixed region at the end of the file, all zeros until the segment is sealed. Its
//! presence is the seal.
//!
//! ```text
//!  offset  bytes  field
//!       0     32  envelope          magic "EVPLFOOT", crc over the whole region, feature bits
//!      32      8  number            of the segment
//!      40      8  salt              of the segment, see `SegmentHeader::salt`
//!      48      4  flags             bit 0 TORN: recovery sealed over a torn tail
//!      52      4  last_crc          crc of the last block, ROLLED included: the next one chains
//!                                   to it
//!      56      4  slabs             how many slab ends follow
//!      60      4  entries           how many index entries follow those
//!      64      8  first_lsn         of the first record; without records, of the next to come
//!      72      8  records           so the last LSN is first_lsn + records - 1
//!      80      8  first_time_nanos  of the first block, 0 without blocks
//!      88      8  last_time_nanos   of the last block but ROLLED, 0 without blocks
//!      96     32  kinds             bit (kind mod 256) of every kind present
//!     128    4*s  slab ends         s = slabs: offset in the slab where its blocks end, 0 if none
//! 128+4*s   24*e  index             e = entries, as below
//!                 zeros             up to the end of the region
//!
//!  offset  bytes  index entry
//!       0      8  lsn               of the block's first record
//!       8      8  time_nanos        of the block
//!      16      4  offset            of the block in the segment
//!      20      4  zeros
//! ```
//!
//! The index has an entry for the first block with records, then for each that starts 64 KiB or
//! more behind the last one that has. Watermark blocks have none: nothing is ever sought there.

mod builder;

pub(crate) use builder::FooterBuilder;

use super::{
    Envelope, FormatError, PAGE, PAGE_BYTES, align_up, check_lsns, get_u32, get_u64, is_zero,
    put_u32, put_u64,
};

/// Blocks closer than this to the last index entry get none of their own.
pub(crate) const INDEX_STRIDE_BYTES: u64 = 64 * 1024;

const MAGIC: [u8; 8] = *b"EVPLFOOT";
const FLAG_TORN: u32 = 1;
const HEAD_BYTES: usize = 128;
const SLAB_END_BYTES: usize = 4;
const ENTRY_BYTES: usize = 24;

/// Size of the region: room for one slab end and one index entry each 64 KiB, in whole pages.
pub(crate) const fn footer_bytes(segment_bytes: u64) -> u64 {
    let each_bytes = (SLAB_END_BYTES + ENTRY_BYTES) as u64;
    align_up(HEAD_BYTES as u64 + segment_bytes / INDEX_STRIDE_BYTES * each_bytes, PAGE_BYTES)
}

/// Where a block with records starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IndexEntry {
    /// LSN of the block's first record.
    pub lsn: u64,
    /// The block's time.
    pub time_nanos: u64,
    /// Offset of the block in its segment.
    pub offset: u32,
}

impl IndexEntry {
    fn write(&self, out: &mut [u8]) {
        put_u64(out, 0, self.lsn);
        put_u64(out, 8, self.time_nanos);
        put_u32(out, 16, self.offset);
    }

    fn read(bytes: &[u8; ENTRY_BYTES]) -> Option<IndexEntry> {
        Some(IndexEntry {
            lsn: get_u64(bytes, 0)?,
            time_nanos: get_u64(bytes, 8)?,
            offset: get_u32(bytes, 16)?,
        })
    }
}

/// The last entry from which a walk reaches the record `lsn`; `None` if it lies before all.
pub(crate) fn seek_lsn(index: &[IndexEntry], lsn: u64) -> Option<&IndexEntry> {
    index[..index.partition_point(|entry| entry.lsn <= lsn)].last()
}

/// The last entry from which a walk reaches the first record not older than `nanos`. Times
/// repeat, so that is one strictly older, or the first of all; `None` if there are no entries.
pub(crate) fn seek_time(index: &[IndexEntry], nanos: u64) -> Option<&IndexEntry> {
    let older = index.partition_point(|entry| entry.time_nanos < nanos);
    index[..older].last().or(index.first())
}

/// The kinds of record present, taken modulo 256: it may contain more than were inserted, never
/// fewer. So "not here" skips a segment for a filter, and "here" promises nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct KindSet([u64; 4]);

impl KindSet {
    #[inline]
    pub(crate) fn insert(&mut self, kind: u16) {
        let (word, bit) = Self::place(kind);
        self.0[word] |= bit;
    }

    #[cfg(test)]
    pub(crate) fn may_contain(&self, kind: u16) -> bool {
        let (word, bit) = Self::place(kind);
        self.0[word] & bit != 0
    }

    pub(crate) fn merge(&mut self, other: KindSet) {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
    }

    const fn place(kind: u16) -> (usize, u64) {
        ((kind % 256 / 64) as usize, 1 << (kind % 64))
    }
}

/// What a sealed segment holds, as drawn in the module documentation.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Footer {
    pub number: u64,
    pub salt: u64,
    /// Recovery sealed over a torn tail: behind the last listed end, bytes need not be zero.
    pub torn: bool,
    /// For each slab of the segment, the offset in it where its blocks end; 0: no block in it.
    pub slab_ends: Vec<u32>,
    pub first_lsn: u64,
    /// `first_lsn - 1` without records.
    pub last_lsn: u64,
    pub records: u64,
    /// Of the first block, 0 without blocks.
    pub first_time_nanos: u64,
    /// Of the last block but ROLLED, 0 without blocks.
    pub last_time_nanos: u64,
    pub kinds: KindSet,
    /// Of the last block, ROLLED included: the next segment's first block chains to it.
    pub last_crc: u32,
    pub index: Vec<IndexEntry>,
}

impl Footer {
    /// The region as it goes to disk. Panics on a footer that [`decode`](Self::decode) would
    /// refuse, or that does not fit: no such footer may seal a segment.
    pub(crate) fn encode(&self, segment_bytes: u64) -> Vec<u8> {
        assert_eq!(self.check(), Ok(()), "impossible footer of segment {}", self.number);
        let entries_max = segment_bytes / INDEX_STRIDE_BYTES;
        assert!(self.slab_ends.len() as u64 <= entries_max, "more slabs than there is room for");
        assert!(self.index.len() as u64 <= entries_max, "more entries than there is room for");

        let mut region = vec![0; footer_bytes(segment_bytes) as usize];
        put_u64(&mut region, 32, self.number);
        put_u64(&mut region, 40, self.salt);
        put_u32(&mut region, 48, if self.torn { FLAG_TORN } else { 0 });
        put_u32(&mut region, 52, self.last_crc);
        put_u32(&mut region, 56, self.slab_ends.len() as u32);
        put_u32(&mut region, 60, self.index.len() as u32);
        put_u64(&mut region, 64, self.first_lsn);
        put_u64(&mut region, 72, self.records);
        put_u64(&mut region, 80, self.first_time_nanos);
        put_u64(&mut region, 88, self.last_time_nanos);
        for (i, word) in self.kinds.0.iter().enumerate() {
            put_u64(&mut region, 96 + 8 * i, *word);
        }
        let (ends, index) =
            region[HEAD_BYTES..].split_at_mut(self.slab_ends.len() * SLAB_END_BYTES);
        for (out, end) in ends.chunks_exact_mut(SLAB_END_BYTES).zip(&self.slab_ends) {
            put_u32(out, 0, *end);
        }
        for (out, entry) in index.chunks_exact_mut(ENTRY_BYTES).zip(&self.index) {
            entry.write(out);
        }
        Envelope::seal(&mut region, MAGIC, 0, 0);
        region
    }

    /// The footer of segment `number` in its region; `None` while the segment is not sealed.
    /// `sizes`: of a slab and of a segment.
    pub(crate) fn decode(
        region: &[u8],
        (number, salt): (u64, u64),
        sizes: (u64, u64),
    ) -> Result<Option<Footer>, FormatError> {
        if region.len() < PAGE {
            return Err(FormatError::Truncated);
        }
        if is_zero(region) {
            return Ok(None);
        }
        Envelope::open(region, MAGIC)?;
        let footer = Self::read(region).ok_or(FormatError::Truncated)?;
        if footer.number != number {
            return Err(FormatError::Field("number"));
        }
        if footer.salt != salt {
            return Err(FormatError::Field("salt"));
        }
        if get_u32(region, 48).is_none_or(|flags| flags & !FLAG_TORN != 0) {
            return Err(FormatError::Field("flags"));
        }
        footer.check()?;
        ensure(check_lsns(footer.first_lsn, footer.records), "records")?;
        footer.check_places(sizes)?;
        Ok(Some(footer))
    }

    /// The fields as they stand; `None` where the counts exceed the region. What is allocated is
    /// the size of the bytes that back it.
    fn read(region: &[u8]) -> Option<Footer> {
        let (head, rest) = region.split_first_chunk::<HEAD_BYTES>()?;
        let (slabs, entries) = (get_u32(head, 56)? as usize, get_u32(head, 60)? as usize);
        let (ends, rest) = rest.split_at_checked(slabs * SLAB_END_BYTES)?;
        let (entries, _) = rest.get(..entries * ENTRY_BYTES)?.as_chunks::<ENTRY_BYTES>();
        let (ends, _) = ends.as_chunks::<SLAB_END_BYTES>();

        let mut index = Vec::with_capacity(entries.len());
        for entry in entries {
            index.push(IndexEntry::read(entry)?);
        }
        let (first_lsn, records) = (get_u64(head, 64)?, get_u64(head, 72)?);
        Some(Footer {
            number: get_u64(head, 32)?,
            salt: get_u64(head, 40)?,
            torn: get_u32(head, 48)? & FLAG_TORN != 0,
            slab_ends: ends.iter().copied().map(u32::from_le_bytes).collect(),
            first_lsn,
            // Wrapped or not, `check` compares it with the other two.
            last_lsn: first_lsn.wrapping_add(records).wrapping_sub(1),
            records,
            first_time_nanos: get_u64(head, 80)?,
            last_time_nanos: get_u64(head, 88)?,
            kinds: KindSet([
                get_u64(head, 96)?,
                get_u64(head, 104)?,
                get_u64(head, 112)?,
                get_u64(head, 120)?,
            ]),
            last_crc: get_u32(head, 52)?,
            index,
        })
    }

    /// Whether the fields go together. Asked before writing and after reading.
    fn check(&self) -> Result<(), FormatError> {
        let is_page = |offset: u32| u64::from(offset) % PAGE_BYTES == 0;
        let first_lsn = self.first_lsn;
        ensure(first_lsn > 0, "first_lsn")?;
        let end_lsn = first_lsn.checked_add(self.records);
        ensure(end_lsn.is_some_and(|end| end - 1 == self.last_lsn), "records")?;
        ensure(self.first_time_nanos <= self.last_time_nanos, "last_time_nanos")?;
        ensure(self.slab_ends.iter().all(|end| is_page(*end)), "slab_ends")?;

        // Without records there is no entry; else the first entry is the first record's block.
        let lsn_first = self.index.first().map(|entry| entry.lsn);
        ensure(lsn_first == (self.records > 0).then_some(first_lsn), "index lsn")?;
        ensure(self.index.is_sorted_by(|a, b| a.lsn < b.lsn), "index lsn")?;
        ensure(self.index.is_sorted_by(|a, b| a.offset < b.offset), "index offset")?;
        ensure(self.index.is_sorted_by_key(|entry| entry.time_nanos), "index time")?;
        let times = self.first_time_nanos..=self.last_time_nanos;
        for entry in &self.index {
            ensure(entry.lsn <= self.last_lsn, "index lsn")?;
            ensure(entry.offset > 0 && is_page(entry.offset), "index offset")?;
            ensure(times.contains(&entry.time_nanos), "index time")?;
        }
        Ok(())
    }

    /// Whether everything lies in a segment of these sizes.
    fn check_places(&self, (slab_bytes, segment_bytes): (u64, u64)) -> Result<(), FormatError> {
        let is_within = |end: &u32| u64::from(*end) <= slab_bytes;
        ensure(self.slab_ends.len() as u64 == segment_bytes / slab_bytes, "slabs")?;
        ensure(self.slab_ends.iter().all(is_within), "slab_ends")?;
        ensure(self.index.len() as u64 <= segment_bytes / INDEX_STRIDE_BYTES, "entries")?;
        let last = self.index.last().map_or(0, |entry| u64::from(entry.offset));
        ensure(last < segment_bytes, "index offset")
    }

    /// Where the blocks of the slab with offset `at` end, as an offset in the segment.
    pub(crate) fn slab_end(&self, at: u64, slab_bytes: u64) -> u64 {
        let slab = at / slab_bytes;
        let end = self.slab_ends.get(slab as usize).copied().unwrap_or(0);
        slab * slab_bytes + u64::from(end)
    }

    /// See [`seek_lsn`].
    pub(crate) fn seek_lsn(&self, lsn: u64) -> Option<&IndexEntry> {
        seek_lsn(&self.index, lsn)
    }

    /// See [`seek_time`].
    pub(crate) fn seek_time(&self, nanos: u64) -> Option<&IndexEntry> {
        seek_time(&self.index, nanos)
    }
}

fn ensure(holds: bool, field: &'static str) -> Result<(), FormatError> {
    if holds { Ok(()) } else { Err(FormatError::Field(field)) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::builder::tests::{SEGMENT_BYTES, SLAB_BYTES, builder, filled, header};
    use super::*;
    use crate::format::put;
    use crate::format::tests::{for_each_bit_flip, resealed};
    use proptest::prelude::*;

    pub(super) const NUMBER: u64 = 42;
    pub(super) const SALT: u64 = 0x0123_4567_89AB_CDEF;

    pub(super) fn decode(region: &[u8]) -> Result<Option<Footer>, FormatError> {
        decode_as(region, SLAB_BYTES)
    }

    pub(super) fn decode_as(region: &[u8], slab_bytes: u64) -> Result<Option<Footer>, FormatError> {
        Footer::decode(region, (NUMBER, SALT), (slab_bytes, SEGMENT_BYTES))
    }

    #[test]
    fn the_region_has_room_for_every_segment() {
        assert_eq!(footer_bytes(128 << 10), 4096);
        assert_eq!(footer_bytes(1 << 20), 4096);
        assert_eq!(footer_bytes(16 << 20), 8192);
        assert_eq!(footer_bytes(1 << 32), align_up(128 + 65536 * 28, 4096));
    }

    #[test]
    fn round_trip() {
        for torn in [false, true] {
            let footer = filled().finish(torn);
            let region = footer.encode(SEGMENT_BYTES);
            assert_eq!(region.len() as u64, footer_bytes(SEGMENT_BYTES));
            assert_eq!(decode(&region), Ok(Some(footer)));
        }
        let empty = builder(1).continuing(99).finish(true);
        assert_eq!((empty.last_lsn, empty.last_crc), (0, 99));
        assert_eq!(decode(&empty.encode(SEGMENT_BYTES)), Ok(Some(empty)));
    }

    #[test]
    fn the_region_is_laid_out_as_drawn() {
        let mut builder = builder(7);
        builder.add_block(4096, 8192, &header(1, 3, 7, 55));
        builder.add_block(1 << 18, (1 << 18) + 4096, &header(1, 1, 10, 66));
        builder.set_rolled(0xDEAD_BEEF);
        let mut kinds = KindSet::default();
        kinds.insert(65);
        builder.add_kinds(kinds);
        let region = builder.finish(true).encode(SEGMENT_BYTES);
        assert_eq!(&region[..12], b"EVPLFOOT\x01\0\0\0");
        assert_eq!(&region[32..48], [NUMBER, SALT].map(u64::to_le_bytes).concat());
        assert_eq!(&region[48..64], b"\x01\0\0\0\xEF\xBE\xAD\xDE\x04\0\0\0\x02\0\0\0");
        assert_eq!(&region[64..128], [7, 4, 55, 66, 0, 2, 0, 0].map(u64::to_le_bytes).concat());
        assert_eq!(&region[128..144], [4096u64 << 32 | 8192, 0].map(u64::to_le_bytes).concat());
        assert_eq!(
            &region[144..192],
            [7, 55, 4096, 10, 66, 1 << 18].map(u64::to_le_bytes).concat()
        );
        assert!(is_zero(&region[192..]));
    }

    #[test]
    fn every_bit_flip_is_refused() {
        let region = filled().finish(false).encode(SEGMENT_BYTES);
        for_each_bit_flip(&region, |region| decode(region).is_err());
    }

    #[test]
    fn zeros_are_a_segment_that_is_not_sealed() {
        assert_eq!(decode(&[0; 4096]), Ok(None));
        assert_eq!(decode(&[0; 4095]), Err(FormatError::Truncated));
        let mut dirty = [0; 4096];
        dirty[4095] = 1;
        assert_eq!(decode(&dirty), Err(FormatError::Magic));
    }

    #[test]
    fn another_segments_footer_is_refused() {
        let region = filled().finish(false).encode(SEGMENT_BYTES);
        let decode = |id| Footer::decode(&region, id, (SLAB_BYTES, SEGMENT_BYTES));
        let refused = decode((NUMBER + 1, SALT));
        assert_eq!(refused, Err(FormatError::Field("number")));
        let refused = decode((NUMBER, !SALT));
        assert_eq!(refused, Err(FormatError::Field("salt")));
    }

    #[test]
    fn impossible_fields_are_refused_by_name() {
        let region = filled().finish(false).encode(SEGMENT_BYTES);
        let index = HEAD_BYTES + 4 * SLAB_END_BYTES;
        let cases = [
            (48, 2, "flags"),
            (64, 0, "first_lsn"),
            (64, 999, "index lsn"),
            (72, u64::MAX, "records"),
            (80, u64::MAX, "last_time_nanos"),
            (88, 5000, "index time"),
            (128, 1, "slab_ends"),
            (128, SLAB_BYTES + 4096, "slab_ends"),
            (index, 1001, "index lsn"),
            (index + 24, 1000, "index lsn"),
            (index + 11 * 24, 2810, "index lsn"),
            (index + 8, 9999, "index time"),
            (index + 16, 0, "index offset"),
            (index + 16, 100, "index offset"),
            (index + 24 + 16, 4096, "index offset"),
            (index + 16, 1 << 19, "index offset"),
            (index + 11 * 24 + 16, SEGMENT_BYTES, "index offset"),
        ];
        for (at, value, field) in cases {
            let mut odd = region.clone();
            put_u64(&mut odd, at, value);
            assert_eq!(decode(&resealed(odd, MAGIC)), Err(FormatError::Field(field)), "{at}");
        }
        for at in [56, 60] {
            let mut odd = region.clone();
            put(&mut odd, at, [0xFF; 4]);
            assert_eq!(decode(&resealed(odd, MAGIC)), Err(FormatError::Truncated));
        }
    }

    #[test]
    fn a_time_is_sought_from_the_last_entry_that_is_strictly_older() {
        let entry = |lsn, time_nanos| IndexEntry { lsn, time_nanos, offset: lsn as u32 * 4096 };
        let index = [entry(1, 5), entry(2, 5), entry(3, 7), entry(4, 7), entry(5, 9)];
        let lsn = |nanos| seek_time(&index, nanos).map(|entry| entry.lsn);
        // Records of an entry's own time may lie before it.
        assert_eq!([0, 5, 6, 7, 8, 9, 10].map(lsn), [1, 1, 2, 2, 4, 4, 5].map(Some));
        assert_eq!(seek_time(&[], 7), None);
        let lsn = |lsn| seek_lsn(&index[1..], lsn).map(|entry| entry.lsn);
        assert_eq!([1, 2, 3, 9].map(lsn), [None, Some(2), Some(3), Some(5)]);
    }

    #[test]
    fn slab_ends_are_places_in_the_segment() {
        let footer = filled().finish(false);
        let at = |at| footer.slab_end(at, SLAB_BYTES);
        assert_eq!(at(4096), 60 * 4096);
        assert_eq!(at(SLAB_BYTES - 1), 60 * 4096);
        assert_eq!(at(SLAB_BYTES), 2 * SLAB_BYTES);
        // Without a block it ends where it begins.
        assert_eq!(at(2 * SLAB_BYTES + 5), 2 * SLAB_BYTES);
        assert_eq!(at(3 * SLAB_BYTES), 3 * SLAB_BYTES + 58 * 4096);
    }

    #[test]
    fn a_footer_of_another_geometry_is_refused() {
        // Such a footer was accepted, although no segment of that size can have it.
        let region = filled().finish(false).encode(SEGMENT_BYTES);
        let decode = |sizes| Footer::decode(&region, (NUMBER, SALT), sizes).map(drop);
        assert_eq!(decode((SLAB_BYTES, SEGMENT_BYTES)), Ok(()));
        let slabs = Err(FormatError::Field("slabs"));
        assert_eq!(decode((SLAB_BYTES / 2, SEGMENT_BYTES)), slabs);
        assert_eq!(decode((SLAB_BYTES, 2 * SEGMENT_BYTES)), slabs);
        assert_eq!(
            decode((SLAB_BYTES / 4, SEGMENT_BYTES / 4)),
            Err(FormatError::Field("slab_ends"))
        );
        // 12 entries in a segment that has room for 8.
        let half = Footer { slab_ends: vec![4096; 4], ..filled().finish(false) };
        let region = half.encode(SEGMENT_BYTES);
        let refused = Footer::decode(&region, (NUMBER, SALT), (SLAB_BYTES / 2, SEGMENT_BYTES / 2));
        assert_eq!(refused, Err(FormatError::Field("entries")));
    }

    #[test]
    #[should_panic(expected = "impossible footer")]
    fn an_impossible_footer_is_not_written() {
        let mut footer = filled().finish(false);
        footer.records += 1;
        footer.encode(SEGMENT_BYTES);
    }

    #[test]
    fn kinds_are_a_superset() {
        let mut kinds = KindSet::default();
        for kind in [0, 63, 64, 300, u16::MAX] {
            assert!(!kinds.may_contain(kind));
            kinds.insert(kind);
            assert!(kinds.may_contain(kind));
        }
        assert!(kinds.may_contain(300 % 256) && kinds.may_contain(255));
        assert!(!kinds.may_contain(1) && !kinds.may_contain(127));
        let mut other = KindSet::default();
        other.insert(1);
        other.merge(kinds);
        assert!([0, 1, 63, 64, 300].iter().all(|kind| other.may_contain(*kind)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_allocate_no_more_than_they_are(
            mut region in proptest::collection::vec(any::<u8>(), 4096..4200),
            counts in (0..400u32, 0..200u32),
        ) {
            let _ = decode(&region);
            region = resealed(region, MAGIC);
            let _ = decode(&region);
            put_u32(&mut region, 56, counts.0);
            put_u32(&mut region, 60, counts.1);
            put_u64(&mut region, 32, NUMBER);
            put_u64(&mut region, 40, SALT);
            let _ = decode(&resealed(region.clone(), MAGIC));
            if let Some(footer) = Footer::read(&region) {
                let entries_bytes = footer.index.capacity() * size_of::<IndexEntry>();
                prop_assert!(entries_bytes + footer.slab_ends.capacity() * 4 <= region.len());
            }
        }
    }
}
