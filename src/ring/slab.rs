//! A slab: a run of log bytes in memory, at the same offsets as on disk.
//!
//! Who may touch which bytes (invariant I1):
//! - bytes below the committed position: everybody reads, nobody writes;
//! - bytes above it: only the holder of the append lock (records) and the committer (headers of
//!   closed blocks), each its own range, for as long as the call that asks for it.

use std::ptr::NonNull;
use std::sync::Arc;

use super::arena::Arena;
use crate::disk::StableBytes;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{CountedArc, Touched};

/// A reference to a slab: whether there is another one decides when its memory is used again.
pub(crate) type SlabArc = CountedArc<Slab>;

#[derive(Debug)]
pub(crate) struct Slab {
    /// Which slab of the log this memory holds now; changed only while nobody else has it.
    number: u64,
    /// Where its blocks end. Written once by the writer when it goes on to the next slab, before
    /// `committed` enters that one.
    end: AtomicU32,
    base: NonNull<u8>,
    bytes: usize,
    index: usize,
    arena: Arc<Arena>,
    touched: Touched,
}

// SAFETY: see the module's rules; all mutation through `&Slab` is in unsafe methods whose callers
// uphold them.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    pub(crate) fn new(arena: &Arc<Arena>, index: usize) -> Slab {
        Slab {
            number: 0,
            end: AtomicU32::new(0),
            base: arena.base(index),
            bytes: arena.slab_bytes(),
            index,
            arena: Arc::clone(arena),
            touched: Touched::new(),
        }
    }

    /// Makes this memory slab `number`. `&mut` proves that nobody reads it.
    pub(crate) fn renumber(&mut self, number: u64) {
        self.number = number;
        self.end = AtomicU32::new(self.bytes as u32);
    }

    /// Returns the memory to the system until it is used again.
    pub(crate) fn give_back(&mut self) {
        // SAFETY: `&mut self` proves that nobody else uses the slab.
        unsafe { self.arena.give_back(self.index) }
    }

    /// Whether its memory is only lent while it is used.
    pub(crate) fn is_spare(&self) -> bool {
        self.arena.is_spare(self.index)
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Release: a reader that sees `committed` beyond this slab sees the end.
    pub(crate) fn end_at(&self, offset: usize) {
        self.end.store(offset as u32, Ordering::Release);
    }

    /// How far the slab may be read when `committed` is the committed position.
    pub(crate) fn readable(&self, committed: u64) -> usize {
        let bytes = self.bytes as u64;
        match committed.checked_sub(self.number * bytes) {
            // Acquire: pairs with `end_at`, though `committed` already carries it.
            Some(within) if within >= bytes => self.end.load(Ordering::Acquire) as usize,
            Some(within) => within as usize,
            None => 0,
        }
    }

    /// The bytes up to `end`.
    ///
    /// # Safety
    /// `end` is at most what [`Slab::readable`] returned for a committed position that was loaded
    /// with Acquire: those bytes never change while the slab is referenced.
    pub(crate) unsafe fn bytes(&self, end: usize) -> &[u8] {
        // SAFETY: what was readable never changes, by the contract.
        unsafe { self.range(0, end) }
    }

    /// The bytes `from..to`.
    ///
    /// # Safety
    /// Nobody writes them while the slab is referenced.
    unsafe fn range(&self, from: usize, to: usize) -> &[u8] {
        debug_assert!(from <= to && to <= self.bytes);
        self.touched.read(from, to);
        // SAFETY: inside the arena, initialised (anonymous memory is), immutable by the contract.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(from), to - from) }
    }

    /// The bytes `from..to` for writing.
    ///
    /// # Safety
    /// The range lies above the committed position, and the caller is the only one entitled to it:
    /// the holder of the append lock for bytes not yet closed, the committer for closed blocks.
    #[allow(clippy::mut_from_ref)]
    #[inline]
    pub(crate) unsafe fn bytes_mut(&self, from: usize, to: usize) -> &mut [u8] {
        assert!(from <= to && to <= self.bytes);
        self.touched.write(from, to);
        // SAFETY: inside the arena (checked), exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(from), to - from) }
    }
}

/// A closed block on its way to the disk: keeps its slab alive until the kernel is done with it.
pub(crate) struct BlockBytes {
    slab: SlabArc,
    from: usize,
    to: usize,
}

impl BlockBytes {
    /// # Safety
    /// The block is closed and its header filled: nobody writes these bytes again.
    pub(crate) unsafe fn new(slab: SlabArc, from: usize, to: usize) -> BlockBytes {
        assert!(from <= to && to <= slab.bytes);
        BlockBytes { slab, from, to }
    }
}

// SAFETY: the address is that of the slab, which the Arc keeps; the bytes are immutable by the
// contract of `new`.
unsafe impl StableBytes for BlockBytes {
    fn bytes(&self) -> &[u8] {
        // SAFETY: closed block, immutable (contract of `new`), range checked there.
        unsafe { self.slab.range(self.from, self.to) }
    }
}
