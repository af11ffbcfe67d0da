//! Whether LSNs come as 1, 2, 3, ...: what each consumer checks for itself.

use serde::{Deserialize, Serialize};

/// The LSNs that a consumer has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sequence {
    /// All up to this one have come, but for the gaps.
    last: u64,
    /// LSNs that were passed over, first and last.
    gaps: Vec<(u64, u64)>,
    pub(crate) repeated: u64,
    pub(crate) out_of_order: u64,
    /// What came twice since the restart because of the crash before it.
    #[serde(skip)]
    pub(crate) redelivered: u64,
    /// After a restart, until the first new one: up to here an LSN may come again.
    #[serde(skip)]
    may_repeat_through: u64,
}

impl Sequence {
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// After a crash the consumer may begin again before its end.
    pub(crate) fn restarted(&mut self) {
        self.may_repeat_through = self.last;
    }

    /// Takes the next LSN. Whether it is new.
    pub(crate) fn take(&mut self, lsn: u64) -> bool {
        if lsn > self.last {
            if lsn > self.last + 1 {
                self.gaps.push((self.last + 1, lsn - 1));
            }
            self.last = lsn;
            self.may_repeat_through = 0;
            return true;
        }
        let gap = self.gaps.iter().position(|&(first, last)| (first..=last).contains(&lsn));
        if let Some(gap) = gap {
            let (first, last) = self.gaps.swap_remove(gap);
            let rest = [(first, lsn - 1), (lsn + 1, last)];
            self.gaps.extend(rest.into_iter().filter(|(first, last)| first <= last));
            self.out_of_order += 1;
            return true;
        }
        if lsn <= self.may_repeat_through {
            self.redelivered += 1;
        } else {
            self.repeated += 1;
        }
        false
    }

    /// How many of the first `records` never came.
    pub(crate) fn lost(&self, records: u64) -> u64 {
        let gaps: u64 = self.gaps.iter().map(|(first, last)| last - first + 1).sum();
        gaps + records.saturating_sub(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lsns: &[u64]) -> Sequence {
        let mut sequence = Sequence::default();
        for &lsn in lsns {
            sequence.take(lsn);
        }
        sequence
    }

    #[test]
    fn loss_repetition_and_disorder_are_told_apart() {
        let good = after(&[1, 2, 3]);
        assert_eq!((good.lost(3), good.repeated, good.out_of_order), (0, 0, 0));
        assert_eq!(good.lost(5), 2);
        let gap = after(&[1, 5]);
        assert_eq!((gap.lost(5), gap.repeated, gap.out_of_order), (3, 0, 0));
        let late = after(&[1, 5, 3, 3]);
        assert_eq!((late.lost(5), late.repeated, late.out_of_order), (2, 1, 1));
    }

    #[test]
    fn what_comes_again_after_a_restart_is_redelivered_until_something_new_comes() {
        let mut sequence = after(&[1, 2, 3]);
        sequence.restarted();
        assert!(!sequence.take(2) && !sequence.take(3) && sequence.take(4));
        assert!(!sequence.take(3));
        assert_eq!((sequence.redelivered, sequence.repeated, sequence.lost(4)), (2, 1, 0));
    }
}
