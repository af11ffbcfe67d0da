//! Bugs that a test switches on to see that it would find them.
//!
//! Without the feature `testing` there are none: the question is a constant.

#[cfg(feature = "testing")]
use std::cell::Cell;

/// A bug of the log or of its consumers. Each is one that somebody might really make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(feature = "testing"), allow(dead_code, unreachable_pub))]
pub enum Bug {
    /// Recovery takes the first bad block for the end of the log.
    StopsAtFirstBadBlock,
    /// Recovery does not sync what it read from a cache.
    TrustsTheCache,
    /// Blocks are published when they are written, before the sync.
    PublishesUnsynced,
    /// A sync counts for writes that were still in flight when it began.
    SyncsWhatIsInFlight,
    /// The next segment is written to before the last one is durable and rolled.
    RollsEarly,
    /// Checkpoints name what was received, before the callback has returned.
    StoresReceived,
    /// Retention unlinks before it stores where the log begins.
    UnlinksFirst,
    /// A failed sync is tried again, and believed.
    RetriesSync,
}

#[cfg(feature = "testing")]
thread_local! {
    /// Of this thread: tests that run side by side do not share it.
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug in everything that this thread does from now on, or none.
#[cfg(feature = "testing")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
#[cfg(feature = "testing")]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted.
#[cfg(not(feature = "testing"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
