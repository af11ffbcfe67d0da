//! Samples that count: those during which the two cores were close to each other.
//!
//! The cores of a virtual machine are moved about. Between cores that share a cache a line travels
//! several times as fast as between others, so figures of the two cannot be compared.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use crate::Context;
use crate::machine::{self, Distance};

/// How often a sample is taken again, and how long it waits for the cores to come together.
const TRIES: u32 = 5;
const PATIENCE: Duration = Duration::from_secs(3);

pub struct Place {
    tries: u32,
    patience: Duration,
    dropped: Cell<u32>,
    far: Cell<u32>,
}

impl Place {
    pub fn new(context: &Context) -> Place {
        let (tries, patience) = if context.quick { (1, Duration::ZERO) } else { (TRIES, PATIENCE) };
        Place { tries, patience, dropped: Cell::default(), far: Cell::default() }
    }

    /// The result of a run before and after which the cores were near; where that is not to be had,
    /// the last one.
    pub fn sample<T>(&self, mut run: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let begun = Instant::now();
        let mut tries = 1;
        loop {
            let mut before = machine::distance();
            while before == Distance::Far && begun.elapsed() < self.patience {
                thread::sleep(Duration::from_millis(20));
                before = machine::distance();
            }
            let result = run()?;
            if before == Distance::Near && machine::distance() == Distance::Near {
                return Ok(result);
            }
            if tries == self.tries || begun.elapsed() > self.patience {
                self.far.set(self.far.get() + 1);
                return Ok(result);
            }
            tries += 1;
            self.dropped.set(self.dropped.get() + 1);
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
