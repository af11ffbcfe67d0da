//! Blocks: what is one, what is none, and what may be torn.

use super::*;
use crate::format::NUMBER_END;
use crate::format::record::tests::push;
use crate::format::tests::for_each_bit_flip;
use proptest::prelude::*;

const POSITION: u64 = 0x0001_2000;
const SALT: u64 = 0x0123_4567_89AB_CDEF;

fn header(body_bytes: usize, records: usize) -> BlockHeader {
    BlockHeader {
        crc: 0,
        position: POSITION,
        body_bytes: body_bytes as u32,
        records: records as u32,
        flags: 0,
        prev_crc: 0xDEAD_BEEF,
        first_lsn: 77,
        time_nanos: 1_700_000_000_000_000_000,
        watermark: POSITION - PAGE_BYTES,
        salt: SALT,
    }
}

/// A block of these payloads, padded to whole pages as it lies on disk.
fn block_of<P: AsRef<[u8]>>(payloads: &[P]) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_HEADER_BYTES];
    for (i, payload) in payloads.iter().enumerate() {
        push(&mut bytes, i as u16, !(i as u64), payload.as_ref());
    }
    let header = header(bytes.len() - BLOCK_HEADER_BYTES, payloads.len());
    seal(&mut bytes, &header);
    bytes.resize(align_up(bytes.len() as u64, PAGE_BYTES) as usize, 0);
    bytes
}

fn check(bytes: &[u8]) -> Result<BlockHeader, BlockFault> {
    verify(bytes, POSITION, SALT)
}

fn torn(bytes: &[u8]) -> bool {
    looks_torn(bytes, POSITION, SALT)
}

/// Sealed again after a change, so that the checks behind the checksum are reached.
fn resealed(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut bytes);
    let framed_bytes = BlockHeader::read(&bytes).expect("a block").framed_bytes();
    let crc = checksum(&bytes[..framed_bytes]);
    put_u32(&mut bytes, CRC_AT, crc);
    bytes
}

#[test]
fn lsns_that_a_sum_would_overflow_are_refused() {
    // Recovery added the number of records to any LSN, and panicked.
    for (first_lsn, fault) in [
        (1, Ok(())),
        (NUMBER_END - 1, Ok(())),
        (0, Err(BlockFault::Records)),
        (NUMBER_END, Err(BlockFault::Records)),
        (u64::MAX, Err(BlockFault::Records)),
    ] {
        let block = resealed(block_of(&["abc"]), |bytes| put_u64(bytes, 32, first_lsn));
        assert_eq!(check(&block).map(drop), fault, "{first_lsn}");
        let mut half = block_of(&[[7; 2000]]);
        put_u64(&mut half, 32, first_lsn);
        half[1024..1536].fill(0);
        assert_eq!(torn(&half), fault.is_ok(), "{first_lsn}");
    }
}

#[test]
fn what_follows_a_torn_block_says_nothing_of_it() {
    let mut half = block_of(&[[7; 2000]]);
    half[1024..1536].fill(0);
    half.extend([9; 4096]);
    assert!(torn(&half));
    // Its own padding does.
    half[4095] = 9;
    assert!(!torn(&half));
}

#[test]
fn the_header_is_laid_out_as_drawn() {
    let header = BlockHeader { crc: 0x0403_0201, flags: FLAG_ROLLED, ..header(24, 1) };
    let mut image = [0xFF; BLOCK_HEADER_BYTES];
    header.write(&mut image);
    assert_eq!(&image[..16], b"EVBK\x01\x02\x03\x04\x00\x20\x01\0\0\0\0\0");
    assert_eq!(&image[16..32], b"\x18\0\0\0\x01\0\0\0\x01\0\0\0\xEF\xBE\xAD\xDE");
    let words = [77, 1_700_000_000_000_000_000, POSITION - PAGE_BYTES, SALT];
    assert_eq!(&image[32..], words.map(u64::to_le_bytes).concat());
    assert_eq!(BlockHeader::read(&image), Some(header));
    assert_eq!(BlockHeader::read(&image[..63]), None);
}

#[test]
fn a_block_reads_back_with_its_checksum() {
    let bytes = block_of(&["one", "", "three"]);
    let header = check(&bytes).expect("sound");
    assert_eq!(header.crc, crc32c::crc32c(&bytes[8..header.framed_bytes()]));
    assert_eq!((header.records, header.first_lsn), (3, 77));
    assert_eq!(header.framed_bytes(), 64 + 24 + 16 + 24);
    assert_eq!(check(&bytes[..header.framed_bytes()]), Ok(header));
}

#[test]
fn blocks_without_records_are_sound() {
    let mut bytes = [0; BLOCK_HEADER_BYTES];
    for flags in [0, FLAG_ROLLED] {
        let mut header = header(0, 0);
        header.flags = flags;
        header.crc = seal(&mut bytes, &header);
        assert_eq!(check(&bytes), Ok(header));
        assert_eq!(header.is_rolled(), flags == FLAG_ROLLED);
    }
}

