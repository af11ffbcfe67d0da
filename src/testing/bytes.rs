//! What reads bytes from disk, for the fuzz targets in `fuzz/`: each function takes bytes of any
//! content and says what the crate makes of them. What is decoded is encoded and decoded once
//! more, which must give the same.

use std::path::Path;
use std::sync::Arc;

use super::SimDisk;
use crate::disk::{Disk, OpenMode};
use crate::error::{Error, Result};
use crate::format::{
    BlockHeader, Checkpoints, Footer, FormatError, Meta, PAGE_BYTES, SegmentHeader, footer_bytes,
    looks_torn, read_record, verify_block,
};
use crate::log::{Chain, Walker};
use crate::lsn::{Geometry, Lsn};
use crate::offline::{LogDir, check_segment};
use crate::source::{Cursor, PageLimits, RunIter, Select, Window, scan};

/// Is given kind, key and payload of each record.
pub type Each<'a> = &'a mut dyn FnMut(u16, u64, &[u8]);

/// What a decoder makes of bytes: the same once more, as it writes them, or why not.
pub type Decoded = Result<Vec<u8>, String>;

fn told(error: &FormatError) -> String {
    error.to_string()
}

/// The header page of a segment, and the salt of its blocks.
///
/// # Errors
/// What is wrong.
pub fn segment_header(page: &[u8]) -> Result<(Vec<u8>, u64), String> {
    let header = SegmentHeader::decode(page).map_err(|e| told(&e))?;
    let again = header.encode();
    assert_eq!(SegmentHeader::decode(&again).as_ref(), Ok(&header));
    Ok((again.to_vec(), header.salt()))
}

/// The newest slot of a meta file.
///
/// # Errors
/// What is wrong.
pub fn meta(file: &[u8]) -> Decoded {
    let meta = Meta::newest(file).map_err(|e| told(&e))?;
    let again = meta.encode();
    assert_eq!(Meta::decode(&again).as_ref(), Ok(&meta));
    Ok(again.to_vec())
}

/// A checkpoint file.
///
/// # Errors
/// What is wrong.
pub fn checkpoints(file: &[u8]) -> Decoded {
    let checkpoints = Checkpoints::decode(file).map_err(|e| told(&e))?;
    let again = checkpoints.encode();
    assert_eq!(Checkpoints::decode(&again).as_ref(), Ok(&checkpoints));
    Ok(again)
}

/// A footer region of a segment with this number and salt, of these sizes (slab, segment); empty
/// while it is not sealed. `seeks` are looked up in its index as LSNs and as times.
///
/// # Errors
/// What is wrong.
pub fn footer(region: &[u8], id: (u64, u64), sizes: (u64, u64), seeks: &[u64]) -> Decoded {
    let Some(footer) = Footer::decode(region, id, sizes).map_err(|e| told(&e))? else {
        return Ok(Vec::new());
    };
    for &seek in seeks {
        let at = footer.seek_lsn(seek).map(|entry| entry.lsn);
        let naive = footer.index.iter().map(|entry| entry.lsn).rfind(|&lsn| lsn <= seek);
        assert_eq!(at, naive);
        let at = footer.seek_time(seek).map(|entry| entry.time_nanos);
        let naive = footer.index.iter().map(|entry| entry.time_nanos).rfind(|&time| time < seek);
        assert_eq!(at, naive.or(footer.index.first().map(|entry| entry.time_nanos)));
    }
    let again = footer.encode(sizes.1);
    assert_eq!(Footer::decode(&again, id, sizes).as_ref(), Ok(&Some(footer)));
    Ok(again)
}

/// The records of the block that should start at the beginning of `bytes`.
///
/// # Errors
/// What is wrong.
pub fn block(bytes: &[u8], position: u64, salt: u64, each: Each<'_>) -> Result<(), String> {
    let header = verify_block(bytes, position, salt).map_err(|fault| fault.to_string())?;
    let torn = looks_torn(bytes, position, salt);
    assert!(!torn || bytes[..512].iter().all(|&byte| byte == 0), "whole, and torn as well");
    records(&header, &bytes[64..header.framed_bytes()], each);
    Ok(())
}

fn records(header: &BlockHeader, body: &[u8], each: Each<'_>) {
    let (mut found, mut offset) = (0, 0);
    while let Some((record, next)) = read_record(body, offset) {
        each(record.kind, record.key, record.payload);
        (found, offset) = (found + 1, next);
    }
    assert_eq!((found, offset), (header.records, body.len()));
}

