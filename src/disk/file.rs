//! A real file, and the loops that turn single attempts of a system call into whole reads and
//! writes. The loops are free functions over an attempt, so that a fault can be injected *below*
//! them and finds the same code above it as a fault of the kernel.

use std::fs::{File, Permissions};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{DIRECT_ALIGN, DiskFile, RETRIES_MAX};

/// A file of the operating system.
#[derive(Debug)]
pub(super) struct RealFile {
    file: File,
    direct: bool,
    /// Set once by whichever thread finds that this file has no RWF_DSYNC, read by all. Relaxed:
    /// who does not see it yet only finds out once more.
    dsync_refused: AtomicBool,
}

impl RealFile {
    /// `direct` says whether `file` was opened with O_DIRECT.
    pub(super) fn new(file: File, direct: bool) -> RealFile {
        RealFile { file, direct, dsync_refused: AtomicBool::new(false) }
    }

    /// Whether this is a file on FUSE, where `io_uring` does not continue a short write where it
    /// ended.
    pub(super) fn loses_its_place(&self) -> bool {
        // SAFETY: a `statfs` is numbers, for which zeros are values.
        let mut found: libc::statfs = unsafe { mem::zeroed() };
        // SAFETY: the kernel fills `found` and nothing else; `self.file` keeps the descriptor open.
        let known = unsafe { libc::fstatfs(self.file.as_raw_fd(), &mut found) } == 0;
        known && found.f_type == libc::FUSE_SUPER_MAGIC
    }

