//! All segments in order: what each holds, what is wrong, where the log would have to be cut.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::{Checker, before};
use super::judge::Judged;
use super::{SegmentInfo, SegmentState};
use crate::disk::{AlignedBuf, Disk, DiskFile, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Footer, Meta, footer_bytes, verify_block};
use crate::limits;
use crate::log::{Chain, Found, Survey, Walker};
use crate::lsn::{Geometry, Lsn};

/// How closely to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Depth {
    /// Believe footers; read the blocks of segments that have none.
    Footers,
    /// Read everything.
    Blocks,
}

/// Where committed data end because of damage.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    pub(super) number: u64,
    /// Offset behind the last good block; 0: nothing of the segment can be kept.
    pub(super) offset: u64,
    pub(super) next_lsn: u64,
    /// The log needs an empty segment of this number to go on in.
    pub(super) renew: bool,
}

/// A segment that keeps its blocks and loses what does not belong there.
#[derive(Clone, Debug)]
pub(super) struct Rebuild {
    pub(super) number: u64,
    /// Offset behind the last block to keep.
    pub(super) end: u64,
    pub(super) footer: Option<Footer>,
    pub(super) rolled: bool,
}

#[derive(Default)]
pub(super) struct Scan {
    pub(super) segments: Vec<SegmentInfo>,
    pub(super) findings: Vec<Error>,
    pub(super) notes: Vec<String>,
    pub(super) blocks: u64,
    pub(super) cut: Option<Cut>,
    pub(super) rebuilds: Vec<Rebuild>,
    /// First segment there is and its first LSN, if those before it are missing.
    pub(super) begins: Option<(u64, u64)>,
    /// First and last LSN that can be read without a gap.
    pub(super) first_lsn: u64,
    pub(super) next_lsn: u64,
    /// The largest LSN seen anywhere.
    pub(super) last_seen: u64,
    pub(super) torn_bytes: u64,
    /// The last block has records: nothing vouches for it yet.
    pub(super) unvouched: bool,
    /// A build that knows more is needed: nothing may be cut.
    pub(super) unsupported: Option<Error>,
}

impl Scan {
    /// The last record that may ever have been seen by anybody.
    pub(super) fn end_lsn(&self) -> u64 {
        if self.cut.is_some() { self.last_seen } else { self.next_lsn - 1 }
    }
}

pub(super) struct Scanner<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) dir: &'a Path,
    pub(super) geometry: Geometry,
    meta: &'a Meta,
    depth: Depth,
    pub(super) scan: Scan,
    /// Behind what was seen; `None` where that is unknown.
    pub(super) chain: Option<Chain>,
    /// The segment in which the log ends.
    pub(super) tail: Option<Tail>,
}

