//! Files past the page cache, and the page cache told what to hold.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use memmap2::MmapMut;

/// Memory that O_DIRECT takes: an anonymous mapping begins on a page.
pub fn page_buffer(bytes: usize) -> io::Result<MmapMut> {
    let mut memory = MmapMut::map_anon(bytes)?;
    // Touched now, so that no page fault is measured.
    memory.fill(0);
    Ok(memory)
}

/// Opens for O_DIRECT; creates the file if it is to be written.
pub fn open_direct(path: &Path, write: bool) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(write).create(write).custom_flags(libc::O_DIRECT);
    options.open(path).with_context(|| format!("O_DIRECT on {}", path.display()))
}

/// A new file of zeros that were written, not only allocated: what is overwritten later has its
/// extents, so a durable write of it changes no metadata.
pub fn zeroed(path: &Path, bytes: u64) -> anyhow::Result<File> {
    let file = open_direct(path, true)?;
    write_zeros(&file, bytes, &|| false)?;
    file.sync_all()?;
    Ok(file)
}

/// Allocates, then writes zeros until `enough` says so.
pub fn write_zeros(file: &File, bytes: u64, enough: &dyn Fn() -> bool) -> anyhow::Result<()> {
    const PIECE: u64 = 1 << 20;
    // SAFETY: a call on a file that is open; no memory is involved.
    let refused = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as i64) };
    ensure!(refused == 0, "fallocate: {}", io::Error::last_os_error());
    let zeros = page_buffer(PIECE.min(bytes) as usize)?;
    let mut offset = 0;
    while offset < bytes && !enough() {
        file.write_all_at(&zeros, offset)?;
        offset += zeros.len() as u64;
    }
    Ok(())
}

/// One durable write, past the page cache, in one system call.
pub fn write_durable(file: &File, page: &[u8], offset: u64) -> anyhow::Result<()> {
    let bytes = libc::iovec { iov_base: page.as_ptr().cast_mut().cast(), iov_len: page.len() };
    // SAFETY: the kernel only reads the page, which outlives the call.
    let wrote =
        unsafe { libc::pwritev2(file.as_raw_fd(), &bytes, 1, offset as i64, libc::RWF_DSYNC) };
    ensure!(wrote == page.len() as isize, "pwritev2: {}", io::Error::last_os_error());
    Ok(())
}

/// Takes files out of the page cache. One that retention has deleted meanwhile is not in it.
pub fn drop_cache(paths: &[PathBuf]) -> anyhow::Result<()> {
    for path in paths {
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        // Dirty pages would stay.
        file.sync_data()?;
        // SAFETY: advice on a file that is open.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
    Ok(())
}

/// Brings files into the page cache.
pub fn warm(paths: &[PathBuf]) -> anyhow::Result<()> {
    let mut sink = vec![0; 1 << 20];
    for path in paths {
        let file = File::open(path)?;
        let mut offset = 0;
        while let read @ 1.. = file.read_at(&mut sink, offset)? {
            offset += read as u64;
        }
    }
    Ok(())
}

/// Bytes that this process has had fetched from block devices so far.
pub fn read_bytes() -> anyhow::Result<u64> {
    let io = fs::read_to_string("/proc/self/io").context("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    Ok(line.context("read_bytes in /proc/self/io")?.trim().parse()?)
}

/// Bytes free on the file system of `dir`.
pub fn free_bytes(dir: &Path) -> anyhow::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: plain bits, for which zeros are a value; `path` ends in a zero and outlives the call.
    let (refused, stat) = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut stat), stat)
    };
    if refused != 0 {
        bail!("statvfs of {}: {}", dir.display(), io::Error::last_os_error());
    }
    Ok(stat.f_bavail * stat.f_frsize)
}
