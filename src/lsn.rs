//! Addresses: the [`Lsn`] that users see, and the byte position behind it.
//!
//! Every record has one address for life, a byte position in the log. Memory, mapping and file hold
//! the same bytes at the same offsets, so turning a position into a place is arithmetic, never a
//! table: that arithmetic is [`Geometry`].

use std::fmt;

/// Log sequence number: the address of one record, dense from 1, in commit order.
///
/// Once a record is durable its LSN names it for ever. `Lsn::ZERO` means *before the first record*.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// Before the first record: what a consumer that has processed nothing reports.
    pub const ZERO: Lsn = Lsn(0);
    /// The first record of every log.
    pub const FIRST: Lsn = Lsn(1);

    /// The LSN with this number.
    #[must_use]
    pub const fn new(number: u64) -> Lsn {
        Lsn(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The LSN after this one.
    #[must_use]
    pub const fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }

    /// The LSN before this one; `ZERO` stays `ZERO`.
    #[must_use]
    pub const fn previous(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({})", self.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Lsn> for u64 {
    fn from(lsn: Lsn) -> u64 {
        lsn.0
    }
}

/// How positions map to slabs and segments. A position is a byte address in the log: a multiple of
/// 8, never reused, `slab = position / slab_bytes`, `segment = position / segment_bytes`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    pub(crate) slab_bytes: u64,
    pub(crate) segment_bytes: u64,
    /// Header page at the start of a segment; 0 in memory.
    pub(crate) head_bytes: u64,
    /// Reserved at the end of a segment: the ROLLED block's page and the footer; 0 in memory.
    pub(crate) tail_bytes: u64,
    /// Blocks start and end on multiples of this.
    pub(crate) align_bytes: u64,
}

impl Geometry {
    pub(crate) fn slab_of(&self, position: u64) -> u64 {
        position / self.slab_bytes
    }

    pub(crate) fn slab_offset(&self, position: u64) -> usize {
        (position % self.slab_bytes) as usize
    }

    pub(crate) fn slab_start(&self, slab: u64) -> u64 {
        slab * self.slab_bytes
    }

    pub(crate) fn segment_of(&self, position: u64) -> u64 {
        position / self.segment_bytes
    }

    pub(crate) fn segment_start(&self, segment: u64) -> u64 {
        segment * self.segment_bytes
    }

    pub(crate) fn segment_offset(&self, position: u64) -> u64 {
        position % self.segment_bytes
    }

    pub(crate) fn slabs_per_segment(&self) -> u64 {
        self.segment_bytes / self.slab_bytes
    }

    /// Offset in `slab` of the first byte that a block may take.
    pub(crate) fn first_block_offset(&self, slab: u64) -> usize {
        if slab.is_multiple_of(self.slabs_per_segment()) { self.head_bytes as usize } else { 0 }
    }

    /// Position of the first block of `slab`.
    pub(crate) fn first_block(&self, slab: u64) -> u64 {
        self.slab_start(slab) + self.first_block_offset(slab) as u64
    }

    /// Offset in `slab` at which its room for blocks ends.
    pub(crate) fn block_limit(&self, slab: u64) -> usize {
        let last = (slab + 1).is_multiple_of(self.slabs_per_segment());
        (self.slab_bytes - if last { self.tail_bytes } else { 0 }) as usize
    }

    /// Position of the page reserved for the block that closes `segment`.
    pub(crate) fn rolled_block(&self, segment: u64) -> u64 {
        self.segment_start(segment + 1) - self.tail_bytes
    }

    /// Position of the first block that could follow a slab's early end.
    pub(crate) fn next_slab(&self, position: u64) -> u64 {
        self.first_block(self.slab_of(position) + 1)
    }
}
