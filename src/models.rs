//! Models for loom: the product's own code, driven by two or three threads, in every order of
//! events within a bound on preemptions, with every value that the memory model lets a load see.
//!
//! Built only with `--cfg races --cfg races="loom"`, by the package in `races/`, which runs them,
//! and runs them again with one ordering of the product weakened or one bug planted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Something that threads do together, with what must hold after it.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Its name.
    pub name: &'static str,
    /// At most so many preemptions in an execution.
    pub preemptions: usize,
    /// One execution.
    pub run: fn(),
}

impl Model {
    /// Runs every execution, or the first so many. Panics in one that fails. Returns their number.
    pub fn explore(&self, at_most: Option<usize>) -> u64 {
        let executions = Arc::new(AtomicU64::new(0));
        let (counted, run) = (Arc::clone(&executions), self.run);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(self.preemptions);
        builder.max_branches = 20_000;
        builder.max_permutations = at_most;
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            crate::sync::atomic::begin();
            run();
        });
        executions.load(Ordering::Relaxed)
    }

    /// Prints the places of all orderings that were seen so far.
    pub fn print_sites() {
        crate::sync::print_sites();
    }
}
