//! Which tier a consumer belongs in: the whole policy, as one pure function.
//!
//! | from → to | when | reason |
//! |---|---|---|
//! | hot → catch-up | its slab left the ring | `lapped` |
//! | catch-up → hot | lag ≤ half the ring, for the minimum dwell | `caught_up` |
//! | hot, catch-up → cold | pins most while the pin budget is exhausted | `pin_budget` |
//! | hot, catch-up → cold | no progress for `stall_after` with records waiting | `stalled` |
//! | catch-up → cold | lag > the catch-up window | `lag` |
//! | catch-up → cold | fell out of hot more than `flaps_max` times in a window | `flapping` |
//! | cold, shed → cold, replaying | back-off over, permit free, pins ≤ half a share | `admitted` |
//! | cold, replaying → catch-up | lag < half the catch-up window | `recovering` |
//!
//! A tier says where the next bytes come from *by rule*. Where they can only come from the ring,
//! because their segment is not sealed yet, they do, whatever the tier: that is no transition.

use std::fmt;

use crate::options::Options;
use crate::sync::nanos;

/// Where a consumer's next bytes come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Tier {
    /// From the ring of slabs: no copy, no system call.
    Hot,
    /// From mapped sealed segments, page by page.
    CatchUp,
    /// Shed: everything it held is released. Later replayed from the log under a limit on how many
    /// replay at once and how fast.
    Cold,
}

impl Tier {
    /// All tiers, fastest first.
    pub const ALL: [Tier; 3] = [Tier::Hot, Tier::CatchUp, Tier::Cold];

    /// `hot`, `catch_up` or `cold`: the label in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Hot => "hot",
            Tier::CatchUp => "catch_up",
            Tier::Cold => "cold",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a consumer changed its tier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// The slab it was in left the ring.
    Lapped,
    /// It is close enough to the end again.
    CaughtUp,
    /// The pin budget is exhausted and it pins most.
    PinBudget,
    /// It made no progress while records were waiting.
    Stalled,
    /// It is further behind than the catch-up window.
    Lag,
    /// It fell out of hot too often.
    Flapping,
    /// Its back-off is over, and a cold replay may begin.
    Admitted,
    /// Its cold replay came close enough for catch-up.
    Recovering,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 8] = [
        Reason::Lapped,
        Reason::CaughtUp,
        Reason::PinBudget,
        Reason::Stalled,
        Reason::Lag,
        Reason::Flapping,
        Reason::Admitted,
        Reason::Recovering,
    ];

    /// The label in metrics, such as `pin_budget`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Lapped => "lapped",
            Reason::CaughtUp => "caught_up",
            Reason::PinBudget => "pin_budget",
            Reason::Stalled => "stalled",
            Reason::Lag => "lag",
            Reason::Flapping => "flapping",
            Reason::Admitted => "admitted",
            Reason::Recovering => "recovering",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The tier, with cold in its two phases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Hot,
    CatchUp,
    /// Cold, holding nothing, reading nothing.
    Shed,
    /// Cold, reading under permit and budget.
    Replaying,
}

impl Phase {
    pub(crate) fn tier(self) -> Tier {
        match self {
            Phase::Hot => Tier::Hot,
            Phase::CatchUp => Tier::CatchUp,
            Phase::Shed | Phase::Replaying => Tier::Cold,
        }
    }
}

/// The numbers that `decide` compares with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) ring_bytes: u64,
    pub(crate) catchup_window_bytes: u64,
    pub(crate) pin_share_bytes: u64,
    pub(crate) dwell_nanos: u64,
    pub(crate) stall_nanos: u64,
    pub(crate) flaps_max: u32,
    /// Without segments there is nothing but hot.
    pub(crate) durable: bool,
}

impl Policy {
    pub(crate) fn new(options: &Options, durable: bool) -> Policy {
        Policy {
            ring_bytes: options.ring_bytes,
            catchup_window_bytes: options.catchup_window_bytes,
            pin_share_bytes: options.pin_share_bytes(),
            dwell_nanos: nanos(options.dwell),
            stall_nanos: nanos(options.stall_after),
            flaps_max: options.flaps_max,
            durable,
        }
    }
}

