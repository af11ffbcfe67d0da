//! Trap 8: files that shrink under a reader, and the file that is never mapped.

use std::fs::{self, OpenOptions};
use std::path::Path;

use eventplane::testing::{Force, Polled};
use eventplane::{Ack, ErrorKind, ReadMode, Reason, Start};

use super::bed::{
    Bed, SLAB, Via, backend_name, backend_of, backends, child_of, commit, fill_to, in_child,
    read_to_end, reader, set_mode,
};

fn truncate(path: &Path, bytes: u64) {
    set_mode(path, 0o644);
    OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
}

/// The active segment was mapped, and truncating it killed the process with SIGBUS.
#[test]
fn trap_08_truncating_a_sealed_segment_under_a_reader_is_an_error() {
    const NAME: &str = "truncated::trap_08_truncating_a_sealed_segment_under_a_reader_is_an_error";
    let Some(backend) = child_of(NAME) else {
        for backend in backends() {
            in_child(NAME, backend_name(backend));
        }
        return;
    };
    for (via, mode) in
        [(Via::CatchUp, ReadMode::Map), (Via::CatchUp, ReadMode::Pread), (Via::Cold, ReadMode::Map)]
    {
        let bed = Bed::sized(backend_of(&backend), 16 * SLAB, 64 * SLAB);
        let bus = bed
            .builder()
            .manual(&bed.clock)
            .read_mode(mode)
            .open(bed.path())
            .unwrap();
        let mut model = Vec::new();
        fill_to(&bed, &bus, &mut model, 4, 20_000);
        let mut reader = reader(&bus, via);
        for expected in &model[..3] {
            assert_eq!(reader.try_next().unwrap().unwrap().key(), expected.1);
        }
        // Behind what is populated or buffered, so that nothing read already is taken away.
        truncate(&bed.segment_path(0), 50 * SLAB);
        let (records, error) = read_to_end(&bus, &mut reader, &bed.clock);
        let error = error.expect("the rest of the segment is gone");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        assert_eq!(
            (error.segment(), error.path()),
            (Some(0), Some(&*bed.segment_path(0)))
        );
        assert!(
            error
                .offset()
                .is_some_and(|at| (40 * SLAB..=50 * SLAB).contains(&at)),
            "{error:?}"
        );
        assert!(records.len() > 50, "what is still there is delivered");
        assert!(records == model[3..3 + records.len()]);
        // Whoever comes later learns it as well.
        let mut late = super::bed::reader(&bus, via);
        let (_, error) = read_to_end(&bus, &mut late, &bed.clock);
        assert_eq!(error.unwrap().kind(), ErrorKind::Corrupt);
    }
}

/// The names of segment files that this process has mapped.
fn mapped_in(dir: &Path) -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let dir = dir.to_str().unwrap();
    let ours = maps
        .lines()
        .filter_map(|line| line.split_once(dir))
        .map(|(_, name)| name.into());
    ours.collect()
}

/// The active segment was mapped; here none is that may still change.
#[test]
fn trap_08_the_active_segment_is_never_mapped() {
    for backend in backends() {
        let bed = Bed::new(backend);
        let bus = bed.by_hand();
        let mut model = Vec::new();
        fill_to(&bed, &bus, &mut model, 3, 5_000);
        let sealed: Vec<String> = (0..3)
            .map(|n| format!("/segments/{:020}.log", n * bed.segment_bytes))
            .collect();
        let dir = bed.path().to_owned();
        let (send, mapped) = std::sync::mpsc::channel();
        let mut consumer = bus
            .subscribe("mapper")
            .start_if_new(Start::Earliest)
            .batch_records_max(2)
            .manual(move |_| {
                send.send(mapped_in(&dir)).unwrap();
                Ok(Ack::All)
            })
            .unwrap();
        bus.force("mapper", Force::CatchUp, Reason::Lapped);
        // To the very end, which lies in the active segment, and on while it grows.
        for _ in 0..10 {
            while consumer.poll() == Polled::Moved {}
            commit(&bus.writer(), &mut model, 100);
        }
        while consumer.poll() == Polled::Moved {}
        assert_eq!(consumer.handle().status().lag_records, 0);
        let mut seen: Vec<String> = mapped.try_iter().flatten().collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, sealed, "the sealed ones, each, and no other");
    }
}
