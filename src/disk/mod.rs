//! The disk, behind one small trait: everything the log asks of a file system, and nothing else.
//!
//! The log never touches `std::fs`. So a crash, a full disk or a write that ends half-way is just
//! another implementation of [`Disk`], and the log's own code runs unchanged on it.
//!
//! | implementation | what it is |
//! |---|---|
//! | [`RealDisk`] | files of the operating system, with O_DIRECT where the file system allows it |
//! | `FaultyDisk` | any other disk, with failures, short writes and delays on demand |
//! | `SimDisk` | a disk in memory that knows what is durable, crashes, and is driven by a seed |
//!
//! # Two ways to write
//!
//! A [`DiskFile`] writes on the calling thread: `write_at`, or `write_durable_at`, which is the
//! fastest way to make one small block durable. A [`WriteQueue`] keeps several large writes in
//! flight, straight from the caller's memory, with io_uring or, where that is refused, one after
//! the other with pwrite. What a queue reports complete is *written*, not durable: durable it is
//! after a sync that starts after the completion.
//!
//! # Errors
//!
//! They stay `io::Error` with the errno of the operating system; the caller knows the path and
//! what it was about, and adds both. Nothing here retries a failed write or sync, except for the
//! part of a *short* write that is still missing, and calls that a signal interrupted.

use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

mod at_once;
mod buf;
mod file;
mod psync;
mod real;
mod uring;

#[cfg(any(test, feature = "testing"))]
mod faulty;
#[cfg(feature = "testing")]
mod sim;
#[cfg(test)]
mod tests;

pub(crate) use at_once::at_once;
pub(crate) use buf::{AlignedBuf, StableBytes};
#[cfg(any(test, feature = "testing"))]
pub(crate) use faulty::FaultyDisk;
#[cfg(any(test, feature = "testing"))]
pub use faulty::{Fault, Faults, Hold, Op};
pub(crate) use real::RealDisk;
#[cfg(feature = "testing")]
pub use sim::{Crash, Plant, Point, SimDisk};

/// What O_DIRECT demands of memory, offset and length. Devices ask for 512 or 4096 bytes; 4096
/// serves both.
pub(crate) const DIRECT_ALIGN: usize = 4096;

/// How many writes a [`WriteQueue`] keeps in flight. Bandwidth is flat from 4 × 256 KiB on.
const QUEUE_DEPTH: usize = 8;

/// How many small reads a [`RealDisk`] is asked for at once. More gain little, and each is a thread
/// for some milliseconds.
const CALLS_AT_ONCE: usize = 32;

/// How often in a row one call is repeated without progress because the kernel said EINTR or
/// EAGAIN. Far beyond what signals cause; it only keeps a broken disk from becoming a busy loop.
const RETRIES_MAX: u32 = 1_000;

/// How long to sleep between two attempts at a lock that somebody else holds.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Which system calls carry the pipelined writes of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Backend {
    /// io_uring, or pwrite where the kernel or a container refuses io_uring, and on FUSE, where
    /// io_uring does not continue short writes in the right place.
    #[default]
    Auto,
    /// io_uring; opening fails where it is refused.
    IoUring,
    /// pwrite on the committing thread, one write at a time.
    Psync,
}

/// How to open a file. Reading is always possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct OpenMode {
    /// Also for writing.
    pub write: bool,
    /// Create it, with mode 0644; an error if it is there already.
    pub create: bool,
    /// Past the page cache (O_DIRECT), or through it where the file system refuses that.
    pub direct: bool,
}

/// What is really in use, after fallbacks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DiskMode {
    /// Queues write by io_uring.
    pub io_uring: bool,
    /// Files asked to be direct are.
    pub direct: bool,
    /// Why something that was asked for is not in use.
    pub why: Option<String>,
}

/// A file system, as the log needs it.
///
/// Nothing that changes a *directory* (create, rename, remove) is durable before `sync_dir`.
pub(crate) trait Disk: Debug + Send + Sync {
    /// Creates a directory and its parents; it may be there already.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted. One that is not UTF-8 is shown lossily: none of ours is.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, replacing `to` atomically if that is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Unlinks a file. Who has it open or mapped keeps it.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the exclusive lock on a file, which is created if missing. While somebody else holds
    /// it, retries for `timeout`; then the error is `WouldBlock`.
    fn lock(&self, path: &Path, timeout: Duration) -> io::Result<Arc<dyn DiskLock>>;

