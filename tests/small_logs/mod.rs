//! Small logs to damage.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use std::ops::ControlFlow;

use eventplane::offline::LogDir;
use eventplane::testing::ManualClock;
use eventplane::{Ack, Batch, Builder, Bus, Error, Lsn, Retention, Start};
use tempfile::TempDir;

pub(crate) const PAGE: u64 = 4096;
pub(crate) const SLAB_BYTES: u64 = 64 << 10;
pub(crate) const SEGMENT_BYTES: u64 = 128 << 10;
/// Segment header page, ROLLED page and footer.
const TAIL_BYTES: u64 = 2 * PAGE;

/// LSN, kind, key, payload.
pub(crate) type Row = (u64, u16, u64, Vec<u8>);

/// A log, closed, and what is in it.
pub(crate) struct Sample {
    _temporary: TempDir,
    pub(crate) dir: PathBuf,
    pub(crate) records: Vec<Row>,
}

/// A block with records, as it lies in its segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    /// Behind header and records.
    pub(crate) framed_end: u64,
    /// Behind the padding.
    pub(crate) end: u64,
    pub(crate) first_lsn: u64,
    pub(crate) records: u64,
}

pub(crate) fn builder() -> Builder {
    Bus::builder()
        .slab_bytes(SLAB_BYTES)
        .segment_bytes(SEGMENT_BYTES)
        .ring_bytes(4 * SEGMENT_BYTES)
        .pin_budget_bytes(4 * SEGMENT_BYTES)
        .catchup_window_bytes(16 * SEGMENT_BYTES)
}

/// Payloads of 2 to 28 KiB without a zero byte, so that tearing a sector shows.
fn row(lsn: u64) -> Row {
    let len = 2_000 + lsn * 7_919 % 26_000;
    let payload = (0..len).map(|i| ((i * 31 + lsn) % 255 + 1) as u8).collect();
    (lsn, (lsn % 5) as u16, lsn * 10, payload)
}

fn append(bus: &Bus, lsns: std::ops::RangeInclusive<u64>) -> Vec<Row> {
    let writer = bus.writer();
    lsns.map(|lsn| {
        let row = row(lsn);
        assert_eq!(writer.append(row.1, row.2, &row.3).unwrap(), Lsn::new(lsn));
        row
    })
    .collect()
}

impl Sample {
    fn build(records: u64, builder: Builder, with: impl FnOnce(&Bus)) -> Sample {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("log");
        let bus = builder.open(&dir).unwrap();
        let records = append(&bus, 1..=records);
        with(&bus);
        bus.close().unwrap();
        Sample { _temporary: temporary, dir, records }
    }

    /// Each record in a block of its own.
    pub(crate) fn new(records: u64) -> Sample {
        Sample::build(records, builder(), |_| {})
    }

    /// A directory that is not there yet.
    pub(crate) fn empty() -> Sample {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("log");
        Sample { _temporary: temporary, dir, records: Vec::new() }
    }

    pub(crate) fn holding(self, records: Vec<Row>) -> Sample {
        Sample { records, ..self }
    }

    /// Records with kind 1, 2, ... and key 10, 20, ... and these payloads.
    pub(crate) fn small(payloads: &[&[u8]]) -> Sample {
        Sample::build(0, builder(), |bus| {
            for (i, payload) in payloads.iter().enumerate() {
                let kind = i as u16 + 1;
                bus.writer()
                    .append(kind, u64::from(kind) * 10, payload)
                    .unwrap();
            }
        })
    }

