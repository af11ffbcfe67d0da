//! The `meta` file: what must be known before any segment is read, in two slots written in turn.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{FormatError, Meta, PAGE_BYTES};

pub(crate) struct MetaFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    meta: Mutex<Meta>,
}

impl MetaFile {
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join("meta")
    }

    /// Writes both slots of a new log, durably.
    pub(crate) fn create(disk: &dyn Disk, dir: &Path, meta: Meta) -> Result<MetaFile> {
        let path = MetaFile::path(dir);
        let failed = |e| Error::io("cannot create the log's meta file", &path, e);
        // Under a temporary name first: a crash leaves no half-written file by the real one.
        let temporary = dir.join("meta.tmp");
        let mode = OpenMode { write: true, create: true, direct: false };
        if disk.list(dir).map_err(failed)?.iter().any(|name| name == "meta.tmp") {
            disk.remove(&temporary).map_err(failed)?;
        }
        let file = disk.open(&temporary, mode).map_err(failed)?;
        file.write_at(&meta.encode(), meta.slot() * PAGE_BYTES).map_err(failed)?;
        let second = Meta { sequence: meta.sequence + 1, ..meta };
        file.write_at(&second.encode(), second.slot() * PAGE_BYTES).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        disk.rename(&temporary, &path).map_err(failed)?;
        disk.sync_dir(dir).map_err(failed)?;
        Ok(MetaFile { file, meta: Mutex::new(second), path: path.clone() })
    }

    /// Reads it; `write` is false for tools that only look.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path, write: bool) -> Result<MetaFile> {
        let path = MetaFile::path(dir);
        let failed = |e| Error::io("cannot read the log's meta file", &path, e);
        let mode = OpenMode { write, create: false, direct: false };
        let file = disk.open(&path, mode).map_err(failed)?;
        let mut bytes = vec![0; 2 * PAGE_BYTES as usize];
        if write {
            // After a sync that failed, the cache takes for clean what the disk does not have.
            file.drop_cache(0, bytes.len() as u64).map_err(failed)?;
        }
        let read = file.read_at(&mut bytes, 0).map_err(failed)?;
        bytes.truncate(read);
        let meta = Meta::newest(&bytes).map_err(|error| {
            let kind = match error {
                FormatError::Magic => ErrorKind::NotALog,
                FormatError::Version(_) | FormatError::RequiredFeatures(_) => {
                    ErrorKind::Unsupported
                }
                _ => ErrorKind::Corrupt,
            };
            Error::new(kind, "the meta file is not usable").at_path(&path).because(error)
        })?;
        Ok(MetaFile { file, meta: Mutex::new(meta), path: path.clone() })
    }

    pub(crate) fn get(&self) -> Meta {
        self.meta.lock().clone()
    }

    /// Makes durable what was read.
    pub(crate) fn sync(&self) -> Result<()> {
        let failed = |e| Error::io("cannot sync the log's meta file", &self.path, e);
        self.file.sync_data().map_err(failed)
    }

    /// Changes it durably: the slot that is older is overwritten in place, so this works on a full
    /// disk.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Meta)) -> Result<()> {
        let failed = |e| Error::io("cannot write the log's meta file", &self.path, e);
        let mut current = self.meta.lock();
        let mut next = current.clone();
        change(&mut next);
        next.sequence += 1;
        self.file.write_at(&next.encode(), next.slot() * PAGE_BYTES).map_err(failed)?;
        self.file.sync_data().map_err(failed)?;
        *current = next;
        Ok(())
    }
}
