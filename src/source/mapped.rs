//! Catch-up: the bytes are held by a mapping of a sealed segment, shared by all consumers in it.
//!
//! Only sealed, immutable files are mapped (invariant I3). Pages are populated in growing steps
//! before they are touched, so a file that somebody truncated is an error and not a SIGBUS; each
//! block is verified once for all readers; and what lies behind the slowest reader is really given
//! back: first out of the mapping, since the kernel keeps mapped pages, then out of the cache.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use parking_lot::Mutex;

use super::{Fetch, Replaying, Window};
use crate::disk::DiskFile;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Footer, PAGE_BYTES, align_up, verify_block};
use crate::limits;
use crate::lsn::Geometry;

/// One mapping, with what its readers share.
pub(crate) struct Shared {
    map: Mmap,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    geometry: Geometry,
    footer: Arc<Footer>,
    /// A bit a page: the block that starts there was verified since its pages were populated.
    /// Relaxed: a bit is a promise about bytes that nobody writes; a lost one costs a second CRC.
    verified: Box<[AtomicU64]>,
    readers: Mutex<Readers>,
    release_step: u64,
}

#[derive(Default)]
struct Readers {
    next_id: u64,
    /// Id and offset of each reader.
    at: Vec<(u64, u64)>,
    /// Everything below this offset is released.
    released: u64,
}

impl Shared {
    pub(crate) fn new(
        (map, file, path): (Mmap, Arc<dyn DiskFile>, PathBuf),
        geometry: Geometry,
        footer: Arc<Footer>,
        readahead_bytes: u64,
    ) -> Shared {
        // No read-ahead of the kernel's: devices ask for as much as 8 MiB of it, before which a
        // commit would have to wait, and which counts against no bound of ours. A refusal costs
        // speed only.
        let _ = map.advise(Advice::Random);
        let words = (geometry.segment_bytes / PAGE_BYTES).div_ceil(64) as usize;
        Shared {
            map,
            file,
            path,
            geometry,
            footer,
            verified: (0..words).map(|_| AtomicU64::new(0)).collect(),
            readers: Mutex::default(),
            release_step: readahead_bytes / 4,
        }
    }

    fn damaged(&self, what: &str, offset: u64) -> Error {
        Error::new(ErrorKind::Corrupt, what)
            .at_path(&self.path)
            .at_segment(self.footer.number, offset)
    }

    fn bit(offset: u64) -> (usize, u64) {
        let page = offset / PAGE_BYTES;
        ((page / 64) as usize, 1 << (page % 64))
    }

    /// Whether the block had to be checked; an error if it is damaged.
    fn verify(&self, position: u64, block: &[u8]) -> Result<bool> {
        let offset = self.geometry.segment_offset(position);
        let (word, bit) = Shared::bit(offset);
        if self.verified[word].load(Ordering::Relaxed) & bit != 0 {
            return Ok(false);
        }
        verify_block(block, position, self.footer.salt).map_err(|fault| {
            self.damaged("a committed block is damaged", offset).because(fault.to_string())
        })?;
        self.verified[word].fetch_or(bit, Ordering::Relaxed);
        Ok(true)
    }

    /// Has the disk begin to read that. Advice: a refusal costs speed only.
    fn request(&self, from: u64, to: u64) {
        if from < to {
            let (offset, len) = (from as usize, (to - from) as usize);
            let _ = self.map.advise_range(Advice::WillNeed, offset, len);
        }
    }

    fn unreadable(&self, cause: io::Error, offset: u64) -> Error {
        Error::io("cannot read a mapped segment", &self.path, cause)
            .at_segment(self.footer.number, offset)
    }

    fn populate(&self, from: u64, to: u64) -> Result<()> {
        let (offset, len) = (from as usize, (to - from) as usize);
        match self.map.advise_range(Advice::PopulateRead, offset, len) {
            Ok(()) => Ok(()),
            // Kernels before 5.14 do not know the advice: pages come on first touch.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            // Where reading would raise SIGBUS: behind the file's end, or where the disk fails.
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) => match self.file.len() {
                Ok(len) if len < to => {
                    Err(self.damaged("the file was truncated while it was mapped", from))
                }
                _ => Err(self.unreadable(io::Error::from_raw_os_error(libc::EIO), from)),
            },
            Err(e) => Err(self.unreadable(e, from)),
        }
    }

    fn enter(&self, offset: u64) -> u64 {
        let mut readers = self.readers.lock();
        let id = readers.next_id;
        readers.next_id += 1;
        readers.at.push((id, offset));
        readers.released = readers.released.min(offset);
        id
    }

    fn advance(&self, id: u64, offset: u64) {
        let mut readers = self.readers.lock();
        if let Some(reader) = readers.at.iter_mut().find(|(reader, _)| *reader == id) {
            reader.1 = offset;
        }
        self.release(&mut readers, self.release_step);
    }

    /// How far `offset` is before the slowest reader.
    fn lead(&self, offset: u64) -> u64 {
        let readers = self.readers.lock();
        let slowest = readers.at.iter().map(|(_, at)| *at).min();
        slowest.map_or(0, |slowest| offset.saturating_sub(slowest))
    }

    fn leave(&self, id: u64) {
        let mut readers = self.readers.lock();
        readers.at.retain(|(reader, _)| *reader != id);
        self.release(&mut readers, PAGE_BYTES);
    }

    /// Gives back what lies behind the slowest reader, if it is at least `step`.
    fn release(&self, readers: &mut Readers, step: u64) {
        let Some(slowest) = readers.at.iter().map(|(_, offset)| *offset).min() else {
            // Nobody is left: the mapping goes, and the cache with it.
            return;
        };
        let from = readers.released;
        let to = slowest - slowest % PAGE_BYTES;
        if to < from + step {
            return;
        }
        for offset in (from..to).step_by(PAGE_BYTES as usize) {
            let (word, bit) = Shared::bit(offset);
            self.verified[word].fetch_and(!bit, Ordering::Relaxed);
        }
        let (offset, len) = (from as usize, (to - from) as usize);
        // SAFETY: a shared mapping of an immutable file: pages dropped here come back with the same
        // bytes when somebody touches them.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len) };
        let _ = self.file.drop_cache(from, to - from);
        readers.released = to;
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let len = self.map.len();
        // SAFETY: nobody holds a reference into the mapping any more.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, 0, len) };
        let _ = self.file.drop_cache(0, len as u64);
    }
}

