//! One row of the flights, as far as anybody looks.
//!
//! A line that is no such row is taken as one whose fields are missing, so any file will do.

use std::str;

use crate::input::{CANCELLED, DEPARTED};

const DEP_TIME: usize = 3;
const DEP_DELAY: usize = 5;
const CARRIER: usize = 9;
const TAIL_NUMBER: usize = 11;
const ORIGIN: usize = 12;

fn field(line: &[u8], index: usize) -> Option<&[u8]> {
    line.split(|&b| b == b',').nth(index)
}

fn number<T: str::FromStr>(line: &[u8], index: usize) -> Option<T> {
    str::from_utf8(field(line, index)?).ok()?.parse().ok()
}

fn text(line: &[u8], index: usize) -> &str {
    field(line, index).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or("?")
}

/// Departed or cancelled.
pub(crate) fn kind(line: &[u8]) -> u16 {
    if field(line, DEP_TIME) == Some(b"NA") { CANCELLED } else { DEPARTED }
}

/// A hash (FNV-1a) of the tail number; of the whole line if it has none.
pub(crate) fn key(line: &[u8]) -> u64 {
    let what = field(line, TAIL_NUMBER).unwrap_or(line);
    what.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The hour of departure, 0 to 23; midnight is written 2400.
pub(crate) fn hour(line: &[u8]) -> usize {
    number::<usize>(line, DEP_TIME).unwrap_or(0) / 100 % 24
}

/// Minutes late; negative is early.
pub(crate) fn delay_minutes(line: &[u8]) -> Option<i64> {
    number(line, DEP_DELAY)
}

pub(crate) fn carrier(line: &[u8]) -> &str {
    text(line, CARRIER)
}

pub(crate) fn origin(line: &[u8]) -> &str {
    text(line, ORIGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_and_a_line_that_is_none() {
        let row = b"2013,1,1,2400,2359,-1,1004,1022,-18,B6,725,N804JB,JFK,BQN,183,1576,5,45,x";
        assert_eq!((kind(row), hour(row), delay_minutes(row)), (DEPARTED, 0, Some(-1)));
        assert_eq!((carrier(row), origin(row)), ("B6", "JFK"));
        assert_eq!(kind(b"2013,1,1,NA,1630,NA"), CANCELLED);
        assert_ne!(key(row), key(b"2013,1,1,2400,2359,-1,1004,1022,-18,B6,725,N8,JFK"));

        let line = b"any line";
        assert_eq!((kind(line), hour(line), delay_minutes(line)), (DEPARTED, 0, None));
        assert_eq!((carrier(line), origin(line)), ("?", "?"));
    }
}