    /// A queue for pipelined writes, to be called on the thread that will use it: a ring belongs
    /// to the thread that made it. The queue holds the lock until its last write is over.
    fn queue(&self, lock: &Arc<dyn DiskLock>) -> io::Result<Box<dyn WriteQueue>>;

    /// A random number: for identities, not for secrets.
    fn random_u64(&self) -> io::Result<u64> {
        getrandom::u64().map_err(io::Error::other)
    }

    /// How many calls about different files are worth having under way at once: see [`at_once`].
    /// 1 where the order of calls must not depend on chance.
    fn calls_at_once(&self) -> usize {
        1
    }

    /// What is really in use.
    fn mode(&self) -> DiskMode;
}

/// A lock that is held; released when the last reference is dropped.
pub(crate) trait DiskLock: Debug + Send + Sync {
    /// The descriptor that holds the lock, open for as long as this value lives.
    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
}

/// An open file. All methods may be called from several threads at once.
///
/// On a direct file memory, offset and length of reads and writes must be multiples of
/// [`DIRECT_ALIGN`]; anything else is a bug of the caller, and `InvalidInput`.
pub(crate) trait DiskFile: Debug + Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Reads until `buf` is full or the file ends; returns how much was read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes`, or fails; after a failure any part of them may be written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` and makes them durable, or fails. Says nothing about earlier writes.
    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes all completed writes durable, with the metadata that is needed to read them back.
    /// After a failure, a second call that succeeds proves nothing: the data may be lost.
    fn sync_data(&self) -> io::Result<()>;

    /// Like `sync_data`, for all metadata.
    fn sync_all(&self) -> io::Result<()>;

    /// Reserves space for the first `len` bytes, which read as zeros where nothing was written.
    /// Never shortens the file. Where the file system cannot reserve, only the length is set.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Sets the mode to 0444. Handles that are open for writing stay so.
    fn set_read_only(&self) -> io::Result<()>;

    /// Asks the kernel to forget cached pages. It keeps those that are dirty or mapped.
    fn drop_cache(&self, offset: u64, len: u64) -> io::Result<()>;

    /// A read-only mapping of the whole file, or `None` on a disk that has no mappings.
    /// Only for files that nobody changes any more: sealed segments.
    fn map(&self) -> io::Result<Option<memmap2::Mmap>>;

    /// Whether reads and writes bypass the page cache, and must be aligned.
    fn is_direct(&self) -> bool;

    /// The descriptor, open for as long as this value lives; `None` makes a queue write through
    /// `write_at`.
    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
}

/// A write for a [`WriteQueue`], which owns file and memory until the write is over.
pub(crate) struct Write {
    /// Where to; on a direct file, `offset` and `data` must be aligned.
    pub file: Arc<dyn DiskFile>,
    /// Where in the file.
    pub offset: u64,
    /// What to write, all of it.
    pub data: Box<dyn StableBytes>,
    /// Comes back with the completion.
    pub token: u64,
}

/// The token of a write, and how it ended.
pub(crate) type Completion = (u64, io::Result<()>);

/// Several writes at once, completed in any order. Never two that overlap.
///
/// A write that fails is an error in its own completion. An error of `submit` or `complete` itself
/// means that the queue is broken: which of the writes in flight happen is unknown, and there is
/// nothing left to do but to drop the queue.
///
/// Dropping a queue waits until the kernel is done with everything in flight.
pub(crate) trait WriteQueue: Send {
    /// How many writes may be in flight.
    fn depth(&self) -> usize;

    /// How many were submitted and not yet reported complete.
    fn in_flight(&self) -> usize;

    /// Starts a write. Only while `in_flight() < depth()`.
    fn submit(&mut self, write: Write) -> io::Result<()>;

    /// Appends to `done` what was completed since the last call; with `wait`, waits for at least
    /// one completion if anything is in flight. Short writes are continued until they are whole.
    fn complete(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()>;

    /// Tells the kernel of memory that many writes will come from, so that it need not look up
    /// its pages every time. Where that is refused, for want of RLIMIT_MEMLOCK or because it is
    /// over 1 GiB, everything works as before. Once a queue.
    ///
    /// # Safety
    ///
    /// Until the queue is dropped, the `len` bytes at `base` must
    /// - stay mapped and readable, and
    /// - keep their physical pages: no `MADV_DONTNEED`, no `mremap`, no `MAP_FIXED` over them.
    ///   The kernel goes on writing from the pages that it saw here.
    unsafe fn register_buffers(&mut self, base: *const u8, len: usize) -> io::Result<()> {
        let _ = (base, len);
        Ok(())
    }
}
