//! Whose directory it is, and the first files of a new log.

use std::path::Path;
use std::sync::Arc;

use super::catalogue::Catalogue;
use super::meta::MetaFile;
use super::recovery::LogFiles;
use super::segments::{Segments, random_u64};
use super::survey::REPAIR;
use crate::disk::{AlignedBuf, Disk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{LogId, Meta, PAGE_BYTES, is_zero};
use crate::lsn::Geometry;
use crate::sync::Clock;

/// How much of a file is read at once.
const PIECE_BYTES: usize = 256 << 10;

/// Whether `dir` holds a log; false if it is empty or missing; an error if it holds something else.
pub(super) fn is_log(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    let entries = match disk.list(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::new(ErrorKind::NotALog, "not a directory").at_path(dir));
        }
        Err(e) => return Err(Error::io("cannot list the log's directory", dir, e)),
    };
    let has = |name: &str| entries.iter().any(|entry| entry == name);
    let ours = ["LOCK", "segments", "meta", "meta.tmp", "checkpoints", "checkpoints.tmp", "cut"];
    if has("segments") && (has("meta") || entries.iter().all(|entry| ours.contains(&&**entry))) {
        return Ok(true);
    }
    if has("meta") {
        // Says whether it is a meta file of ours.
        MetaFile::open(disk, dir, false)?;
        return Err(Error::new(ErrorKind::MissingSegment, "the log's segments are gone")
            .at_path(&dir.join("segments")));
    }
    match entries.iter().find(|entry| !ours.contains(&&***entry)) {
        Some(other) => Err(Error::new(ErrorKind::NotALog, "the directory holds something else")
            .at_path(&dir.join(other))),
        None => Ok(false),
    }
}

pub(super) fn open_or_create_meta(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    geometry: Geometry,
    clock: &Clock,
) -> Result<(MetaFile, bool)> {
    let io = |e| Error::io("cannot list the log's directory", dir, e);
    if disk.list(dir).map_err(io)?.iter().any(|name| name == "meta") {
        let meta = MetaFile::open(&**disk, dir, true)?;
        make_found_durable(&**disk, dir, &meta)?;
        return Ok((meta, false));
    }
    refuse_orphans(&**disk, dir)?;
    make_path_durable(&**disk, dir)?;
    let mut id = [0; 16];
    id[..8].copy_from_slice(&random_u64(&**disk)?.to_le_bytes());
    id[8..].copy_from_slice(&random_u64(&**disk)?.to_le_bytes());
    let log_id = LogId(id);
    let catalogue = Arc::new(Catalogue::new(geometry, 0, 1));
    let place = (Arc::clone(disk), dir);
    let segments = Segments::new(place, geometry, log_id, clock.clone(), catalogue, 0);
    // Segment 0 first: a meta file promises that its first segment is there.
    segments.prepare(0)?;
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

/// What a killed process left in a cache is not yet durable: neither names nor the newer slot of
/// `meta`, on which all that follows is built.
fn make_found_durable(disk: &dyn Disk, dir: &Path, meta: &MetaFile) -> Result<()> {
    meta.sync()?;
    for dir in [dir, &dir.join("segments")] {
        disk.sync_dir(dir).map_err(|e| Error::io("cannot sync the log's directory", dir, e))?;
    }
    Ok(())
}

/// The directories on the way to a new log may be as new as the log; and the name of `segments`
/// must not become durable after that of `meta`, which promises it.
fn make_path_durable(disk: &dyn Disk, dir: &Path) -> Result<()> {
    for parent in dir.ancestors() {
        let here = parent.as_os_str().is_empty();
        let parent = if here { Path::new(".") } else { parent };
        match disk.sync_dir(parent) {
            // What we may not even open, we did not make.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {}
            // Nor where there is nothing to sync, as in an image that is mounted to be read.
            Err(e) if parent != dir && e.kind() == std::io::ErrorKind::InvalidInput => {}
            Err(e) => return Err(Error::io("cannot sync a directory", parent, e)),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Without `meta`, segments that hold anything behind their header are somebody's data; empty ones
/// are an unfinished creation, which is begun anew.
fn refuse_orphans(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let segments = dir.join("segments");
    let io = |e| Error::io("cannot list the segments", &segments, e);
    for name in disk.list(&segments).map_err(io)? {
        let path = segments.join(&name);
        let failed = |e| Error::io("cannot read a segment", &path, e);
        let mode = OpenMode { write: false, create: false, direct: false };
        let file = disk.open(&path, mode).map_err(failed)?;
        let mut piece = AlignedBuf::zeroed(PIECE_BYTES);
        let mut offset = PAGE_BYTES;
        while offset < file.len().map_err(failed)? {
            let read = file.read_at(&mut piece, offset).map_err(failed)?;
            if !is_zero(&piece[..read]) {
                return Err(Error::new(ErrorKind::Corrupt, "there are segments, but no meta file")
                    .at_path(&MetaFile::path(dir))
                    .advise(REPAIR));
            }
            offset += PIECE_BYTES as u64;
        }
    }
    for name in disk.list(&segments).map_err(io)? {
        disk.remove(&segments.join(&name)).map_err(io)?;
    }
    Ok(())
}

pub(super) fn check_sizes(files: &LogFiles, geometry: &Geometry) -> Result<()> {
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
