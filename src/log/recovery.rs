//! Opening a log: what is there, whether it is whole, where to go on.
//!
//! Recovery believes checksums and chains, never lengths or times, and never guesses: what was
//! acknowledged is there afterwards, or `open` fails naming what is damaged, and nothing on disk has
//! changed. It may run any number of times, also over its own half-done work.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::catalogue::{Catalogue, OpenSegment, Sealed};
use super::committer::Committer;
use super::meta::MetaFile;
use super::segments::{Prepared, Segments, random_u64, segment_path};
use super::walk::{Chain, Rest, Walked, Walker};
use crate::disk::{Disk, DiskFile, DiskLock, Entry, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    BLOCK_HEADER_BYTES, BlockHeader, Footer, FormatError, LogId, Meta, PAGE_BYTES, SegmentHeader,
    footer_bytes,
};
use crate::lsn::{Geometry, Lsn};
use crate::options::Options;
use crate::ring::Ring;
use crate::sync::Clock;

const REPAIR: &str = "nothing was changed; `eventplane verify DIR` lists the damage, `eventplane \
                      repair DIR` shows what cutting there would lose";

/// What opening the log found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// Segment files that hold records.
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

/// Opens or creates the log in `dir`.
pub(crate) fn open_log(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: &Options,
    geometry: Geometry,
    clock: &Clock,
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
    let (meta, fresh) = open_or_create_meta(&disk, dir, geometry, clock)?;
    let files = LogFiles { disk, dir: dir.to_owned(), lock, meta };
    check_sizes(&files, &geometry)?;
    let mut opened = Recoverer::new(&files, geometry, clock).run(options, fresh)?;
    opened.recovery.duration = Duration::from_nanos(clock.now() - begun);
    Ok(opened.with(files))
}

/// Whether `dir` holds a log; false if it is empty or missing; an error if it holds something else.
fn is_log(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    let entries = match disk.list(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::new(ErrorKind::NotALog, "not a directory").at_path(dir));
        }
        Err(e) => return Err(Error::io("cannot list the log's directory", dir, e)),
    };
    let has = |name: &str| entries.iter().any(|e| e.name == name);
    let ours = ["LOCK", "segments", "meta", "meta.tmp"];
    if has("segments") && (has("meta") || entries.iter().all(|e| ours.contains(&&*e.name))) {
        return Ok(true);
    }
    if has("meta") {
        // Says whether it is a meta file of ours.
        MetaFile::open(disk, dir, false)?;
        return Err(Error::new(ErrorKind::MissingSegment, "the log's segments are gone")
            .at_path(&dir.join("segments")));
    }
    match entries.iter().find(|e| !ours.contains(&&*e.name)) {
        Some(other) => Err(Error::new(ErrorKind::NotALog, "the directory holds something else")
            .at_path(&dir.join(&other.name))),
        None => Ok(false),
    }
}

fn open_or_create_meta(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    geometry: Geometry,
    clock: &Clock,
) -> Result<(MetaFile, bool)> {
    let io = |e| Error::io("cannot list the log's directory", dir, e);
    if disk.list(dir).map_err(io)?.iter().any(|e| e.name == "meta") {
        return Ok((MetaFile::open(&**disk, dir, true)?, false));
    }
    refuse_orphans(&**disk, dir)?;
    let mut id = [0; 16];
    id[..8].copy_from_slice(&random_u64()?.to_le_bytes());
    id[8..].copy_from_slice(&random_u64()?.to_le_bytes());
    let log_id = LogId(id);
    let catalogue = Arc::new(Catalogue::new(geometry, 0, 1));
    let place = (Arc::clone(disk), dir);
    let segments = Segments::new(place, geometry, log_id, clock.clone(), catalogue, 0);
    // Segment 0 first: a meta file promises that its first segment is there.
    segments.prepare(0, true)?;
    let meta = Meta {
        sequence: 0,
        log_id,
        generation: 0,
        slab_bytes: geometry.slab_bytes,
        segment_bytes: geometry.segment_bytes,
        log_start: 0,
        log_start_lsn: 1,
    };
    Ok((MetaFile::create(&**disk, dir, meta)?, true))
}

/// Without `meta`, segments that hold blocks are somebody's data; empty ones are an unfinished
/// creation, which is begun anew.
fn refuse_orphans(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let segments = dir.join("segments");
    let io = |e| Error::io("cannot list the segments", &segments, e);
    for entry in disk.list(&segments).map_err(io)? {
        let path = segments.join(&entry.name);
        let failed = |e| Error::io("cannot read a segment", &path, e);
        let mode = OpenMode { write: false, create: false, direct: false };
        let file = disk.open(&path, mode).map_err(failed)?;
        let mut head = vec![0; PAGE_BYTES as usize + BLOCK_HEADER_BYTES];
        let read = file.read_at(&mut head, 0).map_err(failed)?;
        if read == head.len() && head[PAGE_BYTES as usize..].iter().any(|&b| b != 0) {
            return Err(Error::new(ErrorKind::Corrupt, "there are segments, but no meta file")
                .at_path(&MetaFile::path(dir))
                .advise(REPAIR));
        }
    }
    for entry in disk.list(&segments).map_err(io)? {
        disk.remove(&segments.join(&entry.name)).map_err(io)?;
    }
    Ok(())
}

