//! Memory for I/O: [`StableBytes`], which the kernel may read while we do something else, and
//! [`AlignedBuf`], a heap buffer that O_DIRECT accepts.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use super::DIRECT_ALIGN;

/// Memory that is handed to the kernel until a write from it is reported complete.
///
/// # Safety
///
/// For as long as the value lives, or for ever if it is leaked, and wherever it is moved,
/// - `bytes` returns the same address and length, and
/// - these bytes are readable, initialised, and nobody changes them.
pub(crate) unsafe trait StableBytes: Send {
    /// The bytes to write.
    fn bytes(&self) -> &[u8];
}

/// A zeroed buffer on the heap that starts at a multiple of [`DIRECT_ALIGN`]. Its length is what
/// was asked for; it is up to the caller to ask for a length that suits O_DIRECT.
pub(crate) struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len` zeros. Aborts or panics, as `Vec` does, if there is no such memory.
    pub(crate) fn zeroed(len: usize) -> AlignedBuf {
        let layout = layout(len);
        // SAFETY: the layout's size is not zero: `layout` sees to that.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        AlignedBuf { start, len }
    }
}

/// The layout of a buffer of `len` bytes; never empty, because the allocator forbids that.
fn layout(len: usize) -> Layout {
    match Layout::from_size_align(len.max(1), DIRECT_ALIGN) {
        Ok(layout) => layout,
        Err(_) => handle_alloc_error(Layout::new::<u8>()),
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `zeroed` allocated and initialised `len` bytes at `start`, owned by `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference to them.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: `zeroed` allocated `start` with this layout; `len` never changes.
        unsafe { dealloc(self.start.as_ptr(), layout(self.len)) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).finish_non_exhaustive()
    }
}

// SAFETY: an `AlignedBuf` owns its memory like a `Box<[u8]>`; nothing else points to it.
unsafe impl Send for AlignedBuf {}
// SAFETY: through `&AlignedBuf` the memory can only be read.
unsafe impl Sync for AlignedBuf {}

// SAFETY: the bytes are on the heap, so moving the value does not move them; changing them takes
// `&mut AlignedBuf`, which nobody has while a `Write` owns the value; leaking it frees nothing.
unsafe impl StableBytes for AlignedBuf {
    fn bytes(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeroed_and_of_the_length_asked_for() {
        for len in [0, 1, 512, 4095, 4096, 4097, 300_000] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr().addr() % DIRECT_ALIGN, 0);
            assert!(buf.iter().all(|&byte| byte == 0));
            buf.fill(7);
            assert!(buf.iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn moving_the_buffer_does_not_move_its_bytes() {
        let buf = AlignedBuf::zeroed(4096);
        let before = buf.bytes().as_ptr();
        let moved: Box<dyn StableBytes> = Box::new(buf);
        assert_eq!(moved.bytes().as_ptr(), before);
    }
}
