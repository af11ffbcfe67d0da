//! Which segments there are: sealed ones, which consumers map and read, and the ones still being
//! written, whose index grows in memory.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::disk::DiskFile;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlockHeader, Footer, FooterBuilder, KindSet, seek_lsn, seek_time};
use crate::limits;
use crate::lsn::{Geometry, Lsn};

use super::writes::DurableWrites;

/// A segment that is being written, or waits to be sealed.
pub(crate) struct OpenSegment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) salt: u64,
    pub(crate) bytes: u64,
    index: Mutex<FooterBuilder>,
}

impl OpenSegment {
    pub(crate) fn new(
        geometry: &Geometry,
        (number, path, file): (u64, PathBuf, Arc<dyn DiskFile>),
        salt: u64,
        (first_lsn, prev_crc): (u64, u32),
    ) -> OpenSegment {
        let slabs = geometry.slabs_per_segment();
        let index = FooterBuilder::new(number, salt, slabs, geometry.slab_bytes, first_lsn)
            .continuing(prev_crc);
        OpenSegment::with_index(geometry, (number, path, file), salt, index)
    }

    /// With the index that recovery built.
    pub(crate) fn with_index(
        geometry: &Geometry,
        (number, path, file): (u64, PathBuf, Arc<dyn DiskFile>),
        salt: u64,
        index: FooterBuilder,
    ) -> OpenSegment {
        let bytes = geometry.segment_bytes;
        OpenSegment { number, path, file, salt, bytes, index: Mutex::new(index) }
    }

    /// A block is durable. `end` is the position behind its padding.
    pub(crate) fn add_block(
        &self,
        geometry: &Geometry,
        header: &BlockHeader,
        end: u64,
        kinds: KindSet,
    ) {
        let start = geometry.segment_start(self.number);
        let mut index = self.index.lock();
        index.add_block((header.position - start) as u32, (end - start) as u32, header);
        index.add_kinds(kinds);
    }

    pub(crate) fn set_rolled(&self, crc: u32) {
        self.index.lock().set_rolled(crc);
    }

    pub(crate) fn footer(&self, torn: bool) -> Footer {
        self.index.lock().finish(torn)
    }
}

/// What is kept in memory of a sealed segment; most footers are read when somebody reads it.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) salt: u64,
    pub(crate) first_lsn: u64,
    pub(crate) last_lsn: u64,
    pub(crate) last_time_nanos: u64,
}

impl Sealed {
    pub(crate) fn new(path: PathBuf, footer: &Footer) -> Sealed {
        Sealed {
            number: footer.number,
            path,
            salt: footer.salt,
            first_lsn: footer.first_lsn,
            last_lsn: footer.last_lsn,
            last_time_nanos: footer.last_time_nanos,
        }
    }
}

/// Where to start walking to find a record.
#[derive(Clone, Debug)]
pub(crate) enum Located {
    /// At or behind this block, in a segment still open or in the ring.
    Block(u64),
    /// In this sealed segment; its footer says where.
    Sealed(Arc<Sealed>),
}

#[derive(Default)]
struct Lists {
    /// Oldest first, numbers consecutive.
    sealed: VecDeque<Arc<Sealed>>,
    open: VecDeque<Arc<OpenSegment>>,
    /// No longer kept, and on disk still.
    leaving: Vec<Arc<Sealed>>,
    /// Of those sealed last, which consumers that fall behind come to first.
    footers: VecDeque<Arc<Footer>>,
}

impl Lists {
    fn add(&mut self, sealed: Sealed) {
        self.open.retain(|open| open.number != sealed.number);
        debug_assert!(self.sealed.back().is_none_or(|last| last.number + 1 == sealed.number));
        self.sealed.push_back(Arc::new(sealed));
    }
}

/// Enters a segment before its slabs may leave the ring (invariant I3), and drops it only when
/// `log_start` is set above it. So whoever finds a byte in neither asks again: then it is here,
/// or below `log_start`.
pub(crate) struct Catalogue {
    geometry: Geometry,
    lists: RwLock<Lists>,
    /// First position and LSN kept. Release with the list change, Acquire by readers.
    log_start: AtomicU64,
    log_start_lsn: AtomicU64,
    /// No list, but like them what the log tells those who replay it.
    pub(crate) durable_writes: DurableWrites,
}

impl Catalogue {
    pub(crate) fn new(geometry: Geometry, log_start: u64, log_start_lsn: u64) -> Catalogue {
        Catalogue {
            geometry,
            lists: RwLock::default(),
            log_start: AtomicU64::new(log_start),
            log_start_lsn: AtomicU64::new(log_start_lsn),
            durable_writes: DurableWrites::default(),
        }
    }

    /// Position of the first byte kept.
    pub(crate) fn log_start(&self) -> u64 {
        self.log_start.load(Ordering::Acquire)
    }

    /// Position of the first byte kept and the first record kept, of the same moment.
    pub(crate) fn start(&self) -> (u64, Lsn) {
        let _unchanging = self.lists.read();
        (self.log_start(), self.first_lsn())
    }

