//! The ring against a real kernel: pipes and limits make it write short.

use std::fs::{self, File};
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, thread};

use super::super::file::RealFile;
use super::super::{AlignedBuf, Backend, Disk, DiskFile, OpenMode, RealDisk, StableBytes};
use super::*;

/// Set in a child process that runs one test alone, under a limit of its own.
const CHILD: &str = "EVENTPLANE_TEST_CHILD";

#[derive(Debug)]
struct NoLock;

impl DiskLock for NoLock {}

fn queue() -> Option<UringQueue> {
    // Not everywhere allowed; then there is nothing to test here.
    probe().is_ok().then(|| UringQueue::new(Arc::new(NoLock)).unwrap())
}

/// Memory that tells when it is freed.
struct Tracked {
    bytes: AlignedBuf,
    freed: Arc<AtomicBool>,
}

// SAFETY: as for the `AlignedBuf` inside, which nobody else reaches.
unsafe impl StableBytes for Tracked {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.freed.store(true, Ordering::Release);
    }
}

fn pattern(len: usize) -> AlignedBuf {
    let mut bytes = AlignedBuf::zeroed(len);
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (i % 251) as u8;
    }
    bytes
}

fn tracked(len: usize) -> (Tracked, Arc<AtomicBool>) {
    let freed = Arc::new(AtomicBool::new(false));
    let tracked = Tracked { bytes: pattern(len), freed: Arc::clone(&freed) };
    (tracked, freed)
}

/// Memory as an arena lends it: it outlives every queue.
struct Leaked(&'static AlignedBuf);

// SAFETY: nobody can change, move or free the bytes behind a `&'static`.
unsafe impl StableBytes for Leaked {
    fn bytes(&self) -> &[u8] {
        self.0
    }
}

/// A file whose writes the kernel cuts short for real: the writing end of a pipe takes 64 KiB, and
/// more only when these are read.
fn pipe() -> (PipeReader, Arc<dyn DiskFile>) {
    let (reader, writer) = io::pipe().unwrap();
    let file = File::from(OwnedFd::from(writer));
    (reader, Arc::new(RealFile::new(file, false)))
}

fn write(file: &Arc<dyn DiskFile>, offset: u64, data: impl StableBytes + 'static) -> Write {
    Write { file: Arc::clone(file), offset, data: Box::new(data), token: offset }
}

/// Runs `test` again in a process of its own; true in that process.
fn in_child(test: &str) -> bool {
    if env::var_os(CHILD).is_some() {
        return true;
    }
    let (_, module) = module_path!().split_once("::").unwrap();
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{test}"), "--nocapture"])
        .env(CHILD, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its child process");
    false
}

/// An io_uring that wrote 100,000 of 308,000 bytes, and said so, was taken for success.
#[test]
fn a_write_cut_by_a_limit_is_not_success() {
    if !in_child("a_write_cut_by_a_limit_is_not_success") {
        return;
    }
    let Some(mut queue) = queue() else { return };
    let dir = tempfile::tempdir_in(".").unwrap();
    let disk = RealDisk::new(Backend::IoUring, false).unwrap();
    let path = dir.path().join("cut");
    let mode = OpenMode { write: true, create: true, direct: false };
    let file = disk.open(&path, mode).unwrap();
    let limit = libc::rlimit { rlim_cur: 100_000, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid rlimit; this process runs nothing but this test.
    let set = unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setrlimit(libc::RLIMIT_FSIZE, &limit)
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());

    queue.submit(write(&file, 0, pattern(308_000))).unwrap();
    let mut done = Vec::new();
    queue.complete(true, &mut done).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 100_000);
    let (_, result) = done.pop().unwrap();
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EFBIG));

    let error = file.write_at(&pattern(308_000), 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
}

