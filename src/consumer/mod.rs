//! The event plane: consumers, each a cursor with a callback.

mod filter;
mod options;
mod pins;
mod batch;
mod checkpoints;
mod state;
mod tiering;
mod plane;
mod core;
mod thread;
mod subscription;
mod reader;
#[cfg(races = "loom")]
pub(crate) mod models;

pub use batch::{Batch, BatchIter, OwnedRecord, Record};
pub(crate) use checkpoints::Checkpoints;
pub(crate) use core::in_callback_of;
#[cfg(feature = "testing")]
pub(crate) use core::{Consumer, Progress};
pub use filter::Filter;
pub use options::{Ack, LossCause, OnPositionLost, Retry, Signal, Start};
pub(crate) use plane::{Plane, Stirred};
pub use reader::Reader;
pub(crate) use state::State;
pub use state::Status;
pub(crate) use subscription::stop as stop_consumer;
pub use subscription::{Subscribe, Subscription};
#[cfg(feature = "testing")]
pub(crate) use thread::Callbacks;
pub use tiering::Transition;
