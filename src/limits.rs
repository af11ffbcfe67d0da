//! Every bound and default in one place, related to each other by assertions.
//!
//! What a user may set is an option with its default here; what nobody should need to set is a
//! constant.

use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

// Sizes of a log, fixed when it is created.
pub(crate) const SLAB_BYTES: u64 = MIB;
pub(crate) const SLAB_BYTES_MIN: u64 = 64 * KIB;
pub(crate) const SLAB_BYTES_MAX: u64 = 64 * MIB;
pub(crate) const SEGMENT_BYTES: u64 = 16 * MIB;
/// Offsets inside a segment are 32 bits wide in the footer's index.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 2 * GIB;
pub(crate) const SEGMENT_SLABS_MIN: u64 = 2;

// Memory.
pub(crate) const RING_BYTES: u64 = 64 * MIB;
pub(crate) const RING_SEGMENTS_MIN: u64 = 2;
pub(crate) const PIN_BUDGET_BYTES: u64 = 32 * MIB;
/// Address space is reserved for all of it.
pub(crate) const PIN_BUDGET_BYTES_MAX: u64 = 1 << 40;
/// A consumer may pin this fraction of the budget: over-committed on purpose.
pub(crate) const PIN_SHARES: u64 = 4;
pub(crate) const CONSUMERS_MAX: usize = 4096;
/// Slabs beyond ring, pin budget and one a consumer: those just being handed from one to another.
pub(crate) const SLABS_SPARE: u64 = 8;

// Blocks.
pub(crate) const BLOCK_CLOSE_BYTES: usize = 256 * KIB as usize;
/// A block is at most this fraction of a slab, so a batch fits any fresh slab.
pub(crate) const BLOCKS_PER_SLAB_MIN: u64 = 2;

// Writing.
pub(crate) const APPEND_TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const WATERMARK_IDLE: Duration = Duration::from_millis(50);
/// Segments kept ready behind the one being written.
pub(crate) const SEGMENTS_AHEAD: u64 = 2;
/// The preparer tries again this long after a full disk or another failure.
pub(crate) const PREPARE_RETRY: Duration = Duration::from_millis(100);
/// Zeros are written in pieces of this size.
pub(crate) const ZERO_FILL_BYTES: usize = MIB as usize;
/// Holding the append lock longer than this is counted and warned about.
pub(crate) const LONG_BATCH: Duration = Duration::from_millis(10);
/// Above this many bytes a commit goes through the write queue instead of one durable write.
pub(crate) const DIRECT_COMMIT_BYTES: usize = 64 * KIB as usize;
/// A ring up to this size is registered with io_uring as one buffer, the most it takes.
pub(crate) const REGISTERED_BYTES_MAX: usize = 1 << 30;
/// A sync is issued at the latest when this much was written since the last.
pub(crate) const SYNC_BYTES: u64 = 2 * MIB;

// Opening.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Tools do not wait for a bus to close, only for the last write of a killed process.
pub(crate) const TOOL_LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// Of a gap between segments, verification lists so many one by one.
pub(crate) const MISSING_LISTED_MAX: u64 = 100;
/// As many checkpoints as there may be consumers, with the longest names, and half as many again.
pub(crate) const CHECKPOINT_FILE_BYTES_MAX: u64 = 26 * MIB;
pub(crate) const CONSUMER_NAME_BYTES_MAX: usize = 255;

