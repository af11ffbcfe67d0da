//! The builder: every option with its default, checked by `open`.

use std::path::Path;
use std::time::Duration;

use super::Bus;
use crate::disk::Backend;
use crate::error::Result;
use crate::options::{ConsumerLabels, Durability, Options, ReadMode, Retention};

/// What a test puts between the bus and the world.
#[cfg(feature = "testing")]
#[derive(Clone, Default)]
pub(crate) struct Instruments {
    pub(crate) clock: Option<std::sync::Arc<std::sync::atomic::AtomicU64>>,
    pub(crate) faults: Option<crate::disk::Faults>,
    pub(crate) sim: Option<crate::disk::SimDisk>,
}

/// Options of a bus. Sizes are in bytes; what is refused is refused by `open`, naming the option.
#[derive(Clone)]
#[must_use = "`open` or `in_memory` makes the bus"]
pub struct Builder {
    pub(crate) options: Options,
    #[cfg(feature = "testing")]
    pub(crate) instruments: Instruments,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

macro_rules! options {
    ($($(#[$doc:meta])* $name:ident: $type:ty),* $(,)?) => {
        $($(#[$doc])* pub fn $name(mut self, $name: $type) -> Builder {
            self.options.$name = $name;
            self
        })*
    };
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder {
            options: Options::default(),
            #[cfg(feature = "testing")]
            instruments: Instruments::default(),
        }
    }

    options! {
        /// Size of a slab, the unit of memory: a power of two from 64 KiB to 64 MiB. A record's
        /// payload is at most half of it less 80 bytes. Fixed when the log is created. Default
        /// 1 MiB.
        slab_bytes: u64,
        /// Size of a segment file: a power of two, at least two slabs. Fixed when the log is
        /// created. Default 16 MiB.
        segment_bytes: u64,
        /// Memory of the ring: a power of two, at least two segments. Default 64 MiB.
        ring_bytes: u64,
        /// Memory that leases may keep besides the ring; a consumer may have a quarter of it, which
        /// must be a slab at least. At most 1 TiB. Default 32 MiB.
        pin_budget_bytes: u64,
        /// A consumer further behind than this is shed and replayed cold. At least two rings.
        /// Default 1 GiB.
        catchup_window_bytes: u64,
        /// A bound on how far catch-up reads ahead; at most twice as much of sealed segments stays
        /// in the page cache. Default 4 MiB.
        readahead_bytes: u64,
        /// How many subscribers and readers there may be. Default 4,096.
        consumers_max: usize,
        /// When a commit is durable. Default [`Durability::Synced`].
        durability: Durability,
        /// How much of the log is kept. Default: everything.
        retention: Retention,
        /// Which system calls carry the writes. Default [`Backend::Auto`].
        backend: Backend,
        /// Whether to bypass the page cache where the file system can. Default true.
        direct_io: bool,
        /// How catch-up reads sealed segments. Default [`ReadMode::Map`].
        read_mode: ReadMode,
        /// How per-consumer metrics are labelled. Default: by name.
        labels: ConsumerLabels,
        /// How long a batch waits for the disk to give room before it is refused with `Busy`.
        /// Default 30 s.
        append_timeout: Duration,
        /// How long `open` waits for another bus to let go of the directory. Default 5 s.
        lock_timeout: Duration,
        /// An idle log vouches for its last block after this long. Default 50 ms.
        watermark_idle: Duration,
        /// How often checkpoints are stored: what is repeated after a crash. Default 100 ms.
        checkpoint_interval: Duration,
        /// How often the supervisor looks. Default 10 ms.
        tick: Duration,
        /// How long a consumer stays in catch-up at least. Default 250 ms.
        dwell: Duration,
        /// A consumer without progress for this long, with records waiting, is shed. Default 2 s.
        stall_after: Duration,
        /// How many cold replays read at once. While fewer do, up to two have their next slab read
        /// while they deliver one, if the rate allows it and no small commits share the disk.
        /// Default 2.
        cold_replays_max: usize,
        /// Bytes a second that all cold replays together may read; `None` is unlimited. Default
        /// 256 MiB.
        cold_bytes_per_second: Option<u64>,
        /// How many pause instructions a consumer that is caught up waits between two looks before
        /// it sleeps; 0 sleeps at once, as does each where more have just been woken than there
        /// are cores. At most 262,144. Default 64.
        idle_spins: u32,
        /// The deadline of `stop` and `close`. Default 10 s.
        deadline: Duration,
    }

    /// How long a shed consumer stays out: the first time `min`, doubling up to `max`. Default
    /// 0.5 s to 30 s.
    pub fn shed_backoff(mut self, min: Duration, max: Duration) -> Builder {
        self.options.shed_backoff_min = min;
        self.options.shed_backoff_max = max;
        self
    }

    /// A consumer that falls out of the hot tier more than `times` within `window` is shed. Default
    /// 4 times in 10 s.
    pub fn flapping(mut self, times: u32, window: Duration) -> Builder {
        self.options.flaps_max = times;
        self.options.flap_window = window;
        self
    }

    /// Opens the log in `dir`, or creates it if `dir` is empty or missing. One bus a directory.
    ///
    /// # Crash
    /// What was acknowledged is there. A write that a crash tore is set aside and told in
    /// [`Bus::recovery`]; anything else that is not as it should be is an error, and nothing is
    /// changed on disk.
    ///
    /// # File size limit
    /// Where the process may not write files of `segment_bytes` (RLIMIT_FSIZE, `ulimit -f`), the
    /// error is [`ErrorKind::Io`] and says so, before anything is written. Lowering the limit below
    /// that while the log is open gets the process killed by SIGXFSZ, unless it ignores that
    /// signal: then the log is poisoned.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], also for sizes other than the log's; [`ErrorKind::NotALog`];
    /// [`ErrorKind::Locked`]; [`ErrorKind::Unsupported`]; [`ErrorKind::Corrupt`],
    /// [`ErrorKind::MissingSegment`], [`ErrorKind::ForeignSegment`]; [`ErrorKind::StorageFull`] or
    /// [`ErrorKind::Io`] from the operating system.
    ///
    /// [`ErrorKind::InvalidOption`]: crate::ErrorKind::InvalidOption
    /// [`ErrorKind::NotALog`]: crate::ErrorKind::NotALog
    /// [`ErrorKind::Locked`]: crate::ErrorKind::Locked
    /// [`ErrorKind::Unsupported`]: crate::ErrorKind::Unsupported
    /// [`ErrorKind::Corrupt`]: crate::ErrorKind::Corrupt
    /// [`ErrorKind::MissingSegment`]: crate::ErrorKind::MissingSegment
    /// [`ErrorKind::ForeignSegment`]: crate::ErrorKind::ForeignSegment
    /// [`ErrorKind::StorageFull`]: crate::ErrorKind::StorageFull
    /// [`ErrorKind::Io`]: crate::ErrorKind::Io
    pub fn open(self, dir: impl AsRef<Path>) -> Result<Bus> {
        Bus::open(self, dir.as_ref())
    }

    /// Makes a bus without a directory: records live in the ring and nowhere else. Options of
    /// segments and of the disk are ignored.
    ///
    /// What every consumer and reader has processed may go at once; what one of them still has to
    /// process stays until the ring has come round, and then it is told what it lost. While there
    /// is no consumer, the ring keeps what fits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption).
    pub fn in_memory(self) -> Result<Bus> {
        Bus::in_memory(self)
    }
}
