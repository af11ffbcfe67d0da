//! What every backend must do, on a real file system and on tmpfs; and what a refusing kernel
//! leads to, by a seccomp filter on the testing thread.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;

const WRITE: OpenMode = OpenMode { write: true, create: false, direct: false };
const CREATE: OpenMode = OpenMode { create: true, ..WRITE };
const CREATE_DIRECT: OpenMode = OpenMode { direct: true, ..CREATE };
const READ: OpenMode = OpenMode { write: false, ..WRITE };

fn dir() -> TempDir {
    tempfile::tempdir_in(".").unwrap()
}

/// Every backend that this machine allows, direct on a real file system and buffered on tmpfs.
fn disks() -> Vec<(TempDir, RealDisk)> {
    let mut disks = Vec::new();
    for backend in [Backend::Auto, Backend::IoUring, Backend::Psync] {
        for (parent, direct) in [(".", true), ("/dev/shm", false)] {
            match RealDisk::new(backend, direct) {
                Ok(disk) => disks.push((tempfile::tempdir_in(parent).unwrap(), disk)),
                Err(error) => assert_eq!(backend, Backend::IoUring, "{error}"),
            }
        }
    }
    disks
}

fn buffer(len: usize, seed: u64) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    for (i, word) in buf.chunks_exact_mut(8).enumerate() {
        let value = (i as u64 + 1).wrapping_mul(seed.wrapping_mul(2) + 0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
    buf
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// Runs `test` on a thread for which the kernel fails `syscall` with `errno`; if `flags` is not 0,
/// only when one of these bits is set in its third argument.
fn refusing<T: Send>(
    syscall: libc::c_long,
    flags: libc::c_int,
    errno: libc::c_int,
    test: impl FnOnce() -> T + Send,
) -> T {
    let load = |offset| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    let ret = |value| op(libc::BPF_RET | libc::BPF_K, value, 0, 0);
    let is = |value, jf| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, jf);
    let has = |bits, jf| op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, bits, 0, jf);
    let refuse = ret(libc::SECCOMP_RET_ERRNO | errno as u32);
    let allow = ret(libc::SECCOMP_RET_ALLOW);
    // In `seccomp_data` the number is at 0, the third argument at 32.
    let mut program = match flags {
        0 => vec![load(0), is(syscall as u32, 1), refuse, allow],
        _ => vec![load(0), is(syscall as u32, 3), load(32), has(flags as u32, 1), refuse, allow],
    };
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let filter =
                libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
            let (zero, one): (libc::c_ulong, libc::c_ulong) = (0, 1);
            let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
            // SAFETY: `filter` describes `program`, which outlives the calls; the kernel copies
            // it. It binds this thread only, which ends with the test.
            let installed = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) == 0
                    && libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) == 0
            };
            assert!(installed, "{}", io::Error::last_os_error());
            test()
        });
        thread.join().unwrap()
    })
}

fn op(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

#[test]
fn a_pipeline_of_writes_reads_back_after_reopening() {
    for (dir, disk) in disks() {
        let path = dir.path().join("log");
        let lock = disk.lock(&dir.path().join("LOCK"), Duration::ZERO).unwrap();
        let file = disk.open(&path, CREATE_DIRECT).unwrap();
        let mut queue = disk.queue(&lock).unwrap();
        let mut done = Vec::new();
        let mut offset = 0;
        let mut sizes = Vec::new();
        for i in 0..100u64 {
            let len = 4096 * (1 + (i * i * 31 % 64) as usize);
            while queue.in_flight() == queue.depth() {
                queue.complete(true, &mut done).unwrap();
            }
            let write =
                Write { file: Arc::clone(&file), offset, data: Box::new(buffer(len, i)), token: i };
            queue.submit(write).unwrap();
            sizes.push(len);
            offset += len as u64;
        }
        while queue.in_flight() > 0 {
            queue.complete(true, &mut done).unwrap();
        }
        file.sync_data().unwrap();
        assert!(done.iter().all(|(_, result)| result.is_ok()), "{done:?}");
        let mut tokens: Vec<u64> = done.iter().map(|&(token, _)| token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..100).collect::<Vec<_>>());
        drop((queue, file));

        for direct in [false, true] {
            let file = disk.open(&path, OpenMode { direct, ..READ }).unwrap();
            assert_eq!(file.len().unwrap(), offset);
            let mut at = 0;
            for (i, &len) in sizes.iter().enumerate() {
                let mut read = AlignedBuf::zeroed(len);
                assert_eq!(file.read_at(&mut read, at).unwrap(), len);
                assert!(*read == *buffer(len, i as u64), "write {i} of {disk:?}");
                at += len as u64;
            }
        }
    }
}