#[test]
fn each_fault_is_told_apart() {
    let bytes = block_of(&["one", "two"]);
    assert_eq!(check(&[0; 512]), Err(BlockFault::Zero));
    assert_eq!(check(&bytes[..63]), Err(BlockFault::Zero));
    let late = [&[0; 511], &[1][..]].concat();
    assert_eq!(check(&late), Err(BlockFault::Magic));
    let elsewhere = verify(&bytes, POSITION + PAGE_BYTES, SALT);
    assert_eq!(elsewhere, Err(BlockFault::Position));
    assert_eq!(verify(&bytes, POSITION, SALT + 1), Err(BlockFault::Salt));
    assert_eq!(check(&bytes[..64 + 47]), Err(BlockFault::Length));
    // Fewer and more records than there are, ROLLED with records, an unknown flag.
    for (at, value) in [(20, 1), (20, 3), (24, 1), (24, 2)] {
        let odd = resealed(bytes.clone(), |bytes| bytes[at] = value);
        assert_eq!(check(&odd), Err(BlockFault::Records), "{value} at {at}");
    }
    let mut damaged = bytes;
    damaged[100] ^= 1;
    assert_eq!(check(&damaged), Err(BlockFault::Checksum));
}

#[test]
fn every_bit_flip_is_refused_and_is_no_tear() {
    let payloads = [[0xA5; 300], [0x5A; 300], [0xFF; 300]];
    for bytes in [block_of(&payloads), block_of::<[u8; 0]>(&[])] {
        let framed_bytes = check(&bytes).expect("sound").framed_bytes();
        for_each_bit_flip(&bytes[..framed_bytes], |image| {
            let padded = [image, &bytes[framed_bytes..]].concat();
            check(image).is_err() && check(&padded).is_err() && !torn(&padded)
        });
    }
}

#[test]
fn a_block_image_in_a_payload_is_no_block() {
    // A consumer that stores blocks of another log, or of this one, as payloads: at any
    // offset where recovery may look, they must not pass for blocks of this place.
    let image = block_of(&["inner"]);
    let payload = [vec![0; 4096 - 80], image.clone()].concat();
    let outer = block_of(&[payload]);
    assert_eq!(&outer[4096..4096 + 64], &image[..64]);
    let here = verify(&outer[4096..], POSITION + 4096, SALT);
    assert_eq!(here, Err(BlockFault::Position));
    assert!(!looks_torn(&outer[4096..], POSITION + 4096, SALT));
    let other_log = verify(&outer[4096..], POSITION, !SALT);
    assert_eq!(other_log, Err(BlockFault::Salt));
    assert!(!looks_torn(&outer[4096..], POSITION, !SALT));
}

#[test]
#[should_panic(expected = "the body is not of the stated length")]
fn a_wrong_length_is_not_written() {
    seal(&mut [0; 80], &header(24, 1));
}

#[test]
#[should_panic(expected = "impossible header")]
fn records_in_a_rolled_block_are_not_written() {
    let mut block = vec![0; BLOCK_HEADER_BYTES];
    push(&mut block, 1, 2, b"x");
    let mut header = header(24, 1);
    header.flags = FLAG_ROLLED;
    seal(&mut block, &header);
}

#[test]
fn zeros_are_explained_by_a_tear_and_a_whole_block_is_not_torn() {
    assert!(torn(&[]) && torn(&[0; 8192]));
    assert!(!torn(&block_of(&["whole"])));
    let zero_sectors = block_of(&[[0; 4096]]);
    assert!(!torn(&zero_sectors), "they are its payload");
    assert!(!torn(&[1; 63]), "not zero, yet too short for a header");
}

#[test]
fn a_lost_header_hides_the_rest() {
    let mut bytes = block_of(&[[7; 3000]]);
    bytes[..512].fill(0);
    assert!(torn(&bytes));
}

#[test]
fn what_arrived_of_a_torn_block_must_be_right() {
    let mut bytes = block_of(&[[7; 1000], [7; 1000], [7; 1000]]);
    bytes[2560..3072].fill(0);
    assert!(torn(&bytes));
    let flips = [
        ("magic", 0, 1),
        ("position", 8, 1),
        ("body_bytes", 18, 1),
        ("records", 20, 1),
        ("ROLLED", 24, FLAG_ROLLED as u8),
        ("unknown flag", 24, 2),
        ("salt", 56, 1),
        ("first record's length", 65, 1),
        ("second record's flags", 64 + 1016 + 7, 1),
        ("padding", 4095, 1),
    ];
    for (name, at, bits) in flips {
        let mut damaged = bytes.clone();
        damaged[at] ^= bits;
        assert!(!torn(&damaged), "{name}");
    }
}

#[test]
fn more_records_than_fit_are_not_lost_ones() {
    let mut bytes = block_of(&[[7; 4096 - 80]]);
    bytes[512..1024].fill(0);
    assert!(torn(&bytes));
    bytes[20] = 2;
    assert!(!torn(&bytes));
}

