//! A consumer's tier, and how it changes: observe, decide, apply. The same for the supervisor's
//! tick and for a consumer that finds its slab gone.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::options::Signal;
use super::plane::Plane;
use super::state::{Activity, State};
use crate::limits;
use crate::lsn::Lsn;
use crate::policy::{Decision, Observation, Phase, Reason, Tier, decide};
use crate::sync::nanos;

/// One change of tier.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Transition {
    /// The consumer's name.
    pub consumer: String,
    /// The tier it left.
    pub from: Tier,
    /// The tier it is in; equal to `from` when a shed consumer is admitted to its cold replay.
    pub to: Tier,
    /// Why.
    pub reason: Reason,
    /// Last record it had processed.
    pub lsn: Lsn,
    /// Records it had not.
    pub lag_records: u64,
    /// When.
    pub at: SystemTime,
}

/// The tier of a consumer, with the history that hysteresis needs.
#[derive(Debug)]
pub(crate) struct Tiering {
    pub(crate) phase: Phase,
    since: u64,
    /// When it last fell out of hot, newest last, within the flap window.
    falls: VecDeque<u64>,
    backoff: u64,
    backoff_until: u64,
    /// Progress as the supervisor saw it last, and when.
    seen_lsn: Lsn,
    seen_at: u64,
    /// It was found at rest: until it is observed again, each tick would find nothing waiting.
    rests: bool,
    /// The last signal was `CaughtUp`: the next is `FellBehind`.
    pub(crate) caught_up: bool,
    pub(crate) last: Option<Transition>,
}

impl Tiering {
    pub(crate) fn new(phase: Phase, now: u64) -> Tiering {
        Tiering {
            phase,
            since: now,
            falls: VecDeque::new(),
            backoff: 0,
            backoff_until: 0,
            seen_lsn: Lsn::ZERO,
            seen_at: now,
            rests: false,
            caught_up: false,
            last: None,
        }
    }

    /// Forgets how often it fell out of hot.
    pub(crate) fn forgive_falls(&mut self) {
        self.falls.clear();
    }

    /// How long records have waited for this consumer without any progress.
    fn stalled_nanos(&mut self, now: u64, lsn: Lsn, able: bool, waiting: bool) -> u64 {
        if lsn != self.seen_lsn || !able || !waiting {
            self.seen_lsn = lsn;
            self.seen_at = now;
        }
        now.saturating_sub(self.seen_at)
    }

    fn note(&mut self, to: Phase, reason: Reason, now: u64, plane: &Plane) {
        if reason == Reason::Lapped {
            self.falls.push_back(now);
        }
        if to == Phase::Shed {
            self.falls.clear();
            let options = &plane.options;
            let (min, max) = (nanos(options.shed_backoff_min), nanos(options.shed_backoff_max));
            let forgiven = now.saturating_sub(self.backoff_until)
                > nanos(limits::SHED_FORGIVEN_AFTER).saturating_add(self.backoff);
            self.backoff = if self.backoff == 0 || forgiven {
                min
            } else {
                self.backoff.saturating_mul(2).min(max)
            };
            self.backoff_until = now.saturating_add(self.backoff);
        }
        self.phase = to;
        self.since = now;
        self.seen_at = now;
    }
}

impl Plane {
    /// Looks at one consumer, decides, and applies the decision.
    pub(crate) fn examine(&self, state: &State, pins_most_of_exhausted_budget: bool) -> Decision {
        self.examine_locked(state, &mut state.tiering.lock(), pins_most_of_exhausted_budget).1
    }

    fn examine_locked(
        &self,
        state: &State,
        tiering: &mut Tiering,
        pins_most: bool,
    ) -> (Observation, Decision) {
        let seen = self.observe(state, tiering, pins_most);
        let decision = decide(&self.policy, &seen);
        if let Some((to, reason)) = decision {
            self.apply(state, tiering, to, reason);
        }
        (seen, decision)
    }

