//! A segment of blocks and records: recovery's walk, verification's, and the consumers' decoder,
//! against a naive reader.

#![no_main]

use std::path::Path;

use arbitrary::Arbitrary;
use eventplane::testing::{SimDisk, bytes};
use eventplane_fuzz::naive::{
    self, Chain, Header, PAGE, ROLLED_AT, Record, SEGMENT, SLAB, reseal_block, set,
};
use eventplane_fuzz::{Plant, plant, within};
use libfuzzer_sys::fuzz_target;

const SALT: u64 = 0x0123_4567_89AB_CDEF;
/// What a walk needs besides a slab: an index, faults.
const SMALL: usize = 16 << 10;

#[derive(Arbitrary, Debug)]
struct Input {
    number: Number,
    first_lsn: Number,
    pieces: Vec<Piece>,
    damage: Vec<Damage>,
    odd: bool,
}

/// Numbers that are worth trying.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Number {
    Small(u8),
    Near(i8),
    Top(u8),
    Half(u8),
    Any(u64),
}

impl Number {
    fn get(self, around: u64) -> u64 {
        match self {
            Number::Small(n) => n.into(),
            Number::Near(n) => around.wrapping_add_signed(n.into()),
            Number::Top(n) => u64::MAX - u64::from(n),
            Number::Half(n) => (1 << 62) - u64::from(n),
            Number::Any(n) => n,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Piece {
    place: Place,
    lies: Vec<(Field, Number)>,
    records: Vec<Rec>,
    /// The checksum is of what is there.
    broken: Option<u32>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Place {
    Next,
    Close,
    NextSlab,
    Skip(u8),
    Rolled,
    Inside(u8),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Field {
    Position,
    BodyBytes,
    Records,
    Flags,
    PrevCrc,
    FirstLsn,
    Time,
    Watermark,
    Salt,
}

#[derive(Arbitrary, Debug)]
struct Rec {
    kind: u16,
    key: u64,
    payload: Vec<u8>,
    zeros: u16,
    lie: Option<Option<(u8, u8)>>,
}

#[derive(Arbitrary, Debug)]
enum Damage {
    Bytes {
        at: u16,
        bytes: [u8; 4],
    },
    ZeroSector {
        sector: u8,
    },
    Move {
        from: u8,
        to: u8,
    },
    /// And the checksum of the block at that page is made right.
    Sealed {
        page: u8,
        at: u16,
        byte: u8,
    },
}

fn body(records: &[Rec]) -> Vec<u8> {
    let mut body = Vec::new();
    for record in records.iter().take(200) {
        let zeros = usize::from(record.zeros) % 9000 / (1 + record.payload.len());
        let mut header = [0; 16];
        let bytes = (record.payload.len() + zeros) as u32;
        header[..4].copy_from_slice(&bytes.to_le_bytes());
        header[4..6].copy_from_slice(&record.kind.to_le_bytes());
        header[6] = 1;
        header[8..].copy_from_slice(&record.key.to_le_bytes());
        if let Some(Some((at, byte))) = record.lie {
            header[usize::from(at % 16)] = byte;
        }
        body.extend_from_slice(&header);
        body.extend_from_slice(&record.payload);
        body.resize((body.len() + zeros).next_multiple_of(8), 0);
        body.truncate(40_000);
    }
    body
}

/// The segment as the plan has it.
fn build(input: &Input, number: u64, start: Chain) -> Vec<u8> {
    let mut file = vec![0; SEGMENT as usize];
    let (mut at, mut chain) = (PAGE, start);
    for piece in input.pieces.iter().take(40) {
        let here = match piece.place {
            Place::Next | Place::Close => at,
            Place::NextSlab => SLAB as usize,
            Place::Skip(pages) => at + usize::from(pages % 8) * PAGE,
            Place::Rolled => ROLLED_AT as usize,
            Place::Inside(page) => usize::from(page % 32) * PAGE,
        };
        let body = body(&piece.records);
        let bytes = body.len();
        let Some(image) = file.get_mut(here..here + 64 + bytes) else { continue };
        image[64..].copy_from_slice(&body);
        let position = number.wrapping_mul(SEGMENT).wrapping_add(here as u64);
        let mut header = Header {
            crc: piece.broken.unwrap_or(0),
            position,
            body_bytes: bytes as u32,
            records: piece.records.len().min(200) as u32,
            flags: u32::from(matches!(piece.place, Place::Rolled)),
            prev_crc: chain.crc,
            first_lsn: chain.next_lsn,
            time_nanos: 1,
            watermark: position,
            salt: SALT,
        };
        for &(field, lie) in &piece.lies {
            match field {
                Field::Position => header.position = lie.get(header.position),
                Field::BodyBytes => header.body_bytes = lie.get(header.body_bytes.into()) as u32,
                Field::Records => header.records = lie.get(header.records.into()) as u32,
                Field::Flags => header.flags = lie.get(header.flags.into()) as u32,
                Field::PrevCrc => header.prev_crc = lie.get(header.prev_crc.into()) as u32,
                Field::FirstLsn => header.first_lsn = lie.get(header.first_lsn),
                Field::Time => header.time_nanos = lie.get(header.time_nanos),
                Field::Watermark => header.watermark = lie.get(header.watermark),
                Field::Salt => header.salt = lie.get(header.salt),
            }
        }
        header.write(&mut file[here..]);
        if piece.broken.is_none() {
            header.crc = reseal_block(&mut file[here..]);
        }
        let next_lsn = header.first_lsn.wrapping_add(header.records.into());
        chain = Chain { next_lsn, crc: header.crc };
        if !matches!(piece.place, Place::Rolled) {
            at = here.saturating_add(header.padded()).min(SEGMENT as usize);
        }
    }
    for damage in input.damage.iter().take(20) {
        apply(&mut file, damage);
    }
    file
}

fn apply(file: &mut [u8], damage: &Damage) {
    match *damage {
        // Where the blocks are more often than behind them.
        Damage::Bytes { at, ref bytes } => set(file, usize::from(at) * 2, bytes),
        Damage::ZeroSector { sector } => set(file, usize::from(sector) * 512, &[0; 512]),
        Damage::Move { from, to } => {
            let from = usize::from(from % 32) * PAGE;
            file.copy_within(from..from + PAGE, usize::from(to % 32) * PAGE);
        }
        Damage::Sealed { page, at, byte } => {
            let page = usize::from(page % 32) * PAGE;
            set(file, page + usize::from(at % 4096), &[byte]);
            reseal_block(&mut file[page..]);
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
        if plant() == Plant::Panic && kind == 0xBAD0 && key == 77 {
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

fuzz_target!(|input: Input| {
    // What segments and LSNs there can be.
    let number = input.number.get(7) % ((1 << 62) / SEGMENT);
    let first_lsn = (input.first_lsn.get(1000) % (1 << 62)).max(1);
    let start = Chain { next_lsn: first_lsn, crc: if number == 0 { 0 } else { 0xABCD } };
    let file = build(&input, number, start);
    if plant() == Plant::Hang && naive::walk(&file, number, SALT, start).records.len() == 3 {
        loop {
            std::hint::spin_loop();
        }
    }
    decode_pages(&file, number);
    read_slabs(&file, number, start, input.odd);

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