/// A segment file on a simulated disk, to be walked.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Where it lies.
    pub disk: &'a SimDisk,
    /// Its name.
    pub path: &'a Path,
    /// Size of a slab.
    pub slab_bytes: u64,
    /// Size of the file.
    pub segment_bytes: u64,
    /// Its number.
    pub number: u64,
    /// Of its blocks.
    pub salt: u64,
    /// What its first block must continue: LSN and checksum.
    pub chain: (u64, u32),
}

/// What recovery finds in a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walk {
    /// How many, up to the first block that does not continue the one before.
    pub records: u64,
    /// Offset behind the last block that does.
    pub end: u64,
    /// That one says that the segment is complete.
    pub rolled: bool,
    /// The largest watermark of a good block behind `end`.
    pub vouched: u64,
    /// Good blocks behind `end`.
    pub good_blocks: u64,
    /// Bytes behind `end` from the first to the last that is not zero.
    pub nonzero_bytes: u64,
    /// What lies there can be a torn write.
    pub torn: bool,
}

/// Walks a segment as recovery does.
///
/// # Errors
/// Those of the disk.
pub fn walk(segment: &Segment<'_>, each: Each<'_>) -> Result<Walk> {
    with_walker(segment, |walker, chain| {
        let walked =
            walker.walk(chain, |header, body| records(header, body, &mut *each), |_, _| Ok(()))?;
        let rest = walker.rest(walked.end)?;
        Ok(Walk {
            records: walked.records,
            end: walked.end,
            rolled: walked.rolled,
            vouched: rest.vouched,
            good_blocks: rest.good_blocks,
            nonzero_bytes: rest.nonzero_bytes,
            torn: walker.looks_torn(walked.end)?,
        })
    })
}

/// Walks a segment as verification does, and passes the records up to the first loss. Returns how
/// many things are wrong.
///
/// # Errors
/// Those of the disk.
pub fn check(segment: &Segment<'_>, each: Each<'_>) -> Result<usize> {
    with_walker(segment, |walker, chain| {
        check_segment(walker, chain, |header, body| records(header, body, &mut *each))
    })
}

fn with_walker<T>(
    segment: &Segment<'_>,
    call: impl FnOnce(&Walker<'_>, Chain) -> Result<T>,
) -> Result<T> {
    let &Segment { disk, path, slab_bytes, segment_bytes, number, salt, .. } = segment;
    let (next_lsn, crc) = segment.chain;
    let geometry = Geometry {
        slab_bytes,
        segment_bytes,
        head_bytes: PAGE_BYTES,
        tail_bytes: PAGE_BYTES + footer_bytes(segment_bytes),
        align_bytes: PAGE_BYTES,
    };
    let mode = OpenMode { write: false, create: false, direct: false };
    let file = Disk::open(disk, path, mode).map_err(|e| Error::io("cannot open", path, e))?;
    let walker = Walker { geometry: &geometry, number, salt, path, file: &*file, ahead: &[] };
    call(&walker, Chain { crc, ..Chain::start(next_lsn) })
}

struct Odd(bool);

impl Select for Odd {
    fn all(&self) -> bool {
        !self.0
    }

    fn matches(&self, kind: u16, _key: u64) -> bool {
        !self.0 || kind % 2 == 1
    }
}

/// Reads a window of the log that begins with a block, as consumers do: page by page, each block
/// checked. Returns whether that ended without an error. With `odd` there is a filter for odd
/// kinds, which changes the way but not what is passed.
pub fn read(
    bytes: &[u8],
    (base, salt): (u64, u64),
    next_lsn: u64,
    odd: bool,
    each: Each<'_>,
) -> bool {
    let window = Window { bytes, base, align: PAGE_BYTES as usize };
    let mut cursor = Cursor::at(base, Lsn::new(next_lsn));
    loop {
        let limits = PageLimits { records: 3, bytes: 1000 };
        let check = |position, block: &[u8]| match verify_block(block, position, salt) {
            Ok(_) => Ok(()),
            Err(fault) => Err(Error::new(crate::ErrorKind::Corrupt, fault.to_string())),
        };
        let Ok(mut found) = scan(window, cursor, &Odd(odd), limits, check) else {
            return false;
        };
        let mut run = RunIter::new(window, &found);
        for (_, _, record) in run.by_ref() {
            each(record.kind, record.key, record.payload);
        }
        found.close(run.offset());
        if found.to == cursor {
            return true;
        }
        cursor = found.to;
    }
}

/// A log on a simulated disk, for tools.
///
/// # Errors
/// As [`LogDir::open`].
pub fn offline(disk: &SimDisk, dir: &Path) -> Result<LogDir> {
    LogDir::open_on(Arc::new(disk.clone()), dir)
}
