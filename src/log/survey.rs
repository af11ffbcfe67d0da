//! What segment files there are, and what their headers and footers say: read, checked, not
//! changed.

use std::path::{Path, PathBuf};

use super::segments::segment_path;
use super::walk::Chain;
use crate::disk::{AlignedBuf, Disk, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    BlockHeader, Footer, FormatError, LogId, NUMBER_END, PAGE_BYTES, SegmentHeader, footer_bytes,
};
use crate::lsn::{Geometry, Lsn};

pub(super) const REPAIR: &str = "nothing was changed; `eventplane verify DIR` lists the damage, \
                                 `eventplane repair DIR` shows what cutting there would lose";
/// `{first position, 20 digits}.log`
const NAME_BYTES: usize = 24;

/// A segment file as the listing and its header describe it.
pub(crate) struct Found {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) salt: u64,
    pub(crate) footer: Option<Footer>,
    /// The first block's header as it lies there, unchecked.
    pub(crate) first_block: Option<BlockHeader>,
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
    pub(crate) fn list(&self) -> Result<(Vec<u64>, Vec<String>)> {
        let dir = self.dir.join("segments");
        let names = self.disk.list(&dir);
        let names = names.map_err(|e| Error::io("cannot list the segments", &dir, e))?;
        let mut numbers = Vec::new();
        let mut others = Vec::new();
        for name in names {
            let ours = Some(&*name).filter(|name| name.len() == NAME_BYTES);
            let position = ours.and_then(|n| n.strip_suffix(".log")?.parse::<u64>().ok());
            let is_start =
                |p: &u64| *p < NUMBER_END && p.is_multiple_of(self.geometry.segment_bytes);
            match position.filter(is_start) {
                Some(position) => numbers.push(self.geometry.segment_of(position)),
                None => others.push(name),
            }
        }
        numbers.sort_unstable();
        Ok((numbers, others))
    }

    /// Header, footer and first block of one segment.
    pub(crate) fn look(&self, number: u64) -> Result<Found> {
        let path = self.path(number);
        let failed = |e| Error::io("cannot read a segment", &path, e).at_segment(number, 0);
        // Past the cache: two pages of each segment are wanted, not what lies around them.
        let mode = OpenMode { write: false, create: false, direct: true };
        let file = self.disk.open(&path, mode).map_err(failed)?;
        let damaged = |what: String, offset| {
            Error::new(ErrorKind::Corrupt, what)
                .at_path(&path)
                .at_segment(number, offset)
                .advise(REPAIR)
        };
        let bytes = self.geometry.segment_bytes;
        if !self.disk.mode().direct {
            // As for `meta`: a sync that failed may have left there what the disk does not have.
            file.drop_cache(0, bytes).map_err(failed)?;
        }
        let len = file.len().map_err(failed)?;
        if len != bytes {
            return Err(damaged(format!("a segment of {bytes} bytes has {len}"), len.min(bytes)));
        }
        let mut head = AlignedBuf::zeroed(2 * PAGE_BYTES as usize);
        file.read_at(&mut head, 0).map_err(failed)?;
        let (page, first) = head.split_at(PAGE_BYTES as usize);
        let newer = |error: FormatError, offset| {
            Error::new(ErrorKind::Unsupported, "this build cannot read the segment")
                .at_path(&path)
                .at_segment(number, offset)
                .because(error)
        };
        let header = SegmentHeader::decode(page).map_err(|error| match error {
            error if error.is_newer() => newer(error, 0),
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
        let mut region = AlignedBuf::zeroed(footer_bytes as usize);
        file.read_at(&mut region, bytes - footer_bytes).map_err(failed)?;
        let sizes = (self.geometry.slab_bytes, bytes);
        let footer = match Footer::decode(&region, (number, header.salt()), sizes) {
            Ok(footer) => footer,
            Err(error) if error.is_newer() => {
                return Err(newer(error, bytes - footer_bytes));
            }
            // It was being written when the process died, or is damaged: the blocks decide, and it
            // is written anew.
            Err(_) => None,
        };
        let first_block = BlockHeader::read(first);
        Ok(Found { number, path, salt: header.salt(), footer, first_block })
    }

    pub(crate) fn missing(&self, number: u64) -> Error {
        Error::new(ErrorKind::MissingSegment, "a segment is missing")
            .at_path(&self.path(number))
            .at_segment(number, 0)
            .advise(REPAIR)
    }

    /// A segment must continue the chain of the one before it, as far as its footer and its first
    /// block's header tell.
    pub(crate) fn check_joint(&self, chain: &Chain, next: &Found) -> Result<()> {
        let broken = |found: u64| {
            Error::new(ErrorKind::Corrupt, "the segment does not continue the one before it")
                .at_path(&next.path)
                .at_segment(next.number, self.geometry.head_bytes)
                .at_lsns(Lsn::new(chain.next_lsn), Lsn::new(found))
                .advise(REPAIR)
        };
        if let Some(footer) = next.footer.as_ref().filter(|f| f.first_lsn != chain.next_lsn) {
            return Err(broken(footer.first_lsn));
        }
        match next.first_block.filter(|first| first.salt == next.salt) {
            Some(first) if !chain.accepts(&first) => Err(broken(first.first_lsn)),
            _ => Ok(()),
        }
    }
}
