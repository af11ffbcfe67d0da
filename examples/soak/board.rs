//! Numbers that outlive a kill: a file mapped by the run and by each of its children, so that what
//! a child had seen when it was killed is known, and the run can be watched while it goes on.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

const SLOTS: usize = 256;
const CONSUMERS_AT: usize = 128;

/// One number each, summed over the whole run where nothing else is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(crate) enum Slot {
    /// Of the current log: the last record that was acknowledged, the last that a producer tried
    /// to commit, the last that a consumer saw.
    Acknowledged,
    Attempted,
    Seen,
    /// The subscribers of the life that runs are all there.
    Ready,
    Commits,
    Records,
    Bytes,
    DroppedBatches,
    RefusedSizes,
    StorageFull,
    /// Lives whose log was poisoned.
    Poisoned,
    /// Deliveries by tier, in the order of `Tier::ALL`: three.
    Delivered,
    ReadByReaders = Slot::Delivered as usize + 3,
    Readers,
    Repeated,
    RepeatedMost,
    Losses,
    LostRecords,
    Errors,
    Panics,
    LaterAnswers,
    PartAnswers,
    Hangs,
    Leases,
    LeasesRefused,
    DeadLetters,
    Parked,
    Pauses,
    Seeks,
    Leaves,
    Guests,
    CaughtUp,
    FellBehind,
    /// Transitions by reason, in the order of `Reason::ALL`: eight.
    Reasons,
    /// Faults that struck, by kind: eight.
    Faults = Slot::Reasons as usize + 8,
    MemoryMost = Slot::Faults as usize + 8,
}

pub(crate) struct Board {
    map: MmapRaw,
}

impl Board {
    pub(crate) fn open(path: &Path) -> io::Result<Board> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len((SLOTS * size_of::<AtomicU64>()) as u64)?;
        Ok(Board { map: MmapRaw::map_raw(&file)? })
    }

    fn at(&self, slot: usize) -> &AtomicU64 {
        assert!(slot < SLOTS);
        // SAFETY: the mapping has SLOTS words, is aligned to a page, lives as long as `self`, and
        // is only ever accessed through these atomics, here and in the other process; nobody
        // truncates the file, which lies in a directory of the run's own.
        unsafe { &*self.map.as_mut_ptr().cast::<AtomicU64>().add(slot) }
    }

    // SeqCst throughout: numbers of different threads and processes are compared with each other,
    // and none of them is taken more than a few times a callback.

    pub(crate) fn get(&self, slot: Slot) -> u64 {
        self.get_nth(slot, 0)
    }

    pub(crate) fn get_nth(&self, slot: Slot, nth: usize) -> u64 {
        self.at(slot as usize + nth).load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, slot: Slot, value: u64) {
        self.at(slot as usize).store(value, Ordering::SeqCst);
    }

    pub(crate) fn add(&self, slot: Slot, more: u64) {
        self.add_nth(slot, 0, more);
    }

    pub(crate) fn add_nth(&self, slot: Slot, nth: usize, more: u64) {
        self.at(slot as usize + nth).fetch_add(more, Ordering::SeqCst);
    }

    pub(crate) fn raise(&self, slot: Slot, to: u64) {
        self.at(slot as usize).fetch_max(to, Ordering::SeqCst);
    }

    /// The LSN that is due next to a consumer, by its place in the cast.
    pub(crate) fn next(&self, consumer: usize) -> u64 {
        self.at(CONSUMERS_AT + consumer).load(Ordering::SeqCst)
    }

    pub(crate) fn set_next(&self, consumer: usize, lsn: u64) {
        self.at(CONSUMERS_AT + consumer).store(lsn, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_show_the_same_numbers() {
        assert!((Slot::MemoryMost as usize) < CONSUMERS_AT);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("board");
        let (one, other) = (Board::open(&path).expect("new"), Board::open(&path).expect("there"));
        one.add_nth(Slot::Reasons, 7, 3);
        one.set_next(2, 9);
        assert_eq!((other.get_nth(Slot::Reasons, 7), other.next(2)), (3, 9));
        assert_eq!(other.get(Slot::Faults), 0);
    }
}
