//! What all consumers of a bus share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use super::checkpoints::Checkpoints;
use super::options::Start;
use super::pins::PinBudget;
use super::state::{Activity, State, Status};
use super::tiering::Transition;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{BlockHeader, align_up};
use crate::limits;
use crate::log::{Located, Log, Retainer};
use crate::lsn::Lsn;
use crate::options::Options;
use crate::policy::{Phase, Policy, Reason, Tier};
use crate::source::{Brought, Cursor, Held, Hot, Replay, Supply, Want};
use crate::sync::atomic::AtomicBool;
use crate::sync::{Mutex, nanos, planted};
use crate::telemetry::ConsumerSample;

pub(crate) struct Plane {
    pub(crate) options: Options,
    pub(crate) policy: Policy,
    pub(crate) log: Arc<Log>,
    /// `None` in memory.
    pub(crate) replay: Option<Replay>,
    pub(crate) retainer: Option<Retainer>,
    pub(crate) budget: Arc<PinBudget>,
    pub(crate) checkpoints: Checkpoints,
    consumers: Mutex<Vec<Arc<State>>>,
    /// Release, and Acquire under the lock of `consumers`: see `refuse_consumers`.
    refusing: AtomicBool,
    history: Mutex<History>,
    pub(crate) stirs: Arc<Stirs>,
    /// When the supervisor looked last, by the log's clock. Relaxed: the number is all there is.
    looked_at: AtomicU64,
}

/// Counts what makes a consumer at rest worth a look: orders, transitions, entering and leaving.
/// Nobody waits for it: a look that came late would be a late metric or decision, no more.
#[derive(Debug, Default)]
pub(crate) struct Stirs(AtomicU64);

impl Stirs {
    /// To be called behind the change. Release: who sees the count sees the change.
    pub(crate) fn stir(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// What was stirred so far, commits included: where it is the same, consumers at rest are so still.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Stirred {
    stirs: u64,
    committed: u64,
}

#[derive(Default)]
struct History {
    recent: VecDeque<Transition>,
    counts: BTreeMap<(Tier, Tier, Reason), u64>,
}

impl Plane {
    pub(crate) fn new(
        options: Options,
        log: Arc<Log>,
        replay: Option<Replay>,
        retainer: Option<Retainer>,
        checkpoints: Checkpoints,
    ) -> Plane {
        let policy = Policy::new(&options, replay.is_some());
        let budget =
            PinBudget::new(options.pin_budget_bytes, options.pin_share_bytes(), options.slab_bytes);
        Plane {
            options,
            policy,
            log,
            replay,
            retainer,
            budget: Arc::new(budget),
            checkpoints,
            consumers: Mutex::default(),
            refusing: AtomicBool::new(false),
            history: Mutex::default(),
            stirs: Arc::default(),
            looked_at: AtomicU64::new(0),
        }
    }

    // ---- consumers -------------------------------------------------------------------------

    pub(crate) fn consumers(&self) -> Vec<Arc<State>> {
        self.consumers.lock().clone()
    }

    /// Enters a consumer. Its name must be free, and there must be room.
    pub(crate) fn enter(&self, state: &Arc<State>) -> Result<()> {
        let mut consumers = self.consumers.lock();
        if self.refusing.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the bus is closed"));
        }
        if consumers.len() >= self.options.consumers_max {
            let what = format!("there are {} consumers already", consumers.len());
            return Err(Error::new(ErrorKind::TooManyConsumers, what));
        }
        if consumers.iter().any(|other| other.name == state.name) {
            let what = format!("a consumer named {:?} runs already", state.name);
            return Err(Error::new(ErrorKind::NameTaken, what));
        }
        consumers.push(Arc::clone(state));
        drop(consumers);
        self.stirs.stir();
        self.log.ring.sleepers.add(&state.sleeper);
        self.log.ring.readers.add(&state.place);
        Ok(())
    }

