//! Checkpoints: the last record each named consumer has processed, in one file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::plane::Stirred;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{self, CheckpointEntry, LogId};
use crate::limits;
use crate::lsn::Lsn;
use crate::sync::{Mutex, planted};

/// The stored checkpoints; in memory only, for a bus without a directory.
pub(crate) struct Checkpoints {
    file: Option<File>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// What is on disk, unless it is in doubt.
    stored: BTreeMap<String, Lsn>,
    /// After a store that failed the disk may hold it all the same, until one succeeds: the lowest
    /// checkpoint that it may hold.
    doubted: Option<Lsn>,
    /// What was stirred when everybody was at the end and all of that was stored.
    flushed: Option<Stirred>,
    /// Names found in a file of another log or another generation of this one. It is kept aside, so
    /// that those consumers are refused until somebody says where they start.
    foreign: BTreeMap<String, Error>,
    /// The directory was given back: it may be another bus's.
    released: bool,
}

impl Known {
    fn lowest(&self) -> Option<Lsn> {
        self.stored.values().copied().chain(self.doubted).min()
    }
}

struct File {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    log_id: LogId,
    generation: u64,
}

const NAME: &str = "checkpoints";
const FOREIGN_NAME: &str = "checkpoints.foreign";
const TEMPORARY_NAME: &str = "checkpoints.tmp";

impl Checkpoints {
    pub(crate) fn in_memory() -> Checkpoints {
        Checkpoints { file: None, known: Mutex::default() }
    }

