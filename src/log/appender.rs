//! What the append lock protects: the open block, and the slabs it grows in.
//!
//! Records are written straight into slab memory in disk form. A batch grows behind the open
//! block's committed records; committing it moves `end` over it, dropping it moves nothing.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    BLOCK_HEADER_BYTES, BlockHeader, KindSet, RECORD_HEADER_BYTES, align_up, copy_payload,
    record_bytes, write_record_header,
};
use crate::lsn::{Geometry, Lsn};
use crate::ring::SlabArc;

/// Who writes blocks to the disk at the moment. At most one does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Nobody, and nothing is pending or in flight.
    Free,
    /// The committer thread, or a producer for one block.
    Held,
    /// A producer is done, more is pending: the committer thread takes over.
    Handed,
}

/// A block that takes no more records.
#[derive(Debug)]
pub(crate) struct ClosedBlock {
    pub(crate) slab: SlabArc,
    /// Offset of its header in the slab.
    pub(crate) start: usize,
    /// Where its last record ends; the padding follows.
    pub(crate) end: usize,
    pub(crate) records: u32,
    /// LSN of its first record, or the next LSN if it has none.
    pub(crate) first_lsn: u64,
    pub(crate) kinds: KindSet,
    pub(crate) batches: u32,
    /// When the oldest batch was committed whose producer does not wait in `commit`.
    pub(crate) since: Option<u64>,
    /// Counts blocks; names the futex word its waiters sleep on.
    pub(crate) sequence: u64,
}

/// A batch that grows behind the open block's committed records.
///
/// It holds an address and no slice: a reference would have to stay true until whoever was given
/// the batch returns, and by then others append behind it.
pub(crate) struct Growth<'a> {
    /// Where in the current slab it begins, and where what it may take ends.
    start: usize,
    limit: usize,
    /// What is left of that.
    room: NonNull<u8>,
    room_bytes: usize,
    pub(crate) records: u32,
    lock: PhantomData<&'a mut [u8]>,
}

impl<'a> Growth<'a> {
    /// Of a batch that was refused.
    pub(crate) fn none() -> Growth<'a> {
        let (room, lock) = (NonNull::dangling(), PhantomData);
        Growth { start: 0, limit: 0, room, room_bytes: 0, records: 0, lock }
    }

    fn end(&self) -> usize {
        self.limit - self.room_bytes
    }

    /// Adds a record and returns the bytes of its payload, which hold whatever was there before.
    /// `None` if it does not fit.
    #[inline(always)]
    pub(crate) fn record(
        &mut self,
        kind: u16,
        key: u64,
        payload_bytes: usize,
    ) -> Option<&'a mut [u8]> {
        // What is no longer than the room can be rounded up.
        let room = self.room_bytes;
        let size = (payload_bytes <= room).then(|| record_bytes(payload_bytes))?;
        if size > room {
            return None;
        }
        // SAFETY: so many bytes are left, which `growth` promised to this batch while the append
        // lock is held: for `'a`, by whoever began it. They are taken off, so given out once.
        let record = unsafe { std::slice::from_raw_parts_mut(self.room.as_ptr(), size) };
        // SAFETY: the end of what was just taken is within the slab, or behind its last byte.
        self.room = unsafe { self.room.add(size) };
        self.room_bytes -= size;
        self.records += 1;
        let (header, rest) = record.split_first_chunk_mut().expect("a record is larger");
        write_record_header(header, payload_bytes as u32, kind, key);
        // The padding is in the last word, and one store is cheaper than a call for up to 7 bytes.
        if let Some(last) = rest.last_chunk_mut::<8>() {
            *last = [0; 8];
        }
        Some(&mut rest[..payload_bytes])
    }
}

