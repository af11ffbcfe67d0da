//! The next read of a cold replay, under way while what the one before brought is delivered.
//!
//! A thread for each read: a disk takes long enough for that, it works with every disk, and a
//! thread that is joined is all there is to wait for.

use std::io;
use std::panic;
use std::sync::{Arc, Weak};
use std::thread::{Builder, JoinHandle};

use super::buffered::low_priority;
use super::cold::{Buffer, Slot};
use crate::disk::DiskFile;

/// A read, and by what right.
pub(super) struct Ahead {
    /// Offset in the segment.
    pub(super) from: u64,
    pub(super) len: usize,
    /// The replay's permit, which the read gives back when it is over: a callback that hangs has
    /// none.
    pub(super) permit: Weak<Slot>,
    /// To a second buffer.
    pub(super) second: Slot,
    pub(super) reading: Reading,
}

/// A thread that reads. Dropped, it is waited for: no read outlives its consumer.
pub(super) struct Reading(Option<JoinHandle<Outcome>>);

/// The buffer, and how much was read into it.
type Outcome = (Buffer, io::Result<usize>);

impl Ahead {
    /// Begins to read `len` bytes from `from` on. `None` if there is no thread to be had.
    pub(super) fn begin(
        file: &Arc<dyn DiskFile>,
        mut buffer: Buffer,
        (from, len): (u64, usize),
        (permit, second): (Arc<Slot>, Slot),
    ) -> Option<Ahead> {
        let file = Arc::clone(file);
        let held = Arc::downgrade(&permit);
        let read = move || {
            let into = &mut buffer.bytes_mut()[..len];
            let read = low_priority(true, || file.read_at(into, from));
            if !file.is_direct() {
                let _ = file.drop_cache(from, len as u64);
            }
            drop(permit);
            (buffer, read)
        };
        let thread = Builder::new().name("ep-ahead".into()).spawn(read).ok()?;
        Some(Ahead { from, len, permit: held, second, reading: Reading(Some(thread)) })
    }
}

impl Reading {
    pub(super) fn finish(mut self) -> Outcome {
        let thread = self.0.take().expect("taken here alone, and this takes `self`");
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}