#[test]
fn dropping_a_queue_finishes_its_writes() {
    for (dir, disk) in disks() {
        let lock = disk.lock(&dir.path().join("LOCK"), Duration::ZERO).unwrap();
        let file = disk.open(&dir.path().join("log"), CREATE_DIRECT).unwrap();
        let mut queue = disk.queue(&lock).unwrap();
        for i in 0..queue.depth() as u64 {
            let data = Box::new(buffer(262_144, i));
            let file = Arc::clone(&file);
            queue.submit(Write { file, offset: i * 262_144, data, token: i }).unwrap();
        }
        let depth = queue.depth() as u64;
        drop(queue);
        for i in 0..depth {
            let mut read = AlignedBuf::zeroed(262_144);
            assert_eq!(file.read_at(&mut read, i * 262_144).unwrap(), 262_144);
            assert!(*read == *buffer(262_144, i), "write {i} of {disk:?}");
        }
    }
}

#[test]
fn durable_writes_allocation_mapping_and_modes() {
    for (dir, disk) in disks() {
        let path = dir.path().join("a/b/segment");
        disk.create_dir(path.parent().unwrap()).unwrap();
        disk.create_dir(path.parent().unwrap()).unwrap();
        let file = disk.open(&path, CREATE_DIRECT).unwrap();
        assert_eq!(errno(disk.open(&path, CREATE_DIRECT)), Some(libc::EEXIST), "created twice");
        assert_eq!(file.is_direct(), disk.mode().direct);
        file.allocate(65536).unwrap();
        file.allocate(4096).unwrap();
        assert_eq!(file.len().unwrap(), 65536, "allocate never shortens");
        file.write_durable_at(&buffer(8192, 1), 4096).unwrap();
        file.sync_all().unwrap();
        let map = file.map().unwrap().unwrap();
        assert!(map[..4096].iter().all(|&byte| byte == 0));
        assert_eq!(map[4096..12288], *buffer(8192, 1));
        assert_eq!(map.len(), 65536);
        drop(map);
        file.drop_cache(0, 65536).unwrap();
        file.set_read_only().unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
    }
}

#[test]
fn a_direct_read_of_an_odd_length_ends_at_the_end() {
    for (dir, disk) in disks() {
        let path = dir.path().join("odd");
        fs::write(&path, vec![7; 5000]).unwrap();
        let file = disk.open(&path, OpenMode { direct: true, ..READ }).unwrap();
        let mut read = AlignedBuf::zeroed(12288);
        assert_eq!(file.read_at(&mut read, 0).unwrap(), 5000);
        assert!(read[..5000].iter().all(|&byte| byte == 7));
        assert_eq!(file.read_at(&mut read, 8192).unwrap(), 0);
    }
}