#[derive(Debug)]
pub(crate) struct Appender {
    geometry: Geometry,
    block_bytes_max: usize,
    block_close_bytes: usize,
    current: SlabArc,
    /// The slab after the current one, ready to be entered without waiting.
    pub(crate) next: Option<SlabArc>,
    /// Where the current slab's room for blocks ends, and the open block's: at most there.
    limit: usize,
    block_limit: usize,
    /// The open block: its header's offset, the end of its committed records, their number.
    block_start: usize,
    end: usize,
    records: u32,
    batches: u32,
    /// Those of the open block, and of batches that were dropped.
    pub(crate) kinds: KindSet,
    sequence: u64,
    next_lsn: u64,
    /// Position where the last closed block's padding ends.
    closed_end: u64,
    closed: VecDeque<ClosedBlock>,
    pub(crate) role: Role,
    /// The committer thread sleeps; whoever clears this wakes it.
    pub(crate) thread_asleep: bool,
    /// Deferred: somebody waits for everything below this position to be durable.
    pub(crate) flush_below: u64,
    /// When the oldest batch in the open block was committed whose producer does not wait in
    /// `commit`.
    pub(crate) open_since: Option<u64>,
    /// Since when the last block with records stands without a later watermark.
    pub(crate) unvouched_since: Option<u64>,
    /// Why nothing more can be appended: poisoned or closed.
    pub(crate) refusal: Option<Error>,
}

/// The largest payload of a record that alone fills a block.
pub(crate) fn payload_bytes_max(block_bytes_max: usize) -> usize {
    block_bytes_max - BLOCK_HEADER_BYTES - RECORD_HEADER_BYTES
}

impl Appender {
    /// Starts at `offset` in `current`, which is where the last block ended.
    pub(crate) fn new(
        geometry: Geometry,
        (block_bytes_max, block_close_bytes): (usize, usize),
        current: SlabArc,
        offset: usize,
        next_lsn: Lsn,
    ) -> Appender {
        let limit = geometry.block_limit(current.number());
        Appender {
            geometry,
            block_bytes_max,
            block_close_bytes,
            limit,
            block_limit: limit.min(offset + block_bytes_max),
            current,
            next: None,
            block_start: offset,
            end: offset + BLOCK_HEADER_BYTES,
            records: 0,
            batches: 0,
            kinds: KindSet::default(),
            sequence: 0,
            next_lsn: next_lsn.get(),
            closed_end: 0,
            closed: VecDeque::with_capacity(64),
            role: Role::Free,
            thread_asleep: false,
            flush_below: 0,
            open_since: None,
            unvouched_since: None,
            refusal: None,
        }
    }

    pub(crate) fn next_lsn(&self) -> Lsn {
        Lsn::new(self.next_lsn)
    }

    /// Number of the slab after the current one.
    pub(crate) fn next_number(&self) -> u64 {
        self.current.number() + 1
    }

    /// Begins a batch.
    ///
    /// # Safety
    /// Records are added only while the append lock is held, and meanwhile there is no other batch;
    /// no payload's bytes are used after that.
    pub(crate) unsafe fn begin<'a>(&self) -> Growth<'a> {
        // SAFETY: the caller's.
        unsafe { self.growth(self.end, self.end, 0) }
    }

    /// A batch with so many records, between these offsets.
    ///
    /// # Safety
    /// As for [`Appender::begin`]; an earlier growth of the same batch is not used any more.
    unsafe fn growth<'a>(&self, start: usize, end: usize, records: u32) -> Growth<'a> {
        // A header alone may reach over the limit already.
        let limit = self.block_limit.max(end);
        let (mut room, room_bytes) = (NonNull::dangling(), limit - end);
        if room_bytes > 0 {
            // SAFETY: the range lies behind the open block's committed records, above the committed
            // position; the append lock gives it to this batch alone. The slab stays while the lock
            // is held: it is the current one, or in a closed block that nobody can take.
            room = NonNull::from(unsafe { self.current.bytes_mut(end, limit) }).cast();
        }
        Growth { start, limit, room, room_bytes, records, lock: PhantomData }
    }

