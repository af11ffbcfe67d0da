//! Segment files: prepared ahead of the writer, sealed behind it. One background thread.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Log;
use super::catalogue::{Catalogue, OpenSegment};
use crate::disk::{AlignedBuf, Disk, DiskFile, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{LogId, PAGE_BYTES, SegmentHeader};
use crate::limits;
use crate::lsn::Geometry;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Clock, Futex, Mutex, Receiver, Sender, unbounded};

/// A segment file that exists, durable, with a header and nothing else.
pub(crate) struct Prepared {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) salt: u64,
}

enum Job {
    Prepare,
    Seal(Arc<OpenSegment>),
}

pub(crate) struct Segments {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    geometry: Geometry,
    log_id: LogId,
    clock: Clock,
    catalogue: Arc<Catalogue>,
    prepared: Mutex<BTreeMap<u64, Prepared>>,
    /// Segments below this number are prepared. Release by the preparer, Acquire by producers.
    prepared_below: AtomicU64,
    /// Segments below this number are sealed. Release by the preparer, Acquire by producers: a slab
    /// of theirs may leave the ring.
    sealed_below: AtomicU64,
    /// Segments below this number are wanted: the one being written and those ahead.
    wanted_below: AtomicU64,
    /// A producer waits for a segment: allocate only, zeros take longer.
    hurried: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Held by whoever prepares: tests drive logs whose threads run as well.
    preparing: Mutex<()>,
    /// Producers that wait for a slab sleep here.
    pub(crate) supply: Futex,
    jobs: (Sender<Job>, Receiver<Job>),
}

/// `{first position, 20 digits}.log`
pub(crate) fn segment_path(dir: &Path, geometry: &Geometry, number: u64) -> PathBuf {
    dir.join("segments").join(format!("{:020}.log", geometry.segment_start(number)))
}

impl Segments {
    pub(crate) fn new(
        (disk, dir): (Arc<dyn Disk>, &Path),
        geometry: Geometry,
        log_id: LogId,
        clock: Clock,
        catalogue: Arc<Catalogue>,
        active: u64,
    ) -> Segments {
        Segments {
            disk,
            dir: dir.to_owned(),
            geometry,
            log_id,
            clock,
            catalogue,
            prepared: Mutex::default(),
            prepared_below: AtomicU64::new(active + 1),
            sealed_below: AtomicU64::new(active),
            wanted_below: AtomicU64::new(active + 1 + limits::SEGMENTS_AHEAD),
            hurried: AtomicBool::new(false),
            failure: Mutex::default(),
            preparing: Mutex::default(),
            supply: Futex::default(),
            jobs: unbounded(),
        }
    }

    /// A prepared segment, made or found.
    pub(crate) fn adopt(&self, number: u64, prepared: Prepared) {
        self.prepared.lock().insert(number, prepared);
        self.prepared_below.fetch_max(number + 1, Ordering::AcqRel);
    }

    pub(crate) fn is_prepared(&self, number: u64) -> bool {
        self.prepared.lock().contains_key(&number)
    }

    /// Recovery: segments below `number` are complete, this one is next.
    pub(crate) fn activate(&self, number: u64) {
        self.prepared_below.fetch_max(number + 1, Ordering::AcqRel);
        self.wanted_below.fetch_max(number + 1 + limits::SEGMENTS_AHEAD, Ordering::AcqRel);
    }

    #[cfg(test)]
    pub(crate) fn active(&self) -> u64 {
        self.sealed_below.load(Ordering::Acquire)
    }

