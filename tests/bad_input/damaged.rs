//! Files of a log that are cut, emptied, changed, newer, or another log's.

use std::fs;
use std::path::{Path, PathBuf};

use eventplane::{Ack, Backend, ErrorKind};

use super::bed::{Bed, PAGE, Rec, backends, commit, fill_to, patch, reopens, replace};
use super::raw;

/// Three sealed segments, a fourth with blocks, empty ones behind, a checkpoint; as left by a
/// process that is killed when all is written.
fn log(backend: Backend) -> (Bed, Vec<Rec>) {
    let bed = Bed::new(backend);
    let bus = bed.by_hand();
    let mut model = Vec::new();
    fill_to(&bed, &bus, &mut model, 3, 9_000);
    for _ in 0..3 {
        commit(&bus.writer(), &mut model, 9_000);
    }
    drop(bus.subscribe("c").manual(|_| Ok(Ack::All)).unwrap());
    let empty: Vec<_> = bed.segments().split_off(4);
    let empty = empty
        .into_iter()
        .map(|number| (bed.segment_path(number), bed.segment(number)));
    let empty: Vec<_> = empty.collect();
    assert!(!empty.is_empty());
    bus.close().unwrap();
    for (path, bytes) in empty {
        fs::write(path, bytes).unwrap();
    }
    (bed, model)
}

fn file(bed: &Bed, name: &str) -> PathBuf {
    bed.path().join(name)
}

/// The file with these bytes is refused; then it is put back.
#[track_caller]
fn with(bed: &Bed, path: &Path, bytes: &[u8], kind: ErrorKind) -> eventplane::Error {
    let whole = fs::read(path).unwrap();
    replace(path, bytes);
    let error = bed.refuses(kind, path);
    replace(path, &whole);
    error
}

#[test]
fn a_cut_emptied_or_longer_segment_is_refused() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        for number in bed.segments() {
            let path = bed.segment_path(number);
            let whole = bed.segment(number);
            for bytes in [0, 1, PAGE, whole.len() / 2, whole.len() - 1, whole.len() + PAGE] {
                let mut changed = whole.clone();
                changed.resize(bytes, 0);
                let error = with(&bed, &path, &changed, ErrorKind::Corrupt);
                let place = (error.segment(), error.offset());
                assert_eq!(place, (Some(number), Some(bytes.min(whole.len()) as u64)));
                assert!(error.is_damage() && !error.is_transient());
            }
        }
        reopens(&bed, &mut model);
    }
}

#[test]
fn a_flipped_bit_in_a_segments_header_is_refused_everywhere() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        for number in bed.segments() {
            for at in [3, 11, 14, 20, 28, 40, 50, 60, 66, 74, 84, 90, 4095] {
                let mut changed = bed.segment(number);
                changed[at] ^= 1;
                let path = bed.segment_path(number);
                let error = with(&bed, &path, &changed, ErrorKind::Corrupt);
                assert_eq!((error.segment(), error.offset()), (Some(number), Some(0)), "{at}");
            }
        }
        reopens(&bed, &mut model);
    }
}

#[test]
fn a_flipped_bit_in_an_open_segments_blocks_is_refused() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        let whole = bed.segment(3);
        for block in raw::filled(&whole) {
            for at in [0, 4, 8, 16, 20, 24, 28, 32, 40, 48, 56, 64, 68, 70, 72, 80, 9_000] {
                let mut changed = whole.clone();
                changed[block.offset + at] ^= 0x40;
                let error = with(&bed, &bed.segment_path(3), &changed, ErrorKind::Corrupt);
                let place = (error.segment(), error.offset());
                assert_eq!(place, (Some(3), Some(block.offset as u64)), "{at}");
                assert_eq!(error.lsns().unwrap().0.get(), block.first_lsn);
            }
        }
        // Bytes where nothing was ever written.
        let next = bed.segments()[4];
        let mut changed = bed.segment(next);
        changed[70_000] = 1;
        let error = with(&bed, &bed.segment_path(next), &changed, ErrorKind::Corrupt);
        assert_eq!(error.segment(), Some(next));
        reopens(&bed, &mut model);
    }
}

