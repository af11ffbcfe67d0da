//! A process that is killed at any moment: in the middle of opening, of writing, of a checkpoint.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use fastrand::Rng;

use super::child::UnderTest;
use super::judge::{Judge, SIGHTINGS_AFTER_KILL, Totals};
use super::proof;
use super::wire::{Orders, Plant};

/// Lives of one log: each opens what the kill before left.
const LIVES: u64 = 10;

/// A log that is written until it is killed, `lives` times. The parent looks after about half of
/// the kills, so that some openings follow a kill and others a close.
fn chain(seed: u64, lives: u64, plant: Option<Plant>) -> Result<Totals, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::with_seed(seed);
    let mut judge = Judge::new(SIGHTINGS_AFTER_KILL);
    let mut orders = Orders {
        dir: dir.path().to_str().unwrap().to_owned(),
        life: 0,
        seed,
        io_uring: seed & 1 == 0,
        direct_io: plant != Some(Plant::SkipSyncs) && seed % 7 != 3,
        large: seed & 2 == 0,
        deferred: seed % 5 == 4,
        retention: seed % 3 == 1,
        plant,
    };
    for life in 0..lives {
        orders.life = life;
        let mut child = UnderTest::start(&orders);
        child.wait_for_a_moment(&mut rng);
        child.kill();
        let (_, heard, output) = child.ended();
        let says = |why: String| format!("seed {seed}, life {life}: {why}\n{output}");
        if output.contains("panicked") || output.contains("cannot open") {
            return Err(says("it was not to end by itself".into()));
        }
        judge.hear(&heard).map_err(says)?;
        if rng.bool() || life + 1 == lives {
            judge.look(&orders).map_err(says)?;
        }
    }
    judge
        .resume_all(&orders)
        .map_err(|why| format!("seed {seed}: {why}"))?;
    Ok(judge.totals)
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let kills = proof::cases("sigkill", 2);
    let (next, executed) = (AtomicU64::new(0), AtomicU64::new(0));
    // Most of the time is waiting: for the moment of the kill, and for the disk.
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let lives = LIVES.min(kills.saturating_sub(seed * LIVES));
                    if lives == 0 {
                        break;
                    }
                    let totals = chain(seed, lives, None).unwrap_or_else(|why| panic!("{why}"));
                    executed.fetch_add(lives, Ordering::Relaxed);
                    println!("sigkill: seed {seed}, {lives} kills: {totals:?}");
                }
            });
        }
    });
    proof::executed("sigkill", executed.into_inner());
}

/// The control: each planted bug is found within so many kills.
#[test]
fn a_planted_bug_is_found_by_a_kill() {
    for (plant, word) in [
        (Plant::AcknowledgeEarly, "lost"),
        (Plant::ConsumeEarly, "gap"),
        (Plant::CommitAbandoned, "phantom"),
        (Plant::LoseCheckpoints, "had long been stored"),
    ] {
        let found = (0..5).find_map(|seed| chain(1_000 + seed, LIVES, Some(plant)).err());
        let why = found.unwrap_or_else(|| panic!("{plant:?} was not found"));
        assert!(
            why.contains(word),
            "{plant:?} was found for another reason: {why}"
        );
        println!("control: {plant:?}: {}", why.lines().next().unwrap_or_default());
    }
}
