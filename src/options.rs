//! What a user may choose, with defaults, and the checks that `open` makes.

use std::fmt;
use std::time::Duration;

use crate::disk::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{self, PAGE_BYTES};
use crate::limits;
use crate::lsn::Geometry;

/// When a commit is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Durability {
    /// `commit` returns when the batch is on stable storage. The default.
    #[default]
    Synced,
    /// `commit` returns at once; the sync follows within `interval` and `bytes`. A crash may lose
    /// the unsynced tail, which no consumer has seen.
    Deferred {
        /// Sync at the latest this long after a commit.
        interval: Duration,
        /// Sync at the latest after this many bytes.
        bytes: u64,
    },
}

/// How sealed segments are read in the catch-up tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum ReadMode {
    /// Through a shared memory mapping: no copy. A file that somebody truncates after its pages
    /// were populated kills the process with SIGBUS, as any mapping does. The default.
    #[default]
    Map,
    /// Through buffers filled by `pread`: for directories that are not exclusively ours.
    Pread,
}

/// How much of the log is kept.
///
/// Segments are deleted whole, oldest first, and only sealed ones. A stored checkpoint is a
/// *barrier*: what its consumer has not processed stays, until the log exceeds the hard cap, where
/// the barrier yields and the consumer is told by `PositionLost`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    pub(crate) max_bytes: Option<u64>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) consumed: bool,
    pub(crate) hard_cap_bytes: Option<u64>,
}

impl Retention {
    /// Keep everything. The default.
    #[must_use]
    pub const fn keep_all() -> Retention {
        Retention { max_bytes: None, max_age: None, consumed: false, hard_cap_bytes: None }
    }

    /// Delete the oldest segments beyond this many bytes of segment files.
    #[must_use]
    pub const fn bytes(bytes: u64) -> Retention {
        Retention { max_bytes: Some(bytes), ..Retention::keep_all() }
    }

    /// Delete segments whose last record is older than this.
    #[must_use]
    pub const fn age(age: Duration) -> Retention {
        Retention { max_age: Some(age), ..Retention::keep_all() }
    }

    /// Delete what every consumer with a stored checkpoint has processed.
    #[must_use]
    pub const fn consumed() -> Retention {
        Retention { consumed: true, ..Retention::keep_all() }
    }

    /// Also delete beyond this many bytes.
    #[must_use]
    pub const fn or_bytes(self, bytes: u64) -> Retention {
        Retention { max_bytes: Some(bytes), ..self }
    }

    /// Also delete what is older than this.
    #[must_use]
    pub const fn or_age(self, age: Duration) -> Retention {
        Retention { max_age: Some(age), ..self }
    }

    /// Beyond this many bytes the barrier of a slow consumer's checkpoint yields.
    #[must_use]
    pub const fn hard_cap_bytes(self, bytes: u64) -> Retention {
        Retention { hard_cap_bytes: Some(bytes), ..self }
    }

    pub(crate) fn deletes(&self) -> bool {
        *self != Retention::keep_all()
    }
}

impl Default for Retention {
    fn default() -> Retention {
        Retention::keep_all()
    }
}

/// How per-consumer metrics are labelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum ConsumerLabels {
    /// One series a consumer. The default.
    #[default]
    Name,
    /// One series for all consumers whose names agree up to the first `/`, `:` or `-`.
    Group,
    /// One series for all consumers.
    Off,
}

