//! What has happened so far: the scenes played and the transitions, also those of earlier runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use eventplane::{Bus, Reason, Tier};
use serde::{Deserialize, Serialize};

use crate::home::Home;
use crate::store;

const FILE: &str = "history.json";

#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct History {
    played: BTreeSet<String>,
    /// By "from>to reason", of earlier runs and of this one.
    earlier: BTreeMap<String, u64>,
    current: BTreeMap<String, u64>,
    runs: u64,
}

impl History {
    /// Begins a run, the first or one more.
    pub(crate) fn open(home: &Home) -> io::Result<History> {
        let mut history: History = store::load(&home.state(FILE))?.unwrap_or_default();
        for (key, count) in std::mem::take(&mut history.current) {
            *history.earlier.entry(key).or_default() += count;
        }
        history.runs += 1;
        Ok(history)
    }

    pub(crate) fn runs(&self) -> u64 {
        self.runs
    }

    pub(crate) fn has_played(&self, scene: &str) -> bool {
        self.played.contains(scene)
    }

    pub(crate) fn note_played(&mut self, scene: &str) {
        self.played.insert(scene.to_owned());
    }

    /// Takes over what the bus has counted, and stores it.
    pub(crate) fn save(&mut self, home: &Home, bus: &Bus) -> io::Result<()> {
        let counts = bus.transition_counts();
        let named = |((from, to, reason), count)| (format!("{from}>{to} {reason}"), count);
        self.current = counts.into_iter().map(named).collect();
        store::save(&home.state(FILE), self)
    }

    fn counts(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        let all = self.earlier.iter().chain(&self.current);
        all.filter_map(|(key, &count)| {
            let (tiers, reason) = key.split_once(' ')?;
            Some((tiers, reason, count))
        })
    }

    /// As "hot>catch_up=3 ...", in the order of the tiers.
    pub(crate) fn transitions(&self) -> String {
        let pairs = Tier::ALL.into_iter().flat_map(|from| Tier::ALL.map(|to| (from, to)));
        list(pairs.map(|(from, to)| format!("{from}>{to}")), |name| {
            self.counts().filter(|(tiers, ..)| *tiers == name).map(|(.., count)| count).sum()
        })
    }

    /// As "lapped=3 ...", in the order of the reasons.
    pub(crate) fn reasons(&self) -> String {
        list(Reason::ALL.map(|reason| reason.to_string()), |name| self.of_reason(name))
    }

    fn of_reason(&self, name: &str) -> u64 {
        self.counts().filter(|(_, reason, _)| *reason == name).map(|(.., count)| count).sum()
    }

    /// Tiers that nobody entered or left, reasons that nobody had.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for tier in Tier::ALL.map(Tier::name) {
            let ends = |(tiers, _, _): (&str, &str, u64)| {
                let (from, to) = tiers.split_once('>').unwrap_or_default();
                (from == tier && to != tier, to == tier && from != tier)
            };
            if !self.counts().any(|count| ends(count).0) {
                missing.push(format!("nobody left the {tier} tier"));
            }
            if !self.counts().any(|count| ends(count).1) {
                missing.push(format!("nobody entered the {tier} tier"));
            }
        }
        for reason in Reason::ALL.map(Reason::name) {
            if self.of_reason(reason) == 0 {
                missing.push(format!("no transition for the reason {reason}"));
            }
        }
        missing
    }
}

fn list(names: impl IntoIterator<Item = String>, count: impl Fn(&str) -> u64) -> String {
    let counted = names.into_iter().map(|name| (count(&name), name));
    let some: Vec<_> =
        counted.filter(|(n, _)| *n > 0).map(|(n, name)| format!("{name}={n}")).collect();
    some.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_over_runs_and_what_is_missing_is_said() {
        let mut history = History::default();
        history.earlier.insert("hot>catch_up lapped".to_owned(), 2);
        history.current.insert("hot>catch_up lapped".to_owned(), 1);
        history.current.insert("hot>cold stalled".to_owned(), 1);
        assert_eq!(history.transitions(), "hot>catch_up=3 hot>cold=1");
        assert_eq!(history.reasons(), "lapped=3 stalled=1");
        let missing = history.missing();
        assert!(missing.contains(&"nobody entered the hot tier".to_owned()), "{missing:?}");
        assert!(!missing.contains(&"nobody left the hot tier".to_owned()), "{missing:?}");
        assert!(missing.contains(&"no transition for the reason lag".to_owned()), "{missing:?}");
    }
}
