//! `keeper`: counts flights by aircraft, and holds on to records: in its scene to all it can get.
//! It is refused more than its share, is shed when the budget is exhausted, and then lets go.

use std::sync::Arc;

use eventplane::{Ack, Bus, Subscription};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::exact::{Exact, Ledger, Shared, Work};
use crate::home::Home;
use crate::input::{Input, Row};
use crate::shelf::Shelf;
use crate::stage::Stage;

/// Aircraft are counted in as many groups, by key.
const GROUPS: u64 = 64;
/// What it holds when it does not hoard.
const CALM: u64 = 2;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keeper {
    by_aircraft: Vec<u64>,
}

impl Default for Keeper {
    fn default() -> Keeper {
        Keeper { by_aircraft: vec![0; GROUPS as usize] }
    }
}

impl Keeper {
    fn add(&mut self, row: Row<'_>, times: u64) {
        self.by_aircraft[(row.key % GROUPS) as usize] += times;
    }
}

impl Work for Keeper {
    const NAME: &'static str = "keeper";

    fn take(&mut self, row: Row<'_>) {
        self.add(row, 1);
    }

    fn expected(input: &Input, records: u64) -> Keeper {
        let mut keeper = Keeper::default();
        input.rows_times(records).for_each(|(row, times)| keeper.add(row, times));
        keeper
    }

    fn summary(&self) -> String {
        let flights: u64 = self.by_aircraft.iter().sum();
        let most = self.by_aircraft.iter().max().unwrap_or(&0);
        format!("{flights} flights in {GROUPS} groups of aircraft, at most {most} in one")
    }
}

pub(crate) fn subscribe(
    bus: &Bus,
    home: &Home,
    stage: &Arc<Stage>,
) -> Result<(Subscription, Shared<Ledger<Keeper>>), Failure> {
    let (mut exact, start) = Exact::<Keeper>::open(home)?;
    let (ledger, stage) = (exact.ledger(), Arc::clone(stage));
    let shelf = Shelf::new(stage.page_records);
    let told = shelf.clone();
    let subscribe = bus.subscribe(Keeper::NAME).start_at(start);
    let subscription = subscribe.on_signal(move |signal| told.heed(signal)).run(move |batch| {
        exact.deliver(batch)?;
        let most = if stage.hoard.get() { u64::MAX } else { CALM };
        stage.refused.add(shelf.sample(batch, most));
        Ok(Ack::All)
    })?;
    Ok((subscription, ledger))
}
