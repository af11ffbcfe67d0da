//! One contiguous reservation of address space from which all slabs are cut.
//!
//! One mapping for all of them, because separately mapped slabs of equal alignment fall into the
//! same cache sets. The part for the ring is touched at the start; where a log is opened, by a
//! thread of the arena's own, since the system may take longer to find the memory than the disk
//! takes to be read. The rest, for slabs that consumers pin, costs memory only while it is used.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

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
    toucher: Mutex<Option<Toucher>>,
}

/// A thread that faults in what stays. Whoever comes to a page first faults it in by himself, and
/// loses nothing but that time.
#[derive(Debug)]
struct Toucher {
    thread: JoinHandle<()>,
    unwanted: Arc<AtomicBool>,
}

// SAFETY: the arena only hands out addresses; who may touch the bytes behind them is decided by
// the holders of slabs (see `Slab`).
unsafe impl Send for Arena {}
// SAFETY: as above; no method changes the bytes through `&self` except `give_back`, whose caller
// owns the slab.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves `slabs` slabs, the first `resident` of which stay in memory once they are used.
    pub(crate) fn new(slabs: usize, slab_bytes: usize, resident: usize) -> Result<Arena> {
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
        let resident = resident.min(slabs);
        let toucher = Mutex::default();
        let arena = Arena { mapping, mapping_bytes, base, slab_bytes, slabs, resident, toucher };
        // SAFETY: the range lies inside the mapping. The call is advice: where it is refused, pages
        // are small.
        unsafe {
            libc::madvise(base.as_ptr().cast(), resident * slab_bytes, libc::MADV_HUGEPAGE);
        }
        Ok(arena)
    }

    /// Faults in what stays in memory.
    pub(crate) fn touch(&self) {
        touch(self.base.as_ptr().addr(), self.resident * self.slab_bytes, || false);
    }

    /// The same on another thread, if the system gives one; else pages come on first touch.
    pub(crate) fn touch_in_background(&self) {
        let (start, bytes) = (self.base.as_ptr().addr(), self.resident * self.slab_bytes);
        // So little costs less than a thread, and what a model checker schedules has no more.
        if bytes <= HUGE_PAGE_BYTES || cfg!(races) {
            return;
        }
        let unwanted = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&unwanted);
        let work = move || {
            // Relaxed: a wish, which carries nothing.
            touch(start, bytes, || stop.load(Ordering::Relaxed));
        };
        let thread = thread::Builder::new().name("ep-memory".into()).spawn(work);
        *self.toucher.lock() = thread.ok().map(|thread| Toucher { thread, unwanted });
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

/// Faults in the memory at `start`, which is mapped until this returns, or what comes before
/// `stop`.
///
/// Huge page by huge page: the kernel may have to make room for each, and while a call lasts nobody
/// in the process can map memory.
fn touch(start: usize, bytes: usize, stop: impl Fn() -> bool) {
    for offset in (0..bytes).step_by(HUGE_PAGE_BYTES) {
        let piece = HUGE_PAGE_BYTES.min(bytes - offset);
        let page = ptr::without_provenance_mut(start + offset);
        // SAFETY: populating changes no byte, and who calls keeps the range mapped.
        let refused = unsafe { libc::madvise(page, piece, libc::MADV_POPULATE_WRITE) } != 0;
        // An older kernel: the pages come one by one on first touch.
        if refused || stop() {
            return;
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Some(Toucher { thread, unwanted }) = self.toucher.get_mut().take() {
            // Relaxed: see where it is read.
            unwanted.store(true, Ordering::Relaxed);
            if thread.join().is_err() {
                tracing::error!("a background thread panicked");
            }
        }
        // SAFETY: mapped in `new` with this length; every slab holds an Arc of the arena, so none
        // is left.
        unsafe {
            libc::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    const SLAB: usize = 1 << 20;

    /// How many pages of the first `slabs` slabs are in memory.
    fn pages(arena: &Arena, slabs: usize) -> usize {
        let mut seen = vec![0_u8; slabs * SLAB / 4096];
        let base = arena.base(0).as_ptr().cast();
        // SAFETY: the range is mapped, and `seen` has a byte for each page of it.
        assert_eq!(unsafe { libc::mincore(base, slabs * SLAB, seen.as_mut_ptr()) }, 0);
        seen.iter().filter(|&&page| page & 1 == 1).count()
    }

    /// What pins may need costs no memory before.
    #[test]
    fn what_stays_is_touched_and_nothing_else() {
        let all = 4 * SLAB / 4096;
        for background in [false, true] {
            let arena = Arena::new(8, SLAB, 4).unwrap();
            assert_eq!(pages(&arena, 8), 0);
            if background {
                arena.touch_in_background()
            } else {
                arena.touch()
            }
            let until = Instant::now() + Duration::from_secs(30);
            while background && pages(&arena, 4) < all && Instant::now() < until {
                thread::yield_now();
            }
            assert_eq!((pages(&arena, 4), pages(&arena, 8)), (all, all));
        }
    }

    #[test]
    fn an_arena_may_go_while_it_is_touched() {
        for _ in 0..8 {
            Arena::new(64, SLAB, 64).unwrap().touch_in_background();
        }
    }
}
