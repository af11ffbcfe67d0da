//! An embedded, durable, in-process event bus with tiered consumers.
//!
//! A *writer* appends records to a segmented write-ahead log and publishes what is committed into a
//! ring of slabs; it never waits for a consumer. *Consumers* see every record once, in order. One
//! that keeps up borrows records straight from the ring (**hot**); one that fell behind reads
//! mapped segments (**catch-up**); one that stalls or is very far behind is shed and later replayed
//! under a limit (**cold**). A *supervisor* moves each of them between the tiers, both ways, and
//! says why.
//!
//! > **A consumer is a cursor. A tier is where the next bytes come from.** The bytes have one form
//! > in memory, in the mapping and on disk, so changing the tier changes nothing but their source,
//! > and nothing can be lost or repeated there.
//!
//! ```
//! use eventplane::{Ack, Batch, Bus, Start};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let bus = Bus::builder().open(dir)?;
//!
//! let orders = bus.subscribe("orders").start_if_new(Start::Earliest).run(|batch: &Batch<'_>| {
//!     for record in batch {
//!         println!("{} kind {} key {}", record.lsn(), record.kind(), record.key());
//!     }
//!     Ok(Ack::All) // what is acknowledged is not delivered again
//! })?;
//!
//! let lsn = bus.writer().append(1, 42, b"created")?; // durable when it returns
//! orders.wait_processed(lsn, std::time::Duration::from_secs(5))?;
//! bus.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Delivery
//! At least once: a consumer's checkpoint is the last record it *processed*, stored every
//! [`checkpoint_interval`](Builder::checkpoint_interval), on stop and on close; after a crash what
//! came since is delivered again. Exactly once: keep the LSN with your own data, and subscribe with
//! [`start_at`](Subscribe::start_at).
//!
//! # Falling behind
//! A slow consumer costs the writer nothing and the others nothing. It is told by
//! [`Signal::FellBehind`] and [`Signal::CaughtUp`], which alternate, and [`Bus::transitions`] and
//! the metrics say when it changed its tier and why.
//!
//! # Errors
//! One type, [`Error`], with a [kind](ErrorKind) to decide on, and a message that says what
//! happened, where (path, segment, offset, LSN) and what to do. Nothing is ever skipped in silence.
//!
//! # Observing
//! The crate reports to the [`metrics`](https://docs.rs/metrics) facade (`eventplane_*`, described,
//! with units) and to [`tracing`](https://docs.rs/tracing), nothing per record; install any
//! recorder and subscriber. [`Bus::consumers`] and [`Bus::transitions`] tell the same without them.
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

// In the order of the data flow: a module imports only from those above it.
mod lsn;
mod error;
mod limits;
mod sync;
mod planted;
#[cfg(races = "loom")]
pub mod models;
mod format;
mod disk;
mod options;
mod policy;
mod telemetry;
mod ring;
mod log;
mod source;
mod consumer;
pub mod offline;
mod supervisor;
mod bus;
#[cfg(feature = "testing")]
pub mod testing;

pub use bus::{Builder, Bus};
pub use consumer::{
    Ack, Batch, BatchIter, Filter, LossCause, OnPositionLost, OwnedRecord, Reader, Record, Retry,
    Signal, Start, Status, Subscribe, Subscription, Transition,
};
pub use disk::Backend;
pub use error::{Error, ErrorKind, Result};
pub use log::{Recovery, Ticket, WriteBatch, Writer};
pub use lsn::Lsn;
pub use options::{ConsumerLabels, Durability, ReadMode, Retention};
pub use policy::{Reason, Tier};

/// All models, for loom to run.
#[cfg(races = "loom")]
#[must_use]
pub fn all_models() -> Vec<models::Model> {
    [ring::models::ALL, log::models::ALL, consumer::models::ALL].concat()
}
