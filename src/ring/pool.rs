//! The slots of the ring and the slabs that wait to be used again.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::arena::Arena;
use super::committed::Committed;
use super::readers::Readers;
use super::slab::{Slab, SlabArc};
use super::sleepers::Sleepers;
use crate::error::Result;
use crate::limits;
use crate::lsn::{Geometry, Lsn};
use crate::options::Options;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, Slot, planted};

/// Free slabs kept warm; those beyond go back to the system.
const WARM_SLABS: usize = 2;

/// So much leaves the ring before the memory of the first slab is used again: more than the caches
/// of two cores hold, since a line that one of them still has must be taken from it, and less than
/// the cache that they share.
const REUSE_DISTANCE_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct Ring {
    geometry: Geometry,
    /// Index = slab number modulo the number of slots. Written by the holder of the append lock.
    slots: Box<[Slot<Slab>]>,
    pub(crate) committed: Committed,
    /// The last committed record. Written before `committed` is published (whose Release carries
    /// it), read by whoever wants to know a lag: it may run ahead of the position just loaded.
    committed_lsn: CachePadded<AtomicU64>,
    /// Number of the oldest slab that may still be in its slot. A hint: the slot is the truth.
    /// Asked for in memory alone; what is on disk begins elsewhere.
    oldest: AtomicU64,
    pool: Mutex<Pool>,
    pub(crate) sleepers: Sleepers,
    pub(crate) readers: Readers,
}

#[derive(Debug)]
struct Pool {
    arena: Arc<Arena>,
    /// Have left the ring; perhaps still read. Oldest first, so that a free one is still warm but
    /// not so young that its lines are on their way to another core.
    retired: VecDeque<SlabArc>,
    /// Unused, their memory given back.
    cold: Vec<SlabArc>,
    /// Slabs of the arena that were never used yet start here.
    fresh: usize,
}

impl Ring {
    pub(crate) fn new(
        options: &Options,
        geometry: Geometry,
        position: u64,
        lsn: Lsn,
    ) -> Result<Ring> {
        let ring = options.ring_slabs() as usize;
        let pinned = (options.pin_budget_bytes / options.slab_bytes) as usize;
        let slabs = ring + pinned + options.consumers_max + limits::SLABS_SPARE as usize;
        let arena = Arena::new(slabs, geometry.slab_bytes as usize, ring)?;
        Ok(Ring {
            geometry,
            slots: (0..ring).map(|_| Slot::empty()).collect(),
            committed: Committed::new(position),
            committed_lsn: CachePadded::new(AtomicU64::new(lsn.get())),
            oldest: AtomicU64::new(geometry.slab_of(position)),
            pool: Mutex::new(Pool {
                arena: Arc::new(arena),
                retired: VecDeque::with_capacity(slabs),
                cold: Vec::with_capacity(slabs),
                fresh: 0,
            }),
            sleepers: Sleepers::default(),
            readers: Readers::default(),
        })
    }

    /// Faults in the ring's memory; with `wait`, before it returns.
    pub(crate) fn touch(&self, wait: bool) {
        let arena = Arc::clone(&self.pool.lock().arena);
        if wait { arena.touch() } else { arena.touch_in_background() }
    }

    /// Address and length of the memory that the kernel may keep pinned for writing from.
    pub(crate) fn resident(&self) -> (*const u8, usize) {
        self.pool.lock().arena.resident()
    }

    pub(crate) fn slots(&self) -> u64 {
        self.slots.len() as u64
    }

    fn slot(&self, number: u64) -> &Slot<Slab> {
        &self.slots[(number % self.slots.len() as u64) as usize]
    }

    /// Slab `number`, if it is still in the ring.
    pub(crate) fn get(&self, number: u64) -> Option<SlabArc> {
        self.slot(number).load_full().filter(|slab| slab.number() == number)
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        self.slot(number).load().as_ref().is_some_and(|slab| slab.number() == number)
    }

    /// The position of the oldest byte that may still be in the ring.
    pub(crate) fn oldest_position(&self) -> u64 {
        self.geometry.first_block(self.oldest.load(Ordering::Acquire))
    }

    /// Makes room for slab `number` in its slot and puts it there. What was in the slot leaves the
    /// ring: the caller knows that its segment is sealed (invariant I3). `None` if every slab
    /// of the arena is held by a consumer, which the arena's size rules out.
    pub(crate) fn open_slab(&self, number: u64) -> Option<SlabArc> {
        let mut pool = self.pool.lock();
        if let Some(evicted) = self.evict(number) {
            pool.retired.push_back(evicted);
        }
        let mut slab = pool.take()?;
        drop(pool);
        SlabArc::get_mut(&mut slab)?.renumber(number);
        self.slot(number).store(Some(SlabArc::clone(&slab)));
        Some(slab)
    }

