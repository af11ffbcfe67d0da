//! How a reader waits, and which way of it is the best one for a system.
//!
//! A look at what a publisher writes takes the cache line from it, so looking less often may be
//! faster. How much less is the system's and the machine's matter: each gets its best of three.

use std::fmt;

use super::race::{Job, Timing};
use crate::machine::Place;
use crate::report::{Side, Spread};

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
    /// A side for each policy.
    pub fn sides<'a>(&'a self, place: &'a Place, job: &'a Job) -> impl Iterator<Item = Side<'a>> {
        self.policies.iter().map(move |&policy| {
            let label = format!("{} ({policy})", self.label);
            Side::new(label, move || place.sample(|| Ok((self.run)(job, policy)?.all)))
        })
    }
}

/// The side whose median is least, and its figures.
pub fn best<'a>(sides: &'a [Side<'_>], figures: &'a [Vec<f64>]) -> (&'a str, &'a [f64]) {
    let medians = figures.iter().map(|figures| Spread::of(figures).median);
    let best = medians.enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b));
    let (i, _) = best.expect("a system has policies");
    (&sides[i].label, &figures[i])
}
