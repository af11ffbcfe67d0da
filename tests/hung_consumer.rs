//! One callback never returns: nobody else notices, memory stays bounded, and stop and close say
//! who it is. Its own process, for its memory is measured: one test, no more.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{LONG, assert_content, backends, fill_later, small, until};
use eventplane::{Ack, Backend, Batch, Bus, ErrorKind, Lsn, Start, Subscription};
use parking_lot::Mutex;

const KIB: u64 = 1 << 10;
const SLAB_BYTES: u64 = 256 * KIB;
const RING_BYTES: u64 = 4 << 20;
const PIN_BUDGET_BYTES: u64 = 2 << 20;
const WRITTEN_BYTES: u64 = 40 << 20;
const OTHERS: u64 = 3;

fn rss_anon_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * KIB
}

fn open(backend: Backend, dir: &std::path::Path) -> Bus {
    small(backend)
        .slab_bytes(SLAB_BYTES)
        .segment_bytes(1 << 20)
        .ring_bytes(RING_BYTES)
        .pin_budget_bytes(PIN_BUDGET_BYTES)
        .catchup_window_bytes(16 << 20)
        .stall_after(Duration::from_millis(50))
        .open(dir)
        .unwrap()
}

fn checking(bus: &Bus, name: &str) -> (Subscription, Arc<Mutex<u64>>) {
    let last = Arc::new(Mutex::new(0));
    let subscription = bus
        .subscribe(name)
        .start_if_new(Start::Earliest)
        .run({
            let last = Arc::clone(&last);
            move |batch: &Batch<'_>| {
                for record in batch {
                    let mut last = last.lock();
                    assert_eq!(record.lsn().get(), *last + 1);
                    assert_content(&record);
                    *last += 1;
                }
                Ok(Ack::All)
            }
        })
        .unwrap();
    (subscription, last)
}

/// Commits a megabyte; returns how long it took.
fn commit_some(bus: &Bus) -> Duration {
    let writer = bus.writer();
    let begun = Instant::now();
    let mut last = bus.committed_lsn();
    for _ in 0..32 {
        let ticket = fill_later(&writer, last, 4, 8_000);
        last = *ticket.wait().unwrap().end();
    }
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_callback_that_never_returns_harms_nobody_else() {
    for backend in backends() {
        with_backend(backend);
    }
}

fn with_backend(backend: Backend) {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let alone = open(backend, dirs[0].path());
    let before = rss_anon_bytes();
    let bus = open(backend, dirs[1].path());
    let (release, gate) = mpsc::channel::<()>();
    let (entered, inside) = mpsc::channel();
    let hung = bus
        .subscribe("hung")
        .start_if_new(Start::Earliest)
        .run(move |batch: &Batch<'_>| {
            // Keeps its batch, and as much as it may lease, until it is released.
            let leases: Vec<_> = batch.iter().filter_map(|record| record.lease().ok()).collect();
            let _ = entered.send(());
            let _ = gate.recv();
            drop(leases);
            Ok(Ack::All)
        })
        .unwrap();
    let others: Vec<_> = (0..OTHERS)
        .map(|i| checking(&bus, &format!("other{i}")))
        .collect();
    commit_some(&bus);
    inside.recv_timeout(LONG).unwrap();

    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..WRITTEN_BYTES >> 20 {
        with.push(commit_some(&bus));
        without.push(commit_some(&alone));
    }
    let (with, without) = (median(with), median(without));
    println!("{backend:?}: a megabyte of commits takes {with:?} with, {without:?} without");
    // Three checking consumers share two cores with the writer here; waiting for one of them would
    // cost its whole deadline.
    assert!(
        with < 4 * without + Duration::from_millis(20),
        "{with:?} against {without:?}"
    );

    let last = bus.committed_lsn();
    for (other, seen) in &others {
        other.wait_processed(last, LONG).unwrap();
        assert_eq!(*seen.lock(), last.get(), "{} saw everything", other.name());
    }
    until("the hung consumer is shed", || hung.status().shed);
    assert_eq!(hung.status().lsn, Lsn::ZERO);
    assert_memory(before);

    let late = hung.stop_within(Duration::from_millis(50)).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Timeout);
    assert!(late.to_string().contains("hung"), "{late}");
    let late = bus.close_within(Duration::from_millis(50)).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Timeout);
    assert!(
        late.to_string().contains("hung") && !late.to_string().contains("other"),
        "{late}"
    );
    for (other, _) in &others {
        other.stop_within(Duration::ZERO).unwrap();
    }

    reopen_while_it_hangs(backend, dirs[1].path(), last, &hung, &release);
    alone.close().unwrap();
}

/// The directory is free although the callback still runs; and when it returns, it must not touch
/// what another bus has opened.
fn reopen_while_it_hangs(
    backend: Backend,
    dir: &Path,
    last: Lsn,
    hung: &Subscription,
    release: &mpsc::Sender<()>,
) {
    let reopened = open(backend, dir);
    assert_eq!(reopened.committed_lsn(), last);
    let again = reopened
        .subscribe("hung")
        .start_at(Start::Latest)
        .run(|_: &Batch<'_>| Ok(Ack::All))
        .unwrap();
    again.stop().unwrap();
    release.send(()).unwrap();
    let closed = hung.stop_within(LONG).unwrap_err();
    assert_eq!(
        closed.kind(),
        ErrorKind::Closed,
        "its last checkpoint has nowhere to go"
    );
    reopened.close().unwrap();
    let reopened = open(backend, dir);
    let resumed = reopened.subscribe("hung").start_if_new(Start::Earliest);
    let resumed = resumed.run(|_: &Batch<'_>| Ok(Ack::All)).unwrap();
    assert_eq!(
        resumed.status().lsn,
        last,
        "the checkpoint of the later bus stands"
    );
    reopened.close().unwrap();
}

/// Ring, pin budget, one slab a consumer, the few that are just changing hands, and what else a bus
/// needs: read buffers, indexes, the stacks of its threads.
#[track_caller]
fn assert_memory(before: u64) {
    let spare_slabs = 8;
    let consumers = OTHERS + 1;
    let slabs = RING_BYTES + PIN_BUDGET_BYTES + (consumers + spare_slabs) * SLAB_BYTES;
    let cold_pool = 4 << 20;
    let rest = 4 << 20;
    let used = rss_anon_bytes().saturating_sub(before);
    println!(
        "{} KiB of at most {} KiB",
        used / KIB,
        (slabs + cold_pool + rest) / KIB
    );
    assert!(used <= slabs + cold_pool + rest, "{used} bytes");
    assert!(used < WRITTEN_BYTES / 2, "the bound says something");
}
