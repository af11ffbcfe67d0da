//! A log from its creation through several lives, with crashes taken in the middle of whatever the
//! bus does to its disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use eventplane::testing::{Bug, Plant, Point, Probe, SimDisk, plant};
use fastrand::Rng;

use crate::judge::{Counts, Judge, crash};
use crate::ledger::{Ledger, Shared, lock};
use crate::life::{Life, SEGMENT_BYTES};

/// How many crash states one history is good for.
const STATES: u64 = 150;

/// What is planted, if anything.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Planted {
    pub(crate) disk: Option<Plant>,
    pub(crate) bug: Option<Bug>,
}

/// Crash states by what the crash interrupted.
pub(crate) type ByPhase = BTreeMap<&'static str, u64>;

/// What the bus was at when the crash struck.
fn phase(point: &Point<'_>, opening: bool, closing: bool) -> &'static str {
    let path = point.path.to_string_lossy();
    let footer = SEGMENT_BYTES - 4096;
    match point.call {
        _ if path.contains("checkpoints") => "checkpoint",
        _ if opening => "open",
        "remove" if closing => "close",
        "remove" => "retention",
        _ if path.ends_with("meta") => "retention",
        _ if path.ends_with(".tmp") => "prepare",
        "write" if point.offset == footer - 4096 => "roll",
        "write" if point.offset == footer => "seal",
        "submit" => "queued write",
        "sync" => "sync",
        "write" => "durable write",
        _ => "other",
    }
}

/// Takes crashes while the bus works, and judges them on the spot.
struct Sampler {
    ledger: Shared,
    probe: Option<Probe>,
    closing: bool,
    rng: Rng,
    counts: Counts,
    by_phase: ByPhase,
    states_max: u64,
    failure: Option<String>,
}

impl Sampler {
    fn look(&mut self, disk: &SimDisk, point: Point<'_>) {
        let phase = phase(&point, self.probe.is_none(), self.closing);
        let often = match phase {
            "queued write" | "sync" | "durable write" | "prepare" => self.rng.u8(0..6) == 0,
            _ => self.rng.u8(0..3) == 0,
        };
        if !often || self.counts.states >= self.states_max || self.failure.is_some() {
            return;
        }
        let mut ledger = lock(&self.ledger).clone();
        if let Some(probe) = &self.probe {
            ledger.ack(probe.committed_lsn().get());
        }
        let crashed = disk.crash(crash(&mut self.rng), self.rng.u64(..));
        let mut judge = Judge { ledger: &ledger, rng: self.rng.fork(), counts: Counts::default() };
        let outcome = judge.judge(&crashed);
        self.counts.add(&judge.counts);
        *self.by_phase.entry(phase).or_default() += judge.counts.states;
        if let Err(what) = outcome {
            self.failure = Some(format!("crash in {} ({phase}): {what}", describe(&point)));
        }
    }
}

fn describe(point: &Point<'_>) -> String {
    let Point { call, path, offset, bytes } = point;
    format!("{call} {} at {offset}, {bytes} bytes", path.display())
}

/// What came of a history.
#[derive(Clone, Default, Debug)]
pub(crate) struct Told {
    pub(crate) counts: Counts,
    pub(crate) by_phase: ByPhase,
    pub(crate) lives: u64,
    pub(crate) actions: u64,
    pub(crate) records: u64,
    /// Records delivered, by tier: hot, catch-up, cold.
    pub(crate) delivered: [u64; 3],
    pub(crate) digest: u64,
}

impl Told {
    pub(crate) fn add(&mut self, other: &Told) {
        self.counts.add(&other.counts);
        self.lives += other.lives;
        self.actions += other.actions;
        self.records += other.records;
        (0..3).for_each(|tier| self.delivered[tier] += other.delivered[tier]);
        for (phase, states) in &other.by_phase {
            *self.by_phase.entry(phase).or_default() += states;
        }
    }
}

/// Lives through a seed. An error says what did not hold.
pub(crate) fn history(seed: u64, planted: Planted) -> Result<Told, String> {
    plant(planted.bug);
    let outcome = live(seed, planted.disk);
    plant(None);
    outcome
}

fn live(seed: u64, planted: Option<Plant>) -> Result<Told, String> {
    let mut rng = Rng::with_seed(seed);
    let mut disk = match planted {
        Some(plant) => SimDisk::planted(seed, plant),
        None => SimDisk::new(seed),
    };
    let ledger = Shared::default();
    let mut told = Told::default();
    let lives = rng.u64(1..4);
    for life in 0..lives {
        let sampler = Arc::new(Mutex::new(Sampler {
            ledger: ledger.clone(),
            probe: None,
            closing: false,
            rng: rng.fork(),
            counts: Counts::default(),
            by_phase: ByPhase::new(),
            states_max: STATES / lives,
            failure: None,
        }));
        let next = one_life(&disk, &ledger, &sampler, &mut rng, &mut told)
            .map_err(|what| format!("seed {seed}, life {life}: {what}"))?;
        let sampler = sampler.lock().unwrap();
        told.counts.add(&sampler.counts);
        for (phase, states) in &sampler.by_phase {
            *told.by_phase.entry(phase).or_default() += states;
        }
        told.digest ^= disk.digest().rotate_left(life as u32);
        told.lives += 1;
        disk = next;
    }
    told.records = lock(&ledger).acked;
    Ok(told)
}

/// One life without crashes, ended by a close, a power cut or a kill. What is on the disk then, and
/// what is promised of it.
pub(crate) fn finished(seed: u64) -> Result<(SimDisk, Ledger), String> {
    let mut rng = Rng::with_seed(seed);
    let (disk, ledger) = (SimDisk::new(seed), Shared::default());
    let mut life = Life::begin(&disk, &ledger, &mut rng).map_err(|e| format!("open: {e:?}"))?;
    for _ in 0..rng.u64(30..200) {
        let outcome = life.act();
        let doing = life.doing;
        outcome.map_err(|e| format!("{doing}: {e:?}"))?;
    }
    if rng.bool() {
        life.close().map_err(|e| format!("close: {e:?}"))?;
    } else {
        drop(life);
    }
    let ended = disk.crash(crash(&mut rng), rng.u64(..));
    let ledger = lock(&ledger).clone();
    Ok((ended, ledger))
}

/// Opens, acts, and ends in a close or a crash. Returns the disk as it is then.
fn one_life(
    disk: &SimDisk,
    ledger: &Shared,
    sampler: &Arc<Mutex<Sampler>>,
    rng: &mut Rng,
    told: &mut Told,
) -> Result<SimDisk, String> {
    let watching = Arc::clone(sampler);
    disk.watch(move |disk, point| watching.lock().unwrap().look(disk, point));
    let opened = Life::begin(disk, ledger, rng);
    let mut life = opened.map_err(|e| format!("cannot open: {e:?}"))?;
    reconcile(&life, ledger)?;
    sampler.lock().unwrap().probe = Some(life.probe());
    for _ in 0..rng.u64(40..160) {
        let outcome = life.act();
        told.actions += 1;
        let doing = life.doing;
        outcome.map_err(|e| format!("{doing}: {e:?}"))?;
        complaints(ledger, sampler).map_err(|what| format!("{doing}: {what}"))?;
    }
    for status in life.bus.consumers() {
        (0..3).for_each(|tier| told.delivered[tier] += status.delivered[tier]);
    }
    let next = if rng.u8(0..4) == 0 {
        sampler.lock().unwrap().closing = true;
        life.close().map_err(|e| format!("close: {e:?}"))?;
        disk.unwatch();
        disk.crash(crash(rng), rng.u64(..))
    } else {
        // It goes on, and ends, in a world that nobody sees again.
        disk.unwatch();
        disk.crash(crash(rng), rng.u64(..))
    };
    complaints(ledger, sampler)?;
    Ok(next)
}

/// What was found is what there is from now on.
fn reconcile(life: &Life, ledger: &Shared) -> Result<(), String> {
    let mut ledger = lock(ledger);
    let found = life.bus.recovery().last_lsn.get();
    if found < ledger.acked {
        return Err(format!(
            "lost: {} was acknowledged, {found} is there",
            ledger.acked
        ));
    }
    ledger.entries.truncate(found as usize);
    ledger.acked = found;
    let mut checkpoints = std::mem::take(&mut ledger.checkpoints);
    for (name, may_be) in &mut checkpoints {
        let stored = life.bus.checkpoint(name).map_err(|e| format!("{name}: {e}"))?;
        let stored = stored.map(|lsn| lsn.get());
        if !may_be.contains(&stored) {
            return Err(format!(
                "checkpoint of {name} is {stored:?}, not one of {may_be:?}"
            ));
        }
        *may_be = vec![stored];
    }
    checkpoints.retain(|_, values| *values != [None]);
    ledger.checkpoints = checkpoints;
    Ok(())
}

fn complaints(ledger: &Shared, sampler: &Mutex<Sampler>) -> Result<(), String> {
    let Ledger { violations, .. } = &*lock(ledger);
    if let Some(what) = violations.first() {
        return Err(what.clone());
    }
    sampler.lock().unwrap().failure.take().map_or(Ok(()), Err)
}