    /// With its oldest segments deleted.
    pub(crate) fn retained(records: u64) -> Sample {
        let builder = builder().retention(Retention::bytes(3 * SEGMENT_BYTES));
        Sample::build(records, builder, |bus| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while bus.reader(Start::Lsn(Lsn::FIRST)).is_ok() {
                assert!(Instant::now() < deadline, "nothing was deleted");
                bus.housekeep();
            }
        })
    }

    /// As a process that was killed leaves it: no watermark behind the last block.
    pub(crate) fn unclosed(records: u64) -> Sample {
        let temporary = tempfile::tempdir().unwrap();
        let (dir, copy) = (temporary.path().join("log"), temporary.path().join("copy"));
        // Without threads nothing moves while it is copied, and no time passes for a watermark.
        let bus = builder().manual(&ManualClock::default()).open(&dir).unwrap();
        let records = append(&bus, 1..=records);
        copy_tree(&dir, &copy);
        bus.close().unwrap();
        Sample { _temporary: temporary, dir: copy, records }
    }

    /// Two blocks that were in flight together: the second does not vouch for the first.
    pub(crate) fn in_flight() -> Sample {
        let sample = Sample::unclosed(2);
        let blocks = sample.blocks();
        let path = segment_file(&sample.dir, 0);
        let image = fs::read(&path).unwrap();
        let second = blocks[1].offset as usize..blocks[1].framed_end as usize;
        let mut block = image[second].to_vec();
        block[48..56].copy_from_slice(&blocks[0].offset.to_le_bytes());
        let crc = crc32c::crc32c(&block[8..]);
        block[4..8].copy_from_slice(&crc.to_le_bytes());
        overwrite(&path, blocks[1].offset, &block);
        sample
    }

    pub(crate) fn with_checkpoint(records: u64, name: &str) -> Sample {
        Sample::build(records, builder(), |bus| {
            let consumer = bus.subscribe(name).start_if_new(Start::Earliest);
            let consumer = consumer.run(|_: &Batch<'_>| Ok(Ack::All)).unwrap();
            consumer
                .wait_processed(Lsn::new(records), Duration::from_secs(10))
                .unwrap();
            consumer.stop().unwrap();
        })
    }

    /// A copy of one that was made before. Its last block has room for a watermark behind it.
    pub(crate) fn shared() -> Sample {
        static MADE: std::sync::OnceLock<Sample> = std::sync::OnceLock::new();
        let made = MADE.get_or_init(|| Sample::new(41));
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("log");
        copy_tree(&made.dir, &dir);
        Sample { _temporary: temporary, dir, records: made.records.clone() }
    }

    /// Appends to what is left after a tear; returns what is there then.
    pub(crate) fn append_more(&self, records: u64) -> Vec<Row> {
        let mut rows = read_all(&self.dir);
        rows.extend(self.append_from(rows.len() as u64 + 1, records));
        rows
    }

    pub(crate) fn append_from(&self, lsn: u64, records: u64) -> Vec<Row> {
        let bus = builder().open(&self.dir).unwrap();
        let rows = append(&bus, lsn..=lsn + records - 1);
        bus.close().unwrap();
        rows
    }

    pub(crate) fn dumped(&self, from: u64, to: u64) -> Vec<Row> {
        let mut rows = Vec::new();
        let log = LogDir::open(&self.dir).unwrap();
        log.records(Lsn::new(from)..=Lsn::new(to), |record| {
            rows.push((record.lsn.get(), record.kind, record.key, record.payload.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
        rows
    }

    pub(crate) fn lsns_of(&self, segment: u64) -> (u64, u64) {
        let (segments, _) = LogDir::open(&self.dir).unwrap().segments().unwrap();
        let found = segments.iter().find(|s| s.number == segment).unwrap();
        let (first, last) = found.lsns.unwrap();
        (first.get(), last.get())
    }

    /// The newest segment with records.
    pub(crate) fn open_segment(&self) -> u64 {
        let (segments, _) = LogDir::open(&self.dir).unwrap().segments().unwrap();
        segments.iter().rfind(|s| s.records > 0).unwrap().number
    }

    /// All blocks with records, read by the drawing in docs/format.md and nothing else.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        for segment in 0.. {
            let Ok(image) = fs::read(segment_file(&self.dir, segment)) else { break };
            let mut offset = PAGE;
            while offset < SEGMENT_BYTES - TAIL_BYTES {
                let page = &image[offset as usize..];
                let number = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
                let (body, records) = (u64::from(number(16)), u64::from(number(20)));
                let end = offset + (64 + body).next_multiple_of(PAGE);
                if &page[..4] != b"EVBK" {
                    offset += PAGE;
                    continue;
                }
                let first_lsn = u64::from_le_bytes(page[32..40].try_into().unwrap());
                let framed_end = offset + 64 + body;
                if records > 0 {
                    blocks.push(Block { segment, offset, framed_end, end, first_lsn, records });
                }
                offset = end;
            }
        }
        blocks
    }

    /// Offset and end of the last block with records.
    pub(crate) fn last_block(&self) -> (u64, u64) {
        let last = *self.blocks().last().unwrap();
        (last.offset, last.end)
    }
}

pub(crate) fn segment_file(dir: &Path, number: u64) -> PathBuf {
    dir.join("segments")
        .join(format!("{:020}.log", number * SEGMENT_BYTES))
}

pub(crate) fn make_writable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

pub(crate) fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let mut image = fs::read(path).unwrap();
    image[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    make_writable(path);
    fs::write(path, image).unwrap();
}

pub(crate) fn flip(path: &Path, offset: u64, bit: u8) {
    let byte = fs::read(path).unwrap()[offset as usize];
    overwrite(path, offset, &[byte ^ 1 << bit]);
}

/// Name and contents of every file, sorted.
pub(crate) fn images(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    for (name, image) in images(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, image).unwrap();
    }
}

/// Opens the log with the library and reads it from end to end.
pub(crate) fn read_all(dir: &Path) -> Vec<Row> {
    let bus = builder().open(dir).unwrap();
    let mut reader = bus.reader(Start::Earliest).unwrap();
    let mut rows = Vec::new();
    while let Some(record) = reader.try_next().unwrap() {
        rows.push((
            record.lsn().get(),
            record.kind(),
            record.key(),
            record.payload().to_vec(),
        ));
    }
    drop(reader);
    bus.close().unwrap();
    rows
}

/// What the library says to a consumer of this name.
pub(crate) fn subscribe_error(dir: &Path, name: &str) -> Error {
    let bus = builder().open(dir).unwrap();
    let consumer = bus.subscribe(name).start_if_new(Start::Earliest);
    let error = consumer
        .run(|_: &Batch<'_>| Ok(Ack::All))
        .map(drop)
        .unwrap_err();
    bus.close().unwrap();
    error
}