#[test]
fn names_are_listed_renamed_and_removed() {
    let (dir, disk) = (dir(), RealDisk::new(Backend::Psync, false).unwrap());
    let at = |name: &str| dir.path().join(name);
    disk.create_dir(&at("c")).unwrap();
    for (name, len) in [("b", 3), ("a", 5)] {
        let file = disk.open(&at(name), CREATE).unwrap();
        file.write_at(&vec![1; len], 0).unwrap();
    }
    let list = || disk.list(dir.path()).unwrap();
    assert_eq!(list(), ["a", "b", "c"]);
    disk.rename(&at("a"), &at("b")).unwrap();
    disk.sync_dir(dir.path()).unwrap();
    assert_eq!(list(), ["b", "c"]);
    assert_eq!(disk.open(&at("b"), READ).unwrap().len().unwrap(), 5);
    disk.remove(&at("b")).unwrap();
    assert_eq!(list(), ["c"]);
    assert_eq!(errno(disk.open(&at("b"), READ)), Some(libc::ENOENT));
    assert_eq!(errno(disk.list(&at("d"))), Some(libc::ENOENT));
}

#[test]
fn a_lock_keeps_others_out_until_it_is_dropped() {
    for (dir, disk) in disks() {
        let path = dir.path().join("LOCK");
        let lock = disk.lock(&path, Duration::ZERO).unwrap();
        let queue = disk.queue(&lock).unwrap();
        drop(lock);
        let started = Instant::now();
        let timeout = Duration::from_millis(30);
        let error = disk.lock(&path, timeout).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(started.elapsed() >= timeout, "the queue holds it as well");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| disk.lock(&path, Duration::from_secs(10)));
            drop(queue);
            waiting.join().unwrap().unwrap();
        });
        disk.lock(&path, Duration::ZERO).unwrap();
    }
}

#[test]
fn where_io_uring_is_refused_pwrite_takes_over() {
    let dir = dir();
    refusing(libc::SYS_io_uring_setup, 0, libc::EPERM, || {
        assert_eq!(errno(RealDisk::new(Backend::IoUring, false)), Some(libc::EPERM));
        let disk = RealDisk::new(Backend::Auto, false).unwrap();
        let mode = disk.mode();
        assert!(!mode.io_uring);
        assert!(mode.why.unwrap().starts_with("io_uring: Operation not permitted"));
        let lock = disk.lock(&dir.path().join("LOCK"), Duration::ZERO).unwrap();
        disk.queue(&lock).unwrap();
    });
}

#[test]
fn io_uring_may_be_refused_as_late_as_the_queue() {
    let (dir, disk) = (dir(), RealDisk::new(Backend::Auto, false).unwrap());
    let lock = disk.lock(&dir.path().join("LOCK"), Duration::ZERO).unwrap();
    refusing(libc::SYS_io_uring_register, 0, libc::EPERM, || {
        disk.queue(&lock).unwrap();
    });
    assert!(!disk.mode().io_uring && disk.mode().why.is_some());
}

#[test]
fn where_o_direct_is_refused_files_are_buffered() {
    let (dir, disk) = (dir(), RealDisk::new(Backend::Psync, true).unwrap());
    refusing(libc::SYS_openat, libc::O_DIRECT, libc::EINVAL, || {
        for name in ["a", "b"] {
            let file = disk.open(&dir.path().join(name), CREATE_DIRECT).unwrap();
            assert!(!file.is_direct());
            file.write_durable_at(b"unaligned", 1).unwrap();
        }
    });
    let mode = disk.mode();
    assert!(!mode.direct);
    assert_eq!(mode.why.unwrap(), "O_DIRECT: Invalid argument (os error 22)");
}

#[test]
fn where_rwf_dsync_is_refused_a_sync_follows_the_write() {
    for refusal in [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS] {
        let (dir, disk) = (dir(), RealDisk::new(Backend::Psync, false).unwrap());
        let file = disk.open(&dir.path().join("log"), CREATE).unwrap();
        refusing(libc::SYS_pwritev2, 0, refusal, || {
            file.write_durable_at(b"one", 0).unwrap();
            file.write_durable_at(b"two", 3).unwrap();
            // Remembered: from now on only the sync can fail.
            let fails =
                refusing(libc::SYS_fdatasync, 0, libc::EIO, || file.write_durable_at(b"six", 6));
            assert_eq!(errno(fails), Some(libc::EIO));
        });
        let mut read = [0; 9];
        assert_eq!(file.read_at(&mut read, 0).unwrap(), 9);
        assert_eq!(&read, b"onetwosix");
    }
}

