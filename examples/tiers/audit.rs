//! `audit`: a running checksum over everything from the beginning. It subscribes late, so it has
//! much to read: from where the bus lets it, at a pace that leaves the others the machine.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use eventplane::{Ack, Bus, Subscription, Tier};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::exact::{Exact, Ledger, Shared, Work};
use crate::home::Home;
use crate::input::{Input, Row};
use crate::shelf::Shelf;
use crate::stage::Stage;

/// Between two batches while it is behind.
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Audit {
    records: u64,
    bytes: u64,
    checksum: u32,
}

impl Work for Audit {
    const NAME: &'static str = "audit";

    fn take(&mut self, row: Row<'_>) {
        self.records += 1;
        self.bytes += row.payload.len() as u64;
        for part in [&row.kind.to_le_bytes()[..], &row.key.to_le_bytes(), row.payload] {
            self.checksum = crc32c::crc32c_append(self.checksum, part);
        }
    }

    fn expected(input: &Input, records: u64) -> Audit {
        let mut audit = Audit::default();
        (1..=records).for_each(|lsn| audit.take(input.row(lsn)));
        audit
    }

    fn summary(&self) -> String {
        let Audit { records, bytes, checksum } = self;
        format!("CRC-32C {checksum:08x} of {records} records, {bytes} bytes")
    }
}

pub(crate) fn subscribe(
    bus: &Bus,
    home: &Home,
    stage: &Arc<Stage>,
) -> Result<(Subscription, Shared<Ledger<Audit>>), Failure> {
    let (mut exact, start) = Exact::<Audit>::open(home)?;
    let (ledger, stage) = (exact.ledger(), Arc::clone(stage));
    let shelf = Shelf::new(stage.page_records);
    let told = shelf.clone();
    let subscribe = bus.subscribe(Audit::NAME).start_at(start);
    let subscription = subscribe.on_signal(move |signal| told.heed(signal)).run(move |batch| {
        exact.deliver(batch)?;
        shelf.sample(batch, stage.samples());
        if batch.tier() != Tier::Hot {
            thread::sleep(PAUSE);
        }
        Ok(Ack::All)
    })?;
    Ok((subscription, ledger))
}
