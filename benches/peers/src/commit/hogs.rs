//! One producer while two other threads want the processors for themselves.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::{commit_micros, open, percentile};
use crate::report::{Bar, Side};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "hogs_p99", run };

const HOGS: usize = 2;

fn run(context: &Context) -> anyhow::Result<()> {
    let commits = context.scaled(4_000, 200);
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bus = open(dir.path())?;
    let writer = bus.writer();
    let p99 = || Ok(percentile(&mut commit_micros(&bus, &writer, commits)?, 0.99));
    let ours = Side::new("with two hogs", || beside_hogs(p99));
    let theirs = Side::new("alone", p99);
    let row = (BENCH.name, "us p99", Bar::AtMost(3.0));
    context.report.pair(context.rounds, row, ours, theirs)
}

fn beside_hogs(run: impl Fn() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..HOGS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    spin_loop();
                }
            });
        }
        let outcome = run();
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}
