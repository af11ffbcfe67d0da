//! One segment, every page of it: stricter than recovery, and not stopped by the first bad block.
//!
//! Recovery needs to know where the good blocks end. Whoever looks for damage needs to know what is
//! wrong, what lies behind it, and whether anything is lost at all: a hole that the next good block
//! chains across held nothing but bytes that nobody reads.

use crate::disk::AlignedBuf;
use crate::error::Result;
use crate::format::{
    BLOCK_HEADER_BYTES, BlockHeader, FooterBuilder, PAGE_BYTES, is_zero, verify_block,
};
use crate::log::{Chain, Effort, Walker, kinds_of};

const PAGE: usize = PAGE_BYTES as usize;

/// Something wrong in a segment.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) what: String,
    /// Offset in the segment.
    pub(super) offset: u64,
    /// First and last LSN concerned; none if no record is.
    pub(super) lsns: Option<(u64, u64)>,
    /// Blocks are lost; else only bytes that should be zero are not.
    pub(super) loses: bool,
}

/// What a segment holds.
pub(super) struct Checked {
    /// Of the blocks up to the first loss.
    pub(super) index: FooterBuilder,
    /// Behind these.
    pub(super) chain: Chain,
    /// Offset behind these.
    pub(super) end: u64,
    /// Behind the last good block, losses or not.
    pub(super) last: Chain,
    pub(super) faults: Vec<Fault>,
    pub(super) blocks: u64,
    /// ROLLED is in its place and continues what is before it.
    pub(super) rolled: bool,
    /// The last good block has records, so no later one vouches for it.
    pub(super) unvouched: bool,
    /// Offset behind the last byte before the footer that is not zero.
    pub(super) used_end: u64,
}

impl Checked {
    /// Blocks are missing between good ones.
    pub(super) fn is_broken(&self) -> bool {
        self.faults.iter().any(|fault| fault.loses)
    }
}

/// Checks one segment.
pub(super) struct Checker<'a> {
    walker: &'a Walker<'a>,
    /// `None`: whatever the first block says.
    chain: Option<Chain>,
    /// Behind the last good block.
    at: u64,
    /// Since then, the first page that is not zero and starts no good block.
    nonzero: Option<u64>,
    broken: bool,
    /// Of the slab.
    effort: Effort,
    out: Checked,
}

