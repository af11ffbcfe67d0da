//! Readers: they begin anywhere, read on for a while, and go.

use std::time::Duration;

use eventplane::{Bus, ErrorKind, Lsn, Reader, Start};
use fastrand::Rng;

use crate::board::Slot;
use crate::broken;
use crate::plan;
use crate::world::World;

const WAIT: Duration = Duration::from_millis(20);

pub(crate) fn run(world: &World, bus: &Bus, number: u64) {
    let mut rng = plan::rng(world.content.seed, world.plan.life, 2_000 + number);
    while !world.is(&world.stop) {
        let (first, last) = (bus.first_lsn().get(), bus.committed_lsn().get());
        let lsn = rng.u64(first..=last.max(first));
        let (start, due) = match rng.u32(..3) {
            0 => (Start::Earliest, first..=u64::MAX),
            1 => (Start::Latest, last + 1..=u64::MAX),
            _ => (Start::Lsn(Lsn::new(lsn)), lsn..=lsn),
        };
        match bus.reader(start) {
            Ok(reader) => {
                world.board.add(Slot::Readers, 1);
                read(world, reader, due, &mut rng);
            }
            // Retention was quicker.
            Err(e) if e.kind() == ErrorKind::PositionLost => {}
            // A disk that fails, in the search for the start.
            Err(e) if world.is(&world.faulty) && !e.is_damage() => {}
            Err(e) => broken::promise(format!("a reader from {start:?}: {e}")),
        }
    }
}

/// Reads on: LSN by LSN, from one that is in `due`.
fn read(world: &World, mut reader: Reader, due: std::ops::RangeInclusive<u64>, rng: &mut Rng) {
    let mut next = due;
    for _ in 0..rng.u32(1..20_000) {
        if world.is(&world.stop) {
            return;
        }
        let record = match reader.next_timeout(WAIT) {
            Ok(Some(record)) => record,
            Ok(None) => continue,
            Err(e) if e.kind() == ErrorKind::PositionLost => {
                let lost = e.lsns().map(|(from, _)| from.get());
                if !lost.is_some_and(|from| next.contains(&from)) {
                    broken::promise(format!("a reader, due {next:?}: {e}"));
                }
                return;
            }
            Err(e) if world.is(&world.faulty) && !e.is_damage() => return,
            Err(e) => broken::promise(format!("a reader, due {next:?}: {e}")),
        };
        let lsn = record.lsn().get();
        if !next.contains(&lsn) {
            broken::promise(format!("a reader got LSN {lsn}, due was {next:?}"));
        }
        let (kind, key) = (record.kind(), record.key());
        if let Err(wrong) = world.content.judge(lsn, kind, key, record.payload()) {
            broken::promise(format!("a reader: {wrong}"));
        }
        world.board.add(Slot::ReadByReaders, 1);
        next = lsn + 1..=lsn + 1;
    }
}