    /// Refuses what `open` would refuse, and changes nothing: to be asked before recovery does.
    pub(crate) fn check(disk: &dyn Disk, dir: &Path) -> Result<()> {
        read(disk, dir, NAME)?;
        read(disk, dir, FOREIGN_NAME).map(drop)
    }

    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        (log_id, generation): (LogId, u64),
    ) -> Result<Checkpoints> {
        let file = File { disk, dir, log_id, generation };
        let mut known = Known::default();
        if let Some(found) = read(&*file.disk, &file.dir, NAME)? {
            if (found.log_id, found.generation) == (log_id, generation) {
                known.stored.extend(found.entries.into_iter().map(|e| (e.name, Lsn::new(e.lsn))));
            } else {
                file.set_aside(found)?;
            }
        }
        if let Some(found) = read(&*file.disk, &file.dir, FOREIGN_NAME)? {
            let what = format!(
                "the checkpoint is of log {}, generation {}, not {log_id}, generation {generation}",
                found.log_id, found.generation
            );
            let error = Error::new(ErrorKind::ForeignCheckpoint, what)
                .at_path(&file.dir.join(FOREIGN_NAME))
                .advise("subscribe with `start_at` to say where it starts in this log");
            known.foreign.extend(found.entries.into_iter().map(|e| (e.name, error.clone())));
        }
        Ok(Checkpoints { file: Some(file), known: Mutex::new(known) })
    }

    /// After the end: a consumer whose callback returns late must not write to a directory that
    /// another bus may have opened.
    pub(crate) fn release_files(&self) {
        let mut known = self.known.lock();
        if !std::mem::replace(&mut known.released, true)
            && let Some(file) = &self.file
        {
            // The room kept for a next one.
            let _ = file.disk.remove(&file.dir.join(TEMPORARY_NAME));
        }
    }

    /// The stored checkpoint; an error if it is one of another log, or lies beyond the end.
    pub(crate) fn get(&self, name: &str, last: Lsn) -> Result<Option<Lsn>> {
        let known = self.known.lock();
        match known.stored.get(name).copied() {
            Some(lsn) if lsn > last => {
                let what = format!("the checkpoint of {name:?} lies beyond the log's end, {last}");
                Err(Error::new(ErrorKind::BeyondEnd, what)
                    .at_lsns(lsn, lsn)
                    .advise("subscribe with `start_at` to say where it starts"))
            }
            Some(lsn) => Ok(Some(lsn)),
            None => known.foreign.get(name).cloned().map_or(Ok(None), Err),
        }
    }

    /// Does something with the lowest checkpoint, which retention must not pass, while nobody
    /// stores a lower one.
    pub(crate) fn with_lowest<T>(&self, then: impl FnOnce(Option<Lsn>) -> T) -> T {
        let known = self.known.lock();
        let lowest = known.lowest();
        let _held = (!planted("retention_takes_an_early_barrier")).then_some(known);
        then(lowest)
    }

    /// Stores what `look` finds to differ from what is stored, durably. Where `look` also says that
    /// everybody is at rest, the next look is for when more has been stirred.
    pub(crate) fn flush(
        &self,
        stirred: Stirred,
        look: impl FnOnce(&BTreeMap<String, Lsn>) -> (Vec<(String, Lsn)>, bool),
    ) -> Result<()> {
        let mut known = self.known.lock();
        if known.flushed == Some(stirred) {
            return Ok(());
        }
        let (changed, all_at_rest) = look(&known.stored);
        self.put(&mut known, changed)?;
        known.flushed = all_at_rest.then_some(stirred);
        Ok(())
    }

    /// Stores one durably, if `check` finds that it may, of the one stored before; `then` does what
    /// must come before anything else is stored. Returns what `check` said.
    pub(crate) fn store_one(
        &self,
        name: &str,
        lsn: Lsn,
        check: impl FnOnce(Option<Lsn>) -> Result<bool>,
        then: impl FnOnce(),
    ) -> Result<bool> {
        let mut known = self.known.lock();
        let before = known.stored.get(name).copied();
        if !check(before)? {
            return Ok(false);
        }
        let changed = (before != Some(lsn)).then(|| (name.to_owned(), lsn));
        self.put(&mut known, changed.into_iter().collect())?;
        then();
        Ok(true)
    }

    fn put(&self, known: &mut Known, changed: Vec<(String, Lsn)>) -> Result<()> {
        if changed.is_empty() && known.doubted.is_none() {
            return Ok(());
        }
        let mut next = known.stored.clone();
        next.extend(changed);
        self.change(known, next)
    }

    /// Forgets a consumer if `check` finds that it may, also one set aside. Returns whether there
    /// was a checkpoint.
    pub(crate) fn forget(&self, name: &str, check: impl FnOnce() -> Result<()>) -> Result<bool> {
        let mut known = self.known.lock();
        check()?;
        let mut next = known.stored.clone();
        let is_stored = next.remove(name).is_some();
        if is_stored || known.doubted.is_some() {
            self.change(&mut known, next)?;
        }
        let is_foreign = known.foreign.contains_key(name);
        if let Some(file) = self.file(&known)?.filter(|_| is_foreign) {
            file.forget_foreign(name)?;
            known.foreign.remove(name);
        }
        Ok(is_stored || is_foreign)
    }

    /// Written to a temporary file, for which there is room already, synced, renamed, the directory
    /// synced. What is in memory changes only when that worked: a barrier never runs ahead of the
    /// disk.
    fn change(&self, known: &mut Known, next: BTreeMap<String, Lsn>) -> Result<()> {
        if let Some(file) = self.file(known)?
            && let Err(error) = file.replace(&next)
        {
            known.doubted = next.values().copied().chain(known.lowest()).min();
            known.flushed = None;
            return Err(error);
        }
        (known.stored, known.doubted) = (next, None);
        Ok(())
    }

    /// The file to write to, if there is one; an error if it is no longer this bus's.
    fn file(&self, known: &Known) -> Result<Option<&File>> {
        if known.released {
            let what = "the bus is closed: checkpoints can no longer be stored";
            return Err(Error::new(ErrorKind::Closed, what));
        }
        Ok(self.file.as_ref())
    }
}

fn read(disk: &dyn Disk, dir: &Path, name: &str) -> Result<Option<format::Checkpoints>> {
    let path = dir.join(name);
    let failed = |e| Error::io("cannot read the checkpoints", &path, e);
    let mode = OpenMode { write: false, create: false, direct: false };
    let file = match disk.open(&path, mode) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let damaged = |what: &str| Error::new(ErrorKind::Corrupt, what).at_path(&path);
    let len = file.len().map_err(failed)?;
    if len > limits::CHECKPOINT_FILE_BYTES_MAX {
        return Err(damaged("the checkpoint file is too large"));
    }
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(&mut bytes, 0).map_err(failed)?;
    let decoded = format::Checkpoints::decode(bytes.get(..read).unwrap_or(&[]));
    decoded.map(Some).map_err(|error| {
        if error.is_newer() {
            Error::new(ErrorKind::Unsupported, "this build cannot read the checkpoints")
                .at_path(&path)
                .because(error)
        } else {
            damaged("the checkpoint file is damaged").because(error)
        }
    })
}

