//! A whole directory: a log that a bus wrote, then damaged, or forged with right checksums. Opening
//! it must give what a naive reader finds, or an error; never less than later blocks vouch for.

#![no_main]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arbitrary::Arbitrary;
use eventplane::testing::{Crash, ManualClock, SimDisk, bytes};
use eventplane::{Builder, Bus, Error, ErrorKind, Retention, Start};
use eventplane_fuzz::naive::{
    self, FOOTER, Header, PAGE, Record, SEGMENT, SLAB, reseal, reseal_block, set, word,
};
use eventplane_fuzz::{Plant, plant, within};
use libfuzzer_sys::fuzz_target;

const DIR: &str = "/log";
/// What a bus takes besides what it reads: buffers of its pool, tables, messages.
const SMALL: usize = 12 << 20;

#[derive(Arbitrary, Debug)]
struct Input {
    base: u8,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    /// Damage that a disk can do.
    Flip {
        file: u8,
        page: u8,
        at: u16,
        bit: u8,
    },
    Zero {
        file: u8,
        page: u8,
        sectors: u8,
    },
    Noise {
        file: u8,
        page: u8,
        seed: u8,
    },
    Truncate {
        file: u8,
        page: u8,
        by: u8,
    },
    Lose {
        file: u8,
    },
    Misdirect {
        from: u8,
        at: u8,
        to: u8,
        there: u8,
    },
    CopyFile {
        from: u8,
        to: u8,
    },
    /// Forgeries: the checksum is made right.
    Field {
        file: u8,
        field: u8,
        value: Value,
    },
    Block {
        file: u8,
        block: u8,
        field: u8,
        value: Value,
        chain: bool,
    },
    Record {
        file: u8,
        block: u8,
        at: u8,
        byte: u8,
    },
    Footer {
        file: u8,
        at: u8,
        value: Value,
    },
    Put {
        name: Name,
        bytes: Vec<u8>,
        len: u32,
    },
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Value {
    Small(u8),
    Near(i8),
    Pages(i8),
    Segments(i8),
    Bit(u8),
    Top(u8),
    Any(u64),
}

impl Value {
    fn get(self, old: u64) -> u64 {
        match self {
            Value::Small(n) => n.into(),
            Value::Near(n) => old.wrapping_add_signed(n.into()),
            Value::Pages(n) => old.wrapping_add_signed(i64::from(n) * PAGE as i64),
            Value::Segments(n) => old.wrapping_add_signed(i64::from(n) * SEGMENT as i64),
            Value::Bit(n) => 1 << (n % 64),
            Value::Top(n) => u64::MAX - u64::from(n),
            Value::Any(n) => n,
        }
    }
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Name {
    Checkpoints,
    Foreign,
    Temporary,
    Segment(u8),
    FarSegment(u64),
    LastSegment,
    OddSegment(u64),
    Other,
}

impl Name {
    fn path(self) -> String {
        let segment = |position: u64| format!("{DIR}/segments/{position:020}.log");
        match self {
            Name::Checkpoints => format!("{DIR}/checkpoints"),
            Name::Foreign => format!("{DIR}/checkpoints.foreign"),
            Name::Temporary => format!("{DIR}/segments/00000000000000131072.tmp"),
            Name::Segment(n) => segment(u64::from(n % 8) * SEGMENT),
            Name::FarSegment(n) => segment(n / SEGMENT * SEGMENT),
            Name::LastSegment => segment(u64::MAX / SEGMENT * SEGMENT),
            Name::OddSegment(n) => segment(n),
            Name::Other => format!("{DIR}/segments/README"),
        }
    }
}

/// A log as a bus left it.
struct Base {
    disk: SimDisk,
    first_lsn: u64,
    /// All that was ever acknowledged and is kept.
    records: Vec<Record>,
}

fn builder(disk: &SimDisk, clock: &ManualClock) -> Builder {
    Bus::builder()
        .slab_bytes(SLAB)
        .segment_bytes(SEGMENT)
        .ring_bytes(2 * SEGMENT)
        .catchup_window_bytes(4 * SEGMENT)
        .pin_budget_bytes(4 * SLAB)
        .readahead_bytes(SLAB)
        .consumers_max(4)
        .simulated(disk)
        .manual(clock)
}

/// Commits so many records, of many sizes.
fn write(bus: &Bus, count: u64, records: &mut Vec<Record>) {
    let writer = bus.writer();
    for i in 0..count {
        let payload = vec![i as u8 | 1; [10, 700, 5000, 20_000][(i * 7 % 11 % 4) as usize]];
        writer.append(i as u16, i << 40 | 7, &payload).expect("an honest disk");
        records.push((i as u16, i << 40 | 7, payload));
        bus.drive().expect("an honest disk");
    }
}

fn base(kind: usize) -> Base {
    let (disk, clock) = (SimDisk::new(kind as u64), ManualClock::default());
    let mut records = Vec::new();
    let retention = match kind {
        3 => Retention::bytes(4 * SEGMENT),
        _ => Retention::default(),
    };
    let bus = builder(&disk, &clock).retention(retention).open(DIR).expect("a new log");
    let count = [0, 9, 60, 90, 60][kind];
    write(&bus, count, &mut records);
    if kind >= 2 {
        let ack = |_: &eventplane::Batch<'_>| Ok(eventplane::Ack::All);
        let mut consumer = bus.subscribe("reader").manual(ack).expect("a subscriber");
        for _ in 0..200 {
            consumer.poll();
        }
        clock.advance(Duration::from_secs(1));
        bus.housekeep();
        bus.drive().expect("an honest disk");
    }
    let first_lsn = bus.first_lsn().get();
    let disk = match kind {
        // The power is cut while something is written that will not be acknowledged.
        4 => {
            let cut = Arc::new(Mutex::new(None));
            let found = Arc::clone(&cut);
            disk.watch(move |disk| {
                let mut crashes = (0..20).map(|seed| disk.crash(Crash::PowerCut, seed));
                let mut found = found.lock().expect("one thread");
                *found = found.take().or_else(|| crashes.find(is_torn));
            });
            bus.writer().append(9, 9, &[9; 9000]).expect("an honest disk");
            disk.unwatch();
            drop(bus);
            let torn = cut.lock().expect("one thread").take();
            torn.expect("a torn write")
        }
        _ => {
            bus.close().expect("an honest disk");
            disk
        }
    };
    records.drain(..first_lsn as usize - 1);
    Base { disk, first_lsn, records }
}

/// A half-written block lies behind the last good one.
fn is_torn(disk: &SimDisk) -> bool {
    let survey = Survey::of(disk);
    let Some(last) = survey.segments.values().rfind(|s| !s.blocks.is_empty()) else { return false };
    let end = last.blocks.last().map_or(PAGE, |(at, h)| *at as usize + h.padded());
    last.file[end..].iter().take(9000).any(|&byte| byte != 0)
}

fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| (0..5).map(base).collect())
}