#[test]
fn where_fallocate_is_refused_the_length_is_set() {
    let (dir, disk) = (dir(), RealDisk::new(Backend::Psync, false).unwrap());
    let file = disk.open(&dir.path().join("log"), CREATE).unwrap();
    refusing(libc::SYS_fallocate, 0, libc::EOPNOTSUPP, || {
        file.allocate(8192).unwrap();
        file.allocate(4096).unwrap();
    });
    assert_eq!(file.len().unwrap(), 8192);
    let full = refusing(libc::SYS_fallocate, 0, libc::ENOSPC, || file.allocate(9000));
    assert_eq!(errno(full), Some(libc::ENOSPC));
}

/// A faulty disk over the real one, with its plan and one file.
fn faulty(dir: &Path) -> (FaultyDisk, Faults, Arc<dyn DiskFile>) {
    let faults = Faults::new();
    let real = RealDisk::new(Backend::Auto, false).unwrap();
    let disk = FaultyDisk::new(Arc::new(real), faults.clone());
    let file = disk.open(&dir.join("log"), CREATE).unwrap();
    (disk, faults, file)
}

#[test]
fn injected_short_and_interrupted_calls_are_finished() {
    let dir = dir();
    let (_, faults, file) = faulty(dir.path());
    for op in [Op::Write, Op::DurableWrite, Op::Read] {
        faults.inject(Fault::short(op, 4096));
        faults.inject(Fault::errno(op, libc::EINTR).nth(2));
    }
    faults.inject(Fault::errno(Op::Sync, libc::EINTR));
    file.write_at(&buffer(16384, 1), 0).unwrap();
    file.write_durable_at(&buffer(16384, 2), 16384).unwrap();
    let mut read = AlignedBuf::zeroed(32768);
    assert_eq!(file.read_at(&mut read, 0).unwrap(), 32768);
    assert!(read[..16384] == *buffer(16384, 1) && read[16384..] == *buffer(16384, 2));
    file.sync_data().unwrap();
    for (op, calls) in [(Op::Write, 3), (Op::DurableWrite, 3), (Op::Read, 3), (Op::Sync, 2)] {
        assert_eq!(faults.calls(op), calls, "{op:?}");
    }
}

#[test]
fn an_injected_write_failure_hits_its_own_completion_only() {
    for (dir, real) in disks() {
        let faults = Faults::new();
        let disk = FaultyDisk::new(Arc::new(real), faults.clone());
        let lock = disk.lock(&dir.path().join("LOCK"), Duration::ZERO).unwrap();
        let file = disk.open(&dir.path().join("log"), CREATE_DIRECT).unwrap();
        faults.inject(Fault::errno(Op::Write, libc::ENOSPC).nth(3));
        let mut queue = disk.queue(&lock).unwrap();
        for i in 0..5 {
            let data = Box::new(buffer(4096, i));
            let (file, offset) = (Arc::clone(&file), i * 4096);
            queue.submit(Write { file, offset, data, token: i }).unwrap();
        }
        let mut done = Vec::new();
        queue.complete(true, &mut done).unwrap();
        let results: Vec<_> = done.into_iter().map(|(t, result)| (t, errno(result))).collect();
        let full = Some(libc::ENOSPC);
        assert_eq!(results, [(0, None), (1, None), (2, full), (3, None), (4, None)]);
    }
}

