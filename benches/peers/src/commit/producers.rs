//! Many producers that share commits without knowing of each other.

use std::thread;
use std::time::Instant;

use anyhow::ensure;
use eventplane::Bus;

use super::open;
use crate::load::{SMALL, fill};
use crate::machine::Place;
use crate::report::{Bar, Side};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "commit_64_producers", run };

const PRODUCERS: u64 = 64;

fn run(context: &Context) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bus = open(dir.path())?;
    let each = context.scaled(1_000, 100);
    let alone = context.scaled(4_000, 500);
    let place = Place::new(context);
    let side = |label, producers, each| {
        let (bus, place) = (&bus, &place);
        Side::new(label, move || place.sample(|| rate(bus, producers, each)))
    };
    let ours = side("64 producers", PRODUCERS, each);
    let theirs = side("one producer", 1, alone);
    let row = (BENCH.name, "records/s", Bar::AtLeast(20.0));
    context.report.pair(context.rounds, row, ours, theirs)?;
    place.tell(BENCH.name);
    Ok(())
}

/// Records a second of so many threads that each append `each` records of 100 B in a loop.
fn rate(bus: &Bus, producers: u64, each: u64) -> anyhow::Result<f64> {
    let before = bus.committed_lsn().get();
    let begun = Instant::now();
    let mut lsns = thread::scope(|scope| {
        let spawn = |producer: u64| {
            let writer = bus.writer();
            scope.spawn(move || -> anyhow::Result<Vec<u64>> {
                let mut payload = [0; SMALL];
                fill(&mut payload, producer);
                let append = |key| Ok(writer.append(1, key, &payload)?.get());
                (0..each).map(append).collect()
            })
        };
        let threads: Vec<_> = (0..producers).map(spawn).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().expect("a producer does not panic")?);
        }
        anyhow::Ok(all)
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    // Everybody got LSNs of their own, and none was left out.
    lsns.sort_unstable();
    ensure!(lsns.iter().copied().eq(before + 1..=before + producers * each), "LSNs of others");
    Ok((producers * each) as f64 / seconds)
}
