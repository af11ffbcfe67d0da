//! A simulated disk: what is durable, what is only written, and what a crash makes of it.
//!
//! It is as unkind as a disk may be. A durable write makes its own range durable and nothing else;
//! a sync covers what was complete when it began; names are durable after `sync_dir`. At a power
//! cut any sectors (512 B) of what was not durable are there, in any order, and so are any changes
//! of names. Queued writes complete in any order, and their memory must not change meanwhile.
//! A sync that fails forgets what it should have written, and the next one says that all is well.
//!
//! Everything follows from a seed. Not simulated are mappings (`map` returns none, so replay reads
//! into buffers) and the kernel's io_uring.

mod content;
mod file;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;

use self::content::What;
use self::file::{SimFile, SimQueue};
use self::world::{Node, World};
use super::file::retry;
use super::{Disk, DiskFile, DiskLock, DiskMode, Faults, Op, OpenMode, WriteQueue};

/// What ends a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The machine stops: what is not durable is there in part.
    PowerCut,
    /// The process stops: what is written is there, and no more durable than before.
    Kill,
}

/// A bug of the disk, to see that a test finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// `sync_data` and `sync_all` do nothing.
    SyncsNothing,
    /// A durable write is only written.
    DurableWriteIsNot,
    /// `sync_dir` does nothing.
    SyncsNoNames,
    /// A queue reports what it has not yet written.
    CompletesEarly,
    /// A write that was done in part is reported as done.
    TakesShortForWhole,
}

/// A call that changes something, in the middle of which a crash may strike.
#[derive(Clone, Copy, Debug)]
pub struct Point<'a> {
    /// What is done.
    pub call: &'a str,
    /// To what; a write in a queue knows only the number of its file.
    pub path: &'a Path,
    /// Where in the file.
    pub offset: u64,
    /// How much.
    pub bytes: u64,
}