    /// From here on nobody enters.
    pub(crate) fn refuse_consumers(&self) {
        self.refusing.store(true, Ordering::Release);
        // Whoever is entering now has entered, or sees the flag.
        drop(self.consumers.lock());
    }

    /// From here on the name, and what is stored under it, may be another consumer's. Whoever waits
    /// for this one to end is told, and what kept its last checkpoint from being stored.
    pub(crate) fn leave(&self, state: &Arc<State>, unstored: Option<Error>) {
        self.consumers.lock().retain(|other| !Arc::ptr_eq(other, state));
        self.stirs.stir();
        self.log.ring.sleepers.remove(&state.sleeper);
        self.log.ring.readers.remove(&state.place);
        state.control(|control| {
            control.unstored = unstored;
            control.finished = true;
        });
        state.changed.notify();
    }

    /// Stores the checkpoints of all named consumers.
    pub(crate) fn flush_checkpoints(&self) -> Result<()> {
        // Before the look. Who is at the end moves by what is stirred alone.
        let stirred = self.stirred();
        let end = self.log.ring.committed_lsn();
        // Looked at under the checkpoints' lock: else a late store of an early look would take a
        // checkpoint back, for good if the consumer has left in between.
        self.checkpoints.flush(stirred, |stored| {
            let mut all_at_end = true;
            let consumers = self.consumers.lock();
            let named = consumers.iter().filter(|state| state.durable_name);
            let changed = |state: &Arc<State>| {
                let lsn = state.processed();
                all_at_end &= lsn == end;
                (stored.get(&state.name) != Some(&lsn)).then(|| (state.name.clone(), lsn))
            };
            (named.filter_map(changed).collect(), all_at_end)
        })
    }

    /// Deletes the checkpoint of a consumer that does not run.
    pub(crate) fn forget(&self, name: &str) -> Result<bool> {
        // Looked at under the checkpoints' lock: whoever enters later stores its first one later.
        self.checkpoints.forget(name, || {
            if self.consumers.lock().iter().any(|state| state.name == name) {
                let what = format!("{name:?} runs: stop it first");
                return Err(Error::new(ErrorKind::NameTaken, what));
            }
            Ok(())
        })
    }

    // ---- looking at them -------------------------------------------------------------------

    /// Acquire, as for the committed word: the look that follows sees what is counted.
    pub(crate) fn stirred(&self) -> Stirred {
        let stirs = self.stirs.0.load(Ordering::Acquire);
        Stirred { stirs, committed: self.log.ring.committed.load().position() }
    }

    pub(crate) fn looked(&self, now: u64) {
        self.looked_at.store(now, Ordering::Relaxed);
    }

    pub(crate) fn looked_at(&self) -> u64 {
        self.looked_at.load(Ordering::Relaxed)
    }

    // ---- transitions -----------------------------------------------------------------------

    pub(crate) fn remember(&self, transition: Transition) {
        let mut history = self.history.lock();
        let key = (transition.from, transition.to, transition.reason);
        *history.counts.entry(key).or_default() += 1;
        if history.recent.len() == limits::TRANSITIONS_KEPT {
            history.recent.pop_front();
        }
        history.recent.push_back(transition);
    }

    pub(crate) fn transitions(&self) -> Vec<Transition> {
        self.history.lock().recent.iter().cloned().collect()
    }

    pub(crate) fn transition_counts(&self) -> BTreeMap<(Tier, Tier, Reason), u64> {
        self.history.lock().counts.clone()
    }

    // ---- where to start --------------------------------------------------------------------

    /// The first record that can still be had.
    pub(crate) fn earliest(&self) -> Cursor {
        let geometry = &self.log.geometry;
        match &self.replay {
            Some(replay) => {
                let (log_start, lsn) = replay.catalogue.start();
                Cursor::seeking(log_start + geometry.head_bytes, lsn)
            }
            None => self.earliest_in_ring(),
        }
    }