/// A footer repeats what the blocks say: it is made anew, and is what it was.
#[test]
fn a_damaged_footer_is_made_anew_from_the_blocks() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        for number in [0, 2] {
            let whole = bed.segment(number);
            let footer = whole.len() - raw::footer_bytes(whole.len());
            for at in [0, 13, 33, 41, 49, 53, 65, 73, 100, 130, 150, 4000] {
                let mut changed = whole.clone();
                changed[footer + at] ^= 8;
                replace(&bed.segment_path(number), &changed);
                reopens(&bed, &mut model);
                assert!(bed.segment(number) == whole, "{at}");
            }
        }
    }
}

#[test]
fn one_slot_of_meta_is_enough_and_none_is_refused() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        let path = file(&bed, "meta");
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len(), 2 * PAGE);
        for at in [0, 12, 16, 33, 49, 57, 65, 73, 81, 89, 4000] {
            for slot in [0, PAGE] {
                let mut changed = whole.clone();
                changed[slot + at] ^= 2;
                replace(&path, &changed);
                reopens(&bed, &mut model);
                replace(&path, &whole);
            }
            let mut changed = whole.clone();
            changed[at] ^= 2;
            changed[PAGE + at] ^= 2;
            let kind = if at == 0 { ErrorKind::NotALog } else { ErrorKind::Corrupt };
            with(&bed, &path, &changed, kind);
        }
        for bytes in [0, 1, 54, PAGE - 1] {
            with(&bed, &path, &whole[..bytes], ErrorKind::Corrupt);
        }
        reopens(&bed, &mut model);
    }
}

#[test]
fn damaged_checkpoints_are_refused() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        let path = file(&bed, "checkpoints");
        let whole = fs::read(&path).unwrap();
        assert_eq!(raw::checkpoints(&whole).len(), 1);
        for bytes in [0, 1, 54, 63, 64, whole.len() - 1] {
            with(&bed, &path, &whole[..bytes], ErrorKind::Corrupt);
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 4;
            // Versions have a test of their own.
            if !(8..10).contains(&at) {
                let error = with(&bed, &path, &changed, ErrorKind::Corrupt);
                assert!(error.is_damage());
            }
        }
        let mut longer = whole.clone();
        longer.resize(27 << 20, 0);
        with(&bed, &path, &longer, ErrorKind::Corrupt);
        reopens(&bed, &mut model);
    }
}

/// The refusal came after the segments were sealed and leftovers removed.
#[test]
fn damaged_checkpoints_are_refused_before_recovery_changes_anything() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        let checkpoints = file(&bed, "checkpoints");
        let whole = fs::read(&checkpoints).unwrap();
        // As after a crash: a segment to be sealed, a torn tail, a leftover.
        let bytes = bed.segment(1).len();
        bed.patch(1, bytes - PAGE, &[0; PAGE]);
        let blocks = raw::blocks(&bed.segment(3));
        let [.., last, watermark] = &blocks[..] else { panic!("{blocks:?}") };
        bed.patch(3, watermark.offset, &[0; PAGE]);
        bed.patch(3, last.offset + 1024, &[0; 512]);
        fs::write(file(&bed, "segments/00000000000009999360.tmp"), b"unfinished").unwrap();
        patch(&checkpoints, 40, &[whole[40] ^ 1]);
        bed.refuses(ErrorKind::Corrupt, &checkpoints);
        replace(&checkpoints, &whole);
        model.pop();
        reopens(&bed, &mut model);
    }
}

/// Changes a structure at `offset` of a file, makes its checksum right, and writes it back.
fn edit(path: &Path, (start, end): (usize, usize), change: impl Fn(&mut [u8])) {
    let mut file = fs::read(path).unwrap();
    let part = &mut file[start..end];
    change(part);
    raw::reseal(part);
    replace(path, &file);
}

/// A file, the structures in it from where to where, and its segment.
type Structure = (PathBuf, Vec<(usize, usize)>, Option<u64>);

/// Every structure with an envelope: its file and place, and the segment it belongs to.
fn structures(bed: &Bed) -> Vec<Structure> {
    let bytes = bed.segment_bytes as usize;
    let footer = (bytes - raw::footer_bytes(bytes), bytes);
    let checkpoints = file(bed, "checkpoints");
    let len = fs::read(&checkpoints).unwrap().len();
    let header = |n| (bed.segment_path(n), vec![(0, PAGE)], Some(n));
    vec![
        header(0),
        header(3),
        header(bed.segments()[4]),
        (bed.segment_path(1), vec![footer], Some(1)),
        (file(bed, "meta"), vec![(0, PAGE), (PAGE, 2 * PAGE)], None),
        (checkpoints, vec![(0, len)], None),
    ]
}