/// What is known of one consumer at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub(crate) phase: Phase,
    /// How long it has been in it.
    pub(crate) in_phase_nanos: u64,
    pub(crate) lag_bytes: u64,
    /// Its next byte is in the ring, or still to be written.
    pub(crate) in_ring: bool,
    /// How long records have waited without any progress.
    pub(crate) stalled_nanos: u64,
    /// Not paused, parked or waiting for a retry: it could make progress.
    pub(crate) able: bool,
    /// Its callback is running.
    pub(crate) in_callback: bool,
    pub(crate) pinned_bytes: u64,
    /// A lease was refused because the whole budget is taken, and nobody pins more than this one.
    pub(crate) pins_most_of_exhausted_budget: bool,
    /// How often it fell out of hot within the window.
    pub(crate) falls: u32,
    pub(crate) backoff_over: bool,
    pub(crate) permit_free: bool,
}

/// What is to be done about it.
pub(crate) type Decision = Option<(Phase, Reason)>;

/// The tier that a consumer belongs in.
pub(crate) fn decide(policy: &Policy, seen: &Observation) -> Decision {
    if !policy.durable {
        return None;
    }
    match seen.phase {
        Phase::Hot | Phase::CatchUp => shed(policy, seen).or_else(|| shift(policy, seen)),
        Phase::Shed => {
            let light = seen.pinned_bytes <= policy.pin_share_bytes / 2;
            let ready = seen.backoff_over && seen.permit_free && seen.able && !seen.in_callback;
            (ready && light).then_some((Phase::Replaying, Reason::Admitted))
        }
        Phase::Replaying => (seen.lag_bytes < policy.catchup_window_bytes / 2)
            .then_some((Phase::CatchUp, Reason::Recovering)),
    }
}

/// From hot or catch-up to cold.
fn shed(policy: &Policy, seen: &Observation) -> Decision {
    let reason = if seen.pins_most_of_exhausted_budget {
        Reason::PinBudget
    } else if seen.able && seen.stalled_nanos >= policy.stall_nanos {
        Reason::Stalled
    } else if seen.phase == Phase::CatchUp && seen.lag_bytes > policy.catchup_window_bytes {
        Reason::Lag
    } else if seen.phase == Phase::CatchUp && seen.falls > policy.flaps_max {
        Reason::Flapping
    } else {
        return None;
    };
    Some((Phase::Shed, reason))
}

