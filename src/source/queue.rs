//! How replays share the disk, and scarce cores, with commits.
//!
//! A commit of few records is one small durable write, and it takes as long as what is in the
//! device's queue before it. Replays have megabytes to read, and nobody waits for any one of them.
//! So while there are such commits, all replays together have no more in flight than delays one by
//! about its own length, and begin nothing while one is under way. Every wait is short and bounded:
//! a writer that never pauses slows replays down and does not stop them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::limits;
use crate::log::Catalogue;
use crate::sync::{Clock, Futex, nanos};

/// What all replays of a bus have in flight, and what they know of its commits.
pub(crate) struct Queue {
    catalogue: Arc<Catalogue>,
    clock: Clock,
    /// Bytes being read while there are commits. Relaxed, like the rest: it bounds a queue and
    /// guards no memory.
    in_flight: AtomicU64,
    /// The count of durable writes seen last, and when it was seen to change.
    turns: AtomicU64,
    changed_at: AtomicU64,
    /// Sources that replay.
    replays: AtomicUsize,
    cores: usize,
    /// Nobody changes it.
    bed: Futex,
    #[cfg(test)]
    naps: AtomicU64,
}

/// Bytes in flight, until it is dropped.
pub(crate) struct Reading<'a> {
    queue: &'a Queue,
    bytes: u64,
}

/// A source that replays, for as long as it lives.
pub(crate) struct Replaying(Arc<Queue>);

impl Queue {
    pub(crate) fn new(catalogue: Arc<Catalogue>, clock: Clock) -> Queue {
        Queue {
            catalogue,
            clock,
            in_flight: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            changed_at: AtomicU64::new(0),
            replays: AtomicUsize::new(0),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            bed: Futex::default(),
            #[cfg(test)]
            naps: AtomicU64::new(0),
        }
    }

    pub(crate) fn enter(self: &Arc<Queue>) -> Replaying {
        self.replays.fetch_add(1, Ordering::Relaxed);
        Replaying(Arc::clone(self))
    }

    /// Whether there was a small commit lately.
    pub(crate) fn is_shared(&self) -> bool {
        let now = self.clock.now();
        let turns = self.catalogue.durable_writes.turns();
        if turns != self.turns.swap(turns, Ordering::Relaxed) {
            self.changed_at.store(now, Ordering::Relaxed);
        }
        turns > 0
            && now.saturating_sub(self.changed_at.load(Ordering::Relaxed))
                < nanos(limits::COMMITS_LATELY)
    }

    /// How much to read at once beside commits: two replays are in flight together.
    pub(crate) fn piece_bytes(&self) -> u64 {
        limits::SHARED_IN_FLIGHT_BYTES / self.replays.load(Ordering::Relaxed).clamp(1, 2) as u64
    }

    /// Waits until a read may begin, if commits share the disk with it.
    pub(crate) fn read(&self, bytes: u64) -> Reading<'_> {
        let writes = &self.catalogue.durable_writes;
        self.wait_while(|| writes.is_under_way() || !self.has_room(bytes));
        self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        Reading { queue: self, bytes }
    }

    /// Two that look at once both find room; the queue is then longer by one piece, for once.
    fn has_room(&self, bytes: u64) -> bool {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        in_flight == 0 || in_flight + bytes <= limits::SHARED_IN_FLIGHT_BYTES
    }

    /// Before a page: leaves the core to whoever commits, if there may be none for it.
    pub(crate) fn give_way(&self) {
        if self.replays.load(Ordering::Relaxed) < self.cores {
            return;
        }
        self.wait_while(|| self.catalogue.durable_writes.is_under_way());
    }

    /// Naps, for a bounded time. Nobody wakes who sleeps here: that would cost a commit a system
    /// call.
    pub(crate) fn wait_while(&self, busy: impl Fn() -> bool) {
        for _ in 0..limits::GIVE_WAY_NAPS_MAX {
            if !busy() {
                break;
            }
            #[cfg(test)]
            self.naps.fetch_add(1, Ordering::Relaxed);
            self.bed.sleep(self.bed.read(), limits::GIVE_WAY_NAP);
        }
    }

    /// Since this was asked last.
    #[cfg(test)]
    pub(crate) fn take_naps(&self) -> u64 {
        self.naps.swap(0, Ordering::Relaxed)
    }
}

impl Replaying {
    pub(crate) fn queue(&self) -> &Queue {
        &self.0
    }
}

impl Drop for Replaying {
    fn drop(&mut self) {
        self.0.replays.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.queue.in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    fn queue() -> (Arc<Queue>, Arc<AtomicU64>) {
        let geometry = Options::default().validate_durable().unwrap();
        let nanos = Arc::new(AtomicU64::new(0));
        let clock = Clock::Manual(Arc::clone(&nanos));
        (Arc::new(Queue::new(Arc::new(Catalogue::new(geometry, 0, 1)), clock)), nanos)
    }

    fn commit(queue: &Queue, bytes: usize) {
        queue.catalogue.durable_writes.during(bytes, || ());
    }

    #[test]
    fn the_disk_is_shared_for_a_while_after_a_small_commit() {
        let (queue, nanos_now) = queue();
        assert!(!queue.is_shared());
        commit(&queue, limits::SMALL_COMMIT_BYTES + 1);
        assert!(!queue.is_shared());
        commit(&queue, limits::SMALL_COMMIT_BYTES);
        assert!(queue.is_shared());
        nanos_now.store(nanos(limits::COMMITS_LATELY) - 1, Ordering::Relaxed);
        assert!(queue.is_shared());
        nanos_now.store(nanos(limits::COMMITS_LATELY), Ordering::Relaxed);
        assert!(!queue.is_shared());
        commit(&queue, 1);
        assert!(queue.is_shared());
    }

    #[test]
    fn what_is_in_flight_together_is_bounded_and_nobody_waits_for_ever() {
        let (queue, _) = queue();
        let _two = [queue.enter(), queue.enter()];
        let piece = queue.piece_bytes();
        assert_eq!(2 * piece, limits::SHARED_IN_FLIGHT_BYTES);
        let first = queue.read(piece);
        assert!(queue.has_room(piece));
        let _second = queue.read(piece);
        assert!(!queue.has_room(1));
        assert_eq!(queue.take_naps(), 0);
        drop(queue.read(piece));
        assert_eq!(queue.take_naps(), u64::from(limits::GIVE_WAY_NAPS_MAX));
        drop(first);
        assert!(queue.has_room(piece));
    }
}