impl File {
    /// Keeps `found`, the file as it is, beside this log's own checkpoints. Of consumers set aside
    /// before that are not in it, the names stay: they have not said either where they start.
    fn set_aside(&self, mut found: format::Checkpoints) -> Result<()> {
        let (path, aside) = (self.dir.join(NAME), self.dir.join(FOREIGN_NAME));
        let failed = |e| Error::io("cannot set foreign checkpoints aside", &path, e);
        let before = read(&*self.disk, &self.dir, FOREIGN_NAME)?.map(|before| before.entries);
        let names: BTreeSet<_> = found.entries.iter().map(|entry| entry.name.clone()).collect();
        let mut more = before.unwrap_or_default();
        more.retain(|entry| !names.contains(&entry.name));
        if more.is_empty() {
            self.disk.rename(&path, &aside).map_err(failed)?;
        } else {
            found.entries.extend(more);
            self.write(&found, &aside)?;
            self.disk.remove(&path).map_err(failed)?;
        }
        self.disk.sync_dir(&self.dir).map_err(failed)
    }

    fn forget_foreign(&self, name: &str) -> Result<()> {
        let Some(mut found) = read(&*self.disk, &self.dir, FOREIGN_NAME)? else { return Ok(()) };
        found.entries.retain(|entry| entry.name != name);
        self.write(&found, &self.dir.join(FOREIGN_NAME)).map(drop)
    }

    fn replace(&self, values: &BTreeMap<String, Lsn>) -> Result<()> {
        let entry =
            |(name, lsn): (&String, &Lsn)| CheckpointEntry { name: name.clone(), lsn: lsn.get() };
        let content = format::Checkpoints {
            log_id: self.log_id,
            generation: self.generation,
            entries: values.iter().map(entry).collect(),
        };
        let bytes = self.write(&content, &self.dir.join(NAME))?;
        // Room for the next one, taken while there is some: on a full disk it is retention behind
        // the checkpoints that makes room, and no checkpoint must wait for that.
        let _ = self.temporary(bytes.len() as u64).and_then(|file| file.write_at(&bytes, 0));
        Ok(())
    }

    /// Replaces a file. What could not be read again is not written.
    fn write(&self, content: &format::Checkpoints, path: &Path) -> Result<Vec<u8>> {
        let failed = |e| Error::io("cannot store the checkpoints", path, e);
        let bytes = content.encode();
        if bytes.len() as u64 > limits::CHECKPOINT_FILE_BYTES_MAX {
            let what = format!("no file takes {} checkpoints", content.entries.len());
            return Err(Error::new(ErrorKind::TooManyConsumers, what)
                .at_path(path)
                .advise("`forget` the consumers that do not come back"));
        }
        let file = self.temporary(bytes.len() as u64).map_err(failed)?;
        file.write_at(&bytes, 0).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        self.disk.rename(&self.dir.join(TEMPORARY_NAME), path).map_err(failed)?;
        self.disk.sync_dir(&self.dir).map_err(failed)?;
        Ok(bytes)
    }