/// Between hot and catch-up.
fn shift(policy: &Policy, seen: &Observation) -> Decision {
    match seen.phase {
        Phase::Hot => (!seen.in_ring).then_some((Phase::CatchUp, Reason::Lapped)),
        _ => {
            let close = seen.in_ring && seen.lag_bytes <= policy.ring_bytes / 2;
            let dwelt = seen.in_phase_nanos >= policy.dwell_nanos;
            (close && dwelt).then_some((Phase::Hot, Reason::CaughtUp))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_in_metrics_are_fixed() {
        assert_eq!(Tier::ALL.map(Tier::name), ["hot", "catch_up", "cold"]);
        let names = Reason::ALL.map(Reason::name).join(" ");
        let expected = "lapped caught_up pin_budget stalled lag flapping admitted recovering";
        assert_eq!(names, expected);
    }

    const POLICY: Policy = Policy {
        ring_bytes: 100,
        catchup_window_bytes: 1_000,
        pin_share_bytes: 40,
        dwell_nanos: 10,
        stall_nanos: 20,
        flaps_max: 4,
        durable: true,
    };

    fn healthy(phase: Phase) -> Observation {
        Observation {
            phase,
            in_phase_nanos: 0,
            lag_bytes: 600,
            in_ring: phase == Phase::Hot,
            stalled_nanos: 0,
            able: true,
            in_callback: false,
            pinned_bytes: 0,
            pins_most_of_exhausted_budget: false,
            falls: 0,
            backoff_over: false,
            permit_free: true,
        }
    }

    fn with(phase: Phase, change: impl FnOnce(&mut Observation)) -> Decision {
        let mut seen = healthy(phase);
        change(&mut seen);
        decide(&POLICY, &seen)
    }

    #[test]
    fn nothing_happens_to_the_healthy() {
        for phase in [Phase::Hot, Phase::CatchUp, Phase::Shed, Phase::Replaying] {
            assert_eq!(decide(&POLICY, &healthy(phase)), None, "{phase:?}");
        }
    }

    #[test]
    fn every_row_of_the_table_and_its_edge() {
        use Phase::{CatchUp, Hot, Replaying, Shed};
        assert_eq!(with(Hot, |o| o.in_ring = false), Some((CatchUp, Reason::Lapped)));

        let near = |lag, dwelt| {
            with(CatchUp, |o| (o.lag_bytes, o.in_phase_nanos, o.in_ring) = (lag, dwelt, true))
        };
        assert_eq!(near(50, 10), Some((Hot, Reason::CaughtUp)));
        assert_eq!(near(51, 10), None);
        assert_eq!(near(50, 9), None);

        for phase in [Hot, CatchUp] {
            assert_eq!(
                with(phase, |o| o.pins_most_of_exhausted_budget = true),
                Some((Shed, Reason::PinBudget))
            );
            assert_eq!(with(phase, |o| o.stalled_nanos = 20), Some((Shed, Reason::Stalled)));
            assert_eq!(with(phase, |o| o.stalled_nanos = 19), None);
            assert_eq!(with(phase, |o| (o.stalled_nanos, o.able) = (99, false)), None);
        }
        assert_eq!(with(CatchUp, |o| o.lag_bytes = 1_001), Some((Shed, Reason::Lag)));
        assert_eq!(with(CatchUp, |o| o.lag_bytes = 1_000), None);
        assert_eq!(with(Hot, |o| o.lag_bytes = 1_001), None);
        assert_eq!(with(CatchUp, |o| o.falls = 5), Some((Shed, Reason::Flapping)));
        assert_eq!(with(CatchUp, |o| o.falls = 4), None);

        let admitted = Some((Replaying, Reason::Admitted));
        assert_eq!(with(Shed, |o| o.backoff_over = true), admitted);
        assert_eq!(with(Shed, |o| (o.backoff_over, o.permit_free) = (true, false)), None);
        assert_eq!(with(Shed, |o| (o.backoff_over, o.pinned_bytes) = (true, 20)), admitted);
        assert_eq!(with(Shed, |o| (o.backoff_over, o.pinned_bytes) = (true, 21)), None);
        assert_eq!(with(Shed, |o| (o.backoff_over, o.in_callback) = (true, true)), None);
        assert_eq!(with(Shed, |o| (o.backoff_over, o.able) = (true, false)), None);

        assert_eq!(with(Replaying, |o| o.lag_bytes = 499), Some((CatchUp, Reason::Recovering)));
        assert_eq!(with(Replaying, |o| o.lag_bytes = 500), None);
    }

    #[test]
    fn without_segments_nobody_leaves_hot() {
        let policy = Policy { durable: false, ..POLICY };
        let mut seen = healthy(Phase::Hot);
        (seen.in_ring, seen.stalled_nanos) = (false, 99);
        assert_eq!(decide(&policy, &seen), None);
    }

    #[test]
    fn leaving_and_returning_never_meet() {
        // Hysteresis: no lag both sends a consumer out of a tier and back into it.
        for lag in 0..2_000 {
            let back = with(Phase::Replaying, |o| o.lag_bytes = lag).is_some();
            let out = with(Phase::CatchUp, |o| o.lag_bytes = lag).is_some();
            assert!(!(back && out), "lag {lag}");
        }
    }
}
