//! What a callback's answer does to the consumer: move, back off, dead-letter, park.

use std::sync::atomic::Ordering;

use super::{Consumer, Failure, Progress, Subscriber, call};
use crate::consumer::filter::Filter;
use crate::consumer::options::{Ack, Signal};
use crate::consumer::state::{Activity, add};
use crate::error::{Error, ErrorKind, Result};
use crate::format::RawRecord;
use crate::lsn::Lsn;
use crate::ring::Seen;
use crate::source::{Cursor, Held, PageLimits, RunIter, Scan, Select as _, scan as read};
use crate::sync::nanos;

impl Consumer {
    pub(super) fn settle(
        &mut self,
        scan: Scan,
        outcome: Result<Ack, Failure>,
        seen: Seen,
        subscriber: &mut dyn Subscriber,
    ) -> Progress {
        let last = scan.to.next_lsn.previous();
        match outcome {
            Ok(Ack::Through(lsn)) if lsn < last => {
                if lsn < scan.from.next_lsn {
                    let delay = self.next_delay();
                    return self.back_off(delay);
                }
                match self.part(scan.from, lsn) {
                    Ok((to, records)) => self.processed(to, records, seen, subscriber),
                    Err(error) => self.read_failed(error, subscriber),
                }
            }
            Ok(Ack::RetryAfter(delay)) => self.back_off(nanos(delay)),
            Ok(Ack::All | Ack::Through(_)) => {
                self.all_processed(&scan, scan.matched as u64, seen, subscriber)
            }
            Err(failure) => self.failed(scan, failure, seen, subscriber),
        }
    }

    /// The cursor moves behind the run. A subscriber that did not look at all of it has not found
    /// its end.
    fn all_processed(
        &mut self,
        scan: &Scan,
        records: u64,
        seen: Seen,
        subscriber: &mut dyn Subscriber,
    ) -> Progress {
        if !scan.is_open() {
            return self.processed(scan.to, records, seen, subscriber);
        }
        match self.part(scan.last_block(), scan.to.next_lsn.previous()) {
            Ok((to, _)) => self.processed(to, records, seen, subscriber),
            Err(error) => self.read_failed(error, subscriber),
        }
    }

    /// The cursor behind `last`, which the scan passed, and how many records of the batch are
    /// before it, from `from` on. Walks those, no more: acknowledging one by one stays linear.
    fn part(&self, from: Cursor, last: Lsn) -> Result<(Cursor, u64)> {
        let window = self.held.window(&self.plane.log.geometry);
        let records = (last.next().get() - from.next_lsn.get()) as usize;
        let limits = PageLimits { records, bytes: usize::MAX };
        let mut part = read(window, from, &Filter::all(), limits, |_, _| Ok(()))?;
        add(&self.state.walked, part.records);
        let mut run = RunIter::new(window, &part);
        let matches = |(_, _, raw): &(Lsn, u64, RawRecord<'_>)| {
            self.filter.all() || self.filter.matches(raw.kind, raw.key)
        };
        let matched = run.by_ref().filter(matches).count() as u64;
        part.close(run.offset());
        Ok((part.to, matched))
    }

    /// The cursor moves over records that the subscriber is done with.
    fn processed(
        &mut self,
        to: Cursor,
        records: u64,
        seen: Seen,
        subscriber: &mut dyn Subscriber,
    ) -> Progress {
        self.cursor = to;
        add(&self.state.delivered[self.phase.tier() as usize], records);
        if self.attempts > 0 {
            self.attempts = 0;
            self.state.retries.store(0, Ordering::Relaxed);
        }
        self.advanced(seen, subscriber);
        Progress::Moved
    }

    /// Tells what is due, then publishes the cursor.
    pub(super) fn advanced(&mut self, seen: Seen, subscriber: &mut dyn Subscriber) {
        if self.cursor.block >= seen.position() {
            self.note_caught_up(subscriber);
        }
        // If a seek came meanwhile, others see its target until it is applied.
        self.state.publish(&self.cursor);
    }

    pub(super) fn note_caught_up(&mut self, subscriber: &mut dyn Subscriber) {
        if self.caught_up_in == Some(self.tier_epoch) {
            return;
        }
        self.caught_up_in = Some(self.tier_epoch);
        let mut tiering = self.state.tiering.lock();
        if !std::mem::replace(&mut tiering.caught_up, true) {
            // Queued under the lock that transitions are made under: so signals are told in the
            // order of what they tell, and alternate.
            let lsn = self.cursor.next_lsn.previous();
            self.state.signals.lock().push_back(Signal::CaughtUp { lsn });
            drop(tiering);
            self.tell_signals(subscriber);
        }
    }

    pub(super) fn next_delay(&mut self) -> u64 {
        let min = nanos(self.retry.min).max(1_000);
        let doubled = min.saturating_mul(1 << self.attempts.min(30));
        self.attempts = self.attempts.saturating_add(1);
        self.state.retries.store(self.attempts, Ordering::Relaxed);
        // Half to all of it: enough that consumers that failed together do not retry together.
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        let delay = doubled.min(nanos(self.retry.max)).max(2);
        delay / 2 + self.dice % (delay / 2 + 1)
    }

    pub(super) fn back_off(&mut self, delay_nanos: u64) -> Progress {
        self.not_before = self.plane.log.clock.now().saturating_add(delay_nanos);
        self.state.set_activity(Activity::Retrying);
        self.held = Held::None;
        Progress::NotBefore(self.not_before)
    }

    pub(super) fn failed(
        &mut self,
        mut scan: Scan,
        failure: Failure,
        seen: Seen,
        subscriber: &mut dyn Subscriber,
    ) -> Progress {
        self.state.failures.fetch_add(1, Ordering::Relaxed);
        let (consumer, lsn) = (&*self.state.name, scan.from.next_lsn);
        tracing::warn!(consumer, %lsn, error = %failure, "a callback failed");
        let exhausted = self.retry.attempts.is_some_and(|max| self.attempts + 1 >= max);
        self.singly_through = self.singly_through.max(scan.to.next_lsn.previous());
        if !exhausted {
            let delay = self.next_delay();
            return self.back_off(delay);
        }
        if scan.matched > 1 {
            // Only what fails by itself is given up.
            self.attempts = 0;
            return Progress::Moved;
        }
        if subscriber.takes_dead_letters() {
            let taken = self.with_batch(&mut scan, |state, batch, _| {
                call(state, || subscriber.dead_letter(batch, &failure)).unwrap_or(false)
            });
            if taken {
                return self.all_processed(&scan, 0, seen, subscriber);
            }
        }
        let error = Error::new(ErrorKind::Parked, "the callback kept failing")
            .at_lsns(lsn, scan.to.next_lsn.previous())
            .because(failure)
            .advise("`resume` tries again, `seek` goes elsewhere");
        self.park(error, subscriber)
    }
}