#[test]
fn newer_versions_and_unknown_required_features_are_refused_by_name() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        for (path, places, segment) in structures(&bed) {
            let whole = fs::read(&path).unwrap();
            for (at, value, named) in [(8, 2u8, "2"), (9, 1, "258"), (16, 1, "1"), (23, 0x80, "")] {
                for &place in &places {
                    edit(&path, place, |part| part[at] = value);
                }
                if at == 9 {
                    // Of a later version nothing is assumed but where it says so.
                    places.iter().for_each(|place| patch(&path, place.0 + 8, &[2]));
                }
                let error = bed.refuses(ErrorKind::Unsupported, &path);
                let said = error.to_string();
                assert!(said.contains(named), "{said}");
                assert!(
                    said.contains(if at < 16 { "version" } else { "feature" }),
                    "{said}"
                );
                assert_eq!(error.segment(), segment);
                assert_eq!(error.offset(), segment.map(|_| places[0].0 as u64));
                replace(&path, &whole);
            }
        }
        // A newer slot of meta is what counts, even if the other one is ours.
        let path = file(&bed, "meta");
        let whole = fs::read(&path).unwrap();
        let sequence = |slot: usize| raw::u64_at(&whole, slot + 48);
        let newest = if sequence(0) > sequence(PAGE) { 0 } else { PAGE };
        edit(&path, (newest, newest + PAGE), |slot| slot[16] = 1);
        bed.refuses(ErrorKind::Unsupported, &path);
        replace(&path, &whole);
        reopens(&bed, &mut model);
    }
}

#[test]
fn unknown_optional_features_are_ignored() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        for (path, places, _) in structures(&bed) {
            for place in places {
                edit(&path, place, |part| part[24..32].fill(0xAA));
            }
        }
        reopens(&bed, &mut model);
        assert_eq!(bed.segment(0)[24..32], [0xAA; 8], "and kept");
    }
}

#[test]
fn a_segment_of_another_log_is_refused_wherever_it_is() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        let (other, _) = log(backend);
        for number in bed.segments() {
            let foreign = other.segment(number);
            let path = bed.segment_path(number);
            let error = with(&bed, &path, &foreign, ErrorKind::ForeignSegment);
            assert_eq!((error.segment(), error.offset()), (Some(number), Some(0)));
            assert!(error.is_damage());
        }
        // A segment of this log in another's place, and another's contents under our header.
        let error = with(&bed, &bed.segment_path(1), &bed.segment(2), ErrorKind::Corrupt);
        assert_eq!(error.segment(), Some(1));
        let mut mixed = other.segment(3);
        mixed[..PAGE].copy_from_slice(&bed.segment(3)[..PAGE]);
        let error = with(&bed, &bed.segment_path(3), &mixed, ErrorKind::Corrupt);
        assert_eq!((error.segment(), error.offset()), (Some(3), Some(PAGE as u64)));
        reopens(&bed, &mut model);
    }
}

#[test]
fn the_meta_of_another_log_is_refused() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        let (other, _) = log(backend);
        let meta = fs::read(file(&other, "meta")).unwrap();
        let whole = fs::read(file(&bed, "meta")).unwrap();
        replace(&file(&bed, "meta"), &meta);
        bed.refuses(ErrorKind::ForeignSegment, &bed.segment_path(0));
        replace(&file(&bed, "meta"), &whole);
        reopens(&bed, &mut model);
    }
}

#[test]
fn a_missing_segment_is_named_whichever_it_is() {
    for backend in backends() {
        let (bed, mut model) = log(backend);
        for number in 0..4 {
            let whole = bed.segment(number);
            fs::remove_file(bed.segment_path(number)).unwrap();
            let error = bed.refuses(ErrorKind::MissingSegment, &bed.segment_path(number));
            assert_eq!(error.segment(), Some(number));
            replace(&bed.segment_path(number), &whole);
        }
        reopens(&bed, &mut model);
    }
}