type Watch = Box<dyn FnMut(&SimDisk, Point<'_>) + Send>;

/// A disk that exists in memory; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    world: Mutex<World>,
    faults: Faults,
    watch: Mutex<Option<Watch>>,
    plant: Option<Plant>,
    /// Files opened as direct are.
    direct: bool,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("points", &self.points()).finish_non_exhaustive()
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk::of(World::new(seed), None, Rng::with_seed(seed).bool())
    }

    /// One with a bug.
    pub fn planted(seed: u64, plant: Plant) -> SimDisk {
        SimDisk::of(World::new(seed), Some(plant), Rng::with_seed(seed).bool())
    }

    fn of(world: World, plant: Option<Plant>, direct: bool) -> SimDisk {
        let (world, faults, watch) = (Mutex::new(world), Faults::new(), Mutex::new(None));
        SimDisk { shared: Arc::new(Shared { world, faults, watch, plant, direct }) }
    }

    /// The plan of what fails; every attempt of every call asks it.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Calls so far that change something: the points at which a crash may strike.
    #[must_use]
    pub fn points(&self) -> u64 {
        self.shared.world.lock().points
    }

    /// A digest of all calls so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.shared.world.lock().digest
    }

    /// Bounds the bytes of all files.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.world.lock().capacity = bytes;
    }

    /// Calls `watch` in the middle of each call that changes something, with the disk as it is at
    /// that moment. It must not change the disk, but may take a crash of it.
    pub fn watch(&self, watch: impl FnMut(&SimDisk, Point<'_>) + Send + 'static) {
        *self.shared.watch.lock() = Some(Box::new(watch));
    }

    /// No longer.
    pub fn unwatch(&self) {
        *self.shared.watch.lock() = None;
    }

    /// The disk as a crash at this moment would leave it: another disk. Without faults.
    #[must_use]
    pub fn crash(&self, crash: Crash, seed: u64) -> SimDisk {
        let mut rng = Rng::with_seed(seed);
        let world = self.shared.world.lock();
        let world = match crash {
            Crash::PowerCut => world.cut(&mut rng),
            Crash::Kill => world.kill(&mut rng),
        };
        SimDisk::of(world, self.shared.plant, self.shared.direct)
    }

    /// The same disk once more.
    #[must_use]
    pub fn copy(&self) -> SimDisk {
        let world = self.shared.world.lock().clone();
        SimDisk::of(world, self.shared.plant, self.shared.direct)
    }

    /// All files with their lengths.
    #[must_use]
    pub fn files(&self) -> BTreeMap<PathBuf, u64> {
        let files = self.shared.world.lock().files(None);
        files.into_iter().filter_map(|(path, len)| Some((path, len?))).collect()
    }

    /// What a file holds; empty if there is none.
    #[must_use]
    pub fn read(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let mut world = self.shared.world.lock();
        let Ok(file) = world.file(path.as_ref()) else { return Vec::new() };
        let mut bytes = vec![0; file.seen.len as usize];
        file.seen.read(&mut bytes, 0);
        bytes
    }

    /// Damage: changes bytes of a file, which must be there, behind everybody's back.
    pub fn patch(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) {
        if let Ok(file) = self.shared.world.lock().file(path.as_ref()) {
            file.patch(offset, bytes);
        }
    }

    /// Damage: cuts a file.
    pub fn truncate(&self, path: impl AsRef<Path>, len: u64) {
        if let Ok(file) = self.shared.world.lock().file(path.as_ref()) {
            file.truncate(len);
        }
    }

    /// Damage: removes a name, durably.
    pub fn lose(&self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let mut world = self.shared.world.lock();
        if world.unlink(path).is_ok() {
            path.parent().into_iter().for_each(|dir| world.sync_dir(dir));
        }
    }

    /// A file's bytes at a place where there was nothing before, durably.
    pub fn put(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        let path = path.as_ref();
        let mut world = self.shared.world.lock();
        path.parent().into_iter().for_each(|dir| world.create_dirs(dir));
        let number = world.create(path);
        world.inode(number).patch(0, bytes);
        path.ancestors().for_each(|dir| world.sync_dir(dir));
    }

    fn has(&self, plant: Plant) -> bool {
        self.shared.plant == Some(plant)
    }

    /// A call that changes something is under way.
    fn point(&self, point: Point<'_>) {
        self.shared.world.lock().note(point);
        // Taken out meanwhile: what watches may look at the disk, and its own calls are no points.
        let watch = self.shared.watch.lock().take();
        if let Some(mut watch) = watch {
            watch(self, point);
            self.shared.watch.lock().get_or_insert(watch);
        }
    }

    /// An operation that changes nothing: only that it may fail.
    fn quiet(&self, op: Op, paths: &[&Path]) -> io::Result<()> {
        retry(|| self.shared.faults.attempt(op, paths, 0)).map(drop)
    }

    /// An operation that is all or nothing.
    fn whole<T>(
        &self,
        op: Op,
        paths: &[&Path],
        call: impl Fn(&mut World) -> io::Result<T>,
    ) -> io::Result<T> {
        retry(|| {
            self.shared.faults.attempt(op, paths, 0)?;
            let done = call(&mut self.shared.world.lock())?;
            self.point(Point { call: op.name(), path: paths[0], offset: 0, bytes: 0 });
            Ok(done)
        })
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.whole(Op::CreateDir, &[path], |world| {
            world.create_dirs(path);
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.quiet(Op::List, &[dir])?;
        let world = self.shared.world.lock();
        if let Node::File(_) = world.node(dir)? {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let name = |(path, _): (PathBuf, _)| {
            path.file_name().unwrap_or_default().to_string_lossy().into_owned()
        };
        Ok(world.files(Some(dir)).into_iter().map(name).collect())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let inode = if mode.create {
            self.whole(Op::Create, &[path], |world| match world.node(path) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(_) => {
                    path.parent().map_or(Ok(Node::Directory), |dir| world.node(dir))?;
                    Ok(world.create(path))
                }
            })?
        } else {
            self.quiet(Op::Open, &[path])?;
            match self.shared.world.lock().node(path)? {
                Node::File(inode) => inode,
                Node::Directory => return Err(io::ErrorKind::IsADirectory.into()),
            }
        };
        let direct = mode.direct && self.shared.direct;
        Ok(Arc::new(SimFile::new(self.clone(), path.to_owned(), inode, direct)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.whole(Op::Rename, &[from, to], |world| world.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.whole(Op::Remove, &[path], |world| world.unlink(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.whole(Op::SyncDir, &[dir], |world| {
            world.node(dir)?;
            if !self.has(Plant::SyncsNoNames) {
                world.sync_dir(dir);
            }
            Ok(())
        })
    }

    fn lock(&self, path: &Path, _timeout: Duration) -> io::Result<Arc<dyn DiskLock>> {
        self.quiet(Op::Lock, &[path])?;
        let mut world = self.shared.world.lock();
        if !world.locked.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if world.node(path).is_err() {
            world.create(path);
        }
        Ok(Arc::new(SimLock { disk: self.clone(), path: path.to_owned() }))
    }

    fn queue(&self, lock: &Arc<dyn DiskLock>) -> io::Result<Box<dyn WriteQueue>> {
        self.quiet(Op::Queue, &[])?;
        Ok(Box::new(SimQueue::new(self.clone(), Arc::clone(lock))))
    }

    fn random_u64(&self) -> io::Result<u64> {
        Ok(self.shared.world.lock().rng.u64(..))
    }

    fn mode(&self) -> DiskMode {
        DiskMode { io_uring: false, direct: self.shared.direct, why: None }
    }
}

impl SimDisk {
    /// Begins a write; its bytes are in flight until it completes.
    fn begin_write(&self, inode: u64, bytes: &[u8], offset: u64) -> io::Result<u64> {
        let mut world = self.shared.world.lock();
        let end = offset + bytes.len() as u64;
        let grown = end.saturating_sub(world.inode(inode).seen.len);
        if grown > 0 {
            world.admit(grown)?;
        }
        Ok(world.begin(inode, What::Write { offset, bytes: bytes.into() }))
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.shared.world.lock().locked.remove(&self.path);
    }
}
