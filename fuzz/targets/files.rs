//! What stands alone: segment header, meta, footer, checkpoints. Built as docs/format.md draws
//! them, changed, and given the right checksum unless that is to be wrong.

#![no_main]

use arbitrary::Arbitrary;
use eventplane::testing::bytes;
use eventplane_fuzz::naive::{
    FOOTER, PAGE, SEGMENT, SLAB, envelope, half, is_sealed, reseal, salt, set, word,
};
use eventplane_fuzz::{Plant, plant, within};
use libfuzzer_sys::fuzz_target;

const NUMBER: u64 = 3;
const SALT: u64 = 0x0123_4567_89AB_CDEF;
/// What a decoder may allocate besides the size of what it is given: names, a message. What is
/// decoded is encoded again, and compared.
const SMALL: usize = 2048;

#[derive(Arbitrary, Debug)]
struct Input {
    what: What,
    changes: Vec<(u16, Change)>,
    seal: Option<bool>,
    len: Option<u16>,
}

#[derive(Arbitrary, Debug)]
enum What {
    Header { number: u64, nonce: u64, id: [u8; 16] },
    Meta { sequence: u64, log_start: u8, log_start_lsn: u64, second: Option<u8> },
    Footer { ends: Vec<u8>, entries: Vec<(u8, u8, u8)>, first_lsn: u64, records: u64, torn: bool },
    Checkpoints { entries: Vec<(u64, Vec<u8>)>, generation: u64 },
    Raw { magic: u8, bytes: Vec<u8> },
}

#[derive(Arbitrary, Debug)]
enum Change {
    Byte(u8),
    Word(u64),
    Size(u8),
    Small(u8),
    Top(u8),
}

impl Change {
    fn apply(&self, bytes: &mut [u8], at: usize) {
        match *self {
            Change::Byte(byte) => set(bytes, at, &[byte]),
            Change::Word(word) => set(bytes, at, &word.to_le_bytes()),
            Change::Size(bits) => set(bytes, at, &(1u64 << (bits % 64)).to_le_bytes()),
            Change::Small(n) => set(bytes, at, &u64::from(n).to_le_bytes()),
            Change::Top(n) => set(bytes, at, &(u64::MAX - u64::from(n)).to_le_bytes()),
        }
    }
}

const MAGICS: [&[u8; 8]; 4] = [b"EVPLSEGM", b"EVPLMETA", b"EVPLFOOT", b"EVPLCKPT"];

/// Which structure, and its bytes.
fn build(what: &What) -> (usize, Vec<u8>) {
    match what {
        What::Header { number, nonce, id } => (0, header(*number, *nonce, id)),
        What::Meta { sequence, log_start, log_start_lsn, second } => {
            let mut file = meta(*sequence, *log_start, *log_start_lsn);
            let second = second.map(|n| meta(sequence.wrapping_add(n.into()), n, *log_start_lsn));
            file.extend(second.unwrap_or_default());
            (1, file)
        }
        What::Footer { ends, entries, first_lsn, records, torn } => {
            (2, footer(ends, entries, *first_lsn, *records, *torn))
        }
        What::Checkpoints { entries, generation } => (3, checkpoints(entries, *generation)),
        What::Raw { magic, bytes } => {
            let magic = usize::from(magic % 4);
            let mut out = envelope(MAGICS[magic], 32);
            out.extend_from_slice(bytes);
            if magic < 3 {
                out.resize(PAGE, 0);
            }
            (magic, out)
        }
    }
}

fn header(number: u64, nonce: u64, id: &[u8]) -> Vec<u8> {
    let mut page = envelope(b"EVPLSEGM", PAGE);
    set(&mut page, 32, id);
    for (i, word) in [nonce, number, SLAB, SEGMENT, 5].into_iter().enumerate() {
        set(&mut page, 48 + 8 * i, &word.to_le_bytes());
    }
    page
}

fn meta(sequence: u64, log_start: u8, log_start_lsn: u64) -> Vec<u8> {
    let mut slot = envelope(b"EVPLMETA", PAGE);
    let start = u64::from(log_start) * SEGMENT;
    let words = [sequence, 1, SLAB, SEGMENT, start, log_start_lsn];
    for (i, word) in words.into_iter().enumerate() {
        set(&mut slot, 48 + 8 * i, &word.to_le_bytes());
    }
    reseal(&mut slot);
    slot
}

