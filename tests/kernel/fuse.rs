//! A file system in memory, mounted through the kernel, whose calls fail when told to: so the errno
//! that the log sees took the way of a real one, through io_uring too.
//!
//! It knows what is durable. A sync that fails drops what it should have written, as kernels do; a
//! [`crash`](Fuse::crash) drops everything that was not synced. Names are durable at once.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use super::mount::new_room;

/// What can go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Write,
    Sync,
    Allocate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    Fails(i32),
    /// Writes this many bytes, and says so.
    Short(usize),
    /// A broken disk, for controls: says that all is well, and has done nothing.
    Lies,
}

/// One thing that goes wrong, in files whose name ends so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) call: Call,
    pub(crate) suffix: &'static str,
    pub(crate) effect: Effect,
    /// Calls of this kind that go well before, and how many then do not.
    pub(crate) after: u64,
    pub(crate) times: u64,
}

struct Node {
    parent: u64,
    name: String,
    is_dir: bool,
    perm: u16,
    /// What a reader sees, and what would survive a crash.
    current: Vec<u8>,
    durable: Vec<u8>,
    dirty: Vec<Range<usize>>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    faults: Vec<Fault>,
    struck: u64,
}

/// The mounted file system; unmounted when dropped.
pub(crate) struct Fuse {
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
    room: PathBuf,
}

/// The side of the kernel.
struct Served {
    state: Arc<Mutex<State>>,
    flags: FopenFlags,
}

const ROOT: u64 = 1;
/// Nothing is cached: what changes here, changes behind the kernel's back.
const TTL: Duration = Duration::ZERO;

impl Fuse {
    /// `bypass`: the kernel passes calls on as they come, so a short write stays short. Without, it
    /// treats O_DIRECT as other file systems do, and finishes short writes itself.
    pub(crate) fn mount(bypass: bool) -> Result<Fuse, String> {
        let state = Arc::new(Mutex::new(State::default()));
        state.lock().next = ROOT;
        state.lock().add(ROOT, "", true, 0o755);
        let mut fuse = Fuse { state, session: None, room: new_room()? };
        let flags = if bypass { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
        let served = Served { state: Arc::clone(&fuse.state), flags };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("eventplane-kernel".into())];
        let session = fuser::spawn_mount(served, fuse.path(), &config);
        fuse.session = Some(session.map_err(|e| format!("cannot mount by FUSE: {e}"))?);
        Ok(fuse)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.room.join("mnt")
    }

