//! Walking a segment block by block, trusting nothing: what recovery and verification are made of.

use std::ops::Range;
use std::path::Path;

use crate::disk::{AlignedBuf, DiskFile};
use crate::error::{Error, Result};
use crate::format::{
    BLOCK_HEADER_BYTES, BlockFault, BlockHeader, Footer, FooterBuilder, KindSet, PAGE_BYTES,
    align_up, is_zero, looks_torn, read_record, verify_block,
};
use crate::lsn::Geometry;

/// What the next block must continue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    pub(crate) next_lsn: u64,
    pub(crate) crc: u32,
    pub(crate) time_nanos: u64,
}

impl Chain {
    pub(crate) fn start(first_lsn: u64) -> Chain {
        Chain { next_lsn: first_lsn, crc: 0, time_nanos: 0 }
    }

    /// Behind a sealed segment.
    pub(crate) fn behind(footer: &Footer) -> Chain {
        let (crc, time_nanos) = (footer.last_crc, footer.last_time_nanos);
        Chain { next_lsn: footer.last_lsn + 1, crc, time_nanos }
    }

    pub(crate) fn accepts(&self, header: &BlockHeader) -> bool {
        header.prev_crc == self.crc && header.first_lsn == self.next_lsn
    }

    pub(crate) fn follow(&mut self, header: &BlockHeader) {
        self.next_lsn += u64::from(header.records);
        self.crc = header.crc;
        self.time_nanos = self.time_nanos.max(header.time_nanos);
    }
}

/// How many times a slab's size the blocks that are checked in it may add up to.
const EFFORT_SLABS: u64 = 16;

/// Blocks do not overlap: whole or damaged, those of a slab add up to no more than the slab. Where
/// headers claim many times that, the file was forged, and is not checked over and over again.
pub(crate) struct Effort {
    left_bytes: u64,
}

impl Effort {
    /// For one slab.
    pub(crate) fn new(geometry: &Geometry) -> Effort {
        Effort { left_bytes: EFFORT_SLABS * geometry.slab_bytes }
    }

    /// As [`verify_block`]; `None` if too much was checked already.
    pub(crate) fn verify(
        &mut self,
        bytes: &[u8],
        position: u64,
        salt: u64,
    ) -> Option<Result<BlockHeader, BlockFault>> {
        let header = BlockHeader::read(bytes).filter(|h| (h.position, h.salt) == (position, salt));
        let framed = header.map_or(0, |header| header.framed_bytes());
        if framed <= bytes.len() {
            self.left_bytes = self.left_bytes.checked_sub(framed as u64)?;
        }
        Some(verify_block(bytes, position, salt))
    }
}

/// A segment file being walked.
pub(crate) struct Walker<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) number: u64,
    pub(crate) salt: u64,
    pub(crate) path: &'a Path,
    pub(crate) file: &'a dyn DiskFile,
    /// The segment's first slabs, or all of them, if they were read already.
    pub(crate) ahead: &'a [AlignedBuf],
}

/// What a walk found.
pub(crate) struct Walked {
    pub(crate) index: FooterBuilder,
    pub(crate) chain: Chain,
    pub(crate) records: u64,
    /// Offset in the segment behind the last good block.
    pub(crate) end: u64,
    /// The last good block says that the segment is complete.
    pub(crate) rolled: bool,
    /// The last good block has records, and no later one says that it is durable.
    pub(crate) unvouched: bool,
    /// Behind the last good block there is nothing but zeros.
    pub(crate) blank: bool,
}

/// What lies from a segment's first bad block on.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Rest {
    /// The largest watermark of a good block there: blocks below it were durable once.
    pub(crate) vouched: u64,
    /// The last LSN of a good block there.
    pub(crate) last_lsn: u64,
    pub(crate) good_blocks: u64,
    /// Bytes from the first to the last that is not zero.
    pub(crate) nonzero_bytes: u64,
}

