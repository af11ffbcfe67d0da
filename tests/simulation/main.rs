//! The whole bus on a simulated disk: writer, committer, consumers, supervisor, checkpoints and
//! retention, on one thread, from a seed. A seed that fails prints how to replay it.

#[path = "../common/proof.rs"]
mod proof;

mod blocks;
mod cases;
mod damage;
mod history;
mod judge;
mod ledger;
mod life;
mod subscriber;

use std::sync::Mutex;

use eventplane::testing::{Bug, Plant};

use cases::{each_seed, is_found};
use damage::{Found, damages};
use history::{Planted, Told, history};

/// Nothing acknowledged is lost, nothing else is there, nothing whole is refused, whatever a crash
/// interrupts; and recovery may be crashed as well.
#[test]
fn crash_states() {
    let sum = Mutex::new(Told::default());
    let executed = each_seed("crash_states", proof::cases("crash_states", 1_000), |seed| {
        let told = history(seed, Planted::default()).unwrap_or_else(|what| panic!("{what}"));
        sum.lock().unwrap().add(&told);
        told.counts.states
    });
    let told = sum.into_inner().unwrap();
    println!("{told:?}");
    proof::executed("crash_states", executed);
    proof::executed("crashes_of_recovery", told.counts.in_recovery);
}

#[test]
fn a_seed_is_a_run() {
    for seed in 1..=5 {
        let run =
            || history(seed, Planted::default()).map(|told| (told.digest, told.counts.states));
        assert_eq!(run(), run(), "seed {seed}");
    }
}

/// The same test finds each of these.
#[test]
fn crash_controls() {
    let disks =
        [Plant::SyncsNothing, Plant::DurableWriteIsNot, Plant::SyncsNoNames, Plant::CompletesEarly];
    let bugs = [
        Bug::TrustsTheCache,
        Bug::PublishesUnsynced,
        Bug::SyncsWhatIsInFlight,
        Bug::RollsEarly,
        Bug::StoresReceived,
        Bug::UnlinksFirst,
    ];
    let disks = disks.map(|disk| Planted { disk: Some(disk), bug: None });
    let bugs = bugs.map(|bug| Planted { disk: None, bug: Some(bug) });
    let mut found = 0;
    for planted in disks.into_iter().chain(bugs) {
        let seed = is_found(100, |seed| drop(history(seed, planted).unwrap()));
        println!("{planted:?}: found by seed {seed:?}");
        assert!(seed.is_some(), "{planted:?} was not found");
        found += 1;
    }
    proof::executed("crash_controls", found);
}

/// Damage to acknowledged data that something later vouches for is always told. What cannot be
/// told from a tear, because nothing vouches for it yet, is counted.
#[test]
fn damage() {
    let sum = Mutex::new(Found::default());
    let executed = each_seed("damage", proof::cases("damages", 500), |seed| {
        let found = damages(seed, None).unwrap_or_else(|what| panic!("{what}"));
        sum.lock().unwrap().add(&found);
        found.vouched
    });
    let found = sum.into_inner().unwrap();
    println!("{found:?}");
    proof::executed("damages", executed);
    proof::executed("damages_beside", found.beside_detected + found.beside_harmless);
    let undecidable = found.unvouched_detected + found.unvouched_silent;
    println!(
        "of {undecidable} not vouched for, {} pass for tears",
        found.unvouched_silent
    );
}

/// What most logs do, stopping at the first bad block, loses in silence, and is found.
#[test]
fn damage_control() {
    let seed = is_found(50, |seed| {
        damages(seed, Some(Bug::StopsAtFirstBadBlock)).unwrap();
    });
    println!("found by seed {seed:?}");
    proof::executed("damage_controls", u64::from(seed.is_some()));
    assert!(seed.is_some());
}
