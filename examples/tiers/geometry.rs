//! The sizes of the log, far smaller than the defaults, so that a few seconds show what otherwise
//! takes hours; and what they mean in records of the input.

use std::time::Duration;

use eventplane::{Builder, Bus};

use crate::args::Args;
use crate::input::Input;

const SLAB_BYTES: u64 = 256 << 10;
const SEGMENT_BYTES: u64 = 2 << 20;
const RING_BYTES: u64 = 8 << 20;
const CATCHUP_WINDOW_BYTES: u64 = 16 << 20;
const READAHEAD_BYTES: u64 = 1 << 20;
/// A record fits half a slab, with its header, the block's and the padding.
pub(crate) const PAYLOAD_BYTES_MAX: usize = SLAB_BYTES as usize / 2 - 80;
/// A consumer's share of the pin budget, a quarter of it.
const SHARE_SLABS: u64 = 8;
const PIN_BUDGET_BYTES: u64 = 4 * SHARE_SLABS * SLAB_BYTES;
/// How many slabs each of the four others holds when all goes on as always.
pub(crate) const SAMPLES: u64 = 4;
/// How many when the keeper has its share: that is exactly the budget, so their next lease exhausts
/// it, and then the keeper pins most.
pub(crate) const SAMPLES_MAX: u64 = 6;

const STALL_AFTER: Duration = Duration::from_secs(2);
pub(crate) const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(100);
pub(crate) const DEFERRED_INTERVAL: Duration = Duration::from_millis(50);
pub(crate) const DEFERRED_BYTES: u64 = 4 << 20;
/// The third fall out of hot within the window is flapping.
const FLAPS_MAX: u32 = 2;
const FLAP_WINDOW: Duration = Duration::from_secs(60);

/// A record's header in the log.
const RECORD_HEADER_BYTES: u64 = 16;
const RECORD_ALIGN_BYTES: u64 = 8;

const _: () = assert!(4 * SAMPLES_MAX + SHARE_SLABS == PIN_BUDGET_BYTES / SLAB_BYTES);
const _: () = assert!(SAMPLES < SAMPLES_MAX && SAMPLES_MAX < SHARE_SLABS);

pub(crate) fn builder(args: &Args) -> Builder {
    Bus::builder()
        .slab_bytes(SLAB_BYTES)
        .segment_bytes(SEGMENT_BYTES)
        .ring_bytes(RING_BYTES)
        .catchup_window_bytes(CATCHUP_WINDOW_BYTES)
        .readahead_bytes(READAHEAD_BYTES)
        .pin_budget_bytes(PIN_BUDGET_BYTES)
        .stall_after(STALL_AFTER)
        .dwell(Duration::from_millis(100))
        .shed_backoff(Duration::from_millis(200), Duration::from_secs(1))
        .flapping(FLAPS_MAX, FLAP_WINDOW)
        .checkpoint_interval(CHECKPOINT_INTERVAL)
        .durability(args.durability.durability())
        .backend(args.backend.backend())
}

/// The same in records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InRecords {
    /// At least as many as a slab holds.
    pub(crate) slab: u64,
    pub(crate) ring: u64,
    pub(crate) window: u64,
}

impl InRecords {
    pub(crate) fn of(input: &Input) -> InRecords {
        let framed = |line: &[u8]| {
            (RECORD_HEADER_BYTES + line.len() as u64).next_multiple_of(RECORD_ALIGN_BYTES)
        };
        let bytes: u64 = input.rows().map(|row| framed(row.payload)).sum();
        let records = |of: u64| (of * input.len() / bytes).max(1);
        InRecords {
            slab: records(SLAB_BYTES),
            ring: records(RING_BYTES),
            window: records(CATCHUP_WINDOW_BYTES),
        }
    }
}
