//! One contiguous reservation of address space from which all slabs are cut.
//!
//! One mapping for all of them, because separately mapped slabs of equal alignment fall into the
//! same cache sets. The part for the ring is touched at the start; the rest, for slabs that
//! consumers pin, costs memory only while it is used.

use std::io;
use std::ptr::{self, NonNull};

use crate::error::{Error, ErrorKind, Result};

const HUGE_PAGE_BYTES: usize = 2 << 20;

#[derive(Debug)]
pub(crate) struct Arena {
    /// What mmap gave.
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    /// Rounded up to a huge page.
    base: NonNull<u8>,
    slab_bytes: usize,
    slabs: usize,
    /// The first so many stay in memory for good; the rest comes and goes.
    resident: usize,
}

// SAFETY: the arena only hands out addresses; who may touch the bytes behind them is decided by
// the holders of slabs (see `Slab`).
unsafe impl Send for Arena {}
// SAFETY: as above; no method touches the bytes through `&self` except `give_back`, whose caller
// owns the slab.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves `slabs` slabs and faults in the first `prefault` of them.
    pub(crate) fn new(slabs: usize, slab_bytes: usize, prefault: usize) -> Result<Arena> {
        let refused = |source: io::Error| {
            Error::new(ErrorKind::Io, format!("cannot reserve {slabs} slabs of {slab_bytes} bytes"))
                .because(source)
        };
        let mapping_bytes = slabs
            .checked_mul(slab_bytes)
            .and_then(|n| n.checked_add(HUGE_PAGE_BYTES))
            .ok_or_else(|| refused(io::ErrorKind::OutOfMemory.into()))?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapping_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(refused(io::Error::last_os_error()));
        }
        let mapping = NonNull::new(mapping.cast::<u8>())
            .ok_or_else(|| refused(io::ErrorKind::OutOfMemory.into()))?;
        let skip = mapping.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: `skip` is less than a huge page, and the mapping has that much to spare.
        let base = unsafe { mapping.add(skip) };
        let resident = prefault.min(slabs);
        let arena = Arena { mapping, mapping_bytes, base, slab_bytes, slabs, resident };
        // SAFETY: the range lies inside the mapping. Both calls are advice: where they are refused,
        // the pages come one by one on first touch.
        unsafe {
            let bytes = resident * slab_bytes;
            libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
            libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE);
        }
        Ok(arena)
    }

    pub(crate) fn slabs(&self) -> usize {
        self.slabs
    }

    /// How many stay in memory for good.
    pub(crate) fn resident_slabs(&self) -> usize {
        self.resident
    }

    pub(crate) fn slab_bytes(&self) -> usize {
        self.slab_bytes
    }

    /// Whether the slab's memory is only lent by the system while it is used.
    pub(crate) fn is_spare(&self, index: usize) -> bool {
        index >= self.resident
    }

    /// Address and length of the part that stays in memory.
    pub(crate) fn resident(&self) -> (*const u8, usize) {
        (self.base.as_ptr(), self.resident * self.slab_bytes)
    }

    pub(crate) fn base(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.slabs, "slab {index} of an arena of {}", self.slabs);
        // SAFETY: the index was just checked, so the result stays inside the mapping.
        unsafe { self.base.add(index * self.slab_bytes) }
    }

    /// Returns the memory of a slab to the system; its address stays and reads zeros.
    ///
    /// # Safety
    /// Nobody reads or writes the slab during the call.
    pub(crate) unsafe fn give_back(&self, index: usize) {
        debug_assert!(self.is_spare(index), "the kernel may hold this slab's pages");
        // SAFETY: the range is one slab of this mapping, owned by the caller.
        unsafe {
            libc::madvise(self.base(index).as_ptr().cast(), self.slab_bytes, libc::MADV_DONTNEED);
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; every slab holds an Arc of the arena, so none
        // is left.
        unsafe {
            libc::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes);
        }
    }
}
