//! A disk that fails when told to: any other disk, wrapped, with a plan of what goes wrong.
//!
//! Faults strike single attempts, *below* the loops that finish short writes and repeat
//! interrupted calls, exactly where those of a kernel would. A [`Hold`] stops an operation until
//! it is dropped, to drive a race to the point that matters.
//!
//! Files of this disk have no descriptor to a queue, so queued writes pass through here as well,
//! one by one, as [`Op::Write`].

#[cfg(feature = "testing")]
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::file::{read_full, retry, write_all};
use super::{Disk, DiskFile, DiskLock, DiskMode, OpenMode, WriteQueue};

/// How long [`Hold::wait_for`] waits for a test to get where it should.
const HOLD_WAIT: Duration = Duration::from_secs(10);

/// What can fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// An attempt of `write_at`, also of a queue.
    Write,
    /// An attempt of `write_durable_at`.
    DurableWrite,
    /// `sync_data` and `sync_all`.
    Sync,
    /// `sync_dir`.
    SyncDir,
    /// `rename`; a path restriction matches either name.
    Rename,
    /// `open` with `create`, of a file that is not there.
    Create,
    /// `allocate`.
    Allocate,
    /// An attempt of `read_at`.
    Read,
    /// `remove`.
    Remove,
    /// `create_dir`.
    CreateDir,
    /// `open` without `create`.
    Open,
    /// `list`.
    List,
    /// `lock`.
    Lock,
    /// `queue`.
    Queue,
    /// `len` of a file.
    Len,
    /// `set_read_only`.
    Protect,
    /// `drop_cache`.
    DropCache,
}

impl Op {
    /// Its name, for digests and reports.
    #[cfg(feature = "testing")]
    pub(super) fn name(self) -> &'static str {
        match self {
            Op::Write => "write",
            Op::DurableWrite => "durable write",
            Op::Sync => "sync",
            Op::SyncDir => "sync directory",
            Op::Rename => "rename",
            Op::Create => "create",
            Op::Allocate => "allocate",
            Op::Read => "read",
            Op::Remove => "remove",
            Op::CreateDir => "create directory",
            Op::Open => "open",
            Op::List => "list",
            Op::Lock => "lock",
            Op::Queue => "queue",
            Op::Len => "len",
            Op::Protect => "protect",
            Op::DropCache => "drop cache",
        }
    }

    /// Whether it may be done in part.
    fn is_in_parts(self) -> bool {
        matches!(self, Op::Read | Op::Write | Op::DurableWrite)
    }

    /// What opening a file is.
    pub(super) fn opening(mode: OpenMode) -> Op {
        if mode.create { Op::Create } else { Op::Open }
    }
}

/// One thing that goes wrong: at first the next call, once, on any path.
#[derive(Clone, Debug)]
pub struct Fault {
    /// `None`: any.
    op: Option<Op>,
    effect: Effect,
    /// A part of the paths it is restricted to.
    path: Option<String>,
    /// Matching calls that go well first.
    calls_before: u64,
    repeats: bool,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
enum Effect {
    Errno(i32),
    Short(usize),
}

impl Fault {
    /// The call does nothing and fails with this errno.
    pub fn errno(op: Op, errno: i32) -> Fault {
        Fault::new(op, Effect::Errno(errno))
    }

    /// A read or write stops after `bytes`, with success. On direct files, a multiple of 4096.
    pub fn short(op: Op, bytes: usize) -> Fault {
        assert!(op.is_in_parts(), "{op:?} is done or not, never in part");
        Fault::new(op, Effect::Short(bytes))
    }

    /// The call fails with this errno, whatever it is.
    pub fn errno_anywhere(errno: i32) -> Fault {
        Fault::new(None, Effect::Errno(errno))
    }

    /// The read or write stops after `bytes`.
    pub fn short_anywhere(bytes: usize) -> Fault {
        Fault::new(None, Effect::Short(bytes))
    }

    fn new(op: impl Into<Option<Op>>, effect: Effect) -> Fault {
        let op = op.into();
        Fault { op, effect, path: None, calls_before: 0, repeats: false }
    }

    /// Strikes the `nth` matching call from now on; 1 is the next.
    pub fn nth(mut self, nth: u64) -> Fault {
        self.calls_before = nth.saturating_sub(1);
        self
    }

    /// Only where the path contains `part`. A file goes by the path under which it was opened.
    pub fn on(mut self, part: &str) -> Fault {
        self.path = Some(part.to_owned());
        self
    }

