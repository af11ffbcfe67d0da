//! The writer: commits the events at a rate or in bursts, as far as the director lets it; and the
//! acknowledger behind it, which waits for the commits and notes how far they are durable.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use eventplane::{Bus, ErrorKind, Ticket, Writer};
use hdrhistogram::Histogram;

use crate::Failure;
use crate::args::{Acknowledge, Rate};
use crate::exact::lock;
use crate::home::Home;
use crate::input::Input;
use crate::stage::Cue;
use crate::store::Slots;

/// Records a commit at most; the commits of a burst are grouped by the log.
const BATCH_RECORDS_MAX: u64 = 512;
/// Commits that may be in flight.
const TICKETS_MAX: usize = 64;
/// The writer looks this often when there is nothing to write yet.
const PAUSE: Duration = Duration::from_millis(1);
/// What a writer that fell behind its rate makes up for: no more than this.
const ARREARS_MAX: Duration = Duration::from_millis(50);

/// A commit that takes longer is counted as this long.
const LATENCY_MAX: Duration = Duration::from_secs(60);

const ACKNOWLEDGED: &str = "acknowledged";

/// What the director and the display have in common with the writer.
pub(crate) struct Flow {
    /// The last LSN that may be written now. Relaxed: a number by itself.
    limit: AtomicU64,
    pub(crate) burst: Cue,
    pub(crate) stop: Cue,
    latency: Mutex<Latency>,
    failure: Mutex<Option<String>>,
}

/// A commit on its way to the acknowledger, and when it began.
pub(crate) type Pending = (Instant, Ticket);

/// Microseconds from commit to acknowledgement.
struct Latency {
    lately: Histogram<u64>,
    total: Histogram<u64>,
}

/// Percentiles 50 and 99 in microseconds.
pub(crate) type Percentiles = (u64, u64);

fn percentiles(of: &Histogram<u64>) -> Percentiles {
    (of.value_at_quantile(0.5), of.value_at_quantile(0.99))
}

impl Flow {
    pub(crate) fn new() -> Flow {
        let histogram = || {
            let bounds = Histogram::new_with_bounds(1, LATENCY_MAX.as_micros() as u64, 3);
            bounds.expect("three digits up to a minute")
        };
        Flow {
            limit: AtomicU64::new(0),
            burst: Cue::default(),
            stop: Cue::default(),
            latency: Mutex::new(Latency { lately: histogram(), total: histogram() }),
            failure: Mutex::default(),
        }
    }

    /// Lets the writer go on through this LSN; what was allowed before stays allowed.
    pub(crate) fn allow(&self, through: u64) {
        self.limit.fetch_max(through, Ordering::Relaxed);
    }

    fn note_latency(&self, took: Duration) {
        let micros = took.as_micros() as u64;
        let mut latency = lock(&self.latency);
        latency.lately.saturating_record(micros);
        latency.total.saturating_record(micros);
    }

    /// Percentiles since the last call.
    pub(crate) fn latency_lately(&self) -> Percentiles {
        let mut latency = lock(&self.latency);
        let lately = percentiles(&latency.lately);
        latency.lately.reset();
        lately
    }

    pub(crate) fn latency_total(&self) -> Percentiles {
        percentiles(&lock(&self.latency).total)
    }

    /// What stopped the writer.
    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    /// Does one's part; a failure, or a panic, stops the run.
    pub(crate) fn guard(&self, who: &str, part: impl FnOnce() -> Result<(), Failure>) {
        match panic::catch_unwind(AssertUnwindSafe(part)) {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => self.fail(who, &failure),
            Err(_) => self.fail(who, &"it panicked"),
        }
    }

    pub(crate) fn fail(&self, who: &str, failure: &dyn std::fmt::Display) {
        lock(&self.failure).get_or_insert_with(|| format!("{who}: {failure}"));
    }
}

/// How much a rate allows by now.
struct Pace {
    rate: Rate,
    paid_until: Instant,
}

