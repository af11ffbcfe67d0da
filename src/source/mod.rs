//! Where the next bytes come from.
//!
//! A consumer is a [`Cursor`]; a source holds bytes of the log around it. There are three, and one
//! decoder ([`scan`]) reads them all, because the bytes are the same: slab memory ([`Hot`]), a
//! shared mapping of a sealed segment ([`Mapped`]), and a buffer filled by reads ([`Buffered`]).
//! Switching between them changes nothing but who holds the bytes.

mod ahead;
mod buffered;
mod cold;
mod cursor;
mod held;
mod hot;
mod mapped;
mod queue;
mod replay;

pub(crate) use buffered::Buffered;
pub(crate) use cold::Cold;
pub(crate) use cursor::{Cursor, PageLimits, RunIter, Scan, Select, scan};
pub(crate) use held::{Brought, Held, Supply, Want};
pub(crate) use hot::Hot;
pub(crate) use mapped::Mapped;
pub(crate) use queue::{Queue, Replaying};
pub(crate) use replay::{CatchUp, Replay};

/// Bytes of one slab of the log, and where they lie.
#[derive(Clone, Copy)]
pub(crate) struct Window<'a> {
    /// From position `base` on; complete blocks, and perhaps a part of one at the end.
    pub(crate) bytes: &'a [u8],
    pub(crate) base: u64,
    pub(crate) align: usize,
}

/// What a source says when asked for the bytes at a position.
pub(crate) enum Fetch {
    /// It holds them: ask for its window.
    Ready,
    /// The slab ends before: the next block is at the start of the next slab.
    SlabEnd,
    /// Not before this clock value: budget or permit (cold tier).
    NotBefore(u64),
}
