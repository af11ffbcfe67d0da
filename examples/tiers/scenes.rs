//! The script: what happens to whom, when, and how the director knows that it happened.
//!
//! Every scene begins when its records are due and everybody it needs is hot, and ends when the bus
//! has reported what it is about and the consumer is hot again.

use eventplane::{Reason, Status, Tier};

use crate::audit::Audit;
use crate::cast;
use crate::delays::Delays;
use crate::director::{Director, Seen};
use crate::exact::Work;
use crate::geometry::InRecords;
use crate::keeper::Keeper;
use crate::webhook;

pub(crate) const RUSH: &str = "rush";
pub(crate) const LATE: &str = "late";
pub(crate) const HANG: &str = "hang";
pub(crate) const HOARD: &str = "hoard";

pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// What the scene may need to write.
    pub(crate) records: fn(&InRecords) -> u64,
    /// What must have been written before.
    pub(crate) prelude: fn(&InRecords) -> u64,
    pub(crate) play: fn(&mut Director<'_>) -> Result<(), String>,
}

pub(crate) const ALL: [Scene; 4] = [
    Scene {
        name: RUSH,
        about: "delays works harder: lapped again and again, shed for flapping",
        records: |size| 6 * size.ring,
        prelude: |_| 0,
        play: rush,
    },
    Scene {
        name: LATE,
        about: "audit subscribes from the beginning: shed for lag, replayed cold",
        records: |size| size.ring,
        prelude: |size| 2 * size.window,
        play: late,
    },
    Scene {
        name: HANG,
        about: "the endpoint of webhook hangs: shed as stalled, replayed cold",
        records: |size| 2 * size.window,
        prelude: |_| 0,
        play: hang,
    },
    Scene {
        name: HOARD,
        about: "keeper gives no lease back: refused over its share, shed for the pin budget",
        records: |size| size.ring,
        prelude: |_| 0,
        play: hoard,
    },
];

/// The least that a run has to write for all of them.
pub(crate) fn records_min(size: &InRecords) -> u64 {
    let after: u64 = ALL.iter().map(|scene| (scene.records)(size)).sum();
    after.max(ALL.iter().map(|scene| (scene.prelude)(size) + (scene.records)(size)).sum())
}

fn find<'a>(seen: &'a [Status], name: &str) -> Option<&'a Status> {
    seen.iter().find(|status| status.name == name)
}

pub(crate) fn is_hot(seen: &[Status], name: &str) -> bool {
    find(seen, name).is_some_and(|status| status.tier == Tier::Hot)
}

fn all_hot(seen: &[Status]) -> bool {
    cast::NAMES.iter().all(|name| is_hot(seen, name))
}

/// `delays` is slower than the writer whenever it is hot, until the bus has had enough.
fn rush(director: &mut Director<'_>) -> Result<(), String> {
    let (name, before) = (Delays::NAME, director.count(Delays::NAME, Reason::Flapping));
    let ring = director.size.ring;
    while director.count(name, Reason::Flapping) == before {
        director.until("delays is hot", |seen| is_hot(&seen.consumers, name))?;
        director.stage.rush.set(true);
        director.flow.burst.set(true);
        director.until("delays is lapped", |seen| {
            // It notices only when its callback returns. Further on it would be shed for its lag.
            let lag = find(&seen.consumers, name).map_or(0, |status| status.lag_records);
            if lag < ring + ring / 4 {
                seen.write_ahead(ring / 4);
            }
            !is_hot(&seen.consumers, name)
        })?;
        director.stage.rush.set(false);
        director.flow.burst.set(false);
        director.until("delays comes back or is shed", |seen| {
            is_hot(&seen.consumers, name) || seen.count(name, Reason::Flapping) > before
        })?;
    }
    director.until("delays is hot again", |seen| is_hot(&seen.consumers, name))
}

/// `audit` is further behind than the catch-up window from the start.
fn late(director: &mut Director<'_>) -> Result<(), String> {
    let name = Audit::NAME;
    director.enter_audit()?;
    director.write_more(2 * director.size.ring);
    director.until("audit is shed for its lag", |seen| seen.count(name, Reason::Lag) > 0)?;
    director.until("audit is hot", |seen| is_hot(&seen.consumers, name))
}

/// First only a little is written, so that `webhook` is stalled and not yet lapped; then so much
/// that its cold replay has something to read.
fn hang(director: &mut Director<'_>) -> Result<(), String> {
    let name = webhook::NAME;
    director.until("webhook is hot", |seen| is_hot(&seen.consumers, name))?;
    let before = director.count(name, Reason::Stalled);
    director.stage.endpoint_hangs.set(true);
    director.write_more(director.size.ring / 4);
    director.until("webhook is stalled", |seen| seen.count(name, Reason::Stalled) > before)?;
    director.flow.burst.set(true);
    let through = director.write_more(director.size.window);
    director.until("a catch-up window is written", |seen| seen.committed >= through)?;
    director.flow.burst.set(false);
    director.stage.endpoint_hangs.set(false);
    director.write_more(director.size.ring);
    director.until("webhook is hot again", |seen| is_hot(&seen.consumers, name))
}

/// First `keeper` takes its share, then the others the rest of the budget and a little more.
fn hoard(director: &mut Director<'_>) -> Result<(), String> {
    let (name, stage) = (Keeper::NAME, director.stage);
    let (before, refused) = (director.count(name, Reason::PinBudget), stage.refused.get());
    let (page, ring) = (stage.page_records, director.size.ring);
    // Whoever is not hot copies instead of pinning, so everybody is given time to keep up.
    let write_gently = |seen: &Seen<'_>| {
        let keeps_up = seen.consumers.iter().all(|status| status.lag_records < ring / 4);
        if keeps_up && all_hot(&seen.consumers) {
            seen.write_ahead(2 * page);
        }
    };
    stage.hoard.set(true);
    director.until("keeper is refused a lease over its share", |seen| {
        write_gently(seen);
        stage.refused.get() > refused
    })?;
    stage.collect.set(true);
    director.until("keeper is shed for the pin budget", |seen| {
        write_gently(seen);
        seen.count(name, Reason::PinBudget) > before
    })?;
    stage.calm();
    director.write_more(ring / 4);
    director.until("keeper is hot again", |seen| is_hot(&seen.consumers, name))
}