#[derive(Clone, Copy)]
pub(super) struct Tail {
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) next_lsn: u64,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(
        (disk, dir): (&'a dyn Disk, &'a Path),
        geometry: Geometry,
        meta: &'a Meta,
        depth: Depth,
    ) -> Scanner<'a> {
        let lsn = meta.log_start_lsn;
        let scan = Scan { first_lsn: lsn, next_lsn: lsn, ..Scan::default() };
        let start = Chain::start(lsn);
        // The block that the first one kept continues went with what retention deleted.
        let chain = (meta.log_start == 0).then_some(start);
        Scanner { disk, dir, geometry, meta, depth, scan, chain, tail: None }
    }

    fn survey(&self) -> Survey<'a> {
        let (disk, dir, log_id) = (self.disk, self.dir, self.meta.log_id);
        Survey { disk, dir, geometry: self.geometry, log_id }
    }

    pub(super) fn run(mut self) -> Result<Scan> {
        let survey = self.survey();
        let (numbers, others) = survey.list()?;
        for other in &others {
            self.scan.notes.push(format!("{other} is no segment of the log"));
        }
        let first = self.geometry.segment_of(self.meta.log_start);
        let (below, kept): (Vec<u64>, Vec<u64>) = numbers.iter().partition(|&&n| n < first);
        if !below.is_empty() {
            let what = "segments below the log's start, deleted when the log is opened";
            self.scan.notes.push(format!("{} {what}", below.len()));
        }
        let looked: Vec<(u64, Result<Found>)> =
            kept.iter().map(|&number| (number, survey.look(number))).collect();
        let mut expected = first;
        for (i, (number, found)) in looked.iter().enumerate() {
            let later = &looked[i + 1..];
            if *number != expected {
                self.missing(expected, *number, found.as_ref().ok())?;
            }
            match found {
                Ok(found) => self.segment(found, later)?,
                Err(error) => self.unreadable(*number, error)?,
            }
            expected = number + 1;
        }
        // A segment that is damaged itself promises none behind it.
        let last = self.scan.segments.last().map(|segment| segment.state);
        if self.tail.is_none() && last != Some(SegmentState::Damaged) {
            self.missing(expected, expected + 1, None)?;
        }
        Ok(self.scan)
    }

    pub(super) fn find(&mut self, error: Error) {
        self.scan.findings.push(error.plain());
    }

    /// From here on nothing is kept, unless that was so before.
    pub(super) fn cut_at(&mut self, number: u64, offset: u64, next_lsn: u64, renew: bool) {
        if self.scan.cut.is_none() {
            self.scan.next_lsn = next_lsn;
            self.scan.cut = Some(Cut { number, offset, next_lsn, renew });
        }
    }

    /// Segments `from` to `to - 1` are not there; `next` is the one at `to`.
    fn missing(&mut self, from: u64, to: u64, next: Option<&Found>) -> Result<()> {
        let next_lsn = self.chain.map_or(self.scan.next_lsn, |chain| chain.next_lsn);
        let (first_lsn, chain) = match next {
            Some(next) => self.beginning(next)?,
            None => (None, None),
        };
        let survey = self.survey();
        // The name of one file says how many there are: any number.
        let listed = to.min(from + limits::MISSING_LISTED_MAX);
        for number in from..listed {
            let error = survey.missing(number);
            let lost = first_lsn.filter(|&lsn| lsn > next_lsn);
            self.find(match lost {
                Some(lsn) => error.at_lsns(Lsn::new(next_lsn), Lsn::new(lsn - 1)),
                None => error,
            });
        }
        if listed < to {
            let what = format!("{} segments more are missing", to - listed);
            self.find(
                Error::new(ErrorKind::MissingSegment, what).at_path(&self.survey_path(listed)),
            );
        }
        let is_start = from == self.geometry.segment_of(self.meta.log_start);
        match first_lsn.filter(|_| is_start) {
            Some(lsn) => {
                self.scan.begins = Some((to, lsn));
                (self.scan.first_lsn, self.scan.next_lsn) = (lsn, lsn);
                self.chain = chain;
            }
            // Behind the end, a segment that is missing was only prepared.
            None => {
                self.cut_at(from, 0, next_lsn, self.tail.is_none());
                self.chain = None;
            }
        }
        Ok(())
    }

    /// The LSN that a segment begins with, and what its first block continues. That block is
    /// checked, since a damaged header may name any LSN; without it the footer counts.
    pub(super) fn beginning(&self, found: &Found) -> Result<(Option<u64>, Option<Chain>)> {
        let geometry = self.geometry;
        let file = self.open(found)?;
        let slab = geometry.slab_of(geometry.segment_start(found.number));
        let mut buffer = AlignedBuf::zeroed(geometry.slab_bytes as usize);
        walker(&geometry, found, &*file).read_slab(slab, &mut buffer)?;
        let first = &buffer[geometry.first_block_offset(slab)..geometry.block_limit(slab)];
        let good = verify_block(first, geometry.first_block(slab), found.salt).ok();
        let chain = good.map(|first| before(&first));
        let footer = || found.footer.as_ref().map(|footer| footer.first_lsn);
        Ok((chain.map(|chain| chain.next_lsn).or_else(footer), chain))
    }

    fn open(&self, found: &Found) -> Result<Arc<dyn DiskFile>> {
        let mode = OpenMode { write: false, create: false, direct: false };
        let failed = |e| Error::io("cannot open a segment", &found.path, e);
        self.disk.open(&found.path, mode).map_err(failed)
    }

    fn unreadable(&mut self, number: u64, error: &Error) -> Result<()> {
        if error.kind() == ErrorKind::Io {
            return Err(error.clone());
        }
        if error.kind() == ErrorKind::Unsupported {
            self.scan.unsupported.get_or_insert(error.clone());
        }
        self.find(error.clone());
        let path = self.survey_path(number);
        self.scan.segments.push(SegmentInfo::unreadable(number, path));
        self.cut_at(number, 0, self.scan.next_lsn, self.tail.is_none());
        self.chain = None;
        Ok(())
    }

    fn survey_path(&self, number: u64) -> PathBuf {
        crate::log::segment_path(self.dir, &self.geometry, number)
    }

    fn segment(&mut self, found: &Found, later: &[(u64, Result<Found>)]) -> Result<()> {
        let file = self.open(found)?;
        if let (Some(footer), Depth::Footers) = (&found.footer, self.depth) {
            self.trust(found, footer);
            return Ok(());
        }
        let geometry = self.geometry;
        let walker = walker(&geometry, found, &*file);
        if self.tail.is_some() {
            return self.blank(found, &walker);
        }
        let chain = self.chain_into(found);
        let checked = Checker::new(&walker, chain, self.scan.next_lsn).run(|_, _| {})?;
        self.scan.blocks += checked.blocks;
        self.scan.last_seen = self.scan.last_seen.max(checked.last.next_lsn.saturating_sub(1));
        let next = later.first().and_then(|(_, found)| found.as_ref().ok());
        let judged = Judged { found, walker: &walker, checked: &checked, next };
        let region = self.footer_region(found, &*file)?;
        let mut readable = later.iter().filter_map(|(_, found)| found.as_ref().ok());
        let followed = readable.any(|f| f.first_block.is_some() || f.footer.is_some());
        self.judge(&judged, &region, followed)
    }

    /// What the first block of `found` has to continue; `None` if that went with what is lost.
    fn chain_into(&self, found: &Found) -> Option<Chain> {
        let is_start = self.geometry.segment_start(found.number) == self.meta.log_start;
        let first = found.first_block.filter(|first| first.salt == found.salt);
        match first {
            // The block before it went with what retention deleted, its LSN is on record.
            Some(first) if is_start && self.meta.log_start > 0 => {
                Some(Chain { next_lsn: self.meta.log_start_lsn, ..before(&first) })
            }
            _ => self.chain,
        }
    }

    /// A sealed segment, without reading its blocks.
    fn trust(&mut self, found: &Found, footer: &Footer) {
        if let Some(tail) = self.tail {
            return self.follows(found, tail, footer.last_lsn);
        }
        let first = found.first_block.filter(|first| first.salt == found.salt);
        let joins = self.chain_into(found).is_none_or(|chain| {
            chain.next_lsn == footer.first_lsn && first.is_none_or(|first| chain.accepts(&first))
        });
        if !joins {
            self.loss(
                found,
                self.geometry.head_bytes,
                None,
                "the segment does not continue the \
                      one before it",
            );
            self.cut_at(found.number, self.geometry.head_bytes, self.scan.next_lsn, false);
        }
        self.enter(SegmentInfo::sealed(found, footer, self.geometry.head_bytes), footer.last_lsn);
        self.chain = Some(Chain::behind(footer));
    }

    pub(super) fn enter(&mut self, info: SegmentInfo, last_lsn: u64) {
        self.scan.last_seen = self.scan.last_seen.max(last_lsn);
        self.scan.segments.push(info);
        if self.scan.cut.is_none() {
            self.scan.next_lsn = last_lsn + 1;
        }
    }

    pub(super) fn loss(
        &mut self,
        found: &Found,
        offset: u64,
        lsns: Option<(u64, u64)>,
        what: &str,
    ) {
        let error = Error::new(ErrorKind::Corrupt, what)
            .at_path(&found.path)
            .at_segment(found.number, offset);
        self.find(match lsns {
            Some((from, to)) => error.at_lsns(Lsn::new(from), Lsn::new(to)),
            None => error,
        });
    }

    fn follows(&mut self, found: &Found, tail: Tail, last_lsn: u64) {
        let lsns = (last_lsn >= tail.next_lsn).then_some((tail.next_lsn, last_lsn));
        self.loss(
            found,
            self.geometry.head_bytes,
            lsns,
            "blocks follow a segment that does not end",
        );
        self.cut_at(tail.number, tail.offset, tail.next_lsn, false);
        self.scan.last_seen = self.scan.last_seen.max(last_lsn);
        self.scan.segments.push(SegmentInfo::damaged(found));
    }

    /// Behind the end of the log a segment is prepared, and holds nothing.
    fn blank(&mut self, found: &Found, walker: &Walker<'_>) -> Result<()> {
        let Some(tail) = self.tail else { return Ok(()) };
        let rest = walker.rest(self.geometry.head_bytes)?;
        if rest.good_blocks > 0 || found.footer.is_some() {
            let footer_lsn = found.footer.as_ref().map_or(0, |footer| footer.last_lsn);
            self.follows(found, tail, rest.last_lsn.max(footer_lsn));
        } else if rest.nonzero_bytes > 0 {
            let what = "a segment that was never written to holds bytes";
            self.loss(found, self.geometry.head_bytes, None, what);
            self.cut_at(found.number, 0, tail.next_lsn, false);
            self.scan.segments.push(SegmentInfo::damaged(found));
        } else {
            self.scan.segments.push(SegmentInfo::prepared(found));
        }
        Ok(())
    }

    fn footer_region(&self, found: &Found, file: &dyn DiskFile) -> Result<Vec<u8>> {
        let bytes = footer_bytes(self.geometry.segment_bytes);
        let mut region = vec![0; bytes as usize];
        let offset = self.geometry.segment_bytes - bytes;
        file.read_at(&mut region, offset)
            .map_err(|e| Error::io("cannot read a footer", &found.path, e))?;
        Ok(region)
    }
}

pub(super) fn walker<'a>(
    geometry: &'a Geometry,
    found: &'a Found,
    file: &'a dyn DiskFile,
) -> Walker<'a> {
    let (number, salt, path) = (found.number, found.salt, &*found.path);
    Walker { geometry, number, salt, path, file, ahead: &[] }
}