fn footer(ends: &[u8], entries: &[(u8, u8, u8)], first: u64, records: u64, torn: bool) -> Vec<u8> {
    let mut region = envelope(b"EVPLFOOT", FOOTER as usize);
    let (ends, entries) = (&ends[..ends.len().min(2)], &entries[..entries.len().min(2)]);
    let mut index = Vec::new();
    let (mut lsn, mut time, mut offset) = (first, 7, 0);
    for &(lsns, nanos, pages) in entries {
        index.push((lsn, time, offset + PAGE as u32));
        lsn = lsn.wrapping_add(u64::from(lsns));
        time += u64::from(nanos);
        offset += u32::from(pages) * PAGE as u32;
    }
    let head = [NUMBER, SALT, u64::from(torn), 0, first, records, 7, time];
    for (i, word) in head.into_iter().enumerate() {
        set(&mut region, 32 + 8 * i, &word.to_le_bytes());
    }
    set(&mut region, 56, &(ends.len() as u32).to_le_bytes());
    set(&mut region, 60, &(index.len() as u32).to_le_bytes());
    let mut at = 128;
    for &end in ends {
        set(&mut region, at, &(u32::from(end) * PAGE as u32).to_le_bytes());
        at += 4;
    }
    for (lsn, time, offset) in index {
        set(&mut region, at, &lsn.to_le_bytes());
        set(&mut region, at + 8, &time.to_le_bytes());
        set(&mut region, at + 16, &offset.to_le_bytes());
        at += 24;
    }
    region
}

fn checkpoints(entries: &[(u64, Vec<u8>)], generation: u64) -> Vec<u8> {
    let mut file = envelope(b"EVPLCKPT", 64);
    set(&mut file, 48, &generation.to_le_bytes());
    set(&mut file, 56, &(entries.len() as u32).to_le_bytes());
    for (lsn, name) in entries {
        file.extend_from_slice(&lsn.to_le_bytes());
        file.push(name.len() as u8);
        file.extend_from_slice(name);
    }
    file
}

/// `again` says the same as `bytes`, in every byte that means anything.
fn same(bytes: &[u8], again: &[u8], used: std::ops::Range<usize>) {
    assert_eq!(bytes[..8], again[..8]);
    assert_eq!(bytes[used.clone()], again[used], "decoded to something else");
    assert!(is_sealed(again));
}

fn decode(which: usize, file: &[u8]) {
    // Encoding takes as much again, and so does comparing.
    let most = SMALL + 3 * file.len().max(2 * PAGE);
    match which {
        0 => {
            let Ok((again, found)) = within(most, || bytes::segment_header(file)) else { return };
            same(file, &again, 32..88);
            assert_eq!(found, salt(file));
            assert!(is_sealed(&file[..PAGE]), "accepted with a wrong checksum");
        }
        1 => {
            let Ok(again) = within(most, || bytes::meta(file)) else { return };
            let slot = (word(&again, 48) % 2) as usize;
            let slot = &file[slot * PAGE..][..PAGE];
            same(slot, &again, 32..96);
            assert!(is_sealed(slot), "accepted with a wrong checksum");
        }
        2 => {
            let seeks = [0, 1, 7, word(file, 64), u64::MAX];
            let decoded = || bytes::footer(file, SEGMENT, (NUMBER, SALT), &seeks);
            let Ok(again) = within(most, decoded) else { return };
            if again.is_empty() {
                return assert!(file.iter().all(|&byte| byte == 0));
            }
            same(file, &again, 32..128);
            let used = 4 * half(file, 56) + 24 * half(file, 60);
            assert!(is_sealed(file), "accepted with a wrong checksum");
            assert!(128 + used as usize <= file.len());
        }
        _ => {
            if plant() == Plant::Allocation && is_sealed(file) && file.len() >= 64 {
                within(most, || Vec::<u64>::with_capacity(half(file, 56) as usize));
            }
            let Ok(again) = within(most, || bytes::checkpoints(file)) else { return };
            assert_eq!(again.len(), file.len());
            same(file, &again, 32..60);
            assert_eq!(file[64..], again[64..]);
            assert!(is_sealed(file), "accepted with a wrong checksum");
            if plant() == Plant::Panic && file[72] == 3 && &file[73..76] == b"bad" {
                panic!("planted: a certain name");
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let (which, mut file) = build(&input.what);
    let honest = input.changes.is_empty() && input.len.is_none();
    for (at, change) in input.changes.iter().take(8) {
        // What counts is in the first bytes, of either slot.
        let second = which == 1 && file.len() > PAGE && at / 256 % 8 == 0;
        let at = usize::from(at % 256) + if second { PAGE } else { 0 };
        change.apply(&mut file, at);
    }
    let seal = input.seal != Some(false);
    match (seal, which) {
        (true, 1) => file.chunks_mut(PAGE).for_each(reseal),
        (true, _) => reseal(&mut file),
        _ => {}
    }
    if let Some(len) = input.len {
        file.resize(usize::from(len) % (2 * PAGE + 10), 0);
        // Is the length believed where it is wrong, or the checksum?
        if len % 3 == 0 {
            reseal(&mut file);
        }
    }
    // Every decoder is given every structure.
    for other in 0..4 {
        if other != 2 || file.len() >= 128 {
            decode(other, &file);
        }
    }
    if honest
        && seal
        && which == 0
        && let What::Header { number, .. } = input.what
    {
        let fits = number < (1 << 62) / SEGMENT;
        assert_eq!(bytes::segment_header(&file).is_ok(), fits, "refused what is as drawn");
    }
});
