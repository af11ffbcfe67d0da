//! The director: plays the scenes in order, each in its part of the records, by what it observes.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use eventplane::{Bus, Reason, Status, Transition};

use crate::cast::{self, Cast};
use crate::geometry::InRecords;
use crate::history::History;
use crate::home::Home;
use crate::producer::Flow;
use crate::scenes::{self, Scene};
use crate::stage::Stage;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(2);
/// A step of a scene that takes longer, while nothing moves, has failed.
const STEP_MAX: Duration = Duration::from_secs(20);
const SAVE_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) struct Director<'a> {
    pub(crate) bus: &'a Bus,
    pub(crate) home: &'a Home,
    pub(crate) cast: &'a Cast,
    pub(crate) stage: &'a Arc<Stage>,
    pub(crate) flow: &'a Flow,
    pub(crate) size: InRecords,
    pub(crate) records: u64,
    history: History,
    saved_at: Instant,
    /// The last record that the present scene may let the writer write.
    cap: u64,
}

/// What the director sees in one look.
pub(crate) struct Seen<'a> {
    pub(crate) consumers: Vec<Status>,
    pub(crate) committed: u64,
    transitions: Vec<Transition>,
    flow: &'a Flow,
    cap: u64,
}

impl Seen<'_> {
    /// How often the consumer changed its tier for this reason.
    pub(crate) fn count(&self, name: &str, reason: Reason) -> usize {
        self.transitions.iter().filter(|t| t.consumer == name && t.reason == reason).count()
    }

    /// Keeps the writer at most this many records ahead of what is committed.
    pub(crate) fn write_ahead(&self, records: u64) {
        self.flow.allow((self.committed + records).min(self.cap));
    }
}

impl<'a> Director<'a> {
    pub(crate) fn new(
        (bus, home): (&'a Bus, &'a Home),
        (cast, stage): (&'a Cast, &'a Arc<Stage>),
        (flow, history): (&'a Flow, History),
        (size, records): (InRecords, u64),
    ) -> Director<'a> {
        let saved_at = Instant::now();
        Director { bus, home, cast, stage, flow, size, records, history, saved_at, cap: 0 }
    }

    /// Plays what has not played yet, lets the writer finish, and waits until all have everything
    /// and are hot. Returns the history and what did not happen.
    pub(crate) fn direct(mut self) -> (History, Vec<String>) {
        let mut problems = Vec::new();
        let pending: Vec<_> =
            scenes::ALL.iter().filter(|scene| !self.history.has_played(scene.name)).collect();
        let begin = self.bus.committed_lsn().get();
        let part = (self.records - begin.min(self.records)) / (pending.len() as u64 + 1);
        for (i, scene) in pending.iter().enumerate() {
            let later: u64 = pending[i + 1..].iter().map(|s| (s.records)(&self.size)).sum();
            self.cap = self.records.saturating_sub(later);
            let due = begin + part / 4 + part * i as u64;
            if let Err(why) = self.play(scene, due) {
                problems.push(format!("scene {:?} ({}): {why}", scene.name, scene.about));
            }
            self.stage.calm();
            self.flow.burst.set(false);
        }
        problems.extend(self.finish().err());
        self.flow.stop.set(true);
        (self.history, problems)
    }

    fn play(&mut self, scene: &Scene, due: u64) -> Result<(), String> {
        let due = due.max((scene.prelude)(&self.size)).min(self.cap);
        self.flow.allow(due);
        self.until("its records are due", |seen| seen.committed >= due)?;
        tracing::info!(scene = scene.name, about = scene.about, "begins");
        (scene.play)(self)?;
        tracing::info!(scene = scene.name, "has played");
        self.history.note_played(scene.name);
        self.save()
    }

    fn finish(&mut self) -> Result<(), String> {
        let records = self.records;
        self.flow.allow(records);
        self.until("all records are committed", |seen| seen.committed >= records)?;
        if self.bus.consumers().len() < cast::NAMES.len() {
            return Err("not all subscribers came".to_owned());
        }
        self.until("all have every record and are hot", |seen| {
            let done = |status: &Status| status.lsn.get() >= records;
            let hot = cast::NAMES.iter().all(|name| scenes::is_hot(&seen.consumers, name));
            hot && seen.consumers.iter().all(done)
        })?;
        self.save()
    }

    fn save(&mut self) -> Result<(), String> {
        self.saved_at = Instant::now();
        let saved = self.history.save(self.home, self.bus);
        saved.map_err(|e| format!("cannot store the history: {e}"))
    }

    // ---- what scenes do --------------------------------------------------------------------

    /// Lets the writer write so many more than are committed. Returns the last of them.
    pub(crate) fn write_more(&self, records: u64) -> u64 {
        let through = (self.bus.committed_lsn().get() + records).min(self.cap);
        self.flow.allow(through);
        through
    }

    pub(crate) fn enter_audit(&self) -> Result<(), String> {
        let entered = self.cast.enter_audit(self.bus, self.home, self.stage);
        entered.map_err(|e| format!("audit cannot subscribe: {e}"))
    }

    pub(crate) fn count(&self, name: &str, reason: Reason) -> usize {
        self.look().count(name, reason)
    }

    fn look(&self) -> Seen<'a> {
        Seen {
            consumers: self.bus.consumers(),
            committed: self.bus.committed_lsn().get(),
            transitions: self.bus.transitions(),
            flow: self.flow,
            cap: self.cap,
        }
    }

    /// Looks until it is so. Progress of the log or of a consumer moves the deadline.
    pub(crate) fn until(
        &mut self,
        what: &str,
        is_so: impl Fn(&Seen<'_>) -> bool,
    ) -> Result<(), String> {
        let mut deadline = Instant::now() + STEP_MAX;
        let mut progress = 0;
        loop {
            let seen = self.look();
            if is_so(&seen) {
                return Ok(());
            }
            if let Some(failure) = self.flow.failure() {
                return Err(failure);
            }
            for status in &seen.consumers {
                if let Some(error) = &status.parked {
                    return Err(format!("{} is parked: {error}", status.name));
                }
            }
            let now = Instant::now();
            let lsns = seen.consumers.iter().map(|status| status.lsn.get());
            let moved = seen.committed + lsns.sum::<u64>();
            if moved > progress {
                (progress, deadline) = (moved, now + STEP_MAX);
            }
            if now >= deadline {
                return Err(format!("waited in vain until {what}"));
            }
            if now - self.saved_at >= SAVE_INTERVAL {
                self.save()?;
            }
            thread::sleep(LOOK);
        }
    }
}
