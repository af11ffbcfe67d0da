//! The footer in the making, so that sealing a segment takes no second look at its blocks.

use super::{Footer, INDEX_STRIDE_BYTES, IndexEntry, KindSet};
use crate::format::block::BlockHeader;
use crate::format::{PAGE_BYTES, align_up};

/// The footer in the making: fed with each block as it is written, or walked by recovery.
#[derive(Clone, Debug, Default)]
pub(crate) struct FooterBuilder {
    /// Sound at any time, but for `torn`, which is not known before the end.
    footer: Footer,
    slab_bytes: u64,
    /// Where the last block ends in the segment, 0 without blocks.
    end: u32,
}

impl FooterBuilder {
    /// Of a segment without blocks. `first_lsn` is that of the next record to come.
    pub(crate) fn new(
        number: u64,
        salt: u64,
        slabs_in_segment: u64,
        slab_bytes: u64,
        first_lsn: u64,
    ) -> FooterBuilder {
        let footer = Footer {
            number,
            salt,
            slab_ends: vec![0; slabs_in_segment as usize],
            first_lsn,
            last_lsn: first_lsn.saturating_sub(1),
            ..Footer::default()
        };
        FooterBuilder { footer, slab_bytes, end: 0 }
    }

    /// Set the checksum that a first block would chain to. It matters to a segment that is sealed
    /// without a block of its own, which passes the chain on.
    pub(crate) fn continuing(mut self, prev_crc: u32) -> FooterBuilder {
        self.footer.last_crc = prev_crc;
        self
    }

    /// Take in the block, not ROLLED, in bytes `offset..end` of the segment, padding included.
    ///
    /// The caller has verified it: it follows the last one in the same or a later slab, spans no
    /// slabs, and continues the LSNs. Panics otherwise.
    pub(crate) fn add_block(&mut self, offset: u32, end: u32, header: &BlockHeader) {
        let padded_bytes = align_up(header.framed_bytes() as u64, PAGE_BYTES);
        assert!(offset >= self.end() && u64::from(offset) % PAGE_BYTES == 0);
        assert_eq!(u64::from(offset) + padded_bytes, u64::from(end));
        assert!(!header.is_rolled(), "a ROLLED block is not among the data");
        let slab = u64::from(offset) / self.slab_bytes;
        let slab_end = u64::from(end) - slab * self.slab_bytes;
        assert!(slab_end <= self.slab_bytes, "a block spans slabs");

        let footer = &mut self.footer;
        footer.slab_ends[slab as usize] = slab_end as u32;
        if self.end == 0 {
            footer.first_time_nanos = header.time_nanos;
        }
        footer.last_time_nanos = footer.last_time_nanos.max(header.time_nanos);
        footer.last_crc = header.crc;
        self.end = end;
        if header.records == 0 {
            return;
        }
        assert_eq!(header.first_lsn, footer.last_lsn + 1, "LSNs must be consecutive");
        let far = |last: &IndexEntry| u64::from(offset - last.offset) >= INDEX_STRIDE_BYTES;
        if footer.index.last().is_none_or(far) {
            footer.index.push(IndexEntry {
                lsn: header.first_lsn,
                // Of times that run backwards the latest: entries must be sorted.
                time_nanos: footer.last_time_nanos,
                offset,
            });
        }
        footer.records += u64::from(header.records);
        footer.last_lsn += u64::from(header.records);
    }

    /// Take in the ROLLED block: it ends the chain here, but is not among the data.
    pub(crate) fn set_rolled(&mut self, crc: u32) {
        self.footer.last_crc = crc;
    }

    /// Take in the kinds of records in the blocks added.
    pub(crate) fn add_kinds(&mut self, kinds: KindSet) {
        self.footer.kinds.merge(kinds);
    }

    /// The index so far, so that a segment can be sought before it is sealed.
    pub(crate) fn entries(&self) -> &[IndexEntry] {
        &self.footer.index
    }

    /// Where the last block ends in the segment; without blocks, where the first will start.
    pub(crate) fn end(&self) -> u32 {
        self.end.max(PAGE_BYTES as u32)
    }

