//! The cursor, and the one decoder that moves it.

use super::Window;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    BLOCK_HEADER_BYTES, BlockHeader, RawRecord, align_up, skip_record, split_record,
};
use crate::lsn::Lsn;

/// Where a consumer stands: the whole of its state as far as the log is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cursor {
    /// Position of the block with the next record, or of the next block.
    pub(crate) block: u64,
    /// Offset of the next record in that block's body, and how many come before it: a page resumes
    /// here.
    pub(crate) offset: u32,
    pub(crate) index: u32,
    /// The next record's LSN. Checked at every block (invariant I4).
    pub(crate) next_lsn: Lsn,
    /// `block` may lie before the block sought: records below `next_lsn` are passed over.
    pub(crate) seeking: bool,
}

impl Cursor {
    pub(crate) fn at(block: u64, next_lsn: Lsn) -> Cursor {
        Cursor { block, offset: 0, index: 0, next_lsn, seeking: false }
    }

    pub(crate) fn seeking(block: u64, next_lsn: Lsn) -> Cursor {
        Cursor { seeking: true, ..Cursor::at(block, next_lsn) }
    }

    /// The slab ended: the next block is there.
    pub(crate) fn skip_to(&mut self, block: u64) {
        debug_assert_eq!(self.index, 0, "a slab ends between blocks");
        self.enter(block);
    }

    fn enter(&mut self, block: u64) {
        (self.block, self.offset, self.index) = (block, 0, 0);
    }
}

/// How large a page may get. At least one record is always taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageLimits {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

/// What a scan found: a run of records to deliver, and the cursor behind them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan {
    /// The cursor at the first record of the run.
    pub(crate) from: Cursor,
    /// The cursor behind the last; its offset is 0 while the run [`is_open`](Scan::is_open).
    pub(crate) to: Cursor,
    /// Records in the run, and how many of them match the filter.
    pub(crate) records: u64,
    pub(crate) matched: usize,
    /// Block bytes entered, with padding: what replay costs.
    pub(crate) block_bytes: u64,
    /// Records looked at one by one.
    pub(crate) walked: u64,
}

/// A consumer's choice of records, as the decoder sees it.
pub(crate) trait Select {
    /// Everything matches: blocks need not be walked.
    fn all(&self) -> bool;
    fn matches(&self, kind: u16, key: u64) -> bool;
}

impl Scan {
    fn at(cursor: Cursor) -> Scan {
        let (from, to) = (cursor, cursor);
        Scan { from, to, records: 0, matched: 0, block_bytes: 0, walked: 0 }
    }

    /// Whether the run ends inside of a block, at an offset that nobody has looked for. Whoever
    /// iterates over the run comes by there, see [`RunIter::offset`].
    pub(crate) fn is_open(&self) -> bool {
        self.to.index > 0 && self.to.offset == 0
    }

    /// The first record of the run in the block that it ends in.
    pub(crate) fn last_block(&self) -> Cursor {
        if self.from.block == self.to.block {
            return self.from;
        }
        let first = self.to.next_lsn.get() - u64::from(self.to.index);
        Cursor::at(self.to.block, Lsn::new(first))
    }

    /// The run was iterated over: its end is at this offset.
    pub(crate) fn close(&mut self, offset: u32) {
        if self.is_open() {
            self.to.offset = offset;
        }
    }

    /// What lies before something bad is delivered first: then the next scan begins there, and
    /// the bad is all that it finds.
    #[cold]
    fn before(self, at: Cursor, begun: Cursor, bad: Error) -> Result<Scan> {
        if at == begun { Err(bad) } else { Ok(Scan { to: at, ..self }) }
    }
}

fn gap(what: &str, at: &Cursor, found: u64) -> Error {
    Error::new(ErrorKind::Gap, format!("{what} at position {}", at.block))
        .at_lsns(at.next_lsn, Lsn::new(found))
}