impl Walker<'_> {
    fn start(&self) -> u64 {
        self.geometry.segment_start(self.number)
    }

    fn first_slab(&self) -> u64 {
        self.geometry.slab_of(self.start())
    }

    fn slabs(&self) -> Range<u64> {
        self.first_slab()..self.first_slab() + self.geometry.slabs_per_segment()
    }

    fn slab_buffer(&self) -> AlignedBuf {
        AlignedBuf::zeroed(self.geometry.slab_bytes as usize)
    }

    /// All slabs, for [`Walker::ahead`].
    pub(crate) fn read_ahead(&self) -> Result<Vec<AlignedBuf>> {
        let read = |slab| {
            let mut buffer = self.slab_buffer();
            self.read_slab(slab, &mut buffer).map(|()| buffer)
        };
        self.slabs().map(read).collect()
    }

    /// A slab's bytes: those read ahead, or read now, into the buffer.
    fn slab<'b>(&'b self, slab: u64, buffer: &'b mut AlignedBuf) -> Result<&'b [u8]> {
        if let Some(bytes) = self.ahead.get((slab - self.first_slab()) as usize) {
            return Ok(bytes);
        }
        self.read_slab(slab, buffer)?;
        Ok(buffer)
    }

    pub(crate) fn read_slab(&self, slab: u64, buffer: &mut AlignedBuf) -> Result<()> {
        let offset = self.geometry.segment_offset(self.geometry.slab_start(slab));
        let failed =
            |e| Error::io("cannot read a segment", self.path, e).at_segment(self.number, offset);
        let read = self.file.read_at(buffer, offset).map_err(failed)?;
        if read < buffer.len() {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    /// Walks from the first block to the first that is not the continuation of the one before.
    /// `each_slab` is given each slab that has blocks, up to where they end.
    ///
    /// A slab may end early: zeros up to its end are that exactly if the first block of the next
    /// slab (behind the last slab: the rolling block) continues the last good one.
    pub(crate) fn walk(
        &self,
        mut chain: Chain,
        mut each: impl FnMut(&BlockHeader, &[u8]),
        mut each_slab: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<Walked> {
        let geometry = self.geometry;
        let slabs = geometry.slabs_per_segment();
        let mut index =
            FooterBuilder::new(self.number, self.salt, slabs, geometry.slab_bytes, chain.next_lsn)
                .continuing(chain.crc);
        let first_lsn = chain.next_lsn;
        let mut end = geometry.head_bytes;
        let mut buffer = self.slab_buffer();
        let (mut rolled, mut unvouched, mut blank) = (false, false, false);
        for slab in self.slabs() {
            let buffer = self.slab(slab, &mut buffer)?;
            let base = geometry.slab_start(slab);
            let limit = geometry.block_limit(slab);
            let mut offset = geometry.first_block_offset(slab);
            while let Some(header) = self.good_block(&buffer[..limit], base, offset, &chain) {
                if header.is_rolled() {
                    break;
                }
                let framed = header.framed_bytes();
                let next = align_up((offset + framed) as u64, geometry.align_bytes) as usize;
                let start = geometry.segment_offset(header.position);
                end = start + (next - offset) as u64;
                let body = &buffer[offset + BLOCK_HEADER_BYTES..offset + framed];
                index.add_block(start as u32, end as u32, &header);
                index.add_kinds(kinds_of(body));
                chain.follow(&header);
                unvouched = header.records > 0;
                each(&header, body);
                offset = next;
            }
            if offset > geometry.first_block_offset(slab) {
                each_slab(slab, &buffer[..offset])?;
            }
            if !is_zero(&buffer[offset.min(limit)..limit]) {
                break;
            }
            if slab + 1 == self.slabs().end {
                let page = geometry.slab_offset(geometry.rolled_block(self.number));
                let page_end = page + PAGE_BYTES as usize;
                blank = is_zero(&buffer[page..page_end]);
                let last = self.good_block(&buffer[..page_end], base, page, &chain);
                if let Some(header) = last.filter(BlockHeader::is_rolled) {
                    index.set_rolled(header.crc);
                    chain.follow(&header);
                    rolled = true;
                }
            }
            // Zeros up to the end of the slab: the next one decides. If its first block does not
            // continue the chain, no later one does, and `end` stays where it is.
        }
        let records = chain.next_lsn - first_lsn;
        Ok(Walked { index, chain, records, end, rolled, unvouched, blank })
    }

    fn good_block(
        &self,
        bytes: &[u8],
        base: u64,
        offset: usize,
        chain: &Chain,
    ) -> Option<BlockHeader> {
        let rest = bytes.get(offset..)?;
        let header = verify_block(rest, base + offset as u64, self.salt).ok()?;
        chain.accepts(&header).then_some(header)
    }

    /// Looks at everything from offset `end` on, whatever its order. What is forged with headers
    /// that overlap vouches for everything.
    pub(crate) fn rest(&self, end: u64) -> Result<Rest> {
        let geometry = self.geometry;
        let mut rest = Rest::default();
        let mut buffer = self.slab_buffer();
        let mut nonzero: Option<(u64, u64)> = None;
        let from = self.start() + end;
        for slab in geometry.slab_of(from)..self.slabs().end {
            let buffer = self.slab(slab, &mut buffer)?;
            let base = geometry.slab_start(slab);
            let first = geometry.first_block_offset(slab) as u64;
            let reserved = geometry.rolled_block(self.number) + PAGE_BYTES;
            let stop = (reserved - base).min(geometry.slab_bytes) as usize;
            let mut offset = from.saturating_sub(base).max(first) as usize;
            let mut effort = Effort::new(geometry);
            while offset < stop {
                let page_end = (offset + PAGE_BYTES as usize).min(stop);
                if !is_zero(&buffer[offset..page_end]) {
                    let position = base + offset as u64;
                    let (begin, _) = *nonzero.get_or_insert((position, position));
                    nonzero = Some((begin, base + page_end as u64));
                    let checked = effort.verify(&buffer[offset..stop], position, self.salt);
                    if checked.is_none() {
                        rest.vouched = u64::MAX;
                        break;
                    }
                    if let Some(Ok(header)) = checked {
                        let last_lsn = header.first_lsn + u64::from(header.records) - 1;
                        rest.good_blocks += 1;
                        rest.vouched = rest.vouched.max(header.watermark);
                        rest.last_lsn = rest.last_lsn.max(last_lsn);
                    }
                }
                offset = page_end;
            }
        }
        rest.nonzero_bytes = nonzero.map_or(0, |(from, to)| to - from);
        Ok(rest)
    }

    /// Whether what follows offset `end` can be what a torn write left there.
    ///
    /// If the rest of the slab is zeros, the slab may have ended early, and then the torn block is
    /// the first of the next slab, or the rolling block. A whole block there means that the
    /// block at `end` was lost with all its sectors.
    pub(crate) fn looks_torn(&self, end: u64) -> Result<bool> {
        let geometry = self.geometry;
        let mut buffer = self.slab_buffer();
        let mut position = self.start() + end;
        loop {
            let slab = geometry.slab_of(position);
            if slab >= self.slabs().end {
                return Ok(true);
            }
            let buffer = self.slab(slab, &mut buffer)?;
            let offset = geometry.slab_offset(position);
            let rolled = position == geometry.rolled_block(self.number);
            let limit =
                if rolled { offset + PAGE_BYTES as usize } else { geometry.block_limit(slab) };
            let bytes = &buffer[offset..limit];
            if !is_zero(bytes) {
                let explained = verify_block(bytes, position, self.salt).is_ok()
                    && position > self.start() + end;
                return Ok(explained || looks_torn(bytes, position, self.salt));
            }
            position = match slab + 1 {
                _ if rolled => return Ok(true),
                next if next.is_multiple_of(geometry.slabs_per_segment()) => {
                    geometry.rolled_block(self.number)
                }
                next => geometry.first_block(next),
            };
        }
    }
}

pub(crate) fn kinds_of(body: &[u8]) -> KindSet {
    let mut kinds = KindSet::default();
    let mut offset = 0;
    while let Some((record, next)) = read_record(body, offset) {
        kinds.insert(record.kind);
        offset = next;
    }
    kinds
}
