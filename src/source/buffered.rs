//! Cold (and catch-up without mappings): the bytes are held by one buffer, filled by reads.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::cold::Buffer;
use super::{Cold, Fetch, Replaying, Window};
use crate::disk::DiskFile;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Footer, PAGE_BYTES, verify_block};
use crate::limits;
use crate::lsn::Geometry;
use crate::sync::nanos;

pub(crate) struct Buffered {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    geometry: Geometry,
    footer: Arc<Footer>,
    buffer: Buffer,
    cold: Arc<Cold>,
    replaying: Replaying,
    /// Reads are paced and need a permit.
    paced: bool,
    /// Offset in the segment of the buffer's first byte, and how many bytes it holds.
    from: u64,
    len: usize,
    /// How much to read next: little at first, so that the first record comes soon.
    step: usize,
    /// Offset of the page being read.
    at: u64,
    /// Blocks below this offset were verified in this buffer.
    verified: u64,
}

impl Buffered {
    pub(crate) fn new(
        (file, path): (Arc<dyn DiskFile>, PathBuf),
        geometry: Geometry,
        footer: Arc<Footer>,
        (cold, replaying): (&Arc<Cold>, Replaying),
        paced: bool,
    ) -> Buffered {
        let buffer = cold.buffer();
        let cold = Arc::clone(cold);
        Buffered {
            file,
            path,
            geometry,
            footer,
            buffer,
            cold,
            replaying,
            paced,
            from: 0,
            len: 0,
            step: limits::FIRST_READ_BYTES as usize,
            at: 0,
            verified: 0,
        }
    }

    pub(crate) fn covers(&self, position: u64) -> bool {
        self.geometry.segment_of(position) == self.footer.number
    }

    fn holds(&self, offset: u64) -> bool {
        (self.from..self.from + self.len as u64).contains(&offset)
    }

    /// Makes the block at `position` readable; `more` if the buffer holds only a part of it.
    pub(crate) fn fetch(&mut self, position: u64, more: bool) -> Result<Fetch> {
        let offset = self.geometry.segment_offset(position);
        let end = self.footer.slab_end(offset, self.geometry.slab_bytes);
        if offset >= end {
            return Ok(Fetch::SlabEnd);
        }
        self.at = offset;
        self.replaying.queue().give_way();
        if self.holds(offset) && !more {
            return Ok(Fetch::Ready);
        }
        // What is there of the block moves to the front, so that nothing is read twice.
        let kept =
            if self.holds(offset) { (self.from + self.len as u64 - offset) as usize } else { 0 };
        let want = ((end - offset) as usize).min(self.buffer.bytes().len()).min(kept + self.step);
        if want <= kept {
            return Err(Error::new(ErrorKind::Corrupt, "a block reaches over its slab's end")
                .at_path(&self.path)
                .at_segment(self.footer.number, offset));
        }
        let permit = if self.paced {
            let Some(permit) = self.cold.permit() else {
                let retry = nanos(limits::COLD_RETRY);
                return Ok(Fetch::NotBefore(self.cold.clock().now() + retry));
            };
            if let Err(at) = self.cold.spend(want - kept) {
                return Ok(Fetch::NotBefore(at));
            }
            Some(permit)
        } else {
            None
        };
        if kept > 0 {
            let skipped = (offset - self.from) as usize;
            self.buffer.bytes_mut().copy_within(skipped..skipped + kept, 0);
        } else {
            self.verified = offset;
        }
        (self.from, self.len) = (offset, kept);
        let read = low_priority(self.paced, || self.read(kept..want, offset + kept as u64));
        drop(permit);
        let read = read.map_err(|e| {
            Error::io("cannot read a sealed segment", &self.path, e)
                .at_segment(self.footer.number, offset)
        })?;
        if read < want - kept {
            return Err(Error::new(ErrorKind::Corrupt, "a sealed segment was truncated")
                .at_path(&self.path)
                .at_segment(self.footer.number, offset + read as u64));
        }
        if !self.file.is_direct() {
            let behind = offset - offset % PAGE_BYTES + want as u64;
            let _ = self.file.drop_cache(0, behind);
        }
        self.len = want;
        self.step = (2 * self.step).min(self.buffer.bytes().len());
        Ok(Fetch::Ready)
    }

    /// Fills that part of the buffer from `offset` in the segment on: at once, or in pieces between
    /// which commits have their turn.
    fn read(&mut self, part: Range<usize>, offset: u64) -> std::io::Result<usize> {
        let queue = self.replaying.queue();
        let into = &mut self.buffer.bytes_mut()[part];
        if !queue.is_shared() {
            return self.file.read_at(into, offset);
        }
        let mut read = 0;
        for piece in into.chunks_mut(queue.piece_bytes() as usize) {
            let _reading = queue.read(piece.len() as u64);
            let more = self.file.read_at(piece, offset + read as u64)?;
            read += more;
            if more < piece.len() {
                break;
            }
        }
        Ok(read)
    }

    /// Whether the block had to be checked; an error if it is damaged.
    pub(crate) fn verify(&self, position: u64, block: &[u8]) -> Result<bool> {
        let offset = self.geometry.segment_offset(position);
        if offset < self.verified {
            return Ok(false);
        }
        verify_block(block, position, self.footer.salt).map(|_| true).map_err(|fault| {
            Error::new(ErrorKind::Corrupt, "a committed block is damaged")
                .at_path(&self.path)
                .at_segment(self.footer.number, offset)
                .because(fault.to_string())
        })
    }

    /// Blocks before `position` were verified, and with `inside` also the one there: a page that
    /// resumes in a block does not check it again.
    pub(crate) fn passed(&mut self, position: u64, inside: bool) {
        if self.covers(position) {
            let offset = self.geometry.segment_offset(position) + u64::from(inside);
            self.verified = self.verified.max(offset);
        }
    }

    pub(crate) fn window(&self) -> Window<'_> {
        let skip = (self.at - self.from) as usize;
        let bytes = &self.buffer.bytes()[skip..self.len];
        let base = self.geometry.segment_start(self.footer.number) + self.at;
        Window { bytes, base, align: self.geometry.align_bytes as usize }
    }
}

/// Runs `read` at the lowest best-effort I/O priority, so that replays give way to commits.
fn low_priority<T>(low: bool, read: impl FnOnce() -> T) -> T {
    const WHO_PROCESS: libc::c_int = 1;
    const BEST_EFFORT_LOWEST: libc::c_int = (2 << 13) | 7;
    if !low {
        return read();
    }
    // SAFETY: sets and restores the calling thread's own I/O priority; no memory is involved. A
    // refusal costs nothing but the priority.
    let before = unsafe {
        let before = libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0);
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, BEST_EFFORT_LOWEST);
        before
    };
    let outcome = read();
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, before.max(0)) };
    outcome
}
