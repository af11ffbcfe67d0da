//! Trap 17: a small file makes nothing large, many files make no threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;

use eventplane::{Ack, Durability, ErrorKind, Start};

use super::bed::{
    Bed, LONG, VIAS, backend_name, backend_of, backends, child_of, commit, fill_to, in_child,
    patch, read_to_end, reader, replace, until,
};
use super::raw;

/// The system's allocator, which remembers the largest request of each thread.
struct Largest;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(bytes: usize) {
    // A thread that ends may allocate when its cell is gone.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Largest {
    // SAFETY: the duties of the caller are those of the system's allocator.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as above.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    // SAFETY: as above.
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note(bytes);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, bytes) }
    }

    // SAFETY: as above.
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// A slab is 64 KiB, a segment 128 KiB, a cold buffer 1 MiB: nothing needs more.
const BYTES_MAX: usize = 1 << 20;

/// Runs it on this thread, and finds that it asked for no large piece of memory.
#[track_caller]
fn frugally<T>(run: impl FnOnce() -> T) -> T {
    LARGEST.set(0);
    let outcome = run();
    let largest = LARGEST.get();
    assert!(largest > 0 && largest <= BYTES_MAX, "{largest} bytes at once");
    outcome
}

#[test]
#[should_panic(expected = "bytes at once")]
fn a_large_piece_is_noticed() {
    frugally(|| vec![0u8; 4 << 20].len());
}

/// A file of 54 bytes made the reader allocate 4 GiB.
#[test]
fn trap_17_a_tiny_file_allocates_nothing_large() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        fill_to(&bed, &bus, &mut model, 3, 9_000);
        bus.subscribe("c").manual(|_| Ok(Ack::All)).map(drop).unwrap();
        bus.close().unwrap();
        let mut header = bed.segment(1);
        header.truncate(54);
        for tiny in [vec![0xFF; 54], vec![0; 54], header, vec![]] {
            for number in bed.segments() {
                let file = bed.segment(number);
                replace(&bed.segment_path(number), &tiny);
                let at = tiny.len();
                let error = frugally(|| bed.refuses_at(ErrorKind::Corrupt, number, at));
                assert!(error.is_damage());
                replace(&bed.segment_path(number), &file);
            }
            for name in ["meta", "checkpoints"] {
                let path = bed.path().join(name);
                let file = fs::read(&path).unwrap();
                replace(&path, &tiny);
                let open = || bed.builder().manual(&bed.clock).open(bed.path());
                let error = frugally(open).map(drop).unwrap_err();
                let kinds = [ErrorKind::Corrupt, ErrorKind::NotALog, ErrorKind::Unsupported];
                assert!(kinds.contains(&error.kind()), "{error:?}");
                assert_eq!(error.path(), Some(&*path));
                replace(&path, &file);
            }
        }
        frugally(|| super::bed::reopens(&bed, &mut model));
    }
}

/// The same where a length claims to be huge, and the checksum agrees.
#[test]
fn trap_17_a_length_that_claims_gigabytes_is_not_believed() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        fill_to(&bed, &bus, &mut model, 3, 9_000);
        commit(&bus.writer(), &mut model, 9_000);
        bus.subscribe("c").manual(|_| Ok(Ack::All)).map(drop).unwrap();
        bus.close().unwrap();
        let huge = u32::MAX.to_le_bytes();
        // A block's and a record's length, in the sealed and in the open segment.
        for (number, sealed) in [(1, true), (3, false)] {
            let file = bed.segment(number);
            let offset = raw::filled(&file)[0].offset;
            bed.patch(number, offset + 16, &huge);
            expect_damage(&bed, number, offset, sealed);
            let mut changed = file.clone();
            changed[offset + 64..offset + 68].copy_from_slice(&huge);
            raw::reseal_block(&mut changed, offset);
            bed.patch(number, 0, &changed);
            expect_damage(&bed, number, offset, sealed);
            bed.patch(number, 0, &file);
        }
        // Numbers of slab ends and index entries in a footer; it is made anew from the blocks.
        let file = bed.segment(1);
        let footer = file.len() - raw::footer_bytes(file.len());
        for field in [56, 60] {
            let mut changed = file.clone();
            changed[footer + field..footer + field + 4].copy_from_slice(&huge);
            raw::reseal(&mut changed[footer..]);
            bed.patch(1, 0, &changed);
            frugally(|| super::bed::reopens(&bed, &mut model));
            assert!(bed.segment(1) == file);
        }
        let path = bed.path().join("checkpoints");
        let mut file = fs::read(&path).unwrap();
        file[56..60].copy_from_slice(&huge);
        raw::reseal(&mut file);
        patch(&path, 0, &file);
        let error = frugally(|| bed.refuses(ErrorKind::Corrupt, &path));
        assert!(error.is_damage());
    }
}