/// Every option, resolved. Filled by the builder, checked once by `open`.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) slab_bytes: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) ring_bytes: u64,
    pub(crate) pin_budget_bytes: u64,
    pub(crate) catchup_window_bytes: u64,
    pub(crate) readahead_bytes: u64,
    pub(crate) consumers_max: usize,
    pub(crate) durability: Durability,
    pub(crate) retention: Retention,
    pub(crate) backend: Backend,
    pub(crate) direct_io: bool,
    pub(crate) read_mode: ReadMode,
    pub(crate) labels: ConsumerLabels,
    pub(crate) append_timeout: Duration,
    pub(crate) lock_timeout: Duration,
    pub(crate) watermark_idle: Duration,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) tick: Duration,
    pub(crate) dwell: Duration,
    pub(crate) stall_after: Duration,
    pub(crate) flaps_max: u32,
    pub(crate) flap_window: Duration,
    pub(crate) shed_backoff_min: Duration,
    pub(crate) shed_backoff_max: Duration,
    pub(crate) cold_replays_max: usize,
    pub(crate) cold_bytes_per_second: Option<u64>,
    pub(crate) idle_spins: u32,
    pub(crate) deadline: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            slab_bytes: limits::SLAB_BYTES,
            segment_bytes: limits::SEGMENT_BYTES,
            ring_bytes: limits::RING_BYTES,
            pin_budget_bytes: limits::PIN_BUDGET_BYTES,
            catchup_window_bytes: limits::CATCHUP_WINDOW_BYTES,
            readahead_bytes: limits::READAHEAD_BYTES,
            consumers_max: limits::CONSUMERS_MAX,
            durability: Durability::Synced,
            retention: Retention::keep_all(),
            backend: Backend::Auto,
            direct_io: true,
            read_mode: ReadMode::Map,
            labels: ConsumerLabels::Name,
            append_timeout: limits::APPEND_TIMEOUT,
            lock_timeout: limits::LOCK_TIMEOUT,
            watermark_idle: limits::WATERMARK_IDLE,
            checkpoint_interval: limits::CHECKPOINT_INTERVAL,
            tick: limits::TICK,
            dwell: limits::DWELL,
            stall_after: limits::STALL_AFTER,
            flaps_max: limits::FLAPS_MAX,
            flap_window: limits::FLAP_WINDOW,
            shed_backoff_min: limits::SHED_BACKOFF_MIN,
            shed_backoff_max: limits::SHED_BACKOFF_MAX,
            cold_replays_max: limits::COLD_REPLAYS_MAX,
            cold_bytes_per_second: Some(limits::COLD_BYTES_PER_SECOND),
            idle_spins: limits::IDLE_SPINS,
            deadline: limits::DEADLINE,
        }
    }
}

fn refuse<T>(what: impl fmt::Display) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidOption, what.to_string()))
}

fn power_of_two(name: &str, bytes: u64, min: u64, max: u64) -> Result<()> {
    if !bytes.is_power_of_two() || bytes < min || bytes > max {
        return refuse(format_args!(
            "{name} is {bytes}: it must be a power of two from {min} to {max}"
        ));
    }
    Ok(())
}

fn at_least(name: &str, value: u64, min: u64, of_what: &str) -> Result<()> {
    if value < min {
        return refuse(format_args!("{name} is {value}: it must be at least {min}, {of_what}"));
    }
    Ok(())
}

impl Options {
    /// Checks what only a log on disk needs.
    pub(crate) fn validate_durable(&self) -> Result<Geometry> {
        let segment_max = limits::SEGMENT_BYTES_MAX;
        self.validate_memory()?;
        power_of_two(
            "segment_bytes",
            self.segment_bytes,
            limits::SEGMENT_SLABS_MIN * self.slab_bytes,
            segment_max,
        )?;
        at_least(
            "ring_bytes",
            self.ring_bytes,
            limits::RING_SEGMENTS_MIN * self.segment_bytes,
            "two segments",
        )?;
        at_least(
            "catchup_window_bytes",
            self.catchup_window_bytes,
            limits::CATCHUP_WINDOW_RINGS_MIN * self.ring_bytes,
            "two rings",
        )?;
        power_of_two(
            "readahead_bytes",
            self.readahead_bytes,
            limits::READAHEAD_BYTES_MIN,
            segment_max,
        )?;
        if let Some(rate) = self.cold_bytes_per_second {
            at_least("cold_bytes_per_second", rate, self.slab_bytes, "a slab a second")?;
        }
        at_least("cold_replays_max", self.cold_replays_max as u64, 1, "or nothing comes back")?;
        if let Durability::Deferred { interval, bytes } = self.durability {
            at_least("Deferred::bytes", bytes, PAGE_BYTES, "a page")?;
            at_least("Deferred::interval", interval.as_nanos() as u64, 1, "a bound")?;
        }
        self.validate_retention()?;
        let geometry = Geometry {
            slab_bytes: self.slab_bytes,
            segment_bytes: self.segment_bytes,
            head_bytes: PAGE_BYTES,
            tail_bytes: PAGE_BYTES + format::footer_bytes(self.segment_bytes),
            align_bytes: PAGE_BYTES,
        };
        let room = self.slab_bytes - self.slab_bytes / limits::BLOCKS_PER_SLAB_MIN;
        if geometry.tail_bytes > room {
            return refuse(format_args!(
                "segment_bytes {} needs a footer that leaves no room for a block in a slab of {}: \
                 use larger slabs",
                self.segment_bytes, self.slab_bytes
            ));
        }
        Ok(geometry)
    }

