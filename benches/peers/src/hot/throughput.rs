//! Records a second: from the first one published to the last one read.

use super::bare::BARE;
use super::channels::{CROSSBEAM, TOKIO};
use super::load::{BATCH_MAX, Load, Sizes};
use super::ours::{OURS, OURS_POLLED};
use super::policy::{System, best};
use super::race::Job;
use super::ring::{Fixed, UpTo, disruptor, disruptor_polled};
use crate::machine::Place;
use crate::report::{Bar, alternate, divide};
use crate::{Bench, Context};

const MIB: u64 = 1 << 20;
/// A run moves so many bytes of payload, within bounds on its records.
const RUN_BYTES: f64 = 512.0 * MIB as f64;
const RUN_RECORDS_MIN: u64 = 1 << 18;
const RUN_RECORDS_MAX: u64 = 1 << 22;
const QUICK_RECORDS: u64 = 1 << 15;

/// Two systems and one job; what is printed is `over ÷ under`.
struct Row {
    name: &'static str,
    bar: Bar,
    sizes: Sizes,
    batch: usize,
    readers: usize,
    ring_bytes: u64,
    ahead_bytes: Option<u64>,
    over: System,
    under: System,
}

/// One reader, batches of sixteen, a ring of 4 MiB, against the disruptor.
const USUAL: Row = Row {
    name: "",
    bar: Bar::None,
    sizes: Sizes::Fixed(64),
    batch: BATCH_MAX,
    readers: 1,
    ring_bytes: 4 * MIB,
    ahead_bytes: None,
    over: OURS,
    under: disruptor::<Fixed<64>>(),
};

pub const ONE_64: Bench = Bench {
    name: "hot_1to1_64B_batch16",
    run: |context| Row { name: ONE_64.name, bar: Bar::AtMost(0.9), ..USUAL }.run(context),
};

pub const ONE_1024: Bench = Bench {
    name: "hot_1to1_1KiB_batch16",
    run: |context| {
        let (sizes, under) = (Sizes::Fixed(1024), disruptor::<Fixed<1024>>());
        Row { name: ONE_1024.name, bar: Bar::AtMost(1.05), sizes, under, ..USUAL }.run(context)
    },
};

pub const THREE_256: Bench = Bench {
    name: "hot_1to3_256B_batch16",
    run: |context| {
        let (over, under) = (OURS_POLLED, disruptor_polled::<Fixed<256>>());
        let (bar, sizes) = (Bar::AtMost(1.1), Sizes::Fixed(256));
        Row { name: THREE_256.name, bar, sizes, readers: 3, over, under, ..USUAL }.run(context)
    },
};

pub const MIXED: Bench = Bench {
    name: "hot_mixed_16_1024B",
    run: |context| {
        let (sizes, under) = (Sizes::Mixed(16, 1024), disruptor::<UpTo<1024>>());
        Row { name: MIXED.name, bar: Bar::AtMost(0.85), sizes, under, ..USUAL }.run(context)
    },
};

/// A large ring whose reader keeps up: what a system does with memory that nobody needs any more.
/// Both publishers are kept near their reader, or it would be far behind half of the time.
const RETAINING: Row = Row { ring_bytes: 64 * MIB, ahead_bytes: Some(2 * MIB), ..USUAL };

pub const RETENTION_64: Bench = Bench {
    name: "hot_retention_64MiB_64B",
    run: |context| Row { name: RETENTION_64.name, bar: Bar::AtMost(0.5), ..RETAINING }.run(context),
};

pub const RETENTION_1024: Bench = Bench {
    name: "hot_retention_64MiB_1KiB",
    run: |context| {
        let (sizes, under) = (Sizes::Fixed(1024), disruptor::<Fixed<1024>>());
        let (name, bar) = (RETENTION_1024.name, Bar::AtMost(0.3));
        Row { name, bar, sizes, under, ..RETAINING }.run(context)
    },
};

