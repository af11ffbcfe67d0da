//! An embedded, durable, in-process event bus whose consumers move between tiers.
#![deny(missing_docs)]

mod builder;
mod bus;
mod consumer;
mod disk;
mod error;
mod format;
mod limits;
mod log;
mod lsn;
mod options;
mod policy;
mod ring;
mod source;
mod supervisor;
mod sync;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;

pub use builder::Builder;
pub use bus::Bus;
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
