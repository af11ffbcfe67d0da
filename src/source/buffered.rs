//! Cold (and catch-up without mappings): the bytes are held by one buffer, filled by reads. In the
//! cold tier the next slab is read into a second one while nobody else needs the disk.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::ahead::Ahead;
use super::cold::{Buffer, Slot};
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
    /// The disk has several calls under way at once.
    overlaps: bool,
    /// The next slab.
    ahead: Option<Ahead>,
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
        (paced, overlaps): (bool, bool),
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
            overlaps,
            ahead: None,
            from: 0,
            len: 0,
            step: limits::FIRST_READ_BYTES as usize,
            at: 0,
            verified: 0,
        }
    }

    /// Reads whole buffers from the first on.
    pub(crate) fn go_on(&mut self) {
        self.step = self.buffer.bytes().len();
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
        match self.ahead.take().filter(|ahead| ahead.from == offset) {
            Some(ahead) => self.take_over(ahead).map(|()| Fetch::Ready),
            None => self.read_on(offset, end),
        }
    }

    /// Reads from `offset` on, or up to the slab's `end` what is missing of the block there.
    fn read_on(&mut self, offset: u64, end: u64) -> Result<Fetch> {
        // What is there of the block moves to the front, so that nothing is read twice.
        let kept =
            if self.holds(offset) { (self.from + self.len as u64 - offset) as usize } else { 0 };
        let want = ((end - offset) as usize).min(self.buffer.bytes().len()).min(kept + self.step);
        if want <= kept {
            return Err(Error::new(ErrorKind::Corrupt, "a block reaches over its slab's end")
                .at_path(&self.path)
                .at_segment(self.footer.number, offset));
        }
        let permit = match self.admit(want - kept) {
            Ok(permit) => permit,
            Err(at) => return Ok(Fetch::NotBefore(at)),
        };
        if kept > 0 {
            let skipped = (offset - self.from) as usize;
            self.buffer.bytes_mut().copy_within(skipped..skipped + kept, 0);
        } else {
            self.verified = offset;
        }
        (self.from, self.len) = (offset, kept);
        let read = low_priority(self.paced, || self.read(kept..want, offset + kept as u64));
        self.filled(read, kept..want)?;
        self.step = (2 * self.step).min(self.buffer.bytes().len());
        self.ahead = permit.and_then(|permit| {
            let second = self.cold.second()?;
            self.read_ahead((permit, second), want, || self.cold.buffer())
        });
        Ok(Fetch::Ready)
    }

    /// What a read of so many bytes needs, or when to ask again.
    fn admit(&self, bytes: usize) -> std::result::Result<Option<Arc<Slot>>, u64> {
        if !self.paced {
            return Ok(None);
        }
        let retry = || self.cold.clock().now() + nanos(limits::COLD_RETRY);
        let permit = self.cold.permit().ok_or_else(retry)?;
        self.cold.spend(bytes)?;
        Ok(Some(Arc::new(permit)))
    }

    /// Waits for a read that is under way. Meanwhile the one after it is, too, into the memory of
    /// the slab that was delivered: a disk is faster with two.
    fn take_over(&mut self, ahead: Ahead) -> Result<()> {
        let delivered = self.buffer.take();
        let Ahead { from, len, permit, second, reading } = ahead;
        (self.from, self.len, self.verified) = (from, 0, from);
        let permit = permit.upgrade().or_else(|| self.cold.permit().map(Arc::new));
        self.ahead = permit.and_then(|permit| self.read_ahead((permit, second), len, || delivered));
        let (buffer, read) = reading.finish();
        self.buffer = buffer;
        self.filled(read, 0..len)
    }

    /// Begins to read the next slab if these `len` bytes are the last of theirs, no commits share
    /// the disk, the budget allows it, and there is a permit left for another replay. This one's
    /// reads share theirs.
    fn read_ahead(
        &self,
        (permit, second): (Arc<Slot>, Slot),
        len: usize,
        buffer: impl FnOnce() -> Buffer,
    ) -> Option<Ahead> {
        let is_alone = self.cold.has_permit() && !self.replaying.queue().is_shared();
        let slab_end = self.footer.slab_end(self.from, self.geometry.slab_bytes);
        if !(self.overlaps && is_alone) || self.from + (len as u64) < slab_end {
            return None;
        }
        let here = self.geometry.segment_start(self.footer.number) + self.from;
        let next = self.geometry.next_slab(here);
        if !self.covers(next) {
            return None;
        }
        let from = self.geometry.segment_offset(next);
        let end = self.footer.slab_end(from, self.geometry.slab_bytes);
        let buffer = buffer();
        let len = (end.saturating_sub(from) as usize).min(buffer.bytes().len());
        if len == 0 || self.cold.spend(len).is_err() {
            return None;
        }
        Ahead::begin(&self.file, buffer, (from, len), (permit, second))
    }

    /// Takes note of what was read into that part of the buffer.
    fn filled(&mut self, read: std::io::Result<usize>, part: Range<usize>) -> Result<()> {
        let read = read.map_err(|e| {
            Error::io("cannot read a sealed segment", &self.path, e)
                .at_segment(self.footer.number, self.from)
        })?;
        if read < part.len() {
            return Err(Error::new(ErrorKind::Corrupt, "a sealed segment was truncated")
                .at_path(&self.path)
                .at_segment(self.footer.number, self.from + (part.start + read) as u64));
        }
        self.len = part.end;
        if !self.file.is_direct() {
            let behind = self.from - self.from % PAGE_BYTES + self.len as u64;
            let _ = self.file.drop_cache(0, behind);
        }
        Ok(())
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
pub(super) fn low_priority<T>(low: bool, read: impl FnOnce() -> T) -> T {
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
