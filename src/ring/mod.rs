//! The ring: the newest slabs of the log in memory, and the word that says how far they are
//! committed.
//!
//! The writer fills slabs in place, in disk form; consumers in the hot tier borrow from the same
//! bytes. A slab is reference counted: it leaves the ring by a swap of its slot, and its memory is
//! used again only when [`Arc::get_mut`](std::sync::Arc::get_mut) proves that the last reader is
//! gone. So no reader ever makes the writer wait, and no writer ever overwrites what is being read.

mod arena;
mod committed;
#[cfg(races = "loom")]
pub(crate) mod models;
mod pool;
mod readers;
mod slab;
mod sleepers;

pub(crate) use committed::Seen;
pub(crate) use pool::Ring;
pub(crate) use readers::Place;
pub(crate) use slab::{BlockBytes, SlabArc};
pub(crate) use sleepers::Sleeper;
