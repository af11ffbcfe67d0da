//! Files and queues of the simulated disk.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::content::What;
use super::{Plant, Point, SimDisk};
use crate::disk::file::{is_aligned, read_full, retry, wrote_nothing};
use crate::disk::{Completion, DiskFile, DiskLock, Op, QUEUE_DEPTH, Write, WriteQueue};

#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    inode: u64,
    direct: bool,
}

/// What becomes of a write once it is complete.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Written,
    Durable,
}

impl SimFile {
    pub(super) fn new(disk: SimDisk, path: PathBuf, inode: u64, direct: bool) -> SimFile {
        SimFile { disk, path, inode, direct }
    }

    fn point(&self, call: &str, offset: u64, bytes: u64) {
        self.disk.point(Point { call, path: &self.path, offset, bytes });
    }

    fn check_alignment(&self, bytes: &[u8], offset: u64) {
        assert!(!self.direct || is_aligned(bytes, offset), "misaligned direct I/O at {offset}");
    }

    /// One write with all its attempts: in flight, then complete, or failed half-way.
    fn write(&self, op: Op, mut bytes: &[u8], mut offset: u64, then: Then) -> io::Result<()> {
        self.check_alignment(bytes, offset);
        while !bytes.is_empty() {
            let id = self.disk.begin_write(self.inode, bytes, offset)?;
            self.point("write", offset, bytes.len() as u64);
            let attempt = retry(|| self.disk.shared.faults.attempt(op, &[&self.path], bytes.len()));
            let mut world = self.disk.shared.world.lock();
            let written = match attempt {
                Ok(written) => written,
                Err(error) => {
                    let mut rng = world.rng.fork();
                    world.inode(self.inode).fail(id, &mut rng);
                    return Err(error);
                }
            };
            if written == 0 {
                return Err(wrote_nothing());
            }
            let inode = world.inode(self.inode);
            inode.shorten(id, written);
            match then {
                Then::Written => inode.complete(id),
                Then::Durable => inode.complete_durable(id),
            }
            drop(world);
            if self.disk.has(Plant::TakesShortForWhole) {
                return Ok(());
            }
            bytes = bytes.split_at(written).1;
            offset += written as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let attempt = retry(|| self.disk.shared.faults.attempt(Op::Sync, &[&self.path], 0));
        self.point("sync", 0, 0);
        let mut world = self.disk.shared.world.lock();
        match attempt {
            Ok(_) if self.disk.has(Plant::SyncsNothing) => Ok(()),
            Ok(_) => {
                world.inode(self.inode).sync();
                Ok(())
            }
            Err(error) => {
                // What was written past the cache is in the device, which a later flush reaches.
                if !self.direct {
                    world.inode(self.inode).fail_sync();
                }
                Err(error)
            }
        }
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.quiet(Op::Len, &[&self.path])?;
        Ok(self.disk.shared.world.lock().inode(self.inode).seen.len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.check_alignment(buf, offset);
        read_full(buf, offset, |rest, at| {
            let bytes = self.disk.shared.faults.attempt(Op::Read, &[&self.path], rest.len())?;
            let mut world = self.disk.shared.world.lock();
            Ok(world.inode(self.inode).seen.read(rest.split_at_mut(bytes).0, at))
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write(Op::Write, bytes, offset, Then::Written)
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let planted = self.disk.has(Plant::DurableWriteIsNot);
        let then = if planted { Then::Written } else { Then::Durable };
        self.write(Op::DurableWrite, bytes, offset, then)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        retry(|| self.disk.shared.faults.attempt(Op::Allocate, &[&self.path], 0))?;
        let mut world = self.disk.shared.world.lock();
        let grown = len.saturating_sub(world.inode(self.inode).seen.len);
        world.admit(grown)?;
        let id = world.begin(self.inode, What::Grow { len });
        drop(world);
        self.point("allocate", 0, len);
        self.disk.shared.world.lock().inode(self.inode).complete(id);
        Ok(())
    }

    fn set_read_only(&self) -> io::Result<()> {
        self.disk.quiet(Op::Protect, &[&self.path])
    }

    fn drop_cache(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.disk.quiet(Op::DropCache, &[&self.path])?;
        self.disk.shared.world.lock().inode(self.inode).drop_cache();
        Ok(())
    }

    fn map(&self) -> io::Result<Option<memmap2::Mmap>> {
        Ok(None)
    }

    fn is_direct(&self) -> bool {
        self.direct
    }

    /// The number of the inode: what descriptors are in the simulated kernel.
    fn raw_fd(&self) -> Option<RawFd> {
        RawFd::try_from(self.inode).ok()
    }
}

struct Flying {
    write: Write,
    inode: u64,
    id: u64,
    /// What the memory held when the write was submitted.
    submitted: Vec<u8>,
}

/// Writes that complete in any order.
pub(super) struct SimQueue {
    disk: SimDisk,
    flying: Vec<Flying>,
    /// Only held, as every queue does.
    _lock: Arc<dyn DiskLock>,
}

impl SimQueue {
    pub(super) fn new(disk: SimDisk, lock: Arc<dyn DiskLock>) -> SimQueue {
        SimQueue { disk, flying: Vec::with_capacity(QUEUE_DEPTH), _lock: lock }
    }

    /// One of them is over: written, or failed.
    fn land(&mut self) -> Completion {
        let mut world = self.disk.shared.world.lock();
        let chosen = world.rng.usize(0..self.flying.len());
        drop(world);
        let flying = self.flying.swap_remove(chosen);
        let Flying { write, inode, id, submitted } = flying;
        assert!(write.data.bytes() == submitted, "the memory of a write in flight has changed");
        if self.disk.has(Plant::CompletesEarly) {
            return (write.token, Ok(()));
        }
        // As the real queue does, short writes are gone on with: the write is one for the log.
        let mut left = submitted.len();
        let outcome = loop {
            let attempt = retry(|| self.disk.shared.faults.attempt(Op::Write, &[], left));
            match attempt {
                Ok(0) => break Err(wrote_nothing()),
                Ok(written) if written == left => break Ok(()),
                Ok(written) if self.disk.has(Plant::TakesShortForWhole) => {
                    let whole = submitted.len() - left + written;
                    self.disk.shared.world.lock().inode(inode).shorten(id, whole);
                    break Ok(());
                }
                Ok(written) => left -= written,
                Err(error) => break Err(error),
            }
        };
        let mut world = self.disk.shared.world.lock();
        match &outcome {
            Ok(()) => world.inode(inode).complete(id),
            Err(_) => {
                let mut rng = world.rng.fork();
                world.inode(inode).fail(id, &mut rng);
            }
        }
        (write.token, outcome)
    }
}

impl WriteQueue for SimQueue {
    fn depth(&self) -> usize {
        QUEUE_DEPTH
    }

    fn in_flight(&self) -> usize {
        self.flying.len()
    }

    fn submit(&mut self, write: Write) -> io::Result<()> {
        assert!(self.in_flight() < self.depth(), "submitted to a full queue");
        let bytes = write.data.bytes();
        assert!(is_aligned(bytes, write.offset), "misaligned direct I/O at {}", write.offset);
        let inode = write.file.raw_fd().map_or(0, |fd| fd as u64);
        let submitted = bytes.to_vec();
        let id = self.disk.begin_write(inode, &submitted, write.offset)?;
        let path = PathBuf::from(format!("#{inode}"));
        let (offset, bytes) = (write.offset, submitted.len() as u64);
        self.disk.point(Point { call: "submit", path: &path, offset, bytes });
        self.flying.push(Flying { write, inode, id, submitted });
        Ok(())
    }

    fn complete(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()> {
        if self.flying.is_empty() {
            return Ok(());
        }
        let all = self.flying.len();
        let least = usize::from(wait);
        let count = self.disk.shared.world.lock().rng.usize(least..=all);
        for _ in 0..count {
            done.push(self.land());
        }
        Ok(())
    }
}

impl Drop for SimQueue {
    fn drop(&mut self) {
        while !self.flying.is_empty() {
            let _outcome = self.land();
        }
    }
}
