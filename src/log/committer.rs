//! The committer: gives closed blocks their headers, writes them, syncs, publishes, rolls.
//!
//! There is one, and whoever has the role runs it: the committer thread, or a producer that found
//! nobody at it, for what is pending at that moment. Small commits on an idle log go out as one
//! durable write; more than that goes through the write queue, several writes in flight, and one
//! sync covers what completed before it. While writes are in flight the open block fills: that is
//! the group commit.
//!
//! A block is durable only by its own durable write, or by a sync that starts after its write
//! completed. Only the contiguous durable prefix is published (invariant I1).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::appender::{Appender, ClosedBlock, Role};
use super::catalogue::{Catalogue, OpenSegment};
use super::{CommitMode, Log};
use crate::disk::{AlignedBuf, Disk, DiskLock, StableBytes as _, Write, WriteQueue};
use crate::error::{Error, Result};
use crate::format::{
    BLOCK_HEADER_BYTES, BlockHeader, FLAG_ROLLED, PAGE_BYTES, align_up, seal_block,
};
use crate::limits;
use crate::lsn::Lsn;
use crate::planted::{Bug, planted};
use crate::ring::{BlockBytes, Ring, SlabArc};
use crate::sync::Clock;

pub(crate) struct Committer {
    /// `None` in memory, where blocks are published by the producers themselves.
    files: Option<Files>,
    pending: VecDeque<ClosedBlock>,
    in_flight: VecDeque<InFlight>,
    done: Vec<(u64, std::io::Result<()>)>,
    /// CRC of the last block given a header.
    chain: u32,
    time_nanos: u64,
    /// End of the last durable block: what the next header vouches for.
    durable: u64,
    /// The last durable block has records, and no later one says that it is durable.
    unvouched: bool,
    /// Without threads: between two rounds of a pipeline that is not done.
    pub(crate) under_way: bool,
}

struct Files {
    disk: Arc<dyn Disk>,
    lock: Arc<dyn DiskLock>,
    queue: Option<Box<dyn WriteQueue>>,
    /// Memory that the queue registered with the kernel: fields are dropped in this order.
    registered: Option<Arc<Ring>>,
    catalogue: Arc<Catalogue>,
    segment: Arc<OpenSegment>,
}

/// How a round of the pipeline ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Round {
    /// There is more to do.
    Again,
    /// There is more to do, but perhaps not before an interval is over.
    Rest,
    /// Nothing is left, and the role is given back.
    Done,
}

/// A block with a header, from submission until it is published.
struct InFlight {
    header: BlockHeader,
    /// Position behind its padding.
    end: u64,
    block: ClosedBlock,
    written: bool,
}

impl Committer {
    pub(crate) fn in_memory() -> Committer {
        Committer {
            files: None,
            pending: VecDeque::new(),
            in_flight: VecDeque::new(),
            done: Vec::new(),
            chain: 0,
            time_nanos: 0,
            durable: 0,
            unvouched: false,
            under_way: false,
        }
    }