/// One reader's place in a shared mapping.
pub(crate) struct Mapped {
    shared: Arc<Shared>,
    id: u64,
    /// Offset in the segment of the page being read, the end of what is populated, and the end of
    /// what the disk was asked for.
    at: u64,
    populated: u64,
    requested: u64,
    /// How much to read next: little at first, so that the first record comes soon.
    step: u64,
    /// Bytes of a piece, and how far before the piece being read others are asked for.
    sizes: (u64, u64),
    replaying: Replaying,
}

impl Mapped {
    pub(crate) fn new(
        shared: Arc<Shared>,
        position: u64,
        (readahead_bytes, replaying): (u64, Replaying),
    ) -> Mapped {
        let at = shared.geometry.segment_offset(position);
        let id = shared.enter(at);
        let piece_bytes = (readahead_bytes / limits::READ_PIECES).max(limits::READAHEAD_BYTES_MIN);
        let step = limits::FIRST_READ_BYTES.min(piece_bytes);
        let ahead_bytes = (limits::PIECES_AHEAD * piece_bytes).min(readahead_bytes - piece_bytes);
        let (populated, requested, sizes) = (at, at, (piece_bytes, ahead_bytes));
        Mapped { shared, id, at, populated, requested, step, sizes, replaying }
    }

    /// Reads whole pieces from the first on.
    pub(crate) fn go_on(&mut self) {
        self.step = self.sizes.0;
    }

    pub(crate) fn covers(&self, position: u64) -> bool {
        self.shared.geometry.segment_of(position) == self.shared.footer.number
    }

    /// Makes the block at `position` readable; `more` if what is populated held only a part of it.
    pub(crate) fn fetch(&mut self, position: u64, more: bool) -> Result<Fetch> {
        let offset = self.shared.geometry.segment_offset(position);
        let end = self.shared.footer.slab_end(offset, self.shared.geometry.slab_bytes);
        if offset >= end {
            return Ok(Fetch::SlabEnd);
        }
        if offset != self.at {
            self.at = offset;
            self.shared.advance(self.id, offset);
        }
        self.replaying.queue().give_way();
        if offset < self.populated && !more {
            return Ok(Fetch::Ready);
        }
        if more && self.populated >= end {
            return Err(self.shared.damaged("a block reaches over its slab's end", offset));
        }
        let from = self.populated.max(offset - offset % PAGE_BYTES);
        self.populated = self.read(from)?;
        Ok(Fetch::Ready)
    }

    /// Populates a piece; returns its end. What follows is asked for meanwhile, so that reading and
    /// delivering overlap, unless commits share the disk.
    fn read(&mut self, from: u64) -> Result<u64> {
        // Behind the last slab's end there is nothing that anybody will come for.
        let len = self.shared.map.len() as u64;
        let end = self.shared.footer.slab_end(len - 1, self.shared.geometry.slab_bytes);
        let end = align_up(end, PAGE_BYTES);
        let unasked = from.max(self.requested);
        let queue = self.replaying.queue();
        // Who falls a segment behind the others reads it all once more. So whoever leads waits a
        // little: it leaves a core to those behind it.
        let lead_max = limits::PIECES_AHEAD * self.sizes.0;
        queue.wait_while(|| self.shared.lead(from) > lead_max);
        if queue.is_shared() {
            let to = (from + self.step.min(queue.piece_bytes())).min(end);
            let _reading = queue.read(to.saturating_sub(unasked));
            self.requested = to.max(unasked);
            self.shared.request(unasked, to);
            self.shared.populate(from, to)?;
            return Ok(to);
        }
        let to = (from + self.step).min(end);
        let (piece_bytes, ahead_bytes) = self.sizes;
        let ahead = if self.step == piece_bytes { ahead_bytes } else { 0 };
        self.requested = (to + ahead).min(end).max(unasked);
        self.shared.request(unasked, self.requested);
        self.shared.populate(from, to)?;
        self.step = (self.step * 2).min(piece_bytes);
        Ok(to)
    }

    pub(crate) fn verify(&self, position: u64, block: &[u8]) -> Result<bool> {
        self.shared.verify(position, block)
    }

    pub(crate) fn window(&self) -> Window<'_> {
        let geometry = &self.shared.geometry;
        let end = self.shared.footer.slab_end(self.at, geometry.slab_bytes).min(self.populated);
        let bytes = &self.shared.map[self.at as usize..end as usize];
        let base = geometry.segment_start(self.shared.footer.number) + self.at;
        Window { bytes, base, align: geometry.align_bytes as usize }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.populated < self.requested {
            // The kernel drops no page that is being read: these would stay in its cache.
            let _ = self.shared.populate(self.populated, self.requested);
        }
        self.shared.leave(self.id);
    }
}
