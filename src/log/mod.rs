//! The log: from a batch under the append lock to durable blocks in segment files.
//!
//! ```text
//! WriteBatch ─► Appender (open block) ─► Committer (headers, CRC, writes, syncs) ─► publish
//!                    ▲                        │ rolls
//!                    └── slabs ◄── Segments (prepares ahead, seals behind) ─► Catalogue
//! ```

mod appender;
mod catalogue;
mod committer;
mod create;
mod meta;
#[cfg(races = "loom")]
pub(crate) mod models;
mod recovery;
mod retention;
mod segments;
mod survey;
#[cfg(test)]
mod tests;
mod waiters;
mod walk;
mod writer;
mod writes;

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::lsn::{Geometry, Lsn};
use crate::options::{Durability, Options};
use crate::ring::Ring;
use crate::sync::atomic::AtomicBool;
use crate::sync::{Clock, Futex, Mutex, MutexGuard, nanos, planted};

use appender::{Appender, Role};
use committer::{Committer, Round};
use waiters::Waiters;

pub(crate) use catalogue::{Catalogue, Located, Sealed};
pub(crate) use meta::MetaFile;
pub use recovery::Recovery;
pub(crate) use recovery::{Opened, open_log};
pub(crate) use retention::Retainer;
pub(crate) use segments::{Segments, random_u64, segment_path};
pub(crate) use survey::{Found, Survey};
pub(crate) use walk::{Chain, Effort, Walker, kinds_of};
pub use writer::{Ticket, WriteBatch, Writer};

/// How commits come to be visible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CommitMode {
    Synced,
    Deferred { interval_nanos: u64, bytes: u64 },
    Memory,
}

/// What the log counts; read on the supervisor's tick.
#[derive(Debug, Default)]
pub(crate) struct LogCounters {
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) blocks: AtomicU64,
}

/// What changes with every batch: on cache lines of its own, since consumers read its neighbours on
/// every step.
struct Writing {
    append: Mutex<Appender>,
    /// The thread whose batch holds the append lock, 0 if none does. Relaxed: a thread only looks
    /// for itself, and the tick samples it to find batches held too long.
    holder: AtomicUsize,
    /// Batches begun. Relaxed: written by the holder of the lock, and only told.
    batches: AtomicU64,
}

/// The log of one bus. Shared by writers, the committer thread and consumers.
pub(crate) struct Log {
    pub(crate) geometry: Geometry,
    pub(crate) ring: Arc<Ring>,
    pub(crate) clock: Clock,
    mode: CommitMode,
    append_timeout: Duration,
    watermark_idle: u64,
    writing: CachePadded<Writing>,
    block_bytes_max: usize,
    /// Locked by whoever has the role; never contended.
    committer: Mutex<Committer>,
    /// The committer thread sleeps here.
    kick: Futex,
    waiters: Waiters,
    /// `None` in memory.
    segments: Option<Arc<Segments>>,
    poison: OnceLock<Error>,
    pub(crate) counters: CachePadded<LogCounters>,
    pub(crate) commit_seconds: metrics::Histogram,
    /// Without threads: whoever waits does the work (tests, simulation).
    threads: bool,
}

impl Log {
    pub(crate) fn new(
        options: &Options,
        geometry: Geometry,
        ring: Arc<Ring>,
        clock: Clock,
        opened: Option<(Arc<Segments>, Committer)>,
        start: (usize, Lsn),
        threads: bool,
    ) -> Result<Log> {
        let mode = match (&opened, options.durability) {
            (None, _) => CommitMode::Memory,
            (_, Durability::Synced) => CommitMode::Synced,
            (_, Durability::Deferred { interval, bytes }) => {
                CommitMode::Deferred { interval_nanos: nanos(interval), bytes }
            }
        };
        let position = ring.committed.load().position();
        let number = geometry.slab_of(position);
        let current = ring
            .get(number)
            .or_else(|| ring.open_slab(number))
            .ok_or_else(|| Error::new(ErrorKind::Busy, "no memory for the first slab"))?;
        let (offset, next_lsn) = start;
        let block_bytes_max = options.block_bytes_max();
        let close_bytes = limits::BLOCK_CLOSE_BYTES.min(block_bytes_max);
        let close_bytes = match mode {
            // An open block must not hold back more than is allowed to be unsynced.
            CommitMode::Deferred { bytes, .. } => close_bytes.min(bytes as usize),
            CommitMode::Synced | CommitMode::Memory => close_bytes,
        };
        let sizes = (block_bytes_max, close_bytes);
        let mut appender = Appender::new(geometry, sizes, current, offset, next_lsn);
        let (segments, mut committer) = match opened {
            Some((segments, committer)) => (Some(segments), committer),
            None => (None, Committer::in_memory()),
        };
        committer.note_unvouched(&clock, &mut appender);
        Ok(Log {
            geometry,
            writing: CachePadded::new(Writing {
                append: Mutex::new(appender),
                holder: AtomicUsize::new(0),
                batches: AtomicU64::new(0),
            }),
            ring,
            clock,
            mode,
            append_timeout: options.append_timeout,
            watermark_idle: nanos(options.watermark_idle),
            block_bytes_max,
            committer: Mutex::new(committer),
            kick: Futex::default(),
            waiters: Waiters::default(),
            segments,
            poison: OnceLock::new(),
            counters: CachePadded::default(),
            commit_seconds: metrics::histogram!("eventplane_commit_duration_seconds"),
            threads,
        })
    }

