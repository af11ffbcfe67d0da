//! Opening a log: what is there, whether it is whole, where to go on.
//!
//! Recovery believes checksums and chains, never lengths or times, and never guesses: what was
//! acknowledged is there afterwards, or `open` fails naming what is damaged, and nothing on disk
//! has changed: first everything is read and judged, then what is to be done is done. It may run
//! any number of times, also over its own half-done work.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::catalogue::{Catalogue, OpenSegment, Sealed};
use super::committer::Committer;
use super::create::{check_sizes, is_log, open_or_create_meta};
use super::meta::MetaFile;
use super::segments::{Prepared, Segments, segment_path};
use super::survey::{Found, REPAIR, Survey};
use super::walk::{Chain, Rest, Walked, Walker};
use crate::disk::{AlignedBuf, Disk, DiskFile, DiskLock, OpenMode, at_once};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Meta;
use crate::limits;
use crate::lsn::{Geometry, Lsn};
use crate::options::Options;
use crate::planted::{Bug, planted};
use crate::ring::Ring;
use crate::sync::Clock;

/// What opening the log found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// Segment files that are complete or hold records.
    pub segments: u64,
    /// Records in the log.
    pub records: u64,
    /// First record kept, or the next to be written if there is none.
    pub first_lsn: Lsn,
    /// Last record, `Lsn::ZERO` in a new log.
    pub last_lsn: Lsn,
    /// Bytes of a write that a crash tore, never acknowledged, and left aside.
    pub torn_bytes: u64,
    /// How long it took.
    pub duration: Duration,
}

/// The directory of a log, locked.
pub(crate) struct LogFiles {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) lock: Arc<dyn DiskLock>,
    pub(crate) meta: MetaFile,
}

/// A log opened for writing, its newest segment in the ring.
pub(crate) struct Opened {
    pub(crate) files: LogFiles,
    pub(crate) ring: Arc<Ring>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) committer: Committer,
    /// Offset in the current slab where the next block goes.
    pub(crate) offset: usize,
    pub(crate) next_lsn: Lsn,
    pub(crate) recovery: Recovery,
}

/// Opens or creates the log in `dir`. What else lies there and may be refused, `check` looks at
/// before anything is changed.
pub(crate) fn open_log(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: &Options,
    geometry: Geometry,
    clock: &Clock,
    check: impl FnOnce(&dyn Disk) -> Result<()>,
) -> Result<Opened> {
    let begun = clock.now();
    let io = |e| Error::io("cannot open the log's directory", dir, e);
    if !is_log(&*disk, dir)? {
        disk.create_dir(&dir.join("segments")).map_err(io)?;
    }
    let lock = disk.lock(&dir.join("LOCK"), options.lock_timeout).map_err(|e| {
        if e.kind() == std::io::ErrorKind::WouldBlock {
            Error::new(ErrorKind::Locked, "the log is open elsewhere").at_path(dir)
        } else {
            Error::io("cannot lock the log", &dir.join("LOCK"), e)
        }
    })?;
    check(&*disk)?;
    let (meta, fresh) = open_or_create_meta(&disk, dir, geometry, clock)?;
    let files = LogFiles { disk, dir: dir.to_owned(), lock, meta };
    check_sizes(&files, &geometry)?;
    let mut opened = Recoverer::new(&files, geometry, clock).run(options, fresh)?;
    opened.recovery.duration = Duration::from_nanos(clock.now() - begun);
    Ok(opened.with(files))
}

/// What is on disk, found by reading alone.
struct State {
    /// Complete segments, oldest first.
    complete: Vec<Complete>,
    tail: Tail,
    /// Empty segments behind the tail.
    prepared: Vec<(u64, Prepared)>,
}

enum Complete {
    Sealed(Sealed),
    /// Still to be sealed.
    Rolled(OpenSegment),
}