    /// Misaligned direct I/O is a bug of the caller, which some file systems would forgive and
    /// others would report as EINVAL, as they do for much else.
    fn check_alignment(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !self.direct || is_aligned(bytes, offset) {
            return Ok(());
        }
        debug_assert!(false, "misaligned direct I/O: {} bytes at {offset}", bytes.len());
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "direct I/O needs memory, offset and length in multiples of 4096",
        ))
    }

    /// One attempt at a durable write: pwritev2 with RWF_DSYNC.
    fn write_dsync(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: `part` describes `bytes`, which the caller lends us until the call is over and
        // which the kernel only reads; `self.file` keeps the descriptor open.
        let written =
            unsafe { libc::pwritev2(self.file.as_raw_fd(), &part, 1, offset, libc::RWF_DSYNC) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// What `write_dsync` does in one call, in two.
    fn write_then_sync(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(bytes, offset)?;
        self.sync_data()
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.check_alignment(buf, offset)?;
        read_full(buf, offset, |rest, at| {
            // A direct read stops between two multiples only where the file ends, and another
            // attempt from there is misaligned: some file systems fail it, whatever the length.
            let at_end = self.direct && !at.is_multiple_of(DIRECT_ALIGN as u64);
            if at_end { Ok(0) } else { self.file.read_at(rest, at) }
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_alignment(bytes, offset)?;
        if !self.direct {
            // Direct ones go to where `allocate` has been.
            check_size_limit(offset + bytes.len() as u64)?;
        }
        write_all(bytes, offset, |rest, at| self.file.write_at(rest, at))
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_alignment(bytes, offset)?;
        if self.dsync_refused.load(Ordering::Relaxed) {
            return self.write_then_sync(bytes, offset);
        }
        match write_all(bytes, offset, |rest, at| self.write_dsync(rest, at)) {
            Err(error) if is_refusal(&error) => {
                // EINVAL may be about something else; then the plain write fails as well, and
                // nothing is remembered.
                self.write_then_sync(bytes, offset)?;
                if !self.dsync_refused.swap(true, Ordering::Relaxed) {
                    tracing::debug!(%error, "no RWF_DSYNC on this file: pwrite and fdatasync");
                }
                Ok(())
            }
            result => result,
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let end = file_offset(len)?;
        check_size_limit(len)?;
        let allocated = retry(|| {
            // SAFETY: fallocate takes no memory; `self.file` keeps the descriptor open.
            match unsafe { libc::fallocate(self.file.as_raw_fd(), 0, 0, end) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
        match allocated {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => {
                // Like fallocate, never shorten.
                if self.len()? < len { self.file.set_len(len) } else { Ok(()) }
            }
            result => result,
        }
    }

    fn set_read_only(&self) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(0o444))
    }

    fn drop_cache(&self, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (file_offset(offset)?, file_offset(len)?);
        let fd = self.file.as_raw_fd();
        // SAFETY: posix_fadvise takes no memory; `self.file` keeps the descriptor open.
        match unsafe { libc::posix_fadvise(fd, offset, len, libc::POSIX_FADV_DONTNEED) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn map(&self) -> io::Result<Option<memmap2::Mmap>> {
        // SAFETY: nobody changes or truncates the file while it is mapped. The log upholds that:
        // it maps sealed segments only, which are read-only and never written again, in a
        // directory whose lock it holds.
        match unsafe { memmap2::Mmap::map(&self.file) } {
            // Some file systems have no shared mappings.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            mapped => mapped.map(Some),
        }
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }
}

/// An error if this process may not write files of `len` bytes. The kernel would say so as well, by
/// SIGXFSZ, which kills a process that does not ignore it; a library has no business doing that.
pub(super) fn check_size_limit(len: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the kernel fills `limit`, and nothing else.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } == 0;
    if known && len > limit.rlim_cur {
        let what = format!(
            "a file of {len} bytes is beyond the limit of this process, {} bytes \
             (RLIMIT_FSIZE, `ulimit -f`)",
            limit.rlim_cur
        );
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(())
}

/// Whether O_DIRECT accepts these bytes at this offset.
pub(super) fn is_aligned(bytes: &[u8], offset: u64) -> bool {
    bytes.as_ptr().addr().is_multiple_of(DIRECT_ALIGN)
        && bytes.len().is_multiple_of(DIRECT_ALIGN)
        && offset.is_multiple_of(DIRECT_ALIGN as u64)
}

/// Writes all of `bytes`, in as many attempts as it takes. A short write is the kernel's way to
/// say that something is in the way; the attempt at the rest learns what.
pub(super) fn write_all(
    mut bytes: &[u8],
    mut offset: u64,
    mut attempt: impl FnMut(&[u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = retry(|| attempt(bytes, offset))?;
        if written == 0 {
            return Err(wrote_nothing());
        }
        bytes = bytes.split_at(written).1;
        offset += written as u64;
    }
    Ok(())
}

/// Reads until `buf` is full or an attempt finds the end of the file.
pub(super) fn read_full(
    buf: &mut [u8],
    offset: u64,
    mut attempt: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        let rest = buf.split_at_mut(filled).1;
        match retry(|| attempt(rest, offset + filled as u64))? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Repeats a call that a signal interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..RETRIES_MAX {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    call()
}

/// The error for a write that succeeds without writing anything, which no retry would mend.
pub(super) fn wrote_nothing() -> io::Error {
    io::Error::new(io::ErrorKind::WriteZero, "the disk accepted none of the bytes")
}

/// Whether the kernel, the file system or the C library may mean the flag RWF_DSYNC by this.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS))
}

/// An offset or length as the system calls take it.
fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

#[cfg(test)]
mod tests {
    use super::super::AlignedBuf;
    use super::*;

    /// Attempts that take at most 3 bytes, every second of them interrupted.
    fn stingy(log: &mut Vec<u8>) -> impl FnMut(&[u8], u64) -> io::Result<usize> {
        let mut calls = 0;
        move |bytes, offset| {
            calls += 1;
            if calls % 2 == 0 {
                return Err(io::Error::from_raw_os_error(libc::EINTR));
            }
            assert_eq!(offset, 100 + log.len() as u64);
            let part = &bytes[..bytes.len().min(3)];
            log.extend_from_slice(part);
            Ok(part.len())
        }
    }

    #[test]
    fn a_short_write_is_finished_and_an_interrupted_one_repeated() {
        let mut written = Vec::new();
        write_all(b"0123456789", 100, stingy(&mut written)).unwrap();
        assert_eq!(written, b"0123456789");
    }

    #[test]
    fn a_write_of_nothing_is_an_error_and_nothing_to_write_is_none() {
        let error = write_all(b"x", 0, |_, _| Ok(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
        write_all(b"", 0, |_, _| panic!("no attempt")).unwrap();
    }

    #[test]
    fn interruptions_without_end_are_given_up() {
        let mut calls = 0;
        let error = write_all(b"x", 0, |_, _| {
            calls += 1;
            Err(io::Error::from_raw_os_error(libc::EINTR))
        });
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EINTR));
        assert_eq!(calls, RETRIES_MAX + 1);
    }

    #[test]
    fn a_read_goes_on_until_full_or_at_the_end() {
        let source = b"0123456789";
        let attempt = |buf: &mut [u8], offset: u64| {
            let rest = &source[source.len().min(offset as usize)..];
            let n = rest.len().min(buf.len()).min(4);
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        };
        let mut buf = [0; 8];
        assert_eq!(read_full(&mut buf, 1, attempt).unwrap(), 8);
        assert_eq!(&buf, b"12345678");
        assert_eq!(read_full(&mut buf, 5, attempt).unwrap(), 5);
        assert_eq!(&buf[..5], b"56789");
        assert_eq!(read_full(&mut buf, 99, attempt).unwrap(), 0);
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic = "misaligned direct I/O")]
    fn misaligned_direct_io_is_refused() {
        let file = RealFile::new(tempfile::tempfile_in(".").unwrap(), true);
        let aligned = AlignedBuf::zeroed(8192);
        file.write_at(&aligned, 4096).unwrap();
        let bad = [(0..8192, 512), (0..512, 0), (512..4608, 0)];
        for (range, offset) in bad {
            let error = file.write_at(&aligned[range], offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
