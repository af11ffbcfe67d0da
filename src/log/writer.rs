//! The data plane's side: [`Writer`], [`WriteBatch`], [`Ticket`].

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Log;
use super::appender::{Appender, Extent, payload_bytes_max};
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::sync::{MutexGuard, thread_local};

thread_local! {
    /// Its address tells threads apart.
    static THREAD: u8 = const { 0 };
}

fn this_thread() -> usize {
    THREAD.with(|mark| std::ptr::from_ref(mark).addr())
}

impl Log {
    /// Whether this thread holds a batch, and with it the append lock.
    pub(crate) fn is_held_here(&self) -> bool {
        self.writing.holder.load(Ordering::Relaxed) == this_thread()
    }

    /// Waiting for the append lock, or for what needs it, would never end.
    pub(super) fn assert_not_held(&self) {
        assert!(
            !self.is_held_here(),
            "this thread already holds a batch of the same log: commit or drop it first"
        );
    }
}

/// Appends records. Cheap to clone; any number of threads may append at once.
///
/// # Falling behind
/// A writer never waits for a consumer. It waits for the disk, when everything in memory is still
/// unwritten, up to `append_timeout`; then it returns [`ErrorKind::Busy`].
///
/// # Full disk
/// [`ErrorKind::StorageFull`] comes at once, before an LSN is used. When there is room again,
/// appending goes on by itself.
///
/// # Crash
/// A batch that was acknowledged is there after reopening. One that was not, also one that returned
/// [`ErrorKind::Poisoned`], is there whole, at its LSNs, or not at all.
///
/// # Closing
/// After `close` every call returns [`ErrorKind::Closed`].
#[derive(Clone)]
pub struct Writer {
    log: Arc<Log>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    pub(crate) fn new(log: Arc<Log>) -> Writer {
        Writer { log }
    }

    /// Appends and commits one record.
    ///
    /// # Errors
    /// [`ErrorKind::RecordTooLarge`], [`ErrorKind::Busy`], [`ErrorKind::StorageFull`],
    /// [`ErrorKind::Poisoned`], [`ErrorKind::Closed`]; [`ErrorKind::Io`] while no segment can be
    /// prepared for another reason than a full disk: as there, nothing was used, and it is tried
    /// again.
    ///
    /// # Panics
    /// If this thread holds a batch of the same log: that would deadlock.
    pub fn append(&self, kind: u16, key: u64, payload: &[u8]) -> Result<Lsn> {
        let mut batch = self.batch();
        batch.append(kind, key, payload)?;
        Ok(*batch.commit()?.start())
    }

    /// Begins a batch and takes the append lock until the batch ends. What keeps it from appending
    /// (the disk is far behind, full, failed; the bus is closed) is returned by every call on it.
    ///
    /// # Panics
    /// If this thread holds a batch of the same log: that would deadlock.
    pub fn batch(&self) -> WriteBatch<'_> {
        let log = &*self.log;
        log.assert_not_held();
        match log.lock_for_append() {
            Ok(appender) => {
                let extent = appender.begin();
                log.writing.holder.store(this_thread(), Ordering::Relaxed);
                // Only the holder of the lock writes it.
                let batch = log.writing.batches.load(Ordering::Relaxed) + 1;
                log.writing.batches.store(batch, Ordering::Relaxed);
                WriteBatch { log: &self.log, appender: Some(appender), refusal: None, extent }
            }
            Err(error) => WriteBatch {
                log: &self.log,
                appender: None,
                refusal: Some(error),
                extent: Extent { start: 0, end: 0, records: 0 },
            },
        }
    }

    /// The largest payload a record may have, in bytes.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        payload_bytes_max(self.log.block_bytes_max)
    }
}

/// Records that become visible all at once, or never. Holds the append lock until it ends.
///
/// Dropped without a commit, nothing happened and no LSN is used.
#[must_use = "a batch that is dropped appends nothing"]
pub struct WriteBatch<'a> {
    log: &'a Arc<Log>,
    /// `None` when refused, or once committed. The guard is `!Send`, so the batch is.
    appender: Option<MutexGuard<'a, Appender>>,
    refusal: Option<Error>,
    extent: Extent,
}

impl fmt::Debug for WriteBatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBatch").field("records", &self.extent.records).finish_non_exhaustive()
    }
}