impl<'a> Checker<'a> {
    /// `next_lsn` counts where `chain` is unknown and there is no block.
    pub(super) fn new(walker: &'a Walker<'a>, chain: Option<Chain>, next_lsn: u64) -> Checker<'a> {
        let geometry = walker.geometry;
        let start = chain.unwrap_or_else(|| Chain::start(next_lsn));
        let slabs = geometry.slabs_per_segment();
        let (number, salt) = (walker.number, walker.salt);
        let index = FooterBuilder::new(number, salt, slabs, geometry.slab_bytes, start.next_lsn)
            .continuing(start.crc);
        let out = Checked {
            index,
            chain: start,
            end: geometry.head_bytes,
            last: start,
            faults: Vec::new(),
            blocks: 0,
            rolled: false,
            unvouched: false,
            used_end: geometry.head_bytes,
        };
        let (at, effort) = (geometry.head_bytes, Effort::new(geometry));
        Checker { walker, chain, at, nonzero: None, broken: false, effort, out }
    }

    /// Reads the segment. `each` gets header and body of the good blocks before the first loss.
    pub(super) fn run(mut self, mut each: impl FnMut(&BlockHeader, &[u8])) -> Result<Checked> {
        let geometry = self.walker.geometry;
        let first = geometry.slab_of(geometry.segment_start(self.walker.number));
        let mut buffer = AlignedBuf::zeroed(geometry.slab_bytes as usize);
        for slab in first..first + geometry.slabs_per_segment() {
            self.walker.read_slab(slab, &mut buffer)?;
            let limit = geometry.block_limit(slab);
            let base = geometry.segment_offset(geometry.slab_start(slab));
            let mut offset = geometry.first_block_offset(slab);
            self.effort = Effort::new(geometry);
            while offset < limit {
                offset += self.step(&buffer[offset..limit], base + offset as u64, &mut each);
            }
        }
        let rolled = geometry.slab_offset(geometry.rolled_block(self.walker.number));
        self.rolled(&buffer[rolled..rolled + PAGE]);
        Ok(self.out)
    }

    fn position(&self, offset: u64) -> u64 {
        self.walker.geometry.segment_start(self.walker.number) + offset
    }

    /// Looks at `offset` of the segment, where a block may start; returns how far that went.
    fn step(
        &mut self,
        bytes: &[u8],
        offset: u64,
        each: &mut impl FnMut(&BlockHeader, &[u8]),
    ) -> usize {
        let (position, salt) = (self.position(offset), self.walker.salt);
        let Some(good) = self.effort.verify(bytes, position, salt) else {
            let from = *self.nonzero.get_or_insert(offset);
            self.lose(Some(from), None, "the headers of blocks overlap");
            self.out.used_end = offset + bytes.len() as u64;
            return bytes.len();
        };
        let Some(header) = good.ok().filter(|header| !header.is_rolled()) else {
            self.pass(bytes, offset);
            return PAGE;
        };
        let framed = header.framed_bytes();
        let padded = framed.next_multiple_of(PAGE);
        self.join(&header, offset);
        let body = &bytes[BLOCK_HEADER_BYTES..framed];
        let end = offset + padded as u64;
        if !self.broken {
            self.out.index.add_block(offset as u32, end as u32, &header);
            self.out.index.add_kinds(kinds_of(body));
            self.out.chain.follow(&header);
            self.out.end = end;
            each(&header, body);
        }
        self.out.last.follow(&header);
        self.chain = Some(self.out.last);
        self.out.blocks += 1;
        self.out.unvouched = header.records > 0;
        self.padding(&bytes[framed..padded], offset + framed as u64);
        (self.at, self.out.used_end) = (end, end);
        padded
    }

    /// A page that no good block starts at.
    fn pass(&mut self, bytes: &[u8], offset: u64) {
        if !is_zero(&bytes[..PAGE]) {
            self.nonzero.get_or_insert(offset);
            self.out.used_end = offset + PAGE_BYTES;
        }
    }

    /// A good block: does it continue the last one, whatever lies between?
    fn join(&mut self, header: &BlockHeader, offset: u64) {
        let nonzero = self.nonzero.take();
        let Some(chain) = self.chain else {
            // Nothing is known of what was before: this block is where knowledge begins.
            let begin = before(header);
            self.out.last = begin;
            if offset != self.at {
                let from = self.out.chain.next_lsn;
                let lost = (from < begin.next_lsn).then(|| (from, begin.next_lsn - 1));
                self.lose(nonzero, lost, "blocks are damaged");
                return;
            }
            self.out.chain = begin;
            self.out.index = FooterBuilder::new(
                self.walker.number,
                self.walker.salt,
                self.walker.geometry.slabs_per_segment(),
                self.walker.geometry.slab_bytes,
                header.first_lsn,
            )
            .continuing(header.prev_crc);
            return;
        };
        let due = self.is_due(offset);
        if chain.accepts(header) && due {
            if let Some(from) = nonzero {
                self.residue(from);
            }
            return;
        }
        let what = match nonzero {
            _ if chain.accepts(header) => "a block lies where none can follow the one before it",
            Some(_) => "a committed block is damaged",
            None if offset == self.at => "a block does not continue the one before it",
            None => "committed blocks are gone, there are zeros in their place",
        };
        let lost = header.first_lsn.checked_sub(1).filter(|&last| last >= chain.next_lsn);
        self.lose(nonzero, lost.map(|last| (chain.next_lsn, last)), what);
        self.out.last = before(header);
    }

    /// Whether a block that continues the last one may start here: right behind it or, if its slab
    /// ended early, at the start of a later one or in the reserved page. Nobody looks elsewhere.
    fn is_due(&self, offset: u64) -> bool {
        let geometry = self.walker.geometry;
        let rolled = geometry.segment_offset(geometry.rolled_block(self.walker.number));
        offset == self.at || offset == rolled || offset.is_multiple_of(geometry.slab_bytes)
    }

    fn lose(&mut self, nonzero: Option<u64>, lsns: Option<(u64, u64)>, what: &str) {
        // Where the next block was due: here, or behind an early end of the slab.
        let slab = |offset: u64| offset / self.walker.geometry.slab_bytes;
        let offset = nonzero.filter(|&at| slab(at) != slab(self.at)).unwrap_or(self.at);
        self.out.faults.push(Fault { what: what.into(), offset, lsns, loses: true });
        self.broken = true;
    }

    fn residue(&mut self, offset: u64) {
        let what = "bytes that should be zero are not".into();
        self.out.faults.push(Fault { what, offset, lsns: None, loses: false });
    }

    fn padding(&mut self, bytes: &[u8], offset: u64) {
        if let Some(first) = bytes.iter().position(|&byte| byte != 0) {
            self.residue(offset + first as u64);
        }
    }

    /// The page reserved for the block that closes the segment.
    fn rolled(&mut self, page: &[u8]) {
        let geometry = self.walker.geometry;
        let offset = geometry.segment_offset(geometry.rolled_block(self.walker.number));
        let good = verify_block(page, self.position(offset), self.walker.salt);
        let Some(header) = good.ok().filter(BlockHeader::is_rolled) else {
            self.pass(page, offset);
            return;
        };
        self.join(&header, offset);
        if !self.broken {
            self.out.index.set_rolled(header.crc);
            self.out.chain.follow(&header);
            self.out.rolled = true;
        }
        self.out.last.follow(&header);
        self.out.unvouched = false;
        self.out.blocks += 1;
        self.padding(&page[BLOCK_HEADER_BYTES..], offset + BLOCK_HEADER_BYTES as u64);
        self.out.used_end = offset + PAGE_BYTES;
    }
}

/// What this block continues, taken on its word.
pub(super) fn before(header: &BlockHeader) -> Chain {
    Chain { next_lsn: header.first_lsn, crc: header.prev_crc, time_nanos: 0 }
}

/// Checks one segment by itself; returns how many things are wrong with it.
#[cfg(feature = "testing")]
pub(crate) fn check_segment(
    walker: &Walker<'_>,
    chain: Chain,
    each: impl FnMut(&BlockHeader, &[u8]),
) -> Result<usize> {
    let checked = Checker::new(walker, Some(chain), chain.next_lsn).run(each)?;
    Ok(checked.faults.len())
}
