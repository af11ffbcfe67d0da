//! docs/format.md once more, as simply as can be: what the product's decoders are compared with.

pub const PAGE: usize = 4096;
pub const SLAB: u64 = 64 << 10;
pub const SEGMENT: u64 = 2 * SLAB;
/// Of a segment of that size: 128 + 2 * 28, rounded up.
pub const FOOTER: u64 = PAGE as u64;
pub const ROLLED_AT: u64 = SEGMENT - FOOTER - PAGE as u64;

/// No position, LSN or count reaches this.
pub const NUMBER_END: u64 = 1 << 62;

/// Kind, key, payload.
pub type Record = (u16, u64, Vec<u8>);

pub fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Puts the right checksum into a structure that begins with the envelope.
pub fn reseal(bytes: &mut [u8]) {
    if bytes.len() >= 32 {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
        set(bytes, 12, &crc.to_le_bytes());
    }
}

/// All at once, which is faster than byte by byte where each step is counted.
pub fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; SEGMENT as usize] = [0; SEGMENT as usize];
    bytes == &ZEROS[..bytes.len()]
}

pub fn is_sealed(bytes: &[u8]) -> bool {
    let mut again = bytes.to_vec();
    reseal(&mut again);
    again == bytes
}

fn mix(word: u64) -> u64 {
    let z = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Of the segment with this header page.
pub fn salt(page: &[u8]) -> u64 {
    let words = [32, 40, 48, 56].map(|at| word(page, at));
    words.into_iter().fold(0, |salt, word| mix(salt ^ word)).max(1)
}

/// An envelope around zeros.
pub fn envelope(magic: &[u8; 8], bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes.max(32)];
    set(&mut out, 0, magic);
    set(&mut out, 8, &[1, 0]);
    out
}

/// A block's header fields, by their offsets.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub crc: u32,
    pub position: u64,
    pub body_bytes: u32,
    pub records: u32,
    pub flags: u32,
    pub prev_crc: u32,
    pub first_lsn: u64,
    pub time_nanos: u64,
    pub watermark: u64,
    pub salt: u64,
}

impl Header {
    pub fn read(bytes: &[u8]) -> Option<Header> {
        if bytes.len() < 64 || &bytes[..4] != b"EVBK" {
            return None;
        }
        Some(Header {
            crc: half(bytes, 4),
            position: word(bytes, 8),
            body_bytes: half(bytes, 16),
            records: half(bytes, 20),
            flags: half(bytes, 24),
            prev_crc: half(bytes, 28),
            first_lsn: word(bytes, 32),
            time_nanos: word(bytes, 40),
            watermark: word(bytes, 48),
            salt: word(bytes, 56),
        })
    }

    pub fn write(&self, bytes: &mut [u8]) {
        set(bytes, 0, b"EVBK");
        set(bytes, 4, &self.crc.to_le_bytes());
        set(bytes, 8, &self.position.to_le_bytes());
        set(bytes, 16, &self.body_bytes.to_le_bytes());
        set(bytes, 20, &self.records.to_le_bytes());
        set(bytes, 24, &self.flags.to_le_bytes());
        set(bytes, 28, &self.prev_crc.to_le_bytes());
        set(bytes, 32, &self.first_lsn.to_le_bytes());
        set(bytes, 40, &self.time_nanos.to_le_bytes());
        set(bytes, 48, &self.watermark.to_le_bytes());
        set(bytes, 56, &self.salt.to_le_bytes());
    }

    /// Where the next block starts, from here.
    pub fn padded(&self) -> usize {
        (64 + self.body_bytes as usize).next_multiple_of(PAGE)
    }
}

/// Puts the right checksum on a block, as far as its length is possible. Returns it.
pub fn reseal_block(bytes: &mut [u8]) -> u32 {
    let Some(header) = Header::read(bytes) else { return 0 };
    let Some(framed) = bytes.get(8..64 + header.body_bytes as usize) else { return header.crc };
    let crc = crc32c::crc32c(framed);
    set(bytes, 4, &crc.to_le_bytes());
    crc
}

