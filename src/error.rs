//! One error type. It says what happened, where (path, segment, offset, LSN) and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::lsn::Lsn;

/// What kind of thing went wrong: what a program decides on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option, or two options together, cannot be used. Nothing was touched.
    InvalidOption,
    /// The directory holds something, and it is not a log of this crate.
    NotALog,
    /// Another bus, in this or another process, has the directory open.
    Locked,
    /// The log was written by a newer format version or needs a feature this build lacks.
    Unsupported,
    /// A segment file carries the id of another log.
    ForeignSegment,
    /// A segment that must be there is not.
    MissingSegment,
    /// Committed data is damaged. Nothing was changed on disk.
    Corrupt,
    /// The operating system refused an operation; the source says which.
    Io,
    /// No room on the disk. For a new segment: no LSN was used, the log goes on when there is room.
    /// For a checkpoint: it is not stored.
    StorageFull,
    /// A write or sync failed earlier. Reopen the log: recovery reads what is really on disk.
    Poisoned,
    /// The disk is so far behind that no slab came free within `append_timeout`.
    Busy,
    /// One record is larger than a block can hold.
    RecordTooLarge,
    /// A batch is larger than a block can hold; the record was not added, the batch is as before.
    BatchTooLarge,
    /// The bus is closed.
    Closed,
    /// A wait ran out of time.
    Timeout,
    /// Keeping the record would exceed the pin budget or the consumer's share of it: copy instead.
    LeaseRefused,
    /// Records the consumer still needed were deleted, or left an in-memory ring.
    PositionLost,
    /// A stored checkpoint belongs to another log or another generation of it.
    ForeignCheckpoint,
    /// An LSN or checkpoint lies beyond the end of the log.
    BeyondEnd,
    /// A consumer of this name runs already.
    NameTaken,
    /// `consumers_max` is reached, or no more checkpoints fit into their file: `forget` some.
    TooManyConsumers,
    /// The consumer has stopped.
    Stopped,
    /// The consumer is parked: its callback or its reads kept failing. `resume` tries again.
    Parked,
    /// A call that would wait for the very callback that makes it.
    WouldDeadlock,
    /// The bytes of two records do not follow each other: a bug or damaged memory, never delivered.
    Gap,
}

/// Any error of this crate. Cheap to clone.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    what: String,
    path: Option<PathBuf>,
    segment: Option<u64>,
    offset: Option<u64>,
    lsns: Option<(Lsn, Lsn)>,
    todo: Option<&'static str>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Error {
        Error(Arc::new(Inner {
            kind,
            what: what.into(),
            path: None,
            segment: None,
            offset: None,
            lsns: None,
            todo: None,
            source: None,
        }))
    }

    /// An operating system error while doing `what` to `path`. A full disk is a kind of its own.
    pub(crate) fn io(what: impl Into<String>, path: &Path, source: io::Error) -> Error {
        let full = matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        let kind = if full { ErrorKind::StorageFull } else { ErrorKind::Io };
        Error::new(kind, what).at_path(path).because(source)
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Error {
        change(Arc::make_mut(&mut self.0));
        self
    }

    pub(crate) fn at_path(self, path: &Path) -> Error {
        self.edit(|e| e.path = Some(path.to_owned()))
    }

    pub(crate) fn at_segment(self, segment: u64, offset: u64) -> Error {
        self.edit(|e| {
            e.segment = Some(segment);
            e.offset = Some(offset);
        })
    }

    pub(crate) fn at_lsns(self, from: Lsn, to: Lsn) -> Error {
        self.edit(|e| e.lsns = Some((from, to)))
    }

    pub(crate) fn advise(self, todo: &'static str) -> Error {
        self.edit(|e| e.todo = Some(todo))
    }

    /// Without the advice, where the caller is what it advises.
    pub(crate) fn plain(self) -> Error {
        self.edit(|e| e.todo = None)
    }

    pub(crate) fn because(
        self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        let source = Arc::from(source.into());
        self.edit(|e| e.source = Some(source))
    }

    /// What kind of error this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The file or directory concerned.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The number of the segment concerned.
    #[must_use]
    pub fn segment(&self) -> Option<u64> {
        self.0.segment
    }

    /// The offset in the segment file, in bytes.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The first and last LSN concerned, as far as they are known.
    #[must_use]
    pub fn lsns(&self) -> Option<(Lsn, Lsn)> {
        self.0.lsns
    }

    /// Committed data is damaged or missing: reading on would skip records.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Corrupt
                | ErrorKind::MissingSegment
                | ErrorKind::ForeignSegment
                | ErrorKind::Gap
        )
    }

    /// The same call may succeed later without anything being repaired.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::StorageFull
                | ErrorKind::Busy
                | ErrorKind::Timeout
                | ErrorKind::Locked
                | ErrorKind::LeaseRefused
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        f.write_str(&e.what)?;
        if let Some(path) = &e.path {
            write!(f, ", {}", path.display())?;
        }
        if let Some(segment) = e.segment {
            write!(f, ", segment {segment}")?;
        }
        if let Some(offset) = e.offset {
            write!(f, ", offset {offset}")?;
        }
        match e.lsns {
            Some((from, to)) if from == to => write!(f, ", LSN {from}")?,
            Some((from, to)) => write!(f, ", LSNs {from} to {to}")?,
            None => {}
        }
        if let Some(source) = &e.source {
            write!(f, ": {source}")?;
        }
        if let Some(todo) = e.todo {
            write!(f, " ({todo})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_where_and_what_to_do() {
        let error = Error::new(ErrorKind::Corrupt, "a committed block is damaged")
            .at_path(Path::new("/log/0.log"))
            .at_segment(3, 4096)
            .at_lsns(Lsn::new(7), Lsn::new(9))
            .advise("see `eventplane verify`");
        assert_eq!(
            error.to_string(),
            "a committed block is damaged, /log/0.log, segment 3, offset 4096, LSNs 7 to 9 \
             (see `eventplane verify`)"
        );
        assert!(error.is_damage() && !error.is_transient());
    }

    #[test]
    fn a_full_disk_is_a_kind_of_its_own() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(Error::io("write", Path::new("x"), full).kind(), ErrorKind::StorageFull);
        let eio = io::Error::from_raw_os_error(libc::EIO);
        assert_eq!(Error::io("write", Path::new("x"), eio).kind(), ErrorKind::Io);
    }
}