    /// Checks what an in-memory bus needs: segment options are ignored there.
    pub(crate) fn validate_memory(&self) -> Result<()> {
        power_of_two(
            "slab_bytes",
            self.slab_bytes,
            limits::SLAB_BYTES_MIN,
            limits::SLAB_BYTES_MAX,
        )?;
        power_of_two("ring_bytes", self.ring_bytes, 4 * self.slab_bytes, 1 << 40)?;
        at_least(
            "pin_budget_bytes",
            self.pin_budget_bytes,
            limits::PIN_SHARES * self.slab_bytes,
            "a slab a share",
        )?;
        if self.pin_budget_bytes > limits::PIN_BUDGET_BYTES_MAX {
            return refuse(format_args!(
                "pin_budget_bytes is {}: it must be at most {}",
                self.pin_budget_bytes,
                limits::PIN_BUDGET_BYTES_MAX
            ));
        }
        if self.idle_spins > limits::IDLE_SPINS_MAX {
            return refuse(format_args!(
                "idle_spins is {}: it must be at most {}, or nobody could stop the consumer",
                self.idle_spins,
                limits::IDLE_SPINS_MAX
            ));
        }
        if self.consumers_max == 0 || self.consumers_max > 1 << 16 {
            return refuse("consumers_max must be from 1 to 65536");
        }
        for (name, wait) in [
            ("tick", self.tick),
            ("checkpoint_interval", self.checkpoint_interval),
            ("stall_after", self.stall_after),
            ("shed_backoff", self.shed_backoff_min),
            ("append_timeout", self.append_timeout),
            ("deadline", self.deadline),
        ] {
            if wait.is_zero() {
                return refuse(format_args!("{name} must be longer than zero"));
            }
        }
        if self.shed_backoff_min > self.shed_backoff_max {
            return refuse("the shortest shed_backoff is longer than the longest");
        }
        if self.flaps_max == 0 {
            return refuse("flapping must allow for at least one time");
        }
        Ok(())
    }

    fn validate_retention(&self) -> Result<()> {
        let least = 2 * self.segment_bytes;
        if let Some(bytes) = self.retention.max_bytes {
            at_least("Retention::bytes", bytes, least, "two segments")?;
        }
        if let Some(cap) = self.retention.hard_cap_bytes {
            let floor = self.retention.max_bytes.unwrap_or(least).max(least);
            at_least("Retention::hard_cap_bytes", cap, floor, "what is kept anyway")?;
        }
        Ok(())
    }

    /// The geometry of an in-memory log: one endless segment without header or footer.
    pub(crate) fn memory_geometry(&self) -> Geometry {
        Geometry {
            slab_bytes: self.slab_bytes,
            segment_bytes: 1 << 62,
            head_bytes: 0,
            tail_bytes: 0,
            align_bytes: 8,
        }
    }

    pub(crate) fn ring_slabs(&self) -> u64 {
        self.ring_bytes / self.slab_bytes
    }

    pub(crate) fn block_bytes_max(&self) -> usize {
        (self.slab_bytes / limits::BLOCKS_PER_SLAB_MIN) as usize
    }

    pub(crate) fn pin_share_bytes(&self) -> u64 {
        self.pin_budget_bytes / limits::PIN_SHARES
    }
}
