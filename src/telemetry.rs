//! Metrics: names, units and descriptions in one place; handles made once, never per record.
//!
//! Counting happens in plain atomics; the supervisor's tick carries the sums over, so that the
//! delivery path knows nothing of recorders.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use crate::lsn::Lsn;
use crate::options::ConsumerLabels;
use crate::policy::{Reason, Tier};

/// Describes every metric, with its unit.
pub(crate) fn describe() {
    describe_counter!("eventplane_appended_records_total", Unit::Count, "Records committed.");
    describe_counter!("eventplane_appended_bytes_total", Unit::Bytes, "Block bytes committed.");
    describe_counter!("eventplane_commits_total", Unit::Count, "Batches committed.");
    describe_counter!(
        "eventplane_delivered_records_total",
        Unit::Count,
        "Records delivered to the consumer, by the tier it was in."
    );
    describe_counter!(
        "eventplane_tier_transitions_total",
        Unit::Count,
        "Tier transitions of the consumer, by tiers and reason."
    );
    describe_counter!(
        "eventplane_callback_failures_total",
        Unit::Count,
        "Callbacks that returned an error or panicked."
    );
    describe_counter!(
        "eventplane_replayed_bytes_total",
        Unit::Bytes,
        "Block bytes the consumer read in catch-up or cold."
    );
    describe_counter!("eventplane_long_batches_total", Unit::Count, "Write batches held too long.");
    describe_gauge!("eventplane_committed_lsn", Unit::Count, "Last LSN that consumers may see.");
    describe_gauge!("eventplane_durable_lsn", Unit::Count, "Last LSN on stable storage.");
    describe_gauge!("eventplane_consumer_lsn", Unit::Count, "Last LSN processed.");
    describe_gauge!("eventplane_consumer_lag_records", Unit::Count, "Records not processed yet.");
    describe_gauge!("eventplane_consumer_lag_bytes", Unit::Bytes, "Log bytes not processed yet.");
    describe_gauge!(
        "eventplane_consumer_lag_seconds",
        Unit::Seconds,
        "Age of the last record processed while others wait; 0 when caught up."
    );
    describe_gauge!(
        "eventplane_consumer_lead_bytes",
        Unit::Bytes,
        "Bytes that may be written before retention deletes what the consumer needs next."
    );
    describe_gauge!("eventplane_consumer_pinned_bytes", Unit::Bytes, "Bytes its leases pin.");
    describe_gauge!("eventplane_consumer_tier", Unit::Count, "1 for the tier it is in, else 0.");
    describe_gauge!("eventplane_ring_pinned_bytes", Unit::Bytes, "Bytes that all leases pin.");
    describe_gauge!("eventplane_wal_bytes", Unit::Bytes, "Size of the log's segment files.");
    describe_gauge!("eventplane_wal_segments", Unit::Count, "Number of the log's segment files.");
    describe_gauge!("eventplane_poisoned", Unit::Count, "1 after a failed write or sync.");
    describe_gauge!("eventplane_io_uring", Unit::Count, "1 if io_uring carries the writes.");
    describe_gauge!("eventplane_direct_io", Unit::Count, "1 if writes bypass the page cache.");
    for (name, what) in [
        ("eventplane_commit_duration_seconds", "From commit to durable."),
        ("eventplane_callback_duration_seconds", "Duration of a callback."),
        ("eventplane_replay_page_duration_seconds", "Reading and checking a page of replay."),
        ("eventplane_delivery_duration_seconds", "From append to callback."),
    ] {
        describe_histogram!(name, Unit::Seconds, what);
    }
}

/// A counter that is fed a running total.
pub(crate) struct Total {
    counter: Counter,
    told: AtomicU64,
}

impl Total {
    fn new(counter: Counter) -> Total {
        Total { counter, told: AtomicU64::new(0) }
    }

    /// Relaxed: the number is all there is. The supervisor may be late with an older one when a
    /// consumer tells its last.
    pub(crate) fn tell(&self, total: u64) {
        let told = self.told.fetch_max(total, Ordering::Relaxed);
        if total > told {
            self.counter.increment(total - told);
        }
    }
}

/// Metrics of the bus as a whole.
pub(crate) struct BusMetrics {
    pub(crate) records: Total,
    pub(crate) bytes: Total,
    pub(crate) commits: Total,
    pub(crate) long_batches: Total,
    pub(crate) committed_lsn: Gauge,
    pub(crate) durable_lsn: Gauge,
    pub(crate) pinned_bytes: Gauge,
    pub(crate) wal_bytes: Gauge,
    pub(crate) wal_segments: Gauge,
    pub(crate) poisoned: Gauge,
    pub(crate) io_uring: Gauge,
    pub(crate) direct_io: Gauge,
}