    /// Strikes every matching call from then on.
    pub fn forever(mut self) -> Fault {
        self.repeats = true;
        self
    }

    fn matches(&self, op: Op, paths: &[&Path]) -> bool {
        let on_path = |part: &String| paths.iter().any(|p| p.to_string_lossy().contains(part));
        let on_op = match (self.op, self.effect) {
            (Some(own), _) => own == op,
            (None, Effect::Errno(_)) => true,
            (None, Effect::Short(_)) => op.is_in_parts(),
        };
        on_op && self.path.as_ref().is_none_or(on_path)
    }
}

/// What goes wrong on a disk, and when; clones share the plan.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    plan: Mutex<Plan>,
    /// Signalled when a gate changes.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Plan {
    faults: Vec<Fault>,
    gates: HashMap<Op, Gate>,
    /// As the disk says; 0 is 1, for faults are counted in the order of calls.
    calls_at_once: usize,
}

/// Where the calls of one operation pass.
#[derive(Clone, Copy, Debug, Default)]
struct Gate {
    calls: u64,
    /// [`Hold`]s that live.
    holds: usize,
    /// Calls that wait for them.
    waiting: usize,
}

impl Faults {
    /// A plan in which nothing goes wrong.
    pub fn new() -> Faults {
        Faults::default()
    }

    /// Adds a fault. Where several match the same call, the first added strikes.
    pub fn inject(&self, fault: Fault) {
        self.shared.plan.lock().faults.push(fault);
    }

    /// Forgets all faults; holds stay.
    pub fn clear(&self) {
        self.shared.plan.lock().faults.clear();
    }

    /// How often this was called, each attempt counted.
    pub fn calls(&self, op: Op) -> u64 {
        self.shared.plan.lock().gates.get(&op).map_or(0, |gate| gate.calls)
    }

    /// How many calls of each operation there were.
    #[cfg(feature = "testing")]
    pub fn calls_by_name(&self) -> BTreeMap<&'static str, u64> {
        self.shared.plan.lock().gates.iter().map(|(op, gate)| (op.name(), gate.calls)).collect()
    }

    /// Makes every call of `op` wait until the returned value is dropped.
    #[must_use = "dropping the hold lets the calls go"]
    pub fn hold(&self, op: Op) -> Hold {
        self.shared.plan.lock().gates.entry(op).or_default().holds += 1;
        Hold { faults: self.clone(), op }
    }

    /// Says that the disk has so many calls under way at once, which is 1 at first: faults that are
    /// counted need an order of calls.
    #[cfg(test)]
    pub(crate) fn set_calls_at_once(&self, calls: usize) {
        self.shared.plan.lock().calls_at_once = calls;
    }

    /// One attempt of an operation: counts it, waits while it is held, then fails it, or says to
    /// how many of `bytes` it is cut.
    pub(super) fn attempt(&self, op: Op, paths: &[&Path], bytes: usize) -> io::Result<usize> {
        let mut plan = self.shared.plan.lock();
        plan.gates.entry(op).or_default().calls += 1;
        if plan.is_held(op) {
            plan.gates.entry(op).or_default().waiting += 1;
            self.shared.changed.notify_all();
            self.shared.changed.wait_while(&mut plan, |plan| plan.is_held(op));
            plan.gates.entry(op).or_default().waiting -= 1;
        }
        match plan.strike(op, paths) {
            Some(Effect::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Effect::Short(short)) => Ok(short.min(bytes)),
            None => Ok(bytes),
        }
    }

    /// An operation that is all or nothing, done by `call` unless it is to fail.
    fn whole<T>(&self, op: Op, paths: &[&Path], call: impl Fn() -> io::Result<T>) -> io::Result<T> {
        retry(|| {
            self.attempt(op, paths, 0)?;
            call()
        })
    }
}

impl Plan {
    fn is_held(&self, op: Op) -> bool {
        self.gates.get(&op).is_some_and(|gate| gate.holds > 0)
    }

    /// What strikes this call. All faults that match it come one call nearer.
    fn strike(&mut self, op: Op, paths: &[&Path]) -> Option<Effect> {
        let mut struck = None;
        self.faults.retain_mut(|fault| {
            if !fault.matches(op, paths) {
                return true;
            }
            if fault.calls_before > 0 {
                fault.calls_before -= 1;
                return true;
            }
            if struck.is_some() {
                return true;
            }
            struck = Some(fault.effect);
            fault.repeats
        });
        struck
    }
}