    /// In memory, by the holder of the append lock: what everybody has left leaves the ring.
    pub(crate) fn retire(&self) {
        self.readers.left_by_all(|position| {
            let below = self.geometry.slab_of(position);
            let mut pool = self.pool.lock();
            // Relaxed: only the holder of the append lock moves it.
            for number in self.oldest.load(Ordering::Relaxed)..below {
                pool.retired.extend(self.evict(number));
            }
        });
    }

    fn evict(&self, number: u64) -> Option<SlabArc> {
        let evicted = self.slot(number).swap(None)?;
        // Release: whoever starts at the oldest position finds the slot of what lies below empty.
        self.oldest.fetch_max(evicted.number() + 1, Ordering::Release);
        Some(evicted)
    }

    /// Publishes up to `position`, whose last record is `lsn`. Returns whether somebody sleeps.
    pub(crate) fn publish(&self, position: u64, lsn: Lsn) -> bool {
        self.committed_lsn.store(lsn.get(), Ordering::Release);
        self.committed.publish(position)
    }

    pub(crate) fn committed_lsn(&self) -> Lsn {
        Lsn::new(self.committed_lsn.load(Ordering::Acquire))
    }

    /// Gives memory that was only needed while consumers pinned slabs back to the system.
    pub(crate) fn trim(&self) {
        loop {
            let Some(mut slab) = self.pool.lock().surplus() else {
                return;
            };
            if let Some(free) = SlabArc::get_mut(&mut slab) {
                free.give_back();
            }
            self.pool.lock().cold.push(slab);
        }
    }
}

impl Pool {
    /// A slab that nobody holds. `Arc::get_mut` proves it: its Acquire pairs with the Release of
    /// the last reader's drop. A count of 1 seen otherwise would prove nothing.
    fn take(&mut self) -> Option<SlabArc> {
        if planted("take_does_not_ask") && !self.retired.is_empty() {
            return self.retired.pop_front();
        }
        let distance = self.retired.len() * self.arena.slab_bytes();
        if distance < REUSE_DISTANCE_BYTES && self.fresh < self.arena.resident_slabs() {
            return self.fresh();
        }
        if let Some(free) =
            self.retired.iter_mut().position(|slab| SlabArc::get_mut(slab).is_some())
        {
            return self.retired.remove(free);
        }
        self.cold.pop().or_else(|| self.fresh())
    }

    /// A slab that was never used.
    fn fresh(&mut self) -> Option<SlabArc> {
        let index = self.fresh;
        (index < self.arena.slabs()).then(|| {
            self.fresh += 1;
            SlabArc::new(Slab::new(&self.arena, index))
        })
    }

    /// A free slab beyond those of the ring's own memory, if more are free than are kept warm.
    fn surplus(&mut self) -> Option<SlabArc> {
        let is_free = |slab: &mut SlabArc| SlabArc::get_mut(slab).is_some();
        if self.retired.iter_mut().filter_map(|s| is_free(s).then_some(())).count() <= WARM_SLABS {
            return None;
        }
        let spare = self.retired.iter_mut().rposition(|slab| slab.is_spare() && is_free(slab))?;
        self.retired.remove(spare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_none_when_every_slab_is_held() {
        let options = Options { slab_bytes: 64 << 10, ring_bytes: 128 << 10, ..Options::default() };
        let ring = Ring::new(&options, options.memory_geometry(), 0, Lsn::ZERO).unwrap();
        let held: Vec<_> = (0..).map_while(|number| ring.open_slab(number)).collect();
        assert_eq!(held.len(), ring.pool.lock().arena.slabs());
    }

    /// Memory that consumers pinned beyond the ring goes back, but for what is kept warm.
    #[test]
    fn trimming_gives_back_what_is_spare_and_not_warm() {
        let options = Options {
            slab_bytes: 64 << 10,
            ring_bytes: 128 << 10,
            pin_budget_bytes: 256 << 10,
            consumers_max: 1,
            ..Options::default()
        };
        let ring = Ring::new(&options, options.memory_geometry(), 0, Lsn::ZERO).unwrap();
        let mut pinned: Vec<_> = (0..6).map(|number| ring.open_slab(number).unwrap()).collect();
        let pool = || {
            let pool = ring.pool.lock();
            (pool.retired.len(), pool.cold.len(), pool.fresh)
        };
        ring.trim();
        assert_eq!(pool(), (4, 0, 6), "what is pinned stays");
        let one = pinned.swap_remove(3);
        drop(pinned);
        ring.trim();
        assert_eq!(pool(), (3, 1, 6), "the youngest is pinned still");
        drop(one);
        ring.trim();
        assert_eq!(pool(), (2, 2, 6));
        assert!(ring.pool.lock().retired.iter().all(|slab| !slab.is_spare()));
        assert!(ring.pool.lock().cold.iter().all(|slab| slab.is_spare()));
        let (_, resident_bytes) = ring.resident();
        assert_eq!(resident_bytes as u64, options.ring_bytes);
    }
}
