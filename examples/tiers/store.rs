//! Small files that survive a crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Replaces a file: the old content or the new one, also after a loss of power.
pub(crate) fn save<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

const SLOT_BYTES: usize = 4096;
const SLOTS: u64 = 2;
/// Number, length, checksum.
const SLOT_HEADER_BYTES: usize = 16;

/// A value that changes often: written in place to two slots in turn, without a sync. It outlives
/// a kill; a loss of power may put it back to an older value.
pub(crate) struct Slots<T> {
    file: File,
    number: u64,
    value: PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned> Slots<T> {
    /// Opens or creates the file, and reads the newest value in it.
    pub(crate) fn open(path: &Path) -> io::Result<(Slots<T>, Option<T>)> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let mut newest = (0, None);
        for slot in 0..SLOTS {
            let found = read_slot(&file, slot)?.filter(|(number, _)| *number > newest.0);
            newest = found.map_or(newest, |(number, value)| (number, Some(value)));
        }
        Ok((Slots { file, number: newest.0, value: PhantomData }, newest.1))
    }

    pub(crate) fn store(&mut self, value: &T) -> io::Result<()> {
        let body = serde_json::to_vec(value)?;
        if body.len() > SLOT_BYTES - SLOT_HEADER_BYTES {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the value is too large"));
        }
        self.number += 1;
        let mut slot = Vec::with_capacity(SLOT_HEADER_BYTES + body.len());
        slot.extend(self.number.to_le_bytes());
        slot.extend((body.len() as u32).to_le_bytes());
        slot.extend(checksum(self.number, &body).to_le_bytes());
        slot.extend(body);
        self.file.write_all_at(&slot, self.number % SLOTS * SLOT_BYTES as u64)
    }
}

fn checksum(number: u64, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), body)
}

/// A slot that was never written, or only in part, holds nothing.
fn read_slot<T: DeserializeOwned>(file: &File, slot: u64) -> io::Result<Option<(u64, T)>> {
    let mut bytes = [0; SLOT_BYTES];
    let mut read = 0;
    while read < SLOT_BYTES {
        match file.read_at(&mut bytes[read..], slot * SLOT_BYTES as u64 + read as u64)? {
            0 => break,
            n => read += n,
        }
    }
    let (header, body) = bytes.split_at(SLOT_HEADER_BYTES);
    let number = u64::from_le_bytes(header[..8].try_into().expect("eight bytes"));
    let len = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
    let sum = u32::from_le_bytes(header[12..].try_into().expect("four bytes"));
    let body = body.get(..len as usize).filter(|body| number > 0 && checksum(number, body) == sum);
    Ok(body.and_then(|body| serde_json::from_slice(body).ok()).map(|value| (number, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_slot_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("slots");
        let (mut slots, none) = Slots::<u64>::open(&path).expect("new");
        assert_eq!(none, None);
        for value in [7, 8, 9] {
            slots.store(&value).expect("stored");
        }
        assert_eq!(Slots::<u64>::open(&path).expect("there").1, Some(9));
        // The third value went to slot 1: tear it.
        slots.file.write_all_at(b"torn", SLOT_BYTES as u64 + 14).expect("written");
        assert_eq!(Slots::<u64>::open(&path).expect("there").1, Some(8));
    }

    #[test]
    fn a_file_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file.json");
        assert_eq!(load::<u64>(&path).expect("missing"), None);
        save(&path, &1).expect("saved");
        save(&path, &2).expect("saved");
        assert_eq!(load::<u64>(&path).expect("there"), Some(2));
    }
}
