//! Samples that count: those before and after which the two cores were where they should be.

use std::cell::{Cell, RefCell};
use std::thread;
use std::time::{Duration, Instant};

use super::probe::Probe;
use crate::Context;
use crate::report::Spread;

/// How long all samples of a row wait, and are repeated, for two cores that share a cache.
const PATIENCE: Duration = Duration::from_secs(45);

pub struct Place {
    patience: Cell<Duration>,
    one_way_nanos: RefCell<Vec<f64>>,
    dropped: Cell<u32>,
    kept_elsewhere: Cell<u32>,
}

impl Place {
    pub fn new(context: &Context) -> Place {
        Place {
            patience: Cell::new(if context.quick { Duration::ZERO } else { PATIENCE }),
            one_way_nanos: RefCell::default(),
            dropped: Cell::default(),
            kept_elsewhere: Cell::default(),
        }
    }

    /// The result of a run before and after which the cores were near; where that is not to be had,
    /// the last one.
    pub fn sample<T>(&self, mut run: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
        loop {
            let before = self.wait_near();
            let begun = Instant::now();
            let result = run()?;
            let probes = [before, Probe::take()];
            let is_near = probes.iter().all(Probe::is_near);
            if is_near || self.patience.get().is_zero() {
                self.one_way_nanos.borrow_mut().extend(probes.map(|probe| probe.one_way_nanos));
                self.kept_elsewhere.set(self.kept_elsewhere.get() + u32::from(!is_near));
                return Ok(result);
            }
            self.dropped.set(self.dropped.get() + 1);
            self.lose_patience(begun);
        }
    }

    fn wait_near(&self) -> Probe {
        let mut probe = Probe::take();
        while !probe.is_near() && !self.patience.get().is_zero() {
            let begun = Instant::now();
            thread::sleep(Duration::from_millis(20));
            probe = Probe::take();
            self.lose_patience(begun);
        }
        probe
    }

    fn lose_patience(&self, begun: Instant) {
        self.patience.set(self.patience.get().saturating_sub(begun.elapsed()));
    }

    /// Says where the cores were, and what became of the samples of a row.
    pub fn tell(&self, name: &str) {
        let Spread { median, min, max } = Spread::of(&self.one_way_nanos.borrow());
        let dropped = self.dropped.get();
        println!(
            "  {name}: a cache line took {median:.0} ns [{min:.0} .. {max:.0}] from core to core; \
             {dropped} samples dropped, as the cores were moved"
        );
        let kept = self.kept_elsewhere.get();
        if kept > 0 {
            println!("WARNING {name}: {kept} samples kept although the cores were not near");
        }
    }
}
