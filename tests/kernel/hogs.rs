//! As many threads as there are cores that compute and never wait, beside a writer that waits for
//! the disk: its commits must not queue up behind them, and nothing that a commit waits for may.

use std::fmt;
use std::fs::OpenOptions;
use std::hint;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use eventplane::{Backend, Bus};

use super::proof;

const ROW: &str = "hogs";
const LIMIT: Duration = Duration::from_millis(5);
/// A plain write that takes so long has waited for a core for half a tick. A commit waits as
/// often, or three times: for the committer, for the disk, and for its own core.
const QUIET: Duration = Duration::from_millis(2);
const RUN: Duration = Duration::from_millis(600);
/// What else the machine does spoils runs: one good one is enough, within this time.
const PATIENCE: Duration = Duration::from_secs(50);
/// To find fault, as many runs that were not spoiled, and not good.
const UNSPOILED_MIN: u32 = 3;

/// How a commit goes to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// By the producer itself, as one durable write.
    Leading,
    /// By the committer thread, through io_uring and a sync.
    Queued,
    /// The planted bug: by a producer that runs when nobody else wants to.
    LastInLine,
}

/// The 99th percentiles, and how many.
struct Measured {
    commit: Duration,
    /// Of a plain durable write of as much, after each commit: what the disk and the machine take.
    write: Duration,
    commits: usize,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measured { commit, write, commits } = self;
        write!(
            f,
            "p99 {commit:.1?} of {commits} commits, {write:.1?} of plain writes"
        )
    }
}

fn measure(how: How, bytes: usize) -> Measured {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::builder()
        .backend(Backend::IoUring)
        .open(dir.path().join("log"));
    let bus = bus.unwrap_or_else(|_| Bus::builder().open(dir.path().join("log")).unwrap());
    let ended = AtomicBool::new(false);
    let hogs = thread::available_parallelism().map_or(2, usize::from);
    let (mut commits, mut writes) = thread::scope(|scope| {
        for _ in 0..hogs {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    hint::black_box((0..1_000u64).fold(1, u64::wrapping_mul));
                }
            });
        }
        let writing = scope.spawn(|| commit_and_write(&bus, dir.path(), how, bytes));
        let took = writing.join().unwrap();
        ended.store(true, Ordering::Relaxed);
        took
    });
    let p99 = |took: &mut Vec<Duration>| {
        took.sort_unstable();
        took[took.len() * 99 / 100]
    };
    let (commit, write) = (p99(&mut commits), p99(&mut writes));
    Measured { commit, write, commits: commits.len() }
}

fn commit_and_write(
    bus: &Bus,
    dir: &Path,
    how: How,
    bytes: usize,
) -> (Vec<Duration>, Vec<Duration>) {
    if how == How::LastInLine {
        be_last_in_line();
    }
    let (mut options, pages) = (OpenOptions::new(), vec![7; bytes.next_multiple_of(4096)]);
    options.write(true).create(true).custom_flags(libc::O_DSYNC);
    let plain = options.open(dir.join("plain")).unwrap();
    let (writer, payload) = (bus.writer(), vec![7; bytes]);
    let (mut commits, mut writes) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while begun.elapsed() < RUN {
        let commit = Instant::now();
        let mut batch = writer.batch();
        batch.append(0, 0, &payload).unwrap();
        match how {
            How::Queued => batch.commit_later().unwrap().wait().unwrap(),
            _ => batch.commit().unwrap(),
        };
        commits.push(commit.elapsed());
        let write = Instant::now();
        plain.write_all_at(&pages, 0).unwrap();
        writes.push(write.elapsed());
    }
    (commits, writes)
}

fn be_last_in_line() {
    let nothing = libc::sched_param { sched_priority: 0 };
    // SAFETY: `nothing` lives until the call returns; it concerns this thread alone.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &nothing) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Measures until a run is good. A run in which plain writes, too, wait for a core says nothing of
/// this code; if hardly any other can be had, that is what is told.
fn judge(how: How, bytes: usize, patience: Duration) -> Result<(), String> {
    let (begun, mut unspoiled) = (Instant::now(), 0);
    loop {
        let measured = measure(how, bytes);
        println!("hogs: {how:?}, {bytes} B: {measured}");
        if measured.commit < LIMIT {
            return Ok(());
        }
        unspoiled += u32::from(measured.write < QUIET);
        if begun.elapsed() > patience {
            assert!(unspoiled < UNSPOILED_MIN, "{how:?}, {bytes} B: {measured}");
            return Err(format!("the machine is too busy: {measured}"));
        }
    }
}

#[test]
fn hogs_do_not_hold_commits_up() {
    let runs = proof::cases(ROW, 1) as usize;
    let patience = if runs > 1 { PATIENCE } else { PATIENCE / 20 };
    let cases =
        [(How::Leading, 100), (How::Queued, 200_000), (How::Leading, 50_000), (How::Queued, 100)];
    for (how, bytes) in cases.into_iter().take(runs) {
        if let Err(why) = judge(how, bytes, patience) {
            return proof::skipped(ROW, &why);
        }
    }
    // The control: somebody who does wait behind the hogs is seen to.
    let measured = measure(How::LastInLine, 100);
    println!("control: hogs: last in line: {measured}");
    assert!(
        measured.commit > LIMIT,
        "the hogs are none: {measured} behind them"
    );
    proof::executed(ROW, runs.min(cases.len()) as u64);
}