pub const SINGLE: Bench = Bench {
    name: "hot_1to1_64B_single",
    run: |context| Row { name: SINGLE.name, bar: Bar::AtMost(1.2), batch: 1, ..USUAL }.run(context),
};

pub const THREE_TOKIO: Bench = Bench {
    name: "hot_1to3_64B_tokio",
    run: |context| {
        let (bar, over, under) = (Bar::AtLeast(8.0), TOKIO, OURS_POLLED);
        Row { name: THREE_TOKIO.name, bar, readers: 3, over, under, ..USUAL }.run(context)
    },
};

pub const THREE_CROSSBEAM: Bench = Bench {
    name: "hot_1to3_64B_crossbeam",
    run: |context| {
        let (bar, over, under) = (Bar::AtLeast(10.0), CROSSBEAM, OURS_POLLED);
        Row { name: THREE_CROSSBEAM.name, bar, readers: 3, over, under, ..USUAL }.run(context)
    },
};

/// The rows above with the bytes of ours and nothing else: what their bars leave for the rest.
pub const BARE_64: Bench = Bench {
    name: "hot_bare_1to1_64B_batch16",
    run: |context| Row { name: BARE_64.name, over: BARE, ..USUAL }.run(context),
};

pub const BARE_1024: Bench = Bench {
    name: "hot_bare_1to1_1KiB_batch16",
    run: |context| {
        let (sizes, under) = (Sizes::Fixed(1024), disruptor::<Fixed<1024>>());
        Row { name: BARE_1024.name, sizes, over: BARE, under, ..USUAL }.run(context)
    },
};

pub const BARE_THREE: Bench = Bench {
    name: "hot_bare_1to3_256B_batch16",
    run: |context| {
        let (sizes, under) = (Sizes::Fixed(256), disruptor_polled::<Fixed<256>>());
        Row { name: BARE_THREE.name, sizes, readers: 3, over: BARE, under, ..USUAL }.run(context)
    },
};

pub const BARE_MIXED: Bench = Bench {
    name: "hot_bare_mixed_16_1024B",
    run: |context| {
        let (sizes, under) = (Sizes::Mixed(16, 1024), disruptor::<UpTo<1024>>());
        Row { name: BARE_MIXED.name, sizes, over: BARE, under, ..USUAL }.run(context)
    },
};

pub const BARE_RETENTION: Bench = Bench {
    name: "hot_bare_retention_64MiB_64B",
    run: |context| Row { name: BARE_RETENTION.name, over: BARE, ..RETAINING }.run(context),
};

pub const BARE_SINGLE: Bench = Bench {
    name: "hot_bare_1to1_64B_single",
    run: |context| Row { name: BARE_SINGLE.name, batch: 1, over: BARE, ..USUAL }.run(context),
};

impl Row {
    fn run(&self, context: &Context) -> anyhow::Result<()> {
        let load = Load::new(self.sizes);
        let full = (RUN_BYTES / load.mean_bytes(|payload| payload)) as u64;
        let full = full.clamp(RUN_RECORDS_MIN, RUN_RECORDS_MAX).next_multiple_of(BATCH_MAX as u64);
        let job = Job {
            load,
            total: context.scaled(full, QUICK_RECORDS),
            batch: self.batch,
            readers: self.readers,
            ring_bytes: self.ring_bytes,
            ahead_bytes: self.ahead_bytes,
        };
        let place = Place::new(context);
        // All policies take part in each round that counts: none is chosen by how it did before.
        let mut sides: Vec<_> = self.over.sides(&place, &job).collect();
        sides.extend(self.under.sides(&place, &job));
        let figures = alternate(context.rounds, &mut sides)?;
        let (over, under) = sides.split_at(self.over.policies.len());
        let (over_figures, under_figures) = figures.split_at(over.len());
        let (over, under) = (best(over, over_figures), best(under, under_figures));
        context.report.sample(self.name, "ns/record", over, under);
        context.report.ratio(self.name, &divide(over.1, under.1), self.bar);
        place.tell(self.name);
        Ok(())
    }
}
