//! `delays`: delay statistics by carrier and airport, with bursts of heavier work. In a burst it is
//! slower than the writer, falls behind, and comes back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eventplane::{Ack, Batch, Bus, OwnedRecord, Record, Subscription, Tier};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::exact::{Exact, Ledger, Shared, Work};
use crate::flight;
use crate::home::Home;
use crate::input::{Input, Row};
use crate::shelf::Shelf;
use crate::stage::Stage;

/// How long it works on a batch in a burst: at most 1,024 records in 30 ms is far slower than any
/// writer that finishes in a minute.
const HEAVY_WORK: Duration = Duration::from_millis(30);

#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Delay {
    flights: u64,
    minutes: i64,
    worst_minutes: i64,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delays {
    by_carrier_and_airport: BTreeMap<String, BTreeMap<String, Delay>>,
}

impl Delays {
    fn add(&mut self, row: Row<'_>, times: u64) {
        let Some(minutes) = flight::delay_minutes(row.payload).filter(|_| times > 0) else {
            return;
        };
        let (carrier, origin) = (flight::carrier(row.payload), flight::origin(row.payload));
        // Looked up before it is inserted: `entry` would need a String for every record.
        let airports = match self.by_carrier_and_airport.get_mut(carrier) {
            Some(airports) => airports,
            None => self.by_carrier_and_airport.entry(carrier.to_owned()).or_default(),
        };
        let delay = match airports.get_mut(origin) {
            Some(delay) => delay,
            None => airports.entry(origin.to_owned()).or_default(),
        };
        delay.flights += times;
        delay.minutes += minutes * times as i64;
        delay.worst_minutes = delay.worst_minutes.max(minutes);
    }
}

impl Work for Delays {
    const NAME: &'static str = "delays";

    fn take(&mut self, row: Row<'_>) {
        self.add(row, 1);
    }

    fn expected(input: &Input, records: u64) -> Delays {
        let mut delays = Delays::default();
        input.rows_times(records).for_each(|(row, times)| delays.add(row, times));
        delays
    }

    fn summary(&self) -> String {
        let pairs = || {
            self.by_carrier_and_airport.iter().flat_map(|(carrier, airports)| {
                airports.iter().map(move |(airport, delay)| (carrier, airport, delay))
            })
        };
        let mean = |delay: &Delay| delay.minutes as f64 / delay.flights as f64;
        let flights: u64 = pairs().map(|(.., delay)| delay.flights).sum();
        let frequent = pairs().filter(|(.., delay)| delay.flights >= flights / 100);
        let latest = frequent.max_by(|a, b| mean(a.2).total_cmp(&mean(b.2)));
        latest.map_or("no delays".to_owned(), |(carrier, airport, delay)| {
            let (mean, worst) = (mean(delay), delay.worst_minutes);
            format!("{carrier} from {airport} is latest: {mean:.1} min on average, at most {worst}")
        })
    }
}

/// The standard error of the mean delay in a batch (no delay is one of 0 minutes), by drawing from
/// it again and again: the longer, the better.
fn bootstrap(batch: &Batch<'_>, how_long: Duration) -> f64 {
    let minutes = |record: Record<'_>| flight::delay_minutes(record.payload()).unwrap_or(0);
    let delays: Vec<i64> = batch.iter().map(minutes).collect();
    let begun = Instant::now();
    let (mut dice, mut draws, mut sum, mut squares) = (batch.first_lsn().get(), 0.0, 0.0, 0.0);
    while begun.elapsed() < how_long {
        let mut minutes = 0;
        for _ in 0..delays.len() {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            minutes += delays[(dice >> 33) as usize % delays.len()];
        }
        let mean = minutes as f64 / delays.len() as f64;
        (draws, sum, squares) = (draws + 1.0, sum + mean, squares + mean * mean);
    }
    (squares / draws - (sum / draws).powi(2)).max(0.0).sqrt()
}

pub(crate) fn subscribe(
    bus: &Bus,
    home: &Home,
    stage: &Arc<Stage>,
) -> Result<(Subscription, Shared<Ledger<Delays>>), Failure> {
    let (mut exact, start) = Exact::<Delays>::open(home)?;
    let (ledger, stage) = (exact.ledger(), Arc::clone(stage));
    let shelf = Shelf::new(stage.page_records);
    let told = shelf.clone();
    let mut worst: (i64, Option<OwnedRecord>) = (0, None);
    let subscribe = bus.subscribe(Delays::NAME).start_at(start);
    let subscription = subscribe.on_signal(move |signal| told.heed(signal)).run(move |batch| {
        exact.deliver(batch)?;
        for record in batch {
            let minutes = flight::delay_minutes(record.payload()).unwrap_or(0);
            if minutes > worst.0 {
                // Where the lease is refused the minutes alone are kept.
                worst = (minutes, record.lease().ok());
            }
        }
        // The worst takes the place of a sample.
        let pinned = worst.1.as_ref().is_some_and(OwnedRecord::is_pinned);
        shelf.sample(batch, stage.samples() - u64::from(pinned));
        if stage.rush.get() && batch.tier() == Tier::Hot {
            std::hint::black_box(bootstrap(batch, HEAVY_WORK));
        }
        Ok(Ack::All)
    })?;
    Ok((subscription, ledger))
}