    pub(crate) fn segments(&self) -> Option<&Arc<Segments>> {
        self.segments.as_ref()
    }

    /// The error that poisoned the log.
    pub(crate) fn poisoned(&self) -> Option<Error> {
        self.poison.get().map(|cause| {
            Error::new(ErrorKind::Poisoned, "the log failed earlier")
                .because(cause.clone())
                .advise("reopen it: recovery reads what is really on disk")
        })
    }

    /// The number of the batch that holds the append lock, 0 if none does.
    pub(crate) fn held_batch(&self) -> u64 {
        let held = self.writing.holder.load(Ordering::Relaxed) != 0;
        if held { self.writing.batches.load(Ordering::Relaxed) } else { 0 }
    }

    // ---- appending -------------------------------------------------------------------------

    /// The append lock, with the current and the next slab at hand.
    fn lock_for_append(&self) -> Result<MutexGuard<'_, Appender>> {
        let mut appender = self.writing.append.lock();
        if appender.next.is_none() || appender.refusal.is_some() {
            appender = self.supply(appender)?;
        }
        Ok(appender)
    }

    /// Gets the next slab; waits, without the lock, while the disk is behind.
    #[cold]
    fn supply<'a>(
        &'a self,
        mut appender: MutexGuard<'a, Appender>,
    ) -> Result<MutexGuard<'a, Appender>> {
        let begun = self.clock.now();
        loop {
            if let Some(refusal) = &appender.refusal {
                return Err(refusal.clone());
            }
            if appender.next.is_some() {
                return Ok(appender);
            }
            let number = appender.next_number();
            let Some(segments) = &self.segments else {
                self.ring.retire();
                appender.next = self.ring.open_slab(number);
                if appender.next.is_none() {
                    return Err(Error::new(ErrorKind::Busy, "every slab is pinned"));
                }
                continue;
            };
            let seen = segments.supply.read();
            match segments.may_open(number, self.ring.slots()) {
                Ok(true) => appender.next = self.ring.open_slab(number),
                Ok(false) => {}
                Err(error) => return Err(error),
            }
            if appender.next.is_some() {
                continue;
            }
            let wake = self.hand_over(&mut appender);
            drop(appender);
            if wake {
                self.kick.wake_all();
            }
            let waited = Duration::from_nanos(self.clock.now() - begun);
            if waited >= self.append_timeout {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("the disk gave no room for {:?}", self.append_timeout),
                ));
            }
            if self.threads {
                segments.supply.sleep(seen, (self.append_timeout - waited).min(limits::SLEEP_MAX));
            } else {
                self.drive()?;
            }
            appender = self.writing.append.lock();
        }
    }

    /// Lets the committer thread take what is pending. Returns whether it has to be woken.
    fn hand_over(&self, appender: &mut Appender) -> bool {
        if !self.threads {
            return false;
        }
        if appender.role == Role::Free && appender.has_work() {
            appender.role = Role::Handed;
        }
        // Deferred, the thread that has the role sleeps through the interval.
        let gathers = matches!(self.mode, CommitMode::Deferred { .. })
            && appender.role == Role::Held
            && appender.flush_below <= self.ring.committed.load().position()
            && !appender.has_closed();
        !gathers
            && !planted("hand_over_wakes_nobody")
            && std::mem::take(&mut appender.thread_asleep)
    }

    // ---- committing ------------------------------------------------------------------------

    /// The end of [`WriteBatch::commit`].
    #[inline]
    fn commit(self: &Arc<Self>, appender: MutexGuard<'_, Appender>) -> Result<()> {
        match self.mode {
            CommitMode::Memory => {
                self.publish_in_memory(appender);
                Ok(())
            }
            CommitMode::Deferred { .. } => {
                self.commit_later(appender);
                Ok(())
            }
            CommitMode::Synced => self.commit_synced(appender),
        }
    }

    fn commit_synced(&self, mut appender: MutexGuard<'_, Appender>) -> Result<()> {
        let begun = self.clock.now();
        let (sequence, position) = appender.place();
        appender.close_if_full();
        // Who failed has poisoned the log before it let go of the role.
        if appender.role == Role::Free && self.poison.get().is_none() {
            appender.role = Role::Held;
            drop(appender);
            self.lead();
        } else {
            drop(appender);
        }
        let done = self.wait_durable(sequence, position);
        self.commit_seconds.record(Duration::from_nanos(self.clock.now() - begun));
        done
    }

    /// The end of [`WriteBatch::commit_later`]: at most one futex call, after unlocking.
    fn commit_later(&self, mut appender: MutexGuard<'_, Appender>) -> (u64, u64) {
        let place = appender.place();
        if self.mode == CommitMode::Memory {
            self.publish_in_memory(appender);
            return place;
        }
        if appender.open_since.is_none() {
            appender.open_since = Some(self.clock.now());
        }
        appender.close_if_full();
        let wake = self.hand_over(&mut appender);
        drop(appender);
        if wake {
            self.kick.wake_all();
        }
        place
    }

    fn publish_in_memory(&self, mut appender: MutexGuard<'_, Appender>) {
        let counters = &self.counters;
        let position = appender.close_in_memory(self.clock.wall());
        let lsn = appender.next_lsn().previous();
        // Relaxed, load and store: only the holder of the append lock writes these in memory.
        counters.records.store(lsn.get(), Ordering::Relaxed);
        counters.bytes.store(position, Ordering::Relaxed);
        counters.commits.store(counters.commits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let somebody_sleeps = self.ring.publish(position, lsn);
        drop(appender);
        if somebody_sleeps {
            self.ring.sleepers.ring();
        }
    }

    /// Writes what is pending as a producer that found nobody at it, then lets go of the role.
    fn lead(&self) {
        let mut committer = self.committer.lock();
        {
            let mut appender = self.writing.append.lock();
            while let Some(block) = appender.take(true) {
                committer.push(block);
            }
        }
        if let Err(error) = committer.write_pending(self) {
            self.poison(error);
        }
        let mut appender = self.writing.append.lock();
        committer.note_unvouched(&self.clock, &mut appender);
        if appender.has_work() && self.poison.get().is_none() && self.threads {
            appender.role = Role::Handed;
        } else {
            appender.role = Role::Free;
        }
        let wake = appender.role == Role::Handed
            && !planted("lead_forgets_the_rest")
            && std::mem::take(&mut appender.thread_asleep);
        drop(appender);
        drop(committer);
        if wake {
            self.kick.wake_all();
        }
    }

    /// Takes the role if nobody has it and there is something to write. Returns whether it did.
    fn lead_if_free(&self) -> bool {
        let mut appender = self.writing.append.lock();
        let idle = appender.role == Role::Free && self.poison.get().is_none();
        if !idle || !appender.has_work() {
            return false;
        }
        appender.role = Role::Held;
        drop(appender);
        self.lead();
        true
    }

    fn wait_durable(&self, sequence: u64, position: u64) -> Result<()> {
        let nap = if self.threads { limits::SLEEP_MAX } else { Duration::ZERO };
        self.waiters.wait(sequence, nap, || {
            let seen = self.ring.committed.load_seq_cst();
            if seen.position() >= position {
                return Some(Ok(()));
            }
            if seen.is_poisoned() {
                return Some(Err(self.poisoned().unwrap_or_else(|| {
                    Error::new(ErrorKind::Poisoned, "the log failed earlier")
                })));
            }
            if !self.threads {
                self.drive_round();
            }
            None
        })
    }

    fn wait_ticket(&self, (sequence, position): (u64, u64)) -> Result<()> {
        match self.mode {
            CommitMode::Synced => {
                self.assert_not_held();
                self.wait_durable(sequence, position)
            }
            CommitMode::Memory | CommitMode::Deferred { .. } => Ok(()),
        }
    }

    /// Returns when everything committed before the call is durable.
    pub(crate) fn sync(&self) -> Result<()> {
        if self.mode == CommitMode::Memory {
            return Ok(());
        }
        self.assert_not_held();
        let mut appender = self.writing.append.lock();
        let open = appender.has_open_records();
        let (sequence, end) = appender.place();
        let place = if open { (sequence, end) } else { appender.last_place() };
        appender.flush_below = appender.flush_below.max(place.1);
        let wake = self.hand_over(&mut appender);
        drop(appender);
        if wake {
            self.kick.wake_all();
        }
        self.wait_durable(place.0, place.1)
    }

    /// Nothing more is appended; what follows is refused with `why`.
    pub(crate) fn refuse(&self, why: Error) {
        let mut appender = self.writing.append.lock();
        appender.refusal.get_or_insert(why);
        drop(appender);
        if let Some(segments) = &self.segments {
            segments.supply.wake_all();
        }
        // With deferred durability it may be asleep until the interval is over.
        self.kick.wake_all();
    }

    /// The end of trust in what is in memory or on disk: every later commit fails, consumers drain
    /// what is published. Only reopening clears it.
    pub(crate) fn poison(&self, cause: Error) {
        if self.poison.set(cause.clone()).is_err() {
            return;
        }
        tracing::error!(error = %cause, "the log is poisoned");
        self.refuse(self.poisoned().unwrap_or(cause));
        if self.ring.committed.poison() {
            self.ring.sleepers.ring();
        }
        self.waiters.wake_all();
    }

    // ---- the committer thread --------------------------------------------------------------

    /// What the committer thread does until `stop`.
    pub(crate) fn run_committer(&self, stop: &AtomicBool) {
        loop {
            let seen = self.kick.read();
            match self.claim(stop) {
                Some(true) => {
                    let mut committer = self.committer.lock();
                    if let Err(error) = committer.run(self) {
                        self.poison(error);
                        self.writing.append.lock().role = Role::Free;
                    }
                }
                Some(false) => self.kick.sleep(seen, self.idle_timeout()),
                // A writer may outlive the bus; files and lock must not.
                None => return self.committer.lock().close(),
            }
        }
    }

    fn idle_timeout(&self) -> Duration {
        Duration::from_nanos(self.watermark_idle.max(1_000_000)).min(limits::SLEEP_MAX)
    }

    /// Takes the role if there is something to do: `Some(true)`. `None` at the end.
    fn claim(&self, stop: &AtomicBool) -> Option<bool> {
        let mut appender = self.writing.append.lock();
        if self.poison.get().is_some() {
            // Nothing is written behind what failed. The end comes when appending is refused, too.
            appender.thread_asleep = true;
            let is_end = appender.refusal.is_some() && appender.role != Role::Held;
            return (!is_end).then_some(false);
        }
        if appender.role == Role::Free {
            let closing = stop.load(Ordering::Acquire);
            if !appender.has_work() {
                self.add_watermark(&mut appender, closing);
            }
            if appender.has_work() {
                appender.role = Role::Handed;
            } else if closing {
                let closed = || Error::new(ErrorKind::Closed, "the bus is closed");
                appender.refusal.get_or_insert_with(closed);
                return None;
            }
        }
        if appender.role == Role::Handed {
            appender.role = Role::Held;
            appender.thread_asleep = false;
            return Some(true);
        }
        appender.thread_asleep = true;
        Some(false)
    }

    /// Lets an idle log vouch for its last block.
    fn add_watermark(&self, appender: &mut Appender, closing: bool) {
        let Some(since) = appender.unvouched_since else {
            return;
        };
        if closing || self.clock.now().saturating_sub(since) >= self.watermark_idle {
            appender.unvouched_since = None;
            // Where there is no room the block stays unvouched until the next one.
            let _ = appender.close_watermark(self.clock.now());
        }
    }

    /// Wakes the committer thread, to look at `stop` or at a due time.
    pub(crate) fn kick(&self) {
        self.kick.wake_all();
    }

    /// Without threads: does what the committer and the preparer would do next, until they would
    /// rest.
    pub(crate) fn drive(&self) -> Result<()> {
        if let Some(segments) = &self.segments {
            segments.step(self);
        }
        while self.drive_round() == Some(Round::Again) {}
        self.poisoned().map_or(Ok(()), Err)
    }

    /// Without threads: one round of the committer. `None` if it has nothing to do.
    pub(crate) fn drive_round(&self) -> Option<Round> {
        let mut committer = self.committer.lock();
        if !committer.under_way && self.claim(&AtomicBool::new(false)) != Some(true) {
            return None;
        }
        committer.under_way = false;
        match committer.round(self) {
            Ok(Round::Done) => Some(Round::Done),
            Ok(round) => {
                committer.under_way = true;
                Some(round)
            }
            Err(error) => {
                drop(committer);
                self.poison(error);
                self.writing.append.lock().role = Role::Free;
                None
            }
        }
    }

    /// After the committer thread, or without one: writes what is left and the closing watermark;
    /// once appending is refused, lets go of files and lock.
    pub(crate) fn finish(&self) {
        while !self.threads && self.drive_round().is_some() {}
        while self.lead_if_free() {}
        let mut appender = self.writing.append.lock();
        let closed = appender.refusal.is_some();
        if appender.role == Role::Free && self.poison.get().is_none() {
            self.add_watermark(&mut appender, true);
            appender.role = Role::Held;
            drop(appender);
            self.lead();
        } else {
            drop(appender);
        }
        if closed {
            self.committer.lock().close();
        }
    }
}
