//! Every call to the disk fails, each one once and then for good: an error to whoever asked,
//! nothing acknowledged is lost, and reopening works.

use std::collections::{BTreeMap, BTreeSet};

use eventplane::testing::{Bug, Crash, Fault, ManualClock, Plant, SimDisk, plant};
use eventplane::{ErrorKind, Result};
use fastrand::Rng;

use crate::judge::{Counts, Judge};
use crate::ledger::{Shared, lock};
use crate::life::{DIR, Life, builder};

/// Enough for a few segments.
const ACTIONS: u32 = 150;

/// What goes wrong with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    Errno(i32),
    /// A page, of however many.
    Short,
}

const EFFECTS: [Effect; 4] = [
    Effect::Errno(libc::EIO),
    Effect::Errno(libc::ENOSPC),
    Effect::Errno(libc::EINTR),
    Effect::Short,
];

impl Effect {
    fn fault(self) -> Fault {
        match self {
            Effect::Errno(errno) => Fault::errno_anywhere(errno),
            Effect::Short => Fault::short_anywhere(4096),
        }
    }

    /// Nobody may notice it.
    fn is_invisible(self, once: bool) -> bool {
        match self {
            Effect::Errno(errno) => errno == libc::EINTR && once,
            Effect::Short => true,
        }
    }
}

/// Runs a seed once for each call, effect and persistence, every `stride`th call. Returns how many
/// runs that were.
pub(crate) fn sweep(
    seed: u64,
    stride: usize,
) -> std::result::Result<(u64, BTreeSet<&'static str>), String> {
    let whole = run(seed, None, None)?;
    let calls = whole.by_name.values().sum();
    let mut runs = 0;
    for call in (1..=calls).step_by(stride) {
        for effect in EFFECTS {
            for once in [true, false] {
                let fault = effect.fault().nth(call);
                let fault = if once { fault } else { fault.forever() };
                let told =
                    run(seed, Some(fault), None).and_then(|told| judge_errors(effect, once, &told));
                let when = if once { "once" } else { "for good" };
                told.map_err(|what| {
                    format!("seed {seed}, call {call} of {calls}, {effect:?} {when}: {what}")
                })?;
                runs += 1;
            }
        }
    }
    Ok((runs, whole.by_name.into_keys().collect()))
}

/// A planted bug, with a sync that fails once: every `nth` of them.
pub(crate) fn with_bug(seed: u64, bug: Option<Bug>, disk: Option<Plant>, fault: Fault) {
    plant(bug);
    let outcome = run(seed, Some(fault), disk);
    plant(None);
    if let Err(what) = outcome {
        panic!("seed {seed}: {what}");
    }
}

fn judge_errors(effect: Effect, once: bool, told: &Told) -> std::result::Result<(), String> {
    match &told.error {
        Some(error) if effect.is_invisible(once) => Err(format!("should go unnoticed: {error}")),
        _ => Ok(()),
    }
}

struct Told {
    by_name: BTreeMap<&'static str, u64>,
    /// The first error that anybody was given.
    error: Option<String>,
}

fn run(
    seed: u64,
    fault: Option<Fault>,
    planted: Option<Plant>,
) -> std::result::Result<Told, String> {
    let mut rng = Rng::with_seed(seed);
    let disk = planted.map_or_else(|| SimDisk::new(seed), |plant| SimDisk::planted(seed, plant));
    let ledger = Shared::default();
    lock(&ledger).faulty = fault.is_some();
    fault.into_iter().for_each(|fault| disk.faults().inject(fault));
    let error = live(&disk, &ledger, &mut rng)?;
    let by_name = disk.faults().calls_by_name();
    disk.faults().clear();
    let ledger = lock(&ledger).clone();
    if let Some(what) = ledger.violations.first() {
        return Err(what.clone());
    }
    for crash in [Crash::PowerCut, Crash::Kill] {
        let crashed = disk.crash(crash, rng.u64(..));
        let mut judge = Judge { ledger: &ledger, rng: rng.fork(), counts: Counts::default() };
        judge
            .judge(&crashed)
            .map_err(|what| format!("after a {crash:?}: {what}"))?;
    }
    // The very same disk, as it was left.
    let bus = builder(&disk, &ManualClock::default()).open(DIR);
    let bus = bus.map_err(|e| format!("cannot be opened again: {e:?}"))?;
    bus.writer()
        .append(1, 1, b"on")
        .map_err(|e| format!("does not go on: {e:?}"))?;
    Ok(Told { by_name, error })
}

/// Opens, acts, closes, as far as the fault lets it. Returns the first error.
fn live(
    disk: &SimDisk,
    ledger: &Shared,
    rng: &mut Rng,
) -> std::result::Result<Option<String>, String> {
    let mut first = None;
    let mut life = match Life::begin(disk, ledger, rng) {
        Ok(life) => life,
        Err(error) => return check_kind(&error).map(|()| Some(error.to_string())),
    };
    let mut poisoned = false;
    for _ in 0..ACTIONS {
        let outcome = life.act();
        note(&mut first, &mut poisoned, life.doing, outcome)?;
    }
    let doing = "close";
    note(&mut first, &mut poisoned, doing, life.close())?;
    Ok(first)
}

/// A poisoned log stays so: nothing can be committed any more.
fn note(
    first: &mut Option<String>,
    poisoned: &mut bool,
    doing: &str,
    outcome: Result<()>,
) -> std::result::Result<(), String> {
    match outcome {
        Ok(()) if *poisoned && ["append", "batch", "close"].contains(&doing) => {
            Err(format!("{doing} succeeded on a poisoned log"))
        }
        Ok(()) => Ok(()),
        Err(error) => {
            check_kind(&error).map_err(|what| format!("{doing}: {what}"))?;
            *poisoned |= error.kind() == ErrorKind::Poisoned;
            first.get_or_insert_with(|| format!("{doing}: {error}"));
            Ok(())
        }
    }
}

/// Clear errors only.
fn check_kind(error: &eventplane::Error) -> std::result::Result<(), String> {
    match error.kind() {
        ErrorKind::Io | ErrorKind::StorageFull | ErrorKind::Poisoned | ErrorKind::Busy => Ok(()),
        _ => Err(format!("an error of the wrong kind: {error:?}")),
    }
}
