//! The bus: opens the log, starts the threads, hands out writers and subscriptions, closes.

mod builder;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use builder::Builder;

use crate::consumer::{
    Checkpoints, Filter, Plane, Reader, Start, Status, Subscribe, Transition, in_callback_of,
    stop_consumer,
};
#[cfg(feature = "testing")]
use crate::disk::FaultyDisk;
use crate::disk::{Disk, RealDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::log::{Log, Opened, Recovery, Retainer, Writer, open_log};
use crate::lsn::Lsn;
use crate::options::Options;
use crate::policy::{Reason, Tier};
use crate::ring::Ring;
use crate::source::{Cold, Replay};
use crate::supervisor::{Housekeeper, Stop, Supervisor};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Clock, Mutex, answer_soon};

/// An event bus in this process: one log, its writers and its consumers.
///
/// Dropping it closes it and swallows what goes wrong; [`Bus::close`] tells.
///
/// # Closing
/// Appending is refused, consumers finish their batch and store their checkpoint, what was
/// committed is written out, the directory is released. A write batch that another thread is at is
/// waited for first, however long it takes.
pub struct Bus {
    plane: Arc<Plane>,
    supervisor: Arc<Supervisor>,
    housekeeper: Arc<Housekeeper>,
    recovery: Recovery,
    /// The log's threads end after the consumers', the rest last.
    log_stop: Arc<Stop>,
    segments_stop: Arc<Stop>,
    stop: Arc<Stop>,
    threads: Mutex<Threads>,
    /// AcqRel: who finds it set sees what the closing thread did before. No more is needed, for
    /// `shut` has `&self` and whoever comes second does nothing.
    closed: AtomicBool,
}

#[derive(Default)]
struct Threads {
    committer: Option<JoinHandle<()>>,
    segments: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("committed_lsn", &self.committed_lsn()).finish_non_exhaustive()
    }
}

