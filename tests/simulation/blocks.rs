//! The blocks of a segment file, read by docs/format.md alone.

/// A block as it lies in its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Offset in the file of its header, and of the byte behind its records.
    pub(crate) offset: usize,
    pub(crate) framed_end: usize,
    pub(crate) position: u64,
    pub(crate) first_lsn: u64,
    pub(crate) records: u32,
    pub(crate) watermark: u64,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(wide)
}

/// Good blocks, in the order of their places.
pub(crate) fn blocks(file: &[u8], segment_start: u64) -> Vec<Block> {
    (4096..file.len())
        .step_by(4096)
        .filter_map(|offset| block(file, offset, segment_start))
        .collect()
}

fn block(file: &[u8], offset: usize, segment_start: u64) -> Option<Block> {
    let bytes = file.get(offset..)?;
    if bytes.len() < 64 || &bytes[..4] != b"EVBK" {
        return None;
    }
    let framed = 64 + number::<4>(bytes, 16) as usize;
    let sum = crc32c::crc32c(bytes.get(8..framed)?);
    let position = number::<8>(bytes, 8);
    let good = u64::from(sum) == number::<4>(bytes, 4) && position == segment_start + offset as u64;
    good.then(|| Block {
        offset,
        framed_end: offset + framed,
        position,
        first_lsn: number::<8>(bytes, 32),
        records: number::<4>(bytes, 20) as u32,
        watermark: number::<8>(bytes, 48),
    })
}
