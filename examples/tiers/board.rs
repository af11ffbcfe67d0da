//! `board`: departures an hour. Its work is light, so it keeps up.

use std::sync::Arc;

use eventplane::{Ack, Bus, Subscription};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::exact::{Exact, Ledger, Shared, Work};
use crate::flight;
use crate::home::Home;
use crate::input::{DEPARTED, Input, Row};
use crate::shelf::Shelf;
use crate::stage::Stage;

const HOURS: usize = 24;

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Board {
    departures: [u64; HOURS],
}

impl Board {
    fn add(&mut self, row: Row<'_>, times: u64) {
        if row.kind == DEPARTED {
            self.departures[flight::hour(row.payload)] += times;
        }
    }
}

impl Work for Board {
    const NAME: &'static str = "board";

    fn take(&mut self, row: Row<'_>) {
        self.add(row, 1);
    }

    fn expected(input: &Input, records: u64) -> Board {
        let mut board = Board::default();
        input.rows_times(records).for_each(|(row, times)| board.add(row, times));
        board
    }

    fn summary(&self) -> String {
        let busiest = (0..HOURS).max_by_key(|&hour| self.departures[hour]).unwrap_or(0);
        let (all, most) = (self.departures.iter().sum::<u64>(), self.departures[busiest]);
        format!("{all} departures, most ({most}) between {busiest}:00 and {busiest}:59")
    }
}

pub(crate) fn subscribe(
    bus: &Bus,
    home: &Home,
    stage: &Arc<Stage>,
) -> Result<(Subscription, Shared<Ledger<Board>>), Failure> {
    let (mut exact, start) = Exact::<Board>::open(home)?;
    let (ledger, stage) = (exact.ledger(), Arc::clone(stage));
    let shelf = Shelf::new(stage.page_records);
    let told = shelf.clone();
    let subscribe = bus.subscribe(Board::NAME).start_at(start);
    let subscription = subscribe.on_signal(move |signal| told.heed(signal)).run(move |batch| {
        exact.deliver(batch)?;
        shelf.sample(batch, stage.samples());
        Ok(Ack::All)
    })?;
    Ok((subscription, ledger))
}
