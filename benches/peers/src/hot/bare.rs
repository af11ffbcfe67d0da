//! What the bytes alone take: records in the form that the log gives them, copied into memory and
//! walked, with nothing around it: no lock, clock, slabs or tiers, and nobody may come late.
//!
//! Beside a ring of slots this is what headers and records of any length cost; beside ours, what
//! everything else does.

use std::cell::UnsafeCell;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use super::policy::{POLLS, Policy, System};
use super::race::{Inlet, Job, Outlet, POLL_MAX, Reader, Timing, drain};

pub const BARE: System = System { label: "a bare copy and walk", policies: &POLLS, run };

/// More memory than the caches of two cores would only be for those who come late.
const RING_BYTES_MAX: u64 = 4 << 20;
const RECORD_HEADER_BYTES: usize = 16;
/// Position, records, bytes, and as many more as the log's has.
type BlockHeader = [u64; 8];

fn record_bytes(payload: usize) -> usize {
    RECORD_HEADER_BYTES + payload.next_multiple_of(8)
}

struct Ring {
    words: Box<[UnsafeCell<u64>]>,
    /// What lies before this position may be read.
    published: CachePadded<AtomicU64>,
    block_bytes_max: u64,
}

// SAFETY: the writer writes behind `published`, no further than a window that all readers have
// left, which is half the ring at most; readers read before it.
unsafe impl Sync for Ring {}

impl Ring {
    /// Where a block starts that comes at `position`: one that may not fit begins the next lap.
    fn start_of(&self, position: u64) -> u64 {
        let bytes = self.words.len() as u64 * 8;
        let left = bytes - position % bytes;
        if left < self.block_bytes_max { position + left } else { position }
    }

    /// The block that starts there, with room for the largest one.
    fn block(&self, start: u64) -> *mut u8 {
        let word = start as usize / 8 % self.words.len();
        // From the whole of the ring: a pointer to one word may not be used for the next ones.
        UnsafeCell::raw_get(self.words.as_ptr().wrapping_add(word)).cast()
    }
}

struct Publisher {
    ring: Arc<Ring>,
    position: u64,
}

impl Outlet for Publisher {
    #[inline]
    fn publish<'l>(
        &mut self,
        records: impl ExactSizeIterator<Item = &'l [u8]>,
    ) -> anyhow::Result<()> {
        let start = self.ring.start_of(self.position);
        let (block, count) = (self.ring.block(start), records.len() as u64);
        let mut end = size_of::<BlockHeader>();
        for payload in records {
            // SAFETY: the block has room for as many records of the largest size.
            unsafe {
                let record = block.add(end);
                record.cast::<[u64; 2]>().write([payload.len() as u64, start]);
                let out = record.add(RECORD_HEADER_BYTES);
                out.copy_from_nonoverlapping(payload.as_ptr(), payload.len());
            }
            end += record_bytes(payload.len());
        }
        // SAFETY: as above.
        unsafe { block.cast::<BlockHeader>().write([start, count, end as u64, 0, 0, 0, 0, 0]) };
        self.position = start + end as u64;
        self.ring.published.store(self.position, Ordering::Release);
        Ok(())
    }
}

struct Walker {
    ring: Arc<Ring>,
    position: u64,
    reader: Reader,
}

impl Inlet for Walker {
    #[inline]
    fn poll(&mut self) -> usize {
        let published = self.ring.published.load(Ordering::Acquire);
        let mut taken = 0;
        while self.position < published && taken < POLL_MAX {
            let start = self.ring.start_of(self.position);
            let block = self.ring.block(start);
            // SAFETY: before `published` there are whole blocks.
            let [_, count, bytes, ..] = unsafe { block.cast::<BlockHeader>().read() };
            let mut at = size_of::<BlockHeader>();
            for _ in 0..count {
                // SAFETY: as above; nobody writes there before this reader has told its progress.
                let payload = unsafe {
                    let record = block.add(at);
                    let len = record.cast::<u64>().read() as usize;
                    slice::from_raw_parts(record.add(RECORD_HEADER_BYTES), len)
                };
                self.reader.take(payload);
                at += record_bytes(payload.len());
            }
            self.position = start + bytes;
            taken += count as usize;
        }
        if taken > 0 {
            self.reader.batch_ends();
        }
        taken
    }
}

fn run(job: &Job, policy: Policy) -> anyhow::Result<Timing> {
    let ring_bytes = job.ring_bytes.min(RING_BYTES_MAX);
    let header = size_of::<BlockHeader>() as f64 / job.batch as f64;
    let record = job.load.mean_bytes(record_bytes) + header;
    // What is kept beyond the window would only be read by who comes late.
    let window = (ring_bytes as f64 / 2.0 / record) as u64;
    let (readers, race) = job.prepare(Some(window));
    let largest = record_bytes(job.load.payload_bytes_max());
    let block_bytes_max = size_of::<BlockHeader>() + job.batch * largest;
    // Anything but zeros: those would be memory that the system gives on first touch.
    let words = (0..ring_bytes / 8).map(|_| UnsafeCell::new(1)).collect();
    let published = CachePadded::new(AtomicU64::new(0));
    let ring = Arc::new(Ring { words, published, block_bytes_max: block_bytes_max as u64 });
    let walker = |reader| Walker { ring: Arc::clone(&ring), position: 0, reader };
    let mut walkers: Vec<Walker> = readers.into_iter().map(walker).collect();
    let publisher = Publisher { ring, position: 0 };
    race.run(publisher, move |watch| drain(&mut walkers, policy.pauses, watch))
}
