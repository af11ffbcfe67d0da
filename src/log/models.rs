//! Models of committing: who writes to the disk, how the role is handed over, who is waited for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::catalogue::OpenSegment;
use super::committer::Committer;
use super::{Catalogue, Log, Segments, Writer};
use crate::disk::{Completion, Disk, DiskFile, DiskLock, DiskMode, OpenMode, Write, WriteQueue};
use crate::error::{Error, ErrorKind};
use crate::format::LogId;
use crate::lsn::{Geometry, Lsn};
use crate::models::Model;
use crate::options::{Durability, Options};
use crate::ring::Ring;
use crate::sync::{Clock, atomic, thread};

pub(crate) const ALL: &[Model] = &[
    Model { name: "log_ticket", preemptions: 3, run: ticket },
    Model { name: "log_commit_beside_committer", preemptions: 3, run: commit_beside_committer },
    Model { name: "log_failing_disk", preemptions: 3, run: failing_disk },
    Model { name: "log_deferred_sync", preemptions: 3, run: deferred_sync },
    Model { name: "log_two_producers", preemptions: 3, run: two_producers },
    Model { name: "log_event", preemptions: 3, run: event },
];

const SLAB: u64 = 16384;

/// A disk that remembers how far it is durable.
#[derive(Debug, Default)]
struct Durable {
    written: AtomicU64,
    durable: AtomicU64,
    fails: bool,
}

#[derive(Clone, Debug)]
struct ModelDisk(Arc<Durable>);

impl ModelDisk {
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<u64> {
        if self.0.fails {
            return Err(io::Error::other("as planned"));
        }
        let end = offset + bytes.len() as u64;
        self.0.written.fetch_max(end, Ordering::Relaxed);
        Ok(end)
    }
}

impl DiskLock for ModelDisk {}

impl Disk for ModelDisk {
    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn open(&self, _path: &Path, _mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(self.clone()))
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _path: &Path, _timeout: Duration) -> io::Result<Arc<dyn DiskLock>> {
        Ok(Arc::new(self.clone()))
    }

    fn queue(&self, _lock: &Arc<dyn DiskLock>) -> io::Result<Box<dyn WriteQueue>> {
        Ok(Box::new(ModelQueue(Vec::new())))
    }

    fn random_u64(&self) -> io::Result<u64> {
        Ok(1)
    }

    fn mode(&self) -> DiskMode {
        DiskMode { io_uring: false, direct: false, why: None }
    }
}

