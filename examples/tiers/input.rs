//! The events: the lines of a file, read in a loop.

use std::ops::Range;
use std::path::Path;

use crate::flight;

/// The flight departed.
pub(crate) const DEPARTED: u16 = 1;
/// The flight was cancelled.
pub(crate) const CANCELLED: u16 = 2;

/// What the header line of the flights begins with; it is no event.
const HEADER: &[u8] = b"year,month,day,";

/// An event, whether read from the file or from the bus.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) kind: u16,
    pub(crate) key: u64,
    pub(crate) payload: &'a [u8],
}

/// A file of lines, in memory.
pub(crate) struct Input {
    bytes: Vec<u8>,
    lines: Vec<Line>,
}

struct Line {
    range: Range<usize>,
    kind: u16,
    key: u64,
}

impl Input {
    pub(crate) fn load(path: &Path) -> Result<Input, String> {
        let bytes =
            std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let input = Input::new(bytes);
        if input.lines.is_empty() {
            return Err(format!("{} has no lines", path.display()));
        }
        Ok(input)
    }

    pub(crate) fn new(bytes: Vec<u8>) -> Input {
        let mut lines = Vec::new();
        let mut begin = 0;
        for text in bytes.split(|&b| b == b'\n') {
            let range = begin..begin + text.len();
            begin = range.end + 1;
            if text.is_empty() || (range.start == 0 && text.starts_with(HEADER)) {
                continue;
            }
            lines.push(Line { range, kind: flight::kind(text), key: flight::key(text) });
        }
        Input { bytes, lines }
    }

    /// How many events the file has, at least one.
    pub(crate) fn len(&self) -> u64 {
        self.lines.len() as u64
    }

    /// A checksum of the whole file.
    pub(crate) fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.bytes)
    }

    pub(crate) fn longest(&self) -> usize {
        self.lines.iter().map(|line| line.range.len()).max().unwrap_or(0)
    }

    /// The event with this LSN.
    pub(crate) fn row(&self, lsn: u64) -> Row<'_> {
        let line = &self.lines[((lsn - 1) % self.len()) as usize];
        Row { kind: line.kind, key: line.key, payload: &self.bytes[line.range.clone()] }
    }

    /// The events of the file, once.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        (1..=self.len()).map(|lsn| self.row(lsn))
    }

    /// Each event of the file with the number of times it is among the first `records`.
    pub(crate) fn rows_times(&self, records: u64) -> impl Iterator<Item = (Row<'_>, u64)> {
        let (rounds, rest) = (records / self.len(), records % self.len());
        self.rows().enumerate().map(move |(i, row)| (row, rounds + u64::from((i as u64) < rest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_a_loop_without_the_header() {
        let input = Input::new(b"year,month,day,x\na\n\nbb\nccc".to_vec());
        assert_eq!(input.len(), 3);
        let lines: Vec<_> = (1..=5).map(|lsn| input.row(lsn).payload).collect();
        assert_eq!(lines, [b"a".as_slice(), b"bb", b"ccc", b"a", b"bb"]);
        let times: Vec<_> = input.rows_times(5).map(|(_, times)| times).collect();
        assert_eq!(times, [2, 2, 1]);
    }
}