fn check_sizes(files: &LogFiles, geometry: &Geometry) -> Result<()> {
    let meta = files.meta.get();
    for (name, stored, asked) in [
        ("slab_bytes", meta.slab_bytes, geometry.slab_bytes),
        ("segment_bytes", meta.segment_bytes, geometry.segment_bytes),
    ] {
        if stored != asked {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!("the log was created with {name} {stored}, opened with {asked}"),
            )
            .at_path(&files.dir));
        }
    }
    Ok(())
}

/// A segment file as the listing and its header describe it.
pub(crate) struct Found {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) salt: u64,
    pub(crate) footer: Option<Footer>,
    /// The first block's header as it lies there, unchecked.
    first_block: Option<BlockHeader>,
}

/// Reads and checks headers and footers of the segments of a log.
pub(crate) struct Survey<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) dir: &'a Path,
    pub(crate) geometry: Geometry,
    pub(crate) log_id: LogId,
}

impl Survey<'_> {
    fn path(&self, number: u64) -> PathBuf {
        segment_path(self.dir, &self.geometry, number)
    }

    /// Numbers of the segment files in order, and what else lies there.
    pub(crate) fn list(&self) -> Result<(Vec<u64>, Vec<Entry>)> {
        let dir = self.dir.join("segments");
        let entries = self.disk.list(&dir);
        let entries = entries.map_err(|e| Error::io("cannot list the segments", &dir, e))?;
        let mut numbers = Vec::new();
        let mut others = Vec::new();
        for entry in entries {
            let position = entry.name.strip_suffix(".log").and_then(|n| n.parse::<u64>().ok());
            match position.filter(|p| p.is_multiple_of(self.geometry.segment_bytes)) {
                Some(position) => numbers.push(self.geometry.segment_of(position)),
                None => others.push(entry),
            }
        }
        numbers.sort_unstable();
        Ok((numbers, others))
    }

    /// Header, footer and first block of one segment.
    pub(crate) fn look(&self, number: u64) -> Result<Found> {
        let path = self.path(number);
        let failed = |e| Error::io("cannot read a segment", &path, e).at_segment(number, 0);
        let mode = OpenMode { write: false, create: false, direct: false };
        let file = self.disk.open(&path, mode).map_err(failed)?;
        let damaged = |what: String, offset| {
            Error::new(ErrorKind::Corrupt, what)
                .at_path(&path)
                .at_segment(number, offset)
                .advise(REPAIR)
        };
        let bytes = self.geometry.segment_bytes;
        let len = file.len().map_err(failed)?;
        if len != bytes {
            return Err(damaged(format!("a segment of {bytes} bytes has {len}"), len.min(bytes)));
        }
        let mut head = vec![0; PAGE_BYTES as usize + BLOCK_HEADER_BYTES];
        file.read_at(&mut head, 0).map_err(failed)?;
        let (page, first) = head.split_at(PAGE_BYTES as usize);
        let header = SegmentHeader::decode(page).map_err(|error| match error {
            FormatError::Version(_) | FormatError::RequiredFeatures(_) => {
                Error::new(ErrorKind::Unsupported, "this build cannot read the segment")
                    .at_path(&path)
                    .at_segment(number, 0)
                    .because(error)
            }
            other => damaged("the segment's header is damaged".into(), 0).because(other),
        })?;
        if header.log_id != self.log_id {
            let what = format!("the segment belongs to log {}, not {}", header.log_id, self.log_id);
            return Err(Error::new(ErrorKind::ForeignSegment, what)
                .at_path(&path)
                .at_segment(number, 0));
        }
        if header.number != number || header.segment_bytes != bytes {
            return Err(damaged(format!("the file holds segment {}", header.number), 0));
        }
        let footer_bytes = footer_bytes(bytes);
        let mut region = vec![0; footer_bytes as usize];
        file.read_at(&mut region, bytes - footer_bytes).map_err(failed)?;
        // A footer that is not whole was being written when the process died, or is damaged: the
        // blocks decide, and it is written anew.
        let footer = Footer::decode(&region, number, header.salt()).unwrap_or(None);
        let first_block = BlockHeader::read(first);
        Ok(Found { number, path, salt: header.salt(), footer, first_block })
    }

    pub(crate) fn missing(&self, number: u64) -> Error {
        Error::new(ErrorKind::MissingSegment, "a segment is missing")
            .at_path(&self.path(number))
            .at_segment(number, 0)
            .advise(REPAIR)
    }

    /// A sealed segment must be continued by the one after it.
    pub(crate) fn check_joint(&self, sealed: &Found, footer: &Footer, next: &Found) -> Result<()> {
        let Some(first) = next.first_block else {
            return Ok(());
        };
        let continues = first.prev_crc == footer.last_crc && first.first_lsn == footer.last_lsn + 1;
        if first.salt == next.salt && !continues {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the segment does not continue segment {}", sealed.number),
            )
            .at_path(&next.path)
            .at_segment(next.number, self.geometry.head_bytes)
            .at_lsns(Lsn::new(footer.last_lsn + 1), Lsn::new(first.first_lsn))
            .advise(REPAIR));
        }
        Ok(())
    }
}

