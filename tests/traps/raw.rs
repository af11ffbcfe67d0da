//! Reads files of a log by docs/format.md alone, with no code of the crate: what is claimed of the
//! bytes is checked against the description, not against the decoder.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use super::bed::{PAGE, Rec};

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A block whose checksum is right.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// In the file.
    pub(crate) offset: usize,
    pub(crate) position: u64,
    pub(crate) body_bytes: usize,
    pub(crate) records: u32,
    pub(crate) flags: u32,
    pub(crate) crc: u32,
    pub(crate) prev_crc: u32,
    pub(crate) first_lsn: u64,
    pub(crate) time_nanos: u64,
    pub(crate) watermark: u64,
    pub(crate) salt: u64,
}

impl Block {
    /// Where its last record ends in the file.
    pub(crate) fn body_end(&self) -> usize {
        self.offset + 64 + self.body_bytes
    }

    /// Where the next block may begin.
    pub(crate) fn end(&self) -> usize {
        self.body_end().next_multiple_of(PAGE)
    }

    pub(crate) fn is_rolled(&self) -> bool {
        self.flags & 1 != 0
    }
}

fn block(file: &[u8], offset: usize) -> Option<Block> {
    let head = file.get(offset..offset + 64)?;
    let body_bytes = u32_at(head, 16) as usize;
    let whole = file.get(offset..offset + 64 + body_bytes)?;
    let good = head[..4] == *b"EVBK" && u32_at(head, 4) == crc32c::crc32c(&whole[8..]);
    good.then(|| Block {
        offset,
        position: u64_at(head, 8),
        body_bytes,
        records: u32_at(head, 20),
        flags: u32_at(head, 24),
        crc: u32_at(head, 4),
        prev_crc: u32_at(head, 28),
        first_lsn: u64_at(head, 32),
        time_nanos: u64_at(head, 40),
        watermark: u64_at(head, 48),
        salt: u64_at(head, 56),
    })
}

/// All good blocks of a segment file, whether they follow each other or not.
pub(crate) fn blocks(file: &[u8]) -> Vec<Block> {
    (PAGE..file.len())
        .step_by(PAGE)
        .filter_map(|offset| block(file, offset))
        .collect()
}

/// Those that hold records.
pub(crate) fn filled(file: &[u8]) -> Vec<Block> {
    blocks(file)
        .into_iter()
        .filter(|block| block.records > 0)
        .collect()
}

/// The records of a block.
pub(crate) fn records(file: &[u8], block: &Block) -> Vec<Rec> {
    let mut found = Vec::new();
    let mut at = block.offset + 64;
    while at < block.body_end() {
        let payload_bytes = u32_at(file, at) as usize;
        assert_eq!(u16_at(file, at + 6), 1, "PRESENT, and nothing else");
        let payload = file[at + 16..at + 16 + payload_bytes].to_vec();
        found.push((u16_at(file, at + 4), u64_at(file, at + 8), payload));
        let end = at + 16 + payload_bytes;
        at = end.next_multiple_of(8);
        assert!(file[end..at].iter().all(|&byte| byte == 0), "padding of a record");
    }
    assert_eq!((at, found.len()), (block.body_end(), block.records as usize));
    found
}

/// Makes a block's checksum right again.
pub(crate) fn reseal_block(file: &mut [u8], offset: usize) {
    let body_bytes = u32_at(file, offset + 16) as usize;
    let crc = crc32c::crc32c(&file[offset + 8..offset + 64 + body_bytes]);
    file[offset + 4..offset + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Makes the checksum of a structure with an envelope right again.
pub(crate) fn reseal(structure: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&structure[..12]), &structure[16..]);
    structure[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// `footer_bytes(n)`.
pub(crate) fn footer_bytes(segment_bytes: usize) -> usize {
    (128 + segment_bytes / (64 << 10) * (4 + 24)).next_multiple_of(PAGE)
}

/// Names and LSNs in the checkpoints file.
pub(crate) fn checkpoints(file: &[u8]) -> Vec<(String, u64)> {
    assert_eq!(&file[..8], b"EVPLCKPT");
    let mut sealed = file.to_vec();
    reseal(&mut sealed);
    assert_eq!(sealed, file, "the checksum is right");
    let mut at = 64;
    let entries = (0..u32_at(file, 56)).map(|_| {
        let (lsn, name_bytes) = (u64_at(file, at), usize::from(file[at + 8]));
        let name = String::from_utf8(file[at + 9..at + 9 + name_bytes].to_vec()).unwrap();
        at += 9 + name_bytes;
        (name, lsn)
    });
    entries.collect()
}