/// The records that fill a body, if exactly so many do.
fn records(body: &[u8], count: u32) -> Option<Vec<Record>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < body.len() {
        let header = body.get(at..at + 16)?;
        let (bytes, flags) = (half(header, 0) as usize, u16::from_le_bytes([header[6], header[7]]));
        let payload = body.get(at + 16..(at + 16).checked_add(bytes)?)?;
        if flags != 1 {
            return None;
        }
        let kind = u16::from_le_bytes([header[4], header[5]]);
        found.push((kind, word(header, 8), payload.to_vec()));
        at = (at + 16 + bytes).next_multiple_of(8);
    }
    (at == body.len() && found.len() == count as usize).then_some(found)
}

/// The block that should start here, `bytes` reaching as far as it may.
pub fn block(bytes: &[u8], position: u64, salt: u64) -> Option<(Header, Vec<Record>)> {
    let header = Header::read(bytes)?;
    let framed = bytes.get(8..64 + header.body_bytes as usize)?;
    let fits = header.position == position && header.salt == salt;
    if !fits || crc32c::crc32c(framed) != header.crc || header.flags > 1 {
        return None;
    }
    if header.flags == 1 && header.records > 0 {
        return None;
    }
    // No number that counts something comes near to overflowing.
    let end_lsn = header.first_lsn.checked_add(u64::from(header.records))?;
    if header.first_lsn == 0 || end_lsn > NUMBER_END {
        return None;
    }
    Some((header, records(&framed[56..], header.records)?))
}

/// What the next block must continue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain {
    pub next_lsn: u64,
    pub crc: u32,
}

/// The blocks of a segment in their order.
#[derive(Clone, Debug)]
pub struct Walk {
    pub records: Vec<Record>,
    /// Of each block, as an offset in the segment: begin and end.
    pub blocks: Vec<(u64, u64, Header)>,
    pub end: u64,
    pub rolled: bool,
    pub chain: Chain,
}

/// Room for blocks in one slab: from and to, as offsets in the segment.
pub fn room(slab: u64) -> (u64, u64) {
    let from = if slab == 0 { PAGE as u64 } else { slab * SLAB };
    (from, ((slab + 1) * SLAB).min(ROLLED_AT))
}

/// Follows the chain from the segment's first block on.
pub fn walk(file: &[u8], number: u64, salt: u64, mut chain: Chain) -> Walk {
    let mut out = Walk { records: vec![], blocks: vec![], end: PAGE as u64, rolled: false, chain };
    let good = |from: u64, to: u64, chain: Chain| {
        let bytes = &file[from as usize..to as usize];
        let (header, records) = block(bytes, number * SEGMENT + from, salt)?;
        let follows = header.prev_crc == chain.crc && header.first_lsn == chain.next_lsn;
        follows.then_some((header, records))
    };
    let mut broken = false;
    for slab in 0..2 {
        let (mut at, to) = room(slab);
        while let Some((header, records)) =
            good(at, to, chain).filter(|(header, _)| header.flags == 0 && !broken)
        {
            chain = Chain { next_lsn: header.first_lsn + records.len() as u64, crc: header.crc };
            out.records.extend(records);
            let end = at + header.padded() as u64;
            out.blocks.push((at, end, header));
            (out.end, at) = (end, end);
        }
        broken |= !is_zero(&file[at.min(to) as usize..to as usize]);
    }
    let last = good(ROLLED_AT, ROLLED_AT + PAGE as u64, chain);
    if let Some((header, _)) = last.filter(|(header, _)| header.flags == 1 && !broken) {
        chain.crc = header.crc;
        out.rolled = true;
    }
    out.chain = chain;
    out
}

/// Every good block at any page of a segment from `from` on, whatever its order.
pub fn all_blocks(file: &[u8], number: u64, salt: u64, from: u64) -> Vec<(u64, Header)> {
    let pages = (from.max(PAGE as u64)..ROLLED_AT + PAGE as u64).step_by(PAGE);
    let good = pages.filter_map(|at| {
        let to = if at < SLAB { SLAB } else { ROLLED_AT + PAGE as u64 };
        let found = block(&file[at as usize..to as usize], number * SEGMENT + at, salt);
        found.map(|(header, _)| (at, header))
    });
    good.collect()
}
