//! How far each named consumer has processed: the file `checkpoints`, replaced as a whole.
//!
//! ```text
//!  offset  bytes  file
//!       0     32  envelope     magic "EVPLCKPT", crc over the whole file, feature bits
//!      32     16  log_id       of the log that the LSNs belong to
//!      48      8  generation   of that log, see meta
//!      56      4  entries      how many follow
//!      60      4  zeros
//!      64         entries      back to back, up to the end of the file
//!
//!  offset  bytes  entry
//!       0      8  lsn          of the last record processed
//!       8      1  name_bytes   1 to 255
//!       9      n  name         n = name_bytes, UTF-8; no two entries have the same
//! ```

use std::collections::BTreeSet;

use super::{Envelope, FormatError, LogId, get, get_u32, get_u64, put, put_u32, put_u64};

/// A consumer's name has one byte for its length, and is not empty.
pub(crate) const NAME_BYTES_MAX: usize = u8::MAX as usize;

const MAGIC: [u8; 8] = *b"EVPLCKPT";
const HEAD_BYTES: usize = 64;
const ENTRY_HEAD_BYTES: usize = 9;

/// The contents of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Checkpoints {
    /// The log that the LSNs belong to.
    pub log_id: LogId,
    /// Of that log. After a repair that cut data, the LSNs may name other records.
    pub generation: u64,
    pub entries: Vec<CheckpointEntry>,
}

/// One consumer's checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CheckpointEntry {
    /// 1 to 255 bytes, the only one of this name.
    pub name: String,
    /// The last record processed.
    pub lsn: u64,
}

impl Checkpoints {
    /// The file as it goes to disk. Panics on names that [`decode`](Self::decode) would refuse:
    /// they are checked when a consumer subscribes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        assert!(self.names_differ(), "two checkpoints of one name");
        let mut file = vec![0; HEAD_BYTES];
        put(&mut file, 32, self.log_id.0);
        put_u64(&mut file, 48, self.generation);
        put_u32(&mut file, 56, self.entries.len() as u32);
        for entry in &self.entries {
            entry.write(&mut file);
        }
        Envelope::seal(&mut file, MAGIC, 0, 0);
        file
    }

    /// The contents of a whole file. That it is of the right log is for the caller to check.
    pub(crate) fn decode(file: &[u8]) -> Result<Checkpoints, FormatError> {
        Envelope::open(file, MAGIC)?;
        let (head, mut rest) =
            file.split_first_chunk::<HEAD_BYTES>().ok_or(FormatError::Truncated)?;
        let (mut checkpoints, entries) = Self::read_head(head).ok_or(FormatError::Truncated)?;
        // Believe the count only as far as there are bytes to back it.
        if entries > rest.len() / (ENTRY_HEAD_BYTES + 1) {
            return Err(FormatError::Field("entries"));
        }
        checkpoints.entries.reserve_exact(entries);
        for _ in 0..entries {
            let (entry, tail) = CheckpointEntry::read(rest)?;
            checkpoints.entries.push(entry);
            rest = tail;
        }
        if !rest.is_empty() {
            return Err(FormatError::Field("entries"));
        }
        if !checkpoints.names_differ() {
            return Err(FormatError::Field("name"));
        }
        Ok(checkpoints)
    }

    /// Everything but the entries, and how many of those to expect.
    fn read_head(head: &[u8; HEAD_BYTES]) -> Option<(Checkpoints, usize)> {
        let checkpoints = Checkpoints {
            log_id: LogId(get(head, 32)?),
            generation: get_u64(head, 48)?,
            entries: Vec::new(),
        };
        Some((checkpoints, get_u32(head, 56)? as usize))
    }

    fn names_differ(&self) -> bool {
        let names: BTreeSet<_> = self.entries.iter().map(|entry| &entry.name).collect();
        names.len() == self.entries.len()
    }
}

impl CheckpointEntry {
    fn write(&self, file: &mut Vec<u8>) {
        let name_bytes = self.name.len();
        assert!((1..=NAME_BYTES_MAX).contains(&name_bytes), "a name of {name_bytes} bytes");
        file.extend_from_slice(&self.lsn.to_le_bytes());
        file.push(name_bytes as u8);
        file.extend_from_slice(self.name.as_bytes());
    }