// Tiers.
pub(crate) const CATCHUP_WINDOW_BYTES: u64 = GIB;
pub(crate) const CATCHUP_WINDOW_RINGS_MIN: u64 = 2;
pub(crate) const READAHEAD_BYTES: u64 = 4 * MIB;
pub(crate) const READAHEAD_BYTES_MIN: u64 = 64 * KIB;
/// Catch-up reads in pieces of this fraction of its read-ahead, but of no less than the least one,
/// and asks for so many more meanwhile: enough for the device, and not too much before a commit.
pub(crate) const READ_PIECES: u64 = 8;
pub(crate) const PIECES_AHEAD: u64 = 2;
/// With a small commit this long ago, replays share the disk with commits.
pub(crate) const COMMITS_LATELY: Duration = Duration::from_millis(20);
/// A commit that waits for the device and not for bandwidth. Such commits write less in the time of
/// the naps below than a replay reads between them, so it catches up with them.
pub(crate) const SMALL_COMMIT_BYTES: usize = 8 * KIB as usize;
/// Beside them, all replays have so much in flight.
pub(crate) const SHARED_IN_FLIGHT_BYTES: u64 = 128 * KIB;
/// A replay waits for a commit at most so many times so long, then goes on.
pub(crate) const GIVE_WAY_NAP: Duration = Duration::from_micros(50);
pub(crate) const GIVE_WAY_NAPS_MAX: u32 = 4;
/// Footers of the segments sealed last that stay in memory: those behind the default ring, twice.
pub(crate) const FOOTERS_KEPT: usize = 8;
/// The first read of a segment; each doubles, up to the read-ahead or the buffer.
pub(crate) const FIRST_READ_BYTES: u64 = 256 * KIB;
pub(crate) const BATCH_RECORDS_MAX: usize = 1024;
pub(crate) const BATCH_BYTES_MAX: usize = MIB as usize;
pub(crate) const TICK: Duration = Duration::from_millis(10);
pub(crate) const DWELL: Duration = Duration::from_millis(250);
pub(crate) const STALL_AFTER: Duration = Duration::from_secs(2);
pub(crate) const FLAPS_MAX: u32 = 4;
pub(crate) const FLAP_WINDOW: Duration = Duration::from_secs(10);
pub(crate) const SHED_BACKOFF_MIN: Duration = Duration::from_millis(500);
pub(crate) const SHED_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The supervisor looks at consumers at rest as well this often: for recorders that forget gauges
/// which nobody sets.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A shed consumer that ran this long afterwards starts again from the shortest back-off.
pub(crate) const SHED_FORGIVEN_AFTER: Duration = Duration::from_secs(60);
pub(crate) const COLD_REPLAYS_MAX: usize = 2;
pub(crate) const COLD_BYTES_PER_SECOND: u64 = 256 * MIB;
pub(crate) const COLD_BUFFERS: usize = 4;
pub(crate) const COLD_BUFFER_BYTES: usize = MIB as usize;
/// So many replays have a second buffer, whatever their callbacks do.
pub(crate) const COLD_AHEAD_MAX: usize = 2;
/// A consumer without a permit, or whose budget is spent, asks again after this long.
pub(crate) const COLD_RETRY: Duration = Duration::from_millis(2);
pub(crate) const TRANSITIONS_KEPT: usize = 1024;

// Consumers.
pub(crate) const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(100);
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
pub(crate) const RETRY_MIN: Duration = Duration::from_millis(10);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(10);
pub(crate) const RETRY_ATTEMPTS: u32 = 10;
pub(crate) const READ_RETRY_ATTEMPTS: u32 = 5;
/// A consumer that is caught up looks this often before it yields, then sleeps.
pub(crate) const IDLE_SPINS: u32 = 64;
/// Some 10 ms.
pub(crate) const IDLE_SPINS_MAX: u32 = 1 << 18;
pub(crate) const IDLE_ROUNDS: u32 = if cfg!(races) { 0 } else { 16 };
pub(crate) const IDLE_YIELDS: u32 = if cfg!(races) { 0 } else { 4 };
/// Nothing sleeps longer than this without looking again: a bound on the cost of a bug, not a
/// mechanism.
pub(crate) const SLEEP_MAX: Duration = Duration::from_millis(500);
/// A consumer may sleep longer, since there may be thousands: every `SLEEP_MAX` the waker looks for
/// all of them whether something was published that they were not woken for. What is left to this
/// bound is an order that does not wake, and even then a stop would be in time.
pub(crate) const REST_MAX: Duration = Duration::from_secs(5);

// Retention.
pub(crate) const RETENTION_INTERVAL: Duration = Duration::from_millis(250);
/// Warn when a consumer has less than this fraction of the retained log left before deletion.
pub(crate) const LEAD_WARN_FRACTION: u64 = 10;

/// How much memory opening takes to read segments that it will walk, beside looking at the others.
pub(crate) const OPEN_AHEAD_BYTES: u64 = 64 << 20;

const _: () = {
    assert!(SLAB_BYTES_MIN <= SLAB_BYTES && SLAB_BYTES <= SLAB_BYTES_MAX);
    assert!(SEGMENT_BYTES >= SEGMENT_SLABS_MIN * SLAB_BYTES);
    assert!(RING_BYTES >= RING_SEGMENTS_MIN * SEGMENT_BYTES);
    assert!(CATCHUP_WINDOW_BYTES >= CATCHUP_WINDOW_RINGS_MIN * RING_BYTES);
    assert!(PIN_BUDGET_BYTES / PIN_SHARES >= SLAB_BYTES);
    assert!((DIRECT_COMMIT_BYTES as u64) <= SLAB_BYTES_MIN);
    assert!(BLOCK_CLOSE_BYTES as u64 <= SLAB_BYTES / BLOCKS_PER_SLAB_MIN);
    assert!(SHED_BACKOFF_MIN.as_millis() <= SHED_BACKOFF_MAX.as_millis());
    assert!(SEGMENT_BYTES_MAX <= u32::MAX as u64);
    assert!(SLEEP_MAX.as_millis() < REST_MAX.as_millis());
    assert!(REST_MAX.as_millis() < DEADLINE.as_millis());
    assert!(PIECES_AHEAD < READ_PIECES);
    assert!(
        SHARED_IN_FLIGHT_BYTES / 2 <= READAHEAD_BYTES_MIN && FIRST_READ_BYTES <= READAHEAD_BYTES
    );
};