#[test]
fn short_writes_are_continued_to_the_end() {
    let Some(mut queue) = queue() else { return };
    let (mut reader, file) = pipe();
    let reading = thread::spawn(move || {
        let mut read = Vec::new();
        reader.read_to_end(&mut read).map(|_| read)
    });
    let (data, freed) = tracked(1_000_000);
    queue.submit(write(&file, 0, data)).unwrap();
    let mut done = Vec::new();
    queue.complete(true, &mut done).unwrap();
    assert!(matches!(done.as_slice(), [(0, Ok(()))]), "{done:?}");
    assert!(freed.load(Ordering::Acquire) && queue.in_flight() == 0);
    drop(file);
    assert_eq!(reading.join().unwrap().unwrap(), *pattern(1_000_000));
}

#[test]
fn what_a_completion_means() {
    let (_reader, file) = pipe();
    let mut it = InFlight { write: write(&file, 0, pattern(8192)), fd: 0, written: 0, retries: 0 };
    for _ in 0..RETRIES_MAX {
        assert!(it.advance(-libc::EAGAIN).is_continue());
    }
    assert!(matches!(it.advance(-libc::EAGAIN), ControlFlow::Break(Err(_))));
    assert!(it.advance(4096).is_continue());
    assert_eq!((it.written, it.retries), (4096, 0));
    assert!(it.advance(-libc::EINTR).is_continue());
    let zero = it.advance(0).break_value().unwrap().unwrap_err();
    assert_eq!(zero.kind(), io::ErrorKind::WriteZero);
    let full = it.advance(-libc::ENOSPC).break_value().unwrap().unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    assert!(matches!(it.advance(4096), ControlFlow::Break(Ok(()))));
}

#[test]
fn a_write_that_fails_leaves_the_others_alone() {
    let Some(mut queue) = queue() else { return };
    let dir = tempfile::tempdir_in(".").unwrap();
    let disk = RealDisk::new(Backend::IoUring, true).unwrap();
    let mode = OpenMode { write: true, create: true, direct: true };
    let file = disk.open(&dir.path().join("good"), mode).unwrap();
    // Every write to this device fails, in the kernel.
    let full = OpenMode { write: true, ..OpenMode::default() };
    let full = disk.open(Path::new("/dev/full"), full).unwrap();
    for i in 0..QUEUE_DEPTH as u64 {
        let to = if i == 3 { &full } else { &file };
        queue.submit(write(to, i * 65536, pattern(65536))).unwrap();
    }
    let mut done = Vec::new();
    while queue.in_flight() > 0 {
        queue.complete(true, &mut done).unwrap();
    }
    assert_eq!(done.len(), QUEUE_DEPTH);
    for (token, result) in done {
        let errno = result.err().and_then(|error| error.raw_os_error());
        assert_eq!(errno, (token == 3 * 65536).then_some(libc::ENOSPC), "{token}");
    }
}

#[test]
fn registered_memory_is_written_like_any_other() {
    let Some(mut queue) = queue() else { return };
    let (mut reader, file) = pipe();
    let arena: &'static AlignedBuf = Box::leak(Box::new(pattern(8192)));
    // SAFETY: leaked memory stays where it is for ever.
    unsafe { queue.register_buffers(arena.as_ptr(), arena.len()) }.unwrap();
    queue.submit(write(&file, 0, Leaked(arena))).unwrap();
    queue.submit(write(&file, 8192, pattern(8192))).unwrap();
    let mut done = Vec::new();
    while queue.in_flight() > 0 {
        queue.complete(true, &mut done).unwrap();
    }
    assert!(done.iter().all(|(_, result)| result.is_ok()), "{done:?}");
    drop(file);
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert_eq!(read, [&arena[..], &arena[..]].concat());
}

#[test]
fn memory_that_cannot_be_registered_is_no_error() {
    let Some(mut queue) = queue() else { return };
    // SAFETY: the kernel refuses the region, so it never uses it.
    unsafe { queue.register_buffers(std::ptr::null(), 2 << 30) }.unwrap();
    assert!(queue.registered.is_empty());
}

