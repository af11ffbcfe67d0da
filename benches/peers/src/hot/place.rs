//! Samples that count: those during which the two cores were close to each other.
//!
//! The cores of a virtual machine are moved about. Between cores that share a cache a line travels
//! several times as fast as between others, so figures of the two cannot be compared.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use crate::Context;
use crate::machine::{self, Distance};

/// How often a sample is taken at most, and how long all of a row's wait for the cores to come
/// together.
const TRIES: u32 = 5;
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Place {
    tries: u32,
    patience: Cell<Duration>,
    dropped: Cell<u32>,
    far: Cell<u32>,
}

impl Place {
    pub fn new(context: &Context) -> Place {
        let (tries, patience) = if context.quick { (1, Duration::ZERO) } else { (TRIES, PATIENCE) };
        let patience = Cell::new(patience);
        Place { tries, patience, dropped: Cell::default(), far: Cell::default() }
    }

    /// The result of a run before and after which the cores were near; where that is not to be had,
    /// the last one.
    pub fn sample<T>(&self, mut run: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut tries = 1;
        loop {
            let before = self.wait_near();
            let result = run()?;
            if before == Distance::Near && machine::distance() == Distance::Near {
                return Ok(result);
            }
            if tries == self.tries || self.patience.get().is_zero() {
                self.far.set(self.far.get() + 1);
                return Ok(result);
            }
            tries += 1;
            self.dropped.set(self.dropped.get() + 1);
        }
    }

    fn wait_near(&self) -> Distance {
        let begun = Instant::now();
        let patience = self.patience.get();
        loop {
            let distance = machine::distance();
            let left = patience.saturating_sub(begun.elapsed());
            if distance == Distance::Near || left.is_zero() {
                self.patience.set(left);
                return distance;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Says what became of the samples of a row.
    pub fn tell(&self, name: &str) {
        let (dropped, far) = (self.dropped.get(), self.far.get());
        if dropped > 0 {
            println!("  {name}: {dropped} samples dropped, as the cores were apart");
        }
        if far > 0 {
            println!("WARNING {name}: {far} samples kept although the cores were apart");
        }
    }
}