    /// A file under the temporary name to write `len` bytes to: the one for which there is room
    /// already, if it is as long as that, for it is never shortened; else a new one.
    fn temporary(&self, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.dir.join(TEMPORARY_NAME);
        let mode = OpenMode { write: true, create: false, direct: false };
        match self.disk.open(&path, mode) {
            Ok(file) if file.len()? == len => return Ok(file),
            Ok(_) => self.disk.remove(&path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        self.disk.open(&path, OpenMode { create: true, ..mode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Backend, Fault, Faults, FaultyDisk, Op, RealDisk};

    fn open(dir: &Path, generation: u64) -> Result<Checkpoints> {
        let disk = Arc::new(RealDisk::new(Backend::Psync, false).unwrap());
        Checkpoints::open(disk, dir.to_owned(), (LogId([7; 16]), generation))
    }

    fn kind(checkpoints: &Checkpoints, name: &str) -> Option<ErrorKind> {
        checkpoints.get(name, Lsn::new(9)).err().map(|error| error.kind())
    }

    fn try_to_store(checkpoints: &Checkpoints, name: &str, lsn: u64) -> Result<bool> {
        checkpoints.store_one(name, Lsn::new(lsn), |_| Ok(true), || {})
    }

    fn store(checkpoints: &Checkpoints, name: &str, lsn: u64) {
        assert!(try_to_store(checkpoints, name, lsn).unwrap());
    }

    /// A seek failed when the new file had its name already: what a reopening found there was that.
    #[test]
    fn what_was_not_stored_for_sure_is_stored_anew() {
        let stirred = Stirred::default();
        for to in [3, 30] {
            let dir = tempfile::tempdir().unwrap();
            let faults = Faults::new();
            let disk = Arc::new(RealDisk::new(Backend::Psync, false).unwrap());
            let disk = Arc::new(FaultyDisk::new(disk, faults.clone()));
            let log = (LogId([7; 16]), 1);
            let checkpoints = Checkpoints::open(disk, dir.path().to_owned(), log).unwrap();
            store(&checkpoints, "a", 10);
            checkpoints.flush(stirred, |_| (vec![], true)).unwrap();
            faults.inject(Fault::errno(Op::SyncDir, libc::EIO));
            assert_eq!(try_to_store(&checkpoints, "a", to).unwrap_err().kind(), ErrorKind::Io);
            let found = || open(dir.path(), 1).unwrap().get("a", Lsn::new(99)).unwrap();
            assert_eq!(found(), Some(Lsn::new(to)), "it has its name");
            assert_eq!(checkpoints.get("a", Lsn::new(99)).unwrap(), Some(Lsn::new(10)));
            let lowest = || checkpoints.with_lowest(|lowest| lowest);
            assert_eq!(lowest(), Some(Lsn::new(to.min(10))), "neither may be deleted");
            checkpoints.flush(stirred, |_| (vec![], true)).unwrap();
            assert_eq!((found(), lowest()), (Some(Lsn::new(10)), Some(Lsn::new(10))));
        }
    }

    /// Those of before the first repair counted as new after the second.
    #[test]
    fn whoever_was_set_aside_stays_so_until_it_says_where_it_starts() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = open(dir.path(), 1).unwrap();
        store(&checkpoints, "a", 3);
        store(&checkpoints, "b", 4);
        for generation in [2, 3, 4] {
            let checkpoints = open(dir.path(), generation).unwrap();
            for name in ["a", "b"] {
                assert_eq!(kind(&checkpoints, name), Some(ErrorKind::ForeignCheckpoint), "{name}");
            }
            assert_eq!(checkpoints.get("c", Lsn::new(9)).unwrap(), None);
            if generation < 4 {
                store(&checkpoints, "a", 5);
                assert_eq!(checkpoints.get("a", Lsn::new(9)).unwrap(), Some(Lsn::new(5)));
            }
        }
        let checkpoints = open(dir.path(), 5).unwrap();
        assert!(checkpoints.forget("b", || Ok(())).unwrap(), "it is known that far");
        for checkpoints in [checkpoints, open(dir.path(), 5).unwrap()] {
            assert_eq!(checkpoints.get("b", Lsn::new(9)).unwrap(), None);
            assert!(!checkpoints.forget("b", || Ok(())).unwrap());
            assert_eq!(kind(&checkpoints, "a"), Some(ErrorKind::ForeignCheckpoint));
        }
    }

    /// What was stored grew until nothing opened any more.
    #[test]
    fn no_more_is_stored_than_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = open(dir.path(), 1).unwrap();
        let names = |range: std::ops::Range<u64>| {
            range.map(|i| (format!("{i:0255}"), Lsn::new(i))).collect::<Vec<_>>()
        };
        let flush = |lsns| checkpoints.flush(Stirred::default(), |_| (names(lsns), false));
        // As many as may run at once.
        flush(0..1 << 16).unwrap();
        let full = flush(0..110_000).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::TooManyConsumers);
        assert_eq!(full.path(), Some(&*dir.path().join(NAME)));
        let checkpoints = open(dir.path(), 1).unwrap();
        assert_eq!(checkpoints.known.lock().stored.len(), 1 << 16);
        assert!(checkpoints.forget(&format!("{:0255}", 5), || Ok(())).unwrap());
        assert_eq!(open(dir.path(), 1).unwrap().known.lock().stored.len(), (1 << 16) - 1);
    }
}
