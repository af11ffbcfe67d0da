//! The bytes of a simulated file, and the writes to it that are not yet durable.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;

use crate::format::is_zero;

const PAGE: usize = 4096;
/// What a device writes whole or not at all.
pub(super) const SECTOR: u64 = 512;

/// Bytes, of which pages that hold only zeros take no memory, and which are cheap to clone.
#[derive(Clone, Default, Debug)]
pub(super) struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
    pub(super) len: u64,
}

impl Content {
    /// Reads up to the end of the file; returns how much.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let bytes = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        for (at, page, within) in pieces(offset, bytes) {
            let out = &mut buf[at..at + within.len()];
            match self.pages.get(&page) {
                Some(page) => out.copy_from_slice(&page[within]),
                None => out.fill(0),
            }
        }
        bytes
    }

    /// Writes, and grows the file if need be.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        self.len = self.len.max(offset + bytes.len() as u64);
        for (at, page, within) in pieces(offset, bytes.len()) {
            let part = &bytes[at..at + within.len()];
            if !self.pages.contains_key(&page) && is_zero(part) {
                continue;
            }
            let page = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within].copy_from_slice(part);
        }
    }

    pub(super) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }
}

/// Where in which pages a range of bytes lies: offset in the range, page, bytes within the page.
fn pieces(offset: u64, bytes: usize) -> impl Iterator<Item = (usize, u64, Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let position = offset + at as u64;
        let begin = position as usize % PAGE;
        let piece = (PAGE - begin).min(bytes - at);
        let found = (at, position / PAGE as u64, begin..begin + piece);
        at += piece;
        (piece > 0).then_some(found)
    })
}

/// How far a change of a file has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// The device may have written any part of it. Stays so if the write failed.
    InFlight,
    /// Complete: the next sync makes it durable.
    Written,
    /// A sync failed: later ones no longer know of it, and say that all is well.
    Dropped,
    /// Durable, but in the list because an older change of the same bytes is not.
    Certain,
}

/// A change of a file.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) id: u64,
    pub(super) progress: Progress,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Write { offset: u64, bytes: Arc<[u8]> },
    Grow { len: u64 },
}

impl What {
    pub(super) fn apply(&self, to: &mut Content) {
        match self {
            What::Write { offset, bytes } => to.write(bytes, *offset),
            What::Grow { len } => to.grow(*len),
        }
    }

    /// Any part of it, as a device that lost power left it: whole sectors, in any order.
    pub(super) fn apply_torn(&self, to: &mut Content, rng: &mut Rng) {
        let (offset, bytes) = match self {
            What::Write { offset, bytes } => (*offset, bytes),
            What::Grow { len } => {
                return if rng.bool() {
                    to.grow(*len)
                };
            }
        };
        let sectors = sectors(offset, bytes.len());
        let count = sectors.len();
        let (shape, place) = (rng.u8(0..6), rng.usize(0..=count));
        for (i, sector) in sectors.into_iter().enumerate() {
            let lands = match shape {
                0 => false,
                1 => true,
                2 => i < place,
                3 => i >= place,
                4 => i != place,
                _ => rng.bool(),
            };
            if lands {
                let at = offset + sector.start as u64;
                to.write(&bytes[sector], at);
            }
        }
    }
}

/// The parts of a write that lie in one sector each.
fn sectors(offset: u64, bytes: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < bytes {
        let left = SECTOR - (offset + at as u64) % SECTOR;
        let end = bytes.min(at + left as usize);
        parts.push(at..end);
        at = end;
    }
    parts
}

/// A file, whatever its names are.
#[derive(Clone, Default, Debug)]
pub(super) struct Inode {
    /// What reads return.
    pub(super) seen: Content,
    /// What a power cut leaves for certain.
    durable: Content,
    /// What a power cut may leave of the rest, oldest first.
    changes: Vec<Change>,
}

impl Inode {
    /// A change begins; nothing reads it yet.
    pub(super) fn begin(&mut self, id: u64, what: What) {
        self.changes.push(Change { id, progress: Progress::InFlight, what });
    }

