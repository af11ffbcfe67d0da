//! The data plane's side: [`Writer`], [`WriteBatch`], [`Ticket`].

use std::fmt;
use std::mem;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Log;
use super::appender::{Appender, Growth, payload_bytes_max};
use crate::error::{Error, ErrorKind, Result};
use crate::format::copy_payload;
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
        let log = &*self.log;
        log.assert_not_held();
        let mut appender = log.lock_for_append()?;
        let lsn = appender.append(kind, key, payload)?;
        self.log.commit(appender)?;
        Ok(lsn)
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
                log.writing.holder.store(this_thread(), Ordering::Relaxed);
                // Only the holder of the lock writes it.
                let batch = log.writing.batches.load(Ordering::Relaxed) + 1;
                log.writing.batches.store(batch, Ordering::Relaxed);
                // SAFETY: the guard stays in the batch until it ends; what is given out borrows it.
                let growth = unsafe { appender.begin() };
                let (appender, refusal) = (Some(appender), None);
                WriteBatch { log: &self.log, appender, refusal, growth, kind: None }
            }
            Err(error) => {
                let (appender, refusal) = (None, Some(error));
                let growth = Growth::none();
                WriteBatch { log: &self.log, appender, refusal, growth, kind: None }
            }
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
    growth: Growth<'a>,
    /// Of the last record.
    kind: Option<u16>,
}

impl fmt::Debug for WriteBatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBatch").field("records", &self.growth.records).finish_non_exhaustive()
    }
}

impl<'a> WriteBatch<'a> {
    /// Adds a record; copies the payload once, to where it stays.
    ///
    /// # Errors
    /// [`ErrorKind::RecordTooLarge`] and [`ErrorKind::BatchTooLarge`] leave the batch as it was.
    /// The errors of [`Writer::batch`].
    #[inline(always)]
    pub fn append(&mut self, kind: u16, key: u64, payload: &[u8]) -> Result<()> {
        copy_payload(self.record(kind, key, payload.len())?, payload);
        Ok(())
    }

    /// Adds a record of `payload_bytes` zeros and returns them, to encode in place.
    ///
    /// # Errors
    /// As [`WriteBatch::append`].
    #[inline]
    pub fn reserve(&mut self, kind: u16, key: u64, payload_bytes: usize) -> Result<&mut [u8]> {
        let payload = self.record(kind, key, payload_bytes)?;
        payload.fill(0);
        Ok(payload)
    }

    #[inline(always)]
    fn record(&mut self, kind: u16, key: u64, payload_bytes: usize) -> Result<&mut [u8]> {
        let payload = match self.growth.record(kind, key, payload_bytes) {
            Some(payload) => payload,
            None => self.record_elsewhere(kind, key, payload_bytes)?,
        };
        if self.kind != Some(kind)
            && let Some(appender) = &mut self.appender
        {
            self.kind = Some(kind);
            appender.kinds.insert(kind);
        }
        Ok(payload)
    }

    #[cold]
    fn record_elsewhere(
        &mut self,
        kind: u16,
        key: u64,
        payload_bytes: usize,
    ) -> Result<&'a mut [u8]> {
        match &mut self.appender {
            Some(appender) => appender.record_elsewhere(&mut self.growth, kind, key, payload_bytes),
            None => Err(refused(&self.refusal)),
        }
    }

    /// How many records the batch holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.growth.records as usize
    }

    /// Whether the batch holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.growth.records == 0
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
        let (log, growth) = (self.log, mem::replace(&mut self.growth, Growth::none()));
        log.writing.holder.store(0, Ordering::Relaxed);
        if growth.records == 0 {
            return Ok(empty(&appender));
        }
        let lsns = appender.accept(growth)..=appender.next_lsn().previous();
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
        let (log, growth) = (self.log, mem::replace(&mut self.growth, Growth::none()));
        log.writing.holder.store(0, Ordering::Relaxed);
        if growth.records == 0 {
            let lsns = empty(&appender);
            return Ok(Ticket { log: Arc::clone(log), lsns, place: (0, 0) });
        }
        let lsns = appender.accept(growth)..=appender.next_lsn().previous();
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
    ///
    /// # Panics
    /// With `Synced`, if this thread holds a batch, for which it would have to wait.
    pub fn wait(&self) -> Result<RangeInclusive<Lsn>> {
        self.log.wait_ticket(self.place)?;
        Ok(self.lsns.clone())
    }
}
