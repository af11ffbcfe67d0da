//! Where consumers are, as far as the ring has to know it: in memory, what everybody has left
//! leaves the ring at once, and its memory, still warm, is used again.
//!
//! Places are hints in one direction only: one that is old keeps a slab in the ring for longer.
//! Whether memory may be written to again is never asked here (see the module `ring`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sync::atomic::AtomicU64;
use crate::sync::{Mutex, planted};

const NOWHERE: u64 = u64::MAX;

/// The place of one consumer.
#[derive(Debug)]
pub(crate) struct Place {
    /// Position of its next record. Written by the consumer alone. Relaxed: see the module.
    at: AtomicU64,
    /// Where a seek has ordered it to go and it has not gone yet. Written under the lock of the
    /// consumer's control.
    sought: AtomicU64,
}

impl Place {
    pub(crate) fn new(position: u64) -> Place {
        Place { at: AtomicU64::new(position), sought: AtomicU64::new(NOWHERE) }
    }

    pub(crate) fn at(&self) -> u64 {
        self.at.load(Ordering::Relaxed)
    }

    pub(crate) fn move_to(&self, position: u64) {
        self.at.store(position, Ordering::Relaxed);
    }

    /// A seek was ordered: what is at its target is needed until the consumer is there.
    pub(crate) fn seek(&self, position: u64) {
        self.sought.store(position, Ordering::Relaxed);
    }

    /// The consumer is there. Release: who sees that nothing is sought any more sees it there.
    pub(crate) fn arrive(&self, position: u64) {
        self.at.store(position, Ordering::Relaxed);
        self.sought.store(NOWHERE, Ordering::Release);
    }

    /// Everything before it may go. What is sought is looked at first: a consumer that arrives in
    /// between would else be taken for where it came from, and find its target gone.
    fn needs(&self) -> u64 {
        if planted("needs_looks_at_the_place_first") {
            return self.at().min(self.sought.load(Ordering::Acquire));
        }
        let sought = self.sought.load(Ordering::Acquire);
        sought.min(self.at())
    }
}

/// The places of all consumers of a bus.
#[derive(Debug, Default)]
pub(crate) struct Readers(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    places: Vec<Arc<Place>>,
    holds: usize,
}

impl Readers {
    pub(crate) fn add(&self, place: &Arc<Place>) {
        self.0.lock().places.push(Arc::clone(place));
    }

    pub(crate) fn remove(&self, place: &Arc<Place>) {
        self.0.lock().places.retain(|known| !Arc::ptr_eq(known, place));
    }

    /// While the guard lives nothing leaves early: for who looks where to start, or go, and is
    /// not known to be there yet.
    pub(crate) fn hold(&self) -> Hold<'_> {
        self.0.lock().holds += 1;
        Hold(self)
    }

    /// Tells `retire` the position before which nobody needs anything, if there is one. Nobody
    /// adds a place, or looks for one, meanwhile.
    pub(crate) fn left_by_all(&self, retire: impl FnOnce(u64)) {
        let known = self.0.lock();
        if known.holds > 0 && !planted("retire_ignores_holds") {
            return;
        }
        if let Some(position) = known.places.iter().map(|place| place.needs()).min() {
            retire(position);
        }
    }
}

/// See [`Readers::hold`].
pub(crate) struct Hold<'a>(&'a Readers);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.0.lock().holds -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_by_all(readers: &Readers) -> Option<u64> {
        let mut left = None;
        readers.left_by_all(|position| left = Some(position));
        left
    }

    #[test]
    fn what_somebody_needs_is_left_by_nobody() {
        let readers = Readers::default();
        assert_eq!(left_by_all(&readers), None, "nobody is there who could have left");
        let [slow, fast] = [10, 30].map(|position| Arc::new(Place::new(position)));
        readers.add(&slow);
        readers.add(&fast);
        assert_eq!(left_by_all(&readers), Some(10));
        fast.move_to(40);
        readers.remove(&slow);
        assert_eq!(left_by_all(&readers), Some(40));
        let hold = readers.hold();
        assert_eq!(left_by_all(&readers), None);
        drop(hold);
        assert_eq!(left_by_all(&readers), Some(40));
    }

    /// From when a seek is ordered until the consumer is there, its target counts as well.
    #[test]
    fn what_is_sought_is_needed_until_the_consumer_is_there() {
        let place = Place::new(100);
        place.seek(50);
        assert_eq!((place.at(), place.needs()), (100, 50));
        place.arrive(50);
        assert_eq!((place.at(), place.needs()), (50, 50));
        place.move_to(80);
        assert_eq!(place.needs(), 80);
        place.seek(90);
        assert_eq!(place.needs(), 80);
    }
}
