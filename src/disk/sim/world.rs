//! Everything a simulated machine's disk holds: names, files, locks, and what is durable of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use fastrand::Rng;

use super::Point;
use super::content::{Inode, What};

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Node {
    Directory,
    File(u64),
}

/// A change of names that is not yet durable.
#[derive(Clone, Debug)]
enum Naming {
    Link(PathBuf, Node),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, Node),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Naming::Link(path, node) => {
                names.insert(path.clone(), *node);
            }
            Naming::Unlink(path) => {
                names.remove(path);
            }
            Naming::Rename(from, to, node) => {
                // The same directory entry under another name, or an older file by the old one.
                if names.get(from) == Some(node) {
                    names.remove(from);
                }
                names.insert(to.clone(), *node);
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let (Naming::Link(path, _) | Naming::Unlink(path) | Naming::Rename(path, ..)) = self;
        path.parent() == Some(dir)
    }
}

/// The state of a simulated disk; a clone of it is a snapshot.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) rng: Rng,
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    namings: Vec<Naming>,
    pub(super) locked: BTreeSet<PathBuf>,
    next_id: u64,
    /// Bytes of file that fit.
    pub(super) capacity: Option<u64>,
    /// Calls so far that change something.
    pub(super) points: u64,
    /// A digest of all those calls: the same seed gives the same.
    pub(super) digest: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let root = BTreeMap::from([(PathBuf::from("/"), Node::Directory)]);
        World {
            rng: Rng::with_seed(seed),
            inodes: BTreeMap::new(),
            names: root.clone(),
            durable_names: root,
            namings: Vec::new(),
            locked: BTreeSet::new(),
            next_id: 0,
            capacity: None,
            points: 0,
            digest: 0,
        }
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn node(&self, path: &Path) -> io::Result<Node> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn inode(&mut self, number: u64) -> &mut Inode {
        self.inodes.entry(number).or_default()
    }

    pub(super) fn file(&mut self, path: &Path) -> io::Result<&mut Inode> {
        match self.node(path)? {
            Node::File(number) => Ok(self.inode(number)),
            Node::Directory => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.namings.push(naming);
    }

    pub(super) fn create(&mut self, path: &Path) -> u64 {
        let number = self.new_id();
        self.inodes.insert(number, Inode::default());
        self.name(Naming::Link(path.to_owned(), Node::File(number)));
        number
    }

    pub(super) fn create_dirs(&mut self, path: &Path) {
        let mut missing: Vec<_> =
            path.ancestors().filter(|p| !self.names.contains_key(*p)).collect();
        while let Some(dir) = missing.pop() {
            self.name(Naming::Link(dir.to_owned(), Node::Directory));
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.node(from)?;
        self.name(Naming::Rename(from.to_owned(), to.to_owned(), node));
        Ok(())
    }

    pub(super) fn unlink(&mut self, path: &Path) -> io::Result<()> {
        self.node(path)?;
        self.name(Naming::Unlink(path.to_owned()));
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) {
        let (synced, rest): (Vec<_>, Vec<_>) =
            self.namings.drain(..).partition(|naming| naming.is_in(dir));
        synced.iter().for_each(|naming| naming.apply(&mut self.durable_names));
        self.namings = rest;
    }

    /// Files in a directory or, for all of them, below the root; with their lengths.
    pub(super) fn files(&self, dir: Option<&Path>) -> Vec<(PathBuf, Option<u64>)> {
        let chosen = self.names.iter().filter(|(path, _)| match dir {
            Some(dir) => path.parent() == Some(dir),
            None => true,
        });
        let len = |node: &Node| match node {
            Node::File(number) => Some(self.inodes.get(number).map_or(0, |i| i.seen.len)),
            Node::Directory => None,
        };
        chosen.map(|(path, node)| (path.clone(), len(node))).collect()
    }

    /// Whether a file may grow by so much.
    pub(super) fn admit(&self, bytes: u64) -> io::Result<()> {
        let used: u64 = self.files(None).iter().filter_map(|(_, len)| *len).sum();
        match self.capacity {
            Some(capacity) if used + bytes > capacity => {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            _ => Ok(()),
        }
    }

    /// Begins a change of a file. Returns its number.
    pub(super) fn begin(&mut self, inode: u64, what: What) -> u64 {
        let id = self.new_id();
        self.inode(inode).begin(id, what);
        id
    }

    /// Mixes a call into the digest.
    pub(super) fn note(&mut self, point: Point<'_>) {
        self.points += 1;
        let path = point.path.as_os_str().as_encoded_bytes();
        let (offset, bytes) = (point.offset.to_le_bytes(), point.bytes.to_le_bytes());
        for part in [point.call.as_bytes(), path, &offset, &bytes] {
            for &byte in part {
                // FNV-1a.
                self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }

    /// What a power cut leaves.
    pub(super) fn cut(&self, rng: &mut Rng) -> World {
        let mut names = self.durable_names.clone();
        let (mode, reached) = (rng.u8(0..4), rng.usize(0..=self.namings.len()));
        for (i, naming) in self.namings.iter().enumerate() {
            let lands = match mode {
                0 => true,
                1 => false,
                // A journal keeps the order; not every file system has one.
                2 => i < reached,
                _ => rng.bool(),
            };
            if lands {
                naming.apply(&mut names);
            }
        }
        // What lies in a directory that is not there is not there.
        let all = names.clone();
        names.retain(|path, _| path.ancestors().all(|p| all.contains_key(p)));
        let inodes = names.values().filter_map(|node| match node {
            Node::File(number) => Some((*number, self.inodes.get(number)?.cut(rng))),
            Node::Directory => None,
        });
        let inodes = inodes.collect();
        self.rebooted(inodes, names.clone(), names, Vec::new(), rng)
    }

    /// What is there after the process was killed.
    pub(super) fn kill(&self, rng: &mut Rng) -> World {
        let inodes = self.inodes.iter().map(|(number, inode)| (*number, inode.kill(rng))).collect();
        let (names, durable) = (self.names.clone(), self.durable_names.clone());
        self.rebooted(inodes, names, durable, self.namings.clone(), rng)
    }

    fn rebooted(
        &self,
        inodes: BTreeMap<u64, Inode>,
        names: BTreeMap<PathBuf, Node>,
        durable_names: BTreeMap<PathBuf, Node>,
        namings: Vec<Naming>,
        rng: &mut Rng,
    ) -> World {
        World {
            rng: rng.fork(),
            inodes,
            names,
            durable_names,
            namings,
            locked: BTreeSet::new(),
            next_id: self.next_id,
            capacity: self.capacity,
            points: 0,
            digest: 0,
        }
    }
}