/// Reads the window from `cursor` on until a limit, its end, or a block that it holds only in part.
/// `check` sees each block before anything of it is used.
pub(crate) fn scan(
    window: Window<'_>,
    cursor: Cursor,
    select: &impl Select,
    limits: PageLimits,
    mut check: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<Scan> {
    let mut at = cursor;
    let mut scan = Scan::at(cursor);
    let mut bytes_left = limits.bytes;
    while scan.matched < limits.records && (bytes_left > 0 || scan.matched == 0) {
        let start = (at.block - window.base) as usize;
        let Some(rest) = window.bytes.get(start..).filter(|r| r.len() >= BLOCK_HEADER_BYTES) else {
            break;
        };
        let header = BlockHeader::read(rest).filter(|header| header.position == at.block);
        let Some(header) = header else {
            // A source that checks its blocks knows better where that is.
            let bad = check(at.block, rest).err().unwrap_or_else(|| gap("no block", &at, 0));
            return scan.before(at, cursor, bad);
        };
        let framed = header.framed_bytes();
        let Some(block) = rest.get(..framed) else {
            break;
        };
        if let Err(bad) = check(at.block, block) {
            return scan.before(at, cursor, bad);
        }
        let padded = align_up(framed as u64, window.align as u64);
        if at.index == 0 {
            scan.block_bytes += padded;
        }
        match enter_block(&mut at, &header, &block[BLOCK_HEADER_BYTES..], &mut scan) {
            Ok(true) => {}
            Ok(false) => {
                at.enter(at.block + padded);
                continue;
            }
            Err(bad) => return scan.before(at, cursor, bad),
        }
        if scan.records == 0 {
            scan.from = at;
        }
        let left = u64::from(header.records - at.index);
        let body_left = body_len(&header) - at.offset as usize;
        if select.all() && body_left <= bytes_left {
            // Nothing needs to be looked at, and the page may end anywhere.
            let taken = left.min((limits.records - scan.matched) as u64);
            scan.records += taken;
            scan.matched += taken as usize;
            bytes_left -= body_left;
            at.next_lsn = Lsn::new(at.next_lsn.get() + taken);
            if taken == left {
                at.enter(at.block + padded);
                continue;
            }
            (at.offset, at.index) = (0, at.index + taken as u32);
            break;
        }
        let body = &block[BLOCK_HEADER_BYTES..];
        walk_records(body, &header, &mut at, select, limits, &mut bytes_left, &mut scan)?;
        if at.index == header.records {
            at.enter(at.block + padded);
        }
    }
    scan.to = at;
    Ok(scan)
}

fn body_len(header: &BlockHeader) -> usize {
    header.body_bytes as usize
}

/// Brings the cursor to its record in the block. False: the block has nothing for it.
#[inline]
fn enter_block(
    at: &mut Cursor,
    header: &BlockHeader,
    body: &[u8],
    scan: &mut Scan,
) -> Result<bool> {
    // As nearly always: the block that is next, from its first record on.
    if at.index == 0 && header.first_lsn == at.next_lsn.get() && header.records > 0 {
        at.seeking = false;
        return Ok(true);
    }
    enter_within(at, header, body, scan)
}

/// As [`enter_block`], where the cursor is inside of the block, or seeks.
fn enter_within(
    at: &mut Cursor,
    header: &BlockHeader,
    body: &[u8],
    scan: &mut Scan,
) -> Result<bool> {
    if at.index > 0 {
        let here = header.first_lsn.checked_add(at.index.into());
        let is_there = at.offset > 0 && at.index < header.records;
        return if is_there && here == Some(at.next_lsn.get()) {
            Ok(true)
        } else {
            Err(gap("another block than the one begun", at, header.first_lsn))
        };
    }
    let next = at.next_lsn.get();
    let behind = header.first_lsn + u64::from(header.records);
    if header.records == 0 || (at.seeking && behind <= next) {
        return Ok(false);
    }
    if !at.seeking || header.first_lsn > next {
        return Err(gap("records do not follow each other", at, header.first_lsn));
    }
    let mut rest = body;
    for _ in header.first_lsn..next {
        let malformed = || gap("a malformed record", at, header.first_lsn);
        rest = skip_record(rest).ok_or_else(malformed)?;
        scan.walked += 1;
    }
    at.offset = (body.len() - rest.len()) as u32;
    at.index = (next - header.first_lsn) as u32;
    at.seeking = false;
    Ok(true)
}

fn walk_records(
    body: &[u8],
    header: &BlockHeader,
    at: &mut Cursor,
    select: &impl Select,
    limits: PageLimits,
    bytes_left: &mut usize,
    scan: &mut Scan,
) -> Result<()> {
    while at.index < header.records && scan.matched < limits.records {
        let here = body.get(at.offset as usize..).unwrap_or_default();
        let malformed = || gap("a malformed record", at, header.first_lsn);
        let (record, rest) = split_record(here).ok_or_else(malformed)?;
        let matches = select.matches(record.kind, record.key);
        scan.walked += 1;
        let after = body.len() - rest.len();
        let bytes = after - at.offset as usize;
        if matches && bytes > *bytes_left && scan.matched > 0 {
            *bytes_left = 0;
            return Ok(());
        }
        if matches {
            scan.matched += 1;
            *bytes_left = bytes_left.saturating_sub(bytes);
        }
        scan.records += 1;
        at.offset = after as u32;
        at.index += 1;
        at.next_lsn = at.next_lsn.next();
    }
    Ok(())
}

/// Walks a run again, record by record, across blocks.
#[derive(Clone)]
pub(crate) struct RunIter<'a> {
    window: Window<'a>,
    /// What is left of the block's body, of so many bytes, and where in the window the next block
    /// starts.
    body: &'a [u8],
    body_bytes: usize,
    next_block: usize,
    /// Of the next record, and behind the last.
    lsn: u64,
    end_lsn: u64,
    time_nanos: u64,
}