/// What lies in a segment file, looked at without any order.
struct Naive {
    file: Vec<u8>,
    blocks: Vec<(u64, Header)>,
    /// Of a footer whose checksum is right: its last LSN.
    sealed: Option<u64>,
}

struct Survey {
    segments: BTreeMap<u64, Naive>,
}

impl Survey {
    fn of(disk: &SimDisk) -> Survey {
        let mut segments = BTreeMap::new();
        for (path, len) in disk.files() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let position = name.strip_suffix(".log").and_then(|n| n.parse::<u64>().ok());
            let Some(position) = position.filter(|p| p % SEGMENT == 0 && len == SEGMENT) else {
                continue;
            };
            let (file, number) = (disk.read(&path), position / SEGMENT);
            let is_ours = &file[..8] == b"EVPLSEGM" && word(&file, 56) == number;
            if !is_ours || !naive::is_sealed(&file[..PAGE]) || number >= (1 << 62) / SEGMENT {
                continue;
            }
            let salt = naive::salt(&file);
            let blocks = naive::all_blocks(&file, number, salt, 0);
            let region = &file[(SEGMENT - FOOTER) as usize..];
            let sealed = &region[..8] == b"EVPLFOOT"
                && naive::is_sealed(region)
                && (word(region, 32), word(region, 40)) == (number, salt);
            let sealed =
                sealed.then(|| word(region, 64).wrapping_add(word(region, 72)).wrapping_sub(1));
            segments.insert(number, Naive { file, blocks, sealed });
        }
        Survey { segments }
    }

    /// Up to which LSN what is left vouches for records: something durable was written behind them
    /// that is still good.
    fn vouched(&self) -> u64 {
        let blocks = || self.segments.values().flat_map(|segment| &segment.blocks);
        let position = blocks().map(|(_, header)| header.watermark).max().unwrap_or(0);
        let below = blocks().filter(|(_, header)| header.position < position);
        let below = below.map(|(_, h)| h.first_lsn + u64::from(h.records) - 1).max();
        // The block that a later one continues was durable.
        let sealed = self.segments.values().filter_map(|segment| segment.sealed).max();
        below.max(sealed).unwrap_or(0)
    }
}

