//! Opens sealed segments for consumers, and finds where in them to start.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::mapped::Shared;
use super::{Buffered, Cold, Mapped, Queue};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Footer, footer_bytes};
use crate::log::{Catalogue, Sealed};
use crate::lsn::{Geometry, Lsn};
use crate::options::ReadMode;

pub(crate) struct Replay {
    pub(crate) catalogue: Arc<Catalogue>,
    disk: Arc<dyn Disk>,
    geometry: Geometry,
    mode: ReadMode,
    readahead_bytes: u64,
    pub(crate) cold: Arc<Cold>,
    pub(crate) queue: Arc<Queue>,
    /// One mapping a segment, for as long as somebody reads it.
    maps: Mutex<HashMap<u64, Weak<Shared>>>,
}

impl Replay {
    pub(crate) fn new(
        catalogue: Arc<Catalogue>,
        disk: Arc<dyn Disk>,
        geometry: Geometry,
        (mode, readahead_bytes): (ReadMode, u64),
        cold: Cold,
    ) -> Replay {
        let queue = Queue::new(Arc::clone(&catalogue), cold.clock().clone());
        let (cold, queue) = (Arc::new(cold), Arc::new(queue));
        let maps = Mutex::default();
        Replay { catalogue, disk, geometry, mode, readahead_bytes, cold, queue, maps }
    }

    fn open_file(&self, sealed: &Sealed, direct: bool) -> Result<Arc<dyn DiskFile>> {
        let mode = OpenMode { write: false, create: false, direct };
        self.disk.open(&sealed.path, mode).map_err(|e| self.lost(sealed, e))
    }

    /// A file that is not there was deleted by retention, or by somebody else.
    fn lost(&self, sealed: &Sealed, e: std::io::Error) -> Error {
        let start = self.geometry.segment_start(sealed.number);
        if e.kind() != std::io::ErrorKind::NotFound {
            return Error::io("cannot open a sealed segment", &sealed.path, e);
        }
        let kind = if start < self.catalogue.log_start() {
            ErrorKind::PositionLost
        } else {
            ErrorKind::MissingSegment
        };
        Error::new(kind, "a sealed segment is gone")
            .at_path(&sealed.path)
            .at_segment(sealed.number, 0)
            .at_lsns(Lsn::new(sealed.first_lsn), Lsn::new(sealed.last_lsn))
    }

    fn footer(&self, sealed: &Sealed) -> Result<Arc<Footer>> {
        self.footer_in(sealed, || self.open_file(sealed, false))
    }

    /// The footer, from the file if it is not in memory.
    fn footer_in(
        &self,
        sealed: &Sealed,
        file: impl FnOnce() -> Result<Arc<dyn DiskFile>>,
    ) -> Result<Arc<Footer>> {
        if let Some(footer) = self.catalogue.footer(sealed.number) {
            return Ok(footer);
        }
        let footer =
            read_footer(&*file()?, &sealed.path, &self.geometry, sealed.number, sealed.salt);
        footer.map(Arc::new)
    }

    /// A reader of the shared mapping, or of a buffer where mappings are not wanted or not to be
    /// had.
    pub(crate) fn catch_up(&self, sealed: &Sealed, position: u64) -> Result<CatchUp> {
        let shared = if self.mode == ReadMode::Map { self.shared(sealed)? } else { None };
        if let Some(shared) = shared {
            let sharing = (self.readahead_bytes, self.queue.enter());
            return Ok(CatchUp::Mapped(Mapped::new(shared, position, sharing)));
        }
        let footer = self.footer(sealed)?;
        let file = (self.open_file(sealed, false)?, sealed.path.clone());
        let buffered = self.buffered(file, footer, false);
        Ok(CatchUp::Buffered(Box::new(buffered)))
    }

    fn buffered(
        &self,
        file: (Arc<dyn DiskFile>, PathBuf),
        footer: Arc<Footer>,
        paced: bool,
    ) -> Buffered {
        let shared = (&self.cold, self.queue.enter());
        let overlaps = self.disk.calls_at_once() > 1;
        Buffered::new(file, self.geometry, footer, shared, (paced, overlaps))
    }

    fn shared(&self, sealed: &Sealed) -> Result<Option<Arc<Shared>>> {
        let mut maps = self.maps.lock();
        if let Some(shared) = maps.get(&sealed.number).and_then(Weak::upgrade) {
            return Ok(Some(shared));
        }
        maps.retain(|_, map| map.strong_count() > 0);
        let file = self.open_file(sealed, false)?;
        let footer = self.footer_in(sealed, || Ok(Arc::clone(&file)))?;
        let map = file.map();
        let map = map.map_err(|e| Error::io("cannot map a sealed segment", &sealed.path, e))?;
        let Some(map) = map else { return Ok(None) };
        if map.len() as u64 != self.geometry.segment_bytes {
            return Err(Error::new(ErrorKind::Corrupt, "a sealed segment was truncated")
                .at_path(&sealed.path)
                .at_segment(sealed.number, map.len() as u64));
        }
        let file = (map, file, sealed.path.clone());
        let shared = Arc::new(Shared::new(file, self.geometry, footer, self.readahead_bytes));
        maps.insert(sealed.number, Arc::downgrade(&shared));
        Ok(Some(shared))
    }

    pub(crate) fn cold(&self, sealed: &Sealed) -> Result<Buffered> {
        let footer = self.footer(sealed)?;
        let file = (self.open_file(sealed, true)?, sealed.path.clone());
        Ok(self.buffered(file, footer, true))
    }

    /// Position of a block at or before the record, in a sealed segment.
    pub(crate) fn seek_lsn(&self, sealed: &Sealed, lsn: Lsn) -> Result<u64> {
        let footer = self.footer(sealed)?;
        Ok(self.at_entry(sealed, footer.seek_lsn(lsn.get()).map(|e| e.offset)))
    }

    /// Position of a block at or before the first one of that time.
    pub(crate) fn seek_time(&self, sealed: &Sealed, time_nanos: u64) -> Result<u64> {
        let footer = self.footer(sealed)?;
        Ok(self.at_entry(sealed, footer.seek_time(time_nanos).map(|e| e.offset)))
    }

    fn at_entry(&self, sealed: &Sealed, offset: Option<u32>) -> u64 {
        let offset = offset.map_or(self.geometry.head_bytes, u64::from);
        self.geometry.segment_start(sealed.number) + offset
    }
}

/// What the catch-up tier reads from.
pub(crate) enum CatchUp {
    Mapped(Mapped),
    Buffered(Box<Buffered>),
}

fn read_footer(
    file: &dyn DiskFile,
    path: &Path,
    geometry: &Geometry,
    number: u64,
    salt: u64,
) -> Result<Footer> {
    let bytes = footer_bytes(geometry.segment_bytes);
    let offset = geometry.segment_bytes - bytes;
    let failed =
        |e| Error::io("cannot read a segment's footer", path, e).at_segment(number, offset);
    let sizes = (geometry.slab_bytes, geometry.segment_bytes);
    let mut region = vec![0; bytes as usize];
    let read = file.read_at(&mut region, offset).map_err(failed)?;
    let damaged = || {
        Error::new(ErrorKind::Corrupt, "the footer of a sealed segment is damaged")
            .at_path(path)
            .at_segment(number, offset)
    };
    if read < region.len() {
        return Err(damaged());
    }
    Footer::decode(&region, (number, salt), sizes)
        .map_err(|e| damaged().because(e))?
        .ok_or_else(damaged)
}