    /// The first record kept.
    pub(crate) fn first_lsn(&self) -> Lsn {
        Lsn::new(self.log_start_lsn.load(Ordering::Acquire))
    }

    pub(crate) fn open_segment(&self, segment: Arc<OpenSegment>) {
        self.lists.write().open.push_back(segment);
    }

    /// The segment has just become durable and sealed: from here on it may be mapped.
    pub(crate) fn seal(&self, path: PathBuf, footer: Footer) {
        let mut lists = self.lists.write();
        lists.add(Sealed::new(path, &footer));
        lists.footers.push_back(Arc::new(footer));
        if lists.footers.len() > limits::FOOTERS_KEPT {
            lists.footers.pop_front();
        }
    }

    /// The segment is sealed.
    pub(crate) fn add(&self, sealed: Sealed) {
        self.lists.write().add(sealed);
    }

    /// The sealed segment that holds `position`.
    pub(crate) fn find(&self, position: u64) -> Option<Arc<Sealed>> {
        let number = self.geometry.segment_of(position);
        let lists = self.lists.read();
        let first = lists.sealed.front()?.number;
        lists.sealed.get(usize::try_from(number.checked_sub(first)?).ok()?).cloned()
    }

    /// The footer of a sealed segment, if it need not be read.
    pub(crate) fn footer(&self, number: u64) -> Option<Arc<Footer>> {
        self.lists.read().footers.iter().find(|footer| footer.number == number).cloned()
    }

    /// The oldest sealed segments, for retention.
    pub(crate) fn oldest(&self, at_most: usize) -> Vec<Arc<Sealed>> {
        self.lists.read().sealed.iter().take(at_most).cloned().collect()
    }

    /// Segments on disk that hold or may hold blocks.
    pub(crate) fn segments(&self) -> usize {
        let lists = self.lists.read();
        lists.sealed.len() + lists.open.len()
    }

    /// With those that hold nothing any more.
    pub(crate) fn files(&self) -> usize {
        self.segments() + self.lists.read().leaving.len()
    }

    /// Everything below `log_start` leaves the list, and is `leaving` until it is forgotten.
    pub(crate) fn advance(&self, log_start: u64, first_lsn: u64) {
        let mut lists = self.lists.write();
        self.log_start_lsn.store(first_lsn, Ordering::Release);
        self.log_start.store(log_start, Ordering::Release);
        let number = self.geometry.segment_of(log_start);
        let Lists { sealed, leaving, .. } = &mut *lists;
        let keep = sealed.iter().position(|s| s.number >= number).unwrap_or(sealed.len());
        leaving.extend(sealed.drain(..keep));
    }

    /// What has left the list, and whose files are there still.
    pub(crate) fn leaving(&self) -> Vec<Arc<Sealed>> {
        self.lists.read().leaving.clone()
    }

    /// The file of a segment that was leaving is gone.
    pub(crate) fn forget(&self, number: u64) {
        self.lists.write().leaving.retain(|sealed| sealed.number != number);
    }

    /// Where the walk for `lsn` starts.
    pub(crate) fn locate_lsn(&self, lsn: Lsn) -> Result<Located> {
        let lists = self.lists.read();
        if lsn < self.first_lsn() {
            return Err(Error::new(ErrorKind::PositionLost, "the record was deleted")
                .at_lsns(lsn, self.first_lsn().previous()));
        }
        let after = lists.sealed.partition_point(|s| s.last_lsn < lsn.get());
        if let Some(sealed) = lists.sealed.get(after) {
            return Ok(Located::Sealed(Arc::clone(sealed)));
        }
        Ok(Located::Block(
            self.in_open(&lists, |index| seek_lsn(index.entries(), lsn.get()).map(|e| e.offset)),
        ))
    }

    /// Where the walk for the first record at or after `time` starts.
    pub(crate) fn locate_time(&self, time_nanos: u64) -> Located {
        let lists = self.lists.read();
        // One by one: segments without records have no time, so the list is not sorted by it.
        let holds = |s: &&Arc<Sealed>| s.last_time_nanos >= time_nanos && s.last_lsn >= s.first_lsn;
        if let Some(sealed) = lists.sealed.iter().find(holds) {
            return Located::Sealed(Arc::clone(sealed));
        }
        Located::Block(self.in_open(&lists, |index| {
            index.entries().first().filter(|e| e.time_nanos < time_nanos)?;
            seek_time(index.entries(), time_nanos).map(|e| e.offset)
        }))
    }

    /// Newest open segment in which `find` has an entry; else the start of the oldest.
    fn in_open(&self, lists: &Lists, find: impl Fn(&FooterBuilder) -> Option<u32>) -> u64 {
        for open in lists.open.iter().rev() {
            if let Some(offset) = find(&open.index.lock()) {
                return self.geometry.segment_start(open.number) + u64::from(offset);
            }
        }
        lists.open.front().map_or_else(
            || self.log_start(),
            |open| self.geometry.segment_start(open.number) + self.geometry.head_bytes,
        )
    }
}
