//! Pipelined writes by io_uring, straight from the caller's memory.
//!
//! The kernel reads that memory whenever it likes between submission and completion. So the queue
//! *owns* each write in a table until its completion is there: memory and file cannot go away
//! before, whatever happens to the caller. Dropping the queue waits; if the kernel will not even
//! let us wait, the memory is leaked rather than freed under it.
//!
//! # After a kill
//!
//! An io_uring outlives its process: after a SIGKILL, writes in flight go on for tens of
//! milliseconds, while a new process may already be recovering the same log. Therefore the
//! descriptor of the lock file is registered in the ring. The kernel keeps it open, and with it
//! the lock, until the last write of the ring is over.

use std::io;
use std::mem;
use std::ops::{ControlFlow, Range};
use std::os::fd::RawFd;
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::file::{is_aligned, wrote_nothing};
use super::{Completion, DiskLock, QUEUE_DEPTH, RETRIES_MAX, Write, WriteQueue};

/// What the kernel writes at most in one call (`MAX_RW_COUNT`); the rest is a short write.
const WRITE_BYTES_MAX: usize = 0x7fff_f000;

/// A queue of writes on a ring of its own.
pub(super) struct UringQueue {
    ring: IoUring,
    /// What the kernel is at work on. The index of a slot is the `user_data` of its entry, and
    /// a slot has at most one entry at a time, so the rings never overflow.
    slots: [Option<InFlight>; QUEUE_DEPTH],
    /// Written in `submit`, because the ring could not take it; to be reported.
    finished: Vec<Completion>,
    /// Addresses of the registered memory; empty if there is none.
    registered: Range<usize>,
    /// The kernel says for good that there is something to fetch.
    #[cfg(test)]
    flag_sticks: bool,
    /// Only held, as every queue does; the ring holds the same lock in the kernel.
    _lock: Arc<dyn DiskLock>,
}

/// A write in the kernel's hands.
struct InFlight {
    write: Write,
    /// Of `write.file`, which keeps it open.
    fd: RawFd,
    written: usize,
    /// Since the last progress.
    retries: u32,
}

/// Whether this kernel lets us use all that a queue needs.
pub(super) fn probe() -> io::Result<()> {
    let ring = build_ring()?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Write::CODE, opcode::WriteFixed::CODE];
    if needed.iter().all(|&code| probe.is_supported(code)) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
}

/// A ring for the calling thread alone, which runs completion work only when that thread asks for
/// it (Linux 6.1), or a plain one.
fn build_ring() -> io::Result<IoUring> {
    let entries = QUEUE_DEPTH as u32;
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries)
        .or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => IoUring::new(entries),
            _ => Err(error),
        })
}

impl UringQueue {
    /// To be called on the thread that will use the queue.
    pub(super) fn new(lock: Arc<dyn DiskLock>) -> io::Result<UringQueue> {
        let ring = build_ring()?;
        if let Some(fd) = lock.raw_fd() {
            ring.submitter().register_files(&[fd])?;
        }
        Ok(UringQueue {
            ring,
            slots: Default::default(),
            finished: Vec::with_capacity(QUEUE_DEPTH),
            registered: 0..0,
            #[cfg(test)]
            flag_sticks: false,
            _lock: lock,
        })
    }