impl DiskFile for ModelDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> io::Result<usize> {
        Ok(0)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write(bytes, offset).map(drop)
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = self.write(bytes, offset)?;
        self.0.durable.fetch_max(end, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let written = self.0.written.load(Ordering::Relaxed);
        self.0.durable.fetch_max(written, Ordering::Relaxed);
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn allocate(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_read_only(&self) -> io::Result<()> {
        Ok(())
    }

    fn drop_cache(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn map(&self) -> io::Result<Option<memmap2::Mmap>> {
        Ok(None)
    }

    fn is_direct(&self) -> bool {
        false
    }
}

struct ModelQueue(Vec<Completion>);

impl WriteQueue for ModelQueue {
    fn depth(&self) -> usize {
        2
    }

    fn in_flight(&self) -> usize {
        self.0.len()
    }

    fn submit(&mut self, write: Write) -> io::Result<()> {
        self.0.push((write.token, write.file.write_at(write.data.bytes(), write.offset)));
        Ok(())
    }

    fn complete(&mut self, _wait: bool, done: &mut Vec<Completion>) -> io::Result<()> {
        done.append(&mut self.0);
        Ok(())
    }
}

/// A log with one open segment, and its committer thread.
struct Bed {
    log: Arc<Log>,
    disk: Arc<Durable>,
    stop: Arc<atomic::AtomicBool>,
    committer: thread::JoinHandle<()>,
}

impl Bed {
    fn new(fails: bool, durability: Durability) -> Bed {
        let geometry = Geometry {
            slab_bytes: SLAB,
            segment_bytes: 4 * SLAB,
            head_bytes: 4096,
            tail_bytes: 2 * 4096,
            align_bytes: 4096,
        };
        let options = Options {
            slab_bytes: SLAB,
            ring_bytes: 4 * SLAB,
            pin_budget_bytes: 0,
            consumers_max: 1,
            durability,
            ..Options::default()
        };
        let durable = Arc::new(Durable { fails, ..Durable::default() });
        let disk = ModelDisk(Arc::clone(&durable));
        let ring = Arc::new(Ring::new(&options, geometry, 4096, Lsn::ZERO).expect("a ring"));
        let catalogue = Arc::new(Catalogue::new(geometry, 0, 1));
        let place = (0, PathBuf::new(), Arc::new(disk.clone()) as Arc<dyn DiskFile>);
        let open = Arc::new(OpenSegment::new(&geometry, place, 7, (1, 0)));
        let clock = Clock::Manual(Arc::new(AtomicU64::new(1)));
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let segments = Segments::new(
            (Arc::clone(&disk), Path::new("/")),
            geometry,
            LogId([0; 16]),
            clock.clone(),
            Arc::clone(&catalogue),
            0,
        );
        let lock = disk.lock(Path::new("/"), Duration::ZERO).expect("a lock");
        let committer = Committer::new(disk, lock, catalogue, open, (4096, 0, 0), false);
        let opened = Some((Arc::new(segments), committer));
        let start = (4096, Lsn::FIRST);
        let log = Log::new(&options, geometry, ring, clock, opened, start, true).expect("a log");
        let (log, stop) = (Arc::new(log), Arc::new(atomic::AtomicBool::new(false)));
        let (this, stopped) = (Arc::clone(&log), Arc::clone(&stop));
        let committer = thread::spawn(move || this.run_committer(&stopped));
        Bed { log, disk: durable, stop, committer }
    }

    fn writer(&self) -> Writer {
        Writer::new(Arc::clone(&self.log))
    }

    /// What was acknowledged is durable, and published.
    fn check(&self, lsn: Lsn) {
        let published = self.log.ring.committed.load().position();
        let durable = self.disk.durable.load(Ordering::Relaxed);
        assert!(published <= durable, "{published} published, {durable} durable");
        assert!(self.log.ring.committed_lsn() >= lsn, "LSN {lsn} is not published");
    }

    /// As the bus ends: what was committed is written.
    fn end(self) {
        atomic::end();
        self.close();
    }

    fn close(self) {
        self.log.refuse(Error::new(ErrorKind::Closed, "the model ends"));
        self.stop.store(true, Ordering::Release);
        self.log.kick();
        self.committer.join().expect("the committer");
        self.log.finish();
    }
}

fn commit_later(writer: &Writer) -> super::Ticket {
    let mut batch = writer.batch();
    batch.append(1, 2, b"three").expect("it fits");
    batch.commit_later().expect("it is open")
}

/// The producer hands over, and waits.
fn ticket() {
    let bed = Bed::new(false, Durability::Synced);
    let ticket = commit_later(&bed.writer());
    ticket.wait().expect("the disk works");
    bed.check(*ticket.lsns().end());
    bed.end();
}

/// The producer may lead while the committer thread works on what came before.
fn commit_beside_committer() {
    let bed = Bed::new(false, Durability::Synced);
    let writer = bed.writer();
    let ticket = commit_later(&writer);
    let lsn = writer.append(1, 2, b"three").expect("the disk works");
    bed.check(lsn);
    ticket.wait().expect("it came before");
    bed.end();
}

/// Whoever waits gets an answer when the disk fails.
fn failing_disk() {
    let bed = Bed::new(true, Durability::Synced);
    let ticket = commit_later(&bed.writer());
    let error = ticket.wait().expect_err("the disk fails");
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    assert_eq!(bed.log.ring.committed.load().position(), 4096, "what failed is published");
    bed.end();
}

/// A sync ends the interval in which the committer thread gathers.
fn deferred_sync() {
    let durability = Durability::Deferred { interval: Duration::from_secs(9), bytes: 1 << 20 };
    let bed = Bed::new(false, durability);
    let ticket = commit_later(&bed.writer());
    bed.log.sync().expect("the disk works");
    bed.check(*ticket.lsns().end());
    bed.end();
}

/// Leading producer, following producer, committer thread.
fn two_producers() {
    let bed = Bed::new(false, Durability::Synced);
    let writer = bed.writer();
    let other = thread::spawn(move || writer.append(1, 2, b"three").expect("the disk works"));
    let lsn = bed.writer().append(1, 2, b"four").expect("the disk works");
    bed.check(lsn);
    let lsns = [lsn, other.join().expect("the other producer")];
    assert!(lsns[0] != lsns[1] && lsns.iter().all(|lsn| lsn.get() <= 2), "{lsns:?}");
    bed.check(Lsn::new(2));
    bed.end();
}

/// Whoever waits for an event sees it, by whatever it is told.
fn event() {
    let event = Arc::new(crate::sync::Event::default());
    let happened = Arc::new(atomic::AtomicU64::new(0));
    let (teller, tells) = (Arc::clone(&event), Arc::clone(&happened));
    let thread = thread::spawn(move || {
        for value in 1..=2 {
            tells.store(value, Ordering::SeqCst);
            teller.notify();
        }
    });
    let look = || (happened.load(Ordering::SeqCst) == 2).then_some(());
    event.wait(Duration::from_secs(1), look).expect("it happened");
    thread.join().expect("the teller");
}