/// Opening refuses, or, where the segment is sealed, every reader does.
#[track_caller]
fn expect_damage(bed: &Bed, number: u64, offset: usize, sealed: bool) {
    if !sealed {
        frugally(|| bed.refuses_at(ErrorKind::Corrupt, number, offset));
        return;
    }
    let image = bed.image();
    let bus = match image.builder().manual(&image.clock).open(image.path()) {
        Ok(bus) => bus,
        // The joint of two segments is looked at on opening.
        Err(error) => {
            assert_eq!(
                (error.kind(), error.segment()),
                (ErrorKind::Corrupt, Some(number))
            );
            return;
        }
    };
    for via in VIAS {
        let (_, error) = frugally(|| read_to_end(&bus, &mut reader(&bus, via), &image.clock));
        let error = error.expect("the block is damaged");
        assert!(error.is_damage(), "{error:?}");
        let place = (error.segment(), error.offset());
        assert_eq!(place, (Some(number), Some(offset as u64)), "{via:?}: {error:?}");
    }
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// 300 segments started 120 threads.
#[test]
fn trap_17_many_segments_start_no_threads() {
    const NAME: &str = "bounds::trap_17_many_segments_start_no_threads";
    const SEGMENTS: u64 = 300;
    let Some(backend) = child_of(NAME) else {
        // Alone in a process, so that all threads there are are ours.
        for backend in backends() {
            in_child(NAME, backend_name(backend));
        }
        return;
    };
    let bed = Bed::new(backend_of(&backend));
    let interval = std::time::Duration::from_millis(50);
    let durability = Durability::Deferred { interval, bytes: 1 << 20 };
    let writing = bed.builder().durability(durability).open(bed.path()).unwrap();
    fill_to(&bed, &writing, &mut Vec::new(), SEGMENTS, 30_000);
    writing.close().unwrap();
    let before = threads();
    let bus = bed.open();
    assert!(bus.recovery().segments >= SEGMENTS);
    // Those that opened it have been joined, and may still be listed for a moment.
    until("no more than the bus's own", || threads() <= before + 5);
    let opened = threads();
    let mut most = 0;
    let consumers = [0, 1, 2].map(|i| {
        let consumer = bus.subscribe(format!("c{i}")).start_if_new(Start::Earliest);
        consumer.run(|_| Ok(Ack::All)).unwrap()
    });
    for consumer in &consumers {
        while consumer.status().lag_records > 0 {
            most = most.max(threads());
            let _ = consumer.wait_processed(bus.committed_lsn(), std::time::Duration::ZERO);
        }
        consumer.wait_caught_up(LONG).unwrap();
    }
    assert!(most > opened, "they were seen reading");
    assert!(
        most <= opened + 3,
        "one a consumer, whatever it reads: {opened}, then {most}"
    );
    bus.close().unwrap();
    // A thread that was joined may still be listed for a moment.
    until("all threads have ended", || threads() == before);
}
