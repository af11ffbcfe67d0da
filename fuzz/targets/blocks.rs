//! A segment of blocks and records: recovery's walk, verification's, and the consumers' decoder,
//! against a naive reader.

#![no_main]

use std::path::Path;

use eventplane::testing::{SimDisk, bytes};
use eventplane_fuzz::naive::{
    self, Chain, Header, PAGE, ROLLED_AT, Record, SEGMENT, SLAB, reseal_block, set,
};
use eventplane_fuzz::{Plant, number, plant, program, within};
use libfuzzer_sys::fuzz_target;

const SALT: u64 = 0x0123_4567_89AB_CDEF;
/// What a walk needs besides a slab: an index, faults.
const SMALL: usize = 16 << 10;

/// A segment file in the making.
struct Making {
    file: Vec<u8>,
    number: u64,
    /// Where the next block goes.
    at: usize,
    chain: Chain,
    /// Of the next block.
    body: Vec<u8>,
    records: u32,
    last_record: usize,
    lies: Vec<[u8; 3]>,
}

impl Making {
    fn record(&mut self, kind: [u8; 2], key: [u8; 2], len: u8, fill: u8) {
        // Most are small; some take whole sectors.
        let bytes = if len < 200 { usize::from(len) } else { usize::from(len - 200) * 500 };
        let mut header = [0; 16];
        header[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
        header[4..6].copy_from_slice(&kind);
        header[6] = 1;
        header[8..10].copy_from_slice(&key);
        self.last_record = self.body.len();
        self.body.extend_from_slice(&header);
        self.body.resize(self.body.len() + bytes, fill);
        self.body.resize(self.body.len().next_multiple_of(8), 0);
        self.records += 1;
    }

    /// Writes what is there as a block, as a writer does but for the lies.
    fn block(&mut self, at: usize, flags: u32) {
        let body = std::mem::take(&mut self.body);
        let lies = std::mem::take(&mut self.lies);
        let records = std::mem::take(&mut self.records);
        let Some(image) = self.file.get_mut(at..at + 64 + body.len()) else { return };
        image[64..].copy_from_slice(&body);
        let position = self.number * SEGMENT + at as u64;
        let mut header = Header {
            crc: 0,
            position,
            body_bytes: body.len() as u32,
            records,
            flags,
            prev_crc: self.chain.crc,
            first_lsn: self.chain.next_lsn,
            time_nanos: 1,
            watermark: position,
            salt: SALT,
        };
        let mut sealed = true;
        for [field, how, n] in lies {
            let lie = |old: u64| number(how, n, old);
            match field % 12 {
                0 => header.position = lie(header.position),
                1 => header.body_bytes = lie(header.body_bytes.into()) as u32,
                2 => header.records = lie(header.records.into()) as u32,
                3 => header.flags = lie(header.flags.into()) as u32,
                4 => header.prev_crc = lie(header.prev_crc.into()) as u32,
                5 => header.first_lsn = lie(header.first_lsn),
                6 => header.time_nanos = lie(header.time_nanos),
                7 | 8 => header.watermark = lie(header.watermark),
                9 => header.salt = lie(header.salt),
                _ => sealed = false,
            }
        }
        header.write(&mut self.file[at..]);
        if sealed {
            header.crc = reseal_block(&mut self.file[at..]);
        }
        let next_lsn = header.first_lsn.wrapping_add(header.records.into());
        self.chain = Chain { next_lsn, crc: header.crc };
        if flags == 0 {
            self.at = at.saturating_add(header.padded()).min(SEGMENT as usize);
        }
    }

    fn step(&mut self, [op, a, b, c, d, e, f, _]: [u8; 8]) {
        let page = usize::from(a % 32) * PAGE;
        match op % 20 {
            0..8 => self.record([a, b], [c, d], e, f),
            8..11 => self.block(self.at, 0),
            11 => self.block(SLAB as usize, 0),
            12 => self.block(self.at + usize::from(a % 4) * PAGE, 0),
            13 => self.block(ROLLED_AT as usize, 1),
            14 | 15 => self.lies.push([a, b, c]),
            // In the header of the last record.
            16 => set(&mut self.body, self.last_record + usize::from(a % 16), &[b]),
            17 => set(&mut self.file, page + usize::from(b) * 16 + usize::from(c % 16), &[d]),
            18 => match c % 3 {
                0 => set(&mut self.file, page + usize::from(b % 8) * 512, &[0; 512]),
                1 => self.file.copy_within(page..page + PAGE, usize::from(b % 32) * PAGE),
                _ => set(&mut self.file, page + usize::from(b % 8) * 512, &[d; 512]),
            },
            // And the checksum of the block at that page is made right.
            _ => {
                set(&mut self.file, page + usize::from(b) * 4 + usize::from(c % 4), &[d]);
                reseal_block(&mut self.file[page..]);
            }
        }
    }
}

/// Compares what is passed, one by one, with what should be.
struct Expected<'a> {
    records: &'a [Record],
    seen: usize,
}

