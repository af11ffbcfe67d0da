//! Writes one after the other, on the submitting thread: the queue where io_uring is refused.

use std::io;
use std::sync::Arc;

use super::{Completion, DiskLock, QUEUE_DEPTH, Write, WriteQueue};

/// Performs each write when it is submitted, and reports it at the next `complete`.
pub(super) struct PsyncQueue {
    done: Vec<Completion>,
    /// Only held, as every queue does.
    _lock: Arc<dyn DiskLock>,
}

impl PsyncQueue {
    pub(super) fn new(lock: Arc<dyn DiskLock>) -> PsyncQueue {
        PsyncQueue { done: Vec::with_capacity(QUEUE_DEPTH), _lock: lock }
    }
}

impl WriteQueue for PsyncQueue {
    fn depth(&self) -> usize {
        QUEUE_DEPTH
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn submit(&mut self, write: Write) -> io::Result<()> {
        debug_assert!(self.in_flight() < self.depth(), "submitted to a full queue");
        let result = write.file.write_at(write.data.bytes(), write.offset);
        self.done.push((write.token, result));
        Ok(())
    }

    fn complete(&mut self, _wait: bool, done: &mut Vec<Completion>) -> io::Result<()> {
        done.append(&mut self.done);
        Ok(())
    }
}