#[test]
fn faults_strike_where_and_as_often_as_planned() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    let (disk, faults, file) = faulty(dir.path());
    faults.inject(Fault::errno(Op::Create, libc::ENOSPC).on("second").nth(2).forever());
    for (name, expected) in [
        ("first", None),
        ("second.1", None),
        ("second.2", Some(libc::ENOSPC)),
        ("third", None),
        ("second.3", Some(libc::ENOSPC)),
    ] {
        assert_eq!(errno(disk.open(&at(name), CREATE)), expected, "{name}");
        assert_eq!(at(name).exists(), expected.is_none());
    }
    faults.clear();
    disk.open(&at("second.3"), CREATE).unwrap();

    faults.inject(Fault::errno(Op::Rename, libc::EIO).on("to"));
    faults.inject(Fault::errno(Op::Remove, libc::EIO));
    faults.inject(Fault::errno(Op::SyncDir, libc::EIO));
    faults.inject(Fault::errno(Op::Allocate, libc::ENOSPC));
    faults.inject(Fault::errno(Op::Sync, libc::EIO));
    assert_eq!(errno(disk.rename(&at("first"), &at("to"))), Some(libc::EIO));
    assert_eq!(errno(disk.remove(&at("first"))), Some(libc::EIO));
    assert_eq!(errno(disk.sync_dir(dir.path())), Some(libc::EIO));
    assert_eq!(errno(file.allocate(4096)), Some(libc::ENOSPC));
    assert_eq!(errno(file.sync_all()), Some(libc::EIO));
    file.sync_all().unwrap();
    disk.rename(&at("first"), &at("to")).unwrap();
    disk.remove(&at("to")).unwrap();
}

#[test]
fn held_calls_wait_until_they_are_let_go() {
    let dir = dir();
    let (_, faults, file) = faulty(dir.path());
    let hold = faults.hold(Op::Sync);
    thread::scope(|scope| {
        let syncing = scope.spawn(|| file.sync_data());
        assert!(hold.wait_for(1));
        file.write_at(b"others go on", 0).unwrap();
        assert!(!syncing.is_finished());
        drop(hold);
        syncing.join().unwrap().unwrap();
    });
}

/// Small reads of many files were made one after another, each as long as the disk's answer.
#[test]
fn calls_about_many_files_are_made_at_once_and_answered_in_order() {
    let disk = RealDisk::new(Backend::Psync, false).unwrap();
    let items: Vec<usize> = (0..100).collect();
    let inside = parking_lot::Mutex::new(0);
    let entered = parking_lot::Condvar::new();
    let call = |item: &usize| {
        let mut inside = inside.lock();
        *inside += 1;
        entered.notify_all();
        // None of the first gets on before there are two of them.
        let long = Duration::from_secs(30);
        let late = entered.wait_while_for(&mut inside, |n| *n < 2, long).timed_out();
        (item * 2, late)
    };
    let answers = at_once(&disk, &items, call);
    assert_eq!(answers, items.iter().map(|item| (item * 2, false)).collect::<Vec<_>>());
    assert!(at_once(&disk, &[], call).is_empty());
}

/// Where faults are counted, or a seed decides, the order of calls is always the same.
#[test]
fn a_disk_of_tests_is_called_by_one_thread_in_order() {
    let real: Arc<dyn Disk> = Arc::new(RealDisk::new(Backend::Psync, false).unwrap());
    let disk = FaultyDisk::new(real, Faults::new());
    let items: Vec<usize> = (0..100).collect();
    let calls = parking_lot::Mutex::new(Vec::new());
    at_once(&disk, &items, |item| calls.lock().push((*item, thread::current().id())));
    let here = thread::current().id();
    assert_eq!(calls.into_inner(), items.iter().map(|item| (*item, here)).collect::<Vec<_>>());
}

#[test]
#[should_panic = "item 7"]
fn a_panic_in_one_of_many_calls_is_not_lost() {
    let disk = RealDisk::new(Backend::Psync, false).unwrap();
    let items: Vec<usize> = (0..100).collect();
    at_once(&disk, &items, |item| assert!(*item != 7, "item 7"));
}