impl<'a> Expected<'a> {
    fn of(records: &'a [Record]) -> Expected<'a> {
        Expected { records, seen: 0 }
    }

    fn see(&mut self, kind: u16, key: u64, payload: &[u8]) {
        let expected = self.records.get(self.seen).expect("more records than there are");
        assert_eq!((expected.0, expected.1, &*expected.2), (kind, key, payload));
        self.seen += 1;
        if plant() == Plant::Panic && self.seen == 2 && payload.len() == 77 {
            panic!("planted: a certain record");
        }
    }
}

/// Each page by itself: is it a block, and can it be a torn one?
fn decode_pages(file: &[u8], number: u64) {
    for page in (0..file.len()).step_by(PAGE) {
        let position = number * SEGMENT + page as u64;
        let naive = naive::block(&file[page..], position, SALT);
        let records = naive.as_ref().map_or(&[][..], |(_, records)| records);
        let mut expected = Expected::of(records);
        let found = within(SMALL, || {
            bytes::block(&file[page..], position, SALT, &mut |k, y, p| expected.see(k, y, p))
        });
        assert_eq!(found.is_ok(), naive.is_some(), "page at {page}: {found:?}");
        assert_eq!(expected.seen, records.len());
    }
}

/// The consumers' decoder on each slab.
fn read_slabs(file: &[u8], number: u64, start: Chain, odd: bool) {
    let mut next_lsn = start.next_lsn;
    for slab in 0..2 {
        let (from, to) = naive::room(slab);
        let window = &file[from as usize..to as usize];
        let (mut records, mut at) = (Vec::new(), 0);
        let mut ends = true;
        while at < window.len() {
            let position = number * SEGMENT + from + at as u64;
            let found = naive::block(&window[at..], position, SALT);
            // A block without records says nothing that a consumer needs.
            let found = found.filter(|(h, r)| r.is_empty() || h.first_lsn == next_lsn);
            let Some((header, more)) = found else {
                ends = false;
                break;
            };
            next_lsn += more.len() as u64;
            records.extend(more);
            at += header.padded();
        }
        let first = next_lsn - records.len() as u64;
        let mut expected = Expected::of(&records);
        let each = &mut |k, y, p: &[u8]| expected.see(k, y, p);
        let id = (number * SEGMENT + from, SALT);
        let ended = within(SMALL, || bytes::read(window, id, first, odd, each));
        assert_eq!(expected.seen, records.len(), "what lies before an error is passed first");
        // A block that reaches over the window is asked for again, and refused elsewhere.
        assert!(ended || !ends, "an error where there is nothing wrong");
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[how, a, b, odd], data)) = data.split_first_chunk() else { return };
    // What segments and LSNs there can be.
    let number = number(how, a, 7) % ((1 << 62) / SEGMENT);
    let first_lsn = (eventplane_fuzz::number(how / 16, b, 1000) % (1 << 62)).max(1);
    let start = Chain { next_lsn: first_lsn, crc: if number == 0 { 0 } else { 0xABCD } };
    let file = vec![0; SEGMENT as usize];
    let (body, lies) = (Vec::new(), Vec::new());
    let mut making =
        Making { file, number, at: PAGE, chain: start, body, records: 0, last_record: 0, lies };
    program(data).for_each(|instruction| making.step(instruction));
    let file = making.file;
    if plant() == Plant::Hang && naive::walk(&file, number, SALT, start).records.len() == 3 {
        loop {
            std::hint::spin_loop();
        }
    }
    decode_pages(&file, number);
    read_slabs(&file, number, start, odd % 2 == 1);

    let disk = SimDisk::new(1);
    let path = Path::new("/log");
    disk.put(path, &file);
    let segment = bytes::Segment {
        disk: &disk,
        path,
        slab_bytes: SLAB,
        segment_bytes: SEGMENT,
        number,
        salt: SALT,
        chain: (start.next_lsn, start.crc),
    };
    let naive = naive::walk(&file, number, SALT, start);
    let mut expected = Expected::of(&naive.records);
    let walk = within(SEGMENT as usize + SMALL, || {
        bytes::walk(&segment, &mut |k, y, p| expected.see(k, y, p)).unwrap()
    });
    let seen = expected.seen as u64;
    assert_eq!((walk.records, seen), (naive.records.len() as u64, seen));
    assert_eq!((walk.end, walk.rolled), (naive.end, naive.rolled));
    let rest = naive::all_blocks(&file, number, SALT, naive.end);
    assert_eq!(walk.good_blocks, rest.len() as u64);
    assert_eq!(walk.vouched, rest.iter().map(|(_, h)| h.watermark).max().unwrap_or(0));
    let tail = &file[naive.end as usize..ROLLED_AT as usize + PAGE];
    assert_eq!(walk.nonzero_bytes == 0, naive::is_zero(tail));

    let mut expected = Expected::of(&naive.records);
    let mut more = 0;
    let faults = within(SEGMENT as usize + SMALL, || {
        let each = &mut |k, y, p: &[u8]| match expected.seen < expected.records.len() {
            true => expected.see(k, y, p),
            false => more += 1,
        };
        bytes::check(&segment, each).unwrap()
    });
    assert_eq!(expected.seen, naive.records.len());
    // Verification looks behind bytes that recovery stops at, and says that they are there.
    assert!(more == 0 || faults > 0);
});
