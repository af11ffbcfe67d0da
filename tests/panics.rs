//! Code of the user that panics where nobody expects it: in a filter, in a drop.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{LONG, fill, small, until};
use eventplane::{Ack, Backend, Batch, ErrorKind, Filter, Start};

/// A filter that panicked took the consumer's thread with it: its name stayed taken and waits ran
/// out of time.
#[test]
fn a_filter_that_panics_parks_its_consumer_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bus = small(Backend::Auto).open(dir.path()).unwrap();
    let armed = Arc::new(AtomicBool::new(true));
    let panics = Arc::clone(&armed);
    let filter = Filter::by(move |_, _| {
        assert!(!panics.load(Ordering::Acquire), "as planned");
        true
    });
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    let subscribe = bus
        .subscribe("filtering")
        .start_if_new(Start::Earliest)
        .filter(filter);
    let consumer = subscribe.run(move |batch: &Batch<'_>| {
        into.lock()
            .extend(batch.iter().map(|record| record.lsn().get()));
        Ok(Ack::All)
    });
    let consumer = consumer.unwrap();
    let last = fill(&bus, &bus.writer(), 10, 100);
    let parked = consumer.wait_processed(last, LONG).unwrap_err();
    assert_eq!(parked.kind(), ErrorKind::Parked);
    assert!(parked.to_string().contains("as planned"), "{parked}");
    armed.store(false, Ordering::Release);
    consumer.resume();
    consumer.wait_processed(last, LONG).unwrap();
    assert_eq!(*seen.lock(), (1..=last.get()).collect::<Vec<_>>());
    bus.close().unwrap();
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("as planned");
        }
    }
}

/// What a callback captured panicked when dropped, and `stop` waited for its deadline.
#[test]
fn a_capture_that_panics_in_its_drop_does_not_keep_the_consumer_from_ending() {
    let dir = tempfile::tempdir().unwrap();
    let bus = small(Backend::Auto).open(dir.path()).unwrap();
    let captured = PanicsWhenDropped;
    let consumer = bus.subscribe("dropping").run(move |_: &Batch<'_>| {
        let _ = &captured;
        Ok(Ack::All)
    });
    let consumer = consumer.unwrap();
    consumer.stop_within(LONG).unwrap();
    until("its name is free", || bus.consumers().is_empty());
    bus.close().unwrap();
}