    /// The entry that `bytes` begin with, and what follows it.
    fn read(bytes: &[u8]) -> Result<(CheckpointEntry, &[u8]), FormatError> {
        let (&lsn, rest) = bytes.split_first_chunk().ok_or(FormatError::Truncated)?;
        let (&name_bytes, rest) = rest.split_first().ok_or(FormatError::Truncated)?;
        let (name, rest) =
            rest.split_at_checked(usize::from(name_bytes)).ok_or(FormatError::Truncated)?;
        let name = str::from_utf8(name).map_err(|_| FormatError::Field("name"))?;
        if name.is_empty() {
            return Err(FormatError::Field("name"));
        }
        let lsn = u64::from_le_bytes(lsn);
        Ok((CheckpointEntry { name: name.to_owned(), lsn }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::{for_each_bit_flip, resealed};
    use proptest::prelude::*;

    fn of(entries: &[(&str, u64)]) -> Checkpoints {
        let entry =
            |(name, lsn): &(&str, u64)| CheckpointEntry { name: name.to_string(), lsn: *lsn };
        Checkpoints {
            log_id: LogId(std::array::from_fn(|i| i as u8 + 1)),
            generation: 3,
            entries: entries.iter().map(entry).collect(),
        }
    }

    /// A file whose entries are these very bytes.
    fn file_of(count: u32, entries: &[u8]) -> Vec<u8> {
        let mut file = [&of(&[]).encode(), entries].concat();
        put_u32(&mut file, 56, count);
        resealed(file, MAGIC)
    }

    fn entry(name: &[u8]) -> Vec<u8> {
        [&5u64.to_le_bytes(), &[name.len() as u8][..], name].concat()
    }

    #[test]
    fn round_trip() {
        let longest = "n".repeat(NAME_BYTES_MAX);
        for entries in [&[][..], &[("b", u64::MAX), ("a", 0), (&longest, 7), ("\u{e9}t\u{e9}", 1)]]
        {
            let checkpoints = of(entries);
            assert_eq!(Checkpoints::decode(&checkpoints.encode()), Ok(checkpoints));
        }
    }

    #[test]
    fn the_file_is_laid_out_as_drawn() {
        let file = of(&[("ab", 258), ("c", 3)]).encode();
        assert_eq!(&file[..12], b"EVPLCKPT\x01\0\0\0");
        assert_eq!(&file[32..48], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(&file[48..64], b"\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        assert_eq!(&file[64..], b"\x02\x01\0\0\0\0\0\0\x02ab\x03\0\0\0\0\0\0\0\x01c");
    }

    #[test]
    fn every_bit_flip_and_every_cut_is_refused() {
        let file = of(&[("first", 1), ("second", 1 << 40)]).encode();
        for_each_bit_flip(&file, |file| Checkpoints::decode(file).is_err());
        for cut in 0..file.len() {
            assert!(Checkpoints::decode(&file[..cut]).is_err(), "cut to {cut}");
        }
        assert!(Checkpoints::decode(&[&file[..], &[0]].concat()).is_err());
    }

    #[test]
    fn impossible_entries_are_refused_by_name() {
        let two = [entry(b"a"), entry(b"b")].concat();
        assert!(Checkpoints::decode(&file_of(2, &two)).is_ok());
        let twice = [entry(b"a"), entry(b"a")].concat();
        let cases = [
            (2, &twice, FormatError::Field("name")),
            (1, &entry(b""), FormatError::Field("entries")),
            (1, &[entry(b""), vec![0]].concat(), FormatError::Field("name")),
            (1, &entry(b"\xFF"), FormatError::Field("name")),
            (1, &two, FormatError::Field("entries")),
            (3, &two, FormatError::Field("entries")),
            (2, &two[..19].to_vec(), FormatError::Field("entries")),
            (2, &[entry(b"abc"), vec![0; 8]].concat(), FormatError::Truncated),
            (1, &entry(b"abc")[..11].to_vec(), FormatError::Truncated),
        ];
        for (count, entries, error) in cases {
            assert_eq!(Checkpoints::decode(&file_of(count, entries)), Err(error), "{entries:?}");
        }
    }

    #[test]
    fn a_count_that_nothing_backs_allocates_nothing() {
        // 54 bytes of file once made a reader allocate 4 GiB.
        let file = file_of(u32::MAX, &entry(b"a"));
        assert_eq!(Checkpoints::decode(&file), Err(FormatError::Field("entries")));
    }

    #[test]
    #[should_panic(expected = "a name of 256 bytes")]
    fn too_long_a_name_is_not_written() {
        of(&[(&"n".repeat(256), 1)]).encode();
    }

    #[test]
    #[should_panic(expected = "two checkpoints of one name")]
    fn the_same_name_is_not_written_twice() {
        of(&[("a", 1), ("b", 1), ("a", 2)]).encode();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_reserve_only_what_backs_them(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            count in 0..40u32,
        ) {
            let _ = Checkpoints::decode(&bytes);
            let file = file_of(count, &bytes);
            if let Ok(checkpoints) = Checkpoints::decode(&file) {
                prop_assert!(checkpoints.entries.capacity() <= bytes.len() / 10);
                prop_assert_eq!(checkpoints.encode(), file);
            }
        }
    }
}