/// The path of the `n`th file, those of the data first.
fn path(disk: &SimDisk, n: u8) -> PathBuf {
    let files: Vec<_> = disk.files().into_keys().filter(|path| !path.ends_with("LOCK")).collect();
    files.get(usize::from(n) % files.len().max(1)).cloned().unwrap_or_default()
}

/// Changes a part of a file.
fn patch(disk: &SimDisk, file: u8, offset: usize, change: impl FnOnce(&mut [u8])) {
    let path = path(disk, file);
    let mut bytes = disk.read(&path);
    if let Some(part) = bytes.get_mut(offset..) {
        change(part);
        disk.patch(&path, offset as u64, part);
    }
}

/// Whether the disk alone could have done that.
fn apply(disk: &SimDisk, op: &Op) -> bool {
    let page_of = |page: u8| usize::from(page % 32) * PAGE;
    match *op {
        Op::Flip { file, page, at, bit } => {
            let at = page_of(page) + usize::from(at) % PAGE;
            patch(disk, file, at, |part| part[0] ^= 1 << (bit % 8));
        }
        Op::Zero { file, page, sectors } => {
            patch(disk, file, page_of(page), |part| {
                for sector in (0..8).filter(|sector| sectors >> sector & 1 == 1) {
                    part.chunks_mut(512).nth(sector).into_iter().for_each(|s| s.fill(0));
                }
            });
        }
        Op::Noise { file, page, seed } => {
            patch(disk, file, page_of(page), |part| {
                for (i, byte) in part.iter_mut().take(512).enumerate() {
                    *byte = (i as u8).wrapping_mul(31).wrapping_add(seed) | 1;
                }
            });
        }
        Op::Truncate { file, page, by } => {
            disk.truncate(path(disk, file), (page_of(page) + usize::from(by)) as u64);
        }
        Op::Lose { file } => disk.lose(path(disk, file)),
        Op::Misdirect { from, at, to, there } => {
            let bytes = disk.read(path(disk, from));
            let bytes = bytes.get(page_of(at)..).unwrap_or_default();
            patch(disk, to, page_of(there), |part| {
                let len = bytes.len().min(part.len()).min(PAGE);
                part[..len].copy_from_slice(&bytes[..len]);
            });
        }
        Op::CopyFile { from, to } => {
            let (bytes, to) = (disk.read(path(disk, from)), path(disk, to));
            disk.lose(&to);
            disk.put(&to, &bytes);
        }
        _ => {
            forge(disk, op);
            return false;
        }
    }
    true
}

