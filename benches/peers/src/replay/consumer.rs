//! A subscriber that reads the log again and again, and accounts for every byte of it.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use eventplane::{Ack, Batch, Bus, Lsn, Start, Subscribe, Subscription};

use super::PATIENCE;
use crate::load::{Log, Tally};

/// Where `Status` keeps the bytes replayed in catch-up.
const CATCH_UP: usize = 1;

pub struct Consumer {
    subscription: Subscription,
    seen: Arc<Mutex<Tally>>,
}

impl Consumer {
    /// Starts it where there is nothing to read yet.
    pub fn start(subscribe: Subscribe) -> anyhow::Result<Consumer> {
        let seen = Arc::new(Mutex::new(Tally::default()));
        let tally = Arc::clone(&seen);
        let subscription = subscribe.start_at(Start::Latest).run(move |batch: &Batch<'_>| {
            let mut tally = tally.lock().expect("nobody panics with it");
            for record in batch {
                tally.take(record.lsn().get(), record.payload());
            }
            Ok(Ack::All)
        })?;
        Ok(Consumer { subscription, seen })
    }

    pub fn pause(&self) {
        self.subscription.pause();
    }

    pub fn resume(&self) {
        self.subscription.resume();
    }

    /// Sends it back to the beginning. To be called when it is at the end.
    pub fn rewind(&self) -> anyhow::Result<()> {
        *self.seen.lock().expect("nobody panics with it") = Tally::default();
        Ok(self.subscription.seek(Start::Earliest)?)
    }

    /// Waits until it has read everything, and checks that it has.
    pub fn finish(&self, log: &Log) -> anyhow::Result<()> {
        let last = Lsn::new(log.written.records);
        let name = || self.subscription.name().to_owned();
        self.subscription.wait_processed(last, PATIENCE).with_context(name)?;
        self.seen.lock().expect("nobody panics with it").check(&log.written).with_context(name)
    }

    /// Reads the whole log in catch-up; returns how many seconds that took.
    pub fn pass(&self, log: &Log) -> anyhow::Result<f64> {
        let replayed = || self.subscription.status().replayed_bytes[CATCH_UP];
        let before = replayed();
        let begun = Instant::now();
        self.rewind()?;
        let last = Lsn::new(log.written.records);
        self.subscription.wait_processed(last, PATIENCE)?;
        let seconds = begun.elapsed().as_secs_f64();
        self.finish(log)?;
        // All but what is not sealed, of which there is little.
        let replayed = replayed() - before;
        ensure!(replayed > log.payload_bytes() / 2, "only {replayed} bytes came in catch-up");
        Ok(seconds)
    }
}

/// Opens a log that was written and closed: its ring holds the last segment alone, so that all the
/// others have to be read.
pub fn reopen(log: &Log) -> anyhow::Result<Bus> {
    Ok(Bus::builder().open(&log.dir)?)
}
