//! What stands alone: segment header, meta, footer, checkpoints. Built as docs/format.md draws
//! them, changed, and given the right checksum unless that is to be wrong.

#![no_main]

use eventplane::testing::bytes;
use eventplane_fuzz::naive::{
    FOOTER, PAGE, SEGMENT, SLAB, envelope, half, is_sealed, reseal, salt, set, word,
};
use eventplane_fuzz::{Plant, number, plant, program, within};
use libfuzzer_sys::fuzz_target;

const NUMBER: u64 = 3;
const SALT: u64 = 0x0123_4567_89AB_CDEF;
/// What a decoder may allocate besides the size of what it is given: names, a message. What is
/// decoded is encoded again, and compared.
const SMALL: usize = 2048;

/// One of the four, as drawn, but for a length that is too large. Which, and its bytes.
fn build(kind: u8, [a, b, c, d]: [u8; 4], list: &[[u8; 8]]) -> (usize, Vec<u8>) {
    let (lsn, small) = (number(a, b, 1000), u64::from(c));
    match kind % 4 {
        0 => (0, header(lsn, small, &[d; 16])),
        1 => {
            let mut file = meta(small, d % 8, lsn);
            if a >= 64 {
                file.extend(meta(small ^ 1, d / 8 % 8, lsn));
            }
            (1, file)
        }
        2 => {
            let entries: Vec<_> = list.iter().map(|&[_, x, y, z, ..]| (x, y, z)).collect();
            let entries = &entries[..entries.len().min(usize::from(c % 3))];
            let records = entries.iter().map(|e| u64::from(e.0)).sum::<u64>() + u64::from(d % 4);
            (2, footer(&[a % 20, b % 20], entries, small + 1, records, d % 2 == 1))
        }
        _ => {
            let name = |i: &[u8; 8]| i[2..2 + usize::from(i[1] % 7)].to_vec();
            let entries: Vec<_> = list.iter().map(|i| (u64::from(i[0]), name(i))).collect();
            (3, checkpoints(&entries, small))
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
            let decoded = || bytes::footer(file, (NUMBER, SALT), (SLAB, SEGMENT), &seeks);
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
            if plant() == Plant::Panic && half(file, 56) == 2 && file[73] == b'b' {
                panic!("planted: a certain name");
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[kind, how, count, cut, a, b, c, d], data)) = data.split_first_chunk() else {
        return;
    };
    let program: Vec<_> = program(data).collect();
    let (list, changes) = program.split_at(program.len().min(usize::from(count % 16)));
    let (which, mut file) = build(kind, [a, b, c, d], list);
    let honest = changes.is_empty() && how % 4 < 2;
    for &[at, size, how, n, ..] in changes {
        // What counts is in the first bytes, of either slot.
        let second = which == 1 && file.len() > PAGE && size % 8 == 7;
        let at = usize::from(at) + if second { PAGE } else { 0 };
        let old = file.get(at..at + 8).map_or(0, |_| word(&file, at));
        let value = number(how, n, old).to_le_bytes();
        set(&mut file, at, &value[..[1, 2, 4, 8][usize::from(size % 4)]]);
    }
    match (how % 4, which) {
        (0 | 1, 1) => file.chunks_mut(PAGE).for_each(reseal),
        (0 | 1, _) => reseal(&mut file),
        (2, _) => file.resize(usize::from(cut) * 33, 0),
        _ => {
            file.resize(usize::from(cut) * 33, 0);
            reseal(&mut file);
        }
    }
    // Every decoder is given every structure.
    for other in 0..4 {
        if other != 2 || file.len() >= 128 {
            decode(other, &file);
        }
    }
    if honest && which == 0 {
        let fits = word(&file, 56) < (1 << 62) / SEGMENT;
        assert_eq!(bytes::segment_header(&file).is_ok(), fits, "refused what is as drawn");
    }
});
