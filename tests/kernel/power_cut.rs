//! Power that fails, as far as the file system goes: it is shut down while the process writes, with
//! its journal unflushed, and mounted again. What the log made durable must be there.

use std::thread;
use std::time::{Duration, Instant};

use eventplane::ErrorKind;
use fastrand::Rng;

use super::child::{PRODUCERS, UnderTest};
use super::judge::{Judge, SIGHTINGS_AFTER_POWER_CUT, Totals};
use super::mount::{FileSystem, Kind};
use super::wire::{Message, Orders, Plant};
use super::{LONG, proof};

/// Cuts of one log.
const LIVES: u64 = 4;
/// The smallest that mkfs.xfs makes is 300 MiB. The image is sparse.
const BYTES: u64 = 320 << 20;

fn chain(
    disk: &mut FileSystem,
    (seed, lives): (u64, u64),
    plant: Option<Plant>,
) -> Result<Totals, String> {
    // Durably, or the power cut would bring it back.
    let _ = std::fs::remove_dir_all(disk.log("log"));
    disk.unmount()?;
    disk.mount()?;
    let mut rng = Rng::with_seed(seed);
    let mut judge = Judge::new(SIGHTINGS_AFTER_POWER_CUT);
    let mut orders = Orders {
        dir: disk.log("log"),
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
        disk.cut_power()
            .unwrap_or_else(|e| panic!("cannot cut the power: {e}"));
        // The log fails, so every producer is refused: nobody hangs, and nobody dies of a signal.
        let deadline = Instant::now() + LONG;
        while !child.has_ended() {
            assert!(Instant::now() < deadline, "seed {seed}, life {life}: it hangs");
            thread::sleep(Duration::from_millis(1));
        }
        let (status, heard, output) = child.ended();
        disk.unmount()?;
        disk.mount()?;
        let says = |why: String| format!("seed {seed}, life {life}: {why}\n{output}");
        if !status.success() {
            return Err(says(format!("it died: {status}")));
        }
        all_refused(&heard).map_err(says)?;
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

/// Every producer was told: by the log that it failed, or that no segment could be made.
fn all_refused(heard: &[Message]) -> Result<(), String> {
    let opened = heard
        .iter()
        .any(|message| matches!(message, Message::Opened { .. }));
    let refused: Vec<u64> = heard
        .iter()
        .filter_map(|message| match message {
            Message::Refused { kind, .. } => Some(*kind),
            _ => None,
        })
        .collect();
    let expected = if opened { PRODUCERS as usize } else { 0 };
    let known = [ErrorKind::Poisoned as u64, ErrorKind::Io as u64];
    if refused.len() == expected && refused.iter().all(|kind| known.contains(kind)) {
        return Ok(());
    }
    Err(format!(
        "{expected} producers were to be refused, and were so: {refused:?}"
    ))
}

fn cuts(kind: Kind, row: &str) {
    let mut disk = match FileSystem::new(kind, BYTES) {
        Ok(disk) => disk,
        Err(why) => return proof::skipped(row, &why),
    };
    let cuts = proof::cases(row, 1);
    let mut executed = 0;
    for seed in 0.. {
        let lives = LIVES.min(cuts - executed);
        if lives == 0 {
            break;
        }
        let totals = chain(&mut disk, (seed, lives), None).unwrap_or_else(|why| panic!("{why}"));
        executed += lives;
        println!("{row}: {executed} of {cuts}: {totals:?}");
    }
    // The control: the same judge, and a process whose syncs do nothing, or that does not wait.
    for plant in [Plant::SkipSyncs, Plant::AcknowledgeEarly] {
        let found = (0..4)
            .find_map(|seed| chain(&mut disk, (1_000 + seed, LIVES), Some(plant)).err())
            .unwrap_or_else(|| panic!("{plant:?} was not found"));
        assert!(
            found.contains("lost"),
            "{plant:?} was found for another reason: {found}"
        );
        println!(
            "control: {row}: {plant:?}: {}",
            found.lines().next().unwrap_or_default()
        );
        // It may have left the file system shut down.
        disk.unmount().unwrap();
        disk.mount().unwrap();
    }
    proof::executed(row, executed);
}

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_on_ext4() {
    cuts(Kind::Ext4, "power_cut_ext4");
}

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_on_xfs() {
    cuts(Kind::Xfs, "power_cut_xfs");
}