    /// Adds a record that is a batch by itself. Returns its LSN.
    pub(crate) fn append(&mut self, kind: u16, key: u64, payload: &[u8]) -> Result<Lsn> {
        // SAFETY: `&mut self` is the append lock, and outlives the batch.
        let mut batch = unsafe { self.begin() };
        let out = match batch.record(kind, key, payload.len()) {
            Some(out) => out,
            None => self.record_elsewhere(&mut batch, kind, key, payload.len())?,
        };
        copy_payload(out, payload);
        self.kinds.insert(kind);
        Ok(self.accept(batch))
    }

    /// Adds a record that does not fit where the batch is. On an error the batch is as it was.
    #[cold]
    pub(crate) fn record_elsewhere<'a>(
        &mut self,
        batch: &mut Growth<'a>,
        kind: u16,
        key: u64,
        payload_bytes: usize,
    ) -> Result<&'a mut [u8]> {
        let (start, end) = self.make_room(batch, payload_bytes)?;
        // SAFETY: the batch was begun under the lock that is still held, and this is what it goes
        // on with.
        *batch = unsafe { self.growth(start, end, batch.records) };
        Ok(batch.record(kind, key, payload_bytes).expect("room was made for it"))
    }

    #[cold]
    fn too_large(&self, payload_bytes: usize) -> Error {
        let most = payload_bytes_max(self.block_bytes_max);
        let what = format!("a payload of {payload_bytes} bytes exceeds {most}");
        Error::new(ErrorKind::RecordTooLarge, what)
            .advise("use larger slabs for a new log, or split the record")
    }

    /// Moves the batch to a block, and if need be a slab, of its own, where it and the record fit.
    /// Returns where it lies then.
    fn make_room(&mut self, batch: &Growth<'_>, payload_bytes: usize) -> Result<(usize, usize)> {
        if payload_bytes > payload_bytes_max(self.block_bytes_max) {
            return Err(self.too_large(payload_bytes));
        }
        let bytes = batch.end() - batch.start;
        let whole = BLOCK_HEADER_BYTES + bytes + record_bytes(payload_bytes);
        if whole > self.block_bytes_max {
            return Err(Error::new(
                ErrorKind::BatchTooLarge,
                format!(
                    "with this record the batch takes {whole} bytes, a block {}",
                    self.block_bytes_max
                ),
            )
            .advise("commit what the batch holds and go on with another"));
        }
        let from = SlabArc::clone(&self.current);
        if self.records > 0 {
            let kinds = self.kinds;
            self.close();
            // The set may name too many kinds, never too few: the batch's are among these.
            self.kinds = kinds;
        }
        if self.block_start + whole > self.limit {
            self.enter_next_slab();
        }
        let to = self.block_start + BLOCK_HEADER_BYTES;
        if bytes == 0 {
            // Nothing to move; the block before may even have filled its slab to the last byte.
        } else if from.number() == self.current.number() {
            // SAFETY: both ranges lie in the batch's part of the slab or behind it, which is ours
            // under the append lock; the padding of the block just closed is zeroed by the
            // committer, which cannot take it before the lock is released.
            let slab = unsafe { self.current.bytes_mut(batch.start, to + bytes) };
            slab.copy_within(0..bytes, to - batch.start);
        } else {
            // SAFETY: the batch's bytes in the slab it leaves, ours under the append lock.
            let old = unsafe { from.bytes_mut(batch.start, batch.end()) };
            // SAFETY: a slab that nobody has entered yet.
            unsafe { self.current.bytes_mut(to, to + bytes) }.copy_from_slice(old);
        }
        self.end = to;
        Ok((to, to + bytes))
    }

    fn enter_next_slab(&mut self) {
        let next = self.next.take().expect("a batch begins with the next slab at hand");
        self.current.end_at(self.block_start);
        self.limit = self.geometry.block_limit(next.number());
        self.block_start = self.geometry.first_block_offset(next.number());
        self.current = next;
        self.end = self.block_start + BLOCK_HEADER_BYTES;
        self.limit_block();
    }

    fn limit_block(&mut self) {
        self.block_limit = self.limit.min(self.block_start + self.block_bytes_max);
    }

    /// Makes the batch part of the open block and gives its records their LSNs. Returns the first.
    pub(crate) fn accept(&mut self, batch: Growth<'_>) -> Lsn {
        let first = self.next_lsn;
        self.end = batch.end();
        self.records += batch.records;
        self.batches += 1;
        self.next_lsn += u64::from(batch.records);
        Lsn::new(first)
    }

    /// The block that a batch accepted now belongs to, and the position where that batch ends.
    pub(crate) fn place(&self) -> (u64, u64) {
        let end = self.geometry.slab_start(self.current.number()) + self.end as u64;
        (self.sequence, end)
    }

    /// The last closed block, and the position where it ends.
    pub(crate) fn last_place(&self) -> (u64, u64) {
        (self.sequence.saturating_sub(1), self.closed_end)
    }

    /// Closes the open block if it is large enough.
    pub(crate) fn close_if_full(&mut self) {
        if self.end - self.block_start >= self.block_close_bytes {
            self.close();
        }
    }

    pub(crate) fn has_open_records(&self) -> bool {
        self.records > 0
    }

    pub(crate) fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Deferred: when the oldest batch that the committer has not taken was committed.
    pub(crate) fn oldest_since(&self) -> Option<u64> {
        self.closed.front().map_or(self.open_since, |block| block.since)
    }

    pub(crate) fn has_work(&self) -> bool {
        self.records > 0 || !self.closed.is_empty()
    }

    /// Closes the open block, also an empty one.
    fn close(&mut self) {
        self.closed.push_back(ClosedBlock {
            slab: SlabArc::clone(&self.current),
            start: self.block_start,
            end: self.end,
            records: self.records,
            first_lsn: self.next_lsn - u64::from(self.records),
            kinds: self.kinds,
            batches: self.batches,
            since: self.open_since.take(),
            sequence: self.sequence,
        });
        let offset = align_up(self.end as u64, self.geometry.align_bytes);
        self.closed_end = self.geometry.slab_start(self.current.number()) + offset;
        self.open_block_at(offset as usize);
        self.kinds = KindSet::default();
    }

    fn open_block_at(&mut self, offset: usize) {
        self.block_start = offset;
        self.end = offset + BLOCK_HEADER_BYTES;
        self.limit_block();
        self.records = 0;
        self.batches = 0;
        self.sequence += 1;
    }

    /// Takes the oldest closed block; closes the open one first if `partial` and it has records.
    pub(crate) fn take(&mut self, partial: bool) -> Option<ClosedBlock> {
        if self.closed.is_empty() && partial && self.records > 0 {
            self.close();
        }
        self.closed.pop_front()
    }

    /// A block without records at the place of the open block, for a watermark; where a block has
    /// filled its slab, in the next one. `None` where that would need the page reserved at the
    /// segment's end, or another segment.
    pub(crate) fn close_watermark(&mut self, now: u64) -> Option<()> {
        debug_assert_eq!(self.records, 0);
        let page = self.geometry.align_bytes as usize;
        if self.block_start + page > self.limit {
            let segment = |slab| self.geometry.segment_of(self.geometry.slab_start(slab));
            let next = self.next.as_ref()?.number();
            if segment(next) != segment(self.current.number()) {
                return None;
            }
            self.enter_next_slab();
        }
        self.open_since = Some(now);
        self.close();
        Some(())
    }

    /// In memory: finishes the open block in place. Returns the position behind it, to be
    /// published.
    pub(crate) fn close_in_memory(&mut self, time_nanos: u64) -> u64 {
        let start = self.geometry.slab_start(self.current.number());
        let header = BlockHeader {
            position: start + self.block_start as u64,
            body_bytes: (self.end - self.block_start - BLOCK_HEADER_BYTES) as u32,
            records: self.records,
            first_lsn: self.next_lsn - u64::from(self.records),
            time_nanos,
            ..BlockHeader::default()
        };
        // SAFETY: the open block's header, above the committed position, under the append lock.
        let out = unsafe { self.current.bytes_mut(self.block_start, self.block_start + 64) };
        if let Ok(out) = out.try_into() {
            header.write(out);
        }
        let end = self.end;
        self.open_block_at(end);
        start + end as u64
    }
}