#[test]
fn a_longer_body_than_was_written_is_no_missing_sector() {
    // One flipped bit in body_bytes stretches the block over the zeros behind it.
    let mut bytes = block_of(&[[7; 500]]);
    bytes.resize(8192, 0);
    bytes[17] ^= 0x10;
    assert_eq!(check(&bytes), Err(BlockFault::Checksum));
    assert!(!torn(&bytes));
}

#[test]
fn zero_payload_passes_for_a_missing_sector_where_nothing_contradicts() {
    let whole = block_of(&[vec![0; 1500], vec![7; 400]]);
    assert!(check(&whole).is_ok() && whole.chunks(512).take(4).any(is_zero));
    // In the payload behind the zeros: undecidable, and taken for a tear.
    let mut damaged = whole.clone();
    damaged[1700] ^= 1;
    assert!(torn(&damaged));
    // In a record header that arrived: no tear leaves that.
    for at in [64, 64 + 6, 64 + 1520 + 1, 64 + 1520 + 6] {
        let mut damaged = whole.clone();
        damaged[at] ^= 8;
        assert!(!torn(&damaged), "byte {at}");
    }
}

/// For blocks of up to some 50 sectors; with `zeros`, some are sectors of nothing else.
fn payloads(zeros: bool) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let least = if zeros { 0 } else { 1 };
    let bytes = proptest::collection::vec(least..=255u8, 0..1500);
    let runs = (least..=1u8, 0..3000usize).prop_map(|(byte, n)| vec![byte; n]);
    proptest::collection::vec(prop_oneof![bytes, runs], 0..8)
}

proptest! {
    #[test]
    fn any_loss_of_sectors_is_a_tear(payloads in payloads(true), arrived in any::<u64>()) {
        let whole = block_of(&payloads);
        let mut bytes = vec![0; whole.len() + 4096];
        for (i, sector) in whole.chunks(512).enumerate() {
            if arrived.rotate_right(i as u32) & 1 == 1 {
                bytes[i * 512..][..512].copy_from_slice(sector);
            }
        }
        if bytes[..whole.len()] == whole {
            prop_assert!(check(&bytes).is_ok() && !torn(&bytes));
        } else {
            prop_assert!(check(&bytes).is_err() && torn(&bytes));
        }
    }

    #[test]
    fn any_damage_to_a_block_without_zero_sectors_is_no_tear(
        payloads in payloads(false),
        at in any::<prop::sample::Index>(),
        bit in 0..8u32,
        sector in proptest::collection::vec(1..=255u8, 512),
    ) {
        let whole = block_of(&payloads);
        let framed_bytes = check(&whole).expect("sound").framed_bytes();
        let at = at.index(framed_bytes);

        let mut flipped = whole.clone();
        flipped[at] ^= 1 << bit;
        prop_assume!(!flipped[..framed_bytes].chunks(512).any(is_zero));
        prop_assert!(check(&flipped).is_err() && !torn(&flipped));

        let mut foreign = whole;
        foreign[at / 512 * 512..][..512].copy_from_slice(&sector);
        prop_assert!(check(&foreign).is_err() && !torn(&foreign));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..1500),
        mut header in (any::<u32>(), 0..1500u32, 0..40u32, 0..4u32).prop_map(
            |(crc, body_bytes, records, flags)| {
                BlockHeader { crc, body_bytes, records, flags, ..header(0, 0) }
            },
        ),
    ) {
        let _ = (check(&bytes), torn(&bytes));
        if let Some(image) = bytes.first_chunk_mut() {
            header.write(image);
            let _ = (check(&bytes), torn(&bytes));
            header.crc = checksum(&bytes[..header.framed_bytes().min(bytes.len())]);
            let _ = bytes.first_chunk_mut().map(|image| header.write(image));
            let _ = (check(&bytes), torn(&bytes));
        }
    }
}

#[test]
fn every_record_of_a_long_block_is_checked() {
    // Longer than what is walked at once, with records, and ends of them, on either side.
    for payload_bytes in [0, 100, 5_000, 30_000] {
        let count = 70_000_usize.div_ceil(payload_bytes + 16);
        let payload = vec![7; payload_bytes];
        let bytes = block_of(&vec![&payload; count]);
        assert_eq!(check(&bytes).map(|header| header.records as usize), Ok(count));
        let with = |change: &dyn Fn(&mut Vec<u8>)| check(&resealed(bytes.clone(), change));
        for records in [0, count - 1, count + 1, u32::MAX as usize] {
            let miscounted = with(&|bytes| put_u32(bytes, 20, records as u32));
            assert_eq!(miscounted, Err(BlockFault::Records), "{records} for {count}");
        }
        for record in (0..count).step_by(1 + count / 200).chain([count - 1]) {
            let flags_at = BLOCK_HEADER_BYTES + record * record::record_bytes(payload_bytes) + 6;
            assert_eq!(with(&|bytes| bytes[flags_at] ^= 1), Err(BlockFault::Records), "{record}");
        }
    }
}