fn forge(disk: &SimDisk, op: &Op) {
    match *op {
        // A word of what begins with an envelope.
        Op::Field { file, field, value } => {
            let is_meta = path(disk, file).ends_with("meta");
            let slot = if is_meta && field % 2 == 1 { PAGE } else { 0 };
            patch(disk, file, slot, |part| {
                let len = if path(disk, file).ends_with("checkpoints") { part.len() } else { PAGE };
                let Some(part) = part.get_mut(..len).filter(|part| part.len() >= 64) else {
                    return;
                };
                let at = 16 + usize::from(field / 2 % 10) * 8;
                if at + 8 <= part.len() {
                    let value = value.get(word(part, at));
                    set(part, at, &value.to_le_bytes());
                    reseal(part);
                }
            });
        }
        Op::Block { file, block, field, value, chain } => {
            forge_block(disk, file, block, chain, |image| {
                let at = [8, 16, 20, 24, 28, 32, 40, 48, 56][usize::from(field % 9)];
                let value = value.get(word(image, at)).to_le_bytes();
                let bytes = if (16..32).contains(&at) { 4 } else { 8 };
                set(image, at, &value[..bytes]);
            });
        }
        Op::Record { file, block, at, byte } => {
            forge_block(disk, file, block, true, |image| set(image, 64 + usize::from(at), &[byte]));
        }
        Op::Footer { file, at, value } => {
            let offset = (SEGMENT - FOOTER) as usize;
            patch(disk, file, offset, |part| {
                let at = 32 + usize::from(at) / 2 * 4;
                let value = value.get(word(part, at)).to_le_bytes();
                set(part, at, if at < 64 { &value[..4] } else { &value });
                reseal(part);
            });
        }
        Op::Put { name, ref bytes, len } => {
            let mut content = bytes.clone();
            let is_segment = !matches!(name, Name::Checkpoints | Name::Foreign);
            let len =
                if is_segment && len % 2 == 0 { SEGMENT as usize } else { len as usize % 200 };
            content.resize(content.len().max(len), 0);
            if content.len() > 64 && !is_segment {
                set(&mut content, 0, b"EVPLCKPT\x01\0\0\0");
                reseal(&mut content);
            }
            disk.lose(name.path());
            disk.put(name.path(), &content);
        }
        _ => {}
    }
}

/// Changes the `n`th block of a segment, and with `chain` those behind it, so that they follow.
fn forge_block(disk: &SimDisk, file: u8, n: u8, chain: bool, change: impl FnOnce(&mut [u8])) {
    let path = path(disk, file);
    let mut bytes = disk.read(&path);
    if bytes.len() as u64 != SEGMENT {
        return;
    }
    let starts: Vec<usize> = (PAGE..bytes.len())
        .step_by(PAGE)
        .filter(|&at| Header::read(&bytes[at..]).is_some())
        .collect();
    let Some(n) = usize::from(n).checked_rem(starts.len()) else { return };
    change(&mut bytes[starts[n]..]);
    let mut crc = reseal_block(&mut bytes[starts[n]..]);
    for &at in starts[n + 1..].iter().take_while(|_| chain) {
        set(&mut bytes, at + 28, &crc.to_le_bytes());
        crc = reseal_block(&mut bytes[at..]);
    }
    disk.patch(&path, 0, &bytes);
}

/// What a bus delivers, from its first record on, and the error that ends it.
struct Opened {
    first_lsn: u64,
    records: Vec<Record>,
    error: Option<Error>,
}

fn open(disk: &SimDisk) -> Result<Opened, Error> {
    let clock = ManualClock::default();
    let bus = builder(disk, &clock).open(DIR)?;
    let mut out = Opened { first_lsn: bus.first_lsn().get(), records: Vec::new(), error: None };
    out.error = read(&bus, &clock, &mut out.records).err();
    // What is appended goes behind what is there.
    if out.error.is_none() {
        let last = bus.committed_lsn();
        assert_eq!(out.first_lsn + out.records.len() as u64, last.next().get());
    }
    let _ = bus.close();
    Ok(out)
}