    /// Writes that the kernel has not reported yet.
    fn in_kernel(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Queues an entry for what is left of the write in slot `index`; `enter` hands it to the
    /// kernel.
    fn push(&mut self, index: usize) -> io::Result<()> {
        let Some(in_flight) = &self.slots[index] else {
            return Ok(());
        };
        let entry = in_flight.entry(&self.registered).user_data(index as u64);
        // SAFETY: the entry's memory and descriptor are those of `write.data` and `write.file`,
        // which the slot owns until `reap` sees the completion, or `drop` leaks them.
        // `StableBytes` promises that the memory stays where and what it is.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| {
            // Cannot be: the ring has an entry for each slot. But if, nobody may wait for it.
            self.slots[index] = None;
            io::Error::other("the submission queue is full")
        })
    }

    /// Hands queued entries to the kernel and waits for `want` completions.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        let mut retries = 0;
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    // Unbounded: nothing was lost, and a slow disk is no reason to stop waiting.
                    Some(libc::EINTR) => {}
                    // The kernel is short of memory for an entry, which stays queued.
                    Some(libc::EAGAIN | libc::EBUSY) if retries < RETRIES_MAX => retries += 1,
                    _ => return Err(error),
                },
            }
        }
    }

    /// Entries were not yet handed over to the kernel.
    fn must_submit(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// The kernel says that it holds completions back until this thread comes for them. It may say
    /// so for good when there are none: it sets the flag behind what it announces, which this
    /// thread may have fetched in between, and clears it only when there is something to fetch.
    fn is_asked_to_come(&mut self) -> bool {
        #[cfg(test)]
        if self.flag_sticks {
            return true;
        }
        self.ring.submission().taskrun()
    }

    /// The next completion: the index of its slot, and the result.
    fn next_completion(&mut self) -> Option<(usize, i32)> {
        let completion = self.ring.completion().next()?;
        Some((completion.user_data() as usize, completion.result()))
    }

    /// Moves what is complete to `done`, and queues the rest of what is not.
    fn reap(&mut self, done: &mut Vec<Completion>) {
        while let Some((index, result)) = self.next_completion() {
            let Some(in_flight) = &mut self.slots[index] else {
                debug_assert!(false, "a completion for the empty slot {index}");
                continue;
            };
            let token = in_flight.write.token;
            let result = match in_flight.advance(result) {
                ControlFlow::Continue(()) => match self.push(index) {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
                ControlFlow::Break(result) => result,
            };
            // The kernel is done with this memory: from here on it may be freed.
            self.slots[index] = None;
            done.push((token, result));
        }
    }
}

impl InFlight {
    /// The entry that writes what is left.
    fn entry(&self, registered: &Range<usize>) -> squeue::Entry {
        let rest = self.write.data.bytes().split_at(self.written).1;
        let (fd, start) = (types::Fd(self.fd), rest.as_ptr());
        let len = rest.len().min(WRITE_BYTES_MAX) as u32;
        let offset = self.write.offset + self.written as u64;
        let is_registered =
            registered.start <= start.addr() && start.addr() + rest.len() <= registered.end;
        if is_registered {
            opcode::WriteFixed::new(fd, start, len, 0).offset(offset).build()
        } else {
            opcode::Write::new(fd, start, len).offset(offset).build()
        }
    }

    /// Takes account of a completion: `Break` with how the write ended, or `Continue` if there is
    /// more to write. A positive result says how many bytes were written, not that all were.
    fn advance(&mut self, result: i32) -> ControlFlow<io::Result<()>> {
        match result {
            0 => ControlFlow::Break(Err(wrote_nothing())),
            1.. => {
                self.written += result as usize;
                self.retries = 0;
                if self.written >= self.write.data.bytes().len() {
                    return ControlFlow::Break(Ok(()));
                }
                ControlFlow::Continue(())
            }
            _ => {
                let errno = result.wrapping_neg();
                let transient = matches!(errno, libc::EINTR | libc::EAGAIN);
                if !transient || self.retries >= RETRIES_MAX {
                    return ControlFlow::Break(Err(io::Error::from_raw_os_error(errno)));
                }
                self.retries += 1;
                ControlFlow::Continue(())
            }
        }
    }
}

impl WriteQueue for UringQueue {
    fn depth(&self) -> usize {
        QUEUE_DEPTH
    }

    fn in_flight(&self) -> usize {
        self.in_kernel() + self.finished.len()
    }

    fn submit(&mut self, write: Write) -> io::Result<()> {
        debug_assert!(self.in_flight() < self.depth(), "submitted to a full queue");
        let Some(index) = self.slots.iter().position(Option::is_none) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the queue is full"));
        };
        let bytes = write.data.bytes();
        // What the kernel would refuse, or not tell from a failure, `write_at` judges.
        let for_ring =
            !bytes.is_empty() && (!write.file.is_direct() || is_aligned(bytes, write.offset));
        let Some(fd) = write.file.raw_fd().filter(|_| for_ring) else {
            let result = write.file.write_at(bytes, write.offset);
            self.finished.push((write.token, result));
            return Ok(());
        };
        self.slots[index] = Some(InFlight { write, fd, written: 0, retries: 0 });
        self.push(index)?;
        self.enter(0)
    }

    fn complete(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        done.append(&mut self.finished);
        let mut came = false;
        loop {
            self.reap(done);
            let must_wait = wait && done.len() == before && self.in_kernel() > 0;
            // Once: whatever was held back is fetched by then.
            let must_come = !came && self.is_asked_to_come();
            if !must_wait && !must_come && !self.must_submit() {
                return Ok(());
            }
            self.enter(usize::from(must_wait))?;
            came = true;
        }
    }

    // # Safety: the caller's duties are those of the trait.
    unsafe fn register_buffers(&mut self, base: *const u8, len: usize) -> io::Result<()> {
        let region = libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len };
        // SAFETY: the caller promises that the region stays valid until the queue, and with it
        // the ring, is dropped. The kernel is only ever asked to read from it.
        match unsafe { self.ring.submitter().register_buffers(&[region]) } {
            Ok(()) => {
                self.registered = base.addr()..base.addr() + len;
                Ok(())
            }
            // RLIMIT_MEMLOCK or seccomp, or the region is over 1 GiB.
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOMEM | libc::EPERM | libc::EFAULT) => {
                    tracing::debug!(%error, "memory not registered: plain writes");
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        let mut ignored = Vec::new();
        while self.in_kernel() > 0 {
            if let Err(error) = self.complete(true, &mut ignored) {
                tracing::error!(%error, "cannot wait for writes in flight: their memory is leaked");
                self.slots.iter_mut().for_each(|slot| mem::forget(slot.take()));
                return;
            }
        }
        // The kernel tears a ring down some time after it is closed. Nothing is in flight any
        // more, so let go of the lock now, and whoever opens next need not wait for that.
        if let Err(error) = self.ring.submitter().unregister_files() {
            tracing::debug!(%error, "the lock is released when the ring is torn down");
        }
    }
}

#[cfg(test)]
mod tests;
