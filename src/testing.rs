//! Instruments for this crate's own tests: a manual clock, a disk that fails on request, consumers
//! polled by hand, forced transitions. Not covered by semver.

pub mod bytes;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::bus::{Builder, Bus};
use crate::consumer::{Ack, Batch, Callbacks, Consumer, Progress, Subscribe, Subscription};
pub use crate::disk::{Crash, Fault, Faults, Hold, Op, Plant, Point, SimDisk};
use crate::error::Result;
use crate::lsn::Lsn;
use crate::offline::LogDir;
pub use crate::planted::{Bug, plant};
use crate::policy::{Phase, Reason};
use crate::ring::Ring;

/// A clock that stands still until it is told.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl Default for ManualClock {
    /// Begins at one second, so that nothing has the time zero.
    fn default() -> ManualClock {
        ManualClock(Arc::new(AtomicU64::new(1_000_000_000)))
    }
}

impl ManualClock {
    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
        #[cfg(races = "shuttle")]
        crate::sync::pass_time();
    }
}

impl Builder {
    /// Runs on this clock and without threads: whoever waits for the disk does the work, and ticks
    /// and polls are the test's.
    pub fn manual(mut self, clock: &ManualClock) -> Builder {
        self.instruments.clock = Some(Arc::clone(&clock.0));
        self
    }

    /// Runs on a simulated disk.
    pub fn simulated(mut self, disk: &SimDisk) -> Builder {
        self.instruments.sim = Some(disk.clone());
        self
    }

    /// Runs on a disk that fails as planned.
    pub fn faults(mut self, faults: &Faults) -> Builder {
        self.instruments.faults = Some(faults.clone());
        self
    }
}

/// See [`Bus::probe`].
#[derive(Clone)]
pub struct Probe(Arc<Ring>);

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("committed_lsn", &self.committed_lsn()).finish()
    }
}

impl Probe {
    /// The last record that consumers may see: published, so durable.
    #[must_use]
    pub fn committed_lsn(&self) -> Lsn {
        // The LSN is stored before the position is published; nobody else runs in between.
        self.0.committed_lsn()
    }
}

/// Where a transition may be forced to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Force {
    /// The hot tier.
    Hot,
    /// The catch-up tier.
    CatchUp,
    /// Cold, shed.
    Shed,
    /// Cold, replaying.
    Replaying,
}

impl Bus {
    /// One tick of the supervisor.
    pub fn tick(&self) {
        self.parts().1.tick();
    }

    /// Stores checkpoints and applies retention.
    pub fn housekeep(&self) {
        self.parts().2.step();
    }

    /// Does what the log's threads would do next.
    ///
    /// # Errors
    /// The error that poisoned the log.
    pub fn drive(&self) -> Result<()> {
        self.parts().0.log.drive()
    }

    /// The checkpoint stored for a consumer, which need not run.
    ///
    /// # Errors
    /// If it is one of another log, or lies beyond the end.
    pub fn checkpoint(&self, consumer: &str) -> Result<Option<Lsn>> {
        self.parts().0.checkpoints.get(consumer, self.committed_lsn())
    }

    /// Looks at what is committed while the bus is in the middle of something.
    #[must_use]
    pub fn probe(&self) -> Probe {
        Probe(Arc::clone(&self.parts().0.log.ring))
    }

    /// One round of the committer, which may leave writes in flight. False: it has nothing to do.
    pub fn step(&self) -> bool {
        self.parts().0.log.drive_round().is_some()
    }

    /// Applies a transition as if the policy had decided it.
    pub fn force(&self, consumer: &str, to: Force, reason: Reason) {
        let plane = self.parts().0;
        let phase = match to {
            Force::Hot => Phase::Hot,
            Force::CatchUp => Phase::CatchUp,
            Force::Shed => Phase::Shed,
            Force::Replaying => Phase::Replaying,
        };
        for state in plane.consumers().iter().filter(|state| state.name == consumer) {
            plane.apply(state, &mut state.tiering.lock(), phase, reason);
        }
    }

    /// Records that were looked at one by one for a consumer.
    #[must_use]
    pub fn walked(&self, consumer: &str) -> u64 {
        let consumers = self.parts().0.consumers();
        let state = consumers.iter().find(|state| state.name == consumer);
        state.map_or(0, |state| state.walked.load(Ordering::Relaxed))
    }
}

impl Bus {
    /// Block bytes whose checksum was computed for a consumer.
    #[must_use]
    pub fn checked_bytes(&self, consumer: &str) -> u64 {
        let consumers = self.parts().0.consumers();
        let state = consumers.iter().find(|state| state.name == consumer);
        state.map_or(0, |state| state.checked.load(Ordering::Relaxed))
    }
}

impl LogDir {
    /// As `open`, on a simulated disk.
    ///
    /// # Errors
    /// As `open`.
    pub fn simulated(disk: &SimDisk, dir: impl AsRef<Path>) -> Result<LogDir> {
        LogDir::open_on(Arc::new(disk.clone()), dir.as_ref())
    }
}

impl Subscribe {
    /// As `run`, but polled by hand.
    ///
    /// # Errors
    /// As `run`.
    pub fn manual<F>(self, callback: F) -> Result<ManualSubscription>
    where
        F: FnMut(&Batch<'_>) -> Result<Ack, Box<dyn std::error::Error + Send + Sync>>
            + Send
            + 'static,
    {
        let (consumer, callbacks) = self.begin(Box::new(callback))?;
        let handle = Subscription::by_hand(&consumer);
        Ok(ManualSubscription { consumer, callbacks, handle })
    }
}

/// What a poll came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polled {
    /// Something was delivered or passed over.
    Moved,
    /// Everything committed is processed.
    CaughtUp,
    /// Nothing can be done before the clock has moved.
    Later,
    /// Paused, parked or shed.
    Waiting,
    /// Stopped.
    Stopped,
}

/// A consumer that a test polls.
pub struct ManualSubscription {
    consumer: Consumer,
    callbacks: Callbacks,
    handle: Subscription,
}

impl fmt::Debug for ManualSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualSubscription").field("name", &self.handle.name()).finish()
    }
}

impl ManualSubscription {
    /// One step.
    pub fn poll(&mut self) -> Polled {
        match self.consumer.poll(&mut self.callbacks) {
            Progress::Moved => Polled::Moved,
            Progress::CaughtUp(_) => Polled::CaughtUp,
            Progress::NotBefore(_) => Polled::Later,
            Progress::Waiting => Polled::Waiting,
            Progress::Stopped => Polled::Stopped,
        }
    }

    /// The handle that a thread's owner would have.
    #[must_use]
    pub fn handle(&self) -> &Subscription {
        &self.handle
    }
}

impl Drop for ManualSubscription {
    fn drop(&mut self) {
        self.consumer.end();
    }
}
