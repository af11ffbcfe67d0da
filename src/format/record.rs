//! A record in a block's body: 16 bytes of header, the payload, zeros up to a multiple of 8.
//!
//! ```text
//!  offset  bytes  field
//!       0      4  payload_bytes
//!       4      2  kind
//!       6      2  flags           bit 0 PRESENT, always set; the others are zero
//!       8      8  key
//!      16      n  payload         n = payload_bytes
//!    16+n   0..7  zeros
//! ```
//!
//! Records lie back to back from the start of the body, so each starts at a multiple of 8 and
//! the first half of its header never straddles two sectors. A record has no checksum and no
//! number of its own: the block's checksum covers it, its LSN is the block's first plus its
//! index. PRESENT makes zeros no record, so a walk can never run through bytes not written.

use super::{align_up, get_u64, put_u64};

/// What a record takes besides its payload and padding.
pub(crate) const RECORD_HEADER_BYTES: usize = 16;

const FLAG_PRESENT: u16 = 1;
const RECORD_ALIGN: u64 = 8;

/// What a record with so many bytes of payload takes in a block: header, payload, padding.
#[inline]
pub(crate) const fn record_bytes(payload: usize) -> usize {
    RECORD_HEADER_BYTES + align_up(payload as u64, RECORD_ALIGN) as usize
}

/// A record where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RawRecord<'a> {
    pub kind: u16,
    pub key: u64,
    pub payload: &'a [u8],
}

/// Write the header of a record; payload and padding are the caller's.
#[inline]
pub(crate) fn write_header(
    out: &mut [u8; RECORD_HEADER_BYTES],
    payload_bytes: u32,
    kind: u16,
    key: u64,
) {
    // The fields of the first word, in the order of their bytes.
    let word = u64::from(payload_bytes) | u64::from(kind) << 32 | u64::from(FLAG_PRESENT) << 48;
    put_u64(out, 0, word);
    put_u64(out, 8, key);
}

/// Copies a payload to where it stays. Calling the general copy costs more than a short one takes.
#[inline]
pub(crate) fn copy_payload(out: &mut [u8], payload: &[u8]) {
    match payload.len() {
        16..=32 => copy_both_ends::<16>(out, payload),
        33..=64 => copy_both_ends::<32>(out, payload),
        65..=128 => copy_both_ends::<64>(out, payload),
        _ => out.copy_from_slice(payload),
    }
}

/// Of `N` to `2 * N` bytes.
#[inline]
fn copy_both_ends<const N: usize>(out: &mut [u8], payload: &[u8]) {
    if let (Some(from), Some(to)) = (payload.first_chunk::<N>(), out.first_chunk_mut()) {
        *to = *from;
    }
    if let (Some(from), Some(to)) = (payload.last_chunk::<N>(), out.last_chunk_mut()) {
        *to = *from;
    }
}

/// The record that `bytes` begin with, and what lies behind it. `None` where there is no
/// well-formed record that fits, padding included.
#[inline]
pub(crate) fn split(bytes: &[u8]) -> Option<(RawRecord<'_>, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>()?;
    let (word, key) = (get_u64(header, 0)?, get_u64(header, 8)?);
    if (word >> 48) as u16 != FLAG_PRESENT {
        return None;
    }
    let payload_bytes = word as u32 as usize;
    let (padded, rest) =
        rest.split_at_checked(align_up(payload_bytes as u64, RECORD_ALIGN) as usize)?;
    let (kind, payload) = ((word >> 32) as u16, padded.get(..payload_bytes)?);
    Some((RawRecord { kind, key, payload }, rest))
}

/// What lies behind the record that `bytes` begin with; `None` as for [`split`].
#[inline]
pub(crate) fn skip(bytes: &[u8]) -> Option<&[u8]> {
    let word = get_u64(bytes, 0)?;
    if (word >> 48) as u16 != FLAG_PRESENT {
        return None;
    }
    bytes.get(record_bytes(word as u32 as usize)..)
}