    /// The footer of what was added. `torn`: the bytes behind it are a torn tail.
    pub(crate) fn finish(&self, torn: bool) -> Footer {
        Footer { torn, ..self.footer.clone() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::format::footer::footer_bytes;
    use crate::format::footer::tests::{NUMBER, SALT, decode, decode_as};
    use proptest::prelude::*;

    pub(in crate::format::footer) const SLAB_BYTES: u64 = 1 << 18;
    pub(in crate::format::footer) const SEGMENT_BYTES: u64 = 1 << 20;

    pub(in crate::format::footer) fn builder(first_lsn: u64) -> FooterBuilder {
        let slabs = SEGMENT_BYTES / SLAB_BYTES;
        FooterBuilder::new(NUMBER, SALT, slabs, SLAB_BYTES, first_lsn)
    }

    pub(in crate::format::footer) fn header(
        pages: u32,
        records: u32,
        first_lsn: u64,
        time_nanos: u64,
    ) -> BlockHeader {
        let body_bytes = pages * 4096 - 64;
        BlockHeader { crc: 7, body_bytes, records, first_lsn, time_nanos, ..Default::default() }
    }

    /// Blocks of one page and ten records in slabs 0, 1 and 3; only slab 1 is full.
    pub(in crate::format::footer) fn filled() -> FooterBuilder {
        let mut builder = builder(1000);
        let mut lsn = 1000;
        for page in (1..60).chain(64..128).chain(192..250) {
            let time_nanos = 5000 + u64::from(page) / 20;
            let header = BlockHeader { crc: page, ..header(1, 10, lsn, time_nanos) };
            builder.add_block(page * 4096, (page + 1) * 4096, &header);
            lsn += 10;
        }
        let mut kinds = KindSet::default();
        kinds.insert(3);
        kinds.insert(255);
        builder.add_kinds(kinds);
        builder
    }

    #[test]
    fn the_builder_lists_where_slabs_end_and_what_they_hold() {
        let footer = filled().finish(false);
        assert_eq!(footer.slab_ends, [60 * 4096, 64 * 4096, 0, 58 * 4096]);
        assert_eq!((footer.first_lsn, footer.last_lsn, footer.records), (1000, 2809, 1810));
        assert_eq!((footer.first_time_nanos, footer.last_time_nanos), (5000, 5012));
        assert_eq!(footer.last_crc, 249);
        let pages: Vec<_> = footer.index.iter().map(|entry| entry.offset / 4096).collect();
        assert_eq!(pages, [1, 17, 33, 49, 65, 81, 97, 113, 192, 208, 224, 240]);
    }

    #[test]
    fn blocks_without_records_move_the_end_and_nothing_else() {
        let mut builder = builder(5);
        assert_eq!(builder.end(), 4096);
        builder.add_block(4096, 8192, &header(1, 0, 5, 70));
        assert_eq!((builder.end(), builder.entries()), (8192, &[][..]));
        builder.add_block(8192, 12288, &header(1, 2, 5, 80));
        builder.set_rolled(1234);
        let footer = builder.finish(false);
        assert_eq!(builder.entries(), [IndexEntry { lsn: 5, time_nanos: 80, offset: 8192 }]);
        assert_eq!((footer.records, footer.last_lsn, footer.last_crc), (2, 6, 1234));
        assert_eq!((footer.first_time_nanos, footer.last_time_nanos), (70, 80));
        assert_eq!(footer.slab_ends, [12288, 0, 0, 0]);
    }

    #[test]
    fn times_that_run_backwards_leave_the_index_sorted() {
        let mut builder = builder(5);
        builder.add_block(4096, 8192, &header(1, 1, 5, 70));
        builder.add_block(20 * 4096, 21 * 4096, &header(1, 1, 6, 60));
        let footer = builder.finish(false);
        assert_eq!(footer.index.last().map(|entry| entry.time_nanos), Some(70));
        assert_eq!(decode(&footer.encode(SEGMENT_BYTES)), Ok(Some(footer)));
    }

    #[test]
    #[should_panic(expected = "LSNs must be consecutive")]
    fn a_gap_is_not_indexed() {
        builder(5).add_block(4096, 8192, &header(1, 1, 6, 0));
    }

    #[test]
    #[should_panic(expected = "a block spans slabs")]
    fn a_block_across_slabs_is_not_indexed() {
        builder(5).add_block(63 * 4096, 65 * 4096, &header(2, 1, 5, 0));
    }

    #[test]
    fn the_fullest_index_fits() {
        for slab_bytes in [SLAB_BYTES, 64 << 10] {
            let slabs = SEGMENT_BYTES / slab_bytes;
            let mut builder = FooterBuilder::new(NUMBER, SALT, slabs, slab_bytes, 1);
            let last_page = ((SEGMENT_BYTES - footer_bytes(SEGMENT_BYTES)) / 4096 - 1) as u32;
            for page in 1..last_page {
                let header = header(1, 1, u64::from(page), 0);
                builder.add_block(page * 4096, (page + 1) * 4096, &header);
            }
            let footer = builder.finish(false);
            assert_eq!(footer.index.len(), 16);
            let decoded = decode_as(&footer.encode(SEGMENT_BYTES), slab_bytes);
            assert_eq!(decoded, Ok(Some(footer)));
        }
    }

    proptest! {
        #[test]
        fn seeking_agrees_with_a_walk(
            blocks in proptest::collection::vec((1..20u32, 0..4u32, 0..3u64), 0..15),
            lsn in 995..1040u64,
            nanos in 0..45u64,
        ) {
            let (mut builder, mut time_nanos) = (builder(1000), 0);
            let mut walked: Vec<(u64, u64, u32)> = Vec::new();
            for (pages, records, passed_nanos) in blocks {
                let slab_left = 64 - builder.end() / 4096 % 64;
                let skipped = if pages > slab_left { slab_left } else { 0 };
                let offset = builder.end() + skipped * 4096;
                time_nanos += passed_nanos;
                let next = builder.finish(false).last_lsn + 1;
                let header = header(pages, records, next, time_nanos);
                builder.add_block(offset, offset + pages * 4096, &header);
                walked.extend((0..u64::from(records)).map(|i| (next + i, time_nanos, offset)));
            }
            let footer = builder.finish(false);
            prop_assert_eq!(footer.records, walked.len() as u64);
            let region = footer.encode(1 << 23);
            prop_assert_eq!(decode(&region), Ok(Some(footer.clone())));

            let wanted = walked.iter().find(|record| record.0 == lsn);
            if let Some((.., offset)) = wanted {
                let found = footer.seek_lsn(lsn).expect("is in the segment").offset;
                prop_assert!(found <= *offset && offset - found < 64 * 1024);
            }
            prop_assert!(lsn >= 1000 || footer.seek_lsn(lsn).is_none());
            let wanted = walked.iter().find(|record| record.1 >= nanos);
            if let Some((.., offset)) = wanted {
                prop_assert!(footer.seek_time(nanos).expect("has records").offset <= *offset);
            }
            prop_assert_eq!(footer.seek_time(nanos).is_none(), walked.is_empty());
        }
    }
}