impl Pace {
    /// How many records are due, and they are then taken as written.
    fn due(&mut self, records_max: u64) -> u64 {
        let Rate::PerSecond(rate) = self.rate else {
            return records_max;
        };
        let now = Instant::now();
        self.paid_until = self.paid_until.max(now.checked_sub(ARREARS_MAX).unwrap_or(now));
        let elapsed = now.saturating_duration_since(self.paid_until).as_nanos();
        let due = (elapsed * u128::from(rate) / 1_000_000_000) as u64;
        let due = due.min(records_max);
        self.paid_until += Duration::from_nanos(due * 1_000_000_000 / rate);
        due
    }
}

/// Commits the events behind `written` through the last of `records`.
pub(crate) fn produce(
    bus: &Bus,
    input: &Input,
    (written, records, rate): (u64, u64, Rate),
    flow: &Flow,
    tickets: &SyncSender<Pending>,
) -> Result<(), Failure> {
    let writer = bus.writer();
    let mut pace = Pace { rate, paid_until: Instant::now() };
    let mut last = written;
    while last < records && !flow.stop.get() {
        let room = flow.limit.load(Ordering::Relaxed).min(records).saturating_sub(last);
        let room = room.min(BATCH_RECORDS_MAX);
        let now = if flow.burst.get() { room } else { pace.due(room) };
        if now == 0 {
            thread::sleep(PAUSE);
            continue;
        }
        let begun = Instant::now();
        let ticket = commit(&writer, input, last + 1, now)?;
        let lsns = ticket.lsns();
        if lsns.start().get() != last + 1 {
            return Err(format!("LSN {} was assigned to record {}", lsns.start(), last + 1).into());
        }
        last = lsns.end().get();
        // Full: the disk is behind. Closed: the acknowledger has said why.
        if tickets.send((begun, ticket)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Commits up to `count` events, fewer if they do not fit a batch.
fn commit(writer: &Writer, input: &Input, first: u64, count: u64) -> Result<Ticket, Failure> {
    let mut batch = writer.batch();
    for lsn in first..first + count {
        let row = input.row(lsn);
        match batch.append(row.kind, row.key, row.payload) {
            Err(e) if e.kind() == ErrorKind::BatchTooLarge && !batch.is_empty() => break,
            appended => appended?,
        }
    }
    Ok(batch.commit_later()?)
}

pub(crate) fn channel() -> (SyncSender<Pending>, Receiver<Pending>) {
    sync_channel(TICKETS_MAX)
}

/// Waits for the commits and stores how far they are acknowledged.
pub(crate) fn acknowledge(
    bus: &Bus,
    home: &Home,
    durability: Acknowledge,
    flow: &Flow,
    tickets: &Receiver<Pending>,
) -> Result<(), Failure> {
    let (mut slots, _) = Slots::<u64>::open(&home.state(ACKNOWLEDGED))?;
    for (begun, ticket) in tickets {
        let last = ticket.wait()?.end().get();
        flow.note_latency(begun.elapsed());
        // A deferred commit returns before it is durable: nothing is promised yet.
        let durable = match durability {
            Acknowledge::Synced => last,
            Acknowledge::Deferred => bus.durable_lsn().get(),
        };
        slots.store(&durable)?;
    }
    Ok(())
}

/// The last record that an earlier run saw acknowledged.
pub(crate) fn acknowledged(home: &Home) -> io::Result<u64> {
    Ok(Slots::open(&home.state(ACKNOWLEDGED))?.1.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_what_was_recorded() {
        let flow = Flow::new();
        for micros in [100, 200, 50_000] {
            flow.note_latency(Duration::from_micros(micros));
        }
        assert_eq!(flow.latency_lately(), (200, 50_015));
        assert_eq!((flow.latency_lately(), flow.latency_total()), ((0, 0), (200, 50_015)));
    }

    #[test]
    fn a_rate_is_kept_and_arrears_are_bounded() {
        let begun = Instant::now() - Duration::from_secs(10);
        let mut pace = Pace { rate: Rate::PerSecond(1_000), paid_until: begun };
        let due = pace.due(u64::MAX);
        assert!((50..100).contains(&due), "{due} after ten seconds without a look");
        assert_eq!(pace.due(0), 0);
        assert_eq!(Pace { rate: Rate::Max, paid_until: begun }.due(7), 7);
    }
}