impl Bus {
    /// Options, to be set before opening.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn open(builder: Builder, dir: &Path) -> Result<Bus> {
        let geometry = builder.options.validate_durable()?;
        let (clock, disk, threads) = builder.surroundings(dir)?;
        let options = builder.options;
        let check = |disk: &dyn Disk| Checkpoints::check(disk, dir);
        let opened = open_log(disk, dir, &options, geometry, &clock, check)?;
        let Opened { files, ring, segments, committer, offset, next_lsn, recovery } = opened;
        let meta = files.meta.get();
        let checkpoints = Checkpoints::open(
            Arc::clone(&files.disk),
            files.dir.clone(),
            (meta.log_id, meta.generation),
        )?;
        let cold = Cold::new(
            clock.clone(),
            options.cold_replays_max,
            options.cold_bytes_per_second,
            options.block_bytes_max(),
        );
        let replay = Replay::new(
            Arc::clone(segments.catalogue()),
            Arc::clone(&files.disk),
            geometry,
            (options.read_mode, options.readahead_bytes),
            cold,
        );
        let mode = files.disk.mode();
        let files = Arc::new(files);
        let retainer =
            Retainer::new(options.retention, geometry, Arc::clone(&files), Arc::clone(&segments));
        let opened = Some((segments, committer));
        let log = Log::new(&options, geometry, ring, clock, opened, (offset, next_lsn), threads)?;
        let plane = Plane::new(options, Arc::new(log), Some(replay), Some(retainer), checkpoints);
        let Recovery { records, segments, torn_bytes, duration, .. } = recovery;
        let (io_uring, direct_io) = (mode.io_uring, mode.direct);
        tracing::info!(
            dir = %dir.display(), records, segments, torn_bytes, ?duration, io_uring, direct_io,
            "opened"
        );
        if let Some(why) = mode.why {
            tracing::warn!(why, io_uring, direct_io, "fell back to slower writes");
        }
        Bus::start(plane, recovery, threads)
    }

    pub(crate) fn in_memory(builder: Builder) -> Result<Bus> {
        builder.options.validate_memory()?;
        let (clock, threads) = builder.clock();
        let options = builder.options;
        let geometry = options.memory_geometry();
        let ring = Arc::new(Ring::new(&options, geometry, 0, Lsn::ZERO)?);
        ring.touch(true);
        let log = Log::new(&options, geometry, ring, clock, None, (0, Lsn::FIRST), threads)?;
        let plane = Plane::new(options, Arc::new(log), None, None, Checkpoints::in_memory());
        Bus::start(plane, Recovery::default(), threads)
    }

    fn start(plane: Plane, recovery: Recovery, threads: bool) -> Result<Bus> {
        let plane = Arc::new(plane);
        let bus = Bus {
            supervisor: Arc::new(Supervisor::new(Arc::clone(&plane))),
            housekeeper: Arc::new(Housekeeper::new(Arc::clone(&plane))),
            plane,
            recovery,
            log_stop: Arc::default(),
            segments_stop: Arc::default(),
            stop: Arc::default(),
            threads: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        if threads {
            bus.spawn_all()?;
        }
        Ok(bus)
    }

    fn spawn_all(&self) -> Result<()> {
        let mut threads = self.threads.lock();
        let log = &self.plane.log;
        if let Some(segments) = log.segments().cloned() {
            let (this, stop) = (Arc::clone(log), Arc::clone(&self.log_stop));
            threads.committer = Some(spawn("ep-committer", move || {
                answer_soon();
                this.run_committer(stop.flag());
            })?);
            let (this, stop) = (Arc::clone(log), Arc::clone(&self.segments_stop));
            threads.segments =
                Some(spawn("ep-segments", move || segments.run(&this, stop.flag()))?);
        }
        let (ring, stop) = (Arc::clone(&log.ring), Arc::clone(&self.stop));
        let wake = move || {
            answer_soon();
            ring.sleepers.run(&ring.committed, || stop.is_set());
        };
        threads.others.push(spawn("ep-waker", wake)?);
        let (this, stop) = (Arc::clone(&self.supervisor), Arc::clone(&self.stop));
        threads.others.push(spawn("ep-supervisor", move || this.run(&stop))?);
        let (this, stop) = (Arc::clone(&self.housekeeper), Arc::clone(&self.stop));
        threads.others.push(spawn("ep-housekeeper", move || this.run(&stop))?);
        Ok(())
    }

    /// A handle to append with.
    #[must_use]
    pub fn writer(&self) -> Writer {
        Writer::new(Arc::clone(&self.plane.log))
    }

    /// Begins a subscription under a name, which is that of its checkpoint.
    pub fn subscribe(&self, name: impl Into<String>) -> Subscribe {
        Subscribe::new(Arc::clone(&self.plane), name.into())
    }

    /// An iterator over the log from `start` on, which follows it.
    ///
    /// # Errors
    /// As for [`Start`]; [`ErrorKind::TooManyConsumers`]; [`ErrorKind::Closed`].
    pub fn reader(&self, start: Start) -> Result<Reader> {
        self.reader_of(start, Filter::all())
    }

    /// As [`Bus::reader`], for the records that the filter lets through.
    ///
    /// # Errors
    /// As [`Bus::reader`].
    pub fn reader_of(&self, start: Start, filter: Filter) -> Result<Reader> {
        Reader::new(Arc::clone(&self.plane), start, filter)
    }

    /// What opening found.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// The last record that consumers may see.
    #[must_use]
    pub fn committed_lsn(&self) -> Lsn {
        self.plane.log.ring.committed_lsn()
    }

    /// The last record on stable storage; `Lsn::ZERO` in memory.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        if self.plane.replay.is_some() { self.committed_lsn() } else { Lsn::ZERO }
    }

    /// The first record that can still be had.
    #[must_use]
    pub fn first_lsn(&self) -> Lsn {
        self.plane.earliest().next_lsn
    }

    /// Returns when everything committed before the call is durable.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`].
    ///
    /// # Panics
    /// On a durable bus, if this thread holds a batch, for which it would have to wait.
    pub fn sync(&self) -> Result<()> {
        self.plane.log.sync()
    }

    /// All subscribers and readers.
    #[must_use]
    pub fn consumers(&self) -> Vec<Status> {
        self.plane.consumers().iter().map(|state| self.plane.status(state)).collect()
    }

    /// The last 1,024 transitions, oldest first.
    #[must_use]
    pub fn transitions(&self) -> Vec<Transition> {
        self.plane.transitions()
    }

    /// How often each transition happened since the bus was opened.
    #[must_use]
    pub fn transition_counts(&self) -> BTreeMap<(Tier, Tier, Reason), u64> {
        self.plane.transition_counts()
    }

    /// Deletes the checkpoint of a consumer that no longer runs, so that retention no longer waits
    /// for it. Returns whether there was one.
    ///
    /// # Errors
    /// [`ErrorKind::NameTaken`] if the consumer runs; an I/O error, after which it may be forgotten
    /// or not, in this life or the next: call it again.
    pub fn forget(&self, name: &str) -> Result<bool> {
        self.plane.forget(name)
    }

    /// Closes the bus within its deadline.
    ///
    /// # Errors
    /// As [`Bus::close_within`].
    pub fn close(self) -> Result<()> {
        let deadline = self.plane.options.deadline;
        self.shut(deadline)
    }

    /// Closes the bus; consumers have `deadline` to finish their batches.
    ///
    /// # Errors
    /// The error that poisoned the log; else [`ErrorKind::Timeout`] naming the consumers whose
    /// callbacks have not returned: everything else is closed all the same;
    /// [`ErrorKind::WouldDeadlock`] from a callback, as well; what kept checkpoints from being
    /// stored.
    /// [`ErrorKind::WouldDeadlock`] also if this thread holds a write batch: then nothing is
    /// closed, threads and the directory's lock stay for the life of the process.
    pub fn close_within(self, deadline: Duration) -> Result<()> {
        self.shut(deadline)
    }

    fn shut(&self, deadline: Duration) -> Result<()> {
        let log = &self.plane.log;
        if log.is_held_here() {
            let what = "the bus is closed while this thread holds a write batch";
            let error = Error::new(ErrorKind::WouldDeadlock, what).advise("end the batch first");
            tracing::error!(%error, "not closed");
            return Err(error);
        }
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.plane.refuse_consumers();
        log.refuse(Error::new(ErrorKind::Closed, "the bus is closed"));
        let stopped = self.stop_consumers(deadline);
        let stored = self.plane.flush_checkpoints();
        self.end_threads();
        // First what says that committed records may be lost.
        let clean = log.poisoned().map_or(Ok(()), Err).and(stopped).and(stored);
        match &clean {
            Ok(()) => tracing::info!(committed = %self.committed_lsn(), "closed"),
            Err(error) => tracing::warn!(%error, "closed, but not cleanly"),
        }
        clean
    }

    fn stop_consumers(&self, deadline: Duration) -> Result<()> {
        let until = Instant::now().checked_add(deadline);
        let consumers = self.plane.consumers();
        for state in &consumers {
            state.order(|control| control.stop = true);
        }
        let mut late = Vec::new();
        let (mut own, mut unstored) = (None, None);
        for state in consumers.iter().filter(|state| state.durable_name) {
            if in_callback_of(state) {
                own = Some(&state.name);
                continue;
            }
            let left = until.map_or(deadline, |at| at.saturating_duration_since(Instant::now()));
            match stop_consumer(state, left) {
                Ok(()) => unstored = unstored.or(state.control(|c| c.unstored.clone())),
                Err(_) => late.push(state.name.clone()),
            }
        }
        if let Some(name) = own {
            let what = format!("the bus is closed from the callback of {name:?}");
            return Err(Error::new(ErrorKind::WouldDeadlock, what)
                .advise("it ends when the callback returns, and its last checkpoint is lost"));
        }
        if late.is_empty() {
            return unstored.map_or(Ok(()), Err);
        }
        let what = format!("callbacks have not returned in {deadline:?}: {}", late.join(", "));
        Err(Error::new(ErrorKind::Timeout, what))
    }

    /// The committer writes what is pending and the last watermark; what is to be sealed is sealed;
    /// then the rest ends and the directory is free.
    fn end_threads(&self) {
        let log = &self.plane.log;
        let mut threads = self.threads.lock();
        self.log_stop.stop();
        log.kick();
        let committed = join(threads.committer.take());
        log.finish();
        self.segments_stop.stop();
        if let Some(segments) = log.segments() {
            segments.kick();
        }
        let sealed = join(threads.segments.take());
        let clean = committed && sealed && log.poisoned().is_none();
        if let Some(segments) = log.segments().filter(|_| clean) {
            segments.discard_prepared();
        }
        self.stop.stop();
        log.ring.sleepers.ring();
        for thread in threads.others.drain(..) {
            join(Some(thread));
        }
        self.plane.checkpoints.release_files();
        if let Some(retainer) = &self.plane.retainer {
            retainer.release_files();
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn parts(&self) -> (&Arc<Plane>, &Supervisor, &Housekeeper) {
        (&self.plane, &self.supervisor, &self.housekeeper)
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let deadline = self.plane.options.deadline;
        // Already told by tracing.
        let _ = self.shut(deadline);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|e| Error::new(ErrorKind::Io, "cannot start a thread").because(e))
}

/// Whether it ended as it should.
fn join(thread: Option<JoinHandle<()>>) -> bool {
    let panicked = thread.is_some_and(|thread| thread.join().is_err());
    if panicked {
        tracing::error!("a background thread panicked");
    }
    !panicked
}

impl Builder {
    fn clock(&self) -> (Clock, bool) {
        #[cfg(feature = "testing")]
        if let Some(clock) = &self.instruments.clock {
            // The threads of a schedule are as much the test's as its clock.
            return (Clock::Manual(Arc::clone(clock)), cfg!(races = "shuttle"));
        }
        (Clock::system(), true)
    }

    /// Clock, disk, and whether there are threads.
    fn surroundings(&self, dir: &Path) -> Result<(Clock, Arc<dyn Disk>, bool)> {
        let (clock, threads) = self.clock();
        #[cfg(feature = "testing")]
        if let Some(sim) = &self.instruments.sim {
            return Ok((clock, Arc::new(sim.clone()), threads));
        }
        let Options { backend, direct_io, .. } = self.options;
        let disk = RealDisk::new(backend, direct_io).map_err(|e| {
            Error::io(format!("cannot set up the backend {backend:?}"), dir, e)
                .advise("`Backend::Auto` falls back where the system refuses io_uring")
        })?;
        let disk: Arc<dyn Disk> = Arc::new(disk);
        #[cfg(feature = "testing")]
        let disk: Arc<dyn Disk> = match &self.instruments.faults {
            Some(faults) => Arc::new(FaultyDisk::new(disk, faults.clone())),
            None => disk,
        };
        Ok((clock, disk, threads))
    }
}