    pub(crate) fn inject(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Nothing goes wrong any more.
    pub(crate) fn heal(&self) {
        self.state.lock().faults.clear();
    }

    /// Removes every file; nobody has one open.
    pub(crate) fn clear(&self) {
        self.state.lock().nodes.retain(|ino, _| *ino == ROOT);
    }

    pub(crate) fn struck(&self) -> u64 {
        self.state.lock().struck
    }

    /// How often something went wrong since this was asked.
    pub(crate) fn take_struck(&self) -> u64 {
        std::mem::take(&mut self.state.lock().struck)
    }

    /// Drops what is not durable.
    pub(crate) fn crash(&self) {
        for node in self.state.lock().nodes.values_mut() {
            node.current.clone_from(&node.durable);
            node.dirty.clear();
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
        let _ = fs::remove_dir(self.path());
        let _ = fs::remove_dir(&self.room);
    }
}

impl Node {
    fn resize(&mut self, bytes: usize) {
        self.current.resize(bytes, 0);
        self.durable.resize(bytes, 0);
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let range = offset..offset + data.len();
        if self.current.len() < range.end {
            self.resize(range.end);
        }
        self.current[range.clone()].copy_from_slice(data);
        self.dirty.push(range);
    }

    fn sync(&mut self) {
        for range in std::mem::take(&mut self.dirty) {
            self.durable[range.clone()].copy_from_slice(&self.current[range]);
        }
    }

    /// What becomes of pages whose writing failed: they are clean, and gone.
    fn drop_dirty(&mut self) {
        for range in std::mem::take(&mut self.dirty) {
            self.current[range.clone()].copy_from_slice(&self.durable[range]);
        }
    }
}

impl State {
    fn add(&mut self, parent: u64, name: &str, is_dir: bool, perm: u32) -> u64 {
        let ino = self.next;
        self.next += 1;
        let node = Node {
            parent,
            name: name.into(),
            is_dir,
            perm: perm as u16,
            current: Vec::new(),
            durable: Vec::new(),
            dirty: Vec::new(),
        };
        self.nodes.insert(ino, node);
        ino
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<u64, Errno> {
        let is = |node: &Node| node.parent == parent.0 && OsStr::new(&node.name) == name;
        let found = self.nodes.iter().find(|(ino, node)| **ino != ROOT && is(node));
        found.map(|(ino, _)| *ino).ok_or(Errno::ENOENT)
    }

    fn node(&mut self, ino: INodeNo) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino.0).ok_or(Errno::ENOENT)
    }

    fn attr(&self, ino: u64) -> Result<FileAttr, Errno> {
        let node = self.nodes.get(&ino).ok_or(Errno::ENOENT)?;
        let (size, then) = (node.current.len() as u64, SystemTime::UNIX_EPOCH);
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size / 512,
            atime: then,
            mtime: then,
            ctime: then,
            crtime: then,
            kind: if node.is_dir { FileType::Directory } else { FileType::RegularFile },
            perm: node.perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// What is to go wrong with this call, if anything.
    fn strike(&mut self, call: Call, ino: INodeNo) -> Option<Effect> {
        let name = &self.nodes.get(&ino.0)?.name;
        let is = |f: &&mut Fault| f.call == call && f.times > 0 && name.ends_with(f.suffix);
        let fault = self.faults.iter_mut().find(is)?;
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        fault.times -= 1;
        self.struck += 1;
        Some(fault.effect)
    }

    fn write(
        &mut self,
        ino: INodeNo,
        offset: u64,
        data: &[u8],
        durable: bool,
    ) -> Result<usize, Errno> {
        let effect = self.strike(Call::Write, ino);
        // A write that is to be durable by itself is a sync as well.
        let synced = if durable { self.strike(Call::Sync, ino) } else { None };
        let node = self.node(ino)?;
        let written = match effect {
            Some(Effect::Fails(errno)) => return Err(Errno::from_i32(errno)),
            Some(Effect::Short(bytes)) => bytes.min(data.len()),
            Some(Effect::Lies) => return Ok(data.len()),
            None => data.len(),
        };
        node.write(offset as usize, &data[..written]);
        match synced {
            Some(Effect::Fails(errno)) => {
                node.drop_dirty();
                return Err(Errno::from_i32(errno));
            }
            Some(_) => {}
            None if durable => node.sync(),
            None => {}
        }
        Ok(written)
    }

    fn sync(&mut self, ino: INodeNo) -> Result<(), Errno> {
        let effect = self.strike(Call::Sync, ino);
        let node = self.node(ino)?;
        match effect {
            Some(Effect::Fails(errno)) => {
                node.drop_dirty();
                return Err(Errno::from_i32(errno));
            }
            Some(_) => {}
            None => node.sync(),
        }
        Ok(())
    }
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn answer_entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn answer_attr(reply: ReplyAttr, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(errno) => reply.error(errno),
    }
}

/// Without `flush`, which a process that is killed would wait for while it closes its files: for
/// itself, for it is the server as well.
impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.state.lock();
        answer_entry(reply, state.find(parent, name).and_then(|ino| state.attr(ino)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer_attr(reply, self.state.lock().attr(ino.0));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.state.lock();
        if let Ok(node) = state.node(ino) {
            node.perm = mode.map_or(node.perm, |mode| mode as u16 & 0o7777);
            if let Some(size) = size {
                node.resize(size as usize);
            }
        }
        answer_attr(reply, state.attr(ino.0));
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let mut state = self.state.lock();
        let ino = state.add(parent.0, &name.to_string_lossy(), true, mode);
        answer_entry(reply, state.attr(ino));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.state.lock();
        let found = state.find(parent, name);
        // Whoever has it open keeps it.
        answer(
            reply,
            found
                .map(|ino| state.nodes.entry(ino).and_modify(|n| n.parent = 0))
                .map(drop),
        );
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.state.lock();
        let moved = state.find(parent, name).map(|ino| {
            if let Ok(replaced) = state.find(to, new_name) {
                state.nodes.entry(replaced).and_modify(|node| node.parent = 0);
            }
            state.nodes.entry(ino).and_modify(|node| {
                node.parent = to.0;
                node.name = new_name.to_string_lossy().into_owned();
            });
        });
        answer(reply, moved);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), self.flags);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut state = self.state.lock();
        let ino = state.add(parent.0, &name.to_string_lossy(), false, mode & 0o7777);
        match state.attr(ino) {
            Ok(attr) => reply.created(&TTL, &attr, Generation(0), FileHandle(0), self.flags),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.state.lock().node(ino) {
            Ok(node) => {
                let begin = node.current.len().min(offset as usize);
                let end = node.current.len().min(begin + size as usize);
                reply.data(&node.current[begin..end]);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durable = flags.0 & libc::O_DSYNC != 0;
        match self.state.lock().write(ino, offset, data, durable) {
            Ok(written) => reply.written(written as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.state.lock().sync(ino));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        let mut state = self.state.lock();
        let effect = state.strike(Call::Allocate, ino);
        let allocated = state.node(ino).and_then(|node| match effect {
            Some(Effect::Fails(errno)) => Err(Errno::from_i32(errno)),
            _ => {
                let bytes = node.current.len().max((offset + length) as usize);
                node.resize(bytes);
                Ok(())
            }
        });
        answer(reply, allocated);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = self.state.lock();
        let inside = state
            .nodes
            .iter()
            .filter(|(child, n)| n.parent == ino.0 && **child != ROOT);
        for (at, (child, node)) in inside.enumerate().skip(offset as usize) {
            let kind = if node.is_dir { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(*child), at as u64 + 1, kind, &node.name) {
                break;
            }
        }
        reply.ok();
    }
}