/// How the walk over the unsealed segments ended.
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
        let survey = self.survey();
        let (numbers, others) = survey.list()?;
        let first = self.geometry.segment_of(self.meta.log_start);
        let kept: Vec<u64> = numbers.iter().copied().filter(|&n| n >= first).collect();
        for (i, &number) in kept.iter().enumerate() {
            if number != first + i as u64 {
                return Err(survey.missing(first + i as u64));
            }
        }
        if kept.is_empty() {
            return Err(survey.missing(first));
        }
        let mut found = kept.iter().map(|&n| survey.look(n)).collect::<Result<Vec<_>>>()?;
        let sealed = self.sealed_prefix(&survey, &found)?;
        let unsealed = found.split_off(sealed.len());
        let Some(open) = unsealed.first().map(|f| f.number) else {
            return Err(survey.missing(first + sealed.len() as u64));
        };
        let chain =
            sealed.last().map_or(Chain::start(self.meta.log_start_lsn), |(_, footer)| Chain {
                next_lsn: footer.last_lsn + 1,
                crc: footer.last_crc,
                time_nanos: footer.last_time_nanos,
            });
        // The chain that the first kept segment continues went with what retention deleted.
        let chain = match (&sealed.last(), unsealed[0].first_block) {
            (None, Some(block)) => Chain { crc: block.prev_crc, ..chain },
            _ => chain,
        };
        // From here on things may be written: all that can be refused without, was.
        self.remove_leftovers(&numbers, first, &others)?;
        let meta = &self.meta;
        let catalogue = Arc::new(Catalogue::new(self.geometry, meta.log_start, meta.log_start_lsn));
        for (path, footer) in &sealed {
            catalogue.seal(Sealed::new(path.clone(), footer));
        }
        let place = (Arc::clone(&self.files.disk), &*self.files.dir);
        let (id, clock) = (meta.log_id, self.clock.clone());
        let segments = Segments::new(place, self.geometry, id, clock, catalogue, open);
        let tail = self.walk_unsealed(&segments, unsealed, chain)?;
        let mut recovery = Recovery { segments: kept.len() as u64, ..Recovery::default() };
        let (active, walked) = self.settle(&segments, tail, &mut recovery)?;
        if fresh {
            tracing::info!(dir = %self.files.dir.display(), log = %meta.log_id, "created the log");
        }
        self.finish(options, segments, active, walked, recovery)
    }

    /// The sealed segments from the first on, each continued by the next.
    fn sealed_prefix(
        &self,
        survey: &Survey<'_>,
        found: &[Found],
    ) -> Result<Vec<(PathBuf, Footer)>> {
        let mut sealed = Vec::new();
        for (i, segment) in found.iter().enumerate() {
            let Some(footer) = &segment.footer else { break };
            let next = found.get(i + 1).ok_or_else(|| survey.missing(segment.number + 1))?;
            survey.check_joint(segment, footer, next)?;
            sealed.push((segment.path.clone(), footer.clone()));
        }
        Ok(sealed)
    }

    fn remove_leftovers(&self, numbers: &[u64], first: u64, others: &[Entry]) -> Result<()> {
        let dir = self.files.dir.join("segments");
        let below = numbers.iter().filter(|&&n| n < first);
        let deleted = below.map(|&n| segment_path(&self.files.dir, &self.geometry, n));
        let unfinished =
            others.iter().filter(|e| e.name.ends_with(".tmp")).map(|e| dir.join(&e.name));
        for path in deleted.chain(unfinished) {
            self.files
                .disk
                .remove(&path)
                .map_err(|e| Error::io("cannot remove a leftover", &path, e))?;
        }
        Ok(())
    }

    fn open_file(&self, found: &Found) -> Result<Arc<dyn DiskFile>> {
        let failed = |e| Error::io("cannot open a segment", &found.path, e);
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
        Walker { geometry: &self.geometry, number, salt, path, file }
    }

    /// Walks the unsealed segments oldest first; completed ones are sealed, the last is returned
    /// with the prepared ones behind it adopted.
    fn walk_unsealed(
        &self,
        segments: &Segments,
        unsealed: Vec<Found>,
        mut chain: Chain,
    ) -> Result<Tail> {
        let mut rest_of_list = unsealed.into_iter();
        loop {
            let Some(found) = rest_of_list.next() else {
                return Err(self.survey().missing(segments.active()));
            };
            let file = self.open_file(&found)?;
            let walked = self.walker(&found, &*file).walk(chain, |_, _| {})?;
            file.sync_data()
                .map_err(|e| Error::io("cannot make durable what recovery read", &found.path, e))?;
            if walked.rolled {
                chain = walked.chain;
                let place = (found.number, found.path, file);
                let first_lsn = chain.next_lsn - walked.records;
                let open = OpenSegment::with_index(
                    &self.geometry,
                    place,
                    found.salt,
                    first_lsn,
                    walked.index,
                );
                segments.seal(&open, false)?;
                segments.activate(open.number + 1);
                continue;
            }
            let rest = self.walker(&found, &*file).rest(walked.end)?;
            let tail = Tail { found, file, walked, rest };
            self.judge(&tail)?;
            for found in rest_of_list {
                self.adopt(segments, &tail, found)?;
            }
            return Ok(tail);
        }
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

    /// A segment behind the active one: prepared, and without a block, or something is wrong.
    fn adopt(&self, segments: &Segments, tail: &Tail, found: Found) -> Result<()> {
        let file = self.open_file(&found)?;
        let rest = self.walker(&found, &*file).rest(self.geometry.head_bytes)?;
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
        segments.adopt(number, Prepared { path, file, salt });
        Ok(())
    }

    /// Appending continues at the end of the tail, or, over a torn write, in the next segment.
    fn settle(
        &self,
        segments: &Segments,
        tail: Tail,
        recovery: &mut Recovery,
    ) -> Result<(Arc<OpenSegment>, Ended)> {
        let Tail { found, file, walked, rest } = tail;
        let mut ended = Ended {
            position: self.geometry.segment_start(found.number) + walked.end,
            chain: walked.chain,
        };
        let first_lsn = walked.chain.next_lsn - walked.records;
        let place = (found.number, found.path, file);
        let mut open = Arc::new(OpenSegment::with_index(
            &self.geometry,
            place,
            found.salt,
            first_lsn,
            walked.index,
        ));
        recovery.torn_bytes = rest.nonzero_bytes;
        if rest.nonzero_bytes > 0 {
            let next = found.number + 1;
            if !segments.is_prepared(next) {
                let prepared = segments.prepare(next, true)?;
                segments.adopt(next, prepared);
            }
            segments.seal(&open, true)?;
            segments.activate(next);
            tracing::warn!(
                segment = found.number,
                offset = walked.end,
                bytes = rest.nonzero_bytes,
                "sealed a segment over a torn write that was never acknowledged"
            );
            open = segments.take_prepared(next, (ended.chain.next_lsn, ended.chain.crc))?;
            ended.position = self.geometry.segment_start(next) + self.geometry.head_bytes;
        }
        Ok((open, ended))
    }

    /// Loads the active segment into the ring and puts the pieces together.
    fn finish(
        &self,
        options: &Options,
        segments: Segments,
        active: Arc<OpenSegment>,
        ended: Ended,
        recovery: Recovery,
    ) -> Result<Unowned> {
        let geometry = self.geometry;
        let next_lsn = Lsn::new(ended.chain.next_lsn);
        let last_lsn = next_lsn.previous();
        let ring = Ring::new(options, geometry, ended.position, last_lsn)?;
        let first_slab = geometry.slab_of(geometry.segment_start(active.number));
        let mut last = ended.position;
        // A block may end exactly where its slab does: the slab behind is opened by the log.
        if geometry.slab_offset(last) == 0 && geometry.slab_of(last) > first_slab {
            last -= 1;
        }
        let footer = active.footer(false);
        for slab in first_slab..=geometry.slab_of(last) {
            let memory = ring
                .open_slab(slab)
                .ok_or_else(|| Error::new(ErrorKind::Busy, "no memory for the newest segment"))?;
            let offset = geometry.segment_offset(geometry.slab_start(slab));
            // SAFETY: nobody else has the ring yet.
            let bytes = unsafe { memory.bytes_mut(0, geometry.slab_bytes as usize) };
            active
                .file
                .read_at(bytes, offset)
                .map_err(|e| Error::io("cannot load the newest segment", &active.path, e))?;
            if slab < geometry.slab_of(last) {
                let end = footer.slab_ends.get((slab - first_slab) as usize).copied();
                memory.end_at(end.unwrap_or(0) as usize);
            }
        }
        ring.start_at(first_slab);
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

/// Where the log goes on.
struct Ended {
    position: u64,
    chain: Chain,
}