    fn earliest_in_ring(&self) -> Cursor {
        let ring = &self.log.ring;
        loop {
            let committed = ring.committed.load();
            let lsn = ring.committed_lsn();
            let position = ring.oldest_position();
            if position >= committed.position() {
                return Cursor::seeking(committed.position(), lsn.next());
            }
            let Some(mut hot) = Hot::open(ring, self.log.geometry, position) else {
                continue;
            };
            hot.fetch(position, committed);
            let window = hot.window();
            let first = window.bytes.get((position - window.base) as usize..);
            if let Some(header) = first.and_then(BlockHeader::read) {
                return Cursor::seeking(position, Lsn::new(header.first_lsn));
            }
        }
    }

    /// The cursor at a start. `Lsn` is checked against both ends of the log.
    pub(crate) fn cursor(&self, start: Start) -> Result<Cursor> {
        match start {
            Start::Earliest => Ok(self.earliest()),
            Start::Latest => {
                let seen = self.log.ring.committed.load();
                // The LSN may be newer than the position: then the walk passes over the difference.
                Ok(Cursor::seeking(seen.position(), self.log.ring.committed_lsn().next()))
            }
            Start::Lsn(lsn) => self.cursor_at(lsn),
            Start::Time(time) => loop {
                let start = self.log_start();
                match self.cursor_at_time(time.duration_since(UNIX_EPOCH).map_or(0, nanos)) {
                    // Retention has gone on; what is kept may be of that time as well.
                    Err(e) if e.kind() == ErrorKind::PositionLost && start != self.log_start() => {}
                    found => break found,
                }
            },
        }
    }

    fn cursor_at(&self, lsn: Lsn) -> Result<Cursor> {
        let last = self.log.ring.committed_lsn();
        if lsn > last.next() {
            let what = format!("the log ends at LSN {last}");
            return Err(Error::new(ErrorKind::BeyondEnd, what).at_lsns(lsn, lsn));
        }
        let earliest = self.earliest();
        if lsn < earliest.next_lsn {
            let what = format!("the first record kept is LSN {}", earliest.next_lsn);
            return Err(Error::new(ErrorKind::PositionLost, what)
                .at_lsns(lsn, earliest.next_lsn.previous()));
        }
        let Some(replay) = &self.replay else {
            return Ok(Cursor::seeking(earliest.block, lsn));
        };
        let block = match replay.catalogue.locate_lsn(lsn)? {
            Located::Block(position) => position,
            Located::Sealed(sealed) => replay.seek_lsn(&sealed, lsn)?,
        };
        Ok(Cursor::seeking(block, lsn))
    }

    /// Walks from the block the index names to the first of that time or later.
    fn cursor_at_time(&self, nanos: u64) -> Result<Cursor> {
        let begin = match &self.replay {
            None => self.earliest(),
            Some(replay) => {
                let block = match replay.catalogue.locate_time(nanos) {
                    Located::Block(position) => position,
                    Located::Sealed(sealed) => replay.seek_time(&sealed, nanos)?,
                };
                Cursor::seeking(block, Lsn::FIRST)
            }
        };
        self.walk_to_time(begin, nanos)
    }