impl<'a> RunIter<'a> {
    pub(crate) fn new(window: Window<'a>, scan: &Scan) -> RunIter<'a> {
        let mut iter = RunIter {
            window,
            body: &[],
            body_bytes: 0,
            next_block: (scan.from.block - window.base) as usize,
            lsn: scan.from.next_lsn.get(),
            end_lsn: scan.from.next_lsn.get() + scan.records,
            time_nanos: 0,
        };
        if scan.records > 0 {
            iter.enter();
            iter.body = &iter.body[scan.from.offset as usize..];
        }
        iter
    }

    /// Apart, so that the loop over records stays small.
    #[inline(never)]
    fn enter(&mut self) {
        let rest = &self.window.bytes[self.next_block..];
        let header = BlockHeader::read(rest).expect("scanned before");
        let framed = header.framed_bytes();
        self.body = &rest[BLOCK_HEADER_BYTES..framed];
        self.body_bytes = self.body.len();
        self.next_block += align_up(framed as u64, self.window.align as u64) as usize;
        self.time_nanos = header.time_nanos;
    }

    /// Time of the block that the next record is in.
    pub(crate) fn time_nanos(&self) -> u64 {
        self.time_nanos
    }

    pub(crate) fn left(&self) -> u64 {
        self.end_lsn - self.lsn
    }

    /// Where in its block's body the next record is.
    pub(crate) fn offset(&self) -> u32 {
        (self.body_bytes - self.body.len()) as u32
    }
}

impl<'a> Iterator for RunIter<'a> {
    /// LSN, block time, record.
    type Item = (Lsn, u64, RawRecord<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.lsn == self.end_lsn {
            return None;
        }
        while self.body.is_empty() {
            self.enter();
        }
        // A run is only made of blocks that were checked, or written by this process: a record
        // that cannot be read here means damaged memory, and is never passed over.
        let (record, rest) = split_record(self.body).expect("a checked block");
        let lsn = Lsn::new(self.lsn);
        self.body = rest;
        self.lsn += 1;
        Some((lsn, self.time_nanos, record))
    }
}
