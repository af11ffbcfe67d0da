//! How a reader waits, and which way of it is the best one for a system.
//!
//! A look at what a publisher writes takes the cache line from it, so looking less often may be
//! faster. How much less is the system's and the machine's matter: each gets its best of three.

use std::fmt;

use super::place::Place;
use super::race::{Job, Timing};
use crate::Context;
use crate::report::{Side, Spread, alternate};

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A thread of the system's own, which calls back.
    Thread,
    /// A thread of the benchmark's, which asks.
    Poll,
}

/// Who reads, and the pauses between two looks when there is no more.
#[derive(Clone, Copy)]
pub struct Policy {
    pub by: By,
    pub pauses: u32,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = if self.by == By::Thread { "its own thread" } else { "polled" };
        write!(f, "{by}, {} pauses", self.pauses)
    }
}

const fn each(by: By) -> [Policy; 3] {
    [Policy { by, pauses: 0 }, Policy { by, pauses: 16 }, Policy { by, pauses: 64 }]
}

const THREADS: [Policy; 3] = each(By::Thread);
pub const POLLS: [Policy; 3] = each(By::Poll);
pub const ALL: [Policy; 6] = [THREADS[0], THREADS[1], THREADS[2], POLLS[0], POLLS[1], POLLS[2]];

/// A system, and the ways of waiting that it has.
#[derive(Clone, Copy)]
pub struct System {
    pub label: &'static str,
    pub policies: &'static [Policy],
    pub run: fn(&Job, Policy) -> anyhow::Result<Timing>,
}

impl System {
    /// The policy whose median of a few runs is least.
    pub fn best(&self, context: &Context, place: &Place, job: &Job) -> anyhow::Result<Policy> {
        let mut sides: Vec<Side<'_>> = self
            .policies
            .iter()
            .map(|&policy| Side::new("", move || place.sample(|| Ok((self.run)(job, policy)?.all))))
            .collect();
        let figures = alternate(context.rounds.min(3), &mut sides)?;
        let medians = figures.iter().map(|figures| Spread::of(figures).median);
        let best = medians.enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b));
        Ok(best.map_or(self.policies[0], |(i, _)| self.policies[i]))
    }
}