fn read(bus: &Bus, clock: &ManualClock, records: &mut Vec<Record>) -> Result<(), Error> {
    let mut reader = bus.reader(Start::Earliest)?;
    let (mut next, last) = (bus.first_lsn(), bus.committed_lsn());
    let mut waits = 0;
    while next <= last {
        match reader.try_next()? {
            Some(record) => {
                assert_eq!(record.lsn(), next, "out of order");
                records.push((record.kind(), record.key(), record.payload().to_vec()));
                next = next.next();
            }
            None => {
                waits += 1;
                assert!(waits < 200, "neither a record nor an error: {:?}", reader.status());
                clock.advance(Duration::from_secs(20));
            }
        }
    }
    Ok(())
}

/// What an opening does that takes the first bad block for the end of the log.
fn cut_at_first_bad(disk: &SimDisk) {
    let survey = Survey::of(disk);
    for (number, segment) in survey.segments {
        let mut end = PAGE as u64;
        for (at, header) in &segment.blocks {
            if *at == end || *at == SLAB {
                end = at + header.padded() as u64;
            }
        }
        let path = Name::Segment(number as u8).path();
        if segment.sealed.is_none() && number < 8 {
            disk.patch(path, end, &vec![0; (SEGMENT - end) as usize]);
        }
    }
}

fuzz_target!(init: { bases(); }, |input: Input| {
    let bases = bases();
    let base = &bases[usize::from(input.base) % bases.len()];
    let disk = base.disk.copy();
    let mut honest = true;
    for op in input.ops.iter().take(8) {
        honest &= apply(&disk, op);
    }
    let bytes: u64 = disk.files().values().sum();
    let survey = Survey::of(&disk);
    if plant() == Plant::FirstBad {
        cut_at_first_bad(&disk);
    }

    let verified = within(SMALL + bytes as usize, || {
        let report = bytes::offline(&disk, Path::new(DIR)).and_then(|log| log.verify());
        report.map(|report| (report.records, report.findings.len()))
    });
    let before = contents(&disk);
    let opened = within(SMALL + 8 * bytes as usize, || open(&disk));
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let harmless = matches!(error.kind(), ErrorKind::InvalidOption | ErrorKind::NotALog);
            assert!(harmless || !matches!(verified, Ok((_, 0))), "verified, yet refused: {error}");
            assert!(contents(&disk) == before, "a refusal changed files: {error}");
            return;
        }
    };
    if let Ok((records, 0)) = verified {
        assert!(opened.error.is_none(), "verified, yet unreadable: {:?}", opened.error);
        assert_eq!(opened.records.len() as u64, records);
    }
    if honest && opened.error.is_none() && !survey.segments.is_empty() {
        let known = &base.records[(opened.first_lsn - base.first_lsn) as usize..];
        assert!(known.starts_with(&opened.records), "records that were never written");
        let last = opened.first_lsn + opened.records.len() as u64 - 1;
        let lost = survey.vouched().min(base.first_lsn + base.records.len() as u64 - 1);
        assert!(last >= lost, "records {} to {lost} are lost in silence", last + 1);
    }
    // Once more: opening settles things.
    let again = open(&disk);
    let again = again.unwrap_or_else(|error| panic!("opened, and then refused: {error}"));
    assert!(again.records.starts_with(&opened.records) || opened.error.is_some());
    assert_eq!(again.error.is_some(), opened.error.is_some());
});

/// Every file but the lock.
fn contents(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = disk.files().into_keys().filter(|path| !path.ends_with("LOCK"));
    files.map(|path| (path.clone(), disk.read(&path))).collect()
}
