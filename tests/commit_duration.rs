//! Commits were measured only where the producer waits in `commit`: a bus written to by
//! `commit_later` and tickets alone showed no commit duration at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use eventplane::{Bus, Durability};
use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

/// Counts what is recorded as commit duration.
#[derive(Default)]
struct Commits(Arc<Samples>);

#[derive(Default)]
struct Samples(AtomicU64);

impl HistogramFn for Samples {
    fn record(&self, seconds: f64) {
        assert!((0.0..60.0).contains(&seconds), "{seconds}");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Recorder for Commits {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        if key.name() == "eventplane_commit_duration_seconds" {
            Histogram::from_arc(Arc::clone(&self.0))
        } else {
            Histogram::noop()
        }
    }
}

#[test]
fn commits_by_ticket_are_measured() {
    let recorder = Commits::default();
    let dir = tempfile::tempdir().unwrap();
    metrics::with_local_recorder(&recorder, || {
        let bus = Bus::builder()
            .durability(Durability::Synced)
            .open(dir.path())
            .unwrap();
        let writer = bus.writer();
        for measured in 1..=3 {
            let mut batch = writer.batch();
            batch.append(1, 1, b"later").unwrap();
            let ticket = batch.commit_later().unwrap();
            ticket.wait().unwrap();
            assert_eq!(recorder.0.0.load(Ordering::Relaxed), measured);
        }
        writer.append(1, 1, b"now").unwrap();
        assert_eq!(recorder.0.0.load(Ordering::Relaxed), 4, "measured once");
        bus.close().unwrap();
    });
}
