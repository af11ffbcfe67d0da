//! The whole bus on a simulated disk: writer, committer, consumers, supervisor, checkpoints and
//! retention, on one thread, from a seed. A seed that fails prints how to replay it.

#[path = "../common/proof.rs"]
mod proof;

mod blocks;
mod cases;
mod damage;
mod faults;
mod history;
mod judge;
mod ledger;
mod life;
mod subscriber;

use std::collections::BTreeSet;
use std::sync::Mutex;

use eventplane::testing::{Bug, Fault, Op, Plant};

use cases::{each_seed, is_found};
use damage::{Found, damages};
use faults::{sweep, with_bug};
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
    proof::executed("checkpoints", told.counts.checkpoints);
    let phases = ["open", "prepare", "roll", "seal", "checkpoint", "retention", "close"];
    let least = phases
        .iter()
        .map(|phase| told.by_phase.get(phase).copied().unwrap_or(0))
        .min();
    proof::executed("crashes_each_phase", least.unwrap_or(0));
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

/// Each call to the disk fails, once and for good, in four ways.
#[test]
fn fault_runs() {
    let required = proof::cases("fault_runs", 0);
    // Without a requirement, a sample of one run's calls.
    let stride = if required == 0 { 40 } else { 1 };
    let operations = Mutex::new(BTreeSet::new());
    let executed = each_seed("fault_runs", required.max(1), |seed| {
        let (runs, met) = sweep(seed, stride).unwrap_or_else(|what| panic!("{what}"));
        operations.lock().unwrap().extend(met);
        runs
    });
    let operations = operations.into_inner().unwrap();
    println!("{operations:?}");
    proof::executed("fault_operations", operations.len() as u64);
    proof::executed("fault_runs", executed);
}

#[test]
fn fault_controls() {
    let syncs = (1..40).map(|nth| Fault::errno(Op::Sync, libc::EIO).nth(nth));
    let syncs: Vec<_> = syncs.collect();
    let found = is_found(20, |seed| {
        syncs
            .iter()
            .for_each(|fault| with_bug(seed, Some(Bug::RetriesSync), None, fault.clone()));
    });
    assert!(
        found.is_some(),
        "a failed sync is believed when it is tried again"
    );
    let short: Vec<_> = (1..40)
        .map(|nth| Fault::short(Op::Write, 4096).nth(nth))
        .collect();
    let plant = Some(Plant::TakesShortForWhole);
    let found = is_found(20, |seed| {
        short
            .iter()
            .for_each(|fault| with_bug(seed, None, plant, fault.clone()));
    });
    assert!(found.is_some(), "a short write is taken for a whole one");
    proof::executed("fault_controls", 2);
}