    /// What the supervisor does about one consumer on a tick: examines it and tells its metrics.
    /// Returns whether it is at rest: hot, nothing waiting, nothing pinned. Then time alone changes
    /// neither a decision nor a metric, and whatever else does is seen by `stirred`; but that a
    /// hook told of `CaughtUp` panicked may be told late, by `LOOK_INTERVAL` at most.
    pub(crate) fn look(&self, state: &State, pins_most: bool) -> bool {
        let mut tiering = state.tiering.lock();
        let (seen, decision) = self.examine_locked(state, &mut tiering, pins_most);
        let sample = self.sample(state);
        let tier = tiering.phase.tier();
        let waits = seen.lag_bytes > 0 || sample.lag_records > 0;
        let pins = seen.pinned_bytes > 0 || sample.pinned_bytes > 0;
        tiering.rests = tier == Tier::Hot && decision.is_none() && !waits && !pins;
        let rests = tiering.rests;
        drop(tiering);
        state.metrics.tell(&sample, tier);
        rests
    }

    fn observe(&self, state: &State, tiering: &mut Tiering, pins_most: bool) -> Observation {
        let now = self.log.clock.now();
        let position = state.position();
        let committed = self.log.ring.committed.load().position();
        let lag_bytes = committed.saturating_sub(position);
        let lsn = state.processed();
        let activity = state.activity();
        let running = activity == Activity::Running;
        let able = running || activity == Activity::Unpolled;
        let window = nanos(self.options.flap_window);
        if std::mem::take(&mut tiering.rests) {
            tiering.seen_at = tiering.seen_at.max(self.looked_at());
        }
        while tiering.falls.front().is_some_and(|&at| now.saturating_sub(at) > window) {
            tiering.falls.pop_front();
        }
        Observation {
            phase: tiering.phase,
            in_phase_nanos: now.saturating_sub(tiering.since),
            lag_bytes,
            in_ring: lag_bytes == 0 || self.log.ring.contains(self.log.geometry.slab_of(position)),
            stalled_nanos: tiering.stalled_nanos(now, lsn, running, lag_bytes > 0),
            able,
            in_callback: state.in_callback.load(Ordering::Relaxed),
            pinned_bytes: state.account.pinned_bytes(),
            pins_most_of_exhausted_budget: pins_most,
            falls: tiering.falls.len() as u32,
            backoff_over: now >= tiering.backoff_until,
            permit_free: self.replay.as_ref().is_some_and(|replay| replay.cold.has_permit()),
        }
    }

    /// Makes the transition and tells everybody: history, metrics, tracing, the subscriber.
    pub(crate) fn apply(&self, state: &State, tiering: &mut Tiering, to: Phase, reason: Reason) {
        let from = tiering.phase.tier();
        let lsn = state.processed();
        let lag_records = self.log.ring.committed_lsn().get().saturating_sub(lsn.get());
        tiering.note(to, reason, self.log.clock.now(), self);
        let transition = Transition {
            consumer: state.name.clone(),
            from,
            to: to.tier(),
            reason,
            lsn,
            lag_records,
            at: SystemTime::UNIX_EPOCH + Duration::from_nanos(self.log.clock.wall()),
        };
        tiering.last = Some(transition.clone());
        let mut signals = state.signals.lock();
        signals.push_back(Signal::TierChanged { from, to: to.tier(), reason, lsn });
        let leaves = matches!(to, Phase::CatchUp | Phase::Shed) && reason != Reason::Recovering;
        if leaves && std::mem::take(&mut tiering.caught_up) {
            signals.push_back(Signal::FellBehind { lsn, lag_records, reason });
        }
        drop(signals);
        state.metrics.transition(from, to.tier(), reason);
        let consumer = &*state.name;
        if to == Phase::Shed {
            tracing::warn!(consumer, %from, %reason, %lsn, lag_records, "shed");
        } else {
            tracing::info!(consumer, %from, to = %to.tier(), %reason, %lsn, lag_records, "tier");
        }
        self.remember(transition);
        self.stirs.stir();
        // Release: a consumer that sees the epoch sees the phase, under its lock anyway.
        state.tier_epoch.fetch_add(1, Ordering::Release);
        state.sleeper.word.wake_all();
        state.changed.notify();
    }
}
