//! `webhook`: posts every cancellation to an endpoint, which hangs for a while.
//!
//! It keeps no LSN of its own: it starts at the checkpoint that the bus stores, at least once. The
//! endpoint ignores what it has accepted before.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eventplane::{Ack, Batch, Bus, Start, Subscription};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::exact::{Shared, lock};
use crate::geometry::CHECKPOINT_INTERVAL;
use crate::home::Home;
use crate::input::{CANCELLED, Input};
use crate::sequence::Sequence;
use crate::shelf::Shelf;
use crate::stage::Stage;
use crate::store::Slots;

pub(crate) const NAME: &str = "webhook";

/// How many intervals a checkpoint may lag behind: the interval itself, and a disk that is slow to
/// store it.
const CHECKPOINTS_LATE_MAX: u32 = 20;

/// What the endpoint accepted.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) cancelled: u64,
    /// Sum of the LSNs of cancelled flights: tells which they were.
    pub(crate) lsns_sum: u64,
}

impl Accepted {
    fn add(&mut self, lsn: u64, kind: u16) {
        if kind == CANCELLED {
            self.cancelled += 1;
            self.lsns_sum += lsn;
        }
    }

    pub(crate) fn expected(input: &Input, records: u64) -> Accepted {
        let mut accepted = Accepted::default();
        (1..=records).for_each(|lsn| accepted.add(lsn, input.row(lsn).kind));
        accepted
    }

    pub(crate) fn summary(&self) -> String {
        format!("{} cancellations accepted", self.cancelled)
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) accepted: Accepted,
    pub(crate) sequence: Sequence,
    /// Milliseconds since 1970 and what was accepted until then, one a checkpoint interval.
    marks: VecDeque<(u64, u64)>,
}

/// The remote side: what it has answered it remembers.
pub(crate) struct Endpoint {
    slots: Slots<Memory>,
    pub(crate) memory: Memory,
    /// Of a resumed run: more than this cannot come again.
    pub(crate) redelivered_max: u64,
}

impl Endpoint {
    pub(crate) fn open(home: &Home) -> io::Result<Endpoint> {
        let (slots, memory) = Slots::open(&home.state("endpoint"))?;
        let mut memory: Memory = memory.unwrap_or_default();
        memory.sequence.restarted();
        let oldest = memory.marks.front().map_or(0, |&(_, lsn)| lsn);
        let redelivered_max = memory.sequence.last() - oldest;
        memory.marks.clear();
        Ok(Endpoint { slots, memory, redelivered_max })
    }

    fn post(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        for record in batch {
            let lsn = record.lsn().get();
            if self.memory.sequence.take(lsn) {
                self.memory.accepted.add(lsn, record.kind());
            }
        }
        self.mark();
        self.slots.store(&self.memory)
    }

    /// Keeps the last mark that is older than any checkpoint may be, and what follows it.
    fn mark(&mut self) {
        let millis = |d: Duration| d.as_millis() as u64;
        let now = millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let marks = &mut self.memory.marks;
        let due = marks.back().is_none_or(|&(at, _)| now >= at + millis(CHECKPOINT_INTERVAL));
        if due {
            marks.push_back((now, self.memory.sequence.last()));
        }
        let late = millis(CHECKPOINT_INTERVAL * CHECKPOINTS_LATE_MAX);
        while marks.get(1).is_some_and(|&(at, _)| at + late < now) {
            marks.pop_front();
        }
    }
}

pub(crate) fn subscribe(
    bus: &Bus,
    home: &Home,
    stage: &Arc<Stage>,
) -> Result<(Subscription, Shared<Endpoint>), Failure> {
    let endpoint = Arc::new(std::sync::Mutex::new(Endpoint::open(home)?));
    let (posts_to, stage) = (Arc::clone(&endpoint), Arc::clone(stage));
    let shelf = Shelf::new(stage.page_records);
    let told = shelf.clone();
    // A stored checkpoint wins over `Earliest`.
    let subscribe = bus.subscribe(NAME).start_if_new(Start::Earliest);
    let subscription = subscribe.on_signal(move |signal| told.heed(signal)).run(move |batch| {
        stage.endpoint_hangs.wait_until_not();
        lock(&posts_to).post(batch)?;
        shelf.sample(batch, stage.samples());
        Ok(Ack::All)
    })?;
    Ok((subscription, endpoint))
}
