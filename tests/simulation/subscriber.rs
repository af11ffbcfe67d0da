//! A subscriber that is polled by hand, compares what it is given with the ledger, and fails now
//! and then.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use eventplane::testing::{ManualSubscription, Polled};
use eventplane::{
    Ack, Batch, Bus, Filter, Lsn, OnPositionLost, Result, Retry, Signal, Start, Subscription,
};
use fastrand::Rng;

use crate::ledger::{Entry, Shared, lock};

/// What it must be given next.
#[derive(Debug)]
struct Expected {
    /// The next LSN; records that its filter does not let through are passed over.
    next: u64,
    /// It sees this kind only.
    kind: Option<u16>,
    caught_up: bool,
}

impl Expected {
    fn passes_over(&self, entry: Option<&Entry>) -> bool {
        self.kind.is_some() && entry.map(Entry::kind) != self.kind
    }
}

pub(crate) struct Sub {
    pub(crate) name: String,
    inner: ManualSubscription,
    ledger: Shared,
    expected: Arc<Mutex<Expected>>,
}

fn open(expected: &Mutex<Expected>) -> MutexGuard<'_, Expected> {
    expected.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Sub {
    pub(crate) fn begin(bus: &Bus, name: &str, ledger: &Shared, rng: &mut Rng) -> Result<Sub> {
        let kind = (rng.u8(0..4) == 0).then(|| rng.u16(0..5));
        let expected = Expected { next: 0, kind, caught_up: false };
        let expected = Arc::new(Mutex::new(expected));
        // Whatever may be stored for it now, or a new start.
        let first = bus.first_lsn().get();
        let start = rng.u64(first..=bus.committed_lsn().get() + 1);
        lock(ledger)
            .checkpoints
            .entry(name.to_owned())
            .or_insert_with(|| vec![None]);
        let known = !lock(ledger).checkpoints[name].contains(&None);
        if !known {
            lock(ledger).may_store(name, start - 1);
        }
        let (mut dice, watched, told) = (rng.fork(), expected.clone(), expected.clone());
        let (seen, signalled) = (ledger.clone(), ledger.clone());
        let inner = bus
            .subscribe(name)
            .start_if_new(Start::Lsn(Lsn::new(start)))
            .filter(kind.map_or_else(Filter::all, |kind| Filter::kinds([kind])))
            .batch_records_max(rng.usize(1..40))
            .retry(Retry::exponential(Duration::from_millis(1), Duration::from_millis(8)).forever())
            .on_position_lost(OnPositionLost::Earliest)
            .on_signal(move |signal| hear(signal, &mut open(&told), &signalled))
            .manual(move |batch| see(batch, &mut open(&watched), &seen, &mut dice))?;
        let begun = inner.handle().status().lsn.get();
        let mut values = lock(ledger);
        if !values.checkpoints[name].contains(&Some(begun)) {
            let may_be = values.checkpoints[name].clone();
            values
                .violations
                .push(format!("{name} resumes at {begun}, stored is one of {may_be:?}"));
        }
        // A store that failed may have reached the disk all the same.
        if !values.faulty {
            values.checkpoints.insert(name.to_owned(), Vec::new());
        }
        values.may_store(name, begun);
        drop(values);
        open(&expected).next = begun + 1;
        Ok(Sub { name: name.to_owned(), inner, ledger: ledger.clone(), expected })
    }

    pub(crate) fn handle(&self) -> &Subscription {
        self.inner.handle()
    }

    pub(crate) fn poll(&mut self) {
        let polled = self.inner.poll();
        let status = self.inner.handle().status();
        let lsn = status.lsn.get();
        let expected = open(&self.expected);
        let mut ledger = lock(&self.ledger);
        ledger.may_store(&self.name, lsn);
        // What its filter does not let through counts as processed.
        let (next, ahead) = (expected.next, lsn + 1 > expected.next);
        let skipped = (next..=lsn).all(|lsn| expected.passes_over(ledger.entry(lsn)));
        if lsn + 1 < next || ahead && !skipped {
            let what = format!("{} has processed {lsn}, but next is {next}", self.name);
            ledger.violations.push(what);
        }
        if polled == Polled::CaughtUp && status.lag_records > 0 {
            let what = format!("{} is caught up, but {} behind", self.name, status.lag_records);
            ledger.violations.push(what);
        }
    }

    /// Moves it, and stores that; if it cannot be stored, it has not moved.
    pub(crate) fn seek(&mut self, next: u64) -> Result<()> {
        let old = self.handle().status().lsn.get();
        lock(&self.ledger).may_store(&self.name, next - 1);
        let sought = self.handle().seek(Start::Lsn(Lsn::new(next)));
        let lsn = self.handle().status().lsn.get();
        let mut ledger = lock(&self.ledger);
        if sought.is_err() {
            // What is on the disk is in doubt.
            ledger.may_store(&self.name, old);
            if lsn != old {
                ledger
                    .violations
                    .push(format!("{}: a failed seek moved it to {lsn}", self.name));
            }
            return sought;
        }
        ledger.stored(&self.name);
        open(&self.expected).next = lsn + 1;
        Ok(())
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn see(
    batch: &Batch<'_>,
    expected: &mut Expected,
    ledger: &Shared,
    dice: &mut Rng,
) -> std::result::Result<Ack, Failure> {
    let mut ledger = lock(ledger);
    let mut next = expected.next;
    let mut last = None;
    for record in batch {
        let lsn = record.lsn().get();
        let right = lsn >= next && (next..lsn).all(|lsn| expected.passes_over(ledger.entry(lsn)));
        let same = ledger.compare(lsn, record.kind(), record.key(), record.payload());
        if !right {
            ledger
                .violations
                .push(format!("expected LSN {next}, was given {lsn}"));
        }
        if let Err(what) = same {
            ledger.violations.push(what);
        }
        // What somebody has seen is promised.
        ledger.ack(lsn);
        next = lsn + 1;
        last = Some(lsn);
    }
    let Some(last) = last else {
        ledger.violations.push("an empty batch".to_owned());
        return Ok(Ack::All);
    };
    match dice.u8(0..12) {
        0 => return Err("a failure".into()),
        1 => return Ok(Ack::RetryAfter(Duration::from_millis(3))),
        2 => {
            let through = dice.u64(expected.next..=last);
            expected.next = through + 1;
            return Ok(Ack::Through(Lsn::new(through)));
        }
        _ => {}
    }
    expected.next = next;
    Ok(Ack::All)
}

fn hear(signal: &Signal, expected: &mut Expected, ledger: &Shared) {
    let complain = |what: String| lock(ledger).violations.push(what);
    match signal {
        Signal::CaughtUp { .. } if std::mem::replace(&mut expected.caught_up, true) => {
            complain("caught up twice".to_owned());
        }
        Signal::FellBehind { .. } if !std::mem::replace(&mut expected.caught_up, false) => {
            complain("fell behind twice".to_owned());
        }
        Signal::PositionLost { from, to, .. } => {
            if from.get() < expected.next {
                complain(format!("lost from {from}, but expected was {}", expected.next));
            }
            if !lock(ledger).deletes.something {
                complain(format!("{from} to {to} are lost, though nothing is deleted"));
            }
            expected.next = to.get() + 1;
        }
        Signal::Parked { lsn, error } if !lock(ledger).faulty => {
            complain(format!("parked at {lsn}: {error}"))
        }
        _ => {}
    }
}
