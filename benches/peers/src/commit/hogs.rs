//! One producer while two other threads want the processors for themselves, and beside it what
//! becomes of one that writes a page by itself.

use std::cell::RefCell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::{Bare, commit_micros, open, percentile};
use crate::machine::Place;
use crate::report::{Bar, Side, divide};
use crate::{Bench, Context};

pub const BENCH: Bench = Bench { name: "hogs_p99", run };

const HOGS: usize = 2;

fn run(context: &Context) -> anyhow::Result<()> {
    let commits = context.scaled(12_000, 200);
    let dir = tempfile::tempdir_in(&context.dir)?;
    let bus = open(&dir.path().join("log"))?;
    let writer = bus.writer();
    let bare = RefCell::new(Bare::new(&dir.path().join("bare"))?);
    let ours = || Ok(percentile(&mut commit_micros(&bus, &writer, commits)?, 0.99));
    let theirs = || Ok(percentile(&mut bare.borrow_mut().write_micros(commits)?, 0.99));
    let place = Place::new(context);
    let mut sides = [
        Side::new("with two hogs", || place.sample(|| beside_hogs(ours))),
        Side::new("alone", || place.sample(ours)),
        Side::new("bare durable writes of a page, with two hogs", || {
            place.sample(|| beside_hogs(theirs))
        }),
        Side::new("bare durable writes of a page, alone", || place.sample(theirs)),
    ];
    let (report, name) = (&context.report, BENCH.name);
    let figures = report.sides(context.rounds, (name, "us p99"), &mut sides)?;
    report.figure(name, "ratio of the bare writes", &divide(&figures[2], &figures[3]));
    report.ratio(name, &divide(&figures[0], &figures[1]), Bar::AtMost(3.0));
    place.tell(name);
    Ok(())
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
