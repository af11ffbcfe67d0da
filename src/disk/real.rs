//! The disk of the operating system, and what it does where the kernel refuses a feature.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::file::{RealFile, check_size_limit};
use super::psync::PsyncQueue;
use super::uring::{self, UringQueue};
use super::{
    Backend, CALLS_AT_ONCE, Disk, DiskFile, DiskLock, DiskMode, LOCK_RETRY_INTERVAL, OpenMode,
    WriteQueue,
};

/// Files of the operating system.
///
/// # Where something is refused
///
/// - io_uring (seccomp in containers, `kernel.io_uring_disabled`, old kernels; also for want of
///   RLIMIT_MEMLOCK, on which a ring draws unless root owns it): with [`Backend::Auto`], queues
///   write by pwrite.
/// - io_uring on a FUSE file system: not refused, but not to be trusted. Where the server bypasses
///   the page cache and ends a write early, the kernel writes the rest at the offset of its
///   beginning and reports all of it as written (Linux 6.18). [`Backend::IoUring`] insists.
/// - O_DIRECT (tmpfs and others): files are opened through the page cache.
///
/// Either is noticed once, said once in tracing, and told by [`Disk::mode`].
///
/// A few file systems accept O_DIRECT when a file is opened and fail its reads and writes with
/// EINVAL, if they want more than 4096 bytes of alignment for instance. That error is passed on:
/// the log must then be opened without `direct`.
#[derive(Debug)]
pub(crate) struct RealDisk {
    backend: Backend,
    /// Starts as asked for; a refusal clears a flag for good.
    mode: Mutex<DiskMode>,
}

impl RealDisk {
    /// Tries io_uring unless `backend` is `Psync`. Whether `direct` works is known only when the
    /// first file is opened.
    pub(crate) fn new(backend: Backend, direct: bool) -> io::Result<RealDisk> {
        let io_uring = backend != Backend::Psync;
        let mode = Mutex::new(DiskMode { io_uring, direct, why: None });
        let disk = RealDisk { backend, mode };
        if io_uring {
            uring::probe().or_else(|error| disk.without_io_uring(error))?;
        }
        Ok(disk)
    }

    /// Goes on without io_uring, if that is allowed. Like `without_direct`, several threads may
    /// find out, and one says so.
    fn without_io_uring(&self, error: io::Error) -> io::Result<()> {
        if self.backend == Backend::IoUring {
            return Err(error);
        }
        let mut mode = self.mode.lock();
        if mode.io_uring {
            tracing::warn!(%error, "io_uring is refused: writing by pwrite");
            mode.io_uring = false;
            mode.add_reason(format!("io_uring: {error}"));
        }
        Ok(())
    }

    /// Goes on without O_DIRECT.
    fn without_direct(&self, error: &io::Error) {
        let mut mode = self.mode.lock();
        if mode.direct {
            tracing::warn!(%error, "O_DIRECT is refused: reading and writing through the cache");
            mode.direct = false;
            mode.add_reason(format!("O_DIRECT: {error}"));
        }
    }

    /// Opens past the page cache, or through it where that is refused.
    fn open_direct(&self, path: &Path, mode: OpenMode) -> io::Result<RealFile> {
        let mut options = options(mode);
        let refusal = match options.clone().custom_flags(libc::O_DIRECT).open(path) {
            Ok(file) => return Ok(RealFile::new(file, true)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => error,
            Err(error) => return Err(error),
        };
        // The kernel refuses O_DIRECT *after* it created the file, so the second attempt must
        // not insist on a new one. A file that was there before would have been EEXIST.
        let file = options.create_new(false).create(mode.create).open(path)?;
        self.without_direct(&refusal);
        Ok(RealFile::new(file, false))
    }
}

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        let mut names = fs::read_dir(dir)?.map(name).collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let direct = mode.direct && self.mode.lock().direct;
        let file = if direct {
            self.open_direct(path, mode)?
        } else {
            RealFile::new(options(mode).open(path)?, false)
        };
        if mode.write {
            check_size_limit(file.len()?)?;
        }
        if mode.write && file.loses_its_place() && self.backend == Backend::Auto {
            self.without_io_uring(io::Error::other(
                "on FUSE the kernel puts the rest of a short write in the wrong place",
            ))?;
        }
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path, timeout: Duration) -> io::Result<Arc<dyn DiskLock>> {
        let lock = RealLock::open(path)?;
        let started = Instant::now();
        while let Err(error) = lock.try_acquire() {
            let left = timeout.saturating_sub(started.elapsed());
            if error.kind() != io::ErrorKind::WouldBlock || left.is_zero() {
                return Err(error);
            }
            thread::sleep(left.min(LOCK_RETRY_INTERVAL));
        }
        Ok(Arc::new(lock))
    }

    fn queue(&self, lock: &Arc<dyn DiskLock>) -> io::Result<Box<dyn WriteQueue>> {
        let io_uring = self.mode.lock().io_uring;
        if io_uring {
            match UringQueue::new(Arc::clone(lock)) {
                Ok(queue) => return Ok(Box::new(queue)),
                // The probe found nothing wrong, but descriptors or memory may be short by now.
                Err(error) => self.without_io_uring(error)?,
            }
        }
        Ok(Box::new(PsyncQueue::new(Arc::clone(lock))))
    }

    fn calls_at_once(&self) -> usize {
        CALLS_AT_ONCE
    }

    fn mode(&self) -> DiskMode {
        self.mode.lock().clone()
    }
}

impl DiskMode {
    fn add_reason(&mut self, reason: String) {
        self.why = Some(match self.why.take() {
            Some(why) => format!("{why}; {reason}"),
            None => reason,
        });
    }
}

fn options(mode: OpenMode) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(mode.write).create_new(mode.create).mode(0o644);
    options
}

/// A file under `flock`.
///
/// The lock belongs to the open file description, not to the process. So it lasts until the last
/// descriptor that refers to it is closed, those that an io_uring holds included: dropping this
/// closes ours and must not unlock.
#[derive(Debug)]
struct RealLock {
    file: File,
}

impl RealLock {
    /// Opens the file, without locking it yet.
    fn open(path: &Path) -> io::Result<RealLock> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        Ok(RealLock { file: options.open(path)? })
    }

    /// Takes the lock, or fails with `WouldBlock` if somebody else has it.
    fn try_acquire(&self) -> io::Result<()> {
        // SAFETY: flock takes no memory; `self.file` keeps the descriptor open.
        match unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl DiskLock for RealLock {
    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }
}