/// Calls of one operation wait while this lives.
#[derive(Debug)]
pub struct Hold {
    faults: Faults,
    op: Op,
}

impl Hold {
    /// Waits until `calls` calls are waiting here; false if they do not come within 10 seconds.
    #[must_use]
    pub fn wait_for(&self, calls: usize) -> bool {
        let Shared { plan, changed } = &*self.faults.shared;
        let arrived = |plan: &Plan| plan.gates.get(&self.op).is_some_and(|g| g.waiting >= calls);
        let mut plan = plan.lock();
        let deadline = Instant::now() + HOLD_WAIT;
        changed.wait_while_until(&mut plan, |plan| !arrived(plan), deadline);
        arrived(&plan)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.faults.shared.plan.lock().gates.entry(self.op).or_default().holds -= 1;
        self.faults.shared.changed.notify_all();
    }
}

/// Any disk, with faults.
#[derive(Debug)]
pub(crate) struct FaultyDisk {
    disk: Arc<dyn Disk>,
    faults: Faults,
}

impl FaultyDisk {
    /// Wraps `disk`; keep a clone of `faults` to change the plan.
    pub(crate) fn new(disk: Arc<dyn Disk>, faults: Faults) -> FaultyDisk {
        FaultyDisk { disk, faults }
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.faults.whole(Op::CreateDir, &[path], || self.disk.create_dir(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.faults.whole(Op::List, &[dir], || self.disk.list(dir))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let open = || self.disk.open(path, mode);
        let file = self.faults.whole(Op::opening(mode), &[path], open)?;
        let faults = self.faults.clone();
        Ok(Arc::new(FaultyFile { file, path: path.to_owned(), faults }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.faults.whole(Op::Rename, &[from, to], || self.disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.faults.whole(Op::Remove, &[path], || self.disk.remove(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.faults.whole(Op::SyncDir, &[dir], || self.disk.sync_dir(dir))
    }

    fn lock(&self, path: &Path, timeout: Duration) -> io::Result<Arc<dyn DiskLock>> {
        self.faults.whole(Op::Lock, &[path], || self.disk.lock(path, timeout))
    }

    fn queue(&self, lock: &Arc<dyn DiskLock>) -> io::Result<Box<dyn WriteQueue>> {
        self.faults.whole(Op::Queue, &[], || self.disk.queue(lock))
    }

    fn random_u64(&self) -> io::Result<u64> {
        self.disk.random_u64()
    }

    fn calls_at_once(&self) -> usize {
        self.faults.shared.plan.lock().calls_at_once.max(1)
    }

    fn mode(&self) -> DiskMode {
        self.disk.mode()
    }
}

/// A file of a [`FaultyDisk`]. Without a descriptor, so that queues come through here too.
#[derive(Debug)]
struct FaultyFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    faults: Faults,
}

impl FaultyFile {
    fn attempt(&self, op: Op, bytes: usize) -> io::Result<usize> {
        self.faults.attempt(op, &[&self.path], bytes)
    }

    fn whole(&self, op: Op, call: impl Fn() -> io::Result<()>) -> io::Result<()> {
        self.faults.whole(op, &[&self.path], call)
    }
}

impl DiskFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.faults.whole(Op::Len, &[&self.path], || self.file.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        read_full(buf, offset, |rest, at| {
            let bytes = self.attempt(Op::Read, rest.len())?;
            self.file.read_at(rest.split_at_mut(bytes).0, at)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        write_all(bytes, offset, |rest, at| {
            let written = self.attempt(Op::Write, rest.len())?;
            self.file.write_at(rest.split_at(written).0, at)?;
            Ok(written)
        })
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        write_all(bytes, offset, |rest, at| {
            let written = self.attempt(Op::DurableWrite, rest.len())?;
            self.file.write_durable_at(rest.split_at(written).0, at)?;
            Ok(written)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.whole(Op::Sync, || self.file.sync_data())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.whole(Op::Sync, || self.file.sync_all())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.whole(Op::Allocate, || self.file.allocate(len))
    }

    fn set_read_only(&self) -> io::Result<()> {
        self.whole(Op::Protect, || self.file.set_read_only())
    }

    fn drop_cache(&self, offset: u64, len: u64) -> io::Result<()> {
        self.whole(Op::DropCache, || self.file.drop_cache(offset, len))
    }

    fn map(&self) -> io::Result<Option<memmap2::Mmap>> {
        self.file.map()
    }

    fn is_direct(&self) -> bool {
        self.file.is_direct()
    }
}