    fn walk_to_time(&self, mut cursor: Cursor, nanos: u64) -> Result<Cursor> {
        let mut held = Held::None;
        let mut more = false;
        let mut next = None;
        loop {
            let seen = self.log.ring.committed.load();
            match held.bring(self.supply(), Want::CatchUp, &mut cursor, seen, more)? {
                Brought::Ready => {}
                // What is committed meanwhile is later, and comes next.
                Brought::End => {
                    let end = next.map(|lsn| Cursor::at(cursor.block, lsn));
                    return end.map_or_else(|| self.cursor(Start::Latest), Ok);
                }
                _ => {
                    let what = "the log moved on while a time was sought";
                    return Err(Error::new(ErrorKind::PositionLost, what));
                }
            }
            let window = held.window(&self.log.geometry);
            let rest = window.bytes.get((cursor.block - window.base) as usize..);
            let rest = rest.unwrap_or_default();
            let header = BlockHeader::read(rest);
            let whole = header.as_ref().and_then(|header| rest.get(..header.framed_bytes()));
            let (Some(header), Some(block)) = (header, whole) else {
                more = held.ask_for_more(more)?;
                continue;
            };
            // Its time is believed only then: a block passed over would be skipped in silence.
            held.verify(cursor.block, block)?;
            more = false;
            if header.records > 0 && header.time_nanos >= nanos {
                return Ok(Cursor::at(cursor.block, Lsn::new(header.first_lsn)));
            }
            next = Some(Lsn::new(header.first_lsn + u64::from(header.records)));
            let padded = align_up(header.framed_bytes() as u64, window.align as u64);
            cursor.skip_to(cursor.block + padded);
        }
    }

    /// Whether retention has not passed it. In memory there is none: the ring goes on whatever is
    /// stored.
    pub(crate) fn keeps(&self, cursor: &Cursor) -> bool {
        let is_kept = self.log_start().is_none_or(|first| cursor.next_lsn >= first);
        is_kept || planted("what_is_kept_is_asked_early")
    }

    /// The first record kept on disk.
    fn log_start(&self) -> Option<Lsn> {
        self.replay.as_ref().map(|replay| replay.catalogue.start().1)
    }

    /// What a source may be opened from.
    pub(crate) fn supply(&self) -> Supply<'_> {
        let Log { ring, geometry, .. } = &*self.log;
        Supply { ring, geometry: *geometry, replay: self.replay.as_ref() }
    }

    // ---- status ----------------------------------------------------------------------------

    pub(crate) fn sample(&self, state: &State) -> ConsumerSample {
        let ring = &self.log.ring;
        let lsn = state.processed();
        let position = state.position();
        let lag_records = ring.committed_lsn().get().saturating_sub(lsn.get());
        let committed = ring.committed.load().position();
        let lag_nanos = if lag_records == 0 {
            0
        } else {
            let last = state.last_time_nanos.load(Ordering::Relaxed);
            if last == 0 { 0 } else { self.log.clock.wall().saturating_sub(last) }
        };
        let counts = |of: &[AtomicU64; 3]| [0, 1, 2].map(|i: usize| of[i].load(Ordering::Relaxed));
        let retainer = self.retainer.as_ref();
        ConsumerSample {
            lsn,
            lag_records,
            lag_bytes: if lag_records == 0 { 0 } else { committed.saturating_sub(position) },
            lag_seconds: lag_nanos as f64 / 1e9,
            lead_bytes: retainer
                .and_then(|r| r.lead_bytes(position, committed, state.durable_name)),
            pinned_bytes: state.account.pinned_bytes(),
            delivered: counts(&state.delivered),
            replayed: counts(&state.replayed),
            failures: state.failures.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn status(&self, state: &State) -> Status {
        let sample = self.sample(state);
        let (phase, last_transition) = {
            let tiering = state.tiering.lock();
            (tiering.phase, tiering.last.clone())
        };
        let (paused, parked) = state.control(|c| (c.paused, c.parked.clone()));
        Status {
            name: state.name.clone(),
            tier: phase.tier(),
            shed: phase == Phase::Shed,
            lsn: sample.lsn,
            lag_records: sample.lag_records,
            lag_bytes: sample.lag_bytes,
            lag: Duration::from_secs_f64(sample.lag_seconds),
            lead_bytes: sample.lead_bytes,
            pinned_bytes: sample.pinned_bytes,
            delivered: sample.delivered,
            replayed_bytes: sample.replayed,
            retries: state.retries.load(Ordering::Relaxed),
            failures: sample.failures,
            paused: paused || state.activity() == Activity::Paused,
            parked,
            last_transition,
        }
    }
}
