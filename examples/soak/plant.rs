//! Mistakes planted in the soak's own bookkeeping: what it would have seen if the bus had made
//! them. A soak that does not find them proves nothing.

use clap::ValueEnum;

/// One mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Plant {
    /// A record is not seen.
    Lose,
    /// One is seen twice.
    Repeat,
    /// Two are seen in the wrong order.
    Reorder,
    /// A bit of a payload is another one.
    Flip,
    /// One more record was acknowledged than is in the log after a restart.
    Forget,
    /// A `CaughtUp` is not told.
    Signal,
    /// A loss begins a record later than told.
    Loss,
    /// A transition without the reason that belongs to it.
    Reason,
    /// A thread stays behind.
    Thread,
    /// A file stays open.
    File,
    /// A checkpoint runs ahead of what was processed.
    Checkpoint,
}

/// Records that the planter lets pass first.
const RECORDS_BEFORE: usize = 500;

/// Makes the mistake once, with one consumer.
pub(crate) struct Planter {
    plant: Option<Plant>,
    records: usize,
    done: bool,
}

impl Planter {
    pub(crate) fn new(plant: Option<Plant>, place: usize) -> Planter {
        // The first misses nothing and never fails; a loss is told to whoever is slow.
        let here = |plant: &Plant| place == 0 || *plant == Plant::Loss;
        Planter { plant: plant.filter(here), records: 0, done: false }
    }

    pub(crate) fn is(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    fn due(&mut self, plant: Plant) -> bool {
        if !self.is(plant) || self.done || self.records < RECORDS_BEFORE {
            return false;
        }
        self.done = true;
        true
    }

    pub(crate) fn damage(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        if payload.is_empty() || !self.due(Plant::Flip) {
            return None;
        }
        let mut damaged = payload.to_vec();
        damaged[payload.len() / 2] ^= 0x10;
        Some(damaged)
    }

    pub(crate) fn twist(&mut self, got: &mut Vec<u64>) {
        self.records += got.len();
        let middle = got.len() / 2;
        if got.len() > 1 && self.due(Plant::Lose) {
            got.remove(middle);
        }
        if self.due(Plant::Repeat) {
            got.insert(middle, got[middle]);
        }
        if got.len() > 1 && self.due(Plant::Reorder) {
            got.swap(middle, middle - 1);
        }
    }

    pub(crate) fn swallows_signal(&mut self) -> bool {
        self.due(Plant::Signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mistake_and_no_more() {
        for (plant, twisted) in [
            (Plant::Lose, vec![1, 3]),
            (Plant::Repeat, vec![1, 2, 2, 3]),
            (Plant::Reorder, vec![2, 1, 3]),
        ] {
            let mut planter = Planter::new(Some(plant), 0);
            planter.records = RECORDS_BEFORE;
            let mut got = vec![1, 2, 3];
            planter.twist(&mut got);
            assert_eq!(got, twisted);
            let mut got = vec![4, 5, 6];
            planter.twist(&mut got);
            assert_eq!(got, [4, 5, 6]);
        }
    }
}
