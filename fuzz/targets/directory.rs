//! A whole directory: a log that a bus wrote, then damaged, or forged with right checksums. Opening
//! it must give what a naive reader finds, or an error; never less than later blocks vouch for.

#![no_main]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use eventplane::testing::{Crash, ManualClock, SimDisk, bytes};
use eventplane::{Builder, Bus, Error, ErrorKind, Retention, Start};
use eventplane_fuzz::naive::{
    self, FOOTER, Header, PAGE, Record, SEGMENT, SLAB, reseal, reseal_block, set, word,
};
use eventplane_fuzz::{Plant, number, plant, program, within};
use libfuzzer_sys::fuzz_target;

const DIR: &str = "/log";
/// What a bus takes besides what it reads: buffers of its pool, tables, messages.
const SMALL: usize = 12 << 20;

/// Names of files that may be put there.
fn name(which: u8, n: u64) -> String {
    let segment = |position: u64| format!("{DIR}/segments/{position:020}.log");
    match which % 8 {
        0 => format!("{DIR}/checkpoints"),
        1 => format!("{DIR}/checkpoints.foreign"),
        2 => format!("{DIR}/segments/{:020}.tmp", SEGMENT),
        3 => segment(n % 8 * SEGMENT),
        4 => segment(n / SEGMENT * SEGMENT),
        5 => segment(u64::MAX / SEGMENT * SEGMENT),
        6 => segment(n),
        _ => format!("{DIR}/segments/README"),
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
        3 => Retention::bytes(2 * SEGMENT),
        _ => Retention::default(),
    };
    let bus = builder(&disk, &clock).retention(retention).open(DIR).expect("a new log");
    let count = [0, 9, 30, 45, 30][kind];
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
            disk.watch(move |disk, _| {
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
    if let Some(part) = bytes.get_mut(offset..).filter(|part| !part.is_empty()) {
        change(part);
        disk.patch(&path, offset as u64, part);
    }
}

/// Whether the disk alone could have done that.
fn step(disk: &SimDisk, instruction: [u8; 8]) -> bool {
    let [op, file, page, a, b, c, ..] = instruction;
    let offset = usize::from(page % 32) * PAGE;
    match op % 16 {
        0 | 1 => {
            let at = offset + (usize::from(a) * 16 + usize::from(b % 16)) % PAGE;
            patch(disk, file, at, |part| part[0] ^= 1 << (c % 8));
        }
        2 => patch(disk, file, offset, |part| {
            for sector in (0..8).filter(|sector| a >> sector & 1 == 1) {
                part.chunks_mut(512).nth(sector).into_iter().for_each(|s| s.fill(0));
            }
        }),
        3 => patch(disk, file, offset, |part| {
            for (i, byte) in part.iter_mut().take(512).enumerate() {
                *byte = (i as u8).wrapping_mul(31).wrapping_add(a) | 1;
            }
        }),
        4 => disk.truncate(path(disk, file), (offset + usize::from(a)) as u64),
        5 => disk.lose(path(disk, file)),
        6 => {
            let bytes = disk.read(path(disk, file));
            let bytes = bytes.get(offset..).unwrap_or_default();
            patch(disk, a, usize::from(b % 32) * PAGE, |part| {
                let len = bytes.len().min(part.len()).min(PAGE);
                part[..len].copy_from_slice(&bytes[..len]);
            });
        }
        7 => {
            let (bytes, to) = (disk.read(path(disk, file)), path(disk, a));
            disk.lose(&to);
            disk.put(&to, &bytes);
        }
        _ => {
            forge(disk, instruction);
            return false;
        }
    }
    true
}

/// Changes something, and makes the checksum right.
fn forge(disk: &SimDisk, [op, file, at, a, b, c, d, e]: [u8; 8]) {
    match op % 16 {
        // A word of what begins with an envelope.
        8 | 9 => {
            let path = path(disk, file);
            let slot = if path.ends_with("meta") && a % 2 == 1 { PAGE } else { 0 };
            patch(disk, file, slot, |part| {
                let len = if path.ends_with("checkpoints") { part.len() } else { PAGE };
                let Some(part) = part.get_mut(..len).filter(|part| part.len() >= 64) else {
                    return;
                };
                let at = 16 + usize::from(at % 10) * 8;
                if at + 8 <= part.len() {
                    let value = number(b, c, word(part, at));
                    set(part, at, &value.to_le_bytes());
                    reseal(part);
                }
            });
        }
        10 | 11 => forge_block(disk, file, at, d % 2 == 1, |image| {
            let at = [8, 16, 20, 24, 28, 32, 40, 48, 56][usize::from(a % 9)];
            let value = number(b, c, word(image, at)).to_le_bytes();
            let bytes = if (16..32).contains(&at) { 4 } else { 8 };
            set(image, at, &value[..bytes]);
        }),
        12 => forge_block(disk, file, at, true, |image| set(image, 64 + usize::from(a), &[b])),
        13 | 14 => patch(disk, file, (SEGMENT - FOOTER) as usize, |part| {
            let at = 32 + usize::from(at % 40) * 4;
            if at + 8 > part.len() {
                return;
            }
            let value = number(b, c, word(part, at)).to_le_bytes();
            set(part, at, &value[..if d % 2 == 0 { 4 } else { 8 }]);
            reseal(part);
        }),
        _ => {
            let name = name(file, number(a, b, 0));
            let is_checkpoints = name.contains("checkpoints");
            let len = if c % 2 == 0 || is_checkpoints { usize::from(d) } else { SEGMENT as usize };
            let mut content = vec![e; len];
            if is_checkpoints {
                set(&mut content, 0, b"EVPLCKPT\x01\0\0\0");
                reseal(&mut content);
            }
            disk.lose(&name);
            disk.put(&name, &content);
        }
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
        let path = name(3, number);
        if segment.sealed.is_none() && number < 8 {
            disk.patch(path, end, &vec![0; (SEGMENT - end) as usize]);
        }
    }
}

fuzz_target!(init: { bases(); }, |data: &[u8]| {
    let Some((&which, data)) = data.split_first() else { return };
    let bases = bases();
    let base = &bases[usize::from(which) % bases.len()];
    let disk = base.disk.copy();
    let mut honest = true;
    for instruction in program(data).take(8) {
        honest &= step(&disk, instruction);
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
    // Where nothing is left of a log, nothing can be known of it.
    let is_left = survey.segments.values().any(|segment| !segment.blocks.is_empty());
    if honest && opened.error.is_none() && is_left {
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
