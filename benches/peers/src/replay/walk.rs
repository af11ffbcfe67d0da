//! The least that reading a log takes: mapped files, a checksum a block, a step a record.
//!
//! Written from the description of the format alone, and knows no more of it than that.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use memmap2::{Advice, Mmap};

use crate::load::Tally;

const PAGE: usize = 4_096;
const BLOCK_HEADER: usize = 64;
const RECORD_HEADER: usize = 16;

/// Walks segment files, oldest first.
pub fn walk(segments: &[PathBuf], advice: Advice) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    for path in segments {
        let file = File::open(path)?;
        // SAFETY: nobody writes to the file while it is mapped: its log is closed, or this is a
        // sealed segment.
        let map = unsafe { Mmap::map(&file)? };
        map.advise(advice)?;
        segment(&map, &mut tally).with_context(|| path.display().to_string())?;
    }
    Ok(tally)
}

fn segment(bytes: &[u8], tally: &mut Tally) -> anyhow::Result<()> {
    let slab = word(bytes, 64) as usize;
    ensure!(bytes.starts_with(b"EVPLSEGM") && slab.is_power_of_two(), "no segment header");
    let footer = (128 + bytes.len() / (64 << 10) * 28).next_multiple_of(PAGE);
    // Behind this there is no block with records.
    let end = bytes.len() - footer - PAGE;
    let mut at = PAGE;
    while at < end {
        at = match block(bytes, at, tally)? {
            Some(next) => next,
            None => (at + 1).next_multiple_of(slab),
        };
    }
    Ok(())
}

/// Takes the records of the block at `at`; returns where the next one is, or `None` where a slab
/// ends early.
#[inline]
fn block(bytes: &[u8], at: usize, tally: &mut Tally) -> anyhow::Result<Option<usize>> {
    if !bytes[at..].starts_with(b"EVBK") {
        ensure!(bytes[at..at + BLOCK_HEADER].iter().all(|byte| *byte == 0), "no block at {at}");
        return Ok(None);
    }
    let end = at + BLOCK_HEADER + half(bytes, at + 16) as usize;
    let framed = bytes.get(at..end).context("a block over the end")?;
    ensure!(crc32c::crc32c(&framed[8..]) == half(framed, 4), "a damaged block at {at}");
    let (mut lsn, mut offset) = (word(framed, 32), BLOCK_HEADER);
    for _ in 0..half(framed, 20) {
        let from = offset + RECORD_HEADER;
        let to = from + half(framed, offset) as usize;
        tally.take(lsn, framed.get(from..to).context("a record over the end of its block")?);
        lsn += 1;
        offset = to.next_multiple_of(8);
    }
    Ok(Some(end.next_multiple_of(PAGE)))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