/// The record at `body[offset..]` and the offset of the one behind it; `None` as for [`split`].
#[inline]
pub(crate) fn read(body: &[u8], offset: usize) -> Option<(RawRecord<'_>, usize)> {
    let (record, rest) = split(body.get(offset..)?)?;
    Some((record, body.len() - rest.len()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Append a record to a body, as the writer does.
    pub(in crate::format) fn push(body: &mut Vec<u8>, kind: u16, key: u64, payload: &[u8]) {
        let mut header = [0xFF; RECORD_HEADER_BYTES];
        write_header(&mut header, payload.len() as u32, kind, key);
        let end = body.len() + record_bytes(payload.len());
        body.extend_from_slice(&header);
        body.extend_from_slice(payload);
        body.resize(end, 0);
    }

    #[test]
    fn sizes_are_whole_words() {
        let sizes = [0, 1, 7, 8, 9, 100].map(record_bytes);
        assert_eq!(sizes, [16, 24, 24, 24, 32, 120]);
    }

    #[test]
    fn a_record_is_laid_out_as_drawn() {
        let mut body = Vec::new();
        push(&mut body, 0x0102, 0x1122_3344_5566_7788, b"abc");
        assert_eq!(body, b"\x03\0\0\0\x02\x01\x01\0\x88\x77\x66\x55\x44\x33\x22\x11abc\0\0\0\0\0");
    }

    #[test]
    fn payloads_of_all_lengths_are_copied_whole() {
        let payload: Vec<u8> = (0..=255).cycle().take(300).collect();
        for len in 0..payload.len() {
            let mut out = vec![0xEE; len];
            copy_payload(&mut out, &payload[..len]);
            assert_eq!(out, payload[..len]);
        }
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(read(&[0; 64], 0), None);
        assert_eq!(skip(&[0; 64]), None);
    }

    #[test]
    fn what_does_not_fit_is_no_record() {
        let mut body = Vec::new();
        push(&mut body, 1, 2, b"abc");
        assert!(read(&body, 0).is_some());
        for cut in 0..body.len() {
            assert_eq!(read(&body[..cut], 0), None, "cut to {cut}");
        }
        for offset in [1, 8, 24, 25, usize::MAX] {
            assert_eq!(read(&body, offset), None, "at {offset}");
        }
        body[..4].fill(0xFF);
        assert_eq!(read(&body, 0), None);
    }

    #[test]
    fn exactly_the_one_flag_is_expected() {
        let mut body = Vec::new();
        push(&mut body, 1, 2, b"abc");
        for bit in 0..16 {
            let mut flipped = body.clone();
            flipped[6 + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&flipped, 0), None, "flag {bit}");
        }
    }

    proptest! {
        #[test]
        fn a_walk_gives_back_what_was_written(
            records in proptest::collection::vec(
                (any::<u16>(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..40)),
                0..20,
            ),
        ) {
            let mut body = Vec::new();
            for (kind, key, payload) in &records {
                push(&mut body, *kind, *key, payload);
            }
            let mut offset = 0;
            for (kind, key, payload) in &records {
                let (record, next) = read(&body, offset).expect("was written");
                prop_assert_eq!(record, RawRecord { kind: *kind, key: *key, payload });
                offset = next;
            }
            prop_assert_eq!(offset, body.len());
            prop_assert_eq!(read(&body, offset), None);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_never_stand_still(
            mut body in proptest::collection::vec(any::<u8>(), 0..200),
            offset in 0..220usize,
            payload_bytes in 0..200u32,
        ) {
            let behind = |body: &[u8]| body.get(offset..).and_then(skip).map(<[u8]>::len);
            let left = |body: &[u8]| read(body, offset).map(|(_, next)| body.len() - next);
            prop_assert_eq!(behind(&body), left(&body));
            if let Some(header) = body.get_mut(offset..).and_then(|tail| tail.first_chunk_mut()) {
                write_header(header, payload_bytes, 3, 4);
            }
            if let Some((record, next)) = read(&body, offset) {
                prop_assert!(next >= offset + RECORD_HEADER_BYTES && next <= body.len());
                prop_assert_eq!(record.payload.len(), payload_bytes as usize);
            }
            prop_assert_eq!(behind(&body), left(&body));
        }
    }
}