impl BusMetrics {
    pub(crate) fn new() -> BusMetrics {
        describe();
        BusMetrics {
            records: Total::new(counter!("eventplane_appended_records_total")),
            bytes: Total::new(counter!("eventplane_appended_bytes_total")),
            commits: Total::new(counter!("eventplane_commits_total")),
            long_batches: Total::new(counter!("eventplane_long_batches_total")),
            committed_lsn: gauge!("eventplane_committed_lsn"),
            durable_lsn: gauge!("eventplane_durable_lsn"),
            pinned_bytes: gauge!("eventplane_ring_pinned_bytes"),
            wal_bytes: gauge!("eventplane_wal_bytes"),
            wal_segments: gauge!("eventplane_wal_segments"),
            poisoned: gauge!("eventplane_poisoned"),
            io_uring: gauge!("eventplane_io_uring"),
            direct_io: gauge!("eventplane_direct_io"),
        }
    }
}

/// What is told of a consumer on each tick.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConsumerSample {
    pub(crate) lsn: Lsn,
    pub(crate) lag_records: u64,
    pub(crate) lag_bytes: u64,
    pub(crate) lag_seconds: f64,
    pub(crate) lead_bytes: Option<u64>,
    pub(crate) pinned_bytes: u64,
    /// By tier.
    pub(crate) delivered: [u64; 3],
    pub(crate) replayed: [u64; 3],
    pub(crate) failures: u64,
}

/// Metrics of one consumer.
pub(crate) struct ConsumerMetrics {
    label: String,
    delivered: [Total; 3],
    replayed: [Total; 3],
    failures: Total,
    lsn: Gauge,
    lag_records: Gauge,
    lag_bytes: Gauge,
    lag_seconds: Gauge,
    lead_bytes: Gauge,
    pinned_bytes: Gauge,
    tier: [Gauge; 3],
    pub(crate) callback_seconds: Histogram,
    pub(crate) page_seconds: Histogram,
    pub(crate) delivery_seconds: Histogram,
}

impl ConsumerMetrics {
    pub(crate) fn new(name: &str, labels: ConsumerLabels) -> ConsumerMetrics {
        let label = match labels {
            ConsumerLabels::Name => name.to_owned(),
            ConsumerLabels::Group => name.split(['/', ':', '-']).next().unwrap_or(name).to_owned(),
            ConsumerLabels::Off => "all".to_owned(),
        };
        let of = |metric: &'static str| gauge!(metric, "consumer" => label.clone());
        let by_tier = |metric: &'static str| {
            Tier::ALL.map(|tier| {
                Total::new(counter!(metric, "consumer" => label.clone(), "tier" => tier.name()))
            })
        };
        ConsumerMetrics {
            delivered: by_tier("eventplane_delivered_records_total"),
            replayed: by_tier("eventplane_replayed_bytes_total"),
            failures: Total::new(
                counter!("eventplane_callback_failures_total", "consumer" => label.clone()),
            ),
            lsn: of("eventplane_consumer_lsn"),
            lag_records: of("eventplane_consumer_lag_records"),
            lag_bytes: of("eventplane_consumer_lag_bytes"),
            lag_seconds: of("eventplane_consumer_lag_seconds"),
            lead_bytes: of("eventplane_consumer_lead_bytes"),
            pinned_bytes: of("eventplane_consumer_pinned_bytes"),
            tier: Tier::ALL.map(|tier| {
                let tier = tier.name();
                gauge!("eventplane_consumer_tier", "consumer" => label.clone(), "tier" => tier)
            }),
            callback_seconds: histogram!("eventplane_callback_duration_seconds"),
            page_seconds: histogram!("eventplane_replay_page_duration_seconds"),
            delivery_seconds: histogram!("eventplane_delivery_duration_seconds"),
            label,
        }
    }

    pub(crate) fn transition(&self, from: Tier, to: Tier, reason: Reason) {
        counter!(
            "eventplane_tier_transitions_total",
            "consumer" => self.label.clone(),
            "from" => from.name(),
            "to" => to.name(),
            "reason" => reason.name()
        )
        .increment(1);
    }

    pub(crate) fn tell(&self, sample: &ConsumerSample, in_tier: Tier) {
        for (i, tier) in Tier::ALL.into_iter().enumerate() {
            self.delivered[i].tell(sample.delivered[i]);
            self.replayed[i].tell(sample.replayed[i]);
            self.tier[i].set(if tier == in_tier { 1.0 } else { 0.0 });
        }
        self.failures.tell(sample.failures);
        self.lsn.set(sample.lsn.get() as f64);
        self.lag_records.set(sample.lag_records as f64);
        self.lag_bytes.set(sample.lag_bytes as f64);
        self.lag_seconds.set(sample.lag_seconds);
        self.lead_bytes.set(sample.lead_bytes.map_or(f64::INFINITY, |bytes| bytes as f64));
        self.pinned_bytes.set(sample.pinned_bytes as f64);
    }
}
