//! For tools: a log that nobody has open, looked at, checked, repaired.
//!
//! A [`LogDir`] holds the log's lock while it lives, so no bus writes meanwhile, and reads files
//! as they are: unlike opening a bus, it recovers nothing and changes nothing. Only
//! [`LogDir::repair`] writes. The command `eventplane` (feature `cli`) is a thin shell over it.
//!
//! ```
//! use eventplane::Bus;
//! use eventplane::offline::LogDir;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let bus = Bus::builder().open(dir)?;
//! bus.writer().append(1, 42, b"created")?;
//! bus.close()?;
//!
//! let log = LogDir::open(dir)?;
//! assert_eq!(log.info()?.records, 1);
//! assert!(log.verify()?.findings.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! # Damage
//! What is wrong is told as a list of [`Error`]s, each with path, segment, offset and LSNs, whose
//! kinds are [`Corrupt`](ErrorKind::Corrupt), [`MissingSegment`](ErrorKind::MissingSegment),
//! [`ForeignSegment`](ErrorKind::ForeignSegment), [`Unsupported`](ErrorKind::Unsupported),
//! [`ForeignCheckpoint`](ErrorKind::ForeignCheckpoint) and [`BeyondEnd`](ErrorKind::BeyondEnd).
//! What an honest crash leaves (a torn write that was never acknowledged, a footer not yet
//! written) is no damage: the next opening deals with it.

mod check;
mod dump;
mod info;
mod judge;
mod repair;
mod scan;
mod side;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Backend, Disk, DiskLock, RealDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Meta, PAGE_BYTES, footer_bytes};
use crate::limits;
use crate::log::MetaFile;
use crate::lsn::Geometry;

#[cfg(feature = "testing")]
pub(crate) use check::check_segment;
pub use dump::Dumped;
pub use info::{Checkpoint, Info, SegmentInfo, SegmentState};
pub use repair::{Loss, Repair};

use scan::{Depth, Scan, Scanner};

/// A log's directory, locked.
pub struct LogDir {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Held, not used.
    _lock: Arc<dyn DiskLock>,
    meta: Meta,
    geometry: Geometry,
}

/// What [`LogDir::verify`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Segment files read.
    pub segments: u64,
    /// Good blocks found, whatever lies between them.
    pub blocks: u64,
    /// Records that can be read without a gap.
    pub records: u64,
    /// What is wrong.
    pub findings: Vec<Error>,
    /// What is not wrong, but worth knowing.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for LogDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogDir").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl LogDir {
    /// Locks the log in `dir` and reads its `meta` file. Creates nothing.
    ///
    /// # Errors
    /// [`ErrorKind::NotALog`]; [`ErrorKind::Locked`] if it is open elsewhere;
    /// [`ErrorKind::Unsupported`] if it needs a later build; [`ErrorKind::Corrupt`] if no slot of
    /// the `meta` file is usable; [`ErrorKind::Io`].
    pub fn open(dir: impl AsRef<Path>) -> Result<LogDir> {
        let dir = dir.as_ref();
        let disk = RealDisk::new(Backend::Psync, false)
            .map_err(|e| Error::io("cannot use the disk", dir, e))?;
        LogDir::open_on(Arc::new(disk), dir)
    }

    pub(crate) fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<LogDir> {
        let entries = disk.list(dir).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(ErrorKind::NotALog, "there is no such directory").at_path(dir)
            }
            std::io::ErrorKind::NotADirectory => {
                Error::new(ErrorKind::NotALog, "not a directory").at_path(dir)
            }
            _ => Error::io("cannot list the log's directory", dir, e),
        })?;
        // Before anything is locked: locking creates the file.
        for name in ["LOCK", "meta", "segments"] {
            if !entries.iter().any(|entry| entry == name) {
                let what = format!("the directory holds no log: there is no {name:?} in it");
                return Err(Error::new(ErrorKind::NotALog, what).at_path(dir));
            }
        }
        let path = dir.join("LOCK");
        let lock = disk.lock(&path, limits::TOOL_LOCK_TIMEOUT).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => {
                Error::new(ErrorKind::Locked, "the log is open elsewhere").at_path(dir)
            }
            _ => Error::io("cannot lock the log", &path, e),
        })?;
        let meta = MetaFile::open(&*disk, dir, false)?.get();
        let geometry = Geometry {
            slab_bytes: meta.slab_bytes,
            segment_bytes: meta.segment_bytes,
            head_bytes: PAGE_BYTES,
            tail_bytes: PAGE_BYTES + footer_bytes(meta.segment_bytes),
            align_bytes: PAGE_BYTES,
        };
        Ok(LogDir { disk, dir: dir.to_owned(), _lock: lock, meta, geometry })
    }

    fn scan(&self, depth: Depth) -> Result<Scan> {
        Scanner::new((&*self.disk, &self.dir), self.geometry, &self.meta, depth).run()
    }

    /// Reads every block of every segment and everything beside them.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if something cannot be read. Damage is no error but a finding.
    pub fn verify(&self) -> Result<Report> {
        let mut scan = self.scan(Depth::Blocks)?;
        let side = self.side(scan.end_lsn())?;
        scan.findings.extend(side.findings);
        scan.notes.extend(side.notes);
        Ok(Report {
            segments: scan.segments.len() as u64,
            blocks: scan.blocks,
            records: scan.next_lsn - scan.first_lsn,
            findings: scan.findings,
            notes: scan.notes,
        })
    }
}