    /// Goes on behind the block whose CRC is `chain`, at position `durable` in `segment`.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        lock: Arc<dyn DiskLock>,
        catalogue: Arc<Catalogue>,
        segment: Arc<OpenSegment>,
        (durable, chain, time_nanos): (u64, u32, u64),
        unvouched: bool,
    ) -> Committer {
        let files = Some(Files { disk, lock, queue: None, registered: None, catalogue, segment });
        Committer { files, durable, chain, time_nanos, unvouched, ..Committer::in_memory() }
    }

    /// Lets go of the files and the lock, on the thread that the write queue belongs to.
    pub(crate) fn close(&mut self) {
        self.files = None;
    }

    pub(crate) fn push(&mut self, block: ClosedBlock) {
        self.pending.push_back(block);
    }

    fn files(&mut self) -> &mut Files {
        self.files.as_mut().expect("a log in memory writes no block")
    }

    /// Writes and publishes what was pushed, one durable write a block.
    pub(crate) fn write_pending(&mut self, log: &Log) -> Result<()> {
        while let Some(block) = self.pending.pop_front() {
            self.write_durable(log, block)?;
        }
        Ok(())
    }

    fn write_durable(&mut self, log: &Log, block: ClosedBlock) -> Result<()> {
        self.enter_segment_of(log, &block)?;
        let flight = self.seal(log, block);
        let segment = Arc::clone(&self.files().segment);
        let (offset, bytes) = self.bytes_of(log, &flight);
        let (bytes, writes) = (bytes.bytes(), &self.files().catalogue.durable_writes);
        let write = || segment.file.write_durable_at(bytes, offset);
        writes.during(bytes.len(), write).map_err(|e| {
            Error::io("cannot write a block", &segment.path, e).at_segment(segment.number, offset)
        })?;
        self.in_flight.push_back(InFlight { written: true, ..flight });
        self.publish_written(log);
        Ok(())
    }

    /// What the committer thread does once it has the role, until nothing is pending, in flight or
    /// unsynced. Returns without the role, or with an error that poisons the log.
    pub(crate) fn run(&mut self, log: &Log) -> Result<()> {
        loop {
            match self.round(log)? {
                Round::Again => {}
                Round::Rest => self.wait_for_interval(log),
                Round::Done => return Ok(()),
            }
        }
    }

    /// One round of the pipeline: submits what is pending, waits for a write if any is in flight,
    /// syncs if that is due. To be called by whoever has the role.
    pub(crate) fn round(&mut self, log: &Log) -> Result<Round> {
        let outcome = self.pipeline(log);
        if outcome.is_err() {
            // The kernel may still be writing: no memory goes back before it is done.
            while self.queue_in_flight() > 0 {
                let queue = self.files().queue.as_mut().expect("something is in flight");
                if queue.complete(true, &mut Vec::new()).is_err() {
                    break;
                }
            }
            self.in_flight.clear();
        }
        outcome
    }

    fn pipeline(&mut self, log: &Log) -> Result<Round> {
        self.open_queue(log)?;
        while self.queue_has_room() {
            let Some(block) = self.take(log) else { break };
            let small = block.end - block.start <= limits::DIRECT_COMMIT_BYTES;
            if log.mode == CommitMode::Synced && self.in_flight.is_empty() && small {
                self.write_durable(log, block)?;
            } else {
                self.submit(log, block)?;
            }
        }
        if self.queue_in_flight() > 0 {
            self.reap(true)?;
        }
        if self.sync_is_due(log) {
            self.sync(log)?;
        }
        if planted(Bug::PublishesUnsynced) {
            self.publish_written(log);
        }
        if self.in_flight.is_empty() && self.release(log) {
            return Ok(Round::Done);
        }
        Ok(if self.queue_in_flight() == 0 { Round::Rest } else { Round::Again })
    }

    /// Sets the write queue up on the thread that will use it.
    fn open_queue(&mut self, log: &Log) -> Result<()> {
        let files = self.files();
        if files.queue.is_none() {
            let failed = |e| Error::io("cannot set up the write queue", &files.segment.path, e);
            let mut queue = files.disk.queue(&files.lock).map_err(failed)?;
            let (base, bytes) = log.ring.resident();
            if bytes <= limits::REGISTERED_BYTES_MAX {
                // SAFETY: the ring's own memory is never unmapped or given back while `registered`
                // holds it, which is dropped after the queue.
                unsafe { queue.register_buffers(base, bytes) }.map_err(failed)?;
            }
            files.registered = Some(Arc::clone(&log.ring));
            files.queue = Some(queue);
        }
        Ok(())
    }

    fn queue_in_flight(&mut self) -> usize {
        self.files().queue.as_ref().map_or(0, |queue| queue.in_flight())
    }

    fn queue_has_room(&mut self) -> bool {
        self.files().queue.as_ref().is_some_and(|queue| queue.in_flight() < queue.depth())
    }

    /// The next block. The open one is closed for it only while nothing is in flight (what is in
    /// flight is the time in which a group gathers) and, deferred, when the interval is over.
    fn take(&mut self, log: &Log) -> Option<ClosedBlock> {
        let mut appender = log.writing.append.lock();
        let partial = match log.mode {
            CommitMode::Deferred { .. } => self.is_pressed(log, &appender),
            CommitMode::Synced | CommitMode::Memory => self.in_flight.is_empty(),
        };
        appender.take(partial)
    }

    /// Deferred: somebody waits, nothing more will come, or the interval is over.
    fn is_pressed(&self, log: &Log, appender: &Appender) -> bool {
        appender.flush_below > self.durable
            || appender.refusal.is_some()
            || self.interval_left(log, appender) == Some(0)
    }

    /// Deferred: nanoseconds left until the oldest batch not yet durable must be.
    fn interval_left(&self, log: &Log, appender: &Appender) -> Option<u64> {
        let CommitMode::Deferred { interval_nanos, .. } = log.mode else {
            return None;
        };
        let oldest = self.in_flight.iter().find_map(|flight| flight.block.since);
        let since = oldest.or_else(|| appender.oldest_since())?;
        Some(since.saturating_add(interval_nanos).saturating_sub(log.clock.now()))
    }

    /// Fills the header in. Nobody else reads or writes a closed block's header and padding.
    fn seal(&mut self, log: &Log, block: ClosedBlock) -> InFlight {
        let start = log.geometry.slab_start(block.slab.number());
        let position = start + block.start as u64;
        let end = align_up(block.end as u64, log.geometry.align_bytes) as usize;
        self.time_nanos = self.time_nanos.max(log.clock.wall());
        let mut header = BlockHeader {
            crc: 0,
            position,
            body_bytes: (block.end - block.start - BLOCK_HEADER_BYTES) as u32,
            records: block.records,
            flags: 0,
            prev_crc: self.chain,
            first_lsn: block.first_lsn,
            time_nanos: self.time_nanos,
            watermark: self.durable,
            salt: self.files().segment.salt,
        };
        // SAFETY: a closed block above the committed position belongs to the committer.
        let bytes = unsafe { block.slab.bytes_mut(block.start, end) };
        let (framed, padding) = bytes.split_at_mut(block.end - block.start);
        padding.fill(0);
        header.crc = seal_block(framed, &header);
        self.chain = header.crc;
        InFlight { header, end: start + end as u64, block, written: false }
    }

    /// The sealed block as bytes for the disk, and where in the segment they go.
    fn bytes_of(&self, log: &Log, flight: &InFlight) -> (u64, BlockBytes) {
        let start = flight.block.start;
        let end = align_up(flight.block.end as u64, log.geometry.align_bytes) as usize;
        let offset = log.geometry.segment_offset(flight.header.position);
        // SAFETY: `seal` was the last to write these bytes.
        (offset, unsafe { BlockBytes::new(SlabArc::clone(&flight.block.slab), start, end) })
    }

    fn submit(&mut self, log: &Log, block: ClosedBlock) -> Result<()> {
        self.enter_segment_of(log, &block)?;
        let flight = self.seal(log, block);
        let (offset, data) = self.bytes_of(log, &flight);
        let token = flight.header.position;
        self.in_flight.push_back(flight);
        let files = self.files();
        let segment = Arc::clone(&files.segment);
        let file = Arc::clone(&segment.file);
        let write = Write { file, offset, data: Box::new(data), token };
        let queue = files.queue.as_mut().expect("opened before the first block is taken");
        queue.submit(write).map_err(|e| {
            Error::io("cannot submit a block", &segment.path, e).at_segment(segment.number, offset)
        })
    }

    /// Notes which writes completed; waits for one if `wait`.
    fn reap(&mut self, wait: bool) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let files = self.files();
        let segment = Arc::clone(&files.segment);
        let queue = files.queue.as_mut().expect("something is in flight");
        queue
            .complete(wait, &mut done)
            .map_err(|e| Error::io("cannot wait for writes", &segment.path, e))?;
        for (position, outcome) in done.drain(..) {
            outcome.map_err(|e| {
                Error::io("cannot write a block", &segment.path, e)
                    .at_segment(segment.number, position % segment.bytes)
            })?;
            if let Some(f) = self.in_flight.iter_mut().find(|f| f.header.position == position) {
                f.written = true;
            }
        }
        self.done = done;
        Ok(())
    }

    fn written_bytes(&self) -> u64 {
        let end = self.in_flight.iter().take_while(|f| f.written).last().map_or(0, |f| f.end);
        end.saturating_sub(self.durable)
    }

    fn sync_is_due(&mut self, log: &Log) -> bool {
        let bytes = self.written_bytes();
        if bytes == 0 {
            return false;
        }
        match log.mode {
            CommitMode::Deferred { bytes: limit, .. } => {
                bytes >= limit || self.is_pressed(log, &log.writing.append.lock())
            }
            _ => bytes >= limits::SYNC_BYTES || self.queue_in_flight() == 0,
        }
    }

    /// Makes durable what is written, and publishes it.
    fn sync(&mut self, log: &Log) -> Result<()> {
        let segment = Arc::clone(&self.files().segment);
        let mut synced = segment.file.sync_data();
        if planted(Bug::RetriesSync) {
            synced = synced.or_else(|_| segment.file.sync_data());
        }
        synced.map_err(|e| {
            Error::io("cannot sync the segment", &segment.path, e).at_segment(segment.number, 0)
        })?;
        if planted(Bug::SyncsWhatIsInFlight) {
            self.in_flight.iter_mut().for_each(|flight| flight.written = true);
        }
        self.publish_written(log);
        Ok(())
    }

    /// Publishes the contiguous prefix of written blocks; the caller knows that it is durable.
    fn publish_written(&mut self, log: &Log) {
        let mut last: Option<(u64, u64, u64, Lsn)> = None;
        while self.in_flight.front().is_some_and(|f| f.written) {
            let Some(flight) = self.in_flight.pop_front() else {
                break;
            };
            let segment = &self.files().segment;
            segment.add_block(&log.geometry, &flight.header, flight.end, flight.block.kinds);
            let counters = &log.counters;
            // Relaxed: statistics.
            counters.records.fetch_add(u64::from(flight.block.records), Ordering::Relaxed);
            counters.bytes.fetch_add(flight.end - flight.header.position, Ordering::Relaxed);
            counters.commits.fetch_add(u64::from(flight.block.batches), Ordering::Relaxed);
            counters.blocks.fetch_add(1, Ordering::Relaxed);
            let lsn = Lsn::new(flight.block.first_lsn + u64::from(flight.block.records) - 1);
            let from = last.map_or(flight.block.sequence, |(from, ..)| from);
            last = Some((from, flight.block.sequence, flight.end, lsn));
            self.unvouched = flight.block.records > 0;
            // A producer that waits in `commit` measures for itself; the others are measured here,
            // one a block.
            if let Some(since) = flight.block.since.filter(|_| flight.block.records > 0) {
                let took = log.clock.now().saturating_sub(since);
                log.commit_seconds.record(Duration::from_nanos(took));
            }
        }
        let Some((from, to, end, lsn)) = last else {
            return;
        };
        self.durable = end;
        let somebody_sleeps = log.ring.publish(end, lsn);
        log.waiters.wake(from, to);
        if somebody_sleeps {
            log.ring.sleepers.ring();
        }
    }

    /// Rolls if `block` lies in the next segment. The order is what recovery relies on: all blocks
    /// of the old segment are durable, then its ROLLED block, and only then does anything go to the
    /// new one, which was prepared and durable before a slab in it was opened.
    fn enter_segment_of(&mut self, log: &Log, block: &ClosedBlock) -> Result<()> {
        let number = log.geometry.segment_of(log.geometry.slab_start(block.slab.number()));
        let old = Arc::clone(&self.files().segment);
        if number == old.number {
            return Ok(());
        }
        while self.queue_in_flight() > 0 {
            self.reap(true)?;
        }
        if planted(Bug::RollsEarly) {
            self.publish_written(log);
        } else if !self.in_flight.is_empty() {
            self.sync(log)?;
        }
        let position = log.geometry.rolled_block(old.number);
        let offset = log.geometry.segment_offset(position);
        let mut page = AlignedBuf::zeroed(PAGE_BYTES as usize);
        let mut header = BlockHeader {
            position,
            flags: FLAG_ROLLED,
            prev_crc: self.chain,
            first_lsn: block.first_lsn,
            time_nanos: self.time_nanos,
            watermark: self.durable,
            salt: old.salt,
            ..BlockHeader::default()
        };
        header.crc = seal_block(&mut page[..BLOCK_HEADER_BYTES], &header);
        old.file.write_durable_at(&page, offset).map_err(|e| {
            Error::io("cannot write the rolling block", &old.path, e).at_segment(old.number, offset)
        })?;
        self.chain = header.crc;
        old.set_rolled(header.crc);
        let segments = log.segments().expect("a log with files has segments");
        let next = segments.take_prepared(number, (block.first_lsn, self.chain))?;
        let files = self.files();
        files.catalogue.open_segment(Arc::clone(&next));
        files.segment = next;
        segments.seal_later(old);
        Ok(())
    }

    /// Gives the role back if nothing is pending. Returns whether it did.
    fn release(&mut self, log: &Log) -> bool {
        let mut appender = log.writing.append.lock();
        if appender.has_work() {
            return false;
        }
        appender.role = Role::Free;
        self.note_unvouched(&log.clock, &mut appender);
        true
    }

    /// Remembers that the last block stands without a watermark behind it.
    pub(crate) fn note_unvouched(&mut self, clock: &Clock, appender: &mut Appender) {
        if std::mem::take(&mut self.unvouched) {
            appender.unvouched_since = Some(clock.now());
        }
    }

    /// Deferred: sleeps until the interval is over, a block is full or somebody wants a sync.
    fn wait_for_interval(&mut self, log: &Log) {
        let seen = log.kick.read();
        let mut appender = log.writing.append.lock();
        let Some(left) = self.interval_left(log, &appender) else {
            return;
        };
        if self.is_pressed(log, &appender) || appender.has_closed() {
            return;
        }
        appender.thread_asleep = true;
        drop(appender);
        log.kick.sleep(seen, Duration::from_nanos(left));
    }
}