#[test]
fn polling_without_waiting_gets_there_too() {
    let Some(mut queue) = queue() else { return };
    let (mut reader, file) = pipe();
    queue.submit(write(&file, 0, pattern(65536))).unwrap();
    queue.submit(write(&file, 65536, pattern(4096))).unwrap();
    let mut done = Vec::new();
    queue.complete(true, &mut done).unwrap();
    queue.complete(false, &mut done).unwrap();
    assert_eq!((done.len(), queue.in_flight()), (1, 1));
    reader.read_exact(&mut [0; 65536]).unwrap();
    while queue.in_flight() > 0 {
        queue.complete(false, &mut done).unwrap();
    }
    assert_eq!(done.len(), 2);
}

#[test]
fn dropping_waits_for_what_is_in_flight() {
    let Some(mut queue) = queue() else { return };
    let (mut reader, file) = pipe();
    let (data, freed) = tracked(300_000);
    queue.submit(write(&file, 0, data)).unwrap();
    let reading = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        assert!(!freed.load(Ordering::Acquire), "freed while the kernel reads it");
        let mut read = Vec::new();
        reader.read_to_end(&mut read).map(|_| read.len())
    });
    drop(file);
    drop(queue);
    assert_eq!(reading.join().unwrap().unwrap(), 300_000);
}

/// A ring obeys only the thread that made it. Elsewhere it cannot be waited for.
#[test]
fn memory_is_leaked_rather_than_freed_under_the_kernel() {
    let Some(mut queue) = queue() else { return };
    if !queue.ring.params().is_setup_single_issuer() {
        return;
    }
    let (_reader, file) = pipe();
    let (data, freed) = tracked(300_000);
    queue.submit(write(&file, 0, data)).unwrap();
    thread::spawn(move || drop(queue)).join().unwrap();
    assert!(!freed.load(Ordering::Acquire));
}

#[test]
fn the_ring_holds_the_lock_and_its_drop_lets_go() {
    if probe().is_err() {
        return;
    }
    let dir = tempfile::tempdir_in(".").unwrap();
    let path = dir.path().join("LOCK");
    let disk = RealDisk::new(Backend::IoUring, false).unwrap();
    let lock = disk.lock(&path, Duration::ZERO).unwrap();
    let ring = build_ring().unwrap();
    ring.submitter().register_files(&[lock.raw_fd().unwrap()]).unwrap();
    drop(lock);
    let held = disk.lock(&path, Duration::ZERO).unwrap_err();
    assert_eq!(held.kind(), io::ErrorKind::WouldBlock);
    drop(ring);
    // The kernel may take a moment to tear down a ring that nobody tidied up.
    drop(disk.lock(&path, Duration::from_secs(5)).unwrap());

    for _ in 0..20 {
        let lock = disk.lock(&path, Duration::ZERO).unwrap();
        let queue = UringQueue::new(lock).unwrap();
        drop(queue);
    }
}

/// The committer spun for ever, and nobody could append any more: the kernel's flag that says that
/// completions are held back stayed set when there were none.
#[test]
fn a_flag_that_sticks_is_believed_once() {
    let (returned, is_back) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let Some(mut queue) = queue() else {
            returned.send(1).unwrap();
            return;
        };
        queue.flag_sticks = true;
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(Backend::Psync, false).unwrap();
        let mode = OpenMode { write: true, create: true, direct: false };
        let file = disk.open(&dir.path().join("file"), mode).unwrap();
        let data = Box::new(tracked(4096).0);
        queue.submit(Write { file, offset: 0, data, token: 7 }).unwrap();
        let mut done = Vec::new();
        queue.complete(true, &mut done).unwrap();
        queue.complete(false, &mut done).unwrap();
        returned.send(done.len()).unwrap();
    });
    let done = is_back.recv_timeout(Duration::from_secs(10));
    assert_eq!(done, Ok(1), "it does not come back");
}
