//! Deleting what is no longer kept, oldest segment first: the segment leaves the catalogue, then
//! `log_start` is stored durably, then its file goes. In this order, since a store that fails may
//! be on the disk all the same: nobody must be sent to what the next opening does not find.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::catalogue::Sealed;
use super::recovery::LogFiles;
use super::segments::Segments;
use crate::error::{Error, Result};
use crate::lsn::{Geometry, Lsn};
use crate::options::Retention;
use crate::planted::{Bug, planted};
use crate::sync::nanos;

pub(crate) struct Retainer {
    policy: Retention,
    geometry: Geometry,
    /// Gone after the end.
    files: Mutex<Option<Arc<LogFiles>>>,
    segments: Arc<Segments>,
}

/// What the barrier of the slowest checkpoint came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Retained {
    pub(crate) deleted_segments: u64,
    /// The barrier yielded to the hard cap: somebody loses records up to this LSN.
    pub(crate) yielded_to: Option<Lsn>,
}

impl Retainer {
    pub(crate) fn new(
        policy: Retention,
        geometry: Geometry,
        files: Arc<LogFiles>,
        segments: Arc<Segments>,
    ) -> Retainer {
        Retainer { policy, geometry, files: Mutex::new(Some(files)), segments }
    }

    /// The bytes of log that may still be written before a record at `position` can be deleted
    /// whatever its consumer's checkpoint says; `None` if it never is.
    pub(crate) fn lead_bytes(
        &self,
        position: u64,
        committed: u64,
        has_barrier: bool,
    ) -> Option<u64> {
        let cap = if has_barrier { self.policy.hard_cap_bytes } else { self.policy.max_bytes }?;
        let begin = self.geometry.segment_start(self.geometry.segment_of(position));
        Some(cap.saturating_sub(committed.saturating_sub(begin)))
    }

    /// The bytes at which something is deleted.
    pub(crate) fn kept_bytes_max(&self) -> u64 {
        let Retention { max_bytes, hard_cap_bytes, .. } = self.policy;
        hard_cap_bytes.or(max_bytes).unwrap_or(u64::MAX)
    }

    /// After the end: gives the log's files and its lock on the directory back.
    pub(crate) fn release_files(&self) {
        *self.files.lock() = None;
    }

    /// Takes what may go out of the catalogue: nobody is sent there any more. `barrier` is the
    /// lowest checkpoint that may be stored; nobody may store a lower one meanwhile.
    pub(crate) fn release(&self, wall_nanos: u64, barrier: Option<Lsn>) -> Retained {
        if !self.policy.deletes() {
            return Retained::default();
        }
        let (retained, last) = self.choose(wall_nanos, barrier);
        if let Some(last) = last {
            let log_start = self.geometry.segment_start(last.number + 1);
            self.segments.catalogue().advance(log_start, last.last_lsn + 1);
        }
        retained
    }

    /// Deletes what was taken out of the catalogue. What cannot be noted or removed stays, for
    /// another try or the next opening: until it is noted, nothing else is to be released.
    pub(crate) fn delete(&self) -> Result<()> {
        let catalogue = self.segments.catalogue();
        let leaving = catalogue.leaving();
        let (Some(last), Some(files)) = (leaving.last(), self.files.lock().clone()) else {
            return Ok(());
        };
        if planted(Bug::UnlinksFirst) {
            let _ = files.disk.remove(&last.path);
        }
        let (log_start, first_lsn) = catalogue.start();
        if files.meta.get().log_start < log_start {
            files.meta.update(|meta| {
                meta.log_start = log_start;
                meta.log_start_lsn = first_lsn.get();
            })?;
        }
        let mut outcome = Ok(());
        for sealed in &leaving {
            match files.disk.remove(&sealed.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    outcome = Err(Error::io("cannot delete a segment", &sealed.path, e));
                }
                _ => catalogue.forget(sealed.number),
            }
        }
        tracing::debug!(%first_lsn, segments = leaving.len(), "deleted segments");
        self.segments.retry();
        outcome
    }

    /// What goes, through which segment.
    fn choose(&self, wall_nanos: u64, barrier: Option<Lsn>) -> (Retained, Option<Arc<Sealed>>) {
        let catalogue = self.segments.catalogue();
        let mut kept_bytes = catalogue.segments() as u64 * self.geometry.segment_bytes;
        let (mut retained, mut last) = (Retained::default(), None::<Arc<Sealed>>);
        for sealed in catalogue.oldest(usize::MAX) {
            let held = barrier.is_some_and(|lsn| sealed.last_lsn > lsn.get());
            let yields = self.policy.hard_cap_bytes.is_some_and(|cap| kept_bytes > cap);
            let goes = self.is_over(&sealed, kept_bytes, wall_nanos, barrier);
            if !(yields || goes && !held) {
                break;
            }
            if held {
                retained.yielded_to = Some(Lsn::new(sealed.last_lsn));
            }
            kept_bytes -= self.geometry.segment_bytes;
            retained.deleted_segments += 1;
            last = Some(sealed);
        }
        (retained, last)
    }

    fn is_over(
        &self,
        sealed: &Sealed,
        kept_bytes: u64,
        wall_nanos: u64,
        barrier: Option<Lsn>,
    ) -> bool {
        let policy = &self.policy;
        let age = wall_nanos.saturating_sub(sealed.last_time_nanos);
        policy.max_bytes.is_some_and(|max| kept_bytes > max)
            || policy.max_age.is_some_and(|max| age > nanos(max))
            || policy.consumed && barrier.is_some_and(|lsn| sealed.last_lsn <= lsn.get())
    }
}