/// A segment that was looked at.
struct Seen {
    found: Found,
    /// If it has neither a first block nor a footer: what lies behind its header all the same.
    unwritten: Option<(Arc<dyn DiskFile>, Rest)>,
    /// If it has blocks and no footer: the file and its slabs, which will be walked.
    ahead: Option<(Arc<dyn DiskFile>, Vec<AlignedBuf>)>,
}

/// The segment in which the log ends, and how.
struct Tail {
    found: Found,
    file: Arc<dyn DiskFile>,
    walked: Walked,
    rest: Rest,
}

struct Recoverer<'a> {
    files: &'a LogFiles,
    geometry: Geometry,
    clock: &'a Clock,
    meta: Meta,
}

/// What is opened but for the files, which the recoverer only borrows.
struct Unowned {
    ring: Arc<Ring>,
    segments: Arc<Segments>,
    committer: Committer,
    offset: usize,
    next_lsn: Lsn,
    recovery: Recovery,
}

impl Unowned {
    fn with(self, files: LogFiles) -> Opened {
        let Unowned { ring, segments, committer, offset, next_lsn, recovery } = self;
        Opened { files, ring, segments, committer, offset, next_lsn, recovery }
    }
}

impl<'a> Recoverer<'a> {
    fn new(files: &'a LogFiles, geometry: Geometry, clock: &'a Clock) -> Recoverer<'a> {
        Recoverer { files, geometry, clock, meta: files.meta.get() }
    }

    fn survey(&self) -> Survey<'_> {
        let (disk, dir) = (&*self.files.disk, &*self.files.dir);
        Survey { disk, dir, geometry: self.geometry, log_id: self.meta.log_id }
    }

    fn run(&self, options: &Options, fresh: bool) -> Result<Unowned> {
        let ring = Ring::new(options, self.geometry, 0, Lsn::ZERO)?;
        // First of all: the system finds the memory while the disk is read.
        ring.touch(false);
        let survey = self.survey();
        let (numbers, others) = survey.list()?;
        let first = self.geometry.segment_of(self.meta.log_start);
        let kept: Vec<u64> = numbers.iter().copied().filter(|&n| n >= first).collect();
        for (i, &number) in kept.iter().enumerate() {
            if number != first + i as u64 {
                return Err(survey.missing(first + i as u64));
            }
        }
        // The newest first: those without a footer are read as a whole, which takes longest.
        let newest_first: Vec<u64> = kept.iter().rev().copied().collect();
        let ahead_bytes = AtomicU64::new(limits::OPEN_AHEAD_BYTES);
        let look = |&number: &u64| self.look(number, &ahead_bytes);
        let seen = at_once(&*self.files.disk, &newest_first, look);
        let seen = seen.into_iter().rev().collect::<Result<Vec<_>>>()?;
        let State { complete, tail, prepared } = self.read(first, seen, &ring)?;
        // From here on things are written: all that can be refused without, was.
        self.remove_leftovers(&numbers, first, &others)?;
        let meta = &self.meta;
        let catalogue = Arc::new(Catalogue::new(self.geometry, meta.log_start, meta.log_start_lsn));
        let place = (Arc::clone(&self.files.disk), &*self.files.dir);
        let (id, clock) = (meta.log_id, self.clock.clone());
        let open = tail.found.number;
        let segments = Segments::new(place, self.geometry, id, clock, catalogue, open);
        let mut recovery = Recovery { segments: complete.len() as u64, ..Recovery::default() };
        for segment in complete {
            match segment {
                Complete::Sealed(sealed) => segments.catalogue().add(sealed),
                Complete::Rolled(open) => segments.seal(&open, false)?,
            }
        }
        for (number, prepared) in prepared {
            segments.adopt(number, prepared);
        }
        let (active, ended) = self.settle(&segments, tail, &mut recovery)?;
        if fresh {
            tracing::info!(dir = %self.files.dir.display(), log = %meta.log_id, "created the log");
        }
        self.finish(ring, segments, active, ended, recovery)
    }

    fn remove_leftovers(&self, numbers: &[u64], first: u64, others: &[String]) -> Result<()> {
        let dir = self.files.dir.join("segments");
        let below = numbers.iter().filter(|&&n| n < first);
        let deleted = below.map(|&n| segment_path(&self.files.dir, &self.geometry, n));
        let unfinished =
            others.iter().filter(|name| name.ends_with(".tmp")).map(|name| dir.join(name));
        for path in deleted.chain(unfinished) {
            self.files
                .disk
                .remove(&path)
                .map_err(|e| Error::io("cannot remove a leftover", &path, e))?;
        }
        Ok(())
    }

    fn open_file(&self, found: &Found) -> Result<Arc<dyn DiskFile>> {
        // Sealed files are read-only: one whose footer is damaged may need a repair to be written.
        let failed = |e| Error::io("cannot open a segment", &found.path, e).advise(REPAIR);
        let mode = OpenMode { write: true, create: false, direct: true };
        let file = self.files.disk.open(&found.path, mode).map_err(failed)?;
        if !file.is_direct() {
            // What a killed process left in the cache need not be what is on disk.
            file.drop_cache(0, self.geometry.segment_bytes).map_err(failed)?;
        }
        Ok(file)
    }

    fn walker<'b>(&'b self, found: &'b Found, file: &'b dyn DiskFile) -> Walker<'b> {
        let (number, salt, path) = (found.number, found.salt, &*found.path);
        Walker { geometry: &self.geometry, number, salt, path, file, ahead: &[] }
    }

    /// What the first segment kept must continue.
    fn chain_at_start(&self, found: Option<&Found>) -> Chain {
        let start = Chain::start(self.meta.log_start_lsn);
        match found.and_then(|first| first.first_block) {
            // What came before it went with what retention deleted.
            Some(block) if self.meta.log_start > 0 => Chain { crc: block.prev_crc, ..start },
            _ => start,
        }
    }

    /// Looks at a segment; at all of it, if it seems that nothing was ever written to it. One that
    /// will be walked is read, as long as there is room for that: the disk answers others
    /// meanwhile.
    fn look(&self, number: u64, ahead_bytes: &AtomicU64) -> Result<Seen> {
        let found = self.survey().look(number)?;
        let (mut unwritten, mut ahead) = (None, None);
        if found.footer.is_some() {
            return Ok(Seen { found, unwritten, ahead });
        }
        let bytes = self.geometry.segment_bytes;
        // Relaxed: a sum of sizes, nothing else is told by it.
        let take = || {
            let relaxed = Ordering::Relaxed;
            ahead_bytes.fetch_update(relaxed, relaxed, |left| left.checked_sub(bytes)).is_ok()
        };
        if found.first_block.is_none() {
            unwritten = Some(self.read_behind_header(&found)?);
        } else if take() {
            let file = self.open_file(&found)?;
            let slabs = self.walker(&found, &*file).read_ahead()?;
            ahead = Some((file, slabs));
        }
        Ok(Seen { found, unwritten, ahead })
    }

    fn read_behind_header(&self, found: &Found) -> Result<(Arc<dyn DiskFile>, Rest)> {
        let file = self.open_file(found)?;
        let rest = self.walker(found, &*file).rest(self.geometry.head_bytes)?;
        Ok((file, rest))
    }

    /// Follows the chain through all segments, oldest first. Those without a footer are walked.
    /// What was walked is in the ring then.
    fn read(&self, first: u64, seen: Vec<Seen>, ring: &Ring) -> Result<State> {
        let survey = self.survey();
        let mut chain = self.chain_at_start(seen.first().map(|seen| &seen.found));
        let mut complete = Vec::new();
        let mut seen = seen.into_iter();
        loop {
            let missing = || survey.missing(first + complete.len() as u64);
            let Seen { found: found_next, unwritten, ahead } = seen.next().ok_or_else(missing)?;
            survey.check_joint(&chain, &found_next)?;
            if let Some(footer) = &found_next.footer {
                chain = Chain::behind(footer);
                complete.push(Complete::Sealed(Sealed::new(found_next.path, footer)));
                continue;
            }
            // What is synced below is the very file that was read: an error of its writes is told.
            let (file, ahead) = match ahead {
                Some(read) => read,
                None => (self.open_file(&found_next)?, Vec::new()),
            };
            let keep = |slab, bytes: &[u8]| load(ring, slab, bytes);
            let walker = Walker { ahead: &ahead, ..self.walker(&found_next, &*file) };
            let walked = walker.walk(chain, |_, _| {}, keep)?;
            if !planted(Bug::TrustsTheCache) {
                file.sync_data().map_err(|e| {
                    Error::io("cannot make durable what recovery read", &found_next.path, e)
                })?;
            }
            if walked.rolled {
                chain = walked.chain;
                complete.push(Complete::Rolled(self.open_segment(found_next, file, walked)));
                continue;
            }
            self.make_last_footer_durable(complete.last())?;
            let rest = match unwritten {
                Some((_, rest)) => rest,
                None if walked.blank => Rest::default(),
                None => walker.rest(walked.end)?,
            };
            let tail = Tail { found: found_next, file, walked, rest };
            self.judge(&tail)?;
            let prepared = seen.map(|seen| self.check_prepared(&tail, seen));
            let prepared = prepared.collect::<Result<_>>()?;
            return Ok(State { complete, tail, prepared });
        }
    }

    /// Of a segment sealed over a torn write, the footer alone says that it ends, and a killed
    /// process may have left it in a cache. Each opening makes the newest one durable, so the
    /// older ones are.
    fn make_last_footer_durable(&self, last: Option<&Complete>) -> Result<()> {
        let Some(Complete::Sealed(sealed)) = last else { return Ok(()) };
        let mode = OpenMode { write: false, create: false, direct: false };
        let file = self.files.disk.open(&sealed.path, mode);
        file.and_then(|file| file.sync_data())
            .map_err(|e| Error::io("cannot make a footer durable", &sealed.path, e))
    }

    fn open_segment(&self, found: Found, file: Arc<dyn DiskFile>, walked: Walked) -> OpenSegment {
        let place = (found.number, found.path, file);
        OpenSegment::with_index(&self.geometry, place, found.salt, walked.index)
    }

    fn corrupt(&self, tail: &Tail, what: &str, last_lsn: u64) -> Error {
        let next = tail.walked.chain.next_lsn;
        Error::new(ErrorKind::Corrupt, what)
            .at_path(&tail.found.path)
            .at_segment(tail.found.number, tail.walked.end)
            .at_lsns(Lsn::new(next), Lsn::new(last_lsn.max(next)))
            .advise(REPAIR)
    }

    /// Damage, or a torn write that nobody was told about?
    fn judge(&self, tail: &Tail) -> Result<()> {
        if planted(Bug::StopsAtFirstBadBlock) {
            return Ok(());
        }
        let bad = self.geometry.segment_start(tail.found.number) + tail.walked.end;
        if tail.rest.vouched > bad {
            let last = tail.rest.last_lsn;
            return Err(self.corrupt(tail, "a committed block is damaged", last));
        }
        let walker = self.walker(&tail.found, &*tail.file);
        if tail.rest.nonzero_bytes > 0 && !walker.looks_torn(tail.walked.end)? {
            return Err(self.corrupt(tail, "a block is damaged, not torn by a crash", 0));
        }
        Ok(())
    }

    /// A segment behind the tail: prepared, and without a block, or something is wrong.
    fn check_prepared(&self, tail: &Tail, seen: Seen) -> Result<(u64, Prepared)> {
        let Seen { found, unwritten, .. } = seen;
        let (file, rest) = unwritten.map_or_else(|| self.read_behind_header(&found), Ok)?;
        if rest.good_blocks > 0 || found.footer.is_some() {
            let what = "blocks follow in the next segment, but this one does not end";
            return Err(self.corrupt(tail, what, rest.last_lsn));
        }
        if rest.nonzero_bytes > 0 {
            let what = "a segment that was never written to holds bytes";
            return Err(Error::new(ErrorKind::Corrupt, what)
                .at_path(&found.path)
                .at_segment(found.number, self.geometry.head_bytes)
                .advise(REPAIR));
        }
        let Found { number, path, salt, .. } = found;
        Ok((number, Prepared { path, file, salt }))
    }

    /// Appending continues at the end of the tail, or, over a torn write, in the next segment.
    fn settle(
        &self,
        segments: &Segments,
        tail: Tail,
        recovery: &mut Recovery,
    ) -> Result<(Arc<OpenSegment>, Ended)> {
        let Tail { found, file, walked, rest } = tail;
        let (number, chain) = (found.number, walked.chain);
        let mut ended = Ended {
            position: self.geometry.segment_start(number) + walked.end,
            chain,
            unvouched: walked.unvouched,
        };
        recovery.torn_bytes = rest.nonzero_bytes;
        recovery.segments += u64::from(walked.records > 0);
        let offset = walked.end;
        let open = self.open_segment(found, file, walked);
        if rest.nonzero_bytes == 0 {
            return Ok((Arc::new(open), ended));
        }
        let next = number + 1;
        if !segments.is_prepared(next) {
            let prepared = segments.prepare(next)?;
            segments.adopt(next, prepared);
        }
        segments.seal(&open, true)?;
        segments.activate(next);
        tracing::warn!(
            segment = number,
            offset,
            bytes = rest.nonzero_bytes,
            "sealed a segment over a torn write that was never acknowledged"
        );
        ended.position = self.geometry.segment_start(next) + self.geometry.head_bytes;
        Ok((segments.take_prepared(next, (chain.next_lsn, chain.crc))?, ended))
    }

    /// Puts the pieces together.
    fn finish(
        &self,
        ring: Ring,
        segments: Segments,
        active: Arc<OpenSegment>,
        ended: Ended,
        recovery: Recovery,
    ) -> Result<Unowned> {
        let geometry = self.geometry;
        let next_lsn = Lsn::new(ended.chain.next_lsn);
        let last_lsn = next_lsn.previous();
        let current = geometry.slab_of(ended.position);
        if let Some(slab) = ring.get(current) {
            // It goes on: its end is stored when the next one is entered.
            slab.end_at(geometry.slab_bytes as usize);
        }
        ring.publish(ended.position, last_lsn);
        let first_lsn = Lsn::new(self.meta.log_start_lsn);
        let recovery =
            Recovery { records: next_lsn.get() - first_lsn.get(), first_lsn, last_lsn, ..recovery };
        let catalogue = Arc::clone(segments.catalogue());
        catalogue.open_segment(Arc::clone(&active));
        let chain = ended.chain;
        let committer = Committer::new(
            Arc::clone(&self.files.disk),
            Arc::clone(&self.files.lock),
            catalogue,
            active,
            (ended.position, chain.crc, chain.time_nanos),
            ended.unvouched,
        );
        Ok(Unowned {
            ring: Arc::new(ring),
            segments: Arc::new(segments),
            committer,
            offset: geometry.slab_offset(ended.position),
            next_lsn,
            recovery,
        })
    }
}

/// Puts a slab that was walked into the ring.
fn load(ring: &Ring, slab: u64, bytes: &[u8]) -> Result<()> {
    let memory = ring
        .open_slab(slab)
        .ok_or_else(|| Error::new(ErrorKind::Busy, "no memory for the newest segment"))?;
    // SAFETY: nobody else has the ring yet.
    unsafe { memory.bytes_mut(0, bytes.len()) }.copy_from_slice(bytes);
    memory.end_at(bytes.len());
    Ok(())
}

/// Where the log goes on.
struct Ended {
    position: u64,
    chain: Chain,
    /// The last block has records, and no later one says that it is durable.
    unvouched: bool,
}