impl WriteBatch<'_> {
    /// Adds a record; copies the payload once, to where it stays.
    ///
    /// # Errors
    /// [`ErrorKind::RecordTooLarge`] and [`ErrorKind::BatchTooLarge`] leave the batch as it was.
    /// The errors of [`Writer::batch`].
    #[inline]
    pub fn append(&mut self, kind: u16, key: u64, payload: &[u8]) -> Result<()> {
        let Some(appender) = &mut self.appender else {
            return Err(refused(&self.refusal));
        };
        appender.reserve(&mut self.extent, kind, key, payload.len())?.copy_from_slice(payload);
        Ok(())
    }

    /// Adds a record of `payload_bytes` zeros and returns them, to encode in place.
    ///
    /// # Errors
    /// As [`WriteBatch::append`].
    #[inline]
    pub fn reserve(&mut self, kind: u16, key: u64, payload_bytes: usize) -> Result<&mut [u8]> {
        let Some(appender) = &mut self.appender else {
            return Err(refused(&self.refusal));
        };
        let payload = appender.reserve(&mut self.extent, kind, key, payload_bytes)?;
        payload.fill(0);
        Ok(payload)
    }

    /// How many records the batch holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.extent.records as usize
    }

    /// Whether the batch holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extent.records == 0
    }

    /// Commits the batch and returns its LSNs: with `Synced` when it is durable, with `Deferred`
    /// and in memory at once. The range of an empty batch is empty.
    ///
    /// # Errors
    /// The errors of [`Writer::batch`]; [`ErrorKind::Poisoned`] if the write failed: the batch is
    /// then after reopening there whole or not at all.
    pub fn commit(mut self) -> Result<RangeInclusive<Lsn>> {
        let Some(mut appender) = self.appender.take() else {
            return Err(refused(&self.refusal));
        };
        let (log, extent) = (self.log, self.extent);
        log.writing.holder.store(0, Ordering::Relaxed);
        if extent.records == 0 {
            return Ok(empty(&appender));
        }
        let first = appender.accept(&extent);
        let lsns = first..=Lsn::new(first.get() + u64::from(extent.records) - 1);
        log.commit(appender)?;
        Ok(lsns)
    }

    /// Commits the batch without waiting for the disk.
    ///
    /// # Errors
    /// The errors of [`Writer::batch`].
    pub fn commit_later(mut self) -> Result<Ticket> {
        let Some(mut appender) = self.appender.take() else {
            return Err(refused(&self.refusal));
        };
        let (log, extent) = (self.log, self.extent);
        log.writing.holder.store(0, Ordering::Relaxed);
        if extent.records == 0 {
            let lsns = empty(&appender);
            return Ok(Ticket { log: Arc::clone(log), lsns, place: (0, 0) });
        }
        let first = appender.accept(&extent);
        let lsns = first..=Lsn::new(first.get() + u64::from(extent.records) - 1);
        let place = log.commit_later(appender);
        Ok(Ticket { log: Arc::clone(log), lsns, place })
    }
}

#[cold]
fn refused(why: &Option<Error>) -> Error {
    why.clone().unwrap_or_else(|| Error::new(ErrorKind::Closed, "the batch has ended"))
}

fn empty(appender: &Appender) -> RangeInclusive<Lsn> {
    let next = appender.next_lsn();
    next..=next.previous()
}

impl Drop for WriteBatch<'_> {
    fn drop(&mut self) {
        if self.appender.is_some() {
            self.log.writing.holder.store(0, Ordering::Relaxed);
        }
    }
}

/// A commit whose durability is not yet known.
#[derive(Clone)]
#[must_use = "the commit is acknowledged by `wait`"]
pub struct Ticket {
    log: Arc<Log>,
    lsns: RangeInclusive<Lsn>,
    /// Sequence of the block, position of the batch's end.
    place: (u64, u64),
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("lsns", &self.lsns).finish_non_exhaustive()
    }
}

impl Ticket {
    /// The LSNs that the batch has if it is acknowledged.
    #[must_use]
    pub fn lsns(&self) -> RangeInclusive<Lsn> {
        self.lsns.clone()
    }

    /// Returns as [`WriteBatch::commit`] does: with `Synced` when the batch is durable.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`].
    pub fn wait(&self) -> Result<RangeInclusive<Lsn>> {
        self.log.wait_ticket(self.place)?;
        Ok(self.lsns.clone())
    }
}