    /// Only so much of it was written; the rest never was begun.
    pub(super) fn shorten(&mut self, id: u64, written: usize) {
        let change = self.changes.iter_mut().find(|c| c.id == id);
        if let Some(Change { what: What::Write { bytes, .. }, .. }) = change
            && written < bytes.len()
        {
            *bytes = bytes[..written].into();
        }
    }

    /// It is over.
    pub(super) fn complete(&mut self, id: u64) {
        if let Some(change) = self.changes.iter_mut().find(|c| c.id == id) {
            change.progress = Progress::Written;
            change.what.apply(&mut self.seen);
        }
    }

    /// It failed, perhaps half-way.
    pub(super) fn fail(&mut self, id: u64, rng: &mut Rng) {
        if let Some(change) = self.changes.iter().find(|c| c.id == id) {
            change.what.apply_torn(&mut self.seen, rng);
        }
    }

    /// It is complete and durable, and nothing else is.
    pub(super) fn complete_durable(&mut self, id: u64) {
        self.complete(id);
        if let Some(change) = self.changes.iter_mut().find(|c| c.id == id) {
            change.progress = Progress::Certain;
        }
        self.settle();
    }

    /// A sync: what is complete becomes durable.
    pub(super) fn sync(&mut self) {
        for change in &mut self.changes {
            if change.progress == Progress::Written {
                change.progress = Progress::Certain;
            }
        }
        self.settle();
    }

    /// A sync that fails: the kernel takes what it could not write for clean.
    pub(super) fn fail_sync(&mut self) {
        for change in &mut self.changes {
            if change.progress == Progress::Written {
                change.progress = Progress::Dropped;
            }
        }
    }

    /// The cache forgets what it takes for clean.
    pub(super) fn drop_cache(&mut self) {
        if self.changes.iter().any(|c| c.progress == Progress::Dropped) {
            self.changes.retain(|c| c.progress != Progress::Dropped);
            self.seen = self.durable.clone();
            for change in self.changes.iter().filter(|c| c.progress != Progress::InFlight) {
                change.what.apply(&mut self.seen);
            }
        }
    }

    /// Moves what is certain, and not younger than something that is not, to what is durable.
    fn settle(&mut self) {
        let certain = self.changes.iter().take_while(|c| c.progress == Progress::Certain).count();
        for change in self.changes.drain(..certain) {
            change.what.apply(&mut self.durable);
        }
    }

    /// After a power cut.
    pub(super) fn cut(&self, rng: &mut Rng) -> Inode {
        let mut durable = self.durable.clone();
        for change in &self.changes {
            match change.progress {
                Progress::Certain => change.what.apply(&mut durable),
                _ => change.what.apply_torn(&mut durable, rng),
            }
        }
        Inode { seen: durable.clone(), durable, changes: Vec::new() }
    }

    /// After the process was killed: everything is as it was seen, but for what was in flight, of
    /// which any part may be there. None of it is more durable than before.
    pub(super) fn kill(&self, rng: &mut Rng) -> Inode {
        let mut killed = self.clone();
        for change in &mut killed.changes {
            if change.progress == Progress::InFlight {
                let mut rest = killed.seen.clone();
                change.what.apply_torn(&mut rest, rng);
                killed.seen = rest;
            }
        }
        // What landed of a torn write is in the device, or in the cache: a sync makes that durable.
        let seen = killed.seen.clone();
        for change in &mut killed.changes {
            if let (Progress::InFlight, What::Write { offset, bytes }) =
                (change.progress, &mut change.what)
            {
                let mut landed = vec![0; bytes.len()];
                seen.read(&mut landed, *offset);
                *bytes = landed.into();
            }
            if change.progress == Progress::InFlight {
                change.progress = Progress::Written;
            }
        }
        killed
    }

    /// Changes bytes behind everybody's back, durably.
    pub(super) fn patch(&mut self, offset: u64, bytes: &[u8]) {
        self.seen.write(bytes, offset);
        self.durable.write(bytes, offset);
    }

    /// Cuts the file behind everybody's back, durably.
    pub(super) fn truncate(&mut self, len: u64) {
        for content in [&mut self.seen, &mut self.durable] {
            content.len = content.len.min(len);
        }
    }
}