    pub(crate) fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// How many segment files there are.
    pub(crate) fn files(&self) -> u64 {
        (self.catalogue.files() + self.prepared.lock().len()) as u64
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether slab `number` may be opened: its segment is prepared, and what it displaces from a
    /// ring of `slots` slabs is sealed. An error if preparing fails at the moment.
    pub(crate) fn may_open(&self, number: u64, slots: u64) -> Result<bool> {
        let segment = number / self.geometry.slabs_per_segment();
        let wanted = segment + 1 + limits::SEGMENTS_AHEAD;
        if self.wanted_below.fetch_max(wanted, Ordering::AcqRel) < wanted {
            self.send(Job::Prepare);
        }
        if segment >= self.prepared_below.load(Ordering::Acquire) {
            self.hurried.store(true, Ordering::Relaxed);
            return self.failure.lock().clone().map_or(Ok(false), Err);
        }
        let displaced = number.checked_sub(slots).map(|n| n / self.geometry.slabs_per_segment());
        Ok(displaced.is_none_or(|s| s < self.sealed_below.load(Ordering::Acquire)))
    }

    fn send(&self, job: Job) {
        // The receiver is a field of the same struct: sending cannot fail.
        let _ = self.jobs.0.send(job);
    }

    /// Space was freed: try again now.
    pub(crate) fn retry(&self) {
        if self.failure.lock().is_some() {
            self.send(Job::Prepare);
        }
    }

    /// The prepared segment `number`, to be written to from the record and chain of `from` on.
    pub(crate) fn take_prepared(&self, number: u64, from: (u64, u32)) -> Result<Arc<OpenSegment>> {
        let prepared = self.prepared.lock().remove(&number).ok_or_else(|| {
            Error::new(ErrorKind::MissingSegment, "a slab was opened in an unprepared segment")
                .at_segment(number, 0)
        })?;
        let place = (number, prepared.path, prepared.file);
        Ok(Arc::new(OpenSegment::new(&self.geometry, place, prepared.salt, from)))
    }

    /// After the thread has ended: the next opening would have to read what was prepared, to find
    /// that nothing was written to it.
    pub(crate) fn discard_prepared(&self) {
        if self.failure.lock().is_some() {
            // What failed may lie behind them under its name, and no gap must come before it.
            return;
        }
        let prepared = std::mem::take(&mut *self.prepared.lock());
        // The last one first, and each for good before the next: a crash must not leave a gap.
        for (number, Prepared { path, file, .. }) in prepared.into_iter().rev() {
            drop(file);
            let removed = self.disk.remove(&path);
            let removed = removed.and_then(|()| self.disk.sync_dir(&self.dir.join("segments")));
            if let Err(error) = removed {
                // It stays, which costs time only.
                tracing::warn!(%error, segment = number, "cannot remove a segment that is empty");
                return;
            }
        }
    }

    pub(crate) fn seal_later(&self, segment: Arc<OpenSegment>) {
        self.send(Job::Seal(segment));
    }

    // ---- the thread ------------------------------------------------------------------------

    /// What the segment thread does until `stop`; what is to be sealed is sealed first.
    pub(crate) fn run(&self, log: &Log, stop: &AtomicBool) {
        self.send(Job::Prepare);
        loop {
            let failed = self.failure.lock().is_some();
            let timeout = if failed { limits::PREPARE_RETRY } else { limits::SLEEP_MAX };
            let job = self.jobs.1.recv_timeout(timeout);
            let stopping = stop.load(Ordering::Acquire);
            match job {
                Ok(Job::Prepare) | Err(_) if stopping => {
                    if self.jobs.1.is_empty() {
                        return;
                    }
                }
                Ok(job) => self.work(log, job),
                Err(_) if failed => self.prepare_wanted(),
                Err(_) => {}
            }
        }
    }

    /// Ends a sleep of the thread.
    pub(crate) fn kick(&self) {
        self.send(Job::Prepare);
    }

    /// Without threads: everything that is to be done.
    pub(crate) fn step(&self, log: &Log) {
        self.prepare_wanted();
        while let Ok(job) = self.jobs.1.try_recv() {
            self.work(log, job);
        }
    }

    fn work(&self, log: &Log, job: Job) {
        match job {
            Job::Prepare => self.prepare_wanted(),
            Job::Seal(segment) => match self.seal(&segment, false) {
                Ok(()) => self.supply.wake_all(),
                Err(error) => log.poison(error),
            },
        }
    }

    /// Prepares one segment if one is wanted, and asks for the next behind what else is to be done:
    /// sealing frees slabs and must not wait for zeros.
    fn prepare_wanted(&self) {
        let _alone = self.preparing.lock();
        let number = self.prepared_below.load(Ordering::Acquire);
        if number >= self.wanted_below.load(Ordering::Acquire) {
            return;
        }
        let prepared = self.prepare(number);
        self.hurried.store(false, Ordering::Relaxed);
        match prepared {
            Ok(prepared) => {
                *self.failure.lock() = None;
                self.adopt(number, prepared);
                self.send(Job::Prepare);
            }
            Err(error) => {
                let mut failure = self.failure.lock();
                if failure.is_none() {
                    tracing::warn!(%error, segment = number, "cannot prepare a segment");
                }
                *failure = Some(error);
            }
        }
        self.supply.wake_all();
    }

    /// Makes segment `number`: under a temporary name, allocated and (unless a producer waits
    /// for it) filled with zeros, header written, synced, renamed, directory synced.
    pub(crate) fn prepare(&self, number: u64) -> Result<Prepared> {
        let path = segment_path(&self.dir, &self.geometry, number);
        let temporary = path.with_extension("tmp");
        let made = self.prepare_at(&temporary, number).and_then(|(file, salt)| {
            let failed = |e| Error::io("cannot name a new segment", &path, e);
            self.disk.rename(&temporary, &path).map_err(failed)?;
            self.disk.sync_dir(&self.dir.join("segments")).map_err(failed)?;
            Ok(Prepared { path: path.clone(), file, salt })
        });
        if made.is_err() {
            // Frees the space at once; recovery would remove it otherwise. Under its own name it
            // would lie behind a gap once those before it are discarded.
            let _ = self.disk.remove(&temporary);
            let _ = self.disk.remove(&path);
        }
        made.map_err(|e| e.at_segment(number, 0))
    }

    fn prepare_at(&self, path: &Path, number: u64) -> Result<(Arc<dyn DiskFile>, u64)> {
        let failed = |e| Error::io("cannot prepare a segment", path, e);
        let mode = OpenMode { write: true, create: true, direct: true };
        let file = match self.disk.open(path, mode) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                self.disk.remove(path).map_err(failed)?;
                self.disk.open(path, mode).map_err(failed)?
            }
            opened => opened.map_err(failed)?,
        };
        let bytes = self.geometry.segment_bytes;
        file.allocate(bytes).map_err(failed)?;
        let piece = AlignedBuf::zeroed(limits::ZERO_FILL_BYTES.min(bytes as usize));
        let mut offset = 0;
        while offset < bytes && !self.hurried.load(Ordering::Relaxed) {
            file.write_at(&piece, offset).map_err(failed)?;
            offset += piece.len() as u64;
        }
        let header = SegmentHeader {
            log_id: self.log_id,
            nonce: random_u64(&*self.disk)?,
            number,
            slab_bytes: self.geometry.slab_bytes,
            segment_bytes: bytes,
            created_nanos: self.clock.wall(),
            required: 0,
            optional: 0,
        };
        let mut page = AlignedBuf::zeroed(PAGE_BYTES as usize);
        page.copy_from_slice(&header.encode());
        file.write_at(&page, 0).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        Ok((file, header.salt()))
    }

    /// Writes the footer, makes the file read-only, enters it in the catalogue.
    pub(crate) fn seal(&self, segment: &OpenSegment, torn: bool) -> Result<()> {
        let failed =
            |e| Error::io("cannot seal a segment", &segment.path, e).at_segment(segment.number, 0);
        let footer = segment.footer(torn);
        let encoded = footer.encode(self.geometry.segment_bytes);
        let mut region = AlignedBuf::zeroed(encoded.len());
        region.copy_from_slice(&encoded);
        let offset = self.geometry.segment_bytes - encoded.len() as u64;
        segment.file.write_at(&region, offset).map_err(failed)?;
        segment.file.sync_data().map_err(failed)?;
        segment.file.set_read_only().map_err(failed)?;
        if !segment.file.is_direct() {
            // Written through the page cache: it has done its work.
            let _ = segment.file.drop_cache(0, self.geometry.segment_bytes);
        }
        tracing::debug!(segment = segment.number, last_lsn = footer.last_lsn, "sealed");
        self.catalogue.seal(segment.path.clone(), footer);
        self.sealed_below.fetch_max(segment.number + 1, Ordering::AcqRel);
        Ok(())
    }
}

pub(crate) fn random_u64(disk: &dyn Disk) -> Result<u64> {
    disk.random_u64()
        .map_err(|e| Error::new(ErrorKind::Io, "no random numbers").because(e.to_string()))
}
