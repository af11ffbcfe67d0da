//! What the run says of itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use eventplane::{Reason, Tier};

use crate::board::{Board, Slot};
use crate::faults;
use crate::plan::End;

const EVERY: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    begun: Instant,
    told: Instant,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress { begun: Instant::now(), told: Instant::now() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A line every few seconds.
    pub(crate) fn tell(&mut self, board: &Board, lives: u64) {
        if self.told.elapsed() < EVERY {
            return;
        }
        self.told = Instant::now();
        println!(
            "{:>6.0} s  {lives} lives, {} records committed, {} delivered, {} losses told",
            self.begun.elapsed().as_secs_f64(),
            board.get(Slot::Records),
            delivered(board).iter().sum::<u64>(),
            board.get(Slot::Losses),
        );
    }
}

fn delivered(board: &Board) -> [u64; 3] {
    [0, 1, 2].map(|tier| board.get_nth(Slot::Delivered, tier))
}

/// Faults that struck.
pub(crate) fn faults(board: &Board) -> u64 {
    (0..faults::names().count()).map(|kind| board.get_nth(Slot::Faults, kind)).sum()
}

fn line(what: &str, text: impl std::fmt::Display) {
    println!("  {what:<24} {text}");
}

/// `name n, name n`
fn list<'a>(names: impl Iterator<Item = &'a str>, count: impl Fn(usize) -> u64) -> String {
    let parts = names.enumerate().map(|(i, name)| format!("{name} {}", count(i)));
    parts.collect::<Vec<_>>().join(", ")
}

/// The table at the end.
pub(crate) fn table(board: &Board, lives: &BTreeMap<End, u64>, elapsed: Duration) {
    let get = |slot| board.get(slot);
    println!("what it did in {:.0} s:", elapsed.as_secs_f64());
    let ends = list(End::ALL.iter().map(|end| end.name()), |i| {
        lives.get(&End::ALL[i]).copied().unwrap_or(0)
    });
    line("lives, by their end", format_args!("{ends}; {} poisoned", get(Slot::Poisoned)));
    line(
        "records committed",
        format_args!("{} in {} commits", get(Slot::Records), get(Slot::Commits)),
    );
    line("bytes committed", get(Slot::Bytes));
    line("delivered, by tier", list(Tier::ALL.iter().map(|t| t.name()), |i| delivered(board)[i]));
    line("read", format_args!("{} by {} readers", get(Slot::ReadByReaders), get(Slot::Readers)));
    let reasons = Reason::ALL.iter().map(|reason| reason.name());
    line("transitions, by reason", list(reasons, |i| board.get_nth(Slot::Reasons, i)));
    line(
        "signals",
        format_args!("caught up {}, fell behind {}", get(Slot::CaughtUp), get(Slot::FellBehind)),
    );
    line("faults that struck", list(faults::names(), |i| board.get_nth(Slot::Faults, i)));
    line(
        "appends refused",
        format_args!(
            "{} for want of a segment, {} for size; {} batches dropped",
            get(Slot::StorageFull),
            get(Slot::RefusedSizes),
            get(Slot::DroppedBatches)
        ),
    );
    line(
        "callbacks",
        format_args!(
            "{} failed, {} panicked, {} answered later, {} in part, {} hung",
            get(Slot::Errors),
            get(Slot::Panics),
            get(Slot::LaterAnswers),
            get(Slot::PartAnswers),
            get(Slot::Hangs)
        ),
    );
    line(
        "given up",
        format_args!("{} dead letters, {} times parked", get(Slot::DeadLetters), get(Slot::Parked)),
    );
    line("leases", format_args!("{}, and {} refused", get(Slot::Leases), get(Slot::LeasesRefused)));
    line(
        "came and went",
        format_args!(
            "{} left, {} guests, {} pauses, {} seeks",
            get(Slot::Leaves),
            get(Slot::Guests),
            get(Slot::Pauses),
            get(Slot::Seeks)
        ),
    );
    line(
        "losses told",
        format_args!("{} of {} records", get(Slot::Losses), get(Slot::LostRecords)),
    );
    line(
        "repeated after a crash",
        format_args!(
            "{} records, {} at most at once",
            get(Slot::Repeated),
            get(Slot::RepeatedMost)
        ),
    );
    line("memory, at most", format_args!("{} MiB more", get(Slot::MemoryMost) >> 20));
}
